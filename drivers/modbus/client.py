"""A synchronous Modbus client that believes nothing: every answer is checked against its request.

Over TCP, over TCP with RTU frames (a serial-to-Ethernet gateway), or on a serial line. After a time-out or anything
that is not the answer the connection is closed, so a late answer is never taken for a fresh one. The deadline is of the
whole transaction: a peer that dribbles cannot stretch it.
"""

from __future__ import annotations

import contextlib
import struct
from time import monotonic, sleep

from .adu import AduReader, FramingError, frame, whole
from .rtu import TURNAROUND_S, CrcError, RtuFraming
from .wire import SerialWire, TcpWire

_MAX_IDENTITY_PARTS = 8
_READ = struct.Struct(">BHH")


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


class Damaged(Garbage):
    """An RTU answer with a wrong CRC."""


class Disconnected(LinkError):
    """No connection, or the peer ended it."""


class TcpFraming:
    """Requests out, one answer in, known by its transaction."""

    def __init__(self) -> None:
        self._transaction = 0
        self._reader = AduReader()

    def ask(self, unit: int, pdu: bytes) -> bytes:
        """The frame of a request."""
        self._transaction = self._transaction % 0xFFFF + 1
        if self._reader.pending:
            self._reader = AduReader()
        return frame(self._transaction, unit, pdu)

    def feed(self, chunk: bytes) -> tuple[int, bytes] | None:
        """Unit and PDU when the answer is complete. Raises FramingError."""
        adu = None if self._reader.pending else whole(chunk)
        if adu is None:
            adus = list(self._reader.feed(chunk))
            if len(adus) > 1 or (adus and self._reader.pending):
                raise FramingError("more than one answer")
            if not adus:
                return None
            adu = adus[0]
        transaction, unit, pdu = adu
        if transaction != self._transaction:
            raise FramingError(f"transaction {transaction} instead of {self._transaction}")
        return unit, pdu


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
        self,
        host: str,
        port: int,
        timeout_s: float = 0.3,
        connect_timeout_s: float = 1.0,
        name: str = "",
        framing: TcpFraming | RtuFraming | None = None,
        baud: int = 9600,
        parity: str = "even",
    ) -> None:
        """A `host` that begins with / is a serial line."""
        self.timeout_s = timeout_s
        serial = host.startswith("/")
        self.peer = f"{name} {host if serial else f'{host}:{port}'}".lstrip()
        self._framing = framing or TcpFraming()
        self._rtu = isinstance(self._framing, RtuFraming)
        self._wire = SerialWire(host, baud, parity) if serial else TcpWire(host, port, connect_timeout_s)
        self._connected = False
        self._last_read, self._asked = (1, 0, 3), 0  # unit, address and function; registers last asked for
        self._in_step = True  # RTU: no answer can be under way that belongs to another request

    def connect(self) -> None:
        """Raises Disconnected."""
        self.close()
        try:
            self._wire.open()
            if self._rtu:
                sleep(TURNAROUND_S)  # what comes now belongs to a request before
                self._wire.drain()
        except OSError as error:
            self._wire.close()
            raise Disconnected(f"{self.peer} cannot be reached: {error.strerror or error}") from error
        self._connected = True

    def close(self) -> None:
        self._connected = False
        with contextlib.suppress(OSError):
            self._wire.close()

    def read(self, unit: int, address: int, count: int, function: int = 3) -> bytes:
        """`count` registers (1..125), big-endian."""
        self._get_in_step()
        self._last_read, self._asked = (unit, address, function), count
        data = self._transact(unit, _READ.pack(function, address, count))
        if len(data) != 1 + 2 * count or data[0] != 2 * count:
            raise self._closing(WrongLength, f"unit {unit} answered {len(data) - 1} bytes, not {2 * count}")
        return data[1:]

    def write(self, unit: int, address: int, data: bytes) -> None:
        """Writes registers (1..123) in one FC16 and checks the echo."""
        self._get_in_step()
        head = struct.pack(">BHH", 16, address, len(data) // 2)
        echo = self._transact(unit, head + bytes((len(data),)) + data)
        if echo != head[1:]:
            raise self._closing(Garbage, f"unit {unit} echoed {echo.hex()} to a write of {head[1:].hex()}")

    def identity(self, unit: int) -> dict[int, bytes]:
        """FC43/14: the basic objects 0 vendor, 1 product, 2 revision, in as many parts as the device likes."""
        self._get_in_step()
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

    def _get_in_step(self) -> None:
        """After an error a gateway may hold the answer to a request before: another length shows whether it does.

        A gateway that stays one answer behind never gets past this.
        """
        if self._in_step:
            return
        unit, address, function = self._last_read
        self._asked = 2 if self._asked == 1 else 1
        with contextlib.suppress(ExceptionAnswer):
            data = self._transact(unit, _READ.pack(function, address, self._asked))
            if len(data) != 1 + 2 * self._asked:
                raise self._closing(Garbage, f"unit {unit} answered the request before")
        self._in_step = True

    def _transact(self, unit: int, request: bytes) -> bytes:
        answered_by, answer = self._exchange(unit, request)
        if answered_by != unit:
            raise self._closing(WrongUnit, f"answered for unit {answered_by} instead of {unit}")
        try:
            return payload(self.peer, unit, request, answer)
        except Garbage:
            self._give_up()
            raise

    def _exchange(self, unit: int, request: bytes) -> tuple[int, bytes]:
        if not self._connected:
            raise Disconnected(f"{self.peer} is not connected")
        deadline = monotonic() + self.timeout_s
        try:
            if self._rtu and (stale := self._wire.drain()):
                raise FramingError(f"{len(stale)} bytes that nobody asked for")
            self._wire.send(self._framing.ask(unit, request))
            return self._receive(deadline)
        except TimeoutError as error:
            self._give_up()
            raise Timeout(f"Timeout waiting for response from {self.peer} unit {unit}") from error
        except CrcError as error:
            raise self._closing(Damaged, f"sent {error}") from error
        except FramingError as error:
            raise self._closing(Garbage, f"sent garbage: {error}") from error
        except OSError as error:
            raise self._closing(Disconnected, f"ended the connection: {error.strerror or error}") from error

    def _receive(self, deadline: float) -> tuple[int, bytes]:
        left = self.timeout_s
        while left > 0:
            chunk = self._wire.receive(left)
            if not chunk:
                raise self._closing(Disconnected, "ended the connection")
            if (answer := self._framing.feed(chunk)) is not None:
                return answer
            left = deadline - monotonic()
        raise TimeoutError

    def _give_up(self) -> None:
        self.close()
        self._in_step = not self._rtu

    def _closing(self, kind: type[LinkError], what: str) -> LinkError:
        self._give_up()
        return kind(f"{self.peer} {what}")
