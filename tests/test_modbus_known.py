"""Answers that the server gives again without asking the device: never another one than the device would give now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import Bank

from drivers.modbus.adu import AduReader, frame
from drivers.modbus.server import StrictServer

UNITS = (1, 2)
ANSWER_BYTES = 259
"""Of a read of 125 registers."""
ADDRESSES = st.sampled_from((100, 101, 0xFFFF))
COUNTS = st.sampled_from((0, 1, 2, 126))
VALUES = st.integers(0, 0xFFFF)


class Versioned(Bank):
    """A bank that tells when it was changed from inside."""

    def __init__(self) -> None:
        super().__init__(units=UNITS)
        self.version = 0

    def change(self, unit: int, address: int, value: int) -> None:
        self.words(unit, address, value)
        self.version += 1


class Bench:
    """A server that does nothing but what the test steps, and two clients."""

    def __init__(self) -> None:
        self.bank = Versioned()
        self.server = StrictServer(
            self.bank, "127.0.0.1", 0, version=lambda: self.bank.version, stall_s=60.0, adu_deadline_s=60.0
        )
        self.peers = [socket.create_connection(("127.0.0.1", self.server.port), 2) for _ in range(2)]
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self.server.connections < 2:
            self.server.step(1.0)
        self.transaction = 0

    def send(self, peer: int, unit: int, pdu: bytes) -> None:
        self.transaction += 1
        self.peers[peer].sendall(frame(self.transaction, unit, pdu))

    def answer(self, peer: int) -> bytes:
        """The PDU of the answer to what was sent last, after one turn."""
        self.server.step(1.0)
        self.peers[peer].settimeout(2)
        ((transaction, _, pdu),) = AduReader().feed(self.peers[peer].recv(300))
        assert transaction == self.transaction
        return pdu

    def ask(self, pdu: bytes, unit: int = 1, peer: int = 0) -> bytes:
        self.send(peer, unit, pdu)
        return self.answer(peer)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.server.close()


@contextlib.contextmanager
def made() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with made() as bench:
        yield bench


def read(address: int = 100, count: int = 1, function: int = 3) -> bytes:
    return struct.pack(">BHH", function, address, count)


def write(address: int, value: int) -> bytes:
    return struct.pack(">BHH", 6, address, value)


def words(*values: int) -> bytes:
    return struct.pack(f">BB{len(values)}H", 3, 2 * len(values), *values)


def test_a_read_that_was_answered_is_not_asked_of_the_device_again_until_it_changes(bench: Bench) -> None:
    assert [bench.ask(read(), peer=peer) for peer in (0, 1, 0, 1)] == 4 * [words(0)]
    assert bench.bank.reads == 1
    bench.bank.change(1, 100, 7)
    assert [bench.ask(read(), peer=peer) for peer in (0, 1)] == 2 * [words(7)]
    assert bench.bank.reads == 2


@pytest.mark.parametrize("writer", [0, 1])
def test_a_write_of_another_client_in_the_same_turn_is_seen(bench: Bench, writer: int) -> None:
    for value in (5, 6):  # who sends first is served first; the second time the writer is first in any case
        bench.ask(read())
        bench.server.step()  # nobody is ready any more
        bench.send(writer, 1, write(100, value))
        bench.send(1 - writer, 1, read())
        assert bench.answer(1 - writer) == words(value)
        assert bench.peers[writer].recv(300).endswith(write(100, value))


def test_when_all_ask_at_once_a_change_is_seen_after_a_few_answers_not_after_all(bench: Bench) -> None:
    crowd = [socket.create_connection(("127.0.0.1", bench.server.port), 2) for _ in range(30)]
    while bench.server.connections < 32:
        bench.server.step(1.0)
    for peer in crowd:
        peer.sendall(frame(1, 1, read()))
    bench.server.step(1.0)
    bench.bank.change(1, 100, 7)
    for _ in crowd:
        bench.server.step(0.0)
    values = [peer.recv(300)[-2:] for peer in crowd]
    for peer in crowd:
        peer.close()
    assert 1 <= values.count(bytes(2)) <= 8 < values.count(b"\0\7")


def test_a_read_behind_half_a_request_is_part_of_that_request(bench: Bench) -> None:
    asked = read()
    assert bench.ask(asked) == words(0)
    known = frame(2, 1, asked)
    whole = frame(9, 1, struct.pack(">BHHB", 16, 200, 6, 12) + known)
    bench.peers[0].sendall(whole[: -len(known)])
    bench.server.step(1.0)
    bench.peers[0].sendall(known)
    bench.transaction = 9
    assert bench.answer(0) == struct.pack(">BHH", 16, 200, 6)
    assert bench.bank.writes == [(1, 200, known)]


def test_a_refusal_is_asked_of_the_device_every_time(bench: Bench) -> None:
    def fail() -> None:
        raise RuntimeError("sensor bus")

    bench.bank.fail = fail
    assert [bench.ask(read()) for _ in range(3)] == 3 * [b"\x83\x04"]
    assert bench.server.counters.device_failures == 3
    bench.bank.fail = lambda: None
    assert bench.ask(read()) == words(0)


def test_a_client_that_asks_on_without_reading_gets_every_answer_whole_and_in_order_later(bench: Bench) -> None:
    peer, reader, count, asked = bench.peers[0], AduReader(), 0, 3000  # more than the kernel's buffers hold
    for fd in bench.server._open:
        with socket.socket(fileno=os.dup(fd)) as served:
            served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    for transaction in range(asked):
        peer.sendall(frame(transaction, 1, read(count=125)))
        bench.server.step()
    waiting = fcntl.ioctl(peer, termios.FIONREAD, bytes(4))
    assert int.from_bytes(waiting, sys.byteorder) < ANSWER_BYTES * asked
    peer.setblocking(False)
    while count < asked:
        bench.server.step()
        with contextlib.suppress(BlockingIOError):
            for transaction, _, pdu in reader.feed(peer.recv(65536)):
                assert (transaction, len(pdu)) == (count, ANSWER_BYTES - 7)
                count += 1
    assert bench.bank.reads < asked


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.sampled_from((*UNITS, 3)), ADDRESSES, COUNTS, st.sampled_from((3, 4))),
        st.tuples(st.just("write"), st.sampled_from(UNITS), ADDRESSES, VALUES, st.just(0)),
        st.tuples(st.just("change"), st.sampled_from(UNITS), ADDRESSES, VALUES, st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_happens_in_between_every_answer_is_what_the_device_would_say(
    operations: list[tuple[str, int, int, int, int]],
) -> None:
    memory = {unit: bytearray(0x20000) for unit in UNITS}
    with made() as bench:
        for number, (what, unit, address, value, function) in enumerate(operations):
            at = slice(2 * address, 2 * address + 2)
            if what == "change":
                bench.bank.change(unit, address, value)
                memory[unit][at] = value.to_bytes(2)
            elif what == "write":
                assert bench.ask(write(address, value), unit, number % 2) == write(address, value)
                memory[unit][at] = value.to_bytes(2)
            else:
                answer = bench.ask(read(address, value, function), unit, number % 2)
                if unit not in UNITS:
                    expected = bytes((function | 0x80, 11))
                elif not 1 <= value <= 125:
                    expected = bytes((function | 0x80, 3))
                elif address + value > 0x10000:
                    expected = bytes((function | 0x80, 2))
                else:
                    expected = bytes((function, 2 * value)) + memory[unit][2 * address : 2 * (address + value)]
                assert answer == expected
