"""The register map of unit 1: one table. Server, tools and docs/modbus-map.* are made from it; addresses are final.

SunSpec at PDU address 40000, big-endian, high word first, static scale factors sized for a rack of 5 MW and 1,500 V.
+ is discharge, - is charge; a limit has no sign. A point whose source is missing or stale reads SunSpec's "not
implemented" value, never an old number. Models that are not served yet are spanned by reserve models of their exact
length, so that a scan walks through and no address moves when they come.

A name that more than one SunSpec model uses carries its model as in `802.SoC`; vendor points never do.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from enum import IntEnum
from math import nan
from operator import attrgetter
from typing import NamedTuple

from drivers.modbus.point import Kind, Point, width
from statemachine.faults import SEVERE_MASK
from statemachine.settings import Settings
from statemachine.signals import (
    Bms,
    BootReason,
    Clock,
    Guard,
    GuardTrip,
    LimitReason,
    LossPolicy,
    Mode,
    Pcs,
    Result,
    WatchdogState,
    Why,
)
from statemachine.states import CHARGING, OPEN, State

from .image import Links, Status
from .sunspec import (
    Ability,
    BatteryState,
    BatteryType,
    ChargeStatus,
    Control,
    InverterState,
    OpCtl,
    SetOp,
    StorageStatus,
    WSetMode,
)

BASE = 40000
RESERVED_MODEL, VENDOR_MODEL = 64989, 64990
_PAD = b"\x80\x00"
_BITFIELD = 0x7FFFFFFF
"""SunSpec: in a bitfield32 whose highest bit is set nothing counts."""


class Own(NamedTuple):
    """What the server itself adds."""

    beat: int  # counts up once a second while the controller is alive
    why: int  # Why of the last refused write; 0 after the next accepted command
    address: int  # register at fault of the last refused write
    freeze_frames: int  # kept on this unit


class Sources(NamedTuple):
    """Everything a register can come from. None: never received, or stale."""

    status: Status | None
    bms: Bms | None
    pcs: Pcs | None
    links: Links | None
    guard: Guard | None
    settings: Settings | None
    clock: Clock | None
    own: Own


class Row(NamedTuple):
    """One point and where its value comes from. `group` is the Sources field that makes it change; "" = never."""

    point: Point
    group: str
    value: Callable[[Sources], float | str] | None  # None: `fixed`, or (access RW) what was written last
    fixed: float | str
    reserve: bool = False


def nominal_v(settings: Settings) -> float:
    """Rack voltage that ratings are stated at: the middle of the permitted range."""
    return (settings.max_charge_voltage + settings.min_discharge_voltage) / 2


def rated_charge_w(settings: Settings) -> float:
    """Highest configured charge current at the nominal voltage."""
    return min(settings.max_charge_current, settings.max_charge_rate * settings.rated_ah) * nominal_v(settings)


def rated_discharge_w(settings: Settings) -> float:
    """Highest configured discharge current at the nominal voltage."""
    return min(settings.max_discharge_current, settings.max_discharge_rate * settings.rated_ah) * nominal_v(settings)


def _of_settings(rule: Callable[[Settings], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.settings is None else rule(s.settings)


def _of_bms(rule: Callable[[Bms], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.bms is None else rule(s.bms)


def _of_status(rule: Callable[[Status], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.status is None else rule(s.status)


def _of_links(rule: Callable[[Links], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.links is None else rule(s.links)


_SECTIONS: dict[str, type[tuple[float, ...]]] = {
    "status": Status, "bms": Bms, "pcs": Pcs, "links": Links, "guard": Guard, "clock": Clock, "own": Own,
}  # fmt: skip


def _path(source: str) -> Callable[[Sources], float]:
    """The field that `section.field` names. Raises at import when there is none."""
    section, _, field = source.partition(".")
    outer = Sources._fields.index(section)
    inner = list(_SECTIONS[section].__annotations__).index(field)
    return lambda s: nan if s[outer] is None else s[outer][inner]  # type: ignore[index]


def _led(position: int) -> Callable[[Sources], float]:
    return _of_status(lambda status: status.led_codes >> 8 * position & 0xFF)


def _energy_wh(s: Sources) -> float:
    if s.settings is None or s.bms is None:
        return nan
    rated = s.settings.rated_ah * nominal_v(s.settings)
    return rated * s.bms.soc_pct * s.bms.soh_pct / 10_000


def _string_of(cell: str) -> Callable[[Sources], float]:
    index = attrgetter(cell)
    return lambda s: nan if s.bms is None or s.settings is None else index(s.bms) // s.settings.cells_in_series + 1


def _available_w(limit: str) -> Callable[[Sources], float]:
    ampere = attrgetter(limit)
    return lambda s: nan if s.bms is None or s.status is None else ampere(s.status) * s.bms.rack_v


def _shown(first: int) -> Callable[[Status], float]:
    """Active or latched faults `first` .. `first` + 30."""
    return lambda status: (status.faults_active | status.faults_latched) >> first & _BITFIELD


def _active(first: int) -> Callable[[Status], float]:
    return lambda status: status.faults_active >> first & _BITFIELD


def _storage_status(status: Status) -> StorageStatus:
    bits = status.faults_active | status.faults_latched
    if bits & SEVERE_MASK:
        return StorageStatus.ERROR
    return StorageStatus.WARNING if bits else StorageStatus.OK


_BATTERY_STATE = {
    State.INIT: BatteryState.INITIALIZING,
    State.PRECHARGE: BatteryState.INITIALIZING,
    State.READY: BatteryState.STANDBY,
    State.CHARGED: BatteryState.STANDBY,
    State.STOPPING: BatteryState.SUSPENDING,
    State.ISOLATED: BatteryState.DISCONNECTED,
    State.SERVICE: BatteryState.DISCONNECTED,
    State.FAULT: BatteryState.FAULT,
    State.EMERGENCY_STOP: BatteryState.FAULT,
    State.LOCKOUT: BatteryState.FAULT,
}


def _battery_state(status: Status) -> BatteryState:
    return _BATTERY_STATE.get(State(status.state), BatteryState.CONNECTED)


def _charge_status(status: Status) -> ChargeStatus:
    if status.state in OPEN:
        return ChargeStatus.OFF
    if status.state in CHARGING or status.setpoint_a < 0:
        return ChargeStatus.CHARGING
    if status.setpoint_a > 0:
        return ChargeStatus.DISCHARGING
    return ChargeStatus.FULL if status.state == State.CHARGED else ChargeStatus.HOLDING


def _inverter_state(status: Status) -> InverterState:
    if status.pcs_run:
        return InverterState.STARTED
    return InverterState.STOPPED if status.state in OPEN else InverterState.STANDBY


_EVT1 = {1: 23, 2: 22, 4: 9, 5: 9, 6: 11, 7: 1, 8: 1, 9: 0, 10: 0, 15: 20, 16: 20, 17: 20, 21: 5, 28: 29}
"""Fault.bit -> bit of 802.Evt1 (SunSpec's standard events); every other severe fault is OTHER_ALARM."""
_OTHER_ALARM, _OTHER_WARNING = 25, 26


def _events(status: Status) -> int:
    bits, found = status.faults_active | status.faults_latched, 0
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            found |= 1 << _EVT1.get(bit, _OTHER_ALARM if SEVERE_MASK >> bit & 1 else _OTHER_WARNING)
    return found


class Draft(NamedTuple):
    """A row before it has its address."""

    name: str
    type: Kind
    doc: str
    source: str = ""
    of: Callable[[Sources], float] | None = None
    unit: str = ""
    scale: float = 1.0
    span: tuple[float, float] | None = None  # makes the point writable
    values: builtins.type[IntEnum] | None = None
    writable: bool = False
    fixed: float | str = nan
    words: int = 0
    reserve: bool = False


def _not_implemented(kind: Kind, names: str) -> list[Draft]:
    return [Draft(name, kind, "not implemented") for name in names.split()]


def _sf(name: str, exponent: float) -> Draft:
    return Draft(name, "int16", "scale factor, power of ten", fixed=exponent)


def _text(name: str, words: int, doc: str, text: str = "") -> Draft:
    return Draft(name, "string", doc, fixed=text, words=words)


def _reserve(name: str, words: int) -> Draft:
    return Draft(name, "int16", "reserve, reads 0x8000", words=words, reserve=True)


# fmt: off
_SHARED = frozenset((
    "A", "A_SF", "AMax", "CellV_SF", "CellVMax", "CellVMin", "CtrlHb", "Hz", "Hz_SF", "LocRemCtl", "PF_SF",
    "SoC", "SoC_SF", "SoH", "SoH_SF", "State", "V", "V_SF", "VMax", "VMin", "W", "W_SF", "WHRtg",
    "WMax",
))
# fmt: on
"""Names that more than one model of the complete map (1, 701-704, 711, 713-715, 802, 803, vendor) uses."""


def _place(draft: Draft, model: str, address: int) -> Row:
    words = draft.words or width(draft.type)
    low, high = draft.span or (None, None)
    shared = draft.name in ("ID", "L") or (draft.name in _SHARED and model != str(VENDOR_MODEL))
    name = f"{model}.{draft.name}" if shared else draft.name
    writable = draft.writable or draft.span is not None
    if draft.values is not None and writable:
        low, high = min(draft.values), max(draft.values)
    point = Point(
        name, address, draft.type, draft.doc, words, draft.scale, draft.unit, "RW" if writable else "R", low, high,
        draft.values,
    )  # fmt: skip
    value = draft.of or (_path(draft.source) if "." in draft.source else None)
    return Row(point, draft.source.partition(".")[0], value, draft.fixed, draft.reserve)


def _model(number: int, address: int, length: int, drafts: Iterable[Draft], label: str = "") -> list[Row]:
    head = [
        Draft("ID", "uint16", "model id", fixed=number),
        Draft("L", "uint16", "model length without this header", fixed=length),
    ]
    rows, at = [], address
    for draft in [*head, *drafts]:
        rows.append(_place(draft, label or str(number), at))
        at = rows[-1].point.end
    assert at == address + 2 + length, f"model {number} ends at {at}, not {address + 2 + length}"
    return rows


def _spanning(first: int, end: int) -> list[Row]:
    length = end - first - 2
    return _model(RESERVED_MODEL, first, length, [_reserve(f"Reserved{first}", length)], f"Reserved{first}")


_COMMON = [
    _text("Mn", 16, "manufacturer", "ems-edge"),
    _text("Md", 16, "model", "EMS-1"),
    _text("Opt", 8, "options"),
    _text("Vr", 8, "firmware version"),
    _text("SN", 16, "serial number: the host name"),
    Draft("DA", "uint16", "device address", fixed=1),
    Draft("Pad", "int16", "pad", reserve=True),
]

MAX_W = 5_000_000
_W = (-MAX_W, MAX_W)
_PCT = (-100, 100)
_DAY_S = 86_400
WSET_GROUP = (
    "WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms",
)  # fmt: skip
_CONTROLS = [
    *_not_implemented("enum16", "PFWInjEna PFWInjEnaRvrt"),
    *_not_implemented("uint32", "PFWInjRvrtTms PFWInjRvrtRem"),
    *_not_implemented("enum16", "PFWAbsEna PFWAbsEnaRvrt"),
    *_not_implemented("uint32", "PFWAbsRvrtTms PFWAbsRvrtRem"),
    *_not_implemented("enum16", "WMaxLimPctEna"),
    *_not_implemented("uint16", "WMaxLimPct WMaxLimPctRvrt"),
    *_not_implemented("enum16", "WMaxLimPctEnaRvrt"),
    *_not_implemented("uint32", "WMaxLimPctRvrtTms WMaxLimPctRvrtRem"),
    Draft("WSetEna", "enum16", "power set-point in force in mode grid", values=Ability, writable=True, fixed=0),
    Draft("WSetMod", "enum16", "which set-point counts", values=WSetMode, writable=True, fixed=WSetMode.WATTS),
    Draft("WSet", "int32", "power set-point, - = charge", unit="W", span=_W, fixed=0),
    Draft("WSetRvrt", "int32", "set-point after the reversion time", unit="W", span=_W, fixed=0),
    Draft("WSetPct", "int16", "set-point in % of 802.WDisChaRteMax (- : of 802.WChaRteMax)", unit="%", scale=0.1,
          span=_PCT, fixed=0),
    Draft("WSetPctRvrt", "int16", "set-point in % after the reversion time", unit="%", scale=0.1, span=_PCT, fixed=0),
    Draft("WSetEnaRvrt", "enum16", "WSetEna after the reversion time", values=Ability, writable=True, fixed=0),
    Draft("WSetRvrtTms", "uint32", "reversion time, restarted by each write to the group; 0 = none", unit="s",
          span=(0, _DAY_S), fixed=0),
    Draft("WSetRvrtRem", "uint32", "reversion time left", "status.wset_remaining_s", unit="s"),
    *_not_implemented("enum16", "VarSetEna VarSetMod VarSetPri"),
    *_not_implemented("int32", "VarSet VarSetRvrt"),
    *_not_implemented("int16", "VarSetPct VarSetPctRvrt"),
    *_not_implemented("enum16", "VarSetEnaRvrt"),
    *_not_implemented("uint32", "VarSetRvrtTms VarSetRvrtRem"),
    *_not_implemented("uint16", "WRmp"),
    *_not_implemented("enum16", "WRmpRef"),
    *_not_implemented("uint16", "VarRmp"),
    *_not_implemented("enum16", "AntiIslEna"),
    _sf("PF_SF", nan),
    _sf("WMaxLimPct_SF", nan),
    _sf("WSet_SF", 0),
    _sf("WSetPct_SF", -1),
    _sf("VarSet_SF", nan),
    _sf("VarSetPct_SF", nan),
    *[
        draft
        for group in ("PFWInj", "PFWInjRvrt", "PFWAbs", "PFWAbsRvrt")
        for draft in (*_not_implemented("uint16", f"{group}.PF"), *_not_implemented("enum16", f"{group}.Ext"))
    ],
]  # fmt: skip

_rated_wh = _of_settings(lambda c: c.rated_ah * nominal_v(c))
_STORAGE = [
    Draft("WHRtg", "uint16", "rated energy", "settings", _rated_wh, unit="Wh", scale=1000),
    Draft("WHAvail", "uint16", "energy available: rated x SoC x SoH", "bms", _energy_wh, unit="Wh", scale=1000),
    Draft("SoC", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.01),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.01),
    Draft("Sta", "enum16", "storage status", "status", _of_status(_storage_status), values=StorageStatus),
    _sf("WH_SF", 3),
    _sf("Pct_SF", -2),
]

_ACK = (0, 1)
_BEAT16, _BEAT32 = (0, 0xFFFE), (0, 0xFFFFFFFE)
_DERCTL = [
    Draft("LocRemCtl", "enum16", "who commands", values=Control, fixed=Control.REMOTE),
    Draft("DERHb", "uint32", "appliance heartbeat: counts up once a second while the controller scans", "own.beat"),
    Draft("ControllerHb", "uint32", "site controller heartbeat, same counter as CtrlHb; must change within HbTmo",
          span=_BEAT32, fixed=0),
    Draft("AlarmReset", "uint16", "1 = acknowledge faults, as AckFaults; reads 0", span=_ACK, fixed=0),
    Draft("OpCtl", "enum16", "STOP = mode off, ENTER_STANDBY = mode ready, START and EXIT_STANDBY = mode grid (no "
          "change in mode charge, discharge or grid); reads what CmdMode corresponds to",
          values=OpCtl, writable=True, fixed=OpCtl.STOP),
]  # fmt: skip

_product_w = _of_bms(lambda b: b.rack_v * b.rack_a)
_BATTERY = [
    Draft("AHRtg", "uint16", "rated charge", "settings", _of_settings(lambda c: c.rated_ah), unit="Ah"),
    Draft("WHRtg", "uint16", "rated energy", "settings", _rated_wh, unit="Wh", scale=1000),
    Draft("WChaRteMax", "uint16", "rated charge power", "settings", _of_settings(rated_charge_w), unit="W", scale=100),
    Draft("WDisChaRteMax", "uint16", "rated discharge power", "settings", _of_settings(rated_discharge_w), unit="W",
          scale=100),
    *_not_implemented("uint16", "DisChaRte"),
    Draft("SoCMax", "uint16", "highest SoC", "settings", _of_settings(lambda c: c.max_soc), unit="%", scale=0.1),
    Draft("SoCMin", "uint16", "lowest SoC", "settings", _of_settings(lambda c: c.min_soc), unit="%", scale=0.1),
    *_not_implemented("uint16", "SocRsvMax SoCRsvMin"),
    Draft("SoC", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.1),
    Draft("DoD", "uint16", "depth of discharge", "bms", _of_bms(lambda b: 100 - b.soc_pct), unit="%", scale=0.1),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.1),
    *_not_implemented("uint32", "NCyc"),
    Draft("ChaSt", "enum16", "charge status", "status", _of_status(_charge_status), values=ChargeStatus),
    Draft("LocRemCtl", "enum16", "who commands", values=Control, fixed=Control.REMOTE),
    Draft("Hb", "uint16", "appliance heartbeat, as DERHb", "own", lambda s: s.own.beat % 0xFFFF),
    Draft("CtrlHb", "uint16", "site controller heartbeat, same counter as CtrlHb", span=_BEAT16, fixed=0),
    Draft("AlmRst", "uint16", "1 = acknowledge faults, as AckFaults; reads 0", span=_ACK, fixed=0),
    Draft("Typ", "enum16", "battery type", values=BatteryType, fixed=BatteryType.LITHIUM_ION),
    Draft("State", "enum16", "battery state", "status", _of_status(_battery_state), values=BatteryState),
    Draft("StateVnd", "enum16", "as CmfState", "status.state", values=State),
    *_not_implemented("uint32", "WarrDt"),
    Draft("Evt1", "bitfield32", "standard events of SunSpec model 802", "status", _of_status(_events)),
    Draft("Evt2", "bitfield32", "none", fixed=0),
    Draft("EvtVnd1", "bitfield32", "as FaultBits", "status", _of_status(_shown(0))),
    Draft("EvtVnd2", "bitfield32", "as FaultBits2", "status", _of_status(_shown(32))),
    Draft("V", "uint16", "rack voltage", "bms.rack_v", unit="V", scale=0.1),
    Draft("VMax", "uint16", "highest rack voltage", "settings", _of_settings(lambda c: c.max_charge_voltage),
          unit="V", scale=0.1),
    Draft("VMin", "uint16", "lowest rack voltage", "settings", _of_settings(lambda c: c.min_discharge_voltage),
          unit="V", scale=0.1),
    Draft("CellVMax", "uint16", "highest cell", "bms.cell_v_max", unit="V", scale=0.001),
    Draft("CellVMaxStr", "uint16", "its string, from 1", "bms", _string_of("cell_v_max_at")),
    *_not_implemented("uint16", "CellVMaxMod"),
    Draft("CellVMin", "uint16", "lowest cell", "bms.cell_v_min", unit="V", scale=0.001),
    Draft("CellVMinStr", "uint16", "its string, from 1", "bms", _string_of("cell_v_min_at")),
    *_not_implemented("uint16", "CellVMinMod"),
    Draft("CellVAvg", "uint16", "mean of all cells", "bms.cell_v_avg", unit="V", scale=0.001),
    Draft("A", "int16", "rack current, + is discharge", "bms.rack_a", unit="A"),
    Draft("AChaMax", "uint16", "charge current available now", "status.available_charge_a", unit="A", scale=0.1),
    Draft("ADisChaMax", "uint16", "discharge current available now", "status.available_discharge_a",
          unit="A", scale=0.1),
    Draft("W", "int16", "rack power, + is discharge", "bms", _product_w, unit="W", scale=1000),
    *_not_implemented("enum16", "ReqInvState"),
    Draft("ReqW", "int16", "power demanded of the PCS", "status.demand_w", unit="W", scale=1000),
    Draft("SetOp", "enum16", "CONNECT = mode ready (no change in a mode that is connected), DISCONNECT = mode off",
          values=SetOp, writable=True, fixed=SetOp.DISCONNECT),
    Draft("SetInvState", "enum16", "what is demanded of the PCS", "status", _of_status(_inverter_state),
          values=InverterState),
    _sf("AHRtg_SF", 0),
    _sf("WHRtg_SF", 3),
    _sf("WChaDisChaMax_SF", 2),
    _sf("DisChaRte_SF", nan),
    _sf("SoC_SF", -1),
    _sf("DoD_SF", -1),
    _sf("SoH_SF", -1),
    _sf("V_SF", -1),
    _sf("CellV_SF", -3),
    _sf("A_SF", 0),
    _sf("AMax_SF", -1),
    _sf("W_SF", 3),
]  # fmt: skip

_BITS = ", bits as in the table of faults"
_PATTERN = ": 0 off, 1 on, 2 slow, 3 fast, 0xNM = N blinks, pause, M blinks"
_VENDOR = [
    Draft("CmdSeq", "uint32", "command sequence; a new number makes a new command", span=(0, 0xFFFFFFFE), fixed=0),
    Draft("CmdMode", "enum16", "commanded mode; a level. A change without CmdSeq in the same write advances CmdSeq",
          values=Mode, writable=True, fixed=Mode.OFF),
    Draft("CmdW", "int32", "power in mode grid while WSetEna is 0; - = charge", unit="W", span=_W, fixed=0),
    Draft("CmdRamp", "uint16", "charge or discharge rate on rated capacity", unit="C", scale=0.001, span=(0, 2),
          fixed=0.5),
    Draft("CmdTgtSoC", "uint16", "charge or discharge ends here", unit="%", scale=0.1, span=(0, 100), fixed=80),
    Draft("CtrlHb", "uint16", "site controller heartbeat; must change within HbTmo once it was written",
          span=_BEAT16, fixed=0),
    Draft("AckFaults", "uint16", "1 = acknowledge latched faults whose cause is gone; reads 0", span=_ACK, fixed=0),
    Draft("HbTmo", "uint16", "site controller heartbeat time-out", unit="s", span=(2, 300), fixed=10),
    Draft("LossPol", "enum16", "after a lost heartbeat and the ramp to zero", values=LossPolicy, writable=True,
          fixed=LossPolicy.STANDBY),
    _reserve("ReserveCommand", 3),
    Draft("AckSeq", "uint32", "CmdSeq that the controller has answered", "status.ack_seq"),
    Draft("AckResult", "enum16", "its answer", "status.ack_result", values=Result),
    Draft("AckWhy", "enum16", "why a command is not followed, or the last write was refused", "status",
          lambda s: s.own.why or (nan if s.status is None else s.status.ack_why), values=Why),
    Draft("RefAddr", "uint16", "register at fault of the last refused write, 0 = none", "own.address"),
    Draft("CmfState", "enum16", "state of the charge management function", "status.state", values=State),
    Draft("ChaLimA", "uint16", "charge limit in force: every reason in it, command and ramp too",
          "status.charge_limit_a", unit="A", scale=0.1),
    Draft("DisLimA", "uint16", "discharge limit in force", "status.discharge_limit_a", unit="A", scale=0.1),
    Draft("LimReason", "enum16", "what limits charging", "status.charge_reason", values=LimitReason),
    Draft("DisLimReason", "enum16", "what limits discharging", "status.discharge_reason", values=LimitReason),
    Draft("WEff", "int32", "power demanded of the PCS now", "status.demand_w", unit="W"),
    Draft("WAvailCha", "uint32", "charge power available now", "status", _available_w("available_charge_a"), unit="W"),
    Draft("WAvailDis", "uint32", "discharge power available now", "status", _available_w("available_discharge_a"),
          unit="W"),
    Draft("SetA", "int32", "current demanded of the PCS", "status.setpoint_a", unit="A", scale=0.1),
    Draft("Soc", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.01),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.01),
    Draft("RackV", "uint16", "rack voltage by the BMS", "bms.rack_v", unit="V", scale=0.1),
    Draft("PcsV", "uint16", "DC voltage by the PCS", "pcs.dc_v", unit="V", scale=0.1),
    Draft("RackA", "int32", "rack current by the BMS", "bms.rack_a", unit="A", scale=0.1),
    Draft("DvMv", "int16", "PCS minus BMS voltage after calibration", "status.dv_v", unit="V", scale=0.001),
    Draft("CellVMax", "uint16", "highest cell", "bms.cell_v_max", unit="V", scale=0.001),
    Draft("CellVMaxIdx", "uint16", "its index, string-major from 0", "bms.cell_v_max_at"),
    Draft("CellVMin", "uint16", "lowest cell", "bms.cell_v_min", unit="V", scale=0.001),
    Draft("CellVMinIdx", "uint16", "its index", "bms.cell_v_min_at"),
    Draft("CellTmpMax", "int16", "hottest cell", "bms.cell_c_max", unit="degC", scale=0.1),
    Draft("CellTmpMaxIdx", "uint16", "its index", "bms.cell_c_max_at"),
    Draft("CellTmpMin", "int16", "coldest cell", "bms.cell_c_min", unit="degC", scale=0.1),
    Draft("CellTmpMinIdx", "uint16", "its index", "bms.cell_c_min_at"),
    Draft("FaultBits", "bitfield32", "faults 0-30 active or latched" + _BITS, "status", _of_status(_shown(0))),
    Draft("FaultBits2", "bitfield32", "faults 32-62 active or latched: bit n is fault 32 + n", "status",
          _of_status(_shown(32))),
    _reserve("ReserveFaultBits", 4),
    Draft("FaultActive", "bitfield32", "faults 0-30 whose cause is there now" + _BITS, "status",
          _of_status(_active(0))),
    Draft("FaultActive2", "bitfield32", "faults 32-62 whose cause is there now", "status", _of_status(_active(32))),
    Draft("LedRun", "enum16", "RUN LED" + _PATTERN, "status", _led(0)),
    Draft("LedCharge", "enum16", "CHARGE LED" + _PATTERN, "status", _led(1)),
    Draft("LedComm", "enum16", "COMM LED" + _PATTERN, "status", _led(2)),
    Draft("LedFault", "enum16", "FAULT LED" + _PATTERN, "status", _led(3)),
    Draft("LedKill", "enum16", "KILL LED" + _PATTERN, "status", _led(4)),
    Draft("Interlocks", "bitfield32", "bits 0-7 interlock 1-8 closed, 8 kill-switch closed, 9 tamper closed, 10 "
          "insulation good, 11-13 feedback neg pos pre closed, 14 reset pressed, 15 guard armed", "status.interlocks"),
    Draft("Feedback", "uint16", "contactors reported closed: bit 0 neg, 1 pos, 2 precharge", "status.feedback"),
    Draft("Coils", "uint16", "contactor coils on: bit 0 neg, 1 pos, 2 precharge", "status.coils"),
    Draft("GuardArmed", "uint16", "1 = safe-enable is on", "guard.armed"),
    Draft("GuardTrip", "enum16", "what dropped safe-enable last", "guard.trip", values=GuardTrip),
    Draft("Permit", "enum16", "why the contactors may not close now", "status.permit", values=Why),
    Draft("ScanOverruns", "uint32", "scan periods missed since start", "status.overruns"),
    Draft("ScanLate", "uint32", "scans that began after their period", "status.late_scans"),
    Draft("ScanCount", "uint32", "scans since start", "status.scan"),
    Draft("ScanPeriodUs", "uint16", "scan period", "status.period_us", unit="us"),
    Draft("ScanWakeP50us", "uint16", "wake latency, median", "status.wake_p50_us", unit="us"),
    Draft("ScanWakeP99us", "uint16", "wake latency, 99th percentile", "status.wake_p99_us", unit="us"),
    Draft("ScanWakeMaxus", "uint32", "wake latency, largest", "status.wake_max_us", unit="us"),
    Draft("ScanExecP50us", "uint16", "execution time, median", "status.exec_p50_us", unit="us"),
    Draft("ScanExecP99us", "uint16", "execution time, 99th percentile", "status.exec_p99_us", unit="us"),
    Draft("ScanExecMaxus", "uint32", "execution time, largest", "status.exec_max_us", unit="us"),
    Draft("StatusBits", "bitfield32", "0 no real-time priority, 1 memory not locked, 2 configuration refused, 3 "
          "widening waits for open contactors, 4 BMS stale, 5 PCS stale, 6 heartbeat armed, 7 heartbeat lost, 8 dV "
          "calibrated, 9 server stale, 10 bench, 11 clock trusted", "status.status_bits"),
    Draft("WSetAct", "int32", "704 set-point in force", "status.wset_active_w", unit="W"),
    Draft("WSetRem", "uint32", "as WSetRvrtRem", "status.wset_remaining_s", unit="s"),
    Draft("BmsPolls", "uint32", "complete BMS polls since start", "links.bms_polls"),
    Draft("BmsTimeouts", "uint32", "BMS requests without an answer", "links.bms_timeouts"),
    Draft("BmsErrors", "uint32", "BMS answers refused: unit, length, exception, garbage", "links",
          _of_links(lambda k: k.bms_wrong_unit + k.bms_wrong_length + k.bms_exceptions + k.bms_garbage)),
    Draft("BmsPollUs", "uint32", "duration of the last complete BMS poll", "links.bms_poll_us", unit="us"),
    Draft("PcsPolls", "uint32", "complete PCS polls since start", "links.pcs_polls"),
    Draft("PcsTimeouts", "uint32", "PCS requests without an answer", "links.pcs_timeouts"),
    Draft("PcsErrors", "uint32", "PCS answers refused: unit, length, exception, garbage", "links",
          _of_links(lambda k: k.pcs_wrong_unit + k.pcs_wrong_length + k.pcs_exceptions + k.pcs_garbage)),
    Draft("PcsPollUs", "uint32", "duration of the last PCS poll", "links.pcs_poll_us", unit="us"),
    Draft("CfgRev", "uint32", "revision of the configuration in force", "status.settings_revision"),
    Draft("PrechargeTries", "uint16", "tries of the running or last precharge", "status.precharge_tries"),
    Draft("IntlkReq", "uint16", "interlocks that must be closed: bit 0-7 interlock 1-8", "settings",
          _of_settings(lambda c: c.interlocks_required)),
    Draft("ContactorCycles", "uint32", "lifetime closings of the main contactors", "status.cycles"),
    Draft("OpenedUnderLoad", "uint16", "openings above break_current since inspection", "status.opened_under_load"),
    Draft("ClosedUnderLoad", "uint16", "closings with an inrush since inspection", "status.closed_under_load"),
    Draft("Precharges", "uint32", "lifetime precharges", "status.precharges"),
    Draft("BootReason", "enum16", "why the unit started", "guard.boot_reason", values=BootReason),
    Draft("Watchdog", "enum16", "hardware watchdog", "guard.watchdog", values=WatchdogState),
    Draft("ClockOffsetMs", "int16", "wall clock against the time servers", "clock.offset_ms", unit="s", scale=0.001),
    Draft("FreezeFrames", "uint16", "freeze-frames kept, see file record 1 (FC 20)", "own.freeze_frames"),
]  # fmt: skip
VENDOR_FIRST, VENDOR_LENGTH = 40524, 122

ROWS: tuple[Row, ...] = (
    Row(Point("SunS", BASE, "uint32", "SunSpec marker", 2), "", None, 0x53756E53),
    *_model(1, 40002, 66, _COMMON),
    *_spanning(40070, 40296),  # 701 at 40070, 702 at 40225, 703 at 40277
    *_model(704, 40296, 65, _CONTROLS),
    *_spanning(40363, 40397),  # 711
    *_model(713, 40397, 7, _STORAGE),
    *_spanning(40406, 40451),  # 714
    *_model(715, 40451, 7, _DERCTL),
    *_model(802, 40460, 62, _BATTERY),
    *_model(VENDOR_MODEL, VENDOR_FIRST, VENDOR_LENGTH, _VENDOR),
    Row(Point("End.ID", 40648, "uint16", "end marker"), "", None, 0xFFFF),
    Row(Point("End.L", 40649, "uint16", "end marker, length 0"), "", None, 0),
)
END = ROWS[-1].point.end
POINTS: tuple[Point, ...] = tuple(row.point for row in ROWS if not row.reserve)
POINT: dict[str, Point] = {point.name: point for point in POINTS}
AT: tuple[Row, ...] = tuple(row for row in ROWS for _ in range(row.point.count))
"""The row that covers register BASE + index."""
assert [row.point.address for row in ROWS] == [AT.index(row) + BASE for row in ROWS], "overlap or gap"


def covering(address: int) -> Row | None:
    """The row that `address` belongs to; None outside the map."""
    return AT[address - BASE] if BASE <= address < END else None


def image() -> bytearray:
    """The whole map as it reads before anything is known: fixed values, start values, else not implemented."""
    return bytearray().join(_PAD * row.point.count if row.reserve else row.point.encode(row.fixed) for row in ROWS)


def get(registers: bytearray, name: str) -> float:
    """Value of a numeric point in an image made by `image`."""
    point = POINT[name]
    at = 2 * (point.address - BASE)
    value = point.decode(registers[at : at + 2 * point.count])
    assert not isinstance(value, str)
    return value


def put(registers: bytearray, name: str, value: float | str) -> None:
    """Sets a point in an image made by `image`."""
    point = POINT[name]
    at = 2 * (point.address - BASE)
    registers[at : at + 2 * point.count] = point.encode(value)
