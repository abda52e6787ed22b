"""Grid functions of IEEE 1547-2018: enter service (SunSpec 703), the power limit of 704, frequency droop (711).

Powers are in pu of 702.WMax, + is discharge. What the PCS does not measure (nan) is left to the PCS.
"""

from __future__ import annotations

from math import exp, log, nan
from typing import NamedTuple

from . import reversion
from .charge import Term
from .ratings import rated_charge_w, rated_discharge_w
from .reversion import Reversion
from .settings import Settings
from .signals import Grid, LimitReason, Pcs, Why

CEASE_MS = 1500.0
"""After service is no longer permitted the contactors open, whatever flows; IEEE 1547 4.6.1 asks for 2 s in all."""
SETTLED_PU = 0.001
"""An excursion is over when the frequency is back and the power this near to its set-point."""
LAG_TO_90_PCT = log(10.0)  # time constants until a first-order lag has done 90 %

DEFAULT = Grid(
    service_permitted=True, v_low_pu=0.917, v_high_pu=1.05, hz_low=49.5, hz_high=50.1, delay_s=0.0, ramp_s=0.0,
    limit_version=0, limit_enabled=False, limit_pu=1.0, limit_revert_enabled=False, limit_revert_pu=1.0,
    limit_revert_s=0.0,
    droop_version=0, droop_enabled=False, droop_revert_s=0.0, droop_revert_set=1,
    droop_followed=0,
    db_of_hz=0.036, db_uf_hz=0.036, k_of=0.05, k_uf=0.05, response_s=5.0, p_min_pu=-1.0,
    next_db_of_hz=0.036, next_db_uf_hz=0.036, next_k_of=0.05, next_k_uf=0.05, next_response_s=5.0, next_p_min_pu=-1.0,
)  # fmt: skip
"""IEEE 1547's, on a grid of 50 Hz. Delay, ramp and droop are off: a site switches on what its PCS does not do."""


def default(s: Settings) -> Grid:
    """The functions before the site controller has written any of them."""
    return DEFAULT._replace(
        hz_low=s.nominal_frequency - 0.5,
        hz_high=s.nominal_frequency + 0.1,
        delay_s=s.enter_service_delay,
        ramp_s=s.enter_service_ramp,
    )


class Service(NamedTuple):
    """Memory of entering and leaving service, and of both timers of set values."""

    closed: bool = False  # in service: both mains confirmed in the scan before
    inside: bool = False  # voltage and frequency are where service may be entered
    waited_ms: float = 0.0  # since then, and since service was left
    served_ms: float = 0.0
    ceased_ms: float = 0.0  # since service is not permitted any more
    limit: Reversion = Reversion()
    droop: Reversion = Reversion()


def _inside(g: Grid, s: Settings, pcs: Pcs) -> bool:
    v_pu = pcs.ac_v / s.nominal_voltage
    return not (v_pu < g.v_low_pu or v_pu > g.v_high_pu or pcs.ac_hz < g.hz_low or pcs.ac_hz > g.hz_high)


def watch(m: Service, g: Grid, s: Settings, pcs: Pcs | None, closed: bool, dt_ms: float) -> Service:
    """One scan. `pcs` is None when it is missing or stale, `closed` tells whether the rack is connected."""
    inside = pcs is not None and g.service_permitted and _inside(g, s, pcs)
    left = m.closed and not closed
    return Service(
        closed=closed,
        inside=inside,
        waited_ms=m.waited_ms + dt_ms if inside and not left else 0.0,
        served_ms=m.served_ms + dt_ms if closed else 0.0,
        ceased_ms=0.0 if g.service_permitted else m.ceased_ms + dt_ms,
        limit=reversion.step(m.limit, g.limit_version, g.limit_revert_s, dt_ms),
        droop=reversion.step(m.droop, g.droop_version, g.droop_revert_s, dt_ms),
    )


def refusal(m: Service, g: Grid) -> Why:
    """Why service may not be entered now; NONE when it may."""
    if not g.service_permitted:
        return Why.SERVICE_NOT_PERMITTED
    return Why.NONE if m.inside and m.waited_ms >= g.delay_s * 1000.0 else Why.ENTER_SERVICE


def delay_left_s(m: Service, g: Grid) -> float:
    """703.ESDlyRemTms."""
    return max(0.0, g.delay_s - m.waited_ms / 1000.0)


def caps(m: Service, g: Grid, s: Settings, rack_v: float) -> tuple[list[Term], list[Term]]:
    """What the grid functions allow: terms for charge and for discharge, in C."""
    c_per_w = 1.0 / rack_v / s.rated_ah if rack_v > 0.0 else 0.0
    charge: list[Term] = []
    discharge: list[Term] = []
    if m.served_ms < g.ramp_s * 1000.0:
        share = m.served_ms / 1000.0 / g.ramp_s
        charge.append((share * rated_charge_w(s) * c_per_w, LimitReason.ENTER_SERVICE))
        discharge.append((share * rated_discharge_w(s) * c_per_w, LimitReason.ENTER_SERVICE))
    reverted = m.limit.over(g.limit_version)
    if g.limit_revert_enabled if reverted else g.limit_enabled:
        most_pu = g.limit_revert_pu if reverted else g.limit_pu
        discharge.append((most_pu * rated_discharge_w(s) * c_per_w, LimitReason.WMAX_LIM))
    return charge, discharge


class Droop(NamedTuple):
    """Memory of the frequency droop."""

    set_pu: float = nan  # the site controller's set-point in the scan before; nan: not in grid support
    side: int = 0  # 1 the frequency is above the dead band, -1 below
    before_pu: float = nan  # power at the start of the excursion
    power_pu: float = nan  # what is asked for
    active: bool = False  # in an excursion, or on the way back to the set-point


def droop(
    d: Droop, g: Grid, nominal_hz: float, hz: float, set_pu: float, flowing_pu: float, most_pu: float, dt_s: float
) -> Droop:
    """One scan in grid support. `flowing_pu` is the power of the scan before, `most_pu` the available discharge power.

    The power before the excursion counts while it lasts (6.5.2.7.2); a set-point that is written meanwhile takes its
    place.
    """
    above_hz = hz - (nominal_hz + g.db_of_hz)
    below_hz = nominal_hz - g.db_uf_hz - hz
    side = 1 if above_hz > 0.0 else -1 if below_hz > 0.0 else 0
    if not (g.droop_enabled and (side or d.active)):
        return Droop(set_pu=set_pu, power_pu=set_pu)
    before_pu = set_pu if set_pu != d.set_pu else flowing_pu if side != d.side else d.before_pu
    if side > 0:
        wanted_pu = max(before_pu - above_hz / (nominal_hz * g.k_of), min(g.p_min_pu, before_pu))
    elif side < 0:
        wanted_pu = min(before_pu + below_hz / (nominal_hz * g.k_uf), most_pu)
    else:
        wanted_pu = set_pu
    from_pu = d.power_pu if d.active else flowing_pu
    power_pu = wanted_pu + (from_pu - wanted_pu) * exp(-dt_s * LAG_TO_90_PCT / g.response_s)
    return Droop(set_pu, side, before_pu, power_pu, side != 0 or abs(power_pu - wanted_pu) >= SETTLED_PU)
