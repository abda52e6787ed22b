"""The mutation framework itself: what it generates, that keys stand still, that codes are exchanged everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation import runner, swap
from mutation.__main__ import SURVIVORS, Row, _survivors, _written, document
from mutation.mutants import MODULE, Mutant, mutants

SOURCE = '''"""Doc 1."""
from __future__ import annotations

LIMIT = 3  # A


class Box:
    size: int = 2

    @property
    def large(self) -> bool:
        """Says 5."""
        return self.size > LIMIT


def check(a: int, b: int) -> int:
    if a < b:
        raise ValueError(f"{a} is below {b - 1}")
    note(a, b)
    return a - b
'''


def made(tmp_path: Path, text: str = SOURCE) -> dict[str, Mutant]:
    (tmp_path / "box.py").write_text(text)
    return {m.key.removeprefix("box.py "): m for m in mutants(tmp_path, "box.py")}


@pytest.mark.parametrize(
    "key",
    [
        f"{MODULE}: `LIMIT = 3` -> `LIMIT = 4`",
        f"{MODULE}: `LIMIT = 3` -> `LIMIT = 2`",
        f"{MODULE}: `size: int = 2` -> `size: int = 3`",
        "Box.large: `return self.size > LIMIT` -> `return self.size >= LIMIT`",
        "check: `if a < b:` -> `if a <= b:`",
        "check: `if a < b:` -> `if False:`",
        "check: `if a < b:` -> `if True:`",
        "check: `note(a, b)` -> `pass`",
        "check: `note(a, b)` -> `note(b, a)`",
        "check: `note(a, b)` -> `note(None, b)`",
        "check: `return a - b` -> `return a + b`",
    ],
)
def test_the_rules_make_this_mutant(tmp_path: Path, key: str) -> None:
    assert key in made(tmp_path)


def test_texts_for_people_and_annotations_are_left_alone(tmp_path: Path) -> None:
    assert not [key for key in made(tmp_path) if "raise" in key or "Doc" in key or "Says" in key or "5" in key]


def test_every_mutant_compiles_and_differs_from_the_source(tmp_path: Path) -> None:
    old = compile(SOURCE, "box.py", "exec")
    for key, mutant in made(tmp_path).items():
        assert swap.changed(old, compile(mutant.text, "box.py", "exec"))[0], key


def test_keys_do_not_move_with_lines_and_comments(tmp_path: Path) -> None:
    moved = SOURCE.replace("LIMIT = 3  # A", "\n\n\nLIMIT = 3  # another remark")
    assert made(tmp_path, moved).keys() == made(tmp_path).keys()


def test_the_same_change_twice_in_a_function_has_two_keys(tmp_path: Path) -> None:
    keys = made(tmp_path, "def f(a):\n    a = a + 1\n    a = a + 1\n    return a\n")
    assert "f: `a = a + 1` -> `a = a - 1`" in keys
    assert "f: `a = a + 1` -> `a = a - 1` (2)" in keys


@pytest.mark.parametrize("body", ["return {}", "return [{} for _ in 'x'][0]", "return (lambda: {})()"])
def test_an_exchanged_code_is_seen_by_every_holder_of_the_function(body: str) -> None:
    old, new = (compile(f"def f():\n    {body.format(n)}\n", "exchanged.py", "exec") for n in (1, 2))
    place: dict[str, object] = {}
    exec(old, place)
    held = place["f"]
    live = swap.functions({"exchanged.py"})["exchanged.py"]
    assert swap.changed(old, new) == (True, True)
    swap.exchange(live, old, new)
    assert held() == 2  # type: ignore[operator]


def test_a_constant_and_a_default_need_a_new_import() -> None:
    for one, other in (("A = 1", "A = 2"), ("def f(a=1): return a", "def f(a=2): return a")):
        assert swap.changed(compile(one, "x", "exec"), compile(other, "x", "exec")) == (True, False)


def test_the_innermost_statement_covers_a_line() -> None:
    assert swap.statement("if a:\n    b = (\n        1,\n        2,\n    )\n", 4) == 2


def test_every_listed_survivor_has_a_reason() -> None:
    assert SURVIVORS.exists()
    assert all(len(reason) > 10 for reason in _survivors(Path()).values())


def test_a_run_of_some_files_finds_the_rows_of_the_others_in_the_document(tmp_path: Path) -> None:
    table = [Row("drivers/section.py", 1234, 1200, 30, 4), Row("statemachine/core.py", 7, 7, 0, 0)]
    file = tmp_path / "mutation.md"
    file.write_text(document(table, {"a b: `x` -> `y`": "no.py"}, 10, 3.0))
    assert _written(file) == table
    assert _written(tmp_path / "none.md") == []


def test_a_constant_is_also_tried_with_tests_that_run_no_function_of_its_file(tmp_path: Path) -> None:
    constant = next(m for m in made(tmp_path).values() if m.where == MODULE)
    near = runner.Test(1.0, frozenset({("box.py", 13)}))
    order = runner.Order({"t_far.py::a": runner.Test(0.1, frozenset()), "t_near.py::b": near}, {}, tmp_path)
    assert order.of(constant) == ["t_near.py::b", "t_far.py::a"]
