"""Enter service, the power limit and frequency droop: what the core makes of the grid and of the written values."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import exp, isnan, log, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rig import NONE, settings
from rig import CoarseRig as Rig
from samples import BMS, PCS

from statemachine import core, grid, reversion
from statemachine.charge import NOTHING, Loops, Term
from statemachine.contactors import Phase, Sequence
from statemachine.core import Memory
from statemachine.grid import CEASE_MS, DEFAULT, SETTLED_PU, Droop, Service
from statemachine.loops import Judged
from statemachine.ratings import nominal_v, rated_charge_w, rated_discharge_w
from statemachine.reversion import Reversion
from statemachine.signals import EventKind, Grid, LimitReason, Mode, Pcs, Result, Why
from statemachine.states import CHARGING, CLOSED, State
from statemachine.wishes import IDLE

S = settings(max_charge_rate=0.5, enter_service_delay=7.0, enter_service_ramp=11.0)
WMAX = rated_discharge_w(S)
NOMINAL = settings()
JUDGED, OUTSIDE = Judged(), Service()


def pcs(hz: float = 50.0, v: float = 400.0) -> Pcs:
    return PCS._replace(ac_hz=hz, ac_v=v)


# ratings and defaults


def test_ratings_are_the_configured_currents_at_the_middle_of_the_voltages() -> None:
    assert nominal_v(S) == 1080.0
    assert rated_discharge_w(S) == 1120.0 * 1080.0
    assert rated_discharge_w(settings(max_discharge_current=100.0)) == 100.0 * 1080.0
    assert rated_charge_w(S) == 560.0 * 1080.0
    assert rated_charge_w(settings(max_charge_current=100.0)) == 100.0 * 1080.0


def test_the_functions_before_they_are_written_are_those_of_ieee_1547() -> None:
    assert Grid(
        True, 0.917, 1.05, 49.5, 50.1, 0.0, 0.0, 0, False, 1.0, False, 1.0, 0.0, 0, False, 0.0, 1, 0,
        *(0.036, 0.036, 0.05, 0.05, 5.0, -1.0) * 2,
    ) == DEFAULT  # fmt: skip
    found = grid.default(settings(nominal_frequency=60.0, enter_service_delay=7.0, enter_service_ramp=11.0))
    assert found == DEFAULT._replace(hz_low=59.5, hz_high=60.1, delay_s=7.0, ramp_s=11.0)


# the timer of written values


def test_a_new_version_starts_the_timer_anew() -> None:
    assert Reversion() == (-1, 0.0, 0)
    assert reversion.step(Reversion(1, 5.0, 1), 2, 3.0, 10.0) == Reversion(2, 3000.0, 1)
    assert reversion.step(Reversion(1, 5.0, 0), 2, 0.0, 10.0) == Reversion(2, 0.0, 0)


@pytest.mark.parametrize(("left_ms", "reverted"), [(10.1, 0), (10.0, 3), (9.9, 3), (0.5, 3)])
def test_a_timer_that_runs_out_names_its_version(left_ms: float, reverted: int) -> None:
    after = reversion.step(Reversion(3, left_ms), 3, 9.0, 10.0)
    assert (after.left_ms, after.reverted) == pytest.approx((max(0.0, left_ms - 10.0), reverted))
    assert after.over(3) is bool(reverted)
    assert not after.over(4)


def test_without_a_timer_nothing_runs_out_and_version_zero_was_never_written() -> None:
    assert reversion.step(Reversion(3), 3, 9.0, 10.0) == Reversion(3)
    assert not Reversion(0).over(0)
    assert Reversion(1, 0.0, 1).over(1)


# entering service


def watched(m: Service = OUTSIDE, g: Grid = DEFAULT, p: Pcs | None = PCS, closed: bool = False) -> Service:
    return grid.watch(m, g, NOMINAL, p, closed, 10.0)


@pytest.mark.parametrize(
    ("hz", "v", "inside"),
    [
        (50.0, 400.0, True), (49.5, 400.0, True), (49.499, 400.0, False), (50.1, 400.0, True), (50.101, 400.0, False),
        (50.0, 366.9, True), (50.0, 366.7, False), (50.0, 420.0, True), (50.0, 420.1, False), (nan, 400.0, True),
        (50.0, nan, True), (nan, nan, True), (nan, 100.0, False), (60.0, nan, False),
    ],
)  # fmt: skip
def test_service_is_entered_within_the_ranges_and_what_is_not_measured_is_left_to_the_pcs(
    hz: float, v: float, inside: bool
) -> None:
    assert watched(p=pcs(hz, v)).inside is inside
    assert grid.refusal(watched(p=pcs(hz, v)), DEFAULT) is (Why.NONE if inside else Why.ENTER_SERVICE)


@pytest.mark.parametrize(("v", "inside"), [(300.0, True), (299.9, False), (500.0, True), (500.1, False)])
def test_the_ends_of_the_voltage_range_belong_to_it(v: float, inside: bool) -> None:
    assert watched(g=DEFAULT._replace(v_low_pu=0.75, v_high_pu=1.25), p=pcs(50.0, v)).inside is inside


def test_without_the_pcs_nothing_is_known_of_the_grid() -> None:
    assert watched(Service(inside=True, waited_ms=50.0), p=None) == Service(limit=Reversion(0), droop=Reversion(0))


def test_each_criterion_is_a_written_value() -> None:
    for name, value in (("v_low_pu", 1.01), ("v_high_pu", 0.99), ("hz_low", 50.01), ("hz_high", 49.99)):
        assert not watched(g=DEFAULT._replace(**{name: value})).inside, name  # type: ignore[arg-type]
    assert not watched(g=DEFAULT._replace(service_permitted=False)).inside


def test_the_delay_begins_anew_when_the_grid_leaves_its_range() -> None:
    g = DEFAULT._replace(delay_s=0.03)
    m = watched(Service(waited_ms=15.0), g)
    assert (m.waited_ms, grid.refusal(m, g)) == (25.0, Why.ENTER_SERVICE)
    assert grid.delay_left_s(m, g) == pytest.approx(0.005)
    m = watched(m, g)
    assert (m.waited_ms, grid.refusal(m, g), grid.delay_left_s(m, g)) == (35.0, Why.NONE, 0.0)
    m = watched(m, g, pcs(51.0))
    assert (m.waited_ms, grid.refusal(m, g), grid.delay_left_s(m, g)) == (0.0, Why.ENTER_SERVICE, 0.03)


def test_the_delay_is_over_in_the_scan_that_completes_it() -> None:
    g = DEFAULT._replace(delay_s=0.02)
    assert grid.refusal(Service(inside=True, waited_ms=20.0), g) is Why.NONE
    assert grid.refusal(Service(inside=True, waited_ms=19.99), g) is Why.ENTER_SERVICE
    assert grid.refusal(Service(inside=False, waited_ms=20.0), g) is Why.ENTER_SERVICE


def test_the_delay_begins_anew_when_service_is_left() -> None:
    serving = Service(closed=True, waited_ms=500.0, served_ms=300.0)
    assert watched(serving, closed=True)[:4] == (True, True, 510.0, 310.0)
    assert watched(serving)[:4] == (False, True, 0.0, 0.0)
    assert watched(Service(waited_ms=500.0), closed=True)[:4] == (True, True, 510.0, 10.0)


def test_service_that_is_not_permitted_is_refused_whatever_the_grid_does() -> None:
    g = DEFAULT._replace(service_permitted=False)
    m = watched(Service(inside=True, waited_ms=1e9, ceased_ms=30.0), g)
    assert (grid.refusal(m, g), m.ceased_ms, m.waited_ms) == (Why.SERVICE_NOT_PERMITTED, 40.0, 0.0)
    assert watched(m).ceased_ms == 0.0


def test_both_timers_of_set_values_run() -> None:
    g = DEFAULT._replace(limit_version=2, limit_revert_s=3.0, droop_version=4, droop_revert_s=5.0)
    m = watched(g=g)
    assert (m.limit, m.droop) == (Reversion(2, 3000.0), Reversion(4, 5000.0))
    m = watched(m, g)
    assert (m.limit, m.droop) == (Reversion(2, 2990.0), Reversion(4, 4990.0))


# what it caps


def term(c: float, reason: LimitReason) -> Any:
    return [(pytest.approx(c), reason)]


def capped(m: Service = OUTSIDE, **written: Any) -> tuple[list[Term], list[Term]]:
    return grid.caps(m, DEFAULT._replace(**written), S, 1200.0)


def test_without_ramp_and_limit_nothing_is_capped() -> None:
    assert capped() == ([], [])
    assert capped(Service(served_ms=2000.0), ramp_s=2.0) == ([], [])


def test_the_ramp_gives_each_direction_its_share_of_the_rated_power() -> None:
    for served_ms, share in ((0.0, 0.0), (500.0, 0.25), (1999.0, 0.9995)):
        charge, discharge = capped(Service(served_ms=served_ms), ramp_s=2.0)
        assert charge == term(share * rated_charge_w(S) / 1200.0 / 1120.0, LimitReason.ENTER_SERVICE)
        assert discharge == term(share * WMAX / 1200.0 / 1120.0, LimitReason.ENTER_SERVICE)


LIMIT: dict[str, Any] = {
    "limit_version": 3, "limit_enabled": True, "limit_pu": 0.4, "limit_revert_enabled": True, "limit_revert_pu": 0.7,
}  # fmt: skip


def test_the_limit_caps_discharge_only() -> None:
    assert capped(**LIMIT) == ([], term(0.4 * 1080.0 / 1200.0, LimitReason.WMAX_LIM))
    assert capped(**{**LIMIT, "limit_enabled": False}) == ([], [])


def test_a_limit_whose_time_is_over_gives_way_to_the_one_after_it() -> None:
    over = Service(limit=Reversion(3, 0.0, 3))
    assert capped(over, **LIMIT) == ([], term(0.7 * 1080.0 / 1200.0, LimitReason.WMAX_LIM))
    assert capped(over, **{**LIMIT, "limit_revert_enabled": False}) == ([], [])
    assert capped(over, **{**LIMIT, "limit_enabled": False})[1] != []


def test_without_a_rack_voltage_a_cap_is_zero() -> None:
    for rack_v in (0.0, nan, -1.0):
        charge, discharge = grid.caps(Service(), DEFAULT._replace(**LIMIT, ramp_s=1.0), S, rack_v)
        assert [c for c, _ in (*charge, *discharge)] == [0.0, 0.0, 0.0]
    assert grid.caps(Service(), DEFAULT._replace(**LIMIT), S, 0.5)[1][0][0] == pytest.approx(0.4 * 1080.0 / 0.5)


# droop

ON = DEFAULT._replace(
    droop_enabled=True, db_of_hz=0.1, db_uf_hz=0.2, k_of=0.04, k_uf=0.025, response_s=2.0, p_min_pu=-0.5
)


def settled(hz: float, set_pu: float, g: Grid = ON, most_pu: float = 1.0) -> Droop:
    """After a minute at this frequency, starting from the set-point."""
    d = grid.droop(Droop(), g, 50.0, 50.0, set_pu, set_pu, most_pu, 0.01)
    for _ in range(6000):
        d = grid.droop(d, g, 50.0, hz, set_pu, d.power_pu, most_pu, 0.01)
    return d


@pytest.mark.parametrize(
    ("hz", "set_pu", "expected"),
    [
        (50.0, 0.4, 0.4), (50.1, 0.4, 0.4), (49.8, 0.4, 0.4),
        (50.6, 0.4, 0.4 - 0.5 / 2.0), (51.6, 0.4, 0.4 - 1.5 / 2.0), (52.6, 0.4, -0.5), (50.6, -0.6, -0.6),
        (49.6, 0.4, 0.4 + 0.2 / 1.25), (49.0, 0.4, 1.0), (49.6, -0.6, -0.44), (nan, 0.4, 0.4),
    ],
)  # fmt: skip
def test_the_power_follows_the_frequency(hz: float, set_pu: float, expected: float) -> None:
    found = settled(hz, set_pu)
    assert found.power_pu == pytest.approx(expected, abs=1e-6)
    assert found.side == (1 if hz > 50.1 else -1 if hz < 49.8 else 0)
    assert found.active is bool(found.side)


def test_below_the_band_no_more_than_the_available_power_is_asked_for() -> None:
    assert settled(49.0, 0.4, most_pu=0.7).power_pu == pytest.approx(0.7, abs=1e-6)


def test_a_droop_that_is_off_asks_for_the_set_point() -> None:
    off = ON._replace(droop_enabled=False)
    d = grid.droop(Droop(), off, 50.0, 52.0, 0.4, 0.1, 1.0, 0.01)
    assert (d.power_pu, d.set_pu, d.active, d.side) == (0.4, 0.4, False, 0)
    assert isnan(d.before_pu)
    busy = Droop(0.4, 1, 0.4, 0.2, True)
    assert grid.droop(busy, off, 50.0, 52.0, 0.4, 0.1, 1.0, 0.01).power_pu == 0.4


def test_nine_tenths_of_the_answer_are_there_at_the_response_time() -> None:
    d = grid.droop(Droop(), ON, 50.0, 50.0, 0.4, 0.4, 1.0, 0.1)
    for _ in range(20):
        d = grid.droop(d, ON, 50.0, 50.6, 0.4, d.power_pu, 1.0, 0.1)
    assert d.power_pu == pytest.approx(0.4 - 0.9 * 0.25)


def test_the_answer_starts_from_what_flowed_and_keeps_the_power_before_the_excursion() -> None:
    d = grid.droop(Droop(), ON, 50.0, 50.0, 0.4, 0.1, 1.0, 0.01)
    d = grid.droop(d, ON, 50.0, 50.6, 0.4, 0.3, 1.0, 0.01)
    assert d.before_pu == 0.3
    assert d.power_pu == pytest.approx(0.05 + (0.3 - 0.05) * exp(-0.01 * log(10.0) / 2.0))
    after = grid.droop(d, ON, 50.0, 50.8, 0.4, 0.2, 1.0, 0.01)
    assert after.before_pu == 0.3
    assert after.power_pu == pytest.approx(-0.05 + (d.power_pu + 0.05) * exp(-0.01 * log(10.0) / 2.0))


def test_an_excursion_to_the_other_side_is_a_new_one() -> None:
    d = Droop(0.4, 1, 0.4, 0.25, True)
    after = grid.droop(d, ON, 50.0, 49.6, 0.4, 0.2, 1.0, 0.01)
    assert (after.side, after.before_pu) == (-1, 0.2)


def test_a_set_point_written_meanwhile_takes_the_place_of_the_power_before() -> None:
    d = grid.droop(Droop(0.4, 1, 0.4, 0.15, True), ON, 50.0, 50.6, -0.1, 0.15, 1.0, 1e3)
    assert (d.before_pu, d.power_pu) == pytest.approx((-0.1, -0.1 - 0.25))
    entered = grid.droop(Droop(), ON, 50.0, 50.6, 0.4, 0.0, 1.0, 0.01)
    assert entered.before_pu == 0.4, "grid support that begins in an excursion begins at its set-point"


def test_the_way_back_to_the_set_point_takes_the_response_time_too() -> None:
    d = Droop(0.4, 1, 0.4, 0.3, True)
    d = grid.droop(d, ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert d.power_pu == pytest.approx(0.4 - 0.1 * exp(-0.01 * log(10.0) / 2.0))
    assert (d.side, d.active) == (0, True)
    near = grid.droop(d._replace(power_pu=0.4 - 1.001 * SETTLED_PU), ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert not near.active
    assert grid.droop(near, ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01).power_pu == 0.4
    above = grid.droop(d._replace(power_pu=0.4 + 3 * SETTLED_PU), ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert above.active
    just = Droop(0.0, 0, 0.0, SETTLED_PU, True)
    assert grid.droop(just, ON, 50.0, 50.0, 0.0, 0.0, 1.0, 0.0).active


@given(
    st.floats(45.0, 55.0), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.floats(-1.0, 0.0),
    st.booleans(),
)  # fmt: skip
def test_an_excursion_never_moves_the_power_the_wrong_way(
    hz: float, set_pu: float, flowing_pu: float, most_pu: float, p_min_pu: float, new: bool
) -> None:
    g = ON._replace(p_min_pu=p_min_pu)
    d = Droop() if new else Droop(set_pu, 0, nan, set_pu, False)
    after = grid.droop(d, g, 50.0, hz, set_pu, flowing_pu, most_pu, 0.01)
    start = set_pu if new else flowing_pu
    if after.side > 0:
        assert after.power_pu <= max(flowing_pu, start) + 1e-9
    elif after.side < 0:
        assert after.power_pu <= max(flowing_pu, most_pu) + 1e-9


# in the core


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
    rig.grid = DEFAULT._replace(**LIMIT)
    rig.scan(10)
    assert rig.o.demand_w == pytest.approx(0.4 * rated_discharge_w(rig.settings))
    assert rig.o.discharge_reason is LimitReason.WMAX_LIM
    assert rig.o.available_discharge_a == pytest.approx(rig.o.setpoint_a)
    assert rig.scan(5000).state() is State.DISCHARGE
    assert rig.o.faults_latched == 0, "a falling limit is no fault of the PCS"


def test_a_limit_reverts_after_its_time_and_tells_it() -> None:
    written = DEFAULT._replace(**LIMIT, limit_revert_s=3.0)
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


def supporting(w: float, g: Grid = ON, **changes: Any) -> Rig:
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
    rig = supporting(300e3, ON._replace(droop_enabled=False))
    rig.pcs_changes = {"ac_hz": 52.0}
    assert rig.scan(5000).o.demand_w == pytest.approx(300e3, rel=0.001)
    assert rig.o.discharge_reason is LimitReason.COMMAND


@pytest.mark.parametrize("hz", [48.0, 52.0])
def test_droop_acts_in_grid_support_only(hz: float) -> None:
    rig = Rig(soc=60.0, grid=ON).ready()
    rig.pcs_changes = {"ac_hz": hz}
    assert rig.scan(3000).o.setpoint_a == 0.0
    rig.send(mode=Mode.DISCHARGE, c_rate=0.2, target_soc_pct=10.0).scan(20_000)
    assert rig.o.setpoint_a == pytest.approx(0.2 * 1120.0)
    assert rig.core.memory.droop == Droop()


def test_droop_stays_within_the_power_limit_of_the_site() -> None:
    rig = supporting(300e3, ON._replace(**LIMIT))
    rig.pcs_changes = {"ac_hz": 48.0}
    rig.scan(10_000)
    assert rig.o.demand_w == pytest.approx(0.4 * rated_discharge_w(rig.settings), rel=0.01)
    assert rig.core.memory.droop.power_pu == pytest.approx(0.4, abs=0.01), "the lag does not run away from the limit"


def test_without_data_droop_forgets_and_asks_for_nothing() -> None:
    rig = supporting(300e3)
    m = rig.core.memory
    now = core._Now(None, None, JUDGED, Loops(25.0, 1.0), Why.NO_DATA, ON)
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
    now = core._Now(BMS, pcs(50.6), JUDGED, Loops(25.0, 1.0), Why.NONE, ON)
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
