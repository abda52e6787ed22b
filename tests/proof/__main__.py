"""`python -m tests.proof [--accept] [--write] [--long]`: searches, compares with golden.txt, tries the mutants."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections import Counter
from pathlib import Path

from rig import settings

from statemachine.faults import FAULTS
from statemachine.states import State
from statemachine.table import TABLE

from . import cells, machine, mutants, plant, search
from .mutants import Mutant, Verdict

HERE = Path(__file__).parent
GOLDEN, EQUIVALENT, HOW, DOCUMENT = HERE / "golden.txt", HERE / "equivalent.txt", HERE / "how.md", Path("docs/proof.md")
MACHINE, CELLS, STAYS, CORE = "# machine", "# faults", "# longest stays", "# core, one change from healthy"
NODES = 5000


def quick_listing(of: machine.Machine) -> dict[str, list[str]]:
    """The parts of golden.txt that take a second."""
    return {
        MACHINE: machine.listing(of),
        CELLS: [cells.fault_line(fault) for fault in FAULTS],
        STAYS: cells.stays(settings()),
    }


def text(parts: dict[str, list[str]]) -> str:
    return "\n".join(line for title, lines in parts.items() for line in (title, *lines, "")) + "\n"


def accepted() -> dict[str, list[str]]:
    """golden.txt by part."""
    parts: dict[str, list[str]] = {}
    title = ""
    for line in GOLDEN.read_text().splitlines() if GOLDEN.exists() else []:
        if line.startswith("# "):
            title = line
            parts[title] = []
        elif line:
            parts[title].append(line)
    return parts


def difference(was: dict[str, list[str]], now: dict[str, list[str]]) -> str:
    """What changed in the parts that `now` has."""
    before = {title: was.get(title, []) for title in now}
    return "\n".join(
        difflib.unified_diff(text(before).splitlines(), text(now).splitlines(), "golden.txt", "now", lineterm="", n=0)
    )


def equivalent() -> dict[str, str]:
    """Accepted survivors: "kind: name" and the reason."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return dict(line.split(" # ", 1) for line in lines if line)


def key(verdict: Verdict | Mutant) -> str:
    return f"{verdict.kind}: {verdict.name}"


def _table(rows: list[tuple[object, ...]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


class _Report:
    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []
        self.failures: list[str] = []

    def line(self, what: str, covered: str, seconds: float) -> None:
        self.rows.append((what, covered, f"{seconds:.1f}"))
        print(f"{what}: {covered} ({seconds:.1f} s)", flush=True)

    def fail(self, what: str) -> None:
        self.failures.append(what)
        print(f"FAILED: {what}", flush=True)


def _machine(report: _Report) -> machine.Machine:
    began_s = time.monotonic()
    of = machine.machine()
    for what in (*machine.broken(of), *machine.misread(TABLE, of)):
        report.fail(what)
    steps = sum(len(b.dests) for b in of.values())
    report.line("transition machine", f"{len(of)} states x every vector: {steps:,} steps", time.monotonic() - began_s)
    return of


def _cells(report: _Report) -> None:
    began_s, steps = time.monotonic(), 0
    for count, wrong in cells.search():
        steps += count
        for what in wrong:
            report.fail(what)
    for what in cells.independent():
        report.fail(what)
    report.line("latch cells", f"{len(FAULTS)} cells x every sequence: {steps:,} steps", time.monotonic() - began_s)


def _core(report: _Report, long: bool) -> list[str]:
    found = search.search(plant.singles(), plant.pairs(long), NODES, processes=os.cpu_count() or 1)
    if found.broken and found.at:
        report.fail(f"{found.broken}\n{search.trace(found, found.at)}")
        return search.listing(found)
    for node in search.dead_ends(found)[:1]:
        edge = found.came[node]
        report.fail("9: no way home\n" + (search.trace(found, edge) if edge else "from the start"))
    lost = set(State) - {node.memory.state for node in found.came}
    if lost:
        report.fail(f"9: never reached: {sorted(s.name for s in lost)}")
    compared, what, at = search.repeated(found)
    if at:
        report.fail(f"{what}\n{search.trace(found, at)}")
    closed, what, at = search.unmoved(found)
    if at:
        report.fail(f"{what}\n{search.trace(found, at)}")
    until = "until nothing new is found" if found.complete else f"bounded at {NODES}"
    covered = (
        f"{len(found.came):,} memories {until}, {len(plant.singles())} single and {len(plant.pairs(long))} paired "
        f"changes each: {found.steps:,} steps; {compared:,} commands repeated, "
        f"{closed:,} times the commissioning is lost while closed"
    )
    report.line("core", covered, found.seconds)
    return search.listing(found)


def _mutants(report: _Report, of: machine.Machine, accept: bool) -> list[Verdict]:
    began_s = time.monotonic()
    verdicts = list(mutants.all_verdicts(of))
    survivors = {key(v) for v in verdicts if not v.by}
    if accept:
        reasons = {key(m): mutants.reason(m) for m in mutants.of_table() if key(m) in survivors}
        EQUIVALENT.write_text("".join(f"{name} # {reasons.get(name, '?')}\n" for name in sorted(survivors)))
    known = set(equivalent())
    for name in sorted(survivors - known):
        report.fail(f"a mutant survives: {name}. Strengthen the proof, or --accept and give the reason")
    for name in sorted(known - survivors):
        report.fail(f"equivalent.txt lists a mutant that no longer survives: {name}. Remove the line (--accept)")
    by = Counter(v.by for v in verdicts)
    covered = (
        f"{len(verdicts):,}: {by['refused']:,} refused, {by['promise']:,} break a promise, {by['golden']:,} change the "
        f"listing, {by['']} equivalent"
    )
    report.line("table mutants", covered, time.monotonic() - began_s)
    return verdicts


def document(report: _Report, verdicts: list[Verdict]) -> str:
    """docs/proof.md."""
    kinds = sorted({v.kind for v in verdicts})
    count = Counter((v.kind, v.by) for v in verdicts)
    columns = ("refused", "promise", "golden", "")
    rows = [(k, *(count[k, by] for by in columns)) for k in kinds]
    return "\n".join(
        (
            "# Proof", "",
            "Searched and written by `python -m tests.proof --write`; do not edit. `make prove` repeats it.", "",
            "| searched | how much | s |", "|---|---|---|", _table(report.rows), "",
            "The golden listing (tests/proof/golden.txt) holds every way out of every state and every reaction of the "
            "core to", "a single change; a difference fails, and is reviewed before `--accept`.", "", HOW.read_text(),
            "## Mutants of the tables", "",
            "| kind | refused when built | break a promise | change the listing | equivalent |",
            "|---|---|---|---|---|",
            _table(rows), "", "The equivalent ones stand in tests/proof/equivalent.txt, each with its reason.", "",
        )
    )  # fmt: skip


def main() -> None:
    """Exit 1 when a promise breaks, the listing differs or a mutant survives."""
    parser = argparse.ArgumentParser(prog="tests.proof", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="rewrite golden.txt and equivalent.txt: review the diff")
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT}")
    parser.add_argument("--long", action="store_true", help="every pair of changes; some minutes")
    args = parser.parse_args()
    if args.long and (args.accept or args.write):
        parser.error("--long compares the promises only, leave out --accept and --write")
    report, began_s = _Report(), time.monotonic()
    of = _machine(report)
    _cells(report)
    listing = quick_listing(of)
    core = _core(report, args.long)
    if not args.long:
        listing[CORE] = core
    if args.accept:
        GOLDEN.write_text(text(listing))
    if changed := difference(accepted(), listing):
        report.fail(f"the golden listing differs; review it, then --accept\n{changed}")
    report.line("golden listing", f"{sum(map(len, listing.values()))} lines", 0.0)
    verdicts = _mutants(report, of, args.accept)
    report.line("all", f"{os.cpu_count()} cores", time.monotonic() - began_s)
    if args.write and not report.failures:
        DOCUMENT.write_text(document(report, verdicts))
    sys.exit(f"prove: {len(report.failures)} failed" if report.failures else 0)


if __name__ == "__main__":
    main()
