"""What is published, into the register image: a point is encoded when it is read and its source is another one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from drivers.modbus.point import CODERS, UNIMPLEMENTED

from . import registers
from .registers import BANK_FIRST, BASE, Row, Sources


class _Encoder(NamedTuple):
    """How one published point gets into the register image."""

    group: int  # of Sources._fields
    pack_into: Callable[..., None]
    offset: int
    value: Callable[[Sources], Any]
    scale: float
    bottom: float
    top: float
    unimplemented: int


def _encoder(row: Row) -> _Encoder:
    point = row.point
    signed, bits = point.type in ("int16", "int32"), 16 * point.count
    top = (1 << bits - 1) - 1 if signed else (1 << bits) - 1
    assert row.value is not None
    return _Encoder(
        Sources._fields.index(row.group),
        CODERS[point.type].pack_into,
        2 * (point.address - BASE),
        row.value,
        point.scale,
        -top if signed else 0,
        top,
        UNIMPLEMENTED[point.type],
    )


_ROWS = [row for row in registers.ROWS if row.value is not None and row.point.address < BANK_FIRST]
_PLAN = [_encoder(row) for row in _ROWS]
"""Up to model 803, by address; what is behind it has no fixed place."""
_STARTS = [2 * (row.point.address - BASE) for row in _ROWS]
_ENDS = [2 * (row.point.end - BASE) for row in _ROWS]
_STATUS = Sources._fields.index("status")
"""Some of its points also say what is our own."""


class Published:
    """Counts what is new of each group of `Sources`, and for every point the count that it shows."""

    def __init__(self) -> None:
        self._changed, self._encoded = [1] * len(Sources._fields), [0] * len(_PLAN)

    def changed(self, groups: Iterable[str]) -> None:
        """These sources are others than before."""
        for group in groups:
            self._changed[Sources._fields.index(group)] += 1
            if group == "own":
                self._changed[_STATUS] += 1

    def encode(self, image: bytearray, sources: Sources, first: int, end: int) -> None:
        """Brings the bytes from `first` to `end` of the register image up to date."""
        changed, encoded = self._changed, self._encoded
        for at in range(bisect_right(_ENDS, first), bisect_left(_STARTS, end)):
            group, pack_into, offset, value, scale, bottom, top, unimplemented = _PLAN[at]
            if encoded[at] == changed[group]:
                continue
            encoded[at] = changed[group]
            number = value(sources)
            if number != number:
                pack_into(image, offset, unimplemented)
            else:
                pack_into(image, offset, round(min(top, max(bottom, number / scale))))
