"""The two questions tailscaled is asked, over the unix socket of its LocalAPI (`/localapi/v0/`, read by any user).

Host must be `local-tailscaled.sock`, and an Origin or Referer would be refused. A whois that finds nothing for an
address with a port holds tailscaled's lock for 180 ms: an address is asked about without one, and with `proto=tcp`.
"""

import json
import socket
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import urlencode

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

    def whois(self, address: str) -> Node | None:
        """The device that has the tailnet address, or None where tailscaled knows of none."""
        try:
            status, body = self._get("whois", addr=address, proto="tcp")
            return node_of(json.loads(body)) if status == 200 else None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise NoAnswer(f"{self._socket} answers no whois: {problem!r}") from problem

    def is_userspace(self) -> bool:
        """Whether tailscaled runs without a TUN device."""
        try:
            return json.loads(self._get("status", peers="false")[1])["TUN"] is False
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise NoAnswer(f"{self._socket} answers no status: {problem!r}") from problem

    def _get(self, question: str, **parameters: str) -> tuple[int, bytes]:
        with closing(_Connection(self._socket)) as connection:
            try:
                connection.request("GET", f"/localapi/v0/{question}?{urlencode(parameters)}")
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, HTTPException) as problem:
                raise NoAnswer(f"{self._socket}: {problem}") from problem


class _Connection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("local-tailscaled.sock", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
