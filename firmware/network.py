"""systemd-networkd's files for what site.conf says of the management interface.

A wire that neither these nor a file of the folder network/ match has DHCP, as the image has it (zz-ems.network). The
first file name in the alphabet counts: network/ can overrule these with a name below 50.
"""

from __future__ import annotations

from .config import DHCP, Site

_DHCP = "DHCP=yes\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=yes\n"
_STATIC = "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
_LEASE = "\n[DHCPv4]\nUseHostname=no\nUseNTP=no\n"


def files(site: Site) -> dict[str, str]:
    """Name and content; nothing without a management_interface. A VLAN's wire has the VLAN's MTU, and DHCP."""
    interface, mtu = site.management_interface, f"\n[Link]\nMTUBytes={site.management_mtu}\n"
    if interface == "none":
        return {}
    made = {"50-management.network": f"[Match]\nName={interface}\n{mtu}{_addresses(site)}"}
    wire, _, number = interface.partition(".")
    if number:
        made["50-management.netdev"] = (
            f"[NetDev]\nName={interface}\nKind=vlan\nMTUBytes={site.management_mtu}\n\n[VLAN]\nId={number}\n"
        )
        made["50-wire.network"] = f"[Match]\nName={wire}\n{mtu}{_network(f'VLAN={interface}', _DHCP)}{_LEASE}"
    return made


def _network(*lines: str) -> str:
    return "\n[Network]\nLLMNR=no\nMulticastDNS=no\n" + "".join(f"{line.rstrip()}\n" for line in lines)


def _addresses(site: Site) -> str:
    if site.management_address == DHCP:
        return _network(_DHCP) + _LEASE
    gateway = [] if site.management_gateway == "none" else [f"Gateway={site.management_gateway}"]
    return _network(f"Address={site.management_address}", *gateway, _STATIC)
