"""Text files of bounded size: battery.log and cycle.csv. What a bad disk does not take is counted, not raised."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE_BYTES = 10_000_000


class BoundedFile:
    """Appends lines, one write each, to at most `files` files of `max_bytes`; loses lines rather than raise."""

    def __init__(self, path: Path, files: int, max_bytes: int = FILE_BYTES, header: str = "") -> None:
        self.path, self._files, self._max, self._header = path, files, max_bytes, header.encode()
        self._fd = -1
        self._size = 0
        self.ok, self.lost, self.error = True, 0, ""

    def write(self, line: str, lost: int = 1) -> bool:
        """Whether `line` (with its newline) is on its way to the disk; else `error` tells, and `lost` lines are."""
        try:
            self._append(line.encode())
        except OSError as error:
            self.close()
            self.ok, self.error = False, f"{self.path}: {error.strerror}"
            self.lost += lost
            return False
        self.ok = True
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(data) > self._max:
            self._rotate()
        if not self._size:
            data = self._header + data
        written = os.write(self._fd, data)
        if written < len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(0, "disk full, only a part was written")
        self._size += written

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for n in range(self._files - 1, 0, -1):
            older = self.path if n == 1 else self._numbered(n - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, self._numbered(n))
        if self._files == 1:
            self.path.unlink()
        self._open()

    def _numbered(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{n}")
