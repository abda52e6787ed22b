"""Contactors and current in one scan of the core: what opens and closes them, and what may flow, at the edges."""

from __future__ import annotations

from typing import Any

import pytest
from rig import NONE, Rig, settings
from samples import BMS, PCS

from statemachine import charge, core, wear
from statemachine.charge import NOTHING, Law, Limits, Loops
from statemachine.contactors import COILS, FEEDBACK_MS, TRIES, Coils, Phase, Sequence
from statemachine.core import BMS_FULL_PCT, CEILING_V, EXPECTED_FALL_C_PER_S, INRUSH_MS, Memory
from statemachine.loops import Judged
from statemachine.signals import EventKind, Inputs, LimitReason, Mode, Why
from statemachine.states import CLOSED, State
from statemachine.table import Bits
from statemachine.wear import Wear
from statemachine.wishes import IDLE, Wish

S = settings()
AH = S.rated_ah
CLOSED_COILS = Coils(True, True, False)
NOW = core._Now(BMS, PCS, Judged(), Loops(25.0, 1.0), Why.NONE)
QUIET = Bits(*(False,) * len(Bits._fields))
RUNNING = Memory(
    state=State.CHARGE_BULK, in_state_ms=700.0, settings=S, offered=S, sequence=Sequence(Phase.CLOSED, 900.0, 1),
    coils=CLOSED_COILS, coils_ms=900.0,
)  # fmt: skip
Told = list[tuple[int, int, int]]


def reported(true: Coils) -> Inputs:
    """Inputs with these contactors reported closed."""
    return Rig(bms=BMS, pcs=PCS, bms_at=-50.0, pcs_at=-10.0, output_sticks=true).inputs(true)


INPUTS = reported(CLOSED_COILS)


def switched(
    m: Memory, now: core._Now = NOW, at_rest: bool = False, inputs: Inputs = INPUTS, dt_ms: float = 10.0
) -> tuple[Memory, Told]:
    events: Told = []
    return core._switch(m, now, QUIET._replace(at_rest=at_rest), inputs, dt_ms, events), events


# contactors


@pytest.mark.parametrize("state", State)
def test_closed_contactors_stay_closed_in_the_states_that_want_them_closed(state: State) -> None:
    after, events = switched(RUNNING._replace(state=state))
    if state in CLOSED or state is State.PRECHARGE:
        assert after == RUNNING._replace(
            state=state, sequence=Sequence(Phase.CLOSED, 910.0, 1), coils_ms=910.0, in_state_ms=710.0
        )
        assert events == []
    else:
        assert (after.coils, after.sequence, after.coils_ms) == (NONE, Sequence(tries=1), 0.0)
        assert events == [(EventKind.COILS, 0, 0)]


@pytest.mark.parametrize("state", State)
def test_only_precharge_closes_contactors(state: State) -> None:
    m = Memory(state=state, settings=S, coils_ms=50.0)
    after, events = switched(m, inputs=reported(NONE))
    if state is State.PRECHARGE:
        assert (after.sequence, after.coils, after.coils_ms) == (
            Sequence(Phase.NEGATIVE, 0.0, 1),
            (True, False, False),
            0.0,
        )
        assert events == [(EventKind.COILS, 0b001, 0)]
    else:
        assert after == m._replace(coils_ms=60.0, in_state_ms=10.0)
        assert events == []


@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.OPEN, Phase.CLOSED)], ids=lambda p: str(p.name))
def test_a_sequence_that_is_not_finished_is_given_up_outside_precharge(phase: Phase) -> None:
    for state in (State.READY, State.STOPPING):
        m = RUNNING._replace(state=state, sequence=Sequence(phase, 50.0, 2), coils=COILS[phase])
        after, _ = switched(m)
        assert (after.sequence, after.coils) == (Sequence(tries=2), NONE)


@pytest.mark.parametrize(("state", "opens"), [(State.STOPPING, True), (State.READY, False), (State.PRECHARGE, False)])
def test_rest_opens_in_stopping_only(state: State, opens: bool) -> None:
    after, events = switched(RUNNING._replace(state=state), at_rest=True)
    assert after.coils == (NONE if opens else CLOSED_COILS)
    assert events == ([(EventKind.COILS, 0, 0)] if opens else [])


def test_without_a_configuration_everything_opens() -> None:
    after, events = switched(RUNNING._replace(settings=None, offered=None, wear=Wear(closing_level=1.0)))
    assert (after.sequence, after.coils, after.inrush) == (Sequence(), NONE, False)
    assert after.under_load, "without a break current nothing says that it was at rest"
    assert after.wear == Wear(closing_level=1.0)
    assert events == [(EventKind.COILS, 0, 0)]


@pytest.mark.parametrize(
    ("phase", "true", "event"),
    [
        (Phase.NEGATIVE, Coils(True, False, False), (EventKind.COILS, 0b101, 0)),
        (Phase.POSITIVE, Coils(True, True, True), (EventKind.COILS, 0b011, 0)),
        (Phase.RELEASE, CLOSED_COILS, None),
    ],
)
def test_a_step_of_the_sequence_tells_its_coils(phase: Phase, true: Coils, event: tuple[int, int, int] | None) -> None:
    m = RUNNING._replace(state=State.PRECHARGE, sequence=Sequence(phase, 0.0, 2), coils=COILS[phase], coils_ms=40.0)
    after, events = switched(m, inputs=reported(true))
    assert after.sequence == Sequence(Phase(phase + 1), 0.0, 2)
    assert after.coils_ms == (0.0 if event else 50.0)
    assert events == ([event] if event else [])


def precharging(in_phase_ms: float, tries: int = 2) -> Memory:
    return RUNNING._replace(
        state=State.PRECHARGE, sequence=Sequence(Phase.PRECHARGE, in_phase_ms, tries), coils=COILS[Phase.PRECHARGE]
    )


def test_a_verified_precharge_is_told_with_its_try() -> None:
    after, events = switched(precharging(990.0), inputs=reported(Coils(True, False, True)))
    assert after.coils == (True, True, True)
    assert events == [(EventKind.PRECHARGE, 2, 1), (EventKind.COILS, 0b111, 0)]


@pytest.mark.parametrize(("age", "value"), [("bms_age_ms", 310.0), ("pcs_age_ms", 310.0)])
def test_a_sample_from_before_the_resistor_verifies_nothing(age: str, value: float) -> None:
    inputs = reported(Coils(True, False, True))._replace(**{age: value})  # type: ignore[arg-type]
    assert switched(precharging(300.0), inputs=inputs)[1] == []
    assert switched(precharging(300.1), inputs=inputs)[1] != []


@pytest.mark.parametrize(("tries", "phase"), [(TRIES - 1, Phase.PAUSE), (TRIES, Phase.OPEN)])
def test_a_try_that_failed_is_told_and_everything_opens(tries: int, phase: Phase) -> None:
    m = precharging(S.precharge_max_time * 1000.0 - 10.0, tries)
    after, events = switched(m, NOW._replace(bms=None, pcs=None), inputs=reported(Coils(True, False, True)))
    assert (after.sequence.phase, after.coils) == (phase, NONE)
    assert events == [(EventKind.PRECHARGE, tries, 0), (EventKind.COILS, 0, 0)]


def test_a_failed_sequence_is_told_once() -> None:
    m = RUNNING._replace(
        state=State.PRECHARGE, coils=NONE, sequence=Sequence(Phase.OPEN, 0.0, TRIES, True, Phase.PRECHARGE)
    )
    after, events = switched(m, inputs=reported(NONE))
    assert after.sequence == m.sequence
    assert events == []


def test_a_withdrawn_precharge_is_no_failed_try() -> None:
    after, events = switched(precharging(100.0)._replace(state=State.STOPPING))
    assert after.coils == NONE
    assert events == [(EventKind.COILS, 0, 0)]


def test_contactors_that_do_not_report_open_are_not_closed_on() -> None:
    m = Memory(state=State.PRECHARGE, settings=S, sequence=Sequence(Phase.OPEN, FEEDBACK_MS - 10.0))
    after, events = switched(m, inputs=reported(Coils(True, False, False)))
    assert (after.sequence.failed, after.coils, events) == (True, NONE, [])


# wear


@pytest.mark.parametrize(
    ("m", "true", "counted"),
    [
        (precharging(990.0), Coils(True, False, True), (1, 0)),
        (precharging(10.0)._replace(sequence=Sequence(Phase.NEGATIVE, 10.0, 1), coils=Coils(True, False, False)),
         Coils(True, False, False), (0, 1)),
        (precharging(10.0)._replace(sequence=Sequence(Phase.POSITIVE, 10.0, 1), coils=Coils(True, True, True)),
         Coils(True, True, True), (0, 0)),
        (RUNNING, CLOSED_COILS, (0, 0)),
        (precharging(10.0), Coils(True, False, True), (0, 0)),
    ],
)  # fmt: skip
def test_a_closing_and_a_precharge_are_counted_when_their_coil_is_switched_on(
    m: Memory, true: Coils, counted: tuple[int, int]
) -> None:
    after, _ = switched(m, inputs=reported(true))
    assert (after.wear.cycles, after.wear.precharges) == counted
    assert (after.wear.opened_under_load, after.wear.closed_under_load) == (0, 0)


def test_a_positive_main_that_closes_together_with_the_resistor_is_one_closing() -> None:
    """From a memory that knew no resistor: it was not switched in alone."""
    m = precharging(990.0)._replace(coils=NONE)
    after, _ = switched(m, inputs=reported(Coils(True, False, True)))
    assert (after.wear.cycles, after.wear.precharges) == (1, 0)


@pytest.mark.parametrize(
    ("state", "amps", "under_load", "counted"),
    [
        (State.FAULT, 11.0, True, 1),
        (State.FAULT, 10.0, False, 0),
        (State.EMERGENCY_STOP, 11.0, False, 1),
        (State.CHARGE_BULK, 11.0, False, 0),
    ],
)
def test_an_opening_above_the_break_current_is_counted_and_warned_of_outside_an_emergency(
    state: State, amps: float, under_load: bool, counted: int
) -> None:
    now = NOW._replace(bms=BMS._replace(rack_a=amps))
    after, _ = switched(RUNNING._replace(state=state), now)
    assert (after.under_load, after.wear.opened_under_load, after.wear.closed_under_load) == (under_load, counted, 0)
    assert switched(RUNNING._replace(state=state, under_load=True), now)[0].under_load is True


def test_an_open_rack_does_not_open_under_load() -> None:
    m = Memory(state=State.FAULT, settings=S, demand_a=99.0)
    after, _ = switched(m, NOW._replace(bms=BMS._replace(rack_a=99.0)))
    assert (after.under_load, after.wear) == (False, Wear())


def test_a_stop_that_ends_by_time_opens_under_load() -> None:
    now = NOW._replace(bms=BMS._replace(rack_a=11.0))
    after, _ = switched(RUNNING._replace(state=State.STOPPING), now, at_rest=True)
    assert after.under_load
    assert after.wear.opened_under_load == 1


@pytest.mark.parametrize(
    ("coils_ms", "age_ms", "amps", "demand_a", "inrush"),
    [
        (INRUSH_MS, 50.0, 10.1, 0.0, True),
        (INRUSH_MS, 50.0, -10.1, 0.0, True),
        (INRUSH_MS, 50.0, 10.0, 0.0, False),
        (INRUSH_MS + 0.1, 50.0, 10.1, 0.0, False),
        (50.0, 50.0, 10.1, 0.0, False),
        (50.1, 50.0, 10.1, 0.0, True),
        (INRUSH_MS, 50.0, 10.1, 0.1, False),
        (INRUSH_MS, 50.0, 10.1, -0.1, False),
    ],
)
def test_an_inrush_is_current_right_after_the_positive_main_closed_and_before_any_demand(
    coils_ms: float, age_ms: float, amps: float, demand_a: float, inrush: bool
) -> None:
    m = RUNNING._replace(coils_ms=coils_ms, demand_a=demand_a)
    inputs, now = INPUTS._replace(bms_age_ms=age_ms), NOW._replace(bms=BMS._replace(rack_a=amps))
    after, _ = switched(m, now, inputs=inputs)
    assert (after.inrush, after.wear.closed_under_load) == (inrush, int(inrush))
    again, _ = switched(m._replace(inrush=True), now, inputs=inputs)
    assert (again.inrush, again.wear.closed_under_load) == (True, 0), "counted once a closing"


def test_without_positive_main_data_or_configuration_there_is_no_inrush() -> None:
    now = NOW._replace(bms=BMS._replace(rack_a=99.0))
    m = RUNNING._replace(coils_ms=100.0)
    assert core._inrush(m, now, INPUTS) is True
    assert core._inrush(m._replace(coils=COILS[Phase.PRECHARGE]), now, INPUTS) is False
    assert core._inrush(m, NOW._replace(bms=None), INPUTS) is False
    assert core._inrush(m._replace(settings=None), now, INPUTS) is False


def test_wear_leaks_with_the_time_of_the_scan() -> None:
    m = RUNNING._replace(wear=Wear(closing_level=5.0, precharge_level=2.0))
    after, _ = switched(m, dt_ms=36_000.0)
    assert after.wear == wear.step(m.wear, wear.NOTHING, S, 36_000.0)
    assert after.wear.closing_level == pytest.approx(5.0 - S.max_closings_per_hour / 100)
    assert after.coils_ms == 900.0 + 36_000.0


def test_the_sequence_gets_the_time_of_the_scan() -> None:
    assert switched(RUNNING, dt_ms=20.0)[0].sequence == Sequence(Phase.CLOSED, 920.0, 1)


# limits and demand

PERMITTED = Limits(
    0.5, LimitReason.SITE, 0.25, LimitReason.PCS, 0.75, LimitReason.BMS, 0.125, LimitReason.HOT
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What charge.limits is asked; it answers PERMITTED."""
    asked: list[tuple[Any, ...]] = []

    def limits(*args: Any) -> tuple[Limits, Law]:
        asked.append(args)
        return PERMITTED, Law(0.1, 0.2, 0.3, 0.4, 25.0, 26.0, 7)

    monkeypatch.setattr(charge, "limits", limits)
    return asked


def wish(mode: Mode = Mode.CHARGE, grid_w: float = 0.0) -> Wish:
    return Wish(mode, (mode, 0.0, 0.5, 80.0), 0.5, 80.0, grid_w, False, False)


def supplied(m: Memory, w: Wish = IDLE, now: core._Now = NOW, inputs: Inputs = INPUTS, dt_ms: float = 10.0) -> Memory:
    return core._supply(m, now, w, inputs, dt_ms)


def test_without_a_configuration_nothing_flows() -> None:
    m = Memory(demand_a=5.0, limits=PERMITTED)
    assert supplied(m) == m._replace(limits=NOTHING, demand_a=0.0)


@pytest.mark.parametrize("state", [s for s in State if s is not State.GRID_SUPPORT])
def test_the_law_is_asked_for_the_commanded_rate_in_the_direction_of_the_state(
    calls: list[tuple[Any, ...]], state: State
) -> None:
    m = RUNNING._replace(state=state, law=Law(poll=3))
    supplied(m, wish(grid_w=-1e5), dt_ms=20.0)
    charging = state.name.startswith("CHARGE_")
    assert calls == [
        (Law(poll=3), S, BMS, PCS, NOW.loops, 0.5, 0.5, charging, state is State.DISCHARGE,
         state is State.CHARGE_BALANCE, 0.02, [], [], LimitReason.COMMAND)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid_w", "charging", "discharging"),
    [(-123_200.0, True, False), (-0.5, True, False), (0.0, False, False), (0.5, False, True), (123_200.0, False, True)],
)
def test_grid_support_asks_for_its_power_at_the_rack_voltage(
    calls: list[tuple[Any, ...]], grid_w: float, charging: bool, discharging: bool
) -> None:
    s = settings(max_charge_rate=0.9)
    supplied(RUNNING._replace(state=State.GRID_SUPPORT, settings=s), wish(Mode.GRID, grid_w))
    assert BMS.rack_v * AH == 1_232_000.0
    (args,) = calls
    assert args[5] == pytest.approx(abs(grid_w) / 1_232_000.0)
    assert args[6:] == (0.9, charging, discharging, False, 0.01, [], [], LimitReason.COMMAND)


@pytest.mark.parametrize(("hz", "asked_by"), [(50.0, LimitReason.COMMAND), (50.5, LimitReason.DROOP)])
def test_what_droop_asks_for_is_named_after_it(calls: list[tuple[Any, ...]], hz: float, asked_by: LimitReason) -> None:
    now = NOW._replace(grid=NOW.grid._replace(droop_enabled=True), pcs=PCS._replace(ac_hz=hz))
    after = supplied(RUNNING._replace(state=State.GRID_SUPPORT), wish(Mode.GRID, 1e5), now)
    (args,) = calls
    assert args[-1] is asked_by
    assert after.droop.active is (asked_by is LimitReason.DROOP)


@pytest.mark.parametrize("rack_v", [0.0, -1.0, None])
def test_grid_support_without_a_rack_voltage_asks_for_neither_direction(
    calls: list[tuple[Any, ...]], rack_v: float | None
) -> None:
    bms = None if rack_v is None else BMS._replace(rack_v=rack_v)
    supplied(RUNNING._replace(state=State.GRID_SUPPORT), wish(Mode.GRID, 1e5), NOW._replace(bms=bms))
    (args,) = calls
    assert args[5:9] == (0.5, 0.5, False, False)


def test_grid_support_is_given_at_any_voltage_above_zero(calls: list[tuple[Any, ...]]) -> None:
    supplied(
        RUNNING._replace(state=State.GRID_SUPPORT), wish(Mode.GRID, 1120.0), NOW._replace(bms=BMS._replace(rack_v=0.5))
    )
    assert calls[0][5] == pytest.approx(2.0)


def test_the_law_does_not_see_an_implausible_bms(calls: list[tuple[Any, ...]]) -> None:
    supplied(RUNNING, now=NOW._replace(bms=BMS._replace(plausible=False)))
    supplied(RUNNING, now=NOW._replace(bms=None))
    assert [args[2] for args in calls] == [None, None]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("state", "grid_w", "demand_a"),
    [
        (State.CHARGE_BULK, 0.0, -0.5 * AH),
        (State.DISCHARGE, 0.0, 0.25 * AH),
        (State.GRID_SUPPORT, -1e5, -0.5 * AH),
        (State.GRID_SUPPORT, 1e5, 0.25 * AH),
        (State.READY, 0.0, 0.0),
    ],
)
def test_the_demand_is_the_limit_of_the_direction(state: State, grid_w: float, demand_a: float) -> None:
    after = supplied(RUNNING._replace(state=state), wish(grid_w=grid_w))
    assert after.demand_a == demand_a
    assert after.limits == PERMITTED
    assert after.law == Law(0.1, 0.2, 0.3, 0.4, 25.0, 26.0, 7)
    assert after.expected_a == (max(0.0, -demand_a), max(0.0, demand_a))


FLOWING = RUNNING._replace(expected_a=(300.0, 200.0))


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("m", "changes"),
    [
        (FLOWING._replace(state=State.PRECHARGE), {}),
        (FLOWING._replace(state=State.EMERGENCY_STOP), {}),
        (FLOWING._replace(sequence=Sequence(Phase.RELEASE)), {}),
        (FLOWING, {"fb_neg": False}),
        (FLOWING, {"fb_pos": False}),
        (FLOWING, {"interlocks": 0x7F}),
    ],
)
def test_nothing_flows_before_all_is_confirmed_and_then_the_ramp_begins_at_zero(
    m: Memory, changes: dict[str, Any]
) -> None:
    after = supplied(m, wish(), inputs=INPUTS._replace(lines=INPUTS.lines._replace(**changes)))
    assert after.demand_a == 0.0
    assert after.law == Law(0.1, 0.2, 0.0, 0.0, 25.0, 26.0, 7)
    assert after.limits == PERMITTED


@pytest.mark.usefixtures("calls")
def test_an_open_precharge_contactor_and_unneeded_interlocks_do_not_keep_the_current_away() -> None:
    lines = INPUTS.lines._replace(interlocks=0x0F, fb_pre=True)
    m = RUNNING._replace(settings=settings(interlocks_required=0x0F))
    assert supplied(m, wish(), inputs=INPUTS._replace(lines=lines)).demand_a == -0.5 * AH


@pytest.mark.usefixtures("calls")
def test_the_current_that_a_demand_explains_falls_slower_than_the_demand() -> None:
    """A PCS that is still on its way down is not yet too high."""
    fall_a = EXPECTED_FALL_C_PER_S * AH * 0.1
    m = RUNNING._replace(state=State.READY, expected_a=(300.0, 200.0))
    assert supplied(m, dt_ms=100.0).expected_a == pytest.approx((300.0 - fall_a, 200.0 - fall_a))
    assert supplied(m._replace(expected_a=(1.0, 0.5)), dt_ms=1000.0).expected_a == (0.0, 0.0)
    charging = supplied(RUNNING._replace(expected_a=(900.0, 100.0)), wish(), dt_ms=100.0)
    assert charging.expected_a == pytest.approx((900.0 - fall_a, 100.0 - fall_a))
    assert supplied(RUNNING._replace(expected_a=(1.0, 0.0)), wish()).expected_a == (0.5 * AH, 0.0)


@pytest.mark.parametrize(
    ("before_a", "after_a"),
    [(100.0, 88.8), (-100.0, -88.8), (11.2, 0.0), (-11.2, 0.0), (5.0, 0.0), (-5.0, 0.0), (0.0, 0.0), (0.5, 0.0)],
)
def test_an_orderly_end_ramps_down_by_ramp_down_rate(before_a: float, after_a: float) -> None:
    m, wide = RUNNING._replace(demand_a=before_a), NOTHING._replace(available_charge_c=1.0, available_discharge_c=1.0)
    assert S.ramp_down_rate * AH * 0.1 == pytest.approx(11.2)
    assert core._demand(m, wide, S, False, False, 0.1) == pytest.approx(after_a, abs=1e-9)


@pytest.mark.parametrize(("before_a", "after_a"), [(0.9, 0.788), (-0.9, -0.788)])
def test_the_last_ampere_is_ramped_as_well(before_a: float, after_a: float) -> None:
    wide = NOTHING._replace(available_charge_c=1.0, available_discharge_c=1.0)
    assert core._demand(RUNNING._replace(demand_a=before_a), wide, S, False, False, 0.001) == pytest.approx(after_a)


@pytest.mark.parametrize(("before_a", "after_a"), [(1000.0, 0.125 * AH), (-1000.0, -0.75 * AH)])
def test_an_orderly_end_never_exceeds_what_is_available(before_a: float, after_a: float) -> None:
    assert core._demand(RUNNING._replace(demand_a=before_a), PERMITTED, S, False, False, 0.1) == after_a


# ceiling and tail


def at_ceiling(limits: Limits, s: Any = S, **bms: float) -> bool:
    return core._at_ceiling(s, BMS._replace(**bms), limits)  # type: ignore[arg-type]


VOLTAGE = NOTHING._replace(charge_c=0.3, charge_reason=LimitReason.VOLTAGE)
BY_BMS = NOTHING._replace(charge_c=charge.TAIL_RATE_C, charge_reason=LimitReason.BMS)


@pytest.mark.parametrize(("below_v", "there"), [(CEILING_V + 0.001, False), (CEILING_V - 0.001, True), (-0.010, True)])
def test_the_ceiling_is_held_within_5_mv_of_the_cell_or_the_rack(below_v: float, there: bool) -> None:
    assert at_ceiling(VOLTAGE, cell_v_max=S.cell.v_limit_v - below_v) is there
    assert at_ceiling(VOLTAGE, rack_v=S.max_charge_voltage - below_v * S.cells_in_series) is there
    for reason in (LimitReason.SITE, LimitReason.STEP, LimitReason.RAMP):
        other = VOLTAGE._replace(charge_reason=reason, charge_c=0.0)
        assert at_ceiling(other, cell_v_max=S.cell.v_limit_v - below_v, soc_pct=100.0) is False


def test_exactly_5_mv_below_the_ceiling_is_at_the_ceiling() -> None:
    s = settings(max_charge_voltage=BMS.rack_v + CEILING_V * 300)
    assert (s.max_charge_voltage - BMS.rack_v) / s.cells_in_series == CEILING_V
    assert at_ceiling(VOLTAGE, s) is True


@pytest.mark.parametrize(
    ("soc_pct", "charge_c", "there"),
    [
        (BMS_FULL_PCT, charge.TAIL_RATE_C, True),
        (BMS_FULL_PCT - 0.1, 0.0, False),
        (100.0, charge.TAIL_RATE_C + 0.001, False),
        (100.0, 0.0, True),
    ],
)
def test_a_bms_that_takes_the_current_away_near_full_is_a_ceiling(soc_pct: float, charge_c: float, there: bool) -> None:
    assert at_ceiling(BY_BMS._replace(charge_c=charge_c), soc_pct=soc_pct) is there


def timed(monkeypatch: pytest.MonkeyPatch, limits: Limits, m: Memory, now: core._Now) -> tuple[float, float]:
    monkeypatch.setattr(charge, "limits", lambda *_: (limits, Law()))
    after = supplied(m, wish(), now, dt_ms=20.0)
    return after.ceiling_ms, after.tail_ms


def test_ceiling_and_tail_are_timed_while_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    m = RUNNING._replace(ceiling_ms=100.0, tail_ms=50.0)
    full = NOW._replace(bms=BMS._replace(cell_v_max=S.cell.v_limit_v))
    tail = VOLTAGE._replace(charge_c=charge.TAIL_RATE_C)
    assert timed(monkeypatch, tail, m, full) == (120.0, 70.0)
    assert timed(monkeypatch, tail._replace(charge_c=charge.TAIL_RATE_C + 0.001), m, full) == (120.0, 0.0)
    assert timed(monkeypatch, tail, m, NOW) == (0.0, 0.0), "below the ceiling"
    assert timed(monkeypatch, tail, m._replace(state=State.READY), full) == (0.0, 0.0), "not charging"
    assert timed(monkeypatch, tail, m, NOW._replace(bms=None)) == (0.0, 0.0)
