"""Who may write: one site controller at a time commands, nobody writes without end, and only who is allowed connects.

The first address whose write is taken holds a lease. Each of its writes renews it for the heartbeat time-out; then, or
when its connection is silent for that long, the next one may take over. Mode OFF is taken from everybody, always.
Addresses count, not connections: most clients open a new one now and then. It keeps controllers apart that fight by
mistake. It is no security: that is the network's, and TLS's.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

WRITES_PER_S = 200.0
WRITES_AT_ONCE = 400.0
_FORGOTTEN_NS = 60_000_000_000

Network = IPv4Network | IPv6Network


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
