"""The image of the USB stick that runs, onto the unit's one fixed disk. In the image, beside flash.py, in /usr/lib/ems.

site-install.target starts it, and nothing else. The protective MBR, one sector without which UEFI looks for no GPT, is
overwritten first and written last. Between come the old GPT and the beginning of the old ESP, everything behind the
ESP, the ESP with the GPT; each is read back before the next. So a power cut leaves a disk that does not start, and the
stick begins again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import flash
from flash import ESP_AT, FlashError, Target

DEV, SCRATCH, MOUNT = Path("/dev"), Path("/dev/shm"), Path("/efi")
CONSOLES = Path("/sys/class/tty/console/active")
DONE, LOG = f"{flash.MARKER}.done", f"{flash.MARKER}.log"
SECTOR, MIB = 512, 1 << 20
UNFINISHED = b"EMS: an installation began here and has not come to its end.\n"
"""In place of the protective MBR until the end."""
SETTLED_S = 10.0
"""Some drivers tell their disks late; for so long there was no new one."""
SHOWN_S, FAILED_SHOWN_S = 10.0, 600.0
"""How long the last message stays before the machine is off."""


class Stick(NamedTuple):
    path: Path
    esp_end: int
    size: int  # of the image on it


def stick_of(name: str) -> Stick:
    """Raises FlashError when it is not on USB; its partition table says how long the image is."""
    if not _on_usb(name):
        raise FlashError(f"this system runs from {name}, which is no USB stick; allowed is a stick on USB: pull {name}")
    with (DEV / name).open("rb") as disk:
        table = disk.read(MIB)
    header = table[SECTOR:]
    if header[:8] != b"EFI PART":
        raise FlashError(f"{name} has no GPT; allowed is a stick that make flash INSTALLER= wrote: flash it again")
    (alternate,) = struct.unpack_from("<Q", header, 32)
    (entries,) = struct.unpack_from("<Q", header, 72)
    first, last = struct.unpack_from("<QQ", table, entries * SECTOR + 32)
    if first * SECTOR != ESP_AT:
        raise FlashError(f"{name} has its ESP at byte {first * SECTOR}; allowed is {ESP_AT}: flash it again")
    return Stick(DEV / name, (last + 1) * SECTOR, (alternate + 1) * SECTOR)


def running_disk() -> str:
    """The whole disk below dm-verity's root. Raises FlashError."""
    for name in flash.SYS.glob("dm-*/dm/name"):
        if name.read_text().strip() == "root":
            (part,) = (name.parents[1] / "slaves").iterdir()
            return (flash.SYS / part.name).resolve().parent.name
    raise FlashError("there is no verified root; allowed is the start of a stick that make flash INSTALLER= wrote")


def _on_usb(name: str) -> bool:
    return any(re.fullmatch(r"usb\d+", part) for part in (flash.SYS / name).resolve().parts)


def fixed_disks() -> list[str]:
    """Neither on USB nor removable, SD cards neither; what is no hardware (loop, dm, zram) has no device."""
    whole = (path for path in flash.SYS.glob("*") if (path / "device").exists() and not (path / "partition").exists())
    movable = {"removable": "1", "device/type": "SD"}
    return sorted(
        path.name
        for path in whole
        if not _on_usb(path.name) and all(flash.text_of(path / name) != says for name, says in movable.items())
    )


def settled_disks() -> list[str]:
    seen, since_s = fixed_disks(), time.monotonic()
    while time.monotonic() - since_s < SETTLED_S:
        time.sleep(SETTLED_S / 20)
        if (now := fixed_disks()) != seen:
            seen, since_s = now, time.monotonic()
    return seen


def choose(names: list[str], size: int) -> Target:
    """The one that is big enough. Raises FlashError with all of them."""
    found = [flash.target_of(DEV / name) for name in names]
    fitting = [target for target in found if target.size >= size]
    if len(fitting) != 1:
        listed = ", ".join(map(described, found)) or "none"
        raise FlashError(
            f"fixed disks: {listed}; allowed is exactly one of {size / 1e9:.2f} GB or more: "
            f"{'take the others out' if fitting else 'put one in'} and start the stick again"
        )
    return fitting[0]


def described(target: Target) -> str:
    return f"{target.path} ({target.model}, {target.size / 1e9:.2f} GB)"


def check_blank(target: Target, stick: Stick) -> None:
    """Raises FlashError when something would be lost: not by an installation that was cut short, even after its end."""
    with target.path.open("rb") as disk:
        head = disk.read(flash.BLOCK)
        disk.seek(target.size - flash.BLOCK)
        tail = disk.read(flash.BLOCK)
    if head.startswith(UNFINISHED) or (_blank(head) and _blank(tail)) or _never_used(target, stick):
        return
    raise FlashError(
        f"{described(target)} is not blank; allowed is a disk whose first and last {flash.BLOCK // MIB} MiB are blank: "
        "take it out, or make the stick with INSTALLER=erase"
    )


def _blank(data: bytes) -> bool:
    """As a disk is delivered or after it was erased."""
    return data[:1] in (b"\x00", b"\xff") and data.count(data[0]) == len(data)


def _never_used(target: Target, stick: Stick) -> bool:
    """It is the stick's image but for the ESP: the first start lets the last partition grow and mounts it."""
    with target.path.open("rb") as disk, stick.path.open("rb") as image:
        for start, end in ((0, ESP_AT), (stick.esp_end, stick.size)):
            disk.seek(start)
            if any(disk.read(len(data)) != data for data in flash.blocks(image, start, end)):
                return False
    return True


@contextlib.contextmanager
def esp_of(disk: Path, size: int) -> Iterator[Path]:
    """The folder where the ESP of a disk, or of a copy of its front, is mounted."""
    subprocess.run(
        ["mount", "-t", "vfat", "-o", f"loop,offset={ESP_AT},sizelimit={size}", disk, MOUNT],
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        yield MOUNT
    finally:
        subprocess.run(["umount", MOUNT], check=True, capture_output=True)
        with disk.open("rb") as written:
            os.fsync(written.fileno())


def unmarked(stick: Stick) -> tuple[Path, str]:
    """A copy of what is before the end of the stick's ESP, without what the stick has to itself; the marker's text."""
    front = SCRATCH / "front.img"
    with stick.path.open("rb") as disk:
        front.write_bytes(disk.read(stick.esp_end))
    with esp_of(front, stick.esp_end - ESP_AT) as esp:
        if not (esp / flash.MARKER).exists():
            raise FlashError(f"{stick.path} has no {flash.MARKER}; allowed is one stick, which has it: pull the others")
        text = (esp / flash.MARKER).read_text().strip()
        for name in (flash.MARKER, DONE, LOG):
            (esp / name).unlink(missing_ok=True)
    flash.check_installer(text)
    return front, text


def install(stick: Stick, say: Callable[[str], None]) -> None:
    """Raises FlashError."""
    front, allowed = unmarked(stick)
    target = choose(settled_disks(), stick.size)
    if allowed != "erase":
        check_blank(target, stick)
    say(f"From {stick.path} onto {described(target)}. INSTALLER = {allowed}: {flash.INSTALLERS[allowed]}.")
    blank = SCRATCH / "blank.img"
    blank.write_bytes(UNFINISHED.ljust(ESP_AT + flash.BLOCK, b"\0"))
    flash.write(blank, target, _untold, 0, SECTOR)
    flash.write(blank, target, _untold, SECTOR)
    flash.write(stick.path, target, flash.Progress(stick.size - stick.esp_end), stick.esp_end, stick.size)
    flash.write(front, target, flash.Progress(stick.esp_end - SECTOR), SECTOR, stick.esp_end)
    flash.write(front, target, _untold, 0, SECTOR)


def _untold(what: str, count: int) -> None:
    """Too short to be shown."""


def leave(stick: Stick, log: list[str], done: bool) -> None:
    """The log on the stick; when it is done, GRUB starts the installation no more."""
    with esp_of(stick.path, stick.esp_end - ESP_AT) as esp:
        (esp / LOG).write_text("".join(f"{line}\n" for line in log))
        if done:
            (esp / flash.MARKER).replace(esp / DONE)


class Consoles(io.StringIO):
    """Every console of the kernel. None of them holds up the installation: what it does not take at once is lost."""

    def __init__(self) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
        self._out: list[int] = []
        for name in CONSOLES.read_text().split():
            with contextlib.suppress(OSError):
                self._out.append(os.open(DEV / name, flags))

    def write(self, text: str) -> int:
        for out in self._out:
            with contextlib.suppress(OSError):
                os.write(out, text.encode())
        return len(text)


def main() -> int:
    log: list[str] = []

    def say(text: str) -> None:
        log.append(text)
        print(f"\nINSTALL: {text}", flush=True)

    stick = None
    with contextlib.redirect_stdout(Consoles()):
        version = (Path(__file__).parent / "version").read_text().strip()
        say(f"This stick installs version {version} onto the fixed disk. Leave it in and the power on.")
        try:
            stick = stick_of(running_disk())
            install(stick, say)
            say("The disk is written and was read back.")
            leave(stick, log, done=True)
            say("INSTALLED. The unit switches itself off now. Pull the stick, then switch on.")
            time.sleep(SHOWN_S)
            return 0
        except Exception as error:  # whatever it is: nobody sees a traceback here
            told = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else ""
            say(f"FAILED. {error} {told}".strip())
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                if stick:
                    leave(stick, log, done=False)
            say(f"FAILED: nothing more is written. In {FAILED_SHOWN_S / 60:.0f} minutes the unit switches itself off.")
            time.sleep(FAILED_SHOWN_S)
            return 1


if __name__ == "__main__":
    sys.exit(main())
