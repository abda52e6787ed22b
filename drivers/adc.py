"""4-20 mA loops through ADS1115 (I2C) and MCP3208 (SPI), over python-periphery.

A sample either is right or raises; the sampler makes the loop nan at once and counts the error. A converter that fails
is closed and opened again after RETRY_NS, so that an adapter that was pulled and put back is found. Scaling to degC
belongs to the rack's configuration; here a loop is a current in mA.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Protocol

from periphery import I2C, SPI

from . import gpiochip
from .board_file import ADS1115_RANGES_V, AdcSpec, BoardFile
from .loops import LOOPS, Samples

RETRY_NS = 500_000_000

# ADS111x data sheet SBAS444: register pointers (table 8-1), configuration register (table 8-3).
_CONVERSION, _CONFIGURATION = 0, 1
_START_OR_IDLE = 0x8000  # written: start one conversion; read: 1 = no conversion runs
_SINGLE_ENDED_0 = 0x4000  # MUX 100: AIN0 against GND; 101, 110, 111: AIN1 to AIN3
_SINGLE_SHOT = 0x0100
_SPS_860 = 0x00E0
_NO_COMPARATOR = 0x0003
_CONVERSION_S = 1.4e-3  # 1/860 s, clock 10 % slow, wake-up from power-down
_POLL_S = 0.2e-3
_TIMEOUT_NS = 50_000_000

# Linux include/uapi/linux/i2c-dev.h. A stuck bus must not hold the other loops for the usual second.
_I2C_RETRIES, _I2C_TIMEOUT = 0x0701, 0x0702
_BUS_TIMEOUT_10MS = 2


class AdcError(OSError):
    """A sample could not be had; the message names the converter and what it answered."""


class Adc(Protocol):
    """A converter that is open."""

    def volts(self, channel: int) -> float:
        """One sample of a single-ended channel. Raises OSError."""

    def probe(self) -> None:
        """Raises OSError when nothing answers; disturbs no other process that samples."""

    def close(self) -> None: ...


def ads1115_config(channel: int, range_v: float) -> int:
    """Configuration register: start one conversion of a channel against ground at 860 samples/s."""
    gain = ADS1115_RANGES_V.index(range_v) << 9
    return (
        _START_OR_IDLE | _SINGLE_ENDED_0 | channel << 12 | gain | _SINGLE_SHOT | _SPS_860 | _NO_COMPARATOR
    )  # fmt: skip


class Ads1115:
    """16 bit, four channels, single shot: started, waited for, and its configuration read back before the result."""

    def __init__(self, spec: AdcSpec) -> None:
        self._name = f"ads1115 at 0x{spec.address:02x} of {spec.device}"
        self._address, self._range_v = spec.address, spec.range_v
        self._bus = I2C(str(gpiochip.find("i2c", spec.device)))
        with contextlib.suppress(OSError):  # not every adapter can
            fcntl.ioctl(self._bus.fd, _I2C_TIMEOUT, _BUS_TIMEOUT_10MS)
            fcntl.ioctl(self._bus.fd, _I2C_RETRIES, 0)

    def volts(self, channel: int) -> float:
        config = ads1115_config(channel, self._range_v)
        self._transfer(I2C.Message([_CONFIGURATION, config >> 8, config & 0xFF]))
        time.sleep(_CONVERSION_S)
        seen = self._idle(monotonic_ns() + _TIMEOUT_NS)
        if seen | _START_OR_IDLE != config:
            raise AdcError(f"{self._name}: configuration 0x{seen:04x}, expected 0x{config:04x}: was it reset?")
        code = self._register(_CONVERSION)
        return (code - 0x10000 if code & 0x8000 else code) * self._range_v / 32768.0

    def probe(self) -> None:
        self._register(_CONFIGURATION)

    def _idle(self, give_up_ns: int) -> int:
        while not (seen := self._register(_CONFIGURATION)) & _START_OR_IDLE:
            if monotonic_ns() > give_up_ns:
                raise AdcError(f"{self._name}: conversion still runs after {_TIMEOUT_NS // 1_000_000} ms")
            time.sleep(_POLL_S)
        return seen

    def _register(self, pointer: int) -> int:
        answer = I2C.Message([0, 0], read=True)
        self._transfer(I2C.Message([pointer]), answer)
        return answer.data[0] << 8 | answer.data[1]

    def _transfer(self, *messages: I2C.Message) -> None:
        try:
            self._bus.transfer(self._address, list(messages))
        except OSError as error:
            raise AdcError(f"{self._name}: {error}") from error

    def close(self) -> None:
        self._bus.close()


class Mcp3208:
    """12 bit, eight channels. Frame: data sheet DS21298, figure 6-1; SPI mode 0."""

    def __init__(self, spec: AdcSpec) -> None:
        self._name, self._reference_v = f"mcp3208 at {spec.device}", spec.range_v
        self._bus = SPI(str(gpiochip.find("spidev", spec.device)), 0, spec.speed_hz)

    def volts(self, channel: int) -> float:
        try:
            _, high, low = self._bus.transfer([0x06 | channel >> 2, (channel & 3) << 6, 0])
        except OSError as error:
            raise AdcError(f"{self._name}: {error}") from error
        if high & 0x10:
            raise AdcError(f"{self._name}: the null bit is 1: nothing drives MISO")
        return ((high & 0x0F) << 8 | low) * self._reference_v / 4096.0

    def probe(self) -> None:
        self.volts(0)

    def close(self) -> None:
        self._bus.close()


def open_adc(spec: AdcSpec) -> Adc:
    """Raises OSError when bus or device is not there."""
    return Ads1115(spec) if spec.kind == "ads1115" else Mcp3208(spec)


class _Source:
    """One converter and its loops."""

    def __init__(self, name: str, spec: AdcSpec, loops: dict[int, tuple[int, float]]) -> None:
        self.name, self.loops = name, loops
        self.trouble = ""  # what went wrong last; empty while it answers
        self._spec = spec
        self._adc: Adc | None = None
        self._retry_ns = 0

    def sample(self, now_ns: int) -> Iterator[tuple[int, float]]:
        """Number and mA of each loop, up to the first error."""
        if now_ns < self._retry_ns:
            return
        try:
            self._adc = self._adc or open_adc(self._spec)
            for number, (channel, shunt_ohm) in self.loops.items():
                yield number, self._adc.volts(channel) / shunt_ohm * 1000.0
        except OSError as error:
            self._fail(str(error), now_ns)
        else:
            self.trouble = ""

    def _fail(self, trouble: str, now_ns: int) -> None:
        self.trouble, self._retry_ns = trouble, now_ns + RETRY_NS
        self.close()

    def close(self) -> None:
        if self._adc is not None:
            with contextlib.suppress(OSError):
                self._adc.close()
        self._adc = None


class LoopSampler:
    """All loops of a board. `tell` hears once when a converter fails and once when it answers again."""

    def __init__(self, board: BoardFile, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._sources = [
            _Source(name, spec, {n: (lo.channel, lo.shunt_ohm) for n, lo in board.loops.items() if lo.adc == name})
            for name, spec in board.adcs.items()
        ]
        self._good_ns, self._errors = [0] * LOOPS, [0] * LOOPS

    def round(self) -> Samples:
        """Samples every loop once. A converter's remaining loops are nan after its first error."""
        ma = [float("nan")] * LOOPS
        for source in self._sources:
            before = source.trouble
            for number, current_ma in source.sample(monotonic_ns()):
                ma[number - 1], self._good_ns[number - 1] = current_ma, monotonic_ns()
            self._count(source, ma)
            if bool(source.trouble) != bool(before):
                self._tell(f"converter {source.name}: {source.trouble or 'answers again'}")
        return Samples(tuple(ma), tuple(self._good_ns), tuple(self._errors))

    def _count(self, source: _Source, ma: list[float]) -> None:
        for number in source.loops:
            self._errors[number - 1] += ma[number - 1] != ma[number - 1]

    def close(self) -> None:
        """Lets go of the buses."""
        for source in self._sources:
            source.close()
