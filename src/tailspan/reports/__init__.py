"""The answers people ask for, a file an answer: its parameters, its shape, and the Queries it is made of.

Here is what they share. Shapes are what the HTTP endpoints return.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tailspan.collector import Collector, CollectorState
from tailspan.coverage import Coverages
from tailspan.directory import Directory, DirectoryState
from tailspan.errors import QuestionError, Trouble
from tailspan.labels import Checker, Labels, LabelsFile
from tailspan.logfiles import LogState
from tailspan.query import Range, nanoseconds
from tailspan.store import ServiceState, State, Store

Traffic = Literal["agent", "internal", "health", "asset", "page", "poll", "api"]
PERSON: Final = ("person",)
MORE: Final[Any] = Field(description="Of each list that is cut: how many entries it lacks, at most.")


@dataclass(frozen=True, slots=True)
class Sources:
    """What answers are made of: where spans are kept, and what the owner calls things."""

    store: Store
    labels: LabelsFile
    collector: Collector | None = None  # the one before the store
    tailnet: Directory | None = None  # who is in it
    log: Callable[[], LogState] | None = None  # the log that is read here
    coverage: Coverages = field(default_factory=Coverages)

    def meaning(self) -> Labels:
        """What the owner calls things; and whose lines in a log are checks without being declared."""
        own = self.tailnet.proxies if self.tailnet else ()
        labels = self.labels.read()
        checkers = (Checker(tailnet_address=address, source="log") for address in own)
        return replace(labels, checkers=(*labels.checkers, *checkers))

    def told(self, now: datetime) -> "list[Source]":
        """The state of each, for the answer. Of what is optional, only where it should be there."""
        told = [_source(self.store.state(nanoseconds(now)))]
        if self.collector:
            seen = self.collector.seen(now)
            told.append(Source(name="collector", state=seen.state, message=seen.message, newest=None))
        if self.tailnet:
            for one in self.tailnet.told(now):
                told.append(Source(name=one.name, state=one.state, message=one.message, newest=None))
        if self.log:
            log = self.log()
            told.append(Source(name="log", state=log.state, message=log.message, newest=None))
        for name, state, message in self.coverage.told(self.store, now):
            told.append(Source(name=name, state=state, message=message, newest=None))
        self.labels.read()
        if self.labels.path:
            told.append(Source(name="settings", state=self.labels.state, message=self.labels.message, newest=None))
        for document in self.labels.documents:
            name = f"openapi {document.service}"
            told.append(Source(name=name, state=document.state, message=document.message, newest=None))
        return told


class Filters(BaseModel):
    """What every question takes. An unknown parameter is refused: ignored, it would look like an answer to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Annotated[str | None, Field(description="Only this service (`service.name`).")] = None
    environment: Annotated[str | None, Field(description="Only this environment.")] = None
    user: Annotated[str | None, Field(description="Only this login.")] = None
    device: Annotated[str | None, Field(description="Only this device, by name or stable id.")] = None

    def as_filters(self) -> dict[str, tuple[str, ...]]:
        given = self.model_dump(include={"service", "environment", "user", "device", "traffic"}, exclude_none=True)
        return {name: (value,) for name, value in given.items()}


class Window(BaseModel):
    """The time an answer is about."""

    start: str
    end: str = Field(description="Not included: when it was asked.")
    zone: str = Field(description="Of its days and hours, by the settings.")


def window_of(range: Range, zone: str) -> dict[str, str]:
    """The entries of a Window."""
    return {"start": iso(range.start_ns), "end": iso(range.end_ns), "zone": zone}


class Service(BaseModel):
    """One service as this server hears it. Counts are of the last 24 hours."""

    service: str
    environment: str | None
    last_request: str | None
    last_heartbeat: str | None
    stopped: bool = Field(description="Its last heartbeat said that it stopped on purpose.")
    forged: int = Field(description="Requests in which somebody claimed what only a trusted proxy may say.")
    forged_kinds: dict[str, int] = Field(description="How many of them were of which kind (docs/attributes.md).")
    unproven: int = Field(description="Requests whose identity headers were believed without proof.")
    dropped: int = Field(description="Spans it lost before they got here.")
    open_requests: int = Field(description="Requests open for over a minute at its last heartbeat.")


class Source(BaseModel):
    """Where an answer comes from, and what is wrong with that."""

    name: str
    state: Literal["ok", "no data yet", "ignored", "gaps", "doubled"] | Trouble | CollectorState | DirectoryState
    message: str
    newest: str | None = Field(None, description="When its newest request of a service began.")
    services: list[Service] = []


def write_cursor(*place: int | str | None) -> str:
    """Where to go on: opaque to the caller."""
    return urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *types: type) -> list[Any]:
    """The place, of these types (numbers are times). Raises QuestionError for what `write_cursor` did not write."""
    try:
        place = json.loads(urlsafe_b64decode(cursor + "=="))
        if not isinstance(place, list) or len(place) != len(types):
            raise ValueError("another cursor")
        for value, kind in zip(place, types, strict=True):
            if not isinstance(value, kind) or (isinstance(value, int) and not 0 <= value < 2**62):
                raise ValueError("no time")
        return place
    except (ValueError, TypeError, RecursionError):
        raise QuestionError(
            f"cursor is {cursor!r}.", value=cursor, rule="It is next_cursor of an earlier answer, unchanged."
        ) from None


def iso(time_ns: int) -> str:
    """UTC with `Z`, to the millisecond, rounded down."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9 // 10**6:03}Z"


def ago(seconds: float) -> str:
    """In words: `just now`, `2 min ago`, `3 h ago`, `1 day ago`, `4 days ago`."""
    for size, word, words in ((86400, "day", "days"), (3600, "h", "h"), (60, "min", "min")):
        if (count := int(seconds // size)) > 0:
            return f"{count} {word if count == 1 else words} ago"
    return "just now"


def rounded(milliseconds: object) -> float | None:
    """To the microsecond."""
    return round(milliseconds, 3) if isinstance(milliseconds, float) else None


def _source(state: State) -> Source:
    services = [_service(service) for service in state.services]
    newest = None if state.newest_ns is None else iso(state.newest_ns)
    return Source(name=state.name, state=state.state, message=state.message, newest=newest, services=services)


def _service(state: ServiceState) -> Service:
    return Service(
        service=state.service,
        environment=state.environment,
        last_request=None if state.last_request_ns is None else iso(state.last_request_ns),
        last_heartbeat=None if state.last_heartbeat_ns is None else iso(state.last_heartbeat_ns),
        stopped=state.stopped,
        forged=state.forged,
        forged_kinds=state.forged_kinds,
        unproven=state.unproven,
        dropped=state.dropped,
        open_requests=state.open_requests,
    )
