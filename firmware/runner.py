"""`make run`: the bench and the appliance in one terminal, each process real, supervised, ended in order.

On the appliance systemd does this. Here a table of processes is started, one that dies is started again, and none is
left behind: not after Ctrl-C, not after an error, and not when this process itself is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from .config import ConfigError, Site, load, prepare
from .panel import how_to_talk
from .points import PointClient, PointError
from .realtime import STOP_SIGNALS, arrived
from .registers import POINT

HOST = "127.0.0.1"
CONTROLLER_STOP_S = 20.0
"""The controller ramps to zero before it opens the contactors and ends; it bounds that itself at 15 s."""
MOST_DEATHS, DEATHS_S = 5, 60.0
_BENCH_START_S = 30.0
_TICK_S = 0.1
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class RunError(Exception):
    """The run cannot begin or go on; the text says why and what to do."""


class Policy(Enum):
    RESTART = "is started again"
    END = "ends the run"
    LEAVE = "may end"


class Process(NamedTuple):
    """One row of the table."""

    name: str
    command: tuple[str, ...]  # arguments of the Python interpreter
    policy: Policy = Policy.RESTART
    on_terminal: bool = False
    stop_s: float = 5.0  # between SIGTERM and SIGKILL


def module(name: str, policy: Policy = Policy.RESTART) -> Process:
    return Process(name.rpartition(".")[2], ("-m", name), policy)


BENCH = module("drivers.bench", Policy.END)
APPLIANCE = (
    *(module(f"firmware.{name}") for name in ("historian", "guard", "clock", "server", "aggregator")),
    module("firmware.controller")._replace(stop_s=CONTROLLER_STOP_S),
)
"""In the order of their start. The stop is the other way round, so the historian sees it to the end."""


class Supervisor:
    """Starts processes, starts them again when they die, ends them in reverse order. Logs go to `logs`/NAME.log."""

    def __init__(self, logs: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._logs, self._environ, self._say = logs, dict(environ), say
        self._running: dict[Process, subprocess.Popen[bytes]] = {}
        self._deaths: dict[Process, deque[float]] = {}

    def start(self, process: Process) -> None:
        """Starts one process with an empty log."""
        self._log(process).write_bytes(b"")
        self._spawn(process)

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to a process, if it runs."""
        for process, popen in self._running.items():
            if process.name == name:
                popen.send_signal(number)

    def check(self) -> str:
        """Looks after all of them once. Not empty: why the run must end."""
        for process, popen in list(self._running.items()):
            if popen.poll() is None:
                continue
            if why := self._died(process, popen.returncode):
                return why
        return ""

    def stop(self) -> None:
        """Ends all, the last started first, each by SIGTERM and after its `stop_s` by SIGKILL."""
        for process, popen in reversed(list(self._running.items())):
            popen.terminate()
            try:
                popen.wait(process.stop_s)
            except subprocess.TimeoutExpired:
                self._say(f"{process.name} did not end within {process.stop_s:g} s of SIGTERM: killed")
                popen.kill()
                popen.wait()
        self._running.clear()

    def _died(self, process: Process, code: int) -> str:
        del self._running[process]
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        tail = f"{process.name} ended {how}; end of {self._log(process)}:{self._tail(process)}"
        if process.policy is Policy.END:
            return tail
        if process.policy is Policy.LEAVE:
            self._say(tail if code else f"{process.name} ended")
            return ""
        deaths = self._deaths.setdefault(process, deque(maxlen=MOST_DEATHS + 1))
        deaths.append(time.monotonic())
        if len(deaths) > MOST_DEATHS and deaths[-1] - deaths[0] < DEATHS_S:
            return f"{tail}\n{process.name} died {len(deaths)} times within {DEATHS_S:g} s: giving up"
        self._say(f"{tail}\n{process.name} is started again")
        self._spawn(process)
        return ""

    def _spawn(self, process: Process) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if os.getppid() != parent:
                os._exit(1)

        with open(self._log(process), "ab") as log:
            self._running[process] = subprocess.Popen(
                [sys.executable, *process.command],
                stdin=subprocess.DEVNULL,
                stdout=None if process.on_terminal else log,
                stderr=log,
                env=self._environ,
                process_group=0,
                preexec_fn=die_with_parent,
            )

    def _log(self, process: Process) -> Path:
        return self._logs / f"{process.name}.log"

    def _tail(self, process: Process) -> str:
        lines = self._log(process).read_text(errors="replace").splitlines()[-8:]
        return "".join(f"\n  {line}" for line in lines) or " (empty)"


class Ports(NamedTuple):
    """TCP ports on 127.0.0.1, by the variable that changes each."""

    EMS_MODBUS_PORT: int = 5020
    EMS_BENCH_PORT: int = 5021
    EMS_BMS_PORT: int = 5502
    EMS_PCS_PORT: int = 5503


def ports_of(environ: Mapping[str, str]) -> Ports:
    """Raises RunError naming a variable that is no port."""
    chosen = Ports()
    for name in Ports._fields:
        text = environ.get(name, str(getattr(chosen, name)))
        if not (text.isdecimal() and 1 <= int(text) <= 65535):
            raise RunError(f"{name}={text}: allowed 1 to 65535")
        chosen = chosen._replace(**{name: int(text)})
    return chosen


def refuse_used(ports: Ports) -> None:
    """Raises RunError naming the first port that someone else serves."""
    with contextlib.ExitStack() as stack:
        for name, port in ports._asdict().items():
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen(1)
            except OSError as error:
                raise RunError(
                    f"port {HOST}:{port} ({name}) cannot be used: {error.strerror}; "
                    f"end the program that serves it or choose another: {name}={port + 100} make run"
                ) from error


class Run:
    """The bench and the appliance. `work` keeps logs and configuration; the process image goes to tmpfs."""

    def __init__(
        self, work: Path, environ: Mapping[str, str], say: Callable[[str], None], keep_state: bool = False
    ) -> None:
        self.work = work.absolute()
        self.work.mkdir(parents=True, exist_ok=True)
        self.ports = ports_of(environ)
        self.config, site = self._configuration(environ)
        refuse_used(self.ports)
        self._directory = _image_directory(self.work)
        chosen = {
            "EMS_RUN_DIR": str(self._directory),
            "EMS_CONFIG_DIR": str(self.config),
            "EMS_STATE_DIR": str(self._state(keep_state)),
            "EMS_BENCH_SIZE": f"{site.strings}x{site.modules_per_string}x{site.cells_per_module}",
            "EMS_BENCH_CHEMISTRY": site.cell_profile.partition("_")[0],
            "EMS_RT_CORE": str(site.rt_core),
        }
        chosen |= {name: str(port) for name, port in self.ports._asdict().items()}
        self.supervisor = Supervisor(self.work, {**environ, **chosen}, say)

    def _state(self, keep: bool) -> Path:
        """What survives a power cycle; a new bench is a new rack, so nothing does unless it is asked for."""
        directory = self.work / "state"
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(exist_ok=True)
        return directory

    def _configuration(self, environ: Mapping[str, str]) -> tuple[Path, Site]:
        """$EMS_CONFIG_DIR as it is, with its ports; else the defaults for the bench in `work`. Raises ConfigError."""
        if given := environ.get("EMS_CONFIG_DIR"):
            site = load(Path(given)).site
            self.ports = self.ports._replace(
                EMS_MODBUS_PORT=site.modbus_port, EMS_BMS_PORT=site.bms_port, EMS_PCS_PORT=site.pcs_port
            )
            return Path(given), site
        overrides = {
            "bms_host": HOST, "bms_port": self.ports.EMS_BMS_PORT,
            "pcs_host": HOST, "pcs_port": self.ports.EMS_PCS_PORT,
            "modbus_host": HOST, "modbus_port": self.ports.EMS_MODBUS_PORT,
            "log_directory": str(self.work),
        }  # fmt: skip
        prepare(self.work / "config", overrides)
        return self.work / "config", load(self.work / "config").site

    def start(self) -> None:
        """Starts the bench and, when it answers, the appliance. Raises RunError."""
        self.supervisor.start(BENCH)
        self._await_bench()
        for process in APPLIANCE:
            self.supervisor.start(process)

    def check(self) -> str:
        """Not empty: why the run must end."""
        return self.supervisor.check()

    def answers(self) -> bool:
        """Whether the appliance tells its state over Modbus."""
        try:
            with PointClient(HOST, self.ports.EMS_MODBUS_PORT, POINT) as client:
                state = client.read("CmfState")["CmfState"]
        except PointError:
            return False
        return state == state

    def stop(self) -> None:
        """Ends every process and removes the process image."""
        self.supervisor.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _await_bench(self) -> None:
        end_s = time.monotonic() + _BENCH_START_S
        while time.monotonic() < end_s:
            if why := self.check():
                raise RunError(why)
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.ports.EMS_BENCH_PORT), 1.0):
                return
            time.sleep(_TICK_S)
        raise RunError(f"the bench does not serve port {self.ports.EMS_BENCH_PORT} after {_BENCH_START_S:g} s")


def _image_directory(work: Path) -> Path:
    """A directory of this run's own, on tmpfs when there is one: the process image must not wait for a disk."""
    shm = Path("/dev/shm")
    directory = (shm if os.access(shm, os.W_OK) else work) / f"ems-{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _site_and_panel(ports: Ports) -> Iterable[Process]:
    at = ("--host", HOST, "--port", str(ports.EMS_MODBUS_PORT))
    yield Process("site_script", ("-m", "firmware.site_script", *at), Policy.LEAVE)
    bench = ("--bench-port", str(ports.EMS_BENCH_PORT))
    yield Process("panel", ("-m", "firmware.panel", *at, *bench), Policy.LEAVE, on_terminal=True)


def _attend(run: Run, headless: bool) -> int:
    """Until a signal (0) or the run cannot go on (1). SIGHUP goes on to the server, unless the terminal is gone."""
    ready, terminal = False, sys.stdout.isatty()
    while True:
        got = arrived(_TICK_S)
        if got == signal.SIGHUP and sys.stdout.isatty() == terminal:
            run.supervisor.signal("server", signal.SIGHUP)
        elif got:
            return 0
        if why := run.check():
            print(f"run: {why}", file=sys.stderr)
            return 1
        if not ready and run.answers():
            ready = True
            print("READY", flush=True)
            for process in () if headless else _site_and_panel(run.ports):
                run.supervisor.start(process)


def _introduce(run: Run) -> None:
    ports = run.ports
    print(
        f"Appliance {HOST}:{ports.EMS_MODBUS_PORT}, bench control {ports.EMS_BENCH_PORT}, BMS {ports.EMS_BMS_PORT}, "
        f"PCS {ports.EMS_PCS_PORT}, all unit 1 (BMS: a unit a string). Ctrl-C ends everything.\n"
        f"Logs in {os.path.relpath(run.work)}, configuration in {os.path.relpath(run.config)} "
        f"(kill -HUP {os.getpid()} reads it again).\nFrom another terminal:"
    )
    for line in how_to_talk(HOST, ports.EMS_MODBUS_PORT, ports.EMS_BENCH_PORT):
        print(f"  {line}")
    sys.stdout.flush()


def main() -> None:
    """Exit 0 after SIGTERM or Ctrl-C, 1 when it could not start or go on."""
    parser = argparse.ArgumentParser(description="The bench and the appliance, until Ctrl-C.")
    parser.add_argument("--headless", action="store_true", help="no scripted site controller and no panel")
    parser.add_argument("--speed", help="bench speed, 1 to 600")
    parser.add_argument("--soc", help="state of charge at the start, percent")
    parser.add_argument("--directory", type=Path, default=Path("build/run"), help="logs and configuration")
    parser.add_argument("--keep-state", action="store_true", help="begin as after a power cycle: what was saved counts")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    chosen = {"EMS_BENCH_SPEED": args.speed, "EMS_BENCH_SOC": args.soc}
    environ = {**os.environ, **{name: value for name, value in chosen.items() if value}}
    try:
        run = Run(args.directory, environ, lambda text: print(f"run: {text}", file=sys.stderr), args.keep_state)
    except (ConfigError, RunError) as error:
        sys.exit(f"run: {error}")
    code = 1
    try:
        _introduce(run)
        run.start()
        code = _attend(run, args.headless)
    except RunError as error:
        print(f"run: {error}", file=sys.stderr)
    finally:
        run.stop()
    sys.exit(code)


if __name__ == "__main__":
    main()
