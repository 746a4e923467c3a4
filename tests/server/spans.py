"""OTLP messages as services send them, built from plain values."""

from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_NS: Final = int(NOW.timestamp()) * 10**9
SECOND: Final = 10**9
PROTOBUF: Final = {"Content-Type": "application/x-protobuf"}

ANA: Final = {
    "tailspan.kind": "request",
    "tailspan.source": "live",
    "tailspan.caller": "person",
    "tailspan.traffic": "page",
    "tailspan.page": "/dashboard",
    "tailspan.identity.source": "serve_header",
    "tailspan.identity.proven": True,
    "tailspan.schema": 1,
    "user.name": "ana@example.com",
    "user.full_name": "Ana",
    "tailscale.node": "ana-laptop",
    "tailscale.node.id": "n1CNTRL",
    "tailscale.address": "100.64.0.7",
    "http.request.method": "GET",
    "http.route": "/dashboard",
    "http.response.status_code": 200,
    "url.path": "/dashboard",
}
LEO: Final = {
    **{key: value for key, value in ANA.items() if not key.startswith("tailscale.node")},
    "user.name": "leo@example.com",
    "user.full_name": "Leo",
    "tailscale.address": "100.64.0.8",
    "tailspan.device.guess": "iPhone",
}


def span(
    number: int, attributes: dict[str, Any] = ANA, *, ago: float = 0, took_ms: float = 42, **changed: Any
) -> dict[str, Any]:
    """A SERVER span in OTLP's JSON; the ids follow from `number`. An attribute given as None is left out."""
    start = NOW_NS - int(ago * SECOND)
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "GET",
        "kind": 2,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + int(took_ms * 10**6)),
        "attributes": _pairs(attributes),
        **changed,
    }


def beat(number: int, *, ago: float = 0, length: float = 60, **attributes: Any) -> dict[str, Any]:
    """A heartbeat that ended `ago` seconds before NOW."""
    names = {f"tailspan.{key}": value for key, value in attributes.items()}
    made = span(number, {"tailspan.kind": "heartbeat", **names}, ago=ago + length, kind=1)
    return made | {"endTimeUnixNano": str(NOW_NS - int(ago * SECOND))}


def export(*spans: dict[str, Any], service: str | None = "dashboard", environment: str | None = None) -> dict[str, Any]:
    """An ExportTraceServiceRequest in OTLP's JSON."""
    resource = {"service.name": service, "deployment.environment.name": environment}
    return {"resourceSpans": [{"resource": {"attributes": _pairs(resource)}, "scopeSpans": [{"spans": list(spans)}]}]}


def protobuf(message: dict[str, Any]) -> bytes:
    """The same message in protobuf, by OTLP's own schema."""
    request = ExportTraceServiceRequest()
    for resource_spans in message["resourceSpans"]:
        there = request.resource_spans.add()
        _fill(there.resource.attributes, resource_spans["resource"]["attributes"])
        spans = there.scope_spans.add().spans
        for one in resource_spans["scopeSpans"][0]["spans"]:
            made = spans.add(
                trace_id=bytes.fromhex(one["traceId"]),
                span_id=bytes.fromhex(one["spanId"]),
                parent_span_id=bytes.fromhex(one.get("parentSpanId", "")),
                name=one["name"],
                kind=one["kind"],
                start_time_unix_nano=int(one["startTimeUnixNano"]),
                end_time_unix_nano=int(one["endTimeUnixNano"]),
            )
            _fill(made.attributes, one["attributes"])
    return request.SerializeToString()


def _pairs(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": value}


def _fill(attributes: Any, pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        [(kind, value)] = pair["value"].items()
        filled = attributes.add(key=pair["key"]).value
        if kind == "boolValue":
            filled.bool_value = value
        elif kind == "intValue":
            filled.int_value = int(value)
        elif kind == "arrayValue":
            filled.array_value.values.extend(type(filled)(string_value=one["stringValue"]) for one in value["values"])
        else:
            filled.string_value = value
