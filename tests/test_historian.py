"""The historian: every event one line, the cycle a CSV, and a bad disk costs lines but never the process."""

from __future__ import annotations

import errno
import os
import re
import time
from math import nan
from pathlib import Path
from time import monotonic_ns

import pytest

from drivers.section import SectionError, SectionFile
from firmware.bounded_file import BoundedFile
from firmware.historian import CSV_HEADER, VOLATILE, Historian, Keeper, in_words, line_of
from firmware.image import BMS, CLOCK, PCS, STATUS, STORE, Event, EventLog, Status, View, writer
from firmware.journal import Entry, Note, read
from firmware.store import Loaded, Saved, Store, load
from statemachine.faults import BY_NAME, Severity
from statemachine.signals import Bms, Clock, EventKind, LimitReason, Pcs, PcsState, Why
from statemachine.signals import Store as Health
from statemachine.states import State

_STATUS = Status._make(
    {"int": 0, "float": 0.0, "bool": False}[getattr(kind, "__forward_arg__", "")]
    for kind in Status.__annotations__.values()
)
_BMS = Bms(
    5, 0.0, 1125.04, -560.02, 41.234, 42.0, 40.0, 99.0, 3.7612, 3.7488, 3.75, 3, 900, 27.94, 24.06, 7, 8, 1120.0,
    1120.0, 2000.0, 0, 0, 0, 0, 0, 4, True, True, 0.0,
)  # fmt: skip
_PCS = Pcs(9, 0.0, 1125.5, -560.0, -630e3, 50.0, 400.0, PcsState.RUN, 0, 1250.0, 1250.0, True, 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


class _Time:
    """Moves CLOCK_MONOTONIC forward for the historian and the stamps that it compares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_ns = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic_ns() + self.ahead_ns)

    def leap(self, seconds: float) -> None:
        self.ahead_ns += round(seconds * 1e9)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> _Time:
    return _Time(monkeypatch)


def _health(run: Path) -> Health | None:
    return View(STORE, "historian", "store", run).refresh()


def _recorded(state: Path) -> list[Entry]:
    return list(read(state / "journal"))


def _lines(logs: Path) -> list[str]:
    return (logs / "battery.log").read_text().splitlines()


def _event(kind: EventKind, a: int = 0, b: int = 0, text: str = "") -> Event:
    return Event(1, 0, 0, kind, a, b, text)


def test_a_wall_clock_before_1970_ends_nobody(
    run: Path, logs: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firmware.image.time_ns", lambda: -1_500_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: -1_500_000_000)
    EventLog(writer("controller", run)["events"]).add(0, text="long ago")
    historian = Historian(run, logs, state)
    historian.poll()
    historian.say("here")
    historian.close()
    assert [line[:23] for line in _lines(logs)] == ["1970-01-01T00:00:00.000"] * 2


def test_an_event_is_a_line_with_utc_time_monotonic_time_process_and_words(run: Path, logs: Path, state: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    historian = Historian(run, logs, state)
    before_s = monotonic_ns() / 1e9
    events.add(EventKind.STATE, State.PRECHARGE, State.READY)
    historian.poll()
    (line,) = _lines(logs)
    found = re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\? (\d+\.\d{3}) controller STATE PRECHARGE -> READY", line
    )
    assert found
    assert abs(float(found[1]) - before_s) < 5.0


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (_event(EventKind.SERVICE_PRESS, 0), "SERVICE PRESS of RESET"),
        (_event(EventKind.SERVICE_PRESS, 1), "SERVICE PRESS of RESET; contactor counters are zero"),
        (_event(EventKind.COMMAND, 7), "COMMAND 7 accepted"),
        (
            _event(EventKind.COMMAND, 8, Why.INTERLOCK_OPEN),
            "COMMAND 8 rejected: an interlock is open; run ems-tool --verify-interlocks",
        ),
        (_event(EventKind.COILS, 0b101), "COILS negative closed, positive open, precharge closed"),
        (_event(EventKind.HEARTBEAT, 0), "HEARTBEAT of the site controller lost"),
        (_event(EventKind.PRECHARGE, 2, 0), "PRECHARGE try 2 failed"),
        (_event(EventKind.DV_ZERO, -1234), "DV_ZERO offset of -1.234 V between BMS and PCS taken out"),
        (
            _event(EventKind.SETTINGS, 3, 1),
            "SETTINGS revision 3 in force; wider values wait until the contactors are open",
        ),
        (_event(EventKind.STATE, 99, 1), "STATE 99 -> ISOLATED"),
        (Event(1, 0, 0, 77, 1, 2, "new"), "EVENT 77 1 2 new"),
        (Event(1, 0, 0, 0, 0, 0, "Timeout waiting for response\nfrom x"), "Timeout waiting for response | from x"),
    ],
)
def test_events_are_told_in_words(event: Event, text: str) -> None:
    assert in_words(event) == text


def test_a_fault_is_told_with_its_name_and_what_to_do() -> None:
    said = in_words(_event(EventKind.FAULT_ON, 4))
    assert said.startswith("FAULT ON ERR_MAX_V_EXCEEDED: ")
    assert said.endswith("acknowledge.")


def test_events_of_every_process_are_collected(run: Path, logs: Path, state: Path) -> None:
    files = {name: writer(name, run) for name in ("guard", "server", "aggregator")}
    historian = Historian(run, logs, state)
    for name, file in files.items():
        EventLog(file["events"]).add(0, text=f"hello of {name}")
    historian.poll()
    assert [line.split(" ", 2)[2] for line in _lines(logs)] == [
        f"{name} hello of {name}" for name in ("aggregator", "guard", "server")
    ]


def test_events_that_were_overwritten_are_counted(run: Path, logs: Path, state: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    for n in range(40):
        events.add(EventKind.COMMAND, n)
    Historian(run, logs, state).poll()
    assert "historian 8 events of controller were overwritten" in _lines(logs)[0]
    assert len(_lines(logs)) == 33


def test_a_historian_that_comes_back_writes_no_event_twice(run: Path, logs: Path, state: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    for n in range(40):
        events.add(EventKind.COMMAND, n)
    first = Historian(run, logs, state)
    first.poll()
    first.close()
    events.add(EventKind.COMMAND, 40)
    Historian(run, logs, state).poll()
    commands = [int(line.split()[4]) for line in _lines(logs) if " COMMAND " in line]
    assert commands == list(range(8, 41))
    assert sum("overwritten" in line for line in _lines(logs)) == 1


def _publish(file: SectionFile, status: Status) -> None:
    file["status"].publish(STATUS.pack(*status))


def test_a_row_of_the_cycle_has_state_limit_reason_cells_and_faults(run: Path, logs: Path, state: Path) -> None:
    controller, aggregator = writer("controller", run), writer("aggregator", run)
    aggregator["bms"].publish(BMS.pack(*_BMS))
    aggregator["pcs"].publish(PCS.pack(*_PCS))
    status = _STATUS._replace(
        state=State.CHARGE_BULK, setpoint_a=-560.0, charge_limit_a=560.04, charge_reason=LimitReason.COMMAND, dv_v=nan,
        faults_active=1 << 4, faults_latched=1 << 9,
    )  # fmt: skip
    _publish(controller, status)
    Historian(run, logs, state).poll()
    header, row = (logs / "cycle.csv").read_text().splitlines()
    assert header + "\n" == CSV_HEADER
    assert row.split(",")[1:] == [
        "CHARGE_BULK", "41.23", "1125.0", "-560.0", "-560.0", "560.0", "COMMAND", "3.7612", "3.7488", "27.9", "24.1",
        "1125.5", "", "ERR_MAX_V_EXCEEDED ERR_COMM_LOST",
    ]  # fmt: skip


def test_rows_come_once_a_period_and_never_repeat_a_dead_controller(run: Path, logs: Path, state: Path) -> None:
    controller = writer("controller", run)
    historian = Historian(run, logs, state, csv_period_s=60)
    historian.poll()
    assert not (logs / "cycle.csv").exists()
    controller["status"].publish(STATUS.pack(*_STATUS), monotonic_ns() - 2_000_000_000)
    historian.poll()
    assert not (logs / "cycle.csv").exists()
    for _ in range(3):
        _publish(controller, _STATUS)
        historian.poll()
    assert len((logs / "cycle.csv").read_text().splitlines()) == 2


def test_files_are_bounded_and_each_begins_with_its_header(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "x.csv", files=3, max_bytes=100, header="head\n")
    for n in range(60):
        assert file.write(f"{n:09d}\n")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x.csv", "x.csv.1", "x.csv.2"]
    for name in names:
        text = (tmp_path / name).read_text()
        assert len(text) <= 100
        assert text.startswith("head\n")
    assert (tmp_path / "x.csv").read_text().endswith("000000059\n")


def test_a_line_is_in_the_file_as_soon_as_it_was_written(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "x.log", files=2)
    file.write("one\n")
    assert (tmp_path / "x.log").read_text() == "one\n"


def test_a_log_that_cannot_be_written_costs_lines_and_says_so_when_it_works_again(
    run: Path, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "log"
    logs.write_text("in the way")
    events = EventLog(writer("guard", run)["events"])
    historian = Historian(run, logs, state)
    for n in range(3):
        events.add(0, text=f"lost {n}")
        historian.poll()
    assert historian.log.lost == 3
    assert capsys.readouterr().err.count("lines are lost until it can be written again") == 1
    logs.unlink()
    events.add(0, text="kept")
    historian.poll()
    kept, told = _lines(logs)
    assert kept.endswith("guard kept")
    assert "battery.log: " in told
    assert told.endswith("3 lines were lost, writing works again")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = BoundedFile(tmp_path / "x.log", files=2)
    assert file.write("whole\n")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    assert not file.write("half a line\n")
    monkeypatch.setattr(os, "write", _no_space)
    assert not file.write("nothing\n")
    assert (file.lost, file.error) == (2, f"{tmp_path / 'x.log'}: No space left on device")
    monkeypatch.setattr(os, "write", real)
    assert file.write("again\n")
    assert (tmp_path / "x.log").read_text() == "whole\nagain\n"


def _no_space(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_every_event_is_a_line_and_a_record_with_the_same_stamps(run: Path, logs: Path, state: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    historian = Historian(run, logs, state)
    for n in range(5):
        events.add(EventKind.COMMAND, n)
        historian.poll()
    historian.say("stopped")
    historian.close()
    entries = _recorded(state)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [line_of(e.process, e.event, e.trusted) for e in entries] == [line + "\n" for line in _lines(logs)]


def test_a_historian_that_comes_back_records_no_event_twice_and_tells_what_it_never_saw(
    run: Path, logs: Path, state: Path
) -> None:
    events = EventLog(writer("guard", run)["events"])
    first = Historian(run, logs, state)
    events.add(EventKind.COMMAND, 1)
    first.poll()
    first.close()
    second = Historian(run, logs, state)
    second.poll()
    second.close()
    assert [entry.event.a for entry in _recorded(state)] == [1]
    for n in range(2, 42):
        events.add(EventKind.COMMAND, n)
    third = Historian(run, logs, state)
    third.poll()
    third.close()
    assert "8 events of guard were overwritten before they were read" in (logs / "battery.log").read_text()
    entries = _recorded(state)
    assert [entry.event.a for entry in entries if entry.note == Note.EVENT] == [1, *range(10, 42)]
    assert [(entry.note, entry.event.a) for entry in entries if entry.note] == [(Note.LOST, 8)]


def test_events_of_a_process_whose_numbers_began_again_are_not_taken_for_recorded(
    run: Path, logs: Path, state: Path
) -> None:
    for first in (0, 100):
        events = EventLog(writer("guard", run)["events"])
        for n in range(first, first + 35):
            events.add(EventKind.COMMAND, n)
        historian = Historian(run, logs, state)
        historian.poll()
        historian.close()
        (run / "guard.img").unlink()
    entries = _recorded(state)
    assert [e.event.a for e in entries if e.note == Note.EVENT] == [*range(3, 35), *range(103, 135)]
    assert [e.event.a for e in entries if e.note == Note.LOST] == [3, 3]


def test_after_a_power_cycle_the_numbers_of_the_events_before_it_say_nothing(
    run: Path, logs: Path, state: Path, tmp_path: Path
) -> None:
    before = EventLog(writer("guard", run)["events"])
    for n in range(20):
        before.add(EventKind.COMMAND, n)
    first = Historian(run, logs, state)
    first.poll()
    first.close()
    powered_on = tmp_path / "run2"
    after = EventLog(writer("guard", powered_on)["events"])
    for n in range(40):
        after.add(EventKind.COMMAND, 100 + n)
    second = Historian(powered_on, logs, state)
    second.poll()
    second.close()
    entries = _recorded(state)
    assert [e.event.a for e in entries if e.note == Note.EVENT] == [*range(20), *range(108, 140)]
    assert [e.event.a for e in entries if e.note == Note.LOST] == [8]


@pytest.mark.parametrize(
    ("clock", "age_s", "mark"),
    [
        (Clock(True, True, 0.5, 2, 0), 0, "Z "),
        (Clock(False, True, 250.0, 2, 0), 0, "Z? "),
        (Clock(True, True, 0.5, 2, 0), 4.5, "Z "),
        (Clock(True, True, 0.5, 2, 0), 5.5, "Z? "),
        (None, 0, "Z? "),
    ],
)
def test_a_time_of_day_that_cannot_be_trusted_has_a_question_mark(
    run: Path, logs: Path, state: Path, clock: Clock | None, age_s: float, mark: str
) -> None:
    if clock is not None:
        writer("clock", run)["clock"].publish(CLOCK.pack(*clock), monotonic_ns() - round(age_s * 1e9))
    EventLog(writer("guard", run)["events"]).add(0, text="hello")
    historian = Historian(run, logs, state)
    historian.poll()
    historian.close()
    (line,), (entry,) = _lines(logs), _recorded(state)
    assert line[23 : 23 + len(mark)] == mark
    assert entry.trusted == (mark == "Z ")


def test_a_line_written_in_doubt_is_not_written_again_when_the_clock_is_trusted(
    run: Path, logs: Path, state: Path
) -> None:
    EventLog(writer("guard", run)["events"]).add(0, text="hello")
    first = Historian(run, logs, state)
    first.poll()
    first.close()
    writer("clock", run)["clock"].publish(CLOCK.pack(True, True, 0.5, 2, 0))
    Historian(run, logs, state).poll()
    assert len(_lines(logs)) == 1


_WORN = _STATUS._replace(
    cycles=7, opened_under_load=1, closed_under_load=2, precharges=9, closing_level=2.5, precharge_level=1.25
)
_SAVED = Saved(0, 7, 1, 2, 9, 2.5, 1.25)
_BITS = {severity: next(f.bit for f in BY_NAME.values() if f.severity == severity) for severity in Severity}
_ALL = sum(1 << bit for bit in _BITS.values())
_KEPT = 1 << _BITS[Severity.TRIP] | 1 << _BITS[Severity.LOCKOUT]


def test_latched_trips_and_lockouts_and_the_counters_are_saved_in_the_poll_that_sees_them(
    run: Path, logs: Path, state: Path
) -> None:
    controller = writer("controller", run)
    historian = Historian(run, logs, state)
    historian.poll()
    assert load(state) == Loaded(None, False)
    for status in (_WORN, _WORN._replace(faults_latched=_ALL), _WORN._replace(faults_latched=0, cycles=8)):
        _publish(controller, status)
        historian.poll()
        kept = status.faults_latched & _KEPT
        assert load(state).saved == _SAVED._replace(faults_latched=kept, cycles=status.cycles)


def test_nothing_is_saved_while_nothing_that_counts_changes(run: Path, logs: Path, state: Path) -> None:
    controller = writer("controller", run)
    historian = Historian(run, logs, state)
    _publish(controller, _WORN)
    historian.poll()
    before = {path.name: path.read_bytes() for path in state.glob("saved.*")}
    for n in range(5):
        _publish(controller, _WORN._replace(scan=n, closing_level=2.5 - n, faults_latched=1 << _BITS[Severity.STOP]))
        historian.poll()
    historian.close()
    restarted = Historian(run, logs, state)
    restarted.poll()
    assert {path.name: path.read_bytes() for path in state.glob("saved.*")} == before


def test_the_disks_health_is_published_ten_times_a_second_at_most(
    run: Path, logs: Path, state: Path, later: _Time
) -> None:
    Store(state).save(_SAVED._replace(faults_latched=_KEPT))
    historian = Historian(run, logs, state)
    view = View(STORE, "historian", "store", run)
    stamps = set()
    for _ in range(100):
        historian.poll()
        view.refresh()
        stamps.add(view.age_ms(1) if view.value else 0)
        later.leap(0.020)
    assert view.value == Health(True, 0, _KEPT, 7)
    assert 15 <= len(stamps) <= 21


def _errors(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(code, os.strerror(code))

    for name in ("write", "pwrite", "fdatasync", "fsync", "ftruncate", "replace", "unlink"):
        monkeypatch.setattr(os, name, fail)
    if code == errno.EROFS:
        monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_for_a_while_is_told_and_what_memory_can_hold_is_written_later(
    run: Path, logs: Path, state: Path, later: _Time, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = writer("controller", run)
    events = EventLog(controller["events"])
    _publish(controller, _WORN)
    historian = Historian(run, logs, state)
    historian.poll()
    with pytest.MonkeyPatch.context() as broken:
        _errors(broken, code)
        _publish(controller, _WORN._replace(faults_latched=_KEPT, cycles=8))
        for n in range(1, 11):
            events.add(EventKind.FAULT_ON, n)
            later.leap(0.5)
            historian.poll()
        seen = _health(run)
    assert seen is not None
    assert (seen.writes_ok, seen.saved_latched, seen.saved_cycles) == (False, 0, 7)
    assert seen.lost >= 10
    assert capsys.readouterr().err.count("battery.log: ") == 1
    for _ in range(3):
        later.leap(1.5)
        historian.poll()
    seen = _health(run)
    assert seen is not None
    assert (seen.writes_ok, seen.saved_latched, seen.saved_cycles) == (True, _KEPT, 8)
    historian.close()
    assert load(state).saved == _SAVED._replace(faults_latched=_KEPT, cycles=8)
    assert [e.event.a for e in _recorded(state) if e.event.kind == EventKind.FAULT_ON] == list(range(1, 11))
    text = (logs / "battery.log").read_text()
    told = re.search(rf"battery.log: {os.strerror(code)}: (\d+) lines were lost, writing works again", text)
    assert told
    assert int(told[1]) >= 10
    assert "the saved state is written again" in text
    assert "the journal is written again" in text


def test_a_disk_that_hangs_loses_no_event_silently(
    run: Path, logs: Path, state: Path, later: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = EventLog(writer("guard", run)["events"])
    historian = Historian(run, logs, state)
    events.add(EventKind.STATE, 0, 1)

    def hang(fd: int) -> None:
        for n in range(1, 51):
            events.add(EventKind.COMMAND, n)

    with monkeypatch.context() as slow:
        slow.setattr(os, "fdatasync", hang)
        historian.poll()
    later.leap(0.2)
    historian.poll()
    historian.close()
    entries = _recorded(state)
    assert [e.event.a for e in entries if e.event.kind == EventKind.COMMAND] == list(range(19, 51))
    assert [(e.event.a, e.event.text) for e in entries if e.note == Note.LOST] == [
        (18, "18 events of guard were overwritten before they were read")
    ]
    seen = _health(run)
    assert seen is not None
    assert seen.lost == 18


def test_a_cycle_that_cannot_be_written_is_told_although_the_log_can(
    run: Path, logs: Path, state: Path, later: _Time
) -> None:
    (logs / "cycle.csv").mkdir(parents=True)
    controller = writer("controller", run)
    _publish(controller, _STATUS)
    historian = Historian(run, logs, state)
    historian.poll()
    assert _health(run) == Health(False, 1, 0, 0)
    (logs / "cycle.csv").rmdir()
    _publish(controller, _STATUS)
    later.leap(0.9)
    historian.poll()
    later.leap(0.2)
    historian.poll()
    assert "cycle.csv: Is a directory: 1 lines were lost, writing works again" in _lines(logs)[-1]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), None])
def test_a_state_that_cannot_be_saved_is_tried_again_once_a_second(
    state: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    keeper, asked = Keeper(state), []

    def save(store: Store, saved: Saved) -> None:
        asked.append(saved)
        if error:
            raise error

    monkeypatch.setattr(Store, "save", save)
    for poll in range(200):
        keeper.follow(_WORN, poll * 0.020)
    assert asked == [_SAVED] * (4 if error else 1)
    assert keeper.ok == (error is None)


def test_a_level_that_is_no_number_is_told_and_not_saved(state: Path) -> None:
    keeper = Keeper(state)
    keeper.follow(_WORN._replace(closing_level=nan), 0.0)
    assert not keeper.ok
    assert keeper.error.startswith("closing_level is nan; allowed is float from 0")
    assert load(state) == Loaded(None, False)


def test_a_second_historian_is_refused(run: Path, logs: Path, state: Path) -> None:
    historian = Historian(run, logs, state)
    with pytest.raises(SectionError, match="already has a writer"):
        Historian(run, logs, state)
    historian.close()


def test_memory_in_place_of_the_data_partition_is_told_and_shown_as_a_store_that_does_not_work(
    run: Path, logs: Path, state: Path, later: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_VOLATILE", "1")
    historian = Historian(run, logs, state)
    later.leap(1.0)
    historian.poll()
    seen = _health(run)
    assert seen is not None
    assert not seen.writes_ok
    assert VOLATILE in _lines(logs)[0]
    historian.close()
