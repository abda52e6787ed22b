"""The one table of hazards: `hazards_*.py` in one tuple, and a row for every fault of the catalogue."""

from __future__ import annotations

from statemachine.faults import FAULTS, REACTS

from .by_fault import INJECTIONS, promised_ms
from .hazards_comms import COMMS
from .hazards_inputs import INPUTS
from .hazards_process import PROCESS
from .hazards_rest import LONG, OPERATOR, POWER
from .row import CORE, SCENE, Row

HAZARDS: tuple[Row, ...] = INPUTS + COMMS + PROCESS + POWER + OPERATOR + LONG
_PROMISED = {injection.fault: promised_ms(injection) for injection in INJECTIONS}
CATALOGUE: tuple[Row, ...] = tuple(
    Row(
        fault.name,
        fault.text.partition(". ")[0],
        f"{fault.severity.name}: {REACTS[fault.severity]}; {fault.clears}",
        f"statemachine.detect:{fault.name.removeprefix('ERR_').lower()}",
        CORE,
        (SCENE,) if fault.name in _PROMISED else (),
        _PROMISED.get(fault.name),
    )
    for fault in FAULTS
)
TABLE = HAZARDS + CATALOGUE
BY_ID = {row.id: row for row in TABLE}
assert len(BY_ID) == len(TABLE), "an id names one row"
