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
REAL_HEADER: Final = "http.request.header.x-real-ip"
# one printable word: an encoded one (RFC 2047) the collector could not decode
LOGIN: Final = re.compile(r"(?!.*=\?)[!-+\x2d-~]{1,256}")


def caller(*, peer: Any, login: Any, forwarded: Any, real: Any, client: Any, trusts: Trusts) -> dict[str, Any]:
    """The attributes of who called.

    `peer` is the other end of the service's connection; `login`, `forwarded` and `real` are the captured headers
    Tailscale-User-Login, X-Forwarded-For and X-Real-IP; `client` is what the span calls the client's address. Headers
    count where `trusts` says yes to the peer. Of X-Forwarded-For only the last entry does: those before it were written
    by the caller, and some SDKs make the first one the client's address. A login counts beside a tailnet address alone,
    which Serve always sends, and is never proven: nobody confirms it, as tailscaled does for a service of ours. Nothing
    counts where X-Real-IP names another caller, as in `tailspan_otel.identity`.
    """
    vouched = isinstance(peer, str) and trusts(peer)
    told = _told(_nearest(forwarded), _nearest(real), trusts) if vouched else _plain(peer)
    known: dict[str, Any] = {names.CLIENT_ADDRESS: told or _plain(client)}
    if not told or not is_tailnet(told):
        return known
    known[names.ADDRESS] = told
    name = _only(login)
    if vouched and isinstance(name, str) and LOGIN.fullmatch(name):
        known |= {names.LOGIN: name, names.IDENTITY_SOURCE: "serve_header", names.CALLER: "person", names.PROVEN: False}
    return known


def _told(forwarded: str | None, real: str | None, trusts: Trusts) -> str | None:
    """Whose address the proxy told, if it told of one."""
    other = real if real and not trusts(real) else None  # nginx's of a Serve in front of it is a proxy's
    return None if forwarded and other and forwarded != other else forwarded or other


def _only(captured: Any) -> Any:
    """A captured header's value: an array of one, or just that."""
    return captured[0] if isinstance(captured, tuple) and len(captured) == 1 else captured


def _nearest(captured: Any) -> str | None:
    value = _only(captured)
    return _plain(re.sub("[ \t]", "", value.rpartition(",")[2])) if isinstance(value, str) else None


def _plain(address: Any) -> str | None:
    """As it is written, but out of its mapping into IPv6."""
    return address.removeprefix("::ffff:") if isinstance(address, str) else None
