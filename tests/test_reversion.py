"""SunSpec's REV procedures on the running appliance: every reversion timer that the register map has, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from appliance import Appliance, appliance
from waiting import wait_until

from firmware.registers import POINT, ROWS
from statemachine.states import State

pytestmark = pytest.mark.system

LATE_S = 2.0
"""The procedure's own tolerance."""


class Timer(NamedTuple):
    """Names of a reversion timer's points; "" where its model has none."""

    time: str
    left: str
    enabled: str
    enabled_after: str


def timers() -> Iterator[Timer]:
    """Those of the map that can be written."""
    model, points = 0, dict[tuple[int, str], str]()
    for row in ROWS:
        if row.point.name.endswith(".ID"):
            model = row.point.address
        points[model, row.point.name.rpartition(".")[2]] = row.point.name
    for (model, own), name in points.items():
        if own.endswith("RvrtTms") and POINT[name].access == "RW":
            stem = own.removesuffix("RvrtTms")
            others = (points.get((model, stem + suffix), "") for suffix in ("RvrtRem", "Ena", "EnaRvrt"))
            yield Timer(name, *others)


TIMERS = tuple(timers())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with appliance(tmp_path_factory.mktemp("run")) as made:
        made.until(State.ISOLATED)
        yield made


def start_all(a: Appliance, time_s: int) -> None:
    """Enabled now, not enabled after `time_s`; done when every timer runs, which is in the controller's next scan."""
    for timer in TIMERS:
        for name, value in ((timer.enabled_after, 0), (timer.enabled, 1), (timer.time, time_s)):
            if name:
                a.site.write({name: value})
    wait_until(lambda: all(left_s(a, timer) > 0 for timer in TIMERS), 10, "every timer runs")


def left_s(a: Appliance, timer: Timer) -> float:
    return a.get(timer.left)


def reverted(a: Appliance, timer: Timer) -> bool:
    return left_s(a, timer) == 0 and not (timer.enabled_after and a.get(timer.enabled))


def seconds(a: Appliance) -> float:
    """The appliance's own: scans, which are counted also when they were missed."""
    return (a.get("ScanCount") + a.get("ScanOverruns")) * a.get("ScanPeriodUs") * 1e-6


def test_the_set_point_of_704_has_a_timer() -> None:
    assert Timer("WSetRvrtTms", "WSetRvrtRem", "WSetEna", "WSetEnaRvrt") in TIMERS
    assert all(timer.left for timer in TIMERS)


def test_a_timer_counts_down_and_reverts(running: Appliance) -> None:
    a, time_s, began_s = running, 3.0, seconds(running)
    start_all(a, int(time_s))
    seen: dict[Timer, list[float]] = {timer: [left_s(a, timer)] for timer in TIMERS}
    last_running_s = began_s

    def over() -> bool:
        nonlocal last_running_s
        now_s = seconds(a)
        for timer, values in seen.items():
            values.append(left_s(a, timer))
        if all(reverted(a, timer) for timer in TIMERS):
            return True
        last_running_s = now_s
        return False

    wait_until(over, 60, "every timer acts", pause_s=0.02)
    for timer, values in seen.items():
        assert values[0] in (time_s - 1, time_s), timer
        assert values == sorted(values, reverse=True), timer
        assert len(set(values)) >= 3, timer
    assert seconds(a) - began_s > time_s - 0.05
    assert last_running_s - began_s < time_s + LATE_S


def test_rewriting_a_timer_extends_it(running: Appliance) -> None:
    a, time_s = running, 3
    start_all(a, time_s)
    began_s = seconds(a)
    for _ in range(3):
        written_s = seconds(a)
        wait_until(lambda at=written_s: seconds(a) > at + 0.4 * time_s, 60, "time passes", pause_s=0.02)  # type: ignore[misc]
        assert not any(reverted(a, timer) for timer in TIMERS)
        for timer in TIMERS:
            a.site.write({timer.time: time_s})
    assert seconds(a) - began_s > time_s
    assert not any(reverted(a, timer) for timer in TIMERS)
    wait_until(lambda: all(reverted(a, timer) for timer in TIMERS), 60, "the last one acts")


def test_zero_cancels_a_timer(running: Appliance) -> None:
    a = running
    start_all(a, 2)
    for timer in TIMERS:
        a.site.write({timer.time: 0})
    began_s = seconds(a)
    wait_until(lambda: seconds(a) > began_s + 2.0 + LATE_S, 60, "more than its time is over", pause_s=0.05)
    for timer in TIMERS:
        assert left_s(a, timer) == 0
        assert not timer.enabled or a.get(timer.enabled) == 1, timer


def test_a_set_point_and_its_timer_are_one_block(running: Appliance) -> None:
    """Enable, mode, value, fallback and time in one FC16, as a site controller writes them."""
    a = running
    a.site.write({"WSetEna": 1, "WSetMod": 1, "WSet": -250_000, "WSetRvrt": 5_000, "WSetPct": 0, "WSetPctRvrt": 0,
                  "WSetEnaRvrt": 1, "WSetRvrtTms": 1})  # fmt: skip
    assert a.get("WSet") == -250_000
    wait_until(lambda: a.get("WSet") == 5_000, 30, "the fallback is in force")
    assert a.get("WSetEna") == 1
    assert a.get("WSetAct") == 5_000
    a.site.write({"WSetEna": 0})


def test_a_set_point_that_cannot_be_met_is_taken_and_what_is_done_is_shown_beside_it(running: Appliance) -> None:
    a = running
    a.site.write({"WSetEna": 1, "WSetMod": 1, "WSet": -5_000_000})
    wait_until(lambda: a.get("WSetAct") == -5_000_000, 30, "the set-point is in force")
    assert a.get("WSet") == -5_000_000
    assert a.get("WAvailCha") < 5_000_000
    assert a.get("WEff") == 0, "the contactors are open"
    a.site.write({"WSetEna": 0})
