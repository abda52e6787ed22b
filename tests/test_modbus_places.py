"""Connections to the strict server: who gets a place, who waits for whom, and that none leaves anything behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from modbus_peers import Bank, served

from drivers.modbus import server as module
from drivers.modbus.adu import AduReader, frame
from drivers.modbus.server import StrictServer

READ = frame(1, 1, bytes.fromhex("0300640001"))
WRITE = frame(1, 1, bytes.fromhex("0600650007"))
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


def waiting(peers: list[socket.socket]) -> list[int]:
    """Bytes that have come for each and were not read yet."""
    return [int.from_bytes(fcntl.ioctl(peer, termios.FIONREAD, bytes(4)), sys.byteorder) for peer in peers]


def answered(server: StrictServer, peer: socket.socket) -> bool:
    """Whether a request is answered in the turns that 32 others take."""
    with contextlib.suppress(ConnectionError):
        peer.sendall(READ)
        server.step(0.5)
        for _ in range(32 // 8):
            server.step()
        peer.setblocking(False)
        return len(peer.recv(300)) == ANSWER_BYTES
    return False


def test_who_has_written_is_served_before_those_who_only_read() -> None:
    with stepped() as server, peers(server, 31) as (writer, *readers):
        writer.sendall(WRITE)
        server.step(1.0)
        assert writer.recv(300) == WRITE
        server.step()  # nobody is ready any more
        for peer in (*readers, writer):
            peer.sendall(READ)
        server.step(1.0)
        assert len(writer.recv(300)) == ANSWER_BYTES
        assert waiting(readers[-1:]) == [0]


def test_those_who_write_all_the_time_keep_no_reader_waiting() -> None:
    with stepped() as server, peers(server, 32) as (reader, *writers):
        for peer in writers:
            peer.sendall(WRITE)
        while not all(waiting(writers)):
            server.step(1.0)
        for peer in writers:
            assert peer.recv(300) == WRITE
        for peer in (*writers, reader):
            peer.sendall(WRITE if peer is not reader else READ)
        server.step(1.0)
        assert len(reader.recv(300)) == ANSWER_BYTES
        assert 0 < sum(map(bool, waiting(writers))) <= 8


def test_a_write_that_is_refused_puts_nobody_first() -> None:
    with stepped() as server, peers(server, 31) as (stranger, *readers):
        stranger.sendall(frame(1, 1, WRITE[7:-1]))  # half a register
        server.step(1.0)
        assert stranger.recv(300)[7] == 0x86
        server.step()  # nobody is ready any more
        for peer in (*readers, stranger):
            peer.sendall(READ)
        server.step(1.0)
        assert waiting([stranger]) == [0]


def test_a_writer_that_leaves_or_idles_is_let_go_as_anybody_else() -> None:
    with stepped(idle_s=0.2) as server, peers(server, 2) as (leaves, idles):
        for peer in (leaves, idles):
            peer.sendall(WRITE)
            server.step(1.0)
            assert peer.recv(300) == WRITE
        leaves.close()
        end_s = time.monotonic() + 5.0
        while server.connections and time.monotonic() < end_s:
            server.step(0.05)
        assert (server.connections, server.counters.timed_out) == (0, 1)


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
