"""Models 803 to 805: the bank, and every string, module and cell, read straight from the aggregator's sections.

String n is unit id 100 + n with a SunSpec map of its own: one map from 40000 on has no room for the cells of a large
rack. An image is made when it is read and a new poll is there, at most once a poll, with numpy. Nothing in it can be
written.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from drivers.modbus.point import UNIMPLEMENTED
from drivers.modbus.session import ILLEGAL_ADDRESS, ModbusError

from .config import Site
from .image import STRING, Status, StringValues, reader
from .models.battery import BANK, BANK_STRING, bank
from .models.common import COMMON
from .models.draft import BASE, Draft, encoded, end, header, marker, placed
from .models.string_units import (
    CELL,
    FIRST_UNIT,
    MODULE,
    STRING_FIRST,
    STRING_MODULE,
    module_first,
    module_length,
    string_length,
)
from .models.string_units import STRING as UNIT_STRING

STALE_NS = 3_000_000_000
"""Older cells are not shown: their points read "not implemented"."""

W = TypeVar("W", bound=Callable[..., None])
Ints = NDArray[np.int64]
Registers = NDArray[np.uint16]  # big-endian
_REGISTER = np.dtype(">u2")
_NOTHING = np.array([UNIMPLEMENTED["uint16"], UNIMPLEMENTED["int16"]]).reshape(2, 1, 1)
"""What a cell's voltage and temperature are where they were not measured."""
_NEG, _POS = 1, 2  # bits of Status.feedback
_OTHER_ALARM, _OTHER_WARNING = 1 << 25, 1 << 26


class Sizes(NamedTuple):
    """Of the rack: every address behind 40648 and on the string units hangs on them."""

    strings: int
    modules: int  # in a string
    cells: int  # in a module

    @property
    def series(self) -> int:
        """Cells in a string."""
        return self.modules * self.cells

    @staticmethod
    def of(site: Site) -> Sizes:
        return Sizes(site.strings, site.modules_per_string, site.cells_per_module)


class _Poll(NamedTuple):
    """A complete poll, the strings one behind the other."""

    cells: Ints  # (2, strings, series): mV and 0.1 degC
    bad: NDArray[np.bool_]  # not measured
    balancing: NDArray[np.bool_]  # (strings, series)
    strings: list[StringValues]


class _Spread(NamedTuple):
    """Of each row, over the cells that were measured; places count from 0."""

    high: Ints
    high_at: Ints
    low: Ints
    low_at: Ints
    mean: Ints
    none: NDArray[np.bool_]  # nothing in the row was measured

    def part(self, row: int) -> _Spread:
        """That of one row of the first axis."""
        return _Spread(*(values[row] for values in self))


def _spread(raw: Ints, bad: NDArray[np.bool_]) -> _Spread:
    """Along the last axis."""
    high = low = summed = raw
    good = np.full(raw.shape[:-1], raw.shape[-1])
    if bad.any():
        high, low, summed = np.where(bad, -0x10000, raw), np.where(bad, 0x10000, raw), np.where(bad, 0, raw)
        good -= bad.sum(axis=-1)
    mean = np.rint(summed.sum(axis=-1) / np.maximum(good, 1)).astype(np.int64)
    return _Spread(high.max(axis=-1), high.argmax(axis=-1), low.min(axis=-1), low.argmin(axis=-1), mean, good == 0)


class _Table:
    """The registers of a table, one row a repetition: `table["SoC"] = ...` sets a point in every row."""

    def __init__(self, drafts: list[Draft]) -> None:
        rows = placed(drafts, "", 0)
        self._points = {draft.name: row.point for draft, row in zip(drafts, rows, strict=True)}
        self.width = rows[-1].point.end
        self.blank = bytes(encoded(rows))

    def put(self, rows: Registers, name: str, values: Ints | int) -> None:
        """Raw values, one a row."""
        point, column = self._points[name], np.asarray(values, np.int64)
        if point.count == 2:
            rows[:, point.address] = column >> 16
        rows[:, point.end - 1] = column

    def put_values(self, rows: Registers, name: str, values: Iterable[float]) -> None:
        """Values in the point's unit; nan is "not implemented"."""
        self.put(rows, name, self.raw(name, values))

    def raw(self, name: str, values: Iterable[float]) -> Ints:
        """What `put` takes, for values in the point's unit."""
        point = self._points[name]
        return np.array([point.raw(point.encode(value)) for value in values], np.int64)

    def put_spread(self, rows: Registers, prefix: str, spread: _Spread, place: str = "", each: int = 1) -> None:
        """Its extremes and mean; `place` names the registers of what they are in, which has `each` of them."""
        nothing = UNIMPLEMENTED[self._points[prefix + "Max"].type]
        for suffix, value in (("Max", spread.high), ("Min", spread.low), ("Avg", spread.mean)):
            self.put(rows, prefix + suffix, np.where(spread.none, nothing, value))
        if place:
            self.put_number(rows, f"{prefix}Max{place}", spread.high_at // each, spread.none)
            self.put_number(rows, f"{prefix}Min{place}", spread.low_at // each, spread.none)

    def put_number(self, rows: Registers, name: str, places: Ints, none: NDArray[np.bool_]) -> None:
        """Numbers of what is counted from 1."""
        self.put(rows, name, np.where(none, UNIMPLEMENTED["uint16"], places + 1))


_BANK, _BANK_STRING = _Table([*header(803, 0), *BANK]), _Table(BANK_STRING)
_STRING, _STRING_MODULE = _Table([*header(804, 0), *UNIT_STRING]), _Table(STRING_MODULE)
_MODULE, _CELL = _Table([*header(805, 0), *MODULE]), _Table(CELL)


class StringUnits:
    """The units behind unit 1, and model 803 of unit 1."""

    def __init__(self, directory: Path | None = None) -> None:
        self._cells = reader("aggregator", "cells", directory)
        self._strings = reader("aggregator", "strings", directory)
        self._sizes, self._fixed = Sizes.of(Site()), False
        self._sequences = (0, 0)
        self._poll: _Poll | None = None
        self._blanks: dict[int, bytes] = {}
        self._images: dict[int, tuple[_Poll | None, bool | None, bytes]] = {}

    def configure(self, sizes: Sizes) -> None:
        """The first sizes hold until the process ends: clients have read the map."""
        if not self._fixed:
            self._sizes, self._fixed = sizes, True
            self._blanks.clear()
            self._images.clear()

    def serves(self, unit: int) -> bool:
        return FIRST_UNIT <= unit < FIRST_UNIT + self._sizes.strings

    def identity(self, unit: int, own: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """That of the appliance, with the string named."""
        return {**own, 4: own[4] + f", string {unit - FIRST_UNIT + 1}".encode()}

    @property
    def counter(self) -> Sequence[int]:
        """Of polls, in its only element; the strings are what is published last."""
        return self._strings.counter

    def read(self, unit: int, address: int, count: int, status: Status | None) -> bytes:
        """Raises ModbusError."""
        image = self._image(unit, status, self._fill_unit)
        if address < BASE or 2 * (address + count - BASE) > len(image):
            raise ModbusError(ILLEGAL_ADDRESS)
        return image[2 * (address - BASE) : 2 * (address + count - BASE)]

    def bank(self, status: Status | None) -> bytes:
        """Model 803 and the end marker."""
        return self._image(0, status, self._fill_bank)

    def _image(
        self, unit: int, status: Status | None, fill: Callable[[int, Registers, _Poll, bool | None], None]
    ) -> bytes:
        closed = None if status is None else status.feedback & (_NEG | _POS) == _NEG | _POS
        poll = self._fresh()
        made = self._images.get(unit)
        if made is not None and made[0] is poll and made[1] is closed:
            return made[2]
        blank = self._blanks.get(unit)
        if blank is None:
            blank = self._blanks[unit] = self._blank_unit(unit) if unit else self._blank_bank()
        if poll is None:
            image = blank
        else:
            registers = np.frombuffer(blank, _REGISTER).copy()
            fill(unit, registers, poll, closed)
            image = registers.tobytes()
        self._images[unit] = poll, closed, image
        return image

    def _fresh(self) -> _Poll | None:
        """The newest poll; None when there is none, it is stale, or it is of a rack of another size."""
        cells, strings = self._cells.read(), self._strings.read()
        if cells is None or strings is None or monotonic_ns() - min(cells.stamp_ns, strings.stamp_ns) > STALE_NS:
            return None
        sequences = cells.sequence, strings.sequence
        if sequences != self._sequences:
            self._sequences, self._poll = sequences, self._decoded(cells.payload, strings.payload)
        return self._poll

    def _decoded(self, cells: bytes, strings: bytes) -> _Poll | None:
        n, series = self._sizes.strings, self._sizes.series
        words = -(-series // 16)
        if len(cells) != 2 * n * (2 * series + words) or len(strings) != n * STRING.size:
            return None
        raw = np.frombuffer(cells, _REGISTER)
        packed = raw[2 * n * series :].reshape(n, words).astype("<u2").view(np.uint8)
        cell_v, cell_c = raw[: n * series], raw[n * series : 2 * n * series].view(">i2")
        values = np.stack([cell_v.astype(np.int64), cell_c.astype(np.int64)]).reshape(2, n, series)
        return _Poll(
            values,
            values == _NOTHING,
            np.unpackbits(packed, axis=1, bitorder="little")[:, :series].astype(np.bool_),
            [STRING.unpack(strings[at : at + STRING.size]) for at in range(0, len(strings), STRING.size)],
        )

    def _blank_bank(self) -> bytes:
        strings, modules, _ = self._sizes
        rows = bank(strings)
        registers = np.frombuffer(encoded([*rows, *end(rows[-1].point.end)]), _REGISTER).copy()
        head, groups = self._bank_parts(registers)
        _BANK.put(head, "NStr", strings)
        _BANK_STRING.put(groups, "StrNMod", modules)
        return registers.tobytes()

    def _blank_unit(self, unit: int) -> bytes:
        string, (_, modules, cells) = unit - FIRST_UNIT + 1, self._sizes
        own: dict[str, float | str] = {
            "Vr": version("ems-edge"),
            "SN": platform.node(),
            "DA": unit,
            "Opt": f"string {string}",
        }
        common = [draft._replace(fixed=own.get(draft.name, draft.fixed)) for draft in COMMON]
        parts = [
            bytes(encoded([marker(BASE), *placed([*header(1, 66), *common], "1", BASE + 2)])),
            _STRING.blank + modules * _STRING_MODULE.blank,
            modules * (_MODULE.blank + cells * _CELL.blank),
            bytes(encoded(end(0))),
        ]
        registers = np.frombuffer(b"".join(parts), _REGISTER).copy()
        head, groups, heads, _ = self._unit_parts(registers)
        for name, value in (("L", string_length(modules)), ("Idx", string), ("NMod", modules)):
            _STRING.put(head, name, value)
        _STRING_MODULE.put(groups, "ModNCell", cells)
        for name, value in (("L", module_length(cells)), ("StrIdx", string), ("NCell", cells)):
            _MODULE.put(heads, name, value)
        _MODULE.put(heads, "ModIdx", np.arange(1, modules + 1))
        return registers.tobytes()

    def _bank_parts(self, registers: Registers) -> tuple[Registers, Registers]:
        """Head of 803 and its strings."""
        head, strings = np.split(registers[:-2], [_BANK.width])
        return head.reshape(1, -1), strings.reshape(-1, _BANK_STRING.width)

    def _unit_parts(self, registers: Registers) -> tuple[Registers, Registers, Registers, Registers]:
        """Head of 804 and its modules; heads of the 805s, and the registers of their cells, one row a module."""
        modules, cells = self._sizes.modules, self._sizes.cells
        first, groups = STRING_FIRST - BASE, STRING_FIRST - BASE + _STRING.width
        after = module_first(modules, cells) - BASE
        models = registers[after:-2].reshape(modules, _MODULE.width + cells * _CELL.width)
        return (
            registers[first:groups].reshape(1, -1),
            registers[groups:after].reshape(modules, _STRING_MODULE.width),
            models[:, : _MODULE.width],
            models[:, _MODULE.width :],
        )

    def _fill_bank(self, _: int, registers: Registers, poll: _Poll, closed: bool | None) -> None:
        head, groups = self._bank_parts(registers)
        strings, (_n, modules, cells) = poll.strings, self._sizes
        hot = _spread(poll.cells[1].reshape(1, -1), poll.bad[1].reshape(1, -1))
        _BANK.put_spread(head, "ModTmp", hot, "Str", self._sizes.series)
        _BANK.put_number(head, "ModTmpMaxMod", hot.high_at // cells % modules, hot.none)
        _BANK.put_number(head, "ModTmpMinMod", hot.low_at // cells % modules, hot.none)
        for name, values in (("StrV", [s.v for s in strings]), ("StrA", [s.a for s in strings])):
            bad = np.isnan([values])
            _BANK.put_spread(head, name, _spread(_BANK.raw(name + "Max", values).reshape(1, -1), bad), "Str")
        _BANK.put(head, "NCellBal", int(poll.balancing.sum()))
        online = sum(s.online for s in strings)
        _BANK.put_values(head, "NStrCon", [nan if closed is None else online * closed])
        _summary(_BANK_STRING, groups, "Str", strings, closed)
        spread = _spread(poll.cells, poll.bad)
        _BANK_STRING.put_spread(groups, "StrCellV", spread.part(0), "Mod", cells)
        _BANK_STRING.put_spread(groups, "StrModTmp", spread.part(1), "Mod", cells)

    def _fill_unit(self, unit: int, registers: Registers, poll: _Poll, closed: bool | None) -> None:
        string, (_, modules, cells) = unit - FIRST_UNIT, self._sizes
        head, groups, heads, all_cells = self._unit_parts(registers)
        measured, bad, balancing = poll.cells[:, string], poll.bad[:, string], poll.balancing[string]
        values = poll.strings[string]
        _summary(_STRING, head, "", [values], closed)
        _STRING.put_values(head, "V", [values.v])
        _STRING.put_values(head, "DoD", [100.0 - values.soc_pct])
        _STRING.put(head, "NCellBal", int(balancing.sum()))
        spread = _spread(measured, bad)
        _STRING.put_spread(head, "CellV", spread.part(0), "Mod", cells)
        _STRING.put_spread(head, "ModTmp", spread.part(1), "Mod", cells)
        measured, bad = measured.reshape(2, modules, cells), bad.reshape(2, modules, cells)
        balancing, spread = balancing.reshape(modules, cells), _spread(measured, bad)
        for table, rows, prefix in ((_STRING_MODULE, groups, "ModCell"), (_MODULE, heads, "Cell")):
            table.put_spread(rows, prefix + "V", spread.part(0), "Cell")
            table.put_spread(rows, prefix + "Tmp", spread.part(1), "Cell")
        sums = np.minimum((measured[0].sum(axis=1) + 5) // 10, 0xFFFE)
        _MODULE.put(heads, "V", np.where(bad[0].any(axis=1), UNIMPLEMENTED["uint16"], sums))
        _MODULE.put(heads, "NCellBal", balancing.sum(axis=1, dtype=np.int64))
        all_cells[:, 0 :: _CELL.width] = measured[0]
        all_cells[:, 1 :: _CELL.width] = measured[1]
        all_cells[:, 2 :: _CELL.width] = 0
        all_cells[:, 3 :: _CELL.width] = balancing


def _summary(table: _Table, rows: Registers, prefix: str, strings: list[StringValues], closed: bool | None) -> None:
    """What the strings say of themselves."""
    table.put_values(rows, prefix + "SoC", [s.soc_pct for s in strings])
    table.put_values(rows, prefix + "SoH", [s.soh_pct for s in strings])
    table.put_values(rows, prefix + "A", [s.a for s in strings])
    table.put_values(rows, prefix + "St", [nan if closed is None else s.online + 2 * closed for s in strings])
    table.put_values(rows, prefix + "Evt1", [_events(s) for s in strings])
    table.put_values(rows, prefix + "EvtVnd1", [(s.alarm_trip & 0x7FFF) << 16 | s.alarm_stop & 0xFFFF for s in strings])
    table.put_values(rows, prefix + "EvtVnd2", [s.alarm_warn & 0xFFFF for s in strings])


def _events(string: StringValues) -> int:
    alarm = _OTHER_ALARM if string.alarm_trip or string.alarm_stop else 0
    return alarm | (_OTHER_WARNING if string.alarm_warn else 0)
