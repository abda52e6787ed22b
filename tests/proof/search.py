"""Breadth-first search over the real Core.step, with the shortest way to every class of memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

from statemachine.cmf import Cmf
from statemachine.core import Core, Memory
from statemachine.faults import names
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
        node = plant.held(node, world)
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


def _differs(node: Node, world: World) -> bool:
    """Whether the input can differ here from another one of the list."""
    if world.dt_ms == plant.AGES_MS and node.memory.state not in plant._STAYS_MS:
        return False
    if world.current == "rests" and not node.memory.demand_a:
        return False
    if world.command == "none" and node.memory.wishes.seq >= 0:
        return False  # a section that was received once stays
    return world.link == "follows" or node.memory.state not in OPEN


HEALING = (
    HEALTHY, HEALTHY._replace(command="OFF"), HEALTHY._replace(ack=True), HEALTHY._replace(reset=True),
    HEALTHY._replace(dt_ms=plant.WHILE_MS), HEALTHY._replace(reset=True, dt_ms=plant.WHILE_MS),
    HEALTHY._replace(reset="held"),
)  # fmt: skip


class Expansion(NamedTuple):
    """What one node leads to."""

    steps: int
    broken: str
    at: World | None
    ways: set[tuple[str, str]]  # (way, input that leads there)
    after: dict[Node, World]  # new classes and the first input that leads there
    home: set[Node]  # those that healthy inputs lead to


class _Input(NamedTuple):
    """A world, and what is done with the step that it makes."""

    world: World
    said: str  # in the golden listing; nothing when the step is not listed
    home: bool  # healthy inputs lead there
    followed: bool


class Expander:
    """Tries every input on a node; made once a process."""

    def __init__(self, worlds: list[World], pairs: list[World], table: tuple[Row, ...], listed: bool) -> None:
        self._walker = Walker(table)
        singles, healing = set(worlds), set(HEALING)
        self._every = [
            _Input(
                world,
                plant.said(world) if listed and world in singles else "",
                world in healing,
                all(getattr(world, name) == getattr(HEALTHY, name) for name in PROBES),
            )
            for world in [*worlds, *(w for w in (*HEALING, *pairs) if w not in singles)]
        ]

    def __call__(self, node: Node) -> Expansion:
        made = Expansion(0, "", None, set(), {}, set())
        steps = 0
        for world, said, home, followed in self._every:
            if not _differs(node, world):
                continue
            step, after = self._walker.step(node, world)
            steps += 1
            if what := promises.broken(step):
                return made._replace(steps=steps, broken=what, at=world)
            if said and (text := _way(step)):
                made.ways.add((text, said))
            if not followed:
                continue
            if home:
                made.home.add(after)
            made.after.setdefault(after, world)
        return made._replace(steps=steps)


_expander: Expander


def _begin(*of: Any) -> None:
    global _expander
    gc.disable()  # nothing here is a cycle
    _expander = Expander(*of)


def _expand(node: Node) -> Expansion:
    return _expander(node)


def search(
    worlds: list[World], pairs: list[World], limit: int, table: tuple[Row, ...] = TABLE, listed: bool = True,
    processes: int = 1,
) -> Found:  # fmt: skip
    """Explores level by level until nothing new is found, a promise breaks, or `limit` nodes were expanded."""
    found, began_s = Found(), time.monotonic()
    start = Node(Memory())
    found.came[start] = None
    with ExitStack() as stack:
        if processes > 1:
            pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (worlds, pairs, table, listed))
            run: Callable[..., Iterable[Expansion]] = partial(stack.enter_context(pool).map, _expand, chunksize=4)
        else:
            run = partial(map, Expander(worlds, pairs, table, listed))
        level = [start]
        while level and not found.broken and found.expanded < limit:
            level = level[: limit - found.expanded]
            pairs_of = zip(level, run(level), strict=True)
            level = [new for node, made in pairs_of for new in _join(found, node, made)]
    found.seconds = time.monotonic() - began_s
    return found


def _here(node: Node) -> Node:
    """The same class as this process knows it: a nan that came from another one is not the nan of here."""
    return node._replace(memory=plant.canonical(node.memory, node.command))


def _join(found: Found, node: Node, made: Expansion) -> list[Node]:
    """Books one expansion; the classes that are new."""
    made = made._replace(after={_here(n): world for n, world in made.after.items()}, home={*map(_here, made.home)})
    found.expanded += 1
    found.steps += made.steps
    if found.broken:
        return []
    if made.broken and made.at:
        found.broken, found.at = made.broken, (node, made.at)
        return []
    for way_, said in made.ways:
        found.changes.setdefault(way_, set()).add(said)
    for after in made.home:
        found.home.setdefault(after, set()).add(node)
    new = [after for after in made.after if after not in found.came]
    found.came |= {after: (node, made.after[after]) for after in new}
    return new


def dead_ends(found: Found) -> list[Node]:
    """Nodes from which healthy inputs, RESET, service press and acknowledge do not lead to ISOLATED."""
    todo = [n for n in found.came if n.memory.state is State.ISOLATED and not n.memory.latches.latched]
    seen = set(todo)
    for node in todo:
        for before in found.home.get(node, set()) - seen:
            seen.add(before)
            todo.append(before)
    return [n for n in found.came if n not in seen]


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


def unmoved(found: Found) -> tuple[int, str, Edge | None]:
    """A commissioning that becomes void changes no output while a coil is on: (memories compared, what, where)."""
    walker, count, void = Walker(), 0, HEALTHY._replace(commissioning="void")
    for node in found.came:
        if not any(node.memory.coils):
            continue
        one, _ = walker.step(node, HEALTHY)
        two, _ = walker.step(node, void)
        count += 1
        if one.out[:6] != two.out[:6]:
            return count, "10: a void commissioning changes what is closed", (node, void)
    return count, "", None


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
