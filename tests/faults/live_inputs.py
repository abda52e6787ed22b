"""Inputs and operator on the live appliance: terminals set over Modbus, judged by event stamps and the truth."""

from __future__ import annotations

import contextlib
import time

from waiting import wait_until

from firmware.points import PointError
from statemachine.signals import LimitReason, Mode
from statemachine.states import CHARGING, State

from .scenario import Reaction, live
from .stand import Stand

NO_EDGE_US = 0xFFFFFFFF


def trips(s: Stand, fault: str, **cause: float) -> Reaction:
    """The cause ends in EMERGENCY_STOP, named, with the true contactors open; the reaction is the state's stamp."""
    since = s.inject(**cause)
    ms = s.after_ms(since, "-> EMERGENCY_STOP")
    s.stamp(f"FAULT ON {fault}", since)
    s.open_ms(since, 5)
    s.shows(fault)
    return Reaction(ms, s.allowance_ms)


def stops(s: Stand, fault: str, **cause: float) -> Reaction:
    """The cause ends in FAULT by STOPPING, nothing broken under load; the reaction is the STOPPING stamp."""
    before = s.truth("true_opened_under_load")
    since = s.inject(**cause)
    ms = s.after_ms(since, "-> STOPPING")
    s.stamp(f"FAULT ON {fault}", since)
    s.until(State.FAULT)
    s.open_ms(since, 5)
    s.shows(fault)
    assert s.truth("true_opened_under_load") == before, "the current went first"
    return Reaction(ms, s.allowance_ms)


def inhibits(s: Stand, fault: str, **cause: float) -> Reaction:
    """The cause halves what may be charged; the contactors stay."""
    since = s.inject(**cause)
    ms = s.after_ms(since, f"FAULT ON {fault}")
    wait_until(lambda: s.get("AChaMax") <= 560.0, 5, lambda: f"at most half is available, not {s.get('AChaMax')} A")
    assert s.truth("true_pos") == 1, "one broken sensor is no reason to open"
    return Reaction(ms, s.allowance_ms)


@live("I21", quick=True)
def every_coil_output_sticks(s: Stand) -> Reaction:
    since = s.inject(hold_coil_neg=1, hold_coil_pos=1, interlock_3=0)
    ms = s.open_ms(since, 5)
    assert int(s.truth("true_coils")) & 3 == 3, "the coil outputs are on to this moment"
    s.stamp("safe-enable off: CONTROLLER_TRIP", since)
    s.shows("ERR_INTERLOCK_OPEN")
    s.shows("ERR_OUTPUT_READBACK")
    return Reaction(ms, s.allowance_ms)


@live("I1", quick=True)
def a_thermal_loop_is_cut(s: Stand) -> Reaction:
    return inhibits(s, "ERR_THERMAL_LOOP", loop_ma_3=0.0)


@live("I2")
def a_thermal_loop_is_shorted(s: Stand) -> Reaction:
    return inhibits(s, "ERR_THERMAL_LOOP", loop_ma_5=22.0)


@live("I12", quick=True)
def the_kill_switch_is_pressed(s: Stand) -> Reaction:
    reaction = trips(s, "ERR_KILL_SWITCH", kill_switch=1)
    edge_us = s.truth("true_edge_to_safe_us")
    assert edge_us < NO_EDGE_US, "the guard dropped safe-enable on the edge"
    s.inject(kill_switch=0)
    s.scans(200)
    assert s.state() is State.EMERGENCY_STOP, "closing the kill-switch re-energises nothing"
    assert s.all_open()
    s.note(f"safe-enable off {edge_us:.0f} us after the edge")
    return reaction


@live("I13")
def the_lid_is_opened(s: Stand) -> Reaction:
    reaction = trips(s, "ERR_TAMPER", tamper=1)
    assert s.truth("true_safe_enable") == 0, "the guard watches the lid too"
    return reaction


@live("I14", start="isolated", repeats=1)
def a_contactor_does_not_close(s: Stand) -> Reaction:
    since = s.inject(stuck_pos=1)
    s.command(Mode.READY)
    ms = s.after_ms(since, "FAULT ON ERR_CONTACTOR_STUCK", 60)
    s.until(State.FAULT)
    assert s.get("PrechargeTries") == 3, s.get("PrechargeTries")
    s.open_ms(since)
    s.note(", ".join(s.faults()))
    return Reaction(ms)


@live("I15")
def a_contactor_welds(s: Stand) -> Reaction:
    s.inject(weld_pos=1)
    s.command(Mode.OFF)
    since = s.stamp("COILS", time.monotonic())
    ms = s.after_ms(since, "FAULT ON ERR_CONTACTOR_WELDED")
    s.until(State.LOCKOUT)
    s.shows("ERR_CONTACTOR_WELDED")
    with contextlib.suppress(PointError):
        s.command(Mode.CHARGE)
        raise AssertionError("a start was taken in LOCKOUT")
    s.scans(50)
    assert s.state() is State.LOCKOUT
    assert s.get("Coils") == 0
    return Reaction(ms)


@live("I17")
def a_stop_is_commanded_at_full_current(s: Stand) -> Reaction:
    before, amps = s.truth("true_opened_under_load"), s.truth("true_current_a")
    assert abs(amps) > 30.0
    since = time.monotonic()
    s.command(Mode.OFF)
    s.until(State.ISOLATED)
    assert s.truth("true_opened_under_load") == before, "the current went first"
    assert s.all_open()
    return Reaction(s.after_ms(since, "-> ISOLATED"))


@live("I18")
def the_voltmeters_differ_by_more_than_two_volts(s: Stand) -> Reaction:
    s.inject(dv_offset_v=1.6)
    s.scans(100)
    s.charges_on()
    return trips(s, "ERR_DELTA_V", dv_offset_v=3.0)


@live("I19")
def all_interlocks_drop_together(s: Stand) -> Reaction:
    since = time.monotonic()
    s.a.bench.write({f"interlock_{n}": 0 for n in range(1, 9)})
    s.allowance_ms = (time.monotonic() - since) * 1e3
    ms = s.after_ms(since, "-> EMERGENCY_STOP")
    s.open_ms(since, 5)
    s.a.bench.write({f"interlock_{n}": 1 for n in range(1, 9)})
    s.scans(200)
    assert s.state() is State.EMERGENCY_STOP, "the supply that returns resets nothing"
    assert len([line for line in s.since(since) if "-> EMERGENCY_STOP" in line]) == 1, "no chatter"
    return Reaction(ms, s.allowance_ms)


@live("ERR_GROUND_FAULT", repeats=1)
def the_insulation_falls(s: Stand) -> Reaction:
    reaction = trips(s, "ERR_GROUND_FAULT", ground_fault=1)
    wait_until(lambda: s.get("LedFault") == 3, 5, "the red FAULT LED flashes, as the manual says")
    return reaction


@live("C12")
def one_cell_of_1200_is_hot(s: Stand) -> Reaction:
    since = s.inject(hot_cell_index=737, hot_cell_c=46.0)
    wait_until(lambda: s.get("ChaLimA") == 0.0, 10, "no charge above 45 degC")
    ms = (time.monotonic() - since) * 1e3
    assert s.get("LimReason") == LimitReason.HOT
    assert s.get("CellTmpMaxIdx") == 737
    return Reaction(ms, s.allowance_ms)


@live("ERR_OVER_TEMPERATURE", repeats=1)
def one_cell_of_1200_is_too_hot_to_stay_connected(s: Stand) -> Reaction:
    return stops(s, "ERR_OVER_TEMPERATURE", hot_cell_index=737, hot_cell_c=51.0)


@live("ERR_THERMAL_TRIP", repeats=1)
def one_cell_of_1200_burns(s: Stand) -> Reaction:
    return trips(s, "ERR_THERMAL_TRIP", hot_cell_index=11, hot_cell_c=70.0)


@live("O1", start="ready", repeats=1)
def the_same_command_is_sent_a_hundred_times(s: Stand) -> str:
    seq = s.command(Mode.CHARGE)
    s.until(*CHARGING)
    before = [line for line in s.lines() if "COILS" in line or "STATE" in line]
    values = {"CmdSeq": seq, "CmdMode": Mode.CHARGE, "CmdW": 0.0, "CmdRamp": 0.5, "CmdTgtSoC": 80.0}
    for _ in range(100):
        s.a.site.write(values)
    s.charges_on()
    after = [line for line in s.lines() if "COILS" in line or "STATE PRECHARGE" in line]
    assert not set(after) - set(before), "no contactor moved"
    return "100 repeats of one command: no contactor moved"


@live("O4", start="isolated", repeats=1, quick=True)
def one_value_of_a_block_is_out_of_range(s: Stand) -> str:
    before = s.get("CmdSeq")
    try:
        s.a.site.write({"CmdSeq": before + 1, "CmdMode": Mode.CHARGE, "CmdW": 0.0, "CmdRamp": 2.5, "CmdTgtSoC": 80.0})
    except PointError:
        pass
    else:
        raise AssertionError("a rate above the allowed 2 C was taken")
    assert s.get("CmdSeq") == before
    s.scans(50)
    assert s.state() is State.ISOLATED
    return "exception, nothing applied"


@live("O3", repeats=1)
def reset_is_pressed_while_the_cause_stands(s: Stand) -> str:
    trips(s, "ERR_KILL_SWITCH", kill_switch=1)
    s.inject(reset_button=1)
    s.inject(reset_button=0)
    s.a.site.write({"AckFaults": 1})
    s.scans(50)
    assert s.state() is State.EMERGENCY_STOP
    assert s.truth("true_safe_enable") == 0
    return "reset and acknowledge had no effect"
