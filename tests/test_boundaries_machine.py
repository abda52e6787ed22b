"""The sealed machine: nothing that `transitions` offers can change it, and what it does not know stays where it is."""

from __future__ import annotations

import pytest

from statemachine.cmf import Cmf
from statemachine.states import State
from statemachine.table import Bits, Row

QUIET = Bits(*(False,) * len(Bits._fields))


@pytest.mark.parametrize(
    "change", ["add_transition", "add_transitions", "add_states", "add_state", "remove_transition", "add_model"]
)
def test_the_machine_cannot_be_changed_once_built(change: str) -> None:
    with pytest.raises(RuntimeError, match=r"sealed: change statemachine/table\.py"):
        getattr(Cmf().machine, change)()


def test_there_are_no_triggers_but_the_scan() -> None:
    assert set(Cmf().machine.events) == {"scan"}


def test_a_state_without_a_row_stays_and_nothing_is_raised() -> None:
    cmf = Cmf()
    cmf._model.state = State.LOCKOUT.name
    assert cmf.next(State.LOCKOUT, QUIET) is State.LOCKOUT
    assert cmf.machine.ignore_invalid_triggers is True


def test_a_trigger_is_not_queued() -> None:
    assert not Cmf().machine.has_queue


def test_the_machine_starts_in_init() -> None:
    assert Cmf().machine.initial == State.INIT.name


@pytest.mark.parametrize("name", Bits._fields)
def test_a_guard_reads_its_own_bit_and_a_bang_negates_it(name: str) -> None:
    cmf = Cmf()
    guard = cmf._guard(Bits._fields.index(name), name)
    cmf._model.bits = QUIET._replace(**{name: True})
    assert guard() is True
    cmf._model.bits = Bits(*(True,) * len(Bits._fields))._replace(**{name: False})
    assert guard() is False
    assert guard.__name__ == name


def test_every_condition_of_a_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statemachine.cmf.problems", lambda table: [])
    row = Row(frozenset({State.READY}), State.CHARGED, ("charge", "!finished", "target"), "")
    cmf = Cmf((row,))
    goes = QUIET._replace(charge=True, target=True)
    assert cmf.next(State.READY, goes) is State.CHARGED
    for change in ({"charge": False}, {"target": False}, {"finished": True}):
        assert cmf.next(State.READY, goes._replace(**change)) is State.READY
    assert cmf.next(State.CHARGED, goes) is State.CHARGED
