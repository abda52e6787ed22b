"""The journal: every event as a checksummed record with a number of its own, in files that survive a power cut.

A record is magic, length, flags, note, sequence, the event, crc32, all little-endian. The records are numbered without
a gap from 1 on, whatever the clock does; what could not be recorded is itself a record that tells how many. A segment
is named after its first number and has at most 1 MB; at most 16 are kept. The writer cuts off what follows the last
good record, nothing else, and says so; a reader tells what is damaged, missing or out of its bounds.

Flash wear: a sync of an appended record costs 17 kB on ext4 (measured), whatever the record's size. So a batch of
records is written at once, but synced at once only when one of them is urgent (a state, a fault or what people did),
plain ones 1 s later; and a storm of either is held to one sync a minute by a budget of 64 that refills one a minute.
The worst day is 1,505 syncs, 26 MB, and the records themselves.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from statemachine.signals import EventKind

from .image import Event, state_directory
from .store import made_directory, sync_directory

SEGMENTS, SEGMENT_BYTES = 16, 1_000_000
BUFFERED = 4096
"""Records kept in memory until they are on the disk; beyond it the oldest are lost, and counted."""
RETRY_S, PLAIN_S, SUSTAINED_S, BURST = 1.0, 1.0, 60.0, 64
RESERVED = 32  # of the burst, for what is urgent
URGENT = frozenset({EventKind.STATE, EventKind.FAULT_ON, EventKind.FAULT_ACK, EventKind.SERVICE_PRESS})
ITSELF = "journal"
_MAGIC = b"EMSJ"
_HEAD = struct.Struct("<4sHBBQ")  # magic, length of the record, flags, note, sequence
_BODY = struct.Struct("<QQQHiiB")  # the event without its text; length of the process name
_CRC = struct.Struct("<I")
_LEAST = _HEAD.size + _BODY.size + _CRC.size
_TEXT_BYTES = 400
_TRUSTED = 1
_PATTERN = "journal-*.bin"
_CLOSED = -1


class Note(IntEnum):
    """What an entry is. The number of records, events or bytes that it tells of is its event's `a`."""

    EVENT = 0
    LOST = 1  # the writer: events that were never recorded
    CUT = 2  # the writer: bytes after the last good record, cut off at a start
    DROPPED = 3  # the reader: the oldest records, deleted to keep the bounds
    DAMAGED = 4  # the reader: bytes that are no record
    MISSING = 5  # the reader: records whose numbers are jumped over


class Entry(NamedTuple):
    """One record, or what the reader has to say at this place: then `process` is "journal" and the text says it."""

    sequence: int
    process: str
    event: Event
    trusted: bool  # the clock was, when the event was recorded
    note: Note


class _Waiting(NamedTuple):
    """A record without its number."""

    body: bytes
    flags: int
    note: int
    events: int  # that are not recorded when this is lost
    urgent: bool


class _Found(NamedTuple):
    """A good record at `end` - its length, or bytes up to `end` that are none."""

    end: int
    entry: Entry | None


def journal_directory() -> Path:
    """Of the appliance: `journal` in the state directory."""
    return state_directory() / ITSELF


def read(directory: Path) -> Iterator[Entry]:
    """All entries, oldest first, and what is dropped, damaged or missing in its place. Raises OSError.

    Only records that verify and follow each other are given as events.
    """
    expected, at = 1, _EPOCH
    for path in _segments(directory):
        offset = 0
        if _first(path) > expected:
            yield _dropped(at, _first(path) - 1) if expected == 1 else _missing(expected, at, _first(path) - 1)
            expected = _first(path)
        for end, entry in _scan(path.read_bytes()):
            if entry is None or entry.sequence < expected:
                said = "are no record" if entry is None else f"are record {entry.sequence} out of order"
                text = f"{end - offset} bytes at {offset} of {path.name} {said}"
                yield _noted(expected, at, Note.DAMAGED, end - offset, text)
            else:
                if entry.sequence > expected:
                    yield _missing(expected, at, entry.sequence - 1)
                expected, at = entry.sequence + 1, entry.event
                yield entry
            offset = end


def _dropped(at: Event, last: int) -> Entry:
    text = f"records 1 to {last} were dropped to keep the journal within its bounds"
    return _noted(1, at, Note.DROPPED, last, text)


def _missing(first: int, at: Event, last: int) -> Entry:
    return _noted(first, at, Note.MISSING, last - first + 1, f"records {first} to {last} are missing")


class Journal:
    """Appends to the journal in `directory`; keeps what it cannot write for later rather than raise.

    `ok` tells whether the last write worked, `error` why not, `lost` the events that were never recorded. `known` has
    (sequence, CLOCK_MONOTONIC ns) of the last events of each process that a predecessor recorded, in their order.
    """

    def __init__(self, directory: Path, segments: int = SEGMENTS, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory, self._segments, self._segment_bytes = directory, segments, segment_bytes
        self._fd = _CLOSED
        self._path: Path | None = None
        self._found: bool  # the end of the segment was found, not written, by this process
        self._size = self._synced_size = 0
        self._sequence = self._synced_sequence = 0
        self._waiting: deque[_Waiting] = deque()
        self._unsynced: deque[_Waiting] = deque()
        self._dropped = 0
        self._tokens, self._refilled_s = float(BURST), 0.0
        self._since_s: float  # when the oldest of what is not synced was written
        self._retry_s: float
        self.known: dict[str, list[tuple[int, int]]] = {}
        self.ok, self.error, self.lost = True, "", 0
        with contextlib.suppress(OSError):
            self._survey()

    @property
    def acknowledged(self) -> int:
        """The number of the last record that was found at the start or is on the disk for certain."""
        return self._synced_sequence

    def add(self, process: str, event: Event, trusted: bool) -> None:
        """The next record; written by the next `commit`."""
        self._keep(_waiting(process, event, trusted, Note.EVENT))

    def add_lost(self, process: str, event: Event, count: int, trusted: bool) -> None:
        """A record that tells of `count` events of `process` that were never seen; `event` has when and the text."""
        self.lost += count
        self._keep(_waiting(process, event._replace(a=count), trusted, Note.LOST))

    def commit(self, now_s: float) -> None:
        """Writes what was added, and syncs when that is due. `now_s` is any clock that never goes back."""
        if not self.ok and now_s < self._retry_s:
            return
        try:
            if self._waiting:
                self._since_s = self._since_s if self._unsynced else now_s
                self._write()
            if self._due(now_s):
                self._tokens = max(0.0, self._tokens - 1.0)
                self._sync()
            self.ok = True
        except OSError as error:
            self._back_out(f"{error.filename or self._path or self._directory}: {error.strerror}")
            self._retry_s = now_s + RETRY_S

    def close(self) -> None:
        """Writes and syncs what was added, unless the disk fails."""
        try:
            if self._waiting:
                self._write()
            if self._unsynced:
                self._sync()
        except OSError as error:
            self._back_out(str(error.strerror))
        self._shut()

    def _shut(self) -> None:
        if self._fd != _CLOSED:
            os.close(self._fd)
        self._fd = _CLOSED

    def _keep(self, record: _Waiting) -> None:
        self._waiting.append(record)
        while len(self._waiting) + len(self._unsynced) > BUFFERED and self._waiting:
            oldest = self._waiting.popleft()
            self._dropped += oldest.events
            self.lost += oldest.events if oldest.note == Note.EVENT else 0

    def _due(self, now_s: float) -> bool:
        self._tokens = min(BURST, self._tokens + (now_s - self._refilled_s) / SUSTAINED_S)
        self._refilled_s = now_s
        if not self._unsynced:
            return False
        urgent, waited_s = any(record.urgent for record in self._unsynced), now_s - self._since_s
        if waited_s >= SUSTAINED_S or 2 * len(self._unsynced) >= BUFFERED:
            return True
        return self._tokens >= 1.0 if urgent else waited_s >= PLAIN_S and self._tokens >= 1.0 + RESERVED

    def _write(self) -> None:
        if self._fd == _CLOSED:
            self._open()
        if self._dropped:
            self._waiting.appendleft(_own(Note.LOST, self._dropped, f"{self._dropped} events were not recorded"))
            self._dropped = 0
        while self._waiting:
            chunk, taken = bytearray(), 0
            for record in self._waiting:
                packed = _packed(self._sequence + taken + 1, record)
                if (self._size or chunk) and self._size + len(chunk) + len(packed) > self._segment_bytes:
                    break
                chunk += packed
                taken += 1
            if taken:
                self._append(bytes(chunk), taken)
            else:
                self._rotate()

    def _append(self, chunk: bytes, records: int) -> None:
        if os.write(self._fd, chunk) < len(chunk):
            raise OSError(0, "disk full, only a part was written", str(self._path))
        self._size += len(chunk)
        self._sequence += records
        self._unsynced.extend(self._waiting.popleft() for _ in range(records))

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        self._synced_size, self._synced_sequence = self._size, self._sequence
        self._unsynced.clear()

    def _rotate(self) -> None:
        self._sync()
        self._begin(self._directory / f"journal-{self._sequence + 1:020d}.bin")
        for path in _segments(self._directory)[: -self._segments]:
            path.unlink()

    def _begin(self, path: Path) -> None:
        """Makes `path`, which is not there or empty, the segment that is written."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            sync_directory(self._directory)
        except OSError:
            os.close(fd)
            raise
        self._shut()
        self._fd, self._path, self._size, self._synced_size = fd, path, 0, 0

    def _back_out(self, error: str) -> None:
        """What is not on the disk for certain is written again: a failed sync may have lost it without a trace."""
        self.ok, self.error = False, error
        self._shut()
        self._waiting.extendleft(reversed(self._unsynced))
        self._unsynced.clear()
        self._size, self._sequence = self._synced_size, self._synced_sequence

    def _open(self) -> None:
        made_directory(self._directory)
        if self._path is None or not self._path.exists() or self._path.stat().st_size < self._size:
            self._survey()
        if self._path is None:
            self._begin(self._directory / f"journal-{self._sequence + 1:020d}.bin")
        else:
            self._resume(self._path)
        self._found = False

    def _resume(self, path: Path) -> None:
        """Goes on after the last good record, with nothing behind it."""
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        surplus = os.fstat(self._fd).st_size - self._size
        os.ftruncate(self._fd, self._size)
        if surplus and self._found:
            text = f"{surplus} bytes at the end of {path.name} were no whole record and were cut off"
            self._waiting.appendleft(_own(Note.CUT, surplus, text))

    def _survey(self) -> None:
        """Finds the last segment, its good end and number, and what was recorded last; nothing when one is not read."""
        last, size, sequence = None, 0, 0
        known: dict[str, list[tuple[int, int]]] = {}
        for path in _segments(self._directory)[-2:]:
            last, size, sequence = path, 0, max(sequence, _first(path) - 1)
            for end, entry in _scan(path.read_bytes()):
                if entry is not None and entry.sequence > sequence:
                    size, sequence = end, entry.sequence
                    if entry.note == Note.EVENT:
                        event = entry.event
                        known.setdefault(entry.process, []).append((event.sequence, event.monotonic_ns))
        self._path, self._size, self._found, self.known = last, size, True, known
        self._sequence = max(self._sequence, sequence)
        self._synced_size, self._synced_sequence = self._size, self._sequence


_EPOCH = Event(0, 0, 0, 0, 0, 0, "")


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob(_PATTERN) if path.stem[8:].isdecimal())


def _first(path: Path) -> int:
    return int(path.stem[8:])


def _noted(sequence: int, at: Event, note: Note, count: int, text: str) -> Entry:
    return Entry(sequence, ITSELF, at._replace(sequence=0, kind=0, a=count, b=0, text=text), False, note)


def _own(note: Note, count: int, text: str) -> _Waiting:
    return _waiting(ITSELF, _EPOCH._replace(a=count, text=text), False, note)


def _waiting(process: str, event: Event, trusted: bool, note: Note) -> _Waiting:
    name, text = process.encode(), event.text.encode()[:_TEXT_BYTES]
    sequence, mono, wall, kind, a, b, _ = event
    body = _BODY.pack(sequence, mono, wall, kind, min(a, 2**31 - 1), b, len(name)) + name + text
    return _Waiting(body, _TRUSTED * trusted, note, a if note == Note.LOST else note == Note.EVENT, kind in URGENT)


def _packed(sequence: int, record: _Waiting) -> bytes:
    length = _HEAD.size + len(record.body) + _CRC.size
    raw = _HEAD.pack(_MAGIC, length, record.flags, record.note, sequence) + record.body
    return raw + _CRC.pack(zlib.crc32(raw))


def _scan(data: bytes) -> Iterator[_Found]:
    """Good records, and the stretches between them that are none."""
    offset = good = 0
    while offset < len(data):
        found = _record(data, offset)
        if found is None:
            at = data.find(_MAGIC, offset + 1)
            offset = at if at != -1 else len(data)
            continue
        if offset > good:
            yield _Found(offset, None)
        yield found
        offset = good = found.end
    if offset > good:
        yield _Found(offset, None)


def _record(data: bytes, offset: int) -> _Found | None:
    """The record at `offset`."""
    if len(data) - offset < _LEAST:
        return None
    magic, length, flags, note, sequence = _HEAD.unpack_from(data, offset)
    end = offset + length - _CRC.size
    if magic != _MAGIC or length < _LEAST or offset + length > len(data):
        return None
    if (zlib.crc32(data[offset:end]),) != _CRC.unpack_from(data, end):
        return None
    *event, size = _BODY.unpack_from(data, offset + _HEAD.size)
    at = offset + _HEAD.size + _BODY.size
    process, text = data[at : at + size].decode(errors="replace"), data[at + size : end].decode(errors="replace")
    entry = Entry(sequence, process, Event._make((*event, text)), bool(flags & _TRUSTED), Note(note))
    return _Found(offset + length, entry)
