"""Two stores, one answer: what went through the collector into InfluxDB, held to the definitions in plain Python."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tailspan.config import InfluxDB as InfluxSettings
from tailspan.encode import batches
from tailspan.ingest import otlp
from tailspan.query import DIMENSIONS, FILTERS, METRICS, Position, Range, Rows, Sessions, nanoseconds
from tailspan.span import Heartbeat, Span
from tailspan.store.duckdb import DuckDB
from tailspan.store.influxdb import InfluxDB
from tests.server.reference import SECOND, SESSION_METRICS, answer, history_of, place
from tests.server.strategies import TABLET, VALUES_OF, dense_world, questions, rich_world
from tests.server.test_reference import COMMON, LABELS, asked
from tests.stack.engines import Collector, Influxd, until
from tests.stack.pipeline import post

BETWEEN_MS: Final = 333_333  # a start that is no whole millisecond stays as it is
NOW: Final = datetime.now(UTC)
SEEDS: Final = range(4)
TAGGED: Final = (
    *("service", "environment", "method", "route", "status", "login", "node", "node_id", "address", "source"),
    *("identity_source", "caller", "traffic", "page", "kind", "card", "variant"),
)


def kept(world: Iterable[Span], shift_ns: int = BETWEEN_MS) -> list[Span]:
    """The spans as either way in reads them, of each point one: with equal tags and start InfluxDB has one point."""
    moved = [
        span._replace(
            start_ns=span.start_ns + shift_ns, trace_id=(int.from_bytes(span.trace_id, "big") + 1).to_bytes(16, "big")
        )
        for span in world
    ]
    read = [span for batch in batches(moved) for span in delivered(batch.body).spans]
    return list(
        {
            (*(getattr(span, name) for name in TAGGED), span.duration_ns is None, span.start_ns): span for span in read
        }.values()
    )


def delivered(body: bytes) -> Any:
    return otlp.read(body, otlp.PROTOBUF, "", nanoseconds(NOW))


@pytest.fixture(scope="module")
def influxd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influxd]:
    engine = Influxd(tmp_path_factory.mktemp("influxd"))
    try:
        yield engine.set_up()
    finally:
        engine.kill()


class Stored:
    """A world in a bucket of its own, and a store that asks it."""

    def __init__(self, influxd: Influxd, folder: Path, world: Iterable[Span], beats: Iterable[Heartbeat] = ()) -> None:
        self.influxd, self.folder, self.bucket = influxd, folder, folder.name
        org = influxd.ask("GET", "/api/v2/orgs").json()["orgs"][0]["id"]
        influxd.ask("POST", "/api/v2/buckets", json={"orgID": org, "name": self.bucket}).raise_for_status()
        self.collector = Collector(folder / "collector", influxd, INFLUXDB_V2_BUCKET=self.bucket)
        self.collector.start()
        self.world = list(world)
        self.send([*self.world, *beats])
        self.local = DuckDB(folder / "local.duckdb")
        self.store = self.open()

    def send(self, records: Iterable[Span | Heartbeat]) -> None:
        sent = list(records)
        before = self.count()
        for batch in batches(sent):
            assert post(self.collector.endpoint, batch.body).status_code == 200
        until(lambda: self.count() == before + len(sent), f"{len(sent)} points are not there", self.collector.said)

    def count(self) -> int:
        return sum(self.influxd.count(kind, self.bucket) for kind in ("request", "view", "heartbeat"))

    def open(self, **changed: Any) -> InfluxDB:
        known = InfluxSettings(url=self.influxd.url, token=self.influxd.token, org=self.influxd.org, bucket=self.bucket)
        return InfluxDB(replace(known, **changed), self.local)

    def close(self) -> None:
        self.store.close()
        self.local.close()
        self.collector.kill()


@contextmanager
def stored(influxd: Influxd, folder: Path, world: Iterable[Span], beats: Iterable[Heartbeat] = ()) -> Iterator[Stored]:
    made = Stored(influxd, folder, world, beats)
    try:
        yield made
    finally:
        made.close()


WORLD: Final = kept(rich_world())
HISTORY: Final = history_of(WORLD)
BEATS: Final = [
    Heartbeat(
        bytes([n] * 16),
        bytes([n] * 8),
        WORLD[0].start_ns + n * SECOND,
        WORLD[0].start_ns + 600 * SECOND,
        service,
        None,
        n == 2,
        n,
        0,
        1,
        2,
    )
    for n, service in enumerate(("dashboard", "dashboard", "heating", "tailspan"), start=1)
]


@pytest.fixture(scope="module")
def rich(influxd: Influxd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    with stored(influxd, tmp_path_factory.mktemp("rich"), WORLD, BEATS) as made:
        yield made


def moved(query: Any) -> Any:
    """The same question of the moved world."""
    return replace(query, range=Range(query.range.start_ns + BETWEEN_MS, query.range.end_ns + BETWEEN_MS))


def expected(query: Any) -> Any:
    return answer(query, WORLD, HISTORY)


def same(walk: Iterable[Any], store: InfluxDB) -> None:
    asked = [moved(query) for query in walk]
    assert asked
    for query in asked:
        assert (query, store.run(query)) == (query, expected(query))


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_right_in_all_and_by_each_dimension_it_has(metric: str, rich: Stored) -> None:
    walk = [*asked(metric), *(query for name in DIMENSIONS for query in asked(metric, dimensions=(name,)))]
    same(walk, rich.store)


@pytest.mark.parametrize("metric", ["requests", "errors", "mean_ms", "max_ms", "last_seen", "people", "views"])
def test_sums_are_right_where_no_settings_look_at_clients(metric: str, rich: Stored) -> None:
    plain = replace(LABELS, checkers=())
    walk = [*asked(metric), *(query for name in DIMENSIONS for query in asked(metric, dimensions=(name,)))]
    same([replace(query, labels=plain) for query in walk], rich.store)


@pytest.mark.parametrize("how", ["filters", "without"])
@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_and_its_opposite_are_right_for_each_metric_they_fit(name: str, how: str, rich: Stored) -> None:
    walk: list[Any] = []
    for more in ({how: {name: (value,)}} for value in VALUES_OF[name]):
        fitting = [metric for metric in METRICS if asked(metric, **more)]
        walk += asked(*(metric for metric in fitting if metric not in SESSION_METRICS), **more)
        walk += asked(*(metric for metric in fitting if metric in SESSION_METRICS), **more)
    same(walk, rich.store)


def test_walking_through_requests_finds_each_once(rich: Stored) -> None:
    everything = expected(moved(Rows(**COMMON)))
    found: list[Span] = []
    while step := rich.store.run(moved(Rows(**COMMON, limit=7, after=Position(*place(found[-1])) if found else None))):
        found += step
    assert (found, len(found) > 70) == (everything, True)


def test_sessions_history_and_heartbeats_are_the_same(rich: Stored) -> None:
    same([Sessions(**COMMON), Sessions(**{**COMMON, "labels": LABELS}, limit=3)], rich.store)
    assert rich.store.history() == sorted(HISTORY, key=lambda device: (device.from_ns, device.address))
    assert rich.store.heartbeats(2**62) == BEATS


@settings(max_examples=150, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_question_is_answered_as_the_definitions_say(rich: Stored, data: st.DataObject) -> None:
    query = data.draw(questions(WORLD))
    assert (query, rich.store.run(query)) == (query, expected(query))


@pytest.mark.parametrize("seed", SEEDS)
def test_worlds_of_ties_and_changing_hands_are_the_same(seed: int, influxd: Influxd, tmp_path: Path) -> None:
    world = [span for span in kept(dense_world(seed)) if span.start_ns < nanoseconds(NOW)]
    with stored(influxd, tmp_path, world) as made:
        made.local.learn([TABLET])
        history = [*history_of(world), TABLET]

        @settings(max_examples=40, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
        @given(questions(world))
        def agree(query: Any) -> None:
            assert (query, made.store.run(query)) == (query, answer(query, world, history))

        agree()
