"""The appliance on the test stand: charging, hurt, observed by its own event stamps and the bench's truth, healed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from appliance import RUNNER, Appliance, appliance
from waiting import wait_until

from drivers.bench.control import POINTS as BENCH_POINTS
from firmware import journal, runner
from firmware.config import Limits
from firmware.historian import line_of
from firmware.image import LAYOUT, EventReader
from firmware.points import PointError
from statemachine import faults
from statemachine.signals import Mode, Why
from statemachine.states import CHARGING, State

FLOWS_A = -40.0
RATE_C = 0.25
"""On its way to 280 A; a scenario begins above break_current and what counts as opening under load."""
SERVICE_PRESS_S = 10.3
BENCH_PRIORITY = 5
NICE = -10
"""What else this machine does is not the subject, but for P6 and C18."""
PROCESSES = tuple(process.name for process in runner.APPLIANCE)
_SETTABLE = tuple(
    p.name for p in BENCH_POINTS if p.access == "RW" and p.name not in ("soc_preset", "speed", "reset_button")
)
_UNLIMITED = ("max_closings_per_hour", "max_precharges", "max_under_load", "contactor_life")


def tireless() -> dict[str, object]:
    """Lines of limits.conf that let one rack be switched as often as a suite needs."""
    return {entry.name: entry.metadata["limits"].le for entry in fields(Limits) if entry.name in _UNLIMITED}


class Stand:
    """One appliance with its bench. Times are CLOCK_MONOTONIC seconds, as in battery.log; reactions milliseconds."""

    def __init__(self, a: Appliance, logs: Path) -> None:
        self.a, self.logs = a, logs
        self.get, self.truth, self.state, self.until = a.get, a.truth, a.state, a.until
        self.command, self.pid, self.all_open = a.command, a.pid, a.all_open
        self._readers = {name: EventReader(name, a.image()) for name in LAYOUT if "events" in LAYOUT[name]}
        self._healthy = a.bench.read(*_SETTABLE)
        self._written: list[str] = []
        self._at = 0
        self._log_id = 0
        self.allowance_ms = 0.0
        self.notes: list[str] = []
        with contextlib.suppress(PermissionError):  # hardware waits for no scheduler
            os.sched_setscheduler(a.pid("bench"), os.SCHED_FIFO, os.sched_param(BENCH_PRIORITY))

    def note(self, text: str) -> None:
        """Something worth telling beside the reaction."""
        self.notes.append(text)

    # what is done to it

    def inject(self, **values: float) -> float:
        """Sets bench points; the time before the first write. The time the writes took is allowed for."""
        before = time.monotonic()
        self.a.inject(**values)
        self.allowance_ms = (time.monotonic() - before) * 1e3
        return before

    def signal(self, name: str, number: int) -> float:
        """Sends a signal to a process of the appliance; the time before."""
        pid, before = self.pid(name), time.monotonic()
        os.kill(pid, number)
        self.allowance_ms = 0.0
        return before

    @contextmanager
    def stopped(self, name: str) -> Iterator[float]:
        """SIGSTOP around the block, SIGCONT after it; gives the time before."""
        pid, before = self.pid(name), time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        self.allowance_ms = 0.0
        try:
            yield before
        finally:
            os.kill(pid, signal.SIGCONT)

    def power_cut(self) -> None:
        """Every process is gone at once, the runner first, and the process image with them."""
        children, image = [self.pid(name) for name in PROCESSES], self.a.image()
        for pid in (self.a.runner.pid, *children):
            os.kill(pid, signal.SIGKILL)
        self.a.runner.wait()
        shutil.rmtree(image, ignore_errors=True)  # tmpfs does not survive a cut

    # what is seen of it

    def running(self, name: str) -> int:
        """Process id, 0 while it does not run."""
        try:
            return self.pid(name)
        except AssertionError:
            return 0

    def lines(self) -> list[str]:
        """battery.log so far, also over a rotation."""
        with (self.logs / "battery.log").open("rb") as file:
            if self._log_id != (inode := os.fstat(file.fileno()).st_ino):
                self._log_id, self._at = inode, 0
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        self._written += whole.decode(errors="replace").splitlines()
        return self._written

    def stamp(self, text: str, since: float, timeout_s: float = 20.0) -> float:
        """When the first event with `text` at or after `since` happened, by the process that reports it."""
        found: list[float] = []

        def there() -> bool:
            for line in self.lines():
                if text in line and (at := float(line.split(" ", 2)[1])) >= since - 0.001:
                    found.append(at)
                    return True
            return False

        wait_until(there, timeout_s, lambda: f"{text!r} in battery.log; state {self.state()}, {self.faults()}", 0.02)
        return found[0]

    def told(self, text: str, since: float) -> bool:
        """Whether an event with `text` is in battery.log since then."""
        return any(text in line for line in self.since(since))

    def since(self, start: float) -> list[str]:
        """The lines of battery.log whose event is not older than `start`."""
        return [line for line in self.lines() if float(line.split(" ", 2)[1]) >= start - 0.001]

    def after_ms(self, since: float, text: str, timeout_s: float = 20.0) -> float:
        """Milliseconds from `since` to the event with `text`."""
        return (self.stamp(text, since, timeout_s) - since) * 1e3

    def open_ms(self, since: float, timeout_s: float = 20.0) -> float:
        """Milliseconds until the true main contactors are open, by polling: an outer bound."""
        wait_until(self.all_open, timeout_s, lambda: f"the true contactors open; {self.state()}, {self.faults()}")
        return (time.monotonic() - since) * 1e3

    def circuit_open(self) -> bool:
        """Whether no current can flow; one contactor may be welded."""
        return not (self.truth("true_pos") and self.truth("true_neg"))

    def faults(self) -> list[str]:
        """Names of the faults active or latched."""
        try:
            bits = int(self.get("FaultBits"))
            if len(faults.FAULTS) > 31:
                bits |= int(self.get("FaultBits2")) << 32
        except PointError:
            return ["(no answer)"]
        return faults.names(bits)

    def shows(self, *names: str) -> None:
        """Waits until each of these faults is shown over Modbus."""
        wait_until(lambda: set(names) <= set(self.faults()), 10, lambda: f"{names} shown; {self.faults()}")

    def scans(self, count: int) -> None:
        """Lets the controller scan so many times."""
        last = self.get("ScanCount") + count
        wait_until(lambda: self.get("ScanCount") >= last, 30, f"{count} scans", 0.02)

    def overruns(self) -> float:
        """Scan periods missed since the controller's start, 0 while it is silent."""
        try:
            return self.get("ScanOverruns")
        except PointError:
            return 0.0

    def charges_on(self) -> None:
        """Still charging with true contactors closed and nothing latched above a warning."""
        severe = [f.name for f in faults.FAULTS if f.severity >= faults.Severity.STOP]
        assert self.state() in CHARGING, (self.state(), self.faults())
        assert not set(severe) & set(self.faults()), self.faults()
        assert self.truth("true_pos") == self.truth("true_neg") == 1

    def unrecorded(self) -> list[str]:
        """Events of the process image that are neither in battery.log nor in the journal: must be empty."""
        made = [(name, event) for name, reader in self._readers.items() for event in reader.new()]
        missing = {_untimed(line_of(name, event)) for name, event in made}

        def written() -> bool:
            missing.difference_update(map(_untimed, self.lines()))
            return not missing or not missing - self._journal()

        try:
            wait_until(written, 5, "", 0.05)
        except AssertionError:
            return sorted(missing - self._journal())
        return []

    def _journal(self) -> set[str]:
        """What the journal holds, as lines."""
        entries = journal.read(self.a.logs / "state" / "journal")
        return {_untimed(line_of(entry.process, entry.event)) for entry in entries}

    # how it is brought back

    def recover(self) -> None:
        """The technician's way back: cause gone, reset pressed, acknowledged, commanded off; closing is permitted."""
        self.heal()
        wait_until(self._isolated, 60, lambda: f"ISOLATED; is {self.state()}, {self.faults()}", 0.3)

    def _isolated(self) -> bool:
        state = self.state()
        with contextlib.suppress(PointError):  # while the controller is silent nothing is taken
            if self.a.get("CmdMode") != Mode.OFF:
                self.command(Mode.OFF)
            if state is State.ISOLATED and not self._latched() and self.get("Permit") == Why.NONE:
                return True
            if state in (State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT, State.ISOLATED):
                self.press_reset(SERVICE_PRESS_S if state is State.LOCKOUT else 0.0)
                self.a.site.write({"AckFaults": 1})
        return False

    def press_reset(self, hold_s: float = 0.0) -> None:
        """A press of the button on the panel; the service press when it is held."""
        self.a.inject(reset_button=1)
        time.sleep(hold_s)
        self.a.inject(reset_button=0)

    def _latched(self) -> bool:
        by_name = faults.BY_NAME
        return any(by_name[name].severity >= faults.Severity.STOP for name in self.faults() if name in by_name)

    def heal(self) -> None:
        """Every bench point as it was at the start."""
        now, before = self.a.bench.read(*_SETTABLE), self._healthy
        self.a.inject(**{name: before[name] for name, value in now.items() if abs(value - before[name]) > 1e-6})

    def bring_to(self, start: str) -> None:
        """To "isolated", "ready" or "charging". A busy machine may lose data on the way: three tries."""
        for left in (2, 1, 0):
            try:
                return self._bring_to(start)
            except (AssertionError, PointError):
                if not left:
                    raise
        return None

    def _bring_to(self, start: str) -> None:
        if start == "charging" and self._charges():
            return
        self.recover()
        if start == "ready":
            self.command(Mode.READY)
            self._reach(State.READY)
        elif start == "charging":
            self.a.inject(soc_preset=30.0)
            self.command(Mode.CHARGE, RATE_C, 95.0)
            self._reach(*CHARGING)
            wait_until(self._flows, 15, "the current flows")

    def _reach(self, *wanted: State) -> None:
        self.until(*wanted, State.FAULT, State.EMERGENCY_STOP)
        assert self.state() in wanted, f"{self.state()} {self.faults()} on the way: {self.lines()[-8:]}"

    def _charges(self) -> bool:
        commanded = self.get("CmdMode") == Mode.CHARGE
        return commanded and self.state() in CHARGING and not self.faults() and self._flows()

    def _flows(self) -> bool:
        return self.truth("true_current_a") < FLOWS_A


def _untimed(line: str) -> str:
    """Without the wall clock, which carries a mark when it is not trusted."""
    return line.partition(" ")[2].rstrip("\n")


@contextmanager
def stand(
    configured: Mapping[str, object] | None = None,
    start: tuple[str, ...] = RUNNER,
    at: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Stand]:
    """An appliance that may be switched without end, its limits otherwise the defaults; in `at` when it is to stay."""
    with tempfile.TemporaryDirectory(prefix="ems-faults-") as name:
        logs = at or Path(name)
        limits = {**tireless(), **(configured or {})}
        with appliance(logs, soc=30.0, configured=limits, start=start, environment=environ, nice=NICE) as a:
            yield Stand(a, Path(str(limits.get("log_directory", logs))))
