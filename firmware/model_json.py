"""SunSpec's own JSON of the vendor models, for clients that find points by name: docs/model_64990.json and 64991.

A client that has the file in its path of models reads and writes the vendor points as those of any other model. Scale
factors are numbers in the definition: they never change, so they cost no registers.
"""

from __future__ import annotations

import json
from math import log10
from typing import Any

from drivers.modbus.point import Point
from statemachine.faults import FAULTS
from statemachine.signals import InterlockBit, StatusBit

from .registers import POINT, ROWS, UPDATE_LENGTH, UPDATE_MODEL, VENDOR_LENGTH, VENDOR_MODEL, Row

GROUP = "ems_edge"
GROUPS: dict[int, tuple[str, str, int]] = {
    VENDOR_MODEL: (GROUP, "Command, answer and status of the EMS battery storage edge appliance.", VENDOR_LENGTH),
    UPDATE_MODEL: (f"{GROUP}_update", "Updates of the EMS battery storage edge appliance.", UPDATE_LENGTH),
}
"""Vendor model -> its group, what it is, its length."""
_UNITS = {"%": "Pct", "degC": "C", "s": "Secs"}
"""Ours -> what SunSpec's models write; the others are the same."""
_LOW, _HIGH = ({f.name: f.bit - first for f in FAULTS if first <= f.bit < first + 32} for first in (0, 32))
BITS: dict[str, dict[str, int]] = {
    "FaultBits": _LOW, "FaultBits2": _HIGH, "FaultActive": _LOW, "FaultActive2": _HIGH,
    "Interlocks": {bit.name: bit.value for bit in InterlockBit},
    "StatusBits": {bit.name: bit.value for bit in StatusBit},
}  # fmt: skip
"""Bit field -> its bits; SunSpec counts them from 0."""


def exponent(scale: float) -> int:
    """The scale factor of a scale. Raises ValueError when it is no power of ten from -10 to 10."""
    power = round(log10(scale))
    if not -10 <= power <= 10 or abs(10.0**power / scale - 1.0) > 1e-9:
        raise ValueError(f"scale {scale:g} is no power of ten that SunSpec can say")
    return power


def _symbols(point: Point) -> list[dict[str, object]]:
    named = {value.name: value.value for value in point.values or ()} | BITS.get(point.name, {})
    return [{"name": name, "value": value} for name, value in named.items()]


def _point(name: str, row: Row) -> dict[str, Any]:
    point, header = row.point, name in ("ID", "L")
    made: dict[str, Any] = {
        "access": point.access if point.access == "RW" else None,
        "desc": point.doc,
        "detail": f"{point.low:.10g} to {point.high:.10g}" if point.access == "RW" and not point.values else None,
        "label": name,
        "mandatory": "M",
        "name": name,
        "sf": exponent(point.scale) or None,
        "size": point.count,
        "static": "S" if header else None,
        "symbols": _symbols(point) or None,
        "type": point.type,
        "units": _UNITS.get(point.unit, point.unit) or None,
        "value": row.fixed if header else None,
    }
    return {key: value for key, value in made.items() if value is not None}


def vendor_model(number: int = VENDOR_MODEL) -> str:
    """docs/model_64990.json, docs/model_64991.json."""
    name, what, length = GROUPS[number]
    first = POINT[f"{number}.ID"].address
    rows = [row for row in ROWS if first <= row.point.address < first + 2 + length]
    assert not any(row.reserve for row in rows)
    group = {
        "desc": what,
        "detail": "+ is discharge, - is charge; a limit has no sign. Generated, do not edit.",
        "label": "EMS edge appliance",
        "name": name,
        "points": [_point(row.point.name.removeprefix(f"{number}."), row) for row in rows],
        "type": "group",
    }
    return json.dumps({"group": group, "id": number}, indent=1) + "\n"
