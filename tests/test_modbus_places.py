"""Connections to the strict server: who gets a place, who waits for whom, and that none leaves anything behind."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from modbus_peers import Bank, served

from drivers.modbus import server as module
from drivers.modbus.adu import AduReader, frame
from drivers.modbus.server import StrictServer

READ = frame(1, 1, bytes.fromhex("0300640001"))
ANSWER_BYTES = 11


@contextlib.contextmanager
def stepped(**limits: object) -> Iterator[StrictServer]:
    """A server that does nothing but what the test steps."""
    server = StrictServer(Bank(), "127.0.0.1", 0, **limits)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def peers(server: StrictServer, count: int, host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            peer = socket.create_connection(("127.0.0.1", server.port), 2, source_address=(host, 0))
            peer.settimeout(1)
            made.append(stack.enter_context(peer))
            server.step()
        yield made


def answered(server: StrictServer, peer: socket.socket) -> bool:
    """Whether a request is answered in two turns."""
    with contextlib.suppress(ConnectionError):
        peer.sendall(READ)
        server.step(0.5)
        server.step()
        peer.setblocking(False)
        return len(peer.recv(300)) == ANSWER_BYTES
    return False


def test_when_all_places_are_taken_who_was_silent_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with stepped(max_connections=3) as server, peers(server, 3) as (first, second, third):
        assert answered(server, first)
        monkeypatch.setattr(module, "_LEFT_S", 0.0)
        with peers(server, 1) as (fourth,):
            assert answered(server, fourth)
            assert not answered(server, second)
            assert answered(server, first) and answered(server, third)
            assert server.counters.timed_out == 1


def test_nobody_who_talked_just_now_makes_room() -> None:
    with stepped(max_connections=2) as server, peers(server, 2) as (first, second), peers(server, 1) as (third,):
        assert not answered(server, third)
        assert answered(server, first) and answered(server, second)
        assert server.counters.refused == 1


def test_who_is_preferred_finds_a_place_also_when_everybody_talks() -> None:
    holder = "127.0.0.9"
    with stepped(max_connections=2, preferred=lambda host: host == holder) as server, peers(server, 2) as (_, second):
        assert answered(server, second)
        with peers(server, 1, host=holder) as (third,):
            assert answered(server, third)
            assert server.connections == 2


def test_a_crowd_at_the_preferred_address_does_not_push_out_who_talks_there() -> None:
    with stepped(max_connections=2, preferred=lambda host: True) as server, peers(server, 2) as (first, second):
        assert answered(server, first) and answered(server, second)
        with peers(server, 20):
            assert answered(server, first) and answered(server, second)


def test_who_is_not_admitted_is_closed_at_once() -> None:
    with (
        stepped(admits=lambda host: host != "127.0.0.9") as server,
        peers(server, 1, host="127.0.0.9") as (other,),
        peers(server, 1) as (one,),
    ):
        assert not answered(server, other)
        assert answered(server, one)


def test_a_client_that_asks_without_end_costs_the_next_one_a_turn_and_no_more() -> None:
    with stepped() as server, peers(server, 2) as (greedy, modest):
        greedy.sendall(READ * 5000)
        modest.sendall(READ)
        server.step(0.5)
        modest.setblocking(False)
        assert len(modest.recv(300)) == ANSWER_BYTES
        assert len(greedy.recv(1 << 20)) < 2048, "one receive of the greedy one a turn"


def test_a_client_that_takes_its_answers_late_gets_all_of_them_in_order() -> None:
    count = 20_000
    with served(Bank(), adu_deadline_s=5.0) as server, socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        late.connect(("127.0.0.1", server.port))
        late.settimeout(5)
        requests = b"".join(frame(n % 0x10000, 1, struct.pack(">BHH", 3, 0, 125)) for n in range(count))
        reader, seen = AduReader(), 0
        late.setblocking(False)
        while seen < count:
            with contextlib.suppress(BlockingIOError):
                requests = requests[late.send(requests[:4096]) :]
            with contextlib.suppress(BlockingIOError):
                for transaction, _, pdu in reader.feed(late.recv(1 << 16)):
                    assert (transaction, len(pdu)) == (seen % 0x10000, 252)
                    seen += 1


def test_ten_thousand_connections_leave_no_descriptor_behind() -> None:
    with stepped() as server:
        before = len(os.listdir("/proc/self/fd"))
        for turn in range(10_000):
            with socket.create_connection(("127.0.0.1", server.port), 2) as peer:
                peer.sendall(READ[: 3 + turn % 10])
                server.step()
            server.step()
        while server.connections:
            server.step(0.1)
        assert len(os.listdir("/proc/self/fd")) == before
        assert server.counters.accepted == 10_000


def test_five_hundred_idle_connections_leave_the_talking_one_alone() -> None:
    with stepped(max_connections=32) as server, peers(server, 1) as (talking,):
        with peers(server, 500):
            assert server.connections == 32
            assert answered(server, talking)
        assert answered(server, talking)
