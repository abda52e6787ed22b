"""Modbus RTU framing without I/O, for devices behind a serial line or a serial-to-Ethernet gateway.

MODBUS over Serial Line V1.02, 2.5.1: unit, PDU, CRC-16 low byte first. An answer carries no transaction number: one
that comes late looks like the next one. So whoever uses this throws away what nobody asked for, and after an error lets
a turnaround pass before it asks again.
"""

from __future__ import annotations

from .adu import FramingError

TURNAROUND_S = 0.1
"""The shortest turnaround that the specification gives as usual (V1.02, 2.4.1)."""
_POLYNOMIAL = 0xA001


class CrcError(FramingError):
    """The answer was damaged on its way."""


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [_entry(byte) for byte in range(256)]


def crc(data: bytes) -> bytes:
    """CRC-16 as it stands on the line (V1.02, 6.2.2)."""
    value = 0xFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value.to_bytes(2, "little")


def answer_length(held: bytes) -> int | None:
    """Bytes of the whole answer that begins so, None while that cannot be told. FramingError: none that we ask for."""
    if len(held) < 3:
        return None
    function = held[1]
    if function & 0x80:
        return 5
    if function in (3, 4, 23):
        return 5 + held[2]
    if function in (6, 16):
        return 8
    if function == 43:
        return _identity_length(held)
    raise FramingError(f"function {function}, which was not asked for")


def _identity_length(held: bytes) -> int | None:
    """FC43/14: a head of 8 bytes, then objects of number, length and text (V1.1b3, 6.21)."""
    at = 8
    for _ in range(held[7] if len(held) > 7 else 1):
        if len(held) < at + 2:
            return None
        at += 2 + held[at + 1]
    return at + 2


class RtuFraming:
    """Requests out, one answer in."""

    def __init__(self) -> None:
        self._held = b""

    def ask(self, unit: int, pdu: bytes) -> bytes:
        """The frame of a request."""
        self._held = b""
        body = bytes((unit,)) + pdu
        return body + crc(body)

    def feed(self, chunk: bytes) -> tuple[int, bytes] | None:
        """Unit and PDU when the answer is complete. Raises FramingError."""
        self._held += chunk
        length = answer_length(self._held)
        if length is None or len(self._held) < length:
            return None
        if len(self._held) > length:
            raise FramingError("more than one answer")
        if crc(self._held[:-2]) != self._held[-2:]:
            raise CrcError(f"an answer of {length} bytes with a wrong CRC")
        return self._held[0], self._held[1:-2]
