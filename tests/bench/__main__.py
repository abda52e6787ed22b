"""`python -m tests.bench [--quick] [--no-minute] [--write]`: prints every measurement beside its yardstick."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from appliance import PATIENT, Appliance, appliance

from firmware.aggregator import CONTROL_TICK_S

from .measurements import (
    FULL,
    LIMIT,
    QUICK,
    WITHOUT_MINUTE,
    Plan,
    Row,
    bms_poll,
    cells_by_sunspec,
    charging,
    deaths,
    kill_switch,
    throughput,
    writes,
    writes_under_load,
)
from .yardsticks import BUILD, LEAST, Busy, Machine, machine, rivals

DOCUMENT = Path("docs/performance.md")
LOGS = BUILD / "run"
_HEAD = """\
# Performance

Measured and written by `python -m tests.bench --write`; do not edit. Every processor has a section with the code of its
date; a run replaces that of its own.
"""
_NOTES = f"""\
Absolute times are those of the machine and of its build of Python: one from source without profile-guided optimisation
takes half as long again as a distribution's. What carries over is the ratio to a yardstick that ran at the same time.

- Ratios are ours to the yardstick's: p50, then p99. Below 1 is better, for requests a second (/s) above 1.
- Everything runs on loopback against the bench with 1,200 cells at speed 1; the appliance as `make run` starts it.
- Wake and execution times are the controller's own registers (`ScanWakeP50us` ..., rounded up to their bins) since
  its start; cyclictest runs from then on, and keeps the processor out of deep sleep, for both. It preempts the scan,
  the guard preempts both.
- Kill-switch: from the bench's edge to the guard's store in the terminal, the contactors open, the state ISOLATED.
- Write to output: from before the write until the read that shows it, back-to-back reads, phases spread evenly over the
  scan period, in random order. The aggregator looks for a new set-point every {CONTROL_TICK_S * 1000:g} ms. A bare scan
  that copies one register is the least that a controller can do, on this machine and seen by this client.
- Under load: {LIMIT} connections, all but the one that writes in a closed loop of reads, at ordinary priority. The one
  that writes is above ordinary processes, with and without load: it stands for a machine of its own. Wake latencies
  come from the freeze-frames' stamps there, since the registers count from the start on: above the shortest of the last
  ten seconds.
- kill -9 comes at a random phase of the scan; with the guard, detection by the reader adds some milliseconds.
- Poll of 1,200 cells: ours includes decoding, reduction and publishing, and asks for as many requests at once as the
  profile of the device allows; libmodbus asks for one after the other, half a period later.
- Requests a second: server and generator on a core each, above ordinary processes where that is permitted, in short
  bursts by turns. The appliance takes {LIMIT} connections. The others serve constant registers, ours the process image.
  pymodbus and pyModbusTCP stand as their documents show them, with registers in memory. {LEAST} checks
  nothing: what it reaches with 8 clients and more is what this machine lets a thread do beside the generator.
- pysunspec2 has scanned the string units before; decoding is part of its time.
"""


def _measure(a: Appliance, plan: Plan) -> Iterator[Row]:
    for measurement in (
        charging, writes, writes_under_load, kill_switch, deaths, bms_poll, cells_by_sunspec, throughput,
    ):  # fmt: skip
        yield from measurement(a, plan)


def document(before: str, where: Machine, rows: list[Row], summary: str) -> str:
    """docs/performance.md: the section of this processor is new, those of others stay as they were `before`."""
    lines = [
        f"{where.processor}, {date.today()}\n",
        f"{where}. {summary}.\n",
        "| measured | this firmware | compared with | yardstick | ratio | asked |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    others = [part for part in before.split("\n## ")[1:] if not part.startswith((f"{where.processor}, ", "How\n"))]
    return "\n## ".join([_HEAD, "\n".join(lines), *others, f"How\n\n{_NOTES}"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything, shorter: some 70 s")
    parser.add_argument("--minute", action=argparse.BooleanOptionalAction, default=True, help="charge for 60 s, not 30")
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT}")
    args = parser.parse_args()
    if args.write and args.quick:
        parser.error("--write needs the whole run, leave out --quick")
    return args


def main() -> None:
    """Exit 0 whatever the numbers are; 1 when the appliance did not work."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = QUICK if args.quick else FULL if args.minute else WITHOUT_MINUTE
    where, others, busy, began_s = machine(), rivals(), Busy(), time.monotonic()
    print(where, flush=True)
    try:
        rows = _run(plan)
    except AssertionError as error:
        sys.exit(f"bench: {error} (logs in {LOGS})")
    others |= rivals()
    summary = f"Run of {time.monotonic() - began_s:.0f} s; other work on the machine: {busy.others():.2f} cores"
    if others:
        summary += f", at real-time priority: {', '.join(sorted(others))}"
    print(summary)
    if args.write:
        DOCUMENT.write_text(document(DOCUMENT.read_text(), where, rows, summary))


def _run(plan: Plan) -> list[Row]:
    rows = []
    shutil.rmtree(LOGS, ignore_errors=True)
    with appliance(LOGS.resolve(), speed=1, soc=40.0, configured=PATIENT) as a:
        for row in _measure(a, plan):
            rows.append(row)
            print(
                f"{row.what}: {row.ours} | {row.against}: {row.theirs} | {row.ratio} | {row.asked}".rstrip(" |"),
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main()
