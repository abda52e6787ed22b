"""`ems-control --mode charge --ramp 0.5C --target 80%`: one command to the appliance, acknowledged."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial

from statemachine.signals import Mode, Result
from statemachine.states import CHARGING, OPEN, State

from . import cli, words
from .points import PointClient
from .registers import MAX_W

PROG = "ems-control"
_ANSWER_S = 5.0
_POLL_S = 0.05
_BAR = 30
_RATE_OVER_S = 60.0


def _quantity(text: str, suffixes: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text.strip().rstrip(suffixes))
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{what} {text!r}: allowed {low:g}{suffixes[0]} to {high:g}{suffixes[0]}")
    return value


def rate(text: str) -> float:
    """`0.5C` -> 0.5."""
    return _quantity(text, "Cc", 0, 2, "rate")


def percent(text: str) -> float:
    """`80%` -> 80."""
    return _quantity(text, "%", 0, 100, "target")


def watts(text: str) -> float:
    """`-250000` or `-250000W` -> -250000."""
    return _quantity(text, "Ww", -MAX_W, MAX_W, "power")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(PROG, "Commands the appliance and waits for its answer.")
    parser.add_argument("--mode", required=True, choices=[mode.name.lower() for mode in Mode])
    parser.add_argument("--ramp", type=rate, metavar="C-RATE", help="charge or discharge rate, such as 0.5C")
    parser.add_argument("--target", type=percent, metavar="SOC", help="state of charge to end at, such as 80%%")
    parser.add_argument("--power", type=watts, metavar="W", help="power in mode grid; - is charge")
    parser.add_argument("--watch", action="store_true", help="show the progress to the target")
    args = parser.parse_args(cli.arguments(argv))
    if args.mode == "grid" and args.power is None:
        parser.error("mode grid needs --power W (+ is discharge, - is charge)")
    if args.watch and args.mode not in ("charge", "discharge"):
        parser.error("--watch goes with mode charge or discharge")
    return args


def command(client: PointClient, args: argparse.Namespace) -> None:
    """One FC16 with the next CmdSeq; returns when the controller accepted it. Raises Failed when it did not."""
    now = client.read("CmdSeq", "CmdW", "CmdRamp", "CmdTgtSoC", "WSetEna")
    if args.mode == "grid" and now["WSetEna"]:
        raise cli.Failed("WSetEna is 1: the set-point of model 704 is in force, not --power; write WSetEna 0 first")
    seq = (now["CmdSeq"] + 1) % 0xFFFFFFFF
    given = {"CmdW": args.power, "CmdRamp": args.ramp, "CmdTgtSoC": args.target}
    settings = {name: now[name] if value is None else value for name, value in given.items()}
    cli.write(client, {"CmdSeq": seq, "CmdMode": Mode[args.mode.upper()], **settings})
    end = time.monotonic() + _ANSWER_S
    while time.monotonic() < end:
        answer = client.read("AckSeq", "AckResult", "AckWhy")
        if answer["AckSeq"] == seq and answer["AckResult"] == Result.REJECTED:
            raise cli.Failed(f"mode {args.mode} rejected: {words.why(int(answer['AckWhy']))}")
        if answer["AckSeq"] == seq and answer["AckResult"] == Result.ACCEPTED:
            print(f"mode {args.mode} accepted, command {seq:.0f}")
            return
        time.sleep(_POLL_S)
    raise cli.Failed(f"no answer to command {seq:.0f} within {_ANSWER_S:g} s; is the controller running?")


def remaining_s(history: Sequence[tuple[float, float]], target: float) -> float:
    """Time to `target` at the pace of (time s, SoC) `history`; nan while nothing moves."""
    (first_s, first), (last_s, last) = history[0], history[-1]
    pace = (last - first) / (last_s - first_s) if last_s > first_s else 0.0
    left = (target - last) / pace if pace else math.nan
    return left if left >= 0 else math.nan


def bar(start: float, soc: float, target: float) -> str:
    """`[#####.....]`: the way from `start` to `target`."""
    way = target - start
    share = min(1.0, max(0.0, (soc - start) / way)) if way else 1.0
    return "[" + "#" * round(share * _BAR) + "." * (_BAR - round(share * _BAR)) + "]"


def _left(seconds: float) -> str:
    if math.isnan(seconds):
        return "--:--"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"


def _ended(mode: str, state: int, fault_bits: int) -> bool:
    """The watched cycle is over. Raises Failed when it ended otherwise than at its target."""
    if state in (State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT):
        faults = " ".join(words.fault(bit) for bit in range(32) if fault_bits >> bit & 1)
        raise cli.Failed(f"{State(state).name}: {faults}")
    if mode == "charge":
        return state == State.CHARGED
    return state in OPEN or state in (State.READY, State.STOPPING)


def watch(client: PointClient, mode: str) -> int:
    """Shows the way to the target until it is reached."""
    history: list[tuple[float, float]] = []
    moved, start = False, math.nan
    end, live = ("", "\r") if sys.stdout.isatty() else ("\n", "")
    while True:
        seen = client.read(
            "CmfState", "Soc", "RackA", "LimReason", "DisLimReason", "CmdTgtSoC", "CmdMode", *words.FAULT_BITS
        )
        if math.isnan(seen["CmfState"]) or math.isnan(seen["Soc"]):
            raise cli.Failed("the appliance shows no state or no SoC; run ems-tool --status")
        state, soc, target = int(seen["CmfState"]), seen["Soc"], seen["CmdTgtSoC"]
        start = soc if math.isnan(start) else start
        history = [*(point for point in history if point[0] > time.monotonic() - _RATE_OVER_S), (time.monotonic(), soc)]
        reason = words.limit(int(seen["LimReason" if mode == "charge" else "DisLimReason"]))
        print(
            f"{live}{bar(start, soc, target)} {soc:5.1f} % of {target:g} %  {_left(remaining_s(history, target))}  "
            f"{seen['RackA']:.0f} A  {words.state(state)}, limited by {reason}   ",
            end=end,
            flush=True,
        )
        moved = moved or state in CHARGING or state == State.DISCHARGE
        done = _ended(mode, state, words.faults_in(seen))
        if done and (moved or state == State.CHARGED):
            print(f"\ndone at {soc:.1f} %" if live else f"done at {soc:.1f} %")
            return 0
        if seen["CmdMode"] != Mode[mode.upper()]:
            raise cli.Failed(f"another command took over: mode {words.name_of(Mode, int(seen['CmdMode'])).lower()}")
        time.sleep(1.0)


def _act(args: argparse.Namespace, client: PointClient) -> int:
    command(client, args)
    return watch(client, args.mode) if args.watch else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    return cli.run(PROG, args, partial(_act, args))


if __name__ == "__main__":
    sys.exit(main())
