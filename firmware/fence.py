"""Fencing of redundant masters: a frame is taken when its Epoch and CmdSeq are above all that were ever accepted.

Whichever election the masters have gives its winner a higher Epoch than any before. One frame of it, and nothing of the
loser is taken any more, however late it arrives. The highest Epoch is on the disk before its first frame is answered.

When both slots on the disk are damaged the highest Epoch is unknown: commands need an Epoch all the same, and the first
one seen counts. A deposed master may then be taken until the next frame of its successor; to refuse all would lock out
the right one as well, and after a reboot the mode is off, so nothing flows by what is not known.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from statemachine.signals import Why
from statemachine.states import State

from .image import Codec
from .store import Slots


class Fence(NamedTuple):
    """What the frames so far have left."""

    epoch: int = 0  # the highest that was ever accepted
    seq: int = -1  # the CmdSeq accepted last in it; -1 = none since the boot
    fenced: bool = False  # a command needs an Epoch

    def refusal(self, epoch: int, seq: int, state: int) -> Why:
        """Why a frame is not taken; NONE when it can be. Epoch 0 ends the fenced operation."""
        if not epoch:
            return Why.EPOCH_REQUIRED if self.fenced and state != State.SERVICE else Why.NONE
        return Why.NONE if (epoch, seq) > (self.epoch, self.seq) else Why.STALE_EPOCH

    def after(self, epoch: int, seq: int) -> Fence:
        """With this frame accepted. What was the highest stays so when the fenced operation ends."""
        return Fence(epoch, seq, True) if epoch else self._replace(fenced=False)


FENCE = Codec(Fence)


class _Saved(NamedTuple):
    epoch: int
    fenced: int


class FenceStore:
    """The fence in the state directory, without the CmdSeq: after a boot an Epoch goes on with any."""

    def __init__(self, directory: Path) -> None:
        self._slots = Slots(directory, "fence", _Saved)

    def load(self) -> tuple[Fence, bool]:
        """(fence, damaged)."""
        saved, damaged = self._slots.load()
        return (Fence(fenced=damaged) if saved is None else Fence(saved.epoch, fenced=bool(saved.fenced))), damaged

    def save(self, fence: Fence) -> None:
        """Returns when it is on the disk. Raises OSError."""
        self._slots.save(_Saved(fence.epoch, int(fence.fenced)))


def left_over(payload: bytes | None) -> Fence | None:
    """What a predecessor of this boot left in the process image."""
    try:
        return FENCE.unpack(payload or b"")
    except struct.error:
        return None
