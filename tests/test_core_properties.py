"""What must hold after every scan, whatever the inputs: random walks over the whole core from every state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rig import ARMED, LINES, NONE
from rig import CoarseRig as Rig

from statemachine import faults
from statemachine.contactors import COILS, Coils, Phase
from statemachine.core import Core, Memory
from statemachine.faults import LOCKOUT_MASK, SEVERE_MASK, TRIP_MASK
from statemachine.settings import Settings, narrowed
from statemachine.signals import Bms, GuardTrip, Inputs, Mode, Outputs, Pcs
from statemachine.states import CHARGING, CLOSED, State

SEVERE = (State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT)
CLOSED_COILS = COILS[Phase.CLOSED]
NEXT_COILS = {  # all may also go to NONE
    NONE: {Coils(True, False, False)},
    Coils(True, False, False): {Coils(True, False, True)},
    Coils(True, False, True): {Coils(True, True, True)},
    Coils(True, True, True): {CLOSED_COILS},
    CLOSED_COILS: set(),
}
SHARED_CORE = Core()  # the machine is built once; a walk brings its own memory


@dataclass
class Walker(Rig):
    """A rig that checks the promises after every scan."""

    core: Core = field(default_factory=lambda: SHARED_CORE)
    seen: Inputs | None = None
    void_seq: int = -1  # the command that stood while a fault was latched
    acked: int = 0  # latched bits that were acknowledged, or reset, while their cause was gone
    reset: int = 0
    pre_ms: float = 0.0  # when the precharge contactor was energised
    wide: Settings | None = None  # in force when the contactors closed

    def inputs(self, true: Coils) -> Inputs:
        self.seen = super().inputs(true)
        return self.seen

    def once(self) -> Outputs:
        before, memory = self.out, self.core.memory
        now = super().once()
        assert self.seen is not None
        if before is not None:
            self.check(before, memory, self.seen, now)
        return now

    def check(self, was: Outputs, memory: Memory, seen: Inputs, now: Outputs) -> None:
        s = self.core.memory.settings
        assert s is not None
        coils_were, coils = Coils(was.coil_neg, was.coil_pos, was.coil_pre), self.coils
        self._kill_chain(seen, now, coils)
        self._latches(was, memory, seen, now)
        self._closing(was, seen, now, coils_were, coils, s)
        self._opening(was, memory, seen, now, coils_were, coils, s)
        self._demand(was, seen, now, coils, s)
        self._limits(seen, now, s)
        self._service(was, seen, now, coils)
        self._configuration(coils, s)

    @staticmethod
    def _kill_chain(seen: Inputs, now: Outputs, coils: Coils) -> None:
        if not (seen.lines.kill_ok and seen.lines.tamper_ok) or now.faults_active & TRIP_MASK:
            assert now.state is State.EMERGENCY_STOP
        if now.state in (*SEVERE, State.INIT, State.ISOLATED, State.SERVICE):
            assert coils == NONE
            assert now.setpoint_a == 0.0
            assert not now.pcs_run

    def _latches(self, was: Outputs, memory: Memory, seen: Inputs, now: Outputs) -> None:
        """A latched fault goes only by its acknowledge (and reset), and a LOCKOUT never."""
        assert now.faults_active & SEVERE_MASK & ~now.faults_latched == 0
        gone = was.faults_latched & ~now.faults_active
        ack = seen.command is not None and seen.command.ack_count > memory.ack_count >= 0
        reset = seen.lines.reset_pressed and memory.pressed_ms < 20.0 <= memory.pressed_ms + self.dt_ms
        self.acked = (self.acked | (gone if ack else 0)) & gone
        self.reset = (self.reset | (gone if reset else 0)) & gone
        cleared = was.faults_latched & ~now.faults_latched
        assert cleared & ~self.acked == 0, faults.names(cleared)
        assert cleared & TRIP_MASK & ~self.reset == 0, faults.names(cleared)
        assert cleared & LOCKOUT_MASK == 0
        if was.state in SEVERE and now.state not in SEVERE:
            assert not now.faults_latched
        if was.faults_latched or was.state in SEVERE:
            assert seen.command is not None
            self.void_seq = seen.command.seq

    def _closing(self, was: Outputs, seen: Inputs, now: Outputs, coils_were: Coils, coils: Coils, s: Settings) -> None:
        assert coils in (coils_were, NONE) or coils in NEXT_COILS[coils_were]
        rising = coils != coils_were and coils != NONE
        if not rising:
            return
        assert now.state is State.PRECHARGE
        assert was.state is State.PRECHARGE or s.commissioned
        assert seen.command is not None
        assert seen.command.seq != self.void_seq, "an old command closed a contactor"
        assert not now.faults_latched
        if coils_were == NONE:
            assert seen.lines.interlocks & s.interlocks_required == s.interlocks_required
            assert not (seen.lines.fb_neg or seen.lines.fb_pos or seen.lines.fb_pre)
        if coils.pre and not coils_were.pre:
            self.pre_ms = self.now_ms
        if coils.pos and not coils_were.pos:
            assert seen.bms is not None
            assert seen.pcs is not None
            assert seen.lines.fb_neg
            assert seen.lines.fb_pre
            assert self.now_ms - self.pre_ms >= s.precharge_min_time * 1000.0
            assert min(self.bms_at, self.pcs_at) >= self.pre_ms, "measured before the resistor was switched in"
            assert abs(seen.bms.rack_v - seen.pcs.dc_v) <= s.precharge_voltage
            assert abs(seen.bms.rack_a) <= s.precharge_current

    def _opening(
        self, was: Outputs, memory: Memory, seen: Inputs, now: Outputs, coils_were: Coils, coils: Coils, s: Settings
    ) -> None:
        if coils_were != CLOSED_COILS or coils == CLOSED_COILS or was.state is State.PRECHARGE:
            return
        if now.state is State.EMERGENCY_STOP:
            return
        assert was.state in CLOSED
        if was.state is State.STOPPING and memory.in_state_ms >= s.stop_time_limit * 1000.0:
            return
        assert abs(was.setpoint_a) <= 0.5
        bms_fresh = seen.bms is not None and seen.bms_age_ms <= s.bms_timeout * 1000.0 and seen.bms.identity_ok
        if bms_fresh and seen.bms is not None and math.isfinite(seen.bms.rack_a):
            assert abs(seen.bms.rack_a) <= s.break_current
        else:
            assert seen.pcs is not None
            assert abs(seen.pcs.dc_a) <= s.break_current

    def _demand(self, was: Outputs, seen: Inputs, now: Outputs, coils: Coils, s: Settings) -> None:
        demand = now.setpoint_a
        assert math.isfinite(demand)
        if demand:
            assert seen.bms is not None
            assert seen.pcs is not None
            assert now.state in CLOSED
            assert coils == CLOSED_COILS
            assert seen.lines.fb_neg
            assert seen.lines.fb_pos
            assert seen.lines.interlocks & s.interlocks_required == s.interlocks_required
            assert seen.bms_age_ms <= s.bms_timeout * 1000.0
            assert seen.pcs_age_ms <= s.pcs_timeout * 1000.0
            assert seen.bms.identity_ok
            assert seen.bms.plausible
            assert math.isfinite(seen.bms.rack_a)
        assert -now.charge_limit_a - 1e-6 <= demand <= now.discharge_limit_a + 1e-6
        step_a = s.ramp_up_rate * self.dt_ms / 1000.0 * s.rated_ah + 1e-6
        assert abs(demand) <= max(0.0, demand * was.setpoint_a > 0.0) * abs(was.setpoint_a) + step_a, "rises too fast"
        if now.state in CHARGING:
            assert demand <= 0.0
        elif now.state is State.DISCHARGE:
            assert demand >= 0.0
        elif now.state is not State.GRID_SUPPORT:
            assert abs(demand) <= abs(was.setpoint_a)

    @staticmethod
    def _limits(seen: Inputs, now: Outputs, s: Settings) -> None:
        for limit, name, site_a, site_c in (
            (now.charge_limit_a, "charge_max_a", s.max_charge_current, s.max_charge_rate),
            (now.discharge_limit_a, "discharge_max_a", s.max_discharge_current, s.max_discharge_rate),
        ):
            assert 0.0 <= limit <= min(site_a, site_c * s.rated_ah) + 1e-6
            for device in (seen.bms, seen.pcs):
                theirs = getattr(device, name) if device is not None else 0.0
                assert limit <= (max(0.0, theirs) if math.isfinite(theirs) else 0.0) + 1e-6

    @staticmethod
    def _service(was: Outputs, seen: Inputs, now: Outputs, coils: Coils) -> None:
        if was.state is not State.SERVICE:
            assert now.state is not State.SERVICE or was.state is State.ISOLATED
            return
        assert coils == NONE
        assert now.state in (State.SERVICE, State.ISOLATED, *SEVERE)
        if now.state is State.ISOLATED:
            assert seen.command is not None
            assert seen.command.mode == Mode.OFF, "only mode OFF ends maintenance"

    def _configuration(self, coils: Coils, s: Settings) -> None:
        if coils == NONE:
            self.wide = None
        elif self.wide is not None:
            assert replace(narrowed(self.wide, s), revision=0) == replace(s, revision=0), "widened while closed"
        if coils != NONE:
            self.wide = s


def _steps(rig: Walker, state: State) -> Rig:
    """From the start of the world to `state`."""
    charge = {"mode": 2, "c_rate": 0.5, "target_soc_pct": 80.0}
    if state is State.INIT:
        rig.bms_alive = False
        return rig.scan(100)
    rig.until(State.ISOLATED, 1000)
    if state in (State.ISOLATED, State.SERVICE):
        return rig if state is State.ISOLATED else rig.send(mode=5)
    if state is State.PRECHARGE:
        return rig.send(**charge).scan(1500)
    rig.ready()
    if state is State.DISCHARGE:
        return rig.send(mode=3, c_rate=0.5, target_soc_pct=5.0).scan(10_000)
    if state is State.GRID_SUPPORT:
        return rig.send(mode=4, w=-150_000.0).scan(10_000)
    if state is not State.READY:
        rig.send(**charge | FULL.get(state, {}))
    return rig.until(State.CHARGE_BULK, 60_000) if state in (State.STOPPING, *CAUSES) else rig


FULL = {
    State.CHARGED: {"c_rate": 0.1},
    State.CHARGE_STEP: {"c_rate": 0.3, "target_soc_pct": 100.0},
    State.CHARGE_ABSORB: {"target_soc_pct": 100.0},
    State.CHARGE_BALANCE: {"target_soc_pct": 100.0},
}
SOC_PCT = {State.CHARGED: 79.98, State.CHARGE_STEP: 75.0, State.CHARGE_ABSORB: 99.5, State.CHARGE_BALANCE: 101.9}
CAUSES: dict[State, dict[str, Any]] = {
    State.FAULT: {"bms_changes": {"alarm_stop": 1}},
    State.EMERGENCY_STOP: {"lines": LINES._replace(kill_ok=False)},
    State.LOCKOUT: {"welded": Coils(False, False, True)},
}


def _at(state: State) -> Walker:
    """A walker in `state`, its causes gone."""
    SHARED_CORE.memory = Memory()
    rig = Walker(heartbeats=True, soc=SOC_PCT.get(state, 20.0), spread_v=0.03 if state in FULL else 0.0)
    _steps(rig, state)
    for name, value in CAUSES.get(state, {}).items():
        setattr(rig, name, value)
    if state is State.STOPPING:
        rig.send(mode=0).scan(1000)
    rig.dt_ms = 50.0 if state in FULL else 10.0
    rig.until(state, 3600_000)
    rig.dt_ms = 10.0
    _heal(rig)
    if state is State.CHARGE_RAMP:
        rig.scan(5000)
    return rig


@cache
def _kept(state: State) -> tuple[dict[str, Any], Memory]:
    rig = _at(state)
    return {f.name: getattr(rig, f.name) for f in fields(rig)}, rig.core.memory


def start(state: State) -> Walker:
    """A fresh copy of the walker in `state`: the way there is walked once."""
    values, memory = _kept(state)
    SHARED_CORE.memory = memory
    copied: Any = {name: list(v) if isinstance(v, list) else v for name, v in values.items()}
    return Walker(**copied)


Action = Callable[[Walker], None]
ODD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e9)


def _set(name: str, value: Any, rig: Walker) -> None:
    setattr(rig, name, value)


def _line(changes: dict[str, Any], rig: Walker) -> None:
    rig.lines = rig.lines._replace(**changes)


def _command(changes: dict[str, Any], rig: Walker) -> None:
    rig.command = rig.command._replace(**changes)


def _send(changes: dict[str, Any], rig: Walker) -> None:
    rig.send(**changes)


def _configure(changes: dict[str, float], rig: Walker) -> None:
    rig.settings = replace(rig.settings, revision=rig.settings.revision + 1, **changes)  # type: ignore[arg-type]


def _ack(rig: Walker) -> None:
    rig.command = rig.command._replace(ack_count=rig.command.ack_count + 1)


def _heal(rig: Walker) -> None:
    """Every cause gone; nothing acknowledged."""
    rig.lines, rig.guard, rig.bms_changes, rig.pcs_changes = LINES, ARMED, {}, {}
    rig.welded = rig.stuck = NONE
    rig.supply_ok = rig.bms_alive = rig.pcs_alive = rig.precharge_works = rig.heartbeats = True
    rig.overruns_in_row, rig.temperature_c, rig.dv_offset_v, rig.command_age_ms = 0, 25.0, 0.0, 0.0
    if not rig.settings.commissioned:
        _configure({"commissioned": True}, rig)


def _recover(rig: Walker) -> None:
    _heal(rig)
    rig.scan(500)
    rig.press_reset().acknowledge()


def _one_of(names: list[str], values: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.sampled_from(names), st.sampled_from(values)).map(lambda pair: dict([pair]))


SENDS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([0, 1, 2, 2, 3, 4, 5]),
        "c_rate": st.sampled_from([0.0, 0.02, 0.5, 2.0]),
        "target_soc_pct": st.sampled_from([0.0, 50.0, 80.0, 100.0]),
        "w": st.sampled_from([-3e5, 0.0, 1e5, 3e9]),
    }
)
LINE = _one_of(["kill_ok", "tamper_ok", "insulation_ok", "reset_pressed"], [False, True])
GUARDS = (None, ARMED, *(ARMED._replace(armed=False, trip=trip) for trip in GuardTrip if trip is not GuardTrip.NONE))
CONFIGURATION = st.one_of(
    _one_of(["max_charge_current"], [100.0, 400.0, 1120.0, 2000.0]),
    _one_of(["min_soc"], [1.0, 5.0, 30.0]),
    _one_of(["stop_time_limit"], [2.0, 10.0, 20.0]),
    _one_of(["max_soc"], [60.0, 90.0, 100.0]),
    _one_of(["commissioned"], [False, True, True]),
)
NUMBERS = {kind: [name for name, type_ in get_type_hints(kind).items() if type_ is float] for kind in (Bms, Pcs)}
BMS_ODD = st.dictionaries(st.sampled_from(NUMBERS[Bms]), st.sampled_from(ODD), max_size=2)
PCS_ODD = st.dictionaries(st.sampled_from(NUMBERS[Pcs]), st.sampled_from(ODD), max_size=2)
BMS_BAD = _one_of(["alarm_stop", "alarm_trip"], [0, 1]) | _one_of(["plausible", "identity_ok"], [False, True])
POSITIONS = st.builds(Coils, st.booleans(), st.booleans(), st.booleans())

COMMANDS = st.one_of(
    SENDS.map(partial(partial, _send)),
    SENDS.map(partial(partial, _send)),
    st.just(partial(_send, {})),
    SENDS.map(partial(partial, _command)),
    st.integers(0, 6).map(lambda seq: partial(_command, {"seq": seq})),
    st.just(_ack),
)
FAULTY = st.one_of(
    LINE.map(partial(partial, _line)),
    st.sampled_from([0xFF, 0xFE, 0xF7, 0]).map(lambda bits: partial(_line, {"interlocks": bits})),
    st.sampled_from([3.0, 4.0, 19.0, 22.0, math.nan]).map(lambda ma: partial(_line, {"loops_ma": (13.0, ma) * 4})),
    BMS_ODD.map(lambda changes: partial(_set, "bms_changes", changes)),
    PCS_ODD.map(lambda changes: partial(_set, "pcs_changes", changes)),
    BMS_BAD.map(lambda changes: partial(_set, "bms_changes", changes)),
    st.sampled_from([0, 3]).map(lambda state: partial(_set, "pcs_changes", {"state": state})),
    st.sampled_from(["bms_alive", "pcs_alive", "supply_ok", "precharge_works"]).map(lambda n: partial(_set, n, False)),
    POSITIONS.map(lambda true: partial(_set, "stuck", true)),
    POSITIONS.map(lambda true: partial(_set, "welded", true)),
    st.sampled_from(GUARDS).map(lambda guard: partial(_set, "guard", guard)),
    st.sampled_from([0, 3]).map(lambda late: partial(_set, "overruns_in_row", late)),
    st.sampled_from([-5.0, 25.0, 44.0, 51.0, 65.0]).map(lambda c: partial(_set, "temperature_c", c)),
    st.sampled_from([0.0, 2.5, -2.5]).map(lambda v: partial(_set, "dv_offset_v", v)),
    st.sampled_from([0.0, 5000.0]).map(lambda ms: partial(_set, "command_age_ms", ms)),
    st.sampled_from([0, 1, 2]).map(lambda policy: partial(_command, {"loss_policy": policy})),
    st.booleans().map(lambda on: partial(_set, "heartbeats", on)),
    CONFIGURATION.map(partial(partial, _configure)),
)
MENDING = st.sampled_from([_heal, _recover])
HOLD_MS = st.sampled_from([0, 10, 20, 30, 50, 150, 300, 800, 2500])
WALK = st.lists(st.tuples(st.one_of(COMMANDS, FAULTY, MENDING), HOLD_MS), min_size=1, max_size=8)

walks = hypothesis_settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("state", list(State), ids=lambda s: s.name)
@walks
@given(walk=WALK)
def test_no_input_breaks_a_promise_and_every_state_but_lockout_has_a_way_out(
    state: State, walk: list[tuple[Action, int]]
) -> None:
    rig = start(state)
    for action, hold_ms in walk:
        action(rig)
        rig.scan(hold_ms)
    rig.settings = replace(rig.settings, stop_time_limit=5.0, revision=rig.settings.revision + 1)
    _heal(rig)
    rig.dt_ms = 100.0
    rig.send(mode=0).scan(25_000)
    rig.press_reset().acknowledge().scan(500)
    assert rig.state() is (State.LOCKOUT if rig.o.faults_latched & LOCKOUT_MASK else State.ISOLATED), rig.visited
    if rig.state() is State.ISOLATED:
        rig.soc, rig.spread_v = 50.0, 0.0
        rig.dt_ms = 20.0
        rig.send(mode=1).until(State.READY, 15_000)


@pytest.mark.parametrize("state", [s for s in State if s in CLOSED], ids=lambda s: s.name)
@pytest.mark.parametrize("kind", [Bms, Pcs], ids=lambda k: k.__name__)
def test_no_number_is_too_odd_for_the_core(state: State, kind: type[Any]) -> None:
    for name in NUMBERS[kind]:
        for odd in ODD[:3]:
            rig = start(state)
            setattr(rig, "bms_changes" if kind is Bms else "pcs_changes", {name: odd})
            rig.scan(150)


@pytest.mark.parametrize("state", [State.ISOLATED, State.READY, State.CHARGE_BULK, State.CHARGED], ids=lambda s: s.name)
@walks
@given(sends=st.lists(st.tuples(SENDS.filter(lambda c: c["mode"] != Mode.SERVICE), HOLD_MS), min_size=1, max_size=5))
def test_a_command_sent_three_times_is_the_command_sent_once(
    state: State, sends: list[tuple[dict[str, Any], int]]
) -> None:
    def trace(times: int) -> list[Any]:
        rig, seen = start(state), []
        for changes, hold_ms in sends:
            rig.send(**changes)
            for at in range(max(3, hold_ms // 10)):
                if 0 < at < times:
                    rig.send()
                o = rig.once()
                seen.append((o.state, rig.coils, o.setpoint_a, o.charge_limit_a, o.discharge_limit_a))
        return seen

    assert trace(3) == trace(1)
