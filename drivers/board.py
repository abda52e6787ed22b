"""The I/O board: named digital lines and 4-20 mA loops, the same for every process and every kind of board."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from drivers.board_file import BoardFile

Role = Literal["controller", "guard"]
Loops = tuple[tuple[float, ...], int]


class Line(NamedTuple):
    """A digital line. Outputs belong to one process; inputs are read by all."""

    name: str
    number: int
    role: Role | None = None  # who drives it; None = input
    edges: bool = False  # its edges are reported to the guard
    absent_level: int = 0  # what it reads on a board that does not have it


_INPUTS = (
    "kill_switch", "tamper", "reset_button", *(f"interlock_{n}" for n in range(1, 9)), "fb_neg", "fb_pos", "fb_pre",
    "insulation", "local_remote",
)  # fmt: skip
_CONTROLLER = ("coil_neg", "coil_pos", "coil_pre", "led_run", "led_charge", "led_comm", "led_fault", "led_kill")
_GUARD = ("safe_enable", "alive")

INPUTS: tuple[Line, ...] = tuple(
    Line(name, number, edges=number < 3, absent_level=int(name == "local_remote"))
    for number, name in enumerate(_INPUTS)
)
OUTPUTS: tuple[Line, ...] = (
    *(Line(name, 16 + at, "controller") for at, name in enumerate(_CONTROLLER)),
    *(Line(name, 24 + at, "guard") for at, name in enumerate(_GUARD)),
)
LINES: dict[str, Line] = {line.name: line for line in (*INPUTS, *OUTPUTS)}
"""Level 1 is the healthy, closed circuit of kill_switch, tamper, interlock_n and insulation, the pressed reset_button,
the closed contactor of fb_*, the key switch local_remote at REMOTE, and the energised output."""


class BoardError(OSError):
    """The board cannot be opened; the message says what was looked for and what to do."""


def do_all(*actions: Callable[[], object]) -> None:
    """Each of them: a line that cannot be driven any more keeps no other one from being driven safe.

    Raises the first OSError when all have been done.
    """
    errors = []
    for action in actions:
        try:
            action()
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


class Edge(NamedTuple):
    """A level change of an input as the board saw it."""

    line: str
    level: int
    stamp_ns: int  # CLOCK_MONOTONIC


@dataclass(frozen=True, slots=True)
class Board:
    """What `open_board` gives. `inputs[name].value` and `outputs[name].value = level` take about a microsecond.

    `loops()` gives the eight loop currents in mA and the monotonic ns of their sampling. For the guard `edge_fd`
    becomes readable when `edges()` has something; for other roles it is -1.
    """

    inputs: Mapping[str, Any]  # gpiozero.InputDevice
    outputs: Mapping[str, Any]  # gpiozero.OutputDevice, those of the role
    loops: Callable[[], Loops]
    edges: Callable[[], list[Edge]]
    edge_fd: int
    is_bench: bool
    close_terminals: Callable[[], None]

    def close(self) -> None:
        """Gives the lines back. The bench's outputs keep their last level, a real board's are driven safe before."""
        devices = (*self.outputs.values(), *self.inputs.values())
        do_all(*(device.close for device in devices), self.close_terminals)


def open_board(role: Role, directory: Path, timeout_s: float = 10.0, board: str | None = None) -> Board:
    """The board named `board` (a shipped name or a path ending in .toml; None = $EMS_BOARD, else the bench).

    All outputs of `role` are at 0. The bench is waited for up to `timeout_s`; on other boards the guard has its own
    three inputs only, and the loops are those that the sampler publishes in `directory`. Raises BoardError.
    """
    from drivers.board_file import load

    file = load(board or os.environ.get("EMS_BOARD") or "bench")
    return _bench(role, directory, timeout_s) if file.is_bench else _hardware(role, directory, file)


def _bench(role: Role, directory: Path, timeout_s: float) -> Board:
    from drivers.bench.pins import BenchFactory  # not loaded where there is hardware
    from drivers.devices import devices

    factory = BenchFactory(role, directory, timeout_s)
    inputs, outputs = devices(factory, INPUTS, role)
    return Board(
        inputs=inputs,
        outputs=outputs,
        loops=factory.loops,
        edges=factory.edges,
        edge_fd=factory.edge_fd,
        is_bench=True,
        close_terminals=factory.close,
    )


def _hardware(role: Role, directory: Path, file: BoardFile) -> Board:
    from drivers.devices import devices
    from drivers.loops import LoopsReader
    from drivers.pins import LineFactory  # not loaded on the bench

    factory = LineFactory(role, file)
    try:
        inputs, outputs = devices(factory, [i for i in INPUTS if i.edges or role != "guard"], role)
    except BaseException:
        factory.close()
        raise
    return Board(
        inputs=inputs,
        outputs=outputs,
        loops=LoopsReader(directory).loops,
        edges=factory.edges,
        edge_fd=factory.edge_fd if role == "guard" else -1,
        is_bench=False,
        close_terminals=factory.close,
    )
