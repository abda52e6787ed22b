"""Updates of the booted image by rauc and GRUB: what is refused, what is installed, what is taken back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypeVar

import bundles

from firmware.points import PointError
from firmware.rauc import TRIES
from firmware.update_codes import UpdateResult, UpdateState
from statemachine.leds import ROLLED_BACK
from statemachine.signals import Mode, Why
from statemachine.states import State

from .faults import PATIENCE_S, charging, commissioned, isolated, recover, restarted, settled, to_isolated
from .plant import Booted, Row, awaited, late, rows
from .vm import LABEL, MIB, PANIC, call

NEWER = "99991231-test"
ROT_EVERY = 3 * MIB
_EXCERPT_MIB = {"root.img": 6, "boot.img": 2}
LENIENT = {"systemd.unit-dropin.ems-updater.service~test": "[Service]\nEnvironment=EMS_LATE_SHARE=0.5\n"}
"""An emulated processor is late more often than the self-test allows."""


def flip(path: Path, at: int) -> None:
    """One bit of the byte there."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 1,)))


@contextmanager
def flipped(path: Path, at: int) -> Iterator[None]:
    flip(path, at)
    try:
        yield
    finally:
        flip(path, at)


class Bundles:
    """The image's own content, bundled anew: right, and wrong in one way each."""

    def __init__(self, image: Path, work: Path) -> None:
        self._content, self._work = work / "content", work
        shutil.rmtree(work, ignore_errors=True)
        self._content.mkdir(parents=True)
        for name in ("root.img", "boot.img"):
            (self._content / name).hardlink_to(image / "work" / name)
        built = (image / "update.raucb").absolute()
        said = call("rauc", f"--keyring={image / 'ca' / 'ca.pem'}", "info", "--output-format=shell", built)
        self.compatible = next(x for x in said.splitlines() if x.startswith("RAUC_MF_COMPATIBLE=")).split("'")[1]
        self._signer = image / "ca" / "signing.pem", image / "ca" / "signing.key"

    def made(
        self, name: str, version: str = NEWER, compatible: str = "", signer: tuple[Path, Path] | None = None
    ) -> Path:
        """A bundle of its own version; the newest wins."""
        (self._content / "manifest.raucm").write_text(
            f"[update]\ncompatible={compatible or self.compatible}\nversion={version}\n\n[bundle]\nformat=verity\n\n"
            "[image.rootfs]\nfilename=root.img\n\n[image.boot]\nfilename=boot.img\n"
        )
        certificate, key = signer or self._signer
        target = self._work / f"{name}.raucb"
        call("rauc", "bundle", f"--cert={certificate}", f"--key={key}", self._content, target)
        return target

    def by_a_stranger(self) -> Path:
        signer = bundles.issued(bundles.authority(self._work / "stranger"), "signer")
        return self.made("stranger", signer=(signer.certificate, signer.key))

    def tampered(self) -> Path:
        path = self.made("tampered")
        flip(path, path.stat().st_size // 3)
        return path

    def truncated(self) -> Path:
        path = self.made("truncated")
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        return path

    def excerpt(self) -> Path:
        """The beginning of both images: refused or not before anybody looks at what they are."""
        held = self._work / "held"
        held.mkdir()
        for name, mib in _EXCERPT_MIB.items():
            (self._content / name).rename(held / name)
            with (held / name).open("rb") as file:
                (self._content / name).write_bytes(file.read(mib * MIB))
        made = self.made("excerpt")
        for name in _EXCERPT_MIB:
            (held / name).replace(self._content / name)
        return made

    def rotten(self) -> Path:
        """Signed as it is, and no kernel that checks its root can start it."""
        root, whole = self._content / "root.img", self._work / "whole.img"
        root.rename(whole)
        with whole.open("rb") as source, root.open("wb") as target:
            while chunk := source.read(ROT_EVERY):
                target.write(bytes(4096) + chunk[4096:])
        made = self.made("rotten", version="99991231-rotten")
        whole.rename(root)
        return made


def stick(path: Path) -> Path:
    """A FAT stick with that bundle."""
    image = path.with_suffix(".stick")
    with image.open("wb") as file:
        file.truncate(path.stat().st_size + 16 * MIB)
    call("mkfs.vfat", "-n", LABEL, image)
    call("mcopy", "-i", image, path, "::update.raucb")
    path.unlink()
    return image


STICKS: dict[str, Callable[[Bundles], Path]] = {
    "stranger": Bundles.by_a_stranger, "tampered": Bundles.tampered, "truncated": Bundles.truncated,
    "other": lambda b: b.made("other", compatible="ems-edge-other"), "good": lambda b: b.made("good"),
    "rotten": Bundles.rotten, "worse": lambda b: b.made("worse", version="99991231-worse"),
}  # fmt: skip
Sticks = Mapping[str, Path]
"""All of them are made before the machine is on: it shares the processors."""


def standby(a: Booted) -> str:
    """Digest of what a standby slot begins with, and the boot loader's environment once the self-test is through."""
    awaited(lambda: a.get("UpdTries") == TRIES, PATIENCE_S, "the slot that runs is marked good")
    which = "b" if a.get("UpdSlot") == 1 else "a"
    parts = " ".join(f"/dev/disk/by-partlabel/{kind}-{which}" for kind in ("boot", "root"))
    return a.vm.out(f"for p in {parts}; do head -c 32M $p | md5sum; done; cat /efi/EFI/ems/grubenv", 60.0)


def service(a: Booted) -> None:
    if a.state() is not State.SERVICE:
        a.command(Mode.SERVICE)
        a.until(State.SERVICE, timeout_s=PATIENCE_S)


def result(a: Booted) -> UpdateResult | None:
    """None while the unit does not say."""
    try:
        value = a.get("UpdResult")
    except PointError:
        return None
    return UpdateResult(int(value)) if value == value else None


def kept(a: Booted, condition: Callable[[], bool]) -> bool:
    """The condition, in SERVICE: the agent waits for it, and missed scans end it."""
    if late(a):
        recover(a)
        service(a)
    return condition()


def _refused(stick: str, why: UpdateResult) -> Callable[[Booted, Sticks], Row]:
    def check(a: Booted, sticks: Sticks) -> Row:
        service(a)
        before = standby(a)
        with a.vm.stick(sticks[stick]):
            awaited(lambda: kept(a, lambda: result(a) is why), 2 * PATIENCE_S, lambda: f"{why.name}; {result(a)}")
            awaited(lambda: a.get("UpdState") == UpdateState.IDLE, PATIENCE_S, "the agent is idle")
        return Row(f"a bundle is refused: {why.name}", standby(a) == before, "standby slot as before")

    check.__name__ = why.name
    return check


def _no_charge(a: Booted) -> Why:
    """Why a charge is refused; NONE when it is not."""
    try:
        a.command(Mode.CHARGE)
    except PointError:
        return Why(int(a.get("AckWhy")))
    return Why.NONE


def installed(a: Booted, sticks: Sticks) -> Row:
    """From the stick into the other slot, restart, self-test, mark-good."""
    start, old = time.monotonic(), a.get("UpdSlot")
    service(a)
    with a.vm.stick(sticks["good"]):
        awaited(lambda: kept(a, lambda: a.get("UpdState") == UpdateState.INSTALLING), 2 * PATIENCE_S, "INSTALLING")
        held = _no_charge(a)
        awaited(lambda: kept(a, lambda: a.get("UpdState") == UpdateState.RESTARTING), 2 * PATIENCE_S, "RESTARTING")
        restarted(a, lambda: None)
        awaited(lambda: result(a) is UpdateResult.CONFIRMED, 20 * PATIENCE_S, lambda: f"CONFIRMED; {result(a)}")
    slot, env = a.get("UpdSlot"), a.vm.out("grub-editenv /efi/EFI/ems/grubenv list | grep -v machine_id | tr '\\n' ' '")
    awaited(lambda: a.get("UpdTries") == TRIES, PATIENCE_S, "three tries")
    record = a.get("CommState")
    charging(a)
    to_isolated(a)
    seen = (
        f"{held.name} to a charge meanwhile, slot {old:g} to {slot:g} in {time.monotonic() - start:.0f} s, "
        f"{env.strip()}, commissioned {record:g}, charges"
    )
    ok = slot != old and held is Why.UPDATING
    return Row("a good bundle is installed, restarted into, confirmed; the rack charges", ok, seen)


def never_boots(a: Booted, sticks: Sticks) -> Row:
    """The new version's kernel panics in each of its three starts: the version before comes back and says why."""
    start, old, panics = time.monotonic(), a.get("UpdSlot"), a.vm.console().count(PANIC)
    service(a)
    with a.vm.stick(sticks["rotten"]):
        awaited(lambda: kept(a, lambda: a.get("UpdState") == UpdateState.RESTARTING), 2 * PATIENCE_S, "RESTARTING")
        restarted(a, a.vm.must_run)
        awaited(lambda: result(a) is UpdateResult.NOT_BOOTED, 20 * PATIENCE_S, lambda: f"NOT_BOOTED; {result(a)}")
    slot, panics = a.get("UpdSlot"), a.vm.console().count(PANIC) - panics
    recover(a)
    charging(a)
    to_isolated(a)
    seen = f"{panics} panics, slot {slot:g} again after {time.monotonic() - start:.0f} s, charges"
    return Row("a version that never comes up is taken back, with its reason", slot == old and panics == 3, seen)


def taken_back(a: Booted, sticks: Sticks) -> Row:
    """The new version finds no board: its self-test fails, the version before comes back and says why."""
    start, old = time.monotonic(), a.get("UpdSlot")
    service(a)
    with a.vm.stick(sticks["worse"]):
        awaited(lambda: kept(a, lambda: a.get("UpdState") == UpdateState.RESTARTING), 2 * PATIENCE_S, "RESTARTING")
        restarted(a, lambda: a.adapters.unplug("io0"))
        awaited(lambda: result(a) is UpdateResult.CHECK_IO, 20 * PATIENCE_S, lambda: f"CHECK_IO; {result(a)}")
    a.adapters.plug("io0")
    slot = a.get("UpdSlot")
    recover(a)
    led, told = int(a.get("LedRun")), a.vm.out("grep -c 'UPDATE CHECK_IO' /var/log/ems/battery.log")
    charging(a)
    to_isolated(a)
    ok = slot == old and led == ROLLED_BACK and told != "0"
    seen = f"slot {slot:g} again after {time.monotonic() - start:.0f} s, RUN {led:#x}, told in battery.log, charges"
    return Row("a version that fails its self-test is taken back, with its reason", ok, seen)


CHECKS: tuple[Callable[[Booted, Sticks], Row], ...] = (
    _refused("stranger", UpdateResult.SIGNATURE),
    _refused("tampered", UpdateResult.DAMAGED),
    _refused("truncated", UpdateResult.TRUNCATED),
    _refused("other", UpdateResult.COMPATIBLE),
    installed,
    never_boots,
    taken_back,
)  # fmt: skip


T = TypeVar("T")


def given(what: T, check: Callable[[Booted, T], Row]) -> Callable[[Booted], Row]:
    """The check for `rows`, which has a name."""

    @wraps(check)
    def one(a: Booted) -> Row:
        return check(a, what)

    return one


def updates(disk: Path, work: Path) -> Iterator[Row]:
    """One machine, every check in order; a check that cannot be made has failed, and the rest is tried."""
    made = Bundles(disk.parent, work / "bundles")
    sticks = {name: stick(make(made)) for name, make in STICKS.items()}
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, [isolated, commissioned, *(given(sticks, check) for check in CHECKS)], recover)
