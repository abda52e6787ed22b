"""The grid functions in the register image: models 703 and 711, and the power limit of 704.

What is written there goes to the controller as one Grid. Written values live in the process image: a server that only
restarts resumes them, after a boot the configuration counts again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Set
from typing import get_type_hints

from drivers.section import SectionWriter
from statemachine.signals import Grid

from . import registers
from .image import GRID, Status
from .sunspec import Adoption

SETS = {
    "DbOf": ("db_of_hz", 1.0), "DbUf": ("db_uf_hz", 1.0), "KOf": ("k_of", 1.0), "KUf": ("k_uf", 1.0),
    "RspTms": ("response_s", 1.0), "PMin": ("p_min_pu", 100.0),
}  # fmt: skip
"""Point of a droop set -> field of Grid, and what a unit of it is in the register."""
ALLOWED = {
    "DbOf": (0.017, 1.0), "DbUf": (0.017, 1.0), "KOf": (0.02, 0.05), "KUf": (0.02, 0.05), "RspTms": (0.2, 10.0),
    "PMin": (-100.0, 100.0),
}  # fmt: skip
"""IEEE 1547-2018 table 24, category III: what a set must keep to when it is adopted."""
_WRITTEN = {
    "service_permitted": ("ES", 1.0), "v_low_pu": ("ESVLo", 100.0), "v_high_pu": ("ESVHi", 100.0),
    "hz_low": ("ESHzLo", 1.0), "hz_high": ("ESHzHi", 1.0), "delay_s": ("ESDlyTms", 1.0), "ramp_s": ("ESRmpTms", 1.0),
    "limit_enabled": ("WMaxLimPctEna", 1.0), "limit_pu": ("WMaxLimPct", 100.0),
    "limit_revert_enabled": ("WMaxLimPctEnaRvrt", 1.0), "limit_revert_pu": ("WMaxLimPctRvrt", 100.0),
    "limit_revert_s": ("WMaxLimPctRvrtTms", 1.0),
    "droop_enabled": ("711.Ena", 1.0), "droop_revert_s": ("711.RvrtTms", 1.0), "droop_revert_set": ("711.RvrtCtl", 1.0),
    **{field: (f"Ctl1.{point}", unit) for point, (field, unit) in SETS.items()},
    **{f"next_{field}": (f"Ctl2.{point}", unit) for point, (field, unit) in SETS.items()},
}  # fmt: skip
"""Field of Grid -> its register, and what a unit of it is there."""
POINTS = frozenset({name for name, _ in _WRITTEN.values()} | {"AdptCtlReq"})
"""Registers of the grid functions."""
_KINDS = get_type_hints(Grid)
_CONFIGURED = ("hz_low", "hz_high", "delay_s", "ramp_s")
_DROOP_GROUP = frozenset({"711.Ena", "AdptCtlReq", "711.RvrtTms", "711.RvrtCtl"})
_LIMIT_GROUP = frozenset(registers.LIMIT_GROUP)


class GridFunctions:
    """Works on the server's register image. `limit` and `droop` count the accepted writes to each group."""

    def __init__(self, image: bytearray, section: SectionWriter) -> None:
        self._image, self._section = image, section
        self._limit = self._droop = 1
        self._followed = (0, 0)  # versions of limit and droop whose reversion the registers show
        self._defaults: Grid | None = None
        self._resumed = self._resume()
        self._changed = True

    def _resume(self) -> bool:
        try:
            last = GRID.unpack(self._section.last() or b"")
        except struct.error:
            return False
        self._put(last, _WRITTEN)
        self._limit, self._droop = last.limit_version, last.droop_version
        self._followed = 0, last.droop_followed
        return True

    def _put(self, values: Grid, fields: Iterable[str]) -> None:
        for field in fields:
            name, unit = _WRITTEN[field]
            registers.put(self._image, name, getattr(values, field) * unit)

    def configure(self, defaults: Grid) -> None:
        """Takes the configuration's values where it is new; what a predecessor was told stays."""
        before, self._defaults = self._defaults, defaults
        if before != defaults and not (before is None and self._resumed):
            self._put(defaults, _CONFIGURED)
            self._changed = True

    def took(self, touched: Set[str]) -> None:
        """A write was accepted and stands in the image."""
        self._changed |= not touched.isdisjoint(POINTS)
        if "AdptCtlReq" in touched:
            self._adopt(int(registers.get(self._image, "AdptCtlReq")))
        self._limit += not touched.isdisjoint(_LIMIT_GROUP)
        self._droop += not touched.isdisjoint(_DROOP_GROUP)

    def _adopt(self, number: int) -> None:
        adopted = number == 1 or (number == 2 and all(self._allowed(point) for point in SETS))
        if adopted:
            for point in SETS:
                registers.put(self._image, f"Ctl1.{point}", registers.get(self._image, f"Ctl{number}.{point}"))
        registers.put(self._image, "AdptCtlRslt", Adoption.COMPLETED if adopted else Adoption.FAILED)

    def _allowed(self, point: str) -> bool:
        low, high = ALLOWED[point]
        return low <= round(registers.get(self._image, f"Ctl2.{point}"), 6) <= high

    def follow(self, status: Status | None) -> bool:
        """Puts the values after a reversion into the registers. True when there was one."""
        if status is None:
            return False
        limit_over = status.limit_reverted == self._limit != self._followed[0]
        droop_over = status.droop_reverted == self._droop != self._followed[1]
        if limit_over:
            for name in ("WMaxLimPctEna", "WMaxLimPct"):
                registers.put(self._image, name, registers.get(self._image, f"{name}Rvrt"))
            self._followed = self._limit, self._followed[1]
        if droop_over:
            self._adopt(int(registers.get(self._image, "711.RvrtCtl")))
            self._followed = self._followed[0], self._droop
        self._changed |= limit_over or droop_over
        return limit_over or droop_over

    def grid(self) -> Grid:
        """What the registers spell."""
        values = {
            field: _KINDS[field](registers.get(self._image, name) / unit) for field, (name, unit) in _WRITTEN.items()
        }
        return Grid(limit_version=self._limit, droop_version=self._droop, droop_followed=self._followed[1], **values)

    def publish(self) -> None:
        """To the controller, when something changed."""
        if self._changed:
            self._changed = False
            self._section.publish(GRID.pack(*self.grid()))
