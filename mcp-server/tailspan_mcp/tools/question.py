"""Any question that tailspan's grammar has: what no other tool was made for."""

from typing import Annotated, Any, Final, Literal

from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult
from pydantic import Field

from tailspan_mcp.answers import answer, fit
from tailspan_mcp.sources import about
from tailspan_mcp.tools import reading
from tailspan_mcp.upstream import Upstream
from tailspan_mcp.words import Words

ROW: Final = (
    *("timestamp", "user", "device", "method", "endpoint", "status", "response_time_ms", "traffic", "page", "service"),
)

Names = list[str]
Values = dict[str, list[str]]


def tools(server: Upstream, words: Words) -> list[Tool]:
    async def query_usage(
        metrics: Names = [],  # noqa: B006  # never changed: pydantic copies it
        dimensions: Names = [],  # noqa: B006  # "
        filters: Values = {},  # noqa: B006  # "
        without: Values = {},  # noqa: B006  # "
        ask: Literal["aggregate", "rows", "sessions"] = "aggregate",
        days: int | None = None,
        start: Annotated[str | None, Field(description="Date, or time with offset")] = None,
        end: Annotated[str | None, Field(description="Not included")] = None,
        order: Annotated[Names, Field(description="-name: descending")] = [],  # noqa: B006  # "
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
    ) -> CallToolResult:
        """Any other question. Metrics of an aggregate: requests, accesses, deliberate_calls, people, devices, errors,
        error_rate, mean_ms, p50_ms, p95_ms, p99_ms, max_ms, sessions, session_time_s, views, visible_ms, last_seen,
        first_seen. Dimensions (at most 3): person, device, address, service, environment, route, endpoint, feature,
        page, card, variant, method, status, status_class, traffic (page, api, poll, asset, health, internal, agent),
        caller (person, shared, tagged, funnel, local, unknown), identity_source, source, hour_of_day, weekday
        (1 Monday), hour, day. Filters: the same without person and times, and user (login), kind (request, view).
        `rows` lists requests, `sessions` sessions, newest first. 7 days by default."""
        asked: dict[str, Any] = {"metrics": metrics, "dimensions": dimensions, "order": order, "ask": ask}
        asked |= {"filters": filters, "without": without, "days": days, "start": start, "end": end, "limit": limit}
        given = {key: value for key, value in asked.items() if value not in (None, [], {})}
        found = await server.ask("POST", "/analytics/query", {}, given)
        return _told(words, found, await about(server, found, filters, without))

    return [reading(query_usage)]


def _told(words: Words, found: dict[str, Any], content: dict[str, Any]) -> CallToolResult:
    question, rows = found["question"], found["rows"]
    if question["ask"] == "rows":
        rows = [{key: row[key] for key in ROW} for row in rows]
    more = found["more"] if found["more"] is not None else found["next_cursor"] and "unknown"
    text = _sentence(words, question, rows, found["more"])
    content["gaps"] += _nothing(question, rows)
    return answer(text, fit({"rows": rows, **({"more": more} if more else {}), **content}))


def _sentence(words: Words, question: dict[str, Any], rows: list[dict[str, Any]], more: int | None) -> str:
    window = {"start": question["start"], "end": question["end"]}
    if question["ask"] == "aggregate" and len(rows) == 1 and not more:
        return words("row", values=", ".join(f"{name}: {value}" for name, value in rows[0].items()), **window)
    left = f" ({words('more', count=more)})" if more else ""
    return words("rows", count=len(rows), more=left, **window) if rows else words("empty", **window)


def _nothing(question: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What to doubt where filters leave nothing."""
    if not question["filters"] or any(value for row in rows for value in row.values()):
        return []
    names = ", ".join(question["filters"])
    return [f"nothing fits the filters ({names}): ask for them as dimensions to see which values there are"]
