"""Settings as JSON, as the server hands them to the controller. Standard library only: the scan process reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

from statemachine.settings import CellProfile, Settings


def settings_to_json(settings: Settings) -> bytes:
    """Exact: `settings_from_json` gives an equal object."""
    return json.dumps(asdict(settings), separators=(",", ":"), allow_nan=False).encode()


def settings_from_json(data: bytes) -> Settings:
    """The inverse of `settings_to_json`. Raises ValueError when a field is missing or unknown, or `data` is no JSON."""
    values = json.loads(data)
    _expect(values, Settings)
    cell, zones = cell_profile(values["cell"]), tuple(values["loop_zones"])
    return Settings(**{**values, "cell": cell, "loop_zones": zones})


def cell_profile(values: object) -> CellProfile:
    """A profile from a parsed JSON or TOML table. Raises ValueError naming the field that is wrong."""
    _expect(values, CellProfile)
    assert isinstance(values, dict)
    read: dict[str, Callable[[str, object], Any]] = {"str": _text, "float": _number, "Table": _table}
    return CellProfile(**{f.name: read[str(f.type)](f.name, values[f.name]) for f in fields(CellProfile)})


def _expect(values: object, kind: type[Settings] | type[CellProfile]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: a table of fields is expected, not {type(values).__name__}")
    known = {f.name for f in fields(kind)}
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{kind.__name__}: missing {', '.join(missing)}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{kind.__name__}: unknown {', '.join(unknown)}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: a text is expected")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ValueError(f"{name} = {value!r}: a number is expected")
    return float(value)


def _table(name: str, value: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, (list, tuple)) or not value or any(len(pair) != 2 for pair in value):
        raise ValueError(f"{name}: a list of [x, y] pairs is expected")
    table = tuple((_number(name, x), _number(name, y)) for x, y in value)
    if any(a[0] >= b[0] for a, b in pairwise(table)):
        raise ValueError(f"{name}: x must rise from pair to pair")
    return table
