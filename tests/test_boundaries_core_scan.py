"""A whole scan of the core: its parts in their order, and every output from where it comes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rig import ARMED, CLOCK, COMMAND, NONE, Rig, settings
from samples import BMS, PCS

from statemachine import core, detect, leds, wishes
from statemachine.charge import Law, Limits, Loops
from statemachine.contactors import Coils, Phase, Sequence
from statemachine.core import Core, Memory
from statemachine.delta import Delta
from statemachine.faults import BY_NAME, TRIP_MASK
from statemachine.grid import DEFAULT, Service
from statemachine.latch import Latches
from statemachine.loops import Judged
from statemachine.reversion import Reversion
from statemachine.signals import (
    EventKind,
    Inputs,
    InterlockBit,
    LimitReason,
    Lines,
    Mode,
    Outputs,
    Result,
    StatusBit,
    Why,
)
from statemachine.states import CLOSED, State
from statemachine.wear import Wear
from statemachine.wishes import IDLE, Wish, Wishes

S = settings(revision=5)
AH = S.rated_ah
CLOSED_COILS = Coils(True, True, False)
CHARGE = COMMAND._replace(seq=9, mode=Mode.CHARGE, c_rate=0.5, target_soc_pct=80.0)
INPUTS = Rig(
    bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0, output_sticks=CLOSED_COILS, settings=S, command=CHARGE
).inputs(CLOSED_COILS)
OPEN_RACK = Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0, settings=S).inputs(NONE)
NOW = core._Now(BMS, PCS, Judged(), Loops(25.0, 1.0), Why.INTERLOCK_OPEN, DEFAULT._replace(delay_s=4.0))
LIMITS = Limits(0.5, LimitReason.SITE, 0.25, LimitReason.PCS, 0.75, LimitReason.BMS, 0.125, LimitReason.HOT)
SET_POINT = IDLE._replace(grid_w=-5e4, wset_active=True)
CHARGING = Memory(
    state=State.CHARGE_BULK, in_state_ms=700.0, now_ms=1990.0, settings=S, offered=S,
    sequence=Sequence(Phase.CLOSED, 900.0, 2), coils=CLOSED_COILS, coils_ms=900.0, limits=LIMITS, demand_a=-280.0,
    delta=Delta(pcs_poll=PCS.poll, bms_poll=BMS.poll, offset_v=0.25, dv_v=-0.5), ack_count=0,
    wishes=Wishes(9, Mode.CHARGE, 3, Result.ACCEPTED, Why.PCS_FAULT, 0, 30.0, False, Reversion(4, 2500.0, 3)),
    wear=Wear(cycles=7), latches=Latches(active=1 << 24, latched=1 << 9),
    service=Service(waited_ms=1500.0, limit=Reversion(5, 3500.0, 4), droop=Reversion(7, 4500.0, 6)),
)  # fmt: skip


def put_out(m: Memory = CHARGING, now: core._Now = NOW, w: Wish = IDLE, **changes: Any) -> Outputs:
    return core._outputs(m, now, w, INPUTS._replace(**changes), [(EventKind.FAULT_ON, 3, 0)])


def test_every_output_of_a_rack_that_charges() -> None:
    codes = (leds.ON, leds.ON, leds.ON, BY_NAME["ERR_COMM_LOST"].led, leds.OFF)
    assert put_out(w=SET_POINT) == Outputs(
        state=State.CHARGE_BULK, coil_neg=True, coil_pos=True, coil_pre=False, setpoint_a=-280.0, pcs_run=True,
        charge_limit_a=0.5 * AH, discharge_limit_a=0.25 * AH, charge_reason=LimitReason.SITE,
        discharge_reason=LimitReason.PCS, available_charge_a=0.75 * AH, available_discharge_a=0.125 * AH,
        demand_w=-280.0 * BMS.rack_v, faults_active=1 << 24, faults_latched=1 << 9, trip=False, led_codes=codes,
        led_levels=tuple(leds.level(code, 1990) for code in codes),  # type: ignore[arg-type]
        ack_seq=9, ack_result=Result.ACCEPTED, ack_why=Why.PCS_FAULT, permit=Why.INTERLOCK_OPEN,
        status_bits=1 << StatusBit.DV_CALIBRATED | 1 << StatusBit.CLOCK_TRUSTED, wset_active_w=-5e4,
        wset_remaining_s=2.5, wset_reverted=3, service_delay_s=2.5, limit_remaining_s=3.5, limit_reverted=4,
        droop_remaining_s=4.5, droop_reverted=6, dv_v=-0.5, precharge_tries=2,
        interlocks=core._interlock_bits(INPUTS, True), settings_revision=5, wear=Wear(cycles=7),
        events=((EventKind.FAULT_ON, 3, 0),),
    )  # fmt: skip


@pytest.mark.parametrize("coils", [Coils(True, False, False), Coils(False, True, False), Coils(False, False, True)])
def test_each_coil_is_its_own_output(coils: Coils) -> None:
    out = put_out(CHARGING._replace(coils=coils))
    assert (out.coil_neg, out.coil_pos, out.coil_pre) == coils


@pytest.mark.parametrize("state", State)
def test_limits_are_shown_where_current_may_come_and_the_pcs_runs_on_closed_contactors(state: State) -> None:
    silent = state in (State.INIT, State.SERVICE, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT)
    m = CHARGING._replace(state=state)
    out = put_out(m)
    amps = (out.charge_limit_a, out.discharge_limit_a, out.available_charge_a, out.available_discharge_a)
    assert amps == ((0.0,) * 4 if silent else (0.5 * AH, 0.25 * AH, 0.75 * AH, 0.125 * AH))
    reasons = (LimitReason.STATE,) * 2 if silent else (LimitReason.SITE, LimitReason.PCS)
    assert (out.charge_reason, out.discharge_reason) == reasons
    assert out.pcs_run is (state in CLOSED)
    assert put_out(m._replace(sequence=Sequence(Phase.RELEASE))).pcs_run is False


def test_without_configuration_and_data_amperes_and_watts_are_zero() -> None:
    out = put_out(CHARGING._replace(settings=None, offered=None), NOW._replace(bms=None))
    assert (out.charge_limit_a, out.available_discharge_a, out.demand_w, out.settings_revision) == (0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("active", "latched", "trip"),
    [
        (1 << BY_NAME["ERR_KILL_SWITCH"].bit, 0, True),
        (0, TRIP_MASK, False),
        (1 << BY_NAME["ERR_GUARD"].bit, 0, False),
        (1 << BY_NAME["ERR_GUARD"].bit | 1 << BY_NAME["ERR_DELTA_V"].bit, 0, True),
        (1 << BY_NAME["ERR_COMM_LOST"].bit, 0, False),
    ],
)
def test_the_guard_is_asked_to_open_while_a_cause_stands_that_is_not_its_own(
    active: int, latched: int, trip: bool
) -> None:
    assert put_out(CHARGING._replace(latches=Latches(active=active, latched=latched))).trip is trip


@pytest.mark.parametrize(
    ("now", "changes", "latched", "comm", "kill"),
    [
        (NOW, {}, 0, leds.ON, leds.OFF),
        (NOW._replace(bms=None), {}, 0, leds.SLOW, leds.OFF),
        (NOW._replace(pcs=None), {}, 0, leds.FAST, leds.OFF),
        (NOW, {"kill_ok": False}, 0, leds.ON, leds.ON),
        (NOW, {"tamper_ok": False}, 0, leds.ON, leds.ON),
        (NOW, {}, TRIP_MASK, leds.ON, leds.SLOW),
        (NOW, {}, 1 << BY_NAME["ERR_COMM_LOST"].bit, leds.ON, leds.OFF),
    ],
)
def test_comm_and_kill_leds(now: core._Now, changes: dict[str, bool], latched: int, comm: int, kill: int) -> None:
    m = CHARGING._replace(latches=Latches(latched=latched))
    out = put_out(m, now, lines=INPUTS.lines._replace(**changes))  # type: ignore[arg-type]
    assert (out.led_codes[2], out.led_codes[4]) == (comm, kill)
    assert put_out(m._replace(latches=Latches(active=TRIP_MASK))).led_codes[4] == leds.OFF, "no reset is due yet"


def test_leds_blink_with_the_time_of_the_core() -> None:
    m = CHARGING._replace(state=State.ISOLATED)
    assert [put_out(m._replace(now_ms=ms)).led_levels[0] for ms in (0.0, 499.9, 500.0, 999.0)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("seq", "told"), [(-1, 0), (0, 0), (1, 1), (7, 7)])
def test_before_the_first_command_its_number_reads_zero(seq: int, told: int) -> None:
    assert put_out(CHARGING._replace(wishes=Wishes(seq=seq))).ack_seq == told


def test_a_power_set_point_is_shown_while_it_is_in_force() -> None:
    assert math.isnan(put_out(w=IDLE._replace(grid_w=5.0)).wset_active_w)
    assert put_out(w=IDLE._replace(grid_w=5.0, wset_active=True)).wset_active_w == 5.0


# registers Interlocks and StatusBits

NO_LINES = Lines(False, False, False, False, 0, False, False, False, (13.0,) * 8, 0.0, False, False, False, True)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("kill_ok", InterlockBit.KILL_OK),
        ("tamper_ok", InterlockBit.TAMPER_OK),
        ("insulation_ok", InterlockBit.INSULATION_OK),
        ("fb_neg", InterlockBit.FEEDBACK_NEG),
        ("fb_pos", InterlockBit.FEEDBACK_POS),
        ("fb_pre", InterlockBit.FEEDBACK_PRE),
        ("reset_pressed", InterlockBit.RESET_PRESSED),
    ],
)
def test_each_line_is_its_own_bit_of_the_interlocks_register(name: str, bit: InterlockBit) -> None:
    quiet = INPUTS._replace(guard=None, lines=NO_LINES)
    assert core._interlock_bits(quiet, True) == 0
    assert core._interlock_bits(quiet._replace(lines=NO_LINES._replace(**{name: True})), True) == 1 << bit  # type: ignore[arg-type]


def test_interlocks_and_guard_in_the_interlocks_register() -> None:
    quiet = INPUTS._replace(guard=None, lines=NO_LINES)
    assert core._interlock_bits(quiet._replace(lines=NO_LINES._replace(interlocks=0xA5)), True) == 0xA5
    assert core._interlock_bits(quiet._replace(guard=ARMED), True) == 1 << InterlockBit.GUARD_ARMED
    assert core._interlock_bits(quiet._replace(guard=ARMED._replace(armed=False)), True) == 0
    assert core._interlock_bits(quiet._replace(lines=NO_LINES._replace(interlocks=1, kill_ok=True)), True) == 0x101
    assert core._interlock_bits(quiet, False) == 1 << InterlockBit.KEY_LOCAL


@pytest.mark.parametrize(
    ("number", "shown"), [(-1, 0), (0, 0), (2**32 - 1, 2**32 - 1), (9 * 2**32, 0), (9 * 2**32 + 7, 7)]
)
def test_the_answer_names_the_sequence_without_the_epoch(number: int, shown: int) -> None:
    assert put_out(CHARGING._replace(wishes=CHARGING.wishes._replace(seq=number))).ack_seq == shown


PLAIN = CHARGING._replace(delta=Delta())


def status(m: Memory = PLAIN, now: core._Now = NOW, **changes: Any) -> int:
    return core._status_bits(m, now, INPUTS._replace(**{"clock": None, **changes}))


@pytest.mark.parametrize(
    ("m", "now", "changes", "bit"),
    [
        (PLAIN, NOW, {"command": CHARGE._replace(config_error=True)}, StatusBit.CONFIG_REFUSED),
        (PLAIN._replace(offered=settings(max_soc=99.0)), NOW, {}, StatusBit.CONFIG_PENDING),
        (PLAIN, NOW._replace(bms=None), {}, StatusBit.BMS_STALE),
        (PLAIN, NOW._replace(pcs=None), {}, StatusBit.PCS_STALE),
        (PLAIN, NOW, {"command": CHARGE._replace(heartbeat_armed=True)}, StatusBit.HEARTBEAT_ARMED),
        (PLAIN._replace(wishes=Wishes(lost=True)), NOW, {}, StatusBit.HEARTBEAT_LOST),
        (PLAIN._replace(delta=Delta(offset_v=0.0)), NOW, {}, StatusBit.DV_CALIBRATED),
        (PLAIN, NOW, {"command_age_ms": wishes.SERVER_STALE_MS + 0.1}, StatusBit.SERVER_STALE),
        (PLAIN, NOW, {"clock": CLOCK}, StatusBit.CLOCK_TRUSTED),
        (PLAIN, NOW, {"clock": CLOCK, "clock_age_ms": detect.CLOCK_SILENT_MS}, StatusBit.CLOCK_TRUSTED),
    ],
)
def test_each_bit_of_the_status_register(m: Memory, now: core._Now, changes: dict[str, Any], bit: StatusBit) -> None:
    assert status(m, now, **changes) == 1 << bit


@pytest.mark.parametrize(
    ("m", "changes"),
    [
        (PLAIN, {}),
        (PLAIN, {"command": None}),
        (PLAIN, {"command_age_ms": wishes.SERVER_STALE_MS}),
        (PLAIN, {"clock": CLOCK._replace(trusted=False)}),
        (PLAIN, {"clock": CLOCK, "clock_age_ms": detect.CLOCK_SILENT_MS + 0.1}),
        (PLAIN._replace(settings=None), {}),
        (PLAIN._replace(offered=None), {}),
        (PLAIN._replace(offered=settings(revision=6)), {}),
    ],
)
def test_a_healthy_rack_shows_no_status_bit(m: Memory, changes: dict[str, Any]) -> None:
    assert status(m, **changes) == 0


# the scan as a whole


def scanned(m: Memory, inputs: Inputs = INPUTS, dt_ms: float = 10.0) -> tuple[Memory, Outputs]:
    one = Core(m)
    out = one.step(inputs, dt_ms)
    return one.memory, out


def test_a_new_core_remembers_nothing_and_a_given_memory_is_used() -> None:
    assert Core().memory == Memory()
    assert Core(CHARGING).memory is CHARGING


HEALTHY = CHARGING._replace(latches=Latches(), law=Law(0.6, 0.0, 0.25, 0.0, 26.0, 26.0, BMS.poll))


def test_a_scan_of_a_rack_that_charges() -> None:
    m, out = scanned(HEALTHY)
    assert out.state is State.CHARGE_BULK
    assert (m.in_state_ms, m.now_ms, m.coils_ms) == (710.0, 2000.0, 910.0)
    assert m.law.charge_c == pytest.approx(0.25 + S.ramp_up_rate * 0.01)
    assert out.setpoint_a == m.demand_a == pytest.approx(-m.law.charge_c * AH)
    assert m.wishes == HEALTHY.wishes._replace(quiet_ms=40.0, wset=Reversion(0, 0.0, 3))
    assert out.events == ()
    assert out.permit == Why.NONE


@pytest.mark.parametrize(("group", "number"), [("limit", 1), ("droop", 2)])
def test_a_reversion_of_a_grid_function_is_told_with_its_number(group: str, number: int) -> None:
    ends = Service(**{group: Reversion(5, 10.0, 4)})  # type: ignore[arg-type]
    g = DEFAULT._replace(limit_version=5 if number == 1 else 0, droop_version=5 if number == 2 else 0)
    m, out = scanned(HEALTHY._replace(service=ends), INPUTS._replace(grid=g))
    assert out.events == ((EventKind.REVERT, 5, number),)
    assert scanned(m, INPUTS._replace(grid=g))[1].events == ()


def test_a_command_is_judged_told_and_followed_in_the_scan_that_brings_it() -> None:
    ready = HEALTHY._replace(
        state=State.READY, wishes=Wishes(8, Mode.READY, 3, Result.ACCEPTED, heartbeat=0), demand_a=0.0
    )
    m, out = scanned(ready)
    assert (m.wishes.seq, m.wishes.mode) == (9, Mode.CHARGE)
    assert out.state is State.CHARGE_RAMP
    assert out.setpoint_a < 0.0
    assert out.events == (
        (EventKind.COMMAND, 9, Why.NONE),
        (EventKind.STATE, State.READY, State.CHARGE_RAMP),
    )


def test_a_trip_opens_in_the_scan_that_sees_it() -> None:
    m, out = scanned(HEALTHY, INPUTS._replace(lines=INPUTS.lines._replace(kill_ok=False)))
    assert (out.state, out.coil_neg, out.coil_pos, out.setpoint_a) == (State.EMERGENCY_STOP, False, False, 0.0)
    assert out.events == (
        (EventKind.FAULT_ON, 0, 0),
        (EventKind.STATE, State.CHARGE_BULK, State.EMERGENCY_STOP),
        (EventKind.COILS, 0, 0),
    )
    assert m.in_state_ms == 10.0


def test_a_finished_target_is_remembered_with_the_command_that_set_it() -> None:
    m, out = scanned(HEALTHY, INPUTS._replace(bms=BMS._replace(soc_pct=80.0)))
    assert out.state is State.CHARGED
    assert m.finished == (Mode.CHARGE, 0.0, 0.5, 80.0)


def test_a_new_configuration_counts_in_the_scan_that_brings_it() -> None:
    changed = settings(revision=6, interlocks_required=0x0F)
    m = Memory(state=State.ISOLATED, settings=S, offered=S)
    inputs = OPEN_RACK._replace(settings=changed, lines=OPEN_RACK.lines._replace(interlocks=0x0F))
    after, out = scanned(m, inputs)
    assert (after.settings, out.settings_revision, out.permit) == (changed, 6, Why.NONE)
    assert out.events == ((EventKind.SETTINGS, 6, 0),)


def test_reset_and_acknowledge_act_in_the_scan_that_brings_them() -> None:
    latched = Latches(latched=1)
    m = Memory(
        state=State.EMERGENCY_STOP, settings=S, offered=S, latches=latched, pressed_ms=10.0, ack_count=0,
        chatter=detect.Chatter(0xFF), wishes=Wishes(0, heartbeat=0, wset=Reversion(0)),
    )  # fmt: skip
    command = COMMAND._replace(ack_count=1)
    pressed = OPEN_RACK._replace(command=command, lines=OPEN_RACK.lines._replace(reset_pressed=True))
    after, out = scanned(m, pressed)
    assert (after.ack_count, after.pressed_ms, after.latches.latched) == (1, 20.0, 0)
    assert out.state is State.ISOLATED
    assert out.ack_why == Why.NONE


def test_a_command_to_close_is_refused_in_the_scan_in_which_closing_is_forbidden() -> None:
    m = Memory(state=State.ISOLATED, settings=S, offered=S, wishes=Wishes(8, heartbeat=0, wset=Reversion(0)))
    for interlocks, why in ((0xFF, Why.NONE), (0xFE, Why.INTERLOCK_OPEN)):
        lines = OPEN_RACK.lines._replace(interlocks=interlocks)
        _, out = scanned(m, OPEN_RACK._replace(command=CHARGE, lines=lines))
        assert (out.ack_why, out.state) == (why, State.ISOLATED if why else State.PRECHARGE)


def test_a_refused_service_says_where_it_is_allowed() -> None:
    _, out = scanned(HEALTHY, INPUTS._replace(command=CHARGE._replace(seq=10, mode=Mode.SERVICE)))
    assert (out.ack_result, out.ack_why) == (Result.REJECTED, Why.NOT_ISOLATED)


def test_a_discharge_that_reaches_its_target_is_finished() -> None:
    discharge = CHARGE._replace(mode=Mode.DISCHARGE, target_soc_pct=50.0)
    running = HEALTHY._replace(
        state=State.DISCHARGE, demand_a=0.0, wishes=HEALTHY.wishes._replace(mode=Mode.DISCHARGE, wset=Reversion(0))
    )
    m, out = scanned(running, INPUTS._replace(command=discharge))
    assert out.state is State.READY
    assert m.finished == (Mode.DISCHARGE, 0.0, 0.5, 50.0)


def test_a_stop_opens_in_the_scan_that_sees_the_rack_at_rest() -> None:
    off = HEALTHY._replace(state=State.STOPPING, demand_a=0.0, wishes=Wishes(9, Mode.OFF, 3, heartbeat=0))
    for amps, closed in ((S.break_current + 0.1, True), (S.break_current, False)):
        bms = BMS._replace(rack_a=amps)
        _, out = scanned(off, INPUTS._replace(bms=bms, command=CHARGE._replace(mode=Mode.OFF)))
        assert (out.state, out.coil_neg, out.coil_pos) == (State.STOPPING, closed, closed)
