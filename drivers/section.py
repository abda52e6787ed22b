"""One writer, many readers, no locks: shared-memory sections that cannot be read torn.

A file on tmpfs has one writer process and holds one or more sections. A section is a publish counter and three
slots (sequence, CLOCK_MONOTONIC stamp, length, crc32, payload). The writer fills the slot that is two publishes old
and moves the counter last; a reader copies the slot that the counter names and takes it only when sequence and
crc32 agree. A reader that meets a writer lapping it tries again a few times, then keeps its last good copy and lets
it age: nobody ever waits. The counter is one aligned native word, stored whole; everything else is believed only
through sequence and crc32, so that neither a half-written slot nor a machine that reorders stores can pass.

`multiprocessing.shared_memory` is not used: a reader that exits would unlink the segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

_MAGIC = b"EMSIMG1\0"
_FILE_HEADER = struct.Struct("=8sII")  # magic, layout crc32, reserve
_SLOT = struct.Struct("=QQII")  # sequence, stamp ns, length, crc32
_STAMPED = struct.Struct("=QQI")
_LINE = 64  # bytes; counters and slots start on a cache line
_SLOTS = 3
_TRIES = 4
_NEVER = (0,)
LOOK_NS = 250_000_000
"""Between two looks for a file that is not there: many racks run without an update agent, and a look takes 60 us."""


class Snapshot(NamedTuple):
    """One consistent copy of a section."""

    sequence: int  # publishes since the file was made
    stamp_ns: int  # CLOCK_MONOTONIC of the publish
    payload: bytes


class SectionError(OSError):
    """A section file cannot be used; the message says which and what to do."""


def _aligned(size: int) -> int:
    return (size + _LINE - 1) // _LINE * _LINE


def _layout(capacities: Mapping[str, int]) -> tuple[dict[str, int], int, int]:
    offsets, end = {}, _LINE
    for name, capacity in capacities.items():
        offsets[name] = end
        end += _LINE + _SLOTS * _aligned(_SLOT.size + capacity)
    return offsets, end, zlib.crc32(repr(sorted(capacities.items())).encode())


class SectionWriter:
    """Publishes into one section. Made by `SectionFile`; use from one thread only."""

    def __init__(self, memory: mmap.mmap, offset: int, capacity: int) -> None:
        self._memory = memory
        self._counter = memoryview(memory)[offset : offset + 8].cast("Q")
        self._first = offset + _LINE
        self._stride = _aligned(_SLOT.size + capacity)
        self.capacity = capacity

    def publish(self, payload: bytes | bytearray | memoryview, stamp_ns: int = 0) -> None:
        """Makes `payload` the section's newest value, stamped `stamp_ns` (0 = now)."""
        length = len(payload)
        if length > self.capacity:
            raise ValueError(f"payload of {length} bytes does not fit the section's {self.capacity}")
        sequence = self._counter[0] + 1
        at = self._first + sequence % _SLOTS * self._stride
        stamp_ns = stamp_ns or monotonic_ns()
        crc = zlib.crc32(payload, zlib.crc32(_STAMPED.pack(sequence, stamp_ns, length)))
        memory = self._memory
        memory[at + _SLOT.size : at + _SLOT.size + length] = payload
        _SLOT.pack_into(memory, at, sequence, stamp_ns, length, crc)
        self._counter[0] = sequence

    def last(self) -> bytes | None:
        """The newest payload of this section, also one that a predecessor left; None if there is none."""
        sequence = self._counter[0]
        found = _copy(self._memory, self._first + sequence % _SLOTS * self._stride, self.capacity, sequence)
        return found.payload if found else None


def _copy(memory: mmap.mmap, at: int, capacity: int, sequence: int) -> Snapshot | None:
    found, stamp_ns, length, crc = _SLOT.unpack_from(memory, at)
    if found != sequence or length > capacity:
        return None
    payload = memory[at + _SLOT.size : at + _SLOT.size + length]
    if zlib.crc32(payload, zlib.crc32(_STAMPED.pack(sequence, stamp_ns, length))) != crc:
        return None
    return Snapshot(sequence, stamp_ns, payload)


class SectionFile:
    """The writer's side of one file: `SectionFile(path, {"bms": 512})["bms"].publish(...)`.

    The file is kept and continued when a writer comes back; only one writer can hold it.
    """

    def __init__(self, path: Path, capacities: Mapping[str, int], mode: int = 0o640) -> None:
        offsets, size, layout = _layout(capacities)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise SectionError(f"{path} already has a writer; stop the other process first") from error
        self._fd = fd
        os.ftruncate(fd, size)
        self._memory = mmap.mmap(fd, size)
        header = _FILE_HEADER.pack(_MAGIC, layout, 0)
        if self._memory[: len(header)] != header:
            self._memory[:] = bytes(size)
            self._memory[: len(header)] = header
        self._writers = {n: SectionWriter(self._memory, offsets[n], capacities[n]) for n in capacities}

    def __getitem__(self, name: str) -> SectionWriter:
        return self._writers[name]

    def close(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping holds a duplicate of the descriptor
        os.close(self._fd)


class SectionReader:
    """Reads one section of another process's file, which may appear or become readable later; until then None."""

    def __init__(self, path: Path, capacities: Mapping[str, int], name: str) -> None:
        self._path, self._name = path, name
        offsets, self._size, self._layout = _layout(capacities)
        self._offset, self._capacity = offsets[name], capacities[name]
        self._stride = _aligned(_SLOT.size + self._capacity)
        self._memory: mmap.mmap | None = None
        self._counter: Sequence[int] = _NEVER
        self._last: Snapshot | None = None
        self._look_ns = 0
        self.retries = 0

    def _attach(self) -> bool:
        now_ns = monotonic_ns()
        if now_ns < self._look_ns:
            return False
        self._look_ns = now_ns + LOOK_NS
        with contextlib.suppress(FileNotFoundError, PermissionError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self._size:
                return False
            memory = mmap.mmap(file.fileno(), self._size, prot=mmap.PROT_READ)
            if memory[: _FILE_HEADER.size] != _FILE_HEADER.pack(_MAGIC, self._layout, 0):
                return False
            self._memory = memory
            self._counter = memoryview(memory)[self._offset : self._offset + 8].cast("Q")
            return True
        return False

    @property
    def sequence(self) -> int:
        """Publishes so far, without copying anything."""
        return self.counter[0]

    @property
    def counter(self) -> Sequence[int]:
        """Its only element counts the publishes, as they happen; it stays 0 while there is no file: ask again later."""
        if self._memory is None:
            self._attach()
        return self._counter

    def read(self) -> Snapshot | None:
        """The newest value, or the last good one when the writer is lapping us; None before the first."""
        if self._memory is None and not self._attach():
            return None
        memory = self._memory
        assert memory is not None
        for _ in range(_TRIES):
            sequence = self._counter[0]
            if not sequence:
                return None
            if self._last is not None and self._last.sequence == sequence:
                return self._last
            at = self._offset + _LINE + sequence % _SLOTS * self._stride
            found = _copy(memory, at, self._capacity, sequence)
            if found is not None:
                self._last = found
                return found
            self.retries += 1
        return self._last
