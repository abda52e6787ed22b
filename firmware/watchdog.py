"""The hardware watchdog as the guard keeps it, and why the machine started.

It is petted after each PET_MS of ticks of the guard that had no stall between them, and only while the service manager
answers: a guard that hangs, dies or crawls is followed by a reset of the machine, and so is a manager that has frozen;
a guard that was stopped in order is not. A guard that was killed and is started again
within the time-out takes the watchdog over, and nothing is reset.

The boot reason is found once a boot: what the watchdog's chip says, else what the guard of the boot before left in
`boot` of the state directory, which tells an orderly end from a loss of power. A chip that keeps no boot status makes
its resets look like a loss of power, and so does a guard that was killed and never came back before a reboot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from drivers import watchdog
from drivers.board_file import GUARD_TICK_MS, WatchdogSpec
from statemachine.signals import BootReason, WatchdogState

from .notify import Manager

PET_MS = 1000.0
FILE = "boot"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Keeper:
    """The guard's watchdog. `state` and `boot_reason` are for its section; `say` takes the text of an event."""

    def __init__(
        self,
        spec: WatchdogSpec | None,
        directory: Path,
        say: Callable[[str], None],
        tick_ms: float = GUARD_TICK_MS,
    ) -> None:
        self._pet_ticks = round(PET_MS / tick_ms)
        self.state, self._say, self._ticks = WatchdogState.NONE, say, 0
        self._dog = self._open(spec) if spec else None
        self._manager = Manager()
        self._file = directory / FILE
        self.boot_reason = self._found(self._dog.boot_status if self._dog else 0)

    def tick(self, stalled: bool) -> None:
        """One tick of the guard is done. `stalled`: the one before was too long ago."""
        self._ticks = 0 if stalled else self._ticks + 1
        if self._dog and self._ticks == self._pet_ticks:
            self._ticks = 0
            if self._manager.answers():
                self._pet(self._dog)

    def close(self) -> None:
        """The orderly end: no reset follows, and the next boot is by command."""
        _write(self._file, _Boot(_boot_id(), self.boot_reason, True))
        if self._dog:
            with contextlib.suppress(OSError):
                self._dog.close(disarm=True)

    def _open(self, spec: WatchdogSpec) -> watchdog.Watchdog | None:
        try:
            dog = watchdog.open(spec.device, spec.timeout_s)
        except watchdog.WatchdogError as error:
            self.state = WatchdogState.FAILED
            self._say(str(error))
            return None
        self.state = WatchdogState.RUNNING
        self._say(f"watchdog {spec.device}: resets after {dog.timeout_s} s")
        return dog

    def _pet(self, dog: watchdog.Watchdog) -> None:
        try:
            dog.pet()
            self.state = WatchdogState.RUNNING
        except OSError as error:
            if self.state is not WatchdogState.FAILED:
                self._say(f"watchdog cannot be petted: {error.strerror}; the machine will be reset")
            self.state = WatchdogState.FAILED

    def _found(self, boot_status: int) -> BootReason:
        before, now = _read(self._file), _boot_id()
        if before and before.id == now:
            reason = before.reason
        else:
            reason = why(boot_status, before is not None and before.orderly)
            self._say(f"boot reason: {reason.name}")
        _write(self._file, _Boot(now, reason, False))
        return reason


def why(boot_status: int, orderly: bool) -> BootReason:
    """Of a new boot. `orderly`: the guard of the boot before was stopped in order."""
    if boot_status & watchdog.CARD_RESET:
        return BootReason.WATCHDOG
    if boot_status & (watchdog.POWER_UNDER | watchdog.POWER_OVER) or not orderly:
        return BootReason.POWER
    return BootReason.COMMAND


class _Boot(NamedTuple):
    """What the file says: the boot it was written in, its reason, and whether its guard was stopped in order."""

    id: str
    reason: BootReason
    orderly: bool


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _read(path: Path) -> _Boot | None:
    """None when there is no such file, or not one of ours."""
    try:
        boot, reason, end = path.read_text().split()
        return _Boot(boot, BootReason[reason], end == "stopped")
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, boot: _Boot) -> None:
    """Whole or not at all. A disk that does not take it costs the next boot's reason; the guard waits for none."""
    new = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(f"{boot.id} {boot.reason.name} {'stopped' if boot.orderly else 'running'}\n")
        os.replace(new, path)
