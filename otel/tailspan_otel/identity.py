"""Who is calling: Tailscale Serve's headers, believed only from a peer we trust, and the address it vouches for.

Headers: Tailscale's "Identity headers" of `tailscale serve` (absent for tagged nodes, which whois tells apart, and for
Funnel, which says so itself). Identity belongs to a request, never to a connection: Serve sends several people's
requests over one.
"""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Headers = dict[bytes, bytes]

LOGIN = b"tailscale-user-login"
NAME = b"tailscale-user-name"
FUNNEL = b"tailscale-funnel-request"
FORWARDED_FOR = b"x-forwarded-for"
IDENTITY_HEADERS = frozenset((LOGIN, NAME, b"tailscale-user-profile-pic", FUNNEL))

TAILNET = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
LOOPBACK = (ip_network("127.0.0.1/32"), ip_network("::1/128"))

# C0, C1, line separators, and the characters that turn text around: none belongs in a name
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_GUESSES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\biPhone\b", "iPhone"),
        (r"\biPad\b", "iPad"),
        (r"\bAndroid\b.*\bMobile\b", "Android phone"),
        (r"\bAndroid\b", "Android"),
        (r"\bCrOS\b", "Chromebook"),
        (r"\bMacintosh\b", "Mac"),
        (r"\bWindows\b", "Windows"),
        (r"\bLinux\b", "Linux"),
    )
)


@dataclass(frozen=True, eq=False)
class Caller:
    """What the request itself proves about its caller, before anyone is asked who has the address.

    The same headers give the same object (compared by identity, which makes it a cheap key).
    """

    kind: str  # person | funnel | local | unknown; whois adds tagged and shared
    source: str = "none"  # serve_header | none; whois adds its own
    login: str | None = None
    full_name: str | None = None
    peer: str | None = None  # the other end of the connection; None on a unix socket or where uvicorn replaced it
    client: str | None = None  # the address the proxy vouches for, else the peer
    tailnet: bool = False  # `client` is a tailnet address
    vouched: bool = True  # the peer is a trusted proxy, or a process of this machine
    unix: bool = False  # it came over a unix socket, which no tailnet peer can reach
    forged: bool = False  # identity headers came from a peer that may not send them


@lru_cache(1024)
def parse(text: str) -> Address | None:
    """The address, IPv4 taken out of its `::ffff:` mapping, or None. Whatever follows a `%` (zone) is refused."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


@lru_cache(1024)
def is_tailnet(text: str) -> bool:
    address = parse(text)
    return address is not None and any(address in network for network in TAILNET)


def decoded(value: bytes) -> str | None:
    """A header's text after RFC 2047, or None where it is empty, not ASCII, malformed, or holds control characters."""
    try:
        text = value.decode("ascii").strip()
        if "=?" in text:
            text = str(make_header(decode_header(text)))
    except (UnicodeError, HeaderParseError, LookupError, ValueError):
        return None
    return text[:256] if text and not _CONTROL.search(text) else None


@lru_cache(512)
def guess(user_agent: str) -> str | None:
    """What kind of device the user agent claims to be."""
    return next((name for pattern, name in _GUESSES if pattern.search(user_agent)), None)


class Identify:
    """Reads a request's caller. `trusted`: the networks whose peers may send identity headers and X-Forwarded-For."""

    def __init__(self, trusted: tuple[Network, ...] = LOOPBACK) -> None:
        self._trusted = trusted
        self._trusts = lru_cache(1024)(self._is_trusted)
        self._vouched = lru_cache(1024)(self._read_vouched)

    def _is_trusted(self, host: str) -> bool:
        address = parse(host)
        return address is not None and any(address in network for network in self._trusted)

    def __call__(self, client: tuple[str, int] | None, headers: Headers) -> Caller:
        host, port = client or (None, None)
        # uvicorn writes port 0 where a peer that it trusts sent X-Forwarded-For: that peer is the proxy
        rewritten = port == 0 and FORWARDED_FOR in headers
        if host is not None and not rewritten and not self._trusts(host):
            return _untrusted(host, not IDENTITY_HEADERS.isdisjoint(headers))
        peer = None if rewritten else host
        forwarded = headers[FORWARDED_FOR][-512:] if FORWARDED_FOR in headers else None
        return self._vouched(peer, host is None, forwarded, FUNNEL in headers, headers.get(LOGIN), headers.get(NAME))

    def _read_vouched(
        self,
        peer: str | None,
        unix: bool,
        forwarded: bytes | None,
        funnel: bool,
        login: bytes | None,
        name: bytes | None,
    ) -> Caller:
        hop = self._nearest(forwarded)
        address = hop if hop is not None and parse(hop) else None
        client, tailnet = address or (peer and _plain(peer)), address is not None and is_tailnet(address)
        if funnel:
            return Caller("funnel", peer=peer, client=client, unix=unix)
        user = decoded(login) if login else None
        if user is None:
            return Caller("local" if hop is None else "unknown", peer=peer, client=client, tailnet=tailnet, unix=unix)
        return Caller("person", "serve_header", user, decoded(name or b""), peer, client, tailnet, unix=unix)

    def _nearest(self, forwarded: bytes | None) -> str | None:
        """The right-most entry that is no proxy of ours: what stands left of it was written by the caller."""
        hops = [hop.strip() for hop in forwarded.decode("latin-1").split(",")] if forwarded is not None else []
        return next((_plain(hop) for hop in reversed(hops) if not self._trusts(hop)), None)


@lru_cache(1024)
def _untrusted(host: str, forged: bool) -> Caller:
    address = _plain(host)
    return Caller("unknown", peer=host, client=address, tailnet=is_tailnet(address), vouched=False, forged=forged)


def _plain(host: str) -> str:
    """An address in its one canonical form, anything else (a test client's name) as it came."""
    address = parse(host)
    return host if address is None else str(address)
