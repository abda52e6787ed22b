"""What the machine is told of a scan, and what a change of state does: every bit at its edge."""

from __future__ import annotations

from typing import Any

import pytest
from rig import NONE, Rig, settings
from samples import BMS, PCS

from statemachine import core, detect
from statemachine.charge import NOTHING, Loops
from statemachine.contactors import Phase, Sequence
from statemachine.core import CEILING_MS, EMPTY_C, FULL_PCT, TAIL_MS, Memory
from statemachine.delta import Delta
from statemachine.faults import BY_NAME
from statemachine.latch import Latches
from statemachine.loops import Judged
from statemachine.signals import EventKind, LimitReason, Mode, Why
from statemachine.states import CHARGING, State
from statemachine.table import TIMEOUTS_S, Bits
from statemachine.wishes import IDLE, Wish

S = settings()
INPUTS = Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0).inputs(NONE)
NOW = core._Now(BMS, PCS, Judged(), Loops(25.0, 1.0), Why.NONE)
BLIND = NOW._replace(bms=None, pcs=None, permit=Why.NO_DATA)
KNOWN = Memory(state=State.READY, settings=S, offered=S, demand_a=100.0)
QUIET = Bits(*(False,) * len(Bits._fields))


def wish(mode: Mode = Mode.CHARGE, target_soc_pct: float = 80.0, seq_rate: float = 0.5) -> Wish:
    return Wish(mode, (mode, 0.0, seq_rate, target_soc_pct), seq_rate, target_soc_pct, 0.0, False, False)


def bits(m: Memory = KNOWN, now: core._Now = NOW, w: Wish = IDLE, **changes: Any) -> Bits:
    return core._bits(m, now, w, INPUTS._replace(**changes))


def test_a_quiet_open_rack_with_its_cells_20_mv_apart() -> None:
    assert bits() == QUIET._replace(data_ok=True, opened=True, permit=True, ramped=True, spread=True)


def test_without_a_configuration_nothing_is_known_but_open_contactors() -> None:
    assert bits(Memory(), BLIND) == QUIET._replace(opened=True, ramped=True)


@pytest.mark.parametrize(
    ("fault", "bit"), [("ERR_KILL_SWITCH", "trip"), ("ERR_CONTACTOR_WELDED", "lockout"), ("ERR_COMM_LOST", "stop")]
)
@pytest.mark.parametrize("where", ["active", "latched"])
def test_a_fault_counts_active_and_latched_by_its_severity(fault: str, bit: str, where: str) -> None:
    latches = Latches(**{where: 1 << BY_NAME[fault].bit})  # type: ignore[arg-type]
    found = bits(KNOWN._replace(latches=latches))
    assert (found.trip, found.lockout, found.stop) == tuple(bit == name for name in ("trip", "lockout", "stop"))


@pytest.mark.parametrize(
    ("now", "changes", "data_ok"),
    [
        (NOW._replace(bms=None), {}, False),
        (NOW._replace(pcs=None), {}, False),
        (NOW._replace(bms=BMS._replace(plausible=False)), {}, False),
        (NOW, {"guard": None}, False),
        (NOW, {"guard_age_ms": detect.GUARD_SILENT_MS + 0.1}, False),
        (NOW, {"guard_age_ms": detect.GUARD_SILENT_MS}, True),
    ],
)
def test_data_is_complete_with_both_devices_and_the_guards_word(
    now: core._Now, changes: dict[str, Any], data_ok: bool
) -> None:
    assert bits(KNOWN, now, **changes).data_ok is data_ok


@pytest.mark.parametrize("contact", ["fb_neg", "fb_pos", "fb_pre"])
def test_one_contactor_that_reports_closed_is_not_open(contact: str) -> None:
    assert bits(lines=INPUTS.lines._replace(**{contact: True})).opened is False  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", Phase)
def test_closed_is_the_end_of_the_sequence(phase: Phase) -> None:
    assert bits(KNOWN._replace(sequence=Sequence(phase))).closed is (phase is Phase.CLOSED)


def test_permit_and_calibration_are_told_as_they_are() -> None:
    found = bits(KNOWN._replace(delta=Delta(offset_v=0.0)), NOW._replace(permit=Why.INTERLOCK_OPEN))
    assert (found.permit, found.calibrated) == (False, True)


@pytest.mark.parametrize("mode", Mode)
def test_each_mode_is_told_as_itself(mode: Mode) -> None:
    found = bits(w=wish(mode))
    assert found.run is (mode in (Mode.READY, Mode.CHARGE, Mode.DISCHARGE, Mode.GRID))
    assert (found.charge, found.discharge, found.grid, found.service) == tuple(
        mode is each for each in (Mode.CHARGE, Mode.DISCHARGE, Mode.GRID, Mode.SERVICE)
    )


def test_a_target_is_finished_as_long_as_the_command_has_the_same_content() -> None:
    m = KNOWN._replace(finished=wish().content)
    assert bits(m, w=wish()).finished is True
    assert bits(m, w=wish(target_soc_pct=81.0)).finished is False


# how long a state may last


@pytest.mark.parametrize(
    ("state", "limit_s"),
    [
        (State.INIT, 30.0),
        (State.PRECHARGE, 200.0),
        (State.CHARGE_RAMP, 900.0),
        (State.CHARGE_ABSORB, 14_400.0),
        (State.CHARGE_BALANCE, S.balance_time_limit),
        (State.STOPPING, 60.0 + S.stop_time_limit),
    ],
)
def test_a_state_on_its_way_has_a_longest_stay(state: State, limit_s: float) -> None:
    at_limit = KNOWN._replace(state=state, in_state_ms=limit_s * 1000.0)
    assert bits(at_limit).timeout is True
    assert bits(at_limit._replace(in_state_ms=limit_s * 1000.0 - 1.0)).timeout is False


@pytest.mark.parametrize("state", sorted(set(State) - set(TIMEOUTS_S) - {State.CHARGE_BALANCE}))
def test_a_state_that_is_not_on_its_way_may_last(state: State) -> None:
    assert bits(KNOWN._replace(state=state, in_state_ms=1e12)).timeout is False


@pytest.mark.parametrize(
    ("state", "stay_s", "timeout"),
    [(State.INIT, 30.0, True), (State.STOPPING, 60.0, True), (State.STOPPING, 59.9, False),
     (State.CHARGE_BALANCE, 1e9, False)],
)  # fmt: skip
def test_without_a_configuration_only_the_tables_times_count(state: State, stay_s: float, timeout: bool) -> None:
    assert bits(Memory(state=state, in_state_ms=stay_s * 1000.0), BLIND).timeout is timeout


@pytest.mark.parametrize(
    ("state", "stay_s", "at_rest"),
    [(State.STOPPING, 10.0, True), (State.STOPPING, 9.99, False), (State.READY, 10.0, False)],
)
def test_a_stop_counts_as_rest_when_its_time_is_over(state: State, stay_s: float, at_rest: bool) -> None:
    assert S.stop_time_limit == 10.0
    assert bits(KNOWN._replace(state=state, in_state_ms=stay_s * 1000.0)).at_rest is at_rest
    assert bits(KNOWN._replace(demand_a=0.0, state=state)).at_rest is True
    assert bits(Memory(state=state, in_state_ms=1e9), BLIND).at_rest is False


# charging


@pytest.mark.parametrize(
    ("state", "soc_max_pct", "zone"),
    [
        (State.CHARGE_RAMP, 70.0, True),
        (State.CHARGE_RAMP, 69.9, False),
        (State.CHARGE_BULK, 70.0, True),
        (State.CHARGE_BULK, 69.9, False),
        (State.CHARGE_STEP, 69.0, True),
        (State.CHARGE_STEP, 68.9, False),
    ],
)
def test_the_step_begins_at_70_percent_and_is_left_one_percent_below(
    state: State, soc_max_pct: float, zone: bool
) -> None:
    assert S.cell.step_factor[0][0] == 70.0
    now = NOW._replace(bms=BMS._replace(soc_max_pct=soc_max_pct))
    assert bits(KNOWN._replace(state=state), now).step_zone is zone


@pytest.mark.parametrize("reason", [LimitReason.RAMP, LimitReason.SITE])
def test_the_ramp_is_over_when_another_limit_bites(reason: LimitReason) -> None:
    assert bits(KNOWN._replace(limits=NOTHING._replace(charge_reason=reason))).ramped is (reason != LimitReason.RAMP)


@pytest.mark.parametrize(("field", "limit_ms"), [("ceiling", CEILING_MS), ("tail", TAIL_MS)])
def test_ceiling_and_tail_count_after_they_have_stood(field: str, limit_ms: float) -> None:
    for ms, expected in ((limit_ms - 0.1, False), (limit_ms, True), (limit_ms + 0.1, True)):
        assert getattr(bits(KNOWN._replace(**{f"{field}_ms": ms})), field) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("spread_v", "apart"), [(0.0099, False), (0.0101, True)])
def test_cells_are_apart_above_the_balancing_threshold(spread_v: float, apart: bool) -> None:
    assert S.cell_balancing_threshold == 0.010
    now = NOW._replace(bms=BMS._replace(cell_v_max=3.7, cell_v_min=3.7 - spread_v))
    assert bits(KNOWN, now).spread is apart


def test_cells_exactly_at_the_balancing_threshold_are_together() -> None:
    m = KNOWN._replace(settings=settings(cell_balancing_threshold=0.25))
    now = NOW._replace(bms=BMS._replace(cell_v_max=3.75, cell_v_min=3.5))
    assert bits(m, now).spread is False


# targets


def reached(w: Wish, m: Memory = KNOWN, **bms: float) -> bool:
    return core._target_reached(m, BMS._replace(**bms), w)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.READY, Mode.GRID, Mode.SERVICE])
def test_only_charge_and_discharge_have_a_target(mode: Mode) -> None:
    assert reached(wish(mode, target_soc_pct=50.0), soc_pct=50.0) is False


@pytest.mark.parametrize(("soc_pct", "there"), [(79.9, False), (80.0, True), (80.1, True)])
def test_a_charge_ends_at_its_target(soc_pct: float, there: bool) -> None:
    assert reached(wish(), soc_pct=soc_pct) is there
    assert bits(w=wish(), now=NOW._replace(bms=BMS._replace(soc_pct=soc_pct))).target is there


@pytest.mark.parametrize(
    ("target", "max_soc", "soc_pct", "there"),
    [
        (FULL_PCT, 100.0, 100.0, False),
        (FULL_PCT - 0.1, 100.0, FULL_PCT - 0.1, True),
        (100.0, 99.9, 99.9, True),
        (100.0, 99.9, 99.8, False),
        (100.0, 90.0, 90.0, True),
        (80.0, 90.0, 80.0, True),
    ],
)
def test_a_charge_to_full_is_not_ended_by_soc_but_the_soc_window_is(
    target: float, max_soc: float, soc_pct: float, there: bool
) -> None:
    m = KNOWN._replace(settings=settings(max_soc=max_soc))
    assert reached(wish(target_soc_pct=target), m, soc_pct=soc_pct) is there


@pytest.mark.parametrize(
    ("target", "min_soc", "soc_pct", "there"),
    [(20.0, 5.0, 20.1, False), (20.0, 5.0, 20.0, True), (0.0, 5.0, 5.0, True), (0.0, 5.0, 5.1, False)],
)
def test_a_discharge_ends_at_its_target_or_at_the_soc_window(
    target: float, min_soc: float, soc_pct: float, there: bool
) -> None:
    m = KNOWN._replace(settings=settings(min_soc=min_soc))
    assert reached(wish(Mode.DISCHARGE, target_soc_pct=target), m, soc_pct=soc_pct) is there


@pytest.mark.parametrize(
    ("reason", "available_c", "there"),
    [
        (LimitReason.SOC, 0.0, True),
        (LimitReason.VOLTAGE, EMPTY_C - 0.0001, True),
        (LimitReason.VOLTAGE, EMPTY_C, False),
        (LimitReason.COLD, 0.0, False),
    ],
)
def test_a_discharge_ends_where_voltage_or_soc_leave_nothing(
    reason: LimitReason, available_c: float, there: bool
) -> None:
    limits = NOTHING._replace(available_discharge_c=available_c, available_discharge_reason=reason)
    empty = KNOWN._replace(limits=limits)
    assert reached(wish(Mode.DISCHARGE, target_soc_pct=10.0), empty) is there
    assert reached(wish(Mode.CHARGE), empty) is False


def test_no_target_is_reached_without_data_or_configuration() -> None:
    assert core._target_reached(KNOWN, None, wish(target_soc_pct=0.0)) is False
    assert core._target_reached(Memory(), BMS, wish(target_soc_pct=0.0)) is False


# a change of state


def entered(m: Memory, state: State, w: Wish = IDLE, b: Bits = QUIET) -> tuple[Memory, list[tuple[int, int, int]]]:
    events: list[tuple[int, int, int]] = []
    return core._enter(m, state, w, b, events), events


def test_a_change_of_state_is_told_and_starts_its_time() -> None:
    m = KNOWN._replace(in_state_ms=500.0, finished=(1, 2.0, 3.0, 4.0), under_load=True, inrush=True)
    after, events = entered(m, State.CHARGE_RAMP)
    assert after == m._replace(state=State.CHARGE_RAMP, in_state_ms=0.0)
    assert events == [(EventKind.STATE, State.READY, State.CHARGE_RAMP)]


def test_while_nothing_changes_nothing_is_told() -> None:
    m = KNOWN._replace(in_state_ms=500.0)
    after, events = entered(m, State.READY, wish())
    assert after is m
    assert events == []
    finished = m._replace(finished=wish().content)
    assert entered(finished, State.READY, wish())[0] is finished


def test_another_command_forgets_that_the_last_was_finished() -> None:
    m = KNOWN._replace(in_state_ms=500.0, finished=wish().content)
    after, events = entered(m, State.READY, wish(target_soc_pct=81.0))
    assert after == m._replace(finished=None)
    assert events == []


@pytest.mark.parametrize(
    ("before", "after", "changes", "finished"),
    [
        (State.CHARGE_BULK, State.CHARGED, {}, True),
        (State.READY, State.CHARGED, {"target": True}, True),
        (State.DISCHARGE, State.READY, {"target": True, "discharge": True}, True),
        (State.DISCHARGE, State.READY, {"target": True}, False),
        (State.DISCHARGE, State.READY, {"discharge": True}, False),
        (State.GRID_SUPPORT, State.READY, {"target": True, "discharge": True}, False),
        (State.CHARGED, State.READY, {}, False),
    ],
)
def test_a_command_is_finished_by_reaching_its_target_only(
    before: State, after: State, changes: dict[str, bool], finished: bool
) -> None:
    old = (9, 0.0, 0.0, 0.0)
    w = wish()
    m, _ = entered(KNOWN._replace(state=before, finished=old), after, w, QUIET._replace(**changes))
    assert m.finished == (w.content if finished else old)


@pytest.mark.parametrize("state", [s for s in State if s is not State.INIT])
def test_what_an_opening_and_a_closing_showed_is_forgotten_at_the_next_precharge(state: State) -> None:
    m = Memory(under_load=True, inrush=True)
    after, _ = entered(m, state)
    expected = state is not State.PRECHARGE
    assert (after.under_load, after.inrush) == (expected, expected)
    assert (entered(Memory(), state)[0].under_load, entered(Memory(), state)[0].inrush) == (False, False)


@pytest.mark.parametrize(
    ("before", "after", "spread", "over"),
    [
        (State.CHARGE_BALANCE, State.CHARGED, True, True),
        (State.CHARGE_BALANCE, State.CHARGED, False, False),
        (State.CHARGE_BALANCE, State.READY, True, False),
        (State.CHARGE_ABSORB, State.CHARGED, True, False),
    ],
)
def test_balancing_that_ends_with_cells_apart_ran_out_of_time(
    before: State, after: State, spread: bool, over: bool
) -> None:
    assert entered(KNOWN._replace(state=before), after, b=QUIET._replace(spread=spread))[0].balance_over is over


@pytest.mark.parametrize("state", [s for s in State if s is not State.READY])
def test_the_balancing_that_ran_out_of_time_is_shown_until_the_next_charge(state: State) -> None:
    m = KNOWN._replace(balance_over=True)
    assert entered(m, state)[0].balance_over is (state not in CHARGING)
