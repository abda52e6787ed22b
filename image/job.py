"""What is built for whom, how its commands are run, and what the machine that builds must have."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[1]
HERE = REPO / "image"
MIB = 1 << 20
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mksquashfs": "squashfs-tools", "veritysetup": "cryptsetup-bin", "rauc": "rauc",
    "grub-mkimage": "grub-common", "grub-editenv": "grub-common", "mkfs.vfat": "dosfstools", "mcopy": "mtools",
    "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "sfdisk": "fdisk", "openssl": "openssl", "git": "git",
    "unshare": "util-linux", "dpkg-query": "dpkg", "tar": "tar", "zstd": "zstd",
}  # fmt: skip
"""Program -> Debian package."""
EMULATED_TOOLS = {"arch-test": "arch-test", "nft": "nftables"}
"""For an architecture whose programs this machine runs in an emulator only; mmdebstrap asks arch-test."""
GRUB, BINFMT = Path("/usr/lib/grub"), Path("/proc/sys/fs/binfmt_misc")


class BuildError(Exception):
    """The image cannot be built; the text says why and what to do."""


class Arch(NamedTuple):
    debian: str
    machine: str  # the kernel's name for it, also in a wheel's platform tag
    grub: str
    efi: str
    serial: str  # the console besides tty0

    @property
    def foreign(self) -> bool:
        """This machine runs its programs in an emulator only."""
        return self.machine != platform.machine()


AMD64 = Arch("amd64", "x86_64", "x86_64-efi", "BOOTX64.EFI", "ttyS0")
ARM64 = Arch("arm64", "aarch64", "arm64-efi", "BOOTAA64.EFI", "ttyAMA0")
ARCHES = {arch.debian: arch for arch in (AMD64, ARM64)}


def arch_of(name: str) -> Arch:
    """Raises BuildError."""
    if name not in ARCHES:
        allowed = ", ".join(ARCHES)
        raise BuildError(f"ARCH = {name}: no recipe; allowed are {allowed}: name one, or none for amd64")
    return ARCHES[name]


class Paths(NamedTuple):
    """Where things are made. `work` is emptied by stage 2, `cache` is kept."""

    top: Path
    cache: Path
    work: Path

    @property
    def tree(self) -> Path:
        return self.work / "tree"


class Job(NamedTuple):
    """What is built for whom."""

    arch: Arch
    board: str
    version: str
    epoch: int
    paths: Paths

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "SOURCE_DATE_EPOCH": str(self.epoch), "E2FSPROGS_FAKE_TIME": str(self.epoch),
            "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0",
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        }  # fmt: skip

    @property
    def compatible(self) -> str:
        return f"ems-edge-{self.arch.debian}-{self.board}"


def run(job: Job, *command: str | Path, stdin: str | None = None) -> str:
    """Its output. Raises BuildError with the end of what it said."""
    done = subprocess.run(
        [str(part) for part in command], env=job.environ, input=stdin, capture_output=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL if stdin is None else None,
    )  # fmt: skip
    if done.returncode:
        tail = "\n  ".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise BuildError(f"{' '.join(map(str, command))[:300]}: exit code {done.returncode}\n  {tail}")
    return done.stdout


@contextlib.contextmanager
def step(name: str, *made: Path) -> Iterator[None]:
    """Prints the name, then seconds and the sizes of what was made."""
    print(f"  {name:38}", end="", flush=True)
    start = time.monotonic()
    yield
    sizes = ", ".join(f"{path.name} {_size(path)}" for path in made if path.exists())
    print(f"{time.monotonic() - start:7.1f} s  {sizes}", flush=True)


def _size(path: Path) -> str:
    stat = path.stat()
    held = stat.st_blocks * 512
    return f"{stat.st_size / MIB:.1f} MiB" + (f" ({held / MIB:.0f} on disk)" if held < stat.st_size * 0.9 else "")


def missing_tools(arch: Arch, environ_path: str) -> list[tuple[str, str]]:
    """(program or file, Debian packages) that this machine lacks."""
    path = f"{environ_path}:/usr/sbin:/sbin"
    tools = TOOLS | (EMULATED_TOOLS if arch.foreign else {})
    found = [(name, package) for name, package in tools.items() if not shutil.which(name, path=path)]
    if not (GRUB / arch.grub).is_dir():
        found.append((str(GRUB / arch.grub), f"grub-efi-{arch.debian}-bin:{arch.debian}"))
    if arch.foreign and not emulated(arch):
        found.append((f"{_handler(arch)} with flag F", "binfmt-support qemu-user-static"))
    return found


def _handler(arch: Arch) -> Path:
    return BINFMT / f"qemu-{arch.machine}"


def emulated(arch: Arch) -> bool:
    """The kernel starts an emulator for its programs, in a tree without that emulator as well (flag F)."""
    with contextlib.suppress(FileNotFoundError):
        told = _handler(arch).read_text()
        return told.startswith("enabled") and re.search(r"^flags: \w*F", told, re.M) is not None
    return False


def require_tools(arch: Arch) -> None:
    """Raises BuildError naming all that is missing and how to get it."""
    if not (lacking := missing_tools(arch, os.environ.get("PATH", ""))):
        return
    names, packages = ", ".join(name for name, _ in lacking), " ".join(sorted({package for _, package in lacking}))
    steps = [f"apt-get install --no-install-recommends {packages}"]
    if arch.foreign:
        steps.insert(0, f"dpkg --add-architecture {arch.debian} && apt-get update")
        if not emulated(arch):
            steps.append(f"update-binfmts --enable {_handler(arch).name}")
            if not BINFMT.is_mount():
                steps.insert(0, f"mount -t binfmt_misc binfmt_misc {BINFMT}")
    raise BuildError(f"missing on this machine: {names}\n  " + "\n  ".join(steps))
