"""The firewall as a stranger meets it: two addresses on a wire of their own, one of them in site.conf. Needs root.

The wire is a TAP device whose other end is in a network namespace; QEMU's user network shows every client as the host.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .plant import Row, await_modbus, made, rack, seed
from .vm import HOST, Vm, call, tried

UNIT, ALLOWED, DENIED = "10.77.0.1", "10.77.0.10", "10.77.0.66"
_MAC = "52:54:00:77:00:01"
_NETWORK = f"[Match]\nMACAddress={_MAC}\n[Network]\nAddress={UNIT}/24\n"
_TUNSETIFF, _TAP, _NO_PACKET_INFORMATION = 0x400454CA, 0x2, 0x1000
_SUNSPEC = b"SunS".hex()
_ASK = (
    "import socket, sys\n"
    "peer = socket.create_connection((sys.argv[2], int(sys.argv[3])), 5.0, (sys.argv[1], 0))\n"
    "print('connected')\n"
    "peer.sendall(bytes.fromhex('000100000006' '01039c400002'))\n"
    "print(peer.recv(64).hex())\n"
)
"""Two registers from 40000 on: every SunSpec unit has its mark there."""


class Wire:
    """`descriptor` is QEMU's end."""

    def __init__(self, descriptor: int, namespace: str) -> None:
        self.descriptor, self._namespace = descriptor, namespace

    def options(self) -> list[str]:
        return ["-netdev", f"tap,id=n1,fd={self.descriptor}",
                "-device", f"virtio-net-pci,netdev=n1,romfile=,mac={_MAC}"]  # fmt: skip

    def ask(self, source: str, port: int = 502) -> str:
        """What a client at the other end says that speaks from `source`."""
        return tried("ip", "netns", "exec", self._namespace, sys.executable, "-c", _ASK, source, UNIT, str(port)).out


@contextmanager
def wire() -> Iterator[Wire]:
    """Raises VmError or PermissionError where there is no namespace or TAP."""
    name = f"ems{os.getpid()}"
    call("ip", "netns", "add", name)
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PACKET_INFORMATION))
        call("ip", "link", "set", name, "netns", name)
        for words in (f"link set {name} up", f"addr add {ALLOWED}/24 dev {name}", f"addr add {DENIED}/24 dev {name}"):
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


def wall(disk: Path, work: Path) -> Iterator[Row]:
    """One boot."""
    with rack(work) as bench, wire() as line:
        site = seed(work / "seed", bench, allowed_clients=f"{HOST}, {ALLOWED}")
        (site / "network").mkdir(exist_ok=True)
        (site / "network" / "wire.network").write_text(_NETWORK)
        with Vm(disk, work / "vm", site, line.options(), descriptors=[line.descriptor]) as vm:
            vm.start()
            yield made("firewall", lambda: strangers(vm, line))
