"""The question as a value. A store answers it; nothing here or below asks a clock.

The tables are closed: a name outside them is refused here, and so never reaches a store as an identifier. What the
names mean is told in docs/definitions.md, what may be combined in docs/query.md; both are held to these tables.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, Literal, NamedTuple

from tailspan.errors import QuestionError
from tailspan.labels import Labels, is_zone

Kind = Literal["request", "view", "session"]
REQUEST: Final[frozenset[Kind]] = frozenset(("request",))
VIEW: Final[frozenset[Kind]] = frozenset(("view",))
RECORD: Final[frozenset[Kind]] = REQUEST | VIEW
SESSION: Final[frozenset[Kind]] = frozenset(("session",))
ALL: Final[frozenset[Kind]] = RECORD | SESSION


class Name(NamedTuple):
    """A metric, dimension or filter: the kinds of records it is about, and what it says."""

    kinds: frozenset[Kind]
    meaning: str


METRICS: Final = {
    "requests": Name(REQUEST, "how many requests"),
    "accesses": Name(REQUEST, "how many page requests and deliberate calls of people"),
    "deliberate_calls": Name(REQUEST, "how many `api` calls of people that are no part of a page load"),
    "people": Name(RECORD, "how many different logins of people"),
    "devices": Name(RECORD, "how many different nodes, by stable id"),
    "errors": Name(REQUEST, "how many requests with a status of 500 or more"),
    "error_rate": Name(REQUEST, "errors / requests, 0 to 1; null without requests"),
    "mean_ms": Name(REQUEST, "mean response time in ms of those whose time is known; null where there is none"),
    "p50_ms": Name(REQUEST, "median response time in ms, nearest rank"),
    "p95_ms": Name(REQUEST, "95th percentile of the response time in ms, nearest rank"),
    "p99_ms": Name(REQUEST, "99th percentile of the response time in ms, nearest rank"),
    "max_ms": Name(REQUEST, "longest response time in ms"),
    "sessions": Name(SESSION, "how many sessions"),
    "session_time_s": Name(SESSION, "from first to last activity, in seconds, summed over the sessions"),
    "views": Name(VIEW, "how many times people saw a card"),
    "visible_ms": Name(VIEW, "how long cards were seen, in ms, summed; null where no time is known"),
    "last_seen": Name(RECORD, "start of the newest request or view"),
    "first_seen": Name(RECORD, "first activity ever of the newest of these people; in the range, they are new"),
}
DIMENSIONS: Final = {
    "person": Name(ALL, "login of a caller of kind person or shared; nobody else has one"),
    "device": Name(RECORD, "stable id of the node"),
    "address": Name(RECORD, "the caller's tailnet address, where it is known"),
    "service": Name(ALL, "service.name"),
    "environment": Name(ALL, "deployment.environment.name"),
    "route": Name(REQUEST, "template of the route; null for an unmatched path"),
    "endpoint": Name(REQUEST, "the route, else the path"),
    "feature": Name(RECORD, "what was used, by the settings' names; of deliberate calls and views only"),
    "page": Name(RECORD, "the page asked for, or the page the call came from"),
    "card": Name(VIEW, "the card that was seen"),
    "variant": Name(VIEW, "the card's variant"),
    "method": Name(REQUEST, "HTTP method"),
    "status": Name(REQUEST, "HTTP status code"),
    "status_class": Name(REQUEST, "1xx, 2xx, 3xx, 4xx or 5xx"),
    "traffic": Name(REQUEST, "agent, internal, health, asset, page, poll or api"),
    "caller": Name(RECORD, "person, tagged, shared, funnel, local or unknown"),
    "identity_source": Name(RECORD, "how the caller is known"),
    "source": Name(RECORD, "live, log or page"),
    "hour_of_day": Name(ALL, "0 to 23, by the local clock"),
    "weekday": Name(ALL, "1 (Monday) to 7, by the local calendar"),
    "hour": Name(ALL, "start of the local hour, with its offset from UTC"),
    "day": Name(ALL, "local date"),
}
FILTERS: Final = {
    "user": Name(ALL, "login, of whatever kind of caller"),
    "device": Name(ALL, "stable id or present name of the node; of sessions: of their activities"),
    "kind": Name(RECORD, "request or view"),
    **{
        name: DIMENSIONS[name]
        for name in DIMENSIONS
        if name not in ("person", "device", "hour_of_day", "weekday", "hour", "day")
    },
}
VALUES: Final = {
    "kind": ("request", "view"),
    "status_class": ("1xx", "2xx", "3xx", "4xx", "5xx"),
    "traffic": ("agent", "internal", "health", "asset", "page", "poll", "api"),
    "caller": ("person", "tagged", "shared", "funnel", "local", "unknown"),
    "identity_source": ("serve_header", "nginx_auth", "whois", "status", "device_list", "none"),
    "source": ("live", "log", "page"),
}
MAX_ROWS: Final = 1000
MAX_GROUPS: Final = 10_000
MAX_DIMENSIONS: Final = 3


class Range(NamedTuple):
    """Requests that began at `start_ns` or later and before `end_ns`; nanoseconds since 1970, UTC."""

    start_ns: int
    end_ns: int


class Position(NamedTuple):
    """Where a list of requests goes on: after this one, newest first."""

    start_ns: int
    trace_id: bytes
    span_id: bytes


class Session(NamedTuple):
    """A person at a service, without a pause of 30 minutes."""

    person: str
    service: str
    environment: str | None
    start_ns: int
    end_ns: int
    duration_s: float  # from the first activity to the last
    requests: int  # activities: pages, `api` calls, views
    first_page: str | None
    last_page: str | None


class SessionPosition(NamedTuple):
    """Where a list of sessions goes on: after this one, newest first."""

    start_ns: int
    person: str
    service: str
    environment: str | None


class Groups(NamedTuple):
    """An aggregate's answer: a dictionary a group, and how many groups the limit left out."""

    rows: list[dict[str, Any]]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the kinds have in common. Raises QuestionError for a name outside the tables, or that does not fit."""

    range: Range
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filter → any of these values
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filter → none of these values
    known: tuple[str, ...] = ()  # dimensions that must have a value
    zone: str = "UTC"  # IANA name
    labels: Labels = field(default_factory=Labels)

    @property
    def asked(self) -> frozenset[Kind]:
        """The kinds of records the question may be about."""
        return RECORD

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def __post_init__(self) -> None:
        if not is_zone(self.zone):
            raise QuestionError(
                f"zone is {self.zone!r}.", value=self.zone, rule="It is an IANA name such as Europe/Madrid."
            )
        for given in (self.filters, self.without):
            _check(given, FILTERS, "filter")
            for name, values in given.items():
                _check_values(name, values)
        _check(self.known, DIMENSIONS, "dimension")
        self._check_fit()

    @property
    def parts(self) -> list[tuple[str, Mapping[str, Name]]]:
        """Each name of the question but its metrics, and its table."""
        dimensions = [(name, DIMENSIONS) for name in (*self.names, *self.known)]
        return [*dimensions, *((name, FILTERS) for name in (*self.filters, *self.without))]

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of records that have everything named here."""
        return self.asked.intersection(*(table[name].kinds for name, table in self.parts))

    def _check_fit(self) -> None:
        """Raises QuestionError where there is no such record."""
        fitting, against = self.asked, " or ".join(sorted(self.asked))
        for name, table in self.parts:
            if not table[name].kinds & fitting:
                raise _misfit(name, table, against, fitting)
            if table[name].kinds & fitting != fitting:
                fitting, against = table[name].kinds & fitting, name


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Question):
    """Requests themselves, newest first: at most `limit` after `after`, or of each `newest_per` the newest one.

    Views likewise, where the filter `kind` names them.
    """

    limit: int = MAX_ROWS
    after: Position | None = None
    newest_per: str | None = None

    @property
    def asked(self) -> frozenset[Kind]:
        """Views only where they are asked for by name."""
        return RECORD if "kind" in self.filters else REQUEST

    @property
    def names(self) -> tuple[str, ...]:
        return (self.newest_per,) if self.newest_per else ()

    def __post_init__(self) -> None:
        _check(self.names, DIMENSIONS, "dimension")
        Question.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions(Question):
    """Sessions that began in the range, newest first: at most `limit` after `after`."""

    limit: int = MAX_ROWS
    after: SessionPosition | None = None

    @property
    def asked(self) -> frozenset[Kind]:
        return SESSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate(Question):
    """Metrics over the whole range (one row), or for each combination of the dimensions' values.

    `order`: metrics or dimensions, "-" before one for descending; then the dimensions. Without: the first metric,
    descending. None comes last either way.
    """

    metrics: tuple[str, ...]
    dimensions: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    limit: int = 100

    @property
    def asked(self) -> frozenset[Kind]:
        """Sessions where a metric is of sessions, else records; a metric of one kind of record may leave the other."""
        return SESSION if any(METRICS[metric].kinds == SESSION for metric in self.metrics) else RECORD

    @property
    def names(self) -> tuple[str, ...]:
        return self.dimensions

    def __post_init__(self) -> None:
        _check(self.metrics, METRICS, "metric")
        _check(self.dimensions, DIMENSIONS, "dimension")
        if not self.metrics:
            raise QuestionError("metrics is empty.", rule=f"It is one or more of: {', '.join(METRICS)}.")
        if len(self.dimensions) > MAX_DIMENSIONS:
            given = ",".join(self.dimensions)
            raise QuestionError(f"dimensions is {given!r}.", value=given, rule=f"At most {MAX_DIMENSIONS} at once.")
        for names, kind in ((self.metrics, "metric"), (self.dimensions, "dimension")):
            _check_once(names, kind)
        if not 1 <= self.limit <= MAX_GROUPS:
            raise QuestionError(f"limit is {self.limit}.", value=self.limit, rule=f"It is 1 to {MAX_GROUPS}.")
        Question.__post_init__(self)
        for metric in self.metrics:
            kinds = METRICS[metric].kinds
            if not kinds & self.asked:
                raise _misfit(
                    metric, METRICS, next(name for name in self.metrics if METRICS[name].kinds == SESSION), SESSION
                )
            for name, table in self.parts:
                if not table[name].kinds & kinds:
                    raise _misfit(name, table, metric, kinds)
        chosen = dict.fromkeys((*self.metrics, *self.dimensions), "")
        _check([name.removeprefix("-") for name in self.order], chosen, "metric or dimension of this question")
        _check_once(tuple(name.removeprefix("-") for name in self.order), "entry of order")


def nanoseconds(moment: datetime) -> int:
    """Since 1970. Exact: a datetime's own timestamp() is a float."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def ending(now: datetime, length: timedelta) -> Range:
    """The `length` of time up to `now`: a request at `now` is in it, one exactly `length` ago is not."""
    end_ns = nanoseconds(now) + 1
    return Range(end_ns - length // timedelta(microseconds=1) * 1000, end_ns)


def _check(names: Iterable[str], table: Mapping[str, object], kind: str) -> None:
    for name in names:
        if name not in table:
            raise QuestionError(
                f"{name!r} is no {kind}.",
                value=name,
                rule=f"A {kind} is one of: {', '.join(table)}.",
                fix=nearest(name, table),
            )


def nearest(name: str, table: Iterable[str]) -> str | None:
    """The sentence that helps somebody who mistyped."""
    close = get_close_matches(name, list(table), n=1)
    return f"Did you mean {close[0]!r}?" if close else None


def _check_once(names: tuple[str, ...], kind: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise QuestionError(f"{name!r} is there twice.", value=name, rule=f"Each {kind} is named once.")


def _check_values(name: str, values: tuple[str, ...]) -> None:
    allowed = VALUES.get(name)
    for value in values:
        if allowed and value not in allowed:
            rule = f"It is any of: {', '.join(allowed)}."
            raise QuestionError(f"{name} is {value!r}.", value=value, rule=rule, fix=nearest(value, allowed))
        if name == "status" and not (len(value) == 3 and value.isascii() and value.isdigit() and value[0] in "12345"):
            raise QuestionError(f"status is {value!r}.", value=value, rule="It is a number from 100 to 599.")


def _misfit(wrong: str, table: Mapping[str, Name], against: str, kinds: frozenset[Kind]) -> QuestionError:
    """`wrong`, of `table`, is never of one record with `against`, which is of these kinds."""
    fits = [name for name in table if table[name].kinds & kinds]
    return QuestionError(
        f"{wrong!r} does not go with {against!r}.",
        value=wrong,
        rule=f"With {against!r} go: {', '.join(fits)}.",
        fix=nearest(wrong, fits) or "Ask two questions.",
    )
