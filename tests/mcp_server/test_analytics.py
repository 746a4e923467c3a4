"""Who, how much, how fast: the answers of tailspan as tools."""

from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.mcp_server.conftest import Tailspan, ask, refused
from tests.server.logs import combined, read, written
from tests.server.spans import ANA, LEO, beat, span

pytestmark = pytest.mark.anyio

CALL: Final = {**ANA, "tailspan.traffic": "api", "tailspan.page": None, "http.route": "/prices", "url.path": "/prices"}
SOURCES: Final = {"store": "ok", "settings": "ok"}
FIRST: Final = "2026-02-28T13:00:00+01:00"
NO_LOG: Final = "unknown: no log of a proxy was read of this time"


def about(start: str, first: str | None, newest: str = "2026-03-01T11:59:00.000Z", **changed: Any) -> dict[str, Any]:
    end = "2026-03-01T12:00:00.000Z"
    window = {"start": start, "end": end, "zone": "Europe/Madrid"}
    coverage = {"first_hour": first, "seen_by_proxy": NO_LOG}
    said = {"as_of": end, "window": window, "newest_request": newest, "coverage": coverage}
    return {**said, "sources": SOURCES, "gaps": [], **changed}


NOTHING: Final = "nothing fits the filters ({}): ask for them as dimensions to see which values there are"


def unrecorded(first: str) -> str:
    return f"no request is known from before {first}: what came earlier in this window was not recorded"


async def test_get_active_users_names_person_device_and_page(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), span(2, LEO, ago=130))
    async with tailspan.client() as client:
        told = await ask(client, "get_active_users")
    assert told.text == (
        "2 active: ana@example.com (ana-laptop) on /dashboard, leo@example.com (iPhone (?)) on /dashboard."
    )
    users = [
        ("ana@example.com", "ana-laptop", "1 min ago"),
        ("leo@example.com", "iPhone (?)", "2 min ago"),
    ]
    assert told.data == {
        "active_users": [
            {"email": who, "device": device, "last_seen": seen, "current_page": "/dashboard", "service": "dashboard"}
            for who, device, seen in users
        ],
        "total_active": 2,
        **about("2026-03-01T11:55:00.000Z", "2026-03-01T12:00:00+01:00"),
    }


async def test_get_usage_stats_tells_a_week(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=86400), span(2, CALL, ago=86340), span(3, CALL, ago=60), span(4, LEO, ago=120))
    async with tailspan.client(language="es") as client:
        told = await ask(client, "get_usage_stats")
    assert told.text == (
        "Últimos 7 días: 3 sesiones de 2 personas. Lo más usado: Prophet forecast (2 accesos). "
        "Quien más: ana@example.com, 2 sesiones."
    )
    days = {f"2026-02-{day}": 0 for day in range(22, 28)} | {"2026-02-28": 2, "2026-03-01": 2}
    assert told.data == {
        "period_days": 7,
        "total_sessions": 3,
        "unique_users": 2,
        "most_active_user": "ana@example.com",
        "top_features": ["Prophet forecast (2 accesos)"],
        "avg_session_duration_min": 0.3,
        "total_accesses": 4,
        "users": [{"user": "ana@example.com", "sessions": 2}, {"user": "leo@example.com", "sessions": 1}],
        "most_viewed_cards": [],
        "peak_hours": [{"hour": 12, "requests": 2}, {"hour": 13, "requests": 2}],
        "accesses_by_day": days,
        **about("2026-02-22T12:00:00.000Z", FIRST, gaps=[unrecorded(FIRST)]),
    }


async def test_get_system_performance_says_what_is_slow_how_usual_that_is_and_whom_it_hurt(tailspan: Tailspan) -> None:
    slow = {**CALL, "http.route": "/optimize", "url.path": "/optimize"}
    week, month = 86400 * 3, 86400 * 20
    tailspan.send(
        *(span(n, slow, ago=month + n * 90, took_ms=100) for n in range(1, 21)),
        *(span(n, slow, ago=week + n * 90, took_ms=100 + n) for n in range(21, 40)),
        span(40, {**slow, "user.name": "leo@example.com"}, ago=60, took_ms=892),
        span(41, {**slow, "user.name": "eva@example.com"}, ago=90, took_ms=891),
        span(42, {**CALL, "http.response.status_code": 500}, ago=100, took_ms=10),
        beat(99, length=86400),
    )
    async with tailspan.client() as client:
        told = await ask(client, "get_system_performance")
    assert told.text == (
        "100.0% up in 7 days. 194 ms on average. Slowest: /optimize, p95 891 ms (usually 100 ms), 21 calls: "
        "leo@example.com, eva@example.com. 4.55% errors."
    )
    assert told.data == {
        "uptime_last_7d": "100.0%",
        "avg_api_response_ms": 193.773,
        "slowest_endpoints": [{"/optimize": "891ms"}, {"/prices": "10ms"}],
        "error_rate": "4.55%",
        "influxdb_status": "not used",
        "store_status": "ok",
        "data_freshness": "1 min ago",
        "slow": [
            {
                "endpoint": "/optimize",
                "p95_ms": 891.0,
                "usual_p95_ms": 100.0,
                "calls": 21,
                "people": ["leo@example.com", "eva@example.com"],
            },
            {"endpoint": "/prices", "p95_ms": 10.0, "usual_p95_ms": None, "calls": 1, "people": ["ana@example.com"]},
        ],
        "errors": {"/prices": "100%"},
        **about("2026-02-22T12:00:00.000Z", "2026-02-26T12:00:00+01:00"),
    }


async def test_all_whom_a_slow_endpoint_hurt_are_counted_however_many(
    tailspan: Tailspan, monkeypatch: pytest.MonkeyPatch
) -> None:
    tailspan.send(*(span(n, {**CALL, "user.name": f"p{n:04}@example.com"}, ago=n) for n in range(1, 1201)))
    async with tailspan.client() as client:
        all_of_them = await ask(client, "get_system_performance")
        monkeypatch.setattr("tailspan_mcp.tools.analytics.GROUPS", 100)
        too_many = await ask(client, "get_system_performance")
    assert all_of_them.text.endswith("1200 calls: " + ", ".join(NAMES) + " and 1197 more. 0% errors.")
    [slow] = all_of_them.data["slow"]
    assert (slow["people"], slow["more_people"], all_of_them.data["gaps"][1:]) == (NAMES, 1197, [])
    assert too_many.data["gaps"][1:] == ["at least 100 callers are too many to count whom it hurt: /prices"]


NAMES: Final = [f"p{n:04}@example.com" for n in (1, 2, 3)]


async def test_query_usage_answers_what_nobody_foresaw(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), span(2, LEO, ago=130), span(3, CALL, ago=86400))
    async with tailspan.client() as client:
        told = await ask(
            client, "query_usage", metrics=["requests", "people"], dimensions=["day"], order=["day"], days=2
        )
        rows = await ask(client, "query_usage", ask="rows", filters={"user": ["leo@example.com"]})
    assert told.text == "2 rows, 2026-02-27T12:00:00.000Z to 2026-03-01T12:00:00.000Z."
    assert told.data == {
        "rows": [
            {"day": "2026-02-28", "requests": 1, "people": 1},
            {"day": "2026-03-01", "requests": 2, "people": 2},
        ],
        **about("2026-02-27T12:00:00.000Z", FIRST, gaps=[unrecorded(FIRST)]),
    }
    assert rows.data["rows"] == [
        {
            "timestamp": "2026-03-01T11:57:50.000Z",
            "user": "leo@example.com",
            "device": "iPhone (?)",
            "method": "GET",
            "endpoint": "/dashboard",
            "status": 200,
            "response_time_ms": 42.0,
            "traffic": "page",
            "page": "/dashboard",
            "service": "dashboard",
        }
    ]


@pytest.mark.parametrize("tool", ["get_active_users", "get_usage_stats", "get_system_performance", "query_usage"])
async def test_before_the_first_request_there_is_an_error_and_no_zeros(tailspan: Tailspan, tool: str) -> None:
    async with tailspan.client() as client:
        said = await refused(client, tool, **({"metrics": ["requests"]} if tool == "query_usage" else {}))
    assert "There is no answer" in said and "instrument(app)" in said


async def test_what_is_wrong_with_a_source_is_a_stated_gap(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), beat(2, ago=600, dropped=3))
    tailspan.send(beat(3, ago=600, stopped=True), service="heating")
    file = tailspan.store.path.parent / "settings.toml"
    file.write_text("zone = 'Nowhere'")
    async with tailspan.client() as client:
        told = await ask(client, "get_active_users")
    assert told.data["sources"] == {"store": "ok", "settings": "ignored"}
    assert told.data["gaps"] == [
        f"settings: {file}, line 1: zone is 'Nowhere'. It is an IANA name such as \"Europe/Madrid\". "
        "Until then its last good content holds.",
        "dashboard has been silent since 2026-03-01T11:50:00.000Z",
        "dashboard lost 3 requests in 24 h before they were recorded",
    ]


EVERY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("get_active_users", {"service": "SERVICE"}),
    ("get_usage_stats", {"service": "SERVICE"}),
    ("get_system_performance", {"service": "SERVICE"}),
    ("query_usage", {"metrics": ["requests"], "filters": {"service": ["SERVICE"]}}),
    ("query_usage", {"ask": "sessions", "filters": {"service": ["SERVICE"]}}),
)


def of_service(arguments: dict[str, Any], service: str) -> dict[str, Any]:
    if "service" in arguments:
        return {"service": service}
    return arguments | {"filters": {"service": [service]}}


@pytest.mark.parametrize(("tool", "arguments"), EVERY)
async def test_of_a_service_that_told_of_nothing_there_is_an_error_and_no_zeros(
    tailspan: Tailspan, tool: str, arguments: dict[str, Any]
) -> None:
    tailspan.send(span(1, ago=60))
    tailspan.send(beat(2), service="heating")
    async with tailspan.client() as client:
        unknown = await refused(client, tool, **of_service(arguments, "dashbord"))
        mute = await refused(client, tool, **of_service(arguments, "heating"))
    assert unknown.endswith("no service 'dashbord' was ever heard of. There is: dashboard, heating.")
    assert mute.endswith("no request of heating has ever arrived. `tailspan doctor` says why.")


@pytest.mark.parametrize(("tool", "arguments"), EVERY)
async def test_a_service_that_fell_silent_is_a_stated_gap_with_its_own_newest_request(
    tailspan: Tailspan, tool: str, arguments: dict[str, Any]
) -> None:
    tailspan.send(span(1, ago=60), beat(2, ago=600))
    tailspan.send(span(3, ago=86400 * 9), beat(4, ago=86400 * 9), service="heating")
    async with tailspan.client() as client:
        told = await ask(client, tool, **of_service(arguments, "heating"))
    assert told.data["newest_request"] == "2026-02-20T12:00:00.000Z"
    assert told.data["coverage"]["first_hour"] is None
    assert told.data["gaps"] == [
        "no request at all of heating came in this window: the newest is of 2026-02-20T12:00:00.000Z",
        "heating has been silent since 2026-02-20T12:00:00.000Z",
        *([] if tool != "query_usage" else [NOTHING.format("service")]),
    ]


async def test_names_that_nobody_ever_heard_of_are_told_beside_those_that_are_known(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), environment="production")
    async with tailspan.client() as client:
        told = await ask(client, "query_usage", metrics=["requests"], filters={"service": ["dashboard", "dashbord"]})
        missing = await refused(client, "query_usage", metrics=["requests"], filters={"environment": ["prod"]})
        without = await refused(client, "query_usage", metrics=["requests"], without={"service": ["dashboard"]})
        nobody = await ask(client, "query_usage", metrics=["requests"], filters={"user": ["anna@example.com"]})
    assert told.data["rows"] == [{"requests": 1}]
    assert told.data["gaps"][0] == "no service 'dashbord' was ever heard of. There is: dashboard."
    assert missing.endswith("no environment 'prod' was ever heard of. There is: production.")
    assert without.endswith("no request of what is asked for has ever arrived. `tailspan doctor` says why.")
    assert (nobody.data["rows"], nobody.data["gaps"][-1]) == ([{"requests": 0}], NOTHING.format("user"))


async def test_a_window_before_any_data_says_so_and_as_of_is_when_it_was_answered(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60))
    async with tailspan.client() as client:
        told = await ask(client, "query_usage", metrics=["requests"], start="2026-01-01", end="2026-02-01")
    assert told.text == "requests: 0 (2025-12-31T23:00:00.000Z to 2026-01-31T23:00:00.000Z)."
    assert told.data == {
        "rows": [{"requests": 0}],
        **about("2025-12-31T23:00:00.000Z", None),
        "window": {"start": "2025-12-31T23:00:00.000Z", "end": "2026-01-31T23:00:00.000Z", "zone": "Europe/Madrid"},
        "gaps": ["no request at all came in this window: the newest is of 2026-03-01T11:59:00.000Z"],
    }


async def test_a_window_that_begins_before_the_data_says_where_it_begins(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), span(2, ago=86400 * 3))
    tailspan.send(span(3, ago=60), span(4, ago=86400 * 20), service="heating")
    async with tailspan.client() as client:
        young = await ask(client, "get_usage_stats", service="dashboard")
        idle = await ask(client, "get_usage_stats", service="heating")
    assert young.data["gaps"] == [
        "no request of dashboard is known from before 2026-02-26T13:00:00+01:00: what came earlier in this window was "
        "not recorded"
    ]
    assert (idle.data["coverage"]["first_hour"], idle.data["gaps"]) == ("2026-03-01T12:00:00+01:00", [])


async def test_a_past_silence_is_no_gap_of_a_window_after_which_it_began(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60), span(2, ago=86400 * 3), beat(3, ago=3600))
    async with tailspan.client() as client:
        before = await ask(client, "query_usage", metrics=["requests"], start="2026-02-26", end="2026-02-27")
        now = await ask(client, "query_usage", metrics=["requests"])
    assert before.data["gaps"] == []
    assert now.data["gaps"][-1] == "dashboard has been silent since 2026-03-01T11:00:00.000Z"


async def test_what_a_proxy_saw_and_its_service_told_of_is_the_coverage(tailspan: Tailspan, tmp_path: Path) -> None:
    tailspan.send(span(1, ago=60), span(2, CALL, ago=3600))
    log = written(tmp_path / "access.log", combined(), combined(at="01/Mar/2026:11:00:01 +0000"))
    with TestClient(tailspan.app, "http://127.0.0.1:8100", client=("127.0.0.1", 5)) as reading:
        read(reading, log)
    async with tailspan.client() as client:
        day = await ask(client, "query_usage", metrics=["requests"], days=1)
        now = await ask(client, "get_active_users")
        before = await ask(client, "query_usage", metrics=["requests"], start="2026-02-28", end="2026-03-01")
    assert day.data["coverage"]["seen_by_proxy"] == {"dashboard": "50.0% of 2"}
    assert now.data["coverage"]["seen_by_proxy"] == {"dashboard": "50.0% of 2"}  # of the hours that the window touches
    assert before.data["coverage"]["seen_by_proxy"] == NO_LOG


async def test_a_window_in_which_nothing_came_says_so(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=86400 * 9))
    async with tailspan.client() as client:
        told = await ask(client, "get_usage_stats")
    assert told.text == "Nobody used it in the last 7 days."
    assert told.data["gaps"] == ["no request at all came in this window: the newest is of 2026-02-20T12:00:00.000Z"]


async def test_a_wrong_argument_is_named_with_its_rule(tailspan: Tailspan) -> None:
    async with tailspan.client() as client:
        said = await refused(client, "query_usage", metrics=["request"])
        assert "'request' is no metric. A metric is one of: requests, accesses" in said
        assert said.endswith("Did you mean 'requests'?")
        assert "less than or equal to 30" in await refused(client, "get_usage_stats", days=31)


async def test_a_server_of_another_version_is_told(tailspan: Tailspan) -> None:
    other = FastAPI()
    other.get("/analytics/active")(lambda: {"active_users": [], "sources": [{"state": "ok"}]})
    tailspan.app = other
    async with tailspan.client() as client:
        assert "tailspan and tailspan-mcp are of different versions" in await refused(client, "get_active_users")
