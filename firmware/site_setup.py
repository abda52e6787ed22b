"""`python -m firmware.site_setup`: before anything listens, the site's files are put where they are read.

A folder `ems-seed` on the EFI partition (limits.conf, balance.conf, site.conf, tls/, network/) is what the technician
who flashed the disk has to say. It is taken whole, once, or refused whole and left there. What is missing is the
factory's. Then the firewall's sets, the time servers and the network files are written to /run, and the machine id is
kept in the boot loader's environment, so that the journal of every boot is in one place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from . import rauc
from .config import FILES, ConfigError, Site, config_directory, load, load_site
from .firewall import readable, rules
from .network import files as network_files

EFI = Path("/efi")
SEED = "ems-seed"
GRUBENV = "EFI/ems/grubenv"
SITE_RUN = Path("/run/ems-site")
NETWORK_RUN = Path("/run/systemd/network")
FOLDERS = {"tls": (".pem", ".crt", ".key"), "network": (".network", ".netdev", ".link")}
"""Folders of a seed and of the configuration, and what they may hold."""


class SeedError(Exception):
    """A seed that cannot be taken; one line an error."""


def take_seed(seed: Path, directory: Path) -> list[Path]:
    """Copies the seed over the configuration and removes it; the files that were written. Raises SeedError."""
    if not seed.is_dir():
        return []
    with tempfile.TemporaryDirectory(dir=directory, prefix=".seed-") as name:
        trial = Path(name)
        for path in _files(directory):
            _copy(path, trial / path.relative_to(directory))
        brought = [path.relative_to(seed) for path in _files(seed)]
        if unknown := sorted(str(p.relative_to(seed)) for p in seed.rglob("*") if p.is_file()
                             and p.relative_to(seed) not in brought):  # fmt: skip
            raise SeedError(f"{', '.join(unknown)}: allowed are {', '.join(FILES)} and the folders tls and network")
        for path in brought:
            _copy(seed / path, trial / path)
        _factory(trial)
        try:
            load(trial)
        except ConfigError as error:
            raise SeedError(str(error).replace(f"{trial}/", f"{seed}/")) from error
        for path in brought:
            _place((trial / path).read_bytes(), directory / path)
    shutil.rmtree(seed)
    return brought


def _files(directory: Path) -> list[Path]:
    found = [directory / name for name in FILES]
    for folder, endings in FOLDERS.items():
        found += sorted(path for path in (directory / folder).glob("*") if path.suffix in endings)
    return [path for path in found if path.is_file()]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def _place(content: bytes, path: Path) -> None:
    """Whole or not at all, readable for the group ems only."""
    group = path.parent.stat().st_gid if path.parent.is_dir() else path.parent.parent.stat().st_gid
    if not path.parent.is_dir():
        path.parent.mkdir(0o750)
        os.chown(path.parent, -1, group)
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with open(fd, "wb") as file:
        file.write(content)
        os.fchown(fd, -1, group)
        os.fchmod(fd, 0o640)
        file.flush()
        os.fsync(fd)
    os.replace(new, path)
    parent = os.open(path.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def _factory(directory: Path) -> list[str]:
    """The files that were missing."""
    absent = [name for name in FILES if not (directory / name).exists()]
    for name in absent:
        _place((files("firmware") / "defaults" / name).read_bytes(), directory / name)
    return absent


def site_of(directory: Path) -> Site | None:
    """For the firewall: site.conf, or of a refused one what it says about clients."""
    try:
        return load_site(directory)
    except ConfigError as error:
        _say(f"site.conf refused; no peer may be reached: {error}")
        return readable(directory / "site.conf")


def write_run(site: Site | None, directory: Path, run: Path, network: Path) -> None:
    """The firewall's include, chrony's servers, the core of the scan, the network files."""
    (run / "chrony").mkdir(parents=True, exist_ok=True)
    (run / "site.nft").write_text(rules(site))
    (run / "environment").write_text(f"EMS_RT_CORE={site.rt_core if site else -1}\n")
    servers = "".join(f"server {host} iburst\n" for host in (site.ntp_servers if site else ()))
    (run / "chrony" / "site.sources").write_text(servers)
    shutil.rmtree(network, ignore_errors=True)
    network.mkdir(parents=True)
    for name, text in network_files(site).items() if site else ():
        (network / name).write_text(text)
    for path in _files(directory):
        if path.parent.name == "network":
            shutil.copyfile(path, network / path.name)


def keep_environment(grubenv: Path, booted: str, machine_id: Path = Path("/etc/machine-id")) -> None:
    """GRUB's environment is made anew when it was lost; the id of its first boot is given to the kernel in later ones.

    `booted`: the slot that runs, A or B. The other one stays what comes next: nobody knows any more that it was bad.
    Raises OSError or CalledProcessError.
    """
    if not grubenv.parent.is_dir():
        return
    listed = subprocess.run(["grub-editenv", grubenv, "list"], capture_output=True, text=True, check=False)
    if listed.returncode or "ORDER=" not in listed.stdout:
        _say("the boot loader's environment was lost and is made anew")
        order = {"A": "A B", "B": "B A"}[booted]
        grubenv.unlink(missing_ok=True)
        subprocess.run(["grub-editenv", grubenv, "create"], check=True)
        _set(grubenv, f"ORDER={order}", "A_OK=1", "B_OK=1", "A_TRY=0", "B_TRY=0")
    if listed.returncode or "machine_id=" not in listed.stdout:
        _set(grubenv, f"machine_id={machine_id.read_text().strip()}")


def _set(grubenv: Path, *values: str) -> None:
    subprocess.run(["grub-editenv", grubenv, "set", *values], check=True)


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"site: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Always 0 once the firewall's include is written: a bad file must not keep the rest down."""
    directory = config_directory()
    try:
        if taken := take_seed(EFI / SEED, directory):
            _say(f"seed taken: {', '.join(map(str, taken))}")
    except (SeedError, OSError) as error:
        _say(f"seed refused, {EFI / SEED} is left as it is:\n{error}")
    with contextlib.suppress(OSError):
        if absent := _factory(directory):
            _say(f"factory configuration: {', '.join(absent)}")
    write_run(site_of(directory), directory, SITE_RUN, NETWORK_RUN)
    try:
        keep_environment(EFI / GRUBENV, "?AB"[rauc.booted(Path("/proc/cmdline").read_text("utf-8"))])
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        _say(f"the boot loader's environment is as it was: {error!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
