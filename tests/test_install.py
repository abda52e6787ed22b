"""The installation from a stick, on ordinary files in a machine that is made up."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flash
import install
from flash import MARKER, FlashError
from install import DONE, LOG, UNFINISHED, Stick

MIB = 1 << 20
ESP_END, SIZE, DISK = 3 * MIB, 6 * MIB, 8 * MIB
pytestmark = pytest.mark.skipif(
    not (shutil.which("mcopy") and shutil.which("mkfs.vfat")), reason="no mtools or dosfstools here"
)


def gpt(disk: bytes, fill: int) -> bytes:
    """`disk` with what a firmware and `stick_of` read of a partition table; `fill` tells two tables apart."""
    header = bytearray(512)
    header[:8] = b"EFI PART"
    struct.pack_into("<Q", header, 32, SIZE // 512 - 1)
    struct.pack_into("<Q", header, 72, 2)
    header[100] = fill
    entry = bytearray(128)
    struct.pack_into("<QQ", entry, 32, flash.ESP_AT // 512, ESP_END // 512 - 1)
    mbr = bytearray(512)
    mbr[450], mbr[510:] = 0xEE, b"\x55\xaa"
    table = bytes(mbr) + bytes(header) + bytes(entry)
    return table + disk[len(table) :]


def starts(disk: bytes) -> bool:
    """A firmware finds a partition table, which it does not look for without the protective MBR."""
    return disk[510:512] == b"\x55\xaa" and disk[450] == 0xEE and disk[512:520] == b"EFI PART"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `make image` would have made: a table, an ESP, a pattern."""
    esp = tmp_path_factory.mktemp("esp") / "esp.img"
    esp.write_bytes(bytes(ESP_END - flash.ESP_AT))
    subprocess.run(["mkfs.vfat", "--invariant", esp], check=True, capture_output=True)
    subprocess.run(["mmd", "-i", esp, "::EFI", "::EFI/ems"], check=True)
    return gpt(bytes(flash.ESP_AT) + esp.read_bytes() + random.Random(1).randbytes(SIZE - ESP_END), 1)


class Machine:
    """Disks as /sys tells them; their nodes are ordinary files."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.sys, self.dev = tmp_path, tmp_path / "sys", tmp_path / "dev"
        for folder in (self.sys, self.dev, tmp_path / "shm"):
            folder.mkdir()
        for module, name, value in (
            (flash, "SYS", self.sys), (flash, "MOUNTS", tmp_path / "none"), (flash, "SWAPS", tmp_path / "none"),
            (flash, "BLOCK", MIB // 2), (install, "DEV", self.dev), (install, "SCRATCH", tmp_path / "shm"),
            (install, "SETTLED_S", 0.0), (install, "esp_of", self.esp_of),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr("flash.stat.S_ISREG", lambda mode: False)
        monkeypatch.setattr("flash.stat.S_ISBLK", lambda mode: True)

    def disk(self, name: str, content: bytes = bytes(DISK), bus: str = "pci0000:00", **facts: str) -> Path:
        """`facts`: files of its folder in /sys; `device` is the type of what it is on."""
        folder = self.top / "devices" / bus / "block" / name
        (folder / "device").mkdir(parents=True)
        (folder / "size").write_text(f"{len(content) // 512}\n")
        (folder / "removable").write_text(facts.get("removable", "0"))
        (folder / "device" / "type").write_text(facts.get("type", "0"))
        (self.sys / name).symlink_to(folder)
        (self.dev / name).write_bytes(content)
        return self.dev / name

    def runs_from(self, name: str) -> None:
        """dm-verity's root is on its fourth partition."""
        part = (self.sys / name).resolve() / f"{name}4"
        part.mkdir()
        (part / "partition").write_text("4\n")
        (self.sys / part.name).symlink_to(part)
        mapped = self.top / "devices/virtual/block/dm-0"
        for folder in ("dm", "slaves"):
            (mapped / folder).mkdir(parents=True)
        (mapped / "dm" / "name").write_text("root\n")
        (mapped / "slaves" / part.name).symlink_to(part)
        (self.sys / "dm-0").symlink_to(mapped)

    def stick(self, content: bytes, installer: str | None, name: str = "sda") -> Path:
        """It runs; a seed is on it."""
        path = self.disk(name, content + bytes(MIB), "pci0000:00/usb2/2-1", removable="1")
        self.runs_from(name)
        seed = self.top / "seed"
        seed.mkdir()
        (seed / "site.conf").write_text("bms_host = 192.168.1.4\n")
        flash.put_seed(seed, flash.target_of(path))
        if installer is not None:
            flash.put_marker(installer, flash.target_of(path))
        return path

    @contextlib.contextmanager
    def esp_of(self, disk: Path, size: int) -> Iterator[Path]:
        """By mtools what the appliance does by mounting."""
        assert size == ESP_END - flash.ESP_AT
        folder = self.top / "mounted"
        before = {name: (folder / name).read_bytes() for name in esp(disk, folder)}
        yield folder
        image = f"{disk}@@{flash.ESP_AT}"
        for name in before.keys() - listed(folder):
            subprocess.run(["mdel", "-i", image, f"::{name}"], check=True)
        for name in (name for name in listed(folder) if (folder / name).read_bytes() != before.get(name)):
            subprocess.run(["mcopy", "-o", "-m", "-i", image, folder / name, f"::{name}"], check=True)


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def esp(disk: Path, folder: Path) -> set[str]:
    """The names of all files on its ESP, which are in the folder then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["mcopy", "-s", "-i", f"{disk}@@{flash.ESP_AT}", "::", folder], check=True)
    return listed(folder)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def installed() -> list[str]:
    """What it said."""
    said: list[str] = []
    install.install(install.stick_of(install.running_disk()), said.append)
    return said


def expected(machine: Machine, stick: Path) -> bytes:
    """What the fixed disk holds afterwards: the stick's image, its marker deleted by the same hand."""
    front, _ = install.unmarked(Stick(stick, ESP_END, SIZE))
    return front.read_bytes() + stick.read_bytes()[ESP_END:SIZE]


def test_the_image_and_the_seed_are_on_the_fixed_disk_and_the_marker_is_not(
    machine: Machine, pristine: bytes, tmp_path: Path
) -> None:
    stick, fixed = machine.stick(pristine, "yes"), machine.disk("vda")
    before = stick.read_bytes()
    (told,) = installed()
    found = fixed.read_bytes()
    assert starts(found)
    assert (found[: flash.ESP_AT], found[ESP_END:SIZE]) == (pristine[: flash.ESP_AT], pristine[ESP_END:])
    assert esp(fixed, tmp_path / "esp") == {"ems-seed/site.conf"}
    assert not any(found[SIZE:])
    assert stick.read_bytes() == before
    assert str(fixed) in told


def test_what_an_earlier_try_left_on_the_stick_is_not_copied(machine: Machine, pristine: bytes, tmp_path: Path) -> None:
    stick, fixed = machine.stick(pristine, "yes"), machine.disk("vda")
    install.leave(Stick(stick, ESP_END, SIZE), ["no disk"], done=False)
    assert esp(stick, tmp_path / "esp") == {"ems-seed/site.conf", MARKER, LOG}
    installed()
    assert esp(fixed, tmp_path / "esp") == {"ems-seed/site.conf"}


class Recorder:
    """Every write to the disk, and where what is before it is surely there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.barriers = [0]
        opened = flash._opened

        @contextlib.contextmanager
        def recorded(path: Path, flags: int) -> Iterator[Any]:
            assert path == target
            with opened(path, flags) as disk:
                write = disk.write

                def note(data: bytes) -> int:
                    self.writes.append((disk.tell(), data))
                    return write(data)

                disk_of: Any = type("Disk", (), {name: staticmethod(getattr(disk, name)) for name in USED})
                disk_of.write = staticmethod(note)
                yield disk_of

        def synced(fd: int) -> None:
            if len(self.writes) != self.barriers[-1]:
                self.barriers.append(len(self.writes))

        monkeypatch.setattr(flash, "_opened", recorded)
        monkeypatch.setattr("os.fsync", synced)

    def left(self, old: bytes, at: int, dice: random.Random) -> bytes:
        """The disk after a cut before write `at`: of those since the last barrier any may be there or not."""
        sure = max(barrier for barrier in self.barriers if barrier <= at)
        disk = bytearray(old)
        for number, (start, data) in enumerate(self.writes[:at]):
            if number < sure or dice.random() < 0.5:
                disk[start : start + len(data)] = data
        return bytes(disk)


USED = ("seek", "read", "flush", "fileno")


@pytest.mark.parametrize("installer", ["yes", "erase"])
def test_a_cut_leaves_a_disk_that_does_not_start_and_the_stick_starts_over(
    installer: str, machine: Machine, pristine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = gpt(random.Random(2).randbytes(DISK), 2)
    old = used if installer == "erase" else bytes(DISK)
    stick, fixed = machine.stick(pristine, installer), machine.disk("vda", old)
    new = expected(machine, stick) + old[SIZE:]
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, fixed)
        installed()
    assert fixed.read_bytes() == new
    dice, left = random.Random(3), set()
    for at in range(len(recorder.writes) + 1):
        for _ in range(4):
            left.add(recorder.left(old, at, dice))
    assert len(left) > len(recorder.writes)
    for disk in left:
        assert not starts(disk) or disk in (old, new)
        fixed.write_bytes(disk)
        installed()
        assert fixed.read_bytes() == new


def test_a_disk_that_reads_back_something_else_never_gets_what_starts_it(
    machine: Machine, pristine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.stick(pristine, "yes")
    fixed = machine.disk("vda")

    def spoilt(total: int) -> Any:
        def progress(what: str, count: int) -> None:
            with fixed.open("r+b") as disk:
                disk.seek(ESP_END + 4096)
                disk.write(b"rot")

        return progress

    monkeypatch.setattr(flash, "Progress", spoilt)
    with pytest.raises(FlashError, match="reads back something else"):
        installed()
    assert fixed.read_bytes().startswith(UNFINISHED)


def something_at(offset: int) -> bytes:
    return bytes(offset) + b"x" + bytes(DISK - offset - 1)


@pytest.mark.parametrize(
    "content", [bytes(DISK), b"\xff" * DISK, UNFINISHED + b"x" * (DISK - len(UNFINISHED)), something_at(4 * MIB)]
)
def test_a_blank_disk_and_one_that_was_cut_short_are_taken(content: bytes, machine: Machine, pristine: bytes) -> None:
    machine.stick(pristine, "yes")
    fixed = machine.disk("vda", content)
    installed()
    assert starts(fixed.read_bytes())


@pytest.mark.parametrize("content", [something_at(n) for n in (0, 510, 1024, 65536, DISK - 4096, DISK - 1)])
def test_a_disk_that_holds_something_is_refused_and_not_touched(
    content: bytes, machine: Machine, pristine: bytes
) -> None:
    machine.stick(pristine, "yes")
    fixed = machine.disk("vda", content)
    with pytest.raises(FlashError, match=r"vda .* is not blank; allowed is .*INSTALLER=erase"):
        installed()
    assert fixed.read_bytes() == content


def test_an_installed_disk_that_was_used_is_refused_and_one_that_was_not_is_taken(
    machine: Machine, pristine: bytes
) -> None:
    """The power was cut after the last write and before the stick was marked."""
    machine.stick(pristine, "yes")
    fixed = machine.disk("vda")
    installed()
    installed()
    with fixed.open("r+b") as disk:
        disk.seek(SIZE - 1000)
        disk.write(b"mounted")
    with pytest.raises(FlashError, match="not blank"):
        installed()


def test_only_whole_fixed_disks_are_candidates(machine: Machine, pristine: bytes) -> None:
    machine.stick(pristine, "yes")
    machine.disk("sdb", bus="pci0000:00/usb1/1-2")
    machine.disk("sdc", removable="1")
    machine.disk("sr0", removable="1")
    machine.disk("mmcblk1", type="SD")
    for name in ("loop0", "zram0", "ram0"):
        machine.disk(name)
        shutil.rmtree((machine.sys / name).resolve() / "device")
    assert install.settled_disks() == []
    for name in ("mmcblk0", "nvme0n1", "sdd", "vda"):
        machine.disk(name, type="MMC")
    assert install.settled_disks() == ["mmcblk0", "nvme0n1", "sdd", "vda"]


def test_one_disk_is_taken_beside_one_that_is_too_small(machine: Machine) -> None:
    machine.disk("mmcblk0boot0", bytes(MIB))
    machine.disk("mmcblk0")
    assert install.choose(install.fixed_disks(), SIZE).path.name == "mmcblk0"


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({}, r"fixed disks: none; allowed is exactly one of 0\.01 GB or more: put one in"),
        ({"vda": MIB}, r"fixed disks: \S+/vda \(no model, 0\.00 GB\); allowed .* put one in"),
        ({"sdb": DISK, "vda": DISK}, r"/sdb \(no model, 0\.01 GB\), \S+/vda \(.*\); allowed .* take the others out"),
    ],
)
def test_none_and_several_are_refused_and_all_are_listed(sizes: dict[str, int], told: str, machine: Machine) -> None:
    for name, size in sizes.items():
        machine.disk(name, bytes(size))
    with pytest.raises(FlashError, match=told):
        install.choose(install.fixed_disks(), SIZE)


def test_a_system_that_does_not_run_from_usb_installs_nothing(machine: Machine, pristine: bytes) -> None:
    machine.disk("vda", pristine)
    machine.runs_from("vda")
    with pytest.raises(FlashError, match="vda, which is no USB stick"):
        installed()


def test_a_system_without_a_verified_root_installs_nothing(machine: Machine) -> None:
    with pytest.raises(FlashError, match="no verified root"):
        installed()


@pytest.mark.parametrize(
    ("at", "data", "told"),
    [
        (512, b"X", "sda has no GPT"),
        (1024 + 32, b"\x01", "ESP at byte 1049088"),
        (0, b"", "has no EFI/ems/install"),
    ],
)
def test_a_stick_that_make_flash_has_not_written_is_refused(
    at: int, data: bytes, told: str, machine: Machine, pristine: bytes
) -> None:
    stick = machine.stick(pristine, None)
    fixed = machine.disk("vda")
    with stick.open("r+b") as disk:
        disk.seek(at)
        disk.write(data)
    with pytest.raises(FlashError, match=told):
        installed()
    assert not any(fixed.read_bytes())


def test_a_stick_that_is_shorter_than_its_image_is_told_and_nothing_starts(machine: Machine, pristine: bytes) -> None:
    stick = machine.stick(pristine, "yes")
    fixed = machine.disk("vda")
    os.truncate(stick, SIZE - 4096)
    with pytest.raises(FlashError, match=f"ends at byte {SIZE - 4096}; it should at {SIZE}"):
        installed()
    assert not starts(fixed.read_bytes())


def run_main(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Its end and what is on both consoles."""
    (machine.top / "active").write_text("tty0 ttyS0\n")
    consoles = [machine.dev / name for name in ("tty0", "ttyS0")]
    for console in consoles:
        console.write_text("")
    for name, value in (("CONSOLES", machine.top / "active"), ("SHOWN_S", 0.0), ("FAILED_SHOWN_S", 0.0)):
        monkeypatch.setattr(install, name, value)
    monkeypatch.setattr(install, "__file__", str(machine.top / "install.py"))
    (machine.top / "version").write_text("20260101-abc\n")
    ended = install.main()
    said, other = (console.read_text() for console in consoles)
    assert said == other
    return ended, said


def test_success_is_told_and_logged_and_the_marker_is_replaced(
    machine: Machine, pristine: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stick, fixed = machine.stick(pristine, "yes"), machine.disk("vda")
    ended, said = run_main(machine, monkeypatch)
    assert ended == 0
    assert "20260101-abc" in said
    assert "writing    100%" in said
    assert "INSTALLED. The unit switches itself off now. Pull the stick" in said
    assert esp(stick, tmp_path / "esp") == {"ems-seed/site.conf", DONE, LOG}
    assert str(fixed) in (tmp_path / "esp" / LOG).read_text()


def test_a_refusal_is_told_and_logged_and_the_marker_stays(
    machine: Machine, pristine: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stick = machine.stick(pristine, "yes")
    ended, said = run_main(machine, monkeypatch)
    assert ended == 1
    assert "FAILED. fixed disks: none" in said
    assert esp(stick, tmp_path / "esp") == {"ems-seed/site.conf", MARKER, LOG}
    assert "FAILED. fixed disks: none" in (tmp_path / "esp" / LOG).read_text()


def test_a_stick_that_cannot_be_written_is_told(
    machine: Machine, pristine: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.stick(pristine, "yes")
    machine.disk("vda")

    def broken(stick: Stick, log: list[str], done: bool) -> None:
        raise subprocess.CalledProcessError(32, ["mount"], stderr=b"mount: write-protected")

    monkeypatch.setattr(install, "leave", broken)
    ended, said = run_main(machine, monkeypatch)
    assert ended == 1
    assert "The disk is written and was read back." in said
    assert "mount: write-protected" in said
