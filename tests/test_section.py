"""Shared-memory sections: a reader never sees half of one value and half of another."""

from __future__ import annotations

import multiprocessing
import os
import struct
import zlib
from multiprocessing.synchronize import Event
from pathlib import Path
from time import monotonic_ns

import pytest
from waiting import wait_until

from drivers import section
from drivers.section import SectionError, SectionFile, SectionReader

LAYOUT = {"small": 64, "cells": 4800}
READS = 1_000_000


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader looks for its file as often as it is asked."""
    monkeypatch.setattr(section, "LOOK_NS", 0)


def _hammer(path: Path, stop: Event) -> None:
    writer = SectionFile(path, LAYOUT)["cells"]
    patterns = [bytes([n]) * 4800 for n in range(251)]
    n = 0
    while not stop.is_set():
        for _ in range(200):
            n += 1
            writer.publish(patterns[n % 251])


def _shared(tmp_path: Path) -> Path:
    memory = Path("/dev/shm")
    return (memory if os.access(memory, os.W_OK) else tmp_path) / f"ems-test-{os.getpid()}.img"


def test_a_million_reads_against_a_hammering_writer_are_never_torn(tmp_path: Path) -> None:
    path = _shared(tmp_path)
    stop = multiprocessing.Event()
    writer = multiprocessing.Process(target=_hammer, args=(path, stop), daemon=True)
    writer.start()
    reader = SectionReader(path, LAYOUT, "cells")
    try:
        wait_until(lambda: reader.sequence > 1000, 10, "the writer to run")
        torn = changed = last = 0
        for _ in range(READS):
            snapshot = reader.read()
            assert snapshot is not None
            payload = snapshot.payload
            torn += payload.count(payload[0]) != 4800
            changed += snapshot.sequence != last
            last = snapshot.sequence
    finally:
        stop.set()
        writer.join(5)
        path.unlink()
    assert torn == 0
    assert changed > READS // 100, "the writer must really have written meanwhile"


def test_a_file_that_is_not_there_is_looked_for_four_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 10**12
    monkeypatch.setattr(section, "monotonic_ns", lambda: now_ns)
    reader = SectionReader(tmp_path / "x.img", LAYOUT, "small")
    assert reader.read() is None
    SectionFile(tmp_path / "x.img", LAYOUT)["small"].publish(b"now")
    now_ns += 249_999_999
    assert reader.read() is None
    now_ns += 1
    found = reader.read()
    assert found is not None
    assert found.payload == b"now"


@pytest.mark.usefixtures("impatient")
def test_a_reader_waits_in_peace_for_its_writer(tmp_path: Path) -> None:
    reader = SectionReader(tmp_path / "x.img", LAYOUT, "small")
    assert reader.read() is None
    assert reader.sequence == 0
    SectionFile(tmp_path / "x.img", LAYOUT)["small"].publish(b"now")
    snapshot = reader.read()
    assert snapshot is not None
    assert snapshot.payload == b"now"
    assert 0 <= monotonic_ns() - snapshot.stamp_ns < 10**9


def test_there_is_one_writer(tmp_path: Path) -> None:
    first = SectionFile(tmp_path / "x.img", LAYOUT)
    with pytest.raises(SectionError, match="already has a writer"):
        SectionFile(tmp_path / "x.img", LAYOUT)
    first.close()


def test_a_writer_that_comes_back_continues_and_readers_follow(tmp_path: Path) -> None:
    first = SectionFile(tmp_path / "x.img", LAYOUT)
    first["small"].publish(b"one")
    reader = SectionReader(tmp_path / "x.img", LAYOUT, "small")
    assert reader.read() is not None
    first.close()
    second = SectionFile(tmp_path / "x.img", LAYOUT)
    assert second["small"].last() == b"one"
    second["small"].publish(b"two")
    snapshot = reader.read()
    assert snapshot is not None
    assert (snapshot.sequence, snapshot.payload) == (2, b"two")


def test_a_damaged_slot_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    file = SectionFile(path, LAYOUT)
    reader = SectionReader(path, LAYOUT, "small")
    file["small"].publish(b"good")
    assert reader.read() is not None
    file["small"].publish(b"evil")
    data = bytearray(path.read_bytes())
    at = data.index(b"evil")
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"vile")
    snapshot = reader.read()
    assert snapshot is not None
    assert snapshot.payload == b"good"
    assert reader.retries > 0


def test_a_payload_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SectionFile(tmp_path / "x.img", LAYOUT)["small"].publish(bytes(65))


HEAD = struct.Struct("=QQII")  # sequence, stamp, length, crc32: what a slot begins with
STAMPED = struct.Struct("=QQI")


def _forged(path: Path, at: int, sequence: int, said: int, length: int) -> None:
    """A slot whose crc32 is that of publish `sequence`, while it says that it is publish `said`."""
    data = path.read_bytes()[at + HEAD.size :]
    crc = zlib.crc32(data[:length], zlib.crc32(STAMPED.pack(sequence, 5, length)))
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(HEAD.pack(said, 5, length, crc))


@pytest.mark.parametrize(
    ("capacity", "slot"), [(39, 64), (40, 64), (41, 128), (4800, 4864)], ids=["below", "whole", "above", "cells"]
)
def test_a_counter_and_three_slots_each_begin_on_a_cache_line(tmp_path: Path, capacity: int, slot: int) -> None:
    SectionFile(tmp_path / "x.img", {"one": capacity, "two": 8})
    assert (tmp_path / "x.img").stat().st_size == 64 + (64 + 3 * slot) + (64 + 3 * 64)


def test_the_bytes_of_a_file_are_those_that_other_processes_expect(tmp_path: Path) -> None:
    layout = {"one": 8, "two": 100}
    file = SectionFile(tmp_path / "x.img", layout)
    for n in range(1, 5):
        file["two"].publish(bytes([n]) * n, stamp_ns=1000 + n)
    data = (tmp_path / "x.img").read_bytes()
    said = zlib.crc32(repr(sorted(layout.items())).encode())
    assert data[:64] == struct.pack("=8sII48x", b"EMSIMG1\0", said, 0)
    assert not any(data[64 : 64 + 64 + 3 * 64])
    counter = 64 + 64 + 3 * 64
    assert data[counter : counter + 64] == struct.pack("=Q56x", 4)
    for n, slot in ((3, 0), (4, 1), (2, 2)):
        at, payload = counter + 64 + slot * 128, bytes([n]) * n
        crc = zlib.crc32(payload, zlib.crc32(STAMPED.pack(n, 1000 + n, n)))
        assert data[at : at + HEAD.size + n] == HEAD.pack(n, 1000 + n, n, crc) + payload


@pytest.mark.parametrize("length", [0, 1, 63, 64])
def test_a_payload_up_to_the_capacity_is_read_as_it_was_published(tmp_path: Path, length: int) -> None:
    file, reader = SectionFile(tmp_path / "x.img", LAYOUT), SectionReader(tmp_path / "x.img", LAYOUT, "small")
    file["cells"].publish(b"\xff" * 4800)
    for _ in range(4):
        file["small"].publish(b"\xee" * length)
        assert file["small"].last() == b"\xee" * length
        snapshot = reader.read()
        assert snapshot is not None
        assert snapshot.payload == b"\xee" * length
    cells = SectionReader(tmp_path / "x.img", LAYOUT, "cells").read()
    assert cells is not None
    assert (cells.sequence, cells.payload) == (1, b"\xff" * 4800)


def test_before_the_first_publish_there_is_nothing_and_nothing_is_tried_twice(tmp_path: Path) -> None:
    file, reader = SectionFile(tmp_path / "x.img", LAYOUT), SectionReader(tmp_path / "x.img", LAYOUT, "small")
    assert file["small"].last() is None
    assert reader.read() is None
    assert (reader.sequence, reader.retries) == (0, 0)


def test_the_number_of_publishes_is_told_without_a_read(tmp_path: Path) -> None:
    file, reader = SectionFile(tmp_path / "x.img", LAYOUT), SectionReader(tmp_path / "x.img", LAYOUT, "small")
    for n in range(1, 4):
        file["small"].publish(b"x")
        assert reader.sequence == n


def test_the_counter_of_a_file_stays_the_same_one(tmp_path: Path) -> None:
    file, reader = SectionFile(tmp_path / "x.img", LAYOUT), SectionReader(tmp_path / "x.img", LAYOUT, "small")
    counter = reader.counter
    file["small"].publish(b"x")
    assert counter[0] == 1
    assert reader.counter is counter


def test_what_did_not_change_is_not_copied_again(tmp_path: Path) -> None:
    file, reader = SectionFile(tmp_path / "x.img", LAYOUT), SectionReader(tmp_path / "x.img", LAYOUT, "small")
    file["small"].publish(b"x")
    assert reader.read() is reader.read()


def _small_slot(sequence: int) -> int:
    return 64 + 64 + sequence % 3 * 128


@pytest.mark.parametrize(
    ("said", "length"), [(1, 4), (3, 4), (2, 65), (2, 1 << 31)], ids=["older", "newer", "longer", "absurd"]
)
def test_a_slot_with_another_number_or_too_long_is_not_believed_even_if_its_checksum_agrees(
    tmp_path: Path, said: int, length: int
) -> None:
    path = tmp_path / "x.img"
    file, reader = SectionFile(path, LAYOUT), SectionReader(path, LAYOUT, "small")
    file["small"].publish(b"good")
    assert reader.read() is not None
    file["small"].publish(b"evil")
    _forged(path, _small_slot(2), 2, 2, 4)
    assert file["small"].last() == b"evil"
    _forged(path, _small_slot(2), 2, said, length)
    assert file["small"].last() is None
    for reads in (1, 2):
        snapshot = reader.read()
        assert snapshot is not None
        assert snapshot.payload == b"good"
        assert reader.retries == 4 * reads


@pytest.mark.usefixtures("impatient")
def test_a_reader_does_not_believe_a_file_of_another_layout_or_length(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    reader = SectionReader(path, LAYOUT, "small")
    path.write_bytes(b"EMSIMG1\0")
    assert (reader.read(), reader.sequence) == (None, 0)
    other = SectionFile(path, {"large": 64, "cells": 4800})
    other["large"].publish(b"other")
    assert path.stat().st_size == 64 + (64 + 3 * 128) + (64 + 3 * 4864)
    assert (reader.read(), reader.sequence) == (None, 0)
    other.close()
    file = SectionFile(path, LAYOUT)
    assert (reader.read(), reader.sequence) == (None, 0)
    file["small"].publish(b"ours")
    snapshot = reader.read()
    assert snapshot is not None
    assert (snapshot.sequence, snapshot.payload) == (1, b"ours")


def test_a_file_of_another_length_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    for before in (b"", b"\xff" * 99, b"\xff" * 99_999):
        path.write_bytes(before)
        file = SectionFile(path, LAYOUT)
        assert path.stat().st_size == 64 + (64 + 3 * 128) + (64 + 3 * 4864)
        assert not any(path.read_bytes()[64:])
        assert (file["small"].last(), file["cells"].last()) == (None, None)
        file.close()


def test_only_the_owner_writes_the_file_and_only_the_group_reads_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SectionFile(tmp_path / "x.img", LAYOUT)
    finally:
        os.umask(before)
    assert (tmp_path / "x.img").stat().st_mode & 0o777 == 0o640


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_behind_by_a_second_writer_or_after_the_end(tmp_path: Path) -> None:
    file = SectionFile(tmp_path / "x.img", LAYOUT)
    before = _descriptors()
    for _ in range(3):
        with pytest.raises(SectionError):
            SectionFile(tmp_path / "x.img", LAYOUT)
    assert _descriptors() == before
    file.close()
    assert _descriptors() == before - 1, "the mapping keeps its own"


@pytest.mark.usefixtures("impatient")
def test_a_file_that_may_not_be_read_is_as_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def closed(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    SectionFile(tmp_path / "x.img", LAYOUT)["small"].publish(b"now")
    reader = SectionReader(tmp_path / "x.img", LAYOUT, "small")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        assert reader.read() is None
    found = reader.read()
    assert found is not None
    assert found.payload == b"now"
