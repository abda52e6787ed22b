"""`python -m drivers.bench`: the rack, PCS and I/O board of a machine without hardware, until SIGTERM or Ctrl-C.

Environment: EMS_RUN_DIR (/run/ems), EMS_BENCH_SPEED (1), EMS_BENCH_SOC (20 %), EMS_BENCH_SIZE (4x20x15: strings x
modules x cells), EMS_BENCH_CHEMISTRY (nmc or lfp), EMS_BMS_PORT (5502), EMS_PCS_PORT (5503), EMS_BENCH_PORT (5021).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from drivers.modbus.server import StrictServer

from .control import ControlDevice
from .devices import BmsDevice, PcsDevice
from .plant import Plant
from .rack import CHEMISTRIES, Chemistry, Rack, Size
from .terminals import Terminals
from .wire import BenchServer, serve_device

HOST = "127.0.0.1"
TICK_S = 0.005


class Settings(NamedTuple):
    """What the environment says."""

    directory: Path
    speed: float
    soc_pct: float
    size: Size
    chemistry: Chemistry
    bms_port: int
    pcs_port: int
    control_port: int


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"{name}={text}: allowed {low:g}..{high:g}")
    return value


def _size(text: str) -> Size:
    found = re.fullmatch(r"(\d{1,2})x(\d{1,3})x(\d{1,3})", text)
    size = Size(*map(int, found.groups())) if found else Size(0, 0, 0)
    if not (1 <= size.strings <= 16 and 1 <= size.series <= 1024 and size.total <= 4096):
        raise ValueError(
            f"EMS_BENCH_SIZE={text}: give strings x modules x cells, such as 4x20x15, at most 1024 in series"
        )
    return size


def settings(environ: Mapping[str, str]) -> Settings:
    """Raises ValueError that names the variable, its value and what is allowed."""
    chemistry = environ.get("EMS_BENCH_CHEMISTRY", "nmc")
    if chemistry not in CHEMISTRIES:
        raise ValueError(f"EMS_BENCH_CHEMISTRY={chemistry}: allowed {' or '.join(CHEMISTRIES)}")
    return Settings(
        directory=Path(environ.get("EMS_RUN_DIR", "/run/ems")),
        speed=_number(environ, "EMS_BENCH_SPEED", 1, 1, 600),
        soc_pct=_number(environ, "EMS_BENCH_SOC", 20, 0, 100),
        size=_size(environ.get("EMS_BENCH_SIZE", "4x20x15")),
        chemistry=CHEMISTRIES[chemistry],
        bms_port=int(_number(environ, "EMS_BMS_PORT", 5502, 0, 65535)),
        pcs_port=int(_number(environ, "EMS_PCS_PORT", 5503, 0, 65535)),
        control_port=int(_number(environ, "EMS_BENCH_PORT", 5021, 0, 65535)),
    )


class Bench:
    """A running bench. Made by `start`; ticks until `close`."""

    def __init__(self, chosen: Settings) -> None:
        self.terminals = Terminals(chosen.directory)
        rack = Rack(chosen.size, chosen.chemistry, soc=chosen.soc_pct / 100.0)
        self.plant = Plant(rack, self.terminals, monotonic_ns(), chosen.speed)
        self.bms, self.pcs = BmsDevice(self.plant), PcsDevice(self.plant)
        self.control = ControlDevice(self.plant, self.bms, self.pcs)
        self.servers: list[BenchServer | StrictServer] = []
        self._control_server: StrictServer | None = None
        self._loop = asyncio.get_running_loop()
        self._next_s = self._loop.time()
        self._timer = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self.plant.tick(monotonic_ns())
        if self._control_server is not None:
            self._control_server.step()  # also ends idle connections
        self._next_s = max(self._next_s + TICK_S, self._loop.time())
        self._timer = self._loop.call_at(self._next_s, self._tick)

    @property
    def ports(self) -> tuple[int, ...]:
        """BMS, PCS, bench control."""
        return tuple(server.port for server in self.servers)

    def listen_for_control(self, port: int) -> None:
        """Raises OSError when the port is in use."""
        server = self._control_server = StrictServer(self.control, HOST, port)
        self.servers.append(server)
        self._loop.add_reader(server.fileno(), server.step)

    def close(self) -> None:
        """Stops ticking and serving."""
        self._timer.cancel()
        if self._control_server is not None:
            self._loop.remove_reader(self._control_server.fileno())
        for server in self.servers:
            server.close()
        self.terminals.close()


async def start(chosen: Settings) -> Bench:
    """Raises OSError, with the port and its variable in the message, when a port is in use."""
    bench = Bench(chosen)
    try:
        with _named("BMS", chosen.bms_port, "EMS_BMS_PORT"):
            bench.servers.append(await serve_device(bench.bms, HOST, chosen.bms_port))
        with _named("PCS", chosen.pcs_port, "EMS_PCS_PORT"):
            bench.servers.append(await serve_device(bench.pcs, HOST, chosen.pcs_port))
        with _named("control", chosen.control_port, "EMS_BENCH_PORT"):
            bench.listen_for_control(chosen.control_port)
    except OSError:
        bench.close()
        raise
    return bench


@contextmanager
def _named(what: str, port: int, variable: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{what} port {HOST}:{port} cannot be served ({error.strerror}); end its other user or set {variable}"
        raise OSError(text) from error


async def _run(chosen: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    bench = await start(chosen)
    bms, pcs, control = bench.ports
    size, strings = "x".join(map(str, chosen.size)), chosen.size.strings
    print(
        f"bench: {size} {chosen.chemistry.name} cells at {chosen.soc_pct:g} %, speed {chosen.speed:g}; "
        f"BMS {HOST}:{bms} units 1..{strings}, PCS {HOST}:{pcs}, control {HOST}:{control}, board in {chosen.directory}",
        file=sys.stderr,
        flush=True,
    )
    await stop.wait()
    bench.close()


def main() -> int:
    """0 after an orderly stop, 1 when it could not start."""
    try:
        asyncio.run(_run(settings(os.environ)))
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
