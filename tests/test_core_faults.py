"""What must open the contactors, how fast, and what it takes to close them again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from rig import ARMED, settings
from rig import CoarseRig as Rig

from statemachine import faults
from statemachine.contactors import Coils
from statemachine.settings import narrowed
from statemachine.signals import EventKind, GuardTrip, Result, Why
from statemachine.states import State

NONE = Coils(False, False, False)


def shown(rig: Rig) -> list[str]:
    return faults.names(rig.o.faults_active | rig.o.faults_latched)


def line(**changes: Any) -> Callable[[Rig], None]:
    def do(rig: Rig) -> None:
        rig.lines = rig.lines._replace(**changes)

    return do


def bms(**changes: Any) -> Callable[[Rig], None]:
    def do(rig: Rig) -> None:
        rig.bms_changes = changes

    return do


def pcs(**changes: Any) -> Callable[[Rig], None]:
    def do(rig: Rig) -> None:
        rig.pcs_changes = changes

    return do


def attribute(name: str, value: Any) -> Callable[[Rig], None]:
    return lambda rig: setattr(rig, name, value)


TRIPS: list[tuple[str, Callable[[Rig], None], float]] = [
    ("ERR_KILL_SWITCH", line(kill_ok=False), 10),
    ("ERR_TAMPER", line(tamper_ok=False), 10),
    ("ERR_GROUND_FAULT", line(insulation_ok=False), 70),
    ("ERR_GROUND_FAULT", bms(insulation_kohm=20.0), 170),
    ("ERR_DELTA_V", attribute("dv_offset_v", 2.5), 420),
    ("ERR_CELL_OVERVOLTAGE", bms(cell_v_max=4.35), 220),
    ("ERR_THERMAL_TRIP", bms(cell_c_max=61.0), 320),
    ("ERR_BMS_TRIP", bms(alarm_trip=1), 120),
    ("ERR_INTERLOCK_OPEN", line(interlocks=0xF7), 40),
    ("ERR_GUARD", attribute("guard", Rig().guard._replace(armed=False, trip=GuardTrip.HEARTBEAT_LATE)), 70),
    ("ERR_SCAN_OVERRUN", attribute("overruns_in_row", 3), 10),
    ("ERR_OVERCURRENT", bms(rack_a=-2000.0), 1150),
]


@pytest.mark.parametrize(("name", "inject", "within_ms"), TRIPS, ids=[f"{t[0]}-{i}" for i, t in enumerate(TRIPS)])
def test_a_trip_opens_every_contactor_within_its_time(
    name: str, inject: Callable[[Rig], None], within_ms: float
) -> None:
    rig = Rig().charging()
    inject(rig)
    rig.scan(within_ms)
    assert rig.state() is State.EMERGENCY_STOP
    assert rig.coils == NONE
    assert rig.o.setpoint_a == 0.0
    assert name in shown(rig)


STOPS: list[tuple[str, Callable[[Rig], None], float]] = [
    ("ERR_MAX_V_EXCEEDED", bms(cell_v_max=4.26), 330),
    ("ERR_OVER_TEMPERATURE", bms(cell_c_max=51.0), 630),
    ("ERR_COMM_LOST", attribute("bms_alive", False), 380),
    ("ERR_PCS_LOST", attribute("pcs_alive", False), 230),
    ("ERR_BMS_ALARM", bms(alarm_stop=4), 120),
    ("ERR_PCS_FAULT", pcs(state=3), 140),
    ("ERR_BMS_IMPLAUSIBLE", bms(plausible=False), 430),
]


@pytest.mark.parametrize(("name", "inject", "within_ms"), STOPS, ids=[s[0] for s in STOPS])
def test_a_stop_takes_the_current_away_then_opens_and_waits_in_fault(
    name: str, inject: Callable[[Rig], None], within_ms: float
) -> None:
    rig = Rig().charging()
    inject(rig)
    rig.scan(within_ms)
    assert rig.state() in (State.STOPPING, State.FAULT)
    assert name in shown(rig)
    rig.until(State.FAULT, 12_000).scan(100)
    assert rig.coils == NONE
    assert rig.o.setpoint_a == 0.0


@pytest.mark.parametrize("state", [s for s in State if s is not State.EMERGENCY_STOP])
@pytest.mark.parametrize("chain", [{"kill_ok": False}, {"tamper_ok": False}])
def test_the_kill_chain_acts_in_the_same_scan_in_every_state(state: State, chain: dict[str, Any]) -> None:
    rig = Rig().charging()
    rig.core.memory = rig.core.memory._replace(state=state, in_state_ms=0.0)
    rig.lines = rig.lines._replace(**chain)
    out = rig.once()
    assert out.state is State.EMERGENCY_STOP
    assert rig.coils == NONE


def test_closing_the_kill_switch_re_energises_nothing() -> None:
    rig = Rig().charging()
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.scan(1000)
    rig.lines = rig.lines._replace(kill_ok=True)
    rig.scan(30_000)
    assert rig.state() is State.EMERGENCY_STOP
    assert rig.coils == NONE


def test_an_emergency_stop_needs_cause_gone_reset_acknowledge_and_a_new_command() -> None:
    rig = Rig().charging()
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.scan(100)
    rig.press_reset().acknowledge()
    assert rig.state() is State.EMERGENCY_STOP, "the cause still stands"
    assert rig.o.ack_why == Why.CAUSE_ACTIVE
    rig.lines = rig.lines._replace(kill_ok=True)
    rig.scan(100).acknowledge()
    assert rig.state() is State.EMERGENCY_STOP, "acknowledge without reset"
    rig.press_reset().scan(50)
    assert rig.state() is State.ISOLATED
    rig.scan(20_000)
    assert rig.coils == NONE, "the old command must not close anything"
    rig.send().scan(20)
    assert rig.o.ack_result == Result.ACCEPTED
    rig.until(State.READY, 15_000)


def test_reset_without_acknowledge_is_not_enough() -> None:
    rig = Rig().charging()
    rig.lines = rig.lines._replace(tamper_ok=False)
    rig.scan(50)
    rig.lines = rig.lines._replace(tamper_ok=True)
    rig.press_reset().scan(1000)
    assert rig.state() is State.EMERGENCY_STOP


def test_a_reset_button_that_is_stuck_resets_nothing() -> None:
    rig = Rig()
    rig.lines = rig.lines._replace(reset_pressed=True)
    rig.charging()
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.scan(50)
    rig.lines = rig.lines._replace(kill_ok=True)
    rig.scan(100).acknowledge().scan(1000)
    assert rig.state() is State.EMERGENCY_STOP


def test_a_fault_needs_cause_gone_and_acknowledge_and_a_new_command() -> None:
    rig = Rig().charging()
    rig.bms_changes = {"alarm_stop": 1}
    rig.until(State.FAULT, 12_000)
    rig.acknowledge().scan(500)
    assert rig.state() is State.FAULT
    rig.send().scan(50)
    assert (rig.o.ack_result, rig.o.ack_why) == (Result.REJECTED, Why.FAULT_LATCHED)
    rig.bms_changes = {}
    rig.scan(2000)
    assert rig.state() is State.FAULT
    rig.acknowledge()
    assert rig.state() is State.ISOLATED
    rig.scan(15_000)
    assert rig.state() is State.ISOLATED, "the command that was refused must not act now"
    rig.send().until(State.READY, 15_000)


def test_a_welded_contactor_locks_out_and_no_acknowledge_helps() -> None:
    rig = Rig().charging()
    rig.welded = Coils(False, True, False)
    rig.send(mode=0).until(State.LOCKOUT, 15_000)
    rig.welded = NONE
    rig.scan(500).press_reset().acknowledge().scan(1000)
    rig.send(mode=1).scan(1000)
    assert rig.state() is State.LOCKOUT
    assert rig.o.ack_why == Why.LOCKOUT


def test_a_kill_switch_does_not_launder_a_lockout() -> None:
    rig = Rig().charging()
    rig.welded = Coils(False, True, False)
    rig.send(mode=0).until(State.LOCKOUT, 15_000)
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.scan(50)
    assert rig.state() is State.EMERGENCY_STOP
    rig.lines = rig.lines._replace(kill_ok=True)
    rig.scan(50).press_reset().acknowledge().scan(100)
    assert rig.state() is State.LOCKOUT


def test_a_contactor_that_drops_while_closed_is_a_trip() -> None:
    rig = Rig().charging()
    rig.stuck = Coils(False, True, False)
    rig.scan(100)
    assert rig.state() is State.EMERGENCY_STOP
    assert "ERR_CONTACTOR_DROPPED" in shown(rig)


def test_a_pcs_that_goes_on_charging_after_the_demand_is_gone_is_a_trip() -> None:
    rig = Rig().charging().scan(20_000)
    rig.bms_changes = {"rack_a": -500.0}
    rig.send(mode=1).until(State.READY, 100).scan(20_000)
    assert rig.state() is State.EMERGENCY_STOP
    assert "ERR_OVERCURRENT" in shown(rig)


def test_a_slow_pcs_is_given_time_to_follow() -> None:
    rig = Rig().charging().scan(30_000)
    rig.send(mode=1)
    for amps in range(560, 0, -40):
        rig.bms_changes = {"rack_a": -float(amps)}
        rig.scan(700)
    assert "ERR_OVERCURRENT" not in shown(rig)


def test_a_pcs_in_fault_forbids_closing() -> None:
    rig = Rig(pcs_changes={"fault_bits": 1}).until(State.ISOLATED, 1000).send(mode=1).scan(100)
    assert rig.o.ack_why == Why.PCS_FAULT
    assert rig.coils == NONE


def test_a_small_ripple_of_the_demand_is_no_overcurrent() -> None:
    rig = Rig().charging().scan(20_000)
    rig.bms_changes = {"rack_a": rig.current_a * 1.05}
    rig.scan(5000)
    assert "ERR_OVERCURRENT" not in shown(rig)


@pytest.mark.parametrize(
    "broken", [{"cell_c_min": math.nan}, {"soc_max_pct": math.nan}, {"soh_pct": math.nan}, {"charge_max_a": math.nan}]
)
def test_a_missing_input_makes_its_limit_zero(broken: dict[str, float]) -> None:
    rig = Rig().charging()
    rig.bms_changes = broken
    rig.scan(200)
    assert rig.o.charge_limit_a == 0.0
    assert rig.o.setpoint_a == 0.0
    rig.bms_changes = {}
    rig.scan(20_000)
    assert rig.o.charge_limit_a > 0.0


@pytest.mark.parametrize("ma", [0.0, 3.5, 21.1])
def test_a_broken_or_shorted_thermal_loop_halves_the_rate_while_another_watches_its_zone(ma: float) -> None:
    rig = Rig().charging(c_rate=1.0).scan(40_000)
    assert rig.o.charge_limit_a > 0.6 * 1120.0
    rig.lines = rig.lines._replace(loops_ma=(13.0, ma, *(13.0,) * 6))
    rig.scan(100)
    assert rig.o.charge_limit_a == pytest.approx(0.5 * 1120.0)
    assert rig.o.available_discharge_a == pytest.approx(0.5 * 1120.0)
    assert "ERR_THERMAL_LOOP" in shown(rig)


@pytest.mark.parametrize("ma", [0.0, 3.5, 21.1])
def test_a_zone_that_no_loop_watches_gets_no_current(ma: float) -> None:
    rig = Rig(settings=settings(loop_zones=(1, 2, 1, 1, 1, 1, 1, 1))).charging()
    rig.lines = rig.lines._replace(loops_ma=(13.0, ma, *(13.0,) * 6))
    rig.scan(100)
    assert rig.o.charge_limit_a == 0.0
    assert rig.o.available_discharge_a == 0.0
    assert "ERR_THERMAL_LOOP" in shown(rig)


def test_a_configuration_can_narrow_but_not_widen_while_closed() -> None:
    rig = Rig(settings=settings(max_charge_current=600.0)).charging(c_rate=1.0).scan(40_000)
    assert rig.o.charge_limit_a == pytest.approx(600.0)
    rig.settings = settings(revision=2, max_charge_current=1000.0)
    rig.scan(40_000)
    assert rig.o.charge_limit_a == pytest.approx(600.0)
    rig.settings = settings(revision=3, max_charge_current=300.0)
    rig.scan(50)
    assert rig.o.charge_limit_a == pytest.approx(300.0)
    rig.settings = settings(revision=4, max_charge_current=1000.0)
    rig.scan(40_000)
    assert rig.o.charge_limit_a == pytest.approx(300.0)
    rig.send(mode=0).until(State.ISOLATED, 20_000).scan(100)
    assert rig.core.memory.settings == rig.settings


def test_three_late_scans_in_a_row_are_a_trip_and_two_are_not() -> None:
    rig = Rig().charging()
    rig.overruns_in_row = 2
    rig.scan(50)
    assert rig.state() in (State.CHARGE_RAMP, State.CHARGE_BULK)
    rig.overruns_in_row = 3
    rig.scan(10)
    assert rig.state() is State.EMERGENCY_STOP


def test_a_fault_is_told_on_and_off_in_pairs_and_stays_active_as_long_as_its_cause() -> None:
    rig = Rig().charging()
    rig.bms_alive = False
    rig.until(State.FAULT, 20_000).scan(5000)
    bit = faults.BY_NAME["ERR_COMM_LOST"].bit
    told = [
        EventKind(kind) for kind, a, _ in rig.events if a == bit and kind in (EventKind.FAULT_ON, EventKind.FAULT_OFF)
    ]
    assert told == [EventKind.FAULT_ON]
    assert rig.o.faults_active >> bit & 1


def test_the_tries_of_a_failed_precharge_are_still_told_in_fault() -> None:
    rig = Rig(precharge_works=False).until(State.ISOLATED, 1000).send(mode=1).until(State.FAULT, 60_000).scan(100)
    assert rig.o.precharge_tries == 3


def test_a_number_used_before_a_stop_is_old_after_it_even_when_the_command_was_off() -> None:
    rig = Rig().charging().scan(20_000)
    rig.send(mode=0).until(State.STOPPING, 100)
    rig.bms_changes = {"alarm_stop": 1}
    rig.scan(200)
    rig.bms_changes = {}
    rig.scan(200).acknowledge().until(State.ISOLATED, 20_000)
    rig.command = rig.command._replace(mode=1)
    rig.scan(200)
    assert rig.o.ack_why == Why.SEQ_NOT_NEW
    assert rig.coils == NONE


def test_a_restarted_controller_starts_in_fault() -> None:
    rig = Rig()
    rig._answers(NONE)
    out = rig.core.step(rig.inputs(NONE)._replace(restarted=True), 10.0)
    assert out.state is State.FAULT
    assert faults.names(out.faults_latched) == ["ERR_CONTROLLER_RESTART"]


def test_an_acknowledge_during_the_stop_does_not_bring_the_old_command_back() -> None:
    rig = Rig().charging().scan(10_000)
    rig.bms_changes = {"alarm_stop": 1}
    rig.until(State.STOPPING, 500)
    rig.bms_changes = {}
    rig.scan(300).acknowledge().scan(20_000)
    assert rig.state() is State.ISOLATED
    assert rig.coils == NONE
    assert rig.o.ack_result == Result.REJECTED
    rig.send().until(State.READY, 15_000)


def test_a_command_void_by_a_lost_heartbeat_does_not_close_again_after_a_stop() -> None:
    rig = Rig(heartbeats=True).charging()
    rig.heartbeats = False
    rig.until(State.READY, 12_000)
    rig.pcs_changes, rig.bms_changes = {"state": 3}, {"rack_a": 20.0}
    rig.until(State.STOPPING, 500)
    rig.pcs_changes = {}
    rig.scan(100).acknowledge()
    rig.bms_changes = {}
    rig.scan(20_000)
    assert rig.state() is State.ISOLATED
    assert rig.coils == NONE


def test_a_command_sent_while_a_fault_stops_the_rack_is_refused() -> None:
    rig = Rig().charging().scan(10_000)
    rig.bms_changes = {"alarm_stop": 1}
    rig.until(State.STOPPING, 500).send().scan(10)
    assert rig.o.ack_result == Result.REJECTED


def test_policy_isolate_opens_also_when_the_command_was_refused_before() -> None:
    rig = Rig(heartbeats=True).charging()
    rig.command = rig.command._replace(loss_policy=2)
    rig.send(mode=5).scan(100)
    assert rig.state() is State.READY
    rig.heartbeats = False
    rig.scan(30_000)
    assert rig.state() is State.ISOLATED


def test_only_mode_off_ends_service() -> None:
    rig = Rig(heartbeats=True).until(State.ISOLATED, 1000).send(mode=5).until(State.SERVICE, 100)
    rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0).scan(100)
    assert (rig.o.ack_result, rig.o.ack_why) == (Result.REJECTED, Why.IN_SERVICE)
    rig.heartbeats = False
    rig.scan(15_000)
    rig.heartbeats = True
    rig.send().scan(2000)
    assert rig.state() is State.SERVICE
    rig.send(mode=0).until(State.ISOLATED, 100)


def test_an_interlock_that_opens_between_two_tries_of_precharge_closes_nothing() -> None:
    rig = Rig(precharge_works=False).until(State.ISOLATED, 1000).send(mode=1).scan(6500)
    assert (rig.state(), rig.coils) == (State.PRECHARGE, NONE)
    rig.lines = rig.lines._replace(interlocks=0xF7)
    for _ in range(300):
        rig.once()
        assert rig.coils == NONE
    assert rig.state() is State.EMERGENCY_STOP


def test_a_hot_thermal_loop_trips_also_without_a_cell_temperature() -> None:
    rig = Rig(settings=settings(loop_high_c=80.0)).charging()
    rig.bms_changes = {"cell_c_max": math.nan}
    rig.lines = rig.lines._replace(loops_ma=(19.0,) * 8)
    rig.scan(300)
    assert rig.state() is State.EMERGENCY_STOP
    assert "ERR_THERMAL_TRIP" in shown(rig)


@pytest.mark.parametrize("name", ["rack_v", "rack_a", "soc_pct", "cell_v_max", "cell_v_min"])
def test_without_a_number_that_decides_nothing_is_charged(name: str) -> None:
    rig = Rig().charging()
    rig.bms_changes = {name: math.nan}
    rig.scan(120)
    assert rig.o.setpoint_a == 0.0
    rig.until(State.FAULT, 12_000)
    assert "ERR_BMS_IMPLAUSIBLE" in shown(rig)
    assert "ERR_OPENED_UNDER_LOAD" not in shown(rig), "the other meter ends the stop"


def test_an_infinite_limit_is_not_a_number() -> None:
    rig = Rig().charging()
    rig.bms_changes = {"charge_max_a": math.inf}
    rig.scan(120)
    assert rig.o.charge_limit_a == 0.0


def test_the_two_volt_rule_does_not_go_blind() -> None:
    rig = Rig().charging()
    rig.pcs_changes = {"dc_v": math.nan}
    rig.until(State.FAULT, 15_000)
    assert "ERR_DELTA_OFFSET" in shown(rig)


def test_a_welded_precharge_contactor_is_no_reason_to_open_under_load() -> None:
    rig = Rig().charging().scan(20_000)
    rig.welded = Coils(False, False, True)
    while rig.coils.pos:
        current_a = rig.current_a
        rig.once()
    assert abs(current_a) <= rig.settings.break_current
    assert rig.state() is State.LOCKOUT
    assert "ERR_OPENED_UNDER_LOAD" not in shown(rig)


def test_a_blink_of_an_interlock_starts_the_current_from_zero() -> None:
    rig = Rig().charging().scan(20_000)
    rig.lines = rig.lines._replace(interlocks=0xF7)
    assert rig.once().setpoint_a == 0.0
    rig.lines = rig.lines._replace(interlocks=0xFF)
    assert -1.0 < rig.once().setpoint_a < 0.0


def test_a_long_precharge_and_a_long_stop_are_not_cut_short() -> None:
    rig = Rig(precharge_works=False, settings=settings(precharge_max_time=30.0))
    rig.until(State.ISOLATED, 1000).send(mode=1).until(State.FAULT, 100_000).scan(1000)
    assert "ERR_PRECHARGE" in shown(rig)
    assert rig.state() is State.FAULT
    rig = Rig(settings=settings(stop_time_limit=80.0)).charging()
    rig.bms_changes = {"rack_a": -200.0}
    rig.send(mode=0).scan(79_000)
    assert (rig.state(), rig.coils.pos) == (State.STOPPING, True)
    rig.scan(2000)
    assert "ERR_OPENED_UNDER_LOAD" in shown(rig)


def test_a_guard_that_starts_late_is_waited_for() -> None:
    rig = Rig()
    attribute("guard", None)(rig)
    assert rig.scan(2000).state() is State.INIT
    rig.guard = ARMED
    rig.until(State.ISOLATED, 100)


def test_a_shorter_stop_brings_its_faster_ramp() -> None:
    now = settings(ramp_down_rate=0.1, stop_time_limit=10.0)
    in_force = narrowed(now, settings(revision=2, ramp_down_rate=0.5, stop_time_limit=2.0))
    assert in_force.max_charge_rate / in_force.ramp_down_rate <= in_force.stop_time_limit
