"""Before guard and controller: the board is there, and every output is safe."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kernel import FakeKernel, kernel

from drivers.board_file import load
from firmware.safe_outputs import drive, main, missing, wait

__all__ = ["kernel"]


def test_what_is_not_there_is_named(kernel: FakeKernel) -> None:
    found = list(missing(load("cp2112")))
    assert [text.partition(":")[0] for text in found] == [
        "chip io0", "chip io1", "chip io2", "chip io3", "converter a", "converter b",
    ]  # fmt: skip
    assert "usb_serial 'IO0'" in found[0]


def test_it_waits_and_says_each_trouble_once() -> None:
    troubles = ["a", "a", "b", "b", "b", ""]
    said: list[str] = []
    wait(lambda: troubles.pop(0), said.append, lambda seconds: None)
    assert said == ["a", "b"]
    assert not troubles


def test_every_output_is_driven_safe_and_let_go(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMS_BOARD", "cp2112")
    chips = {name: kernel.add_chip("cp2112_gpio", 8, name.upper()) for name in ("io0", "io1", "io2", "io3")}
    board = load("cp2112")
    for spec in board.outputs.values():
        chips[spec.chip].lines[spec.offset].level = 1
    drive(tmp_path)
    for name, spec in board.outputs.items():
        line = chips[spec.chip].lines[spec.offset]
        assert (line.level, line.requests, kernel.released(line)) == (0, 1, True), name


def test_on_the_bench_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_BOARD", "bench")
    monkeypatch.setattr("sys.argv", ["safe_outputs"])
    assert main() == 0


def test_a_wrong_board_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMS_BOARD", "none")
    monkeypatch.setattr("sys.argv", ["safe_outputs"])
    assert main() == 2
    assert "board" in capsys.readouterr().err
