"""Spans into the collector as any service sends them, and what InfluxDB has of them afterwards."""

import csv
import gzip
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from io import StringIO
from typing import Any, Final, NamedTuple

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.stack.engines import Influxd

HEADERS: Final = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
CLIENT: Final = httpx.Client(trust_env=False, timeout=30)
AGAIN: Final = (429, 502, 503, 504)  # what OTLP/HTTP says may be sent again
START_NS: Final = time.time_ns() // 10**9 * 10**9 - 3600 * 10**9
OURS: Final = {
    "tailspan.kind": "request",
    "tailspan.source": "live",
    "tailspan.caller": "person",
    "tailspan.traffic": "api",
    "tailspan.identity.source": "serve_header",
    "tailspan.schema": 1,
    "user.name": "ana@example.com",
    "http.request.method": "GET",
    "http.route": "/items/{id}",
    "http.response.status_code": 200,
    "url.path": "/items/1",
}


def span(number: int, attributes: Mapping[str, Any] = OURS, *, start_ns: int = 0, **fields: Any) -> Span:
    """A SERVER span of 5 ms whose ids, and start where none is given, follow from `number`."""
    start_ns = start_ns or START_NS + number * 1000 + 1
    made = Span(
        trace_id=number.to_bytes(16, "big"),
        span_id=hashlib.sha256(number.to_bytes(8, "big")).digest()[:8],
        kind=Span.SpanKind.SPAN_KIND_SERVER,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + 5_000_000,
    )
    for key, value in attributes.items():
        if value is not None:
            made.attributes.add(key=key).value.CopyFrom(any_value(value))
    made.MergeFrom(Span(**fields))
    return made


def id_of(one: Span) -> str:
    """As it is stored: the trace's and the span's."""
    return f"{one.trace_id.hex()}-{one.span_id.hex()}"


def any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    made = AnyValue()
    if isinstance(value, list):
        made.array_value.values.extend(map(any_value, value))
    elif isinstance(value, dict):
        for key, one in value.items():
            made.kvlist_value.values.add(key=key).value.CopyFrom(any_value(one))
    else:
        made.string_value = value
    return made


def body(spans: Iterable[Span], **resource: Any) -> bytes:
    """An ExportTraceServiceRequest. Attributes of the resource have `_` for `.` in their names."""
    request = ExportTraceServiceRequest()
    there = request.resource_spans.add()
    for key, value in {"service_name": "dashboard", **resource}.items():
        if value is not None:
            there.resource.attributes.add(key=key.replace("_", ".")).value.CopyFrom(any_value(value))
    there.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def post(endpoint: str, content: bytes, client: httpx.Client = CLIENT, **headers: str) -> httpx.Response:
    return client.post(f"{endpoint}/v1/traces", content=gzip.compress(content, 1), headers={**HEADERS, **headers})


def send(endpoint: str, spans: Iterable[Span], **resource: Any) -> None:
    """All of them at once; they are acknowledged."""
    answer = post(endpoint, body(spans, **resource))
    assert answer.status_code == 200, answer.content


class Row(NamedTuple):
    """A point: its time in nanoseconds, its tags, its fields."""

    start_ns: int
    tags: dict[str, str]
    fields: dict[str, str]

    @property
    def id(self) -> str:
        return self.fields["trace_state"]

    @property
    def attributes(self) -> dict[str, Any]:
        """What is no tag."""
        return dict(json.loads(self.fields.get("attributes", "{}")))


def ids(influxd: Influxd, kind: str = "request") -> list[str]:
    """Of every point of a kind."""
    found = influxd.flux(
        f'from(bucket: "{influxd.bucket}") |> range(start: 0, stop: 2200-01-01T00:00:00Z) '
        f'|> filter(fn: (r) => r._field == "trace_state" and r["tailspan.kind"] == "{kind}") '
        '|> group() |> keep(columns: ["_value"])'
    )
    return [line.rpartition(",")[2] for line in found.split()[1:]]


def rows(influxd: Influxd) -> dict[str, Row]:
    """Every point by its id."""
    found = influxd.flux(
        f'from(bucket: "{influxd.bucket}") |> range(start: 0, stop: 2200-01-01T00:00:00Z) |> toString() |> group()'
    )
    points: dict[tuple[Any, ...], Row] = {}
    for line in csv.DictReader(StringIO(found)):
        tags = {key: value for key, value in line.items() if key[:1] not in ("", "_") and value}
        for constant in ("result", "table", "trace_id", "span_id"):
            tags.pop(constant, None)
        point = points.setdefault((line["_time"], *tags.items()), Row(_nanoseconds(line["_time"]), tags, {}))
        point.fields[line["_field"]] = line["_value"]
    return {row.id: row for row in points.values()}


def _nanoseconds(text: str) -> int:
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))
