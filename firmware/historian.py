"""The historian: every event as one line in battery.log, the cycle as a CSV. Reads the process image, writes files.

It is the only process that touches a disk, and nothing waits for it. A full or read-only disk costs lines, never the
process: what was lost is counted and said in the log when it can be written again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TypeVar

from statemachine.faults import names
from statemachine.signals import EventKind, LimitReason

from . import words
from .config import ConfigError, Site, config_directory, load_site
from .image import BMS, LAYOUT, PCS, STATUS, Event, EventReader, Status, View, run_directory

T = TypeVar("T", bound=tuple)  # type: ignore[type-arg]

POLL_S = 0.020
STALE_MS = 1000.0
FILE_BYTES = 10_000_000
LOG_FILES, CSV_FILES = 5, 2
CSV_HEADER = (
    "time_s,state,soc_pct,rack_v,current_a,setpoint_a,charge_limit_a,limit_reason,cell_v_max,cell_v_min,"
    "cell_c_max,cell_c_min,pcs_v,dv_v,faults\n"
)
_TAIL_BYTES = 65_536


class BoundedFile:
    """Appends lines, one write each, to at most `files` files of `max_bytes`; loses lines rather than raise."""

    def __init__(self, path: Path, files: int, max_bytes: int = FILE_BYTES, header: str = "") -> None:
        self.path, self._files, self._max, self._header = path, files, max_bytes, header.encode()
        self._fd = -1
        self._size = 0
        self.lost = 0
        self.error = ""

    def write(self, line: str) -> bool:
        """Whether `line` (with its newline) is on its way to the disk; else `lost` and `error` tell."""
        try:
            self._append(line.encode())
        except OSError as error:
            self.close()
            self.lost += 1
            self.error = f"{self.path}: {error.strerror}"
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(data) > self._max:
            self._rotate()
        if not self._size:
            data = self._header + data
        written = os.write(self._fd, data)
        if written < len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(0, "disk full, only a part was written")
        self._size += written

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for n in range(self._files - 1, 0, -1):
            older = self.path if n == 1 else self._numbered(n - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, self._numbered(n))
        if self._files == 1:
            self.path.unlink()
        self._open()

    def _numbered(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{n}")


def in_words(event: Event) -> str:
    """What happened, in one line: `STATE PRECHARGE -> READY`."""
    write = _WORDS.get(event.kind)
    said = write(event.a, event.b) if write else f"EVENT {event.kind} {event.a} {event.b}" if event.kind else ""
    return " ".join(part for part in (said, event.text.replace("\n", " | ")) if part)


def _command(seq: int, why: int) -> str:
    return f"COMMAND {seq} rejected: {words.why(why)}" if why else f"COMMAND {seq} accepted"


def _settings(revision: int, pending: int) -> str:
    return f"SETTINGS revision {revision} in force" + (
        "; wider values wait until the contactors are open" if pending else ""
    )


_WORDS: dict[int, Callable[[int, int], str]] = {
    EventKind.STATE: lambda a, b: f"STATE {words.state(a)} -> {words.state(b)}",
    EventKind.FAULT_ON: lambda a, b: f"FAULT ON {words.fault(a)}",
    EventKind.FAULT_OFF: lambda a, b: f"FAULT OFF {words.fault(a)}",
    EventKind.FAULT_ACK: lambda a, b: f"FAULT ACKNOWLEDGED {words.fault(a)}",
    EventKind.COMMAND: _command,
    EventKind.COILS: lambda a, b: f"COILS {words.contactors(a)}",
    EventKind.SETTINGS: _settings,
    EventKind.PRECHARGE: lambda a, b: f"PRECHARGE try {a} {'verified' if b else 'failed'}",
    EventKind.REVERT: lambda a, b: f"REVERT timer of set-point {a} ran out",
    EventKind.DV_ZERO: lambda a, b: f"DV_ZERO offset of {a / 1000:.3f} V between BMS and PCS taken out",
    EventKind.HEARTBEAT: lambda a, b: f"HEARTBEAT of the site controller {'is back' if a else 'lost'}",
}
assert set(_WORDS) == set(EventKind)


def line_of(process: str, event: Event) -> str:
    """`2026-11-22T13:00:01.123Z 12345.678 controller STATE PRECHARGE -> READY`: UTC, CLOCK_MONOTONIC s, who, what."""
    wall = datetime.fromtimestamp(event.wall_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")
    return f"{wall[:-6]}Z {event.monotonic_ns / 1e9:.3f} {process} {in_words(event)}\n"


class Historian:
    """`poll()` writes what is new in the process image of `run` into `logs`."""

    def __init__(self, run: Path, logs: Path, csv_period_s: float = 1.0, max_bytes: int = FILE_BYTES) -> None:
        self.log = BoundedFile(logs / "battery.log", LOG_FILES, max_bytes)
        self.csv = BoundedFile(logs / "cycle.csv", CSV_FILES, max_bytes, CSV_HEADER)
        self._events = {process: EventReader(process, run) for process in LAYOUT}
        self._status = View(STATUS, "controller", "status", run)
        self._bms = View(BMS, "aggregator", "bms", run)
        self._pcs = View(PCS, "aggregator", "pcs", run)
        self._period_ns = round(csv_period_s * 1e9)
        self._next_ns = 0
        self._written = _tail(self.log.path)
        self._met: set[str] = set()
        self._told: dict[BoundedFile, int] = {self.log: 0, self.csv: 0}

    def poll(self) -> None:
        """One pass: new events, and a CSV row when its period is over."""
        for process, reader in self._events.items():
            self._collect(process, reader)
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_ns and self._row(now_ns):
            due_ns = self._next_ns + self._period_ns
            self._next_ns = due_ns if due_ns > now_ns else now_ns + self._period_ns

    def say(self, text: str) -> None:
        """A line of the historian's own."""
        self._write(self.log, line_of("historian", Event(0, time.monotonic_ns(), time.time_ns(), 0, 0, 0, text)))

    def close(self) -> None:
        self.log.close()
        self.csv.close()

    def _collect(self, process: str, reader: EventReader) -> None:
        before = reader.lost
        lines = [line_of(process, event) for event in reader.new()]
        known = self._written if process not in self._met else frozenset()
        if reader.lost > before and not known:
            self.say(f"{reader.lost - before} events of {process} were overwritten before they were read")
        for line in lines:
            if line not in known:
                self._write(self.log, line)
        if lines:
            self._met.add(process)

    def _row(self, now_ns: int) -> bool:
        status = _fresh(self._status)
        if status is None:
            return False
        self._write(self.csv, self._csv_line(status, now_ns))
        return True

    def _csv_line(self, status: Status, now_ns: int) -> str:
        bms, pcs = _fresh(self._bms), _fresh(self._pcs)
        fields = [f"{now_ns / 1e9:.3f}", words.state(status.state)]
        fields += [f"{bms.soc_pct:.2f}", f"{bms.rack_v:.1f}", f"{bms.rack_a:.1f}"] if bms else [""] * 3
        fields += [f"{status.setpoint_a:.1f}", f"{status.charge_limit_a:.1f}"]
        fields += [words.name_of(LimitReason, status.charge_reason)]
        fields += [f"{bms.cell_v_max:.4f}", f"{bms.cell_v_min:.4f}"] if bms else [""] * 2
        fields += [f"{bms.cell_c_max:.1f}", f"{bms.cell_c_min:.1f}"] if bms else [""] * 2
        fields += [f"{pcs.dc_v:.1f}" if pcs else "", "" if status.dv_v != status.dv_v else f"{status.dv_v:.3f}"]
        fields += [" ".join(names(status.faults_active | status.faults_latched))]
        return ",".join(fields) + "\n"

    def _write(self, file: BoundedFile, line: str) -> None:
        lost, told = file.lost, self._told[file]
        if not file.write(line):
            if lost == told:
                print(f"historian: {file.error}; lines are lost until it can be written again", file=sys.stderr)
            return
        if lost > told:
            self._told[file] = lost
            self.say(f"{file.error}: {lost - told} lines were lost, writing works again")


def _fresh(view: View[T]) -> T | None:
    """The value of a section, unless it is old: a row never repeats what a dead process said."""
    value = view.refresh()
    return value if view.age_ms() < STALE_MS else None


def _tail(path: Path) -> set[str]:
    """The last lines of a log that a predecessor wrote: they are not written twice."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return set(file.read().decode(errors="replace").splitlines(keepends=True))
    return set()


def _log_directory() -> Path:
    """From site.conf; its default when site.conf cannot be used: an error must not cost the log that explains it."""
    try:
        return Path(load_site(config_directory()).log_directory)
    except ConfigError:
        return Path(Site().log_directory)


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logs = _log_directory()
    run = run_directory()
    historian = Historian(run, logs, float(os.environ.get("EMS_CSV_PERIOD_S", "1.0")))
    print(f"historian: {logs}/battery.log and cycle.csv", file=sys.stderr)
    historian.say("started")
    while not stopping:
        historian.poll()
        time.sleep(POLL_S)
    historian.poll()
    historian.say("stopped")
    historian.close()


if __name__ == "__main__":
    main()
