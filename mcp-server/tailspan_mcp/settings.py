"""What the MCP server is told: the environment, and two tables of tailspan's TOML file."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx2

from tailspan_mcp.declared import Service, SettingError, services, variables_of
from tailspan_mcp.words import LANGUAGES, Language

URL: Final = "http://127.0.0.1:8100"


@dataclass(frozen=True, slots=True)
class Settings:
    url: str = URL  # TAILSPAN_URL: of the server, or "unix:/path"
    token: str | None = field(default=None, repr=False)  # TAILSPAN_TOKEN, or TAILSPAN_TOKEN_FILE
    language: Language = "en"  # `language` of the TOML file that TAILSPAN_SETTINGS names
    services: tuple[Service, ...] = ()  # its `services`
    problems: tuple[str, ...] = ()  # what of these two is wrong, and left out
    variables: tuple[str, ...] = ()  # of the environment, that the headers of services name

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Raises SettingError with the key, the value and the rule; a wrong entry of the file is one of `problems`."""
        given = {key: value.strip() for key, value in environ.items() if value.strip()}
        token = given.get("TAILSPAN_TOKEN")
        if "TAILSPAN_TOKEN_FILE" in given:
            token = _content("TAILSPAN_TOKEN_FILE", Path(given["TAILSPAN_TOKEN_FILE"])).strip()
        if token and not token.isprintable():
            raise SettingError("TAILSPAN_TOKEN has characters that no token has. It is one line of text.")
        path = Path(given["TAILSPAN_SETTINGS"]).expanduser() if "TAILSPAN_SETTINGS" in given else None
        told = read_tables(path, environ) if path else cls()
        return replace(told, url=_url(given.get("TAILSPAN_URL", URL)), token=token)

    def client(self) -> httpx2.AsyncClient:
        """Of the server. It waits as long as whoever asks does."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if not self.url.startswith("unix:"):
            return httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=None)
        transport = httpx2.AsyncHTTPTransport(uds=self.url.removeprefix("unix:"))
        return httpx2.AsyncClient(
            base_url="http://localhost", transport=transport, headers=headers, trust_env=False, timeout=None
        )


def read_tables(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """What a settings file says of language and services; its other tables are tailspan's.

    Raises SettingError for what cannot be read at all.
    """
    try:
        content: dict[str, Any] = tomllib.loads(_content("TAILSPAN_SETTINGS", path))
    except tomllib.TOMLDecodeError as problem:
        raise SettingError(f"{path} is no TOML: {problem}.") from None
    found, problems = services(content.get("services", {}), str(path), environ)
    language = content.get("language", "en")
    if language not in LANGUAGES:
        problems = (f"{path}: language is {language!r}. It is one of: {', '.join(LANGUAGES)}.", *problems)
        language = "en"
    variables = variables_of(content.get("services"))
    return Settings(language=language, services=found, problems=problems, variables=variables)


def _url(value: str) -> str:
    if "@" in value:
        raise SettingError("TAILSPAN_URL has a name or a password in it. They go elsewhere: TAILSPAN_TOKEN.")
    if value.startswith(("http://", "https://", "unix:/")):
        return value.rstrip("/")
    raise SettingError(f"TAILSPAN_URL is {value!r}. It is http://host:port or unix:/path.")


def _content(key: str, path: Path) -> str:
    try:
        return path.expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingError(f"{key} is {str(path)!r}, which cannot be read: {problem}.") from None
