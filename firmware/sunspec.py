"""Enumerations of the SunSpec models that are served; numbers as in the models' JSON definitions."""

from __future__ import annotations

from enum import IntEnum


class Ability(IntEnum):
    DISABLED = 0
    ENABLED = 1


class WSetMode(IntEnum):
    W_MAX_PCT = 0
    WATTS = 1


class Control(IntEnum):
    REMOTE = 0
    LOCAL = 1


class OpCtl(IntEnum):
    STOP = 0
    START = 1
    ENTER_STANDBY = 2
    EXIT_STANDBY = 3


class SetOp(IntEnum):
    CONNECT = 1
    DISCONNECT = 2


class StorageStatus(IntEnum):
    OK = 0
    WARNING = 1
    ERROR = 2


class ChargeStatus(IntEnum):
    OFF = 1
    EMPTY = 2
    DISCHARGING = 3
    CHARGING = 4
    FULL = 5
    HOLDING = 6
    TESTING = 7


class BatteryType(IntEnum):
    LITHIUM_ION = 4


class BatteryState(IntEnum):
    DISCONNECTED = 1
    INITIALIZING = 2
    CONNECTED = 3
    STANDBY = 4
    SOC_PROTECTION = 5
    SUSPENDING = 6
    FAULT = 99


class InverterState(IntEnum):
    STOPPED = 1
    STANDBY = 2
    STARTED = 3


class AcType(IntEnum):
    SINGLE_PHASE = 0
    SPLIT_PHASE = 1
    THREE_PHASE = 2


class Operation(IntEnum):
    OFF = 0
    ON = 1


class PcsOperation(IntEnum):
    """701.InvSt."""

    OFF = 0
    SLEEPING = 1
    STARTING = 2
    RUNNING = 3
    THROTTLED = 4
    SHUTTING_DOWN = 5
    FAULT = 6
    STANDBY = 7


class Connection(IntEnum):
    DISCONNECTED = 0
    CONNECTED = 1


class ControlMode(IntEnum):
    """Bits of 702.CtrlModes that are served."""

    MAX_W = 0
    FIXED_W = 1
    FREQ_WATT = 5


class Adoption(IntEnum):
    """711.AdptCtlRslt."""

    IN_PROGRESS = 0
    COMPLETED = 1
    FAILED = 2


class Writable(IntEnum):
    """ReadOnly of a control set."""

    RW = 0
    R = 1


class PortType(IntEnum):
    PV = 0
    ESS = 1
    EV = 2
    INJ = 3
    ABS = 4
    BIDIR = 5
    DC_DC = 6


class PortStatus(IntEnum):
    OFF = 0
    ON = 1
    WARNING = 2
    ERROR = 3
