"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], timeout_s: float, what: str | Callable[[], str], pause_s: float = 0.002
) -> float:
    """Seconds until `condition` was true; AssertionError naming `what` after `timeout_s`."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < timeout_s, f"{what if isinstance(what, str) else what()}: not within {timeout_s} s"
        time.sleep(pause_s)
    return time.monotonic() - start
