"""nginx's logs: each format is nginx's own `log_format` string, and what reads it is made from that.

A client writes its headers as it likes, so a value of theirs may hold anything but what nginx escapes: a quote, and the
end of the line. Where no quotes stand around it, it is therefore read up to the *last* place at which the rest of the
line fits: what a client writes can look like another line's beginning, but it cannot become it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tailspan.errors import SettingError

# log_format of nginx.org, "ngx_http_log_module"; the others are docs/backfill.md's
FORMATS: Final[Mapping[str, str]] = {
    "combined": (
        '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent"'
    ),
    "sidecar": (
        '$remote_addr (via $http_x_forwarded_for) - $remote_user [$time_local] "$request" $status $body_bytes_sent '
        '"$http_referer" "$http_user_agent" TS-User: $http_tailscale_user_login'
    ),
    "tailspan": (
        '{"msec":$msec,"request_id":"$request_id","remote_addr":"$remote_addr","remote_port":"$remote_port",'
        '"remote_user":"$remote_user","host":"$host","request":"$request","status":$status,"bytes":$body_bytes_sent,'
        '"request_time":$request_time,"upstream_status":"$upstream_status",'
        '"upstream_response_time":"$upstream_response_time","content_type":"$sent_http_content_type",'
        '"referer":"$http_referer","user_agent":"$http_user_agent","accept":"$http_accept",'
        '"sec_fetch_dest":"$http_sec_fetch_dest","sec_fetch_mode":"$http_sec_fetch_mode"}'
    ),
}
# what nginx writes by itself, and no client can bend
OWN: Final = {
    "remote_addr": r"[0-9a-fA-F.:]++|unix:",
    "time_local": r"\d\d/\w{3}/\d{4}:[\d:]{8}(?: [+-]\d{4})?",
    "time_iso8601": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d",
    "msec": r"\d{1,12}\.\d{3}",
    "status": r"\d{3}",
    "body_bytes_sent": r"\d+|-",
    "bytes_sent": r"\d+|-",
    "request_length": r"\d+|-",
    "request_time": r"\d{1,9}\.\d{3}|-",
    "request_id": r"[0-9a-f]{32}",
    "remote_port": r"\d+|-|",
    "pid": r"\d+",
    "connection": r"\d+",
    "connection_requests": r"\d+",
}
QUOTED: Final = r'[^"\n]*+'
QUOTED_JSON: Final = r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+'
UNQUOTED: Final = r'[^"\n]*'
READ: Final = frozenset(  # the others are passed over
    (
        *("remote_addr", "remote_user", "request", "request_method", "request_uri", "status", "host", "http_host"),
        *("http_referer", "http_user_agent", "http_accept", "http_sec_fetch_dest", "sent_http_content_type"),
        *("http_tailscale_user_login", "request_id", "request_time", "msec", "time_iso8601", "time_local"),
    )
)
TIMES: Final = ("msec", "time_iso8601", "time_local")  # the exact one first
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
ESCAPED: Final = re.compile(rb'\\(?:x([0-9A-Fa-f]{2})|u00([0-9A-Fa-f]{2})|(["\\/])|([nrtbf]))')


@dataclass(frozen=True)
class Format:
    """What reads one format. `pattern`'s first group is the whole line, the others are `variables`, in order."""

    name: str
    text: str
    variables: tuple[str, ...] = field(init=False)
    pattern: re.Pattern[bytes] = field(init=False)

    def __post_init__(self) -> None:
        names: list[str] = []
        parts, last, json = [], 0, self.text.startswith("{")
        for found in VARIABLE.finditer(self.text):
            name = found[1] or found[2]
            before, after = self.text[last : found.start()], self.text[found.end() :]
            quoted = self.text[: found.start()].endswith('"') and after.startswith('"')
            value = OWN.get(name) or ((QUOTED_JSON if json else QUOTED) if quoted else UNQUOTED)
            wanted = name in READ and name not in names
            parts += [re.escape(before), f"({value})" if wanted else f"(?:{value})"]
            names += [name] * wanted
            last = found.end()
        parts.append(re.escape(self.text[last:]))
        object.__setattr__(self, "variables", tuple(names))
        object.__setattr__(self, "pattern", re.compile(f"^({''.join(parts)})\r?$".encode(), re.MULTILINE))

    @property
    def time(self) -> str:
        """The variable that tells when."""
        return next(name for name in TIMES if name in self.variables)

    @property
    def identified(self) -> bool:
        """Whether each line has the id of its request, which its service was given too."""
        return "request_id" in self.variables


def own_format(text: str) -> Format:
    """Of a `log_format` string as it stands in nginx.conf. Raises SettingError where it cannot tell a request."""
    literal = "".join(re.findall(r"'([^']*)'", text)) if text.lstrip().startswith(("'", "log_format")) else text
    names = {one or other for one, other in VARIABLE.findall(literal)}
    lacking = [
        what
        for what, any_of in (
            ("when ($time_local, $time_iso8601 or $msec)", TIMES),
            ("what ($request, or $request_method and $request_uri)", ("request", "request_uri")),
            ("the answer ($status)", ("status",)),
            ("from where ($remote_addr)", ("remote_addr",)),
        )
        if names.isdisjoint(any_of)
    ]
    if lacking:
        raise SettingError(
            f"--format is {text!r}, which is none of {', '.join(FORMATS)} and lacks {'; '.join(lacking)}.",
            value=text,
            fix="Give a name, or nginx's own log_format string in single quotes.",
        )
    return Format("your own format", literal)


def chosen(name: str | None) -> list[Format]:
    """The format of that name, or of that log_format string; without one all that may be found. Raises SettingError."""
    if name is None:
        return [Format(*one) for one in FORMATS.items()]
    return [Format(name, FORMATS[name]) if name in FORMATS else own_format(name)]


def detected(lines: Iterable[bytes], formats: Iterable[Format]) -> Format | None:
    """The one that most of these lines fit; None where none fits any."""
    seen = list(lines)
    best = max(formats, key=lambda one: sum(map(bool, map(one.pattern.fullmatch, seen))))
    return best if any(map(best.pattern.fullmatch, seen)) else None


def unescaped(value: bytes) -> bytes:
    """As the client sent it: nginx writes `\\x22` for what would break the line, in JSON `\\"` and `\\u0000`."""
    return ESCAPED.sub(_character, value) if b"\\" in value else value


def _character(found: re.Match[bytes]) -> bytes:
    code, json_code, itself, control = found.groups()
    if code or json_code:
        return bytes.fromhex((code or json_code).decode())
    return itself or {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}[control]
