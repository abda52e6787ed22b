"""Models 703, enter service, and 711, frequency droop. What is written counts until the unit boots."""

from __future__ import annotations

from statemachine.grid import DEFAULT

from ..sunspec import Ability, Adoption, Writable
from .draft import Draft, not_implemented, sf

ES_DELAY_S, ES_RAMP_S = (0, 600), (0, 1000)
DAY_S = 86_400
ENTER_SERVICE = [
    Draft("ES", "enum16", "service permitted; DISABLED ceases to energise: 0 A at once, contactors open within 2 s; "
          "ENABLED again closes nothing without a new command", values=Ability, writable=True, fixed=Ability.ENABLED),
    Draft("ESVHi", "uint16", "service is entered up to this voltage, % of 702.VNomRtg", unit="%", scale=0.1,
          span=(100, 120), fixed=100 * DEFAULT.v_high_pu),
    Draft("ESVLo", "uint16", "service is entered from this voltage on, % of 702.VNomRtg", unit="%", scale=0.1,
          span=(50, 100), fixed=100 * DEFAULT.v_low_pu),
    Draft("ESHzHi", "uint32", "service is entered up to this frequency", unit="Hz", scale=0.001, span=(50, 66),
          fixed=DEFAULT.hz_high),
    Draft("ESHzLo", "uint32", "service is entered from this frequency on", unit="Hz", scale=0.001, span=(45, 60),
          fixed=DEFAULT.hz_low),
    Draft("ESDlyTms", "uint32", "voltage and frequency are in range for so long before contactors close", unit="s",
          span=ES_DELAY_S, fixed=DEFAULT.delay_s),
    *not_implemented("uint32", "ESRndTms"),
    Draft("ESRmpTms", "uint32", "after that the power may rise to the rated one over this time", unit="s",
          span=ES_RAMP_S, fixed=DEFAULT.ramp_s),
    Draft("ESDlyRemTms", "uint32", "delay left", "status.service_delay_s", unit="s"),
    sf("V_SF", -1),
    sf("Hz_SF", -3),
]  # fmt: skip


def _set(number: int) -> list[Draft]:
    """One control set, named after its number."""
    return [
        draft._replace(name=f"Ctl{number}.{draft.name}")
        for draft in (
            Draft("DbOf", "uint32", "dead band above the nominal frequency", unit="Hz", scale=0.001, span=(0, 10),
                  fixed=DEFAULT.db_of_hz),
            Draft("DbUf", "uint32", "dead band below it", unit="Hz", scale=0.001, span=(0, 10),
                  fixed=DEFAULT.db_uf_hz),
            Draft("KOf", "uint16", "change of frequency above, pu, for 1 pu of power", scale=0.0001, span=(0, 1),
                  fixed=DEFAULT.k_of),
            Draft("KUf", "uint16", "change of frequency below, pu, for 1 pu of power", scale=0.0001, span=(0, 1),
                  fixed=DEFAULT.k_uf),
            Draft("RspTms", "uint32", "open-loop response time to 90 %", unit="s", scale=0.1, span=(0, 600),
                  fixed=DEFAULT.response_s),
            Draft("PMin", "int16", "a high frequency does not lower the power below it, % of 702.WMax, - = charge",
                  unit="%", span=(-100, 100), fixed=100 * DEFAULT.p_min_pu),
            Draft("ReadOnly", "enum16", "whether the set can be written", values=Writable, fixed=Writable.RW),
        )
    ]  # fmt: skip


_IN_FORCE = [draft._replace(span=None) for draft in _set(1)[:-1]]
DROOP = [
    Draft("Ena", "enum16", "frequency droop on the set-point in mode grid", values=Ability, writable=True,
          fixed=DEFAULT.droop_enabled),
    Draft("AdptCtlReq", "uint16", "2 = check set 2 and put it in force as set 1", span=(0, 0xFFFE), fixed=1),
    Draft("AdptCtlRslt", "enum16", "result of that; FAILED: no such set, or a value outside IEEE 1547's range; set 1 "
          "is as before", values=Adoption, fixed=Adoption.COMPLETED),
    Draft("NCtl", "uint16", "control sets", fixed=2),
    Draft("RvrtTms", "uint32", "reversion time, restarted by each write to Ena, AdptCtlReq, RvrtTms and RvrtCtl; "
          "0 = none", unit="s", span=(0, DAY_S), fixed=0),
    Draft("RvrtRem", "uint32", "reversion time left", "status.droop_remaining_s", unit="s"),
    Draft("RvrtCtl", "uint16", "set that is adopted when it is over", span=(1, 2), fixed=1),
    sf("Db_SF", -3),
    sf("K_SF", -4),
    sf("RspTms_SF", -1),
    *_IN_FORCE,
    Draft("Ctl1.ReadOnly", "enum16", "whether the set can be written", values=Writable, fixed=Writable.R),
    *_set(2),
]  # fmt: skip
