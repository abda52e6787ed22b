"""The whole Modbus TCP protocol of a server without I/O: every request is answered in order, or the connection ends.

FC 3 and 4 (the same map), 6, 16, 20, 23 (writes before it reads) and 43/14; MODBUS Application Protocol V1.1b3.
Bad frames are counted, not logged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .adu import AduReader, FramingError, frame

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, BUSY, NO_SUCH_UNIT = 1, 2, 3, 4, 6, 11

_READ = struct.Struct(">BHH")
_READ_REQUEST = struct.Struct(">HHHBBHH")
_READ_BYTES = _READ_REQUEST.size
_READ_ANSWER = struct.Struct(">HHHBBB")
_WRITE_HEAD = struct.Struct(">BHHB")
_READ_WRITE_HEAD = struct.Struct(">BHHHHB")
_FILE_REFERENCE = struct.Struct(">BHHH")
_FILE_TYPE, _FILE_RECORDS, _FILE_BYTES = 6, 10_000, 0xF5


class ModbusError(Exception):
    """A request is refused with exception `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code:02}")
        self.code = code


class Device(Protocol):
    """What is served. Methods are called between two requests and must not block."""

    def serves(self, unit: int) -> bool: ...

    def read(self, unit: int, address: int, count: int) -> bytes:
        """`count` registers (1..125, never past 65535), big-endian. Raises ModbusError."""

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        """Applies the whole block or nothing. Raises ModbusError."""

    def identity(self, unit: int) -> Mapping[int, bytes]:
        """FC43/14 objects 0..6."""


@runtime_checkable
class FileDevice(Protocol):
    """A device that also has files; one that has none answers FC20 with exception 01."""

    def read_file(self, unit: int, file: int, record: int, count: int) -> bytes:
        """`count` registers (at least 1) of file 1..65535 from `record` on, big-endian. Raises ModbusError."""


class Rights(Protocol):
    """What one peer may do; what it may not answers exception 01."""

    reads: bool

    def writes(self, unit: int, address: int, count: int) -> bool: ...


class _AllRights:
    reads = True

    def writes(self, unit: int, address: int, count: int) -> bool:
        return True


ALL_RIGHTS: Rights = _AllRights()


@dataclass(slots=True)
class Counters:
    """Since start."""

    accepted: int = 0
    refused: int = 0  # connections above the limit
    framing_errors: int = 0  # connections closed for bytes that are not Modbus TCP
    timed_out: int = 0  # connections closed for idling, half an ADU, or not reading
    handshakes_failed: int = 0  # TLS: no certificate, a wrong one, or no TLS at all
    device_failures: int = 0  # exceptions of the device that are not ModbusError


class Session:
    """One connection's protocol: request bytes in, answer bytes out."""

    def __init__(
        self,
        device: Device,
        peer: str,
        counters: Counters,
        failed: Callable[[Exception], None],
        known: dict[bytes, bytes] | None = None,
    ) -> None:
        """`known` collects good answers to lone reads, both without their transactions; a write empties it."""
        self._device, self._peer, self._counters, self._failed = device, peer, counters, failed
        self._known = known
        self._reader = AduReader()
        self.rights = ALL_RIGHTS
        self.pending = False  # part of a request is held
        self.wrote = False  # a write was taken, once
        self._actions = {6: self._write_one, 16: self._write_many, 23: self._read_write, 43: self._identify}
        if isinstance(device, FileDevice):
            self._files = device
            self._actions[20] = self._read_files

    def receive(self, data: bytes) -> tuple[bytes, bool]:
        """All answers to the requests that `data` completes, and whether the connection may live on."""
        if len(data) == _READ_BYTES and not self.pending:  # one read and nothing else: nearly all are
            transaction, protocol, length, unit, function, address, count = _READ_REQUEST.unpack(data)
            if not protocol and length == 6 and function in (3, 4):
                answer = self._read(transaction, unit, function, address, count)
                if self._known is not None and answer[7] == function:
                    self._known[data[2:]] = answer[2:]
                return answer, True
        answers: list[bytes] = []
        try:
            for transaction, unit, pdu in self._reader.feed(data):
                if len(pdu) == 5 and pdu[0] in (3, 4):
                    answers.append(self._read(transaction, unit, *_READ.unpack(pdu)))
                else:
                    answers.append(frame(transaction, unit, self._answer(unit, pdu)))
        except FramingError:
            self._counters.framing_errors += 1
            return b"".join(answers), False
        self.pending = self._reader.pending
        return b"".join(answers), True

    def _read(self, transaction: int, unit: int, function: int, address: int, count: int) -> bytes:
        try:
            if not self.rights.reads:
                raise ModbusError(ILLEGAL_FUNCTION)
            if not self._device.serves(unit):
                raise ModbusError(NO_SUCH_UNIT)
            data = self._registers(unit, address, count)
        except Exception as error:
            return frame(transaction, unit, self._refusal(function, error))
        return _READ_ANSWER.pack(transaction, 0, 3 + 2 * count, unit, function, 2 * count) + data

    def _answer(self, unit: int, pdu: bytes) -> bytes:
        function = pdu[0]
        try:
            action = self._actions.get(function)
            if (action is None and function not in (3, 4)) or not self.rights.reads:
                raise ModbusError(ILLEGAL_FUNCTION)
            if not self._device.serves(unit):
                raise ModbusError(NO_SUCH_UNIT)
            if action is None:
                raise ModbusError(ILLEGAL_VALUE)
            return action(unit, pdu)
        except Exception as error:
            return self._refusal(function, error)

    def _refusal(self, function: int, error: Exception) -> bytes:
        if isinstance(error, ModbusError):
            return bytes((function | 0x80, error.code))
        self._counters.device_failures += 1
        self._failed(error)
        return bytes((function | 0x80, DEVICE_FAILURE))

    def _registers(self, unit: int, address: int, count: int) -> bytes:
        if not 1 <= count <= 125:
            raise ModbusError(ILLEGAL_VALUE)
        if address + count > 0x10000:
            raise ModbusError(ILLEGAL_ADDRESS)
        return self._device.read(unit, address, count)

    def _write(self, unit: int, address: int, data: bytes) -> None:
        if not self.rights.writes(unit, address, len(data) // 2):
            raise ModbusError(ILLEGAL_FUNCTION)
        if address + len(data) // 2 > 0x10000:
            raise ModbusError(ILLEGAL_ADDRESS)
        if self._known is not None:
            self._known.clear()
        self._device.write(unit, address, data, self._peer)
        self.wrote = True

    def _write_one(self, unit: int, pdu: bytes) -> bytes:
        if len(pdu) != 5:
            raise ModbusError(ILLEGAL_VALUE)
        self._write(unit, int.from_bytes(pdu[1:3]), pdu[3:])
        return pdu

    def _write_many(self, unit: int, pdu: bytes) -> bytes:
        _, address, count, size = _unpack(_WRITE_HEAD, pdu)
        _check_block(count, size, len(pdu) - _WRITE_HEAD.size, 123)
        self._write(unit, address, pdu[6:])
        return pdu[:5]

    def _read_write(self, unit: int, pdu: bytes) -> bytes:
        _, address, count, write_address, write_count, size = _unpack(_READ_WRITE_HEAD, pdu)
        _check_block(write_count, size, len(pdu) - _READ_WRITE_HEAD.size, 121)
        self._registers(unit, address, count)  # a read that cannot be answered leaves the write undone
        self._write(unit, write_address, pdu[10:])
        return bytes((23, 2 * count)) + self._registers(unit, address, count)

    def _read_files(self, unit: int, pdu: bytes) -> bytes:
        """V1.1b3, 6.14: an impossible length is 03, what is not there 02; one bad sub-request refuses them all."""
        size = pdu[1] if len(pdu) > 1 else 0
        if not 7 <= size <= _FILE_BYTES or size % 7 or len(pdu) != 2 + size:
            raise ModbusError(ILLEGAL_VALUE)
        wanted = list(_FILE_REFERENCE.iter_unpack(pdu[2:]))
        if not all(reference[3] for reference in wanted) or sum(2 + 2 * count for *_, count in wanted) > _FILE_BYTES:
            raise ModbusError(ILLEGAL_VALUE)
        if any(kind != _FILE_TYPE or not file or at + count > _FILE_RECORDS for kind, file, at, count in wanted):
            raise ModbusError(ILLEGAL_ADDRESS)
        parts = (self._files.read_file(unit, file, record, count) for _, file, record, count in wanted)
        body = b"".join(bytes((1 + len(part), _FILE_TYPE)) + part for part in parts)
        return bytes((20, len(body))) + body

    def _identify(self, unit: int, pdu: bytes) -> bytes:
        if len(pdu) >= 2 and pdu[1] != 0x0E:
            raise ModbusError(ILLEGAL_FUNCTION)
        if len(pdu) != 4 or not 1 <= pdu[2] <= 4:
            raise ModbusError(ILLEGAL_VALUE)
        return identification(self._device.identity(unit), pdu[2], pdu[3])


def _unpack(head: struct.Struct, pdu: bytes) -> tuple[int, ...]:
    if len(pdu) < head.size:
        raise ModbusError(ILLEGAL_VALUE)
    return head.unpack_from(pdu)


def _check_block(count: int, size: int, held: int, most: int) -> None:
    if not 1 <= count <= most or size != 2 * count or held != size:
        raise ModbusError(ILLEGAL_VALUE)


def identification(objects: Mapping[int, bytes], code: int, first: int) -> bytes:
    """The answer PDU of FC43/14, conformity 0x82: code 1 basic, 2 regular, 3 as 2, 4 one object. V1.1b3, 6.21."""
    if code == 4:
        if first not in objects:
            raise ModbusError(ILLEGAL_ADDRESS)
        return bytes((43, 14, 4, 0x82, 0, 0, 1, first, len(objects[first]))) + objects[first]
    wanted = sorted(i for i in objects if i <= (2 if code == 1 else 6))
    if first in wanted:
        wanted = wanted[wanted.index(first) :]
    body, following = b"", 0
    for done, number in enumerate(wanted):
        if 7 + len(body) + 2 + len(objects[number]) > 253:
            following, wanted = number, wanted[:done]
            break
        body += bytes((number, len(objects[number]))) + objects[number]
    return bytes((43, 14, code, 0x82, 0xFF if following else 0, following, len(wanted))) + body
