"""Debounce and latch: one independent cell a fault, so that each can be proved alone.

A condition that stands for confirm_ms becomes active. STOP and above latch, and stay latched until the cause is gone
*and* it was acknowledged after that; a TRIP also needs the physical reset after the cause was gone; a LOCKOUT is not
cleared at all.
"""

from __future__ import annotations

from typing import NamedTuple

from .faults import FAULTS, LOCKOUT_MASK, SEVERE_MASK, TRIP_MASK

_CONFIRM_MS = tuple(fault.confirm_ms for fault in FAULTS)


class Latches(NamedTuple):
    """All cells; bits as in faults.py."""

    standing_ms: tuple[float, ...] = (0.0,) * len(FAULTS)
    active: int = 0  # confirmed and standing
    latched: int = 0
    acked: int = 0  # latched ones that were acknowledged since their cause is gone
    reset: int = 0  # likewise for the physical reset

    @property
    def shown(self) -> int:
        return self.active | self.latched


def step(now: Latches, raw: int, dt_ms: float, ack: bool, reset: bool) -> Latches:
    """One scan. `ack` and `reset` are true only in the scan in which the command or the press arrived."""
    standing, active = now.standing_ms, 0
    if raw or now.active or any(standing):
        standing = tuple(ms + dt_ms if raw >> index & 1 else 0.0 for index, ms in enumerate(now.standing_ms))
        for index, confirm_ms in enumerate(_CONFIRM_MS):
            if raw >> index & 1 and (standing[index] > confirm_ms or confirm_ms == 0 or now.active >> index & 1):
                active |= 1 << index
    latched = now.latched | active & SEVERE_MASK
    gone = latched & ~raw
    acked = (now.acked & gone) | (gone if ack else 0)
    pressed = (now.reset & gone) | (gone if reset else 0)
    cleared = acked & ~LOCKOUT_MASK & (~TRIP_MASK | pressed)
    return Latches(standing, active, latched & ~cleared, acked & ~cleared, pressed & ~cleared)
