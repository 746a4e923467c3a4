"""The two questions: who is using it now, and what happened."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import Serving
from tests.server.spans import ANA, LEO, NOW, beat, export, span

OK = {
    "name": "store",
    "state": "ok",
    "newest": "2026-03-01T11:59:00.000Z",
    "services": [
        {
            "service": "dashboard",
            "environment": None,
            "last_request": "2026-03-01T11:59:00.000Z",
            "last_heartbeat": None,
            "stopped": False,
            "forged": 0,
            "forged_kinds": {},
            "unproven": 0,
            "dropped": 0,
            "open_requests": 0,
        }
    ],
}
TAGGED: dict[str, Any] = {**ANA, "user.name": None, "user.full_name": None, "tailspan.caller": "tagged"}
POLL = {**ANA, "tailspan.traffic": "poll"}
CALL = {**ANA, "tailspan.traffic": "api", "tailspan.page": None, "http.route": "/prices"}


def get(client: TestClient, path: str, **params: Any) -> Any:
    answer = client.get(f"/analytics/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_active_names_each_person_once_with_device_page_and_time(client: TestClient) -> None:
    message = export(span(1, CALL, ago=60), span(2, ago=130), span(3, LEO, ago=250), span(4, TAGGED, ago=70))
    client.post("/v1/traces", json=message)
    answer = get(client, "active")
    [source] = answer.pop("sources")
    assert str(source.pop("message")).startswith("The database ")
    assert source == OK
    assert answer == {
        "active_users": [
            {
                "email": "ana@example.com",
                "device": "ana-laptop",
                "last_seen": "1 min ago",
                "last_seen_at": "2026-03-01T11:59:00.000Z",
                "current_page": "/dashboard",
                "full_name": "Ana",
                "service": "dashboard",
                "device_guess": None,
            },
            {
                "email": "leo@example.com",
                "device": "iPhone (?)",
                "last_seen": "4 min ago",
                "last_seen_at": "2026-03-01T11:55:50.000Z",
                "current_page": "/dashboard",
                "full_name": "Leo",
                "service": "dashboard",
                "device_guess": "iPhone",
            },
        ],
        "total_active": 2,
        "start": "2026-03-01T11:55:00.000Z",
        "end": "2026-03-01T12:00:00.000Z",
        "zone": "UTC",
    }


@pytest.mark.parametrize(
    ("sent", "active"),
    [
        (span(1, ago=0), ["ana@example.com"]),
        (span(1, ago=299.999999), ["ana@example.com"]),
        (span(1, ago=300), []),
        (span(1, ago=-1), []),
        (span(1, POLL, ago=1), []),
        (span(1, TAGGED, ago=1), []),
        (span(1, {**ANA, "tailspan.caller": "shared"}, ago=1), ["ana@example.com"]),
        (span(1, {**ANA, "tailspan.caller": "funnel"}, ago=1), []),
        (span(1, {**ANA, "user.name": None}, ago=1), []),
        (span(1, {**ANA, "tailspan.traffic": "asset"}, ago=1), []),
    ],
)
def test_active_are_people_with_a_page_or_call_of_less_than_five_minutes_ago(
    client: TestClient, sent: dict[str, Any], active: list[str]
) -> None:
    client.post("/v1/traces", json=export(sent))
    assert [user["email"] for user in get(client, "active")["active_users"]] == active


def test_a_polling_tab_was_last_seen_at_its_last_call_that_was_no_poll(serving: Serving) -> None:
    with serving() as client:
        client.post("/v1/traces", json=export(span(1, ago=200), *(span(9 + n, POLL, ago=n * 10) for n in range(9))))
        assert [user["last_seen"] for user in get(client, "active")["active_users"]] == ["3 min ago"]
    with serving(now=NOW + timedelta(seconds=100)) as client:
        assert get(client, "active")["active_users"] == []


def test_the_summary_counts_people_over_the_whole_window_whatever_the_limit(client: TestClient) -> None:
    people = [span(1, took_ms=10, ago=1), span(2, took_ms=30, ago=2), span(3, {**LEO, "tailspan.timed": False}, ago=3)]
    client.post("/v1/traces", json=export(*people, span(4, TAGGED, took_ms=999, ago=4), span(5, ago=3600)))
    answer = get(client, "access-logs", hours=1, limit=1)
    assert [log["trace_id"][-1] for log in answer["logs"]] == ["1"]
    assert answer["summary"] == {
        "total_requests": 3,
        "unique_users": 2,
        "unique_devices": 1,
        "avg_response_time_ms": 20.0,
    }


def test_what_somebodys_agent_asked_is_a_row_and_not_in_the_summary_of_people(client: TestClient) -> None:
    agent = {**LEO, "tailspan.traffic": "agent", "http.route": "/analytics/mcp"}
    client.post("/v1/traces", json=export(span(1, ago=1), span(2, agent, ago=2)))
    answer = get(client, "access-logs")
    assert [log["traffic"] for log in answer["logs"]] == ["page", "agent"]
    assert (answer["summary"]["total_requests"], answer["summary"]["unique_users"]) == (1, 1)
    assert get(client, "access-logs", traffic="agent")["summary"]["unique_users"] == 1


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "12345"),
        ({"service": "dashboard"}, "1234"),
        ({"environment": "prod"}, "5"),
        ({"user": "leo@example.com"}, "2"),
        ({"device": "ana-laptop"}, "1345"),
        ({"device": "n1CNTRL"}, "1345"),
        ({"traffic": "poll"}, "4"),
        ({"service": "dashboard", "traffic": "page", "user": "ana@example.com"}, "1"),
        ({"user": "nobody@example.com"}, ""),
        ({"user": "' OR 1=1 --"}, ""),
    ],
)
def test_each_filter_narrows_rows_and_summary(client: TestClient, filters: dict[str, str], found: str) -> None:
    client.post(
        "/v1/traces", json=export(span(1, ago=1), span(2, LEO, ago=2), span(3, CALL, ago=3), span(4, POLL, ago=4))
    )
    client.post("/v1/traces", json=export(span(5, ago=5), service="shop", environment="prod"))
    answer = get(client, "access-logs", **filters)
    assert "".join(log["trace_id"][-1] for log in answer["logs"]) == found
    assert answer["summary"]["total_requests"] == len(found)


def test_a_walk_by_cursor_sees_each_row_once_while_new_ones_arrive(client: TestClient) -> None:
    client.post("/v1/traces", json=export(*(span(n, ago=60 + n // 3) for n in range(1, 26))))  # with ties
    seen, cursor, new = [], None, 100
    while True:
        answer = get(client, "access-logs", limit=4, **({"cursor": cursor} if cursor else {}))
        seen += [log["trace_id"] for log in answer["logs"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
        client.post("/v1/traces", json=export(span(new, ago=0)))
        new += 1
    assert sorted(seen) == [f"{n:032x}" for n in range(1, 26)]


@pytest.mark.parametrize(
    ("params", "value", "message"),
    [
        ({"hours": "0"}, "0", "hours is '0'."),
        ({"hours": "169"}, "169", "hours is '169'."),
        ({"hours": "many"}, "many", "hours is 'many'."),
        ({"limit": "0"}, "0", "limit is '0'."),
        ({"limit": "1001"}, "1001", "limit is '1001'."),
        ({"traffic": "pages"}, "pages", "traffic is 'pages'."),
        ({"cursor": "x"}, "x", "cursor is 'x'."),
        ({"cursor": "WzEsMiwzXQ"}, "WzEsMiwzXQ", "cursor is 'WzEsMiwzXQ'."),
        ({"cursor": ""}, "", "cursor is ''."),
        ({"cursor": "ñ"}, "ñ", "cursor is 'ñ'."),
        ({"sevice": "x"}, "sevice", "'sevice' is no parameter of /analytics/access-logs."),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(
    client: TestClient, params: dict[str, str], value: str, message: str
) -> None:
    answer = client.get("/analytics/access-logs", params=params)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "bad_parameter")
    assert (error["value"], error["message"]) == (value, message)


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nope", "not_found"), ("POST", "/healthz", "method_not_allowed")]
)
def test_the_frameworks_errors_have_the_same_shape(client: TestClient, method: str, path: str, code: str) -> None:
    answer = client.request(method, path)
    assert set(answer.json()["error"]) == {"code", "message", "fix"}
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("path", ["active", "access-logs"])
def test_before_the_first_request_the_answer_says_so(client: TestClient, path: str) -> None:
    [source] = get(client, path)["sources"]
    assert (source["state"], source["newest"]) == ("no data yet", None)
    assert "instrument(app)" in source["message"]
    client.post("/v1/traces", json=export(beat(1)))
    [source] = get(client, path)["sources"]
    assert (source["state"], source["message"]) == (
        "no data yet",
        "Heartbeats arrive, but no request yet: open a page of the service.",
    )


def test_a_store_that_cannot_be_read_is_an_error_and_not_zeros(client: TestClient) -> None:
    app: Any = client.app
    app.state.inbox._store._connection.execute("ALTER TABLE request RENAME TO gone")
    for path in ("active", "access-logs"):
        answer = client.get(f"/analytics/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unreadable")
        assert "fix" in answer.json()["error"]
    health = client.get("/healthz")
    assert (health.status_code, health.json()["status"], health.json()["sources"][0]["state"]) == (
        503,
        "broken",
        "unreadable",
    )


def test_the_examples_in_the_openapi_document_have_the_shape_of_the_answers(client: TestClient) -> None:
    client.post("/v1/traces", json=export(span(1, ago=1), span(2, ago=2), beat(3), environment="production"))
    paths = client.get("/openapi.json").json()["paths"]
    for path, params in (("/analytics/active", {}), ("/analytics/access-logs", {"limit": 1})):
        example = paths[path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        assert _shape(client.get(path, params=params).json()) == _shape(example)


def _shape(value: Any) -> Any:
    """Its keys, lists by their first item; without nulls, which OpenAPI documents made by FastAPI cannot show."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items() if inner is not None}
    return [_shape(value[0])] if isinstance(value, list) else None
