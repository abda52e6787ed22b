"""An ADS1115 as its data sheet (SBAS444) describes it, on the fake kernel's I2C bus."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fake_kernel import I2cMessage

RESET = 0x8583
RANGE_V = {0: 6.144, 1: 4.096, 2: 2.048, 3: 1.024, 4: 0.512, 5: 0.256, 6: 0.256, 7: 0.256}


class FakeAds1115:
    """The same chip at every address in `addresses`; `traffic` is what crossed the bus last.

    Voltages of AIN0 to AIN3 are in `volts`, unless `measure` tells that of a channel; by OSError it is not there.
    """

    def __init__(self, measure: Callable[[int], float] | None = None) -> None:
        self.addresses = {0x48, 0x49}
        self.volts = [0.0, 0.0, 0.0, 0.0]
        self._measure = measure or (lambda channel: self.volts[channel])
        self.busy_reads = 0  # how often the configuration still says that a conversion runs
        self.resets = False
        self.fails = False
        self.conversions = 0
        self.traffic: deque[tuple[int, str, bytes]] = deque(maxlen=64)
        self._pointer, self._config, self._result, self._busy = 0, RESET, 0, 0

    def __call__(self, messages: list[I2cMessage]) -> list[bytes]:
        answers = []
        for address, read, data in messages:
            if address not in self.addresses or self.fails:
                raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
            if read:
                answers.append(self._register().to_bytes(2, "big"))
                self.traffic.append((address, "read", answers[-1]))
            else:
                self.traffic.append((address, "write", data))
                self._write(data)
        return answers

    def _write(self, data: bytes) -> None:
        self._pointer = data[0]
        if len(data) == 3 and self._pointer == 1:
            self._config = RESET if self.resets else int.from_bytes(data[1:], "big")
            if self._config & 0x8000 and not self.resets:
                self._convert()

    def _convert(self) -> None:
        mux = self._config >> 12 & 7
        assert mux >= 4, "differential channels are not wired"
        self.conversions += 1
        self._busy = self.busy_reads
        code = round(self._measure(mux - 4) / RANGE_V[self._config >> 9 & 7] * 32768)
        self._result = min(32767, max(-32768, code)) & 0xFFFF

    def _register(self) -> int:
        if self._pointer == 0:
            return self._result
        busy, self._busy = self._busy > 0, max(0, self._busy - 1)
        return self._config & 0x7FFF if busy else self._config | 0x8000
