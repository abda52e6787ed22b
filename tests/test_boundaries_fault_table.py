"""The numbers of the fault catalogue are decisions: they stand here a second time, as reviewed."""

from __future__ import annotations

import pytest

from statemachine import faults
from statemachine.faults import FAULTS, Severity

W, D, S, T, L = Severity.WARNING, Severity.DERATE, Severity.STOP, Severity.TRIP, Severity.LOCKOUT
REVIEWED: tuple[tuple[str, int, Severity, int, int], ...] = (
    ("ERR_KILL_SWITCH", 0, T, 0, 0x11),
    ("ERR_TAMPER", 1, T, 0, 0x12),
    ("ERR_GROUND_FAULT", 2, T, 50, 3),
    ("ERR_DELTA_V", 3, T, 0, 0x13),
    ("ERR_MAX_V_EXCEEDED", 4, S, 200, 0x21),
    ("ERR_CELL_OVERVOLTAGE", 5, T, 100, 0x22),
    ("ERR_MIN_V_EXCEEDED", 6, S, 500, 0x23),
    ("ERR_OVER_TEMPERATURE", 7, S, 500, 0x24),
    ("ERR_THERMAL_TRIP", 8, T, 200, 0x25),
    ("ERR_COMM_LOST", 9, S, 0, 0x31),
    ("ERR_PCS_LOST", 10, S, 0, 0x32),
    ("ERR_BMS_ALARM", 11, S, 0, 0x33),
    ("ERR_BMS_TRIP", 12, T, 0, 0x34),
    ("ERR_PCS_FAULT", 13, S, 100, 0x35),
    ("ERR_INTERLOCK_OPEN", 14, T, 20, 0x14),
    ("ERR_CONTACTOR_WELDED", 15, L, 200, 0x41),
    ("ERR_CONTACTOR_DROPPED", 16, T, 30, 0x42),
    ("ERR_PRECHARGE", 17, S, 0, 0x43),
    ("ERR_GUARD", 18, T, 50, 0x15),
    ("ERR_SCAN_OVERRUN", 19, T, 0, 0x51),
    ("ERR_CONTROLLER_RESTART", 20, S, 0, 0x52),
    ("ERR_OVERCURRENT", 21, T, 1_000, 0x26),
    ("ERR_DELTA_OFFSET", 22, S, 0, 0x16),
    ("ERR_INIT_TIMEOUT", 23, S, 0, 0x53),
    ("ERR_OPENED_UNDER_LOAD", 24, W, 0, 0x44),
    ("ERR_THERMAL_LOOP", 25, D, 30, 0x54),
    ("ERR_SITE_HEARTBEAT", 26, W, 0, 0x36),
    ("ERR_BALANCE_TIMEOUT", 27, W, 0, 0x27),
    ("ERR_CONFIG", 28, W, 0, 0x55),
    ("ERR_BMS_IMPLAUSIBLE", 29, S, 300, 0x37),
    ("ERR_CURRENT_WHILE_OPEN", 30, L, 300, 0x45),
    ("ERR_THERMAL_ZONE", 32, S, 300, 0x56),
    ("ERR_LOOP_DISAGREE", 33, W, 5_000, 0x57),
    ("ERR_LOOP_STUCK", 34, D, 0, 0x58),
    ("ERR_LOOP_RATE", 35, D, 0, 0x59),
    ("ERR_SAMPLER", 36, S, 300, 0x61),
    ("ERR_INTERLOCK_CHATTER", 37, S, 0, 0x17),
    ("ERR_OUTPUT_READBACK", 38, T, 1_000, 0x62),
    ("ERR_SUPPLY_24V", 39, T, 50, 0x63),
    ("ERR_CLOSINGS_PER_HOUR", 40, S, 0, 0x46),
    ("ERR_PRECHARGE_HOT", 41, S, 0, 0x47),
    ("ERR_CLOSED_UNDER_LOAD", 42, W, 0, 0x48),
    ("ERR_CONTACTOR_ABUSED", 43, L, 0, 0x49),
    ("ERR_CONTACTOR_WORN", 44, W, 0, 0x64),
    ("ERR_CONTACTOR_STUCK", 45, S, 0, 0x65),
    ("ERR_STOP_TIMEOUT", 46, S, 0, 0x66),
    ("ERR_BMS_IDENTITY", 47, S, 1_000, 0x38),
    ("ERR_PCS_IDENTITY", 48, S, 1_000, 0x39),
    ("ERR_BMS_LINK_POOR", 49, W, 5_000, 0x67),
    ("ERR_PCS_LINK_POOR", 50, W, 5_000, 0x68),
    ("ERR_CELL_SENSOR", 51, S, 500, 0x28),
    ("ERR_INSULATION_LOW", 52, W, 2_000, 0x29),
    ("ERR_STRING_OFFLINE", 53, D, 1_000, 0x69),
    ("ERR_BMS_WARNING", 54, W, 1_000, 0x71),
    ("ERR_CELL_DEEP_DISCHARGE", 55, S, 1_000, 0x72),
    ("ERR_DC_OVERVOLTAGE", 56, T, 100, 0x73),
    ("ERR_CURRENT_MISMATCH", 57, S, 3_000, 0x74),
    ("ERR_PCS_NOT_FOLLOWING", 58, W, 10_000, 0x75),
    ("ERR_SERVER_LOST", 59, W, 2_000, 0x76),
    ("ERR_STORE", 60, W, 5_000, 0x77),
    ("ERR_CLOCK", 61, W, 60_000, 0x78),
    ("ERR_WATCHDOG", 62, W, 1_000, 0x79),
)  # fmt: skip
"""Name, bit, severity, ms that the condition must stand, code of the FAULT LED."""


def test_the_catalogue_is_what_was_reviewed() -> None:
    assert tuple((f.name, f.bit, f.severity, f.confirm_ms, f.led) for f in FAULTS) == REVIEWED


def test_severities_rise_with_what_they_do() -> None:
    assert [(s.name, s.value) for s in Severity] == [
        ("WARNING", 1), ("DERATE", 2), ("STOP", 3), ("TRIP", 4), ("LOCKOUT", 5)
    ]  # fmt: skip


def of(*severities: Severity) -> int:
    return sum(1 << bit for _, bit, severity, _, _ in REVIEWED if severity in severities)


def test_masks_hold_the_bits_of_their_severities() -> None:
    assert (of(S), of(T), of(L)) == (faults.STOP_MASK, faults.TRIP_MASK, faults.LOCKOUT_MASK)
    assert of(S, T, L) == faults.SEVERE_MASK
    assert of(T, L) == faults.SAVED_MASK
    assert {bit: ms for _, bit, _, ms, _ in REVIEWED} == faults.CONFIRM_MS


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0, []),
        (1, ["ERR_KILL_SWITCH"]),
        (2, ["ERR_TAMPER"]),
        (3, ["ERR_KILL_SWITCH", "ERR_TAMPER"]),
        (1 << 31, []),
        (1 << 32 | 1 << 30, ["ERR_CURRENT_WHILE_OPEN", "ERR_THERMAL_ZONE"]),
        (1 << 62, ["ERR_WATCHDOG"]),
        (1 << 63, []),
    ],
)
def test_bits_are_named_in_their_order(bits: int, names: list[str]) -> None:
    assert faults.names(bits) == names


@pytest.mark.parametrize("severity", Severity)
def test_a_fault_says_what_clears_its_severity(severity: Severity) -> None:
    fault = next(f for f in FAULTS if f.severity is severity)
    assert fault.clears == faults.CLEARS[severity]


def test_a_row_is_found_by_its_name() -> None:
    assert list(faults.BY_NAME) == [name for name, *_ in REVIEWED]
    assert all(faults.BY_NAME[f.name] is f for f in FAULTS)
