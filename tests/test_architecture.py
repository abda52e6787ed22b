"""The import rules that keep the decisions pure and the drivers free of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED_IN_STATEMACHINE = {
    "__future__", "collections", "dataclasses", "enum", "math", "statemachine", "transitions", "typing",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("statemachine"), ids=lambda p: p.name)
def test_the_state_machine_imports_nothing_but_itself_and_transitions(path: Path) -> None:
    assert imports(path) <= ALLOWED_IN_STATEMACHINE
    used = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    assert not used & {"open", "print", "input", "eval", "exec"}


@pytest.mark.parametrize("path", files("drivers"), ids=lambda p: str(p.relative_to(ROOT)))
def test_drivers_take_no_decisions(path: Path) -> None:
    assert not imports(path) & {"firmware", "statemachine"}


@pytest.mark.parametrize("name", ["controller", "guard", "image", "realtime", "settings_codec"])
def test_the_scan_processes_load_neither_numpy_nor_msgspec_nor_pymodbus(name: str) -> None:
    assert not imports(ROOT / "firmware" / f"{name}.py") & {"numpy", "msgspec", "pymodbus", "asyncio", "threading"}


@pytest.mark.parametrize("path", files("firmware") + files("drivers"), ids=lambda p: str(p.relative_to(ROOT)))
def test_numpy_is_the_bench_s_only(path: Path) -> None:
    assert "numpy" not in imports(path) or path.is_relative_to(ROOT / "drivers" / "bench")
