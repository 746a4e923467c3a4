"""Who has a tailnet address, by what `tailscale status --json` prints: a file of it, or a URL that answers it.

For a service that cannot reach tailscaled's socket, such as one in a container.
"""

import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from tailspan_otel.background import Background
from tailspan_otel.identity import parse
from tailspan_otel.node import Node, from_status, own_addresses

READ_EVERY_S: Final = 25.0
STALE_S: Final = 55.0  # what cannot be read again is forgotten: a new owner is named, or nobody, within a minute
OLD_S: Final = 900.0  # a file is believed for so long after it was written: by then addresses may have other owners
TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 32_000_000  # some 20,000 nodes

_OPENER: Final = build_opener(ProxyHandler({}))  # it is asked of a machine of the owner's

log = logging.getLogger("tailspan")


class Listing:
    """The nodes of a status, read every 25 seconds in a thread of its own. `source` is a path, or an http(s) URL."""

    own: frozenset[str] = frozenset()  # addresses of the machine that the status is of, where that is this one

    def __init__(self, source: str) -> None:
        self._source = source
        self._nodes: dict[str, Node] = {}
        self._until = 0.0
        self._told: str | None = None
        self._background = Background("status", READ_EVERY_S, self.read)
        self.start = self._background.start

    def get(self, address: str) -> Node | None:
        """Who has the address, as far as the last listing tells."""
        return self._nodes.get(address) if time.monotonic() < self._until else None

    def read(self) -> None:
        """Reads it now. What is wrong with it is logged once."""
        try:
            status = json.loads(self._content())
            self._nodes, self.own = (
                from_status(status),
                frozenset(filter(_is_ours, filter(parse, own_addresses(status)))),
            )
            self._until, trouble = time.monotonic() + STALE_S, None
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as problem:
            trouble = f"{type(problem).__name__}: {problem}"
        if trouble and trouble != self._told:
            log.warning("TAILSPAN_STATUS: %s answers no `tailscale status --json`: %s", shown(self._source), trouble)
        self._told = trouble

    def _content(self) -> bytes:
        if not self._source.startswith(("http://", "https://")):
            with Path(self._source).open("rb") as file:
                _check_age(os.stat(file.fileno()).st_mtime)
                return file.read(MAX_BYTES)
        with _OPENER.open(self._source, timeout=TIMEOUT_S) as response:
            if modified := response.headers.get("Last-Modified"):  # of a file that some server serves
                _check_age(parsedate_to_datetime(modified).timestamp())
            content: bytes = response.read(MAX_BYTES)
        return content  # what was cut is no JSON


def _check_age(written: float) -> None:
    if time.time() - written > OLD_S:
        when = f"{datetime.fromtimestamp(written, UTC):%Y-%m-%dT%H:%M:%SZ}"
        raise ValueError(f"it was written {when}, and is to be written anew every minute or so")


def _is_ours(address: str) -> bool:
    """Whether this machine, which may be another than the status is of, has the address: to no other can be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def shown(source: str) -> str:
    """The path or URL without what may be a secret."""
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else source
