"""The guard: a second, independent channel above the controller.

It waits for edges of the kill-switch and the tamper contact and, every tick, for the controller's heartbeat. It owns
two outputs in series with all contactor coils: safe-enable, dropped at once on an edge, on a late heartbeat or when the
controller trips, whose coil outputs may stick; and alive, a pulse train for a retriggerable relay that falls out within
100 ms when the guard itself dies or hangs. It arms by itself once, at power-up; after any trip only the physical reset
arms it again. It alone pets the watchdog.

The heartbeat is counted in ticks of the guard, not in time: when the whole machine stands still for a moment, the guard
stood still as well and counts one tick. An edge is answered from the levels, at gpiozero's pins and not its devices,
before the edges themselves are taken: 40 us sooner.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from math import ceil
from time import monotonic_ns

from drivers.board import Board, open_board
from drivers.board_file import GUARD_TICK_MS, WatchdogSpec, load
from statemachine.signals import GuardTrip

from . import image
from .notify import Notifier
from .realtime import pending_stop, prepare
from .watchdog import Keeper

PRIORITY = 90
PUBLISH_MS = 10.0
RESET_MS = 20.0
"""A press stands for as long as the controller's does, so that a scan cannot miss it; two ticks at least."""
STALL_NS = 100_000_000  # the alive relay falls out in a longer gap: from then on only the reset arms
LATE_PERIODS = 2.5  # of the scan; with one tick of granularity this is within 3
_TRIPS = {"kill_switch": GuardTrip.KILL_SWITCH, "tamper": GuardTrip.TAMPER}


class Guard:
    """`edges()` when the line fd is readable, `tick()` every `tick_ms`."""

    def __init__(self, board: Board, watchdog: WatchdogSpec | None = None, tick_ms: float = GUARD_TICK_MS) -> None:
        self.tick_ms = tick_ms
        self._publish_ticks, self._reset_ticks = ceil(PUBLISH_MS / tick_ms), max(2, ceil(RESET_MS / tick_ms))
        self.files = image.writer("guard")
        self._board, self._section, self._log = board, self.files["guard"], image.EventLog(self.files["events"])
        before = image.GUARD.unpack(last) if (last := self._section.last()) else None
        self._control = image.View(image.CONTROL, "controller", "control")
        self._safe, self._alive = (board.outputs[name].pin for name in ("safe_enable", "alive"))
        self._chain = tuple((board.inputs[name].pin, why) for name, why in _TRIPS.items())
        self._reset = board.inputs["reset_button"].pin
        self._watchdog = Keeper(watchdog, image.state_directory(), lambda text: self._log.add(0, text=text), tick_ms)
        self._trip = GuardTrip.GUARD_RESTARTED if before and before.trip != GuardTrip.START else GuardTrip.START
        self._resets = before.resets if before else 0
        self._scan = left.scan if (left := self._control.refresh()) else 0
        self._armed, self._fit, self._silent_ticks = False, False, float("inf")
        self._ticks, self._ticked_ns = 0, monotonic_ns()
        self._pressed_ticks = self._reset_ticks if self._reset.state else 0

    def edges(self) -> None:
        """Kernel edges since the last call. A falling kill or tamper edge trips, however short it was."""
        self._levels()
        for edge in self._board.edges():
            if not edge.level and edge.line in _TRIPS:
                self._drop(_TRIPS[edge.line])

    def tick(self) -> None:
        """Levels, heartbeat, reset, alive pulse."""
        now_ns = monotonic_ns()
        if stalled := now_ns - self._ticked_ns > STALL_NS:
            self._drop(GuardTrip.GUARD_STALLED)
        self._ticked_ns = now_ns
        self._heartbeat()
        self._levels()
        self._pressed_ticks = self._pressed_ticks + 1 if self._reset.state else 0
        self._resets += self._pressed_ticks == self._reset_ticks
        if self._pressed_ticks == self._reset_ticks or self._trip is GuardTrip.START:
            self._arm()
        self._alive.state = not self._alive.state
        self._watchdog.tick(stalled)
        self._ticks = self._ticks % self._publish_ticks + 1
        if self._ticks == self._publish_ticks:
            self._publish()

    def _levels(self) -> None:
        for pin, why in self._chain:
            if not pin.state:
                self._drop(why)

    def _heartbeat(self) -> None:
        if (control := self._control.refresh()) is None:
            return
        if control.scan < self._scan:
            self._drop(GuardTrip.CONTROLLER_RESTARTED)
        self._silent_ticks = self._silent_ticks + 1 if control.scan == self._scan else 0
        self._scan = control.scan
        late = self._silent_ticks * self.tick_ms >= LATE_PERIODS * control.period_ms
        self._fit = not (late or control.trip)
        if not self._fit:
            self._drop(GuardTrip.HEARTBEAT_LATE if late else GuardTrip.CONTROLLER_TRIP)

    def _drop(self, why: GuardTrip) -> None:
        self._safe.state = 0
        if self._armed:
            self._armed, self._trip = False, why
            self._publish()
            self._log.add(0, text=f"safe-enable off: {why.name}")

    def _arm(self) -> None:
        if not self._armed and self._fit and all(pin.state for pin, _ in self._chain):
            self._armed, self._safe.state, self._trip = True, True, GuardTrip.NONE
            self._publish()
            self._log.add(0, text="safe-enable on")

    def _publish(self) -> None:
        ok, dog = [pin.state for pin, _ in self._chain], self._watchdog
        self._section.publish(image.GUARD.pack(self._armed, self._trip, *ok, self._resets, dog.state, dog.boot_reason))

    def farewell(self) -> None:
        """Safe-enable off, no more pulses, no reset of the machine."""
        self._drop(GuardTrip.HEARTBEAT_LATE)
        self._alive.state = False
        self._watchdog.close()


def run(guard: Guard, edge_fd: int) -> None:
    """Until SIGTERM."""
    tick_ns, life = round(guard.tick_ms * 1e6), Notifier()
    deadline = monotonic_ns() + tick_ns
    while not pending_stop():
        left_s = (deadline - monotonic_ns()) / 1e9
        if left_s > 0 and select.select((edge_fd,), (), (), left_s)[0]:
            guard.edges()
            continue
        guard.tick()
        life.tick()
        deadline = max(deadline + tick_ns, monotonic_ns())
    guard.farewell()


def main() -> int:
    """Process entry. Exit code 1 when a line is lost: those that are left are safe by then."""
    try:
        board = open_board("guard", image.run_directory())
        file = load(os.environ.get("EMS_BOARD") or "bench")
        guard = Guard(board, file.watchdog, file.guard_tick_ms)
    except OSError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    fifo, _ = prepare(PRIORITY, int(os.environ.get("EMS_RT_CORE", "-1")))
    print(f"guard: watching, {'SCHED_FIFO 90' if fifo else 'without the right to SCHED_FIFO'}", file=sys.stderr)
    try:
        run(guard, board.edge_fd)
    except OSError as error:  # an adapter was pulled: the next guard opens what is there
        print(f"guard: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            board.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
