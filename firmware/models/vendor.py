"""The vendor model: command, answer and status in one place. Fields are only ever appended or put into the reserve."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from operator import attrgetter

from statemachine.signals import (
    BootReason,
    GuardTrip,
    LimitReason,
    LossPolicy,
    Mode,
    Result,
    WatchdogState,
    Why,
)
from statemachine.states import State

from ..update_codes import UpdateState
from .ac import SPAN_W
from .control import ACK, BEAT16
from .draft import Draft, Sources, active, of_links, of_settings, of_status, shown


def _led(position: int) -> Callable[[Sources], float]:
    return of_status(lambda status: status.led_codes >> 8 * position & 0xFF)


def _available_w(limit: str) -> Callable[[Sources], float]:
    ampere = attrgetter(limit)
    return lambda s: nan if s.bms is None or s.status is None else ampere(s.status) * s.bms.rack_v


_BITS = ", bits as in the table of faults"
_PATTERN = ": 0 off, 1 on, 2 slow, 3 fast, 0xNM = N blinks, pause, M blinks"
VENDOR = [
    Draft("CmdSeq", "uint32", "command sequence; a new number makes a new command", span=(0, 0xFFFFFFFE), fixed=0),
    Draft("CmdMode", "enum16", "commanded mode; a level. A change without CmdSeq in the same write advances CmdSeq",
          values=Mode, writable=True, fixed=Mode.OFF),
    Draft("CmdW", "int32", "power in mode grid while WSetEna is 0; - = charge", unit="W", span=SPAN_W, fixed=0),
    Draft("CmdRamp", "uint16", "charge or discharge rate on rated capacity", unit="C", scale=0.001, span=(0, 2),
          fixed=0.5),
    Draft("CmdTgtSoC", "uint16", "charge or discharge ends here", unit="%", scale=0.1, span=(0, 100), fixed=80),
    Draft("CtrlHb", "uint16", "site controller heartbeat; must change within HbTmo once it was written",
          span=BEAT16, fixed=0),
    Draft("AckFaults", "uint16", "1 = acknowledge latched faults whose cause is gone; reads 0", span=ACK, fixed=0),
    Draft("HbTmo", "uint16", "site controller heartbeat time-out", unit="s", span=(2, 300), fixed=10),
    Draft("LossPol", "enum16", "after a lost heartbeat and the ramp to zero", values=LossPolicy, writable=True,
          fixed=LossPolicy.STANDBY),
    Draft("Epoch", "uint32", "epoch of the redundant master that writes, only with CmdSeq and ValidMs in the same "
          "write; reads the one in force, 0 = not fenced", span=(0, 0xFFFFFFFE), fixed=0),
    Draft("ValidMs", "uint16", "the frame is in force for this long, 0 = without end; only with Epoch", unit="ms",
          span=(0, 65_000), fixed=0),
    Draft("AckSeq", "uint32", "CmdSeq that the controller has answered", "status.ack_seq"),
    Draft("AckResult", "enum16", "its answer", "status.ack_result", values=Result),
    Draft("AckWhy", "enum16", "why a command is not followed, or the last write was refused", "status",
          lambda s: s.own.why or (nan if s.status is None else s.status.ack_why), values=Why),
    Draft("RefAddr", "uint16", "register at fault of the last refused write, 0 = none", "own.address"),
    Draft("CmfState", "enum16", "state of the charge management function", "status.state", values=State),
    Draft("ChaLimA", "uint16", "charge limit in force: every reason in it, command and ramp too",
          "status.charge_limit_a", unit="A", scale=0.1),
    Draft("DisLimA", "uint16", "discharge limit in force", "status.discharge_limit_a", unit="A", scale=0.1),
    Draft("LimReason", "enum16", "what limits charging", "status.charge_reason", values=LimitReason),
    Draft("DisLimReason", "enum16", "what limits discharging", "status.discharge_reason", values=LimitReason),
    Draft("WEff", "int32", "power demanded of the PCS now", "status.demand_w", unit="W"),
    Draft("WAvailCha", "uint32", "charge power available now", "status", _available_w("available_charge_a"), unit="W"),
    Draft("WAvailDis", "uint32", "discharge power available now", "status", _available_w("available_discharge_a"),
          unit="W"),
    Draft("SetA", "int32", "current demanded of the PCS", "status.setpoint_a", unit="A", scale=0.1),
    Draft("Soc", "uint16", "state of charge", "bms.soc_pct", unit="%", scale=0.01),
    Draft("SoH", "uint16", "state of health, weakest string", "bms.soh_pct", unit="%", scale=0.01),
    Draft("RackV", "uint16", "rack voltage by the BMS", "bms.rack_v", unit="V", scale=0.1),
    Draft("PcsV", "uint16", "DC voltage by the PCS", "pcs.dc_v", unit="V", scale=0.1),
    Draft("RackA", "int32", "rack current by the BMS", "bms.rack_a", unit="A", scale=0.1),
    Draft("DvMv", "int16", "PCS minus BMS voltage after calibration", "status.dv_v", unit="V", scale=0.001),
    Draft("CellVMax", "uint16", "highest cell", "bms.cell_v_max", unit="V", scale=0.001),
    Draft("CellVMaxIdx", "uint16", "its index, string-major from 0", "bms.cell_v_max_at"),
    Draft("CellVMin", "uint16", "lowest cell", "bms.cell_v_min", unit="V", scale=0.001),
    Draft("CellVMinIdx", "uint16", "its index", "bms.cell_v_min_at"),
    Draft("CellTmpMax", "int16", "hottest cell", "bms.cell_c_max", unit="degC", scale=0.1),
    Draft("CellTmpMaxIdx", "uint16", "its index", "bms.cell_c_max_at"),
    Draft("CellTmpMin", "int16", "coldest cell", "bms.cell_c_min", unit="degC", scale=0.1),
    Draft("CellTmpMinIdx", "uint16", "its index", "bms.cell_c_min_at"),
    Draft("FaultBits", "bitfield32", "faults 0-30 active or latched" + _BITS, "status", of_status(shown(0))),
    Draft("FaultBits2", "bitfield32", "faults 32-62 active or latched: bit n is fault 32 + n", "status",
          of_status(shown(32))),
    Draft("BmsCrcErrors", "uint16", "RTU answers of the BMS with a wrong CRC, up to 65534", "links.bms_crc"),
    Draft("PcsCrcErrors", "uint16", "RTU answers of the PCS with a wrong CRC, up to 65534", "links.pcs_crc"),
    Draft("TlsDays", "int16", "days until the server's certificate ends, - = it has", "own.tls_days"),
    Draft("UpdState", "enum16", "step of an update; the rest is in model 64991", "update.state", values=UpdateState),
    Draft("FaultActive", "bitfield32", "faults 0-30 whose cause is there now" + _BITS, "status",
          of_status(active(0))),
    Draft("FaultActive2", "bitfield32", "faults 32-62 whose cause is there now", "status", of_status(active(32))),
    Draft("LedRun", "enum16", "RUN LED" + _PATTERN, "status", _led(0)),
    Draft("LedCharge", "enum16", "CHARGE LED" + _PATTERN, "status", _led(1)),
    Draft("LedComm", "enum16", "COMM LED" + _PATTERN, "status", _led(2)),
    Draft("LedFault", "enum16", "FAULT LED" + _PATTERN, "status", _led(3)),
    Draft("LedKill", "enum16", "KILL LED" + _PATTERN, "status", _led(4)),
    Draft("Interlocks", "bitfield32", "bits 0-7 interlock 1-8 closed, 8 kill-switch closed, 9 tamper closed, 10 "
          "insulation good, 11-13 feedback neg pos pre closed, 14 reset pressed, 15 guard armed, 16 key at LOCAL",
          "status.interlocks"),
    Draft("Feedback", "uint16", "contactors reported closed: bit 0 neg, 1 pos, 2 precharge", "status.feedback"),
    Draft("Coils", "uint16", "contactor coils on: bit 0 neg, 1 pos, 2 precharge", "status.coils"),
    Draft("GuardArmed", "uint16", "1 = safe-enable is on", "guard.armed"),
    Draft("GuardTrip", "enum16", "what dropped safe-enable last", "guard.trip", values=GuardTrip),
    Draft("Permit", "enum16", "why the contactors may not close now", "status.permit", values=Why),
    Draft("ScanOverruns", "uint32", "scan periods missed since start", "status.overruns"),
    Draft("ScanLate", "uint32", "scans that began after their period", "status.late_scans"),
    Draft("ScanCount", "uint32", "scans since start", "status.scan"),
    Draft("ScanPeriodUs", "uint16", "scan period", "status.period_us", unit="us"),
    Draft("ScanWakeP50us", "uint16", "wake latency, median", "status.wake_p50_us", unit="us"),
    Draft("ScanWakeP99us", "uint16", "wake latency, 99th percentile", "status.wake_p99_us", unit="us"),
    Draft("ScanWakeMaxus", "uint32", "wake latency, largest", "status.wake_max_us", unit="us"),
    Draft("ScanExecP50us", "uint16", "execution time, median", "status.exec_p50_us", unit="us"),
    Draft("ScanExecP99us", "uint16", "execution time, 99th percentile", "status.exec_p99_us", unit="us"),
    Draft("ScanExecMaxus", "uint32", "execution time, largest", "status.exec_max_us", unit="us"),
    Draft("StatusBits", "bitfield32", "0 no real-time priority, 1 memory not locked, 2 configuration refused, 3 "
          "widening waits for open contactors, 4 BMS stale, 5 PCS stale, 6 heartbeat armed, 7 heartbeat lost, 8 dV "
          "calibrated, 9 server stale, 10 bench, 11 clock trusted", "status.status_bits"),
    Draft("WSetAct", "int32", "704 set-point in force", "status.wset_active_w", unit="W"),
    Draft("WSetRem", "uint32", "as WSetRvrtRem", "status.wset_remaining_s", unit="s"),
    Draft("BmsPolls", "uint32", "complete BMS polls since start", "links.bms_polls"),
    Draft("BmsTimeouts", "uint32", "BMS requests without an answer", "links.bms_timeouts"),
    Draft("BmsErrors", "uint32", "BMS answers refused: unit, length, exception, garbage", "links",
          of_links(lambda k: k.bms_wrong_unit + k.bms_wrong_length + k.bms_exceptions + k.bms_garbage)),
    Draft("BmsPollUs", "uint32", "duration of the last complete BMS poll", "links.bms_poll_us", unit="us"),
    Draft("PcsPolls", "uint32", "complete PCS polls since start", "links.pcs_polls"),
    Draft("PcsTimeouts", "uint32", "PCS requests without an answer", "links.pcs_timeouts"),
    Draft("PcsErrors", "uint32", "PCS answers refused: unit, length, exception, garbage", "links",
          of_links(lambda k: k.pcs_wrong_unit + k.pcs_wrong_length + k.pcs_exceptions + k.pcs_garbage)),
    Draft("PcsPollUs", "uint32", "duration of the last PCS poll", "links.pcs_poll_us", unit="us"),
    Draft("CfgRev", "uint32", "revision of the configuration in force", "status.settings_revision"),
    Draft("PrechargeTries", "uint16", "tries of the running or last precharge", "status.precharge_tries"),
    Draft("IntlkReq", "uint16", "interlocks that must be closed: bit 0-7 interlock 1-8", "settings",
          of_settings(lambda c: c.interlocks_required)),
    Draft("ContactorCycles", "uint32", "lifetime closings of the main contactors", "status.cycles"),
    Draft("OpenedUnderLoad", "uint16", "openings above break_current since inspection", "status.opened_under_load"),
    Draft("ClosedUnderLoad", "uint16", "closings with an inrush since inspection", "status.closed_under_load"),
    Draft("Precharges", "uint32", "lifetime precharges", "status.precharges"),
    Draft("BootReason", "enum16", "why the unit started", "guard.boot_reason", values=BootReason),
    Draft("Watchdog", "enum16", "hardware watchdog", "guard.watchdog", values=WatchdogState),
    Draft("ClockOffsetMs", "int16", "wall clock against the time servers", "clock.offset_ms", unit="s", scale=0.001),
    Draft("FreezeFrames", "uint16", "freeze-frames kept, see file record 1 (FC 20)", "own.freeze_frames"),
]  # fmt: skip
VENDOR_FIRST, VENDOR_LENGTH = 40524, 122
