"""What all requests of one app share: who tells callers apart, who finds polls, and the way out."""

import logging
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import SpanKind, TraceFlags

from tailspan_otel.annotate import Annotated
from tailspan_otel.export import Outlet
from tailspan_otel.heartbeat import SAMPLED, Heartbeat
from tailspan_otel.identity import Caller, Headers, Identify, Network
from tailspan_otel.localapi import Node
from tailspan_otel.traffic import Rhythm, bounded
from tailspan_otel.whois import Whois

log = logging.getLogger("tailspan")

MAX_PAGES: Final = 200


class Recorder:
    """Made once per instrumented app; `start` begins the heartbeat and the whois thread of the serving process."""

    def __init__(
        self,
        resource: Resource,
        exporter: SpanExporter,
        trusted: tuple[Network, ...],
        socket: str,
        userspace: bool | None,
    ) -> None:
        self.resource = resource
        self.identify = Identify(trusted)
        self.whois = Whois(socket, userspace=userspace)
        self.rhythm = Rhythm()
        self.bounded_page = bounded(MAX_PAGES)
        self.outlet = Outlet(exporter)
        self.heartbeat = Heartbeat(resource, self.outlet.put, lambda: self.outlet.dropped)
        self._annotated = Annotated(self.outlet.put, self.whois, resource)
        self._owners: set[int] = set()
        self._told: set[type] = set()
        self.sampler: Sampler | None = None
        self._fields = frozenset(field.encode() for field in propagate.get_global_textmap().fields)

    def start(self) -> None:
        self.sampler = getattr(trace.get_tracer_provider(), "sampler", None)
        self.whois.start()
        self.heartbeat.start()

    def stop(self) -> None:
        """A clean stop: the last beat, and what is waiting, for two seconds at most."""
        self.heartbeat.stop()
        self.outlet.flush()

    def shutdown(self) -> None:
        self.heartbeat.stop()
        self.outlet.shutdown()

    def node(self, caller: Caller, wait_s: float = 0) -> Node | None:
        """The caller's device, as far as it is known within `wait_s` seconds."""
        return self.whois.wait(caller.client, wait_s) if caller.tailnet and caller.client else None

    def proves(self, caller: Caller) -> bool:
        """Whether no tailnet peer could have sent this (in userspace mode netstack takes it to any loopback port).

        Called once a request: it counts the forged and the unproven.
        """
        proven = not self.whois.userspace or caller.unix or not caller.vouched
        self.heartbeat.forged += caller.forged
        self.heartbeat.unproven += not proven and caller.login is not None
        return proven

    def remote(self, headers: Headers) -> Context | None:
        """The caller's trace context, by the propagators of `OTEL_PROPAGATORS`; None where none was sent."""
        if self._fields.isdisjoint(headers):
            return None
        return propagate.extract(
            {field.decode(): headers[field].decode("latin-1") for field in self._fields & headers.keys()}
        )

    def child_flags(self, remote: Context | None, trace_id: int) -> TraceFlags:
        """Whether the request's child spans are sampled: the caller's word, or the global provider's sampler's."""
        if self.sampler is None:
            parent = trace.get_current_span(remote).get_span_context() if remote else None
            return parent.trace_flags if parent and parent.is_valid else SAMPLED
        decision = self.sampler.should_sample(remote, trace_id, "request", SpanKind.SERVER).decision
        return SAMPLED if decision is Decision.RECORD_AND_SAMPLE else TraceFlags(TraceFlags.DEFAULT)

    def can_annotate(self, span: Any) -> bool:
        """Whether this recording span's owner is the SDK, whose provider then hands its SERVER spans to us as well."""
        owner: Any = getattr(span, "_span_processor", None)
        if not hasattr(owner, "add_span_processor"):
            if type(span) not in self._told:
                self._told.add(type(span))
                log.warning("tailspan writes a span beside %s: its provider is not the OpenTelemetry SDK's", type(span))
            return False
        if id(owner) not in self._owners:
            owner.add_span_processor(self._annotated)
            self._owners.add(id(owner))
        self._annotated.expected.add(span.get_span_context().span_id)
        return True
