"""The way out: the SDK's batch processor in front of the stock OTLP/HTTP exporter, bounded; what is lost is counted."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

DELAY_MS: Final = 250  # of a batch, where OTEL_BSP_SCHEDULE_DELAY does not say otherwise: visible within a second
TIMEOUT_S: Final = 32  # of a batch with its retries (0, 1, 3, 7, 15 s), where OTEL_EXPORTER_OTLP_*TIMEOUT does not
FLUSH_S: Final = 2.0  # a service that stops waits no longer for its telemetry
LOG_EVERY_S: Final = 60.0
QUEUE_SIZE: Final = 2048  # spans, the specification's default for OTEL_BSP_MAX_QUEUE_SIZE
BATCH_SIZE: Final = 512  # and for OTEL_BSP_MAX_EXPORT_BATCH_SIZE

log = logging.getLogger("tailspan")


def exporter_from_environment() -> SpanExporter | None:
    """What `OTEL_TRACES_EXPORTER` names: `otlp` (the default, over HTTP), `console`, or None for `none`."""
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "none":
        return None
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp" or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf") != "http/protobuf":
        log.warning("tailspan sends OTLP over http/protobuf only; OTEL_TRACES_EXPORTER=%s is sent that way too", name)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    own = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"} & os.environ.keys()
    return OTLPSpanExporter(timeout=None if own else TIMEOUT_S)


class Outlet:
    """Takes finished spans, from any thread, and sends them; never blocks, never raises, holds no more than its queue.

    `dropped` counts the spans that were lost: the queue was full, or the exporter gave up on them. A span that the
    receiver took and then refused is counted by the receiver. The count is logged once a minute while it grows.
    `waiting` are those that are not sent yet.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self.waiting = 0
        self._given_up = False
        self._logged = (0, 0.0)
        self._room = _setting("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SIZE)
        self._exporter = exporter
        delay_ms = _setting("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS)
        batch = min(_setting("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SIZE), self._room)
        self._processor = BatchSpanProcessor(_Finishing(exporter, self._done), self._room, delay_ms, batch)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # the processor, too, forgets in a child what its parent will send
        self._lock = threading.Lock()
        self.waiting = 0

    def put(self, span: "ReadableSpan | Unfinished") -> None:
        with self._lock:
            full = self.waiting >= self._room
            if not full:
                self.waiting += 1
        if full:
            self._lost(1)
        else:
            self._processor.on_end(cast(ReadableSpan, span))  # it asks a span for its context only

    def _done(self, count: int, sent: int) -> None:
        with self._lock:
            self.waiting -= count
        if sent < count:
            self._lost(count - sent)

    def _lost(self, count: int) -> None:
        with self._lock:
            self.dropped += count
            (logged, at), now = self._logged, time.monotonic()
            due = now - at >= LOG_EVERY_S or not logged
            if due:
                self._logged = (self.dropped, now)
        if due:
            log.warning(
                "tailspan lost %d spans (%d in all): nobody takes them at the OTLP endpoint, or not fast enough",
                self.dropped - logged,
                self.dropped,
            )

    def flush(self) -> None:
        """Sends what is waiting; returns after two seconds at the latest."""
        self._given_up = not _bounded(self._processor.force_flush)

    def shutdown(self) -> None:
        """Sends what is waiting and stops; gives up on a receiver after two seconds, at once where `flush` just did."""
        if not self._given_up:
            _bounded(self._processor.shutdown)
        self._exporter.shutdown()


class Unfinished(Protocol):
    """A span that is worked out in the sending thread, not where the service is waiting."""

    @property
    def context(self) -> SpanContext: ...

    def span(self) -> ReadableSpan: ...


class _Finishing(SpanExporter):
    """The exporter, which finishes spans first, and tells of each batch how many there were and how many were sent."""

    def __init__(self, exporter: SpanExporter, done: Callable[[int, int], None]) -> None:
        self._exporter = exporter
        self._done = done

    def export(self, spans: "Sequence[ReadableSpan | Unfinished]") -> SpanExportResult:
        finished = [made for span in spans if (made := _finished(span)) is not None]
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(finished)
        finally:
            self._done(len(spans), len(finished) if result is SpanExportResult.SUCCESS else 0)
        return result


def _finished(span: "ReadableSpan | Unfinished") -> ReadableSpan | None:
    try:
        return span if isinstance(span, ReadableSpan) else span.span()
    except Exception:  # what one request has that we did not think of must not cost the others of its batch
        log.exception("tailspan could not describe a request")
        return None


def _setting(key: str, default: int) -> int:
    value = os.environ.get(key, "").strip()
    if value.isdecimal() and int(value) > 0:
        return int(value)
    if value:
        log.warning("%s=%s is no positive whole number; using %d", key, value, default)
    return default


def _bounded(work: Callable[[], object]) -> bool:
    """Whether the work was done in time; it goes on in a thread that no longer keeps the process."""
    thread = threading.Thread(target=work, name="tailspan-flush", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # early Python 3.12 starts none at exit; by then the lifespan has mostly sent everything
        work()
        return True
    thread.join(FLUSH_S)
    return not thread.is_alive()
