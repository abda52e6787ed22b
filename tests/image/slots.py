"""What the boot loader makes of rotten slots, power cuts and a lost environment. No adapter is plugged in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path

from firmware.points import PointClient, PointError
from firmware.registers import POINT
from firmware.update_codes import UpdateResult

from .disks import machines, partitions
from .plant import Row, await_modbus, awaited
from .vm import ESP_AT_MIB, ESP_MIB, MIB, PANIC, Vm, call

GRUBENV = "::EFI/ems/grubenv"
BOOT_LOADER, KERNEL = "Welcome to GRUB!", "Loading, please wait..."
"""What the console says when they begin."""
SHORT_CUTS, LONGEST_S = 20, 1.0
EVERY, ROT = 3 * MIB, 4096
"""Rot has this many bytes in every so many."""


def _environment(vm: Vm, change: Callable[[Path], object]) -> None:
    """GRUB's environment is changed in a copy and put back."""
    esp, env = vm.read_esp(), vm.work / "grubenv"
    call("mcopy", "-n", "-o", "-i", esp, GRUBENV, env)
    change(env)
    call("mcopy", "-D", "o", "-i", esp, env, GRUBENV)
    call("qemu-io", "-f", "qcow2", "-c", f"write -q -s {esp} {ESP_AT_MIB}M {ESP_MIB}M", vm.overlay)


def both_slots(vm: Vm, disk: Path) -> None:
    """Slot B as after an update that was confirmed; slot A is tried first."""
    for kind in ("boot", "root"):
        content = disk.parent / "work" / f"{kind}.img"
        at = partitions(disk)[f"{kind}-b"]
        call("qemu-io", "-f", "qcow2", "-c", f"write -q -s {content} {at} {content.stat().st_size}", vm.overlay)
    _environment(vm, lambda env: call("grub-editenv", env, "set", "B_OK=1"))


def _booted(vm: Vm) -> tuple[str, str]:
    """The slot that runs and what GRUB's environment is by then."""
    vm.await_agent()
    slot = next(word for word in vm.out("cat /proc/cmdline").split() if word.startswith("rauc.slot="))
    listed = vm.out("systemctl is-active --quiet --wait site-setup; grub-editenv /efi/EFI/ems/grubenv list")
    return slot[-1], " ".join(line for line in listed.splitlines() if "machine_id" not in line)


def _told(vm: Vm) -> UpdateResult:
    """What the update agent says of it."""

    def result() -> float:
        with contextlib.suppress(PointError), PointClient("127.0.0.1", vm.modbus_port, POINT, 5.0) as client:
            return client.read("UpdResult")["UpdResult"]
        return nan

    awaited(lambda: result() == result(), 120.0, "the update agent")
    return UpdateResult(int(result()))


def rotten_root(vm: Vm, disk: Path) -> Row:
    """dm-verity panics while slot A starts; three tries, then B."""
    both_slots(vm, disk)
    size = (disk.parent / "work" / "root.img").stat().st_size
    for at in range(0, size, EVERY):
        vm.fill(partitions(disk)["root-a"] + at, ROT)
    vm.start()
    took_s = await_modbus(vm, 240.0)
    slot, env = _booted(vm)
    panics = vm.console().count(PANIC)
    told = _told(vm)
    ok = slot == "B" and panics == 3 and told is UpdateResult.FELL_BACK
    return Row("a root slot that rotted: the other one starts, and says so", ok,
               f"{panics} panics, slot {slot} answers after {took_s:.0f} s, {told.name}, {env}")  # fmt: skip


def rotten_boot(vm: Vm, disk: Path) -> Row:
    """GRUB cannot read slot A's files."""
    both_slots(vm, disk)
    vm.fill(partitions(disk)["boot-a"], MIB)
    vm.start()
    took_s = await_modbus(vm, 120.0)
    slot, env = _booted(vm)
    told = _told(vm)
    ok = slot == "B" and told is UpdateResult.FELL_BACK
    return Row("a boot slot that rotted: the other one starts, and says so", ok,
               f"slot {slot} answers after {took_s:.0f} s, {told.name}, {env}")  # fmt: skip


def lost_environment(vm: Vm, disk: Path) -> Row:
    """Zeros where GRUB keeps ORDER and tries: it can neither read nor write it."""
    _environment(vm, lambda env: env.write_bytes(bytes(1024)))
    vm.start()
    took_s = await_modbus(vm)
    slot, env = _booted(vm)
    ok = slot == "A" and "ORDER=A B" in env
    return Row("GRUB's environment is lost: it starts, and it is made anew", ok,
               f"slot {slot} answers after {took_s:.0f} s, {env}")  # fmt: skip


def brown_outs(vm: Vm, disk: Path) -> Row:
    """Twenty power cuts before the boot loader: slot A is not tried once. Nothing confirms a boot without adapters."""
    both_slots(vm, disk)
    for number in range(1, SHORT_CUTS + 1):
        vm.start()
        time.sleep(LONGEST_S * number / SHORT_CUTS)  # the time itself is what is tested
        vm.cut_power()
    reached = vm.console().count(BOOT_LOADER)
    vm.start()
    took_s = await_modbus(vm)
    slot, env = _booted(vm)
    ok = not reached and slot == "A" and "A_TRY=1" in env
    return Row(f"{SHORT_CUTS} power cuts within {LONGEST_S:g} s change no slot", ok,
               f"boot loader reached {reached} times, slot {slot} answers after {took_s:.0f} s, {env}")  # fmt: skip


def cut_boots(vm: Vm, disk: Path) -> Row:
    """Three boots in a row that are cut behind the boot loader: they have used up slot A."""
    both_slots(vm, disk)
    for number in range(1, 4):
        vm.start()
        awaited(lambda: vm.console().count(KERNEL) == number, 120.0, "the kernel")  # noqa: B023
        vm.cut_power()
    vm.start()
    took_s = await_modbus(vm)
    slot, env = _booted(vm)
    told = _told(vm)
    return Row("three boots in a row are cut: the other slot starts, and says so",
               slot == "B" and told is UpdateResult.FELL_BACK,
               f"slot {slot} answers after {took_s:.0f} s, {told.name}, {env}")  # fmt: skip


CHECKS: tuple[Callable[[Vm, Path], Row], ...] = (lost_environment, brown_outs, cut_boots, rotten_boot, rotten_root)


def slots(disk: Path, work: Path) -> Iterator[Row]:
    yield from machines(disk, work, CHECKS)
