"""What the specification says about a byte stream, written a second time and differently: slowly, case by case."""

from __future__ import annotations

from collections.abc import Mapping

WRITES_TOO_LONG = 300  # MBAP length up to which a write with too many registers is still answered
SERVED = (3, 4, 6, 16, 20, 23, 43)


class Memory:
    """Registers of one unit: 0..limit-1 are there, those in `read_only` refuse writes."""

    def __init__(self, limit: int, read_only: frozenset[int], identity: Mapping[int, bytes]) -> None:
        self.registers = [0] * limit
        self.read_only, self.objects = read_only, identity


def exception(function: int, code: int) -> bytes:
    return bytes([function | 128, code])


def answer(memory: Memory, units: tuple[int, ...], unit: int, pdu: bytes) -> bytes:
    """The answer PDU to a request PDU."""
    function, body = pdu[0], pdu[1:]
    if function not in SERVED:
        return exception(function, 1)
    if unit not in units:
        return exception(function, 11)
    return {3: _read, 4: _read, 6: _write_one, 16: _write_many, 20: _files, 23: _both, 43: _identity}[function](
        memory, function, body
    )


def _word(data: bytes, at: int) -> int:
    return data[at] * 256 + data[at + 1]


def _registers(memory: Memory, address: int, count: int) -> bytes | int:
    if count == 0 or count > 125:
        return 3
    if address + count > len(memory.registers):
        return 2
    return b"".join(bytes([v // 256, v % 256]) for v in memory.registers[address : address + count])


def _read(memory: Memory, function: int, body: bytes) -> bytes:
    if len(body) != 4:
        return exception(function, 3)
    found = _registers(memory, _word(body, 0), _word(body, 2))
    return exception(function, found) if isinstance(found, int) else bytes([function, len(found)]) + found


def _set(memory: Memory, address: int, data: bytes) -> int:
    places = range(address, address + len(data) // 2)
    if places.stop > len(memory.registers) or memory.read_only.intersection(places):
        return 2
    for n, place in enumerate(places):
        memory.registers[place] = _word(data, 2 * n)
    return 0


def _write_one(memory: Memory, function: int, body: bytes) -> bytes:
    if len(body) != 4:
        return exception(6, 3)
    code = _set(memory, _word(body, 0), body[2:])
    return exception(6, code) if code else bytes([6]) + body


def _block(body: bytes, at: int, most: int) -> bytes | None:
    """The data of `count, size, data` at `at`; None when they contradict each other."""
    if len(body) < at + 3:
        return None
    count, size, data = _word(body, at), body[at + 2], body[at + 3 :]
    return data if 1 <= count <= most and size == 2 * count == len(data) else None


def _write_many(memory: Memory, function: int, body: bytes) -> bytes:
    data = _block(body, 2, 123)
    if data is None:
        return exception(16, 3)
    code = _set(memory, _word(body, 0), data)
    return exception(16, code) if code else bytes([16]) + body[:4]


def _both(memory: Memory, function: int, body: bytes) -> bytes:
    data = _block(body, 6, 121)
    if data is None:
        return exception(23, 3)
    before = _registers(memory, _word(body, 0), _word(body, 2))
    if isinstance(before, int):
        return exception(23, before)
    if code := _set(memory, _word(body, 4), data):
        return exception(23, code)
    after = _registers(memory, _word(body, 0), _word(body, 2))
    assert isinstance(after, bytes)
    return bytes([23, len(after)]) + after


def _files(memory: Memory, function: int, body: bytes) -> bytes:
    """File f has 50 registers for f = 1..5, register n of it is 256 f + n."""
    if not body or body[0] != len(body) - 1 or body[0] % 7 or not 7 <= body[0] <= 245:
        return exception(20, 3)
    asked = [body[at : at + 7] for at in range(1, len(body), 7)]
    counts = [_word(a, 5) for a in asked]
    if 0 in counts or sum(2 + 2 * c for c in counts) > 245:
        return exception(20, 3)
    if any(a[0] != 6 or _word(a, 1) == 0 or _word(a, 3) + _word(a, 5) > 10_000 for a in asked):
        return exception(20, 2)
    parts = b""
    for a, count in zip(asked, counts, strict=True):
        file, first = _word(a, 1), _word(a, 3)
        if file > 5 or first + count > 50:
            return exception(20, 2)
        parts += bytes([1 + 2 * count, 6]) + b"".join(bytes([file, n]) for n in range(first, first + count))
    return bytes([20, len(parts)]) + parts


def _identity(memory: Memory, function: int, body: bytes) -> bytes:
    if body and body[0] != 14:
        return exception(43, 1)
    if len(body) != 3 or body[1] not in (1, 2, 3, 4):
        return exception(43, 3)
    code, first = body[1], body[2]
    objects = memory.objects
    if code == 4:
        if first not in objects:
            return exception(43, 2)
        return bytes([43, 14, 4, 0x82, 0, 0, 1, first, len(objects[first])]) + objects[first]
    numbers = sorted(n for n in objects if n <= (2 if code == 1 else 6))
    if first in numbers:
        numbers = [n for n in numbers if n >= first]
    listed = b"".join(bytes([n, len(objects[n])]) + objects[n] for n in numbers)
    return bytes([43, 14, code, 0x82, 0, 0, len(numbers)]) + listed


def stream(memory: Memory, units: tuple[int, ...], data: bytes) -> tuple[bytes, bool]:
    """All answers to a stream from its beginning, and whether the connection lives on."""
    said = b""
    while data:
        if len(data) >= 4 and data[2:4] != b"\0\0" and len(data) >= 6:
            return said, False
        if len(data) < 6:
            return said, True
        length = _word(data, 4)
        if length < 2:
            return said, False
        if length > 254 and (length > WRITES_TOO_LONG or (len(data) > 7 and data[7] not in (16, 23))):
            return said, False
        if len(data) < 6 + length:
            return said, True
        pdu = answer(memory, units, data[6], data[7 : 6 + length])
        said += data[:4] + bytes([(len(pdu) + 1) // 256, (len(pdu) + 1) % 256, data[6]]) + pdu
        data = data[6 + length :]
    return said, True
