"""Rules for every row of the register map, whichever models it has: a point that is new is judged without a line here.

What SunSpec's own definitions say comes from the JSON that pysunspec2 ships.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from drivers.modbus.point import UNIMPLEMENTED, Point, to_csv, width
from firmware import docgen
from firmware.config import Site
from firmware.model_json import GROUPS as OWN
from firmware.model_json import exponent
from firmware.models import string_units
from firmware.models.draft import Row
from firmware.registers import BANK_FIRST, BASE, POINT, ROWS, image

SIZES = Site().modules_per_string, Site().cells_per_module
EXCERPT = string_units.excerpt(*SIZES)
EVERY = (*ROWS, *EXCERPT)
HEAD = 2
"""Registers of a model's header, which its length does not count."""
OURS = {"sunssf": "int16", "pad": "int16", "count": "uint16"}
"""SunSpec's type -> what it is called here."""


class Model(NamedTuple):
    """A model of the map."""

    number: int
    rows: list[Row]  # from its ID on

    @property
    def length(self) -> int:
        return int(self.rows[1].fixed)


def models(rows: tuple[Row, ...] = ROWS) -> list[Model]:
    found: list[Model] = []
    for row in rows:
        if row.point.name.endswith(".ID") and row.point.name != "End.ID":
            found.append(Model(int(row.fixed), []))
        if found and not row.point.name.startswith("End."):
            found[-1].rows.append(row)
    return found


SUNSPEC = [
    m
    for m in (*models(), *models(tuple(EXCERPT))[1:])
    if m.number not in OWN and not all(row.reserve for row in m.rows[HEAD:])
]
WHOLE = [m for m in SUNSPEC if m.number not in (804, 805)]
"""Those whose table has every repetition: of the string units one module and one cell stand for all."""


def ids(model: Model) -> str:
    return str(model.number)


class Definition(NamedTuple):
    """A register of a model as SunSpec's JSON has it."""

    name: str
    type: str
    words: int
    factor: str
    access: str
    static: bool
    tagged: bool  # IEEE 1547-2018
    mandatory: bool
    symbols: tuple[tuple[str, int], ...]


@cache
def _json(number: int) -> dict[str, Any]:
    text = (files("sunspec2") / "models" / "json" / f"model_{number}.json").read_text()
    group: dict[str, Any] = json.loads(text)["group"]
    return group


def _points(group: dict[str, Any]) -> list[Definition]:
    return [
        Definition(
            p["name"], OURS.get(p["type"], p["type"]), p["size"], str(p.get("sf", "")), p.get("access", "R"),
            p.get("static") == "S", "IEEE 1547-2018" in p.get("standards", ()), p.get("mandatory") == "M",
            tuple((s["name"], s["value"]) for s in p.get("symbols", ())),
        )
        for p in group["points"]
    ]  # fmt: skip


def _size(group: dict[str, Any]) -> int:
    return sum(int(p["size"]) for p in group["points"]) + sum(map(_size, group.get("groups", ())))


def _unrolled(group: dict[str, Any], left: int) -> Iterator[Definition]:
    """Points in the order of their addresses. The one group that repeats takes what is left of the length."""
    left -= sum(p["size"] for p in group["points"])
    yield from _points(group)
    for inner in group.get("groups", ()):
        times = left // _size(inner) if "count" in inner else 1
        left -= times * _size(inner)
        for _ in range(times):
            yield from _unrolled(inner, _size(inner))


def defined(model: Model) -> list[tuple[Row, Definition]]:
    """Every row with its definition."""
    length = sum(row.point.count for row in model.rows)
    return list(zip(model.rows, _unrolled(_json(model.number), length), strict=True))


def own_name(row: Row) -> str:
    """Without model and group."""
    return row.point.name.rpartition(".")[2]


def works(row: Row) -> bool:
    return not (row.reserve or "not implemented" in row.point.doc)


@pytest.mark.parametrize("rows", [ROWS, EXCERPT[:-2]], ids=["unit 1", "string unit"])
def test_there_is_no_overlap_and_a_gap_only_where_repetitions_are_left_out(rows: tuple[Row, ...]) -> None:
    for row, after in pairwise(rows):
        if after.point.name == "805.ID":
            assert after.point.address == string_units.module_first(*SIZES)
        else:
            assert row.point.end == after.point.address, row.point.name
    assert rows[0].point.address == BASE


@pytest.mark.parametrize("model", WHOLE, ids=ids)
def test_a_model_is_as_long_as_it_says(model: Model) -> None:
    assert sum(row.point.count for row in model.rows) == HEAD + model.length


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_every_point_is_what_sunspec_defines_in_that_place(model: Model) -> None:
    for row, wanted in defined(model):
        name = "ID" if own_name(row) == "PrtID" else own_name(row)
        if not row.reserve:
            assert (name, row.point.type, row.point.count) == (wanted.name, wanted.type, wanted.words)


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_only_what_sunspec_lets_write_can_be_written(model: Model) -> None:
    for row, wanted in defined(model):
        assert row.point.access == "R" or wanted.access == "RW", row.point.name


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_values_have_sunspecs_numbers(model: Model) -> None:
    for row, wanted in defined(model):
        if row.point.values is not None and wanted.symbols:  # a vendor's own numbers have none
            assert {v.value for v in row.point.values} <= {n for _, n in wanted.symbols}, row.point.name


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_an_enumeration_that_can_be_written_takes_every_value_that_sunspec_lists(model: Model) -> None:
    """All listed values, but those of another function: SunSpec, conformance procedures."""
    for row, wanted in defined(model):
        if row.point.access == "RW" and row.point.values is not None:
            assert {v.value for v in row.point.values} == {n for _, n in wanted.symbols}, row.point.name


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_every_mandatory_point_works(model: Model) -> None:
    assert [r.point.name for r, wanted in defined(model) if wanted.mandatory and not works(r) and not r.reserve] == []


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_a_scale_factor_is_static_says_the_scale_and_is_there_only_when_it_is_used(model: Model) -> None:
    factors = {own_name(row): row for row, _ in defined(model) if own_name(row).endswith("_SF")}
    used = {wanted.factor for row, wanted in defined(model) if works(row) and wanted.factor}
    for name, row in factors.items():
        assert (row.value, row.group, row.point.access, row.point.scale) == (None, "", "R", 1.0), name
        assert (row.fixed == row.fixed) == (name in used), name
        assert row.fixed != row.fixed or -10 <= float(row.fixed) <= 10
    for row, wanted in defined(model):
        if works(row) and wanted.factor:
            assert exponent(row.point.scale) == factors[wanted.factor].fixed, row.point.name
        elif works(row):
            assert row.point.scale == 1.0, row.point.name


@pytest.mark.parametrize("model", SUNSPEC, ids=ids)
def test_a_point_of_ieee_1547_works_or_reads_not_implemented(model: Model) -> None:
    registers = image()
    tagged = [row for row, wanted in defined(model) if wanted.tagged and row.point.device_id == 1]
    for row in tagged:
        if works(row) or row.point.type == "string":
            continue
        at = 2 * (row.point.address - BASE)
        raw = row.point.raw(registers[at : at + 2 * row.point.count])
        assert (raw, row.value, row.point.access) == (UNIMPLEMENTED[row.point.type], None, "R"), row.point.name


def test_what_does_not_work_never_gets_a_value_and_cannot_be_written() -> None:
    for row in EVERY:
        if not works(row):
            assert (row.value, row.point.access) == (None, "R"), row.point.name
            assert row.reserve or row.point.type == "string" or row.fixed != row.fixed, row.point.name


def test_what_works_has_a_value_or_can_be_written() -> None:
    """Up to model 803: what is in it and on the string units is put in by firmware.string_units."""
    for row in ROWS:
        if works(row) and row.point.address < BANK_FIRST:
            scale_factor_of_nothing = row.point.name.endswith("_SF")
            known = row.value is not None or row.fixed == row.fixed or row.point.access == "RW"
            assert known or scale_factor_of_nothing, row.point.name


MODES = {
    "MAX_W": "WMaxLimPctEna", "FIXED_W": "WSetEna", "FIXED_VAR": "VarSetEna", "FIXED_PF": "PFWInjEna",
}  # fmt: skip
"""Control mode of 702.CtrlModes -> the point that switches it on."""
MODELS = {"VOLT_VAR": 705, "FREQ_WATT": 711, "WATT_VAR": 712, "VOLT_WATT": 706}


def test_the_control_modes_that_are_advertised_are_those_that_are_served() -> None:
    symbols = next(dict(w.symbols) for m in SUNSPEC for _, w in defined(m) if w.name == "CtrlModes")
    row = next(row for row in ROWS if row.point.name == "CtrlModes")
    served = {mode for mode, name in MODES.items() if name in POINT and POINT[name].access == "RW"}
    served |= {mode for mode, number in MODELS.items() if number in {m.number for m in SUNSPEC}}
    assert {name for name, bit in symbols.items() if int(row.fixed) >> bit & 1} == served


def test_every_model_of_the_chain_is_defined_somewhere() -> None:
    for number in OWN:
        assert json.loads((docgen.ROOT / "docs" / f"model_{number}.json").read_text())["id"] == number
    assert all(_json(model.number)["points"] for model in SUNSPEC)


def test_type_width_and_scale_of_a_point_fit_each_other() -> None:
    for row in EVERY:
        point = row.point
        assert row.reserve or point.type == "string" or point.count == width(point.type), point.name
        assert -10 <= exponent(point.scale) <= 10, point.name
        if point.type in ("string", "bitfield16", "bitfield32", "enum16"):
            assert (point.scale, point.unit) == (1.0, ""), point.name


def fits(point: Point, value: float) -> bool:
    """Whether the value goes to the wire and back, to half a step."""
    return point.decode(point.encode(value)) == pytest.approx(value, abs=point.scale / 2 + 1e-9)


POWER_W, DC_V, CURRENT_A, ENERGY_WH = 5e6, 1500.0, 5e6 / 900, 20e6
"""A rack of 5 MW and 1,500 V, down to 900 V, for four hours."""
LARGEST = {
    "W": POWER_W, "V": DC_V, "A": CURRENT_A, "Wh": ENERGY_WH, "Ah": ENERGY_WH / DC_V, "%": 100.0, "Hz": 65.0,
    "degC": 120.0, "C": 2.0, "us": 60_000.0, "ms": 60_000.0, "s": 300.0,
}  # fmt: skip
SMALLER = {
    "DvMv": 30.0, "CellVMax": 5.0, "CellVMin": 5.0, "CellVAvg": 5.0, "CellV": 5.0, "805.V": 64 * 5.0,
    "ClockOffsetMs": 30.0, "StrCellVMax": 5.0, "StrCellVMin": 5.0, "StrCellVAvg": 5.0, "ModCellVMax": 5.0,
    "ModCellVMin": 5.0, "ModCellVAvg": 5.0,
}  # fmt: skip
"""Points for which less is enough: a cell, a module of 64 cells, a difference."""
LIMIT = re.compile(r"Lim|Max|Min|Avail|Rtg|Rvrt|Rate|NomV|VNom|^Db|Rmp|ES[VH]")
"""In a name: a bound, without a sign."""
MEASURED = re.compile(r"(^|\.)(Str)?(A|W|DCA|DCW|RackA|SetA|WEff|ReqW|WSet\w*|CmdW|StrAMax|StrAMin|StrAAvg|DvMv)$")
"""A name: a current or power that flows both ways."""


def quantities() -> list[Point]:
    return [row.point for row in EVERY if works(row) and row.point.unit]


def test_a_rack_of_5_mw_and_1500_v_fits_every_point() -> None:
    for point in quantities():
        value = SMALLER.get(point.name, SMALLER.get(point.name.rpartition(".")[2], LARGEST[point.unit]))
        assert fits(point, value), point.name
        assert point.unit != "degC" or fits(point, -40.0), point.name
        if point.unit in ("W", "A") and MEASURED.search(point.name):
            assert fits(point, -value), f"{point.name}: charge has the other sign"


def test_what_flows_has_a_sign_and_a_limit_has_none() -> None:
    for point in quantities():
        if point.unit in ("W", "A"):
            flows = bool(MEASURED.search(point.name))
            assert flows or LIMIT.search(point.name), f"{point.name} is new: a flow or a limit?"
            assert (point.type in ("int16", "int32")) == flows, point.name
            if point.access == "RW" and flows:
                assert point.low is not None and point.high is not None and point.low == -point.high, point.name


def test_every_unit_that_is_used_has_a_largest_value() -> None:
    assert {point.unit for point in quantities()} <= set(LARGEST)


def test_the_csv_is_the_whole_table_for_any_program() -> None:
    rows = list(csv.DictReader(to_csv([*(r.point for r in ROWS), *(r.point for r in EXCERPT)]).splitlines()))
    assert len(rows) == len(EVERY)
    for row, seen in zip(EVERY, rows, strict=True):
        point = row.point
        assert (seen["name"], int(seen["address"]), int(seen["count"])) == (point.name, point.address, point.count)
        assert (seen["type"], seen["unit"], seen["access"]) == (point.type, point.unit, point.access)
        assert float(seen["scale"]) == pytest.approx(point.scale)
        assert int(seen["device_id"]) == point.device_id
        if point.access == "RW":
            assert (float(seen["min"]), float(seen["max"])) == (point.low, point.high)
