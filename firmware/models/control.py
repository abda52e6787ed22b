"""Model 715, DER control."""

from __future__ import annotations

from statemachine.signals import InterlockBit

from ..image import Status
from ..sunspec import Control, OpCtl
from .draft import Draft, of_status

ACK = (0, 1)
BEAT16, _BEAT32 = (0, 0xFFFE), (0, 0xFFFFFFFE)


@of_status
def key_switch(status: Status) -> float:
    """Where the key switch is."""
    return Control.LOCAL if status.interlocks >> InterlockBit.KEY_LOCAL & 1 else Control.REMOTE


DER_CONTROL = [
    Draft("LocRemCtl", "enum16", "the key switch; LOCAL: no command is taken but modes off and service", "status",
          key_switch, values=Control),
    Draft("DERHb", "uint32", "appliance heartbeat: counts up once a second while the controller scans", "own.beat"),
    Draft("ControllerHb", "uint32", "site controller heartbeat, same counter as CtrlHb; must change within HbTmo",
          span=_BEAT32, fixed=0),
    Draft("AlarmReset", "uint16", "1 = acknowledge faults, as AckFaults; reads 0", span=ACK, fixed=0),
    Draft("OpCtl", "enum16", "STOP = mode off, ENTER_STANDBY = mode ready, START and EXIT_STANDBY = mode grid (no "
          "change in mode charge, discharge or grid); reads what CmdMode corresponds to",
          values=OpCtl, writable=True, fixed=OpCtl.STOP),
]  # fmt: skip
