"""Enter service, the power limit and frequency droop in the scans of the core."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rig import NONE, settings
from rig import CoarseRig as Rig
from samples import BMS, DROOP_ON, LIMIT_ON, pcs

from statemachine import core
from statemachine.charge import NOTHING, Loops
from statemachine.contactors import Phase, Sequence
from statemachine.core import Memory
from statemachine.grid import CEASE_MS, DEFAULT, Droop, Service
from statemachine.loops import Judged
from statemachine.ratings import rated_discharge_w
from statemachine.signals import EventKind, Grid, LimitReason, Mode, Result, Why
from statemachine.states import CHARGING, CLOSED, State
from statemachine.wishes import IDLE

S = settings(max_charge_rate=0.5, enter_service_delay=7.0, enter_service_ramp=11.0)
WMAX = rated_discharge_w(S)
JUDGED = Judged()


def test_by_default_everything_is_as_it_was_without_grid_functions() -> None:
    rig = Rig()
    rig.until(State.ISOLATED, 1000)
    assert (rig.o.permit, rig.o.service_delay_s) == (Why.NONE, 0.0)


def test_contactors_close_only_after_the_grid_was_in_order_for_the_delay() -> None:
    rig = Rig(grid=DEFAULT._replace(delay_s=5.0), pcs_changes={"ac_hz": 50.2})
    rig.until(State.ISOLATED, 1000).scan(6000)
    assert (rig.o.permit, rig.o.service_delay_s) == (Why.ENTER_SERVICE, 5.0)
    rig.pcs_changes = {}
    rig.scan(2000)
    assert rig.o.service_delay_s == pytest.approx(3.0, abs=0.1)
    rig.send(mode=Mode.READY).scan(1000)
    assert (rig.state(), rig.o.ack_result, rig.o.ack_why) == (State.ISOLATED, Result.REJECTED, Why.ENTER_SERVICE)
    rig.scan(2100)
    assert (rig.o.permit, rig.state()) == (Why.NONE, State.ISOLATED), "what was refused does not act later"
    rig.send(mode=Mode.READY).until(State.READY, 15_000)


def test_the_configured_delay_counts_until_another_one_is_written() -> None:
    rig = Rig(settings=settings(enter_service_delay=600.0)).until(State.ISOLATED, 1000)
    assert rig.o.permit is Why.ENTER_SERVICE
    rig.grid = DEFAULT
    assert rig.scan(10).o.permit is Why.NONE


def test_a_reason_of_our_own_is_told_before_one_of_the_grid() -> None:
    rig = Rig(grid=DEFAULT._replace(service_permitted=False))
    rig.lines = rig.lines._replace(interlocks=0)
    rig.until(State.ISOLATED, 1000)
    assert rig.o.permit is Why.INTERLOCK_OPEN
    rig.lines = rig.lines._replace(interlocks=0xFF)
    assert rig.scan(20).o.permit is Why.SERVICE_NOT_PERMITTED


@pytest.mark.parametrize("discharge", [False, True])
def test_the_power_rises_over_the_ramp_after_entering_service(discharge: bool) -> None:
    rig = Rig(soc=60.0, settings=settings(ramp_up_rate=1.0), grid=DEFAULT._replace(ramp_s=60.0)).ready()
    mode, target = (Mode.DISCHARGE, 10.0) if discharge else (Mode.CHARGE, 100.0)
    rig.send(mode=mode, c_rate=1.0, target_soc_pct=target).scan(10_000)
    share = rig.core.memory.service.served_ms / 60_000.0
    most_a = share * rated_discharge_w(rig.settings) / rig.rack_v()
    assert abs(rig.o.setpoint_a) == pytest.approx(most_a, rel=0.01)
    reason, available_a = (
        (rig.o.discharge_reason, rig.o.available_discharge_a)
        if discharge
        else (rig.o.charge_reason, rig.o.available_charge_a)
    )
    assert reason is LimitReason.ENTER_SERVICE
    assert available_a == pytest.approx(abs(rig.o.setpoint_a))
    rig.scan(50_000)
    assert abs(rig.o.setpoint_a) > 0.4 * 1120.0
    assert rig.o.discharge_reason is not LimitReason.ENTER_SERVICE


def test_the_limit_holds_a_discharge_back_at_once_and_names_itself() -> None:
    rig = Rig(soc=60.0, settings=settings(ramp_up_rate=1.0)).ready()
    rig.send(mode=Mode.DISCHARGE, c_rate=0.8, target_soc_pct=10.0).scan(5000)
    assert rig.o.setpoint_a == pytest.approx(0.8 * 1120.0)
    rig.grid = DEFAULT._replace(**LIMIT_ON)
    rig.scan(10)
    assert rig.o.demand_w == pytest.approx(0.4 * rated_discharge_w(rig.settings))
    assert rig.o.discharge_reason is LimitReason.WMAX_LIM
    assert rig.o.available_discharge_a == pytest.approx(rig.o.setpoint_a)
    assert rig.scan(5000).state() is State.DISCHARGE
    assert rig.o.faults_latched == 0, "a falling limit is no fault of the PCS"


def test_a_limit_reverts_after_its_time_and_tells_it() -> None:
    written = DEFAULT._replace(**LIMIT_ON, limit_revert_s=3.0)
    rig = Rig(soc=60.0, settings=settings(ramp_up_rate=1.0), grid=written, dt_ms=10.0).ready()
    rig.send(mode=Mode.DISCHARGE, c_rate=1.0, target_soc_pct=10.0).scan(100)
    rig.grid = written._replace(limit_version=4)
    rig.scan(1500)
    assert (rig.o.limit_remaining_s, rig.o.limit_reverted) == pytest.approx((1.5, 3), abs=0.02)
    rig.scan(4000)
    assert (rig.o.limit_remaining_s, rig.o.limit_reverted) == (0.0, 4)
    assert rig.o.demand_w == pytest.approx(0.7 * rated_discharge_w(rig.settings), rel=0.01)
    assert (EventKind.REVERT, 4, 1) in rig.events


def test_the_time_of_a_droop_setting_is_told() -> None:
    rig = Rig(grid=DEFAULT._replace(droop_version=2, droop_revert_s=2.0)).until(State.ISOLATED, 1000)
    assert rig.scan(500).o.droop_remaining_s == pytest.approx(1.5, abs=0.02)
    rig.scan(1600)
    assert (rig.o.droop_remaining_s, rig.o.droop_reverted) == (0.0, 2)
    assert (EventKind.REVERT, 2, 2) in rig.events


# leaving service


def busy(state: State) -> Rig:
    """A rack in this state with current flowing where some may."""
    rig = Rig(soc=60.0)
    if state is State.PRECHARGE:
        return rig.until(State.ISOLATED, 1000).send(mode=Mode.CHARGE, c_rate=0.5).until(state, 100).scan(300)
    rig.ready()
    if state is State.DISCHARGE:
        return rig.send(mode=Mode.DISCHARGE, c_rate=0.5, target_soc_pct=10.0).scan(20_000)
    if state is State.GRID_SUPPORT:
        return rig.send(mode=Mode.GRID, w=-400e3).scan(20_000)
    if state in CHARGING:
        return rig.send(mode=Mode.CHARGE, c_rate=0.5, target_soc_pct=100.0).scan(20_000)
    return rig


@pytest.mark.parametrize(
    "state", [State.PRECHARGE, State.READY, State.CHARGE_BULK, State.DISCHARGE, State.GRID_SUPPORT]
)
def test_service_withdrawn_ceases_at_once_and_opens_within_two_seconds(state: State) -> None:
    rig = busy(state)
    rig.grid = DEFAULT._replace(service_permitted=False)
    rig.once()
    assert (rig.state(), rig.o.setpoint_a) == (State.STOPPING, 0.0)
    assert (rig.o.ack_result, rig.o.ack_why) == (Result.REJECTED, Why.SERVICE_NOT_PERMITTED)
    rig.scan(490)
    assert rig.coils == NONE
    assert rig.o.faults_latched == 0
    assert not rig.core.memory.under_load


def test_a_pcs_that_does_not_cease_is_disconnected_within_two_seconds() -> None:
    rig = busy(State.CHARGE_BULK)
    rig.grid = DEFAULT._replace(service_permitted=False)
    rig.bms_changes = {"rack_a": -300.0}
    rig.scan(CEASE_MS - 20.0)
    assert rig.coils != NONE
    rig.scan(30)
    assert rig.coils == NONE
    assert rig.core.memory.under_load


def test_service_withdrawn_during_a_stop_ends_it_sooner() -> None:
    rig = busy(State.CHARGE_BULK)
    rig.send(mode=Mode.OFF).scan(100)
    assert rig.o.setpoint_a < -300.0
    rig.grid = DEFAULT._replace(service_permitted=False)
    assert rig.scan(10).o.setpoint_a == 0.0
    assert rig.scan(500).coils == NONE
    assert rig.o.ack_why is Why.NONE, "mode off was followed"


def test_nothing_closes_again_without_a_new_command() -> None:
    rig = busy(State.CHARGE_BULK)
    rig.grid = DEFAULT._replace(service_permitted=False)
    rig.until(State.ISOLATED, 2000).scan(500)
    assert rig.o.permit is Why.SERVICE_NOT_PERMITTED
    rig.grid = DEFAULT
    rig.scan(5000)
    assert (rig.state(), rig.o.permit) == (State.ISOLATED, Why.NONE)
    rig.command = rig.command._replace(mode=Mode.READY)
    assert rig.scan(1000).state() is State.ISOLATED, "the old number"
    rig.send(mode=Mode.READY).until(State.READY, 15_000)


def test_a_command_while_service_is_not_permitted_is_refused_and_does_not_act_later() -> None:
    rig = Rig(grid=DEFAULT._replace(service_permitted=False)).until(State.ISOLATED, 1000)
    rig.send(mode=Mode.CHARGE, c_rate=0.5).scan(100)
    assert (rig.o.ack_result, rig.o.ack_why) == (Result.REJECTED, Why.SERVICE_NOT_PERMITTED)
    rig.grid = DEFAULT
    assert rig.scan(2000).state() is State.ISOLATED


def test_maintenance_needs_no_permission_of_the_grid() -> None:
    rig = Rig(grid=DEFAULT._replace(service_permitted=False)).until(State.ISOLATED, 1000)
    rig.send(mode=Mode.SERVICE).until(State.SERVICE, 100).scan(1000)
    assert rig.state() is State.SERVICE
    rig.send(mode=Mode.OFF).until(State.ISOLATED, 100)


@pytest.mark.parametrize("ceased_ms", [CEASE_MS - 0.1, CEASE_MS])
def test_the_bound_of_a_stop_is_the_nearer_one(ceased_ms: float) -> None:
    m = Memory(state=State.STOPPING, settings=S, sequence=Sequence(Phase.CLOSED), in_state_ms=9_990.0)
    m = m._replace(service=Service(ceased_ms=ceased_ms))
    assert core._bound_over(m, S) is (ceased_ms == CEASE_MS)
    assert core._bound_over(m._replace(in_state_ms=10_000.0), S)


def test_the_bound_counts_while_stopping_only() -> None:
    rig = busy(State.READY)
    rig.core.memory = rig.core.memory._replace(service=Service(ceased_ms=1e9, closed=True, waited_ms=10.0))
    assert rig.scan(100).state() is State.READY


# droop in the core


def supporting(w: float, g: Grid = DROOP_ON, **changes: Any) -> Rig:
    rig = Rig(soc=60.0, settings=settings(ramp_up_rate=1.0, **changes), grid=g).ready()
    return rig.send(mode=Mode.GRID, w=w).scan(5000)


@pytest.mark.parametrize(("hz", "change_pu"), [(50.6, -0.25), (49.7, 0.08)])
@pytest.mark.parametrize("w", [300e3, 0.0, -300e3])
def test_in_grid_support_the_frequency_moves_the_power(w: float, hz: float, change_pu: float) -> None:
    rig = supporting(w)
    rig.pcs_changes = {"ac_hz": hz}
    rig.scan(10_000)
    assert rig.o.demand_w == pytest.approx(w + change_pu * rated_discharge_w(rig.settings), rel=0.01)
    used = rig.o.discharge_reason if rig.o.demand_w > 0.0 else rig.o.charge_reason
    assert used is LimitReason.DROOP
    rig.pcs_changes = {}
    rig.scan(20_000)
    assert rig.o.demand_w == pytest.approx(w, rel=0.01, abs=1.0)


def test_droop_that_is_off_leaves_the_set_point_alone() -> None:
    rig = supporting(300e3, DROOP_ON._replace(droop_enabled=False))
    rig.pcs_changes = {"ac_hz": 52.0}
    assert rig.scan(5000).o.demand_w == pytest.approx(300e3, rel=0.001)
    assert rig.o.discharge_reason is LimitReason.COMMAND


@pytest.mark.parametrize("hz", [48.0, 52.0])
def test_droop_acts_in_grid_support_only(hz: float) -> None:
    rig = Rig(soc=60.0, grid=DROOP_ON).ready()
    rig.pcs_changes = {"ac_hz": hz}
    assert rig.scan(3000).o.setpoint_a == 0.0
    rig.send(mode=Mode.DISCHARGE, c_rate=0.2, target_soc_pct=10.0).scan(20_000)
    assert rig.o.setpoint_a == pytest.approx(0.2 * 1120.0)
    assert rig.core.memory.droop == Droop()


def test_droop_stays_within_the_power_limit_of_the_site() -> None:
    rig = supporting(300e3, DROOP_ON._replace(**LIMIT_ON))
    rig.pcs_changes = {"ac_hz": 48.0}
    rig.scan(10_000)
    assert rig.o.demand_w == pytest.approx(0.4 * rated_discharge_w(rig.settings), rel=0.01)
    assert rig.core.memory.droop.power_pu == pytest.approx(0.4, abs=0.01), "the lag does not run away from the limit"


def test_without_data_droop_forgets_and_asks_for_nothing() -> None:
    rig = supporting(300e3)
    m = rig.core.memory
    now = core._Now(None, None, JUDGED, Loops(25.0, 1.0), Why.NO_DATA, DROOP_ON)
    wish = IDLE._replace(grid_w=300e3)
    after = core._supply(m, now, wish, rig.inputs(rig.coils), 10.0)
    assert (after.demand_a, after.droop) == (0.0, Droop())
    half = core._supply(m, now._replace(bms=rig.bms), wish, rig.inputs(rig.coils), 10.0)
    assert half.demand_a == 0.0
    assert half.droop.side == 0


def test_droop_starts_from_the_demand_of_the_scan_before_in_units_of_the_rated_power() -> None:
    m = Memory(
        state=State.GRID_SUPPORT, settings=S, demand_a=-280.0,
        limits=NOTHING._replace(available_discharge_c=0.25), droop=Droop(0.1, 0, nan, 0.1, False),
    )  # fmt: skip
    now = core._Now(BMS, pcs(50.6), JUDGED, Loops(25.0, 1.0), Why.NONE, DROOP_ON)
    above = core._droop(m, now, S, 0.1 * WMAX, 1200.0, 0.01)
    assert above.before_pu == pytest.approx(-280.0 * 1200.0 / WMAX)
    below = core._droop(m, now._replace(pcs=pcs(48.0)), S, 0.1 * WMAX, 1200.0, 1e6)
    assert below.power_pu == pytest.approx(0.25 * 1120.0 * 1200.0 / WMAX)


written = st.builds(
    lambda es, delay, ramp, limited, most, on, kof, kuf, dbo, dbu, rsp, pmin: DEFAULT._replace(
        service_permitted=es, delay_s=delay, ramp_s=ramp, limit_enabled=limited, limit_pu=most, droop_enabled=on,
        k_of=kof, k_uf=kuf, db_of_hz=dbo, db_uf_hz=dbu, response_s=rsp, p_min_pu=pmin,
    ),
    st.sampled_from([True, True, True, False]), st.sampled_from([0.0, 0.0, 2.0]), st.sampled_from([0.0, 5.0]),
    st.booleans(), st.floats(0.0, 1.0), st.booleans(), st.floats(0.02, 0.05), st.floats(0.02, 0.05),
    st.floats(0.017, 1.0), st.floats(0.017, 1.0), st.floats(0.2, 10.0), st.floats(-1.0, 0.0),
)  # fmt: skip
turns = st.tuples(written, st.floats(47.0, 53.0) | st.just(nan), st.floats(300.0, 500.0), st.floats(-1.5e6, 1.5e6))


@hypothesis_settings(deadline=None)
@given(st.lists(turns, min_size=1, max_size=6))
def test_the_demand_never_leaves_the_limits_whatever_the_grid_and_its_functions_do(
    walk: list[tuple[Grid, float, float, float]],
) -> None:
    rig = ready()
    rig.send(mode=Mode.GRID, w=200e3)
    for g, hz, v, w in walk:
        rig.grid, rig.pcs_changes = g, {"ac_hz": hz, "ac_v": v}
        rig.send(mode=Mode.GRID, w=w)
        for _ in range(40):
            rig.once()
            _promise(rig, g)


@cache
def _ready() -> tuple[Rig, Memory]:
    rig = Rig(soc=60.0).ready()
    return rig, rig.core.memory


def ready() -> Rig:
    """READY, without running there each time."""
    rig, memory = _ready()
    rig.core.memory = memory
    return replace(rig, held_ms=list(rig.held_ms), visited=[], events=[])


def _promise(rig: Rig, g: Grid) -> None:
    o, rack_v = rig.o, rig.bms.rack_v if rig.bms else 0.0
    assert -o.charge_limit_a - 1e-6 <= o.setpoint_a <= o.discharge_limit_a + 1e-6
    assert o.charge_limit_a <= 1120.0
    if not g.service_permitted:
        assert o.setpoint_a == 0.0
        assert o.state not in CLOSED - {State.STOPPING}
    if g.limit_enabled:
        assert o.setpoint_a * rack_v <= g.limit_pu * rated_discharge_w(rig.settings) + 1e-3
    if g.ramp_s and o.setpoint_a:
        share = rig.core.memory.service.served_ms / 1000.0 / g.ramp_s
        assert abs(o.setpoint_a) * rack_v <= share * rated_discharge_w(rig.settings) + 1e-3
