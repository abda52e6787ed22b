"""gpiozero pins over the bench's terminals: reading one is a byte, writing one is a word.

Edge detection, pulls and PWM are refused: gpiozero's event classes start threads, which a scan cannot have.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path
from time import monotonic_ns
from typing import Any

from gpiozero.exc import PinInvalidFunction, PinSetInput
from gpiozero.pins import Factory, Pin

from drivers.board import LINES, BoardError, Edge, Line, Role
from drivers.devices import PINS, board_info

from .terminals import (
    EDGE,
    EDGES_FILE,
    IN_FILE,
    IN_SIZE,
    LOOPS,
    LOOPS_AT,
    NAMES,
    OUT_SIZE,
    map_file,
    open_fifo,
    out_file,
)

_FRESH_NS = 2_000_000_000
"""The bench samples its loops every few ms; older than this means that it is gone."""


_BOARD = board_info("bench", "BENCH")


class _BenchPin(Pin):  # type: ignore[misc]
    def __init__(self, factory: BenchFactory, line: Line) -> None:
        self._factory, self._line = factory, line
        self._role_drives = line.role == factory.role

    def __repr__(self) -> str:
        return f"bench line {self._line.name}"

    def _get_info(self) -> Any:
        return PINS[self._line.number]

    def _get_function(self) -> str:
        return "input" if self._line.role is None else "output"

    def _set_function(self, value: str) -> None:
        if value != self._get_function() or not (self._line.role is None or self._role_drives):
            raise PinInvalidFunction(
                f"{self!r} is the {self._line.role or 'bench'}'s {self._get_function()}, not {value}"
            )


class InputPin(_BenchPin):
    """A line that the bench drives."""

    def __init__(self, factory: BenchFactory, line: Line) -> None:
        super().__init__(factory, line)
        self._memory, self._at = factory.inputs, line.number

    def _get_state(self) -> int:
        return self._memory[self._at]

    def _set_state(self, value: int) -> None:
        raise PinSetInput(f"{self!r} is an input")


class OutputPin(_BenchPin):
    """A line of ours: stored only when it changes, with the time of the change; read back from its terminal."""

    def __init__(self, factory: BenchFactory, line: Line) -> None:
        super().__init__(factory, line)
        self._words, self._held, self._at = factory.words, factory.inputs, line.number

    def _get_state(self) -> int:
        return (self._held[self._at] or int(self._words[self._at])) & 1

    def _set_state(self, value: int) -> None:
        level = 1 if value else 0
        if self._words[self._at] & 1 != level:
            self._words[self._at] = monotonic_ns() & ~1 | level


class BenchFactory(Factory):  # type: ignore[misc]
    """Pins of one process. Raises BoardError when no bench runs in `directory` within `timeout_s`."""

    def __init__(self, role: Role, directory: Path, timeout_s: float) -> None:
        super().__init__()
        self.role = role
        self.inputs = _running_bench(directory, timeout_s)
        try:
            self.words = memoryview(map_file(directory / out_file(role), OUT_SIZE, write=True)).cast("Q")
            self.edge_fd = open_fifo(directory / EDGES_FILE) if role == "guard" else -1
        except (OSError, ValueError) as error:
            raise BoardError(f"bench terminals in {directory} cannot be opened as {role}: {error}") from error
        self._pins: dict[str, Pin] = {}
        self.edges()

    def loops(self) -> tuple[tuple[float, ...], int]:
        """Loop currents in mA, and when they were sampled."""
        stamp_ns, *microampere = LOOPS.unpack_from(self.inputs, LOOPS_AT)
        return tuple([i / 1000.0 for i in microampere]), stamp_ns

    def edges(self) -> list[Edge]:
        """Edges since the last call, oldest first; never blocks."""
        if self.edge_fd < 0:
            return []
        records = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.edge_fd, 64 * EDGE.size):
                records += more
        return [Edge(NAMES[line], level, stamp_ns) for line, level, stamp_ns in EDGE.iter_unpack(records)]

    def pin(self, name: str) -> Pin:
        """The one pin of that name; KeyError when the board has none."""
        if name not in self._pins:
            line = LINES[name]
            self._pins[name] = InputPin(self, line) if line.role is None else OutputPin(self, line)
        return self._pins[name]

    def ticks(self) -> int:
        """CLOCK_MONOTONIC, ns."""
        return monotonic_ns()

    def ticks_diff(self, later: int, earlier: int) -> float:
        """Seconds between two ticks."""
        return (later - earlier) / 1e9

    def close(self) -> None:
        """Closes the edge FIFO."""
        if self.edge_fd >= 0:
            os.close(self.edge_fd)
            self.edge_fd = -1

    def _get_board_info(self) -> Any:
        return _BOARD


def _running_bench(directory: Path, timeout_s: float) -> mmap.mmap:
    give_up = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):
            memory = map_file(directory / IN_FILE, IN_SIZE, write=False)
            if monotonic_ns() - LOOPS.unpack_from(memory, LOOPS_AT)[0] < _FRESH_NS:
                return memory
        if time.monotonic() >= give_up:
            raise BoardError(
                f"bench terminals not found in {directory}; start the bench first (python -m drivers.bench)"
            )
        time.sleep(0.02)
