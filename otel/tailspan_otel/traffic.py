"""What kind of request it was, and on which page: pure functions of one request, and the rule that finds polls.

The definitions are the product's promise (docs/definitions.md): the first that fits of agent, internal, health, asset,
page, poll, api. Whoever makes a span calls this: the middleware, and whatever reads a proxy's log.
"""

import re
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

AGENT_PATH: Final = "/analytics/mcp"
AGENT: Final = b"tailspan-mcp/"  # how the User-Agent of our MCP server begins, when it asks tailspan or a service
OWN_PATH: Final = "/analytics/"
DELIVERY_PATH: Final = "/analytics/v1/traces"
REFRESH_PATH: Final = "/analytics/refresh"  # what a card asks every other second, beside the question it is seen by
HEALTH_PREFIXES: Final = ("/health", "/ready")
HEALTH_PATHS: Final = frozenset(("/livez", "/ping", "/metrics"))
ASSET_ENDING: Final = re.compile(
    r"\.(avif|bmp|css|eot|gif|ico|jpe?g|m?js|map|mp[34]|ogg|otf|png|svg|ttf|wasm|wav|webm|webmanifest|webp|woff2?)",
    re.IGNORECASE,
)
PAGE_DESTINATIONS: Final = frozenset(("", "document", "empty", "iframe"))

SESSION_NS: Final = 30 * 60 * 10**9
EVENNESS: Final = 0.10
MAX_CALLERS: Final = 1000
MAX_ROUTES: Final = 64
NEVER: Final = (0, 0, 0)  # 1970: no request began then

_IDENTIFIER = re.compile(
    r"[0-9]+|[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)


@lru_cache(1024)
def templated(path: str) -> str:
    """The path with `{id}` for each segment of digits only, UUID, or 16 and more hex digits."""
    return "/".join("{id}" if _IDENTIFIER.fullmatch(segment) else segment for segment in path.split("/"))


def is_page(method: str, status: int, content_type: str, accept: str) -> bool:
    """A GET answered with `text/html`, or a 304 to a browser that accepts it. A redirect shows no page."""
    if method != "GET":
        return False
    if status == 304:
        return "text/html" in accept
    return content_type.startswith("text/html") and not 300 <= status < 400


@lru_cache(1024)
def page_of_referer(referer: str, hosts: tuple[str, ...]) -> str | None:
    """The templated path of a `Referer` on one of our own `hosts` (`name` or `name:port`), else None."""
    try:
        url = urlsplit(referer)
        port = url.port
    except ValueError:
        return None
    default = {"http": 80, "https": 443}.get(url.scheme)
    if default is None or url.hostname is None:
        return None
    name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    ours = {f"{name}:{port or default}"} | ({name} if port in (None, default) else set())
    return templated(url.path or "/") if ours & {host.lower() for host in hosts} else None


@lru_cache(1024)
def fixed_traffic(path: str, destination: str = "") -> str | None:
    """`agent`, `internal` (our own endpoints), `health` or `asset` where path or `Sec-Fetch-Dest` say so, else None."""
    if path == AGENT_PATH or path.startswith(AGENT_PATH + "/"):
        return "agent"
    if path.startswith(OWN_PATH):
        return "internal"
    if path.startswith(HEALTH_PREFIXES) or path in HEALTH_PATHS:
        return "health"
    ending = ASSET_ENDING.fullmatch(path, path.rfind(".") if "." in path else len(path))
    return "asset" if destination not in PAGE_DESTINATIONS or ending else None


def classify(
    path: str, destination: str, *, local: bool, page: bool, poll: Callable[[], bool], agent: bool = False
) -> str:
    """The traffic of a request; `poll` is asked (and so counts the call) only where nothing else fits."""
    fixed = "agent" if agent else fixed_traffic(path, destination)
    if local and fixed != "agent":
        return "internal"
    if fixed is not None:
        return fixed
    if page:
        return "page"
    return "poll" if poll() else "api"


class _Caller:
    __slots__ = ("last_ns", "routes")

    def __init__(self) -> None:
        self.last_ns = 0
        self.routes: dict[str, tuple[int, int, int]] = {}  # the starts of the last three calls; the oldest route first


class Rhythm:
    """Finds polls by their even gaps.

    Same caller and route, three consecutive gaps within 10 % of their median, no page in between: the fourth call is
    the first poll. A caller's first request after 30 minutes never is one. At most MAX_CALLERS callers with MAX_ROUTES
    routes each are remembered, the longest unseen are forgotten first.
    """

    def __init__(self) -> None:
        self._callers: dict[str, _Caller] = {}  # the longest unseen first
        self._lock = threading.Lock()

    def page(self, caller: str, start_ns: int) -> None:
        """A page was requested: every rhythm of this caller starts anew."""
        with self._lock:
            seen = self._caller(caller)
            seen.routes.clear()
            seen.last_ns = max(seen.last_ns, start_ns)

    def is_poll(self, caller: str, route: str, start_ns: int, resolution_ns: int = 0) -> bool:
        """Notes a call that is no page, and says whether it is a poll. `start_ns` may come slightly out of order.

        Where times are only known to `resolution_ns`, ten times that is the shortest gap that can be called even.
        """
        with self._lock:
            seen = self._caller(caller)
            rested = start_ns - seen.last_ns >= SESSION_NS
            if start_ns > seen.last_ns:
                seen.last_ns = start_ns
            first, second, third = seen.routes.pop(route, NEVER)
            seen.routes[route] = second, third, start_ns
            if len(seen.routes) > MAX_ROUTES:
                del seen.routes[next(iter(seen.routes))]
        gap, gap_before = start_ns - third, third - second
        if gap > 2 * gap_before or gap_before > 2 * gap:  # most are far from even, and cost no more than this
            return False
        return first > 0 and not rested and _even(second - first, gap_before, gap, resolution_ns / EVENNESS)

    def _caller(self, caller: str) -> _Caller:
        seen = self._callers.pop(caller, None)
        seen = self._callers[caller] = seen or _Caller()
        if len(self._callers) > MAX_CALLERS:
            del self._callers[next(iter(self._callers))]
        return seen


def _even(gap: int, next_gap: int, last_gap: int, shortest: float) -> bool:
    least, median, most = sorted((gap, next_gap, last_gap))
    return (
        median > 0 and median >= shortest and median - least <= EVENNESS * median and most - median <= EVENNESS * median
    )


def bounded(limit: int) -> Callable[[str], str]:
    """Keeps the first `limit` different values and answers `other` for the rest: values that become tags stay few."""
    known: set[str] = set()

    def keep(value: str) -> str:
        if value in known:
            return value
        if len(known) >= limit:
            return "other"
        known.add(value)
        return value

    return keep
