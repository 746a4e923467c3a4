"""The reports in the shapes that are promised, and the settings they are told by."""

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tailspan.errors import SettingError
from tailspan.labels import parse
from tests.server.conftest import Serving
from tests.server.spans import ANA, LEO, beat, export, span
from tests.server.test_reports import CALL, POLL, get
from tests.server.views import view

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
ON_PAGE = {**CALL, "tailspan.page": "/dashboard"}
FORECAST = {**ON_PAGE, "http.route": "/predict/prices/weekly"}


def deliver(client: TestClient) -> None:
    """A week of Ana's and one page of Leo's."""
    client.post(
        "/v1/traces",
        json=export(
            span(1, ago=2 * DAY),
            span(2, ON_PAGE, ago=2 * DAY - 1),  # part of the load
            span(3, FORECAST, ago=2 * DAY - 60),
            span(4, FORECAST, ago=2 * DAY - 30 * MINUTE),
            span(5, POLL, ago=DAY),
            span(6, LEO, ago=HOUR),
            span(7, {**FORECAST, "http.response.status_code": 503}, ago=HOUR, took_ms=892),
        ),
    )
    store: Any = client.app.state.inbox._store  # type: ignore[attr-defined]
    store.write([view(8, "Sistema", ago=DAY), view(9, "Sistema", ago=DAY - 10), view(10, "Precios", ago=DAY - 20)])


SETTINGS = """
zone = "Europe/Madrid"
[features.routes]
"/predict/prices/weekly" = "Prophet forecast"
[features.cards]
"System" = "Health"
[cards]
Sistema = "System"
"""


def test_dashboard_usage_tells_sessions_accesses_features_and_cards(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    with serving(settings=tmp_path / "settings.toml") as client:
        deliver(client)
        answer = get(client, "dashboard-usage")
    assert [(source["name"], source["state"]) for source in answer.pop("sources")] == [
        ("store", "ok"),
        ("settings", "ok"),
    ]
    assert answer == {
        "most_viewed_cards": [
            {"card": "System", "views": 2, "visible_ms": None},
            {"card": "Precios", "views": 1, "visible_ms": None},
        ],
        "peak_hours": [{"hour": 13, "requests": 3}, {"hour": 12, "requests": 1}],
        "user_sessions": [
            {
                "user": "ana@example.com",
                "sessions": 3,
                "total_time_hours": 0.51,
                "favorite_features": ["Health", "Prophet forecast", "Precios"],
            },
            {"user": "leo@example.com", "sessions": 1, "total_time_hours": 0.0, "favorite_features": []},
        ],
        "api_calls_by_endpoint": [{"/predict/prices/weekly": 3}, {"/prices": 1}],
        "polls_by_endpoint": [{"/dashboard": 1}],
        "top_features": [
            {"feature": "Health", "uses": 2},
            {"feature": "Prophet forecast", "uses": 2},
            {"feature": "Precios", "uses": 1},
        ],
        "accesses_by_day": [
            {"day": "2026-02-22", "accesses": 0},
            {"day": "2026-02-23", "accesses": 0},
            {"day": "2026-02-24", "accesses": 0},
            {"day": "2026-02-25", "accesses": 0},
            {"day": "2026-02-26", "accesses": 0},
            {"day": "2026-02-27", "accesses": 3},
            {"day": "2026-02-28", "accesses": 0},
            {"day": "2026-03-01", "accesses": 1},
        ],
        "summary": {
            "period_days": 7,
            "total_sessions": 4,
            "unique_users": 2,
            "total_accesses": 4,
            "total_time_hours": 0.51,
            "avg_session_duration_min": 7.6,
            "most_active_user": "ana@example.com",
        },
        "active_users": [],
        "total_active": 0,
        "more": {},
        "start": "2026-02-22T12:00:00.000Z",
        "end": "2026-03-01T12:00:00.000Z",
        "zone": "Europe/Madrid",
    }


def test_a_name_changed_in_the_settings_relabels_history_at_once(serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS)
    with serving(settings=file) as client:
        deliver(client)
        for name in ("Prophet forecast", "Forecast"):
            file.write_text(SETTINGS.replace("Prophet forecast", name))
            os.utime(file, (len(name), len(name)))  # another time, whatever the clock's steps
            features = [feature["feature"] for feature in get(client, "dashboard-usage")["top_features"]]
            assert name in features


def test_a_broken_settings_file_is_told_and_the_last_good_content_holds(serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS)
    with serving(settings=file) as client:
        deliver(client)
        good = get(client, "dashboard-usage")
        file.write_text(SETTINGS + "\n[pagse]\n")
        broken = get(client, "dashboard-usage")
        file.unlink()
        gone = get(client, "dashboard-usage")
    told = broken["sources"][1]
    assert (told["name"], told["state"]) == ("settings", "ignored")
    assert told["message"] == (
        f"{file}, line 10: pagse is {{}}. An entry here is one of: zone, polls, pages, cards, features, checkers, "
        "trusted_logs, language, services, openapi. Did you mean 'pages'? Until then its last good content holds."
    )
    assert gone["sources"][1]["state"] == "ignored"
    assert broken["top_features"] == gone["top_features"] == good["top_features"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zone = 1", "line 1: zone is 1. It is an IANA name"),
        ("\nzone = 'Madrid'", "line 2: zone is 'Madrid'. It is an IANA name"),
        ("language = 'fr'", "line 1: language is 'fr'. It is one of: en, es."),
        ("services = 1", "line 1: services is 1. It is a table: [services]."),
        (
            "[trusted_logs]\ndashboard = 'both'",
            "line 2: dashboard is 'both'. Each entry of [trusted_logs] is service = 'TS-User' or '$remote_user'.",
        ),
        ("trusted_logs = ['dashboard']", "line 1: trusted_logs is ['dashboard']. It is a table: [trusted_logs]."),
        ("[trusted_logs]\na = []", "line 2: a is []. Each entry of [trusted_logs] is"),
        ("polls = '/status'", "line 1: polls is '/status'. It is a list of endpoints"),
        ("[features]\nrotes = {}", "line 2: rotes is {}. An entry here is one of: routes, pages, cards."),
        ("[pages]\n'/a' = 7", "line 2: /a is 7. Each entry of [pages] is a text that is not empty."),
        ("pages = 7", "line 1: pages is 7. It is a table: [pages]."),
        (
            "[[checkers]]\nagent = 'x'",
            "line 2: agent is 'x'. An entry here is one of: address, node, login, user_agent.",
        ),
        ("[[checkers]]\nuser_agent = ''", "line 2: user_agent is ''. It is a text that is not empty."),
        ("checkers = [{}]", "line 1: checkers is [{}]. Each is a table [[checkers]]"),
        ("[openapi]\ndashboard = 'ftp://host/a'", "line 2: dashboard is 'ftp://host/a'. It is a path, or a URL"),
        ("[openapi]\ndashboard = 1", "line 2: dashboard is 1. Each entry of [openapi] is a text that is not empty."),
        ("a = = 1", "is no TOML: Invalid value (at line 1, column 5)."),
    ],
)
def test_a_wrong_entry_is_named_with_its_line_and_the_rule(text: str, message: str) -> None:
    with pytest.raises(SettingError) as problem:
        parse(text)
    assert message in str(problem.value)


def test_declared_polls_and_checkers_are_told_apart_when_a_question_is_answered(
    serving: Serving, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("polls = ['/prices']\n[[checkers]]\nuser_agent = 'Kuma'\nlogin = 'leo@example.com'\n")
    with serving(settings=file) as client:
        checks = {**LEO, "user_agent.original": "Uptime-Kuma/2"}
        client.post("/v1/traces", json=export(span(1, CALL), span(2, checks), span(3, {**checks, "user.name": "eva"})))
        rows = get(client, "query", metrics="requests", dimensions="traffic")["rows"]
    assert rows == [{"traffic": kind, "requests": 1} for kind in ("health", "page", "poll")]


def test_a_device_is_shown_by_its_present_name_and_names_who_sent_no_name(client: TestClient) -> None:
    named = {key: value for key, value in ANA.items() if key.startswith(("tailspan.kind", "http", "url"))}
    address = {**named, "tailscale.address": "100.64.0.7"}
    renamed = {**ANA, "tailscale.node": "ana-mac"}
    client.post("/v1/traces", json=export(span(1, address, ago=400), span(2, ANA, ago=300), span(3, address, ago=200)))
    client.post("/v1/traces", json=export(span(4, renamed, ago=100), span(5, address, ago=50)))
    logs = get(client, "access-logs")["logs"]
    assert [(log["user"], log["device"], log["identity_source"]) for log in logs] == [
        ("ana@example.com", "ana-mac", "serve_header"),
        ("ana@example.com", "ana-mac", "serve_header"),
        ("ana@example.com", "ana-mac", "serve_header"),
        ("ana@example.com", "ana-mac", "serve_header"),
        (None, None, "none"),
    ]
    assert get(client, "access-logs", device="ana-mac")["summary"]["total_requests"] == 4


def test_system_health_history_tells_times_errors_and_uptime(client: TestClient) -> None:
    deliver(client)
    client.post("/v1/traces", json=export(beat(20, ago=DAY, length=DAY), beat(21, ago=0, length=DAY - 6 * 60)))
    server = [beat(30, ago=0, length=3 * DAY)]
    client.post("/v1/traces", json=export(*server, service="tailspan"))
    answer = get(client, "system-health-history", days=2)
    assert answer.pop("store_query_times")["max_ms"] > 0
    assert [source["state"] for source in answer.pop("sources")] == ["ok"]
    times = {"mean_ms": 325.333, "p50_ms": 42.0, "p95_ms": 892.0, "p99_ms": 892.0, "max_ms": 892.0}
    one = dict.fromkeys(times, 42.0)
    assert answer == {
        "uptime_percentage": 99.792,
        "uptime_last_7d": "99.7%",
        "uptime_by_service": [
            {
                "service": "dashboard",
                "environment": None,
                "uptime_percentage": 99.792,
                "up_hours": 47.9,
                "down_hours": 0.1,
                "off_hours": 0.0,
                "host_off_hours": 0.0,
                "before_hours": 0.0,
                "pending_hours": 0.0,
            }
        ],
        "avg_api_response_ms": 254.5,
        "api_response_times": {"/predict/prices/weekly": {"calls": 3, **times}, "/prices": {"calls": 1, **one}},
        "slowest_endpoints": [{"/predict/prices/weekly": "892ms"}, {"/prices": "42ms"}],
        "error_rate": {
            "overall": 1 / 6,
            "by_endpoint": {"/predict/prices/weekly": 1 / 3, "/dashboard": 0.0, "/prices": 0.0},
        },
        "data_freshness": "1 h ago",
        "influxdb_status": "not used",
        "influxdb_query_times": None,
        "store_status": "ok",
        "history": [
            _day("2026-02-27", 100.0, 3, 0, 0.0, 42.0),
            _day("2026-02-28", 99.583, 1, 0, 0.0, None),
            _day("2026-03-01", 100.0, 2, 1, 0.5, 892.0),
        ],
        "more": {},
        "start": "2026-02-27T12:00:00.000Z",
        "end": "2026-03-01T12:00:00.000Z",
        "zone": "UTC",
    }


def test_lists_that_are_cut_say_how_many_entries_they_lack(client: TestClient) -> None:
    routes = {n: {**ON_PAGE, "http.route": f"/{n}"} for n in range(103)}
    calls = [span(1000 + n, route, ago=10 * MINUTE + n) for n, route in routes.items()]
    polls = [span(200 + n, {**route, "tailspan.traffic": "poll"}, ago=n) for n, route in routes.items() if n < 101]
    client.post("/v1/traces", json=export(*calls, *polls, span(500, ago=HOUR)))
    store: Any = client.app.state.inbox._store  # type: ignore[attr-defined]
    store.write([view(600 + n, f"card {n}", ago=n) for n in range(102)])
    health, usage = get(client, "system-health-history"), get(client, "dashboard-usage")
    cut = {"most_viewed_cards": 2, "api_calls_by_endpoint": 3, "polls_by_endpoint": 1, "top_features": 99}
    assert (health["more"], usage["more"]) == ({"api_response_times": 3, "error_rate.by_endpoint": 4}, cut)
    shown = [usage[name] for name in cut] + [health["api_response_times"], health["error_rate"]["by_endpoint"]]
    assert [len(entries) for entries in shown] == [100] * 6


def test_data_freshness_is_of_the_service_that_is_asked_for(client: TestClient) -> None:
    client.post("/v1/traces", json=export(span(1, ago=3 * HOUR), service="quiet"))
    client.post("/v1/traces", json=export(span(2, ago=60), service="busy"))
    client.post("/v1/traces", json=export(span(3, ago=25 * HOUR), service="still"))
    client.post("/v1/traces", json=export(span(4, ago=50 * HOUR), service="silent"))
    services = {"": "1 min ago", "quiet": "3 h ago", "busy": "1 min ago", "unheard-of": None}
    services |= {"still": "1 day ago", "silent": "2 days ago"}
    for service, age in services.items():
        asked = {"service": service} if service else {}
        assert get(client, "system-health-history", **asked)["data_freshness"] == age


def _day(day: str, *values: float | None) -> dict[str, Any]:
    names = ("uptime_percentage", "requests", "errors", "error_rate", "avg_api_response_ms")
    return {"day": day, **dict(zip(names, values, strict=True))}


@pytest.mark.parametrize(
    ("beats", "server", "percentage", "hours"),
    [
        ([], [beat(9, ago=0, length=DAY)], None, None),
        ([beat(1, ago=0, length=HOUR)], [], 100.0, (1, 0, 0, 0, 23, 0)),
        ([beat(1, ago=2 * HOUR, length=HOUR)], [beat(9, ago=0, length=DAY)], 33.333, (1, 2, 0, 0, 21, 0)),
        ([beat(1, ago=2 * HOUR, length=HOUR, stopped=True)], [beat(9, ago=0, length=DAY)], 100.0, (1, 0, 2, 0, 21, 0)),
        ([beat(1, ago=2 * HOUR, length=HOUR)], [beat(9, ago=HOUR, length=DAY)], 50.0, (1, 1, 0, 1, 21, 0)),
        ([beat(1, ago=44, length=HOUR - 44)], [beat(9, ago=0, length=DAY)], 100.0, (0.988, 0, 0, 0, 23, 0.012)),
        ([beat(1, ago=0, length=HOUR), beat(2, ago=0, length=30 * MINUTE)], [], 100.0, (1, 0, 0, 0, 23, 0)),
    ],
)
def test_uptime_is_of_heartbeats_and_tells_the_host_from_the_service(
    client: TestClient, beats: list[Any], server: list[Any], percentage: float | None, hours: tuple[float, ...] | None
) -> None:
    client.post("/v1/traces", json=export(*beats))
    client.post("/v1/traces", json=export(*server, service="tailspan"))
    answer = get(client, "system-health-history", days=1)
    found = [
        tuple(service[key] for key in service if key.endswith("_hours")) for service in answer["uptime_by_service"]
    ]
    assert (answer["uptime_percentage"], found) == (percentage, [hours] if hours else [])


def test_without_a_request_nothing_is_zero_that_is_not_known(client: TestClient) -> None:
    answer = get(client, "system-health-history", days=1)
    unknown = ("uptime_percentage", "uptime_last_7d", "avg_api_response_ms", "data_freshness")
    assert {name: answer[name] for name in unknown} == dict.fromkeys(unknown)
    assert (answer["error_rate"], answer["store_status"]) == ({"overall": None, "by_endpoint": {}}, "no data yet")
    usage = get(client, "dashboard-usage", days=1)
    assert (usage["summary"]["avg_session_duration_min"], usage["sources"][0]["state"]) == (None, "no data yet")


def test_who_looked_at_a_card_is_active_on_its_page(client: TestClient) -> None:
    client.post("/v1/traces", json=export(span(1, CALL, ago=200), span(2, POLL, ago=1)))
    store: Any = client.app.state.inbox._store  # type: ignore[attr-defined]
    store.write([view(3, "Sistema", ago=100), view(4, "Sistema", ago=90, login=None)])
    [user] = get(client, "active")["active_users"]
    assert (user["last_seen"], user["current_page"]) == ("1 min ago", "/dashboard")
