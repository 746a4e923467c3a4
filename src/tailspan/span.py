"""The record in the middle: a request as a span, the beat that says a service lives, and whose an address was.

Every way in makes these, every store keeps them, every answer is read from them. Named tuples rather than frozen
dataclasses: an immutable record just the same, made and taken apart in C at the rate spans arrive.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """One request as its service saw it, or a card as it was seen.

    Times are nanoseconds since 1970 in UTC; None is "not known", never zero.
    """

    trace_id: bytes  # 16 bytes; together with span_id this is one request, however often it is delivered
    span_id: bytes  # 8 bytes
    parent_id: bytes | None  # 8 bytes: the span that made this request, such as the proxy's
    start_ns: int
    duration_ns: int | None  # None where the source knows no response time
    path: str | None  # as requested, without the query string
    visible_ms: int | None  # of a view: how long the card was seen
    open_ns: int | None  # of a stream or a websocket: how long it was open, which is no response time

    # From here on a few combinations repeat: see `about`.
    service: str  # service.name; "unknown_service" where the sender gave none, as OpenTelemetry has it
    environment: str | None  # deployment.environment.name
    method: str  # one of attributes.METHODS, else "_OTHER"
    route: str | None  # the route's template; None for an unmatched path
    status: int | None  # HTTP status code; None where no answer was sent
    login: str | None  # who, where identity_source says how that is known
    full_name: str | None
    node: str | None  # the device's short name when the request was made
    node_id: str | None  # its stable id: what devices are counted by
    tags: str | None  # of a tagged node, comma separated
    address: str | None  # the caller's tailnet address, vouched for
    guess: str | None  # what the user agent names ("iPhone") while no node is known; never counted as a device
    source: str  # live | log | page
    identity_source: str  # serve_header | nginx_auth | whois | status | device_list | none
    proven: bool  # False where a tailnet peer could have reached the service past its proxy
    caller: str  # person | tagged | shared | funnel | local | unknown
    traffic: str  # agent | internal | health | asset | page | poll | api
    page: str | None  # the page asked for, or the page the call came from; path only
    client_address: str | None  # as the proxy vouches, else the peer's
    user_agent: str | None
    schema: int  # version of the attribute table; 0 for a span of foreign instrumentation
    kind: str = "request"  # request | view (a card was seen)
    card: str | None = None  # of a view: which card
    variant: str | None = None  # of a view: in which of its forms
    claim: str | None = None  # of a log's line: the login it names by identity_source, believed where that is declared
    polled: bool = False  # of a log's line: by its rhythm a poll, where its traffic is api
    by_proxy: bool = False  # of a log's line: its proxy asked no service for the answer, and says so

    @property
    def end_ns(self) -> int:
        """When it ended, as far as that is known."""
        return self.start_ns + (self.duration_ns or self.open_ns or 0)

    @property
    def about(self) -> tuple[object, ...]:
        """Everything that repeats among spans of one caller and route: the fields from `service` on."""
        return self[len(OWN) :]

    @property
    def endpoint(self) -> str | None:
        """What was called: the route, else the path."""
        return self.route or self.path

    @property
    def device(self) -> str | None:
        """The device as people are shown it: its name, or a guess marked as one, as in "iPhone (?)"."""
        return self.node or (f"{self.guess} (?)" if self.guess else None)


FORGED_KINDS = re.compile(r"[a-z]{1,20}=[0-9]{1,9}(,[a-z]{1,20}=[0-9]{1,9}){0,9}")  # all that is kept of such a text
OWN_SERVICE = "tailspan"  # the server among the services: its viewers are recorded like anybody's users
OWN = Span._fields[: Span._fields.index("service")]  # the fields that differ from span to span
ABOUT = Span._fields[len(OWN) :]


class Heartbeat(NamedTuple):
    """A stretch of time in which a process of a service lived. Sent again with the same ids and a later end.

    Counts are of this stretch. No request, so none of a request's fields.
    """

    trace_id: bytes
    span_id: bytes
    start_ns: int
    end_ns: int  # of the newest beat
    service: str
    environment: str | None
    stopped: bool  # a clean stop: silence after it is no outage
    forged: int  # requests in which somebody claimed what only a trusted proxy may say
    unproven: int  # requests whose identity headers were believed without proof
    dropped: int  # spans the service lost
    open_requests: int  # requests open for over a minute: websockets, streams
    forged_kinds: str | None = None  # how many of `forged` were of which kind, as in "bypass=1,untrusted=2"


class Device(NamedTuple):
    """Whose an address was for a while, as spans told it or a list of the tailnet's devices (source `device_list`).

    Of one address, the entry that began last holds until its own end; `turn` decides between two of one instant.
    """

    address: str
    node_id: str
    node: str  # the device's name then
    login: str | None  # None for a tagged device
    full_name: str | None
    tags: str | None  # comma separated
    kind: str  # person | tagged | shared
    source: str  # whois | status | device_list | as a span's identity_source
    from_ns: int
    to_ns: int | None  # exclusive; None while it holds

    @property
    def who(self) -> tuple[str | None, ...]:
        """What makes it another entry: device, name, owner, tags, kind."""
        return self.node_id, self.node, self.login, self.tags, self.kind

    @property
    def turn(self) -> tuple[int | str, ...]:
        """Where it stands in a history."""
        login, name, tags = self.login or "", self.full_name or "", self.tags or ""
        return self.from_ns, self.address, self.node_id, self.node, login, name, tags, self.kind, self.source


def by_kind(texts: Iterable[str | None]) -> dict[str, int]:
    """The sums of what heartbeats' `forged_kinds` say."""
    counts: Counter[str] = Counter()
    for pair in ",".join(filter(None, texts)).split(","):
        kind, _, count = pair.partition("=")
        counts[kind] += int(count or 0)
    return dict(sorted((kind, count) for kind, count in counts.items() if count))
