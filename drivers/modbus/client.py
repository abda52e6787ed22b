"""A synchronous Modbus client that believes nothing: every answer is checked against its request.

Over TCP, over TCP with RTU frames (a serial-to-Ethernet gateway), or on a serial line. After a time-out or anything
that is not the answer the connection is closed, so a late answer is never taken for a fresh one. The deadline is of the
whole transaction: a peer that dribbles cannot stretch it.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic, sleep
from typing import NamedTuple

from .adu import AduReader, FramingError, frame, whole
from .rtu import TURNAROUND_S, CrcError, RtuFraming
from .wire import SerialWire, TcpWire

_MAX_IDENTITY_PARTS = 8
_READ = struct.Struct(">BHH")


class Read(NamedTuple):
    """A request for registers."""

    unit: int
    address: int
    registers: int  # 1..125


class Answer(NamedTuple):
    """What came for it."""

    read: Read
    data: bytes  # registers, big-endian
    took_s: float  # since it was asked for, or since the answer before came
    at_s: float  # CLOCK_MONOTONIC when it had come


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
        self.transaction = 0  # of the last request
        self._reader = AduReader()

    def ask(self, unit: int, pdu: bytes) -> bytes:
        """The frame of a request."""
        self.transaction = self.transaction % 0xFFFF + 1
        if self._reader.pending:
            self._reader = AduReader()
        return frame(self.transaction, unit, pdu)

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
        if transaction != self.transaction:
            raise FramingError(f"transaction {transaction} instead of {self.transaction}")
        return unit, pdu


class UnderWay:
    """Reads of which up to `most` are under way at once, known by their transactions."""

    def __init__(self, framing: TcpFraming, reads: Iterable[Read], function: int, most: int) -> None:
        self._framing, self._function, self._most = framing, function, most
        self._reader = AduReader()
        self.waiting = deque(reads)
        self.asked: dict[int, tuple[Read, float]] = {}  # when, by transaction, the oldest first

    @property
    def oldest(self) -> tuple[Read, float]:
        """The read that is under way for the longest time, and since when."""
        return next(iter(self.asked.values()))

    def frames(self) -> bytes:
        """Those that are to be sent now."""
        now_s, frames = monotonic(), []
        while self.waiting and len(self.asked) < self._most:
            read = self.waiting.popleft()
            frames.append(self._framing.ask(read.unit, _READ.pack(self._function, read.address, read.registers)))
            self.asked[self._framing.transaction] = read, now_s
        return b"".join(frames)

    def answered(self, chunk: bytes) -> list[tuple[tuple[Read, float], int, bytes]]:
        """What was asked and when, by whom it is answered, the answer PDU. Raises FramingError."""
        came = []
        for transaction, unit, pdu in self._reader.feed(chunk):
            if transaction not in self.asked:
                raise FramingError(f"transaction {transaction}, which is not under way")
            came.append((self.asked.pop(transaction), unit, pdu))
        return came


def payload(peer: str, unit: int, function: int, answer: bytes) -> bytes:
    """What follows the function code in an answer PDU to a request. Raises the LinkError that says why it is none."""
    if answer[0] == function | 0x80 and len(answer) == 2:
        text = f"{peer} unit {unit} refused function {function} with exception {answer[1]:02}"
        raise ExceptionAnswer(text, answer[1])
    if answer[0] != function:
        raise Garbage(f"{peer} answered function {answer[0]:#04x} to a request for {function:#04x}")
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
        return self._registers(unit, count, self._transact(unit, _READ.pack(function, address, count)))

    def read_each(self, reads: Iterable[Read], function: int = 3, transactions: int = 1) -> Iterator[Answer]:
        """The answers as they come, with at most `transactions` requests under way (over RTU 1); take all of them.

        A refusal is raised when nothing is under way any more, any other error at once.
        """
        if transactions > 1:
            assert isinstance(self._framing, TcpFraming)
            yield from self._read_ahead(UnderWay(self._framing, reads, function, transactions), function)
            return
        for read in reads:
            asked_s = monotonic()
            data = self.read(*read, function)
            at_s = monotonic()
            yield Answer(read, data, at_s - asked_s, at_s)

    def _read_ahead(self, under_way: UnderWay, function: int) -> Iterator[Answer]:
        """What comes next is asked for before answers are handed out, so that the device works meanwhile.

        It may work at one after the other: an answer's time begins when it is asked for or the one before has come.
        """
        refused, last_s = None, 0.0
        self._ask(under_way)
        while under_way.asked:
            read, asked_s = under_way.oldest
            try:
                came = under_way.answered(self._chunk(max(asked_s, last_s) + self.timeout_s - monotonic()))
            except (OSError, FramingError) as error:
                raise self._failed(read.unit, error) from error
            at_s, answers = monotonic(), []
            for (read, asked_s), unit, pdu in came:
                took_s, last_s = at_s - max(asked_s, last_s), at_s
                try:
                    data = self._registers(read.unit, read.registers, self._checked(read.unit, function, unit, pdu))
                    answers.append(Answer(read, data, took_s, at_s))
                except ExceptionAnswer as error:
                    refused = refused or error
                    under_way.waiting.clear()
            self._ask(under_way)
            yield from answers
        if refused is not None:
            raise refused

    def _ask(self, under_way: UnderWay) -> None:
        if frames := under_way.frames():
            try:
                self._send(frames)
            except OSError as error:
                raise self._failed(under_way.oldest[0].unit, error) from error

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
        return self._checked(unit, request[0], *self._exchange(unit, request))

    def _checked(self, unit: int, function: int, answered_by: int, answer: bytes) -> bytes:
        if answered_by != unit:
            raise self._closing(WrongUnit, f"answered for unit {answered_by} instead of {unit}")
        try:
            return payload(self.peer, unit, function, answer)
        except Garbage:
            self._give_up()
            raise

    def _registers(self, unit: int, count: int, data: bytes) -> bytes:
        if len(data) != 1 + 2 * count or data[0] != 2 * count:
            raise self._closing(WrongLength, f"unit {unit} answered {len(data) - 1} bytes, not {2 * count}")
        return data[1:]

    def _exchange(self, unit: int, request: bytes) -> tuple[int, bytes]:
        deadline = monotonic() + self.timeout_s
        try:
            if self._rtu and self._connected and (stale := self._wire.drain()):
                raise FramingError(f"{len(stale)} bytes that nobody asked for")
            self._send(self._framing.ask(unit, request))
            while (answer := self._framing.feed(self._chunk(deadline - monotonic()))) is None:
                pass
            return answer
        except (OSError, FramingError) as error:
            raise self._failed(unit, error) from error

    def _send(self, frames: bytes) -> None:
        if not self._connected:
            raise Disconnected(f"{self.peer} is not connected")
        self._wire.send(frames)

    def _chunk(self, left_s: float) -> bytes:
        """Some bytes; without waiting when no time is left."""
        if chunk := self._wire.receive(max(0.0, left_s)):
            return chunk
        raise self._closing(Disconnected, "ended the connection")

    def _failed(self, unit: int, error: OSError | FramingError) -> LinkError:
        if isinstance(error, TimeoutError):
            self._give_up()
            return Timeout(f"Timeout waiting for response from {self.peer} unit {unit}")
        if isinstance(error, CrcError):
            return self._closing(Damaged, f"sent {error}")
        if isinstance(error, FramingError):
            return self._closing(Garbage, f"sent garbage: {error}")
        return self._closing(Disconnected, f"ended the connection: {error.strerror or error}")

    def _give_up(self) -> None:
        self.close()
        self._in_step = not self._rtu

    def _closing(self, kind: type[LinkError], what: str) -> LinkError:
        self._give_up()
        return kind(f"{self.peer} {what}")
