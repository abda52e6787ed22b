"""What the configuration says that the rack can do."""

from __future__ import annotations

from .settings import Settings


def nominal_v(settings: Settings) -> float:
    """Rack voltage that ratings are stated at: the middle of the permitted range."""
    return (settings.max_charge_voltage + settings.min_discharge_voltage) / 2


def rated_charge_w(settings: Settings) -> float:
    """Highest configured charge current at the nominal voltage."""
    return min(settings.max_charge_current, settings.max_charge_rate * settings.rated_ah) * nominal_v(settings)


def rated_discharge_w(settings: Settings) -> float:
    """Highest configured discharge current at the nominal voltage: 702.WMax, 1 pu of the grid functions."""
    return min(settings.max_discharge_current, settings.max_discharge_rate * settings.rated_ah) * nominal_v(settings)
