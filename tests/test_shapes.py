"""Whole answers in the promised shapes, about visitors whose every step is known: real requests, each part a process.

Ana, Zoe and Eva open the page, Leo has it cached. Eva's tab polls on; after that Ana optimises, Leo looks at the
forecast and Zoe at the optimal windows, twice. A tagged node calls, and somebody forges. Then the service stops.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tailspan.demo.localapi import LocalAPI
from tailspan.demo.service import CALLS, OPTIMISING_S, POLLED
from tailspan.demo.visitors import ANA, EVA, FORGED, LEO, RUNNER, ZOE, Browser
from tests.conftest import launching

Json = dict[str, Any]
GAP_S: Final = 2.2  # of the polling tab: even gaps are what makes it one; two are shorter than a page's load
DASHBOARD: Final = "/dashboard"
FORECAST: Final = "/predict/prices/weekly"
OPTIMISE: Final = "/optimize/production/daily"
SAVINGS: Final = "/insights/savings-tracking"
WINDOWS: Final = "/insights/optimal-windows"
SETTINGS: Final = f"""
[features.routes]
"{FORECAST}" = "Prophet forecast"
"{OPTIMISE}" = "Daily plan"
"{WINDOWS}" = "Optimal windows"
"""


def node(name: str | None, device_id: str | None, ip: str, **more: str | None) -> Json:
    nobody = {"user": None, "full_name": None, "tags": None, "device_guess": None, "claim": None, "proven": True}
    return {**nobody, "device": name, "device_id": device_id, "ip": ip, **more}


def person(login: str, full_name: str, *device: str) -> Json:
    return node(*device, user=login, full_name=full_name, caller="person", identity_source="serve_header")


ana = person("ana@example.com", "Ana Ruiz", "ana-laptop", "TESTCTRL00000007", "100.64.0.7")
leo = person("leo@example.com", "Leo Sanz", "iphone", "TESTCTRL00000008", "100.64.0.8")
zoe = person("zoe@example.com", "Zoë Müller 漢字", "zoe-phone", "TESTCTRL00000003", "100.64.0.3")
eva = person("eva@example.com", "Eva Prat", "eva-desktop", "TESTCTRL00000009", "100.64.0.9")
runner = node("ci-runner", "TESTCTRL00000004", "100.64.0.4", tags="tag:ci", caller="tagged", identity_source="whois")
forger = node(None, None, "127.0.0.2", caller="unknown", identity_source="none")


def request(who: Json, endpoint: str, method: str = "GET", traffic: str = "api", page: str | None = DASHBOARD) -> Json:
    of = {"service": "factory", "environment": None, "source": "live"}
    did = {"method": method, "endpoint": endpoint, "path": endpoint, "status": 200, "traffic": traffic, "page": page}
    return {**who, **of, **did}


REQUESTS: Final = [
    *(request(who, path.partition("?")[0]) for who in (ana, leo, zoe, eva) for path in CALLS),
    *(request(who, DASHBOARD, traffic="page") for who in (ana, zoe, eva)),
    *(request(eva, POLLED, traffic=traffic) for traffic in ("api", "api", "api", "poll", "poll", "poll")),
    request(ana, OPTIMISE, "POST"),
    request(leo, FORECAST),
    request(zoe, WINDOWS),
    request(zoe, WINDOWS),
    request(runner, OPTIMISE, "POST", page=None),
    request(forger, SAVINGS, page=None),
]


async def visit(socket: Path, service: str) -> None:
    """All of it, in this order: what people ask for after Eva's polls is no part of a page's load any more."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as serve:
        laptop, phone, traveller, tab = (Browser(serve, visitor, DASHBOARD) for visitor in (ANA, LEO, ZOE, EVA))
        await phone.load()
        for browser in (laptop, traveller, tab):
            await browser.open(DASHBOARD)
        due = time.monotonic()
        for _ in range(6):
            await asyncio.sleep(due - time.monotonic())  # a poller does nothing else
            await tab.call("GET", POLLED)
            due += GAP_S
        await laptop.call("POST", f"{OPTIMISE}?target_kg=200")
        await phone.call("GET", FORECAST)
        await traveller.call("GET", f"{WINDOWS}?days=3")
        await traveller.call("GET", f"{WINDOWS}?days=3")
        await Browser(serve, RUNNER).call("POST", f"{OPTIMISE}?target_kg=100")
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(transport=transport, base_url=service) as past_serve:
        await Browser(past_serve, FORGED).call("GET", SAVINGS)


@dataclass
class Visited:
    """A server that has it all. `logs` are its rows as it tells them: where times are compared, these are."""

    client: httpx.Client
    folder: Path
    start: datetime  # of the service
    stop: datetime
    logs: list[Json] = field(default_factory=list)

    def ask(self, path: str, **parameters: str | int) -> Json:
        """The answer without its sources, which are compared here: they are the same in every answer."""
        answer = self.client.get(f"/analytics/{path}", params={"service": "factory", **parameters})
        assert answer.status_code == 200, answer.text
        content: Json = answer.json()
        if "end" in content:  # of what was asked just now; everything happened before
            length = {"days": 7} if "days" in parameters else {"minutes": 5}
            start, end = moment(content.pop("start")), moment(content.pop("end"))
            assert end - start == timedelta(**length) and self.stop - timedelta(seconds=1) <= end <= now()
        store, settings = content.pop("sources")
        factory, own = store.pop("services")
        assert (own["service"], own["stopped"], list(own)) == ("tailspan", False, list(factory))
        newest = self.logs[0]["timestamp"]
        assert self.start <= moment(newest) <= moment(factory.pop("last_heartbeat")) <= self.stop
        assert factory == {
            "service": "factory",
            "environment": None,
            "last_request": newest,
            "stopped": True,
            "forged": 1,
            "forged_kinds": {"untrusted": 1},
            "unproven": 0,
            "dropped": 0,
            "open_requests": 0,
        }
        message = f"The database {self.folder / 't.duckdb'} answers."
        assert store == {"name": "store", "state": "ok", "message": message, "newest": newest}
        message = f"The settings {self.folder / 'settings.toml'} are read."
        assert settings == {"name": "settings", "state": "ok", "message": message, "newest": None, "services": []}
        return content

    def of(self, who: Json, *traffic: str) -> list[Json]:
        """A person's rows, newest first."""
        return [log for log in self.logs if log["user"] == who["user"] and log["traffic"] in traffic]

    @property
    def accesses(self) -> list[Json]:
        """Three pages, and the last four calls of people."""
        calls = [log for log in self.logs if log["user"] and log["traffic"] == "api"]
        return [*calls[:4], *(log for log in self.logs if log["traffic"] == "page")]

    def seconds(self, who: Json) -> float:
        """From the person's first activity to the last."""
        newest, *_, oldest = self.of(who, "page", "api")
        return (moment(newest["timestamp"]) - moment(oldest["timestamp"])).total_seconds()

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while len(self.logs) < len(REQUESTS) or not self.stopped():
            assert time.monotonic() < deadline, self.logs
            self.logs = self.client.get("/analytics/access-logs?service=factory").json()["logs"]

    def stopped(self) -> bool:
        [store, _] = self.client.get("/analytics/active").json()["sources"]
        return bool(store["services"][0]["stopped"])


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    folder = tmp_path_factory.mktemp("visited")
    (folder / "settings.toml").write_text(SETTINGS)
    socket, tailscaled = folder / "factory.sock", folder / "tailscaled.sock"
    with launching() as launch, LocalAPI(tailscaled):
        settings = {"DB": str(folder / "t.duckdb"), "SETTINGS": str(folder / "settings.toml"), "LISTEN": "127.0.0.1:0"}
        server = launch(
            "tailspan", "serve", TS_SOCKET="/nowhere", **{f"TAILSPAN_{key}": settings[key] for key in settings}
        )
        url = server.line().split()[3]
        service = launch("tailspan.demo.service", socket, TS_SOCKET=str(tailscaled), OTEL_EXPORTER_OTLP_ENDPOINT=url)
        port, start = service.line().strip(), now()
        asyncio.run(visit(socket, port))
        assert service.end() == (0, "", "")
        with httpx.Client(base_url=url) as client:
            visited = Visited(client, folder, start, now())
            visited.wait()
            yield visited


def now() -> datetime:
    """In whole milliseconds, rounded down as in an answer."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def week() -> list[str]:
    """The days of seven times 24 hours: the first is cut."""
    today = now().date()
    return [str(today - timedelta(days=days)) for days in range(7, -1, -1)]


def in_order(rows: list[Json]) -> list[Json]:
    """A page's calls come all at once: in an order of their own."""
    return sorted(rows, key=lambda row: (row["ip"], row["endpoint"], row["traffic"]))


def untimed(visited: Visited, rows: list[Json]) -> list[Json]:
    """The rows without what differs each time, which has its form and bounds."""
    left = [dict(row) for row in rows]
    began = [moment(row.pop("timestamp")) for row in left]
    assert visited.start <= began[-1] and began[0] <= visited.stop and began == sorted(began, reverse=True)
    for row in left:
        least = OPTIMISING_S * 1000 if row["endpoint"] == OPTIMISE else 0
        assert least < row.pop("response_time_ms") < least + 5000
    ids = {(bytes.fromhex(row.pop("trace_id")), bytes.fromhex(row.pop("span_id"))) for row in left}
    assert (len(ids), {tuple(map(len, pair)) for pair in ids}) == (len(rows), {(16, 8)})
    return left


def test_access_logs_has_a_row_for_every_request_and_counts_peoples(visited: Visited) -> None:
    answer = visited.ask("access-logs", hours=24)
    logs = answer.pop("logs")
    assert in_order(untimed(visited, logs)) == in_order(REQUESTS)
    of_people = [log["response_time_ms"] for log in logs if log["user"]]
    assert answer == {
        "summary": {
            "total_requests": 37,
            "unique_users": 4,
            "unique_devices": 4,
            "avg_response_time_ms": pytest.approx(sum(of_people) / 37, abs=0.002),
        },
        "next_cursor": None,
    }


def test_dashboard_usage_has_sessions_accesses_features_and_calls(visited: Visited) -> None:
    days = Counter(log["timestamp"][:10] for log in visited.accesses)
    hours = Counter(moment(log["timestamp"]).hour for log in visited.accesses)
    busiest = sorted(hours, key=lambda hour: (-hours[hour], hour))
    liked = {"ana": ["Daily plan"], "eva": [], "leo": ["Prophet forecast"], "zoe": ["Optimal windows"]}
    spent = {name: visited.seconds(who) for name, who in (("ana", ana), ("eva", eva), ("leo", leo), ("zoe", zoe))}
    assert visited.ask("dashboard-usage", days=7) == {
        "most_viewed_cards": [],
        "peak_hours": [{"hour": hour, "requests": hours[hour]} for hour in busiest],
        "user_sessions": [
            {
                "user": f"{name}@example.com",
                "sessions": 1,
                "total_time_hours": pytest.approx(spent[name] / 3600, abs=0.00501),
                "favorite_features": liked[name],
            }
            for name in liked
        ],
        "api_calls_by_endpoint": [
            {POLLED: 7},
            {WINDOWS: 6},
            {FORECAST: 5},
            {"/insights/alerts": 4},
            {SAVINGS: 4},
            {"/weather/current": 4},
            {OPTIMISE: 1},
        ],
        "polls_by_endpoint": [{POLLED: 3}],
        "top_features": [
            {"feature": "Optimal windows", "uses": 2},
            {"feature": "Daily plan", "uses": 1},
            {"feature": "Prophet forecast", "uses": 1},
        ],
        "accesses_by_day": [{"day": day, "accesses": days[day]} for day in week()],
        "summary": {
            "period_days": 7,
            "total_sessions": 4,
            "unique_users": 4,
            "total_accesses": 7,
            "total_time_hours": pytest.approx(sum(spent.values()) / 3600, abs=0.00501),
            "avg_session_duration_min": pytest.approx(sum(spent.values()) / 4 / 60, abs=0.0501),
            "most_active_user": "ana@example.com",
        },
        "active_users": visited.ask("active")["active_users"],
        "total_active": 4,
        "more": {},
        "zone": "UTC",
    }


def test_system_health_history_has_uptime_times_errors_and_days(visited: Visited) -> None:
    answer = visited.ask("system-health-history", days=7)
    asking = answer.pop("store_query_times")
    assert list(asking) == ["mean_ms", "max_ms"] and 0 < asking["mean_ms"] <= asking["max_ms"]
    calls, on_day = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for log in visited.logs:
        if log["user"] and log["traffic"] == "api":
            calls[log["endpoint"]].append(log["response_time_ms"])
            on_day[log["timestamp"][:10]].append(log["response_time_ms"])
    slowest = [
        (endpoint, float(text.removesuffix("ms")))
        for [(endpoint, text)] in map(dict.items, answer.pop("slowest_endpoints"))
    ]
    assert slowest[0][0] == OPTIMISE
    assert [max(calls[endpoint]) for endpoint, _ in slowest] == sorted(map(max, calls.values()), reverse=True)[:5]
    assert [ms for _, ms in slowest] == pytest.approx([max(calls[endpoint]) for endpoint, _ in slowest], abs=0.501)

    up = pytest.approx((visited.stop - visited.start).total_seconds() / 3600, abs=0.0015)
    days = Counter(log["timestamp"][:10] for log in visited.logs)
    assert answer == {
        "uptime_percentage": 100.0,
        "uptime_last_7d": "100.0%",
        "uptime_by_service": [
            {
                "service": "factory",
                "environment": None,
                "uptime_percentage": 100.0,
                "up_hours": up,
                "down_hours": 0.0,
                "off_hours": pytest.approx(0, abs=0.01),
                "host_off_hours": 0.0,
                "before_hours": pytest.approx(7 * 24, abs=0.02),
                "pending_hours": 0.0,
            }
        ],
        "avg_api_response_ms": mean([ms for times in calls.values() for ms in times]),
        "api_response_times": {endpoint: response_times(times) for endpoint, times in calls.items()},
        "error_rate": {"overall": 0.0, "by_endpoint": dict.fromkeys([*calls, DASHBOARD], 0.0)},
        "data_freshness": "just now",
        "influxdb_status": "not used",
        "influxdb_query_times": None,
        "store_status": "ok",
        "history": [
            {
                "day": day,
                "uptime_percentage": 100.0 if days[day] else None,
                "requests": days[day],
                "errors": 0,
                "error_rate": 0.0 if days[day] else None,
                "avg_api_response_ms": mean(on_day[day]),
            }
            for day in week()
        ],
        "more": {},
        "zone": "UTC",
    }


def response_times(times: list[float]) -> Json:
    """Of fewer than 20 calls, the 95th percentile is the slowest."""
    last, middle = max(times), sorted(times)[(len(times) - 1) // 2]
    percentiles = {"p50_ms": middle, "p95_ms": last, "p99_ms": last}
    return {"calls": len(times), "mean_ms": mean(times), **percentiles, "max_ms": last}


def mean(times: list[float]) -> Any:
    return pytest.approx(sum(times) / len(times), abs=0.002) if times else None


def test_active_has_who_last_did_something_first(visited: Visited) -> None:
    assert visited.ask("active") == {
        "active_users": [
            {
                "email": who["user"],
                "device": who["device"],
                "last_seen": "just now",
                "last_seen_at": visited.of(who, "page", "api")[0]["timestamp"],
                "current_page": DASHBOARD,
                "full_name": who["full_name"],
                "service": "factory",
                "device_guess": None,
            }
            for who in (zoe, leo, ana, eva)
        ],
        "total_active": 4,
        "zone": "UTC",
    }


def query(visited: Visited, **question: str | int) -> Json:
    """The answer of an hour, whose times are checked and gone."""
    answer = visited.ask("query", hours=1, **question)
    start, end = (moment(answer["question"].pop(name)) for name in ("start", "end"))
    assert end - start == timedelta(hours=1) and visited.stop <= end <= now()
    assert moment(answer.pop("as_of")) == end
    return answer


QUESTION: Final = {
    "metrics": [],
    "dimensions": [],
    "order": [],
    "filters": {"service": ["factory"]},
    "without": {},
    "zone": "UTC",
    "limit": 100,
}


def test_an_aggregate_has_a_row_for_each_group(visited: Visited) -> None:
    metrics, dimensions = ["requests", "people", "devices", "error_rate"], ["caller", "traffic"]
    rows = [
        ("person", "api", 31, 4, 4, 0.0),
        ("person", "page", 3, 3, 3, 0.0),
        ("person", "poll", 3, 1, 1, 0.0),
        ("tagged", "api", 1, 0, 1, 0.0),
        ("unknown", "api", 1, 0, 0, 0.0),
    ]
    assert query(visited, metrics=",".join(metrics), dimensions=",".join(dimensions)) == {
        "question": {**QUESTION, "ask": "aggregate", "metrics": metrics, "dimensions": dimensions},
        "rows": [dict(zip([*dimensions, *metrics], row, strict=True)) for row in rows],
        "more": 0,
        "next_cursor": None,
    }


def test_rows_are_those_of_access_logs(visited: Visited) -> None:
    answer = query(visited, ask="rows", traffic="page")
    assert untimed(visited, answer["rows"]) == [request(who, DASHBOARD, traffic="page") for who in (eva, zoe, ana)]
    assert answer == {
        "question": {**QUESTION, "ask": "rows", "filters": {"service": ["factory"], "traffic": ["page"]}},
        "rows": [log for log in visited.logs if log["traffic"] == "page"],
        "more": None,
        "next_cursor": None,
    }


def test_sessions_are_from_the_first_activity_to_the_last(visited: Visited) -> None:
    assert query(visited, ask="sessions") == {
        "question": {**QUESTION, "ask": "sessions"},
        "rows": [
            {
                "person": who["user"],
                "service": "factory",
                "environment": None,
                "start": visited.of(who, "page", "api")[-1]["timestamp"],
                "end": visited.of(who, "page", "api")[0]["timestamp"],
                "duration_s": pytest.approx(visited.seconds(who), abs=0.002),
                "requests": activities,
                "first_page": DASHBOARD,
                "last_page": DASHBOARD,
            }
            for who, activities in ((eva, 10), (zoe, 9), (ana, 8), (leo, 7))
        ],
        "more": None,
        "next_cursor": None,
    }
