"""Raw conditions: one function a fault, named like its row without ERR_. No memory, no debounce: that is latch.py.

A condition that judges BMS or PCS values answers False without fresh data: stale data is its own fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .charge import ONE_FAILED, Loops
from .contactors import Coils, Phase, Sequence, feedback
from .delta import CALIBRATION_TIME_MS, Delta
from .faults import FAULTS
from .loops import Judged
from .settings import Settings
from .signals import Bms, GuardTrip, Inputs, Lines, Pcs, PcsState, WatchdogState
from .states import State
from .table import TIMEOUTS_S
from .wear import Wear
from .wishes import SERVER_STALE_MS

GUARD_SILENT_MS = 100.0
OVERRUNS_IN_ROW = 3
OVERCURRENT_FACTOR, OVERCURRENT_MARGIN_C = 1.10, 0.02  # above the limit in force; meters and PCS ripple
OPEN_CURRENT_A = 5.0  # more than the meter's noise
OPEN_SETTLED_MS = 300.0  # arcs are out and the next BMS sample is taken after it
OVERVOLTAGE_FACTOR = 1.01  # of max_charge_voltage; the loop holds the voltage itself
FLOOR_MARGIN_V, DISCHARGING_A = 0.05, 2.0  # the discharge loop works above the floor, recharging is always allowed
CHATTER_EDGES, CHATTER_WINDOW_S = 20.0, 10.0
DC_OVERVOLTAGE_FACTOR = 1.05  # of max_charge_voltage, by the PCS's own meter
MISMATCH_SHARE, MISMATCH_C = 0.05, 0.02  # of the larger current, and of rated capacity: two meters of 1 %, and ripple
LINK_POOR_PCT = 2.0
IDENTITY_MS = 3000.0  # an unknown device is asked again every second
STORE_SILENT_MS, CLOCK_SILENT_MS, UPDATER_SILENT_MS = 5000.0, 10_000.0, 10_000.0
INSULATION_WARNING = 2.0  # times min_insulation

_LIVE = frozenset({State.PRECHARGE, State.STOPPING, State.FAULT, State.EMERGENCY_STOP})
_OWN_TRIPS = frozenset(GuardTrip) - {
    GuardTrip.NONE, GuardTrip.START, GuardTrip.KILL_SWITCH, GuardTrip.TAMPER, GuardTrip.CONTROLLER_TRIP,
}  # fmt: skip
"""Kill-switch and tamper are faults of their own, and so is what made the controller trip."""


class Seen(NamedTuple):
    """Everything a condition may look at."""

    inputs: Inputs
    settings: Settings | None
    bms: Bms | None  # fresh and identified, else None
    pcs: Pcs | None
    loops: Judged
    state: State
    in_state_ms: float
    coils: Coils  # as commanded in the scan before
    unchanged_ms: float  # since a coil command changed
    sequence: Sequence
    delta: Delta
    demand_a: float  # of the scan before, + is discharge
    allowed_a: tuple[float, float]  # charge and discharge current in force, A
    heartbeat_lost: bool
    opened_under_load: bool
    closed_under_load: bool
    balance_over: bool
    chatter: float  # interlock edges, leaking
    wear: Wear

    @property
    def energised(self) -> bool:
        return self.coils != (False, False, False)

    @property
    def live(self) -> bool:
        """Energised, about to be, or waiting for the cause to go: there a cause cannot be acknowledged away."""
        return self.energised or self.state in _LIVE


class Chatter(NamedTuple):
    """Edges of the interlocks in a leaky bucket: CHATTER_EDGES in CHATTER_WINDOW_S."""

    interlocks: int = -1  # as seen in the scan before; -1 = none yet
    edges: float = 0.0


def chatter(c: Chatter, interlocks: int, dt_ms: float) -> Chatter:
    """One scan; the same object while nothing moves."""
    moved = (c.interlocks ^ interlocks).bit_count() if c.interlocks >= 0 else 0
    if not moved and c.interlocks == interlocks and not c.edges:
        return c
    leaked = dt_ms / 1000.0 * CHATTER_EDGES / CHATTER_WINDOW_S
    return Chatter(interlocks, max(0.0, c.edges - leaked) + moved)


def loops_for_law(judged: Judged, s: Settings) -> Loops:
    """What the charge law reads of the loops: a zone that nobody watches leaves no current."""
    if not judged.failed and not judged.stale:
        return Loops(judged.hottest_c, 1.0)
    zones = [
        {zone for i, zone in enumerate(s.loop_zones) if bits >> i & 1}
        for bits in (s.loops_used, s.loops_used & ~judged.failed)
    ]
    return Loops(judged.hottest_c, ONE_FAILED if zones[0] == zones[1] and not judged.stale else 0.0)


def _hottest_c(v: Seen) -> float:
    """Of cells and loops, whichever is measured; -inf when neither is."""
    cells = v.bms.cell_c_max if v.bms else float("nan")
    return max((c for c in (cells, v.loops.hottest_c) if c == c), default=float("-inf"))


def kill_switch(v: Seen) -> bool:
    return not v.inputs.lines.kill_ok


def tamper(v: Seen) -> bool:
    return not v.inputs.lines.tamper_ok


def ground_fault(v: Seen) -> bool:
    return _insulation(v) < 1.0 or not v.inputs.lines.insulation_ok


def delta_v(v: Seen) -> bool:
    return v.delta.exceeded


def max_v_exceeded(v: Seen) -> bool:
    if v.bms is None or v.settings is None:
        return False
    s = v.settings
    return v.bms.cell_v_max > s.cell.v_stop_v or v.bms.rack_v > s.max_charge_voltage * OVERVOLTAGE_FACTOR


def cell_overvoltage(v: Seen) -> bool:
    return v.bms is not None and v.settings is not None and v.bms.cell_v_max > v.settings.cell.v_trip_v


def min_v_exceeded(v: Seen) -> bool:
    if v.bms is None or v.settings is None or v.bms.rack_a < DISCHARGING_A:
        return False
    return v.bms.cell_v_min < v.settings.cell.v_min_v - FLOOR_MARGIN_V


def over_temperature(v: Seen) -> bool:
    return v.settings is not None and _hottest_c(v) > v.settings.max_cell_temperature


def thermal_trip(v: Seen) -> bool:
    return v.settings is not None and _hottest_c(v) > v.settings.trip_cell_temperature


def comm_lost(v: Seen) -> bool:
    return v.live and v.bms is None and not bms_identity(v)


def pcs_lost(v: Seen) -> bool:
    return v.live and v.pcs is None and not pcs_identity(v)


def bms_identity(v: Seen) -> bool:
    found = v.inputs.bms
    return found is not None and not found.identity_ok and v.inputs.bms_age_ms <= IDENTITY_MS


def pcs_identity(v: Seen) -> bool:
    found = v.inputs.pcs
    return found is not None and not found.identity_ok and v.inputs.pcs_age_ms <= IDENTITY_MS


def bms_alarm(v: Seen) -> bool:
    return v.live and v.bms is not None and v.bms.alarm_stop != 0


def bms_trip(v: Seen) -> bool:
    return v.live and v.bms is not None and v.bms.alarm_trip != 0


def pcs_fault(v: Seen) -> bool:
    return v.live and v.pcs is not None and (v.pcs.state == PcsState.FAULT or v.pcs.fault_bits != 0)


def interlock_open(v: Seen) -> bool:
    return v.live and v.settings is not None and not interlocks_closed(v.inputs.lines, v.settings)


def interlocks_closed(lines: Lines, s: Settings) -> bool:
    return lines.interlocks & s.interlocks_required == s.interlocks_required


def contactor_welded(v: Seen) -> bool:
    """Confirmed over the fault's time, so a contactor that is just opening does not count."""
    return any(closed and not coil for closed, coil in zip(feedback(v.inputs.lines), v.coils, strict=True))


def contactor_dropped(v: Seen) -> bool:
    return v.sequence.phase is Phase.CLOSED and v.energised and not (v.inputs.lines.fb_neg and v.inputs.lines.fb_pos)


def precharge(v: Seen) -> bool:
    if v.sequence.failed:
        return v.sequence.failed_in is Phase.PRECHARGE
    return v.state is State.PRECHARGE and v.in_state_ms >= TIMEOUTS_S[State.PRECHARGE] * 1000.0


def contactor_stuck(v: Seen) -> bool:
    return v.sequence.failed and v.sequence.failed_in is not Phase.PRECHARGE


def stop_timeout(v: Seen) -> bool:
    if v.state is not State.STOPPING or v.settings is None:
        return False
    return v.in_state_ms >= (TIMEOUTS_S[State.STOPPING] + v.settings.stop_time_limit) * 1000.0


def guard(v: Seen) -> bool:
    if v.state is State.INIT:
        return False
    seen = v.inputs.guard
    if seen is None or v.inputs.guard_age_ms > GUARD_SILENT_MS:
        return True
    return not seen.armed and (v.energised or seen.trip in _OWN_TRIPS)


def scan_overrun(v: Seen) -> bool:
    return v.inputs.overruns_in_row >= OVERRUNS_IN_ROW


def controller_restart(v: Seen) -> bool:
    return v.inputs.restarted


def overcurrent(v: Seen) -> bool:
    if v.bms is None or v.settings is None:
        return False
    margin_a = OVERCURRENT_MARGIN_C * v.settings.rated_ah
    charge_a, discharge_a = (limit * OVERCURRENT_FACTOR + margin_a for limit in v.allowed_a)
    return -v.bms.rack_a > charge_a or v.bms.rack_a > discharge_a


def delta_offset(v: Seen) -> bool:
    if v.settings is None:
        return False
    if v.delta.calibrated:
        return abs(v.delta.offset_v) > v.settings.max_delta_offset or v.delta.blind
    return v.state is State.READY and v.in_state_ms > CALIBRATION_TIME_MS


def init_timeout(v: Seen) -> bool:
    return v.state is State.INIT and v.in_state_ms >= TIMEOUTS_S[State.INIT] * 1000.0


def opened_under_load(v: Seen) -> bool:
    return v.opened_under_load


def thermal_loop(v: Seen) -> bool:
    return not v.loops.stale and v.loops.failed & ~(v.loops.stuck | v.loops.jumped) != 0


def thermal_zone(v: Seen) -> bool:
    return v.live and v.loops.zone_lost


def loop_disagree(v: Seen) -> bool:
    return v.loops.disagree


def loop_stuck(v: Seen) -> bool:
    return v.loops.stuck != 0


def loop_rate(v: Seen) -> bool:
    return v.loops.jumped != 0


def sampler(v: Seen) -> bool:
    return v.live and v.loops.stale and v.settings is not None and v.settings.loops_used != 0


def interlock_chatter(v: Seen) -> bool:
    return v.chatter >= CHATTER_EDGES


def output_readback(v: Seen) -> bool:
    lines = v.inputs.lines
    return Coils(lines.out_neg, lines.out_pos, lines.out_pre) != v.coils


def supply_24v(v: Seen) -> bool:
    lines = v.inputs.lines
    if lines.kill_ok or lines.tamper_ok or lines.insulation_ok or v.settings is None:
        return False
    return v.settings.interlocks_required != 0 and not lines.interlocks & v.settings.interlocks_required


def closings_per_hour(v: Seen) -> bool:
    return not v.energised and v.settings is not None and v.wear.closing_level > v.settings.max_closings_per_hour - 1


def precharge_hot(v: Seen) -> bool:
    return not v.energised and v.settings is not None and v.wear.precharge_level > v.settings.max_precharges - 1


def closed_under_load(v: Seen) -> bool:
    return v.closed_under_load


def contactor_abused(v: Seen) -> bool:
    return not v.energised and v.settings is not None and v.wear.under_load >= v.settings.max_under_load


def contactor_worn(v: Seen) -> bool:
    return v.settings is not None and v.wear.cycles >= v.settings.contactor_life


def bms_link_poor(v: Seen) -> bool:
    return v.bms is not None and v.bms.loss_pct > LINK_POOR_PCT


def pcs_link_poor(v: Seen) -> bool:
    return v.pcs is not None and v.pcs.loss_pct > LINK_POOR_PCT


def cell_sensor(v: Seen) -> bool:
    return v.live and v.bms is not None and v.bms.cells_bad > 0


def insulation_low(v: Seen) -> bool:
    return _insulation(v) < INSULATION_WARNING


def _insulation(v: Seen) -> float:
    """In multiples of min_insulation; nan when the BMS does not measure it."""
    return v.bms.insulation_kohm / v.settings.min_insulation if v.bms and v.settings else float("nan")


def string_offline(v: Seen) -> bool:
    return v.bms is not None and v.settings is not None and v.bms.strings_online < v.settings.strings


def bms_warning(v: Seen) -> bool:
    return v.bms is not None and v.bms.alarm_warn != 0


def cell_deep_discharge(v: Seen) -> bool:
    return v.bms is not None and v.settings is not None and v.bms.cell_v_min < v.settings.cell.v_dead_v


def dc_overvoltage(v: Seen) -> bool:
    if v.pcs is None or v.settings is None or not v.energised:
        return False
    return v.pcs.dc_v > v.settings.max_charge_voltage * DC_OVERVOLTAGE_FACTOR


def current_mismatch(v: Seen) -> bool:
    if v.bms is None or v.pcs is None or v.settings is None or not v.energised:
        return False
    return not _alike(v.bms.rack_a, v.pcs.dc_a, v.settings)


def pcs_not_following(v: Seen) -> bool:
    if v.pcs is None or v.settings is None or v.sequence.phase is not Phase.CLOSED:
        return False
    return not _alike(v.demand_a, v.pcs.dc_a, v.settings)


def _alike(a: float, b: float, s: Settings) -> bool:
    return abs(a - b) <= MISMATCH_SHARE * max(abs(a), abs(b)) + MISMATCH_C * s.rated_ah


def server_lost(v: Seen) -> bool:
    return v.inputs.command is None or v.inputs.command_age_ms > SERVER_STALE_MS


def store(v: Seen) -> bool:
    found = v.inputs.store
    return found is None or not found.writes_ok or v.inputs.store_age_ms > STORE_SILENT_MS


def clock(v: Seen) -> bool:
    found = v.inputs.clock
    if found is None or v.inputs.clock_age_ms > CLOCK_SILENT_MS:
        return True
    return v.settings is not None and v.settings.clock_servers > 0 and not found.trusted


def watchdog(v: Seen) -> bool:
    return v.inputs.guard is not None and v.inputs.guard.watchdog == WatchdogState.FAILED


def site_heartbeat(v: Seen) -> bool:
    return v.heartbeat_lost


def balance_timeout(v: Seen) -> bool:
    return v.balance_over


def config(v: Seen) -> bool:
    return v.inputs.command is not None and v.inputs.command.config_error


def bms_implausible(v: Seen) -> bool:
    return v.live and v.bms is not None and not v.bms.plausible and v.bms.cells_bad == 0


def current_while_open(v: Seen) -> bool:
    if v.bms is None or v.energised or any(feedback(v.inputs.lines)):
        return False
    return v.unchanged_ms > v.inputs.bms_age_ms + OPEN_SETTLED_MS and abs(v.bms.rack_a) > OPEN_CURRENT_A


CONDITIONS: tuple[tuple[int, Callable[[Seen], bool]], ...] = tuple(
    (1 << fault.bit, globals()[fault.name.removeprefix("ERR_").lower()]) for fault in FAULTS
)
"""Mask and function of each row, in bit order; a row without its function fails at import."""


def raw(v: Seen) -> int:
    """Bits of the conditions that stand in this scan. Raises TypeError when one answers neither True nor False."""
    bits = 0
    for mask, condition in CONDITIONS:
        seen = condition(v)
        if seen is True:
            bits |= mask
        elif seen is not False:
            raise TypeError(f"condition {condition.__name__} answered {seen!r}, not True or False")
    return bits
