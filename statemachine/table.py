"""The transition table: the only place where transitions exist.

One trigger a scan. Rows are tried in order and the first whose conditions all hold is taken, so trips stand first.
A condition is a field of `Bits`; "!" before its name negates it.
"""

from __future__ import annotations

from typing import NamedTuple

from .states import CHARGING, CLOSED, OPEN, State


class Bits(NamedTuple):
    """What the machine sees of one scan: plain truths, computed outside (detect, latch, contactors, charge)."""

    trip: bool  # a TRIP is active or latched
    lockout: bool  # a LOCKOUT is active or latched
    stop: bool  # a STOP is active or latched
    data_ok: bool  # complete, plausible, fresh BMS and PCS data, a configuration and the guard's word
    opened: bool  # every contactor reports open
    permit: bool  # nothing forbids closing
    closed: bool  # precharge verified, both mains confirmed
    calibrated: bool  # the dV offset is known
    at_rest: bool  # demand and measured current are zero or below the break current, or the time for it is over
    run: bool  # the command wants closed contactors
    charge: bool  # the command wants charge
    discharge: bool
    grid: bool
    service: bool
    finished: bool  # this command's target was reached and the command has not changed since
    target: bool  # SoC is at the target
    ramped: bool  # the rate in use has reached the limit
    step_zone: bool  # SoC is where the step table lowers the rate
    ceiling: bool  # the voltage loop holds the highest cell at its ceiling
    tail: bool  # absorb current has fallen to its tail
    spread: bool  # cell spread is above cell_balancing_threshold
    timeout: bool  # TIMEOUTS_S of this state is over


class Row(NamedTuple):
    sources: frozenset[State]
    dest: State
    when: tuple[str, ...]
    why: str


S = State
ANY = frozenset(State)

TIMEOUTS_S: dict[State, float] = {
    S.INIT: 30.0,
    S.PRECHARGE: 200.0,  # three tries of the longest precharge_max_time and their pauses fit
    S.CHARGE_RAMP: 900.0,
    S.CHARGE_ABSORB: 4 * 3600.0,
    S.STOPPING: 60.0,  # after stop_time_limit has opened the contactors
}
"""Longest stay in states that are on their way somewhere; CHARGE_BALANCE takes balance_time_limit."""


def _row(sources: frozenset[State] | set[State] | State, dest: State, when: str, why: str) -> Row:
    found = frozenset({sources}) if isinstance(sources, State) else frozenset(sources)
    return Row(found, dest, tuple(when.split()), why)


RUNNING = CLOSED - {S.STOPPING}
LIVE = CHARGING | {S.READY, S.CHARGED, S.DISCHARGE, S.GRID_SUPPORT}

TABLE: tuple[Row, ...] = (
    # trips first, in every state
    _row(ANY - {S.EMERGENCY_STOP}, S.EMERGENCY_STOP, "trip", "category 0: open at once, latched"),
    _row(OPEN - {S.LOCKOUT, S.EMERGENCY_STOP} | {S.PRECHARGE}, S.LOCKOUT, "lockout", "no contactor can be trusted"),
    _row(RUNNING, S.STOPPING, "lockout", "a feedback contradicts: category 1, then locked out"),
    _row(S.STOPPING, S.LOCKOUT, "lockout at_rest", "open now, and locked out"),
    _row(S.EMERGENCY_STOP, S.LOCKOUT, "!trip lockout", "the trip is reset, the lockout stays"),
    # faults
    _row({S.INIT, S.ISOLATED, S.SERVICE, S.PRECHARGE}, S.FAULT, "stop", "nothing flows: open and wait"),
    _row(RUNNING, S.STOPPING, "stop", "category 1: ramp to zero, then open"),
    _row(S.EMERGENCY_STOP, S.FAULT, "!trip stop", "the trip is reset, a fault stays"),
    _row(S.EMERGENCY_STOP, S.ISOLATED, "!trip opened", "cause gone, reset pressed, acknowledged, open"),
    _row(S.FAULT, S.ISOLATED, "!stop opened", "cause gone, acknowledged, open"),
    _row(S.LOCKOUT, S.FAULT, "!lockout stop", "serviced, a fault stays"),
    _row(S.LOCKOUT, S.ISOLATED, "!lockout opened", "cause gone, RESET held for 10 s, acknowledged, open"),
    # coming up
    _row(S.INIT, S.ISOLATED, "data_ok opened", "complete, plausible data; contactors verified open"),
    _row(S.INIT, S.FAULT, "timeout", "no data in time"),
    _row(S.ISOLATED, S.SERVICE, "service opened", "maintenance"),
    _row(S.SERVICE, S.ISOLATED, "!service", "maintenance is over"),
    _row(S.ISOLATED, S.PRECHARGE, "run permit opened", "commanded, allowed, verified open"),
    _row(S.PRECHARGE, S.STOPPING, "!run", "command withdrawn"),
    _row(S.PRECHARGE, S.READY, "closed", "verified by dV, current, time and feedback"),
    _row(S.PRECHARGE, S.FAULT, "timeout", "the sequence hangs"),
    # going down
    _row(LIVE, S.STOPPING, "!run", "commanded off"),
    _row(S.STOPPING, S.FAULT, "at_rest opened stop", "ramped down and verified open, fault pending"),
    _row(S.STOPPING, S.ISOLATED, "at_rest opened", "ramped down and verified open"),
    _row(S.STOPPING, S.FAULT, "timeout", "neither rest nor feedback came"),
    # leaving what is no longer commanded
    _row(CHARGING | {S.CHARGED}, S.READY, "!charge", "charge is no longer commanded"),
    _row(S.DISCHARGE, S.READY, "!discharge", "discharge is no longer commanded"),
    _row(S.DISCHARGE, S.READY, "target", "discharge target reached"),
    _row(S.GRID_SUPPORT, S.READY, "!grid", "grid support is no longer commanded"),
    # charging
    _row(S.READY, S.CHARGED, "charge target", "already there"),
    _row(S.READY, S.CHARGE_RAMP, "charge !finished calibrated", "charge commanded"),
    _row(S.READY, S.DISCHARGE, "discharge !finished !target calibrated", "discharge commanded"),
    _row(S.READY, S.GRID_SUPPORT, "grid calibrated", "grid support commanded"),
    _row(CHARGING - {S.CHARGE_BALANCE}, S.CHARGED, "target", "target SoC reached"),
    _row({S.CHARGE_RAMP, S.CHARGE_BULK, S.CHARGE_STEP}, S.CHARGE_ABSORB, "ceiling", "highest cell at its ceiling"),
    _row(S.CHARGE_RAMP, S.CHARGE_STEP, "ramped step_zone", "at the limit, where it falls with SoC"),
    _row(S.CHARGE_RAMP, S.CHARGE_BULK, "ramped", "at the limit"),
    _row(S.CHARGE_RAMP, S.CHARGE_BULK, "timeout", "the limit keeps moving: charge on without the ramp state"),
    _row(S.CHARGE_BULK, S.CHARGE_STEP, "step_zone", "SoC passed the step"),
    _row(S.CHARGE_STEP, S.CHARGE_BULK, "!step_zone", "a string was replaced or SoC was corrected"),
    _row(S.CHARGE_ABSORB, S.CHARGE_BALANCE, "tail spread", "full, cells apart"),
    _row(S.CHARGE_ABSORB, S.CHARGED, "tail", "full, cells together"),
    _row(S.CHARGE_ABSORB, S.CHARGED, "timeout", "absorb takes too long: stop, do not sit at the ceiling"),
    _row(S.CHARGE_BALANCE, S.CHARGED, "!spread", "spread below cell_balancing_threshold"),
    _row(S.CHARGE_BALANCE, S.CHARGED, "timeout", "balance_time_limit is over"),
    _row(S.CHARGED, S.CHARGE_RAMP, "charge !finished !target", "a new command with a higher target"),
)


def problems(table: tuple[Row, ...]) -> list[str]:
    """What is wrong with a table; empty when it can be trusted as far as reading goes."""
    found = []
    seen: set[tuple[State, tuple[str, ...]]] = set()
    for row in table:
        where = f"row -> {row.dest.name} ({row.why})"
        if not row.when:
            found.append(f"{where}: no condition")
        found += [f"{where}: unknown condition {c}" for c in row.when if c.removeprefix("!") not in Bits._fields]
        if row.dest in row.sources:
            found.append(f"{where}: leads to itself")
        for source in row.sources:
            if (source, row.when) in seen:
                found.append(f"{where}: {source.name} already has a row with these conditions")
            seen.add((source, row.when))
    reached, grown = {State.INIT}, True
    while grown:
        new = {row.dest for row in table if row.sources & reached} - reached
        reached, grown = reached | new, bool(new)
    found += [f"{state.name} cannot be reached" for state in State if state not in reached]
    for state in TIMEOUTS_S:
        if not any(state in r.sources and "timeout" in r.when for r in table):
            found.append(f"{state.name} has a time-out but no row for it")
    return found


_found = problems(TABLE)
if _found:
    raise ValueError("transition table: " + "; ".join(_found))
assert OPEN | CLOSED | {State.PRECHARGE} == frozenset(State)
