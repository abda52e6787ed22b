"""Where a bundle comes from: a folder with exactly one, or the site server. What comes is copied, then judged.

A stick can show other bytes at the second reading; so whatever is checked and installed is the unit's own copy.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from .bundle import MOST_BYTES, Beat, Refused
from .store import made_directory
from .update_codes import UpdateResult

SUFFIX = ".raucb"
ANSWER_S, PULL_S = 5.0, 3600.0
"""The server says something within the first, all of it within the second."""
_CHUNK = 1 << 20


class Found(NamedTuple):
    """A bundle in the folder; equal while nobody touches it.

    Without its inode: FAT has none, the kernel makes a number up and at times another one.
    """

    path: Path
    device: int
    size: int
    changed_ns: int


def find(folder: Path) -> Found | None:
    """The only bundle in the folder, None without one. Raises Refused (SEVERAL_BUNDLES)."""
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(SUFFIX) and not n.startswith("."))
    except OSError:
        return None
    if len(names) > 1:
        raise Refused(UpdateResult.SEVERAL_BUNDLES, ", ".join(names))
    try:
        seen = (folder / names[0]).lstat() if names else None
    except OSError:
        return None
    return Found(folder / names[0], seen.st_dev, seen.st_size, seen.st_mtime_ns) if seen else None


def copy(found: Found, to: Path, beat: Beat) -> None:
    """Raises Refused (TOO_LARGE, NOT_READABLE, NO_SPACE)."""
    try:
        fd = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            keep(_read(file.read), seen.st_size, to, beat)
    except OSError as error:
        raise Refused(UpdateResult.NOT_READABLE, f"{found.path}: {error.strerror}", error.errno or 0) from error


def pull(url: str, hosts: tuple[str, ...], roots: Path, to: Path, beat: Beat) -> None:
    """GET over TLS, no redirects, no proxy. Raises Refused (URL_REFUSED, TLS_REFUSED, SERVER_SILENT, ...)."""
    host, port, path = allowed(url, hosts)
    connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=_context(roots))
    try:
        connection.request("GET", path, headers={"Accept": "application/octet-stream", "Connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Refused(UpdateResult.HTTP_REFUSED, f"{url}: {answer.status} {answer.reason}", answer.status)
        if answer.length is None:
            raise Refused(UpdateResult.HTTP_REFUSED, f"{url}: no Content-Length", answer.status)
        end_s = time.monotonic() + PULL_S
        keep(_read(answer.read, end_s), answer.length, to, beat)
    except ssl.SSLError as error:
        raise Refused(UpdateResult.TLS_REFUSED, f"{host}:{port}: {error.reason or error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Refused(UpdateResult.SERVER_SILENT, f"{host}:{port}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def allowed(url: str, hosts: tuple[str, ...]) -> tuple[str, int, str]:
    """Host, port and path of an https URL whose host is in the list. Raises Refused (URL_REFUSED)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError as error:
        raise Refused(UpdateResult.URL_REFUSED, f"update_url = {url}: {error}") from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme != "https" or parts.username is not None or not host or not plain:
        raise Refused(UpdateResult.URL_REFUSED, f"update_url = {url}: allowed is https://host/path")
    if host not in {name.lower() for name in hosts}:
        raise Refused(UpdateResult.URL_REFUSED, f"update_url = {url}: allowed hosts are {', '.join(hosts) or 'none'}")
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _context(roots: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(roots)
    except OSError as error:
        raise Refused(UpdateResult.TLS_REFUSED, f"{roots}: {error.strerror or error}") from error
    return context


def _read(read: Callable[[int], bytes], end_s: float = float("inf")) -> Iterator[bytes]:
    while data := read(_CHUNK):
        if time.monotonic() > end_s:
            raise TimeoutError(f"not all of it within {PULL_S:g} s")
        yield data


def keep(chunks: Iterator[bytes], size: int, to: Path, beat: Beat) -> None:
    """Writes exactly `size` bytes to `to`, readable by us alone, on the disk when it returns.

    Raises Refused (TOO_LARGE, NO_SPACE); OSError when the source fails or ends early.
    """
    if size > MOST_BYTES:
        raise Refused(UpdateResult.TOO_LARGE, f"{size} bytes, allowed {MOST_BYTES}")
    with _disk(to):
        made_directory(to.parent)
        to.unlink(missing_ok=True)
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    done = 0
    try:
        for data in chunks:
            done += len(data)
            if done > size:
                raise OSError(errno.EFBIG, f"more than the {size} bytes that were announced")
            with _disk(to):
                _write(fd, data)
            beat(done, size)
        if done < size:
            raise OSError(errno.ENODATA, f"{done} of {size} bytes came")
        with _disk(to):
            os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _disk(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(UpdateResult.NO_SPACE, f"{to}: {error.strerror}", error.errno or 0) from error


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
