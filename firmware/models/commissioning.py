"""The commissioning block: outside the SunSpec chain, whose vendor model is full, so that its addresses are fixed."""

from __future__ import annotations

from enum import IntEnum

from .draft import Draft, placed


class CommCommand(IntEnum):
    """CmdComm."""

    NONE = 0
    RECORD = 50_990  # 0xC72E: no value that a client writes by accident


class CommState(IntEnum):
    NOT_COMMISSIONED = 0
    COMMISSIONED = 1
    VOID = 2  # the configuration has changed since, or none is valid


COMMISSIONING_MODEL = 64992
"""No SunSpec model: the number under which a certificate's role may write the block."""
_BITS = ", bits as in Interlocks"
COMMISSIONING = placed(
    [
        Draft("CmdComm", "enum16", "RECORD in SERVICE, with CommMissing 0, records the commissioning; reads 0",
              values=CommCommand, writable=True, fixed=CommCommand.NONE),
        Draft("CommState", "enum16", "commissioning; VOID: the configuration has changed since, or none is valid",
              "own.comm_state", values=CommState),
        Draft("CommSeen", "bitfield32", "inputs that stood in both positions since SERVICE was entered and nothing "
              "closed" + _BITS, "own.comm_seen"),
        Draft("CommMissing", "bitfield32", "inputs still to be moved to and fro, or not as in operation now" + _BITS,
              "own.comm_missing"),
    ],
    str(COMMISSIONING_MODEL),
    42_000,
)  # fmt: skip
COMMISSIONING_FIRST, COMMISSIONING_END = COMMISSIONING[0].point.address, COMMISSIONING[-1].point.end
