"""Percentiles of the scan without remembering every scan: a histogram."""

from __future__ import annotations

_BINS = 2000


class Histogram:
    """Of durations up to `longest_us`; `add` is constant time and allocates nothing that stays.

    What is longer falls into the last bin, the maximum is kept apart.
    """

    def __init__(self, longest_us: int) -> None:
        self._bin_us = -(-longest_us // _BINS)
        self._bins = [0] * _BINS
        self._count = 0
        self.max_us = 0

    def add(self, us: int) -> None:
        """Counts one duration, microseconds; negative counts as 0."""
        self._bins[min(_BINS - 1, max(0, us) // self._bin_us)] += 1
        self._count += 1
        if us > self.max_us:
            self.max_us = us

    def percentiles(self, *wanted: float) -> list[int]:
        """Upper bin edges, microseconds, of rising fractions such as 0.5, 0.99; zeros while empty."""
        found: list[int] = []
        seen, at = 0, iter(wanted)
        fraction = next(at, None)
        for index, count in enumerate(self._bins):
            seen += count
            while fraction is not None and self._count and seen >= fraction * self._count:
                found.append(min(self.max_us, (index + 1) * self._bin_us))
                fraction = next(at, None)
            if fraction is None:
                break
        return found + [0] * (len(wanted) - len(found))
