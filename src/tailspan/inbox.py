"""The door deliveries come in by: from an HTTP body to rows on disk, and what became of each span."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import anyio.to_thread
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from tailspan_otel.identity import LOOPBACK, Network
from tailspan_otel.peers import Peers

from tailspan.delivery import LINES_PATH
from tailspan.errors import BusyError, TailspanError
from tailspan.ingest import Delivery, otlp
from tailspan.query import nanoseconds
from tailspan.respond import OTLP_PATH, media_type
from tailspan.respond import otlp as otlp_response
from tailspan.span import OWN_SERVICE, Span
from tailspan.store.duckdb import DuckDB

AT_ONCE: Final = 2  # one is parsed while another is written; more would only take memory
WAYS_IN: Final = (OTLP_PATH, LINES_PATH)  # the server's own work, and no use of it
WAITING: Final = 16  # bodies that wait in memory; whoever comes then is asked to come again


class Counts(BaseModel):
    """What came in since the server started. The dictionaries count spans by reason."""

    stored: int = 0
    heartbeats: int = 0
    duplicates: int = 0
    ignored: Counter[str] = Field(default=Counter(), description="Spans that are no requests, and so not for us.")
    rejected: Counter[str] = Field(default=Counter(), description="Spans that are wrong.")


class Inbox:
    """Takes deliveries for one store. `trusted`: the proxies whose headers are believed in other services' spans."""

    def __init__(
        self, store: DuckDB, clock: Callable[[], datetime], trusted: Iterable[Network | str] = LOOPBACK
    ) -> None:
        self.counts = Counts()
        self._peers = Peers(trusted)
        self._store = store
        self._clock = clock
        self._counting = threading.Lock()
        self._open = 0
        self._limiter: anyio.CapacityLimiter | None = None  # belongs to the event loop that serves

    async def receive(self, request: Request) -> Response:
        """`POST /v1/traces` of the OTLP/HTTP specification. Raises DeliveryError and its kind, BusyError."""
        if self._open >= AT_ONCE + WAITING:
            raise BusyError("Too many deliveries are waiting.", fix="Send it again in a moment.")
        self._open += 1
        try:
            self._limiter = self._limiter or anyio.CapacityLimiter(AT_ONCE)
            kind = request.headers.get("content-type")
            encoding = request.headers.get("content-encoding", "").strip().lower()
            body = await body_of(request)
            answer = await anyio.to_thread.run_sync(
                self.deliver, body, media_type(kind), encoding, limiter=self._limiter
            )
            return otlp_response(answer, kind)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        finally:
            self._open -= 1

    def deliver(self, body: bytes, content_type: str, encoding: str) -> ExportTraceServiceResponse:
        """Keeps what the body holds: it is on disk when this returns. Raises like `receive`."""
        self._peers.start()
        delivery = otlp.read(body, content_type, encoding, nanoseconds(self._clock()), self._peers.trusts)
        self.keep(delivery)
        answer = ExportTraceServiceResponse()
        if delivery.rejected:
            answer.partial_success.rejected_spans = delivery.rejected.total()
            answer.partial_success.error_message = "; ".join(f"{n} {reason}" for reason, n in delivery.rejected.items())
        elif otlp.PROBE in delivery.ignored:
            answer.partial_success.error_message = f"{otlp.PROBE}: tailspan got it"
        return answer

    def keep(self, delivery: Delivery) -> None:
        """Writes what is ours, and counts all of it. Raises BusyError."""
        ours = delivery.spans or delivery.heartbeats
        stored = self._store.write(delivery.spans, delivery.heartbeats) if ours else 0
        with self._counting:
            self.counts.stored += stored
            self.counts.duplicates += len(delivery.spans) - stored
            self.counts.heartbeats += len(delivery.heartbeats)
            self.counts.ignored += delivery.ignored
            self.counts.rejected += delivery.rejected


class InProcess(SpanExporter):
    """Puts the spans of an app of this process into the inbox, without HTTP."""

    def __init__(self, inbox: Inbox, clock: Callable[[], datetime]) -> None:
        self._inbox = inbox
        self._clock = clock

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        body = encode_spans(spans).SerializeToString()
        try:
            self._inbox.keep(self._ours(otlp.read(body, otlp.PROTOBUF, "", nanoseconds(self._clock()))))
        except TailspanError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _ours(self, delivery: Delivery) -> Delivery:
        return delivery


class OwnSpans(InProcess):
    """Likewise the server's own spans. What it does as a receiver is no use of it."""

    def _ours(self, delivery: Delivery) -> Delivery:
        return Delivery(
            [_own(span) for span in delivery.spans if not (span.path or "").startswith(WAYS_IN)],
            [beat._replace(service=OWN_SERVICE) for beat in delivery.heartbeats],
        )


def _own(span: Span) -> Span:
    """Views are of the services whose pages told of them."""
    return span if span.kind == "view" else span._replace(service=OWN_SERVICE)


async def body_of(request: Request, most: int = otlp.MAX_BYTES) -> bytes:
    """No more than `most` bytes are ever held, whatever Content-Length says."""
    if request.headers.get("content-length", "").isdecimal() and int(request.headers["content-length"]) > most:
        raise otlp.too_large(most)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise otlp.too_large(most)
    return bytes(body)
