"""Small worlds where the rare is common: ties, gaps of exactly a limit, nights when clocks change, missing names.

Few values of everything, so that two spans often share a caller, a page, a route; times are a chain of gaps from one
moment that a definition could stumble over.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from tailspan.labels import CLAIMS, Checker, Labels
from tailspan.query import DIMENSIONS, FILTERS, METRICS, RECORD, VALUES, Aggregate, Kind, Name, Range, Rows, Sessions
from tailspan.span import Device, Heartbeat, Span
from tests.server.reference import APART, LOAD, MS, SECOND

HOUR: Final = 3600 * SECOND
ZONES: Final = ("UTC", "Europe/Madrid", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
MOMENTS: Final = tuple(
    int(moment.timestamp()) * SECOND
    for moment in (
        datetime(2026, 1, 1, tzinfo=UTC),  # a year begins
        datetime(2026, 3, 29, 1, tzinfo=UTC),  # Madrid's clocks go forward
        datetime(2026, 10, 25, 1, tzinfo=UTC),  # and back
        datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York's forward
        datetime(2026, 11, 1, 6, tzinfo=UTC),  # and back
        datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe's back, by half an hour
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),  # and forward
        datetime(2026, 2, 28, 18, 30, tzinfo=UTC),  # midnight in Kolkata, between two months
    )
)
SHORT: Final = (0, 0, 1, MS, SECOND, 3 * SECOND, LOAD - 1, LOAD, LOAD, LOAD + 1, 60 * SECOND, 600 * SECOND, APART // 2)
LONG: Final = (APART - LOAD, APART - 1, APART, APART, APART + 1, HOUR, 3 * HOUR, 24 * HOUR, 2 * 10**6 * SECOND)

PEOPLE: Final = ("ana@example.com", "leo@example.com", "Émile@example.com")
NODES: Final = (("n1", "laptop"), ("n1", "renamed"), ("n2", "phone"), ("n3", None), ("n4", "laptop"))
ADDRESSES: Final = ("100.64.0.1", "100.64.0.2")
PAGES: Final = ("/dashboard", "/static/index.html", "/insights/{id}")
ROUTES: Final = ("/dashboard", "/prices/{id}", "/optimize", "/files/{path:path}")
PATHS: Final = ("/dashboard", "/prices/7", "/optimize", "/nowhere/12/0123456789abcdef")
CARDS: Final = ("Sistema", "Precios")
VARIANTS: Final = ("wide", "narrow")
SERVICES: Final = ("dashboard", "heating")
FEATURES: Final = ("Prices", "Home", "System")
DOCUMENTED: Final = ("/optimize", "/prices/{id}", "/files/{path}")  # as their OpenAPI document has them
VALUES_OF: Final[Mapping[str, Sequence[str]]] = {
    **VALUES,
    "user": PEOPLE,
    "device": ("n1", "n2", "laptop", "phone", "renamed"),
    "address": (*ADDRESSES, "100.64.0.9"),
    "service": SERVICES,
    "environment": ("prod", "test"),
    "route": ROUTES,
    "endpoint": (*ROUTES, *PATHS),
    "feature": (*FEATURES, *ROUTES, *CARDS, "Get Files", "Save Dashboard"),
    "page": PAGES,
    "card": (*CARDS, "System card"),
    "variant": VARIANTS,
    "method": ("GET", "POST", "_OTHER"),
    "status": ("200", "404", "500"),
}

Pick = Callable[[Sequence[Any]], Any]  # one of these


class Caller(NamedTuple):
    login: str | None = None
    caller: str = "person"
    identity_source: str = "serve_header"
    node_id: str | None = None
    node: str | None = None
    tags: str | None = None
    address: str | None = None
    client_address: str | None = None
    claim: str | None = None  # of a log's line


USUAL: Final = (
    Caller(PEOPLE[0], "person", "whois", "n1", "laptop", None, ADDRESSES[0], ADDRESSES[0]),
    Caller(PEOPLE[0], "person", "whois", "n1", "renamed", None, ADDRESSES[0], ADDRESSES[0]),
    Caller(PEOPLE[0], "person", "serve_header", None, None, None, ADDRESSES[0], ADDRESSES[0]),
    Caller(PEOPLE[0], "person", "whois", "n2", "phone", None, ADDRESSES[1], ADDRESSES[1]),
    Caller(PEOPLE[1], "shared", "whois", "n4", "laptop", None, ADDRESSES[1], ADDRESSES[1]),
    Caller(None, "unknown", "none", None, None, None, ADDRESSES[0], ADDRESSES[0]),
    Caller(None, "unknown", "none", None, None, None, ADDRESSES[1], ADDRESSES[1]),
    Caller(None, "unknown", "none", None, None, None, "100.64.0.9", "100.64.0.9"),
    Caller(None, "tagged", "whois", "n3", "runner", "tag:ci", ADDRESSES[1], ADDRESSES[1]),
    Caller(PEOPLE[2], "person", "nginx_auth", None, None, None, None, "192.0.2.1"),
    Caller(None, "funnel", "none", None, None, None, None, "192.0.2.2"),
    Caller(None, "unknown", "serve_header", None, None, None, ADDRESSES[0], ADDRESSES[0], PEOPLE[1]),
    Caller(None, "unknown", "nginx_auth", None, None, None, None, "192.0.2.1", PEOPLE[2]),
    Caller(None, "local", "serve_header", None, None, None, None, "127.0.0.1", PEOPLE[0]),
)


def any_caller(pick: Pick) -> Caller:
    """Mostly one of those who exist; sometimes any mixture, since a sender may write anything."""
    if pick(range(5)):
        return USUAL[pick((*range(len(USUAL)), *range(5)))]
    node_id, node = pick(((None, None), (None, "laptop"), *NODES))
    return Caller(
        login=pick((None, *PEOPLE)),
        caller=pick(VALUES["caller"]),
        identity_source=pick(VALUES["identity_source"]),
        node_id=node_id,
        node=node,
        tags=pick((None, "tag:ci", "tag:ci,tag:web")),
        address=pick((None, *ADDRESSES)),
        client_address=pick((None, *ADDRESSES, "192.0.2.1")),
        claim=pick((None, *PEOPLE)),
    )


class Scene(NamedTuple):
    """What a world is made of."""

    casts: Sequence[Caller]
    gaps: Sequence[int]
    pages: Sequence[str | None] = PAGES[:1]
    traffics: Sequence[str] = ("page", "api", "api", "api", "poll")


def any_scene(pick: Pick) -> Scene:
    """Page loads of one caller; an address that changes hands; or anything."""
    edges = (0, 1, SECOND, LOAD - 1, LOAD, LOAD, LOAD + 1, APART - LOAD, APART - 1, APART, APART + 1)
    loads = Scene((USUAL[0], USUAL[0], USUAL[0], pick(USUAL)), edges)
    hands = Scene([who for who in USUAL if who.address == ADDRESSES[1]], (0, 0, 1, SECOND, APART))
    anything = Scene(
        casts=[any_caller(pick) for _ in range(pick((1, 2, 4)))],
        gaps=pick((SHORT, (*SHORT, *LONG), LONG)),
        pages=pick((PAGES[:1], PAGES[:2], (*PAGES, None))),
        traffics=(*("page", "api") * 3, *VALUES["traffic"]),
    )
    return (loads, hands, anything, anything)[pick(range(4))]


def any_span(pick: Pick, number: int, at: int, scene: Scene) -> Span:
    is_view = not pick(range(6))
    who = pick(scene.casts)
    return Span(
        trace_id=(number + 1).to_bytes(8, "big") + number.to_bytes(8, "big"),  # a log's line has no other span's twin
        span_id=(number + 1).to_bytes(8, "big"),
        parent_id=pick((None, b"proxyspn")),
        start_ns=at,
        duration_ns=pick((None, 0, 1, MS, 42 * MS, 892 * MS, 10**15, pick(range(10**12)))),
        path=pick((None, *PATHS)),
        service=pick((*SERVICES, *SERVICES[:1] * 6)),
        environment=pick((*(None,) * 6, "prod")),
        method=pick(VALUES_OF["method"]),
        route=None if is_view else pick((None, *ROUTES)),
        status=pick((200, 200, 304, 404, 499, 500, 503, None)),
        full_name=pick((None, "Ana", "Leo")),
        guess=pick((None, "iPhone")),
        source="page" if is_view else "log" if who.claim else pick(("live", "live", "live", "log")),
        proven=pick((True, False)),
        traffic=pick(scene.traffics),
        page=pick(scene.pages),
        user_agent=pick((None, "curl/8", "Uptime-Kuma/1.23")),
        polled=not pick(range(3)),
        by_proxy=number % 3 == 0,
        schema=1,
        kind="view" if is_view else "request",
        card=pick((None, *CARDS, *CARDS)) if is_view else None,
        variant=pick((None, *VARIANTS)) if is_view else None,
        visible_ms=pick((None, 0, 1500, 10**9)) if is_view else None,
        open_ns=None,
        **who._asdict(),
    )


def number_of(place: int) -> int:
    """Ids say nothing of time."""
    return place * 389 % 1009


def any_world(pick: Pick, scene: Scene, at: int, count: int) -> list[Span]:
    made = []
    for number in map(number_of, range(count)):
        at += pick(scene.gaps)
        made.append(any_span(pick, number, at, scene))
    return made


def rich_world() -> list[Span]:
    """One world that has everything, the same each time."""
    pick = Random(2030).choice
    casts = [*USUAL, *(any_caller(pick) for _ in range(6)), *(USUAL[0], USUAL[4]) * 12]
    traffics = (*("page", "api", "api", "poll") * 3, *VALUES["traffic"])
    scene = Scene(casts, (*SHORT * 4, *LONG[:6]), (None, *PAGES, *PAGES[:2] * 3), traffics)
    return any_world(pick, scene, MOMENTS[1] - 6 * HOUR, 160)


@st.composite
def worlds(draw: st.DrawFn) -> list[Span]:
    """Requests and views, in any order of delivery."""

    def pick(values: Sequence[Any]) -> Any:
        return draw(st.sampled_from(values))

    made = any_world(pick, any_scene(pick), pick(MOMENTS), pick((0, 1, 2, 4, 8, 16, 16, 16)))
    return draw(st.permutations(made)) if draw(st.booleans()) else made


def dense_world(seed: int) -> list[Span]:
    """A larger one, of which nothing can be made smaller, but many can be tried."""
    pick = Random(seed).choice
    return any_world(pick, any_scene(pick), pick(MOMENTS), 40)


def tables(keys: Sequence[str], values: Sequence[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(keys), st.sampled_from(values), max_size=2)


labels: Final = st.just(Labels()) | st.builds(
    Labels,
    pages=tables(PAGES, PAGES),
    cards=tables(CARDS, (*CARDS, "System card")),
    card_features=tables((*CARDS, "System card"), FEATURES),
    route_features=tables(ROUTES, FEATURES),
    page_features=tables(PAGES, FEATURES),
    summaries=st.dictionaries(
        st.tuples(*map(st.sampled_from, (SERVICES, VALUES_OF["method"], DOCUMENTED))),
        st.sampled_from((*FEATURES, "Get Files")),
        max_size=4,
    ),
    trusted_logs=st.dictionaries(st.sampled_from(SERVICES), st.sampled_from(tuple(CLAIMS.values())), max_size=2),
    polls=st.lists(st.sampled_from((*ROUTES, *PATHS)), max_size=2, unique=True).map(tuple),
    checkers=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "address": st.sampled_from((*ADDRESSES, "192.0.2.1")),
                "node": st.sampled_from(VALUES_OF["device"]),
                "login": st.sampled_from(PEOPLE),
                "user_agent": st.sampled_from(("Kuma", "kuma", "%", "curl/8")),
                "tailnet_address": st.sampled_from(ADDRESSES),
                "source": st.sampled_from(("live", "log")),
            },
        )
        .filter(bool)
        .map(lambda given: Checker(**given)),
        max_size=2,
    ).map(tuple),
)


@st.composite
def ranges(draw: st.DrawFn, world: Sequence[Span]) -> Range:
    """Around everything, or with edges on a span, just beside one, or half an hour from one."""
    times = [span.start_ns for span in world] or [MOMENTS[0]]
    if draw(st.booleans()):
        return Range(min(times), max(times) + 1)
    near = st.tuples(st.sampled_from(times), st.sampled_from((0, 0, 1, -1, LOAD, APART, -APART, HOUR))).map(sum)
    start, end = sorted((draw(near), draw(near)))
    return Range(start, end + 1)


def names(
    table: Mapping[str, Name], kinds: frozenset[Kind], *, min_size: int = 0, max_size: int
) -> st.SearchStrategy[tuple[str, ...]]:
    """Some of the table that have any of these kinds."""
    fitting = [name for name in table if table[name].kinds & kinds]
    return st.lists(st.sampled_from(fitting), unique=True, min_size=min_size, max_size=max_size).map(tuple)


@st.composite
def conditions(draw: st.DrawFn, kind: Kind) -> dict[str, tuple[str, ...]]:
    chosen = draw(names(FILTERS, frozenset((kind,)), max_size=2))
    return {name: tuple(draw(st.lists(st.sampled_from(VALUES_OF[name]), min_size=1, max_size=3))) for name in chosen}


@st.composite
def commons(draw: st.DrawFn, world: Sequence[Span], kind: Kind) -> dict[str, Any]:
    """What questions of all three kinds have."""
    plain = draw(st.booleans())
    return {
        "range": draw(ranges(world)),
        "zone": draw(st.sampled_from(ZONES)),
        "labels": draw(labels),
        "filters": {} if plain else draw(conditions(kind)),
        "without": {} if plain else draw(conditions(kind)),
        "known": () if plain else draw(names(DIMENSIONS, frozenset((kind,)), max_size=1)),
    }


@st.composite
def aggregates(draw: st.DrawFn, world: Sequence[Span]) -> Aggregate:
    """Each combination that means something, and no other."""
    kind: Kind = draw(st.sampled_from(("request", "request", "view", "session")))
    common = draw(commons(world, kind))
    dimensions = draw(names(DIMENSIONS, frozenset((kind,)), max_size=3))
    table = DIMENSIONS | FILTERS
    asked = [table[name].kinds for name in (*dimensions, *common["filters"], *common["without"], *common["known"])]
    kinds = (RECORD if kind != "session" else frozenset((kind,))).intersection(*asked)
    metrics = draw(names(METRICS, kinds, min_size=1, max_size=4))
    keys = draw(st.lists(st.sampled_from((*metrics, *dimensions)), unique=True, max_size=2))
    order = tuple(draw(st.sampled_from(("", "-"))) + key for key in keys)
    limit = draw(st.sampled_from((1, 2, 100)))
    return Aggregate(metrics=metrics, dimensions=dimensions, order=order, limit=limit, **common)


def row_questions(world: Sequence[Span]) -> st.SearchStrategy[Rows]:
    newest_per = st.sampled_from((None, None, *(name for name in DIMENSIONS if "request" in DIMENSIONS[name].kinds)))
    return st.builds(
        lambda common, limit, newest_per: Rows(limit=limit, newest_per=newest_per, **common),
        commons(world, "request"),
        st.sampled_from((1, 3, 100)),
        newest_per,
    )


def session_questions(world: Sequence[Span]) -> st.SearchStrategy[Sessions]:
    return st.builds(
        lambda common, limit: Sessions(limit=limit, **common),
        commons(world, "session"),
        st.sampled_from((1, 3, 100)),
    )


def questions(world: Sequence[Span]) -> st.SearchStrategy[Aggregate | Rows | Sessions]:
    return aggregates(world) | aggregates(world) | row_questions(world) | session_questions(world)


# What a list of the tailnet's devices adds: of an address that no span tells of, and of those that spans tell of too
TABLET: Final = Device("100.64.0.9", "n1", "tablet", PEOPLE[0], None, None, "person", "device_list", 0, None)
RUNNER: Final = Device(ADDRESSES[0], "n3", "runner", None, None, "tag:ci", "tagged", "device_list", 0, None)
LEOS: Final = Device(ADDRESSES[1], "n4", "tablet", PEOPLE[1], "Leo", None, "shared", "device_list", 0, None)


@st.composite
def _listed(draw: st.DrawFn) -> Device:
    device: Device = draw(st.sampled_from((TABLET, RUNNER, LEOS, RUNNER._replace(address=ADDRESSES[1]))))
    from_ns = draw(st.sampled_from(MOMENTS)) + draw(st.sampled_from((0, 0, 1, SECOND, HOUR, -HOUR)))
    lasting = draw(st.sampled_from((None, None, 1, 600 * SECOND, 24 * HOUR)))
    return device._replace(from_ns=from_ns, to_ns=lasting and from_ns + lasting)


LISTED: Final = st.lists(_listed(), max_size=3, unique_by=lambda device: (device.address, device.from_ns))


@st.composite
def heartbeats(draw: st.DrawFn) -> list[Heartbeat]:
    """Of two services and of the server; stretches that touch, overlap, stop, are empty."""
    begin = draw(st.sampled_from(MOMENTS))
    moments = st.sampled_from([begin + n * 15 * SECOND for n in range(12)] + [begin + n * HOUR // 4 for n in range(8)])
    beats = []
    for number in range(draw(st.integers(0, 8))):
        start, end = sorted((draw(moments), draw(moments)))
        ids = (number.to_bytes(16, "big"), number.to_bytes(8, "big"))
        service = draw(st.sampled_from((*SERVICES, "tailspan")))
        environment = draw(st.sampled_from((None, None, None, "prod")))
        beats.append(Heartbeat(*ids, start, end, service, environment, draw(st.booleans()), 0, 0, 0, 0))
    return beats
