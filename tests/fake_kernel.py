"""A kernel of our own: gpiochips, I2C buses and SPI devices behind python-periphery, and watchdogs, at their ioctls.

Device nodes are plain files in a directory; `fcntl.ioctl` is replaced, so that periphery itself runs unchanged. The
numbers and structures are those of linux/gpio.h, linux/i2c-dev.h, linux/spi/spidev.h and linux/watchdog.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import select
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drivers import gpiochip

GET_CHIP, GET_LINE_INFO, GET_LINE, GET_VALUES, SET_CONFIG, SET_VALUES = (
    0x8044B401, 0xC100B405, 0xC250B407, 0xC010B40E, 0xC110B40D, 0xC010B40F,
)  # fmt: skip
INPUT, OUTPUT, RISING, FALLING, ACTIVE_LOW = 0x4, 0x8, 0x10, 0x20, 0x2
I2C_FUNCS, I2C_RDWR, SPI_MESSAGE = 0x705, 0x707, 0x40206B00
GET_SUPPORT, GET_BOOT_STATUS, SET_TIMEOUT, GET_TIMEOUT = 0x80285700, 0x80045702, 0xC0045706, 0x80045707
EVENT = struct.Struct("=QIIII24x")


@dataclass
class FakeLine:
    """What the kernel knows of a requested line. `level` is physical."""

    level: int = 0
    consumer: str = ""
    flags: int = 0
    debounce_us: int = 0
    opened_at: int | None = None
    history: list[int] = field(default_factory=list)
    requests: int = 0
    write_end: int = -1
    used: bool = False


class FakeChip:
    def __init__(self, path: Path, label: str, lines: int) -> None:
        self.path, self.label = path, label
        self.lines = [FakeLine() for _ in range(lines)]
        self.interrupts = True

    def edge(self, offset: int, level: int, stamp_ns: int) -> None:
        """A level change that the kernel reports."""
        line = self.lines[offset]
        line.level = level
        if line.flags & (RISING if level else FALLING):
            os.write(line.write_end, EVENT.pack(stamp_ns, 1 if level else 2, offset, 0, 0))


@dataclass
class FakeWatchdog:
    """A watchdog's driver. What was written to the device is in its node."""

    path: Path
    options: int = 0x8180  # takes a time-out, pets and magic close
    boot_status: int | None = 0  # None: the driver has no such call
    longest_s: int | None = 300  # None: the time-out is fixed
    timeout_s: int = 30

    def written(self) -> bytes:
        return self.path.read_bytes()

    def ioctl(self, request: int, raw: memoryview) -> None:
        if request == GET_SUPPORT:
            struct.pack_into("=II32s", raw, 0, self.options, 1, b"fake")
        elif request == GET_TIMEOUT:
            struct.pack_into("=i", raw, 0, self.timeout_s)
        elif request == GET_BOOT_STATUS and self.boot_status is not None:
            struct.pack_into("=i", raw, 0, self.boot_status)
        elif request == SET_TIMEOUT and self.longest_s is not None:
            self._set(struct.unpack_from("=i", raw)[0])
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _set(self, timeout_s: int) -> None:
        if self.longest_s is None or timeout_s > self.longest_s:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.timeout_s = timeout_s


I2cMessage = tuple[int, bool, bytes]
I2cDevice = Callable[[list[I2cMessage]], list[bytes]]


class FakeKernel:
    """Install with the `kernel` fixture."""

    def __init__(self, root: Path) -> None:
        self.dev, self.sys = root / "dev", root / "sys" / "bus"
        self.dev.mkdir(parents=True)
        self.chips: dict[str, FakeChip] = {}
        self.i2c: dict[str, I2cDevice] = {}
        self.spi: dict[str, Callable[[bytes], bytes]] = {}
        self.watchdogs: dict[str, FakeWatchdog] = {}
        self._lines: dict[int, FakeLine] = {}

    def add_chip(self, label: str, lines: int, usb_serial: str = "") -> FakeChip:
        name = f"gpiochip{len(self.chips)}"
        chip = self.chips[name] = FakeChip(self._node("gpio", name, usb_serial), label, lines)
        return chip

    def add_i2c(self, name: str, device: I2cDevice, usb_serial: str = "") -> Path:
        self.i2c[name] = device
        return self._node("i2c", name, usb_serial)

    def add_spi(self, name: str, device: Callable[[bytes], bytes]) -> Path:
        self.spi[name] = device
        return self._node("spidev", name, "")

    def add_watchdog(self) -> FakeWatchdog:
        name = f"watchdog{len(self.watchdogs)}"
        (self.dev / name).touch()
        made = self.watchdogs[name] = FakeWatchdog(self.dev / name)
        return made

    def _node(self, kind: str, name: str, usb_serial: str) -> Path:
        (self.dev / name).touch()
        usb = self.sys.parent / "devices" / f"usb-{usb_serial or name}"
        hid = usb / "0003:10C4:EA90.0001"
        (hid / name).mkdir(parents=True)
        (hid / "serial").write_text("\n")  # the driver's own attribute, which is not the adapter's
        if usb_serial:
            (usb / "idVendor").write_text("10c4\n")
            (usb / "serial").write_text(f"{usb_serial}\n")
        (self.sys / kind / "devices").mkdir(parents=True, exist_ok=True)
        (self.sys / kind / "devices" / name).symlink_to(hid / name)
        return self.dev / name

    def ioctl(self, fd: int, request: int, arg: Any = 0, mutate: bool = True) -> int:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name.startswith("pipe:"):
            self._line_ioctl(self._lines[fd], request, memoryview(arg).cast("B"))
        elif name in self.chips:
            self._chip_ioctl(self.chips[name], request, memoryview(arg).cast("B"))
        elif name in self.watchdogs:
            self.watchdogs[name].ioctl(request, memoryview(arg).cast("B"))
        elif request == I2C_FUNCS and name in self.i2c:
            arg[0] = 1
        elif request == I2C_RDWR and name in self.i2c:
            self._i2c(self.i2c[name], arg)
        elif request == SPI_MESSAGE and name in self.spi:
            answer = self.spi[name](ctypes.string_at(arg.tx_buf, arg.len))
            ctypes.memmove(arg.rx_buf, answer, arg.len)
        elif name not in self.spi:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return 0

    @staticmethod
    def _i2c(device: I2cDevice, transfer: Any) -> None:
        messages = [transfer.msgs[at] for at in range(transfer.nmsgs)]
        answers = iter(device([(m.addr, bool(m.flags & 1), bytes(m.buf[: m.len])) for m in messages]))
        for message in messages:
            if message.flags & 1:
                ctypes.memmove(message.buf, next(answers), message.len)

    def _chip_ioctl(self, chip: FakeChip, request: int, raw: memoryview) -> None:
        if request == GET_CHIP:
            struct.pack_into("=32s32sI", raw, 0, chip.path.name.encode(), chip.label.encode(), len(chip.lines))
        elif request == GET_LINE_INFO:
            line = chip.lines[struct.unpack_from("=I", raw, 64)[0]]
            struct.pack_into("=32s", raw, 32, line.consumer.encode())
            struct.pack_into("=Q", raw, 72, int(line.used) | line.flags)
        else:
            assert request == GET_LINE
            self._request(chip, raw)

    def _request(self, chip: FakeChip, raw: memoryview) -> None:
        offset = struct.unpack_from("=I", raw, 0)[0]
        if offset >= len(chip.lines):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        line = chip.lines[offset]
        if line.used:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        line.consumer = bytes(raw[256:288]).split(b"\0")[0].decode()
        line.flags, attributes = struct.unpack_from("=QI", raw, 288)
        line.used, line.requests = True, line.requests + 1
        if line.flags & OUTPUT:
            assert attributes == 1
            line.level = line.opened_at = struct.unpack_from("=Q", raw, 288 + 32 + 8)[0]
        read_end, line.write_end = os.pipe()
        self._lines[read_end] = line
        struct.pack_into("=i", raw, 592 - 4, read_end)

    @staticmethod
    def _chip_has_interrupts(chips: dict[str, FakeChip], line: FakeLine) -> bool:
        return all(chip.interrupts for chip in chips.values() if any(one is line for one in chip.lines))

    def _line_ioctl(self, line: FakeLine, request: int, raw: memoryview) -> None:
        if request == GET_VALUES:
            struct.pack_into("=Q", raw, 0, line.level ^ bool(line.flags & ACTIVE_LOW))
        elif request == SET_VALUES:
            assert line.flags & OUTPUT
            line.level = struct.unpack_from("=Q", raw, 0)[0] & 1
            line.history.append(line.level)
        else:
            assert request == SET_CONFIG
            if not self._chip_has_interrupts(self.chips, line):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            flags, attributes = struct.unpack_from("=QI", raw, 0)
            attribute, value, mask = struct.unpack_from("=I4xI4xQ", raw, 32)
            assert (attributes, attribute, mask) in ((1, 3, 1), (0, 0, 0))
            edges_added = flags & (RISING | FALLING) > line.flags & (RISING | FALLING)
            assert not (line.debounce_us and value and edges_added), "uninitialised kfifo in older kernels"
            line.flags, line.debounce_us = flags, value

    @staticmethod
    def released(line: FakeLine) -> bool:
        """Whether the process has closed its descriptor of the line: the writer's end then hangs up."""
        poller = select.poll()
        poller.register(line.write_end, 0)
        return any(event & select.POLLERR for _, event in poller.poll(0))

    def close(self) -> None:
        for line in self._lines.values():
            os.close(line.write_end)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    made = FakeKernel(tmp_path / "machine")
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    monkeypatch.setattr(gpiochip, "DEV", made.dev)
    monkeypatch.setattr(gpiochip, "SYS", made.sys)
    yield made
    made.close()
    gc.collect()
