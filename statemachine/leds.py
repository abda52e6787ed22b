"""The front panel: what each LED shows, and when it is lit.

Pattern codes (registers LedRun .. LedKill): 0 off, 1 on, 2 slow (1 Hz), 3 fast (4 Hz), and 0xNM = N blinks, a pause,
M blinks, a long pause. A flashing (fast) red FAULT LED is a ground fault, as the manual says.
"""

from __future__ import annotations

from typing import NamedTuple

from .faults import FAULTS
from .states import State

OFF, ON, SLOW, FAST = 0, 1, 2, 3

NAMES = ("RUN", "CHARGE", "COMM", "FAULT", "KILL")
COLOURS = ("green", "blue", "yellow", "red", "red")


class Leds(NamedTuple):
    run: int
    charge: int


BY_STATE: dict[State, Leds] = {
    State.INIT: Leds(FAST, OFF),
    State.ISOLATED: Leds(SLOW, OFF),
    State.SERVICE: Leds(0x21, OFF),
    State.PRECHARGE: Leds(FAST, OFF),
    State.READY: Leds(ON, OFF),
    State.CHARGE_RAMP: Leds(ON, SLOW),
    State.CHARGE_BULK: Leds(ON, ON),
    State.CHARGE_STEP: Leds(ON, ON),
    State.CHARGE_ABSORB: Leds(ON, FAST),
    State.CHARGE_BALANCE: Leds(ON, 0x31),
    State.CHARGED: Leds(ON, 0x11),
    State.DISCHARGE: Leds(ON, 0x12),
    State.GRID_SUPPORT: Leds(ON, 0x22),
    State.STOPPING: Leds(FAST, OFF),
    State.FAULT: Leds(OFF, OFF),
    State.EMERGENCY_STOP: Leds(OFF, OFF),
    State.LOCKOUT: Leds(OFF, OFF),
}
assert set(BY_STATE) == set(State)

_BY_SEVERITY = sorted(FAULTS, key=lambda fault: (-fault.severity, fault.bit))


def fault_code(bits: int) -> int:
    """Pattern of the FAULT LED: the worst fault's, the lowest bit among equals."""
    return next((fault.led for fault in _BY_SEVERITY if bits >> fault.bit & 1), OFF)


def codes(
    state: State, faults: int, bms_ok: bool, pcs_ok: bool, chain_ok: bool, chain_latched: bool
) -> tuple[int, ...]:
    """The five pattern codes. `chain_ok`: kill-switch and tamper closed; `chain_latched`: a reset is still due."""
    comm = ON if bms_ok and pcs_ok else SLOW if pcs_ok else FAST if bms_ok else 0x22
    kill = ON if not chain_ok else SLOW if chain_latched else OFF
    return (*BY_STATE[state], comm, fault_code(faults), kill)


_BLINK_MS, _PAUSE_MS, _REST_MS = 250, 750, 2000


def level(code: int, now_ms: int) -> bool:
    """Whether an LED with this pattern is lit `now_ms` after the panel's common start."""
    if code <= ON:
        return code == ON
    if code == SLOW:
        return now_ms % 1000 < 500
    if code == FAST:
        return now_ms % 250 < 125
    first, second = code >> 4, code & 15
    at = now_ms % (2 * _BLINK_MS * (first + second) + _PAUSE_MS + _REST_MS)
    if at < 2 * _BLINK_MS * first:
        return at % (2 * _BLINK_MS) < _BLINK_MS
    at -= 2 * _BLINK_MS * first + _PAUSE_MS
    return 0 <= at < 2 * _BLINK_MS * second and at % (2 * _BLINK_MS) < _BLINK_MS
