"""Links that lose answers: a request is made again, soon, on a new connection, and never with an old set-point."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modbus_peers import Bank, liar, served
from test_aggregator import BMS, PCS, Beating, Plant, answering_in_place_of, converter, rack
from waiting import wait_until

from drivers.modbus.adu import AduReader, frame
from firmware.poller import SHORTEST_WAIT_S, Patience

LONGEST_S = 0.3
_NO_ANSWER = b""


def lost_every(nth: int) -> Callable[[bytes], bytes]:
    """Every nth answer never arrives."""
    made = 0
    lock = threading.Lock()

    def change(answer: bytes) -> bytes:
        nonlocal made
        with lock:
            made += 1
            return _NO_ANSWER if made % nth == 0 else answer

    return change


@contextmanager
def lossy(
    tmp_path: Path,
    bms_wire: Callable[[bytes], bytes],
    pcs_wire: Callable[[bytes], bytes],
    request_timeout_ms: int = 150,
) -> Iterator[tuple[Plant, Bank]]:
    bms, pcs = rack(1, 30), converter()
    with (
        Beating((bms, BMS), (pcs, PCS)),
        liar(answering_in_place_of(bms, bms_wire)) as bms_port,
        liar(answering_in_place_of(pcs, pcs_wire)) as pcs_port,
        Plant(tmp_path, bms_port, pcs_port, request_timeout_ms=request_timeout_ms) as running,
    ):
        yield running, pcs


def test_a_gateway_that_loses_every_tenth_answer_costs_no_poll(tmp_path: Path) -> None:
    """With a second until a poll is given up: a machine that stands still that long has lost more than an answer."""
    with lossy(tmp_path, lost_every(10), lost_every(10), request_timeout_ms=1000) as (running, _):
        wait_until(lambda: running.links.bms_polls > 20 and running.links.pcs_polls > 50, 10, "polls in spite of it")
        links = running.links
        assert links.bms_timeouts >= 5
        assert links.pcs_timeouts >= 5
        assert [line for line in running.texts if "Timeout" in line] == [], "a repeated request is no event"
        assert links.bms_connects == 1 + links.bms_timeouts, "each time-out closes its connection"
        assert running.bms is not None
        assert running.bms.loss_pct > 2.0


def test_what_is_written_again_is_the_newest_set_point(tmp_path: Path) -> None:
    running: Plant
    written: list[bytes] = []

    def wire(answer: bytes) -> bytes:
        now = struct.pack(">Hh", 1, -500)
        if answer[7] == 16 and pcs.writes[-1][2][:4] == now and now not in written:
            running.control(0.0, run=False)
            written.append(now)
            return _NO_ANSWER
        if answer[7] == 16 and written:
            written.append(pcs.writes[-1][2][:4])
        return answer

    with lossy(tmp_path, lambda a: a, wire) as (running, pcs):
        wait_until(lambda: running.pcs, 2, "first poll")
        running.control(-50.0)
        wait_until(lambda: len(written) > 1, 2, "the write that was made again")
    assert written[1] == bytes(4)


def test_a_peer_that_answers_nonsense_at_once_is_not_asked_more_often_than_a_silent_one(tmp_path: Path) -> None:
    start = time.monotonic()
    with lossy(tmp_path, lambda a: b"\xa5" * 40, lambda a: a) as (running, _):
        wait_until(lambda: running.links.bms_garbage >= 2, 5, "garbage is counted")
        wait_until(lambda: running.links.bms_connects >= 3, 5, "three connections")
        assert running.links.bms_connects <= 1 + (time.monotonic() - start) / SHORTEST_WAIT_S


def test_a_silent_peer_is_given_up_when_the_longest_wait_is_spent_and_then_asked_who_it_is(tmp_path: Path) -> None:
    silent = threading.Event()
    running: Plant
    connects_when_asked: list[int] = []

    def wire(answer: bytes) -> bytes:
        if not silent.is_set():
            return answer
        if answer[7] == 43:
            connects_when_asked.append(running.aggregator.bms.tally.connects)
        return _NO_ANSWER

    with lossy(tmp_path, wire, lambda a: a) as (running, _):
        wait_until(running.bms_fresh, 2, "first poll")
        connects = running.links.bms_connects
        silent.set()
        wait_until(lambda: connects_when_asked, 3, "the identity is asked for again")
        attempts = connects_when_asked[0] - connects
        assert 3 <= attempts <= 6, "waits of 20, 40, 80 ms and the rest of 150 ms went before"
        assert not running.links.bms_up


def test_who_answers_after_the_peer_ended_the_connection_is_asked_for_its_name(tmp_path: Path) -> None:
    """Another device at the same address, between two requests of one poll."""
    bms, pcs, swapped = rack(1, 30), converter(), threading.Event()

    def end(peer: socket.socket, answer: bytes) -> None:
        if swapped.is_set() and not bms.objects[1].startswith(b"OTHER"):
            bms.objects[1] = b"OTHER"
            peer.shutdown(socket.SHUT_RDWR)
        else:
            peer.sendall(answer)

    with (
        Beating((bms, BMS), (pcs, PCS)),
        liar(answering_in_place_of(bms, lambda a: a), on_send=end) as port,
        served(pcs) as pcs_server,
        Plant(tmp_path, port, pcs_server.port) as running,
    ):
        wait_until(running.bms_fresh, 2, "first poll")
        swapped.set()
        wait_until(lambda: running.bms is not None and not running.bms.identity_ok, 3, "the stranger is told of")
        assert any("OTHER" in line for line in running.texts)


def waits(*took_s: float) -> float:
    patience = Patience(LONGEST_S)
    for s in took_s:
        patience.answered(s)
    return patience.wait_s


def test_before_the_first_answer_the_longest_wait_counts() -> None:
    assert waits() == LONGEST_S


def test_a_quick_device_is_waited_for_as_shortly_as_allowed() -> None:
    assert waits(*[0.001] * 20) == SHORTEST_WAIT_S


def test_a_steady_device_is_waited_for_a_little_longer_than_it_takes() -> None:
    assert waits(*[0.06] * 50) == pytest.approx(0.06, abs=0.002)


def test_the_first_answer_is_taken_with_half_of_it_as_deviation() -> None:
    assert waits(0.03) == pytest.approx(0.03 + 4 * 0.015)


def test_each_loss_doubles_the_wait_and_an_answer_ends_that() -> None:
    patience = Patience(LONGEST_S)
    for _ in range(30):
        patience.answered(0.005)
    seen = []
    for _ in range(5):
        seen.append(patience.wait_s)
        patience.lost()
    assert seen == pytest.approx([0.02, 0.04, 0.08, 0.16, LONGEST_S])
    patience.answered(0.005)
    assert patience.wait_s == SHORTEST_WAIT_S


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1.0)), max_size=60))
def test_the_wait_stays_between_its_bounds(history: list[float | None]) -> None:
    patience = Patience(LONGEST_S)
    for took_s in history:
        if took_s is None:
            patience.lost()
        else:
            patience.answered(took_s)
        assert SHORTEST_WAIT_S <= patience.wait_s <= LONGEST_S


def test_a_device_slower_than_usual_is_not_given_up_but_learnt(tmp_path: Path) -> None:
    """A device whose every answer takes 60 ms from now on: longer waits, the same polls."""
    slow = threading.Event()

    def slowly(peer: socket.socket, answers: bytes) -> None:
        for adu in AduReader().feed(answers):
            if slow.is_set():
                time.sleep(0.06)
            peer.sendall(frame(*adu))

    bms, pcs = rack(1, 30), converter()
    with (
        Beating((bms, BMS), (pcs, PCS)),
        liar(answering_in_place_of(bms, lambda a: a), on_send=slowly) as port,
        served(pcs) as pcs_server,
        Plant(tmp_path, port, pcs_server.port) as running,
    ):
        wait_until(running.bms_fresh, 2, "first poll")
        slow.set()
        polls = running.links.bms_polls
        wait_until(lambda: running.links.bms_polls > polls + 3, 5, "polls of a slow device")
        timeouts = running.links.bms_timeouts
        polls = running.links.bms_polls
        wait_until(lambda: running.links.bms_polls > polls + 5, 5, "more of them")
        assert running.links.bms_timeouts <= timeouts + 2, "learnt, not lost again and again"
