"""Who called: every source in one order. The first that names somebody decides; a device is added where one is known.

1. The connection itself, where tailscaled says that it came past Serve: then no header of it is believed.
2. Serve's headers, then nginx-auth's, from a trusted peer (`identity.PROXIES`).
3. tailscaled's whois of the address that the proxy or the connection vouches for.
4. A listing: a URL or file of `tailscale status --json`.
5. Nobody. The address stays, and the server may know whose it was.

Headers that tailscaled contradicts were written by the caller, and passed on by a proxy: Serve says of an address what
tailscaled says, and names no tagged node. Where a listing contradicts them, or an answer that tailscaled gave over a
second ago and does not renew in time, one of the two is wrong, and it may be the older one, since an address finds new
owners: so neither is believed.

Headers over TCP that those who could confirm them do not are believed, but not proven: what passes them on may be no
proxy of Tailscale's.
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from tailspan_otel.identity import MAX_NAME, Caller
from tailspan_otel.node import Node
from tailspan_otel.status import Listing
from tailspan_otel.whois import Connection, Whois


class Who(NamedTuple):
    """A caller, as far as it is known."""

    caller: Caller
    node: Node | None
    proven: bool = True  # no tailnet peer could have sent this itself
    forged: str | None = None  # as in Caller, and bypass: a tailnet peer came past Serve with headers of its own


class Resolve:
    """`listing` is None where no status was named."""

    def __init__(self, whois: Whois, listing: Listing | None) -> None:
        self._whois = whois
        self._listing = listing

    def __call__(self, caller: Caller, connection: Connection | None, wait_s: float, *, late: bool = False) -> Who:
        """Waits at most `wait_s` seconds for each answer of tailscaled's; on the request's path that has to be 0.

        `late`: the request was so long ago that its address may have another owner by now.
        """
        if connection is not None and (node := self._whois.settled(connection, wait_s)) is not None:
            itself = self._seen_from_here(_past_serve(caller, node))
            return Who(itself, node, forged="bypass" if _claims(caller) else None)
        if self._whois.userspace and caller.tailnet and not caller.vouched:
            caller = _of_another_network(caller)
        node, forged = self._device(caller, wait_s), caller.forged
        if node is not None and caller.login is not None and caller.login != node.login:
            node, contradicts = self._doubted(caller, node, wait_s)
            if contradicts:
                caller, forged = _nameless(caller), "contradicted"
        caller = self._seen_from_here(caller)
        if late and caller.login is None:
            node = None
        return Who(caller, node, self._proves(caller, node), forged)

    def _doubted(self, caller: Caller, node: Node, wait_s: float) -> tuple[Node | None, bool]:
        """The device, now that headers say that it is somebody else's, and whether they are contradicted."""
        if node.source == "status":
            return (node, False) if _agree(caller, node) else (None, True)
        renewed, now = self._whois.again(caller.client or "", wait_s)
        return (now, now is not None and not _agree(caller, now)) if renewed else (None, True)

    def _seen_from_here(self, caller: Caller) -> Caller:
        """This machine itself is local."""
        own = caller.client in self._whois.own or (self._listing is not None and caller.client in self._listing.own)
        return _local(caller) if own else caller

    def _device(self, caller: Caller, wait_s: float) -> Node | None:
        if not caller.tailnet or caller.client is None:
            return None
        node = self._whois.wait(caller.client, wait_s)
        return node if node or self._listing is None else self._listing.get(caller.client)

    def _proves(self, caller: Caller, node: Node | None) -> bool:
        """In userspace mode a tailnet peer reaches loopback ports. Headers that are not confirmed may be the caller's:
        other proxies pass them on, and Serve those of nginx-auth. But a socket is where Serve itself forwards to."""
        if self._whois.userspace and caller.vouched and not caller.unix:
            return False
        if caller.login is None or node is not None:
            return True
        return caller.source == "serve_header" and (caller.unix or not (self._whois.answered or self._listing))


def _agree(caller: Caller, node: Node) -> bool:
    return node.login is not None and node.login[:MAX_NAME] == caller.login


def _claims(caller: Caller) -> bool:
    return caller.login is not None or caller.kind == "funnel" or caller.tailnet or caller.forged is not None


@lru_cache(1024)
def _past_serve(caller: Caller, node: Node) -> Caller:
    address = node.addresses[0] if node.addresses else None
    return Caller(node.kind, peer=caller.peer, client=address, tailnet=address is not None)


@lru_cache(1024)
def _of_another_network(caller: Caller) -> Caller:
    """In userspace mode no tailnet peer comes with its own address: some local networks use the same ones."""
    return replace(caller, tailnet=False)


@lru_cache(1024)
def _nameless(caller: Caller) -> Caller:
    return replace(caller, kind="unknown", source="none", login=None, full_name=None)


@lru_cache(1024)
def _local(caller: Caller) -> Caller:
    return replace(caller, kind="local")
