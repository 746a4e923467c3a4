"""A history that was kept in a database, moved into the real pipeline by `tailspan export`."""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from tailspan_otel import instrument

from tailspan.ingest import otlp
from tailspan.span import Heartbeat, Span
from tailspan.store.duckdb import DuckDB
from tests.conftest import Launch
from tests.server.strategies import HOUR, MOMENTS, any_scene, any_span
from tests.stack.engines import Collector, Influxd, until
from tests.stack.pipeline import Row, post, rows


def timed(found: dict[str, Row]) -> dict[str, Row]:
    """Without the times that answers leave out: how long a stream was open, which a database does not keep."""
    for row in found.values():
        if "tailspan.timed" in row.tags:
            del row.fields["duration_nano"], row.fields["end_time_unix_nano"]
    return found


def export(launch: Launch, collector: Collector, database: Path) -> str:
    """What it told."""
    to = {"TAILSPAN_DB": str(database), "COLUMNS": "200"}
    code, _, told = launch("tailspan", "export", "--otlp", collector.endpoint, **to).ended()
    assert code == 0, told
    return told


def sent(collector: Collector, spans: int) -> None:
    until(lambda: collector.metric("otelcol_exporter_sent_spans") == spans, f"not {spans} spans sent", collector.said)


def keep(database: Path, spans: Sequence[Span], beats: Sequence[Heartbeat] = ()) -> None:
    store = DuckDB(database)
    store.write(spans, beats)
    store.close()


def a_day_of_a_service() -> bytes:
    """What its middleware sends: pages, calls, errors, a stream; of people, of a tagged node, of nobody; and beats."""
    app, kept = FastAPI(title="dashboard"), InMemorySpanExporter()

    @app.get("/page/{number}")
    def page(number: int) -> HTMLResponse:
        return HTMLResponse("<p>", 200 if number else 503)

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(iter("x"), media_type="text/event-stream")

    instrument(app, exporter=kept)
    ana = {"Tailscale-User-Login": "ana@example.com", "Tailscale-User-Name": "Ana", "X-Forwarded-For": "100.64.0.7"}
    with TestClient(app, "http://dashboard", client=("127.0.0.1", 40000)) as client:
        for headers in (ana, {"X-Forwarded-For": "100.64.0.9"}, {}, {**ana, "Referer": "http://dashboard/page/1"}):
            for path in ("/page/1", "/page/0", "/stream", "/nowhere?token=1"):
                client.get(path, headers={**headers, "User-Agent": "Mozilla/5.0 (iPhone; tests)"})
    return encode_spans(kept.get_finished_spans()).SerializeToString()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tailspan.duckdb"


def test_a_history_makes_the_very_points_that_live_capture_made(
    launch: Launch, collector: Collector, influxd: Influxd, database: Path
) -> None:
    body = a_day_of_a_service()
    post(collector.endpoint, body).raise_for_status()
    kept = otlp.read(body, otlp.PROTOBUF, "", time.time_ns())
    keep(database, kept.spans, kept.heartbeats)
    sent(collector, 18)
    live = timed(rows(influxd))
    assert (len(kept.spans), influxd.count(), influxd.count("heartbeat")) == (16, 16, 1)
    assert "took 17 of 17 requests, views and heartbeats." in export(launch, collector, database)
    sent(collector, 18 + 17)
    assert timed(rows(influxd)) == live


def test_every_span_of_a_history_is_a_point_however_often_it_is_sent(
    launch: Launch, collector: Collector, influxd: Influxd, database: Path
) -> None:
    chance = Random(5)
    scene = any_scene(chance.choice)
    spans = []
    for number in range(1000):
        at = MOMENTS[0] + chance.randrange(240 * HOUR)
        ids = hashlib.sha256(str(number).encode()).digest()
        made = any_span(chance.choice, 0, at if number % 2 else at // 10**6 * 10**6, scene)
        spans.append(made._replace(trace_id=ids[:16], span_id=ids[16:24]))
    beats = [
        Heartbeat(span.trace_id, span.span_id, span.start_ns, span.start_ns + HOUR, "heating", None, False, 0, 0, 0, 0)
        for span in (spans.pop() for _ in range(100))
    ]
    keep(database, spans, beats)
    for times in (1, 2):
        export(launch, collector, database)
        sent(collector, 1000 * times)
    kinds = Counter(span.kind for span in spans)
    assert {kind: influxd.count(kind) for kind in ("request", "view", "heartbeat")} == {**kinds, "heartbeat": 100}
    found = {
        id: (row.tags["tailspan.kind"], int(row.fields["duration_nano"]), row.tags.get("tailspan.timed"))
        for id, row in rows(influxd).items()
    }
    wanted = {
        f"{span.trace_id.hex()}-{span.span_id.hex()}": (
            span.kind,
            span.duration_ns or 0,
            "false" if span.duration_ns is None else None,
        )
        for span in spans
    }
    assert found == wanted | {
        f"{beat.trace_id.hex()}-{beat.span_id.hex()}": ("heartbeat", HOUR, None) for beat in beats
    }
