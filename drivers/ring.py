"""One writer, many readers, no locks: the last records of a stream in one shared-memory file.

A ring is a head counter and a fixed number of slots (sequence, crc32, payload of a fixed size). The writer fills the
slot of the oldest record and moves the head last; a reader takes a record only when sequence and crc32 agree. Nobody
ever waits: a reader that falls behind by more than the slots loses the oldest, and knows how many. As in
`drivers.section`, the head is one aligned native word, stored whole, and everything else is believed only through the
crc32, so that neither a half-written slot nor a machine that reorders stores can pass.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from .section import SectionError

_HEADER = struct.Struct("=8sII")  # magic, slots, payload size
_MAGIC = b"EMSRING1"
_SLOT = struct.Struct("=QII")  # sequence, crc32, reserve
_SEQUENCE = struct.Struct("=Q")
_HEAD = 64  # bytes; head and slots start on cache lines of their own
_FIRST = 128


def _stride(size: int) -> int:
    return (_SLOT.size + size + 63) // 64 * 64


def _crc(sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_SEQUENCE.pack(sequence)))


class RingWriter:
    """Appends records of `size` bytes to the ring at `path`; use from one thread only.

    The file is kept and continued when a writer comes back. Raises SectionError when another process writes to it.
    """

    def __init__(self, path: Path, slots: int, size: int, mode: int = 0o640) -> None:
        self._slots, self._size, self._stride = slots, size, _stride(size)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise SectionError(f"{path} already has a writer; stop the other process first") from error
        self._fd = fd
        length = _FIRST + slots * self._stride
        os.ftruncate(fd, length)
        self._memory = mmap.mmap(fd, length)
        header = _HEADER.pack(_MAGIC, slots, size)
        if self._memory[: _HEADER.size] != header:
            self._memory[:] = bytes(length)
            self._memory[: _HEADER.size] = header
        self._head = memoryview(self._memory)[_HEAD : _HEAD + 8].cast("Q")

    def append(self, payload: bytes) -> None:
        """Makes `payload` the newest record. Raises ValueError when it has not exactly the ring's size."""
        if len(payload) != self._size:
            raise ValueError(f"a record of {len(payload)} bytes in a ring of {self._size}-byte records")
        sequence = self._head[0] + 1
        at = _FIRST + sequence % self._slots * self._stride
        memory = self._memory
        memory[at + _SLOT.size : at + _SLOT.size + self._size] = payload
        memory[at : at + _SLOT.size] = _SLOT.pack(sequence, _crc(sequence, payload), 0)
        self._head[0] = sequence

    def close(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping holds a duplicate of the descriptor
        os.close(self._fd)


class RingReader:
    """Follows another process's ring. The file may appear later: until then there is nothing new.

    `lost` counts the records that were overwritten or damaged before they could be read; what was overwritten before
    the first look is not counted.
    """

    def __init__(self, path: Path, slots: int, size: int) -> None:
        self._path, self._slots, self._size, self._stride = path, slots, size, _stride(size)
        self._memory: mmap.mmap | None = None
        self._head = memoryview(bytes(8)).cast("Q")
        self._next = 0  # sequence of the record to read next; 0 = nothing was looked at yet
        self._doubtful = 0
        self.lost = 0

    def new(self) -> Iterator[tuple[int, bytes]]:
        """(sequence, payload) of every record since the last call, oldest first."""
        if self._memory is None and not self._attach():
            return
        head = self._head[0]
        if not self._next or head + 1 < self._next:
            self._next = max(1, head + 2 - self._slots)
        while self._next <= head:
            sequence = self._next
            payload = self._copy(sequence)
            if payload is None and not self._passed(sequence):
                return
            if payload is not None:
                self._next = sequence + 1
                yield sequence, payload

    def _copy(self, sequence: int) -> bytes | None:
        memory = self._memory
        assert memory is not None
        at = _FIRST + sequence % self._slots * self._stride
        found, crc, _ = _SLOT.unpack_from(memory, at)
        payload = memory[at + _SLOT.size : at + _SLOT.size + self._size]
        return payload if found == sequence and crc == _crc(sequence, payload) else None

    def _passed(self, sequence: int) -> bool:
        """Leaves a record behind that cannot be read: at once when it was overwritten, else at the second call."""
        oldest = self._head[0] + 2 - self._slots
        if sequence < oldest:
            self._next = oldest
        elif sequence == self._doubtful:
            self._next = sequence + 1
        else:
            self._doubtful = sequence
            return False
        self.lost += self._next - sequence
        return True

    def _attach(self) -> bool:
        length = _FIRST + self._slots * self._stride
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            if os.fstat(file.fileno()).st_size != length:
                return False
            memory = mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ)
            if memory[: _HEADER.size] != _HEADER.pack(_MAGIC, self._slots, self._size):
                return False
            self._memory = memory
            self._head = memoryview(memory)[_HEAD : _HEAD + 8].cast("Q")
            return True
        return False
