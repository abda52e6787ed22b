"""`python -m tests.conformance`: writes docs/conformance.md; with --check it only compares.

tests/test_conformance.py shows that what it says holds.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from .probe import CHECKS, ELSEWHERE, REFUSALS

TESTS = Path(__file__).resolve().parent.parent
DOCUMENT = TESTS.parent / "docs" / "conformance.md"
_HEAD = f"""\
# Conformance of the Modbus server

Written by `python -m tests.conformance` from `tests/conformance/probe.py`; do not edit. `make test` runs every check
over TCP against the real server and fails when one is not answered as it must: {len(CHECKS)} checks. Identifiers MOD,
EXC, MB, REV, CRV and TCP are those of SunSpec's Modbus conformance test procedures; the others are our own. Exception
codes are those of MODBUS Application Protocol V1.1b3.

No certification is claimed: ride-through, trip and reactive power functions belong to the PCS.

MOD-3, EXC-1, EXC-2, MB-2 and REV walk over the register map: a point that is new in it is judged without a new check.

| id | what must hold | shown by |
|---|---|---|
"""
_REFUSED = """
## What is refused, and how

Nothing of a refused request is applied. `AckWhy` and `RefAddr` say why and where.

| case | exception | shown by |
|---|---|---|
"""


def _shown_by(shown: str) -> str:
    """Of an id of the probe, or of `<file>::<name>`."""
    file, _, name = shown.partition("::")
    return f"`test_{file}.py::test_{name}`" if name else f"`test_conformance.py`, `{shown}`"


def document() -> str:
    """The whole text."""
    rows = [(check.id, check.title, _shown_by(check.id)) for check in CHECKS]
    rows += [(row.id, row.title, _shown_by(f"{row.file}::{row.name}")) for row in ELSEWHERE]
    refused = [(row.case, row.answer, ", ".join(map(_shown_by, row.shown))) for row in REFUSALS]
    return _HEAD + _table(rows) + _REFUSED + _table(refused)


def _table(rows: list[tuple[str, str, str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def missing(tests: Path = TESTS) -> list[str]:
    """What the document names as shown by and is not there: ids of the probe, tests of a file."""
    ids = {check.id for check in CHECKS}
    named = [*(f"{row.file}::{row.name}" for row in ELSEWHERE), *(shown for row in REFUSALS for shown in row.shown)]
    return [shown for shown in named if not (shown in ids or _has_test(tests, *shown.partition("::")[::2]))]


def _has_test(tests: Path, file: str, name: str) -> bool:
    path = tests / f"test_{file}.py"
    body = ast.parse(path.read_text()).body if path.exists() else []
    return any(isinstance(node, ast.FunctionDef) and node.name == f"test_{name}" for node in body)


def complaints() -> list[str]:
    """What is wrong with the document as it is committed."""
    wrong = [f"docs/conformance.md names {shown}, which is not there" for shown in missing()]
    if not DOCUMENT.exists() or DOCUMENT.read_text() != document():
        wrong.append("docs/conformance.md differs from its table; run `make docs` and commit it")
    return wrong


def main(argv: list[str]) -> int:
    if argv == ["--check"]:
        wrong = complaints()
        for line in wrong:
            print(line, file=sys.stderr)
        return 1 if wrong else 0
    DOCUMENT.write_text(document())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
