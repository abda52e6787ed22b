"""Numbers of registers and events in the words of the people who read them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from drivers.modbus.point import UNIMPLEMENTED
from statemachine.faults import FAULTS
from statemachine.signals import InterlockBit, LimitReason, Why
from statemachine.states import State

from .update_codes import TEXT, UpdateResult

WHY: dict[Why, str] = {
    Why.NONE: "accepted",
    Why.SEQ_NOT_NEW: "CmdSeq was used before the last trip or restart; write a new number",
    Why.FAULT_LATCHED: "a fault is latched; remove its cause and acknowledge",
    Why.EMERGENCY_STOP: "emergency stop; remove its cause, press reset, acknowledge",
    Why.LOCKOUT: "locked out; a service visit is needed",
    Why.IN_SERVICE: "in service; command mode off first",
    Why.NOT_ISOLATED: "service is entered from ISOLATED only; command mode off first",
    Why.NO_DATA: "BMS or PCS data is missing, stale or implausible",
    Why.INTERLOCK_OPEN: "an interlock is open; run ems-tool --verify-interlocks",
    Why.GUARD_NOT_ARMED: "the guard is not armed; press reset",
    Why.NO_CONFIGURATION: "no valid configuration yet; read battery.log",
    Why.STARTING: "still starting; try again",
    Why.OUT_OF_RANGE: "a value is out of its range",
    Why.READ_ONLY: "the register is read-only",
    Why.HALF_POINT: "half of a 32-bit point; write both registers at once",
    Why.UNDEFINED_VALUE: "a value that means nothing",
    Why.CAUSE_ACTIVE: "the cause of the fault is still there",
    Why.HEARTBEAT_LOST: "the site controller's heartbeat is lost; let it beat again, or command mode off first",
    Why.NOT_IN_AUTHORITY: "another site controller commands; wait until its heartbeat ended (mode off is always taken)",
    Why.TOO_MANY_WRITES: "too many writes a second; write what changes, once",
    Why.NO_SUCH_REGISTER: "no such register",
    Why.BMS_ALARM: "the BMS has a stop or trip alarm; read its alarm bits",
    Why.PCS_FAULT: "the PCS reports a fault; clear it at the PCS first",
    Why.ENTER_SERVICE: "grid voltage or frequency is outside the enter-service range, or its delay runs (ESDlyRemTms)",
    Why.SERVICE_NOT_PERMITTED: "the grid does not permit service; write 703.ES = 1, then command again",
    Why.LOCAL_CONTROL: "the key switch is at LOCAL; turn it to REMOTE and write a new CmdSeq",
    Why.STALE_EPOCH: "Epoch and CmdSeq are not above the highest accepted; another master may have taken over",
    Why.EPOCH_REQUIRED: "redundant masters command: write Epoch, CmdSeq and ValidMs together; Epoch 0 only in SERVICE",
    Why.VALIDITY_OVER: "no frame came within ValidMs and 3 s; write the next one",
    Why.EPOCH_NOT_SAVED: "the disk does not take the new Epoch; look after the state directory",
    Why.INCOMPLETE_FRAME: "Epoch, CmdSeq and ValidMs belong into the same write",
    Why.UPDATING: "an update is being installed or checked; wait until UpdState is IDLE, then write a new CmdSeq",
    Why.NOT_COMMISSIONED: "not commissioned, or the configuration has changed since; run ems-tool --commission",
    Why.NOT_IN_SERVICE: "commissioning is recorded in SERVICE only; command mode service first",
    Why.CHECKS_MISSING: "checks are missing (CommMissing); move those inputs to and fro, leave them as in operation",
    Why.RECORD_NOT_SAVED: "the disk does not take the commissioning record; look after the state directory",
}
assert set(WHY) == set(Why)

EXCEPTIONS: dict[int, tuple[str, frozenset[Why]]] = {
    1: ("a function that is not served, or that the role of the certificate may not use", frozenset()),
    2: ("a register that cannot be written, or is not there", frozenset({
        Why.NO_SUCH_REGISTER, Why.READ_ONLY, Why.HALF_POINT,
    })),
    3: ("a value or a length that is not allowed", frozenset({
        Why.OUT_OF_RANGE, Why.UNDEFINED_VALUE, Why.INCOMPLETE_FRAME,
    })),
    6: ("busy: ask again, but slower", frozenset({Why.TOO_MANY_WRITES})),
    11: ("a unit that is not served", frozenset()),
}  # fmt: skip
"""Modbus exception -> what it says, and the reasons that come with it; every other reason comes with 04."""


def exception(why: Why) -> int:
    """The Modbus exception of a write that is refused for this reason; 0 for none."""
    return 0 if why is Why.NONE else next((code for code, (_, reasons) in EXCEPTIONS.items() if why in reasons), 4)


LIMIT: dict[LimitReason, str] = {
    LimitReason.NONE: "nothing",
    LimitReason.COMMAND: "the command",
    LimitReason.BMS: "the BMS",
    LimitReason.PCS: "the PCS",
    LimitReason.SITE: "limits.conf",
    LimitReason.STEP: "step-charge above 70 % SoC",
    LimitReason.PLATING: "the plating ceiling",
    LimitReason.COLD: "the coldest cell",
    LimitReason.HEALTH: "the state of health",
    LimitReason.HOT: "the hottest cell",
    LimitReason.VOLTAGE: "the cell voltage",
    LimitReason.LOW_CELL: "a deeply discharged cell",
    LimitReason.BALANCE: "balancing",
    LimitReason.RAMP: "the ramp",
    LimitReason.REVERSION: "the set-point's timer",
    LimitReason.LOOP: "a thermal loop",
    LimitReason.SOC: "the SoC window",
    LimitReason.NO_DATA: "missing data",
    LimitReason.STATE: "open contactors",
    LimitReason.ENTER_SERVICE: "the ramp after entering service",
    LimitReason.WMAX_LIM: "the power limit of the site (WMaxLimPct)",
    LimitReason.DROOP: "the frequency droop",
}
assert set(LIMIT) == set(LimitReason)


INPUT: dict[InterlockBit, tuple[str, str, str]] = {
    **{
        InterlockBit(number - 1): (f"interlock {number}" + (" (24 V)" if number == 4 else ""), "open", "closed")
        for number in range(1, 9)
    },
    InterlockBit.KILL_OK: ("kill-switch", "open", "closed"),
    InterlockBit.TAMPER_OK: ("tamper", "open", "closed"),
    InterlockBit.INSULATION_OK: ("insulation", "fault", "good"),
    InterlockBit.RESET_PRESSED: ("reset", "released", "pressed"),
    InterlockBit.KEY_LOCAL: ("key switch", "remote", "local"),
    InterlockBit.FEEDBACK_NEG: ("contactor negative", "open", "closed"),
    InterlockBit.FEEDBACK_POS: ("contactor positive", "open", "closed"),
    InterlockBit.FEEDBACK_PRE: ("contactor precharge", "open", "closed"),
    InterlockBit.GUARD_ARMED: ("guard", "not armed", "armed"),
}
"""Bit of Interlocks -> what it is, what 0 and 1 are."""
assert set(INPUT) == set(InterlockBit)


def name_of(kind: type[IntEnum], number: int) -> str:
    """The name of a number, or the number itself when this version does not know it."""
    return kind(number).name if number in kind._value2member_map_ else str(number)


def update(number: int) -> str:
    """`DAMAGED: the content is not what was signed; copy it again`."""
    known = number in TEXT
    return f"{UpdateResult(number).name}: {TEXT[UpdateResult(number)]}" if known else str(number)


def state(number: int) -> str:
    return name_of(State, number)


def why(number: int) -> str:
    return WHY[Why(number)] if number in Why._value2member_map_ else f"reason {number}"


def limit(number: int) -> str:
    return LIMIT[LimitReason(number)] if number in LimitReason._value2member_map_ else f"limit {number}"


FAULT_BITS, FAULT_ACTIVE = ("FaultBits", "FaultBits2"), ("FaultActive", "FaultActive2")


def faults_in(values: Mapping[str, float], registers: tuple[str, str] = FAULT_BITS) -> int:
    """Fault bits of two registers as one number; 0 where the appliance has none."""
    low, high = (0 if values[n] == UNIMPLEMENTED["bitfield32"] else int(values[n]) for n in registers)
    return low | high << 32


def fault(bit: int) -> str:
    """`ERR_GROUND_FAULT: what happened; what to do next`."""
    row = next((row for row in FAULTS if row.bit == bit), None)
    return f"{row.name}: {row.text}" if row else f"fault bit {bit}"


def contactors(bits: int) -> str:
    """Bits neg (lowest), pos, pre."""
    parts = (
        f"{name} {'closed' if bits >> n & 1 else 'open'}"
        for n, name in enumerate(("negative", "positive", "precharge"))
    )
    return ", ".join(parts)
