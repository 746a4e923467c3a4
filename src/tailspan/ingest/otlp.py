"""OTLP/HTTP in: an ExportTraceServiceRequest, protobuf or JSON, as it is or gzipped (opentelemetry.io, "OTLP/HTTP").

Request spans, views of cards and heartbeats are kept. Spans of other work (INTERNAL, CLIENT, ...) are ignored and
counted, and are not reported as rejected: a service that sends whole traces does nothing wrong, and its exporter would
warn of every batch.
"""

import gzip
import json
import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from tailspan_otel import attributes as names
from tailspan_otel.peers import Peers
from tailspan_otel.traffic import fixed_traffic

from tailspan import foreign, wire
from tailspan.errors import DeliveryError, SizeOfDeliveryError, TypeOfDeliveryError
from tailspan.foreign import Trusts
from tailspan.ingest import AHEAD_NS, SERVER, Delivery, clean
from tailspan.span import FORGED_KINDS, Heartbeat, Span

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
MAX_BYTES: Final = 8 * 2**20  # of a body, and of what it unpacks to: some 16,000 spans
LOOPBACK: Final = Peers().trusts
PROBE: Final = "probe"  # the kind of the span that `tailspan doctor` sends

# name now → what senders of older conventions call it
OLD_NAMES: Final = {
    names.METHOD: ("http.method",),
    names.STATUS: ("http.status_code",),
    names.PATH: ("http.target", "http.url", "url.full"),
    names.CLIENT_ADDRESS: ("http.client_ip", names.PEER_ADDRESS, "net.sock.peer.addr", "net.peer.ip"),
    names.PEER_ADDRESS: ("net.sock.peer.addr", "net.peer.ip"),
    foreign.LOGIN_HEADER: ("http.request.header.tailscale_user_login",),  # so in Python and JavaScript
    foreign.FORWARDED_HEADER: ("http.request.header.x_forwarded_for",),
    foreign.REAL_HEADER: ("http.request.header.x_real_ip",),
    names.USER_AGENT: ("http.user_agent",),
    names.ENVIRONMENT: ("deployment.environment",),
}
# everything of a span that is read, its path apart: it differs from span to span, the rest repeats
WANTED: Final = (
    *(names.KIND, names.METHOD, names.ROUTE, names.STATUS, names.LOGIN, names.FULL_NAME, names.NODE, names.NODE_ID),
    *(names.TAGS, names.ADDRESS, names.GUESS, names.SOURCE, names.IDENTITY_SOURCE, names.PROVEN, names.CALLER),
    *(names.CLAIM, names.POLL, names.BY_PROXY),
    *(names.TRAFFIC, names.PAGE, names.CLIENT_ADDRESS, names.PEER_ADDRESS, names.USER_AGENT, names.SCHEMA),
    *(foreign.LOGIN_HEADER, foreign.FORWARDED_HEADER, foreign.REAL_HEADER, names.CARD, names.VARIANT),
    *(old for new, all_old in OLD_NAMES.items() if new != names.PATH for old in all_old),
)
SOURCES: Final = ("live", "log", "page")
IDENTITY_SOURCES: Final = ("serve_header", "nginx_auth", "whois", "status", "device_list", "none")
TRAFFIC: Final = ("agent", "internal", "health", "asset", "page", "poll", "api")
REQUEST: Final = OtlpSpan.SpanKind.SPAN_KIND_SERVER


class Rejection(Exception):
    """A span that means to be one of ours and is wrong; the message is the reason."""


def read(body: bytes, content_type: str, encoding: str, now_ns: int, trusts: Trusts = LOOPBACK) -> Delivery:
    """What the body holds. `trusts` tells the proxies that foreign services may have a caller's name from.

    Raises DeliveryError, TypeOfDeliveryError or SizeOfDeliveryError.
    """
    message = parse(unpack(body, encoding), content_type)
    attributes = Attributes()
    delivery = Delivery()
    try:
        for resource_spans in message.resource_spans:
            resource = attributes.read(resource_spans.resource.attributes)
            spans = (span for scope in resource_spans.scope_spans for span in scope.spans)
            _read_resource(spans, resource, attributes, now_ns, trusts, delivery)
    except DecodeError as problem:  # attributes are only taken apart here
        raise unreadable(problem) from None
    return delivery


def unpack(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise TypeOfDeliveryError(f"Content-Encoding is {encoding!r}.", value=encoding, rule="It is gzip or none.")
    try:
        with gzip.GzipFile(fileobj=BytesIO(body)) as packed:
            unpacked = packed.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as problem:
        raise DeliveryError(
            f"The body is not gzip: {problem}.", fix="Leave Content-Encoding out, or pack it."
        ) from None
    if len(unpacked) > MAX_BYTES:
        raise too_large()
    return unpacked


def too_large(most: int = MAX_BYTES) -> SizeOfDeliveryError:
    return SizeOfDeliveryError(
        f"The body has more than {most} bytes.",
        rule=f"A body has at most {most} bytes, packed and unpacked.",
        fix="Send smaller batches: OTEL_BSP_MAX_EXPORT_BATCH_SIZE, or send_batch_max_size of a collector.",
    )


def parse(body: bytes, content_type: str) -> Any:
    """The body as a wire.Request."""
    if content_type not in (PROTOBUF, JSON):
        rule = f"It is {PROTOBUF} or {JSON}."
        raise TypeOfDeliveryError(f"Content-Type is {content_type!r}.", value=content_type, rule=rule)
    try:
        if content_type == JSON:
            message = ParseDict(
                _with_base64_ids(json.loads(body)), ExportTraceServiceRequest(), ignore_unknown_fields=True
            )
            body = message.SerializeToString()
        return wire.Request.FromString(body)
    except (DecodeError, ParseError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        # TypeError, AttributeError: JSON of another shape, where json_format looks no further
        raise unreadable(problem) from None


def unreadable(problem: Exception) -> DeliveryError:
    return DeliveryError(
        f"The body is no ExportTraceServiceRequest: {' '.join(str(problem).split())[:200]}.",
        rule=f"{PROTOBUF} and {JSON} are read as the OTLP/HTTP specification has them.",
    )


def _with_base64_ids(message: Any) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's JSON mapping has base64."""
    for resource_spans in message.get("resourceSpans") or ():
        for scope_spans in resource_spans.get("scopeSpans") or ():
            for span in scope_spans.get("spans") or ():
                for item in (span, *(span.get("links") or ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if item.get(key):
                            item[key] = b64encode(bytes.fromhex(item[key])).decode()
    return message


class Attributes:
    """Reads attributes, each different one of a delivery once."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, Any]] = {}

    def read(self, packed: Iterable[bytes]) -> dict[str, Any]:
        known = self._known
        return dict([known.get(one) or self._learn(one) for one in packed])

    def _learn(self, packed: bytes) -> tuple[str, Any]:
        pair = KeyValue.FromString(packed)
        read = self._known[packed] = (pair.key, _value(pair.value))
        return read


def _read_resource(
    spans: Iterable[Any],
    resource: dict[str, Any],
    attributes: Attributes,
    now_ns: int,
    trusts: Trusts,
    delivery: Delivery,
) -> None:
    service = clean(resource.get(names.SERVICE)) or "unknown_service"
    environment = clean(_first(resource, names.ENVIRONMENT))
    known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for span in spans:
        values = attributes.read(span.attributes)
        kind = values.get(names.KIND)
        if not _is_ours(span, kind, values):
            delivery.ignored[PROBE if kind == PROBE else "not a request"] += 1
            continue
        try:
            start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
            ids = (span.trace_id, span.span_id, span.parent_span_id or None)
            _check(*ids, start_ns, end_ns, now_ns)
            if kind == "heartbeat":
                delivery.heartbeats.append(_heartbeat((*ids[:2], start_ns, end_ns, service, environment), values))
                continue
            path = _path(values)
            fixed = None if kind and clean(values.get(names.TRAFFIC)) else fixed_traffic(path or "")
            types = (type(values.get(names.SCHEMA)), type(values.get(names.PROVEN)))  # to a dictionary True is 1
            wanted = (fixed, *types, *map(values.get, WANTED))
            about = known.get(wanted)
            if about is None:
                about = known[wanted] = (service, environment, *_about(values, fixed, trusts))
            is_open = kind is not None and values.get(names.TIMED) is False
            duration_ns, open_ns = (None, end_ns - start_ns or None) if is_open else (end_ns - start_ns, None)
            visible_ms = _visible(values.get(names.VISIBLE_MS)) if kind == "view" else None
            delivery.spans.append(Span(*ids, start_ns, duration_ns, path, visible_ms, open_ns, *about))
        except Rejection as reason:
            delivery.rejected[str(reason)] += 1


def _is_ours(span: Any, kind: object, values: dict[str, Any]) -> bool:
    if kind is not None:
        return kind in ("request", "view", "heartbeat")
    return span.kind == REQUEST and _first(values, names.METHOD) is not None


def _check(trace_id: bytes, span_id: bytes, parent_id: bytes | None, start_ns: int, end_ns: int, now_ns: int) -> None:
    if len(trace_id) != 16 or len(span_id) != 8 or (parent_id and len(parent_id) != 8):
        raise Rejection("ids of the wrong length")
    if not any(trace_id) or not any(span_id):
        raise Rejection("ids of zeros only")
    if not start_ns:
        raise Rejection("no start time")
    if end_ns < start_ns:
        raise Rejection("ended before it started")
    if end_ns > now_ns + AHEAD_NS:
        raise Rejection("more than ten minutes in the future: set the service's clock")


def _about(values: dict[str, Any], fixed: str | None, trusts: Trusts) -> Sequence[Any]:
    """The repeating fields from `method` on. Of who called, a foreign span is only believed what its proxy told.

    `fixed` is the traffic that the path tells, for a span that does not tell it.
    """
    who = values if values.get(names.KIND) is not None else _foreign(values, trusts)
    is_view = values.get(names.KIND) == "view"
    method = clean(_first(values, names.METHOD))
    return (
        method if method in names.METHODS else "_OTHER",
        clean(values.get(names.ROUTE)),
        _status(_first(values, names.STATUS)),
        *(clean(who.get(name)) for name in (names.LOGIN, names.FULL_NAME, names.NODE, names.NODE_ID)),
        _tags(who.get(names.TAGS)),
        *(clean(who.get(name)) for name in (names.ADDRESS, names.GUESS)),
        _one_of(who.get(names.SOURCE), SOURCES) or "live",
        _one_of(who.get(names.IDENTITY_SOURCE), IDENTITY_SOURCES) or "none",
        who.get(names.PROVEN) is not False,
        clean(who.get(names.CALLER)) or "unknown",
        _one_of(who.get(names.TRAFFIC), TRAFFIC) or fixed or "api",
        clean(who.get(names.PAGE)),
        clean(_first(who, names.CLIENT_ADDRESS)),
        clean(_first(values, names.USER_AGENT)),
        _small(who.get(names.SCHEMA)),
        *(("view", clean(who.get(names.CARD)), clean(who.get(names.VARIANT))) if is_view else ("request", None, None)),
        clean(who.get(names.CLAIM)),
        who.get(names.POLL) is True,
        who.get(names.BY_PROXY) is True,
    )


def _foreign(values: dict[str, Any], trusts: Trusts) -> dict[str, Any]:
    return foreign.caller(
        peer=_first(values, names.PEER_ADDRESS),
        login=_first(values, foreign.LOGIN_HEADER),
        forwarded=_first(values, foreign.FORWARDED_HEADER),
        real=_first(values, foreign.REAL_HEADER),
        client=_first(values, names.CLIENT_ADDRESS),
        trusts=trusts,
    )


def _heartbeat(own: tuple[Any, ...], values: dict[str, Any]) -> Heartbeat:
    counts = (names.FORGED, names.UNPROVEN, names.DROPPED, names.OPEN_REQUESTS)
    numbers = (_count(values.get(name)) for name in counts)
    return Heartbeat._make((*own, values.get(names.STOPPED) is True, *numbers, _kinds(values.get(names.FORGED_KINDS))))


def _kinds(value: Any) -> str | None:
    return value if isinstance(value, str) and FORGED_KINDS.fullmatch(value) else None


def _value(value: AnyValue) -> Any:
    if value.string_value:
        return value.string_value
    which = value.WhichOneof("value")
    if which == "array_value":  # tags, headers
        return tuple(map(_value, value.array_value.values))
    if which in ("kvlist_value", "double_value") or (which == "bytes_value" and value.bytes_value):
        return ()  # something, but nothing that is wanted
    return getattr(value, which) if which in ("string_value", "int_value", "bool_value") else None


def _first(values: dict[str, Any], name: str) -> Any:
    return next((values[key] for key in (name, *OLD_NAMES[name]) if values.get(key) is not None), None)


def _path(values: dict[str, Any]) -> str | None:
    path = _first(values, names.PATH)
    if not isinstance(path, str):
        return None
    if (server := SERVER.match(path)) is not None:
        path = path[server.end() :]
    return clean(path.partition("?")[0].partition("#")[0])


def _one_of(value: Any, known: Sequence[str]) -> str | None:
    return value if value in known else None


def _tags(value: Any) -> str | None:
    return clean(",".join(filter(None, map(clean, value))) if isinstance(value, tuple) else value)


def _status(value: Any) -> int | None:
    """A few senders write it as text."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
    return number if isinstance(number, int) and 100 <= number <= 599 else None


def _small(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**15 else 0


def _visible(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0
