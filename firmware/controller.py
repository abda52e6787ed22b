"""The controller: one scan after the other, nothing else. Reads lines and sections, steps the core, writes outputs.

One thread, SCHED_FIFO, memory locked, collector off, absolute deadlines. A late scan is counted, never caught up. No
socket, file, log or slow bus is touched inside the scan. An exception out of a scan drives the outputs safe and ends
the process; its successor starts in FAULT. Just before it is due each scan is rehearsed, to no effect: the processor's
caches have lost it since the last one.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import monotonic_ns, time_ns
from typing import Any

from drivers.board import Board, do_all, open_board
from drivers.section import SectionReader
from statemachine.core import Core, started
from statemachine.settings import Settings
from statemachine.signals import Command, Inputs, Lines, Mode, Outputs, StatusBit
from statemachine.states import CLOSED, State
from statemachine.wear import Wear

from . import image, store
from .freeze_frame import FRAME, frame_of, ring_writer
from .image import Control, Status
from .notify import Notifier
from .realtime import pending_stop, prepare, sleep_until
from .settings_codec import settings_from_json
from .statistics import Histogram

PRIORITY = 80
DEFAULT_PERIOD_MS = 10
CONFIGURATION_WAIT_NS = 10_000_000_000
STATISTICS_EVERY = 100  # scans between two percentile walks
REHEARSAL_SHARE = 5  # a rehearsal begins at most this part of the period before the deadline
ORDERLY_STOP_NS = 18_000_000_000  # SIGTERM: ramp down and open; after this open anyway
_COILS = ("coil_neg", "coil_pos", "coil_pre")
_LEDS = ("led_run", "led_charge", "led_comm", "led_fault", "led_kill")


def _settings(payload: bytes, exempt: bool) -> Settings:
    """As the server hands them over; `exempt`: the board needs no commissioning."""
    settings = settings_from_json(payload)
    return replace(settings, commissioned=True) if exempt else settings


def _configuration(section: SectionReader, exempt: bool) -> Settings | None:
    """The configuration, for which a start waits a moment; None when there is none, then every limit is 0."""
    give_up = monotonic_ns() + CONFIGURATION_WAIT_NS
    while (found := section.read()) is None and monotonic_ns() < give_up:
        sleep_until(monotonic_ns() + 20_000_000)
    return None if found is None else _settings(found.payload, exempt)


def _survived(before: Status | None, saved: store.Saved | None) -> tuple[int, Wear]:
    """Latched faults and wear: a predecessor's own word in memory is newer than what was saved."""
    known = before if before is not None else saved
    if known is None:
        return 0, Wear()
    return known.faults_latched, Wear(*(getattr(known, name) for name in Wear._fields))


def needs_no_commissioning(board: Board) -> bool:
    """The bench has nothing that can be wired wrong, unless EMS_BENCH_COMMISSIONING=1 asks for the real way."""
    return board.is_bench and os.environ.get("EMS_BENCH_COMMISSIONING") != "1"


def _pins(devices: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """A device's `value` is its pin's `state` and costs eight times as much; a scan reads nineteen."""
    return [devices[name].pin for name in names]


class Controller:
    """Everything the scan needs, opened once. `scan()` is one scan."""

    def __init__(self, board: Board) -> None:
        self._board = board
        files = image.writer("controller")
        last = files["status"].last()
        before = image.STATUS.unpack(last) if last is not None else None
        found = store.load(image.state_directory())
        self._core = Core(started(*_survived(before, found.saved)))
        self._restarted = found.damaged or (before is not None and not before.stopped)
        self._status, self._control, self._log = files["status"], files["control"], image.EventLog(files["events"])
        self._bms = image.View(image.BMS, "aggregator", "bms")
        self._pcs = image.View(image.PCS, "aggregator", "pcs")
        self._command = image.View(image.COMMAND, "server", "command")
        self._grid = image.View(image.GRID, "server", "grid")
        self._guard = image.View(image.GUARD, "guard", "guard")
        self._store = image.View(image.STORE, "historian", "store")
        self._clock = image.View(image.CLOCK, "clock", "clock")
        self._updater = image.View(image.HOLD, "updater", "hold")
        self._frames = ring_writer(image.run_directory())
        self._config = image.reader("server", "config")
        self._config_sequence = 0
        self._exempt = needs_no_commissioning(board)
        self._settings = _configuration(self._config, self._exempt)
        self._in = _pins(board.inputs, ("kill_switch", "tamper", "reset_button", "insulation", "local_remote"))
        self._interlocks = _pins(board.inputs, [f"interlock_{n}" for n in range(1, 9)])
        self._feedback = _pins(board.inputs, ("fb_neg", "fb_pos", "fb_pre"))
        self._driven = _pins(board.outputs, _COILS)
        self._coils = [board.outputs[n] for n in _COILS]
        self._leds = [board.outputs[n] for n in _LEDS]
        self._seen: Lines | None = None  # by the last scan
        self._percentiles = (0, 0, 0, 0)
        self._started_ns = monotonic_ns()
        self._use_period(self._settings.scan_period_ms if self._settings else DEFAULT_PERIOD_MS)
        self.scans = self.overruns = self.late_scans = self.late_in_row = 0
        self._last_us = 0
        self.fixed_status_bits = 1 << StatusBit.BENCH if board.is_bench else 0
        self.stopping = False

    def _use_period(self, period_ms: int) -> None:
        self.period_ns = period_ms * 1_000_000
        self._wake, self._execution = (Histogram(period_ms * 1000) for _ in range(2))

    def _lines(self, now_ns: int) -> Lines:
        kill, tamper, reset, insulation, remote = [bool(pin.state) for pin in self._in]
        closed = sum([1 << index for index, pin in enumerate(self._interlocks) if pin.state])
        neg, pos, pre = [bool(pin.state) for pin in self._feedback]
        loops_ma, stamp_ns = self._board.loops()
        coil_neg, coil_pos, coil_pre = [bool(pin.state) for pin in self._driven]
        age_ms = (now_ns - stamp_ns) / 1e6
        return Lines(
            kill, tamper, reset, insulation, closed, neg, pos, pre, loops_ma, age_ms, coil_neg, coil_pos, coil_pre,
            remote,
        )  # fmt: skip

    def _inputs(self, lines: Lines, now_ns: int) -> Inputs:
        found = self._config.read()
        if found is not None and found.sequence != self._config_sequence:
            first = self._settings is None
            self._config_sequence, self._settings = found.sequence, _settings(found.payload, self._exempt)
            if first and self._settings is not None:  # the server started late: nothing can have been closed till now
                self._use_period(self._settings.scan_period_ms)
        bms, pcs = self._bms.refresh(), self._pcs.refresh()
        guard, saved, clock = self._guard.refresh(), self._store.refresh(), self._clock.refresh()
        grid, updater = self._grid.refresh(), self._updater.refresh()
        return Inputs(
            lines,
            bms, self._bms.age_ms(now_ns),
            pcs, self._pcs.age_ms(now_ns),
            *self._wanted(),
            guard, self._guard.age_ms(now_ns),
            saved, self._store.age_ms(now_ns),
            clock, self._clock.age_ms(now_ns),
            self._settings, self.late_in_row, self._restarted, grid, updater, self._updater.age_ms(now_ns),
        )  # fmt: skip

    def _wanted(self) -> tuple[Command | None, float]:
        """The command and its age, ms."""
        command = self._command.refresh()
        if self.stopping and command is not None:
            command = command._replace(mode=Mode.OFF)
        return command, self._command.age_ms()

    def scan(self, periods: int) -> Outputs:
        """One scan, `periods` scan periods after the one before.

        The command is read again when all else is judged: what was written meanwhile is still in time. What nobody
        waits for comes after the publish.
        """
        dt_ms = periods * self.period_ns / 1e6
        now_ns = monotonic_ns()
        self._seen = self._lines(now_ns)
        inputs = self._inputs(self._seen, now_ns)
        self._restarted = False
        prepared = self._core.prepare(inputs, dt_ms)
        command, age_ms = self._wanted()
        inputs = inputs._replace(command=command, command_age_ms=age_ms)
        out = self._core.decide(prepared, inputs)
        for device, on in zip(self._coils, (out.coil_neg, out.coil_pos, out.coil_pre), strict=True):
            device.value = on
        self.scans += 1
        self._publish(out, inputs)
        for device, on in zip(self._leds, out.led_levels, strict=True):
            device.value = on
        if self.scans % STATISTICS_EVERY == 0:
            self._percentiles = (*self._wake.percentiles(0.5, 0.99), *self._execution.percentiles(0.5, 0.99))  # type: ignore[assignment]
        return out

    def rehearse(self, deadline_ns: int) -> None:
        """Sleeps until shortly before the deadline, then does the next scan on the lines as they were, to no effect.

        Nothing is driven, published or remembered. Without the time for it, or before the first scan, nothing is done.
        """
        needed_ns = 2000 * self._last_us
        sleep_until(deadline_ns - min(needed_ns * 3 // 2, self.period_ns // REHEARSAL_SHARE))
        now_ns = monotonic_ns()
        if self._seen is None or deadline_ns - now_ns < needed_ns:
            return
        inputs = self._inputs(self._seen, now_ns)
        status = self._status_of(self._core.rehearse(inputs, self.period_ns / 1e6), self._seen, False)
        image.STATUS.pack(*status)
        FRAME.pack(frame_of(status, inputs, now_ns, time_ns(), self._last_us))

    def _publish(self, out: Outputs, inputs: Inputs, stopped: bool = False) -> None:
        lines = inputs.lines
        closed = out.pcs_run and lines.fb_neg and lines.fb_pos
        self._control.publish(
            image.CONTROL.pack(
                *Control(
                    self.scans, out.setpoint_a, out.pcs_run, closed, out.charge_limit_a, out.discharge_limit_a,
                    self.period_ns // 1_000_000, out.trip,
                )
            )
        )  # fmt: skip
        status = self._status_of(out, lines, stopped)
        self._status.publish(image.STATUS.pack(*status))
        self._frames.append(FRAME.pack(frame_of(status, inputs, monotonic_ns(), time_ns(), self._last_us)))
        for kind, a, b in out.events:
            self._log.add(kind, a, b)

    def _status_of(self, o: Outputs, lines: Lines, stopped: bool) -> Status:
        wake_p50, wake_p99, exec_p50, exec_p99 = self._percentiles
        return Status(
            self._started_ns, self.scans, o.state, o.coil_neg | o.coil_pos << 1 | o.coil_pre << 2,
            lines.fb_neg | lines.fb_pos << 1 | lines.fb_pre << 2, o.setpoint_a, o.pcs_run, o.charge_limit_a,
            o.discharge_limit_a, o.charge_reason, o.discharge_reason,
            o.available_charge_a, o.available_discharge_a, o.demand_w, o.faults_active, o.faults_latched,
            sum(code << 8 * at for at, code in enumerate(o.led_codes)),
            sum(level << at for at, level in enumerate(o.led_levels)),
            o.ack_seq, o.ack_result, o.ack_why, o.permit, o.status_bits | self.fixed_status_bits, o.wset_active_w,
            o.wset_remaining_s, o.wset_reverted, o.service_delay_s, o.limit_remaining_s, o.limit_reverted,
            o.droop_remaining_s, o.droop_reverted, o.dv_v, o.precharge_tries, o.interlocks, o.settings_revision,
            self.overruns, self.late_scans, wake_p50, wake_p99, self._wake.max_us, exec_p50, exec_p99,
            self._execution.max_us, self.period_ns // 1000, stopped, *o.wear,
        )  # fmt: skip

    def count(self, deadline_ns: int, woke_ns: int) -> int:
        """Books a finished scan; periods until the next deadline that can still be met."""
        end_ns = monotonic_ns()
        self._wake.add((woke_ns - deadline_ns) // 1000)
        self._last_us = (end_ns - woke_ns) // 1000
        self._execution.add(self._last_us)
        missed = (end_ns - deadline_ns) // self.period_ns
        self.overruns += missed
        self.late_scans += missed > 0
        self.late_in_row = self.late_in_row + 1 if missed else 0
        return 1 + missed

    def safe(self) -> None:
        """The safe table: everything off. Raises OSError when a line could not be driven; all others were."""
        do_all(*(device.off for device in (*self._coils, *self._leds)))

    def farewell(self, out: Outputs) -> None:
        """Tells the successor that this stop was meant, unless a fault waits to be acknowledged."""
        self.safe()
        last = out._replace(setpoint_a=0.0, pcs_run=False, events=())
        now_ns = monotonic_ns()
        self._publish(last, self._inputs(self._lines(now_ns), now_ns), stopped=not out.faults_latched)


def run(controller: Controller) -> None:
    """Scans until SIGTERM; then lets the core ramp down and open before it ends."""
    deadline, periods, give_up, life = monotonic_ns() + controller.period_ns, 1, 0, Notifier()
    while True:
        controller.rehearse(deadline)
        sleep_until(deadline)
        woke = monotonic_ns()
        out = controller.scan(periods)
        periods = controller.count(deadline, woke)
        deadline += periods * controller.period_ns
        life.tick()
        if pending_stop() and not controller.stopping:
            controller.stopping, give_up = True, woke + ORDERLY_STOP_NS
        if controller.stopping and (out.state not in CLOSED | {State.PRECHARGE} or woke > give_up):
            controller.farewell(out)
            return


def main() -> int:
    """Process entry. Exit code 1 after an exception in a scan: outputs are off by then."""
    try:
        board = open_board("controller", image.run_directory())
        controller = Controller(board)
    except OSError as error:
        print(f"controller: {error}", file=sys.stderr)
        return 2
    logging.disable()  # the state machine's library would build a line a scan that nobody reads
    fifo, locked = prepare(PRIORITY, int(os.environ.get("EMS_RT_CORE", "-1")))
    controller.fixed_status_bits |= (not fifo) << StatusBit.NO_REALTIME | (not locked) << StatusBit.NO_MEMLOCK
    grade = "SCHED_FIFO 80" if fifo else "without the right to SCHED_FIFO: expect late scans"
    period_ms = controller.period_ns // 1_000_000
    print(f"controller: scan every {period_ms} ms, {grade}{'' if locked else ', memory not locked'}", file=sys.stderr)
    try:
        run(controller)
    except Exception:
        try:
            controller.safe()
        finally:
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
