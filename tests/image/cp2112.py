"""A Silicon Labs CP2112: eight lines and an I2C bus behind HID reports.

Sources: AN495, CP2112 interface specification; the reports that Linux drivers/hid/hid-cp2112.c uses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING

from .usbredir import string_descriptor

if TYPE_CHECKING:
    from fake_kernel import I2cDevice, I2cMessage


class Report(IntEnum):
    """Report numbers; 0x02 to 0x06 and 0x20 to 0x24 are features."""

    GPIO_CONFIG, GPIO_GET, GPIO_SET, VERSION, SMBUS_CONFIG = 0x02, 0x03, 0x04, 0x05, 0x06
    READ, WRITE_READ, FORCE_READ, READ_RESPONSE, WRITE = 0x10, 0x11, 0x12, 0x13, 0x14
    STATUS, STATUS_RESPONSE, CANCEL = 0x15, 0x16, 0x17
    LOCK, USB_CONFIG, MANUFACTURER, PRODUCT, SERIAL = 0x20, 0x21, 0x22, 0x23, 0x24


_IDLE, _COMPLETE, _ERROR = 0, 2, 3
_NACK, _SUCCESS = 0, 5
_IDLING = (_IDLE, 0, 0, 0)
_REPORT, _DATA, _TEXT = 64, 61, 62
_SMBUS = struct.pack(">IBBHHBH", 100_000, 0x02, 0, 0, 0, 0, 0)  # clock in Hz, own address, no time-outs, no retries

_STRINGS = (Report.MANUFACTURER, Report.PRODUCT, Report.SERIAL)
_FEATURES: dict[int, int] = {
    Report.GPIO_CONFIG: 4, Report.GPIO_GET: 1, Report.GPIO_SET: 2, Report.VERSION: 2,
    Report.SMBUS_CONFIG: len(_SMBUS), Report.LOCK: 1, Report.USB_CONFIG: 9, **dict.fromkeys(_STRINGS, _TEXT),
}  # fmt: skip
"""Bytes after the report's number."""
_OUTPUTS = (Report.READ, Report.WRITE_READ, Report.FORCE_READ, Report.WRITE, Report.STATUS, Report.CANCEL)
_INPUTS = (Report.READ_RESPONSE, Report.STATUS_RESPONSE)


def _report_descriptor() -> bytes:
    """Vendor page 0xFF00: every report is an array of bytes."""
    sizes = [(0xB1, report, size) for report, size in _FEATURES.items()]
    sizes += [(0x91, report, _REPORT - 1) for report in _OUTPUTS] + [(0x81, report, _REPORT - 1) for report in _INPUTS]
    reports = b"".join(bytes((0x85, report, 0x95, size, 0x09, 1, kind, 2)) for kind, report, size in sizes)
    return bytes.fromhex("0600ff 0901 a101 1500 26ff00 7508") + reports + b"\xc0"


class Cp2112:
    """`pins()` gives the levels that the outside puts on the lines, a bit a line; `changed(driven, levels)` hears what
    the chip puts on them, 1 in `driven` where it does. `bus` has an I2C device an address; others do not acknowledge.

    All lines are inputs after power-on; a USB reset leaves them alone, which is the worse of the two for an output.
    """

    vendor_id, product_id = 0x10C4, 0xEA90
    report_descriptor = _report_descriptor()

    def __init__(
        self,
        serial: str,
        pins: Callable[[], int] = lambda: 0xFF,
        changed: Callable[[int, int], None] = lambda driven, levels: None,
        bus: Mapping[int, I2cDevice] | None = None,
    ) -> None:
        self.strings = ("Silicon Laboratories", "CP2112 HID USB-to-SMBus Bridge", serial)
        self._pins, self._changed, self._bus = pins, changed, bus or {}
        self._seen = (0, 0)
        self.power_on()

    def power_on(self) -> None:
        """As after plugging in; also what the lines show while it has no power."""
        self._features: dict[int, bytes] = {
            Report.GPIO_CONFIG: bytes(4), Report.VERSION: b"\x0c\x02", Report.SMBUS_CONFIG: _SMBUS, Report.LOCK: b"\0",
            Report.USB_CONFIG: struct.pack("<HHBBBBB", self.vendor_id, self.product_id, 50, 0, 1, 0, 0),
            **dict(zip(_STRINGS, map(_padded_string, self.strings), strict=True)),
        }  # fmt: skip
        self._latch = 0
        self._answer, self._status = b"", _IDLING
        self._drive()

    def get_feature(self, report: int) -> bytes:
        if report == Report.GPIO_GET:
            outputs = self._features[Report.GPIO_CONFIG][0]
            return bytes((report, self._latch & outputs | self._pins() & ~outputs & 0xFF))
        return bytes((report,)) + self._features[report]

    def set_feature(self, data: bytes) -> None:
        """PROM fields are taken as programmed: writing them is accepted and does nothing, as on the chip."""
        report, values = data[0], data[1:]
        if len(values) < _FEATURES[report]:
            raise KeyError(report)
        if report == Report.GPIO_SET:
            level, mask = values[:2]
            self._latch = self._latch & ~mask | level & mask
        elif report in (Report.GPIO_CONFIG, Report.SMBUS_CONFIG):
            self._features[report] = values[: _FEATURES[report]]
        self._drive()

    def _drive(self) -> None:
        outputs, push_pull = self._features[Report.GPIO_CONFIG][:2]
        driven = outputs & (push_pull | ~self._latch)
        seen = (driven, self._latch & driven)
        if seen != self._seen:
            self._seen = seen
            self._changed(*seen)

    def output(self, data: bytes) -> list[bytes]:
        match data[0]:
            case Report.READ:
                self._transfer(data[1] >> 1, b"", _word(data, 2))
            case Report.WRITE_READ:
                self._transfer(data[1] >> 1, data[5 : 5 + data[4]], _word(data, 2))
            case Report.WRITE:
                self._transfer(data[1] >> 1, data[3 : 3 + data[2]], 0)
            case Report.FORCE_READ:
                return [self._read(_word(data, 1))]
            case Report.STATUS:
                return [_input(Report.STATUS_RESPONSE, struct.pack(">BBHH", *self._status))]
            case Report.CANCEL:
                self._answer, self._status = b"", _IDLING
        return []

    def _transfer(self, address: int, written: bytes, length: int) -> None:
        messages: list[I2cMessage] = [(address, False, written)] if written or not length else []
        messages += [(address, True, bytes(length))] if length else []
        try:
            answers = self._bus[address](messages)
        except (KeyError, OSError):
            self._answer, self._status = b"", (_ERROR, _NACK, 0, 0)
            return
        self._answer = answers[-1][:length].ljust(length, b"\xff") if length else b""
        self._status = (_COMPLETE, _SUCCESS, 0, length)

    def _read(self, length: int) -> bytes:
        count = min(length, _DATA)
        part, self._answer = self._answer[:count], self._answer[count:]
        return _input(Report.READ_RESPONSE, bytes((self._status[0], len(part))) + part)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _input(report: int, values: bytes) -> bytes:
    return (bytes((report,)) + values).ljust(_REPORT, b"\0")


def _padded_string(text: str) -> bytes:
    return string_descriptor(text).ljust(_TEXT, b"\0")
