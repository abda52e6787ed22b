"""The journal's bytes and limits: what a record is, when it reaches the disk, and what every kind of damage costs."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from firmware import journal as journal_module
from firmware.image import Event
from firmware.journal import (
    BUFFERED,
    BURST,
    PLAIN_S,
    RESERVED,
    SUSTAINED_S,
    Entry,
    Journal,
    Note,
    journal_directory,
    read,
)
from statemachine.signals import EventKind

RECORD = struct.Struct("<4sHBBQ")  # magic, length, flags, note, sequence
BODY = struct.Struct("<QQQHiiB")
EVENT = Event(6, 1_000, 2_000, EventKind.COMMAND, 5, -9, "set")
LEAST = RECORD.size + BODY.size + 4
FILE = "journal-00000000000000000001.bin"


def _record(
    sequence: int, process: bytes = b"guard", text: bytes = b"set", magic: bytes = b"EMSJ", length: int = 0,
    flags: int = 1, note: int = 0,
) -> bytes:  # fmt: skip
    body = BODY.pack(*EVENT[:6], len(process)) + process + text
    raw = RECORD.pack(magic, length or RECORD.size + len(body) + 4, flags, note, sequence) + body
    raw = raw[: length - 4] if length else raw
    return raw + struct.pack("<I", zlib.crc32(raw))


def _entry(sequence: int, text: str = "set") -> Entry:
    return Entry(sequence, "guard", EVENT._replace(text=text), True, Note.EVENT)


def _said(sequence: int, note: Note, count: int, text: str, after: Event = EVENT) -> Entry:
    """What reader or writer say, with the times of the record before."""
    return Entry(sequence, "journal", Event(0, after.monotonic_ns, after.wall_ns, 0, count, 0, text), False, note)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


def _failing(what: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


NOTHING = Event(0, 0, 0, 0, 0, 0, "")


def _add(journal: Journal, count: int = 1, now_s: float = 0.0, kind: int = EventKind.COMMAND) -> None:
    for _ in range(count):
        journal.add("guard", EVENT._replace(kind=kind), True)
    journal.commit(now_s)


def test_the_limits_of_the_journal_are_those_of_the_manual() -> None:
    j = journal_module
    assert (j.SEGMENTS, j.SEGMENT_BYTES, BUFFERED, BURST, RESERVED) == (16, 1_000_000, 4096, 64, 32)
    assert (j.RETRY_S, PLAIN_S, SUSTAINED_S) == (1.0, 1.0, 60.0)
    assert [(note.name, note.value) for note in Note] == [
        ("EVENT", 0), ("LOST", 1), ("CUT", 2), ("DROPPED", 3), ("DAMAGED", 4), ("MISSING", 5),
    ]  # fmt: skip


def test_the_bytes_of_a_record_are_those_that_a_later_version_has_to_read(state: Path) -> None:
    journal = Journal(state)
    assert (journal.ok, journal.error, journal.lost, journal.acknowledged, journal.known) == (True, "", 0, 0, {})
    journal.add("guard", EVENT, True)
    journal.add("guard", EVENT, False)
    journal.add_lost("guard", EVENT, 5, True)
    journal.add_lost("guard", EVENT, 5, False)
    journal.close()
    path = state / FILE
    assert path.read_bytes() == _record(1) + _record(2, flags=0) + _record(3, note=1) + _record(4, flags=0, note=1)
    assert [(entry.trusted, entry.note) for entry in read(state)] == [
        (True, Note.EVENT), (False, Note.EVENT), (True, Note.LOST), (False, Note.LOST),
    ]  # fmt: skip
    assert (journal.acknowledged, journal.lost) == (4, 10)


def test_a_journal_with_nothing_to_record_makes_nothing_and_one_that_has_makes_its_directory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new")
    journal.commit(0.0)
    journal.close()
    assert (journal.ok, list(tmp_path.iterdir())) == (True, [])
    _add(journal)
    assert list(read(tmp_path / "new")) == [_entry(1)]


def test_a_count_beyond_the_largest_number_is_the_largest(state: Path) -> None:
    journal = Journal(state)
    for count in (2**31 - 2, 2**31 - 1, 2**31, 2**40):
        journal.add_lost("guard", EVENT, count, True)
    journal.close()
    assert [entry.event.a for entry in read(state)] == [2**31 - 2, 2**31 - 1, 2**31 - 1, 2**31 - 1]


def test_a_text_that_is_cut_within_a_letter_is_still_a_record(state: Path) -> None:
    journal = Journal(state)
    journal.add("guard", EVENT._replace(text="x" + "ü" * 200), True)
    journal.close()
    assert [entry.event.text for entry in read(state)] == ["x" + "ü" * 199 + "\ufffd"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (_record(2, magic=b"EMSK"), "are no record"), (_record(2)[:-1] + b"\0", "are no record"),
        (_record(2, length=LEAST - 1), "are no record"), (_record(2, length=LEAST - 4), "are no record"),
        (_record(2, length=4000), "are no record"),
        (b"\0", "are no record"), (b"EMSJ" * 9, "are no record"), (b"\0" * (LEAST - 1), "are no record"),
        (b"EMSJ" + bytes(LEAST), "are no record"),
        (_record(1), "are record 1 out of order"), (_record(0), "are record 0 out of order"),
    ],
    ids=["magic", "crc", "short", "shorter", "long", "a byte", "heads", "less", "zero", "again", "older"],
)  # fmt: skip
def test_what_is_no_record_is_told_with_its_place_and_the_next_record_is_found(
    state: Path, wrong: bytes, why: str
) -> None:
    good = _record(1)
    (state / FILE).write_bytes(good + wrong + _record(2))
    text = f"{len(wrong)} bytes at {len(good)} of {FILE} {why}"
    assert list(read(state)) == [_entry(1), _said(2, Note.DAMAGED, len(wrong), text), _entry(2)]
    (state / FILE).write_bytes(good + wrong)
    assert list(read(state)) == [_entry(1), _said(2, Note.DAMAGED, len(wrong), text)]


def test_the_least_record_is_found_at_the_very_end_and_a_byte_less_is_damage(state: Path) -> None:
    least = _record(1, process=b"", text=b"")
    assert len(least) == LEAST
    (state / FILE).write_bytes(least)
    assert list(read(state)) == [Entry(1, "", EVENT._replace(text=""), True, Note.EVENT)]
    (state / FILE).write_bytes(least[:-1])
    text = f"{LEAST - 1} bytes at 0 of {FILE} are no record"
    assert list(read(state)) == [_said(1, Note.DAMAGED, LEAST - 1, text, NOTHING)]


def test_letters_that_are_none_are_shown_as_such(state: Path) -> None:
    (state / FILE).write_bytes(_record(1, process=b"\xff", text=b"\xfe"))
    assert list(read(state)) == [Entry(1, "\ufffd", EVENT._replace(text="\ufffd"), True, Note.EVENT)]


def test_numbers_that_are_jumped_over_are_missing_and_those_before_the_first_are_dropped(state: Path) -> None:
    (state / "journal-00000000000000000004.bin").write_bytes(_record(4) + _record(7))
    (state / "journal-00000000000000000009.bin").write_bytes(_record(9))
    (state / "journal-x0.bin").write_bytes(b"not one of ours")
    dropped = "records 1 to 3 were dropped to keep the journal within its bounds"
    assert list(read(state)) == [
        _said(1, Note.DROPPED, 3, dropped, NOTHING), _entry(4),
        _said(5, Note.MISSING, 2, "records 5 to 6 are missing"), _entry(7),
        _said(8, Note.MISSING, 1, "records 8 to 8 are missing"), _entry(9),
    ]  # fmt: skip


def test_the_largest_numbers_have_twenty_digits(state: Path) -> None:
    (state / "journal-10000000000000000002.bin").write_bytes(_record(10**19 + 2))
    dropped, found = read(state)
    assert (dropped.event.a, found.sequence) == (10**19 + 1, 10**19 + 2)
    journal = Journal(state, segment_bytes=1)
    _add(journal)
    journal.close()
    assert (state / "journal-10000000000000000003.bin").exists()


@pytest.mark.parametrize(("spare", "a_segment"), [(0, 3), (-1, 2), (1, 3)])
def test_a_segment_is_filled_to_its_last_byte_and_not_beyond(state: Path, spare: int, a_segment: int) -> None:
    size = len(_record(1))
    journal = Journal(state, segment_bytes=3 * size + spare)
    for _ in range(7):
        _add(journal)
    _add(journal, 5)
    journal.close()
    names = [f"journal-{first:020d}.bin" for first in range(1, 13, a_segment)]
    assert sorted(path.name for path in state.iterdir()) == names
    assert {(state / name).stat().st_size for name in names} == {a_segment * size}
    assert list(read(state)) == [_entry(n) for n in range(1, 13)]


def test_a_record_that_is_larger_than_a_segment_has_one_of_its_own(state: Path) -> None:
    journal = Journal(state, segments=3, segment_bytes=1)
    _add(journal, 5)
    journal.close()
    assert sorted(path.name[-6:] for path in state.iterdir()) == ["03.bin", "04.bin", "05.bin"]


class Clocked:
    """A journal that says when it synced a segment."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal, self.now_s, self.syncs_s = Journal(directory), 0.0, list[float]()
        monkeypatch.setattr(os, "fdatasync", lambda fd: self.syncs_s.append(self.now_s))

    def add(self, count: int = 1, kind: int = EventKind.COMMAND) -> None:
        _add(self.journal, count, self.now_s, kind)

    def urgent(self, count: int) -> None:
        """So many batches, each with a fault."""
        for _ in range(count):
            self.add(kind=EventKind.FAULT_ON)

    def at(self, now_s: float) -> int:
        """Syncs that are made then."""
        before, self.now_s = len(self.syncs_s), now_s
        self.journal.commit(now_s)
        return len(self.syncs_s) - before


@pytest.fixture
def clocked(state: Path, monkeypatch: pytest.MonkeyPatch) -> Clocked:
    return Clocked(state, monkeypatch)


@pytest.mark.parametrize("kind", EventKind)
def test_a_state_a_fault_and_what_people_did_are_synced_at_once_and_anything_else_a_second_later(
    clocked: Clocked, kind: EventKind
) -> None:
    urgent = kind.name in ("STATE", "FAULT_ON", "FAULT_ACK", "SERVICE_PRESS")
    clocked.add(kind=kind)
    assert clocked.syncs_s == [0.0] * urgent
    assert clocked.at(0.999) == 0
    assert clocked.at(1.0) == (not urgent)
    assert clocked.at(1000.0) == 0, "nothing is left to sync"


def test_the_second_of_a_plain_record_counts_from_the_oldest_that_is_not_synced(clocked: Clocked) -> None:
    clocked.add()
    clocked.now_s = 0.75
    clocked.add()
    assert clocked.at(1.0) == 1
    clocked.now_s = 1.5
    clocked.add()
    assert clocked.at(2.25) == 0
    assert clocked.at(2.5) == 1


def test_a_burst_is_synced_at_once_and_then_one_batch_a_minute(clocked: Clocked) -> None:
    clocked.urgent(BURST + 1)
    assert len(clocked.syncs_s) == BURST
    assert clocked.at(59.875) == 0
    assert clocked.at(60.0) == 1
    clocked.now_s = 90.0
    clocked.urgent(1)
    assert len(clocked.syncs_s) == BURST + 1
    assert clocked.at(120.0) == 1


def test_a_minute_of_quiet_refills_one_and_the_budget_never_exceeds_a_burst(clocked: Clocked) -> None:
    clocked.urgent(3)
    assert clocked.at(1e6) == 0
    clocked.urgent(BURST + 1)
    assert len(clocked.syncs_s) == 3 + BURST


@pytest.mark.parametrize(("spent", "syncs"), [(BURST - RESERVED, 1), (BURST - RESERVED + 1, 0)])
def test_plain_records_leave_half_of_the_burst_to_urgent_ones(clocked: Clocked, spent: int, syncs: int) -> None:
    clocked.urgent(spent)
    clocked.now_s = 30.0
    clocked.add()
    assert clocked.at(60.0) == syncs


def test_a_plain_record_is_synced_after_a_minute_whatever_the_budget(clocked: Clocked) -> None:
    clocked.urgent(BURST)
    clocked.add()
    assert clocked.at(59.875) == 0
    assert clocked.at(60.0) == 1


def test_half_of_what_memory_holds_is_synced_whatever_the_budget_and_costs_none_that_is_to_come(
    clocked: Clocked,
) -> None:
    clocked.urgent(BURST)
    clocked.add(BUFFERED // 2 - 1)
    assert len(clocked.syncs_s) == BURST
    clocked.add(1)
    assert len(clocked.syncs_s) == BURST + 1
    clocked.now_s = 30.0
    clocked.urgent(1)
    assert clocked.at(59.875) == 0
    assert clocked.at(60.0) == 1


def test_a_disk_that_failed_is_asked_again_after_a_second(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(state)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        _add(journal, now_s=10.0, kind=EventKind.STATE)
    assert (journal.ok, journal.error) == (False, f"{state / FILE}: Input/output error")
    journal.commit(10.999)
    assert (journal.ok, journal.acknowledged) == (False, 0)
    journal.commit(11.0)
    assert (journal.ok, journal.acknowledged) == (True, 1)
    assert list(read(state)) == [Entry(1, "guard", EVENT._replace(kind=EventKind.STATE), True, Note.EVENT)]


def test_a_journal_that_knows_its_end_does_not_read_it_again_after_a_failure(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(state)
    _add(journal, kind=EventKind.STATE)
    monkeypatch.setattr(Path, "read_bytes", _failing)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: _failing(fd))
        _add(journal, kind=EventKind.STATE)
    assert not journal.ok
    journal.commit(1.0)
    assert (journal.ok, journal.acknowledged) == (True, 2)


def test_what_is_written_but_not_synced_counts_as_held_in_memory(state: Path) -> None:
    journal = Journal(state)
    _add(journal, 100)
    for _ in range(BUFFERED):
        journal.add("guard", EVENT, True)
    assert (journal.acknowledged, journal.lost) == (0, 100)


def test_what_fails_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(state)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _failing)
        _add(journal)
    assert journal.error == f"{state}: Input/output error"
    _add(journal, now_s=5.0)
    (state / FILE).chmod(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        journal.close()
    assert (journal.ok, journal.error) == (False, "Input/output error")


def test_records_that_memory_cannot_hold_are_counted_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(state)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: _failing(fd))
        journal.add_lost("guard", EVENT, 7, True)
        _add(journal, BUFFERED - 1)
        assert journal.lost == 7
        _add(journal)
        assert journal.lost == 7, "those that were lost already"
        _add(journal)
        assert journal.lost == 8
    journal.commit(100.0)
    assert journal.ok
    told, first, *_ = read(state)
    assert told == _said(1, Note.LOST, 8, "8 events were not recorded", NOTHING)
    assert first.sequence == 2


def test_what_a_cut_left_behind_the_last_record_is_told_by_the_successor(state: Path) -> None:
    (state / FILE).write_bytes(_record(1) + _record(2)[:-1])
    journal = Journal(state)
    assert journal.acknowledged == 1
    assert journal.known == {"guard": [(EVENT.sequence, EVENT.monotonic_ns)]}
    _add(journal)
    journal.close()
    text = f"{len(_record(2)) - 1} bytes at the end of {FILE} were no whole record and were cut off"
    assert list(read(state)) == [_entry(1), _said(2, Note.CUT, len(_record(2)) - 1, text, NOTHING), _entry(3)]


def test_only_events_of_a_predecessor_are_known(state: Path) -> None:
    (state / FILE).write_bytes(_record(1, note=1) + _record(2) + _record(3, process=b"clock"))
    known = (EVENT.sequence, EVENT.monotonic_ns)
    assert Journal(state).known == {"guard": [known], "clock": [known]}


def test_a_journal_that_cannot_be_read_at_the_start_is_neither_cut_nor_numbered_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / FILE).write_bytes(_record(1) + _record(2))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _failing)
        journal = Journal(state)
        assert (journal.acknowledged, journal.known) == (0, {})
        _add(journal)
        assert (journal.ok, journal.error) == (False, f"{state}: Input/output error")
    journal.commit(1.0)
    journal.close()
    assert list(read(state)) == [_entry(1), _entry(2), _entry(3)]


def test_a_last_segment_that_vanishes_costs_the_one_before_nothing(state: Path) -> None:
    journal = Journal(state, segment_bytes=2 * len(_record(1)))
    _add(journal, 4)
    sorted(state.iterdir())[-1].unlink()
    journal.close()
    _add(journal)
    journal.close()
    missing = _said(3, Note.MISSING, 2, "records 3 to 4 are missing")
    assert list(read(state)) == [_entry(1), _entry(2), missing, _entry(5)]


def test_the_journal_leaves_no_descriptor_open_whatever_fails(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    journal = Journal(state, segment_bytes=1)
    for now_s, name in enumerate(("fsync", "fdatasync", "write")):
        _add(journal, 3, now_s=10.0 * now_s)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda fd, *_: _failing(fd))
            _add(journal, 3, now_s=10.0 * now_s + 5.0)
            assert not journal.ok
        assert len(os.listdir("/proc/self/fd")) == before
    journal.close()
    assert journal.acknowledged == 18
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_the_owner_writes_a_segment_and_only_the_group_reads_it(state: Path) -> None:
    before = os.umask(0)
    try:
        _add(Journal(state))
    finally:
        os.umask(before)
    assert (state / FILE).stat().st_mode & 0o777 == 0o640


def test_a_successor_looks_for_what_was_recorded_in_the_last_two_segments_only(state: Path) -> None:
    for first in (1, 2, 3):
        (state / f"journal-{first:020d}.bin").write_bytes(_record(first, process=b"guard%d" % first))
    assert list(Journal(state).known) == ["guard2", "guard3"]


def test_a_segment_that_was_begun_and_never_written_is_gone_on_with(state: Path) -> None:
    (state / "journal-00000000000000000005.bin").touch()
    journal = Journal(state)
    assert journal.acknowledged == 4
    _add(journal)
    journal.close()
    assert [path.name for path in state.iterdir()] == ["journal-00000000000000000005.bin"]
    assert list(read(state))[1:] == [_entry(5)]


def test_a_record_that_is_there_twice_at_the_end_is_cut_off_once(state: Path) -> None:
    (state / FILE).write_bytes(_record(1) * 2)
    journal = Journal(state)
    _add(journal)
    journal.close()
    assert [(entry.sequence, entry.note) for entry in read(state)] == [(1, Note.EVENT), (2, Note.CUT), (3, Note.EVENT)]


def test_the_journal_is_in_the_state_directory(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMS_STATE_DIR", str(state))
    assert journal_directory() == state / "journal"
