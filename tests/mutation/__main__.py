"""`python -m tests.mutation [--only FILE] [--sample N] [--seed S] [--write]`: a mutant that survives unlisted fails.

Works in a copy (build/mutation), so that neither a mutant nor a half-run touches the sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import runner, swap
from .mutants import Mutant, mutants
from .runner import Fast, Order, Test, Verdict

HERE = Path("tests/mutation")
SURVIVORS, KILLERS, HOW = HERE / "survivors.txt", HERE / "killers.txt", HERE / "how.md"
DOCUMENT = Path("docs/mutation.md")
COPY = Path(os.environ.get("EMS_MUTATION_COPY", "build/mutation/tree"))
UNLISTED = COPY.parent / "unlisted.txt"
COPIED = ("statemachine", "firmware", "drivers", "tests", "pyproject.toml")
TARGETS: dict[str, float] = {
    "statemachine/*.py": 100.0, "firmware/guard.py": 90.0, "firmware/store.py": 90.0, "firmware/journal.py": 90.0,
    "drivers/modbus/adu.py": 90.0, "drivers/section.py": 90.0,
}  # fmt: skip
"""Files, and per cent of their mutants that must die; those listed as equivalent do not count."""
TESTS = (
    "tests/test_boundaries_*.py", "tests/test_core_*.py", "tests/test_machine.py", "tests/test_delta.py",
    "tests/test_proof.py", "tests/test_guard*.py", "tests/test_section.py", "tests/test_modbus_server.py",
    "tests/test_fuzz.py", "tests/test_store.py", "tests/test_journal.py", "tests/test_loops.py",
    "tests/test_fault_catalogue.py", "tests/test_grid_functions.py", "tests/test_update_hold.py",
    "tests/test_watchdog.py", "tests/test_rehearsal.py", "tests/test_late_command.py",
)  # fmt: skip


def _paths(root: Path, only: str) -> list[str]:
    found = [str(p.relative_to(root)) for pattern in TARGETS for p in sorted(root.glob(pattern))]
    return [p for p in found if any(o in p for o in only.split(",")) and p != "statemachine/__init__.py"]


def _needed(path: str) -> float:
    return next(score for pattern, score in TARGETS.items() if Path(path).match(pattern))


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _survivors(home: Path) -> dict[str, str]:
    """Reviewed survivors: key and reason."""
    return dict(line.rsplit(" # ", 1) for line in _lines(home / SURVIVORS) if line and not line.startswith("#"))


def _killers(home: Path) -> dict[str, list[str]]:
    """Tests that have killed, by place as in the file, and by file."""
    found: dict[str, list[str]] = {}
    for where, *nodes in (line.split(" | ") for line in _lines(home / KILLERS)):
        found[where] = nodes
        path = where.partition(" ")[0]
        found[path] = list(dict.fromkeys([*found.get(path, ()), *nodes]))
    return found


def _copied(home: Path) -> Path:
    root = home / COPY
    shutil.rmtree(root, ignore_errors=True)
    for name in COPIED:
        if (home / name).is_dir():
            shutil.copytree(home / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(home / name, root / name)
    return root


def _test_files(root: Path, only: str) -> list[str]:
    found = (p for pattern in TESTS for p in sorted(root.glob(pattern)) if any(o in p.name for o in only.split(",")))
    return [str(p.relative_to(root)) for p in found]


def _measured(root: Path, paths: list[str], only: str) -> dict[str, Test]:
    """runner.measure, kept as long as no file of the copy changes."""
    text = b"".join(p.read_bytes() for name in COPIED for p in sorted((root / name).rglob("*.py")))
    kept = root.parent / f"tests-{hashlib.sha256(text + repr((paths, only)).encode()).hexdigest()[:16]}.json"
    if kept.exists():
        rows = json.loads(kept.read_text())
        return {n: Test(s, frozenset((path, line) for path, line in hit)) for n, s, hit in rows}
    tests = runner.measure(_test_files(root, only), root, paths)
    kept.write_text(json.dumps([[node, t.seconds, sorted(t.lines)] for node, t in tests.items()]))
    return tests


def _sorted(root: Path, chosen: list[Mutant], order: Order) -> tuple[list[Fast], list[Mutant]]:
    """(those whose code can be exchanged, those that need a new import); what compiles to the same code is dropped."""
    fast: list[Fast] = []
    slow: list[Mutant] = []
    compiled = {p: compile((root / p).read_text(), str(root / p), "exec") for p in {m.path for m in chosen}}
    for mutant in chosen:
        old = compiled[mutant.path]
        new = compile(mutant.text, str(root / mutant.path), "exec")
        differs, inside = swap.changed(old, new)
        if differs and inside and order.runs(mutant):
            fast.append(Fast(mutant, old, new))
        elif differs:
            slow.append(mutant)
    return fast, slow


class Row(NamedTuple):
    """One file's score."""

    path: str
    mutants: int
    killed: int
    equivalent: int
    survive: int

    @property
    def score(self) -> float:
        counted = self.killed + self.survive
        return 100.0 * self.killed / counted if counted else 100.0


def rows(verdicts: list[Verdict], known: dict[str, str]) -> list[Row]:
    """By file. What is killed counts as killed, listed or not."""
    what = Counter((v.mutant.path, "k" if v.by else "e" if v.mutant.key in known else "s") for v in verdicts)
    paths = sorted({path for path, _ in what})
    return [Row(p, sum(what[p, x] for x in "kes"), what[p, "k"], what[p, "e"], what[p, "s"]) for p in paths]


def _written(file: Path) -> list[Row]:
    """The rows of the document as it stands: a run of some files leaves those of the others."""
    lines = [line for line in _lines(file) if ".py |" in line and line.count("|") == 8]
    cells = ([cell.strip().replace(",", "") for cell in line.split("|")[1:6]] for line in lines)
    return [Row(path, *map(int, counts)) for path, *counts in cells]


def total(table: list[Row]) -> Row:
    """The sum."""
    return Row(
        "all", sum(r.mutants for r in table), sum(r.killed for r in table), sum(r.equivalent for r in table),
        sum(r.survive for r in table),
    )  # fmt: skip


def document(table: list[Row], known: dict[str, str], tests: int, pace: float) -> str:
    """docs/mutation.md."""
    lines = [
        f"| {r.path} | {r.mutants:,} | {r.killed:,} | {r.equivalent} | {r.survive} | {r.score:.1f} | {asked} |"
        for r in (*table, total(table))
        for asked in [f"{_needed(r.path):.0f}" if r.path in _paths(Path(), r.path) else ""]
    ]
    reasons = Counter(known.values())
    return "\n".join(
        (
            "# Mutation tests", "",
            "Run and written by `make mutation WRITE=1`; do not edit.", "", HOW.read_text(),
            "| file | mutants | killed | listed | survive | score % | asked % |", "|---|---|---|---|---|---|---|",
            *lines, "", f"{tests} tests, {pace:.0f} mutants a second on one core.", "",
            "Reasons of the listed survivors, from tests/mutation/survivors.txt:", "",
            "| reason | mutants |", "|---|---|", *(f"| {reason} | {n} |" for reason, n in reasons.most_common()), "",
        )
    )  # fmt: skip


def _inside(args: argparse.Namespace, home: Path, root: Path) -> int:
    began_s = time.monotonic()
    runner.preload()
    paths, known, killers = _paths(root, args.only), _survivors(home), _killers(home)
    every = [m for path in paths for m in mutants(root, path)]
    print(f"{len(every):,} mutants of {len(paths)} files ({time.monotonic() - began_s:.0f} s)", flush=True)
    chosen = every
    if args.sample:
        fresh = [m for m in every if m.key not in known]
        chosen = random.Random(args.seed).sample(fresh, min(args.sample, len(fresh)))
    if args.sample and killers:
        tests = runner.collect(_test_files(root, args.tests), root)
    else:
        tests = _measured(root, _paths(root, ""), args.tests)
    order = Order(tests, killers, root)
    print(f"{len(tests)} tests known ({time.monotonic() - began_s:.0f} s)", flush=True)
    fast, slow = _sorted(root, chosen, order)
    files, ran_s = sorted({node.partition("::")[0] for node in tests}), time.monotonic()
    exchanged = {f.mutant.key: f for f in fast}
    verdicts = []
    for verdict in _in_rounds(
        (runner.BUDGET_S, runner.SECOND_BUDGET_S),
        lambda ms: runner.switched(files, root, [exchanged[m.key] for m in ms], order, args.jobs),
        [f.mutant for f in fast], order, known,
    ):  # fmt: skip
        if args.sample and not verdict.by:
            slow.append(verdict.mutant)  # perhaps it acts at import
        else:
            verdicts.append(_told(verdict, known))
    print(f"{len(fast):,} with exchanged code ({time.monotonic() - ran_s:.0f} s)", flush=True)
    imported_s = time.monotonic()
    hints = () if args.sample else (runner.HINTS_S,)
    rounds = (*hints, runner.BUDGET_S, runner.SECOND_BUDGET_S)
    anew = _in_rounds(rounds, lambda ms: runner.imported(root, ms, order, args.jobs), slow, order, known)
    verdicts += [_told(v, known) for v in anew]
    print(f"{len(slow):,} imported anew ({time.monotonic() - imported_s:.0f} s)", flush=True)
    pace = len(verdicts) / (time.monotonic() - ran_s)
    return _judged(args, home, every, verdicts, known, order, pace)


def _in_rounds(
    budgets_s: Sequence[float], run: Callable[[list[Mutant]], Iterator[Verdict]], mutants: list[Mutant], order: Order,
    known: dict[str, str],
) -> Iterator[Verdict]:  # fmt: skip
    """Verdicts; what survives a round is tried again in the next, with more tests, listed survivors in one only."""
    for budget_s in budgets_s:
        order.budget_s, again = budget_s, []
        listed = known if budget_s >= runner.BUDGET_S else ()
        for verdict in run(mutants) if mutants else ():
            if verdict.by or verdict.mutant.key in listed or budget_s == budgets_s[-1]:
                yield verdict
            else:
                again.append(verdict.mutant)
        mutants = again


def _told(verdict: Verdict, known: dict[str, str]) -> Verdict:
    if not verdict.by and verdict.mutant.key not in known:
        print(f"SURVIVES ({verdict.tried} tests): {verdict.mutant.key}", flush=True)
    return verdict


def _judged(
    args: argparse.Namespace, home: Path, every: list[Mutant], verdicts: list[Verdict], known: dict[str, str],
    order: Order, pace: float,
) -> int:  # fmt: skip
    table = rows(verdicts, known)
    for r in table:
        print(
            f"{r.path:28} {r.mutants:5} mutants, {r.killed:5} killed, {r.equivalent:4} listed, {r.survive:4} survive: "
            f"{r.score:5.1f} %, asked {_needed(r.path):.0f} %"
        )
    for v in verdicts:
        if v.by and v.mutant.key in known:
            print(f"listed, but killed by {v.by}: {v.mutant.key}")
    paths = {m.path for m in every}
    for key in sorted({k for k in known if k.partition(" ")[0] in paths} - {m.key for m in every}):
        print(f"listed, but there is no such mutant: {key}")
    unlisted = [v.mutant.key for v in verdicts if not v.by and v.mutant.key not in known]
    (home / UNLISTED).write_text("".join(f"{key} # ?\n" for key in unlisted))
    survivors = len(unlisted)
    print(
        f"{len(verdicts):,} mutants, {pace:.0f} a second; {survivors} survive that are not in {SURVIVORS}: {UNLISTED}"
    )
    if args.write and not args.sample and not args.tests:
        table = sorted([*table, *(r for r in _written(home / DOCUMENT) if r.path not in paths)])
        places = sorted((where, nodes) for where, nodes in order.killers.items() if " " in where and nodes)
        (home / KILLERS).write_text("".join(f"{' | '.join([where, *nodes])}\n" for where, nodes in places))
        (home / DOCUMENT).write_text(document(table, known, len(order.tests), pace))
    return 1 if survivors else 0


def main() -> int:
    """Exit 1 when a mutant survives that is not listed."""
    parser = argparse.ArgumentParser(prog="tests.mutation", description=__doc__)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--tests", default="", help="only test files whose name contains this")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT} and {KILLERS}")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside is not None:
        return _inside(args, args.inside, Path.cwd())
    home = Path.cwd()
    root = _copied(home)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each mutant that is imported anew would compile everything
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a quicker start
    return subprocess.call([sys.executable, "-m", "tests.mutation", *sys.argv[1:], "--inside", str(home)])


if __name__ == "__main__":
    sys.exit(main())
