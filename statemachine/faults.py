"""The fault catalogue: one row a fault. Bits go into registers and logs and never change meaning.

A row's condition is the function of the same name (lower case, without ERR_) in detect.py. Severities: a WARNING
tells, a DERATE limits current, a STOP ramps to zero and then opens (category 1), a TRIP opens at once (category 0) and
needs the physical reset as well, a LOCKOUT is left only by a restart with healthy feedback. STOP and above latch.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    WARNING = 1
    DERATE = 2
    STOP = 3
    TRIP = 4
    LOCKOUT = 5


class Fault(NamedTuple):
    bit: int
    name: str
    severity: Severity
    confirm_ms: int  # the condition must stand this long; 0 = the first scan that sees it
    led: int  # pattern of the FAULT LED, see leds.py
    text: str  # what happened; what to do next


_W, _D, _S, _T, _L = Severity.WARNING, Severity.DERATE, Severity.STOP, Severity.TRIP, Severity.LOCKOUT

FAULTS: tuple[Fault, ...] = (
    Fault(0, "ERR_KILL_SWITCH", _T, 0, 0x11,
          "Kill-switch open. Make the site safe, close the kill-switch, press reset, acknowledge."),
    Fault(1, "ERR_TAMPER", _T, 0, 0x12,
          "Enclosure opened. Inspect it, close the lid, press reset, acknowledge."),
    Fault(2, "ERR_GROUND_FAULT", _T, 50, 3,
          "Insulation to earth too low. Do not touch the rack; find the ground fault, press reset, acknowledge."),
    Fault(3, "ERR_DELTA_V", _T, 0, 0x13,
          "BMS and PCS terminal voltage differ by more than max_delta_voltage: a high-resistance connection can "
          "burn. Check the DC joints before reset and acknowledge."),
    Fault(4, "ERR_MAX_V_EXCEEDED", _S, 200, 0x21,
          "A cell or the rack is above its ceiling: the PCS pushed more current than the cells can take. "
          "Let the cells rest, check PCS current control, acknowledge."),
    Fault(5, "ERR_CELL_OVERVOLTAGE", _T, 100, 0x22,
          "A cell is far above its ceiling. Inspect the cell before reset and acknowledge."),
    Fault(6, "ERR_MIN_V_EXCEEDED", _S, 500, 0x23,
          "A cell or the rack is below its floor. Acknowledge, then recharge slowly."),
    Fault(7, "ERR_OVER_TEMPERATURE", _S, 500, 0x24,
          "A cell or thermal loop is above max_cell_temperature. Check cooling, wait until it is cold, acknowledge."),
    Fault(8, "ERR_THERMAL_TRIP", _T, 200, 0x25,
          "A cell or thermal loop is above trip_cell_temperature. Keep away, follow the fire plan; reset only after "
          "inspection."),
    Fault(9, "ERR_COMM_LOST", _S, 0, 0x31,
          "BMS data is stale. Check the cable, the switch and the BMS supply, acknowledge."),
    Fault(10, "ERR_PCS_LOST", _S, 0, 0x32,
          "PCS data is stale. Check the cable, the switch and the PCS supply, acknowledge."),
    Fault(11, "ERR_BMS_ALARM", _S, 0, 0x33,
          "The BMS asks for a stop (level 1 alarm). Read its alarm bits, mend the cause, acknowledge."),
    Fault(12, "ERR_BMS_TRIP", _T, 0, 0x34,
          "The BMS trips by itself (level 2 alarm). Read its alarm bits, mend the cause, press reset, acknowledge."),
    Fault(13, "ERR_PCS_FAULT", _S, 100, 0x35,
          "The PCS reports a fault. Clear it at the PCS, acknowledge."),
    Fault(14, "ERR_INTERLOCK_OPEN", _T, 20, 0x14,
          "A required interlock opened while the contactors were closed. Run ems-tool --verify-interlocks, close it, "
          "press reset, acknowledge."),
    Fault(15, "ERR_CONTACTOR_WELDED", _L, 200, 0x41,
          "A contactor reports closed although its coil is off. Isolate the rack by hand, replace the contactor, "
          "restart the controller."),
    Fault(16, "ERR_CONTACTOR_DROPPED", _T, 30, 0x42,
          "A contactor reports open although its coil is on. Check coil supply and wiring, press reset, acknowledge."),
    Fault(17, "ERR_PRECHARGE", _S, 0, 0x43,
          "Precharge failed three times. Check precharge resistor, contactors and the DC link, acknowledge."),
    Fault(18, "ERR_GUARD", _T, 50, 0x15,
          "The guard dropped safe-enable or is silent. Press reset, acknowledge; if it returns, replace the unit."),
    Fault(19, "ERR_SCAN_OVERRUN", _T, 0, 0x51,
          "Three scans in a row missed their deadline. Press reset, acknowledge; check what else runs on this "
          "machine."),
    Fault(20, "ERR_CONTROLLER_RESTART", _S, 0, 0x52,
          "The controller restarted without an orderly stop. Read its log, acknowledge."),
    Fault(21, "ERR_OVERCURRENT", _T, 1000, 0x26,
          "The rack current is above the limit, or the PCS does not follow the demand. Check PCS current control, "
          "press reset, acknowledge."),
    Fault(22, "ERR_DELTA_OFFSET", _S, 0, 0x16,
          "BMS and PCS voltage differ at zero current by more than max_delta_offset, or could not be compared. "
          "Calibrate the meters, acknowledge."),
    Fault(23, "ERR_INIT_TIMEOUT", _S, 0, 0x53,
          "No complete, plausible BMS and PCS data after the start. Check addresses in site.conf and both devices, "
          "acknowledge."),
    Fault(24, "ERR_OPENED_UNDER_LOAD", _W, 0, 0x44,
          "The current did not fall below break_current in time; the contactors opened under load. Inspect them."),
    Fault(25, "ERR_THERMAL_LOOP", _D, 30, 0x54,
          "A 4-20 mA thermal loop is broken, shorted or stale; no charging until it is mended."),
    Fault(26, "ERR_SITE_HEARTBEAT", _W, 0, 0x36,
          "The site controller's heartbeat stopped. Check it; then send a new command."),
    Fault(27, "ERR_BALANCE_TIMEOUT", _W, 0, 0x27,
          "Balancing ran out of time before the spread fell below cell_balancing_threshold. Check the weak cells."),
    Fault(28, "ERR_CONFIG", _W, 0, 0x55,
          "A configuration file was refused; the one before is in force. Read battery.log, correct it, send SIGHUP."),
    Fault(29, "ERR_BMS_IMPLAUSIBLE", _S, 300, 0x37,
          "Cells, strings and totals of the BMS contradict each other. Check the sense wires, acknowledge."),
    Fault(30, "ERR_CURRENT_WHILE_OPEN", _L, 300, 0x45,
          "Current flows although all contactors report open: feedback cannot be trusted. Isolate by hand, repair, "
          "restart the controller."),
)  # fmt: skip

BY_NAME = {fault.name: fault for fault in FAULTS}


def names(bits: int) -> list[str]:
    """Names of the faults whose bits are set, in bit order."""
    return [fault.name for fault in FAULTS if bits >> fault.bit & 1]


def _mask(*severities: Severity) -> int:
    return sum(1 << fault.bit for fault in FAULTS if fault.severity in severities)


STOP_MASK, TRIP_MASK, LOCKOUT_MASK = _mask(_S), _mask(_T), _mask(_L)
SEVERE_MASK = STOP_MASK | TRIP_MASK | LOCKOUT_MASK

assert [fault.bit for fault in FAULTS] == list(range(len(FAULTS))), "bits are positions: never reorder, only append"
assert len({fault.led for fault in FAULTS}) == len(FAULTS), "every fault has a blink code of its own"
