"""A URL or a file that has what `tailscale status --json` says."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import httpx

from tailspan.errors import TailnetError
from tailspan.tailnet import (
    MAX_BYTES,
    TIMEOUT_S,
    Listed,
    Look,
    addresses,
    answered,
    checked,
    expected,
    listed,
    moment,
    parsed,
)

EVERY_S: Final = 30.0
MULLVAD: Final = ".mullvad.ts.net."  # exit nodes for rent: hundreds, and none of them a visitor
OUT: Final = {
    "NeedsLogin": "Log it in: tailscale up",
    "NeedsMachineAuth": "Approve it at the admin console's Machines page.",
    "Stopped": "Start it: tailscale up",
    "NoState": "It may be starting; else: tailscale up",
}


class Status:
    """`place` is a URL that begins with http, or a path."""

    name = "status"
    every_s = EVERY_S

    def __init__(self, place: str) -> None:
        self.place = place

    @property
    def is_url(self) -> bool:
        return self.place.startswith("http")

    def look(self) -> Look:
        return self._fetch() if self.is_url else self._load()

    def _fetch(self) -> Look:
        said: list[httpx.Headers] = []
        hooks = {"response": [lambda answer: said.append(answer.headers)]}
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=True, event_hooks=hooks) as client:
            look = read(answered(client.stream("GET", self.place), self.place, {}), self.place)
        with expected(self.place):
            return look._replace(written=_modified(said[-1].get("last-modified")))

    def _load(self) -> Look:
        try:
            with Path(self.place).open("rb") as file:
                written = datetime.fromtimestamp(os.stat(file.fileno()).st_mtime, UTC)
                return read(parsed(file.read(MAX_BYTES), self.place), self.place)._replace(written=written)
        except OSError as problem:
            fix = "Write it there: tailscale status --json > FILE.new && mv FILE.new FILE"
            raise TailnetError("unreachable", f"{self.place} cannot be read: {problem.strerror}.", fix=fix) from problem


def _modified(http_date: str | None) -> datetime | None:
    """Of a file that some server serves; whoever answers by asking tailscaled sends none (RFC 9110, 8.8.2)."""
    return parsedate_to_datetime(http_date).astimezone(UTC) if http_date else None


def read(status: Mapping[str, Any], place: str) -> Look:
    """The document of tailscaled's `status` (Go's ipnstate.Status). Raises TailnetError."""
    with expected(place):
        if (state := status["BackendState"]) in OUT:
            raise TailnetError("logged out", f"{place} says that it is in the state {state}.", fix=OUT[state])
        users, tailnet = status.get("User") or {}, status.get("CurrentTailnet") or {}
        entries = [one for one in (status["Self"], *(status.get("Peer") or {}).values()) if one]
        own = [one for one in entries if not str(one.get("DNSName")).endswith(MULLVAD)]
        devices, left_out = listed(own, lambda one: _device(one, users))
        return checked(
            Look(
                devices,
                left_out,
                tailnet=tailnet.get("Name"),
                suffix=tailnet.get("MagicDNSSuffix") or None,
                own=(status["Self"] or {}).get("ID"),
                version=status.get("Version"),
                userspace=None if status.get("TUN") is None else not status["TUN"],
                health=tuple(status.get("Health") or ()),
            )
        )


def _device(peer: Mapping[str, Any], users: Mapping[str, Any]) -> Listed:
    """One `PeerStatus`: of those of our tailnet the short name, as whois has it."""
    tags, shared = peer.get("Tags") or [], bool(peer.get("ShareeNode"))
    user = {} if tags else users.get(str(peer["UserID"])) or {}
    name = peer["DNSName"].rstrip(".") or peer["HostName"]
    online = peer.get("Online")
    return Listed(
        node_id=str(peer["ID"]),
        node=name if shared else name.partition(".")[0],
        addresses=addresses(peer["TailscaleIPs"]),
        login=user.get("LoginName"),
        full_name=user.get("DisplayName") or None,
        tags=",".join(tags) or None,
        kind="tagged" if tags else "shared" if shared else "person",
        os=peer.get("OS") or None,
        online=online,
        last_seen=None if online else moment(peer.get("LastSeen")),
        created=moment(peer.get("Created")),
        expires=moment(peer.get("KeyExpiry")),
        expired=bool(peer.get("Expired")),
    )
