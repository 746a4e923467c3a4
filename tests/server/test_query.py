"""The grammar over HTTP: answers in every form, and refusals that help."""

import csv
from io import StringIO
from typing import Any

import pytest
from starlette.testclient import TestClient

from tailspan.store.duckdb import DuckDB
from tests.server.spans import ANA, LEO, beat, export, span
from tests.server.test_reports import CALL, POLL, TAGGED, get
from tests.server.views import view

MINUTE = 60.0


@pytest.fixture
def visited(client: TestClient) -> TestClient:
    """Ana opens a page, which calls something, as does the page from her cache later; once she calls it herself."""
    calls = {**CALL, "tailspan.page": "/dashboard"}
    client.post(
        "/v1/traces",
        json=export(
            span(1, ago=90 * MINUTE, took_ms=10),
            span(2, calls, ago=90 * MINUTE - 1, took_ms=20),
            span(3, calls, ago=90 * MINUTE - 60, took_ms=30),
            span(4, {**calls, "http.response.status_code": 500}, ago=50 * MINUTE, took_ms=41),
            span(5, POLL, ago=49 * MINUTE),
            span(6, LEO, ago=48 * MINUTE),
            span(7, {**TAGGED, "tailspan.traffic": "api"}, ago=47 * MINUTE),
        ),
    )
    return client


def test_an_answer_repeats_the_question_as_it_was_understood(visited: TestClient) -> None:
    answer = get(
        visited, "query", **{"metrics": "requests,people", "dimensions": "traffic", "!traffic": "poll", "hours": 2}
    )
    assert [source["state"] for source in answer.pop("sources")] == ["ok"]
    assert answer == {
        "question": {
            "ask": "aggregate",
            "metrics": ["requests", "people"],
            "dimensions": ["traffic"],
            "order": [],
            "filters": {},
            "without": {"traffic": ["poll"]},
            "start": "2026-03-01T10:00:00.000Z",
            "end": "2026-03-01T12:00:00.000Z",
            "zone": "UTC",
            "limit": 100,
        },
        "rows": [
            {"traffic": "api", "requests": 4, "people": 1},
            {"traffic": "page", "requests": 2, "people": 2},
        ],
        "more": 0,
        "next_cursor": None,
        "as_of": "2026-03-01T12:00:00.000Z",
    }


@pytest.mark.parametrize(
    ("question", "rows"),
    [
        ({"metrics": "requests,accesses,deliberate_calls,errors"}, [[7, 3, 1, 1]]),
        ({"metrics": "error_rate", "user": "ana@example.com", "traffic": "api"}, [[1 / 3]]),
        (
            {"metrics": "mean_ms,p50_ms,p95_ms,max_ms", "route": "/prices", "caller": "person"},
            [[30.333, 30.0, 41.0, 41.0]],
        ),
        ({"metrics": "people,devices", "environment": "nowhere"}, [[0, 0]]),
        ({"metrics": "mean_ms", "environment": "nowhere"}, [[None]]),
        (
            {"metrics": "sessions,session_time_s", "dimensions": "person"},
            [["ana@example.com", 2, 60.0], ["leo@example.com", 1, 0.0]],
        ),
        ({"metrics": "deliberate_calls", "dimensions": "feature"}, [["/prices", 1]]),
        ({"metrics": "requests", "dimensions": "day", "zone": "Asia/Kolkata"}, [["2026-03-01", 7]]),
        (
            {"metrics": "requests", "dimensions": "hour", "zone": "Asia/Kolkata", "order": "hour"},
            [["2026-03-01T16:00:00+05:30", 7]],
        ),
        ({"metrics": "requests", "dimensions": "status_class", "order": "-status_class"}, [["5xx", 1], ["2xx", 6]]),
        ({"metrics": "requests", "dimensions": "device"}, [["n1CNTRL", 6, "ana-laptop"], [None, 1, None]]),
        (
            {"metrics": "first_seen", "dimensions": "person", "user": "leo@example.com", "hours": 1},
            [["leo@example.com", "2026-03-01T11:12:00.000Z", True]],
        ),
        (
            {"metrics": "last_seen,first_seen", "hours": 1, "user": "ana@example.com"},
            [["2026-03-01T11:11:00.000Z", "2026-03-01T10:30:00.000Z", False]],
        ),
        ({"metrics": "requests", "start": "2026-03-01", "end": "2026-03-01T10:31:00Z"}, [[2]]),
    ],
)
def test_metrics_by_dimensions(visited: TestClient, question: dict[str, Any], rows: list[list[Any]]) -> None:
    found = get(visited, "query", **question)["rows"]
    assert [list(row.values()) for row in found] == rows


def test_the_same_question_as_json_has_the_same_answer(visited: TestClient) -> None:
    asked = {"metrics": ["requests"], "dimensions": ["person"], "without": {"traffic": ["poll"]}, "limit": 1}
    posted = visited.post("/analytics/query", json=asked).json()
    assert posted == get(
        visited, "query", **{"metrics": "requests", "dimensions": "person", "!traffic": "poll", "limit": 1}
    )
    assert (posted["rows"], posted["more"]) == ([{"person": "ana@example.com", "requests": 4}], 2)


def test_a_walk_through_rows_and_sessions_sees_each_once(visited: TestClient) -> None:
    for ask, identity in (("rows", "trace_id"), ("sessions", "start")):
        whole = [row[identity] for row in get(visited, "query", ask=ask)["rows"]]
        seen: list[str] = []
        cursor = None
        while cursor or not seen:
            answer = get(visited, "query", ask=ask, limit=1, **({"cursor": cursor} if cursor else {}))
            seen += [row[identity] for row in answer["rows"]]
            cursor = answer["next_cursor"]
        assert seen == whole
        assert len(whole) == {"rows": 7, "sessions": 3}[ask]


def test_a_session_tells_who_where_how_long_and_from_page_to_page(visited: TestClient) -> None:
    [session] = get(
        visited, "query", ask="sessions", user="ana@example.com", end="2026-03-01T11:00:00Z", start="2026-03-01"
    )["rows"]
    assert session == {
        "person": "ana@example.com",
        "service": "dashboard",
        "environment": None,
        "start": "2026-03-01T10:30:00.000Z",
        "end": "2026-03-01T10:31:00.000Z",
        "duration_s": 60.0,
        "requests": 3,
        "first_page": "/dashboard",
        "last_page": "/dashboard",
    }


def test_csv_has_the_rows_and_nothing_a_spreadsheet_would_run(client: TestClient) -> None:
    client.post("/v1/traces", json=export(span(1, {**ANA, "user.name": "=SUM(A1)"}), span(2)))
    answer = client.get("/analytics/query", params={"metrics": "requests", "dimensions": "person", "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(StringIO(answer.text))) == [
        ["person", "requests"],
        ["'=SUM(A1)", "1"],
        ["ana@example.com", "1"],
    ]


def test_csv_without_a_source_says_so(client: TestClient) -> None:
    answer = client.get("/analytics/query", params={"metrics": "requests", "dimensions": "day", "format": "csv"})
    assert (answer.text, answer.headers["tailspan-sources"]) == ("day,requests\r\n", "store: no data yet")


def test_views_are_counted_by_card_and_are_uses_of_a_feature(client: TestClient) -> None:
    store: DuckDB = client.app.state.inbox._store  # type: ignore[attr-defined]  # pages send views in a later version
    store.write([view(1, "Sistema", visible_ms=900), view(2, "Sistema", visible_ms=None), view(3, "Otro", login=None)])
    found = get(client, "query", metrics="views,visible_ms,people", dimensions="card")["rows"]
    assert found == [{"card": "Sistema", "views": 2, "visible_ms": 900, "people": 1}]
    found = get(client, "query", metrics="views,deliberate_calls", dimensions="feature")["rows"]
    assert found == [{"feature": "Sistema", "views": 2, "deliberate_calls": 0}]


@pytest.mark.parametrize(
    ("params", "value", "message", "fix"),
    [
        ({"metrics": "request"}, "request", "'request' is no metric.", "Did you mean 'requests'?"),
        (
            {"metrics": "requests", "dimensions": "routes"},
            "routes",
            "'routes' is no dimension.",
            "Did you mean 'route'?",
        ),
        (
            {"metrics": "requests", "sevice": "a"},
            "sevice",
            "'sevice' is no parameter of a question.",
            "Did you mean 'service'?",
        ),
        ({"metrics": "requests", "traffic": "pages"}, "pages", "traffic is 'pages'.", "Did you mean 'page'?"),
        ({"metrics": "requests", "status": "2xx"}, "2xx", "status is '2xx'.", None),
        ({"metrics": "requests", "zone": "Madrid"}, "Madrid", "zone is 'Madrid'.", None),
        ({"metrics": "requests", "limit": "0"}, "0", "limit is '0'.", None),
        ({"metrics": "requests", "days": "1", "hours": "1"}, "days", "hours and days do not make one range.", None),
        ({"metrics": "requests", "start": "soon"}, "soon", "start is 'soon'.", None),
        (
            {"metrics": "requests", "start": "2026-03-01T00:00:00"},
            "2026-03-01T00:00:00",
            "start is '2026-03-01T00:00:00'.",
            None,
        ),
        (
            {"metrics": "requests", "order": "people"},
            "people",
            "'people' is no metric or dimension of this question.",
            None,
        ),
        (
            {"metrics": "requests", "dimensions": "card"},
            "card",
            "'card' does not go with 'requests'.",
            "Did you mean 'caller'?",
        ),
        (
            {"metrics": "sessions", "dimensions": "route"},
            "route",
            "'route' does not go with 'session'.",
            "Ask two questions.",
        ),
        ({"metrics": "sessions,views"}, "views", "'views' does not go with 'sessions'.", "Ask two questions."),
        (
            {"metrics": "people", "dimensions": "route,card"},
            "card",
            "'card' does not go with 'route'.",
            "Did you mean 'caller'?",
        ),
        ({"metrics": "requests,requests"}, "requests", "'requests' is there twice.", None),
        (
            {"metrics": "requests", "dimensions": "day,hour,page,route"},
            "day,hour,page,route",
            "dimensions is 'day,hour,page,route'.",
            None,
        ),
        ({}, None, "metrics is empty.", None),
        ({"ask": "rows", "metrics": "requests"}, "metrics", "metrics does not go with ask=rows.", None),
        ({"ask": "rows", "cursor": "x"}, "x", "cursor is 'x'.", None),
        ({"metrics": "requests", "format": "xml"}, "xml", "format is 'xml'.", None),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_the_rule_and_the_nearest_that_can(
    client: TestClient, params: dict[str, str], value: str | None, message: str, fix: str | None
) -> None:
    answer = client.get("/analytics/query", params=params)
    error = answer.json()["error"]
    assert (answer.status_code, error.get("value"), error["message"], error.get("fix")) == (422, value, message, fix)
    assert error["rule"]


def test_a_range_that_is_empty_or_endless_is_refused(client: TestClient) -> None:
    for start, end in (("2026-03-02", "2026-03-01"), ("1999-01-01", "2026-01-01"), ("2001-01-01", "2026-01-01")):
        answer = client.get("/analytics/query", params={"metrics": "requests", "start": start, "end": end})
        assert (answer.status_code, answer.json()["error"]["value"]) == (422, f"{start} {end}")


def test_everything_kept_of_a_person_can_be_taken_along_and_then_deleted(client: TestClient) -> None:
    unnamed = {key: value for key, value in ANA.items() if key.startswith(("tailspan.kind", "http"))}
    unnamed |= {"tailscale.address": "100.64.0.7", "tailspan.caller": "unknown"}
    client.post("/v1/traces", json=export(span(1, ago=60), span(2, unnamed, ago=30), span(3, LEO, ago=20), beat(4)))
    lines = client.get("/analytics/people/ana@example.com").text.splitlines()
    assert len(lines) == 2  # the second is hers by its address
    assert client.delete("/analytics/people/ana@example.com").json() == {"login": "ana@example.com", "requests": 2}
    assert client.get("/analytics/people/ana@example.com").text == ""
    logs = get(client, "access-logs")["logs"]
    assert [log["user"] for log in logs] == ["leo@example.com"]
    client.post("/v1/traces", json=export(span(5, unnamed, ago=10)))
    assert get(client, "access-logs", limit=1)["logs"][0]["user"] is None
