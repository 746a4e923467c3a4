"""Where tools come from, a file a source. Here is what they share: each only reads."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

READ_ONLY: Final = ToolAnnotations(read_only_hint=True)
NULL: Final = {"type": "null"}
EMPTY: Final[tuple[tuple[str, Any], ...]] = (("default", None), ("default", []), ("default", {}))


def reading(function: Callable[..., Any], name: str | None = None, description: str | None = None) -> Tool:
    """The tool that a function is: its name, its docstring and its parameters, unless said otherwise."""
    tool = Tool.from_function(_of_this_version(function), name=name, description=description, annotations=READ_ONLY)
    text = " ".join(tool.description.split())
    tool.fn_metadata.output_schema = _untitled(tool.fn_metadata.output_schema)
    return tool.model_copy(update={"parameters": _arguments(_untitled(tool.parameters)), "description": text})


def _of_this_version(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def answering(**arguments: Any) -> Any:
        try:
            return await function(**arguments)
        except KeyError as problem:
            raise ToolError(
                f"The answer has no {problem}: tailspan and tailspan-mcp are of different versions. Update one."
            ) from problem

    return answering


def _untitled(schema: Any) -> Any:
    """Without titles, which say what the names say."""
    if isinstance(schema, list):
        return [_untitled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    titles = ("title",) if isinstance(schema.get("title"), str) else ()
    return {key: _untitled(value) for key, value in schema.items() if key not in titles}


def _arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Without null and empty ones, which leaving them out says."""
    return schema | {"properties": {name: _argument(one) for name, one in schema.get("properties", {}).items()}}


def _argument(one: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in one.items() if key != "anyOf" and (key, value) not in EMPTY}
    kinds = [kind for kind in one.get("anyOf", ()) if kind != NULL]
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}), **kept}
