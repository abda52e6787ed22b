"""The whole appliance and its bench as `make run HEADLESS=1` starts them, on ports of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_until

from drivers.bench.control import POINTS as BENCH_POINTS
from firmware.config import prepare
from firmware.points import PointClient, PointError
from firmware.registers import POINT
from firmware.runner import Ports
from firmware.words import FAULT_BITS, faults_in
from statemachine.faults import names
from statemachine.signals import GuardTrip, Mode, Why
from statemachine.states import State


def free_ports() -> Ports:
    """Four ports nobody serves at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in Ports._fields]
    ports = Ports(*(s.getsockname()[1] for s in sockets))
    for s in sockets:
        s.close()
    return ports


class Remote:
    """Talks to an appliance as a site controller does, and to its bench as an outside check does."""

    pause_s = 0.002
    """Between two looks at a state."""

    def __init__(self, modbus_port: int, bench_port: int, timeout_s: float = 2.0) -> None:
        self.site = PointClient("127.0.0.1", modbus_port, POINT, timeout_s)
        self.bench = PointClient("127.0.0.1", bench_port, {p.name: p for p in BENCH_POINTS})

    def get(self, name: str) -> float:
        return self.site.read(name)[name]

    def faults(self) -> list[str]:
        """Names of the faults that are active or latched."""
        return names(faults_in(self.site.read(*FAULT_BITS)))

    def truth(self, name: str) -> float:
        return self.bench.read(name)[name]

    def inject(self, **values: float) -> None:
        for name, value in values.items():
            self.bench.write({name: value})

    def state(self) -> State | None:
        """None while the controller is silent."""
        try:
            value = self.get("CmfState")
        except PointError:
            return None
        return None if value != value else State(int(value))

    def until(self, *wanted: State, timeout_s: float = 30.0) -> State:
        seen: list[State | None] = []

        def there() -> bool:
            now = self.state()
            if not seen or seen[-1] is not now:
                seen.append(now)
            return now in wanted

        wait_until(there, timeout_s, lambda: f"{' or '.join(s.name for s in wanted)}; went {seen}", self.pause_s)
        assert seen[-1] is not None
        return seen[-1]

    def command(self, mode: Mode, rate_c: float = 0.5, target_pct: float = 80.0, w: float = 0.0) -> int:
        """One FC16; the new CmdSeq. The guard arms some scans after the first ISOLATED: that much is waited for."""
        if mode is not Mode.OFF and self.get("GuardTrip") in (GuardTrip.NONE, GuardTrip.START):
            wait_until(lambda: self.get("Permit") != Why.GUARD_NOT_ARMED, 5.0, "the guard arms", self.pause_s)
        seq = int(self.get("CmdSeq")) + 1
        self.site.write({"CmdSeq": seq, "CmdMode": mode, "CmdW": w, "CmdRamp": rate_c, "CmdTgtSoC": target_pct})
        return seq

    def all_open(self) -> bool:
        return not any(self.bench.read("true_pos", "true_neg", "true_precharge").values())

    def close(self) -> None:
        self.site.close()
        self.bench.close()


class Appliance(Remote):
    """The one that runs here."""

    def __init__(self, runner: subprocess.Popen[str], ports: Ports, logs: Path) -> None:
        super().__init__(ports.EMS_MODBUS_PORT, ports.EMS_BENCH_PORT)
        self.runner, self.ports, self.logs = runner, ports, logs

    def pid(self, name: str) -> int:
        """Process id of one of the runner's children, by its module: "guard", or "bench"."""
        wanted = {f"firmware.{name}", f"drivers.{name}"}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end while we look
                ours = entry.name.isdecimal() and f"PPid:\t{self.runner.pid}\n" in (entry / "status").read_text()
                if ours and wanted & set((entry / "cmdline").read_text().split("\0")):
                    return int(entry.name)
        raise AssertionError(f"{name} does not run")

    def log(self) -> str:
        return (self.logs / "battery.log").read_text()

    def image(self) -> Path:
        """The directory of the process image."""
        environ = Path(f"/proc/{self.pid('guard')}/environ").read_bytes().split(b"\0")
        return Path(next(e for e in environ if e.startswith(b"EMS_RUN_DIR=")).partition(b"=")[2].decode())


def _configuration(directory: Path, ports: Ports, changes: Mapping[str, object]) -> Path:
    """The bench's configuration with some lines changed."""
    at = {"bms": ports.EMS_BMS_PORT, "pcs": ports.EMS_PCS_PORT, "modbus": ports.EMS_MODBUS_PORT}
    places = {f"{name}_host": "127.0.0.1" for name in at} | {f"{name}_port": port for name, port in at.items()}
    prepare(directory, {**places, "log_directory": str(directory.parent), **changes})
    return directory


RUNNER = ("-m", "firmware.runner")
PATIENT = {"max_closings_per_hour": 1000, "max_precharges": 100, "max_under_load": 1000}
"""For a rack that closes more often than a real one may."""
EAGER = {"ramp_up_rate": 0.08}
"""50 A after half a second; between two samples of the rack's voltage the current moves 9 A, below 1 V."""


STEADY = {"scan_period_ms": 20}
"""Where the scan's timing is not what is tested: a machine that runs cold for 10 ms now and then trips no rack."""


@contextmanager
def appliance(
    logs: Path,
    speed: int = 1,
    soc: float = 20.0,
    without: str = "",
    configured: Mapping[str, object] | None = None,
    start: tuple[str, ...] = RUNNER,
    environment: Mapping[str, str] | None = None,
    nice: int = 0,
    ports: Ports | None = None,
) -> Iterator[Appliance]:
    """Started, READY printed; ended in order afterwards. `without`: capabilities taken away, as setpriv names them.

    `configured`: lines of the configuration that differ from the bench's. `start`: another way to call the runner.
    `nice`: below 0 other programs of this machine come second. `ports`: those of an earlier start.
    """
    ports = ports or free_ports()
    environ = {**os.environ, **{k: str(v) for k, v in ports._asdict().items()}, **(environment or {})}
    environ.pop("EMS_CONFIG_DIR", None)
    if configured is not None:
        environ["EMS_CONFIG_DIR"] = str(_configuration(logs / "config", ports, configured))
    runner = subprocess.Popen(
        [
            *(("setpriv", "--bounding-set", without) if without else ()),
            *(("nice", "-n", str(nice)) if nice else ()),
            *(sys.executable, *start, "--headless", "--directory", str(logs)),
            *("--speed", str(speed), "--soc", str(soc)),
        ],
        env=environ, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert runner.stdout is not None
    try:
        for line in runner.stdout:
            if line == "READY\n":
                break
        else:
            raise AssertionError(f"the runner ended with {runner.wait()}")
        made = Appliance(runner, ports, logs)
        yield made
        made.close()
    finally:
        runner.send_signal(signal.SIGTERM)
        try:
            runner.wait(40)
        finally:
            runner.kill()
