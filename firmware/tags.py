"""Every point of a whole rack under a name of its own: what a SCADA system imports. `ems-tool --tags` prints it.

docs/modbus-map.csv has one module and one cell in place of all, for a rack of the default size. Here every string,
module and cell is listed, for the sizes that an appliance really has.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

from drivers.modbus.point import Point

from .models.battery import BANK_FIRST, bank
from .models.common import COMMON
from .models.draft import BASE, Draft, Row, end, header, marker, placed
from .models.string_units import (
    CELL,
    FIRST_UNIT,
    MODULE,
    STRING,
    STRING_FIRST,
    STRING_MODULE,
    module_first,
    module_length,
    string_length,
)
from .models.update import update_model
from .registers import BESIDE, ROWS


def tags(strings: int, modules: int, cells: int) -> Iterator[Point]:
    """Unit 1, then the string units, ascending; without reserve. `modules` in a string, `cells` in a module."""
    yield from _shown(row for row in ROWS if row.point.address < BANK_FIRST)
    last = bank(strings)
    after = update_model(last[-1].point.end)
    yield from _shown([*last, *after, *end(after[-1].point.end)])
    yield from BESIDE
    for string in range(1, strings + 1):
        for point in _string(FIRST_UNIT - 1 + string, modules, cells):
            yield replace(point, name=f"string{string}.{point.name}")


def _shown(rows: Iterable[Row]) -> Iterator[Point]:
    return (row.point for row in rows if not row.reserve)


def _string(unit: int, modules: int, cells: int) -> Iterator[Point]:
    rows = [marker(BASE, unit), *placed([*header(1, 66), *COMMON], "1", BASE + 2, unit)]
    rows += placed([*header(804, string_length(modules)), *STRING], "804", STRING_FIRST, unit)
    yield from _shown(rows)
    at = rows[-1].point.end
    for module in range(1, modules + 1):
        at = yield from _named(STRING_MODULE, f"module{module}.804", at, unit)
    for module in range(1, modules + 1):
        assert at == module_first(modules, cells, module - 1)
        at = yield from _named([*header(805, module_length(cells)), *MODULE], f"module{module}.805", at, unit)
        for cell in range(1, cells + 1):
            at = yield from _named(CELL, f"module{module}.cell{cell}", at, unit)
    yield from _shown(end(at, unit))


def _named(drafts: Iterable[Draft], label: str, at: int, unit: int) -> Generator[Point, None, int]:
    """Returns the first address behind them."""
    rows = placed(drafts, label, at, unit)
    yield from _shown(rows)
    return rows[-1].point.end
