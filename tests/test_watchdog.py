"""The hardware watchdog: what is refused, when it is petted, how it ends, and why the machine started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_kernel import FakeKernel, FakeWatchdog, kernel

from drivers import watchdog
from drivers.board import BoardError
from drivers.board_file import GUARD_TICK_MS, WatchdogSpec, load
from drivers.watchdog import CARD_RESET, POWER_OVER, POWER_UNDER, WatchdogError
from firmware import watchdog as module
from firmware.watchdog import PET_MS, Keeper, why
from statemachine.signals import BootReason, WatchdogState

__all__ = ["kernel"]
ALARM_ONLY, MAGIC_CLOSE = 0x400, 0x100
PET_TICKS = round(PET_MS / GUARD_TICK_MS)


@pytest.fixture
def dog(kernel: FakeKernel) -> FakeWatchdog:
    return kernel.add_watchdog()


def test_it_is_opened_with_the_time_out_of_the_board_file_and_petted_by_a_write(dog: FakeWatchdog) -> None:
    opened = watchdog.open(str(dog.path), 20)
    assert (opened.timeout_s, dog.timeout_s) == (20, 20)
    assert dog.written() == b""
    opened.pet()
    opened.pet()
    assert dog.written() == b"\0\0"


def test_an_orderly_close_disarms_it_by_the_magic_character_and_any_other_does_not(dog: FakeWatchdog) -> None:
    opened = watchdog.open(str(dog.path), 20)
    opened.close(disarm=False)
    assert b"V" not in dog.written()
    watchdog.open(str(dog.path), 20).close(disarm=True)
    assert dog.written() == b"V"


def test_a_fixed_time_out_is_taken_as_it_is(dog: FakeWatchdog) -> None:
    dog.longest_s, dog.timeout_s = None, 60
    assert watchdog.open(str(dog.path), 20).timeout_s == 60


def test_a_driver_without_a_boot_status_says_nothing_of_the_last_reset(dog: FakeWatchdog) -> None:
    dog.boot_status = None
    assert watchdog.open(str(dog.path), 20).boot_status == 0


def test_one_that_a_killed_guard_would_stop_is_refused_and_disarmed(dog: FakeWatchdog) -> None:
    dog.options &= ~MAGIC_CLOSE
    with pytest.raises(WatchdogError, match=r"watchdog0: its driver has no magic close.*; allowed is one that has"):
        watchdog.open(str(dog.path), 20)
    assert dog.written() == b"V"


def test_one_that_only_raises_an_alarm_is_refused(dog: FakeWatchdog) -> None:
    dog.options |= ALARM_ONLY
    with pytest.raises(WatchdogError, match="it raises an alarm only"):
        watchdog.open(str(dog.path), 20)


def test_a_time_out_that_the_driver_does_not_take_is_named_and_the_watchdog_disarmed(dog: FakeWatchdog) -> None:
    dog.longest_s = 15
    with pytest.raises(WatchdogError, match=r"watchdog0: its driver takes no time-out of 20 s; give a shorter"):
        watchdog.open(str(dog.path), 20)
    assert dog.written() == b"V"


def test_a_fixed_time_out_that_is_too_short_for_a_pet_a_second_is_refused(dog: FakeWatchdog) -> None:
    dog.longest_s, dog.timeout_s = None, 2
    with pytest.raises(WatchdogError, match="its time-out is 2 s; allowed is 4 s or more"):
        watchdog.open(str(dog.path), 20)
    assert dog.written() == b"V"


def test_a_device_that_is_not_there_or_no_watchdog_is_named_and_not_written_to(kernel: FakeKernel) -> None:
    with pytest.raises(WatchdogError, match=r"watchdog9: No such file.*; load its kernel driver, or name another"):
        watchdog.open(str(kernel.dev / "watchdog9"), 20)
    plain = kernel.dev / "plain"
    plain.touch()
    with pytest.raises(WatchdogError, match=r"plain: .*; allowed is a device such as /dev/watchdog0"):
        watchdog.open(str(plain), 20)
    assert plain.read_bytes() == b""


def test_one_that_somebody_else_holds_says_who_that_may_be(dog: FakeWatchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(WatchdogError, match=r"busy; another program holds it.*RuntimeWatchdogSec"):
        watchdog.open(str(dog.path), 20)


class Machine:
    """A machine that boots, with a state directory that stays and a watchdog."""

    def __init__(self, root: Path, dog: FakeWatchdog, boot_id: Path) -> None:
        self.state, self.dog, self.said = root / "state", dog, list[str]()
        self._boot_id = boot_id
        self.boot()

    def boot(self) -> None:
        self._boot_id.write_text(os.urandom(4).hex() + "\n")

    def keeper(self, watched: bool = True) -> Keeper:
        """A guard begins."""
        self.said.clear()
        return Keeper(WatchdogSpec(str(self.dog.path), 20) if watched else None, self.state, self.said.append)

    def pets(self) -> int:
        return self.dog.written().count(b"\0")


@pytest.fixture
def machine(tmp_path: Path, dog: FakeWatchdog, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(module, "BOOT_ID", tmp_path / "boot_id")
    return Machine(tmp_path, dog, tmp_path / "boot_id")


def published(keeper: Keeper) -> WatchdogState:
    return keeper.state


def ticks(keeper: Keeper, count: int) -> None:
    for _ in range(count):
        keeper.tick(stalled=False)


def test_it_is_petted_once_in_so_many_ticks_of_the_guard(machine: Machine) -> None:
    keeper = machine.keeper()
    ticks(keeper, PET_TICKS - 1)
    assert machine.pets() == 0
    ticks(keeper, 1)
    assert machine.pets() == 1
    ticks(keeper, 3 * PET_TICKS)
    assert machine.pets() == 4
    assert keeper.state is WatchdogState.RUNNING


def test_a_stall_begins_the_count_again_so_a_guard_that_stalls_for_ever_is_reset(machine: Machine) -> None:
    keeper = machine.keeper()
    for _ in range(20):
        ticks(keeper, PET_TICKS - 1)
        keeper.tick(stalled=True)
    assert machine.pets() == 0
    ticks(keeper, PET_TICKS)
    assert machine.pets() == 1


def test_a_watchdog_that_cannot_be_opened_is_a_failure_that_is_told_and_the_guard_goes_on(machine: Machine) -> None:
    machine.dog.path.unlink()
    keeper = machine.keeper()
    ticks(keeper, 2 * PET_TICKS)
    assert keeper.state is WatchdogState.FAILED
    assert any("watchdog0: No such file" in text for text in machine.said)
    keeper.close()


def test_a_pet_that_fails_is_told_once_and_tried_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = machine.keeper()
    machine.said.clear()

    def broken(self: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(watchdog.Watchdog, "pet", broken)
        ticks(keeper, 3 * PET_TICKS)
    assert published(keeper) is WatchdogState.FAILED
    assert machine.said == ["watchdog cannot be petted: Input/output error; the machine will be reset"]
    ticks(keeper, PET_TICKS)
    assert published(keeper) is WatchdogState.RUNNING


def test_an_orderly_stop_disarms_it_and_a_guard_that_is_killed_does_not(machine: Machine) -> None:
    machine.keeper()
    assert b"V" not in machine.dog.written()
    machine.keeper().close()
    assert machine.dog.written() == b"V"


def test_a_board_without_a_watchdog_has_none_and_says_nothing_of_one(machine: Machine) -> None:
    keeper = machine.keeper(watched=False)
    ticks(keeper, PET_TICKS)
    keeper.close()
    assert keeper.state is WatchdogState.NONE
    assert machine.said == ["boot reason: POWER"]


@pytest.mark.parametrize(
    ("boot_status", "orderly", "reason"),
    [
        (0, False, BootReason.POWER),
        (0, True, BootReason.COMMAND),
        (CARD_RESET, False, BootReason.WATCHDOG),
        (CARD_RESET, True, BootReason.WATCHDOG),
        (CARD_RESET | POWER_UNDER, False, BootReason.WATCHDOG),
        (POWER_UNDER, True, BootReason.POWER),
        (POWER_OVER, True, BootReason.POWER),
    ],
)
def test_the_chip_knows_best_why_the_machine_started_then_the_mark(
    boot_status: int, orderly: bool, reason: BootReason
) -> None:
    assert why(boot_status, orderly) is reason


def test_the_first_boot_and_a_boot_after_a_loss_of_power_are_by_power(machine: Machine) -> None:
    assert machine.keeper().boot_reason is BootReason.POWER
    machine.boot()
    assert machine.keeper().boot_reason is BootReason.POWER


def test_a_boot_after_an_orderly_stop_of_the_guard_is_by_command_and_the_next_is_not(machine: Machine) -> None:
    machine.keeper().close()
    machine.boot()
    assert machine.keeper().boot_reason is BootReason.COMMAND
    machine.boot()
    assert machine.keeper().boot_reason is BootReason.POWER


def test_a_boot_by_the_watchdog_is_told_once_and_known_as_long_as_the_boot_lasts(machine: Machine) -> None:
    machine.keeper()
    machine.boot()
    machine.dog.boot_status = CARD_RESET
    assert machine.keeper().boot_reason is BootReason.WATCHDOG
    assert "boot reason: WATCHDOG" in machine.said
    again = machine.keeper()
    assert again.boot_reason is BootReason.WATCHDOG
    assert not any("boot reason" in text for text in machine.said)
    again.close()
    assert machine.keeper().boot_reason is BootReason.WATCHDOG, "a stop and start of the guard is not a boot"


@pytest.mark.parametrize("content", ["", "x", "x y z", "x POWER", b"\xff\0".decode("latin-1"), "a b c d e"])
def test_a_damaged_mark_counts_as_none(machine: Machine, content: str) -> None:
    machine.keeper().close()
    (machine.state / module.FILE).write_text(content)
    machine.boot()
    assert machine.keeper().boot_reason is BootReason.POWER


def test_a_disk_that_takes_nothing_stops_no_guard(machine: Machine) -> None:
    machine.state.write_text("a file where the directory should be")
    keeper = machine.keeper()
    assert keeper.boot_reason is BootReason.POWER
    keeper.close()
    assert machine.dog.written() == b"V"


BENCH = 'kind = "bench"\ntitle = "t"\n'


@pytest.mark.parametrize(
    ("table", "refusal"),
    [
        ('device = "/dev/watchdog0"', "watchdog.timeout_s = None: allowed is a whole number from 4 to 300"),
        ('device = "/dev/watchdog0"\ntimeout_s = 3', "watchdog.timeout_s = 3: allowed is a whole number from 4 to 300"),
        ("timeout_s = 10", "watchdog.device = None: allowed is a text"),
        ('device = "/dev/watchdog0"\ntimeout_s = 10\nnowayout = true', "nothing of that name; known are device, time"),
    ],
)
def test_a_wrong_watchdog_in_a_board_file_is_named(tmp_path: Path, table: str, refusal: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{BENCH}[watchdog]\n{table}\n")
    with pytest.raises(BoardError, match=refusal):
        load(str(path))


def test_the_bench_has_no_watchdog_and_a_raspberry_pi_has_one() -> None:
    assert load("bench").watchdog is None
    assert load("piplc").watchdog == WatchdogSpec("/dev/watchdog0", 10)
