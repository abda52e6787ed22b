"""The seventeen states. Numbers go into a register and never change meaning."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    INIT = 0
    ISOLATED = 1
    SERVICE = 2
    PRECHARGE = 3
    READY = 4
    CHARGE_RAMP = 5
    CHARGE_BULK = 6
    CHARGE_STEP = 7
    CHARGE_ABSORB = 8
    CHARGE_BALANCE = 9
    CHARGED = 10
    DISCHARGE = 11
    GRID_SUPPORT = 12
    STOPPING = 13
    FAULT = 14
    EMERGENCY_STOP = 15
    LOCKOUT = 16

    __hash__ = int.__hash__  # as they compare; an Enum's own hashes its name, in Python, at each look into a set


CHARGING = frozenset(
    {State.CHARGE_RAMP, State.CHARGE_BULK, State.CHARGE_STEP, State.CHARGE_ABSORB, State.CHARGE_BALANCE}
)
OPEN = frozenset({State.INIT, State.ISOLATED, State.SERVICE, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT})
CLOSED = frozenset(State) - OPEN - {State.PRECHARGE}
"""States in which both mains are (to be) closed; STOPPING opens them at its end."""
