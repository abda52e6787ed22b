"""What must be known after a power cut, in two slots: `<name>.a` and `<name>.b` in the state directory.

A slot is magic, sequence, length, JSON padded to a fixed size, crc32. Saves alternate between the slots and are on the
disk before `save` returns, so a cut at any byte of one leaves the other. A slot is made whole beside its place and
renamed into it; later saves overwrite it in place, which changes no size and so costs no more than its own block.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

T = TypeVar("T", bound=tuple)  # type: ignore[type-arg]

_MAGIC = b"EMSSAVE1"
_HEAD = struct.Struct("<8sQI")  # magic, sequence, length of the payload
_CRC = struct.Struct("<I")
_SLOT_BYTES = 512  # one sector; the longest payload has 270 bytes
_PAYLOAD_BYTES = _SLOT_BYTES - _HEAD.size - _CRC.size
_LARGEST = 2**63 - 1


class Saved(NamedTuple):
    """What the controller must not forget."""

    faults_latched: int  # bits of latched TRIP and LOCKOUT faults
    cycles: int  # contactor operations, lifetime
    opened_under_load: int
    closed_under_load: int
    precharges: int
    closing_level: float  # of statemachine.wear.Wear
    precharge_level: float


class Loaded(NamedTuple, Generic[T]):
    saved: T | None  # None: never written, or damaged
    damaged: bool  # there are slots, but none is valid


class _Slot(NamedTuple):
    path: Path
    raw: bytes | None  # None: no such file
    sequence: int  # 0: not valid
    saved: Any  # of the kind that its Slots keep; None: not valid


class Slots(Generic[T]):
    """Keeps one `kind`, a NamedTuple of int and float, as `name` in `directory`. Only one process may save."""

    def __init__(self, directory: Path, name: str, kind: type[T]) -> None:
        """The directory is made by the first save when it is missing."""
        self._directory, self._kind = directory, kind
        self._paths = directory / f"{name}.a", directory / f"{name}.b"
        self._next: tuple[_Slot, int] | None = None  # the slot to overwrite, and its sequence

    def load(self) -> Loaded[T]:
        """What was saved last. A slot that cannot be read counts as damaged."""
        slots = self._slots()
        saved = max(slots, key=lambda slot: slot.sequence).saved
        return Loaded(saved, saved is None and any(slot.raw is not None for slot in slots))

    def save(self, saved: T) -> None:
        """Returns when `saved` is on the disk; what was saved before is kept until then.

        Raises OSError when it cannot be written; ValueError when a value is negative, not finite or above 2**63 - 1.
        """
        _checked(saved)
        (older, sequence), self._next = self._next or self._settled(), None
        _write(older, _encoded(sequence, saved))
        self._next = _slot(self._paths[older.path == self._paths[0]], self._kind), sequence + 1

    def _slots(self) -> list[_Slot]:
        return [_slot(path, self._kind) for path in self._paths]

    def _settled(self) -> tuple[_Slot, int]:
        """The slot to be overwritten first and its sequence, once the other is on the disk for certain.

        A predecessor may have been killed, or told of a failing disk, after it wrote the newer slot and before data
        and name were on the disk: what is read back is then memory, and a cut while the other is overwritten would
        leave nothing.
        """
        made_directory(self._directory)
        older, newer = sorted(self._slots(), key=lambda slot: slot.sequence)
        if newer.raw is not None and newer.saved is not None:
            _write(newer, newer.raw)
            sync_directory(self._directory)
        return older, newer.sequence + 1


class Store(Slots[Saved]):
    """What the controller must not forget, in `saved.a` and `saved.b`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "saved", Saved)


def load(directory: Path) -> Loaded[Saved]:
    """What the controller must not forget, as it was saved last."""
    return Store(directory).load()


def made_directory(directory: Path) -> None:
    """Makes `directory` when it is missing, and is certain of it on the disk. Raises OSError."""
    if not directory.is_dir():
        made_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Puts the names in `directory` on the disk. Raises OSError."""
    with _opened(directory, os.O_RDONLY) as fd:
        os.fsync(fd)


def write_whole(path: Path, data: bytes, mode: int = 0o640) -> None:
    """A whole file: old or new after a power cut, never a part. Raises OSError."""
    made_directory(path.parent)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode) as fd:
        if os.pwrite(fd, data, 0) < len(data):
            raise OSError(0, "disk full, only a part was written", str(new))
        os.fsync(fd)
    os.replace(new, path)
    sync_directory(path.parent)


def _slot(path: Path, kind: type[Any]) -> _Slot:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return _Slot(path, None, 0, None)
    except OSError:
        return _Slot(path, b"", 0, None)
    try:
        return _Slot(path, raw, *_decoded(raw, kind))
    except (struct.error, ValueError, TypeError, KeyError):
        return _Slot(path, raw, 0, None)


def _encoded(sequence: int, saved: Any) -> bytes:
    payload = json.dumps(saved._asdict(), separators=(",", ":")).encode().ljust(_PAYLOAD_BYTES)
    body = _HEAD.pack(_MAGIC, sequence, _PAYLOAD_BYTES) + payload
    return body + _CRC.pack(zlib.crc32(body))


def _decoded(raw: bytes, kind: type[Any]) -> tuple[int, Any]:
    """Raises struct.error, ValueError, TypeError or KeyError when `raw` is no slot."""
    magic, sequence, length = _HEAD.unpack_from(raw)
    (crc,) = _CRC.unpack_from(raw, _HEAD.size + length)
    body = raw[: _HEAD.size + length]
    if magic != _MAGIC or sequence < 1 or zlib.crc32(body) != crc:
        raise ValueError("not a slot")
    found = json.loads(body[_HEAD.size :])
    return sequence, _checked(kind(**{name: found[name] for name in kind._fields}))


def _checked(saved: Any) -> Any:
    for name, kind in get_type_hints(type(saved)).items():
        value = getattr(saved, name)
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= _LARGEST:
            raise ValueError(f"{name} is {value!r}; allowed is {kind.__name__} from 0 to {_LARGEST}; nothing was saved")
    return saved


def _write(slot: _Slot, raw: bytes) -> None:
    """In place when the slot has its full size, else whole beside it and renamed."""
    whole = slot.raw is not None and len(slot.raw) == len(raw)
    path = slot.path if whole else slot.path.with_name(slot.path.name + ".new")
    with _opened(path, os.O_WRONLY if whole else os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        if os.pwrite(fd, raw, 0) < len(raw):
            raise OSError(0, "disk full, only a part was written", str(path))
        os.fdatasync(fd)
    if not whole:
        os.replace(path, slot.path)
        sync_directory(slot.path.parent)


@contextlib.contextmanager
def _opened(path: Path, flags: int, mode: int = 0o640) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)
