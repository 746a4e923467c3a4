"""Foreign SERVER spans that carry our attributes: how they reach us, and what of them is sent on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, Status

from tailspan_otel import attributes as name
from tailspan_otel.describe import identity_of, traffic_of, who_called
from tailspan_otel.export import Unfinished
from tailspan_otel.heartbeat import SAMPLED

if TYPE_CHECKING:
    from tailspan_otel.request import Request

# a query string may hold anything, a token included: it never leaves on a span; nor do captured headers
QUERY_ATTRIBUTES: Final = frozenset(("url.query", "url.full", "http.url", "http.target"))
HEADERS: Final = ("http.request.header.", "http.response.header.")
# what was said of the caller when the response began: more may be known now
EARLIER: Final = frozenset(
    (
        *(name.LOGIN, name.FULL_NAME, name.NODE, name.NODE_ID, name.TAGS),
        *(name.CLIENT_ADDRESS, name.PEER_ADDRESS, name.ADDRESS, name.PROVEN),
    )
)


class Annotated(SpanProcessor):
    """Takes from its owner's provider the spans that we annotated, when they end.

    `expected` holds the requests of those spans by their ids: another app's recorder may share the provider.
    """

    def __init__(self, put: Callable[[Unfinished], None]) -> None:
        self.expected: dict[int, Request] = {}
        self._put = put

    def on_end(self, span: ReadableSpan) -> None:
        ids = span.context
        if ids is None or (request := self.expected.pop(ids.span_id, None)) is None:
            return
        if name.KIND in (span.attributes or {}):
            context = SpanContext(ids.trace_id, ids.span_id, ids.is_remote, SAMPLED, ids.trace_state)
            self._put(_Copy(span, context, request))


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is sent of such a span: no query strings, headers or error texts, and a device that became known late."""

    original: ReadableSpan
    context: SpanContext
    request: "Request"

    def span(self) -> ReadableSpan:
        span, who = self.original, who_called(self.request)
        self.request.recorder.count(who)
        dropped = QUERY_ATTRIBUTES | EARLIER | ({name.GUESS} if who.node else frozenset())
        kept = {
            key: value
            for key, value in (span.attributes or {}).items()
            if key not in dropped and not key.startswith(HEADERS)
        }
        if (kept.get(name.CALLER) == "local") != (who.caller.kind == "local"):  # what it was depends on that
            kept[name.TRAFFIC] = traffic_of(self.request, who.caller)[0]
        kept |= identity_of(who)
        return ReadableSpan(
            span.name,
            self.context,
            span.parent,
            span.resource if is_named(span.resource) else span.resource.merge(self.request.recorder.resource),
            kept,
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def resource_of(app: Any) -> Resource | None:
    """Of the provider by which an app makes its spans: the stock instrumentation's, FastAPI's, or the global one."""
    for layer in _layers(getattr(app, "middleware_stack", None)):
        if isinstance(resource := getattr(getattr(layer, "tracer", None), "resource", None), Resource):
            return resource
    given = (getattr(app, "_telemetry", None) or {}).get("tracer_provider")
    resource = getattr(given or trace.get_tracer_provider(), "resource", None)
    return resource if isinstance(resource, Resource) else None


def _layers(layer: Any) -> Iterator[Any]:
    while layer is not None:
        yield layer
        layer = getattr(layer, "app", None)


def is_named(resource: Resource) -> bool:
    """Whether it says what the service is called."""
    return not str(resource.attributes.get(name.SERVICE, "unknown_service")).startswith("unknown_service")
