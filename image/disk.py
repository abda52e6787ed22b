"""The disk: root slot with its hash tree, boot slot, ESP, data, and the GPT that holds them; always the same bytes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from job import HERE, MIB, BuildError, Job, run

ESP_MIB, BOOT_MIB, ROOT_MIB, DATA_MIB = 64, 64, 512, 256
SALT = "45" * 32
NAMESPACE = uuid.UUID("5d3b3f0e-6e1c-4a55-9f0a-6c5b1a0e5e01")
DATA_TYPE = "6f1b6a1a-4f0e-4d0c-9d55-0d8a5a3e7a10"
"""GPT type of our own, so that nothing mounts it by its type."""
LINUX_TYPE, ESP_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
CMDLINE = (
    "root=/dev/mapper/root rootfstype=squashfs ro panic=5 fsck.mode=skip systemd.gpt_auto=0 apparmor=1 "
    "security=apparmor loglevel=4 systemd.show_status=error console=tty0"
)
GRUB_MODULES = [
    "part_gpt", "fat", "squash4", "normal", "configfile", "linux", "loadenv", "test", "regexp", "echo", "sleep",
    "reboot", "halt", "minicmd", "search", "all_video",
]  # fmt: skip


def root_image(job: Job) -> tuple[str, int]:
    """root.img: squashfs and behind it its hash tree; (root hash, where the tree begins)."""
    image = job.paths.work / "root.img"
    run(job, "mksquashfs", job.paths.tree, image, "-quiet", "-no-progress", "-noappend", "-comp", "zstd",
        "-Xcompression-level", "9", "-b", "256K", "-xattrs")  # fmt: skip
    offset = -(-image.stat().st_size // 4096) * 4096
    os.truncate(image, offset)
    told = run(job, "veritysetup", "format", image, image, f"--hash-offset={offset}", f"--salt={SALT}",
               f"--uuid={uuid_of('verity')}")  # fmt: skip
    (found,) = (line.split()[-1] for line in told.splitlines() if line.startswith("Root hash"))
    _fits(image, ROOT_MIB)
    return found, offset


def boot_image(job: Job, root_hash: str, offset: int) -> None:
    """boot.img: kernel, initrd and what GRUB must know of the root of the same slot. GRUB reads no zstd."""
    boot, image = job.paths.work / "boot", job.paths.work / "boot.img"
    boot.mkdir()
    for name in ("vmlinuz", "initrd"):
        shutil.copyfile(job.paths.work / name, boot / name)
    cmdline = f"{CMDLINE} console={job.arch.serial},115200"
    (boot / "slot.cfg").write_text(
        f'set roothash={root_hash}\nset hashoffset={offset}\nset cmdline="{cmdline}"\nset version={job.version}\n'
    )
    run(
        job,
        "mksquashfs",
        boot,
        image,
        "-quiet",
        "-no-progress",
        "-noappend",
        "-all-root",
        "-noI",
        "-noD",
        "-noF",
        "-noX",
    )
    _fits(image, BOOT_MIB)


def _fits(image: Path, mib: int) -> None:
    if image.stat().st_size > mib * MIB:
        raise BuildError(f"{image.name} has {image.stat().st_size / MIB:.1f} MiB; its slot has {mib}")


def uuid_of(name: str) -> uuid.UUID:
    return uuid.uuid5(NAMESPACE, name)


def esp_image(job: Job) -> None:
    work = job.paths.work
    esp, grub, env = work / "esp.img", work / "grub.efi", work / "grubenv"
    run(job, "grub-mkimage", "-O", job.arch.grub, "-o", grub, "-p", "/EFI/ems", *GRUB_MODULES)
    run(job, "grub-editenv", env, "create")
    run(job, "grub-editenv", env, "set", "ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0")
    _empty(esp, ESP_MIB * MIB)
    run(job, "mkfs.vfat", "--invariant", "-F", "32", "-i", "0E35ED6E", "-n", "EMS", esp)
    run(job, "mmd", "-i", esp, "::EFI", "::EFI/BOOT", "::EFI/ems")
    cfg = work / "grub.cfg"
    shutil.copyfile(HERE / "grub.cfg", cfg)
    for source, target in ((grub, f"EFI/BOOT/{job.arch.efi}"), (cfg, "EFI/ems/grub.cfg"), (env, "EFI/ems/grubenv")):
        os.utime(source, (job.epoch, job.epoch))
        run(job, "mcopy", "-m", "-i", esp, source, f"::{target}")


def data_image(job: Job) -> None:
    """The folders that are bound into the tree, owned as there."""
    skeleton, image = job.paths.work / "data", job.paths.work / "data.img"
    for name, mode in (("ems", 0o750), ("var", 0o755)):
        (skeleton / name).mkdir(parents=True)
        (skeleton / name).chmod(mode)
    os.chown(skeleton / "ems", 0, EMS_GID)
    skeleton.chmod(0o755)
    for path in (*skeleton.iterdir(), skeleton):
        os.utime(path, (job.epoch, job.epoch))
    _empty(image, DATA_MIB * MIB)
    run(job, "mke2fs", "-q", "-t", "ext4", "-d", skeleton, "-L", "data", "-U", str(uuid_of("data")), "-m", "1",
        "-E", f"hash_seed={uuid_of('hash')},lazy_itable_init=0,lazy_journal_init=0", image)  # fmt: skip
    times = folder_times(job.epoch, ("/", "/ems", "/var", "/lost+found"))
    run(job, "debugfs", "-w", "-f", "-", image, stdin=times)


EMS_GID = 800


def folder_times(epoch: int, names: Iterable[str]) -> str:
    """debugfs' commands: mke2fs takes over the change times of the folders that it copies."""
    fields = [(f"{kind}time", f"@{epoch}") for kind in ("a", "c", "m", "cr")]
    fields += [(f"{kind}time_extra", "0") for kind in ("a", "c", "m", "cr")]
    return "".join(f"sif {name} {field} {value}\n" for name in names for field, value in fields)


def _empty(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


class Partition(NamedTuple):
    name: str
    mib: int
    type: str
    content: str | None


PARTITIONS = (
    Partition("esp", ESP_MIB, ESP_TYPE, "esp.img"),
    Partition("boot-a", BOOT_MIB, LINUX_TYPE, "boot.img"),
    Partition("boot-b", BOOT_MIB, LINUX_TYPE, None),
    Partition("root-a", ROOT_MIB, LINUX_TYPE, "root.img"),
    Partition("root-b", ROOT_MIB, LINUX_TYPE, None),
    Partition("data", DATA_MIB, DATA_TYPE, "data.img"),
)
"""In their order on the disk. GRUB counts on boot-a and boot-b being the second and the third."""


def disk_image(job: Job) -> Path:
    disk, start = job.paths.top / "disk.img", 1
    _empty(disk, (sum(part.mib for part in PARTITIONS) + 2) * MIB)
    script = [f"label: gpt\nlabel-id: {uuid_of('disk')}"]
    for part in PARTITIONS:
        size = f"start={start}MiB, size={part.mib}MiB"
        script.append(f"{size}, type={part.type}, uuid={uuid_of(part.name)}, name={part.name}")
        if part.content:
            _put(job.paths.work / part.content, disk, start * MIB)
        start += part.mib
    run(job, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, stdin="\n".join(script) + "\n")
    return disk


def _put(source: Path, disk: Path, at: int) -> None:
    """Holes stay holes."""
    with source.open("rb") as src, disk.open("r+b") as dst:
        for block, data in enumerate(iter(lambda: src.read(MIB), b"")):
            if data.count(0) != len(data):
                dst.seek(at + block * MIB)
                dst.write(data)
