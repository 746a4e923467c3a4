"""The ways in, a file a source: bytes in, spans out, and what is dropped is counted with its reason."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from tailspan_otel import attributes as names

from tailspan.span import Heartbeat, Span

AHEAD_NS: Final = 600 * 10**9  # how far a service's clock may be ahead of ours
BROKEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffd]")
SERVER: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")  # before the path of a URL


@dataclass(slots=True)
class Delivery:
    """What one delivery held. `ignored` is not for us (and no mistake); `rejected` is, but is wrong. Reason → count."""

    spans: list[Span] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


def shown(line: bytes) -> str:
    """As a person may be shown it, whatever a client wrote: 200 bytes at most, none of which steers a terminal."""
    text = line[:200].decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def clean(value: Any) -> str | None:
    """None for what is no text. Else as collector-config.yaml cleans it, where the reasons are.

    That is: a space for each character that steers, be it a terminal or the direction of text, and for U+FFFD; a slash
    for each backslash; MAX_LENGTH bytes at most.
    """
    if not isinstance(value, str):
        return None
    if len(value) > names.MAX_LENGTH // 4 or not (value.isascii() and value.isprintable()):
        value = BROKEN.sub(" ", value).encode()[: names.MAX_LENGTH].decode(errors="ignore")
    return value.replace("\\", "/") or None
