"""Modbus TCP framing without I/O: bytes in, whole ADUs out, or an error after which the connection is worth nothing.

MODBUS Messaging on TCP/IP Implementation Guide V1.0b, 3.1.3: transaction, protocol 0, length of what follows, unit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_LENGTH = 254
"""Largest MBAP length: unit and a PDU of 253 bytes."""
MAX_LENGTH_WRITE = 300
"""FC16 and FC23 with too many registers are still taken in, so that they can be answered with exception 03."""

Adu = tuple[int, int, bytes]
"""Transaction, unit, PDU."""

_HEADER = struct.Struct(">HHHB")
_PREFIX = struct.Struct(">HHH")
_WRITES = (16, 23)


class FramingError(ValueError):
    """What arrived is not Modbus TCP; close the connection."""


def frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    """The ADU of a PDU."""
    return _HEADER.pack(transaction, 0, 1 + len(pdu), unit) + pdu


def whole(data: bytes) -> Adu | None:
    """The ADU that `data` is. None when it is less, more, or none at all: an AduReader tells."""
    if len(data) < 8:
        return None
    transaction, protocol, length, unit = _HEADER.unpack_from(data)
    return (transaction, unit, data[7:]) if not protocol and length == len(data) - 6 <= MAX_LENGTH else None


class AduReader:
    """Cuts a byte stream into ADUs. `pending` tells that part of one is held."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[Adu]:
        """Yields the ADUs that `data` completes; exhaust it. Raises FramingError at the first byte that proves one."""
        data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 8:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, at)
            _check(protocol, length, MAX_LENGTH_WRITE if data[at + 7] in _WRITES else MAX_LENGTH)
            stop = at + 6 + length
            if stop > end:
                break
            yield transaction, unit, data[at + 7 : stop]
            at = stop
        self._rest = data[at:]
        if end - at >= 6:
            _, protocol, length = _PREFIX.unpack_from(data, at)
            _check(protocol, length, MAX_LENGTH_WRITE)


def _check(protocol: int, length: int, largest: int) -> None:
    if protocol:
        raise FramingError(f"protocol id {protocol}, allowed 0")
    if not 2 <= length <= largest:
        raise FramingError(f"MBAP length {length}, allowed 2..{MAX_LENGTH}")
