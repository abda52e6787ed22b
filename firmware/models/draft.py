"""How a table of points is written down, where its values come from, and how it gets its addresses."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from enum import IntEnum
from math import nan
from typing import Any, NamedTuple

from drivers.modbus.point import Kind, Point, width
from statemachine.settings import Settings
from statemachine.signals import Bms, Clock, Guard, Pcs

from ..image import Links, Status, Update

UNIT, BASE = 1, 40000
VENDOR_MODEL = 64990
_PAD = b"\x80\x00"
_BITFIELD = 0x7FFFFFFF
"""SunSpec: in a bitfield32 whose highest bit is set nothing counts."""


class Own(NamedTuple):
    """What the server itself adds."""

    beat: int  # counts up once a second while the controller is alive
    why: int  # Why of the last refused write; 0 after the next accepted command
    address: int  # register at fault of the last refused write
    freeze_frames: int  # kept on this unit
    tls_days: float = nan  # until the server's certificate ends
    comm_state: int = 0  # CommState
    comm_seen: float = nan  # bits as in Interlocks
    comm_missing: float = nan


class Sources(NamedTuple):
    """Everything a register can come from. None: never received, or stale."""

    status: Status | None
    bms: Bms | None
    pcs: Pcs | None
    links: Links | None
    guard: Guard | None
    settings: Settings | None
    clock: Clock | None
    own: Own
    update: Update | None = None


class Row(NamedTuple):
    """One point and where its value comes from. `group` is the Sources field that makes it change; "" = never."""

    point: Point
    group: str
    value: Callable[[Sources], float | str] | None  # None: `fixed`, or (access RW) what was written last
    fixed: float | str
    reserve: bool = False


def of_settings(rule: Callable[[Settings], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.settings is None else rule(s.settings)


def of_bms(rule: Callable[[Bms], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.bms is None else rule(s.bms)


def of_pcs(rule: Callable[[Pcs], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.pcs is None else rule(s.pcs)


def of_status(rule: Callable[[Status], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.status is None else rule(s.status)


def of_links(rule: Callable[[Links], float]) -> Callable[[Sources], float]:
    return lambda s: nan if s.links is None else rule(s.links)


_SECTIONS: dict[str, type[tuple[Any, ...]]] = {
    "status": Status, "bms": Bms, "pcs": Pcs, "links": Links, "guard": Guard, "clock": Clock, "own": Own,
    "update": Update,
}  # fmt: skip


def path(source: str) -> Callable[[Sources], Any]:
    """The field that `section.field` names. Raises at import when there is none."""
    section, _, field = source.partition(".")
    outer = Sources._fields.index(section)
    inner = list(_SECTIONS[section].__annotations__).index(field)
    return lambda s: nan if s[outer] is None else s[outer][inner]  # type: ignore[index]


def shown(first: int) -> Callable[[Status], float]:
    """Active or latched faults `first` .. `first` + 30."""
    return lambda status: (status.faults_active | status.faults_latched) >> first & _BITFIELD


def active(first: int) -> Callable[[Status], float]:
    """Active faults `first` .. `first` + 30."""
    return lambda status: status.faults_active >> first & _BITFIELD


class Draft(NamedTuple):
    """A row before it has its address."""

    name: str
    type: Kind
    doc: str
    source: str = ""
    of: Callable[[Sources], float | str] | None = None
    unit: str = ""
    scale: float = 1.0
    span: tuple[float, float] | None = None  # makes the point writable
    values: builtins.type[IntEnum] | None = None
    writable: bool = False
    fixed: float | str = nan
    words: int = 0
    reserve: bool = False


def not_implemented(kind: Kind, names: str) -> list[Draft]:
    return [Draft(name, kind, "not implemented") for name in names.split()]


def sf(name: str, exponent: float) -> Draft:
    return Draft(name, "int16", "scale factor, power of ten", fixed=exponent)


def text(name: str, words: int, doc: str, text: str = "") -> Draft:
    return Draft(name, "string", doc, fixed=text, words=words)


def reserve(name: str, words: int) -> Draft:
    return Draft(name, "int16", "reserve, reads 0x8000", words=words, reserve=True)


SHARED = frozenset((
    "A", "A_SF", "CellV_SF", "CellVMax", "CellVMin", "CtrlHb", "Hz_SF", "LocRemCtl", "PF_SF", "SoC", "SoC_SF", "SoH",
    "SoH_SF", "State", "Tmp_SF", "V", "V_SF", "VA_SF", "Var_SF", "VMax", "VMin", "W", "W_SF", "WChaRteMax",
    "WDisChaRteMax", "WHRtg", "Ena", "RvrtTms", "RvrtRem", "RvrtCtl",
))  # fmt: skip
"""Names that more than one model of the map (1, 701-704, 711, 713-715, 802, 803, vendor) uses, or that say too little
without their model."""
_PLAIN = (("802", "WChaRteMax"), ("802", "WDisChaRteMax"))
"""Published under their plain names before 702 was served."""


def _name(name: str, model: str, unit: int) -> str:
    shared = name in SHARED and model != str(VENDOR_MODEL) and (model, name) not in _PLAIN
    return f"{model}.{name}" if shared or name in ("ID", "L") or unit != UNIT else name


def _place(draft: Draft, model: str, address: int, unit: int) -> Row:
    """On other units than 1 every name carries its model."""
    words = draft.words or width(draft.type)
    low, high = draft.span or (None, None)
    writable = draft.writable or draft.span is not None
    if draft.values is not None and writable:
        low, high = min(draft.values), max(draft.values)
    point = Point(
        _name(draft.name, model, unit), address, draft.type, draft.doc, words, draft.scale, draft.unit,
        "RW" if writable else "R", low, high, draft.values, unit,
    )  # fmt: skip
    value = draft.of or (path(draft.source) if "." in draft.source else None)
    return Row(point, draft.source.partition(".")[0], value, draft.fixed, draft.reserve)


def model(number: int, address: int, length: int, drafts: Iterable[Draft], label: str = "") -> list[Row]:
    """A whole SunSpec model, its header first."""
    rows = placed([*header(number, length), *drafts], label or str(number), address)
    at = rows[-1].point.end
    assert at == address + 2 + length, f"model {number} ends at {at}, not {address + 2 + length}"
    return rows


def header(number: int, length: int) -> list[Draft]:
    """What every model begins with."""
    return [
        Draft("ID", "uint16", "model id", fixed=number),
        Draft("L", "uint16", "model length without this header", fixed=length),
    ]


def placed(drafts: Iterable[Draft], label: str, address: int, unit: int = UNIT) -> list[Row]:
    """Rows one behind the other, the first at `address`."""
    rows: list[Row] = []
    for draft in drafts:
        rows.append(_place(draft, label, rows[-1].point.end if rows else address, unit))
    return rows


def marker(address: int, unit: int = UNIT) -> Row:
    """What a SunSpec map begins with."""
    return Row(Point("SunS", address, "uint32", "SunSpec marker", 2, device_id=unit), "", None, 0x53756E53)


def end(address: int, unit: int = UNIT) -> list[Row]:
    """What a SunSpec map ends with."""
    return [
        Row(Point("End.ID", address, "uint16", "end marker", device_id=unit), "", None, 0xFFFF),
        Row(Point("End.L", address + 1, "uint16", "end marker, length 0", device_id=unit), "", None, 0),
    ]


def encoded(rows: Iterable[Row]) -> bytearray:
    """Registers before anything is known: fixed values, start values, else not implemented."""
    return bytearray().join(_PAD * row.point.count if row.reserve else row.point.encode(row.fixed) for row in rows)
