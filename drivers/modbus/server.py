"""Strict Modbus sessions on TCP: one thread, one epoll inside another, bounds on connections, time and memory.

`step` serves what is ready, each client at most one receive a turn, so that nobody waits for a greedy one. Clients that
have written come first in a turn, up to as many as there are of the others: who commands does not queue behind who only
reads. The server's own descriptor is readable when there is something to do: it lives in any other loop. A client that
does not take its answers is not read from.

Most requests were asked before: until the device changes, the answer to a read differs in its transaction only. `step`
gives such answers itself, without a call, and leaves everything else to the connection.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
from collections.abc import Callable
from os import read, write
from select import EPOLLIN
from time import monotonic, monotonic_ns

from .session import ALL_RIGHTS, Counters, Device, Rights, Session
from .tls import TlsPipe

_log = logging.getLogger(__name__)

_RECEIVE_BYTES = 479
"""One turn serves at most this much of one client. More would leave Python's allocator for small objects."""
_LOOKS = 48
"""Looks at the sockets after a turn, some 15 us, before the server sleeps: to be woken costs both sides more."""
_MOST_EVENTS = 8
"""Connections of a kind in a turn. What the device has new is seen by the next turn, with more by all later."""
_GONE = select.EPOLLHUP | select.EPOLLERR
_ACCEPTS = 16  # a turn
_SWEEP_S = 0.1
_LEFT_S = 5.0
"""When all places are taken, who said nothing for this long makes room for somebody new."""


class _Connection:
    __slots__ = ("_closing", "_fd", "_server", "_session", "_sock", "epoll", "half_since", "heard", "host", "known",
                 "stalled_since", "unsent")  # fmt: skip

    def __init__(self, server: StrictServer, sock: socket.socket, peer: str) -> None:
        self._server, self._sock, self._fd = server, sock, sock.fileno()
        self.known, self.epoll = server.known, server.readers
        self._session = Session(server.device, peer, server.counters, server.device_failed, server.known)
        self._closing = False
        self.host = peer.rpartition(":")[0]
        self.unsent = b""
        self.heard = monotonic()
        self.half_since: float | None = None
        self.stalled_since: float | None = None

    def ready(self, events: int) -> None:
        """The peer is gone, or takes answers again."""
        if events & _GONE:
            self.drop()
        else:
            self._go_on()

    def take(self, data: bytes) -> None:
        """What was received; nothing when the peer ended the connection."""
        if data:
            self._serve(data)
        else:
            self.drop()

    def _serve(self, data: bytes) -> None:
        answers, alive = self._session.receive(data)
        self._closing = not alive
        self._clock(bool(answers))
        self.give(answers)

    def _clock(self, answered: bool) -> None:
        """Notes when something was heard, since when half a request is held, and whether it writes."""
        now = self.heard = self._server.now
        if self._session.wrote and self.epoll is self._server.readers:
            self.epoll.unregister(self._fd)
            self.epoll = self._server.writers
            self.epoll.register(self._fd, EPOLLIN)
        if not self._session.pending:
            self.half_since = None
        elif answered or self.half_since is None:
            self.half_since = now

    def give(self, answers: bytes) -> None:
        """Sends them; what the peer does not take yet waits for it."""
        try:
            sent = write(self._fd, answers) if answers else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent, self._closing = len(answers), True
        if sent < len(answers):
            self._wait(answers[sent:])
        elif self._closing:
            self.drop()

    def _wait(self, unsent: bytes) -> None:
        if not self.unsent:
            self.stalled_since = self._server.now
            self.epoll.modify(self._fd, select.EPOLLOUT)
        self.unsent = unsent

    def _go_on(self) -> None:
        unsent, self.unsent = self.unsent, b""
        stalled = self.stalled_since
        self.give(unsent)
        if self.unsent:
            self.stalled_since = stalled
        elif not self._closing:
            self.stalled_since = None
            self.epoll.modify(self._fd, EPOLLIN)

    def drop(self) -> None:
        """Closes at once; what was not taken is thrown away."""
        if self._server.forget(self._fd):
            self.epoll.unregister(self._fd)
        self._sock.close()


class _SecureConnection(_Connection):
    """Modbus inside TLS. A handshake that does not come to its end counts as half a request."""

    __slots__ = ("_pipe",)

    def __init__(self, server: StrictServer, sock: socket.socket, peer: str, context: ssl.SSLContext) -> None:
        super().__init__(server, sock, peer)
        self.known = {}  # what comes in is not a request yet
        self._pipe = TlsPipe(context)
        self.half_since = self.heard

    def _serve(self, data: bytes) -> None:
        shaken = self._pipe.role is not None
        try:
            said = self._pipe.feed(data)
        except ssl.SSLError:
            self._server.counters.handshakes_failed += not shaken
            self._closing = True
            self.give(self._pipe.seal(b""))
            return
        answers = b""
        if self._pipe.role is None:
            self.heard = self._server.now
        else:
            if not shaken:
                self._session.rights = self._server.rights(self._pipe.role)
            answers, alive = self._session.receive(said)
            self._closing = not alive
            self._clock(bool(answers))
        self.give(self._pipe.seal(answers))


class StrictServer:
    """Listens from its making on. `step` it again and again from one thread; `counters` tell what happened.

    Who may connect says `admits`, by address. A connection is closed after `idle_s` without a byte, `adu_deadline_s`
    after the first byte of an ADU that stays incomplete, and `stall_s` after answers that are not taken. When
    `max_connections` are open, the one that was silent for longest makes room for a new one if that was 5 s at least;
    for one that is `preferred`, by address, one of the others does in any case. Else the new one is closed. `version`,
    asked once a turn, gives another number when the device may answer a read otherwise than before.
    """

    def __init__(
        self,
        device: Device,
        host: str,
        port: int,
        *,
        max_connections: int = 32,
        idle_s: float = 60.0,
        adu_deadline_s: float = 1.0,
        stall_s: float = 1.0,
        admits: Callable[[str], bool] = lambda host: True,
        preferred: Callable[[str], bool] = lambda host: False,
        rights: Callable[[str], Rights] = lambda role: ALL_RIGHTS,
        version: Callable[[], int] = monotonic_ns,
    ) -> None:
        """Port 0 = any free port. `rights` are those of a role inside TLS. Raises OSError when the port is in use."""
        self.device, self.counters, self.now = device, Counters(), monotonic()
        self._max, self._idle_s, self._adu_deadline_s, self._stall_s = max_connections, idle_s, adu_deadline_s, stall_s
        self._admits, self._preferred, self.rights = admits, preferred, rights
        self._version, self._seen, self.known = version, -1, dict[bytes, bytes]()
        self._open: dict[int, _Connection] = {}
        self._failure_logged, self._looks = -1.0, 0
        self._sweep_due = self.now + _SWEEP_S
        self.readers, self.writers = select.epoll(), select.epoll()  # of connections; the first has all else as well
        self.readers.register(self.writers, EPOLLIN)
        self._written = self.writers.fileno(), EPOLLIN
        self._listeners: dict[int, tuple[socket.socket, Callable[[], ssl.SSLContext] | None]] = {}
        self.port = self.listen(host, port)

    def listen(self, host: str, port: int, context: Callable[[], ssl.SSLContext] | None = None) -> int:
        """One more port, for TLS when there is a context; gives its number. Raises OSError when it is in use."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=64)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = listener, context
        self.readers.register(listener, EPOLLIN)
        return int(listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._open)

    def fileno(self) -> int:
        """Readable when `step` has something to do."""
        return self.readers.fileno()

    def serve(self, until_s: float) -> None:
        """Turns until that time of CLOCK_MONOTONIC."""
        self.now = monotonic()
        while (left_s := until_s - self.now) > 0.0:
            self.step(left_s)

    def step(self, timeout_s: float = 0.0) -> None:
        """Serves one turn of everybody who is ready; waits for the first of them at most `timeout_s`."""
        ready = self._wait(timeout_s)
        now = self.now = monotonic()
        if (version := self._version()) != self._seen:
            self._seen = version
            self.known.clear()
        connections = self._open
        for fd, events in ready:
            connection = connections.get(fd)
            if connection is None:
                self._accept(fd)
                continue
            if events != EPOLLIN:
                connection.ready(events)
                continue
            try:
                request = read(fd, _RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                request = b""
            answer = connection.known.get(request[2:])
            if answer is None or connection.half_since is not None:
                connection.take(request)
                continue
            connection.heard = now
            answer = request[:2] + answer
            try:
                sent = write(fd, answer)
            except OSError:
                sent = 0
            if sent < len(answer):
                connection.give(answer[sent:])
        if now >= self._sweep_due:
            self._sweep_due = now + _SWEEP_S
            self._sweep(now)

    def _wait(self, timeout_s: float) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = []
        poll = self.readers.poll
        for _ in range(self._looks):
            if ready := poll(0.0, _MOST_EVENTS):
                break
        ready = ready or poll(timeout_s, _MOST_EVENTS)
        self._looks = _LOOKS if ready else 0
        if len(ready) < _MOST_EVENTS and self._written not in ready:
            return ready
        return self.writers.poll(0.0, _MOST_EVENTS) + ready

    def close(self) -> None:
        """Stops listening and drops every connection."""
        for connection in tuple(self._open.values()):
            connection.drop()
        for listener, _ in self._listeners.values():
            listener.close()
        self.readers.close()
        self.writers.close()

    def forget(self, fd: int) -> bool:
        """Whether it was open until now."""
        return self._open.pop(fd, None) is not None

    def device_failed(self, error: Exception) -> None:
        """Logs a failure of the device, at most one a second."""
        if self.now - self._failure_logged >= 1.0:
            self._failure_logged = self.now
            _log.error("device failed, answered with exception 04", exc_info=error)

    def _accept(self, fd: int) -> None:
        listener, context = self._listeners.get(fd, (None, None))
        if listener is None:  # a connection that was dropped in this turn
            return
        for _ in range(_ACCEPTS):
            try:
                sock, address = listener.accept()
            except OSError:  # nobody left, or no descriptor: the next turn tries again
                return
            if not self._admits(address[0]) or not self._room(self._preferred(address[0])):
                self.counters.refused += 1
                sock.close()
                continue
            self.counters.accepted += 1
            _prepare(sock)
            peer = f"{address[0]}:{address[1]}"
            secure = _SecureConnection(self, sock, peer, context()) if context is not None else None
            self._open[sock.fileno()] = secure or _Connection(self, sock, peer)
            self.readers.register(sock, EPOLLIN)

    def _room(self, preferred: bool) -> bool:
        if len(self._open) < self._max:
            return True
        others = [c for c in self._open.values() if preferred and not self._preferred(c.host)]
        longest = min(others or self._open.values(), key=lambda c: c.heard)
        if self.now - longest.heard < _LEFT_S and not others:
            return False
        self.counters.timed_out += 1
        longest.drop()
        return True

    def _sweep(self, now: float) -> None:
        for c in tuple(self._open.values()):
            half, stalled = c.half_since, c.stalled_since
            if (
                now - c.heard > self._idle_s
                or (half is not None and now - half > self._adu_deadline_s)
                or (stalled is not None and now - stalled > self._stall_s)
            ):
                self.counters.timed_out += 1
                c.drop()


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
