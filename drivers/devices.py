"""The board's lines as gpiozero's devices. Only who opens a board loads it: gpiozero takes 8 MB of each process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpiozero import InputDevice, OutputDevice
from gpiozero.pins import BoardInfo, HeaderInfo, PinInfo

from .board import LINES, OUTPUTS, Line, Role


def _pin_info(line: Line) -> Any:
    return PinInfo(line.number, line.name, frozenset({line.name}), "", line.number, 1, frozenset({"gpio"}))


PINS: dict[int, Any] = {line.number: _pin_info(line) for line in LINES.values()}


def board_info(model: str, header: str) -> Any:
    """gpiozero's description of a board with the lines of the table."""
    headers = {header: HeaderInfo(header, 32, 1, PINS)}
    return BoardInfo("1", model, "1", "", "", "OpenBESS", 0, "", 0, 0, 0, 0, False, False, 0, 0, headers, "")


def devices(factory: Any, inputs: Iterable[Line], role: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """gpiozero.InputDevice by name, and OutputDevice of the lines that `role` drives; outputs are opened first."""
    outputs = {o.name: OutputDevice(o.name, pin_factory=factory) for o in OUTPUTS if o.role == role}
    return {i.name: _input(i, factory) for i in inputs}, outputs


def _input(line: Line, factory: Any) -> Any:
    return InputDevice(line.name, pull_up=None, active_state=True, pin_factory=factory)
