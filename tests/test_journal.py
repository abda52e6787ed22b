"""The journal: numbered without a gap, true to the byte, and whatever is lost, cut or damaged is told."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from fake_disk import FakeDisk, Image, every_byte
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.image import Event
from firmware.journal import BUFFERED, BURST, Entry, Journal, Note, read
from statemachine.signals import EventKind

ROOT = Path(__file__).parents[1]
EIO = OSError(errno.EIO, "Input/output error")
EVENTS = st.builds(
    Event,
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1),
    st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.text(max_size=88),
)  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    made = tmp_path / "journal"
    made.mkdir()
    return made


def _event(n: int, kind: int = EventKind.COMMAND, text: str = "") -> Event:
    return Event(n, n * 1_000_000, n * 1_000_000 + 7, kind, n, 0, text)


def _add(journal: Journal, numbers: Iterable[int], now_s: float = 0.0, kind: int = EventKind.STATE) -> None:
    for n in numbers:
        journal.add("controller", _event(n, kind), True)
    journal.commit(now_s)


def _filled(directory: Path, numbers: Iterable[int], segment_bytes: int = 1_000_000, segments: int = 16) -> None:
    journal = Journal(directory, segments, segment_bytes)
    for n in numbers:
        _add(journal, [n])
    journal.close()


def _numbers(entries: Iterable[Entry]) -> list[int]:
    return [entry.event.a for entry in entries if entry.note == Note.EVENT]


def _notes(entries: Iterable[Entry]) -> list[tuple[Note, int]]:
    return [(entry.note, entry.event.a) for entry in entries if entry.note != Note.EVENT]


def test_an_empty_or_missing_journal_has_no_entries(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == list(read(tmp_path / "missing")) == []


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["controller", "guard", "historian"]), EVENTS, st.booleans()), max_size=30))
def test_what_is_recorded_is_read(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, Event, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory)
    for process, event, trusted in events:
        journal.add(process, event, trusted)
        journal.commit(0.0)
    journal.close()
    expected = [Entry(n, process, event, trusted, Note.EVENT) for n, (process, event, trusted) in enumerate(events, 1)]
    assert list(read(directory)) == expected


def test_a_long_text_is_cut_and_the_record_holds(journal: Path) -> None:
    writer = Journal(journal)
    writer.add("historian", _event(1, 0, "ü" * 1000), False)
    writer.close()
    (entry,) = read(journal)
    assert entry.event.text == "ü" * 200


def test_a_successor_goes_on_with_the_numbers_and_knows_what_was_recorded(journal: Path) -> None:
    _filled(journal, range(1, 6))
    _filled(journal, range(6, 9))
    entries = list(read(journal))
    assert [entry.sequence for entry in entries] == list(range(1, 9))
    assert _numbers(entries) == list(range(1, 9))
    assert Journal(journal).known == {"controller": [(n, n * 1_000_000) for n in range(1, 9)]}


def test_a_successor_knows_what_was_recorded_before_the_last_segment_too(journal: Path) -> None:
    _filled(journal, range(1, 12), segment_bytes=700)
    assert len(list(journal.iterdir())) == 2
    assert Journal(journal).known == {"controller": [(n, n * 1_000_000) for n in range(1, 12)]}


def test_a_hundred_thousand_events_are_numbered_without_a_gap(journal: Path) -> None:
    writer = Journal(journal)
    for n in range(1, 100_001):
        writer.add("controller", _event(n), True)
        if n % 32 == 0:
            writer.commit(n / 1000)
    writer.close()
    assert writer.acknowledged == 100_000
    assert [(entry.sequence, entry.event.a) for entry in read(journal)] == [(n, n) for n in range(1, 100_001)]


def test_the_size_is_bounded_the_oldest_are_dropped_and_the_reader_says_so(journal: Path) -> None:
    _filled(journal, range(1, 401), segment_bytes=1000, segments=4)
    sizes = [path.stat().st_size for path in journal.iterdir()]
    assert len(sizes) == 4
    assert max(sizes) <= 1000
    dropped, *rest = read(journal)
    assert dropped.note == Note.DROPPED
    assert dropped.event.text == f"records 1 to {dropped.event.a} were dropped to keep the journal within its bounds"
    assert [entry.sequence for entry in rest] == list(range(dropped.event.a + 1, 401))


def test_order_is_by_number_whatever_the_wall_clock_did(journal: Path) -> None:
    writer = Journal(journal)
    for n, wall_ns in enumerate((2**62, 0, 10**18, 5), 1):
        writer.add("controller", _event(n)._replace(wall_ns=wall_ns), False)
    writer.close()
    assert [(entry.sequence, entry.event.wall_ns) for entry in read(journal)] == [
        (1, 2**62), (2, 0), (3, 10**18), (4, 5),
    ]  # fmt: skip


def _recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch, holding: Image | None = None, first: int = 1, kind: int = 1
) -> FakeDisk:
    """Nine events, three a commit, two a segment; what is acknowledged is marked after each commit."""
    with monkeypatch.context() as patch:
        disk = FakeDisk(root, patch, holding)
        writer = Journal(root, segment_bytes=150)
        for n in range(first, first + 9, 3):
            _add(writer, range(n, n + 3), kind=kind)
            assert writer.ok
            disk.mark(str(writer.acknowledged))
    return disk


def _true_prefix(entries: list[Entry], acknowledged: int, kind: int = EventKind.STATE) -> bool:
    """All acknowledged events, none that never was, each with its number; later ones may be there or be missing."""
    events = [entry for entry in entries if entry.note == Note.EVENT]
    sequences = [entry.sequence for entry in events]
    return (
        set(range(1, acknowledged + 1)) <= set(sequences)
        and all(after > before for before, after in pairwise(sequences))
        and all(entry.event == _event(entry.sequence, kind) and entry.trusted for entry in events)
    )


@pytest.mark.parametrize(("kind", "marks"), [(EventKind.STATE, "369"), (EventKind.COMMAND, "248")])
def test_a_cut_at_any_byte_leaves_every_acknowledged_record_and_none_that_is_false(
    journal: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: EventKind, marks: str
) -> None:
    images = list(_recorded(journal, monkeypatch, kind=kind).images(every_byte))
    for image in images:
        entries = list(read(image.lay_out(tmp_path / "cut")))
        assert _true_prefix(entries, int(image.passed[-1]) if image.passed else 0, kind), image
    assert len(images) > 800
    assert {image.passed[-1:] for image in images} == {(), *((mark,) for mark in marks)}


def test_after_any_cut_the_journal_goes_on_and_what_was_cut_off_is_told(
    journal: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuts = 0
    for image in _recorded(journal, monkeypatch).images(lambda length: {1, 16, 63, 64, length - 1}):
        directory = image.lay_out(tmp_path / "cut")
        before = [entry for entry in read(directory) if entry.note == Note.EVENT]
        _filled(directory, [77])
        entries = list(read(directory))
        assert [e for e in entries if e.note == Note.EVENT][:-1] == before
        assert entries[-1].event.a == 77
        told = {entry.sequence for entry in entries if entry.note in {Note.EVENT, Note.CUT}}
        missing = sum(entry.event.a for entry in entries if entry.note == Note.MISSING)
        assert len(told) + missing == entries[-1].sequence
        cuts += any(entry.note == Note.CUT for entry in entries)
    assert cuts > 40


def test_a_second_cut_while_the_journal_goes_on_costs_nothing_that_was_acknowledged(
    journal: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds = 0
    for first in _recorded(journal, monkeypatch).images(lambda length: {1, length // 2}):
        directory = first.lay_out(tmp_path / "after")
        before = [entry for entry in read(directory) if entry.note == Note.EVENT]
        acknowledged = [entry for entry in before if first.passed and entry.sequence <= int(first.passed[-1])]
        disk = _recorded(directory, monkeypatch, holding=first, first=101)
        for second in disk.images(lambda length: {length // 2}):
            entries = [entry for entry in read(second.lay_out(tmp_path / "cut")) if entry.note == Note.EVENT]
            assert entries[: len(acknowledged)] == acknowledged
            numbers = _numbers(entries)
            later = [n for n in numbers if n > 100]
            assert later[: len(second.passed) * 3] == list(range(101, 101 + len(second.passed) * 3))
            assert set(numbers) <= {*range(1, 10), *range(101, 110)}
            assert [entry.sequence for entry in entries] == sorted({entry.sequence for entry in entries})
            seconds += 1
    assert seconds > 500


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("call", ["open", "write", "fdatasync", "fsync", "ftruncate"])
def test_a_disk_that_fails_for_a_while_loses_nothing_that_memory_can_hold(
    journal: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, forgets: bool
) -> None:
    with monkeypatch.context() as patch:
        disk, writer = FakeDisk(journal, patch), Journal(journal, segment_bytes=450)
        disk.forgets = forgets
        _add(writer, [1, 2])
        disk.mark("2")
        disk.fail = {call: EIO, "fdatasync": EIO}
        for n in range(3, 9):
            _add(writer, [n], now_s=2.0 * n)
            assert (writer.ok, writer.lost) == (False, 0)
        assert writer.error.endswith("Input/output error")
        disk.fail = {}
        writer.commit(100.0)
        assert (writer.ok, writer.acknowledged) == (True, 8)
        disk.mark("8")
    assert _numbers(read(journal)) == list(range(1, 9))
    assert _notes(read(journal)) == []
    for image in disk.images(lambda length: {length // 2}):
        assert _true_prefix(list(read(image.lay_out(tmp_path / "cut"))), int(image.passed[-1]) if image.passed else 0)


def test_a_failing_disk_is_asked_once_a_second(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Journal(journal)
    asked: list[int] = []
    monkeypatch.setattr(os, "write", lambda fd, data: _fail(asked))
    for n in range(1, 501):
        _add(writer, [n], now_s=n * 0.020)
    assert 9 <= len(asked) <= 11


def _fail(asked: list[int]) -> int:
    asked.append(1)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_memory_cannot_hold_is_counted_and_told_in_its_place(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(journal)
    _add(writer, [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: _fail([]))
        _add(writer, range(2, BUFFERED + 12), now_s=10.0)
        assert not writer.ok
        assert writer.lost == 10
    _add(writer, [9999], now_s=20.0)
    writer.close()
    assert writer.lost == 11
    first, told, *rest = read(journal)
    assert (first.sequence, told.sequence, told.note, told.event.a) == (1, 2, Note.LOST, 11)
    assert told.event.text == "11 events were not recorded"
    assert _numbers(rest) == [*range(13, BUFFERED + 12), 9999]
    assert [entry.sequence for entry in rest] == list(range(3, 3 + len(rest)))


def test_events_that_were_never_seen_are_a_record(journal: Path) -> None:
    writer = Journal(journal)
    writer.add_lost("guard", _event(0, 0, "8 events of guard were overwritten"), 8, True)
    writer.close()
    (entry,) = read(journal)
    assert (entry.process, entry.note, entry.event.a, writer.lost) == ("guard", Note.LOST, 8, 8)


def test_a_disk_that_takes_only_a_part_leaves_no_half_record(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Journal(journal)
    _add(writer, [1])
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:30]))
        _add(writer, [2])
        assert "disk full" in writer.error or "only a part" in writer.error
    _add(writer, [3], now_s=5.0)
    assert _numbers(read(journal)) == [1, 2, 3]
    assert _notes(read(journal)) == []


def test_a_journal_that_was_deleted_goes_on_with_the_next_number(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(journal)
    _add(writer, [1, 2, 3])
    for path in journal.iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: _fail([]))
        _add(writer, [4])
    writer.commit(5.0)
    assert [(entry.note, entry.sequence) for entry in read(journal)] == [(Note.DROPPED, 1), (Note.EVENT, 4)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[int, Entry]]:
    """Sixty records in four segments."""
    directory = tmp_path_factory.mktemp("sound")
    _filled(directory, range(1, 61), segment_bytes=1000)
    return {path.name: path.read_bytes() for path in directory.iterdir()}, {e.sequence: e for e in read(directory)}


@settings(max_examples=150)
@given(st.data())
def test_damage_never_makes_a_false_record_and_is_always_told(
    tmp_path_factory: pytest.TempPathFactory, sound: tuple[dict[str, bytes], dict[int, Entry]], data: st.DataObject
) -> None:
    files, truth = sound
    directory = tmp_path_factory.mktemp("damaged")
    name = data.draw(st.sampled_from(sorted(files)))
    content = files[name]
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 120))
    how = data.draw(st.sampled_from(["flip", "zero", "noise", "out", "twice", "older"]))
    other = files[sorted(files)[0]]
    middle = {
        "flip": bytes([content[at] ^ 1 << length % 8]) + content[at + 1 : at + length],
        "zero": bytes(length),
        "noise": data.draw(st.binary(min_size=length, max_size=length)),
        "out": b"",
        "twice": content[at : at + length] * 2,
        "older": other[: at + length],
    }[how]
    for each, whole in files.items():
        (directory / each).write_bytes(content[:at] + middle + content[at + length :] if each == name else whole)
    entries = list(read(directory))
    events = [entry for entry in entries if entry.note == Note.EVENT]
    assert all(truth[entry.sequence] == entry for entry in events)
    assert [entry.sequence for entry in events] == sorted({entry.sequence for entry in events})
    at_the_end = name == max(files)
    if len(events) < len(truth) and not (at_the_end and how == "out"):
        assert _notes(entries)


def test_damage_in_the_middle_is_told_with_place_and_numbers(journal: Path) -> None:
    _filled(journal, range(1, 11))
    (path,) = journal.iterdir()
    raw = bytearray(path.read_bytes())
    length = len(raw) // 10
    raw[length * 4 + 20] ^= 0x10
    path.write_bytes(raw)
    _filled(journal, [11])
    entries = list(read(journal))
    assert _numbers(entries) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    damaged, missing = [entry for entry in entries if entry.note != Note.EVENT]
    assert damaged.event.text == f"{length} bytes at {length * 4} of {path.name} are no record"
    assert missing.event.text == "records 5 to 5 are missing"
    assert missing.event.monotonic_ns == 4_000_000


def test_a_segment_that_is_gone_is_told(journal: Path) -> None:
    _filled(journal, range(1, 61), segment_bytes=1000)
    second, third = sorted(journal.iterdir())[1:3]
    second.unlink()
    (note,) = [entry for entry in read(journal) if entry.note != Note.EVENT]
    assert note.note == Note.MISSING
    assert note.event.text == f"records {int(second.stem[8:])} to {int(third.stem[8:]) - 1} are missing"


class _Clocked:
    """A journal polled every 20 ms, and the syncs that it made."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs_s: list[float] = []
        self.now_s = 0.0
        self.writer = Journal(directory)
        monkeypatch.setattr(os, "fdatasync", lambda fd: self.syncs_s.append(self.now_s))

    def run(self, seconds: float, every: int = 0, kind: int = EventKind.COMMAND, period_s: float = 0.020) -> None:
        for poll in range(round(seconds / period_s)):
            if every and poll % every == 0:
                self.writer.add("controller", _event(poll, kind), True)
            self.writer.commit(self.now_s)
            self.now_s += period_s


def test_a_fault_or_state_is_synced_at_once_and_anything_else_after_a_second(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked = _Clocked(journal, monkeypatch)
    for kind in (EventKind.FAULT_ON, EventKind.STATE, EventKind.FAULT_ACK, EventKind.SERVICE_PRESS):
        clocked.writer.add("controller", _event(1, kind), True)
        clocked.writer.commit(0.0)
    assert clocked.syncs_s == [0.0] * 4
    clocked.run(5.0, every=10_000)
    assert clocked.syncs_s[4:] == pytest.approx([1.0])


def test_a_plain_event_after_a_storm_is_synced_within_a_minute(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked = _Clocked(journal, monkeypatch)
    clocked.run(0.020 * BURST, every=1, kind=EventKind.FAULT_ON)
    clocked.run(100.0, every=100_000)
    assert clocked.syncs_s[BURST:] == pytest.approx([BURST * 0.020 + 60.0], abs=0.05)


@pytest.mark.parametrize("kind", [EventKind.FAULT_ON, EventKind.COMMAND])
def test_a_storm_of_a_day_is_held_to_one_sync_a_minute_and_26_mb(
    journal: Path, monkeypatch: pytest.MonkeyPatch, kind: EventKind
) -> None:
    clocked = _Clocked(journal, monkeypatch)
    clocked.run(86_400, every=1, kind=kind, period_s=2.0)
    assert len(clocked.syncs_s) <= 1440 + BURST + 1
    assert len(clocked.syncs_s) * 17_000 < 26e6
    assert max(after - before for before, after in pairwise(clocked.syncs_s)) <= 62.0


_APPENDER = """
import sys, itertools
from pathlib import Path
from firmware.image import Event
from firmware.journal import Journal
writer = Journal(Path(sys.argv[1]), segment_bytes=20_000)
for n in itertools.count(writer.acknowledged + 1):
    writer.add("controller", Event(n, n, n, 1, n, 0, "x" * (n % 60)), True)
    if n % 3 == 0:
        writer.commit(n * 60.0)
        print(writer.acknowledged, flush=True)
"""


def test_kill_9_at_any_time_leaves_no_gap_and_all_that_was_acknowledged(journal: Path) -> None:
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _APPENDER, str(journal)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().splitlines(keepends=True)
        process.wait()
        acknowledged = max([acknowledged, *(int(line) for line in said if line.endswith("\n"))])
        written = [entry for entry in read(journal) if entry.note in (Note.EVENT, Note.CUT)]  # the cut has a number
        sequences = [entry.sequence for entry in written]
        assert sequences[-1] >= acknowledged
        assert sequences == list(range(sequences[0], sequences[-1] + 1))
        assert all(e.event.text == "x" * (e.event.a % 60) for e in written if e.note == Note.EVENT)
    assert acknowledged > 50
