"""Modbus TCP framing byte by byte: the smallest and largest frame, and the first byte that proves an error."""

from __future__ import annotations

import struct

import pytest

from drivers.modbus import adu
from drivers.modbus.adu import AduReader, FramingError


def header(length: int, protocol: int = 0, function: int = 3) -> bytes:
    return struct.pack(">HHHBB", 7, protocol, length, 1, function)


def whole(length: int, function: int = 3) -> bytes:
    return header(length, function=function) + bytes(length - 2)


def fed(*parts: bytes) -> tuple[list[adu.Adu], AduReader]:
    reader = AduReader()
    return [found for part in parts for found in reader.feed(part)], reader


def test_the_limits_are_those_of_the_guide_and_of_a_write_that_is_too_long() -> None:
    assert (adu.MAX_LENGTH, adu.MAX_LENGTH_WRITE) == (254, 300)


def test_a_frame_counts_the_unit_and_the_pdu() -> None:
    assert adu.frame(0x1234, 5, b"\x03\x00") == bytes.fromhex("1234 0000 0003 05 0300")


@pytest.mark.parametrize("length", [2, 3, 253, 254])
def test_a_frame_of_an_allowed_length_is_cut_out(length: int) -> None:
    found, reader = fed(whole(length))
    assert found == [(7, 1, b"\x03" + bytes(length - 2))]
    assert not reader.pending


@pytest.mark.parametrize("function", [16, 23])
@pytest.mark.parametrize("length", [2, 254, 255, 299, 300])
def test_a_write_may_be_longer_so_that_it_can_be_answered(length: int, function: int) -> None:
    found, _ = fed(whole(length, function))
    assert len(found) == 1
    assert len(found[0][2]) == length - 1


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (header(255), "MBAP length 255, allowed 2..254"), (header(1), "length 1"), (header(0), "length 0"),
        (header(301, function=16), "length 301"), (header(1, function=16), "length 1"),
        (header(255, function=15), "length 255"), (header(255, function=17), "length 255"),
        (header(255, function=22), "length 255"), (header(255, function=24), "length 255"),
        (header(6, protocol=1), "protocol id 1, allowed 0"), (header(6, protocol=1, function=16), "protocol id 1"),
    ],
)  # fmt: skip
def test_the_eighth_byte_proves_an_error(start: bytes, says: str) -> None:
    with pytest.raises(FramingError, match=says):
        fed(start)


@pytest.mark.parametrize("held", [6, 7])
@pytest.mark.parametrize(
    ("start", "says"),
    [(header(6, protocol=1), "protocol id 1"), (header(1), "length 1"), (header(301), "length 301")],
)
def test_what_no_function_can_heal_is_refused_from_the_sixth_byte_on(held: int, start: bytes, says: str) -> None:
    assert fed(start[:5])[0] == []
    with pytest.raises(FramingError, match=says):
        fed(start[:held])


@pytest.mark.parametrize("held", [6, 7])
@pytest.mark.parametrize("length", [2, 254, 255, 300])
def test_a_length_that_a_write_may_have_is_waited_for(held: int, length: int) -> None:
    found, reader = fed(whole(length, 16)[:held])
    assert found == []
    assert reader.pending


def test_frames_that_arrive_byte_by_byte_and_together_are_the_same() -> None:
    stream = whole(2) + whole(6) + whole(300, 16) + whole(4)
    alone, _ = fed(*(bytes([byte]) for byte in stream))
    together, _ = fed(stream)
    assert [len(pdu) for *_, pdu in together] == [1, 5, 299, 3]
    assert alone == together


def test_the_start_of_a_bad_frame_behind_a_good_one_is_refused() -> None:
    with pytest.raises(FramingError, match="length 1"):
        fed(whole(6) + header(1)[:6])


@pytest.mark.parametrize(
    ("start", "says"),
    [(header(6, protocol=1), "protocol id 1"), (header(255), "length 255"), (header(301, function=23), "length 301")],
)
def test_a_bad_frame_that_arrives_whole_is_refused_as_well(start: bytes, says: str) -> None:
    with pytest.raises(FramingError, match=says):
        fed(start + bytes(400))


def test_what_is_held_is_told_until_the_frame_is_whole() -> None:
    stream, reader = whole(6), AduReader()
    assert not reader.pending
    for byte in stream[:-1]:
        assert list(reader.feed(bytes([byte]))) == []
        assert reader.pending
    assert len(list(reader.feed(stream[-1:]))) == 1
    assert not reader.pending


@pytest.mark.parametrize("length", [2, 3, 100, 253, 254])
def test_what_is_one_frame_is_taken_as_it_is(length: int) -> None:
    frame = whole(length)
    assert adu.whole(frame) == (7, 1, b"\x03" + bytes(length - 2))
    assert adu.whole(frame[:-1]) is None
    assert adu.whole(frame + b"\0") is None
    assert adu.whole(frame + frame) is None


@pytest.mark.parametrize(
    "data", [b"", whole(2)[:7], header(1)[:7], header(2, protocol=1), header(1), header(3), whole(255), whole(300, 16)]
)
def test_what_is_not_one_frame_of_an_answer_is_left_to_the_reader(data: bytes) -> None:
    assert adu.whole(data) is None
