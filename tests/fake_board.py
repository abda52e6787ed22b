"""A board of lines in memory, and the controller on it, in this process: nothing scans unless it is asked to."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig import settings

from drivers.board import Board
from drivers.loops import LOOPS
from firmware import image
from firmware.controller import Controller
from firmware.settings_codec import settings_to_json

_INPUTS = (
    "kill_switch", "tamper", "reset_button", "insulation", "local_remote", "fb_neg", "fb_pos", "fb_pre",
    *(f"interlock_{n}" for n in range(1, 9)),
)  # fmt: skip
_OUTPUTS = ("coil_neg", "coil_pos", "coil_pre", "led_run", "led_charge", "led_comm", "led_fault", "led_kill")


class Line:
    """A terminal that counts what is asked of it."""

    def __init__(self) -> None:
        self.level, self.touched = 0, 0

    @property
    def state(self) -> int:
        self.touched += 1
        return self.level

    @property
    def pin(self) -> Line:
        return self

    def _set(self, level: int) -> None:
        self.touched += 1
        self.level = level

    value = property(fset=_set)

    def off(self) -> None:
        self.value = 0

    close = off


def board_lines() -> dict[str, Line]:
    """All low."""
    return {name: Line() for name in (*_INPUTS, *_OUTPUTS)}


def controller_of(lines: dict[str, Line], directory: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """It has the default configuration; its image is in `directory`, where the server's file has no writer."""
    monkeypatch.setenv("EMS_RUN_DIR", str(directory))
    monkeypatch.setenv("EMS_STATE_DIR", str(directory / "state"))
    server = image.writer("server")
    server["config"].publish(settings_to_json(settings()))
    server.close()
    return Controller(
        Board(
            {name: lines[name] for name in _INPUTS}, {name: lines[name] for name in _OUTPUTS},
            lambda: ((12.0,) * LOOPS, 1), list, -1, True, lambda: None,
        )
    )  # fmt: skip
