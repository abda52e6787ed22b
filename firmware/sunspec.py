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
