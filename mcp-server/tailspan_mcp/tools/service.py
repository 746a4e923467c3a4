"""What services answer themselves: one tool for each that their owner declared."""

import json
from datetime import date
from inspect import Parameter as Argument
from inspect import Signature
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import httpx2
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult
from pydantic import Field

from tailspan_mcp.answers import answer, fit
from tailspan_mcp.declared import Parameter, Service, ToolSpec
from tailspan_mcp.tools import reading
from tailspan_mcp.upstream import Upstream

TYPES: Final[dict[str, Any]] = {"string": str, "number": float, "integer": int, "boolean": bool, "date": date}
SAID: Final = 5  # entries of an answer in its sentence
FAILED: Final = ("error", "failed", "failure")


def upstream(service: Service) -> Upstream:
    """The HTTP API of a service."""
    uds = service.url.removeprefix("unix:") if service.url.startswith("unix:") else None
    transport = httpx2.AsyncHTTPTransport(uds=uds) if uds else None
    base = "http://localhost" if uds else service.url
    client = httpx2.AsyncClient(
        base_url=base, transport=transport, headers=service.headers, trust_env=False, timeout=None
    )
    return Upstream(service.name, client, f"Is it up? Its address is services.{service.name}.url in the settings.")


def tools(service: Service, api: Upstream) -> list[Tool]:
    return [_tool(spec, api) for spec in service.tools]


def _tool(spec: ToolSpec, api: Upstream) -> Tool:
    async def call(**arguments: Any) -> CallToolResult:
        found = await api.ask(spec.method, *_request(spec, arguments), spec.timeout_s)
        _raise_for_error(api.name, spec, found)
        content = fit(_kept(found, spec))
        return answer(_said(content), content)

    call.__signature__ = Signature(  # type: ignore[attr-defined]  # what inspect, and so the SDK, goes by
        [_argument(name, one) for name, one in spec.parameters.items()], return_annotation=CallToolResult
    )
    return reading(call, spec.name, spec.description)


def _argument(name: str, one: Parameter) -> Argument:
    kind: Any = Literal[one.choices] if one.choices else TYPES[one.type]
    examples = None if one.example is None else [one.example]
    annotation = Annotated[kind, Field(ge=one.min, le=one.max, description=one.description, examples=examples)]
    default = Argument.empty if one.default is None else one.default
    return Argument(name, Argument.KEYWORD_ONLY, default=default, annotation=annotation)


def _request(spec: ToolSpec, arguments: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Path, query and body."""
    places: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "body": {}}
    for name, value in arguments.items():
        one = spec.parameters[name]
        key = name if one.place == "path" else one.upstream or name
        places[one.place][key] = value.isoformat() if isinstance(value, date) else value
    if odd := [value for value in places["path"].values() if value in ("", ".", "..")]:
        raise ToolError(f"{odd[0]!r} is no part of a path.")
    path = spec.path.format_map({key: quote(str(value), safe="") for key, value in places["path"].items()})
    return path, places["query"], places["body"] or None


def _raise_for_error(name: str, spec: ToolSpec, found: Any) -> None:
    """A 200 with an error inside is an error."""
    if not isinstance(found, dict):
        return
    error = found.get("error")
    failed = found.get("success") is False or found.get("ok") is False or found.get("status") in FAILED
    if error or failed:
        said = error or found.get("message") or found.get("detail") or found
        raise ToolError(f"{name} answered {spec.method} {spec.path} with 200 and an error inside: {str(said)[:300]}")


def _kept(found: Any, spec: ToolSpec) -> dict[str, Any]:
    if not spec.keep:
        return found if isinstance(found, dict) else {"items": found}
    return {path: _part(found, path, spec) for path in spec.keep}


def _part(found: Any, path: str, spec: ToolSpec) -> Any:
    for key in path.split("."):
        if not isinstance(found, dict) or key not in found:
            there = ", ".join(found) if isinstance(found, dict) else json.dumps(found)[:100]
            raise ToolError(
                f"The answer of {spec.path} has no {path!r}, which the settings keep; it has: {there[:300]}."
            )
        found = found[key]
    return found


def _said(content: dict[str, Any]) -> str:
    """The simple entries of an answer, in its own words."""
    simple = {key: value for key, value in content.items() if not isinstance(value, dict | list)}
    counted = {key: len(value) for key, value in content.items() if isinstance(value, list)}
    counted |= {key: value["rows"] for key, value in content.items() if isinstance(value, dict) and "rows" in value}
    said = [f"{key}: {value}" for key, value in (simple | counted).items()]
    return " · ".join(said[:SAID]) or ", ".join(content)
