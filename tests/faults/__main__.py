"""`python -m tests.faults [--only ID,...] [--quick] [--write] [--seed N]`: injects, measures, judges."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from . import core_rows, live_comms, live_faults, live_inputs, live_process, own_rows, safety_case
from .judge import FAILED, Verdict, passing, verdict
from .row import Row
from .scenario import CORE, LIVE, OWN, CannotHere, Live, Outcome, Reaction
from .stand import Stand, stand
from .table import TABLE

_REGISTERED = (core_rows, live_comms, live_faults, live_inputs, live_process, own_rows)
QUICK_CORE_SKIPS = ("ERR_BALANCE_TIMEOUT", "ERR_INIT_TIMEOUT", "ERR_CLOCK", "ERR_LOOP_STUCK", "L2", "I3")
"""Hours of plant time, minutes of ours."""


def say(text: str) -> None:
    print(text, flush=True)


def failure(error: BaseException) -> str:
    """One line of what went wrong, and where in the scenario."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if "/faults/" in f.filename), frames[-1])
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:300]} ({Path(where.filename).name}:{where.lineno})"


def repeated(s: Stand, scenario: Live, repeats: int) -> Outcome:
    """A live scenario on the shared stand."""
    reactions: list[Reaction] = []
    s.notes.clear()
    for _ in range(repeats):
        s.bring_to(scenario.start)
        missed = s.get("ScanOverruns")
        found = scenario.run(s)
        if isinstance(found, Reaction):
            late_ms = 10.0 * max(0.0, s.overruns() - missed)
            reactions.append(found._replace(allowance_ms=found.allowance_ms + late_ms))
        elif isinstance(found, str):
            s.note(found)
    return Outcome(tuple(reactions), "; ".join(dict.fromkeys(s.notes)))


def live_outcomes(names: Iterable[str], repeats: int | None) -> dict[str, Outcome | str]:
    """All live scenarios on one appliance; a new one after a failure."""
    found: dict[str, Outcome | str] = {}
    left = list(names)
    while left:
        with stand() as s:
            while left:
                name = left.pop(0)
                start = time.monotonic()
                try:
                    found[name] = repeated(s, LIVE[name], repeats or LIVE[name].repeats)
                except Exception as error:
                    found[name] = failure(error)
                _progress(name, found[name], start)
                if isinstance(found[name], str):
                    break
    return found


def outcomes(runs: dict[str, object], names: Iterable[str]) -> dict[str, Outcome | str]:
    """Scenarios that need nothing shared."""
    found: dict[str, Outcome | str] = {}
    for name in names:
        start = time.monotonic()
        try:
            found[name] = runs[name]()  # type: ignore[operator]
        except CannotHere as error:
            found[name] = Outcome(left=str(error))
        except Exception as error:
            found[name] = failure(error)
        _progress(name, found[name], start)
    return found


def _progress(name: str, outcome: Outcome | str, start: float) -> None:
    text = f"FAILED: {outcome}" if isinstance(outcome, str) else outcome.note
    say(f"{time.monotonic() - start:6.1f} s  {name:24} {text[:160]}")


def chosen(only: str, quick: bool) -> list[Row]:
    """Rows to run; a wrong id ends the program."""
    wanted = [name for name in only.split(",") if name]
    if unknown := set(wanted) - {row.id for row in TABLE}:
        sys.exit(f"faults: no row {', '.join(sorted(unknown))} in the table")
    rows = [row for row in TABLE if not wanted or row.id in wanted]
    if not quick:
        return rows
    kept = (CORE.keys() - set(QUICK_CORE_SKIPS)) | {name for name, one in LIVE.items() if one.quick}
    return [row for row in rows if row.id in kept]


def run(rows: list[Row], quick: bool, seed: int) -> list[Verdict]:
    """Core first, then the shared appliance in an order drawn from the seed, then what starts its own."""
    ids = [row.id for row in rows]
    order = [name for name in ids if name in LIVE and (LIVE[name].quick or not quick)]
    random.Random(seed).shuffle(order)
    skipped = set(QUICK_CORE_SKIPS) if quick else set()
    core = outcomes(dict(CORE), [name for name in ids if name in CORE and name not in skipped])
    live = live_outcomes(order, 1 if quick else None)
    own = {} if quick else outcomes(dict(OWN), [name for name in ids if name in OWN])
    nodes = [] if quick else sorted({node for row in rows for node in row.nodes})
    passed = passing(nodes)
    found = {**core, **own, **live}
    for name, outcome in live.items():
        if name in core and isinstance(core[name], str):
            found[name] = core[name]
        elif isinstance(exact := core.get(name), Outcome) and isinstance(outcome, Outcome):
            found[name] = safety_case.both(exact, outcome)
    return [verdict(row, found.get(row.id), passed) for row in rows]


def main() -> int:
    """Exit code 1 when a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--only", default="", metavar="ID,...", help="rows of the table")
    parser.add_argument("--quick", action="store_true", help="one repeat of the fast ones, within a minute")
    parser.add_argument("--write", action="store_true", help="writes docs/safety-case.md")
    parser.add_argument("--seed", type=int, default=1, help="order of the live scenarios")
    args = parser.parse_args()
    start = time.monotonic()
    verdicts = run(chosen(args.only, args.quick), args.quick, args.seed)
    say(safety_case.console(verdicts))
    failed = [v for v in verdicts if v.word == FAILED]
    say(f"{len(verdicts)} rows, {len(failed)} failed, {time.monotonic() - start:.0f} s, seed {args.seed}")
    if args.write:
        safety_case.write(verdicts, args.seed)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
