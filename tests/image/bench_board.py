"""`python -m tests.image.bench_board DIRECTORY`: the adapters of board cp2112 between a guest and a running bench.

The bench's terminals are in DIRECTORY. There it also puts a socket for each adapter (io0.sock ...), to which QEMU
connects, and `output-edges`: a line "CLOCK_MONOTONIC ns, name, level" for each change of an output, as seen here.
Commands on stdin, "unplug io0" or "plug io0", are answered with a line; it ends with stdin. `BenchBoard` does all that.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from types import TracebackType

from fake_ads1115 import FakeAds1115

from drivers.board import LINES, Board, Edge, Role, open_board
from drivers.board_file import AdcSpec, BoardFile, LineSpec, load

from .cp2112 import Cp2112
from .usbredir import Peer

BOARD, EDGES_FILE = "cp2112", "output-edges"
ROOT = Path(__file__).parents[2]
_ROLES: tuple[Role, ...] = ("controller", "guard")
_STALE_NS = 500_000_000
"""The bench samples its loops every 50 ms; when it does not, the converters have no power."""


class Terminals:
    """The bench's terminals in the terms of the adapters' lines; outputs are recorded when they change."""

    def __init__(self, directory: Path, file: BoardFile) -> None:
        self._boards: dict[Role, Board] = {role: open_board(role, directory, board="bench") for role in _ROLES}
        self._file, self._levels = file, dict.fromkeys(file.outputs, 0)
        self._record = (directory / EDGES_FILE).open("w", buffering=1)

    def pins(self, chip: str) -> Callable[[], int]:
        """Levels that the plant puts on a chip's lines; a line that is not wired is pulled up."""
        tables = (self._file.inputs, self._file.guard_inputs)
        wired = [(name, spec) for table in tables for name, spec in table.items() if spec.chip == chip]
        lines = [(self._boards["controller"].inputs[name], s.offset, s.active_low) for name, s in wired]
        free = 0xFF & ~sum(1 << offset for _, offset, _ in lines)
        return lambda: free | sum((int(line.value) ^ low) << offset for line, offset, low in lines)

    def changed(self, chip: str) -> Callable[[int, int], None]:
        """Takes the levels of a chip's outputs; one that is not driven is pulled to its safe level."""
        wired = {name: spec for name, spec in self._file.outputs.items() if spec.chip == chip}
        return lambda driven, levels: self._set(wired, driven, levels)

    def _set(self, wired: dict[str, LineSpec], driven: int, levels: int) -> None:
        for name, spec in wired.items():
            level = (driven >> spec.offset) & (levels >> spec.offset ^ spec.active_low) & 1
            role = LINES[name].role
            if role is not None and level != self._levels[name]:
                self._levels[name] = self._boards[role].outputs[name].value = level
                self._record.write(f"{monotonic_ns()},{name},{level}\n")

    def bus(self, serial: str) -> dict[int, FakeAds1115]:
        """The converters on an adapter's I2C bus by address."""
        found = {name: adc for name, adc in self._file.adcs.items() if adc.device.value == serial}
        return {adc.address: FakeAds1115(self._volts(name, adc)) for name, adc in found.items()}

    def _volts(self, name: str, adc: AdcSpec) -> Callable[[int], float]:
        wired = {loop.channel: (at - 1, loop.shunt_ohm) for at, loop in self._file.loops.items() if loop.adc == name}

        def volts(channel: int) -> float:
            currents_ma, stamp_ns = self._boards["controller"].loops()
            if monotonic_ns() - stamp_ns > _STALE_NS:
                raise OSError("the bench does not sample its loops")
            at, shunt_ohm = wired[channel]
            return min(currents_ma[at] / 1000.0 * shunt_ohm, adc.full_scale_v)

        return volts


class Adapter:
    """One CP2112 on a socket of its own; the guest that came last has it."""

    def __init__(self, path: Path, chip: Cp2112) -> None:
        self._chip, self._plugged = chip, True
        self._peer: Peer | None = None
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def accept(self, selector: selectors.BaseSelector) -> None:
        """A guest has connected."""
        self._drop(selector)
        self._peer = Peer(self.listener.accept()[0], self._chip, self._plugged)
        selector.register(self._peer.sock, selectors.EVENT_READ, self.step)

    def step(self, selector: selectors.BaseSelector) -> None:
        """The guest has said something."""
        if self._peer is not None and not self._peer.step():
            self._drop(selector)

    def _drop(self, selector: selectors.BaseSelector) -> None:
        """A guest that is gone powers nothing."""
        if self._peer is not None:
            selector.unregister(self._peer.sock)
            self._peer.sock.close()
            self._peer = None
            self._chip.power_on()

    def plug(self) -> None:
        self._plugged = True
        if self._peer is not None:
            self._peer.plug()

    def unplug(self) -> None:
        self._plugged = False
        if self._peer is not None:
            self._peer.unplug()
        self._chip.power_on()


def _adapters(directory: Path) -> dict[str, Adapter]:
    file = load(BOARD)
    terminals = Terminals(directory, file)
    made = {}
    for name, device in file.chips.items():
        chip = Cp2112(device.value, terminals.pins(name), terminals.changed(name), terminals.bus(device.value))
        made[name] = Adapter(directory / f"{name}.sock", chip)
    return made


def _command(adapters: dict[str, Adapter], line: str) -> str:
    verb, _, name = line.partition(" ")
    if verb not in ("plug", "unplug") or name not in adapters:
        return f"{line!r}: allowed is plug or unplug, then one of {', '.join(adapters)}"
    getattr(adapters[name], verb)()
    return "ok"


def main() -> int:
    """Serves until stdin ends."""
    adapters = _adapters(Path(sys.argv[1]))
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    for adapter in adapters.values():
        selector.register(adapter.listener, selectors.EVENT_READ, adapter.accept)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                key.data(selector)
            elif not (said := os.read(key.fd, 4096)):
                for adapter in adapters.values():
                    adapter.unplug()
                return 0
            else:
                for line in said.decode().splitlines():
                    print(_command(adapters, line), flush=True)


class BenchBoard:
    """The process, for a test. A bench must run in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._read, self._edges = directory, 0, list[Edge]()
        command = [sys.executable, "-m", "tests.image.bench_board", str(directory)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    @property
    def pid(self) -> int:
        return self._process.pid

    def _expect(self, wanted: str) -> None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer == wanted, answer or "the adapters' process has ended; see its message above"

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._expect("ok")

    def unplug(self, adapter: str) -> None:
        """Pulls an adapter: its outputs are safe when this returns."""
        self._tell(f"unplug {adapter}")

    def plug(self, adapter: str) -> None:
        """Puts it back, all its lines inputs."""
        self._tell(f"plug {adapter}")

    def edges(self) -> list[Edge]:
        """All changes of outputs so far, oldest first."""
        with (self._directory / EDGES_FILE).open() as file:
            file.seek(self._read)
            new, newline, _ = file.read().rpartition("\n")
        self._read += len(new + newline)
        fields = (line.split(",") for line in new.splitlines())
        self._edges += [Edge(name, int(level), int(stamp_ns)) for stamp_ns, name, level in fields]
        return self._edges

    def qemu_options(self) -> list[str]:
        """What makes QEMU plug the adapters into its guest."""
        options = ["-device", "qemu-xhci,p2=8"]  # with four ports QEMU puts a hub in between
        for name in load(BOARD).chips:
            path = self._directory / f"{name}.sock"
            options += ["-chardev", f"socket,id={name},path={path},reconnect=1", "-device", f"usb-redir,chardev={name}"]
        return options

    def close(self) -> None:
        """Ends the process; outputs fall to their safe levels with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5.0)

    def __enter__(self) -> BenchBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


if __name__ == "__main__":
    sys.exit(main())
