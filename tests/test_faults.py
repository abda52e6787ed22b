"""The table of hazards is whole: ids, code that exists, tests that exist, an injection for every fault."""

from __future__ import annotations

import ast
import importlib
from functools import cache, reduce
from pathlib import Path

import pytest
from faults import __main__ as suite
from faults import by_fault
from faults.judge import FAILED, LEFT, SHOWN, verdict
from faults.row import CORE, ELSEWHERE, OPEN, SCENE, Row
from faults.scenario import Outcome, Reaction, everywhere
from faults.table import CATALOGUE, HAZARDS, TABLE

from statemachine.faults import FAULTS

ROOT = Path(__file__).parents[1]
WANTED = {f"{group}{n}" for group, last in {"I": 21, "C": 27, "P": 15, "W": 10, "O": 11, "L": 8}.items()
          for n in range(1, last + 1)}  # fmt: skip


@cache
def functions(file: str) -> set[str]:
    return {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}


def test_every_hazard_is_in_the_table_once() -> None:
    ids = [row.id for row in HAZARDS]
    assert len(ids) == len(set(ids))
    assert set(ids) >= WANTED
    assert len(WANTED) == 92


def test_every_fault_of_the_catalogue_has_an_injection() -> None:
    assert {injection.fault for injection in by_fault.INJECTIONS} == {fault.name for fault in FAULTS}
    assert [row.id for row in CATALOGUE] == [fault.name for fault in FAULTS]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_a_row_names_code_that_exists_and_says_how_it_is_shown(row: Row) -> None:
    module, _, path = row.code.partition(":")
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module))), row.code
    assert row.hazard and row.requirement and row.shown
    for shown in row.shown:
        assert shown == SCENE or shown.startswith(("tests/", ELSEWHERE, OPEN)), shown
    for node in row.nodes:
        file, _, name = node.partition("::")
        assert name in functions(file), node


def test_a_scenario_belongs_to_a_row_and_a_row_to_its_scenario() -> None:
    assert suite.QUICK_CORE_SKIPS, "the suite registers every scenario when it is imported"
    assert everywhere() == {row.id for row in TABLE if SCENE in row.shown}


ROW = Row("X1", "hazard", "requirement", "module:function", CORE, (SCENE,), 100.0)


def test_a_reaction_slower_than_promised_fails() -> None:
    assert verdict(ROW, Outcome((Reaction(100.0), Reaction(99.0))), {}).word == SHOWN
    assert verdict(ROW, Outcome((Reaction(20.0), Reaction(101.0))), {}).word == FAILED


def test_what_the_write_to_the_bench_took_is_allowed_for() -> None:
    assert verdict(ROW, Outcome((Reaction(110.0, 15.0),)), {}).word == SHOWN


def test_a_scenario_that_raises_and_a_test_that_fails_fail_the_row() -> None:
    assert verdict(ROW, "the contactors stayed closed", {}).word == FAILED
    by_test = ROW._replace(shown=("tests/test_x.py::test_y",))
    assert verdict(by_test, None, {"tests/test_x.py::test_y": False}).word == FAILED
    assert verdict(by_test, None, {"tests/test_x.py::test_y": True}).word == SHOWN


def test_a_row_that_cannot_be_shown_here_is_never_called_shown() -> None:
    assert verdict(ROW._replace(shown=(ELSEWHERE + "no hardware",)), None, {}).word == LEFT


@pytest.mark.parametrize(
    "name", ["ERR_KILL_SWITCH", "ERR_COMM_LOST", "ERR_CONTACTOR_WELDED", "ERR_THERMAL_LOOP", "ERR_STORE"]
)
def test_an_injection_is_seen_within_its_promise_with_its_reaction(name: str) -> None:
    injection = next(i for i in by_fault.INJECTIONS if i.fault == name)
    row = next(row for row in CATALOGUE if row.id == name)
    assert verdict(row, by_fault.run(injection), {}).word == SHOWN
