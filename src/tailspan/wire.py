"""OTLP's messages with every attribute left packed.

Nearly all attributes of a delivery repeat (the same route, browser and person, again and again), and taking one apart
costs more than all else about a span. On the wire a packed message and a byte string look alike; so this schema, which
is OTLP's own with `bytes` for KeyValue and without what is not read, lets each different attribute be read once.
"""

from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

# message → field, its number in opentelemetry/proto/{collector/trace,trace,resource}/v1, its type, "*" for a list
SCHEMA: Final = {
    "Request": (("resource_spans", 1, "ResourceSpans*"),),
    "ResourceSpans": (("resource", 1, "Resource"), ("scope_spans", 2, "ScopeSpans*")),
    "Resource": (("attributes", 1, "bytes*"),),
    "ScopeSpans": (("spans", 2, "Span*"),),
    "Span": (
        ("trace_id", 1, "bytes"),
        ("span_id", 2, "bytes"),
        ("parent_span_id", 4, "bytes"),
        ("kind", 6, "int32"),
        ("start_time_unix_nano", 7, "fixed64"),
        ("end_time_unix_nano", 8, "fixed64"),
        ("attributes", 9, "bytes*"),
    ),
}


def _message_class(name: str) -> Any:
    file = FileDescriptorProto(name="tailspan/wire.proto", package="tailspan.wire", syntax="proto3")
    for message, fields in SCHEMA.items():
        described = file.message_type.add(name=message)
        for field, number, kind in fields:
            described.field.append(_field(field, number, kind))
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"tailspan.wire.{name}"))


def _field(name: str, number: int, kind: str) -> FieldDescriptorProto:
    scalar = {
        "bytes": FieldDescriptorProto.TYPE_BYTES,
        "int32": FieldDescriptorProto.TYPE_INT32,
        "fixed64": FieldDescriptorProto.TYPE_FIXED64,
    }
    base = kind.rstrip("*")
    return FieldDescriptorProto(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_REPEATED if kind.endswith("*") else FieldDescriptorProto.LABEL_OPTIONAL,
        type=scalar.get(base, FieldDescriptorProto.TYPE_MESSAGE),
        type_name=None if base in scalar else f".tailspan.wire.{base}",
    )


Request: Final = _message_class("Request")
