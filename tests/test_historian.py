"""The historian: every event one line, the cycle a CSV, and a bad disk costs lines but never the process."""

from __future__ import annotations

import errno
import os
import re
from math import nan
from pathlib import Path
from time import monotonic_ns

import pytest

from drivers.section import SectionFile
from firmware.historian import CSV_HEADER, BoundedFile, Historian, in_words
from firmware.image import BMS, PCS, STATUS, Event, EventLog, Status, writer
from statemachine.signals import Bms, EventKind, LimitReason, Pcs, PcsState, Why
from statemachine.states import State

_STATUS = Status._make(
    {"int": 0, "float": 0.0, "bool": False}[getattr(kind, "__forward_arg__", "")]
    for kind in Status.__annotations__.values()
)
_BMS = Bms(
    5, 0.0, 1125.04, -560.02, 41.234, 42.0, 40.0, 99.0, 3.7612, 3.7488, 3.75, 3, 900, 27.94, 24.06, 7, 8, 1120.0,
    1120.0, 2000.0, 0, 0, 0, 0, 0, 4, True, True,
)  # fmt: skip
_PCS = Pcs(9, 0.0, 1125.5, -560.0, -630e3, 50.0, PcsState.RUN, 0, 1250.0, 1250.0, True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "log"


def _lines(logs: Path) -> list[str]:
    return (logs / "battery.log").read_text().splitlines()


def _event(kind: EventKind, a: int = 0, b: int = 0, text: str = "") -> Event:
    return Event(1, 0, 0, kind, a, b, text)


def test_an_event_is_one_line_with_utc_time_monotonic_time_process_and_words(run: Path, logs: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    historian = Historian(run, logs)
    before_s = monotonic_ns() / 1e9
    events.add(EventKind.STATE, State.PRECHARGE, State.READY)
    historian.poll()
    (line,) = _lines(logs)
    found = re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\d+\.\d{3}) controller STATE PRECHARGE -> READY", line
    )
    assert found
    assert abs(float(found[1]) - before_s) < 5.0


@pytest.mark.parametrize(
    ("event", "text"),
    [
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


def test_events_of_every_process_are_collected(run: Path, logs: Path) -> None:
    files = {name: writer(name, run) for name in ("guard", "server", "aggregator")}
    historian = Historian(run, logs)
    for name, file in files.items():
        EventLog(file["events"]).add(0, text=f"hello of {name}")
    historian.poll()
    assert [line.split(" ", 2)[2] for line in _lines(logs)] == [
        f"{name} hello of {name}" for name in ("aggregator", "guard", "server")
    ]


def test_events_that_were_overwritten_are_counted(run: Path, logs: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    for n in range(40):
        events.add(EventKind.COMMAND, n)
    Historian(run, logs).poll()
    assert "historian 8 events of controller were overwritten" in _lines(logs)[0]
    assert len(_lines(logs)) == 33


def test_a_historian_that_comes_back_writes_no_event_twice(run: Path, logs: Path) -> None:
    events = EventLog(writer("controller", run)["events"])
    for n in range(40):
        events.add(EventKind.COMMAND, n)
    first = Historian(run, logs)
    first.poll()
    first.close()
    events.add(EventKind.COMMAND, 40)
    Historian(run, logs).poll()
    commands = [int(line.split()[4]) for line in _lines(logs) if " COMMAND " in line]
    assert commands == list(range(8, 41))
    assert sum("overwritten" in line for line in _lines(logs)) == 1


def _publish(file: SectionFile, status: Status) -> None:
    file["status"].publish(STATUS.pack(*status))


def test_a_row_of_the_cycle_has_state_limit_reason_cells_and_faults(run: Path, logs: Path) -> None:
    controller, aggregator = writer("controller", run), writer("aggregator", run)
    aggregator["bms"].publish(BMS.pack(*_BMS))
    aggregator["pcs"].publish(PCS.pack(*_PCS))
    status = _STATUS._replace(
        state=State.CHARGE_BULK, setpoint_a=-560.0, charge_limit_a=560.04, charge_reason=LimitReason.COMMAND, dv_v=nan,
        faults_active=1 << 4, faults_latched=1 << 9,
    )  # fmt: skip
    _publish(controller, status)
    Historian(run, logs).poll()
    header, row = (logs / "cycle.csv").read_text().splitlines()
    assert header + "\n" == CSV_HEADER
    assert row.split(",")[1:] == [
        "CHARGE_BULK", "41.23", "1125.0", "-560.0", "-560.0", "560.0", "COMMAND", "3.7612", "3.7488", "27.9", "24.1",
        "1125.5", "", "ERR_MAX_V_EXCEEDED ERR_COMM_LOST",
    ]  # fmt: skip


def test_rows_come_once_a_period_and_never_repeat_a_dead_controller(run: Path, logs: Path) -> None:
    controller = writer("controller", run)
    historian = Historian(run, logs, csv_period_s=60)
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
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "log"
    logs.write_text("in the way")
    events = EventLog(writer("guard", run)["events"])
    historian = Historian(run, logs)
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
