"""Lines of a log into InfluxDB: through the real collector, once, whatever comes first."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tailspan.app import create_app
from tailspan.bucket import Bucket
from tailspan.config import InfluxDB as InfluxDBSettings
from tailspan.config import Settings
from tailspan.flux import Stream
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.ledger import Fates
from tailspan.query import Range, nanoseconds
from tailspan.receiver import Answer, Receiver
from tailspan.store.duckdb import DuckDB
from tailspan.store.influxdb import InfluxDB
from tests.server.ledgers import Happened, Reference, Told, dense_world
from tests.server.logs import combined, counts, identified, read, written
from tests.server.spans import NOW_NS, SECOND
from tests.server.test_ledger import lines_of
from tests.stack.engines import Collector, Influxd, until
from tests.stack.pipeline import OURS, rows, send, span

NOW = datetime.now(UTC).replace(microsecond=0)
LATE_S = 120.0
SHOP = OURS | {"http.route": "/prices", "url.path": "/prices", "tailscale.address": "100.64.0.7"}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Influxd, Collector]]:
    folder = tmp_path_factory.mktemp("engines")
    with ExitStack() as running:
        influxd = Influxd(folder / "influxd")
        running.callback(influxd.kill)
        influxd.set_up()
        collector = Collector(folder / "collector", influxd)
        running.callback(collector.kill)
        collector.start()
        yield influxd, collector


@pytest.fixture
def influxd(engines: tuple[Influxd, Collector]) -> Influxd:
    """With a new bucket."""
    with without_bucket(engines[0]):
        pass
    return engines[0]


@pytest.fixture
def collector(engines: tuple[Influxd, Collector]) -> Collector:
    return engines[1]


@contextmanager
def without_bucket(influxd: Influxd) -> Iterator[None]:
    [bucket] = influxd.ask("GET", "/api/v2/buckets", params={"name": influxd.bucket}).json()["buckets"]
    assert influxd.ask("DELETE", f"/api/v2/buckets/{bucket['id']}").status_code == 204
    yield
    again = {"orgID": bucket["orgID"], "name": influxd.bucket}
    assert influxd.ask("POST", "/api/v2/buckets", json=again).status_code == 201


@pytest.fixture
def client(tmp_path: Path, influxd: Influxd, collector: Collector) -> Iterator[TestClient]:
    there = InfluxDBSettings(influxd.url, influxd.token)
    settings = Settings(db=tmp_path / "t.duckdb", influxdb=there, collector=collector.endpoint)
    store = DuckDB(settings.db)
    with TestClient(create_app(settings, store), "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        yield client
    store.close()


@pytest.fixture
def influxdb(tmp_path: Path, influxd: Influxd, collector: Collector) -> Iterator[InfluxDB]:
    """A store beside the server's own."""
    local = DuckDB(tmp_path / "beside.duckdb")
    store = InfluxDB(InfluxDBSettings(influxd.url, influxd.token), local, Receiver(collector.endpoint))
    yield store
    store.close()
    local.close()


def request_id(number: int) -> bytes:
    """As random as nginx's: the first digits tell points of one millisecond apart."""
    return hashlib.sha256(bytes([number])).digest()[:16]


def line(number: int) -> str:
    return identified(0, at=NOW, request_id=request_id(number).hex())


def live(collector: Collector, *numbers: int, at: datetime = NOW) -> None:
    """The service's own spans of these requests, ended at that time."""
    start_ns = int(at.timestamp()) * 10**9 - 5_000_000
    ids = ((n, request_id(n)) for n in numbers)
    spans = [span(n, SHOP, start_ns=start_ns, trace_id=trace, parent_span_id=trace[:8]) for n, trace in ids]
    send(collector.endpoint, spans)


def there(influxd: Influxd, count: int) -> None:
    until(lambda: influxd.count() == count, f"not {count} points", lambda: f"{influxd.count()} points")


def test_each_request_is_one_point_whoever_told_of_it_first(
    client: TestClient, influxdb: InfluxDB, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    live(collector, 0, 1)
    there(influxd, 2)
    path = written(tmp_path / "a.log", *(line(number) for number in range(6)))
    assert counts(read(client, path, now=NOW)) == {"lines": 6, "added": 4, "twins": 2}
    there(influxd, 6)
    assert counts(read(client, path, now=NOW)) == {"lines": 6, "known": 4, "twins": 2}
    live(collector, 2, 3)  # hours late, as far as anybody here knows
    there(influxd, 8)
    now_ns = int(NOW.timestamp()) * 10**9
    assert (influxdb.reconcile(now_ns), influxd.count()) == (2, 6)
    assert (influxdb.reconcile(now_ns), influxd.count()) == (0, 6)
    assert counts(read(client, path, now=NOW)) == {"lines": 6, "known": 2, "twins": 4}
    rows = client.get("/analytics/query?metrics=requests&dimensions=source&days=1").json()["rows"]
    assert rows == [{"source": "live", "requests": 4}, {"source": "log", "requests": 2}]


def test_coverage_is_as_the_embedded_store_has_it(
    client: TestClient, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    """Only the service names an environment."""
    began = NOW.replace(minute=0, second=0) - timedelta(hours=1)
    ends = [began + timedelta(seconds=10 + 2 * number) for number in range(20)]
    lines = [identified(0, at=at, request_id=request_id(n).hex(), took="0.005") for n, at in enumerate(ends)]
    told = [
        span(n, SHOP, start_ns=nanoseconds(ends[n]) - 5 * 10**6, trace_id=trace, parent_span_id=trace[:8])
        for n in (0, 1, 2, 18, 19)
        for trace in (request_id(n),)
    ]
    send(collector.endpoint, told, deployment_environment_name="production")
    there(influxd, 5)
    assert counts(read(client, written(tmp_path / "a.log", *lines), now=NOW)) == {"lines": 20, "added": 15, "twins": 5}
    there(influxd, 20)
    [service] = client.get("/analytics/coverage?hours=3").json()["services"]
    [gap] = service.pop("gaps")
    assert service == {
        "service": "dashboard",
        "environment": None,
        "requests": 20,
        "live": 5,
        "by_proxy": 0,
        "share": 0.25,
        "doubled": 0,
        "doubled_by": [],
    }
    assert (gap["requests"], gap["start"][:19], gap["end"][:19]) == (
        15,
        f"{ends[2] - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}",
        f"{ends[18] - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}",
    )


def test_the_servers_own_requests_behind_the_proxy_of_a_site_without_instrumentation_are_told_as_what_they_are(
    client: TestClient, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    """nginx passes the ids of requests on; the second log lacks them."""
    ends = [NOW - timedelta(seconds=100 + 10 * number) for number in range(8)]
    own = [
        span(n, SHOP, start_ns=nanoseconds(ends[n]) - 5 * 10**6, trace_id=trace, parent_span_id=trace[:8])
        for n in range(4)
        for trace in (request_id(n),)
    ]
    send(collector.endpoint, own, service_name="tailspan")
    there(influxd, 4)
    lines = [identified(0, at=at, request_id=request_id(n).hex(), took="0.005") for n, at in enumerate(ends)]
    assert counts(read(client, written(tmp_path / "a.log", *lines), now=NOW)) == {"lines": 8, "added": 4, "twins": 4}
    there(influxd, 8)
    bare = [combined(at=f"{at:%d/%b/%Y:%H:%M:%S} +0000") for at in ends[:4]]
    of_shop = read(client, written(tmp_path / "b.log", *bare), now=NOW, origin={"service": "shop"})
    assert counts(of_shop) == {"lines": 4, "added": 4}
    there(influxd, 12)
    known: dict[str, Any] = {"environment": None, "requests": 4, "live": 0, "by_proxy": 0, "share": 0.0, "gaps": []}
    assert client.get("/analytics/coverage?hours=3").json()["services"] == [
        {"service": "dashboard", **known, "doubled": 0, "doubled_by": []},
        {"service": "shop", **known, "doubled": 4, "doubled_by": ["tailspan"]},
    ]


def test_a_log_that_was_read_under_a_wrong_name_is_taken_out_and_read_under_the_right_one(
    client: TestClient, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    when = NOW - timedelta(hours=1)
    live(collector, 0, at=when)
    there(influxd, 1)

    def lines(agent: str) -> list[str]:
        at = f"{when:%d/%b/%Y:%H:%M:%S} +0000"
        return [combined(f"GET /{one} HTTP/1.1", at=at, agent=agent) for one in ("prices", "a", "b")]

    path = written(tmp_path / "a.log", *lines("-"))
    with_ids = written(tmp_path / "b.log", *(line(number) for number in range(1, 4)))
    wrong = {"service": 'ng"inx'}
    assert counts(read(client, path, with_ids, now=NOW, origin=wrong)) == {"lines": 6, "added": 6}
    there(influxd, 7)
    take_out = "tailspan remove-log 'ng\"inx'"
    hints = (
        "In that time a log was read as ng\"inx's, too: 3 requests. If it is this one, these would be there twice, "
        f"until the wrong ones are taken out: {take_out} or tailspan remove-log dashboard",
        "These were read as ng\"inx's, and are there under that name. "
        f"Where dashboard is right, take those out, and read it again: {take_out}",
    )

    def hinted() -> tuple[str | None, ...]:
        return read(client, path, now=NOW, dry_run=True)["hint"], read(client, with_ids, now=NOW)["hint"]

    right = {("dashboard", "log"): 5, ("dashboard", "live"): 1}

    def told() -> dict[tuple[str, str], int]:
        rows = client.get("/analytics/query?metrics=requests&dimensions=service,source&days=1").json()["rows"]
        return {(row["service"], row["source"]): row["requests"] for row in rows}

    # what was asked of InfluxDB while they came is asked again a minute later
    until(lambda: hinted() == hints, "it does not say so", lambda: str(hinted()), LATE_S)
    assert client.delete("/analytics/logs/ng%22inx").json() == {"service": 'ng"inx', "requests": 6}
    assert influxd.count() == 1
    for agent in ("-", "another"):  # another line, and so another's twin before
        path = written(tmp_path / "a.log", *lines(agent))
        assert counts(read(client, path, with_ids, now=NOW)) == {"lines": 6, "added": 5, "twins": 1}
        there(influxd, 6)
        until(lambda: told() == right, "it is another's", lambda: str(told()), LATE_S)
        assert client.delete("/analytics/logs/dashboard").json()["requests"] == 5
        assert client.get("/analytics/coverage?hours=3").json()["services"] == []
        assert influxd.count() == 1


def test_without_ids_too(
    client: TestClient, influxdb: InfluxDB, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    when = NOW - timedelta(hours=1)
    live(collector, 0, at=when)
    there(influxd, 1)
    path = written(tmp_path / "a.log", *[combined(at=f"{when:%d/%b/%Y:%H:%M:%S} +0000")] * 3)
    assert counts(read(client, path, now=NOW)) == {"lines": 3, "added": 2, "twins": 1}
    there(influxd, 3)
    assert counts(read(client, path, now=NOW)) == {"lines": 3, "known": 2, "twins": 1}
    live(collector, 1, at=when)
    there(influxd, 4)
    now_ns = int(NOW.timestamp()) * 10**9
    client.app.state.store.reconcile(now_ns)  # type: ignore[attr-defined]
    assert influxd.count() == 3
    assert counts(read(client, path, now=NOW)) == {"lines": 3, "known": 1, "twins": 2}


def test_a_line_without_an_offset_is_known_in_whatever_zone_it_was_read_before(
    client: TestClient, influxd: Influxd, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.log", *[combined(at=f"{NOW - timedelta(days=1):%d/%b/%Y:%H:%M:%S}")] * 3)
    assert counts(read(client, path, now=NOW, origin={"zone": "Pacific/Kiritimati"})) == {"lines": 3, "added": 3}
    there(influxd, 3)
    assert counts(read(client, path, now=NOW, origin={"zone": "Etc/GMT+12"})) == {"lines": 3, "known": 3}


def test_what_is_too_old_makes_nobody_look_at_all_time(
    influxdb: InfluxDB, influxd: Influxd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Range] = []
    ask = Bucket.ask

    def noted(self: Bucket, stream: Stream, ranges: Sequence[Range]) -> Any:
        asked.extend(ranges)
        return ask(self, stream, ranges)

    monkeypatch.setattr(Bucket, "ask", noted)
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen("combined")[0])
    old, new = (combined(at=f"{at} +0000").encode() for at in ("01/Jan/1970:01:00:00", f"{NOW:%d/%b/%Y:%H:%M:%S}"))
    now_ns = int(NOW.timestamp()) * 10**9
    month_ns = 30 * 24 * 3600 * SECOND
    both, one = (log.read(lines, now_ns) for lines in (old + new, old * 2))
    assert influxdb.add_lines(both, now_ns - month_ns) == Fates(2, added=1, too_old=1)
    there(influxd, 1)
    assert influxdb.add_lines(one, now_ns - month_ns) == Fates(2, too_old=2)
    assert min(range.start_ns for range in asked) > now_ns - month_ns


def told_by_service(collector: Collector, happened: tuple[Happened, ...]) -> None:
    spans = []
    for one in happened:
        known: dict[str, Any] = {"http.route": one.path, "url.path": one.path, "tailscale.address": one.address}
        known |= {"tailspan.timed": False} if one.is_stream else {}
        start_ns, is_child = one.end_ns + one.late_ns - one.took_ns, one.has_id and one.at_proxy
        made = span(one.number, OURS | known, start_ns=start_ns, end_time_unix_nano=start_ns + one.took_ns)
        made.trace_id = one.trace_id if is_child else one.trace_id[::-1]
        made.span_id, made.parent_span_id = one.trace_id[8:], one.trace_id[:8] if is_child else b""
        spans.append(made)
    if spans:
        send(collector.endpoint, spans)


def counted(influxd: Influxd) -> "Counter[tuple[str, str | None, str | None, int]]":
    """As Reference has it."""
    return Counter(
        (
            row.tags["tailspan.source"],
            row.tags["tailscale.address"],
            row.attributes["url.path"],
            (row.start_ns + int(row.fields["duration_nano"])) // SECOND,
        )
        for row in rows(influxd).values()
    )


def test_in_worlds_at_random_it_is_as_its_rule_says(influxdb: InfluxDB, influxd: Influxd, collector: Collector) -> None:
    """The worlds lie hours apart, and do not meet."""
    before: Counter[tuple[str, str | None, str | None, int]] = Counter()
    for world in map(dense_world, range(0, 8, 2)):
        reference = Reference()
        for told in world.told:
            lines = len(reference.lines)
            reference.tell(told)
            if told.by == "service":
                told_by_service(collector, told.of)
                there(influxd, before.total() + lines + len(reference.lives))
                influxdb.reconcile(NOW_NS)
            else:
                influxdb.add_lines(lines_of(told), 0)
            there(influxd, (before + reference.counts).total())
            assert counted(influxd) == before + reference.counts, told
        before += reference.counts


def test_live_requests_as_many_as_the_lines_that_went_before_are_not_overlooked(
    client: TestClient, influxdb: InfluxDB, influxd: Influxd, collector: Collector, tmp_path: Path
) -> None:
    """InfluxDB has as many points of that hour then as when it was looked at last."""
    now_ns = int(NOW.timestamp()) * 10**9
    read(client, written(tmp_path / "a.log", *(line(number) for number in range(3))), now=NOW)
    there(influxd, 3)
    for number in range(3):
        live(collector, number)
        there(influxd, 4)
        assert (influxdb.reconcile(now_ns), influxd.count()) == (1, 3)


@pytest.mark.parametrize("apart_s", [1, 0])
def test_a_line_that_arrives_between_those_that_go_stays(
    client: TestClient,
    influxd: Influxd,
    collector: Collector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    apart_s: int,
) -> None:
    """It was in the collector while those were looked for."""
    told = [NOW + timedelta(seconds=apart_s * (number * 7 % 15)) for number in range(15)]
    lines = [identified(0, at=at, request_id=request_id(number).hex(), took="0.005") for number, at in enumerate(told)]
    read(client, written(tmp_path / "a.log", *lines[:10]), now=NOW + timedelta(hours=1))
    there(influxd, 10)
    for number in range(10):
        live(collector, number, at=told[number])
    there(influxd, 20)
    waiting: list[bytes] = []
    send, delete = Receiver.send, Bucket.delete

    def wait(_: Receiver, body: bytes) -> Answer:
        waiting.append(body)
        return Answer(0, "")

    def arrive_and_delete(bucket: Bucket, *what: Any) -> None:
        while waiting:
            send(Receiver(collector.endpoint), waiting.pop())
            there(influxd, 25)
        delete(bucket, *what)

    with monkeypatch.context() as changed:
        changed.setattr(Receiver, "send", wait)
        read(client, written(tmp_path / "b.log", *lines[10:]), now=NOW + timedelta(hours=1), origin={"service": "shop"})
    monkeypatch.setattr(Bucket, "delete", arrive_and_delete)
    store: InfluxDB = client.app.state.store  # type: ignore[attr-defined]
    assert (store.reconcile(int(max(told).timestamp()) * 10**9), waiting, influxd.count()) == (10, [], 15)


@pytest.mark.parametrize("live_first", [True, False], ids=["live first", "line first"])
@pytest.mark.parametrize("timed", [True, False], ids=["download", "stream"])
@pytest.mark.parametrize("has_id", [True, False], ids=["with id", "without"])
def test_what_took_hours_is_one_point_though_its_line_is_of_its_end(
    influxdb: InfluxDB, influxd: Influxd, collector: Collector, has_id: bool, timed: bool, live_first: bool
) -> None:
    happened = Happened(
        number=1,
        end_ns=NOW_NS - 5 * 10**6,
        address="100.64.0.7",
        path="/events",
        took_ns=3 * 3600 * SECOND,
        is_stream=not timed,
        late_ns=0,
        at_proxy=True,
        at_service=True,
        log="with ids" if has_id else "without ids",
    )
    log = Told(happened.log, (happened._replace(is_stream=True),))  # nobody knows how long
    if live_first:
        told_by_service(collector, (happened,))
        there(influxd, 1)
        assert influxdb.add_lines(lines_of(log), 0).twins == 1
    else:
        assert influxdb.add_lines(lines_of(log), 0).added == 1
        there(influxd, 1)
        assert influxdb.reconcile(NOW_NS) == 0
        told_by_service(collector, (happened,))
        there(influxd, 2)
        assert influxdb.reconcile(NOW_NS) == 1
    assert [row.tags["tailspan.source"] for row in rows(influxd).values()] == ["live"]


def refused(collector: Collector) -> None:
    """Until a span that is sent now is lost: the collector keeps nothing that can never be written."""
    before = collector.log.read_text().count("Permanent error")
    live(collector, 0)
    until(lambda: collector.log.read_text().count("Permanent error") > before, "it is not refused", collector.said)


def to_no_bucket(influxd: Influxd, collector: Collector, _: Path) -> None:
    with without_bucket(influxd):
        refused(collector)


def with_a_wrong_token(influxd: Influxd, _: Collector, folder: Path) -> None:
    mistaken = Collector(folder / "mistaken", influxd, "a-wrong-token")
    try:
        mistaken.start()
        refused(mistaken)
    finally:
        mistaken.kill()


@pytest.mark.parametrize(
    ("trouble", "kept"), [(to_no_bucket, {}), (with_a_wrong_token, {"known": 2})], ids=["bucket", "token"]
)
def test_what_influxdb_refused_for_good_a_log_brings_back(
    client: TestClient,
    influxd: Influxd,
    collector: Collector,
    tmp_path: Path,
    trouble: Callable[[Influxd, Collector, Path], None],
    kept: dict[str, int],
) -> None:
    """Its service's own span does not come back: the line stands for it."""
    path = written(tmp_path / "a.log", *(line(number) for number in range(3)))
    read(client, written(tmp_path / "before.log", line(1), line(2)), now=NOW)
    there(influxd, 2)
    trouble(influxd, collector, tmp_path)
    assert counts(read(client, path, now=NOW)) == {"lines": 3, "added": 3 - kept.get("known", 0), **kept}
    there(influxd, 3)
    rows = client.get("/analytics/query?metrics=requests&dimensions=source&days=1").json()["rows"]
    assert rows == [{"source": "log", "requests": 3}]


def test_what_the_collector_loses_of_a_log_is_a_problem_of_who_reads_it(tmp_path: Path, influxd: Influxd) -> None:
    mistaken = Collector(tmp_path / "mistaken", influxd, "a-wrong-token")
    there = InfluxDBSettings(influxd.url, influxd.token)
    settings = Settings(
        db=tmp_path / "t.duckdb",
        influxdb=there,
        collector=mistaken.endpoint,
        collector_metrics=mistaken.metrics_url,
    )
    store = DuckDB(settings.db)
    try:
        mistaken.start()
        with TestClient(create_app(settings, store), "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
            [problem] = read(client, written(tmp_path / "a.log", line(1), line(2)), now=NOW)["problems"]
    finally:
        mistaken.kill()
        store.close()
    assert problem.startswith(
        "They were sent, and InfluxDB does not have them all: Spans refused by InfluxDB for good: 2"
    )
    assert problem.endswith("Run this again once that is mended: nothing is added twice.")


def test_without_a_collector_it_says_what_to_set(tmp_path: Path, influxd: Influxd) -> None:
    there = InfluxDBSettings(influxd.url, influxd.token)
    store = DuckDB(tmp_path / "t.duckdb")
    settings = Settings(db=tmp_path / "t.duckdb", influxdb=there)
    with TestClient(create_app(settings, store), "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        body = b'{"abouts":{}}\n'
        assert client.post("/analytics/log-lines", content=body).status_code == 503
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" in client.post("/analytics/log-lines", content=body).text
    store.close()
