"""Debounce and latch: one independent cell a fault, so that each can be proved alone.

A condition that stands for confirm_ms becomes active. STOP and above latch, and stay latched until the cause is gone
*and* it was acknowledged after that; a TRIP also needs the physical reset after the cause was gone; a LOCKOUT needs
the service press (RESET held for 10 s) instead.
"""

from __future__ import annotations

from typing import NamedTuple

from .faults import CONFIRM_MS, LOCKOUT_MASK, SEVERE_MASK, TRIP_MASK


class Latches(NamedTuple):
    """All cells; bits as in faults.py."""

    standing_ms: tuple[tuple[int, float], ...] = ()  # (bit, since) of the conditions that stand, in bit order
    active: int = 0  # confirmed and standing
    latched: int = 0
    acked: int = 0  # latched ones that were acknowledged since their cause is gone
    reset: int = 0  # likewise for the physical reset
    service: int = 0  # likewise for the service press

    @property
    def shown(self) -> int:
        return self.active | self.latched


def step(now: Latches, raw: int, dt_ms: float, ack: bool, reset: bool, service: bool) -> Latches:
    """One scan. `ack`, `reset` and `service` are true only in the scan in which the command or the press arrived."""
    standing, active = _confirm(now, raw, dt_ms)
    latched = now.latched | active & SEVERE_MASK
    gone = latched & ~raw
    acked = (now.acked & gone) | (gone if ack else 0)
    pressed = (now.reset & gone) | (gone if reset else 0)
    serviced = (now.service & gone) | (gone if service else 0)
    cleared = acked & (~TRIP_MASK | pressed) & (~LOCKOUT_MASK | serviced)
    return Latches(standing, active, latched & ~cleared, acked & ~cleared, pressed & ~cleared, serviced & ~cleared)


def _confirm(now: Latches, raw: int, dt_ms: float) -> tuple[tuple[tuple[int, float], ...], int]:
    """How long each condition stands, and which of them that confirms."""
    before, standing, active = dict(now.standing_ms), [], 0
    while raw:
        lowest = raw & -raw
        raw ^= lowest
        bit = lowest.bit_length() - 1
        since_ms, confirm_ms = before.get(bit, 0.0) + dt_ms, CONFIRM_MS[bit]
        standing.append((bit, since_ms))
        if since_ms > confirm_ms or confirm_ms == 0:
            active |= lowest
    return tuple(standing), active
