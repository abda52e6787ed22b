"""Model 715, DER control."""

from __future__ import annotations

from ..sunspec import Control, OpCtl
from .draft import Draft

ACK = (0, 1)
BEAT16, _BEAT32 = (0, 0xFFFE), (0, 0xFFFFFFFE)
DER_CONTROL = [
    Draft("LocRemCtl", "enum16", "who commands", values=Control, fixed=Control.REMOTE),
    Draft("DERHb", "uint32", "appliance heartbeat: counts up once a second while the controller scans", "own.beat"),
    Draft("ControllerHb", "uint32", "site controller heartbeat, same counter as CtrlHb; must change within HbTmo",
          span=_BEAT32, fixed=0),
    Draft("AlarmReset", "uint16", "1 = acknowledge faults, as AckFaults; reads 0", span=ACK, fixed=0),
    Draft("OpCtl", "enum16", "STOP = mode off, ENTER_STANDBY = mode ready, START and EXIT_STANDBY = mode grid (no "
          "change in mode charge, discharge or grid); reads what CmdMode corresponds to",
          values=OpCtl, writable=True, fixed=OpCtl.STOP),
]  # fmt: skip
