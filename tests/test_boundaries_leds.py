"""The front panel as its label promises it: patterns by state, links, faults and chain; blinks to the millisecond."""

from __future__ import annotations

from itertools import pairwise

import pytest

from statemachine import leds
from statemachine.faults import BY_NAME, FAULTS, Severity
from statemachine.leds import FAST, OFF, ON, SLOW
from statemachine.states import State

RUN_AND_CHARGE: dict[State, tuple[str, str]] = {
    State.INIT: ("fast", "off"),
    State.ISOLATED: ("slow", "off"),
    State.SERVICE: ("2-1", "off"),
    State.PRECHARGE: ("fast", "off"),
    State.READY: ("on", "off"),
    State.CHARGE_RAMP: ("on", "slow"),
    State.CHARGE_BULK: ("on", "on"),
    State.CHARGE_STEP: ("on", "on"),
    State.CHARGE_ABSORB: ("on", "fast"),
    State.CHARGE_BALANCE: ("on", "3-1"),
    State.CHARGED: ("on", "1-1"),
    State.DISCHARGE: ("on", "1-2"),
    State.GRID_SUPPORT: ("on", "2-2"),
    State.STOPPING: ("fast", "off"),
    State.FAULT: ("off", "off"),
    State.EMERGENCY_STOP: ("off", "off"),
    State.LOCKOUT: ("off", "off"),
}


def test_the_codes_of_the_registers_never_change() -> None:
    assert (OFF, ON, SLOW, FAST) == (0, 1, 2, 3)
    assert leds.PATTERNS == {0: "off", 1: "on", 2: "slow", 3: "fast"}


@pytest.mark.parametrize("state", State)
def test_what_run_and_charge_show(state: State) -> None:
    shown = leds.codes(state, 0, True, True, True, False)
    assert (leds.pattern(shown[0]), leds.pattern(shown[1])) == RUN_AND_CHARGE[state]


@pytest.mark.parametrize(
    ("bms_ok", "pcs_ok", "shown"),
    [(True, True, "on"), (False, True, "slow"), (True, False, "fast"), (False, False, "2-2")],
)
def test_what_comm_shows(bms_ok: bool, pcs_ok: bool, shown: str) -> None:
    assert leds.pattern(leds.codes(State.READY, 0, bms_ok, pcs_ok, True, False)[2]) == shown


@pytest.mark.parametrize(
    ("chain_ok", "due", "shown"),
    [(True, False, "off"), (True, True, "slow"), (False, False, "on"), (False, True, "on")],
)
def test_what_kill_shows(chain_ok: bool, due: bool, shown: str) -> None:
    assert leds.pattern(leds.codes(State.READY, 0, True, True, chain_ok, due)[4]) == shown


def bits(*names: str) -> int:
    return sum(1 << BY_NAME[name].bit for name in names)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_a_single_fault_shows_its_own_code(fault: object) -> None:
    assert isinstance(fault, type(FAULTS[0]))
    assert leds.codes(State.FAULT, 1 << fault.bit, True, True, True, False)[3] == fault.led


def test_without_a_fault_the_fault_led_is_dark() -> None:
    assert leds.codes(State.READY, 0, True, True, True, False)[3] == OFF


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("ERR_SUPPLY_24V", ("ERR_GROUND_FAULT", "ERR_KILL_SWITCH", "ERR_CONTACTOR_WELDED")),
        ("ERR_GROUND_FAULT", ("ERR_KILL_SWITCH", "ERR_TAMPER", "ERR_CONTACTOR_WELDED", "ERR_INSULATION_LOW")),
        ("ERR_CONTACTOR_WELDED", ("ERR_KILL_SWITCH", "ERR_CURRENT_WHILE_OPEN", "ERR_COMM_LOST")),
        ("ERR_KILL_SWITCH", ("ERR_TAMPER", "ERR_COMM_LOST", "ERR_THERMAL_LOOP", "ERR_CONFIG")),
        ("ERR_MAX_V_EXCEEDED", ("ERR_COMM_LOST", "ERR_THERMAL_LOOP", "ERR_OPENED_UNDER_LOAD")),
        ("ERR_THERMAL_LOOP", ("ERR_OPENED_UNDER_LOAD", "ERR_LOOP_STUCK", "ERR_WATCHDOG")),
        ("ERR_OPENED_UNDER_LOAD", ("ERR_SITE_HEARTBEAT", "ERR_WATCHDOG")),
    ],
)
def test_the_worst_fault_is_shown_and_the_lowest_bit_among_equals(first: str, others: tuple[str, ...]) -> None:
    assert leds.fault_code(bits(first, *others)) == BY_NAME[first].led


def test_after_supply_and_ground_fault_severity_decides_and_then_the_bit() -> None:
    assert [fault.name for fault in leds.PRIORITY[:2]] == ["ERR_SUPPLY_24V", "ERR_GROUND_FAULT"]
    rest = leds.PRIORITY[2:]
    assert len(rest) == len(FAULTS) - 2
    for before, after in pairwise(rest):
        assert before.severity >= after.severity
        assert before.severity > after.severity or before.bit < after.bit
    assert rest[0].severity is Severity.LOCKOUT


@pytest.mark.parametrize(("code", "lit_ms", "period_ms"), [(SLOW, 500, 1000), (FAST, 125, 250)])
def test_a_steady_blink_is_lit_for_its_first_half(code: int, lit_ms: int, period_ms: int) -> None:
    for now_ms in range(2 * period_ms):
        assert leds.level(code, now_ms) is (now_ms % period_ms < lit_ms)


@pytest.mark.parametrize("now_ms", [0, 124, 125, 250, 500, 999, 1000, 123_456])
def test_off_is_dark_and_on_is_lit_all_the_time(now_ms: int) -> None:
    assert leds.level(OFF, now_ms) is False
    assert leds.level(ON, now_ms) is True


@pytest.mark.parametrize("code", sorted({0x11, 0x12, 0x21, 0x22, 0x31, 0x99} | {f.led for f in FAULTS if f.led > FAST}))
def test_n_blinks_a_pause_m_blinks_and_a_long_pause(code: int) -> None:
    """Blinks of 250 ms and as much dark; 750 ms more between N and M, 2 s more after M."""
    blink = [True] * 250 + [False] * 250
    period = blink * (code >> 4) + [False] * 750 + blink * (code & 15) + [False] * 2000
    assert [leds.level(code, now_ms) for now_ms in range(len(period))] == period
    assert [leds.level(code, now_ms) for now_ms in range(len(period), len(period) + 300)] == period[:300]


@pytest.mark.parametrize(
    ("code", "words"), [(0x11, "1-1"), (0x12, "1-2"), (0x79, "7-9"), (0x91, "9-1"), (FAST, "fast")]
)
def test_a_code_in_words(code: int, words: str) -> None:
    assert leds.pattern(code) == words
