"""Freeze-frames: what every input and output was from 2 s before a trip to 1 s after it, scan by scan.

The controller appends one `Frame` a scan to a ring in memory (`frame_of`, `ring_writer`). The historian's `Recorder`
watches it for the first fault that latches a stop and writes the window to `freeze-frames/` in the state directory.
The last 16 are kept, their numbers keep rising. `freeze_files` serves them over Modbus.

A frame is big-endian registers from the first byte on, in the order of `FRAME.fields`; a freeze-frame's `Entry` is
coded the same way. An integer with all bits set, or nan, means "not known".
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar, get_type_hints

from drivers.ring import RingReader, RingWriter
from statemachine.faults import SEVERE_MASK
from statemachine.leds import PRIORITY
from statemachine.signals import Bms, Command, Guard, Inputs, Pcs

from .image import Status
from .store import made_directory, sync_directory

T = TypeVar("T", bound=tuple)  # type: ignore[type-arg]

BEFORE_NS, AFTER_NS = 2_000_000_000, 1_000_000_000
KEPT = 16
RING_FILE, RING_SLOTS = "frames.ring", 1024
DIRECTORY = "freeze-frames"
NAN = float("nan")
UNKNOWN_16, UNKNOWN_32 = 0xFFFF, 0xFFFFFFFF

_FORMATS = {
    "uint16": "H", "enum16": "H", "bitfield16": "H", "uint32": "I", "bitfield32": "I", "uint64": "Q",
    "bitfield64": "Q", "float32": "f",
}  # fmt: skip
_FLOAT_MAX = 3.4e38
_MAGIC = b"EMSFRZ01"
_SUFFIX = ".frz"
_LATE_NS = 500_000_000
"""A window is closed this long after its end when no more frames come: a controller that died is a reason to look."""
_RETRY_NS = 5_000_000_000


class Field(NamedTuple):
    """One value of a record. `register` counts from the record's first."""

    name: str
    type: str
    unit: str
    doc: str
    register: int
    registers: int

    def clamped(self, value: float) -> float:
        """The nearest value that the type can hold; nan in an integer is "not known"."""
        if self.type == "float32":
            return value if abs(value) <= _FLOAT_MAX or value != value else float("inf") if value > 0 else -float("inf")
        top = (1 << 16 * self.registers) - 1
        return top if value != value else int(min(top, max(0, value)))

    def known(self, value: float) -> bool:
        """Whether `value`, as unpacked, is one."""
        return value == value and (self.type == "float32" or value != (1 << 16 * self.registers) - 1)


def _fields(kind: type) -> tuple[Field, ...]:
    found: list[Field] = []
    register = 0
    for name, hint in get_type_hints(kind, include_extras=True).items():
        type_, unit, doc = hint.__metadata__
        found.append(Field(name, type_, unit, doc, register, struct.calcsize(">" + _FORMATS[type_]) // 2))
        register = found[-1].register + found[-1].registers
    return tuple(found)


class Codec(Generic[T]):
    """A NamedTuple whose annotations say (type, unit, doc), as big-endian registers."""

    def __init__(self, kind: type[T]) -> None:
        self.fields = _fields(kind)
        self._struct = struct.Struct(">" + "".join(_FORMATS[field.type] for field in self.fields))
        self._kind = kind
        self.size = self._struct.size
        self.registers = self.size // 2
        self.layout = zlib.crc32(repr([(field.name, field.type) for field in self.fields]).encode())
        """Tells one version's fields from another's."""

    def pack(self, values: T) -> bytes:
        """Never raises over a number: what the type cannot hold becomes the nearest that it can."""
        try:
            return self._struct.pack(*values)
        except (struct.error, OverflowError):
            fitting = (field.clamped(value) for field, value in zip(self.fields, values, strict=True))
            return self._struct.pack(*fitting)

    def unpack(self, data: bytes) -> T:
        """Raises struct.error when `data` is not of this size."""
        made: T = self._kind._make(self._struct.unpack(data))  # type: ignore[attr-defined]
        return made


class Frame(NamedTuple):
    """One scan: its inputs as the state machine saw them, and what it made of them. + is discharge."""

    scan: Annotated[int, "uint32", "", "scans since the controller's start"]
    monotonic_ns: Annotated[int, "uint64", "ns", "CLOCK_MONOTONIC at the end of the scan"]
    wall_ns: Annotated[int, "uint64", "ns", "UTC since 1970, as the clock had it"]
    period_us: Annotated[int, "uint32", "us", "scan period"]
    exec_us: Annotated[int, "uint32", "us", "duration of the scan before"]
    late_in_row: Annotated[int, "uint16", "", "late scans in a row"]
    state: Annotated[int, "enum16", "", "CmfState"]
    mode: Annotated[int, "enum16", "", "commanded mode, CmdMode"]
    command_seq: Annotated[int, "uint32", "", "CmdSeq"]
    permit: Annotated[int, "enum16", "", "why closing is forbidden, AckWhy numbers; 0 = permitted"]
    status_bits: Annotated[int, "bitfield32", "", "StatusBits"]
    coils: Annotated[int, "bitfield16", "", "coils commanded: bits neg, pos, pre"]
    readback: Annotated[int, "bitfield16", "", "coil outputs as the board reads them back: bits neg, pos, pre"]
    feedback: Annotated[int, "bitfield16", "", "auxiliary contacts: bits neg, pos, pre"]
    interlocks: Annotated[int, "bitfield32", "", "Interlocks: interlocks, kill-switch, tamper, insulation, feedback"]
    guard_armed: Annotated[int, "uint16", "", "1 = the guard has safe-enable on"]
    guard_trip: Annotated[int, "enum16", "", "what dropped it last, GuardTrip"]
    pcs_run: Annotated[int, "uint16", "", "1 = the PCS is told to run"]
    setpoint_a: Annotated[float, "float32", "A", "DC current demanded of the PCS"]
    charge_limit_a: Annotated[float, "float32", "A", "charge limit in force"]
    discharge_limit_a: Annotated[float, "float32", "A", "discharge limit in force"]
    charge_reason: Annotated[int, "enum16", "", "what limits charging, LimReason"]
    discharge_reason: Annotated[int, "enum16", "", "what limits discharging, LimReason"]
    rack_v: Annotated[float, "float32", "V", "rack voltage by the BMS"]
    rack_a: Annotated[float, "float32", "A", "rack current by the BMS"]
    soc_pct: Annotated[float, "float32", "%", "state of charge"]
    insulation_kohm: Annotated[float, "float32", "kohm", "insulation to earth by the BMS"]
    cell_v_max: Annotated[float, "float32", "V", "highest cell"]
    cell_v_max_at: Annotated[int, "uint16", "", "its flat index, string-major, 0-based"]
    cell_v_min: Annotated[float, "float32", "V", "lowest cell"]
    cell_v_min_at: Annotated[int, "uint16", "", "its index"]
    cell_c_max: Annotated[float, "float32", "degC", "hottest cell"]
    cell_c_max_at: Annotated[int, "uint16", "", "its index"]
    cell_c_min: Annotated[float, "float32", "degC", "coldest cell"]
    cell_c_min_at: Annotated[int, "uint16", "", "its index"]
    bms_trip_bits: Annotated[int, "bitfield32", "", "BMS alarms, level 2: it trips by itself"]
    bms_stop_bits: Annotated[int, "bitfield32", "", "BMS alarms, level 1: it asks for a stop"]
    pcs_dc_v: Annotated[float, "float32", "V", "DC voltage by the PCS"]
    pcs_dc_a: Annotated[float, "float32", "A", "DC current by the PCS"]
    pcs_state: Annotated[int, "enum16", "", "0 off, 1 standby, 2 run, 3 fault"]
    pcs_fault_bits: Annotated[int, "bitfield32", "", "faults by the PCS"]
    dv_v: Annotated[float, "float32", "V", "PCS minus BMS voltage after calibration"]
    bms_age_ms: Annotated[float, "float32", "ms", "age of the BMS data"]
    pcs_age_ms: Annotated[float, "float32", "ms", "age of the PCS data"]
    command_age_ms: Annotated[float, "float32", "ms", "age of the command section"]
    guard_age_ms: Annotated[float, "float32", "ms", "age of the guard's word"]
    loops_age_ms: Annotated[float, "float32", "ms", "age of the loop currents"]
    loop_1_ma: Annotated[float, "float32", "mA", "thermal loop 1"]
    loop_2_ma: Annotated[float, "float32", "mA", "thermal loop 2"]
    loop_3_ma: Annotated[float, "float32", "mA", "thermal loop 3"]
    loop_4_ma: Annotated[float, "float32", "mA", "thermal loop 4"]
    loop_5_ma: Annotated[float, "float32", "mA", "thermal loop 5"]
    loop_6_ma: Annotated[float, "float32", "mA", "thermal loop 6"]
    loop_7_ma: Annotated[float, "float32", "mA", "thermal loop 7"]
    loop_8_ma: Annotated[float, "float32", "mA", "thermal loop 8"]
    faults_active: Annotated[int, "bitfield64", "", "faults whose cause is there; the catalogue's bits"]
    faults_latched: Annotated[int, "bitfield64", "", "faults latched"]


class Entry(NamedTuple):
    """What the directory tells of one freeze-frame."""

    number: Annotated[int, "uint32", "", "keeps rising; 0 = no more entries"]
    wall_ms: Annotated[int, "uint64", "ms", "UTC of the trip since 1970, as the clock had it"]
    first_faults: Annotated[int, "bitfield64", "", "the faults that latched first; the catalogue's bits"]
    first_fault: Annotated[int, "uint16", "", "bit number of the worst of them"]
    frames: Annotated[int, "uint16", "", "frames held"]
    trip_at: Annotated[int, "uint16", "", "which of them, 0-based, is the scan that latched"]
    period_us: Annotated[int, "uint32", "us", "scan period"]
    registers: Annotated[int, "uint16", "", "registers of one frame"]
    layout: Annotated[int, "uint32", "", "names and types of a frame's fields as a check number"]
    first_file: Annotated[int, "uint16", "", "Modbus file of the first frame"]
    files: Annotated[int, "uint16", "", "files that follow each other"]
    frames_per_file: Annotated[int, "uint16", "", "whole frames in each file but the last"]


FRAME, ENTRY = Codec(Frame), Codec(Entry)
FILE_REGISTERS = 10_000  # MODBUS Application Protocol V1.1b3, 6.14
FILES_EACH = 10
_NUMBERS = 6500
FRAMES_PER_FILE = FILE_REGISTERS // FRAME.registers
assert FRAME.registers <= 121, "one frame is one answer of FC20"


def _unknown(kind: type[T], **bits: int) -> T:
    blank = {name: NAN if hint is float else UNKNOWN_16 for name, hint in get_type_hints(kind).items()}
    return kind(**blank | bits)


_NO_BMS = _unknown(Bms, alarm_trip=UNKNOWN_32, alarm_stop=UNKNOWN_32)
_NO_PCS = _unknown(Pcs, fault_bits=UNKNOWN_32)
_NO_COMMAND = _unknown(Command, seq=UNKNOWN_32)
_NO_GUARD = _unknown(Guard)


def frame_of(status: Status, inputs: Inputs, monotonic_ns: int, wall_ns: int, exec_us: int) -> Frame:
    """The frame of the scan that ends now; `exec_us` is the duration of the scan before."""
    lines, s = inputs.lines, status
    bms, pcs = inputs.bms or _NO_BMS, inputs.pcs or _NO_PCS
    command, guard = inputs.command or _NO_COMMAND, inputs.guard or _NO_GUARD
    loop_1, loop_2, loop_3, loop_4, loop_5, loop_6, loop_7, loop_8 = lines.loops_ma
    return Frame(
        s.scan, monotonic_ns, wall_ns, s.period_us, exec_us, inputs.overruns_in_row, s.state, command.mode,
        command.seq, s.permit, s.status_bits, s.coils, lines.out_neg | lines.out_pos << 1 | lines.out_pre << 2,
        s.feedback, s.interlocks, guard.armed, guard.trip, s.pcs_run, s.setpoint_a, s.charge_limit_a,
        s.discharge_limit_a, s.charge_reason, s.discharge_reason, bms.rack_v, bms.rack_a, bms.soc_pct,
        bms.insulation_kohm, bms.cell_v_max, bms.cell_v_max_at, bms.cell_v_min, bms.cell_v_min_at, bms.cell_c_max,
        bms.cell_c_max_at, bms.cell_c_min, bms.cell_c_min_at, bms.alarm_trip, bms.alarm_stop, pcs.dc_v, pcs.dc_a,
        pcs.state, pcs.fault_bits, s.dv_v, inputs.bms_age_ms if inputs.bms else NAN,
        inputs.pcs_age_ms if inputs.pcs else NAN, inputs.command_age_ms if inputs.command else NAN,
        inputs.guard_age_ms if inputs.guard else NAN, lines.loops_age_ms, loop_1, loop_2, loop_3, loop_4, loop_5,
        loop_6, loop_7, loop_8, s.faults_active, s.faults_latched,
    )  # fmt: skip


def ring_writer(run: Path) -> RingWriter:
    """The controller's side. Raises SectionError when it already has a writer."""
    return RingWriter(run / RING_FILE, RING_SLOTS, FRAME.size)


def ring_reader(run: Path) -> RingReader:
    return RingReader(run / RING_FILE, RING_SLOTS, FRAME.size)


class Stored(NamedTuple):
    """One freeze-frame. `frames` are the packed frames one after the other, coded by `entry.layout`."""

    entry: Entry
    frames: bytes


class Damaged(OSError):
    """A freeze-frame file is not what was written."""


def first_file(number: int) -> int:
    """Freeze-frame 7 has the Modbus files 70 to 79; 6501 begins again at 10."""
    return FILES_EACH * (1 + (number - 1) % _NUMBERS)


def kept(directory: Path) -> dict[int, Path]:
    """Number -> file of the freeze-frames, oldest first. A directory that is missing has none. Raises OSError."""
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix == _SUFFIX and stem.isdecimal():
                found[int(stem)] = Path(entry.path)
    return dict(sorted(found.items()))


def load(path: Path) -> Stored:
    """Raises OSError, Damaged when the file is not whole."""
    data = path.read_bytes()
    start = len(_MAGIC) + ENTRY.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:]):
        raise Damaged(f"{path} is damaged; it can be deleted")
    stored = Stored(ENTRY.unpack(data[len(_MAGIC) : start]), data[start:-4])
    if len(stored.frames) != 2 * stored.entry.registers * stored.entry.frames:
        raise Damaged(f"{path} is damaged; it can be deleted")
    return stored


def store(directory: Path, stored: Stored) -> None:
    """Writes a freeze-frame so that a power cut leaves it whole or not at all, and drops the oldest. Raises OSError."""
    made_directory(directory)
    data = _MAGIC + ENTRY.pack(stored.entry) + stored.frames
    new = directory / "new"
    _write(new, data + zlib.crc32(data).to_bytes(4))
    os.replace(new, directory / f"{stored.entry.number:06d}{_SUFFIX}")
    for path in list(kept(directory).values())[:-KEPT]:
        path.unlink()
    sync_directory(directory)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(0, "disk full, only a part was written", str(path))
        os.fsync(fd)
    finally:
        os.close(fd)


class _Trip(NamedTuple):
    at_ns: int
    end_ns: int
    faults: int  # latched first
    wall_ns: int
    period_us: int


def _worst(bits: int) -> int:
    return next(fault.bit for fault in PRIORITY if bits >> fault.bit & 1)


class Recorder:
    """First-fault capture: `poll` often enough that the ring (1024 scans) never runs away.

    A trip is a fault of severity STOP or above that latches anew; what else latches before the window ends belongs to
    it. When the disk fails a capture waits in memory and is tried again: `error` says why, `failures` counts the tries,
    `lost` the captures that had to go.
    """

    def __init__(self, run: Path, state_dir: Path) -> None:
        self._ring = ring_reader(run)
        self._directory = state_dir / DIRECTORY
        self._frames: deque[tuple[int, bytes]] = deque()
        self._latched: int | None = None
        self._trip: _Trip | None = None
        self._waiting: deque[tuple[_Trip, list[bytes], int]] = deque()
        self._retry_ns = 0
        self._number = 0  # of the capture that is being written; kept when that fails half-way
        self.error = ""
        self.failures = self.lost = 0
        self._known = self._written_before()

    def poll(self, now_ns: int | None = None) -> None:
        """Takes the scans since the last call; never raises over a disk."""
        now_ns = now_ns or time.monotonic_ns()
        for _, payload in self._ring.new():
            self._take(payload)
        if self._frames:
            self._known.clear()
        if self._trip is not None and now_ns > self._trip.end_ns + _LATE_NS:
            self._close(self._trip)
        if self._waiting and now_ns >= self._retry_ns:
            self._write(now_ns)

    def _take(self, payload: bytes) -> None:
        frame = FRAME.unpack(payload)
        if self._trip is not None and frame.monotonic_ns > self._trip.end_ns:
            self._close(self._trip)
        self._frames.append((frame.monotonic_ns, payload))
        before = frame.faults_latched if self._latched is None else self._latched
        self._latched = frame.faults_latched
        if self._trip is not None:
            return
        half_ns = frame.period_us * 500  # frames come once a period, with jitter
        while self._frames[0][0] < frame.monotonic_ns - BEFORE_NS - half_ns:
            self._frames.popleft()
        faults = frame.faults_latched & ~before & SEVERE_MASK
        if faults and payload not in self._known:
            end_ns = frame.monotonic_ns + AFTER_NS + half_ns
            self._trip = _Trip(frame.monotonic_ns, end_ns, faults, frame.wall_ns, frame.period_us)

    def _close(self, trip: _Trip) -> None:
        self._trip = None
        if len(self._waiting) == KEPT:
            self._waiting.popleft()
            self.lost += 1
        frames = [payload for _, payload in self._frames]
        before = sum(at_ns < trip.at_ns for at_ns, _ in self._frames)
        self._waiting.append((trip, frames, before))

    def _write(self, now_ns: int) -> None:
        try:
            while self._waiting:
                self._number = self._number or max(kept(self._directory), default=0) + 1
                store(self._directory, _stored(self._number, *self._waiting[0]))
                self._waiting.popleft()
                self._number = 0
            self.error = ""
        except OSError as error:
            self.failures += 1
            self._retry_ns = now_ns + _RETRY_NS
            self.error = f"{error.filename or self._directory}: {error.strerror or error}"

    def _written_before(self) -> set[bytes]:
        """The frames that a predecessor has written: a historian that restarts finds them in the ring again."""
        known = set[bytes]()
        with contextlib.suppress(OSError):
            for path in kept(self._directory).values():
                with contextlib.suppress(Damaged):
                    known |= set(_split(load(path)))
        return known


def _split(stored: Stored) -> Iterable[bytes]:
    size = 2 * stored.entry.registers
    return (stored.frames[at : at + size] for at in range(0, len(stored.frames), size))


def _stored(number: int, trip: _Trip, frames: list[bytes], before: int) -> Stored:
    frames = frames[: FILES_EACH * FRAMES_PER_FILE]
    files = -(-len(frames) // FRAMES_PER_FILE)
    entry = Entry(
        number, trip.wall_ns // 1_000_000, trip.faults, _worst(trip.faults), len(frames), before, trip.period_us,
        FRAME.registers, FRAME.layout, first_file(number), files, FRAMES_PER_FILE,
    )  # fmt: skip
    return Stored(entry, b"".join(frames))
