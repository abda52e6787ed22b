"""The server against a raw probe: every byte of every answer."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import Bank, served
from pymodbus.client import ModbusTcpClient
from pymodbus.pdu import ExceptionResponse
from pymodbus.pdu.file_message import FileRecord, ReadFileRecordResponse
from waiting import wait_until

from drivers.modbus.adu import Adu, AduReader, FramingError, frame
from drivers.modbus.server import StrictServer
from drivers.modbus.session import Counters, ModbusError, Session, identification

READ_1 = bytes.fromhex("0300640002")


@pytest.fixture(scope="module")
def bank() -> Bank:
    bank = Bank()
    for address in range(0x400):
        bank.words(1, address, address)
    bank.read_only = {0x300}
    return bank


@pytest.fixture(scope="module")
def server(bank: Bank) -> Iterator[StrictServer]:
    with served(bank) as server:
        yield server


@pytest.fixture(scope="module")
def file_server() -> Iterator[StrictServer]:
    with served(FileBank()) as server:
        yield server


@pytest.fixture
def peer(server: StrictServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 2) as peer:
        peer.settimeout(2)
        yield peer


def answers(peer: socket.socket, count: int) -> list[bytes]:
    """`count` answer PDUs."""
    reader, got = AduReader(), list[bytes]()
    while len(got) < count:
        data = peer.recv(65536)
        assert data, f"closed after {len(got)} of {count} answers"
        got += [pdu for _, _, pdu in reader.feed(data)]
    return got


def ask(peer: socket.socket, pdu: str | bytes, unit: int = 1) -> str:
    pdu = bytes.fromhex(pdu) if isinstance(pdu, str) else pdu
    peer.sendall(struct.pack(">HHHB", 7, 0, len(pdu) + 1, unit) + pdu)
    return answers(peer, 1)[0].hex()


class FileBank(Bank):
    """Register n of file f is 256 f + n; file 7 is on a bad disk, file 9 has 20 registers, the others 10,000."""

    def read_file(self, unit: int, file: int, record: int, count: int) -> bytes:
        if file == 7:
            raise ModbusError(4)
        if file > 9 or record + count > (20 if file == 9 else 10_000):
            raise ModbusError(2)
        return struct.pack(f">{count}H", *((256 * file + n) & 0xFFFF for n in range(record, record + count)))


def closed(peer: socket.socket, within_s: float = 2.0) -> bool:
    peer.settimeout(within_s)
    with contextlib.suppress(ConnectionResetError):
        return peer.recv(100) == b""
    return True


def session(device: Bank | None = None) -> Session:
    return Session(device or Bank(), "test", Counters(), lambda error: None)


@pytest.mark.parametrize(
    ("request_pdu", "answer"),
    [
        ("03 0064 0002", "03 04 0064 0065"),
        ("04 0064 0001", "04 02 0064"),
        ("03 0064 0000", "83 03"),
        ("03 0064 007e", "83 03"),
        ("03 ffff 0002", "83 02"),
        ("03 ffff 0001", "03 02 0000"),
        ("03 0064", "83 03"),
        ("03 0064 0001 00", "83 03"),
        ("03", "83 03"),
        ("06 0200 1234", "06 0200 1234"),
        ("06 0300 1234", "86 02"),
        ("06 0200", "86 03"),
        ("10 0200 0002 04 00010002", "10 0200 0002"),
        ("10 0200 0000 00", "90 03"),
        ("10 0200 0002 03 000100", "90 03"),
        ("10 0200 0002 04 000100", "90 03"),
        ("10 0200 0002 04 0001000200", "90 03"),
        ("10 0200 0001 04 00010002", "90 03"),
        ("10 02ff 0002 04 00010002", "90 02"),
        ("10 ffff 0002 04 00010002", "90 02"),
        ("10 0200", "90 03"),
        ("17 0200 0002 0200 0002 04 0a0b0c0d", "17 04 0a0b0c0d"),
        ("17 0200 0000 0200 0001 02 0001", "97 03"),
        ("17 0200 007e 0200 0001 02 0001", "97 03"),
        ("17 0200 0001 0200 0000 00", "97 03"),
        ("17 0200 0001 0200 0001 04 0001", "97 03"),
        ("17 0200 0001", "97 03"),
        ("2b 0e 01 00", "2b 0e 01 82 00 00 03 00 05 4d616b6572 01 05 5468696e67 02 03 312e30"),
        ("2b 0e 02 02", "2b 0e 02 82 00 00 01 02 03 312e30"),
        ("2b 0e 04 01", "2b 0e 04 82 00 00 01 01 05 5468696e67"),
        ("2b 0e 04 07", "ab 02"),
        ("2b 0e 00 00", "ab 03"),
        ("2b 0e 05 00", "ab 03"),
        ("2b 0d 01 00", "ab 01"),
        ("2b", "ab 03"),
        ("2b 0e 01", "ab 03"),
    ],
)
def test_each_request_has_exactly_this_answer(peer: socket.socket, request_pdu: str, answer: str) -> None:
    assert ask(peer, request_pdu) == answer.replace(" ", "")


def test_most_registers_are_served_and_one_more_is_refused_without_closing(peer: socket.socket) -> None:
    assert len(ask(peer, "030000007d")) == 2 * (2 + 250)
    assert ask(peer, struct.pack(">BHHB", 16, 0x200, 123, 246) + bytes(246)) == "100200007b"
    assert ask(peer, struct.pack(">BHHB", 16, 0x200, 124, 248) + bytes(248)) == "9003"
    assert ask(peer, struct.pack(">BHHHHB", 23, 0x200, 1, 0x200, 121, 242) + bytes(242)) == "17020000"
    assert ask(peer, struct.pack(">BHHHHB", 23, 0x200, 1, 0x200, 122, 244) + bytes(244)) == "9703"
    assert ask(peer, READ_1) == "030400640065"


def test_a_refused_write_changes_nothing(peer: socket.socket, bank: Bank) -> None:
    ask(peer, "06 02ff 5555")
    assert ask(peer, "10 02ff 0002 04 00010002") == "9002"
    assert ask(peer, "17 ffff 0002 02ff 0001 02 7777") == "9702"
    assert ask(peer, "03 02ff 0001") == "03025555"


def test_a_unit_that_is_not_served_gets_exception_0b(peer: socket.socket) -> None:
    assert ask(peer, READ_1, unit=9) == "830b"
    assert ask(peer, "06 0200 0001", unit=0) == "860b"


def test_every_function_code_gets_the_specified_answer_or_its_exception(peer: socket.socket) -> None:
    served_codes = {3, 4, 6, 16, 23, 43}
    noise = random.Random(1)
    for code in range(256):
        answer = bytes.fromhex(ask(peer, bytes((code,)) + noise.randbytes(noise.randrange(12))))
        if code in served_codes:
            assert answer[0] in (code, code | 0x80)
        else:
            assert answer == bytes((code | 0x80, 1))
    assert ask(peer, READ_1) == "030400640065"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("0001 0001 0006 01 03", id="protocol id 1"),
        pytest.param("0001 ffff 0006 01 03", id="protocol id 65535"),
        pytest.param("0001 0000 0000 01 03", id="length 0"),
        pytest.param("0001 0000 0001 01 03", id="length 1"),
        pytest.param("0001 0000 00ff 01 03", id="length 255"),
        pytest.param("0001 0000 ffff 01 03", id="length 65535"),
        pytest.param("0001 0000 ffff 01 10", id="length 65535 of a write"),
        pytest.param("0001 0000 0000", id="length 0, header only"),
    ],
)
def test_what_is_not_modbus_tcp_closes_the_connection_and_only_that(
    peer: socket.socket, server: StrictServer, header: str
) -> None:
    before = server.counters.framing_errors
    peer.sendall(frame(1, 1, READ_1) + bytes.fromhex(header))
    assert answers(peer, 1) == [bytes.fromhex("030400640065")]
    assert closed(peer)
    assert server.counters.framing_errors == before + 1
    with socket.create_connection(("127.0.0.1", server.port), 2) as following:
        assert ask(following, READ_1) == "030400640065"


def test_a_frame_split_at_any_point_gets_the_same_answer(peer: socket.socket) -> None:
    adu = frame(5, 1, bytes.fromhex("10020000030600010002000a"))
    for at in range(1, len(adu)):
        peer.sendall(adu[:at])
        time.sleep(0.001)
        peer.sendall(adu[at:])
        assert answers(peer, 1) == [bytes.fromhex("1002000003")]


def test_every_split_of_a_stream_gives_the_same_bytes() -> None:
    stream = b"".join(
        frame(n, 1, pdu) for n, pdu in enumerate([READ_1, b"\x2b\x0e\x01\x00", b"\x41", b"\x06\x00\x01\x00\x02"])
    )
    whole, _ = session().receive(stream)
    for at in range(len(stream) + 1):
        parts = session()
        assert parts.receive(stream[:at])[0] + parts.receive(stream[at:])[0] == whole


@pytest.mark.parametrize("count", [2, 5, 16, 500])
def test_pipelined_requests_are_all_answered_in_order(peer: socket.socket, count: int) -> None:
    peer.sendall(b"".join(frame(n, 1, struct.pack(">BHH", 3, n, 1)) for n in range(count)))
    assert answers(peer, count) == [struct.pack(">BBH", 3, 2, n) for n in range(count)]


def test_a_write_and_a_read_behind_it_in_one_segment_are_done_in_this_order(peer: socket.socket) -> None:
    peer.sendall(frame(1, 1, bytes.fromhex("0602104242")) + frame(2, 1, bytes.fromhex("0302100001")))
    assert answers(peer, 2)[1].hex() == "03024242"


def test_connections_above_the_limit_are_closed_and_a_freed_place_is_given_again() -> None:
    with served(Bank(), max_connections=2) as server, contextlib.ExitStack() as stack:
        first, second, third = (
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 2)) for _ in range(3)
        )
        assert closed(third)
        assert server.counters.refused == 1
        assert ask(first, READ_1) and ask(second, READ_1)
        first.close()
        wait_until(lambda: server.connections == 1, 1, "place freed")
        fourth = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 2))
        assert ask(fourth, READ_1) == "030400000000"


def test_half_an_adu_and_an_idle_connection_are_closed_in_time_but_a_talking_one_is_not() -> None:
    with served(Bank(), idle_s=0.6, adu_deadline_s=0.2) as server, contextlib.ExitStack() as stack:
        half, idle, talking = (
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 2)) for _ in range(3)
        )
        half.sendall(b"\0\1\0\0")
        start = time.monotonic()
        assert closed(half)
        assert 0.15 < time.monotonic() - start < 0.5
        while server.connections == 2:
            assert ask(talking, READ_1)
        assert time.monotonic() - start < 1.2
        assert closed(idle)
        assert server.counters.timed_out == 2


def test_a_dribbling_peer_cannot_stretch_the_deadline() -> None:
    with served(Bank(), adu_deadline_s=0.3) as server, socket.create_connection(("127.0.0.1", server.port), 2) as peer:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in frame(1, 1, struct.pack(">BHHB", 16, 0, 100, 200) + bytes(200)):
                peer.sendall(bytes((byte,)))
                time.sleep(0.02)
        assert time.monotonic() - start < 1.0
        assert server.connections == 0


def test_a_peer_that_never_reads_is_closed_with_little_memory_held() -> None:
    bank = Bank()
    with served(bank, adu_deadline_s=0.3) as server, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", server.port))
        peer.settimeout(0.3)
        requests = frame(1, 1, bytes.fromhex("030000007d")) * 1000
        with contextlib.suppress(OSError):
            for _ in range(1000):
                peer.sendall(requests)
        wait_until(lambda: server.connections == 0, 2, "closed")
        assert server.counters.timed_out == 1
        assert bank.reads * 259 < 16e6  # the kernel's own buffers take most of it


def test_a_peer_that_ends_half_way_through_a_header_is_closed_at_once(server: StrictServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 2) as peer:
        peer.sendall(b"\0\1\0\0\0")
        peer.shutdown(socket.SHUT_WR)
        assert closed(peer, 0.5)


def test_a_failing_device_answers_04_and_logs_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    bank = Bank()

    def fail() -> None:
        raise RuntimeError("sensor bus")

    bank.fail = fail
    with (
        caplog.at_level(logging.DEBUG),
        served(bank) as server,
        socket.create_connection(("127.0.0.1", server.port), 2) as peer,
    ):
        caplog.clear()
        assert {ask(peer, READ_1) for _ in range(200)} == {"8304"}
        assert len([r for r in caplog.records if r.name == "drivers.modbus.server"]) <= 2
        assert server.counters.device_failures == 200


def test_garbage_logs_nothing(caplog: pytest.LogCaptureFixture, server: StrictServer) -> None:
    noise = random.Random(2)
    caplog.set_level(logging.INFO)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", server.port), 2) as peer, contextlib.suppress(OSError):
            peer.sendall(noise.randbytes(40))
    assert not [r for r in caplog.records if r.name.startswith("drivers")]


def reference(file: int, record: int, count: int, kind: int = 6) -> bytes:
    return struct.pack(">BHHH", kind, file, record, count)


def file_request(*references: bytes, size: int | None = None) -> bytes:
    body = b"".join(references)
    return bytes((20, len(body) if size is None else size)) + body


@pytest.mark.parametrize(
    ("request_pdu", "answer"),
    [
        pytest.param(file_request(reference(1, 2, 2)), "14 06 05 06 0102 0103", id="one sub-request"),
        pytest.param(
            file_request(reference(4, 1, 1), reference(3, 9, 2)),
            "14 0a 03 06 0401 05 06 0309 030a",
            id="two files in one",
        ),
        pytest.param(file_request(reference(1, 9999, 1)), "14 04 03 06 280f", id="the last record"),
        pytest.param(file_request(reference(9, 19, 1)), "14 04 03 06 0913", id="the last of a short file"),
        pytest.param(file_request(), "94 03", id="byte count 0"),
        pytest.param(b"\x14", "94 03", id="no byte count"),
        pytest.param(file_request(reference(1, 2, 2)[:-1]), "94 03", id="byte count 6"),
        pytest.param(file_request(reference(1, 2, 2), b"\6"), "94 03", id="byte count no multiple of 7"),
        pytest.param(file_request(*[reference(1, 2, 1)] * 35, b"\6"), "94 03", id="byte count 246"),
        pytest.param(file_request(reference(1, 2, 2), size=14), "94 03", id="byte count above what came"),
        pytest.param(
            file_request(reference(1, 2, 2), reference(1, 2, 2), size=7), "94 03", id="more than the byte count"
        ),
        pytest.param(file_request(reference(1, 2, 0)), "94 03", id="record length 0"),
        pytest.param(file_request(reference(1, 2, 122)), "94 03", id="answer too long"),
        pytest.param(file_request(*[reference(1, 2, 60)] * 2, reference(1, 0, 1)), "94 03", id="sum too long"),
        pytest.param(file_request(reference(1, 2, 2, kind=5)), "94 02", id="reference type 5"),
        pytest.param(file_request(reference(1, 2, 2), reference(1, 2, 2, kind=0)), "94 02", id="second type 0"),
        pytest.param(file_request(reference(0, 2, 2)), "94 02", id="file 0"),
        pytest.param(file_request(reference(1, 9999, 2)), "94 02", id="beyond record 9999"),
        pytest.param(file_request(reference(1, 10_000, 1)), "94 02", id="record 10000"),
        pytest.param(file_request(reference(9, 19, 2)), "94 02", id="beyond the end of the file"),
        pytest.param(file_request(reference(12, 0, 1)), "94 02", id="file unknown"),
        pytest.param(file_request(reference(1, 0, 1), reference(12, 0, 1)), "94 02", id="second file unknown"),
        pytest.param(file_request(reference(7, 0, 1)), "94 04", id="disk error"),
        pytest.param(bytes.fromhex("150906000100000001abcd"), "95 01", id="FC21 writes no file"),
    ],
)
def test_file_records_are_answered_as_the_specification_draws_it(
    file_server: StrictServer, request_pdu: bytes, answer: str
) -> None:
    with socket.create_connection(("127.0.0.1", file_server.port), 2) as peer:
        peer.settimeout(2)
        assert ask(peer, request_pdu) == answer.replace(" ", "")
        assert ask(peer, READ_1) == "030400000000", "the connection lives on"


def test_the_longest_file_answer_fits_and_other_units_have_none(file_server: StrictServer) -> None:
    with socket.create_connection(("127.0.0.1", file_server.port), 2) as peer:
        assert len(ask(peer, file_request(reference(1, 0, 121)))) == 2 * (2 + 244)
        assert len(ask(peer, file_request(*[reference(1, 0, 2)] * 35))) == 2 * (2 + 210)
        assert ask(peer, file_request(reference(1, 0, 1)), unit=9) == "940b"


def test_a_device_without_files_refuses_the_function(peer: socket.socket) -> None:
    assert ask(peer, file_request(reference(1, 0, 1))) == "9401"


def test_a_file_request_split_at_any_point_gets_the_same_answer() -> None:
    adu = frame(3, 1, file_request(reference(1, 2, 2), reference(4, 0, 1)))
    whole, _ = session(FileBank()).receive(adu)
    assert whole[7:].hex() == "140a" + "050601020103" + "03060400"
    for at in range(len(adu) + 1):
        parts = session(FileBank())
        assert parts.receive(adu[:at])[0] + parts.receive(adu[at:])[0] == whole


def test_an_independent_client_reads_file_records(file_server: StrictServer) -> None:
    client = ModbusTcpClient("127.0.0.1", port=file_server.port, timeout=2, retries=0)
    wanted = [FileRecord(file_number=4, record_number=1, record_length=4), FileRecord(3, 9, b"", 240)]
    answer = client.read_file_record(wanted, device_id=1)
    assert isinstance(answer, ExceptionResponse)
    assert answer.exception_code == 3
    wanted[1] = FileRecord(file_number=3, record_number=9, record_length=220)
    answer = client.read_file_record(wanted, device_id=1)
    assert isinstance(answer, ReadFileRecordResponse)
    assert [part.record_data for part in answer.records] == [
        bytes.fromhex("04010402"),
        struct.pack(">110H", *range(0x309, 0x309 + 110)),
    ]
    client.close()  # type: ignore[no-untyped-call]


def test_a_port_in_use_is_an_error(server: StrictServer) -> None:
    with pytest.raises(OSError, match="in use"), served(Bank(), port=server.port):
        pass


def test_eight_clients_at_once_each_get_their_own_answers(server: StrictServer) -> None:
    def client(number: int) -> bool:
        with socket.create_connection(("127.0.0.1", server.port), 2) as peer:
            want = struct.pack(">BBH", 3, 2, number).hex()
            return all(ask(peer, struct.pack(">BHH", 3, number, 1)) == want for _ in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))


def test_long_identity_objects_come_in_parts() -> None:
    objects = {0: b"a" * 200, 1: b"b" * 100, 2: b"c"}
    assert identification(objects, 1, 0)[4:8] == bytes((0xFF, 1, 1, 0))
    assert identification(objects, 1, 1)[4:7] == bytes((0, 0, 2))
    with pytest.raises(ModbusError):
        identification(objects, 4, 3)


def well_formed(request: bytes, answers_: bytes, alive: bool) -> None:
    reader = AduReader()
    answered = list(reader.feed(answers_))
    assert not reader.pending
    expected, broken = AduReader(), False
    asked: list[Adu] = []
    try:
        asked.extend(expected.feed(request))
    except FramingError:
        broken = True
    assert alive is not broken
    assert [a[:2] for a in answered] == [a[:2] for a in asked]
    for (_, _, question), (_, _, pdu) in zip(asked, answered, strict=True):
        assert pdu[0] & 0x7F == question[0] & 0x7F
        assert len(pdu) <= 253
        if pdu[0] & 0x80:
            assert len(pdu) == 2 and pdu[1] in (1, 2, 3, 11)


_adu = st.builds(
    lambda tid, unit, code, body: frame(tid, unit, bytes((code,)) + body),
    st.integers(0, 0xFFFF),
    st.sampled_from([1, 1, 1, 0, 2, 255]),
    st.one_of(st.sampled_from([3, 4, 6, 16, 20, 23, 43]), st.integers(0, 255)),
    st.binary(max_size=40),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(_adu, _adu, st.binary(max_size=30)), max_size=8).map(b"".join))
def test_any_bytes_give_well_formed_answers_or_a_closed_connection(stream: bytes) -> None:
    for device in (Bank(), FileBank()):
        received, alive = session(device).receive(stream)
        well_formed(stream, received, alive)
