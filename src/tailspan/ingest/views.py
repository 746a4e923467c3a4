"""Views of cards, as pages tell of them: POST /analytics/views (static/js/components/card-views.js).

Who looked is whom the middleware makes of that request: a page cannot speak for anybody else. Its ages count back from
now, since a browser's clock may be wrong. Each view leaves by the way the request's own span does, into either store.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Annotated, Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from tailspan_otel import attributes as names
from tailspan_otel.describe import SCOPE, identity_of
from tailspan_otel.heartbeat import IDS
from tailspan_otel.request import Request as Noted
from tailspan_otel.traffic import bounded, templated
from tailspan_otel.whois import WAIT_S

from tailspan.errors import (
    DeliveryError,
    QuestionError,
    RateError,
    SizeOfDeliveryError,
    TailspanError,
    TypeOfDeliveryError,
)

MAX_BYTES: Final = 32 * 2**10
MAX_VIEWS: Final = 50  # of a delivery
MAX_AGE_MS: Final = 24 * 3600 * 1000
MAX_CARDS, MAX_VARIANTS, MAX_PAGES, MAX_SERVICES = 200, 20, 200, 50  # of a service, the rest is `other`; in all
PER_MINUTE: Final = 60  # deliveries of one caller
MAX_CALLERS: Final = 1000
SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
Name = Annotated[str, Field(min_length=1, max_length=200)]
Milliseconds = Annotated[int, Field(ge=0, le=MAX_AGE_MS)]


class View(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    card: Name
    variant: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    age_ms: Milliseconds = Field(description="How long ago it was first seen.")
    visible_ms: Milliseconds


class Told(BaseModel):
    """What a page tells. `service` may be left out where the app itself has the router."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    service: Name | None = None
    page: Annotated[str, Field(max_length=1024, pattern="^/")]
    views: Annotated[list[View], Field(min_length=1, max_length=MAX_VIEWS)]


class ViewCounts(BaseModel):
    """Since the server started. `refused` counts deliveries by reason."""

    taken: int = 0
    refused: Counter[str] = Field(default=Counter())


class Seen:
    """A view on its way out: worked out in the sending thread, where there is time to learn whose device it is."""

    context = SpanContext(1, 1, False, SAMPLED)

    def __init__(self, noted: Noted, resource: Resource, start_ns: int, known: dict[str, Any]) -> None:
        self._noted, self._resource, self._start_ns, self._known = noted, resource, start_ns, known

    def span(self) -> ReadableSpan:
        return ReadableSpan(
            "view",
            SpanContext(IDS.generate_trace_id(), IDS.generate_span_id(), False, SAMPLED),
            resource=self._resource,
            attributes={**identity_of(self._noted.who(WAIT_S)), **self._known},
            kind=SpanKind.INTERNAL,
            start_time=self._start_ns,
            end_time=self._start_ns,
            instrumentation_scope=SCOPE,
        )


class Views:
    """The way in for pages. `own`: they are the app's, so that they need not name its service."""

    def __init__(self, own: bool) -> None:
        self.counts = ViewCounts()
        self._own = own
        self._rate = Rate()
        self._limits: dict[str, Limits] = {}

    async def receive(self, request: Request) -> Response:
        """204. Raises DeliveryError and its kinds, QuestionError."""
        try:
            self._keep(_noted(request), read(await _body(request), request.headers.get("content-type", "")))
            return Response(status_code=204)
        except TailspanError as error:
            self.counts.refused[error.code] += 1
            raise
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it

    def _keep(self, noted: Noted, told: Told) -> None:
        caller = noted.caller
        self._rate.check(caller.login or caller.client or "")
        resource, limits = self._service(noted, told.service)
        page, now_ns = limits.page(templated(told.page.partition("?")[0].partition("#")[0])), time.time_ns()
        for view in told.views:
            known = {
                names.KIND: "view",
                names.SOURCE: "page",
                names.TRAFFIC: "api",
                names.TIMED: False,
                names.PAGE: page,
                names.CARD: limits.card(view.card),
                names.VISIBLE_MS: view.visible_ms,
                **({names.VARIANT: limits.variant(view.variant)} if view.variant else {}),
            }
            noted.recorder.outlet.put(Seen(noted, resource, now_ns - view.age_ms * 10**6, known))
        self.counts.taken += len(told.views)

    def _service(self, noted: Noted, name: str | None) -> "tuple[Resource, Limits]":
        own = str(noted.recorder.resource.attributes[names.SERVICE])
        if name is None and not self._own:
            raise QuestionError("service is missing.", rule="It is the service.name of the page's service.", fix=FIX)
        name = name or own
        if name not in self._limits and len(self._limits) >= MAX_SERVICES:
            raise QuestionError(
                f"service is {name!r}.", value=name, rule=f"Pages of {MAX_SERVICES} services are known."
            )
        resource = noted.recorder.resource if name == own else Resource({names.SERVICE: name})
        return resource, self._limits.setdefault(name, Limits())


class Limits:
    """What is tagged by it stays little: of one service."""

    def __init__(self) -> None:
        self.page: Callable[[str], str] = bounded(MAX_PAGES)
        self.card: Callable[[str], str] = bounded(MAX_CARDS)
        self.variant: Callable[[str], str] = bounded(MAX_VARIANTS)


class Rate:
    """So many deliveries a caller and minute, by a clock of its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._callers: OrderedDict[str, tuple[float, int]] = OrderedDict()  # caller → when its minute began, how many

    def check(self, caller: str) -> None:
        """Raises RateError."""
        now = self._clock()
        with self._lock:
            began, count = self._callers.pop(caller, (now, 0))
            began, count = (now, 1) if now - began >= 60 else (began, count + 1)
            self._callers[caller] = began, count
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        if count > PER_MINUTE:
            raise RateError(f"{caller} sent views {count} times within a minute.", rule=f"At most {PER_MINUTE} times.")


FIX: Final = 'Name it in the script tag: data-service="…".'


def read(body: bytes, content_type: str) -> Told:
    """Raises TypeOfDeliveryError, DeliveryError, QuestionError."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise TypeOfDeliveryError(
            f"Content-Type is {content_type!r}.", value=content_type, rule="It is application/json."
        )
    try:
        return Told.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if not where:
            raise DeliveryError(f"The body is no JSON object of views: {first['msg']}.") from None
        if first["type"] == "extra_forbidden":
            raise QuestionError(f"{where!r} is nothing that a page tells.", value=where) from None
        value = str(first["input"])[:200]
        raise QuestionError(f"{where} is {value!r}.", value=value, rule=f"{first['msg']}.") from None


def _noted(request: Request) -> Noted:
    noted = request.scope.get("tailspan")
    if isinstance(noted, Noted):
        return noted
    raise DeliveryError(
        "Nobody records who calls this app, so that a view would be nobody's.",
        fix="Call instrument(app, exporter=…) last: docs/query.md.",
    )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise SizeOfDeliveryError(f"The body has more than {MAX_BYTES} bytes.", rule=f"At most {MAX_VIEWS} views.")
    return bytes(body)
