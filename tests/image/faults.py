"""What is done to the booted appliance with its adapters, and what the rack sees of it. One boot, in this order.

Contactors are judged by the rack's own word and by the levels at the adapters, never by what the appliance says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance import Remote
from commission_walk import commission
from waiting import wait_until

from firmware.commissioning import verified
from firmware.points import PointError
from statemachine.signals import Mode, Why
from statemachine.states import CHARGING, OPEN, State

from .plant import STOPPED, Booted, Row, awaited, booted, rows
from .vm import VmError, slowness

PATIENCE_S = 30.0 * slowness()
UNITS = ("guard", "controller", "sampler", "aggregator", "server", "historian", "clock")


def isolated(a: Booted) -> Row:
    """With everything plugged in the units find their lines, and the rack is verified open."""
    a.until(*OPEN, timeout_s=PATIENCE_S)
    recover(a)  # an emulated processor that has just booted may miss scans
    seen = {name: a.vm.run(f"systemctl is-active ems-{name}").out.strip() for name in UNITS}
    missing = [name for name, word in seen.items() if word != "active"]
    return Row("board found: seven units run, ISOLATED", not missing, ", ".join(missing) or "ISOLATED")


def alone(a: Booted) -> Row:
    """On the scan's core there may be guard and controller, and of the rest only threads of the kernel."""
    listed = a.vm.out(
        "awk 'FNR == 1 {name = $2; user = 0} /^VmSize/ {user = 1} "
        '/^Cpus_allowed_list/ && user && $2 != "0" {print name, $2}\' /proc/[0-9]*/status 2>/dev/null; true'
    )
    wanted = [a.vm.out(f"cat /proc/$(systemctl show -p MainPID --value ems-{name})/comm") + " 1" for name in UNITS[:2]]
    seen = sorted(listed.splitlines())
    return Row("guard and controller have a core of their own", seen == sorted(wanted), ", ".join(seen))


def refused(a: Booted) -> Row:
    """Delivered uncommissioned: nothing closes."""
    try:
        a.command(Mode.CHARGE)
        seen = "accepted"
    except PointError as error:
        seen = str(error)
    why = Why(int(a.get("AckWhy")))
    return Row(
        "nothing closes before commissioning", why is Why.NOT_COMMISSIONED and a.all_open(), f"{seen}, {why.name}"
    )


def commissioned(a: Booted) -> Row:
    """Every interlock, kill-switch, tamper and reset through real lines; the record is signed."""
    record = a.vm.work / "record.json"
    said = commission(a, a.vm.modbus_port, record, PATIENCE_S, served)
    checks = len(verified(record.read_bytes())["checks"])
    return Row("commissioned over Modbus, record signed", "Commissioned" in said, f"{checks} checks")


def charging(a: Booted, rate_c: float = 0.2) -> None:
    """Charges, above the break current. AssertionError when it does not."""
    if a.state() is not State.ISOLATED:
        recover(a)
    awaited(lambda: not a.get("Permit"), PATIENCE_S, lambda: f"a permit; {Why(int(a.get('Permit'))).name}")
    a.command(Mode.CHARGE, rate_c)
    state = a.until(*CHARGING, *STOPPED, timeout_s=PATIENCE_S)
    assert state in CHARGING, f"{state.name}, {a.faults()}"
    awaited(lambda: stopped(a) or a.truth("true_current_a") < -50, PATIENCE_S, "50 A into the rack")
    assert not stopped(a), f"{a.faults()}"


def stopped(a: Booted) -> bool:
    return a.state() in STOPPED


def to_isolated(a: Booted) -> None:
    """Ramped down and opened by command. AssertionError when something else opened it."""
    a.command(Mode.OFF)
    state = a.until(State.ISOLATED, *STOPPED, timeout_s=PATIENCE_S)
    assert state is State.ISOLATED, f"{state.name}, {a.faults()}"


def charge_to_80(a: Booted) -> Row:
    """Through the real lines, the rack's cells sped up."""
    start = time.monotonic()
    a.inject(soc_preset=20.0)
    charging(a, rate_c=0.5)
    a.inject(speed=60)
    state = a.until(State.CHARGED, *STOPPED, timeout_s=4 * PATIENCE_S)
    a.inject(speed=1)
    soc, faults = a.truth("true_soc"), a.faults()
    assert state is State.CHARGED, f"{state.name} at {soc:.1f} %, {faults}"
    to_isolated(a)
    seen = f"{soc:.1f} % after {time.monotonic() - start:.0f} s, faults {faults or 'none'}"
    return Row("a full charge to 80 % through the image", abs(soc - 80.0) < 2.0 and not faults, seen)


def opened_after(a: Booted, act: Callable[[], object], limit_s: float) -> float:
    """Seconds from the act until the rack has no contactor closed; AssertionError when it takes longer."""
    start = time.monotonic()
    act()
    wait_until(a.all_open, limit_s, "every contactor open")
    return time.monotonic() - start


def restarted(a: Booted, act: Callable[[], object]) -> None:
    """Until another boot answers than the one before."""
    before = a.vm.out("cat /proc/sys/kernel/random/boot_id")
    act()

    def other() -> bool:
        try:
            return a.vm.out("cat /proc/sys/kernel/random/boot_id") != before
        except VmError:
            return False

    awaited(other, 20 * PATIENCE_S, lambda: f"another boot; console {a.vm.console()[-300:]}")


def press(a: Remote) -> None:
    a.inject(reset_button=1)
    time.sleep(0.5)
    a.inject(reset_button=0)


def served(a: Remote) -> None:
    """SERVICE, which ems-tool commands; it acknowledges, but somebody must press."""

    def there() -> bool:
        if a.state() is State.EMERGENCY_STOP:
            press(a)
        return a.state() is State.SERVICE

    awaited(there, PATIENCE_S, lambda: f"SERVICE; {a.state()}, {a.faults()}")


def recover(a: Booted) -> None:
    """Reset and acknowledge until it is ISOLATED with the guard armed."""

    def there() -> bool:
        if a.state() is State.ISOLATED and a.get("GuardArmed"):
            return True
        press(a)
        with contextlib.suppress(PointError):
            a.site.write({"AckFaults": 1})
            a.command(Mode.OFF)
        return False

    awaited(there, PATIENCE_S, lambda: f"ISOLATED; {a.state()}, {a.faults()}")


def kill_switch(a: Booted) -> Row:
    """Pressed under charge: both coil outputs of the controller and safe-enable of the guard, at the adapters."""
    a.inject(soc_preset=30.0)
    charging(a)
    before = len(a.adapters.edges())
    took_s = opened_after(a, lambda: a.inject(kill_switch=1), 5.0)
    awaited(lambda: a.state() is State.EMERGENCY_STOP, PATIENCE_S, "EMERGENCY_STOP")
    low = {edge.line for edge in a.adapters.edges()[before:] if not edge.level}
    a.inject(kill_switch=0)
    recover(a)
    ok = {"safe_enable", "coil_neg", "coil_pos"} <= low
    return Row(
        "kill-switch under charge: contactors open, coils and safe-enable low", ok, f"open after {took_s * 1000:.0f} ms"
    )


def _unplugged(adapter: str, what: str) -> Callable[[Booted], Row]:
    def check(a: Booted) -> Row:
        a.inject(soc_preset=30.0)
        charging(a)
        took_s = opened_after(a, lambda: a.adapters.unplug(adapter), 5.0 * slowness())
        a.adapters.plug(adapter)
        awaited(lambda: a.state() in OPEN, 4 * PATIENCE_S, lambda: f"an open state; {a.state()}")
        recover(a)
        return Row(
            f"{what} unplugged under charge: safe, and back after plugging in",
            True,
            f"open after {took_s * 1000:.0f} ms",
        )

    check.__name__ = f"{adapter} unplugged"
    return check


def _signalled(unit: str, signal: str, limit_s: float) -> Callable[[Booted], Row]:
    def check(a: Booted) -> Row:
        a.inject(soc_preset=30.0)
        charging(a)
        took_s = opened_after(a, lambda: a.kill(unit, signal), limit_s)
        awaited(lambda: a.state() in OPEN, 4 * PATIENCE_S, lambda: f"an open state; {a.state()}")
        seen = a.state()
        recover(a)
        name = seen.name if seen is not None else "silent"
        return Row(f"{signal} to the {unit} under charge", True, f"open after {took_s * 1000:.0f} ms, {name}")

    check.__name__ = f"{signal} {unit}"
    return check


CHECKS: tuple[Callable[[Booted], Row], ...] = (
    isolated, alone, refused, commissioned, charge_to_80, kill_switch,
    _unplugged("io3", "the coils' adapter"), _unplugged("io0", "the guard's adapter"),
    _signalled("controller", "SIGKILL", 30.0), _signalled("controller", "SIGSTOP", 30.0),
    _signalled("guard", "SIGKILL", 30.0), _signalled("guard", "SIGSTOP", 30.0),
)  # fmt: skip


@contextmanager
def settled(disk: Path, work: Path, credentials: Mapping[str, str] | None = None) -> Iterator[Booted]:
    """`booted`, and the start is over: an emulated processor misses scans meanwhile."""
    with booted(disk, work, credentials) as a:
        a.vm.await_agent()
        a.vm.run("systemctl is-system-running --wait", 120.0 * slowness())
        yield a


def faults(disk: Path, work: Path) -> Iterator[Row]:
    """One boot, every check."""
    with settled(disk, work) as a:
        yield from rows(a, CHECKS, recover)
