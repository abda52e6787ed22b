"""`ems-tool --board-check`: a board file against the machine it is to run on. No line is requested, none driven."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drivers import gpiochip
from drivers.adc import open_adc
from drivers.board import BoardError
from drivers.board_file import AdcSpec, BoardFile, LineSpec, load

_OURS = ("ems-controller", "ems-guard")


class Finding(NamedTuple):
    """One thing that the board file promises. `trouble` is empty when it is there."""

    what: str
    seen: str
    trouble: str = ""


def findings(board: BoardFile) -> Iterator[Finding]:
    """Chips, then lines, then converters, then the watchdog."""
    chips: dict[str, tuple[Path, int]] = {}
    for name, wanted in board.chips.items():
        try:
            path = gpiochip.find("gpio", wanted)
            info = gpiochip.chip_info(path)
        except OSError as error:
            yield Finding(f"chip {name}", "", f"{wanted}: {error}")
            continue
        chips[name] = path, info.lines
        yield Finding(f"chip {name}", f"{path}, label {info.label!r}, {info.lines} lines")
    for kind, table in (("input", board.inputs), ("guard input", board.guard_inputs), ("output", board.outputs)):
        for name, spec in table.items():
            if spec.chip in chips:
                yield _line(f"{kind} {name}", spec, *chips[spec.chip])
    for name, adc in board.adcs.items():
        yield _converter(f"converter {name}", adc)
    if board.watchdog:
        yield _watchdog(board.watchdog.device)


def _line(what: str, spec: LineSpec, path: Path, lines: int) -> Finding:
    if spec.offset >= lines:
        return Finding(what, "", f"{path} has the lines 0 to {lines - 1}, not {spec.offset}")
    try:
        info = gpiochip.line_info(path, spec.offset)
    except OSError as error:
        return Finding(what, "", f"{path} line {spec.offset}: {error.strerror}")
    if info.used and info.consumer not in _OURS:
        return Finding(what, "", f"{path} line {spec.offset} is held by {info.consumer or 'another driver'}")
    return Finding(what, f"{path} line {spec.offset}, {'held by ' + info.consumer if info.used else 'free'}")


def _watchdog(device: str) -> Finding:
    """It is not opened: that would start it."""
    there = Path(device).exists()
    return Finding("watchdog", device, "" if there else f"{device} does not exist; load its kernel driver")


def _converter(what: str, spec: AdcSpec) -> Finding:
    try:
        adc = open_adc(spec)
    except OSError as error:
        return Finding(what, "", f"{spec.kind} at {spec.device}: {error}")
    try:
        adc.probe()
    except OSError as error:
        return Finding(what, "", str(error))
    finally:
        adc.close()
    return Finding(what, f"{spec.kind} at {spec.device} answers")


def run(prog: str, name: str | None) -> int:
    """Prints every finding; 1 when something is missing, 2 when the file itself is wrong."""
    try:
        board = load(name or os.environ.get("EMS_BOARD") or "bench")
    except BoardError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    if board.is_bench:
        print(f"board {board.path.stem}: simulated, there is no hardware to verify")
        return 0
    found = list(findings(board))
    for finding in found:
        print(f"{finding.what:24} {'MISSING ' + finding.trouble if finding.trouble else 'ok      ' + finding.seen}")
    missing = sum(bool(finding.trouble) for finding in found)
    for what in sorted(board.absent):
        print(f"{what:24} absent  not on this board")
    print(f"board {board.path.stem}: {missing or 'nothing'} missing of {len(found)}")
    return 1 if missing else 0
