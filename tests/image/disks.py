"""What is done to the disk while the machine is off, and what the next boot makes of it. No adapter is plugged in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .plant import Row, await_modbus, made, rack, seed
from .vm import MIB, Vm, call

CUTS_S = (5.0, 20.0, 45.0)
"""After power-on; how far the boot is by then depends on the machine."""


def partitions(disk: Path) -> dict[str, int]:
    """Name -> byte offset."""
    found = json.loads(call("sfdisk", "-J", disk))["partitiontable"]["partitions"]
    return {part["name"]: 512 * part["start"] for part in found}


def no_data(vm: Vm, disk: Path) -> Row:
    """Every superblock of ext4 is gone, the spare ones too: nothing to mount and nothing to repair."""
    vm.fill(partitions(disk)["data"], 200 * MIB)
    vm.start()
    took_s = await_modbus(vm)
    vm.await_agent()
    mounted = vm.out("findmnt -no FSTYPE /data; findmnt -no FSTYPE /var; findmnt -no FSTYPE /etc/ems").split()
    told = vm.out("grep -c 'data partition cannot be mounted' /var/log/ems/battery.log")
    ok = set(mounted) == {"tmpfs"} and told == "1"
    return Row(
        "data cannot be mounted: memory instead, told in battery.log", ok, f"{mounted}, answers after {took_s:.0f} s"
    )


def power_cuts(vm: Vm, disk: Path) -> Row:
    """The plug is pulled three times during the boot; the fourth finds everything as it was."""
    for after_s in CUTS_S:
        vm.start()
        time.sleep(after_s)  # the time itself is what is tested
        vm.cut_power()
    vm.start()
    took_s = await_modbus(vm)
    vm.await_agent()
    kept = vm.out("findmnt -no FSTYPE /data; grep -c bms_port /etc/ems/site.conf").split()
    return Row(
        "three power cuts during the boot cost nothing", kept[0] == "ext4", f"answers after {took_s:.0f} s, {kept}"
    )


CHECKS: tuple[Callable[[Vm, Path], Row], ...] = (power_cuts, no_data)


def disks(disk: Path, work: Path) -> Iterator[Row]:
    yield from machines(disk, work, CHECKS)


def machines(disk: Path, work: Path, checks: Sequence[Callable[[Vm, Path], Row]]) -> Iterator[Row]:
    """A machine of its own for each check; its row and how long it took."""
    for check in checks:
        start = time.monotonic()
        with rack(work) as bench, Vm(disk, work / "vm", seed(work / "seed", bench)) as vm:
            row = made(check.__name__, partial(check, vm, disk))
        yield row._replace(seen=f"{row.seen} ({time.monotonic() - start:.0f} s)")
