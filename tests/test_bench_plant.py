"""Contactors, precharge, relay, PCS and loops of the bench, in simulated time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from drivers.bench.loops import LoopMode
from drivers.bench.plant import Plant
from drivers.bench.rack import Rack, Size

MS = 1_000_000
SMALL = Size(2, 3, 4)


class Wires:
    """Terminals without files."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self.words: dict[str, tuple[int, int]] = {}
        self.loops: tuple[int, ...] = ()
        self.loop_samples = 0

    def set_input(self, name: str, level: bool) -> None:
        self.levels[name] = int(level)

    def set_loops(self, microampere: tuple[int, ...], stamp_ns: int) -> None:
        self.loops = microampere
        self.loop_samples += 1

    def output(self, name: str) -> tuple[int, int]:
        return self.words.get(name, (0, 0))

    def hold_output(self, name: str, hold: bool) -> None:
        raise NotImplementedError

    def held_output(self, name: str) -> bool:
        return False


class Site:
    """A plant on a clock of its own, with a guard that toggles `alive` every 20 ms while it lives."""

    def __init__(self, speed: float = 1.0) -> None:
        self.wires, self.now_ns, self.guard_lives = Wires(), 10**12, True
        self.plant = Plant(Rack(SMALL, soc=0.5), self.wires, self.now_ns, speed)
        self.drive("safe_enable", 1)

    def press(self, pressed: bool) -> None:
        self.plant.reset_pressed = pressed
        self.plant.tick(self.now_ns)

    def drive(self, name: str, level: int) -> None:
        self.wires.words[name] = (level, self.now_ns)

    def run(self, ms: int) -> None:
        for _ in range(0, ms, 5):
            self.now_ns += 5 * MS
            if self.guard_lives and self.now_ns % (20 * MS) == 0:
                self.drive("alive", 1 - self.wires.output("alive")[0])
            self.plant.tick(self.now_ns)

    def closed(self, *names: str) -> bool:
        return all(self.plant.contactors[name].closed for name in names)

    def close_mains(self) -> None:
        self.run(200)
        for name in ("coil_neg", "coil_pre"):
            self.drive(name, 1)
        self.run(6000)
        self.drive("coil_pos", 1)
        self.run(100)
        self.drive("coil_pre", 0)
        self.run(100)
        assert self.closed("neg", "pos")

    def deliver(self, current_a: float, ms: int = 1000) -> None:
        self.plant.pcs.run, self.plant.pcs.setpoint_a = True, current_a
        for _ in range(ms // 100):
            self.plant.pcs.heartbeat()
            self.run(100)


def test_a_contactor_closes_30_ms_after_its_coil_and_opens_20_ms_after() -> None:
    site = Site()
    site.run(100)
    site.drive("coil_neg", 1)
    site.run(30)
    assert not site.closed("neg")
    site.run(10)
    assert site.closed("neg")
    assert site.wires.levels["fb_neg"] == 1
    site.drive("coil_neg", 0)
    site.run(20)
    assert site.closed("neg")
    site.run(10)
    assert not site.closed("neg")
    assert site.wires.levels["fb_neg"] == 0


def test_precharge_reaches_99_percent_at_4_6_time_constants() -> None:
    site = Site()
    site.run(100)
    site.drive("coil_neg", 1)
    site.drive("coil_pre", 1)
    site.run(3435)
    assert site.plant.dc_link_v < 0.99 * site.plant.rack.emf_v
    site.run(100)
    assert site.plant.dc_link_v > 0.99 * site.plant.rack.emf_v
    assert 0.0 < site.plant.rack_a < 0.01


def test_mains_closed_after_precharge_see_a_small_step_and_without_it_the_whole_rack() -> None:
    site = Site()
    site.close_mains()
    assert abs(site.plant.closed_at_dv_v) < 0.1
    rough = Site()
    rough.run(100)
    rough.drive("coil_neg", 1)
    rough.drive("coil_pos", 1)
    rough.run(100)
    assert rough.plant.closed_at_dv_v == pytest.approx(rough.plant.rack.emf_v)


@pytest.mark.parametrize("cut", ["kill_switch", "safe_enable", "guard_dead"])
def test_contactors_open_whatever_the_coil_commands_say(cut: str) -> None:
    site = Site()
    site.close_mains()
    if cut == "kill_switch":
        site.plant.set_kill_switch(True, site.now_ns)
        assert site.wires.levels["kill_switch"] == 0
    elif cut == "safe_enable":
        site.drive("safe_enable", 0)
    else:
        site.guard_lives = False
    site.run(150)
    assert not site.closed("neg")
    assert not site.closed("pos")


def test_the_alive_relay_falls_out_100_ms_after_the_last_toggle_and_not_before() -> None:
    site = Site()
    site.run(100)
    assert site.plant.alive_relay
    site.guard_lives = False
    last_ns = site.wires.output("alive")[1]
    site.plant.tick(last_ns + 100 * MS - 1)
    assert site.plant.alive_relay
    site.plant.tick(last_ns + 100 * MS)
    assert not site.plant.alive_relay


def test_a_stalled_bench_does_not_drop_the_relay_of_a_living_guard() -> None:
    site = Site()
    site.close_mains()
    site.now_ns += 3000 * MS
    site.drive("alive", 1)
    site.plant.tick(site.now_ns)
    assert site.plant.alive_relay
    assert site.closed("neg", "pos")


def test_a_welded_contactor_stays_closed_and_its_feedback_says_so() -> None:
    site = Site()
    site.close_mains()
    site.plant.contactors["pos"].welded = True
    site.plant.set_kill_switch(True, site.now_ns)
    site.run(200)
    assert site.closed("pos")
    assert site.wires.levels["fb_pos"] == 1
    assert not site.closed("neg")


def test_a_stuck_contactor_does_not_close() -> None:
    site = Site()
    site.plant.contactors["neg"].stuck = True
    site.run(100)
    site.drive("coil_neg", 1)
    site.run(200)
    assert not site.closed("neg")
    site.plant.contactors["neg"].stuck = False
    site.run(50)
    assert site.closed("neg")


def test_the_pcs_follows_its_set_point_and_shows_its_connection_resistance() -> None:
    site = Site()
    site.close_mains()
    site.deliver(-280.0)
    assert site.plant.rack_a == pytest.approx(-280.0, abs=0.1)
    assert site.plant.dc_link_v - site.plant.rack_v == pytest.approx(0.14, abs=0.01)
    site.plant.dv_offset_v = 3.0
    assert site.plant.pcs_v() - site.plant.rack_v == pytest.approx(3.14, abs=0.4)


def test_the_pcs_goes_to_zero_when_the_ems_heartbeat_stops_for_a_second() -> None:
    site = Site()
    site.close_mains()
    site.deliver(-280.0)
    site.run(850)
    assert site.plant.rack_a < -270.0
    site.run(1000)
    assert abs(site.plant.rack_a) < 1.0


def test_opening_under_load_breaks_the_current_at_once_and_is_recorded() -> None:
    site = Site()
    site.close_mains()
    site.deliver(-280.0)
    site.plant.set_kill_switch(True, site.now_ns)
    site.run(50)
    assert site.plant.rack_a == 0.0
    assert site.plant.opened_under_load == 1
    assert site.plant.opened_at_a == pytest.approx(-280.0, abs=1.0)


def test_the_pcs_carries_nothing_while_the_mains_are_open() -> None:
    site = Site()
    site.run(100)
    site.deliver(-280.0)
    assert site.plant.rack_a == 0.0


def test_bench_speed_moves_the_cells_and_nothing_else() -> None:
    slow, fast = Site(), Site(speed=120)
    gained = []
    for site in (slow, fast):
        site.close_mains()
        site.plant.rack.set_soc(0.5)
        site.deliver(-280.0, 2000)
        assert site.plant.rack_a == pytest.approx(-280.0, abs=0.1)
        gained.append(site.plant.rack.mean_soc() - 0.5)
    assert gained[1] == pytest.approx(120 * gained[0], rel=0.02)


def test_a_ground_fault_opens_the_insulation_monitor() -> None:
    site = Site()
    assert site.wires.levels["insulation"] == 1
    site.plant.ground_fault = True
    site.run(5)
    assert site.wires.levels["insulation"] == 0
    assert site.plant.insulation_kohm == 10.0


def test_healthy_inputs_read_healthy_and_loops_read_25_degc() -> None:
    site = Site()
    healthy = {"kill_switch", "tamper", "insulation", "local_remote", *(f"interlock_{n}" for n in range(1, 9))}
    assert {name for name, level in site.wires.levels.items() if level} == healthy
    assert site.wires.loops == (13000,) * 8
    assert -20 + (13.0 - 4.0) / 16.0 * 80 == 25.0


def test_the_time_from_kill_switch_to_safe_enable_is_measured_from_the_guards_stamp() -> None:
    site = Site()
    site.run(100)
    site.plant.set_kill_switch(True, site.now_ns)
    site.wires.words["safe_enable"] = (0, site.now_ns + 250_000)
    site.run(10)
    assert site.plant.edge_to_safe_us == 250.0


@pytest.mark.parametrize(("held_ms", "still_ms"), [(0, 195), (100, 95), (1000, 0)])
def test_a_press_of_the_reset_button_lasts_200_ms_or_as_long_as_it_is_held(held_ms: int, still_ms: int) -> None:
    site = Site()
    site.press(True)
    site.run(held_ms)
    site.press(False)
    site.run(still_ms)
    assert site.wires.levels["reset_button"] == (still_ms > 0)
    site.run(5)
    assert site.wires.levels["reset_button"] == 0


def test_the_loops_are_sampled_every_50_ms_unless_the_sampler_is_silent() -> None:
    site = Site()
    before = site.wires.loop_samples
    site.run(1000)
    assert site.wires.loop_samples - before == 20
    site.plant.sampler.silent = True
    site.run(1000)
    assert site.wires.loop_samples - before == 20


def shown(mode: LoopMode, ms: int) -> list[float]:
    """What loop 1 shows in each of its samples, mA; loop 2 stays healthy."""
    site, seen = Site(), []
    site.plant.sampler.loops[0].mode = mode
    for _ in range(ms // 50):
        site.run(50)
        seen.append(site.wires.loops[0] / 1000.0)
        assert site.wires.loops[1] == 13000
    return seen


def test_a_loop_opens_shorts_and_sticks() -> None:
    assert set(shown(LoopMode.OPEN, 500)) == {0.0}
    assert set(shown(LoopMode.SHORT, 500)) == {24.0}
    site = Site()
    loop = site.plant.sampler.loops[0]
    loop.mode = LoopMode.STUCK
    loop.ma = 15.0
    site.run(100)
    assert site.wires.loops[0] == 13000
    loop.mode = LoopMode.NORMAL
    site.run(100)
    assert site.wires.loops[0] == 15000


def test_a_spike_is_one_sample_of_30_k() -> None:
    assert shown(LoopMode.SPIKE, 500) == [19.0, *[13.0] * 9]


def test_a_drifting_loop_gains_a_tenth_of_a_kelvin_a_second() -> None:
    seen = shown(LoopMode.DRIFT, 10_000)
    assert seen[-1] - 13.0 == pytest.approx(0.2, abs=0.01)
    assert seen == sorted(seen)


def test_a_noisy_loop_has_a_twentieth_of_a_kelvin_rms() -> None:
    seen = shown(LoopMode.NOISE, 20_000)
    assert np.std(seen) == pytest.approx(0.05 / 5.0, rel=0.2)
    assert np.mean(seen) == pytest.approx(13.0, abs=0.003)


def test_without_24_v_every_input_reads_0_and_the_contactors_drop() -> None:
    site = Site()
    site.close_mains()
    site.plant.reset_pressed = site.plant.supply_24v_lost = True
    site.run(5)
    assert not any(site.wires.levels.values())
    site.run(50)
    assert not any(c.closed for c in site.plant.contactors.values())
    site.plant.reset_pressed = site.plant.supply_24v_lost = False
    site.run(300)
    assert site.wires.levels["kill_switch"] == site.wires.levels["interlock_1"] == 1
    assert site.closed("neg", "pos"), "the coils are still commanded"


def test_a_chattering_interlock_opens_once_a_period_for_its_time() -> None:
    site, seen = Site(), []
    site.plant.chatter_interlock, site.plant.chatter_period_ms, site.plant.chatter_open_ms = 3, 100.0, 20.0
    for _ in range(200):
        site.run(5)
        seen.append(site.wires.levels["interlock_3"])
        assert site.wires.levels["interlock_4"] == 1
    assert sum(a != b for a, b in pairwise(seen)) in (19, 20, 21)
    assert seen.count(0) == 40


def test_a_contactor_drops_out_although_its_coil_is_on() -> None:
    site = Site()
    site.close_mains()
    site.plant.contactors["pos"].dropped = True
    site.run(30)
    assert not site.closed("pos")
    assert site.closed("neg")
    site.plant.contactors["pos"].dropped = False
    site.run(50)
    assert site.closed("pos")


def test_a_slow_contactor_takes_its_time_both_ways() -> None:
    site = Site()
    slow = site.plant.contactors["neg"]
    slow.close_ns, slow.open_ns = 250 * MS, 150 * MS
    site.run(100)
    for level, ms in ((1, 250), (0, 150)):
        site.drive("coil_neg", level)
        site.run(ms)
        assert slow.closed != bool(level)
        site.run(10)
        assert slow.closed == bool(level)


def test_the_pcs_follows_a_share_of_its_set_point_only() -> None:
    site = Site()
    site.close_mains()
    site.plant.pcs.follow_pct = 60.0
    site.deliver(-280.0)
    assert site.plant.rack_a == pytest.approx(-168.0, abs=0.1)


def test_a_pcs_in_fault_says_so_and_carries_nothing() -> None:
    site = Site()
    site.close_mains()
    site.deliver(-280.0)
    site.plant.pcs.fault_bits = 4
    site.deliver(-280.0)
    assert site.plant.pcs.state == 3
    assert abs(site.plant.rack_a) < 0.1


def test_meters_err_as_told_and_the_truth_does_not() -> None:
    site = Site()
    site.close_mains()
    site.deliver(-280.0)
    plant, true_v = site.plant, site.plant.rack_v
    plant.pcs_gain, plant.pcs_offset_a, plant.bms_offset_a, plant.bms_offset_v = 1.1, -5.0, 50.0, 40.0
    assert plant.pcs_a() == pytest.approx(-313.0, abs=1.5)
    assert sum(plant.bms_string_a()) == pytest.approx(-230.0, abs=1.5)
    assert plant.bms_v() == pytest.approx(true_v + 40.0, abs=0.5)
    plant.pcs_forced_v = 1400.0
    assert plant.pcs_v() == 1400.0
    assert plant.rack_a == pytest.approx(-280.0, abs=0.1)
    assert plant.rack_v == true_v


def test_the_insulation_can_be_set_without_the_monitor_opening() -> None:
    site = Site()
    site.plant.insulation_set_kohm = 150.0
    site.run(5)
    assert site.plant.insulation_kohm == 150.0
    assert site.wires.levels["insulation"] == 1
