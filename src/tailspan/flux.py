"""Questions in Flux: which points must travel from InfluxDB, and what is summed up there instead.

What spans mean is written down once, in meaning.py and sql.py, and worked out by DuckDB on what arrives. Flux decides
what does. Each condition here lets through all that the question is about, and may let through more:
- of page loads and sessions: people's pages, calls and views, and of their polls the first and last of 30 minutes;
- of counts, means and extremes: sums over the tags that matter, which storage works out by itself;
- of callers known by their address alone: the points, for the address may have changed hands in between;
- of endpoints without a route: the points, for the path is no tag.

Tags are compared with `==` and `exists` alone, joined by `and` and `or`: these storage filters by itself. Values are
parameters, names come from the tables here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tailspan.meaning import LOOK_BACK
from tailspan.query import METRICS, SESSION, VIEW, Aggregate, Kind, Question, Range, Rows, Sessions
from tailspan.span import Device
from tailspan.sql import ORDERED, SUMMED

# column → tag
TAGS: Final = {
    "service": "service.name",
    "environment": "deployment.environment.name",
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "login": "user.name",
    "node": "tailscale.node",
    "node_id": "tailscale.node.id",
    "address": "tailscale.address",
    "source": "tailspan.source",
    "identity_source": "tailspan.identity.source",
    "caller": "tailspan.caller",
    "traffic": "tailspan.traffic",
    "page": "tailspan.page",
    "kind": "tailspan.kind",
    "card": "tailspan.card",
    "variant": "tailspan.variant",
    "timed": "tailspan.timed",
}
# dimension, filter or metric → the columns it is made of, where not the one of that name
MADE_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "person": ("login", "caller"),
    "people": ("login", "caller"),
    "user": ("login",),
    "device": ("node_id", "node"),
    "devices": ("node_id",),
    "endpoint": ("route",),
    "status_class": ("status",),
    "errors": ("status",),
    "error_rate": ("status",),
    "mean_ms": ("timed",),
    "max_ms": ("timed",),
}
POINTS: Final = ("duration_nano", "end_time_unix_nano", "attributes", "trace_state", "parent_span_id")
ATTRIBUTES: Final = ("duration_nano", "attributes")
EVERYTHING: Final = ("duration_nano", "attributes", "trace_state", "parent_span_id")
SUMS: Final = {"mean_ms": ("sum",), "max_ms": ("max",), "last_seen": ("last",)}  # beside count
ALL_TIME: Final = Range(0, 7_258_118_400 * 10**9)  # to 2200
TOGETHER: Final = "|> group()"  # a table for each series would take twice as long
SLOT: Final = "30m"  # PAUSE, as meaning.py folds requests
HOURS: Final = {"hour", "hour_of_day"}
HOUR: Final = "15m"  # there are zones a quarter of an hour apart


class Stream(NamedTuple):
    """Flux of one expression with its values, from `start` to before `stop` (ns); a row a point, or a row a sum."""

    column: str  # what `_value` is: a field, or count, sum, max, last
    flux: str
    values: tuple[tuple[str, Any], ...] = ()
    windowed: bool = False  # a sum of each quarter of an hour, at `_time`


class Part(NamedTuple):
    """Streams of the same points, or of the same sums: `daily` ones are of a day each."""

    streams: tuple[Stream, ...]
    daily: bool = False

    @property
    def summed(self) -> bool:
        return self.streams[0].column == "count"


def any_of(name: str, *values: str) -> str:
    """Of values that are constants here."""
    return f"({' or '.join(f'{_tag(name)} == {_quoted(value)}' for value in values)})"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _tag(name: str) -> str:
    return f'r["{TAGS[name]}"]'


def _known(name: str) -> str:
    return f"exists {_tag(name)}"


def _unknown(name: str) -> str:
    return f"(not exists {_tag(name)})"


class Condition(NamedTuple):
    """Flux on the tags of `r`, and the Flux of what it leaves."""

    holds: str
    otherwise: str


NAMED: Final = any_of("kind", "request", "view")
REQUESTS: Final = any_of("kind", "request")
# a log's line that names somebody: whom, its attributes tell
CLAIMED: Final = Condition(
    f"({any_of('source', 'log')} and {any_of('identity_source', 'serve_header', 'nginx_auth')})",
    f"({any_of('source', 'live', 'page')} or {_unknown('source')} or {_unknown('identity_source')} "
    f"or {any_of('identity_source', 'whois', 'status', 'device_list', 'none')})",
)
# a log's call: whether its rhythm is a poll's, its attributes tell
LOGGED: Final = Condition(
    f"({any_of('source', 'log')} and {any_of('traffic', 'api')})",
    f"({any_of('source', 'live', 'page')} or {_unknown('source')} or {_unknown('traffic')} "
    f"or {any_of('traffic', 'agent', 'internal', 'health', 'asset', 'page', 'poll')})",
)
# who is unknown may be a person by address, and whom a line names anybody
PERSONAL: Final = f"({any_of('caller', 'person', 'shared', 'unknown')} or {CLAIMED.holds})"
ACTIVE: Final = f"{PERSONAL} and ({any_of('traffic', 'page', 'api')} or {any_of('kind', 'view')})"
POLLING: Final = f"{PERSONAL} and {REQUESTS} and {any_of('traffic', 'poll')}"
BY_ADDRESS: Final = Condition(
    f"({_unknown('node_id')} and {_known('address')})", f"({_known('node_id')} or {_unknown('address')})"
)
# what is only told by attributes, which are no tags
PATHS: Final = Condition(f"({_unknown('route')} and {REQUESTS})", f"({_known('route')} or {any_of('kind', 'view')})")
VIEWS: Final = Condition(any_of("kind", "view"), REQUESTS)
UNADDRESSED: Final = Condition(_unknown("address"), _known("address"))
TOLD: Final = (PATHS, UNADDRESSED, VIEWS, CLAIMED, LOGGED)
CLIENTS: Final = Condition("(exists r._measurement)", "")  # all of them
# who tells whose an address is
HELD: Final = (NAMED, any_of("caller", "person", "tagged", "shared"), *map(_known, ("address", "node_id", "node")))
CERTAIN: Final = Condition(
    f"{_known('node_id')} and {_known('address')}", f"({_unknown('node_id')} or {_unknown('address')})"
)
# the others, in predicates of the delete API, which know no `or`
UNCLAIMED: Final = (
    f'"{TAGS["source"]}"="live"',
    f'"{TAGS["source"]}"="page"',
    f'"{TAGS["source"]}"="log" AND "{TAGS["identity_source"]}"="none"',
)
ENDS: Final = tuple(f"|> window(every: {SLOT}) |> {which}()" for which in ("first", "last"))


def plan(question: Rows | Sessions | Aggregate, history: Iterable[Device]) -> tuple[Range, list[Part]]:
    """From when to when, and all that the question's SQL needs of it.

    Most questions about people need the same points, whatever their filters: what was fetched for one serves the next.
    """
    early = Range(question.range.start_ns - LOOK_BACK, question.range.end_ns)
    if isinstance(question, Rows) and "feature" in _names(question):
        return early, [_Filters(None).points(EVERYTHING, NAMED)]
    if isinstance(question, Rows):
        return question.range, [_Filters(question, history).points(EVERYTHING, NAMED)]
    if isinstance(question, Sessions):
        return early, [_Filters(None).points(EVERYTHING, ACTIVE)]
    looked_at = bool(CLIENTS in _apart(question))
    if question.asked == SESSION or _of_people(question):
        return early, _activity(looked_at)
    names = _names(question)
    if names & {*ORDERED, "feature"}:
        if not looked_at and ("feature" in names or set(question.metrics) <= ORDERED):  # nothing is asked of polls
            polls = [Part((_stream("duration_nano", (POLLING, CERTAIN.holds), then),)) for then in ENDS]
            unsure = _Filters(None).points(ATTRIBUTES, POLLING, CERTAIN.otherwise)
            return early, [*_activity(looked_at), unsure, *polls]
        return early, _points(_Filters(None), TOLD if not looked_at else [CLIENTS], NAMED)
    filters, apart = _Filters(question, history), _apart(question)
    if summable(question):
        sums = filters.sums(question, NAMED, BY_ADDRESS.otherwise, *(one.otherwise for one in apart))
        either = " or ".join(one.holds for one in (BY_ADDRESS, *apart))
        return question.range, [sums, filters.points(ATTRIBUTES, NAMED, f"({either})")]
    return question.range, _points(filters, apart, NAMED)


def _activity(looked_at: bool) -> list[Part]:
    """All pages, calls and views of people; `looked_at`: and what is known of their clients."""
    return _points(_Filters(None), [CLIENTS] if looked_at else TOLD, ACTIVE)


def _of_people(question: Aggregate) -> bool:
    """Whether it is about nothing but that."""
    kinds = frozenset[Kind]().union(*(METRICS[name].kinds for name in question.metrics)) & question.kinds
    traffic = set(question.filters.get("traffic", ())) or {"none given"}
    return kinds == VIEW or (
        "person" in question.known and traffic <= {"page", "api"} and "first_seen" not in question.metrics
    )


def heartbeats() -> Part:
    """All of them, as points."""
    return Part(
        tuple(_stream(field, (any_of("kind", "heartbeat"),), "") for field in (*EVERYTHING[:3], "end_time_unix_nano"))
    )


def of_login(login: str) -> Part:
    """All points that are theirs, or may be by address."""
    named = f"({_unknown('login')} and {_known('address')} and {any_of('caller', 'unknown')})"
    return _Filters(None).only("login", [login], named, CLAIMED.holds).points(EVERYTHING, NAMED)


def forgetting(login: str, history: Iterable[Device]) -> Iterator[tuple[str, Range]]:
    """Predicates of the delete API, and the time of each: all that is theirs, by name or by address."""
    yield f'"{TAGS["login"]}"={_literal(login)}', ALL_TIME
    by_address: dict[str, list[Device]] = {}
    for device in history:
        by_address.setdefault(device.address, []).append(device)
    for address, devices in by_address.items():
        for device, following in zip(devices, [*devices[1:], None], strict=True):
            until_ns = min(device.to_ns or ALL_TIME.end_ns, following.from_ns if following else ALL_TIME.end_ns)
            if device.login == login and until_ns > device.from_ns:
                predicate = f'"{TAGS["address"]}"={_literal(address)} AND "{TAGS["caller"]}"="unknown"'
                for which in UNCLAIMED:
                    yield f"{predicate} AND {which}", Range(device.from_ns, until_ns)


def claimed() -> Part:
    """All lines of logs that name somebody."""
    return _Filters(None).points(ATTRIBUTES, NAMED, CLAIMED.holds)


def claiming(header: str) -> str:
    """The delete API's predicate of those that do so by this header."""
    return f'"{TAGS["source"]}"="log" AND "{TAGS["identity_source"]}"={_literal(header)}'


def logged(service: str) -> Stream:
    """How many requests of that service a log alone tells of."""
    of_it = _Filters(None).only("service", [service])
    terms = (REQUESTS, any_of("source", "log"), *of_it.terms)
    return _stream("count", terms, f"{TOGETHER} |> count()", of_it.values, columns=())


def of_log(service: str) -> str:
    """The delete API's predicate of these."""
    return f'"{TAGS["source"]}"="log" AND "{TAGS["service"]}"={_literal(service)}'


def live_of(service: str) -> Part:
    """Which requests that service told of itself."""
    told = f"({any_of('source', 'live')} or {_unknown('source')})"
    return _Filters(None).only("service", [service]).points(("trace_state",), REQUESTS, told)


def _literal(text: str) -> str:
    """A string of the delete API's predicates, which take no parameters."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def newest() -> Stream:
    """The newest request of each service and environment."""
    group = f"|> group(columns: {_list(('service', 'environment'))}) |> last()"
    return _stream("duration_nano", (REQUESTS,), group, columns=("service", "environment"))


def counted() -> Part:
    """How many points there are of each source, and their durations: what tells whether a day has changed."""
    group = f"|> group(columns: {_list(('source',))})"
    return Part(tuple(_stream(how, (NAMED,), f"{group} |> {how}()", columns=("source",)) for how in ("count", "sum")))


def requests() -> Part:
    """All of them, as points."""
    return _Filters(None).points(EVERYTHING, REQUESTS)


def longer(than_ns: int) -> Stream:
    """How long those requests took, or were open, that took longer; not of a log."""
    told = f"({any_of('source', 'live')} or {_unknown('source')})"
    return _stream("duration_nano", (REQUESTS, told, f"r._value > {than_ns}"), "", columns=("source",))


def hourly() -> Stream:
    """How many requests there are of each series in each hour, at its beginning."""
    window = '|> aggregateWindow(every: 1h, fn: count, createEmpty: false, timeSrc: "_start")'
    return _stream("count", (REQUESTS,), window, columns=("source",))


def sighted() -> Part:
    """The first point of each address and whom it was seen as."""
    columns = ("address", "node_id", "node", "login", "caller", "source", "identity_source")
    group = f"|> group(columns: {_list(columns)}) |> first()"
    return Part((_stream("attributes", HELD, group, columns=columns),))


def sighted_as(addresses: Iterable[str]) -> Part:
    """All points of these addresses."""
    return _Filters(None).only("address", addresses).points(("attributes", "trace_state"), *HELD)


def summable(question: Rows | Sessions | Aggregate) -> bool:
    """Whether the plan is of sums."""
    return (
        isinstance(question, Aggregate)
        and question.asked != SESSION
        and not _of_people(question)
        and set(question.metrics) <= SUMMED.keys()
        and not _names(question) & {*ORDERED, "feature"}
        and CLIENTS not in _apart(question)
        and not ("last_seen" in question.metrics and HOURS & {*question.dimensions})  # windows tell no time of a point
    )


def earliest(question: Question) -> list[Part]:
    """What `first_seen` needs: the first activity of each series; every one of those known by address, and of logs.

    All of it where the settings look at clients, of whom a series says nothing.
    """
    if CLIENTS in _apart(question):
        return [_Filters(None).points(ATTRIBUTES, ACTIVE)]
    plain = (ACTIVE, CLAIMED.otherwise, LOGGED.otherwise)
    first = _stream("duration_nano", (*plain, BY_ADDRESS.otherwise), "|> first()")
    told = _Filters(None).points(ATTRIBUTES, ACTIVE, f"({CLAIMED.holds} or {LOGGED.holds})")
    return [Part((first,)), _Filters(None).points(("duration_nano",), *plain, BY_ADDRESS.holds), told]


def _names(question: Question) -> set[str]:
    metrics = question.metrics if isinstance(question, Aggregate) else ()
    return {*metrics, *question.names, *question.filters, *question.without, *question.known}


def _apart(question: Question) -> list[Condition]:
    """Series whose attributes must travel too."""
    if any(checker.address or checker.user_agent for checker in question.labels.checkers):
        return [CLIENTS]
    names = _names(question)
    return [
        *[PATHS] * bool(names & {"endpoint", "feature"}),
        *[VIEWS] * ("visible_ms" in names),
        *[CLAIMED] * bool(question.labels.trusted_logs),
        *[LOGGED] * ("traffic" in names),
    ]


def _points(filters: "_Filters", apart: Sequence[Condition], *where: str) -> list[Part]:
    """The durations, and where more must be known the attributes."""
    if not apart:
        return [filters.points(("duration_nano",), *where)]
    if CLIENTS in apart:
        return [filters.points(ATTRIBUTES, *where)]
    either = " or ".join(one.holds for one in apart)
    told = filters.points(ATTRIBUTES, *where, f"({either})")
    return [told, filters.points(("duration_nano",), *where, *(one.otherwise for one in apart))]


def _columns(question: Aggregate) -> list[str]:
    """Those that the sums are told apart by."""
    names = _names(question)
    found = {"kind", "caller", "login", "node_id", "address"}  # who is a person, and settled
    for name in names:
        found.update(MADE_OF.get(name, (name,)))
    if names & {"traffic", "identity_source"}:
        found |= {"source", "identity_source"}  # what a claim says that nobody believes
    if "traffic" in names:
        found |= {"route"} if question.labels.polls else set()
        found |= {"node", "node_id", "login", "source"} if question.labels.checkers else set()
    return [name for name in TAGS if name in found]


class _Filters:
    """A question's filters, as far as tags tell them."""

    def __init__(self, question: Question | None, history: Iterable[Device] = ()) -> None:
        self.terms: list[str] = []
        self.values: dict[str, Any] = {}
        if question is None:
            return
        for name, wanted in question.filters.items():
            if name in ("address", "service", "environment", "method", "route", "status", "source"):
                self.only(name, wanted)
            elif name == "user":
                self.only("login", wanted, _unknown("login"))
            elif name == "caller":
                self.only("caller", (*wanted, "unknown"), CLAIMED.holds)
            elif name == "device":
                ids = {device.node_id for device in history if device.node in wanted}
                self.only("node_id", {*wanted, *ids}, _unknown("node_id"), *self._equal("node", wanted))
            elif name == "traffic" and not ("health" in wanted and question.labels.checkers):
                others = [CLAIMED.holds] if "internal" in wanted else []
                self.only("traffic", {*wanted, "api"} if "poll" in wanted else wanted, *others)
        if "person" in question.known:
            self.terms.append(PERSONAL)

    def only(self, name: str, wanted: Iterable[str], *others: str) -> "_Filters":
        """Where nothing is wanted all is let through: an empty `or` is no Flux."""
        if wanted := list(wanted):
            self.terms.append(f"({' or '.join([*self._equal(name, wanted), *others])})")
        return self

    def _equal(self, name: str, wanted: Iterable[str]) -> list[str]:
        found = []
        for value in sorted(wanted):
            key = f"_v{len(self.values)}"
            self.values[key] = value
            found.append(f"{_tag(name)} == {key}")
        return found

    def points(self, fields: tuple[str, ...], *where: str) -> Part:
        return Part(tuple(_stream(field, (*where, *self.terms), TOGETHER, self.values) for field in fields))

    def sums(self, question: Aggregate, *where: str) -> Part:
        """Of each combination of the columns that matter; where hours are, of each series and quarter of an hour."""
        columns, windowed = _columns(question), bool(HOURS & {*question.dimensions})
        then = f"|> group(columns: {_list(columns)}) |> {{how}}()"
        if windowed:
            columns = list(TAGS)
            then = f'|> aggregateWindow(every: {HOUR}, fn: {{how}}, createEmpty: false, timeSrc: "_start")'
        sums = dict.fromkeys(["count", *(one for metric in question.metrics for one in SUMS.get(metric, ()))])
        terms = (*where, *self.terms)
        streams = (_stream(how, terms, then.format(how=how), self.values, columns) for how in sums)
        return Part(
            tuple(one._replace(windowed=windowed) for one in streams),
            daily=bool({"day", "weekday"} & {*question.dimensions}),
        )


def _stream(
    column: str, where: Iterable[str], then: str, values: Mapping[str, Any] | None = None, columns: Iterable[str] = TAGS
) -> Stream:
    field = column if column in POINTS else "duration_nano"
    return Stream(
        column,
        "from(bucket: _bucket) |> range(start: time(v: start), stop: time(v: stop)) "
        f'|> filter(fn: (r) => r._measurement == "spans" and r._field == "{field}" and {" and ".join(where)}) {then} '
        f"|> keep(columns: {_list(columns, '_start', '_time', '_value')})",
        tuple((values or {}).items()),
    )


def _list(columns: Iterable[str], *others: str) -> str:
    """As Flux has it."""
    return f"[{', '.join(map(_quoted, (*others, *(TAGS[column] for column in columns))))}]"


EDGE: Final = _Filters(None).points(EVERYTHING, NAMED)  # all that any question needs
