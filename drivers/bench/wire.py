"""The wire of the bench's BMS and PCS: the strict server's protocol with a saboteur between it and the client.

`adus` of answers are changed one by one, so that a client with pipelined requests sees every answer wrong.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Protocol

from drivers.modbus.adu import frame
from drivers.modbus.session import Counters, Device, Session

_SLOW_S = 0.4
_DRIBBLE_S = 0.03  # a byte
_DEAF_S = 0.05  # a wire that does not read looks this often whether it may again
_RESET = struct.pack("ii", 1, 0)  # a close discards and resets
_READS, _WRITES = (3, 4), (6, 16)


class DeviceMode(IntEnum):
    """How a device behaves. FROZEN and BUSY are its registers' business, the others the wire's."""

    NORMAL = 0
    SILENT = 1
    FROZEN = 2  # answers, but nothing moves, the heartbeat neither
    GARBAGE = 3
    WRONG_UNIT = 4
    SLOW = 5  # 400 ms
    BUSY = 6  # exception 06, and nothing is taken
    WRONG_TRANSACTION = 7
    ZERO_TRANSACTION = 8
    LATE = 9  # each answer comes in place of the next one
    WRONG_FUNCTION = 10
    SHORT = 11  # one register too few, byte count and length to match
    LONG = 12
    BYTE_COUNT = 13  # byte count of one register more than there is
    ECHO = 14  # a write is done, its echo says another value or count
    DRIBBLE = 15  # 1 byte every 30 ms
    HALF_OPEN = 16  # accepts connections, reads nothing, says nothing
    CLOSED = 17  # connections are reset


_HONEST = (DeviceMode.NORMAL, DeviceMode.FROZEN, DeviceMode.BUSY)


class Loss:
    """Answers that get lost or damaged by chance, the same for the same seed."""

    def __init__(self) -> None:
        self.lost_pct = self.damaged_pct = 0.0
        self._dice = random.Random(1)

    @property
    def any(self) -> bool:
        """True while answers may suffer."""
        return self.lost_pct > 0.0 or self.damaged_pct > 0.0

    def carry(self, adu: bytes) -> bytes:
        """What arrives of an answer."""
        if self._dice.uniform(0.0, 100.0) < self.lost_pct:
            return b""
        if self._dice.uniform(0.0, 100.0) < self.damaged_pct:
            return self._dice.randbytes(len(adu))
        return adu


class BenchDevice(Device, Protocol):
    """A Modbus device whose wire the bench control spoils."""

    mode: DeviceMode
    loss: Loss
    exchanges: int


def adus(answers: bytes) -> Iterator[bytes]:
    """The answers one by one."""
    at = 0
    while at < len(answers):
        end = at + 6 + int(struct.unpack_from(">H", answers, at + 4)[0])
        yield answers[at:end]
        at = end


def _unit(adu: bytes) -> bytes:
    return adu[:6] + bytes((adu[6] % 247 + 1,)) + adu[7:]


def _transaction(adu: bytes) -> bytes:
    return bytes((adu[0] ^ 0x55, adu[1] ^ 0x55)) + adu[2:]


def _pdu(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda adu: frame(int.from_bytes(adu[:2]), adu[6], change(adu[7:]))


def _function(pdu: bytes) -> bytes:
    return bytes((pdu[0] ^ 7,)) + pdu[1:]


def _short(pdu: bytes) -> bytes:
    return bytes((pdu[0], pdu[1] - 2)) + pdu[2:-2] if pdu[0] in _READS else pdu[:-1]


def _long(pdu: bytes) -> bytes:
    return bytes((pdu[0], pdu[1] + 2)) + pdu[2:] + bytes(2) if pdu[0] in _READS else pdu + bytes(1)


def _byte_count(pdu: bytes) -> bytes:
    return bytes((pdu[0], pdu[1] + 2)) + pdu[2:] if pdu[0] in _READS else pdu


def _echo(pdu: bytes) -> bytes:
    return pdu[:-1] + bytes((pdu[-1] ^ 1,)) if pdu[0] in _WRITES else pdu


LIES: dict[DeviceMode, Callable[[bytes], bytes]] = {
    DeviceMode.WRONG_UNIT: _unit,
    DeviceMode.WRONG_TRANSACTION: _transaction,
    DeviceMode.ZERO_TRANSACTION: lambda adu: bytes(2) + adu[2:],
    DeviceMode.WRONG_FUNCTION: _pdu(_function),
    DeviceMode.SHORT: _pdu(_short),
    DeviceMode.LONG: _pdu(_long),
    DeviceMode.BYTE_COUNT: _pdu(_byte_count),
    DeviceMode.ECHO: _pdu(_echo),
}
"""What becomes of one answer."""


class _Wire(asyncio.Protocol):
    def __init__(self, device: BenchDevice, open_wires: set[_Wire]) -> None:
        self._device, self._open = device, open_wires
        self._exchanges = device.exchanges
        self._loop = asyncio.get_running_loop()
        self._late = b""
        self._slowly = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        host, port = (transport.get_extra_info("peername") or ("gone", 0))[:2]
        self._session = Session(self._device, f"{host}:{port}", Counters(), _raise)
        self._open.add(self)
        self._loop.call_soon(self._listen_again)  # a pause in here is undone by asyncio of Python 3.11.2

    def _may_read(self) -> bool:
        """False when nothing is to be read now: the wire is reset, or deaf and looks again later."""
        mode = self._device.mode
        if mode == DeviceMode.CLOSED or self._device.exchanges != self._exchanges:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        elif mode == DeviceMode.HALF_OPEN:
            self.transport.pause_reading()
            self._loop.call_later(_DEAF_S, self._listen_again)
        else:
            return True
        return False

    def _listen_again(self) -> None:
        if not self.transport.is_closing() and self._may_read():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        mode = self._device.mode
        if mode == DeviceMode.SILENT or not self._may_read():
            return
        if mode == DeviceMode.GARBAGE:
            self._send(os.urandom(32))
            return
        answers, alive = self._session.receive(data)
        if mode in _HONEST and not self._device.loss.any:
            self._send(answers)
        else:
            for adu in adus(answers):
                self._answer(mode, self._device.loss.carry(adu))
        if not alive:
            self.transport.close()

    def _answer(self, mode: DeviceMode, adu: bytes) -> None:
        match mode:
            case _ if not adu:
                return
            case DeviceMode.SLOW:
                self._loop.call_later(_SLOW_S, self._send, adu)
            case DeviceMode.LATE:
                self._late, adu = adu, self._late
                self._send(adu)
            case DeviceMode.DRIBBLE:
                if not self._slowly:
                    self._loop.call_soon(self._dribble)
                self._slowly += adu
            case _:
                lie = LIES.get(mode)
                self._send(lie(adu) if lie else adu)

    def _dribble(self) -> None:
        self._send(bytes(self._slowly[:1]))
        del self._slowly[:1]
        if self._slowly and not self.transport.is_closing():
            self._loop.call_later(_DRIBBLE_S, self._dribble)

    def _send(self, answers: bytes) -> None:
        if answers and not self.transport.is_closing():
            self.transport.write(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)


def _raise(error: Exception) -> None:
    raise error


class BenchServer:
    """A listening device. Made by `serve_device`."""

    def __init__(self, listener: asyncio.Server, wires: set[_Wire]) -> None:
        self._listener, self._wires = listener, wires

    @property
    def port(self) -> int:
        """The port that is listened on."""
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stops listening and drops every connection."""
        self._listener.close()
        for wire in tuple(self._wires):
            wire.transport.abort()


async def serve_device(device: BenchDevice, host: str, port: int) -> BenchServer:
    """Serves `device` with its `mode` in force on every byte. Raises OSError when the port is in use."""
    wires: set[_Wire] = set()
    loop = asyncio.get_running_loop()
    return BenchServer(await loop.create_server(lambda: _Wire(device, wires), host, port), wires)
