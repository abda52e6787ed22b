"""Which command is allowed in which state. The server refuses by it, the core obeys by it: one function, one answer."""

from __future__ import annotations

from .signals import Mode, Why
from .states import State

_FORBIDDING = {
    State.INIT: Why.STARTING,
    State.FAULT: Why.FAULT_LATCHED,
    State.EMERGENCY_STOP: Why.EMERGENCY_STOP,
    State.LOCKOUT: Why.LOCKOUT,
}


def refusal(mode: int, state: int, permit: int, remote: bool) -> Why:
    """Why `mode` cannot be commanded now; NONE when it can. Mode OFF is always allowed.

    `permit` is the core's answer to "why may the contactors not close" (Outputs.permit), `remote` the key switch.
    """
    if mode == Mode.OFF:
        return Why.NONE
    if not remote and mode != Mode.SERVICE:
        return Why.LOCAL_CONTROL
    if state in _FORBIDDING:
        return _FORBIDDING[State(state)]
    if mode == Mode.SERVICE:
        return Why.NONE if state in (State.ISOLATED, State.SERVICE) else Why.NOT_ISOLATED
    if state == State.SERVICE:  # mode off is no way out of it while an update holds the rack
        return Why.UPDATING if permit == Why.UPDATING else Why.IN_SERVICE
    return Why(permit) if state in (State.ISOLATED, State.STOPPING) else Why.NONE
