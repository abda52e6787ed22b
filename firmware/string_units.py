"""Models 803 to 805: the bank, and every string, module and cell, read straight from the aggregator's sections.

String n is unit id 100 + n with a SunSpec map of its own: one map from 40000 on has no room for the cells of a large
rack. An image is made when it is read and a new poll is there, at most once a poll. Nothing in it can be written.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from drivers.modbus.point import UNIMPLEMENTED
from drivers.modbus.session import ILLEGAL_ADDRESS, ModbusError
from drivers.profile import cell_bits

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

Registers = list[int]
_NO_VOLTS, _NO_CELSIUS = UNIMPLEMENTED["uint16"], UNIMPLEMENTED["int16"]
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
    """A complete poll, a number a cell, the strings one behind the other."""

    volts: Sequence[int]  # mV
    celsius: Sequence[int]  # 0.1 degC
    balancing: Sequence[int]  # 1 or 0
    strings: list[StringValues]

    def part(self, first: int, count: int) -> _Poll:
        """Only these cells."""
        volts, celsius, balancing = (cells[first : first + count] for cells in self[:3])
        return _Poll(volts, celsius, balancing, self.strings)


class _Spread(NamedTuple):
    """Of the numbers that were measured; places count from 0."""

    high: int
    high_at: int
    low: int
    low_at: int
    mean: int


def _spread(numbers: Sequence[int], nothing: int) -> _Spread | None:
    """`nothing` was not measured; None when that is all there is."""
    measured = [number for number in numbers if number != nothing] if nothing in numbers else numbers
    if not measured:
        return None
    high, low = max(measured), min(measured)
    return _Spread(high, numbers.index(high), low, numbers.index(low), round(sum(measured) / len(measured)))


class _Table:
    """Where a table's points are. It stands in the registers once or over and over, each time from a `row` on."""

    def __init__(self, drafts: list[Draft]) -> None:
        rows = placed(drafts, "", 0)
        self._points = {draft.name: row.point for draft, row in zip(drafts, rows, strict=True)}
        self._at = {name: (point.address, point.end - 1) for name, point in self._points.items()}
        self.width = rows[-1].point.end
        self.blank = bytes(encoded(rows))

    def put(self, registers: Registers, row: int, name: str, raw: int) -> None:
        """A raw value."""
        first, last = self._at[name]
        registers[row + last] = raw & 0xFFFF
        if first != last:
            registers[row + first] = raw >> 16 & 0xFFFF

    def put_value(self, registers: Registers, row: int, name: str, value: float) -> None:
        """A value in the point's unit; nan is "not implemented"."""
        self.put(registers, row, name, self.raw(name, value))

    def raw(self, name: str, value: float) -> int:
        """What `put` takes, for a value in the point's unit."""
        point = self._points[name]
        return point.raw(point.encode(value))

    def put_spread(
        self, registers: Registers, row: int, prefix: str, spread: _Spread | None, place: str = "", each: int = 1
    ) -> None:
        """Extremes and mean, which stay "not implemented" without any; `place` names the registers of what they are in,
        counted from 1, which has `each` of them."""
        if spread is None:
            return
        for suffix, number in (("Max", spread.high), ("Min", spread.low), ("Avg", spread.mean)):
            self.put(registers, row, prefix + suffix, number)
        if place:
            self.put(registers, row, f"{prefix}Max{place}", spread.high_at // each + 1)
            self.put(registers, row, f"{prefix}Min{place}", spread.low_at // each + 1)


_BANK, _BANK_STRING = _Table([*header(803, 0), *BANK]), _Table(BANK_STRING)
_STRING, _STRING_MODULE = _Table([*header(804, 0), *UNIT_STRING]), _Table(STRING_MODULE)
_MODULE, _CELL = _Table([*header(805, 0), *MODULE]), _Table(CELL)
_UNIT_HEAD = STRING_FIRST - BASE
"""Row of model 804."""


class StringUnits:
    """The units behind unit 1, and model 803 of unit 1."""

    def __init__(self, directory: Path | None = None) -> None:
        self._cells = reader("aggregator", "cells", directory)
        self._strings = reader("aggregator", "strings", directory)
        self._sizes, self._fixed = Sizes.of(Site()), False
        self._sequences = (0, 0)
        self._poll: _Poll | None = None
        self._blanks: dict[int, Registers] = {}
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
        registers = blank.copy()
        if poll is not None:
            fill(unit, registers, poll, closed)
        image = struct.pack(f">{len(registers)}H", *registers)
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
        count, packed = n * series, -(-series // 16) * 2
        if len(cells) != 4 * count + n * packed or len(strings) != n * STRING.size:
            return None
        bits = (cell_bits(cells[at : at + packed]) for at in range(4 * count, len(cells), packed))
        return _Poll(
            struct.unpack_from(f">{count}H", cells),
            struct.unpack_from(f">{count}h", cells, 2 * count),
            [of_string >> cell & 1 for of_string in bits for cell in range(series)],
            [STRING.unpack(strings[at : at + STRING.size]) for at in range(0, len(strings), STRING.size)],
        )

    def _blank_bank(self) -> Registers:
        strings, modules, _ = self._sizes
        rows = bank(strings)
        registers = _registers(encoded([*rows, *end(rows[-1].point.end)]))
        _BANK.put(registers, 0, "NStr", strings)
        for string in range(strings):
            _BANK_STRING.put(registers, self._bank_row(string), "StrNMod", modules)
        return registers

    def _blank_unit(self, unit: int) -> Registers:
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
        registers = _registers(b"".join(parts))
        for name, number in (("L", string_length(modules)), ("Idx", string), ("NMod", modules)):
            _STRING.put(registers, _UNIT_HEAD, name, number)
        for module in range(modules):
            group, head = self._module_rows(module)
            _STRING_MODULE.put(registers, group, "ModNCell", cells)
            own_numbers = (("L", module_length(cells)), ("StrIdx", string), ("ModIdx", module + 1), ("NCell", cells))
            for name, number in own_numbers:
                _MODULE.put(registers, head, name, number)
        return registers

    @staticmethod
    def _bank_row(string: int) -> int:
        """Of a string in model 803."""
        return _BANK.width + string * _BANK_STRING.width

    def _module_rows(self, module: int) -> tuple[int, int]:
        """Of a module in model 804, and its model 805, which its cells follow."""
        modules, cells = self._sizes.modules, self._sizes.cells
        first = module_first(modules, cells) - BASE
        group = _UNIT_HEAD + _STRING.width + module * _STRING_MODULE.width
        return group, first + module * (_MODULE.width + cells * _CELL.width)

    def _fill_bank(self, _: int, registers: Registers, poll: _Poll, closed: bool | None) -> None:
        strings, (_n, modules, cells), series = poll.strings, self._sizes, self._sizes.series
        hot = _spread(poll.celsius, _NO_CELSIUS)
        _BANK.put_spread(registers, 0, "ModTmp", hot, "Str", series)
        if hot is not None:
            _BANK.put(registers, 0, "ModTmpMaxMod", hot.high_at // cells % modules + 1)
            _BANK.put(registers, 0, "ModTmpMinMod", hot.low_at // cells % modules + 1)
        for name, values in (("StrV", [s.v for s in strings]), ("StrA", [s.a for s in strings])):
            *numbers, nothing = (_BANK.raw(name + "Max", value) for value in (*values, nan))
            _BANK.put_spread(registers, 0, name, _spread(numbers, nothing), "Str")
        _BANK.put(registers, 0, "NCellBal", sum(poll.balancing))
        online = sum(s.online for s in strings)
        _BANK.put_value(registers, 0, "NStrCon", nan if closed is None else online * closed)
        for string, said in enumerate(strings):
            row, own = self._bank_row(string), poll.part(string * series, series)
            _summary(_BANK_STRING, registers, row, "Str", said, closed)
            _BANK_STRING.put_spread(registers, row, "StrCellV", _spread(own.volts, _NO_VOLTS), "Mod", cells)
            _BANK_STRING.put_spread(registers, row, "StrModTmp", _spread(own.celsius, _NO_CELSIUS), "Mod", cells)

    def _fill_unit(self, unit: int, registers: Registers, poll: _Poll, closed: bool | None) -> None:
        string, (_, modules, cells), series = unit - FIRST_UNIT, self._sizes, self._sizes.series
        said, own = poll.strings[string], poll.part(string * series, series)
        _summary(_STRING, registers, _UNIT_HEAD, "", said, closed)
        _STRING.put_value(registers, _UNIT_HEAD, "V", said.v)
        _STRING.put_value(registers, _UNIT_HEAD, "DoD", 100.0 - said.soc_pct)
        _STRING.put(registers, _UNIT_HEAD, "NCellBal", sum(own.balancing))
        _STRING.put_spread(registers, _UNIT_HEAD, "CellV", _spread(own.volts, _NO_VOLTS), "Mod", cells)
        _STRING.put_spread(registers, _UNIT_HEAD, "ModTmp", _spread(own.celsius, _NO_CELSIUS), "Mod", cells)
        for module in range(modules):
            self._fill_module(registers, *self._module_rows(module), own.part(module * cells, cells))

    @staticmethod
    def _fill_module(registers: Registers, group: int, head: int, own: _Poll) -> None:
        volts, celsius = _spread(own.volts, _NO_VOLTS), _spread(own.celsius, _NO_CELSIUS)
        for table, row, prefix in ((_STRING_MODULE, group, "ModCell"), (_MODULE, head, "Cell")):
            table.put_spread(registers, row, prefix + "V", volts, "Cell")
            table.put_spread(registers, row, prefix + "Tmp", celsius, "Cell")
        if _NO_VOLTS not in own.volts:
            _MODULE.put(registers, head, "V", min((sum(own.volts) + 5) // 10, 0xFFFE))
        _MODULE.put(registers, head, "NCellBal", sum(own.balancing))
        first, cells = head + _MODULE.width, len(own.volts)
        columns = own.volts, [number & 0xFFFF for number in own.celsius], [0] * cells, own.balancing
        for at, column in enumerate(columns):
            registers[first + at : first + cells * _CELL.width : _CELL.width] = column


def _registers(data: bytes | bytearray) -> Registers:
    return [*struct.unpack(f">{len(data) // 2}H", data)]


def _summary(
    table: _Table, registers: Registers, row: int, prefix: str, said: StringValues, closed: bool | None
) -> None:
    """What a string says of itself."""
    for name, value in (
        ("SoC", said.soc_pct),
        ("SoH", said.soh_pct),
        ("A", said.a),
        ("St", nan if closed is None else said.online + 2 * closed),
        ("Evt1", _events(said)),
        ("EvtVnd1", (said.alarm_trip & 0x7FFF) << 16 | said.alarm_stop & 0xFFFF),
        ("EvtVnd2", said.alarm_warn & 0xFFFF),
    ):
        table.put_value(registers, row, prefix + name, value)


def _events(string: StringValues) -> int:
    alarm = _OTHER_ALARM if string.alarm_trip or string.alarm_stop else 0
    return alarm | (_OTHER_WARNING if string.alarm_warn else 0)
