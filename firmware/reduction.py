"""One complete poll of a device: the battery reduced to what the scan reads, its cells in wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

from drivers.profile import Profile, ProfileArray, cell_bits
from statemachine.signals import Bms, Pcs

from .image import STRING, StringValues

WIRE_V = ProfileArray(address=0, type="uint16", scale=0.001, unit="V", max_cells=0xFFFF)
WIRE_C = ProfileArray(address=0, type="int16", scale=0.1, unit="degC", max_cells=0xFFFF)
"""The `cells` section: mV and 0.1 degC, whatever the device's own scale."""

_CELL_V_SANE = (0.5, 5.0)
_CELL_C_SANE = (-40.0, 120.0)


class StringPoll(NamedTuple):
    """What one string answered in one poll."""

    stamp_ms: float  # CLOCK_MONOTONIC of the summary's answer
    values: Mapping[str, float]
    cell_v: bytes
    cell_c: bytes
    balancing: bytes


class Extremes(NamedTuple):
    """Of the cells that were measured; nan and 0 when there is none."""

    high: float = nan
    low: float = nan
    mean: float = nan
    high_at: int = 0
    low_at: int = 0


def extremes(raw: Sequence[int], measured: Sequence[int], array: ProfileArray) -> Extremes:
    """Extremes of `measured`, which are those of `raw` that are not missing; places are those in `raw`."""
    if not measured:
        return Extremes()
    high, low, mean = max(measured), min(measured), sum(measured) / len(measured)
    value = array.value
    return Extremes(value(high), value(low), value(mean), raw.index(high), raw.index(low))


def _measured(raw: Sequence[int], missing: frozenset[int]) -> Sequence[int]:
    """`raw` itself when nothing is missing."""
    return raw if missing.isdisjoint(raw) else [number for number in raw if number not in missing]


def reduce(polls: list[StringPoll], profile: Profile, cells_per_string: int, poll: int, loss_pct: float = 0.0) -> Bms:
    """One complete poll of all strings, reduced. A sentinel of the profile (0 mV, 0x8000, 0xFFFF) makes a cell bad."""
    of_v, of_c = profile.arrays["cell_v"], profile.arrays["cell_c"]
    volts, temperatures = of_v.raw(b"".join(p.cell_v for p in polls)), of_c.raw(b"".join(p.cell_c for p in polls))
    no_v, no_c = of_v.missing, of_c.missing
    measured_v, measured_c = _measured(volts, no_v), _measured(temperatures, no_c)
    cells_bad = 0
    if measured_v is not volts or measured_c is not temperatures:
        cells_bad = sum(v in no_v or c in no_c for v, c in zip(volts, temperatures, strict=False))
    v, c = extremes(volts, measured_v, of_v), extremes(temperatures, measured_c, of_c)
    string_v = [p.values["string_v"] for p in polls]
    of = _Column(polls)
    whole = len(volts) == len(temperatures) == cells_per_string * len(polls)
    every_cell = (1 << cells_per_string) - 1
    return Bms(
        poll=poll,
        v_stamp_ms=sum(p.stamp_ms for p in polls) / len(polls),
        rack_v=sum(string_v) / len(polls),
        rack_a=sum(of("string_a")),
        soc_pct=sum(of("soc_pct")) / len(polls),
        soc_max_pct=max(of("soc_pct")),
        soc_min_pct=min(of("soc_pct")),
        soh_pct=min(of("soh_pct")),
        cell_v_max=v.high,
        cell_v_min=v.low,
        cell_v_avg=v.mean,
        cell_v_max_at=v.high_at,
        cell_v_min_at=v.low_at,
        cell_c_max=c.high,
        cell_c_min=c.low,
        cell_c_max_at=c.high_at,
        cell_c_min_at=c.low_at,
        charge_max_a=min(of("charge_limit_a")) * len(polls),
        discharge_max_a=min(of("discharge_limit_a")) * len(polls),
        insulation_kohm=min(of("insulation_kohm", float("nan"))),
        alarm_trip=of.bits("alarm_trip"),
        alarm_stop=of.bits("alarm_stop"),
        alarm_warn=of.bits("alarm_warn"),
        cells_bad=cells_bad,
        cells_balancing=sum((cell_bits(p.balancing) & every_cell).bit_count() for p in polls),
        strings_online=sum(_online(p) for p in polls),
        plausible=whole and not cells_bad and _sane(v, c) and _sums_agree(string_v, volts, of_v) and of.finite(),
        identity_ok=True,
        loss_pct=loss_pct,
    )


def _online(poll: StringPoll) -> bool:
    """A string that allows neither charge nor discharge has taken itself out."""
    return bool(poll.values["charge_limit_a"] or poll.values["discharge_limit_a"])


def bits_of(value: float) -> int:
    """A bit field that was not measured counts as all alarms."""
    return int(value) if value == value else 0xFFFF


class _Column:
    """One point over all strings."""

    def __init__(self, polls: list[StringPoll]) -> None:
        self._polls = polls

    def __call__(self, name: str, missing: float = 0.0) -> list[float]:
        """nan first, so that min and max of a column with a nan are nan."""
        values = [p.values.get(name, missing) for p in self._polls]
        if (total := sum(values)) != total:
            values.sort(key=lambda value: value == value)
        return values

    def bits(self, name: str) -> int:
        found = 0
        for value in self(name):
            found |= bits_of(value)
        return found

    def finite(self) -> bool:
        names = ("string_v", "string_a", "soc_pct", "soh_pct", "charge_limit_a", "discharge_limit_a")
        return all(value == value for name in names for value in self(name))


def _sane(v: Extremes, c: Extremes) -> bool:
    return (
        _CELL_V_SANE[0] <= v.low
        and v.high <= _CELL_V_SANE[1]
        and _CELL_C_SANE[0] <= c.low
        and c.high <= _CELL_C_SANE[1]
    )


def _sums_agree(string_v: list[float], volts: Sequence[int], of: ProfileArray) -> bool:
    """String voltages within 2 % + 3 V of the sum of their cells: two meters of 0.5 % each, and a moving current."""
    cells = len(volts) // len(string_v)
    sums = [cells * of.value(sum(volts[at : at + cells]) / cells) for at in range(0, len(volts), cells)]
    return all(abs(v - summed) <= 0.02 * summed + 3.0 for v, summed in zip(string_v, sums, strict=True))


def string_values(polls: list[StringPoll]) -> bytes:
    """The `strings` section."""
    return b"".join(
        STRING.pack(
            *StringValues(
                v=p.values["string_v"],
                a=p.values["string_a"],
                soc_pct=p.values["soc_pct"],
                soh_pct=p.values["soh_pct"],
                online=_online(p),
                alarm_trip=bits_of(p.values.get("alarm_trip", 0.0)),
                alarm_stop=bits_of(p.values.get("alarm_stop", 0.0)),
                alarm_warn=bits_of(p.values.get("alarm_warn", 0.0)),
            )
        )
        for p in polls
    )


def wire_cells(strings: list[StringPoll], profile: Profile) -> bytes:
    """The `cells` section: all voltages (mV) string-major, all temperatures (0.1 degC), all balancing registers.

    A cell that was not measured is 0xFFFF or 0x8000, as in SunSpec, whatever the device says in its place.
    """
    volts = _rescaled(b"".join(s.cell_v for s in strings), profile.arrays["cell_v"], WIRE_V)
    temperatures = _rescaled(b"".join(s.cell_c for s in strings), profile.arrays["cell_c"], WIRE_C)
    return volts + temperatures + b"".join(s.balancing for s in strings)


def _rescaled(data: bytes, have: ProfileArray, want: ProfileArray) -> bytes:
    same = (have.type, have.scale, have.offset) == (want.type, want.scale, want.offset)
    if same and (not have.sentinels or have.missing.isdisjoint(have.raw(data))):
        return data
    return want.encode(have.decode(data))


def pcs_values(values: Mapping[str, float], stamp_ms: float, poll: int, loss_pct: float) -> Pcs:
    """One complete poll of the PCS."""
    state = values["state"]
    return Pcs(
        poll=poll,
        v_stamp_ms=stamp_ms,
        dc_v=values["dc_v"],
        dc_a=values["dc_a"],
        ac_w=values["ac_w"],
        ac_hz=values["ac_hz"],
        ac_v=values.get("ac_v", nan),
        state=int(state) if state == state else -1,
        fault_bits=bits_of(values["fault_bits"]),
        charge_max_a=values["charge_max_a"],
        discharge_max_a=values["discharge_max_a"],
        identity_ok=True,
        loss_pct=loss_pct,
    )
