"""`make flash DISK=/dev/sdX [SEED=folder] [INSTALLER=yes]`: the image onto a disk, read back and compared; onto its ESP
the seed, and the marker of a stick that installs itself (install.py, which uses this file).

A disk that is in use or too small is refused; one that is not removable asks for its name to be typed. An ordinary file
is a disk as well (for a virtual machine), never a removable one.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

IMAGE = Path("build/image/disk.img")
BLOCK = 4 << 20
ESP_AT = 1 << 20
SEED = "ems-seed"
SEED_MAY_HOLD = ("limits.conf", "balance.conf", "site.conf", "tls", "network")
MARKER = "EFI/ems/install"
"""On the ESP: GRUB starts the installation, and nothing else. Its text is one of INSTALLERS."""
INSTALLERS = {"yes": "onto a blank disk only", "erase": "whatever the unit's fixed disk holds is lost"}
_BLKRRPART = 0x125F
SYS, MOUNTS, SWAPS = Path("/sys/class/block"), Path("/proc/self/mounts"), Path("/proc/swaps")


class FlashError(Exception):
    """Nothing more is written; the text says why and what to do."""


class Target(NamedTuple):
    path: Path
    size: int
    removable: bool
    model: str


def target_of(path: Path) -> Target:
    """Raises FlashError for what is no disk, or is in use."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FlashError(f"DISK = {path}: {error.strerror}; there are: {', '.join(_disks()) or 'no disks'}") from error
    if stat.S_ISREG(mode):
        return Target(path, path.stat().st_size, False, "a file")
    if not stat.S_ISBLK(mode):
        raise FlashError(f"DISK = {path}: not a disk; there are: {', '.join(_disks())}")
    name = path.resolve().name
    if (SYS / name / "partition").exists():
        raise FlashError(f"DISK = {path} is a partition; name its disk, {(SYS / name).resolve().parent.name}")
    if used := sorted(_uses(name)):
        raise FlashError(f"DISK = {path} is in use: {', '.join(used)}; unmount it first")
    model = text_of(SYS / name / "device" / "model") or "no model"
    return Target(path, int(text_of(SYS / name / "size") or 0) * 512, text_of(SYS / name / "removable") == "1", model)


def _disks() -> list[str]:
    return sorted(f"/dev/{path.name}" for path in SYS.glob("*") if not (path / "partition").exists())


def text_of(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def _uses(name: str) -> Iterator[str]:
    """Mounts, swap and what is stacked on the disk or one of its partitions."""
    nodes = {name, *(path.name for path in (SYS / name).glob(f"{name}*"))}
    for table, what in ((MOUNTS, "mounted on"), (SWAPS, "swap")):
        for line in text_of(table).splitlines():
            fields = line.split()
            if fields[0].startswith("/dev/") and Path(fields[0]).resolve().name in nodes:
                yield f"{fields[0]} {what} {fields[1] if what == 'mounted on' else ''}".strip()
    for node in nodes:
        for holder in (SYS / node / "holders").glob("*"):
            yield f"{node} held by {holder.name}"


def check(image: Path, target: Target, seed: Path | None) -> int:
    """Bytes to write. Raises FlashError."""
    if not image.is_file():
        raise FlashError(f"{image} does not exist; make image builds it")
    size = image.stat().st_size
    if target.size < size:
        raise FlashError(
            f"DISK = {target.path} has {target.size / 1e9:.2f} GB; allowed is {size / 1e9:.2f} GB or more, "
            "4 GB to have room for logs"
        )
    if seed:
        check_seed(seed)
    return size


def check_seed(seed: Path) -> None:
    """Only what the appliance would take; it validates the content at its first boot. Raises FlashError."""
    if not seed.is_dir():
        raise FlashError(f"SEED = {seed}: not a folder")
    if unknown := sorted(path.name for path in seed.iterdir() if path.name not in SEED_MAY_HOLD):
        raise FlashError(f"SEED = {seed} holds {', '.join(unknown)}; allowed are {', '.join(SEED_MAY_HOLD)}")


def check_installer(value: str) -> None:
    """Raises FlashError."""
    if value not in INSTALLERS:
        allowed = ", ".join(f"{name} ({what})" for name, what in INSTALLERS.items())
        raise FlashError(f"INSTALLER = {value}: allowed are {allowed}; leave it out for the disk that the unit keeps")


def confirm(target: Target, ask: Callable[[str], str]) -> None:
    """Raises FlashError when a disk that is not removable is not confirmed by its name."""
    if target.removable:
        return
    name = target.path.name
    typed = ask(
        f"{target.path} ({target.model}, {target.size / 1e9:.1f} GB) is not removable. Type {name} to erase it: "
    )
    if typed.strip() != name:
        raise FlashError(f"typed was {typed.strip()!r}, not {name!r}: nothing was written")


def write(
    image: Path, target: Target, progress: Callable[[str, int], None], start: int = 0, end: int | None = None
) -> str:
    """Writes, reads back, compares what the image has between start and end; its SHA-256. Raises FlashError."""
    digest = hashlib.sha256()
    end = image.stat().st_size if end is None else end
    exclusive = os.O_EXCL if target.path.is_block_device() else 0
    with image.open("rb") as source, _opened(target.path, os.O_RDWR | exclusive) as disk:
        disk.seek(start)
        for data in blocks(source, start, end):
            digest.update(data)
            disk.write(data)
            progress("writing", len(data))
        disk.flush()
        os.fsync(disk.fileno())
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        disk.seek(start)
        at = start
        for data in blocks(source, start, end):
            if disk.read(len(data)) != data:
                raise FlashError(
                    f"{target.path} reads back something else at byte {at} to {at + len(data)}: a bad disk?"
                )
            at += len(data)
            progress("verifying", len(data))
        if at != end:
            raise FlashError(f"{image} ends at byte {at}; it should at {end}: make it anew")
        with contextlib.suppress(OSError):
            fcntl.ioctl(disk, _BLKRRPART)
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[BinaryIO]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        hint = "; run it as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise FlashError(f"DISK = {path}: {error.strerror}{hint}") from error
    with open(fd, "r+b", buffering=0) as disk:
        yield disk


def blocks(source: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    source.seek(start)
    return iter(lambda: source.read(min(BLOCK, end - source.tell())), b"")


def put_seed(seed: Path, target: Target) -> None:
    """Onto the ESP, and compared there. Raises FlashError."""
    esp = f"{target.path}@@{ESP_AT}"
    with tempfile.TemporaryDirectory() as name:
        _mtools("mcopy", "-s", "-o", "-Q", "-i", esp, str(seed), f"::{SEED}")
        _mtools("mcopy", "-s", "-Q", "-i", esp, f"::{SEED}", name)
        back = Path(name) / SEED
        for path in (path for path in seed.rglob("*") if path.is_file()):
            if (back / path.relative_to(seed)).read_bytes() != path.read_bytes():
                raise FlashError(f"{path} reads back something else from the ESP of {target.path}")
    with target.path.open("rb") as disk:
        os.fsync(disk.fileno())


def put_marker(value: str, target: Target) -> None:
    """The last thing that is written. Raises FlashError."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"{value}\n")
        file.flush()
        _mtools("mcopy", "-o", "-Q", "-i", f"{target.path}@@{ESP_AT}", file.name, f"::{MARKER}")
    with target.path.open("rb") as disk:
        os.fsync(disk.fileno())


def _mtools(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FlashError(f"{command[0]} is missing: apt-get install mtools") from error
    if done.returncode:
        raise FlashError(f"{' '.join(command)}: {(done.stdout + done.stderr).strip()}")


class Progress:
    """One line, renewed ten times a second at most."""

    def __init__(self, total: int) -> None:
        self._total, self._what, self._done, self._start, self._shown = total, "", 0, 0.0, 0.0

    def __call__(self, what: str, count: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._done, self._start = what, 0, now
        self._done += count
        last = self._done >= self._total
        if now - self._shown < 0.1 and not last:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-3) / 1e6
        print(f"\r{what:10} {self._done / self._total:4.0%}  {rate:6.0f} MB/s ", end="\n" if last else "", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the image to a disk, verifies it and seeds its configuration.")
    parser.add_argument("disk", type=Path)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--seed", type=Path, help=f"folder with {', '.join(SEED_MAY_HOLD)}")
    parser.add_argument("--installer", help=f"a stick that installs itself: {', '.join(INSTALLERS)}")
    args = parser.parse_args()
    try:
        if args.installer is not None:
            check_installer(args.installer)
        target = target_of(args.disk)
        size = check(args.image, target, args.seed)
        confirm(target, input)
        digest = write(args.image, target, Progress(size))
        if args.seed:
            put_seed(args.seed, target)
        if args.installer:
            put_marker(args.installer, target)
    except FlashError as error:
        print(f"flash: {error}", file=sys.stderr)
        return 1
    except (EOFError, KeyboardInterrupt):
        print(
            "\nflash: not confirmed, or interrupted: the disk cannot be used before it was flashed again",
            file=sys.stderr,
        )
        return 1
    seeded = ", and the seed" if args.seed else ""
    seeded += f", and installs itself: {INSTALLERS[args.installer]}" if args.installer else ""
    print(f"flash: {target.path} holds the image, SHA-256 {digest[:16]}{seeded}. It may be unplugged.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
