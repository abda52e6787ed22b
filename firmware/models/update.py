"""Vendor model of the update agent, behind 803: read-only, an update never comes over Modbus."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from operator import attrgetter

from ..update_codes import UpdateResult
from .draft import Draft, Row, Sources, model

UPDATE_MODEL, UPDATE_LENGTH = 64991, 23


def _text(field: str) -> Callable[[Sources], str]:
    found = attrgetter(field)
    return lambda s: "" if s.update is None else found(s.update).rstrip(b"\0").decode(errors="replace")


def _tries(s: Sources) -> float:
    return nan if s.update is None or s.update.tries < 0 else s.update.tries


UPDATE = [
    Draft("UpdProgress", "uint16", "how far the step in UpdState is", "update.progress_pct", unit="%"),
    Draft("UpdResult", "enum16", "how the last update ended", "update.result", values=UpdateResult),
    Draft("UpdDetail", "uint16", "number that came with UpdResult: exit code, HTTP status, errno; 0 = none",
          "update.detail"),
    Draft("UpdSlot", "uint16", "booted slot: 1 A, 2 B, 0 not known", "update.slot"),
    Draft("UpdTries", "uint16", "starts left to the booted slot, this one not counted, before the other is taken",
          "update", _tries),
    Draft("UpdDone", "uint16", "done of the bundle, in MB", "update.done_mb"),
    Draft("UpdTotal", "uint16", "size of the bundle, in MB", "update.total_mb"),
    Draft("UpdRunning", "string", "version that runs", "update", _text("running"), words=8),
    Draft("UpdOffered", "string", "version of the bundle that was looked at last", "update", _text("offered"), words=8),
]  # fmt: skip


def update_model(address: int) -> list[Row]:
    """Where 803 ends, which depends on the number of strings."""
    return model(UPDATE_MODEL, address, UPDATE_LENGTH, UPDATE)
