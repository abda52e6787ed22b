"""Every condition of the fault catalogue at its edge: the last healthy value and the first that is not."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from rig import ARMED, CLOCK, COMMAND, NONE, STORE, Rig, settings
from samples import BMS, PCS

from statemachine import detect
from statemachine.charge import Loops
from statemachine.contactors import Coils, Phase, Sequence
from statemachine.delta import Delta
from statemachine.detect import Chatter, Seen
from statemachine.faults import BY_NAME, FAULTS
from statemachine.loops import Judged
from statemachine.signals import GuardTrip, Lines, PcsState, WatchdogState
from statemachine.states import State
from statemachine.wear import Wear

S = settings()  # 1,120 Ah, 1,260 V, stop above 50 degC, trip above 60 degC
CELL = S.cell
CALIBRATED = Delta(offset_v=0.0)
LINES = Rig().inputs(NONE).lines._replace(fb_neg=True, fb_pos=True, out_neg=True, out_pos=True)
INPUTS = Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0).inputs(NONE)._replace(lines=LINES)
READY = Seen(
    inputs=INPUTS, settings=S, bms=BMS, pcs=PCS, loops=Judged(hottest_c=26.0), state=State.READY, in_state_ms=20_000.0,
    coils=Coils(True, True, False), unchanged_ms=20_000.0, sequence=Sequence(Phase.CLOSED), delta=CALIBRATED,
    demand_a=0.0, allowed_a=(560.0, 280.0), heartbeat_lost=False, opened_under_load=False, closed_under_load=False,
    balance_over=False, chatter=0.0, wear=Wear(),
)  # fmt: skip
OPENED = {"fb_neg": False, "fb_pos": False, "out_neg": False, "out_pos": False}


def changed(v: Seen, **changes: Any) -> Seen:
    """`bms={"rack_v": 1.0}` changes a field of a part, anything else is put in the part's place."""
    for part, change in changes.items():
        if part == "lines":
            v = changed(v, inputs={"lines": v.inputs.lines._replace(**change)})
        elif part == "settings" and isinstance(change, dict):
            v = v._replace(settings=replace(S, **change))
        elif isinstance(change, dict):
            v = v._replace(**{part: getattr(v, part)._replace(**change)})
        else:
            v = v._replace(**{part: change})
    return v


ISOLATED = changed(READY, state=State.ISOLATED, coils=NONE, lines=OPENED, sequence=Sequence(), delta=Delta())
NOT_SEEN = Judged(hottest_c=nan)
FAR = {"rack_a": 5.0, "cell_v_min": 2.0}
NO_24V = {"kill_ok": False, "tamper_ok": False, "insulation_ok": False, "interlocks": 0}
IN_FAULT = {"state": State.FAULT, "coils": NONE}
Edge = tuple[str, dict[str, Any], bool]

CLOSED_EDGES: list[Edge] = [
    ("kill_switch", {"lines": {"kill_ok": False}}, True),
    ("tamper", {"lines": {"tamper_ok": False}}, True),
    ("ground_fault", {"bms": {"insulation_kohm": 100.0}}, False),
    ("ground_fault", {"bms": {"insulation_kohm": 99.9}}, True),
    ("ground_fault", {"bms": {"insulation_kohm": nan}}, False),
    ("ground_fault", {"bms": None}, False),
    ("ground_fault", {"lines": {"insulation_ok": False}}, True),
    ("ground_fault", {"lines": {"insulation_ok": False}, "bms": None}, True),
    ("insulation_low", {"bms": {"insulation_kohm": 200.0}}, False),
    ("insulation_low", {"bms": {"insulation_kohm": 199.9}}, True),
    ("insulation_low", {"bms": {"insulation_kohm": nan}}, False),
    ("insulation_low", {"bms": {"insulation_kohm": 199.9}, "settings": None}, False),
    ("delta_v", {"delta": {"bad_in_row": 2}}, False),
    ("delta_v", {"delta": {"bad_in_row": 3}}, True),
    ("max_v_exceeded", {"bms": {"cell_v_max": CELL.v_stop_v}}, False),
    ("max_v_exceeded", {"bms": {"cell_v_max": CELL.v_stop_v + 0.001}}, True),
    ("max_v_exceeded", {"bms": {"rack_v": 1272.5}}, False),
    ("max_v_exceeded", {"bms": {"rack_v": 1272.7}}, True),
    ("cell_overvoltage", {"bms": {"cell_v_max": CELL.v_trip_v}}, False),
    ("cell_overvoltage", {"bms": {"cell_v_max": CELL.v_trip_v + 0.001}}, True),
    ("min_v_exceeded", {"bms": {"rack_a": 5.0, "cell_v_min": CELL.v_min_v - 0.0499}}, False),
    ("min_v_exceeded", {"bms": {"rack_a": 5.0, "cell_v_min": CELL.v_min_v - 0.0501}}, True),
    ("max_v_exceeded", {"bms": {"rack_v": 1010.0}, "settings": {"max_charge_voltage": 1000.0}}, False),
    ("max_v_exceeded", {"bms": {"rack_v": 1010.1}, "settings": {"max_charge_voltage": 1000.0}}, True),
    ("min_v_exceeded", {"bms": {"rack_a": 5.0, "cell_v_min": 2.75}}, False),
    ("min_v_exceeded", {"bms": {"rack_a": 2.0, "cell_v_min": 2.0}}, True),
    ("min_v_exceeded", {"bms": {"rack_a": 1.99, "cell_v_min": 2.0}}, False),
    ("min_v_exceeded", {"bms": {"rack_a": -50.0, "cell_v_min": 2.0}}, False),
    ("over_temperature", {"bms": {"cell_c_max": 50.0}}, False),
    ("over_temperature", {"bms": {"cell_c_max": 50.1}}, True),
    ("over_temperature", {"bms": {"cell_c_max": nan}}, False),
    ("over_temperature", {"loops": {"hottest_c": 50.1}}, True),
    ("over_temperature", {"loops": {"hottest_c": 50.1}, "bms": None}, True),
    ("over_temperature", {"loops": {"hottest_c": 50.1}, "bms": {"cell_c_max": nan}}, True),
    ("over_temperature", {"loops": NOT_SEEN, "bms": {"cell_c_max": 50.1}}, True),
    ("over_temperature", {"loops": NOT_SEEN, "bms": None}, False),
    ("thermal_trip", {"bms": {"cell_c_max": 60.0}}, False),
    ("thermal_trip", {"bms": {"cell_c_max": 60.1}}, True),
    ("thermal_trip", {"loops": {"hottest_c": 60.1}}, True),
    ("thermal_trip", {"loops": NOT_SEEN, "bms": None}, False),
    ("comm_lost", {"bms": None}, True),
    ("comm_lost", {"bms": None, "inputs": {"bms": None}}, True),
    ("comm_lost", {"bms": None, "inputs": {"bms": BMS._replace(identity_ok=False)}}, False),
    ("comm_lost", {"bms": None, "inputs": {"bms": BMS._replace(identity_ok=False), "bms_age_ms": 3000.1}}, True),
    ("pcs_lost", {"pcs": None}, True),
    ("pcs_lost", {"pcs": None, "inputs": {"pcs": None}}, True),
    ("pcs_lost", {"pcs": None, "inputs": {"pcs": PCS._replace(identity_ok=False)}}, False),
    ("pcs_lost", {"pcs": None, "inputs": {"pcs": PCS._replace(identity_ok=False), "pcs_age_ms": 3000.1}}, True),
    ("bms_identity", {"inputs": {"bms": BMS._replace(identity_ok=False), "bms_age_ms": 3000.0}}, True),
    ("bms_identity", {"inputs": {"bms": BMS._replace(identity_ok=False), "bms_age_ms": 3000.1}}, False),
    ("bms_identity", {"inputs": {"bms": None}}, False),
    ("pcs_identity", {"inputs": {"pcs": PCS._replace(identity_ok=False), "pcs_age_ms": 3000.0}}, True),
    ("pcs_identity", {"inputs": {"pcs": PCS._replace(identity_ok=False), "pcs_age_ms": 3000.1}}, False),
    ("pcs_identity", {"inputs": {"pcs": None}}, False),
    ("bms_alarm", {"bms": {"alarm_stop": 1}}, True),
    ("bms_alarm", {"bms": {"alarm_stop": 2}}, True),
    ("bms_alarm", {"bms": {"alarm_trip": 1, "alarm_warn": 1}}, False),
    ("bms_trip", {"bms": {"alarm_trip": 1}}, True),
    ("bms_trip", {"bms": {"alarm_trip": 2}}, True),
    ("bms_trip", {"bms": {"alarm_stop": 1, "alarm_warn": 1}}, False),
    ("bms_warning", {"bms": {"alarm_warn": 1}}, True),
    ("bms_warning", {"bms": {"alarm_warn": 2}}, True),
    ("bms_warning", {"bms": {"alarm_stop": 1, "alarm_trip": 1}}, False),
    ("pcs_fault", {"pcs": {"fault_bits": 1}}, True),
    ("pcs_fault", {"pcs": {"fault_bits": 2}}, True),
    ("pcs_fault", {"pcs": {"state": PcsState.FAULT}}, True),
    ("pcs_fault", {"pcs": {"state": PcsState.OFF}}, False),
    ("interlock_open", {"lines": {"interlocks": 0xF7}}, True),
    ("interlock_open", {"lines": {"interlocks": 0xF7}, "settings": {"interlocks_required": 0xF7}}, False),
    ("interlock_open", {"lines": {"interlocks": 0xF7}, "settings": {"interlocks_required": 0x08}}, True),
    ("contactor_welded", {"lines": {"fb_pre": True}}, True),
    ("contactor_dropped", {"lines": {"fb_neg": False}}, True),
    ("contactor_dropped", {"lines": {"fb_pos": False}}, True),
    ("contactor_dropped", {"lines": {"fb_neg": False}, "sequence": {"phase": Phase.RELEASE}}, False),
    ("contactor_dropped", {"lines": {"fb_neg": False}, "coils": NONE}, False),
    ("precharge", {"sequence": Sequence(Phase.OPEN, failed=True, failed_in=Phase.PRECHARGE)}, True),
    ("precharge", {"sequence": Sequence(Phase.OPEN, failed=True, failed_in=Phase.NEGATIVE)}, False),
    ("precharge", {"sequence": {"failed_in": Phase.PRECHARGE}}, False),
    ("precharge", {"state": State.PRECHARGE, "in_state_ms": 199_999.0}, False),
    ("precharge", {"state": State.PRECHARGE, "in_state_ms": 200_000.0}, True),
    ("precharge", {"in_state_ms": 200_000.0}, False),
    ("contactor_stuck", {"sequence": Sequence(Phase.OPEN, failed=True, failed_in=Phase.NEGATIVE)}, True),
    ("contactor_stuck", {"sequence": Sequence(Phase.OPEN, failed=True, failed_in=Phase.PRECHARGE)}, False),
    ("contactor_stuck", {"sequence": Sequence(Phase.OPEN, failed_in=Phase.NEGATIVE)}, False),
    ("stop_timeout", {"state": State.STOPPING, "in_state_ms": 69_999.0}, False),
    ("stop_timeout", {"state": State.STOPPING, "in_state_ms": 70_000.0}, True),
    ("stop_timeout", {"in_state_ms": 70_000.0}, False),
    ("guard", {"inputs": {"guard": None}}, True),
    ("guard", {"inputs": {"guard_age_ms": 100.0}}, False),
    ("guard", {"inputs": {"guard_age_ms": 100.1}}, True),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False)}}, True),
    ("guard", {"inputs": {"guard": None}, "state": State.INIT}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(trip=GuardTrip.HEARTBEAT_LATE)}}, False),
    ("scan_overrun", {"inputs": {"overruns_in_row": 2}}, False),
    ("scan_overrun", {"inputs": {"overruns_in_row": 3}}, True),
    ("controller_restart", {"inputs": {"restarted": True}}, True),
    ("overcurrent", {"bms": {"rack_a": -638.3}}, False),
    ("overcurrent", {"bms": {"rack_a": -638.5}}, True),
    ("overcurrent", {"bms": {"rack_a": 330.3}}, False),
    ("overcurrent", {"bms": {"rack_a": 330.5}}, True),
    ("overcurrent", {"bms": {"rack_a": 20.0}, "settings": {"rated_ah": 1000.0}, "allowed_a": (9.0, 0.0)}, False),
    ("overcurrent", {"bms": {"rack_a": 20.1}, "settings": {"rated_ah": 1000.0}, "allowed_a": (9.0, 0.0)}, True),
    ("overcurrent", {"bms": {"rack_a": -20.0}, "settings": {"rated_ah": 1000.0}, "allowed_a": (0.0, 9.0)}, False),
    ("overcurrent", {"bms": {"rack_a": -20.1}, "settings": {"rated_ah": 1000.0}, "allowed_a": (0.0, 9.0)}, True),
    ("delta_offset", {"delta": Delta(offset_v=12.0)}, False),
    ("delta_offset", {"delta": Delta(offset_v=-12.0)}, False),
    ("delta_offset", {"delta": Delta(offset_v=12.1)}, True),
    ("delta_offset", {"delta": Delta(offset_v=-12.1)}, True),
    ("delta_offset", {"delta": {"bms_ms": 3000.0}}, False),
    ("delta_offset", {"delta": {"bms_ms": 3001.0}}, True),
    ("delta_offset", {"delta": Delta(), "in_state_ms": 10_000.0}, False),
    ("delta_offset", {"delta": Delta(), "in_state_ms": 10_001.0}, True),
    ("delta_offset", {"delta": Delta(), "in_state_ms": 10_001.0, "state": State.CHARGE_BULK}, False),
    ("init_timeout", {"state": State.INIT, "in_state_ms": 29_999.0}, False),
    ("init_timeout", {"state": State.INIT, "in_state_ms": 30_000.0}, True),
    ("init_timeout", {"in_state_ms": 30_000.0}, False),
    ("opened_under_load", {"opened_under_load": True}, True),
    ("closed_under_load", {"closed_under_load": True}, True),
    ("thermal_loop", {"loops": {"failed": 0b111, "stuck": 0b001, "jumped": 0b010}}, True),
    ("thermal_loop", {"loops": {"failed": 0b011, "stuck": 0b001, "jumped": 0b010}}, False),
    ("thermal_loop", {"loops": {"failed": 0b010}}, True),
    ("thermal_loop", {"loops": {"failed": 0b001}}, True),
    ("thermal_loop", {"loops": {"failed": 0b111, "stale": True}}, False),
    ("thermal_zone", {"loops": {"zone_lost": True}}, True),
    ("loop_disagree", {"loops": {"disagree": True}}, True),
    ("loop_stuck", {"loops": {"stuck": 1}}, True),
    ("loop_stuck", {"loops": {"stuck": 2}}, True),
    ("loop_stuck", {"loops": {"jumped": 1, "failed": 1}}, False),
    ("loop_rate", {"loops": {"jumped": 1}}, True),
    ("loop_rate", {"loops": {"jumped": 2}}, True),
    ("loop_rate", {"loops": {"stuck": 1, "failed": 1}}, False),
    ("sampler", {"loops": {"stale": True}}, True),
    ("sampler", {"loops": {"stale": True}, "settings": {"loops_used": 0}}, False),
    ("sampler", {"loops": {"stale": True}, "settings": {"loops_used": 1}}, True),
    ("interlock_chatter", {"chatter": 19.9}, False),
    ("interlock_chatter", {"chatter": 20.0}, True),
    ("output_readback", {"lines": {"out_neg": False}}, True),
    ("output_readback", {"lines": {"out_pos": False}}, True),
    ("output_readback", {"lines": {"out_pre": True}}, True),
    ("output_readback", {"lines": {"out_pos": False, "out_pre": True}, "coils": Coils(True, False, True)}, False),
    ("supply_24v", {"lines": NO_24V}, True),
    ("supply_24v", {"lines": {**NO_24V, "kill_ok": True}}, False),
    ("supply_24v", {"lines": {**NO_24V, "tamper_ok": True}}, False),
    ("supply_24v", {"lines": {**NO_24V, "insulation_ok": True}}, False),
    ("supply_24v", {"lines": {**NO_24V, "interlocks": 0x01}}, False),
    ("supply_24v", {"lines": {**NO_24V, "interlocks": 0x01}, "settings": {"interlocks_required": 0xFE}}, True),
    ("supply_24v", {"lines": NO_24V, "settings": {"interlocks_required": 0x01}}, True),
    ("supply_24v", {"lines": NO_24V, "settings": {"interlocks_required": 0}}, False),
    ("closings_per_hour", {"wear": {"closing_level": 20.0}}, False),
    ("precharge_hot", {"wear": {"precharge_level": 6.0}}, False),
    ("contactor_abused", {"wear": {"opened_under_load": 10}}, False),
    ("contactor_worn", {"wear": {"cycles": 99_999}}, False),
    ("contactor_worn", {"wear": {"cycles": 100_000}}, True),
    ("bms_link_poor", {"bms": {"loss_pct": 2.0}}, False),
    ("bms_link_poor", {"bms": {"loss_pct": 2.1}}, True),
    ("pcs_link_poor", {"pcs": {"loss_pct": 2.0}}, False),
    ("pcs_link_poor", {"pcs": {"loss_pct": 2.1}}, True),
    ("cell_sensor", {"bms": {"cells_bad": 1}}, True),
    ("string_offline", {"bms": {"strings_online": 3}}, True),
    ("string_offline", {"bms": {"strings_online": 5}}, False),
    ("cell_deep_discharge", {"bms": {"cell_v_min": CELL.v_dead_v}}, False),
    ("cell_deep_discharge", {"bms": {"cell_v_min": CELL.v_dead_v - 0.001}}, True),
    ("dc_overvoltage", {"pcs": {"dc_v": 1322.9}}, False),
    ("dc_overvoltage", {"pcs": {"dc_v": 1323.1}}, True),
    ("dc_overvoltage", {"pcs": {"dc_v": 1050.0}, "settings": {"max_charge_voltage": 1000.0}}, False),
    ("current_mismatch", {"bms": {"rack_a": 400.0}, "pcs": {"dc_a": 360.0}, "settings": {"rated_ah": 1e3}}, False),
    ("current_mismatch", {"bms": {"rack_a": 22.3}}, False),
    ("current_mismatch", {"bms": {"rack_a": 22.4 / 0.95 + 0.1}}, True),
    ("current_mismatch", {"bms": {"rack_a": -500.0}, "pcs": {"dc_a": -452.7}}, False),
    ("current_mismatch", {"bms": {"rack_a": -500.0}, "pcs": {"dc_a": -452.5}}, True),
    ("current_mismatch", {"bms": {"rack_a": 452.7}, "pcs": {"dc_a": 500.0}}, False),
    ("current_mismatch", {"bms": {"rack_a": 452.5}, "pcs": {"dc_a": 500.0}}, True),
    ("current_mismatch", {"bms": {"rack_a": 50.0}, "pcs": {"dc_a": -50.0}}, True),
    ("current_mismatch", {"demand_a": 500.0}, False),
    ("pcs_not_following", {"demand_a": -500.0, "pcs": {"dc_a": -452.7}}, False),
    ("pcs_not_following", {"demand_a": -500.0, "pcs": {"dc_a": -452.5}}, True),
    ("pcs_not_following", {"demand_a": -500.0, "sequence": {"phase": Phase.RELEASE}}, False),
    ("server_lost", {"inputs": {"command_age_ms": 2000.0}}, False),
    ("server_lost", {"inputs": {"command_age_ms": 2000.1}}, True),
    ("server_lost", {"inputs": {"command": None}}, True),
    ("store", {"inputs": {"store": None}}, True),
    ("store", {"inputs": {"store": STORE._replace(writes_ok=False)}}, True),
    ("store", {"inputs": {"store_age_ms": 5000.0}}, False),
    ("store", {"inputs": {"store_age_ms": 5000.1}}, True),
    ("clock", {"inputs": {"clock": None}}, True),
    ("clock", {"inputs": {"clock_age_ms": 10_000.0}}, False),
    ("clock", {"inputs": {"clock_age_ms": 10_000.1}}, True),
    ("clock", {"inputs": {"clock": CLOCK._replace(trusted=False)}}, False),
    ("clock", {"inputs": {"clock": CLOCK._replace(trusted=False)}, "settings": {"clock_servers": 1}}, True),
    ("clock", {"settings": {"clock_servers": 1}}, False),
    ("clock", {"inputs": {"clock": CLOCK._replace(trusted=False)}, "settings": None}, False),
    ("watchdog", {"inputs": {"guard": ARMED._replace(watchdog=WatchdogState.FAILED)}}, True),
    ("watchdog", {"inputs": {"guard": ARMED._replace(watchdog=WatchdogState.RUNNING)}}, False),
    ("watchdog", {"inputs": {"guard": None}}, False),
    ("site_heartbeat", {"heartbeat_lost": True}, True),
    ("balance_timeout", {"balance_over": True}, True),
    ("config", {"inputs": {"command": COMMAND._replace(config_error=True)}}, True),
    ("config", {"inputs": {"command": None}}, False),
    ("bms_implausible", {"bms": {"plausible": False}}, True),
    ("bms_implausible", {"bms": {"plausible": False, "cells_bad": 1}}, False),
    ("current_while_open", {"bms": {"rack_a": 50.0}}, False),
]  # fmt: skip
"""On closed contactors in READY, where everything is well."""

OPEN_EDGES: list[Edge] = [
    ("comm_lost", {"bms": None}, False),
    ("pcs_lost", {"pcs": None}, False),
    ("comm_lost", {"bms": None, **IN_FAULT}, True),
    ("pcs_lost", {"pcs": None, **IN_FAULT}, True),
    ("bms_alarm", {"bms": {"alarm_stop": 1}}, False),
    ("bms_trip", {"bms": {"alarm_trip": 1}}, False),
    ("pcs_fault", {"pcs": {"fault_bits": 1, "state": PcsState.FAULT}}, False),
    ("interlock_open", {"lines": {"interlocks": 0xF7}}, False),
    ("thermal_zone", {"loops": {"zone_lost": True}}, False),
    ("sampler", {"loops": {"stale": True}}, False),
    ("cell_sensor", {"bms": {"cells_bad": 1}}, False),
    ("bms_implausible", {"bms": {"plausible": False}}, False),
    ("contactor_welded", {"lines": {"fb_neg": True}}, True),
    ("contactor_welded", {"lines": {"fb_pos": True}}, True),
    ("contactor_welded", {"lines": {"fb_pre": True}}, True),
    ("contactor_dropped", {"sequence": {"phase": Phase.CLOSED}}, False),
    ("delta_offset", {"in_state_ms": 10_001.0}, False),
    ("closings_per_hour", {"wear": {"closing_level": 19.0}}, False),
    ("closings_per_hour", {"wear": {"closing_level": 19.1}}, True),
    ("precharge_hot", {"wear": {"precharge_level": 5.0}}, False),
    ("precharge_hot", {"wear": {"precharge_level": 5.1}}, True),
    ("contactor_abused", {"wear": {"opened_under_load": 5, "closed_under_load": 4}}, False),
    ("contactor_abused", {"wear": {"opened_under_load": 5, "closed_under_load": 5}}, True),
    ("dc_overvoltage", {"pcs": {"dc_v": 1400.0}}, False),
    ("current_mismatch", {"bms": {"rack_a": 100.0}}, False),
    ("pcs_not_following", {"demand_a": 100.0}, False),
    ("current_while_open", {"bms": {"rack_a": 5.0}}, False),
    ("current_while_open", {"bms": {"rack_a": 5.1}}, True),
    ("current_while_open", {"bms": {"rack_a": -5.1}}, True),
    ("current_while_open", {"bms": {"rack_a": 5.1}, "unchanged_ms": 350.0}, False),
    ("current_while_open", {"bms": {"rack_a": 5.1}, "unchanged_ms": 350.1}, True),
    ("current_while_open", {"bms": {"rack_a": 5.1}, "coils": Coils(True, False, False)}, False),
    ("current_while_open", {"bms": {"rack_a": 5.1}, "lines": {"fb_neg": True}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.NONE)}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.START)}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.KILL_SWITCH)}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.TAMPER)}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.CONTROLLER_TRIP)}}, False),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.HEARTBEAT_LATE)}}, True),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.CONTROLLER_RESTARTED)}}, True),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.GUARD_RESTARTED)}}, True),
    ("guard", {"inputs": {"guard": ARMED._replace(armed=False, trip=GuardTrip.GUARD_STALLED)}}, True),
    ("guard", {"inputs": {"guard": ARMED._replace(trip=GuardTrip.HEARTBEAT_LATE)}}, False),
    ("guard", {"inputs": {"guard": None}}, True),
]  # fmt: skip
"""On open contactors in ISOLATED: what only counts where something is energised or waits for its cause to go."""


def bit(name: str) -> int:
    return 1 << BY_NAME[f"ERR_{name.upper()}"].bit


def test_a_healthy_rack_shows_nothing_closed_or_open() -> None:
    assert detect.raw(READY) == 0
    assert detect.raw(ISOLATED) == 0


@pytest.mark.parametrize(("name", "changes", "stands"), CLOSED_EDGES)
def test_a_condition_at_its_edge_on_closed_contactors(name: str, changes: dict[str, Any], stands: bool) -> None:
    assert bool(detect.raw(changed(READY, **changes)) & bit(name)) is stands


@pytest.mark.parametrize(("name", "changes", "stands"), OPEN_EDGES)
def test_a_condition_at_its_edge_on_open_contactors(name: str, changes: dict[str, Any], stands: bool) -> None:
    assert bool(detect.raw(changed(ISOLATED, **changes)) & bit(name)) is stands


def test_every_condition_was_seen_to_stand() -> None:
    assert {bit(name) for name, _, stands in CLOSED_EDGES + OPEN_EDGES if stands} == {1 << f.bit for f in FAULTS}


WORST = changed(
    READY,
    bms=BMS._replace(
        rack_v=2000.0, rack_a=900.0, cell_v_max=5.0, cell_v_min=1.0, cell_c_max=90.0, insulation_kohm=0.0, cells_bad=1,
        strings_online=0, alarm_trip=1, alarm_stop=1, alarm_warn=1, loss_pct=50.0,
    ),
    pcs=PCS._replace(dc_v=2000.0, dc_a=-900.0, fault_bits=1, loss_pct=50.0),
    loops=Judged(stale=True), lines={"interlocks": 0, "kill_ok": False, "tamper_ok": False, "insulation_ok": False},
    wear=Wear(1_000_000, 1000, 1000, 0, 1000.0, 1000.0),
)  # fmt: skip
OF_BMS = (
    "max_v_exceeded", "cell_overvoltage", "min_v_exceeded", "bms_alarm", "bms_trip", "overcurrent", "cell_sensor",
    "over_temperature", "thermal_trip", "insulation_low", "string_offline", "bms_warning", "cell_deep_discharge",
    "current_mismatch", "bms_link_poor",
)  # fmt: skip
OF_PCS = ("pcs_fault", "dc_overvoltage", "current_mismatch", "pcs_not_following", "pcs_link_poor")
OF_SETTINGS = (
    "max_v_exceeded", "cell_overvoltage", "min_v_exceeded", "overcurrent", "over_temperature", "thermal_trip",
    "insulation_low", "string_offline", "cell_deep_discharge", "current_mismatch", "dc_overvoltage",
    "pcs_not_following", "interlock_open", "sampler", "supply_24v", "contactor_worn",
)  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "names"), [("bms", OF_BMS), ("pcs", OF_PCS), ("settings", OF_SETTINGS)], ids=["bms", "pcs", "settings"]
)
def test_what_is_not_known_is_not_judged(missing: str, names: tuple[str, ...]) -> None:
    judged = sum(bit(name) for name in names)
    before, after = detect.raw(WORST), detect.raw(changed(WORST, **{missing: None}))
    assert before & judged == judged
    assert after & judged == 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("closings_per_hour", {}),
        ("precharge_hot", {}),
        ("contactor_abused", {}),
        ("stop_timeout", {"state": State.STOPPING, "in_state_ms": 1e9}),
        ("delta_offset", {"state": State.READY, "in_state_ms": 1e9}),
    ],
)
def test_without_a_configuration_nothing_is_judged_on_open_contactors(name: str, changes: dict[str, Any]) -> None:
    v = changed(ISOLATED, wear=WORST.wear, **changes)
    assert detect.raw(v) & bit(name)
    assert not detect.raw(changed(v, settings=None)) & bit(name)


def test_without_anything_open_contactors_show_no_current() -> None:
    assert not detect.current_while_open(changed(ISOLATED, bms=None))


@pytest.mark.parametrize("coils", [Coils(True, False, False), Coils(False, True, False), Coils(False, False, True)])
def test_one_coil_makes_a_rack_energised_and_live(coils: Coils) -> None:
    v = changed(ISOLATED, coils=coils)
    assert (v.energised, v.live) == (True, True)
    assert (ISOLATED.energised, ISOLATED.live) == (False, False)


@pytest.mark.parametrize("state", State)
def test_with_open_contactors_a_rack_is_live_where_it_closes_or_waits_for_the_cause_to_go(state: State) -> None:
    live = state in (State.PRECHARGE, State.STOPPING, State.FAULT, State.EMERGENCY_STOP)
    assert changed(ISOLATED, state=state).live is live


def test_an_answer_that_is_neither_true_nor_false_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecided(v: Seen) -> Any:
        return None

    monkeypatch.setattr(detect, "CONDITIONS", ((4, undecided), (8, detect.kill_switch)))
    with pytest.raises(TypeError, match="undecided answered None"):
        detect.raw(READY)


def test_interlocks_are_closed_when_all_that_are_required_are() -> None:
    def closed(interlocks: int, required: int) -> bool:
        lines: Lines = LINES._replace(interlocks=interlocks)
        return detect.interlocks_closed(lines, settings(interlocks_required=required))

    assert closed(0b0110, 0b0110)
    assert closed(0b1110, 0b0110)
    assert not closed(0b0010, 0b0110)
    assert closed(0, 0)


# chatter: 20 edges in 10 s, so two leak a second


@pytest.mark.parametrize(
    ("before", "interlocks", "edges"),
    [
        (Chatter(-1, 0.0), 0xFF, 0.0),
        (Chatter(0xFF, 0.0), 0xFE, 1.0),
        (Chatter(0xFF, 0.0), 0x00, 8.0),
        (Chatter(0x00, 0.0), 0x03, 2.0),
        (Chatter(0xFF, 5.0), 0xFF, 4.0),
        (Chatter(0xFF, 5.0), 0xFE, 5.0),
        (Chatter(0xFF, 0.5), 0xFF, 0.0),
        (Chatter(0xFF, 0.5), 0xFE, 1.0),
        (Chatter(0xFF, 0.5), 0xFC, 2.0),
    ],
)
def test_each_edge_of_an_interlock_counts_and_two_leak_a_second(before: Chatter, interlocks: int, edges: float) -> None:
    assert detect.chatter(before, interlocks, 500.0) == Chatter(interlocks, edges)


def test_while_no_interlock_moves_nothing_is_made_anew() -> None:
    still = Chatter(0xFF, 0.0)
    assert detect.chatter(still, 0xFF, 10.0) is still
    assert Chatter() == (-1, 0.0)


# loops: what the charge law reads

NEIGHBOURS = settings(loops_used=0b1111, loop_zones=(1, 1, 2, 2, 3, 3, 4, 4))


@pytest.mark.parametrize(
    ("judged", "s", "share"),
    [
        (Judged(30.0), NEIGHBOURS, 1.0),
        (Judged(30.0, failed=0b0001), NEIGHBOURS, 0.5),
        (Judged(30.0, failed=0b0101), NEIGHBOURS, 0.5),
        (Judged(30.0, failed=0b0011), NEIGHBOURS, 0.0),
        (Judged(30.0, failed=0b1111), NEIGHBOURS, 0.0),
        (Judged(30.0, stale=True), NEIGHBOURS, 0.0),
        (Judged(30.0, failed=0b1111, stale=True), NEIGHBOURS, 0.0),
        (Judged(30.0, failed=0b0001, stale=True), NEIGHBOURS, 0.0),
        (Judged(30.0, failed=1 << 7), settings(loops_used=0xFF, loop_zones=(1, 1, 1, 1, 1, 1, 1, 2)), 0.0),
        (Judged(30.0, failed=1), settings(loops_used=0xFF, loop_zones=(2, 1, 1, 1, 1, 1, 1, 1)), 0.0),
        (Judged(30.0, failed=1), settings(loops_used=0xFF, loop_zones=(1,) * 8), 0.5),
    ],
)
def test_a_zone_that_nobody_watches_leaves_no_current(judged: Judged, s: Any, share: float) -> None:
    assert detect.loops_for_law(judged, s) == Loops(30.0, share)


def test_of_cells_and_loops_the_hotter_counts_and_without_either_nothing_is_hot() -> None:
    assert detect._hottest_c(changed(READY, bms={"cell_c_max": 40.0}, loops={"hottest_c": 30.0})) == 40.0
    assert detect._hottest_c(changed(READY, bms={"cell_c_max": 30.0}, loops={"hottest_c": 40.0})) == 40.0
    assert detect._hottest_c(changed(READY, bms=None, loops=NOT_SEEN)) == -inf
