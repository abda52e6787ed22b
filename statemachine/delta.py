"""The manual's 2.0 V rule: BMS and PCS terminal voltage may not drift apart, or a connection is burning.

2.0 V of 1,331 V is 0.15 %, less than two 0.5 % meters differ. So the offset at zero current is taken out after the
contactors closed, samples are compared at the same instant (the PCS voltage is interpolated to the BMS stamp), and
three comparisons in a row must agree.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from .settings import Settings
from .signals import Bms, Pcs

IN_A_ROW = 3
CALIBRATION_SAMPLES = 5
CALIBRATION_TIME_MS = 10_000.0  # READY without an offset for longer is a fault
BLIND_MS = 3000.0  # a calibrated delta without a comparison for longer is a fault
CALIBRATION_MAX_A = 2.0  # |I| of both meters: larger currents already drop volts in the joints
HISTORY = 24  # PCS samples, half a second at 50 a second
ALIGN_MS = 60.0  # a BMS sample with no PCS sample this near is not compared


class Delta(NamedTuple):
    history: tuple[tuple[float, float], ...] = ()  # PCS (stamp ms, V), oldest first
    pcs_poll: int = 0
    bms_poll: int = 0
    bms_ms: float = 0.0  # stamp of the last BMS sample, and of the last that could be compared
    compared_ms: float = 0.0
    sums: tuple[int, float] = (0, 0.0)  # calibration: samples, volts
    offset_v: float = float("nan")
    dv_v: float = float("nan")
    bad_in_row: int = 0

    @property
    def calibrated(self) -> bool:
        return self.offset_v == self.offset_v

    @property
    def exceeded(self) -> bool:
        return self.bad_in_row >= IN_A_ROW

    @property
    def blind(self) -> bool:
        return self.bms_ms - self.compared_ms > BLIND_MS


def _at(history: tuple[tuple[float, float], ...], stamp_ms: float) -> float:
    """PCS voltage at an instant; nan when no sample is near enough."""
    after = next((i for i, (t, _) in enumerate(history) if t >= stamp_ms), None)
    if after is None:  # a stamp that is no number; else observe has waited for the sample after it
        return float("nan")
    t1, v1 = history[after]
    if after == 0 or t1 == stamp_ms:
        return v1 if t1 - stamp_ms <= ALIGN_MS else float("nan")
    t0, v0 = history[after - 1]
    if t1 - t0 > 2 * ALIGN_MS:
        return float("nan")
    return v0 + (v1 - v0) * (stamp_ms - t0) / (t1 - t0)


def observe(d: Delta, s: Settings, bms: Bms | None, pcs: Pcs | None, closed: bool) -> Delta:
    """One scan. Calibrates at zero current once `closed`; forgets everything when the contactors are not closed."""
    if not closed or bms is None or pcs is None:
        return Delta()
    if pcs.poll != d.pcs_poll:
        d = d._replace(pcs_poll=pcs.poll, history=(*d.history[1 - HISTORY :], (pcs.v_stamp_ms, pcs.dc_v)))
    if bms.poll == d.bms_poll or not d.history or d.history[-1][0] < bms.v_stamp_ms:
        return d  # nothing new, or the PCS sample after the BMS sample is still to come
    first = d.bms_poll == 0
    d = d._replace(bms_poll=bms.poll, bms_ms=bms.v_stamp_ms, compared_ms=bms.v_stamp_ms if first else d.compared_ms)
    raw = _at(d.history, bms.v_stamp_ms) - bms.rack_v
    if first or not isfinite(raw):
        return d
    d = d._replace(compared_ms=bms.v_stamp_ms)
    if not d.calibrated:
        return _calibrate(d, raw, abs(bms.rack_a) <= CALIBRATION_MAX_A and abs(pcs.dc_a) <= CALIBRATION_MAX_A)
    dv = raw - d.offset_v
    return d._replace(dv_v=dv, bad_in_row=d.bad_in_row + 1 if abs(dv) > s.max_delta_voltage else 0)


def _calibrate(d: Delta, raw_v: float, at_rest: bool) -> Delta:
    if not at_rest:
        return d._replace(sums=(0, 0.0))
    count, total = d.sums[0] + 1, d.sums[1] + raw_v
    if count < CALIBRATION_SAMPLES:
        return d._replace(sums=(count, total))
    return d._replace(sums=(0, 0.0), offset_v=total / count, dv_v=raw_v - total / count)
