"""The 2.0 V rule: both edges, calibration, alignment, three in a row."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from math import inf, isnan, nan
from typing import Any

import pytest
from rig import Rig, settings

from firmware.config import Site
from statemachine import delta, faults
from statemachine.delta import Delta
from statemachine.signals import Bms, Pcs
from statemachine.states import State


@cache
def healthy() -> Bms:
    rig = Rig()
    rig.scan(200)
    assert rig.bms is not None
    return rig.bms


def bms(poll: int, stamp_ms: float, volts: float, amps: float = 0.0) -> Bms:
    return healthy()._replace(poll=poll, v_stamp_ms=stamp_ms, rack_v=volts, rack_a=amps)


def pcs(poll: int, stamp_ms: float, volts: float, amps: float = 0.0) -> Pcs:
    return Pcs(poll, stamp_ms, volts, amps, 0.0, 50.0, 400.0, 2, 0, 1000.0, 1000.0, True, 0.0)


def feed(d: Delta, start: int, samples: int, bms_v: float, pcs_v: float) -> Delta:
    s = settings()
    for n in range(start, start + samples):
        for k in range(5):
            d = delta.observe(d, s, bms(n, n * 100.0, bms_v), pcs(n * 5 + k, n * 100.0 + k * 20.0, pcs_v), True)
    return d


@pytest.mark.parametrize(("drift_v", "trips"), [(1.95, False), (-1.95, False), (2.05, True), (-2.05, True)])
def test_two_volts_are_allowed_and_more_is_not(drift_v: float, trips: bool) -> None:
    d = feed(Delta(), 1, 8, 1200.0, 1205.0)
    assert d.calibrated
    d = feed(d, 9, 5, 1200.0, 1205.0 + drift_v)
    assert d.exceeded is trips


def test_exactly_the_threshold_does_not_trip() -> None:
    d = feed(feed(Delta(), 1, 8, 1024.0, 1024.0), 9, 5, 1024.0, 1026.0)
    assert d.dv_v == 2.0
    assert not d.exceeded


def test_two_samples_in_a_row_do_not_trip_the_third_does() -> None:
    d = feed(Delta(), 1, 8, 1200.0, 1200.0)
    assert not feed(d, 9, 2, 1200.0, 1203.0).exceeded
    assert not feed(feed(feed(d, 9, 2, 1200.0, 1203.0), 11, 1, 1200.0, 1200.0), 12, 2, 1200.0, 1203.0).exceeded
    assert feed(d, 9, 3, 1200.0, 1203.0).exceeded


def test_calibration_waits_for_zero_current() -> None:
    d, s = Delta(), settings()
    for n in range(1, 12):
        d = delta.observe(d, s, bms(n, n * 100.0, 1200.0, -50.0), pcs(n, n * 100.0, 1203.0, -50.0), True)
    assert not d.calibrated


def test_a_ramp_in_voltage_seen_late_by_one_meter_is_no_delta() -> None:
    """At 20 V/s and samples 15 ms apart a naive comparison would be off by 0.3 V; aligned it is not."""
    d, s = feed(Delta(), 1, 8, 1200.0, 1200.0), settings()
    for n in range(200, 2200, 20):
        p = pcs(1000 + n, 2000.0 + n, 1200.0 + 0.02 * n)
        b_at = n - n % 100 - 15
        d = delta.observe(d, s, bms(50 + n // 100, 2000.0 + b_at, 1200.0 + 0.02 * b_at), p, True)
        if d.dv_v == d.dv_v:
            assert abs(d.dv_v) < 0.05


def test_a_pcs_sample_too_far_away_is_not_compared() -> None:
    d, s = feed(Delta(), 1, 8, 1200.0, 1200.0), settings()
    before = d.dv_v
    d = delta.observe(d, s, bms(99, 5000.0, 1200.0), pcs(999, 5500.0, 1300.0), True)
    assert d.dv_v == before


@pytest.mark.parametrize("phase_ms", [0.0, 1.0, 33.0, 50.0, 77.0, 99.0])
def test_at_the_slowest_polls_that_are_allowed_the_offset_is_found_in_time(phase_ms: float) -> None:
    """With a PCS poll of 200 ms, once allowed, no sample was near enough to another one and no rack could charge."""
    slowest = {e.name: e.metadata["limits"].le for e in fields(Site) if e.name in ("bms_poll_ms", "pcs_poll_ms")}
    d, s, at_ms, bms_poll, pcs_poll = Delta(), settings(), 0.0, 1, 1
    while at_ms < delta.CALIBRATION_TIME_MS:
        bms_poll, pcs_poll = (1 + int((at_ms + phase_ms) // slowest[name]) for name in ("bms_poll_ms", "pcs_poll_ms"))
        bms_ms = (bms_poll - 1) * slowest["bms_poll_ms"] - phase_ms
        pcs_ms = (pcs_poll - 1) * slowest["pcs_poll_ms"] - phase_ms + at_ms % 20  # a poll is late by up to 20 ms
        d = delta.observe(d, s, bms(bms_poll, bms_ms, 1300.0), pcs(pcs_poll, pcs_ms, 1300.0), True)
        assert not d.blind
        at_ms += 10.0
    assert d.calibrated


def test_opening_forgets_the_offset() -> None:
    d = feed(Delta(), 1, 8, 1200.0, 1205.0)
    assert delta.observe(d, settings(), bms(9, 900.0, 1200.0), pcs(90, 900.0, 1205.0), False) == Delta()


def test_no_charge_before_the_offset_is_known() -> None:
    rig = Rig().until(State.ISOLATED, 1000).send(mode=2, c_rate=0.5, target_soc_pct=80.0).until(State.READY, 15_000)
    rig.bms_changes = {"rack_a": 15.0}
    rig.scan(3000)
    assert rig.state() is State.READY
    rig.scan(9000)
    assert "ERR_DELTA_OFFSET" in faults.names(rig.o.faults_latched)


def test_an_offset_beyond_two_bad_meters_is_a_fault_not_a_calibration() -> None:
    rig = Rig(settings=settings(max_delta_offset=5.0), dv_offset_v=8.0)
    rig.until(State.ISOLATED, 1000).send(mode=1).until(State.READY, 15_000).until(State.FAULT, 5000)
    assert "ERR_DELTA_OFFSET" in faults.names(rig.o.faults_latched)


# alignment: the PCS voltage at the instant of the BMS sample

PAIR = ((1000.0, 1200.0), (1100.0, 1210.0))


@pytest.mark.parametrize(
    ("history", "stamp_ms", "volts"),
    [
        ((), 1000.0, nan),
        (PAIR, 1000.0, 1200.0),
        (PAIR, 1100.0, 1210.0),
        (PAIR, 1025.0, 1202.5),
        (PAIR, 1099.0, 1209.9),
        (PAIR, 1100.5, nan),
        (PAIR, nan, nan),
        (PAIR, 940.0, 1200.0),
        (PAIR, 939.5, nan),
        (PAIR[1:], 1040.0, 1210.0),
        (PAIR[1:], 1039.5, nan),
        (((1000.0, 1200.0), (1120.0, 1224.0)), 1010.0, 1202.0),
        (((1000.0, 1200.0), (1120.5, 1224.0)), 1010.0, nan),
        (((1000.0, 1200.0), (1120.5, 1224.0)), 1120.5, 1224.0),
        (((900.0, 1000.0), *PAIR), 1050.0, 1205.0),
        ((*PAIR, (1200.0, 1300.0)), 1050.0, 1205.0),
        ((*PAIR, (1200.0, 1300.0)), 1150.0, 1255.0),
        (((0.0, 0.0), *PAIR), 1000.0, 1200.0),
    ],
)
def test_the_pcs_voltage_is_taken_at_the_instant_of_the_bms_sample(
    history: tuple[tuple[float, float], ...], stamp_ms: float, volts: float
) -> None:
    assert delta._at(history, stamp_ms) == pytest.approx(volts, nan_ok=True)


# one scan


def seen(d: Delta, b: Bms | None, p: Pcs | None, closed: bool = True, **changes: Any) -> Delta:
    return delta.observe(d, settings(**changes), b, p, closed)


HISTORY = ((900.0, 1200.0),)
WAITING = Delta(history=HISTORY, pcs_poll=45, bms_poll=9, bms_ms=900.0, compared_ms=900.0)  # not calibrated yet
KNOWN = WAITING._replace(offset_v=5.0)


def next_samples(d: Delta, bms_v: float = 1200.0, pcs_v: float = 1205.0, **amps: float) -> Delta:
    """Both meters at the same instant, 100 ms later."""
    at_ms = d.history[-1][0] + 100.0
    b = bms(d.bms_poll + 1, at_ms, bms_v, amps.get("bms_a", 0.0))
    return seen(d, b, pcs(d.pcs_poll + 1, at_ms, pcs_v, amps.get("pcs_a", 0.0)))


def test_at_the_start_nothing_was_compared() -> None:
    d = Delta()
    assert d[:6] == ((), 0, 0, 0.0, 0.0, (0, 0.0))
    assert isnan(d.offset_v)
    assert isnan(d.dv_v)
    assert d.bad_in_row == 0
    assert (d.calibrated, d.exceeded, d.blind) == (False, False, False)


@pytest.mark.parametrize(("bad_in_row", "exceeded"), [(2, False), (3, True), (4, True)])
def test_three_in_a_row_exceed(bad_in_row: int, exceeded: bool) -> None:
    assert Delta(bad_in_row=bad_in_row).exceeded is exceeded


@pytest.mark.parametrize(("bms_ms", "blind"), [(4000.0, False), (4000.5, True)])
def test_three_seconds_without_a_comparison_are_blind(bms_ms: float, blind: bool) -> None:
    assert Delta(bms_ms=bms_ms, compared_ms=1000.0).blind is blind


@pytest.mark.parametrize("missing", ["bms", "pcs", "closed"])
def test_without_both_meters_or_closed_contactors_everything_is_forgotten(missing: str) -> None:
    b, p = bms(10, 1000.0, 1200.0), pcs(50, 1000.0, 1205.0)
    after = seen(KNOWN, None if missing == "bms" else b, None if missing == "pcs" else p, missing != "closed")
    assert repr(after) == repr(Delta())


def test_a_pcs_sample_is_remembered_once() -> None:
    b = bms(9, 900.0, 1200.0)
    once = seen(KNOWN, b, pcs(46, 920.0, 1206.0))
    assert (once.history, once.pcs_poll) == ((*HISTORY, (920.0, 1206.0)), 46)
    assert seen(once, b, pcs(46, 940.0, 1207.0)) is once


def test_the_last_24_pcs_samples_are_remembered() -> None:
    d = KNOWN._replace(history=())
    for n in range(30):
        d = seen(d, bms(9, 900.0, 1200.0), pcs(46 + n, 1000.0 + 20.0 * n, 1200.0 + n))
    assert d.history == tuple((1000.0 + 20.0 * n, 1200.0 + n) for n in range(6, 30))


def test_a_bms_sample_waits_for_the_pcs_sample_after_it() -> None:
    waits = seen(KNOWN, bms(10, 1000.0, 1200.0), pcs(46, 999.0, 1205.0))
    assert (waits.bms_poll, waits.bms_ms, waits.compared_ms) == (9, 900.0, 900.0)
    there = seen(waits, bms(10, 1000.0, 1200.0), pcs(47, 1000.0, 1205.0))
    assert (there.bms_poll, there.bms_ms, there.compared_ms, there.dv_v) == (10, 1000.0, 1000.0, 0.0)


def test_without_any_new_pcs_sample_nothing_is_compared() -> None:
    empty = Delta(pcs_poll=45)
    assert seen(empty, bms(10, 1000.0, 1200.0), pcs(45, 900.0, 1200.0)) is empty


def test_a_bms_sample_is_compared_once() -> None:
    once = next_samples(KNOWN, pcs_v=1210.0)
    assert (once.bad_in_row, once.dv_v) == (1, 5.0)
    again = seen(once, bms(10, 1000.0, 1200.0), pcs(47, 1020.0, 1210.0))
    assert (again.bad_in_row, again.compared_ms) == (1, 1000.0)


def test_the_first_bms_sample_after_closing_is_only_the_beginning() -> None:
    d = seen(Delta(), bms(10, 1000.0, 1200.0), pcs(46, 1000.0, 1205.0))
    assert (d.bms_poll, d.bms_ms, d.compared_ms, d.sums) == (10, 1000.0, 1000.0, (0, 0.0))
    d = seen(d, bms(11, 1100.0, 1200.0), pcs(47, 1100.0, 1205.0))
    assert (d.bms_poll, d.compared_ms, d.sums) == (11, 1100.0, (1, 5.0))


def test_the_poll_that_follows_number_one_is_compared() -> None:
    d = KNOWN._replace(bms_poll=1)
    assert next_samples(d).compared_ms == 1000.0


@pytest.mark.parametrize("pcs_v", [nan, inf, -inf])
def test_a_voltage_that_is_no_number_is_no_comparison(pcs_v: float) -> None:
    d = next_samples(KNOWN._replace(bad_in_row=2), pcs_v=pcs_v)
    assert (d.bms_ms, d.compared_ms, d.bad_in_row) == (1000.0, 900.0, 2)


@pytest.mark.parametrize(
    ("pcs_v", "dv_v", "bad_in_row"),
    [(1205.0, 0.0, 0), (1207.0, 2.0, 0), (1207.125, 2.125, 3), (1203.0, -2.0, 0), (1202.875, -2.125, 3)],
)
def test_a_comparison_counts_on_or_starts_again(pcs_v: float, dv_v: float, bad_in_row: int) -> None:
    d = next_samples(KNOWN._replace(bad_in_row=2), pcs_v=pcs_v)
    assert (d.dv_v, d.bad_in_row) == (dv_v, bad_in_row)


@pytest.mark.parametrize(
    ("amps", "at_rest"),
    [
        ({"bms_a": 2.0}, True), ({"bms_a": 2.1}, False), ({"bms_a": -2.0}, True), ({"bms_a": -2.1}, False),
        ({"pcs_a": 2.0}, True), ({"pcs_a": 2.1}, False), ({"pcs_a": -2.0}, True), ({"pcs_a": -2.1}, False),
    ],
)  # fmt: skip
def test_both_meters_must_be_at_rest_while_the_offset_is_taken(amps: dict[str, float], at_rest: bool) -> None:
    d = next_samples(WAITING._replace(sums=(2, 8.0)), **amps)
    assert d.sums == ((3, 13.0) if at_rest else (0, 0.0))
    assert not d.calibrated


def test_the_offset_is_the_mean_of_five_samples() -> None:
    d = WAITING
    for n, volts in enumerate((1204.0, 1205.0, 1206.0, 1207.0), start=1):
        d = next_samples(d, pcs_v=volts)
        assert (d.sums[0], d.calibrated) == (n, False)
    d = next_samples(d, pcs_v=1213.0)
    assert (d.offset_v, d.dv_v, d.sums, d.calibrated) == (7.0, 6.0, (0, 0.0), True)
    assert d.bad_in_row == 0


def test_the_numbers_of_the_comparison() -> None:
    assert (delta.CALIBRATION_TIME_MS, delta.BLIND_MS) == (10_000.0, 3000.0)
