"""Two stores, one answer: what went through the collector into InfluxDB, held to the definitions in plain Python."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind
from starlette.testclient import TestClient

from tailspan import pieces
from tailspan.app import create_app
from tailspan.config import InfluxDB as InfluxSettings
from tailspan.config import Settings
from tailspan.encode import batches
from tailspan.errors import BucketError, ServerError, SettingError, SlowError, StoreError, TokenError
from tailspan.ingest import otlp
from tailspan.labels import Checker
from tailspan.query import DIMENSIONS, FILTERS, METRICS, Aggregate, Position, Range, Rows, Sessions, nanoseconds
from tailspan.span import Device, Heartbeat, Span
from tailspan.sql import SUMMED
from tailspan.store.duckdb import DuckDB
from tailspan.store.influxdb import InfluxDB
from tests.server.reference import MS, SECOND, SESSION_METRICS, answer, history_of, place
from tests.server.strategies import LEOS, RUNNER, TABLET, VALUES_OF, dense_world, questions, rich_world
from tests.server.tailnet import STATUS
from tests.server.test_reference import ANA, COMMON, DOCUMENT, LABELS, SETTINGS, UNKNOWN, asked, at
from tests.stack.engines import Collector, Influxd, free_port, small_disk, until

BETWEEN_MS: Final = 333_333  # a start that is no whole millisecond stays as it is
NOW: Final = datetime.now(UTC)
# HYPOTHESIS_PROFILE=thorough pytest tests/stack/test_stores.py
THOROUGH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SEEDS: Final = range(20 if THOROUGH else 2)
QUESTIONS: Final = 1000 if THOROUGH else 40
MOVES: Final = 30 if THOROUGH else 8  # of a window, within three and a half hours
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


def of_sdk(record: Span | Heartbeat) -> ReadableSpan:
    """As the SDK has it in a service."""
    [batch] = batches([record])
    [resource] = ExportTraceServiceRequest.FromString(batch.body).resource_spans
    one = resource.scope_spans[0].spans[0]
    return ReadableSpan(
        one.name,
        context_of(one.trace_id, one.span_id),
        context_of(one.trace_id, one.parent_span_id) if one.parent_span_id else None,
        Resource(attributes_of(resource.resource.attributes)),
        attributes_of(one.attributes),
        kind=SpanKind(one.kind - 1),
        start_time=one.start_time_unix_nano,
        end_time=one.end_time_unix_nano,
    )


def context_of(trace_id: bytes, span_id: bytes) -> SpanContext:
    return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=False)


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    values = {pair.key: (pair.value, pair.value.WhichOneof("value")) for pair in pairs}
    return {
        key: [item.string_value for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
        for key, (value, kind) in values.items()
    }


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
        self.opened: list[InfluxDB | DuckDB] = []
        self.store = self.open()
        self.local = self.opened[0]

    def send(self, records: Iterable[Span | Heartbeat]) -> None:
        sent = list(records)
        before = self.count()
        exporter = OTLPSpanExporter(f"{self.collector.endpoint}/v1/traces")
        assert exporter.export([of_sdk(record) for record in sent]) is SpanExportResult.SUCCESS
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the exporter has no types
        until(lambda: self.count() == before + len(sent), f"{len(sent)} points are not there", self.collector.said)

    def count(self) -> int:
        return sum(self.influxd.count(kind, self.bucket) for kind in ("request", "view", "heartbeat"))

    def open(self, **changed: Any) -> InfluxDB:
        """With a database of its own, as each server has one."""
        known = InfluxSettings(url=self.influxd.url, token=self.influxd.token, org=self.influxd.org, bucket=self.bucket)
        local = DuckDB(self.folder / f"local-{len(self.opened)}.duckdb")
        store = InfluxDB(replace(known, **changed), local)
        self.opened += [local, store]
        return store

    def again(self, between: Callable[[Path], None]) -> InfluxDB:
        """As a server that starts anew opens it. `between` is told the folder of pieces."""
        local, store = self.opened[-2:]
        pieces = self.folder / f"local-{len(self.opened) - 2}.duckdb.pieces"
        shutil.copytree(pieces, pieces.with_suffix(".killed"))
        store.close()
        local.close()
        del self.opened[-2:]
        between(pieces)
        return self.open()

    def close(self) -> None:
        for opened in reversed(self.opened):
            opened.close()
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
        WORLD[0].start_ns + (600 + n) * SECOND,
        service,
        None,
        n == 2,
        n,
        0,
        1,
        2,
        f"bypass={n},untrusted=1" if n > 1 else None,
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


def fitting(plain: bool = False, only: Iterable[str] = METRICS, **more: Any) -> list[Any]:
    """All metrics that go with it, in as few questions as it takes; `plain`: by settings that look at no client."""
    allowed = [metric for metric in only if asked(metric, **more)]
    walk = asked(*(metric for metric in allowed if metric not in SESSION_METRICS), **more)
    walk += asked(*(metric for metric in allowed if metric in SESSION_METRICS), **more)
    own = (Checker(tailnet_address="100.64.0.2", source="log"),)
    return [replace(query, labels=replace(LABELS, checkers=own)) for query in walk] if plain else list(walk)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_all_metrics_are_right_by_each_dimension(name: str, rich: Stored) -> None:
    same(fitting(dimensions=(name,)), rich.store)


def test_sums_are_right_by_each_dimension(rich: Stored) -> None:
    same([query for name in DIMENSIONS for query in fitting(True, SUMMED, dimensions=(name,))], rich.store)


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_right_alone(metric: str, rich: Stored) -> None:
    walk = [
        query
        for name in ("day", "hour", "endpoint", "traffic")
        for query in fitting(True, [metric], dimensions=(name,))
    ]
    same([*asked(metric), *fitting(True, [metric]), *walk], rich.store)


@pytest.mark.parametrize("how", ["filters", "without"])
@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_and_its_opposite_are_right_for_each_metric_they_fit(name: str, how: str, rich: Stored) -> None:
    wanted = VALUES_OF[name][:2] if how == "filters" else VALUES_OF[name][:1]
    same(
        [query for value in wanted for plain in (True, False) for query in fitting(plain, **{how: {name: (value,)}})],
        rich.store,
    )


def test_walking_through_requests_finds_each_once(rich: Stored) -> None:
    everything = expected(moved(Rows(**COMMON)))
    found: list[Span] = []
    while step := rich.store.run(moved(Rows(**COMMON, limit=7, after=Position(*place(found[-1])) if found else None))):
        found += step
    assert (found, len(found) > 70) == (everything, True)


def test_a_place_before_the_range_has_nothing_after_it(rich: Stored) -> None:
    window = Range(WORLD[40].start_ns, WORLD[-1].start_ns)
    assert rich.store.run(Rows(range=window, after=Position(WORLD[0].start_ns, b"t" * 16, b"s" * 8))) == []


def test_sessions_history_and_heartbeats_are_the_same(rich: Stored) -> None:
    same([Sessions(**COMMON), Sessions(**{**COMMON, "labels": LABELS}, limit=3)], rich.store)
    assert rich.store.history() == sorted(HISTORY, key=lambda device: (device.from_ns, device.address))
    assert rich.store.heartbeats(2**62) == BEATS


@pytest.mark.parametrize("days", [0.02, 0.6, 2.5])
def test_a_window_that_moves_on_finds_what_was_kept_of_the_one_before(days: float, rich: Stored) -> None:
    metrics = (("requests", "errors", "max_ms"), ("people", "views"), ("sessions",), ("p95_ms",))
    for number in range(MOVES):
        end_ns = WORLD[-1].start_ns - round((MOVES - number) / MOVES * 219 * 60 * SECOND)
        window = Range(end_ns - round(days * 86400 * SECOND), end_ns)
        for query in (
            Aggregate(range=window, metrics=metrics[number % 4], dimensions=("day",), zone="Asia/Kathmandu"),
            Aggregate(range=window, metrics=metrics[number % 4]),
            Rows(range=window, limit=1000),
        ):
            assert (query, rich.store.run(query)) == (query, expected(query))


@settings(max_examples=QUESTIONS, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_question_is_answered_as_the_definitions_say(rich: Stored, data: st.DataObject) -> None:
    query = data.draw(questions(WORLD))
    assert (query, rich.store.run(query)) == (query, expected(query))


@pytest.mark.parametrize("seed", SEEDS)
def test_worlds_of_ties_and_changing_hands_are_the_same(seed: int, influxd: Influxd, tmp_path: Path) -> None:
    world = [span for span in kept(dense_world(seed)) if span.start_ns < nanoseconds(NOW)]
    with stored(influxd, tmp_path, world) as made:
        assert isinstance(made.local, DuckDB)
        listed = [TABLET, *listed_in(world)]
        made.local.learn(listed)
        history = [*history_of(world), *listed]

        @settings(max_examples=25, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
        @given(questions(world))
        def agree(query: Any) -> None:
            assert (query, made.store.run(query)) == (query, answer(query, world, history))

        agree()


def listed_in(world: list[Span]) -> list[Device]:
    """Entries that begin at the instant of a span, and end between two; of addresses that spans tell of too."""
    times = sorted(span.start_ns for span in world)
    third, half, late = (times[len(times) * n // 12] for n in (4, 6, 9))
    return [
        RUNNER._replace(from_ns=third, to_ns=late + 1),
        RUNNER._replace(from_ns=late + SECOND, to_ns=None),
        LEOS._replace(from_ns=half, to_ns=None),
    ]


def test_requests_are_named_by_the_tailnets_list_alike_and_its_questions_answered_alike(
    influxd: Influxd, tmp_path: Path
) -> None:
    addresses = ("100.64.0.2", "100.64.0.4", "100.64.0.77", "100.64.0.2")
    world = kept([at(n * 60, **UNKNOWN, address=address) for n, address in enumerate(addresses)])
    world += kept([at(300, node_id="gone", node="old-laptop", identity_source="whois", address="100.64.0.88")])
    nows = [datetime.fromtimestamp(world[0].start_ns // SECOND - 86400, UTC)]
    with stored(influxd, tmp_path, world) as made:
        influxdb = InfluxSettings(url=influxd.url, token=influxd.token, org=influxd.org, bucket=made.bucket)
        told = []
        for name, chosen in (("embedded", None), ("beside", influxdb)):
            store = DuckDB(tmp_path / f"{name}.duckdb")
            store.write(world if chosen is None else ())
            settings = Settings(influxdb=chosen, ts_socket=tmp_path / "nowhere", status=str(STATUS))
            app = create_app(settings, store, lambda: nows[-1])
            with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
                until(store.learned, "the list was not kept")
                nows.append(datetime.fromtimestamp(world[-1].start_ns // SECOND + 60, UTC))
                told.append({path: client.get(f"/analytics/{path}").raise_for_status().json() for path in TAILNET})
                nows.pop()
            store.close()
    for path in TAILNET:
        embedded, influx = ({key: value for key, value in one[path].items() if key not in ITS_OWN} for one in told)
        assert (path, influx) == (path, embedded)
    logs = told[0]["access-logs"]["logs"][::-1]
    assert [(log["user"], log["device"], log["tags"], log["identity_source"]) for log in logs] == [
        ("alice@example.com", "alice-laptop", None, "device_list"),
        (None, "ci-runner", "tag:ci", "device_list"),
        (None, None, None, "none"),
        ("alice@example.com", "alice-laptop", None, "device_list"),
        (ANA, "old-laptop", None, "whois"),
    ]
    strangers = [(one["address"], one["device"]) for one in told[0]["tailnet/devices"]["unknown"]]
    assert strangers == [("100.64.0.88", "old-laptop"), ("100.64.0.77", None)]


def clients(made: Stored, now: datetime, settings: Path | None) -> Iterator[TestClient]:
    """A server that answers from InfluxDB, and one that has the same in a file."""
    influxdb = InfluxSettings(url=made.influxd.url, token=made.influxd.token, org=made.influxd.org, bucket=made.bucket)
    embedded = DuckDB(made.folder / "embedded.duckdb")
    embedded.write(made.world, [*BEATS])
    embedded.learn([])
    beside = DuckDB(made.folder / f"server-{now:%s}.duckdb")
    for store, chosen in ((embedded, None), (beside, influxdb)):
        app = create_app(Settings(influxdb=chosen, settings=settings), store, lambda: now)
        with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
            yield client
        store.close()


TAILNET: Final = (
    "access-logs",
    "active",
    "tailnet/devices",
    "tailnet/devices?using=true",
    "tailnet/devices/alice-laptop",
    "tailnet/devices/gone",
    "tailnet/who-is?address=100.64.0.2",
    "tailnet/who-is?address=100.64.0.88",
    "query?metrics=requests,people&dimensions=address,device&days=7",
    "query?metrics=requests&dimensions=day&address=100.64.0.2",
)
REPORTS: Final = (
    "access-logs?hours=24",
    "access-logs?hours=168&limit=5&traffic=page",
    "active",
    "dashboard-usage?days=1",
    "dashboard-usage?days=30",
    "system-health-history?days=1",
    "system-health-history?days=30",
    f"dashboard-usage?user={ANA}",
    "system-health-history?service=heating",
    "access-logs?device=n1",
    "query?metrics=requests,people,mean_ms&dimensions=day&days=30",
    "query?ask=sessions&days=30",
    "query?ask=rows&traffic=page&days=30",
)
ITS_OWN: Final = ("sources", "influxdb_status", "influxdb_query_times", "store_query_times")


def test_every_endpoint_answers_the_same(rich: Stored, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "dashboard.json").write_text(json.dumps(DOCUMENT))
    now = datetime.fromtimestamp(WORLD[-1].start_ns // SECOND - 60, UTC)
    answers = [
        {report: client.get(f"/analytics/{report}").raise_for_status().json() for report in REPORTS}
        for client in clients(rich, now, tmp_path / "settings.toml")
    ]
    told = [answer[report].get("influxdb_status") for answer in answers for report in ("system-health-history?days=1",)]
    assert told == ["not used", "healthy"]
    assert answers[1]["system-health-history?days=1"]["influxdb_query_times"]["max_ms"] > 0
    services = [answer["active"]["sources"][0]["services"] for answer in answers]
    assert services[0] == services[1]
    for report in REPORTS:
        embedded, influx = ({key: value for key, value in one[report].items() if key not in ITS_OWN} for one in answers)
        assert (report, influx) == (report, embedded)


def test_starts_of_whole_milliseconds_are_spread_over_it_and_durations_stay(influxd: Influxd, tmp_path: Path) -> None:
    world = kept([at(n, span_id=n.to_bytes(2, "big") * 4) for n in range(1, 40)], shift_ns=0)
    with stored(influxd, tmp_path, world) as made:
        found = made.store.run(Rows(range=Range(world[0].start_ns, world[-1].start_ns + 2 * MS)))
        moved = [(there.start_ns - here.start_ns) / MS for there, here in zip(found, world[::-1], strict=True)]
        assert 0 <= min(moved) < max(moved) <= 1.05
        assert [
            there._replace(start_ns=here.start_ns) for there, here in zip(found, world[::-1], strict=True)
        ] == world[::-1]


def test_a_late_request_of_a_day_that_is_over_is_seen_when_its_days_are_counted_again(
    influxd: Influxd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "FRESH_S", 0.1)
    days = Range(WORLD[0].start_ns - 10 * 86400 * SECOND, WORLD[0].start_ns)
    first = kept([at((days.start_ns - WORLD[0].start_ns) / SECOND + 86400 * n) for n in range(1, 9)])
    query = Aggregate(
        range=Range(first[0].start_ns - SECOND, first[-1].start_ns + SECOND), metrics=("requests", "accesses")
    )
    with stored(influxd, tmp_path, first) as made:
        assert made.store.run(query) == answer(query, first, [])
        asked = len(made.store.took_ms)
        assert made.store.run(query) == answer(query, first, [])
        again = len(made.store.took_ms) - asked
        late = first[4]._replace(trace_id=b"l" * 16, span_id=b"l" * 8, start_ns=first[4].start_ns + SECOND)
        made.send([late])
        right = answer(query, [*first, late], [])
        until(lambda: made.store.run(query) == right, "the late request is not counted")
        assert again < asked


def as_killed(pieces: Path) -> None:
    shutil.rmtree(pieces)
    pieces.with_suffix(".killed").rename(pieces)
    (pieces / "tmp1234").mkdir()


def as_ended(pieces: Path) -> None:
    """Nothing is changed."""


def damaged(pieces: Path) -> None:
    (pieces / "pieces.duckdb").write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(("between", "fewer"), [(as_killed, True), (as_ended, True), (damaged, False)])
def test_what_was_fetched_outlives_the_server_while_it_is_right(
    influxd: Influxd, tmp_path: Path, between: Callable[[Path], None], fewer: bool
) -> None:
    days = Range(WORLD[0].start_ns - 10 * 86400 * SECOND, WORLD[0].start_ns)
    first = kept([at((days.start_ns - WORLD[0].start_ns) / SECOND + 86400 * n) for n in range(1, 9)])
    query = Aggregate(
        range=Range(first[0].start_ns - SECOND, first[-1].start_ns + SECOND), metrics=("requests", "accesses")
    )
    with stored(influxd, tmp_path, first) as made:
        store = made.open()
        assert store.run(query) == answer(query, first, [])
        asked = len(store.took_ms)
        store = made.again(between)
        assert store.run(query) == answer(query, first, [])
        assert (len(store.took_ms) < asked) == fewer
        late = first[4]._replace(trace_id=b"l" * 16, span_id=b"l" * 8, start_ns=first[4].start_ns + SECOND)
        made.send([late])
        shutil.rmtree(made.folder / "local-2.duckdb.killed", ignore_errors=True)
        assert made.again(as_ended).run(query) == answer(query, [*first, late], [])


HOSTILE: Final = ('eve"@example.com', "eve' OR true--", "eve AND kind", "Zoë@example.com")


def test_a_person_is_exported_and_forgotten_whatever_their_name_and_nobody_else_is(
    influxd: Influxd, tmp_path: Path
) -> None:
    whois: dict[str, Any] = {"node_id": "n7", "node": "phone", "identity_source": "whois", "address": "100.64.0.9"}
    theirs = [at(n, login=login) for n, login in enumerate(HOSTILE)]
    named = [at(10, **whois | {"login": HOSTILE[0]}), at(11, **UNKNOWN, address="100.64.0.9")]
    world = kept([*theirs, *named, at(20), at(21, **UNKNOWN, address="100.64.0.66")])
    history = history_of(world)
    with stored(influxd, tmp_path, world) as made:
        assert made.store.history() == history
        for number, login in enumerate(HOSTILE):
            mine = [*world[number : number + 1], *(world[4:6] if login == HOSTILE[0] else ())]
            exported = list(made.store.export(login))
            assert [span.trace_id for span in exported] == [span.trace_id for span in mine]
            assert {span.login for span in exported} == {login}
            assert made.store.forget(login) == len(mine)
            assert (list(made.store.export(login)), made.store.forget(login)) == ([], 0)
        left = made.store.run(Rows(range=Range(0, world[-1].start_ns + 1)))
        assert [span.trace_id for span in left] == [world[7].trace_id, world[6].trace_id]


def test_lines_that_claim_a_person_are_exported_and_forgotten_with_them_and_nobody_elses_are(
    influxd: Influxd, tmp_path: Path
) -> None:
    """ana had the address of the first three, and two lines there name others: whose they are, trust decides."""
    line: dict[str, Any] = {**UNKNOWN, "source": "log", "address": "100.64.0.9", "client_address": "100.64.0.9"}
    header, basic = ({**line, "identity_source": by} for by in ("serve_header", "nginx_auth"))
    world = kept(
        [
            at(0, node_id="n7", node="phone", identity_source="whois", address="100.64.0.9"),
            at(1, **line),
            at(2, **header, claim="leo@example.com"),
            at(3, **basic, claim='eve"@example.com'),
            at(4, **{**header, "address": None}, claim="leo@example.com"),
            at(5, **{**header, "address": None}, claim=ANA),
            at(6, **{**header, "address": None, "caller": "local"}, claim="leo@example.com"),
        ]
    )
    history = history_of(world)
    cases: list[tuple[dict[str, str], dict[str, list[int]]]] = [
        ({}, {ANA: [0, 1, 2, 3, 5], "leo@example.com": [2, 4, 6]}),
        ({"dashboard": "serve_header"}, {ANA: [0, 1, 3, 5]}),
    ]
    for number, (trusted, theirs) in enumerate(cases):
        for login, expected_of in theirs.items():
            folder = tmp_path / f"{number}-{login}"
            folder.mkdir()
            with stored(influxd, folder, world) as made:
                assert made.store.history() == history
                exported = list(made.store.export(login, trusted))
                assert [world.index(span) for span in with_ids(world, exported)] == expected_of
                assert made.store.forget(login, trusted) == len(expected_of)
                left = with_ids(world, made.store.run(Rows(range=Range(0, world[-1].start_ns + 1))))
                assert sorted(map(world.index, left)) == [n for n in range(len(world)) if n not in expected_of]


def test_two_readers_of_a_line_who_take_it_for_a_poll_and_for_none_write_one_request(
    influxd: Influxd, tmp_path: Path
) -> None:
    """Its rhythm depends on what was read before, and what waits in the collector is not known yet."""
    line, after = kept([at(n, **UNKNOWN, source="log", traffic="api", address="100.64.0.9") for n in (1, 2)])
    with stored(influxd, tmp_path, [line]) as made:
        exporter = OTLPSpanExporter(f"{made.collector.endpoint}/v1/traces")
        exporter.export([of_sdk(line._replace(polled=True)), of_sdk(after)])
        exporter.shutdown()  # type: ignore[no-untyped-call]  # as above
        until(lambda: made.count() > 1, "the next one is not there", made.collector.said)
        found = made.store.run(Rows(range=Range(0, after.start_ns + 1)))
        assert [(span.trace_id, span.traffic) for span in found] == [(after.trace_id, "api"), (line.trace_id, "poll")]


def with_ids(world: Iterable[Span], found: Iterable[Span]) -> list[Span]:
    """Those of the world that were found, in that order."""
    known = {span.trace_id: span for span in world}
    return [known[span.trace_id] for span in found]


def test_what_is_wrong_with_influxdb_is_the_stores_state_and_no_answer_is_empty(rich: Stored) -> None:
    question = Aggregate(range=Range(WORLD[0].start_ns, WORLD[-1].start_ns), metrics=("requests",))
    troubles: list[tuple[dict[str, Any], type[StoreError], str, str]] = [
        ({"bucket": "nowhere"}, BucketError, "bucket missing", "tailspan setup influxdb"),
        ({"token": "no-such-token-at-all"}, TokenError, "wrong token", "tailspan setup influxdb"),
        ({"url": f"http://127.0.0.1:{free_port()}"}, ServerError, "unreachable", "INFLUXDB_V2_URL"),
        ({"timeout_ms": 1}, SlowError, "slow", "INFLUXDB_V2_TIMEOUT"),
    ]
    for changed, error, state, fix in troubles:
        store = rich.open(**changed)
        try:
            with pytest.raises(error, match=fix):
                store.run(question)
            assert (store.state(0).state, fix in store.state(0).message) == (state, True)
        finally:
            store.close()


def test_a_full_disk_is_told_as_that(rich: Stored, tmp_path: Path) -> None:
    known = InfluxSettings(rich.influxd.url, rich.influxd.token, rich.influxd.org, rich.bucket)
    with small_disk(tmp_path / "disk", "16m") as place:
        local = DuckDB(place / "local.duckdb")
        store = InfluxDB(known, local)
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        try:
            with pytest.raises(StoreError, match="full disk"):
                store.run(Aggregate(range=Range(WORLD[0].start_ns, WORLD[-1].start_ns), metrics=("sessions",)))
        finally:
            (place / "filler").unlink()
            store.close()
            local.close()


def test_a_server_that_answers_from_influxdb_takes_no_spans_itself(rich: Stored) -> None:
    *_, client = clients(rich, NOW, None)
    refused = client.post("/v1/traces", content=b"", headers={"Content-Type": otlp.PROTOBUF})
    assert (refused.status_code, b"collector" in refused.content) == (400, True)


def test_more_addresses_than_flux_can_name_at_once_changed_hands(influxd: Influxd, tmp_path: Path) -> None:
    runner: dict[str, Any] = {"login": None, "caller": "tagged", "identity_source": "whois", "tags": "tag:ci"}
    world = kept([at(n, **runner, node_id=f"n{n}", node=f"runner-{n}", address=f"100.64.1.{n}") for n in range(1, 181)])
    with stored(influxd, tmp_path, world) as made:
        assert sorted(made.store.history()) == sorted(history_of(world))


def test_a_checker_told_by_user_agent_alone_is_nobodys_first_activity(influxd: Influxd, tmp_path: Path) -> None:
    world = kept([at(0, user_agent="Uptime-Kuma/1.23"), at(3600), at(3601, route=None, path="/other")])
    labels = replace(LABELS, checkers=(Checker(user_agent="Kuma"),))
    everything = Range(world[0].start_ns, world[-1].start_ns + 1)
    with stored(influxd, tmp_path, world) as made:
        for metric, dimensions in (("first_seen", ("person",)), ("p95_ms", ("endpoint",)), ("accesses", ("day",))):
            query = Aggregate(range=everything, metrics=(metric,), dimensions=dimensions, labels=labels)
            assert (query, made.store.run(query)) == (query, answer(query, world, []))


def test_an_empty_filter_finds_nothing_and_is_no_trouble(rich: Stored) -> None:
    for filters in ({"service": ()}, {"user": ()}, {"traffic": ()}):
        query = Aggregate(range=Range(WORLD[0].start_ns, WORLD[-1].start_ns), metrics=("requests",), filters=filters)
        assert rich.store.run(query) == expected(query)


def test_the_export_of_a_person_from_a_server_that_is_away_is_no_empty_answer(rich: Stored, tmp_path: Path) -> None:
    away = InfluxSettings(url=f"http://127.0.0.1:{free_port()}", token=rich.influxd.token)
    local = DuckDB(tmp_path / "local.duckdb")
    app = create_app(Settings(influxdb=away), local)
    with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        answered = client.get(f"/analytics/people/{ANA}")
        assert (answered.status_code, answered.json()["error"]["code"]) == (503, "store_unreachable")
        assert client.get("/healthz").json()["sources"][0]["state"] == "unreachable"
    local.close()


def test_a_token_that_cannot_be_one_is_refused_and_not_shown() -> None:
    for token in ("secret\nsecret", "geheim-ü", "two words"):
        with pytest.raises(SettingError) as refused:
            Settings.read({"INFLUXDB_V2_URL": "http://127.0.0.1:8086", "INFLUXDB_V2_TOKEN": token})
        assert token not in str(refused.value)
    with pytest.raises(SettingError) as refused:
        Settings.read({"INFLUXDB_V2_URL": "http://me:secret@127.0.0.1:8086", "INFLUXDB_V2_TOKEN": "token"})
    assert "secret" not in str(refused.value)
