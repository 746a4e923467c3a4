"""Who called a service that tailspan does not capture: what its proxy told it, and nothing else that its spans say.

collector-config.yaml decides alike on the other way in.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from tailspan_otel import attributes as names
from tailspan_otel.identity import is_tailnet

Trusts = Callable[[str], bool]  # of an address: whether it is a proxy of ours

LOGIN_HEADER: Final = "http.request.header.tailscale-user-login"  # as captured by OpenTelemetry's convention
FORWARDED_HEADER: Final = "http.request.header.x-forwarded-for"
# one printable word: an encoded one (RFC 2047) the collector could not decode
LOGIN: Final = re.compile(r"(?!.*=\?)[!-+\x2d-~]{1,256}")


def caller(*, peer: Any, login: Any, forwarded: Any, client: Any, trusts: Trusts) -> dict[str, Any]:
    """The attributes of who called.

    `peer` is the other end of the service's connection; `login` and `forwarded` are the captured headers
    Tailscale-User-Login and X-Forwarded-For; `client` is what the span calls the client's address. Headers count where
    `trusts` says yes to the peer. Of X-Forwarded-For only the last entry does: those before it were written by the
    caller, and some SDKs make the first one the client's address.
    """
    vouched = isinstance(peer, str) and trusts(peer)
    nearest = _nearest(_only(forwarded)) if vouched else peer
    told = nearest if isinstance(nearest, str) and nearest else None
    address = (told or client).removeprefix("::ffff:") if isinstance(told or client, str) else None
    known: dict[str, Any] = {names.CLIENT_ADDRESS: address}
    if told and address and is_tailnet(address):
        known[names.ADDRESS] = address
    name = _only(login)
    if vouched and isinstance(name, str) and LOGIN.fullmatch(name):
        known |= {names.LOGIN: name, names.IDENTITY_SOURCE: "serve_header", names.CALLER: "person"}
    return known


def _only(captured: Any) -> Any:
    """A captured header's value: an array of one, or just that."""
    return captured[0] if isinstance(captured, tuple) and len(captured) == 1 else captured


def _nearest(forwarded: Any) -> str | None:
    return re.sub("[ \t]", "", forwarded.rpartition(",")[2]) if isinstance(forwarded, str) else None
