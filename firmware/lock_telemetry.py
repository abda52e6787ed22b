"""`ems-tool --lock-telemetry`: the firewall's rules are checked by nft, then loaded, all or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from . import firewall
from .cli import Failed
from .config import ConfigError, Site, config_directory, load_site
from .store import write_whole


def lock(dry_run: bool = False) -> int:
    """`ems-tool --lock-telemetry`: from now on only `allowed_clients` reach the Modbus ports. Raises Failed."""
    path = config_directory() / "site.conf"
    try:
        site = load_site(path.parent)
    except ConfigError as error:
        raise Failed(f"nothing was changed: {str(error).replace('and send SIGHUP again', 'and lock again')}") from error
    if not site.allowed_clients:
        raise Failed(
            f"nothing was changed: {path}: allowed_clients = none lets everybody in; write the site controller's "
            "address, allowed are at most 16 addresses or networks separated by commas, and lock again"
        )
    text = firewall.rules(site)
    if dry_run:
        print(text, end="")
        return 0
    _nft("-c", "-f", "-", text=text)
    _nft("-f", "-", text=text)
    try:
        write_whole(firewall.file(), text.encode(), 0o644)
    except OSError as error:
        raise Failed(
            f"in force, but {firewall.file()} is as before: {error.strerror}; it is written again at boot"
        ) from error
    _say(site, path)
    return 0


def _say(site: Site, path: Path) -> None:
    ports = [f"{site.modbus_port} (plain)"] if site.modbus_plain else []
    by = "" if site.management_interface == "none" else f" by {site.management_interface}"
    print(f"in force: TCP {', '.join([*ports, f'{site.tls_port} (TLS)'])}{by} from", *map(str, site.allowed_clients))
    print("everything else that comes in is dropped and counted. The kernel has:")
    print(_nft("list", "table", *firewall.TABLE.split(), so_far="in force, but not shown"), end="")
    print(f"The server itself goes by {path} from its next SIGHUP or start on.")


def _nft(*arguments: str, text: str = "", so_far: str = "nothing was changed") -> str:
    """What it printed. Raises Failed."""
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Failed(f"{so_far}: there is no nft here; lock on the appliance itself (Debian: nftables)")
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    if not done.returncode:
        return done.stdout
    said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
    if "Operation not permitted" in done.stderr:
        raise Failed(f"{so_far}: nft needs the right CAP_NET_ADMIN; run it as root on the appliance")
    raise Failed(f"{so_far}: nft refuses the rules: {said}")
