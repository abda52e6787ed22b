"""One injection a row of the fault catalogue, into the pure core: seen when, with what reaction, and left how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from rig import COMMAND, NONE, Rig, settings

from statemachine.contactors import Coils, Phase
from statemachine.core import Core
from statemachine.faults import BY_NAME, Fault, Severity
from statemachine.signals import EventKind, GuardTrip, WatchdogState
from statemachine.states import CLOSED, State

from .scenario import Outcome, Reaction

BMS_MS, PCS_MS = 100.0, 20.0
"""Poll periods: a value is this old at most before the scan sees it."""
JUMPED_MS = 5020.0
"""A step of a loop first counts as a jump, for five seconds."""

Hurt = Callable[[Rig], object]


class Injection(NamedTuple):
    """`hurt` on a rig that is `at` a place. `late_ms`: what may pass before the condition can stand."""

    fault: str
    at: Callable[[], Rig]
    hurt: Hurt
    late_ms: float | None = 0.0  # None: the reaction is not a matter of time
    wait_ms: float = 15_000.0


def clone(rig: Rig) -> Rig:
    """The same moment once more, to be hurt."""
    return replace(
        rig, core=Core(rig.core.memory), held_ms=[*rig.held_ms], visited=[*rig.visited], events=[*rig.events],
        bms_changes={}, pcs_changes={},
    )  # fmt: skip


@cache
def _charging(**changes: Any) -> Rig:
    return Rig(settings=settings(**changes)).charging()


@cache
def _fast_charging() -> Rig:
    return clone(_charging()).scan(25_000)


def charging() -> Rig:
    """CHARGE_RAMP on its way to 0.5 C."""
    return clone(_charging())


def fast_charging() -> Rig:
    """At 0.5 C."""
    return clone(_fast_charging())


def with_settings(**changes: Any) -> Callable[[], Rig]:
    return lambda: clone(_charging(**changes))


def isolated() -> Rig:
    return Rig().until(State.ISOLATED, 1000)


def discharging() -> Rig:
    rig = Rig(soc=50.0).ready()
    return rig.send(mode=3, c_rate=0.5, target_soc_pct=10.0).until(State.DISCHARGE, 1000).scan(5000)


def lines(**changes: Any) -> Hurt:
    return lambda r: setattr(r, "lines", r.lines._replace(**changes))


def bms(**changes: Any) -> Hurt:
    return lambda r: r.bms_changes.update(changes)


def pcs(**changes: Any) -> Hurt:
    return lambda r: r.pcs_changes.update(changes)


def put(name: str, value: Any) -> Hurt:
    return lambda r: setattr(r, name, value)


def guard(**changes: Any) -> Hurt:
    return lambda r: setattr(r, "guard", r.guard._replace(**changes))


def loop(*numbers: int, ma: float) -> Hurt:
    def hurt(r: Rig) -> None:
        now = tuple(ma if n in numbers else was for n, was in enumerate(r.lines.loops_ma, 1))
        r.lines = r.lines._replace(loops_ma=now)

    return hurt


def chattering(r: Rig) -> None:
    """An interlock that bounces with 5 ms at 50 Hz: every other scan sees it open."""
    for turn in range(40):
        r.lines = r.lines._replace(interlocks=0xFF if turn % 2 else 0xF7)
        r.once()
    r.lines = r.lines._replace(interlocks=0xFF)


def a_loop_that_stands(r: Rig) -> None:
    """Loop 3 stays where it is while the others warm by 3 K under load."""
    for step in range(1, 91):
        warm = 13.0 + step * 0.6 / 90.0
        r.lines = r.lines._replace(loops_ma=tuple(13.0 if n == 3 else warm + (n % 2) * 0.01 for n in range(1, 9)))
        r.scan(1000)


def restarted(r: Rig) -> None:
    """The successor of a controller that did not stop in order."""
    usual = r.inputs
    first = [True]

    def inputs(true: Coils) -> Any:
        seen = usual(true)._replace(restarted=first[0])
        first[0] = False
        return seen

    r.inputs = inputs  # type: ignore[method-assign]


def unheard(r: Rig) -> None:
    r.command_age_ms = 2500.0


def stuck_current(r: Rig) -> None:
    """The stop is commanded, the PCS goes on."""
    r.bms_changes["rack_a"] = -400.0
    r.pcs_changes["dc_a"] = -400.0
    r.send(mode=0)


def leaking(r: Rig) -> None:
    r.bms_changes["rack_a"] = -60.0


def endless_stop(r: Rig) -> None:
    """A stop that its own bounds did not end; no feedback alone leads there, so the time is put into the memory."""
    r.welded = Coils(False, True, False)
    r.send(mode=0).until(State.STOPPING, 1000)
    r.core.memory = r.core.memory._replace(in_state_ms=70_000.0)


def inrush(r: Rig) -> None:
    """The precharge was verified, and yet 60 A flow when the positive main closes."""
    r.send(mode=1)
    while r.core.memory.sequence.phase is not Phase.RELEASE:
        r.once()
    r.bms_changes["rack_a"] = -60.0


def again_and_again(r: Rig) -> None:
    """Closed and opened until it is too often."""
    with contextlib.suppress(AssertionError):  # the fault ends it somewhere on the way
        for mode, state in ((0, State.ISOLATED), (1, State.READY)) * 2:
            r.send(mode=mode).until(state, 20_000)


def balancing() -> Rig:
    """At the end of a charge, with cells that never come together."""
    rig = Rig(soc=98.0, spread_v=0.030, settings=settings(balance_time_limit=60.0)).charging(c_rate=0.3, target=100.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGE_BALANCE, 6 * 3.6e6).dt_ms = 10.0
    return rig


def beating() -> Rig:
    rig = Rig(heartbeats=True, command=COMMAND._replace(heartbeat_timeout_s=2.0)).charging()
    while rig.command.heartbeat * 1000 != int(rig.now_ms):
        rig.once()
    return rig


def welds(r: Rig) -> None:
    r.welded = Coils(False, True, False)
    r.send(mode=0)


def closes_with(**changes: Any) -> Hurt:
    """Commanded to close with something wrong."""

    def hurt(r: Rig) -> None:
        for name, value in changes.items():
            setattr(r, name, value)
        r.send(mode=1)

    return hurt


def closes_again(r: Rig) -> None:
    r.send(mode=0).until(State.ISOLATED, 20_000).send(mode=1)


def crawls(r: Rig) -> None:
    """Both meters agree that the PCS gives 50 A of the demand."""
    r.pcs_changes["dc_a"] = r.bms_changes["rack_a"] = -50.0


def full_disk(r: Rig) -> None:
    assert r.store is not None
    r.store = r.store._replace(writes_ok=False)


def distrusted(r: Rig) -> None:
    assert r.clock is not None
    r.clock = r.clock._replace(trusted=False)


def refused(r: Rig) -> None:
    r.command = r.command._replace(config_error=True)


INJECTIONS: tuple[Injection, ...] = (
    Injection("ERR_KILL_SWITCH", charging, lines(kill_ok=False)),
    Injection("ERR_TAMPER", charging, lines(tamper_ok=False)),
    Injection("ERR_GROUND_FAULT", charging, lines(insulation_ok=False)),
    Injection("ERR_DELTA_V", charging, put("dv_offset_v", 2.5), 3 * BMS_MS + PCS_MS),
    Injection("ERR_MAX_V_EXCEEDED", charging, bms(cell_v_max=4.26), BMS_MS),
    Injection("ERR_CELL_OVERVOLTAGE", charging, bms(cell_v_max=4.35), BMS_MS),
    Injection("ERR_MIN_V_EXCEEDED", discharging, bms(cell_v_min=2.5, cell_v_max=3.3), BMS_MS),
    Injection("ERR_OVER_TEMPERATURE", charging, bms(cell_c_max=50.1), BMS_MS),
    Injection("ERR_THERMAL_TRIP", charging, bms(cell_c_max=60.1), BMS_MS),
    Injection("ERR_COMM_LOST", charging, put("bms_alive", False), 350.0),
    Injection("ERR_PCS_LOST", charging, put("pcs_alive", False), 200.0),
    Injection("ERR_BMS_ALARM", charging, bms(alarm_stop=4), BMS_MS),
    Injection("ERR_BMS_TRIP", charging, bms(alarm_trip=1), BMS_MS),
    Injection("ERR_PCS_FAULT", charging, pcs(state=3), PCS_MS),
    Injection("ERR_INTERLOCK_OPEN", charging, lines(interlocks=0xF7)),
    Injection("ERR_CONTACTOR_WELDED", charging, welds, None),
    Injection("ERR_CONTACTOR_DROPPED", charging, put("stuck", Coils(False, True, False)), 40.0),
    Injection("ERR_PRECHARGE", isolated, closes_with(precharge_works=False), None, 60_000.0),
    Injection("ERR_GUARD", charging, guard(armed=False, trip=GuardTrip.HEARTBEAT_LATE)),
    Injection("ERR_SCAN_OVERRUN", charging, put("overruns_in_row", 3)),
    Injection("ERR_CONTROLLER_RESTART", Rig, restarted),
    Injection("ERR_OVERCURRENT", charging, bms(rack_a=-2000.0), BMS_MS),
    Injection("ERR_DELTA_OFFSET", isolated, closes_with(dv_offset_v=12.5), None, 30_000.0),
    Injection("ERR_INIT_TIMEOUT", Rig, put("bms_alive", False), 30_000.0, 40_000.0),
    Injection("ERR_OPENED_UNDER_LOAD", charging, stuck_current, None, 30_000.0),
    Injection("ERR_THERMAL_LOOP", charging, loop(3, ma=0.0)),
    Injection("ERR_SITE_HEARTBEAT", beating, put("heartbeats", False), 2000.0),
    Injection("ERR_BALANCE_TIMEOUT", balancing, lambda r: None, 60_000.0, 70_000.0),
    Injection("ERR_CONFIG", charging, refused),
    Injection("ERR_BMS_IMPLAUSIBLE", charging, bms(plausible=False), BMS_MS),
    Injection("ERR_CURRENT_WHILE_OPEN", lambda: isolated().scan(1000), leaking, BMS_MS),
    Injection("ERR_THERMAL_ZONE", charging, loop(3, 4, ma=0.0)),
    Injection("ERR_LOOP_DISAGREE", charging, loop(3, ma=15.5), JUMPED_MS),
    Injection("ERR_LOOP_STUCK", fast_charging, a_loop_that_stands, None),
    Injection("ERR_LOOP_RATE", charging, loop(3, ma=8.0), 20.0),
    Injection("ERR_SAMPLER", charging, lines(loops_age_ms=1000.0)),
    Injection("ERR_INTERLOCK_CHATTER", isolated, chattering, None),
    Injection("ERR_OUTPUT_READBACK", charging, put("output_sticks", Coils(True, False, False))),
    Injection("ERR_SUPPLY_24V", charging, lines(kill_ok=False, tamper_ok=False, insulation_ok=False, interlocks=0)),
    Injection("ERR_CLOSINGS_PER_HOUR", with_settings(max_closings_per_hour=1), again_and_again, None),
    Injection("ERR_PRECHARGE_HOT", with_settings(max_precharges=1), again_and_again, None),
    Injection("ERR_CLOSED_UNDER_LOAD", isolated, inrush, None),
    Injection("ERR_CONTACTOR_ABUSED", with_settings(max_under_load=1), stuck_current, None, 30_000.0),
    Injection("ERR_CONTACTOR_WORN", with_settings(contactor_life=2), closes_again, None),
    Injection("ERR_CONTACTOR_STUCK", isolated, closes_with(stuck=Coils(False, True, False)), None, 60_000.0),
    Injection("ERR_STOP_TIMEOUT", charging, endless_stop, None),
    Injection("ERR_BMS_IDENTITY", charging, bms(identity_ok=False), BMS_MS),
    Injection("ERR_PCS_IDENTITY", charging, pcs(identity_ok=False), PCS_MS),
    Injection("ERR_BMS_LINK_POOR", charging, bms(loss_pct=3.0), BMS_MS),
    Injection("ERR_PCS_LINK_POOR", charging, pcs(loss_pct=3.0), PCS_MS),
    Injection("ERR_CELL_SENSOR", charging, bms(cells_bad=1), BMS_MS),
    Injection("ERR_INSULATION_LOW", charging, bms(insulation_kohm=150.0), BMS_MS),
    Injection("ERR_STRING_OFFLINE", charging, bms(strings_online=3), BMS_MS),
    Injection("ERR_BMS_WARNING", charging, bms(alarm_warn=1), BMS_MS),
    Injection("ERR_CELL_DEEP_DISCHARGE", charging, bms(cell_v_min=1.0), BMS_MS),
    Injection("ERR_DC_OVERVOLTAGE", charging, pcs(dc_v=1400.0), PCS_MS),
    Injection("ERR_CURRENT_MISMATCH", fast_charging, pcs(dc_a=0.0), PCS_MS),
    Injection("ERR_PCS_NOT_FOLLOWING", fast_charging, crawls, BMS_MS),
    Injection("ERR_SERVER_LOST", charging, unheard),
    Injection("ERR_STORE", charging, full_disk),
    Injection("ERR_CLOCK", with_settings(clock_servers=1), distrusted, 0.0, 70_000.0),
    Injection("ERR_WATCHDOG", charging, guard(watchdog=WatchdogState.FAILED)),
)  # fmt: skip
assert len({injection.fault for injection in INJECTIONS}) == len(INJECTIONS)


def promised_ms(injection: Injection) -> float | None:
    """Age of the data, confirmation and one scan; None where the reaction is not a matter of time."""
    if injection.late_ms is None:
        return None
    return injection.late_ms + BY_NAME[injection.fault].confirm_ms + Rig().dt_ms


def seen_ms(rig: Rig, fault: Fault, hurt: Hurt, wait_ms: float) -> float:
    """Plant time from the injection to the scan that tells FAULT ON."""
    start, told = rig.now_ms, len(rig.events)
    hurt(rig)
    end = rig.now_ms + wait_ms
    while (EventKind.FAULT_ON, fault.bit, 0) not in rig.events[told:]:
        assert rig.now_ms < end, f"{fault.name} not seen within {wait_ms:g} ms; {rig.state().name}"
        rig.once()
    return rig.now_ms - start


def run(injection: Injection) -> Outcome:
    """Injects, measures in plant time, and checks the reaction that the severity promises."""
    fault, rig = BY_NAME[injection.fault], injection.at()
    was = rig.out.state if rig.out else State.INIT
    ms = seen_ms(rig, fault, injection.hurt, injection.wait_ms)
    _react(rig, fault.severity, was)
    if injection.late_ms is None:
        return Outcome((), f"{was.name} to {rig.state().name}")
    return Outcome((Reaction(ms),), f"{was.name} to {rig.state().name}")


def _react(rig: Rig, severity: Severity, was: State) -> None:
    if severity is Severity.TRIP:
        assert rig.state() is State.EMERGENCY_STOP, f"same scan: EMERGENCY_STOP, not {rig.state().name}"
        assert rig.coils == NONE, "same scan: no coil"
    elif severity is Severity.STOP:
        assert rig.state() in (State.STOPPING, State.FAULT, State.EMERGENCY_STOP), f"same scan: {rig.state().name}"
        rig.until(State.FAULT, 30_000) if rig.state() is State.STOPPING else None
        assert rig.coils == NONE
    elif severity is Severity.LOCKOUT:
        rig.until(State.LOCKOUT, 30_000)
        assert rig.coils == NONE
    elif severity is Severity.DERATE:
        before = rig.o.charge_limit_a
        rig.scan(2000)
        assert rig.state() in CLOSED and rig.o.charge_limit_a < rig.settings.max_charge_current / 2 + 1e-6, before
    else:
        assert rig.state() is was or was not in CLOSED or rig.state() not in (State.FAULT, State.EMERGENCY_STOP)
