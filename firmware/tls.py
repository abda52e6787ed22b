"""The certificates of the secure port: `tls/` in the configuration directory, read at the start and at SIGHUP."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from time import monotonic

from drivers.modbus.tls import TlsError, expires, server_context

WARN_DAYS = 30.0
_DAY_S = 86_400.0


class Certificates:
    """`context` is None until there are certificates that can be used; bad new ones leave the old ones in force."""

    def __init__(self, directory: Path, tell: Callable[[str], None]) -> None:
        self._directory, self._tell = directory, tell
        self._ends: datetime | None = None
        self._told_s = -_DAY_S
        self.context: ssl.SSLContext | None = None
        self.reload()

    def reload(self) -> None:
        """Reads them again. Without the directory there is no secure port and nothing to say."""
        if not self._directory.is_dir():
            return
        try:
            context, ends = server_context(self._directory), expires(self._directory)
        except TlsError as error:
            self._tell(f"TLS certificates refused: {error}")
            return
        self.context, self._ends, self._told_s = context, ends, -_DAY_S
        self._tell(f"TLS certificate in force until {ends:%Y-%m-%d}")

    def days_left(self) -> float:
        """Of the server's certificate by the wall clock, nan without one."""
        return nan if self._ends is None else (self._ends - datetime.now(UTC)).total_seconds() / _DAY_S

    def tick(self) -> None:
        """One event a day when the end is near."""
        left = self.days_left()
        if left < WARN_DAYS and monotonic() - self._told_s >= _DAY_S:
            self._told_s = monotonic()
            self._tell(f"TLS certificate ends in {left:.0f} days: put a new one into tls/ and send SIGHUP")

    def in_force(self) -> ssl.SSLContext:
        """For a new connection; the secure port opens when the first one is there."""
        assert self.context is not None
        return self.context
