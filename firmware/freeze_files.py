"""Freeze-frames as Modbus files, read with FC20 (Read File Record, reference type 6); one record is one register.

File 1 is the directory: 16 entries (`freeze_frame.ENTRY`), newest first, all zero where there is none. The frames
(`freeze_frame.FRAME`) of freeze-frame N are in the files that its entry names: ten file numbers are set aside for
each, 10·N to 10·N+9 (from 10 again after number 6,500), because a file has at most 10,000 registers. Only whole frames
are in a file: frame k begins in file `first_file + k // frames_per_file` at record
`k % frames_per_file * registers`, and fits into one answer. A freeze-frame never changes; when it is dropped its file
numbers are not used again for long.

Files 2 to 9 are a live picture, the last scans without a trip, oldest first, laid out in the same way. Reading file 2
from record 0 takes a new picture, at most one a second; the other files and records are of the same picture.

What is not there answers exception 02, a disk error or a damaged file 04.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from .freeze_frame import (
    DIRECTORY,
    ENTRY,
    FILES_EACH,
    FRAME,
    FRAMES_PER_FILE,
    KEPT,
    Damaged,
    Entry,
    Stored,
    first_file,
    kept,
    load,
    ring_reader,
)

DIRECTORY_FILE = 1
LIVE_FILES = range(2, 10)
_PICTURE_NS = 1_000_000_000
_SETTLED_NS = 50_000_000
"""A directory that changed just now may change again without a new time stamp."""


class FreezeFiles:
    """What `freeze-frames/` in the state directory holds, read again only when it changed, and the scans of now."""

    def __init__(self, state_dir: Path, run: Path) -> None:
        self._directory, self._run = state_dir / DIRECTORY, run
        self._picture, self._pictured_ns = b"", -_PICTURE_NS
        self._loaded: dict[int, tuple[tuple[int, int], Stored]] = {}
        self._paths: dict[int, Path] = {}
        self._seen_ns = -1

    @property
    def count(self) -> int:
        """How many are kept; 0 while the disk cannot be read."""
        with contextlib.suppress(OSError):
            return len(self._numbers())
        return 0

    def entries(self) -> list[Entry]:
        """Newest first; damaged files are left out. Raises OSError."""
        found: list[Entry] = []
        for number in reversed(self._numbers()):
            with contextlib.suppress(Damaged, FileNotFoundError):
                found.append(self._stored(number).entry)
        return found

    def read(self, file: int, record: int, count: int) -> bytes:
        """`count` registers of a Modbus file. LookupError when they are not there, OSError when the disk fails."""
        try:
            data = self._file(file, record)
        except FileNotFoundError as error:
            raise LookupError(f"file {file} was dropped just now") from error
        if 2 * (record + count) > len(data):
            raise LookupError(f"file {file} has {len(data) // 2} registers")
        return data[2 * record : 2 * (record + count)]

    def _file(self, file: int, record: int) -> bytes:
        if file == DIRECTORY_FILE:
            return self._listing()
        return self._live(file, record) if file in LIVE_FILES else self._frames(file)

    def _live(self, file: int, record: int) -> bytes:
        size = FRAMES_PER_FILE * FRAME.size
        now_ns = time.monotonic_ns()
        if file == LIVE_FILES[0] and record == 0 and now_ns - self._pictured_ns >= _PICTURE_NS:
            scans = b"".join(payload for _, payload in ring_reader(self._run).new())
            self._picture, self._pictured_ns = scans[-len(LIVE_FILES) * size :], now_ns
        part = file - LIVE_FILES[0]
        return self._picture[part * size : (part + 1) * size]

    def _listing(self) -> bytes:
        return b"".join(ENTRY.pack(entry) for entry in self.entries()[:KEPT]).ljust(KEPT * ENTRY.size, b"\0")

    def _frames(self, file: int) -> bytes:
        number = next((n for n in self._numbers() if 0 <= file - first_file(n) < FILES_EACH), None)
        if number is None:
            raise LookupError(f"no file {file}")
        entry, frames = self._stored(number)
        size = 2 * entry.registers * entry.frames_per_file
        part = file - entry.first_file
        return frames[part * size : (part + 1) * size]

    def _numbers(self) -> list[int]:
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns != self._seen_ns:
            self._paths = kept(self._directory)
            self._loaded = {number: held for number, held in self._loaded.items() if number in self._paths}
            self._seen_ns = changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else -1
        return list(self._paths)

    def _stored(self, number: int) -> Stored:
        path = self._paths[number]
        found = os.stat(path)
        key = found.st_mtime_ns, found.st_size
        held = self._loaded.get(number)
        if held is None or held[0] != key:
            held = self._loaded[number] = key, load(path)
        return held[1]
