"""Mutants of the tables: what would become of the proof if a row were wrong.

A mutant dies when the table is refused, when the real machine built from it breaks a promise, or when its golden
listing differs. What survives all three must stand in equivalent.txt with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rig import settings

from statemachine import latch
from statemachine.cmf import Cmf
from statemachine.faults import FAULTS, Fault, Severity
from statemachine.states import State
from statemachine.table import TABLE, TIMEOUTS_S, Bits, Row, problems

from . import cells, machine
from .machine import Behaviour, Machine

Table = tuple[Row, ...]


class Mutant(NamedTuple):
    kind: str
    name: str
    table: Table
    touched: frozenset[State]  # only these can behave otherwise


class Verdict(NamedTuple):
    kind: str
    name: str
    by: str  # "refused", "promise", "golden" or "" for a survivor


def _said(row: Row, sources: frozenset[State] | None = None) -> str:
    names = "|".join(s.name for s in sorted(sources or row.sources))
    return f"{names} -> {row.dest.name} when {' '.join(row.when)}"


def _with(table: Table, index: int, *rows: Row) -> Table:
    return (*table[:index], *rows, *table[index + 1 :])


def _sources(table: Table, index: int) -> Iterator[Mutant]:
    row = table[index]
    for state in sorted(row.sources):
        rest = row.sources - {state}
        if rest:
            yield Mutant(
                "source dropped", f"{_said(row)} without {state.name}",
                _with(table, index, row._replace(sources=rest)), frozenset({state}),
            )  # fmt: skip
    for state in sorted(set(State) - row.sources - {row.dest}):
        yield Mutant(
            "source added", f"{_said(row)} also from {state.name}",
            _with(table, index, row._replace(sources=row.sources | {state})), frozenset({state}),
        )  # fmt: skip


def _conditions(table: Table, index: int) -> Iterator[Mutant]:
    row = table[index]
    for at, word in enumerate(row.when):
        rest = (*row.when[:at], *row.when[at + 1 :])
        yield Mutant(
            "condition dropped", f"{_said(row)} without {word}",
            _with(table, index, row._replace(when=rest)), row.sources,
        )  # fmt: skip
        other = word[1:] if word.startswith("!") else f"!{word}"
        yield Mutant(
            "condition negated", f"{_said(row)} with {other}",
            _with(table, index, row._replace(when=(*row.when[:at], other, *row.when[at + 1 :]))), row.sources,
        )  # fmt: skip
    for name in Bits._fields:
        if name not in (word.lstrip("!") for word in row.when):
            yield Mutant(
                "condition added", f"{_said(row)} and {name}",
                _with(table, index, row._replace(when=(*row.when, name))), row.sources,
            )  # fmt: skip


def of_table(table: Table = TABLE) -> Iterator[Mutant]:
    """Every mutant of the transition table."""
    for index, row in enumerate(table):
        yield Mutant("row dropped", _said(row), _with(table, index), row.sources)
        for state in State:
            if state is not row.dest:
                moved = _with(table, index, row._replace(dest=state))
                yield Mutant("destination changed", f"{_said(row)}, now -> {state.name}", moved, row.sources)
        yield from _sources(table, index)
        yield from _conditions(table, index)
        if index + 1 < len(table) and row.sources & table[index + 1].sources:
            after = table[index + 1]
            yield Mutant(
                "rows swapped", f"{_said(row)} <-> {_said(after)}",
                _with(_with(table, index, after), index + 1, row), row.sources & after.sources,
            )  # fmt: skip


def _killer(base: Machine, cmf: Cmf, mutant: Mutant) -> str:
    """Steps of the touched states, up to the first broken promise; what differs at all is seen by the listing."""
    changed: Machine = {}
    differs = False
    for state in sorted(mutant.touched):
        known, dests = base[state]
        names = tuple(dict.fromkeys((*known, *machine.variables(mutant.table, state))))
        changed[state] = Behaviour(names, {})
        for vector in machine.vectors(names):
            dest = changed[state].dests[vector] = cmf.next(state, machine.bits(names, vector))
            if dest is not dests[vector[: len(known)]]:
                differs = True
                if machine.broken_step(state, names, vector, dest):
                    return "promise"
    if not differs:
        return ""
    return "promise" if next(machine.broken_way(base | changed), None) else "golden"


def judge(mutant: Mutant, base: Machine) -> Verdict:
    """How the mutant dies."""
    refused = bool(problems(mutant.table))
    return Verdict(mutant.kind, mutant.name, "refused" if refused else _killer(base, Cmf(mutant.table), mutant))


def _masks(catalogue: tuple[Fault, ...]) -> dict[str, object]:
    def mask(*severities: Severity) -> int:
        return sum(1 << fault.bit for fault in catalogue if fault.severity in severities)

    return {
        "CONFIRM_MS": {fault.bit: fault.confirm_ms for fault in catalogue},
        "LOCKOUT_MASK": mask(Severity.LOCKOUT),
        "TRIP_MASK": mask(Severity.TRIP),
        "STOP_MASK": mask(Severity.STOP),
        "SEVERE_MASK": mask(Severity.STOP, Severity.TRIP, Severity.LOCKOUT),
    }


@contextmanager
def _catalogue(catalogue: tuple[Fault, ...]) -> Iterator[None]:
    """The latch cells and the core with another catalogue."""
    from statemachine import core

    changes = [(m, n, v) for n, v in _masks(catalogue).items() for m in (latch, core) if hasattr(m, n)]
    kept = [(m, n, getattr(m, n)) for m, n, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def of_faults() -> Iterator[tuple[str, str, Fault]]:
    """(kind, name, mutant) of the severities and confirm times."""
    for fault in FAULTS:
        for severity in Severity:
            if severity is not fault.severity:
                changed = fault._replace(severity=severity)
                yield "severity changed", f"{fault.name}: {fault.severity.name} -> {severity.name}", changed
        for confirm_ms in sorted({fault.confirm_ms - 1, fault.confirm_ms + 1, fault.confirm_ms + 10} - {-1}):
            yield (
                "confirm time nudged", f"{fault.name}: {fault.confirm_ms} -> {confirm_ms} ms",
                fault._replace(confirm_ms=confirm_ms),
            )  # fmt: skip


def judge_fault(kind: str, name: str, mutant: Fault) -> Verdict:
    """By the golden line of the cell."""
    shipped = next(fault for fault in FAULTS if fault.bit == mutant.bit)
    golden = cells.fault_line(shipped)
    with _catalogue(tuple(mutant if fault.bit == mutant.bit else fault for fault in FAULTS)):
        return Verdict(kind, name, "" if cells.fault_line(mutant) == golden else "golden")


def of_times() -> Iterator[tuple[str, str, Callable[[dict[State, float]], object]]]:
    for state, limit_s in TIMEOUTS_S.items():
        yield "time-out dropped", state.name, lambda t, state=state: t.pop(state)  # type: ignore[misc]
        for other_s in (limit_s - 0.01, limit_s + 0.01, limit_s * 1000.0):
            yield (
                "time-out nudged", f"{state.name}: {limit_s:g} -> {other_s:g} s",
                lambda t, state=state, other_s=other_s: t.update({state: other_s}),  # type: ignore[misc]
            )  # fmt: skip


def judge_time(kind: str, name: str, change: Callable[[dict[State, float]], object]) -> Verdict:
    """By the golden lines of the stays, as a scan obeys them."""
    golden, kept = cells.stays(settings()), dict(TIMEOUTS_S)
    try:
        change(TIMEOUTS_S)
        after = cells.stays(settings())
    except KeyError:
        return Verdict(kind, name, "refused")
    finally:
        TIMEOUTS_S.clear()
        TIMEOUTS_S.update(kept)
    return Verdict(kind, name, "" if after == golden else "golden")


def all_verdicts(base: Machine) -> Iterator[Verdict]:
    for mutant in of_table():
        yield judge(mutant, base)
    for fault in of_faults():
        yield judge_fault(*fault)
    for time in of_times():
        yield judge_time(*time)


def reason(mutant: Mutant) -> str:
    """Why a survivor behaves alike, found by trying every scan of the touched states on the tables as text."""
    changed = [(old, new) for old, new in zip(TABLE, mutant.table, strict=False) if old is not new]
    old, new = changed[0]
    if mutant.kind == "rows swapped":
        return f"both lead to {old.dest.name}" if old.dest is new.dest else "no scan meets the conditions of both"
    displaced: set[str] = set()
    implied = True
    for state in sorted(mutant.touched):
        for vector in machine.vectors(names := machine.variables((*TABLE, new), state)):
            seen = machine.bits(names, vector)
            before, after = machine.first_row(TABLE, state, seen), machine.first_row(mutant.table, state, seen)
            implied = implied and (before is old) is (after is new)
            if before and before is not old and after is new:
                displaced.add(_said(before, frozenset({state})))
    if displaced:
        return f"leads where another row leads anyway: {'; '.join(sorted(displaced))}"
    if mutant.kind == "source added":
        return "never the first that fits: rows before it take every such scan"
    if implied:
        return f"every scan that gets as far as this row has {' '.join(set(old.when) ^ set(new.when))}"
    return "where it no longer fits, a later row leads to the same state"
