"""The map of the bench control. Addresses never move: what is new comes at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from drivers.modbus.point import Point, width

from .loops import LoopMode
from .wire import DeviceMode

HOT_CELL_OFF_C = -40.0
_C = "degC"
COILS = ("neg", "pos", "pre")


def _rw(name: str, doc: str, high: float, low: float = 0.0, **more: Any) -> Point:
    return Point(name, 0, more.pop("type", "uint16"), doc, access="RW", low=low, high=high, **more)


def _r(name: str, doc: str, **more: Any) -> Point:
    return Point(name, 0, more.pop("type", "uint16"), doc, **more)


_TABLE = (
    _rw("kill_switch", "1 = pressed: opens the coil supply and the line to the guard", 1),
    _rw("tamper", "1 = lid open", 1),
    _rw("reset_button", "1 = pressed; a press lasts 200 ms at least", 1),
    *(_rw(f"interlock_{n}", "1 = closed, healthy" + (" (24 V present)" if n == 4 else ""), 1) for n in range(1, 9)),
    *(_rw(f"loop_ma_{n}", "Thermal loop, 4..20 mA = -20..60 degC", 24, scale=0.01, unit="mA") for n in range(1, 9)),
    _rw("weld_pos", "1 = the positive main contactor does not open once it is closed", 1),
    _rw("weld_neg", "1 = the negative main contactor does not open once it is closed", 1),
    _rw("stuck_pos", "1 = the positive main contactor does not close", 1),
    _rw("stuck_neg", "1 = the negative main contactor does not close", 1),
    _rw("ground_fault", "1 = insulation falls to 10 kohm and the insulation monitor's relay opens", 1),
    _rw("dv_offset_v", "Error added to the PCS's DC voltmeter", 300, -300, type="int16", scale=0.01, unit="V"),
    _rw("hot_cell_index", "Flat cell index, string-major", 1199),
    _rw("hot_cell_c", "Temperature of that cell; -40.0 = off", 150, HOT_CELL_OFF_C, type="int16", scale=0.1, unit=_C),
    _rw("bms_mode", "How the BMS answers", max(DeviceMode), type="enum16", values=DeviceMode),
    _rw("pcs_mode", "How the PCS answers", max(DeviceMode), type="enum16", values=DeviceMode),
    _rw("speed", "Cell physics runs this many times faster; contactors, PCS and time-outs do not", 600, 1),
    _rw("soc_preset", "Writing sets the rack's SoC, keeps the cells' spread", 100, scale=0.1, unit="%"),
    _r("true_pos", "1 = positive main contactor closed"),
    _r("true_neg", "1 = negative main contactor closed"),
    _r("true_precharge", "1 = precharge contactor closed"),
    _r("true_safe_enable", "1 = the guard holds safe-enable"),
    _r("true_alive_relay", "1 = the retriggerable relay of the guard's pulse train holds"),
    _r("true_coils", "Coil commands of the controller: bit 0 negative, 1 positive, 2 precharge"),
    _r("true_leds", "LED outputs: bit 0 run, 1 charge, 2 comm, 3 fault, 4 kill"),
    _r("true_current_a", "Rack current, + is discharge", type="int32", scale=0.1, unit="A"),
    _r("true_rack_v", "Rack terminal voltage", type="uint32", scale=0.01, unit="V"),
    _r("true_dc_link_v", "DC link of the PCS", type="uint32", scale=0.01, unit="V"),
    _r("true_soc", "Charge over capacity of the rack", scale=0.01, unit="%"),
    _r("true_cell_max_v", "Highest cell", scale=0.0001, unit="V"),
    _r("true_cell_min_v", "Lowest cell", scale=0.0001, unit="V"),
    _r("true_cell_max_c", "Hottest cell", type="int16", scale=0.1, unit=_C),
    _r("true_cell_min_c", "Coldest cell", type="int16", scale=0.1, unit=_C),
    _r("true_opened_under_load", "Times a main contactor opened above 20 A since start"),
    _r("true_opened_at_a", "Current that the last of them broke", type="int32", scale=0.1, unit="A"),
    _r("true_closed_at_dv_v", "Rack minus DC link when the mains last closed", type="int32", scale=0.01, unit="V"),
    _r("true_edge_to_safe_us", "Last kill-switch edge to safe-enable off, 0xFFFFFFFF = none", type="uint32", unit="us"),
    *(_rw(f"{what}_pre", f"1 = the precharge contactor does not {does}", 1)
      for what, does in (("weld", "open once it is closed"), ("stuck", "close"))),
    *(_rw(f"drop_{n}", f"1 = contactor {n} opens although its coil is on", 1) for n in COILS),
    *(_rw(f"close_ms_{n}", f"Time that contactor {n} takes to close", 10_000, unit="ms") for n in COILS),
    *(_rw(f"open_ms_{n}", f"Time that contactor {n} takes to open", 10_000, unit="ms") for n in COILS),
    *(_rw(f"hold_coil_{n}", f"1 = the terminal of coil {n} keeps its level, whatever is written", 1) for n in COILS),
    _rw("supply_24v_lost", "1 = every digital input reads 0 and the coils have no supply", 1),
    _rw("chatter_interlock", "Interlock that opens again and again, 0 = none", 8),
    _rw("chatter_period_ms", "From one of its openings to the next", 10_000, 10, unit="ms"),
    _rw("chatter_open_ms", "How long it is open each time", 10_000, unit="ms"),
    *(_rw(f"loop_mode_{n}", "What the loop shows", max(LoopMode), type="enum16", values=LoopMode)
      for n in range(1, 9)),
    _rw("loops_silent", "1 = the loops are no longer sampled, their stamp stands still", 1),
    _rw("insulation_kohm", "Insulation to earth without a ground fault, as the BMS measures it", 65_534, unit="kohm"),
    _rw("cell_v_unmeasured", "The voltages of the first so many cells read 0xFFFF", 1200),
    _rw("cell_c_unmeasured", "The temperatures of the first so many cells read 0x8000", 1200),
    _rw("forced_cell_index", "Flat cell index, string-major", 1199),
    _rw("forced_cell_v", "Voltage that this cell shows; its string does not follow; 0 = off", 6, scale=0.001, unit="V"),
    _rw("offline_string", "String that disconnected itself: no current, limits of 0 A; 0 = none", 4),
    _rw("bms_alarm_trip", "Alarm bits of level 2 besides the BMS's own", 0xFFFE),
    _rw("bms_alarm_stop", "Alarm bits of level 1 besides the BMS's own", 0xFFFE),
    _rw("bms_alarm_warn", "Pre-alarm bits besides the BMS's own", 0xFFFE),
    _rw("bms_offset_v", "Error added to the BMS's voltmeters", 300, -300, type="int16", scale=0.01, unit="V"),
    _rw("bms_offset_a", "Error added to the BMS's ammeters, all strings together", 3000, -3000, type="int16",
        scale=0.1, unit="A"),
    _rw("pcs_gain", "Error factor of the PCS's DC ammeter", 4, scale=0.001),
    _rw("pcs_offset_a", "Error added to the PCS's DC ammeter", 3000, -3000, type="int16", scale=0.1, unit="A"),
    _rw("pcs_dc_v", "What the PCS's DC voltmeter shows, 0 = the voltage", 6000, scale=0.1, unit="V"),
    _rw("pcs_follow_pct", "Share of the set-point that the PCS works towards", 200, unit="%"),
    _rw("pcs_fault_bits", "Not 0 = the PCS is in fault, shows these bits and carries nothing", 0xFFFE),
    *(_rw(f"{d.lower()}_stranger", f"1 = another product answers in place of the {d}; connections are reset", 1)
      for d in ("BMS", "PCS")),
    *(_rw(f"{d.lower()}_{what}_pct", f"Share of the {d}'s answers that {fate}, drawn with a fixed seed", 100,
          scale=0.1, unit="%")
      for d in ("BMS", "PCS") for what, fate in (("lost", "never arrive"), ("damaged", "arrive as random bytes"))),
    _rw("grid_hz", "Frequency of the grid as the PCS measures it", 70, 40, scale=0.001, type="uint32", unit="Hz"),
    _rw("grid_v", "Its voltage, line to line", 6000, scale=0.1, unit="V"),
    _rw("key_local", "1 = the key switch is turned to LOCAL: its line has no voltage", 1),
)  # fmt: skip


def _placed(table: tuple[Point, ...]) -> tuple[Point, ...]:
    made, address = [], 0
    for point in table:
        count = width(point.type)
        fields = {name: getattr(point, name) for name in Point.__slots__} | {"address": address, "count": count}
        made.append(Point(**fields))
        address += count
    return tuple(made)


POINTS: tuple[Point, ...] = _placed(_TABLE)
"""The map, without gaps from address 0."""
BY_ADDRESS = {point.address: point for point in POINTS}
END = POINTS[-1].end
assert all(a.end == b.address for a, b in pairwise(POINTS))
