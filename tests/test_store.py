"""The saved state: whatever a power cut leaves, the last acknowledged state is found, or the one being saved."""

from __future__ import annotations

import errno
import os
from math import inf, nan
from pathlib import Path

import pytest
from fake_disk import FakeDisk, every_byte, some_bytes
from hypothesis import given
from hypothesis import strategies as st

from firmware.store import Loaded, Saved, Store, load

OLD = Saved(1 << 62, 7, 1, 0, 12, 2.5, 0.75)
NEW = Saved(0, 8, 1, 0, 13, 3.5, 1.75)
NEXT = Saved(1 << 9, 9, 2, 1, 14, 1e-9, 0.0)
NUMBERS = st.integers(0, 2**63 - 1)
LEVELS = st.floats(0, 1e12)
EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


def test_nothing_was_ever_written(tmp_path: Path) -> None:
    assert load(tmp_path) == Loaded(None, False)
    assert load(tmp_path / "missing") == Loaded(None, False)


def test_the_directory_is_made(tmp_path: Path) -> None:
    Store(tmp_path / "new" / "state").save(OLD)
    assert load(tmp_path / "new" / "state") == Loaded(OLD, False)


@given(st.builds(Saved, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, LEVELS, LEVELS))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, saved: Saved) -> None:
    state = tmp_path_factory.mktemp("state")
    Store(state).save(saved)
    assert load(state) == Loaded(saved, False)
    assert {path.name: path.stat().st_size for path in state.iterdir()} == {"saved.a": 512}


def test_the_newest_of_many_saves_is_loaded_and_the_slots_alternate(state: Path) -> None:
    store = Store(state)
    for cycles in range(20):
        store.save(OLD._replace(cycles=cycles))
        assert load(state) == Loaded(OLD._replace(cycles=cycles), False)
    assert sorted(path.name for path in state.iterdir()) == ["saved.a", "saved.b"]
    Store(state).save(NEW)
    assert load(state).saved == NEW


@pytest.mark.parametrize("value", [-1, 2**63, nan, inf, True, "7", 1.5])
def test_a_value_that_could_not_be_loaded_is_refused_and_the_old_state_stays(state: Path, value: int) -> None:
    store = Store(state)
    store.save(OLD)
    with pytest.raises(ValueError, match=r"cycles is .*; allowed is int from 0 to"):
        store.save(OLD._replace(cycles=value))
    store.save(NEW)
    assert load(state).saved == NEW


def test_a_cut_at_any_byte_of_two_saves_leaves_the_old_or_the_new_state(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk, store = FakeDisk(state, monkeypatch), Store(state)
    for number, saved in enumerate((OLD, NEW, NEXT)):
        store.save(saved)
        disk.mark(str(number))
    possible = [None, OLD, NEW, NEXT]
    images = list(disk.images(every_byte))
    for image in images:
        loaded = load(image.lay_out(tmp_path / "cut"))
        assert not loaded.damaged
        acknowledged = len(image.passed)
        assert loaded.saved in possible[acknowledged : acknowledged + 2]
    assert len(images) > 1000
    assert {len(image.passed) for image in images} == {0, 1, 2, 3}


def test_after_any_cut_the_next_save_holds_and_a_second_cut_at_any_byte_leaves_no_less(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        disk, store = FakeDisk(state, patch), Store(state)
        for saved in (OLD, NEW):
            store.save(saved)
            disk.mark("saved")
    seconds = 0
    for first in disk.images(lambda length: {1, length // 2}):
        after = first.lay_out(tmp_path / "after")
        found = load(after).saved
        with monkeypatch.context() as patch:
            again = FakeDisk(after, patch, holding=first)
            Store(after).save(NEXT)
            again.mark("saved")
        for second in again.images(lambda length: {1, length // 2}):
            loaded = load(second.lay_out(tmp_path / "cut"))
            assert not loaded.damaged
            assert loaded.saved in ({NEXT} if second.passed else {found, NEXT})
            seconds += 1
    assert seconds > 150


def _killed_before_the_sync(state: Path, monkeypatch: pytest.MonkeyPatch, forgets: bool) -> FakeDisk:
    """Two acknowledged saves, a third that reached memory only, then the next process saves a fourth."""
    disk, store = FakeDisk(state, monkeypatch), Store(state)
    disk.forgets = forgets
    store.save(OLD)
    store.save(NEW)
    disk.mark("two")
    disk.fail["fdatasync"] = EIO
    with pytest.raises(OSError, match="Input/output"):
        store.save(NEXT)
    disk.fail.clear()
    assert load(state).saved == NEXT
    Store(state).save(NEXT._replace(cycles=99))
    disk.mark("four")
    return disk


@pytest.mark.parametrize("forgets", [False, True])
def test_what_a_killed_process_left_in_memory_is_not_taken_for_saved(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forgets: bool
) -> None:
    disk = _killed_before_the_sync(state, monkeypatch, forgets)
    last = NEXT._replace(cycles=99)
    seen = set()
    for image in disk.images(some_bytes):
        loaded = load(image.lay_out(tmp_path / "cut"))
        if "two" in image.passed:
            assert loaded.saved in ({last} if "four" in image.passed else {NEW, NEXT, last})
            assert not loaded.damaged
            seen.add(loaded.saved)
    assert seen == {NEW, NEXT, last}


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "fsync", "replace"])
def test_a_failing_disk_is_told_and_costs_nothing_that_was_acknowledged(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    disk, store = FakeDisk(state, monkeypatch), Store(state)
    store.save(OLD)
    disk.mark("old")
    disk.fail[call] = EIO
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            store.save(NEW)
    disk.fail.clear()
    store.save(NEXT)
    disk.mark("next")
    for image in disk.images(some_bytes):
        if image.passed:
            allowed = {NEXT} if "next" in image.passed else {OLD, NEW, NEXT}
            assert load(image.lay_out(tmp_path / "cut")).saved in allowed
    assert load(state).saved == NEXT


def test_a_disk_that_takes_only_a_part_is_full(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(state)
    store.save(OLD)
    store.save(NEW)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, raw, at: real(fd, raw[:100], at))
    with pytest.raises(OSError, match="disk full"):
        store.save(NEXT)
    assert load(state) == Loaded(NEW, False)


def test_a_directory_that_vanished_is_made_again(state: Path) -> None:
    store = Store(state)
    for saved in (OLD, NEW):
        store.save(saved)
    for path in state.iterdir():
        path.unlink()
    state.rmdir()
    with pytest.raises(FileNotFoundError):
        store.save(NEXT)
    store.save(NEXT)
    assert load(state).saved == NEXT


def test_any_single_flipped_byte_gives_the_other_slot_or_is_told_as_damage(state: Path, tmp_path: Path) -> None:
    store = Store(state)
    store.save(OLD)
    alone = (state / "saved.a").read_bytes()
    store.save(NEW)
    whole = (state / "saved.b").read_bytes()
    cut = tmp_path / "cut"
    cut.mkdir()
    for at in range(len(whole)):
        (cut / "saved.b").write_bytes(_flipped(whole, at, 1 << at % 8))
        assert load(cut) == Loaded(None, True)
    (cut / "saved.a").write_bytes(alone)
    for at in range(len(whole)):
        (cut / "saved.b").write_bytes(_flipped(whole, at, 0xFF))
        assert load(cut) == Loaded(OLD, False)


def _flipped(raw: bytes, at: int, flip: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :]


def test_damaged_slots_are_told_and_can_be_saved_over(state: Path) -> None:
    (state / "saved.a").write_bytes(b"")
    assert load(state) == Loaded(None, True)
    (state / "saved.a").unlink()
    (state / "saved.b").mkdir()
    assert load(state) == Loaded(None, True)
    (state / "saved.b").rmdir()
    (state / "saved.b").write_bytes(b"\xff" * 512)
    assert load(state) == Loaded(None, True)
    store = Store(state)
    for saved in (OLD, NEW, NEXT):
        store.save(saved)
        assert load(state) == Loaded(saved, False)


def test_the_sequence_decides_not_the_name(state: Path) -> None:
    store = Store(state)
    for saved in (OLD, NEW, NEXT):
        store.save(saved)
    (state / "saved.a").rename(state / "x")
    (state / "saved.b").rename(state / "saved.a")
    (state / "x").rename(state / "saved.b")
    assert load(state).saved == NEXT
    Store(state).save(OLD)
    assert load(state).saved == OLD
