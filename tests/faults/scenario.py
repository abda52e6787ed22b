"""What a scenario is: a function under the id of its row, with what it needs around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .stand import Stand

REPEATS = 3


class Reaction(NamedTuple):
    """One repeat. `ms` counts from before the injection; `allowance_ms` is what the bench and late scans took of it."""

    ms: float
    allowance_ms: float = 0.0


class CannotHere(Exception):
    """This machine does not let the scenario happen; the text says why."""


class Outcome(NamedTuple):
    """What a scenario found; it raises AssertionError when the promise is broken."""

    reactions: tuple[Reaction, ...] = ()
    note: str = ""
    left: str = ""  # why this machine did not let it happen


class Live(NamedTuple):
    """A scenario on the shared appliance, repeated. `start`: "charging", "ready" or "isolated"."""

    run: Callable[[Stand], Reaction | str | None]
    start: str
    repeats: int
    quick: bool


CORE: dict[str, Callable[[], Outcome]] = {}
LIVE: dict[str, Live] = {}
OWN: dict[str, Callable[[], Outcome]] = {}
"""Scenarios that start an appliance of their own."""


def core(row: str) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Registers a scenario of the pure core."""

    def keep(run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        assert row not in CORE, row
        CORE[row] = run
        return run

    return keep


def live(
    row: str, start: str = "charging", repeats: int = REPEATS, quick: bool = False
) -> Callable[[Callable[[Stand], Reaction | str | None]], Callable[[Stand], Reaction | str | None]]:
    """Registers a scenario of the shared appliance; `quick` ones run in CI too."""

    def keep(run: Callable[[Stand], Reaction | str | None]) -> Callable[[Stand], Reaction | str | None]:
        assert row not in LIVE, row
        LIVE[row] = Live(run, start, repeats, quick)
        return run

    return keep


def own(row: str) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Registers a scenario that starts what it needs."""

    def keep(run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        assert row not in OWN, row
        OWN[row] = run
        return run

    return keep


def everywhere() -> set[str]:
    """Rows that have a scenario."""
    return CORE.keys() | LIVE.keys() | OWN.keys()
