"""What a booted image must show, one row a promise."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from firmware.points import PointClient
from firmware.registers import POINT
from statemachine.states import State

from .plant import Row, await_modbus, rack, seed
from .vm import HOST, LABEL, MIB, STICK, Vm, call, slowness

MOST_RAM_MB, MOST_EXPOSED, MOST_BUNDLE_MIB = 192, 2.0, 110
SERVICES = ("guard", "controller", "sampler", "aggregator", "server", "historian", "clock")
ON_BOARD = ("guard", "controller", "sampler")
"""They wait while the board's adapters are not there."""


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
    expected = {f"ems-{name}" for name in (*SERVICES, "updater")}
    pids = vm.out("for u in ems-server ems-historian ems-clock ems-aggregator ems-updater; do "
                  "cat /proc/$(systemctl show -p MainPID --value $u)/attr/current; done")  # fmt: skip
    ok = enforced == expected and len(loaded) == len(expected) and pids.count("(enforce)") == 5
    return Row("AppArmor: our profiles only, in enforce", ok, f"{len(enforced)} of {len(loaded)} in enforce")


def denials(vm: Vm) -> Row:
    seen = vm.out(
        "journalctl -b --no-pager -o cat _TRANSPORT=audit + _TRANSPORT=kernel | grep 'apparmor=\"DENIED\"' || true"
    )
    what = sorted(
        {" ".join(re.findall(r'(?:profile|operation|name|class)="[^"]*"', line)) for line in seen.splitlines()}
    )
    return Row("AppArmor denies nothing of what they do", not what, "; ".join(what)[:1500] or "none")


_TRIAL = """
import os, socket, sys
def tried(name, act):
    try:
        act()
        print(name)
    except PermissionError:
        pass
tried("start a program", lambda: os.posix_spawn("/usr/bin/true", ["true"], {{}}))
for path in {paths!r}:
    tried("write " + path, lambda: open(path, "ab").close())
tried("read /etc/shadow", lambda: open("/etc/shadow").close())
for family, kind in {sockets!r}:
    tried(f"open a socket {{family}}", lambda: socket.socket(getattr(socket, family), getattr(socket, kind)))
open("/etc/ems/site.conf").close()
print("end")
"""
_UNDER = (
    "open('/proc/self/attr/exec', 'w').write('exec {profile}'); import os, sys; "
    "os.execv('/usr/bin/python3', ['python3', '-I', '-c', sys.argv[1]])"
)
_ANY = ("/dev/vda", "/efi/EFI/ems/grubenv", "/run/probe", "/run/ems/probe.img", "/var/lib/ems/probe")
_INET, _NO_SOCKET = ("AF_INET", "SOCK_STREAM"), (("AF_INET", "SOCK_STREAM"), ("AF_PACKET", "SOCK_RAW"))
DENIED = {
    "guard": (_ANY, _NO_SOCKET), "controller": (_ANY, _NO_SOCKET), "sampler": (_ANY, _NO_SOCKET),
    "aggregator": (_ANY, (("AF_PACKET", "SOCK_RAW"), ("AF_INET", "SOCK_DGRAM"))),
    "server": (_ANY, (("AF_PACKET", "SOCK_RAW"), ("AF_INET", "SOCK_DGRAM"))),
    "historian": (_ANY[:4], _NO_SOCKET),
    "clock": (_ANY, (_INET, ("AF_PACKET", "SOCK_RAW"))),
    "updater": (_ANY[:4], (("AF_PACKET", "SOCK_RAW"), ("AF_INET", "SOCK_DGRAM"))),
}  # fmt: skip
"""Profile -> what root may not write and open under it; neither the user nor the unit's sandbox helps here."""


def denied(vm: Vm) -> Row:
    passed = []
    for name, (paths, sockets) in DENIED.items():
        trial = shlex.quote(_TRIAL.format(paths=paths, sockets=sockets))
        seen = vm.out(f'/usr/bin/python3 -I -c "{_UNDER.format(profile=f"ems-{name}")}" {trial}').splitlines()
        passed += [f"{name}: {what}" for what in seen if what != "end"]
        passed += [] if "end" in seen else [f"{name}: did not come to its end"]
    tries = sum(2 + len(paths) + len(sockets) for paths, sockets in DENIED.values())
    return Row("AppArmor denies what it must", not passed, "; ".join(passed)[:900] or f"{tries} tries of root under 8")


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


def pulled(vm: Vm) -> Row:
    """As when the update agent reads just then."""
    image, held = vm.work / "pulled.stick", vm.work / "held"
    held.write_bytes(bytes(4096))
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    call("mkfs.vfat", "-n", LABEL, image)
    call("mcopy", "-i", image, held, "::held")
    there, gone = (f"while {no}mountpoint -q {STICK}; do sleep 0.2; done" for no in ("! ", ""))
    with vm.stick(image):
        vm.out(there)
        vm.out(f"setsid sleep 3600 <{STICK}/held >/dev/null 2>&1 &")
    went = vm.run(gone).rc == 0
    with vm.stick(image):
        came = vm.run(f"{there}; cat {STICK}/held >/run/held && cmp -n 4096 /run/held /dev/zero").rc == 0
    seen = f"{'gone' if went else 'still there'}, the next one is {'there' if came else 'hidden'}"
    return Row("a stick is pulled out while it is read", went and came, seen)


CHECKS: tuple[Callable[[Vm], Row], ...] = (
    state, realtime, memory, root, failed, services, firewall, profiles, denials, denied, exposure, ports, peers, data,
    seeded, untainted, warnings, pulled,
)  # fmt: skip


def smoke(disk: Path, work: Path) -> Iterator[Row]:
    """One boot, every check."""
    bundle_mib = disk.with_name("update.raucb").stat().st_size / MIB
    yield Row(f"update bundle at most {MOST_BUNDLE_MIB} MiB", bundle_mib <= MOST_BUNDLE_MIB, f"{bundle_mib:.1f} MiB")
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
