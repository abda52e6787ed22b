"""The contactor sequence at its edges: the last scan that waits and the first that goes on."""

from __future__ import annotations

from typing import Any

import pytest
from rig import LINES, settings
from samples import BMS, PCS

from statemachine import contactors
from statemachine.contactors import Coils, Phase, Sequence
from statemachine.signals import Bms, Pcs

S = settings(precharge_min_time=0.3, precharge_max_time=6.0, precharge_voltage=13.0, precharge_current=1.0)


def scan(
    seq: Sequence,
    *closed: str,
    close: bool = True,
    bms: Bms | None = BMS,
    pcs: Pcs | None = PCS,
    ages_ms: tuple[float, float] = (0.0, 0.0),
    dt_ms: float = 10.0,
) -> Sequence:
    """One scan with these contactors reported closed."""
    lines = LINES._replace(fb_neg="neg" in closed, fb_pos="pos" in closed, fb_pre="pre" in closed)
    return contactors.advance(seq, close, lines, S, bms, ages_ms[0], pcs, ages_ms[1], dt_ms)


@pytest.mark.parametrize("name", ["neg", "pos", "pre"])
def test_each_feedback_line_is_its_own_contactor(name: str) -> None:
    lines = LINES._replace(fb_neg=name == "neg", fb_pos=name == "pos", fb_pre=name == "pre")
    assert contactors.feedback(lines) == Coils(neg=name == "neg", pos=name == "pos", pre=name == "pre")


def test_a_new_sequence_is_open_and_has_done_nothing() -> None:
    assert Sequence() == (Phase.OPEN, 0.0, 0, False, Phase.OPEN)


@pytest.mark.parametrize(
    ("phase", "coils"),
    [
        (Phase.OPEN, ""), (Phase.NEGATIVE, "neg"), (Phase.PRECHARGE, "neg pre"), (Phase.POSITIVE, "neg pos pre"),
        (Phase.RELEASE, "neg pos"), (Phase.CLOSED, "neg pos"), (Phase.PAUSE, ""),
    ],
)  # fmt: skip
def test_the_coils_of_each_phase(phase: Phase, coils: str) -> None:
    assert contactors.COILS[phase] == tuple(name in coils.split() for name in ("neg", "pos", "pre"))


@pytest.mark.parametrize(
    ("phase", "closed", "after"),
    [
        (Phase.OPEN, "", Sequence(Phase.NEGATIVE, 0.0, 1)),
        (Phase.NEGATIVE, "neg", Sequence(Phase.PRECHARGE, 0.0, 2)),
        (Phase.POSITIVE, "neg pos pre", Sequence(Phase.RELEASE, 0.0, 2)),
        (Phase.RELEASE, "neg pos", Sequence(Phase.CLOSED, 0.0, 2)),
        (Phase.CLOSED, "neg pos", Sequence(Phase.CLOSED, 60.0, 2)),
        (Phase.CLOSED, "", Sequence(Phase.CLOSED, 60.0, 2)),
    ],
)
def test_a_step_that_feedback_confirms_leads_to_the_next(phase: Phase, closed: str, after: Sequence) -> None:
    assert scan(Sequence(phase, 50.0, 2), *closed.split()) == after


@pytest.mark.parametrize("phase", list(Phase))
def test_opening_is_immediate_in_every_phase_and_remembers_only_the_tries(phase: Phase) -> None:
    assert scan(Sequence(phase, 50.0, 2, True, Phase.POSITIVE), close=False) == Sequence(tries=2)


def test_a_failed_sequence_stays_as_it_is_until_it_is_opened() -> None:
    failed = Sequence(Phase.OPEN, 0.0, 3, True, Phase.RELEASE)
    assert scan(failed) == failed


@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.NEGATIVE, Phase.POSITIVE, Phase.RELEASE])
def test_feedback_has_200_ms_and_not_one_more(phase: Phase) -> None:
    contradicting = "pos" if phase is Phase.OPEN else ""
    waits = scan(Sequence(phase, 189.0, 1), contradicting or "pre")
    assert waits == Sequence(phase, 199.0, 1)
    over = scan(Sequence(phase, 190.0, 1), contradicting or "pre")
    failed = phase is Phase.OPEN
    assert over == (Sequence(Phase.OPEN, 0.0, 1, True, Phase.OPEN) if failed else Sequence(Phase.PAUSE, 0.0, 1))


@pytest.mark.parametrize(("tries", "fails"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_third_try_is_the_last(tries: int, fails: bool) -> None:
    after = scan(Sequence(Phase.RELEASE, 190.0, tries))
    expected = Sequence(Phase.OPEN, 0.0, tries, True, Phase.RELEASE) if fails else Sequence(Phase.PAUSE, 0.0, tries)
    assert after == expected
    assert after.phase is expected.phase


def test_the_pause_lasts_two_seconds_with_everything_open() -> None:
    assert scan(Sequence(Phase.PAUSE, 1989.0, 1)) == Sequence(Phase.PAUSE, 1999.0, 1)
    assert scan(Sequence(Phase.PAUSE, 1990.0, 1)) == Sequence(Phase.NEGATIVE, 0.0, 2)


def test_a_contactor_that_stays_closed_in_the_pause_fails_the_sequence_after_four_seconds() -> None:
    assert scan(Sequence(Phase.PAUSE, 1990.0, 1), "pre") == Sequence(Phase.PAUSE, 2000.0, 1)
    assert scan(Sequence(Phase.PAUSE, 3989.0, 1), "pre") == Sequence(Phase.PAUSE, 3999.0, 1)
    assert scan(Sequence(Phase.PAUSE, 3990.0, 1), "pre") == Sequence(Phase.OPEN, 0.0, 1, True, Phase.PAUSE)


PRECHARGED = Sequence(Phase.POSITIVE, 0.0, 1)


def precharge(after_ms: float = 500.0, **changes: Any) -> Sequence:
    """The scan of PRECHARGE that ends `after_ms` after its start."""
    return scan(Sequence(Phase.PRECHARGE, after_ms - 10.0, 1), "neg", "pre", **changes)


@pytest.mark.parametrize(("after_ms", "done"), [(290.0, False), (299.8, False), (300.0, True), (310.0, True)])
def test_precharge_takes_its_minimum_time(after_ms: float, done: bool) -> None:
    assert (precharge(after_ms) == PRECHARGED) is done


@pytest.mark.parametrize("difference_v", [13.0, -13.0])
def test_precharge_is_done_at_its_voltage_on_both_sides(difference_v: float) -> None:
    assert precharge(pcs=PCS._replace(dc_v=1100.0 + difference_v)) == PRECHARGED
    assert precharge(pcs=PCS._replace(dc_v=1100.0 + difference_v * 1.01)) == Sequence(Phase.PRECHARGE, 500.0, 1)


@pytest.mark.parametrize("current_a", [1.0, -1.0])
def test_precharge_is_done_at_its_current_in_both_directions(current_a: float) -> None:
    assert precharge(bms=BMS._replace(rack_a=current_a)) == PRECHARGED
    assert precharge(bms=BMS._replace(rack_a=current_a * 1.01)) == Sequence(Phase.PRECHARGE, 500.0, 1)


@pytest.mark.parametrize(
    ("ages_ms", "done"),
    [
        ((499.0, 499.0), True),
        ((500.0, 0.0), False),
        ((0.0, 500.0), False),
        ((501.0, 0.0), False),
        ((0.0, 501.0), False),
    ],
)
def test_only_samples_taken_after_the_resistor_was_switched_in_count(ages_ms: tuple[float, float], done: bool) -> None:
    assert (precharge(ages_ms=ages_ms) == PRECHARGED) is done


@pytest.mark.parametrize("missing", ["bms", "pcs"])
def test_precharge_waits_while_a_device_is_silent(missing: str) -> None:
    changes: dict[str, Any] = {missing: None}
    assert precharge(**changes) == Sequence(Phase.PRECHARGE, 500.0, 1)


def test_precharge_needs_its_own_contactors_and_no_other() -> None:
    waits = Sequence(Phase.PRECHARGE, 500.0, 1)
    for closed in (("neg",), ("pre",), ("neg", "pos", "pre"), ()):
        assert scan(Sequence(Phase.PRECHARGE, 490.0, 1), *closed) == waits


def test_one_try_of_precharge_ends_at_its_maximum_time() -> None:
    assert precharge(5999.0, bms=None) == Sequence(Phase.PRECHARGE, 5999.0, 1)
    assert precharge(6000.0, bms=None) == Sequence(Phase.PAUSE, 0.0, 1)
