"""The 2.0 V rule: both edges, calibration, alignment, three in a row."""

from __future__ import annotations

import pytest
from rig import Rig, settings

from statemachine import delta, faults
from statemachine.delta import Delta
from statemachine.signals import Bms, Pcs
from statemachine.states import State


def bms(poll: int, stamp_ms: float, volts: float, amps: float = 0.0) -> Bms:
    rig = Rig()
    rig.scan(200)
    assert rig.bms is not None
    return rig.bms._replace(poll=poll, v_stamp_ms=stamp_ms, rack_v=volts, rack_a=amps)


def pcs(poll: int, stamp_ms: float, volts: float, amps: float = 0.0) -> Pcs:
    return Pcs(poll, stamp_ms, volts, amps, 0.0, 50.0, 2, 0, 1000.0, 1000.0, True, 0.0)


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
