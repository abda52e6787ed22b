"""Streams of requests: right ones, nearly right ones, and what no client would send."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

EDGES = (0, 1, 2, 121, 122, 123, 124, 125, 126, 127, 245, 246, 254, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


class Grammar:
    """Seeded; `addresses` are those worth asking for."""

    def __init__(self, seed: int, addresses: tuple[int, ...], units: tuple[int, ...]) -> None:
        self._dice = random.Random(seed)
        self._addresses, self._units = addresses, units
        self._rules: tuple[Callable[[], bytes], ...] = (
            self._read, self._read, self._read, self._write_one, self._write_many, self._write_many, self._both,
            self._identity, self._files, self._noise,
        )  # fmt: skip

    def stream(self) -> tuple[bytes, int]:
        """Some ADUs one after the other, and how many."""
        count = self._dice.choice((1, 1, 1, 2, 3, 8))
        data = b"".join(self._adu() for _ in range(count))
        if self._dice.random() < 0.03:
            data = data[: self._dice.randrange(len(data) + 1)] + self._dice.randbytes(self._dice.randrange(12))
        return data, count

    def cut(self, data: bytes) -> list[bytes]:
        """The stream in segments as TCP may bring them."""
        if self._dice.random() < 0.6:
            return [data]
        at = sorted(self._dice.randrange(len(data) + 1) for _ in range(self._dice.randrange(1, 5)))
        return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]

    def _adu(self) -> bytes:
        pdu = self._dice.choice(self._rules)()
        if self._dice.random() < 0.15:
            pdu = self._bent(pdu)
        length = len(pdu) + 1
        if self._dice.random() < 0.02:
            length = max(0, length + self._dice.choice((-2, -1, 1, 2, 250, 60_000))) & 0xFFFF
        protocol = self._dice.choice(EDGES) if self._dice.random() < 0.005 else 0
        unit = self._dice.choice(self._units) if self._dice.random() < 0.95 else self._dice.randrange(256)
        return struct.pack(">HHHB", self._dice.randrange(0x10000), protocol, length, unit) + pdu

    def _bent(self, pdu: bytes) -> bytes:
        how, at = self._dice.randrange(4), self._dice.randrange(len(pdu))
        if how == 0:
            return pdu[: at + 1]
        if how == 1:
            return pdu + self._dice.randbytes(self._dice.randrange(1, 9))
        if how == 2:
            return pdu[:at] + bytes((pdu[at] ^ 1 << self._dice.randrange(8),)) + pdu[at + 1 :]
        return pdu[:at] + bytes((self._dice.choice(EDGES) & 0xFF,)) + pdu[at + 1 :]

    def _address(self) -> int:
        near = self._dice.choice(self._addresses) + self._dice.choice((0, 0, 0, -1, 1, 2))
        return (near if self._dice.random() < 0.9 else self._dice.choice(EDGES)) & 0xFFFF

    def _count(self) -> int:
        return self._dice.choice(EDGES) if self._dice.random() < 0.1 else self._dice.randrange(1, 20)

    def _read(self) -> bytes:
        return struct.pack(">BHH", self._dice.choice((3, 3, 3, 4)), self._address(), self._count())

    def _write_one(self) -> bytes:
        return struct.pack(">BHH", 6, self._address(), self._dice.choice((*EDGES, self._dice.randrange(0x10000))))

    def _data(self) -> tuple[int, bytes]:
        count = self._dice.choice((1, 2, 4, 11, 121, 122, 123, 124)) if self._dice.random() < 0.5 else 1
        return count, self._dice.randbytes(2 * count)

    def _write_many(self) -> bytes:
        count, data = self._data()
        return struct.pack(">BHHB", 16, self._address(), count, len(data) & 0xFF) + data

    def _both(self) -> bytes:
        count, data = self._data()
        return (
            struct.pack(">BHHHHB", 23, self._address(), self._count(), self._address(), count, len(data) & 0xFF) + data
        )

    def _identity(self) -> bytes:
        return bytes((43, self._dice.choice((14, 14, 14, 13)), self._dice.randrange(6), self._dice.randrange(8)))

    def _files(self) -> bytes:
        asked = b"".join(
            struct.pack(">BHHH", self._dice.choice((6, 6, 6, 5)), self._dice.randrange(8), self._dice.randrange(60),
                        self._dice.choice((0, 1, 3, 20, 122)))
            for _ in range(self._dice.choice((1, 1, 2, 5)))
        )  # fmt: skip
        return bytes((20, len(asked))) + asked

    def _noise(self) -> bytes:
        return self._dice.randbytes(self._dice.randrange(1, 30))
