"""The front panel in a terminal: LEDs, state, limits and their reason, faults in words, scan statistics.

It is a Modbus client like any other and knows nothing that a site controller could not read. On a terminal it redraws
sixteen times a second; elsewhere it prints one line when something changes, and one every five seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from drivers.modbus.point import UNIMPLEMENTED
from statemachine import leds
from statemachine.faults import FAULTS
from statemachine.signals import GuardTrip, StatusBit
from statemachine.states import State

from . import words
from .points import PointClient, PointError
from .registers import POINT

NAMES = (
    "CmdSeq", "CmdMode", "CmdRamp", "CmdTgtSoC", "AckResult", "AckWhy", "CmfState", "ChaLimA", "DisLimA", "LimReason",
    "DisLimReason", "SetA", "Soc", "RackV", "PcsV", "RackA", "DvMv", "CellVMax", "CellVMin", "CellTmpMax",
    "CellTmpMin", *words.FAULT_BITS, *words.FAULT_ACTIVE, "LedRun", "LedCharge", "LedComm", "LedFault", "LedKill",
    "Feedback", "GuardArmed", "GuardTrip", "Permit", "ScanOverruns", "ScanCount", "ScanPeriodUs", "ScanWakeP50us",
    "ScanWakeP99us", "ScanExecP50us", "ScanExecP99us", "StatusBits", "BmsPolls", "BmsPollUs", "PcsPolls",
)  # fmt: skip
_LEDS = ("LedRun", "LedCharge", "LedComm", "LedFault", "LedKill")
_ANSI = {"green": 32, "blue": 34, "yellow": 33, "red": 31}
_REDRAW_S, _LINE_S = 0.0625, 5.0  # four times a fast blink
_READ_S = 0.25
_HOME, _CLEAR, _REST = "\x1b[H", "\x1b[2J", "\x1b[J"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
Values = Mapping[str, float]


def number(values: Values, name: str, form: str, unit: str = "") -> str:
    """A value with its unit, `--` when the appliance has none."""
    value = values[name]
    return "--" if value != value else f"{value:{form}} {unit}".rstrip()


def whole(values: Values, name: str) -> int:
    """A code or bit field; -1 when the appliance has none."""
    value = values[name]
    return -1 if value != value else int(value)


def bits(values: Values, name: str) -> int:
    """A bit field; 0 when the appliance has none (all ones)."""
    return 0 if values[name] == UNIMPLEMENTED["bitfield32"] else int(values[name])


def led_row(values: Values, now_ms: int, colour: bool = True) -> str:
    """`● RUN on   ○ CHARGE slow ...`: pattern names, lit as the real ones would be at this moment."""
    parts = []
    for point, name, tint in zip(_LEDS, leds.NAMES, leds.COLOURS, strict=True):
        code = whole(values, point)
        lit = leds.level(max(code, 0), now_ms)
        lamp = "●" if lit else "○"
        shown = f"\x1b[{_ANSI[tint]}m{lamp}\x1b[0m" if colour and lit else lamp
        parts.append(f"{shown} {name} {leds.pattern(code) if code >= 0 else '--':<4}")
    return "  ".join(parts).rstrip()


def faults(values: Values) -> list[str]:
    """One line a fault: active or latched, what happened and what to do."""
    standing, active = words.faults_in(values), words.faults_in(values, words.FAULT_ACTIVE)
    return [
        f"{'ACTIVE ' if active >> fault.bit & 1 else 'latched'} {words.fault(fault.bit)}"
        for fault in FAULTS
        if standing >> fault.bit & 1
    ]


def _limit(values: Values) -> str:
    if whole(values, "CmfState") in (State.DISCHARGE, State.GRID_SUPPORT):
        return (
            f"discharge limit {number(values, 'DisLimA', '.1f', 'A')} by {words.limit(whole(values, 'DisLimReason'))}"
        )
    return f"charge limit {number(values, 'ChaLimA', '.1f', 'A')} by {words.limit(whole(values, 'LimReason'))}"


def _guard(values: Values) -> str:
    if whole(values, "GuardArmed") == 1:
        return "armed"
    return f"NOT ARMED, last trip {words.name_of(GuardTrip, whole(values, 'GuardTrip'))}"


def _status_bits(values: Values) -> str:
    standing = bits(values, "StatusBits")
    return " ".join(bit.name for bit in StatusBit if standing >> bit & 1) or "none"


def line(values: Values) -> str:
    """The whole panel in one line, without the time."""
    names = [fault.split()[1].rstrip(":") for fault in faults(values)]
    return (
        f"{words.state(whole(values, 'CmfState'))}  SoC {number(values, 'Soc', '.1f', '%')}  "
        f"{number(values, 'RackA', '.1f', 'A')}  {_limit(values)}  "
        f"cells {number(values, 'CellVMin', '.3f')}..{number(values, 'CellVMax', '.3f', 'V')} "
        f"{number(values, 'CellTmpMin', '.1f')}..{number(values, 'CellTmpMax', '.1f', 'degC')}  "
        f"faults {' '.join(names) or 'none'}"
    )


def screen(values: Values, now_ms: int) -> str:
    """The whole panel, several lines."""
    soc = values["Soc"]
    filled = 0 if soc != soc else round(soc / 2.5)
    rows = [
        f"  {led_row(values, now_ms)}",
        "",
        f"  state      {words.state(whole(values, 'CmfState'))}",
        f"  SoC        {number(values, 'Soc', '.2f', '%'):<10} [{'#' * filled}{'.' * (40 - filled)}]",
        f"  current    {number(values, 'RackA', '.1f', 'A'):<12} demanded {number(values, 'SetA', '.1f', 'A')}"
        "   (- is charge)",
        f"  limit      {_limit(values)}",
        f"  voltage    BMS {number(values, 'RackV', '.1f', 'V')}   PCS {number(values, 'PcsV', '.1f', 'V')}   "
        f"difference {number(values, 'DvMv', '.3f', 'V')}",
        f"  cells      {number(values, 'CellVMin', '.3f')} .. {number(values, 'CellVMax', '.3f', 'V')}   "
        f"{number(values, 'CellTmpMin', '.1f')} .. {number(values, 'CellTmpMax', '.1f', 'degC')}",
        f"  contactors {words.contactors(max(whole(values, 'Feedback'), 0))}",
        f"  command    {number(values, 'CmdSeq', '.0f')}: {_answer(values)}",
        f"  guard      {_guard(values)}",
        f"  scan       {number(values, 'ScanCount', '.0f')} of {number(values, 'ScanPeriodUs', '.0f', 'us')}, missed "
        f"{number(values, 'ScanOverruns', '.0f')}, wake p50/p99 {number(values, 'ScanWakeP50us', '.0f')}/"
        f"{number(values, 'ScanWakeP99us', '.0f', 'us')}, work p50/p99 {number(values, 'ScanExecP50us', '.0f')}/"
        f"{number(values, 'ScanExecP99us', '.0f', 'us')}",
        f"  polls      BMS {number(values, 'BmsPolls', '.0f')} ({number(values, 'BmsPollUs', '.0f', 'us')}), "
        f"PCS {number(values, 'PcsPolls', '.0f')}",
        f"  status     {_status_bits(values)}",
        "",
        *(f"  {text}" for text in faults(values) or ["no faults"]),
    ]
    return "\n".join(rows)


def how_to_talk(host: str, port: int, bench_port: int | None = None) -> list[str]:
    """Command lines for another terminal."""
    tools = os.path.relpath(Path(sys.executable).parent)
    at, mbpoll = POINT["CmfState"].address, "mbpoll -m tcp -a 1 -0 -t 4 -1"
    lines = [
        f"{tools}/ems-tool --port {port} --status",
        f"{tools}/ems-control --port {port} --mode off        (or: --mode charge --ramp 0.5C --target 80% --watch)",
        f"{mbpoll} -p {port} -r {at} {host}        (CmfState; all registers: docs/modbus-map.csv)",
    ]
    if bench_port:
        lines.append(f"{mbpoll} -p {bench_port} -r 0 {host} 1        (press the kill-switch; docs/bench-map.csv)")
    return lines


def _answer(values: Values) -> str:
    why = whole(values, "AckWhy")
    return words.why(why) if why >= 0 else "no answer yet"


def _fitted(text: str, columns: int, rows: int) -> str:
    """Cut to the terminal, each line cleared behind its end; escape sequences are not counted."""
    lines = [_cut(row, columns) + "\x1b[K" for row in text.split("\n")[: max(rows - 1, 1)]]
    return _HOME + "\n".join(lines) + _REST


def _cut(row: str, columns: int) -> str:
    return row if "\x1b" in row else row[:columns]


def _changes(values: Values) -> tuple[int, ...]:
    names = ("CmfState", "LimReason", *words.FAULT_BITS, *words.FAULT_ACTIVE, "GuardArmed")
    return tuple(whole(values, name) for name in names)


class Panel:
    """Shows what `client` reads on `out`."""

    def __init__(self, client: PointClient, out: TextIO, live: bool, notes: list[str]) -> None:
        self._client, self._out, self._live, self._notes = client, out, live, notes
        self._shown: object = None
        self._next_line_s = 0.0
        self._next_read_s = 0.0
        self._values: Values | str = "connecting"

    def tick(self, now_s: float) -> None:
        """Reads when it is due and shows what there is. `now_s` is CLOCK_MONOTONIC."""
        if now_s >= self._next_read_s:
            self._next_read_s = now_s + _READ_S
            try:
                self._values = self._client.read(*NAMES)
            except PointError as error:
                self._values = str(error)
        if self._live:
            self._draw(now_s)
        else:
            self._say(now_s)

    def _draw(self, now_s: float) -> None:
        size = os.get_terminal_size(self._out.fileno())
        text = self._values if isinstance(self._values, str) else screen(self._values, int(now_s * 1000))
        notes = "\n".join(f"  {note}" for note in self._notes)
        shown = f"  EMS appliance {time.strftime('%H:%M:%S')}\n\n{text}\n\n  From another terminal:\n{notes}"
        self._out.write(_fitted(shown, size.columns, size.lines))
        self._out.flush()

    def _say(self, now_s: float) -> None:
        values = self._values
        key: object = values if isinstance(values, str) else _changes(values)
        if key == self._shown and now_s < self._next_line_s:
            return
        self._shown, self._next_line_s = key, now_s + _LINE_S
        print(
            time.strftime("%H:%M:%S"), values if isinstance(values, str) else line(values), file=self._out, flush=True
        )


def main() -> None:
    """Runs until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Front panel of the appliance, read over Modbus.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=502)
    parser.add_argument("--bench-port", type=int, help="also say how to talk to the bench")
    args = parser.parse_args()
    live = sys.stdout.isatty()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    if live:
        sys.stdout.write(_HIDE + _CLEAR)
    with PointClient(args.host, args.port, POINT) as client:
        panel = Panel(client, sys.stdout, live, how_to_talk(args.host, args.port, args.bench_port))
        while signal.sigtimedwait(signals, _REDRAW_S if live else _READ_S) is None:
            panel.tick(time.monotonic())
    if live:
        sys.stdout.write(_SHOW + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
