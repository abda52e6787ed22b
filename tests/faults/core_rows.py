"""Hazards shown on the pure core: exact scans, no clock but the plant's."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

from rig import COMMAND, NONE, Rig

from statemachine import leds
from statemachine.contactors import Coils
from statemachine.faults import BY_NAME, FAULTS
from statemachine.signals import EventKind, Why
from statemachine.states import CHARGING, CLOSED, State

from . import by_fault
from .by_fault import INJECTIONS, charging, fast_charging, isolated, loop, seen_ms
from .scenario import CORE, Outcome, Reaction, core

for _injection in INJECTIONS:
    CORE[_injection.fault] = partial(by_fault.run, _injection)


@core("I3")
def loops_in_the_grey_bands() -> Outcome:
    for ma in (3.7, 20.7):
        rig = charging()
        loop(3, ma=ma)(rig)
        rig.scan(60_000)
        assert rig.state() in CLOSED or ma > 20.0, f"{ma} mA: {rig.state().name}"
        assert not rig.o.faults_active & 1 << BY_NAME["ERR_THERMAL_LOOP"].bit, f"{ma} mA counts as broken"
    return Outcome(note="3.7 mA counts as -20 degC, 20.7 mA as 60 degC")


@core("I5")
def two_loops_of_a_zone_drift_apart() -> Outcome:
    rig = charging()
    ms = seen_ms(rig, BY_NAME["ERR_LOOP_DISAGREE"], loop(3, ma=15.5), 15_000)
    assert rig.state() in CHARGING
    return Outcome((Reaction(ms),), "a step of 12.5 K counts as a jump for 5 s, then 5 s as a disagreement")


@core("I6")
def a_spike_and_a_step() -> Outcome:
    rig = charging()
    rig.lines = rig.lines._replace(loops_age_ms=0.0)
    before = rig.o.faults_active
    loop(3, ma=19.0)(rig)
    rig.once()
    loop(3, ma=13.0)(rig)
    rig.scan(500)
    assert rig.o.faults_active == before, "one sample changes nothing"
    loop(3, ma=19.0)(rig)
    start = rig.now_ms
    while rig.o.faults_active == before:
        rig.once()
    return Outcome(note=f"a step of 30 K is acted upon after {rig.now_ms - start:g} ms")


@core("I7")
def exactly_at_the_limit_and_a_tenth_above() -> Outcome:
    rig = charging()
    rig.bms_changes["cell_c_max"] = 50.0
    rig.scan(20_000)
    assert rig.state() in CHARGING, "50.0 degC is allowed"
    ms = seen_ms(rig, BY_NAME["ERR_OVER_TEMPERATURE"], by_fault.bms(cell_c_max=50.1), 5000)
    return Outcome((Reaction(ms),), "nothing at 50.0 degC for 20 s")


@core("I10")
def an_interlock_bounces() -> Outcome:
    rig = isolated()
    rig.send(mode=1)
    for turn in range(100):
        rig.lines = rig.lines._replace(interlocks=0xFF if turn % 2 else 0xF7)
        rig.once()
        assert rig.state() is not State.READY
    assert rig.o.faults_latched >> BY_NAME["ERR_INTERLOCK_CHATTER"].bit & 1
    assert rig.coils == NONE
    rig = charging()
    ms = seen_ms(rig, BY_NAME["ERR_INTERLOCK_OPEN"], by_fault.lines(interlocks=0xF7), 1000)
    return Outcome((Reaction(ms),), "chatter latched, nothing closed")


@core("I16")
def a_contactor_drops_out() -> Outcome:
    """Coil supply of the positive main is lost: it opens 20 ms later."""
    rig = fast_charging()
    rig.stuck = Coils(False, True, False)
    start = rig.now_ms
    while rig.inputs(rig._contactors()).lines.fb_pos:
        rig.once()
    out = rig.once()
    assert out.setpoint_a == 0.0, "set-point 0 in the scan that misses the feedback"
    rig.until(State.EMERGENCY_STOP, 200)
    return Outcome((Reaction(rig.now_ms - start),))


@core("P4")
def scans_come_late() -> Outcome:
    rig = charging()
    rig.overruns_in_row = 2
    rig.scan(1000)
    assert rig.state() in CHARGING, "two in a row are counted only"
    ms = seen_ms(rig, BY_NAME["ERR_SCAN_OVERRUN"], by_fault.put("overruns_in_row", 3), 100)
    return Outcome((Reaction(ms),))


@core("P15")
def a_limit_is_lowered_under_charge() -> Outcome:
    rig = fast_charging()
    start = rig.now_ms
    rig.settings = replace(rig.settings, revision=2, max_charge_current=100.0)
    out = rig.once()
    assert out.charge_limit_a <= 100.0 and -out.setpoint_a <= 100.0
    ms = rig.now_ms - start
    rig.settings = replace(rig.settings, revision=3, max_charge_current=1120.0)
    rig.scan(5000)
    assert rig.o.charge_limit_a <= 100.0, "a wider limit waits for open contactors"
    return Outcome((Reaction(ms),))


@core("O2")
def stop_and_start_arrive_together() -> Outcome:
    rig = fast_charging()
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.send(mode=2)
    assert rig.once().state is State.EMERGENCY_STOP, "a trip beats a start in the same scan"
    rig = fast_charging()
    rig.send(mode=0)
    rig.send(mode=2)
    rig.scan(100)
    assert rig.state() in CHARGING, "the last accepted command is the command"
    return Outcome(note="a trip beats a start in the same scan")


@core("O9")
def a_ramp_of_half_c() -> Outcome:
    """The rise at 0.02 C/s over ten seconds of it, and the end at the target."""
    rig = Rig(soc=20.0).ready()
    rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0).until(State.CHARGE_RAMP, 1000).scan(2000)
    first = rig.o.setpoint_a
    rig.scan(10_000)
    slope = (first - rig.o.setpoint_a) / 10.0 / rig.settings.rated_ah
    assert abs(slope / rig.settings.ramp_up_rate - 1.0) <= 0.02, f"{slope:.5f} C/s"
    steps = []
    for _ in range(500):
        was = rig.o.setpoint_a
        steps.append(was - rig.once().setpoint_a)
    assert max(steps) <= rig.settings.ramp_up_rate * rig.settings.rated_ah * 0.01 + 1e-6, "no step is steeper"
    return Outcome(note=f"{slope:.4f} C/s for {rig.settings.ramp_up_rate:g} configured")


@core("O10")
def nothing_is_configured() -> Outcome:
    rig = Rig()
    usual = rig.inputs
    rig.inputs = lambda true: usual(true)._replace(settings=None)  # type: ignore[method-assign]
    rig.scan(1000).send(mode=2, c_rate=0.5, target_soc_pct=80.0).scan(5000)
    assert rig.coils == NONE
    assert rig.o.charge_limit_a == rig.o.discharge_limit_a == 0.0
    assert rig.o.permit == Why.NO_CONFIGURATION
    return Outcome(note=f"{rig.state().name}, permit {Why(rig.o.permit).name}")


@core("O11")
def every_fault_is_shown() -> Outcome:
    for fault in FAULTS:
        assert leds.fault_code(1 << fault.bit) == fault.led
        assert len(fault.text) > 20, fault.name
    ordered = sorted(FAULTS, key=lambda f: -f.severity)
    for worse, less in pairwise(ordered):
        assert worse.severity == less.severity or leds.fault_code(1 << worse.bit | 1 << less.bit) == worse.led, (
            worse.name,
            less.name,
        )
    return Outcome(note=f"{len(FAULTS)} faults, each with a code of its own")


@core("L2")
def refused_commands_without_end() -> Outcome:
    rig = Rig().until(State.ISOLATED, 1000)
    rig.lines = rig.lines._replace(interlocks=0)
    rig.scan(1000)
    gc.collect()
    gc.disable()
    try:
        before = _refuse(rig, 10_000)
        after = _refuse(rig, 20_000)
    finally:
        gc.enable()
    assert after - before < 200, f"{after - before} blocks grew"
    return Outcome(note=f"{after - before:+d} blocks of memory after 20,000 refused commands")


def _refuse(rig: Rig, count: int) -> int:
    for _ in range(count):
        rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0)
        out = rig.core.step(rig.inputs(NONE), 10.0)
        assert out.state is State.ISOLATED
    return sys.getallocatedblocks()


@core("L6")
def counters_wrap() -> Outcome:
    rig = Rig(command=COMMAND._replace(heartbeat=65_534, heartbeat_armed=True, heartbeat_timeout_s=2.0))
    rig.core.memory = rig.core.memory._replace(now_ms=2.0**32 - 3000.0)
    rig.until(State.ISOLATED, 1000)
    rig.send(mode=1)
    for beat in range(40):
        rig.command = rig.command._replace(heartbeat=(65_534 + beat) % 65_535)
        rig.scan(500)
    assert rig.state() is State.READY, rig.state().name
    assert (EventKind.HEARTBEAT, 0, 0) not in rig.events
    return Outcome(note="heartbeat over 65,534, plant time over 2^32 ms: READY")


def exceptions_leave_no_memory_behind() -> Outcome:
    rig = isolated()
    broken = rig.inputs(NONE)._replace(bms=rig.bms._replace(cell_v_max="x") if rig.bms else None)  # type: ignore[arg-type]
    gc.collect()
    gc.disable()
    try:
        before = _raise(rig, broken, 500)
        after = _raise(rig, broken, 20_000)
    finally:
        gc.enable()
    assert after - before < 200, f"{after - before} blocks grew"
    return Outcome(note=f"{after - before:+d} blocks of memory after 20,000 exceptions")


def _raise(rig: Rig, broken: object, count: int) -> int:
    for _ in range(count):
        try:
            rig.core.step(broken, 10.0)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        raise AssertionError("a scan over a word instead of a voltage was taken")
    return sys.getallocatedblocks()
