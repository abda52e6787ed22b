"""`python -m tests.image`: boots what `make image` has built and prints what it shows; exit 1: a promise failed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firmware.points import PointError

from .cuts import cuts
from .disks import disks
from .faults import faults
from .installer import installer
from .plant import Row
from .pull import pull
from .slots import slots
from .smoke import smoke
from .tamper import tamper
from .trouble import trouble
from .updates import updates
from .vm import VmError, accelerated
from .wall import wall
from .wear import wear

MADE: dict[str, Callable[[Path, Path], Iterator[Row]]] = {
    "smoke": smoke, "disks": disks, "slots": slots, "faults": faults, "updates": updates, "pull": pull,
    "trouble": trouble, "wear": wear, "wall": wall, "cuts": cuts, "tamper": tamper, "installer": installer,
}  # fmt: skip
PARTS = tuple(MADE)


def table(rows: list[Row]) -> str:
    lines = ["| promise | | observed |", "|---|---|---|"]
    lines += [f"| {row.promise} | {'ok' if row.ok else 'FAILED'} | {row.seen.replace('|', '/')} |" for row in rows]
    return "\n".join(lines)


def console(work: Path) -> str:
    """The end of what the machine said."""
    path = work / "serial.log"
    return path.read_text(errors="replace")[-2000:] if path.exists() else ""


def part_of(part: str, disk: Path, work: Path) -> Iterator[Row]:
    """Its rows; what keeps it from going on is one more, which failed."""
    try:
        yield from MADE[part](disk, work)
    except (AssertionError, VmError, PointError, OSError) as error:
        print(console(work / "vm"), file=sys.stderr)
        yield Row(f"{part} is made to its end", False, f"{type(error).__name__}: {error}"[:900])


def main() -> int:
    parser = argparse.ArgumentParser(description="The appliance image in a virtual machine.")
    parser.add_argument("--disk", type=Path, default=Path("build/image/disk.img"))
    parser.add_argument("--work", type=Path, help="test, beside the disk")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which of them; without: smoke")
    parser.add_argument("--all", action="store_true", help="all of them")
    args = parser.parse_args()
    work = args.work or args.disk.parent / "test"
    if not args.disk.exists():
        print(f"test-image: {args.disk} does not exist; make image, with the same ARCH, builds it", file=sys.stderr)
        return 2
    print(
        f"booting {args.disk}, {'accelerated' if accelerated() else 'without acceleration: this takes minutes'}",
        flush=True,
    )
    start, rows = time.monotonic(), list[Row]()
    for part in PARTS if args.all else args.parts or PARTS[:1]:
        print(f"{part}:", flush=True)
        for row in part_of(part, args.disk, work / part):
            print(f"  {'ok    ' if row.ok else 'FAILED'} {row.promise}: {row.seen}", flush=True)
            rows.append(row)
    (work / "table.md").write_text(table(rows) + "\n")
    failed = sum(not row.ok for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed, {time.monotonic() - start:.0f} s; {work / 'table.md'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
