"""What a booted image must show, one row a promise."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from firmware.points import PointClient, PointError
from firmware.registers import POINT
from statemachine.states import State

from .vm import HOST, Vm, slowness

REPO = Path(__file__).parents[2]
MOST_RAM_MB, MOST_EXPOSED = 256, 2.0
SERVICES = ("guard", "controller", "sampler", "aggregator", "server", "historian", "clock")
ON_BOARD = ("guard", "controller", "sampler")
"""They wait while the board's adapters are not there."""


class Row(NamedTuple):
    promise: str
    ok: bool
    seen: str


class Rack(NamedTuple):
    """The simulated BMS and PCS, on the host."""

    process: subprocess.Popen[bytes]
    bms_port: int
    pcs_port: int
    control_port: int


@contextmanager
def rack(work: Path) -> Iterator[Rack]:
    """`python -m drivers.bench` until the end of the block."""
    work.mkdir(parents=True, exist_ok=True)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    run = work / "bench"
    run.mkdir(exist_ok=True)
    environ = {"PYTHONPATH": str(REPO), "EMS_RUN_DIR": str(run), "EMS_BMS_PORT": str(ports[0]),
               "EMS_PCS_PORT": str(ports[1]), "EMS_BENCH_PORT": str(ports[2])}  # fmt: skip
    with (work / "bench.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "drivers.bench"], env=environ, stdout=log, stderr=log)
    try:
        yield Rack(process, *ports)
    finally:
        process.terminate()
        process.wait()


def seed(folder: Path, bench: Rack, **more: object) -> Path:
    """A site whose BMS and PCS are on the host."""
    folder.mkdir(parents=True, exist_ok=True)
    site = {
        "bms_host": HOST, "bms_port": bench.bms_port, "pcs_host": HOST, "pcs_port": bench.pcs_port,
        "allowed_clients": HOST, "scan_period_ms": 20, **more,
    }  # fmt: skip
    (folder / "site.conf").write_text("".join(f"{name} = {value}\n" for name, value in site.items()))
    return folder


def await_modbus(vm: Vm, timeout_s: float = 60.0) -> float:
    """Seconds from power-on to the first answer that tells a state. Raises PointError."""
    end_s = time.monotonic() + timeout_s * slowness()
    while True:
        try:
            with PointClient("127.0.0.1", vm.modbus_port, POINT, 2.0) as client:
                client.read("CmfState")
                return time.monotonic() - vm.started_s
        except PointError:
            if time.monotonic() > end_s:
                raise
        time.sleep(0.1)


def await_settled(vm: Vm, timeout_s: float = 30.0) -> None:
    """Until the service manager has no job left that is not waiting for the board."""
    end_s = time.monotonic() + timeout_s * slowness()
    while time.monotonic() < end_s:
        jobs = vm.out("systemctl list-jobs --no-legend --plain | awk '$4 == \"running\" {print $2}'")
        if not set(jobs.split()) - {"site-outputs.service"}:
            return
        time.sleep(0.5)


def state(vm: Vm) -> Row:
    """The controller publishes once the board is there; until then the server says INIT or nothing for it."""
    with PointClient("127.0.0.1", vm.modbus_port, POINT, 5.0) as client:
        value = client.read("CmfState")["CmfState"]
    name = State(int(value)).name if value == value else "none: the controller waits for the board"
    return Row("Modbus tells a state", True, name)


def realtime(vm: Vm) -> Row:
    seen = vm.out("uname -rv; cat /sys/kernel/realtime")
    return Row("PREEMPT_RT", seen.endswith("1") and "PREEMPT_RT" in seen, " ".join(seen.split()[:2]))


def memory(vm: Vm) -> Row:
    fields = dict(line.split(":") for line in vm.out("cat /proc/meminfo").splitlines())
    used = (int(fields["MemTotal"].split()[0]) - int(fields["MemAvailable"].split()[0])) / 1024
    return Row(f"RAM used at most {MOST_RAM_MB} MB (100 asked)", used <= MOST_RAM_MB, f"{used:.0f} MB")


def root(vm: Vm) -> Row:
    seen = vm.out("findmnt -no SOURCE,FSTYPE,OPTIONS /; dmsetup status root")
    ok = "/dev/mapper/root squashfs ro" in " ".join(seen.split()) and seen.endswith("verity V")
    return Row("root is a verified squashfs, read-only", ok, seen.splitlines()[-1])


def failed(vm: Vm) -> Row:
    seen = vm.out("systemctl --failed --no-legend --plain; true")
    return Row("no unit failed", not seen, seen or "none")


def services(vm: Vm) -> Row:
    wait = vm.run("systemctl is-active --quiet site-outputs.service").rc
    wanted = [name for name in SERVICES if not (wait and name in ON_BOARD)]
    seen = {name: vm.run(f"systemctl is-active ems-{name}").out.strip() for name in wanted}
    restarts = vm.out("systemctl show -p NRestarts --value 'ems-*.service' | sort -n | tail -1")
    ok = set(seen.values()) == {"active"} and restarts == "0"
    waiting = f"; {', '.join(ON_BOARD)} wait for the board" if wait else ""
    return Row("services run, none restarted", ok, f"{seen}, restarts {restarts}{waiting}" if not ok else
               f"{', '.join(wanted)}{waiting}")  # fmt: skip


def firewall(vm: Vm) -> Row:
    seen = vm.out("nft list table inet ems")
    drops = len(re.findall(r"hook \w+ priority filter; policy drop", seen))
    listed = re.search(r"set clients4 {[^}]*elements = {([^}]*)}", seen)
    ok = drops == 3 and listed is not None and listed[1].strip() == HOST
    return Row(
        "firewall: three chains drop, clients as in site.conf", ok, f"{drops} chains, {listed and listed[1].strip()}"
    )


def profiles(vm: Vm) -> Row:
    """Loaded and enforced, and the running processes are under them."""
    loaded = vm.out("cat /sys/kernel/security/apparmor/profiles").splitlines()
    enforced = {line.split()[0] for line in loaded if line.endswith("(enforce)")}
    expected = {f"ems-{name}" for name in SERVICES}
    pids = vm.out("for u in ems-server ems-historian ems-clock ems-aggregator; do "
                  "cat /proc/$(systemctl show -p MainPID --value $u)/attr/current; done")  # fmt: skip
    ok = enforced == expected and len(loaded) == len(expected) and pids.count("(enforce)") == 4
    return Row("AppArmor: our profiles only, in enforce", ok, f"{len(enforced)} of {len(loaded)} in enforce")


def denials(vm: Vm) -> Row:
    seen = vm.out(
        "journalctl -b --no-pager -o cat _TRANSPORT=audit + _TRANSPORT=kernel | grep 'apparmor=\"DENIED\"' || true"
    )
    what = sorted(
        {" ".join(re.findall(r'(?:profile|operation|name|class)="[^"]*"', line)) for line in seen.splitlines()}
    )
    return Row("AppArmor denies nothing of what they do", not what, "; ".join(what)[:1500] or "none")


def exposure(vm: Vm) -> Row:
    listed = vm.out("systemd-analyze security --no-pager --json=short", 60.0)
    scores = {row["unit"]: float(row["exposure"]) for row in json.loads(listed) if row["unit"].startswith("ems-")}
    seen = {name: scores.get(f"ems-{name}.service", 10.0) for name in SERVICES}
    ok = all(score <= MOST_EXPOSED for score in seen.values())
    told = ", ".join(f"{name} {score}" for name, score in seen.items())
    return Row(f"systemd-analyze security at most {MOST_EXPOSED}", ok, told)


def ports(vm: Vm) -> Row:
    """Listening TCP sockets, and bound UDP sockets that are not a client's."""
    tables = vm.out('for f in tcp tcp6 udp udp6; do sed "1d;s/^/$f /" /proc/net/$f; done').splitlines()
    rows = [line.split() for line in tables]
    tcp = {int(row[2].rpartition(":")[2], 16) for row in rows if row[0].startswith("tcp") and row[4] == "0A"}
    udp = {int(row[2].rpartition(":")[2], 16) for row in rows if row[0].startswith("udp")} - {68, 546}
    return Row("nothing listens but Modbus", tcp <= {502, 802} and not udp, f"TCP {sorted(tcp)}, UDP {sorted(udp)}")


def peers(vm: Vm) -> Row:
    """The aggregator reaches BMS and PCS through its filter; root reaches nobody."""
    end_s = time.monotonic() + 20 * slowness()
    with PointClient("127.0.0.1", vm.modbus_port, POINT, 5.0) as client:
        while (soc := client.read("Soc")["Soc"]) != soc and time.monotonic() < end_s:
            time.sleep(0.2)
    other = vm.run(f"timeout 3 /usr/bin/python3 -Ic \"import socket; socket.create_connection(('{HOST}', 9), 2)\"")
    denied = "timed out" in other.out or other.rc == 124 or "not permitted" in other.out
    return Row("aggregator reads BMS and PCS, another user's packets do not leave", soc == soc and denied,
               f"SoC {soc:.1f} %, root: {other.out.strip().splitlines()[-1:] or other.rc}")  # fmt: skip


def data(vm: Vm) -> Row:
    sizes = vm.out("df -m --output=size,target /data /var /etc/ems | tail -n +2")
    size = int(sizes.split()[0])
    wrote = vm.out("ls /var/log/ems /etc/ems; test ! -w /usr && touch /etc/probe 2>&1 || true")
    ok = size > 2000 and "battery.log" in wrote and "limits.conf" in wrote and "Read-only" in wrote
    return Row("data has grown to the disk, /etc is read-only", ok, f"/data {size} MiB")


def seeded(vm: Vm) -> Row:
    journal = vm.out("journalctl -b -u site-setup --no-pager -o cat")
    gone = vm.run("test ! -e /efi/ems-seed").rc == 0
    return Row(
        "seed taken once, then removed", "seed taken: site.conf" in journal and gone, journal.splitlines()[1][:100]
    )


def untainted(vm: Vm) -> Row:
    seen = vm.out("cat /proc/sys/kernel/tainted")
    return Row("kernel not tainted", seen == "0", seen)


def warnings(vm: Vm) -> Row:
    """Stated, to be read: what the journal of the boot calls an error."""
    seen = vm.out("journalctl -b -p err --no-pager -o cat | sort | uniq -c | sort -rn | head -8; true")
    return Row(
        "errors in the journal (stated)", True, "; ".join(line.strip() for line in seen.splitlines())[:600] or "none"
    )


CHECKS: tuple[Callable[[Vm], Row], ...] = (
    state, realtime, memory, root, failed, services, firewall, profiles, denials, exposure, ports, peers, data, seeded,
    untainted, warnings,
)  # fmt: skip


def smoke(disk: Path, work: Path) -> Iterator[Row]:
    """One boot, every check."""
    with rack(work) as bench, Vm(disk, work / "vm", seed(work / "seed", bench)) as vm:
        vm.start()
        took_s = await_modbus(vm)
        yield Row("boot to Modbus answer", True, f"{took_s:.1f} s")
        vm.await_agent()
        await_settled(vm)
        for check in CHECKS:
            try:
                row = check(vm)
            except Exception as error:  # a check that cannot be made has failed
                row = Row(check.__name__, False, f"{type(error).__name__}: {error}"[:900])
            yield row
