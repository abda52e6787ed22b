"""make flash, on ordinary files and on a disk whose facts are made up."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import flash
from flash import FlashError, Target

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk with an empty ESP at 1 MiB and something behind it."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB) + bytes(40 * MIB) + bytes(range(256)) * 4096)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_bytes(b"\xaa" * 48 * MIB)
    return path


def quiet(what: str, count: int) -> None:
    pass


def test_what_is_written_is_read_back_and_the_rest_of_the_disk_is_left_alone(image: Path, disk: Path) -> None:
    seen: list[str] = []
    digest = flash.write(image, flash.target_of(disk), lambda what, _: seen.append(what))
    assert disk.read_bytes() == image.read_bytes() + b"\xaa" * (48 * MIB - image.stat().st_size)
    assert len(digest) == 64
    assert set(seen) == {"writing", "verifying"}


def test_a_disk_that_reads_back_something_else_is_told(
    image: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lies(what: str, count: int) -> None:
        if what == "writing":
            with disk.open("r+b") as file:
                file.seek(5 * MIB)
                file.write(b"x")

    with pytest.raises(FlashError, match="reads back something else at byte 4194304 to 8388608"):
        flash.write(image, flash.target_of(disk), lies)


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(image: Path, tmp_path: Path) -> None:
    small = Target(tmp_path / "sdx", 10 * MIB, True, "stick")
    with pytest.raises(FlashError, match=r"has 0\.01 GB; allowed is 0\.04 GB or more"):
        flash.check(image, small, None)


def test_an_image_that_was_not_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashError, match="make image builds it"):
        flash.check(tmp_path / "none.img", Target(tmp_path / "sdx", MIB, True, "stick"), None)


@pytest.mark.parametrize(
    ("typed", "fits"), [("sdx", True), (" sdx\n", True), ("yes", False), ("", False), ("sdy", False)]
)
def test_a_disk_that_is_not_removable_needs_its_name_typed(typed: str, fits: bool) -> None:
    target = Target(Path("/dev/sdx"), MIB, False, "disk")
    if fits:
        flash.confirm(target, lambda question: typed)
        return
    with pytest.raises(FlashError, match="nothing was written"):
        flash.confirm(target, lambda question: typed)


def test_a_removable_one_asks_nothing() -> None:
    def ask(question: str) -> str:
        raise AssertionError(question)

    flash.confirm(Target(Path("/dev/sdx"), MIB, True, "stick"), ask)


class Machine:
    """Disks as /sys and /proc tell them; their nodes are those of loop devices that need not exist."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys, self.mounts, self.swaps = tmp_path / "sys", tmp_path / "mounts", tmp_path / "swaps"
        self.sys.mkdir()
        self.mounts.write_text("")
        self.swaps.write_text("Filename Type Size Used Priority\n")
        for name, value in (("SYS", self.sys), ("MOUNTS", self.mounts), ("SWAPS", self.swaps)):
            monkeypatch.setattr(flash, name, value)
        monkeypatch.setattr("flash.stat.S_ISREG", lambda mode: False)
        monkeypatch.setattr("flash.stat.S_ISBLK", lambda mode: True)

    def disk(self, path: Path, removable: bool = True) -> Path:
        path.write_bytes(b"")
        folder = self.sys / path.name
        folder.mkdir()
        (folder / "size").write_text("8388608\n")
        (folder / "removable").write_text(f"{int(removable)}\n")
        return path

    def partition(self, disk: Path) -> str:
        name = f"{disk.name}1"
        (self.sys / disk.name / name).mkdir()
        (self.sys / disk.name / name / "partition").write_text("1\n")
        (self.sys / name).symlink_to(self.sys / disk.name / name)
        return name


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_disk_in_peace_is_taken_with_its_size(machine: Machine, tmp_path: Path) -> None:
    found = flash.target_of(machine.disk(tmp_path / "sdx"))
    assert (found.size, found.removable) == (4 << 30, True)


def test_a_disk_with_a_mounted_partition_is_refused_with_the_place(machine: Machine, tmp_path: Path) -> None:
    disk = machine.disk(tmp_path / "sdx")
    machine.mounts.write_text(f"/dev/{machine.partition(disk)} /home ext4 rw 0 0\n")
    with pytest.raises(FlashError, match="in use: /dev/sdx1 mounted on /home; unmount it first"):
        flash.target_of(disk)


def test_a_disk_with_swap_is_refused(machine: Machine, tmp_path: Path) -> None:
    disk = machine.disk(tmp_path / "sdx")
    machine.swaps.write_text(f"Filename Type\n/dev/{machine.partition(disk)} partition 1 0 -2\n")
    with pytest.raises(FlashError, match="in use: /dev/sdx1 swap"):
        flash.target_of(disk)


def test_a_disk_that_carries_another_device_is_refused(machine: Machine, tmp_path: Path) -> None:
    disk = machine.disk(tmp_path / "sdx")
    (machine.sys / "sdx" / "holders" / "dm-0").mkdir(parents=True)
    with pytest.raises(FlashError, match="sdx held by dm-0"):
        flash.target_of(disk)


def test_a_partition_is_refused_with_the_name_of_its_disk(machine: Machine, tmp_path: Path) -> None:
    disk = machine.disk(tmp_path / "sdx")
    node = tmp_path / machine.partition(disk)
    node.write_bytes(b"")
    with pytest.raises(FlashError, match="is a partition; name its disk, sdx"):
        flash.target_of(node)


def test_a_path_that_is_not_there_or_no_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashError, match="No such file"):
        flash.target_of(tmp_path / "nothing")
    with pytest.raises(FlashError, match="not a disk"):
        flash.target_of(Path("/dev/null"))


def test_a_seed_with_a_misspelt_name_is_refused_before_anything_is_written(image: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "sites.conf").write_text("")
    with pytest.raises(FlashError, match=r"holds sites\.conf; allowed are limits\.conf"):
        flash.check(image, Target(tmp_path / "sdx", 1 << 30, True, "stick"), seed)


def with_esp(image: Path) -> None:
    esp = image.with_name("esp")
    with esp.open("wb") as file:
        file.truncate(40 * MIB)
    subprocess.run(["mkfs.vfat", "-F", "32", esp], check=True, capture_output=True)
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(esp.read_bytes())
    subprocess.run(["mmd", "-i", f"{image}@@1M", "::EFI", "::EFI/ems"], check=True)


HAS_MTOOLS = pytest.mark.skipif(
    not (shutil.which("mcopy") and shutil.which("mkfs.vfat")), reason="no mtools or dosfstools here"
)


@HAS_MTOOLS
def test_the_seed_is_on_the_esp_afterwards(image: Path, disk: Path, tmp_path: Path) -> None:
    with_esp(image)
    seed = tmp_path / "site-a"
    (seed / "tls").mkdir(parents=True)
    (seed / "site.conf").write_text("bms_host = 192.168.1.4\n")
    (seed / "tls" / "server.key").write_text("secret\n")
    target = flash.target_of(disk)
    flash.write(image, target, quiet)
    flash.put_seed(seed, target)
    listed = subprocess.run(["mdir", "-/", "-b", "-i", f"{disk}@@1M", "::"], check=True, capture_output=True, text=True)
    assert {"::/ems-seed/site.conf", "::/ems-seed/tls/server.key"} <= set(listed.stdout.split())


def flashed(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """`make flash` onto a file, whose name is typed."""
    monkeypatch.setattr("sys.argv", ["flash", *map(str, args)])
    monkeypatch.setattr("builtins.input", lambda question: "target")
    return flash.main()


@HAS_MTOOLS
@pytest.mark.parametrize("installer", flash.INSTALLERS)
def test_an_installation_stick_is_the_image_and_a_marker(
    installer: str, image: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_esp(image)
    assert flashed(monkeypatch, disk, f"--image={image}", f"--installer={installer}") == 0
    read = ["mtype", "-i", f"{disk}@@1M", "::EFI/ems/install"]
    assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == f"{installer}\n"
    assert flash.INSTALLERS[installer] in capsys.readouterr().out
    assert disk.read_bytes()[41 * MIB : image.stat().st_size] == image.read_bytes()[41 * MIB :]


@pytest.mark.parametrize("value", ["no", "Erase", "1", ""])
def test_another_value_of_installer_is_refused_before_anything_is_written(
    value: str, image: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = disk.read_bytes()
    assert flashed(monkeypatch, disk, f"--image={image}", f"--installer={value}") == 1
    told = capsys.readouterr().err
    assert f"INSTALLER = {value}: allowed are yes (" in told
    assert "erase (" in told
    assert disk.read_bytes() == before


def test_a_part_of_the_image_goes_to_the_same_place_on_the_disk(image: Path, disk: Path) -> None:
    start, end = 40 * MIB + 512, 41 * MIB + 1000
    flash.write(image, flash.target_of(disk), quiet, start, end)
    found = disk.read_bytes()
    assert found[start:end] == image.read_bytes()[start:end]
    assert set(found[:start]) == set(found[end:]) == {0xAA}
