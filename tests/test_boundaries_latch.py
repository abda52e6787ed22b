"""Debounce and latch at their edges: when a condition counts, and what it takes until a fault is gone."""

from __future__ import annotations

import pytest

from statemachine import latch
from statemachine.faults import CONFIRM_MS, FAULTS, Fault, Severity
from statemachine.latch import Latches

DT_MS = 10.0
SLOW = next(f for f in FAULTS if f.severity is Severity.STOP and f.confirm_ms == 200)
STOP = next(f for f in FAULTS if f.severity is Severity.STOP and f.confirm_ms == 0)
TRIP = next(f for f in FAULTS if f.severity is Severity.TRIP and f.confirm_ms == 0)
LOCKOUT = next(f for f in FAULTS if f.severity is Severity.LOCKOUT and f.confirm_ms == 0)
WARNING = next(f for f in FAULTS if f.severity is Severity.WARNING and f.confirm_ms == 0)
SEVERE = (STOP, TRIP, LOCKOUT)


def mask(*faults: Fault) -> int:
    return sum(1 << f.bit for f in faults)


def scan(
    now: Latches, *raw: Fault, ack: bool = False, reset: bool = False, service: bool = False, dt_ms: float = DT_MS
) -> Latches:
    return latch.step(now, mask(*raw), dt_ms, ack, reset, service)


def held(*faults: Fault) -> Latches:
    """Latched, with the cause gone."""
    return Latches(latched=mask(*faults))


def test_at_the_start_nothing_stands_and_nothing_is_latched() -> None:
    assert Latches() == ((), 0, 0, 0, 0, 0)
    assert scan(Latches()) == Latches()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_a_condition_counts_when_it_has_stood_longer_than_its_time(fault: Fault) -> None:
    at = scan(Latches(), fault, dt_ms=float(fault.confirm_ms))
    assert at.standing_ms == ((fault.bit, float(fault.confirm_ms)),)
    assert at.active == (0 if fault.confirm_ms else mask(fault))
    after = scan(at, fault, dt_ms=0.5)
    assert after.standing_ms == ((fault.bit, fault.confirm_ms + 0.5),)
    assert after.active == mask(fault)
    assert after.latched == (mask(fault) if fault.severity >= Severity.STOP else 0)


def test_a_condition_that_goes_starts_its_time_again() -> None:
    now = scan(Latches(), SLOW, dt_ms=200.0)
    now = scan(scan(now), SLOW)
    assert (now.standing_ms, now.active, now.latched) == (((SLOW.bit, DT_MS),), 0, 0)


def test_conditions_are_timed_apart_in_the_order_of_their_bits() -> None:
    now = scan(scan(Latches(), SLOW, dt_ms=150.0), SLOW, TRIP, dt_ms=60.0)
    assert now.standing_ms == tuple(sorted([(SLOW.bit, 210.0), (TRIP.bit, 60.0)]))
    assert now.active == mask(SLOW, TRIP)
    assert CONFIRM_MS[SLOW.bit] == 200


def test_a_warning_ends_with_its_cause_and_a_severe_fault_stays() -> None:
    now = scan(Latches(), WARNING, STOP)
    assert (now.active, now.latched, now.shown) == (mask(WARNING, STOP), mask(STOP), mask(WARNING, STOP))
    now = scan(now)
    assert (now.active, now.latched, now.shown) == (0, mask(STOP), mask(STOP))


def test_what_stands_is_shown_and_so_is_what_is_latched() -> None:
    assert Latches(active=0b0110, latched=0b0011).shown == 0b0111


@pytest.mark.parametrize("fault", SEVERE, ids=lambda f: f.severity.name)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("service", [False, True])
@pytest.mark.parametrize("ack", [False, True])
def test_what_it_takes_until_a_fault_is_gone(fault: Fault, ack: bool, reset: bool, service: bool) -> None:
    needed = {
        Severity.STOP: ack,
        Severity.TRIP: ack and reset,
        Severity.LOCKOUT: ack and service,
    }[fault.severity]
    at_once = scan(held(fault), ack=ack, reset=reset, service=service)
    one_by_one = scan(scan(scan(held(fault), reset=reset), service=service), ack=ack)
    backwards = scan(scan(scan(held(fault), ack=ack), service=service), reset=reset)
    for now in (at_once, one_by_one, backwards):
        assert now.latched == (0 if needed else mask(fault))
        if needed:
            assert now == Latches(), "nothing of it is remembered"


@pytest.mark.parametrize("fault", SEVERE, ids=lambda f: f.severity.name)
def test_what_was_done_before_the_cause_was_gone_does_not_count(fault: Fault) -> None:
    now = scan(held(fault), fault, ack=True, reset=True, service=True)
    assert (now.latched, now.acked, now.reset, now.service) == (mask(fault), 0, 0, 0)
    assert scan(now).latched == mask(fault)


@pytest.mark.parametrize("fault", [TRIP, LOCKOUT], ids=lambda f: f.severity.name)
def test_a_cause_that_comes_back_takes_what_was_done(fault: Fault) -> None:
    now = scan(held(fault), ack=True)
    assert now.acked == mask(fault)
    pressed = scan(held(fault), reset=True, service=True)
    assert (pressed.reset, pressed.service) == (mask(fault), mask(fault))
    for before in (now, pressed):
        again = scan(before, fault)
        assert (again.latched, again.acked, again.reset, again.service) == (mask(fault), 0, 0, 0)


def test_faults_are_cleared_apart() -> None:
    now = scan(held(STOP, TRIP, LOCKOUT), TRIP, ack=True, service=True)
    assert now.latched == mask(TRIP)
    now = scan(held(STOP, TRIP, LOCKOUT), ack=True)
    assert (now.latched, now.acked) == (mask(TRIP, LOCKOUT), mask(TRIP, LOCKOUT))
    now = scan(now, reset=True)
    assert (now.latched, now.acked, now.reset) == (mask(LOCKOUT), mask(LOCKOUT), mask(LOCKOUT))
    assert scan(now, service=True) == Latches()


def test_what_is_not_latched_is_neither_acknowledged_nor_pressed_away() -> None:
    assert scan(Latches(), ack=True, reset=True, service=True) == Latches()
    now = scan(Latches(), TRIP, ack=True, reset=True, service=True)
    assert (now.latched, now.acked, now.reset, now.service) == (mask(TRIP), 0, 0, 0)
