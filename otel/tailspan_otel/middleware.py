"""The ASGI middleware: one SERVER span for every request, with its caller on it.

Three cases, told apart per request: no span is open: ours, written when the response is complete. A SERVER span of
FastAPI or of the stock instrumentation is recording: it gets our attributes when the response starts (later it has
ended). One that does not record (a sampler said no): ours, in its trace. Nothing here raises into the request, and
nothing waits: whatever fails is logged, and the request goes on unrecorded.
"""

import asyncio
import logging
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from tailspan_otel.annotate import resource_of
from tailspan_otel.asgi import ASGIApp, Message, Receive, Scope, Send
from tailspan_otel.recorder import Recorder
from tailspan_otel.request import Request
from tailspan_otel.traffic import DELIVERY_PATH, REFRESH_PATH

# a delivery's own span would be delivered too, and so on without end where the app keeps its spans itself
UNRECORDED: Final = frozenset((DELIVERY_PATH, REFRESH_PATH))
FINAL: Final = frozenset(("http.response.body", "websocket.http.response.body", "http.response.pathsend"))

log = logging.getLogger("tailspan")


class Capture:
    """Wraps an ASGI app. Belongs outermost among the middleware, so that what others refuse is seen too."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self.app = app
        self.recorder = recorder
        self._checked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        if "tailspan" in scope or scope["path"] in UNRECORDED or (begun := self._begin(scope)) is None:
            return await self.app(scope, receive, send)
        request, inner = begun

        async def observed(message: Message) -> None:
            request.before(message)
            await send(message)
            # the last piece of an answer ends the request, whatever still runs in the background
            if message["type"] in FINAL and not message.get("more_body", False):
                request.end()

        token = context.attach(inner)
        try:
            await self.app(scope, receive, observed)
        except BaseException as error:  # a cancelled request is recorded too; raised on untouched
            request.end(error)
            raise
        finally:
            request.end()
            context.detach(token)

    def _begin(self, scope: Scope) -> tuple[Request, Context] | None:
        try:
            scope["tailspan"] = True
            around = context.get_current()
            foreign = _foreign_span(around) if around else None
            if not self._checked:
                self._checked = True
                self._check(scope)
                self.recorder.start(getattr(foreign, "resource", None) or resource_of(scope.get("app")))
            scope["tailspan"] = request = Request(self.recorder, scope, foreign)  # the app may ask it who calls
            inner = request.enter(around)
            self.recorder.heartbeat.open[id(request)] = request.start_ns
            return request, inner
        except Exception:  # a header we did not think of must cost a span, never a request
            log.exception("tailspan could not read a request; it goes unrecorded")
            return None

    def _check(self, scope: Scope) -> None:
        outer = getattr(scope.get("app"), "user_middleware", None)
        if outer and outer[0].cls is not Capture:
            log.warning(
                "tailspan sees only what %s lets through: call instrument(app) after the last add_middleware",
                getattr(outer[0].cls, "__name__", outer[0].cls),
            )

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":  # before the app closes what its exporter may write to
                await asyncio.to_thread(self.recorder.stop)
            return message

        async def observed(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.recorder.start(resource_of(scope.get("app")))
            await send(message)

        await self.app(scope, told, observed)


def _foreign_span(around: Context) -> Any:
    span = trace.get_current_span(around)
    return span if getattr(span, "kind", None) is SpanKind.SERVER and span.is_recording() else None
