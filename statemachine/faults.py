"""The fault catalogue: one row a fault. Bits go into registers and logs and never change meaning.

A row's condition is the function of the same name (lower case, without ERR_) in detect.py. Severities: a WARNING
tells, a DERATE limits current, a STOP ramps to zero and then opens (category 1), a TRIP opens at once (category 0) and
needs the physical reset as well, a LOCKOUT needs a service visit. STOP and above latch; TRIP and LOCKOUT are saved and
latch again after a power cycle. Bit 31 is not used: a bit field of SunSpec has 31.
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


CLEARS: dict[Severity, str] = {
    Severity.WARNING: "by itself when the cause is gone",
    Severity.DERATE: "by itself when the cause is gone",
    Severity.STOP: "cause gone, then acknowledge",
    Severity.TRIP: "cause gone, then RESET and acknowledge",
    Severity.LOCKOUT: "cause gone, then RESET held for 10 s and acknowledge",
}
REACTS: dict[Severity, str] = {
    Severity.WARNING: "shown and logged",
    Severity.DERATE: "current is limited",
    Severity.STOP: "ramp to zero, then open (category 1), FAULT",
    Severity.TRIP: "open at once (category 0), EMERGENCY_STOP",
    Severity.LOCKOUT: "ramp to zero, open, LOCKOUT",
}
SOURCES = (
    "chain", "board", "loops", "contactors", "bms", "pcs", "guard", "controller", "site", "storage",
)  # fmt: skip


class Fault(NamedTuple):
    bit: int
    name: str
    source: str  # one of SOURCES: where to look first
    severity: Severity
    confirm_ms: int  # the condition must stand this long; 0 = the first scan that sees it
    led: int  # pattern of the FAULT LED, see leds.py
    text: str  # what happened; what to do next

    @property
    def clears(self) -> str:
        """What it takes until the fault is gone."""
        return CLEARS[self.severity]


_W, _D, _S, _T, _L = Severity.WARNING, Severity.DERATE, Severity.STOP, Severity.TRIP, Severity.LOCKOUT

FAULTS: tuple[Fault, ...] = (
    Fault(0, "ERR_KILL_SWITCH", "chain", _T, 0, 0x11,
          "Kill-switch open. Make the site safe, close the kill-switch, press reset, acknowledge."),
    Fault(1, "ERR_TAMPER", "chain", _T, 0, 0x12,
          "Enclosure opened. Inspect it, close the lid, press reset, acknowledge."),
    Fault(2, "ERR_GROUND_FAULT", "bms", _T, 50, 3,
          "Insulation to earth too low. Do not touch the rack; find the ground fault, press reset, acknowledge."),
    Fault(3, "ERR_DELTA_V", "pcs", _T, 0, 0x13,
          "BMS and PCS terminal voltage differ by more than max_delta_voltage: a high-resistance connection can "
          "burn. Check the DC joints before reset and acknowledge."),
    Fault(4, "ERR_MAX_V_EXCEEDED", "bms", _S, 200, 0x21,
          "A cell or the rack is above its ceiling: the PCS pushed more current than the cells can take. "
          "Let the cells rest, check PCS current control, acknowledge."),
    Fault(5, "ERR_CELL_OVERVOLTAGE", "bms", _T, 100, 0x22,
          "A cell is far above its ceiling. Inspect the cell before reset and acknowledge."),
    Fault(6, "ERR_MIN_V_EXCEEDED", "bms", _S, 500, 0x23,
          "A cell or the rack is below its floor. Acknowledge, then recharge slowly."),
    Fault(7, "ERR_OVER_TEMPERATURE", "bms", _S, 500, 0x24,
          "A cell or thermal loop is above max_cell_temperature. Check cooling, wait until it is cold, acknowledge."),
    Fault(8, "ERR_THERMAL_TRIP", "bms", _T, 200, 0x25,
          "A cell or thermal loop is above trip_cell_temperature. Keep away, follow the fire plan; reset only after "
          "inspection."),
    Fault(9, "ERR_COMM_LOST", "bms", _S, 0, 0x31,
          "BMS data is stale. Check the cable, the switch and the BMS supply, acknowledge."),
    Fault(10, "ERR_PCS_LOST", "pcs", _S, 0, 0x32,
          "PCS data is stale. Check the cable, the switch and the PCS supply, acknowledge."),
    Fault(11, "ERR_BMS_ALARM", "bms", _S, 0, 0x33,
          "The BMS asks for a stop (level 1 alarm). Read its alarm bits, mend the cause, acknowledge."),
    Fault(12, "ERR_BMS_TRIP", "bms", _T, 0, 0x34,
          "The BMS trips by itself (level 2 alarm). Read its alarm bits, mend the cause, press reset, acknowledge."),
    Fault(13, "ERR_PCS_FAULT", "pcs", _S, 100, 0x35,
          "The PCS reports a fault. Clear it at the PCS, acknowledge."),
    Fault(14, "ERR_INTERLOCK_OPEN", "chain", _T, 20, 0x14,
          "A required interlock opened while the contactors were closed. Run ems-tool --verify-interlocks, close it, "
          "press reset, acknowledge."),
    Fault(15, "ERR_CONTACTOR_WELDED", "contactors", _L, 200, 0x41,
          "A contactor reports closed although its coil is off. Isolate the rack by hand, replace the contactor, hold "
          "RESET for 10 s, acknowledge."),
    Fault(16, "ERR_CONTACTOR_DROPPED", "contactors", _T, 30, 0x42,
          "A contactor reports open although its coil is on. Check coil supply and wiring, press reset, acknowledge."),
    Fault(17, "ERR_PRECHARGE", "contactors", _S, 0, 0x43,
          "The DC link did not reach the rack voltage in three tries. Check precharge resistor and DC link, "
          "acknowledge."),
    Fault(18, "ERR_GUARD", "guard", _T, 50, 0x15,
          "The guard dropped safe-enable or is silent. Press reset, acknowledge; if it returns, replace the unit."),
    Fault(19, "ERR_SCAN_OVERRUN", "controller", _T, 0, 0x51,
          "Three scans in a row missed their deadline. Press reset, acknowledge; check what else runs on this "
          "machine."),
    Fault(20, "ERR_CONTROLLER_RESTART", "controller", _S, 0, 0x52,
          "The controller restarted without an orderly stop. Read its log, acknowledge."),
    Fault(21, "ERR_OVERCURRENT", "bms", _T, 1000, 0x26,
          "The rack current is above the limit, or the PCS does not follow the demand. Check PCS current control, "
          "press reset, acknowledge."),
    Fault(22, "ERR_DELTA_OFFSET", "pcs", _S, 0, 0x16,
          "BMS and PCS voltage differ at zero current by more than max_delta_offset, or could not be compared. "
          "Calibrate the meters, acknowledge."),
    Fault(23, "ERR_INIT_TIMEOUT", "controller", _S, 0, 0x53,
          "No complete, plausible BMS and PCS data after the start. Check addresses in site.conf and both devices, "
          "acknowledge."),
    Fault(24, "ERR_OPENED_UNDER_LOAD", "contactors", _W, 0, 0x44,
          "The current did not fall below break_current in time; the contactors opened under load. Inspect them."),
    Fault(25, "ERR_THERMAL_LOOP", "loops", _D, 30, 0x54,
          "A 4-20 mA thermal loop is outside 3.6 to 21 mA (NAMUR NE43): broken or shorted. Half the "
          "rate while another loop watches its zone, else none."),
    Fault(26, "ERR_SITE_HEARTBEAT", "site", _W, 0, 0x36,
          "The site controller's heartbeat stopped. Check it; then send a new command."),
    Fault(27, "ERR_BALANCE_TIMEOUT", "bms", _W, 0, 0x27,
          "Balancing ran out of time before the spread fell below cell_balancing_threshold. Check the weak cells."),
    Fault(28, "ERR_CONFIG", "site", _W, 0, 0x55,
          "A configuration file was refused; the one before is in force. Read battery.log, correct it, send SIGHUP."),
    Fault(29, "ERR_BMS_IMPLAUSIBLE", "bms", _S, 300, 0x37,
          "Cells, strings and totals of the BMS contradict each other. Check the sense wires, acknowledge."),
    Fault(30, "ERR_CURRENT_WHILE_OPEN", "contactors", _L, 300, 0x45,
          "Current flows although all contactors report open: feedback cannot be trusted. Isolate by hand, repair, "
          "hold RESET for 10 s, acknowledge."),
    Fault(32, "ERR_THERMAL_ZONE", "loops", _S, 300, 0x56,
          "Two thermal loops of one zone have failed: its temperature is not known. Mend the loops, acknowledge."),
    Fault(33, "ERR_LOOP_DISAGREE", "loops", _W, 5000, 0x57,
          "Two thermal loops of one zone differ by more than 10 K; the hotter one counts. Check both transmitters."),
    Fault(34, "ERR_LOOP_STUCK", "loops", _D, 0, 0x58,
          "A thermal loop does not move although the others do. It counts as failed: half the rate or none. Mend it."),
    Fault(35, "ERR_LOOP_RATE", "loops", _D, 0, 0x59,
          "A thermal loop moved faster than loop_max_rate: no thermal mass does that. It counts as failed. "
          "Check its wiring."),
    Fault(36, "ERR_SAMPLER", "loops", _S, 300, 0x61,
          "No fresh values of the thermal loops: the ADC or its sampler is silent. Check the bus, acknowledge."),
    Fault(37, "ERR_INTERLOCK_CHATTER", "chain", _S, 0, 0x17,
          "An interlock changed more than 20 times in 10 s. Look for a loose terminal, acknowledge."),
    Fault(38, "ERR_OUTPUT_READBACK", "board", _T, 1000, 0x62,
          "A coil output reads back other than it was written. Replace the board before reset and acknowledge."),
    Fault(39, "ERR_SUPPLY_24V", "board", _T, 50, 0x63,
          "Kill-switch, tamper, insulation relay and every interlock went low together: the 24 V supply failed. "
          "Check it, press reset, acknowledge."),
    Fault(40, "ERR_CLOSINGS_PER_HOUR", "contactors", _S, 0, 0x46,
          "The contactors closed max_closings_per_hour times. Find out who commands so often, wait, acknowledge."),
    Fault(41, "ERR_PRECHARGE_HOT", "contactors", _S, 0, 0x47,
          "max_precharges in ten minutes: the resistor must cool. Find out why precharge repeats, wait, acknowledge."),
    Fault(42, "ERR_CLOSED_UNDER_LOAD", "contactors", _W, 0, 0x48,
          "Current flowed right after closing: the precharge was not what it seemed. Inspect contactors and PCS."),
    Fault(43, "ERR_CONTACTOR_ABUSED", "contactors", _L, 0, 0x49,
          "The contactors switched load max_under_load times. Inspect or replace them, hold RESET for 10 s, "
          "acknowledge."),
    Fault(44, "ERR_CONTACTOR_WORN", "contactors", _W, 0, 0x64,
          "The contactors have done contactor_life operations. Plan their replacement; then hold RESET for 10 s in "
          "SERVICE."),
    Fault(45, "ERR_CONTACTOR_STUCK", "contactors", _S, 0, 0x65,
          "A contactor did not follow its coil in three tries. Check coil supply, wiring and auxiliary contact, "
          "acknowledge."),
    Fault(46, "ERR_STOP_TIMEOUT", "contactors", _S, 0, 0x66,
          "A stop ended by time: neither rest nor open feedback came. Check feedback wiring, acknowledge."),
    Fault(47, "ERR_BMS_IDENTITY", "bms", _S, 1000, 0x38,
          "Another device than the profile's answers at the BMS address. Check bms_host and bms_profile, "
          "acknowledge."),
    Fault(48, "ERR_PCS_IDENTITY", "pcs", _S, 1000, 0x39,
          "Another device than the profile's answers at the PCS address. Check pcs_host and pcs_profile, "
          "acknowledge."),
    Fault(49, "ERR_BMS_LINK_POOR", "bms", _W, 5000, 0x67,
          "More than 2 % of the requests to the BMS get no good answer. Check cable, gateway and interference."),
    Fault(50, "ERR_PCS_LINK_POOR", "pcs", _W, 5000, 0x68,
          "More than 2 % of the requests to the PCS get no good answer. Check cable and interference."),
    Fault(51, "ERR_CELL_SENSOR", "bms", _S, 500, 0x28,
          "The BMS does not know the voltage or temperature of a cell. Mend the sense wire, acknowledge."),
    Fault(52, "ERR_INSULATION_LOW", "bms", _W, 2000, 0x29,
          "Insulation to earth is below twice min_insulation. Look for moisture before it becomes a ground fault."),
    Fault(53, "ERR_STRING_OFFLINE", "bms", _D, 1000, 0x69,
          "A string allows neither charge nor discharge. Read its BMS; the rack stands until it is back."),
    Fault(54, "ERR_BMS_WARNING", "bms", _W, 1000, 0x71,
          "The BMS shows a pre-alarm. Read its alarm bits."),
    Fault(55, "ERR_CELL_DEEP_DISCHARGE", "bms", _S, 1000, 0x72,
          "A cell is so low that it must not be charged again: its copper may have dissolved. Replace the module, "
          "acknowledge."),
    Fault(56, "ERR_DC_OVERVOLTAGE", "pcs", _T, 100, 0x73,
          "The PCS measures more than 105 % of max_charge_voltage. Check PCS voltage control before reset and "
          "acknowledge."),
    Fault(57, "ERR_CURRENT_MISMATCH", "pcs", _S, 3000, 0x74,
          "BMS and PCS measure different currents: a meter is wrong, or current takes another path. Check both, "
          "acknowledge."),
    Fault(58, "ERR_PCS_NOT_FOLLOWING", "pcs", _W, 10_000, 0x75,
          "The PCS current stays away from the demand. Check its mode, limits and grid."),
    Fault(59, "ERR_SERVER_LOST", "site", _W, 2000, 0x76,
          "The Modbus server is silent: no command is followed. It is restarted by itself; if not, restart the unit."),
    Fault(60, "ERR_STORE", "storage", _W, 5000, 0x77,
          "Log, journal or saved state cannot be written. Check the disk; nothing waits for it, history is lost."),
    Fault(61, "ERR_CLOCK", "storage", _W, 60_000, 0x78,
          "The wall clock cannot be trusted: time servers are silent or disagree. Stamps in the log carry a `?`."),
    Fault(62, "ERR_WATCHDOG", "guard", _W, 1000, 0x79,
          "The hardware watchdog cannot be used: a hang would not reset this unit. Check the board file's device."),
)  # fmt: skip

BY_NAME = {fault.name: fault for fault in FAULTS}


def names(bits: int) -> list[str]:
    """Names of the faults whose bits are set, in bit order."""
    return [fault.name for fault in FAULTS if bits >> fault.bit & 1]


def _mask(*severities: Severity) -> int:
    return sum(1 << fault.bit for fault in FAULTS if fault.severity in severities)


STOP_MASK, TRIP_MASK, LOCKOUT_MASK = _mask(_S), _mask(_T), _mask(_L)
SEVERE_MASK = STOP_MASK | TRIP_MASK | LOCKOUT_MASK
SAVED_MASK = TRIP_MASK | LOCKOUT_MASK
CONFIRM_MS = {fault.bit: fault.confirm_ms for fault in FAULTS}

assert [f.bit for f in FAULTS] == [b for b in range(FAULTS[-1].bit + 1) if b % 32 != 31], "never reorder, only append"
assert all(fault.source in SOURCES for fault in FAULTS)
assert len({fault.led for fault in FAULTS}) == len(FAULTS), "every fault has a blink code of its own"
