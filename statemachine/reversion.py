"""The timer of a group of set values: when it runs out, other values take their place."""

from __future__ import annotations

from typing import NamedTuple


class Reversion(NamedTuple):
    """Memory of one group's timer."""

    version: int = -1  # of the group as last seen; each accepted write makes a new one
    left_ms: float = 0.0
    reverted: int = 0  # version whose timer has run out

    def over(self, version: int) -> bool:
        """Whether the values of `version` have been replaced."""
        return self.reverted == version and self.version > 0


def step(r: Reversion, version: int, revert_s: float, dt_ms: float) -> Reversion:
    """One scan: a new version starts the timer anew, 0 s is no timer."""
    if version != r.version:
        return r._replace(version=version, left_ms=revert_s * 1000.0)
    if r.left_ms <= 0.0:
        return r
    left = max(0.0, r.left_ms - dt_ms)
    return r._replace(left_ms=left, reverted=r.reverted if left else version)
