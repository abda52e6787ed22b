"""What the core watches in a scan: what the conditions get to see, what is told, and what a service press does."""

from __future__ import annotations

from typing import Any

import pytest
from rig import Rig, settings
from samples import BMS, PCS

from statemachine import core, detect
from statemachine.charge import NOTHING, Limits, Loops
from statemachine.contactors import Coils, Phase, Sequence
from statemachine.core import Memory
from statemachine.delta import CALIBRATION_SAMPLES, IN_A_ROW, Delta
from statemachine.faults import BY_NAME, CONFIRM_MS
from statemachine.latch import Latches
from statemachine.loops import Judged
from statemachine.reversion import Reversion
from statemachine.signals import EventKind, LimitReason, Mode, Result, Why
from statemachine.states import State
from statemachine.wear import Wear
from statemachine.wishes import Wishes

S = settings()
CLOSED_COILS = Coils(True, True, False)
INPUTS = Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0, output_sticks=CLOSED_COILS).inputs(CLOSED_COILS)
NOW = core._Now(BMS, PCS, Judged(hottest_c=31.0), Loops(31.0, 1.0), Why.NONE)
QUIET, RESET, SERVICE = core._Pressed(False, False), core._Pressed(True, False), core._Pressed(False, True)
RUNNING = Memory(
    state=State.READY, in_state_ms=700.0, settings=S, offered=S, sequence=Sequence(Phase.CLOSED, 900.0, 1),
    coils=CLOSED_COILS, coils_ms=800.0, delta=Delta(pcs_poll=PCS.poll, bms_poll=BMS.poll, offset_v=0.0), ack_count=0,
    chatter=detect.Chatter(0xFF),
)  # fmt: skip
WELDED, OVERCURRENT = (1 << BY_NAME[name].bit for name in ("ERR_CONTACTOR_WELDED", "ERR_OVERCURRENT"))
KILL = 1 << BY_NAME["ERR_KILL_SWITCH"].bit
LOST = 1 << BY_NAME["ERR_COMM_LOST"].bit
UNDER_LOAD = BY_NAME["ERR_OPENED_UNDER_LOAD"].bit

Told = list[tuple[int, int, int]]


def watched(
    m: Memory = RUNNING,
    now: core._Now = NOW,
    pressed: core._Pressed = QUIET,
    ack: bool = False,
    dt_ms: float = 10.0,
    **changes: Any,
) -> tuple[Memory, Told]:
    events: Told = []
    m, standing = core._detect(m, now, INPUTS._replace(**changes), pressed, dt_ms, events)
    return core._latch(m, standing, ack, pressed, dt_ms, events), events


def seen_by_the_conditions(monkeypatch: pytest.MonkeyPatch, m: Memory, now: core._Now = NOW) -> detect.Seen:
    """What detect.raw is given in one scan."""
    seen: list[detect.Seen] = []

    def raw(v: detect.Seen) -> int:
        seen.append(v)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(detect, "raw", raw)
        watched(m, now)
    return seen[0]


def test_a_healthy_rack_has_nothing_to_tell() -> None:
    after, events = watched()
    assert after.latches == Latches()
    assert events == []


def test_the_conditions_see_the_whole_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    m = RUNNING._replace(
        demand_a=7.0, expected_a=(70.0, 80.0), wishes=Wishes(lost=True), under_load=True, inrush=False,
        balance_over=True, wear=Wear(cycles=3), chatter=detect.Chatter(0xFE, 5.0),
        limits=Limits(0.5, LimitReason.SITE, 0.25, LimitReason.SITE, 0.1, LimitReason.BMS, 0.125, LimitReason.BMS),
    )  # fmt: skip
    seen = seen_by_the_conditions(monkeypatch, m)
    assert seen == detect.Seen(
        inputs=INPUTS, settings=S, bms=BMS, pcs=PCS, loops=NOW.judged, state=State.READY, in_state_ms=700.0,
        coils=CLOSED_COILS, unchanged_ms=800.0, sequence=m.sequence, delta=seen.delta, demand_a=7.0,
        allowed_a=(70.0, 80.0), heartbeat_lost=True, opened_under_load=True, closed_under_load=False,
        balance_over=True, chatter=seen.chatter, wear=Wear(cycles=3),
    )  # fmt: skip
    assert seen.delta is m.delta, "no new sample"
    assert seen.chatter == pytest.approx(6.0, abs=0.1), "one interlock moved"
    other = seen_by_the_conditions(monkeypatch, m._replace(under_load=False, inrush=True, balance_over=False))
    assert (other.opened_under_load, other.closed_under_load, other.balance_over) == (False, True, False)


@pytest.mark.parametrize(
    ("state", "limits_c", "expected_a", "allowed_a"),
    [
        (State.READY, (0.5, 0.1, 0.25, 0.125), (9e9, 9e9), (560.0, 280.0)),
        (State.READY, (0.1, 0.5, 0.125, 0.25), (9e9, 9e9), (560.0, 280.0)),
        (State.READY, (0.5, 0.5, 0.5, 0.5), (3.0, 4.0), (3.0, 4.0)),
        (State.CHARGE_BULK, (0.5, 0.5, 0.5, 0.5), (9e9, 4.0), (560.0, 4.0)),
        (State.STOPPING, (0.5, 0.1, 0.25, 0.125), (3.0, 4.0), (560.0, 280.0)),
    ],
)
def test_the_current_that_is_allowed_is_what_limits_and_demand_explain(
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    limits_c: tuple[float, float, float, float],
    expected_a: tuple[float, float],
    allowed_a: tuple[float, float],
) -> None:
    """In STOPPING only the limits count: there the bound of the stop decides, a trip would only open earlier."""
    charge_c, available_charge_c, discharge_c, available_discharge_c = limits_c
    limits = NOTHING._replace(
        charge_c=charge_c, discharge_c=discharge_c, available_charge_c=available_charge_c,
        available_discharge_c=available_discharge_c,
    )  # fmt: skip
    m = RUNNING._replace(state=state, limits=limits, expected_a=expected_a)
    assert seen_by_the_conditions(monkeypatch, m).allowed_a == pytest.approx(allowed_a)


def test_without_a_configuration_no_current_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    m = Memory(limits=NOTHING._replace(charge_c=1.0, discharge_c=1.0), expected_a=(9e9, 9e9))
    seen = seen_by_the_conditions(monkeypatch, m, NOW._replace(bms=None, pcs=None))
    assert seen.allowed_a == (0.0, 0.0)
    assert (seen.settings, seen.bms, seen.pcs) == (None, None, None)
    assert seen.delta is m.delta


# the two-volt rule


@pytest.mark.parametrize(
    "phase", [phase for phase in Phase if phase is not Phase.CLOSED], ids=lambda phase: str(phase.name)
)
def test_the_offset_of_the_meters_is_forgotten_when_the_contactors_are_not_closed(phase: Phase) -> None:
    after, events = watched(RUNNING._replace(sequence=Sequence(phase)))
    assert not after.delta.calibrated
    assert events == []


def nearly_calibrated(raw_v: float) -> Delta:
    """One sample short of an offset."""
    return Delta(
        pcs_poll=PCS.poll - 1, bms_poll=BMS.poll - 1, sums=(CALIBRATION_SAMPLES - 1, raw_v * (CALIBRATION_SAMPLES - 1))
    )


def test_a_new_offset_is_told_in_millivolts_once() -> None:
    now = NOW._replace(pcs=PCS._replace(dc_v=BMS.rack_v + 1.5))
    after, events = watched(RUNNING._replace(delta=nearly_calibrated(1.5)), now)
    assert after.delta.offset_v == pytest.approx(1.5)
    assert events == [(EventKind.DV_ZERO, 1500, 0)]
    _, events = watched(after, now)
    assert events == []


def test_a_difference_of_more_than_two_volts_trips_in_the_scan_that_sees_it() -> None:
    delta = Delta(pcs_poll=PCS.poll - 1, bms_poll=BMS.poll - 1, offset_v=0.0, bad_in_row=IN_A_ROW - 1)
    now = NOW._replace(pcs=PCS._replace(dc_v=BMS.rack_v + S.max_delta_voltage + 0.1))
    after, events = watched(RUNNING._replace(delta=delta), now)
    assert after.latches.active == 1 << BY_NAME["ERR_DELTA_V"].bit
    assert events == [(EventKind.FAULT_ON, BY_NAME["ERR_DELTA_V"].bit, 0)]


# faults on, off, acknowledged


def test_faults_are_told_by_their_bits_lowest_first() -> None:
    events: Told = []
    core._tell_bits(EventKind.FAULT_ON, 0b1001_0010, events)
    assert events == [(EventKind.FAULT_ON, 1, 0), (EventKind.FAULT_ON, 4, 0), (EventKind.FAULT_ON, 7, 0)]


def test_a_fault_is_told_when_it_comes_and_when_it_goes_and_when_it_is_acknowledged() -> None:
    opened = INPUTS.lines._replace(kill_ok=False)
    on, events = watched(lines=opened)
    assert (on.latches.active, on.latches.latched) == (KILL, KILL)
    assert events == [(EventKind.FAULT_ON, 0, 0)]
    still, events = watched(on, lines=opened)
    assert events == []
    gone, events = watched(still)
    assert (gone.latches.active, gone.latches.latched) == (0, KILL)
    assert events == [(EventKind.FAULT_OFF, 0, 0)]
    reset, events = watched(gone, pressed=RESET)
    assert (reset.latches.latched, events) == (KILL, [])
    cleared, events = watched(reset, ack=True)
    assert (cleared.latches.latched, events) == (0, [(EventKind.FAULT_ACK, 0, 0)])


def test_a_warning_that_comes_back_is_told_again() -> None:
    on, events = watched(RUNNING._replace(under_load=True))
    assert events == [(EventKind.FAULT_ON, UNDER_LOAD, 0)]
    _, events = watched(on._replace(under_load=False))
    assert events == [(EventKind.FAULT_OFF, UNDER_LOAD, 0)]


@pytest.mark.parametrize("dt_ms", [10.0, 20.0])
def test_a_condition_is_confirmed_by_the_time_that_passes(dt_ms: float) -> None:
    name = "ERR_OVERCURRENT"
    bit = BY_NAME[name].bit
    m = RUNNING._replace(latches=Latches(((bit, CONFIRM_MS[bit] - dt_ms),)))
    over = NOW._replace(bms=BMS._replace(rack_a=300.0))
    just_not, _ = watched(m, over, dt_ms=dt_ms)
    assert just_not.latches.active & OVERCURRENT == 0
    confirmed, _ = watched(just_not, over, dt_ms=dt_ms)
    assert confirmed.latches.active & OVERCURRENT


@pytest.mark.parametrize(
    ("latches", "pressed", "ack", "why"),
    [
        (Latches(latched=LOST), QUIET, True, Why.NONE),
        (Latches(latched=KILL), QUIET, True, Why.CAUSE_ACTIVE),
        (Latches(), QUIET, True, Why.NONE),
        (Latches(latched=LOST), QUIET, False, Why.BMS_ALARM),
        (Latches(), RESET, False, Why.BMS_ALARM),
    ],
)
def test_an_acknowledge_is_answered_by_whether_something_is_still_latched(
    latches: Latches, pressed: core._Pressed, ack: bool, why: Why
) -> None:
    m = RUNNING._replace(latches=latches, wishes=Wishes(seq=4, why=Why.BMS_ALARM))
    after, _ = watched(m, pressed=pressed, ack=ack)
    assert after.wishes == m.wishes._replace(why=why)


@pytest.mark.parametrize("before", [0, core.HEARTBEAT_BIT])
@pytest.mark.parametrize("lost", [True, False])
def test_whether_the_heartbeat_is_lost_is_what_the_command_of_this_scan_says(before: int, lost: bool) -> None:
    m = RUNNING._replace(wishes=Wishes(lost=lost))
    after = core._latch(m, before | KILL, False, QUIET, 10.0, [])
    assert after.latches.active == KILL | lost * core.HEARTBEAT_BIT


# service press


@pytest.mark.parametrize("state", State)
def test_a_service_press_counts_where_somebody_stands_before_an_open_rack(state: State) -> None:
    worn = Wear(cycles=9, opened_under_load=2, closed_under_load=3, precharges=8)
    after, events = watched(RUNNING._replace(state=state, wear=worn), pressed=SERVICE)
    told = [event for event in events if event[0] == EventKind.SERVICE_PRESS]
    if state is State.SERVICE:
        assert (after.wear, told) == (Wear(), [(EventKind.SERVICE_PRESS, 1, 0)])
    elif state is State.LOCKOUT:
        assert after.wear == worn._replace(opened_under_load=0, closed_under_load=0)
        assert told == [(EventKind.SERVICE_PRESS, 0, 0)]
    else:
        assert (after.wear, told) == (worn, [])


@pytest.mark.parametrize(("pressed", "ack"), [(QUIET, False), (QUIET, True), (RESET, False)])
def test_nothing_but_a_service_press_starts_the_counters_again(pressed: core._Pressed, ack: bool) -> None:
    m = RUNNING._replace(state=State.SERVICE, wear=Wear(cycles=9))
    assert watched(m, pressed=pressed, ack=ack)[0].wear == Wear(cycles=9)


def test_a_service_press_and_an_acknowledge_clear_a_lockout() -> None:
    m = RUNNING._replace(state=State.LOCKOUT, latches=Latches(latched=WELDED))
    for press, ack in ((RESET, False), (QUIET, True)):
        assert watched(m, pressed=press, ack=ack)[0].latches.latched == WELDED
    serviced, _ = watched(m, pressed=SERVICE)
    after, _ = watched(serviced, ack=True)
    assert after.latches.latched == 0


def test_interlock_edges_are_counted_and_leak_with_time() -> None:
    m = RUNNING._replace(chatter=detect.Chatter(0xFF, 5.0))
    assert watched(m, dt_ms=500.0)[0].chatter == detect.Chatter(0xFF, 4.0)


# commands, heartbeat and reversion in the log

BEFORE = Wishes(seq=4, mode=Mode.READY, result=Result.ACCEPTED, why=Why.NONE)
FRAMED = BEFORE._replace(seq=9 * 2**32 + 4)


@pytest.mark.parametrize(
    ("before", "changes", "events"),
    [
        (BEFORE, {}, []),
        (BEFORE, {"why": Why.BMS_ALARM}, []),
        (BEFORE, {"seq": 5}, [(EventKind.COMMAND, 5, Why.NONE)]),
        (BEFORE, {"mode": Mode.CHARGE}, [(EventKind.COMMAND, 4, Why.NONE)]),
        (BEFORE, {"result": Result.REJECTED, "why": Why.NO_DATA}, [(EventKind.COMMAND, 4, Why.NO_DATA)]),
        (Wishes(), {"seq": 0, "result": Result.ACCEPTED}, []),
        (Wishes(), {"seq": 0, "mode": Mode.READY}, [(EventKind.COMMAND, 0, Why.NONE)]),
        (Wishes(seq=0), {"seq": 1}, [(EventKind.COMMAND, 1, Why.NONE)]),
        (BEFORE, {"lost": True}, [(EventKind.HEARTBEAT, 0, 0)]),
        (BEFORE._replace(lost=True), {"lost": False}, [(EventKind.HEARTBEAT, 1, 0)]),
        (BEFORE, {"wset": Reversion(reverted=3)}, [(EventKind.REVERT, 3, 0)]),
        (BEFORE, {"remote": False}, [(EventKind.KEY_SWITCH, 0, 0)]),
        (BEFORE._replace(remote=False), {"remote": True}, [(EventKind.KEY_SWITCH, 1, 0)]),
        (BEFORE, {"expired": True}, [(EventKind.VALIDITY, 0, 0)]),
        (BEFORE._replace(expired=True), {"expired": False}, [(EventKind.VALIDITY, 1, 0)]),
        (BEFORE, {"seq": 2**32 - 1}, [(EventKind.COMMAND, 2**32 - 1, Why.NONE)]),
        (BEFORE, {"seq": 2**32}, [(EventKind.COMMAND, 0, Why.NONE)]),
        (BEFORE, {"seq": 4 * 2**32 + 4}, [(EventKind.COMMAND, 4, Why.NONE)]),
        (FRAMED, {"seq": 9 * 2**32}, []),
        (FRAMED, {"seq": 10 * 2**32 - 1}, []),
        (FRAMED, {"seq": 10 * 2**32 + 4}, [(EventKind.COMMAND, 4, Why.NONE)]),
        (FRAMED, {"seq": 8 * 2**32 + 4}, [(EventKind.COMMAND, 4, Why.NONE)]),
        (FRAMED, {"seq": 4}, [(EventKind.COMMAND, 4, Why.NONE)]),
        (FRAMED, {"seq": 9 * 2**32 + 5, "mode": Mode.CHARGE}, [(EventKind.COMMAND, 5, Why.NONE)]),
        (FRAMED, {"result": Result.REJECTED, "why": Why.NO_DATA}, [(EventKind.COMMAND, 4, Why.NO_DATA)]),
    ],
)
def test_what_is_told_of_a_command(before: Wishes, changes: dict[str, Any], events: Told) -> None:
    """The first command after a start is not told when it is OFF: nobody sent it. Frames of an epoch are one stream."""
    told: Told = []
    core._tell_wishes(before, before._replace(**changes), told)
    assert told == events


# at rest


@pytest.mark.parametrize(
    ("demand_a", "bms_a", "pcs_a", "rest"),
    [
        (0.0, 0.0, 0.0, True),
        (0.5, 0.0, 0.0, True),
        (0.51, 0.0, 0.0, False),
        (-0.51, 0.0, 0.0, False),
        (0.0, 10.0, 99.0, True),
        (0.0, -10.0, 99.0, True),
        (0.0, 10.1, 0.0, False),
        (0.0, -10.1, 0.0, False),
        (0.0, None, 10.0, True),
        (0.0, None, -10.0, True),
        (0.0, None, 10.1, False),
        (0.0, None, -10.1, False),
        (0.0, None, None, False),
        (0.0, float("nan"), 0.0, True),
        (0.0, float("inf"), 0.0, True),
        (0.0, float("nan"), 11.0, False),
    ],
)
def test_at_rest_is_a_demand_of_zero_and_one_meter_below_the_break_current(
    demand_a: float, bms_a: float | None, pcs_a: float | None, rest: bool
) -> None:
    """The BMS counts while it measures, the PCS when it does not."""
    assert (S.break_current, core.REST_A) == (10.0, 0.5)
    bms = None if bms_a is None else BMS._replace(rack_a=bms_a)
    pcs = None if pcs_a is None else PCS._replace(dc_a=pcs_a)
    assert core._at_rest(RUNNING._replace(demand_a=demand_a), NOW._replace(bms=bms, pcs=pcs)) is rest


def test_without_a_configuration_there_is_no_break_current_and_no_rest() -> None:
    assert core._at_rest(Memory(), NOW) is False
