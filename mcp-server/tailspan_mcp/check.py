"""Calls every tool once, as a client would: what answers, how fast, and what is wrong where it does not."""

import time
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from mcp import Client
from mcp_types import Tool

from tailspan_mcp.declared import ANALYTICS, TAILNET
from tailspan_mcp.server import Part, wrong_entries

GIVEN: Final[dict[str, dict[str, Any]]] = {"query_usage": {"metrics": ["requests"]}}
NO_EXAMPLE: Final = "Its declaration has no `example` of what must be given."
OF_A_DEVICE: Final = ("tailscale_get_device", "tailscale_who_is")


class Checked(NamedTuple):
    tool: str
    state: str  # ok, error, or skipped
    milliseconds: float
    said: str  # the sentence of the answer, or what is wrong and what to do


async def check(client: Client, only: Part | None = None) -> AsyncIterator[Checked]:
    """In the order of the tools. Arguments that must be given are the examples of their schemas."""
    for wrong in wrong_entries(client.instructions):
        yield Checked("settings", "error", 0, wrong)
    device: dict[str, Any] | None = None
    for tool in (await client.list_tools()).tools:
        if only not in (None, _part(tool.name)):
            continue
        arguments = _arguments(tool, device)
        if arguments is None:
            why = "tailscale_list_devices names none to ask about." if tool.name in OF_A_DEVICE else NO_EXAMPLE
            yield Checked(tool.name, "skipped", 0, why)
            continue
        began = time.monotonic()
        result = await client.call_tool(tool.name, arguments)
        took = (time.monotonic() - began) * 1000
        said = next((part.text for part in result.content if part.type == "text"), "")
        said = said.removeprefix(f"Error executing tool {tool.name}: ")
        yield Checked(tool.name, "error" if result.is_error else "ok", took, said)
        device = _device(tool.name, result.structured_content) or device


def _part(tool: str) -> Part:
    return "analytics" if tool in ANALYTICS else "tailnet" if tool in TAILNET else "service"


def _arguments(tool: Tool, device: dict[str, Any] | None) -> dict[str, Any] | None:
    """None where there is nothing to give for one that must be given."""
    if tool.name in OF_A_DEVICE:
        return device and {"device": device.get("name"), "ip": next(iter(device.get("addresses", ())), None)}
    properties = tool.input_schema.get("properties", {})
    needed = {name: properties[name].get("examples") for name in tool.input_schema.get("required", ())}
    if not all(needed.values()):
        return None
    return GIVEN.get(tool.name, {}) | {name: examples[0] for name, examples in needed.items()}


def _device(tool: str, content: Any) -> dict[str, Any] | None:
    """One to ask about, from the list of devices; its addresses from the answer about it."""
    if tool == "tailscale_get_device" and content:
        return dict(content["device"])
    if tool != "tailscale_list_devices" or not content:
        return None
    devices = content["devices"]
    names = devices["name"] if isinstance(devices, dict) else [one["name"] for one in devices]
    name = names["all"] if isinstance(names, dict) else next(iter(names), None)
    return {"name": name} if name else None
