"""What a write may be, and which mode it commands: all that follows from the registers alone, without any state."""

from __future__ import annotations

from drivers.modbus.point import UNIMPLEMENTED
from drivers.modbus.session import ModbusError
from statemachine.signals import Mode, Why

from . import registers
from .registers import Row
from .sunspec import OpCtl, SetOp

RUNNING = (Mode.CHARGE, Mode.DISCHARGE, Mode.GRID)
_OPCTL_MODE = {OpCtl.STOP: Mode.OFF, OpCtl.ENTER_STANDBY: Mode.READY}


class Refused(ModbusError):
    """A write is refused with Modbus exception `code`; `why` and `address` go into AckWhy and RefAddr."""

    def __init__(self, code: int, why: Why, address: int) -> None:
        super().__init__(code)
        self.why, self.address = why, address


def covered(address: int, count: int) -> list[Row]:
    """The writable points that a block covers exactly. Raises Refused (02)."""
    rows, at = [], address
    while at < address + count:
        row = registers.covering(at)
        if row is None:
            raise Refused(2, Why.NO_SUCH_REGISTER, at)
        if row.point.access == "R":
            raise Refused(2, Why.READ_ONLY, at)
        if at != row.point.address or row.point.end > address + count:
            raise Refused(2, Why.HALF_POINT, at)
        rows.append(row)
        at = row.point.end
    return rows


def check_value(row: Row, data: bytes) -> None:
    """Raises Refused (03) when `data` is no value that the point may take."""
    point = row.point
    raw = point.raw(data)
    if point.values is not None:
        if raw not in point.values._value2member_map_:
            raise Refused(3, Why.UNDEFINED_VALUE, point.address)
        return
    if raw == UNIMPLEMENTED[point.type]:
        raise Refused(3, Why.UNDEFINED_VALUE, point.address)
    assert point.low is not None and point.high is not None
    if not round(point.low / point.scale) <= raw <= round(point.high / point.scale):
        raise Refused(3, Why.OUT_OF_RANGE, point.address)


def commanded_mode(image: bytearray, touched: set[str], now: Mode) -> Mode:
    """The mode that a write leaves behind. START and CONNECT change nothing when they are already so."""
    if "OpCtl" in touched:
        wanted = OpCtl(int(registers.get(image, "OpCtl")))
        return _OPCTL_MODE.get(wanted, now if now in RUNNING else Mode.GRID)
    if "SetOp" in touched:
        if registers.get(image, "SetOp") == SetOp.DISCONNECT:
            return Mode.OFF
        return Mode.READY if now in (Mode.OFF, Mode.SERVICE) else now
    return Mode(int(registers.get(image, "CmdMode")))


def mirror_mode(image: bytearray, mode: Mode) -> None:
    """CmdMode, OpCtl and SetOp say the same thing, each in its own words."""
    connected = mode in (*RUNNING, Mode.READY)
    registers.put(image, "CmdMode", mode)
    registers.put(image, "SetOp", SetOp.CONNECT if connected else SetOp.DISCONNECT)
    if mode in RUNNING and registers.get(image, "OpCtl") in (OpCtl.START, OpCtl.EXIT_STANDBY):
        return
    running = OpCtl.START if mode in RUNNING else OpCtl.STOP
    registers.put(image, "OpCtl", OpCtl.ENTER_STANDBY if mode == Mode.READY else running)
