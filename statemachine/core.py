"""One scan: inputs in, outputs out. The same inputs after the same history give the same outputs, always."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from . import charge, contactors, delta, detect, grid, latch, leds, loops, ratings, wear, wishes
from .cmf import Cmf
from .contactors import Coils, Phase, Sequence
from .faults import BY_NAME, LOCKOUT_MASK, SAVED_MASK, SEVERE_MASK, STOP_MASK, TRIP_MASK
from .settings import Settings, narrowed, same
from .signals import (
    EPOCH,
    Bms,
    Command,
    EventKind,
    Grid,
    Inputs,
    InterlockBit,
    LimitReason,
    Lines,
    Mode,
    Outputs,
    Pcs,
    PcsState,
    StatusBit,
    Why,
)
from .states import CHARGING, CLOSED, State
from .table import TIMEOUTS_S, Bits

RESET_PRESS_MS = 20.0  # a press must stand two scans
SERVICE_PRESS_MS = 10_000.0  # RESET held for this long says: somebody is here and has looked
INRUSH_MS = 500.0  # after the positive main closed, before anything is demanded
REST_A = 0.5  # demand below it is zero
CEILING_V, CEILING_MS = 0.005, 1000.0  # absorb: the loop binds this near the ceiling for this long
TAIL_MS = 5000.0
FULL_PCT = 99.5  # a target at or above it is reached by voltage and tail, not by the SoC estimate
STEP_HYSTERESIS_PCT = 1.0
BMS_FULL_PCT = 95.0  # from here a BMS that takes the current away ends the charge as the ceiling does
EXPECTED_FALL_C_PER_S = 0.05  # a PCS that follows the demand more slowly than this does not follow
GUARD_BIT, HEARTBEAT_BIT = (1 << BY_NAME[name].bit for name in ("ERR_GUARD", "ERR_SITE_HEARTBEAT"))
EMPTY_C = 0.005  # a discharge limit below it, by voltage or SoC, ends a discharge

_ENERGISED = CLOSED | {State.PRECHARGE}
_SILENT = frozenset({State.INIT, State.SERVICE, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT})


class Memory(NamedTuple):
    """All that the core carries from one scan to the next."""

    state: State = State.INIT
    in_state_ms: float = 0.0
    now_ms: float = 0.0
    settings: Settings | None = None  # in force
    offered: Settings | None = None  # as last read
    latches: latch.Latches = latch.Latches()
    sequence: Sequence = Sequence()
    coils: Coils = Coils(False, False, False)
    coils_ms: float = 0.0  # since they changed
    delta: delta.Delta = delta.Delta()
    law: charge.Law = charge.Law()
    limits: charge.Limits = charge.NOTHING
    demand_a: float = 0.0
    expected_a: tuple[float, float] = (0.0, 0.0)  # charge and discharge current that the demand explains
    wishes: wishes.Wishes = wishes.Wishes()
    finished: wishes.Content | None = None  # content of the command whose target was reached
    ack_count: int = -1
    pressed_ms: float = 0.0  # how long the reset button is held
    ceiling_ms: float = 0.0
    tail_ms: float = 0.0
    under_load: bool = False  # the last opening was above the break current
    inrush: bool = False  # current flowed right after the last closing
    balance_over: bool = False
    loops: loops.LoopMemory = loops.LoopMemory()
    chatter: detect.Chatter = detect.Chatter()
    wear: wear.Wear = wear.Wear()
    service: grid.Service = grid.Service()
    droop: grid.Droop = grid.Droop()


class _Now(NamedTuple):
    """This scan's judged inputs."""

    bms: Bms | None  # fresh, identified, complete
    pcs: Pcs | None
    judged: loops.Judged
    loops: charge.Loops  # what the law reads of them
    permit: Why
    grid: Grid = grid.DEFAULT


class _Pressed(NamedTuple):
    """What was done to the RESET button in this very scan."""

    reset: bool
    service: bool


class Prepared(NamedTuple):
    """A scan of which only the command is missing."""

    memory: Memory
    now: _Now
    pressed: _Pressed
    standing: int  # faults whose condition stands, not yet confirmed or latched
    events: tuple[tuple[int, int, int], ...]
    dt_ms: float


def started(latched: int, worn: wear.Wear) -> Memory:
    """The memory that a controller begins with: what was saved of the one before. TRIP and LOCKOUT latch again."""
    return Memory(latches=latch.Latches(latched=latched & SAVED_MASK), wear=worn)


class Core:
    """`step(inputs, dt_ms)` once a scan. Raises on inputs of the wrong type; the caller then drives outputs safe."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self._cmf = Cmf()

    def step(self, inputs: Inputs, dt_ms: float) -> Outputs:
        """One scan, `dt_ms` after the one before."""
        return self.decide(self.prepare(inputs, dt_ms), inputs)

    def prepare(self, inputs: Inputs, dt_ms: float) -> Prepared:
        """One half of a scan: judges and detects, on the command as far as it is known. Nothing is remembered."""
        events: list[tuple[int, int, int]] = []
        m, pressed = _press(_adopt(self.memory, inputs, events), inputs.lines, dt_ms)
        service = m.service
        m, now = _judge(m, inputs, dt_ms)
        _tell_service(service, m.service, events)
        m, standing = _detect(m, now, inputs, pressed, dt_ms, events)
        return Prepared(m, now, pressed, standing, tuple(events), dt_ms)

    def decide(self, prepared: Prepared, inputs: Inputs) -> Outputs:
        """The other half. `inputs` are those of `prepare`; only the command may be newer, and counts in this scan."""
        m, now, pressed, standing, told, dt_ms = prepared
        events = [*told]
        m, ack = _acknowledged(m, inputs.command)
        seen_wishes, wish = wishes.step(
            m.wishes,
            inputs.command,
            inputs.command_age_ms,
            m.state,
            now.permit,
            inputs.lines.remote,
            dt_ms,
            _ceased(now),
        )
        _tell_wishes(m.wishes, seen_wishes, events)
        m = _latch(m._replace(wishes=seen_wishes), standing, ack, pressed, dt_ms, events)
        bits = _bits(m, now, wish, inputs)
        m = _enter(m, self._cmf.next(m.state, bits), wish, bits, events)
        m = _switch(m, now, bits, inputs, dt_ms, events)
        m = _supply(m, now, wish, inputs, dt_ms)
        self.memory = m
        return _outputs(m, now, wish, inputs, events)

    def rehearse(self, inputs: Inputs, dt_ms: float) -> Outputs:
        """What `step` would answer. Nothing is remembered."""
        memory = self.memory
        try:
            return self.step(inputs, dt_ms)
        finally:
            self.memory = memory


def _adopt(m: Memory, inputs: Inputs, events: list[tuple[int, int, int]]) -> Memory:
    """Takes a new configuration: whole while open, only what is narrower while a contactor is closed."""
    offered = inputs.settings
    if offered is None:
        return m
    is_open = m.state not in _ENERGISED and not any(contactors.feedback(inputs.lines))
    if m.settings is None or is_open:
        in_force = offered
    elif m.offered is not None and offered.revision == m.offered.revision:
        return m
    else:
        in_force = narrowed(m.settings, offered)
    if in_force == m.settings:
        return m if m.offered is offered else m._replace(offered=offered)
    events.append((EventKind.SETTINGS, in_force.revision, 0 if same(in_force, offered) else 1))
    return m._replace(settings=in_force, offered=offered)


def _press(m: Memory, lines: Lines, dt_ms: float) -> tuple[Memory, _Pressed]:
    """Reset and service press act once, when their time is over; a button that is stuck is one press."""
    pressed = m.pressed_ms + dt_ms if lines.reset_pressed else 0.0
    reset = m.pressed_ms < RESET_PRESS_MS <= pressed
    service = m.pressed_ms < SERVICE_PRESS_MS <= pressed
    return m._replace(pressed_ms=pressed, now_ms=m.now_ms + dt_ms), _Pressed(reset, service)


def _acknowledged(m: Memory, command: Command | None) -> tuple[Memory, bool]:
    """An acknowledge acts once, when it arrives."""
    if command is None:
        return m, False
    before, count = m.ack_count, command.ack_count
    return m if count == before else m._replace(ack_count=count), 0 <= before < count


def _judge(m: Memory, inputs: Inputs, dt_ms: float) -> tuple[Memory, _Now]:
    s = m.settings
    if s is None:
        why = Why.UPDATING if _held(inputs) else Why.NO_CONFIGURATION
        return m, _Now(None, None, loops.Judged(), charge.Loops(float("nan"), 0.0), why)
    bms, pcs = inputs.bms, inputs.pcs
    if bms is not None and not (bms.poll and bms.identity_ok and inputs.bms_age_ms <= s.bms_timeout * 1000.0):
        bms = None
    if bms is not None and not all(map(isfinite, _decisive(bms))):
        bms = bms._replace(plausible=False)
    if pcs is not None and not (pcs.poll and pcs.identity_ok and inputs.pcs_age_ms <= s.pcs_timeout * 1000.0):
        pcs = None
    rate_c = abs(bms.rack_a) / s.rated_ah if bms is not None else 0.0
    memory, judged = loops.judge(m.loops, inputs.lines.loops_ma, inputs.lines.loops_age_ms, s, rate_c, dt_ms)
    g = inputs.grid or grid.default(s)
    service = grid.watch(m.service, g, s, pcs, m.sequence.phase is Phase.CLOSED, dt_ms)
    permit = Why.UPDATING if _held(inputs) else _permit(m, s, bms, pcs, inputs) or grid.refusal(service, g)
    now = _Now(bms, pcs, judged, detect.loops_for_law(judged, s), permit, g)
    return m._replace(loops=memory, service=service), now


def _decisive(bms: Bms) -> tuple[float, ...]:
    """Values that more than a limit hangs on: without one of them the BMS is not to be believed."""
    return bms.rack_v, bms.rack_a, bms.soc_pct, bms.cell_v_max, bms.cell_v_min


def _permit(m: Memory, s: Settings, bms: Bms | None, pcs: Pcs | None, inputs: Inputs) -> Why:
    """Why the contactors may not close now; NONE when they may."""
    if not s.commissioned:
        return Why.NOT_COMMISSIONED
    if bms is None or pcs is None or not bms.plausible:
        return Why.NO_DATA
    if bms.alarm_stop or bms.alarm_trip:
        return Why.BMS_ALARM
    if pcs.state == PcsState.FAULT or pcs.fault_bits:
        return Why.PCS_FAULT
    if m.latches.shown & SEVERE_MASK:
        return Why.FAULT_LATCHED
    if not _guard_heard(inputs) or not (inputs.guard and inputs.guard.armed):
        return Why.GUARD_NOT_ARMED
    if not detect.interlocks_closed(inputs.lines, s):
        return Why.INTERLOCK_OPEN
    return Why.NONE if inputs.lines.remote and m.wishes.remote else Why.LOCAL_CONTROL


def _held(inputs: Inputs) -> bool:
    """An update holds the rack; an agent that is silent or absent does not."""
    found = inputs.updater
    return found is not None and found.hold and inputs.updater_age_ms <= detect.UPDATER_SILENT_MS


def _ceased(now: _Now) -> Why:
    """Why nothing stays closed, whatever the state."""
    if now.permit is Why.UPDATING:
        return Why.UPDATING
    return Why.NONE if now.grid.service_permitted else Why.SERVICE_NOT_PERMITTED


def _guard_heard(inputs: Inputs) -> bool:
    return inputs.guard is not None and inputs.guard_age_ms <= detect.GUARD_SILENT_MS


def _detect(
    m: Memory, now: _Now, inputs: Inputs, pressed: _Pressed, dt_ms: float, events: list[tuple[int, int, int]]
) -> tuple[Memory, int]:
    """Bits of the faults whose condition stands. The heartbeat's loss is that of the scan before: see `_latch`."""
    s = m.settings
    m = m._replace(chatter=detect.chatter(m.chatter, inputs.lines.interlocks, dt_ms))
    if pressed.service:
        m = _serviced(m, events)
    if s is not None:
        calibrated = m.delta.calibrated
        m = m._replace(delta=delta.observe(m.delta, s, now.bms, now.pcs, m.sequence.phase is Phase.CLOSED))
        if m.delta.calibrated and not calibrated:
            events.append((EventKind.DV_ZERO, round(m.delta.offset_v * 1000.0), 0))
    ah, lim = s.rated_ah if s else 0.0, m.limits
    allowed_a = max(lim.charge_c, lim.available_charge_c) * ah, max(lim.discharge_c, lim.available_discharge_c) * ah
    if m.state is not State.STOPPING:  # there the bound of the stop decides, a trip would only open earlier
        allowed_a = min(m.expected_a[0], allowed_a[0]), min(m.expected_a[1], allowed_a[1])
    seen = detect.Seen(
        inputs, s, now.bms, now.pcs, now.judged, m.state, m.in_state_ms, m.coils, m.coils_ms, m.sequence, m.delta,
        m.demand_a, allowed_a, m.wishes.lost, m.under_load, m.inrush, m.balance_over, m.chatter.edges, m.wear,
    )  # fmt: skip
    return m, detect.raw(seen)


def _latch(
    m: Memory, standing: int, ack: bool, pressed: _Pressed, dt_ms: float, events: list[tuple[int, int, int]]
) -> Memory:
    """Confirms, latches and clears; answers an acknowledge. The command has said whether the heartbeat is lost."""
    before = m.latches
    standing = standing | HEARTBEAT_BIT if m.wishes.lost else standing & ~HEARTBEAT_BIT
    after = latch.step(before, standing, dt_ms, ack, *pressed)
    _tell_bits(EventKind.FAULT_ON, after.active & ~before.active, events)
    _tell_bits(EventKind.FAULT_OFF, before.active & ~after.active, events)
    _tell_bits(EventKind.FAULT_ACK, before.latched & ~after.latched, events)
    if ack:
        why = Why.CAUSE_ACTIVE if after.latched else Why.NONE
        m = m._replace(wishes=m.wishes._replace(why=why))
    return m._replace(latches=after)


def _serviced(m: Memory, events: list[tuple[int, int, int]]) -> Memory:
    """RESET was held: somebody looked after the contactors. In SERVICE that means that they are new."""
    if m.state not in (State.SERVICE, State.LOCKOUT):
        return m
    replaced = m.state is State.SERVICE
    events.append((EventKind.SERVICE_PRESS, int(replaced), 0))
    return m._replace(wear=wear.serviced(m.wear, replaced))


def _tell_bits(kind: EventKind, bits: int, events: list[tuple[int, int, int]]) -> None:
    while bits:
        lowest = bits & -bits
        events.append((kind, lowest.bit_length() - 1, 0))
        bits ^= lowest


def _stream(number: int) -> int:
    """What a command is told under: all frames of an epoch are one stream, ten of them a second are no news."""
    return number if number < EPOCH else number - number % EPOCH


def _tell_wishes(before: wishes.Wishes, after: wishes.Wishes, events: list[tuple[int, int, int]]) -> None:
    was, told = ((_stream(w.seq), w.mode, w.result) for w in (before, after))
    if was != told and (before.seq >= 0 or after.mode != Mode.OFF):
        events.append((EventKind.COMMAND, after.seq % EPOCH, after.why))
    if before.remote != after.remote:
        events.append((EventKind.KEY_SWITCH, int(after.remote), 0))
    if before.expired != after.expired:
        events.append((EventKind.VALIDITY, 0 if after.expired else 1, 0))
    if before.lost != after.lost:
        events.append((EventKind.HEARTBEAT, 0 if after.lost else 1, 0))
    if before.wset.reverted != after.wset.reverted:
        events.append((EventKind.REVERT, after.wset.reverted, 0))


def _tell_service(before: grid.Service, after: grid.Service, events: list[tuple[int, int, int]]) -> None:
    for number, was, now in ((1, before.limit, after.limit), (2, before.droop, after.droop)):
        if was.reverted != now.reverted:
            events.append((EventKind.REVERT, now.reverted, number))


def _at_rest(m: Memory, now: _Now) -> bool:
    """Demand is zero and a meter says so. BMS first, else PCS; without both only time ends a stop."""
    if m.settings is None or abs(m.demand_a) > REST_A:
        return False
    if now.bms is not None and isfinite(now.bms.rack_a):
        return abs(now.bms.rack_a) <= m.settings.break_current
    return now.pcs is not None and abs(now.pcs.dc_a) <= m.settings.break_current


def _bits(m: Memory, now: _Now, wish: wishes.Wish, inputs: Inputs) -> Bits:
    s, bms, shown = m.settings, now.bms, m.latches.shown
    stay_s = m.in_state_ms / 1000.0
    limit_s = TIMEOUTS_S.get(m.state)
    if m.state is State.CHARGE_BALANCE and s is not None:
        limit_s = s.balance_time_limit
    elif m.state is State.STOPPING and s is not None:
        limit_s = TIMEOUTS_S[State.STOPPING] + s.stop_time_limit
    return Bits(
        trip=bool(shown & TRIP_MASK),
        lockout=bool(shown & LOCKOUT_MASK),
        stop=bool(shown & STOP_MASK),
        data_ok=bms is not None and now.pcs is not None and bms.plausible and _guard_heard(inputs),
        opened=not any(contactors.feedback(inputs.lines)),
        permit=now.permit is Why.NONE,
        closed=m.sequence.phase is Phase.CLOSED,
        calibrated=m.delta.calibrated,
        at_rest=_at_rest(m, now) or (m.state is State.STOPPING and s is not None and _bound_over(m, s)),
        run=Mode.READY <= wish.mode <= Mode.GRID,
        charge=wish.mode is Mode.CHARGE,
        discharge=wish.mode is Mode.DISCHARGE,
        grid=wish.mode is Mode.GRID,
        service=wish.mode is Mode.SERVICE or (m.state is State.SERVICE and now.permit is Why.UPDATING),
        finished=m.finished == wish.content,
        target=_target_reached(m, bms, wish),
        ramped=m.limits.charge_reason is not LimitReason.RAMP,
        step_zone=bms is not None and s is not None and bms.soc_max_pct >= _step_from(m.state, s),
        ceiling=m.ceiling_ms >= CEILING_MS,
        tail=m.tail_ms >= TAIL_MS,
        spread=bms is not None and s is not None and bms.cell_v_max - bms.cell_v_min > s.cell_balancing_threshold,
        timeout=limit_s is not None and stay_s >= limit_s,
    )


def _bound_over(m: Memory, s: Settings) -> bool:
    """A stop has taken as long as it may; less when the grid does not permit service."""
    return m.in_state_ms / 1000.0 >= s.stop_time_limit or m.service.ceased_ms >= grid.CEASE_MS


def _step_from(state: State, s: Settings) -> float:
    """SoC from which the step table lowers the rate; to leave CHARGE_STEP it must fall further."""
    return s.cell.step_factor[0][0] - (STEP_HYSTERESIS_PCT if state is State.CHARGE_STEP else 0.0)


def _target_reached(m: Memory, bms: Bms | None, wish: wishes.Wish) -> bool:
    s = m.settings
    if bms is None or s is None:
        return False
    if wish.mode is Mode.DISCHARGE:
        empty = m.limits.available_discharge_reason in (LimitReason.SOC, LimitReason.VOLTAGE)
        at_end = empty and m.limits.available_discharge_c < EMPTY_C
        return at_end or bms.soc_pct <= max(wish.target_soc_pct, s.min_soc)
    target = min(wish.target_soc_pct, s.max_soc)
    by_soc = target < FULL_PCT or s.max_soc < 100.0  # else the SoC window would hold 0 A and never end
    return wish.mode is Mode.CHARGE and by_soc and bms.soc_pct >= target


def _enter(m: Memory, state: State, wish: wishes.Wish, bits: Bits, events: list[tuple[int, int, int]]) -> Memory:
    """Bookkeeping of a state change."""
    if state is m.state:
        return m if m.finished is None or m.finished == wish.content else m._replace(finished=None)
    events.append((EventKind.STATE, m.state, state))
    done = state is State.CHARGED or (m.state is State.DISCHARGE and bits.target and bits.discharge)
    return m._replace(
        state=state,
        in_state_ms=0.0,
        finished=wish.content if done else m.finished,
        under_load=m.under_load if state is not State.PRECHARGE else False,
        inrush=m.inrush if state is not State.PRECHARGE else False,
        balance_over=(m.state is State.CHARGE_BALANCE and state is State.CHARGED and bits.spread)
        or (m.balance_over and state not in CHARGING),
    )


def _switch(
    m: Memory, now: _Now, bits: Bits, inputs: Inputs, dt_ms: float, events: list[tuple[int, int, int]]
) -> Memory:
    """Contactors. Only PRECHARGE starts a sequence; STOPPING opens at rest and never closes again."""
    stopping = m.state is State.STOPPING
    stays = m.state in CLOSED and m.sequence.phase is Phase.CLOSED and not (stopping and bits.at_rest)
    close = m.settings is not None and (m.state is State.PRECHARGE or stays)
    before = m.sequence
    loaded = before.phase is Phase.CLOSED and not close and not _at_rest(m, now)
    under_load = m.under_load or (loaded and m.state is not State.EMERGENCY_STOP)
    if m.settings is None:
        after = Sequence()
    else:
        after = contactors.advance(
            before, close, inputs.lines, m.settings, now.bms, inputs.bms_age_ms, now.pcs, inputs.pcs_age_ms, dt_ms
        )
    if after.phase is not before.phase:
        if after.phase is Phase.POSITIVE:
            events.append((EventKind.PRECHARGE, after.tries, 1))
        elif after.phase is Phase.PAUSE or after.failed:
            events.append((EventKind.PRECHARGE, after.tries, 0))
    coils = contactors.COILS[after.phase]
    changed = coils != m.coils
    inrush = not m.inrush and _inrush(m, now, inputs)
    happened = wear.Happened(
        coils.pos and not m.coils.pos, coils.pre and not m.coils.pre and not coils.pos, loaded, inrush
    )
    worn = wear.step(m.wear, happened, m.settings, dt_ms) if m.settings is not None else m.wear
    if changed:
        events.append((EventKind.COILS, coils.neg | coils.pos << 1 | coils.pre << 2, 0))
    return m._replace(
        sequence=after, coils=coils, coils_ms=0.0 if changed else m.coils_ms + dt_ms, under_load=under_load,
        inrush=m.inrush or inrush, wear=worn, in_state_ms=m.in_state_ms + dt_ms,
    )  # fmt: skip


def _inrush(m: Memory, now: _Now, inputs: Inputs) -> bool:
    """Current above the break current, sampled after the positive main closed and before anything was demanded."""
    if m.settings is None or now.bms is None or not m.coils.pos or m.demand_a != 0.0:
        return False
    return inputs.bms_age_ms < m.coils_ms <= INRUSH_MS and abs(now.bms.rack_a) > m.settings.break_current


def _supply(m: Memory, now: _Now, wish: wishes.Wish, inputs: Inputs, dt_ms: float) -> Memory:
    """Limits and the demanded current."""
    s = m.settings
    if s is None:
        return m._replace(limits=charge.NOTHING, demand_a=0.0)
    dt_s = dt_ms / 1000.0
    requested_c = step_c = wish.c_rate
    charging, discharging = m.state in CHARGING, m.state is State.DISCHARGE
    droop, rack_v = grid.Droop(), now.bms.rack_v if now.bms is not None else 0.0
    if m.state is State.GRID_SUPPORT and rack_v > 0.0:
        droop = _droop(m, now, s, wish.grid_w, rack_v, dt_s)
        power_w = droop.power_pu * ratings.rated_discharge_w(s)
        requested_c = abs(power_w) / rack_v / s.rated_ah
        step_c = s.max_charge_rate
        charging, discharging = power_w < 0.0, power_w > 0.0
    usable = now.bms if now.bms is not None and now.bms.plausible else None
    limits, law = charge.limits(
        m.law, s, usable, now.pcs, now.loops, requested_c, step_c, charging, discharging,
        m.state is State.CHARGE_BALANCE, dt_s, *grid.caps(m.service, now.grid, s, rack_v),
        LimitReason.DROOP if droop.active else LimitReason.COMMAND,
    )  # fmt: skip
    if _may_flow(m, s, inputs.lines) and now.grid.service_permitted:
        demand_a = _demand(m, limits, s, charging, discharging, dt_s)
    else:
        demand_a, law = 0.0, law._replace(charge_c=0.0, discharge_c=0.0)
    fall_a = EXPECTED_FALL_C_PER_S * s.rated_ah * dt_s
    full = charging and usable is not None and _at_ceiling(s, usable, limits)
    return m._replace(
        limits=limits,
        law=law,
        demand_a=demand_a,
        droop=droop,
        expected_a=(max(0.0, -demand_a, m.expected_a[0] - fall_a), max(0.0, demand_a, m.expected_a[1] - fall_a)),
        ceiling_ms=m.ceiling_ms + dt_ms if full else 0.0,
        tail_ms=m.tail_ms + dt_ms if full and limits.charge_c <= charge.TAIL_RATE_C else 0.0,
    )


def _droop(m: Memory, now: _Now, s: Settings, grid_w: float, rack_v: float, dt_s: float) -> grid.Droop:
    """One scan of the frequency droop; the power that it starts from is the demand of the scan before."""
    rated_w = ratings.rated_discharge_w(s)
    hz = now.pcs.ac_hz if now.pcs is not None else float("nan")
    most_pu = m.limits.available_discharge_c * s.rated_ah * rack_v / rated_w
    flowing_pu = m.demand_a * rack_v / rated_w
    return grid.droop(m.droop, now.grid, s.nominal_frequency, hz, grid_w / rated_w, flowing_pu, most_pu, dt_s)


def _at_ceiling(s: Settings, bms: Bms, limits: charge.Limits) -> bool:
    """The voltage loop holds cell or rack at the ceiling, or the BMS takes the current away near full."""
    if limits.charge_reason is LimitReason.BMS:
        return limits.charge_c <= charge.TAIL_RATE_C and bms.soc_pct >= BMS_FULL_PCT
    if limits.charge_reason is not LimitReason.VOLTAGE:
        return False
    below_v = min(s.cell.v_limit_v - bms.cell_v_max, (s.max_charge_voltage - bms.rack_v) / s.cells_in_series)
    return below_v <= CEILING_V


def _may_flow(m: Memory, s: Settings, lines: Lines) -> bool:
    """Contactors confirmed and interlocks closed, now. When they were not, the current starts from zero again."""
    confirmed = m.sequence.phase is Phase.CLOSED and lines.fb_neg and lines.fb_pos
    return m.state in CLOSED and confirmed and detect.interlocks_closed(lines, s)


def _demand(m: Memory, limits: charge.Limits, s: Settings, charging: bool, discharging: bool, dt_s: float) -> float:
    """Amperes, + is discharge. Never outside the limits."""
    if charging:
        return -limits.charge_c * s.rated_ah
    if discharging:
        return limits.discharge_c * s.rated_ah
    down_a = s.ramp_down_rate * s.rated_ah * dt_s
    demand_a = max(0.0, m.demand_a - down_a) if m.demand_a > 0.0 else min(0.0, m.demand_a + down_a)
    return min(max(demand_a, -limits.available_charge_c * s.rated_ah), limits.available_discharge_c * s.rated_ah)


def _interlock_bits(inputs: Inputs, remote: bool) -> int:
    lines: Lines = inputs.lines
    flags = (
        (InterlockBit.KILL_OK, lines.kill_ok),
        (InterlockBit.TAMPER_OK, lines.tamper_ok),
        (InterlockBit.INSULATION_OK, lines.insulation_ok),
        (InterlockBit.FEEDBACK_NEG, lines.fb_neg),
        (InterlockBit.FEEDBACK_POS, lines.fb_pos),
        (InterlockBit.FEEDBACK_PRE, lines.fb_pre),
        (InterlockBit.RESET_PRESSED, lines.reset_pressed),
        (InterlockBit.GUARD_ARMED, inputs.guard is not None and inputs.guard.armed),
        (InterlockBit.KEY_LOCAL, not remote),
    )
    return lines.interlocks | sum([1 << bit for bit, on in flags if on])


def _clock_trusted(inputs: Inputs) -> bool:
    return inputs.clock is not None and inputs.clock.trusted and inputs.clock_age_ms <= detect.CLOCK_SILENT_MS


def _status_bits(m: Memory, now: _Now, inputs: Inputs) -> int:
    command = inputs.command
    pending = m.settings is not None and m.offered is not None and not same(m.settings, m.offered)
    flags = (
        (StatusBit.CONFIG_REFUSED, command is not None and command.config_error),
        (StatusBit.CONFIG_PENDING, pending),
        (StatusBit.BMS_STALE, now.bms is None),
        (StatusBit.PCS_STALE, now.pcs is None),
        (StatusBit.HEARTBEAT_ARMED, command is not None and command.heartbeat_armed),
        (StatusBit.HEARTBEAT_LOST, m.wishes.lost),
        (StatusBit.DV_CALIBRATED, m.delta.calibrated),
        (StatusBit.SERVER_STALE, inputs.command_age_ms > wishes.SERVER_STALE_MS),
        (StatusBit.CLOCK_TRUSTED, _clock_trusted(inputs)),
    )
    return sum([1 << bit for bit, on in flags if on])


def _update_shown(now: _Now, inputs: Inputs) -> int:
    if now.permit is Why.UPDATING:
        return leds.UPDATING
    return leds.ROLLED_BACK if inputs.updater is not None and inputs.updater.rolled_back else leds.OFF


def _outputs(m: Memory, now: _Now, wish: wishes.Wish, inputs: Inputs, events: list[tuple[int, int, int]]) -> Outputs:
    ah = m.settings.rated_ah if m.settings else 0.0
    shown, lim = m.latches.shown, m.limits
    chain_ok = inputs.lines.kill_ok and inputs.lines.tamper_ok
    codes = leds.codes(
        m.state, shown, now.bms is not None, now.pcs is not None, chain_ok, bool(m.latches.latched & TRIP_MASK),
        _update_shown(now, inputs),
    )  # fmt: skip
    silent = m.state in _SILENT
    return Outputs(
        state=m.state,
        coil_neg=m.coils.neg,
        coil_pos=m.coils.pos,
        coil_pre=m.coils.pre,
        setpoint_a=m.demand_a,
        pcs_run=m.state in CLOSED and m.sequence.phase is Phase.CLOSED,
        charge_limit_a=0.0 if silent else lim.charge_c * ah,
        discharge_limit_a=0.0 if silent else lim.discharge_c * ah,
        charge_reason=LimitReason.STATE if silent else lim.charge_reason,
        discharge_reason=LimitReason.STATE if silent else lim.discharge_reason,
        available_charge_a=0.0 if silent else lim.available_charge_c * ah,
        available_discharge_a=0.0 if silent else lim.available_discharge_c * ah,
        demand_w=m.demand_a * (now.bms.rack_v if now.bms else 0.0),
        faults_active=m.latches.active,
        faults_latched=m.latches.latched,
        trip=bool(m.latches.active & TRIP_MASK & ~GUARD_BIT),  # the guard's own trip must not keep it from arming
        led_codes=codes,  # type: ignore[arg-type]
        led_levels=tuple(leds.level(code, int(m.now_ms)) for code in codes),  # type: ignore[arg-type]
        ack_seq=max(0, m.wishes.seq) % EPOCH,
        ack_result=m.wishes.result,
        ack_why=m.wishes.why,
        permit=now.permit,
        status_bits=_status_bits(m, now, inputs),
        wset_active_w=wish.grid_w if wish.wset_active else float("nan"),
        wset_remaining_s=m.wishes.wset.left_ms / 1000.0,
        wset_reverted=m.wishes.wset.reverted,
        service_delay_s=grid.delay_left_s(m.service, now.grid),
        limit_remaining_s=m.service.limit.left_ms / 1000.0,
        limit_reverted=m.service.limit.reverted,
        droop_remaining_s=m.service.droop.left_ms / 1000.0,
        droop_reverted=m.service.droop.reverted,
        dv_v=m.delta.dv_v,
        precharge_tries=m.sequence.tries,
        interlocks=_interlock_bits(inputs, m.wishes.remote),
        settings_revision=m.settings.revision if m.settings else 0,
        wear=m.wear,
        events=tuple(events),
    )
