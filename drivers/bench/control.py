"""Bench control: the Modbus map that sets every input and fault of the bench, and reads the truth behind the meters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from time import monotonic_ns
from typing import Any, NamedTuple

from drivers.board import OUTPUTS
from drivers.modbus.point import Point, width
from drivers.modbus.server import ILLEGAL_ADDRESS, ILLEGAL_VALUE, ModbusError

from .devices import BmsDevice, DeviceMode, PcsDevice
from .plant import COILS, Plant

HOT_CELL_OFF_C = -40.0
_C = "degC"


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
    _rw("bms_mode", "How the BMS answers", 5, type="enum16", values=DeviceMode),
    _rw("pcs_mode", "How the PCS answers", 5, type="enum16", values=DeviceMode),
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
_BY_ADDRESS = {point.address: point for point in POINTS}
_END = POINTS[-1].end
assert all(a.end == b.address for a, b in pairwise(POINTS))


class _Access(NamedTuple):
    get: Callable[[], float]
    set: Callable[[float], None]


def _attribute(owner: object, name: str, kind: Callable[[float], object] = bool) -> _Access:
    return _Access(lambda: float(getattr(owner, name)), lambda value: setattr(owner, name, kind(value)))


def _item(items: list[Any], at: int, kind: Callable[[float], object]) -> _Access:
    return _Access(lambda: float(items[at]), lambda value: items.__setitem__(at, kind(value)))


def _mode(value: float) -> DeviceMode:
    return DeviceMode(int(value))


class ControlDevice:
    """The control map as a Modbus device, unit 1. Writes take effect before they are answered."""

    def __init__(self, plant: Plant, bms: BmsDevice, pcs: PcsDevice) -> None:
        self._plant = plant
        self._hot_index, self._hot_c = 0, HOT_CELL_OFF_C
        self._soc_preset = round(100.0 * plant.rack.mean_soc(), 1)
        self._access = self._writable(bms, pcs)
        self._truth = self._readable()

    def serves(self, unit: int) -> bool:
        return unit == 1

    def identity(self, unit: int) -> Mapping[int, bytes]:
        return {0: b"OpenBESS", 1: b"BENCH-CONTROL", 2: b"1.0"}

    def read(self, unit: int, address: int, count: int) -> bytes:
        if address + count > _END:
            raise ModbusError(ILLEGAL_ADDRESS)
        touched = [p for p in POINTS if p.address < address + count and p.end > address]
        data = b"".join(p.encode(self.value(p.name)) for p in touched)
        skip = 2 * (address - touched[0].address)
        return data[skip : skip + 2 * count]

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        wanted = _parse(address, data)
        index = wanted.get("hot_cell_index", 0)
        if index >= self._plant.rack.size.total:
            raise ModbusError(ILLEGAL_VALUE)
        for name, value in wanted.items():
            self._access[name].set(value)
        self._plant.tick(monotonic_ns())

    def value(self, name: str) -> float:
        """A point's value, nan when there is none yet."""
        access = self._access.get(name)
        return access.get() if access else float(self._truth[name]())

    def _writable(self, bms: BmsDevice, pcs: PcsDevice) -> dict[str, _Access]:
        plant, main = self._plant, self._plant.contactors
        return {
            "kill_switch": _Access(
                lambda: float(plant.kill_pressed), lambda v: plant.set_kill_switch(bool(v), monotonic_ns())
            ),
            "tamper": _attribute(plant, "tamper_open"),
            "reset_button": _attribute(plant, "reset_pressed"),
            **{f"interlock_{n}": _item(plant.interlocks, n - 1, bool) for n in range(1, 9)},
            **{f"loop_ma_{n}": _item(plant.loops_ma, n - 1, float) for n in range(1, 9)},
            **{f"weld_{n}": _attribute(main[n], "welded") for n in ("pos", "neg")},
            **{f"stuck_{n}": _attribute(main[n], "stuck") for n in ("pos", "neg")},
            "ground_fault": _attribute(plant, "ground_fault"),
            "dv_offset_v": _attribute(plant, "dv_offset_v", float),
            "hot_cell_index": _Access(lambda: float(self._hot_index), lambda v: self._heat(int(v), self._hot_c)),
            "hot_cell_c": _Access(lambda: self._hot_c, lambda v: self._heat(self._hot_index, v)),
            "bms_mode": _attribute(bms, "mode", _mode),
            "pcs_mode": _attribute(pcs, "mode", _mode),
            "speed": _attribute(plant, "speed", float),
            "soc_preset": _Access(lambda: self._soc_preset, self._preset),
        }

    def _readable(self) -> dict[str, Callable[[], float]]:
        plant, rack = self._plant, self._plant.rack
        return {
            "true_pos": lambda: plant.contactors["pos"].closed,
            "true_neg": lambda: plant.contactors["neg"].closed,
            "true_precharge": lambda: plant.contactors["pre"].closed,
            "true_safe_enable": lambda: plant.safe_enable,
            "true_alive_relay": lambda: plant.alive_relay,
            "true_coils": lambda: self._bits([f"coil_{n}" for n in COILS]),
            "true_leds": lambda: self._bits([line.name for line in OUTPUTS if line.name.startswith("led_")]),
            "true_current_a": lambda: plant.rack_a,
            "true_rack_v": lambda: plant.rack_v,
            "true_dc_link_v": lambda: plant.dc_link_v,
            "true_soc": lambda: 100.0 * rack.mean_soc(),
            "true_cell_max_v": lambda: rack.cell_v(plant.rack_a).max(),
            "true_cell_min_v": lambda: rack.cell_v(plant.rack_a).min(),
            "true_cell_max_c": lambda: rack.cell_c().max(),
            "true_cell_min_c": lambda: rack.cell_c().min(),
            "true_opened_under_load": lambda: plant.opened_under_load,
            "true_opened_at_a": lambda: plant.opened_at_a,
            "true_closed_at_dv_v": lambda: plant.closed_at_dv_v,
            "true_edge_to_safe_us": lambda: plant.edge_to_safe_us,
        }

    def _bits(self, lines: list[str]) -> float:
        return float(sum(self._plant.wiring.output(name)[0] << bit for bit, name in enumerate(lines)))

    def _heat(self, index: int, cell_c: float) -> None:
        self._hot_index, self._hot_c = index, cell_c
        self._plant.rack.hot_cell = (index, cell_c) if cell_c > HOT_CELL_OFF_C else None

    def _preset(self, soc_pct: float) -> None:
        self._soc_preset = soc_pct
        self._plant.rack.set_soc(soc_pct / 100.0)


def _parse(address: int, data: bytes) -> dict[str, float]:
    """The values of a write, all of them allowed. Raises ModbusError 02 (read-only, half or no point) or 03 (range)."""
    wanted: dict[str, float] = {}
    at = 0
    while at < len(data):
        point = _BY_ADDRESS.get(address + at // 2)
        if point is None or point.access != "RW" or point.low is None or point.high is None:
            raise ModbusError(ILLEGAL_ADDRESS)
        raw = point.raw(data[at : at + 2 * point.count])
        if not round(point.low / point.scale) <= raw <= round(point.high / point.scale):
            raise ModbusError(ILLEGAL_VALUE)
        wanted[point.name] = raw * point.scale
        at += 2 * point.count
    return wanted
