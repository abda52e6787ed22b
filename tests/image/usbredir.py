"""The host's end of usbredir 0.7: plugs a HID device of ours into the guest of QEMU's usb-redir.

It says high speed, where the chips are full speed: reports then wait for the next 0.125 ms and not for the next 1 ms,
which makes up for what an emulated processor takes.

Sources: spice usbredir, docs/usb-redirection-protocol.md and usbredirproto.h; USB 2.0, chapter 9; HID 1.11, chapters 6
and 7. Every request is answered at once, so nothing waits that could be cancelled.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import Protocol


class HidDevice(Protocol):
    """What is plugged in. Reports start with their number, a byte."""

    vendor_id: int
    product_id: int
    strings: tuple[str, str, str]  # manufacturer, product, serial number
    report_descriptor: bytes

    def get_feature(self, report: int) -> bytes:
        """KeyError when there is no such report."""

    def set_feature(self, data: bytes) -> None:
        """KeyError when there is no such report."""

    def output(self, data: bytes) -> list[bytes]:
        """Takes an output report; gives the input reports that answer it."""


class Kind(IntEnum):
    """Packet types."""

    HELLO, DEVICE_CONNECT, DEVICE_DISCONNECT, INTERFACE_INFO, EP_INFO = 0, 1, 2, 4, 5
    SET_CONFIGURATION, GET_CONFIGURATION, CONFIGURATION_STATUS = 6, 7, 8
    SET_ALT_SETTING, GET_ALT_SETTING, ALT_SETTING_STATUS = 9, 10, 11
    START_INTERRUPT_RECEIVING, STOP_INTERRUPT_RECEIVING, INTERRUPT_RECEIVING_STATUS = 15, 16, 17
    CONTROL, INTERRUPT = 100, 103


_OK, _STALL = 0, 4
_CONNECT_VERSION, _MAX_PACKET_SIZE, _64BIT_IDS, _32BIT_BULK = 1 << 1, 1 << 4, 1 << 5, 1 << 6
_VERSION = b"ems-edge tests".ljust(64, b"\0")
_CAPABILITIES = struct.Struct("<I")
_HEAD_32, _HEAD_64 = struct.Struct("<III"), struct.Struct("<IIQ")  # type, length, id; the hello has the short one
_CONTROL = struct.Struct("<BBBBHHH")  # endpoint, request, request type, status, value, index, length
_INTERRUPT = struct.Struct("<BBH")  # endpoint, status, length
_HIGH_SPEED, _HID, _PACKET = 2, 3, 64
_OUT, _IN = 0x01, 0x81
_CONFIGURATION = 1


def _endpoints() -> bytes:
    """Type, interval in 0.125 ms, interface and packet size of OUT 0 to 15, then IN 0 to 15."""
    kinds, used = bytearray(b"\xff" * 32), {0: 0, 16: 0, _OUT: 3, 16 | _IN & 15: 3}
    for at, kind in used.items():
        kinds[at] = kind
    sizes = [_PACKET if at in used else 0 for at in range(32)]
    return bytes(kinds) + bytes(kind == 3 for kind in kinds) + bytes(32) + struct.pack("<32H", *sizes)


def string_descriptor(text: str) -> bytes:
    """USB 2.0, 9.6.7."""
    data = text.encode("utf-16-le")
    return bytes((len(data) + 2, 3)) + data


def _descriptors(device: HidDevice) -> dict[int, bytes]:
    """By the wValue of GET_DESCRIPTOR."""
    ids = struct.pack("<HH", device.vendor_id, device.product_id)
    interface = bytes((9, 4, 0, 0, 2, _HID, 0, 0, 0))
    hid = struct.pack("<BBHBBBH", 9, 0x21, 0x0111, 0, 1, 0x22, len(device.report_descriptor))
    endpoints = b"".join(struct.pack("<BBBBHB", 7, 5, endpoint, 3, _PACKET, 1) for endpoint in (_IN, _OUT))
    rest = interface + hid + endpoints
    return {
        0x0100: bytes((18, 1, 0, 2, 0, 0, 0, _PACKET)) + ids + bytes((0, 1, 1, 2, 3, 1)),
        0x0200: struct.pack("<BBHBBBBB", 9, 2, 9 + len(rest), 1, _CONFIGURATION, 0, 0x80, 50) + rest,
        0x0300: bytes((4, 3, 9, 4)),
        **{0x0301 + at: string_descriptor(text) for at, text in enumerate(device.strings)},
        0x2200: device.report_descriptor,
    }


class Peer:
    """One guest at the other end of `sock`. Call `step` when `sock` is readable."""

    def __init__(self, sock: socket.socket, device: HidDevice, plugged: bool = True) -> None:
        self.sock, self._device, self._plugged = sock, device, plugged
        self._descriptors = _descriptors(device)
        self._head, self._received, self._reports = _HEAD_32, b"", 0
        ours = _CONNECT_VERSION | _MAX_PACKET_SIZE | _64BIT_IDS | _32BIT_BULK
        self._send(Kind.HELLO, 0, _VERSION + _CAPABILITIES.pack(ours))

    def step(self) -> bool:
        """Answers what has come; False when the guest is gone."""
        try:
            data = self.sock.recv(65536)
            self._received += data
            while packet := self._packet():
                self._answer(*packet)
        except ConnectionError:
            return False
        return bool(data)

    def plug(self) -> None:
        """Plugs the device in; before the guest's hello that is only noted."""
        self._plugged = True
        if self._head is _HEAD_64:
            self._connect()

    def unplug(self) -> None:
        """Pulls the device; the connection stays."""
        if self._plugged and self._head is _HEAD_64:
            self._send(Kind.DEVICE_DISCONNECT, 0, b"")
        self._plugged = False

    def _send(self, kind: Kind, number: int, body: bytes) -> None:
        self.sock.sendall(self._head.pack(kind, len(body), number) + body)

    def _packet(self) -> tuple[int, int, bytes] | None:
        start = self._head.size
        if len(self._received) < start:
            return None
        kind, length, number = self._head.unpack_from(self._received)
        end = start + length
        if len(self._received) < end:
            return None
        body, self._received = self._received[start:end], self._received[end:]
        return kind, number, body

    def _answer(self, kind: int, number: int, body: bytes) -> None:
        match kind:
            case Kind.HELLO:
                self._hello(body)
            case Kind.SET_CONFIGURATION:
                self._send(Kind.CONFIGURATION_STATUS, number, bytes((_OK, body[0])))
            case Kind.GET_CONFIGURATION:
                self._send(Kind.CONFIGURATION_STATUS, number, bytes((_OK, _CONFIGURATION)))
            case Kind.SET_ALT_SETTING | Kind.GET_ALT_SETTING:
                self._send(Kind.ALT_SETTING_STATUS, number, bytes((_OK, body[0], 0)))
            case Kind.START_INTERRUPT_RECEIVING | Kind.STOP_INTERRUPT_RECEIVING:
                self._send(Kind.INTERRUPT_RECEIVING_STATUS, number, bytes((_OK, body[0])))
            case Kind.CONTROL:
                self._control(number, body)
            case Kind.INTERRUPT:
                self._interrupt(number, body)

    def _hello(self, body: bytes) -> None:
        theirs = _CAPABILITIES.unpack_from(body, len(_VERSION))[0]
        needed = _CONNECT_VERSION | _MAX_PACKET_SIZE | _64BIT_IDS
        if theirs & needed != needed:
            raise ValueError(f"usbredir guest with capabilities 0x{theirs:x}: allowed are those with 0x{needed:x}")
        self._head = _HEAD_64
        if self._plugged:
            self._connect()

    def _connect(self) -> None:
        self._send(Kind.EP_INFO, 0, _endpoints())
        classes = (bytes(32), bytes((_HID,)).ljust(32, b"\0"), bytes(32), bytes(32))
        self._send(Kind.INTERFACE_INFO, 0, struct.pack("<I", 1) + b"".join(classes))
        ids = (self._device.vendor_id, self._device.product_id, 0x0100)
        self._send(Kind.DEVICE_CONNECT, 0, struct.pack("<BBBBHHH", _HIGH_SPEED, 0, 0, 0, *ids))

    def _control(self, number: int, body: bytes) -> None:
        endpoint, request, kind, _, value, index, length = _CONTROL.unpack_from(body)
        status, answer = _OK, b""
        try:
            answer = self._request(kind, request, value, body[_CONTROL.size :])[:length]
            length = len(answer) if kind & 0x80 else length
        except KeyError:
            status, length = _STALL, 0
        head = _CONTROL.pack(endpoint, request, kind, status, value, index, length)
        self._send(Kind.CONTROL, number, head + answer)

    def _request(self, kind: int, request: int, value: int, data: bytes) -> bytes:
        """KeyError stalls. Features only: output reports have an endpoint of their own."""
        match kind, request, value >> 8:
            case (0x80 | 0x81, 6, _):
                return self._descriptors[value]
            case (0x80 | 0x81 | 0x82, 0, _):
                return bytes(2)  # bus powered, not halted
            case (0xA1, 1, 3):
                return self._device.get_feature(value & 0xFF)
            case (0x21, 9, 3):
                self._device.set_feature(data)
            case (0x21, 10, _) | (0x02, 1, _):
                pass  # SET_IDLE, CLEAR_FEATURE of a halt
            case _:
                raise KeyError(request)
        return b""

    def _interrupt(self, number: int, body: bytes) -> None:
        endpoint, _, length = _INTERRUPT.unpack_from(body)
        self._send(Kind.INTERRUPT, number, _INTERRUPT.pack(endpoint, _OK, length))
        for report in self._device.output(body[_INTERRUPT.size :]):
            self._send(Kind.INTERRUPT, self._reports, _INTERRUPT.pack(_IN, _OK, len(report)) + report)
            self._reports += 1
