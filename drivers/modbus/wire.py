"""What carries bytes to a Modbus peer and back: a TCP connection or a serial line. No protocol in here."""

from __future__ import annotations

import os
import select
import socket
from typing import Any

_CHUNK = 4096  # more than the 16 answers that can be under way


class TcpWire:
    """A TCP connection. Methods raise OSError; TimeoutError is one."""

    def __init__(self, host: str, port: int, connect_timeout_s: float) -> None:
        self._address, self._connect_timeout_s = (host, port), connect_timeout_s
        self._socket: socket.socket | None = None
        self._fd, self._poll = -1, select.poll()

    def open(self) -> None:
        self._socket = socket.create_connection(self._address, self._connect_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._fd, self._poll = self._socket.fileno(), select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def close(self) -> None:
        if (closing := self._socket) is not None:
            self._socket, self._fd = None, -1
            closing.close()

    def send(self, data: bytes) -> None:
        """All of it: nothing else is under way, so the kernel has room."""
        if os.write(self._fd, data) != len(data):
            raise OSError("the connection does not take a whole request")

    def receive(self, timeout_s: float) -> bytes:
        """Some bytes, b"" when the peer ended."""
        if not self._poll.poll(1000.0 * timeout_s):
            raise TimeoutError
        return os.read(self._fd, _CHUNK)

    def drain(self) -> bytes:
        """What is there already, without waiting."""
        try:
            return os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return b""


class SerialWire:
    """A serial line, 8 data bits, 2 stop bits when there is no parity (MODBUS over Serial Line V1.02, 2.5.1)."""

    def __init__(self, path: str, baud: int, parity: str) -> None:
        self._path, self._baud, self._parity = path, baud, parity
        self._line: Any = None

    def open(self) -> None:
        from periphery import Serial, SerialError

        try:
            stop_bits = 2 if self._parity == "none" else 1
            self._line = Serial(self._path, self._baud, parity=self._parity, stopbits=stop_bits)
        except SerialError as error:
            raise OSError(error.errno, f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        if (closing := self._line) is not None:
            self._line = None
            closing.close()

    def send(self, data: bytes) -> None:
        """All of it, into the driver's buffer."""
        if os.write(self._line.fd, data) != len(data):
            raise OSError("the line does not take a whole request")

    def receive(self, timeout_s: float) -> bytes:
        """Some bytes."""
        if not select.select((self._line.fd,), (), (), timeout_s)[0]:
            raise TimeoutError
        return os.read(self._line.fd, _CHUNK)

    def drain(self) -> bytes:
        """What is there already, without waiting."""
        held = b""
        while select.select((self._line.fd,), (), (), 0.0)[0] and (chunk := os.read(self._line.fd, _CHUNK)):
            held += chunk
        return held
