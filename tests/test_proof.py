"""The fast part of `make prove`: every step of the machine, latch cells, a sample of mutants, a short core search."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from proof import __main__ as prove
from proof import cells, machine, mutants, plant, promises, search

from statemachine import contactors, core, latch, wishes
from statemachine.core import Memory
from statemachine.faults import FAULTS, Fault
from statemachine.settings import Settings
from statemachine.signals import Why
from statemachine.states import State
from statemachine.table import TABLE, Bits, Row


@pytest.fixture(scope="module")
def shipped() -> machine.Machine:
    return machine.machine()


def _replaced(old: Row, new: Row | None) -> tuple[Row, ...]:
    return tuple(new if row is old else row for row in TABLE if new is not None or row is not old)  # type: ignore[misc]


def _row(dest: State, *when: str) -> Row:
    return next(row for row in TABLE if row.dest is dest and row.when == when)


def test_the_machine_keeps_every_promise_on_every_step(shipped: machine.Machine) -> None:
    assert list(machine.broken(shipped)) == []


def test_the_engine_does_what_the_table_says_and_every_row_fires(shipped: machine.Machine) -> None:
    assert machine.misread(TABLE, shipped) == []


def test_the_behaviour_is_the_accepted_one(shipped: machine.Machine) -> None:
    now = prove.quick_listing(shipped)
    assert prove.difference(prove.accepted(), now) == "", "review, then python -m tests.proof --accept"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_each_cell_is_what_the_manual_says_over_every_sequence(fault: Fault) -> None:
    assert cells.explore(fault, 10.0)[1] == []


def test_the_search_knows_every_field_of_the_memory() -> None:
    assert set(Memory._fields) == plant.KNOWN, "plant.canonical must say which classes the new field has"


def test_a_sample_of_the_mutants_dies_or_is_listed(shipped: machine.Machine) -> None:
    verdicts = [mutants.judge(m, shipped) for number, m in enumerate(mutants.of_table()) if number % 25 == 0]
    assert len(verdicts) > 50
    assert {prove.key(v) for v in verdicts if not v.by} <= set(prove.equivalent())


def test_every_equivalent_mutant_has_a_reason() -> None:
    assert all(len(reason) > 10 for reason in prove.equivalent().values())


def test_a_precharge_that_times_out_into_charge_breaks_a_promise() -> None:
    """The mutant that invariants on running states alone do not see."""
    row = _row(State.FAULT, "timeout")
    precharge = next(r for r in TABLE if r.sources == {State.PRECHARGE} and r.when == row.when)
    mutant = machine.machine(_replaced(precharge, precharge._replace(dest=State.CHARGE_RAMP)))
    assert any("without a verified precharge" in what for what in machine.broken(mutant))


def test_the_core_keeps_its_promises_near_the_start() -> None:
    found = search.search(plant.singles(), [], 250)
    assert found.broken == ""
    assert {State.READY, State.EMERGENCY_STOP, State.FAULT} <= {node.memory.state for node in found.came}


def test_a_broken_table_gives_the_shortest_way_there_as_a_trace() -> None:
    trip = _row(State.EMERGENCY_STOP, "trip")
    table = _replaced(trip, trip._replace(sources=trip.sources - {State.READY}))
    found = search.search(plant.singles(), [], 400, table, listed=False)
    assert found.broken.startswith("1: kill-switch")
    assert found.at is not None
    trace = search.trace(found, found.at, table).splitlines()
    assert "READY | chain kill-switch open" in trace[-1]
    assert "coils NP-" in trace[-1]
    assert len(trace) == len(search.way(found, found.at)) < 12


def _commissioned_or_not(m: Memory, s: Settings, *of: Any) -> Why:
    return PERMIT(m, replace(s, commissioned=True), *of)


PERMIT = core._permit
BREAKS: dict[str, tuple[ModuleType, str, object]] = {
    "2: an old command": (wishes, "_void", lambda w, command, state: w),
    "2: a fault was left": (latch, "TRIP_MASK", 0),
    "6: closing begins": (core, "_permit", lambda *_: Why.NONE),
    "6: the positive contactor": (contactors, "_precharged", lambda s, at_ms, *_: at_ms >= 300.0),
    "14: closing begins": (core, "_permit", _commissioned_or_not),
    "10: a configuration": (core, "narrowed", lambda now, new: new),
}


def test_a_commissioning_that_becomes_void_moves_nothing_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search.search(plant.singles(), [], 250, listed=False)
    count, what, _ = search.unmoved(found)
    assert (count > 20, what) == (True, "")
    walker = search.Walker()
    for node in (node for node in found.came if any(node.memory.coils)):
        memory = node.memory._replace(settings=plant.UNCOMMISSIONED, offered=plant.UNCOMMISSIONED)
        for world in (world for world in plant.singles() if world.settings == "same"):
            one, two = (walker.step(at, world)[0].out for at in (node, node._replace(memory=memory)))
            assert one[:6] == two[:6], f"{plant.said(world)} tells a void commissioning that is in force while closed"
    bits = core._bits

    def opens(m: Memory, *of: Any) -> Bits:
        made = bits(m, *of)
        return made if m.settings is None or m.settings.commissioned else made._replace(run=False)

    monkeypatch.setattr(core, "_bits", opens)
    assert search.unmoved(found)[1].startswith("10: a void commissioning")


@pytest.mark.parametrize("promise", BREAKS)
def test_a_core_that_is_broken_on_purpose_is_found(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BREAKS[promise])
    assert search.search(plant.singles(), plant.pairs(), 150, listed=False).broken.startswith(promise)


def test_the_witness_needs_the_acknowledge_after_the_cause() -> None:
    walker, node = search.Walker(), plant.Node(Memory())
    for world in (plant.HEALTHY, plant.HEALTHY._replace(chain="tamper", ack=True, reset=True, dt_ms=plant.WHILE_MS)):
        step, node = walker.step(node, world)
        assert promises.broken(step) is None
    assert node.memory.state is State.EMERGENCY_STOP
    assert node.owes_ack
    assert node.owes_reset
