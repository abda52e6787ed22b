"""The firewall as a stranger meets it: two addresses on a wire of their own, one of them in site.conf; then the same
wire as the management interface, and a VLAN on it. Needs root.

The wire is a TAP device whose other end is in a network namespace; QEMU's user network shows every client as the host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firmware.points import PointClient, PointError
from firmware.registers import POINT

from .faults import PATIENCE_S
from .plant import Row, await_modbus, awaited, made, rack, seed
from .vlan import tap
from .vm import HOST, Vm, call, tried

UNIT, ALLOWED, DENIED = "10.77.0.1", "10.77.0.10", "10.77.0.66"
_MAC = "52:54:00:77:00:01"
_NETWORK = f"[Match]\nMACAddress={_MAC}\n[Network]\nAddress={UNIT}/24\n"
_IN_VLAN = Path(__file__).with_name("vlan.py")
_SUNSPEC = b"SunS".hex()
_ASK = (
    "import socket, sys\n"
    "peer = socket.create_connection((sys.argv[2], int(sys.argv[3])), 5.0, (sys.argv[1], 0))\n"
    "print('connected')\n"
    "peer.sendall(bytes.fromhex('000100000006' '01039c400002'))\n"
    "print(peer.recv(64).hex())\n"
)
"""Two registers from 40000 on: every SunSpec unit has its mark there."""


_PING = (
    "import socket, struct, sys\n"
    "peer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n"
    "peer.settimeout(5.0)\n"
    "peer.bind((sys.argv[1], 0))\n"
    "peer.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never in fragments\n"
    "request = struct.pack('>BBHHH', 8, 0, 0, 1, 1) + bytes(int(sys.argv[3]))\n"
    "total = sum(struct.unpack(f'>{len(request) // 2}H', request))\n"
    "checksum = ~(total + (total >> 16)) & 0xFFFF\n"
    "peer.sendto(request[:2] + struct.pack('>H', checksum) + request[4:], (sys.argv[2], 0))\n"
    "print(len(peer.recv(65535)) - 28, 'bytes came back')\n"
)
"""This machine may have no ping."""
_VLAN, _MTU, _PAYLOAD = 77, 9000, 8000


class Wire:
    """`descriptor` is QEMU's end."""

    def __init__(self, descriptor: int, namespace: str) -> None:
        self.descriptor, self._namespace = descriptor, namespace

    def options(self) -> list[str]:
        return ["-netdev", f"tap,id=n1,fd={self.descriptor}",
                "-device", f"virtio-net-pci,netdev=n1,romfile=,mac={_MAC}"]  # fmt: skip

    def ask(self, source: str, port: int = 502) -> str:
        """What a client at the other end says that speaks from `source`."""
        return self._inside(_ASK, source, UNIT, str(port))

    def ping(self, size: int) -> str:
        """One echo of so many bytes, in one frame."""
        return self._inside(_PING, ALLOWED, UNIT, str(size))

    def ask_in(self, vlan: int) -> str:
        """`ask` from ALLOWED, in a VLAN."""
        within = (str(_IN_VLAN), self._namespace, str(vlan), ALLOWED, UNIT, sys.executable, "-c", _ASK)
        return self._run(*within, ALLOWED, UNIT, "502")

    def _inside(self, code: str, *arguments: str) -> str:
        return self._run("-c", code, *arguments)

    def _run(self, *arguments: str) -> str:
        return tried("ip", "netns", "exec", self._namespace, sys.executable, *arguments).out.strip()


@contextmanager
def wire() -> Iterator[Wire]:
    """Raises VmError or PermissionError where there is no namespace or TAP."""
    name = f"ems{os.getpid()}"
    call("ip", "netns", "add", name)
    descriptor = tap(name)
    try:
        call("ip", "link", "set", name, "netns", name)
        for words in (
            f"link set {name} mtu {_MTU} up",
            f"addr add {ALLOWED}/24 dev {name}",
            f"addr add {DENIED}/24 dev {name}",
        ):
            call("ip", "-n", name, *words.split())
        yield Wire(descriptor, name)
    finally:
        os.close(descriptor)
        call("ip", "netns", "del", name)


def strangers(vm: Vm, line: Wire) -> Row:
    await_modbus(vm)
    vm.await_agent()
    vm.out(f"while ! grep -q '{UNIT}$' /proc/net/fib_trie; do sleep 0.2; done")
    answered, dropped = line.ask(ALLOWED), line.ask(DENIED)
    open_too = [port for port in (22, 80, 111, 802, 5355) if "connected" in line.ask(ALLOWED, port)]
    counted = vm.out("nft list counter inet ems modbus_dropped | grep packets").split()[1]
    ok = _SUNSPEC in answered and dropped.strip().endswith("timed out") and not open_too and counted != "0"
    seen = f"{ALLOWED}: {answered.split()[-1]}; {DENIED}: {dropped.splitlines()[-1]}; {counted} packets dropped"
    return Row("firewall: an address of site.conf is answered, another one's packets are dropped", ok, seen)


def _with(vm: Vm, interface: str) -> None:
    """Another management interface, from the next start on, which is now."""
    lines = f"management_interface = {interface}\nmanagement_address = {UNIT}/24\nmanagement_mtu = {_MTU}"
    vm.out(f"sed -i /^management/d /etc/ems/site.conf; echo '{lines}' >>/etc/ems/site.conf; sync")
    vm.cut_power()
    vm.start()
    vm.await_agent()


def _served(vm: Vm) -> bool:
    """By the other wire."""
    try:
        with PointClient("127.0.0.1", vm.modbus_port, POINT, 5.0) as client:
            return client.read("CmfState") is not None
    except PointError:
        return False


def management(vm: Vm, line: Wire) -> Row:
    name = vm.out(f"basename $(dirname $(grep -l {_MAC} /sys/class/net/*/address))")
    _with(vm, name)
    awaited(lambda: _SUNSPEC in line.ask(ALLOWED), PATIENCE_S, "an answer by the management interface")
    served, ping = _served(vm), line.ping(_PAYLOAD)
    ok = not served and ping == f"{_PAYLOAD} bytes came back"
    seen = f"{name}: {ALLOWED} answered, {ping} in one frame; by the other wire {'answered' if served else 'none'}"
    return Row("management_interface: Modbus by it only, with jumbo frames", ok, seen)


def tagged(vm: Vm, line: Wire) -> Row:
    name = vm.out(f"basename $(dirname $(grep -l {_MAC} /sys/class/net/*/address))")
    _with(vm, f"{name}.{_VLAN}")
    awaited(lambda: _SUNSPEC in line.ask_in(_VLAN), PATIENCE_S, lambda: f"an answer in the VLAN; {line.ask_in(_VLAN)}")
    asked = {"without a tag": line.ask(ALLOWED), f"in VLAN {_VLAN + 1}": line.ask_in(_VLAN + 1)}
    mtu = vm.out(f"cat /sys/class/net/{name}.{_VLAN}/mtu")
    dropped = asked["without a tag"].endswith("timed out") and not any("connected" in said for said in asked.values())
    others = ", ".join(f"{how}: {said.splitlines()[-1]}" for how, said in asked.items())
    return Row(
        "management_interface is a VLAN: Modbus in it only",
        dropped and mtu == str(_MTU),
        f"answered in VLAN {_VLAN}, MTU {mtu}; {others}",
    )


def wall(disk: Path, work: Path) -> Iterator[Row]:
    """Three boots."""
    with rack(work) as bench, wire() as line:
        site = seed(work / "seed", bench, allowed_clients=f"{HOST}, {ALLOWED}")
        (site / "network").mkdir(exist_ok=True)
        (site / "network" / "wire.network").write_text(_NETWORK)
        with Vm(disk, work / "vm", site, line.options(), descriptors=[line.descriptor]) as vm:
            vm.start()
            yield made("firewall", lambda: strangers(vm, line))
            yield made("management interface", lambda: management(vm, line))
            yield made("management VLAN", lambda: tagged(vm, line))
