"""The Charge Management Function's machine: `transitions` on the table, hardened.

transitions accepts unknown destinations and misspelt guards without a word, and a guard that returns 2 trips neither
`conditions` nor `unless`. So the table is validated first, every guard must answer True or False, callbacks and auto
transitions do not exist, and the machine is sealed once built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transitions import Machine
from transitions.core import Condition, EventData, Transition

from .states import State
from .table import TABLE, Bits, Row, problems


class _StrictCondition(Condition):
    def check(self, event_data: EventData) -> bool:
        assert callable(self.func)
        seen: object = self.func()
        if seen is True or seen is False:
            return seen is self.target
        raise TypeError(f"guard {self.func.__name__} answered {seen!r}, not True or False")


class _StrictTransition(Transition):
    condition_cls = _StrictCondition


class _Model:
    bits: Bits
    state: str
    scan: Callable[[], bool]


class _Machine(Machine):
    transition_cls = _StrictTransition


def _sealed(*_: Any, **__: Any) -> None:
    raise RuntimeError("the machine is sealed: change statemachine/table.py instead")


class Cmf:
    """`next(state, bits)` is the state after one scan, whatever was asked before."""

    def __init__(self, table: tuple[Row, ...] = TABLE) -> None:
        """Raises ValueError naming every row that cannot be trusted."""
        wrong = problems(table)
        if wrong:
            raise ValueError("transition table: " + "; ".join(wrong))
        self._model = _Model()
        self._asked: tuple[State, Bits] | None = None  # last, and what it was answered: most scans ask it again
        self._answer = State.INIT
        self.machine = _Machine(
            self._model,
            states=[state.name for state in State],
            initial=State.INIT.name,
            auto_transitions=False,
            ignore_invalid_triggers=True,
            queued=False,
        )
        guards = {name: self._guard(index, name) for index, name in enumerate(Bits._fields)}
        for row in table:
            self.machine.add_transition(
                "scan",
                [state.name for state in sorted(row.sources)],
                row.dest.name,
                conditions=[guards[c] for c in row.when if not c.startswith("!")],
                unless=[guards[c[1:]] for c in row.when if c.startswith("!")],
            )
        for change in (
            "add_transition",
            "add_transitions",
            "add_states",
            "add_state",
            "remove_transition",
            "add_model",
        ):
            setattr(self.machine, change, _sealed)

    def _guard(self, index: int, name: str) -> Callable[[], bool]:
        model = self._model

        def guard() -> bool:
            return model.bits[index]

        guard.__name__ = name
        return guard

    def next(self, state: State, bits: Bits) -> State:
        """The state after this scan. Raises TypeError when a bit that decides is neither True nor False.

        But 1 passes for a True, and 0 for a False, of the question before.
        """
        if self._asked == (state, bits):
            return self._answer
        model = self._model
        model.bits = bits
        model.state = state.name
        model.scan()
        self._asked, self._answer = (state, bits), State[model.state]
        return self._answer
