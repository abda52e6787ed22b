"""An NTP server on UDP that tells the truth, or one lie."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

_1900_S = 2_208_988_800

Reply = Callable[["FakeNtp", bytes, float], list[bytes]]


def stamp(unix_s: float) -> int:
    """An NTP time stamp, 32 bits of seconds and 32 of their fraction; it wraps as they do."""
    return round((unix_s + _1900_S) * 2**32) % 2**64


def packet(
    question: bytes, unix_s: float, *, leap: int = 0, version: int = 4, mode: int = 4, stratum: int = 2,
    root_delay_s: float = 0.01, root_dispersion_s: float = 0.01, reference: bytes = b"GPS\0",
    originate: bytes | None = None, received: int | None = None, transmitted: int | None = None,
) -> bytes:  # fmt: skip
    """A good answer, with what is asked for changed."""
    token = question[40:48] if originate is None else originate
    head = struct.pack("!BBbb", leap << 6 | version << 3 | mode, stratum, 6, -20)
    roots = struct.pack("!II", round(root_delay_s * 65536), round(root_dispersion_s * 65536))
    times = (stamp(unix_s) if received is None else received, stamp(unix_s) if transmitted is None else transmitted)
    return head + roots + reference + struct.pack("!Q", stamp(unix_s - 10)) + token + struct.pack("!QQ", *times)


class FakeNtp:
    """Serves on 127.0.0.1 as long as the `with` lasts. `reply` gives the packets that answer a question."""

    def __init__(
        self, reply: Reply | None = None, ahead_s: float = 0.0, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.reply, self.ahead_s, self.asked = reply or truth, ahead_s, 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._peer)

    def send_from_elsewhere(self, data: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(data, self._peer)

    def _serve(self) -> None:
        while True:
            question, self._peer = self._socket.recvfrom(512)
            if not question:
                return
            self.asked += 1
            for answer in self.reply(self, question, time.time() + self.ahead_s):
                self.send(answer)

    def __enter__(self) -> FakeNtp:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


def truth(server: FakeNtp, question: bytes, unix_s: float) -> list[bytes]:
    return [packet(question, unix_s)]
