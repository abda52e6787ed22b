"""A bundle with one changed byte, wherever it is, is refused and leaves the standby slot as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from firmware import bundle, rauc
from firmware.bundle import Refused
from firmware.update_codes import UpdateResult
from statemachine.states import State

from .faults import PATIENCE_S, commissioned, isolated, recover, settled
from .plant import Booted, Row, awaited, rows
from .updates import LENIENT, Bundles, flipped, service, standby, stick
from .vm import STICK

SHARES = 64
_TOLD = "grep -o 'UPDATE [A-Z_]*' /var/log/ems/battery.log | cut -d' ' -f2"
"""How every look at a stick ended so far; an installation is none of these words."""
_TRIES = 8
_BROKEN = frozenset({"DAMAGED", "SIGNATURE", "TRUNCATED", "FORMAT"})


def places(path: Path) -> list[int]:
    """A byte in the middle of each share of a bundle, of its hash tree, of its signature and of the length of that."""
    m, size = bundle.manifest(path), path.stat().st_size
    signed = m.data_bytes + m.tree_bytes
    return [(2 * n + 1) * size // (2 * SHARES) for n in range(SHARES)] + [
        m.data_bytes + m.tree_bytes // 2, (signed + size - 8) // 2, size - 4,
    ]  # fmt: skip


def counted(words: list[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))


def _said_here(path: Path, system: rauc.System) -> str:
    """What the unit's own checks, on this machine, say of it."""
    try:
        bundle.manifest(path)
        rauc.check(path, system, lambda: None)
        bundle.read_through(path, bundle.manifest(path), lambda done, total: None)
    except Refused as refused:
        return refused.result.name
    return "good"


def _on_the_host(path: Path, system: rauc.System) -> Row:
    """By the unit's own checks."""
    unharmed, seen = _said_here(path, system), list[str]()
    for at in places(path):
        with flipped(path, at):
            seen.append(_said_here(path, system))
    promise = f"on the host, a bundle of {path.stat().st_size >> 20} MiB: the same bytes refused"
    return Row(promise, unharmed == "good" and set(seen) <= _BROKEN, f"as made {unharmed}; {counted(seen)}")


def _said_of(image: Path, a: Booted) -> str:
    """How a look at that stick ends. One that ended because the emulation tripped the rack is made again."""
    for _ in range(_TRIES):
        if a.state() is not State.SERVICE:
            recover(a)
            service(a)
        before = len(a.vm.out(_TOLD).split())
        with a.vm.stick(image):
            waited = f"while [ $({_TOLD} | grep -c .) -le {before} ]; do sleep 2; done"
            said = a.vm.out(f"{waited}; {_TOLD}", 60.0).split()[before]
        awaited(lambda: a.vm.run(f"mountpoint -q {STICK}").rc != 0, PATIENCE_S, "the stick is gone")
        if said != UpdateResult.NOT_IN_SERVICE.name:
            break
    return said


def _tampered(image: Path, wanted: list[int]) -> Callable[[Booted], Row]:
    """`wanted`: bytes of the stick."""

    def tampered(a: Booted) -> Row:
        """One byte after the other."""
        service(a)
        before, seen = standby(a), list[str]()
        for number, at in enumerate(wanted, 1):
            with flipped(image, at):
                seen.append(_said_of(image, a))
            print(f"    {number} of {len(wanted)}: {seen[-1]}", flush=True)
        promise = f"a changed byte in each 1/{SHARES} of a bundle, in tree, signature and its length: refused"
        after = standby(a)
        kept = "standby as before" if after == before else f"standby before {before!r}, after {after!r}"
        return Row(promise, set(seen) <= _BROKEN and after == before, f"{counted(seen)}; {kept}")

    return tampered


def tamper(disk: Path, work: Path) -> Iterator[Row]:
    """A bundle as it is shipped on the host, where a look is short, then one of 8 MiB on a stick in the machine."""
    made = Bundles(disk.parent, work / "bundles")
    whole, small = made.made("whole"), made.excerpt()
    system = rauc.System(whole, made.compatible, disk.parent / "ca" / "ca.pem", None)
    yield _on_the_host(whole, system)
    yield _on_the_host(small, system)
    head, wanted = small.read_bytes()[:65536], places(small)
    image = stick(small)
    first = image.read_bytes().index(head)
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, (isolated, commissioned, _tampered(image, [first + at for at in wanted])), recover)
