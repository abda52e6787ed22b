"""One healthy answer of each device, and the grid functions switched on, for tests that change a value of it."""

from __future__ import annotations

from typing import Any

from statemachine.grid import DEFAULT
from statemachine.signals import Bms, Pcs

BMS = Bms(
    poll=5, v_stamp_ms=500.0, rack_v=1100.0, rack_a=0.0, soc_pct=50.0, soc_max_pct=52.0, soc_min_pct=48.0,
    soh_pct=100.0, cell_v_max=3.70, cell_v_min=3.68, cell_v_avg=3.69, cell_v_max_at=0, cell_v_min_at=1,
    cell_c_max=26.0, cell_c_min=25.0, cell_c_max_at=2, cell_c_min_at=3, charge_max_a=1120.0, discharge_max_a=1120.0,
    insulation_kohm=2000.0, alarm_trip=0, alarm_stop=0, alarm_warn=0, cells_bad=0, cells_balancing=0,
    strings_online=4, plausible=True, identity_ok=True, loss_pct=0.0,
)  # fmt: skip
PCS = Pcs(
    poll=25, v_stamp_ms=500.0, dc_v=1100.0, dc_a=0.0, ac_w=0.0, ac_hz=50.0, ac_v=400.0, state=2, fault_bits=0,
    charge_max_a=1120.0, discharge_max_a=1120.0, identity_ok=True, loss_pct=0.0,
)  # fmt: skip


def pcs(hz: float = 50.0, v: float = 400.0) -> Pcs:
    return PCS._replace(ac_hz=hz, ac_v=v)


DROOP_ON = DEFAULT._replace(
    droop_enabled=True, db_of_hz=0.1, db_uf_hz=0.2, k_of=0.04, k_uf=0.025, response_s=2.0, p_min_pu=-0.5
)
LIMIT_ON: dict[str, Any] = {
    "limit_version": 3, "limit_enabled": True, "limit_pu": 0.4, "limit_revert_enabled": True, "limit_revert_pu": 0.7,
}  # fmt: skip
