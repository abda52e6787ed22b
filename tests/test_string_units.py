"""Model 803 and the string units: every cell that was published is found by an independent SunSpec client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from math import isnan, nan
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

import numpy as np
import pytest
import sunspec2.modbus.client as sunspec
from fake_appliance import READY, Client, FakeAppliance
from numpy.typing import NDArray
from test_aggregator import BMS, Beating, Plant, converter, plant, put_cells, rack
from test_aggregator import PCS as CONVERTER
from waiting import wait_until

from drivers.modbus.point import Point
from drivers.modbus.session import ModbusError
from firmware import config
from firmware.image import LAYOUT, Status, writer
from firmware.models import string_units as tables
from firmware.reduction import StringPoll, string_values, wire_cells
from firmware.registers import BANK_FIRST, BASE, END, POINT, UPDATE_LENGTH
from firmware.string_units import STALE_NS, Sizes, StringUnits

DEFAULT = Sizes.of(config.Site())
CLOSED = READY._replace(feedback=0b011)
"""Both mains report closed."""
FIRST, LAST = tables.FIRST_UNIT, tables.FIRST_UNIT + DEFAULT.strings - 1
SUMMARY = {"string_v": 1095.0, "string_a": -140.0, "soc_pct": 50, "soh_pct": 98, "charge_limit_a": 280,
           "discharge_limit_a": 200}  # fmt: skip


class Rack(NamedTuple):
    """What a BMS measured, as the aggregator publishes it."""

    volts: NDArray[np.float64]  # (strings, modules, cells)
    celsius: NDArray[np.float64]
    balancing: NDArray[np.bool_]
    summaries: list[dict[str, float]]

    @property
    def sections(self) -> tuple[bytes, bytes]:
        """`cells` and `strings`."""
        arrays = BMS.arrays
        polls = [
            StringPoll(
                0.0,
                summary,
                arrays["cell_v"].encode(v.ravel()),
                arrays["cell_c"].encode(c.ravel()),
                arrays["balancing"].encode(b.ravel()),
            )
            for v, c, b, summary in zip(self.volts, self.celsius, self.balancing, self.summaries, strict=True)
        ]
        return wire_cells(polls, BMS), string_values(polls)


def any_rack(sizes: Sizes = DEFAULT) -> Rack:
    """No two cells of a string are alike."""
    draw = np.random.default_rng(7)
    order = np.array([draw.permutation(sizes.series) for _ in range(sizes.strings)]).reshape(sizes)
    celsius = np.array([draw.permutation(sizes.series) for _ in range(sizes.strings)]).reshape(sizes)
    summaries = [
        SUMMARY | {"string_v": 1090.0 + n, "string_a": 10.0 * n - 145, "soc_pct": 40 + n} for n in range(sizes[0])
    ]
    return Rack(3.0 + order * 0.001, celsius * 0.1 - 5.0, draw.random(sizes) < 0.1, summaries)


class Device:
    """String units over an aggregator that the test plays; no server between."""

    def __init__(self, directory: Path, sizes: Sizes = DEFAULT) -> None:
        self._file = writer("aggregator", directory)
        self.units, self.sizes = StringUnits(directory), sizes
        self.units.configure(sizes)
        rows = tables.excerpt(sizes.modules, sizes.cells)
        self._points = {row.point.name: row.point for row in rows}

    def publish(self, made: Rack, age_ns: int = 0) -> None:
        cells, strings = made.sections
        self.publish_raw(cells, strings, age_ns)

    def publish_raw(self, cells: bytes, strings: bytes, age_ns: int = 0) -> None:
        stamp_ns = monotonic_ns() - age_ns
        self._file["cells"].publish(cells, stamp_ns)
        self._file["strings"].publish(strings, stamp_ns)

    def address(self, name: str, module: int, cell: int) -> int:
        point = self._points[name]
        if name.startswith("805."):
            step = 2 + tables.module_length(self.sizes.cells)
            return point.address + module * step + cell * 4
        return point.address + module * 16

    def read(self, unit: int, name: str, module: int = 0, cell: int = 0, status: Status | None = CLOSED) -> float:
        """Module and cell count from 0."""
        point = self._points[name]
        return _value(point, self.units.read(unit, self.address(name, module, cell), point.count, status))

    def bank(self, name: str, status: Status | None = CLOSED) -> float:
        """A point of model 803."""
        point, image = POINT[name], self.units.bank(status)
        return _value(point, image[2 * (point.address - BANK_FIRST) : 2 * (point.end - BANK_FIRST)])


def _value(point: Point, data: bytes) -> float:
    value = point.decode(data)
    assert not isinstance(value, str)
    if point.type == "bitfield32" and value == 0xFFFFFFFF:
        return nan
    return value


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


class Scan:
    """What pysunspec2 finds on one unit."""

    def __init__(self, port: int, unit: int) -> None:
        device = sunspec.SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr="127.0.0.1", ipport=port)
        device.scan()
        device.close()
        self.ids = [model.model_id for model in device.model_list]
        self.complaints = [model.error_info for model in device.model_list if model.error_info]
        self.models: dict[int, list[Any]] = {id_: device.models[id_] for id_ in set(self.ids)}

    @property
    def cells(self) -> list[list[Any]]:
        return [list(next(iter(model.groups.values()))) for model in self.models[805]]


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(feedback=0b011)
        yield made


def show(appliance: FakeAppliance, made: Rack) -> None:
    def change() -> None:
        appliance.cells, appliance.strings = made.sections
        appliance._publish()

    appliance.call(change)


def publish(appliance: FakeAppliance, made: Rack) -> None:
    """The aggregator alone, between two scans."""
    appliance.cells, appliance.strings = made.sections
    file = appliance._files["aggregator"]
    file["cells"].publish(appliance.cells)
    file["strings"].publish(appliance.strings)


def test_an_independent_client_finds_all_1200_cells_as_they_were_published(appliance: FakeAppliance) -> None:
    made, found = any_rack(), 0
    show(appliance, made)
    for string, unit in enumerate(range(FIRST, LAST + 1)):
        scan = Scan(appliance.port, unit)
        assert scan.ids == [1, 804] + [805] * DEFAULT.modules
        assert scan.complaints == []
        assert [m.ModIdx.value for m in scan.models[805]] == list(range(1, DEFAULT.modules + 1))
        assert {m.StrIdx.value for m in scan.models[805]} == {scan.models[804][0].Idx.value} == {string + 1}
        for cells, volts, celsius, balancing in zip(
            scan.cells, made.volts[string], made.celsius[string], made.balancing[string], strict=True
        ):
            assert [cell.CellV.cvalue for cell in cells] == pytest.approx(volts)
            assert [cell.CellTmp.cvalue for cell in cells] == pytest.approx(celsius)
            assert [cell.CellSt.value for cell in cells] == balancing.tolist()
            found += len(cells)
    assert found == 1200


def test_a_new_poll_is_seen_by_the_next_read(appliance: FakeAppliance) -> None:
    address = tables.module_first(DEFAULT.modules, DEFAULT.cells) + 2 + tables.module_length(cells=0)
    client = Client(appliance.port)
    for cell_v in (3.1, 3.2, 3.3, 3.4):
        made = any_rack()
        made.volts[:] = cell_v
        appliance.call(partial(publish, appliance, made))
        for _ in range(3):
            assert client.raw.read_holding_registers(address, count=1, device_id=FIRST).registers == [1000 * cell_v]
    client.close()


def test_an_independent_client_finds_the_bank_behind_the_vendor_model(appliance: FakeAppliance) -> None:
    made = any_rack()
    show(appliance, made)
    scan = Scan(appliance.port, 1)
    assert (scan.ids[-1], scan.complaints) == (803, [])
    bank = scan.models[803][0]
    assert (bank.NStr.value, bank.NStrCon.value, bank.NCellBal.value) == (4, 4, int(made.balancing.sum()))
    assert len(bank.string) == 4
    for n, string in enumerate(bank.string):
        assert (string.StrNMod.value, string.StrSt.value) == (20, 0b11)
        assert (string.StrSoC.cvalue, string.StrSoH.cvalue, string.StrA.cvalue) == (40 + n, 98, 10 * n - 145)
        assert string.StrCellVMax.cvalue == pytest.approx(made.volts[n].max())
        assert string.StrCellVMin.cvalue == pytest.approx(made.volts[n].min())
        assert string.StrCellVAvg.cvalue == pytest.approx(made.volts[n].mean(), abs=0.0006)
        assert string.StrModTmpMax.cvalue == pytest.approx(made.celsius[n].max())
        assert string.StrModTmpMin.cvalue == pytest.approx(made.celsius[n].min())
        assert string.StrModTmpMaxMod.value == made.celsius[n].argmax() // 15 + 1
        assert string.StrCellVMinMod.value == made.volts[n].argmin() // 15 + 1
    assert (bank.StrVMax.cvalue, bank.StrVMaxStr.value) == (1093, 4)
    assert (bank.StrVMin.cvalue, bank.StrVMinStr.value, bank.StrVAvg.cvalue) == (1090, 1, 1091.5)
    assert (bank.StrAMax.cvalue, bank.StrAMaxStr.value) == (-115, 4)
    assert (bank.StrAMin.cvalue, bank.StrAMinStr.value, bank.StrAAvg.cvalue) == (-145, 1, -130)


def test_string_and_modules_have_the_extremes_of_their_cells(device: Device) -> None:
    made = any_rack()
    device.publish(made)
    for string, unit in enumerate(range(FIRST, LAST + 1)):
        v, c = made.volts[string], made.celsius[string]
        assert device.read(unit, "804.CellVMax") == pytest.approx(v.max())
        assert device.read(unit, "804.CellVMaxMod") == v.argmax() // 15 + 1
        assert device.read(unit, "804.ModTmpMin") == pytest.approx(c.min())
        assert device.read(unit, "804.ModTmpMinMod") == c.argmin() // 15 + 1
        assert device.read(unit, "804.NCellBal") == made.balancing[string].sum()
        for m in range(DEFAULT.modules):
            for model, volts, celsius in (("804.Mod", "CellV", "CellTmp"), ("805.", "CellV", "CellTmp")):
                assert device.read(unit, f"{model}{volts}Max", m) == pytest.approx(v[m].max())
                assert device.read(unit, f"{model}{volts}MaxCell", m) == v[m].argmax() + 1
                assert device.read(unit, f"{model}{volts}Min", m) == pytest.approx(v[m].min())
                assert device.read(unit, f"{model}{volts}MinCell", m) == v[m].argmin() + 1
                assert device.read(unit, f"{model}{volts}Avg", m) == pytest.approx(v[m].mean(), abs=0.0006)
                assert device.read(unit, f"{model}{celsius}Max", m) == pytest.approx(c[m].max())
                assert device.read(unit, f"{model}{celsius}MaxCell", m) == c[m].argmax() + 1
                assert device.read(unit, f"{model}{celsius}Min", m) == pytest.approx(c[m].min())
                assert device.read(unit, f"{model}{celsius}MinCell", m) == c[m].argmin() + 1
                assert device.read(unit, f"{model}{celsius}Avg", m) == pytest.approx(c[m].mean(), abs=0.06)
            assert device.read(unit, "805.V", m) == pytest.approx(v[m].sum(), abs=0.006)
            assert device.read(unit, "805.NCellBal", m) == made.balancing[string, m].sum()


def test_the_hottest_cell_of_the_bank_is_named_by_string_and_module(device: Device) -> None:
    made = any_rack()
    made.celsius[2, 13, 4], made.celsius[1, 19, 14] = 61.5, -30.0
    device.publish(made)
    assert (device.bank("ModTmpMax"), device.bank("ModTmpMaxStr"), device.bank("ModTmpMaxMod")) == (61.5, 3, 14)
    assert (device.bank("ModTmpMin"), device.bank("ModTmpMinStr"), device.bank("ModTmpMinMod")) == (-30.0, 2, 20)
    assert device.bank("ModTmpAvg") == pytest.approx(made.celsius.mean(), abs=0.06)


def test_a_strings_own_values(device: Device) -> None:
    device.publish(any_rack())
    assert device.read(FIRST, "804.SoC") == 40
    assert device.read(FIRST, "804.DoD") == 60
    assert device.read(FIRST, "804.SoH") == 98
    assert device.read(FIRST, "804.A") == -145
    assert device.read(LAST, "804.A") == -115
    assert device.read(LAST, "804.V") == 1093


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_string_of_5_mw_and_1500_v_fits_and_discharge_is_positive(tmp_path: Path, sign: int) -> None:
    device, made = Device(tmp_path, Sizes(1, 20, 15)), any_rack(Sizes(1, 20, 15))
    made.summaries[0].update(string_v=1500.0, string_a=sign * 5556.0)
    device.publish(made)
    assert (device.read(FIRST, "804.V"), device.read(FIRST, "804.A")) == (1500, sign * 5556)


@pytest.mark.parametrize("unmeasured", [0.0, 0x8000 / 1000, nan], ids=["0 mV", "0x8000", "0xffff"])
def test_a_cell_without_a_measurement_is_not_implemented_and_in_no_extreme(device: Device, unmeasured: float) -> None:
    made = any_rack()
    made.volts[1, 3, 7] = unmeasured
    made.celsius[1, 3, 8] = nan
    device.publish(made)
    unit = FIRST + 1
    volts, celsius = np.delete(made.volts[1, 3], 7), np.delete(made.celsius[1, 3], 8)
    assert isnan(device.read(unit, "805.CellV", 3, 7))
    assert isnan(device.read(unit, "805.CellTmp", 3, 8))
    assert not isnan(device.read(unit, "805.CellTmp", 3, 7))
    assert device.read(unit, "805.CellVMin", 3) == pytest.approx(volts.min())
    assert device.read(unit, "805.CellVMax", 3) == pytest.approx(volts.max())
    assert device.read(unit, "805.CellVAvg", 3) == pytest.approx(volts.mean(), abs=0.0006)
    assert device.read(unit, "805.CellTmpAvg", 3) == pytest.approx(celsius.mean(), abs=0.06)
    assert isnan(device.read(unit, "805.V", 3)), "a sum without one of its cells is wrong"
    assert not isnan(device.read(unit, "805.V", 2))
    rack_c = np.where(np.isnan(made.celsius), np.inf, made.celsius)
    assert device.bank("ModTmpMin") == pytest.approx(rack_c.min())


def test_a_module_without_any_measurement_has_no_extremes(device: Device) -> None:
    made = any_rack()
    made.volts[0, 5], made.celsius[0, 5] = nan, nan
    device.publish(made)
    for name in ("CellVMax", "CellVMaxCell", "CellVMin", "CellVMinCell", "CellVAvg", "CellTmpMax", "CellTmpMaxCell"):
        assert isnan(device.read(FIRST, f"805.{name}", 5)), name
        assert isnan(device.read(FIRST, f"804.Mod{name}", 5)), name
        assert not isnan(device.read(FIRST, f"805.{name}", 6)), name
    assert device.read(FIRST, "805.NCell", 5) == 15


def test_a_rack_without_any_measurement_has_no_extremes(device: Device) -> None:
    made = any_rack()
    made.volts[:], made.celsius[:] = nan, nan
    for summary in made.summaries:
        summary.update(dict.fromkeys(("string_v", "string_a", "soc_pct", "soh_pct"), nan))
    device.publish(made)
    for name in ("ModTmpMax", "ModTmpMaxStr", "ModTmpMaxMod", "ModTmpAvg", "StrVMax", "StrVMaxStr", "StrAMin"):
        assert isnan(device.bank(name)), name
    for name in ("StrSoC", "StrSoH", "StrA", "StrCellVMax", "StrCellVMaxMod", "StrModTmpAvg"):
        assert isnan(device.bank(f"string2.{name}")), name
    for name in ("SoC", "DoD", "A", "V", "CellVMax", "CellVMaxMod", "ModTmpMin"):
        assert isnan(device.read(FIRST, f"804.{name}")), name


DYNAMIC = ("804.SoC", "804.A", "804.V", "804.St", "804.CellVMax", "804.Evt1", "804.NCellBal", "804.ModCellVMax",
           "805.V", "805.CellTmpMax", "805.CellV", "805.CellTmp", "805.CellSt")  # fmt: skip
STATIC = {"804.NMod": 20, "804.ModNCell": 15, "805.NCell": 15, "805.StrIdx": 1, "804.CellV_SF": -3, "805.Tmp_SF": -1}


def shows_nothing(device: Device) -> bool:
    assert {name: device.read(FIRST, name) for name in STATIC} == STATIC
    assert (device.bank("NStr"), device.bank("string4.StrNMod")) == (4, 20)
    seen = [isnan(device.read(FIRST, name)) for name in DYNAMIC]
    seen += [isnan(device.bank(name)) for name in ("NStrCon", "StrVMax", "ModTmpMin", "string1.StrSt", "string4.StrA")]
    assert len(set(seen)) == 1, "all or nothing"
    return seen[0]


def test_before_the_first_poll_only_sizes_and_scales_are_known(device: Device) -> None:
    assert shows_nothing(device)


def test_cells_older_than_three_seconds_are_not_shown(device: Device) -> None:
    assert STALE_NS == 3_000_000_000
    device.publish(any_rack(), age_ns=STALE_NS - 1_000_000_000)
    assert not shows_nothing(device)
    device.publish(any_rack(), age_ns=STALE_NS)
    assert shows_nothing(device)
    device.publish(any_rack())
    assert not shows_nothing(device)


def test_cells_that_were_shown_go_when_they_are_stale(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.publish(any_rack())
    assert not shows_nothing(device)
    later_ns = monotonic_ns() + STALE_NS
    monkeypatch.setattr("firmware.string_units.monotonic_ns", lambda: later_ns)
    assert shows_nothing(device)


def test_cells_of_a_rack_of_another_size_are_not_shown(device: Device) -> None:
    for sizes in (Sizes(4, 20, 14), Sizes(3, 20, 15), Sizes(5, 20, 15)):
        device.publish(any_rack(sizes))
        assert shows_nothing(device), sizes


def test_cells_of_a_device_that_is_another_are_not_shown(device: Device) -> None:
    cells, _ = any_rack().sections
    device.publish_raw(cells, b"")
    assert shows_nothing(device)


@pytest.mark.parametrize(
    ("feedback", "bits", "connected"), [(0b011, 0b11, 4), (0b001, 0b01, 0), (0b010, 0b01, 0), (0b110, 0b01, 0)]
)
def test_a_string_is_connected_while_both_mains_are_closed(
    device: Device, feedback: int, bits: int, connected: int
) -> None:
    device.publish(any_rack())
    status = READY._replace(feedback=feedback)
    assert device.read(FIRST, "804.St", status=status) == bits
    assert device.bank("string1.StrSt", status) == bits
    assert device.bank("NStrCon", status) == connected


def test_without_a_controller_nobody_knows_the_contactors(device: Device) -> None:
    device.publish(any_rack())
    assert isnan(device.read(FIRST, "804.St", status=None))
    assert isnan(device.bank("NStrCon", None))
    assert device.read(FIRST, "804.SoC", status=None) == 40


def test_a_string_that_takes_no_current_is_not_enabled(device: Device) -> None:
    made = any_rack()
    made.summaries[1].update(charge_limit_a=0, discharge_limit_a=0)
    device.publish(made)
    assert [device.read(unit, "804.St") for unit in range(FIRST, LAST + 1)] == [0b11, 0b10, 0b11, 0b11]
    assert device.bank("NStrCon") == 3


@pytest.mark.parametrize(
    ("alarms", "event", "vendor1", "vendor2"),
    [
        ({}, 0, 0, 0),
        ({"alarm_stop": 5}, 1 << 25, 5, 0),
        ({"alarm_trip": 6}, 1 << 25, 6 << 16, 0),
        ({"alarm_warn": 0x8001}, 1 << 26, 0, 0x8001),
        ({"alarm_stop": 1, "alarm_trip": 0xFFFF, "alarm_warn": 2}, 1 << 25 | 1 << 26, 0x7FFF0001, 2),
    ],
)
def test_alarms_of_a_bms_are_events_of_its_string_alone(
    device: Device, alarms: dict[str, int], event: int, vendor1: int, vendor2: int
) -> None:
    made = any_rack()
    made.summaries[2].update(alarms)
    device.publish(made)
    assert [device.read(FIRST + 2, f"804.{name}") for name in ("Evt1", "EvtVnd1", "EvtVnd2")] == [
        event,
        vendor1,
        vendor2,
    ]
    assert [device.bank(f"string3.{name}") for name in ("StrEvt1", "StrEvtVnd1", "StrEvtVnd2")] == [
        event,
        vendor1,
        vendor2,
    ]
    assert device.read(FIRST, "804.Evt1") == device.bank("string1.StrEvt1") == 0


def test_an_image_is_made_once_a_poll_and_only_when_it_is_read(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fill = StringUnits._fill_unit

    def counting(self: StringUnits, unit: int, *rest: Any) -> None:
        made.append(unit)
        fill(self, unit, *rest)

    monkeypatch.setattr(StringUnits, "_fill_unit", counting)
    device.publish(any_rack())
    assert made == []
    for _ in range(5):
        device.read(FIRST, "805.CellV", 19, 14)
        device.bank("NStr")
    assert made == [FIRST]
    device.publish(any_rack())
    device.publish(any_rack())
    device.read(LAST, "804.V")
    device.read(FIRST, "804.V")
    assert made == [FIRST, LAST, FIRST]


def test_a_change_of_the_contactors_shows_without_a_new_poll(device: Device) -> None:
    device.publish(any_rack())
    seen = [device.read(FIRST, "804.St", status=s) for s in (READY, CLOSED, READY)]
    assert seen == [0b01, 0b11, 0b01]


def test_the_sizes_hold_until_the_next_start(device: Device) -> None:
    device.units.configure(Sizes(2, 20, 15))
    assert [device.units.serves(unit) for unit in (FIRST - 1, FIRST, LAST, LAST + 1)] == [False, True, True, False]
    assert len(device.units.bank(CLOSED)) == 2 * (END - BANK_FIRST - 2 - UPDATE_LENGTH)


@pytest.mark.parametrize(
    "sizes", [Sizes(4, 20, 15), Sizes(16, 40, 12), Sizes(1, 1, 1), Sizes(3, 7, 5), Sizes(8, 64, 16)]
)
def test_a_rack_of_any_size_is_shown_to_its_last_cell(tmp_path: Path, sizes: Sizes) -> None:
    device, made = Device(tmp_path, sizes), any_rack(sizes)
    device.publish(made)
    unit, module, cell = FIRST + sizes.strings - 1, sizes.modules - 1, sizes.cells - 1
    assert device.read(unit, "805.CellV", module, cell) == pytest.approx(made.volts[-1, -1, -1])
    assert device.read(unit, "805.CellTmp", module, cell) == pytest.approx(made.celsius[-1, -1, -1])
    assert device.read(unit, "805.CellSt", module, cell) == made.balancing[-1, -1, -1]
    end = tables.module_first(sizes.modules, sizes.cells, sizes.modules)
    assert device.units.read(unit, end, 2, CLOSED) == b"\xff\xff\0\0"
    assert device.units.bank(CLOSED)[-4:] == b"\xff\xff\0\0"
    assert len(device.units.bank(CLOSED)) == 2 * (28 + 32 * sizes.strings + 2)


def test_every_rack_that_can_be_configured_fits_16_bit_addresses() -> None:
    most = {entry.name: entry.metadata["limits"].le for entry in fields(config.Site)}
    strings, modules, cells = most["strings"], most["modules_per_string"], most["cells_per_module"]
    assert (strings, modules >= 40, cells) == (16, True, 32)
    assert tables.module_first(modules, cells, modules) + 2 <= 0x10000
    assert BANK_FIRST + 28 + 32 * strings + (2 + UPDATE_LENGTH) + 2 <= 0x10000
    assert FIRST + strings - 1 <= 247, "the last unit id that Modbus has"


def test_a_string_unit_ends_where_its_map_ends(device: Device) -> None:
    end = tables.module_first(20, 15, 20) + 2
    for address, count in ((BASE - 1, 2), (end - 1, 2), (end, 1), (0, 1)):
        with pytest.raises(ModbusError) as refused:
            device.units.read(FIRST, address, count, CLOSED)
        assert refused.value.code == 2
    assert device.units.read(FIRST, BASE, 2, CLOSED) == b"SunS"


@pytest.mark.parametrize("unit", [2, FIRST - 1, LAST + 1, 247, 0])
def test_a_unit_without_a_string_is_no_unit(appliance: FakeAppliance, unit: int) -> None:
    site = Client(appliance.port)
    assert site.raw.read_holding_registers(BASE, count=1, device_id=unit or 255).exception_code == 11
    site.close()


def test_unit_105_answers_once_there_are_more_strings(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path, strings=16) as appliance:
        site = Client(appliance.port)
        assert site.raw.read_holding_registers(BASE, count=2, device_id=116).registers == [0x5375, 0x6E53]
        assert site.raw.read_holding_registers(BASE, count=2, device_id=117).exception_code == 11
        assert len(Scan(appliance.port, 1).models[803][0].string) == 16
        site.close()


def test_nothing_on_a_string_unit_can_be_written_and_unit_1_does_not_see_the_attempt(appliance: FakeAppliance) -> None:
    site, before = Client(appliance.port), appliance.command
    for name in ("CmdMode", "WSetEna", "AckFaults"):
        for unit in (FIRST, LAST):
            assert site.raw.write_register(POINT[name].address, 1, device_id=unit).exception_code == 2
            assert site.raw.write_registers(POINT[name].address, [1], device_id=unit).exception_code == 2
    assert (appliance.command, site.read("AckWhy"), site.read("CmdMode")) == (before, 0, 0)
    site.close()


def test_each_unit_says_who_it_is(appliance: FakeAppliance) -> None:
    site = Client(appliance.port)
    seen = {}
    for unit in (1, FIRST, LAST):
        answer = site.raw.read_device_information(read_code=2, object_id=0, device_id=unit)
        seen[unit] = getattr(answer, "information")[4]  # noqa: B009
    assert seen[FIRST] == seen[1] + b", string 1"
    assert seen[LAST] == seen[1] + b", string 4"
    common = Scan(appliance.port, LAST).models[1][0]
    assert (common.Md.value, common.Opt.value, common.DA.value) == ("EMS-1", "string 4", LAST)
    site.close()


def test_one_read_may_span_the_vendor_model_and_the_bank(appliance: FakeAppliance) -> None:
    show(appliance, any_rack())
    site = Client(appliance.port)
    registers = site.raw.read_holding_registers(BANK_FIRST - 2, count=5, device_id=1).registers
    assert registers[2:] == [803, 26 + 32 * 4, 4]
    assert registers[:2] == site.raw.read_holding_registers(BANK_FIRST - 2, count=2, device_id=1).registers
    last = site.raw.read_holding_registers(END - 2, count=2, device_id=1).registers
    assert last == [0xFFFF, 0]
    assert site.raw.read_holding_registers(END - 2, count=3, device_id=1).exception_code == 2
    site.close()


def test_the_documented_addresses_of_the_first_unit_are_the_served_ones(appliance: FakeAppliance) -> None:
    show(appliance, any_rack())
    scan, site = Scan(appliance.port, FIRST), Client(appliance.port)
    for row in tables.excerpt(20, 15):
        if row.point.name in ("804.SoC", "804.ModCellVMax", "805.NCell", "805.CellV", "End.ID"):
            raw = site.raw.read_holding_registers(row.point.address, count=1, device_id=FIRST).registers
            expected = {
                "804.SoC": scan.models[804][0].SoC.value,
                "804.ModCellVMax": scan.models[804][0].lithium_ion_string_module[0].ModCellVMax.value,
                "805.NCell": 15,
                "805.CellV": scan.cells[0][0].CellV.value,
                "End.ID": 0xFFFF,
            }
            assert raw == [expected[row.point.name]], row.point.name
    site.close()


def test_what_the_bms_says_is_what_the_string_unit_shows(tmp_path: Path) -> None:
    bms, pcs = rack(2, 30), converter()
    volts = 3.3 + 0.01 * np.arange(30)
    put_cells(bms, 2, "cell_v", volts)
    units = StringUnits(tmp_path)
    units.configure(Sizes(2, 2, 15))
    points = {row.point.name: row.point for row in tables.excerpt(2, 15)}

    def cell(number: int) -> float:
        step = 2 + tables.module_length(15)
        address = points["805.CellV"].address + number // 15 * step + number % 15 * 4
        return _value(points["805.CellV"], units.read(FIRST + 1, address, 1, CLOSED))

    with Beating((bms, BMS), (pcs, CONVERTER)), plant(tmp_path, bms, pcs):
        wait_until(lambda: not isnan(cell(0)), 2, "the first poll")
        assert [cell(n) for n in range(30)] == pytest.approx(volts)


def test_another_device_in_place_of_the_bms_takes_the_strings_away_at_once(tmp_path: Path) -> None:
    running, units, made = Plant(tmp_path, 1, 1), StringUnits(tmp_path), any_rack()
    for name, payload in zip(("cells", "strings"), made.sections, strict=True):
        running.aggregator._files[name].publish(payload)
    known = units.bank(CLOSED)
    running.aggregator.bms.unidentified()
    assert units.bank(CLOSED) != known
    assert units.bank(CLOSED) == StringUnits(tmp_path / "nobody").bank(CLOSED), "as before the first poll"
    running.aggregator.close()
    running.controller.close()


def test_as_many_strings_as_can_be_configured_fit_their_section() -> None:
    assert len(any_rack(Sizes(16, 1, 1)).sections[1]) <= LAYOUT["aggregator"]["strings"]
