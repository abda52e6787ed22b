"""The aggregator: polls the BMS and the PCS over Modbus TCP and publishes what they say, with its age.

One thread a device with a blocking, checked client: half the processor time of asyncio at this load, and a device that
hangs cannot delay the other. A section is published only after a complete poll of a device whose identity was verified;
a device that is silent, lies or stands still shows as a section that ages. The stamp is the start of the poll.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from threading import Event, Lock
from time import monotonic, monotonic_ns
from typing import Any, TypeVar, get_type_hints

from drivers.modbus.client import Answer, Link, Read, TcpFraming
from drivers.modbus.rtu import RtuFraming
from drivers.profile import Block, Profile, ProfileError, load
from drivers.section import SectionError, SectionFile
from firmware import image
from firmware.config import ConfigError, config_directory, load_site
from firmware.notify import Notifier
from firmware.poller import RECONNECT_S, Heartbeat, Poller, Tell, verify
from firmware.realtime import use_fifo
from firmware.reduction import StringPoll, pcs_values, reduce, string_values, wire_cells
from statemachine.signals import Bms, Pcs

PRIORITY = 45
"""Below the kernel's interrupt threads (50), which guard and controller wait for on a slow bus; above the sampler: late
data stops the rack, a late loop derates it."""
CONTROL_TIMEOUT_MS = 200.0
"""An older set-point is not passed on: the PCS is told 0 A and stop."""
CONTROL_TICK_S = 0.004
"""How often a changed set-point is looked for."""

T = TypeVar("T", bound=tuple[Any, ...])

_WRITTEN = ("run", "setpoint_a", "charge_limit_a", "discharge_limit_a")
_STOP = (0.0,) * len(_WRITTEN)


@dataclass(frozen=True, slots=True)
class AggregatorSettings:
    """What is polled, and how often."""

    bms_host: str
    bms_port: int
    bms_profile: Profile
    strings: int
    cells_per_string: int
    pcs_host: str
    pcs_port: int
    pcs_profile: Profile
    bms_poll_ms: int = 100
    pcs_poll_ms: int = 20
    request_gap_ms: int = 0
    request_timeout_ms: int = 300


def _nothing(kind: type[T]) -> T:
    """Every number unknown, every truth False: so identity_ok is, and nobody uses the rest."""
    unknown: dict[type, Any] = {int: 0, float: nan, bool: False}
    return kind._make(unknown[hint] for hint in get_type_hints(kind).values())  # type: ignore[attr-defined,no-any-return]


NOT_OURS_BMS, NOT_OURS_PCS = _nothing(Bms), _nothing(Pcs)


def _link(name: str, host: str, port: int, profile: Profile, timeout_s: float) -> Link:
    line = profile.line
    framing = RtuFraming() if line.framing == "rtu" else TcpFraming()
    return Link(host, port, timeout_s, min(timeout_s, RECONNECT_S), name, framing, line.baud, line.parity)


class BmsPoller(Poller):
    """Polls every string's summary back to back, so that their voltages belong together, then all cells."""

    def __init__(self, settings: AggregatorSettings, files: SectionFile, tell: Tell, stop: Event) -> None:
        s = settings
        timeout_s = s.request_timeout_ms / 1000.0
        link = _link("BMS", s.bms_host, s.bms_port, s.bms_profile, timeout_s)
        super().__init__(link, s.bms_profile, s.bms_poll_ms, tell, stop, s.request_gap_ms)
        self._bms, self._cells, self._strings = files["bms"], files["cells"], files["strings"]
        self._cells_per_string = s.cells_per_string
        self._units = [self.profile.unit(string) for string in range(s.strings)]
        beat, self._ems_beat = self.profile.heartbeats.read, self.profile.heartbeats.write
        self._beat = beat
        self._summaries = [_readable(self.profile, unit) for unit in self._units]
        self._arrays = [self._arrays_of(unit) for unit in self._units]
        self._reads = [read for summary in self._summaries for read in summary]
        self._reads += [read for arrays in self._arrays for reads in arrays for read in reads]
        self._beats = [Heartbeat() for _ in self._units]
        self._beat_due_s = 0.0
        self._polls = 0

    def identify(self) -> str:
        names = [verify(self.link, self.profile, unit) for unit in self._units]
        return names[0]

    def unidentified(self) -> None:
        self._strings.publish(b"")
        self._bms.publish(image.BMS.pack(*NOT_OURS_BMS))

    def poll(self) -> bool:
        started_ns = monotonic_ns()
        answers = self.read_all(self._reads)
        strings = [
            StringPoll(
                *_decoded(self.profile, summary, answers, "string_v"),
                *(b"".join([answers[read].data for read in reads]) for reads in arrays),
            )
            for summary, arrays in zip(self._summaries, self._arrays, strict=True)
        ]
        frozen = self._frozen(strings)
        if not frozen:
            self._polls += 1
            bms = reduce(strings, self.profile, self._cells_per_string, self._polls, self.loss.pct)
            self._cells.publish(wire_cells(strings, self.profile), started_ns)
            self._strings.publish(string_values(strings), started_ns)
            self._bms.publish(image.BMS.pack(*bms), started_ns)
        self._write_heartbeat()
        return not frozen

    def _frozen(self, strings: list[StringPoll]) -> bool:
        name = self._beat
        if name is None:
            return False
        now_s = monotonic()
        stands = [b.frozen(s.values[name], now_s) for b, s in zip(self._beats, strings, strict=True)]
        return any(stands)

    def _arrays_of(self, unit: int) -> list[list[Read]]:
        cells, arrays = self._cells_per_string, self.profile.arrays
        return [[Read(unit, *block) for block in arrays[n].blocks(cells)] for n in ("cell_v", "cell_c", "balancing")]

    def _write_heartbeat(self) -> None:
        if self._ems_beat is None or monotonic() < self._beat_due_s:
            return
        self._beat_due_s = monotonic() + 1.0
        address, beat = self.profile.points[self._ems_beat].address, self.profile.encode(self._ems_beat, _count_up())
        for unit in self._units:
            self.tell(partial(self.link.write, unit, address, beat))


def _readable(profile: Profile, unit: int) -> dict[Read, Block]:
    """The reads that fetch every point that is not written."""
    blocks = profile.blocks(name for name, point in profile.points.items() if point.access == "R")
    return {Read(unit, block.address, block.count): block for block in blocks}


def _decoded(
    profile: Profile, blocks: Mapping[Read, Block], answers: Mapping[Read, Answer], stamped: str
) -> tuple[float, dict[str, float]]:
    """When the point `stamped` came (CLOCK_MONOTONIC, ms), and all values."""
    values: dict[str, float] = {}
    stamp_ms = 0.0
    for read, block in blocks.items():
        values |= profile.decode(block, answers[read].data)
        if stamped in block.names:
            stamp_ms = answers[read].at_s * 1e3
    return stamp_ms, values


def _count_up() -> int:
    """A heartbeat: one more each second, 16 bits."""
    return int(monotonic()) & 0xFFFF


class PcsPoller(Poller):
    """Writes the set-point block, then reads the PCS; a set-point that changes in between is written within 5 ms."""

    def __init__(
        self, settings: AggregatorSettings, files: SectionFile, tell: Tell, stop: Event, directory: Path | None = None
    ) -> None:
        s = settings
        timeout_s = s.request_timeout_ms / 1000.0
        link = _link("PCS", s.pcs_host, s.pcs_port, s.pcs_profile, timeout_s)
        super().__init__(link, s.pcs_profile, s.pcs_poll_ms, tell, stop)
        self._pcs = files["pcs"]
        self._control = image.View(image.CONTROL, "controller", "control", directory)
        self._unit = self.profile.first_unit
        ems_beat = self.profile.heartbeats.write
        self._reads = _readable(self.profile, self._unit)
        self._writes = self.profile.blocks((*_WRITTEN, ems_beat) if ems_beat else _WRITTEN, max_gap=0)
        self._beat, self._ems_beat = self.profile.heartbeats.read, ems_beat
        self._heart = Heartbeat()
        self._written: tuple[float, ...] = ()
        self._polls = 0

    def identify(self) -> str:
        return verify(self.link, self.profile, self._unit)

    def unidentified(self) -> None:
        self._pcs.publish(image.PCS.pack(*NOT_OURS_PCS))

    def idle(self, until_s: float) -> None:
        while not self.stop.is_set():
            if self._wanted() != self._written:
                self.tell(self._write)
            left_s = until_s - monotonic()
            if left_s <= 0:
                return
            self.stop.wait(min(left_s, CONTROL_TICK_S))

    def poll(self) -> bool:
        started_ns = monotonic_ns()
        self.tell(self._write)
        stamp_ms, values = _decoded(self.profile, self._reads, self.read_all(list(self._reads)), "dc_v")
        if self._beat is not None and self._heart.frozen(values[self._beat], monotonic()):
            return False
        self._polls += 1
        self._pcs.publish(image.PCS.pack(*pcs_values(values, stamp_ms, self._polls, self.loss.pct)), started_ns)
        return True

    def finish(self) -> None:
        self._write(_STOP)

    def _wanted(self) -> tuple[float, ...]:
        """Values of `_WRITTEN`: the controller's while they are fresh, else stop and 0 A."""
        control = self._control.refresh()
        if control is None or self._control.age_ms() > CONTROL_TIMEOUT_MS:
            return _STOP
        return float(control.pcs_run), control.setpoint_a, control.charge_limit_a, control.discharge_limit_a

    def _write(self, wanted: tuple[float, ...] | None = None) -> None:
        """What is wanted at this very moment: an attempt that is made again must not bring an old set-point."""
        wanted = wanted or self._wanted()
        values = dict(zip(_WRITTEN, wanted, strict=True))
        if self._ems_beat is not None:
            values[self._ems_beat] = _count_up()
        for block in self._writes:
            data = b"".join([self.profile.encode(name, values[name]) for name in block.names])
            self.link.write(self._unit, block.address, data)
        self._written = wanted


class Aggregator:
    """Both pollers and the sections they publish. `step` publishes the link counters; call it ten times a second."""

    def __init__(self, settings: AggregatorSettings, directory: Path | None = None) -> None:
        self._files = image.writer("aggregator", directory)
        self._events, self._lock = image.EventLog(self._files["events"]), Lock()
        self.stop = Event()
        self.bms = BmsPoller(settings, self._files, self._tell, self.stop)
        self.pcs = PcsPoller(settings, self._files, self._tell, self.stop, directory)

    def start(self) -> None:
        for poller in (self.bms, self.pcs):
            poller.start()

    def hurry(self) -> bool:
        """SCHED_FIFO for both pollers: data that waits for a busy machine stops the rack. False without the right."""
        return all(use_fifo(PRIORITY, poller.native_id or 0) for poller in (self.bms, self.pcs))

    def step(self) -> bool:
        """False when a poller has died."""
        self._files["links"].publish(image.LINKS.pack(*self.bms.tally.row(), *self.pcs.tally.row()))
        return self.bms.is_alive() and self.pcs.is_alive()

    def close(self) -> None:
        """Ends both threads in order; the PCS is told to stop."""
        self.stop.set()
        for poller in (self.bms, self.pcs):
            if poller.is_alive():
                poller.join(2.0)
        self._files.close()

    def _tell(self, text: str) -> None:
        with self._lock:
            self._events.add(0, text=text)


def settings_of_site(directory: Path) -> AggregatorSettings:
    """From site.conf. Raises ConfigError or ProfileError."""
    site = load_site(directory)
    cells = site.modules_per_string * site.cells_per_module
    bms_profile = _profile(site.bms_profile, "bms", site.bms_host)
    for array in bms_profile.arrays.values():
        array.registers(cells)
    return AggregatorSettings(
        bms_host=site.bms_host,
        bms_port=site.bms_port,
        bms_profile=bms_profile,
        strings=site.strings,
        cells_per_string=cells,
        pcs_host=site.pcs_host,
        pcs_port=site.pcs_port,
        pcs_profile=_profile(site.pcs_profile, "pcs", site.pcs_host),
        bms_poll_ms=site.bms_poll_ms,
        pcs_poll_ms=site.pcs_poll_ms,
        request_gap_ms=site.request_gap_ms,
        request_timeout_ms=site.request_timeout_ms,
    )


def _profile(name: str, kind: str, host: str) -> Profile:
    profile = load(name)
    if host.startswith("/") and profile.line.framing != "rtu":
        raise ProfileError(f'{kind}_host = {host} in site.conf: a serial line needs a profile with framing = "rtu"')
    if profile.kind != kind:
        raise ProfileError(f"{kind}_profile = {name} in site.conf: that is a {profile.kind} profile, name a {kind} one")
    return profile


def main() -> int:
    """Runs until SIGTERM or SIGINT. Exit code 0; 1 when a poller died; 2 when it cannot start."""
    try:
        settings = settings_of_site(config_directory())
        aggregator = Aggregator(settings)
    except (ConfigError, ProfileError, SectionError) as error:
        print(f"aggregator: {error}", file=sys.stderr)
        return 2
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    s = settings
    print(
        f"aggregator[{os.getpid()}]: BMS {s.bms_host}:{s.bms_port} {s.strings} x {s.cells_per_string} cells every "
        f"{s.bms_poll_ms} ms, PCS {s.pcs_host}:{s.pcs_port} every {s.pcs_poll_ms} ms",
        file=sys.stderr,
    )
    aggregator.start()
    if not aggregator.hurry():
        print("aggregator: without the right to SCHED_FIFO: a busy machine makes data late", file=sys.stderr)
    alive, life = True, Notifier()
    while alive and not ended.wait(0.1):
        alive = aggregator.step()
        life.tick()
    aggregator.close()
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
