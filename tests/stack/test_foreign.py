"""Services in other languages, with OpenTelemetry's own packages only: in every answer, their callers by name."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Launch
from tests.server.spans import ANA, export, span
from tests.stack.engines import ROOT, Collector, Influxd, until
from tests.stack.foreign import EXPRESS, GO, NO_PROXY, PROXY, Service, express, go

ANA_HEADERS = {"Tailscale-User-Login": "ana@example.com", "X-Forwarded-For": "100.64.0.7"}
LEO_HEADERS = {"Tailscale-User-Login": "leo@example.com", "X-Forwarded-For": "100.64.0.99, 100.64.0.8"}
CALLS: tuple[tuple[str, str, dict[str, str], str, int], ...] = (  # method, path, headers, from where, and the answer
    ("GET", "/prices/7?token=1", ANA_HEADERS, PROXY, 200),
    ("GET", "/slow", LEO_HEADERS, PROXY, 200),  # the first address is one that Leo wrote himself
    ("POST", "/optimize", ANA_HEADERS, PROXY, 500),
    ("GET", "/prices/8", ANA_HEADERS, NO_PROXY, 200),  # forged
    ("GET", "/nowhere/8", {"X-Forwarded-For": "100.64.0.7, 203.0.113.9"}, PROXY, 404),
)
NOBODY: dict[str, Any] = {"user": None, "caller": "unknown", "identity_source": "none", "proven": True}
PERSON: dict[str, Any] = {"caller": "person", "identity_source": "serve_header", "proven": False}
SEEN = [
    {**PERSON, "user": "ana@example.com", "ip": "100.64.0.7"},
    {**PERSON, "user": "leo@example.com", "ip": "100.64.0.8"},
    {**PERSON, "user": "ana@example.com", "ip": "100.64.0.7"},
    {**NOBODY, "ip": NO_PROXY},
    {**NOBODY, "ip": "203.0.113.9"},
]


def recorded(route: str) -> dict[str, dict[str, Any]]:
    """What access-logs should show of each call, by its path."""
    found = {}
    for seen, (method, called, _, _, status) in zip(SEEN, CALLS, strict=True):
        path = called.partition("?")[0]
        endpoint = route if path.startswith("/prices/") else path
        own = {"path": path, "endpoint": endpoint, "method": method, "status": status}
        found[path] = {**seen, **own, "traffic": "api", "service": "heating", "environment": "prod"}
    return found


def visited(service: Service) -> None:
    service.start()
    assert [service.call(*call[:4]) for call in CALLS] == [call[4] for call in CALLS]


START: dict[str, Callable[[Path, str], Service]] = {"/prices/:day": express, "/prices/{day}": go}


@pytest.fixture(params=START, ids=lambda route: START[route].__name__)
def route(request: pytest.FixtureRequest) -> str:
    """Of /prices/7, as the framework calls it."""
    return str(request.param)


@pytest.fixture(params=["embedded", "pipeline"])
def ask(request: pytest.FixtureRequest, route: str, launch: Launch, tmp_path: Path) -> Iterator[httpx.Client]:
    """A server that knows all of that service's calls: sent straight to it, or through collector and InfluxDB."""
    settings = {"TAILSPAN_DB": str(tmp_path / "t.duckdb"), "TAILSPAN_LISTEN": "127.0.0.1:0", "TS_SOCKET": "/nowhere"}
    if request.param == "pipeline":
        influxd: Influxd = request.getfixturevalue("influxd")
        settings |= {"INFLUXDB_V2_URL": influxd.url, "INFLUXDB_V2_TOKEN": influxd.token}
    url = launch("tailspan", "serve", **settings).line().split()[3]
    way_in: str = request.getfixturevalue("collector").endpoint if request.param == "pipeline" else url
    known = span(1, ANA) | {key: str(time.time_ns()) for key in ("startTimeUnixNano", "endTimeUnixNano")}
    httpx.post(f"{way_in}/v1/traces", json=export(known, service="dashboard"), trust_env=False).raise_for_status()
    service = START[route](tmp_path, way_in)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        try:
            visited(service)
            until(lambda: len(logs_of(client)) == len(CALLS), "the calls are not all there", service.said)
            yield client
        finally:
            service.kill()


def logs_of(ask: httpx.Client) -> list[dict[str, Any]]:
    return list(ask.get("/analytics/access-logs?service=heating&traffic=api").json()["logs"])


def test_its_requests_are_recorded_with_route_status_latency_and_person(route: str, ask: httpx.Client) -> None:
    logs = logs_of(ask)
    wanted = recorded(route)
    assert {log["path"]: {key: log[key] for key in wanted["/slow"]} for log in logs} == wanted
    devices = {log["path"]: log["device"] for log in logs if log["device"]}
    assert devices == {"/prices/7": "ana-laptop", "/optimize": "ana-laptop"}  # another service told whose address it is
    [slow] = [log["response_time_ms"] for log in logs if log["endpoint"] == "/slow"]
    assert 150 <= slow < 5000


def test_it_appears_in_every_answer(route: str, ask: httpx.Client) -> None:
    def answer(question: str) -> dict[str, Any]:
        return dict(ask.get(f"/analytics/{question}{'&' if '?' in question else '?'}service=heating").json())

    summary = answer("access-logs")["summary"]
    assert {**summary, "avg_response_time_ms": 0} == {
        "total_requests": 3,
        "unique_users": 2,
        "unique_devices": 1,
        "avg_response_time_ms": 0,
    }
    assert [(one["email"], one["device"]) for one in answer("active")["active_users"]] == [
        ("ana@example.com", "ana-laptop"),
        ("leo@example.com", None),
    ]
    usage = answer("dashboard-usage")
    assert usage["api_calls_by_endpoint"] == [{"/optimize": 1}, {route: 1}, {"/slow": 1}]
    assert {one["user"]: one["favorite_features"] for one in usage["user_sessions"]} == {
        "ana@example.com": ["/optimize", route],
        "leo@example.com": ["/slow"],
    }
    health = answer("system-health-history")
    assert list(health["slowest_endpoints"][0]) == ["/slow"]
    assert health["error_rate"]["by_endpoint"]["/optimize"] == 1
    assert health["uptime_percentage"] is None  # it has no heartbeats
    counted = answer("query?metrics=requests,errors&dimensions=endpoint,person&traffic=api")["rows"]
    assert {(row["endpoint"], row["person"]): (row["requests"], row["errors"]) for row in counted} == {
        (route, "ana@example.com"): (1, 0),
        ("/slow", "leo@example.com"): (1, 0),
        ("/optimize", "ana@example.com"): (1, 1),
        (route, None): (1, 0),
        ("/nowhere/8", None): (1, 0),
    }


def test_the_documentation_shows_what_was_tested() -> None:
    shown = (ROOT / "docs/collector.md").read_text()
    assert f"```js\n{(EXPRESS / 'tracing.js').read_text()}```" in shown
    assert f"```go\n{(GO / 'tracing.go').read_text()}```" in shown


def test_spans_come_in_over_grpc_too(influxd: Influxd, collector: Collector, tmp_path: Path) -> None:
    service = express(tmp_path, f"http://127.0.0.1:{collector.grpc}", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    try:
        visited(service)
        until(lambda: influxd.count() >= len(CALLS), "the calls are not all there", service.said)
    finally:
        service.kill()
