"""The bench's BMS and PCS: the registers of their profiles, and the wrong things they can say in them."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

import numpy as np

from drivers.modbus.session import BUSY, ILLEGAL_ADDRESS, ILLEGAL_VALUE, ModbusError
from drivers.profile import Profile, ProfilePoint, load

from .plant import PCS_RATED_A, Plant
from .rack import Array, Chemistry
from .wire import DeviceMode, Loss

_CELL_TICKS = 4  # the BMS measures its cells every so many plant ticks, the rest every tick
_ALARMS = ("alarm_trip", "alarm_stop", "alarm_warn")
_HOT_C, _COLD_C = (60.0, 55.0, 50.0), (-20.0, -10.0, 0.0)  # trip, stop, warn
_CURRENT_C = (1.5, 1.3, 1.1)
_INSULATION_LOW_KOHM = (0.0, 50.0, 500.0)  # the BMS leaves tripping on insulation to the EMS
_REVISION, _STRANGER = b"1.0", b"STRANGER"


class _Registers:
    """Areas of registers cut out of a profile, encoded when they are read and have changed."""

    def __init__(self, plant: Plant, profile: Profile, units: int) -> None:
        self.plant, self.profile, self.mode, self.loss = plant, profile, DeviceMode.NORMAL, Loss()
        self.exchanges = 0  # times the device was exchanged for another one; that costs it its connections
        self._stranger = False
        self._units = range(profile.first_unit, profile.first_unit + units)
        self._blocks = {block.address: block for block in profile.blocks(profile.points)}
        self._sizes = {address: block.count for address, block in self._blocks.items()}
        cells = plant.rack.size.series
        self._sizes |= {array.address: array.registers(cells) for array in profile.arrays.values()}
        self._writable = {p.address: (name, p) for name, p in profile.points.items() if p.access == "RW"}
        self._made: dict[tuple[int, int], tuple[int, bytes]] = {}  # unit, area -> plant tick, bytes
        self._start_s = monotonic()
        self._ems_heartbeat = 0.0

    def serves(self, unit: int) -> bool:
        return unit in self._units

    def identity(self, unit: int) -> Mapping[int, bytes]:
        self._not_busy()
        who = self.profile.identity
        product = _STRANGER if self._stranger else (who.product or "").encode()
        return {0: (who.vendor or "").encode(), 1: product, 2: _REVISION}

    @property
    def stranger(self) -> bool:
        """Another product answers at this address, with the same registers."""
        return self._stranger

    @stranger.setter
    def stranger(self, stranger: bool) -> None:
        self.exchanges += stranger != self._stranger
        self._stranger = stranger

    def _not_busy(self) -> None:
        if self.mode == DeviceMode.BUSY:
            raise ModbusError(BUSY)

    def read(self, unit: int, address: int, count: int) -> bytes:
        self._not_busy()
        for start, size in self._sizes.items():
            if start <= address and address + count <= start + size:
                at = 2 * (address - start)
                return self._area(unit, start)[at : at + 2 * count]
        raise ModbusError(ILLEGAL_ADDRESS)

    def _area(self, unit: int, start: int) -> bytes:
        tick, data = self._made.get((unit, start), (0, b""))
        cycle = 1 if start in self._blocks else _CELL_TICKS
        if not data or (self.mode != DeviceMode.FROZEN and self.plant.ticks - tick >= cycle):
            data = self._image(unit, start) if start in self._blocks else self.array(unit, start)
            self._made[unit, start] = self.plant.ticks, data
        return data

    def _image(self, unit: int, start: int) -> bytes:
        block, values = self._blocks[start], self.values(unit)
        data = bytearray(2 * block.count)
        for name in block.names:
            at = 2 * (self.profile.points[name].address - start)
            encoded = self.profile.encode(name, values.get(name, 0.0))
            data[at : at + len(encoded)] = encoded
        return bytes(data)

    @property
    def heartbeat(self) -> float:
        """Counts seconds of real time, as a register."""
        return float(int(monotonic() - self._start_s) + 1 & 0xFFFF)

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        self._not_busy()
        values: dict[str, float] = {}
        at = 0
        while at < len(data):
            name, point = self._point(address + at // 2)
            size = 2 * point.count
            if at + size > len(data):
                raise ModbusError(ILLEGAL_ADDRESS)
            block = self.profile.blocks([name])[0]
            values[name] = self.profile.decode(block, data[at : at + size])[name]
            at += size
        self.check(values)
        if self.mode != DeviceMode.FROZEN:
            self.apply(values)
            self._made.clear()

    def _point(self, address: int) -> tuple[str, ProfilePoint]:
        found = self._writable.get(address)
        if found is None:
            raise ModbusError(ILLEGAL_ADDRESS)
        return found

    def values(self, unit: int) -> Mapping[str, float]:
        """A unit's points, now; those left out read 0."""
        raise NotImplementedError

    def array(self, unit: int, start: int) -> bytes:
        """The array at `start`, now."""
        raise NotImplementedError

    def check(self, values: Mapping[str, float]) -> None:
        """Raises ModbusError when a value written is not allowed."""

    def apply(self, values: Mapping[str, float]) -> None:
        """Takes the values written."""


class BmsDevice(_Registers):
    """One unit a string. A write of the EMS heartbeat goes to the whole BMS."""

    def __init__(self, plant: Plant, profile: Profile | None = None) -> None:
        super().__init__(plant, profile or load("bms_2100"), plant.rack.size.strings)
        self._arrays = {array.address: (name, array) for name, array in self.profile.arrays.items()}
        self.unmeasured = {"cell_v": 0, "cell_c": 0}  # the first so many cells answer the sentinel
        self.extra_alarms = [0, 0, 0]  # trip, stop, warn: bits besides its own

    def apply(self, values: Mapping[str, float]) -> None:
        self._ems_heartbeat = values.get("ems_heartbeat", self._ems_heartbeat)

    def array(self, unit: int, start: int) -> bytes:
        name, array = self._arrays[start]
        rack, string = self.plant.rack, unit - self.profile.first_unit
        if name == "balancing":
            return array.encode(rack.balancing[string].ravel().tolist())
        values = (self._cell_v() if name == "cell_v" else rack.cell_c())[string].ravel()
        values[: max(0, self.unmeasured[name] - string * values.size)] = np.nan
        return array.encode(values.tolist())

    def _cell_v(self) -> Array:
        return self.plant.rack.cell_v(self.plant.rack_a)

    def values(self, unit: int) -> Mapping[str, float]:
        string = unit - self.profile.first_unit
        string_a = self.plant.bms_string_a()[string]
        return {
            **self._summary(self._cell_v()[string].ravel(), self.plant.rack.cell_c()[string].ravel(), string_a),
            "string_v": self.plant.bms_v(),
            "string_a": string_a,
            "soc_pct": 100.0 * float(self.plant.rack.string_soc()[string]),
            "heartbeat": self.heartbeat,
            "ems_heartbeat": self._ems_heartbeat,
            **({"charge_limit_a": 0.0, "discharge_limit_a": 0.0} if string + 1 == self.plant.rack.offline else {}),
        }

    def _summary(self, cell_v: Array, cell_c: Array, string_a: float) -> dict[str, float]:
        plant = self.plant
        at = {"cell_v_max": cell_v.argmax(), "cell_v_min": cell_v.argmin()}
        at |= {"cell_c_max": cell_c.argmax(), "cell_c_min": cell_c.argmin()}
        values = {f"{name}_at": float(index) for name, index in at.items()}
        values |= {name: float((cell_v if "_v_" in name else cell_c)[index]) for name, index in at.items()}
        charge_a, discharge_a = current_limits(plant.rack.chemistry, plant.rack.string_ah, values)
        alarms = alarm_bits(plant.rack.chemistry, values, string_a / plant.rack.string_ah, plant.insulation_kohm)
        return {
            **values,
            **{n: float(own | extra) for n, own, extra in zip(_ALARMS, alarms, self.extra_alarms, strict=True)},
            "state": 0.0 if abs(string_a) < 1.0 else 1.0 if string_a > 0 else 2.0,
            "soh_pct": 100.0,
            "cell_v_avg": float(cell_v.mean()),
            "insulation_kohm": plant.insulation_kohm,
            "charge_limit_a": charge_a,
            "discharge_limit_a": discharge_a,
        }


def _fall(value: float, full: float, none: float) -> float:
    """1 at `full`, 0 at `none`, linear between."""
    return min(1.0, max(0.0, (none - value) / (none - full)))


def current_limits(chemistry: Chemistry, string_ah: float, cells: Mapping[str, float]) -> tuple[float, float]:
    """A BMS's charge and discharge limit of a string, A: 1C, less at extreme cell voltages and temperatures."""
    hot = _fall(cells["cell_c_max"], 50.0, 58.0)
    charge = min(hot, _fall(-cells["cell_c_min"], -5.0, 0.0), _fall(cells["cell_v_max"], *chemistry.limit_v))
    empty_v, full_v = chemistry.low_v
    return string_ah * charge, string_ah * min(hot, _fall(-cells["cell_v_min"], -full_v, -empty_v))


def alarm_bits(
    chemistry: Chemistry, cells: Mapping[str, float], c_rate: float, insulation_kohm: float
) -> tuple[int, int, int]:
    """Alarm words of levels 2 (trip), 1 (stop) and pre-alarm (warn).

    Bits: 0 cell voltage high, 2 charge current high, 3 cell voltage low, 5 discharge current high, 6 temperature high,
    7 temperature low, 12 insulation low.
    """
    words = []
    for level in range(3):
        conditions = {
            0: cells["cell_v_max"] > chemistry.alarms_high_v[level],
            2: -c_rate > _CURRENT_C[level],
            3: cells["cell_v_min"] < chemistry.alarms_low_v[level],
            5: c_rate > _CURRENT_C[level],
            6: cells["cell_c_max"] > _HOT_C[level],
            7: cells["cell_c_min"] < _COLD_C[level],
            12: insulation_kohm < _INSULATION_LOW_KOHM[level],
        }
        words.append(sum(1 << bit for bit, on in conditions.items() if on))
    return words[0], words[1], words[2]


class PcsDevice(_Registers):
    """One unit. A set-point written is followed at once; limits above the rating are refused."""

    def __init__(self, plant: Plant, profile: Profile | None = None) -> None:
        super().__init__(plant, profile or load("pcs_bench"), 1)

    def check(self, values: Mapping[str, float]) -> None:
        limits = (values.get("charge_limit_a", 0.0), values.get("discharge_limit_a", 0.0))
        if values.get("run", 0.0) not in (0.0, 1.0) or not all(0.0 <= a <= PCS_RATED_A for a in limits):
            raise ModbusError(ILLEGAL_VALUE)
        if not abs(values.get("setpoint_a", 0.0)) <= PCS_RATED_A:
            raise ModbusError(ILLEGAL_VALUE)

    def apply(self, values: Mapping[str, float]) -> None:
        pcs = self.plant.pcs
        pcs.run = bool(values.get("run", pcs.run))
        pcs.setpoint_a = values.get("setpoint_a", pcs.setpoint_a)
        pcs.charge_limit_a = values.get("charge_limit_a", pcs.charge_limit_a)
        pcs.discharge_limit_a = values.get("discharge_limit_a", pcs.discharge_limit_a)
        heartbeat = values.get("ems_heartbeat", self._ems_heartbeat)
        if heartbeat != self._ems_heartbeat:
            self._ems_heartbeat = heartbeat
            pcs.heartbeat()

    def values(self, unit: int) -> Mapping[str, float]:
        pcs = self.plant.pcs
        return {
            "state": float(pcs.state),
            "fault_bits": float(pcs.fault_bits),
            "dc_v": self.plant.pcs_v(),
            "dc_a": self.plant.pcs_a(),
            "ac_w": self.plant.ac_w(),
            "ac_hz": self.plant.grid_hz,
            "ac_v": self.plant.grid_v,
            "charge_max_a": PCS_RATED_A,
            "discharge_max_a": PCS_RATED_A,
            "heartbeat": self.heartbeat,
            "run": float(pcs.run),
            "setpoint_a": pcs.setpoint_a,
            "charge_limit_a": pcs.charge_limit_a,
            "discharge_limit_a": pcs.discharge_limit_a,
            "ems_heartbeat": self._ems_heartbeat,
        }
