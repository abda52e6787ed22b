"""ems-diag as a person at the rack uses it: what a fault means, and what was recorded about it."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_appliance import FakeAppliance, zeros

from firmware import ems_diag, freeze_frame, harmonics
from firmware.appliance import STALE_MS
from firmware.freeze_frame import DIRECTORY, ENTRY, FRAME, FRAMES_PER_FILE, Entry, Frame, Stored, first_file, kept
from firmware.image import Event
from firmware.journal import Journal
from firmware.points import PointClient, Refusal
from firmware.registers import POINT
from statemachine import leds
from statemachine.faults import BY_NAME, FAULTS, Fault
from statemachine.signals import EventKind, StatusBit
from statemachine.states import State

GROUND, COMM = BY_NAME["ERR_GROUND_FAULT"], BY_NAME["ERR_COMM_LOST"]
START_NS = 5_000_000_000


@pytest.fixture
def appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAppliance]:
    monkeypatch.setenv("EMS_STATE_DIR", str(tmp_path / "state"))
    with FakeAppliance(tmp_path) as made:
        yield made


def diag(appliance: FakeAppliance, *words: str) -> int:
    return ems_diag.main([*words, "--port", str(appliance.port)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def scan(number: int, **values: Any) -> Frame:
    return zeros(Frame)._replace(
        scan=number, monotonic_ns=START_NS + number * 10_000_000, wall_ns=1_764_000_000_123_000_000, period_us=10_000,
        **values,
    )  # fmt: skip


def keep(tmp_path: Path, number: int, frames: int = 301, bits: int = 1 << GROUND.bit) -> list[Frame]:
    """A freeze-frame on the appliance's disk whose trip is its scan 200."""
    made = [scan(n, state=State.READY, faults_latched=bits if n >= 200 else 0) for n in range(frames)]
    files = -(-frames // FRAMES_PER_FILE)
    entry = Entry(
        number, 1_764_000_000_123, bits, GROUND.bit, frames, 200, 10_000, FRAME.registers, FRAME.layout,
        first_file(number), files, FRAMES_PER_FILE,
    )  # fmt: skip
    packed = b"".join(FRAME.pack(frame) for frame in made)
    freeze_frame.store(tmp_path / "state" / DIRECTORY, Stored(entry, packed))
    return made


@pytest.mark.parametrize(
    "code",
    ["ERR_GROUND_FAULT", "ground_fault", "Ground fault", "ground-fault", "GROUND", "err_gr", "2", "fast", "0x03"],
)
def test_a_fault_is_found_by_name_beginning_bit_or_led(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ems_diag.main(["--explain", code]) == 0
    assert capsys.readouterr().out.startswith("ERR_GROUND_FAULT\n")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_found_by_its_name_its_bit_and_its_led_code(
    fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in (fault.name, str(fault.bit), leds.pattern(fault.led), hex(fault.led)):
        assert ems_diag.find(code) == fault
    said = ems_diag.explanation(fault)
    for expected in (fault.name, fault.severity.name.lower(), fault.source, fault.clears, fault.text):
        assert expected in said


def test_the_register_and_bit_of_a_fault_are_told() -> None:
    assert "bit 2 of FaultBits (40573) and FaultActive (40581)" in ems_diag.explanation(GROUND)
    assert "bit 6 of FaultBits2 (40575) and FaultActive2 (40583)" in ems_diag.explanation(
        BY_NAME["ERR_OUTPUT_READBACK"]
    )
    assert "stands for 50 ms" in ems_diag.explanation(GROUND)
    assert "at once, in the scan that sees it" in ems_diag.explanation(COMM)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("ERR_GRUND_FAULT", "near: ERR_GROUND_FAULT"),
        ("tamperd", "near: ERR_TAMPER"),
        ("FAULT", "near: ERR_GROUND_FAULT, ERR_PCS_FAULT"),
        ("ERR_BMS", "more than one begins so: ERR_BMS_ALARM, ERR_BMS_TRIP"),
        ("31", "a bit 0 to 62"),
        ("9-9", "the FAULT LED's code such as 2-4"),
        ("", "give a name"),
    ],
)
def test_an_unknown_code_names_what_is_near_and_exits_2(
    code: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ems_diag.main(["--explain", code]) == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--explain"),
        (("--freeze-frame", "first"), "'first'"),
        (("--freeze-frame", "0"), "'0'"),
        (("--freeze-frame", "--output", "x.csv"), "--output"),
        (("--faults", "--output", "x.csv"), "--output"),
        (("--faults", "--explain", "2"), "not allowed with"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        ems_diag.main(words)
    assert stopped.value.code == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize("option", ["--faults", "--freeze-frame", "--check-harmonics"])
def test_no_connection_is_one_line_and_exit_1(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert ems_diag.main([option, "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in one_line(capsys)


def test_faults_are_explained_the_worst_first(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag(appliance, "–faults") == 0
    assert capsys.readouterr().out == "no faults\n"
    clock = BY_NAME["ERR_CLOCK"]
    appliance.show(faults_active=1 << COMM.bit | 1 << clock.bit, faults_latched=1 << COMM.bit | 1 << GROUND.bit)
    assert diag(appliance, "--faults") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert said == ["latched, its cause is gone: ERR_GROUND_FAULT", "ACTIVE ERR_COMM_LOST", "ACTIVE ERR_CLOCK"]


def test_the_links_are_told_with_what_went_wrong_on_them(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diag(appliance, "--links") == 0
    bms, pcs = capsys.readouterr().out.splitlines()
    assert bms == (
        "BMS  fresh  0 polls, the last took 0.0 ms; without a good answer: 0 time-outs, 5 wrong or refused, 7 with a "
        "wrong CRC"
    )
    assert pcs.startswith("PCS  fresh  ")
    appliance.show(status_bits=1 << StatusBit.BMS_STALE)
    assert diag(appliance, "--links") == 1
    assert capsys.readouterr().out.startswith("BMS  STALE")


def test_faults_without_a_controller_are_an_error_not_no_faults(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance.alive = False
    monkeypatch.setitem(STALE_MS, "status", 0.0)
    appliance.call(appliance.device.tick)
    assert diag(appliance, "--faults") == 1
    assert "controller does not answer" in one_line(capsys)


def test_nothing_kept_is_said(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag(appliance, "--freeze-frame") == 0
    assert "nothing tripped yet" in capsys.readouterr().out
    assert diag(appliance, "--freeze-frame", "last") == 1
    assert "no freeze-frame last; kept: none" in one_line(capsys)


def test_what_is_kept_is_listed_newest_first(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 19):
        keep(tmp_path, number, frames=201, bits=1 << (GROUND if number % 2 else COMM).bit)
    assert diag(appliance, "--freeze-frame") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(18, 2, -1))
    assert lines[0].split() == ["18", "2025-11-24T16:00:00.123Z", "201", "scans", "of", "10", "ms", "ERR_COMM_LOST"]


@pytest.mark.parametrize("which", ["7", "last"])
def test_a_freeze_frame_comes_over_modbus_as_csv(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    frames = keep(tmp_path, 7)
    target = tmp_path / "out.csv"
    assert diag(appliance, "--freeze-frame", which, "--output", str(target)) == 0
    assert "freeze-frame 7, 301 scans, first ERR_GROUND_FAULT" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert list(rows[0]) == ["t_s", *Frame._fields]
    assert [int(row["scan"]) for row in rows] == [frame.scan for frame in frames]
    assert [row["t_s"] for row in (rows[0], rows[200], rows[300])] == ["-2.0000", "0.0000", "1.0000"]
    assert (rows[199]["faults_latched"], rows[200]["faults_latched"]) == ("", "ERR_GROUND_FAULT")
    assert (rows[0]["state"], rows[0]["wall_ns"]) == ("READY", "2025-11-24T16:00:00.123Z")


def test_without_a_file_the_csv_goes_to_standard_output(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, 1)
    assert diag(appliance, "--freeze-frame", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 302


def test_what_is_not_known_is_empty_in_the_csv() -> None:
    unknown = scan(1, mode=0xFFFF, rack_v=math.nan, bms_trip_bits=0xFFFFFFFF, guard_armed=1, soc_pct=55.5)
    row = next(csv.DictReader(io.StringIO(ems_diag.csv([unknown], 0))))
    assert (row["mode"], row["rack_v"], row["bms_trip_bits"], row["guard_armed"], row["soc_pct"]) == (
        "", "", "", "1", "55.5",
    )  # fmt: skip


def test_a_number_that_is_not_kept_and_a_file_that_cannot_be_written_are_named(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, 3, frames=201)
    assert diag(appliance, "--freeze-frame", "2") == 1
    assert "no freeze-frame 2; kept: 3" in one_line(capsys)
    assert diag(appliance, "--freeze-frame", "3", "--output", str(tmp_path / "no" / "x.csv")) == 1
    assert "No such file or directory" in one_line(capsys)


def test_a_freeze_frame_of_another_version_is_not_decoded_wrongly(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(FRAME, "layout", 1)
        keep(tmp_path, 1, frames=201)
    assert diag(appliance, "--freeze-frame", "1") == 1
    assert "another version" in one_line(capsys)


def test_a_damaged_file_answers_exception_04_and_is_not_listed(
    appliance: FakeAppliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(tmp_path, 1, frames=201)
    path = kept(tmp_path / "state" / DIRECTORY)[1]
    path.write_bytes(path.read_bytes()[:-9])
    assert diag(appliance, "--freeze-frame") == 0
    assert "nothing tripped yet" in capsys.readouterr().out
    with PointClient("127.0.0.1", appliance.port, POINT) as client:
        for file, code in ((first_file(1), 4), (first_file(2), 2), (65_535, 2)):
            with pytest.raises(
                Refusal, match=f"refused file {file} from record 0 with exception {code:02d}"
            ) as refused:
                client.read_file(file, 0, 1)
            assert refused.value.code == code
        assert len(client.read_file(1, 0, ENTRY.registers)) == ENTRY.size


def record(appliance: FakeAppliance, *frames: Frame) -> None:
    ring = freeze_frame.ring_writer(appliance.run_dir)
    for frame in frames:
        ring.append(FRAME.pack(frame))
    ring.close()


def test_without_a_controller_there_are_no_scans_to_read(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diag(appliance, "--freeze-frame", "now") == 1
    assert "no scans to read" in one_line(capsys)


def test_the_last_scans_are_written_with_the_newest_at_zero(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    record(appliance, *(scan(n) for n in range(200)))
    assert diag(appliance, "--freeze-frame", "now") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 200
    assert (rows[-1]["scan"], rows[-1]["t_s"], rows[0]["t_s"]) == ("199", "0.0000", "-1.9900")


def noisy(n: int, loop_ma: float, hz: float = 7.0) -> Frame:
    wave = math.sin(2 * math.pi * hz * n * 0.01)
    steady = {f"loop_{k}_ma": 12.0 + 1e-4 * (n % 2) for k in range(1, 8)}
    return scan(n, dv_v=0.01 * wave, loop_8_ma=math.nan, **steady | {"loop_3_ma": 12.0 + loop_ma * wave})


def test_steady_lines_pass_and_the_limits_of_the_look_are_told(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    record(appliance, *(noisy(n, 0.01) for n in range(400)))
    assert diag(appliance, "--check-harmonics") == 0
    out = capsys.readouterr().out
    assert "loop_8_ma  not measured" in out
    assert re.search(r"loop_1_ma .* 100 values/s: seen up to 50 Hz, 50 Hz at (49|50)\.\d, 60 Hz at (39|40)\.\d", out)
    assert "oscilloscope" in out


def test_noise_on_a_loop_is_named_with_its_frequency(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    record(appliance, *(noisy(n, 0.5) for n in range(400)))
    assert diag(appliance, "--check-harmonics") == 1
    out, err = capsys.readouterr()
    assert "ripple on loop_3_ma;" in err
    assert "most at 7.00 Hz" in next(line for line in out.splitlines() if line.startswith("loop_3_ma"))


def test_ripple_is_without_mean_and_slope() -> None:
    samples = [12 + 0.01 * n + 0.3 * math.sin(2 * math.pi * 10 * n * 0.01) for n in range(500)]
    found = harmonics.ripple(samples, 0.01)
    assert found.rms == pytest.approx(0.3 / math.sqrt(2), rel=0.05)
    assert found.strongest_hz == pytest.approx(10.0)
    assert found.strongest == pytest.approx(0.3, rel=0.05)
    assert harmonics.ripple([4.0] * 50, 0.01)[1:4] == (0, 0, 0)


@pytest.mark.parametrize(("hz", "rate", "seen"), [(50, 100, 50), (50, 50, 0), (60, 50, 10), (100, 30, 10), (7, 100, 7)])
def test_faster_noise_shows_at_a_lower_frequency(hz: float, rate: float, seen: float) -> None:
    assert harmonics.seen_at(hz, rate) == pytest.approx(seen)


def journal(tmp_path: Path, *events: Event) -> Path:
    made = Journal(tmp_path / "journal")
    for event in events:
        made.add("controller", event, True)
    made.commit(1.0)
    made.close()
    return tmp_path / "journal"


EVENTS = (
    Event(1, START_NS, 1_764_000_000_123_000_000, EventKind.STATE, State.READY, State.EMERGENCY_STOP, ""),
    Event(2, START_NS + 5, 1_764_000_000_124_000_000, EventKind.FAULT_ON, GROUND.bit, 0, ""),
)


def test_a_journal_is_printed_as_the_log_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ems_diag.main(["--journal", str(journal(tmp_path, *EVENTS))]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert "STATE READY -> EMERGENCY_STOP" in lines[0]
    assert "FAULT ON ERR_GROUND_FAULT" in lines[1]
    assert "2 records, all whole and none missing" in err


def test_a_damaged_journal_is_printed_as_far_as_it_is_good_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = journal(tmp_path, *EVENTS)
    path = next(directory.iterdir())
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert ems_diag.main(["--journal", str(directory)]) == 1
    out, err = capsys.readouterr()
    assert "are no record" in err
    assert "FAULT ON ERR_GROUND_FAULT" in out
    assert "READY -> EMERGENCY_STOP" not in out


def test_a_directory_without_a_journal_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ems_diag.main(["--journal", str(tmp_path)]) == 1
    assert f"no journal in {tmp_path}" in one_line(capsys)


def test_a_reader_who_has_seen_enough_ends_the_tool_in_peace(appliance: FakeAppliance, tmp_path: Path) -> None:
    keep(tmp_path, 1)
    command = f"{sys.executable} -m firmware.ems_diag --freeze-frame 1 --port {appliance.port} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20, env=os.environ)
    assert done.stdout.startswith("t_s,scan,")
    assert done.stderr == ""
