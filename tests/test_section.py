"""Shared-memory sections: a reader never sees half of one value and half of another."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path
from time import monotonic_ns

import pytest
from waiting import wait_until

from drivers.section import SectionError, SectionFile, SectionReader

LAYOUT = {"small": 64, "cells": 4800}
READS = 1_000_000


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
