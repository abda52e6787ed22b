"""A link polled for ever: who answers is verified, what is lost is asked again, and few events tell what happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import nan
from threading import Event, Thread
from time import monotonic, monotonic_ns

from drivers.modbus.client import (
    Answer,
    Damaged,
    Disconnected,
    ExceptionAnswer,
    Garbage,
    Link,
    LinkError,
    Read,
    Timeout,
    WrongLength,
    WrongUnit,
)
from drivers.profile import Profile

RECONNECT_S = 0.5
"""Between two attempts to connect, always: a device that is back is read within a second."""
FROZEN_S = 2.0
"""A heartbeat that stands still for longer makes the device's data worthless."""
REMIND_S = 60.0
"""A device that stays down is told again once in this time."""
MAX_EVENTS_A_MINUTE = 20
LOSS_REQUESTS = 200
SHORTEST_WAIT_S = 0.02
"""An answer is waited for at least this long: the hiccup of a device or of this machine is no loss."""

Tell = Callable[[str], None]


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
