"""What contactors and precharge resistor have been through: lifetime counts, and how hot the last while was.

A level is a leaky bucket: each closing adds one, and it leaks the permitted number an hour (precharges: in ten
minutes). So the permitted number may come in a row, and no more than that on average: a resistor does not mind when.
Counts and levels are saved by the historian and come back after a power cycle.
"""

from __future__ import annotations

from typing import NamedTuple

from .settings import Settings

CLOSING_WINDOW_S, PRECHARGE_WINDOW_S = 3600.0, 600.0


class Wear(NamedTuple):
    cycles: int = 0  # closings of the positive main contactor
    opened_under_load: int = 0  # above break_current, whatever the reason
    closed_under_load: int = 0  # an inrush was measured although precharge was verified
    precharges: int = 0  # times the precharge resistor was switched in
    closing_level: float = 0.0
    precharge_level: float = 0.0

    @property
    def under_load(self) -> int:
        return self.opened_under_load + self.closed_under_load


class Happened(NamedTuple):
    """What one scan did to the contactors."""

    closing: bool = False
    precharge: bool = False
    opened_under_load: bool = False
    closed_under_load: bool = False


NOTHING = Happened()


def step(w: Wear, happened: Happened, s: Settings, dt_ms: float) -> Wear:
    """One scan; the same object when nothing changes."""
    if happened == NOTHING and not w.closing_level and not w.precharge_level:
        return w
    closing, precharge, opened, closed = happened
    dt_s = dt_ms / 1000.0
    return Wear(
        w.cycles + closing,
        w.opened_under_load + opened,
        w.closed_under_load + closed,
        w.precharges + precharge,
        max(0.0, w.closing_level - s.max_closings_per_hour * dt_s / CLOSING_WINDOW_S) + closing,
        max(0.0, w.precharge_level - s.max_precharges * dt_s / PRECHARGE_WINDOW_S) + precharge,
    )


def serviced(w: Wear, replaced: bool) -> Wear:
    """After a service press: openings and closings under load start again; all counts when the parts are new."""
    return Wear() if replaced else w._replace(opened_under_load=0, closed_under_load=0)
