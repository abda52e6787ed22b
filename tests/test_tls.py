"""Modbus/TCP Security on a real socket with SunSpec's own test certificates: who gets in, and what each role may do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sunspec2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fake_appliance import FakeAppliance
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP
from waiting import wait_until

from drivers.modbus.adu import frame
from drivers.modbus.tls import TlsError, role, server_context
from firmware import config, tls
from firmware.authority import ROLES, RoleRights
from firmware.image import EventReader
from firmware.registers import POINT
from firmware.server import MODEL_AT
from firmware.tls import Certificates

PKI = Path(sunspec2.__file__).parent / "tests" / "tls_data"
READ = b"\3" + POINT["CmfState"].address.to_bytes(2) + b"\0\1"
WRITE = b"\6" + POINT["HbTmo"].address.to_bytes(2) + b"\0\7"
WHO_ARE_YOU = b"\x2b\x0e\1\0"
GRID, READ_ONLY, NETWORK, SUPER = "client_gridservice", "client_readonly", "client_netadmin", "client_superadmin"


def installed(directory: Path, server: str = "tls1_3/server_valid") -> Path:
    """As a technician puts them into /etc/ems/tls."""
    directory.mkdir(exist_ok=True)
    for name, source in (("server.crt", f"server/{server}.crt"), ("server.key", f"server/{server}.key"),
                         ("ca.crt", "ca/client_ca_chain.crt")):  # fmt: skip
        shutil.copy(PKI / source, directory / name)
    with (directory / "server.crt").open("ab") as chain:
        chain.write((PKI / "ca/server_inter_ca.crt").read_bytes())
    return directory


class Secure:
    """The appliance with its secure port open."""

    def __init__(self, appliance: FakeAppliance, directory: Path) -> None:
        self.appliance, self.told = appliance, list[str]()
        self.certificates = Certificates(directory, self.told.append)
        ports: list[int] = []
        appliance.call(lambda: ports.append(appliance.server.listen("127.0.0.1", 0, self.certificates.in_force)))
        self.port = ports[0]

    def peer(self, certificate: str | None, version: str = "tls1_3") -> AbstractContextManager[ssl.SSLSocket]:
        return handshaken(self.port, certificate, version)


@contextlib.contextmanager
def handshaken(port: int, certificate: str | None, version: str) -> Iterator[ssl.SSLSocket]:
    """A client inside TLS."""
    context = ssl.create_default_context(cafile=str(PKI / "ca/server_ca_chain.crt"))
    context.check_hostname = False
    wanted = ssl.TLSVersion.TLSv1_2 if version == "tls1_2" else ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = wanted
    if certificate is not None:
        place = version if certificate in (GRID, READ_ONLY, NETWORK, SUPER) else "invalid"
        chain = PKI / "client" / place / certificate
        context.load_cert_chain(f"{chain}.crt", f"{chain}.key")
    with (
        socket.create_connection(("127.0.0.1", port), 2) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as peer,
    ):
        peer.settimeout(2)
        yield peer


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Secure]:
    with FakeAppliance(tmp_path) as appliance:
        yield Secure(appliance, installed(tmp_path / "tls"))


def ask(peer: ssl.SSLSocket, pdu: bytes) -> bytes:
    peer.sendall(frame(1, 1, pdu))
    answer = peer.recv(300)
    assert answer, "closed"
    return answer[7:]


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
@pytest.mark.parametrize(
    ("certificate", "reads", "writes"),
    [(READ_ONLY, True, False), (GRID, True, True), (NETWORK, True, False), (SUPER, True, True)],
)
def test_each_role_reads_and_only_those_that_command_write(
    secure: Secure, version: str, certificate: str, reads: bool, writes: bool
) -> None:
    with secure.peer(certificate, version) as peer:
        assert (ask(peer, READ)[0] == 3) is reads
        assert ask(peer, WRITE) == (WRITE if writes else b"\x86\1")
        assert ask(peer, READ)[0] == 3, "a refusal ends nothing"


@pytest.mark.parametrize("certificate", ["client_no_role", "client_malformed_role"])
def test_without_a_role_everything_is_refused_with_01(secure: Secure, certificate: str) -> None:
    with secure.peer(certificate) as peer:
        assert ask(peer, READ) == b"\x83\1"
        assert ask(peer, WRITE) == b"\x86\1"
        assert ask(peer, WHO_ARE_YOU) == b"\xab\1"


@pytest.mark.parametrize("certificate", [None, "client_self_signed", "client_foreign_ca", "client_expired"])
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_who_has_no_certificate_of_ours_does_not_get_in(secure: Secure, version: str, certificate: str | None) -> None:
    failed = secure.appliance.server.counters.handshakes_failed
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)), secure.peer(certificate, version) as peer:
        ask(peer, READ)
    wait_until(lambda: secure.appliance.server.counters.handshakes_failed == failed + 1, 2, "counted")


@pytest.mark.parametrize("requests", [1, 3])
def test_plain_modbus_on_the_secure_port_is_closed_and_the_plain_port_goes_on(secure: Secure, requests: int) -> None:
    with secure.peer(GRID) as inside:
        assert ask(inside, READ)[0] == 3, "an answer is known that must not be given outside TLS"
    with socket.create_connection(("127.0.0.1", secure.port), 2) as peer:
        peer.settimeout(2)
        peer.sendall(frame(1, 1, READ) * requests)
        said = b""
        with contextlib.suppress(ConnectionError):
            while more := peer.recv(300):
                said += more
        assert said[:1] in (b"", b"\x15"), "nothing, or an alert of TLS"
    with socket.create_connection(("127.0.0.1", secure.appliance.port), 2) as peer:
        peer.sendall(frame(1, 1, READ))
        assert peer.recv(300)[7] == 3


def test_a_handshake_that_does_not_go_on_is_closed_like_half_a_request(secure: Secure) -> None:
    with socket.create_connection(("127.0.0.1", secure.port), 2) as peer:
        peer.sendall(b"\x16\x03\x01")
        peer.settimeout(3)
        assert peer.recv(10) == b""


def test_requests_split_over_records_and_many_in_one_are_answered_in_order(secure: Secure) -> None:
    with secure.peer(GRID) as peer:
        request = frame(1, 1, READ)
        peer.sendall(request[:5])
        peer.sendall(request[5:] + request * 40)
        got = b""
        while len(got) < 41 * 11:
            got += peer.recv(4096)
        assert got == got[:11] * 41


def test_an_independent_sunspec_client_scans_and_reads_inside_tls(secure: Secure) -> None:
    chain = PKI / "client" / "tls1_3" / GRID
    device = SunSpecModbusClientDeviceTCP(
        slave_id=1, ipaddr="127.0.0.1", ipport=secure.port, timeout=5, tls=True,
        cafile=str(PKI / "ca/server_ca_chain.crt"),
        certfile=f"{chain}.crt", keyfile=f"{chain}.key", insecure_skip_tls_verify=True,
    )  # fmt: skip
    device.scan()
    device.common[0].read()
    assert device.common[0].Md.value == "EMS-1"
    device.close()


def test_a_reload_puts_new_certificates_in_force_and_bad_ones_change_nothing(tmp_path: Path, secure: Secure) -> None:
    directory = tmp_path / "tls"
    first = secure.certificates.context
    (directory / "server.key").write_text("nonsense")
    secure.certificates.reload()
    assert secure.certificates.context is first
    assert "TLS certificates refused" in secure.told[-1]
    with secure.peer(GRID) as peer:
        assert ask(peer, READ)[0] == 3
    installed(directory, "tls1_2/server_valid")
    secure.certificates.reload()
    assert secure.certificates.context is not first
    with secure.peer(GRID) as peer:
        served = x509.load_der_x509_certificate(peer.getpeercert(True) or b"")
        wanted = x509.load_pem_x509_certificate((PKI / "server/tls1_2/server_valid.crt").read_bytes())
        assert served.public_bytes(Encoding.DER) == wanted.public_bytes(Encoding.DER)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    directory = installed(tmp_path / "tls")
    (directory / "ca.crt").unlink()
    with pytest.raises(TlsError, match=r"tls/ca\.crt is missing: put server\.crt, server\.key and ca\.crt there"):
        server_context(directory)


def test_without_the_directory_there_is_no_secure_port_and_nothing_is_said(tmp_path: Path) -> None:
    told: list[str] = []
    assert Certificates(tmp_path / "tls", told.append).context is None
    assert told == []


def test_the_end_of_the_certificate_is_told_once_a_day_when_it_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    certificates = Certificates(installed(tmp_path / "tls"), told.append)
    ends = datetime.now(UTC) + timedelta(days=certificates.days_left())
    told.clear()

    class Late(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return ends - timedelta(days=29)

    certificates.tick()
    assert told == []
    monkeypatch.setattr(tls, "datetime", Late)
    certificates.tick()
    certificates.tick()
    assert told == ["TLS certificate ends in 29 days: put a new one into tls/ and send SIGHUP"]


def test_the_role_is_the_one_utf8_string_of_its_extension() -> None:
    def of(name: str) -> str:
        certificate = x509.load_pem_x509_certificate((PKI / "client" / f"{name}.crt").read_bytes())
        return role(certificate.public_bytes(Encoding.DER))

    assert [of(f"tls1_3/{n}") for n in (READ_ONLY, GRID, NETWORK, SUPER)] == list(ROLES)
    assert of("invalid/client_no_role") == of("invalid/client_malformed_role") == ""
    assert role(b"no certificate") == ""


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("DA", {"NetworkAdministratorSunSpec", "SuperAdministratorSunSpec"}),
        ("WSet", {"GridServiceSunSpec", "SuperAdministratorSunSpec"}),
        ("OpCtl", {"GridServiceSunSpec", "SuperAdministratorSunSpec"}),
        ("CmdMode", {"GridServiceSunSpec", "SuperAdministratorSunSpec"}),
        ("SetOp", {"GridServiceSunSpec", "SuperAdministratorSunSpec"}),
    ],
)
def test_each_model_is_written_by_the_roles_that_the_table_names(name: str, roles: set[str]) -> None:
    address = POINT[name].address
    assert {r for r in ROLES if RoleRights(r, MODEL_AT).writes(1, address, 1)} == roles


def test_a_block_over_two_models_needs_the_right_to_both() -> None:
    last_of_1 = POINT["DA"].address + 1
    assert not RoleRights("GridServiceSunSpec", MODEL_AT).writes(1, last_of_1, 2)
    assert not RoleRights("SuperAdministratorSunSpec", MODEL_AT).writes(1, 0, 1), "outside every model"


class Process:
    """The real server process with a configuration of its own; `says` waits for its next line."""

    def __init__(self, directory: Path, tls_port: int = 0) -> None:
        self.tls = directory / "config" / "tls"
        environ = os.environ | {
            "EMS_RUN_DIR": str(directory / "run"), "EMS_CONFIG_DIR": str(directory / "config"), "EMS_MODBUS_PORT": "0",
            "EMS_MODBUS_TLS_PORT": str(tls_port), "EMS_STATE_DIR": str(directory / "state"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "firmware.server"], env=environ, stderr=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip()

    def listens(self) -> tuple[str, int]:
        """Host and port of the next line."""
        host, _, port = self.says().split()[-1].rpartition(":")
        return host, int(port)

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)


@contextlib.contextmanager
def started(directory: Path, tls_port: int = 0) -> Iterator[Process]:
    made = Process(directory, tls_port)
    try:
        yield made
        made.process.terminate()
        assert made.process.wait(5) == 0
    finally:
        made.process.kill()
        made.process.wait()
        assert made.process.stderr is not None
        made.process.stderr.close()


def reads(port: int) -> bool:
    with handshaken(port, GRID, "tls1_3") as peer:
        return ask(peer, READ)[0] == 3


@pytest.mark.system
def test_the_process_opens_the_secure_port_and_leaves_the_plain_one_to_the_unit(tmp_path: Path) -> None:
    config.prepare(tmp_path / "config", {"modbus_plain": False})
    installed(tmp_path / "config" / "tls")
    with started(tmp_path) as server:
        plain, secure = server.listens(), server.listens()
        assert (plain[0], secure[0]) == ("127.0.0.1", "0.0.0.0")
        assert reads(secure[1])


@pytest.mark.system
def test_certificates_that_come_later_open_the_secure_port_without_a_restart(tmp_path: Path) -> None:
    config.prepare(tmp_path / "config", {})
    with started(tmp_path) as server:
        plain = server.listens()[1]
        with socket.create_connection(("127.0.0.1", plain), 2) as peer:
            installed(server.tls)
            server.hang_up()
            secure = server.listens()[1]
            assert reads(secure)
            peer.sendall(frame(1, 1, READ))
            assert peer.recv(300)[7] == 3, "a connection of before lives on"
        server.hang_up()
        assert reads(secure)
        shutil.rmtree(server.tls)
        server.hang_up()
        assert reads(secure), "without the files the last certificates stay in force"


@pytest.mark.system
def test_a_secure_port_that_is_in_use_is_told_and_tried_again_at_the_next_hang_up(tmp_path: Path) -> None:
    config.prepare(tmp_path / "config", {})
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        with started(tmp_path, port) as server:
            plain = server.listens()[1]
            installed(server.tls)
            server.hang_up()
            assert server.says().startswith(f"modbus server: no TLS: cannot listen on 0.0.0.0:{port}: Address already")
            other.close()
            server.hang_up()
            assert server.listens() == ("0.0.0.0", port)
            assert reads(port)
            with socket.create_connection(("127.0.0.1", plain), 2) as peer:
                peer.sendall(frame(1, 1, READ))
                assert peer.recv(300)[7] == 3


@pytest.mark.system
def test_files_that_are_not_complete_open_nothing(tmp_path: Path) -> None:
    config.prepare(tmp_path / "config", {})
    with started(tmp_path) as server:
        plain = server.listens()[1]
        installed(server.tls)
        (server.tls / "ca.crt").rename(server.tls / "later")
        server.hang_up()
        told = EventReader("server", tmp_path / "run")
        wait_until(lambda: any("ca.crt is missing" in event.text for event in told.new()), 5, "the refusal is told")
        (server.tls / "later").rename(server.tls / "ca.crt")
        server.hang_up()
        secure = server.listens()[1]
        assert secure != plain
        assert reads(secure)
