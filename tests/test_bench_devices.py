"""What the simulated BMS allows and alarms, and how a lying device's answers look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivers.bench.control import POINTS, ControlDevice
from drivers.bench.devices import BmsDevice, PcsDevice, alarm_bits, current_limits
from drivers.bench.plant import PCS_RATED_A, Plant
from drivers.bench.rack import LFP, NMC, Chemistry, Rack, Size
from drivers.bench.terminals import Terminals
from drivers.bench.wire import LIES, DeviceMode, Loss, adus
from drivers.modbus.session import ModbusError

HEALTHY = {"cell_v_max": 3.31, "cell_v_min": 3.3, "cell_c_max": 26.0, "cell_c_min": 24.0}


@pytest.fixture
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return Plant(Rack(Size(2, 2, 3)), Terminals(tmp_path_factory.mktemp("terminals")), now_ns=1)


@pytest.mark.parametrize("chemistry", [NMC, LFP], ids=lambda c: c.name)
def test_healthy_cells_may_carry_1c_both_ways_without_an_alarm(chemistry: Chemistry) -> None:
    assert current_limits(chemistry, 280.0, HEALTHY) == (280.0, 280.0)
    assert alarm_bits(chemistry, HEALTHY, -1.0, 2000.0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "charge_a", "discharge_a"),
    [
        ({"cell_v_max": 4.25}, 140.0, 280.0),
        ({"cell_v_max": 4.3}, 0.0, 280.0),
        ({"cell_v_min": 2.75}, 280.0, 140.0),
        ({"cell_c_max": 54.0}, 140.0, 140.0),
        ({"cell_c_min": 2.5}, 140.0, 280.0),
        ({"cell_c_min": -1.0}, 0.0, 280.0),
    ],
)
def test_limits_fall_with_extreme_cells(change: dict[str, float], charge_a: float, discharge_a: float) -> None:
    assert current_limits(NMC, 280.0, HEALTHY | change) == pytest.approx((charge_a, discharge_a))


@pytest.mark.parametrize(
    ("change", "c_rate", "insulation_kohm", "words"),
    [
        ({"cell_v_max": 4.24}, 0.0, 2000.0, (0, 0, 1)),
        ({"cell_v_max": 4.28}, 0.0, 2000.0, (0, 1, 1)),
        ({"cell_v_max": 4.31}, 0.0, 2000.0, (1, 1, 1)),
        ({"cell_v_min": 2.5}, 0.0, 2000.0, (0, 1 << 3, 1 << 3)),
        ({"cell_c_max": 60.5}, 0.0, 2000.0, (1 << 6, 1 << 6, 1 << 6)),
        ({}, -1.2, 2000.0, (0, 0, 1 << 2)),
        ({}, 1.4, 2000.0, (0, 1 << 5, 1 << 5)),
        ({}, 0.0, 10.0, (0, 1 << 12, 1 << 12)),
    ],
)
def test_alarms_rise_from_warning_to_trip(
    change: dict[str, float], c_rate: float, insulation_kohm: float, words: tuple[int, int, int]
) -> None:
    assert alarm_bits(NMC, HEALTHY | change, c_rate, insulation_kohm) == words


READ, WRITE = "0001 0000 0007 04 03 04 abcd1234", "0102 0000 0006 04 06 2011 0009"


def test_several_answers_are_told_apart() -> None:
    each = [bytes.fromhex(text) for text in (READ, "0002 0000 0003 f7 8302", WRITE)]
    assert list(adus(b"".join(each))) == each


@pytest.mark.parametrize(
    ("mode", "answer", "told"),
    [
        (DeviceMode.WRONG_UNIT, READ, "0001 0000 0007 05 03 04 abcd1234"),
        (DeviceMode.WRONG_UNIT, "0002 0000 0003 f7 8302", "0002 0000 0003 01 8302"),
        (DeviceMode.WRONG_TRANSACTION, READ, "5554 0000 0007 04 03 04 abcd1234"),
        (DeviceMode.ZERO_TRANSACTION, READ, "0000 0000 0007 04 03 04 abcd1234"),
        (DeviceMode.WRONG_FUNCTION, READ, "0001 0000 0007 04 04 04 abcd1234"),
        (DeviceMode.SHORT, READ, "0001 0000 0005 04 03 02 abcd"),
        (DeviceMode.LONG, READ, "0001 0000 0009 04 03 06 abcd12340000"),
        (DeviceMode.BYTE_COUNT, READ, "0001 0000 0007 04 03 06 abcd1234"),
        (DeviceMode.SHORT, WRITE, "0102 0000 0005 04 06 2011 00"),
        (DeviceMode.LONG, WRITE, "0102 0000 0007 04 06 2011 0009 00"),
        (DeviceMode.BYTE_COUNT, WRITE, WRITE),
        (DeviceMode.ECHO, WRITE, "0102 0000 0006 04 06 2011 0008"),
        (DeviceMode.ECHO, READ, READ),
    ],
)
def test_a_lying_device_changes_one_thing_of_its_answer(mode: DeviceMode, answer: str, told: str) -> None:
    assert LIES[mode](bytes.fromhex(answer)).hex(" ") == bytes.fromhex(told).hex(" ")


def test_losses_are_the_same_for_every_run() -> None:
    fates = []
    for _ in range(2):
        loss = Loss()
        loss.lost_pct, loss.damaged_pct = 5.0, 5.0
        fates.append([loss.carry(bytes.fromhex(READ)) for _ in range(1000)])
    assert fates[0] == fates[1]
    assert 25 < fates[0].count(b"") < 80
    assert 25 < sum(f not in (b"", bytes.fromhex(READ)) for f in fates[0]) < 80
    assert all(len(f) in (0, 13) for f in fates[0])


def cells(bms: BmsDevice, name: str, unit: int) -> list[float]:
    array = bms.profile.arrays[name]
    return array.decode(bms.read(unit, array.address, 6))


def summary(bms: BmsDevice, unit: int) -> dict[str, float]:
    readable = [name for name, point in bms.profile.points.items() if point.access == "R"]
    return {
        name: value
        for block in bms.profile.blocks(readable)
        for name, value in bms.profile.decode(block, bms.read(unit, block.address, block.count)).items()
    }


def test_unmeasured_cells_are_counted_over_the_strings(plant: Plant) -> None:
    bms = BmsDevice(plant)
    bms.unmeasured |= {"cell_v": 8, "cell_c": 1}
    assert [np.isnan(cells(bms, "cell_v", unit)).tolist() for unit in (1, 2)] == [[True] * 6, [True] * 2 + [False] * 4]
    assert [int(np.isnan(cells(bms, "cell_c", unit)).sum()) for unit in (1, 2)] == [1, 0]


def test_a_forced_cell_is_seen_in_cells_summary_and_alarms(plant: Plant) -> None:
    plant.rack.forced_cell = (8, 1.9)
    bms = BmsDevice(plant)
    assert cells(bms, "cell_v", 2)[2] == pytest.approx(1.9)
    seen = summary(bms, 2)
    assert seen["cell_v_min"] == pytest.approx(1.9)
    assert seen["cell_v_min_at"] == 2
    assert int(seen["alarm_trip"]) == 1 << 3
    assert int(summary(bms, 1)["alarm_trip"]) == 0


def test_a_string_that_is_offline_carries_nothing_and_allows_nothing(plant: Plant) -> None:
    bms, rack = BmsDevice(plant), plant.rack
    before_v = rack.bus_v(-100.0)
    rack.offline = 2
    assert rack.string_a(-100.0)[0] == pytest.approx(-100.0)
    assert rack.string_a(-100.0)[1] == 0.0
    assert rack.bus_v(-100.0) > before_v
    for unit, limit_a in ((1, 280.0), (2, 0.0)):
        assert summary(bms, unit)["charge_limit_a"] == summary(bms, unit)["discharge_limit_a"] == limit_a
    soc = rack.string_soc()
    rack.step(-100.0, 600.0)
    assert rack.string_soc()[0] > soc[0] + 0.01
    assert rack.string_soc()[1] == pytest.approx(soc[1])
    rack.offline = 0
    assert rack.offline == 0
    assert rack.string_a(-100.0).sum() == pytest.approx(-100.0)


def test_alarm_bits_can_be_added(plant: Plant) -> None:
    bms = BmsDevice(plant)
    bms.extra_alarms = [1, 2, 4]
    seen = summary(bms, 1)
    assert (seen["alarm_trip"], seen["alarm_stop"], seen["alarm_warn"]) == (1, 2, 4)


def test_a_stranger_has_the_same_registers_and_another_name(plant: Plant) -> None:
    bms = BmsDevice(plant)
    bms.stranger = True
    assert bms.identity(1)[1] == b"STRANGER"
    assert summary(bms, 1)["string_v"] > 10.0
    bms.stranger = True
    assert bms.exchanges == 1
    bms.stranger = False
    assert bms.exchanges == 2
    assert bms.identity(1)[1] == b"BMS-2100"


def test_a_busy_device_takes_nothing_and_gives_nothing(plant: Plant) -> None:
    pcs = PcsDevice(plant)
    pcs.mode = DeviceMode.BUSY
    for call in (
        lambda: pcs.read(1, 0x1000, 1),
        lambda: pcs.write(1, 0x1100, b"\0\1", "test"),
        lambda: pcs.identity(1),
    ):
        with pytest.raises(ModbusError) as refused:
            call()
        assert refused.value.code == 6
    assert not plant.pcs.run


def test_the_pcs_takes_a_command_whole_and_reads_it_back(plant: Plant) -> None:
    pcs, address = PcsDevice(plant), 0x1100
    command = bytes.fromhex("0001 f830 2710 2710 0007")  # run, -200.0 A, 1000.0 A both ways, heartbeat 7
    pcs.write(1, address, command, "test")
    assert pcs.read(1, address, 5) == command
    assert (plant.pcs.run, plant.pcs.setpoint_a) == (True, -200.0)
    over = round(PCS_RATED_A / 0.1) + 1
    with pytest.raises(ModbusError) as refused:
        pcs.write(1, address, bytes.fromhex("0000 0000") + over.to_bytes(2) + bytes(4), "test")
    assert refused.value.code == 3
    assert pcs.read(1, address, 5) == command


def test_a_frozen_pcs_does_not_take_commands(plant: Plant) -> None:
    pcs = PcsDevice(plant)
    pcs.mode = DeviceMode.FROZEN
    pcs.write(1, 0x1100, bytes.fromhex("0001"), "test")
    assert not plant.pcs.run


def test_the_bms_has_as_many_units_and_cells_as_the_rack_and_no_more(plant: Plant) -> None:
    bms = BmsDevice(plant)
    assert [unit for unit in range(248) if bms.serves(unit)] == [1, 2]
    assert len(bms.read(2, 0x2800, 6)) == 12
    for address, count in ((0x2800, 7), (0x27FF, 2), (0x2143, 1), (0x2C06, 1)):
        with pytest.raises(ModbusError):
            bms.read(1, address, count)


def point(name: str) -> int:
    return next(p.address for p in POINTS if p.name == name)


@pytest.mark.parametrize(
    ("name", "most"), [("hot_cell_index", 11), ("forced_cell_index", 11), ("offline_string", 2)]
)  # fmt: skip
def test_a_cell_or_string_that_the_rack_does_not_have_is_refused(plant: Plant, name: str, most: int) -> None:
    control = ControlDevice(plant, BmsDevice(plant), PcsDevice(plant))
    control.write(1, point(name), most.to_bytes(2), "test")
    with pytest.raises(ModbusError) as refused:
        control.write(1, point(name), (most + 1).to_bytes(2), "test")
    assert refused.value.code == 3
    assert control.value(name) == most


def test_the_only_string_cannot_go_offline(tmp_path: Path) -> None:
    plant = Plant(Rack(Size(1, 2, 3)), Terminals(tmp_path), now_ns=1)
    control = ControlDevice(plant, BmsDevice(plant), PcsDevice(plant))
    with pytest.raises(ModbusError):
        control.write(1, point("offline_string"), (1).to_bytes(2), "test")
    assert plant.rack.offline == 0
