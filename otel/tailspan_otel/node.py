"""A device of the tailnet, as tailscaled tells of it: in a whois answer, and in `tailscale status --json`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """A device, and whose it is."""

    id: str  # StableID
    name: str  # the short name, or the full one of a device shared in from another tailnet
    login: str | None  # None for a tagged node: its tags are its identity
    full_name: str | None
    tags: tuple[str, ...]
    shared: bool
    addresses: tuple[str, ...] = ()  # its own, IPv4 first where it has both
    source: str = "whois"  # or status

    def __hash__(self) -> int:
        return hash(self.id)  # it is a cache's key once a request

    @property
    def kind(self) -> str:
        return "tagged" if self.tags else "shared" if self.shared else "person"


def from_whois(answer: dict[str, Any]) -> Node:
    """The node of a whois answer. Raises KeyError, TypeError or AttributeError where it is none.

    A node whose key has expired is one like any other: its last requests are its own.
    """
    node, user = answer["Node"], answer["UserProfile"]
    tags = tuple(str(tag) for tag in node.get("Tags") or ())
    name = node.get("ComputedName") or node["Name"].rstrip(".").partition(".")[0]
    return Node(
        id=str(node["StableID"]),
        name=str(name),
        login=None if tags else user["LoginName"],
        full_name=None if tags else user.get("DisplayName") or None,
        tags=tags,
        shared=bool((node.get("Hostinfo") or {}).get("ShareeNode")),
        addresses=tuple(network.partition("/")[0] for network in node.get("Addresses") or ()),
    )


def from_status(status: dict[str, Any]) -> dict[str, Node]:
    """Every node of a status, by each of its addresses. Raises KeyError, TypeError or AttributeError as above."""
    suffix = (status.get("CurrentTailnet") or {}).get("MagicDNSSuffix") or status.get("MagicDNSSuffix") or ""
    nodes = [_peer(peer, status.get("User") or {}, suffix) for peer in _peers(status)]
    return {address: node for node in nodes for address in node.addresses}


def own_addresses(status: dict[str, Any]) -> frozenset[str]:
    """The addresses of the machine whose status it is. Raises as `from_status`."""
    return frozenset(status["Self"].get("TailscaleIPs") or ()) if status.get("Self") else frozenset()


def _peers(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [peer for peer in (status["Self"], *(status.get("Peer") or {}).values()) if peer]


def _peer(peer: dict[str, Any], users: dict[str, Any], suffix: str) -> Node:
    tags = tuple(str(tag) for tag in peer.get("Tags") or ())
    user = {} if tags else users.get(str(peer["UserID"])) or {}
    full_name = peer["DNSName"].rstrip(".")
    name = full_name.removesuffix(f".{suffix}") or peer["HostName"]
    return Node(
        id=str(peer["ID"]),
        name=str(name),
        login=user.get("LoginName") or None,
        full_name=user.get("DisplayName") or None,
        tags=tags,
        shared=bool(peer.get("ShareeNode")),
        addresses=tuple(peer.get("TailscaleIPs") or ()),
        source="status",
    )
