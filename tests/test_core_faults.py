"""What must open the contactors, how fast, and what it takes to close them again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from rig import Rig, settings

from statemachine import faults
from statemachine.contactors import Coils
from statemachine.signals import GuardTrip, Result, Why
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
def test_a_broken_or_shorted_thermal_loop_stops_charging(ma: float) -> None:
    rig = Rig().charging()
    rig.lines = rig.lines._replace(loops_ma=(13.0, ma, *(13.0,) * 6))
    rig.scan(100)
    assert rig.o.charge_limit_a == 0.0
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


def test_a_restarted_controller_starts_in_fault() -> None:
    rig = Rig()
    rig._answers(NONE)
    out = rig.core.step(rig.inputs(NONE)._replace(restarted=True), 10.0)
    assert out.state is State.FAULT
    assert faults.names(out.faults_latched) == ["ERR_CONTROLLER_RESTART"]
