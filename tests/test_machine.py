"""The table, the hardened machine, the latch cells and the tables beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from rig import profile, settings

from statemachine import charge, faults, latch, leds, table
from statemachine.cmf import Cmf
from statemachine.faults import FAULTS, Severity
from statemachine.settings import narrowed
from statemachine.signals import LimitReason
from statemachine.states import CLOSED, OPEN, State
from statemachine.table import TABLE, Bits, Row

NO = Bits(*[False] * len(Bits._fields))


def test_the_numbers_of_the_states_are_final() -> None:
    assert [s.name for s in sorted(State)] == [
        "INIT", "ISOLATED", "SERVICE", "PRECHARGE", "READY", "CHARGE_RAMP", "CHARGE_BULK", "CHARGE_STEP",
        "CHARGE_ABSORB", "CHARGE_BALANCE", "CHARGED", "DISCHARGE", "GRID_SUPPORT", "STOPPING", "FAULT",
        "EMERGENCY_STOP", "LOCKOUT",
    ]  # fmt: skip
    assert [int(s) for s in sorted(State)] == list(range(17))


def test_the_shipped_table_has_no_problem() -> None:
    assert table.problems(TABLE) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(frozenset({State.READY}), State.FAULT, ("tripp",), ""), "unknown condition tripp"),
        (Row(frozenset({State.READY}), State.FAULT, (), ""), "no condition"),
        (Row(frozenset({State.READY}), State.READY, ("trip",), ""), "leads to itself"),
        (Row(frozenset({State.READY}), State.FAULT, ("trip",), ""), "already has a row"),
    ],
)
def test_a_bad_row_is_refused_at_build(row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cmf((*TABLE, row))


def test_a_table_that_loses_a_state_is_refused() -> None:
    with pytest.raises(ValueError, match="SERVICE cannot be reached"):
        Cmf(tuple(row for row in TABLE if row.dest is not State.SERVICE))


@pytest.mark.parametrize("answer", [1, 2, None, "yes", [True]])
def test_a_guard_that_is_not_true_or_false_is_an_error_not_a_no(answer: Any) -> None:
    with pytest.raises(TypeError, match="not True or False"):
        Cmf().next(State.READY, NO._replace(trip=answer))


def test_the_machine_is_sealed() -> None:
    with pytest.raises(RuntimeError, match="sealed"):
        Cmf().machine.add_transition("scan", "READY", "FAULT")


def test_the_machine_takes_the_first_row_that_fits_in_every_state() -> None:
    """Against an independent reading of the table, each condition of each state alone and in pairs."""
    cmf = Cmf()

    def oracle(state: State, bits: Bits) -> State:
        for row in TABLE:
            if state in row.sources and all(getattr(bits, c.lstrip("!")) is not c.startswith("!") for c in row.when):
                return row.dest
        return state

    for state in State:
        for i in range(len(NO)):
            for j in range(i, len(NO)):
                bits = Bits(*[k in (i, j) for k in range(len(NO))])
                assert {cmf.next(state, bits), cmf.next(state, bits)} == {oracle(state, bits)}  # asked again, the same
                inverse = Bits(*[k not in (i, j) for k in range(len(NO))])
                assert cmf.next(state, inverse) is oracle(state, inverse)


@pytest.mark.parametrize("state", [s for s in State if s is not State.EMERGENCY_STOP])
def test_a_trip_beats_everything(state: State) -> None:
    assert Cmf().next(state, Bits(*[True] * len(NO))) is State.EMERGENCY_STOP


@pytest.mark.parametrize("state", sorted(OPEN))
def test_no_open_state_leads_to_closed_contactors_but_through_precharge(state: State) -> None:
    dests = {row.dest for row in TABLE if state in row.sources}
    assert not dests & CLOSED
    assert State.PRECHARGE not in dests or state is State.ISOLATED


def _run(bit: int, scans: int, dt_ms: float = 10.0, raw: bool = True) -> list[latch.Latches]:
    cells, out = latch.Latches(), []
    for _ in range(scans):
        cells = latch.step(cells, raw << bit, dt_ms, False, False, False)
        out.append(cells)
    return out


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_each_cell_confirms_in_its_time_and_latches_by_severity(fault: faults.Fault) -> None:
    scans = int(fault.confirm_ms / 10) + 1
    history = _run(fault.bit, scans)
    assert history[-1].active == 1 << fault.bit
    assert all(not cells.active for cells in history[:-1])
    after = latch.step(history[-1], 0, 10.0, False, False, False)
    assert after.active == 0
    assert bool(after.latched) is (fault.severity >= Severity.STOP)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.confirm_ms], ids=lambda f: f.name)
def test_a_glitch_shorter_than_the_confirm_time_is_nothing(fault: faults.Fault) -> None:
    cells = _run(fault.bit, int(fault.confirm_ms / 10))[-1]
    cells = latch.step(cells, 0, 10.0, False, False, False)
    assert (cells.active, cells.latched) == (0, 0)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.severity >= Severity.STOP], ids=lambda f: f.name)
@pytest.mark.parametrize(("ack", "reset", "service"), list(product((False, True), repeat=3)))
def test_what_clears_a_latched_cell(fault: faults.Fault, ack: bool, reset: bool, service: bool) -> None:
    cells = _run(fault.bit, 400)[-1]
    standing = latch.step(cells, 1 << fault.bit, 10.0, ack, reset, service)
    assert standing.latched, "never while the cause stands"
    gone = latch.step(standing, 0, 10.0, False, False, False)
    assert gone.latched, "what came before the cause was gone does not count"
    after = latch.step(gone, 0, 10.0, ack, reset, service)
    needed = {Severity.STOP: ack, Severity.TRIP: ack and reset, Severity.LOCKOUT: ack and service}[fault.severity]
    assert bool(after.latched) is not needed


def test_a_cause_that_returns_forgets_the_reset() -> None:
    cells = latch.step(_run(0, 1)[-1], 0, 10.0, False, True, False)
    cells = latch.step(cells, 1, 10.0, False, False, False)
    cells = latch.step(cells, 0, 10.0, True, False, False)
    assert cells.latched == 1


def test_the_plating_ceiling_crosses_half_c_at_70_percent_and_25_degrees() -> None:
    cell = profile()
    assert cell.plating_k * charge.lookup(cell.plating_rate_c, 70.0) == pytest.approx(0.50, abs=0.01)


@pytest.mark.parametrize("name", ["nmc_energy", "lfp_energy"])
def test_below_freezing_and_at_45_degrees_nothing_is_charged(name: str) -> None:
    cell = profile(name)
    assert charge.lookup(cell.cold_factor, -0.1) == 0.0
    assert charge.hot(cell, 45.0, 0.0) == 0.0
    assert charge.hot(cell, 38.0, 0.0) == pytest.approx(1.0)
    assert charge.hot(cell, 43.0, 1.0) == 0.0, "a rising temperature is seen up to 2 K ahead"


def test_lfp_obeys_the_vendors_cold_caps() -> None:
    cell = profile("lfp_energy")
    assert [charge.lookup(cell.cold_cap_c, c) for c in (2.0, 7.0, 12.0)] == [0.10, 0.20, 0.33]


def test_nan_is_never_no_limit() -> None:
    assert charge.smallest([(float("nan"), LimitReason.BMS), (1.0, LimitReason.SITE)]) == (
        0.0,
        LimitReason.BMS,
    )
    assert charge.lookup(((0.0, 1.0), (1.0, 2.0)), float("nan")) == 0.0
    assert charge.loop(float("nan"), 0.1, 0.01, 0.3, 1.0, False) == 0.0


def test_narrowing_takes_the_narrower_of_each() -> None:
    now = settings()
    new = replace(now, revision=2, max_charge_current=500.0, max_discharge_current=5000.0, min_soc=1.0, max_soc=90.0)
    both = narrowed(now, new)
    assert (both.max_charge_current, both.max_discharge_current) == (500.0, now.max_discharge_current)
    assert (both.min_soc, both.max_soc) == (now.min_soc, 90.0)


def test_every_state_and_fault_is_shown_on_the_panel() -> None:
    assert leds.fault_code(1 << faults.BY_NAME["ERR_GROUND_FAULT"].bit) == leds.FAST
    worst = 1 << faults.BY_NAME["ERR_CONFIG"].bit | 1 << faults.BY_NAME["ERR_CONTACTOR_WELDED"].bit
    assert leds.fault_code(worst) == faults.BY_NAME["ERR_CONTACTOR_WELDED"].led


@pytest.mark.parametrize("code", [0x23, 0x11, 0x45])
def test_blink_codes_blink_as_often_as_they_say(code: int) -> None:
    first, second = code >> 4, code & 15
    period = 500 * (first + second) + 2750
    levels = [leds.level(code, ms) for ms in range(0, period, 10)]
    rises = sum(b and not a for a, b in zip([False, *levels], levels, strict=False))
    assert rises == first + second
    assert leds.level(code, period) == leds.level(code, 0)
