"""What the measurements lean on: cyclictest, small C programs, real-time priority, the machine by name."""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from timeit import repeat
from types import TracebackType
from typing import NamedTuple

from waiting import wait_until

SOURCES = Path(__file__).parent
BUILD = Path("build/bench")
_PYTHON_SERVERS = (sys.executable, "-m", "tests.bench.python_servers")
LEAST = "recv() and send() in C"
"""A server that checks nothing and answers zeros: no server of one thread does less."""
_LONG_S = 3600  # the load is ended from outside
RR_PRIORITY = 1
"""Enough to be above every ordinary process, and below the controller and the guard."""


class Missing(Exception):
    """A yardstick cannot be had on this machine; the text says what is missing and where it comes from."""


class Spread(NamedTuple):
    """Median and 99th percentile of `n` samples."""

    p50: float
    p99: float
    n: int


def at(ranked: Sequence[float], fraction: float) -> float:
    """Nearest-rank percentile of sorted samples."""
    return ranked[max(0, math.ceil(fraction * len(ranked)) - 1)]


def spread(samples: Sequence[float]) -> Spread:
    """Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ranked = sorted(samples)
    return Spread(at(ranked, 0.5), at(ranked, 0.99), len(ranked))


def may_be_realtime() -> bool:
    """Whether this process may use SCHED_FIFO and SCHED_RR."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(RR_PRIORITY))
    except PermissionError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


def _raise(pid: int, core: int) -> None:
    os.sched_setaffinity(pid, {core})
    if may_be_realtime():
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(RR_PRIORITY))


@contextmanager
def favoured(pid: int, core: int) -> Iterator[None]:
    """A process alone on one core and, where that is allowed, above all ordinary processes."""
    before = os.sched_getaffinity(pid)
    _raise(pid, core)
    try:
        yield
    finally:
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(pid, before)


@contextmanager
def raised() -> Iterator[None]:
    """This thread before all ordinary ones where that is permitted, like a client on a machine of its own."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, from /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compiled(name: str, *libraries: str) -> Path:
    """The program made of NAME.c. Raises Missing."""
    compiler, source, program = shutil.which("cc"), SOURCES / f"{name}.c", BUILD / name
    if compiler is None:
        raise Missing("no C compiler `cc` (Debian: apt install gcc)")
    flags = _flags(libraries)
    program.parent.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", program, source, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise Missing(f"{source.name} does not compile: {ended.stderr.strip().splitlines()[-1]}")
    return program


def _flags(libraries: Sequence[str]) -> list[str]:
    if not libraries:
        return []
    hint = f"no {', '.join(libraries)} (Debian: apt install pkg-config {' '.join(f'{n}-dev' for n in libraries)})"
    try:
        ended = subprocess.run(
            ["pkg-config", "--cflags", "--libs", *libraries], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(hint) from error
    return ended.stdout.split()


class Latencies(NamedTuple):
    """What cyclictest saw, us."""

    spread: Spread
    longest: int
    late: int  # latencies above the period


class Cyclictest:
    """cyclictest on one core as long as the `with` lasts; then `seen`, or `missing` says why there is nothing."""

    def __init__(self, priority: int, period_us: int, core: int) -> None:
        self._period_us, self._program = period_us, shutil.which("cyclictest")
        self.name = f"cyclictest -p{priority} -m -i{period_us}, core {core}"
        self._arguments = ["-q", "-t1", f"-a{core}", f"-p{priority}", "-m", f"-i{period_us}", f"-h{period_us}"]
        self.seen: Latencies | None = None
        self.missing = "" if self._program else "no cyclictest (Debian: apt install rt-tests)"

    def __enter__(self) -> Cyclictest:
        if self._program:
            command = [self._program, *self._arguments]
            self._running = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._program:
            return
        self._running.send_signal(signal.SIGINT)
        try:
            out, complaint = self._running.communicate(timeout=10)
        finally:
            self._running.kill()
        self.seen = histogram(out)
        if self.seen is None:
            self.missing = f"cyclictest measured nothing: {' '.join(complaint.split())[:120]}"


def histogram(text: str) -> Latencies | None:
    """From cyclictest's output with -h; None without latencies. What is above the histogram counts as the longest."""
    rows = [line.split() for line in text.splitlines()]
    totals = {" ".join(row[1:-1]).rstrip(":"): int(row[-1]) for row in rows if row[:1] == ["#"] and row[-1].isdecimal()}
    longest, late = totals.get("Max Latencies", 0), totals.get("Histogram Overflows", 0)
    ranked = [float(row[0]) for row in rows if len(row) == 2 and row[0].isdecimal() for _ in range(int(row[1]))]
    ranked += [float(longest)] * late
    return Latencies(spread(ranked), longest, late) if ranked else None


@contextmanager
def modbus_server(name: str, port: int, first: int, count: int, *scan: int) -> Iterator[int]:
    """Process id of libmodbus or one of python_servers with `count` holding registers from `first`. Raises Missing.

    libmodbus's with a `scan` of its own: period in us, core, addresses of two registers and of their copy.
    """
    command = [str(compiled("server", "libmodbus"))] if name == "libmodbus" else [*_PYTHON_SERVERS, name]
    with _listening(name, port, [*command, *map(str, (port, first, count, *scan))]) as pid:
        yield pid


@contextmanager
def least_server(port: int, count: int) -> Iterator[int]:
    """Process id of LEAST, whose answers are of `count` registers. Raises Missing."""
    with _listening(LEAST, port, [str(compiled("answer")), str(port), str(count)]) as pid:
        yield pid


@contextmanager
def _listening(name: str, port: int, command: Sequence[str]) -> Iterator[int]:
    with _background(command) as pid:
        wait_until(lambda: _listens(port), 10, f"the {name} server listens on {port}")
        yield pid


@contextmanager
def _background(command: Sequence[str]) -> Iterator[int]:
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


@contextmanager
def load(port: int, address: int, count: int, clients: int) -> Iterator[None]:
    """The load generator in the background, at ordinary priority. Raises Missing."""
    with _background([str(compiled("load")), *map(str, (port, 1, address, count, clients, _LONG_S))]):
        yield


def _listens(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


class Burst(NamedTuple):
    """One run of the load generator."""

    per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float  # server's processor time a request


def burst(pid: int, port: int, address: int, count: int, clients: int, seconds: float, cores: tuple[int, int]) -> Burst:
    """`clients` read `count` registers of the server `pid` in a closed loop; (server's, generator's) cores."""
    command = [str(compiled("load")), *map(str, (port, 1, address, count, clients, seconds))]
    with favoured(pid, cores[0]):
        before_s = cpu_s(pid)
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=partial(_raise, 0, cores[1])
        )
        used_s = cpu_s(pid) - before_s
    assert ended.returncode == 0, f"{clients} clients on port {port}: {ended.stderr.strip()}"
    answers, lasted_s, p50_us, p99_us = map(float, ended.stdout.split())
    return Burst(answers / lasted_s, p50_us, p99_us, used_s / answers * 1e6)


def polls(port: int, requests: Sequence[tuple[int, int, int]], start_ns: int, period_us: int, rounds: int) -> list[int]:
    """Duration in us of each poll by a bare libmodbus client; a request is unit, address, count. Raises Missing."""
    ended = subprocess.run(
        [str(compiled("poll", "libmodbus")), *map(str, (port, start_ns, period_us, rounds))],
        input="\n".join(" ".join(map(str, request)) for request in requests),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.strip()
    return [int(line) for line in ended.stdout.split()]


class Machine(NamedTuple):
    """Where the numbers come from."""

    processor: str
    cores: int
    kernel: str
    preempt_rt: bool
    python: str
    loop_ms: float  # of a million additions: builds of one version differ by half
    realtime: bool

    def __str__(self) -> str:
        rt = "PREEMPT_RT" if self.preempt_rt else "not PREEMPT_RT"
        rights = "SCHED_FIFO and SCHED_RR permitted" if self.realtime else "SCHED_FIFO and SCHED_RR not permitted"
        python = f"Python {self.python} (a million additions: {self.loop_ms:.0f} ms)"
        return f"{self.cores} cores of {self.processor}, Linux {self.kernel} ({rt}), {python}, {rights}"


def machine() -> Machine:
    """This one."""
    models = [row.partition(": ")[2] for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row]
    return Machine(
        models[0] if models else platform.machine(), len(os.sched_getaffinity(0)), platform.release(),
        "PREEMPT_RT" in platform.version(), platform.python_version(), 1000 * min(repeat(_additions, number=1)),
        may_be_realtime(),
    )  # fmt: skip


def _additions() -> None:
    total = 0
    for number in range(1_000_000):
        total += number


class Busy:
    """Tells what else ran on the machine since it was made."""

    def __init__(self) -> None:
        self._all_s, self._own_s, self._began_s = _busy_s(), sum(os.times()[:4]), os.times().elapsed

    def others(self) -> float:
        """Cores that other processes kept busy. Children count as ours from when they were waited for."""
        lasted_s = os.times().elapsed - self._began_s
        return max(0.0, (_busy_s() - self._all_s - sum(os.times()[:4]) + self._own_s) / lasted_s)


def rivals() -> set[str]:
    """Names of programs at real-time priority now. They can hold up the scan and hardly show in `Busy`."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.sched_getscheduler(int(entry.name)) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR):
                found.add(_name((entry / "cmdline").read_text().split("\0")))
    return found - {""}  # kernel threads


def _name(command: Sequence[str]) -> str:
    """The program's name; of `python -m module` the module."""
    program = Path(command[0]).name
    return command[command.index("-m") + 1] if program.startswith("python") and "-m" in command[:-1] else program


def _busy_s() -> float:
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
