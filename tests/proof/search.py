"""Breadth-first search over the real Core.step, with the shortest way to every class of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from statemachine.cmf import Cmf
from statemachine.core import Core, Memory
from statemachine.faults import LOCKOUT_MASK, names
from statemachine.states import OPEN, State
from statemachine.table import TABLE, Row

from . import plant, promises
from .plant import HEALTHY, PROBES, Node, World

Edge = tuple[Node, World]


@dataclass
class Found:
    """What a search has seen."""

    came: dict[Node, Edge | None] = field(default_factory=dict)
    home: dict[Node, set[Node]] = field(default_factory=dict)  # node -> predecessors with healthy inputs
    changes: dict[str, set[str]] = field(default_factory=dict)  # way -> inputs that lead there
    steps: int = 0
    expanded: int = 0
    seconds: float = 0.0
    broken: str = ""
    at: Edge | None = None

    @property
    def complete(self) -> bool:
        return self.expanded == len(self.came)


class Walker:
    """The real core, set to a node before every step."""

    def __init__(self, table: tuple[Row, ...] = TABLE) -> None:
        self.core = Core()
        self.core._cmf = Cmf(table)

    def step(self, node: Node, world: World) -> tuple[promises.Step, Node]:
        """One scan and the canonical node after it."""
        inputs, command = plant.inputs(node, world)
        self.core.memory = node.memory
        out = self.core.step(inputs, world.dt_ms)
        after = self.core.memory
        step = promises.Step(node, world, inputs, out, after, after.settings or plant.SETTINGS)
        command = plant.standing(after, command)
        return step, promises.witness(step, command)._replace(memory=plant.canonical(after, command))


def _way(step: promises.Step) -> str | None:
    """States and coils of a step that changes one of them."""
    if step.out.state is step.was.state and step.coils == step.was.coils:
        return None
    coils = "+".join(n for n, on in zip(("neg", "pos", "pre"), step.coils, strict=True) if on) or "open"
    return f"{step.was.state.name} -> {step.out.state.name} ({coils})"


def listing(found: Found) -> list[str]:
    """The golden lines: which single changes lead which way; where healthy inputs do, those that prevent it."""
    every = [plant.said(world) for world in plant.singles()]
    lines = []
    for way_, seen in sorted(found.changes.items()):
        if every[0] in seen:
            missing = [text for text in every if text not in seen]
            lines.append(f"{way_}: {every[0]}" + (f"; not with: {'; '.join(missing)}" if missing else ""))
        else:
            lines.append(f"{way_}: {'; '.join(text for text in every if text in seen)}")
    return lines


def worlds_of(node: Node, worlds: Iterable[World]) -> Iterable[World]:
    """Inputs that can differ here from another one of the list."""
    closed = node.memory.state not in OPEN
    for world in worlds:
        if world.dt_ms == plant.AGES_MS and node.memory.state not in plant._STAYS_MS:
            continue
        if world.current == "rests" and not node.memory.demand_a:
            continue
        if world.command == "none" and node.memory.wishes.seq >= 0:
            continue  # a section that was received once stays
        if world.link != "follows" and not closed:
            continue
        yield world


HEALING = (
    HEALTHY, HEALTHY._replace(command="OFF"), HEALTHY._replace(ack=True), HEALTHY._replace(reset=True),
    HEALTHY._replace(dt_ms=plant.WHILE_MS), HEALTHY._replace(reset=True, dt_ms=plant.WHILE_MS),
)  # fmt: skip


def search(
    worlds: list[World], pairs: list[World], limit: int, table: tuple[Row, ...] = TABLE,
    tell: Callable[[Found], None] = lambda _: None, listed: bool = True,
) -> Found:  # fmt: skip
    """Explores until nothing new is found, a promise breaks, or `limit` nodes were expanded."""
    walker, found, began_s = Walker(table), Found(), time.monotonic()
    start = Node(Memory())
    found.came[start] = None
    todo = [start]
    singles = set(worlds)
    every = [*worlds, *(w for w in HEALING if w not in singles), *(w for w in pairs if w not in singles)]
    for node in todo:
        if found.expanded >= limit:
            break
        found.expanded += 1
        for world in worlds_of(node, every):
            step, after = walker.step(node, world)
            found.steps += 1
            if what := promises.broken(step):
                found.broken, found.at = what, (node, world)
                found.seconds = time.monotonic() - began_s
                return found
            if listed and world in singles and (text := _way(step)):
                found.changes.setdefault(text, set()).add(plant.said(world))
            if any(getattr(world, name) != getattr(HEALTHY, name) for name in PROBES):
                continue
            if world in HEALING:
                found.home.setdefault(after, set()).add(node)
            if after not in found.came:
                found.came[after] = (node, world)
                todo.append(after)
        tell(found)
    found.seconds = time.monotonic() - began_s
    return found


def dead_ends(found: Found) -> list[Node]:
    """Nodes without a lockout from which healthy inputs and acknowledgement do not lead to ISOLATED."""
    todo = [n for n in found.came if n.memory.state is State.ISOLATED and not n.memory.latches.latched]
    seen = set(todo)
    for node in todo:
        for before in found.home.get(node, set()) - seen:
            seen.add(before)
            todo.append(before)
    locked = {n for n in found.came if n.memory.latches.latched & LOCKOUT_MASK}
    return [n for n in found.came if n not in seen and n not in locked]


def way(found: Found, edge: Edge) -> list[Edge]:
    """The shortest way from the start to an edge, the edge included."""
    steps = [edge]
    while (before := found.came[steps[-1][0]]) is not None:
        steps.append(before)
    return steps[::-1]


def trace(found: Found, edge: Edge, table: tuple[Row, ...] = TABLE) -> str:
    """The way to an edge as a person reads it: state, inputs that are not healthy, outputs."""
    walker, lines = Walker(table), []
    for number, (node, world) in enumerate(way(found, edge), 1):
        step, _ = walker.step(node, world)
        o = step.out
        coils = "".join("NPR"[i] if on else "-" for i, on in enumerate(step.coils))
        faults = " ".join(names(o.faults_active | o.faults_latched))
        lines.append(
            f"{number:3} {node.memory.state.name:>14} | {plant.said(world):<50} | -> {o.state.name} coils {coils}"
            f" {o.setpoint_a:+.0f} A {faults}".rstrip()
        )
    return "\n".join(lines)


def repeated(found: Found) -> tuple[int, str, Edge | None]:
    """A command that is in force, sent again under a new number, changes nothing: (pairs compared, what, where)."""
    walker, count = Walker(), 0
    for node in found.came:
        w = node.memory.wishes
        if w.seq < 0 or w.voided_seq == w.seq or node.memory.ack_count < 0:
            continue
        for world in (HEALTHY, HEALTHY._replace(dt_ms=plant.WHILE_MS)):
            again = world._replace(command="same again")
            one, after_one = walker.step(node, world)
            two, after_two = walker.step(node, again)
            count += 1
            same = after_one._replace(void=0) == after_two._replace(void=0)
            if not same or one.out[:6] != two.out[:6]:
                return count, "7: a command sent again changes something", (node, again)
    return count, "", None
