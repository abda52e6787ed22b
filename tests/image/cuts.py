"""The plug is pulled again and again, under charge and in the middle of an install; what was kept is whole.

EMS_CUTS is how many under charge, EMS_INSTALLS in an install (as many, up to 20); the long run makes 50 and 20.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from firmware.update_codes import UpdateResult, UpdateState
from statemachine.states import CLOSED, OPEN, State

from .faults import PATIENCE_S, charging, commissioned, isolated, opened_after, recover, restarted, settled
from .plant import Booted, Row, await_modbus, awaited, made, rows
from .updates import LENIENT, Bundles, kept, result, service, stick
from .vm import VmError

CUTS = int(os.environ.get("EMS_CUTS", "2"))
INSTALLS = int(os.environ.get("EMS_INSTALLS", min(CUTS, 20)))
LONGEST_S = 20.0
_LOOK = (
    "cat /etc/ems/*.conf /var/lib/ems/commission* | md5sum; "
    "journalctl -q -b -o short-full >/run/told; journalctl --sync; wc -l </run/told; md5sum </run/told; "
    "echo $(journalctl --verify 2>&1 | sed -n 's/^FAIL: \\([^ ]*\\).*/\\1/p'); "
    "echo $(ls /var/log/journal/*/*.journal~ 2>/dev/null | tail -n 1); "
    "ems-diag --journal /var/lib/ems/journal >/run/kept 2>&1; echo $?; grep -c ' STATE ' /run/kept; "
    "journalctl --list-boots --no-pager | grep -oE '[0-9a-f]{32}'"
)
"""The system's journal is synced by the look: what comes later may be lost or torn, two minutes at most. At the next
start journald sets the file aside that was written to. Ours does it by itself."""


class Kept(NamedTuple):
    """What a power cut must not take."""

    digest: str  # of configuration and commissioning
    lines: int  # of this boot, in the system's journal
    told: str  # digest of these lines
    broken: frozenset[str]  # files of it that do not pass journalctl --verify
    aside: str  # the file that the last cut tore from journald's hands; empty when there was none
    flawed: int  # our own journal: 1 when a record is damaged or missing
    states: int  # changes of state in it
    boots: tuple[str, ...]  # that the system's journal has, the oldest first


def kept_now(a: Booted) -> Kept:
    digest, lines, told, broken, aside, flawed, states, *boots = a.vm.out(_LOOK, 60.0).splitlines()
    return Kept(digest, int(lines), told, frozenset(broken.split()), aside, int(flawed), int(states), tuple(boots))


def broken_since(before: Kept, after: Kept) -> list[str]:
    """Files of the system's journal that were whole. The one that was written to at the cut may end anywhere: what it
    must have are the lines."""
    return sorted(after.broken - before.broken - {after.aside})


def told_still(a: Booted, before: Kept) -> bool:
    """Whether the system's journal has every line that `before` had of its boot."""
    told = f"journalctl -q -b {before.boots[-1]} -o short-full | head -n {before.lines} | md5sum"
    return a.vm.out(told, 60.0).strip() == before.told


def lost(a: Booted, before: Kept, after: Kept) -> list[str]:
    """What `after`, of the next boot, lacks. The oldest boots may have had to go: the journals are bounded."""
    earlier = list(after.boots[:-1])
    lacks = {
        "another configuration or commissioning": before.digest != after.digest,
        f"some of {before.lines} lines of the system's journal": not told_still(a, before),
        f"files of the system's journal: {broken_since(before, after)}": broken_since(before, after),
        "a flaw in our journal": after.flawed,
        f"{before.states - after.states} changes of state": after.states < before.states,
        f"boots {before.boots} before, {after.boots} after": list(before.boots[-len(earlier) :]) != earlier,
    }
    return [what for what, is_so in lacks.items() if is_so]


def on_again(a: Booted) -> None:
    """Up to an open state."""
    a.vm.start()
    await_modbus(a.vm)
    a.prefer()
    a.vm.await_agent()
    a.until(*OPEN, State.LOCKOUT, timeout_s=4 * PATIENCE_S)


def under_charge(dice: random.Random, a: Booted) -> Row:
    """At a random time; cycles counted so far are there again."""
    a.inject(soc_preset=30.0)
    charging(a)
    before, cycles = kept_now(a), a.get("ContactorCycles")
    end_s = time.monotonic() + dice.uniform(0.0, LONGEST_S)
    awaited(lambda: time.monotonic() > end_s or a.state() not in CLOSED, 2 * LONGEST_S, "the time to cut")
    opened_s = opened_after(a, a.vm.cut_power, 3.0)
    on_again(a)
    after, state = kept_now(a), a.state()
    recover(a)
    missing = lost(a, before, after) + ["cycles"] * (a.get("ContactorCycles") < cycles)
    seen = f"open after {opened_s * 1000:.0f} ms, {state.name if state else 'silent'}, boots {len(after.boots)}"
    return Row("power cut under charge", not missing, f"{seen}, lost: {'; '.join(missing) or 'nothing'}")


def under_install(dice: random.Random, image: Path, a: Booted) -> Row:
    """At a random share of the copy into the standby slot: the slot that ran starts again and says why."""
    if a.state() is not State.ISOLATED:
        recover(a)
    service(a)
    awaited(lambda: result(a) is not None, PATIENCE_S, "the agent")
    before, slot, share = kept_now(a), a.get("UpdSlot"), dice.randrange(90)

    def far_enough() -> bool:
        step = a.get("UpdState")
        return step == UpdateState.RESTARTING or (step == UpdateState.INSTALLING and a.get("UpdProgress") >= share)

    with a.vm.stick(image):
        awaited(lambda: kept(a, far_enough), 4 * PATIENCE_S, lambda: f"{share} % installed; {result(a)}")
        at = UpdateState(int(a.get("UpdState")))
        a.vm.cut_power()
    on_again(a)
    awaited(lambda: result(a) is not None, PATIENCE_S, "the agent")
    after, why = kept_now(a), result(a)
    recover(a)
    missing, slot_after = lost(a, before, after), a.get("UpdSlot")
    ok = not missing and slot_after == slot and why is UpdateResult.INSTALL_FAILED
    seen = f"{at.name} at {share} %: {why.name if why else None}, slot {slot:g} and {slot_after:g}"
    return Row("power cut in an install", ok, f"{seen}, lost: {'; '.join(missing) or 'nothing'}")


def on_trial(image: Path, a: Booted) -> Row:
    """Between the restart into the new version and its self-test: it starts again, and is confirmed then."""
    if a.state() is not State.ISOLATED:
        recover(a)
    service(a)
    before, slot = kept_now(a), a.get("UpdSlot")
    with a.vm.stick(image):
        awaited(lambda: kept(a, lambda: a.get("UpdState") == UpdateState.RESTARTING), 4 * PATIENCE_S, "RESTARTING")
        restarted(a, a.vm.must_run)
        tried = a.vm.out("cat /proc/cmdline")
        a.vm.cut_power()
    on_again(a)
    awaited(lambda: result(a) is UpdateResult.CONFIRMED, 20 * PATIENCE_S, lambda: f"CONFIRMED; {result(a)}")
    after = kept_now(a)
    recover(a)
    whole = after.digest == before.digest and not after.flawed and not broken_since(before, after)
    ok = whole and told_still(a, before) and a.get("UpdSlot") != slot
    seen = f"slot {slot:g}, cut in {tried.partition('rauc.slot=')[2][:1]}, slot {a.get('UpdSlot'):g} CONFIRMED"
    return Row("power cut between restart and confirmation: the new version starts again", ok, seen)


def cuts(disk: Path, work: Path) -> Iterator[Row]:
    """One rack, one disk, many boots; the first that fails ends it, with its seed."""
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    image = stick(Bundles(disk.parent, work / "bundles").made("good"))
    charge, install = partial(under_charge, dice), partial(under_install, dice, image)
    trials = [(install, n, INSTALLS) for n in range(INSTALLS)] + [(charge, n, CUTS) for n in range(CUTS)]
    trials.sort(key=lambda trial: trial[1])
    trials.append((partial(on_trial, image), 0, 1))
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, (isolated, commissioned), recover)
        for kind, number, of in trials:
            row = made("a power cut", partial(kind, a), a.last_events)
            yield row._replace(promise=f"{row.promise}, {number + 1} of {of}")
            if not row.ok:
                raise VmError(f"stopped at the first that failed; seed {seed}")
