"""The front panel: what each LED shows, and when it is lit.

Pattern codes (registers LedRun .. LedKill): 0 off, 1 on, 2 slow (1 Hz), 3 fast (4 Hz), and 0xNM = N blinks, a pause,
M blinks, a long pause; N and M are 1 to 9. A flashing (fast) red FAULT LED is a ground fault, as the manual says.
"""

from __future__ import annotations

from typing import NamedTuple

from .faults import FAULTS
from .states import State

OFF, ON, SLOW, FAST = 0, 1, 2, 3
PATTERNS = {OFF: "off", ON: "on", SLOW: "slow", FAST: "fast"}

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

UPDATING, ROLLED_BACK = 0x22, 0x23
"""RUN while an update holds the rack, and after it was taken back: in ISOLATED and SERVICE, where nothing is hidden."""

COMM: dict[tuple[bool, bool], int] = {
    (True, True): ON,
    (False, True): SLOW,
    (True, False): FAST,
    (False, False): 0x22,
}
"""(BMS data good, PCS data good) -> pattern."""

KILL: dict[tuple[bool, bool], int] = {
    (True, False): OFF,
    (True, True): SLOW,
    (False, False): ON,
    (False, True): ON,
}
"""(kill-switch and tamper closed, a reset is due) -> pattern: an open chain goes before a reset that is due."""


class Meaning(NamedTuple):
    short: str  # for the front-panel label
    text: str  # what is so; what to do next


MEANINGS: dict[str, dict[int, Meaning]] = {
    "RUN": {
        OFF: Meaning("faulted: see FAULT", "Contactors open after a fault. Read FAULT and KILL; with every LED dark "
                     "check the supply of the controller."),
        ON: Meaning("contactors closed", "Both main contactors are closed: the DC link is live."),
        SLOW: Meaning("isolated", "Contactors open and verified. Waits for a command."),
        FAST: Meaning("starting or stopping", "Contactors are about to close or to open. Wait."),
        0x21: Meaning("service", "Maintenance: nothing can close. Command mode off to leave."),
        UPDATING: Meaning("update runs", "It is installed or checked. Keep the supply on."),
        ROLLED_BACK: Meaning("update failed", "The version before runs again. Read `UpdResult`."),
    },
    "CHARGE": {
        OFF: Meaning("no current", "No charge, discharge or grid support."),
        ON: Meaning("charging", "At the limit; `LimReason` names it."),
        SLOW: Meaning("current rises", "The ramp at the start of a charge."),
        FAST: Meaning("constant voltage", "The highest cell is held at its ceiling; the current falls."),
        0x11: Meaning("charged", "Target reached. Waits for the next command."),
        0x12: Meaning("discharging", "Discharge commanded."),
        0x22: Meaning("grid support", "Power set-point of the site controller and droop."),
        0x31: Meaning("balancing", "Ends below `cell_balancing_threshold` or after `balance_time_limit`."),
    },
    "COMM": {
        ON: Meaning("both links good", "BMS and PCS data is fresh."),
        SLOW: Meaning("no BMS", "No fresh BMS data. Check its cable, the switch, its supply and `bms_host`."),
        FAST: Meaning("no PCS", "No fresh PCS data. Check its cable, the switch, its supply and `pcs_host`."),
        0x22: Meaning("no BMS, no PCS", "Neither answers. Check the switch and the network first."),
    },
    "FAULT": {
        OFF: Meaning("no fault", "Nothing is active or latched."),
        FAST: Meaning("GROUND FAULT", "Insulation to earth too low. Do not touch the rack."),
    },
    "KILL": {
        OFF: Meaning("chain closed", "Kill-switch and tamper contact are closed, no reset is due."),
        ON: Meaning("chain open", "Kill-switch pressed, enclosure open or no 24 V: coils have no supply. Make "
                    "safe, mend it."),
        SLOW: Meaning("press reset", "Closed again, but a trip is latched: press reset, then acknowledge."),
    },
}  # fmt: skip
"""LED -> pattern -> meaning. FAULT's N-M codes are those of the fault catalogue."""
assert tuple(MEANINGS) == NAMES
assert set(MEANINGS["RUN"]) == {show.run for show in BY_STATE.values()} | {UPDATING, ROLLED_BACK}
assert set(MEANINGS["CHARGE"]) == {show.charge for show in BY_STATE.values()}
assert set(MEANINGS["COMM"]) == set(COMM.values())
assert set(MEANINGS["KILL"]) == set(KILL.values())
assert set(MEANINGS["FAULT"]) == {OFF} | {fault.led for fault in FAULTS if fault.led <= FAST}

PRIORITY = sorted(
    FAULTS, key=lambda fault: (fault.name != "ERR_SUPPLY_24V", fault.led != FAST, -fault.severity, fault.bit)
)
"""Which of several faults the FAULT LED shows: the first of this list. A lost 24 V supply explains all that comes with
it; a ground fault is never hidden by the emergency stop that it calls for; then the worst, the lowest bit among equals.
"""


def fault_code(bits: int) -> int:
    """Pattern of the FAULT LED."""
    return next((fault.led for fault in PRIORITY if bits >> fault.bit & 1), OFF)


def codes(
    state: State, faults: int, bms_ok: bool, pcs_ok: bool, chain_ok: bool, chain_latched: bool, update: int = OFF
) -> tuple[int, ...]:
    """The five pattern codes. `chain_ok`: kill-switch and tamper closed; `chain_latched`: a reset is still due.

    `update` is UPDATING, ROLLED_BACK or OFF.
    """
    run, charge = BY_STATE[state]
    if update and state in (State.ISOLATED, State.SERVICE):
        run = update
    return run, charge, COMM[bms_ok, pcs_ok], fault_code(faults), KILL[chain_ok, chain_latched]


def pattern(code: int) -> str:
    """A pattern code in words: off, on, slow, fast or N-M."""
    return PATTERNS.get(code, f"{code >> 4}-{code & 15}")


BLINK_MS, PAUSE_MS, REST_MS = 250, 750, 2000  # a blink's light and dark; more dark between N and M, and after M


def level(code: int, now_ms: int) -> bool:
    """Whether an LED with this pattern is lit `now_ms` after the panel's common start."""
    if code <= ON:
        return code == ON
    if code == SLOW:
        return now_ms % 1000 < 500
    if code == FAST:
        return now_ms % 250 < 125
    first, second = code >> 4, code & 15
    at = now_ms % (2 * BLINK_MS * (first + second) + PAUSE_MS + REST_MS)
    if at < 2 * BLINK_MS * first:
        return at % (2 * BLINK_MS) < BLINK_MS
    at -= 2 * BLINK_MS * first + PAUSE_MS
    return 0 <= at < 2 * BLINK_MS * second and at % (2 * BLINK_MS) < BLINK_MS
