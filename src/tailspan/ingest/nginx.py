"""nginx's logs: each format is nginx's own `log_format` string, and what reads it is made from that.

A client writes its headers as it likes, so a value of theirs may hold anything but what nginx escapes: a quote, and the
end of the line. Where no quotes stand around it, it is therefore read up to the *last* place at which the rest of the
line fits: what a client writes can look like another line's beginning, but it cannot become it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tailspan.errors import SettingError

# log_format of nginx.org, "ngx_http_log_module"; the others are docs/backfill.md's
FORMATS: Final[Mapping[str, str]] = {
    "combined": (
        '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent"'
    ),
    "main": (  # in nginx.conf of nginx.org's packages, and so of the container image
        '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent" "$http_x_forwarded_for"'
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
    "remote_addr": r"[0-9a-fA-F.:]+|unix:",
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
    "scheme": "https?",
    "server_port": r"\d+|-|",
}
QUOTED: Final = r'[^"\n]*+'
QUOTED_JSON: Final = r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+'
UNQUOTED: Final = r'[^"\n]*'
TABBED: Final = r"[^\t\n]*+"  # before a tab, which nginx escapes too
HOST: Final = r'[^/"\n]*'  # nginx refuses a name with a slash
REQUEST_URI: Final = ("$request_uri", "${request_uri}")
NOBODY: Final = r'-|[^"\n]*'  # likewise, where only one place fits, so that the commonest may be looked for first
BEFORE_QUOTE: Final = ' [$time_local] "'  # what follows such a place
READ: Final = frozenset(  # the others are passed over
    (
        *("remote_addr", "remote_user", "request", "request_method", "request_uri", "status", "host", "http_host"),
        *("http_referer", "http_user_agent", "http_accept", "http_sec_fetch_dest", "sent_http_content_type"),
        *("http_tailscale_user_login", "upstream_status", "request_id", "request_time"),
        "body_bytes_sent",  # by which two requests are told apart
        *("msec", "time_iso8601", "time_local"),
    )
)
TIMES: Final = ("msec", "time_iso8601", "time_local")  # the exact one first
NEEDED: Final = (
    ("when ($time_local, $time_iso8601 or $msec)", TIMES),
    ("the path ($request or $request_uri)", ("request", "request_uri")),
    ("the method ($request or $request_method)", ("request", "request_method")),
    ("the answer ($status)", ("status",)),
    ("from where ($remote_addr)", ("remote_addr",)),
)
UNSAFE: Final = "The log_format {} has escape=none: a request may hold line ends there, and write others' lines."
SAFE: Final = "Take escape=json, or leave escape out, and give the log that is written since."
GIVE: Final = "Give a name, or the path of the file that has the log_format, such as /etc/nginx/nginx.conf."
# what nginx's settings are made of ("ngx_conf_read_token"): a string, an end, or a bare word
WORD: Final = re.compile(
    r"""'(?P<single>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\#[^\n]*|(?P<end>[;{}])"""
    r"""|(?P<bare>(?:\$\{\w+\}|[^\s;{}'"\#])(?:\$\{\w+\}|[^\s;{}])*)""",
    re.DOTALL,
)
# and what a backslash makes of what follows it
BACKSLASH: Final = re.compile(r"""\\(["'\\tnr])""")
CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r"}
VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
ESCAPED: Final = re.compile(rb'\\(?:x([0-9A-Fa-f]{2})|u00([0-9A-Fa-f]{2})|(["\\/])|([nrtbf]))')


@dataclass(frozen=True)
class Format:
    """What reads one format. `pattern`'s first group is the whole line, the others are `variables`, in order."""

    name: str
    text: str
    escape: str = "default"  # as log_format says
    variables: tuple[str, ...] = field(init=False)
    pattern: re.Pattern[bytes] = field(init=False)

    def __post_init__(self) -> None:
        names: list[str] = []
        parts, last, json = [], 0, self.escape == "json" or self.text.startswith("{")
        for found in VARIABLE.finditer(self.text):
            name = found[1] or found[2]
            before, after = self.text[last : found.start()], self.text[found.end() :]
            value = OWN.get(name) or _value(name, before, after, json=json)
            wanted = name in READ and name not in names
            parts += [re.escape(before), f"({value})" if wanted else f"(?:{value})"]
            names += [name] * wanted
            last = found.end()
        parts.append(re.escape(self.text[last:]))
        object.__setattr__(self, "variables", tuple(names))
        object.__setattr__(self, "pattern", re.compile(f"^({''.join(parts)})\r?$".encode(), re.MULTILINE))

    @property
    def is_safe(self) -> bool:
        """Whether nothing that a client sends ends the line."""
        return self.escape != "none"

    @property
    def time(self) -> str:
        """The variable that tells when."""
        return next(name for name in TIMES if name in self.variables)


def _value(name: str, before: str, after: str, *, json: bool) -> str:
    """The pattern of what a client may write there."""
    if before.endswith('"') and after.startswith('"'):
        return QUOTED_JSON if json else QUOTED
    if after.startswith("\t"):
        return TABBED
    if name == "host" or after.startswith(REQUEST_URI):
        return HOST
    return NOBODY if after.startswith(BEFORE_QUOTE) else UNQUOTED


def own_formats(text: str, setting: str = "--format") -> list[Format]:
    """Of a `log_format` as it stands in nginx.conf, of its string alone, or of the path of a file that has some.

    Also those that a client may write lines into, so that their lines are known as that: not `is_safe`. Raises
    SettingError, which names the setting, where there is none that can tell a request, or none but such.
    """
    string = f"log_format own {text};" if text.lstrip().startswith("'") else text
    named = list(_directives(string)) or ([Format("own", _meant(text))] if "$" in text else _in_file(text, setting))
    whole = [form for form in named if not _lacks(form)]
    if not whole:
        lacking = "; ".join(_lacks(named[0]))
        raise SettingError(f"{_is_none(text, setting)} and lacks {lacking}.", value=text, fix=GIVE)
    if not any(form.is_safe for form in whole):
        raise SettingError(UNSAFE.format(whole[0].name), value=text, fix=SAFE)
    return sorted(whole, key=lambda form: not form.is_safe)


def _is_none(text: str, setting: str) -> str:
    return f"{setting} is {text!r}, which is none of {', '.join(FORMATS)}"


def _lacks(form: Format) -> list[str]:
    names = {one or other for one, other in VARIABLE.findall(form.text)}
    lacking = [what for what, any_of in NEEDED if names.isdisjoint(any_of)]
    return lacking + ["one line for each request (it has \\n)"] * ("\n" in form.text)


def _in_file(path: str, setting: str) -> list[Format]:
    try:
        named = list(_directives(Path(path).read_text("utf-8", "replace")))
    except (OSError, ValueError) as problem:
        told = f"{_is_none(path, setting)}, no log_format, and no file: {problem}."
        raise SettingError(told, value=path, fix=GIVE) from None
    if not named:
        told = (
            f"{setting} is {path!r}, which has no log_format: nginx writes combined then, or what an included file has."
        )
        raise SettingError(told, value=path, fix="Give all files in one: sudo nginx -T > all.conf")
    return named


def _directives(conf: str) -> Iterator[Format]:
    """Each log_format, by nginx's rules for what is quoted."""
    words: list[str] = []
    for found in WORD.finditer(conf):
        word, end = found["single"] or found["double"] or found["bare"], found["end"]
        if not end:
            words += [_meant(word)] if word else []
            continue
        yield from _directive(words)
        words = []
    yield from _directive(words)


def _meant(word: str) -> str:
    return BACKSLASH.sub(lambda found: CONTROLS.get(found[1], found[1]), word)


def _directive(words: list[str]) -> Iterator[Format]:
    if len(words) > 2 and words[0] == "log_format":
        escape = words[2].removeprefix("escape=") if words[2].startswith("escape=") else ""
        yield Format(words[1], "".join(words[3 if escape else 2 :]), escape or "default")


def chosen(name: str | None, setting: str = "--format") -> list[Format]:
    """The format of that name, or what `own_formats` has of it; without one all that may be found. Raises likewise."""
    if name is None:
        return [Format(*one) for one in FORMATS.items()]
    return [Format(name, FORMATS[name])] if name in FORMATS else own_formats(name, setting)


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
