"""The settings: `TAILSPAN_*`, and those of InfluxDB, Tailscale and headscale, of the environment. Read at the edge."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tailspan_otel.identity import LOOPBACK, Network
from tailspan_otel.peers import peer_of

from tailspan.errors import SettingError
from tailspan.labels import is_zone

LISTEN: Final = "127.0.0.1:8100"
TAILSCALED: Final = Path("/var/run/tailscale/tailscaled.sock")
TOKEN_LENGTH: Final = 16

log = logging.getLogger("tailspan")


@dataclass(frozen=True, slots=True)
class InfluxDB:
    """Where the collector writes and the answers come from: influxdb-client's own settings, and the bucket."""

    url: str  # INFLUXDB_V2_URL
    token: str = field(repr=False)  # INFLUXDB_V2_TOKEN, or INFLUXDB_V2_TOKEN_FILE: reads and deletes
    org: str = "tailspan"  # INFLUXDB_V2_ORG
    bucket: str = "requests"  # INFLUXDB_V2_BUCKET
    timeout_ms: int = 30_000  # INFLUXDB_V2_TIMEOUT: for one question


@dataclass(frozen=True, slots=True)
class TailscaleAPI:
    """Tailscale's API v2, asked with an access token, or as an OAuth client where that is set."""

    key: str | None = field(default=None, repr=False)  # TAILSCALE_API_KEY, or TAILSCALE_API_KEY_FILE
    client_id: str | None = None  # TAILSCALE_OAUTH_CLIENT_ID
    client_secret: str | None = field(default=None, repr=False)  # TAILSCALE_OAUTH_CLIENT_SECRET, or …_SECRET_FILE
    tailnet: str = "-"  # TAILNET; "-" is the credential's own
    url: str = "https://api.tailscale.com"  # TAILSCALE_BASE_URL


@dataclass(frozen=True, slots=True)
class Headscale:
    """headscale's HTTP API."""

    url: str  # HEADSCALE_URL
    key: str = field(repr=False)  # HEADSCALE_API_KEY, or HEADSCALE_API_KEY_FILE


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
    ts_socket: Path = field(default_factory=lambda: TAILSCALED)  # TS_SOCKET: tailscaled's own
    nginx_log: tuple[str, ...] = ()  # logs that the server reads by itself: paths or patterns, comma separated
    nginx_service: str = "nginx"  # whose requests they have: service.name, as the service calls itself
    nginx_environment: str | None = None  # likewise deployment.environment.name
    nginx_host: tuple[str, ...] = ()  # what the service is called in URLs, where lines do not tell; comma separated
    nginx_zone: str = "UTC"  # IANA name: of times without an offset
    nginx_format: str | None = None  # a name, a log_format string, or its file; None: by each line
    trusted_peers: tuple[Network | str, ...] = LOOPBACK  # proxies whose headers are believed in other services' spans
    influxdb: InfluxDB | None = None  # INFLUXDB_V2_*; None: the database file is the store
    collector: str = ""  # OTEL_EXPORTER_OTLP_ENDPOINT, or …_TRACES_ENDPOINT: by which log lines get into InfluxDB
    collector_metrics: str = ""  # URL of the collector's own metrics, where one stands before the store
    readers: tuple[str, ...] = ()  # logins and tags that may read; empty: everybody of the own tailnet
    status: str = ""  # a URL or a file that has `tailscale status --json`
    tailscale: TailscaleAPI | None = None
    headscale: Headscale | None = None

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
                "TAILSPAN_TOKEN_FILE", content("TAILSPAN_TOKEN_FILE", given["TAILSPAN_TOKEN_FILE"])
            )
        if environ.get("TS_SOCKET"):
            values["ts_socket"] = Path(environ["TS_SOCKET"])
        every = {key: value.strip() for key, value in environ.items() if value.strip()}
        values |= {"influxdb": _influxdb(every), "tailscale": _tailscale(every), "headscale": _headscale(every)}
        values["collector"] = (
            environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
        ).strip()
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


def _influxdb(given: Mapping[str, str]) -> InfluxDB | None:
    if "INFLUXDB_V2_URL" not in given:
        return None
    found: dict[str, str | int] = {"url": _web("INFLUXDB_V2_URL", given["INFLUXDB_V2_URL"])}
    if (token := _secret("INFLUXDB_V2_TOKEN", given)) is None:
        fix = (
            "It is in the file that INFLUXDB_V2_TOKEN_FILE names, and that this command makes: tailspan setup influxdb"
        )
        raise SettingError("INFLUXDB_V2_URL is set, and INFLUXDB_V2_TOKEN is not.", fix=fix)
    found["token"] = token
    found |= {name: given[key] for name in ("org", "bucket") if (key := f"INFLUXDB_V2_{name.upper()}") in given}
    if "INFLUXDB_V2_TIMEOUT" in given:
        found["timeout_ms"] = _number("INFLUXDB_V2_TIMEOUT", given["INFLUXDB_V2_TIMEOUT"], "milliseconds", 600_000)
    return InfluxDB(**found)  # type: ignore[arg-type]  # each has its field's type


def _tailscale(given: Mapping[str, str]) -> TailscaleAPI | None:
    key, client_id = _secret("TAILSCALE_API_KEY", given), given.get("TAILSCALE_OAUTH_CLIENT_ID")
    secret = _secret("TAILSCALE_OAUTH_CLIENT_SECRET", given)
    if (client_id is None) != (secret is None):
        missing = "TAILSCALE_OAUTH_CLIENT_SECRET" if secret is None else "TAILSCALE_OAUTH_CLIENT_ID"
        raise SettingError(f"{missing} is not set.", rule="An OAuth client has both an ID and a secret.")
    if key is None and client_id is None:
        return None
    base = given.get("TAILSCALE_BASE_URL")
    return TailscaleAPI(
        key=None if client_id else key,
        client_id=client_id,
        client_secret=secret,
        tailnet=_tailnet("TAILNET", given.get("TAILNET", "-")),
        **({"url": _web("TAILSCALE_BASE_URL", base)} if base else {}),
    )


def _tailnet(key: str, value: str) -> str:
    if value.isascii() and value.isprintable() and not set(value) & set(" /?#%"):
        return value
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is a tailnet's ID or name, or -.")


def _headscale(given: Mapping[str, str]) -> Headscale | None:
    if "HEADSCALE_URL" not in given:
        return None
    if (key := _secret("HEADSCALE_API_KEY", given)) is None:
        raise SettingError(
            "HEADSCALE_URL is set, and HEADSCALE_API_KEY is not.", fix="Make a key: headscale apikeys create"
        )
    return Headscale(_web("HEADSCALE_URL", given["HEADSCALE_URL"]), key)


def _secret(key: str, given: Mapping[str, str]) -> str | None:
    """The key's value, or what is in the file that `<key>_FILE` names. It is never shown."""
    value = content(f"{key}_FILE", given[f"{key}_FILE"]) if f"{key}_FILE" in given else given.get(key)
    if value is not None and not (value and value.isascii() and value.isprintable() and " " not in value):
        raise SettingError(f"{key} is no token.", rule="It is one word of printable ASCII.")
    return value


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


def content(key: str, value: str) -> str:
    """Of the file that is the setting's value. Raises SettingError."""
    try:
        return Path(value).expanduser().read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingError(f"{key} is {value!r}: {problem}.", value=value, rule="It is a readable file.") from problem


def _number(key: str, value: str, unit: str, most: int) -> int:
    if value.isdecimal() and 1 <= int(value) <= most:
        return int(value)
    raise SettingError(f"{key} is {value!r}.", value=value, rule=f"It is a whole number of {unit}, 1 to {most}.")


def _flag(key: str, value: str) -> bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is true or false.")


def _url(key: str, value: str) -> str:
    parts = urlsplit(value)
    if value.startswith("unix:/") or (parts.scheme in ("http", "https") and parts.hostname):
        return value.rstrip("/")
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is http://host:port or unix:/path.")


def _place(key: str, value: str) -> str:
    """A URL that may be shown, or a path."""
    return _web(key, value) if "://" in value else str(Path(value).expanduser())


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _peers(key: str, value: str) -> tuple[Network | str, ...]:
    try:
        return tuple(map(peer_of, _names(value)))
    except ValueError as problem:
        rule = "It is addresses, networks or host names with commas between, as 127.0.0.1, nginx."
        raise SettingError(f"{key} is {value!r}: {problem}.", value=value, rule=rule) from None


def _paths(key: str, value: str) -> tuple[str, ...]:
    return tuple(path.strip() for path in value.split(",") if path.strip())


def _word(key: str, value: str) -> str:
    return value


def _zone(key: str, value: str) -> str:
    if is_zone(value):
        return value
    raise SettingError(f"{key} is {value!r}.", value=value, rule="It is an IANA name such as Europe/Madrid.")


def _web(key: str, value: str) -> str:
    """A URL that may be shown."""
    parts = urlsplit(value)
    if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
        return value.rstrip("/")
    raise SettingError(f"{key} is no URL that it can be.", rule="It is http://host:port, without a user.")


READERS: Final = {
    "TAILSPAN_DB": lambda key, value: Path(value).expanduser(),
    "TAILSPAN_LISTEN": _listen,
    "TAILSPAN_TOKEN": _token,
    "TAILSPAN_ALLOWED_HOSTS": lambda key, value: _names(value.lower()),
    "TAILSPAN_RETENTION_DAYS": lambda key, value: _number(key, value, "days", 36500),
    "TAILSPAN_SETTINGS": lambda key, value: Path(value).expanduser(),
    "TAILSPAN_USERSPACE": _flag,
    "TAILSPAN_TRUSTED_PEERS": _peers,
    "TAILSPAN_URL": _url,
    "TAILSPAN_COLLECTOR_METRICS": _web,
    "TAILSPAN_READERS": lambda key, value: _names(value),
    "TAILSPAN_STATUS": _place,
    "TAILSPAN_NGINX_LOG": _paths,
    "TAILSPAN_NGINX_SERVICE": _word,
    "TAILSPAN_NGINX_ENVIRONMENT": _word,
    "TAILSPAN_NGINX_HOST": lambda key, value: _names(value),
    "TAILSPAN_NGINX_ZONE": _zone,
    "TAILSPAN_NGINX_FORMAT": _word,
}
INFLUXDB_KEYS: Final = frozenset(
    f"INFLUXDB_V2_{name}"
    for name in ("URL", "ORG", "BUCKET", "TOKEN", "TOKEN_FILE", "TIMEOUT", "ADMIN_TOKEN", "ADMIN_TOKEN_FILE")
)
TAILNET_KEYS: Final = frozenset(
    (
        *("TS_SOCKET", "TAILNET", "TAILSCALE_API_KEY", "TAILSCALE_API_KEY_FILE", "TAILSCALE_BASE_URL"),
        *("TAILSCALE_OAUTH_CLIENT_ID", "TAILSCALE_OAUTH_CLIENT_SECRET", "TAILSCALE_OAUTH_CLIENT_SECRET_FILE"),
        *("HEADSCALE_URL", "HEADSCALE_API_KEY", "HEADSCALE_API_KEY_FILE"),
    )
)
KEYS: Final = READERS.keys() | {"TAILSPAN_TOKEN_FILE"} | INFLUXDB_KEYS | TAILNET_KEYS
