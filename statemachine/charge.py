"""charge_rate_limit: the smallest of named limits, and the name of the one that bites.

Rates are in C on rated capacity; + is discharge only in the demand, limits have no sign. A term whose input is
missing or stale is 0, never "no limit". The coldest cell drives plating, the hottest drives heat, the highest voltage
drives absorb. The voltage term is an integrating loop: a proportional taper of 50 mV limit-cycles at 0.63 C (measured
on an SPMe plant), the loop ripples 0.009 C.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .settings import CellProfile, Settings, Table
from .signals import Bms, LimitReason, Pcs

SOC_MARGIN_PCT = 3.0  # the plating ceiling takes the highest string's SoC plus this
LOOK_AHEAD_S = 120.0  # the hot term looks this far ahead along the temperature's rise
LOOK_AHEAD_MAX_K = 2.0
TREND_FAST_S, TREND_SLOW_S = 10.0, 40.0  # two averages whose distance is the temperature's rise
CUT_ABOVE_V = 0.010  # above the ceiling by more: each new sample cuts the loop to CUT
CUT = 0.8
LOOP_HEADROOM_C = 0.05  # the loop may stand this far above the rate in use, so that it meets the ceiling from below
TAIL_RATE_C = 0.05  # C/20: absorb is done below it

ONE_FAILED = 0.5  # of the permitted rate: a loop has failed, another one still watches its zone
NO_LIMIT_C = 1e9

Term = tuple[float, LimitReason]


class Loops(NamedTuple):
    """4-20 mA thermal loops, judged."""

    hottest_c: float  # nan when none can be believed
    share: float  # of the permitted rate: 1 all believed, ONE_FAILED while every zone is watched, else 0


class Law(NamedTuple):
    """What the law remembers from scan to scan."""

    loop_charge_c: float = 0.0  # voltage loop on the highest cell
    loop_discharge_c: float = 0.0  # voltage loop on the lowest cell
    charge_c: float = 0.0  # rates in use: they rise slowly and fall at once
    discharge_c: float = 0.0
    warm_fast_c: float = float("nan")
    warm_slow_c: float = float("nan")
    poll: int = 0


class Limits(NamedTuple):
    """In C. `available_*` is without command and ramp: what the rack could do."""

    charge_c: float
    charge_reason: LimitReason
    discharge_c: float
    discharge_reason: LimitReason
    available_charge_c: float
    available_charge_reason: LimitReason
    available_discharge_c: float
    available_discharge_reason: LimitReason


NOTHING = Limits(*(0.0, LimitReason.NO_DATA) * 4)


def lookup(table: Table, x: float) -> float:
    """Piecewise linear, flat outside; nan gives 0."""
    if x != x:
        return 0.0
    x0, y0 = table[0]
    if x <= x0:
        return y0
    for x1, y1 in table[1:]:
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        x0, y0 = x1, y1
    return y0


def plating(cell: CellProfile, bms: Bms) -> Term:
    """The anode's plating ceiling, named after the factor that lowers it most."""
    cold = lookup(cell.cold_factor, bms.cell_c_min)
    health = lookup(cell.health_factor, bms.soh_pct)
    rate = cell.plating_k * lookup(cell.plating_rate_c, bms.soc_max_pct + SOC_MARGIN_PCT) * cold * health
    cap = lookup(cell.cold_cap_c, bms.cell_c_min)
    if cap < rate:
        return cap, LimitReason.COLD
    if min(cold, health) >= 1.0:
        return rate, LimitReason.PLATING
    return rate, LimitReason.COLD if cold <= health else LimitReason.HEALTH


def hot(cell: CellProfile, hottest_c: float, rise_c_per_s: float) -> float:
    """0 C at the profile's hot end, looking ahead along a rising temperature."""
    ahead = min(LOOK_AHEAD_MAX_K, LOOK_AHEAD_S * max(0.0, rise_c_per_s))
    return max(0.0, (cell.hot_zero_c - hottest_c - ahead) / cell.hot_slope_k_per_c)


def step(cell: CellProfile, requested_c: float, bms: Bms) -> float:
    """Step-charge: the commanded rate falls from 70 % of reported SoC."""
    return requested_c * lookup(cell.step_factor, bms.soc_max_pct)


def loop(rate_c: float, distance_v: float, dt_s: float, ki: float, top_c: float, new_sample: bool) -> float:
    """One step of the voltage loop: `distance_v` to the ceiling (negative = above it)."""
    rate_c += ki * distance_v * dt_s
    if new_sample and distance_v < -CUT_ABOVE_V:
        rate_c *= CUT
    return min(max(0.0, rate_c), top_c)  # in this order nan becomes 0


def smallest(terms: list[Term]) -> Term:
    """The term that bites; the first among equals. Anything that is not a finite number bites as 0."""
    rate, reason = NO_LIMIT_C, LimitReason.NONE
    for term_c, name in terms:
        term_c = term_c if term_c <= NO_LIMIT_C else 0.0
        if term_c < rate:
            rate, reason = term_c, name
    return max(0.0, rate), reason


def _charge_terms(s: Settings, bms: Bms, pcs: Pcs, loops: Loops, rise: float, balancing: bool) -> list[Term]:
    cell = s.cell
    terms = [
        plating(cell, bms),
        (hot(cell, bms.cell_c_max, rise), LimitReason.HOT),
        (bms.charge_max_a / s.rated_ah, LimitReason.BMS),
        (pcs.charge_max_a / s.rated_ah, LimitReason.PCS),
        (min(s.max_charge_rate, s.max_charge_current / s.rated_ah), LimitReason.SITE),
        (NO_LIMIT_C if bms.soc_pct < s.max_soc or s.max_soc >= 100.0 else 0.0, LimitReason.SOC),
    ]
    if s.loops_used:
        watched_c = min(hot(cell, loops.hottest_c, 0.0), loops.share * s.max_charge_rate)
        terms.append((watched_c, LimitReason.LOOP))
    if bms.cell_v_min < cell.v_low_v:
        terms.append((cell.low_rate_c, LimitReason.LOW_CELL))
    if balancing:
        terms.append((cell.balance_rate_c, LimitReason.BALANCE))
    return terms


def _discharge_terms(s: Settings, bms: Bms, pcs: Pcs, loops: Loops) -> list[Term]:
    hottest = max(bms.cell_c_max, loops.hottest_c)  # max keeps its first argument when the second is nan
    warm = (s.max_cell_temperature - hottest) / s.cell.hot_slope_k_per_c
    terms = [
        (bms.discharge_max_a / s.rated_ah, LimitReason.BMS),
        (pcs.discharge_max_a / s.rated_ah, LimitReason.PCS),
        (min(s.max_discharge_rate, s.max_discharge_current / s.rated_ah), LimitReason.SITE),
        (max(0.0, warm), LimitReason.HOT),
        (NO_LIMIT_C if bms.cell_c_min > s.min_cell_temperature else 0.0, LimitReason.COLD),
        (NO_LIMIT_C if bms.soc_min_pct > s.min_soc else 0.0, LimitReason.SOC),
    ]
    if s.loops_used:
        terms.append((loops.share * s.max_discharge_rate, LimitReason.LOOP))
    return terms


def _follow(average: float, value: float, dt_s: float, tau_s: float) -> float:
    return value if average != average else average + (value - average) * min(1.0, dt_s / tau_s)


class _Direction(NamedTuple):
    """What one direction of current needs for its share of the law."""

    terms: list[Term]  # physical limits
    wanted: list[Term]  # command and step; empty when the direction is not in use
    distance_v: float  # of the extreme cell to its ceiling or floor
    loop_c: float
    rate_c: float


def _one_way(d: _Direction, dt_s: float, ki: float, up_c_per_s: float, new: bool) -> tuple[Term, Term, float, float]:
    """(limit in force, available, loop, rate in use) of one direction."""
    physical = smallest(d.terms)
    top = smallest([physical, *d.wanted])[0]
    loop_c = loop(d.loop_c, d.distance_v, dt_s, ki, min(top, d.rate_c + LOOP_HEADROOM_C), new)
    if not d.wanted:
        standing = NO_LIMIT_C if d.distance_v > 0.0 else 0.0
        available = smallest([physical, (standing, LimitReason.VOLTAGE)])
        return available, available, loop_c, 0.0
    at_ceiling = d.distance_v <= CUT_ABOVE_V
    available = smallest([physical, (loop_c if at_ceiling else NO_LIMIT_C, LimitReason.VOLTAGE)])
    limit = smallest([physical, *d.wanted, (loop_c, LimitReason.VOLTAGE)])
    rate_c = min(limit[0], d.rate_c + up_c_per_s * dt_s)
    return (rate_c, LimitReason.RAMP) if rate_c < limit[0] else limit, available, loop_c, rate_c


def limits(
    law: Law,
    s: Settings,
    bms: Bms | None,
    pcs: Pcs | None,
    loops: Loops,
    requested_c: float,
    step_c: float,
    charging: bool,
    discharging: bool,
    balancing: bool,
    dt_s: float,
    charge_caps: Iterable[Term] = (),
    discharge_caps: Iterable[Term] = (),
    asked_by: LimitReason = LimitReason.COMMAND,
) -> tuple[Limits, Law]:
    """One scan of the law. `bms` and `pcs` are None when missing, stale or implausible: then every limit is 0.

    `requested_c` is the commanded rate, `step_c` the rate that step-charge lowers: the same for a charge, the permitted
    one for a power set-point. While neither charging nor discharging, command and ramp do not count. The caps are
    limits from outside the rack; `asked_by` names what requests the rate.
    """
    if bms is None or pcs is None:
        return NOTHING, Law()
    fast = _follow(law.warm_fast_c, bms.cell_c_max, dt_s, TREND_FAST_S)
    slow = _follow(law.warm_slow_c, bms.cell_c_max, dt_s, TREND_SLOW_S)
    rise = (fast - slow) / (TREND_SLOW_S - TREND_FAST_S)
    command = (requested_c, asked_by)
    inward = _Direction(
        [*_charge_terms(s, bms, pcs, loops, rise, balancing), *charge_caps],
        [command, (step(s.cell, step_c, bms), LimitReason.STEP)] if charging else [],
        min(s.cell.v_limit_v - bms.cell_v_max, (s.max_charge_voltage - bms.rack_v) / s.cells_in_series),
        law.loop_charge_c,
        law.charge_c,
    )
    outward = _Direction(
        [*_discharge_terms(s, bms, pcs, loops), *discharge_caps],
        [command] if discharging else [],
        min(bms.cell_v_min - s.cell.v_min_v, (bms.rack_v - s.min_discharge_voltage) / s.cells_in_series),
        law.loop_discharge_c,
        law.discharge_c,
    )
    rules = (dt_s, s.cell.loop_ki_c_per_vs, s.ramp_up_rate, bms.poll != law.poll)
    charge, can_charge, loop_charge_c, charge_c = _one_way(inward, *rules)
    discharge, can_discharge, loop_discharge_c, discharge_c = _one_way(outward, *rules)
    after = Law(loop_charge_c, loop_discharge_c, charge_c, discharge_c, fast, slow, bms.poll)
    return Limits(*charge, *discharge, *can_charge, *can_discharge), after
