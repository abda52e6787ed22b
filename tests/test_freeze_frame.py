"""First-fault capture: the scans from 2 s before to 1 s after a trip, sixteen times, served as file records."""

from __future__ import annotations

import errno
import math
import os
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import pytest
from fake_disk import FakeDisk, some_bytes

from firmware import freeze_frame
from firmware.freeze_files import DIRECTORY_FILE, LIVE_FILES, FreezeFiles
from firmware.freeze_frame import (
    DIRECTORY,
    ENTRY,
    FRAME,
    FRAMES_PER_FILE,
    KEPT,
    UNKNOWN_16,
    UNKNOWN_32,
    Damaged,
    Entry,
    Frame,
    Recorder,
    Stored,
    first_file,
    frame_of,
    kept,
    load,
    ring_writer,
    store,
)
from firmware.image import Status
from statemachine.faults import BY_NAME
from statemachine.signals import Bms, Command, Guard, Inputs, Lines, Pcs

K = TypeVar("K", bound=tuple)  # type: ignore[type-arg]
MS = 1_000_000
GROUND, KILL, COMM, WARNING = (
    1 << BY_NAME[f"ERR_{name}"].bit for name in ("GROUND_FAULT", "KILL_SWITCH", "COMM_LOST", "SITE_HEARTBEAT")
)


def zeros(kind: type[K], **values: Any) -> K:
    blank = {name: hint() if hint in (int, float, bool) else None for name, hint in get_type_hints(kind).items()}
    return kind(**blank | values)


LINES = zeros(Lines, loops_ma=tuple(4.0 + n for n in range(8)), loops_age_ms=3.0, out_neg=True, out_pre=True)
INPUTS = zeros(
    Inputs, lines=LINES, bms=zeros(Bms, rack_v=1100.5, cell_v_max=3.75, cell_v_max_at=301), pcs=zeros(Pcs, dc_v=1101.0),
    command=zeros(Command, mode=2, seq=70_000), guard=zeros(Guard, armed=True, trip=3), bms_age_ms=40.0,
)  # fmt: skip
BLANK = zeros(Frame)


class Scans:
    """The controller's ring and the historian's recorder, scan by scan on a clock of their own."""

    def __init__(self, directory: Path, period_ms: int = 10) -> None:
        self.run, self.state = directory / "run", directory / "state"
        self.run.mkdir(exist_ok=True)
        self.ring = ring_writer(self.run)
        self.recorder = Recorder(self.run, self.state)
        self.period_ms, self.scan, self.jitter_ns = period_ms, 0, 0

    @property
    def now_ns(self) -> int:
        return 1_000_000_000_000 + self.scan * self.period_ms * MS

    def frame(self, latched: int) -> Frame:
        self.jitter_ns = (self.jitter_ns + 137_003) % (2 * MS)
        return BLANK._replace(
            scan=self.scan, monotonic_ns=self.now_ns + self.jitter_ns, wall_ns=self.now_ns + 5,
            period_us=self.period_ms * 1000, faults_latched=latched,
        )  # fmt: skip

    def go(self, scans: int, latched: int = 0, poll: bool = True) -> int:
        """Number of the last scan."""
        for _ in range(scans):
            self.scan += 1
            self.ring.append(FRAME.pack(self.frame(latched)))
            if poll and self.scan % 2 == 0:
                self.recorder.poll(self.now_ns)
        if poll:
            self.recorder.poll(self.now_ns)
        return self.scan

    def kept(self) -> list[int]:
        return list(kept(self.state / DIRECTORY))

    def stored(self, number: int) -> tuple[Entry, list[Frame]]:
        found = load(kept(self.state / DIRECTORY)[number])
        size = FRAME.size
        return found.entry, [FRAME.unpack(found.frames[n * size : (n + 1) * size]) for n in range(found.entry.frames)]


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    return Scans(tmp_path)


@pytest.mark.parametrize("period_ms", [5, 10, 50])
def test_a_trip_keeps_every_scan_from_2_s_before_to_1_s_after(tmp_path: Path, period_ms: int) -> None:
    scans = Scans(tmp_path, period_ms)
    before, after = 2000 // period_ms, 1000 // period_ms
    scans.go(before + 300)
    trip = scans.go(1, GROUND)
    scans.go(after, GROUND)
    assert scans.kept() == [], "the window is still open"
    scans.go(1, GROUND)
    entry, frames = scans.stored(1)
    assert [frame.scan for frame in frames] == list(range(trip - before, trip + after + 1))
    assert frames[entry.trip_at].scan == trip
    assert entry.frames == before + 1 + after
    assert (entry.first_faults, entry.first_fault) == (GROUND, BY_NAME["ERR_GROUND_FAULT"].bit)
    assert entry.wall_ms == frames[entry.trip_at].wall_ns // MS
    assert entry.period_us == period_ms * 1000


def test_a_trip_soon_after_the_start_keeps_what_there_is(scans: Scans) -> None:
    scans.go(30)
    scans.go(102, GROUND)
    entry, frames = scans.stored(1)
    assert [frame.scan for frame in frames] == list(range(1, 132))
    assert entry.trip_at == 30


def test_the_first_fault_is_named_and_what_follows_within_the_window_is_not_another_trip(scans: Scans) -> None:
    scans.go(300)
    scans.go(50, COMM)
    scans.go(200, COMM | KILL | GROUND)
    assert scans.kept() == [1]
    entry, frames = scans.stored(1)
    assert entry.first_faults == COMM
    assert frames[-1].faults_latched == COMM | KILL | GROUND


def test_of_two_faults_in_one_scan_both_are_first_and_the_worse_is_named(scans: Scans) -> None:
    scans.go(300)
    scans.go(110, COMM | KILL)
    entry, _ = scans.stored(1)
    assert (entry.first_faults, entry.first_fault) == (COMM | KILL, BY_NAME["ERR_KILL_SWITCH"].bit)


def test_a_warning_is_no_trip_and_a_fault_that_stays_latched_is_one_trip(scans: Scans) -> None:
    scans.go(300, WARNING)
    assert scans.kept() == []
    scans.go(2000, WARNING | COMM)
    assert scans.kept() == [1]


def test_a_second_trip_after_the_window_is_another_one_with_its_own_2_s_before(scans: Scans) -> None:
    scans.go(300)
    first = scans.go(1, COMM)
    scans.go(119, COMM)
    second = scans.go(1, COMM | GROUND)
    scans.go(110, COMM | GROUND)
    entry, frames = scans.stored(2)
    assert scans.kept() == [1, 2]
    assert [frame.scan for frame in frames] == list(range(second - 200, second + 101))
    assert first in [frame.scan for frame in frames]
    assert entry.first_faults == GROUND


def test_a_fault_acknowledged_and_back_is_another_trip(scans: Scans) -> None:
    scans.go(300)
    for _ in range(2):
        scans.go(150, COMM)
        scans.go(150)
    assert scans.kept() == [1, 2]


def test_seventeen_trips_keep_sixteen_and_the_numbers_go_on(scans: Scans) -> None:
    for _ in range(KEPT + 1):
        scans.go(20)
        scans.go(110, GROUND)
    assert scans.kept() == list(range(2, KEPT + 2))
    assert {path.name for path in (scans.state / DIRECTORY).iterdir()} == {f"{n:06d}.frz" for n in range(2, KEPT + 2)}
    scans.recorder = Recorder(scans.run, scans.state)
    scans.go(20)
    scans.go(110, GROUND)
    assert scans.kept()[-1] == KEPT + 2


def test_a_controller_that_dies_after_the_trip_does_not_keep_the_window_open(scans: Scans) -> None:
    scans.go(300)
    trip = scans.go(30, GROUND)
    scans.recorder.poll(scans.now_ns + 1400 * MS)
    assert scans.kept() == [1]
    assert scans.stored(1)[1][-1].scan == trip


def test_a_restarted_historian_neither_repeats_nor_loses_a_trip(scans: Scans) -> None:
    scans.go(300)
    scans.go(150, COMM)
    scans.go(50)
    trip = scans.go(1, GROUND)
    scans.go(20, GROUND)
    scans.recorder = Recorder(scans.run, scans.state)
    scans.go(120, GROUND)
    assert scans.kept() == [1, 2]
    entry, frames = scans.stored(2)
    assert entry.first_faults == GROUND
    assert [frame.scan for frame in frames] == list(range(trip - 200, trip + 101))


def test_a_fault_that_was_latched_before_the_first_scan_is_no_trip(scans: Scans) -> None:
    scans.go(500, GROUND)
    assert scans.kept() == []


def test_a_full_disk_is_told_and_the_capture_is_written_when_there_is_room(
    scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, stored: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    with monkeypatch.context() as patched:
        patched.setattr(freeze_frame, "store", full)
        scans.go(300)
        trip = scans.go(1, GROUND)
        scans.go(300, GROUND)
        assert scans.recorder.failures == 1, "tried again after a while, not at every poll"
        assert "No space left" in scans.recorder.error
    scans.go(500, GROUND)
    assert scans.recorder.error == ""
    assert scans.recorder.lost == 0
    entry, frames = scans.stored(1)
    assert frames[entry.trip_at].scan == trip


def test_a_disk_that_fails_for_long_costs_the_oldest_captures_and_they_are_counted(
    scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans.state).write_text("a file where the directory must be")
    for _ in range(KEPT + 2):
        scans.go(20)
        scans.go(110, GROUND)
    assert scans.recorder.lost == 2
    assert scans.recorder.error


def test_a_power_cut_at_any_byte_leaves_what_was_kept_or_the_new_one_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, frames = tmp_path / DIRECTORY, FRAME.pack(BLANK)
    monkeypatch.setattr(freeze_frame, "KEPT", 2)

    def numbered(number: int) -> Stored:
        return Stored(zeros(Entry, number=number, frames=1, registers=FRAME.registers), frames)

    root.mkdir()
    with monkeypatch.context() as patched:
        disk = FakeDisk(root, patched)
        for number in (1, 2, 3):
            store(root, numbered(number))
            disk.mark(str(number))
    seen = 0
    for image in disk.images(some_bytes):
        left = kept(image.lay_out(tmp_path / "after"))
        for number, path in left.items():
            assert load(path) == numbered(number)
        done = len(image.passed)
        assert not done or done in left, "what was acknowledged is there"
        assert done < 2 or {done - 1, done + 1} & set(left), "two are kept at every moment"
        seen += 1
    assert seen > 100


def test_a_directory_that_cannot_be_synced_does_not_multiply_a_capture(
    scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(freeze_frame, "sync_directory", _broken)
        scans.go(300)
        scans.go(1200, GROUND)
        assert scans.recorder.failures == 3
    scans.go(600, GROUND)
    assert scans.recorder.error == ""
    assert scans.kept() == [1]


def test_a_damaged_file_is_not_believed(scans: Scans) -> None:
    scans.go(300)
    scans.go(110, GROUND)
    path = kept(scans.state / DIRECTORY)[1]
    data = bytearray(path.read_bytes())
    for damage in (data[:-1], data[:20], b"", data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :]):
        path.write_bytes(damage)
        with pytest.raises(Damaged, match="damaged"):
            load(path)


def test_a_frame_is_what_the_scan_saw_and_did() -> None:
    status = zeros(Status, scan=9, state=4, coils=5, feedback=5, setpoint_a=-560.25, faults_latched=1 << 62)
    frame = FRAME.unpack(FRAME.pack(frame_of(status, INPUTS, 123, 456, 789)))
    assert (frame.scan, frame.monotonic_ns, frame.wall_ns, frame.exec_us) == (9, 123, 456, 789)
    assert (frame.state, frame.mode, frame.command_seq) == (4, 2, 70_000)
    assert (frame.coils, frame.readback, frame.feedback) == (5, 0b101, 5)
    assert (frame.guard_armed, frame.guard_trip) == (1, 3)
    assert (frame.setpoint_a, frame.rack_v, frame.cell_v_max, frame.cell_v_max_at) == (-560.25, 1100.5, 3.75, 301)
    assert (frame.loop_1_ma, frame.loop_8_ma, frame.loops_age_ms, frame.bms_age_ms) == (4, 11, 3, 40)
    assert frame.faults_latched == 1 << 62


def test_every_field_comes_from_its_namesake() -> None:
    numbers = iter(range(1, 1000))

    def numbered(kind: type[K]) -> K:
        return zeros(kind, **{n: h(next(numbers)) for n, h in get_type_hints(kind).items() if h in (int, float)})

    status, bms, pcs = numbered(Status), numbered(Bms), numbered(Pcs)
    inputs = INPUTS._replace(bms=bms, pcs=pcs, bms_age_ms=1.5, pcs_age_ms=2.5, command_age_ms=3.5, guard_age_ms=4.5)
    frame = frame_of(status, inputs, 1, 2, 3)
    own = {"monotonic_ns", "wall_ns", "exec_us", "late_in_row", "mode", "command_seq", "readback", "guard_armed",
           "guard_trip", "loops_age_ms", *(f"loop_{n}_ma" for n in range(1, 9))}  # fmt: skip
    elsewhere = {"bms_trip_bits": bms.alarm_trip, "bms_stop_bits": bms.alarm_stop, "pcs_dc_v": pcs.dc_v,
                 "pcs_dc_a": pcs.dc_a, "pcs_state": pcs.state, "pcs_fault_bits": pcs.fault_bits}  # fmt: skip
    for name, value in frame._asdict().items():
        if name in own:
            continue
        source = next((s for s in (status, bms, inputs) if hasattr(s, name)), None)
        assert value == (elsewhere[name] if source is None else getattr(source, name)), name


def test_what_was_never_received_is_unknown_not_zero() -> None:
    frame = frame_of(zeros(Status), zeros(Inputs, lines=LINES), 1, 2, 3)
    assert (frame.mode, frame.guard_armed, frame.pcs_state) == (UNKNOWN_16,) * 3
    assert (frame.command_seq, frame.bms_trip_bits, frame.pcs_fault_bits) == (UNKNOWN_32,) * 3
    for name in ("rack_v", "pcs_dc_v", "cell_v_max", "bms_age_ms", "pcs_age_ms", "command_age_ms", "guard_age_ms"):
        assert math.isnan(getattr(frame, name)), name


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [("scan", 1 << 32, (1 << 32) - 1), ("coils", -1, 0), ("rack_v", 1e39, math.inf), ("rack_v", -1e300, -math.inf)],
)
def test_no_number_can_stop_a_scan(name: str, value: float, becomes: float) -> None:
    wrong: dict[str, Any] = {name: value, "rack_a": 2.5, "dv_v": math.nan}
    found = FRAME.unpack(FRAME.pack(BLANK._replace(**wrong)))
    assert getattr(found, name) == becomes
    assert found.rack_a == 2.5
    assert math.isnan(found.dv_v)


def test_registers_follow_each_other_big_endian_as_the_table_says() -> None:
    data = FRAME.pack(BLANK._replace(state=7, faults_latched=0x0102030405060708, rack_v=1.0))
    fields = {field.name: field for field in FRAME.fields}

    def registers(name: str) -> str:
        field = fields[name]
        return data[2 * field.register : 2 * (field.register + field.registers)].hex()

    assert registers("state") == "0007"
    assert registers("faults_latched") == "0102030405060708"
    assert registers("rack_v") == "3f800000"
    assert sum(field.registers for field in FRAME.fields) == FRAME.registers == len(data) // 2
    assert all(field.doc for field in (*FRAME.fields, *ENTRY.fields))


def test_a_frame_costs_the_scan_less_than_fifteen_microseconds() -> None:
    status = zeros(Status)

    def cost() -> bytes:
        return FRAME.pack(frame_of(status, INPUTS, 1, 2, 3))

    assert min(timeit.repeat(cost, number=1000, repeat=10)) / 1000 * 1e6 < 15


@pytest.fixture
def files(scans: Scans) -> FreezeFiles:
    return FreezeFiles(scans.state, scans.run)


def entries(files: FreezeFiles) -> list[Entry]:
    data = files.read(DIRECTORY_FILE, 0, KEPT * ENTRY.registers)
    return [ENTRY.unpack(data[at : at + ENTRY.size]) for at in range(0, len(data), ENTRY.size)]


def test_an_empty_directory_is_sixteen_empty_entries(files: FreezeFiles) -> None:
    assert entries(files) == [zeros(Entry)] * KEPT
    assert (files.count, files.entries()) == (0, [])


def test_the_directory_lists_the_newest_first_and_names_the_files(scans: Scans, files: FreezeFiles) -> None:
    for fault in (GROUND, COMM):
        scans.go(300)
        scans.go(110, fault)
    first, second, *rest = entries(files)
    assert (first.number, first.first_faults, first.first_file, first.files) == (2, COMM, 20, 4)
    assert (second.number, second.first_faults, second.first_file) == (1, GROUND, 10)
    assert rest == [zeros(Entry)] * (KEPT - 2)
    assert files.count == 2


def test_every_frame_is_where_its_entry_says(scans: Scans, files: FreezeFiles) -> None:
    scans.go(300)
    scans.go(110, GROUND)
    entry, frames = scans.stored(1)
    for n, frame in enumerate(frames):
        file, position = entry.first_file + n // entry.frames_per_file, n % entry.frames_per_file
        assert FRAME.unpack(files.read(file, position * entry.registers, entry.registers)) == frame
    last = entry.first_file + entry.files - 1
    for file, record, count in (
        (last, 9000, 1),
        (last + 1, 0, 1),
        (10, FRAMES_PER_FILE * FRAME.registers, 1),
        (20, 0, 1),
    ):
        with pytest.raises(LookupError):
            files.read(file, record, count)


def test_a_new_freeze_frame_appears_and_a_dropped_one_goes(scans: Scans, files: FreezeFiles) -> None:
    for number in range(1, KEPT + 3):
        scans.go(20)
        scans.go(110, GROUND)
        assert entries(files)[0].number == number
    with pytest.raises(LookupError):
        files.read(first_file(1), 0, 1)
    assert files.read(first_file(3), 0, 2)


def test_a_damaged_file_is_left_out_of_the_directory_and_is_an_error_to_read(scans: Scans, files: FreezeFiles) -> None:
    scans.go(300)
    scans.go(110, GROUND)
    assert files.count == 1
    path = kept(scans.state / DIRECTORY)[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert files.entries() == []
    with pytest.raises(OSError, match="damaged"):
        files.read(10, 0, 1)


def test_the_numbers_of_files_begin_again_before_modbus_ends() -> None:
    assert [first_file(n) for n in (1, 7, 6500, 6501)] == [10, 70, 65_000, 10]
    assert len({first_file(n) for n in range(6490, 6490 + KEPT)}) == KEPT


def test_the_live_files_are_one_picture_of_the_last_scans(scans: Scans, files: FreezeFiles) -> None:
    with pytest.raises(LookupError):
        files.read(LIVE_FILES[0], 0, 1)
    files = FreezeFiles(scans.state, scans.run)
    scans.go(1000, poll=False)

    def scan(position: int) -> int:
        file, at = LIVE_FILES[position // FRAMES_PER_FILE], position % FRAMES_PER_FILE * FRAME.registers
        return FRAME.unpack(files.read(file, at, FRAME.registers)).scan

    held = len(LIVE_FILES) * FRAMES_PER_FILE
    assert [scan(0), scan(held - 1)] == [1001 - held, 1000]
    scans.go(5, poll=False)
    assert scan(held - 1) == 1000, "the picture stays until record 0 is read again"


def test_the_recorder_raises_nothing_of_the_disk(scans: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "replace": os.replace, "scandir": os.scandir}
    for name in calls:
        with monkeypatch.context() as patched:
            patched.setattr(os, name, _broken)
            scans.go(300)
            scans.go(110, GROUND)
            assert scans.recorder.error, name
        scans.go(600)
        assert scans.recorder.error == "", name
    assert scans.kept() == [1, 2, 3]


def _broken(*arguments: object, **named: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
