"""The wall clock, looked at and never touched: what the kernel says of it, its steps, and what NTP servers say.

Steering is the matter of chrony or linuxptp. An NTP answer is not believed because it came: ntplib, whose packet class
is used here, takes an unsynchronised server, a kiss-o'-death or an answer to somebody else's question as it takes a
good one. Times are measured on CLOCK_BOOTTIME: a step of the wall clock between question and answer spoils nothing.

Numbers: RFC 5905 (MAXDIST = 1 s), Linux include/uapi/linux/timex.h.
"""

from __future__ import annotations

import ctypes
import secrets
import socket
from time import CLOCK_BOOTTIME, CLOCK_REALTIME, clock_gettime_ns
from typing import NamedTuple

from ntplib import NTP, NTPException, NTPPacket  # type: ignore[import-untyped]

PORT = 123
MAX_DISTANCE_S = 1.0
"""Half of all delays on the way to the reference clock, and all dispersions: how wrong the server may be."""
NEGATIVE_DELAY_S = 0.001
"""A server's clock may run a little faster than ours while it works on the answer."""
_SERVER, _UNSYNCHRONISED, _VERSIONS = 4, 3, (3, 4)
_ORIGINATE = slice(24, 32)
_TRANSMIT_AT, _SIZE = 40, 48
_ERA_S, _PIVOT_S = 2**32, 1_577_836_800  # a 32-bit time stamp is the one between 2020 and 2156
_STA_UNSYNC, _TIME_ERROR = 0x0040, 5
_LOOKS = 5
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """An answer that is not believed; the text says what was seen and what is allowed."""


class KissOfDeath(Refused):
    """The server wants to be asked less, or not at all."""


class NotOurs(Refused):
    """Not an answer to our question: late, repeated or forged."""


class Answer(NamedTuple):
    """What a server said."""

    ahead_ns: int  # its time minus our CLOCK_BOOTTIME
    delay_s: float  # there and back
    stratum: int


class _Timex(ctypes.Structure):
    """The begin of struct timex, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_long * 32),
    )  # fmt: skip


def synchronised() -> bool:
    """Whether something disciplines the kernel's clock, by the kernel's own account."""
    timex = _Timex()  # modes = 0: nothing is changed
    state = _libc.adjtimex(ctypes.byref(timex))
    return state not in (-1, _TIME_ERROR) and not timex.status & _STA_UNSYNC


def wall_ahead_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, which only a step of the wall clock changes: both are slewed alike.

    The best of some looks is taken, as any of them may be interrupted in its middle.
    """
    looks = []
    for _ in range(_LOOKS):
        before, wall, after = (clock_gettime_ns(c) for c in (CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_BOOTTIME))
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]


def query(host: str, port: int = PORT, timeout_s: float = 1.0) -> Answer:
    """Asks once. Raises Refused, or OSError: no such host, no answer in time.

    The address is looked up first, which takes as long as the resolver likes. A name with several addresses is asked
    at the first one that there is a route to.
    """
    with _connected(host, port) as server:
        token = secrets.token_bytes(8)
        sent_ns = clock_gettime_ns(CLOCK_BOOTTIME)
        server.send(NTPPacket(version=4).to_data()[:_TRANSMIT_AT] + token)
        strange = ""
        while (left_ns := sent_ns + round(timeout_s * 1e9) - clock_gettime_ns(CLOCK_BOOTTIME)) > 0:
            server.settimeout(left_ns / 1e9)
            try:
                packet = server.recv(512)
                return judge(packet, token, sent_ns, clock_gettime_ns(CLOCK_BOOTTIME))
            except TimeoutError:
                break
            except NotOurs as error:
                strange = f"; {error}"
        raise TimeoutError(f"no answer within {timeout_s:g} s{strange}")


def _connected(host: str, port: int) -> socket.socket:
    """A socket that hears this server alone. Raises OSError."""
    failed = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host.encode(), port, type=socket.SOCK_DGRAM):
        server = socket.socket(family, kind, protocol)
        try:
            server.connect(address)
            return server
        except OSError as error:
            server.close()
            failed = error
    raise failed


def judge(packet: bytes, token: bytes, sent_ns: int, received_ns: int) -> Answer:
    """The answer in `packet` to the question that carried `token`. Times are CLOCK_BOOTTIME. Raises Refused."""
    if len(packet) < _SIZE or packet[_ORIGINATE] != token:
        raise NotOurs(f"{len(packet)} bytes that do not answer our question")
    said = NTPPacket()
    try:
        said.from_data(packet)
    except NTPException as error:
        raise Refused(str(error)) from error
    _healthy(said)
    work_s = said.tx_timestamp - said.recv_timestamp
    delay_s = (received_ns - sent_ns) / 1e9 - work_s
    if work_s < 0.0 or delay_s < -NEGATIVE_DELAY_S:
        raise Refused(f"it worked {work_s:.3f} s on the answer, we waited {delay_s + work_s:.3f} s")
    distance_s = (said.root_delay + max(0.0, delay_s)) / 2 + said.root_dispersion
    if distance_s > MAX_DISTANCE_S:
        raise Refused(f"root distance {distance_s:.3f} s, allowed up to {MAX_DISTANCE_S:g} s")
    middle_s = _unix_s(said.recv_timestamp) + work_s / 2
    return Answer(round(middle_s * 1e9) - (sent_ns + received_ns) // 2, delay_s, said.stratum)


def _healthy(said: NTPPacket) -> None:
    if said.mode != _SERVER or said.version not in _VERSIONS:
        raise Refused(f"mode {said.mode} version {said.version}, allowed is mode 4 version 3 or 4")
    if said.stratum == 0:
        code = said.ref_id.to_bytes(4, "big").decode("ascii", "replace").rstrip("\0")
        raise KissOfDeath(f"kiss-o'-death {code!r}")
    if said.stratum > 15 or said.leap == _UNSYNCHRONISED:
        raise Refused(f"it is not synchronised itself: stratum {said.stratum}, leap {said.leap}")
    if not (said.recv_timestamp and said.tx_timestamp):
        raise Refused("a time stamp is zero")


def _unix_s(ntp_s: float) -> float:
    return float((ntp_s - NTP.NTP_DELTA - _PIVOT_S) % _ERA_S + _PIVOT_S)
