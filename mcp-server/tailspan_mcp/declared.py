"""Tools of services as the owner declares them: `[services.NAME]` of the settings file, and presets.

A tool is one request: method, path, parameters with their places, and what of the answer to keep.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from keyword import iskeyword
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME: Final = r"^[a-z][a-z0-9_]{0,63}$"
SECRET: Final = re.compile(r"\$\{(\w+)\}")
SECRETS: Final = ("headers", "token")  # which may hold them
PRESETS: Final = files("tailspan_mcp") / "presets"


class SettingError(Exception):
    """A setting has a bad value: the message names it, and the rule."""


class Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameter(Declared):
    """One argument of a tool, and where in the request it goes."""

    place: Literal["query", "path", "body"] = "query"
    upstream: str | None = None  # what the service calls it, where that is another name
    type: Literal["string", "number", "integer", "boolean", "date"] = "string"
    description: str | None = None
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    default: Any = None  # without one it has to be given
    example: Any = None  # what `tailspan-mcp check` gives


class ToolSpec(Declared):
    name: Annotated[str, Field(pattern=NAME)]
    description: Annotated[str, Field(min_length=1, max_length=500)]
    path: Annotated[str, Field(pattern=r"^/[^?#]*$")]
    method: Literal["GET", "POST"] = "GET"
    parameters: dict[Annotated[str, Field(pattern=NAME)], Parameter] = {}
    keep: tuple[str, ...] = ()  # parts of the answer, as `data.items`; all of it where none is named
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0


class Service(Declared):
    name: str
    url: Annotated[str, Field(pattern=r"^(https?://[^/?#@]+(/[^?#]*)?|unix:/[^?#]*)$")]
    headers: dict[str, str] = {}
    tools: tuple[ToolSpec, ...] = ()


def services(table: object, file: str, environ: Mapping[str, str] = os.environ) -> tuple[Service, ...]:
    """Of `[services]`. Raises SettingError for what is no service, a tool declared twice, a secret that is not set."""
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise SettingError(f"{file}: services is no table. Each service is one: [services.NAME].")
    found = tuple(_service(name, entry, file, environ) for name, entry in table.items())
    names = [tool.name for service in found for tool in service.tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingError(f"{file}: the tool {twice[0]!r} is declared twice. Each needs a name of its own.")
    return found


def preset(name: str, file: str = "preset") -> list[dict[str, Any]]:
    """The tools of a preset. Raises SettingError where there is none of that name."""
    known = sorted(entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml"))
    if name not in known:
        raise SettingError(f"{file}: preset is {name!r}. There is: {', '.join(known)}.")
    return list(tomllib.loads((PRESETS / f"{name}.toml").read_text("utf-8"))["tools"])


def _service(name: str, entry: dict[str, Any], file: str, environ: Mapping[str, str]) -> Service:
    content = {key: value for key, value in entry.items() if key != "preset"} | {"name": name}
    if "preset" in entry:
        content["tools"] = [*preset(entry["preset"], f"{file}: services.{name}"), *entry.get("tools", [])]
    try:
        service = Service.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, ("services", name, *first["loc"])))
        secret = "@" in str(first["input"]) or any(part in SECRETS for part in first["loc"])
        value = "not shown here" if secret else repr(first["input"])
        raise SettingError(f"{file}: {where} is {value}. {first['msg']}.") from None
    for tool in service.tools:
        _check(tool, f"{file}: services.{name}.{tool.name}")
    secrets = {
        key: _filled(value, f"{file}: services.{name}.headers.{key}", environ) for key, value in service.headers.items()
    }
    return service.model_copy(update={"headers": secrets})


def _check(tool: ToolSpec, where: str) -> None:
    if odd_names := [name for name in tool.parameters if iskeyword(name) or name.startswith("model_")]:
        raise SettingError(f'{where}: no parameter can be called {odd_names[0]!r}. Say upstream = "{odd_names[0]}".')
    in_path = set(re.findall(r"\{(\w+)\}", tool.path))
    declared = {name for name, one in tool.parameters.items() if one.place == "path"}
    if in_path != declared:
        odd = sorted(in_path ^ declared)[0]
        raise SettingError(f"{where}: {odd!r} is in the path {tool.path!r} or among its parameters, but not in both.")
    if tool.method == "GET" and any(one.place == "body" for one in tool.parameters.values()):
        raise SettingError(f'{where}: a GET has no body. Parameters in the body go with method = "POST".')


def _filled(text: str, where: str, environ: Mapping[str, str]) -> str:
    """With the variables of the environment that it names as ${NAME}."""
    for name in SECRET.findall(text):
        if not environ.get(name):
            raise SettingError(f"{where} names ${{{name}}}, which is not set in the environment.")
    filled = SECRET.sub(lambda found: environ[found[1]].strip(), text)
    if not filled.isprintable():
        raise SettingError(f"{where} has characters that no header has. Its variables are one line of text each.")
    return filled
