"""The list of tags for SCADA: every register of a whole rack under a name of its own, where it really is."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from fake_appliance import Client, FakeAppliance
from test_string_units import any_rack, show

from drivers.modbus.point import Point
from firmware import ems_tool
from firmware.models import string_units
from firmware.registers import BESIDE, POINTS
from firmware.string_units import Sizes
from firmware.tags import tags

SIZES = [Sizes(4, 20, 15), Sizes(16, 40, 12), Sizes(1, 1, 1), Sizes(3, 7, 5)]


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path, strings=2, modules_per_string=15, cells_per_module=20) as made:
        yield made


def printed(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    assert ems_tool.main(["--tags", "--port", str(appliance.port)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = {row["name"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_no_two_tags_have_one_name_or_one_register(sizes: Sizes) -> None:
    made = list(tags(*sizes))
    assert len({point.name for point in made}) == len(made)
    for point, after in pairwise(made):
        assert point.end <= after.address or point.device_id + 1 == after.device_id or after.device_id == 101


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_module_and_every_cell_is_there(sizes: Sizes) -> None:
    names = {point.name for point in tags(*sizes)}
    assert sum(name.endswith(".CellV") for name in names) == sizes.strings * sizes.series
    assert sum(name.endswith(".805.V") for name in names) == sizes.strings * sizes.modules
    assert {f"string{n}.StrSoC" for n in range(1, sizes.strings + 1)} <= names


def test_with_the_default_sizes_unit_1_and_the_first_string_are_those_of_the_documents() -> None:
    made = list(tags(*SIZES[0]))
    assert tuple(p for p in made if p.device_id == 1) == (*POINTS, *BESIDE)
    found = {p.address: p for p in made if p.device_id == 101}
    for row in string_units.excerpt(20, 15):
        point = row.point
        if not row.reserve:
            same = found[point.address]
            assert (same.count, same.type, same.scale, same.doc) == (point.count, point.type, point.scale, point.doc)
            assert same.name.rpartition(".")[2] == point.name.rpartition(".")[2]


def value(site: Client, row: dict[str, str]) -> float:
    """As a program reads it that knows nothing but the CSV."""
    answer = site.raw.read_holding_registers(
        int(row["address"]), count=int(row["count"]), device_id=int(row["device_id"])
    )
    assert not answer.isError(), row
    raw = int.from_bytes(b"".join(r.to_bytes(2) for r in answer.registers), signed=row["type"].startswith("int"))
    return raw * float(row["scale"])


def test_a_program_that_knows_only_the_tags_reads_every_cell_of_a_rack_of_any_size(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    made = any_rack(Sizes(2, 15, 20))
    show(appliance, made)
    rows, site = printed(appliance, capsys), Client(appliance.port)
    for string in (1, 2):
        for module in range(1, 16):
            at, place = (string - 1, module - 1), f"string{string}.module{module}"
            highest = made.volts[at].max()
            assert value(site, rows[f"{place}.804.ModCellVMax"]) == pytest.approx(highest)
            assert value(site, rows[f"{place}.805.CellVMax"]) == pytest.approx(highest)
            for cell in (1, module, 20):
                assert value(site, rows[f"{place}.cell{cell}.CellV"]) == pytest.approx(made.volts[*at, cell - 1])
                assert value(site, rows[f"{place}.cell{cell}.CellTmp"]) == pytest.approx(made.celsius[*at, cell - 1])
        assert value(site, rows[f"string{string}.804.SoC"]) == value(site, rows[f"string{string}.StrSoC"])
    assert value(site, rows["Soc"]) == pytest.approx(42.5)
    site.close()


def test_a_tag_can_be_read_alone_and_the_last_one_ends_its_unit(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, site = printed(appliance, capsys), Client(appliance.port)
    assert all(math.isfinite(value(site, row)) for row in [*rows.values()][::3] if row["type"] != "string")
    ends = {(int(row["device_id"]), int(row["address"]) + int(row["count"])) for row in rows.values()}
    for unit in (1, 101, 102):
        beyond = max(end for device_id, end in ends if device_id == unit)
        assert site.raw.read_holding_registers(beyond, count=1, device_id=unit).exception_code == 2
    site.close()


def test_a_point_of_every_unit_says_which_unit_it_is_on() -> None:
    units: dict[int, list[Point]] = {}
    for point in tags(3, 1, 1):
        units.setdefault(point.device_id, []).append(point)
    assert list(units) == [1, 101, 102, 103]
    assert all(point.name.startswith(f"string{unit - 100}.") for unit in (101, 102, 103) for point in units[unit])
