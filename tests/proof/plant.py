"""The world around the core, reduced to what can make a difference: few named inputs, and one memory a class.

`World` names one scan's inputs, each field with its healthy value first; `Node` is what is carried from scan to scan.
`canonical` replaces the core's memory by the representative of its class: a memory that the core could as well have
reached, with times, numbers and counters rounded to the thresholds on which any decision hangs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import isnan
from typing import Any, NamedTuple

from rig import ARMED, CLOCK, LINES, STORE, settings

from statemachine import charge, contactors, grid, latch, loops, wishes
from statemachine.contactors import Coils, Phase
from statemachine.core import SERVICE_PRESS_MS, Memory
from statemachine.delta import Delta
from statemachine.faults import BY_NAME, LOCKOUT_MASK, SAVED_MASK, STOP_MASK, TRIP_MASK
from statemachine.reversion import Reversion
from statemachine.settings import Settings
from statemachine.signals import Bms, Command, Guard, GuardTrip, Inputs, LimitReason, Lines, Mode, Pcs, Updater
from statemachine.states import OPEN, State
from statemachine.table import TIMEOUTS_S

RATE_C, AH = 0.2, 1120.0
SETTINGS = settings(
    ramp_up_rate=0.1, ramp_down_rate=0.1, stop_time_limit=5.0, balance_time_limit=5.0, precharge_max_time=4.0,
    loops_used=1,
)  # fmt: skip
WIDER = settings(
    ramp_up_rate=0.2, ramp_down_rate=0.1, stop_time_limit=20.0, balance_time_limit=5.0, precharge_max_time=9.0,
    loops_used=1, revision=2, max_charge_current=5000.0, max_charge_rate=4.0, max_delta_voltage=9.0, break_current=90.0,
)  # fmt: skip
UNCOMMISSIONED = replace(SETTINGS, revision=3, commissioned=False)
SCAN_MS, WHILE_MS, AGES_MS = 10.0, 6000.0, 2e7
"""One scan; past every confirm, feedback and precharge time; past every time-out."""

COMMANDS: dict[str, tuple[int, float, float, float]] = {  # mode, W, C-rate, target %
    "OFF": (Mode.OFF, 0.0, 0.0, 0.0),
    "READY": (Mode.READY, 0.0, 0.0, 0.0),
    "CHARGE": (Mode.CHARGE, 0.0, RATE_C, 80.0),
    "FULL": (Mode.CHARGE, 0.0, RATE_C, 100.0),
    "DISCHARGE": (Mode.DISCHARGE, 0.0, RATE_C, 30.0),
    "GRID_OUT": (Mode.GRID, 250e3, 0.0, 0.0),
    "GRID_IN": (Mode.GRID, -250e3, 0.0, 0.0),
    "SERVICE": (Mode.SERVICE, 0.0, 0.0, 0.0),
}
SOC: dict[str, tuple[float, float, float]] = {  # SoC %, highest cell V, lowest cell V
    "middle": (50.0, 3.70, 3.70),
    "low": (20.0, 3.45, 3.45),
    "step zone": (75.0, 3.90, 3.90),
    "high": (85.0, 3.95, 3.95),
    "ceiling": (99.9, 4.24, 4.239),
    "ceiling, cells apart": (99.9, 4.24, 4.15),
}
GUARDS: dict[str, Guard | None] = {
    "armed": ARMED,
    "dropped": ARMED._replace(armed=False, trip=GuardTrip.HEARTBEAT_LATE),
    "missing": None,
}


class World(NamedTuple):
    """One scan, in words. The first value of each field in CHANGES is the healthy one."""

    chain: str = "closed"
    cause: str = "none"
    feedback: str = "follows"
    bms: str = "fresh"
    pcs: str = "fresh"
    link: str = "follows"
    interlocks: str = "closed"
    guard: str = "armed"
    command: str = "same"
    ack: bool = False
    reset: bool | str = False  # "held": the scan in which it is held for the time of a service press
    soc: str = "middle"
    current: str = "follows"
    server: str = "alive"
    key: str = "remote"
    settings: str = "same"
    commissioning: str = "valid"
    service: str = "permitted"
    update: str = "none"
    dt_ms: float = SCAN_MS


CHANGES: dict[str, tuple[Any, ...]] = {
    "chain": ("kill-switch open", "tamper"),
    "cause": ("stop", "trip"),
    "feedback": ("all open", "positive closed", "all closed"),
    "bms": ("stale", "implausible", "no limit"),
    "pcs": ("stale", "fault"),
    "link": ("off by 20 V",),
    "interlocks": ("open",),
    "guard": ("dropped", "missing"),
    "command": (*COMMANDS, "same again", "old number, other mode", "none"),
    "ack": (True,),
    "reset": (True, "held"),
    "soc": tuple(name for name in SOC if name != "middle"),
    "current": ("flows", "rests"),
    "server": ("silent",),
    "key": ("local",),
    "settings": ("wider",),
    "commissioning": ("void",),
    "service": ("not permitted",),
    "update": ("holds",),
    "dt_ms": (WHILE_MS, AGES_MS),
}
PROBES = ("settings", "commissioning")
"""Checked at every node, and not followed."""
PAIRED: dict[str, tuple[Any, ...]] = {
    **{
        name: CHANGES[name]
        for name in ("cause", "bms", "pcs", "interlocks", "guard", "link", "server", "key", "service", "update")
    },
    "chain": ("kill-switch open",),
    "feedback": CHANGES["feedback"],
    "command": ("OFF", "CHARGE", "DISCHARGE", "SERVICE"),
    "ack": (True,),
    "reset": (True,),
    "soc": ("low", "high", "ceiling", "ceiling, cells apart"),
    "current": ("flows",),
    "dt_ms": (WHILE_MS,),
}
GRIDS = {"permitted": grid.DEFAULT, "not permitted": grid.DEFAULT._replace(service_permitted=False)}
HEALTHY = World()


def singles() -> list[World]:
    return [HEALTHY, *(HEALTHY._replace(**{name: value}) for name, values in CHANGES.items() for value in values)]


TURNS = (("dt_ms", WHILE_MS), ("command", "CHARGE"), ("ack", True))
"""What a change is paired with in every run; all pairs of PAIRED are tried with --long."""
ASIDE = ({"feedback", "command"}, {"update", "command"})
"""Paired with each other in every run: what is commanded is what the one or the other must not follow."""


def pairs(every: bool = False) -> list[World]:
    flat = [(name, value) for name, values in PAIRED.items() for value in values]
    return [
        HEALTHY._replace(**{a: x, b: y})
        for (a, x), (b, y) in combinations(flat, 2)
        if a != b and (every or (a, x) in TURNS or (b, y) in TURNS or {a, b} in ASIDE)
    ]


def said(world: World) -> str:
    """What differs from the healthy base."""
    words = {n: v for n, v in world._asdict().items() if v != getattr(HEALTHY, n)}
    names = [n if v is True else f"{v:g} ms pass" if n == "dt_ms" else f"{n} {v}" for n, v in words.items()]
    return ", ".join(names) or "all healthy"


class Node(NamedTuple):
    """Carried from scan to scan: the core's memory, the command that stands, and what a witness remembers."""

    memory: Memory
    command: str = "OFF"
    void: int = 2  # the command that stands was there with a latched fault (1), or in INIT, a fault state, in LOCAL or
    # without permission to serve (2)
    owes_ack: bool = False
    owes_reset: bool = False
    locked: int = 0  # a lockout still wants: 1 the service press, 2 the acknowledge


def _command(node: Node, world: World) -> tuple[Command | None, str]:
    """The command as the server publishes it. The number in the canonical memory is 1; 2 is new."""
    if world.command == "none":
        return None, node.command
    name, seq = node.command, max(1, node.memory.wishes.seq)
    if world.command in COMMANDS:
        name, seq = world.command, seq + 1
    elif world.command == "same again":
        seq += 1
    elif world.command == "old number, other mode":
        name = "CHARGE" if node.command != "CHARGE" else "DISCHARGE"
    mode, w, c_rate, target = COMMANDS[name]
    ack = max(0, node.memory.ack_count) + world.ack
    return Command(
        seq, mode, w, c_rate, target, 0, False, 10.0, 0, ack, 0, False, 0.0, 0.0, False, 0.0, False, 0, 0,
    ), name  # fmt: skip


def _lines(node: Node, world: World) -> Lines:
    seen: Coils = {
        "follows": node.memory.coils,
        "all open": Coils(False, False, False),
        "positive closed": node.memory.coils._replace(pos=True),
        "all closed": Coils(True, True, True),
    }[world.feedback]
    return LINES._replace(
        kill_ok=world.chain != "kill-switch open",
        tamper_ok=world.chain != "tamper",
        reset_pressed=bool(world.reset),
        interlocks=0xFF if world.interlocks == "closed" else 0xF7,
        fb_neg=seen.neg,
        fb_pos=seen.pos,
        fb_pre=seen.pre,
        out_neg=node.memory.coils.neg,
        out_pos=node.memory.coils.pos,
        out_pre=node.memory.coils.pre,
        loops_age_ms=min(world.dt_ms, 100.0),
        remote=world.key == "remote",
    )


def _current_a(node: Node, world: World) -> float:
    if world.current == "flows":
        return RATE_C * AH
    return node.memory.demand_a if world.current == "follows" and node.memory.sequence.phase is Phase.CLOSED else 0.0


def _bms(node: Node, world: World) -> Bms:
    soc, top, bottom = SOC[world.soc]
    hot = 52.0 if world.cause == "stop" else 25.0
    limit_a = 0.0 if world.bms == "no limit" else AH
    return Bms(
        2, 100.0, 1200.0, _current_a(node, world), soc, soc, soc, 100.0, top, bottom, (top + bottom) / 2, 0, 1,
        hot, 25.0, 2, 3, limit_a, limit_a, 2000.0, 0, 0, 0, 0, 0, 4, world.bms != "implausible", True,
        0.0,
    )  # fmt: skip


def _pcs(node: Node, world: World) -> Pcs:
    linked = node.memory.coils.pre or node.memory.coils.pos
    dc_v = (1200.0 if linked else 0.0) - (20.0 if world.link != "follows" else 0.0)
    return Pcs(
        2,
        100.0,
        dc_v,
        _current_a(node, world),
        0.0,
        50.0,
        400.0,
        3 if world.pcs == "fault" else 2,
        0,
        AH,
        AH,
        True,
        0.0,
    )


def _settings(world: World) -> Settings:
    if world.commissioning == "void":
        return UNCOMMISSIONED
    return WIDER if world.settings == "wider" else SETTINGS


def inputs(node: Node, world: World) -> tuple[Inputs, str]:
    """(inputs of the scan, name of the command that stands then)."""
    command, name = _command(node, world)
    return Inputs(
        _lines(node, world), _bms(node, world), 1e5 if world.bms == "stale" else 5.0,
        _pcs(node, world), 1e5 if world.pcs == "stale" else 5.0, command, 5000.0 if world.server == "silent" else 0.0,
        GUARDS[world.guard], 0.0, STORE, 0.0, CLOCK, 0.0, _settings(world),
        3 if world.cause == "trip" else 0, False, GRIDS[world.service], Updater(world.update == "holds", False),
    ), name  # fmt: skip


_STOP, _TRIP, _LOCK = (
    1 << BY_NAME[name].bit for name in ("ERR_OVER_TEMPERATURE", "ERR_SCAN_OVERRUN", "ERR_CONTACTOR_WELDED")
)
_STAYS_MS = {
    **{state: (limit_s * 1000.0,) for state, limit_s in TIMEOUTS_S.items()},
    State.READY: (10_000.0,),
    State.CHARGE_BALANCE: (SETTINGS.balance_time_limit * 1000.0,),
    State.STOPPING: (
        SETTINGS.stop_time_limit * 1000.0,
        (SETTINGS.stop_time_limit + TIMEOUTS_S[State.STOPPING]) * 1000.0,
    ),
}


def _stay(state: State, ms: float) -> float:
    return max((limit + 1.0 for limit in _STAYS_MS.get(state, ()) if ms >= limit), default=0.0)


def _latches(now: latch.Latches) -> latch.Latches:
    """One fault stands for all of its severity; what is acknowledged and pressed counts when it is so for all."""
    latched = acked = reset = service = 0
    for mask, bit in ((STOP_MASK, _STOP), (TRIP_MASK, _TRIP), (LOCKOUT_MASK, _LOCK)):
        if not (of := now.latched & mask):
            continue
        latched |= bit
        if bit != _STOP:
            acked |= bit if of & ~now.acked == 0 else 0
        reset |= bit if bit == _TRIP and of & ~now.reset == 0 else 0
        service |= bit if bit == _LOCK and of & ~now.service == 0 else 0
    return latch.Latches(latched=latched, acked=acked, reset=reset, service=service)


def _rate(c: float) -> float:
    return 0.0 if c <= 0.0 else 0.04 if c <= charge.TAIL_RATE_C else 0.1 if c < RATE_C - 1e-6 else RATE_C


def _plenty(c: float) -> float:
    return 0.0 if c <= 0.0 else 0.001 if c < 0.005 else 0.04 if c <= 0.05 else 0.1 if c < RATE_C - 1e-6 else 0.3


_IDLE = OPEN | {State.PRECHARGE, State.READY, State.CHARGED, State.STOPPING}
"""Nothing is driven here, so the law starts anew; only the overcurrent check looks at the limits."""
_AMPLE = charge.Limits(*(0.3, LimitReason.COMMAND) * 2, 0.3, LimitReason.NONE, 0.3, LimitReason.COMMAND)


def _reason(reason: LimitReason) -> LimitReason:
    kept = (LimitReason.RAMP, LimitReason.VOLTAGE, LimitReason.SOC, LimitReason.NO_DATA)
    return reason if reason in kept else LimitReason.COMMAND


def _limits(m: Memory) -> charge.Limits:
    now = m.limits
    if m.state in _IDLE:
        return _AMPLE
    return charge.Limits(
        _plenty(now.charge_c), _reason(now.charge_reason), _plenty(now.discharge_c), _reason(now.discharge_reason),
        _plenty(now.available_charge_c), LimitReason.NONE,
        _plenty(now.available_discharge_c), _reason(now.available_discharge_reason),
    )  # fmt: skip


def _law(m: Memory) -> charge.Law:
    if m.state in _IDLE:
        return charge.Law(0.05, 0.05, 0.0, 0.0, 25.0, 25.0, 1)
    if not m.law.poll:
        return charge.Law()
    inward, outward = _rate(m.law.charge_c), _rate(m.law.discharge_c)
    in_loop = _rate(m.law.loop_charge_c) if m.limits.charge_reason is LimitReason.VOLTAGE else inward + 0.05
    out_loop = _rate(m.law.loop_discharge_c) if m.limits.discharge_reason is LimitReason.VOLTAGE else outward + 0.05
    return charge.Law(in_loop, out_loop, inward, outward, 25.0, 25.0, 1)


def _delta(m: Memory) -> Delta:
    """Counted towards calibration or a trip; forgotten by the core when the contactors are not closed."""
    d = m.delta
    if not d.bms_poll or m.sequence.phase is not Phase.CLOSED or (m.state is State.STOPPING and not d.calibrated):
        return Delta()
    fresh = Delta(history=((90.0, 1200.0),), pcs_poll=1, bms_poll=1, bms_ms=90.0, compared_ms=90.0)
    if not d.calibrated:
        return fresh._replace(sums=(4, 0.0)) if d.sums[0] else fresh
    return fresh._replace(offset_v=0.0, dv_v=0.0, bad_in_row=min(2, 2 * d.bad_in_row))


def _wishes(w: wishes.Wishes, command: str) -> wishes.Wishes:
    """The command's number is 1 from here on; a void one that wants anything at all is like any other."""
    if w.seq < 0:
        return wishes.Wishes()
    return wishes.Wishes(
        seq=1, mode=Mode(COMMANDS[command][0]), voided_seq=1 if w.voided_seq == w.seq else 0, heartbeat=0,
        wset=Reversion(0), remote=w.remote, remote_ms=wishes.REMOTE_MS if w.remote else 0.0,
    )  # fmt: skip


def _service(now: grid.Service) -> grid.Service:
    """Delay and ramp are 0 here and the droop is off, so that only the bound of ceasing counts."""
    ceased_ms = grid.CEASE_MS if now.ceased_ms >= grid.CEASE_MS else 0.0
    return grid.Service(inside=True, ceased_ms=ceased_ms, limit=Reversion(0), droop=Reversion(0))


def _sequence(m: Memory) -> contactors.Sequence:
    seq = m.sequence
    counted = m.state is State.PRECHARGE and seq.phase is not Phase.CLOSED
    return contactors.Sequence(seq.phase, 0.0, seq.tries if counted else 0, seq.failed)


KNOWN = {
    "state", "in_state_ms", "now_ms", "settings", "offered", "latches", "sequence", "coils", "coils_ms", "delta", "law",
    "limits", "demand_a", "expected_a", "wishes", "finished", "ack_count", "pressed_ms", "ceiling_ms", "tail_ms",
    "under_load", "inrush", "balance_over", "loops", "chatter", "wear", "service", "droop",
}  # fmt: skip
"""Fields of the memory that `canonical` knows; a new one has to be given its classes there first."""


def held(node: Node, world: World) -> Node:
    """The node as it is after RESET was held, with nothing else happening, until just before the service press."""
    if world.reset != "held":
        return node
    return node._replace(memory=node.memory._replace(pressed_ms=SERVICE_PRESS_MS - SCAN_MS / 2))


def _settled_loops() -> loops.LoopMemory:
    memory = loops.LoopMemory()
    for _ in range(5):
        memory, _judged = loops.judge(memory, LINES.loops_ma, LINES.loops_age_ms, SETTINGS, 0.0, SCAN_MS)
    return memory


_LOOPS = _settled_loops()
"""The loops never change here: what they do to a rack they do through a fault, and one stands for all."""


def canonical(m: Memory, command: str) -> Memory:
    """The representative of the memory's class.

    An open rack takes the settings that are offered next, or feedback says that it is closed, and then nothing closes.
    What was offered is what is in force: it only tells a new revision from an old one.
    That RESET is held matters only where something waits for a press: one that comes in the scan of its cause is void.
    """
    content = (Mode(COMMANDS[command][0]), *COMMANDS[command][1:])
    finished = m.finished if m.finished is None or m.finished == (content[0], content[1], *content[2:]) else None
    in_force = SETTINGS if m.settings is not None and m.state in OPEN else m.settings
    rate = m.demand_a / AH
    demand_a = (-1 if rate < 0 else 1) * _rate(abs(rate)) * AH if rate and not isnan(rate) else 0.0
    return Memory(
        state=m.state,
        in_state_ms=_stay(m.state, m.in_state_ms),
        settings=in_force,
        offered=in_force,
        latches=_latches(m.latches),
        sequence=_sequence(m),
        coils=m.coils,
        coils_ms=1e4 if m.state in OPEN else 0.0,
        delta=_delta(m),
        law=_law(m),
        limits=_limits(m),
        demand_a=demand_a,
        expected_a=(max(0.0, -demand_a), max(0.0, demand_a)),
        wishes=_wishes(m.wishes, command),
        finished=finished,
        ack_count=0 if m.ack_count >= 0 else -1,
        pressed_ms=20.0 if m.pressed_ms >= 20.0 and m.latches.latched & SAVED_MASK else 0.0,
        ceiling_ms=1000.0 if m.ceiling_ms >= 1000.0 else 0.0,
        tail_ms=5000.0 if m.tail_ms >= 5000.0 else 0.0,
        loops=_LOOPS,
        service=_service(m.service),
    )


def standing(m: Memory, command: str) -> str:
    """The command's representative: a void one acts by wanting something or nothing."""
    void = m.wishes.voided_seq == m.wishes.seq >= 0
    return "READY" if void and command != "OFF" else command
