"""What a request itself says of its caller: a proxy's headers, believed only from a peer we trust, and the address.

Headers: Tailscale's "Identity headers" of `tailscale serve` (absent for tagged nodes, which whois tells apart, and for
Funnel, which says so itself), and those of its nginx-auth. Identity belongs to a request, never to a connection: Serve
sends several people's requests over one.
"""

import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple, Protocol

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Headers = dict[bytes, bytes]

TAILNET: Final = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))
LOOPBACK: Final = (ip_network("127.0.0.1/32"), ip_network("::1/128"))
LOOPBACK_HOPS: Final = frozenset(("127.0.0.1", "::1"))
MAX_NAME: Final = 256
MAX_VALUE: Final = 2048  # bytes of a header that names somebody, in RFC 2047's words too; a longer one names nobody
NOBODY: Final = ("", 1)  # no address, and no port 0, which has a meaning

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


def decoded(value: bytes) -> str | None:
    """A header's text after RFC 2047, or None where it is empty, not ASCII, malformed, or holds control characters."""
    try:
        text = value.decode("ascii").strip()
        if "=?" in text:
            text = str(make_header(decode_header(text)))
    except (UnicodeError, HeaderParseError, LookupError, ValueError):
        return None
    return _clean(text)


def plain(value: bytes) -> str | None:
    """A header's text in UTF-8, which nginx-auth sends as it is, or None as above."""
    try:
        return _clean(value.decode().strip())
    except UnicodeError:
        return None


def _clean(text: str) -> str | None:
    return text[:MAX_NAME] if text and not _CONTROL.search(text) else None


class Proxy(NamedTuple):
    """How a proxy names a caller."""

    source: str
    login: bytes
    name: bytes
    text: Callable[[bytes], str | None]
    beside: bytes | None = None  # a header without which the login is somebody else's


# in the order in which they are believed
PROXIES: Final = (
    Proxy("serve_header", b"tailscale-user-login", b"tailscale-user-name", decoded),
    Proxy("nginx_auth", b"tailscale-user", b"tailscale-name", plain),
    Proxy("nginx_auth", b"x-webauth-user", b"x-webauth-name", plain, b"x-webauth-login"),  # as its README passes it on
)
FUNNEL: Final = b"tailscale-funnel-request"
FORWARDED_FOR: Final = b"x-forwarded-for"
REAL_IP: Final = b"x-real-ip"  # nginx's; Serve passes on the caller's own, beside the X-Forwarded-For of its own
READ: Final = tuple(name for proxy in PROXIES for name in (proxy.login, proxy.name, proxy.beside) if name)
# what only a proxy of Tailscale's sends: from anybody else it is forged
IDENTITY_HEADERS: Final = frozenset(
    (
        b"tailscale-user-login tailscale-user-name tailscale-user-profile-pic tailscale-funnel-request "
        b"tailscale-user tailscale-login tailscale-name tailscale-tailnet tailscale-profile-picture x-webauth-login"
    ).split()
)


@dataclass(frozen=True, eq=False, slots=True)
class Caller:
    """What the request itself proves about its caller, before anyone is asked who has the address.

    The same headers give the same object (compared by identity, which makes it a cheap key). `forged` is what in the
    request was written by somebody who may not: untrusted (identity headers from a peer that is no proxy of ours),
    rewritten (uvicorn took the caller's word for the address), disputed (X-Forwarded-For and X-Real-IP name two
    addresses), contradicted (a proxy passed on headers that do not agree), addressless (a login without the tailnet
    address that it would come from), forwarded (an X-Forwarded-For that names a tailnet address nobody vouches
    for).
    """

    kind: str  # person | funnel | local | unknown; whois adds tagged and shared
    source: str = "none"  # serve_header | nginx_auth | none; whois and status are added later
    login: str | None = None
    full_name: str | None = None
    peer: str | None = None  # the other end of the connection; None on a unix socket or where uvicorn replaced it
    client: str | None = None  # the address the proxy vouches for, else the peer
    tailnet: bool = False  # `client` is a tailnet address
    vouched: bool = True  # the peer is a trusted proxy, or a process of this machine
    unix: bool = (
        False  # it came over a unix socket, which no tailnet peer can reach, nor a proxy before it over loopback
    )
    forged: str | None = None


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


@lru_cache(512)
def guess(user_agent: str) -> str | None:
    """What kind of device the user agent claims to be."""
    return next((name for pattern, name in _GUESSES if pattern.search(user_agent)), None)


def other_end(scope: MutableMapping[str, Any]) -> tuple[str, int] | None:
    """The connection's other end; None over a unix socket alone. Who hung up at once has none either, and is nobody.

    Of a unix socket a server tells its path and no port (ASGI's HTTP specification), uvicorn before 0.41 nothing at
    all; with proxy headers uvicorn makes up a client there too.
    """
    client, server = scope.get("client"), scope.get("server")
    if server is not None and server[1] is None:
        return None
    if client is not None:
        return client  # type: ignore[no-any-return]  # the server's own object, which `Whois.connection` knows it by
    return None if server is None else NOBODY


def own_end(scope: MutableMapping[str, Any]) -> str:
    """The address of ours that the connection goes to; empty where the server does not say."""
    server = scope.get("server")
    return server[0] if server else ""


def headers_of(scope: MutableMapping[str, Any]) -> Headers:
    """By name; of several lines the last, but all of X-Forwarded-For's as one (RFC 9110, 5.3)."""
    found: Headers = dict(scope["headers"])
    if len(found) < len(scope["headers"]) and FORWARDED_FOR in found:
        found[FORWARDED_FOR] = b", ".join(value for name, value in scope["headers"] if name == FORWARDED_FOR)
    return found


class Trust(Protocol):
    """Who is a proxy of ours: `peers.Peers`."""

    def trusts(self, host: str) -> bool:
        """Whether a peer of that address may name callers and their addresses."""

    def reach(self, host: str) -> bool:
        """Whether any of them may be the other end of a connection to the address `host` of ours."""


class Identify:
    """Reads a request's caller, as far as a proxy that is trusted tells."""

    def __init__(self, trust: Trust) -> None:
        self._turn = 0
        self._trusts = lru_cache(1024)(lambda host, turn: trust.trusts(host))
        self._reached = lru_cache(64)(lambda host, turn: trust.reach(host))
        self._vouched = lru_cache(1024)(self._read_vouched)

    def forget(self) -> None:
        """Somebody else is trusted from now on. What another thread is just working out belongs to the turn before."""
        self._turn += 1
        self._trusts.cache_clear()
        self._reached.cache_clear()
        self._vouched.cache_clear()

    def __call__(self, client: tuple[str, int] | None, headers: Headers, own: str) -> Caller:
        """`client` is the connection's other end, `own` the address of ours that it goes to."""
        turn, (host, port) = self._turn, client or (None, None)
        if host is not None and port and FORWARDED_FOR in headers and _writes(headers[FORWARDED_FOR], host, port):
            return _REWRITTEN
        forwarded = _end_of(headers, FORWARDED_FOR)
        # uvicorn writes port 0 where a peer that it trusts sent X-Forwarded-For: that peer is the proxy, if it can be
        rewritten = port == 0 and forwarded is not None
        if rewritten and not self._reached(own, turn):
            return _REWRITTEN
        real = _end_of(headers, REAL_IP)
        if host is not None and not rewritten and not self._trusts(host, turn):
            hops = real if forwarded is None else forwarded
            return _untrusted(host, hops, not IDENTITY_HEADERS.isdisjoint(headers))
        peer, written = (None, host) if rewritten else (host, None)
        values = tuple(_short(headers.get(name)) for name in READ)
        return self._vouched(turn, peer, written, host is None, forwarded, real, FUNNEL in headers, values)

    def _read_vouched(
        self,
        turn: int,
        peer: str | None,
        written: str | None,
        unix: bool,
        forwarded: bytes | None,
        real: bytes | None,
        funnel: bool,
        values: tuple[bytes | None, ...],
    ) -> Caller:
        hops = _hops(real if forwarded is None else forwarded)
        # the right-most that is no proxy of ours: what stands left of it was written by the caller
        place = next((at for at in reversed(range(len(hops))) if not self._trusts(hops[at], turn)), None)
        hop = None if place is None else hops[place]
        nearest = {*_hops(real)[-1:], *hops[0 if place is None else place + 1 :]}
        unix = unix and LOOPBACK_HOPS.isdisjoint(nearest)  # else a proxy before the socket was reached over TCP
        if written is not None and self._differs(written, hop, turn):
            return _REWRITTEN
        if forwarded is not None and real is not None and self._differs(_hops(real)[-1], hop, turn):
            return Caller("unknown", peer=peer, client=peer and _canonical(peer), unix=unix, forged="disputed")
        address = hop if hop is not None and parse(hop) else None
        caller = Caller(
            "local" if hop is None else "unknown",
            peer=peer,
            client=address or (peer and _canonical(peer)),
            tailnet=address is not None and is_tailnet(address),
            unix=unix,
            forged="forwarded" if _names_others(hops[:place], hop) else None,
        )
        if funnel and not caller.tailnet:
            return replace(caller, kind="funnel")
        if funnel:  # what comes through Funnel has a public address
            caller = replace(caller, forged="contradicted")
        return _named(caller, dict(zip(READ, values, strict=True)))

    def _differs(self, told: str, hop: str | None, turn: int) -> bool:
        """Whether `told` is another caller's address than the believed entry, and no proxy of ours."""
        address = _canonical(told)
        return address != hop and not self._trusts(address, turn)


def _named(caller: Caller, headers: dict[bytes, bytes | None]) -> Caller:
    """By the first proxy that names somebody, unless another names somebody else: then neither is believed."""
    said = [
        (proxy, login)
        for proxy in PROXIES
        if (proxy.beside is None or headers[proxy.beside]) and (login := proxy.text(headers[proxy.login] or b""))
    ]
    if not said:
        return caller
    proxy, login = said[0]
    if any(other != login for _, other in said):
        return replace(caller, kind="unknown", forged="contradicted")
    # Serve always says from which address, and of any other than a tailnet's nginx-auth knows nobody
    if not caller.tailnet and (proxy.source == "serve_header" or caller.kind != "local"):
        return replace(caller, kind="unknown", forged="addressless")
    full_name = proxy.text(headers[proxy.name] or b"")
    return replace(caller, kind="person", source=proxy.source, login=login, full_name=full_name)


def _hops(forwarded: bytes | None) -> list[str]:
    return [] if forwarded is None else [_canonical(hop.strip()) for hop in forwarded.decode("latin-1").split(",")]


def _names_others(others: list[str], believed: str | None) -> bool:
    """Whether a tailnet address is among the entries before the one that is believed."""
    return believed is not None and any(other != believed and is_tailnet(other) for other in others)


def _end_of(headers: Headers, name: bytes) -> bytes | None:
    """A header's last 512 bytes, which proxies wrote, if it was sent."""
    value = headers.get(name)
    return value if value is None else value[-512:]


def _short(value: bytes | None) -> bytes | None:
    return value if value is None or len(value) <= MAX_VALUE else b""


def _writes(forwarded: bytes, host: str, port: int) -> bool:
    """Whether an entry is that address with that port: then uvicorn took the peer from there, or may have."""
    if b":" not in forwarded:
        return False
    ends = (entry.strip().rpartition(":") for entry in forwarded.decode("latin-1").split(","))
    return any(_unbracketed(before) == host and _is(port, after) for before, _, after in ends)


def _unbracketed(text: str) -> str:
    """As uvicorn reads it: up to the first `]`."""
    return text[1 : text.find("]")] if text.startswith("[") else text


def _is(port: int, text: str) -> bool:
    try:
        return int(text) == port  # as uvicorn reads it: 07777 too
    except ValueError:
        return False


# uvicorn believed somebody whom we do not: who is at the connection's other end is not known, nor what that one may say
_REWRITTEN: Final = Caller("unknown", vouched=False, forged="rewritten")


@lru_cache(1024)
def _untrusted(host: str, forwarded: bytes | None, named: bool) -> Caller:
    address = _canonical(host)
    claims = any(hop != address and is_tailnet(hop) for hop in _hops(forwarded))
    return Caller(
        "unknown",
        peer=host or None,
        client=address or None,
        tailnet=is_tailnet(address),
        vouched=False,
        forged="untrusted" if named else "forwarded" if claims else None,
    )


def _canonical(host: str) -> str:
    """An address in its one canonical form, anything else (a test client's name) as it came."""
    address = parse(host)
    return host if address is None else str(address)
