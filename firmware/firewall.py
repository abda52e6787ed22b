"""The firewall of the appliance: Modbus from `allowed_clients` by `management_interface`, nothing else comes in.

`rules` is the one text: `python -m firmware.firewall` writes it at boot, before the server starts, for the include of
nftables.conf; `ems-tool --lock-telemetry` checks and loads it. It replaces what it names in one transaction and leaves
the counters and other chains of `table inet ems` alone. It fails closed: without a usable site.conf nobody gets in.
An address that is taken off the list loses its open connections too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from .config import ConfigError, Site, config_directory, load_site, values_of
from .store import write_whole

TABLE = "inet ems"
_EVERYBODY = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_WANTED = (
    "allowed_clients", "modbus_plain", "modbus_port", "tls_port",
    "management_interface", "management_address", "management_gateway", "management_mtu",
)  # fmt: skip
_INPUT_HOOK = "{ type filter hook input priority filter; policy drop; }"
_FIRST = ("iif lo accept", "ct state invalid drop")
_INPUT = (
    "tcp dport @modbus_ports ip saddr @clients4 counter name modbus_in accept",
    "tcp dport @modbus_ports ip6 saddr @clients6 counter name modbus_in accept",
    "tcp dport @modbus_ports counter name modbus_dropped drop",
    "ct state established,related accept",
    "ip protocol icmp icmp type { echo-request, destination-unreachable, time-exceeded, parameter-problem } "
    "limit rate 20/second accept",
    "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, packet-too-big } "
    "limit rate 50/second accept",
    "udp sport 67 udp dport 68 accept",
    "counter name dropped_in",
)


def file() -> Path:
    """Where the rules are for nftables.conf: $EMS_FIREWALL_FILE, else /run/ems-firewall/allowed.nft."""
    return Path(os.environ.get("EMS_FIREWALL_FILE", "/run/ems-firewall/allowed.nft"))


def rules(site: Site | None) -> str:
    """For `nft -f`, at boot and afterwards. None: nobody reaches anything. An empty list is everybody, as in the
    server."""
    clients = (site.allowed_clients or _EVERYBODY) if site else ()
    ports = ({site.tls_port} | ({site.modbus_port} if site.modbus_plain else set())) if site else set()
    return "\n".join(
        (
            f"add table {TABLE}",
            *(f"add counter {TABLE} {name}" for name in ("modbus_in", "modbus_dropped", "dropped_in")),
            *_set("modbus_ports", "inet_service", sorted(map(str, ports))),
            *_set("clients4", "ipv4_addr", [str(net) for net in clients if net.version == 4]),
            *_set("clients6", "ipv6_addr", [str(net) for net in clients if net.version == 6]),
            *_chain("input", _INPUT_HOOK, (*_FIRST, *_elsewhere(site), *_INPUT)),
            *_chain("peers", "", (f"{rule} accept" for rule in (_peers(site) if site else ()))),
            *_chain("update_server", "", (f"{rule} accept" for rule in (_update_server(site) if site else ()))),
            "",
        )
    )


def _elsewhere(site: Site | None) -> Iterator[str]:
    """Modbus that comes in by another interface than the management's."""
    if site and site.management_interface != "none":
        yield f'iifname != "{site.management_interface}" tcp dport @modbus_ports counter name modbus_dropped drop'


def _set(name: str, kind: str, elements: list[str]) -> Iterator[str]:
    yield f"add set {TABLE} {name} {{ type {kind}; flags interval; auto-merge; }}"
    yield f"flush set {TABLE} {name}"
    if elements:
        yield f"add element {TABLE} {name} {{ {', '.join(elements)} }}"


def _chain(name: str, hook: str, held: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    yield f"add chain {TABLE} {name} {hook}".rstrip()
    yield f"flush chain {TABLE} {name}"
    yield from (f"add rule {TABLE} {name} {rule}" for rule in held)


def _peers(site: Site) -> Iterator[str]:
    """Whom the aggregator may reach. A peer by name is held to its port only: it is looked up later."""
    for host, port in ((site.bms_host, site.bms_port), (site.pcs_host, site.pcs_port)):
        if host.startswith("/"):
            continue  # a serial line
        try:
            address = ip_address(host)
        except ValueError:
            yield f"tcp dport {port}"
            continue
        yield f"{'ip' if address.version == 4 else 'ip6'} daddr {address} tcp dport {port}"


def _update_server(site: Site) -> Iterator[str]:
    """Whom the update agent may reach: the port of update_url, nothing without one."""
    if site.update_url != "none":
        yield f"tcp dport {urlsplit(site.update_url).port or 443}"


def readable(path: Path) -> Site | None:
    """What a refused site.conf says about who may connect and where; None when that is wrong itself."""
    try:
        lines = (line.partition("#")[0].partition("=") for line in path.read_text("utf-8").splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines if name.strip() in _WANTED}
        site, wrong = values_of(Site, {**found, "bms_host": "/dev/null", "pcs_host": "/dev/null"})
        return None if wrong else site
    except (OSError, ValueError):
        return None


def main() -> int:
    """Writes the rules for nftables.conf. Exit code 0 when they are there, also those that let nobody in."""
    directory = config_directory()
    site: Site | None
    try:
        site = load_site(directory)
    except ConfigError as error:
        site = readable(directory / "site.conf")
        print(f"firewall: {error}", file=sys.stderr)
        print(f"firewall: {'its clients count all the same' if site else 'nobody gets in'}", file=sys.stderr)
    try:
        write_whole(file(), rules(site).encode(), 0o644)
    except OSError as error:
        print(f"firewall: {file()}: {error.strerror}; make its directory writable", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
