"""What a log line says of its request, by fixed rules and from the line alone: read again, it says the same."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes
from zoneinfo import ZoneInfo

from tailspan_otel import attributes as names
from tailspan_otel.identity import decoded, guess, is_tailnet, parse
from tailspan_otel.traffic import AGENT, fixed_traffic, is_page, page_of_referer, templated

from tailspan.ingest import SERVER, clean
from tailspan.ingest.nginx import unescaped
from tailspan.span import ABOUT

# a request of which nothing but the query is to be cut: most are, and take a tenth of the time
PLAIN: Final = re.compile(
    rf"({'|'.join(sorted(names.METHODS))}) (?!\S*/[/.])"
    rf"(/[\w/.~-]{{0,{names.MAX_LENGTH // 4 - 1}}}) HTTP/[\d.]+".encode()
)
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a method (RFC 9110, 5.6.2)
PAGES: Final = (".html", ".htm", "/")
DOCUMENTS: Final = ("document", "iframe")
NO_UPSTREAM: Final = (b"-", b"")  # so nginx writes a variable without a value, with escape=json the latter
SECOND: Final = 10**9
LONG: Final = 2048  # bytes of headers, which nobody sends again and again but to fill what is remembered
HOURS: Final = {b"%02d" % number: number * 3600 for number in range(24)}  # found twice as fast as worked out
MINUTES: Final = {b"%02d" % number: number * 60 for number in range(60)}
SECONDS: Final = {b"%02d" % number: number for number in range(61)}
# those that name somebody, and what would vouch for that: each is what a client wrote, where its proxy lets it
USERS: Final = {"http_tailscale_user_login": "serve_header", "remote_user": "nginx_auth"}
# the variables that tell what was asked for, and those that tell the rest but when, how long and which
ASKED: Final = ("request", "request_method", "request_uri")
TOLD: Final = (
    *("http_referer", "remote_addr", "status", "host", "http_host", "http_user_agent", "http_accept"),
    *("http_sec_fetch_dest", "sent_http_content_type", "upstream_status", *USERS),
)
ANSWER: Final = frozenset(TOLD) - {"remote_addr", "status", "http_user_agent", "upstream_status", *USERS}


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose requests a log has. Nothing of this changes a line's ids."""

    service: str = "nginx"  # service.name: as the service calls itself, where it is instrumented
    environment: str | None = None
    hosts: tuple[str, ...] = ()  # what the service is called in URLs, where the lines do not tell
    zone: str = "UTC"  # of times without an offset

    def __post_init__(self) -> None:
        """Names as those of live requests are cleaned: else no line meets its own."""
        object.__setattr__(self, "service", clean(self.service) or "")
        object.__setattr__(self, "environment", clean(self.environment))


class Asked(NamedTuple):
    """The request itself. `path` as the service sees it: decoded, without server and query."""

    method: str
    path: str
    template: str  # of the path that nginx answers, by the {id} rule: what the rest of a line's meaning is made of


class Told(NamedTuple):
    """What repeats among lines. `about` in the order of span.ABOUT."""

    about: tuple[object, ...]
    traffic: str  # page, api, asset, ...: never poll, which a line alone cannot tell
    caller: str  # whom a rhythm would be of
    timed: bool  # whether how long it took is a response time


def plainly_asked(request: bytes) -> Asked | None:
    """Of $request without its query, where that is PLAIN: the same as `asked` would have it."""
    if found := PLAIN.fullmatch(request):
        method, path = found[1].decode(), found[2].decode()
        return Asked(method, path, templated(path))
    return None


def asked(values: Mapping[str, bytes]) -> Asked | None:
    """Of those of ASKED that the format has; None where that is nothing that HTTP knows."""
    text = {name: _text(value) for name, value in values.items()}
    if "request" in text:
        method, _, rest = text["request"].partition(" ")
        target, _, version = rest.rpartition(" ")
        target = target if version.startswith("HTTP/") else rest if not target else ""
    else:
        method, target = text.get("request_method", ""), text["request_uri"]
    if not target or (method not in names.METHODS and not TOKEN.fullmatch(method)):
        return None
    if target[0] != "/" and (server := SERVER.match(target)) is not None:
        target = target[server.end() :] or "/"
    if "%" in target:
        target = unquote_to_bytes(target).decode("utf-8", "replace")
    path = target.partition("?")[0].partition("#")[0]  # once decoded, as what services tell of is cut
    path = clean(path[: names.MAX_LENGTH]) or ""
    template = clean(templated(_resolved(path))) or ""
    return Asked(method if method in names.METHODS else "_OTHER", path, template)


def _resolved(path: str) -> str:
    """As nginx does before it looks for a location (ngx_http_core_module, "location"; `merge_slashes` is on): else
    `/health/../dashboard` is a page that nobody sees."""
    if "//" not in path and "/." not in path:
        return path
    found: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            found = found[:-1]
        elif segment not in ("", "."):
            found.append(segment)
    is_folder = segments[-1] in ("", ".", "..") or not found
    return "/".join(["", *found, *[""] * is_folder])


def told(what: Asked, values: Mapping[str, bytes], origin: Origin) -> Told:
    """Of those of TOLD that the format has. Who called and what for are worked out apart: they combine freely.

    Whom the line names is a claim: whether it counts, and whether a local caller with one is a person or a program of
    the machine, is known when a question is answered.
    """
    agent = values.get("http_user_agent", b"")
    is_long = sum(map(len, values.values())) > LONG
    caller, answered = (_caller.__wrapped__, _answered.__wrapped__) if is_long else (_caller, _answered)
    who = caller(values["remote_addr"], agent)
    answer = tuple((name, value) for name, value in values.items() if name in ANSWER)
    done = answered(what, int(values["status"]), answer, origin.hosts, agent.startswith(b"Mozilla/"))
    claim, vouching = _user(values)
    traffic = "agent" if agent.startswith(AGENT) else done.traffic
    if who.kind == "local" and claim is None and traffic != "agent":
        traffic = "internal"
    about = {
        "service": origin.service,
        "environment": origin.environment,
        "method": what.method,
        "route": done.route,
        "status": done.status,
        "address": who.address,
        "guess": who.guess,
        "source": "log",
        "identity_source": vouching,
        "proven": True,
        "caller": who.kind,
        "traffic": traffic,
        "page": done.page,
        "client_address": who.client,
        "user_agent": who.agent,
        "schema": names.SCHEMA_VERSION,
        "kind": "request",
        "claim": claim,
        "polled": False,
        "by_proxy": values.get("upstream_status") in NO_UPSTREAM,
    }
    return Told(tuple(map(about.get, ABOUT)), traffic, f"{who.client or ''} {claim or ''}", done.timed)


class _Caller(NamedTuple):
    client: str | None
    address: str | None  # of the tailnet
    kind: str  # local | unknown
    agent: str | None
    guess: str | None


@lru_cache(4096)
def _caller(remote_addr: bytes, user_agent: bytes) -> _Caller:
    client, agent = _address(_text(remote_addr)), _text(user_agent)
    is_local = client is None or client.startswith("127.") or client == "::1"
    address = client if client and is_tailnet(client) else None
    return _Caller(client, address, "local" if is_local else "unknown", clean(agent), guess(agent[:256]) or None)


def _user(values: Mapping[str, bytes]) -> tuple[str | None, str]:
    for name, vouching in USERS.items():
        if name in values and (login := clean(decoded(_text(values[name]).encode()))):
            return login, vouching
    return None, "none"


class _Answered(NamedTuple):
    route: str | None
    status: int | None
    traffic: str
    page: str | None
    timed: bool


@lru_cache(16384)
def _answered(
    what: Asked, status: int, answer: tuple[tuple[str, bytes], ...], hosts: tuple[str, ...], browser: bool
) -> _Answered:
    text = {name: _text(value) for name, value in answer}
    traffic, page = _traffic(what, status, text, hosts, browser)
    route = (what.template or None) if status < 400 or status >= 500 else None  # a scanner's paths are no routes
    timed = status != 101 and not text.get("sent_http_content_type", "").startswith("text/event-stream")
    return _Answered(route, status if 100 <= status <= 599 else None, traffic, page, timed)


def _text(value: bytes) -> str:
    """Empty where nginx had nothing to write."""
    return "" if value == b"-" else unescaped(value[: 4 * names.MAX_LENGTH]).decode("utf-8", "replace")


def _address(text: str) -> str | None:
    """In its one form; None for a unix socket."""
    address = parse(text)
    return str(address) if address else None


def _traffic(
    what: Asked, status: int, text: Mapping[str, str], hosts: tuple[str, ...], browser: bool
) -> tuple[str, str | None]:
    """As tailspan_otel.traffic has it, and the page asked for or called from."""
    referer, host = text.get("http_referer", ""), text.get("host") or text.get("http_host") or ""
    fixed = fixed_traffic(what.template, text.get("http_sec_fetch_dest", ""))
    if fixed is None and status < 400 and _is_page(what, status, text, browser):
        return "page", what.template
    page = page_of_referer(referer, (host, *hosts)) if referer else None
    return fixed or "api", clean(page)


def _is_page(what: Asked, status: int, text: Mapping[str, str], browser: bool) -> bool:
    """By the answer's type. Where the log does not tell it, what a browser asks for as a page.

    That is by Sec-Fetch-Dest, else by a path that ends as pages do, else without a Referer.
    """
    if "sent_http_content_type" in text:
        return is_page(what.method, status, text["sent_http_content_type"], text.get("http_accept", ""))
    if what.method != "GET" or (status >= 300 and status != 304):
        return False
    if text.get("http_sec_fetch_dest"):
        return text["http_sec_fetch_dest"] in DOCUMENTS
    return what.template.endswith(PAGES) or (browser and not text.get("http_referer"))


def local_time(text: bytes, zone: str) -> int:
    """Of $time_local, in nanoseconds since 1970. `zone` is that of one without an offset. Raises ValueError."""
    if len(text) == 20:
        return _zoned_time(text, zone)
    try:
        since_midnight = HOURS[text[12:14]] + MINUTES[text[15:17]] + SECONDS[text[18:20]]
    except KeyError:
        raise ValueError("no such time of day") from None
    return (_midnight(text[:11], text[20:]) + since_midnight) * SECOND


@lru_cache(64)
def _midnight(day: bytes, offset: bytes) -> int:
    """In seconds since 1970: strptime takes ten times as long as all else about a line."""
    return int(datetime.strptime((day + offset).decode(), "%d/%b/%Y %z").timestamp())


@lru_cache(64)
def _zoned_time(text: bytes, zone: str) -> int:
    moment = datetime.strptime(text.decode(), "%d/%b/%Y:%H:%M:%S").replace(tzinfo=ZoneInfo(zone))
    return int(moment.timestamp()) * SECOND


@lru_cache(64)
def iso_time(text: bytes, zone: str) -> int:
    return int(datetime.fromisoformat(text.decode()).timestamp()) * SECOND


def exact_time(text: bytes, zone: str) -> int:
    """Of $msec."""
    return int(text.replace(b".", b"")) * 10**6


CLOCKS: Final[Mapping[str, Callable[[bytes, str], int]]] = {
    "msec": exact_time,
    "time_iso8601": iso_time,
    "time_local": local_time,
}
