"""What AC noise on DC signals looks like in values that are sampled once a scan, and what it cannot look like.

A signal that is renewed r times a second shows noise below r/2 at its own frequency. Faster noise is folded to a lower
one, and noise at a multiple of r to a constant: it cannot be told from a slow change, or not be seen at all.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MAINS_HZ = (50.0, 60.0, 100.0, 120.0)


class Ripple(NamedTuple):
    """What is left of a signal without its mean and slope."""

    mean: float
    rms: float
    peak_to_peak: float
    rate_hz: float  # new values a second, at most one a sample; 0 when it never changed
    strongest_hz: float  # nan when there is no ripple
    strongest: float  # amplitude at that frequency


def _straightened(samples: Sequence[float]) -> list[float]:
    count = len(samples)
    middle, mean = (count - 1) / 2, sum(samples) / count
    slope = sum((n - middle) * (x - mean) for n, x in enumerate(samples)) / sum((n - middle) ** 2 for n in range(count))
    return [x - mean - slope * (n - middle) for n, x in enumerate(samples)]


def _amplitudes(samples: Sequence[float], bins: int) -> list[float]:
    count = len(samples)
    turns = [cmath.exp(-2j * cmath.pi * n / count) for n in range(count)]
    return [
        2 / count * abs(sum(x * turns[k * n % count] for n, x in enumerate(samples)))
        for k in range(1, bins + 1)
    ]  # fmt: skip


def ripple(samples: Sequence[float], period_s: float) -> Ripple:
    """Of at least 8 evenly spaced samples."""
    span_s = len(samples) * period_s
    rate_hz = sum(a != b for a, b in pairwise(samples)) / span_s
    mean = sum(samples) / len(samples)
    rest = _straightened(samples)
    rms = math.sqrt(sum(x * x for x in rest) / len(rest))
    bins = int(rate_hz / 2 * span_s)
    if not bins:
        return Ripple(mean, rms, max(rest) - min(rest), rate_hz, math.nan, 0.0)
    amplitudes = _amplitudes(rest, bins)
    strongest = max(amplitudes)
    hz = (amplitudes.index(strongest) + 1) / span_s
    return Ripple(mean, rms, max(rest) - min(rest), rate_hz, hz, strongest)


def seen_at(hz: float, rate_hz: float) -> float:
    """Where noise of `hz` shows in a signal with `rate_hz` new values a second; 0 = as a constant."""
    return abs(hz - rate_hz * round(hz / rate_hz))
