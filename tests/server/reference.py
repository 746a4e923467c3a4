"""Every definition in plain Python: obvious, slow, exact. What a store answers is held to this.

Written from the definitions and not from any store's queries. All of it is a function of the stored spans, the device
history, the settings' tables and the question; sums are whole nanoseconds, divided once at the end.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from tailspan_otel.traffic import templated

from tailspan.labels import Checker, Labels
from tailspan.query import RECORD, SESSION, Aggregate, Groups, Question, Range, Rows, Sessions
from tailspan.query import Session as SessionRow
from tailspan.span import OWN_SERVICE, Device, Heartbeat, Span

SECOND: Final = 10**9
MS: Final = 10**6
LOAD: Final = 5 * SECOND
APART: Final = 30 * 60 * SECOND
PENDING: Final = 45 * SECOND

Value = str | int | float | None
Row = dict[str, Value]


# What a span says when it is read


def place(span: Span) -> tuple[int, bytes, bytes]:
    """Where a span stands in time; the ids decide between two of the same nanosecond."""
    return span.start_ns, span.trace_id, span.span_id


def history_of(spans: Iterable[Span]) -> list[Device]:
    """The device history as it is "fed by whois answers": the spans that knew, in time order, whatever came first."""
    found = []
    knew = [s for s in spans if s.node_id and s.node and s.address and s.source == "live" and is_device(s)]
    for address, own in groupby(sorted(knew, key=lambda s: (s.address or "", place(s))), lambda s: s.address):
        runs = [next(run) for _, run in groupby(own, lambda s: (s.node_id, s.node, s.login, s.tags))]
        ends = [*(later.start_ns for later in runs[1:]), None]
        for s, to_ns in zip(runs, ends, strict=True):
            who = (s.node_id, s.node, s.login, s.full_name, s.tags, s.caller, s.identity_source)
            if s.start_ns != to_ns:
                found.append(Device._make((address, *who, s.start_ns, to_ns)))
    return found


def is_device(span: Span) -> bool:
    return span.caller in ("person", "tagged", "shared")


def claimed(span: Span, labels: Labels) -> Span:
    """ "`TS-User` and `$remote_user` are identity, when read, only for a log whose proxy is declared to blank them."

    Elsewhere the line names nobody, and "`internal` (caller local …)" holds; nor does one of an answer that nginx may
    give before it asks for a password.
    """
    if span.source != "log" or span.login or span.identity_source not in ("serve_header", "nginx_auth"):
        return span._replace(claim=None)
    admitted = span.status is not None and (span.status in (101, 304) or 200 <= span.status < 300)
    asked = span.identity_source == "serve_header" or admitted
    if asked and labels.trusted_logs.get(span.service) == span.identity_source:
        return span._replace(login=span.claim, caller="person")
    internal = span.caller == "local" and span.traffic != "agent"
    return span._replace(identity_source="none", traffic="internal" if internal else span.traffic)


def joined(span: Span, history: Iterable[Device]) -> Span:
    """ "The server names it when a question is answered, from the device history as of that time."

    "Of one address, the entry that began last holds until its own end." What a span proved itself wins.
    """
    begun = [device for device in history if device.address == span.address and device.from_ns <= span.start_ns]
    device = max(begun, key=lambda device: device.turn, default=None)
    if span.node_id is not None or device is None or span.start_ns >= (device.to_ns or 2**63):
        return span
    named = span._replace(node_id=device.node_id, node=device.node, tags=device.tags)
    if span.login is not None or span.caller != "unknown":
        return named
    return named._replace(
        login=device.login, full_name=device.full_name, caller=device.kind, identity_source=device.source
    )


def present_name(span: Span, history: Iterable[Device]) -> str | None:
    """ "*device*: counted by the node's stable id, shown by its present name." """
    known = [device for device in history if device.node_id == span.node_id]
    return max(known, key=lambda device: device.turn).node if known else span.node


def person(span: Span) -> str | None:
    """ "*people*: callers of kind `person` or `shared` with a login." """
    return span.login if span.caller in ("person", "shared") else None


def is_check(span: Span, checker: Checker) -> bool:
    """ "a declared checker": all that is declared of it must fit."""
    return (
        (checker.address is None or checker.address in (span.address, span.client_address))
        and (checker.node is None or checker.node in (span.node_id, span.node))
        and (checker.login is None or checker.login == span.login)
        and (checker.user_agent is None or checker.user_agent in (span.user_agent or ""))
        and checker.tailnet_address in (None, span.address)
        and checker.source in (None, span.source)
    )


def traffic(span: Span, labels: Labels) -> str:
    """ "the first that fits: agent · internal · health (…, or a declared checker) · asset · page · poll · api"

    "and routes declared as polls, applied when a question is answered"
    """
    if span.traffic in ("agent", "internal"):
        return span.traffic
    if any(is_check(span, checker) for checker in labels.checkers):
        return "health"
    is_poll = span.route in labels.polls or (span.source == "log" and span.polled)
    return "poll" if span.traffic == "api" and is_poll else span.traffic


def as_answered(spans: Iterable[Span], history: Sequence[Device], labels: Labels) -> list[Span]:
    """The spans as answers show them: who it was, on which device, what for.

    "Stored unmapped; a table in the settings maps it when a question is answered."
    """
    known = [joined(claimed(span, labels), history) for span in spans]
    named = [span._replace(node=present_name(span, history)) for span in known]
    return [
        span._replace(
            traffic=traffic(span, labels),
            page=labels.pages.get(span.page or "", span.page),
            card=labels.cards.get(span.card or "", span.card),
        )
        for span in named
    ]


# What people do. `spans`: all of them, as answered


def caller_key(span: Span) -> tuple[Value, ...]:
    """ "the same caller" """
    return span.service, span.environment, span.login, span.address or span.client_address


def from_this_page(call: Span, spans: Iterable[Span], *traffic: str) -> list[int]:
    """When the same caller, a person, made requests of this traffic with the same page, up to this call; in order."""
    return sorted(
        s.start_ns
        for s in spans
        if s.kind == "request"
        and s.traffic in traffic
        and person(s) is not None
        and (caller_key(s), s.page) == (caller_key(call), call.page)
        and s.start_ns <= call.start_ns
    )


def is_part_of_a_load(call: Span, spans: Sequence[Span]) -> bool:
    """ "within 5 s after its page was requested by the same caller, or, where the page came from a cache, after the
    first call from it in 30 minutes" """
    if call.page is None:
        return False
    pages = [at for at in from_this_page(call, spans, "page") if call.start_ns - at < APART]
    if pages:
        return call.start_ns - pages[-1] <= LOAD
    calls = from_this_page(call, spans, "api", "poll")
    firsts = [calls[0], *(later for earlier, later in pairwise(calls) if later - earlier >= APART)]
    return call.start_ns - firsts[-1] <= LOAD


def is_deliberate(span: Span, spans: Sequence[Span]) -> bool:
    """ "*deliberate call*: a people's `api` call that is not part of a page load" """
    is_call = span.kind == "request" and person(span) is not None and span.traffic == "api"
    return is_call and not is_part_of_a_load(span, spans)


def is_view(span: Span) -> bool:
    """A card that a person looked at."""
    return span.kind == "view" and person(span) is not None


def is_activity(span: Span) -> bool:
    """ "a person with a page, `api` call or card view" """
    is_request = span.kind == "request" and person(span) is not None and span.traffic in ("page", "api")
    return is_request or is_view(span)


def feature(span: Span, labels: Labels) -> str | None:
    """ "a table in the settings (route, page or card → name) …; else the route's OpenAPI summary, else the route"

    Cards go by their mapped name.
    """
    if span.kind == "view":
        named, own = labels.card_features.get(span.card or ""), span.card
    else:
        named, own = labels.route_features.get(span.route or ""), summary(span, labels) or span.route
        own = own or (span.path and templated(span.path))
    return named or labels.page_features.get(span.page or "") or own


def summary(span: Span, labels: Labels) -> str | None:
    """What the service's document calls the operation; it has `/files/{path:path}` as `/files/{path}`."""
    route = re.sub(r"{(\w+):\w+}", r"{\1}", span.route or "")
    return labels.summaries.get((span.service, span.method, route))


def first_seen(login: str | None, spans: Iterable[Span]) -> int | None:
    """A person's first activity ever; None of nobody, and of a person who only ever polled."""
    times = [span.start_ns for span in spans if is_activity(span) and person(span) == login]
    return min(times) if times else None


class Session(NamedTuple):
    """ "Per person and service, those less than 30 minutes apart; it belongs to the day it started." """

    activities: tuple[Span, ...]

    @property
    def first(self) -> Span:
        return self.activities[0]

    @property
    def duration_ns(self) -> int:
        """ "Total time = last minus first" """
        return self.activities[-1].start_ns - self.first.start_ns


def sessions(spans: Iterable[Span]) -> list[Session]:
    """In order of person, service and environment, then time."""

    def whose(span: Span) -> tuple[str, str, bool, str]:
        return str(person(span)), span.service, span.environment is None, span.environment or ""

    found: list[list[Span]] = []
    activities = sorted(filter(is_activity, spans), key=lambda span: (whose(span), place(span)))
    for earlier, span in zip([None, *activities], activities, strict=False):
        if earlier is None or whose(earlier) != whose(span) or span.start_ns - earlier.start_ns >= APART:
            found.append([])
        found[-1].append(span)
    return [Session(tuple(activities)) for activities in found]


# Services' lives


def union(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of time without overlap, in order; those that touch become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(stretches: Iterable[tuple[int, int]], start: int, end: int) -> int:
    """How much of `start` to `end` the stretches cover."""
    return sum(max(0, min(until, end) - max(since, start)) for since, until in stretches)


def uptime(beats: Iterable[Heartbeat], service: str, environment: str | None, range: Range) -> dict[str, int]:
    """ "Up: union of the service's heartbeats. Down: service silent while the server lived and no clean stop was sent.

    A clean stop is off; service and server silent together is host off; both shown, in neither sum, as is the time
    before the first heartbeat." Nanoseconds of each, which add up to the range.
    """
    start, end = range
    begun = [beat for beat in beats if beat.start_ns < end]
    own = [beat for beat in begun if (beat.service, beat.environment) == (service, environment)]
    up = union((beat.start_ns, beat.end_ns) for beat in own)
    server = union((beat.start_ns, beat.end_ns) for beat in begun if beat.service == OWN_SERVICE)
    stops = {beat.end_ns for beat in own if beat.stopped}
    first = up[0][0] if up else end
    found = {"up": length(up, start, end), "down": 0, "off": 0, "host_off": 0, "pending": 0}
    found["before"] = length([(start, first)], start, end)
    for (_, silent), (again, _) in pairwise([*up, (max(end, up[-1][1]), 0)] if up else []):
        silence = length([(silent, again)], start, end)
        if silent in stops:
            found["off"] += silence
        elif again == end and silent == up[-1][1] and end - silent < PENDING:
            found["pending"] += silence
        else:
            down = length(server, max(silent, start), min(again, end))
            found["down"] += down
            found["host_off"] += silence - down
    return found


# Answers


class Record(NamedTuple):
    """A request, or a person's look at a card, with all that can be asked about it."""

    span: Span
    deliberate: bool
    feature: str | None
    first_seen: int | None
    local: datetime

    @property
    def person(self) -> str | None:
        return person(self.span)

    @property
    def is_request(self) -> bool:
        return self.span.kind == "request"

    @property
    def is_access(self) -> bool:
        """ "*accesses* = people's pages and deliberate calls" """
        return self.deliberate or (self.is_request and self.person is not None and self.span.traffic == "page")

    @property
    def is_error(self) -> bool:
        """ "*error*: status 5xx" """
        return self.is_request and (self.span.status or 0) >= 500

    @property
    def duration_ns(self) -> int | None:
        """ "A response time the source does not know is `null`, never 0, and not in any mean." """
        return self.span.duration_ns if self.is_request else None


def records(query: Question, spans: Sequence[Span], history: Sequence[Device]) -> list[Record]:
    """Those before the range's end that the question is about; what is no request and no person's view is none."""
    known = [s for s in as_answered(spans, history, query.labels) if s.kind == "request" or is_view(s)]
    seen = [s for s in known if s.start_ns < query.range.end_ns]
    found = [record(s, seen, known, query) for s in seen]
    return [r for r in found if passes(r, query)]


def of_range(query: Question, spans: Sequence[Span], history: Sequence[Device]) -> list[Record]:
    return [r for r in records(query, spans, history) if r.span.start_ns >= query.range.start_ns]


def record(span: Span, seen: Sequence[Span], ever: Sequence[Span], query: Question) -> Record:
    deliberate = is_deliberate(span, seen)
    return Record(
        span,
        deliberate,
        feature(span, query.labels) if deliberate or is_view(span) else None,
        first_seen(person(span), ever),
        datetime.fromtimestamp(span.start_ns // SECOND, ZoneInfo(query.zone)),
    )


DIMENSIONS: Final[Mapping[str, Callable[[Record], Value]]] = {
    "person": lambda r: r.person,
    "device": lambda r: r.span.node_id,
    "address": lambda r: r.span.address,
    "service": lambda r: r.span.service,
    "environment": lambda r: r.span.environment,
    "route": lambda r: r.span.route,
    "endpoint": lambda r: r.span.endpoint,
    "feature": lambda r: r.feature,
    "page": lambda r: r.span.page,
    "card": lambda r: r.span.card,
    "variant": lambda r: r.span.variant,
    "method": lambda r: r.span.method,
    "status": lambda r: r.span.status,
    "status_class": lambda r: None if r.span.status is None else f"{r.span.status // 100}xx",
    "traffic": lambda r: r.span.traffic,
    "caller": lambda r: r.span.caller,
    "identity_source": lambda r: r.span.identity_source,
    "source": lambda r: r.span.source,
    "hour_of_day": lambda r: r.local.hour,
    "weekday": lambda r: r.local.isoweekday(),
    "hour": lambda r: f"{r.local:%Y-%m-%dT%H}:00:00{r.local.isoformat()[19:]}",  # the offset as it was then
    "day": lambda r: r.local.date().isoformat(),
}


def texts(name: str, record: Record) -> set[str]:
    """What a filter compares with: a device is known by its id and by its name."""
    span = record.span
    more: dict[str, list[Value]] = {"user": [span.login], "device": [span.node_id, span.node], "kind": [span.kind]}
    return {str(value) for value in more.get(name) or [DIMENSIONS[name](record)] if value is not None}


def passes(record: Record, query: Question) -> bool:
    """Of each filter any of the values, none of those left out (having no value passes), all known that must be.

    Who names features asks about what has one.
    """
    newest_per = (query.newest_per,) if isinstance(query, Rows) else ()
    named = (*query.names, *query.filters, *query.without, *query.known, *newest_per)
    return (
        ("feature" not in named or record.deliberate or not record.is_request)
        and record.span.kind in (query.kinds - SESSION or RECORD)
        and all(texts(name, record) & set(values) for name, values in query.filters.items())
        and not any(texts(name, record) & set(values) for name, values in query.without.items())
        and all(DIMENSIONS[name](record) is not None for name in query.known)
    )


def nearest_rank(percent: int, values: Sequence[int]) -> int:
    """ "p95 (nearest rank)": the smallest value that `percent` of all do not exceed."""
    return sorted(values)[-(-percent * len(values) // 100) - 1]


def timed(value: Callable[[list[int]], float]) -> Callable[[list[Record]], Value]:
    """A metric of the response times that are known; None if there are none."""
    return lambda rs: value(known) if (known := [r.duration_ns for r in rs if r.duration_ns is not None]) else None


def visible_ms(rs: list[Record]) -> int | None:
    known = [r.span.visible_ms for r in rs if r.span.visible_ms is not None]
    return sum(known) if known else None


class Metric(NamedTuple):
    counts: Callable[[Record], bool]  # the records it is about: a group is shown where there are any
    value: Callable[[list[Record]], Value]  # of those


REQUEST: Final = Metric(lambda r: r.is_request, len)
VIEW: Final = Metric(lambda r: not r.is_request, len)
PERSON: Final = Metric(lambda r: r.person is not None, lambda rs: len({r.person for r in rs}))
METRICS: Final[Mapping[str, Metric]] = {
    "requests": REQUEST,
    "accesses": Metric(lambda r: r.is_access, len),
    "deliberate_calls": Metric(lambda r: r.deliberate, len),
    "people": PERSON,
    "devices": Metric(lambda r: r.span.node_id is not None, lambda rs: len({r.span.node_id for r in rs})),
    "errors": Metric(REQUEST.counts, lambda rs: sum(r.is_error for r in rs)),
    "error_rate": Metric(REQUEST.counts, lambda rs: sum(r.is_error for r in rs) / len(rs) if rs else None),
    "mean_ms": Metric(REQUEST.counts, timed(lambda known: float(sum(known)) / (len(known) * MS))),
    "p50_ms": Metric(REQUEST.counts, timed(lambda known: nearest_rank(50, known) / MS)),
    "p95_ms": Metric(REQUEST.counts, timed(lambda known: nearest_rank(95, known) / MS)),
    "p99_ms": Metric(REQUEST.counts, timed(lambda known: nearest_rank(99, known) / MS)),
    "max_ms": Metric(REQUEST.counts, timed(lambda known: max(known) / MS)),
    "views": VIEW,
    "visible_ms": Metric(VIEW.counts, visible_ms),
    "last_seen": Metric(lambda r: True, lambda rs: max((r.span.start_ns for r in rs), default=None)),
    "first_seen": Metric(
        PERSON.counts, lambda rs: max((r.first_seen for r in rs if r.first_seen is not None), default=None)
    ),
}
SESSION_METRICS: Final[Mapping[str, Callable[[list[Session]], Value]]] = {
    "sessions": len,
    "session_time_s": lambda found: sum(session.duration_ns for session in found) / SECOND,
}


def answer_rows(query: Rows, spans: Sequence[Span], history: Sequence[Device]) -> list[Span]:
    """Requests, newest first."""
    found = of_range(query, spans, history)
    found.sort(key=lambda r: place(r.span), reverse=True)
    if query.newest_per:
        found = list({DIMENSIONS[query.newest_per](r): r for r in reversed(found)}.values())
        found.sort(key=lambda r: place(r.span), reverse=True)
    return [r.span for r in found if query.after is None or place(r.span) < query.after][: query.limit]


def begun(query: Question, spans: Sequence[Span], history: Sequence[Device]) -> list[tuple[Record, Session]]:
    """Sessions that began in the range, each with the record of its first activity, newest first.

    "it belongs to the day it started"
    """
    found = {place(r.span): r for r in records(query, spans, history)}
    mine = [s for s in sessions(r.span for r in found.values()) if s.first.start_ns >= query.range.start_ns]
    return sorted(((found[place(s.first)], s) for s in mine), key=lambda one: -one[1].first.start_ns)


def answer_sessions(query: Sessions, spans: Sequence[Span], history: Sequence[Device]) -> list[SessionRow]:
    """ "Total time = last minus first"; the pages are those of the earliest and latest activity that has one."""
    rows = []
    for first, session in begun(query, spans, history):
        pages = [span.page for span in session.activities if span.page is not None]
        rows.append(
            SessionRow(
                person=str(first.person),
                service=first.span.service,
                environment=first.span.environment,
                start_ns=session.first.start_ns,
                end_ns=session.activities[-1].start_ns,
                duration_s=session.duration_ns / SECOND,
                requests=len(session.activities),
                first_page=pages[0] if pages else None,
                last_page=pages[-1] if pages else None,
            )
        )
    places = [(row.start_ns, row.person, row.service, row.environment) for row in rows]
    skipped = places.index((*query.after,)) + 1 if query.after else 0
    return rows[skipped:][: query.limit]


def counted(query: Aggregate, spans: Sequence[Span], history: Sequence[Device]) -> dict[str, list[tuple[Record, Any]]]:
    """For each metric what it is a metric of: sessions, or those of the question's records that it counts."""
    found = of_range(query, spans, history)
    return {
        name: begun(query, spans, history)
        if name in SESSION_METRICS
        else [(r, r) for r in found if METRICS[name].counts(r)]
        for name in query.metrics
    }


def answer_aggregate(query: Aggregate, spans: Sequence[Span], history: Sequence[Device]) -> Groups:
    """A row for each combination of the dimensions' values of which any of the metrics counts something."""

    def group(record: Record) -> tuple[Value, ...]:
        return tuple(DIMENSIONS[name](record) for name in query.dimensions)

    of_metrics = counted(query, spans, history)
    there = {group(record) for found in of_metrics.values() for record, _ in found}
    rows = []
    for own in there if query.dimensions else {()}:
        row = dict(zip(query.dimensions, own, strict=True))
        for name, found in of_metrics.items():
            value: Callable[[list[Any]], Value] = SESSION_METRICS.get(name) or METRICS[name].value
            row[name] = value([one for record, one in found if group(record) == own])
        rows.append(row)
    return Groups(ordered(rows, query)[: query.limit], max(0, len(rows) - query.limit))


def ordered(rows: list[Row], query: Aggregate) -> list[Row]:
    """As asked, then by the dimensions; what is unknown comes last either way; hours in the order of time."""
    for key in reversed([*(query.order or [f"-{query.metrics[0]}"]), *query.dimensions]):
        name = key.removeprefix("-")
        known: list[Any] = [row for row in rows if row[name] is not None]
        known.sort(
            key=lambda row: datetime.fromisoformat(row[name]) if name == "hour" else row[name],
            reverse=key.startswith("-"),
        )
        rows = known + [row for row in rows if row[name] is None]
    return rows


# Reports, in the keys that are promised


def most(counted: Mapping[Any, Any], limit: int | None = None) -> list[tuple[Any, Any]]:
    """The largest first, equal ones in their own order."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:limit]


def dashboard_usage(query: Question, spans: Sequence[Span], history: Sequence[Device]) -> dict[str, Any]:
    found = of_range(query, spans, history)
    accesses = [r for r in found if r.is_access]
    calls = [r.span.endpoint for r in found if r.person and r.is_request and r.span.traffic == "api"]
    cards = Counter(r.span.card for r in found if is_view(r.span) and r.span.card)
    hours = Counter(r.local.hour for r in accesses)
    days = Counter(r.local.date() for r in accesses)
    of_people = Counter(str(first.person) for first, _ in begun(query, spans, history))
    return {
        "most_viewed_cards": [{"card": card, "views": count} for card, count in most(cards)],
        "peak_hours": [{"hour": hour, "requests": count} for hour, count in most(hours)],
        "user_sessions": [
            {
                "user": login,
                "sessions": count,
                "total_time_hours": round(
                    sum(s.duration_ns for r, s in begun(query, spans, history) if r.person == login) / SECOND / 3600, 2
                ),
                "favorite_features": [
                    name for name, _ in most(Counter(r.feature for r in found if r.person == login and r.feature), 3)
                ],
            }
            for login, count in most(of_people)
        ],
        "api_calls_by_endpoint": [{endpoint: count} for endpoint, count in most(Counter(filter(None, calls)))],
        "accesses_by_day": [{"day": day.isoformat(), "accesses": days[day]} for day in days_of(query)],
    }


def days_of(query: Question) -> list[date]:
    """Each local day that the range touches."""
    first, last = (
        datetime.fromtimestamp(at // SECOND, ZoneInfo(query.zone)).date()
        for at in (query.range.start_ns, query.range.end_ns - 1)
    )
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def system_health(query: Question, spans: Sequence[Span], history: Sequence[Device]) -> dict[str, Any]:
    """Response times are of people's `api` calls, errors of all requests; those without an endpoint count over all."""
    found = [r for r in of_range(query, spans, history) if r.is_request]
    calls = [r for r in found if r.person and r.span.traffic == "api"]
    p95 = {
        endpoint: value
        for endpoint in {str(r.span.endpoint) for r in calls if r.span.endpoint}
        if (value := METRICS["p95_ms"].value([r for r in calls if r.span.endpoint == endpoint])) is not None
    }
    mean: Any = METRICS["mean_ms"].value(calls)
    return {
        "avg_api_response_ms": mean if mean is None else round(mean, 3),
        "slowest_endpoints": [{endpoint: f"{value:.0f}ms"} for endpoint, value in most(p95, 5)],
        "error_rate": {
            "overall": METRICS["error_rate"].value(found),
            "by_endpoint": {
                endpoint: METRICS["error_rate"].value([r for r in found if r.span.endpoint == endpoint])
                for endpoint in {r.span.endpoint for r in found if r.span.endpoint}
            },
        },
    }


def active(spans: Sequence[Span], history: Sequence[Device], now_ns: int) -> list[dict[str, Any]]:
    """ "*active now*: a person with a page, `api` call or card view in the last 5 minutes."

    "`current_page` is the newest." By login, without the words for the time.
    """
    seen = [s for s in as_answered(spans, history, Labels()) if now_ns - 300 * SECOND < s.start_ns <= now_ns]
    of_people: dict[str, list[Span]] = {}
    for span in sorted(filter(is_activity, seen), key=place):
        of_people.setdefault(str(person(span)), []).append(span)
    return [
        {
            "email": login,
            "device": own[-1].node or (own[-1].guess and f"{own[-1].guess} (?)"),
            "last_seen_at": f"{datetime.fromtimestamp(own[-1].start_ns // SECOND, UTC):%Y-%m-%dT%H:%M:%S}"
            f".{own[-1].start_ns % SECOND // MS:03}Z",
            "current_page": next((span.page for span in reversed(own) if span.page is not None), None),
            "full_name": own[-1].full_name,
            "service": own[-1].service,
            "device_guess": own[-1].guess,
        }
        for login, own in sorted(of_people.items())
    ]


def answer(query: Aggregate | Rows | Sessions, spans: Sequence[Span], history: Sequence[Device]) -> Any:
    """What a store's `run` gives."""
    if isinstance(query, Rows):
        return answer_rows(query, spans, history)
    if isinstance(query, Sessions):
        return answer_sessions(query, spans, history)
    return answer_aggregate(query, spans, history)
