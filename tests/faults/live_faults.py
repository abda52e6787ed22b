"""Faults of the catalogue that the bench can cause, on the live appliance: named, and with their reaction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from waiting import wait_until

from drivers.bench.loops import LoopMode
from statemachine.faults import BY_NAME, Severity
from statemachine.signals import Mode
from statemachine.states import CLOSED, State

from .scenario import LIVE, Live, Reaction
from .stand import Stand


class Cause(NamedTuple):
    """Bench points that bring about a fault, from `start`."""

    fault: str
    points: Mapping[str, float]
    start: str = "charging"
    command: Mode | None = None  # sent after the points are set
    ends: frozenset[State] = frozenset()  # other ends that are allowed: another rule may be faster


_CLOSE, _OPEN = Mode.READY, Mode.OFF
_ANY_STOP = frozenset({State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT})
CAUSES = (
    Cause("ERR_MAX_V_EXCEEDED", {"forced_cell_v": 4.26}),
    Cause("ERR_CELL_OVERVOLTAGE", {"forced_cell_v": 4.4}, ends=_ANY_STOP),
    Cause("ERR_BMS_ALARM", {"bms_alarm_stop": 4}),
    Cause("ERR_BMS_TRIP", {"bms_alarm_trip": 4}),
    Cause("ERR_PCS_FAULT", {"pcs_fault_bits": 2}, ends=_ANY_STOP),
    Cause("ERR_CONTACTOR_WELDED", {"weld_pre": 1}, "isolated", _CLOSE, _ANY_STOP),
    Cause("ERR_CONTACTOR_DROPPED", {"drop_pos": 1}),
    Cause("ERR_CONTACTOR_STUCK", {"stuck_neg": 1}, "isolated", _CLOSE),
    Cause("ERR_PRECHARGE", {"pcs_dc_v": 500.0}, "isolated", _CLOSE),
    Cause("ERR_OVERCURRENT", {"bms_offset_a": -900.0}, ends=_ANY_STOP),
    Cause("ERR_DELTA_OFFSET", {"bms_offset_v": 13.4}, "isolated", _CLOSE, _ANY_STOP),
    Cause("ERR_CURRENT_WHILE_OPEN", {"bms_offset_a": -40.0}, "isolated"),
    Cause("ERR_THERMAL_LOOP", {"loop_mode_3": LoopMode.OPEN}),
    Cause("ERR_THERMAL_ZONE", {"loop_mode_3": LoopMode.OPEN, "loop_mode_4": LoopMode.OPEN}),
    Cause("ERR_LOOP_RATE", {"loop_ma_3": 9.0}),
    Cause("ERR_LOOP_DISAGREE", {"loop_ma_3": 15.5}),
    Cause("ERR_SAMPLER", {"loops_silent": 1}),
    Cause("ERR_INTERLOCK_CHATTER", {"chatter_interlock": 2, "chatter_period_ms": 200, "chatter_open_ms": 15},
          "isolated"),
    Cause("ERR_OUTPUT_READBACK", {"hold_coil_neg": 1, "hold_coil_pos": 1}, "charging", _OPEN, _ANY_STOP),
    Cause("ERR_SUPPLY_24V", {"supply_24v_lost": 1}),
    Cause("ERR_BMS_IDENTITY", {"bms_stranger": 1}),
    Cause("ERR_PCS_IDENTITY", {"pcs_stranger": 1}),
    Cause("ERR_CELL_SENSOR", {"cell_v_unmeasured": 1}),
    Cause("ERR_INSULATION_LOW", {"insulation_kohm": 200.0}),
    Cause("ERR_STRING_OFFLINE", {"offline_string": 2}),
    Cause("ERR_BMS_WARNING", {"bms_alarm_warn": 4}),
    Cause("ERR_CELL_DEEP_DISCHARGE", {"forced_cell_v": 1.0}, ends=_ANY_STOP),
    Cause("ERR_DC_OVERVOLTAGE", {"pcs_dc_v": 1400.0}),
    Cause("ERR_CURRENT_MISMATCH", {"pcs_gain": 0.5}),
    Cause("ERR_PCS_NOT_FOLLOWING", {"pcs_follow_pct": 30.0}),
)  # fmt: skip
END = {
    Severity.STOP: State.FAULT, Severity.TRIP: State.EMERGENCY_STOP, Severity.LOCKOUT: State.LOCKOUT,
}  # fmt: skip


def caused(cause: Cause, s: Stand) -> Reaction:
    """The fault is named in log and registers, and the rack ends where its severity says."""
    severity = BY_NAME[cause.fault].severity
    since = s.inject(**cause.points)
    if cause.command is not None:
        s.command(cause.command)
    ms = s.after_ms(since, f"FAULT ON {cause.fault}", 45)
    if severity in END:
        s.until(*(cause.ends | {END[severity]}))
        wait_until(s.circuit_open, 15, "a true main contactor opens")
        s.shows(cause.fault)
    elif severity is Severity.DERATE:
        wait_until(lambda: s.get("AChaMax") <= 560.0 and s.truth("true_pos") == 1, 10, "current limited, still closed")
    else:
        assert s.state() in CLOSED or cause.start != "charging" or cause.ends, s.state()
    return Reaction(ms, s.allowance_ms)


for _cause in CAUSES:
    LIVE.setdefault(_cause.fault, Live(partial(caused, _cause), _cause.start, 1, False))
