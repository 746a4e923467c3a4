"""Who is in the tailnet: a file a source that lists its devices, and here what they have in common.

All answer the same question, so that any of them will do: `local` needs tailscaled's socket, `status` somebody else's
`tailscale status --json`, `headscale` and `api` a key of the control server.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, Protocol

import httpx
from pydantic import TypeAdapter
from pydantic_core import from_json
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from tailspan.errors import TailnetError, TailnetState

TIMEOUT_S: Final = 10.0  # for a whole answer
MAX_BYTES: Final = 32_000_000  # of an answer: some 10,000 devices


class Listed(NamedTuple):
    """A device as a source lists it now. Of what a source does not know it says None."""

    node_id: str  # stable id, as whois and spans have it
    node: str  # short name; of a device shared in from another tailnet the full one
    addresses: tuple[str, ...]
    login: str | None  # None for a tagged device: its tags are its identity
    full_name: str | None
    tags: str | None  # comma separated
    kind: str  # person | tagged | shared
    os: str | None = None
    version: str | None = None  # of its Tailscale
    online: bool | None = None
    last_seen: datetime | None = None  # None while it is online
    created: datetime | None = None  # when it joined the tailnet
    expires: datetime | None = None  # when its key does; None where it never does
    expired: bool = False


class Look(NamedTuple):
    """What a source said at one time."""

    devices: tuple[Listed, ...]
    left_out: int = 0  # devices without an address or an id, which nobody can be told by
    tailnet: str | None = None
    suffix: str | None = None  # of MagicDNS names
    own: str | None = None  # node_id of the device that answered
    version: str | None = None  # of the Tailscale that answered
    userspace: bool | None = None  # it runs without a TUN device
    health: tuple[str, ...] = ()  # what it says is wrong with itself
    key_expires: datetime | None = None  # when the key that it was asked with does
    written: datetime | None = None  # of a file, also of one that is served: when it was


_LOOK: Final = TypeAdapter(Look)


class Source(Protocol):
    """One that lists devices. `name` is its file's; `place` may be shown."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def every_s(self) -> float:
        """How often it is looked at."""

    def look(self) -> Look:
        """What it says now, within TIMEOUT_S. Raises TailnetError."""


def answered(asking: AbstractContextManager[httpx.Response], place: str, fixes: Mapping[int, str]) -> Any:
    """The JSON of a `client.stream(…)`. `fixes`: what to do about a status. Raises TailnetError."""
    try:
        with asking as answer:
            body = _body(answer, place)
    except httpx.TimeoutException as problem:
        raise TailnetError("slow", f"{place} did not answer in time.") from problem
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise TailnetError("unreachable", f"{place} does not answer: {problem}.") from problem
    if not answer.is_success:
        raise _refused(answer, body, place, fixes)
    return parsed(body, place)


def _body(answer: httpx.Response, place: str) -> bytes:
    """However slowly it drips, and however much it would be."""
    until, body = time.monotonic() + TIMEOUT_S, bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            raise TailnetError("unreadable", f"{place} answers more than {MAX_BYTES // 10**6} MB.")
        if time.monotonic() > until:
            raise TailnetError("slow", f"{place} took longer than {TIMEOUT_S:.0f} s.")
    return bytes(body)


def _refused(answer: httpx.Response, body: bytes, place: str, fixes: Mapping[int, str]) -> TailnetError:
    states: dict[int, TailnetState] = {
        401: "wrong token",
        403: "not allowed",
        404: "unreadable",
        429: "asked too often",
    }
    said = body[:200].decode(errors="replace").strip()
    return TailnetError(
        states.get(answer.status_code, "unreachable"),
        f"{place} answered {answer.status_code}: {said!r}.",
        fix=fixes.get(answer.status_code),
        again_s=_wished(answer.headers.get("retry-after")),
    )


def _wished(retry_after: str | None) -> float | None:
    """RFC 9110's seconds or date, as seconds from now."""
    try:
        return None if retry_after is None else Retry().parse_retry_after(retry_after)
    except InvalidHeader:
        return None


def parsed(body: bytes, place: str) -> Any:
    """Raises TailnetError where it is no JSON object."""
    try:
        content = from_json(body)  # which refuses half a surrogate pair, as json.loads does not
    except ValueError as problem:
        raise TailnetError("unreadable", f"{place} answers no JSON: {problem}.") from problem
    if not isinstance(content, dict):
        raise TailnetError("unreadable", f"{place} answers no JSON object.")
    return content


@contextmanager
def expected(place: str) -> Iterator[None]:
    """Raises TailnetError where what is read in it has another shape."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        raise TailnetError("unreadable", f"{place} answers in another shape: {problem!r}.") from problem


def listed(entries: Iterable[Any], read: Callable[[Any], Listed]) -> tuple[tuple[Listed, ...], int]:
    """The devices, and how many entries were left out for want of an address or an id."""
    found = [read(entry) for entry in entries]
    devices = tuple(device for device in found if device.addresses and device.node_id)
    return devices, len(found) - len(devices)


def checked(look: Look) -> Look:
    """The same. Raises ValueError where a field has another type."""
    return _LOOK.validate_python(look, strict=True)


def addresses(texts: Iterable[str] | None) -> tuple[str, ...]:
    """In their one canonical form. Raises ValueError for what is no address."""
    return tuple(str(ip_address(text)) for text in texts or ())


def moment(text: str | None) -> datetime | None:
    """Of RFC 3339. Go's zero time, and text that is empty, is no time. Raises ValueError."""
    if not text or text.startswith("0001-"):
        return None
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
