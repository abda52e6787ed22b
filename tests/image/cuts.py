"""The plug is pulled again and again, under charge and in the middle of an install; what was kept is whole.

EMS_CUTS is how many of each; the long run makes 50.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from firmware.update_codes import UpdateResult, UpdateState
from statemachine.states import CLOSED, OPEN, State

from .faults import PATIENCE_S, charging, commissioned, isolated, opened_after, recover, settled
from .plant import Booted, Row, await_modbus, awaited, made, rows
from .updates import LENIENT, Bundles, kept, result, service, stick
from .vm import VmError

CUTS = int(os.environ.get("EMS_CUTS", "2"))
LONGEST_S = 20.0
_KEPT = (
    "cat /etc/ems/*.conf /var/lib/ems/commission* | md5sum; journalctl --verify 2>&1 | grep -c FAIL; "
    "journalctl --list-boots --no-pager | wc -l; ls /var/lib/ems"
)


def found(a: Booted) -> tuple[str, int, int]:
    """Digest of configuration and commissioning, broken journal files, boots that the journal knows."""
    digest, broken, boots, *_ = a.vm.out(_KEPT, 60.0).splitlines()
    return digest, int(broken), int(boots)


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
    before, cycles = found(a), a.get("ContactorCycles")
    end_s = time.monotonic() + dice.uniform(0.0, LONGEST_S)
    awaited(lambda: time.monotonic() > end_s or a.state() not in CLOSED, 2 * LONGEST_S, "the time to cut")
    opened_s = opened_after(a, a.vm.cut_power, 3.0)
    on_again(a)
    after, state = found(a), a.state()
    recover(a)
    whole = not after[1] and after[2] == before[2] + 1
    ok = whole and after[0] == before[0] and a.get("ContactorCycles") >= cycles
    seen = f"open after {opened_s * 1000:.0f} ms, {state.name if state else 'silent'}, boots {after[2]}, "
    return Row("power cut under charge", ok, f"{seen}broken journal files {after[1]}")


def under_install(dice: random.Random, image: Path, a: Booted) -> Row:
    """At a random share of the copy into the standby slot: the slot that ran starts again and says why."""
    if a.state() is not State.ISOLATED:
        recover(a)
    service(a)
    awaited(lambda: result(a) is not None, PATIENCE_S, "the agent")
    before, slot, share = found(a), a.get("UpdSlot"), dice.randrange(90)

    def far_enough() -> bool:
        step = a.get("UpdState")
        return step == UpdateState.RESTARTING or (step == UpdateState.INSTALLING and a.get("UpdProgress") >= share)

    with a.vm.stick(image):
        awaited(lambda: kept(a, far_enough), 4 * PATIENCE_S, lambda: f"{share} % installed; {result(a)}")
        at = UpdateState(int(a.get("UpdState")))
        a.vm.cut_power()
    on_again(a)
    awaited(lambda: result(a) is not None, PATIENCE_S, "the agent")
    after, why = found(a), result(a)
    recover(a)
    ok = after[0] == before[0] and (a.get("UpdSlot") == slot and why is UpdateResult.INSTALL_FAILED)
    return Row("power cut in an install", ok, f"{at.name} at {share} %: {why.name if why else None}, slot {slot:g}")


def cuts(disk: Path, work: Path) -> Iterator[Row]:
    """One rack, one disk, many boots; the first that fails ends it, with its seed."""
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    image = stick(Bundles(disk.parent, work / "bundles").made("good"))
    kinds: tuple[Callable[[Booted], Row], ...] = (partial(under_charge, dice), partial(under_install, dice, image))
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, (isolated, commissioned), recover)
        for number in range(CUTS):
            for kind in kinds:
                row = made("a power cut", partial(kind, a), a.last_events)
                yield row._replace(promise=f"{row.promise}, {number + 1} of {CUTS}")
                if not row.ok:
                    raise VmError(f"stopped at the first that failed; seed {seed}")
