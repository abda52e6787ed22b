"""Bench control: the Modbus map that sets every input and fault of the bench, and reads the truth behind the meters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any, NamedTuple

from drivers.board import OUTPUTS
from drivers.modbus.session import ILLEGAL_ADDRESS, ILLEGAL_VALUE, ModbusError

from .devices import BmsDevice, PcsDevice
from .loops import LoopMode
from .plant import Plant
from .points import BY_ADDRESS, COILS, END, HOT_CELL_OFF_C, POINTS
from .wire import DeviceMode

__all__ = ["POINTS", "ControlDevice"]

_INDEXES = ("hot_cell_index", "forced_cell_index")


class _Access(NamedTuple):
    get: Callable[[], float]
    set: Callable[[float], None]


def _attribute(owner: object, name: str, kind: Callable[[float], object] = bool) -> _Access:
    return _Access(lambda: float(getattr(owner, name)), lambda value: setattr(owner, name, kind(value)))


def _item(items: Any, at: int | str, kind: Callable[[float], object]) -> _Access:
    return _Access(lambda: float(items[at]), lambda value: items.__setitem__(at, kind(value)))


def _ms(owner: object, name: str) -> _Access:
    """In ms what the owner keeps in ns."""
    return _Access(lambda: getattr(owner, name) / 1e6, lambda value: setattr(owner, name, round(value * 1e6)))


def _mode(value: float) -> DeviceMode:
    return DeviceMode(int(value))


def _loop_mode(value: float) -> LoopMode:
    return LoopMode(int(value))


class ControlDevice:
    """The control map as a Modbus device, unit 1. Writes take effect before they are answered."""

    def __init__(self, plant: Plant, bms: BmsDevice, pcs: PcsDevice) -> None:
        self._plant = plant
        self._hot_index, self._hot_c = 0, HOT_CELL_OFF_C
        self._forced_index, self._forced_v = 0, 0.0
        self._soc_preset = round(100.0 * plant.rack.mean_soc(), 1)
        self._access = self._writable() | self._contactors() | self._meters(bms) | _wires(bms=bms, pcs=pcs)
        self._truth = self._readable()

    def serves(self, unit: int) -> bool:
        return unit == 1

    def identity(self, unit: int) -> Mapping[int, bytes]:
        return {0: b"OpenBESS", 1: b"BENCH-CONTROL", 2: b"1.0"}

    def read(self, unit: int, address: int, count: int) -> bytes:
        if address + count > END:
            raise ModbusError(ILLEGAL_ADDRESS)
        touched = [p for p in POINTS if p.address < address + count and p.end > address]
        data = b"".join(p.encode(self.value(p.name)) for p in touched)
        skip = 2 * (address - touched[0].address)
        return data[skip : skip + 2 * count]

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        wanted = _parse(address, data)
        size = self._plant.rack.size
        if any(wanted.get(name, 0) >= size.total for name in _INDEXES):
            raise ModbusError(ILLEGAL_VALUE)
        if wanted.get("offline_string", 0) > (size.strings if size.strings > 1 else 0):
            raise ModbusError(ILLEGAL_VALUE)
        for name, value in wanted.items():
            self._access[name].set(value)
        self._plant.tick(monotonic_ns())

    def value(self, name: str) -> float:
        """A point's value, nan when there is none yet."""
        access = self._access.get(name)
        return access.get() if access else float(self._truth[name]())

    def _writable(self) -> dict[str, _Access]:
        plant, loops = self._plant, self._plant.sampler.loops
        return {
            "kill_switch": _Access(
                lambda: float(plant.kill_pressed), lambda v: plant.set_kill_switch(bool(v), monotonic_ns())
            ),
            "tamper": _attribute(plant, "tamper_open"),
            "reset_button": _attribute(plant, "reset_pressed"),
            "key_local": _attribute(plant, "key_local"),
            **{f"interlock_{n}": _item(plant.interlocks, n - 1, bool) for n in range(1, 9)},
            **{f"loop_ma_{n}": _attribute(loop, "ma", float) for n, loop in enumerate(loops, 1)},
            **{f"loop_mode_{n}": _attribute(loop, "mode", _loop_mode) for n, loop in enumerate(loops, 1)},
            "loops_silent": _attribute(plant.sampler, "silent"),
            "supply_24v_lost": _attribute(plant, "supply_24v_lost"),
            "chatter_interlock": _attribute(plant, "chatter_interlock", int),
            "chatter_period_ms": _attribute(plant, "chatter_period_ms", float),
            "chatter_open_ms": _attribute(plant, "chatter_open_ms", float),
            "ground_fault": _attribute(plant, "ground_fault"),
            "insulation_kohm": _attribute(plant, "insulation_set_kohm", float),
            "hot_cell_index": _Access(lambda: float(self._hot_index), lambda v: self._heat(int(v), self._hot_c)),
            "hot_cell_c": _Access(lambda: self._hot_c, lambda v: self._heat(self._hot_index, v)),
            "speed": _attribute(plant, "speed", float),
            "forced_cell_index": _Access(
                lambda: float(self._forced_index), lambda v: self._force(int(v), self._forced_v)
            ),
            "forced_cell_v": _Access(lambda: self._forced_v, lambda v: self._force(self._forced_index, v)),
            "offline_string": _attribute(plant.rack, "offline", int),
            "soc_preset": _Access(lambda: self._soc_preset, self._preset),
        }

    def _contactors(self) -> dict[str, _Access]:
        made: dict[str, _Access] = {}
        for name, contactor in self._plant.contactors.items():
            made |= {
                f"weld_{name}": _attribute(contactor, "welded"),
                f"stuck_{name}": _attribute(contactor, "stuck"),
                f"drop_{name}": _attribute(contactor, "dropped"),
                f"close_ms_{name}": _ms(contactor, "close_ns"),
                f"open_ms_{name}": _ms(contactor, "open_ns"),
                f"hold_coil_{name}": self._held(f"coil_{name}"),
            }
        return made

    def _held(self, line: str) -> _Access:
        wiring = self._plant.wiring
        return _Access(lambda: float(wiring.held_output(line)), lambda v: wiring.hold_output(line, bool(v)))

    def _meters(self, bms: BmsDevice) -> dict[str, _Access]:
        plant = self._plant
        names = ("dv_offset_v", "bms_offset_v", "bms_offset_a", "pcs_gain", "pcs_offset_a")
        return {
            **{name: _attribute(plant, name, float) for name in names},
            "grid_hz": _attribute(plant, "grid_hz", float),
            "grid_v": _attribute(plant, "grid_v", float),
            "pcs_dc_v": _attribute(plant, "pcs_forced_v", float),
            "pcs_follow_pct": _attribute(plant.pcs, "follow_pct", float),
            "pcs_fault_bits": _attribute(plant.pcs, "fault_bits", int),
            **{f"{array}_unmeasured": _item(bms.unmeasured, array, int) for array in bms.unmeasured},
            **{f"bms_alarm_{n}": _item(bms.extra_alarms, at, int) for at, n in enumerate(("trip", "stop", "warn"))},
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

    def _force(self, index: int, cell_v: float) -> None:
        self._forced_index, self._forced_v = index, cell_v
        self._plant.rack.forced_cell = (index, cell_v) if cell_v else None

    def _preset(self, soc_pct: float) -> None:
        self._soc_preset = soc_pct
        self._plant.rack.set_soc(soc_pct / 100.0)


def _wires(**devices: BmsDevice | PcsDevice) -> dict[str, _Access]:
    made: dict[str, _Access] = {}
    for name, device in devices.items():
        made |= {
            f"{name}_mode": _attribute(device, "mode", _mode),
            f"{name}_stranger": _attribute(device, "stranger"),
            f"{name}_lost_pct": _attribute(device.loss, "lost_pct", float),
            f"{name}_damaged_pct": _attribute(device.loss, "damaged_pct", float),
        }
    return made


def _parse(address: int, data: bytes) -> dict[str, float]:
    """The values of a write, all of them allowed. Raises ModbusError 02 (read-only, half or no point) or 03 (range)."""
    wanted: dict[str, float] = {}
    at = 0
    while at < len(data):
        point = BY_ADDRESS.get(address + at // 2)
        if point is None or point.access != "RW" or point.low is None or point.high is None:
            raise ModbusError(ILLEGAL_ADDRESS)
        if len(data) - at < 2 * point.count:
            raise ModbusError(ILLEGAL_ADDRESS)
        raw = point.raw(data[at : at + 2 * point.count])
        if not round(point.low / point.scale) <= raw <= round(point.high / point.scale):
            raise ModbusError(ILLEGAL_VALUE)
        wanted[point.name] = raw * point.scale
        at += 2 * point.count
    return wanted
