"""What crowds, dribblers and peers that vanish cost the real server inside the running appliance: nothing that stays.

Addresses of 127.0.0.0/8 are sites: 127.0.0.1 commands and must always be served, the others are whoever comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, ip_network
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import pytest
from appliance import Appliance, appliance
from waiting import wait_until

from drivers.modbus.adu import frame
from firmware.registers import BASE, POINT
from statemachine.signals import StatusBit
from statemachine.states import State

pytestmark = pytest.mark.system

CROWD, STRANGER, DRIBBLER = "127.0.0.5", "127.0.0.6", "127.0.0.7"
PLACES, LEFT_S = 32, 5.0
"""Places of the server, and the silence after which somebody new gets one of them."""
READ = frame(1, 1, struct.pack(">BHH", 3, BASE, 2))
ANSWER = frame(1, 1, b"\3\4SunS")
LEASE_S = 300
QUIET_S = 4.0
VANISHING = 8
LEFT_BYTES = 50
"""Of memory that a connection may leave behind on average: what is forgotten weighs kilobytes, noise less."""
FAR, NEAR = f"far{os.getpid()}", f"near{os.getpid()}"
"""A network namespace, and this end of the cable to it."""
NETWORKS = ("203.0.113.0/30", "198.51.100.0/30", "192.0.2.0/30")
"""For documentation only (RFC 5737); one that this machine has no route to is borrowed."""


class Scan(NamedTuple):
    """The controller's own statistics."""

    scans: float
    overruns: float


class Site:
    """A Modbus client of one address, byte by byte."""

    def __init__(self, port: int, host: str, target: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((target, port), 5, source_address=(host, 0))
        self._socket.settimeout(5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, adu: bytes) -> bytes:
        """b"" when the connection is closed."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(adu)
            return self._socket.recv(300)
        return b""

    def reads(self) -> bool:
        return self.ask(READ) == ANSWER

    def commands(self) -> bool:
        """A write that only who commands may make."""
        adu = frame(2, 1, struct.pack(">BHH", 6, POINT["HbTmo"].address, LEASE_S))
        return self.ask(adu) == adu

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Target:
    """The appliance, its server's resources and its scan."""

    def __init__(self, a: Appliance) -> None:
        self.appliance, self.port, self.pid = a, a.ports.EMS_MODBUS_PORT, a.pid("server")
        self.realtime = not int(a.get("StatusBits")) >> StatusBit.NO_REALTIME & 1

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory_bytes(self) -> int:
        """What the process has for itself alone."""
        rows = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(row.split()[1]) for row in rows if row.startswith("Anonymous:"))

    def scan(self) -> Scan:
        return Scan(self.appliance.get("ScanCount"), self.appliance.get("ScanOverruns"))

    def during(self, attack: Callable[[], None]) -> Scan:
        """The scan's statistics while `attack` runs in a thread and who commands is answered every time."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                attack()
            except BaseException as error:
                failed.append(error)

        before, thread = self.scan(), threading.Thread(target=run)
        thread.start()
        with Site(self.port, "127.0.0.1") as commander:
            while thread.is_alive():
                assert commander.commands() and commander.reads()
                thread.join(0.02)
        assert failed == []
        after = self.scan()
        return Scan(after.scans - before.scans, after.overruns - before.overruns)

    def connections_from(self, address: str) -> list[str]:
        """Ends of the established ones, as the kernel writes them."""
        wanted = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:"
        rows = (row.split() for row in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:])
        return [r[2] for r in rows if r[2].startswith(wanted) and int(r[1][-4:], 16) == self.port and r[3] == "01"]

    def settles(self, descriptors: int) -> None:
        wait_until(lambda: self.descriptors() <= descriptors, 20, lambda: f"{self.descriptors()} descriptors again")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    host = {"EMS_MODBUS_HOST": "0.0.0.0"}
    with appliance(tmp_path_factory.mktemp("run"), environment=host) as a:
        a.until(State.ISOLATED)
        a.site.write({"HbTmo": LEASE_S})
        yield Target(a)


class Vanished(NamedTuple):
    """Peers that talked from another network until their cable was cut, and one that is as silent but there."""

    address: str
    silent: socket.socket


@pytest.fixture(scope="module")
def vanished(target: Target) -> Iterator[Vanished]:
    """They age while others are tested."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2 to make a network that can be cut")
    network = _unused_network()
    if network is None:
        pytest.skip(f"this machine has routes to all of {', '.join(NETWORKS)}")
    made = _ip("netns", "add", FAR)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    near, far = network.hosts()
    try:
        for line in (
            f"link add {NEAR} type veth peer name far netns {FAR}",
            f"addr add {near}/30 dev {NEAR}",
            f"link set {NEAR} up",
            f"-n {FAR} addr add {far}/30 dev far",
            f"-n {FAR} link set far up",
        ):
            done = _ip(*line.split())
            assert done.returncode == 0, done.stderr
        _talk_and_cut(target, str(near), str(far))
        with socket.create_connection(("127.0.0.1", target.port), 5, source_address=(STRANGER, 0)) as silent:
            yield Vanished(str(far), silent)
    finally:
        _ip("link", "del", NEAR)  # the namespace itself lives as long as the kernel remembers the peers' sockets
        _ip("netns", "del", FAR)


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def _unused_network() -> IPv4Network | None:
    routes = json.loads(_ip("-j", "-4", "route", "show", "table", "all").stdout or "[]")
    taken = [ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]
    wanted = (IPv4Network(network) for network in NETWORKS)
    return next((n for n in wanted if not any(isinstance(t, IPv4Network) and n.overlaps(t) for t in taken)), None)


_PEERS = """
import socket, sys
peers = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) for _ in range(int(sys.argv[3]))]
for peer in peers:
    peer.sendall(bytes.fromhex(sys.argv[4]))
    assert peer.recv(300)
print("talked", flush=True)
sys.stdin.read()
"""


def _talk_and_cut(target: Target, near: str, far: str) -> None:
    peers = subprocess.Popen(
        ["ip", "netns", "exec", FAR, sys.executable, "-c", _PEERS, near, str(target.port), str(VANISHING), READ.hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with peers:
        assert peers.stdout is not None and peers.stdout.readline() == "talked\n"
        assert len(target.connections_from(far)) == VANISHING
        assert _ip("-n", FAR, "link", "set", "far", "down").returncode == 0


@pytest.fixture(scope="module")
def quiet(target: Target) -> Scan:
    """The scan while nobody but the commander is there."""
    return target.during(lambda: time.sleep(QUIET_S))


def no_worse(seen: Scan, quiet: Scan) -> bool:
    """No more overruns than in a quiet time of that length; three are noise of the machine."""
    return seen.overruns <= quiet.overruns * max(1.0, seen.scans / quiet.scans) + 3


def visits(port: int, number: int) -> int:
    """Connects and goes after nothing, half a request or an answer; in order or with a reset. How many had answers."""
    answered = 0
    for turn in range(number):
        with socket.create_connection(("127.0.0.1", port), 5, source_address=(CROWD, 0)) as peer:
            if turn % 4:  # those that leave in order keep their port for a minute
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(ConnectionError):
                peer.sendall(READ[: turn % 13])
                if turn % 13 == 12:
                    answered += peer.recv(300) == ANSWER
    return answered


def test_a_cut_cable_leaves_half_open_connections_and_others_are_served(vanished: Vanished, target: Target) -> None:
    with Site(target.port, STRANGER) as stranger:
        assert stranger.reads()
    assert len(target.connections_from(vanished.address)) == VANISHING, "no FIN came through"


def test_ten_thousand_visits_leave_nothing_behind(target: Target, quiet: Scan) -> None:
    visits(target.port, 1000)
    descriptors = target.descriptors()
    visits(target.port, 1000)
    target.settles(descriptors)
    before, number, answered = target.memory_bytes(), 10_000, list[int]()
    seen = target.during(lambda: answered.append(visits(target.port, number)))
    target.settles(descriptors)
    assert answered[0] > number // 13 * 0.9
    assert target.memory_bytes() - before < LEFT_BYTES * number
    assert not target.realtime or no_worse(seen, quiet), (seen, quiet)


class Dribblers:
    """Slow-loris peers: each sends a request byte by byte and comes again when it is closed; some never read."""

    def __init__(self, port: int, number: int = 20) -> None:
        self._port, self._number, self._stop = port, number, threading.Event()
        self.closed = 0

    def __enter__(self) -> Dribblers:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _connected(self) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self._port), 5, source_address=(DRIBBLER, 0))
        peer.setblocking(False)
        return peer

    def _run(self) -> None:
        peers = [self._connected() for _ in range(self._number)]
        for turn in count():
            if self._stop.wait(0.05):
                break
            for n, peer in enumerate(peers):
                if not self._sent(
                    peer, READ * 100 if n % 4 == 0 else frame(1, 1, b"\x10" + bytes(250))[turn % 250 :][:1]
                ):
                    self.closed += 1
                    peer.close()
                    peers[n] = self._connected()
        for peer in peers:
            peer.close()

    @staticmethod
    def _sent(peer: socket.socket, data: bytes) -> bool:
        """Whether the connection lives."""
        try:
            peer.send(data)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def latencies_ms(site: Site, number: int) -> list[float]:
    """Of one read after the other, with a pause."""
    found = []
    for _ in range(number):
        time.sleep(0.005)
        began_ns = time.perf_counter_ns()
        assert site.reads()
        found.append((time.perf_counter_ns() - began_ns) / 1e6)
    return found


def test_dribblers_and_silent_readers_cost_the_others_nothing(target: Target, quiet: Scan) -> None:
    before, descriptors = target.memory_bytes(), target.descriptors()
    seen: dict[str, list[float]] = {}

    def attack() -> None:
        with Site(target.port, STRANGER) as other:
            seen["alone"] = latencies_ms(other, 200)
            with Dribblers(target.port) as dribblers:
                wait_until(lambda: dribblers.closed >= 15, 20, "the first dribblers are closed")
                seen["among them"] = latencies_ms(other, 200)

    scan = target.during(attack)
    target.settles(descriptors)
    for cut in (1, 2):
        alone, among = (quantiles(seen[when], n=4)[cut] for when in ("alone", "among them"))
        assert among <= 5 * alone + 1.0, f"{among} ms among them, {alone} ms alone, quartile {cut + 1}"
    assert target.memory_bytes() - before < 1 << 20
    assert not target.realtime or no_worse(scan, quiet), (scan, quiet)


def test_peers_that_vanished_are_given_up_by_keepalive(vanished: Vanished, target: Target) -> None:
    """After 10 s of silence and three probes 5 s apart, while who is only silent is kept for a minute."""
    wait_until(lambda: not target.connections_from(vanished.address), 60, "none of theirs is left", pause_s=0.1)
    assert _open(vanished.silent)


def test_five_hundred_idle_connections_get_the_places_that_are_free_and_the_commander_always_one(
    target: Target, quiet: Scan
) -> None:
    before, descriptors, began_s = target.memory_bytes(), target.descriptors(), time.monotonic()
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", target.port), 5, source_address=(CROWD, 0)))
            for _ in range(500)
        ]

        def alive() -> int:
            return sum(_open(peer) for peer in crowd)

        wait_until(lambda: alive() <= PLACES, 10, lambda: f"{alive()} of the crowd have a place")
        first = alive()
        assert first >= PLACES // 2
        assert target.descriptors() - descriptors <= PLACES
        with Site(target.port, STRANGER) as stranger:
            served = stranger.reads()
        assert not served or time.monotonic() - began_s > LEFT_S, "all places are taken by peers that came just now"
        for _ in range(20):
            with Site(target.port, "127.0.0.1") as again:
                assert again.commands() and again.reads(), "who commands finds a place each time"
        scan = target.during(lambda: _stranger_gets_in(target.port))
        assert alive() < first
    target.settles(descriptors)
    assert target.memory_bytes() - before < 1 << 20
    assert not target.realtime or no_worse(scan, quiet), (scan, quiet)


def _open(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _stranger_gets_in(port: int) -> None:
    """When the crowd was silent for 5 s."""

    def served() -> bool:
        with Site(port, STRANGER) as stranger:
            return stranger.reads()

    wait_until(served, 30, "a place for somebody else", pause_s=0.2)
