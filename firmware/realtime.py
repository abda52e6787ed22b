"""What a scan process asks of the kernel: FIFO priority, locked memory, absolute sleeps, blocked signals."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from time import CLOCK_MONOTONIC, monotonic, sleep

_libc = ctypes.CDLL(None, use_errno=True)
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_TIMER_ABSTIME = 1
_LOOK_S = 0.05
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_at = _Timespec()
_at_pointer = ctypes.byref(_at)


def sleep_until(deadline_ns: int) -> None:
    """Sleeps to an absolute CLOCK_MONOTONIC time; a signal does not shorten it."""
    _at.tv_sec, _at.tv_nsec = divmod(deadline_ns, 1_000_000_000)
    while _libc.clock_nanosleep(CLOCK_MONOTONIC, _TIMER_ABSTIME, _at_pointer, None) == 4:  # EINTR
        pass


def use_fifo(priority: int, thread: int = 0) -> bool:
    """SCHED_FIFO for a thread, by default this one, not for children. False when the right is missing."""
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def lock_memory() -> bool:
    """mlockall of present and future pages. False when the right is missing."""
    return bool(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)


def use_core(core: int) -> None:
    """Runs on one core; -1 is the last. A core this machine or cgroup does not give is left alone."""
    allowed = sorted(os.sched_getaffinity(0))
    wanted = allowed[-1] if core < 0 else core
    if wanted in allowed:
        os.sched_setaffinity(0, {wanted})


def settle() -> None:
    """Collects once, then keeps the collector out of the scan; signals are asked for, never delivered."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    gc.collect()
    gc.freeze()
    gc.disable()


def arrived(timeout_s: float) -> int:
    """The first of STOP_SIGNALS, which must be blocked, that comes within the time; 0 when none does.

    It never blocks in sigtimedwait: CPython 3.11 makes up a signal there when a stopped process is continued late.
    """
    end_s = monotonic() + timeout_s
    while (found := signal.sigtimedwait(STOP_SIGNALS, 0)) is None:
        left_s = end_s - monotonic()
        if left_s <= 0.0:
            return 0
        sleep(min(left_s, _LOOK_S))
    return found.si_signo


def pending_stop() -> bool:
    """Whether SIGTERM or SIGINT arrived since the last call; SIGHUP is taken and means nothing here."""
    while number := arrived(0):
        if number != signal.SIGHUP:
            return True
    return False


def prepare(priority: int, core: int) -> tuple[bool, bool]:
    """All of it; (FIFO granted, memory locked). Locking takes milliseconds, so it comes before the priority."""
    use_core(core)
    settle()
    locked = lock_memory()
    return use_fifo(priority), locked
