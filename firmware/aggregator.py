"""The aggregator: polls the BMS and the PCS over Modbus TCP and publishes what they say, with its age.

One thread a device with a blocking, checked client: half the processor time of asyncio at this load, and a device that
hangs cannot delay the other. A section is published only after a complete poll of a device whose identity was verified;
a device that is silent, lies or stands still shows as a section that ages. The stamp is the start of the poll.
"""

from __future__ import annotations

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import nan
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, monotonic_ns
from typing import Any, TypeVar, get_type_hints

from drivers.modbus.client import (
    Answer,
    Damaged,
    Disconnected,
    ExceptionAnswer,
    Garbage,
    Link,
    LinkError,
    Read,
    TcpFraming,
    Timeout,
    WrongLength,
    WrongUnit,
)
from drivers.modbus.rtu import RtuFraming
from drivers.profile import Block, Profile, ProfileError, load
from drivers.section import SectionError, SectionFile
from firmware import image
from firmware.config import ConfigError, config_directory, load_site
from firmware.notify import Notifier
from firmware.realtime import use_fifo
from firmware.reduction import StringPoll, pcs_values, reduce, string_values, wire_cells
from statemachine.signals import Bms, Pcs

PRIORITY = 45
"""Below the kernel's interrupt threads (50), which guard and controller wait for on a slow bus; above the sampler: late
data stops the rack, a late loop derates it."""
RECONNECT_S = 0.5
"""Between two attempts to connect, always: a device that is back is read within a second."""
CONTROL_TIMEOUT_MS = 200.0
"""An older set-point is not passed on: the PCS is told 0 A and stop."""
CONTROL_TICK_S = 0.004
"""How often a changed set-point is looked for."""
FROZEN_S = 2.0
"""A heartbeat that stands still for longer makes the device's data worthless."""
REMIND_S = 60.0
"""A device that stays down is told again once in this time."""
MAX_EVENTS_A_MINUTE = 20
LOSS_REQUESTS = 200
SHORTEST_WAIT_S = 0.02
"""An answer is waited for at least this long: the hiccup of a device or of this machine is no loss."""

T = TypeVar("T", bound=tuple[Any, ...])

_WRITTEN = ("run", "setpoint_a", "charge_limit_a", "discharge_limit_a")
_STOP = (0.0,) * len(_WRITTEN)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """What is polled, and how often."""

    bms_host: str
    bms_port: int
    bms_profile: Profile
    strings: int
    cells_per_string: int
    pcs_host: str
    pcs_port: int
    pcs_profile: Profile
    bms_poll_ms: int = 100
    pcs_poll_ms: int = 20
    request_gap_ms: int = 0
    request_timeout_ms: int = 300


@dataclass(slots=True)
class Tally:
    """One link's half of `image.Links`, in its order; written by the link's thread only."""

    polls: int = 0
    timeouts: int = 0
    wrong_unit: int = 0  # also a device that is not the one expected
    wrong_length: int = 0
    exceptions: int = 0
    garbage: int = 0  # also a heartbeat that came to a stand
    crc: int = 0
    connects: int = 0
    poll_us: int = 0
    up: bool = False

    def row(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def _nothing(kind: type[T]) -> T:
    """Every number unknown, every truth False: so identity_ok is, and nobody uses the rest."""
    unknown: dict[type, Any] = {int: 0, float: nan, bool: False}
    return kind._make(unknown[hint] for hint in get_type_hints(kind).values())  # type: ignore[attr-defined,no-any-return]


NOT_OURS_BMS, NOT_OURS_PCS = _nothing(Bms), _nothing(Pcs)


class WrongIdentity(WrongUnit):
    """The unit answers, but it is another device."""


_COUNTED: dict[type[LinkError], str] = {
    Timeout: "timeouts",
    WrongUnit: "wrong_unit",
    WrongIdentity: "wrong_unit",
    WrongLength: "wrong_length",
    ExceptionAnswer: "exceptions",
    Garbage: "garbage",
    Damaged: "crc",
}


class Loss:
    """Share of requests that got no good answer, smoothed over some LOSS_REQUESTS."""

    def __init__(self) -> None:
        self.pct = 0.0

    def count(self, lost: bool) -> None:
        """One request more."""
        self.pct += (100.0 * lost - self.pct) / LOSS_REQUESTS


class Patience:
    """How long an answer is waited for: the retransmission timer of RFC 6298, from what this device's answers take."""

    def __init__(self, longest_s: float) -> None:
        self.wait_s = self._longest_s = longest_s
        self._mean_s = self._deviation_s = nan

    def answered(self, took_s: float) -> None:
        """A good answer came."""
        if self._mean_s != self._mean_s:
            self._mean_s, self._deviation_s = took_s, took_s / 2.0
        else:
            self._deviation_s += (abs(self._mean_s - took_s) - self._deviation_s) / 4.0
            self._mean_s += (took_s - self._mean_s) / 8.0
        self.wait_s = min(max(SHORTEST_WAIT_S, self._mean_s + 4.0 * self._deviation_s), self._longest_s)

    def lost(self) -> None:
        """None came: the next is waited for twice as long."""
        self.wait_s = min(2.0 * self.wait_s, self._longest_s)


class Reports:
    """Turns what happens on a link into few events: one a change, a reminder a minute, never more than 20 a minute."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._told: dict[str, float] = {}  # kind -> when, since the last change between up and down
        self._sent: deque[float] = deque(maxlen=MAX_EVENTS_A_MINUTE)

    def change(self, kind: str, text: str) -> None:
        """The link came up or went down."""
        self._told.clear()
        self.trouble(kind, text)

    def trouble(self, kind: str, text: str) -> None:
        """The link is still down; told once for each kind of reason."""
        now = self._clock()
        if now - self._told.get(kind, -REMIND_S) < REMIND_S:
            return
        if len(self._sent) == MAX_EVENTS_A_MINUTE and now - self._sent[0] < REMIND_S:
            return
        self._told = dict.fromkeys(self._told, now) | {kind: now}
        self._sent.append(now)
        self._tell(text)


class Heartbeat:
    """Watches a counter that must move."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._moved_s = 0.0

    def frozen(self, value: float, now_s: float) -> bool:
        """True when `value` has not changed for more than `FROZEN_S`."""
        if value != self._last:
            self._last, self._moved_s = value, now_s
        return now_s - self._moved_s > FROZEN_S


def verify(link: Link, profile: Profile, unit: int) -> str:
    """The device's name when it is the one the profile expects. Raises LinkError."""
    expected = profile.identity
    if expected.address is not None:
        value = int.from_bytes(link.read(unit, expected.address, 1, profile.read_function))
        seen, wanted = f"{value} in register {expected.address}", f"{expected.value} in register {expected.address}"
    else:
        objects = link.identity(unit)
        seen = " ".join(objects.get(i, b"").rstrip(b"\0 ").decode("ascii", "replace") for i in (0, 1))
        wanted = f"{expected.vendor} {expected.product}"
    if seen != wanted:
        raise WrongIdentity(f"{link.peer} unit {unit} is {seen}, not {wanted}")
    return seen


class Poller(Thread, ABC):
    """Keeps one device polled on an absolute schedule; late polls are skipped, never caught up.

    A request that gets no good answer is made again on a new connection, so that a gateway which loses single frames
    costs milliseconds and not the poll. The poll is given up when no good answer came for request_timeout_ms, or when
    the peer ends the connection; who answers is asked when that has happened, not in between.
    """

    def __init__(
        self, link: Link, profile: Profile, period_ms: int, tell: Tell, stop: Event, gap_ms: float = 0.0
    ) -> None:
        super().__init__(name=link.peer, daemon=True)
        self.link, self.profile, self.tally, self.stop = link, profile, Tally(), stop
        self._period_s, self._gap_s = period_ms / 1000.0, gap_ms / 1000.0
        self._transactions = 1 if gap_ms else profile.line.transactions
        self._reports = Reports(tell)
        self.loss = Loss()
        self._longest_s, self._give_up_s = link.timeout_s, 0.0
        self._patience = Patience(link.timeout_s)

    def read_all(self, reads: Sequence[Read]) -> dict[Read, Answer]:
        """The answer to each; what does not come is asked for again until it is given up. Raises LinkError."""
        answers: dict[Read, Answer] = {}

        def ask() -> None:
            missing = [read for read in reads if read not in answers]
            for answer in self.link.read_each(missing, self.profile.read_function, self._transactions):
                answers[answer.read] = answer
                self._good(answer.took_s)
                if self._gap_s:
                    self.stop.wait(self._gap_s)

        self.insist(ask)
        return answers

    def tell(self, write: Callable[[], None]) -> None:
        """`write` until it is confirmed or given up. Raises LinkError."""

        def ask() -> None:
            asked_s = monotonic()
            write()
            self._good(monotonic() - asked_s)

        self.insist(ask)

    def _good(self, took_s: float) -> None:
        self.loss.count(False)
        self._patience.answered(took_s)
        self._give_up_s = monotonic() + self._longest_s

    def insist(self, ask: Callable[[], None]) -> None:
        """Counts each attempt; the next begins where a good answer came last."""
        self._give_up_s = monotonic() + self._longest_s
        while True:
            self.link.timeout_s = self._patience.wait_s
            asked_s = monotonic()
            try:
                return ask()
            except LinkError as error:
                self.loss.count(True)
                if isinstance(error, (ExceptionAnswer, Disconnected)) or monotonic() >= self._give_up_s:
                    raise
                self._count(error)
                self.stop.wait(asked_s + self._patience.wait_s - monotonic())  # nor does a quick liar get more attempts
                self._patience.lost()
                self.link.connect()
                self.tally.connects += 1

    def run(self) -> None:
        while not self.stop.is_set():
            attempt_s = monotonic()
            self.link.timeout_s = self._longest_s
            try:
                self.link.connect()
                self.tally.connects += 1
                self._poll_on(self.identify())
            except WrongIdentity as error:
                self.unidentified()
                self._failed(error)
            except LinkError as error:
                self._failed(error)
            self.link.close()
            self.stop.wait(attempt_s + RECONNECT_S - monotonic())

    @abstractmethod
    def identify(self) -> str:
        """Who answers, verified. Raises LinkError."""

    @abstractmethod
    def unidentified(self) -> None:
        """Publishes that another device answers, and none of its values."""

    @abstractmethod
    def poll(self) -> bool:
        """One complete poll, published. False when the device's heartbeat stands still. Raises LinkError."""

    def idle(self, until_s: float) -> None:
        """Waits for the next poll."""
        self.stop.wait(until_s - monotonic())

    def finish(self) -> None:
        """The last words to a connected device at an orderly stop. Raises LinkError."""

    def _poll_on(self, name: str) -> None:
        due_s = monotonic()
        while not self.stop.is_set():
            try:
                self.idle(due_s)
                self._poll_once(name)
            except ExceptionAnswer as error:
                self._failed(error)
            due_s += self._period_s * max(1, -(-(monotonic() - due_s) // self._period_s))
        self.finish()

    def _poll_once(self, name: str) -> None:
        started_ns = monotonic_ns()
        if not self.poll():
            self._failed(Garbage(f"{self.link.peer} heartbeat stands still for more than {FROZEN_S:g} s"))
            return
        self.tally.polls += 1
        self.tally.poll_us = (monotonic_ns() - started_ns) // 1000
        if not self.tally.up:
            self.tally.up = True
            self._reports.change("up", f"{self.link.peer} connected: {name}")

    def _count(self, error: LinkError) -> None:
        counter = _COUNTED.get(type(error))
        if counter:
            setattr(self.tally, counter, getattr(self.tally, counter) + 1)

    def _failed(self, error: LinkError) -> None:
        self._count(error)
        report = self._reports.change if self.tally.up else self._reports.trouble
        self.tally.up = False
        report(type(error).__name__, str(error))


def _link(name: str, host: str, port: int, profile: Profile, timeout_s: float) -> Link:
    line = profile.line
    framing = RtuFraming() if line.framing == "rtu" else TcpFraming()
    return Link(host, port, timeout_s, min(timeout_s, RECONNECT_S), name, framing, line.baud, line.parity)


class BmsPoller(Poller):
    """Polls every string's summary back to back, so that their voltages belong together, then all cells."""

    def __init__(self, settings: AggregatorSettings, files: SectionFile, tell: Tell, stop: Event) -> None:
        s = settings
        timeout_s = s.request_timeout_ms / 1000.0
        link = _link("BMS", s.bms_host, s.bms_port, s.bms_profile, timeout_s)
        super().__init__(link, s.bms_profile, s.bms_poll_ms, tell, stop, s.request_gap_ms)
        self._bms, self._cells, self._strings = files["bms"], files["cells"], files["strings"]
        self._cells_per_string = s.cells_per_string
        self._units = [self.profile.unit(string) for string in range(s.strings)]
        beat, self._ems_beat = self.profile.heartbeats.read, self.profile.heartbeats.write
        self._beat = beat
        self._summaries = [_readable(self.profile, unit) for unit in self._units]
        self._arrays = [self._arrays_of(unit) for unit in self._units]
        self._reads = [read for summary in self._summaries for read in summary]
        self._reads += [read for arrays in self._arrays for reads in arrays for read in reads]
        self._beats = [Heartbeat() for _ in self._units]
        self._beat_due_s = 0.0
        self._polls = 0

    def identify(self) -> str:
        names = [verify(self.link, self.profile, unit) for unit in self._units]
        return names[0]

    def unidentified(self) -> None:
        self._strings.publish(b"")
        self._bms.publish(image.BMS.pack(*NOT_OURS_BMS))

    def poll(self) -> bool:
        started_ns = monotonic_ns()
        answers = self.read_all(self._reads)
        strings = [
            StringPoll(
                *_decoded(self.profile, summary, answers, "string_v"),
                *(b"".join([answers[read].data for read in reads]) for reads in arrays),
            )
            for summary, arrays in zip(self._summaries, self._arrays, strict=True)
        ]
        frozen = self._frozen(strings)
        if not frozen:
            self._polls += 1
            bms = reduce(strings, self.profile, self._cells_per_string, self._polls, self.loss.pct)
            self._cells.publish(wire_cells(strings, self.profile), started_ns)
            self._strings.publish(string_values(strings), started_ns)
            self._bms.publish(image.BMS.pack(*bms), started_ns)
        self._write_heartbeat()
        return not frozen

    def _frozen(self, strings: list[StringPoll]) -> bool:
        name = self._beat
        if name is None:
            return False
        now_s = monotonic()
        stands = [b.frozen(s.values[name], now_s) for b, s in zip(self._beats, strings, strict=True)]
        return any(stands)

    def _arrays_of(self, unit: int) -> list[list[Read]]:
        cells, arrays = self._cells_per_string, self.profile.arrays
        return [[Read(unit, *block) for block in arrays[n].blocks(cells)] for n in ("cell_v", "cell_c", "balancing")]

    def _write_heartbeat(self) -> None:
        if self._ems_beat is None or monotonic() < self._beat_due_s:
            return
        self._beat_due_s = monotonic() + 1.0
        address, beat = self.profile.points[self._ems_beat].address, self.profile.encode(self._ems_beat, _count_up())
        for unit in self._units:
            self.tell(partial(self.link.write, unit, address, beat))


def _readable(profile: Profile, unit: int) -> dict[Read, Block]:
    """The reads that fetch every point that is not written."""
    blocks = profile.blocks(name for name, point in profile.points.items() if point.access == "R")
    return {Read(unit, block.address, block.count): block for block in blocks}


def _decoded(
    profile: Profile, blocks: Mapping[Read, Block], answers: Mapping[Read, Answer], stamped: str
) -> tuple[float, dict[str, float]]:
    """When the point `stamped` came (CLOCK_MONOTONIC, ms), and all values."""
    values: dict[str, float] = {}
    stamp_ms = 0.0
    for read, block in blocks.items():
        values |= profile.decode(block, answers[read].data)
        if stamped in block.names:
            stamp_ms = answers[read].at_s * 1e3
    return stamp_ms, values


def _count_up() -> int:
    """A heartbeat: one more each second, 16 bits."""
    return int(monotonic()) & 0xFFFF


class PcsPoller(Poller):
    """Writes the set-point block, then reads the PCS; a set-point that changes in between is written within 5 ms."""

    def __init__(
        self, settings: AggregatorSettings, files: SectionFile, tell: Tell, stop: Event, directory: Path | None = None
    ) -> None:
        s = settings
        timeout_s = s.request_timeout_ms / 1000.0
        link = _link("PCS", s.pcs_host, s.pcs_port, s.pcs_profile, timeout_s)
        super().__init__(link, s.pcs_profile, s.pcs_poll_ms, tell, stop)
        self._pcs = files["pcs"]
        self._control = image.View(image.CONTROL, "controller", "control", directory)
        self._unit = self.profile.first_unit
        ems_beat = self.profile.heartbeats.write
        self._reads = _readable(self.profile, self._unit)
        self._writes = self.profile.blocks((*_WRITTEN, ems_beat) if ems_beat else _WRITTEN, max_gap=0)
        self._beat, self._ems_beat = self.profile.heartbeats.read, ems_beat
        self._heart = Heartbeat()
        self._written: tuple[float, ...] = ()
        self._polls = 0

    def identify(self) -> str:
        return verify(self.link, self.profile, self._unit)

    def unidentified(self) -> None:
        self._pcs.publish(image.PCS.pack(*NOT_OURS_PCS))

    def idle(self, until_s: float) -> None:
        while not self.stop.is_set():
            if self._wanted() != self._written:
                self.tell(self._write)
            left_s = until_s - monotonic()
            if left_s <= 0:
                return
            self.stop.wait(min(left_s, CONTROL_TICK_S))

    def poll(self) -> bool:
        started_ns = monotonic_ns()
        self.tell(self._write)
        stamp_ms, values = _decoded(self.profile, self._reads, self.read_all(list(self._reads)), "dc_v")
        if self._beat is not None and self._heart.frozen(values[self._beat], monotonic()):
            return False
        self._polls += 1
        self._pcs.publish(image.PCS.pack(*pcs_values(values, stamp_ms, self._polls, self.loss.pct)), started_ns)
        return True

    def finish(self) -> None:
        self._write(_STOP)

    def _wanted(self) -> tuple[float, ...]:
        """Values of `_WRITTEN`: the controller's while they are fresh, else stop and 0 A."""
        control = self._control.refresh()
        if control is None or self._control.age_ms() > CONTROL_TIMEOUT_MS:
            return _STOP
        return float(control.pcs_run), control.setpoint_a, control.charge_limit_a, control.discharge_limit_a

    def _write(self, wanted: tuple[float, ...] | None = None) -> None:
        """What is wanted at this very moment: an attempt that is made again must not bring an old set-point."""
        wanted = wanted or self._wanted()
        values = dict(zip(_WRITTEN, wanted, strict=True))
        if self._ems_beat is not None:
            values[self._ems_beat] = _count_up()
        for block in self._writes:
            data = b"".join([self.profile.encode(name, values[name]) for name in block.names])
            self.link.write(self._unit, block.address, data)
        self._written = wanted


class Aggregator:
    """Both pollers and the sections they publish. `step` publishes the link counters; call it ten times a second."""

    def __init__(self, settings: AggregatorSettings, directory: Path | None = None) -> None:
        self._files = image.writer("aggregator", directory)
        self._events, self._lock = image.EventLog(self._files["events"]), Lock()
        self.stop = Event()
        self.bms = BmsPoller(settings, self._files, self._tell, self.stop)
        self.pcs = PcsPoller(settings, self._files, self._tell, self.stop, directory)

    def start(self) -> None:
        for poller in (self.bms, self.pcs):
            poller.start()

    def hurry(self) -> bool:
        """SCHED_FIFO for both pollers: data that waits for a busy machine stops the rack. False without the right."""
        return all(use_fifo(PRIORITY, poller.native_id or 0) for poller in (self.bms, self.pcs))

    def step(self) -> bool:
        """False when a poller has died."""
        self._files["links"].publish(image.LINKS.pack(*self.bms.tally.row(), *self.pcs.tally.row()))
        return self.bms.is_alive() and self.pcs.is_alive()

    def close(self) -> None:
        """Ends both threads in order; the PCS is told to stop."""
        self.stop.set()
        for poller in (self.bms, self.pcs):
            if poller.is_alive():
                poller.join(2.0)
        self._files.close()

    def _tell(self, text: str) -> None:
        with self._lock:
            self._events.add(0, text=text)


def settings_of_site(directory: Path) -> AggregatorSettings:
    """From site.conf. Raises ConfigError or ProfileError."""
    site = load_site(directory)
    cells = site.modules_per_string * site.cells_per_module
    bms_profile = _profile(site.bms_profile, "bms", site.bms_host)
    for array in bms_profile.arrays.values():
        array.registers(cells)
    return AggregatorSettings(
        bms_host=site.bms_host,
        bms_port=site.bms_port,
        bms_profile=bms_profile,
        strings=site.strings,
        cells_per_string=cells,
        pcs_host=site.pcs_host,
        pcs_port=site.pcs_port,
        pcs_profile=_profile(site.pcs_profile, "pcs", site.pcs_host),
        bms_poll_ms=site.bms_poll_ms,
        pcs_poll_ms=site.pcs_poll_ms,
        request_gap_ms=site.request_gap_ms,
        request_timeout_ms=site.request_timeout_ms,
    )


def _profile(name: str, kind: str, host: str) -> Profile:
    profile = load(name)
    if host.startswith("/") and profile.line.framing != "rtu":
        raise ProfileError(f'{kind}_host = {host} in site.conf: a serial line needs a profile with framing = "rtu"')
    if profile.kind != kind:
        raise ProfileError(f"{kind}_profile = {name} in site.conf: that is a {profile.kind} profile, name a {kind} one")
    return profile


def main() -> int:
    """Runs until SIGTERM or SIGINT. Exit code 0; 1 when a poller died; 2 when it cannot start."""
    try:
        settings = settings_of_site(config_directory())
        aggregator = Aggregator(settings)
    except (ConfigError, ProfileError, SectionError) as error:
        print(f"aggregator: {error}", file=sys.stderr)
        return 2
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    s = settings
    print(
        f"aggregator[{os.getpid()}]: BMS {s.bms_host}:{s.bms_port} {s.strings} x {s.cells_per_string} cells every "
        f"{s.bms_poll_ms} ms, PCS {s.pcs_host}:{s.pcs_port} every {s.pcs_poll_ms} ms",
        file=sys.stderr,
    )
    aggregator.start()
    if not aggregator.hurry():
        print("aggregator: without the right to SCHED_FIFO: a busy machine makes data late", file=sys.stderr)
    alive, life = True, Notifier()
    while alive and not ended.wait(0.1):
        alive = aggregator.step()
        life.tick()
    aggregator.close()
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
