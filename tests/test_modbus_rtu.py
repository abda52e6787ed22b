"""RTU frames over TCP and on a serial line: an older BMS behind a gateway, with everything that goes wrong there."""

from __future__ import annotations

import contextlib
import os
import pty
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modbus_peers import Answer, Bank, liar, served
from msgspec.structs import replace
from pymodbus.framer.rtu import FramerRTU
from test_aggregator import BMS, Beating, Plant, converter, rack
from waiting import wait_until

from drivers.modbus.adu import FramingError, frame
from drivers.modbus.client import (
    Damaged,
    Disconnected,
    ExceptionAnswer,
    Garbage,
    Link,
    LinkError,
    Timeout,
    WrongLength,
    WrongUnit,
)
from drivers.modbus.rtu import RtuFraming, answer_length, crc
from drivers.modbus.session import Counters, Session
from drivers.profile import Line, ProfileError
from firmware import aggregator, config


def rtu(bank: Bank, change: Callable[[bytes], bytes] = lambda answer: answer) -> Answer:
    """A device behind a gateway; `change` is what the line does to an answer."""

    def answer(request: bytes) -> bytes:
        assert crc(request[:-2]) == request[-2:], request.hex()
        answers, _ = Session(bank, "gateway", Counters(), lambda error: None).receive(
            frame(0, request[0], request[1:-2])
        )
        body = answers[6:]
        return change(body + crc(body))

    return answer


def bank() -> Bank:
    made = Bank()
    made.words(1, 100, 0x1234, 0x5678)
    return made


def link_to(port: int, timeout_s: float = 0.2) -> Link:
    link = Link("127.0.0.1", port, timeout_s, 1.0, "BMS", RtuFraming())
    link.connect()
    return link


@given(st.binary(max_size=255))
def test_the_crc_is_that_of_an_independent_implementation(data: bytes) -> None:
    assert crc(data) == FramerRTU.compute_CRC(data).to_bytes(2, "big")


def test_reads_writes_and_the_identity_go_through() -> None:
    device = bank()
    with liar(rtu(device)) as port:
        link = link_to(port)
        assert link.read(1, 100, 2).hex() == "12345678"
        link.write(1, 200, b"\0\1\0\2")
        assert device.writes == [(1, 200, b"\0\1\0\2")]
        assert link.identity(1) == {0: b"Maker", 1: b"Thing", 2: b"1.0"}
        link.close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda a: b"", Timeout, id="lost"),
        pytest.param(lambda a: a[:-1], Timeout, id="the last byte lost"),
        pytest.param(lambda a: a[:-1] + bytes((a[-1] ^ 1,)), Damaged, id="CRC damaged"),
        pytest.param(lambda a: a[:4] + bytes((a[4] ^ 0x80,)) + a[5:], Damaged, id="data damaged"),
        pytest.param(lambda a: (b := bytes((9,)) + a[1:-2]) + crc(b), WrongUnit, id="another unit"),
        pytest.param(lambda a: b"\xa5" * 60, Garbage, id="noise"),
        pytest.param(lambda a: a + a, Garbage, id="twice"),
        pytest.param(lambda a: (b := a[:2] + b"\2\0\0") + crc(b), WrongLength, id="one register too few"),
        pytest.param(lambda a: (b := a[:1] + b"\x83\6") + crc(b), ExceptionAnswer, id="busy"),
        pytest.param(lambda a: (b := a[:1] + b"\4" + a[2:-2]) + crc(b), Garbage, id="another function"),
    ],
)
def test_what_the_line_does_to_an_answer_is_told_and_never_taken_for_data(
    change: Callable[[bytes], bytes], error: type[LinkError]
) -> None:
    with liar(rtu(bank(), change)) as port:
        link = link_to(port)
        with pytest.raises(error):
            link.read(1, 100, 2)
        if error is not ExceptionAnswer:
            with pytest.raises(Disconnected, match="not connected"):
                link.read(1, 100, 2)


def test_a_stale_answer_of_the_right_unit_function_and_length_is_never_taken_for_a_fresh_one() -> None:
    """The gateway sends the answer to the first request only when the second one is asked for."""
    device, held = bank(), [b""]

    def late(answer: bytes) -> bytes:
        held[0], answer = answer, held[0]
        return answer

    with liar(rtu(device, late)) as port:
        link = link_to(port)
        for value in range(5):
            device.words(1, 100, value)
            with contextlib.suppress(LinkError):
                assert link.read(1, 100, 1) == value.to_bytes(2), "an old value"
            with contextlib.suppress(LinkError):
                link.connect()


def test_bytes_that_nobody_asked_for_end_the_connection_before_the_next_request() -> None:
    sent: list[float] = []

    def twice_later(peer: object, answer: bytes) -> None:
        peer.sendall(answer)  # type: ignore[attr-defined]

        def again() -> None:
            peer.sendall(answer)  # type: ignore[attr-defined]
            sent.append(1.0)

        threading.Timer(0.02, again).start()

    with liar(rtu(bank()), on_send=twice_later) as port:
        link = link_to(port)
        link.read(1, 100, 1)
        wait_until(lambda: sent, 2, "the second copy")
        with pytest.raises(Garbage, match="that nobody asked for"):
            link.read(1, 100, 1)


def test_an_answer_in_single_bytes_is_put_together() -> None:
    def dribble(peer: object, answer: bytes) -> None:
        for byte in answer:
            peer.sendall(bytes((byte,)))  # type: ignore[attr-defined]
            time.sleep(0.001)

    with liar(rtu(bank()), on_send=dribble) as port:
        assert link_to(port).read(1, 100, 2).hex() == "12345678"


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_too_short_or_an_error(data: bytes) -> None:
    framing = RtuFraming()
    framing.ask(1, b"\3\0\0\0\1")
    with contextlib.suppress(FramingError):
        found = framing.feed(data)
        if found is not None:
            assert crc(data[:-2]) == data[-2:]
        else:
            length = answer_length(data)
            assert length is None or length > len(data)


@contextlib.contextmanager
def serial_device(device: Bank) -> Iterator[str]:
    """The device at the other end of a pseudo-terminal; gives the path of ours."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    stop, answer = threading.Event(), rtu(device)

    def run() -> None:
        os.set_blocking(master, False)
        while not stop.is_set():
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(master, answer(os.read(master, 300)))
            stop.wait(0.001)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        stop.set()
        thread.join(2)
        os.close(master)
        os.close(slave)


def test_the_same_frames_go_over_a_real_serial_line() -> None:
    with serial_device(bank()) as path:
        link = Link(path, 0, 0.5, name="BMS", framing=RtuFraming(), baud=115200, parity="none")
        link.connect()
        assert link.read(1, 100, 2).hex() == "12345678"
        assert link.identity(1)[1] == b"Thing"
        link.timeout_s = 0.0
        with pytest.raises(Timeout, match=f"Timeout waiting for response from BMS {path} unit 1"):
            link.read(1, 100, 2)


def test_a_serial_line_that_is_not_there_is_named() -> None:
    link = Link("/dev/ttyNONE", 0, 0.5, name="BMS", framing=RtuFraming())
    with pytest.raises(Disconnected, match=r"BMS /dev/ttyNONE cannot be reached: .*No such file"):
        link.connect()


def test_a_rack_behind_a_gateway_that_damages_answers_is_polled_and_the_damage_counted(tmp_path: Path) -> None:
    bms, pcs, made = rack(1, 30), converter(), 0
    profile = replace(BMS, line=Line(framing="rtu"))

    def damage(answer: bytes) -> bytes:
        nonlocal made
        made += 1
        return answer[:-1] + bytes((answer[-1] ^ 1,)) if made % 12 == 0 else answer

    with (
        Beating((bms, BMS)),
        liar(rtu(bms, damage)) as port,
        served(pcs) as pcs_server,
        Plant(tmp_path, port, pcs_server.port, profile=profile) as running,
    ):
        wait_until(lambda: running.links.bms_crc >= 3, 20, "damaged answers")
        wait_until(running.bms_fresh, 3, "and fresh data")
        assert running.bms is not None
        assert running.bms.plausible
        assert running.links.bms_garbage == 0


def test_a_serial_line_with_a_profile_that_speaks_tcp_is_refused(tmp_path: Path) -> None:
    config.prepare(tmp_path, {"bms_host": "/dev/ttyS0"})
    with pytest.raises(ProfileError, match=r'bms_host = /dev/ttyS0 in site.conf: .* framing = "rtu"'):
        aggregator.settings_of_site(tmp_path)
