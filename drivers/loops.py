"""The section in which the sampler publishes the 4-20 mA loops, and its reader.

A loop that cannot be read is nan at once; the stamp of its last good sample stays, so that its age grows.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from .section import SectionReader

LOOPS = 8
_PACKED = struct.Struct(f"={LOOPS}d{LOOPS}Q{LOOPS}Q")
FILE, SECTION = "sampler", "loops"
LAYOUT = {SECTION: _PACKED.size, "events": 4096}


class Samples(NamedTuple):
    """One round over all loops; a loop that the board does not have is nan, never good and without errors."""

    ma: tuple[float, ...]
    good_ns: tuple[int, ...]  # CLOCK_MONOTONIC of the last good sample, 0 = never
    errors: tuple[int, ...]  # rounds without a value since the sampler started


NO_SAMPLES = Samples((float("nan"),) * LOOPS, (0,) * LOOPS, (0,) * LOOPS)


def pack(samples: Samples) -> bytes:
    """The section's payload."""
    return _PACKED.pack(*samples.ma, *samples.good_ns, *samples.errors)


def unpack(payload: bytes) -> Samples:
    """Raises struct.error when the payload is not of this kind."""
    values = _PACKED.unpack(payload)
    return Samples(values[:LOOPS], values[LOOPS : 2 * LOOPS], values[2 * LOOPS :])


class LoopsReader:
    """What the sampler published in `directory`. Before its first round every loop is nan and stamped 0."""

    def __init__(self, directory: Path) -> None:
        self._section = SectionReader(directory / f"{FILE}.img", LAYOUT, SECTION)
        self._sequence, self._stamp_ns, self._samples = 0, 0, NO_SAMPLES

    def samples(self) -> tuple[Samples, int]:
        """The newest round and the CLOCK_MONOTONIC ns of its start; unpacked only when it is new."""
        found = self._section.read()
        if found is not None and found.sequence != self._sequence:
            self._samples = unpack(found.payload)
            self._sequence, self._stamp_ns = found.sequence, found.stamp_ns
        return self._samples, self._stamp_ns

    def loops(self) -> tuple[tuple[float, ...], int]:
        """Loop currents in mA, and when they were sampled."""
        samples, stamp_ns = self.samples()
        return samples.ma, stamp_ns
