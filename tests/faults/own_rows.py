"""Scenarios that start an appliance of their own: disk, wall clock, power cycle, order of the start, exceptions."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import RUNNER
from waiting import wait_until

from drivers.section import SectionError, SectionFile
from firmware import image
from firmware.points import PointError
from statemachine.signals import Mode
from statemachine.states import CHARGING, State

from .core_rows import exceptions_leave_no_memory_behind
from .live_process import CELLS, Cell
from .scenario import CannotHere, Outcome, Reaction, own
from .stand import PROCESSES, Stand, stand

HOUR_S = 3600
JUMPS = {"+1 h": HOUR_S, "-1 h": -HOUR_S, "1970": None, "2038": None}


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A tmpfs of 16 MB of its own at `place`; raises CannotHere where that needs more rights."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", place], capture_output=True, check=False)
    if done.returncode:
        raise CannotHere(f"no file system can be mounted: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def fill(disk: Path) -> Path:
    """A file that leaves no byte."""
    path = disk / "ballast"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(b"x"):
            pass
    return path


@own("P8")
def the_disk_fails() -> Outcome:
    """Log, journal, freeze-frames and saved state are on one small disk."""
    with (
        tempfile.TemporaryDirectory(prefix="ems-disk-") as name,
        small_disk(Path(name) / "state") as disk,
        stand({"log_directory": str(disk / "log")}, at=Path(name)) as s,
    ):
        s.bring_to("charging")
        full_ms = _full(s, disk)
        _read_only(s, disk)
    return Outcome((Reaction(full_ms),), "full, then read-only: ERR_STORE told, charges on, nothing recorded is lost")


def _full(s: Stand, disk: Path) -> float:
    ballast = fill(disk)
    since = time.monotonic()
    seq = int(s.get("CmdSeq"))
    for turn in range(400):  # history that does not fit any more
        s.a.site.write(
            {"CmdSeq": seq + turn + 1, "CmdMode": Mode.CHARGE, "CmdW": 0.0, "CmdRamp": 0.25, "CmdTgtSoC": 95.0}
        )
        if "ERR_STORE" in s.faults():
            break
        time.sleep(0.1)
    s.shows("ERR_STORE")
    ms = (time.monotonic() - since) * 1e3
    s.charges_on()
    ballast.unlink()
    wait_until(lambda: "ERR_STORE" not in s.faults(), 30, "the warning goes when there is room again")
    missing = s.unrecorded()
    assert not missing, f"{len(missing)} events are gone: {missing[:3]}"
    CELLS.extend(Cell(name, "disk full", "charges on", not missing) for name in PROCESSES)
    return ms


def _read_only(s: Stand, disk: Path) -> None:
    def remount(how: str) -> bool:
        return (
            subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True, check=False).returncode
            == 0
        )

    def begin() -> bool:
        """The kernel refuses while a file is open for writing: so the historian dies first."""
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(s.pid("historian"), signal.SIGKILL)
        return any(remount("ro") for _ in range(20))

    wait_until(begin, 20, "the disk is read-only", 0.5)
    try:
        s.shows("ERR_STORE")
        s.charges_on()
    finally:
        assert remount("rw")
    wait_until(lambda: "ERR_STORE" not in s.faults(), 30, "the warning goes when it can be written again")
    missing = s.unrecorded()
    CELLS.extend(Cell(name, "disk read-only", "charges on", not missing) for name in PROCESSES)


@contextmanager
def skewed(offset: Path) -> Iterator[dict[str, str]]:
    """Environment in which CLOCK_REALTIME is off by the seconds in `offset`; this machine's clock is left alone."""
    with tempfile.TemporaryDirectory(prefix="ems-skew-") as name:
        library = Path(name) / "skew.so"
        source = Path(__file__).with_name("skew.c")
        if not shutil.which("gcc"):
            raise CannotHere("the wall clock is moved by a library that needs gcc")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
        yield {"LD_PRELOAD": str(library), "EMS_SKEW": str(offset)}


def still(directory: str) -> Path:
    """A wall clock that is right."""
    offset = Path(directory) / "offset"
    offset.write_bytes(bytes(8))
    return offset


def jump(offset: Path, seconds: float) -> None:
    """The wall clock stands at `seconds` from the true one, at once for every process."""
    with offset.open("r+b") as file:  # never shorter: every process has it mapped
        file.write(int(seconds).to_bytes(8, "little", signed=True))


@own("P9")
def the_wall_clock_jumps() -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        offset = still(name)
        with skewed(offset) as environ, stand(environ=environ) as s:
            s.bring_to("charging")
            pids = {process: s.pid(process) for process in PROCESSES}
            for title, seconds in JUMPS.items():
                target = 1.0 if title == "1970" else 2.0**31 + 10
                s.bring_to("charging")
                s.note(title)
                _jumped(s, offset, target - time.time() if seconds is None else seconds)
                assert {process: s.pid(process) for process in PROCESSES} == pids, f"{title}: a process was restarted"
                CELLS.extend(Cell(process, f"clock {title}", "charges on", True) for process in PROCESSES)
            steps = [line for line in s.lines() if "clock" in line.lower() and "step" in line.lower()]
    return Outcome(note=f"+1 h, -1 h, 1970, 2038 under charge: no process restarted, {len(steps)} steps told")


def _jumped(s: Stand, offset: Path, seconds: float) -> None:
    overruns, scans = s.get("ScanOverruns"), s.get("ScanCount")
    start = time.monotonic()
    jump(offset, seconds)
    time.sleep(2.0)
    assert s.state() in CHARGING, (s.notes, s.faults(), s.since(start)[:6])
    made = s.get("ScanCount") - scans + s.get("ScanOverruns") - overruns
    assert abs(made - (time.monotonic() - start) * 100.0) < 30.0, f"{made} scans of 10 ms in 2 s"
    missing = s.unrecorded()
    assert not missing, f"events that are not in battery.log: {missing[:3]}"
    stamps = [float(line.split(" ", 2)[1]) for line in s.since(start) if " controller " in line]
    assert stamps == sorted(stamps), "events keep their order"


@own("W9")
def the_clock_is_lost() -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        offset = still(name)
        jump(offset, -time.time() + 60)
        with skewed(offset) as environ, stand(environ=environ) as s:
            s.bring_to("charging")
            assert any(line.startswith("1970") for line in s.lines())
            s.charges_on()
    return Outcome(note="started in 1970: charges as ever")


@own("W8")
def power_comes_back_with_a_latch_and_a_waiting_command() -> Outcome:
    with tempfile.TemporaryDirectory(prefix="ems-cycle-") as name:
        logs = Path(name)
        with stand(at=logs) as s:
            s.bring_to("charging")
            s.inject(kill_switch=1)
            s.until(State.EMERGENCY_STOP)
            time.sleep(1.0)
            s.power_cut()
        with stand(start=(*RUNNER, "--keep-state"), at=logs) as s:
            with contextlib.suppress(PointError):  # refused at once
                s.command(Mode.CHARGE)
            s.until(State.EMERGENCY_STOP)
            assert "ERR_KILL_SWITCH" in s.faults(), s.faults()
            s.scans(200)
            assert s.all_open()
            assert not any("COILS pos" in line for line in s.since(time.monotonic() - 5.0))
            s.recover()
    return Outcome(
        note="SIGKILL to all processes at once, started again: EMERGENCY_STOP with ERR_KILL_SWITCH, nothing closed"
    )


@own("P12")
def processes_start_in_any_order() -> Outcome:
    names = list(PROCESSES)
    seconds = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        with stand(None, start=("-c", _ORDERED, ",".join(names))) as s:
            start = time.monotonic()
            s.until(State.ISOLATED, timeout_s=20)
            seconds.append(time.monotonic() - start)
            assert not [line for line in s.lines() if "COILS" in line], "no coil before a command"
            s.bring_to("ready")
    return Outcome(
        note=f"3 random orders of {len(names)} processes: ISOLATED {max(seconds):.1f} s after READY at the latest"
    )


_ORDERED = """
import sys
from firmware import runner
names = sys.argv.pop(1).split(",")
runner.APPLIANCE = tuple(sorted(runner.APPLIANCE, key=lambda p: names.index(p.name)))
runner.main()
"""


@own("P5")
def a_scan_raises() -> Outcome:
    """A configuration that no server would write reaches the controller: its next scan raises."""
    with stand() as s:
        s.bring_to("charging")
        directory, first = s.a.image(), s.pid("controller")
        os.kill(s.pid("server"), signal.SIGKILL)
        since = _poison(directory, lambda: wait_until(s.all_open, 5, "the contactors open"))
        ms = (time.monotonic() - since) * 1e3
        assert s.truth("true_coils") == 0, "coils off by the controller itself"
        wait_until(lambda: s.running("controller") not in (0, first), 10, "a successor is started")
        wait_until(
            lambda: s.state() in (State.FAULT, State.EMERGENCY_STOP), 20, "the successor is in FAULT or EMERGENCY_STOP"
        )
        s.shows("ERR_CONTROLLER_RESTART")
    return Outcome((Reaction(ms),), exceptions_leave_no_memory_behind().note)


def _written_by_us(directory: Path) -> SectionFile:
    """The dead server's file, as soon as the kernel has let go of it."""
    files: list[SectionFile] = []

    def free() -> bool:
        with contextlib.suppress(SectionError):
            files.append(image.writer("server", directory))
        return bool(files)

    wait_until(free, 5, "the dead server's file is free")
    return files[0]


def _poison(directory: Path, wait: Callable[[], object]) -> float:
    """Publishes a configuration that is no JSON in the dead server's name, then the right one; the time before."""
    files = _written_by_us(directory)
    right, since = files["config"].last(), time.monotonic()
    assert right
    files["config"].publish(b"{no configuration")
    wait()
    files["config"].publish(right)
    files.close()
    return since


@own("L3")
def a_thousand_connections() -> Outcome:
    with stand() as s:
        s.bring_to("charging")
        pid, port = s.pid("server"), s.a.ports.EMS_MODBUS_PORT
        before = None
        for turn in range(1200):
            peer = socket.create_connection(("127.0.0.1", port), 5.0)
            peer.sendall(b"\0\1\0\0\0\6\1\3\x9c\x40\0\1" if turn % 2 else b"\0\1\0\0")
            peer.close()
            if turn == 200:
                before = _resources(pid)
        assert before is not None
        wait_until(lambda: _resources(pid)[0] <= before[0] + 2, 10, "descriptors as they were")
        grown = _resources(pid)[1] - before[1]
        assert grown < 2000, f"{grown} kB"
        s.charges_on()
    return Outcome(note=f"1,000 connections, half of them cut in a header: {grown:+d} kB")


def _resources(pid: int) -> tuple[int, int]:
    rss = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    return len(os.listdir(f"/proc/{pid}/fd")), int(rss)
