"""`vlan.py WIRE VLAN SOURCE TARGET COMMAND...`: runs a command that reaches TARGET from SOURCE in a VLAN of WIRE.

The VLAN is made here, a TAP device whose frames get their tag on the way to the wire: the host's kernel may have none.
Needs root, in a network namespace of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading

_TUNSETIFF, _TAP, _NO_PACKET_INFORMATION = 0x400454CA, 0x2, 0x1000
_SOL_PACKET, _PACKET_AUXDATA, _OUTGOING, _ALL_PROTOCOLS = 263, 8, 4, 3
_AUXDATA = struct.Struct("IIIHHHH")  # tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid
_VLAN_VALID = 1 << 4
_TPID, _MOST = 0x8100, 65535


def tap(name: str) -> int:
    """A TAP device's descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PACKET_INFORMATION))
    return descriptor


def _tag(inner: int, wire: socket.socket, vlan: int) -> None:
    while True:
        frame = os.read(inner, _MOST)
        wire.send(frame[:12] + struct.pack(">HH", _TPID, vlan) + frame[12:])


def _untag(inner: int, wire: socket.socket, vlan: int) -> None:
    """The kernel has taken the tag out of what it hands over, and says beside it which one it was."""
    while True:
        frame, notes, _, address = wire.recvmsg(_MOST, socket.CMSG_SPACE(_AUXDATA.size))
        status, *_, tci, _tpid = _AUXDATA.unpack(notes[0][2])
        if address[2] != _OUTGOING and status & _VLAN_VALID and tci & 0xFFF == vlan:
            os.write(inner, frame)


def main(wire_name: str, vlan: str, source: str, target: str, *command: str) -> int:
    inner, wire = tap("inner"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    wire.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    wire.bind((wire_name, 0))
    for words in (f"addr add {source}/32 dev inner", "link set inner up", f"route add {target} dev inner src {source}"):
        subprocess.run(["ip", *words.split()], check=True)
    for way in (_tag, _untag):
        threading.Thread(target=way, args=(inner, wire, int(vlan)), daemon=True).start()
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
