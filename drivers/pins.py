"""gpiozero pins over python-periphery's character-device GPIO: any Linux board, no thread.

A line is requested once, with its final direction, its bias and the consumer name `ems-<role>`; an output at its safe
level. No property of periphery's is set afterwards: each setter gives the line back and takes it again, which is a
glitch. Inversion is done here: periphery's `inverted` swaps what write() means but not what "high" means at opening.

Debounce is the kernel's (the line's debounce_us; reading it gives the debounced level as well). The kill-switch and
the tamper contact of the guard have none: a short opening must trip. What chatters beyond that is debounced by the
latches of the state machine.

gpiozero's DigitalInputDevice works too, without a thread: its callbacks run inside `edges()`, in the caller's thread.

Closing an output drives it to its safe level first. What a released line does next is the chip driver's matter: the
mainline BCM2711 driver makes an input of it, Raspberry Pi's kernel and most others hold the level. The same happens
without the safe level when a process is killed, which is why the alive relay exists.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

from gpiozero.exc import PinInvalidEdges, PinInvalidFunction, PinSetInput
from gpiozero.pins import Factory, Pin
from periphery.gpio_cdev2 import Cdev2GPIO

from . import gpiochip
from .board import LINES, BoardError, Edge, Line, Role, do_all
from .board_file import BoardFile, LineSpec
from .devices import PINS, board_info

Changed = Callable[[int, int], None]


class _Pin(Pin):  # type: ignore[misc]
    """One line of the table, in the terms of the table: 1 is healthy, pressed, closed or energised."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def __repr__(self) -> str:
        return f"line {self.line.name}"

    def _get_info(self) -> Any:
        return PINS[self.line.number]

    def _get_function(self) -> str:
        return "input" if self.line.role is None else "output"

    def _set_function(self, value: str) -> None:
        if value != self._get_function():
            raise PinInvalidFunction(f"{self!r} is an {self._get_function()}, not an {value}")

    def _get_pull(self) -> str:
        return "floating"  # the bias belongs to the board file


class AbsentPin(_Pin):
    """A line that the board does not have: an input at its absent level, an output that nothing is wired to."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self._state = line.absent_level

    def _get_state(self) -> int:
        return self._state

    def _set_state(self, value: int) -> None:
        self._state = int(bool(value))


class InputPin(_Pin):
    """An input; `edges = "both"` makes it report to its factory's `edges()`."""

    def __init__(self, line: Line, spec: LineSpec, gpio: Any, factory: LineFactory) -> None:
        super().__init__(line)
        self._gpio, self._spec, self._factory = gpio, spec, factory
        self._edges, self._debounced = "none", False
        self.when_changed_is: Changed | None = None

    def _get_state(self) -> int:
        return int(self._gpio.read() ^ self._spec.active_low)

    def _set_state(self, value: int) -> None:
        raise PinSetInput(f"{self!r} is an input")

    def _get_edges(self) -> str:
        return self._edges

    def _set_edges(self, value: str) -> None:
        if value not in ("none", "both"):
            raise PinInvalidEdges(f"{self!r}: edges {value!r}; allowed are 'none' and 'both'")
        if value != self._edges:
            self.configure(value == "both")
            self._edges = value

    def _get_when_changed(self) -> Changed | None:
        return self.when_changed_is

    def _set_when_changed(self, value: Changed | None) -> None:
        self.when_changed_is = value

    def configure(self, edges: bool) -> None:
        """Raises BoardError when the chip has no interrupts, which edges and debounce need.

        A debounce already in force is taken off first: kernels without "gpiolib: cdev: fix uninitialised kfifo" add
        edges to it without making the queue that holds them.
        """
        fd = self._gpio.fd
        try:
            if self._debounced:
                gpiochip.configure_input(fd, self._spec.bias, False, 0)
            gpiochip.configure_input(fd, self._spec.bias, edges, self._spec.debounce_us)
        except OSError as error:
            raise BoardError(
                f"{self!r} (chip {self._spec.chip!r} line {self._spec.offset}) gives no edges or debounce: "
                f"{error.strerror}; take a chip with interrupts, or debounce_us = 0"
            ) from error
        self._debounced = self._spec.debounce_us > 0
        self._factory.watch(fd, self if edges else None)

    def waiting(self) -> list[tuple[int, int]]:
        """Level and CLOCK_MONOTONIC ns of the edges that wait."""
        return [(level ^ self._spec.active_low, ns) for level, ns in gpiochip.read_events(self._gpio.fd)]

    def close(self) -> None:
        self.when_changed_is = None
        if self._gpio.fd is not None:
            self._factory.watch(self._gpio.fd, None)
        self._gpio.close()


class OutputPin(_Pin):
    """An output of ours, opened at its safe level and written when it changes."""

    def __init__(self, line: Line, spec: LineSpec, gpio: Any) -> None:
        super().__init__(line)
        self._gpio, self._active_low = gpio, spec.active_low
        self._level: int | None = 0

    def _get_state(self) -> int:
        return int(self._gpio.read() ^ self._active_low) if self._level is None else self._level

    def _set_state(self, value: int) -> None:
        level = int(bool(value))
        if level != self._level:
            self._level = None  # unknown until the write went through
            self._gpio.write(bool(level ^ self._active_low))
            self._level = level

    def close(self) -> None:
        if self._gpio.fd is None:
            return
        try:
            self._set_state(0)
        finally:
            self._gpio.close()


class LineFactory(Factory):  # type: ignore[misc]
    """The lines of one process. Raises BoardError naming line, chip and what to do."""

    def __init__(self, role: Role, board: BoardFile) -> None:
        super().__init__()
        self.role, self._board = role, board
        self._chips = {name: _chip(board, name) for name in board.chips}
        self._poll = select.epoll()
        self._watched: dict[int, InputPin] = {}
        self._pins: dict[str, _Pin] = {}
        self._info = board_info(board.path.stem, "BOARD")

    @property
    def edge_fd(self) -> int:
        """Readable when `edges()` has something; one descriptor for all lines."""
        return self._poll.fileno()

    def watch(self, fd: int, pin: InputPin | None) -> None:
        """Starts to listen to a line's edges, or stops."""
        if fd in self._watched:
            self._poll.unregister(fd)
            del self._watched[fd]
        if pin is not None:
            self._poll.register(fd, select.EPOLLIN)
            self._watched[fd] = pin

    def edges(self) -> list[Edge]:
        """Edges since the last call, oldest first; never blocks. Raises OSError when a chip is gone."""
        ready = [self._watched[fd] for fd, _ in self._poll.poll(0)]
        found = sorted(((ns, pin, level) for pin in ready for level, ns in pin.waiting()), key=lambda edge: edge[0])
        for ns, pin, level in found:
            if pin.when_changed_is is not None:
                pin.when_changed_is(ns, level)
        return [Edge(pin.line.name, level, ns) for ns, pin, level in found]

    def pin(self, name: str) -> Pin:
        """The one pin of that name; KeyError when there is no such line."""
        if name not in self._pins:
            self._pins[name] = self._open(LINES[name])
        return self._pins[name]

    def _open(self, line: Line) -> _Pin:
        if line.name in self._board.absent:
            return AbsentPin(line)
        if line.role is not None and line.role != self.role:
            raise PinInvalidFunction(f"line {line.name} is an output of the {line.role}, not of the {self.role}")
        if line.role is not None:
            spec = self._board.outputs[line.name]
            return OutputPin(line, spec, self._request(line, spec, "high" if spec.active_low else "low"))
        spec = (self._board.guard_inputs if self.role == "guard" else self._board.inputs)[line.name]
        pin = InputPin(line, spec, self._request(line, spec, "in"), self)
        if self.role == "guard":
            pin.edges = "both"
        elif spec.debounce_us:
            pin.configure(edges=False)
        return pin

    def _request(self, line: Line, spec: LineSpec, direction: str) -> Any:
        """periphery's version 2 class itself: its `CdevGPIO` falls to version 1 on kernels named like "6.12-rt1"."""
        path, consumer = self._chips[spec.chip], f"ems-{self.role}"
        try:
            return Cdev2GPIO(str(path), spec.offset, direction, bias=spec.bias, drive=spec.drive, label=consumer)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise BoardError(
                f"{self._board.path}: line {line.name} = {path} line {spec.offset}: {error.strerror or error}; "
                + _advice(error, path, spec.offset)
            ) from error

    def ticks(self) -> int:
        """CLOCK_MONOTONIC, ns."""
        return monotonic_ns()

    def ticks_diff(self, later: int, earlier: int) -> float:
        """Seconds between two ticks."""
        return (later - earlier) / 1e9

    def close(self) -> None:
        """Closes every line, outputs first at their safe level."""
        pins = sorted(self._pins.values(), key=lambda pin: pin.line.role is None)
        self._pins.clear()
        do_all(*(pin.close for pin in pins), self._poll.close)

    def _get_board_info(self) -> Any:
        return self._info


def _chip(board: BoardFile, name: str) -> Path:
    try:
        return gpiochip.find("gpio", board.chips[name])
    except OSError as error:
        raise BoardError(f"{board.path}: chip {name!r}: {error}; run ems-tool --board-check") from error


def _advice(error: OSError, path: Path, offset: int) -> str:
    if error.errno == errno.EBUSY:
        return f"{gpiochip.line_info(path, offset).consumer or 'another driver'} holds it; stop that first"
    return "run ems-tool --board-check"
