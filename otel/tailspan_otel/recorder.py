"""What all requests of one app share: who tells callers apart, who finds polls, and the way out."""

import logging
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import SpanKind, TraceFlags

from tailspan_otel.annotate import Annotated, is_named
from tailspan_otel.export import Outlet
from tailspan_otel.heartbeat import SAMPLED, Heartbeat
from tailspan_otel.identity import Headers, Identify
from tailspan_otel.peers import Peers
from tailspan_otel.resolve import Resolve, Who
from tailspan_otel.status import Listing
from tailspan_otel.traffic import Rhythm, bounded
from tailspan_otel.whois import Whois

if TYPE_CHECKING:
    from tailspan_otel.request import Request

log = logging.getLogger("tailspan")

MAX_PAGES: Final = 200


class Recorder:
    """Made once per instrumented app; `start` begins what runs beside the requests in the serving process."""

    def __init__(
        self, resource: Resource, exporter: SpanExporter, peers: Peers, whois: Whois, listing: Listing | None
    ) -> None:
        self.resource = resource
        self.whois = whois
        self.identify = Identify(peers)
        self.resolve = Resolve(whois, listing)
        self._peers = peers
        self._listing = listing
        peers.changed = self.identify.forget
        self.rhythm = Rhythm()
        self.bounded_page = bounded(MAX_PAGES)
        self.outlet = Outlet(exporter)
        self.heartbeat = Heartbeat(resource, self.outlet.put, lambda: self.outlet.dropped)
        self._annotated = Annotated(self.outlet.put)
        self._owners: set[int] = set()
        self._told: set[type] = set()
        self.sampler: Sampler | None = None
        self._fields = frozenset(field.encode() for field in propagate.get_global_textmap().fields)

    def start(self, resource: Resource | None) -> None:
        """`resource` is that of the provider by which the app makes spans of its own, if it does."""
        self.sampler = getattr(trace.get_tracer_provider(), "sampler", None)
        self.follow(resource)
        self.whois.start()
        self._peers.start()
        if self._listing is not None:
            self._listing.start()
        self.heartbeat.start()

    def follow(self, resource: Resource | None) -> None:
        """What a provider calls the service is what it is called in all that we send."""
        if resource is not None and is_named(resource):
            self.resource = resource
            self.heartbeat.follow(resource)

    def stop(self) -> None:
        """A clean stop: the last beat, and what is waiting, for two seconds at most."""
        self.heartbeat.stop()
        self.outlet.flush()

    def shutdown(self) -> None:
        self.heartbeat.stop()
        self.outlet.shutdown()

    def count(self, who: Who) -> None:
        """Called once a request: what was forged in it, and what was believed without proof."""
        if who.forged is not None:
            self.heartbeat.forged[who.forged] += 1
            if not who.caller.vouched:
                self._peers.doubt()
        self.heartbeat.unproven += not who.proven and (who.caller.login is not None or who.node is not None)

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

    def can_annotate(self, span: Any, request: "Request") -> bool:
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
            self.follow(span.resource)
        self._annotated.expected[span.get_span_context().span_id] = request
        return True
