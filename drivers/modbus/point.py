"""A typed point of a register map: where it is, how it is coded, what it may be. Every map is a table of these."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Kind = Literal["uint16", "int16", "uint32", "int32", "uint64", "enum16", "bitfield16", "bitfield32", "string"]
CODERS: dict[Kind, struct.Struct] = {
    "uint16": struct.Struct(">H"), "int16": struct.Struct(">h"), "uint32": struct.Struct(">I"),
    "int32": struct.Struct(">i"), "uint64": struct.Struct(">Q"), "enum16": struct.Struct(">H"),
    "bitfield16": struct.Struct(">H"), "bitfield32": struct.Struct(">I"),
}  # fmt: skip
UNIMPLEMENTED: dict[Kind, int] = {
    "uint16": 0xFFFF, "int16": -0x8000, "uint32": 0xFFFFFFFF, "int32": -0x80000000, "uint64": (1 << 64) - 1,
    "enum16": 0xFFFF, "bitfield16": 0xFFFF, "bitfield32": 0xFFFFFFFF,
}  # fmt: skip
"""SunSpec's "not implemented" values (SunSpec Information Model Specification), as decoded numbers."""


@dataclass(frozen=True, slots=True)
class Point:
    """`value = raw * scale`, big-endian, high word first. `low` and `high` bound the *value* of a writable point."""

    name: str
    address: int  # PDU address
    type: Kind
    doc: str
    count: int = 1  # registers
    scale: float = 1.0
    unit: str = ""
    access: Literal["R", "RW"] = "R"
    low: float | None = None
    high: float | None = None
    values: builtins.type[IntEnum] | None = None
    device_id: int = 1

    @property
    def end(self) -> int:
        """First address after the point."""
        return self.address + self.count

    @property
    def unimplemented(self) -> int | None:
        """The integer that stands for no value; every pattern of a bit field is one."""
        return None if self.type in ("bitfield16", "bitfield32") else UNIMPLEMENTED[self.type]

    def encode(self, value: float | str) -> bytes:
        """Wire bytes of a value; out of the type's range is clamped to its ends, never wrapped.

        nan gives the unimplemented value.
        """
        if self.type == "string":
            return str(value).encode()[: 2 * self.count].ljust(2 * self.count, b"\0")
        assert not isinstance(value, str)
        if value != value:
            raw = UNIMPLEMENTED[self.type]
        else:
            signed = self.type in ("int16", "int32")
            bits = 16 * self.count
            top = (1 << bits - 1) - 1 if signed else (1 << bits) - 1
            bottom = -(1 << bits - 1) + 1 if signed else 0
            raw = min(top, max(bottom, round(value / self.scale)))
        return CODERS[self.type].pack(raw)

    def raw(self, data: bytes | bytearray | memoryview) -> int:
        """The integer in `data`, the point's own bytes."""
        number: int = CODERS[self.type].unpack(data)[0]
        return number

    def decode(self, data: bytes | bytearray | memoryview) -> float | str:
        """The value in `data`: a string, an int when the scale is 1, else a float; nan when unimplemented."""
        if self.type == "string":
            return bytes(data).rstrip(b"\0").decode(errors="replace")
        raw = self.raw(data)
        if raw == self.unimplemented:
            return float("nan")
        return raw if self.scale == 1.0 else raw * self.scale


def width(type_: Kind) -> int:
    """Registers of a numeric type."""
    return CODERS[type_].size // 2


CSV_HEADER = "device_id,address,count,name,type,scale,unit,access,min,max,description"


def to_csv(points: Iterable[Point]) -> str:
    """The map as integrators and outside checks read it: `value = raw * scale`, PDU addresses."""
    lines = [CSV_HEADER]
    for p in points:
        low = "" if p.low is None else f"{p.low:.10g}"
        high = "" if p.high is None else f"{p.high:.10g}"
        doc = p.doc
        if p.values is not None:
            doc += " (" + " ".join(f"{v.value}={v.name}" for v in p.values) + ")"
        doc = doc.replace('"', "'")
        lines.append(
            f'{p.device_id},{p.address},{p.count},{p.name},{p.type},{p.scale:g},{p.unit},{p.access},{low},{high},"{doc}"'
        )
    return "\n".join(lines) + "\n"
