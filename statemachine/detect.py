"""Raw conditions: one function a fault, named like its row without ERR_. No memory, no debounce: that is latch.py.

A condition that judges BMS or PCS values answers False without fresh data: stale data is its own fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .charge import Loops
from .contactors import Coils, Phase, feedback
from .delta import CALIBRATION_TIME_MS, Delta
from .faults import FAULTS
from .settings import Settings
from .signals import Bms, GuardTrip, Inputs, Lines, Pcs, PcsState
from .states import State
from .table import TIMEOUTS_S

GUARD_SILENT_MS = 100.0
OVERRUNS_IN_ROW = 3
OVERCURRENT_FACTOR, OVERCURRENT_MARGIN_C = 1.10, 0.02  # above the limit in force; meters and PCS ripple
OPEN_CURRENT_A = 5.0  # more than the meter's noise
OPEN_SETTLED_MS = 300.0  # arcs are out and the next BMS sample is taken after it
OVERVOLTAGE_FACTOR = 1.01  # of max_charge_voltage; the loop holds the voltage itself
FLOOR_MARGIN_V, DISCHARGING_A = 0.05, 2.0  # the discharge loop works above the floor, recharging is always allowed
NE43_LOW_MA, NE43_HIGH_MA = 3.6, 21.0  # NAMUR NE43: outside is a broken or shorted transmitter
LOOPS_STALE_MS = 300.0

_LIVE = frozenset({State.PRECHARGE, State.STOPPING, State.FAULT, State.EMERGENCY_STOP})
_OWN_TRIPS = frozenset(GuardTrip) - {GuardTrip.NONE, GuardTrip.START, GuardTrip.KILL_SWITCH, GuardTrip.TAMPER}
"""Kill-switch and tamper are faults of their own."""


class Seen(NamedTuple):
    """Everything a condition may look at."""

    inputs: Inputs
    settings: Settings | None
    bms: Bms | None  # fresh and identified, else None
    pcs: Pcs | None
    loops: Loops
    state: State
    in_state_ms: float
    coils: Coils  # as commanded in the scan before
    unchanged_ms: float  # since a coil command changed
    phase: Phase
    sequence_failed: bool
    delta: Delta
    allowed_a: tuple[float, float]  # charge and discharge current in force, A
    heartbeat_lost: bool
    opened_under_load: bool
    balance_over: bool

    @property
    def energised(self) -> bool:
        return self.coils != (False, False, False)

    @property
    def live(self) -> bool:
        """Energised, about to be, or waiting for the cause to go: there a cause cannot be acknowledged away."""
        return self.energised or self.state in _LIVE


def loops(lines_ma: tuple[float, ...], age_ms: float, s: Settings) -> Loops:
    """Judges the used 4-20 mA loops by NE43 and scales them to degC."""
    hottest, healthy = float("nan"), age_ms <= LOOPS_STALE_MS
    for index, ma in enumerate(lines_ma):
        if not s.loops_used >> index & 1:
            continue
        if not NE43_LOW_MA <= ma <= NE43_HIGH_MA:
            healthy = False
            continue
        c = s.loop_low_c + (min(20.0, max(4.0, ma)) - 4.0) / 16.0 * (s.loop_high_c - s.loop_low_c)
        hottest = c if not hottest >= c else hottest
    return Loops(hottest, healthy)


def _hottest_c(v: Seen) -> float:
    """Of cells and loops, whichever is measured; -inf when neither is."""
    cells = v.bms.cell_c_max if v.bms else float("nan")
    return max((c for c in (cells, v.loops.hottest_c) if c == c), default=float("-inf"))


def kill_switch(v: Seen) -> bool:
    return not v.inputs.lines.kill_ok


def tamper(v: Seen) -> bool:
    return not v.inputs.lines.tamper_ok


def ground_fault(v: Seen) -> bool:
    low = v.bms is not None and v.settings is not None and v.bms.insulation_kohm < v.settings.min_insulation
    return low or not v.inputs.lines.insulation_ok


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
    return v.live and v.bms is None


def pcs_lost(v: Seen) -> bool:
    return v.live and v.pcs is None


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
    return v.phase is Phase.CLOSED and v.energised and not (v.inputs.lines.fb_neg and v.inputs.lines.fb_pos)


def precharge(v: Seen) -> bool:
    return v.sequence_failed or (v.state is State.PRECHARGE and v.in_state_ms >= TIMEOUTS_S[State.PRECHARGE] * 1000.0)


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
    return v.settings is not None and v.settings.loops_used != 0 and not v.loops.healthy


def site_heartbeat(v: Seen) -> bool:
    return v.heartbeat_lost


def balance_timeout(v: Seen) -> bool:
    return v.balance_over


def config(v: Seen) -> bool:
    return v.inputs.command is not None and v.inputs.command.config_error


def bms_implausible(v: Seen) -> bool:
    return v.live and v.bms is not None and not v.bms.plausible


def current_while_open(v: Seen) -> bool:
    if v.bms is None or v.energised or any(feedback(v.inputs.lines)):
        return False
    return v.unchanged_ms > v.inputs.bms_age_ms + OPEN_SETTLED_MS and abs(v.bms.rack_a) > OPEN_CURRENT_A


CONDITIONS: tuple[Callable[[Seen], bool], ...] = tuple(
    globals()[fault.name.removeprefix("ERR_").lower()] for fault in FAULTS
)
"""In bit order; a row without its function fails at import."""


def raw(v: Seen) -> int:
    """Bits of the conditions that stand in this scan. Raises TypeError when one answers neither True nor False."""
    bits = 0
    for index, condition in enumerate(CONDITIONS):
        seen = condition(v)
        if seen is True:
            bits |= 1 << index
        elif seen is not False:
            raise TypeError(f"condition {condition.__name__} answered {seen!r}, not True or False")
    return bits
