"""`ems-diag --explain CODE | --faults | --links | --freeze-frame [N] | --check-harmonics | --journal DIR`.

`--explain` and `--journal` need no appliance. Freeze-frames come over Modbus file records (FC20), see freeze_files.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from statemachine import leds
from statemachine.faults import FAULTS, REACTS, Fault, names
from statemachine.signals import GuardTrip, LimitReason, Mode, PcsState, StatusBit, Why

from . import cli, harmonics, words
from .freeze_files import DIRECTORY_FILE, LIVE_FILES
from .freeze_frame import ENTRY, FRAME, FRAMES_PER_FILE, KEPT, Entry, Field, Frame
from .historian import line_of
from .journal import Note, journal_directory, read
from .points import PointClient, Refusal
from .registers import POINT

PROG = "ems-diag"
_ENTRIES_A_READ = 5
_LISTING, _LAST, _NOW = "list", "last", "now"
_LOOP_MA, _DV_V = 0.16, 0.2
"""Ripple (rms) that is too much: 1 % of a loop's 16 mA; a tenth of the manual's 2.0 V for dV."""


class Unknown(Exception):
    """No fault is meant, or more than one; the text says which are near."""


def find(code: str) -> Fault:
    """The fault of a name (ERR_ may be left out, and so may the end), bit number or LED code. Raises Unknown."""
    wanted = re.sub(r"[\s-]+", "_", code.strip().upper()).removeprefix("ERR_")
    bit, pattern = int(wanted) if wanted.isdecimal() else -1, _led(code.strip().lower())
    hits = [f for f in FAULTS if f.name == f"ERR_{wanted}" or f.bit == bit or leds.pattern(f.led) == pattern] or [
        f for f in FAULTS if wanted and f.name.startswith(f"ERR_{wanted}")
    ]
    if len(hits) == 1:
        return hits[0]
    raise Unknown(f"no fault {code!r}; " + (_several(hits) if hits else _near(wanted)))


def _led(code: str) -> str:
    if re.fullmatch(r"0x[0-9a-f]{1,2}", code):
        return leds.pattern(int(code, 16))
    return code


def _several(hits: list[Fault]) -> str:
    return "more than one begins so: " + ", ".join(fault.name for fault in hits)


def _near(wanted: str) -> str:
    plain = [fault.name.removeprefix("ERR_") for fault in FAULTS]
    close = [name for name in plain if wanted and wanted in name] or difflib.get_close_matches(wanted, plain, 4, 0.5)
    if close:
        return "near: " + ", ".join(f"ERR_{name}" for name in close[:4])
    return f"give a name as in battery.log, a bit 0 to {FAULTS[-1].bit}, or the FAULT LED's code such as 2-4"


def explanation(fault: Fault) -> str:
    """Everything the catalogue says, one line a property."""
    bits, active = (registers[fault.bit // 32] for registers in (words.FAULT_BITS, words.FAULT_ACTIVE))
    stands = f"when it stands for {fault.confirm_ms} ms" if fault.confirm_ms else "at once, in the scan that sees it"
    rows = {
        "severity": fault.severity.name.lower(),
        "look first": fault.source,
        "FAULT LED": leds.pattern(fault.led),
        "confirmed": stands,
        "reaction": REACTS[fault.severity],
        "clears": fault.clears,
        "to do": fault.text,
        "register": f"bit {fault.bit % 32} of {bits} ({POINT[bits].address}) and {active} ({POINT[active].address}); "
        f"fault {fault.bit}",
    }
    return "\n".join([fault.name, *(f"  {name:11} {text}" for name, text in rows.items())])


def explain(code: str) -> int:
    """Prints one fault; 2 when `code` is none."""
    try:
        print(explanation(find(code)))
    except Unknown as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    return 0


def faults(client: PointClient) -> int:
    """Prints what is active or latched now, with its explanation."""
    seen = client.read("CmfState", *words.FAULT_BITS, *words.FAULT_ACTIVE)
    if math.isnan(seen["CmfState"]):
        raise cli.Failed("the controller does not answer; check that ems-controller runs")
    shown, active = words.faults_in(seen), words.faults_in(seen, words.FAULT_ACTIVE)
    found = [fault for fault in leds.PRIORITY if shown >> fault.bit & 1]
    for fault in found:
        print("ACTIVE " if active >> fault.bit & 1 else "latched, its cause is gone: ", end="")
        print(explanation(fault))
    if not found:
        print("no faults")
    return 0


def links(client: PointClient) -> int:
    """Prints what became of the requests to BMS and PCS since the aggregator's start; 1 while one of them is stale."""
    stale = 0
    status = int(client.read("StatusBits")["StatusBits"])
    for name, bit in (("Bms", StatusBit.BMS_STALE), ("Pcs", StatusBit.PCS_STALE)):
        wanted = [name + what for what in ("Polls", "PollUs", "Timeouts", "Errors", "CrcErrors")]
        seen = client.read(*wanted)
        if math.isnan(seen[f"{name}Polls"]):
            raise cli.Failed("the aggregator does not answer; check that ems-aggregator runs")
        polls, poll_us, timeouts, errors, crc = (int(seen[point]) for point in wanted)
        gone = status >> bit & 1
        stale |= gone
        print(
            f"{name.upper()}  {'STALE' if gone else 'fresh'}  {polls} polls, the last took {poll_us / 1000:.1f} ms; "
            f"without a good answer: {timeouts} time-outs, {errors} wrong or refused, {crc} with a wrong CRC"
        )
    return stale


def _entries(client: PointClient) -> list[Entry]:
    """The directory, newest first. One that moves on while it is read shows an entry twice, and loses none."""
    found: dict[int, Entry] = {}
    for first in range(0, KEPT, _ENTRIES_A_READ):
        count = min(_ENTRIES_A_READ, KEPT - first)
        data = client.read_file(DIRECTORY_FILE, first * ENTRY.registers, count * ENTRY.registers)
        for at in range(0, len(data), ENTRY.size):
            entry = ENTRY.unpack(data[at : at + ENTRY.size])
            found[entry.number] = entry
    return [entry for number, entry in found.items() if number]


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _list(client: PointClient) -> int:
    entries = _entries(client)
    for e in entries:
        first = " ".join(names(e.first_faults))
        print(f"{e.number:6}  {_time(e.wall_ms * 1_000_000)}  {e.frames:4} scans of {e.period_us / 1000:g} ms  {first}")
    if not entries:
        print("no freeze-frame is kept: nothing tripped yet")
    return 0


def _kept_frames(client: PointClient, entry: Entry) -> list[Frame]:
    if entry.layout != FRAME.layout:
        raise cli.Failed(f"freeze-frame {entry.number} was written by another version; read it with that {PROG}")
    return [
        _frame(client, entry.first_file + n // entry.frames_per_file, n % entry.frames_per_file)
        for n in range(entry.frames)
    ]


def _frame(client: PointClient, file: int, position: int) -> Frame:
    return FRAME.unpack(client.read_file(file, position * FRAME.registers, FRAME.registers))


def live_frames(client: PointClient, most: int = len(LIVE_FILES) * FRAMES_PER_FILE) -> list[Frame]:
    """The last scans as they are now, oldest first."""
    found: list[Frame] = []
    try:
        found.extend(_frame(client, LIVE_FILES[n // FRAMES_PER_FILE], n % FRAMES_PER_FILE) for n in range(most))
    except Refusal as refusal:
        if refusal.code != 2:
            raise
    if not found:
        raise cli.Failed("no scans to read; check that ems-controller runs")
    return found


_WORDS: dict[str, Callable[[int], str]] = {
    "state": words.state,
    "mode": partial(words.name_of, Mode),
    "permit": partial(words.name_of, Why),
    "guard_trip": partial(words.name_of, GuardTrip),
    "charge_reason": partial(words.name_of, LimitReason),
    "discharge_reason": partial(words.name_of, LimitReason),
    "pcs_state": partial(words.name_of, PcsState),
    "wall_ns": _time,
    "faults_active": lambda bits: " ".join(names(bits)),
    "faults_latched": lambda bits: " ".join(names(bits)),
}


def _cell(field: Field, value: float) -> str:
    if not field.known(value):
        return ""
    if field.type == "float32":
        return f"{value:.7g}"
    return _WORDS.get(field.name, str)(int(value))


def csv(frames: Sequence[Frame], zero_ns: int) -> str:
    """A header and one row a scan; `t_s` counts from `zero_ns`. What is not known is empty."""
    rows = [",".join(["t_s", *(field.name for field in FRAME.fields)])]
    for frame in frames:
        cells = (_cell(field, value) for field, value in zip(FRAME.fields, frame, strict=True))
        rows.append(",".join([f"{(frame.monotonic_ns - zero_ns) / 1e9:.4f}", *cells]))
    return "\n".join(rows) + "\n"


def _wanted(text: str) -> str:
    if text not in (_LISTING, _LAST, _NOW) and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed a number from the list, {_LAST} or {_NOW}")
    return text


def freeze_frame(which: str, output: Path | None, client: PointClient) -> int:
    """Lists what is kept, or writes one freeze-frame as CSV."""
    if which == _LISTING:
        return _list(client)
    if which == _NOW:
        live = live_frames(client)
        return _write(csv(live, live[-1].monotonic_ns), output, f"the last {len(live)} scans")
    entries = _entries(client)
    entry = next((e for e in entries if which in (_LAST, str(e.number))), None)
    if entry is None:
        held = ", ".join(str(e.number) for e in entries) or "none"
        raise cli.Failed(f"no freeze-frame {which}; kept: {held}")
    frames = _kept_frames(client, entry)
    said = f"freeze-frame {entry.number}, {len(frames)} scans, first {' '.join(names(entry.first_faults))}"
    return _write(csv(frames, frames[entry.trip_at].monotonic_ns), output, said)


def journal(directory: Path) -> int:
    """Prints a journal as battery.log has it; 1 when a part of it is damaged or missing."""
    records, flaws = 0, list[str]()
    try:
        for entry in read(directory):
            _out(line_of(entry.process, entry.event, entry.trusted))
            if entry.note in (Note.DAMAGED, Note.MISSING):
                flaws.append(entry.event.text)
            records += entry.note not in (Note.DAMAGED, Note.MISSING, Note.DROPPED)
    except OSError as error:
        flaws.append(f"{error.filename or directory}: {error.strerror}")
    if not records and not flaws:
        flaws.append(f"no journal in {directory}; on the appliance it is {journal_directory()}")
    print(f"{PROG}: {'; '.join(flaws) or f'{records} records, all whole and none missing'}", file=sys.stderr)
    return 1 if flaws else 0


def _write(text: str, output: Path | None, said: str) -> int:
    if output is None:
        _out(text)
        return 0
    try:
        output.write_text(text)
    except OSError as error:
        raise cli.Failed(f"{output}: {error.strerror}") from error
    print(f"{said}: written to {output}")
    return 0


def _out(text: str) -> None:
    """To standard output. A reader who has seen enough ends the tool without a word."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(0)


def check_harmonics(client: PointClient) -> int:
    """Prints the ripple of the loop currents and of dV as the last scans saw them; 1 when one has too much."""
    frames = live_frames(client)
    period_s = frames[-1].period_us / 1e6
    print(f"{len(frames)} scans of {period_s * 1000:g} ms; hold the current steady meanwhile")
    wrong = [line for name, most in _limits().items() if (line := _ripple(name, most, frames, period_s))]
    if wrong:
        raise cli.Failed("ripple on " + ", ".join(wrong) + "; check shielding, earthing and the way past the inverter")
    print(
        "no ripple above the limits in what these rates can show; faster noise needs an oscilloscope at the terminals"
    )
    return 0


def _limits() -> dict[str, float]:
    return {**{f"loop_{n}_ma": _LOOP_MA for n in range(1, 9)}, "dv_v": _DV_V}


def _ripple(name: str, most: float, frames: Sequence[Frame], period_s: float) -> str:
    """Prints one signal; its name when it has more ripple than `most`."""
    samples = [float(getattr(frame, name)) for frame in frames]
    if len(samples) < 8 or not all(math.isfinite(x) for x in samples):
        print(f"{name:10} not measured")
        return ""
    r = harmonics.ripple(samples, period_s)
    if not r.rate_hz:
        print(f"{name:10} mean {r.mean:8.3f}, no change")
        return ""
    folded = ", ".join(f"{hz:g} Hz at {harmonics.seen_at(hz, r.rate_hz):.1f}" for hz in harmonics.MAINS_HZ)
    print(
        f"{name:10} mean {r.mean:8.3f}, ripple {r.rms:.4f} rms, {r.peak_to_peak:.4f} peak to peak, most at "
        f"{r.strongest_hz:.2f} Hz; {r.rate_hz:.0f} values/s: seen up to {r.rate_hz / 2:.0f} Hz, {folded}"
    )
    return name if r.rms > most else ""


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(PROG, "Explains faults and reads what was recorded about them.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--explain", metavar="CODE", help="a fault by name, bit or LED code; needs no appliance")
    task.add_argument("--faults", action="store_true", help="what is active or latched now, explained")
    task.add_argument(
        "--freeze-frame", metavar="N", nargs="?", const=_LISTING, type=_wanted,
        help=f"list what is kept; with a number or '{_LAST}' that one as CSV, with '{_NOW}' the last scans",
    )  # fmt: skip
    task.add_argument("--journal", type=Path, metavar="DIR", help="verify and print a journal; needs no appliance")
    task.add_argument("--links", action="store_true", help="requests to BMS and PCS: polls, time-outs, errors, CRC")
    task.add_argument("--check-harmonics", action="store_true", help="AC noise on the thermal loops and on dV")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the CSV goes (default: standard output)")
    return parser


def _action(args: argparse.Namespace) -> Callable[[PointClient], int]:
    if args.freeze_frame:
        return partial(freeze_frame, args.freeze_frame, args.output)
    if args.links:
        return links
    return check_harmonics if args.check_harmonics else faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(cli.arguments(argv))
    if args.output and args.freeze_frame in (None, _LISTING):
        parser.error(f"--output goes with --freeze-frame and a number, '{_LAST}' or '{_NOW}'")
    if args.explain is not None:
        return explain(args.explain)
    return journal(args.journal) if args.journal else cli.run(PROG, args, _action(args))


if __name__ == "__main__":
    sys.exit(main())
