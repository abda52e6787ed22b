"""The register map of unit 1: one table. Server, tools and docs/modbus-map.* are made from it; addresses are final.

SunSpec at PDU address 40000, big-endian, high word first, static scale factors sized for a rack of 5 MW and 1,500 V. +
is discharge, - is charge; a limit has no sign. A point whose source is missing or stale reads SunSpec's "not
implemented" value, never an old number. The settings of model 702 are read-only: they are what limits.conf says. Model
803 has a length that follows the number of strings: string n begins at 40676 + 32 (n - 1). Behind it is vendor model
64991, updates, at 40676 + 32 NStr. Every string, module and cell is in models 804 and 805 of the string units.

Beside the SunSpec chain, at 42000 whatever the number of strings, is the commissioning block.

A name that more than one SunSpec model uses carries its model as in `802.SoC`; vendor points never do.
"""

from __future__ import annotations

from itertools import pairwise
from math import nan

from drivers.modbus.point import CODERS, Point
from statemachine.ratings import nominal_v, rated_charge_w, rated_discharge_w

from .models.ac import CAPACITY, CONTROLS, LIMIT_GROUP, MAX_W, MEASUREMENT, WSET_GROUP
from .models.battery import BANK_FIRST, BATTERY, DC, STORAGE, STRINGS, bank
from .models.commissioning import COMMISSIONING, COMMISSIONING_END, COMMISSIONING_FIRST
from .models.common import COMMON
from .models.control import DER_CONTROL
from .models.draft import (
    BASE,
    UNIT,
    VENDOR_MODEL,
    Own,
    Row,
    Sources,
    encoded,
    end,
    marker,
    model,
)
from .models.grid import DROOP, ENTER_SERVICE
from .models.update import UPDATE_LENGTH, UPDATE_MODEL, update_model
from .models.vendor import VENDOR, VENDOR_FIRST, VENDOR_LENGTH

__all__ = [
    "AT", "BANK_FIRST", "BASE", "BESIDE", "END", "LIMIT_GROUP", "MAX_W", "POINT", "POINTS", "ROWS", "UNIT",
    "UPDATE_LENGTH", "UPDATE_MODEL", "VENDOR_FIRST", "VENDOR_LENGTH", "VENDOR_MODEL", "WSET_GROUP", "Own", "Row",
    "Sources", "covering", "get", "image", "nominal_v", "put", "rated_charge_w", "rated_discharge_w",
]  # fmt: skip

_BANK = bank(STRINGS)

ROWS: tuple[Row, ...] = (
    marker(BASE),
    *model(1, 40002, 66, COMMON),
    *model(701, 40070, 153, MEASUREMENT),
    *model(702, 40225, 50, CAPACITY),
    *model(703, 40277, 17, ENTER_SERVICE),
    *model(704, 40296, 65, CONTROLS),
    *model(711, 40363, 32, DROOP),
    *model(713, 40397, 7, STORAGE),
    *model(714, 40406, 43, DC),
    *model(715, 40451, 7, DER_CONTROL),
    *model(802, 40460, 62, BATTERY),
    *model(VENDOR_MODEL, VENDOR_FIRST, VENDOR_LENGTH, VENDOR),
    *_BANK,
    *update_model(_BANK[-1].point.end),
    *end(_BANK[-1].point.end + 2 + UPDATE_LENGTH),
)
"""As it is with the default number of strings: with another one 803 and what is behind it differ."""
END = ROWS[-1].point.end
POINTS: tuple[Point, ...] = tuple(row.point for row in ROWS if not row.reserve)
BESIDE: tuple[Point, ...] = tuple(row.point for row in COMMISSIONING)
"""Served beside the SunSpec map."""
POINT: dict[str, Point] = {point.name: point for point in (*POINTS, *BESIDE)}
AT: tuple[Row, ...] = tuple(row for row in ROWS for _ in range(row.point.count))
"""The row that covers register BASE + index."""
_NUMBERS = {
    point.name: (CODERS[point.type].unpack_from, 2 * (point.address - BASE), point.unimplemented, point.scale)
    for point in POINTS
    if point.type != "string"
}
assert all(row.point.end == after.point.address for row, after in pairwise(ROWS)), "overlap or gap"


def covering(address: int) -> Row | None:
    """The row that `address` belongs to; None outside the map and the block beside it."""
    if COMMISSIONING_FIRST <= address < COMMISSIONING_END:
        return next(row for row in COMMISSIONING if address < row.point.end)
    return AT[address - BASE] if BASE <= address < END else None


def image() -> bytearray:
    """The whole map as it reads before anything is known: fixed values, start values, else not implemented."""
    return encoded(ROWS)


def get(registers: bytearray, name: str) -> float:
    """Value of a numeric point in an image made by `image`, as `Point.decode` has it; a write asks for twenty."""
    unpack_from, at, unimplemented, scale = _NUMBERS[name]
    raw: int = unpack_from(registers, at)[0]
    if raw == unimplemented:
        return nan
    return raw if scale == 1.0 else raw * scale


def put(registers: bytearray, name: str, value: float | str) -> None:
    """Sets a point in an image made by `image`."""
    point = POINT[name]
    at = 2 * (point.address - BASE)
    registers[at : at + 2 * point.count] = point.encode(value)
