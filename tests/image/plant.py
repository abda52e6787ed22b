"""What stands around the machine: the simulated rack on the host, the site's configuration, and the adapters."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from appliance import Remote
from waiting import wait_until

from firmware.config import prepare
from firmware.points import PointClient, PointError
from firmware.registers import POINT
from statemachine.states import State

from .bench_board import BenchBoard
from .vm import HOST, Vm, VmError, free_port, slowness

REPO = Path(__file__).parents[2]
STOPPED, TRIES = (State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT), 4


class Row(NamedTuple):
    promise: str
    ok: bool
    seen: str


MEMORY = Path("/dev/shm")
"""Not on a disk: the rack must not wait for it."""


class Rack(NamedTuple):
    """The simulated BMS and PCS, on the host."""

    process: subprocess.Popen[bytes]
    directory: Path
    bms_port: int
    pcs_port: int
    control_port: int


@contextmanager
def rack(work: Path) -> Iterator[Rack]:
    """`python -m drivers.bench` until the end of the block."""
    work.mkdir(parents=True, exist_ok=True)
    run = Path(mkdtemp(prefix="ems-", dir=MEMORY))
    ports = [free_port() for _ in range(3)]
    environ = {"PYTHONPATH": str(REPO), "EMS_RUN_DIR": str(run), "EMS_BMS_PORT": str(ports[0]),
               "EMS_PCS_PORT": str(ports[1]), "EMS_BENCH_PORT": str(ports[2])}  # fmt: skip
    with (work / "bench.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "drivers.bench"], env=environ, stdout=log, stderr=log)
    try:
        yield Rack(process, run, *ports)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(run)


def seed(folder: Path, bench: Rack, **more: object) -> Path:
    """A site whose BMS and PCS are on the host; everything else is the factory's."""
    folder.mkdir(parents=True, exist_ok=True)
    site = {
        "bms_host": HOST, "bms_port": bench.bms_port, "pcs_host": HOST, "pcs_port": bench.pcs_port,
        "allowed_clients": HOST, "scan_period_ms": 50, **more,
    }  # fmt: skip
    (folder / "site.conf").write_text("".join(f"{name} = {value}\n" for name, value in site.items()))
    return folder


def await_modbus(vm: Vm, timeout_s: float = 60.0) -> float:
    """Seconds from power-on to the first answer that tells a state. Raises PointError or VmError."""
    end_s = time.monotonic() + timeout_s * slowness()
    while True:
        try:
            with PointClient("127.0.0.1", vm.modbus_port, POINT, 2.0) as client:
                client.read("CmfState")
                return time.monotonic() - vm.started_s
        except PointError:
            if time.monotonic() > end_s:
                raise
        vm.must_run()
        time.sleep(0.1)


class Booted(Remote):
    """The appliance in its machine, its adapters, and the rack that they are wired to."""

    pause_s = 0.25

    def __init__(self, vm: Vm, adapters: BenchBoard, bench: Rack) -> None:
        super().__init__(vm.modbus_port, bench.control_port, 5.0)
        self.vm, self.adapters, self._rack_pid = vm, adapters, bench.process.pid

    def prefer(self) -> None:
        """Before everything else here: the rack, the adapters' answers and QEMU's thread that carries them, then the
        emulated processors."""
        wanted = dict.fromkeys((self._rack_pid, self.adapters.pid, self.vm.pid), 2) | dict.fromkeys(self.vm.cpus(), 1)
        with contextlib.suppress(PermissionError):
            for thread, priority in wanted.items():
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))

    def kill(self, name: str, signal: str) -> None:
        """To the main process of a unit, by the service manager."""
        self.vm.out(f"systemctl kill --kill-whom=main -s {signal} ems-{name}")

    def last_events(self) -> str:
        """The end of battery.log, for a check that failed."""
        with contextlib.suppress(VmError, OSError):
            return "\n" + self.vm.out("tail -n 12 /var/log/ems/battery.log | cut -c1-160")
        return ""

    def journal(self, unit: str, lines: int = 5) -> str:
        return self.vm.out(f"journalctl -b -u {unit} --no-pager -o cat -n {lines}")


def awaited(condition: Callable[[], object], timeout_s: float, what: str | Callable[[], str]) -> None:
    """`wait_until` at a pace that leaves the emulated processor its time."""
    wait_until(condition, timeout_s, what, Booted.pause_s)


_ONE_CORE = (
    "[Service]\nCPUAffinity=1\nExecStartPre=+/bin/sh -c 'for d in /proc/irq/*/xhci_hcd; do "
    "echo 2 >$${d%%/*}/smp_affinity; done'\n"
)
SAME_CORE = {f"systemd.unit-dropin.ems-{unit}.service~core": _ONE_CORE for unit in ("guard", "controller")}
"""Guard, controller and the adapters' interrupts on one core: a wake-up of another emulated core takes long."""


@contextmanager
def booted(disk: Path, work: Path, credentials: Mapping[str, str] | None = None) -> Iterator[Booted]:
    """Switched on with everything plugged in; `credentials`: more units and drop-ins for it."""
    with rack(work) as bench:
        places = {"bms_host": HOST, "bms_port": bench.bms_port, "pcs_host": HOST, "pcs_port": bench.pcs_port}
        emulated = {"scan_period_ms": 50, "bms_timeout": 3, "pcs_timeout": 3, "pcs_poll_ms": 60, "bms_poll_ms": 1000,
                    "loop_timeout": 1.2, "max_precharges": 100}  # fmt: skip
        more = {**SAME_CORE, **(credentials or {})}
        prepare(work / "seed", {**places, **emulated, "allowed_clients": HOST})
        with (
            BenchBoard(bench.directory) as adapters,
            Vm(disk, work / "vm", work / "seed", adapters.qemu_options(), cores=2, credentials=more) as vm,
        ):
            vm.start()
            await_modbus(vm)
            with contextlib.closing(Booted(vm, adapters, bench)) as a:
                a.prefer()
                yield a


def late(a: Booted) -> bool:
    """The emulated processor missed three scans in a row, and that alone stopped the rack."""
    with contextlib.suppress(PointError):
        return a.state() in STOPPED and set(a.faults()) - {"ERR_SAMPLER"} == {"ERR_SCAN_OVERRUN"}
    return False


def made(name: str, check: Callable[[], Row], more: Callable[[], str] = lambda: "") -> Row:
    """The check's row; one that cannot be made has failed. `more` is told with it."""
    try:
        return check()
    except (AssertionError, PointError, VmError, OSError) as error:
        return Row(name, False, f"{type(error).__name__}: {error}"[:900] + more())


def rows(a: Booted, checks: Iterable[Callable[[Booted], Row]], recover: Callable[[Booted], None]) -> Iterator[Row]:
    """Each check's row and how long it took; a check that cannot be made has failed, and the next one is tried.

    A check that only missed scans were in the way of is made again, four times at most.
    """
    for check in checks:
        start, tries = time.monotonic(), 1
        while not (row := made(check.__name__, partial(check, a), a.last_events)).ok and late(a) and tries < TRIES:
            tries += 1
            with contextlib.suppress(AssertionError, PointError, VmError, OSError):
                recover(a)
        again = f", try {tries}" if tries > 1 else ""
        yield row._replace(seen=f"{row.seen} ({time.monotonic() - start:.0f} s{again})")
