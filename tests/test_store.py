"""The saved state: whatever a power cut leaves, the last acknowledged state is found, or the one being saved."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from fake_disk import FakeDisk, every_byte, some_bytes
from hypothesis import given
from hypothesis import strategies as st

from firmware import store as store_module
from firmware.store import Loaded, Saved, Store, load, made_directory

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


LATER = OLD._replace(cycles=8)
LARGEST = 2**63 - 1
HEAD = struct.Struct("<8sQI")
JSON = (
    b'{"faults_latched":4611686018427387904,"cycles":7,"opened_under_load":1,"closed_under_load":0,"precharges":12,'
    b'"closing_level":2.5,"precharge_level":0.75}'
)


def _slot(sequence: int, magic: bytes = b"EMSSAVE1", payload: bytes = JSON.ljust(488), flip: int = 0) -> bytes:
    body = HEAD.pack(magic, sequence, len(payload)) + payload
    return body + struct.pack("<I", zlib.crc32(body) ^ flip)


def _with(name: str, value: float) -> Saved:
    return Saved(**{**OLD._asdict(), name: value})


class Syncs(list[str]):
    """What was put on the disk, and renamed, in its order; a name for a file, `.../` for a directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._synced)
        self._replace = os.replace
        monkeypatch.setattr(os, "replace", self._replaced)

    def _replaced(self, old: Path, new: Path) -> None:
        self.append(f"{old.name}>{new.name}")
        self._replace(old, new)

    def _synced(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.append(f"{path.name}/" if path.is_dir() else path.name)

    def taken(self) -> list[str]:
        taken = self[:]
        self.clear()
        return taken


def test_the_bytes_of_a_slot_are_those_that_a_later_version_has_to_read(state: Path) -> None:
    store = Store(state)
    for sequence, name in ((1, "saved.a"), (2, "saved.b"), (3, "saved.a")):
        store.save(OLD)
        assert (state / name).read_bytes() == _slot(sequence)
        assert len(_slot(sequence)) == 512
    Store(state).save(OLD)
    assert (state / "saved.b").read_bytes() == _slot(4)


@pytest.mark.parametrize(
    "wrong",
    [
        _slot(1, magic=b"EMSSAVE2"), _slot(0), _slot(1, flip=1), _slot(1, payload=b"{}".ljust(488)),
        _slot(1, payload=JSON.replace(b'"cycles":7', b'"cycles":-1').ljust(488)), _slot(1)[:-1], _slot(1)[:19], b"",
    ],
    ids=["magic", "sequence 0", "crc", "no field", "negative", "a byte short", "no head", "empty"],
)  # fmt: skip
def test_what_is_no_slot_is_damage_and_the_next_save_begins_at_one(state: Path, wrong: bytes) -> None:
    for name in ("saved.a", "saved.b"):
        (state / name).write_bytes(wrong)
    assert load(state) == Loaded(None, True)
    Store(state).save(OLD)
    assert (state / "saved.a").read_bytes() == _slot(1)
    assert load(state) == Loaded(OLD, False)


def test_a_longer_payload_of_another_version_is_read_as_far_as_it_is_known(state: Path) -> None:
    (state / "saved.b").write_bytes(_slot(9, payload=JSON.replace(b"{", b'{"new":5,', 1).ljust(700)))
    assert load(state) == Loaded(OLD, False)
    Store(state).save(LATER)
    assert load(state).saved == LATER


@pytest.mark.parametrize("name", ["faults_latched", "cycles", "opened_under_load", "closed_under_load", "precharges"])
def test_a_number_is_kept_from_0_to_the_largest_and_refused_beyond(state: Path, name: str) -> None:
    store = Store(state)
    for value in (0, LARGEST):
        store.save(OLD._replace(**{name: value}))
        assert getattr(load(state).saved, name) == value
    for value in (-1, LARGEST + 1):
        with pytest.raises(
            ValueError, match=f"{name} is {value}; allowed is int from 0 to {LARGEST}; nothing was saved"
        ):
            store.save(OLD._replace(**{name: value}))


@pytest.mark.parametrize("name", ["closing_level", "precharge_level"])
def test_a_level_is_kept_from_0_on_and_may_be_whole(state: Path, name: str) -> None:
    store = Store(state)
    for value in (0.0, 5e-324, 1.0, 3, float(2**62)):
        store.save(_with(name, value))
        assert getattr(load(state).saved, name) == value
    for wrong in (-5e-324, float(2**63), float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match=f"{name} is .*; allowed is float from 0"):
            store.save(_with(name, wrong))


def test_from_the_third_on_a_save_costs_one_sync_of_one_slot(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, syncs = Store(state), Syncs(monkeypatch)
    store.save(OLD)
    assert syncs.taken() == ["saved.a.new", "saved.a.new>saved.a", "state/"]
    store.save(OLD)
    assert syncs.taken() == ["saved.b.new", "saved.b.new>saved.b", "state/"]
    for name in ("saved.a", "saved.b", "saved.a"):
        store.save(OLD)
        assert syncs.taken() == [name]


def test_a_successor_puts_the_newer_slot_on_the_disk_before_it_touches_the_other(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(state)
    for saved in (OLD, OLD, LATER):
        store.save(saved)
    syncs = Syncs(monkeypatch)
    Store(state).save(OLD)
    assert syncs.taken() == ["saved.a", "state/", "saved.b"]


def test_a_directory_that_is_made_is_on_the_disk_with_all_that_had_to_be_made_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    made_directory(tmp_path / "one" / "two" / "three")
    assert syncs.taken() == [f"{tmp_path.name}/", "one/", "two/"]
    made_directory(tmp_path / "one" / "two" / "three")
    assert syncs.taken() == [], "what is there costs nothing"


def test_a_directory_that_another_process_makes_at_the_same_moment_is_no_error(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True, True])  # missing; its parent is there; there it is
    monkeypatch.setattr(Path, "is_dir", lambda self: next(looks))
    made_directory(state)
    assert list(looks) == []


def test_a_slot_that_cannot_be_read_costs_no_save_to_the_other(state: Path) -> None:
    (state / "saved.b").mkdir()
    store = Store(state)
    store.save(OLD)
    assert (state / "saved.a").read_bytes() == _slot(1)
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            store.save(LATER)
    assert load(state) == Loaded(OLD, False)
    (state / "saved.b").rmdir()
    store.save(LATER)
    assert load(state) == Loaded(LATER, False)


def test_what_a_cut_left_half_made_is_used_up_by_the_next_save(state: Path) -> None:
    (state / "saved.a.new").write_bytes(b"\xff" * 9999)
    Store(state).save(OLD)
    assert [path.name for path in state.iterdir()] == ["saved.a"]
    assert (state / "saved.a").read_bytes() == _slot(1)


def test_only_the_owner_writes_a_slot_and_only_the_group_reads_it(state: Path) -> None:
    before = os.umask(0)
    try:
        Store(state).save(OLD)
    finally:
        os.umask(before)
    assert (state / "saved.a").stat().st_mode & 0o777 == 0o640


def test_no_descriptor_is_left_open_whether_the_disk_fails_or_not(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, before = Store(state), len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        store.save(OLD)
    monkeypatch.setattr(os, "fdatasync", _failing)
    for _ in range(4):
        with pytest.raises(OSError, match="Input/output error"):
            store.save(OLD)
    assert len(os.listdir("/proc/self/fd")) == before


def _failing(what: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_longest_state_fits_into_a_sector() -> None:
    level = 1.2345678901234567e-300
    longest = Saved(LARGEST, LARGEST, LARGEST, LARGEST, LARGEST, level, level)
    assert len(store_module._encoded(LARGEST, longest)) == 512


def test_a_whole_file_takes_the_place_of_the_old_one_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for data, mode in ((b"one", 0o600), (b"two and more", 0o644)):
        store_module.write_whole(path, data, mode)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (data, mode)
    store_module.write_whole(path, b"three")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_a_cut_left_of_a_whole_file_neither_stops_the_next_one_nor_gives_it_its_mode(tmp_path: Path) -> None:
    left = tmp_path / "file.new"
    left.write_bytes(b"longer than what comes")
    left.chmod(0o666)
    store_module.write_whole(tmp_path / "file", b"short", 0o600)
    assert (tmp_path / "file").read_bytes() == b"short"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert not left.exists()


def test_a_part_of_a_whole_file_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_module.write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data) - 1)
    with pytest.raises(OSError, match="disk full, only a part") as failed:
        store_module.write_whole(tmp_path / "file", b"new")
    assert failed.value.filename == str(tmp_path / "file.new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_cut_at_any_byte_of_a_whole_file_leaves_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "file"
    with monkeypatch.context() as patch:
        disk = FakeDisk(path.parent, patch)
        for data in (b"first", b"second"):
            store_module.write_whole(path, data)
            disk.mark(data.decode())
    found = set()
    for image in disk.images(every_byte):
        at = image.lay_out(tmp_path / "cut") / "file"
        data = at.read_bytes() if at.exists() else b""
        assert data in ((b"", b"first", b"second")[len(image.passed) :][:2])
        found.add(data)
    assert found == {b"", b"first", b"second"}
