"""Who uses the services, how much, and how fast: tailspan's own answers."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult
from pydantic import Field

from tailspan_mcp.answers import answer
from tailspan_mcp.shapes import ActiveUsers, SystemPerformance, UsageStats
from tailspan_mcp.sources import about
from tailspan_mcp.tools import reading
from tailspan_mcp.upstream import Upstream
from tailspan_mcp.words import Words

PEOPLE: Final = 15  # active people shown
TOP: Final = 5
NAMED: Final = 3  # in a sentence
GROUPS: Final = 10_000  # that an aggregate has at most
USUAL: Final = timedelta(days=28)  # before the window: what is usual is seen there

Service = Annotated[str | None, Field(description="Only this service.")]
Days = Annotated[int, Field(ge=1, le=30)]
Names = list[str]
Values = dict[str, list[str]]


def tools(server: Upstream, words: Words) -> list[Tool]:
    own = Analytics(server, words)
    return [reading(one) for one in (own.get_active_users, own.get_usage_stats, own.get_system_performance)]


class Analytics:
    """Each method is a tool: its name, its docstring and its parameters are what a client sees."""

    def __init__(self, server: Upstream, words: Words) -> None:
        self.server, self.words = server, words

    async def get_active_users(self, service: Service = None) -> Annotated[CallToolResult, ActiveUsers]:
        """Who is using the services now (last 5 minutes): person, device, page."""
        found = await self.server.get("/analytics/active", service=service)
        content = await about(self.server, found, _only(service))
        users, total = found["active_users"], found["total_active"]
        shown = [
            {key: user[key] for key in ("email", "device", "last_seen", "current_page", "service")} for user in users
        ]
        return answer(
            _who(self.words, users, total), {**_first("active_users", shown, PEOPLE), "total_active": total, **content}
        )

    async def get_usage_stats(self, days: Days = 7, service: Service = None) -> Annotated[CallToolResult, UsageStats]:
        """How much people used the services: sessions, people, features, accesses by day."""
        found = await self.server.get("/analytics/dashboard-usage", days=days, service=service)
        content, summary = await about(self.server, found, _only(service)), found["summary"]
        features = [self.words("uses", feature=one["feature"], count=one["uses"]) for one in found["top_features"]]
        people = [{"user": user["user"], "sessions": user["sessions"]} for user in found["user_sessions"]]
        text = _usage(self.words, summary, features, people)
        return answer(
            text,
            {
                "period_days": summary["period_days"],
                "total_sessions": summary["total_sessions"],
                "unique_users": summary["unique_users"],
                "most_active_user": summary["most_active_user"],
                **_first("top_features", features, TOP, found["more"].get("top_features", 0)),
                "avg_session_duration_min": summary["avg_session_duration_min"],
                "total_accesses": summary["total_accesses"],
                **_first("users", people, TOP, found["more"].get("user_sessions", 0)),
                **_first(
                    "most_viewed_cards", found["most_viewed_cards"], TOP, found["more"].get("most_viewed_cards", 0)
                ),
                "peak_hours": found["peak_hours"][:NAMED],
                "accesses_by_day": {one["day"]: one["accesses"] for one in found["accesses_by_day"]},
                **content,
            },
        )

    async def get_system_performance(self, service: Service = None) -> Annotated[CallToolResult, SystemPerformance]:
        """Uptime, response times and errors of 7 days; for the slowest endpoints p95, usual p95, and whom it hurt."""
        found = await self.server.get("/analytics/system-health-history", days=7, service=service)
        content = await about(self.server, found, _only(service))
        slow, uncounted = await _slow(self.server, found, service)
        content["gaps"] += uncounted
        return answer(
            _performance(self.words, found, slow),
            {
                "uptime_last_7d": found["uptime_last_7d"],
                "avg_api_response_ms": found["avg_api_response_ms"],
                "slowest_endpoints": found["slowest_endpoints"],
                "error_rate": _percent(found["error_rate"]["overall"]),
                "influxdb_status": found["influxdb_status"],
                "store_status": found["store_status"],
                "data_freshness": found["data_freshness"],
                "slow": slow,
                "errors": _failing(found["error_rate"]["by_endpoint"]),
                **content,
            },
        )


def _only(service: str | None) -> Values:
    return {"service": [service]} if service else {}


def _first(name: str, entries: list[Any], count: int, beyond: int = 0) -> dict[str, Any]:
    """The first entries under this name, and beside them how many more there are."""
    more = max(0, len(entries) - count) + beyond
    return {name: entries[:count], **({f"more_{name}": more} if more else {})}


def _who(words: Words, users: list[dict[str, Any]], total: int) -> str:
    if not users:
        return words("nobody")
    people = [_at(words, user) for user in users]
    return words("active", count=total, who=words.first(people, NAMED, total))


def _at(words: Words, user: dict[str, Any]) -> str:
    device = f" ({user['device']})" if user["device"] else ""
    page = f" {words('on')} {user['current_page']}" if user["current_page"] else ""
    return f"{user['email']}{device}{page}"


def _usage(words: Words, summary: dict[str, Any], features: list[str], people: list[dict[str, Any]]) -> str:
    days, sessions = summary["period_days"], summary["total_sessions"]
    if not sessions:
        return words("unused", days=days)
    said = [words("usage", days=days, sessions=sessions, people=summary["unique_users"])]
    if features:
        said.append(words("most_used", features=words.first(features, NAMED)))
    if people:
        said.append(words("most_active", who=people[0]["user"], sessions=people[0]["sessions"]))
    return " ".join(said)


async def _slow(server: Upstream, found: dict[str, Any], service: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Of each of the slowest endpoints: p95, p95 of the four weeks before, calls, and whose calls were that slow.

    And what is not known of that.
    """
    endpoints = [name for one in found["slowest_endpoints"] for name in one]
    if not endpoints:
        return [], []
    filters = {"endpoint": endpoints, "traffic": ["api"], "caller": ["person", "shared"], **_only(service)}
    start = datetime.fromisoformat(found["start"])
    before = {"start": (start - USUAL).isoformat(), "end": start.isoformat()}
    usual, _ = await _groups(server, filters, ["p95_ms"], ["endpoint"], **before)
    times, _ = await _groups(server, filters, ["p95_ms", "requests"], ["endpoint"], start=found["start"])
    callers, left = await _groups(server, filters, ["max_ms"], ["endpoint", "person"], start=found["start"])
    usually = {row["endpoint"]: row["p95_ms"] for row in usual}
    slow = [_of_endpoint(row, usually.get(row["endpoint"]), callers) for row in times]
    return slow, _uncounted(slow, callers, left)


def _uncounted(slow: list[dict[str, Any]], callers: list[dict[str, Any]], left: int) -> list[str]:
    """The endpoints that hurt more people than an aggregate names: nobody left out was slower than the last one."""
    last_ms = (callers[-1]["max_ms"] or 0) if left else 0
    cut = [one["endpoint"] for one in slow if left and last_ms >= one["p95_ms"]]
    return [f"at least {len(callers)} callers are too many to count whom it hurt: {', '.join(cut)}"] if cut else []


async def _groups(
    server: Upstream, filters: Values, metrics: Names, dimensions: Names, **window: str
) -> tuple[list[dict[str, Any]], int]:
    """Those of the largest values, and how many there are beyond."""
    asked = {"metrics": metrics, "dimensions": dimensions, "filters": filters, "limit": GROUPS, **window}
    found = await server.ask("POST", "/analytics/query", {}, asked)
    return found["rows"], found["more"]


def _of_endpoint(times: dict[str, Any], usual: float | None, callers: list[dict[str, Any]]) -> dict[str, Any]:
    name, p95_ms = times["endpoint"], times["p95_ms"]
    slow = [row for row in callers if row["endpoint"] == name and row["person"] and (row["max_ms"] or 0) >= p95_ms]
    people = _first("people", [row["person"] for row in slow], NAMED)
    return {"endpoint": name, "p95_ms": p95_ms, "usual_p95_ms": usual, "calls": times["requests"], **people}


def _performance(words: Words, found: dict[str, Any], slow: list[dict[str, Any]]) -> str:
    up, mean = found["uptime_last_7d"], found["avg_api_response_ms"]
    said = [words("up", share=words.number(up)) if up else words("up_unknown")]
    said.append(words("no_calls") if mean is None else words("mean", ms=f"{mean:.0f} ms"))
    if slow:
        one = slow[0]
        usual = words("usual", p95=f"{one['usual_p95_ms']:.0f} ms") if one["usual_p95_ms"] is not None else ""
        people = one["people"]
        who = f": {words.first(people, NAMED, len(people) + one.get('more_people', 0))}" if people else ""
        times = {"p95": f"{one['p95_ms']:.0f} ms", "usual": usual, "calls": one["calls"], "who": who}
        said.append(words("slow", endpoint=one["endpoint"], **times))
    if share := _percent(found["error_rate"]["overall"]):
        said.append(words("errors", share=words.number(share)))
    return " ".join(said)


def _failing(by_endpoint: dict[str, float]) -> dict[str, str]:
    """The endpoints with the largest shares of errors."""
    worst = sorted((-share, name) for name, share in by_endpoint.items() if share)
    return {name: str(_percent(-share)) for share, name in worst[:TOP]}


def _percent(share: float | None) -> str | None:
    """As in "0.02%"; never "0%" for what is more."""
    if share is None:
        return None
    if 0 < share < 0.0001:
        return "<0.01%"
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"
