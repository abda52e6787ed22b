"""What must hold after every scan of the core: invariants of the design, of grid, key switch and update agent.

A witness (the last fields of `Node`) remembers by itself what was acknowledged, reset and commanded since the fault;
it never asks the latch cells or the command side of the core.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from statemachine import detect, grid
from statemachine.contactors import COILS, Coils, Phase
from statemachine.core import RESET_PRESS_MS, SERVICE_PRESS_MS, Memory
from statemachine.faults import LOCKOUT_MASK, SEVERE_MASK, TRIP_MASK
from statemachine.settings import Settings, narrowed
from statemachine.signals import Inputs, Mode, Outputs
from statemachine.states import CHARGING, CLOSED, OPEN, State
from statemachine.table import TIMEOUTS_S

from .plant import Node, World

OFF = COILS[Phase.OPEN]
SEVERE = (State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT)
VOIDING = {State.INIT, *SEVERE}
ORDER = (OFF, COILS[Phase.NEGATIVE], COILS[Phase.PRECHARGE], COILS[Phase.POSITIVE], COILS[Phase.CLOSED])


class Step(NamedTuple):
    """One scan, with what was before it."""

    node: Node
    world: World
    inputs: Inputs
    out: Outputs
    after: Memory
    settings: Settings

    @property
    def was(self) -> Memory:
        return self.node.memory

    @property
    def coils(self) -> Coils:
        return Coils(self.out.coil_neg, self.out.coil_pos, self.out.coil_pre)


def witness(s: Step, command: str) -> Node:
    """What the witness remembers after the step."""
    active, o = s.out.faults_active, s.out
    owes_ack, owes_reset, locked = s.node.owes_ack, s.node.owes_reset, s.node.locked
    if active & SEVERE_MASK or (o.faults_latched and o.state in SEVERE and s.was.state not in SEVERE):
        owes_ack = o.state in SEVERE or owes_ack
    elif s.world.ack and s.inputs.command is not None:
        owes_ack = False
    if active & TRIP_MASK:
        owes_reset = owes_ack = True
    elif s.world.reset and s.was.pressed_ms < RESET_PRESS_MS <= s.after.pressed_ms:
        owes_reset = False
    if active & LOCKOUT_MASK:
        locked = 3
    else:
        pressed = s.world.reset and s.was.pressed_ms < SERVICE_PRESS_MS <= s.after.pressed_ms
        locked &= ~(bool(pressed) | 2 * bool(s.world.ack and s.inputs.command is not None))
    void = max(_void(s), bool(o.faults_latched))
    if not {o.state, s.was.state}.isdisjoint(VOIDING):
        void = 2
    mode = s.inputs.command.mode if s.inputs.command is not None else Mode.OFF
    local = s.world.key == "local" and mode not in (Mode.OFF, Mode.SERVICE)
    ceased = s.world.service != "permitted" or s.world.update == "holds"
    if local or (ceased and command != "SERVICE"):
        void = 2
    return Node(s.after, command, void, owes_ack, owes_reset, locked)


def command_is_new(s: Step) -> bool:
    """A number that was not there in the scan before."""
    c = s.inputs.command
    return c is not None and c.seq > s.was.wishes.seq


def _void(s: Step) -> int:
    """What is left of the witness's `void` once this scan's command is seen."""
    return 0 if command_is_new(s) else s.node.void


def _chain(s: Step) -> str | None:
    o = s.out
    off = s.coils == OFF and not o.setpoint_a and not o.pcs_run
    if (s.world.chain != "closed" or o.faults_active & TRIP_MASK) and not (o.state is State.EMERGENCY_STOP and off):
        return "1: kill-switch, tamper or a trip: EMERGENCY_STOP and everything off in the same scan"
    if s.world.cause == "trip" and not o.faults_active & TRIP_MASK:
        return "3: a trip condition is not evaluated"
    if s.world.cause == "stop" and s.world.bms == "fresh" and s.world.dt_ms > 500.0 and not o.faults_latched:
        return "3: a stop condition is not evaluated"
    if o.state in OPEN and not off:
        return f"1: {o.state.name} with an output on"
    return None


def _after_a_fault(s: Step) -> str | None:
    o, after = s.out, witness(s, "")
    if o.faults_latched & LOCKOUT_MASK and o.state not in (State.LOCKOUT, State.EMERGENCY_STOP, State.STOPPING):
        return "2: a lockout was left"
    if s.was.latches.latched & ~o.faults_latched & LOCKOUT_MASK and after.locked:
        return "2: a lockout was cleared without its service press and acknowledge"
    if s.was.state in SEVERE and o.state not in SEVERE:
        owes_ack = after.owes_ack and s.was.state is not State.LOCKOUT  # that one is watched above
        if owes_ack or (s.was.state is State.EMERGENCY_STOP and after.owes_reset):
            return "2: a fault was left without its acknowledge, or a trip without the reset"
        if o.faults_latched:
            return "2: a fault was left while latched"
    return None


def _closing(s: Step) -> str | None:
    o, was, now = s.out, s.was.coils, s.coils
    if now in (was, OFF):
        return None
    if ORDER.index(now) != ORDER.index(was) + 1:
        return "6: contactors close out of order"
    if o.state is not State.PRECHARGE or o.faults_latched:
        return "6: contactors close outside PRECHARGE or with a fault"
    if _void(s):
        return "2: an old command closes contactors"
    if s.was.state is State.ISOLATED and s.world.commissioning == "void":
        return "14: closing begins without commissioning"
    fit = s.world.interlocks == "closed" and s.world.guard == "armed" and s.world.bms in ("fresh", "no limit")
    if s.was.state is State.ISOLATED and not fit:
        return "6: closing begins without interlocks, guard or data"
    if was == OFF and s.inputs.lines[5:8] != (False, False, False):
        return "6: closing begins without open feedback"
    if now == COILS[Phase.POSITIVE]:
        verified = s.world.link == "follows" and s.world.bms not in ("stale",) and s.world.pcs != "stale"
        rest = s.inputs.bms is not None and abs(s.inputs.bms.rack_a) <= s.settings.precharge_current
        confirmed = Coils(*s.inputs.lines[5:8]) == COILS[Phase.PRECHARGE]
        if not (verified and rest and confirmed and s.world.dt_ms >= s.settings.precharge_min_time * 1000.0):
            return "6: the positive contactor closes without a verified precharge"
    return None


def _opening(s: Step) -> str | None:
    o = s.out
    if s.was.coils != ORDER[-1] or s.coils == ORDER[-1] or o.state is State.EMERGENCY_STOP:
        return None
    if s.was.state is State.PRECHARGE:
        return None
    if s.was.state is State.STOPPING and s.was.in_state_ms >= s.settings.stop_time_limit * 1000.0:
        return None
    if s.was.state is State.STOPPING and s.after.service.ceased_ms >= grid.CEASE_MS:
        return None
    meter = s.inputs.bms.rack_a if s.inputs.bms and s.world.bms != "stale" else None
    if meter is None and s.inputs.pcs and s.world.pcs != "stale":
        meter = s.inputs.pcs.dc_a
    if abs(s.was.demand_a) > 0.5 or meter is None or abs(meter) > s.settings.break_current:
        return "6: opened above the break current"
    return None


def _demand(s: Step) -> str | None:
    o, demand = s.out, s.out.setpoint_a
    if not isfinite(demand) or not -o.charge_limit_a - 1e-6 <= demand <= o.discharge_limit_a + 1e-6:
        return "5: the demand is outside the published limit"
    for limit, name, site_a, rate_c in (
        (o.charge_limit_a, "charge_max_a", s.settings.max_charge_current, s.settings.max_charge_rate),
        (o.discharge_limit_a, "discharge_max_a", s.settings.max_discharge_current, s.settings.max_discharge_rate),
    ):
        theirs = min(getattr(s.inputs.bms, name, 0.0), getattr(s.inputs.pcs, name, 0.0))
        if limit > min(site_a, rate_c * s.settings.rated_ah, theirs) + 1e-6:
            return "5: the limit is wider than BMS, PCS or site allow"
    if not demand:
        return None
    confirmed = s.coils == ORDER[-1] and s.inputs.lines.fb_neg and s.inputs.lines.fb_pos
    good = s.world.bms in ("fresh", "no limit") and s.world.pcs != "stale"
    if o.state not in CLOSED or not confirmed or not good or not detect.interlocks_closed(s.inputs.lines, s.settings):
        return "4: current is demanded without confirmed contactors, interlocks and fresh data"
    step_a = s.settings.ramp_up_rate * s.world.dt_ms / 1000.0 * s.settings.rated_ah + 1e-6
    if abs(demand) > (abs(s.was.demand_a) if demand * s.was.demand_a > 0.0 else 0.0) + step_a:
        return "5: the demand rises faster than the ramp"
    if (o.state in CHARGING and demand > 0.0) or (o.state is State.DISCHARGE and demand < 0.0):
        return "4: the demand has the wrong direction"
    steady = o.state not in CHARGING and o.state not in (State.DISCHARGE, State.GRID_SUPPORT)
    if steady and abs(demand) > abs(s.was.demand_a) + 1e-6:
        return "4: the demand grows where nothing is to flow"
    return None


def _time(s: Step) -> str | None:
    limit_s = TIMEOUTS_S.get(s.was.state)
    if s.was.state is State.STOPPING and limit_s:
        limit_s += s.settings.stop_time_limit
    elif s.was.state is State.CHARGE_BALANCE:
        limit_s = s.settings.balance_time_limit
    if limit_s and s.was.in_state_ms >= limit_s * 1000.0 and s.out.state is s.was.state:
        return "3: the time-out does not leave"
    return None


def _grid(s: Step) -> str | None:
    """What was commanded while service is not permitted is void as well: `witness` sees to it."""
    o = s.out
    if s.world.service == "permitted":
        return None
    if o.setpoint_a or o.state in CLOSED - {State.STOPPING} or o.state is State.PRECHARGE:
        return "11: service is not permitted, and something closes, stays closed or flows"
    if s.coils != OFF and s.was.service.ceased_ms >= grid.CEASE_MS:
        return "11: service is not permitted, and the contactors do not open in time"
    return None


def _service(s: Step) -> str | None:
    if s.out.state is State.SERVICE is not s.was.state:
        open_now = s.inputs.lines[5:8] == (False, False, False)
        if s.was.state is not State.ISOLATED or not open_now:
            return "8: SERVICE only from ISOLATED with contactors verified open"
    if s.was.state is State.SERVICE and s.out.state not in (State.SERVICE, State.ISOLATED, *SEVERE):
        return "8: SERVICE leads to something live"
    c = s.inputs.command
    if s.was.state is State.SERVICE and s.out.state is State.ISOLATED and (c is None or c.mode != Mode.OFF):
        return None if c is None else "8: only mode OFF ends maintenance"
    return None


def _configuration(s: Step) -> str | None:
    before, now = s.was.settings, s.after.settings
    if before is None or now is None or s.was.coils == OFF:
        return None
    if replace(narrowed(before, now), revision=0) != replace(now, revision=0):
        return "10: a configuration widened a limit while a contactor was closed"
    return None


def _key_switch(s: Step) -> str | None:
    running = s.out.state is State.PRECHARGE or s.out.state in CLOSED - {State.STOPPING}
    return "12: LOCAL, and the rack closes or does not stop" if s.world.key == "local" and running else None


def _update(s: Step) -> str | None:
    if s.world.update != "holds":
        return None
    if s.out.state is State.PRECHARGE or s.out.state in CLOSED - {State.STOPPING}:
        return "13: an update holds the rack, and it closes or does not stop"
    left = s.was.state is State.SERVICE and s.out.state is State.ISOLATED
    return "13: SERVICE is left while an update holds the rack" if left else None


PROMISES = (
    _chain, _after_a_fault, _closing, _opening, _demand, _time, _grid, _service, _configuration, _key_switch, _update,
)  # fmt: skip


def broken(s: Step) -> str | None:
    """The first promise that the scan breaks."""
    for promise in PROMISES:
        if what := promise(s):
            return what
    return None
