"""The device behind the Modbus socket: answers reads from the process image, takes commands.

A write is applied whole or refused whole: exception 02 for what cannot be written, 03 for a value that is not allowed,
04 for a command that the state, the key switch or the fence of redundant masters forbids; AckWhy and RefAddr say why
and where. The commands live in the register image itself, so a read-back is what was written. After a boot the mode is
off; a server that only restarts resumes.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from math import nan
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

from drivers.modbus.session import ModbusError
from drivers.section import SectionFile
from statemachine import grid
from statemachine.commands import refusal
from statemachine.settings import Settings
from statemachine.signals import Command, InterlockBit, LossPolicy, Mode, Result, StatusBit, Why
from statemachine.states import State
from statemachine.wishes import VOIDING

from . import grid_functions, registers
from .authority import LOCAL, Authority, Network, WriteRate, admitted
from .commissioning import RECORD_FILE, Commissioning
from .config import Site
from .fence import FENCE, Fence, FenceStore, left_over
from .freeze_files import FreezeFiles
from .grid_functions import GridFunctions
from .image import (
    BMS,
    CLOCK,
    COMMAND,
    GUARD,
    LINKS,
    PCS,
    STATUS,
    UPDATE,
    EventLog,
    View,
    run_directory,
    state_directory,
)
from .models.commissioning import COMMISSIONING, COMMISSIONING_END, COMMISSIONING_FIRST, CommCommand
from .models.update import update_model
from .published import Published
from .registers import BANK_FIRST, BASE, POINT, WSET_GROUP, Own, Row, Sources
from .string_units import Sizes, StringUnits
from .sunspec import WSetMode
from .writes import Refused, check_value, commanded_mode, covered, mirror_mode

UNIT = 1
STALE_MS = {
    "status": 500.0, "bms": 3000.0, "pcs": 3000.0, "links": 5000.0, "guard": 1000.0, "clock": 10_000.0,
    "update": 10_000.0,
}  # fmt: skip
"""A section older than this reads "not implemented"; without a fresh status no command is taken."""
FRESH_NS = 5_000_000
"""How often a read looks at the whole process image; a new scan of the controller is seen by the next read."""
PRODUCT = "EMS-1"

_BANK_AT, _END_BYTES = 2 * (BANK_FIRST - BASE), 4
_HEARTBEATS = ("CtrlHb", "ControllerHb", "802.CtrlHb")
_ACKS = ("AckFaults", "AlarmReset", "AlmRst")
_MODES = ("CmdMode", "OpCtl", "SetOp")
_COMMAND = frozenset((*_MODES, "CmdSeq", "CmdW", "CmdRamp", "CmdTgtSoC"))
_FRAME = frozenset(("CmdSeq", "Epoch", "ValidMs"))
"""What a frame of redundant masters has in one write, whatever else is in it."""
_SETPOINTS = frozenset(("CmdW", "CmdRamp", "CmdTgtSoC", *WSET_GROUP))
_NOT_IN_LOCAL = _SETPOINTS | grid_functions.POINTS
_SEQUENCES = 0xFFFFFFFF
_BEATING_NS = 1_000_000_000
"""A heartbeat that changed within it is not lost, whatever a status of before says; below the shortest HbTmo."""
_UPDATE = update_model(0)


class Counters(NamedTuple):
    """What a write adds to."""

    acks: int
    wset_version: int
    armed: bool
    epoch: int = 0  # of the frame that gave the command in force, 0 = it came without
    beaten_ns: int = -_BEATING_NS  # when the site controller's heartbeat changed last


class Appliance:
    """The device behind the socket. Used from one event loop; reads and writes are each one uninterrupted step."""

    def __init__(self, file: SectionFile, directory: Path | None = None, state: Path | None = None) -> None:
        """`directory` of the process image, `state` of what survives a boot; None = as the environment says."""
        state = state or state_directory()
        self._section, self._fence_section, self.events = file["command"], file["fence"], EventLog(file["events"])
        self._authority, self._rate = Authority(), WriteRate()
        self._allowed: tuple[Network, ...] = ()
        self._views: dict[str, View[Any]] = {
            "status": View(STATUS, "controller", "status", directory),
            "bms": View(BMS, "aggregator", "bms", directory),
            "pcs": View(PCS, "aggregator", "pcs", directory),
            "links": View(LINKS, "aggregator", "links", directory),
            "guard": View(GUARD, "guard", "guard", directory),
            "clock": View(CLOCK, "clock", "clock", directory),
            "update": View(UPDATE, "updater", "update", directory),
        }
        self._status = self._views["status"]
        self._files = FreezeFiles(state, directory or run_directory())
        self._strings = StringUnits(directory)
        self._image, self._bank_renewed = registers.image(), False
        self._sources = Sources(None, None, None, None, None, None, None, Own(0, 0, 0, 0))
        self._published = Published()
        self._grid = GridFunctions(self._image, file["grid"])
        self._beat_ns, self._look_ns, self._version, self._outdated = monotonic_ns(), 0, 0, True
        self._watched, self._scans, self._polls = (self._status.counter, self._strings.counter), 0, 0
        self.tls_days: Callable[[], float] = lambda: nan
        self.commissioning = Commissioning(state, lambda text: self.events.add(0, text=text))
        self.commissioned: Callable[[], None] = lambda: None  # called when a commissioning was recorded
        self._resumed = False
        self._counters = self._resume()
        self._fence_store, self._unsaved, self._master = FenceStore(state), False, ""
        self._fence = self._resume_fence()
        registers.put(self._image, "Epoch", self._fence.epoch if self._fence.fenced else 0)
        self._reverted = 0
        self._config_error = self._require_heartbeat = False
        self._void_seq = -1  # CmdSeq of a command that the controller does not follow any more
        self._defaults: tuple[float, int] | None = None
        self._update(own=Own(0, 0, 0, 0))
        registers.put(self._image, "Vr", version("ems-edge"))
        registers.put(self._image, "SN", platform.node())

    def _resume(self) -> Counters:
        """The command goes on as a predecessor left it: a server that died must not stop the rack.

        The process image is in memory, so after a boot there is none and the mode is off. If we were away for long the
        controller has taken the command out of force itself.
        """
        try:
            last = COMMAND.unpack(self._section.last() or b"")
        except struct.error:
            return Counters(0, 1, False)
        for name, value in (
            ("CmdSeq", last.seq), ("CmdW", last.w), ("CmdRamp", last.c_rate), ("CmdTgtSoC", last.target_soc_pct),
            ("HbTmo", last.heartbeat_timeout_s), ("LossPol", last.loss_policy), ("WSetMod", WSetMode.WATTS),
            ("WSetEna", last.wset_enabled), ("WSet", last.wset_w), ("WSetRvrt", last.wset_revert_w),
            ("WSetEnaRvrt", last.wset_revert_enabled), ("WSetRvrtTms", last.wset_revert_s), ("ValidMs", last.valid_ms),
        ):  # fmt: skip
            registers.put(self._image, name, value)
        mirror_mode(self._image, Mode(last.mode))
        self._mirror_heartbeat(self._image, last.heartbeat)
        self._resumed = True
        return Counters(last.ack_count, last.wset_version, last.heartbeat_armed, last.epoch)

    def _resume_fence(self) -> Fence:
        saved, damaged = self._fence_store.load()
        if damaged:
            self.events.add(0, text="FENCE saved Epoch is damaged: commands need one, the first one seen counts")
        return max(saved, left_over(self._fence_section.last()) or saved)

    def configure(self, settings: Settings | None, site: Site | None, error: bool) -> None:
        """Takes a configuration into use (None: keep the one in force). Heartbeat rules follow it when it changes."""
        self._config_error = error
        if settings is not None:
            self._update(settings=settings)
            self._grid.configure(grid.default(settings))
        if site is not None:
            self._strings.configure(Sizes.of(site))
            self._renew_bank()
            self._allowed = site.allowed_clients
            self._require_heartbeat = site.require_heartbeat
            self._counters = self._counters._replace(armed=self._counters.armed or site.require_heartbeat)
            defaults = (site.heartbeat_timeout, int(LossPolicy[site.loss_policy.upper()]))
            before, self._defaults = self._defaults, defaults
            if before != defaults and not (before is None and self._resumed):
                registers.put(self._image, "HbTmo", defaults[0])
                registers.put(self._image, "LossPol", defaults[1])
        self.publish()

    def serves(self, unit: int) -> bool:
        return unit == UNIT or self._strings.serves(unit)

    def identity(self, unit: int) -> Mapping[int, bytes]:
        release = version("ems-edge").encode()
        own = {0: b"ems-edge", 1: PRODUCT.encode(), 2: release, 4: b"EMS battery storage edge appliance", 5: b"EMS-1"}
        return own if unit == UNIT else self._strings.identity(unit, own)

    def version(self) -> int:
        """Another number when a read may be answered otherwise than before."""
        scans, polls = self._watched
        if scans[0] != self._scans or polls[0] != self._polls or monotonic_ns() > self._look_ns:
            self._outdate()
        return self._version

    def read(self, unit: int, address: int, count: int) -> bytes:
        self.version()
        if self._outdated:
            self._refresh()
        if unit != UNIT:
            return self._strings.read(unit, address, count, self._sources.status)
        if address >= COMMISSIONING_FIRST:
            return self._read_commissioning(address, count)
        first, end = 2 * (address - BASE), 2 * (address - BASE + count)
        if first < 0 or end > len(self._image):
            raise ModbusError(2)
        if end > _BANK_AT and not self._bank_renewed:
            self._renew_bank()
        self._published.encode(self._image, self._sources, first, end)
        return bytes(self._image[first:end])

    def _renew_bank(self) -> None:
        """Model 803, which is longer or shorter with the number of strings, and what is behind it."""
        bank = self._strings.bank(self._sources.status)
        update = (row.point.encode(row.value(self._sources) if row.value else row.fixed) for row in _UPDATE)
        self._image[_BANK_AT:] = b"".join((bank[:-_END_BYTES], *update, bank[-_END_BYTES:]))
        self._bank_renewed = True

    def _read_commissioning(self, address: int, count: int) -> bytes:
        if address + count > COMMISSIONING_END:
            raise ModbusError(2)
        status, own = self._sources.status, self._sources.own._replace(comm_state=self.commissioning.state)
        if status is not None:
            missing = self.commissioning.missing(status, self._interlocks_required())
            own = own._replace(comm_seen=self.commissioning.both(), comm_missing=missing)
        sources = self._sources._replace(own=own)
        block = b"".join(row.point.encode(row.value(sources) if row.value else row.fixed) for row in COMMISSIONING)
        first = 2 * (address - COMMISSIONING_FIRST)
        return block[first : first + 2 * count]

    def _interlocks_required(self) -> int:
        """All of them while no configuration is there."""
        return self._sources.settings.interlocks_required if self._sources.settings else 0xFF

    def read_file(self, unit: int, file: int, record: int, count: int) -> bytes:
        """Freeze-frames, see freeze_files, and the commissioning record."""
        if unit != UNIT:
            raise ModbusError(2)
        try:
            if file == RECORD_FILE:
                return self.commissioning.read(record, count)
            return self._files.read(file, record, count)
        except LookupError as error:
            raise ModbusError(2) from error
        except OSError as error:
            raise ModbusError(4) from error

    def admits(self, host: str) -> bool:
        """Whether an address may connect; the unit itself may, for the self-test after an update."""
        return host == LOCAL or admitted(host, self._allowed)

    def commands(self, host: str) -> bool:
        """Whether this address holds the lease: it always finds a place."""
        return self._authority.holder(monotonic_ns()) == host

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        if unit != UNIT:
            raise ModbusError(2)
        self._refresh(("status",))  # a write hangs on no other, and the next scan does not wait
        host = peer.rpartition(":")[0]
        try:
            if not self._rate.allows(host, monotonic_ns()):
                raise Refused(6, Why.TOO_MANY_WRITES, address)
            self._take(address, data, host)
        except Refused as refused:
            self._update(own=self._sources.own._replace(why=int(refused.why), address=refused.address))
            raise

    def tick(self) -> None:
        """Twenty times a second: the appliance's heartbeat, a reversion, and a sign of life to the controller."""
        self._refresh()
        now_ns = monotonic_ns()
        if now_ns - self._beat_ns >= 1_000_000_000:
            self._beat_ns += (now_ns - self._beat_ns) // 1_000_000_000 * 1_000_000_000
            if self._sources.status is not None:
                own = self._sources.own
                beat, days = (own.beat + 1) % _SEQUENCES, self.tls_days()
                self._update(own=own._replace(beat=beat, freeze_frames=self._files.count, tls_days=days))
        self.publish()

    def publish(self) -> None:
        """The command and the grid functions as they stand, to the controller."""
        self._version += 1
        self._section.publish(COMMAND.pack(*self.command()))
        self._grid.publish()

    def command(self) -> Command:
        """The command that the registers spell."""

        def value(name: str) -> float:
            return registers.get(self._image, name)

        counters = self._counters
        return Command(
            seq=int(value("CmdSeq")),
            mode=int(value("CmdMode")),
            w=value("CmdW"),
            c_rate=value("CmdRamp"),
            target_soc_pct=value("CmdTgtSoC"),
            heartbeat=int(value("ControllerHb")),
            heartbeat_armed=counters.armed,
            heartbeat_timeout_s=value("HbTmo"),
            loss_policy=int(value("LossPol")),
            ack_count=counters.acks,
            wset_version=counters.wset_version,
            wset_enabled=bool(value("WSetEna")),
            wset_w=self._set_point_w("WSet", "WSetPct"),
            wset_revert_w=self._set_point_w("WSetRvrt", "WSetPctRvrt"),
            wset_revert_enabled=bool(value("WSetEnaRvrt")),
            wset_revert_s=value("WSetRvrtTms"),
            config_error=self._config_error,
            epoch=counters.epoch,
            valid_ms=int(value("ValidMs")) if counters.epoch else 0,
        )

    def _set_point_w(self, watts: str, percent: str) -> float:
        settings = self._sources.settings
        if registers.get(self._image, "WSetMod") == WSetMode.WATTS or settings is None:
            return registers.get(self._image, watts)
        share = registers.get(self._image, percent) / 100
        return share * (registers.rated_discharge_w if share > 0 else registers.rated_charge_w)(settings)

    def _update(self, **changed: Any) -> None:
        """What follows from it in the registers is encoded when it is read."""
        self._sources = self._sources._replace(**changed)
        self._published.changed(changed)

    def _outdate(self) -> None:
        """The next read looks at the whole process image."""
        self._outdated = True
        self._look_ns = monotonic_ns() + FRESH_NS
        self._version += 1
        self._watched = scans, polls = self._status.counter, self._strings.counter
        self._scans, self._polls = scans[0], polls[0]

    def _refresh(self, names: Iterable[str] | None = None) -> None:
        """Takes these sections, by default all, where they were published or went stale since the last time."""
        if names is None:
            self._outdated = self._bank_renewed = False
        now_ns = monotonic_ns()
        for name in names or self._views:
            view = self._views[name]
            value = view.refresh()
            if value is not None and view.age_ms(now_ns) > STALE_MS[name]:
                value = None
            if value is not getattr(self._sources, name):
                self._update(**{name: value})
        self.commissioning.look(self._sources.status, now_ns)
        self._follow_reversion()
        if self._grid.follow(self._sources.status):
            self.publish()
        self._follow_void()

    def _follow_reversion(self) -> None:
        status, current = self._sources.status, self._counters.wset_version
        if status is None or status.wset_reverted != current or self._reverted == current:
            return
        self._reverted = current
        for name, source in (("WSetEna", "WSetEnaRvrt"), ("WSet", "WSetRvrt"), ("WSetPct", "WSetPctRvrt")):
            registers.put(self._image, name, registers.get(self._image, source))
        self.publish()

    def _follow_void(self) -> None:
        status = self._sources.status
        if status is None:
            return
        lost = self._lost(self._counters) and registers.get(self._image, "LossPol") != LossPolicy.HOLD
        if lost or status.state in VOIDING or status.ack_result == Result.REJECTED:
            self._void_seq = status.ack_seq

    def _lost(self, counters: Counters) -> bool:
        """The site controller's heartbeat is missing."""
        status = self._sources.status
        if status is None or not counters.armed or monotonic_ns() - counters.beaten_ns < _BEATING_NS:
            return False
        return bool(status.status_bits >> StatusBit.HEARTBEAT_LOST & 1)

    def _take(self, address: int, data: bytes, host: str) -> None:
        rows = covered(address, len(data) // 2)
        for row in rows:
            at = 2 * (row.point.address - address)
            check_value(row, data[at : at + 2 * row.point.count])
        if address >= COMMISSIONING_FIRST:
            self._commission(int.from_bytes(data, "big"), address, host)
            return
        image = bytearray(self._image)
        start = 2 * (address - BASE)
        image[start : start + len(data)] = data
        touched = {row.point.name for row in rows}
        fence = self._fence_after(image, touched, address)
        framed = fence.fenced and fence != self._fence
        leads = framed and (fence.epoch > self._fence.epoch or host == self._master)
        authorised = leads or self._authority.allows(host, monotonic_ns())
        if not authorised and not self._stops(image, touched):
            raise Refused(4, Why.NOT_IN_AUTHORITY, address)
        counters = self._apply(image, touched, rows)
        self._keep(fence, host)
        self._master = host if framed else self._master
        self._image[:] = image
        self._counters = counters
        self._grid.took(touched)
        if authorised:
            self._lease(host)
        if self._sources.own.why and touched - set(_HEARTBEATS):
            self._update(own=self._sources.own._replace(why=0, address=0))
        self.publish()

    def _commission(self, command: int, address: int, host: str) -> None:
        """CmdComm, the only point of its block that can be written. Raises Refused (04)."""
        if not self._authority.allows(host, monotonic_ns()):
            raise Refused(4, Why.NOT_IN_AUTHORITY, address)
        if command == CommCommand.RECORD:
            settings = None if self._config_error else self._sources.settings
            required = settings.interlocks_required if settings else None
            if why := self.commissioning.take(self._sources.status, required):
                raise Refused(4, why, address)
            self.commissioned()
        self._lease(host)
        self._update(own=self._sources.own._replace(why=0, address=0))

    def _lease(self, host: str) -> None:
        """A write was taken."""
        if self._authority.took(host, monotonic_ns(), registers.get(self._image, "HbTmo")):
            self.events.add(0, text=f"AUTHORITY {host} commands")

    def _fence_after(self, image: bytearray, touched: set[str], address: int) -> Fence:
        """The fence as the write leaves it. Raises Refused (03 or 04)."""
        if touched.isdisjoint(("Epoch", "ValidMs")):
            commands = not touched.isdisjoint(_COMMAND | _SETPOINTS)
            if commands and self._fence.fenced and not self._stops(image, touched):
                raise Refused(4, Why.EPOCH_REQUIRED, address)
            return self._fence
        if not touched >= _FRAME:
            raise Refused(3, Why.INCOMPLETE_FRAME, address)
        epoch, seq, valid_ms = (int(registers.get(image, name)) for name in ("Epoch", "CmdSeq", "ValidMs"))
        if valid_ms and not epoch:
            raise Refused(3, Why.OUT_OF_RANGE, POINT["ValidMs"].address)
        status = self._sources.status
        if why := self._fence.refusal(epoch, seq, State.INIT if status is None else status.state):
            raise Refused(4, why, POINT["Epoch"].address)
        return self._fence.after(epoch, seq)

    def _keep(self, fence: Fence, host: str) -> None:
        """An Epoch is on the disk before its first frame counts. Raises Refused (04)."""
        before = self._fence
        if (fence.epoch, fence.fenced) != (before.epoch, before.fenced):
            try:
                self._fence_store.save(fence)
            except OSError as error:
                if not self._unsaved:
                    self.events.add(0, text=f"FENCE epoch {fence.epoch} refused, not saved: {error.strerror}")
                self._unsaved = True
                raise Refused(4, Why.EPOCH_NOT_SAVED, POINT["Epoch"].address) from error
            self._unsaved = False
            self.events.add(
                0, text=f"FENCE epoch {fence.epoch} by {host}" if fence.fenced else f"FENCE ended by {host}"
            )
        if fence != before:
            self._fence = fence
            self._fence_section.publish(FENCE.pack(*fence))

    def _stops(self, image: bytearray, touched: set[str]) -> bool:
        """The write commands mode OFF and nothing else."""
        before = Mode(int(registers.get(self._image, "CmdMode")))
        modes = touched.intersection(_MODES)
        return bool(modes) and touched <= _COMMAND and commanded_mode(image, touched, before) is Mode.OFF

    def _apply(self, image: bytearray, touched: set[str], rows: list[Row]) -> Counters:
        """Everything that follows from the written values, on a copy. Raises Refused (04)."""
        counters = self._counters
        if self._local() and touched.isdisjoint((*_MODES, "CmdSeq")) and not touched.isdisjoint(_NOT_IN_LOCAL):
            raise Refused(4, Why.LOCAL_CONTROL, rows[0].point.address)
        for name in touched.intersection(_HEARTBEATS):
            beat = registers.get(image, name)
            changed = beat != registers.get(self._image, name)
            self._mirror_heartbeat(image, int(beat))
            counters = counters._replace(armed=True, beaten_ns=monotonic_ns() if changed else counters.beaten_ns)
        for name in touched.intersection(_ACKS):
            counters = counters._replace(acks=counters.acks + int(registers.get(image, name)))
            registers.put(image, name, 0)
        if not touched.isdisjoint(WSET_GROUP):
            if registers.get(image, "WSetMod") == WSetMode.W_MAX_PCT and self._sources.settings is None:
                raise Refused(4, Why.NO_CONFIGURATION, POINT["WSetMod"].address)
            counters = counters._replace(wset_version=counters.wset_version + 1)
        if "Epoch" in touched and registers.get(image, "Epoch"):
            counters = self._without_wset(image, counters)
        if not touched.isdisjoint((*_MODES, "CmdSeq")):
            counters = self._apply_mode(image, touched, rows, counters)
        return counters

    @staticmethod
    def _without_wset(image: bytearray, counters: Counters) -> Counters:
        """A frame carries its power in CmdW: a set-point of 704 that nobody may change would stand in its way."""
        names = ("WSetEna", "WSetEnaRvrt", "WSetRvrtTms")
        if not any(registers.get(image, name) for name in names):
            return counters
        for name in names:
            registers.put(image, name, 0)
        return counters._replace(wset_version=counters.wset_version + 1)

    def _local(self) -> bool:
        """The key switch is at LOCAL."""
        status = self._sources.status
        return status is not None and bool(status.interlocks >> InterlockBit.KEY_LOCAL & 1)

    @staticmethod
    def _mirror_heartbeat(image: bytearray, heartbeat: int) -> None:
        registers.put(image, "ControllerHb", heartbeat)
        for name in ("CtrlHb", "802.CtrlHb"):
            registers.put(image, name, heartbeat % 0xFFFF)

    def _apply_mode(self, image: bytearray, touched: set[str], rows: list[Row], counters: Counters) -> Counters:
        """Mode OFF ends the watch over a heartbeat that is lost, until it is written again: nothing is left to stop."""
        before = Mode(int(registers.get(self._image, "CmdMode")))
        mode = commanded_mode(image, touched, before)
        at = next(row.point.address for row in rows if row.point.name in (*_MODES, "CmdSeq"))
        if mode != before and "CmdSeq" not in touched:
            registers.put(image, "CmdSeq", (registers.get(image, "CmdSeq") + 1) % _SEQUENCES)
        seq = int(registers.get(image, "CmdSeq"))
        new = mode != before or seq != registers.get(self._image, "CmdSeq")
        epoch = int(registers.get(image, "Epoch")) if "Epoch" in touched else 0
        why = self._refusal(mode, None if epoch else seq, lost=new and self._lost(counters))
        if why != Why.NONE:
            raise Refused(4, why, POINT["CmdMode"].address if "CmdMode" in touched else at)
        mirror_mode(image, mode)
        counters = counters._replace(epoch=epoch)
        if mode == Mode.OFF and self._lost(counters):
            return counters._replace(armed=self._require_heartbeat)
        return counters

    def _refusal(self, mode: Mode, seq: int | None, lost: bool) -> Why:
        """`seq` None: newer than all before it, as a frame is."""
        status = self._sources.status
        if mode == Mode.OFF:
            return Why.NONE
        if status is None:
            return Why.NO_DATA
        if why := refusal(mode, status.state, status.permit, not self._local()):
            return why
        if lost:
            return Why.HEARTBEAT_LOST
        return Why.SEQ_NOT_NEW if seq == self._void_seq else Why.NONE
