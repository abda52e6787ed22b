"""What the core believes at the start of a scan: configuration, buttons, fresh answers, permit, each at its edge."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from rig import ARMED, COMMAND, NONE, Rig, settings
from samples import BMS, PCS

from statemachine import charge, core, detect, grid, loops
from statemachine.charge import ONE_FAILED
from statemachine.contactors import Phase, Sequence
from statemachine.core import RESET_PRESS_MS, SERVICE_PRESS_MS, Memory
from statemachine.faults import BY_NAME, SAVED_MASK, names
from statemachine.latch import Latches
from statemachine.signals import EventKind, Inputs, PcsState, Why
from statemachine.states import OPEN, State
from statemachine.wear import Wear
from statemachine.wishes import Wishes

S = settings()
WIDE = settings(revision=2, max_charge_current=2000.0)
BOTH = settings(revision=3, max_charge_current=2000.0, max_discharge_current=100.0)
INPUTS = Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0).inputs(NONE)
KNOWN = Memory(state=State.ISOLATED, settings=S, offered=S)
TRACK = loops.Track(30.0, 30.0, 30.0, 30.0, 30.0)


def test_the_numbers_of_the_core() -> None:
    assert (core.RESET_PRESS_MS, core.SERVICE_PRESS_MS, core.INRUSH_MS, core.REST_A) == (20.0, 10_000.0, 500.0, 0.5)
    assert (core.CEILING_V, core.CEILING_MS, core.TAIL_MS, core.FULL_PCT) == (0.005, 1000.0, 5000.0, 99.5)
    assert (core.STEP_HYSTERESIS_PCT, core.BMS_FULL_PCT, core.EXPECTED_FALL_C_PER_S) == (1.0, 95.0, 0.05)
    assert core.EMPTY_C == 0.005
    assert names(core.GUARD_BIT) == ["ERR_GUARD"]


def test_a_controller_begins_in_init_with_everything_open_and_nothing_known() -> None:
    m = Memory()
    assert (m.state, m.in_state_ms, m.now_ms, m.settings, m.offered) == (State.INIT, 0.0, 0.0, None, None)
    assert (m.coils, m.coils_ms, m.demand_a, m.expected_a, m.finished) == (NONE, 0.0, 0.0, (0.0, 0.0), None)
    assert (m.ack_count, m.pressed_ms, m.ceiling_ms, m.tail_ms) == (-1, 0.0, 0.0, 0.0)
    assert (m.under_load, m.inrush, m.balance_over) == (False, False, False)


def test_only_trips_and_lockouts_latch_again_after_a_power_cycle() -> None:
    worn = Wear(cycles=7)
    m = core.started((1 << 63) - 1, worn)
    assert m == Memory(latches=Latches(latched=SAVED_MASK), wear=worn)


# configuration


def adopted(m: Memory, inputs: Inputs) -> tuple[Memory, list[tuple[int, int, int]]]:
    events: list[tuple[int, int, int]] = []
    return core._adopt(m, inputs, events), events


def test_without_a_configuration_the_one_before_stays() -> None:
    after, events = adopted(KNOWN, INPUTS._replace(settings=None))
    assert after is KNOWN
    assert events == []


@pytest.mark.parametrize("state", State)
def test_the_first_configuration_is_taken_whole_in_every_state(state: State) -> None:
    after, events = adopted(Memory(state=state), INPUTS._replace(settings=WIDE))
    assert (after.settings, after.offered) == (WIDE, WIDE)
    assert events == [(EventKind.SETTINGS, 2, 0)]


@pytest.mark.parametrize("state", State)
def test_a_wider_configuration_waits_until_the_rack_is_open(state: State) -> None:
    after, events = adopted(KNOWN._replace(state=state), INPUTS._replace(settings=WIDE))
    assert after.settings is not None
    assert after.settings.max_charge_current == (2000.0 if state in OPEN else S.max_charge_current)
    assert after.offered is WIDE
    assert events == [(EventKind.SETTINGS, 2, 0 if state in OPEN else 1)]


@pytest.mark.parametrize("contact", ["fb_neg", "fb_pos", "fb_pre"])
def test_a_contactor_that_reports_closed_keeps_a_wider_configuration_waiting(contact: str) -> None:
    closed = INPUTS.lines._replace(**{contact: True})  # type: ignore[arg-type]
    after, events = adopted(KNOWN, INPUTS._replace(settings=BOTH, lines=closed))
    assert after.settings == replace(S, revision=3, max_discharge_current=100.0), "what is narrower acts at once"
    assert events == [(EventKind.SETTINGS, 3, 1)]


def test_a_configuration_that_waits_is_told_once() -> None:
    running = KNOWN._replace(state=State.READY, offered=WIDE)
    after, events = adopted(running, INPUTS._replace(settings=replace(WIDE)))
    assert after is running
    assert events == []


def test_what_was_not_offered_before_is_looked_at() -> None:
    after, _ = adopted(KNOWN._replace(state=State.READY, offered=None), INPUTS._replace(settings=BOTH))
    assert after.settings == replace(S, revision=3, max_discharge_current=100.0)


def test_a_waiting_configuration_is_taken_when_the_rack_opens() -> None:
    after, events = adopted(KNOWN._replace(offered=WIDE), INPUTS._replace(settings=WIDE))
    assert after.settings is WIDE
    assert events == [(EventKind.SETTINGS, 2, 0)]


def test_the_same_configuration_again_changes_nothing_at_all() -> None:
    after, events = adopted(KNOWN, INPUTS._replace(settings=S))
    assert after is KNOWN
    again = replace(S)
    after, told = adopted(KNOWN, INPUTS._replace(settings=again))
    assert after == KNOWN
    assert after.offered is again
    assert events == told == []


# acknowledge, RESET and service press


@pytest.mark.parametrize(
    ("before", "count", "ack"),
    [(-1, 0, False), (-1, 5, False), (0, 0, False), (0, 1, True), (4, 5, True), (5, 4, False)],
)
def test_an_acknowledge_is_a_count_that_has_grown_since_it_was_first_read(before: int, count: int, ack: bool) -> None:
    known = KNOWN._replace(ack_count=before)
    after, acknowledged = core._acknowledged(known, COMMAND._replace(ack_count=count))
    assert (after, acknowledged) == (known._replace(ack_count=count), ack)
    assert (after is known) == (count == before)


def test_without_a_server_the_count_of_acknowledges_is_kept() -> None:
    known = KNOWN._replace(ack_count=3)
    assert core._acknowledged(known, None) == (known, False)


@pytest.mark.parametrize(
    ("held_ms", "reset", "service"),
    [
        (0.0, False, False), (RESET_PRESS_MS - 10.1, False, False), (RESET_PRESS_MS - 10.0, True, False),
        (RESET_PRESS_MS - 0.1, True, False), (RESET_PRESS_MS, False, False), (SERVICE_PRESS_MS - 10.1, False, False),
        (SERVICE_PRESS_MS - 10.0, False, True), (SERVICE_PRESS_MS - 0.1, False, True), (SERVICE_PRESS_MS, False, False),
    ],
)  # fmt: skip
def test_reset_counts_once_after_two_scans_and_a_service_press_after_ten_seconds(
    held_ms: float, reset: bool, service: bool
) -> None:
    lines = INPUTS.lines._replace(reset_pressed=True)
    after, pressed = core._press(KNOWN._replace(pressed_ms=held_ms), lines, 10.0)
    assert pressed == (reset, service)
    assert after.pressed_ms == held_ms + 10.0


def test_a_released_button_starts_again_and_time_goes_on() -> None:
    after, pressed = core._press(KNOWN._replace(pressed_ms=15.0, now_ms=100.0), INPUTS.lines, 10.0)
    assert pressed == (False, False)
    assert after == KNOWN._replace(pressed_ms=0.0, now_ms=110.0)


# fresh, identified and finite


def judged(m: Memory = KNOWN, **changes: Any) -> tuple[Memory, core._Now]:
    return core._judge(m, INPUTS._replace(**changes), 10.0)


def test_without_a_configuration_nothing_is_believed() -> None:
    m = Memory(loops=loops.LoopMemory(age_ms=1.0))
    after, now = judged(m)
    assert after is m
    assert now._replace(loops=now.loops._replace(hottest_c=0.0), judged=now.judged._replace(hottest_c=0.0)) == (
        None, None, loops.Judged(hottest_c=0.0), charge.Loops(0.0, 0.0), Why.NO_CONFIGURATION, grid.DEFAULT,
    )  # fmt: skip
    assert math.isnan(now.loops.hottest_c)


def test_a_healthy_answer_is_believed_as_it_is() -> None:
    _, now = judged()
    assert (now.bms, now.pcs, now.permit) == (BMS, PCS, Why.NONE)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"bms": None}, False),
        ({"bms": BMS._replace(poll=0)}, False),
        ({"bms": BMS._replace(poll=1)}, True),
        ({"bms": BMS._replace(identity_ok=False)}, False),
        ({"bms_age_ms": S.bms_timeout * 1000.0}, True),
        ({"bms_age_ms": S.bms_timeout * 1000.0 + 0.1}, False),
    ],
)
def test_bms_data_is_used_up_to_its_timeout_and_from_a_known_device_only(changes: dict[str, Any], seen: bool) -> None:
    _, now = judged(**changes)
    assert (now.bms is not None, now.pcs) == (seen, PCS)
    assert now.permit is (Why.NONE if seen else Why.NO_DATA)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"pcs": None}, False),
        ({"pcs": PCS._replace(poll=0)}, False),
        ({"pcs": PCS._replace(poll=1)}, True),
        ({"pcs": PCS._replace(identity_ok=False)}, False),
        ({"pcs_age_ms": S.pcs_timeout * 1000.0}, True),
        ({"pcs_age_ms": S.pcs_timeout * 1000.0 + 0.1}, False),
    ],
)
def test_pcs_data_is_used_up_to_its_timeout_and_from_a_known_device_only(changes: dict[str, Any], seen: bool) -> None:
    _, now = judged(**changes)
    assert (now.pcs is not None, now.bms) == (seen, BMS)
    assert now.permit is (Why.NONE if seen else Why.NO_DATA)


@pytest.mark.parametrize("name", ["rack_v", "rack_a", "soc_pct", "cell_v_max", "cell_v_min"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bms_without_a_number_that_decides_is_implausible(name: str, value: float) -> None:
    _, now = judged(bms=BMS._replace(**{name: value}))  # type: ignore[arg-type]
    assert now.bms is not None
    assert now.bms.plausible is False
    assert now.permit is Why.NO_DATA


@pytest.mark.parametrize(("rack_a", "loaded"), [(-0.21 * 1120.0, True), (0.21 * 1120.0, True), (0.19 * 1120.0, False)])
def test_thermal_loops_are_compared_under_load_in_either_direction(rack_a: float, loaded: bool) -> None:
    ma = 4.0 + (30.0 - S.loop_low_c) / (S.loop_high_c - S.loop_low_c) * 16.0
    memory = loops.LoopMemory(10.0, (TRACK,) * 8, 0xFF)
    lines = INPUTS.lines._replace(loops_ma=(ma,) * 8, loops_age_ms=5.0)
    for bms, expected in ((BMS._replace(rack_a=rack_a), loaded), (None, False)):
        after, now = judged(KNOWN._replace(loops=memory), bms=bms, lines=lines)
        assert {t is not None and t.still_ms != loops.UNSEEN for t in after.loops.tracks} == {expected}
        assert after.loops.age_ms == 5.0
        assert now.judged == after.loops.judged
        assert now.judged.hottest_c == pytest.approx(30.0)


def test_the_age_of_loop_samples_is_compared_over_the_scan() -> None:
    """A sample as old as the last one could be now is the same sample."""
    lines = INPUTS.lines._replace(loops_age_ms=20.0)
    memory = loops.LoopMemory(10.0, (TRACK,) * 8, 0xFF)
    after, _ = core._judge(KNOWN._replace(loops=memory), INPUTS._replace(lines=lines), 10.0)
    assert after.loops.tracks == memory.tracks
    after, _ = core._judge(KNOWN._replace(loops=memory), INPUTS._replace(lines=lines), 30.0)
    assert after.loops.tracks != memory.tracks


def test_a_failed_loop_leaves_half_the_rate() -> None:
    lines = INPUTS.lines._replace(loops_ma=(0.0, *(13.0,) * 7))
    _, now = judged(lines=lines)
    assert now.judged.failed == 1
    assert now.loops == detect.loops_for_law(now.judged, S)
    assert now.loops.share == ONE_FAILED


# the permit


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bms": BMS._replace(plausible=False)}, Why.NO_DATA),
        ({"bms": BMS._replace(alarm_stop=1)}, Why.BMS_ALARM),
        ({"bms": BMS._replace(alarm_trip=1)}, Why.BMS_ALARM),
        ({"bms": BMS._replace(alarm_warn=1)}, Why.NONE),
        ({"pcs": PCS._replace(state=PcsState.FAULT)}, Why.PCS_FAULT),
        ({"pcs": PCS._replace(state=PcsState.OFF)}, Why.NONE),
        ({"pcs": PCS._replace(fault_bits=1)}, Why.PCS_FAULT),
        ({"guard": None}, Why.GUARD_NOT_ARMED),
        ({"guard": ARMED._replace(armed=False)}, Why.GUARD_NOT_ARMED),
        ({"guard_age_ms": detect.GUARD_SILENT_MS}, Why.NONE),
        ({"guard_age_ms": detect.GUARD_SILENT_MS + 0.1}, Why.GUARD_NOT_ARMED),
        ({"lines": INPUTS.lines._replace(interlocks=0xFE)}, Why.INTERLOCK_OPEN),
        ({"lines": INPUTS.lines._replace(interlocks=0xFE, remote=False)}, Why.INTERLOCK_OPEN),
        ({"lines": INPUTS.lines._replace(remote=False)}, Why.LOCAL_CONTROL),
    ],
)
def test_what_forbids_closing(changes: dict[str, Any], why: Why) -> None:
    assert judged(**changes)[1].permit is why


def test_without_commissioning_nothing_else_is_asked() -> None:
    m = KNOWN._replace(settings=settings(commissioned=False))
    assert judged(m)[1].permit is Why.NOT_COMMISSIONED
    assert judged(m, bms=None, pcs=None, guard=None)[1].permit is Why.NOT_COMMISSIONED


def test_a_key_that_does_not_count_as_remote_yet_forbids_closing() -> None:
    assert judged(KNOWN._replace(wishes=Wishes(remote=False)))[1].permit is Why.LOCAL_CONTROL


@pytest.mark.parametrize(("fault", "why"), [("ERR_COMM_LOST", Why.FAULT_LATCHED), ("ERR_CONFIG", Why.NONE)])
@pytest.mark.parametrize("where", ["active", "latched"])
def test_a_fault_that_stops_forbids_closing_while_it_is_shown_and_a_warning_does_not(
    fault: str, why: Why, where: str
) -> None:
    latches = Latches(**{where: 1 << BY_NAME[fault].bit})  # type: ignore[arg-type]
    assert judged(KNOWN._replace(latches=latches))[1].permit is why


def test_an_interlock_that_is_not_required_forbids_nothing() -> None:
    m = KNOWN._replace(settings=settings(interlocks_required=0x0F))
    assert judged(m, lines=INPUTS.lines._replace(interlocks=0x0F))[1].permit is Why.NONE
    assert judged(m, lines=INPUTS.lines._replace(interlocks=0x0E))[1].permit is Why.INTERLOCK_OPEN


# the grid


@pytest.mark.parametrize("phase", Phase)
def test_the_rack_serves_the_grid_while_both_mains_are_closed(phase: Phase) -> None:
    after, _ = judged(KNOWN._replace(sequence=Sequence(phase), service=grid.Service(waited_ms=30.0)))
    closed = phase is Phase.CLOSED
    served_ms = 10.0 if closed else 0.0
    assert after.service[:4] == (closed, True, 40.0, served_ms)
