"""Tailscale's own API v2 (tailscale.com/api): every device of the tailnet, also those this machine may not see.

It has no question "who has this address": that follows from the list. It is asked once in five minutes.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from tailspan.config import TailscaleAPI as Settings
from tailspan.errors import TailnetError
from tailspan.tailnet import TIMEOUT_S, Listed, Look, addresses, answered, checked, expected, listed, moment

EVERY_S: Final = 300.0
EARLY_S: Final = 60.0  # how long before its end a token of an OAuth client is replaced
KEY: Final = "tskey-api-"
FIXES: Final = {
    401: "Make a new access token at the admin console (Settings, Keys), and set TAILSCALE_API_KEY.",
    403: "The OAuth client needs the scope devices:core:read; an access token, an owner who may read devices.",
    404: "Correct TAILNET: the tailnet's ID, or - for the credential's own.",
}


class API:
    name = "api"
    every_s = EVERY_S

    def __init__(self, settings: Settings) -> None:
        self.place = settings.url
        self._settings = settings
        self._token: tuple[str, float] | None = None  # of the OAuth client, and until when it is used

    def look(self) -> Look:
        with httpx.Client(base_url=f"{self.place}/api/v2", timeout=TIMEOUT_S, trust_env=False) as client:
            try:
                client.headers["Authorization"] = f"Bearer {self._bearer(client)}"
                found = self._get(client, "devices")
            except TailnetError as problem:
                if problem.state == "wrong token":
                    self._token = None  # it may have been revoked
                raise
            expires = self._expiry(client)
        with expected(self.place):
            tailnet = None if self._settings.tailnet == "-" else self._settings.tailnet
            return checked(Look(*listed(found["devices"] or (), _device), tailnet=tailnet, key_expires=expires))

    def _get(self, client: httpx.Client, what: str) -> Any:
        return answered(client.stream("GET", f"/tailnet/{self._settings.tailnet}/{what}"), self.place, FIXES)

    def _bearer(self, client: httpx.Client) -> str:
        """The access token, or one of the OAuth client's own, which live for an hour."""
        if self._settings.key is not None:
            return self._settings.key
        if self._token is None or self._token[1] <= time.monotonic():
            asked = {"client_id": self._settings.client_id, "client_secret": self._settings.client_secret}
            fixes = {401: "Correct TAILSCALE_OAUTH_CLIENT_ID and TAILSCALE_OAUTH_CLIENT_SECRET."}
            got = answered(client.stream("POST", "/oauth/token", data=asked), self.place, fixes)
            if not isinstance(got.get("access_token"), str) or not isinstance(got.get("expires_in"), int):
                raise TailnetError("unreadable", f"{self.place} gave the OAuth client no token.")
            self._token = got["access_token"], time.monotonic() + got["expires_in"] - EARLY_S
        return self._token[0]

    def _expiry(self, client: httpx.Client) -> datetime | None:
        """Of the access token, whose id is the part after `tskey-api-`; None where it may not be asked."""
        if self._settings.key is None or not self._settings.key.startswith(KEY):
            return None
        own = self._settings.key.removeprefix(KEY).partition("-")[0]
        with suppress(TailnetError), expected(self.place):  # the devices are what it is asked for
            return moment(self._get(client, f"keys/{own}").get("expires"))
        return None


def _device(device: Mapping[str, Any]) -> Listed:
    """`user` of a tagged device is whoever registered it: no identity. Only `connectedToControl` says who is online."""
    tags, shared = device.get("tags") or [], bool(device.get("isExternal"))
    name, online = device["name"], device.get("connectedToControl")
    return Listed(
        node_id=str(device["nodeId"]),
        node=name if shared else name.partition(".")[0],
        addresses=addresses(device["addresses"]),
        login=None if tags else device.get("user") or None,
        full_name=None,
        tags=",".join(tags) or None,
        kind="tagged" if tags else "shared" if shared else "person",
        os=device.get("os") or None,
        version=device.get("clientVersion") or None,
        online=online,
        last_seen=None if online else moment(device.get("lastSeen")),
        created=moment(device.get("created")),
        expires=None if device.get("keyExpiryDisabled") else moment(device.get("expires")),
    )
