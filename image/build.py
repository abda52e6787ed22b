"""`make image`: the flashable disk, its update bundle and its list of parts, from nothing but package archives.

Stage 1 is a Debian tree, kept in build/image/cache under the hash of packages.txt. Stage 2 lays our files, the locked
wheels and this repository over it and makes initrd, squashfs, hash tree, boot slots and the GPT disk. Stage 2 gives the
same bytes for the same inputs: every number is fixed here, every time is the commit's. The bundle is the exception: its
signature has a time in it.

The programs of another architecture's tree run in an emulator that the kernel starts for them (binfmt_misc).

Variables: EMS_MIRROR (of the Debian archive; the default is mmdebstrap's), EMS_CA_DIR (ca.pem, signing.pem and
signing.key; without it a throw-away authority is made beside the image), EMS_IMAGE_DIR (build/image for amd64,
build/image-arm64 for arm64).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from disk import boot_image, data_image, disk_image, esp_image, root_image, uuid_of
from job import AMD64, ARCHES, HERE, REPO, Arch, BuildError, Job, Paths, arch_of, require_tools, run, step

SUITE, PYTHON = "trixie", "3.13"
NOT_AT_RUN_TIME = {"setuptools", "pycparser"}
"""In the lock file because something is built with it."""
NO_DRIVERS = [
    "arch/x86/kvm", "virt",
    "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/staging", "drivers/isdn", "drivers/bluetooth",
    "drivers/nfc", "drivers/net/wireless", "drivers/net/can", "drivers/iio", "drivers/comedi", "drivers/video",
    "drivers/scsi", "drivers/target", "drivers/firewire", "drivers/input/touchscreen", "drivers/accel", "sound",
    "drivers/accessibility", "drivers/atm", "drivers/block/drbd", "drivers/md/bcache", "drivers/md/dm-vdo",
    "drivers/message", "drivers/mtd", "drivers/net/wwan", "drivers/nvdimm", "drivers/nvme/target", "drivers/soundwire",
    "drivers/usb/gadget",
    *(f"drivers/net/ethernet/{server}" for server in (
        "brocade", "cavium", "chelsio", "cisco", "emulex", "huawei", "mellanox", "netronome", "pensando", "qlogic",
        "sfc",
    )),
    "net/atm", "net/bluetooth", "net/wireless", "net/mac80211", "net/sctp", "net/dccp", "net/tipc", "net/batman-adv",
    "net/ceph", "net/ieee802154", "net/nfc", "net/openvswitch", "net/rds", "net/rxrpc", "net/smc", "net/sunrpc",
    "fs/btrfs", "fs/xfs", "fs/ocfs2", "fs/gfs2", "fs/f2fs", "fs/ceph", "fs/smb", "fs/nfs", "fs/nfsd", "fs/ntfs3",
    "fs/afs", "fs/dlm", "fs/bcachefs", "fs/hfsplus", "fs/jffs2", "fs/jfs", "fs/nilfs2", "fs/reiserfs", "fs/ubifs",
]  # fmt: skip
KEEP_DRIVERS = {"drivers/scsi": ("scsi_mod", "sd_mod", "scsi_common")}


# Stage 1


def packages(arch: Arch) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (HERE / "packages.txt").read_text().splitlines())
    return [line.format(arch=arch.debian) for line in lines if line]


def base_tree(job: Job) -> Path:
    """The cached tar of Debian's packages."""
    key = hashlib.sha256("\n".join([SUITE, job.arch.debian, *packages(job.arch)]).encode()).hexdigest()[:16]
    base = job.paths.cache / f"base-{job.arch.debian}-{key}.tar"
    if base.exists():
        return base
    new = base.with_suffix(".new.tar")
    excludes = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
                "/usr/share/lintian/*", "/usr/share/bug/*", "/etc/kernel/postinst.d/initramfs-tools")  # fmt: skip
    mirror = os.environ.get("EMS_MIRROR")
    with step("Debian packages (once)", base):
        run(
            job, "mmdebstrap", "--variant=essential", f"--architectures={job.arch.debian}",
            "--skip=essential/unlink,download/empty", f"--include={','.join(packages(job.arch))}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in excludes),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            "--aptopt=Acquire::Retries 5", SUITE, new, *([mirror] if mirror else []),
        )  # fmt: skip
        new.rename(base)
    return base


# Stage 2: the tree


def unpack(job: Job, base: Path) -> None:
    shutil.rmtree(job.paths.work, ignore_errors=True)
    job.paths.tree.mkdir(parents=True)
    run(job, "tar", "-xf", base, "-C", job.paths.tree, "--exclude=./dev/*", "--numeric-owner", "--xattrs")
    for name in ("var/cache/apt", "var/lib/apt", "var/log", "usr/share/doc/python3", "etc/apparmor.d"):
        shutil.rmtree(job.paths.tree / name, ignore_errors=True)
    for path in sorted((job.paths.tree / "usr/share/doc").glob("*/*")):
        if path.name != "copyright":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def restore_apparmor(job: Job, base: Path) -> None:
    """Only tunables and abstractions of Debian's AppArmor: its profiles would all be loaded."""
    run(job, "tar", "-xf", base, "-C", job.paths.tree, "--wildcards", "./etc/apparmor.d/abi*",
        "./etc/apparmor.d/abstractions*", "./etc/apparmor.d/tunables*")  # fmt: skip


def thin_kernel(job: Job) -> str:
    """Removes drivers that no rack controller has; the kernel's version."""
    (modules,) = (job.paths.tree / "usr/lib/modules").iterdir()
    for folder in NO_DRIVERS:
        top = modules / "kernel" / folder
        for path in sorted(top.rglob("*.ko*")) if top.exists() else ():
            if path.name.partition(".")[0] not in KEEP_DRIVERS.get(folder, ()):
                path.unlink()
    chroot(job, "depmod", "-a", modules.name)
    return modules.name


def chroot(job: Job, *command: str) -> None:
    """In the tree, with /proc and a /dev of five nodes, in namespaces of its own."""
    script = (
        'set -e; cd "$0"; mount -t tmpfs tmpfs dev; mkdir dev/shm; ln -s /proc/self/fd dev/fd; '
        "for node in null zero full random urandom; do : > dev/$node; mount --bind /dev/$node dev/$node; done; "
        'mount -t proc proc proc; exec chroot . "$@"'
    )
    run(
        job,
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        script,
        job.paths.tree,
        *command,
    )


def overlay(job: Job) -> None:
    """image/root over the tree, with @NAMES@ replaced."""
    values = {"COMPATIBLE": job.compatible, "BOARD": job.board, "VERSION": job.version}
    for source in sorted((HERE / "root").rglob("*")):
        target = job.paths.tree / source.relative_to(HERE / "root")
        if source.is_symlink():
            target.unlink(missing_ok=True)
            target.symlink_to(os.readlink(source))
        elif source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.name != ".keep":
            target.unlink(missing_ok=True)
            target.write_bytes(_filled(source.read_bytes(), values))
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    (job.paths.tree / "usr/lib/ems/version").write_text(f"{job.version}\n")
    for name in ("flash.py", "install.py"):
        shutil.copyfile(HERE / name, job.paths.tree / "usr/lib/ems" / name)
    shutil.copyfile(authority(job) / "ca.pem", job.paths.tree / "etc/rauc/ca.pem")


def _filled(text: bytes, values: Mapping[str, str]) -> bytes:
    for name, value in values.items():
        text = text.replace(f"@{name}@".encode(), value.encode())
    return text


def wheels(job: Job) -> list[Path]:
    """The locked wheels for the image's Python, by hash, kept in the cache."""
    lock = (REPO / "requirements.lock").read_bytes()
    folder = job.paths.cache / f"wheels-{job.arch.debian}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not folder.is_dir():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        platforms = [f"--platform=manylinux_2_{n}_{job.arch.machine}" for n in (17, 27, 28, 34)]
        with step("wheels (once)"):
            run(
                job, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
                "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms,
                f"--platform=manylinux2014_{job.arch.machine}", f"--dest={new}", "-r", REPO / "requirements.lock",
            )  # fmt: skip
            new.rename(folder)
    return [path for path in sorted(folder.glob("*.whl")) if path.name.partition("-")[0].lower() not in NOT_AT_RUN_TIME]


def site_packages(job: Job) -> Path:
    return job.paths.tree / f"usr/local/lib/python{PYTHON}/dist-packages"


def python_packages(job: Job) -> None:
    """Wheels, then ours, then the commands."""
    site = site_packages(job)
    site.mkdir(parents=True, exist_ok=True)
    for wheel in wheels(job):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [name for name in archive.namelist() if "/tests/" not in name])
    for package in ("firmware", "drivers", "statemachine"):
        shutil.copytree(REPO / package, site / package, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    metadata = site / f"ems_edge-{project['version']}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    for name in ("control", "diag", "tool"):
        command = job.paths.tree / f"usr/bin/ems-{name}"
        command.write_text(
            f"#!/usr/bin/python3 -I\nimport sys\nfrom firmware.ems_{name} import main\nsys.exit(main())\n"
        )
        command.chmod(0o755)
    for path in site.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    modules = [f"firmware.{path.stem}" for path in sorted((REPO / "firmware").glob("*.py")) if path.stem in RUNS]
    chroot(job, "/usr/bin/python3", "-I", "-B", "-c", f"import {', '.join(modules)}")
    libraries = (f"/usr/lib/python{PYTHON}", f"/usr/local/lib/python{PYTHON}")
    chroot(job, "/usr/bin/python3", "-m", "compileall", "-q", "-f", "-j1", "--invalidation-mode=unchecked-hash",
           "-x", "/(idlelib|test|pydoc_data)/", *libraries)  # fmt: skip


RUNS = {"aggregator", "clock", "controller", "ems_control", "ems_diag", "ems_tool", "guard", "historian",
        "safe_outputs", "sampler", "server", "site_setup"}  # fmt: skip


def configure(job: Job) -> None:
    """Users, what is enabled, and the checks that a wrong file fails here and not at a rack."""
    chroot(job, "systemd-sysusers")
    chroot(job, "systemctl", "preset-all")
    for name in ("etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/resolv.conf"):
        (job.paths.tree / name).unlink(missing_ok=True)
    check_rules(job)
    profiles = [f"/etc/apparmor.d/{path.name}" for path in sorted((job.paths.tree / "etc/apparmor.d").glob("ems-*"))]
    chroot(job, "apparmor_parser", "-Q", "-K", *profiles)


def check_rules(job: Job) -> None:
    """`nft -c` of the rules with the factory's site.conf."""
    script = (
        "from pathlib import Path; from firmware.config import Site; from firmware.firewall import rules; "
        "Path('/run/ems-site').mkdir(parents=True); Path('/run/ems-site/site.nft').write_text(rules(Site()))"
    )
    chroot(job, "/usr/bin/python3", "-I", "-B", "-c", script)
    nft = ("nft", "-c", "-f", "/etc/nftables.conf")
    if job.arch.foreign:  # the emulator has no netlink for nft: the host's, with the tree's files
        binds = 'cd "$0"; mount --bind etc /etc; mount --bind run /run; exec "$@"'
        run(job, "unshare", "--mount", "--net", "sh", "-ec", binds, job.paths.tree, *nft)
    else:
        chroot(job, *nft)
    shutil.rmtree(job.paths.tree / "run/ems-site")


def initrd(job: Job, kernel: str) -> None:
    chroot(job, "mkinitramfs", "-o", "/made-initrd", kernel)
    (job.paths.tree / "made-initrd").rename(job.paths.work / "initrd")
    shutil.copyfile(job.paths.tree / f"boot/vmlinuz-{kernel}", job.paths.work / "vmlinuz")
    shutil.rmtree(job.paths.tree / "boot")
    (job.paths.tree / "boot").mkdir()


NOT_IN_THE_IMAGE = (
    "usr/lib/udev/hwdb.*", "usr/lib/*/gconv", "usr/lib/python3*/test", "usr/lib/python3*/pydoc_data",
    "usr/lib/python3*/idlelib", "usr/share/initramfs-tools", "etc/initramfs-tools", "usr/share/zoneinfo",
    "usr/share/bash-completion", "usr/share/zsh", "usr/share/grub/*.pf2", "usr/bin/perl*", "usr/lib/linux-image-*",
    "usr/lib/*/perl-base", "usr/share/perl5", "usr/sbin/grub-*", "usr/bin/grub-[!e]*",
)  # fmt: skip
"""Needed by no process of the appliance; what is in /var is under the data partition's. linux-image-* has device trees,
which UEFI brings itself."""


def clean(job: Job) -> None:
    """What the steps before have left behind, and what only a build needs."""
    tree = job.paths.tree
    for name in (
        "var/cache/ldconfig/aux-cache",
        "etc/.pwd.lock",
        "vmlinuz",
        "vmlinuz.old",
        "initrd.img",
        "initrd.img.old",
    ):
        (tree / name).unlink(missing_ok=True)
    for pattern in NOT_IN_THE_IMAGE:
        for path in sorted(tree.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("tmp", "run", "var"):
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir()
        (tree / name).chmod(0o1777 if name == "tmp" else 0o755)


# What comes with the disk


def authority(job: Job) -> Path:
    """EMS_CA_DIR, or a throw-away authority beside the image."""
    if given := os.environ.get("EMS_CA_DIR"):
        folder = Path(given)
        if lacking := [name for name in CA_FILES if not (folder / name).is_file()]:
            raise BuildError(f"EMS_CA_DIR = {given}: there is no {', '.join(lacking)}; it needs {', '.join(CA_FILES)}")
        return folder
    folder = job.paths.top / "ca"
    if not all((folder / name).is_file() for name in CA_FILES):
        make_authority(job, folder)
    return folder


CA_FILES = ("ca.pem", "signing.pem", "signing.key")


def make_authority(job: Job, folder: Path) -> None:
    """A root and a key that signs bundles. For development: whoever has them can update every box built with them."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(job, "openssl", "req", "-x509", *new_key, "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
        "-days", "7300", "-subj", "/CN=EMS development CA", "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    run(job, "openssl", "req", *new_key, "-keyout", folder / "signing.key", "-out", folder / "signing.csr",
        "-subj", "/CN=EMS development bundles")  # fmt: skip
    extensions = folder / "signing.ext"
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=emailProtection\n"
    )
    run(job, "openssl", "x509", "-req", "-in", folder / "signing.csr", "-CA", folder / "ca.pem", "-CAkey",
        folder / "ca.key", "-CAcreateserial", "-days", "7300", "-extfile", extensions,
        "-out", folder / "signing.pem")  # fmt: skip


def bundle(job: Job, target: Path) -> None:
    """root.img and boot.img as an update, signed."""
    content, ca = job.paths.work / "bundle", authority(job)
    content.mkdir()
    for name in ("root.img", "boot.img"):
        os.link(job.paths.work / name, content / name)
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={job.compatible}\nversion={job.version}\n\n[bundle]\nformat=verity\n\n"
        "[image.rootfs]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n"
    )
    target.unlink(missing_ok=True)
    run(job, "rauc", "bundle", f"--cert={ca / 'signing.pem'}", f"--key={ca / 'signing.key'}", content, target)


def parts(job: Job, target: Path) -> None:
    """CycloneDX: Debian's packages as they are in the tree, and the wheels with their hashes."""
    fields = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"
    listed = run(job, "dpkg-query", f"--admindir={job.paths.tree / 'var/lib/dpkg'}", "-W", f"-f={fields}")
    components: list[dict[str, object]] = []
    for name, version, arch, source in sorted(line.split("\t") for line in listed.splitlines()):
        purl = f"pkg:deb/debian/{name}@{version}?arch={arch}&distro={SUITE}"
        properties = [{"name": "debian:source", "value": source}]
        components.append({"type": "library", "name": name, "version": version, "purl": purl, "properties": properties})
    for wheel in wheels(job):
        name, version = wheel.name.split("-")[:2]
        digest = {"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        components.append({"type": "library", "name": name, "version": version, "purl": purl, "hashes": [digest]})
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.epoch))
    component = {"type": "firmware", "name": job.compatible, "version": job.version}
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid_of(job.version)}", "version": 1,
        "metadata": {"timestamp": made, "component": component},
        "components": components,
    }  # fmt: skip
    target.write_text(json.dumps(document, indent=1) + "\n")


# The whole


def stage2(job: Job, base: Path) -> None:
    """Everything that carries this repository."""
    top, work = job.paths.top, job.paths.work
    os.umask(0o022)
    with step("base tree"):
        unpack(job, base)
        restore_apparmor(job, base)
    with step("kernel modules"):
        kernel = thin_kernel(job)
    with step("our files"):
        overlay(job)
    wheels(job)
    with step("Python packages, compiled"):
        python_packages(job)
    with step("users, units, firewall, profiles"):
        configure(job)
    with step("list of parts", top / "sbom.cdx.json"):
        parts(job, top / "sbom.cdx.json")
    with step("initrd", work / "initrd", work / "vmlinuz"):
        initrd(job, kernel)
    clean(job)
    with step("root and its hash tree", work / "root.img"):
        root_hash, offset = root_image(job)
    with step("boot", work / "boot.img"):
        boot_image(job, root_hash, offset)
    with step("ESP and data"):
        esp_image(job)
        data_image(job)
    with step("disk", top / "disk.img"):
        disk_image(job)


OUTPUTS = ("disk.img", "root.img", "boot.img", "initrd", "sbom.cdx.json")
"""Bit-identical for the same base tree, wheels and commit."""


def digests(job: Job) -> dict[str, str]:
    found = {}
    for name in OUTPUTS:
        path = next(folder / name for folder in (job.paths.top, job.paths.work) if (folder / name).exists())
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def commit(*what: str) -> str:
    try:
        return subprocess.run(["git", "-C", REPO, *what], check=True, capture_output=True, text=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"git {' '.join(what)}: {error.stderr.strip()}; the image's times and version come from git"
        ) from error


def job_of(arch: Arch, board: str) -> Job:
    folder = "image" if arch == AMD64 else f"image-{arch.debian}"
    top = Path(os.environ.get("EMS_IMAGE_DIR") or REPO / "build" / folder).absolute()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or commit("log", "-1", "--format=%ct"))
    dirty = "-dirty" if commit("status", "--porcelain") else ""
    version = f"{time.strftime('%Y%m%d', time.gmtime(epoch))}-{commit('rev-parse', '--short=10', 'HEAD')}{dirty}"
    for name in ("cache", "work"):
        (top / name).mkdir(parents=True, exist_ok=True)
    return Job(arch, board, version, epoch, Paths(top, top / "cache", top / "work"))


def as_root() -> None:
    """Without root the build runs in mmdebstrap's user namespace, which has the ids of /etc/subuid."""
    if os.geteuid():
        os.execvp("mmdebstrap", ["mmdebstrap", "--unshare-helper", sys.executable, *sys.argv])


def build(job: Job) -> None:
    start = time.monotonic()
    print(f"image {job.compatible} {job.version} in {job.paths.top}", flush=True)
    stage2(job, base_tree(job))
    target = job.paths.top / "update.raucb"
    with step("update bundle", target):
        bundle(job, target)
    (job.paths.top / "digests.json").write_text(json.dumps(digests(job), indent=1) + "\n")
    print(f"image: {job.paths.top / 'disk.img'} after {time.monotonic() - start:.0f} s")


def compare(job: Job) -> int:
    """Builds stage 2 again and holds it against the image that is there."""
    before = json.loads((job.paths.top / "digests.json").read_text())
    stage2(job, base_tree(job))
    after = digests(job)
    for name in OUTPUTS:
        print(f"  {name:16} {'identical' if before[name] == after[name] else 'DIFFERS'}  {after[name][:16]}")
    return int(before != after)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the appliance image.")
    parser.add_argument("--arch", default="amd64", help=", ".join(ARCHES))
    parser.add_argument("--board", default="cp2112", help="a board file's name; the update bundle is for it only")
    parser.add_argument("--reproduce", action="store_true", help="stage 2 once more, compared bit by bit")
    args = parser.parse_args()
    try:
        arch = arch_of(args.arch)
        require_tools(arch)
        as_root()
        job = job_of(arch, args.board)
        if args.reproduce:
            return compare(job)
        build(job)
    except BuildError as error:
        print(f"\nimage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
