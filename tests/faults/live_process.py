"""Each process killed, stopped and starved of memory under charge: where the rack ends, and what was recorded."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from waiting import wait_until

from statemachine.states import CHARGING, State

from .scenario import Reaction, live
from .stand import FLOWS_A, NICE, PROCESSES, Stand

OPEN_MS = 150.0
"""The pulse-train relay falls out after 100 ms, a contactor opens 20 ms later; the rest is bench and polling."""
KEEP_S = 3.0
OPENS = ("controller", "guard")
"""Without these the contactors open at once, without the aggregator in order, without the others not at all."""


class Cell(NamedTuple):
    """One field of the matrix: process against calamity."""

    process: str
    calamity: str
    ends: str
    recorded: bool


CELLS: list[Cell] = []


def settle(s: Stand, name: str, since: float) -> str:
    """Where the rack ends without the process, in words; AssertionError when that is not safe."""
    if name in OPENS:
        ms = s.open_ms(since, 5)
        assert ms <= OPEN_MS + s.allowance_ms, f"the contactors opened after {ms:.0f} ms"
        return f"contactors open after {ms:.0f} ms"
    if name == "aggregator":
        ms = s.after_ms(since, "-> STOPPING")
        s.stamp("-> FAULT", since)
        s.open_ms(since, 5)
        return f"STOPPING after {ms:.0f} ms, FAULT, open"
    time.sleep(max(0.0, since + KEEP_S - time.monotonic()))
    assert s.truth("true_pos") == s.truth("true_neg") == 1, "the contactors stay closed"
    wait_until(lambda: s.state() in {State.READY, *CHARGING} or name == "server", 5, "the rack stays connected")
    flows = s.truth("true_current_a") < FLOWS_A
    assert flows or name == "server", "the current goes on"
    return "charges on" if flows else "0 A, contactors stay closed"


def books(s: Stand, name: str, calamity: str, ends: str) -> None:
    """Waits until the process answers again, then compares the process image's events with battery.log."""
    wait_until(lambda: s.state() is not None, 20, "the appliance answers again")
    missing = s.unrecorded()
    CELLS.append(Cell(name, calamity, ends, not missing))
    assert not missing, f"events that are not in battery.log: {missing[:3]}"


def each(
    s: Stand, calamity: str, names: tuple[str, ...], strike: Callable[[str], contextlib.AbstractContextManager[float]]
) -> str:
    """The calamity for each process, from charging; then the technician's way back."""
    for name in names:
        s.bring_to("charging")
        with strike(name) as since:
            ends = settle(s, name, since)
        books(s, name, calamity, ends)
    s.recover()
    return "; ".join(f"{c.process}: {c.ends}" for c in CELLS if c.calamity == calamity)


@contextmanager
def killed(s: Stand, name: str) -> Iterator[float]:
    """SIGKILL; the runner starts the process again."""
    first = s.pid(name)
    yield s.signal(name, signal.SIGKILL)
    wait_until(lambda: s.running(name) not in (0, first), 10, f"{name} is started again")


@live("P1", quick=True)
def the_controller_is_killed_under_charge(s: Stand) -> Reaction:
    with killed(s, "controller") as since:
        ms = s.after_ms(since, "guard safe-enable off")
        open_ms = s.open_ms(since, 5)
    s.until(State.EMERGENCY_STOP, State.FAULT)
    s.shows("ERR_CONTROLLER_RESTART")
    assert s.all_open(), "the successor starts in FAULT, never in charge"
    books(s, "controller", "SIGKILL", f"contactors open after {open_ms:.0f} ms")
    return Reaction(ms)


@live("P2", repeats=1)
def each_other_process_is_killed_under_charge(s: Stand) -> str:
    others = tuple(name for name in PROCESSES if name != "controller")
    return each(s, "SIGKILL", others, lambda name: killed(s, name))


@live("P3", repeats=1)
def each_process_is_stopped_under_charge(s: Stand) -> str:
    return each(s, "SIGSTOP", PROCESSES, s.stopped)


@live("P3-guard", quick=True)
def the_guard_is_stopped_under_charge(s: Stand) -> Reaction:
    with s.stopped("guard") as since:
        ms = s.open_ms(since, 5)
    return Reaction(ms)


@live("P7", repeats=1)
def each_process_runs_out_of_memory_under_charge(s: Stand) -> str:
    if not Cgroup.possible():
        return each(s, "memory", PROCESSES, lambda name: limited(s, name)) + " (RLIMIT_AS: the cgroup is not writable)"
    return each(s, "memory", PROCESSES, lambda name: starved(s, name)) + " (killed by the kernel in a memory cgroup)"


@contextmanager
def limited(s: Stand, name: str) -> Iterator[float]:
    """No more address space than it has: the next allocation fails. Unlike a cgroup this kills nobody by itself."""
    pid = s.pid(name)
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = time.monotonic()
    resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        yield before
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


_HOG = "import sys\nheld = []\nsys.stdin.readline()\nwhile True: held.append(bytearray(1 << 20))"


@contextmanager
def starved(s: Stand, name: str) -> Iterator[float]:
    """In a memory cgroup with a program that takes all: the kernel kills the process, marked as the first to go."""
    pid = s.pid(name)
    with Cgroup() as group:
        hog = subprocess.Popen([sys.executable, "-c", _HOG], stdin=subprocess.PIPE)
        try:
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
            group.take(pid)
            group.take(hog.pid)
            group.limit(64 << 20)
            assert hog.stdin is not None
            hog.stdin.write(b"\n")
            hog.stdin.flush()
            wait_until(lambda: s.running(name) != pid, 20, f"the kernel kills {name}")
            yield time.monotonic()
        finally:
            hog.kill()
            hog.wait()
    wait_until(lambda: s.running(name) != 0, 10, f"{name} is started again")


class Cgroup:
    """A memory cgroup (version 1) below this process's own."""

    def __init__(self) -> None:
        self._path = self._own() / f"ems-faults-{os.getpid()}"

    @staticmethod
    def _own() -> Path:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            if kind == "memory":
                return Path(f"/sys/fs/cgroup/memory{path}")
        return Path("/sys/fs/cgroup/memory")

    @classmethod
    def possible(cls) -> bool:
        """Whether this machine lets us make one."""
        return (cls._own() / "memory.limit_in_bytes").exists() and os.access(cls._own(), os.W_OK)

    def __enter__(self) -> Cgroup:
        self._path.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self._own() / "cgroup.procs").write_text(pid)
        self._path.rmdir()

    def take(self, pid: int) -> None:
        (self._path / "cgroup.procs").write_text(str(pid))

    def limit(self, size: int) -> None:
        (self._path / "memory.limit_in_bytes").write_text(str(size))


@live("P6", repeats=1)
def other_programs_take_all_cores(s: Stand) -> str:
    before, late, start = s.get("ScanOverruns"), s.get("ScanLate"), s.get("ScanCount")
    hogs = [
        subprocess.Popen(["nice", "-n", str(NICE), sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                subprocess.run(["/bin/true"], check=False)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    s.charges_on()
    scans, missed = s.get("ScanCount") - start, s.get("ScanOverruns") - before
    late = s.get("ScanLate") - late
    return f"{len(hogs)} busy programs, a storm of forks: {missed:.0f} of {scans:.0f} scans missed, {late:.0f} late"


@live("L4", repeats=1)
def a_charging_rack_writes_little(s: Stand) -> str:
    pid = s.pid("historian")

    def written() -> int:
        return int(Path(f"/proc/{pid}/io").read_text().partition("write_bytes: ")[2].split()[0])

    time.sleep(5.0)
    before = written()
    time.sleep(60.0)
    a_day = (written() - before) * 1440
    assert a_day <= 50e6, f"{a_day / 1e6:.0f} MB a day"
    return f"{a_day / 1e6:.1f} MB a day by the block layer's count, over a minute"


@live("L7", repeats=1)
def a_charging_appliance_needs_little(s: Stand) -> str:
    def used() -> dict[str, float]:
        ticks = os.sysconf("SC_CLK_TCK")
        stat = {name: Path(f"/proc/{s.pid(name)}/stat").read_text().rpartition(") ")[2].split() for name in PROCESSES}
        return {name: (int(f[11]) + int(f[12])) / ticks for name, f in stat.items()}

    before = used()
    time.sleep(10.0)
    share = {name: (seconds - before[name]) * 10.0 for name, seconds in used().items()}
    assert sum(share.values()) <= 150.0, f"CPU of the appliance {share}"
    return "CPU " + ", ".join(f"{name} {percent:.1f} %" for name, percent in share.items())
