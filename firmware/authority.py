"""Who may write: one site controller at a time commands, nobody writes without end, and only who is allowed connects.

The first address whose write is taken holds a lease. Each of its writes renews it for the heartbeat time-out; then, or
when its connection is silent for that long, the next one may take over. Mode OFF is taken from everybody, always.
Addresses count, not connections: most clients open a new one now and then. It keeps controllers apart that fight by
mistake. It is no security: that is the network's, and TLS's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

LOCAL = "127.0.0.1"
WRITES_PER_S = 200.0
WRITES_AT_ONCE = 2000.0
_FORGOTTEN_NS = 60_000_000_000

Network = IPv4Network | IPv6Network


_EVERY = frozenset({1, 702, 703, 704, 711, 713, 714, 715, 802, 803, 804, 64990, 64992})
ROLES: dict[str, frozenset[int]] = {
    "ReadOnlySunSpec": frozenset(),
    "GridServiceSunSpec": frozenset({702, 703, 704, 711, 715, 802, 803, 804, 64990}),
    "NetworkAdministratorSunSpec": frozenset({1}),
    "SuperAdministratorSunSpec": _EVERY,
}
"""Role of a certificate -> models that it may write. Stricter than SunSpec's table, in which every role writes 713 to
808: these carry commands here."""


class RoleRights:
    """What a peer inside TLS may do. A role that is none of ROLES may nothing."""

    def __init__(self, role: str, models: Sequence[tuple[int, int]]) -> None:
        """`models`: first address and number of every model, ascending."""
        self.reads = role in ROLES
        self._allowed, self._models = ROLES.get(role, frozenset()), models

    def writes(self, unit: int, address: int, count: int) -> bool:
        """Whether every model that the block touches may be written."""
        first, last = (bisect_right(self._models, (at, 1 << 16)) - 1 for at in (address, address + count - 1))
        return all(number in self._allowed for _, number in self._models[max(0, first) : last + 1]) and last >= 0


class Authority:
    """One lease for the whole appliance. Times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(self) -> None:
        self._holder, self._until_ns = "", 0

    def holder(self, now_ns: int) -> str:
        """The address that commands, "" when nobody does."""
        return self._holder if now_ns < self._until_ns else ""

    def allows(self, host: str, now_ns: int) -> bool:
        """Whether a write of this address may be taken."""
        return self.holder(now_ns) in ("", host)

    def took(self, host: str, now_ns: int, lease_s: float) -> bool:
        """A write was taken: its address holds the lease. True when that is new."""
        new = self.holder(now_ns) != host
        self._holder, self._until_ns = host, now_ns + int(lease_s * 1e9)
        return new


class WriteRate:
    """A leaky bucket an address: WRITES_AT_ONCE, then WRITES_PER_S."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, int]] = {}  # address -> writes in the bucket, when

    def allows(self, host: str, now_ns: int) -> bool:
        """Counts a write; False when there are too many."""
        level, then_ns = self._buckets.get(host, (0.0, now_ns))
        level = max(0.0, level - (now_ns - then_ns) * 1e-9 * WRITES_PER_S)
        if level > WRITES_AT_ONCE - 1.0:
            self._buckets[host] = level, now_ns
            return False
        if host not in self._buckets:
            self._forget(now_ns)
        self._buckets[host] = level + 1.0, now_ns
        return True

    def _forget(self, now_ns: int) -> None:
        self._buckets = {h: b for h, b in self._buckets.items() if now_ns - b[1] < _FORGOTTEN_NS}


def admitted(host: str, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of the networks; none at all admits everybody."""
    networks = tuple(networks)
    address = ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return not networks or any(mapped in network for network in networks)
