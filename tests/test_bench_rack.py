"""The simulated rack keeps charge, shares current as resistors do, and stays stable at every bench speed."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.bench.rack import CHEMISTRIES, LFP, NMC, Rack, Size

SMALL = Size(2, 3, 4)


@pytest.mark.parametrize("chemistry", CHEMISTRIES.values(), ids=CHEMISTRIES)
@pytest.mark.parametrize("current_a", [-280.0, 140.0])
def test_ampere_hours_in_are_the_change_of_soc(chemistry: object, current_a: float) -> None:
    rack = Rack(SMALL, NMC if chemistry is NMC else LFP, soc=0.5)
    before = (rack.soc * rack.capacity_ah).sum() / SMALL.series
    for _ in range(60):
        rack.step(current_a, 10.0)
    moved_ah = (rack.soc * rack.capacity_ah).sum() / SMALL.series - before
    assert moved_ah == pytest.approx(-current_a * 600.0 / 3600.0, rel=1e-6)


def test_the_strings_share_exactly_the_rack_current_and_the_bus_voltage() -> None:
    rack = Rack(soc=0.4)
    rack.step(-560.0, 60.0)
    assert rack.string_a(-560.0).sum() == pytest.approx(-560.0, abs=1e-6)
    assert rack.cell_v(-560.0).sum((1, 2)) == pytest.approx(rack.bus_v(-560.0), abs=1e-6)


def test_the_default_rack_is_1200_cells_below_1500_v_with_small_spreads() -> None:
    rack = Rack()
    assert rack.size.total == 1200
    assert Rack(soc=1.0).bus_v(-1120.0) < 1500.0
    assert np.ptp(rack.soc) < 0.02
    assert np.ptp(rack.cell_c()) <= 2.0
    assert rack.mean_soc() == pytest.approx(0.2, abs=0.001)


def test_charging_raises_the_voltage_and_heats_the_modules() -> None:
    rack = Rack(SMALL, soc=0.3)
    rest_v, rest_c = rack.bus_v(0.0), float(rack.module_c.mean())
    rack.step(-280.0, 600.0)
    assert rack.bus_v(-280.0) > rack.bus_v(0.0) > rest_v
    assert 0.5 < float(rack.module_c.mean()) - rest_c < 10.0


def test_one_long_step_ends_where_many_short_ones_do() -> None:
    coarse, fine = Rack(SMALL, soc=0.3), Rack(SMALL, soc=0.3)
    for _ in range(50):
        coarse.step(-280.0, 12.0)
    for _ in range(1200):
        fine.step(-280.0, 0.5)
    assert coarse.bus_v(-280.0) == pytest.approx(fine.bus_v(-280.0), abs=0.005 * SMALL.series)
    assert coarse.module_c == pytest.approx(fine.module_c, abs=0.05)


def test_strings_of_different_charge_level_each_other_at_rest() -> None:
    rack = Rack(SMALL, soc=0.5)
    rack.soc[0] += 0.05
    rack.set_soc(0.5)
    before = float(rack.string_soc()[0] - rack.string_soc()[1])
    assert rack.string_a(0.0)[0] > 1.0
    rack.step(0.0, 1800.0)
    assert abs(float(rack.string_soc()[0] - rack.string_soc()[1])) < before / 2


def test_balancing_bleeds_the_high_cells_near_full_only_at_low_current() -> None:
    rack = Rack(Size(1, 2, 5), soc=0.97, string_ah=10.0)
    rack.soc.flat[0] += 0.02
    rack.step(-4.0, 1.0)
    assert not rack.balancing.any()
    rack.step(-0.2, 1.0)
    assert rack.balancing.flat[0]
    spread = float(np.ptp(rack.soc))
    rack.step(0.0, 2 * 3600.0)
    assert float(np.ptp(rack.soc)) < spread / 2


def test_a_soc_preset_moves_every_cell_and_keeps_the_spread() -> None:
    rack = Rack(soc=0.2)
    rack.step(-560.0, 300.0)
    spread = np.ptp(rack.soc)
    rack.set_soc(0.6)
    assert rack.mean_soc() == pytest.approx(0.6, abs=1e-6)
    assert np.ptp(rack.soc) == pytest.approx(spread, rel=1e-6)


def test_a_hot_cell_has_the_temperature_it_was_given() -> None:
    rack = Rack(SMALL)
    rack.hot_cell = (7, 61.5)
    assert rack.cell_c().argmax() == 7
    assert rack.cell_c().max() == 61.5
