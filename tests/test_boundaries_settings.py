"""A closed contactor only sees its limits get narrower: every field of the settings, in its own direction."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from rig import profile, settings

from statemachine.settings import Settings, narrowed, same

LARGER_IS_WIDER = {
    "max_charge_voltage", "max_charge_current", "max_discharge_current", "max_charge_rate", "max_discharge_rate",
    "max_cell_temperature", "trip_cell_temperature", "max_soc", "max_delta_voltage", "max_delta_offset",
    "break_current", "stop_time_limit", "ramp_up_rate", "bms_timeout", "pcs_timeout", "precharge_voltage",
    "precharge_current", "precharge_max_time", "loop_timeout", "loop_max_rate", "max_closings_per_hour",
    "max_precharges", "max_under_load",
}  # fmt: skip
SMALLER_IS_WIDER = {
    "min_discharge_voltage", "min_cell_temperature", "min_soc", "min_insulation", "precharge_min_time",
    "ramp_down_rate",
}  # fmt: skip
AT_ONCE = {
    "cell_balancing_threshold", "balance_time_limit", "loss_policy", "contactor_life", "clock_servers", "revision",
    "enter_service_delay", "enter_service_ramp",
}  # fmt: skip
UNITED = {"interlocks_required", "loops_used"}
AND = {"commissioned"}
KEPT = {
    "cell", "rated_ah", "cells_in_series", "strings", "loop_low_c", "loop_high_c", "loop_zones", "loop_filter_time",
    "scan_period_ms", "nominal_frequency", "nominal_voltage",
}  # fmt: skip
S = settings(interlocks_required=0b0110, loops_used=0b0110)
NUMBERS = sorted(LARGER_IS_WIDER | SMALLER_IS_WIDER | AT_ONCE)


def after(name: str, value: Any) -> Any:
    return getattr(narrowed(S, replace(S, **{name: value})), name)


def test_every_field_has_its_rule() -> None:
    assert {f.name for f in fields(Settings)} == LARGER_IS_WIDER | SMALLER_IS_WIDER | AT_ONCE | UNITED | AND | KEPT


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_moves_only_in_its_narrow_direction(name: str) -> None:
    now = getattr(S, name)
    assert after(name, now + 1) == (now if name in LARGER_IS_WIDER else now + 1)
    assert after(name, now - 1) == (now if name in SMALLER_IS_WIDER else now - 1)


@pytest.mark.parametrize("name", sorted(UNITED))
def test_an_input_can_be_added_but_not_left_out(name: str) -> None:
    assert after(name, 0b0011) == 0b0111


@pytest.mark.parametrize("name", sorted(KEPT - {"cell", "loop_zones"}))
def test_sizes_and_wiring_stay_as_they_are(name: str) -> None:
    assert after(name, getattr(S, name) + 1) == getattr(S, name)


def test_a_commissioning_is_lost_at_once_and_never_gained() -> None:
    for was, offered, now in ((True, False, False), (False, True, False), (True, True, True)):
        before = replace(S, commissioned=was)
        assert narrowed(before, replace(S, commissioned=offered)).commissioned is now


def test_the_cell_stays_as_it_is() -> None:
    assert after("cell", profile("lfp_energy")) == S.cell


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_settings_are_the_same_when_only_the_revision_differs(name: str) -> None:
    values: dict[str, Any] = {"cell": profile("lfp_energy"), "loop_zones": (9,) * 8}
    other = replace(S, **{name: values.get(name, getattr(S, name) if name in values else -7)})
    assert same(S, other) is (name == "revision")
    assert same(S, S)
    assert same(S, replace(S))
