"""While the update agent holds the rack nothing closes, whatever is commanded; without an agent nothing changes."""

from __future__ import annotations

import pytest
from rig import NONE, Rig

from statemachine import leds
from statemachine.core import Core
from statemachine.detect import UPDATER_SILENT_MS
from statemachine.signals import Mode, Result, Updater, Why
from statemachine.states import CLOSED, State

HOLD, FREE = Updater(True, False), Updater(False, False)


def in_service() -> Rig:
    rig = Rig().until(State.ISOLATED, 1000).send(mode=Mode.SERVICE).until(State.SERVICE, 100)
    rig.updater = HOLD
    return rig.scan(50)


@pytest.mark.parametrize("mode", [Mode.READY, Mode.CHARGE, Mode.DISCHARGE, Mode.GRID])
def test_charge_during_an_update_is_refused(mode: Mode) -> None:
    rig = in_service().send(mode=mode, c_rate=0.5, target_soc_pct=80.0).scan(30_000)
    assert (rig.state(), rig.coils) == (State.SERVICE, NONE)
    assert (rig.o.ack_result, rig.o.ack_why, rig.o.permit) == (Result.REJECTED, Why.UPDATING, Why.UPDATING)


def test_mode_off_leaves_service_when_the_update_is_done_and_nothing_closes_by_an_old_command() -> None:
    rig = in_service().send(mode=Mode.OFF).scan(1000)
    assert rig.state() is State.SERVICE
    rig.updater = FREE
    rig.scan(50)
    assert rig.state() is State.ISOLATED
    rig.command = rig.command._replace(mode=Mode.READY)
    rig.scan(5000)
    assert rig.state() is State.ISOLATED
    rig.send(mode=Mode.READY).until(State.READY, 15_000)


def test_a_version_that_is_not_confirmed_closes_nothing() -> None:
    rig = Rig(updater=HOLD).until(State.ISOLATED, 1000).send(mode=Mode.CHARGE, c_rate=0.5, target_soc_pct=80.0)
    rig.scan(10_000)
    assert (rig.state(), rig.o.ack_result, rig.o.ack_why) == (State.ISOLATED, Result.REJECTED, Why.UPDATING)
    rig.updater = FREE
    assert rig.scan(5000).state() is State.ISOLATED
    rig.send().until(State.CHARGE_RAMP, 20_000)


def test_a_hold_that_meets_closed_contactors_stops_in_order() -> None:
    rig = Rig().charging()
    rig.updater = HOLD
    rig.scan(20)
    assert rig.state() is State.STOPPING
    rig.until(State.ISOLATED, 20_000)
    assert not CLOSED.intersection(rig.scan(5000).visited[-1:])
    assert not rig.o.faults_latched


def test_the_kill_switch_acts_during_an_update_and_nothing_closes_after_the_reset() -> None:
    rig = in_service()
    rig.lines = rig.lines._replace(kill_ok=False)
    assert rig.scan(20).state() is State.EMERGENCY_STOP
    rig.lines = rig.lines._replace(kill_ok=True)
    rig.scan(100).press_reset().acknowledge()
    assert rig.scan(100).state() is State.ISOLATED
    assert rig.send(mode=Mode.READY).scan(10_000).state() is State.ISOLATED


@pytest.mark.parametrize("age_ms", [UPDATER_SILENT_MS, UPDATER_SILENT_MS + 0.1])
def test_an_agent_that_is_silent_holds_nothing(age_ms: float) -> None:
    rig = in_service()
    rig.updater_age_ms = age_ms
    rig.send(mode=Mode.OFF).scan(50)
    assert rig.state() is (State.SERVICE if age_ms <= UPDATER_SILENT_MS else State.ISOLATED)


@pytest.mark.parametrize(("updater", "why"), [(HOLD, Why.UPDATING), (FREE, Why.NO_CONFIGURATION)])
def test_the_agents_word_does_not_wait_for_a_configuration(updater: Updater, why: Why) -> None:
    inputs = Rig(updater=updater).inputs(NONE)._replace(settings=None)
    assert Core().step(inputs, 10.0).permit == why


def test_the_panel_shows_the_update_and_that_it_was_taken_back() -> None:
    rig = in_service()
    assert rig.o.led_codes[0] == leds.UPDATING
    for updater, state, code in (
        (Updater(False, True), State.SERVICE, leds.ROLLED_BACK),
        (FREE, State.SERVICE, leds.BY_STATE[State.SERVICE].run),
    ):  # fmt: skip
        rig.updater = updater
        assert (rig.scan(20).state(), rig.o.led_codes[0]) == (state, code)
    rig.updater = Updater(False, True)
    assert rig.send(mode=Mode.OFF).scan(20).o.led_codes[0] == leds.ROLLED_BACK
    assert rig.send(mode=Mode.READY).until(State.READY, 15_000).o.led_codes[0] == leds.BY_STATE[State.READY].run


def test_the_numbers_are_those_of_the_documents() -> None:
    assert (leds.UPDATING, leds.ROLLED_BACK, UPDATER_SILENT_MS) == (0x22, 0x23, 10_000.0)
