"""The sealed machine: nothing that `transitions` offers can change it, and what it does not know stays where it is.

And the table it is built on: which states its rows start from, and what is refused as a table.
"""

from __future__ import annotations

import pytest

from statemachine.cmf import Cmf
from statemachine.states import CHARGING, CLOSED, OPEN, State
from statemachine.table import TABLE, TIMEOUTS_S, Bits, Row, problems

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


# the table

GROUPS = {
    "OPEN": "INIT ISOLATED SERVICE FAULT EMERGENCY_STOP LOCKOUT",
    "CHARGING": "CHARGE_RAMP CHARGE_BULK CHARGE_STEP CHARGE_ABSORB CHARGE_BALANCE",
    "CLOSED": "READY CHARGE_RAMP CHARGE_BULK CHARGE_STEP CHARGE_ABSORB CHARGE_BALANCE CHARGED DISCHARGE GRID_SUPPORT "
    "STOPPING",
}
LIVE = "READY CHARGE_RAMP CHARGE_BULK CHARGE_STEP CHARGE_ABSORB CHARGE_BALANCE CHARGED DISCHARGE GRID_SUPPORT"
BUT_EMERGENCY = f"INIT ISOLATED SERVICE PRECHARGE {LIVE} STOPPING FAULT LOCKOUT"


def states(names: str) -> frozenset[State]:
    return frozenset(State[name] for name in names.split())


def test_every_state_is_open_or_closed_or_precharge() -> None:
    assert [states(GROUPS[name]) for name in ("OPEN", "CHARGING", "CLOSED")] == [OPEN, CHARGING, CLOSED]
    assert OPEN | CLOSED | {State.PRECHARGE} == set(State)


@pytest.mark.parametrize(
    ("dest", "when", "sources"),
    [
        (State.EMERGENCY_STOP, "trip", BUT_EMERGENCY),
        (State.LOCKOUT, "lockout", "INIT ISOLATED SERVICE PRECHARGE FAULT"),
        (State.STOPPING, "lockout", LIVE),
        (State.FAULT, "stop", "INIT ISOLATED SERVICE PRECHARGE"),
        (State.STOPPING, "stop", LIVE),
        (State.STOPPING, "!run", f"PRECHARGE {LIVE}"),
        (State.READY, "!charge", f"{GROUPS['CHARGING']} CHARGED"),
        (State.CHARGED, "target", "CHARGE_RAMP CHARGE_BULK CHARGE_STEP CHARGE_ABSORB"),
        (State.CHARGE_ABSORB, "ceiling", "CHARGE_RAMP CHARGE_BULK CHARGE_STEP"),
    ],
)
def test_a_row_for_many_states_starts_from_these(dest: State, when: str, sources: str) -> None:
    found = [row.sources for row in TABLE if row.dest is dest and row.when == (when,)]
    assert frozenset().union(*found) == states(sources)


def test_every_row_says_why() -> None:
    assert all(row.why for row in TABLE)
    assert TABLE[0].why == "category 0: open at once, latched"


def test_the_longest_stays() -> None:
    assert {state.name: seconds for state, seconds in TIMEOUTS_S.items()} == {
        "INIT": 30.0, "PRECHARGE": 200.0, "CHARGE_RAMP": 900.0, "CHARGE_ABSORB": 14_400.0, "STOPPING": 60.0,
    }  # fmt: skip


def row(source: State, dest: State, *when: str) -> Row:
    return Row(frozenset({source}), dest, when, "test")


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ((row(State.FAULT, State.SERVICE),), ["row -> SERVICE (test): no condition"]),
        ((row(State.FAULT, State.SERVICE, "Xrun"),), ["row -> SERVICE (test): unknown condition Xrun"]),
        ((row(State.FAULT, State.SERVICE, "run!"),), ["row -> SERVICE (test): unknown condition run!"]),
        (
            (row(State.FAULT, State.SERVICE, "run", "ran", "!walked"),),
            ["row -> SERVICE (test): unknown condition ran", "row -> SERVICE (test): unknown condition !walked"],
        ),
        ((row(State.FAULT, State.SERVICE, "!!run"),), ["row -> SERVICE (test): unknown condition !!run"]),
        ((row(State.FAULT, State.FAULT, "run"),), ["row -> FAULT (test): leads to itself"]),
        (
            (row(State.FAULT, State.SERVICE, "run"), row(State.FAULT, State.READY, "run")),
            ["row -> READY (test): FAULT already has a row with these conditions"],
        ),
        ((row(State.FAULT, State.SERVICE, "run"), row(State.LOCKOUT, State.SERVICE, "run")), []),
        ((row(State.FAULT, State.SERVICE, "run"), row(State.FAULT, State.SERVICE, "!run")), []),
    ],
)
def test_every_row_that_cannot_be_trusted_is_named(added: tuple[Row, ...], told: list[str]) -> None:
    assert problems((*TABLE, *added)) == told
    if told:
        with pytest.raises(ValueError, match="transition table") as refused:
            Cmf((*TABLE, *added))
        assert str(refused.value) == "transition table: " + "; ".join(told)


@pytest.mark.parametrize("state", [s for s in State if s is not State.INIT])
def test_a_state_without_a_way_to_it_is_named(state: State) -> None:
    table = tuple(r for r in TABLE if r.dest is not state)
    assert f"{state.name} cannot be reached" in problems(table)
    assert f"{State.INIT.name} cannot be reached" not in problems(table)


def test_states_that_only_lead_to_each_other_are_not_reached() -> None:
    island = (row(State.SERVICE, State.FAULT, "run"), row(State.FAULT, State.SERVICE, "run"))
    found = problems((row(State.INIT, State.ISOLATED, "run"), *island))
    assert "ISOLATED cannot be reached" not in found
    assert {"SERVICE cannot be reached", "FAULT cannot be reached"} <= set(found)


@pytest.mark.parametrize("state", TIMEOUTS_S)
def test_a_time_out_without_a_row_is_named(state: State) -> None:
    table = tuple(r for r in TABLE if not (state in r.sources and "timeout" in r.when))
    assert f"{state.name} has a time-out but no row for it" in problems(table)


def test_an_empty_table_reaches_only_its_first_state() -> None:
    unreached = [f"{state.name} cannot be reached" for state in State if state is not State.INIT]
    assert problems(()) == [*unreached, *(f"{s.name} has a time-out but no row for it" for s in TIMEOUTS_S)]
