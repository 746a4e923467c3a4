"""The proxies whose headers are believed: by address, by network, or by name, which is looked up again and again.

A container's address changes with each start, its name does not. Names are looked up beside the requests, never on
their way: when the service starts, every half minute, and when somebody unknown sends what only a proxy may send.
"""

import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Final

from tailspan_otel.background import Background
from tailspan_otel.identity import LOOPBACK, Address, Network, parse

LOOK_UP_EVERY_S: Final = 30.0
KEPT_S: Final = (
    300.0  # a name without an address keeps its last: a resolver may be away, but an address finds new owners
)
LOOPBACKS: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
ROUTES: Final = Path("/proc/net/route")

log = logging.getLogger("tailspan")


class Peers:
    """`peers` are addresses, networks or host names. Raises ValueError for what is none of them.

    `changed` is called, in another thread, once a name has other addresses than before.
    """

    def __init__(self, peers: Iterable[Network | str] = LOOPBACK) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._networks: list[Network] = []
        self._names: list[str] = []
        for peer in (peer_of(peer) if isinstance(peer, str) else peer for peer in peers):
            if isinstance(peer, str):
                self._names.append(peer)
            else:
                self._networks.append(peer)
        # name → its addresses, as last looked up. Never altered, but replaced: requests' threads read it meanwhile
        self._found: Mapping[str, frozenset[Address]] = {}
        self._since: dict[str, float] = {}  # name → when it last had any
        self._background = Background("peers", LOOK_UP_EVERY_S, self.look_up)
        _warn(gateway_within(self._networks))

    def start(self) -> None:
        """Begins to look up names, if there are any."""
        if self._names:
            self._background.start()

    def doubt(self) -> None:
        """Somebody else sent what only a proxy may send: perhaps a name has a new address."""
        self._background.wake()

    def look_up(self) -> None:
        """Looks all names up now. A name that is not found keeps its addresses for five minutes; both are logged."""
        for name in self._names:
            try:
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as problem:
                self._lost(name, problem)
                continue
            self._since[name] = time.monotonic()
            self._is_at(name, frozenset(address for each in found if (address := parse(str(each[4][0])))))

    def _lost(self, name: str, problem: Exception) -> None:
        had = self._found.get(name)
        if had == frozenset() or (had and time.monotonic() - self._since[name] <= KEPT_S):
            return
        now = f" any more, after {KEPT_S / 60:.0f} minutes without one" if had else ""
        log.warning("trusted peers: %s has no address, so it is not trusted%s: %s", name, now, problem)
        self._is_at(name, frozenset())

    def _is_at(self, name: str, addresses: frozenset[Address]) -> None:
        if addresses != self._found.get(name):
            self._found = {**self._found, name: addresses}
            self.changed()

    def trusts(self, host: str) -> bool:
        """Whether that address is one of theirs. Takes some microseconds; `Identify` remembers."""
        address = parse(host)
        return address is not None and (
            any(address in network for network in self._networks)
            or any(address in addresses for addresses in self._found.values())
        )

    def reach(self, host: str) -> bool:
        """Whether one of them may have connected to the address `host` of ours: to loopback's own comes who is on
        loopback, and nobody else; to any other comes nobody from there. `Identify` remembers that, too."""
        address = parse(host)
        over_loopback = address is not None and address.is_loopback
        named = (ip_network(each) for addresses in self._found.values() for each in addresses)
        return any(
            any(map(network.overlaps, LOOPBACKS)) if over_loopback else not network.is_loopback
            for network in (*self._networks, *named)
        )


@lru_cache
def _warn(gateway: str | None) -> None:
    """Once a process, however many ask."""
    if gateway:
        log.warning("trusted peers: %s", gateway)


def peer_of(peer: str) -> Network | str:
    """An address or network as such, a name as it is. Raises ValueError for what can be none of them."""
    try:
        return ip_network(peer)
    except ValueError:
        if not peer.isascii() or not peer.replace("-", "").replace(".", "").replace("_", "").isalnum():
            raise
        if peer.replace(".", "").isdigit():  # an address with a slip, and no name: those do not end in a number
            raise
        return peer


def gateway_within(networks: Iterable[Network]) -> str | None:
    """Why it is no good to trust a whole network that this machine's gateway is in; None where it is in none.

    On a bridge of Docker's, whoever comes from outside by a published port comes from the gateway's address.
    """
    gateway = _gateway()
    within = [network for network in networks if network.num_addresses > 1 and gateway in network] if gateway else []
    if not within:
        return None
    return (
        f"{within[0]} contains the gateway {gateway}, from which everybody comes who uses a published port; "
        "name the proxy alone, by its address or its name"
    )


def _gateway() -> IPv4Address | None:
    """Of the default route, as Linux tells it."""
    try:
        rows = [line.split() for line in ROUTES.read_text().splitlines()[1:]]
        return next((_of_route(row[2]) for row in rows if row[1] == "00000000" and row[2] != "00000000"), None)
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _of_route(text: str) -> IPv4Address:
    return IPv4Address(struct.pack("=L", int(text, 16)))
