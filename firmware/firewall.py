"""The site's part of the firewall: who may reach the Modbus ports, and whom the aggregator may reach.

The rules around it are in the image (/etc/nftables.conf). It fails closed: without a usable site.conf the sets are
those of the few lines that can be read, or empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

from .config import Site

_EVERYBODY = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_WANTED = ("allowed_clients", "modbus_plain", "modbus_port", "tls_port")


def rules(site: Site | None) -> str:
    """The include for /etc/nftables.conf, inside its table. None: nobody reaches anything."""
    clients = (site.allowed_clients or _EVERYBODY) if site else ()
    ports = ({site.tls_port} | ({site.modbus_port} if site.modbus_plain else set())) if site else set()
    return "\n".join(
        (
            _set("modbus_ports", "inet_service", sorted(map(str, ports))),
            _set("clients4", "ipv4_addr", [str(net) for net in clients if net.version == 4]),
            _set("clients6", "ipv6_addr", [str(net) for net in clients if net.version == 6]),
            "chain peers {",
            *(f"    {rule} accept" for rule in (_peers(site) if site else ())),
            "}\n",
        )
    )


def _set(name: str, kind: str, elements: list[str]) -> str:
    held = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"set {name} {{ type {kind}; flags interval; auto-merge;{held} }}"


def _peers(site: Site) -> Iterator[str]:
    """A peer by name is held to its port only: the name is looked up later, by the aggregator."""
    for host, port in ((site.bms_host, site.bms_port), (site.pcs_host, site.pcs_port)):
        if host.startswith("/"):
            continue  # a serial line
        try:
            address = ip_address(host)
        except ValueError:
            yield f"tcp dport {port}"
            continue
        yield f"{'ip' if address.version == 4 else 'ip6'} daddr {address} tcp dport {port}"


def readable(path: Path) -> Site | None:
    """What a refused site.conf says about who may connect, peers left out; None when that is wrong itself."""
    try:
        lines = (line.partition("#")[0].partition("=") for line in path.read_text("utf-8").splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines if name.strip() in _WANTED}
        return Site.model_validate({**found, "bms_host": "/dev/null", "pcs_host": "/dev/null"})
    except (OSError, ValueError):
        return None
