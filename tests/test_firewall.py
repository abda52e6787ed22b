"""The firewall's text, what boots with it, `ems-tool --lock-telemetry`, and real packets through it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware import config, ems_tool, firewall
from firmware.config import Site
from firmware.firewall import readable, rules

ALLOWED, DENIED, SERVER = "10.9.8.10", "10.9.8.66", "10.9.8.1"
NFT = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def site(**values: object) -> Site:
    made, wrong = config.values_of(Site, {name: str(value) for name, value in values.items()})
    assert not wrong
    return made


def elements(text: str, name: str) -> set[str]:
    found = re.search(rf"^add element inet ems {name} {{ (.*) }}$", text, re.M)
    return set(found[1].split(", ")) if found else set()


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration; the rules go to run/allowed.nft beside it."""
    monkeypatch.setenv("EMS_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("EMS_FIREWALL_FILE", str(tmp_path / "run" / "allowed.nft"))
    config.prepare(tmp_path / "etc", {})
    return tmp_path / "etc"


def allow(etc: Path, clients: str) -> None:
    path = etc / "site.conf"
    path.write_text(path.read_text().replace("allowed_clients = none", f"allowed_clients = {clients}"))


# the text


def test_only_the_allowed_clients_reach_the_two_ports() -> None:
    text = rules(site(allowed_clients="192.168.10.5, 10.1.0.0/16, fd00::/8"))
    assert elements(text, "clients4") == {"192.168.10.5/32", "10.1.0.0/16"}
    assert elements(text, "clients6") == {"fd00::/8"}
    assert elements(text, "modbus_ports") == {"502", "802"}
    assert "policy drop" in text


def test_none_is_everybody_as_in_the_server() -> None:
    text = rules(site())
    assert (elements(text, "clients4"), elements(text, "clients6")) == ({"0.0.0.0/0"}, {"::/0"})


def test_a_list_of_ipv4_addresses_lets_nobody_in_by_ipv6() -> None:
    assert elements(rules(site(allowed_clients="192.168.10.5")), "clients6") == set()


def test_without_plain_modbus_only_the_secure_port_is_reachable() -> None:
    assert elements(rules(site(modbus_plain="no", tls_port=8802)), "modbus_ports") == {"8802"}


@pytest.mark.parametrize("name", ["eth0", "eth0.20"])
def test_by_another_interface_than_the_managements_no_client_gets_in(name: str) -> None:
    input_ = [line for line in rules(site(management_interface=name)).splitlines() if "inet ems input" in line]
    drop = f'add rule inet ems input iifname != "{name}" tcp dport @modbus_ports counter name modbus_dropped drop'
    assert input_.index(drop) < next(at for at, line in enumerate(input_) if "@clients4" in line)
    assert "iifname" not in rules(site())


def test_the_aggregator_reaches_its_peers_at_their_ports_only() -> None:
    text = rules(site(bms_host="192.168.10.50", bms_port=1502, pcs_host="fd00::60", pcs_port=502))
    assert "peers ip daddr 192.168.10.50 tcp dport 1502 accept" in text
    assert "peers ip6 daddr fd00::60 tcp dport 502 accept" in text


def test_a_peer_by_name_is_held_to_its_port_and_a_serial_line_needs_no_rule() -> None:
    text = rules(site(bms_host="bms.local", bms_port=1502, pcs_host="/dev/ttyS1"))
    assert [line for line in text.splitlines() if " peers " in line and "accept" in line] == [
        "add rule inet ems peers tcp dport 1502 accept"
    ]


def test_without_a_site_nobody_gets_in() -> None:
    assert "add element" not in rules(None)
    assert "add rule inet ems peers" not in rules(None)


# at boot


def boot(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, rules, what was said."""
    code = firewall.main()
    return code, firewall.file().read_text(), capsys.readouterr().err


def test_at_boot_the_file_is_written(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(etc, "192.168.10.5")
    code, text, said = boot(capsys)
    assert (code, elements(text, "clients4"), said) == (0, {"192.168.10.5/32"}, "")


def test_of_a_refused_file_the_clients_still_count(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "site.conf").write_text("bms_hots = 1.2.3.4\nallowed_clients = 192.168.10.5  # us\nstrings = many\n")
    code, text, said = boot(capsys)
    assert (code, elements(text, "clients4")) == (0, {"192.168.10.5/32"})
    assert "its clients count all the same" in said


@pytest.mark.parametrize(
    "text",
    [
        "allowed_clients = 192.168.10.500\n",
        "management_interface = eth0.4095\n",
        "modbus_port = 0\n",
        "allowed_clients =\n",
    ],
)
def test_of_a_file_that_is_wrong_there_nobody_gets_in(etc: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "site.conf").write_text(text)
    assert readable(etc / "site.conf") is None
    code, written, said = boot(capsys)
    assert (code, written) == (0, rules(None))
    assert "nobody gets in" in said
    assert readable(etc / "none.conf") is None


def test_a_directory_that_cannot_be_written_fails_the_boot(
    etc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMS_FIREWALL_FILE", str(etc / "site.conf" / "allowed.nft"))
    assert firewall.main() == 1
    assert "make its directory writable" in capsys.readouterr().err


def test_the_boot_needs_no_modbus_client() -> None:
    code = "import sys, firmware.firewall; sys.exit(bool({'pymodbus', 'cryptography', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# the tool


def test_a_list_of_nobody_is_refused_with_the_next_step(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ems_tool.main(["--lock-telemetry"]) == 1
    said = capsys.readouterr().err
    assert "allowed_clients = none lets everybody in; write the site controller's address" in said
    assert said.count("\n") == 1
    assert not firewall.file().exists()


def test_a_wrong_address_is_refused(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(etc, "10.0.0.300")
    assert ems_tool.main(["--lock-telemetry"]) == 1
    said = capsys.readouterr().err
    assert "allowed_clients = 10.0.0.300: allowed at most 16 addresses or networks" in said
    assert "and lock again" in said


def test_a_dry_run_prints_the_rules_and_changes_nothing(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(etc, "10.0.0.3")
    assert ems_tool.main(["--lock-telemetry", "--dry-run"]) == 0
    assert capsys.readouterr().out == rules(site(allowed_clients="10.0.0.3"))
    assert not firewall.file().exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "there is no nft here; lock on the appliance itself"),
        ("echo 'Operation not permitted' >&2; exit 1", "nft needs the right CAP_NET_ADMIN; run it as root"),
        ("echo 'Error: syntax' >&2; exit 1", "nothing was changed: nft refuses the rules: Error: syntax"),
    ],
)
def test_without_nft_or_rights_or_with_rules_that_it_refuses_the_tool_says_so(
    etc: Path, script: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(etc, "10.0.0.3")
    fake = etc / "nft"
    if script:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path="": str(fake) if script else None)
    assert ems_tool.main(["--lock-telemetry"]) == 1
    assert said in capsys.readouterr().err
    assert not firewall.file().exists()


# real packets

CLIENT = """
import socket, sys
for address in sys.argv[1:]:
    with socket.socket() as s:
        s.settimeout(1.0)
        s.bind((address, 0))
        try:
            s.connect(("10.9.8.1", 502))
            print(address, s.recv(9).decode())
        except OSError:
            print(address, "nothing")
"""
LISTENER = """
import socket
listener = socket.create_server(("0.0.0.0", 502))
print("listening", flush=True)
kept = []
while True:
    made, _ = listener.accept()
    made.sendall(b"appliance")
    kept.append(made)
"""


class Net:
    """Two network namespaces on one wire: the appliance's and that of its clients."""

    def __init__(self, name: str) -> None:
        self.here, self.there = f"{name}a", f"{name}c"

    def run(self, *command: str, inside: str = "") -> subprocess.CompletedProcess[str]:
        prefix = ("ip", "netns", "exec", inside) if inside else ()
        return subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)

    def up(self) -> str:
        """Not empty: why there is none here."""
        for line in (
            f"netns add {self.here}", f"netns add {self.there}",
            f"link add va netns {self.here} type veth peer name vc netns {self.there}",
            f"-n {self.here} link set lo up", f"-n {self.here} link set va up", f"-n {self.there} link set vc up",
            f"-n {self.here} addr add {SERVER}/24 dev va",
            f"-n {self.there} addr add {ALLOWED}/24 dev vc", f"-n {self.there} addr add {DENIED}/24 dev vc",
        ):  # fmt: skip
            done = self.run("ip", *line.split())
            if done.returncode:
                return f"ip {line}: {done.stderr.strip()}"
        return self.run("nft", "list", "ruleset", inside=self.here).stderr.strip()

    def down(self) -> None:
        for name in (self.here, self.there):
            self.run("ip", "netns", "del", name)

    def ask(self, *addresses: str) -> list[str]:
        """What each address hears on port 502."""
        done = self.run(sys.executable, "-c", CLIENT, *addresses, inside=self.there)
        return [line.partition(" ")[2] for line in done.stdout.splitlines()]

    def counted(self, name: str) -> int:
        listed = self.run("nft", "list", "counter", "inet", "ems", name, inside=self.here).stdout
        return int(re.findall(r"packets (\d+)", listed)[0])


@pytest.fixture
def net() -> Iterator[Net]:
    if os.geteuid() or not NFT or not shutil.which("ip"):
        pytest.skip("needs root, nft and ip")
    made = Net(f"ems{os.getpid()}")
    try:
        if why := made.up():
            pytest.skip(f"no network namespace with nft here: {why}")
        yield made
    finally:
        made.down()


@pytest.fixture
def listening(net: Net) -> Iterator[Net]:
    server = subprocess.Popen(
        ["ip", "netns", "exec", net.here, sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    yield net
    server.kill()
    server.communicate()


def lock(net: Net) -> subprocess.CompletedProcess[str]:
    return net.run(sys.executable, "-m", "firmware.ems_tool", "--lock-telemetry", inside=net.here)


def test_an_allowed_address_connects_and_a_denied_one_is_dropped_and_counted(listening: Net, etc: Path) -> None:
    net = listening
    assert net.ask(ALLOWED, DENIED) == ["appliance", "appliance"]
    allow(etc, ALLOWED)
    done = lock(net)
    assert done.returncode == 0, done.stderr
    assert f"in force: TCP 502 (plain), 802 (TLS) from {ALLOWED}/32" in done.stdout
    assert "table inet ems" in done.stdout
    assert firewall.file().read_text() == rules(site(allowed_clients=ALLOWED))
    assert net.ask(ALLOWED, DENIED) == ["appliance", "nothing"]
    assert net.counted("modbus_in") > 0
    assert net.counted("modbus_dropped") > 0


def test_an_allowed_address_on_another_interface_than_the_managements_is_dropped(listening: Net, etc: Path) -> None:
    net = listening
    allow(etc, ALLOWED)
    for name, heard in (("vb", "nothing"), ("va", "appliance"), ("va.20", "nothing")):
        path = etc / "site.conf"
        path.write_text(re.sub("management_interface = .*", f"management_interface = {name}", path.read_text()))
        done = lock(net)
        assert done.returncode == 0, done.stderr
        assert f"802 (TLS) by {name} from {ALLOWED}/32" in done.stdout
        assert net.ask(ALLOWED) == [heard], name


def test_a_new_list_takes_the_place_of_the_old_one_and_keeps_counters_and_other_chains(
    listening: Net, etc: Path
) -> None:
    net = listening
    net.run("nft", "add table inet ems; add chain inet ems output { type filter hook output priority 0; }",
            inside=net.here)  # fmt: skip
    allow(etc, ALLOWED)
    lock(net)
    net.ask(DENIED)
    dropped = net.counted("modbus_dropped")
    allow_again = (etc / "site.conf").read_text().replace(ALLOWED, DENIED)
    (etc / "site.conf").write_text(allow_again)
    assert lock(net).returncode == 0
    assert net.counted("modbus_dropped") >= dropped > 0
    assert net.ask(ALLOWED, DENIED) == ["nothing", "appliance"]
    assert "chain output" in net.run("nft", "list", "table", "inet", "ems", inside=net.here).stdout


def test_whoever_is_taken_off_the_list_loses_the_open_connection(listening: Net, etc: Path) -> None:
    net = listening
    allow(etc, f"{ALLOWED}, {DENIED}")
    assert lock(net).returncode == 0
    code = (
        "import socket, sys; s = socket.socket(); s.bind((sys.argv[1], 0)); s.connect(('10.9.8.1', 502)); s.recv(9); "
        "print('in', flush=True); sys.stdin.readline(); s.settimeout(2); s.sendall(b'x'); print('sent', flush=True); "
        "sys.stdin.readline()"
    )
    client = subprocess.Popen(
        ["ip", "netns", "exec", net.there, sys.executable, "-c", code, DENIED],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "in\n"
        (etc / "site.conf").write_text((etc / "site.conf").read_text().replace(f", {DENIED}", ""))
        assert lock(net).returncode == 0
        before = net.counted("modbus_dropped")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "sent\n"
        assert net.counted("modbus_dropped") > before
    finally:
        client.kill()
        client.communicate()


def test_ping_and_the_unit_itself_get_in_and_no_other_port_does(net: Net, etc: Path) -> None:
    allow(etc, ALLOWED)
    assert lock(net).returncode == 0
    if shutil.which("ping"):
        assert net.run("ping", "-c", "1", "-W", "2", SERVER, inside=net.there).returncode == 0
    other = "import socket; s = socket.socket(); s.settimeout(1); print(s.connect_ex(('10.9.8.1', 22)))"
    assert net.run(sys.executable, "-c", other, inside=net.there).stdout.strip() == "11", "dropped, not refused"
    assert net.counted("dropped_in") > 0
    local = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 22)))"
    assert net.run(sys.executable, "-c", local, inside=net.here).stdout.strip() == "111", "refused by the unit itself"


@pytest.mark.parametrize(
    "given",
    [site(), site(allowed_clients="10.0.0.1, 10.0.0.0/8, ::1, fd00::/8"), site(bms_host="fd00::1"), None],
    ids=["everybody", "nested", "ipv6 peer", "nobody"],
)
def test_every_text_loads_twice(net: Net, given: Site | None, tmp_path: Path) -> None:
    path = tmp_path / "rules.nft"
    path.write_text(rules(given))
    for _ in range(2):
        for option in ("-c", "-f"):
            words = ("nft", "-c", "-f", str(path)) if option == "-c" else ("nft", "-f", str(path))
            done = net.run(*words, inside=net.here)
            assert not done.returncode, done.stderr


def test_other_chains_of_the_table_stand_around_it_and_hold_the_aggregator_to_its_peers(
    net: Net, etc: Path, tmp_path: Path
) -> None:
    allow(etc, ALLOWED)
    firewall.main()
    around = tmp_path / "nftables.conf"
    around.write_text(
        f"""flush ruleset
include "{firewall.file()}"
table inet ems {{
    chain output {{
        type filter hook output priority filter; policy drop;
        oif lo accept
        ct state established,related accept
        meta skuid 4711 jump peers
    }}
}}
"""
    )
    for _ in range(2):
        done = net.run("nft", "-f", str(around), inside=net.here)
        assert not done.returncode, done.stderr
    held = net.run("nft", "list", "table", "inet", "ems", inside=net.here).stdout
    assert "jump peers" in held
    assert "ip daddr 192.168.10.50 tcp dport 502 accept" in held


def test_the_update_agent_reaches_the_port_of_its_server_only() -> None:
    chain = "add rule inet ems update_server"
    assert chain not in rules(site())
    given = site(update_url="https://updates.example:8443/ems", update_hosts="updates.example")
    assert f"{chain} tcp dport 8443 accept" in rules(given)
    given = site(update_url="https://updates.example/ems", update_hosts="updates.example")
    assert f"{chain} tcp dport 443 accept" in rules(given)


@pytest.mark.skipif(NFT is None, reason="no nft here (Debian: apt install nftables)")
@pytest.mark.parametrize("given", [site(), site(allowed_clients="10.0.0.1, 10.0.0.0/8, ::1"), None])
def test_the_whole_rule_set_of_the_image_compiles(tmp_path: Path, given: Site | None) -> None:
    (tmp_path / "site.nft").write_text(rules(given))
    text = (Path(__file__).parents[1] / "image/root/etc/nftables.conf").read_text()
    text = re.sub(r"skuid [a-z_-]+", "skuid 1", text.replace("/run/ems-site", str(tmp_path)))
    command = ["unshare", "--net", "--map-root-user", str(NFT), "-c", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if "unshare" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert not done.returncode, done.stderr
