"""`python -m tests.conformance`: writes docs/conformance.md; tests/test_conformance.py shows that it holds."""

from __future__ import annotations

from pathlib import Path

from .probe import CHECKS, ELSEWHERE

DOCUMENT = Path("docs/conformance.md")
_HEAD = f"""\
# Conformance of the Modbus server

Written by `python -m tests.conformance` from `tests/conformance/probe.py`; do not edit. `make test` runs every check
over TCP against the real server and fails when one is not answered as it must: {len(CHECKS)} checks. Identifiers MOD,
EXC, MB, REV, CRV and TCP are those of SunSpec's Modbus conformance test procedures; the others are our own. Exception
codes are those of MODBUS Application Protocol V1.1b3.

No certification is claimed: ride-through, trip and reactive power functions belong to the PCS.

| id | what must hold | shown by |
|---|---|---|
"""


def document() -> str:
    """The whole text."""
    rows = [(check.id, check.title, f"`test_conformance.py`, `{check.id}`") for check in CHECKS]
    rows += [(number, title, f"`test_{file}.py::test_{name}`") for number, title, file, name in ELSEWHERE]
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
