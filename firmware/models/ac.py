"""Models 701, 702 and 704, the AC side: measured by the PCS, rated by the configuration, commanded through 704.

The PCS reports active power, frequency and, when its profile has it, the voltage; no AC current or reactive power.
"""

from __future__ import annotations

from math import nan

from statemachine.faults import SEVERE_MASK
from statemachine.ratings import rated_charge_w, rated_discharge_w
from statemachine.states import CLOSED, State

from ..image import Status
from ..sunspec import (
    Ability,
    AcType,
    Connection,
    ControlMode,
    Operation,
    PcsOperation,
    WSetMode,
)
from .draft import Draft, not_implemented, of_settings, of_status, sf, text
from .grid import DAY_S

_OPERATION = {
    State.PRECHARGE: PcsOperation.STARTING,
    State.READY: PcsOperation.STANDBY,
    State.CHARGED: PcsOperation.STANDBY,
    State.STOPPING: PcsOperation.SHUTTING_DOWN,
    State.FAULT: PcsOperation.FAULT,
    State.EMERGENCY_STOP: PcsOperation.FAULT,
    State.LOCKOUT: PcsOperation.FAULT,
}


def _pcs_operation(status: Status) -> PcsOperation:
    running = PcsOperation.RUNNING if status.state in CLOSED else PcsOperation.OFF
    return _OPERATION.get(State(status.state), running)


ALARMS = {0: 6, 1: 5, 2: 0, 4: 1, 5: 1, 7: 7, 8: 7, 16: 3, 56: 1}
"""Fault.bit -> bit of 701.Alrm and 714.DCAlrm."""
_MANUFACTURER_ALARM = 16


def _alarms(status: Status) -> int:
    """Every other severe fault is a manufacturer alarm; warnings are none."""
    bits, found = status.faults_active | status.faults_latched, 0
    for bit in range(bits.bit_length()):
        if bits >> bit & 1 and (bit in ALARMS or SEVERE_MASK >> bit & 1):
            found |= 1 << ALARMS.get(bit, _MANUFACTURER_ALARM)
    return found


MEASUREMENT = [
    Draft("ACType", "enum16", "AC wiring", values=AcType, fixed=AcType.THREE_PHASE),
    Draft("St", "enum16", "ON while the contactors are closed", "status",
          of_status(lambda s: Operation.ON if s.state in CLOSED else Operation.OFF), values=Operation),
    Draft("InvSt", "enum16", "state of battery and PCS together", "status", of_status(_pcs_operation),
          values=PcsOperation),
    Draft("ConnSt", "enum16", "CONNECTED while the PCS is told to run", "status",
          of_status(lambda s: Connection.CONNECTED if s.pcs_run else Connection.DISCONNECTED), values=Connection),
    Draft("Alrm", "bitfield32", "alarms: 0 ground fault, 1 DC overvoltage, 3 DC disconnect, 5 cabinet open, 6 manual "
          "shutdown, 7 over temperature, 16 another, see FaultBits", "status", of_status(_alarms)),
    *not_implemented("bitfield32", "DERMode"),
    Draft("W", "int16", "AC power by the PCS, + is discharge", "pcs.ac_w", unit="W", scale=1000),
    *not_implemented("int16", "VA Var PF A"),
    Draft("LLV", "uint16", "grid voltage by the PCS, line to line", "pcs.ac_v", unit="V", scale=0.1),
    *not_implemented("uint16", "LNV"),
    Draft("Hz", "uint32", "grid frequency by the PCS", "pcs.ac_hz", unit="Hz", scale=0.001),
    *not_implemented("uint64", "TotWhInj TotWhAbs TotVarhInj TotVarhAbs"),
    *not_implemented("int16", "TmpAmb TmpCab TmpSnk TmpTrns TmpSw TmpOt"),
    *[
        draft
        for n, pair in enumerate(("L1L2", "L2L3", "L3L1"), 1)
        for draft in (
            *not_implemented("int16", f"WL{n} VAL{n} VarL{n} PFL{n} AL{n}"),
            *not_implemented("uint16", f"V{pair} VL{n}"),
            *not_implemented("uint64", f"TotWhInjL{n} TotWhAbsL{n} TotVarhInjL{n} TotVarhAbsL{n}"),
        )
    ],
    *not_implemented("uint16", "ThrotPct"),
    *not_implemented("bitfield32", "ThrotSrc"),
    sf("A_SF", nan),
    sf("V_SF", -1),
    sf("Hz_SF", -3),
    sf("W_SF", 3),
    sf("PF_SF", nan),
    sf("VA_SF", nan),
    sf("Var_SF", nan),
    sf("TotWh_SF", nan),
    sf("TotVarh_SF", nan),
    sf("Tmp_SF", nan),
    text("MnAlrmInfo", 32, "not implemented, see FaultBits"),
]  # fmt: skip

_discharge_w, _charge_w = of_settings(rated_discharge_w), of_settings(rated_charge_w)
_SETTING = "as its rating; set in limits.conf"
CAPACITY = [
    Draft("WMaxRtg", "uint16", "rated discharge power", "settings", _discharge_w, unit="W", scale=100),
    *not_implemented(
        "uint16", "WOvrExtRtg WOvrExtRtgPF WUndExtRtg WUndExtRtgPF VAMaxRtg VarMaxInjRtg VarMaxAbsRtg"
    ),
    Draft("WChaRteMaxRtg", "uint16", "rated charge power", "settings", _charge_w, unit="W", scale=100),
    Draft("WDisChaRteMaxRtg", "uint16", "rated discharge power", "settings", _discharge_w, unit="W", scale=100),
    *not_implemented(
        "uint16", "VAChaRteMaxRtg VADisChaRteMaxRtg"
    ),
    Draft("VNomRtg", "uint16", "nominal AC voltage, line to line", "settings",
          of_settings(lambda s: s.nominal_voltage), unit="V", scale=0.1),
    *not_implemented("uint16", "VMaxRtg VMinRtg AMaxRtg PFOvrExtRtg PFUndExtRtg ReactSusceptRtg"),
    *not_implemented("enum16", "NorOpCatRtg AbnOpCatRtg"),
    Draft("CtrlModes", "bitfield32", "control modes: bit 0 limit (704.WMaxLimPct), 1 fixed W (704.WSet), 5 droop (711)",
          fixed=sum(1 << mode for mode in ControlMode)),
    *not_implemented("bitfield16", "IntIslandCatRtg"),
    Draft("WMax", "uint16", _SETTING, "settings", _discharge_w, unit="W", scale=100),
    *not_implemented("uint16", "WMaxOvrExt WOvrExtPF WMaxUndExt WUndExtPF VAMax VarMaxInj VarMaxAbs"),
    Draft("WChaRteMax", "uint16", _SETTING, "settings", _charge_w, unit="W", scale=100),
    Draft("WDisChaRteMax", "uint16", _SETTING, "settings", _discharge_w, unit="W", scale=100),
    *not_implemented("uint16", "VAChaRteMax VADisChaRteMax VNom VMax VMin AMax PFOvrExt PFUndExt"),
    *not_implemented("bitfield16", "IntIslandCat"),
    sf("W_SF", 2),
    sf("PF_SF", nan),
    sf("VA_SF", nan),
    sf("Var_SF", nan),
    sf("V_SF", -1),
    sf("A_SF", nan),
    sf("S_SF", nan),
]  # fmt: skip

MAX_W = 5_000_000
SPAN_W = (-MAX_W, MAX_W)
_PCT = (-100, 100)
WSET_GROUP = (
    "WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms",
)  # fmt: skip
LIMIT_GROUP = ("WMaxLimPctEna", "WMaxLimPct", "WMaxLimPctRvrt", "WMaxLimPctEnaRvrt", "WMaxLimPctRvrtTms")
CONTROLS = [
    *not_implemented("enum16", "PFWInjEna PFWInjEnaRvrt"),
    *not_implemented("uint32", "PFWInjRvrtTms PFWInjRvrtRem"),
    *not_implemented("enum16", "PFWAbsEna PFWAbsEnaRvrt"),
    *not_implemented("uint32", "PFWAbsRvrtTms PFWAbsRvrtRem"),
    Draft("WMaxLimPctEna", "enum16", "limit of the discharge power in force", values=Ability, writable=True, fixed=0),
    Draft("WMaxLimPct", "uint16", "the limit in % of 702.WMax", unit="%", scale=0.1, span=(0, 100), fixed=100),
    Draft("WMaxLimPctRvrt", "uint16", "limit after the reversion time", unit="%", scale=0.1, span=(0, 100), fixed=100),
    Draft("WMaxLimPctEnaRvrt", "enum16", "WMaxLimPctEna after the reversion time", values=Ability, writable=True,
          fixed=0),
    Draft("WMaxLimPctRvrtTms", "uint32", "reversion time, restarted by each write to the group; 0 = none", unit="s",
          span=(0, DAY_S), fixed=0),
    Draft("WMaxLimPctRvrtRem", "uint32", "reversion time left", "status.limit_remaining_s", unit="s"),
    Draft("WSetEna", "enum16", "power set-point in force in mode grid", values=Ability, writable=True, fixed=0),
    Draft("WSetMod", "enum16", "which set-point counts", values=WSetMode, writable=True, fixed=WSetMode.WATTS),
    Draft("WSet", "int32", "power set-point, - = charge", unit="W", span=SPAN_W, fixed=0),
    Draft("WSetRvrt", "int32", "set-point after the reversion time", unit="W", span=SPAN_W, fixed=0),
    Draft("WSetPct", "int16", "set-point in % of 802.WDisChaRteMax (- : of 802.WChaRteMax)", unit="%", scale=0.1,
          span=_PCT, fixed=0),
    Draft("WSetPctRvrt", "int16", "set-point in % after the reversion time", unit="%", scale=0.1, span=_PCT, fixed=0),
    Draft("WSetEnaRvrt", "enum16", "WSetEna after the reversion time", values=Ability, writable=True, fixed=0),
    Draft("WSetRvrtTms", "uint32", "reversion time, restarted by each write to the group; 0 = none", unit="s",
          span=(0, DAY_S), fixed=0),
    Draft("WSetRvrtRem", "uint32", "reversion time left", "status.wset_remaining_s", unit="s"),
    *not_implemented("enum16", "VarSetEna VarSetMod VarSetPri"),
    *not_implemented("int32", "VarSet VarSetRvrt"),
    *not_implemented("int16", "VarSetPct VarSetPctRvrt"),
    *not_implemented("enum16", "VarSetEnaRvrt"),
    *not_implemented("uint32", "VarSetRvrtTms VarSetRvrtRem"),
    *not_implemented("uint16", "WRmp"),
    *not_implemented("enum16", "WRmpRef"),
    *not_implemented("uint16", "VarRmp"),
    *not_implemented("enum16", "AntiIslEna"),
    sf("PF_SF", nan),
    sf("WMaxLimPct_SF", -1),
    sf("WSet_SF", 0),
    sf("WSetPct_SF", -1),
    sf("VarSet_SF", nan),
    sf("VarSetPct_SF", nan),
    *[
        draft
        for group in ("PFWInj", "PFWInjRvrt", "PFWAbs", "PFWAbsRvrt")
        for draft in (*not_implemented("uint16", f"{group}.PF"), *not_implemented("enum16", f"{group}.Ext"))
    ],
]  # fmt: skip
