"""Memory, descriptors and identity of each process of a run, and whether memory grows beyond its noise."""

from __future__ import annotations

import contextlib
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
T_95 = 1.96
LEAST_KB = 256.0
"""Growth over the whole run below it is no leak: memory comes in pages, and CPython keeps 2,000 freed tuples of each
length up to 20. 2,000 replacements of a named tuple of 5 fields fill its 160 kB (measured)."""

LEAST_MIN = 5.0  # in less a process is still warming up


class Usage(NamedTuple):
    at_s: float
    rss_kb: float
    descriptors: int


class Slope(NamedTuple):
    kb_per_min: float
    bound: float  # half of the 95 % interval
    over_min: float

    @property
    def grows(self) -> bool:
        """Surely upwards, and by more than pages come and go."""
        surely = self.kb_per_min > self.bound and self.kb_per_min * self.over_min > LEAST_KB
        return surely and self.over_min >= LEAST_MIN


def children(parent: int) -> dict[str, int]:
    """Process id by module name."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end while we look
            if entry.name.isdecimal() and f"PPid:\t{parent}\n" in (entry / "status").read_text():
                words = (entry / "cmdline").read_text().split("\0")
                found[words[words.index("-m") + 1] if "-m" in words else words[0]] = int(entry.name)
    return found


def usage(pid: int, at_s: float) -> Usage:
    """Now. Raises OSError when the process is gone."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Usage(at_s, resident * PAGE_KB, len(os.listdir(f"/proc/{pid}/fd")))


def slope(used: list[Usage]) -> Slope:
    """Least squares; the interval is widened for samples that follow each other (lag-1 correlation)."""
    n = len(used)
    if n < 4:
        return Slope(0.0, math.inf, 0.0)
    at = [u.at_s / 60.0 for u in used]
    mean_t, mean_y = sum(at) / n, sum(u.rss_kb for u in used) / n
    spread = sum((t - mean_t) ** 2 for t in at)
    rise = sum((t - mean_t) * (u.rss_kb - mean_y) for t, u in zip(at, used, strict=True)) / spread
    rest = [u.rss_kb - mean_y - rise * (t - mean_t) for t, u in zip(at, used, strict=True)]
    square = sum(r * r for r in rest)
    lag = sum(a * b for a, b in pairwise(rest)) / square if square else 0.0
    free = max(3.0, n * (1.0 - lag) / (1.0 + lag)) if lag > 0.0 else float(n)
    return Slope(rise, T_95 * math.sqrt(square / spread / max(1.0, free - 2.0)), at[-1] - at[0])


def more_descriptors(used: list[Usage]) -> int:
    """By how many the fewest of the last quarter exceed the most of the first."""
    quarter = max(1, len(used) // 4)
    return max(0, min(u.descriptors for u in used[-quarter:]) - max(u.descriptors for u in used[:quarter]))
