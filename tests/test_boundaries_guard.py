"""The guard's process: when it ticks, when it looks at edges, and what it starts with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drivers.board import BoardError
from drivers.board_file import GUARD_TICK_MS, WatchdogSpec
from firmware import controller
from firmware import guard as module
from firmware.guard import Guard, main, run

EDGE_FD, START_NS = 7, 10**12
TICK_NS = round(GUARD_TICK_MS * 1e6)


class Loop:
    """Stands for clock, kernel and guard; `calls` has what was asked, with the ns since the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ticks: int) -> None:
        self.now_ns, self.calls, self.ticks = START_NS, list[tuple[str, int]](), ticks
        self.tick_ms = GUARD_TICK_MS
        self.waited_s: list[float] = []
        self.edges_ns: list[int] = []  # when the kernel will have one
        self.tick_takes_ns: list[int] = []
        monkeypatch.setattr(module, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(module, "pending_stop", lambda: len(self.of("tick")) == self.ticks)
        monkeypatch.setattr(module, "select", SimpleNamespace(select=self._select))

    def run(self) -> Loop:
        run(cast(Guard, self), EDGE_FD)
        return self

    def of(self, name: str) -> list[int]:
        return [at_ns for called, at_ns in self.calls if called == name]

    def _select(self, *asked: Any) -> tuple[Any, Any, Any]:
        read, write, other, timeout_s = asked
        assert (read, write, other) == ((EDGE_FD,), (), ())
        assert timeout_s > 0.0
        self.waited_s.append(timeout_s)
        until_ns = self.now_ns + round(timeout_s * 1e9)
        if self.edges_ns and self.edges_ns[0] <= until_ns:
            self.now_ns = max(self.now_ns, self.edges_ns.pop(0))
            return [EDGE_FD], [], []
        self.now_ns = until_ns
        return [], [], []

    def edges(self) -> None:
        self.calls.append(("edges", self.now_ns - START_NS))

    def tick(self) -> None:
        self.calls.append(("tick", self.now_ns - START_NS))
        self.now_ns += self.tick_takes_ns.pop(0) if self.tick_takes_ns else 0

    def farewell(self) -> None:
        self.calls.append(("farewell", self.now_ns - START_NS))


def test_it_ticks_at_the_end_of_every_period_and_says_farewell_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=4).run()
    assert loop.calls == [*(("tick", n * TICK_NS) for n in (1, 2, 3, 4)), ("farewell", 4 * TICK_NS)]
    assert loop.waited_s == [TICK_NS / 1e9] * 4


def test_it_ticks_as_slowly_as_the_board_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=3)
    loop.tick_ms = 12.5
    assert loop.run().of("tick") == [12_500_000, 25_000_000, 37_500_000]


def test_the_service_manager_hears_of_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    loop = Loop(monkeypatch, ticks=3)
    monkeypatch.setattr(module, "Notifier", lambda: SimpleNamespace(tick=lambda: heard.append(len(loop.of("tick")))))
    loop.run()
    assert heard == [1, 2, 3]


def test_an_edge_is_answered_at_once_and_moves_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=2)
    loop.edges_ns = [START_NS + 1000, START_NS + 2000, START_NS + TICK_NS + 5]
    assert loop.run().calls == [
        ("edges", 1000), ("edges", 2000), ("tick", TICK_NS), ("edges", TICK_NS + 5), ("tick", 2 * TICK_NS),
        ("farewell", 2 * TICK_NS),
    ]  # fmt: skip


def test_edges_without_end_hold_up_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=2)
    loop.edges_ns = [START_NS + n * (TICK_NS // 4) for n in range(1, 40)]
    assert loop.run().of("tick") == [TICK_NS, 2 * TICK_NS]
    assert loop.of("edges") == [n * (TICK_NS // 4) for n in range(1, 9)]


def test_a_tick_that_takes_long_costs_the_next_ones_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=4)
    loop.tick_takes_ns = [0, TICK_NS // 2]
    assert loop.run().of("tick") == [n * TICK_NS for n in (1, 2, 3, 4)]


def test_after_a_stall_the_ticks_that_were_missed_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, ticks=4)
    loop.tick_takes_ns = [20 * TICK_NS]
    assert loop.run().of("tick") == [n * TICK_NS for n in (1, 21, 22, 23)]


class Machine:
    """What main starts with, replaced by notes of what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.watchdog = WatchdogSpec("/dev/watchdog0", 20)
        self.asked: list[tuple[Any, ...]] = []
        self.fifo, self.fails, self.lost, self.stuck = True, "", "", False
        self.board = SimpleNamespace(edge_fd=EDGE_FD, close=self._noted("close", self._closed))
        monkeypatch.setenv("EMS_RUN_DIR", str(tmp_path))
        for name in ("EMS_BOARD", "EMS_RT_CORE"):
            monkeypatch.delenv(name, raising=False)
        answers: dict[str, Callable[[], Any]] = {
            "open_board": self._opened,
            "load": lambda: SimpleNamespace(watchdog=self.watchdog, guard_tick_ms=10.0),
            "Guard": lambda: "the guard",
            "prepare": lambda: (self.fifo, False),
            "run": self._ran,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(module, name, self._noted(name, answer))

    def _opened(self) -> SimpleNamespace:
        if self.fails:
            raise BoardError(self.fails)
        return self.board

    def _ran(self) -> None:
        if self.lost:
            raise OSError(19, self.lost)

    def _closed(self) -> None:
        if self.stuck:
            raise OSError(19, "safe_enable too")

    def _noted(self, name: str, answer: Callable[[], Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.asked.append((name, *args))
            return answer()

        return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_it_opens_its_own_lines_and_the_watchdog_and_then_asks_for_the_right_to_be_in_time(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    assert machine.asked == [
        ("open_board", "guard", tmp_path), ("load", "bench"), ("Guard", machine.board, machine.watchdog, 10.0),
        ("prepare", 90, -1), ("run", "the guard", EDGE_FD),
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "guard: watching, SCHED_FIFO 90\n")


def test_it_is_before_the_controller_when_both_want_the_core() -> None:
    assert module.PRIORITY > controller.PRIORITY


@pytest.mark.parametrize(("board", "loaded"), [("piplc", "piplc"), ("", "bench")])
def test_board_and_core_are_those_of_the_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, board: str, loaded: str
) -> None:
    monkeypatch.setenv("EMS_BOARD", board)
    monkeypatch.setenv("EMS_RT_CORE", "3")
    assert main() == 0
    assert ("load", loaded) in machine.asked
    assert ("prepare", 90, 3) in machine.asked


def test_without_the_right_to_be_in_time_it_says_so_and_watches(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fifo = False
    assert main() == 0
    assert capsys.readouterr() == ("", "guard: watching, without the right to SCHED_FIFO\n")
    assert machine.asked[-1] == ("run", "the guard", EDGE_FD)


def test_a_board_that_cannot_be_opened_ends_it_with_what_to_do(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fails = "no gpiochip; plug it in"
    assert main() == 2
    assert capsys.readouterr() == ("", "guard: no gpiochip; plug it in\n")
    assert [name for name, *_ in machine.asked] == ["open_board"]


@pytest.mark.parametrize("stuck", [False, True])
def test_lines_that_are_lost_while_it_watches_end_it_with_the_others_safe(
    machine: Machine, capsys: pytest.CaptureFixture[str], stuck: bool
) -> None:
    machine.lost, machine.stuck = "no such device", stuck
    assert main() == 1
    assert machine.asked[-2:] == [("run", "the guard", EDGE_FD), ("close",)]
    assert capsys.readouterr().err.splitlines()[1:] == ["guard: [Errno 19] no such device"]
