"""A sign of life: one INTERNAL span per process and hour, sent again every 15 seconds with a later end.

Its ids and its start stay the same, so each beat replaces the one before, and a lost beat costs nothing. It carries the
counts of that hour, and a clean stop; a process that vanishes leaves a heartbeat that ends.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import sub
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from tailspan_otel import attributes as name
from tailspan_otel.export import Unfinished

BEAT_S: Final = 15.0
HOUR_NS: Final = 3600 * 10**9
LONG_NS: Final = 60 * 10**9
SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
IDS: Final = RandomIdGenerator()


class Heartbeat:
    """Beats from the first request or the lifespan's start until `stop`, in each process that serves."""

    def __init__(self, resource: Resource, put: Callable[[Unfinished], None], dropped: Callable[[], int]) -> None:
        self.forged: Counter[str] = Counter()  # by kind
        self.unproven = 0
        self.open: dict[int, int] = {}  # requests being served: a key of their own, their start in ns
        self.resource = resource
        self._put = put
        self._dropped = dropped
        self._lock = threading.Lock()
        self._forked()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._stopping: threading.Event | None = None
        self.open.clear()
        self.base = self.counts()  # when the last hour's last beat was sent

    def start(self) -> None:
        """Starts beating in this process, at once; does nothing where it beats already."""
        if self._stopping is not None:
            return
        with self._lock:
            if self._stopping is not None:
                return
            self._stopping = stopping = threading.Event()
        self._begin(time.time_ns())
        threading.Thread(target=self._run, args=(stopping,), name="tailspan-heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Sends a last beat that says the process stopped on purpose."""
        with self._lock:
            stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.set()
            self._beat(time.time_ns(), last=True, stopped=True)

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            with self._lock:
                now = time.time_ns()
                over = now - self._start >= HOUR_NS
                self._beat(now, last=over)
                if over:
                    self._begin(now)
            stopping.wait(BEAT_S)

    def _begin(self, now: int) -> None:
        self._start = now
        self.context = SpanContext(IDS.generate_trace_id(), IDS.generate_span_id(), False, SAMPLED)

    def _beat(self, now: int, *, last: bool, stopped: bool = False) -> None:
        self._put(_Beat(self, self.resource, self.context, self._start, now, last, stopped))

    def follow(self, resource: Resource) -> None:
        """The service is called otherwise than was thought: what was sent under the old name ends there."""
        with self._lock:
            if resource == self.resource:
                return
            if self._stopping is not None:
                self._beat(time.time_ns(), last=True, stopped=True)
                self._begin(time.time_ns())
            self.resource = resource
            if self._stopping is not None:
                self._beat(time.time_ns(), last=False)

    def counts(self) -> tuple[Counter[str], int, int]:
        """Forged by kind, unproven and lost, since the process started."""
        return self.forged.copy(), self.unproven, self._dropped()

    def open_long(self, now: int) -> int:
        return sum(now - start >= LONG_NS for start in list(self.open.values()))


@dataclass(frozen=True, slots=True)
class _Beat:
    """Counted when it is sent: by then every request before it was described, and counted too."""

    heartbeat: Heartbeat
    resource: Resource
    context: SpanContext
    start_ns: int
    now_ns: int
    last: bool  # of its hour: what is counted from here on is the next one's
    stopped: bool

    def span(self) -> ReadableSpan:
        counts = self.heartbeat.counts()
        forged = counts[0] - self.heartbeat.base[0]
        unproven, dropped = map(sub, counts[1:], self.heartbeat.base[1:])
        kinds = {name.FORGED_KINDS: ",".join(f"{kind}={forged[kind]}" for kind in sorted(forged))} if forged else {}
        if self.last:
            self.heartbeat.base = counts
        return ReadableSpan(
            "heartbeat",
            self.context,
            resource=self.resource,
            kind=SpanKind.INTERNAL,
            start_time=self.start_ns,
            end_time=max(self.now_ns, self.start_ns),
            attributes={
                name.KIND: "heartbeat",
                name.SOURCE: "live",
                name.STOPPED: self.stopped,
                name.FORGED: forged.total(),
                **kinds,
                name.UNPROVEN: unproven,
                name.DROPPED: dropped,
                name.OPEN_REQUESTS: self.heartbeat.open_long(self.now_ns),
                name.SCHEMA: name.SCHEMA_VERSION,
            },
        )
