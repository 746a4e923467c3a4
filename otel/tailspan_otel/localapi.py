"""The two questions tailscaled is asked, over the unix socket of its LocalAPI (`/localapi/v0/`, read by any user).

Host must be `local-tailscaled.sock`, and an Origin or Referer would be refused. A whois that finds nothing for an
address with a port holds tailscaled's lock for 180 ms, and twice that without `proto=tcp`: so a tailnet address is
asked about without its port, which would be ignored.
"""

import json
import socket
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Final, NamedTuple
from urllib.parse import urlencode

from tailspan_otel.node import Node, from_whois, own_addresses

TIMEOUT_S: Final = 1.0  # whoever waits for a name waits less: a later answer is the next request's

NONSENSE: Final = (ValueError, KeyError, TypeError, AttributeError)


class NoAnswer(Exception):
    """tailscaled is not there, or answers something else."""


class LateAnswer(NoAnswer):
    """tailscaled is there, but gave no answer within a second."""


class Mode(NamedTuple):
    """How tailscaled runs."""

    userspace: bool  # without a TUN device
    own: frozenset[str]  # addresses of this machine


class LocalAPI:
    """Each method raises NoAnswer where tailscaled gives none."""

    def __init__(self, path: str) -> None:
        self._socket = path

    def whois(self, address: str) -> Node | None:
        """The device that has the tailnet address, or None where tailscaled knows of none.

        Of `127.0.0.1:port` it is the device whose connection tailscaled's own network stack handed on from there.
        """
        try:
            status, body = self._get("whois", addr=address, proto="tcp")
            return from_whois(json.loads(body)) if status == 200 else None
        except NONSENSE as problem:
            raise NoAnswer(f"{self._socket} answers no whois: {problem!r}") from problem

    def mode(self) -> Mode:
        """From tailscaled's status."""
        try:
            status = json.loads(self._get("status", peers="false")[1])
            return Mode(status["TUN"] is False, own_addresses(status))
        except NONSENSE as problem:
            raise NoAnswer(f"{self._socket} answers no status: {problem!r}") from problem

    def _get(self, question: str, **parameters: str) -> tuple[int, bytes]:
        with closing(_Connection(self._socket)) as connection:
            try:
                connection.request("GET", f"/localapi/v0/{question}?{urlencode(parameters)}")
                response = connection.getresponse()
                return response.status, response.read()
            except TimeoutError as problem:
                raise LateAnswer(f"{self._socket}: {problem}") from problem
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
