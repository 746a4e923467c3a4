"""The definitions, each by example on the plain-Python reference; then the store, held to the reference."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailspan.errors import QuestionError
from tailspan.labels import Checker, Labels
from tailspan.percentiles import PERCENTS
from tailspan.query import (
    DIMENSIONS,
    FILTERS,
    METRICS,
    Aggregate,
    Groups,
    Position,
    Question,
    Range,
    Rows,
    Session,
    SessionPosition,
    Sessions,
    ending,
)
from tailspan.span import OWN_SERVICE, Device, Heartbeat, Span
from tailspan.store import duckdb as store_module
from tailspan.store.duckdb import DuckDB
from tailspan.uptime import by_service, total
from tests.server.conftest import Serving
from tests.server.reference import (
    MS,
    SECOND,
    SESSION_METRICS,
    answer,
    as_answered,
    dashboard_usage,
    feature,
    first_seen,
    history_of,
    is_deliberate,
    nearest_rank,
    person,
    place,
    sessions,
    system_health,
    union,
    uptime,
)
from tests.server.strategies import LISTED, VALUES_OF, dense_world, heartbeats, questions, rich_world, worlds

# HYPOTHESIS_PROFILE=thorough pytest tests/server/test_reference.py
settings.register_profile("thorough", max_examples=5000, deadline=None)
settings.register_profile("usual", max_examples=60, deadline=None)
PROFILE: Final = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))

START: Final = 1_772_366_400 * SECOND  # 2026-03-01T12:00:00Z
ANA: Final = "ana@example.com"


def at(seconds: float, **changed: Any) -> Span:
    """Ana's call of /prices from /dashboard, so many seconds after START."""
    start_ns = START + round(seconds * SECOND)
    known: dict[str, Any] = dict.fromkeys(Span._fields) | {
        "trace_id": start_ns.to_bytes(16, "big"),
        "span_id": start_ns.to_bytes(8, "big"),
        "start_ns": start_ns,
        "duration_ns": 42 * MS,
        "path": "/prices/7",
        "route": "/prices/{id}",
        "service": "dashboard",
        "method": "GET",
        "status": 200,
        "login": ANA,
        "address": "100.64.0.7",
        "source": "live",
        "identity_source": "serve_header",
        "proven": True,
        "caller": "person",
        "traffic": "api",
        "page": "/dashboard",
        "schema": 1,
        "kind": "request",
    }
    return Span(**(known | changed))


def page(seconds: float, **changed: Any) -> Span:
    return at(seconds, **{"traffic": "page", "path": "/dashboard", "route": "/dashboard"} | changed)


def deliberate(*seen: Span) -> list[float]:
    """Of the calls among these, when those were that somebody made on purpose; in seconds."""
    return [(span.start_ns - START) / SECOND for span in seen if is_deliberate(span, seen)]


# Page loads


def test_a_call_within_five_seconds_of_its_page_belongs_to_the_load() -> None:
    assert deliberate(page(0), at(0), at(5), at(5.000000001)) == [5.000000001]


def test_a_call_before_its_page_is_measured_from_the_calls_before_it() -> None:
    assert deliberate(at(0), at(6), page(7), at(8)) == [6]


def test_the_newest_request_of_the_page_counts() -> None:
    assert deliberate(page(0), at(60), page(100), at(103), at(106)) == [60, 106]


def test_the_load_of_another_page_or_another_caller_explains_nothing() -> None:
    for other in ({"page": "/insights"}, {"address": "100.64.0.8"}, {"service": "heating"}, {"environment": "prod"}):
        assert deliberate(page(0), at(3, **other), at(9, **other)) == [9]  # the first call after a cached page


def test_the_caller_is_told_by_the_clients_address_where_there_is_no_tailnet_address() -> None:
    behind = {"address": None, "client_address": "192.0.2.1"}
    assert deliberate(page(0, **behind), at(4, **behind), at(6, **behind)) == [6]


def test_a_page_from_the_cache_loads_for_five_seconds_from_its_first_call() -> None:
    assert deliberate(at(0), at(5), at(5.1), at(600)) == [5.1, 600]


def test_after_exactly_thirty_minutes_without_a_call_the_next_is_a_first_call_again() -> None:
    assert deliberate(at(0), at(1800), at(1804), at(1806)) == [1806]
    assert deliberate(at(0), at(1799.999999999), at(3600)) == [1799.999999999]


def test_polls_keep_a_page_open_so_that_a_call_beside_them_is_deliberate() -> None:
    polls = [at(minutes * 60, traffic="poll") for minutes in range(0, 60, 5)]
    assert deliberate(*polls, at(50 * 60 + 1)) == [50 * 60 + 1]


def test_a_page_asked_for_thirty_minutes_ago_is_forgotten() -> None:
    assert deliberate(page(0), at(1799)) == [1799]
    assert deliberate(page(0), at(1800)) == []  # the first call from a page that came from a cache


def test_a_call_that_names_no_page_is_deliberate() -> None:
    assert deliberate(page(0, page=None), at(1, page=None)) == [1]


def test_only_a_persons_api_request_is_a_deliberate_call() -> None:
    others: list[dict[str, Any]] = [
        {"login": None},
        {"caller": "tagged"},
        {"traffic": "poll"},
        {"traffic": "asset"},
        {"kind": "view"},
    ]
    assert [is_deliberate(at(60, **other), [page(0), at(60, **other)]) for other in others] == [False] * 5


# Sessions


def spoken(found: list[Any]) -> list[tuple[str | None, float, float, int]]:
    return [
        (person(s.first), (s.first.start_ns - START) / SECOND, s.duration_ns / SECOND, len(s.activities)) for s in found
    ]


def test_activities_less_than_thirty_minutes_apart_are_one_session() -> None:
    assert spoken(sessions([at(0), at(1799), at(3598), at(5398)])) == [(ANA, 0, 3598, 3), (ANA, 5398, 0, 1)]


def test_each_person_service_and_environment_has_sessions_of_its_own() -> None:
    spans = [at(0), at(1, login="leo@example.com"), at(2, service="heating"), at(3, environment="prod"), at(4)]
    assert spoken(sessions(spans)) == [
        (ANA, 3, 0, 1),
        (ANA, 0, 4, 2),
        (ANA, 2, 0, 1),
        ("leo@example.com", 1, 0, 1),
    ]


def test_polls_assets_and_callers_who_are_no_people_keep_no_session_alive() -> None:
    idle: list[dict[str, Any]] = [
        {"traffic": "poll"},
        {"traffic": "asset"},
        {"caller": "unknown"},
        {"caller": "tagged"},
        {"login": None},
    ]
    assert spoken(sessions([at(0), *(at(1000 + n, **one) for n, one in enumerate(idle)), at(2000)])) == [
        (ANA, 0, 0, 1),
        (ANA, 2000, 0, 1),
    ]


def test_a_card_view_keeps_a_session_alive() -> None:
    assert spoken(sessions([at(0), at(1000, kind="view", traffic="page"), at(2000)])) == [(ANA, 0, 2000, 3)]


# Who, which device


def entry(**changed: Any) -> Device:
    known = Device("100.64.0.7", "n1", "laptop", ANA, "Ana", None, "person", "whois", START, START + 100 * SECOND)
    return known._replace(**changed)


UNKNOWN: Final = {"login": None, "caller": "unknown", "identity_source": "none"}


def test_an_address_is_named_by_who_had_it_when_the_request_began() -> None:
    before, first, last, after = (at(n, **UNKNOWN) for n in (-1, 0, 99.999999999, 100))
    named: dict[str, Any] = {"node_id": "n1", "node": "laptop", "login": ANA, "full_name": "Ana", "caller": "person"}
    assert as_answered([before, first, last, after], [entry()], Labels()) == [
        before,
        first._replace(**named, identity_source="whois"),
        last._replace(**named, identity_source="whois"),
        after,
    ]


def test_what_a_request_proved_itself_is_never_overwritten() -> None:
    spans = [at(1, login="leo@example.com"), at(2, node_id="n9", node="phone"), at(3, **UNKNOWN | {"caller": "funnel"})]
    found = as_answered(spans, [entry()], Labels())
    assert [(s.login, s.caller, s.identity_source, s.node_id, s.node) for s in found] == [
        ("leo@example.com", "person", "serve_header", "n1", "laptop"),
        (ANA, "person", "serve_header", "n9", "phone"),
        (None, "funnel", "none", "n1", "laptop"),
    ]


def test_a_device_is_shown_by_its_newest_name() -> None:
    history = [entry(), entry(node="new-laptop", from_ns=START + 100 * SECOND, to_ns=None)]
    named = as_answered([at(1), at(2, node_id="n1", node="laptop"), at(3, node_id="n2", node="b")], history, Labels())
    assert [s.node for s in named] == ["new-laptop", "new-laptop", "b"]


def test_the_history_tells_who_had_an_address_whatever_the_order_of_arrival() -> None:
    mine = {"node_id": "n1", "node": "laptop", "identity_source": "whois"}
    spans = [
        at(20, **mine, full_name="Ana"),
        at(10, **mine),
        at(25, **mine, source="log"),
        at(30, **mine | {"node": "renamed"}),
        at(40, node_id="n2", node="runner", tags="tag:ci", login=None, caller="tagged", identity_source="whois"),
        at(50),
    ]
    known = entry(full_name=None)
    ten = 10 * SECOND
    assert history_of(spans) == [
        known._replace(from_ns=START + ten, to_ns=START + 3 * ten),
        known._replace(node="renamed", from_ns=START + 3 * ten, to_ns=START + 4 * ten),
        Device("100.64.0.7", "n2", "runner", None, None, "tag:ci", "tagged", "whois", START + 4 * ten, None),
    ]


def test_people_are_persons_and_shared_callers_with_a_login() -> None:
    kinds = ("person", "shared", "tagged", "funnel", "local", "unknown")
    assert [person(at(0, caller=kind)) for kind in kinds] == [ANA, ANA, None, None, None, None]
    assert person(at(0, login=None)) is None


def test_a_person_is_first_seen_at_the_first_activity_ever() -> None:
    spans = [at(5), at(1, traffic="poll"), at(2, login="leo@example.com"), at(3, kind="view")]
    assert (first_seen(ANA, spans), first_seen("eva@example.com", spans)) == (START + 3 * SECOND, None)


# What kind of request, and on which page


@pytest.mark.parametrize("stored", ["health", "asset", "page", "poll", "api"])
@pytest.mark.parametrize(
    "checker",
    [
        {"address": "100.64.0.7"},
        {"address": "192.0.2.1"},
        {"node": "n1"},
        {"node": "laptop"},
        {"login": ANA},
        {"user_agent": "Kuma"},
        {"tailnet_address": "100.64.0.7", "source": "live"},
        {"user_agent": "Kuma", "login": ANA, "node": "n1", "address": "100.64.0.7"},
    ],
)
def test_a_declared_checkers_requests_are_health(stored: str, checker: dict[str, str]) -> None:
    who = {"node_id": "n1", "node": "laptop", "user_agent": "Uptime-Kuma/1.23", "client_address": "192.0.2.1"}
    [found] = as_answered([at(0, traffic=stored, **who)], [], Labels(checkers=(Checker(**checker),)))
    assert found.traffic == "health"


def test_a_checker_is_one_only_where_all_that_is_declared_fits() -> None:
    checkers = (
        Checker(user_agent="Kuma", login="leo@example.com"),
        Checker(user_agent="kuma"),
        Checker(node="n1"),
        Checker(login=ANA, source="log"),
        Checker(tailnet_address="192.0.2.1"),
    )
    [found] = as_answered([at(0, user_agent="Uptime-Kuma/1.23")], [], Labels(checkers=checkers))
    assert found.traffic == "api"


def test_agents_and_our_own_requests_stay_what_they_are() -> None:
    spans = [at(0, traffic="agent"), at(1, traffic="internal")]
    assert as_answered(spans, [], Labels(checkers=(Checker(login=ANA),), polls=("/prices/{id}",))) == spans


def test_a_declared_poll_is_a_poll_and_only_calls_are() -> None:
    spans = [at(0), at(1, route=None), at(2, traffic="page"), at(3, route="/other")]
    found = as_answered(spans, [], Labels(polls=("/prices/{id}", "/prices/7")))
    assert [s.traffic for s in found] == ["poll", "api", "page", "api"]


def test_pages_are_mapped_by_the_settings_when_asked() -> None:
    spans = [page(0, page="/static/index.html"), page(1), page(2, page=None)]
    found = as_answered(spans, [], Labels(pages={"/static/index.html": "/dashboard"}))
    assert [s.page for s in found] == ["/dashboard", "/dashboard", None]


def test_a_feature_is_named_by_card_then_route_then_page_then_document_and_else_by_itself() -> None:
    named = Labels(
        card_features={"Sistema": "System"},
        route_features={"/prices/{id}": "Prices"},
        page_features={"/": "Home"},
        summaries={
            ("dashboard", "GET", "/prices/{id}"): "Get Prices",
            ("dashboard", "GET", "/files/{path}"): "Get Files",
            ("heating", "GET", "/other"): "Another service's",
            ("dashboard", "POST", "/other"): "Another method's",
        },
    )
    spans = [
        at(0),
        at(1, route="/other", page="/"),
        at(2, route="/other"),
        at(3, route=None),
        at(3, route="/files/{path:path}"),
        at(3, route="/files/{path:path}", page="/"),
        at(4, kind="view", card="Sistema", page="/"),
        at(5, kind="view", card="Precios", page="/"),
        at(6, kind="view", card="Precios"),
    ]
    assert [feature(span, named) for span in spans] == [
        "Prices",
        "Home",
        "/other",
        "/prices/{id}",
        "Get Files",
        "Home",
        "System",
        "Home",
        "Precios",
    ]


# Numbers


def test_a_percentile_is_the_value_of_its_nearest_rank() -> None:
    values = list(range(20, 0, -1))
    assert [nearest_rank(percent, values) for percent in (50, 95, 99)] == [10, 19, 20]
    assert [nearest_rank(percent, [7]) for percent in (50, 95, 99)] == [7, 7, 7]
    assert [nearest_rank(percent, [1, 2, 3]) for percent in (50, 95)] == [2, 3]


# Uptime


def beat(start: int, end: int, service: str = "dashboard", **changed: Any) -> Heartbeat:
    """From `start` to `end` minutes after START."""
    made = Heartbeat(bytes(16), bytes(8), minutes(start), minutes(end), service, None, False, 0, 0, 0, 0)
    return made._replace(**changed)


def minutes(number: int) -> int:
    return START + number * 60 * SECOND


def lived(*beats: Heartbeat) -> dict[str, float]:
    """Minutes of each kind in the first hour; those without any left out."""
    found = uptime(beats, "dashboard", None, Range(minutes(0), minutes(60)))
    assert sum(found.values()) == 3600 * SECOND
    return {kind: ns / 60 / SECOND for kind, ns in found.items() if ns}


SERVER: Final = beat(-60, 120, "tailspan")


def test_stretches_that_touch_are_one() -> None:
    assert union([(5, 6), (1, 2), (2, 3), (1, 4), (8, 8)]) == [(1, 4), (5, 6), (8, 8)]


def test_two_processes_that_overlap_are_up_once() -> None:
    assert lived(SERVER, beat(-10, 40), beat(20, 70)) == {"up": 60}


def test_silence_while_the_server_lived_is_down() -> None:
    assert lived(SERVER, beat(0, 20), beat(30, 60)) == {"up": 50, "down": 10}


def test_silence_after_a_clean_stop_is_off() -> None:
    assert lived(SERVER, beat(0, 20, stopped=True), beat(30, 40), beat(50, 60)) == {"up": 40, "off": 10, "down": 10}


def test_a_stop_of_one_process_while_another_lives_on_is_nothing() -> None:
    assert lived(SERVER, beat(0, 20, stopped=True), beat(0, 30), beat(40, 60)) == {"up": 50, "down": 10}


def test_silence_of_service_and_server_together_is_the_hosts() -> None:
    server = [beat(0, 25, "tailspan"), beat(35, 60, "tailspan")]
    assert lived(*server, beat(0, 20), beat(40, 60)) == {"up": 40, "down": 10, "host_off": 10}


def test_the_time_before_the_first_heartbeat_ever_is_in_neither_sum() -> None:
    assert lived(SERVER, beat(15, 60)) == {"up": 45, "before": 15}
    assert lived(SERVER, beat(-60, -30), beat(15, 60)) == {"up": 45, "down": 15}
    assert lived(SERVER) == {"before": 60}


def test_the_seconds_since_the_newest_beat_are_not_yet_silence() -> None:
    assert lived(SERVER, beat(0, 60, end_ns=minutes(60) - 30 * SECOND)) == {"up": 59.5, "pending": 0.5}
    assert lived(SERVER, beat(0, 60, end_ns=minutes(60) - 45 * SECOND)) == {"up": 59.25, "down": 0.75}
    assert lived(SERVER, beat(0, 59, stopped=True)) == {"up": 59, "off": 1}


def test_other_services_and_environments_say_nothing() -> None:
    assert lived(SERVER, beat(0, 60, "heating"), beat(0, 60, environment="prod")) == {"before": 60}


# The store


@contextmanager
def opened(max_times: int = store_module.MAX_TIMES) -> Iterator[DuckDB]:
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as changed:
        changed.setattr(store_module, "MAX_TIMES", max_times)
        store = DuckDB(Path(directory) / "tailspan.duckdb")
        yield store
        store.close()


@PROFILE
@given(st.data())
def test_the_store_answers_every_question_as_the_definitions_say(data: st.DataObject) -> None:
    """Also between two deliveries, the second of which has the first one's spans again."""
    world, listed = data.draw(worlds()), data.draw(LISTED)
    asked = data.draw(st.lists(questions(world), min_size=1, max_size=3))
    half = data.draw(st.integers(0, len(world)))
    with opened(max_times=data.draw(st.sampled_from((0, 2_000_000)))) as store:
        for delivered, devices in ((world[:half], []), (world, listed)):
            store.write(delivered)
            store.learn(devices)
            history = history_of(delivered) + devices
            assert sorted(store.history(), key=repr) == sorted(history, key=repr)
            for query in asked:
                assert (query, store.run(query)) == (query, answer(query, delivered, history))


def test_of_two_spans_of_one_instant_the_one_with_the_smaller_id_names_the_address_whichever_came_first() -> None:
    known: dict[str, Any] = {"node_id": "n1", "node": "laptop", "identity_source": "whois"}
    world = [at(0, **known, full_name="Ana"), at(0, **known, span_id=bytes(8), full_name="Ana Pérez")]
    with opened() as store:
        for span in world:
            store.write([span])
        assert store.history() == history_of(world) == [entry(full_name="Ana Pérez", to_ns=None)]


def test_a_page_opened_long_before_the_range_makes_a_call_in_it_deliberate() -> None:
    world = [at(0), at(1799), at(1803)]
    query = Aggregate(range=Range(world[2].start_ns, world[2].start_ns + 1), metrics=("deliberate_calls",))
    with opened() as store:
        store.write(world)
        assert store.run(query) == answer(query, world, []) == Groups([{"deliberate_calls": 1}], more=0)


@pytest.mark.parametrize("seed", range(16))
def test_page_loads_and_sessions_are_found_wherever_the_range_begins(seed: int) -> None:
    world = dense_world(seed)
    history = history_of(world)
    with opened() as store:
        store.write(world)
        for first in world[seed % 3 :: 3]:
            range = Range(first.start_ns, world[-1].start_ns + 1)
            for query in (Rows(range=range, known=("feature",)), Sessions(range=range)):
                assert (query, store.run(query)) == (query, answer(query, world, history))


@PROFILE
@given(heartbeats(), st.integers(-2, 20), st.integers(0, 20))
def test_uptime_is_as_the_definition_says(beats: list[Heartbeat], start: int, length: int) -> None:
    begin = min((beat.start_ns for beat in beats), default=START)
    range = Range(begin + start * 15 * 60 * SECOND // 4, begin + (start + length) * 15 * 60 * SECOND // 4)
    assert {name: total(stretches, range)._asdict() for name, stretches in by_service(beats, range.end_ns).items()} == {
        name: uptime(beats, *name, range)
        for name in {(beat.service, beat.environment) for beat in beats if beat.start_ns < range.end_ns}
        if name[0] != OWN_SERVICE
    }


LABELS: Final = Labels(
    pages={"/static/index.html": "/dashboard"},
    cards={"Sistema": "System card"},
    card_features={"System card": "System"},
    route_features={"/prices/{id}": "Prices"},
    page_features={"/insights/{id}": "Insights"},
    polls=("/optimize",),
    checkers=(Checker(user_agent="Kuma", node="n2"),),
    trusted_logs={"dashboard": "serve_header"},
    openapi={"dashboard": "dashboard.json"},
    summaries={
        ("dashboard", "GET", "/files/{path}"): "Get Files",
        ("dashboard", "POST", "/dashboard"): "Save Dashboard",
        ("dashboard", "GET", "/prices/{id}"): "Get Prices",
    },
)
DOCUMENT: Final = {
    "paths": {
        "/files/{path}": {"get": {"summary": "Get Files"}},
        "/prices/{id}": {"get": {"summary": "Get Prices"}},
        "/dashboard": {"get": {"description": "without a summary"}, "post": {"summary": "Save Dashboard"}},
    }
}
WORLD: Final = rich_world()
COMMON: Final[Mapping[str, Any]] = {
    "range": Range(WORLD[20].start_ns, WORLD[-1].start_ns),
    "zone": "Europe/Madrid",
    "labels": LABELS,
}


@pytest.fixture(scope="module")
def store() -> Iterator[DuckDB]:
    with opened() as store:
        store.write(WORLD)
        yield store


def expected(query: Aggregate | Rows | Sessions) -> Any:
    return answer(query, WORLD, history_of(WORLD))


def asked(*metrics: str, **more: Any) -> list[Aggregate]:
    """The question, where it is one."""
    try:
        return [Aggregate(metrics=metrics, limit=10_000, **COMMON, **more)] if metrics else []
    except QuestionError:
        return []


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_right_in_all_and_by_each_dimension_it_has(metric: str, store: DuckDB) -> None:
    [total] = expected(*asked(metric)).rows
    assert total[metric], "a world without any proves nothing"
    walk = [*asked(metric), *(query for name in DIMENSIONS for query in asked(metric, dimensions=(name,)))]
    assert len(walk) > 7
    assert [(query, store.run(query)) for query in walk] == [(query, expected(query)) for query in walk]


def test_percentiles_are_exact_also_where_the_times_are_counted() -> None:
    made = Random(7)
    lengths = [int(made.lognormvariate(17, 2)) for _ in range(900)] + [42 * MS] * 90 + [0, 1, 2**62]
    world = [
        at(n, duration_ns=length, traffic="poll", route=made.choice(("/a", "/b", None)))
        for n, length in enumerate(made.sample(lengths, len(lengths)))
    ]
    everything = Range(world[0].start_ns, world[-1].start_ns + 1)
    walk = [
        Aggregate(range=everything, metrics=metrics, dimensions=dimensions)
        for metrics in (("p50_ms",), ("p99_ms", "requests", "p95_ms"))
        for dimensions in ((), ("route",), ("endpoint", "person"), ("status", "hour"))
    ]
    with opened(max_times=0) as store:
        store.write(world)
        assert [store.run(query) for query in walk] == [answer(query, world, []) for query in walk]


@pytest.mark.parametrize("metric", PERCENTS)
def test_counted_percentiles_are_right_by_each_dimension_they_have(metric: str) -> None:
    walk = [*asked(metric), *(query for name in DIMENSIONS for query in asked(metric, dimensions=(name,)))]
    with opened(max_times=0) as store:
        store.write(WORLD)
        assert [(query, store.run(query)) for query in walk] == [(query, expected(query)) for query in walk]


def test_the_world_has_features_by_each_kind_of_name() -> None:
    found = {row["feature"] for row in expected(*asked("deliberate_calls", dimensions=("feature",))).rows}
    assert found >= {"Prices", "Save Dashboard", "/files/{path:path}", "/nowhere/{id}/{id}"}


@pytest.mark.parametrize("how", ["filters", "without"])
@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_and_its_opposite_are_right_for_each_metric_they_fit(name: str, how: str, store: DuckDB) -> None:
    walk = []
    for more in ({how: {name: (value,)}} for value in VALUES_OF[name]):
        fitting = [metric for metric in METRICS if asked(metric, **more)]
        walk += asked(*(metric for metric in fitting if metric not in SESSION_METRICS), **more)
        walk += asked(*(metric for metric in fitting if metric in SESSION_METRICS), **more)
    assert [(query, store.run(query)) for query in walk] == [(query, expected(query)) for query in walk]


def test_walking_through_requests_finds_each_once(store: DuckDB) -> None:
    everything = expected(Rows(**COMMON))
    found: list[Span] = []
    while step := store.run(Rows(**COMMON, limit=7, after=Position(*place(found[-1])) if found else None)):
        found += step
    assert (found, len(found) > 70) == (everything, True)


def test_walking_through_sessions_finds_each_once(store: DuckDB) -> None:
    everything = expected(Sessions(**COMMON))
    found: list[Session] = []
    while step := store.run(Sessions(**COMMON, limit=2, after=after(found[-1]) if found else None)):
        found += step
    assert (found, len(found) > 10) == (everything, True)


def after(session: Session) -> SessionPosition:
    return SessionPosition(session.start_ns, session.person, session.service, session.environment)


# The endpoints


SETTINGS: Final = """
zone = "Europe/Madrid"
polls = ["/optimize"]
checkers = [{ user_agent = "Kuma", node = "n2" }]
[trusted_logs]
dashboard = "TS-User"
[pages]
"/static/index.html" = "/dashboard"
[cards]
"Sistema" = "System card"
[features.cards]
"System card" = "System"
[features.routes]
"/prices/{id}" = "Prices"
[features.pages]
"/insights/{id}" = "Insights"
[openapi]
dashboard = "dashboard.json"
"""
NOW: Final = datetime.fromtimestamp(WORLD[-1].start_ns // SECOND - 60, UTC)


@pytest.mark.parametrize("only", [{}, {"user": ANA}, {"device": "n1"}, {"service": "heating"}, {"environment": "prod"}])
@pytest.mark.parametrize(
    ("name", "made"), [("dashboard-usage", dashboard_usage), ("system-health-history", system_health)]
)
def test_reports_are_as_the_definitions_say(
    name: str, made: Any, only: dict[str, str], database: Path, tmp_path: Path, serving: Serving
) -> None:
    held = DuckDB(database)
    held.write(WORLD)
    held.close()
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "dashboard.json").write_text(json.dumps(DOCUMENT))
    asked = Question(
        range=ending(NOW, timedelta(days=1)),
        zone="Europe/Madrid",
        labels=LABELS,
        filters={key: (value,) for key, value in only.items()},
    )
    with serving(now=NOW, settings=tmp_path / "settings.toml") as client:
        found = client.get(f"/analytics/{name}", params={"days": 1, **only}).json()
    promised = made(asked, WORLD, history_of(WORLD))
    assert narrowed(found, promised) == promised


def narrowed(found: Any, like: Any) -> Any:
    """Without the keys beside those that are promised."""
    if isinstance(like, dict) and isinstance(found, dict):
        return {key: narrowed(found.get(key), value) for key, value in like.items()}
    if isinstance(like, list) and isinstance(found, list):
        return [narrowed(one, other) for one, other in zip_longest(found, like)]
    return found
