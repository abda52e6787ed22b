"""The kernel's character devices: who is there, and what python-periphery does not offer on a line it has opened.

GPIO v2 (Linux 5.10 and newer, include/uapi/linux/gpio.h). An input that is already requested is given edges and
debounce with GPIO_V2_LINE_SET_CONFIG, which does not give the line back in between. periphery asks for edges with
CLOCK_REALTIME stamps, which a step of the wall clock spoils; here they are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

DEV, SYS = Path("/dev"), Path("/sys/bus")

Where = Literal["path", "label", "usb_serial"]
Kind = Literal["gpio", "i2c", "spidev"]
Bias = Literal["default", "pull_up", "pull_down", "disable"]

_CHIP_INFO, _LINE_INFO, _SET_CONFIG = 0x8044B401, 0xC100B405, 0xC110B40D
_CHIP = struct.Struct("=32s32sI")
_LINE = struct.Struct("=32s32sIIQ176x")
_CONFIG = struct.Struct("=QI20xI4xI4xQ216x")  # flags, attributes; first attribute: id, value, mask
_EVENT = struct.Struct("=QIIII24x")
_USED, _INPUT, _EDGE_BOTH = 0x1, 0x4, 0x30
_BIAS = {"default": 0, "pull_up": 0x100, "pull_down": 0x200, "disable": 0x400}
_DEBOUNCE_ATTRIBUTE = 3
_RISING = 1
_EVENTS_AT_ONCE = 16


class Device(NamedTuple):
    """How a device is named in a board file: its path, a chip's label, or the serial number of its USB adapter."""

    by: Where
    value: str

    def __str__(self) -> str:
        return f"{self.by} {self.value!r}"


class ChipInfo(NamedTuple):
    name: str
    label: str
    lines: int


class LineInfo(NamedTuple):
    consumer: str
    used: bool


class NotFound(OSError):
    """No device, or more than one, answers to the name; the message lists those that are there."""


def chip_info(path: Path) -> ChipInfo:
    """Raises OSError when `path` is not a gpiochip."""
    name, label, lines = _CHIP.unpack(_ask(path, _CHIP_INFO, bytearray(_CHIP.size)))
    return ChipInfo(_text(name), _text(label), lines)


def line_info(path: Path, offset: int) -> LineInfo:
    """Who holds a line. Raises OSError."""
    asked = bytearray(_LINE.pack(b"", b"", offset, 0, 0))
    _, consumer, _, _, flags = _LINE.unpack(_ask(path, _LINE_INFO, asked))
    return LineInfo(_text(consumer), bool(flags & _USED))


def _ask(path: Path, request: int, buffer: bytearray) -> bytearray:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, buffer)
    finally:
        os.close(fd)
    return buffer


def _text(padded: bytes) -> str:
    return padded.split(b"\0")[0].decode(errors="replace")


def configure_input(fd: int, bias: Bias, edges: bool, debounce_us: int) -> None:
    """Edges and debounce of the line behind `fd`; OSError when the chip has no interrupts for them."""
    flags = _INPUT | _BIAS[bias] | (_EDGE_BOTH if edges else 0)
    debounce = (1, _DEBOUNCE_ATTRIBUTE, debounce_us, 1) if debounce_us else (0, 0, 0, 0)
    fcntl.ioctl(fd, _SET_CONFIG, bytearray(_CONFIG.pack(flags, *debounce)))
    os.set_blocking(fd, False)


def read_events(fd: int) -> Iterator[tuple[int, int]]:
    """Physical level and CLOCK_MONOTONIC ns of the edges that wait on `fd`; none when none waits."""
    try:
        records = os.read(fd, _EVENTS_AT_ONCE * _EVENT.size)
    except BlockingIOError:
        return
    for stamp_ns, kind, *_ in _EVENT.iter_unpack(records):
        yield int(kind == _RISING), stamp_ns


def find(kind: Kind, wanted: Device) -> Path:
    """The device node of a gpiochip, I2C bus or SPI device. Raises NotFound."""
    if wanted.by == "path":
        path = Path(wanted.value)
        if not path.exists():
            raise NotFound(f"{path} does not exist; there are: {_there(kind)}")
        return path
    found = [path for path in _nodes(kind) if _answers(kind, path, wanted)]
    if len(found) != 1:
        seen = "nothing has" if not found else " and ".join(map(str, found)) + " have"
        raise NotFound(f"{seen} {wanted}; there are: {_there(kind)}")
    return found[0]


def _nodes(kind: str) -> list[Path]:
    return sorted(DEV.glob({"gpio": "gpiochip*", "i2c": "i2c-*", "spidev": "spidev*"}[kind]))


def _answers(kind: str, path: Path, wanted: Device) -> bool:
    try:
        if wanted.by == "label":
            return chip_info(path).label == wanted.value
    except OSError:
        return False
    return usb_serial(kind, path) == wanted.value


def usb_serial(kind: str, path: Path) -> str:
    """Serial number of the USB device that carries `path`; empty when it is not on USB.

    A HID device between may have an attribute named serial as well: the USB device is the one with an idVendor.
    """
    for parent in (SYS / kind / "devices" / path.name).resolve().parents:
        if (parent / "idVendor").exists() and (parent / "serial").exists():
            return (parent / "serial").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _there(kind: str) -> str:
    return ", ".join(map(str, (_described(kind, path) for path in _nodes(kind)))) or "none"


def _described(kind: str, path: Path) -> str:
    serial = usb_serial(kind, path)
    try:
        names = [f"label {chip_info(path).label!r}"] if kind == "gpio" else []
    except OSError as error:
        names = [error.strerror or "cannot be opened"]
    return f"{path} ({', '.join([*names, *([f'usb_serial {serial!r}'] if serial else [])]) or 'no label'})"
