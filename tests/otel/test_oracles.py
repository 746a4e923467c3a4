"""FastAPI's own spans and the stock instrumentation: what they say of a request is what we say, and never twice."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, WebSocket
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from tailspan_otel import attributes as name
from tailspan_otel import instrument
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.otel.receiver import Receiver, Span, client, serving

SECRET = "hush-7f3a"
Row = tuple[str, str | None, int | None]  # name, route, status

# every request, and what we say of it
OURS: dict[str, Row] = {
    "GET /": ("GET /", "/", 200),
    "GET /api/rooms/blue": ("GET /api/rooms/{room}", "/api/rooms/{room}", 200),
    "GET /api/rooms/blue/beds/2": ("GET /api/rooms/{room}/beds/{bed}", "/api/rooms/{room}/beds/{bed}", 200),
    "GET /api/rooms/blue/beds/two": ("GET /api/rooms/{room}/beds/{bed}", "/api/rooms/{room}/beds/{bed}", 422),
    "HEAD /api/rooms/blue": ("HEAD /api/rooms/{room}", "/api/rooms/{room}", 200),
    "DELETE /api/rooms/blue": ("DELETE /api/rooms/{room}", "/api/rooms/{room}", 405),
    "BREW /api/rooms/blue": ("HTTP /api/rooms/{room}", "/api/rooms/{room}", 405),
    "GET /hotel/floors/3": ("GET /hotel/floors/{floor}", "/hotel/floors/{floor}", 200),
    "GET /hotel/nowhere": ("GET", None, 404),
    "GET /nowhere": ("GET", None, 404),
    "GET /api/rooms/blue/": ("GET", None, 307),
    "GET /private/file": ("GET", None, 401),
    "GET /teapot": ("GET /teapot", "/teapot", 418),
    "GET /moved": ("GET /moved", "/moved", 302),
    "GET /stream": ("GET /stream", "/stream", 200),
    "GET /openapi.json": ("GET", None, 200),
    "GET /broken": ("GET /broken", "/broken", 500),  # the last over its connection: uvicorn closes it
    "WS /chat/blue": ("GET /chat/{room}", "/chat/{room}", 101),
    "WS /nowhere": ("GET", None, 403),
}

# where they say something else: what, and why ours stays different
NATIVE: dict[str, tuple[Row, str]] = {
    "GET /hotel/nowhere": (
        ("GET /hotel/{path}", "/hotel/{path}", 404),
        "no route answered; a scanner's paths shall make no series",
    ),
    "GET /api/rooms/blue/": (
        ("GET /api/rooms/{room}", "/api/rooms/{room}", 307),
        "the redirect to the route is not the route, and FastAPI tells its route to its own telemetry only",
    ),
    "GET /openapi.json": (
        ("GET /openapi.json", "/openapi.json", 200),
        "FastAPI leaves no trace of Starlette's plain routes in the scope; the path says the same here",
    ),
    "WS /chat/blue": (("WS /chat/{room}", "/chat/{room}", None), "a websocket begins as a GET, answered by 101"),
    "WS /nowhere": (("WS", None, None), "the same, answered by 403"),
}
CONTRIB: dict[str, tuple[Row, str]] = {
    "GET /hotel/floors/3": (("GET /hotel", "/hotel", 200), "it stops at the mount"),
    "GET /hotel/nowhere": (("GET /hotel", "/hotel", 404), "no route answered"),
    "GET /openapi.json": (("GET /openapi.json", "/openapi.json", 200), "it matches all routes again; see above"),
    "WS /chat/blue": (("HTTP /chat/{room}", "/chat/{room}", 200), "a websocket begins as a GET, answered by 101"),
    "WS /nowhere": (("HTTP", None, None), "the same, answered by 403"),
}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(
        "TAILSPAN_USERSPACE", "false"
    )  # else its status is asked for, and httpcore leaves the socket open
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


class Oracle:
    """An SDK provider with what it exported."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self.provider = TracerProvider(sampler=sampler)
        self._kept = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        found = [span for span in self._kept.get_finished_spans() if span.kind is kind]
        return sorted(found, key=lambda span: span.start_time or 0)


def hotel(oracle: Oracle | None, variant: str) -> FastAPI:
    """An app of every kind of route. `variant`: none, native or contrib; a child span is opened in the page."""
    tracer = trace.get_tracer("hotel", tracer_provider=oracle.provider if oracle else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "welcome"}

    native = {"telemetry": {"tracer_provider": oracle.provider}} if oracle and variant == "native" else {}
    app = FastAPI(title="Grand Hotel", lifespan=lifespan, **native)  # type: ignore[arg-type]
    rooms, floors = APIRouter(prefix="/rooms"), FastAPI()

    @app.get("/")
    def front(request: Request) -> HTMLResponse:
        with tracer.start_as_current_span("query"):
            return HTMLResponse(request.state.greeting)

    @rooms.get("/{room}")
    @rooms.head("/{room}")
    def room(room: str) -> str:
        return room

    @rooms.get("/{room}/beds/{bed}")
    def bed(room: str, bed: int) -> int:
        return bed

    @floors.get("/floors/{floor}")
    def floor(floor: int) -> int:
        return floor

    @app.get("/teapot")
    def teapot(request: Request) -> None:
        error = HTTPException(418, f"no coffee at {request.url}")
        trace.get_current_span().record_exception(error)
        trace.get_current_span().set_status(StatusCode.ERROR, str(error))
        raise error

    @app.get("/moved")
    def moved(request: Request) -> Response:
        return RedirectResponse(f"/?{request.url.query}", 302)

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(iter([b"one", b"two"]))

    @app.get("/broken")
    def broken(request: Request) -> None:
        raise LookupError(f"nothing at {request.url}")

    @app.websocket("/chat/{room}")
    async def chat(room: str, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(room)
        await websocket.close()

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=401) if request.url.path.startswith("/private") else await call_next(request)

    app.include_router(rooms, prefix="/api")
    app.mount("/hotel", floors)
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    if oracle and variant == "contrib":
        FastAPIInstrumentor.instrument_app(app, tracer_provider=oracle.provider)
    return app


@contextmanager
def visited(app: Starlette, requests: Sequence[str] = tuple(OURS), **headers: str) -> Iterator[None]:
    """Sends the requests, each with a secret in its query and its Referer."""
    with serving(app) as url, client(url) as visitor:
        for request in requests:
            method, path = request.split()
            if method == "WS":
                chat(f"{url.replace('http', 'ws')}{path}?token={SECRET}")
            else:
                visitor.request(method, f"{path}?token={SECRET}", headers={"Referer": f"{url}/?{SECRET}", **headers})
        yield


def chat(url: str) -> None:
    try:
        with connect(url) as connection:
            assert connection.recv() == "blue"
    except InvalidStatus as refused:
        assert refused.response.status_code == 403


def row_of(span: Span) -> Row:
    return span["name"], span["attributes"].get(name.ROUTE), span["attributes"].get(name.STATUS)


def oracle_rows(oracle: Oracle) -> dict[str, Row]:
    rows = []
    for span in oracle.spans(SpanKind.SERVER):
        found = dict(span.attributes or {})
        status: Any = found.get(name.STATUS, found.get("http.status_code"))
        rows.append((span.name, found.get(name.ROUTE), status))
    return dict(zip(OURS, rows, strict=True))  # type: ignore[arg-type]


def test_every_request_gets_its_name_route_and_status(receiver: Receiver) -> None:
    app = hotel(None, "none")
    instrument(app)
    with visited(app):
        spans = receiver.take(len(OURS))
    assert dict(zip(OURS, map(row_of, spans), strict=True)) == OURS


def test_routes_below_mounts_are_told_whole_and_a_mount_alone_is_no_route(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text("")

    def page(request: Request) -> Response:
        return Response()

    below = [Mount("/static", StaticFiles(directory=tmp_path)), Mount("/b", routes=[Route("/b", page)])]
    expected = {
        "/static/app.js": None,
        "/static/nothing.js": None,
        "/b/b": "/b/b",
        "/b/c": None,
    }
    app = Starlette(routes=[*below, Mount("/again", routes=below)])
    instrument(app)
    paths = [*expected, *(f"/again{path}" for path in expected)]
    with visited(app, [f"GET {path}" for path in paths]):
        spans = receiver.take(len(paths))
    assert {span["attributes"][name.PATH]: span["attributes"].get(name.ROUTE) for span in spans} == {
        **expected,
        **{f"/again{path}": route and f"/again{route}" for path, route in expected.items()},
    }


def test_a_mount_of_an_included_router_is_told_whole(receiver: Receiver) -> None:
    app, floors, rooms = FastAPI(), FastAPI(), APIRouter()

    @floors.get("/floors/{floor}")
    def floor(floor: int) -> int:
        return floor

    rooms.mount("/hotel", floors)
    app.include_router(rooms, prefix="/city")
    instrument(app)
    with visited(app, ["GET /city/hotel/floors/3"]):
        (span,) = receiver.take(1)
    assert row_of(span) == ("GET /city/hotel/floors/{floor}", "/city/hotel/floors/{floor}", 200)


@pytest.mark.parametrize(("variant", "differences"), [("native", NATIVE), ("contrib", CONTRIB)])
def test_the_oracles_say_the_same_but_for_what_is_explained(
    variant: str, differences: dict[str, tuple[Row, str]]
) -> None:
    oracle = Oracle()
    with visited(hotel(oracle, variant)):
        pass
    assert oracle_rows(oracle) == {**OURS, **{request: row for request, (row, _) in differences.items()}}


@pytest.mark.parametrize("variant", ["none", "native", "contrib"])
def test_each_request_is_one_server_span_with_our_attributes_and_no_query_string(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", ".*")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", ".*")
    oracle = Oracle()
    app = hotel(oracle, variant)
    instrument(app)
    with visited(app):
        receiver.take(len(OURS))
    spans = receiver.requests
    assert [span["attributes"][name.PATH] for span in spans] == [request.split()[1] for request in OURS]
    assert [span["attributes"][name.STATUS] for span in spans] == [status for _, _, status in OURS.values()]
    assert {span["attributes"][name.CALLER] for span in spans} == {"local"}
    assert {span["attributes"][name.SCHEMA] for span in spans} == {name.SCHEMA_VERSION}
    assert {
        (span["resource"]["service.name"], span["resource"]["deployment.environment.name"]) for span in receiver.spans
    } == {("Grand Hotel", "staging")}
    assert len({(span["trace_id"], span["span_id"]) for span in spans}) == len(OURS)
    assert not [body for body in receiver.bodies if SECRET.encode() in body]
    (child,) = (span for span in oracle.spans(SpanKind.INTERNAL) if span.name == "query")
    assert child.context is not None and f"{child.context.trace_id:032x}" == spans[0]["trace_id"]
    assert spans[0]["span_id"] in ancestors(child, oracle)
    if variant != "none":  # the owner's own copy is as it was, under the same ids
        assert [f"{span.context.span_id:016x}" for span in oracle.spans(SpanKind.SERVER) if span.context] == [
            span["span_id"] for span in spans
        ]


def ancestors(span: ReadableSpan, oracle: Oracle) -> list[str]:
    """The ids of a span's parents, the nearest first (FastAPI puts spans of its own in between)."""
    known = {each.context.span_id: each for each in oracle.spans(SpanKind.INTERNAL) if each.context}
    found = []
    parent = span.parent
    while parent is not None:
        found.append(f"{parent.span_id:016x}")
        above = known.get(parent.span_id)
        parent = above.parent if above else None
    return found


class RecordOnly(Sampler):
    """Spans are recorded and seen by processors, and yet not sampled."""

    def should_sample(self, *args: Any, **named: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "record only"


@pytest.mark.parametrize("variant", ["native", "contrib"])
@pytest.mark.parametrize(
    ("sampler", "traceparent", "sampled"),
    [
        (DEFAULT_ON, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", False),
        (DEFAULT_OFF, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        (ALWAYS_ON, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", True),
        (ALWAYS_OFF, None, False),
        (TraceIdRatioBased(0.0), None, False),
        (RecordOnly(), None, False),
    ],
)
def test_no_sampler_and_no_caller_switches_capture_off(
    receiver: Receiver, variant: str, sampler: Sampler, traceparent: str | None, sampled: bool
) -> None:
    oracle = Oracle(sampler)
    app = hotel(oracle, variant)
    instrument(app)
    with visited(app, ["GET /", "GET /teapot"], **{"traceparent": traceparent} if traceparent else {}):
        spans = receiver.take(2)
    assert [row_of(span) for span in spans] == [OURS["GET /"], OURS["GET /teapot"]]
    assert [span["attributes"][name.CALLER] for span in spans] == ["local", "local"]
    assert len(oracle.spans(SpanKind.SERVER)) == (2 if sampled else 0)
    assert ("query" in {span.name for span in oracle.spans(SpanKind.INTERNAL)}) is sampled
    if traceparent:
        assert [(span["trace_id"], span["parent_id"]) for span in spans] == [tuple(traceparent.split("-")[1:3])] * 2


@pytest.mark.parametrize("ours_first", [True, False])
def test_the_order_of_instrumentation_makes_no_difference(receiver: Receiver, ours_first: bool) -> None:
    oracle, app = Oracle(), hotel(None, "none")
    both = [instrument, lambda app: FastAPIInstrumentor.instrument_app(app, tracer_provider=oracle.provider)]
    for each in both if ours_first else reversed(both):
        each(app)
    with visited(app, ["GET /", "GET /private/file"]):
        spans = receiver.take(2)
    assert [row_of(span) for span in spans] == [OURS["GET /"], OURS["GET /private/file"]]
    assert [span["span_id"] for span in spans] == [
        f"{span.context.span_id:016x}" for span in oracle.spans(SpanKind.SERVER) if span.context
    ]


def test_two_apps_that_share_a_provider_send_each_request_once(receiver: Receiver) -> None:
    oracle = Oracle()
    apps = [hotel(oracle, "contrib"), hotel(oracle, "native")]
    for app in apps:
        instrument(app)
    with visited(apps[0], ["GET /"] * 2), visited(apps[1], ["GET /"] * 2):
        receiver.take(4)
    assert len(receiver.requests) == len({span["span_id"] for span in receiver.requests}) == 4


class Foreign(trace.TracerProvider):
    """A provider that is not the SDK's: its spans record, and nobody may listen."""

    def __init__(self) -> None:
        self._hidden = Oracle()

    def get_tracer(self, *args: Any, **named: Any) -> trace.Tracer:
        return _ForeignTracer(self._hidden.provider.get_tracer("foreign"))


class _ForeignTracer(trace.Tracer):
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *args: Any, **named: Any) -> trace.Span:
        return _ForeignSpan(self._tracer.start_span(*args, **named))

    def start_as_current_span(self, *args: Any, **named: Any) -> Any:
        return trace.use_span(self.start_span(*args), end_on_exit=True)


class _ForeignSpan(trace.Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.kind = getattr(span, "kind", None)

    def end(self, end_time: int | None = None) -> None:
        self._span.end(end_time)

    def get_span_context(self) -> trace.SpanContext:
        return self._span.get_span_context()

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set_attributes(self, attributes: Any) -> None:
        self._span.set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._span.set_attribute(key, value)

    def add_event(self, *args: Any, **named: Any) -> None:
        self._span.add_event(*args, **named)

    def update_name(self, name: str) -> None:
        self._span.update_name(name)

    def set_status(self, *args: Any, **named: Any) -> None:
        self._span.set_status(*args, **named)

    def record_exception(self, *args: Any, **named: Any) -> None:
        self._span.record_exception(*args, **named)


def test_beside_a_provider_that_is_not_the_sdks_we_write_our_own_span_and_say_so_once(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI(telemetry={"tracer_provider": Foreign()})
    instrument(app)
    with caplog.at_level(logging.WARNING, "tailspan"), visited(app, ["GET /nowhere"] * 3):
        spans = receiver.take(3)
    assert [row_of(span) for span in spans] == [("GET", None, 404)] * 3
    assert len({span["trace_id"] for span in spans}) == 3 and all(span["parent_id"] for span in spans)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "tailspan"]
    assert "its provider is not the OpenTelemetry SDK's" in said


NAMES = {value for key, value in vars(name).items() if key.isupper() and isinstance(value, str)} - {name.SERVER_PORT}

# In processes of their own, because a global provider is set once and the stock instrumentation reads its names once:
# forked from one that has everything imported.
SCRIPT = """
import json, os, sys
import opentelemetry.exporter.otlp.proto.http.trace_exporter, requests
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from tailspan_otel import instrument

def run(case, environment, provider, contrib, native, headers):
    os.environ |= environment
    kept = InMemorySpanExporter()
    if provider:
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(kept))
    app = FastAPI(title="Grand Hotel", telemetry={"tracing": native})

    @app.get("/rooms/{room}")
    def room(room: str) -> str:
        with trace.get_tracer("app").start_as_current_span("query"):
            return room

    if contrib:
        FastAPIInstrumentor.instrument_app(app)
    instrument(app)
    with TestClient(app, client=("127.0.0.1", 5000)) as client:
        client.get("/rooms/blue?token=hush-7f3a", headers=headers)
    spans = kept.get_finished_spans()
    print(json.dumps([case, {
        "provider": type(trace.get_tracer_provider()).__name__,
        "spans": [span.name for span in spans],
        "query_parent": [f"{span.parent.span_id:016x}" for span in spans if span.name == "query"],
    }]), flush=True)

for case in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        run(*case)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{case} failed")
"""
RATIO = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
# environment, a global provider?, contrib?, FastAPI's own?, the caller's headers
PROCESSES: dict[str, tuple[dict[str, str], bool, bool, bool, dict[str, str]]] = {
    "always_on": ({"OTEL_TRACES_SAMPLER": "always_on"}, True, False, False, {}),
    "always_off": ({"OTEL_TRACES_SAMPLER": "always_off"}, True, False, False, {}),
    "ratio": (RATIO, True, False, False, {}),
    "ratio, caller says yes": (RATIO, True, False, False, {"traceparent": REMOTE + "01"}),
    "caller says no": ({}, True, False, False, {"traceparent": REMOTE + "00"}),
    "no provider": ({}, False, False, True, {}),
    "native": ({}, True, False, True, {}),
    "contrib": ({"OTEL_SEMCONV_STABILITY_OPT_IN": ""}, True, True, False, {}),
    "contrib http": ({"OTEL_SEMCONV_STABILITY_OPT_IN": "http"}, True, True, False, {}),
    "contrib http/dup": ({"OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup"}, True, True, False, {}),
}
Outcome = tuple[dict[str, Any], Receiver]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """What each process said of itself, and what it sent."""
    with ExitStack() as stack:
        receivers = {case: stack.enter_context(Receiver()) for case in PROCESSES}
        cases = [
            (case, {**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": receivers[case].url}, *rest)
            for case, (environment, *rest) in PROCESSES.items()
        ]
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(cases)],
            env={**os.environ, "TAILSPAN_USERSPACE": "false"},
            capture_output=True,
            text=True,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        said = dict(json.loads(line) for line in ran.stdout.splitlines())
        yield {case: (said[case], receivers[case]) for case in PROCESSES}


@pytest.mark.parametrize(
    ("case", "child"),
    [
        ("always_on", True),
        ("always_off", False),
        ("ratio", False),
        ("ratio, caller says yes", True),
        ("caller says no", False),
    ],
)
def test_the_sampler_of_a_global_provider_governs_child_spans_only(
    outcomes: dict[str, Outcome], case: str, child: bool
) -> None:
    said, receiver = outcomes[case]
    (span,) = receiver.requests
    assert row_of(span) == ("GET /rooms/{room}", "/rooms/{room}", 200)
    assert said["spans"] == (["query"] if child else [])
    assert said["query_parent"] == ([span["span_id"]] if child else [])


def test_instrument_sets_no_global_provider_and_so_leaves_fastapis_own_spans_off(outcomes: dict[str, Outcome]) -> None:
    said, receiver = outcomes["no provider"]
    assert said == {"provider": "ProxyTracerProvider", "spans": [], "query_parent": []}
    assert {span["name"] for span in receiver.spans} == {"GET /rooms/{room}", "heartbeat"}
    assert {span["scope"] for span in receiver.requests} == {"tailspan"}


def test_under_a_global_provider_fastapis_own_span_is_annotated(outcomes: dict[str, Outcome]) -> None:
    said, receiver = outcomes["native"]
    (span,) = receiver.requests
    assert span["scope"] == "fastapi" and span["attributes"][name.CALLER] == "local"
    assert "query" in said["spans"] and said["spans"][-1] == "GET /rooms/{room}"


def test_the_stock_instrumentations_old_and_new_names_say_the_same_and_hold_no_query_string(
    outcomes: dict[str, Outcome],
) -> None:
    receivers = [outcomes[case][1] for case in ("contrib", "contrib http", "contrib http/dup")]
    assert not [body for receiver in receivers for body in receiver.bodies if SECRET.encode() in body]
    old, new, both = (receiver.requests for receiver in receivers)
    assert ["http.method" in span["attributes"] for span in (*old, *new, *both)] == [True, False, True]
    ours = [{key: value for key, value in span["attributes"].items() if key in NAMES} for span in (*old, *new, *both)]
    assert (
        ours
        == [
            {
                name.METHOD: "GET",
                name.ROUTE: "/rooms/{room}",
                name.STATUS: 200,
                name.PATH: "/rooms/blue",
                name.SCHEME: "http",
                name.PROTOCOL_VERSION: "1.1",
                name.CLIENT_ADDRESS: "127.0.0.1",
                name.PEER_ADDRESS: "127.0.0.1",
                name.SERVER_ADDRESS: "testserver",
                name.USER_AGENT: "testclient",
                name.KIND: "request",
                name.SOURCE: "live",
                name.CALLER: "local",
                name.IDENTITY_SOURCE: "none",
                name.TRAFFIC: "internal",
                name.SCHEMA: name.SCHEMA_VERSION,
            }
        ]
        * 3
    )
