"""Modbus peers for tests: a register bank behind the strict server in a thread, and a raw server that may lie."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping

from drivers.modbus.server import StrictServer
from drivers.modbus.session import ModbusError


class Bank:
    """Registers by unit over the whole address range; `fail` may raise before a read."""

    def __init__(self, units: tuple[int, ...] = (1,), identity: Mapping[int, bytes] | None = None) -> None:
        self.memory = {unit: bytearray(0x20000) for unit in units}
        self.objects = dict(identity or {0: b"Maker", 1: b"Thing", 2: b"1.0"})
        self.read_only: set[int] = set()
        self.writes: list[tuple[int, int, bytes]] = []
        self.reads = 0
        self.fail: Callable[[], None] = lambda: None

    def serves(self, unit: int) -> bool:
        return unit in self.memory

    def read(self, unit: int, address: int, count: int) -> bytes:
        self.reads += 1
        self.fail()
        return bytes(self.memory[unit][2 * address : 2 * (address + count)])

    def write(self, unit: int, address: int, data: bytes, peer: str) -> None:
        if self.read_only & set(range(address, address + len(data) // 2)):
            raise ModbusError(2)
        self.writes.append((unit, address, data))
        self.memory[unit][2 * address : 2 * address + len(data)] = data

    def identity(self, unit: int) -> Mapping[int, bytes]:
        return self.objects

    def put(self, unit: int, address: int, data: bytes) -> None:
        self.memory[unit][2 * address : 2 * address + len(data)] = data

    def words(self, unit: int, address: int, *values: int) -> None:
        self.put(unit, address, struct.pack(f">{len(values)}H", *values))


@contextlib.contextmanager
def served(
    device: Bank, port: int = 0, max_connections: int = 16, idle_s: float = 60.0, adu_deadline_s: float = 1.0
) -> Iterator[StrictServer]:
    """The bank behind the strict server on 127.0.0.1, in a thread of its own."""
    server = StrictServer(device, "127.0.0.1", port, max_connections=max_connections, idle_s=idle_s,
                          adu_deadline_s=adu_deadline_s, stall_s=adu_deadline_s)  # fmt: skip
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            server.step(0.02)
        server.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join(5)


Answer = Callable[[bytes], bytes]
"""Request ADU to the bytes that are sent back."""


@contextlib.contextmanager
def liar(answer: Answer, port: int = 0, on_send: Callable[[socket.socket, bytes], None] | None = None) -> Iterator[int]:
    """A raw server whose answers are whatever `answer` makes of a request; gives its port."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.05)
    stop = threading.Event()

    def speak(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(0.05)
            while not stop.is_set():
                try:
                    request = peer.recv(1024)
                except TimeoutError:
                    continue
                if not request:
                    return
                (on_send or socket.socket.sendall)(peer, answer(request))

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                peer, _ = listener.accept()
                threading.Thread(target=speak, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join(2)
        listener.close()
