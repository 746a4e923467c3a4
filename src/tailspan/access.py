"""Who may ask and who may deliver: the guard in front of every endpoint.

Without a token: a process of this machine, over loopback or the unix socket. A caller is not taken for one where
- a header says that the request came through a proxy: then it is somebody whom the proxy let in;
- tailscaled runs in userspace mode: any tailnet peer reaches loopback ports there. The unix socket stays out of reach.
  A tailscaled in our network that nobody asks (its socket is in another container) may run so.

The page's own files hold no data, and are anybody's. Then people, who may read and nothing else: whom a trusted proxy
names, or whose device has the address that it vouches for. Those of the own tailnet, or where TAILSPAN_READERS names
logins and tags, those alone. Whether somebody is of the own tailnet the list of its devices tells; who is in no list
must be named. To ask for totals without names, and to tell which cards one sees, a name of whatever tailnet is enough.

A page of a foreign site can make its reader's browser call us. It is stopped by Host (which it cannot choose freely,
not even by rebinding DNS) and, where something would change, by Origin.
"""

import logging
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from tailspan_otel.identity import Identify, headers_of, other_end, own_end
from tailspan_otel.localapi import LocalAPI, NoAnswer
from tailspan_otel.peers import Peers
from tailspan_otel.whois import MODE_S, Whois

from tailspan.config import Settings, is_loopback
from tailspan.errors import AccessError, HostError, OriginError, ReaderError, SettingError, TailspanError
from tailspan.neighbours import has_tailscaled
from tailspan.respond import refusal
from tailspan.tailnet import Listed

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
PROXY_HEADERS: Final = ("x-forwarded-for", "forwarded", "x-real-ip", "via")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
READING: Final = ("/analytics/query", "/analytics/mcp")  # by whatever method
FILES: Final = "/analytics/static/"
INDEX: Final = "/analytics/"
NAMED: Final = (("GET", "/analytics/totals"), ("HEAD", "/analytics/totals"), ("POST", "/analytics/views"))
TOKEN_FIX: Final = "Send Authorization: Bearer with the server's TAILSPAN_TOKEN."
UNSEEN: Final = "A tailscaled shares this network and does not say here how it runs: tailnet peers may reach loopback."
UNSEEN_FIX: Final = (
    "Let TS_SOCKET name its socket, or set TAILSPAN_USERSPACE=false if it has a TUN device; "
    "else use TAILSPAN_TOKEN, or TAILSPAN_LISTEN=unix:/path"
)

log = logging.getLogger("tailspan")


class Person(NamedTuple):
    """Who asks, as far as that is proven. `kind`: person, tagged, shared, funnel, or unknown: nobody can tell."""

    login: str | None
    tags: tuple[str, ...]
    kind: str

    @property
    def name(self) -> str:
        return self.login or ", ".join(self.tags) or "Somebody on the internet"


class Guard:
    """ASGI middleware. Refuses with AccessError and its kinds, each in its JSON shape.

    `holder` gives the device of the tailnet that has an address now, as its sources list it.
    """

    def __init__(self, app: ASGIApp, settings: Settings, holder: Callable[[str], Listed | None]) -> None:
        self.app = app
        self.token = settings.token
        self.allowed_hosts = settings.allowed_hosts
        self.names = (*LOCAL_NAMES, *settings.allowed_hosts)
        self.readers = frozenset(settings.readers)
        self._said = settings.userspace
        self._socket = settings.ts_socket
        self._looked = (-MODE_S, False)  # when, and whether a tailscaled shares our network
        self._tailscaled = Whois(str(settings.ts_socket))
        if self._said is None:
            self._tailscaled.ask_mode()  # before anybody is let in
            if not settings.unix_path and self.userspace is None and self.exposed:
                log.warning("%s Over loopback, too, a token is needed. %s", UNSEEN, UNSEEN_FIX)
        self._peers = Peers(settings.trusted_peers)
        self._identify = Identify(self._peers)
        self._peers.changed = self._identify.forget
        self._holder = holder

    @property
    def userspace(self) -> bool | None:
        """Whether tailscaled runs without a TUN device; None where neither its owner nor itself ever said so."""
        if self._said is not None:
            return self._said
        self._tailscaled.start()  # it may start later than we do, or again and otherwise
        return self._tailscaled.userspace if self._tailscaled.answered else None

    @property
    def exposed(self) -> bool:
        """Whether tailnet peers reach loopback ports: in userspace mode, or, as far as anybody knows, where
        a tailscaled shares our network and its mode was never told."""
        userspace, now = self.userspace, monotonic()
        if userspace is None and self._looked[0] <= now - MODE_S:
            self._looked = now, has_tailscaled(self._socket)
        return self._looked[1] if userspace is None else userspace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.check(scope, Headers(scope=scope))
            except TailspanError as error:
                return await refusal(error, scope)(scope, receive, send)
        await self.app(scope, receive, send)

    def check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        name = name_of(host)
        if name.lower() not in self.names:
            raise HostError(
                f"This server does not answer to the host {name!r}.",
                value=name,
                rule=f"It answers to {', '.join(self.names)}.",
                fix="Add the name to TAILSPAN_ALLOWED_HOSTS.",
            )
        if scope["method"] not in SAFE_METHODS and (origin := headers.get("origin")):
            self._check_origin(origin, host, headers.get("x-forwarded-host") if other_end(scope) is None else None)
        if is_file(scope):
            return
        sent = headers.get("authorization")
        if sent is None and (self.is_local_process(scope, headers) or self._is_reader(scope)):
            return
        if self.token is None or not compare_digest((sent or "").encode(), f"Bearer {self.token}".encode()):
            why = "The token is wrong." if sent else self._why(scope)
            raise AccessError(why, fix=f"{TOKEN_FIX} {UNSEEN_FIX}" if why == UNSEEN else TOKEN_FIX)

    def _check_origin(self, origin: str, host: str, forwarded: str | None) -> None:
        """`forwarded` is what the browser asked for where a proxy says so that we believe: to a unix socket Serve sends
        "localhost" as Host. It counts as Host does, that is, where it is a name of ours: a foreign page may have found
        a proxy that passes it on."""
        ours = (host, forwarded) if forwarded and name_of(forwarded).lower() in self.allowed_hosts else (host,)
        if origin.partition("://")[2] not in ours:
            raise OriginError(
                f"The page's origin is {origin!r}.",
                value=origin,
                rule=f"Only pages of {' and '.join(ours)} may do this.",
                fix="Where that is this server through Tailscale Serve, add its name to TAILSPAN_ALLOWED_HOSTS."
                if forwarded
                else None,
            )

    def is_local_process(self, scope: Scope, headers: Headers) -> bool:
        if any(header in headers for header in PROXY_HEADERS) or any(key.startswith("tailscale-") for key in headers):
            return False
        client = other_end(scope)
        return client is None or (is_loopback(client[0]) and not self.exposed)

    def _is_reader(self, scope: Scope) -> bool:
        """Whether it is somebody who may ask this. False where nobody knows who it is. Raises ReaderError."""
        person = self._person(scope)
        if person is None:
            return False
        if (person.login or person.tags) and (scope["method"], scope["path"]) in NAMED:
            return True
        if self.readers.isdisjoint((person.login, *person.tags)):
            self._check_unnamed(person)
        if scope["method"] not in SAFE_METHODS and not scope["path"].endswith(READING):
            raise ReaderError(
                f"{person.name} may read here, and nothing else.",
                value=person.name,
                rule="To delete or to deliver takes a process of the server's machine, or the token.",
                fix=TOKEN_FIX,
            )
        return True

    def _check_unnamed(self, person: Person) -> None:
        if person.kind == "person" and not self.readers:
            return
        why = {
            "tagged": "Tagged devices are let in by name alone.",
            "shared": "Devices of other tailnets are let in by name alone.",
            "funnel": "Nobody is let in from the internet.",
            "unknown": "That this is somebody of the own tailnet is in no list of its devices.",
        }
        raise ReaderError(
            f"{person.name} may not read here.",
            value=person.name,
            rule=why.get(person.kind, "TAILSPAN_READERS names those who may."),
            fix=TOKEN_FIX if person.kind == "funnel" else f"Add {person.name} to TAILSPAN_READERS.",
        )

    def _person(self, scope: Scope) -> Person | None:
        """By a trusted proxy's word, or by the connection itself where tailscaled has a TUN device."""
        self._peers.start()
        caller = self._identify(other_end(scope), headers_of(scope), own_end(scope))
        proven = (caller.unix or not self.exposed) if caller.vouched else self.userspace is False
        if not proven or caller.forged:
            return None
        if caller.kind == "funnel":
            return Person(None, (), "funnel")
        device = self._holder(caller.client) if caller.tailnet and caller.client else None
        if caller.login:
            known = device is not None and device.login == caller.login
            if not known and (device is not None or caller.source == "nginx_auth" or not caller.tailnet):
                return None  # some proxy passed on what the caller wrote himself: Serve says from which tailnet address
            return Person(caller.login, (), device.kind if device and known else "unknown")
        if device is None:
            return None
        return Person(device.login, tuple(device.tags.split(",")) if device.tags else (), device.kind)

    def _why(self, scope: Scope) -> str:
        client = other_end(scope)
        if client is not None and not is_loopback(client[0]):
            return f"A caller from {client[0]} needs a token."
        if client is not None and self.userspace:
            return "Where tailscaled runs in userspace mode, tailnet peers reach loopback: a token or the unix socket."
        if client is not None and self.exposed:
            return UNSEEN
        return "The request came through a proxy: the caller is no process of this machine, and needs a token."


def name_of(host: str) -> str:
    """Of a Host header, without its port."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def is_file(scope: Scope) -> bool:
    """Whether that is a file of the page."""
    path = scope["path"]
    return scope["method"] in SAFE_METHODS and (path == INDEX or path.startswith(FILES))


def check_listening(settings: Settings, userspace: bool) -> None:
    """Raises SettingError where others than this machine's processes would reach a server without a token."""
    if settings.unix_path or settings.token:
        return
    host, _ = settings.address
    fix = "Set TAILSPAN_TOKEN or TAILSPAN_TOKEN_FILE, or listen on a socket: TAILSPAN_LISTEN=unix:/path"
    if not is_loopback(host):
        raise SettingError(
            f"TAILSPAN_LISTEN is {settings.listen!r}, which other machines reach.",
            value=settings.listen,
            rule="Off loopback a token is needed: access logs are personal data.",
            fix=fix,
        )
    if userspace:
        raise SettingError(
            f"TAILSPAN_LISTEN is {settings.listen!r}, and tailscaled runs in userspace mode.",
            value=settings.listen,
            rule="There any tailnet peer reaches loopback ports, so a token is needed.",
            fix=fix,
        )


def is_userspace(socket: Path) -> bool | None:
    """Whether tailscaled runs without a TUN device, by its LocalAPI; None where there is no answer."""
    try:
        return LocalAPI(str(socket)).mode().userspace
    except NoAnswer:
        return None
