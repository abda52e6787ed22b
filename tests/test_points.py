"""PointClient against connections that end: between two requests, and in the middle of one."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from drivers.modbus.point import Point
from firmware.points import PointClient, PointError

POINTS = {"a": Point("a", 10, "uint16", "", access="RW")}
ENDS = {"FIN": (0, 0), "RST": (1, 0)}  # SO_LINGER of the server's side


class Peer(NamedTuple):
    """A device that ends every connection: when it has answered some requests, or when the next one has come."""

    port: int
    requests: list[bytes]
    ended: threading.Semaphore


def _serve(listener: socket.socket, answers: int, idle: bool, linger: tuple[int, int], peer: Peer) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *linger))
            for number in range(answers if idle else answers + 1):
                request = sock.recv(260)
                if not request:
                    break
                peer.requests.append(request)
                if number < answers:
                    body = bytes((3, 2, 0, 7)) if request[7] == 3 else request[7:12]
                    sock.sendall(request[:4] + struct.pack(">HB", len(body) + 1, request[6]) + body)
        peer.ended.release()


@pytest.fixture(params=ENDS)
def linger(request: pytest.FixtureRequest) -> tuple[int, int]:
    return ENDS[request.param]


@pytest.fixture
def peer(linger: tuple[int, int], request: pytest.FixtureRequest) -> Iterator[Peer]:
    answers, idle = request.param
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Peer(listener.getsockname()[1], [], threading.Semaphore(0))
        thread = threading.Thread(target=_serve, args=(listener, answers, idle, linger, peer))
        thread.start()
        yield peer
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("peer", [(1, True)], indirect=True)
def test_a_connection_that_ended_while_it_was_idle_is_opened_again(peer: Peer) -> None:
    with PointClient("127.0.0.1", peer.port, POINTS) as client:
        for _ in range(3):
            assert client.read("a") == {"a": 7}
            assert peer.ended.acquire(timeout=5)
        client.write({"a": 3})
    assert [request[7] for request in peer.requests] == [3, 3, 3, 16]


@pytest.mark.parametrize("peer", [(0, False), (1, False)], indirect=True)
def test_a_write_whose_answer_is_lost_is_not_sent_twice(peer: Peer, request: pytest.FixtureRequest) -> None:
    """Nobody knows whether it was done: the caller is told."""
    with PointClient("127.0.0.1", peer.port, POINTS) as client:
        if request.node.callspec.params["peer"][0]:
            client.read("a")
        with pytest.raises(PointError, match=r"no answer from 127\.0\.0\.1:\d+ for a: "):
            client.write({"a": 3})
    assert [request[7] for request in peer.requests].count(16) == 1
