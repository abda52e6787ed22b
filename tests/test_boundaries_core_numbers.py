"""Numbers that go into registers, logs and saved state: once published they never change."""

from __future__ import annotations

from enum import IntEnum

import pytest

from statemachine import signals
from statemachine.states import State

NUMBERS: dict[type[IntEnum], str] = {
    State: "INIT ISOLATED SERVICE PRECHARGE READY CHARGE_RAMP CHARGE_BULK CHARGE_STEP CHARGE_ABSORB CHARGE_BALANCE "
    "CHARGED DISCHARGE GRID_SUPPORT STOPPING FAULT EMERGENCY_STOP LOCKOUT",
    signals.PcsState: "OFF STANDBY RUN FAULT",
    signals.Mode: "OFF READY CHARGE DISCHARGE GRID SERVICE",
    signals.LossPolicy: "STANDBY HOLD ISOLATE",
    signals.GuardTrip: "NONE KILL_SWITCH TAMPER HEARTBEAT_LATE CONTROLLER_RESTARTED START GUARD_RESTARTED "
    "GUARD_STALLED CONTROLLER_TRIP",
    signals.WatchdogState: "NONE RUNNING FAILED",
    signals.BootReason: "UNKNOWN POWER COMMAND WATCHDOG",
    signals.Result: "NONE ACCEPTED REJECTED",
    signals.Why: "NONE SEQ_NOT_NEW FAULT_LATCHED EMERGENCY_STOP LOCKOUT IN_SERVICE NOT_ISOLATED NO_DATA INTERLOCK_OPEN "
    "GUARD_NOT_ARMED NO_CONFIGURATION STARTING OUT_OF_RANGE READ_ONLY HALF_POINT UNDEFINED_VALUE CAUSE_ACTIVE "
    "HEARTBEAT_LOST NOT_IN_AUTHORITY TOO_MANY_WRITES NO_SUCH_REGISTER BMS_ALARM PCS_FAULT ENTER_SERVICE "
    "SERVICE_NOT_PERMITTED LOCAL_CONTROL STALE_EPOCH EPOCH_REQUIRED VALIDITY_OVER EPOCH_NOT_SAVED INCOMPLETE_FRAME "
    "UPDATING NOT_COMMISSIONED NOT_IN_SERVICE CHECKS_MISSING RECORD_NOT_SAVED",
    signals.EventKind: "- STATE FAULT_ON FAULT_OFF FAULT_ACK COMMAND COILS SETTINGS PRECHARGE REVERT DV_ZERO HEARTBEAT "
    "SERVICE_PRESS KEY_SWITCH VALIDITY UPDATE",
    signals.StatusBit: "NO_REALTIME NO_MEMLOCK CONFIG_REFUSED CONFIG_PENDING BMS_STALE PCS_STALE HEARTBEAT_ARMED "
    "HEARTBEAT_LOST DV_CALIBRATED SERVER_STALE BENCH CLOCK_TRUSTED",
    signals.InterlockBit: "INTERLOCK_1 INTERLOCK_2 INTERLOCK_3 INTERLOCK_4 INTERLOCK_5 INTERLOCK_6 INTERLOCK_7 "
    "INTERLOCK_8 KILL_OK TAMPER_OK INSULATION_OK FEEDBACK_NEG FEEDBACK_POS FEEDBACK_PRE RESET_PRESSED GUARD_ARMED "
    "KEY_LOCAL",
    signals.LimitReason: "NONE COMMAND BMS PCS SITE STEP PLATING COLD HEALTH HOT VOLTAGE LOW_CELL BALANCE RAMP "
    "REVERSION LOOP SOC NO_DATA STATE ENTER_SERVICE WMAX_LIM DROOP",
}  # fmt: skip
"""Names in the order of their numbers, from 0; - is a number without a name."""


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: str(kind.__name__))
def test_published_numbers_never_change(kind: type[IntEnum]) -> None:
    expected = {name: number for number, name in enumerate(NUMBERS[kind].split()) if name != "-"}
    assert {name: int(member) for name, member in kind.__members__.items()} == expected


def test_every_number_of_the_border_is_looked_after() -> None:
    found = {k for k in vars(signals).values() if isinstance(k, type) and issubclass(k, IntEnum) and k is not IntEnum}
    assert found == set(NUMBERS)
