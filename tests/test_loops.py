"""The thermal loops: what is believed, what derates, and what stops."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import inf, isnan, nan
from typing import Any

import pytest
from hypothesis import given, strategies
from rig import settings

from statemachine.loops import (
    DISAGREE_K,
    JUMP_HOLD_MS,
    JUMP_K,
    LOOPS,
    NE43_HIGH_MA,
    NE43_LOW_MA,
    SETTLED_K,
    STUCK_K,
    STUCK_LOAD_C,
    STUCK_MS,
    STUCK_OTHERS_K,
    UNSEEN,
    Judged,
    LoopMemory,
    Track,
    judge,
)
from statemachine.settings import Settings

ZONES = (1, 1, 2, 2, 3, 3, 4, 4)
SCAN_MS, SAMPLE_MS = 10, 50


def ma(c: float) -> float:
    """The current of a loop at a temperature, 4..20 mA = -20..60 degC."""
    return 4.0 + (c + 20.0) / 80.0 * 16.0


def rules(**changes: Any) -> Settings:
    return settings(**{"loop_zones": ZONES, "loop_filter_time": 1.0, "loop_max_rate": 5.0, **changes})


@dataclass
class Loops:
    """Scans of 10 ms over samples every 50 ms; `at` moves loops and scans on."""

    settings: Settings = field(default_factory=rules)
    rate_c: float = 0.0
    memory: LoopMemory = field(default_factory=LoopMemory)
    seen: Judged = field(default_factory=Judged)
    loops_ma: list[float] = field(default_factory=lambda: [ma(25.0)] * 8)
    noise_k: float = 0.0
    now_ms: int = 0
    sample: tuple[float, ...] = ()

    def at(self, ms: int, **c: float) -> Judged:
        """`at(100, n1=55.0)`: loop 1 shows 55 degC, 100 ms pass."""
        for name, value in c.items():
            self.loops_ma[int(name[1:]) - 1] = ma(value)
        return self.wait(ms)

    def raw(self, ms: int, loop: int, current_ma: float) -> Judged:
        self.loops_ma[loop - 1] = current_ma
        return self.wait(ms)

    def wait(self, ms: int) -> Judged:
        for _ in range(ms // SCAN_MS):
            if self.now_ms % SAMPLE_MS == 0:
                self.sample = tuple(a + self.random.gauss(0.0, self.noise_k) / 5.0 for a in self.loops_ma)
            age_ms = float(self.now_ms % SAMPLE_MS) + 7.0
            self.memory, self.seen = judge(self.memory, self.sample, age_ms, self.settings, self.rate_c, float(SCAN_MS))
            self.now_ms += SCAN_MS
        return self.seen

    def __post_init__(self) -> None:
        self.random = random.Random(3)
        self.wait(500)


def once(*loops_ma: float, age_ms: float = 5.0, **changes: Any) -> Judged:
    """The verdict on a first sample; loops left out show 25 degC."""
    sample = (*loops_ma, *(ma(25.0),) * (8 - len(loops_ma)))
    return judge(LoopMemory(), sample, age_ms, rules(**changes), 0.0, 10.0)[1]


def test_eight_good_loops_are_believed_and_the_hottest_counts() -> None:
    assert once(ma(24.0), ma(31.0)) == Judged(hottest_c=31.0)


@pytest.mark.parametrize("current_ma", [3.599, 21.001, 0.0, -4.0, nan, inf, -inf, 1e300])
def test_a_loop_outside_ne43_is_failed_at_once_and_not_used(current_ma: float) -> None:
    assert once(current_ma) == Judged(hottest_c=25.0, failed=1)


@pytest.mark.parametrize(("current_ma", "c"), [(3.6, -20.0), (3.7, -20.0), (4.0, -20.0), (20.7, 60.0), (21.0, 60.0)])
def test_a_saturated_loop_shows_the_end_of_its_range(current_ma: float, c: float) -> None:
    assert once(current_ma, loops_used=1) == Judged(hottest_c=c)


@pytest.mark.parametrize(("current_ma", "c"), [(4.0, 0.0), (12.0, 100.0), (20.0, 200.0)])
def test_the_range_of_the_transmitter_is_configured(current_ma: float, c: float) -> None:
    assert once(current_ma, loops_used=1, loop_low_c=0.0, loop_high_c=200.0).hottest_c == c


def test_a_loop_that_is_not_used_is_not_looked_at() -> None:
    assert once(nan, 0.0, ma(59.0), loops_used=0b11111000) == Judged(hottest_c=25.0)
    seen = once(loops_used=0)
    assert isnan(seen.hottest_c)
    assert not any(seen[1:])


def test_with_all_loops_dead_nothing_is_hot_and_the_zones_are_lost() -> None:
    seen = once(*(0.0,) * 8)
    assert isnan(seen.hottest_c)
    assert seen[1:] == Judged(failed=0xFF, zone_lost=True)[1:]


@pytest.mark.parametrize(
    ("broken", "zones", "used", "lost"),
    [
        ((1,), ZONES, 0xFF, False),
        ((1, 2), ZONES, 0xFF, True),
        ((2, 3), ZONES, 0xFF, False),
        ((1, 3, 5, 7), ZONES, 0xFF, False),
        ((7, 8), ZONES, 0xFF, True),
        ((1,), ZONES, 0b11111101, False),  # the only one of its zone
        ((1, 2), ZONES, 0b11111101, False),  # loop 2 is not wired
        ((1, 8), (1, 1, 1, 1, 1, 1, 1, 1), 0xFF, True),
        ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8), 0xFF, False),
    ],
)
def test_two_failed_loops_lose_their_zone_and_one_derates(
    broken: tuple[int, ...], zones: tuple[int, ...], used: int, lost: bool
) -> None:
    loops_ma = [0.0 if n in broken else 12.0 for n in range(1, 9)]
    seen = once(*loops_ma, loop_zones=zones, loops_used=used)
    assert seen.zone_lost == lost
    assert seen.failed == used & sum(1 << n - 1 for n in broken)


@pytest.mark.parametrize(
    ("age_ms", "stale"),
    [
        (300.0, False),
        (300.001, True),
        (inf, True),
        (nan, True),
        (-0.5, False),
        (-300.0, False),
        (-301.0, True),
        (-inf, True),
    ],
)
def test_samples_older_than_300_ms_are_stale_and_that_is_all_that_is_said(age_ms: float, stale: bool) -> None:
    seen = once(0.0, 0.0, age_ms=age_ms, loops_used=0x0F)
    assert (seen.stale, seen.failed, seen.zone_lost) == ((True, 0x0F, False) if stale else (False, 0x03, True))
    assert isnan(seen.hottest_c) == stale


@pytest.mark.parametrize(("age_ms", "stale"), [(301.0, False), (1500.0, False), (1500.5, True), (-1500.5, True)])
def test_a_slow_converter_is_given_its_time(age_ms: float, stale: bool) -> None:
    assert once(12.0, age_ms=age_ms, loop_timeout=1.5).stale == stale


def test_stale_samples_are_forgotten_and_the_first_new_one_counts() -> None:
    loops = Loops()
    loops.memory, _ = judge(loops.memory, (12.0,) * 8, 301.0, loops.settings, 0.0, 10.0)
    assert loops.memory == LoopMemory()
    assert loops.at(10, n1=31.0) == Judged(hottest_c=31.0)


def test_between_two_samples_the_verdict_stands() -> None:
    loops = Loops()
    loops.wait(10)
    before = loops.memory
    seen = loops.wait(30)
    assert loops.memory[1:] == before[1:]
    assert loops.memory.tracks is before.tracks
    assert seen is before.judged


def test_constant_samples_come_to_rest() -> None:
    loops = Loops()
    before = loops.memory
    assert loops.wait(1000) == Judged(hottest_c=25.0)
    assert loops.memory == before
    assert loops.memory.members == 0xFF


def test_a_sample_is_new_when_it_is_younger_whatever_the_phase_of_sampler_and_scan() -> None:
    rng, rule, memory = random.Random(1), rules(), judge(LoopMemory(), (12.0,) * 8, 3.0, rules(), 0.0, 10.0)[0]
    stamp_ms, now_ms, samples = 0.0, 3.0, 0
    for _ in range(20_000):
        dt_ms, was = 10.0 + rng.uniform(-2.0, 2.0), memory
        now_ms += dt_ms + rng.uniform(-0.5, 0.5)
        new = now_ms - stamp_ms > 60.0 + rng.uniform(-4.0, 4.0)
        if new:
            stamp_ms, samples = now_ms - rng.uniform(0.0, 25.0), samples + 1
        memory, _ = judge(memory, (12.0,) * 8, now_ms - stamp_ms, rule, 0.0, dt_ms)
        assert (memory.tracks is not was.tracks) == new
    assert samples > 2000


@pytest.mark.parametrize(("age_ms", "new"), [(9.99, True), (10.0, False), (15.0, False), (4.0, True)])
def test_a_sample_may_come_half_a_scan_late_and_is_still_new(age_ms: float, new: bool) -> None:
    memory, _ = judge(LoopMemory(), (12.0,) * 8, 5.0, rules(), 0.0, 10.0)
    after, _ = judge(memory, (12.5,) * 8, age_ms, rules(), 0.0, 10.0)
    assert (after.tracks != memory.tracks) == new
    assert after.age_ms == age_ms


@pytest.mark.parametrize("spike_k", [30.0, -30.0])
def test_a_spike_of_one_sample_neither_derates_nor_marks(spike_k: float) -> None:
    loops = Loops()
    loops.at(SAMPLE_MS, n1=25.0 + spike_k)
    assert loops.seen == Judged(hottest_c=25.0)
    for _ in range(30):
        assert loops.at(SCAN_MS, n1=25.0) == Judged(hottest_c=25.0)


def test_a_true_step_derates_with_its_second_sample() -> None:
    loops = Loops()
    assert loops.at(60, n1=55.0) == Judged(hottest_c=55.0, failed=1, jumped=1)


def test_a_rise_counts_at_once_and_a_fall_through_the_filter() -> None:
    loops = Loops()
    assert loops.at(60, n1=26.5).hottest_c == 26.5
    fell = loops.at(1000, n1=25.0)
    assert 25.4 < fell.hottest_c < 25.7
    assert loops.wait(5000).hottest_c == 25.0


def test_a_fall_is_filtered_with_the_time_constant() -> None:
    loops = Loops()
    loops.at(1000, n1=26.5)
    assert loops.at(100, n1=25.0).hottest_c == pytest.approx(25.0 + 1.5 / 1.05, abs=1e-9)
    assert loops.wait(50).hottest_c == pytest.approx(25.0 + 1.5 / 1.05**2, abs=1e-9)


@pytest.mark.parametrize(("fall_k", "left_k"), [(2 / 64, 0.0), (2.25 / 64, 1.125 / 64)])
def test_a_fall_has_ended_a_64th_of_a_kelvin_above_its_end(fall_k: float, left_k: float) -> None:
    chosen = rules(loops_used=1, loop_low_c=0.0, loop_high_c=16.0, loop_filter_time=0.05)
    memory = LoopMemory()
    for c in (1.0, 1.0, 1.0, 1.0 - fall_k, 1.0 - fall_k):
        memory, seen = judge(memory, (4.0 + c, *(0.0,) * 7), 5.0, chosen, 0.0, 50.0)
    assert seen.hottest_c == 1.0 - fall_k + left_k


@pytest.mark.parametrize(("step_k", "jumped"), [(2.0, 0), (2.0625, 1), (-2.0, 0), (-2.0625, 1)])
def test_two_kelvin_beyond_the_rate_are_not_yet_a_jump(step_k: float, jumped: int) -> None:
    chosen = rules(loops_used=1, loop_low_c=0.0, loop_high_c=16.0, loop_max_rate=0.0)
    memory = LoopMemory()
    for c in (8.0, 8.0, 8.0, 8.0 + step_k, 8.0 + step_k):
        memory, seen = judge(memory, (4.0 + c, *(0.0,) * 7), 5.0, chosen, 0.0, 50.0)
    assert seen.jumped == jumped


def test_without_a_filter_a_fall_counts_with_its_second_sample() -> None:
    loops = Loops(rules(loop_filter_time=0.0))
    loops.at(1000, n1=26.5)
    assert loops.at(60, n1=25.0).hottest_c == 25.0


@pytest.mark.parametrize("c", [45.0, 45.1])
def test_after_settling_the_boundary_is_exact(c: float) -> None:
    loops = Loops()
    loops.at(20_000, **{f"n{n}": c + 1.5 for n in range(1, 9)})
    assert loops.at(10_000, **{f"n{n}": c for n in range(1, 9)}).hottest_c == pytest.approx(c, abs=1e-12)
    assert (loops.seen.hottest_c > 45.0) == (c > 45.0)


def test_noise_does_not_pull_the_hottest_far_up() -> None:
    loops = Loops(noise_k=0.05)
    worst = max(loops.wait(SAMPLE_MS).hottest_c for _ in range(1200))
    assert 25.0 < worst < 25.3


def test_a_fire_is_seen_at_its_heat_while_the_loop_counts_as_failed() -> None:
    loops = Loops()
    for step in range(1, 41):
        loops.at(SAMPLE_MS, n1=25.0 + 0.75 * step)  # 15 K/s
    assert loops.seen.jumped == loops.seen.failed == 1
    assert loops.seen.hottest_c >= 54.0
    assert not loops.seen.zone_lost


def test_a_fire_at_two_loops_of_a_zone_loses_the_zone() -> None:
    loops = Loops()
    assert loops.at(60, n1=58.0, n2=57.0) == Judged(hottest_c=58.0, failed=3, jumped=3, zone_lost=True)


def test_a_jump_down_is_not_believed_until_the_loop_was_quiet_for_5_s() -> None:
    loops = Loops()
    loops.at(60_000, n1=40.0)
    assert loops.at(4900, n1=10.0) == Judged(hottest_c=40.0, failed=1, jumped=1)
    assert loops.at(300).failed == 0
    assert loops.wait(20_000) == Judged(hottest_c=25.0, disagree=True)


def test_a_jump_up_that_goes_back_keeps_its_heat_for_the_hold_time() -> None:
    loops = Loops()
    loops.at(2000, n1=50.0)
    assert loops.at(4900, n1=25.0) == Judged(hottest_c=50.0, failed=1, jumped=1)
    assert loops.wait(10_000) == Judged(hottest_c=25.0)


@pytest.mark.parametrize(("rate_k_s", "jumped"), [(4.9, 0), (5.5, 1), (-4.9, 0), (-5.5, 1)])
def test_only_a_change_faster_than_the_limit_for_some_seconds_is_a_jump(rate_k_s: float, jumped: int) -> None:
    loops, c = Loops(), 20.0
    loops.at(20_000, n1=c)
    marked = 0
    for _ in range(140):
        c += rate_k_s * SAMPLE_MS / 1000.0
        marked |= loops.at(SAMPLE_MS, n1=c).jumped
    assert marked == jumped


def heated(loops: Loops, seconds: int, still: tuple[int, ...] = (), per_s: float = 0.05) -> Judged:
    """All loops but `still` warm up."""
    for _ in range(seconds):
        for at in range(8):
            loops.loops_ma[at] += 0.0 if at + 1 in still else per_s / 5.0
        loops.wait(1000)
    return loops.seen


def test_a_loop_that_stands_still_under_load_while_the_others_warm_is_stuck() -> None:
    loops = Loops(rate_c=-0.5)
    assert heated(loops, 58, still=(3,)).stuck == 0
    assert heated(loops, 5, still=(3,))[1:] == Judged(failed=4, stuck=4)[1:]


def test_a_stuck_loop_is_stuck_until_it_moves_also_without_load() -> None:
    loops = Loops(rate_c=0.5)
    heated(loops, 70, still=(3,))
    loops.rate_c = 0.0
    assert loops.wait(120_000).stuck == 4
    assert loops.at(200, n3=25.1).stuck == 0


def test_a_loop_that_sticks_in_the_middle_of_a_charge_is_seen() -> None:
    loops = Loops(rate_c=-0.5)
    assert heated(loops, 120).stuck == 0
    assert heated(loops, 70, still=(8,)).stuck == 0x80


def test_two_stuck_loops_of_a_zone_lose_it() -> None:
    assert heated(Loops(rate_c=-0.5), 100, still=(5, 6))[1:] == Judged(failed=0x30, stuck=0x30, zone_lost=True)[1:]


@pytest.mark.parametrize("rate_c", [0.0, 0.2, -0.2, nan])
def test_without_load_no_loop_is_stuck(rate_c: float) -> None:
    assert heated(Loops(rate_c=rate_c), 100, still=(3,)).stuck == 0


def test_at_a_constant_temperature_no_loop_is_stuck_however_long_the_load() -> None:
    assert Loops(rate_c=-1.0).wait(600_000) == Judged(hottest_c=25.0)


def test_what_happened_without_load_is_not_held_against_a_loop() -> None:
    chosen, memory = rules(loops_used=0b111, loop_low_c=0.0, loop_high_c=16.0), LoopMemory()
    for second in range(200):
        warm = 12.0 + min(3.0, second / 32.0)
        rate_c = 0.0 if 1 < second < 100 else 0.5
        memory, seen = judge(memory, (warm, warm, 12.0, *(0.0,) * 5), 5.0, chosen, rate_c, 1000.0)
        assert seen.stuck == 0


def test_a_loop_is_stuck_after_60_s_and_not_before() -> None:
    chosen, memory, samples = rules(loops_used=0b111, loop_low_c=0.0, loop_high_c=16.0), LoopMemory(), 0
    while not memory.judged.stuck:
        warm = 12.0 + samples / 16.0
        memory, _ = judge(memory, (warm, warm, 12.0, *(0.0,) * 5), 5.0, chosen, 0.5, 999.99)
        samples += 1
    assert samples == 2 + 61, "two to have something to compare with, then 60 s"


def test_a_loop_in_a_cooler_place_than_the_others_is_stuck_all_the_same() -> None:
    chosen, memory = rules(loops_used=0b111, loop_low_c=0.0, loop_high_c=16.0), LoopMemory()
    for second in range(101):
        warm = 8.0 + second / 32.0
        memory, seen = judge(memory, (warm, warm, 5.0, *(0.0,) * 5), 5.0, chosen, 0.5, 1000.0)
    assert seen.stuck == 4


def test_the_numbers_of_the_loops_and_the_memory_at_the_start() -> None:
    assert (LOOPS, NE43_LOW_MA, NE43_HIGH_MA) == (8, 3.6, 21.0)
    assert (SETTLED_K, JUMP_K, JUMP_HOLD_MS, DISAGREE_K) == (1 / 64, 2.0, 5000.0, 10.0)
    assert (STUCK_K, STUCK_OTHERS_K, STUCK_MS, STUCK_LOAD_C) == (1 / 64, 2.0, 60_000.0, 0.2)
    assert LoopMemory() == (inf, (None,) * LOOPS, 0, Judged())
    assert Track(1.0, 2.0, 3.0, 4.0, 5.0)[5:] == (0.0, UNSEEN, 0.0, 0.0)
    assert UNSEEN < 0.0, "no time is"
    assert isnan(Judged().hottest_c)
    assert Judged()[1:] == (0, 0, 0, False, False, False)


@pytest.mark.parametrize(("moved", "stuck"), [(1 / 64, 4), (1.25 / 64, 0)])
def test_a_64th_of_a_kelvin_is_not_a_movement(moved: float, stuck: int) -> None:
    chosen, memory = rules(loops_used=0b111, loop_low_c=0.0, loop_high_c=16.0), LoopMemory()
    for second in range(101):
        still = 12.0 + (moved if second > 50 else 0.0)
        warm = 12.0 + second / 32.0
        memory, seen = judge(memory, (warm, warm, still, *(0.0,) * 5), 5.0, chosen, 0.5, 1000.0)
    assert seen.stuck == stuck


@pytest.mark.parametrize(("warmer_k", "stuck"), [(2.0, 0), (2.0625, 4)])
def test_the_others_must_have_moved_by_more_than_two_kelvin(warmer_k: float, stuck: int) -> None:
    chosen, memory = rules(loops_used=0b111, loop_low_c=0.0, loop_high_c=16.0), LoopMemory()
    for second in range(101):
        warm = 12.0 + warmer_k * min(second, 80) / 80.0
        memory, seen = judge(memory, (warm, warm, 12.0, *(0.0,) * 5), 5.0, chosen, 0.5, 1000.0)
    assert seen.stuck == stuck


@pytest.mark.parametrize(
    ("others_k", "stuck"),
    [
        ((2.5,), 1), ((1.5,), 0), ((0.5, 4.0), 1), ((0.5, 3.0), 0), ((1.0, 2.5, 2.5), 1), ((2.5, 1.5, 1.0), 0),
        ((1.0, 1.5, 3.0, 6.0), 1), ((6.0, 2.5, 1.0, 1.0), 0), ((6.0, 1.5, 1.0, 2.5, 2.5), 1),
        ((6.0, 1.5, 1.0, 1.5, 6.0), 0), ((1.0, 1.0, 1.5, 3.0, 6.0, 6.0), 1), ((1.5, 1.5, 1.5, 1.5, 6.0, 6.0, 6.0), 0),
    ],
)  # fmt: skip
def test_what_counts_of_the_others_is_their_median(others_k: tuple[float, ...], stuck: int) -> None:
    chosen = rules(loops_used=(2 << len(others_k)) - 1, loop_low_c=0.0, loop_high_c=16.0)
    memory = LoopMemory()
    for second in range(101):
        warm = [13.0 + k * second / 100.0 + 0.02 * (second % 2) for k in others_k]
        loops_ma = (13.0, *warm, *(0.0,) * (7 - len(warm)))
        memory, seen = judge(memory, loops_ma, 5.0, chosen, 0.5, 1000.0)
    assert seen.stuck & 1 == stuck


def test_with_others_that_hardly_warm_no_loop_is_stuck() -> None:
    assert heated(Loops(rate_c=-1.0), 190, still=(3,), per_s=0.01).stuck == 0


def test_a_single_loop_is_compared_with_nothing() -> None:
    assert Loops(rules(loops_used=4), rate_c=-1.0).wait(200_000) == Judged(hottest_c=25.0)


def test_a_loop_that_breaks_does_not_make_its_still_neighbours_stuck() -> None:
    loops = Loops(rules(loops_used=0b111), rate_c=-1.0)
    loops.at(100_000, n3=35.0)
    for _ in range(3):
        loops.raw(70_000, 3, 0.0)
        assert loops.seen.stuck == 0
        loops.at(70_000, n3=35.0)
        assert loops.seen.stuck == 0


def test_a_loop_that_jumps_does_not_make_its_still_neighbours_stuck() -> None:
    loops = Loops(rules(loops_used=0b11), rate_c=-1.0)
    loops.wait(100_000)
    loops.at(100, n2=45.0)
    assert loops.seen.jumped == 2
    assert loops.wait(120_000).stuck == 0


def test_noisy_loops_on_a_warming_rack_raise_nothing() -> None:
    loops = Loops(rate_c=-0.5, noise_k=0.05)
    for _ in range(300):
        seen = heated(loops, 1, per_s=0.02)
        assert seen[1:] == Judged()[1:]


@pytest.mark.parametrize(("apart_k", "disagree"), [(9.9, False), (10.0, False), (10.1, True)])
def test_two_healthy_loops_of_a_zone_may_be_10_k_apart(apart_k: float, disagree: bool) -> None:
    seen = once(ma(30.0), ma(30.0 + apart_k))
    assert seen.disagree == disagree
    assert seen.hottest_c == pytest.approx(30.0 + apart_k)


def test_loops_of_different_zones_and_failed_ones_do_not_disagree() -> None:
    assert not once(ma(20.0), ma(20.0), ma(50.0), ma(50.0)).disagree
    assert not once(ma(50.0), 0.0).disagree


CURRENT = strategies.one_of(
    strategies.floats(), strategies.sampled_from([3.6, 21.0, 4.0, 20.0, nan, inf, -inf]), strategies.floats(3.0, 22.0)
)
SCANS = strategies.lists(
    strategies.tuples(
        strategies.tuples(*(CURRENT,) * 8),
        strategies.one_of(strategies.floats(0.0, 400.0), strategies.floats()),  # age
        strategies.one_of(strategies.floats(-2.0, 2.0), strategies.just(nan)),  # rate
    ),
    max_size=12,
)


@given(SCANS, strategies.integers(0, 255), strategies.tuples(*(strategies.integers(1, 8),) * 8))
def test_whatever_comes_the_verdict_is_sound(scans: list[Any], used: int, zones: tuple[int, ...]) -> None:
    chosen, memory = rules(loops_used=used, loop_zones=zones), LoopMemory()
    for loops_ma, age_ms, rate_c in scans:
        memory, seen = judge(memory, loops_ma, age_ms, chosen, rate_c, 10.0)
        assert not seen.failed & ~used
        assert seen.failed | seen.stuck | seen.jumped == seen.failed
        assert isnan(seen.hottest_c) or -20.0 <= seen.hottest_c <= 60.0
        assert not isnan(seen.hottest_c) or seen.failed == used
        assert not seen.zone_lost or seen.failed.bit_count() > 1
        assert seen.stale == (not abs(age_ms) <= 300.0)


@given(strategies.lists(strategies.floats(-20.0, 60.0), min_size=3, max_size=30))
def test_the_used_value_is_never_below_the_median_of_the_last_three_samples(temperatures: list[float]) -> None:
    memory, chosen = LoopMemory(), rules(loops_used=1)
    for at, c in enumerate(temperatures):
        memory, seen = judge(memory, (ma(c), *(nan,) * 7), 5.0, chosen, 0.0, 50.0)
        if at >= 2:
            assert seen.hottest_c >= sorted(temperatures[at - 2 : at + 1])[1] - 1e-9
