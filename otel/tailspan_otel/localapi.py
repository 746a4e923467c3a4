"""The two questions tailscaled is asked, over the unix socket of its LocalAPI (`/localapi/v0/`, read by any user).

Host must be `local-tailscaled.sock`, and an Origin or Referer would be refused. A whois that finds nothing for an
address with a port holds tailscaled's lock for 180 ms: an address is asked about without one, and with `proto=tcp`.
"""

import os
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 0.25


class NoAnswer(Exception):
    """tailscaled is not there, does not answer in time, or answers something else."""


@dataclass(frozen=True)
class Node:
    """A device of the tailnet, as LocalAPI's whois describes it."""

    id: str  # StableID
    name: str  # the short name, or the full one of a device shared in from another tailnet
    login: str | None  # None for a tagged node: its tags are its identity
    full_name: str | None
    tags: tuple[str, ...]
    shared: bool

    @property
    def kind(self) -> str:
        return "tagged" if self.tags else "shared" if self.shared else "person"


def node_of(answer: dict[str, Any]) -> Node:
    """A whois answer as a Node. Raises KeyError, TypeError or AttributeError where it is none."""
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
    )


class LocalAPI:
    """Each method raises NoAnswer where tailscaled gives none within a quarter of a second."""

    def __init__(self, path: str) -> None:
        self._socket = path
        if os.path.exists(path):
            _ = self._client  # made while the service starts, not while its first visitor waits to be named

    def whois(self, address: str) -> Node | None:
        """The device that has the tailnet address, or None where tailscaled knows of none."""
        try:
            response = self._get("whois", addr=address, proto="tcp")
            return node_of(response.json()) if response.status_code == 200 else None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise NoAnswer(f"{self._socket} answers no whois: {problem!r}") from problem

    def is_userspace(self) -> bool:
        """Whether tailscaled runs without a TUN device."""
        try:
            return self._get("status", peers="false").json()["TUN"] is False
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise NoAnswer(f"{self._socket} answers no status: {problem!r}") from problem

    def _get(self, question: str, **parameters: str) -> "httpx.Response":
        try:
            with socket.socket(socket.AF_UNIX) as probe:  # httpx leaves a failed connect to the garbage collector
                probe.settimeout(TIMEOUT_S)
                probe.connect(self._socket)
            return self._client.get(f"/localapi/v0/{question}", params=parameters)
        except (OSError, self._errors) as problem:
            raise NoAnswer(f"{self._socket}: {problem}") from problem

    @cached_property
    def _client(self) -> "httpx.Client":
        import httpx  # 6 MB, which a service without tailscaled is spared

        self._errors = httpx.HTTPError
        # without TLS there is no certificate to check, and to load those of the system takes up to 200 ms
        transport = httpx.HTTPTransport(uds=self._socket, verify=False)
        return httpx.Client(transport=transport, base_url="http://local-tailscaled.sock", timeout=TIMEOUT_S)

    _errors: type[Exception] = OSError
