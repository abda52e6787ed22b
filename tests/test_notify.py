"""What the service manager hears of a process, and what the guard hears of it."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_kernel import FakeKernel, kernel

from drivers.board_file import GUARD_TICK_MS, WatchdogSpec
from firmware import notify
from firmware.notify import Manager, Notifier
from firmware.watchdog import PET_MS, Keeper

__all__ = ["kernel"]
S = 1_000_000_000


class Clock:
    now_ns = 50 * S

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(notify, "monotonic_ns", made)
    return made


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "4000000")
        yield listening


def heard(manager: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096))
        except BlockingIOError:
            return found


def test_ready_comes_with_the_first_round_and_then_a_sign_of_life_in_each_quarter(
    manager: socket.socket, clock: Clock
) -> None:
    life = Notifier()
    assert heard(manager) == []
    life.tick()
    life.tick()
    assert heard(manager) == [b"READY=1"]
    clock.now_ns += S - 1
    life.tick()
    assert heard(manager) == []
    clock.now_ns += 1
    life.tick()
    assert heard(manager) == [b"WATCHDOG=1"]


def test_without_a_watchdog_ready_is_all(manager: socket.socket, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    life = Notifier()
    life.tick()
    clock.now_ns += 3600 * S
    life.tick()
    assert heard(manager) == [b"READY=1"]


def test_outside_of_a_unit_nothing_is_sent_and_the_manager_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().tick()
    assert Manager().answers()


def test_a_manager_that_hears_nothing_blocks_nobody(manager: socket.socket, clock: Clock) -> None:
    life = Notifier()
    for _ in range(10_000):
        clock.now_ns += S
        life.tick()
    assert heard(manager)[0] == b"READY=1"


def work_off(manager: socket.socket) -> None:
    """As systemd does it: it closes what came with the barrier."""
    data, ancillary, _, _ = manager.recvmsg(64, socket.CMSG_SPACE(4))
    assert data == b"BARRIER=1"
    for fd in array.array("i", ancillary[0][2]):
        os.close(fd)


def test_a_manager_that_works_off_its_messages_is_alive(manager: socket.socket, clock: Clock) -> None:
    asked = Manager()
    for _ in range(100):
        assert asked.answers()
        work_off(manager)
        clock.now_ns += S


def test_one_that_stops_is_given_20_s(manager: socket.socket, clock: Clock) -> None:
    asked = Manager()
    assert asked.answers()
    clock.now_ns += 20 * S - 1
    assert asked.answers()
    clock.now_ns += 1
    assert not asked.answers()
    work_off(manager)
    assert asked.answers()


def test_a_full_queue_is_no_answer(manager: socket.socket, clock: Clock) -> None:
    life = Notifier()
    for _ in range(10_000):
        clock.now_ns += S
        life.tick()
    asked = Manager()
    for _ in range(20):
        asked.answers()
        clock.now_ns += S
    assert not asked.answers()


def test_the_watchdog_is_not_petted_while_the_manager_is_frozen(
    kernel: FakeKernel, manager: socket.socket, clock: Clock, tmp_path: Path
) -> None:
    dog = kernel.add_watchdog()
    keeper = Keeper(WatchdogSpec(str(dog.path), 20), tmp_path / "state", lambda text: None)

    def second() -> bytes:
        before = len(dog.written())
        for _ in range(round(PET_MS / GUARD_TICK_MS)):
            keeper.tick(stalled=False)
        clock.now_ns += S
        return dog.written()[before:]

    assert second() == b"\0"
    clock.now_ns += 20 * S
    assert second() == b""
    work_off(manager)
    assert second() == b"\0"
