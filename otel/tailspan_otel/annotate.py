"""Foreign SERVER spans that carry our attributes: how they reach us, and what of them is sent on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, Status

from tailspan_otel import attributes as name
from tailspan_otel.describe import named
from tailspan_otel.export import Unfinished
from tailspan_otel.heartbeat import SAMPLED
from tailspan_otel.whois import WAIT_S, Whois

# a query string may hold anything, a token included: it never leaves on a span; nor do captured headers
QUERY_ATTRIBUTES: Final = frozenset(("url.query", "url.full", "http.url", "http.target"))
HEADERS: Final = ("http.request.header.", "http.response.header.")


class Annotated(SpanProcessor):
    """Takes from its owner's provider the spans that we annotated, when they end.

    `expected` holds the ids of those spans: another app's recorder may share the provider.
    """

    def __init__(self, put: Callable[[Unfinished], None], whois: Whois, resource: Resource) -> None:
        self.expected: set[int] = set()
        self._put = put
        self._whois = whois
        self._resource = resource

    def on_end(self, span: ReadableSpan) -> None:
        ids = span.context
        if ids is None or ids.span_id not in self.expected:
            return
        self.expected.discard(ids.span_id)
        if name.KIND in (span.attributes or {}):
            context = SpanContext(ids.trace_id, ids.span_id, ids.is_remote, SAMPLED, ids.trace_state)
            self._put(_Copy(span, context, self._whois, self._resource))


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is sent of such a span: no query strings, headers or error texts, and a device that became known late."""

    original: ReadableSpan
    context: SpanContext
    whois: Whois
    resource: Resource

    def span(self) -> ReadableSpan:
        span = self.original
        kept = {
            key: value
            for key, value in (span.attributes or {}).items()
            if key not in QUERY_ATTRIBUTES and not key.startswith(HEADERS)
        }
        if name.ADDRESS in kept and name.NODE_ID not in kept:
            node = self.whois.wait(str(kept[name.ADDRESS]), WAIT_S)
            if node is not None:
                kept |= named(node, anonymous=name.LOGIN not in kept)
                kept.pop(name.GUESS, None)
        nameless = str(span.resource.attributes.get(name.SERVICE, "unknown_service")).startswith("unknown_service")
        return ReadableSpan(
            span.name,
            self.context,
            span.parent,
            span.resource.merge(self.resource) if nameless else span.resource,
            kept,
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
