"""What services answer themselves: one tool for each that their owner declared."""

import json
from collections.abc import Iterator
from datetime import date
from inspect import Parameter as Argument
from inspect import Signature
from typing import Annotated, Any, Final
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

SAID: Final = 5  # entries of an answer in its sentence
FAILED: Final = ("error", "fail", "failed", "failure")
WRAPPERS: Final = ("data", "result", "response")  # that services put their answers into


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
    examples = None if one.example is None else [one.example]
    kind: Any = one.kind
    annotation = Annotated[kind, Field(description=one.description, examples=examples)]
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
    """A 200 with an error inside is an error: in the answer, in what wraps it, and on the way to what is kept.

    Elsewhere a status that is an error may be what was asked for, as that of a part in a report on health.
    """
    inside = [one for path in (*WRAPPERS, *spec.keep) for one in _on_the_way(found, path)]
    for said in (_failure_of(found), *map(_error_in, inside)):
        if said is not None:
            raise ToolError(f"{name} answered {spec.method} {spec.path} with 200 and an error inside: {said[:300]}")


def _on_the_way(found: Any, path: str) -> Iterator[Any]:
    """The answer, and each part of it down to the one at the path."""
    yield found
    for key in path.split("."):
        if not isinstance(found, dict) or key not in found:
            return
        found = found[key]
        yield found


def _failure_of(answer: Any) -> str | None:
    """What a whole answer says that says no more than that it failed."""
    failed = isinstance(answer, dict) and str(answer.get("status")).lower() in FAILED
    return _error_in(answer) or (str(answer) if failed else None)


def _error_in(one: Any) -> str | None:
    """What an object says that is an error; a list is one where all its entries are."""
    if isinstance(one, list):
        errors = [_error_in(entry) for entry in one]
        return errors[0] if errors and None not in errors else None
    if not isinstance(one, dict):
        return None
    error = one.get("error") or ("data" in one and not one["data"] and one.get("errors"))  # the latter is GraphQL's
    if error and isinstance(error, str | dict | list):  # a number is a measure
        return str(error)
    said = one.get("message") or one.get("detail")
    if error is True or one.get("success") is False or one.get("ok") is False:
        return str(said or one)
    return str(said) if said and str(one.get("status")).lower() in FAILED else None


def _kept(found: Any, spec: ToolSpec) -> dict[str, Any]:
    if not spec.keep:
        return found if isinstance(found, dict) else {"items": found}
    return {path: _part(found, path, spec) for path in spec.keep}


def _part(found: Any, path: str, spec: ToolSpec) -> Any:
    parts = list(_on_the_way(found, path))
    if len(parts) <= path.count(".") + 1:
        last = parts[-1]
        there = ", ".join(last) if isinstance(last, dict) else json.dumps(last)[:100]
        raise ToolError(f"The answer of {spec.path} has no {path!r}, which the settings keep; it has: {there[:300]}.")
    return parts[-1]


def _said(content: dict[str, Any]) -> str:
    """The simple entries of an answer, in its own words."""
    simple = {key: value for key, value in content.items() if not isinstance(value, dict | list)}
    counted = {key: len(value) for key, value in content.items() if isinstance(value, list)}
    counted |= {key: value["rows"] for key, value in content.items() if isinstance(value, dict) and "rows" in value}
    said = [f"{key}: {value}" for key, value in (simple | counted).items()]
    return " · ".join(said[:SAID]) or ", ".join(content)
