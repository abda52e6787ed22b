"""Who may command the appliance: one at a time, not without end, and only from where it is allowed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest
from fake_appliance import FakeAppliance
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from drivers.modbus.adu import frame
from firmware import config
from firmware.authority import WRITES_AT_ONCE, WRITES_PER_S, Authority, WriteRate, admitted
from firmware.registers import POINT
from statemachine.signals import Mode, Why

S = 1_000_000_000
FIRST, SECOND = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        yield made


class Site:
    """A site controller at an address of its own."""

    def __init__(self, port: int, host: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 2, source_address=(host, 0))
        self._socket.settimeout(2)

    def ask(self, pdu: bytes) -> bytes:
        self._socket.sendall(frame(1, 1, pdu))
        answer = self._socket.recv(300)
        assert answer, "closed"
        return answer[7:]

    def write(self, **values: float) -> int:
        """One FC16; the exception code, 0 when it was taken."""
        wanted = sorted((POINT[name] for name in values), key=lambda p: p.address)
        data = b"".join(point.encode(values[point.name]) for point in wanted)
        head = bytes((16,)) + wanted[0].address.to_bytes(2) + (len(data) // 2).to_bytes(2) + bytes((len(data),))
        answer = self.ask(head + data)
        return answer[1] if answer[0] & 0x80 else 0

    def read(self, name: str) -> float:
        point = POINT[name]
        answer = self.ask(b"\3" + point.address.to_bytes(2) + point.count.to_bytes(2))
        value = point.decode(answer[2:])
        assert not isinstance(value, str)
        return value

    def close(self) -> None:
        self._socket.close()


def command(seq: int, mode: Mode = Mode.CHARGE) -> dict[str, float]:
    return {"CmdSeq": seq, "CmdMode": mode, "CmdW": 0.0, "CmdRamp": 0.1, "CmdTgtSoC": 80.0}


@pytest.fixture
def first(appliance: FakeAppliance) -> Iterator[Site]:
    with closing(Site(appliance.port, FIRST)) as site:
        yield site


@pytest.fixture
def second(appliance: FakeAppliance) -> Iterator[Site]:
    with closing(Site(appliance.port, SECOND)) as site:
        yield site


def test_the_first_valid_writer_commands_and_a_second_one_is_refused_with_the_reason(
    appliance: FakeAppliance, first: Site, second: Site
) -> None:
    assert first.write(**command(1)) == 0
    assert second.write(**command(2)) == 4
    assert second.read("AckWhy") == Why.NOT_IN_AUTHORITY
    assert appliance.command.seq == 1
    assert first.write(**command(3)) == 0


def test_a_refused_write_gives_no_authority(first: Site, second: Site) -> None:
    assert first.write(CmdRamp=9.0) == 3
    assert second.write(**command(1)) == 0
    assert first.write(**command(2)) == 4


@pytest.mark.parametrize("name", ["ControllerHb", "AckFaults", "WSet", "HbTmo", "LossPol"])
def test_a_second_writer_can_neither_beat_nor_acknowledge_nor_change_a_setting(
    first: Site, second: Site, name: str
) -> None:
    first.write(**command(1))
    before = second.read(name)
    assert second.write(**{name: 1 if name == "AckFaults" else 2}) == 4
    assert second.read(name) == before


@pytest.mark.parametrize("stop", [command(9, Mode.OFF), {"CmdMode": Mode.OFF}, {"OpCtl": 0}, {"SetOp": 2}], ids=str)
def test_mode_off_is_taken_from_everybody_and_leaves_the_authority_where_it_was(
    appliance: FakeAppliance, first: Site, second: Site, stop: dict[str, float]
) -> None:
    first.write(**command(1))
    assert second.write(**stop) == 0
    assert appliance.command.mode == Mode.OFF
    assert second.write(**command(20)) == 4
    assert first.write(**command(21)) == 0


def test_everybody_reads(first: Site, second: Site) -> None:
    first.write(**command(1))
    assert second.read("CmdSeq") == 1


def test_the_lease_ends_when_its_holder_is_silent_for_the_heartbeat_time_out(first: Site, second: Site) -> None:
    first.write(HbTmo=2)
    assert second.write(**command(1)) == 4
    assert 1.5 < wait_until(lambda: second.write(**command(1)) == 0, 4, "the lease ends", pause_s=0.05) < 3
    assert first.write(**command(2)) == 4


def test_a_heartbeat_renews_the_lease(first: Site, second: Site) -> None:
    first.write(HbTmo=2)
    beats = 0

    def beat() -> bool:
        nonlocal beats
        beats += 1
        assert first.write(ControllerHb=beats) == 0
        assert second.write(**command(1)) == 4
        return beats >= 30

    assert wait_until(beat, 10, "30 beats", pause_s=0.1) > 2.5


def test_too_many_writes_a_second_are_refused_as_busy_and_reads_go_on(first: Site, second: Site) -> None:
    codes = [0]
    while not codes[-1] and len(codes) < 10 * WRITES_AT_ONCE:  # a slow machine is granted more
        codes.append(first.write(ControllerHb=len(codes)))
    assert codes.pop() == 6
    assert set(codes) == {0}
    assert len(codes) > WRITES_AT_ONCE
    assert second.read("AckWhy") == Why.TOO_MANY_WRITES
    wait_until(lambda: first.write(ControllerHb=5000) == 0, 1, "writes are taken again", pause_s=0.05)


def test_who_is_not_in_allowed_clients_is_not_connected(tmp_path: Path) -> None:
    config.prepare(tmp_path / "config", {"allowed_clients": (ip_network("127.0.0.2"),)})
    with FakeAppliance(tmp_path, configured=False) as appliance:
        for host in (FIRST, "127.0.0.1"):
            with closing(Site(appliance.port, host)) as allowed:
                assert allowed.read("CmdSeq") == 0, "the unit itself reads its own registers"
        with closing(Site(appliance.port, SECOND)) as other, pytest.raises((AssertionError, ConnectionError)):
            other.read("CmdSeq")


def test_a_network_that_is_none_is_refused_with_line_and_rule(tmp_path: Path) -> None:
    config.prepare(tmp_path, {"allowed_clients": "192.168.10.5/24"})
    with pytest.raises(config.ConfigError, match=r"allowed_clients = 192\.168\.10\.5/24: .*such as 192\.168\.10\.0/24"):
        config.load_site(tmp_path)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("192.168.10.1", True),
        ("192.168.11.1", False),
        ("::ffff:192.168.10.9", True),
        ("fe80::1%eth0", True),
        ("::1", False),
    ],
)
def test_an_address_counts_also_as_the_v6_socket_writes_it(host: str, allowed: bool) -> None:
    networks = [ip_network("192.168.10.0/24"), ip_network("fe80::/10")]
    assert admitted(host, networks) is allowed
    assert admitted(host, [])


@given(st.lists(st.tuples(st.sampled_from([FIRST, SECOND]), st.integers(0, 3 * S)), max_size=40))
def test_never_do_two_addresses_hold_the_lease_at_once(writes: list[tuple[str, int]]) -> None:
    authority, now_ns, taken = Authority(), 0, list[tuple[str, int]]()
    for host, wait_ns in writes:
        now_ns += wait_ns
        if authority.allows(host, now_ns):
            authority.took(host, now_ns, 2.0)
            others = [at for other, at in taken if other != host]
            assert not others or now_ns - others[-1] >= 2 * S
            taken.append((host, now_ns))
        assert authority.holder(now_ns) in ("", FIRST, SECOND)


@given(st.lists(st.integers(0, S // 20), min_size=1, max_size=2000))
def test_the_bucket_never_takes_more_than_its_rate_and_depth(waits_ns: list[int]) -> None:
    rate, now_ns, taken = WriteRate(), 0, 0
    for wait_ns in waits_ns:
        now_ns += wait_ns
        taken += rate.allows(FIRST, now_ns)
    assert taken <= WRITES_AT_ONCE + WRITES_PER_S * now_ns / S + 1
    assert rate.allows(SECOND, now_ns), "another address has its own bucket"
