"""The management interface of site.conf: what is refused, and what systemd-networkd is given."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from firmware import config, network
from firmware.config import ConfigError, Site

_NEVER = {"LLMNR": "no", "MulticastDNS": "no"}


def site(**values: object) -> Site:
    made, wrong = config.values_of(Site, {name: str(value) for name, value in values.items()})
    assert not wrong
    return made


def sections(text: str) -> dict[str, dict[str, str]]:
    parser = ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def test_without_a_management_interface_the_images_dhcp_stays() -> None:
    assert network.files(site()) == {}


def test_an_interface_gets_its_address_gateway_and_frame_size() -> None:
    made = network.files(
        site(
            management_interface="eth1", management_address="10.0.0.5/24", management_gateway="10.0.0.1",
            management_mtu=9000,
        )
    )  # fmt: skip
    assert made.keys() == {"50-management.network"}
    assert sections(made["50-management.network"]) == {
        "Match": {"Name": "eth1"},
        "Link": {"MTUBytes": "9000"},
        "Network": {
            **_NEVER, "Address": "10.0.0.5/24", "Gateway": "10.0.0.1", "LinkLocalAddressing": "no",
            "IPv6AcceptRA": "no",
        },
    }  # fmt: skip


def test_a_vlan_is_made_on_its_wire_which_has_dhcp_as_every_other() -> None:
    made = {name: sections(text) for name, text in network.files(site(management_interface="eth1.20")).items()}
    dhcp = {**_NEVER, "DHCP": "yes", "LinkLocalAddressing": "ipv6", "IPv6AcceptRA": "yes"}
    lease, mtu = {"UseHostname": "no", "UseNTP": "no"}, {"MTUBytes": "1500"}
    assert made == {
        "50-management.netdev": {"NetDev": {"Name": "eth1.20", "Kind": "vlan", **mtu}, "VLAN": {"Id": "20"}},
        "50-management.network": {"Match": {"Name": "eth1.20"}, "Link": mtu, "Network": dhcp, "DHCPv4": lease},
        "50-wire.network": {
            "Match": {"Name": "eth1"}, "Link": mtu, "Network": {**dhcp, "VLAN": "eth1.20"}, "DHCPv4": lease,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", ["eth0", "enp0s31f6", "eth0.1", "eth0.4094", "enx001122334455"])
def test_names_of_interfaces_and_vlans_are_taken(name: str) -> None:
    assert site(management_interface=name).management_interface == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("management_interface", 'eth0" accept'), ("management_interface", "eth0.0"),
        ("management_interface", "eth0.4095"), ("management_interface", "eth0.020"), ("management_interface", "0eth"),
        ("management_interface", "enx0011223344556"), ("management_interface", "eth*"),
        ("management_address", "10.0.0.5"), ("management_address", "10.0.0.500/24"),
        ("management_address", "10.0.0.5/33"),
        ("management_gateway", "10.0.0.0/24"), ("management_gateway", "router"),
        ("management_mtu", "1279"), ("management_mtu", "9001"),
    ],
)  # fmt: skip
def test_what_no_kernel_would_take_is_refused(name: str, value: str) -> None:
    assert config.values_of(Site, {name: value})[1] == [name]


@pytest.mark.parametrize(
    ("address", "said"),
    [("dhcp", "allowed none, management_address = dhcp brings its own"), ("10.0.1.5/24", "an address in 10.0.1.0/24")],
)
def test_a_gateway_that_could_not_be_reached_is_refused(tmp_path: Path, address: str, said: str) -> None:
    config.prepare(tmp_path, {"management_gateway": "10.0.0.1", "management_address": address})
    with pytest.raises(ConfigError, match=rf"site\.conf:\d+: management_gateway = 10\.0\.0\.1: .*{said}"):
        config.load(tmp_path)
    config.prepare(tmp_path, {"management_gateway": "10.0.0.1", "management_address": "10.0.0.5/24"})
    assert config.load(tmp_path).site.management_address == "10.0.0.5/24"
