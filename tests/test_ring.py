"""The ring: the last records of a stream, never torn, and the lost ones counted."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
import timeit
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from waiting import wait_until

from drivers.ring import RingReader, RingWriter
from drivers.section import SectionError

SLOTS, SIZE = 8, 200
MANY, READS = 64, 100_000


def record(number: int, size: int = SIZE) -> bytes:
    return struct.pack("=Q", number) * (size // 8)


@pytest.fixture
def path() -> Iterator[Path]:
    made = Path("/dev/shm") / f"ems-ring-{os.getpid()}"
    yield made
    made.unlink(missing_ok=True)


def _hammer(path: Path, stop: Event) -> None:
    writer = RingWriter(path, MANY, SIZE)
    number = 0
    while not stop.is_set():
        for _ in range(200):
            number += 1
            writer.append(record(number))
        time.sleep(0.0001)  # a reader that is slower than the writer would read next to nothing


def test_no_read_of_many_against_a_hammering_writer_is_torn(path: Path) -> None:
    stop = multiprocessing.Event()
    writer = multiprocessing.Process(target=_hammer, args=(path, stop), daemon=True)
    writer.start()
    reader = RingReader(path, MANY, SIZE)
    got = torn = last = lost = passes = 0
    end = time.monotonic() + 30
    try:
        while got < READS and time.monotonic() < end:
            passes += 1
            if passes % 10 == 0:
                time.sleep(0.005)  # a reader that never rests may keep up, and is then never overtaken
            for sequence, payload in reader.new():
                torn += payload != record(sequence)
                assert not last or sequence - last - 1 == reader.lost - lost, "each was read or counted as lost"
                last, lost = sequence, reader.lost
                got += 1
    finally:
        stop.set()
        writer.join(5)
    assert got >= READS
    assert torn == 0
    assert reader.lost > READS // 100, "the writer must really have overtaken the reader"


def test_records_come_once_in_order_and_from_the_first(path: Path) -> None:
    reader = RingReader(path, SLOTS, SIZE)
    assert list(reader.new()) == []
    writer = RingWriter(path, SLOTS, SIZE)
    assert list(reader.new()) == []
    for number in (1, 2, 3):
        writer.append(record(number))
    assert list(reader.new()) == [(n, record(n)) for n in (1, 2, 3)]
    writer.append(record(4))
    assert list(reader.new()) == [(4, record(4))]
    assert list(reader.new()) == []
    assert reader.lost == 0


def test_a_reader_that_falls_behind_knows_how_many_it_lost(path: Path) -> None:
    writer = RingWriter(path, SLOTS, SIZE)
    reader = RingReader(path, SLOTS, SIZE)
    writer.append(record(1))
    assert len(list(reader.new())) == 1
    for number in range(2, 22):
        writer.append(record(number))
    assert [sequence for sequence, _ in reader.new()] == list(range(15, 22)), "the oldest slot may be written now"
    assert reader.lost == 13


def test_what_was_overwritten_before_the_first_look_is_not_lost(path: Path) -> None:
    writer = RingWriter(path, SLOTS, SIZE)
    for number in range(1, 31):
        writer.append(record(number))
    reader = RingReader(path, SLOTS, SIZE)
    assert [sequence for sequence, _ in reader.new()] == list(range(24, 31))
    assert reader.lost == 0


def test_a_damaged_record_is_tried_again_then_left_behind_and_counted(path: Path) -> None:
    writer = RingWriter(path, SLOTS, SIZE)
    reader = RingReader(path, SLOTS, SIZE)
    for number in (1, 2, 3):
        writer.append(record(number))
    data = path.read_bytes()
    with path.open("r+b") as raw:
        raw.seek(data.index(record(2)) + SIZE // 2)
        raw.write(b"\xff")
    assert [sequence for sequence, _ in reader.new()] == [1]
    assert reader.lost == 0
    assert [sequence for sequence, _ in reader.new()] == [3]
    assert reader.lost == 1


def test_a_record_that_becomes_whole_between_two_looks_is_not_lost(path: Path) -> None:
    writer = RingWriter(path, SLOTS, SIZE)
    reader = RingReader(path, SLOTS, SIZE)
    writer.append(record(1))
    whole = path.read_bytes()
    with path.open("r+b") as raw:
        raw.seek(whole.index(record(1)))
        raw.write(b"\xff")
        raw.flush()
        assert list(reader.new()) == []
        raw.seek(0)
        raw.write(whole)
        raw.flush()
    assert list(reader.new()) == [(1, record(1))]
    assert reader.lost == 0


def test_a_writer_that_comes_back_continues_the_ring(path: Path) -> None:
    first = RingWriter(path, SLOTS, SIZE)
    first.append(record(1))
    reader = RingReader(path, SLOTS, SIZE)
    assert len(list(reader.new())) == 1
    with pytest.raises(SectionError, match="already has a writer"):
        RingWriter(path, SLOTS, SIZE)
    first.close()
    RingWriter(path, SLOTS, SIZE).append(record(2))
    assert list(reader.new()) == [(2, record(2))]


def test_a_ring_of_another_shape_is_begun_anew(path: Path) -> None:
    first = RingWriter(path, SLOTS, SIZE)
    first.append(record(1))
    first.close()
    writer = RingWriter(path, SLOTS, 2 * SIZE)
    reader = RingReader(path, SLOTS, 2 * SIZE)
    assert list(reader.new()) == []
    writer.append(record(1, 2 * SIZE))
    assert list(reader.new()) == [(1, record(1, 2 * SIZE))]
    assert list(RingReader(path, SLOTS, SIZE).new()) == [], "a reader of the old shape believes nothing"


def test_a_record_of_the_wrong_size_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="199 bytes in a ring of 200"):
        RingWriter(path, SLOTS, SIZE).append(bytes(SIZE - 1))


def test_an_append_costs_less_than_ten_microseconds(path: Path) -> None:
    writer, payload = RingWriter(path, 1024, SIZE), record(1)
    best_us = min(timeit.repeat(lambda: writer.append(payload), number=2000, repeat=10)) / 2000 * 1e6
    assert best_us < 10


def test_a_reader_in_peace_follows_a_writer_in_another_process_without_a_loss(path: Path) -> None:
    def write() -> None:
        writer = RingWriter(path, MANY, SIZE)
        for number in range(1, 301):
            writer.append(record(number))
            time.sleep(0.001)

    process = multiprocessing.get_context("fork").Process(target=write, daemon=True)
    process.start()
    reader, seen = RingReader(path, MANY, SIZE), list[int]()

    def all_there() -> bool:
        seen.extend(sequence for sequence, _ in reader.new())
        return len(seen) >= 300

    wait_until(all_there, 10, "300 records")
    process.join(5)
    assert seen == list(range(1, 301))
    assert reader.lost == 0
