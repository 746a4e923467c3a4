"""What an answer of tailspan says of itself: its window, its sources, how much they saw, and what it lacks."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, Final

from mcp.server.mcpserver.exceptions import ToolError

from tailspan_mcp.upstream import Upstream

GAPS: Final = 5
LONG: Final = 400  # characters of one
NAMED: Final = 20  # services, to who asks for one that is not there
SHOWN: Final = 5  # services whose coverage is told, the worst first
SILENT: Final = timedelta(minutes=2)
BEFORE: Final = timedelta(days=28)  # so long before a window a request says that its first days were recorded
DAY: Final = timedelta(days=1)
HOUR: Final = timedelta(hours=1)
LOGGED: Final = 168  # hours that /analytics/coverage goes back
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # that /analytics/query takes
UNKNOWN: Final = "unknown: no log of a proxy was read of this time"

Filters = dict[str, list[str]]
Entries = list[dict[str, Any]]


async def about(
    server: Upstream, found: dict[str, Any], filters: Filters | None = None, without: Filters | None = None
) -> dict[str, Any]:
    """`as_of`, `window`, `newest_request`, `coverage`, `sources` and `gaps` of an answer, of the services asked for.

    Raises ToolError where there is nothing to answer from.
    """
    asked, store = found.get("question", found), found["sources"][0]
    if store["newest"] is None:
        raise ToolError(f"There is no answer: {store['message']} (`tailspan doctor` walks the chain.)")
    place = {"filters": _of_services(filters), "without": _of_services(without)}
    services, gaps = _heard(store["services"], place["filters"], place["without"])
    newest = store["newest"] if not any(place.values()) else _newest(services)
    window = {"start": asked["start"], "end": asked["end"], "zone": asked["zone"]}
    as_of = str(found["as_of"] if "as_of" in found else found["end"])
    first = await _first_hour(server, place, window, as_of) if newest >= window["start"] else None
    gaps += await _unseen(server, place, window, first, newest)
    gaps += _troubles(found)
    gaps += [gap for service in services for gap in _gaps_of(service, window["end"], as_of)]
    coverage = {"first_hour": first, "seen_by_proxy": await _seen(server, services, window, as_of)}
    said = {"as_of": as_of, "window": window, "newest_request": newest, "coverage": coverage}
    return {**said, "sources": _states(found), "gaps": _cut(gaps)}


def _of_services(given: Filters | None) -> Filters:
    """What of the filters says which services an answer is about."""
    return {name: values for name, values in (given or {}).items() if name in ("service", "environment")}


def states(found: dict[str, Any]) -> dict[str, Any]:
    """`sources` with their states, and `gaps`: what is wrong with them."""
    return {"sources": _states(found), "gaps": _cut(_troubles(found))}


def _states(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in found["sources"]}


def _troubles(found: dict[str, Any]) -> list[str]:
    return [f"{source['name']}: {source['message']}" for source in found["sources"] if source["state"] != "ok"]


def _cut(gaps: list[str]) -> list[str]:
    more = [f"and {len(gaps) - GAPS} more: GET /healthz"] if len(gaps) > GAPS else []
    return [*(gap if len(gap) <= LONG else f"{gap[:LONG]}…" for gap in gaps[:GAPS]), *more]


def _heard(services: Entries, filters: Filters, without: Filters) -> tuple[Entries, list[str]]:
    """The services that are asked for, and which names nobody ever heard of. Raises ToolError where none is left."""
    gaps = [gap for name, values in filters.items() for gap in _unheard(name, values, services)]
    left = [one for one in services if _asked_for(one, filters, without)]
    if (filters or without) and not any(one["last_request"] for one in left):
        names = ", ".join(one["service"] for one in left) or "what is asked for"
        raise ToolError(f"There is no answer: no request of {names} has ever arrived. `tailspan doctor` says why.")
    return left, gaps


def _unheard(name: str, values: list[str], services: Entries) -> list[str]:
    """Which of these names are none. Raises ToolError where none of them is one."""
    known = sorted({str(one[name]) for one in services if one[name]})
    odd = [value for value in values if value not in known]
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    there = ", ".join(known[:NAMED]) + more or "none"
    said = f"no {name} {', '.join(map(repr, odd))} was ever heard of. There is: {there}."
    if len(odd) == len(values):
        raise ToolError(f"There is no answer: {said}")
    return [said] if odd else []


def _asked_for(service: dict[str, Any], filters: Filters, without: Filters) -> bool:
    fits = all(service[name] in values for name, values in filters.items())
    return fits and not any(service[name] in values for name, values in without.items())


def _newest(services: Entries) -> str:
    return max(str(one["last_request"]) for one in services if one["last_request"])


async def _first_hour(server: Upstream, place: dict[str, Filters], window: dict[str, str], as_of: str) -> str | None:
    """The first hour of the window with any request, whoever made it; None where there is none."""
    end = {} if window["end"] >= as_of else {"end": window["end"]}
    asked = {"metrics": ["requests"], "dimensions": ["hour"], "order": ["hour"], "limit": 1, **place, **end}
    rows = (await server.ask("POST", "/analytics/query", {}, {**asked, "start": window["start"]}))["rows"]
    return str(rows[0]["hour"]) if rows else None


async def _unseen(
    server: Upstream, place: dict[str, Filters], window: dict[str, str], first: str | None, newest: str
) -> list[str]:
    """Why numbers of the window, or of its beginning, are no numbers of what people did."""
    who = f" of {', '.join(place['filters']['service'])}" if "service" in place["filters"] else ""
    if first is None:
        return [f"no request at all{who} came in this window: the newest is of {newest}"]
    start = datetime.fromisoformat(window["start"])
    if datetime.fromisoformat(first) - start < DAY or await _any(server, place, start):
        return []
    return [f"no request{who} is known from before {first}: what came earlier in this window was not recorded"]


async def _any(server: Upstream, place: dict[str, Filters], end: datetime) -> bool:
    """Whether anything was recorded in the weeks before then."""
    start = max(EARLIEST, end - BEFORE)
    if start >= end:
        return False
    asked = {"metrics": ["requests"], **place, "start": start.isoformat(), "end": end.isoformat()}
    [row] = (await server.ask("POST", "/analytics/query", {}, asked))["rows"]
    return bool(row["requests"])


def _gaps_of(service: dict[str, Any], end: str, as_of: str) -> list[str]:
    where = f" ({service['environment']})" if service["environment"] else ""
    name, beat, found = f"{service['service']}{where}", service["last_heartbeat"], []
    silent = beat and datetime.fromisoformat(as_of) - datetime.fromisoformat(beat) > SILENT
    if silent and beat < end and not service["stopped"]:
        found.append(f"{name} has been silent since {beat}")
    if service["dropped"]:
        found.append(f"{name} lost {service['dropped']} requests in 24 h before they were recorded")
    return found


async def _seen(server: Upstream, services: Entries, window: dict[str, str], as_of: str) -> dict[str, str] | str:
    """By service: which share of the requests that its proxy wrote down it told of itself."""
    start, end, now = (datetime.fromisoformat(time) for time in (window["start"], window["end"], as_of))
    hours = min(LOGGED, max(1, ceil((now - start) / HOUR)))
    try:
        found = await server.get("/analytics/coverage", hours=hours)
    except ToolError as problem:  # the answer itself is there
        return f"unknown: {problem}"
    names = {one["service"] for one in services}
    seen, live = Counter[str](), Counter[str]()
    for one in found["hours"]:
        began = datetime.fromisoformat(one["hour"])
        if one["service"] in names and began < end and began + HOUR > start:
            seen[one["service"]] += one["requests"]
            live[one["service"]] += one["live"]
    return _shares(seen, live) or UNKNOWN


def _shares(seen: Counter[str], live: Counter[str]) -> dict[str, str]:
    worst = sorted(seen, key=lambda name: (live[name] / seen[name], name))
    more = {"more": f"{len(worst) - SHOWN} services"} if len(worst) > SHOWN else {}
    return {name: f"{1000 * live[name] // seen[name] / 1000:.1%} of {seen[name]}" for name in worst[:SHOWN]} | more
