"""What the simulated BMS allows and alarms, and how a lying device's answers look."""

from __future__ import annotations

import pytest

from drivers.bench.devices import BmsDevice, DeviceMode, PcsDevice, alarm_bits, current_limits, other_units
from drivers.bench.plant import PCS_RATED_A, Plant
from drivers.bench.rack import LFP, NMC, Chemistry, Rack, Size
from drivers.bench.terminals import Terminals
from drivers.modbus.server import ModbusError

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


def test_every_one_of_several_answers_gets_the_wrong_unit() -> None:
    answers = bytes.fromhex("000100000005 04 0302abcd 000200000003 f7 8302")
    assert other_units(answers) == bytes.fromhex("000100000005 05 0302abcd 000200000003 01 8302")


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
