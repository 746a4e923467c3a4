"""Views of cards: from a page's POST to answers, by whoever the middleware says it is."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tailspan_otel import instrument

import tailspan
from tailspan.app import create_app, know_viewers
from tailspan.config import Settings
from tailspan.errors import RateError
from tailspan.ingest.views import MAX_BYTES, MAX_CARDS, MAX_SERVICES, MAX_VARIANTS, PER_MINUTE, Rate
from tailspan.store.duckdb import DuckDB
from tests.server.conftest import Serving
from tests.server.tailnet import until

PATH = "/analytics/views"
ANA = {"X-Forwarded-For": "100.64.0.7", "Tailscale-User-Login": "ana@example.com", "Tailscale-User-Name": "Ana"}
SEEN = {"card": "Sistema", "age_ms": 2000, "visible_ms": 1500}


def told(*views: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {"service": "factory", "page": "/dashboard", "views": list(views or [SEEN])} | changed


@pytest.fixture
def server(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """One that records who asks it, as `tailspan serve` does."""
    monkeypatch.setenv("TS_SOCKET", "/nowhere")
    settings = Settings(db=database, ts_socket=Path("/nowhere"), readers=("boss@example.com",))
    with closing(DuckDB(database)) as store:
        know_viewers(app := create_app(settings, store))
        with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
            yield client


@pytest.fixture
def recording(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A host's own app with the router."""
    monkeypatch.setenv("TS_SOCKET", "/nowhere")
    app = FastAPI(title="prices")
    analytics = tailspan.router(Settings(db=database, ts_socket=Path("/nowhere")))
    app.include_router(analytics)
    instrument(app, exporter=analytics.exporter)
    with TestClient(app, "http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        yield client


def kept(client: TestClient, count: int) -> list[dict[str, Any]]:
    """The views, as rows, once there are so many."""
    asked = {"ask": "rows", "kind": "view", "hours": "48", "limit": "1000"}

    def found() -> list[list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = client.get("/analytics/query", params=asked).json()["rows"]
        return [rows] if len(rows) == count else []

    [rows] = until(found)
    return list(rows)


def by(client: TestClient, *dimensions: str) -> list[dict[str, Any]]:
    asked = {"metrics": "views,visible_ms,people", "dimensions": ",".join(dimensions), "limit": "1000"}
    return list(client.get("/analytics/query", params=asked).json()["rows"])


def test_a_view_is_the_viewers_own_whatever_the_readers_and_counts_on_its_service(recording: TestClient) -> None:
    before = time.time()
    more = {"card": "Precios", "variant": "b", "age_ms": 0, "visible_ms": 61_000}
    body = told(SEEN, more, page="/plants/123?x=1#y")
    assert recording.post(PATH, json=body, headers=ANA).status_code == 204
    latest, earlier = rows = kept(recording, 2)
    about = {"views": 1, "people": 1}
    assert by(recording, "card", "variant") == [
        {"card": "Precios", "variant": "b", "visible_ms": 61_000, **about},
        {"card": "Sistema", "variant": None, "visible_ms": 1500, **about},
    ]
    wanted = ("user", "full_name", "service", "source", "identity_source", "caller", "page", "response_time_ms")
    assert {tuple(row[key] for key in wanted) for row in rows} == {
        ("ana@example.com", "Ana", "factory", "page", "serve_header", "person", "/plants/{id}", None)
    }
    ages = [before - datetime.fromisoformat(row["timestamp"]).timestamp() for row in (latest, earlier)]
    assert ages[0] <= 0.001 and abs(ages[1] - ages[0] - 2) <= 0.002
    usage = recording.get("/analytics/dashboard-usage?service=factory").json()
    assert usage["most_viewed_cards"] == [
        {"card": "Precios", "views": 1, "visible_ms": 61_000},
        {"card": "Sistema", "views": 1, "visible_ms": 1500},
    ]
    assert [user["email"] for user in usage["active_users"]] == ["ana@example.com"]
    assert usage["user_sessions"][0]["favorite_features"] == ["Precios", "Sistema"]


def test_in_an_app_of_ones_own_the_service_is_the_apps(recording: TestClient) -> None:
    assert recording.post(PATH, json=told(service=None), headers=ANA).status_code == 204
    assert [row["service"] for row in kept(recording, 1)] == ["prices"]


def test_the_server_takes_views_for_other_services_and_must_be_told_which(server: TestClient) -> None:
    assert server.get("/analytics/active", headers=ANA).status_code == 403  # no reader
    assert server.post(PATH, json=told(), headers=ANA).status_code == 204
    [row] = kept(server, 1)
    assert (row["user"], row["service"]) == ("ana@example.com", "factory")
    answer = server.post(PATH, json=told(service=None), headers=ANA)
    assert (answer.status_code, answer.json()["error"]["fix"]) == (
        422,
        'Name it in the script tag: data-service="…".',
    )
    assert server.get("/healthz").json()["views"] == {"taken": 1, "refused": {"bad_parameter": 1}}


@pytest.mark.parametrize(
    ("body", "status", "value"),
    [
        (told(user="boss@example.com"), 422, "user"),
        (told({**SEEN, "user": "boss@example.com"}), 422, "views.0.user"),
        (told(views=[]), 422, "[]"),
        (told(views=[SEEN] * 51), 422, None),
        (told({**SEEN, "card": ""}), 422, ""),
        (told({**SEEN, "card": "x" * 201}), 422, "x" * 200),
        (told({**SEEN, "card": 7}), 422, "7"),
        (told({**SEEN, "age_ms": -1}), 422, "-1"),
        (told({**SEEN, "age_ms": 10**12}), 422, str(10**12)),
        (told({**SEEN, "visible_ms": 1.5}), 422, "1.5"),
        (told({**SEEN, "visible_ms": True}), 422, "True"),
        (told(page="https://evil.example/"), 422, "https://evil.example/"),
        ([1], 400, None),
        ("no", 400, None),
    ],
)
def test_what_no_page_tells_is_refused_as_a_whole(
    recording: TestClient, body: Any, status: int, value: str | None
) -> None:
    answer = recording.post(PATH, json=body, headers=ANA)
    assert (answer.status_code, answer.json()["error"].get("value", value)) == (
        status,
        answer.json()["error"].get("value"),
    )
    if value is not None:
        assert answer.json()["error"]["value"] == value
    assert kept(recording, 0) == []


def test_bodies_of_other_types_and_sizes_are_refused(recording: TestClient) -> None:
    assert recording.post(PATH, content="{}", headers=ANA).status_code == 415
    json = {"Content-Type": "application/json"} | ANA
    assert recording.post(PATH, content=b"{", headers=json).status_code == 400
    assert recording.post(PATH, content=b" " * (MAX_BYTES + 1), headers=json).status_code == 413
    foreign = {"Origin": "https://evil.example"} | ANA
    assert recording.post(PATH, json=told(), headers=foreign).status_code == 403
    assert recording.get(PATH, headers=ANA).status_code in (403, 405)


def test_a_page_cannot_make_more_cards_variants_or_services_than_the_store_should_have(recording: TestClient) -> None:
    for start in range(0, MAX_CARDS + 50, 50):
        views = [{**SEEN, "card": f"c{card}", "variant": f"v{card}"} for card in range(start, start + 50)]
        assert recording.post(PATH, json=told(*views), headers=ANA).status_code == 204
    kept(recording, MAX_CARDS + 50)
    cards = {row["card"]: row["views"] for row in by(recording, "card")}
    assert (len(cards), cards["other"]) == (MAX_CARDS + 1, 50)
    variants = {row["variant"]: row["views"] for row in by(recording, "variant")}
    assert (len(variants), variants["other"]) == (MAX_VARIANTS + 1, MAX_CARDS + 50 - MAX_VARIANTS)
    others = [recording.post(PATH, json=told(service=f"s{at}"), headers=ANA) for at in range(MAX_SERVICES)]
    assert [answer.status_code for answer in others] == [204] * (MAX_SERVICES - 1) + [422]


def test_who_is_not_identified_sends_no_views(recording: TestClient) -> None:
    assert recording.post(PATH, json=told(), headers={"X-Forwarded-For": "100.64.0.77"}).status_code == 401
    forged = TestClient(recording.app, "http://127.0.0.1:8000", client=("192.0.2.9", 50000))
    assert forged.post(PATH, json=told(), headers=ANA).status_code == 401
    assert kept(recording, 0) == []


def test_an_app_that_records_nobody_refuses_views_and_says_why(serving: Serving) -> None:
    with serving() as client:
        answer = client.post(PATH, json=told())
        assert (answer.status_code, "instrument(app" in answer.json()["error"]["fix"]) == (400, True)


def test_a_caller_may_send_so_often_a_minute_and_then_again() -> None:
    now = 0.0
    rate = Rate(lambda: now)
    for _ in range(PER_MINUTE):
        rate.check("ana@example.com")
    with pytest.raises(RateError, match="61 times"):
        rate.check("ana@example.com")
    rate.check("leo@example.com")
    now = 60.0
    rate.check("ana@example.com")
