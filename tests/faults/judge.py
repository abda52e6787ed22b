"""A row's verdict: what was measured against what is promised, and whether the tests it names pass."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from .row import ELSEWHERE, OPEN, SCENE, Row
from .scenario import Outcome

ROOT = Path(__file__).parents[2]
SHOWN, FAILED, LEFT, SKIPPED = "shown", "FAILED", "see below", "not run"


class Verdict(NamedTuple):
    row: Row
    word: str
    measured: str
    why: str


def measured(outcome: Outcome | None) -> str:
    """Minimum, median and maximum in milliseconds."""
    if not outcome or not outcome.reactions:
        return ""
    ms = [reaction.ms for reaction in outcome.reactions]
    if len(ms) == 1:
        return f"{ms[0]:.0f}"
    return f"{min(ms):.0f} / {statistics.median(ms):.0f} / {max(ms):.0f}"


def late(row: Row, outcome: Outcome) -> list[float]:
    """Reactions slower than promised, after what the bench's writes and missed scans took of them."""
    if row.ms is None:
        return []
    return [r.ms for r in outcome.reactions if r.ms - r.allowance_ms > row.ms + 0.5]


def verdict(row: Row, outcome: Outcome | str | None, passed: dict[str, bool]) -> Verdict:
    """`outcome` is a text when the scenario failed, None when it was not run; `passed` has the nodes that were run."""
    note = outcome.note if isinstance(outcome, Outcome) else ""
    if isinstance(outcome, str):
        return Verdict(row, FAILED, "", outcome)
    if outcome and (slow := late(row, outcome)):
        return Verdict(row, FAILED, measured(outcome), f"{max(slow):.0f} ms, promised {row.ms:.0f} ms")
    if outcome and outcome.left:
        return Verdict(row, LEFT, "", ELSEWHERE + outcome.left)
    if broken := [node for node in row.nodes if passed.get(node) is False]:
        return Verdict(row, FAILED, measured(outcome), f"fails: {', '.join(broken)}")
    if outcome is None and not any(node in passed for node in row.nodes):
        reasons = [shown for shown in row.shown if shown.startswith((ELSEWHERE, OPEN))]
        only_reasons = SCENE not in row.shown and not row.nodes
        return Verdict(row, LEFT if only_reasons else SKIPPED, "", "; ".join(reasons))
    return Verdict(row, SHOWN, measured(outcome), note)


def passing(nodes: list[str]) -> dict[str, bool]:
    """Runs the tests; whether each passed (all of its parameters). A node that was skipped is left out."""
    if not nodes:
        return {}
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={report}", *nodes],
            cwd=ROOT, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    found: dict[str, bool] = {}
    for case in cases:
        if case.find("skipped") is not None:
            continue
        file = case.get("classname", "").replace(".", "/") + ".py"
        node = f"{file}::{case.get('name', '').partition('[')[0]}"
        failed = case.find("failure") is not None or case.find("error") is not None
        found[node] = found.get(node, True) and not failed
    return {node: found.get(node, False) for node in nodes if node in found or not cases}
