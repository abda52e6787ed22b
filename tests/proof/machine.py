"""The transition table through the real Cmf: every state with every vector of the bits that its rows can see.

The five command bits are one variable, `mode`: the core derives them from one mode, so no other combination exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

from statemachine.cmf import Cmf
from statemachine.states import CHARGING, CLOSED, OPEN, State
from statemachine.table import TABLE, TIMEOUTS_S, Bits, Row

MODES: dict[str, tuple[str, ...]] = {
    "OFF": (),
    "READY": ("run",),
    "CHARGE": ("run", "charge"),
    "DISCHARGE": ("run", "discharge"),
    "GRID": ("run", "grid"),
    "SERVICE": ("service",),
}
MODE_BITS = frozenset(bit for bits in MODES.values() for bit in bits)
NO = Bits(*[False] * len(Bits._fields))

Value = str | bool
Vector = tuple[Value, ...]
"""Values of the variables of one state: "mode" is a name of MODES, everything else a truth."""


class Behaviour(NamedTuple):
    """What one state does: its destination for every vector."""

    variables: tuple[str, ...]
    dests: dict[Vector, State]


Machine = dict[State, Behaviour]


def variables(table: Iterable[Row], state: State) -> tuple[str, ...]:
    """What the rows of a state can see, in the order of Bits; the command bits are one."""
    used = {c.lstrip("!") for row in table if state in row.sources for c in row.when}
    names = ["mode" if name in MODE_BITS else name for name in Bits._fields if name in used]
    return tuple(dict.fromkeys(names))


@cache
def vectors(names: tuple[str, ...]) -> tuple[Vector, ...]:
    values: list[tuple[Value, ...]] = [tuple(MODES) if name == "mode" else (False, True) for name in names]
    return tuple(product(*values))


@cache
def bits(names: tuple[str, ...], vector: Vector) -> Bits:
    """The vector as the machine gets it; what is not named is False."""
    truths: dict[str, bool] = {}
    for name, value in zip(names, vector, strict=True):
        if isinstance(value, str):
            truths |= dict.fromkeys(MODES[value], True)
        else:
            truths[name] = value
    return NO._replace(**truths)


def behaviour(cmf: Cmf, state: State, names: tuple[str, ...]) -> Behaviour:
    return Behaviour(names, {v: cmf.next(state, bits(names, v)) for v in vectors(names)})


def machine(table: tuple[Row, ...] = TABLE, states: Iterable[State] = State) -> Machine:
    """Every step of the real machine. Raises ValueError when the table is refused."""
    cmf = Cmf(table)
    return {state: behaviour(cmf, state, variables(table, state)) for state in states}


def first_row(table: Iterable[Row], state: State, seen: Bits) -> Row | None:
    """The row that must fire, read from the table without the engine."""
    for row in table:
        if state in row.sources and all(getattr(seen, c.lstrip("!")) is not c.startswith("!") for c in row.when):
            return row
    return None


def misread(table: tuple[Row, ...], of: Machine) -> list[str]:
    """Vectors on which the engine and the table disagree, and rows that never fire."""
    found, fired = [], set()
    for state, (names, dests) in of.items():
        for vector, dest in dests.items():
            row = first_row(table, state, bits(names, vector))
            fired.add((row, state))
            if dest is not (row.dest if row else state):
                found.append(f"{said(state, names, vector)}: the engine goes to {dest.name}, the table does not")
    dead = [(r, s) for r in table for s in sorted(r.sources) if (r, s) not in fired]
    return found + [f"dead row: {s.name} -> {r.dest.name} when {' '.join(r.when)}" for r, s in dead]


def said(state: State, names: tuple[str, ...], vector: Vector) -> str:
    """A vector as a person reads it."""
    words = [
        f"mode={v}" if isinstance(v, str) else name if v else f"!{name}" for name, v in zip(names, vector, strict=True)
    ]
    return f"{state.name} [{' '.join(words)}]"


def _step(state: State, to: State, b: Bits) -> str | None:
    """The promise that one step breaks. Numbers are those of DESIGN 4 (docs/proof.md)."""
    if b.trip:
        return None if to is State.EMERGENCY_STOP else "1: a trip must lead to EMERGENCY_STOP"
    if state is State.LOCKOUT is not to and (b.lockout or to not in (State.FAULT, State.ISOLATED)):
        return "2: LOCKOUT is left only when it is cleared, and to nothing that closes"
    if state is State.LOCKOUT and to is State.ISOLATED and not b.opened:
        return "2: LOCKOUT is left with a contactor closed"
    if to is State.EMERGENCY_STOP and state is not to:
        return "1: EMERGENCY_STOP without a trip"
    if b.lockout and to not in (State.LOCKOUT, State.STOPPING) and not (b.timeout and to is State.FAULT):
        return "2: a lockout leads to LOCKOUT, through STOPPING where current flows"
    if b.stop and not b.lockout and to not in (State.FAULT, State.STOPPING):
        return "3: a stop leads to FAULT, through STOPPING where current flows"
    return _way(state, to, b) or _wanted(state, to, b)


def _way(state: State, to: State, b: Bits) -> str | None:
    """Promises about the contactors and the time."""
    if b.timeout and (state in TIMEOUTS_S or state is State.CHARGE_BALANCE) and to is state:
        return "3: the time-out does not leave"
    if (
        state in OPEN
        and to not in OPEN
        and not (state is State.ISOLATED and to is State.PRECHARGE and b.run and b.permit and b.opened)
    ):
        return "2: closing, but not from ISOLATED through PRECHARGE with a command and a permit"
    if state in OPEN - {State.SERVICE, State.ISOLATED} and to is State.ISOLATED and not b.opened:
        return "6: ISOLATED without open feedback"
    if state is State.PRECHARGE and to in CLOSED - {State.STOPPING} and not (to is State.READY and b.closed):
        return "6: closed without a verified precharge"
    if state in CLOSED - {State.STOPPING} and to in OPEN | {State.PRECHARGE}:
        return "6: opening without STOPPING"
    if state is State.STOPPING and to is not state and not ((b.at_rest and (b.opened or b.lockout)) or b.timeout):
        return "6: STOPPING ends before rest"
    if state is State.STOPPING and to not in (State.STOPPING, State.ISOLATED, State.FAULT, State.LOCKOUT):
        return "6: STOPPING closes again"
    if to is State.SERVICE is not state and not (state is State.ISOLATED and b.opened and b.service):
        return "8: SERVICE only from ISOLATED, open, commanded"
    if state is State.SERVICE and to not in (state, State.ISOLATED, State.FAULT, State.LOCKOUT):
        return "8: SERVICE leads to something live"
    if state is State.INIT and to is State.ISOLATED and not b.data_ok:
        return "3: INIT ends without data"
    return None


def _wanted(state: State, to: State, b: Bits) -> str | None:
    """Promises about the command."""
    if state in CLOSED and not b.run and to is not State.STOPPING and state is not State.STOPPING:
        return "4: closed contactors without a command"
    if state in CHARGING | {State.CHARGED} and not b.charge and to in CHARGING | {State.CHARGED}:
        return "4: charge goes on without a command"
    for live, bit in ((State.DISCHARGE, b.discharge), (State.GRID_SUPPORT, b.grid)):
        if to is live and not (bit and (state is live or b.calibrated)):
            return f"4: {live.name} without a command or a calibrated dV"
    if to in CHARGING and state not in CHARGING:
        fresh = state is State.CHARGED or (state is State.READY and b.calibrated)
        if not (fresh and to is State.CHARGE_RAMP and b.charge and not b.finished):
            return "4: charge begins from READY or CHARGED, calibrated, with a new command"
    if to is State.CHARGE_BALANCE is not state and not (state is State.CHARGE_ABSORB and b.tail and b.spread):
        return "4: balancing begins at the tail of absorb with cells apart"
    if b.target and to in (CHARGING - {State.CHARGE_BALANCE}) | {State.DISCHARGE}:
        return "4: charge or discharge beyond the target"
    return None


def _edges(of: Machine) -> dict[State, set[State]]:
    return {state: set(b.dests.values()) - {state} for state, b in of.items()}


def reachable(edges: dict[State, set[State]], start: set[State], without: frozenset[State] = frozenset()) -> set[State]:
    seen, todo = set(start), list(start)
    while todo:
        for state in edges[todo.pop()] - seen - without:
            seen.add(state)
            todo.append(state)
    return seen


def _graph(of: Machine) -> list[str]:
    edges = _edges(of)
    lost = set(State) - reachable(edges, {State.INIT})
    found = [f"9: {state.name} is never reached" for state in sorted(lost)]
    severe = {State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT}
    for gate in (State.ISOLATED, State.PRECHARGE):
        past = reachable(edges, severe, frozenset({gate})) & CLOSED - {State.STOPPING}
        found += [f"2: from a fault to {state.name} without {gate.name}" for state in sorted(past)]
    return found


def _healthy(of: Machine, state: State) -> list[State]:
    """The way home: mode OFF, no fault left, feedback open, data good; time passes."""
    truths = NO._replace(opened=True, data_ok=True, permit=True, at_rest=True, timeout=True)._asdict()
    path = [state]
    while len(path) <= len(State):
        names, dests = of[path[-1]]
        to = dests[tuple("OFF" if name == "mode" else truths[name] for name in names)]
        if to is path[-1]:
            break
        path.append(to)
    return path


def broken_step(state: State, names: tuple[str, ...], vector: Vector, dest: State) -> str | None:
    """The promise that one step breaks, with the step."""
    what = _step(state, dest, bits(names, vector))
    return f"{what}: {said(state, names, vector)} -> {dest.name}" if what else None


def broken(of: Machine) -> Iterator[str]:
    """Every promise that the machine breaks, the step or the way beside it."""
    for state, (names, dests) in of.items():
        for vector, dest in dests.items():
            if what := broken_step(state, names, vector, dest):
                yield what
    yield from broken_way(of)


def broken_way(of: Machine) -> Iterator[str]:
    """Promises about more than one step."""
    yield from _graph(of)
    for state in State:
        path = _healthy(of, state)
        if path[-1] is not State.ISOLATED:
            yield f"9: no way home: {' -> '.join(s.name for s in path)}"


def shortest(of: Machine, goal: State) -> list[str]:
    """The shortest way from INIT to a state, one readable step a line."""
    came: dict[State, tuple[State, Vector]] = {}
    todo = [State.INIT]
    for state in todo:
        for vector, dest in of[state].dests.items():
            if dest not in came and dest is not State.INIT:
                came[dest] = (state, vector)
                todo.append(dest)
    steps: list[str] = []
    at = goal
    while at in came and at is not State.INIT:
        before, vector = came[at]
        steps.append(f"{said(before, of[before].variables, vector)} -> {at.name}")
        at = before
    return steps[::-1]


Case = tuple[tuple[str, ...], State]


def _tree(names: tuple[str, ...], prefix: Vector, dests: dict[Vector, State]) -> tuple[Case, ...]:
    """Reduced decision tree in the order of the variables: one canonical text for one behaviour."""
    at = len(prefix)
    if at == len(names):
        return (((), dests[prefix]),)
    name = names[at]
    branches: dict[tuple[Case, ...], list[Value]] = {}
    for value in tuple(MODES) if name == "mode" else (False, True):
        branches.setdefault(_tree(names, (*prefix, value), dests), []).append(value)
    if len(branches) == 1:
        return next(iter(branches))
    cases = []
    for below, values in branches.items():
        word = f"mode={'|'.join(map(str, values))}" if name == "mode" else name if values == [True] else f"!{name}"
        cases += [((word, *rest), dest) for rest, dest in below]
    return tuple(cases)


CONTACTORS = {
    **dict.fromkeys(OPEN, "open"),
    **dict.fromkeys(CLOSED, "closed"),
    State.PRECHARGE: "sequence",
    State.STOPPING: "closed until rest",
}


def listing(of: Machine) -> list[str]:
    """Every way out of every state, with all that it depends on."""
    return [
        f"{state.name} -> {dest.name} ({CONTACTORS[dest]}): {' '.join(case)}"
        for state in sorted(of)
        for case, dest in sorted(_tree(of[state].variables, (), of[state].dests))
        if dest is not state
    ]
