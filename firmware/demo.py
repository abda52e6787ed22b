"""`make demo`: one whole charge cycle on the bench, judged. Leaves battery.log, cycle.csv, cycle.png and cycle.svg.

Exit 0 only when the rack went ISOLATED, PRECHARGE, READY, through charging states to CHARGED at the target, and down
to ISOLATED with the true contactors open, without a single fault bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drivers.bench.control import POINTS as BENCH_POINTS
from statemachine.faults import names
from statemachine.signals import LimitReason
from statemachine.states import State

from . import words
from .config import ConfigError
from .points import PointClient, PointError
from .registers import POINT
from .runner import HOST, Run, RunError
from .site_script import Refused, SiteController

RATE_C, START_PCT, TARGET_PCT, TOLERANCE_PCT = 0.5, 20.0, 80.0, 1.0
_READY_S = 60.0
_DEFAULTS = {"EMS_BENCH_SPEED": "120", "EMS_BENCH_SOC": f"{START_PCT:g}", "EMS_CSV_PERIOD_S": "0.1"}
_PATH = re.compile(r"(INIT )?ISOLATED PRECHARGE READY( CHARGE_[A-Z]+)+ CHARGED STOPPING ISOLATED")
_CONTACTORS = ("true_pos", "true_neg", "true_precharge")
_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Check(NamedTuple):
    """One expectation and what was seen."""

    what: str
    seen: str
    good: bool


class Ended(Exception):
    """A signal or a dead process ended the cycle early; the text says which."""


class Seen(NamedTuple):
    """What the cycle left to be judged."""

    states: list[tuple[float, State]]  # s since the start of the log, state entered
    fault_bits: int
    faults_logged: int
    soc_pct: float  # true, at CHARGED
    speed: float  # of the bench
    contactors: dict[str, float]  # true, at the end


def judge(seen: Seen) -> list[Check]:
    """All expectations of the cycle."""
    path = " ".join(state.name for _, state in seen.states)
    closed = [name for name, value in seen.contactors.items() if value]
    return [
        Check("the states in order", path.replace(" ", " > "), _PATH.fullmatch(path) is not None),
        Check(
            f"CHARGED at {TARGET_PCT:g} % +- {TOLERANCE_PCT:g} %", f"{seen.soc_pct:.2f} % true SoC",
            abs(seen.soc_pct - TARGET_PCT) <= TOLERANCE_PCT,
        ),
        Check("contactors truly open at the end", f"closed: {', '.join(closed) or 'none'}", not closed),
        Check(
            "no fault bit ever", f"{' '.join(names(seen.fault_bits)) or 'none'}, {seen.faults_logged} in the log",
            not seen.fault_bits and not seen.faults_logged,
        ),
    ]  # fmt: skip


def states_in(log: Path) -> list[tuple[float, State]]:
    """The states that battery.log tells of, with s since its first line."""
    found: list[tuple[float, State]] = []
    first_s = 0.0
    for line in log.read_text().splitlines():
        fields = line.split()
        first_s = first_s or float(fields[1])
        if fields[2:4] == ["controller", "STATE"]:
            at_s = float(fields[1]) - first_s
            found += [(at_s, State[name]) for name in (fields[4], fields[6])[bool(found) :]]
    return found


def cycle(run: Run) -> Seen:
    """Runs the cycle. Raises Refused, PointError, RunError or Ended."""
    run.start()
    _await_ready(run)
    bench_points = {point.name: point for point in BENCH_POINTS}
    with (
        PointClient(HOST, run.ports.EMS_MODBUS_PORT, POINT) as appliance,
        PointClient(HOST, run.ports.EMS_BENCH_PORT, bench_points) as bench,
    ):
        site = SiteController(
            appliance, lambda seconds: _wait(run, seconds), lambda text: print(f"  {text}", flush=True)
        )
        speed = bench.read("speed")["speed"]
        site.charge(RATE_C, TARGET_PCT, timeout_s=60 + 10_000 / speed)
        soc_pct = bench.read("true_soc")["true_soc"]
        site.keep(2.0)
        site.off()
        truth = bench.read(*_CONTACTORS)
    run.stop()
    log = run.work / "battery.log"
    return Seen(states_in(log), site.fault_bits, log.read_text().count(" FAULT ON "), soc_pct, speed, truth)


def _await_ready(run: Run) -> None:
    end_s = time.monotonic() + _READY_S
    while not run.answers():
        if time.monotonic() > end_s:
            raise Ended(f"port {run.ports.EMS_MODBUS_PORT} tells no state after {_READY_S:g} s")
        _wait(run, 0.1)


def _wait(run: Run, seconds: float) -> None:
    if got := signal.sigtimedwait(_SIGNALS, seconds):
        raise Ended(f"ended by {signal.Signals(got.si_signo).name}")
    if why := run.check():
        raise Ended(why)


class Series(NamedTuple):
    """Columns of cycle.csv that are drawn, rows without battery data left out."""

    minutes: list[float]
    columns: dict[str, list[float]]
    reasons: list[str]


def series(path: Path, speed: float) -> Series:
    """`minutes` are of simulated time: wall time x bench speed."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["soc_pct"]]
    first_s = float(rows[0]["time_s"])
    drawn = ("current_a", "charge_limit_a", "soc_pct", "cell_v_max", "cell_v_min", "cell_c_max", "cell_c_min")
    return Series(
        [(float(row["time_s"]) - first_s) * speed / 60 for row in rows],
        {name: [float(row[name]) for row in rows] for name in drawn},
        [row["limit_reason"] for row in rows],
    )


def bands(minutes: list[float], reasons: list[str]) -> Iterator[tuple[float, float, str]]:
    """Stretches of one limiting reason: from, to, reason."""
    start = 0
    for at in range(1, len(reasons) + 1):
        if at == len(reasons) or reasons[at] != reasons[start]:
            yield minutes[start], minutes[min(at, len(reasons) - 1)], reasons[start]
            start = at


def plot(data: Series, directory: Path, speed: float) -> None:
    """cycle.png and cycle.svg: current with limit and reason, SoC, cell voltage, temperature over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (current, soc, volts, heat) = pyplot.subplots(
        4, 1, sharex=True, figsize=(11, 10), layout="constrained", height_ratios=(3, 1, 2, 1.4)
    )
    palette = matplotlib.colormaps["tab20"]
    named: set[str] = set()
    for start, end, reason in bands(data.minutes, data.reasons):
        label = None if reason in named else f"limited by {words.limit(LimitReason[reason])}"
        named.add(reason)
        current.axvspan(start, end, color=palette(LimitReason[reason] % 20), alpha=0.45, linewidth=0, label=label)
    column = data.columns
    current.plot(data.minutes, column["current_a"], color="black", label="rack current (- is charge)")
    current.plot(
        data.minutes,
        [-a for a in column["charge_limit_a"]],
        "--",
        color="firebrick",
        label="charge limit, drawn as charge",
    )
    current.set_ylim(1.25 * min(column["current_a"]), 40)
    current.set_ylabel("A")
    current.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    soc.plot(data.minutes, column["soc_pct"], color="seagreen")
    soc.set_ylabel("SoC, %")
    for axis, unit, high, low in ((volts, "V", "cell_v_max", "cell_v_min"), (heat, "degC", "cell_c_max", "cell_c_min")):
        axis.plot(data.minutes, column[high], label="highest cell")
        axis.plot(data.minutes, column[low], label="lowest cell")
        axis.set_ylabel(f"cell, {unit}")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    heat.set_xlabel(f"minutes of the cells (wall time x {speed:g}; ramps, contactors and stop run in wall time)")
    for axis in (current, soc, volts, heat):
        axis.grid(alpha=0.3)
    figure.suptitle(f"Charge at {RATE_C:g}C to {TARGET_PCT:g} % on the bench")
    for kind in ("png", "svg"):
        figure.savefig(directory / f"cycle.{kind}", dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _report(seen: Seen, checks: list[Check]) -> None:
    print("\n  reached            after")
    for at_s, state in seen.states:
        print(f"  {state.name:<16} {at_s:7.1f} s")
    print()
    for check in checks:
        print(f"  {'ok    ' if check.good else 'FAILED'} {check.what}: {check.seen}")


def _fresh(directory: Path) -> None:
    for pattern in ("battery.log*", "cycle.*", "*.log"):
        for old in directory.glob(pattern):
            old.unlink()


def demo(directory: Path) -> int:
    """Runs and judges the cycle, prints what was reached; the exit code."""
    environ = {**_DEFAULTS, **os.environ}
    run = Run(directory, environ, lambda text: print(f"  {text}", file=sys.stderr))
    _fresh(directory)
    began_s = time.monotonic()
    print(
        f"demo: {environ['EMS_BENCH_SOC']} % to {TARGET_PCT:g} % at {RATE_C:g}C, cells {environ['EMS_BENCH_SPEED']} "
        f"times faster than the clock, logs in {directory}"
    )
    try:
        seen = cycle(run)
    finally:
        run.stop()
    plot(series(directory / "cycle.csv", seen.speed), directory, seen.speed)
    checks = judge(seen)
    _report(seen, checks)
    failed = [check for check in checks if not check.good]
    for check in failed:
        print(f"demo: expected {check.what}; seen {check.seen}; log: {directory}/battery.log", file=sys.stderr)
    print(f"demo: {len(checks) - len(failed)} of {len(checks)} expectations met in {time.monotonic() - began_s:.0f} s")
    return 1 if failed else 0


def main() -> None:
    """Exit 0 only when everything is as promised."""
    parser = argparse.ArgumentParser(description="One judged charge cycle on the bench.")
    parser.add_argument("--directory", type=Path, default=Path("build/demo"), help="where logs and plots go")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        code = demo(args.directory)
    except (ConfigError, RunError) as error:
        sys.exit(f"demo: {error}")
    except (Refused, PointError, Ended) as error:
        sys.exit(f"demo: expected the cycle to reach its end; seen: {error}; log: {args.directory}/battery.log")
    sys.exit(code)


if __name__ == "__main__":
    main()
