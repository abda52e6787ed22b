"""The latch cells alone: each fault against an oracle that was written from the manual's words, not from latch.py.

A cell sees four truths a scan (cause, acknowledge, reset, service press). Every sequence of them leads through few
distinct memories, so the product of cell and oracle is searched until nothing new is found: that covers every sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from rig import Rig

from statemachine import latch
from statemachine.core import Core, Memory
from statemachine.faults import FAULTS, Fault, Severity
from statemachine.settings import Settings
from statemachine.states import State
from statemachine.table import Bits


class Cell(NamedTuple):
    """One fault as a person would keep it on paper. Times in ms."""

    stood_ms: float = 0.0
    active: bool = False
    latched: bool = False
    acked: bool = False  # acknowledged since the cause is gone
    reset: bool = False
    service: bool = False


def by_hand(fault: Fault, was: Cell, cause: bool, ack: bool, reset: bool, service: bool, dt_ms: float) -> Cell:
    """STOP needs the acknowledge, TRIP the reset as well, LOCKOUT the service press: all after the cause is gone."""
    if cause:
        stood = was.stood_ms + dt_ms
        active = was.active or fault.confirm_ms == 0 or stood > fault.confirm_ms
        latched = was.latched or (active and fault.severity >= Severity.STOP)
        return Cell(stood, active, latched)
    if not was.latched:
        return Cell()
    acked, pressed, serviced = was.acked or ack, was.reset or reset, was.service or service
    if fault.severity is Severity.STOP and acked:
        return Cell()
    if fault.severity is Severity.TRIP and acked and pressed:
        return Cell()
    if fault.severity is Severity.LOCKOUT and acked and serviced:
        return Cell()
    return Cell(latched=True, acked=acked, reset=pressed, service=serviced)


def _seen(cells: latch.Latches, fault: Fault) -> Cell:
    def bit(mask: int) -> bool:
        return bool(mask >> fault.bit & 1)

    latched = bit(cells.latched)
    return Cell(
        dict(cells.standing_ms).get(fault.bit, 0.0), bit(cells.active), latched,
        latched and bit(cells.acked), latched and bit(cells.reset), latched and bit(cells.service),
    )  # fmt: skip


def _saturated(cells: latch.Latches, fault: Fault, top_ms: float) -> latch.Latches:
    assert all(bit == fault.bit for bit, _ in cells.standing_ms)
    return cells._replace(standing_ms=tuple((bit, min(stood, top_ms)) for bit, stood in cells.standing_ms))


def explore(fault: Fault, dt_ms: float) -> tuple[int, list[str]]:
    """(steps, differences with the sequence that shows the first) of one cell, over every sequence of inputs."""
    top_ms = fault.confirm_ms + 2 * dt_ms
    start = (latch.Latches(), Cell())
    came: dict[tuple[latch.Latches, Cell], str] = {start: ""}
    todo, steps = [start], 0
    for real, paper in todo:
        for cause, ack, reset, service in product((False, True), repeat=4):
            steps += 1
            after = latch.step(real, cause << fault.bit, dt_ms, ack, reset, service)
            expected = by_hand(fault, paper, cause, ack, reset, service, dt_ms)
            said = "".join(c for c, on in zip("CARS", (cause, ack, reset, service), strict=True) if on) or "-"
            way = f"{came[real, paper]} {said}"
            if _seen(after, fault) != expected:
                return steps, [f"{fault.name}, dt {dt_ms:g} ms, after{way}: {_seen(after, fault)}, manual: {expected}"]
            node = (_saturated(after, fault, top_ms), expected._replace(stood_ms=min(expected.stood_ms, top_ms)))
            if node not in came:
                came[node] = way
                todo.append(node)
    return steps, []


def independent() -> list[str]:
    """Two cells in one memory do what each does alone."""
    found = []
    inputs = list(product((False, True), repeat=5))  # cause of one, of the other, acknowledge, reset, service
    sample = {fault.severity: fault for fault in FAULTS if fault.confirm_ms == 0}
    pairs = [(a, b) for a in sample.values() for b in FAULTS if a.bit != b.bit]
    for a, b in pairs:
        for first, second in product(inputs, repeat=2):
            both, alone = latch.Latches(), [latch.Latches(), latch.Latches()]
            for x, y, *pressed in ((True, True, False, False, False), first, second):
                both = latch.step(both, x << a.bit | y << b.bit, 1e5, *pressed)
                alone[0] = latch.step(alone[0], x << a.bit, 1e5, *pressed)
                alone[1] = latch.step(alone[1], y << b.bit, 1e5, *pressed)
            if (_seen(both, a), _seen(both, b)) != (_seen(alone[0], a), _seen(alone[1], b)):
                found.append(f"{a.name} and {b.name} disturb each other")
    return found


def _confirm_ms(fault: Fault) -> int:
    """How long the cause stands until the real cell is active, at 1 ms a scan."""
    cells = latch.Latches()
    for ms in range(1, 100_000):
        cells = latch.step(cells, 1 << fault.bit, 1.0, False, False, False)
        if cells.active >> fault.bit & 1:
            return ms
    return -1


def _clears(fault: Fault) -> str:
    """What clears the latch, tried on the real cell."""
    on = latch.step(latch.Latches(), 1 << fault.bit, 1e6, False, False, False)
    gone = latch.step(on, 0, 10.0, False, False, False)
    if not gone.latched:
        return "itself"
    ways = sorted(product((False, True), repeat=3), key=sum)
    names = ("acknowledge", "reset", "service press")
    for pressed in ways:
        if not latch.step(gone, 0, 10.0, *pressed).latched:
            return " and ".join(name for name, on in zip(names, pressed, strict=True) if on)
    return "nothing"


class _Listener:
    """Stands in the place of the machine and keeps the bits."""

    bits: Bits

    def next(self, state: State, bits: Bits) -> State:
        self.bits = bits
        return state


def _bits_of(core: Core, listener: _Listener, inputs: object, memory: Memory) -> Bits:
    core.memory = memory
    core.step(inputs, 10.0)  # type: ignore[arg-type]
    return listener.bits


def _class(fault: Fault) -> str:
    """Which bit of the machine a latched fault raises, seen in a real scan of the core."""
    rig, listener = Rig().scan(50), _Listener()
    cells = latch.step(latch.Latches(), 1 << fault.bit, 1e6, False, False, False)
    rig.core._cmf = listener  # type: ignore[assignment]
    bits = _bits_of(rig.core, listener, rig.inputs(rig.coils), rig.core.memory._replace(latches=cells))
    return next((name for name in ("trip", "lockout", "stop") if getattr(bits, name)), "goes on")


def fault_line(fault: Fault) -> str:
    reaction = f"{_class(fault)} after {_confirm_ms(fault)} ms"
    return f"{fault.name} ({fault.severity.name}): {reaction}; cleared by {_clears(fault)}"


def _stay_ms(state: State, base: Memory, core: Core, listener: _Listener, inputs: object) -> float:
    """Longest stay by bisection over the real scan, to 1 ms; inf when there is none."""

    def over(ms: float) -> bool:
        return _bits_of(core, listener, inputs, base._replace(state=state, in_state_ms=ms)).timeout

    low, high = 0.0, 1e9
    if not over(high):
        return float("inf")
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if over(middle) else (middle, high)
    return round(high)


def stays(s: Settings) -> list[str]:
    """Time-out of each state as a scan of the core obeys it."""
    rig, listener = Rig(settings=s).scan(50), _Listener()
    rig.core._cmf = listener  # type: ignore[assignment]
    inputs, base = rig.inputs(rig.coils), rig.core.memory
    found = {state: _stay_ms(state, base, rig.core, listener, inputs) for state in State}
    return [f"{state.name}: leaves after {ms:.0f} ms" for state, ms in found.items() if ms < float("inf")]


def search(dts_ms: tuple[float, ...] = (5.0, 10.0)) -> Iterator[tuple[int, list[str]]]:
    """Every cell, at each scan period; a long confirm time in a hundred steps."""
    for fault in FAULTS:
        for dt_ms in dts_ms:
            yield explore(fault, max(dt_ms, fault.confirm_ms / 100.0))
