"""A stick that installs itself: what it takes and refuses, and what a power cut leaves. No adapter is plugged in."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .disks import partitions
from .plant import REPO, Rack, Row, await_modbus, awaited, made, rack, seed
from .vm import ESP_AT_MIB, MIB, Vm, VmError, call, machine_of, slowness, tried

DISK_MIB, CUT_AT = 4096, 50
"""Size of the fixed disks; the share of the system that is written when the plug is pulled."""
MARKER, LEFT = "EFI/ems/install", {"EFI/ems/install.done", "EFI/ems/install.log"}
"""On a stick before, and in its place afterwards."""
SECOND = ("-global", "virtio-blk-pci.bootindex=1")
"""The fixed disk, for the firmware: it has its own shell before what it did not know at its first start."""
REFUSED = "FAILED: nothing more is written"


def flashed(disk: Path, stick: Path, site: Path, installer: str) -> Path:
    """By `make flash`'s program; the name of an ordinary file has to be typed."""
    stick.unlink(missing_ok=True)
    with stick.open("wb") as file:
        file.truncate(disk.stat().st_size + 64 * MIB)
    command = (REPO / "image/flash.py", stick, f"--image={disk}", f"--seed={site}", f"--installer={installer}")
    done = subprocess.run(
        [sys.executable, *map(str, command)], input=f"{stick.name}\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise VmError(f"flash: {done.stderr.strip()}")
    return stick


def plugged(stick: Path, index: int = 0) -> tuple[str, ...]:
    """QEMU's options: in from the start, and the firmware's first choice."""
    drive = f"if=none,id=installer,format=raw,file={stick}"
    return "-drive", drive, "-device", f"usb-storage,bus=sticks.0,drive=installer,removable=on,bootindex={index}"


def esp(disk: Path, work: Path) -> dict[str, bytes]:
    """Every file of its ESP."""
    call("rm", "-rf", work)
    work.mkdir()
    call("mcopy", "-s", "-Q", "-i", f"{disk}@@{ESP_AT_MIB}M", "::", work)
    return {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}


class Bench(NamedTuple):
    """One machine with one fixed disk, and its sticks."""

    vm: Vm
    disk: Path  # what `make image` has built
    rack: Rack
    work: Path

    def stick(self, installer: str, heartbeat_timeout: int) -> Path:
        """The number is the site's, to know its seed again."""
        site = seed(self.work / "seed", self.rack, heartbeat_timeout=heartbeat_timeout)
        return flashed(self.disk, self.work / f"{installer}.stick", site, installer)

    def fixed(self) -> Path:
        """The fixed disk as it is now."""
        raw = self.work / "fixed.img"
        call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.vm.overlay, raw)
        return raw

    def awaited(self, condition: Callable[[str], object], timeout_s: float) -> None:
        """Until what the console says from here on is so."""
        since = len(self.vm.console())
        awaited(lambda: condition(self.vm.console()[since:]), timeout_s * slowness(), lambda: self.vm.console()[-800:])

    def refused(self, stick: Path, *more: str) -> str:
        """The log on the stick, when it has told that nothing more is written."""
        self.vm.start(*plugged(stick), *more)
        self.awaited(lambda said: REFUSED in said, 60.0)
        self.vm.cut_power()
        return esp(stick, self.work / "esp")["EFI/ems/install.log"].decode()

    def installed(self, stick: Path) -> str:
        """What is not on the fixed disk as `make flash` writes it, and not on the stick as it is to be left."""
        fixed, size, behind = self.fixed(), self.disk.stat().st_size, partitions(self.disk)["boot-a"]
        differs = [
            f"bytes {start} to {end}"
            for start, end in ((0, ESP_AT_MIB * MIB), (behind, size))
            if tried("cmp", "-s", f"--ignore-initial={start}", f"--bytes={end - start}", fixed, self.disk).rc
        ]
        ours, theirs = esp(stick, self.work / "esp"), esp(fixed, self.work / "esp")
        differs += sorted({MARKER} & ours.keys() | LEFT - ours.keys())
        differs += sorted(name for name in (ours.keys() | theirs.keys()) - LEFT if ours.get(name) != theirs.get(name))
        differs += sorted(LEFT & theirs.keys())
        return ", ".join(differs) or "nothing"

    def started(self, heartbeat_timeout: int, *more: str) -> tuple[str, str]:
        """The fixed disk starts, and it has taken this seed; where root, data and ESP are. Raises VmError."""
        self.vm.start(*more)
        took_s = await_modbus(self.vm)
        self.vm.await_agent()
        line = self.vm.out(f"grep -x 'heartbeat_timeout = {heartbeat_timeout}' /etc/ems/site.conf")
        places = self.vm.out("ls /sys/block/dm-0/slaves; findmnt -no SOURCE /data; findmnt -no SOURCE /efi").split()
        self.vm.cut_power()
        return f"Modbus answers after {took_s:.0f} s, {line}", " ".join(places)


def two_disks(b: Bench) -> Row:
    """Both are empty."""
    other = b.work / "other.img"
    with other.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    drive = f"if=none,id=d1,format=raw,file={other}"
    told = b.refused(b.stick("yes", 11), "-drive", drive, "-device", "nvme,drive=d1,serial=second")
    size = f"--bytes={DISK_MIB * MIB}"
    written = [path.name for path in (b.fixed(), other) if tried("cmp", "-s", size, path, "/dev/zero").rc]
    ok = "/dev/vda" in told and "/dev/nvme0n1" in told and not written
    return Row("two fixed disks: refused, nothing is written", ok, told.splitlines()[-1])


def blank_disk(b: Bench) -> Row:
    stick = b.stick("yes", 12)
    b.vm.start(*plugged(stick))
    took_s = b.vm.await_off(120.0)
    differs = b.installed(stick)
    return Row("a blank disk: installed, off, and alone it starts with the seed", differs == "nothing",
               f"off after {took_s:.0f} s, differs: {differs}; {b.started(12)[0]}")  # fmt: skip


def used_disk(b: Bench) -> Row:
    """The one that was just used; its labels are the stick's."""
    before = b.vm.work / "before.qcow2"
    call("cp", b.vm.overlay, before)
    told = b.refused(b.stick("yes", 13))
    same = not tried("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", before, b.vm.overlay).rc
    return Row("a disk that is used: refused, not a byte is written", same and "is not blank" in told,
               told.splitlines()[-1])  # fmt: skip


def power_cut(b: Bench) -> Row:
    """While the used disk is overwritten; then what the firmware makes of it, without the stick."""
    b.vm.start(*plugged(b.stick("erase", 14)))
    b.awaited(lambda said: any(int(share) >= CUT_AT for share in re.findall(r"writing +(\d+)%", said)), 120.0)
    b.vm.cut_power()
    b.vm.start()
    since = len(b.vm.console())
    b.awaited(lambda said: "Shell>" in said, 20.0)
    b.vm.cut_power()
    ok = "GRUB" not in b.vm.console()[since:]
    return Row("power cut while a used disk is overwritten: it does not start", ok, f"at {CUT_AT} %: UEFI's shell")


def again(b: Bench) -> Row:
    stick = b.work / "erase.stick"
    b.vm.start(*plugged(stick))
    took_s = b.vm.await_off(120.0)
    differs = b.installed(stick)
    return Row("that stick started again: installed, off", differs == "nothing",
               f"off after {took_s:.0f} s, differs: {differs}")  # fmt: skip


def left_in(b: Bench) -> Row:
    stick, since = b.work / "erase.stick", len(b.vm.console())
    b.vm.start(*plugged(stick))
    took_s = b.vm.await_off(60.0)
    told, differs = b.vm.console()[since:], b.installed(stick)
    ok = "has done its installation" in told and "systemd" not in told and differs == "nothing"
    return Row("the stick left in: it says that it is done, off", ok,
               f"off after {took_s:.0f} s, differs: {differs}")  # fmt: skip


def beside(b: Bench) -> Row:
    """The firmware's first choice is the disk now."""
    stick = b.work / "erase.stick"
    before = call("sha256sum", stick)
    told, places = b.started(14, *plugged(stick, 2))
    ok = places == "vda4 /dev/vda6 /dev/vda1" and call("sha256sum", stick) == before
    return Row("the disk starts beside the stick and takes nothing of it", ok, f"{told}; {places}")


CHECKS: tuple[Callable[[Bench], Row], ...] = (two_disks, blank_disk, used_disk, power_cut, again, left_in, beside)


def installer(disk: Path, work: Path) -> Iterator[Row]:
    """One fixed disk, in this order."""
    with rack(work) as bench:
        empty = work / "empty.img"
        empty.write_bytes(b"")
        with Vm(empty, work / "vm", options=SECOND, disk_mib=DISK_MIB, machine=machine_of(disk)) as vm:
            for check in CHECKS:
                start = time.monotonic()
                row = made(check.__name__, partial(check, Bench(vm, disk, bench, work)))
                vm.cut_power()
                yield row._replace(seen=f"{row.seen} ({time.monotonic() - start:.0f} s)")
