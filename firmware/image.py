"""The process image: which process writes which sections, and how each section is packed.

One file a writer in the run directory (`/run/ems` on the appliance, tmpfs). Control words are native structs; what the
outside world reads (cells) is kept in wire format, big-endian registers, and never decoded on its way through.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Generic, NamedTuple, TypeVar, get_type_hints

from drivers.loops import LAYOUT as SAMPLER_LAYOUT
from drivers.section import SectionFile, SectionReader, SectionWriter
from statemachine.signals import Bms, Clock, Command, Grid, Guard, Pcs, Store, Updater

T = TypeVar("T", bound=tuple)  # type: ignore[type-arg]

EVENT_SLOTS = 32
_EVENT = struct.Struct("=QQQHHii88s")  # sequence, monotonic ns, wall ns, kind, reserve, a, b, text

LAYOUT: dict[str, dict[str, int]] = {
    "aggregator": {
        "bms": 512, "pcs": 256, "cells": 61_440, "strings": 1024, "links": 512, "events": EVENT_SLOTS * _EVENT.size,
    },
    "controller": {"status": 1024, "control": 128, "events": EVENT_SLOTS * _EVENT.size},
    "guard": {"guard": 128, "events": EVENT_SLOTS * _EVENT.size},
    "historian": {"store": 128},
    "clock": {"clock": 128, "events": EVENT_SLOTS * _EVENT.size},
    "sampler": SAMPLER_LAYOUT,
    "updater": {"hold": 64, "update": 128, "events": EVENT_SLOTS * _EVENT.size},
    "server": {
        "command": 256, "grid": 512, "fence": 64, "config": 16_384, "events": EVENT_SLOTS * _EVENT.size,
    },
}  # fmt: skip
"""Writer -> section -> capacity in bytes."""


class Control(NamedTuple):
    """Controller -> aggregator and guard, once a scan. The publish stamp is the controller's heartbeat."""

    scan: int
    setpoint_a: float  # + is discharge
    pcs_run: bool
    closed: bool  # both mains confirmed closed
    charge_limit_a: float
    discharge_limit_a: float
    period_ms: int
    trip: bool  # a cause for a category 0 stop stands: the guard drops safe-enable as well


class Status(NamedTuple):
    """Controller -> everybody, once a scan: the outputs and the scan's own statistics."""

    started_ns: int  # CLOCK_MONOTONIC of the controller's start: tells a restart
    scan: int
    state: int
    coils: int  # bits neg, pos, pre
    feedback: int  # bits neg, pos, pre
    setpoint_a: float
    pcs_run: bool
    charge_limit_a: float
    discharge_limit_a: float
    charge_reason: int
    discharge_reason: int
    available_charge_a: float
    available_discharge_a: float
    demand_w: float
    faults_active: int
    faults_latched: int
    led_codes: int  # five bytes RUN (lowest), CHARGE, COMM, FAULT, KILL
    led_levels: int  # five bits, same order
    ack_seq: int
    ack_result: int
    ack_why: int
    permit: int
    status_bits: int
    wset_active_w: float
    wset_remaining_s: float
    wset_reverted: int
    service_delay_s: float
    limit_remaining_s: float
    limit_reverted: int
    droop_remaining_s: float
    droop_reverted: int
    dv_v: float
    precharge_tries: int
    interlocks: int
    settings_revision: int
    overruns: int  # scan periods missed since start
    late_scans: int
    wake_p50_us: int
    wake_p99_us: int
    wake_max_us: int
    exec_p50_us: int
    exec_p99_us: int
    exec_max_us: int
    period_us: int
    stopped: bool  # an orderly stop was made; a successor starts without a fault
    cycles: int  # statemachine.wear.Wear as it stands; the historian saves it
    opened_under_load: int
    closed_under_load: int
    precharges: int
    closing_level: float
    precharge_level: float


class StringValues(NamedTuple):
    """Aggregator -> server: one string in a complete poll. The section holds all of them, one behind the other."""

    v: float
    a: float  # + is discharge
    soc_pct: float
    soh_pct: float
    online: bool  # it allows charge or discharge
    alarm_trip: int  # as Bms.alarm_trip
    alarm_stop: int
    alarm_warn: int


class Links(NamedTuple):
    """Aggregator -> everybody: counters of the two links since start."""

    bms_polls: int
    bms_timeouts: int
    bms_wrong_unit: int
    bms_wrong_length: int
    bms_exceptions: int
    bms_garbage: int
    bms_crc: int  # RTU answers with a wrong CRC
    bms_connects: int
    bms_poll_us: int  # duration of the last complete poll
    bms_up: bool
    pcs_polls: int
    pcs_timeouts: int
    pcs_wrong_unit: int
    pcs_wrong_length: int
    pcs_exceptions: int
    pcs_garbage: int
    pcs_crc: int
    pcs_connects: int
    pcs_poll_us: int
    pcs_up: bool


class Update(NamedTuple):
    """Update agent -> server: what the registers say of updates."""

    state: int  # UpdateState
    progress_pct: int  # of the step that runs
    result: int  # UpdateResult of the last update
    detail: int  # exit code of rauc, HTTP status or errno that came with it; 0 = none
    slot: int  # the booted one: 1 A, 2 B; 0 = not known
    tries: int  # left to the booted slot before the bootloader takes the other; -1 = not known
    done_mb: int
    total_mb: int
    running: bytes  # version that runs, at most 16 bytes
    offered: bytes  # version of the last bundle that was looked at


_CODES: dict[type, str] = {int: "q", float: "d", bool: "?", bytes: "16s"}


class Codec(Generic[T]):
    """Packs a NamedTuple of int, float, bool and 16 bytes into a native struct, and back."""

    def __init__(self, kind: type[T]) -> None:
        hints = get_type_hints(kind)
        assert set(hints.values()) <= set(_CODES), kind
        self._struct = struct.Struct("=" + "".join(_CODES[hint] for hint in hints.values()))
        self._kind = kind
        self.pack = self._struct.pack
        self.size = self._struct.size

    def unpack(self, payload: bytes) -> T:
        """Raises struct.error when the payload is not of this kind."""
        made: T = self._kind._make(self._struct.unpack(payload))  # type: ignore[attr-defined]
        return made


BMS, PCS, COMMAND, GUARD = Codec(Bms), Codec(Pcs), Codec(Command), Codec(Guard)
CONTROL, STATUS, LINKS, STORE, CLOCK = Codec(Control), Codec(Status), Codec(Links), Codec(Store), Codec(Clock)
STRING, GRID = Codec(StringValues), Codec(Grid)
HOLD, UPDATE = Codec(Updater), Codec(Update)


def run_directory() -> Path:
    """Where the section files are: $EMS_RUN_DIR, else /run/ems."""
    return Path(os.environ.get("EMS_RUN_DIR", "/run/ems"))


def state_directory() -> Path:
    """Where that is kept what survives a power cycle: $EMS_STATE_DIR, else /var/lib/ems."""
    return Path(os.environ.get("EMS_STATE_DIR", "/var/lib/ems"))


def writer(process: str, directory: Path | None = None) -> SectionFile:
    """The writer's side of `process`'s file. Raises SectionError when it already has a writer."""
    directory = directory or run_directory()
    directory.mkdir(parents=True, exist_ok=True)
    return SectionFile(directory / f"{process}.img", LAYOUT[process])


def reader(process: str, section: str, directory: Path | None = None) -> SectionReader:
    """A reader of one section; it waits in peace for a writer that is not there yet."""
    return SectionReader((directory or run_directory()) / f"{process}.img", LAYOUT[process], section)


class View(Generic[T]):
    """A section seen as its NamedTuple, with its age."""

    def __init__(self, codec: Codec[T], process: str, section: str, directory: Path | None = None) -> None:
        self._codec, self._reader = codec, reader(process, section, directory)
        self._sequence, self._stamp_ns = 0, 0
        self.value: T | None = None

    def refresh(self) -> T | None:
        """The newest value (None before the first); decoded only when it changed."""
        snapshot = self._reader.read()
        if snapshot is not None and snapshot.sequence != self._sequence:
            self.value = self._codec.unpack(snapshot.payload)
            self._sequence, self._stamp_ns = snapshot.sequence, snapshot.stamp_ns
        return self.value

    @property
    def counter(self) -> Sequence[int]:
        """Of publishes, in its only element."""
        return self._reader.counter

    def age_ms(self, now_ns: int | None = None) -> float:
        """Since the publish of `value`; infinite before the first."""
        if self.value is None:
            return float("inf")
        return ((now_ns or monotonic_ns()) - self._stamp_ns) / 1e6


class Event(NamedTuple):
    """One line of history. `kind`, `a`, `b` are statemachine.signals.EventKind and its numbers; kind 0 = only text."""

    sequence: int
    monotonic_ns: int
    wall_ns: int
    kind: int
    a: int
    b: int
    text: str


class EventLog:
    """A process's last 32 events, in its own section; the historian collects them."""

    def __init__(self, section: SectionWriter) -> None:
        self._section = section
        self._slots: list[bytes] = []
        left = section.last() or b""
        for at in range(0, len(left), _EVENT.size):
            self._slots.append(left[at : at + _EVENT.size])
        self._sequence: int = _EVENT.unpack(self._slots[-1])[0] if self._slots else 0

    def add(self, kind: int, a: int = 0, b: int = 0, text: str = "") -> None:
        """Appends one event, stamped now. A wall clock before 1970 counts as 1970: no clock may end a scan."""
        self._sequence += 1
        packed = _EVENT.pack(self._sequence, monotonic_ns(), max(0, time_ns()), kind, 0, a, b, text.encode()[:88])
        self._slots = [*self._slots[-EVENT_SLOTS + 1 :], packed]
        self._section.publish(b"".join(self._slots))


class EventReader:
    """Follows one process's events; tells how many were lost if it fell behind."""

    def __init__(self, process: str, directory: Path | None = None) -> None:
        self._reader = reader(process, "events", directory)
        self._publishes = 0
        self._sequence = 0
        self.lost = 0

    def new(self) -> Iterator[Event]:
        """Events since the last call, oldest first."""
        snapshot = self._reader.read()
        if snapshot is None or snapshot.sequence == self._publishes:
            return
        self._publishes = snapshot.sequence
        for at in range(0, len(snapshot.payload), _EVENT.size):
            sequence, mono, wall, kind, _, a, b, text = _EVENT.unpack_from(snapshot.payload, at)
            if sequence <= self._sequence:
                continue
            self.lost += sequence - self._sequence - 1
            self._sequence = sequence
            yield Event(sequence, mono, wall, kind, a, b, text.rstrip(b"\0").decode(errors="replace"))
