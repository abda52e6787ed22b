"""What contactors have been through: counts, and levels that leak at the permitted pace."""

from __future__ import annotations

from typing import Any

import pytest
from rig import settings

from statemachine import wear
from statemachine.wear import NOTHING, Happened, Wear

S = settings(max_closings_per_hour=20, max_precharges=6)
WORN = Wear(7, 3, 4, 9, 5.0, 2.5)


def near(value: float) -> Any:
    """Equal but for rounding."""
    return pytest.approx(value)


def test_new_contactors_have_been_through_nothing() -> None:
    assert Wear() == (0, 0, 0, 0, 0.0, 0.0)
    assert NOTHING == Happened() == (False, False, False, False)


def test_openings_and_closings_under_load_wear_alike() -> None:
    assert WORN.under_load == 3 + 4


@pytest.mark.parametrize(
    ("happened", "after"),
    [
        (Happened(closing=True), Wear(8, 3, 4, 9, 6.0, 2.5)),
        (Happened(precharge=True), Wear(7, 3, 4, 10, 5.0, 3.5)),
        (Happened(opened_under_load=True), Wear(7, 4, 4, 9, 5.0, 2.5)),
        (Happened(closed_under_load=True), Wear(7, 3, 5, 9, 5.0, 2.5)),
        (Happened(True, True, True, True), Wear(8, 4, 5, 10, 6.0, 3.5)),
        (NOTHING, WORN),
    ],
)
def test_each_thing_that_happens_has_its_own_count(happened: Happened, after: Wear) -> None:
    assert wear.step(WORN, happened, S, 0.0) == after


def test_closings_leak_the_permitted_number_an_hour_and_precharges_in_ten_minutes() -> None:
    after = wear.step(WORN, NOTHING, S, 90_000.0)
    assert (after.closing_level, after.precharge_level) == (near(5.0 - 20 * 90 / 3600), near(2.5 - 6 * 90 / 600))
    assert after[:4] == WORN[:4]


def test_a_level_ends_at_zero_and_what_happens_now_does_not_leak_yet() -> None:
    after = wear.step(WORN, Happened(closing=True, precharge=True), S, 3_600_000.0)
    assert (after.closing_level, after.precharge_level) == (1.0, 1.0)
    assert wear.step(WORN, NOTHING, S, 3_600_000.0) == WORN._replace(closing_level=0.0, precharge_level=0.0)


@pytest.mark.parametrize(
    ("before", "same"),
    [
        (Wear(7, 3, 4, 9), True), (Wear(closing_level=1.0), False), (Wear(precharge_level=1.0), False),
        (Wear(closing_level=1.0, precharge_level=1.0), False),
    ],
)  # fmt: skip
def test_cold_contactors_at_rest_are_not_made_anew(before: Wear, same: bool) -> None:
    after = wear.step(before, NOTHING, S, 10.0)
    assert (after is before) is same
    assert (after == before) is same


def test_a_service_press_takes_back_what_an_inspection_looks_at_and_new_parts_everything() -> None:
    assert wear.serviced(WORN, replaced=False) == Wear(7, 0, 0, 9, 5.0, 2.5)
    assert wear.serviced(WORN, replaced=True) == Wear()
