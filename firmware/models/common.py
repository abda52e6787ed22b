"""Model 1, common."""

from __future__ import annotations

from .draft import Draft, text

COMMON = [
    text("Mn", 16, "manufacturer", "ems-edge"),
    text("Md", 16, "model", "EMS-1"),
    text("Opt", 8, "options"),
    text("Vr", 8, "firmware version"),
    text("SN", 16, "serial number: the host name"),
    Draft("DA", "uint16", "device address", fixed=1),
    Draft("Pad", "int16", "pad", reserve=True),
]
