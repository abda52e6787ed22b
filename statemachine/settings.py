"""Settings of one rack, and the rule that a closed contactor only ever sees them get narrower."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

Table = tuple[tuple[float, float], ...]
"""Piecewise linear: (x, y) points with rising x, flat outside."""


@dataclass(frozen=True, slots=True)
class CellProfile:
    """What the cell's electrochemistry allows; one data file a chemistry in statemachine/cells/."""

    name: str
    v_limit_v: float  # ceiling of the highest cell: the voltage loop holds it
    v_stop_v: float  # above: stop, ERR_MAX_V_EXCEEDED
    v_trip_v: float  # above: trip
    v_low_v: float  # below: deep-discharge recovery current only
    v_min_v: float  # below: discharge stops, ERR_MIN_V_EXCEEDED
    v_dead_v: float  # below: never charged again, ERR_CELL_DEEP_DISCHARGE
    low_rate_c: float  # charge rate while the lowest cell is below v_low_v
    balance_rate_c: float  # charge rate while top balancing
    plating_k: float  # safety factor on plating_rate_c
    plating_rate_c: Table  # SoC % -> C at 25 degC, new cell
    cold_factor: Table  # coldest cell degC -> factor
    health_factor: Table  # SoH % -> factor
    cold_cap_c: Table  # coldest cell degC -> C, absolute cap (vendor sheets); flat and high = none
    step_factor: Table  # SoC % -> factor on the commanded rate (step-charge)
    hot_zero_c: float  # hottest cell degC at which the charge rate is 0
    hot_slope_k_per_c: float  # K of distance to hot_zero_c for 1 C
    loop_ki_c_per_vs: float  # voltage loop gain, C per volt second


@dataclass(frozen=True, slots=True)
class Settings:
    """One validated configuration. Built by firmware.config, travels as data, never changes in place."""

    revision: int
    cell: CellProfile
    rated_ah: float
    cells_in_series: int
    strings: int
    # limits.conf
    max_charge_voltage: float  # rack V
    min_discharge_voltage: float  # rack V
    max_charge_current: float  # A
    max_discharge_current: float  # A
    max_charge_rate: float  # C
    max_discharge_rate: float  # C
    max_cell_temperature: float  # degC, stop
    trip_cell_temperature: float  # degC, trip
    min_cell_temperature: float  # degC, discharge stops below
    max_soc: float  # %
    min_soc: float  # %
    max_delta_voltage: float  # V, BMS against PCS after calibration: emergency stop (the manual: 2.0)
    max_delta_offset: float  # V, largest zero-current offset that calibration may take out
    break_current: float  # A, contactors open below it
    stop_time_limit: float  # s, STOPPING opens after this whatever the current
    ramp_up_rate: float  # C/s
    ramp_down_rate: float  # C/s, orderly ends; a falling limit acts at once
    bms_timeout: float  # s
    pcs_timeout: float  # s
    min_insulation: float  # kohm
    precharge_voltage: float  # V, |V_pack - V_dc| below which precharge is done
    precharge_current: float  # A, |I| below which precharge is done
    precharge_min_time: float  # s
    precharge_max_time: float  # s, one try
    interlocks_required: int  # bit n-1 set = interlock n must be closed
    loops_used: int  # bit n-1 set = thermal loop n is wired
    loop_low_c: float  # degC at 4 mA
    loop_high_c: float  # degC at 20 mA
    loop_zones: tuple[int, ...]  # zone of loops 1..8
    loop_timeout: float  # s, age of the samples
    loop_filter_time: float  # s
    loop_max_rate: float  # K/s
    max_closings_per_hour: int  # of the contactors
    max_precharges: int  # in ten minutes
    max_under_load: int  # closings and openings under load until the contactors must be inspected
    contactor_life: int  # operations
    # balance.conf
    cell_balancing_threshold: float  # V of spread at which balancing is done
    balance_time_limit: float  # s
    # site.conf
    loss_policy: int
    scan_period_ms: int
    clock_servers: int  # configured time servers
    nominal_frequency: float  # Hz
    nominal_voltage: float  # V, AC, line to line
    enter_service_delay: float  # s, 703 before it is written
    enter_service_ramp: float  # s
    # the server
    commissioned: bool  # a valid record of the interlock checks is there for these very values


_LARGER_IS_WIDER = (
    "max_charge_voltage", "max_charge_current", "max_discharge_current", "max_charge_rate", "max_discharge_rate",
    "max_cell_temperature", "trip_cell_temperature", "max_soc", "max_delta_voltage", "max_delta_offset",
    "break_current", "stop_time_limit", "ramp_up_rate", "bms_timeout", "pcs_timeout", "precharge_voltage",
    "precharge_current", "precharge_max_time", "loop_timeout", "loop_max_rate", "max_closings_per_hour",
    "max_precharges", "max_under_load", "commissioned",
)  # fmt: skip
_SMALLER_IS_WIDER = (
    "min_discharge_voltage", "min_cell_temperature", "min_soc", "min_insulation", "precharge_min_time",
    "ramp_down_rate",
)  # fmt: skip
_NEUTRAL = (
    "cell_balancing_threshold", "balance_time_limit", "loss_policy", "contactor_life", "clock_servers", "revision",
    "enter_service_delay", "enter_service_ramp",
)  # fmt: skip
"""May change at any time: they neither widen nor narrow what the rack is allowed to do."""


def narrowed(now: Settings, new: Settings) -> Settings:
    """`new` as far as it is narrower than `now`; fields without an order (cell, sizes, wiring) keep their value."""
    change: dict[str, object] = {name: min(getattr(now, name), getattr(new, name)) for name in _LARGER_IS_WIDER}
    change |= {name: max(getattr(now, name), getattr(new, name)) for name in _SMALLER_IS_WIDER}
    change |= {name: getattr(new, name) for name in _NEUTRAL}
    change["interlocks_required"] = now.interlocks_required | new.interlocks_required
    change["loops_used"] = now.loops_used | new.loops_used
    return replace(now, **change)  # type: ignore[arg-type]


def same(a: Settings, b: Settings) -> bool:
    """Equal in everything but the revision number."""
    return a is b or all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Settings) if f.name != "revision")
