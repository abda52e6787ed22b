"""What one side of the terminals does, the other sees."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import gpiozero
import pytest

from drivers.bench.pins import BenchFactory
from drivers.bench.terminals import Terminals
from drivers.board import INPUTS, LINES, OUTPUTS, BoardError, open_board

CURRENTS = (4000, 8000, 12000, 13000, 16000, 20000, 0, 24000)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    made = Terminals(tmp_path)
    made.set_loops(CURRENTS, monotonic_ns())
    yield made
    made.close()


@pytest.mark.parametrize("line", [i.name for i in INPUTS])
def test_an_input_that_the_bench_sets_is_read_by_both_processes(
    terminals: Terminals, tmp_path: Path, line: str
) -> None:
    boards = [open_board("controller", tmp_path), open_board("guard", tmp_path)]
    for level in (True, False):
        terminals.set_input(line, level)
        assert [board.inputs[line].value for board in boards] == [level, level]


def test_an_output_is_seen_by_the_bench_with_the_time_of_its_change(terminals: Terminals, tmp_path: Path) -> None:
    controller, guard = open_board("controller", tmp_path), open_board("guard", tmp_path)
    for line in OUTPUTS:
        board = controller if line.role == "controller" else guard
        assert terminals.output(line.name)[0] == 0
        before = monotonic_ns()
        board.outputs[line.name].value = 1
        level, changed_ns = terminals.output(line.name)
        assert level == board.outputs[line.name].value == 1
        assert before - 1 <= changed_ns <= monotonic_ns()
        board.outputs[line.name].value = 1
        assert terminals.output(line.name) == (1, changed_ns)


def test_a_held_output_keeps_its_level_for_bench_and_read_back_until_it_is_let_go(
    terminals: Terminals, tmp_path: Path
) -> None:
    board = open_board("controller", tmp_path)
    coil = board.outputs["coil_pos"]
    for level in (0, 1):
        coil.value = level
        terminals.hold_output("coil_pos", True)
        assert terminals.held_output("coil_pos")
        coil.value = 1 - level
        assert coil.value == terminals.output("coil_pos")[0] == level
        terminals.hold_output("coil_pos", False)
        assert coil.value == terminals.output("coil_pos")[0] == 1 - level
    terminals.hold_output("coil_neg", True)
    Terminals(tmp_path)
    assert not terminals.held_output("coil_neg"), "a new bench is a mended one"


def test_a_process_drives_its_own_outputs_only(terminals: Terminals, tmp_path: Path) -> None:
    guard = open_board("guard", tmp_path)
    assert set(guard.outputs) == {"safe_enable", "alive"}
    factory = BenchFactory("guard", tmp_path, 0.0)
    with pytest.raises(gpiozero.PinInvalidFunction, match="coil_neg"):
        gpiozero.OutputDevice("coil_neg", pin_factory=factory)
    with pytest.raises(gpiozero.PinInvalidFunction, match="kill_switch"):
        gpiozero.OutputDevice("kill_switch", pin_factory=factory)


def test_outputs_keep_their_level_when_the_process_ends_and_start_at_0_in_the_next(
    terminals: Terminals, tmp_path: Path
) -> None:
    board = open_board("controller", tmp_path)
    board.outputs["coil_neg"].value = 1
    board.close()
    assert terminals.output("coil_neg")[0] == 1
    open_board("controller", tmp_path)
    assert terminals.output("coil_neg")[0] == 0


def test_edges_of_the_kill_switch_wake_the_guard_in_order(terminals: Terminals, tmp_path: Path) -> None:
    terminals.set_input("kill_switch", True)
    guard = open_board("guard", tmp_path)
    assert guard.edges() == []
    assert not select.select([guard.edge_fd], [], [], 0)[0]
    terminals.set_input("kill_switch", False)
    terminals.set_input("interlock_4", True)
    terminals.set_input("tamper", True)
    assert select.select([guard.edge_fd], [], [], 1)[0]
    first, second = guard.edges()
    assert (first.line, first.level, second.line, second.level) == ("kill_switch", 0, "tamper", 1)
    assert first.stamp_ns <= second.stamp_ns <= monotonic_ns()


def test_a_missing_guard_does_not_block_the_bench(terminals: Terminals) -> None:
    for at in range(10_000):
        terminals.set_input("reset_button", at % 2 == 0)
    assert terminals.edges_lost > 0
    assert terminals.input("reset_button") == 0


def test_the_loops_are_read_in_milliampere_with_their_stamp(terminals: Terminals, tmp_path: Path) -> None:
    terminals.set_loops(CURRENTS, 77)
    with pytest.raises(BoardError):
        open_board("controller", tmp_path, timeout_s=0.0)
    now_ns = monotonic_ns()
    terminals.set_loops(CURRENTS, now_ns)
    assert open_board("controller", tmp_path).loops() == (tuple(i / 1000 for i in CURRENTS), now_ns)


def test_without_a_bench_the_error_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=rf"{tmp_path}; start the bench first"):
        open_board("controller", tmp_path, timeout_s=0.0)


def test_every_line_has_its_own_number_and_no_device_starts_a_thread(terminals: Terminals, tmp_path: Path) -> None:
    assert len({line.number for line in LINES.values()}) == len(LINES)
    factory = BenchFactory("guard", tmp_path, 0.0)
    with pytest.raises(gpiozero.PinEdgeDetectUnsupported):
        gpiozero.DigitalInputDevice("tamper", pull_up=None, active_state=True, pin_factory=factory)
