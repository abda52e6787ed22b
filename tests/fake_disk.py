"""A disk that remembers what was asked of it, and every image that a power cut may leave of it.

`FakeDisk(root, monkeypatch)` lets the real calls of `os` through, but for syncs, and records those below `root`. The
model of a cut:

* What was on the disk before the last fsync or fdatasync of a file is there.
* Of the calls after it, any number from the first on took effect, and the next one in part: its first bytes; its last
  bytes, the first ones still as before or zero; or its length only, all zero (sizes and pages reach a disk apart).
* Names reach the disk in the order in which they were made, renamed and removed, with no regard to the data of the
  files they name; fsync of the directory puts all of them there.

A disk made over what a cut left has to be told so, with `holding`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_SYNCS = ("fsync", "fdatasync")


class Image(NamedTuple):
    """What is found after the cut. `passed` are the marks that were set before it."""

    files: tuple[tuple[str, bytes], ...]
    passed: tuple[str, ...]

    def lay_out(self, root: Path) -> Path:
        """Writes the image into `root`, replacing what is there."""
        for old in root.iterdir() if root.exists() else ():
            old.unlink()
        root.mkdir(parents=True, exist_ok=True)
        for name, content in self.files:
            (root / name).write_bytes(content)
        return root


@dataclass(slots=True)
class _Inode:
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # offset and data; None: cut to offset


@dataclass(slots=True)
class _State:
    inodes: dict[int, _Inode] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, str, int]] = field(default_factory=list)  # link, rename or unlink of names
    marks: list[str] = field(default_factory=list)


def _applied(content: bytes, offset: int, data: bytes | None) -> bytes:
    if data is None:
        return content[:offset].ljust(offset, b"\0")
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _partly(content: bytes, offset: int, data: bytes | None, borders: Callable[[int], set[int]]) -> Iterator[bytes]:
    if data is None:
        return
    was = content[offset : offset + len(data)].ljust(len(data), b"\0")
    for cut in borders(len(data)):
        yield _applied(content, offset, data[:cut])
        yield _applied(content, offset, was[:cut] + data[cut:])
    yield _applied(content, offset, was)


def _contents(inode: _Inode, borders: Callable[[int], set[int]]) -> set[bytes]:
    content = inode.durable
    found = {content}
    for offset, data in inode.pending:
        found.update(_partly(content, offset, data, borders))
        content = _applied(content, offset, data)
        found.add(content)
    return found


def _named(names: dict[str, int], change: tuple[str, str, int]) -> dict[str, int]:
    kind, name, inode = change
    after = {n: i for n, i in names.items() if n != name and not (kind == "rename" and i == inode)}
    return after if kind == "unlink" else {**after, name: inode}


def every_byte(length: int) -> set[int]:
    """Where a write may be cut: after each byte."""
    return set(range(1, length))


def some_bytes(length: int) -> set[int]:
    """After each of the first and last bytes, at every 16th and at the borders of sectors."""
    near = {*range(1, 9), *range(length - 8, length), *range(16, length, 16), *range(512, length, 512)}
    return {cut for cut in near if 0 < cut < length}


class FakeDisk:
    """Records below `root`, which is flat: no directories in it. `fail` maps a call's name to the error it raises."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, holding: Image | None = None) -> None:
        self._root = root
        self._open: dict[int, tuple[int, int, bool]] = {}  # descriptor -> inode, position, append; -1 = directory
        self._holding = holding.files if holding else ()
        self._calls: list[tuple[Any, ...]] = []
        self._names = {name: number for number, (name, _) in enumerate(self._holding)}
        self._next = len(self._names)
        self.fail: dict[str, OSError] = {}
        self.forgets = False  # a sync that fails leaves the data readable, but never brings it to the disk
        for name in ("open", "close", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._recorded(getattr(os, name), getattr(self, f"_{name}d")))

    def mark(self, text: str) -> None:
        """Everything before this was acknowledged under the name `text`."""
        self._calls.append(("mark", text))

    def images(self, borders: Callable[[int], set[int]] = every_byte) -> Iterator[Image]:
        """Every different image that a cut may leave, at any call or within it."""
        state, seen = _State(), set()
        for number, (name, content) in enumerate(self._holding):
            state.inodes[number], state.names[name] = _Inode(content), number
        for call in (("mark", ""), *self._calls):
            _take(state, call)
            for image in _images(state, borders):
                if image not in seen:
                    seen.add(image)
                    yield image

    def _recorded(self, real: Any, record: Any) -> Any:
        name = real.__name__

        def call(*args: Any, **options: Any) -> Any:
            if name in self.fail and self._ours(args[0]):
                if self.forgets and name == "fdatasync":
                    self._calls.append(("forget", self._open[args[0]][0]))
                raise self.fail[name]
            before = self._position(args[0]) if name == "write" else 0
            result = None if name in _SYNCS and self._ours(args[0]) else real(*args, **options)
            record(result, before, *args) if name == "write" else record(result, *args)
            return result

        return call

    def _ours(self, what: Any) -> bool:
        return what in self._open if isinstance(what, int) else self._below(what) is not None

    def _below(self, path: Any) -> str | None:
        path = Path(os.fspath(path))
        return path.name if path.parent == self._root else None

    def _position(self, fd: int) -> int:
        if fd not in self._open:
            return 0
        _, position, append = self._open[fd]
        return os.fstat(fd).st_size if append else position

    def _opend(self, fd: int, path: Any, flags: int, *rest: Any) -> None:
        name = self._below(path)
        if name is None:
            if Path(os.fspath(path)) == self._root:
                self._open[fd] = (-1, 0, False)
            return
        if name not in self._names:
            self._names[name] = self._next
            self._calls.append(("names", ("link", name, self._next)))
            self._next += 1
        inode = self._names[name]
        self._open[fd] = (inode, 0, bool(flags & os.O_APPEND))
        if flags & os.O_TRUNC:
            self._calls.append(("data", inode, 0, None))

    def _closed(self, result: None, fd: int) -> None:
        self._open.pop(fd, None)

    def _writed(self, written: int, before: int, fd: int, data: bytes) -> None:
        if fd in self._open:
            inode, _, append = self._open[fd]
            self._open[fd] = (inode, before + written, append)
            self._calls.append(("data", inode, before, bytes(data[:written])))

    def _pwrited(self, written: int, fd: int, data: bytes, offset: int) -> None:
        if fd in self._open:
            self._calls.append(("data", self._open[fd][0], offset, bytes(data[:written])))

    def _ftruncated(self, result: None, fd: int, length: int) -> None:
        if fd in self._open:
            self._calls.append(("data", self._open[fd][0], length, None))

    def _fsyncd(self, result: None, fd: int) -> None:
        if fd in self._open:
            self._calls.append(("sync", self._open[fd][0]))

    _fdatasyncd = _fsyncd

    def _replaced(self, result: None, source: Any, target: Any) -> None:
        old, new = self._below(source), self._below(target)
        if old is not None and new is not None:
            inode = self._names.pop(old)
            self._names[new] = inode
            self._calls.append(("names", ("rename", new, inode)))

    def _unlinkd(self, result: None, path: Any) -> None:
        name = self._below(path)
        if name is not None:
            self._calls.append(("names", ("unlink", name, self._names.pop(name))))


def _take(state: _State, call: tuple[Any, ...]) -> None:
    kind, *rest = call
    if kind == "mark":
        state.marks += [text for text in rest if text]
    elif kind == "names":
        state.pending.append(rest[0])
        state.inodes.setdefault(rest[0][2], _Inode())
    elif kind == "data":
        state.inodes[rest[0]].pending.append((rest[1], rest[2]))
    elif rest[0] < 0:
        for change in state.pending:
            state.names = _named(state.names, change)
        state.pending.clear()
    elif kind == "forget":
        state.inodes[rest[0]].pending.clear()
    else:
        inode = state.inodes[rest[0]]
        for offset, data in inode.pending:
            inode.durable = _applied(inode.durable, offset, data)
        inode.pending.clear()


def _images(state: _State, borders: Callable[[int], set[int]]) -> Iterator[Image]:
    names = [dict(state.names)]
    for change in state.pending:
        names.append(_named(names[-1], change))
    contents = {number: _contents(inode, borders) for number, inode in state.inodes.items()}
    for there in names:
        ordered = sorted(there.items())
        for chosen in itertools.product(*(contents[number] for _, number in ordered)):
            yield Image(tuple(zip((name for name, _ in ordered), chosen, strict=True)), tuple(state.marks))
