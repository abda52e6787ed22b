"""Models 713, 714, 802 and 803: the battery as a whole."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from operator import attrgetter

from statemachine.faults import SEVERE_MASK
from statemachine.ratings import nominal_v, rated_charge_w, rated_discharge_w
from statemachine.states import CHARGING, CLOSED, OPEN, State

from ..image import Status
from ..sunspec import (
    BatteryState,
    BatteryType,
    ChargeStatus,
    Control,
    InverterState,
    PortStatus,
    PortType,
    SetOp,
    StorageStatus,
)
from .ac import ALARMS
from .control import ACK, BEAT16, key_switch
from .draft import (
    Draft,
    Row,
    Sources,
    model,
    not_implemented,
    of_bms,
    of_pcs,
    of_settings,
    of_status,
    reserve,
    sf,
    shown,
    text,
)


def _energy_wh(s: Sources) -> float:
    if s.settings is None or s.bms is None:
        return nan
    rated = s.settings.rated_ah * nominal_v(s.settings)
    return rated * s.bms.soc_pct * s.bms.soh_pct / 10_000


def _string_of(cell: str) -> Callable[[Sources], float]:
    index = attrgetter(cell)
    return lambda s: nan if s.bms is None or s.settings is None else index(s.bms) // s.settings.cells_in_series + 1


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


_rated_wh = of_settings(lambda c: c.rated_ah * nominal_v(c))
STORAGE = [
    Draft("WHRtg", "uint16", "rated energy", "settings", _rated_wh, unit="Wh", scale=1000),
    Draft("WHAvail", "uint16", "energy available: rated x SoC x SoH", "bms", _energy_wh, unit="Wh", scale=1000),
    Draft("SoC", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.01),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.01),
    Draft("Sta", "enum16", "storage status", "status", of_status(_storage_status), values=StorageStatus),
    sf("WH_SF", 3),
    sf("Pct_SF", -2),
]

_DC_ALARMS = {**ALARMS, 6: 21, 21: 22}
"""Fault.bit -> bit of 714.DCAlrm."""


def _dc_alarms(status: Status) -> int:
    bits = status.faults_active | status.faults_latched
    return sum({1 << alarm for fault, alarm in _DC_ALARMS.items() if bits >> fault & 1})


def _port_status(status: Status) -> PortStatus:
    bits = status.faults_active | status.faults_latched
    if bits & SEVERE_MASK:
        return PortStatus.ERROR
    if status.state not in CLOSED:
        return PortStatus.OFF
    return PortStatus.WARNING if bits else PortStatus.ON


_dc_w = of_pcs(lambda p: p.dc_v * p.dc_a)
DC = [
    Draft("PrtAlrms", "bitfield32", "bit 0 = an alarm in DCAlrm", "status", of_status(lambda s: bool(_dc_alarms(s)))),
    Draft("NPrt", "uint16", "number of ports", fixed=1),
    Draft("DCA", "int16", "DC current by the PCS, + is discharge", "pcs.dc_a", unit="A"),
    Draft("DCW", "int16", "DC power by the PCS, + is discharge", "pcs", _dc_w, unit="W", scale=1000),
    *not_implemented("uint64", "DCWhInj DCWhAbs"),
    sf("DCA_SF", 0),
    sf("DCV_SF", -1),
    sf("DCW_SF", 3),
    sf("DCWH_SF", nan),
    sf("Tmp_SF", nan),
    Draft("Prt.PrtTyp", "enum16", "type of the port", values=PortType, fixed=PortType.ESS),
    Draft("PrtID", "uint16", "its number", fixed=1),
    text("Prt.IDStr", 8, "its name", "battery rack"),
    Draft("Prt.DCA", "int16", "as DCA", "pcs.dc_a", unit="A"),
    Draft("Prt.DCV", "uint16", "DC voltage by the PCS", "pcs.dc_v", unit="V", scale=0.1),
    Draft("Prt.DCW", "int16", "as DCW", "pcs", _dc_w, unit="W", scale=1000),
    *not_implemented("uint64", "Prt.DCWhInj Prt.DCWhAbs"),
    *not_implemented("int16", "Prt.Tmp"),
    Draft("Prt.DCSta", "enum16", "state of the port", "status", of_status(_port_status), values=PortStatus),
    Draft("Prt.DCAlrm", "bitfield32", "alarms: 0 ground fault, 1 overvoltage, 3 DC disconnect, 5 cabinet open, 6 "
          "manual shutdown, 7 over temperature, 21 undervoltage, 22 overcurrent", "status", of_status(_dc_alarms)),
]  # fmt: skip

_product_w = of_bms(lambda b: b.rack_v * b.rack_a)
BATTERY = [
    Draft("AHRtg", "uint16", "rated charge", "settings", of_settings(lambda c: c.rated_ah), unit="Ah"),
    Draft("WHRtg", "uint16", "rated energy", "settings", _rated_wh, unit="Wh", scale=1000),
    Draft("WChaRteMax", "uint16", "rated charge power", "settings", of_settings(rated_charge_w), unit="W", scale=100),
    Draft("WDisChaRteMax", "uint16", "rated discharge power", "settings", of_settings(rated_discharge_w), unit="W",
          scale=100),
    *not_implemented("uint16", "DisChaRte"),
    Draft("SoCMax", "uint16", "highest SoC", "settings", of_settings(lambda c: c.max_soc), unit="%", scale=0.1),
    Draft("SoCMin", "uint16", "lowest SoC", "settings", of_settings(lambda c: c.min_soc), unit="%", scale=0.1),
    *not_implemented("uint16", "SocRsvMax SoCRsvMin"),
    Draft("SoC", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.1),
    Draft("DoD", "uint16", "depth of discharge", "bms", of_bms(lambda b: 100 - b.soc_pct), unit="%", scale=0.1),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.1),
    *not_implemented("uint32", "NCyc"),
    Draft("ChaSt", "enum16", "charge status", "status", of_status(_charge_status), values=ChargeStatus),
    Draft("LocRemCtl", "enum16", "the key switch, as 715.LocRemCtl", "status", key_switch, values=Control),
    Draft("Hb", "uint16", "appliance heartbeat, as DERHb", "own", lambda s: s.own.beat % 0xFFFF),
    Draft("CtrlHb", "uint16", "site controller heartbeat, same counter as CtrlHb", span=BEAT16, fixed=0),
    Draft("AlmRst", "uint16", "1 = acknowledge faults, as AckFaults; reads 0", span=ACK, fixed=0),
    Draft("Typ", "enum16", "battery type", values=BatteryType, fixed=BatteryType.LITHIUM_ION),
    Draft("State", "enum16", "battery state", "status", of_status(_battery_state), values=BatteryState),
    Draft("StateVnd", "enum16", "as CmfState", "status.state", values=State),
    *not_implemented("uint32", "WarrDt"),
    Draft("Evt1", "bitfield32", "standard events of SunSpec model 802", "status", of_status(_events)),
    Draft("Evt2", "bitfield32", "none", fixed=0),
    Draft("EvtVnd1", "bitfield32", "as FaultBits", "status", of_status(shown(0))),
    Draft("EvtVnd2", "bitfield32", "as FaultBits2", "status", of_status(shown(32))),
    Draft("V", "uint16", "rack voltage", "bms.rack_v", unit="V", scale=0.1),
    Draft("VMax", "uint16", "highest rack voltage", "settings", of_settings(lambda c: c.max_charge_voltage),
          unit="V", scale=0.1),
    Draft("VMin", "uint16", "lowest rack voltage", "settings", of_settings(lambda c: c.min_discharge_voltage),
          unit="V", scale=0.1),
    Draft("CellVMax", "uint16", "highest cell", "bms.cell_v_max", unit="V", scale=0.001),
    Draft("CellVMaxStr", "uint16", "its string, from 1", "bms", _string_of("cell_v_max_at")),
    *not_implemented("uint16", "CellVMaxMod"),
    Draft("CellVMin", "uint16", "lowest cell", "bms.cell_v_min", unit="V", scale=0.001),
    Draft("CellVMinStr", "uint16", "its string, from 1", "bms", _string_of("cell_v_min_at")),
    *not_implemented("uint16", "CellVMinMod"),
    Draft("CellVAvg", "uint16", "mean of all cells", "bms.cell_v_avg", unit="V", scale=0.001),
    Draft("A", "int16", "rack current, + is discharge", "bms.rack_a", unit="A"),
    Draft("AChaMax", "uint16", "charge current available now", "status.available_charge_a", unit="A", scale=0.1),
    Draft("ADisChaMax", "uint16", "discharge current available now", "status.available_discharge_a",
          unit="A", scale=0.1),
    Draft("W", "int16", "rack power, + is discharge", "bms", _product_w, unit="W", scale=1000),
    *not_implemented("enum16", "ReqInvState"),
    Draft("ReqW", "int16", "power demanded of the PCS", "status.demand_w", unit="W", scale=1000),
    Draft("SetOp", "enum16", "CONNECT = mode ready (no change in a mode that is connected), DISCONNECT = mode off",
          values=SetOp, writable=True, fixed=SetOp.DISCONNECT),
    Draft("SetInvState", "enum16", "what is demanded of the PCS", "status", of_status(_inverter_state),
          values=InverterState),
    sf("AHRtg_SF", 0),
    sf("WHRtg_SF", 3),
    sf("WChaDisChaMax_SF", 2),
    sf("DisChaRte_SF", nan),
    sf("SoC_SF", -1),
    sf("DoD_SF", -1),
    sf("SoH_SF", -1),
    sf("V_SF", -1),
    sf("CellV_SF", -3),
    sf("A_SF", 0),
    sf("AMax_SF", -1),
    sf("W_SF", 3),
]  # fmt: skip

_INDEX = "its number, from 1"
_ALARMS_BMS = "stop alarms of its BMS in bits 0-15, trip alarms in 16-30"
BANK = [
    Draft("NStr", "uint16", "strings"),
    Draft("NStrCon", "uint16", "strings that are online while the contactors are closed"),
    Draft("ModTmpMax", "int16", "hottest cell", unit="degC", scale=0.1),
    Draft("ModTmpMaxStr", "uint16", "string: " + _INDEX),
    Draft("ModTmpMaxMod", "uint16", "module: " + _INDEX),
    Draft("ModTmpMin", "int16", "coldest cell", unit="degC", scale=0.1),
    Draft("ModTmpMinStr", "uint16", "string: " + _INDEX),
    Draft("ModTmpMinMod", "uint16", "module: " + _INDEX),
    Draft("ModTmpAvg", "int16", "mean of all cells", unit="degC", scale=0.1),
    Draft("StrVMax", "uint16", "highest string voltage", unit="V", scale=0.1),
    Draft("StrVMaxStr", "uint16", "string: " + _INDEX),
    Draft("StrVMin", "uint16", "lowest string voltage", unit="V", scale=0.1),
    Draft("StrVMinStr", "uint16", "string: " + _INDEX),
    Draft("StrVAvg", "uint16", "mean string voltage", unit="V", scale=0.1),
    Draft("StrAMax", "int16", "highest string current, + is discharge", unit="A"),
    Draft("StrAMaxStr", "uint16", "string: " + _INDEX),
    Draft("StrAMin", "int16", "lowest string current, + is discharge", unit="A"),
    Draft("StrAMinStr", "uint16", "string: " + _INDEX),
    Draft("StrAAvg", "int16", "mean string current, + is discharge", unit="A"),
    Draft("NCellBal", "uint16", "cells that are being balanced"),
    sf("CellV_SF", -3),
    sf("ModTmp_SF", -1),
    sf("A_SF", 0),
    sf("SoH_SF", -1),
    sf("SoC_SF", -1),
    sf("V_SF", -1),
]  # fmt: skip
BANK_STRING = [
    Draft("StrNMod", "uint16", "modules"),
    Draft("StrSt", "bitfield32", "0 its BMS allows charge or discharge, 1 the rack's contactors are closed"),
    *not_implemented("enum16", "StrConFail"),
    Draft("StrSoC", "uint16", "state of charge", unit="%", scale=0.1),
    Draft("StrSoH", "uint16", "state of health", unit="%", scale=0.1),
    Draft("StrA", "int16", "string current, + is discharge", unit="A"),
    Draft("StrCellVMax", "uint16", "highest cell", unit="V", scale=0.001),
    Draft("StrCellVMaxMod", "uint16", "module: " + _INDEX),
    Draft("StrCellVMin", "uint16", "lowest cell", unit="V", scale=0.001),
    Draft("StrCellVMinMod", "uint16", "module: " + _INDEX),
    Draft("StrCellVAvg", "uint16", "mean of its cells", unit="V", scale=0.001),
    Draft("StrModTmpMax", "int16", "hottest cell", unit="degC", scale=0.1),
    Draft("StrModTmpMaxMod", "uint16", "module: " + _INDEX),
    Draft("StrModTmpMin", "int16", "coldest cell", unit="degC", scale=0.1),
    Draft("StrModTmpMinMod", "uint16", "module: " + _INDEX),
    Draft("StrModTmpAvg", "int16", "mean of its cells", unit="degC", scale=0.1),
    *not_implemented("enum16", "StrDisRsn"),
    *not_implemented("bitfield32", "StrConSt"),
    Draft("StrEvt1", "bitfield32", "25 its BMS has a stop or trip alarm, 26 a pre-alarm"),
    *not_implemented("bitfield32", "StrEvt2"),
    Draft("StrEvtVnd1", "bitfield32", _ALARMS_BMS),
    Draft("StrEvtVnd2", "bitfield32", "pre-alarms of its BMS"),
    *not_implemented("enum16", "StrSetEna StrSetCon"),
    reserve("Pad1", 1),
    reserve("Pad2", 1),
]  # fmt: skip
"""One string of model 803. The values of 803 to 805 are made from the cells, by firmware.string_units."""
BANK_FIRST = 40648
STRINGS = 4
"""The default in site.conf; the documents are written for it."""


def bank(strings: int) -> list[Row]:
    """Model 803, the last one: its length follows the number of strings."""
    groups = [
        draft._replace(name=draft.name if draft.reserve else f"string{n}.{draft.name}")
        for n in range(1, strings + 1)
        for draft in BANK_STRING
    ]
    return model(803, BANK_FIRST, 26 + 32 * strings, [*BANK, *groups])
