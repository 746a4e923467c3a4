"""What a service is called, in its requests and its heartbeats alike."""

from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from starlette.testclient import TestClient
from tailspan_otel import instrument

from tests.otel.test_capture import Kept


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_SOCKET", "/nonexistent/tailscaled.sock")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of-the-environment")


def provider(**attributes: str) -> TracerProvider:
    return TracerProvider(resource=Resource.create({key.replace("_", "."): value for key, value in attributes.items()}))


def names(kept: Kept, kind: str) -> set[Any]:
    spans = [span for span in kept.spans if (span.attributes or {})["tailspan.kind"] == kind]
    return {span.resource.attributes["service.name"] for span in spans}


def native() -> FastAPI:
    return FastAPI(telemetry={"tracer_provider": provider(service_name="explicit")})


def contrib() -> FastAPI:
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(service_name="explicit"))
    return app


def nameless() -> FastAPI:
    return FastAPI(telemetry={"tracer_provider": TracerProvider(resource=Resource({"host.name": "here"}))})


@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize(
    ("made", "called"),
    [
        (native, "explicit"),
        (contrib, "explicit"),
        (nameless, "of-the-environment"),
        (lambda: FastAPI(), "of-the-environment"),
    ],
)
def test_heartbeats_are_of_the_service_that_the_requests_are_of(made: Any, called: str, lifespan: bool) -> None:
    app, kept = made(), Kept()
    instrument(app, exporter=kept)
    client = TestClient(app)
    if lifespan:
        with client:
            client.get("/")
    else:
        client.get("/")
        app.user_middleware[0].kwargs["recorder"].stop()
    assert (names(kept, "request"), names(kept, "heartbeat")) == ({called}, {called})
    assert len({span.context.span_id for span in kept.spans if span.context and span.name == "heartbeat"}) == 1


def test_a_global_provider_names_the_spans_that_are_ours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider(service_name="explicit"))
    app, kept = FastAPI(telemetry={"tracing": False}), Kept()
    instrument(app, exporter=kept)
    with TestClient(app) as client:
        client.get("/")
    assert (names(kept, "request"), names(kept, "heartbeat")) == ({"explicit"}, {"explicit"})


def test_under_a_name_that_turns_out_wrong_the_heartbeat_ends_with_a_clean_stop() -> None:
    tracer = provider(service_name="explicit").get_tracer("somebody's own")
    app, kept = FastAPI(), Kept()

    class Around:
        """Outermost, and nothing that could be known of beforehand."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await self.inner(scope, receive, send)
                return
            with tracer.start_as_current_span("theirs", kind=trace.SpanKind.SERVER):
                await self.inner(scope, receive, send)

    instrument(app, exporter=kept)
    with TestClient(Around(app)) as client:
        client.get("/")
    beats = [span for span in kept.spans if span.name == "heartbeat"]
    told = [(beat.resource.attributes["service.name"], (beat.attributes or {})["tailspan.stopped"]) for beat in beats]
    assert told == [
        ("of-the-environment", False),
        ("of-the-environment", True),
        ("explicit", False),
        ("explicit", True),
    ]
    assert names(kept, "request") == {"explicit"}
    ids = [beat.context.span_id for beat in beats if beat.context]
    assert ids[0] == ids[1] != ids[2] == ids[3]
