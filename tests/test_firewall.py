"""The site's part of the firewall, as text and to the kernel's own compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firmware.config import Site
from firmware.firewall import readable, rules

RULES = Path(__file__).parents[1] / "image" / "root" / "etc" / "nftables.conf"


def site(**values: object) -> Site:
    return Site.model_validate(values)


def elements(text: str, name: str) -> set[str]:
    found = re.search(rf"set {name} {{[^}}]*elements = {{([^}}]*)}}", text)
    return {part.strip() for part in found[1].split(",")} if found else set()


def test_only_the_allowed_clients_reach_the_two_ports() -> None:
    text = rules(site(allowed_clients="192.168.10.5, 10.1.0.0/16, fd00::/8"))
    assert elements(text, "clients4") == {"192.168.10.5/32", "10.1.0.0/16"}
    assert elements(text, "clients6") == {"fd00::/8"}
    assert elements(text, "modbus_ports") == {"502", "802"}


def test_none_is_everybody_as_in_the_server() -> None:
    text = rules(site())
    assert elements(text, "clients4") == {"0.0.0.0/0"}
    assert elements(text, "clients6") == {"::/0"}


def test_a_list_of_ipv4_addresses_lets_nobody_in_by_ipv6() -> None:
    assert elements(rules(site(allowed_clients="192.168.10.5")), "clients6") == set()


def test_without_plain_modbus_only_the_secure_port_is_reachable() -> None:
    assert elements(rules(site(modbus_plain="no", tls_port=8802)), "modbus_ports") == {"8802"}


def test_the_aggregator_reaches_its_peers_at_their_ports_only() -> None:
    text = rules(site(bms_host="192.168.10.50", bms_port=1502, pcs_host="fd00::60", pcs_port=502))
    assert "ip daddr 192.168.10.50 tcp dport 1502 accept" in text
    assert "ip6 daddr fd00::60 tcp dport 502 accept" in text
    assert text.count("accept") == 2


def test_a_peer_by_name_is_held_to_its_port_and_a_serial_line_needs_no_rule() -> None:
    text = rules(site(bms_host="bms.local", bms_port=1502, pcs_host="/dev/ttyS1"))
    assert [line.strip() for line in text.splitlines() if "accept" in line] == ["tcp dport 1502 accept"]


def test_without_a_site_nobody_gets_in_and_nothing_gets_out() -> None:
    text = rules(None)
    assert "elements" not in text
    assert "accept" not in text


def test_of_a_refused_file_the_clients_still_count(tmp_path: Path) -> None:
    path = tmp_path / "site.conf"
    path.write_text("bms_hots = 1.2.3.4\nallowed_clients = 192.168.10.5  # the site controller\nstrings = many\n")
    found = readable(path)
    assert found is not None
    assert elements(rules(found), "clients4") == {"192.168.10.5/32"}
    assert "accept" not in rules(found)


@pytest.mark.parametrize("text", ["allowed_clients = 192.168.10.500\n", "modbus_port = 0\n", "allowed_clients =\n"])
def test_of_a_file_that_is_wrong_there_nothing_counts(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.conf").write_text(text)
    assert readable(tmp_path / "site.conf") is None
    assert readable(tmp_path / "none.conf") is None


@pytest.mark.skipif(not shutil.which("nft") and not Path("/usr/sbin/nft").exists(), reason="no nft here")
@pytest.mark.parametrize("given", [site(), site(allowed_clients="10.0.0.1, 10.0.0.0/8, ::1"), None])
def test_the_whole_rule_set_compiles(tmp_path: Path, given: Site | None) -> None:
    (tmp_path / "site.nft").write_text(rules(given))
    text = RULES.read_text().replace("/run/ems-site", str(tmp_path))
    text = re.sub(r"skuid [a-z_-]+", "skuid 1", text)
    command = ["unshare", "--net", "--map-root-user", "/usr/sbin/nft", "-c", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if "unshare" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
