"""One request as it passes: what must be noted at once. What can be worked out later is, in the sending thread."""

import logging
import time
from functools import cached_property
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from tailspan_otel import route
from tailspan_otel.asgi import Message, Scope
from tailspan_otel.attributes import MAX_LENGTH
from tailspan_otel.describe import DESCRIBED, attributes_of, span_of
from tailspan_otel.heartbeat import IDS, SAMPLED
from tailspan_otel.identity import Caller, headers_of, other_end, own_end
from tailspan_otel.recorder import Recorder
from tailspan_otel.resolve import Who

FEW: Final = 64  # requests may wait as they came, however long
MAX_HEADERS: Final = 8192  # bytes that a request waits with as it came

log = logging.getLogger("tailspan")


class Own(NonRecordingSpan):
    """Our span as its children see it. `flags` is what their sampler goes by; the request's span is always sampled."""

    def __init__(self, request: "Request", flags: TraceFlags) -> None:
        self._request = request
        self._flags = flags

    def get_span_context(self) -> SpanContext:
        ids = self._request.ids
        return SpanContext(ids.trace_id, ids.span_id, False, self._flags)


class Request:
    """Ends as one span: written by us, or by the owner of the `foreign` span that it annotates.

    Nothing of the scope is kept but text: what waits in the queue must not hold the app's objects.
    """

    context = SpanContext(1, 1, False, SAMPLED)  # all the batch processor asks of a finished span: is it sampled?
    end_ns = 0
    parent: SpanContext | None = None
    route: str | None = None
    status: int | None = None
    content_type = b""
    error_type: str | None = None
    _trace_id = 0
    _answered = False

    def __init__(self, recorder: Recorder, scope: Scope, foreign: Any) -> None:
        self.start_ns = time.time_ns()
        self._clock = time.perf_counter_ns()
        self.recorder = recorder
        self.foreign = foreign if foreign is not None and recorder.can_annotate(foreign, self) else None
        self._scope: Scope | None = scope
        self._root_path: str = scope.get("root_path", "")
        self.path: str = scope["path"][:MAX_LENGTH]
        self.method: str = scope.get("method", "GET")[:MAX_LENGTH]
        self.scheme: str = scope.get("scheme", "http")
        self.version: str = scope.get("http_version", "1.1")
        self.websocket = scope["type"] == "websocket"
        self.client = other_end(scope)
        self.own = own_end(scope)
        self.headers = headers_of(scope)
        # asked while it is open: of one that is closed tailscaled knows nothing any more
        self.connection = recorder.whois.connection(self.client) if recorder.whois.userspace else None
        if self.foreign is not None:
            self.who(0)  # asked now, so that the answer is there when the response starts

    @cached_property
    def caller(self) -> Caller:
        return self.recorder.identify(self.client, self.headers, self.own)

    def who(self, wait_s: float, *, late: bool = False) -> Who:
        """The caller, as far as it is known within `wait_s` seconds; `late` as in `Resolve`."""
        return self.recorder.resolve(self.caller, self.connection, wait_s, late=late)

    def enter(self, around: Context) -> Context:
        """The context the app runs in, where what it opens lies below the request's span."""
        if self.foreign is not None:
            return around
        remote = self.recorder.remote(self.headers)
        if remote is None and not around and self.recorder.sampler is None:
            return trace.set_span_in_context(Own(self, SAMPLED), around)
        active = trace.get_current_span(around)
        here = active.get_span_context()
        outer = active if active.is_recording() or remote is None else trace.get_current_span(remote)
        parent = outer.get_span_context()
        self.parent = parent if parent.is_valid and (parent is not here or active.is_recording()) else None
        self._trace_id = here.trace_id or parent.trace_id
        if here.is_valid and not active.is_recording():
            return around  # a sampler said no to this trace: its children stay below the span that is not recorded
        flags = self.recorder.child_flags(remote, self.ids.trace_id)
        return trace.set_span_in_context(Own(self, flags), around if remote is None else remote)

    @cached_property
    def ids(self) -> SpanContext:
        """Our own span's ids; made when somebody first asks, which for most requests is the sending thread."""
        return SpanContext(self._trace_id or IDS.generate_trace_id(), IDS.generate_span_id(), False, SAMPLED)

    def before(self, message: Message) -> None:
        """Sees a message of the app before the server does: the last moment to put something on a foreign span."""
        if self._answered:
            return
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._answer(message["status"], message.get("headers", ()))
        elif kind == "websocket.accept":
            self._answer(101, ())
        elif kind == "websocket.close":  # refused before it was accepted: the server answers 403
            self._answer(403, ())

    def end(self, error: BaseException | None = None) -> None:
        """Ends it once; `error` is what the app raised before its answer was complete."""
        if self.end_ns:
            return
        self.end_ns = self.start_ns + time.perf_counter_ns() - self._clock
        try:
            if self.recorder.outlet.waiting > FEW:
                self._shorten()
            self.recorder.heartbeat.open.pop(id(self), None)
            if error is not None:
                self.error_type = type(error).__qualname__
            if not self._answered:
                self._answer(500 if isinstance(error, Exception) else None, ())
            if self.foreign is None:
                self.recorder.outlet.put(self)
        except Exception:  # a span must never cost the request that it is about
            log.exception("tailspan could not record a request")

    def _shorten(self) -> None:
        """Keeps of many or long headers what is still to be read: thousands of requests may wait for their sending."""
        if sum(map(len, self.headers)) + sum(map(len, self.headers.values())) <= MAX_HEADERS:
            return
        _ = self.caller  # which is read from the whole of them
        self.headers = {key: self.headers[key][:MAX_LENGTH] for key in DESCRIBED & self.headers.keys()}

    def _answer(self, status: int | None, headers: Any) -> None:
        self._answered = True
        try:
            self.status = status
            for key, value in headers:
                if key == b"content-type":
                    self.content_type = value
            self.route = route.template(self._scope or {}, self._root_path)
            self._scope = None
            if self.foreign is not None:
                self.foreign.set_attributes(attributes_of(self, self.who(0)))
        except Exception:  # a span must never cost the request that it is about
            log.exception("tailspan could not describe a request")

    def span(self) -> ReadableSpan:
        """The finished span; waits up to 250 ms for tailscaled's word on the caller."""
        return span_of(self)
