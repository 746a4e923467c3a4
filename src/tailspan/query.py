"""The question as a value. A store answers it; nothing here or below asks a clock.

The tables are closed: a name outside them is refused here, and so never reaches a store as an identifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Final, NamedTuple

from tailspan.errors import QuestionError

METRICS: Final = {
    "requests": "how many requests",
    "people": "how many different logins of people",
    "devices": "how many different nodes, by stable id",
    "mean": "mean response time in milliseconds of those whose time is known; null where there is none",
}
DIMENSIONS: Final = {
    "person": "login of a caller of kind person or shared; nobody else has one",
    "device": "stable id of the node",
    "service": "service.name",
    "environment": "deployment.environment.name",
    "traffic": "agent, internal, health, asset, page, poll or api",
    "page": "the page asked for, or the page the call came from",
}
FILTERS: Final = {
    "user": "login, of whatever kind of caller",
    "device": "stable id or name of the node",
    "service": "service.name",
    "environment": "deployment.environment.name",
    "traffic": "agent, internal, health, asset, page, poll or api",
}
MAX_ROWS: Final = 1000


class Range(NamedTuple):
    """Requests that began at `start_ns` or later and before `end_ns`; nanoseconds since 1970, UTC."""

    start_ns: int
    end_ns: int


class Position(NamedTuple):
    """Where a list of requests goes on: after this one, newest first."""

    start_ns: int
    trace_id: bytes
    span_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What both kinds have in common. Raises QuestionError for a name outside the tables."""

    range: Range
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filter → any of these values
    known: tuple[str, ...] = ()  # dimensions that must have a value

    def __post_init__(self) -> None:
        _check(self.filters, FILTERS, "filter")
        _check(self.known, DIMENSIONS, "dimension")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Question):
    """Requests themselves, newest first: at most `limit` after `after`, or of each `newest_per` the newest one."""

    limit: int = MAX_ROWS
    after: Position | None = None
    newest_per: str | None = None

    def __post_init__(self) -> None:
        Question.__post_init__(self)
        _check((self.newest_per,) if self.newest_per else (), DIMENSIONS, "dimension")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate(Question):
    """Metrics over all requests of the range (one row), or for each combination of the dimensions' values."""

    metrics: tuple[str, ...]
    dimensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Question.__post_init__(self)
        _check(self.metrics, METRICS, "metric")
        _check(self.dimensions, DIMENSIONS, "dimension")


def nanoseconds(moment: datetime) -> int:
    """Since 1970. Exact: a datetime's own timestamp() is a float."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def ending(now: datetime, length: timedelta) -> Range:
    """The `length` of time up to `now`: a request at `now` is in it, one exactly `length` ago is not."""
    end_ns = nanoseconds(now) + 1
    return Range(end_ns - length // timedelta(microseconds=1) * 1000, end_ns)


def _check(names: Mapping[str, object] | tuple[str, ...], table: Mapping[str, str], kind: str) -> None:
    for name in names:
        if name not in table:
            nearest = get_close_matches(name, table, n=1)
            raise QuestionError(
                f"{name!r} is no {kind}.",
                value=name,
                rule=f"A {kind} is one of: {', '.join(table)}.",
                fix=f"Did you mean {nearest[0]!r}?" if nearest else None,
            )
