"""docs/safety-case.md and the table on the console, both from the verdicts of a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .judge import FAILED, LEFT, SKIPPED, Verdict, measured
from .live_process import CELLS
from .row import ELSEWHERE, OPEN, SCENE, Row
from .scenario import CORE, LIVE, OWN, Outcome
from .table import HAZARDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "safety-case.md"
INTRODUCTION = Path(__file__).with_name("introduction.md")


def both(core: Outcome, live: Outcome) -> Outcome:
    """The exact reaction of the core, and the live one beside it."""
    beside = f"live {measured(live)} ms" if live.reactions else ""
    return Outcome(core.reactions, "; ".join(part for part in (core.note, beside, live.note) if part))


def console(verdicts: list[Verdict]) -> str:
    """One line a row."""
    lines = [f"{'row':24} {'promised':>9} {'measured, ms':>22}  verdict"]
    for v in verdicts:
        promised = "" if v.row.ms is None else f"{v.row.ms:.0f}"
        why = v.why if v.word in (FAILED, LEFT) else v.row.requirement
        lines.append(f"{v.row.id:24} {promised:>9} {v.measured:>22}  {v.word:9} {why[:150]}")
    return "\n".join(lines)


def write(verdicts: list[Verdict], seed: int) -> None:
    """Writes the document; what was not run is said."""
    parts = [INTRODUCTION.read_text(), _machine(seed), _results(verdicts), _matrix(), _left(verdicts)]
    DOCUMENT.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _machine(seed: int) -> str:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    return (
        f"## Machine\n\n{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}; seed {seed}. Load when the run ended: {os.getloadavg()[1]:.1f}."
    )


def _cells(*values: str) -> str:
    return "| " + " | ".join(value.replace("|", "\\|").replace("\n", " ") for value in values) + " |"


def _how(row: Row) -> str:
    """Names of scenario and tests."""
    runs = [runs[row.id] for runs in (CORE, LIVE, OWN) if row.id in runs]
    scenario = ["injection"] if SCENE in row.shown and runs else []
    tests = [f"`{node.removeprefix('tests/')}`" for node in row.nodes]
    return "; ".join([*scenario, *tests]) or "-"


def _results(verdicts: list[Verdict]) -> str:
    hazards = {row.id for row in HAZARDS}
    return "\n\n".join((
        "## Hazards",
        _table([v for v in verdicts if v.row.id in hazards]),
        "## Fault catalogue\n\nEach row of the catalogue, injected into the pure core in exact scans of 10 ms; where "
        "the bench can cause it, on the live appliance as well.",
        _table([v for v in verdicts if v.row.id not in hazards]),
    ))  # fmt: skip


def _table(verdicts: list[Verdict]) -> str:
    lines = [
        _cells("row", "hazard", "requirement", "kept by", "level", "shown by", "promised ms",
               "measured ms (min / median / max)", "verdict", "remark"),
        "|" + "---|" * 10,
    ]  # fmt: skip
    for v in verdicts:
        promised = "" if v.row.ms is None else f"{v.row.ms:.0f}"
        lines.append(_cells(v.row.id, v.row.hazard, v.row.requirement, f"`{v.row.code}`", v.row.level, _how(v.row),
                            promised, v.measured, v.word, v.why))  # fmt: skip
    return "\n".join(lines)


def _matrix() -> str:
    if not CELLS:
        return ""
    calamities = list(dict.fromkeys(cell.calamity for cell in CELLS))
    found = {(cell.process, cell.calamity): cell for cell in CELLS}
    lines = [
        "## Processes against calamities\n\nWhile the rack charges. Every event of the process image was in "
        "battery.log or in the journal afterwards, unless a field says otherwise.\n",
        _cells("process", *calamities),
        "|" + "---|" * (len(calamities) + 1),
    ]
    for process in dict.fromkeys(cell.process for cell in CELLS):
        cells = [found.get((process, calamity)) for calamity in calamities]
        texts = ["-" if c is None else c.ends + ("" if c.recorded else " (events missing)") for c in cells]
        lines.append(_cells(process, *texts))
    return "\n".join(lines)


def _left(verdicts: list[Verdict]) -> str:
    """What could not be exercised, what is not promised, and what this run left out."""
    lines = ["## What is not shown here\n"]
    for v in verdicts:
        reasons = [shown for shown in v.row.shown if shown.startswith((ELSEWHERE, OPEN))]
        if v.word == LEFT and v.why.startswith(ELSEWHERE) and v.why not in reasons:
            reasons.append(v.why)
        lines += [f"- **{v.row.id}** ({v.row.hazard}): {reason}." for reason in reasons]
    skipped = [v.row.id for v in verdicts if v.word == SKIPPED]
    if skipped:
        lines.append(f"- This run left out: {', '.join(skipped)}.")
    return "\n".join(lines)
