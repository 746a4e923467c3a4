"""The settings: `TAILSPAN_*` of the environment, read once, at the edge."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tailspan.errors import SettingError

LISTEN: Final = "127.0.0.1:8100"
TOKEN_LENGTH: Final = 16

log = logging.getLogger("tailspan")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an owner may decide. Each field is the setting `TAILSPAN_<FIELD>`, unless it says otherwise."""

    db: Path = field(default_factory=lambda: Path("~/.local/share/tailspan/tailspan.duckdb").expanduser())
    listen: str = LISTEN  # "host:port", or "unix:/path" of a socket
    token: str | None = field(default=None, repr=False)  # also TAILSPAN_TOKEN_FILE; who shows it may read and write
    allowed_hosts: tuple[str, ...] = ()  # names this server is reached by beside localhost; comma separated
    retention_days: int = 400  # requests older than this are deleted
    settings: Path | None = None  # the TOML file of features, pages, cards, polls and checkers: docs/settings.md
    userspace: bool | None = None  # tailscaled runs without a TUN device; None: ask it
    url: str = ""  # where the commands find the server: a URL or "unix:/path"; else where it listens
    ts_socket: Path = Path("/var/run/tailscale/tailscaled.sock")  # TS_SOCKET: tailscaled's own

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Raises SettingError with the key, the value and the rule. Warns of keys that nobody reads."""
        given = {key: value.strip() for key, value in environ.items() if key.startswith("TAILSPAN_") and value.strip()}
        for key in sorted(given.keys() - KEYS):
            nearest = get_close_matches(key, KEYS, n=1)
            log.warning("%s is no setting%s", key, f"; did you mean {nearest[0]}?" if nearest else "")
        values = {
            key.removeprefix("TAILSPAN_").lower(): READERS[key](key, given[key]) for key in given.keys() & READERS
        }
        if "TAILSPAN_TOKEN_FILE" in given:
            values["token"] = _token(
                "TAILSPAN_TOKEN_FILE", _content("TAILSPAN_TOKEN_FILE", given["TAILSPAN_TOKEN_FILE"])
            )
        if environ.get("TS_SOCKET"):
            values["ts_socket"] = Path(environ["TS_SOCKET"])
        return cls(**values)  # type: ignore[arg-type]  # READERS has the type of each

    @property
    def unix_path(self) -> str | None:
        """The socket to listen on, where it is one."""
        return self.listen.removeprefix("unix:") if self.listen.startswith("unix:") else None

    @property
    def address(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on. Not for a unix socket."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def server(self) -> str:
        """Where the commands find the server: a URL without a slash at its end, or "unix:/path"."""
        return self.url or (self.listen if self.unix_path else f"http://{self.listen}")


def is_loopback(host: str) -> bool:
    """Of an address, or of the name `localhost`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(key: str, value: str) -> str:
    host, _, port = value.rpartition(":")
    if value.startswith("unix:/") or (host and port.isdecimal() and int(port) < 65536):
        return value
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is host:port or unix:/path.")


def _token(key: str, value: str) -> str:
    if len(value) >= TOKEN_LENGTH and value.isascii() and value.isprintable() and " " not in value:
        return value  # the value itself is never shown
    raise SettingError(
        f"{key} holds no usable token.",
        rule=f"A token is {TOKEN_LENGTH} or more printable ASCII characters without a space.",
        fix="Make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
    )


def _content(key: str, value: str) -> str:
    try:
        return Path(value).expanduser().read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingError(f"{key} is {value!r}: {problem}.", value=value, rule="It is a readable file.") from problem


def _days(key: str, value: str) -> int:
    if value.isdecimal() and 1 <= int(value) <= 36500:
        return int(value)
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is a whole number of days, 1 to 36500.")


def _flag(key: str, value: str) -> bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is true or false.")


def _url(key: str, value: str) -> str:
    parts = urlsplit(value)
    if value.startswith("unix:/") or (parts.scheme in ("http", "https") and parts.hostname):
        return value.rstrip("/")
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is http://host:port or unix:/path.")


READERS: Final = {
    "TAILSPAN_DB": lambda key, value: Path(value).expanduser(),
    "TAILSPAN_LISTEN": _listen,
    "TAILSPAN_TOKEN": _token,
    "TAILSPAN_ALLOWED_HOSTS": lambda key, value: tuple(
        name.strip().lower() for name in value.split(",") if name.strip()
    ),
    "TAILSPAN_RETENTION_DAYS": _days,
    "TAILSPAN_SETTINGS": lambda key, value: Path(value).expanduser(),
    "TAILSPAN_USERSPACE": _flag,
    "TAILSPAN_URL": _url,
}
# read by the middleware in the services, which may share the environment
CAPTURE_KEYS: Final = frozenset({"TAILSPAN_TRUSTED_PEERS"})
KEYS: Final = READERS.keys() | {"TAILSPAN_TOKEN_FILE"} | CAPTURE_KEYS
