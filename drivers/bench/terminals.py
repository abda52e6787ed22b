"""The bench's terminal block: three memory-mapped files with one writer each, and a FIFO of edges.

`bench-in.term`: one byte an input line; one an output line, 2 or 3 when its terminal is held at level 0 or 1; then the
stamp of the loops and eight uint32 in microampere. Bench writes.
`bench-out-controller.term`, `bench-out-guard.term`: one native uint64 a line, the CLOCK_MONOTONIC ns of the line's last
change with the level in its lowest bit, so that level and stamp are one store. The named process writes.
`bench-edges`: records of line uint32, level uint32, CLOCK_MONOTONIC ns uint64.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
from pathlib import Path
from time import monotonic_ns

from drivers.board import INPUTS, LINES, OUTPUTS, Role

IN_FILE, EDGES_FILE = "bench-in.term", "bench-edges"
LOOPS_AT = 64
LOOPS = struct.Struct("=Q8I")
IN_SIZE, OUT_SIZE = 128, 256
EDGE = struct.Struct("=IIQ")
HELD = 2
ROLES: tuple[Role, ...] = ("controller", "guard")


def out_file(role: Role) -> str:
    """Name of the file that the process of `role` writes."""
    return f"bench-out-{role}.term"


def open_fifo(path: Path) -> int:
    """Opens so that neither side blocks and the reader sees no hang-up when the bench goes."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def map_file(path: Path, size: int, write: bool) -> mmap.mmap:
    """Maps a whole terminal file; FileNotFoundError or ValueError when it is missing or short."""
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
    finally:
        os.close(fd)


def _sized(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    os.ftruncate(fd, size)
    os.close(fd)


class Terminals:
    """The bench's side. Files are kept when they exist, so that processes that hold them go on after a restart."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, size in ((IN_FILE, IN_SIZE), *((out_file(role), OUT_SIZE) for role in ROLES)):
            _sized(directory / name, size)
        self._in = map_file(directory / IN_FILE, IN_SIZE, write=True)
        out = {
            role: memoryview(map_file(directory / out_file(role), OUT_SIZE, write=False)).cast("Q") for role in ROLES
        }
        for line in OUTPUTS:
            self._in[line.number] = 0
        self._words = {line.name: (out[line.role], line.number) for line in OUTPUTS if line.role is not None}
        self._fifo = _edges_fifo(directory / EDGES_FILE)
        self.edges_lost = 0

    def input(self, name: str) -> int:
        """Level of an input as the bench holds it."""
        return self._in[LINES[name].number]

    def set_input(self, name: str, level: bool) -> None:
        """Holds an input at a level; a change of a line with edges is also reported."""
        line = LINES[name]
        if self._in[line.number] == level:
            return
        self._in[line.number] = level
        if line.edges:
            self._report(EDGE.pack(line.number, level, monotonic_ns()))

    def _report(self, record: bytes) -> None:
        try:
            os.write(self._fifo, record)
        except BlockingIOError:
            self.edges_lost += 1

    def set_loops(self, microampere: tuple[int, ...], stamp_ns: int) -> None:
        """One sample of all loops. Copied in one piece: `pack_into` would show a reader zeros while it packs."""
        self._in[LOOPS_AT : LOOPS_AT + LOOPS.size] = LOOPS.pack(stamp_ns, *microampere)

    def output(self, name: str) -> tuple[int, int]:
        """Level of an output and the ns of its last change."""
        words, number = self._words[name]
        word, held = words[number], self._in[number]
        return (held or word) & 1, word & ~1

    def hold_output(self, name: str, hold: bool) -> None:
        """A broken driver: the terminal keeps the level it has, whatever is written; reading it back shows that."""
        level = self.output(name)[0]
        self._in[LINES[name].number] = HELD | level if hold else 0

    def held_output(self, name: str) -> bool:
        """True while the terminal is held."""
        return bool(self._in[LINES[name].number])

    def close(self) -> None:
        """Lets go of the FIFO; the loops are no longer sampled."""
        os.close(self._fifo)


def _edges_fifo(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISFIFO(path.stat().st_mode):
            path.unlink()
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o660)
    return open_fifo(path)


NAMES = {line.number: line.name for line in INPUTS}
