"""A synchronous Modbus TCP client that believes nothing: every answer is checked against its request.

After a time-out or anything that is not the answer the socket is closed, so a late answer is never taken for a fresh
one. The deadline is of the whole transaction: a peer that dribbles cannot stretch it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from time import monotonic

from .adu import Adu, AduReader, FramingError, frame

_MAX_IDENTITY_PARTS = 8


class LinkError(Exception):
    """A transaction failed; the message names the peer, what was seen and what was expected."""


class Timeout(LinkError):
    """No complete answer before the deadline."""


class WrongUnit(LinkError):
    """Somebody else answered."""


class WrongLength(LinkError):
    """The answer's length or byte count is not that of the request."""


class ExceptionAnswer(LinkError):
    """The device refused with exception `code`. The connection is still good."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Garbage(LinkError):
    """Not an answer to this request: framing, transaction, function or echo differ, or bytes follow it."""


class Disconnected(LinkError):
    """No connection, or the peer ended it."""


def payload(peer: str, unit: int, request: bytes, answer: bytes) -> bytes:
    """What follows the function code in an answer PDU that fits its request. Raises the LinkError that says why not."""
    if answer[0] == request[0] | 0x80 and len(answer) == 2:
        text = f"{peer} unit {unit} refused function {request[0]} with exception {answer[1]:02}"
        raise ExceptionAnswer(text, answer[1])
    if answer[0] != request[0]:
        raise Garbage(f"{peer} answered function {answer[0]:#04x} to a request for {request[0]:#04x}")
    return answer[1:]


class Link:
    """One connection to one peer. `name` goes before the address in messages. Use from one thread."""

    def __init__(
        self, host: str, port: int, timeout_s: float = 0.3, connect_timeout_s: float = 1.0, name: str = ""
    ) -> None:
        self._address, self.timeout_s, self._connect_timeout_s = (host, port), timeout_s, connect_timeout_s
        self.peer = f"{name} {host}:{port}".lstrip()
        self._socket: socket.socket | None = None
        self._reader = AduReader()
        self._transaction = 0

    def connect(self) -> None:
        """Raises Disconnected."""
        self.close()
        try:
            self._socket = socket.create_connection(self._address, self._connect_timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Disconnected(f"{self.peer} cannot be reached: {error.strerror or error}") from error
        self._reader = AduReader()

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def read(self, unit: int, address: int, count: int, function: int = 3) -> bytes:
        """`count` registers (1..125), big-endian."""
        data = self._transact(unit, struct.pack(">BHH", function, address, count))
        if len(data) != 1 + 2 * count or data[0] != 2 * count:
            raise self._closing(WrongLength, f"unit {unit} answered {len(data) - 1} bytes, not {2 * count}")
        return data[1:]

    def write(self, unit: int, address: int, data: bytes) -> None:
        """Writes registers (1..123) in one FC16 and checks the echo."""
        head = struct.pack(">BHH", 16, address, len(data) // 2)
        echo = self._transact(unit, head + bytes((len(data),)) + data)
        if echo != head[1:]:
            raise self._closing(Garbage, f"unit {unit} echoed {echo.hex()} to a write of {head[1:].hex()}")

    def identity(self, unit: int) -> dict[int, bytes]:
        """FC43/14: the basic objects 0 vendor, 1 product, 2 revision, in as many parts as the device likes."""
        objects: dict[int, bytes] = {}
        following = 0
        for _ in range(_MAX_IDENTITY_PARTS):
            data = self._transact(unit, bytes((43, 14, 1, following)))
            if len(data) < 6 or data[:2] != b"\x0e\x01":
                raise self._closing(Garbage, f"unit {unit} answered {data.hex()} when asked who it is")
            objects |= self._objects(unit, data[5], data[6:])
            if data[3] != 0xFF:
                return objects
            following = data[4]
        raise self._closing(Garbage, f"unit {unit} does not come to an end when asked who it is")

    def _objects(self, unit: int, count: int, data: bytes) -> dict[int, bytes]:
        objects: dict[int, bytes] = {}
        for _ in range(count):
            if len(data) < 2 or len(data) < 2 + data[1]:
                break
            objects[data[0]], data = data[2 : 2 + data[1]], data[2 + data[1] :]
        if data or len(objects) != count:
            raise self._closing(WrongLength, f"unit {unit} sent identity objects of other lengths than it says")
        return objects

    def _transact(self, unit: int, request: bytes) -> bytes:
        self._transaction = self._transaction % 0xFFFF + 1
        transaction, answered_by, answer = self._exchange(unit, frame(self._transaction, unit, request))
        if transaction != self._transaction:
            raise self._closing(Garbage, f"answered transaction {transaction} instead of {self._transaction}")
        if answered_by != unit:
            raise self._closing(WrongUnit, f"answered for unit {answered_by} instead of {unit}")
        try:
            return payload(self.peer, unit, request, answer)
        except Garbage:
            self.close()
            raise

    def _exchange(self, unit: int, adu: bytes) -> Adu:
        if self._socket is None:
            raise Disconnected(f"{self.peer} is not connected")
        deadline = monotonic() + self.timeout_s
        try:
            self._socket.settimeout(self.timeout_s)
            self._socket.sendall(adu)
            return self._receive(self._socket, deadline)
        except TimeoutError as error:
            self.close()
            raise Timeout(f"Timeout waiting for response from {self.peer} unit {unit}") from error
        except FramingError as error:
            raise self._closing(Garbage, f"sent garbage: {error}") from error
        except OSError as error:
            raise self._closing(Disconnected, f"ended the connection: {error.strerror or error}") from error

    def _receive(self, sock: socket.socket, deadline: float) -> Adu:
        while True:
            chunk = sock.recv(1024)
            if not chunk:
                raise self._closing(Disconnected, "ended the connection")
            adus = list(self._reader.feed(chunk))
            if len(adus) > 1 or (adus and self._reader.pending):
                raise self._closing(Garbage, "sent more than one answer")
            if adus:
                return adus[0]
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)

    def _closing(self, kind: type[LinkError], what: str) -> LinkError:
        self.close()
        return kind(f"{self.peer} {what}")
