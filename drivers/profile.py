"""Register profiles: what another make of BMS or PCS needs is a data file, not code.

A profile (`drivers/profiles/*.toml`, or any path) names the device's identity, its unit ids, and where each value is.
`value = raw * scale * sign + offset`. The aggregator decodes with it, the bench serves the same registers with it.
"""

from __future__ import annotations

import struct
import tomllib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

_NAN = float("nan")
MAX_REGISTERS = 125
"""One read (MODBUS Application Protocol V1.1b3, 6.3)."""

Type = Literal["uint16", "int16", "uint32", "int32", "raw16", "raw32"]
WordOrder = Literal["high_first", "low_first"]


class _Code(NamedTuple):
    struct: struct.Struct
    low: int
    high: int
    sentinel: int | None  # "not measured"

    @property
    def letter(self) -> str:
        """Of the struct, for several in a row."""
        return self.struct.format[-1]


_CODES: dict[str, _Code] = {
    "uint16": _Code(struct.Struct(">H"), 0, 0xFFFE, 0xFFFF),
    "int16": _Code(struct.Struct(">h"), -0x7FFF, 0x7FFF, -0x8000),
    "uint32": _Code(struct.Struct(">I"), 0, 0xFFFFFFFE, 0xFFFFFFFF),
    "int32": _Code(struct.Struct(">i"), -0x7FFFFFFF, 0x7FFFFFFF, -0x80000000),
    "raw16": _Code(struct.Struct(">H"), 0, 0xFFFF, None),
    "raw32": _Code(struct.Struct(">I"), 0, 0xFFFFFFFF, None),
}

REQUIRED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "bms": (
        frozenset({"string_v", "string_a", "soc_pct", "soh_pct", "charge_limit_a", "discharge_limit_a"}),
        frozenset({"cell_v", "cell_c", "balancing"}),
    ),
    "pcs": (
        frozenset(
            {"state", "fault_bits", "dc_v", "dc_a", "ac_w", "ac_hz", "charge_max_a", "discharge_max_a", "run"}
            | {"setpoint_a"}
        ),
        frozenset(),
    ),
}
"""Kind -> points and arrays that a profile must have. The others are optional."""


class ProfileError(ValueError):
    """A profile cannot be used; the message names file, entry, value and what is allowed."""


_Register = Annotated[int, Meta(ge=0, le=0xFFFF)]
_Positive = Annotated[float, Meta(gt=0.0)]


class _Table(Struct, frozen=True):
    """A table of the file; `_table` reads it."""


class ProfilePoint(_Table, frozen=True, kw_only=True):
    """One value. `raw16` and `raw32` are bit fields and counters: they have no "not measured" value."""

    address: _Register
    type: Type
    scale: _Positive = 1.0
    offset: float = 0.0
    sign: Literal[1, -1] = 1  # -1: the device counts charge as +
    word_order: WordOrder | None = None  # None: the profile's
    unit: str = ""
    access: Literal["R", "RW"] = "R"

    @property
    def count(self) -> int:
        """Registers."""
        return _CODES[self.type].struct.size // 2

    @property
    def end(self) -> int:
        """First address after the point."""
        return self.address + self.count


class ProfileArray(_Table, frozen=True, kw_only=True):
    """One value a cell in cell order; `bits` packs 16 cells a register, the first in bit 0."""

    address: _Register
    type: Literal["uint16", "int16", "bits"]
    scale: _Positive = 1.0
    offset: float = 0.0
    unit: str = ""
    sentinels: list[Annotated[int, Meta(ge=-0x8000, le=0xFFFF)]] = []  # "not measured", besides the type's own
    max_cells: Annotated[int, Meta(ge=1, le=0xFFFF)]

    def registers(self, cells: int) -> int:
        """Registers that `cells` cells take. Raises ProfileError when they do not fit the map."""
        if not 0 < cells <= self.max_cells:
            raise ProfileError(f"{cells} cells a string do not fit {self.address:#06x}: allowed 1..{self.max_cells}")
        return -(-cells // 16) if self.type == "bits" else cells

    def blocks(self, cells: int) -> tuple[tuple[int, int], ...]:
        """(address, count) of the reads that fetch `cells` cells."""
        end = self.address + self.registers(cells)
        return tuple((at, min(MAX_REGISTERS, end - at)) for at in range(self.address, end, MAX_REGISTERS))

    @property
    def missing(self) -> frozenset[int]:
        """What `raw` has for a cell that was not measured. A sentinel may be written with its sign or as a register."""
        words = [word & 0xFFFF for word in (*self.sentinels, _CODES[self.type].sentinel or 0xFFFF)]
        return frozenset(self.raw(struct.pack(f">{len(words)}H", *words)))

    def raw(self, data: bytes) -> tuple[int, ...]:
        """The numbers in wire bytes, one a cell."""
        return struct.unpack(f">{len(data) // 2}{_CODES[self.type].letter}", data)

    def value(self, raw: float) -> float:
        """What a number of `raw`, or a mean of several, stands for."""
        return raw * self.scale + self.offset

    def decode(self, data: bytes) -> list[float]:
        """Values of wire bytes; nan where the device says "not measured"."""
        missing = self.missing
        return [_NAN if raw in missing else self.value(raw) for raw in self.raw(data)]

    def encode(self, values: Iterable[float]) -> bytes:
        """Wire bytes of one value a cell (bool for bits); out of range is clamped, nan is "not measured"."""
        values = [*values]
        if self.type == "bits":
            number = sum(1 << cell for cell, on in enumerate(values) if on)
            return _swapped(number.to_bytes(-(-len(values) // 16) * 2, "little"))
        _, low, high, sentinel = code = _CODES[self.type]
        scaled = [(value - self.offset) / self.scale for value in values]
        raw = [round(v) if low <= v <= high else sentinel if v != v else low if v < low else high for v in scaled]
        return struct.pack(f">{len(raw)}{code.letter}", *raw)


def cell_bits(data: bytes) -> int:
    """The registers of a `bits` array as one number: cell n, from 0, is bit n."""
    return int.from_bytes(_swapped(data), "little")


def _swapped(data: bytes) -> bytes:
    """Every register with its two bytes the other way round."""
    words = array("H", data)
    words.byteswap()
    return words.tobytes()


class Identity(_Table, frozen=True, kw_only=True):
    """Who must answer: FC43/14 objects 0 and 1, or a register with a known value for devices without FC43."""

    vendor: str | None = None
    product: str | None = None
    address: _Register | None = None
    value: _Register | None = None

    def __post_init__(self) -> None:
        by_objects = self.vendor is not None and self.product is not None
        by_register = self.address is not None and self.value is not None
        if by_objects == by_register:
            raise ValueError("give either vendor and product, or address and value")


class Line(_Table, frozen=True, kw_only=True):
    """How frames travel. With "rtu" the host in site.conf is a gateway, or a serial line such as /dev/ttyS0."""

    framing: Literal["tcp", "rtu"] = "tcp"
    baud: Annotated[int, Meta(ge=1200, le=1_000_000)] = 9600  # of a serial line
    parity: Literal["none", "even", "odd"] = "even"
    transactions: Annotated[int, Meta(ge=1, le=16)] = 1  # requests that the device takes in before it answers the first

    def __post_init__(self) -> None:
        if self.framing == "rtu" and self.transactions > 1:
            raise ValueError(
                f'transactions = {self.transactions}: with framing = "rtu" leave it out, answers have none'
            )


class Heartbeats(_Table, frozen=True, kw_only=True):
    """Names of the points that beat; each may be left out."""

    read: str | None = None  # the device's, we watch it
    write: str | None = None  # ours, the device watches it


class _Decoder(NamedTuple):
    """How one point is read out of its block."""

    name: str
    unpack_from: Callable[[bytes, int], tuple[int]]
    at: int  # bytes from the block's first
    factor: float
    offset: float
    sentinel: int | None


@dataclass(frozen=True, slots=True)
class Block:
    """One read or write request and the points in it. Made by `Profile.blocks`."""

    address: int
    count: int
    decoders: tuple[_Decoder, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(decoder.name for decoder in self.decoders)


class Profile(_Table, frozen=True, kw_only=True):
    """A device's map. Made by `load`."""

    kind: Literal["bms", "pcs"]
    description: str
    first_unit: Annotated[int, Meta(ge=1, le=247)] = 1  # BMS: string n is unit first_unit + n
    read_function: Literal[3, 4] = 3
    word_order: WordOrder = "high_first"
    max_gap: Annotated[int, Meta(ge=0, le=MAX_REGISTERS)] = 0  # unused registers that a read may bridge
    identity: Identity
    line: Line = Line()
    heartbeats: Heartbeats = Heartbeats()
    points: Mapping[str, ProfilePoint]
    arrays: Mapping[str, ProfileArray] = {}

    def __post_init__(self) -> None:
        points, arrays = REQUIRED[self.kind]
        missing = sorted((points - self.points.keys()) | (arrays - self.arrays.keys()))
        if missing:
            raise ValueError(f"a {self.kind} profile also needs {', '.join(missing)}")
        for beat in (self.heartbeats.read, self.heartbeats.write):
            if beat is not None and beat not in self.points:
                raise ValueError(f"heartbeat {beat!r} is not one of the points")
        ordered = sorted(self.points.items(), key=lambda item: item[1].address)
        for (name, point), (next_name, next_point) in pairwise(ordered):
            if point.end > next_point.address:
                raise ValueError(f"points {name} and {next_name} share register {next_point.address:#06x}")

    def unit(self, string: int) -> int:
        """Unit id of string `string`, 0 based."""
        return self.first_unit + string

    def encode(self, name: str, value: float) -> bytes:
        """Wire bytes of a point; out of the type's range is clamped, never wrapped, nan is "not measured"."""
        point = self.points[name]
        code = _CODES[point.type]
        if value != value:
            raw = code.sentinel or 0
        else:
            raw = min(code.high, max(code.low, round((value - point.offset) * point.sign / point.scale)))
        return self._ordered(point, code.struct.pack(raw))

    def decode(self, block: Block, data: bytes) -> dict[str, float]:
        """The values in a block's bytes; nan for "not measured"."""
        values = {}
        for name, unpack_from, at, factor, offset, sentinel in block.decoders:
            (raw,) = unpack_from(data, at)
            values[name] = _NAN if raw == sentinel else raw * factor + offset
        return values

    def blocks(self, names: Iterable[str], max_gap: int | None = None) -> tuple[Block, ...]:
        """The requests that read these points: neighbours merged over at most `max_gap` registers, <= 125 each.

        For a write `max_gap` is 0. Names the profile does not have are left out.
        """
        gap = self.max_gap if max_gap is None else max_gap
        made: list[Block] = []
        for name in sorted(self.points.keys() & set(names), key=lambda known: self.points[known].address):
            point = self.points[name]
            last = made[-1] if made else None
            if last and point.address - last.address - last.count <= gap and point.end - last.address <= MAX_REGISTERS:
                decoder = self._decoder(name, last.address)
                made[-1] = Block(last.address, point.end - last.address, (*last.decoders, decoder))
            else:
                made.append(Block(point.address, point.count, (self._decoder(name, point.address),)))
        return tuple(made)

    def _decoder(self, name: str, start: int) -> _Decoder:
        point = self.points[name]
        code, at = _CODES[point.type], 2 * (point.address - start)

        def low_first(data: bytes, at: int) -> Any:
            return code.struct.unpack(self._ordered(point, data[at : at + code.struct.size]))

        unpack_from: Any = low_first if self._low_first(point) else code.struct.unpack_from
        return _Decoder(name, unpack_from, at, point.sign * point.scale, point.offset, code.sentinel)

    def _low_first(self, point: ProfilePoint) -> bool:
        return (point.word_order or self.word_order) == "low_first"

    def _ordered(self, point: ProfilePoint, wire: bytes) -> bytes:
        return wire[2:] + wire[:2] if self._low_first(point) else wire


def load(name_or_path: str | Path) -> Profile:
    """The shipped profile of that name, or the file at that path. Raises ProfileError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = Path(__file__).parent / "profiles" / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in (Path(__file__).parent / "profiles").glob("*.toml")))
        raise ProfileError(f"profile {path} does not exist; give a path ending in .toml or one of: {known}") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: {error}") from error
    errors: list[str] = []
    profile = _table(Profile, table, "", errors)
    if profile is None:
        raise ProfileError("\n".join(f"profile {path}: {error}" for error in errors))
    return profile


T = TypeVar("T", bound=_Table)


def _table(kind: type[T], table: object, at: str, errors: list[str]) -> T | None:
    """A table with its tables; None when something is wrong in it, which `errors` then tell."""
    if not isinstance(table, dict):
        errors.append(f"{at} = {table!r}: a table is expected")
        return None
    known, before, taken = {entry.name: entry for entry in msgspec.structs.fields(kind)}, len(errors), dict[str, Any]()
    prefix = f"{at}." if at else ""
    for name, value in table.items():
        if name in known:
            taken[name] = _value(known[name].type, value, prefix + name, errors)
        else:
            errors.append(f"{prefix}{name} = {value!r}: unknown; allowed are {', '.join(known)}")
    missing = [name for name, entry in known.items() if entry.required and name not in table]
    errors += [f"{prefix}{name} is missing" for name in missing]
    if len(errors) > before:
        return None
    try:
        return kind(**taken)
    except ValueError as error:
        errors.append(f"{at}: {error}" if at else str(error))
        return None


def _value(kind: Any, value: object, at: str, errors: list[str]) -> Any:
    if isinstance(kind, type) and issubclass(kind, _Table):
        return _table(kind, value, at, errors)
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {name: _value(get_args(kind)[1], entry, f"{at}.{name}", errors) for name, entry in value.items()}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        choice = get_args(kind) if get_origin(kind) is Literal else ()
        errors.append(f"{at} = {value!r}: {error}{'; allowed are ' if choice else ''}{', '.join(map(str, choice))}")
        return None
