"""The second channel: what drops safe-enable, how soon, and what alone brings it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel, kernel

from drivers.board import Board, Edge
from drivers.board_file import GUARD_TICK_MS as TICK_MS
from drivers.board_file import WatchdogSpec
from drivers.section import SectionFile
from firmware import guard as module
from firmware import image
from firmware.guard import LATE_PERIODS, PUBLISH_MS, RESET_MS, STALL_NS, Guard
from firmware.watchdog import PET_MS
from statemachine import signals
from statemachine.signals import BootReason, GuardTrip, WatchdogState

__all__ = ["kernel"]
PERIOD_MS = 10
TICK_NS = round(TICK_MS * 1e6)
PUBLISH_TICKS, RESET_TICKS = round(PUBLISH_MS / TICK_MS), round(RESET_MS / TICK_MS)


class Line:
    """A gpiozero device and its pin as far as the guard uses them."""

    def __init__(self, level: int) -> None:
        self.state = level

    @property
    def pin(self) -> Line:
        return self


class World:
    """The guard's lines, its clock, and a controller that beats once a scan period."""

    def __init__(self, directory: Path) -> None:
        self.inputs = {"kill_switch": Line(1), "tamper": Line(1), "reset_button": Line(0)}
        self.outputs = {"safe_enable": Line(0), "alive": Line(0)}
        self.pending: list[Edge] = []
        self.seen: list[int] = []  # safe-enable whenever the edges were taken
        self.directory, self.now_ns, self.scan, self.beating, self.asked = directory, 10**9, 0, True, False
        self.control: SectionFile | None = None
        self.guard: Guard | None = None
        self.watchdog: WatchdogSpec | None = None
        self.tick_ms, self.period_ms = TICK_MS, PERIOD_MS

    def edges(self) -> list[Edge]:
        self.seen.append(self.safe)
        taken, self.pending = self.pending, []
        return taken

    def board(self) -> Board:
        return Board(
            inputs=self.inputs, outputs=self.outputs, loops=lambda: ((), 0), edges=self.edges, edge_fd=-1,
            is_bench=True, close_terminals=lambda: None,
        )  # fmt: skip

    def start(self) -> World:
        """A guard process on these lines; the one before, if any, must have let go of its file."""
        self.control = self.control or image.writer("controller", self.directory)
        self.guard = Guard(self.board(), self.watchdog, self.tick_ms)
        return self

    def tick(self, count: int = 1) -> World:
        """Ticks of the guard; the controller scans every `period_ms` of them."""
        assert self.control is not None
        assert self.guard is not None
        for _ in range(count):
            self.now_ns += round(self.tick_ms * 1e6)
            if self.beating and self.now_ns // round(self.tick_ms * 1e6) % round(self.period_ms / self.tick_ms) == 0:
                self.scan += 1
                control = image.Control(self.scan, 0.0, False, False, 0.0, 0.0, self.period_ms, self.asked)
                self.control["control"].publish(image.CONTROL.pack(*control))
            self.guard.tick()
        return self

    def ms(self, ms: float) -> World:
        return self.tick(round(ms / self.tick_ms))

    @property
    def safe(self) -> int:
        return self.outputs["safe_enable"].state

    def published(self) -> signals.Guard:
        found = image.reader("guard", "guard", self.directory).read()
        assert found is not None
        return image.GUARD.unpack(found.payload)

    def told(self) -> list[tuple[int, str]]:
        return [(event.kind, event.text) for event in image.EventReader("guard", self.directory).new()]

    def again(self) -> World:
        """The guard process was killed, and another one starts."""
        assert self.guard is not None
        self.guard.files.close()
        return self.start()

    def trip(self) -> GuardTrip:
        return GuardTrip(self.published().trip)

    def press(self, ticks: int = RESET_TICKS) -> World:
        self.inputs["reset_button"].state = 1
        self.tick(ticks)
        self.inputs["reset_button"].state = 0
        return self.tick()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("EMS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(module, "monotonic_ns", lambda: made.now_ns)
    yield made.start()


@pytest.fixture
def armed(world: World) -> World:
    world.ms(50)
    assert world.safe == 1
    return world


def test_it_arms_by_itself_once_at_power_up_when_chain_and_controller_are_healthy(world: World) -> None:
    world.beating = False
    assert world.ms(200).safe == 0
    world.beating = True
    assert world.ms(50).safe == 1


@pytest.mark.parametrize("line", ["kill_switch", "tamper"])
def test_an_edge_drops_safe_enable_before_the_next_tick_however_short_it_was(armed: World, line: str) -> None:
    armed.pending = [Edge(line, 0, 1), Edge(line, 1, 2)]
    assert armed.guard is not None
    armed.guard.edges()
    assert armed.safe == 0
    assert armed.ms(1000).safe == 0, "and it stays off"


@pytest.mark.parametrize("line", ["kill_switch", "tamper"])
def test_a_low_level_drops_safe_enable_before_the_edges_are_taken(armed: World, line: str) -> None:
    assert armed.guard is not None
    armed.inputs[line].state = 0
    armed.guard.edges()
    assert armed.seen[-1] == 0
    assert armed.trip().name == line.upper()


@pytest.mark.parametrize("line", ["kill_switch", "tamper", "reset_button"])
def test_a_rising_edge_and_the_release_of_the_reset_drop_nothing(armed: World, line: str) -> None:
    armed.pending = [Edge(line, 1, 1), *([Edge(line, 0, 2)] if line == "reset_button" else [])]
    assert armed.guard is not None
    armed.guard.edges()
    assert armed.ms(100).safe == 1


@pytest.mark.parametrize("line", ["kill_switch", "tamper"])
def test_a_level_without_its_edge_drops_safe_enable_in_the_next_tick(armed: World, line: str) -> None:
    armed.inputs[line].state = 0
    assert armed.tick().safe == 0
    armed.inputs[line].state = 1
    assert armed.ms(1000).safe == 0


def test_a_silent_controller_drops_safe_enable_within_three_scan_periods_and_not_before_two(armed: World) -> None:
    armed.tick(4)
    armed.beating = False
    ticks = 0
    while armed.safe:
        armed.tick()
        ticks += 1
    took_ms = ticks * TICK_NS / 1e6
    assert 2 * PERIOD_MS <= took_ms <= 3 * PERIOD_MS
    assert took_ms >= LATE_PERIODS * PERIOD_MS - PERIOD_MS
    assert armed.trip() is GuardTrip.HEARTBEAT_LATE


def test_a_controller_that_trips_takes_safe_enable_along_in_its_next_tick(armed: World) -> None:
    armed.asked = True
    armed.ms(PERIOD_MS)
    assert armed.safe == 0
    assert armed.trip() is GuardTrip.CONTROLLER_TRIP
    assert armed.press().safe == 0, "not while the cause stands"
    armed.asked = False
    assert armed.ms(PERIOD_MS).safe == 0
    assert armed.press().safe == 1


def test_nothing_arms_at_power_up_while_the_controller_trips(world: World) -> None:
    world.asked = True
    assert world.ms(200).safe == 0
    world.asked = False
    assert world.ms(2 * PERIOD_MS).safe == 1


def test_a_controller_that_starts_again_is_a_trip(armed: World) -> None:
    armed.scan = 0
    armed.ms(20)
    assert armed.safe == 0
    assert armed.trip() is GuardTrip.CONTROLLER_RESTARTED


def _heartbeat_gone(w: World) -> None:
    w.beating = False
    w.ms(50)
    w.beating = True


def _kill(w: World) -> None:
    w.inputs["kill_switch"].state = 0
    w.tick()
    w.inputs["kill_switch"].state = 1


@pytest.mark.parametrize("cause", [_heartbeat_gone, _kill])
def test_after_a_trip_only_the_physical_reset_arms_again(armed: World, cause: Callable[[World], Any]) -> None:
    cause(armed)
    assert armed.ms(5000).safe == 0
    assert armed.press().safe == 1


def test_a_reset_that_is_shorter_than_two_scans_does_not_arm(armed: World) -> None:
    _kill(armed)
    assert armed.press(RESET_TICKS - 1).ms(100).safe == 0


def test_a_reset_with_the_cause_still_there_does_not_arm(armed: World) -> None:
    armed.inputs["kill_switch"].state = 0
    armed.tick()
    assert armed.press().safe == 0
    armed.inputs["kill_switch"].state = 1
    assert armed.ms(1000).safe == 0, "an old press does not count later"


def test_a_stuck_reset_button_is_one_press(armed: World) -> None:
    armed.inputs["reset_button"].state = 1
    armed.ms(100)
    _kill(armed)
    assert armed.ms(1000).safe == 0


def test_a_stall_in_which_the_alive_relay_fell_out_needs_the_reset(armed: World) -> None:
    armed.now_ns += STALL_NS
    armed.tick()
    assert armed.safe == 0
    assert armed.trip() is GuardTrip.GUARD_STALLED
    assert armed.press().safe == 1


def test_the_alive_pulse_goes_on_while_safe_enable_is_off(armed: World) -> None:
    _kill(armed)
    levels = [armed.tick().outputs["alive"].state for _ in range(8)]
    assert levels in ([0, 1] * 4, [1, 0] * 4)


def test_a_guard_that_comes_back_does_not_arm_by_itself(armed: World) -> None:
    assert armed.guard is not None
    armed.guard.files.close()
    armed.outputs["safe_enable"].state = 0
    armed.start().ms(1000)
    assert armed.safe == 0
    assert armed.trip() is GuardTrip.GUARD_RESTARTED
    assert armed.press().safe == 1


def test_a_heartbeat_left_over_from_a_dead_controller_arms_nothing(tmp_path: Path, world: World) -> None:
    world.ms(50)
    assert world.guard is not None
    world.guard.files.close()
    (tmp_path / "guard.img").unlink()
    world.beating, world.outputs["safe_enable"].state = False, 0
    world.start()
    assert [world.tick().safe for _ in range(200)] == [0] * 200


def test_an_orderly_end_takes_safe_enable_away(armed: World) -> None:
    assert armed.guard is not None
    armed.guard.farewell()
    assert armed.safe == 0


@pytest.fixture
def watched(tmp_path: Path, world: World, kernel: FakeKernel) -> World:
    """A guard that begins on a board with a watchdog."""
    world.ms(50)
    assert world.guard is not None
    world.guard.files.close()
    (tmp_path / "guard.img").unlink()
    world.watchdog = WatchdogSpec(str(kernel.add_watchdog().path), 20)
    return world.start()


def test_the_guard_pets_the_watchdog_once_a_second_and_says_so(watched: World, kernel: FakeKernel) -> None:
    assert PET_MS == 1000
    watched.ms(5000)
    assert kernel.watchdogs["watchdog0"].written() == b"\0" * 5
    assert watched.published().watchdog == WatchdogState.RUNNING
    assert watched.published().boot_reason == BootReason.POWER


def test_a_guard_that_stalls_again_and_again_does_not_pet_the_watchdog(watched: World, kernel: FakeKernel) -> None:
    for _ in range(50):
        watched.ms(900)
        watched.now_ns += STALL_NS
        watched.tick()
    assert kernel.watchdogs["watchdog0"].written() == b""


def test_an_orderly_end_disarms_the_watchdog(watched: World, kernel: FakeKernel) -> None:
    assert watched.guard is not None
    watched.guard.farewell()
    assert kernel.watchdogs["watchdog0"].written() == b"V"


def test_a_watchdog_that_cannot_be_used_keeps_no_guard_from_its_work(world: World, kernel: FakeKernel) -> None:
    assert world.guard is not None
    world.guard.files.close()
    world.watchdog = WatchdogSpec(str(kernel.dev / "watchdog0"), 20)
    assert world.start().ms(50).safe == 1
    assert world.published().watchdog == WatchdogState.FAILED


def test_the_times_are_those_of_the_manual() -> None:
    assert TICK_MS == 2.5
    assert RESET_MS == 20, "two scans"
    assert PUBLISH_MS == 10, "one scan"
    assert STALL_NS == 100e6, "the hold time of the alive relay"


def test_the_heartbeat_is_late_in_the_tick_that_completes_two_and_a_half_periods(armed: World) -> None:
    while armed.now_ns // TICK_NS % 4:
        armed.tick()
    armed.beating = False
    silent = round(LATE_PERIODS * PERIOD_MS / TICK_MS)
    assert armed.tick(silent - 1).safe == 1
    assert armed.tick().safe == 0


def test_a_guard_that_meets_a_controller_for_the_first_time_arms_at_its_first_scan(world: World) -> None:
    while world.scan < 1:
        assert world.safe == 0
        world.tick()
    assert (world.scan, world.safe) == (1, 1)


def test_a_controller_that_has_not_scanned_yet_arms_nothing(world: World) -> None:
    world.scan = -1
    assert world.ms(PERIOD_MS).safe == 0
    assert world.scan == 0
    assert world.ms(PERIOD_MS).safe == 1


def test_a_gap_is_a_stall_only_when_it_is_longer_than_the_alive_relay_holds(armed: World) -> None:
    armed.now_ns += STALL_NS - TICK_NS
    assert armed.tick().safe == 1
    armed.now_ns += STALL_NS - TICK_NS + 1
    assert armed.tick().safe == 0


def test_every_accepted_press_counts_and_a_guard_that_comes_back_goes_on_counting(armed: World) -> None:
    assert armed.published().resets == 0
    assert armed.press().press().ms(PERIOD_MS).published().resets == 2
    armed.press(RESET_TICKS - 1)
    armed.again()
    assert armed.ms(PERIOD_MS).published().resets == 2
    assert armed.press().ms(PERIOD_MS).published().resets == 3


def test_a_button_that_was_down_already_when_the_guard_came_back_is_no_press(armed: World) -> None:
    armed.inputs["reset_button"].state = 1
    armed.outputs["safe_enable"].state = 0
    assert armed.again().ms(1000).safe == 0
    armed.inputs["reset_button"].state = 0
    assert armed.tick().press().safe == 1


@pytest.mark.parametrize(("ticks", "safe"), [(RESET_TICKS - 1, 0), (RESET_TICKS, 1)])
def test_a_press_that_begins_with_the_first_tick_of_a_guard_that_came_back_counts(
    armed: World, ticks: int, safe: int
) -> None:
    armed.outputs["safe_enable"].state = 0
    armed.again()
    armed.inputs["reset_button"].state = 1
    assert armed.tick(ticks).safe == safe


def test_the_section_is_published_every_fourth_tick_from_the_fourth_on(world: World) -> None:
    published = image.reader("guard", "guard", world.directory)
    world.beating = False
    seen = []
    for _ in range(3 * PUBLISH_TICKS):
        world.tick()
        seen.append(published.sequence)
    assert seen == [0] * 3 + [1] * 4 + [2] * 4 + [3]


def test_arming_and_dropping_are_published_and_told_in_the_tick_of_their_own(world: World) -> None:
    world.now_ns += TICK_NS  # so that the first scan does not fall into a tick that publishes anyway
    while not world.safe:
        world.tick()
    assert world.published().armed
    assert world.trip() is GuardTrip.NONE
    world.inputs["tamper"].state = 0
    world.tick()
    assert not world.published().armed
    assert (world.published().kill_ok, world.published().tamper_ok) == (True, False)
    assert world.told()[-2:] == [(0, "safe-enable on"), (0, "safe-enable off: TAMPER")]


def test_an_orderly_end_is_published_and_told(armed: World) -> None:
    assert armed.guard is not None
    while not armed.outputs["alive"].state:
        armed.tick()
    armed.guard.farewell()
    assert armed.trip() is GuardTrip.HEARTBEAT_LATE
    assert armed.told()[-1] == (0, "safe-enable off: HEARTBEAT_LATE")
    assert armed.outputs["alive"].state == 0


def test_what_the_watchdog_has_to_say_is_an_event_without_a_kind(world: World, kernel: FakeKernel) -> None:
    world.watchdog = WatchdogSpec("nowhere", 20)
    kind, said = world.again().told()[-1]
    assert kind == 0
    assert said.startswith("watchdog nowhere: ")


@pytest.fixture
def slow(world: World) -> World:
    """A guard on a board whose lines are slow, beside a controller to match, armed."""
    assert world.guard is not None
    world.guard.files.close()
    (world.directory / "guard.img").unlink()
    world.tick_ms, world.period_ms = 25.0, 50
    assert world.start().ms(500).safe == 1
    return world


def test_a_slow_guard_trips_within_three_periods_of_a_controller_that_has_stopped(slow: World) -> None:
    slow.beating = False
    assert slow.ms(2.5 * slow.period_ms - slow.tick_ms).safe == 1
    assert slow.ms(slow.period_ms / 2).safe == 0
    assert slow.trip() is GuardTrip.HEARTBEAT_LATE


def test_a_slow_guard_publishes_every_tick_and_takes_a_press_of_two(slow: World) -> None:
    published = image.reader("guard", "guard", slow.directory)
    before = published.sequence
    assert slow.tick(3).published().resets == 0
    assert published.sequence == before + 3
    assert slow.press(1).tick().published().resets == 0
    assert slow.press(2).tick().published().resets == 1


def test_a_slow_guard_pulses_often_enough_for_the_alive_relay(slow: World) -> None:
    seen = [slow.tick().outputs["alive"].state for _ in range(4)]
    assert seen in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert 2 * slow.tick_ms * 1e6 < STALL_NS


def test_a_slow_guard_pets_the_watchdog_once_a_second_too(world: World, kernel: FakeKernel) -> None:
    assert world.guard is not None
    world.guard.files.close()
    world.watchdog, world.tick_ms, world.period_ms = WatchdogSpec(str(kernel.add_watchdog().path), 20), 25.0, 50
    world.start().ms(5000)
    assert kernel.watchdogs["watchdog0"].written() == b"\0" * 5
