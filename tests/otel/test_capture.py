"""The middleware in process: which span each kind of request makes."""

import asyncio
import logging
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from tailspan_otel import describe, instrument, whois
from tailspan_otel.middleware import Capture

from tailspan.demo.localapi import LocalAPI
from tests.otel.receiver import FIXTURES, end
from tests.server.tailnet import until

SERVE = {
    "Host": "dash.tail.ts.net",
    "Tailscale-User-Login": "ana@example.com",
    "Tailscale-User-Name": "Ana",
    "X-Forwarded-For": "100.64.0.7",
    "User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)",
}


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def requests(self) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans if span.name != "heartbeat"]


@pytest.fixture(autouse=True)
def no_tailscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_SOCKET", "/nonexistent/tailscaled.sock")


@pytest.fixture
def kept() -> Kept:
    return Kept()


async def refuse(request: Request, forward: Callable[[Request], Awaitable[Response]]) -> Response:
    return JSONResponse({"detail": "who are you?"}, 401) if request.url.path == "/secret" else await forward(request)


def dashboard() -> FastAPI:
    app = FastAPI(title="Dashboard")
    rooms = APIRouter(prefix="/rooms")

    @rooms.get("/{room}")
    async def room(room: int) -> int:
        return room

    app.include_router(rooms, prefix="/v1")

    @app.get("/dashboard", response_class=HTMLResponse)
    async def page() -> str:
        return "<p>hello"

    @app.get("/prices")
    async def prices() -> list[int]:
        return [1]

    @app.head("/prices")
    async def prices_head() -> None:
        return None

    @app.get("/old")
    async def old() -> RedirectResponse:
        return RedirectResponse("/dashboard")

    @app.get("/boom")
    async def boom() -> None:
        raise ZeroDivisionError

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b"):
                yield piece

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    app.mount("/sub", Starlette(routes=[Route("/a/{b}", plain), Mount("/in", routes=[Route("/{c}", plain)])]))
    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    return app


def visit(app: FastAPI, kept: Kept, method: str, path: str, peer: str = "127.0.0.1", **headers: str) -> ReadableSpan:
    instrument(app, exporter=kept)
    with TestClient(app, client=(peer, 4000), raise_server_exceptions=False, follow_redirects=False) as client:
        client.request(method, path, headers={**SERVE, **headers})
    [span] = [span for span in kept.spans if span.name != "heartbeat"]  # the lifespan's end sent what was waiting
    return span


def test_a_request_becomes_one_span_with_its_caller(kept: Kept) -> None:
    referer = "https://dash.tail.ts.net/dashboard?secret=1"
    span = visit(dashboard(), kept, "GET", "/v1/rooms/7?secret=1", Referer=referer)
    assert (span.name, span.kind, span.status.status_code.name) == (
        "GET /v1/rooms/{room}",
        trace.SpanKind.SERVER,
        "UNSET",
    )
    assert span.resource.attributes["service.name"] == "Dashboard"
    assert dict(span.attributes or {}) == {
        "tailspan.kind": "request",
        "tailspan.source": "live",
        "tailspan.schema": 1,
        "tailspan.caller": "person",
        "tailspan.identity.source": "serve_header",
        "user.name": "ana@example.com",
        "user.full_name": "Ana",
        "client.address": "100.64.0.7",
        "network.peer.address": "127.0.0.1",
        "tailscale.address": "100.64.0.7",
        "http.request.method": "GET",
        "http.route": "/v1/rooms/{room}",
        "http.response.status_code": 200,
        "server.address": "dash.tail.ts.net",
        "url.path": "/v1/rooms/7",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": SERVE["User-Agent"],
        "tailspan.device.guess": "iPhone",
        "tailspan.traffic": "api",
        "tailspan.page": "/dashboard",
    }


def test_a_delivery_to_the_router_in_the_app_makes_no_span_to_deliver(kept: Kept) -> None:
    app = dashboard()
    instrument(app, exporter=kept)
    with TestClient(app) as client:
        for path in ("/analytics/v1/traces", "/analytics/active"):
            client.post(path)
    assert [request["url.path"] for request in kept.requests()] == ["/analytics/active"]


@pytest.mark.parametrize(
    ("method", "path", "route", "status", "error", "traffic", "page"),
    [
        ("GET", "/prices", "/prices", 200, None, "api", None),
        ("GET", "/v1/rooms/7", "/v1/rooms/{room}", 200, None, "api", None),
        ("GET", "/v1/rooms/seven", "/v1/rooms/{room}", 422, None, "api", None),
        ("GET", "/sub/a/1", "/sub/a/{b}", 200, None, "api", None),
        ("GET", "/sub/in/1", "/sub/in/{c}", 200, None, "api", None),
        ("GET", "/nothing/here", None, 404, None, "api", None),
        ("GET", "/sub/nothing", None, 404, None, "api", None),
        ("POST", "/prices", "/prices", 405, None, "api", None),
        ("HEAD", "/prices", "/prices", 200, None, "api", None),
        ("GET", "/boom", "/boom", 500, "ZeroDivisionError", "api", None),
        ("GET", "/dashboard", "/dashboard", 200, None, "page", "/dashboard"),
        ("GET", "/old", "/old", 307, None, "api", None),
        ("GET", "/secret", None, 401, None, "api", None),
        ("GET", "/health", None, 404, None, "health", None),
    ],
)
def test_what_each_kind_of_request_is_recorded_as(
    kept: Kept,
    method: str,
    path: str,
    route: str | None,
    status: int,
    error: str | None,
    traffic: str,
    page: str | None,
) -> None:
    attributes = visit(dashboard(), kept, method, path).attributes or {}
    names = ("http.route", "http.response.status_code", "error.type", "tailspan.traffic", "tailspan.page")
    assert tuple(map(attributes.get, names)) == (route, status, error, traffic, page)


def test_an_unknown_method_is_other(kept: Kept) -> None:
    attributes = visit(dashboard(), kept, "BREW", "/prices").attributes or {}
    assert (attributes["http.request.method"], attributes["http.request.method_original"]) == ("_OTHER", "BREW")


def test_how_long_a_stream_or_a_websocket_stays_open_is_no_response_time(kept: Kept) -> None:
    app = dashboard()

    @app.websocket("/live/{room}")
    async def live(socket: WebSocket, room: str) -> None:
        await socket.accept()
        await socket.send_text(room)
        await socket.close()

    @app.websocket("/refused")
    async def refused(socket: WebSocket) -> None:
        await socket.close()

    instrument(app, exporter=kept)
    with TestClient(app, client=("127.0.0.1", 4000)) as client:
        client.get("/stream", headers=SERVE)
        with client.websocket_connect("/live/7", headers={**SERVE, "Sec-Fetch-Dest": "websocket"}) as socket:
            assert socket.receive_text() == "7"
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/refused", headers=SERVE):
            pass
    names = ("http.request.method", "http.route", "http.response.status_code", "tailspan.timed", "tailspan.traffic")
    assert [tuple(map(attributes.get, names)) for attributes in kept.requests()] == [
        ("GET", "/stream", 200, False, "api"),
        ("GET", "/live/{room}", 101, False, "api"),
        ("GET", "/refused", 403, False, "api"),
    ]


def test_background_work_is_no_part_of_the_response_time(kept: Kept) -> None:
    app, done = FastAPI(), asyncio.Event()

    @app.get("/")
    async def answer(background: BackgroundTasks) -> None:
        background.add_task(done.wait)

    instrument(app, exporter=kept)

    async def visit() -> None:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 4000))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            call = asyncio.create_task(client.get("/", headers=SERVE))
            while not kept.requests():
                await asyncio.sleep(0.01)
            assert not call.done()
            done.set()
            await call

    asyncio.run(asyncio.wait_for(visit(), 5))


def test_an_app_with_a_lifespan_says_when_it_stops(kept: Kept) -> None:
    lived: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lived.append("started")
        yield
        lived.append("stopped")

    app = FastAPI(lifespan=lifespan)
    instrument(app, exporter=kept)
    with TestClient(app):
        assert lived == ["started"]
    assert lived == ["started", "stopped"]
    beats = [span for span in kept.spans if span.name == "heartbeat"]
    assert [(beat.attributes or {})["tailspan.stopped"] for beat in beats] == [False, True]
    first, last = (beat.context for beat in beats)
    assert first and last and (first.trace_id, first.span_id) == (last.trace_id, last.span_id)
    assert beats[0].start_time == beats[1].start_time
    assert (beats[0].end_time or 0) <= (beats[1].end_time or 0)


def test_an_app_within_an_app_is_recorded_once(kept: Kept) -> None:
    inner, outer = dashboard(), FastAPI()
    instrument(inner, exporter=Kept())
    outer.mount("/inner", inner)
    instrument(outer, exporter=kept)
    with TestClient(outer, client=("127.0.0.1", 4000)) as client:
        client.get("/inner/v1/rooms/7", headers=SERVE)
    assert [attributes["http.route"] for attributes in kept.requests()] == ["/inner/v1/rooms/{room}"]


def test_middleware_added_after_ours_is_warned_about_once(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    instrument(app, exporter=kept)
    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    with caplog.at_level(logging.WARNING, "tailspan"), TestClient(app) as client:
        client.get("/")
        client.get("/")
    assert [record.getMessage() for record in caplog.records if record.name == "tailspan"] == [
        "tailspan sees only what BaseHTTPMiddleware lets through: call instrument(app) after the last add_middleware"
    ]


def test_forged_headers_are_counted_on_the_heartbeat(kept: Kept) -> None:
    app = dashboard()
    instrument(app, exporter=kept)
    with TestClient(app, client=("127.0.0.2", 4000)) as client:
        client.get("/prices", headers=SERVE)
        client.get("/prices")
    assert [attributes.get("user.name") for attributes in kept.requests()] == [None, None]
    assert (kept.spans[-1].attributes or {})["tailspan.forged"] == 1


def test_headers_over_tcp_are_unproven_where_tailscaled_runs_in_userspace(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_USERSPACE", "true")
    app = dashboard()
    instrument(app, exporter=kept)
    with TestClient(app, client=("127.0.0.1", 4000)) as client:
        client.get("/prices", headers=SERVE)
    [attributes] = kept.requests()
    assert (attributes["user.name"], attributes["tailspan.identity.proven"]) == ("ana@example.com", False)
    assert (kept.spans[-1].attributes or {})["tailspan.unproven"] == 1


def test_the_first_request_on_a_foreign_span_has_its_device_too(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_SOCKET", str(tmp_path / "tailscaled.sock"))
    app = FastAPI(telemetry={"tracer_provider": TracerProvider()})
    with LocalAPI(tmp_path / "tailscaled.sock"):
        span = visit(app, kept, "GET", "/")
    names = ("user.name", "tailscale.node", "tailscale.node.id", "tailspan.device.guess", "tailspan.caller")
    attributes = span.attributes or {}
    assert tuple(map(attributes.get, names)) == ("ana@example.com", "ana-laptop", "TESTCTRL00000007", None, "person")


@pytest.mark.parametrize("owner", ["100.64.0.2", None])
def test_what_was_said_of_the_caller_when_the_response_began_gives_way_to_what_is_known_at_its_end(
    owner: str | None, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_SOCKET", str(tmp_path / "tailscaled.sock"))
    app, runner = FastAPI(telemetry={"tracer_provider": TracerProvider()}), "100.64.0.4"
    with LocalAPI(tmp_path / "tailscaled.sock", FIXTURES) as tailscaled:

        @app.get("/moves")
        async def moves(changes: bool) -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"begun"
                if changes:  # the address has another owner, or none, and what was known is forgotten
                    known = tailscaled.whois.pop(runner)
                    tailscaled.whois |= {runner: tailscaled.whois[owner]} if owner else {}
                    known_no_more = SimpleNamespace(monotonic=lambda: time.monotonic() + whois.STALE_S)
                    monkeypatch.setattr(whois, "time", known_no_more)
                    assert b"tag:ci" in known

            return StreamingResponse(pieces())

        instrument(app, exporter=kept)
        with TestClient(app, client=("127.0.0.1", 4000), headers={"X-Forwarded-For": runner}) as client:
            client.get("/moves", params={"changes": False})
            until(kept.requests)
            client.get("/moves", params={"changes": True})
    names = {"tailspan.caller", "user.name", "user.full_name", "tailscale.node", "tailscale.node.id", "tailscale.tags"}
    before, after = ({key: sent[key] for key in names & sent.keys()} for sent in kept.requests())
    assert (before["tailspan.caller"], before["tailscale.tags"]) == ("tagged", ("tag:ci",))
    assert after == (
        {
            "tailspan.caller": "person",
            "user.name": "alice@example.com",
            "user.full_name": "Alice Architect",
            "tailscale.node": "alice-laptop",
            "tailscale.node.id": "TESTCTRL00000002",
        }
        if owner
        else {"tailspan.caller": "unknown"}
    )


def test_an_app_instrumented_twice_is_recorded_once(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    app = dashboard()
    instrument(app, exporter=kept)
    instrument(app, exporter=kept)
    assert sum("Capture" in str(middleware) for middleware in app.user_middleware) == 1
    assert "recorded once" in caplog.text


@pytest.mark.parametrize("peers", ["192.0.2.7", "192.0.2.7, 192.0.2.8/32", ["192.0.2.7"]])
def test_trusted_peers_are_given_as_text_or_one_by_one(peers: str | list[str], kept: Kept) -> None:
    app = dashboard()
    instrument(app, exporter=kept, trusted_peers=peers)
    with TestClient(app, client=("192.0.2.7", 4000)) as client:
        client.get("/prices", headers=SERVE)
    assert [attributes.get("user.name") for attributes in kept.requests()] == ["ana@example.com"]


@pytest.mark.parametrize(
    ("variable", "value"), [("TAILSPAN_TRUSTED_PEERS", "172.18.0.300"), ("TAILSPAN_USERSPACE", "perhaps")]
)
def test_a_wrong_setting_is_refused_with_its_value(
    variable: str, value: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=value):
        instrument(FastAPI(), exporter=kept)


def test_an_app_that_has_started_is_refused(kept: Kept) -> None:
    app = FastAPI()
    with TestClient(app) as client, pytest.raises(RuntimeError):
        client.get("/")
        instrument(app, exporter=kept)


@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_it_can_be_switched_off(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    app = FastAPI()
    instrument(app)
    assert app.user_middleware == []


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def captured(app: Starlette, scopes: Iterable[dict[str, Any]]) -> None:
    """Requests as a server hands them over, one after the other, without what a client would have to send."""
    [middleware] = app.user_middleware

    async def ask() -> None:
        async def send(message: Any) -> None:
            pass

        for scope in scopes:
            peer = {"type": "http", "client": ("127.0.0.1", 4000), "server": ("127.0.0.1", 8000)}
            await Capture(answers, **middleware.kwargs)(peer | scope, asyncio.Event().wait, send)  # type: ignore[arg-type]

    asyncio.run(ask())


def test_what_waits_to_be_sent_is_small_however_long_its_path_and_headers(kept: Kept) -> None:
    going_on = threading.Event()

    class Held(Kept):
        def export(self, spans: Any) -> SpanExportResult:
            going_on.wait()
            return kept.export(spans)

    sent = [(key.lower().encode(), value.encode()) for key, value in SERVE.items()]
    app = Starlette()
    instrument(app, exporter=Held())
    captured(app, [{"path": "/", "headers": sent}])
    tracemalloc.start()
    try:
        long = [
            {"path": f"/{n}" * 100_000, "headers": [*sent, (b"x" * 20_000 + b"%d" % n, b"y" * 20_000)]}
            for n in range(300)
        ]
        captured(app, iter(long))
        del long
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()
        going_on.set()
        end(app)
    first, *others = kept.requests()
    assert [other | {"url.path": "/"} for other in others] == [first] * 300


def test_of_a_request_that_waited_for_long_the_address_tells_nobody_since_it_may_have_another_owner(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_SOCKET", str(tmp_path / "tailscaled.sock"))
    sent = [(key.lower().encode(), value.encode()) for key, value in SERVE.items()]
    nameless = [(key, value) for key, value in sent if not key.startswith(b"tailscale-")]
    app = Starlette()
    with LocalAPI(tmp_path / "tailscaled.sock"):
        instrument(app, exporter=kept)
        captured(app, [{"path": "/", "headers": sent}])
        until(kept.requests)
        monkeypatch.setattr(describe, "LATE_NS", -1)
        captured(app, [{"path": "/", "headers": nameless}, {"path": "/", "headers": sent}])
        until(lambda: len(kept.requests()) == 3)
        end(app)
    names = ("user.name", "tailscale.node", "tailscale.address", "tailspan.identity.source", "tailspan.device.guess")
    late = (None, None, "100.64.0.7", "none", "iPhone")
    by_header = ("ana@example.com", "ana-laptop", "100.64.0.7", "serve_header", None)
    assert [tuple(map(request.get, names)) for request in kept.requests()] == [by_header, late, by_header]


header = st.tuples(
    st.sampled_from(
        b"host referer traceparent tracestate baggage user-agent x-forwarded-for x-forwarded-host "
        b"tailscale-user-login accept sec-fetch-dest".split()
    )
    | st.binary(max_size=20),
    st.binary(max_size=200)
    | st.sampled_from([b"http://[", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", b"::1:99999999"]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(headers=st.lists(header, max_size=8), method=st.text(max_size=9), path=st.text(max_size=50))
def test_no_header_bytes_cost_a_request_or_a_span(
    headers: list[tuple[bytes, bytes]], method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept, answered = Kept(), []
    star = Starlette()
    instrument(star, exporter=kept)
    recorder: Any = star.user_middleware[0].kwargs["recorder"]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("100.64.0.9", 7)}

    async def send(message: Any) -> None:
        answered.append(message["type"])

    asyncio.run(Capture(answers, recorder)(scope, asyncio.Event().wait, send))  # type: ignore[arg-type]
    recorder.stop()
    recorder.outlet.shutdown()
    assert answered == ["http.response.start", "http.response.body"]
    [attributes] = kept.requests()
    assert "user.name" not in attributes
    assert not [record for record in caplog.records if record.exc_info]
