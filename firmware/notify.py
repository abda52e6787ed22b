"""What a process tells the service manager: that it is ready, and again and again that it is alive. sd_notify(3).

Nothing here blocks. Outside of a unit of Type=notify nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from time import monotonic_ns

PATIENCE_NS = 20_000_000_000
"""The manager reads its configuration again within it, on the slowest machine that we know."""


class Notifier:
    """`tick()` once in each round of the main loop: READY the first time, then WATCHDOG four times in WatchdogSec."""

    def __init__(self) -> None:
        self._socket = _connected(os.environ.get("NOTIFY_SOCKET", ""))
        self._period_ns = int(os.environ.get("WATCHDOG_USEC", "0")) * 1000 // 4
        self._due_ns = 0 if self._socket else 2**63

    def tick(self) -> None:
        if (now_ns := monotonic_ns()) < self._due_ns:
            return
        self._send(b"WATCHDOG=1" if self._due_ns else b"READY=1")
        self._due_ns = now_ns + self._period_ns if self._period_ns else 2**63

    def _send(self, text: bytes) -> None:
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.send(text)


class Manager:
    """Whether PID 1 still works off its messages: it closes the descriptor that came with BARRIER=1."""

    def __init__(self) -> None:
        self._socket = _connected(os.environ.get("NOTIFY_SOCKET", ""))
        self._pipe, self._answered_ns = -1, monotonic_ns()

    def answers(self) -> bool:
        """Asks without waiting; False when it has been silent for PATIENCE_NS. True outside of a unit."""
        if self._socket is None:
            return True
        if self._pipe < 0 or self._closed():
            self._ask(self._socket)
        return monotonic_ns() - self._answered_ns < PATIENCE_NS

    def _closed(self) -> bool:
        if not select.select((self._pipe,), (), (), 0)[0]:
            return False
        os.close(self._pipe)
        self._pipe, self._answered_ns = -1, monotonic_ns()
        return True

    def _ask(self, manager: socket.socket) -> None:
        self._pipe, theirs = os.pipe()
        try:
            socket.send_fds(manager, [b"BARRIER=1"], [theirs])
        except OSError:  # its queue is full: no question is under way
            os.close(self._pipe)
            self._pipe = -1
        finally:
            os.close(theirs)


def _connected(path: str) -> socket.socket | None:
    if not path:
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    made.connect("\0" + path[1:] if path.startswith("@") else path)
    return made
