"""headscale, by its HTTP API v1 (headscale 0.29). Its id of a node is what whois calls the stable id."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from tailspan.config import Headscale as Settings
from tailspan.errors import TailnetError
from tailspan.tailnet import TIMEOUT_S, Listed, Look, addresses, answered, checked, expected, listed, moment

EVERY_S: Final = 30.0  # to check the key costs headscale a tenth of a second of work
FIXES: Final = {
    401: "Make a new key, and set HEADSCALE_API_KEY to it: headscale apikeys create",
    404: "Correct HEADSCALE_URL: it is headscale's server_url.",
}


class Headscale:
    name = "headscale"
    every_s = EVERY_S

    def __init__(self, settings: Settings) -> None:
        self.place = settings.url
        self._key = settings.key

    def look(self) -> Look:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            nodes = answered(client.stream("GET", f"{self.place}/api/v1/node"), self.place, FIXES)
            keys: dict[str, Any] = {}
            with suppress(TailnetError):  # the devices are what it is asked for
                keys = answered(client.stream("GET", f"{self.place}/api/v1/apikey"), self.place, FIXES)
        with expected(self.place):
            expires = _expiry(self._key, keys.get("apiKeys") or ())
            return checked(Look(*listed(nodes["nodes"] or (), _device), key_expires=expires))


def _expiry(own: str, keys: Iterable[Mapping[str, Any]]) -> datetime | None:
    """Of the key that is ours, by the beginning that headscale shows of each: `hskey-api-<12 characters>-***`."""
    return next((moment(key.get("expiration")) for key in keys if own.startswith(key["prefix"].rstrip("*"))), None)


def _device(node: Mapping[str, Any]) -> Listed:
    """A tagged node's user is `tagged-devices`, which is nobody. A user's e-mail, where there is one, is the login."""
    tags, user = node.get("tags") or [], node.get("user") or {}
    online = bool(node.get("online"))
    return Listed(
        node_id=str(node["id"]),
        node=node.get("givenName") or node["name"],
        addresses=addresses(node["ipAddresses"]),
        login=None if tags else user.get("email") or user.get("name"),
        full_name=None if tags else user.get("displayName") or None,
        tags=",".join(tags) or None,
        kind="tagged" if tags else "person",
        online=online,
        last_seen=None if online else moment(node.get("lastSeen")),
        created=moment(node.get("createdAt")),
        expires=moment(node.get("expiry")),
    )
