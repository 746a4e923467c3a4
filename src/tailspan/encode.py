"""A history on its way out: spans and heartbeats as OTLP, as the middleware and the page send them, to any receiver.

Ids and times stay as they are, so that what is sent again is the same request there, not another one.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tailspan_otel import attributes as names

from tailspan.span import Heartbeat, Span

SPANS: Final = 2_000  # of a request
BYTES: Final = 4 * 2**20  # likewise, about; the collector takes 20 MiB, tailspan 8
Value = str | bool | int | tuple[str, ...]


class Batch(NamedTuple):
    """An ExportTraceServiceRequest, and how many spans it has."""

    body: bytes
    spans: int


def batches(records: Iterable[Span | Heartbeat]) -> Iterator[Batch]:
    """All records in requests that any receiver takes."""
    pending: list[tuple[tuple[str, str | None], OtlpSpan]] = []
    size = 0
    for record in records:
        made = _beat(record) if isinstance(record, Heartbeat) else _request(record)
        pending.append(((record.service, record.environment), made))
        size += made.ByteSize()
        if size >= BYTES or len(pending) == SPANS:
            yield _batch(pending)
            pending, size = [], 0
    if pending:
        yield _batch(pending)


def _batch(pending: list[tuple[tuple[str, str | None], OtlpSpan]]) -> Batch:
    message = ExportTraceServiceRequest()
    spans_of = {}
    for resource, span in pending:
        if resource not in spans_of:
            added = message.resource_spans.add()
            added.resource.attributes.extend(
                _pairs(dict(zip((names.SERVICE, names.ENVIRONMENT), resource, strict=True)))
            )
            spans_of[resource] = added.scope_spans.add().spans
        spans_of[resource].append(span)
    return Batch(message.SerializeToString(), len(pending))


def _request(span: Span) -> OtlpSpan:
    failed = (span.status or 0) >= 500
    return OtlpSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id or b"",
        name=_name(span),
        kind=OtlpSpan.SPAN_KIND_SERVER if span.kind == "request" else OtlpSpan.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=_pairs(
            {
                names.KIND: span.kind,
                names.SOURCE: span.source,
                names.SCHEMA: span.schema,
                names.METHOD: span.method,
                names.ROUTE: span.route,
                names.STATUS: span.status,
                names.ERROR_TYPE: str(span.status) if failed else None,
                names.LOGIN: span.login,
                names.FULL_NAME: span.full_name,
                names.NODE: span.node,
                names.NODE_ID: span.node_id,
                names.TAGS: tuple(span.tags.split(",")) if span.tags else None,
                names.ADDRESS: span.address,
                names.GUESS: span.guess,
                names.IDENTITY_SOURCE: span.identity_source,
                names.CLAIM: span.claim,
                names.PROVEN: None if span.proven else False,
                names.CALLER: span.caller,
                names.TRAFFIC: span.traffic,
                names.POLL: span.polled or None,
                names.BY_PROXY: span.by_proxy or None,
                names.PAGE: span.page,
                names.PATH: span.path,
                names.CLIENT_ADDRESS: span.client_address,
                names.USER_AGENT: span.user_agent,
                names.TIMED: False if span.duration_ns is None else None,
                names.CARD: span.card,
                names.VARIANT: span.variant,
                names.VISIBLE_MS: span.visible_ms,
            }
        ),
        status=Status(code=Status.STATUS_CODE_ERROR) if failed else None,
    )


def _name(span: Span) -> str:
    if span.kind != "request":
        return span.kind
    method = span.method if span.method in names.METHODS else "HTTP"
    return f"{method} {span.route}" if span.route else method


def _beat(beat: Heartbeat) -> OtlpSpan:
    return OtlpSpan(
        trace_id=beat.trace_id,
        span_id=beat.span_id,
        name="heartbeat",
        kind=OtlpSpan.SPAN_KIND_INTERNAL,
        start_time_unix_nano=beat.start_ns,
        end_time_unix_nano=beat.end_ns,
        attributes=_pairs(
            {
                names.FORGED_KINDS: beat.forged_kinds,
                names.KIND: "heartbeat",
                names.SOURCE: "live",
                names.SCHEMA: names.SCHEMA_VERSION,
                names.STOPPED: beat.stopped,
                names.FORGED: beat.forged,
                names.UNPROVEN: beat.unproven,
                names.DROPPED: beat.dropped,
                names.OPEN_REQUESTS: beat.open_requests,
            }
        ),
    )


def _pairs(values: Mapping[str, Value | None]) -> list[KeyValue]:
    return [_pair(key, value) for key, value in values.items() if value is not None]


@lru_cache(20_000)
def _pair(key: str, value: Value) -> KeyValue:
    """Nearly all repeat, as in what arrives."""
    return KeyValue(key=key, value=_value(value))


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    return AnyValue(array_value=ArrayValue(values=map(_value, value)))
