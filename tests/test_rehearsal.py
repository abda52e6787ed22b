"""A rehearsed scan leaves nothing behind, whatever it was rehearsed on; none is rehearsed without the time for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_board import Line, board_lines, controller_of
from rig import Rig

from firmware.controller import Controller
from statemachine.contactors import Coils
from statemachine.signals import Inputs, Mode
from statemachine.states import State


def _killed(inputs: Inputs) -> Inputs:
    return inputs._replace(lines=inputs.lines._replace(kill_ok=False))


def _wished(inputs: Inputs) -> Inputs:
    command = inputs.command
    assert command is not None
    return inputs._replace(command=command._replace(seq=command.seq + 7, mode=Mode.CHARGE, c_rate=0.3))


def _acknowledged(inputs: Inputs) -> Inputs:
    command = inputs.command
    assert command is not None
    return inputs._replace(command=command._replace(ack_count=command.ack_count + 1))


def _mute(inputs: Inputs) -> Inputs:
    return inputs._replace(bms=None, pcs=None, settings=None, guard=None)


@dataclass
class _Rehearsing(Rig):
    """A rig that rehearses every scan, on other inputs than it gets."""

    disturbed: Callable[[Inputs], Inputs] = _killed

    def inputs(self, true: Coils) -> Inputs:
        found, before = super().inputs(true), self.core.memory
        self.core.rehearse(self.disturbed(found), self.dt_ms)
        assert self.core.memory is before
        return found


@pytest.mark.parametrize("disturbed", [_killed, _wished, _acknowledged, _mute])
def test_a_charge_goes_the_same_way_with_every_scan_rehearsed(disturbed: Callable[[Inputs], Inputs]) -> None:
    plain, rehearsing = Rig(soc=79.0), _Rehearsing(soc=79.0, disturbed=disturbed)
    for rig in (plain, rehearsing):
        rig.charging().scan(3000)
        rig.lines = rig.lines._replace(kill_ok=False)
        rig.scan(1000)
    assert plain.visited[-1] is State.EMERGENCY_STOP
    assert rehearsing.visited == plain.visited
    assert rehearsing.events == plain.events
    assert rehearsing.core.memory == plain.core.memory
    assert repr(rehearsing.o) == repr(plain.o)  # some are nan


def test_a_rehearsal_that_fails_leaves_the_memory_as_well() -> None:
    rig = Rig().ready()
    before = rig.core.memory
    with pytest.raises(AttributeError):
        rig.core.rehearse(rig.inputs(rig.coils)._replace(lines=None), 10.0)  # type: ignore[arg-type]
    assert rig.core.memory is before


@pytest.fixture
def lines() -> dict[str, Line]:
    return board_lines()


@pytest.fixture
def controller(lines: dict[str, Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    return controller_of(lines, tmp_path, monkeypatch)


class _Clock:
    """Stands for the machine's: only a sleep lets time pass, to the nanosecond, or `late_ns` longer."""

    def __init__(self) -> None:
        self.now_ns, self.late_ns = 1_000_000_000, 0

    def sleep_until(self, deadline_ns: int) -> None:
        self.now_ns = max(self.now_ns, deadline_ns) + self.late_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr("firmware.controller.sleep_until", clock.sleep_until)
    monkeypatch.setattr("firmware.controller.monotonic_ns", lambda: clock.now_ns)
    return clock


@pytest.fixture
def rehearsed(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """What was rehearsed on."""
    noted: list[Inputs] = []
    rehearse = controller._core.rehearse

    def note(inputs: Inputs, dt_ms: float) -> object:
        noted.append(inputs)
        return rehearse(inputs, dt_ms)

    monkeypatch.setattr(controller._core, "rehearse", note)
    return noted


def _scan(controller: Controller, clock: _Clock, took_us: int) -> int:
    """One scan; the next deadline."""
    woke_ns = clock.now_ns
    controller.scan(1)
    clock.now_ns += took_us * 1000
    controller.count(woke_ns, woke_ns)
    return woke_ns + controller.period_ns


def _seen_from_outside(lines: dict[str, Line], run: Path) -> object:
    files = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    return files, [(line.level, line.touched) for line in lines.values()]


def test_a_rehearsal_touches_no_line_and_publishes_nothing(
    controller: Controller, clock: _Clock, rehearsed: list[Inputs], lines: dict[str, Line], tmp_path: Path
) -> None:
    deadline_ns = _scan(controller, clock, 300)
    before = _seen_from_outside(lines, tmp_path)
    controller.rehearse(deadline_ns)
    assert len(rehearsed) == 1
    assert _seen_from_outside(lines, tmp_path) == before
    _scan(controller, clock, 300)
    assert _seen_from_outside(lines, tmp_path) != before


def test_it_comes_three_scans_time_before_the_deadline_on_the_lines_of_the_last_scan(
    controller: Controller, clock: _Clock, rehearsed: list[Inputs], lines: dict[str, Line]
) -> None:
    lines["fb_neg"].level = 1
    deadline_ns = _scan(controller, clock, 300)
    lines["fb_neg"].level = 0
    controller.rehearse(deadline_ns)
    assert clock.now_ns == deadline_ns - 900_000
    assert rehearsed[-1].lines.fb_neg is True
    controller.rehearse(_scan(controller, clock, 300))
    assert rehearsed[-1].lines.fb_neg is False


def test_without_the_time_for_it_nothing_is_rehearsed(
    controller: Controller, clock: _Clock, rehearsed: list[Inputs]
) -> None:
    controller.rehearse(clock.now_ns + controller.period_ns)  # nothing was scanned yet
    controller.rehearse(_scan(controller, clock, 1001))  # twice as long is more than a fifth of 10 ms
    deadline_ns = _scan(controller, clock, 300)
    clock.late_ns = 300_001  # less than two scans' time is left
    controller.rehearse(deadline_ns)
    controller.rehearse(deadline_ns)  # the deadline has passed
    assert not rehearsed
    clock.late_ns = 0
    controller.rehearse(_scan(controller, clock, 1000))
    assert len(rehearsed) == 1
