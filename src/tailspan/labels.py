"""What the owner calls things: features, pages, cards, and which requests are polls or checks.

One TOML file, applied when a question is answered, so that a changed name relabels history. It is read again when it
changes; while it is wrong the last good one holds, and answers say so.
"""

import re
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from tailspan.errors import SettingError
from tailspan.openapi import URL, Documents, Summaries


@dataclass(frozen=True, slots=True)
class Checker:
    """Whoever only looks whether a service lives. All that is given must fit; None fits everything."""

    address: str | None = None  # tailnet address, or the address the proxy saw
    node: str | None = None  # stable id or name
    login: str | None = None
    user_agent: str | None = None  # a part of it
    # no settings, but of those that the server knows by itself
    tailnet_address: str | None = None
    source: str | None = None  # live | log


@dataclass(frozen=True, slots=True)
class Labels:
    """The tables of one settings file, and what the OpenAPI documents say that it names."""

    zone: str = "UTC"  # IANA name: in which days and hours are told unless a question names another
    pages: Mapping[str, str] = field(default_factory=dict)  # page as stored → page it counts as
    cards: Mapping[str, str] = field(default_factory=dict)  # card as stored → its name
    card_features: Mapping[str, str] = field(default_factory=dict)  # card's name → feature
    route_features: Mapping[str, str] = field(default_factory=dict)  # route → feature
    page_features: Mapping[str, str] = field(default_factory=dict)  # page → feature
    polls: tuple[str, ...] = ()  # endpoints whose calls are polls
    checkers: tuple[Checker, ...] = ()  # whose requests are health checks
    trusted_logs: Mapping[str, str] = field(default_factory=dict)  # service → identity_source that its log may have
    openapi: Mapping[str, str] = field(default_factory=dict)  # service → path or URL of its OpenAPI document
    summaries: Summaries = field(default_factory=dict)  # what those documents say


class LabelsFile:
    """Follows a settings file and OpenAPI documents. Without a path nothing has a label, and nothing is wrong."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.state: Literal["ok", "ignored"] = "ok"
        self.message = f"The settings {path} are read." if path else "No settings file: TAILSPAN_SETTINGS names one."
        self.documents = Documents()
        self._labels = Labels()
        self._stamp: tuple[int, int] | None = None
        self._reading = threading.Lock()

    def read(self) -> Labels:
        """The newest good content. Never raises: `state` and `message`, also of `documents`, say what is wrong."""
        with self._reading:
            if self.path:
                self._follow(self.path)
            folder = self.path.parent if self.path else Path()
            return replace(self._labels, summaries=self.documents.read(self._labels.openapi, folder))

    def _follow(self, path: Path) -> None:
        try:
            stat = path.stat()
            if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._stamp:
                self._labels = parse(path.read_text("utf-8"), str(path))
                self._stamp = stamp
            self.state, self.message = "ok", f"The settings {path} are read."
        except (OSError, UnicodeDecodeError) as problem:
            self._ignore(f"{path} cannot be read: {problem}.")
        except SettingError as problem:
            self._ignore(str(problem))

    def _ignore(self, why: str) -> None:
        self.state, self.message = "ignored", f"{why} Until then its last good content holds."


def parse(text: str, name: str = "settings.toml") -> Labels:
    """Raises SettingError with the line, the entry, the rule and the nearest name."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise SettingError(f"{name} is no TOML: {problem}.", rule="See toml.io.") from None
    where = _Where(text, name)
    where.known(content, TABLES)
    where.language(content)
    where.table(content, "services")
    features = where.table(content, "features")
    where.known(features, FEATURES)
    return Labels(
        zone=where.zone(content),
        pages=where.names(content, "pages"),
        cards=where.names(content, "cards"),
        card_features=where.names(features, "cards", "features.cards"),
        route_features=where.names(features, "routes", "features.routes"),
        page_features=where.names(features, "pages", "features.pages"),
        polls=where.texts(content, "polls", 'It is a list of endpoints: ["/status"].'),
        checkers=where.checkers(content),
        trusted_logs=where.trusted_logs(content),
        openapi=where.documents(content),
    )


TABLES: Final = {
    "zone": "IANA name of the time zone of days and hours",
    "polls": "list of endpoints whose calls are polls",
    "pages": "page as recorded = page it counts as",
    "cards": "card as recorded = its name",
    "features": "tables routes, pages and cards: what = name of the feature",
    "checkers": "list of tables: whose requests are health checks",
    "trusted_logs": "service = `TS-User` or `$remote_user`: what no client can write in its log, and so names people",
    "language": "`en` or `es`: of the sentences that the MCP server answers with",
    "services": "tables of services that the MCP server may ask: [mcp.md](mcp.md)",
    "openapi": "service = path (from this file) or URL of its OpenAPI document, in JSON",
}
NO_LOGS: Final[Mapping[str, str]] = {}
LANGUAGES: Final = ("en", "es")
# What nginx answers only once it looked at the password, where no `return` stands: all else (redirects, refusals,
# limits, what it cannot read or find) comes before that too (ngx_http_core_module.h: phases), whatever user was sent.
ADMITTED: Final = (101, *range(200, 300), 304)
CLAIMS: Final = {"TS-User": "serve_header", "$remote_user": "nginx_auth"}  # → identity_source of a line with one
FEATURES: Final = {"routes": "route = feature", "pages": "page = feature", "cards": "card's name = feature"}
CHECKERS: Final = {
    "address": "tailnet address, or the address the proxy saw",
    "node": "stable id or name of the device",
    "login": "login of the caller",
    "user_agent": "a part of the user agent",
}


class _Where:
    """Reads entries of one file, and names the line of a bad one."""

    def __init__(self, text: str, name: str) -> None:
        self._lines = text.splitlines()
        self._name = name

    def wrong(self, key: str, value: object, rule: str, fix: str | None = None) -> SettingError:
        entry = re.compile(rf"\s*\[*\s*(\w+\.)?[\"']?{re.escape(key.rpartition('.')[2])}[\"']?\s*[\]=.]")
        line = next((number for number, text in enumerate(self._lines, 1) if entry.match(text)), 1)
        return SettingError(f"{self._name}, line {line}: {key} is {value!r}.", value=str(value), rule=rule, fix=fix)

    def known(self, table: Mapping[str, object], names: Mapping[str, str]) -> None:
        for key in table:
            if key not in names:
                nearest = get_close_matches(key, names, n=1)
                fix = f"Did you mean {nearest[0]!r}?" if nearest else None
                raise self.wrong(key, table[key], f"An entry here is one of: {', '.join(names)}.", fix)

    def table(self, content: Mapping[str, Any], key: str, name: str | None = None) -> dict[str, Any]:
        value = content.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(name or key, value, f"It is a table: [{name or key}].")
        return value

    def names(self, content: Mapping[str, Any], key: str, name: str | None = None) -> dict[str, str]:
        table = self.table(content, key, name)
        for entry, value in table.items():
            if not isinstance(value, str) or not value:
                raise self.wrong(entry, value, f"Each entry of [{name or key}] is a text that is not empty.")
        return table

    def zone(self, content: Mapping[str, Any]) -> str:
        value = content.get("zone", "UTC")
        if is_zone(value):
            return str(value)
        raise self.wrong("zone", value, 'It is an IANA name such as "Europe/Madrid".')

    def language(self, content: Mapping[str, Any]) -> None:
        if content.get("language", LANGUAGES[0]) not in LANGUAGES:
            raise self.wrong("language", content["language"], f"It is one of: {', '.join(LANGUAGES)}.")

    def texts(self, content: Mapping[str, Any], key: str, rule: str) -> tuple[str, ...]:
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, value, rule)
        return tuple(value)

    def trusted_logs(self, content: Mapping[str, Any]) -> dict[str, str]:
        table = self.table(content, "trusted_logs")
        for service, value in table.items():
            if not isinstance(value, str) or value not in CLAIMS:
                rule = f"Each entry of [trusted_logs] is service = {' or '.join(map(repr, CLAIMS))}."
                raise self.wrong(service, value, rule)
        return {service: CLAIMS[value] for service, value in table.items()}

    def checkers(self, content: Mapping[str, Any]) -> tuple[Checker, ...]:
        entries = content.get("checkers", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry for entry in entries):
            raise self.wrong("checkers", entries, f"Each is a table [[checkers]] with any of: {', '.join(CHECKERS)}.")
        for entry in entries:
            self.known(entry, CHECKERS)
            for key, value in entry.items():
                if not isinstance(value, str) or not value:
                    raise self.wrong(key, value, "It is a text that is not empty.")
        return tuple(Checker(**entry) for entry in entries)

    def documents(self, content: Mapping[str, Any]) -> dict[str, str]:
        table = self.names(content, "openapi")
        for service, place in table.items():
            if "://" in place and not place.startswith(URL):
                raise self.wrong(service, place, "It is a path, or a URL that begins with http:// or https://.")
        return table


def is_zone(name: object) -> bool:
    """Whether it is an IANA time zone this machine knows."""
    try:
        return isinstance(name, str) and bool(ZoneInfo(name))
    except (KeyError, ValueError, OSError):  # OSError: the name of a directory, such as "Europe"
        return False
