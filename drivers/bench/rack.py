"""The simulated rack: an equivalent-circuit model of every cell, vectorised over strings x modules x cells.

Each cell is OCV(SoC), R0 and two RC pairs; resistances follow SoC and, by Arrhenius, the module's temperature. The
strings are hard in parallel, so their currents are solved. Current is in ampere, + is discharge; time is cell time.

Sources: NMC resistances, time constants, activation energies and heat fitted to a 5 Ah energy cell, in volt per C and
per Ah, hence free of scale; LFP 280 Ah resistances and both OCV tables are typical values, not of one maker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_STEP_S = 5.0
"""Longest step of cell time; a longer one is taken in parts."""
SOC_LOW, SOC_HIGH = -0.05, 1.05
"""The model goes on a little past empty and full, so that over- and under-voltage can be shown."""

_GAS = 8.314  # J/(mol K)
_ACTIVATION_K = (21e3 / _GAS, 16e3 / _GAS, 31e3 / _GAS)  # R0, R1, R2
_HEAT_J_K_AH, _COOL_W_K_AH = 65.0 / 5.0, 0.083 / 5.0  # a cell's heat capacity and cooling, by its Ah
_NEIGHBOUR_W_K = 5.0  # between neighbouring modules
_BALANCE_OHM = 33.0
_BALANCE_SPREAD_V, _BALANCE_DONE_V = 0.005, 0.002
_BALANCE_BELOW_C = 0.1  # above it the cells' resistances hide their charge


@dataclass(frozen=True, slots=True)
class Chemistry:
    """A cell as data. Resistances in V per C on rated capacity at 25 degC."""

    name: str
    ocv_soc: tuple[float, ...]
    ocv_v: tuple[float, ...]
    r_soc: tuple[float, ...]
    r_v_per_c: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]  # R0, R1, R2
    tau_s: tuple[float, float]
    balance_above_v: float  # the BMS bleeds cells only when the highest is above
    limit_v: tuple[float, float]  # the BMS's charge limit falls from 1 to 0 between these
    low_v: tuple[float, float]  # its discharge limit from 0 to 1
    alarms_high_v: tuple[float, float, float]  # trip, stop, warn
    alarms_low_v: tuple[float, float, float]


NMC = Chemistry(
    "nmc",
    ocv_soc=(-0.05, 0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05),
    ocv_v=(2.2, 2.75, 3.0, 3.15, 3.32, 3.41, 3.46, 3.56, 3.63, 3.7, 3.8, 3.9, 4.0, 4.08, 4.12, 4.18, 4.4),
    r_soc=(0.08, 0.15, 0.4, 0.8, 0.9),
    r_v_per_c=(
        (0.201, 0.163, 0.141, 0.163, 0.205),
        (0.105, 0.090, 0.075, 0.085, 0.105),
        (0.065, 0.045, 0.032, 0.040, 0.065),
    ),
    tau_s=(51.0, 418.0),
    balance_above_v=4.05,
    limit_v=(4.22, 4.28),
    low_v=(2.6, 2.9),
    alarms_high_v=(4.30, 4.27, 4.23),
    alarms_low_v=(2.40, 2.60, 2.80),
)
LFP = Chemistry(
    "lfp",
    ocv_soc=(-0.05, 0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.05),
    ocv_v=(2.0, 2.6, 2.95, 3.12, 3.2, 3.255, 3.285, 3.295, 3.3, 3.31, 3.33, 3.335, 3.34, 3.345, 3.37, 3.45, 3.95),
    r_soc=(0.0, 1.0),
    r_v_per_c=((0.070, 0.070), (0.042, 0.042), (0.056, 0.056)),
    tau_s=(51.0, 418.0),
    balance_above_v=3.42,
    limit_v=(3.62, 3.68),
    low_v=(2.4, 2.7),
    alarms_high_v=(3.80, 3.72, 3.65),
    alarms_low_v=(2.0, 2.3, 2.6),
)
CHEMISTRIES = {c.name: c for c in (NMC, LFP)}


class Size(NamedTuple):
    """How many strings in parallel, modules a string, cells a module; all cells of a string are in series."""

    strings: int = 4
    modules: int = 20
    cells: int = 15

    @property
    def series(self) -> int:
        """Cells in series."""
        return self.modules * self.cells

    @property
    def total(self) -> int:
        """Cells in all."""
        return self.strings * self.series


class Rack:
    """State of every cell, arrays of shape `size`; `step` moves time, `bus_v` and `string_a` answer at any current."""

    def __init__(
        self,
        size: Size | None = None,
        chemistry: Chemistry = NMC,
        soc: float = 0.2,
        string_ah: float = 280.0,
        coolant_c: float = 25.0,
        seed: int = 1,
    ) -> None:
        self.size, self.chemistry, self.string_ah = size or Size(), chemistry, string_ah
        rng = np.random.default_rng(seed)
        shape, modules = tuple(self.size), (*self.size[:2], 1)
        self.capacity_ah: Array = string_ah * (1.0 + 0.01 * np.clip(rng.standard_normal(shape), -2.5, 2.5))
        self._spread_r = 1.0 + 0.05 * np.clip(rng.standard_normal(shape), -2.5, 2.5)
        self.soc: Array = np.clip(soc + 0.003 * np.clip(rng.standard_normal(shape), -2.5, 2.5), 0.0, 1.0)
        self._coolant_c = coolant_c + rng.uniform(-0.8, 0.8, modules)
        self._sensor_c = rng.uniform(-0.2, 0.2, shape)
        self.module_c: Array = self._coolant_c.copy()
        self.balancing: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        self._v1, self._v2 = np.zeros(shape), np.zeros(shape)
        self.hot_cell: tuple[int, float] | None = None
        self.forced_cell: tuple[int, float] | None = None  # flat index and V, as measured; the rack's voltage is true
        self._connected: Array = np.ones(self.size.strings)
        self._refresh()

    def set_soc(self, soc: float) -> None:
        """Moves the mean SoC to `soc` (0..1), keeps the spread between cells, forgets the RC pairs."""
        self.soc = np.clip(self.soc + (soc - self.mean_soc()), 0.0, 1.0)
        self._v1[:], self._v2[:] = 0.0, 0.0
        self._refresh()

    @property
    def offline(self) -> int:
        """The string that has disconnected itself, counted from 1; 0 = none."""
        away = np.flatnonzero(self._connected == 0.0)
        return int(away[0]) + 1 if away.size else 0

    @offline.setter
    def offline(self, string: int) -> None:
        self._connected[:] = 1.0
        if string:
            self._connected[string - 1] = 0.0
        self._refresh()

    def mean_soc(self) -> float:
        """Charge over capacity of the whole rack, 0..1."""
        return float((self.soc * self.capacity_ah).sum() / self.capacity_ah.sum())

    def string_soc(self) -> Array:
        """The same of each string."""
        soc: Array = (self.soc * self.capacity_ah).sum((1, 2)) / self.capacity_ah.sum((1, 2))
        return soc

    def bus_v(self, current_a: float) -> float:
        """Terminal voltage while the rack delivers `current_a`."""
        return self.emf_v - current_a * self.ohm

    def string_a(self, current_a: float) -> Array:
        """How the strings share `current_a`; at 0 A they still exchange what levels them."""
        return (self._string_emf_v - self.bus_v(current_a)) * self._string_siemens

    def cell_v(self, current_a: float) -> Array:
        """Terminal voltage of every cell."""
        cells: Array = self._emf_v - self._r0 * self.string_a(current_a)[:, None, None]
        if self.forced_cell is not None:
            cells.flat[self.forced_cell[0]] = self.forced_cell[1]
        return cells

    def cell_c(self) -> Array:
        """Temperature of every cell."""
        cells: Array = self.module_c + self._sensor_c
        if self.hot_cell is not None:
            cells.flat[self.hot_cell[0]] = self.hot_cell[1]
        return cells

    def step(self, current_a: float, dt_s: float) -> None:
        """Delivers `current_a` for `dt_s` of cell time."""
        parts = max(1, math.ceil(dt_s / MAX_STEP_S))
        for _ in range(parts):
            self._part(current_a, dt_s / parts)

    def _part(self, current_a: float, dt_s: float) -> None:
        string_a = self.string_a(current_a)[:, None, None]
        cell_v = self._emf_v - self._r0 * string_a
        self._balance(cell_v, string_a)
        bleed_a = self.balancing * cell_v / _BALANCE_OHM
        cell_a = string_a + bleed_a
        heat_w = cell_a * (self._ocv_v - cell_v) + bleed_a * cell_v
        self.soc = np.clip(self.soc - cell_a * dt_s / (3600.0 * self.capacity_ah), SOC_LOW, SOC_HIGH)
        decay_1, decay_2 = (math.exp(-dt_s / tau) for tau in self.chemistry.tau_s)
        self._v1 = decay_1 * self._v1 + (1.0 - decay_1) * self._r1 * cell_a
        self._v2 = decay_2 * self._v2 + (1.0 - decay_2) * self._r2 * cell_a
        self._warm(heat_w.sum(2, keepdims=True), dt_s)
        self._refresh()

    def _warm(self, heat_w: Array, dt_s: float) -> None:
        c = self.module_c
        beside = np.diff(np.concatenate((c[:, :1], c, c[:, -1:]), 1), axis=1)
        module_ah = self.string_ah * self.size.cells
        flow_w = heat_w - _COOL_W_K_AH * module_ah * (c - self._coolant_c) + _NEIGHBOUR_W_K * np.diff(beside, axis=1)
        self.module_c = c + flow_w * dt_s / (_HEAT_J_K_AH * module_ah)

    def _balance(self, cell_v: Array, string_a: Array) -> None:
        """The BMS bleeds a string's high cells near the top of charge and at low current, with hysteresis."""
        above = cell_v - cell_v.min((1, 2), keepdims=True)
        near_full = cell_v.max((1, 2), keepdims=True) > self.chemistry.balance_above_v
        near_full &= np.abs(string_a) < _BALANCE_BELOW_C * self.string_ah
        threshold = np.where(self.balancing, _BALANCE_DONE_V, _BALANCE_SPREAD_V)
        self.balancing = near_full & (above > threshold)

    def _refresh(self) -> None:
        chem = self.chemistry
        self._ocv_v = np.interp(self.soc, chem.ocv_soc, chem.ocv_v)
        cold = 1.0 / (self.module_c + 273.15) - 1.0 / 298.15
        per_c = [np.interp(self.soc, chem.r_soc, r) for r in chem.r_v_per_c]
        self._r0, self._r1, self._r2 = (
            r * self._spread_r * (np.exp(k * cold) / self.string_ah) for r, k in zip(per_c, _ACTIVATION_K, strict=True)
        )
        self._emf_v = self._ocv_v - self._v1 - self._v2
        self._string_emf_v: Array = self._emf_v.sum((1, 2))
        self._string_siemens: Array = self._connected / self._r0.sum((1, 2))
        self.ohm = float(1.0 / self._string_siemens.sum())
        self.emf_v = float((self._string_emf_v * self._string_siemens).sum() * self.ohm)
