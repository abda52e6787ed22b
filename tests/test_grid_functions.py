"""Enter service, the power limit and frequency droop by themselves; test_core_grid.py has them in a scan."""

from __future__ import annotations

from math import exp, isnan, log, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import settings
from samples import DROOP_ON, LIMIT_ON, PCS, pcs

from statemachine import grid, reversion
from statemachine.charge import Term
from statemachine.grid import DEFAULT, SETTLED_PU, Droop, Service
from statemachine.loops import Judged
from statemachine.ratings import nominal_v, rated_charge_w, rated_discharge_w
from statemachine.reversion import Reversion
from statemachine.signals import Grid, LimitReason, Pcs, Why

S = settings(max_charge_rate=0.5, enter_service_delay=7.0, enter_service_ramp=11.0)
WMAX = rated_discharge_w(S)
NOMINAL = settings()
JUDGED, OUTSIDE = Judged(), Service()


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


def test_the_limit_caps_discharge_only() -> None:
    assert capped(**LIMIT_ON) == ([], term(0.4 * 1080.0 / 1200.0, LimitReason.WMAX_LIM))
    assert capped(**{**LIMIT_ON, "limit_enabled": False}) == ([], [])


def test_a_limit_whose_time_is_over_gives_way_to_the_one_after_it() -> None:
    over = Service(limit=Reversion(3, 0.0, 3))
    assert capped(over, **LIMIT_ON) == ([], term(0.7 * 1080.0 / 1200.0, LimitReason.WMAX_LIM))
    assert capped(over, **{**LIMIT_ON, "limit_revert_enabled": False}) == ([], [])
    assert capped(over, **{**LIMIT_ON, "limit_enabled": False})[1] != []


def test_without_a_rack_voltage_a_cap_is_zero() -> None:
    for rack_v in (0.0, nan, -1.0):
        charge, discharge = grid.caps(Service(), DEFAULT._replace(**LIMIT_ON, ramp_s=1.0), S, rack_v)
        assert [c for c, _ in (*charge, *discharge)] == [0.0, 0.0, 0.0]
    assert grid.caps(Service(), DEFAULT._replace(**LIMIT_ON), S, 0.5)[1][0][0] == pytest.approx(0.4 * 1080.0 / 0.5)


# droop


def settled(hz: float, set_pu: float, g: Grid = DROOP_ON, most_pu: float = 1.0) -> Droop:
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
    off = DROOP_ON._replace(droop_enabled=False)
    d = grid.droop(Droop(), off, 50.0, 52.0, 0.4, 0.1, 1.0, 0.01)
    assert (d.power_pu, d.set_pu, d.active, d.side) == (0.4, 0.4, False, 0)
    assert isnan(d.before_pu)
    busy = Droop(0.4, 1, 0.4, 0.2, True)
    assert grid.droop(busy, off, 50.0, 52.0, 0.4, 0.1, 1.0, 0.01).power_pu == 0.4


def test_nine_tenths_of_the_answer_are_there_at_the_response_time() -> None:
    d = grid.droop(Droop(), DROOP_ON, 50.0, 50.0, 0.4, 0.4, 1.0, 0.1)
    for _ in range(20):
        d = grid.droop(d, DROOP_ON, 50.0, 50.6, 0.4, d.power_pu, 1.0, 0.1)
    assert d.power_pu == pytest.approx(0.4 - 0.9 * 0.25)


def test_the_answer_starts_from_what_flowed_and_keeps_the_power_before_the_excursion() -> None:
    d = grid.droop(Droop(), DROOP_ON, 50.0, 50.0, 0.4, 0.1, 1.0, 0.01)
    d = grid.droop(d, DROOP_ON, 50.0, 50.6, 0.4, 0.3, 1.0, 0.01)
    assert d.before_pu == 0.3
    assert d.power_pu == pytest.approx(0.05 + (0.3 - 0.05) * exp(-0.01 * log(10.0) / 2.0))
    after = grid.droop(d, DROOP_ON, 50.0, 50.8, 0.4, 0.2, 1.0, 0.01)
    assert after.before_pu == 0.3
    assert after.power_pu == pytest.approx(-0.05 + (d.power_pu + 0.05) * exp(-0.01 * log(10.0) / 2.0))


def test_an_excursion_to_the_other_side_is_a_new_one() -> None:
    d = Droop(0.4, 1, 0.4, 0.25, True)
    after = grid.droop(d, DROOP_ON, 50.0, 49.6, 0.4, 0.2, 1.0, 0.01)
    assert (after.side, after.before_pu) == (-1, 0.2)


def test_a_set_point_written_meanwhile_takes_the_place_of_the_power_before() -> None:
    d = grid.droop(Droop(0.4, 1, 0.4, 0.15, True), DROOP_ON, 50.0, 50.6, -0.1, 0.15, 1.0, 1e3)
    assert (d.before_pu, d.power_pu) == pytest.approx((-0.1, -0.1 - 0.25))
    entered = grid.droop(Droop(), DROOP_ON, 50.0, 50.6, 0.4, 0.0, 1.0, 0.01)
    assert entered.before_pu == 0.4, "grid support that begins in an excursion begins at its set-point"


def test_the_way_back_to_the_set_point_takes_the_response_time_too() -> None:
    d = Droop(0.4, 1, 0.4, 0.3, True)
    d = grid.droop(d, DROOP_ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert d.power_pu == pytest.approx(0.4 - 0.1 * exp(-0.01 * log(10.0) / 2.0))
    assert (d.side, d.active) == (0, True)
    near = grid.droop(d._replace(power_pu=0.4 - 1.001 * SETTLED_PU), DROOP_ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert not near.active
    assert grid.droop(near, DROOP_ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01).power_pu == 0.4
    above = grid.droop(d._replace(power_pu=0.4 + 3 * SETTLED_PU), DROOP_ON, 50.0, 50.0, 0.4, 0.3, 1.0, 0.01)
    assert above.active
    just = Droop(0.0, 0, 0.0, SETTLED_PU, True)
    assert grid.droop(just, DROOP_ON, 50.0, 50.0, 0.0, 0.0, 1.0, 0.0).active


@given(
    st.floats(45.0, 55.0), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.floats(-1.0, 0.0),
    st.booleans(),
)  # fmt: skip
def test_an_excursion_never_moves_the_power_the_wrong_way(
    hz: float, set_pu: float, flowing_pu: float, most_pu: float, p_min_pu: float, new: bool
) -> None:
    g = DROOP_ON._replace(p_min_pu=p_min_pu)
    d = Droop() if new else Droop(set_pu, 0, nan, set_pu, False)
    after = grid.droop(d, g, 50.0, hz, set_pu, flowing_pu, most_pu, 0.01)
    start = set_pu if new else flowing_pu
    if after.side > 0:
        assert after.power_pu <= max(flowing_pu, start) + 1e-9
    elif after.side < 0:
        assert after.power_pu <= max(flowing_pu, most_pu) + 1e-9
