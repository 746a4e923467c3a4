"""Tools of services as the owner declares them: `[services.NAME]` of the settings file, and presets.

A tool is one request: method, path, parameters with their places, and what of the answer to keep.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.resources import files
from keyword import iskeyword
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

NAME: Final = r"^[a-z][a-z0-9_]{0,63}$"
SECRET: Final = re.compile(r"\$\{(\w+)\}")
SECRETS: Final = ("headers", "token")  # which may hold them
PRESETS: Final = files("tailspan_mcp") / "presets"
TYPES: Final[dict[str, Any]] = {"string": str, "number": float, "integer": int, "boolean": bool, "date": date}
ANALYTICS: Final = ("get_active_users", "get_usage_stats", "get_system_performance", "query_usage")
TAILNET: Final = ("tailscale_list_devices", "tailscale_get_device", "tailscale_get_status", "tailscale_who_is")


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

    @property
    def kind(self) -> Any:
        """What its values are, for pydantic."""
        kind = Literal[self.choices] if self.choices else TYPES[self.type]
        return Annotated[kind, Field(ge=self.min, le=self.max)] if (self.min, self.max) != (None, None) else kind


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


class Found(NamedTuple):
    services: tuple[Service, ...]
    problems: tuple[str, ...]  # each entry that is wrong, and therefore left out


def services(table: object, file: str, environ: Mapping[str, str] = os.environ) -> Found:
    """Of `[services]`. What is no service, a tool declared twice, or a secret that is not set is left out, and told."""
    if not isinstance(table, dict):
        return Found((), (f"{file}: services is no table. Each service is one: [services.NAME].",))
    found, problems, taken = [], list[str](), {*ANALYTICS, *TAILNET}
    for name, entry in table.items():
        try:
            service = _service(name, entry, file, environ)
        except SettingError as problem:
            problems.append(str(problem))
            continue
        tools = list(_tools(entry, f"{file}: services.{name}", taken, problems))
        found.append(service.model_copy(update={"tools": tuple(tools)}))
    return Found(tuple(found), tuple(problems))


def variables_of(table: object) -> tuple[str, ...]:
    """The variables of the environment that the headers in `[services]` name."""
    entries = table.values() if isinstance(table, dict) else ()
    headers = [entry.get("headers") for entry in entries if isinstance(entry, dict)]
    values = [str(value) for one in headers if isinstance(one, dict) for value in one.values()]
    return tuple(dict.fromkeys(name for value in values for name in SECRET.findall(value)))


def preset(name: str, file: str = "preset") -> list[dict[str, Any]]:
    """The tools of a preset. Raises SettingError where there is none of that name."""
    known = sorted(entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml"))
    if name not in known:
        raise SettingError(f"{file}: preset is {name!r}. There is: {', '.join(known)}.")
    return list(tomllib.loads((PRESETS / f"{name}.toml").read_text("utf-8"))["tools"])


def _service(name: str, entry: object, file: str, environ: Mapping[str, str]) -> Service:
    """Without its tools."""
    if not isinstance(entry, dict):
        raise SettingError(f"{file}: services.{name} is {entry!r}. A service is a table: [services.{name}].")
    content = {key: value for key, value in entry.items() if key not in ("preset", "tools")}
    service = _valid(Service, content | {"name": name}, f"{file}: services.{name}")
    secrets = {
        key: _filled(value, f"{file}: services.{name}.headers.{key}", environ) for key, value in service.headers.items()
    }
    return service.model_copy(update={"headers": secrets})


def _tools(entry: dict[str, Any], where: str, taken: set[str], problems: list[str]) -> Iterator[ToolSpec]:
    """Those of a service that are right; their names are `taken` then. What is wrong with the others is a problem."""
    for place, content in _contents(entry, where, problems):
        try:
            tool = _valid(ToolSpec, content, place)
            _check(tool, f"{where}.{tool.name}")
            if tool.name in (*ANALYTICS, *TAILNET):
                raise SettingError(f"{where}: {tool.name!r} is a tool of tailspan's own. Call yours something else.")
            if tool.name in taken:
                raise SettingError(f"{where}: the tool {tool.name!r} is declared twice. Each needs a name of its own.")
        except SettingError as problem:
            problems.append(str(problem))
            continue
        taken.add(tool.name)
        yield tool


def _contents(entry: dict[str, Any], where: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Of each tool that a service declares: where that is, and what it says."""
    try:
        for content in preset(entry["preset"], where) if "preset" in entry else ():
            yield f"{where}.preset", content
    except SettingError as problem:
        problems.append(str(problem))
    own = entry.get("tools", [])
    if isinstance(own, list):
        yield from ((f"{where}.tools.{number}", content) for number, content in enumerate(own))
    else:
        problems.append(f"{where}.tools is {own!r}. It is a list of tables: [[services.NAME.tools]].")


T = TypeVar("T", bound=BaseModel)


def _valid(kind: type[T], content: object, where: str) -> T:
    """Raises SettingError with the first entry that is wrong."""
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, (where, *first["loc"])))
        secret = "@" in str(first["input"]) or any(part in SECRETS for part in first["loc"])
        value = "not shown here" if secret else repr(first["input"])
        raise SettingError(f"{place} is {value}. {first['msg']}.") from None


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
    for name, one in tool.parameters.items():
        _check_values(one, f"{where}.{name}")


def _check_values(one: Parameter, where: str) -> None:
    if (one.min, one.max) != (None, None) and one.type not in ("number", "integer"):
        raise SettingError(f"{where}: min and max are of numbers and integers, and it is a {one.type}.")
    if one.choices and one.type != "string":
        raise SettingError(f"{where}: choices are of strings, and it is a {one.type}.")
    for key, value in (("default", one.default), ("example", one.example)):
        if value is None:
            continue
        try:
            TypeAdapter(one.kind).validate_python(value)
        except ValidationError as problem:
            raise SettingError(f"{where}.{key} is {value!r}. {problem.errors()[0]['msg']}.") from None


def _filled(text: str, where: str, environ: Mapping[str, str]) -> str:
    """With the variables of the environment that it names as ${NAME}."""
    for name in SECRET.findall(text):
        if not environ.get(name):
            raise SettingError(f"{where} names ${{{name}}}, which is not set in the environment.")
    filled = SECRET.sub(lambda found: environ[found[1]].strip(), text)
    if not filled.isprintable():
        raise SettingError(f"{where} has characters that no header has. Its variables are one line of text each.")
    return filled
