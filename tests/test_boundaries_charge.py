"""The charge law at its edges: each term with the value that just binds, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from rig import profile, settings
from samples import BMS, PCS

from statemachine import charge
from statemachine.charge import NO_LIMIT_C, NOTHING, Law, Limits, Loops
from statemachine.settings import Settings
from statemachine.signals import Bms, LimitReason, Pcs

S = settings()  # 1,120 Ah, 300 cells in series, 1 C both ways, ramp 0.02 C/s
CELL = profile()
COOL = Loops(25.0, 1.0)


def near(value: float) -> Any:
    """Equal but for rounding."""
    return pytest.approx(value)


TABLE = ((10.0, 2.0), (20.0, 4.0), (30.0, 1.0))


@pytest.mark.parametrize(
    ("x", "y"),
    [(5.0, 2.0), (10.0, 2.0), (11.0, 2.2), (19.0, 3.8), (20.0, 4.0), (22.0, 3.4), (30.0, 1.0), (31.0, 1.0), (nan, 0.0)],
)
def test_a_table_is_linear_between_its_points_and_flat_outside(x: float, y: float) -> None:
    assert charge.lookup(TABLE, x) == near(y)


def test_at_the_start_nothing_is_allowed_and_nothing_is_known() -> None:
    assert (0.0, LimitReason.NO_DATA) * 4 == NOTHING
    law = Law()
    assert (law.loop_charge_c, law.loop_discharge_c, law.charge_c, law.discharge_c, law.poll) == (0, 0, 0, 0, 0)
    assert law.warm_fast_c != law.warm_fast_c
    assert law.warm_slow_c != law.warm_slow_c


# plating: plating_k 0.7, rate 1.30 C at 30 % and 0.95 C at 50 %, factor 0.84 at 20 degC, 1.15 at 30 degC


@pytest.mark.parametrize(
    ("changes", "rate_c", "reason"),
    [
        ({"soc_max_pct": 27.0}, 0.7 * 1.30, LimitReason.PLATING),
        ({"soc_max_pct": 47.0}, 0.7 * 0.95, LimitReason.PLATING),
        ({"soc_max_pct": 47.0, "cell_c_min": 30.0}, 0.7 * 0.95 * 1.15, LimitReason.PLATING),
        ({"soc_max_pct": 47.0, "cell_c_min": 20.0}, 0.7 * 0.95 * 0.84, LimitReason.COLD),
        ({"soc_max_pct": 47.0, "soh_pct": 90.0}, 0.7 * 0.95 * 0.88, LimitReason.HEALTH),
        ({"soc_max_pct": 47.0, "soh_pct": 90.0, "cell_c_min": 20.0}, 0.7 * 0.95 * 0.88 * 0.84, LimitReason.COLD),
        ({"soc_max_pct": 47.0, "soh_pct": 70.0, "cell_c_min": 20.0}, 0.7 * 0.95 * 0.65 * 0.84, LimitReason.HEALTH),
        ({"soc_max_pct": 47.0, "cell_c_min": -5.0}, 0.0, LimitReason.COLD),
        ({"soc_max_pct": 47.0, "cell_c_min": nan}, 0.0, LimitReason.COLD),
        ({"soc_max_pct": 47.0, "soh_pct": 60.0}, 0.0, LimitReason.HEALTH),
    ],
)
def test_the_plating_ceiling_and_the_factor_that_lowers_it(
    changes: dict[str, Any], rate_c: float, reason: LimitReason
) -> None:
    assert charge.plating(CELL, BMS._replace(**changes)) == (near(rate_c), reason)


def test_equally_bad_cold_and_health_are_called_cold() -> None:
    cell = replace(CELL, cold_factor=((0.0, 0.5),), health_factor=((0.0, 0.5),), plating_rate_c=((0.0, 1.0),))
    assert charge.plating(cell, BMS) == (near(0.175), LimitReason.COLD)


@pytest.mark.parametrize(("cap_c", "reason"), [(0.70, LimitReason.PLATING), (0.69, LimitReason.COLD)])
def test_a_vendors_cold_cap_binds_below_the_plating_rate(cap_c: float, reason: LimitReason) -> None:
    cell = replace(CELL, cold_cap_c=((0.0, cap_c),), plating_rate_c=((0.0, 1.0),))
    assert charge.plating(cell, BMS) == (near(min(cap_c, 0.7)), reason)


# heat: 0 C at 45 degC, 7 K for 1 C, looks 120 s ahead and 2 K at most


@pytest.mark.parametrize(
    ("hottest_c", "rise", "rate_c"),
    [
        (38.0, 0.0, 1.0), (45.0, 0.0, 0.0), (46.0, 0.0, 0.0), (38.0, 0.01, (7.0 - 1.2) / 7.0), (38.0, -1.0, 1.0),
        (38.0, nan, 1.0), (nan, 0.0, 0.0), (38.0, 0.0166, (7.0 - 1.992) / 7.0),
        (38.0, 0.017, 5.0 / 7.0), (38.0, 5.0, 5.0 / 7.0),
    ],
)  # fmt: skip
def test_heat_lowers_the_rate_along_its_slope_and_its_rise(hottest_c: float, rise: float, rate_c: float) -> None:
    assert charge.hot(CELL, hottest_c, rise) == near(rate_c)


@pytest.mark.parametrize(("soc_pct", "rate_c"), [(70.0, 0.5), (75.0, 0.45), (80.0, 0.4), (100.0, 0.2)])
def test_step_charge_lowers_the_commanded_rate_with_the_highest_strings_soc(soc_pct: float, rate_c: float) -> None:
    assert charge.step(CELL, 0.5, BMS._replace(soc_max_pct=soc_pct)) == near(rate_c)


@pytest.mark.parametrize(
    ("rate_c", "distance_v", "new", "after_c"),
    [
        (0.5, 0.1, False, 0.503), (0.5, -0.1, False, 0.497), (0.5, 0.0, True, 0.5), (0.5, -0.010, True, 0.4997),
        (0.5, -0.011, True, (0.5 - 0.00033) * 0.8), (0.5, -0.011, False, 0.49967), (0.999, 0.1, False, 1.0),
        (0.001, -0.1, False, 0.0), (nan, 0.1, False, 0.0), (0.5, nan, True, 0.0),
    ],
)  # fmt: skip
def test_one_step_of_the_voltage_loop(rate_c: float, distance_v: float, new: bool, after_c: float) -> None:
    assert charge.loop(rate_c, distance_v, 0.1, 0.3, 1.0, new) == near(after_c)


@pytest.mark.parametrize(
    ("terms", "bites"),
    [
        ([(0.5, LimitReason.BMS), (0.4, LimitReason.PCS)], (0.4, LimitReason.PCS)),
        ([(0.5, LimitReason.BMS), (0.5, LimitReason.PCS)], (0.5, LimitReason.BMS)),
        ([(0.5, LimitReason.BMS), (nan, LimitReason.PCS)], (0.0, LimitReason.PCS)),
        ([(0.5, LimitReason.BMS), (inf, LimitReason.PCS)], (0.0, LimitReason.PCS)),
        ([(NO_LIMIT_C, LimitReason.BMS)], (NO_LIMIT_C, LimitReason.NONE)),
        ([(-1.0, LimitReason.BMS)], (0.0, LimitReason.BMS)),
        ([], (NO_LIMIT_C, LimitReason.NONE)),
        ([(0.0, LimitReason.BMS), (nan, LimitReason.PCS)], (0.0, LimitReason.BMS)),
    ],
)
def test_the_smallest_term_bites_and_a_strange_number_bites_as_zero(
    terms: list[charge.Term], bites: charge.Term
) -> None:
    assert charge.smallest(terms) == bites


def test_no_limit_is_a_thousand_million_c() -> None:
    assert NO_LIMIT_C == 1e9
    assert charge.smallest([(1.01e9, LimitReason.BMS)]) == (0.0, LimitReason.BMS)


def test_absorb_ends_at_a_twentieth_of_c_and_a_failed_loop_leaves_half() -> None:
    assert charge.TAIL_RATE_C == 1 / 20
    assert charge.ONE_FAILED == 1 / 2


# the whole law


def limits(
    law: Law | None = None, s: Settings = S, bms: Bms | None = BMS, pcs: Pcs | None = PCS, loops: Loops = COOL,
    requested_c: float = 0.5, step_c: float = 0.5, charging: bool = False, discharging: bool = False,
    balancing: bool = False, dt_s: float = 0.01,
) -> tuple[Limits, Law]:  # fmt: skip
    warm_c = bms.cell_c_max if bms else nan
    law = law or Law(1.0, 1.0, 1.0, 1.0, warm_c, warm_c, BMS.poll)
    return charge.limits(law, s, bms, pcs, loops, requested_c, step_c, charging, discharging, balancing, dt_s)


@pytest.mark.parametrize("missing", ["bms", "pcs"])
def test_without_a_device_there_is_no_limit_but_zero_and_the_law_forgets(missing: str) -> None:
    changes: dict[str, Any] = {missing: None}
    found, law = limits(charging=True, **changes)
    assert found is NOTHING
    assert repr(law) == repr(Law())


LOW = 0.05  # below every other term
CHARGE_TERMS: list[tuple[LimitReason, dict[str, Any]]] = [
    (LimitReason.HOT, {"bms": BMS._replace(cell_c_max=45.0 - 7.0 * LOW)}),
    (LimitReason.BMS, {"bms": BMS._replace(charge_max_a=LOW * 1120.0)}),
    (LimitReason.PCS, {"pcs": PCS._replace(charge_max_a=LOW * 1120.0)}),
    (LimitReason.SITE, {"s": settings(max_charge_rate=LOW)}),
    (LimitReason.SITE, {"s": settings(max_charge_current=LOW * 1120.0)}),
    (LimitReason.LOOP, {"loops": Loops(45.0 - 7.0 * LOW, 1.0)}),
    (LimitReason.LOOP, {"loops": Loops(25.0, LOW)}),
    (LimitReason.LOW_CELL, {"bms": BMS._replace(cell_v_min=2.99), "s": settings(cell=replace(CELL, low_rate_c=LOW))}),
    (LimitReason.BALANCE, {"balancing": True}),
    (LimitReason.COLD, {"s": settings(cell=replace(CELL, cold_cap_c=((0.0, LOW),)))}),
]


@pytest.mark.parametrize(("reason", "changes"), CHARGE_TERMS)
def test_each_term_of_a_charge_bites_by_its_name(reason: LimitReason, changes: dict[str, Any]) -> None:
    found, law = limits(charging=True, **changes)
    assert (found.charge_c, found.charge_reason) == (near(LOW), reason)
    assert (found.available_charge_c, found.available_charge_reason) == (near(LOW), reason)
    assert law.charge_c == near(LOW)


DISCHARGE_TERMS: list[tuple[LimitReason, dict[str, Any]]] = [
    (LimitReason.BMS, {"bms": BMS._replace(discharge_max_a=LOW * 1120.0)}),
    (LimitReason.PCS, {"pcs": PCS._replace(discharge_max_a=LOW * 1120.0)}),
    (LimitReason.SITE, {"s": settings(max_discharge_rate=LOW)}),
    (LimitReason.SITE, {"s": settings(max_discharge_current=LOW * 1120.0)}),
    (LimitReason.HOT, {"bms": BMS._replace(cell_c_max=50.0 - 7.0 * LOW)}),
    (LimitReason.HOT, {"loops": Loops(50.0 - 7.0 * LOW, 1.0)}),
    (LimitReason.LOOP, {"loops": Loops(25.0, LOW)}),
]


@pytest.mark.parametrize(("reason", "changes"), DISCHARGE_TERMS)
def test_each_term_of_a_discharge_bites_by_its_name(reason: LimitReason, changes: dict[str, Any]) -> None:
    found, law = limits(discharging=True, **changes)
    assert (found.discharge_c, found.discharge_reason) == (near(LOW), reason)
    assert (found.available_discharge_c, found.available_discharge_reason) == (near(LOW), reason)
    assert law.discharge_c == near(LOW)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bms": BMS._replace(cell_c_min=-10.0)}, LimitReason.COLD),
        ({"bms": BMS._replace(cell_c_min=-9.9)}, LimitReason.COMMAND),
        ({"bms": BMS._replace(soc_min_pct=5.0)}, LimitReason.SOC),
        ({"bms": BMS._replace(soc_min_pct=5.1)}, LimitReason.COMMAND),
        ({"bms": BMS._replace(cell_c_max=50.0)}, LimitReason.HOT),
        ({"bms": BMS._replace(cell_c_max=60.0)}, LimitReason.HOT),
        ({"loops": Loops(nan, 0.0)}, LimitReason.LOOP),
        ({"loops": Loops(nan, 0.0), "s": settings(loops_used=0)}, LimitReason.COMMAND),
        ({"loops": Loops(nan, 1.0)}, LimitReason.COMMAND),
        ({"loops": Loops(nan, 1.0), "bms": BMS._replace(cell_c_max=50.0)}, LimitReason.HOT),
        ({"bms": BMS._replace(cell_c_max=nan)}, LimitReason.HOT),
    ],
)
def test_where_a_discharge_ends(changes: dict[str, Any], reason: LimitReason) -> None:
    found, _ = limits(discharging=True, **changes)
    expected = 0.5 if reason is LimitReason.COMMAND else 0.0
    assert (found.discharge_c, found.discharge_reason) == (near(expected), reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bms": BMS._replace(soc_pct=80.0), "s": settings(max_soc=80.0)}, LimitReason.SOC),
        ({"bms": BMS._replace(soc_pct=79.9), "s": settings(max_soc=80.0)}, LimitReason.COMMAND),
        ({"bms": BMS._replace(soc_pct=101.0), "s": settings(max_soc=100.0)}, LimitReason.COMMAND),
        ({"bms": BMS._replace(soc_pct=99.9), "s": settings(max_soc=99.9)}, LimitReason.SOC),
        ({"loops": Loops(nan, 0.0)}, LimitReason.LOOP),
        ({"loops": Loops(45.0, 1.0)}, LimitReason.LOOP),
        ({"loops": Loops(45.0, 1.0), "s": settings(loops_used=0)}, LimitReason.COMMAND),
        ({"bms": BMS._replace(cell_c_max=45.0)}, LimitReason.HOT),
        ({"bms": BMS._replace(cell_v_min=3.0)}, LimitReason.COMMAND),
    ],
)
def test_where_a_charge_ends(changes: dict[str, Any], reason: LimitReason) -> None:
    found, _ = limits(charging=True, **changes)
    expected = 0.5 if reason is LimitReason.COMMAND else 0.0
    assert (found.charge_c, found.charge_reason) == (near(expected), reason)


FULL = BMS._replace(discharge_max_a=0.0, charge_max_a=0.0, soc_pct=90.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"bms": FULL._replace(cell_c_max=60.0)}, {"bms": FULL._replace(cell_c_min=-10.0)},
        {"bms": FULL._replace(soc_min_pct=5.0)}, {"bms": FULL, "loops": Loops(nan, 0.0)},
        {"bms": FULL._replace(cell_v_min=2.0)},
    ],
)  # fmt: skip
def test_of_several_terms_at_zero_the_first_is_named(changes: dict[str, Any]) -> None:
    outward, _ = limits(discharging=True, **changes)
    assert (outward.discharge_c, outward.discharge_reason) == (0.0, LimitReason.BMS)
    assert limits(**changes)[0].available_discharge_reason is LimitReason.BMS


@pytest.mark.parametrize(
    "changes", [{"s": settings(max_soc=80.0)}, {"loops": Loops(nan, 0.0)}, {"bms": FULL._replace(cell_v_max=4.3)}]
)
def test_of_several_charge_terms_at_zero_the_first_is_named(changes: dict[str, Any]) -> None:
    inward, _ = limits(**{"bms": FULL, "charging": True, **changes})
    assert (inward.charge_c, inward.charge_reason) == (0.0, LimitReason.BMS)
    assert limits(**{"bms": FULL, **changes})[0].available_charge_reason is LimitReason.BMS


def test_while_nothing_flows_only_physics_counts() -> None:
    found, law = limits()
    assert found == (
        near(0.7 * 0.895), LimitReason.PLATING, 1.0, LimitReason.BMS,
        near(0.7 * 0.895), LimitReason.PLATING, 1.0, LimitReason.BMS,
    )  # fmt: skip
    assert (law.charge_c, law.discharge_c) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "charges"),
    [
        ({"cell_v_max": 4.1999}, True), ({"cell_v_max": 4.2}, False), ({"cell_v_max": 4.3}, False),
        ({"rack_v": 1259.9}, True), ({"rack_v": 1260.0}, False),
    ],
)  # fmt: skip
def test_while_nothing_flows_a_full_cell_or_rack_takes_no_charge(changes: dict[str, Any], charges: bool) -> None:
    found, _ = limits(bms=BMS._replace(**changes))
    reason = LimitReason.PLATING if charges else LimitReason.VOLTAGE
    assert (found.charge_c > 0.0, found.charge_reason, found.available_charge_reason) == (charges, reason, reason)


@pytest.mark.parametrize(
    ("changes", "discharges"),
    [
        ({"cell_v_min": 2.801}, True), ({"cell_v_min": 2.8}, False), ({"rack_v": 900.1}, True),
        ({"rack_v": 900.0}, False),
    ],
)  # fmt: skip
def test_while_nothing_flows_an_empty_cell_or_rack_gives_nothing(changes: dict[str, Any], discharges: bool) -> None:
    found, _ = limits(bms=BMS._replace(**changes))
    reason = LimitReason.BMS if discharges else LimitReason.VOLTAGE
    assert (found.discharge_c > 0.0, found.discharge_reason) == (discharges, reason)


@pytest.mark.parametrize(("way", "name"), [("charging", "charge"), ("discharging", "discharge")])
def test_a_rate_rises_with_the_ramp_and_falls_at_once(way: str, name: str) -> None:
    flags: dict[str, Any] = {way: True}
    up, law = limits(Law(1.0, 1.0, 0.2, 0.2, 26.0, 26.0, 5), dt_s=0.5, **flags)
    at = {f"{name}_c": near(0.21), f"{name}_reason": LimitReason.RAMP}
    assert {k: getattr(up, k) for k in at} == at
    assert getattr(law, f"{name}_c") == near(0.21)
    there, _ = limits(Law(1.0, 1.0, 0.48, 0.48, 26.0, 26.0, 5), dt_s=1.0, **flags)
    assert getattr(there, f"{name}_reason") is LimitReason.COMMAND
    down, law = limits(Law(1.0, 1.0, 0.9, 0.9, 26.0, 26.0, 5), dt_s=1.0, **flags)
    assert (getattr(down, f"{name}_c"), getattr(law, f"{name}_c")) == (0.5, 0.5)


def test_charging_takes_the_step_rate_from_its_own_argument() -> None:
    found, _ = limits(charging=True, requested_c=0.6, step_c=0.3)
    assert (found.charge_c, found.charge_reason) == (near(0.3), LimitReason.STEP)
    found, _ = limits(charging=True, requested_c=0.3, step_c=0.3)
    assert found.charge_reason is LimitReason.COMMAND


@pytest.mark.parametrize(
    ("distance_v", "available", "reason"),
    [
        (0.0100, 0.45, LimitReason.VOLTAGE), (0.0101, 0.6265, LimitReason.PLATING), (0.0, 0.45, LimitReason.VOLTAGE),
    ],
)  # fmt: skip
def test_near_the_ceiling_the_loop_is_what_the_rack_could_do(
    distance_v: float, available: float, reason: LimitReason
) -> None:
    law = Law(0.45, 0.0, 0.45, 0.0, 26.0, 26.0, 5)
    s = settings(cell=replace(CELL, loop_ki_c_per_vs=0.0, v_limit_v=distance_v))
    found, _ = limits(law, s, bms=BMS._replace(cell_v_max=0.0), charging=True)
    assert (found.available_charge_c, found.available_charge_reason) == (near(available), reason)
    assert (found.charge_c, found.charge_reason) == (near(0.45), LimitReason.VOLTAGE)


def test_the_loop_stands_at_most_its_headroom_above_the_rate_in_use() -> None:
    _, law = limits(Law(0.9, 0.9, 0.2, 0.3, 26.0, 26.0, 5), charging=True)
    assert law.loop_charge_c == near(0.25)
    assert law.loop_discharge_c == near(0.35)


def test_the_loop_stays_below_every_other_term() -> None:
    _, law = limits(charging=True, requested_c=0.4, step_c=0.4)
    assert law.loop_charge_c == near(0.4)


@pytest.mark.parametrize(
    ("changes", "way", "distance_v"),
    [
        ({"cell_v_max": 4.15}, "charge", 0.05), ({"rack_v": 1245.0}, "charge", 0.05),
        ({"cell_v_min": 2.85}, "discharge", 0.05), ({"rack_v": 915.0}, "discharge", 0.05),
        ({"cell_v_max": 4.25}, "charge", -0.05), ({"rack_v": 885.0}, "discharge", -0.05),
    ],
)  # fmt: skip
@pytest.mark.parametrize("new", [False, True])
def test_the_loop_moves_by_the_nearer_distance_and_cuts_once_a_sample(
    changes: dict[str, Any], way: str, distance_v: float, new: bool
) -> None:
    bms = BMS._replace(**changes, poll=BMS.poll + new)
    _, law = limits(Law(0.3, 0.3, 0.3, 0.3, 26.0, 26.0, BMS.poll), bms=bms, dt_s=0.1)
    expected = 0.3 + 0.3 * distance_v * 0.1
    if new and distance_v < 0.0:
        expected *= 0.8
    assert (law.loop_charge_c if way == "charge" else law.loop_discharge_c) == near(expected)
    assert law.poll == BMS.poll + new


def test_the_rise_of_the_hottest_cell_is_seen_by_two_averages() -> None:
    bms = BMS._replace(cell_c_max=40.0)
    _, law = limits(Law(), bms=bms, dt_s=1.0)
    assert (law.warm_fast_c, law.warm_slow_c) == (40.0, 40.0)
    _, law = limits(law._replace(warm_fast_c=30.0, warm_slow_c=20.0), bms=bms, dt_s=1.0)
    assert (law.warm_fast_c, law.warm_slow_c) == (near(31.0), near(20.5))
    _, law = limits(law._replace(warm_fast_c=30.0, warm_slow_c=20.0), bms=bms, dt_s=100.0)
    assert (law.warm_fast_c, law.warm_slow_c) == (40.0, 40.0)


def test_a_rising_temperature_lowers_the_charge_before_it_is_hot() -> None:
    """0.3 K between averages of 10 and 40 s is 0.01 K/s: 1.2 K in 120 s."""
    bms = BMS._replace(cell_c_max=43.0)
    found, _ = limits(Law(1.0, 1.0, 1.0, 1.0, 43.0, 42.7, 5), bms=bms, charging=True, dt_s=1e-9)
    assert (found.charge_c, found.charge_reason) == (near(0.8 / 7.0), LimitReason.HOT)


@pytest.mark.parametrize(("share", "charge_c", "discharge_c"), [(1.0, 0.5, 0.5), (0.5, 0.4, 0.3), (0.0, 0.0, 0.0)])
def test_a_failed_loop_takes_its_share_of_the_permitted_rate(share: float, charge_c: float, discharge_c: float) -> None:
    s = settings(max_charge_rate=0.8, max_discharge_rate=0.6)
    inward, _ = limits(s=s, loops=Loops(25.0, share), charging=True)
    outward, _ = limits(s=s, loops=Loops(25.0, share), discharging=True)
    assert inward.charge_c == near(min(charge_c, 0.5))
    assert outward.discharge_c == near(min(discharge_c, 0.5))
