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
from tailspan_otel.identity import guess, is_tailnet, parse
from tailspan_otel.traffic import fixed_traffic, is_page, page_of_referer, templated

from tailspan.ingest.nginx import unescaped
from tailspan.ingest.otlp import SERVER, clean
from tailspan.span import ABOUT

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a method (RFC 9110, 5.6.2)
PAGES: Final = (".html", ".htm", "/")
DOCUMENTS: Final = ("document", "iframe")
SECOND: Final = 10**9
# the variables that tell what was asked for, and those that tell the rest but when, how long and which
ASKED: Final = ("request", "request_method", "request_uri")
TOLD: Final = (
    *("http_referer", "remote_addr", "status", "host", "http_host", "http_user_agent", "http_accept"),
    *("http_sec_fetch_dest", "sent_http_content_type"),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose requests a log has. Nothing of this changes a line's ids."""

    service: str = "nginx"  # service.name: as the service calls itself, where it is instrumented
    environment: str | None = None
    hosts: tuple[str, ...] = ()  # what the service is called in URLs, where the lines do not tell
    zone: str = "UTC"  # of times without an offset


class Asked(NamedTuple):
    """The request itself. `path` as the service sees it: decoded, without server and query."""

    method: str
    path: str
    template: str  # by the {id} rule: what the rest of a line's meaning is made of


class Told(NamedTuple):
    """What repeats among lines. `about` in the order of span.ABOUT."""

    about: tuple[object, ...]
    traffic: str  # page, api, asset, ...: never poll, which a line alone cannot tell
    client: str  # whom a rhythm would be of
    timed: bool  # whether how long it took is a response time


def asked(values: Mapping[str, bytes]) -> Asked | None:
    """Of those of ASKED that the format has; None where that is nothing that HTTP knows."""
    text = {name: _text(value) for name, value in values.items()}
    if "request" in text:
        method, _, rest = text["request"].partition(" ")
        target, _, version = rest.rpartition(" ")
        target = target if version.startswith("HTTP/") else rest if not target else ""
    else:
        method, target = text.get("request_method", ""), text["request_uri"]
    if not TOKEN.fullmatch(method) or not target:
        return None
    if (server := SERVER.match(target)) is not None:
        target = target[server.end() :] or "/"
    path = target.partition("?")[0].partition("#")[0]
    if "%" in path:
        path = unquote_to_bytes(path).decode("utf-8", "replace")
    path = clean(path[: names.MAX_LENGTH]) or ""
    return Asked(method if method in names.METHODS else "_OTHER", path, templated(path))


def told(what: Asked, values: Mapping[str, bytes], origin: Origin) -> Told:
    """Of those of TOLD that the format has."""
    text = {name: _text(value) for name, value in values.items()}
    client = _address(text["remote_addr"])
    address = client if client and is_tailnet(client) else None
    status = int(text["status"])
    is_local = client is None or client.startswith("127.") or client == "::1"
    traffic, page = _traffic(what, status, text, origin)
    if is_local and traffic != "agent":
        traffic = "internal"
    agent = text.get("http_user_agent", "")
    about = {
        "service": origin.service,
        "environment": origin.environment,
        "method": what.method,
        "route": (what.template or None) if status < 400 or status >= 500 else None,  # a scanner's paths are no routes
        "status": status if 100 <= status <= 599 else None,
        "address": address,
        "guess": guess(agent[:256]) if agent else None,
        "source": "log",
        "identity_source": "none",
        "proven": True,
        "caller": "local" if is_local else "unknown",
        "traffic": traffic,
        "page": page,
        "client_address": client,
        "user_agent": clean(agent),
        "schema": names.SCHEMA_VERSION,
        "kind": "request",
    }
    timed = status != 101 and not text.get("sent_http_content_type", "").startswith("text/event-stream")
    return Told(tuple(about.get(name) for name in ABOUT), traffic, client or "", timed)


def _text(value: bytes) -> str:
    """Empty where nginx had nothing to write."""
    return "" if value == b"-" else unescaped(value[: 4 * names.MAX_LENGTH]).decode("utf-8", "replace")


def _address(text: str) -> str | None:
    """In its one form; None for a unix socket."""
    address = parse(text)
    return str(address) if address else None


def _traffic(what: Asked, status: int, text: Mapping[str, str], origin: Origin) -> tuple[str, str | None]:
    """As tailspan_otel.traffic has it, and the page asked for or called from."""
    referer, host = text.get("http_referer", ""), text.get("host") or text.get("http_host") or ""
    fixed = fixed_traffic(what.template, text.get("http_sec_fetch_dest", ""))
    if fixed is None and status < 400 and _is_page(what, status, text):
        return "page", what.template
    page = page_of_referer(referer, (host, *origin.hosts)) if referer else None
    return fixed or "api", clean(page)


def _is_page(what: Asked, status: int, text: Mapping[str, str]) -> bool:
    """By the answer's type. Where the log does not tell it, what a browser asks for as a page.

    That is by Sec-Fetch-Dest, else by a path that ends as pages do, else without a Referer.
    """
    if "sent_http_content_type" in text:
        return is_page(what.method, status, text["sent_http_content_type"], text.get("http_accept", ""))
    if what.method != "GET" or (status >= 300 and status != 304):
        return False
    if text.get("http_sec_fetch_dest"):
        return text["http_sec_fetch_dest"] in DOCUMENTS
    browses = text.get("http_user_agent", "").startswith("Mozilla/") and not text.get("http_referer")
    return what.template.endswith(PAGES) or browses


@lru_cache(64)
def local_time(text: bytes, zone: str) -> int:
    """Of $time_local, in nanoseconds since 1970. `zone` is that of one without an offset. Raises ValueError."""
    moment = text.decode()
    if len(moment) > 20:
        return int(datetime.strptime(moment, "%d/%b/%Y:%H:%M:%S %z").timestamp()) * SECOND
    return int(datetime.strptime(moment, "%d/%b/%Y:%H:%M:%S").replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND


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
