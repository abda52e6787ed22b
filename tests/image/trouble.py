"""What a machine in service gets into: a full disk, one that may not be written, a clock that jumps, a stick at the
wrong time, a frozen service manager. The rack charges all the while. One boot with adapters, in this order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from firmware.update_codes import UpdateResult
from statemachine.signals import BootReason
from statemachine.states import CHARGING, OPEN

from .faults import PATIENCE_S, charging, commissioned, isolated, opened_after, recover, restarted, settled, to_isolated
from .plant import Booted, Row, awaited, rows
from .updates import LENIENT, Bundles, result, standby, stick

RESET_S = 30.0 + 20.0
"""The board file's time-out and the guard's patience with PID 1."""


def charges_on(a: Booted) -> bool:
    return a.state() in CHARGING and a.truth("true_current_a") < -50


@contextmanager
def full(a: Booted) -> Iterator[None]:
    """Not a byte is left on the data partition, for root neither."""
    a.vm.run("fallocate -l $(df --output=avail -B1 /data | tail -1) /data/ballast; cat /dev/zero >>/data/ballast", 60.0)
    try:
        yield
    finally:
        a.vm.out("rm /data/ballast")


@contextmanager
def read_only(a: Booted) -> Iterator[None]:
    """As after an error of the disk: `errors=remount-ro`, whatever is open."""
    a.vm.out("echo u >/proc/sysrq-trigger; while findmnt -no OPTIONS /data | grep -q '^rw'; do sleep 0.1; done")
    try:
        yield
    finally:
        a.vm.out("mount -o remount,rw /data && mount -o remount,rw /efi")


def _disk(name: str, broken: Callable[[Booted], AbstractContextManager[None]]) -> Callable[[Booted], Row]:
    def check(a: Booted) -> Row:
        a.inject(soc_preset=30.0)
        charging(a)
        with broken(a):
            awaited(lambda: "ERR_STORE" in a.faults(), PATIENCE_S, lambda: f"ERR_STORE; {a.faults()}")
            ok = charges_on(a)
        a.site.write({"AckFaults": 1})
        awaited(lambda: "ERR_STORE" not in a.faults(), PATIENCE_S, lambda: f"no ERR_STORE; {a.faults()}")
        told = a.vm.out("tail -n 3 /var/log/ems/battery.log | cut -c1-90 | tr '\\n' ';'")
        ok = ok and charges_on(a)
        to_isolated(a)
        return Row(f"data is {name} under charge: it charges on, ERR_STORE until it can be written", ok, told)

    check.__name__ = name
    return check


def clock_jump(a: Booted) -> Row:
    """Five years ahead, then ten back: everything that acts counts by the monotonic clock."""
    a.inject(soc_preset=30.0)
    charging(a)
    before, seen = a.get("ScanCount"), []
    for when in ("+5 years", "-10 years", "+5 years"):
        a.vm.out(f"date -s '{when}'")
        end_s = time.monotonic() + 5.0
        awaited(lambda end_s=end_s: time.monotonic() > end_s or not charges_on(a), PATIENCE_S, "five seconds")  # type: ignore[misc]
        seen.append(charges_on(a))
    scans = a.get("ScanCount") - before
    to_isolated(a)
    failed = a.vm.out("systemctl --failed --no-legend --plain; true")
    return Row("the clock jumps by years under charge: it charges on", all(seen) and not failed,
               f"{scans:.0f} scans, faults {a.faults() or 'none'}, units failed: {failed or 'none'}")  # fmt: skip


def _stick_under_charge(image: Path) -> Callable[[Booted], Row]:
    def update_under_charge(a: Booted) -> Row:
        """Nothing is even copied."""
        a.inject(soc_preset=30.0)
        before = standby(a)
        charging(a)
        with a.vm.stick(image):
            refused = UpdateResult.NOT_IN_SERVICE
            awaited(lambda: result(a) is refused, PATIENCE_S, lambda: f"{refused.name}; {result(a)}")
            ok = charges_on(a)
        to_isolated(a)
        return Row("an update under charge is refused: NOT_IN_SERVICE, it charges on", ok and standby(a) == before,
                   "standby slot as before")  # fmt: skip

    return update_under_charge


def _pid1(what: str, command: str, reason: BootReason) -> Callable[[Booted], Row]:
    def check(a: Booted) -> Row:
        a.inject(soc_preset=30.0)
        charging(a)
        start, opened = time.monotonic(), list[float]()
        restarted(a, lambda: opened.append(opened_after(a, lambda: a.vm.out(command), 3.0 * RESET_S)))
        back_s = time.monotonic() - start
        a.until(*OPEN, timeout_s=4 * PATIENCE_S)
        seen = BootReason(int(a.get("BootReason")))
        recover(a)
        charging(a)
        to_isolated(a)
        told = f"open after {opened[0]:.0f} s, up again after {back_s:.0f} s, {seen.name}, charges"
        return Row(f"PID 1 {what} under charge: open, and up again", seen is reason, told)

    check.__name__ = f"PID 1 {what}"
    return check


crashed = _pid1("crashes", "kill -SEGV 1", BootReason.POWER)
"""The service manager restarts the machine ten seconds later."""
frozen = _pid1("is frozen", "echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze", BootReason.WATCHDOG)
"""Only the hardware can help, and only when the guard stops petting it."""


def trouble(disk: Path, work: Path) -> Iterator[Row]:
    """One boot, every check."""
    made = Bundles(disk.parent, work / "bundles")
    image = stick(made.made("good"))
    checks: Sequence[Callable[[Booted], Row]] = (
        isolated, commissioned, _stick_under_charge(image), _disk("full", full), _disk("read-only", read_only),
        clock_jump, crashed, frozen,
    )  # fmt: skip
    with settled(disk, work, LENIENT) as a:
        yield from rows(a, checks, recover)
