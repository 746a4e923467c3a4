"""What a noted request means: its attributes, its traffic and page, its caller by name."""

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, Status, StatusCode

from tailspan_otel import attributes as name
from tailspan_otel import identity, traffic
from tailspan_otel.identity import Caller
from tailspan_otel.node import Node
from tailspan_otel.resolve import Who
from tailspan_otel.whois import WAIT_S

if TYPE_CHECKING:
    from tailspan_otel.request import Request

SCOPE: Final = InstrumentationScope("tailspan")
# the headers that it is described by
DESCRIBED: Final = frozenset((b"host", b"user-agent", b"accept", b"sec-fetch-dest", b"referer", b"x-forwarded-host"))
LATE_NS: Final = 10 * 10**9
UNSET: Final = Status(StatusCode.UNSET)
ERROR: Final = Status(StatusCode.ERROR)


def span_of(request: "Request") -> ReadableSpan:
    """The request's own SERVER span; waits up to 250 ms for tailscaled's word, which is asked for only now."""
    who = who_called(request)
    request.recorder.count(who)
    attributes = attributes_of(request, who)
    method = request.method if request.method in name.METHODS else "HTTP"
    return ReadableSpan(
        f"{method} {request.route}" if request.route else method,
        request.ids,
        request.parent,
        request.recorder.resource,
        attributes,
        kind=SpanKind.SERVER,
        status=ERROR if name.ERROR_TYPE in attributes else UNSET,
        start_time=request.start_ns,
        end_time=request.end_ns,
        instrumentation_scope=SCOPE,
    )


def who_called(request: "Request") -> Who:
    """The caller of a request that has ended. Of one that waited for long, because nobody took the spans before it,
    the address alone tells nobody: it may have another owner by now, and the server knows whose it was then."""
    return request.who(WAIT_S, late=time.time_ns() - request.end_ns > LATE_NS)


def attributes_of(request: "Request", who: Who) -> dict[str, Any]:
    """Every attribute of a request of that caller's."""
    kind, page = traffic_of(request, who.caller)
    found: dict[str, Any] = {
        **identity_of(who),
        **_method(request.method),
        **_server(_text(request, b"host")[:256]),
        name.PATH: request.path[: name.MAX_LENGTH],
        name.SCHEME: request.scheme,
        name.PROTOCOL_VERSION: request.version,
        name.TRAFFIC: kind,
    }
    if request.route:
        found[name.ROUTE] = request.route
    if page:
        found[name.PAGE] = request.recorder.bounded_page(page)
    if request.status is not None:
        found[name.STATUS] = request.status
    if request.error_type or (request.status or 0) >= 500:
        found[name.ERROR_TYPE] = request.error_type or str(request.status)
    if request.websocket or request.content_type.startswith(b"text/event-stream"):
        found[name.TIMED] = False  # how long it stayed open is no response time
    if user_agent := _text(request, b"user-agent"):
        found[name.USER_AGENT] = user_agent
        if who.node is None and (device := identity.guess(user_agent[:256])):
            found[name.GUESS] = device
    return found


def traffic_of(request: "Request", caller: Caller) -> tuple[str, str | None]:
    """Its kind of traffic, as that caller's, and the page that it is or belongs to."""
    path, rhythm = request.path[: name.MAX_LENGTH], request.recorder.rhythm
    content_type = request.content_type.decode("latin-1")
    accept = _text(request, b"accept") if request.status == 304 else ""
    is_page = traffic.is_page(request.method, request.status or 0, content_type, accept)
    who = caller.client or caller.login or ""
    kind = traffic.classify(
        path,
        "" if request.websocket else _text(request, b"sec-fetch-dest"),
        local=caller.kind == "local",
        page=is_page,
        agent=request.headers.get(b"user-agent", b"").startswith(traffic.AGENT),
        poll=lambda: rhythm.is_poll(who, f"{request.method} {request.route or path}", request.start_ns),
    )
    if kind == "page":
        rhythm.page(who, request.start_ns)
    return kind, traffic.templated(path) if is_page else _page_around(request)


def _page_around(request: "Request") -> str | None:
    referer = _text(request, b"referer")
    if not referer:
        return None
    forwarded = _text(request, b"x-forwarded-host") if request.caller.vouched else ""
    return traffic.page_of_referer(referer, (_text(request, b"host"), forwarded))


def _text(request: "Request", header: bytes) -> str:
    value = request.headers.get(header)
    return value[: name.MAX_LENGTH].decode("latin-1") if value else ""


def _method(method: str) -> dict[str, str]:
    if method in name.METHODS:
        return {name.METHOD: method}
    return {name.METHOD: "_OTHER", name.METHOD_ORIGINAL: method[:64]}


def identity_of(who: Who) -> dict[str, Any]:
    """The attributes that are about the caller."""
    return _identity(who.caller, who.node, who.proven)


def _device(caller: Caller, node: Node) -> dict[str, Any]:
    """What a device adds to a caller: its name; and, where the headers named nobody, whose it is."""
    device: dict[str, Any] = {name.NODE: node.name, name.NODE_ID: node.id}
    if node.tags:
        device[name.TAGS] = node.tags
    if caller.kind != "local" and (caller.login is None or node.shared):
        device[name.CALLER] = node.kind
    if caller.login is not None:
        return device
    owner = {name.IDENTITY_SOURCE: node.source, name.LOGIN: node.login, name.FULL_NAME: node.full_name}
    return device | {key: value for key, value in owner.items() if value}


@lru_cache(4096)
def _identity(caller: Caller, node: Node | None, proven: bool) -> dict[str, Any]:
    every = {
        name.KIND: "request",
        name.SOURCE: "live",
        name.SCHEMA: name.SCHEMA_VERSION,
        name.CALLER: caller.kind,
        name.IDENTITY_SOURCE: caller.source,
        name.PROVEN: None if proven else False,
        name.LOGIN: caller.login,
        name.FULL_NAME: caller.full_name,
        name.CLIENT_ADDRESS: caller.client,
        name.PEER_ADDRESS: caller.peer,
        name.ADDRESS: caller.client if caller.tailnet else None,
    }
    known = {key: value for key, value in every.items() if value is not None}
    return known | _device(caller, node) if node else known


@lru_cache(256)
def _server(host: str) -> dict[str, Any]:
    """The Host header's name and port; no port where the scheme's own is meant."""
    text, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    named = {name.SERVER_ADDRESS: text} if text else {}
    return {**named, name.SERVER_PORT: int(port)} if port.isdecimal() and len(port) < 6 else named
