"""The checked client against peers that lie."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

import pytest
from modbus_peers import Bank, liar, served

from drivers.modbus.adu import AduReader, frame
from drivers.modbus.client import (
    Disconnected,
    ExceptionAnswer,
    Garbage,
    Link,
    LinkError,
    Read,
    Timeout,
    WrongLength,
    WrongUnit,
)


def link_to(port: int, timeout_s: float = 0.2) -> Link:
    link = Link("127.0.0.1", port, timeout_s, name="BMS")
    link.connect()
    return link


def answering(
    pdu: str, unit: int = 1, transaction: int = 0, protocol: int = 0, behind: bytes = b""
) -> Callable[[bytes], bytes]:
    """A liar's answer: this PDU for the request's transaction plus `transaction`."""
    body = bytes.fromhex(pdu)

    def answer(request: bytes) -> bytes:
        asked = struct.unpack_from(">H", request)[0]
        return struct.pack(">HHHB", asked + transaction, protocol, len(body) + 1, unit) + body + behind

    return answer


def test_reads_writes_and_identity_of_an_honest_device() -> None:
    bank = Bank(units=(1, 7))
    bank.words(7, 100, 1, 2, 3)
    with served(bank) as server:
        link = link_to(server.port)
        assert link.read(7, 100, 3) == bytes.fromhex("000100020003")
        assert link.read(7, 100, 1, function=4) == b"\0\1"
        link.write(1, 0x2011, b"\x12\x34\x56\x78")
        assert bank.writes == [(1, 0x2011, b"\x12\x34\x56\x78")]
        assert link.identity(1) == {0: b"Maker", 1: b"Thing", 2: b"1.0"}


def test_an_identity_in_several_parts_is_put_together() -> None:
    bank = Bank(identity={0: b"a" * 200, 1: b"b" * 200, 2: b"c" * 200})
    with served(bank) as server:
        assert link_to(server.port).identity(1) == bank.objects


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        pytest.param(
            answering("03 04 00010002", unit=7), WrongUnit, "answered for unit 7 instead of 1", id="wrong unit"
        ),
        pytest.param(answering("03 02 0001"), WrongLength, "answered 2 bytes, not 4", id="short"),
        pytest.param(answering("03 06 000100020003"), WrongLength, "answered 6 bytes, not 4", id="long"),
        pytest.param(answering("03 06 00010002"), WrongLength, "unit 1", id="byte count lie"),
        pytest.param(answering("03"), WrongLength, "unit 1", id="no byte count"),
        pytest.param(answering("03 04 00010002", transaction=1), Garbage, "transaction 2 instead of 1", id="tid"),
        pytest.param(answering("03 04 00010002", transaction=-1), Garbage, "transaction 0 instead", id="tid 0"),
        pytest.param(answering("04 04 00010002"), Garbage, "function 0x04", id="wrong function"),
        pytest.param(answering("84 02"), Garbage, "function 0x84", id="exception of another function"),
        pytest.param(answering("83 02 00"), Garbage, "function 0x83", id="long exception"),
        pytest.param(answering("03 04 00010002", protocol=1), Garbage, "protocol id 1", id="protocol id"),
        pytest.param(answering("03 04 00010002", behind=b"\0"), Garbage, "more than one", id="bytes behind"),
        pytest.param(lambda _: b"\xa5" * 60, Garbage, "sent garbage", id="noise"),
        pytest.param(answering("83 06"), ExceptionAnswer, "refused function 3 with exception 06", id="busy"),
        pytest.param(lambda _: b"", Timeout, "Timeout waiting for response from BMS 127.0.0.1:", id="silent"),
        pytest.param(lambda r: r[:2] + b"\0\0\0\7", Timeout, "Timeout", id="half an answer"),
    ],
)
def test_each_lie_is_its_own_error_and_never_data(
    answer: Callable[[bytes], bytes], error: type[LinkError], text: str
) -> None:
    with liar(answer) as port:
        link = link_to(port)
        with pytest.raises(LinkError, match=text) as raised:
            link.read(1, 100, 2)
        assert type(raised.value) is error
        after = ExceptionAnswer if error is ExceptionAnswer else Disconnected
        with pytest.raises(after):
            link.read(1, 100, 2)


@pytest.mark.parametrize("echo", ["10 0100 0003", "10 0101 0002", "10 0100", "06 0100 0002"])
def test_a_write_with_another_echo_has_failed(echo: str) -> None:
    with liar(answering(echo)) as port, pytest.raises(Garbage):
        link_to(port).write(1, 0x100, bytes(4))


@pytest.mark.parametrize(
    "pdu",
    ["2b 0e 01 82 00 00 02 00 01 41", "2b 0e 01 82 00 00 01 00 05 41", "2b 0e 01 82 00 00 01 00 01 41 42", "2b 0e"],
)
def test_an_identity_that_lies_about_its_lengths_is_refused(pdu: str) -> None:
    with liar(answering(pdu)) as port, pytest.raises((WrongLength, Garbage)):
        link_to(port).identity(1)


def test_an_identity_without_end_is_refused() -> None:
    with liar(answering("2b 0e 01 82 ff 00 01 00 01 41")) as port, pytest.raises(Garbage, match="come to an end"):
        link_to(port).identity(1)


def test_a_dribbling_peer_cannot_stretch_the_deadline() -> None:
    def dribble(peer: socket.socket, answer: bytes) -> None:
        for byte in answer:
            peer.sendall(bytes((byte,)))
            time.sleep(0.03)

    with liar(answering("03 04 00010002"), on_send=dribble) as port:
        link = link_to(port)
        start = time.monotonic()
        with pytest.raises(Timeout):
            link.read(1, 100, 2)
        assert time.monotonic() - start < 0.3


def test_an_answer_in_two_segments_is_taken() -> None:
    def halves(peer: socket.socket, answer: bytes) -> None:
        peer.sendall(answer[:5])
        time.sleep(0.02)
        peer.sendall(answer[5:])

    with liar(answering("03 04 00010002"), on_send=halves) as port:
        assert link_to(port).read(1, 100, 2) == b"\0\1\0\2"


def test_a_late_answer_is_never_taken_for_a_fresh_one() -> None:
    seen: list[bytes] = []

    def late(peer: socket.socket, answer: bytes) -> None:
        seen.append(answer)
        if len(seen) == 1:
            time.sleep(0.3)
        with contextlib.suppress(OSError):
            peer.sendall(answer)

    values = iter(("03 02 0bad", "03 02 600d"))
    with liar(lambda request: answering(next(values))(request), on_send=late) as port:
        link = link_to(port)
        with pytest.raises(Timeout):
            link.read(1, 100, 1)
        link.connect()
        assert link.read(1, 100, 1) == b"\x60\x0d"


def test_nobody_there_is_disconnected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(Disconnected, match="refused"):
        link_to(port)


def test_a_peer_that_ends_the_connection_is_disconnected() -> None:
    with liar(lambda _: b"", on_send=lambda peer, _: peer.close()) as port, pytest.raises(Disconnected):
        link_to(port).read(1, 100, 2)


READS = [Read(unit, 100 + unit, 1 + unit) for unit in range(1, 8)]


def several(turn: Callable[[list[bytes]], list[bytes]], at_once: list[int] | None = None) -> Callable[[bytes], bytes]:
    """A device that takes in all requests of one segment before it answers them in the order that `turn` makes."""

    def answer(segment: bytes) -> bytes:
        requests = list(AduReader().feed(segment))
        if at_once is not None:
            at_once.append(len(requests))
        return b"".join(
            turn([frame(t, u, bytes((3, 2 * pdu[4])) + bytes((u,)) * 2 * pdu[4]) for t, u, pdu in requests])
        )

    return answer


def read_ahead(port: int, transactions: int) -> dict[Read, bytes]:
    return {a.read: a.data for a in link_to(port).read_each(READS, transactions=transactions)}


@pytest.mark.parametrize("transactions", [1, 2, 4, 16])
@pytest.mark.parametrize("turn", [list, lambda answers: answers[::-1]], ids=["in order", "the last first"])
def test_answers_belong_to_their_requests_in_whatever_order_they_come(
    turn: Callable[[list[bytes]], list[bytes]], transactions: int
) -> None:
    at_once: list[int] = []
    with liar(several(turn, at_once)) as port:
        assert read_ahead(port, transactions) == {r: bytes((r.unit,)) * 2 * r.registers for r in READS}
    assert max(at_once) == min(transactions, len(READS)), "as many under way as the device takes, never more"


def test_the_next_request_is_sent_before_an_answer_is_handed_out() -> None:
    asked: list[int] = []
    with liar(several(list, asked)) as port:
        answers = link_to(port).read_each(READS[:3], transactions=2)
        next(answers)
        deadline = time.monotonic() + 1.0
        while sum(asked) < 3:
            assert time.monotonic() < deadline, f"{asked} were asked for while the first answer is looked at"


def test_a_lost_answer_among_several_is_a_timeout_and_the_others_have_been_handed_out() -> None:
    with liar(several(lambda answers: answers[1:])) as port:
        link = link_to(port)
        got: list[Read] = []
        with pytest.raises(Timeout, match="unit 1"):
            got.extend(a.read for a in link.read_each(READS[:3], transactions=3))
        assert got == READS[1:3]
        with pytest.raises(Disconnected):
            link.read(1, 100, 1)


@pytest.mark.parametrize(
    ("turn", "error", "text"),
    [
        pytest.param(lambda a: [a[0], a[0]], Garbage, "transaction 1, which is not under way", id="twice"),
        pytest.param(lambda a: [b"\0\x63" + a[0][2:]], Garbage, "transaction 99, which is not under way", id="unknown"),
        pytest.param(lambda a: [a[1][:2] + a[0][2:]], WrongUnit, "for unit 1 instead of 2", id="swapped"),
        pytest.param(lambda a: [a[0][:5] + b"\3" + a[0][6:8] + b"\0"], WrongLength, "0 bytes, not 4", id="empty"),
        pytest.param(lambda a: [b"\xa5" * 40], Garbage, "sent garbage", id="noise"),
    ],
)
def test_a_lie_among_several_answers_ends_the_connection(
    turn: Callable[[list[bytes]], list[bytes]], error: type[LinkError], text: str
) -> None:
    with liar(several(turn)) as port:
        link = link_to(port)
        with pytest.raises(LinkError, match=text) as raised:
            list(link.read_each(READS[:2], transactions=2))
        assert type(raised.value) is error
        with pytest.raises(Disconnected):
            link.read(1, 100, 1)


def test_a_refusal_among_several_is_told_when_all_have_come_and_the_connection_is_kept() -> None:
    asked: list[int] = []

    def refuse(answers: list[bytes]) -> list[bytes]:
        return [answers[0][:4] + b"\0\3" + answers[0][6:7] + b"\x83\6", *answers[1:]] if len(answers) > 1 else answers

    with liar(several(refuse, asked)) as port:
        link = link_to(port)
        got: list[Read] = []
        with pytest.raises(ExceptionAnswer, match="unit 1 refused function 3 with exception 06"):
            got.extend(a.read for a in link.read_each(READS, transactions=3))
        assert got == READS[1:3], "nothing more was asked for"
        assert asked == [3]
        assert link.read(5, 100, 1) == b"\5\5"


def test_a_device_that_works_at_one_after_the_other_has_the_whole_time_for_each() -> None:
    def slowly(peer: socket.socket, answers: bytes) -> None:
        for adu in AduReader().feed(answers):
            time.sleep(0.12)
            peer.sendall(frame(*adu))

    with liar(several(list), on_send=slowly) as port:
        took_s = [a.took_s for a in link_to(port, 0.2).read_each(READS[:4], transactions=4)]
    assert all(0.05 < s < 0.2 for s in took_s)
