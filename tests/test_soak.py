"""The rules of the random fault run can fail: each sees its own violation, and excuses what the fault itself does."""

from __future__ import annotations

import random
from typing import Any

import pytest
from soak.processes import Usage, more_descriptors, slope
from soak.rules import TRUTH, Sample, Watch

from statemachine.states import State

OPEN = dict.fromkeys(TRUTH, 0.0) | {
    "true_safe_enable": 1.0, "true_alive_relay": 1.0, "true_cell_max_v": 3.7, "true_cell_min_v": 3.6,
    **{f"open_ms_{n}": 20.0 for n in ("neg", "pos", "pre")},
}  # fmt: skip
CLOSED = OPEN | {"true_pos": 1.0, "true_neg": 1.0}
CHARGING = CLOSED | {"true_current_a": -500.0}


class Seen:
    """A watch that is fed by hand, 20 ms a look."""

    def __init__(self) -> None:
        self.watch, self.at_s = Watch(), 0.0

    def look(self, truth: dict[str, float], state: State | None = None, seconds: float = 0.02, **changes: Any) -> str:
        """All that is found wrong in so many seconds of the same truth."""
        wrong: list[str] = []
        for _ in range(round(seconds / 0.02)):
            self.at_s += 0.02
            wrong += self.watch.sample(Sample(self.at_s, truth | changes, state))
        return "; ".join(dict.fromkeys(wrong))


@pytest.mark.parametrize(
    "off",
    [
        {"kill_switch": 1.0}, {"tamper": 1.0}, {"supply_24v_lost": 1.0}, {"true_safe_enable": 0.0},
        {"true_alive_relay": 0.0},
    ],
)  # fmt: skip
def test_a_contactor_that_stays_closed_when_the_chain_is_open_is_seen(off: dict[str, float]) -> None:
    seen = Seen()
    assert seen.look(CLOSED, seconds=0.1) == ""
    assert seen.look(CLOSED | off, seconds=0.26) == ""
    assert "contactor pos is closed" in seen.look(CLOSED | off, seconds=0.1)


def test_a_welded_contactor_and_a_slow_one_are_excused() -> None:
    seen = Seen()
    held = {"kill_switch": 1.0, "true_pos": 0.0, "weld_neg": 1.0}
    assert seen.look(CLOSED | held, seconds=2.0) == ""
    assert "contactor neg" in seen.look(CLOSED | held | {"weld_neg": 0.0}, seconds=0.6)
    assert Seen().look(CLOSED, seconds=1.0, kill_switch=1.0, open_ms_pos=2000.0, open_ms_neg=2000.0) == ""


def test_mains_that_close_without_precharge_are_seen() -> None:
    seen = Seen()
    seen.look(OPEN)
    assert "without precharge" in seen.look(CLOSED, true_closed_at_dv_v=300.0)
    seen = Seen()
    seen.look(OPEN)
    assert seen.look(CLOSED, true_closed_at_dv_v=12.0) == ""


def test_a_precharge_that_believed_a_lying_meter_is_excused() -> None:
    seen = Seen()
    seen.look(OPEN, pcs_dc_v=1100.0)
    assert seen.look(CLOSED, true_closed_at_dv_v=300.0) == ""


def test_current_with_an_open_contactor_is_seen() -> None:
    seen = Seen()
    assert seen.look(CHARGING, seconds=0.1) == ""
    assert "with a contactor open" in seen.look(CHARGING | {"true_pos": 0.0}, seconds=0.06)
    assert Seen().look(OPEN, seconds=0.1, true_current_a=7.0, true_neg=1.0, true_precharge=1.0) == ""


@pytest.mark.parametrize(
    ("state", "stopping_s", "allowed"),
    [
        (State.EMERGENCY_STOP, 0.0, True), (State.CHARGE_BULK, 0.0, False), (State.STOPPING, 5.0, False),
        (State.STOPPING, 10.0, True), (State.FAULT, 10.0, True), (State.FAULT, 5.0, False),
    ],
)  # fmt: skip
def test_opening_under_load_needs_category_0_or_the_bound(state: State, stopping_s: float, allowed: bool) -> None:
    seen = Seen()
    seen.look(CHARGING, State.CHARGE_BULK, 0.1)
    seen.look(CHARGING, State.STOPPING, stopping_s)
    wrong = seen.look(OPEN, state, true_opened_under_load=1.0, true_opened_at_a=-500.0)
    assert ("opened at -500 A" in wrong) is not allowed


@pytest.mark.parametrize(
    ("state", "paid", "missing"),
    [
        (State.EMERGENCY_STOP, ("reset", "acknowledge"), "command"),
        (State.EMERGENCY_STOP, ("reset", "command"), "acknowledge"),
        (State.EMERGENCY_STOP, ("acknowledge", "command"), "reset"),
        (State.EMERGENCY_STOP, ("reset", "acknowledge", "command"), ""),
        (State.LOCKOUT, ("reset", "acknowledge", "command"), "service press"),
        (State.LOCKOUT, ("service press", "acknowledge", "command"), ""),
        (State.FAULT, ("acknowledge",), "command"),
        (State.FAULT, ("acknowledge", "command"), ""),
    ],
)
def test_nothing_closes_before_everything_owed_was_given(state: State, paid: tuple[str, ...], missing: str) -> None:
    seen = Seen()
    for what in paid:
        seen.watch.did(what)  # before the trip it does not count
    seen.look(OPEN, state)
    for what in paid:
        seen.watch.did(what)
    seen.look(OPEN, State.ISOLATED)
    wrong = seen.look(OPEN | {"true_neg": 1.0}, State.PRECHARGE)
    assert (f"closes without {missing}" in wrong) if missing else wrong == ""


def test_what_closed_just_before_a_fault_and_is_seen_with_it_is_no_breach_and_the_next_closing_is() -> None:
    seen = Seen()
    seen.look(OPEN, State.ISOLATED)
    assert seen.look(OPEN | {"true_neg": 1.0}, State.FAULT) == ""
    assert "pos closes without acknowledge, command since 14" in seen.look(CLOSED, State.FAULT)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"true_current_a": -100.0, "true_cell_max_v": 4.27}, "charged on at 4.270 V"),
        ({"true_current_a": 100.0, "true_cell_min_v": 2.73}, "discharged on at 2.730 V"),
    ],
)
def test_a_current_that_goes_on_beyond_the_cells_limits_is_seen(changes: dict[str, float], what: str) -> None:
    seen = Seen()
    assert seen.look(CLOSED | changes, seconds=19.0) == ""
    assert what in seen.look(CLOSED | changes, seconds=2.0)


def test_nothing_is_concluded_from_what_could_not_be_seen() -> None:
    seen = Seen()
    seen.look(CLOSED, kill_switch=1.0, seconds=0.2)
    seen.watch.missed()
    seen.at_s += 5.0
    assert seen.look(CLOSED, kill_switch=1.0) == ""


def _usage(kb_per_min: float, noise_kb: float) -> list[Usage]:
    draw = random.Random(3)
    return [Usage(t * 5.0, 30_000 + kb_per_min * t / 12.0 + draw.gauss(0.0, noise_kb), 10) for t in range(240)]


@pytest.mark.parametrize(("kb_per_min", "grows"), [(0.0, False), (-50.0, False), (5.0, False), (40.0, True)])
def test_growth_beyond_noise_is_a_leak(kb_per_min: float, grows: bool) -> None:
    found = slope(_usage(kb_per_min, 60.0))
    assert found.grows is grows
    assert found.kb_per_min == pytest.approx(kb_per_min, abs=3 * found.bound)


def test_a_step_of_pages_is_no_leak_and_a_short_run_says_nothing() -> None:
    assert not slope(_usage(40.0, 0.0)[:36]).grows
    assert slope(_usage(40.0, 0.0)[:3]).bound == float("inf")


def test_descriptors_that_stay_open_are_counted() -> None:
    flat = _usage(0.0, 0.0)
    assert more_descriptors(flat) == 0
    assert more_descriptors([u._replace(descriptors=10 + i // 80) for i, u in enumerate(flat)]) == 2
    assert more_descriptors([u._replace(descriptors=10 + i % 3) for i, u in enumerate(flat)]) == 0
