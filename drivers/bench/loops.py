"""The bench's 4-20 mA loops, and the ways a transmitter, its cable and its sampler fail."""

from __future__ import annotations

import random
from enum import IntEnum

SAMPLE_NS = 50_000_000
MA_PER_K = 16.0 / 80.0
"""4..20 mA = -20..60 degC."""
OPEN_MA, SHORT_MA, MOST_MA = 0.0, 24.0, 22.0
SPIKE_K, DRIFT_K_S, NOISE_K = 30.0, 0.1, 0.05


class LoopMode(IntEnum):
    """What a loop shows."""

    NORMAL = 0
    OPEN = 1
    SHORT = 2
    STUCK = 3  # what it showed last
    SPIKE = 4  # one sample 30 K too high, then NORMAL again
    DRIFT = 5  # 0.1 K more each second
    NOISE = 6  # 0.05 K rms


class Loop:
    """One transmitter: `ma` is what it would show without a fault."""

    def __init__(self, seed: int) -> None:
        self.ma = self._shown_ma = 13.0
        self._mode, self._since_ns = LoopMode.NORMAL, 0
        self._noise = random.Random(seed)

    @property
    def mode(self) -> LoopMode:
        """The fault in force."""
        return self._mode

    @mode.setter
    def mode(self, mode: LoopMode) -> None:
        self._mode, self._since_ns = mode, 0

    def sample(self, now_ns: int) -> float:
        """The current in mA as sampled."""
        self._since_ns = self._since_ns or now_ns
        match self._mode:
            case LoopMode.OPEN:
                return OPEN_MA
            case LoopMode.SHORT:
                return SHORT_MA
            case LoopMode.STUCK:
                return self._shown_ma
            case LoopMode.SPIKE:
                self.mode = LoopMode.NORMAL
                return min(MOST_MA, self.ma + SPIKE_K * MA_PER_K)
            case LoopMode.DRIFT:
                self._shown_ma = min(MOST_MA, self.ma + (now_ns - self._since_ns) / 1e9 * DRIFT_K_S * MA_PER_K)
            case LoopMode.NOISE:
                self._shown_ma = max(0.0, self.ma + self._noise.gauss(0.0, NOISE_K * MA_PER_K))
            case _:
                self._shown_ma = self.ma
        return self._shown_ma


class Sampler:
    """All loops, sampled every 50 ms as a real converter is, unless it is silent."""

    def __init__(self) -> None:
        self.loops = [Loop(seed) for seed in range(8)]
        self.silent = False
        self._sampled_ns = -SAMPLE_NS

    def due(self, now_ns: int) -> tuple[int, ...]:
        """The currents in microampere when it is time, else nothing."""
        if self.silent or now_ns - self._sampled_ns < SAMPLE_NS:
            return ()
        self._sampled_ns = now_ns
        return tuple([round(1000.0 * loop.sample(now_ns)) for loop in self.loops])
