"""`ems-tool --status | --verify-interlocks | --commission | --lock-telemetry | ...`: for a person at the rack."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from drivers.modbus.point import to_csv
from statemachine.signals import GuardTrip, InterlockBit, Mode, StatusBit

from . import board_check, cli, commission_guide, lock_telemetry, words
from .models.string_units import excerpt
from .points import PointClient
from .registers import POINT
from .tags import tags

PROG = "ems-tool"
_SETTLE_S = 0.5
_ACK_S = 2.0
_RECORD_S = 10.0  # the record is on the disk before it is answered
_POLL_S = 0.05
_CELLS = next(row.point for row in excerpt(1, 1) if row.point.name == "804.ModNCell")
"""On the first string unit; its address is that of every rack."""


class Check(NamedTuple):
    """One input or feedback. `expected` is None where either is right."""

    name: str
    expected: str | None
    seen: str

    @property
    def wrong(self) -> bool:
        return self.expected is not None and self.seen != self.expected


def checks(bits: int, coils: int, required: int) -> Iterator[Check]:
    """Every input against what it must be, every contactor feedback against its coil."""
    must = required | 1 << InterlockBit.KILL_OK | 1 << InterlockBit.TAMPER_OK | 1 << InterlockBit.INSULATION_OK
    for bit, (name, low, high) in words.INPUT.items():
        if bit is InterlockBit.GUARD_ARMED:
            continue
        expected = high if must >> bit & 1 else low if bit is InterlockBit.RESET_PRESSED else None
        if name.startswith("contactor"):
            expected = high if coils >> bit - InterlockBit.FEEDBACK_NEG & 1 else low
        yield Check(name, expected, high if bits >> bit & 1 else low)


def _read(client: PointClient, *names: str) -> dict[str, float]:
    """Raises Failed when the controller does not publish."""
    seen = client.read("CmfState", *names)
    if math.isnan(seen["CmfState"]):
        raise cli.Failed("the controller does not answer; check that ems-controller runs")
    return seen


def verify_interlocks(client: PointClient) -> int:
    """Prints every input and feedback; 1 when one is wrong and stays so while a contactor could move."""
    end = time.monotonic() + _SETTLE_S
    while True:
        seen = _read(client, "Interlocks", "Coils", "IntlkReq")
        required = 0xFF if math.isnan(seen["IntlkReq"]) else int(seen["IntlkReq"])
        found = list(checks(int(seen["Interlocks"]), int(seen["Coils"]), required))
        wrong = [check for check in found if check.wrong]
        if not wrong or time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    for check in found:
        verdict = "WRONG" if check.wrong else "ok"
        print(f"{check.name:22} expected {check.expected or 'any':9} seen {check.seen:9} {verdict}")
    if not wrong:
        return 0
    raise cli.Failed("; ".join(f"{check.name} is {check.seen}, expected {check.expected}" for check in wrong))


def _faults(values: Mapping[str, float]) -> list[str]:
    bits = words.faults_in(values)
    return [words.fault(bit) for bit in range(bits.bit_length()) if bits >> bit & 1]


def ack_faults(client: PointClient) -> int:
    """Acknowledges, and waits until the faults are gone; 1 with what remains."""
    if not _faults(_read(client, *words.FAULT_BITS)):
        print("no faults")
        return 0
    cli.write(client, {"AckFaults": 1})
    end = time.monotonic() + _ACK_S
    left = _faults(_read(client, *words.FAULT_BITS))
    while left and time.monotonic() < end:
        time.sleep(_POLL_S)
        left = _faults(_read(client, *words.FAULT_BITS))
    if left:
        raise cli.Failed("still there: " + " ".join(left))
    print("faults acknowledged")
    return 0


def _number(value: float, digits: int, unit: str) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f} {unit}"


def status(client: PointClient) -> int:
    """Prints state, command, limits, cells, faults, scan and links."""
    names = (
        "CmdMode", "CmdSeq", "AckSeq", "Epoch", "Interlocks", "Soc", "SoH", "RackV", "RackA", "PcsV", "SetA",
        "ChaLimA", "DisLimA", "LimReason", "DisLimReason", "CellVMin", "CellVMax", "CellTmpMin", "CellTmpMax",
        *words.FAULT_BITS, "Coils", "Feedback", "GuardArmed", "GuardTrip", "Permit", "ScanCount", "ScanOverruns",
        "ScanWakeP99us", "StatusBits", "BmsPolls", "BmsTimeouts", "PcsPolls", "PcsTimeouts",
    )  # fmt: skip
    v = _read(client, *names)
    armed = "armed" if v["GuardArmed"] == 1 else "not armed, last trip " + _guard_trip(v["GuardTrip"])
    bits = [bit.name for bit in StatusBit if int(v["StatusBits"]) >> bit & 1]
    lines = {
        "state": words.state(int(v["CmfState"])),
        "command": f"{words.name_of(Mode, int(v['CmdMode'])).lower()}, number {v['CmdSeq']:.0f}, "
        f"answered {v['AckSeq']:.0f}",
        "control": _control(int(v["Interlocks"]), int(v["Epoch"])),
        "closing": words.why(int(v["Permit"])) if v["Permit"] else "permitted",
        "battery": f"SoC {_number(v['Soc'], 1, '%')}, SoH {_number(v['SoH'], 0, '%')}, "
        f"{_number(v['RackV'], 1, 'V')}, {_number(v['RackA'], 1, 'A')} (- is charge)",
        "PCS": f"{_number(v['PcsV'], 1, 'V')}, demanded {_number(v['SetA'], 1, 'A')}",
        "charge limit": f"{_number(v['ChaLimA'], 1, 'A')} by {words.limit(int(v['LimReason']))}",
        "discharge limit": f"{_number(v['DisLimA'], 1, 'A')} by {words.limit(int(v['DisLimReason']))}",
        "cells": f"{_number(v['CellVMin'], 3, 'V')} to {_number(v['CellVMax'], 3, 'V')}, "
        f"{_number(v['CellTmpMin'], 1, 'degC')} to {_number(v['CellTmpMax'], 1, 'degC')}",
        "contactors": words.contactors(int(v["Feedback"])),
        "guard": armed,
        "scan": f"{v['ScanCount']:.0f} scans, {v['ScanOverruns']:.0f} missed, wake p99 {v['ScanWakeP99us']:.0f} us",
        "links": f"BMS {v['BmsPolls']:.0f} polls, {v['BmsTimeouts']:.0f} timeouts; "
        f"PCS {v['PcsPolls']:.0f} polls, {v['PcsTimeouts']:.0f} timeouts",
        "status bits": " ".join(bits) or "none",
        "faults": "\n                 ".join(_faults(v)) or "none",
    }
    for name, text in lines.items():
        print(f"{name:16} {text}")
    return 0


def print_tags(client: PointClient) -> int:
    """The register map of this very appliance as CSV, every string, module and cell by name."""
    seen = client.read("NStr", "string1.StrNMod") | client.read(_CELLS.name)
    print(to_csv(tags(int(seen["NStr"]), int(seen["string1.StrNMod"]), int(seen[_CELLS.name]))), end="")
    return 0


def _control(interlocks: int, epoch: int) -> str:
    if interlocks >> InterlockBit.KEY_LOCAL & 1:
        return "local, by the key switch"
    return "remote" + (f", redundant masters, epoch {epoch}" if epoch else "")


def _guard_trip(number: float) -> str:
    return "unknown" if math.isnan(number) else words.name_of(GuardTrip, int(number))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser(PROG, "Shows and verifies the appliance.")
    task = parser.add_mutually_exclusive_group(required=True)
    for option, action, help_text in (
        ("--status", status, "state, limits, faults"),
        ("--verify-interlocks", verify_interlocks, "each input and feedback, expected and seen"),
        ("--ack-faults", ack_faults, "acknowledge latched faults whose cause is gone"),
        ("--tags", print_tags, "the register map as CSV with every string, module and cell of this appliance"),
    ):
        task.add_argument(option, dest="action", action="store_const", const=action, help=help_text)
    for option, recorder, help_text in (
        ("--commission", commission_guide.commission, "lead through the interlock checks and record them, signed"),
        ("--commission-record", commission_guide.fetch_record, "fetch the signed record once more"),
    ):
        task.add_argument(option, dest="recorder", action="store_const", const=recorder, help=help_text)
    task.add_argument("--verify-record", type=Path, metavar="FILE", help="verify a commissioning record, offline")
    task.add_argument("--lock-telemetry", action="store_true", help="on the appliance: firewall for allowed_clients")
    task.add_argument("--board-check", action="store_true", help="verify a board file against this machine")
    parser.add_argument("--board", help="name or .toml path for --board-check (default $EMS_BOARD, else bench)")
    parser.add_argument("--record", type=Path, default=Path("commissioned.json"), metavar="FILE",
                        help="where the record is saved (default %(default)s)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="with --lock-telemetry: print the rules, load nothing")
    args = parser.parse_args(cli.arguments(argv))
    if args.board_check:
        return board_check.run(PROG, args.board)
    if args.verify_record:
        return cli.told(PROG, lambda: commission_guide.verify_record(args.verify_record))
    if args.lock_telemetry:
        return cli.told(PROG, lambda: lock_telemetry.lock(args.dry_run))
    if args.recorder:
        return cli.run(PROG, args, lambda client: args.recorder(client, args.record), timeout_s=_RECORD_S)
    return cli.run(PROG, args, args.action, {**POINT, _CELLS.name: _CELLS})


if __name__ == "__main__":
    sys.exit(main())
