"""The historian: every event as a line in battery.log and a record in the journal, the cycle as a CSV, trips as
freeze-frames, and what must survive a power cycle. Reads the process image, writes files.

It is the only process that touches a disk, and nothing waits for it. A full, read-only or failing disk costs lines,
never the process: what was lost is counted, and said in the log when it can be written again. Section `store` has the
disk's health; while a disk hangs it ages.
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

from drivers.section import SectionError
from statemachine.faults import SAVED_MASK, names
from statemachine.signals import EventKind, LimitReason, Store

from . import words
from .bounded_file import FILE_BYTES, BoundedFile
from .config import ConfigError, Site, config_directory, load_site
from .freeze_frame import Recorder
from .image import (
    BMS,
    CLOCK,
    LAYOUT,
    PCS,
    STATUS,
    STORE,
    Event,
    EventReader,
    Status,
    View,
    run_directory,
    state_directory,
    writer,
)  # fmt: skip
from .journal import ITSELF, Journal
from .notify import Notifier
from .store import Saved, load
from .store import Store as Slots

T = TypeVar("T", bound=tuple)  # type: ignore[type-arg]

POLL_S = 0.020
STALE_MS, CLOCK_STALE_MS = 1000.0, 5000.0
RETRY_S, PUBLISH_S = 1.0, 0.1
LOG_FILES, CSV_FILES = 5, 2
CSV_HEADER = (
    "time_s,state,soc_pct,rack_v,current_a,setpoint_a,charge_limit_a,limit_reason,cell_v_max,cell_v_min,"
    "cell_c_max,cell_c_min,pcs_v,dv_v,faults\n"
)
_TAIL_BYTES = 65_536


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


_REVERTED = ("set-point", "power limit", "frequency droop")
_WORDS: dict[int, Callable[[int, int], str]] = {
    EventKind.STATE: lambda a, b: f"STATE {words.state(a)} -> {words.state(b)}",
    EventKind.FAULT_ON: lambda a, b: f"FAULT ON {words.fault(a)}",
    EventKind.FAULT_OFF: lambda a, b: f"FAULT OFF {words.fault(a)}",
    EventKind.FAULT_ACK: lambda a, b: f"FAULT ACKNOWLEDGED {words.fault(a)}",
    EventKind.COMMAND: _command,
    EventKind.COILS: lambda a, b: f"COILS {words.contactors(a)}",
    EventKind.SETTINGS: _settings,
    EventKind.PRECHARGE: lambda a, b: f"PRECHARGE try {a} {'verified' if b else 'failed'}",
    EventKind.REVERT: lambda a, b: f"REVERT timer of {_REVERTED[b]} {a} ran out",
    EventKind.DV_ZERO: lambda a, b: f"DV_ZERO offset of {a / 1000:.3f} V between BMS and PCS taken out",
    EventKind.HEARTBEAT: lambda a, b: f"HEARTBEAT of the site controller {'is back' if a else 'lost'}",
    EventKind.KEY_SWITCH: lambda a, b: f"KEY SWITCH at {'REMOTE' if a else 'LOCAL: nobody commands over Modbus'}",
    EventKind.VALIDITY: lambda a, b: (
        f"VALIDITY {'of a new frame began' if a else 'over: no frame for ValidMs and 3 s'}"
    ),
    EventKind.UPDATE: lambda a, b: f"UPDATE {words.update(a)}{f' ({b})' if b else ''}",
    EventKind.SERVICE_PRESS: lambda a, b: f"SERVICE PRESS of RESET{'; contactor counters are zero' if a else ''}",
}
assert set(_WORDS) == set(EventKind)


def line_of(process: str, event: Event, trusted: bool = True) -> str:
    """`2026-11-22T13:00:01.123Z 12345.678 controller STATE PRECHARGE -> READY`: UTC, CLOCK_MONOTONIC s, who, what.

    `...123Z? 12345.678 ...` when the clock was not `trusted`: order and distances are right, the day may not be.
    """
    wall = datetime.fromtimestamp(event.wall_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")
    doubt = "" if trusted else "?"
    return f"{wall[:-6]}Z{doubt} {event.monotonic_ns / 1e9:.3f} {process} {in_words(event)}\n"


class Keeper:
    """Saves what the controller must not forget, when it changes. A failing disk is asked again after a second."""

    def __init__(self, state: Path) -> None:
        self._slots = Slots(state)
        self.saved = load(state).saved
        self.ok, self.error, self._retry_s = True, "", 0.0

    def follow(self, status: Status, now_s: float) -> None:
        """Returns when `status` is safe on the disk, or `ok` and `error` tell. The levels are saved with the counts."""
        wanted = Saved(
            status.faults_latched & SAVED_MASK, status.cycles, status.opened_under_load, status.closed_under_load,
            status.precharges, status.closing_level, status.precharge_level,
        )  # fmt: skip
        if (self.saved is not None and wanted[:5] == self.saved[:5]) or now_s < self._retry_s:
            return
        try:
            self._slots.save(wanted)
        except (OSError, ValueError) as error:
            self.ok, self.error, self._retry_s = False, str(error), now_s + RETRY_S
        else:
            self.saved, self.ok = wanted, True


VOLATILE = "the data partition cannot be mounted: factory configuration, nothing is kept over a restart"


class Historian:
    """`poll()` writes what is new in the process image of `run` into `logs` and `state`.

    Raises SectionError when there is a historian already.
    """

    def __init__(
        self, run: Path, logs: Path, state: Path, csv_period_s: float = 1.0, max_bytes: int = FILE_BYTES
    ) -> None:
        self._files = writer("historian", run)
        self._resumed = self._files["store"].last() is not None
        self.log = BoundedFile(logs / "battery.log", LOG_FILES, max_bytes)
        self.csv = BoundedFile(logs / "cycle.csv", CSV_FILES, max_bytes, CSV_HEADER)
        self.journal, self.keeper, self.recorder = Journal(state / ITSELF), Keeper(state), Recorder(run, state)
        self._events = {process: EventReader(process, run) for process in LAYOUT if "events" in LAYOUT[process]}
        self._status = View(STATUS, "controller", "status", run)
        self._bms = View(BMS, "aggregator", "bms", run)
        self._pcs = View(PCS, "aggregator", "pcs", run)
        self._clock = View(CLOCK, "clock", "clock", run)
        self._period_ns = round(csv_period_s * 1e9)
        self._next_ns = 0
        self._retry_s = self._publish_s = 0.0
        self._written = _tail(self.log.path)
        self._met: set[str] = set()
        self._told: dict[BoundedFile, int] = {self.log: 0, self.csv: 0}
        self._failing: set[str] = set()
        self._volatile = os.environ.get("EMS_VOLATILE") == "1"
        if self._volatile:
            self.say(VOLATILE)

    def poll(self) -> None:
        """One pass: the saved state first, then new events, a CSV row when its period is over, freeze-frames."""
        now_ns = time.monotonic_ns()
        status = self._status.refresh()
        if status is not None:
            self.keeper.follow(status, now_ns / 1e9)
        for process, reader in self._events.items():
            self._collect(process, reader)
        self.journal.commit(now_ns / 1e9)
        if now_ns >= self._next_ns and self._row(now_ns):
            due_ns = self._next_ns + self._period_ns
            self._next_ns = due_ns if due_ns > now_ns else now_ns + self._period_ns
        self.recorder.poll()
        self._watch(now_ns / 1e9)

    def say(self, text: str, lost: int = 0) -> None:
        """A line and a record of the historian's own; `lost` events are what it tells of."""
        event, trusted = _now(text), self._trusted()
        if lost:
            self.journal.add_lost("historian", event, lost, trusted)
        else:
            self.journal.add("historian", event, trusted)
        self._write(self.log, line_of("historian", event, trusted))

    def close(self) -> None:
        self.journal.close()
        self.log.close()
        self.csv.close()
        self._files.close()

    def _trusted(self) -> bool:
        clock = self._clock.refresh()
        return clock is not None and clock.trusted and self._clock.age_ms() < CLOCK_STALE_MS

    def _collect(self, process: str, reader: EventReader) -> None:
        before = reader.lost
        events = list(reader.new())
        if not events:
            return
        first_time = process not in self._met
        self._met.add(process)
        recorded = self.journal.known.get(process, []) if first_time and self._resumed else []
        written = self._written if first_time else frozenset()
        lost = _unseen(events, reader.lost - before, recorded)
        if lost:
            self.say(f"{lost} events of {process} were overwritten before they were read", lost)
        trusted = self._trusted()
        for event in events:
            if event[:2] not in recorded:
                self.journal.add(process, event, trusted)
            if line_of(process, event) not in written:
                self._write(self.log, line_of(process, event, trusted))

    def _watch(self, now_s: float) -> None:
        """Tells of what fails and what works again, in the log, on stderr and in section `store`."""
        parts: dict[str, Journal | Keeper] = {"the journal": self.journal, "the saved state": self.keeper}
        for name, part in parts.items():
            if part.ok == (name in self._failing):
                self._failing ^= {name}
                self.say(f"{name} is written again" if part.ok else f"{name} cannot be written: {part.error}")
        if not self.log.ok and now_s >= self._retry_s:
            self._retry_s = now_s + RETRY_S
            self._tell(self.log)
        if now_s >= self._publish_s:
            self._publish_s = now_s + PUBLISH_S
            self._publish()

    def _publish(self) -> None:
        saved = self.keeper.saved
        ok = self.log.ok and self.csv.ok and self.journal.ok and self.keeper.ok and not self.recorder.error
        ok = ok and not self._volatile
        lost = self.log.lost + self.csv.lost + self.journal.lost + self.recorder.lost
        store = Store(ok, lost, saved.faults_latched if saved else 0, saved.cycles if saved else 0)
        self._files["store"].publish(STORE.pack(*store))

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
        was_ok = file.ok
        if file.write(line):
            self._tell(file)
        elif was_ok:
            print(f"historian: {file.error}; lines are lost until it can be written again", file=sys.stderr)

    def _tell(self, file: BoundedFile) -> None:
        lost = file.lost - self._told[file]
        event, trusted = _now(f"{file.error}: {lost} lines were lost, writing works again"), self._trusted()
        if lost and self.log.write(line_of("historian", event, trusted), lost=0):
            self._told[file] = file.lost
            self.journal.add("historian", event, trusted)


def _now(text: str) -> Event:
    return Event(0, time.monotonic_ns(), max(0, time.time_ns()), 0, 0, 0, text)


def _unseen(events: list[Event], lost: int, recorded: list[tuple[int, int]]) -> int:
    """How many of the `lost` events before `events` a predecessor has not `recorded` either."""
    first, last = events[0].sequence, recorded[-1][0] if recorded else 0
    if last < first:
        return min(lost, first - last - 1)
    return 0 if any(event[:2] in recorded for event in events) else lost


def _fresh(view: View[T]) -> T | None:
    """The value of a section, unless it is old: a row never repeats what a dead process said."""
    value = view.refresh()
    return value if view.age_ms() < STALE_MS else None


def _tail(path: Path) -> set[str]:
    """The last lines of a log that a predecessor wrote, as with a trusted clock: they are not written twice."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
        return {line.replace("Z? ", "Z ", 1) for line in lines}
    return set()


def _log_directory() -> Path:
    """From site.conf; its default when site.conf cannot be used: an error must not cost the log that explains it."""
    try:
        return Path(load_site(config_directory()).log_directory)
    except ConfigError:
        return Path(Site().log_directory)


def main() -> int:
    """Runs until SIGTERM or SIGINT. Exit code 2 when there is a historian already."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logs = _log_directory()
    run, state = run_directory(), state_directory()
    try:
        historian = Historian(run, logs, state, float(os.environ.get("EMS_CSV_PERIOD_S", "5.0")))
    except SectionError as error:
        print(f"historian: {error}", file=sys.stderr)
        return 2
    print(f"historian: {logs}/battery.log and cycle.csv; {state}", file=sys.stderr)
    historian.say("started")
    life = Notifier()
    while not stopping:
        historian.poll()
        life.tick()
        time.sleep(POLL_S)
    historian.poll()
    historian.say("stopped")
    historian.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
