"""Which devices and people there are on the tailnet, whether they use anything or not."""

from typing import Annotated, Any, Final
from urllib.parse import quote

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult
from pydantic import Field

from tailspan_mcp.answers import answer, fit
from tailspan_mcp.sources import states
from tailspan_mcp.tools import reading
from tailspan_mcp.upstream import Upstream
from tailspan_mcp.words import Words

LISTED: Final = ("name", "id", "user", "tags", "os", "online", "last_seen", "key_expires", "requests", "last_request")


def tools(server: Upstream, words: Words) -> list[Tool]:
    own = Tailnet(server, words)
    tools = (own.tailscale_list_devices, own.tailscale_get_device, own.tailscale_get_status, own.tailscale_who_is)
    return [reading(one) for one in tools]


class Tailnet:
    """Each method is a tool: its name, its docstring and its parameters are what a client sees."""

    def __init__(self, server: Upstream, words: Words) -> None:
        self.server, self.words = server, words

    async def tailscale_list_devices(
        self,
        online: bool | None = None,
        using: Annotated[bool | None, Field(description="Whether it made requests")] = None,
        days: Annotated[int, Field(ge=1, le=30)] = 7,
    ) -> CallToolResult:
        """Devices of the tailnet and what they did: online but not using, using but unknown, new."""
        asked = {"online": _flag(online), "using": _flag(using), "days": days}
        found = await self.server.get("/analytics/tailnet/devices", **asked)
        told, summary = _listed(found), found["summary"]
        devices = [{key: _short(one[key]) for key in LISTED} for one in found["devices"]]
        kept = {key: found[key] for key in ("unknown", "new_devices", "new_people", "more")}
        window = {"start": found["start"], "end": found["end"]}
        text = self.words("devices", count=summary["devices"], online=summary["online"])
        return answer(text, fit({"summary": summary, "devices": devices, **kept, "window": window, **told}))

    async def tailscale_get_device(
        self, device: Annotated[str, Field(description="Name or stable id")]
    ) -> CallToolResult:
        """One device: owner, addresses and names over time, services it used in 7 days."""
        found = await self.server.get(f"/analytics/tailnet/devices/{quote(device, safe='')}")
        told, one = states(found), found["device"]
        text = self.words("device", name=one["name"], owner=_owner(one), **self._presence(one))
        kept = {key: found[key] for key in ("device", "listed", "services", "history")}
        return answer(text, fit({**kept, **told}))

    async def tailscale_get_status(self) -> CallToolResult:
        """The tailnet as a whole: devices, people, keys that expire, and how its sources fare."""
        found = await self.server.get("/analytics/tailnet/status")
        told = _listed(found)
        text = self.words("devices", count=found["devices"], online=found["online"])
        return answer(text, fit({key: value for key, value in found.items() if key != "sources"} | told))

    async def tailscale_who_is(self, ip: Annotated[str, Field(description="Tailnet address")]) -> CallToolResult:
        """Whose an address is and was, what each source says, and what came from it in 7 days."""
        found = await self.server.get("/analytics/tailnet/who-is", address=ip)
        one, told = found["device"], states(found)
        if one is None and not found["history"] and not found["used_by"]:
            _listed({**found, "devices": []})
        name = self.words("device", name=one["name"], owner=_owner(one), **self._presence(one)) if one else None
        text = f"{found['address']}: {name or self.words('unknown')}"
        return answer(text, fit({key: value for key, value in found.items() if key != "sources"} | told))

    def _presence(self, one: dict[str, Any]) -> dict[str, str]:
        seen = one["last_seen"] or one["last_request"]
        return {"seen": self.words("online") if one["online"] else self.words("seen", at=seen or "?")}


def _listed(found: dict[str, Any]) -> dict[str, Any]:
    """States and gaps. Raises ToolError where no source lists devices: that is no empty tailnet."""
    tailnet = [source for source in found["sources"] if source["name"].startswith("tailnet")]
    if not found["devices"] and not any(source["state"] == "ok" for source in tailnet):
        raise ToolError(f"There is no answer: {' '.join(source['message'] for source in tailnet)}")
    return states(found)


def _owner(one: dict[str, Any]) -> str:
    return str(one["user"] or ", ".join(one["tags"]) or one["kind"])


def _short(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def _flag(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()
