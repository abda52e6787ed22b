"""What the appliance writes to its disk in a day, from a while of each. One boot with adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .faults import charging, commissioned, isolated, recover, settled, to_isolated
from .plant import Booted, Row, rows
from .updates import LENIENT

MOST_MB, WINDOW_S = 50.0, 240.0
_DAY_S, _SECTOR = 86_400.0, 512


def _written(a: Booted) -> int:
    """Sectors of the whole disk since the boot, counted by the kernel; what still waits is written out before."""
    a.vm.out("sync")
    return int(a.vm.out("awk '{print $7}' /sys/class/block/vda/stat"))


def _wear(name: str, begin: Callable[[Booted], object], end: Callable[[Booted], object]) -> Callable[[Booted], Row]:
    def check(a: Booted) -> Row:
        begin(a)
        before, start = _written(a), time.monotonic()
        time.sleep(WINDOW_S)  # the window itself is what is measured
        sectors, window_s = _written(a) - before, time.monotonic() - start
        end(a)
        mb = sectors * _SECTOR / 1e6
        seen = f"{mb * _DAY_S / window_s:.1f} MB a day, from {mb:.3f} MB in {window_s:.0f} s"
        return Row(f"at most {MOST_MB:g} MB a day are written, {name}", mb * _DAY_S / window_s <= MOST_MB, seen)

    check.__name__ = name
    return check


CHECKS = (
    isolated,
    commissioned,
    _wear("ISOLATED", lambda a: None, lambda a: None),
    _wear("charging", charging, to_isolated),
)


def wear(disk: Path, work: Path) -> Iterator[Row]:
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, CHECKS, recover)
