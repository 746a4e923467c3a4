"""What an answer of tailspan says of itself: its window, its sources, and what it lacks."""

from datetime import datetime, timedelta
from typing import Any, Final

from mcp.server.mcpserver.exceptions import ToolError

GAPS: Final = 5
SILENT: Final = timedelta(minutes=2)


def about(found: dict[str, Any], service: str | None = None) -> dict[str, Any]:
    """`as_of`, `window`, `sources` and `gaps` of an answer. Raises ToolError where there is nothing to answer from."""
    asked, store = found.get("question", found), found["sources"][0]
    if store["state"] == "no data yet":
        raise ToolError(f"There is no answer: {store['message']} (`tailspan doctor` walks the chain.)")
    if service and service not in (known := sorted({one["service"] for one in store["services"]})):
        raise ToolError(f"There is no answer: no service {service!r} was ever heard of. There is: {', '.join(known)}.")
    window = {"start": asked["start"], "end": asked["end"], "zone": asked["zone"]}
    return {"as_of": asked["end"], "window": window, "newest_request": store["newest"], **states(found, window)}


def states(found: dict[str, Any], window: dict[str, str] | None = None) -> dict[str, Any]:
    """`sources` with their states, and `gaps`: what is wrong with them, and what the window lacks."""
    store = found["sources"][0]
    gaps = [f"{source['name']}: {source['message']}" for source in found["sources"] if source["state"] != "ok"]
    if window:
        if store["newest"] and store["newest"] < window["start"]:
            gaps.append(f"no request at all came in this window: the newest is of {store['newest']}")
        end = datetime.fromisoformat(window["end"])
        gaps += [gap for service in store["services"] for gap in _gaps_of(service, end)]
    more = [f"and {len(gaps) - GAPS} more: GET /healthz"] if len(gaps) > GAPS else []
    return {"sources": {one["name"]: one["state"] for one in found["sources"]}, "gaps": [*gaps[:GAPS], *more]}


def _gaps_of(service: dict[str, Any], end: datetime) -> list[str]:
    name, beat, found = service["service"], service["last_heartbeat"], []
    if beat and not service["stopped"] and end - datetime.fromisoformat(beat) > SILENT:
        found.append(f"{name} has been silent since {beat}")
    if service["dropped"]:
        found.append(f"{name} lost {service['dropped']} requests in 24 h before they were recorded")
    return found
