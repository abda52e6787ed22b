"""Boards as data: one TOML file a board says which kernel line is which line of ours, and which converter reads a loop.

Every line of drivers/board.py's table is in the file or named under `absent`; a file of before the key switch has no
local_remote, which is then absent. A gpiochip gives a line to one process
only, so kill_switch, tamper and reset_button have two lines each: `inputs` for the controller, `guard_inputs` for the
guard. That keeps the two channels apart down to the terminal; one contact may be wired to both.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from .board import INPUTS, OUTPUTS, BoardError
from .gpiochip import Bias, Device, Where
from .loops import LOOPS
from .watchdog import SHORTEST_S

T = TypeVar("T")
Converter = Literal["ads1115", "mcp3208"]
Drive = Literal["default", "open_drain", "open_source"]

_SHIPPED = Path(__file__).parent / "boards"
_KEY = "local_remote"
_MAY_BE_ABSENT = re.compile(rf"interlock_[1-8]|{_KEY}|led_\w+")
_LARGEST_LINE = 1023
_LARGEST_DEBOUNCE_US = 50_000
_LONGEST_WATCHDOG_S = 300
GUARD_TICK_MS = 2.5
_LONGEST_TICK_MS = 25.0  # the alive relay falls out 100 ms after the last pulse
LOOPS_MS, _LONGEST_LOOPS_MS = 20, 500
ADS1115_RANGES_V = (6.144, 4.096, 2.048, 1.024, 0.512, 0.256)
"""Programmable full-scale ranges, ADS111x data sheet SBAS444, table 8-3."""
MUST_SEE_MA = 21.0 * 1.02
"""NE43 calls more than 21 mA a fault; 2 % are the tolerances of shunt and reference."""


class LineSpec(NamedTuple):
    """A kernel line. `active_low`: the low level means 1 in drivers/board.py's terms."""

    chip: str
    offset: int
    bias: Bias = "default"
    active_low: bool = False
    debounce_us: int = 0
    drive: Drive = "default"


class AdcSpec(NamedTuple):
    """A converter. `full_scale_v` is the largest voltage that it can tell from a larger one."""

    kind: Converter
    device: Device
    range_v: float
    full_scale_v: float
    address: int = 0  # I2C
    speed_hz: int = 0  # SPI


class LoopSpec(NamedTuple):
    """A 4-20 mA loop: a converter's single-ended channel across a shunt."""

    adc: str
    channel: int
    shunt_ohm: float


class WatchdogSpec(NamedTuple):
    """The machine's hardware watchdog."""

    device: str
    timeout_s: int


@dataclass(frozen=True, slots=True)
class BoardFile:
    """A checked board file. The bench has no chips: its lines are the simulator's."""

    path: Path
    title: str
    is_bench: bool
    chips: Mapping[str, Device]
    inputs: Mapping[str, LineSpec]
    guard_inputs: Mapping[str, LineSpec]
    outputs: Mapping[str, LineSpec]
    absent: frozenset[str]
    adcs: Mapping[str, AdcSpec]
    loops: Mapping[int, LoopSpec]
    watchdog: WatchdogSpec | None
    guard_tick_ms: float = GUARD_TICK_MS
    """Period of the guard; longer on boards whose lines are slow. A scan period is at least two of them."""
    loops_ms: int = LOOPS_MS
    """Period of a round through the loops; longer on boards whose buses are slow."""


class _Table:
    """One table of the file; every entry is taken once and what is left is refused."""

    def __init__(self, path: Path, name: str, values: object) -> None:
        self.path, self.name = path, name
        if not isinstance(values, dict):
            raise BoardError(f"board {path}: {name} = {values!r}: allowed is a table")
        self._left: dict[str, Any] = dict(values)
        self.names = tuple(self._left)

    def refused(self, entry: str, value: object, allowed: str) -> BoardError:
        where = f"{self.name}.{entry}".lstrip(".")
        return BoardError(f"board {self.path}: {where} = {value!r}: allowed is {allowed}")

    def table(self, entry: str) -> _Table:
        """A table in this one; empty when it is not there."""
        return _Table(self.path, f"{self.name}.{entry}".lstrip("."), self._left.pop(entry, {}))

    def text(self, entry: str) -> str:
        value = self._left.pop(entry, None)
        if not isinstance(value, str) or not value:
            raise self.refused(entry, value, "a text")
        return value

    def one_of(self, entry: str, choices: tuple[T, ...], default: T | None = None) -> T:
        value = self._left.pop(entry, default)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise self.refused(entry, value, "one of " + ", ".join(map(repr, choices)))

    def whole(self, entry: str, low: int, high: int, default: int | None = None) -> int:
        value = self._left.pop(entry, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refused(entry, value, f"a whole number from {low} to {high}")
        return value

    def number(self, entry: str, low: float, high: float, default: float | None = None) -> float:
        value = self._left.pop(entry, default)
        if type(value) not in (int, float) or not low <= cast(float, value) <= high:
            raise self.refused(entry, value, f"a number from {low} to {high}")
        return float(cast(float, value))

    def texts(self, entry: str) -> tuple[str, ...]:
        value = self._left.pop(entry, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.refused(entry, value, "a list of texts")
        return tuple(value)

    def end(self, allowed: str) -> None:
        for entry, value in self._left.items():
            raise self.refused(entry, value, f"nothing of that name; known are {allowed}")


def load(name_or_path: str) -> BoardFile:
    """The shipped board of that name, or the file at a path ending in .toml. Raises BoardError."""
    path = Path(name_or_path) if name_or_path.endswith(".toml") else _SHIPPED / f"{name_or_path}.toml"
    try:
        top = _Table(path, "", tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise BoardError(f"board {path} does not exist; give a path ending in .toml or one of: {shipped()}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BoardError(f"board {path}: {error}") from error
    return _board(path, top)


def shipped() -> str:
    """Names of the boards that come with the package."""
    return ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def _board(path: Path, top: _Table) -> BoardFile:
    is_bench = top.one_of("kind", ("gpiochip", "bench")) == "bench"
    title, _ = top.text("title"), top.texts("sources")
    watchdog = _watchdog(top.table("watchdog"))
    if is_bench:
        top.end("kind, title, sources, watchdog")
        return BoardFile(path, title, True, {}, {}, {}, {}, frozenset(), {}, {}, watchdog)
    absent, tick_ms = _absent(top), top.number("guard_tick_ms", GUARD_TICK_MS, _LONGEST_TICK_MS, GUARD_TICK_MS)
    loops_ms = top.whole("loops_ms", LOOPS_MS, _LONGEST_LOOPS_MS, LOOPS_MS)
    chips = _chips(top.table("chips"))
    edges = tuple(line.name for line in INPUTS if line.edges)
    input_table = top.table("inputs")
    if _KEY not in input_table.names:
        absent |= {_KEY}
    inputs = _lines(input_table, tuple(line.name for line in INPUTS), absent, chips, _input)
    guard_inputs = _lines(top.table("guard_inputs"), edges, frozenset(), chips, _input)
    outputs = _lines(top.table("outputs"), tuple(line.name for line in OUTPUTS), absent, chips, _output)
    _no_line_twice(path, inputs, guard_inputs, outputs)
    adcs = _adcs(top.table("adcs"))
    loops = _loops(top.table("loops"), adcs)
    known = "chips, inputs, guard_inputs, outputs, adcs, loops, watchdog"
    top.end(f"kind, title, sources, absent, guard_tick_ms, loops_ms, {known}")
    return BoardFile(
        path, title, False, chips, inputs, guard_inputs, outputs, absent, adcs, loops, watchdog, tick_ms, loops_ms
    )


def _watchdog(table: _Table) -> WatchdogSpec | None:
    if not table.names:
        return None
    found = WatchdogSpec(table.text("device"), table.whole("timeout_s", SHORTEST_S, _LONGEST_WATCHDOG_S))
    table.end("device, timeout_s")
    return found


def _absent(top: _Table) -> frozenset[str]:
    names = top.texts("absent")
    for name in names:
        if not _MAY_BE_ABSENT.fullmatch(name) or name not in {line.name for line in (*INPUTS, *OUTPUTS)}:
            raise top.refused("absent", name, "interlock_1 to interlock_8, local_remote and the LEDs only")
    return frozenset(names)


def _device(table: _Table, by: tuple[Where, ...]) -> Device:
    named = [where for where in by if where in table.names]
    if len(named) != 1:
        raise table.refused("", list(table.names), f"exactly one of {', '.join(by)}")
    return Device(named[0], table.text(named[0]))


def _chips(table: _Table) -> dict[str, Device]:
    chips = {}
    for name in table.names:
        entry = table.table(name)
        chips[name] = _device(entry, get_args(Where))
        entry.end(", ".join(get_args(Where)))
    return chips


def _lines(
    table: _Table, wanted: tuple[str, ...], absent: frozenset[str], chips: Mapping[str, Device], read: Any
) -> dict[str, LineSpec]:
    found = {}
    for name in wanted:
        if name in absent:
            continue
        if name not in table.names:
            raise table.refused(name, None, "a line { chip = ..., line = ... }, or its name under absent")
        entry = table.table(name)
        chip = entry.one_of("chip", tuple(chips))
        found[name] = read(entry, chip, entry.whole("line", 0, _LARGEST_LINE))
    table.end(", ".join(name for name in wanted if name not in absent))
    return found


def _input(entry: _Table, chip: str, offset: int) -> LineSpec:
    bias = entry.one_of("bias", get_args(Bias), "default")
    active_low = entry.one_of("active_low", (False, True), False)
    debounce_us = entry.whole("debounce_us", 0, _LARGEST_DEBOUNCE_US, 0)
    entry.end("chip, line, bias, active_low, debounce_us")
    return LineSpec(chip, offset, bias, active_low, debounce_us)


def _output(entry: _Table, chip: str, offset: int) -> LineSpec:
    """`safe` says once more in volts what `active_low` means, so that a slip in the polarity is found here."""
    active_low = entry.one_of("active_low", (False, True), False)
    drive = entry.one_of("drive", get_args(Drive), "default")
    safe, right = entry.one_of("safe", ("low", "high")), "high" if active_low else "low"
    if safe != right:
        raise entry.refused(
            "safe", safe, f"{right!r}: with active_low = {str(active_low).lower()} it would be energised"
        )
    entry.end("chip, line, active_low, drive, safe")
    return LineSpec(chip, offset, active_low=active_low, drive=drive)


def _no_line_twice(path: Path, *tables: Mapping[str, LineSpec]) -> None:
    used: dict[tuple[str, int], str] = {}
    for kind, table in zip(("inputs", "guard_inputs", "outputs"), tables, strict=True):
        for name, spec in table.items():
            before = used.setdefault((spec.chip, spec.offset), f"{kind}.{name}")
            if before != f"{kind}.{name}":
                raise BoardError(
                    f"board {path}: {kind}.{name} = chip {spec.chip!r} line {spec.offset}: {before} has that line; "
                    "allowed is a line of its own"
                )


def _adcs(table: _Table) -> dict[str, AdcSpec]:
    adcs = {}
    for name in table.names:
        entry = table.table(name)
        adcs[name] = _ads1115(entry) if entry.one_of("kind", get_args(Converter)) == "ads1115" else _mcp3208(entry)
    return adcs


def _ads1115(entry: _Table) -> AdcSpec:
    device = _device(entry, ("path", "usb_serial"))
    range_v, supply_v = entry.one_of("range_v", ADS1115_RANGES_V), entry.number("supply_v", 2.0, 5.5)
    address = entry.whole("address", 0x48, 0x4B)
    entry.end("kind, path or usb_serial, address, range_v, supply_v")
    return AdcSpec("ads1115", device, range_v, min(range_v * 32767 / 32768, supply_v), address=address)


def _mcp3208(entry: _Table) -> AdcSpec:
    device, reference_v = _device(entry, ("path",)), entry.number("reference_v", 0.25, 5.5)
    speed_hz = entry.whole("speed_hz", 10_000, 2_000_000)
    entry.end("kind, path, reference_v, speed_hz")
    return AdcSpec("mcp3208", device, reference_v, reference_v * 4095 / 4096, speed_hz=speed_hz)


def _loops(table: _Table, adcs: Mapping[str, AdcSpec]) -> dict[int, LoopSpec]:
    loops: dict[int, LoopSpec] = {}
    used: dict[tuple[str, int], int] = {}
    numbers = tuple(str(number) for number in range(1, LOOPS + 1))
    for number in (number for number in numbers if number in table.names):
        entry = table.table(number)
        adc = entry.one_of("adc", tuple(adcs))
        channel = entry.whole("channel", 0, 3 if adcs[adc].kind == "ads1115" else 7)
        if used.setdefault((adc, channel), int(number)) != int(number):
            raise entry.refused("channel", channel, f"a channel of its own; loop {used[adc, channel]} has this one")
        loops[int(number)] = LoopSpec(adc, channel, _shunt(entry, adcs[adc]))
        entry.end("adc, channel, shunt_ohm")
    table.end(f"the loops {numbers[0]} to {numbers[-1]}")
    return loops


def _shunt(entry: _Table, adc: AdcSpec) -> float:
    shunt_ohm = entry.number("shunt_ohm", 1.0, 1000.0)
    sees_ma = adc.full_scale_v / shunt_ohm * 1000.0
    if sees_ma < MUST_SEE_MA:
        largest_ohm = adc.full_scale_v / MUST_SEE_MA * 1000.0
        raise entry.refused(
            "shunt_ohm", shunt_ohm, f"at most {largest_ohm:.1f} ohm; this one shows no more than {sees_ma:.2f} mA, and "
            "21 mA with 2 % tolerance must be seen (NAMUR NE43)",
        )  # fmt: skip
    return shunt_ohm
