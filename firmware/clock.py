"""The clock: says whether the wall clock can be trusted, and when it was stepped. It sets nothing.

Trusted: the kernel calls it synchronised, and of the configured time servers that answer, and whose answers are
acceptable, half or more are within max_clock_offset. Every server has a thread of its own, so that neither a name that
takes long to resolve nor a silent server delays the next look, which is once a second.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from threading import Thread
from time import monotonic_ns

from drivers import clock
from drivers.section import SectionFile

from . import image
from .config import ConfigError, Site, config_directory, load_site
from .notify import Notifier
from .realtime import STOP_SIGNALS, arrived

PERIOD_NS = 1_000_000_000
TIMEOUT_S = 1.0
QUERY_S, SHORTEST_S, KISS_S = 64.0, 4.0, 1024.0
"""Between two questions to a server: when it answers; at first after a failure; when it wants to be left alone."""
VALID_NS = 200_000_000_000
"""Three questions may be lost before an answer is no longer used."""
STEP_NS = 100_000_000


class Server:
    """One time server. `run` asks it for ever."""

    def __init__(self, host: str, port: int = clock.PORT) -> None:
        self.host, self.trouble, self.asked = host, "", False
        self._port, self._retry_s = port, SHORTEST_S
        self._heard: tuple[clock.Answer, int] | None = None

    def run(self) -> None:
        while True:
            time.sleep(self.ask())

    def ask(self) -> float:
        """Asks once; seconds to wait before the next time. A server that is silent keeps its last answer."""
        pause_s = QUERY_S
        try:
            self._heard = clock.query(self.host, self._port, TIMEOUT_S), monotonic_ns()
            self.trouble, self._retry_s = "", SHORTEST_S
        except clock.KissOfDeath as error:
            self._heard, self.trouble, pause_s = None, str(error), KISS_S
        except clock.Refused as error:
            self._heard, self.trouble, pause_s = None, str(error), self._sooner()
        except OSError as error:
            self.trouble, pause_s = error.strerror or str(error), self._sooner()
        self.asked = True
        return pause_s

    def _sooner(self) -> float:
        now_s, self._retry_s = self._retry_s, min(2 * self._retry_s, QUERY_S)
        return now_s

    def answer(self, now_ns: int) -> clock.Answer | None:
        """The last one, as long as it is worth something."""
        heard = self._heard
        return heard[0] if heard and now_ns - heard[1] < VALID_NS else None


class Watch:
    """`look()` once a second."""

    def __init__(self, servers: list[Server], max_offset_ms: float, files: SectionFile) -> None:
        self._servers, self._max_offset_ms = servers, max_offset_ms
        self._section, self._log = files["clock"], image.EventLog(files["events"])
        self._silent: set[Server] = set()
        self._ahead_ns, self._steps = clock.wall_ahead_ns(), 0

    def look(self) -> None:
        """Steps, servers, the kernel's own account; published."""
        before_ns, self._ahead_ns = self._ahead_ns, clock.wall_ahead_ns()
        if abs(self._ahead_ns - before_ns) > STEP_NS:
            self._steps += 1
            self._log.add(0, text=f"CLOCK_STEP of {(self._ahead_ns - before_ns) / 1e9:+.1f} s")
        now_ns = monotonic_ns()
        answers = [found for server in self._servers if (found := self._heard(server, now_ns))]
        offset_ms = middle([(found.ahead_ns - self._ahead_ns) / 1e6 for found in answers])
        synchronised = clock.synchronised()
        trusted = synchronised and (not self._servers or abs(offset_ms) <= self._max_offset_ms)
        self._section.publish(image.CLOCK.pack(trusted, synchronised, offset_ms, len(answers), self._steps))

    def _heard(self, server: Server, now_ns: int) -> clock.Answer | None:
        """Its answer; the event log has the moments from which it was useless and useful."""
        found = server.answer(now_ns)
        if found and server in self._silent:
            self._silent.remove(server)
            self._log.add(0, text=f"time server {server.host}: answers again")
        elif not found and server.asked and server not in self._silent:
            self._silent.add(server)
            self._log.add(0, text=f"time server {server.host}: {server.trouble}")
        return found


def middle(offsets_ms: Iterable[float]) -> float:
    """The offset that half or more of the servers are within; nan of none."""
    ranked = sorted(offsets_ms, key=abs)
    return ranked[(len(ranked) - 1) // 2] if ranked else math.nan


def run(look: Callable[[], None]) -> None:
    """A look a second until SIGTERM or SIGINT, which must be blocked."""
    deadline, life = monotonic_ns(), Notifier()
    while True:
        left_s = max(0.0, (deadline - monotonic_ns()) / 1e9)
        number = arrived(left_s)
        if not number:
            look()
            life.tick()
            deadline = max(deadline + PERIOD_NS, monotonic_ns())
        elif number != signal.SIGHUP:
            return


def _servers(site: Site) -> list[Server]:
    port = int(os.environ.get("EMS_NTP_PORT", clock.PORT))
    return [Server(host, port) for host in site.ntp_servers]


def main() -> int:
    """Process entry."""
    try:
        site = load_site(config_directory())
        files = image.writer("clock")
    except (ConfigError, OSError) as error:
        print(f"clock: {error}", file=sys.stderr)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    servers = _servers(site)
    for server in servers:
        Thread(target=server.run, name=server.host, daemon=True).start()
    print(f"clock: checked by {', '.join(site.ntp_servers) or 'no time server'}", file=sys.stderr)
    run(Watch(servers, site.max_clock_offset, files).look)
    return 0


if __name__ == "__main__":
    sys.exit(main())
