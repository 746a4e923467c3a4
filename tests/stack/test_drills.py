"""What breaks, under load: nothing that was acknowledged is lost, and nothing is there twice."""

import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

import httpx
import pytest

from tests.stack.engines import Collector, Engine, Influxd, free_port, small_disk, until
from tests.stack.pipeline import AGAIN, START_NS, body, id_of, ids, post, rows, send, span

BATCH: Final = 100
SMALL_QUEUE: Final = "exporters: {influxdb: {sending_queue: {queue_size: 2000}}}"


class Sender:
    """A service under load: batch after batch, each sent until it is acknowledged, as OTLP/HTTP has it."""

    def __init__(self, collector: Collector) -> None:
        self.sent: list[str] = []
        self.acknowledged: list[str] = []
        self.again: Counter[int | str] = Counter()  # why a batch was sent again: status, or kind of error
        self.refused: list[int] = []
        self._collector = collector
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "the last batch is still not acknowledged"

    def _run(self) -> None:
        for first in itertools.count(1, BATCH):
            spans = [span(number) for number in range(first, first + BATCH)]
            self.sent += map(id_of, spans)
            self._deliver(body(spans))
            self.acknowledged += map(id_of, spans)
            if self._stopping.wait(0.02):
                break

    def _deliver(self, content: bytes) -> None:
        while (status := self._post(content)) != 200:
            self.again[status] += 1
            if isinstance(status, int) and status not in AGAIN:
                self.refused.append(status)
                return
            time.sleep(0.1)  # not to wait for something: the pause that a client makes

    def _post(self, content: bytes) -> int | str:
        try:
            return post(self._collector.endpoint, content).status_code
        except httpx.TransportError as problem:
            return type(problem).__name__

    def has_sent(self, count: int) -> None:
        """Waits until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, f"{count} more were not acknowledged", self._collector.said)


class Counts(NamedTuple):
    sent: int
    acknowledged: int
    answered: int  # of the acknowledged, in InfluxDB
    twice: int


def counts(sender: Sender, influxd: Influxd) -> Counts:
    """Once everything acknowledged has arrived, or nothing more does."""
    until(lambda: influxd.count() >= len(sender.acknowledged), "not all arrived", lambda: str(sender.again))
    stored = Counter(ids(influxd))
    answered = sum(one in stored for one in sender.acknowledged)
    return Counts(len(sender.sent), len(sender.acknowledged), answered, sum(stored.values()) - len(stored))


def nothing_is_lost(sender: Sender, influxd: Influxd) -> None:
    found = counts(sender, influxd)
    print(found, dict(sender.again))
    assert found == Counts(len(sender.sent), len(sender.sent), len(sender.sent), 0)
    assert sender.refused == []


def restart(engine: Engine, how: signal.Signals = signal.SIGKILL) -> None:
    engine.end(how)
    engine.start()


def queued(collector: Collector, count: int) -> None:
    """Waits until the collector holds so many."""
    waiting = "otelcol_exporter_queue_size"
    until(lambda: collector.metric(waiting) >= count, f"{count} spans do not wait in the queue", collector.said)


def test_a_killed_collector_loses_nothing(influxd: Influxd, collector: Collector) -> None:
    with Sender(collector) as sender:
        for _ in range(3):
            sender.has_sent(500)
            restart(collector)
        sender.has_sent(500)
    nothing_is_lost(sender, influxd)


def test_a_killed_influxd_loses_nothing(influxd: Influxd, collector: Collector) -> None:
    with Sender(collector) as sender:
        for _ in range(2):
            sender.has_sent(500)
            restart(influxd)
        sender.has_sent(500)
    nothing_is_lost(sender, influxd)


def test_while_influxd_is_away_the_queue_keeps_everything(influxd: Influxd, collector: Collector) -> None:
    with Sender(collector) as sender:
        sender.has_sent(500)
        influxd.kill()
        queued(collector, 5000)
        influxd.start()
        sender.has_sent(500)
    nothing_is_lost(sender, influxd)


def test_collector_and_influxd_killed_together_lose_nothing(influxd: Influxd, collector: Collector) -> None:
    with Sender(collector) as sender:
        sender.has_sent(500)
        influxd.kill()
        queued(collector, 1000)
        restart(collector)
        sender.has_sent(500)
        collector.kill()
        influxd.start()
        collector.start()
        sender.has_sent(500)
    nothing_is_lost(sender, influxd)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_full_queue_makes_senders_wait_and_outlives_a_restart(
    influxd: Influxd, tmp_path: Path, how: signal.Signals
) -> None:
    with changed(tmp_path, influxd, SMALL_QUEUE) as collector:
        with Sender(collector) as sender:
            sender.has_sent(500)
            influxd.kill()
            until(lambda: sender.again[503], "nobody was told to come again", collector.said)
            restart(collector, how)
            until(lambda: sender.again[503] > 10, "nobody was told to come again after the restart", collector.said)
            influxd.start()
            sender.has_sent(500)
        nothing_is_lost(sender, influxd)


def test_a_full_disk_under_the_queue_makes_senders_wait(influxd: Influxd, tmp_path: Path, disk: Path) -> None:
    with changed(tmp_path, influxd, TAILSPAN_COLLECTOR_QUEUE=str(disk)) as collector:
        with Sender(collector) as sender:
            sender.has_sent(500)
            influxd.kill()
            until(lambda: sender.again[503] > 5, "the disk did not fill", collector.said)
            assert collector.metric("otelcol_exporter_enqueue_failed_spans") >= 5 * BATCH
            influxd.start()
            sender.has_sent(500)
        nothing_is_lost(sender, influxd)


def test_a_beat_from_before_a_crash_does_not_replace_a_later_one(influxd: Influxd, collector: Collector) -> None:
    influxd.kill()
    for minute in range(1, 6):
        attributes = {"tailspan.kind": "heartbeat", "tailspan.dropped": minute}
        one = span(1, attributes, end_time_unix_nano=START_NS + minute * 60 * 10**9)
        send(collector.endpoint, [one])
        send(collector.endpoint, [span(minute * 10_000 + n) for n in range(1500)])  # by then the beat is handed out
        if minute == 1:
            until(lambda: collector.metric("otelcol_exporter_in_flight_requests"), "the first beat is not on its way")
    restart(collector)
    influxd.start()
    until(lambda: influxd.count() == 7500 and not collector.metric("otelcol_exporter_queue_size"), "not all arrived")
    [row] = (row for row in rows(influxd).values() if row.tags["tailspan.kind"] == "heartbeat")
    assert row.attributes == {"tailspan.dropped": 5}


def test_a_killed_service_loses_its_last_second_at_most(influxd: Influxd, collector: Collector, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = ("-m", "uvicorn", "tests.stack.service:app", "--port", url.rpartition(":")[2], "--log-level", "warning")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "PYTHONPATH": os.getcwd()}
    service = Engine(
        *(sys.executable, *command), log=tmp_path / "service.log", ready=f"{url}/items/0", environment=environment
    )
    service.start()
    answered: list[tuple[float, str]] = []
    with httpx.Client(base_url=url, trust_env=False) as client:
        for number in range(1, 1501):
            client.get(f"/items/{number}").raise_for_status()
            answered.append((time.monotonic(), f"/items/{number}"))
    service.kill()
    killed = time.monotonic()
    due = {path for at, path in answered if killed - at > 1}
    stored = until(lambda: due <= (found := paths(influxd)) and found, "what is older did not arrive", collector.said)
    print(f"sent {len(answered)}, lost {len(answered) - len(stored & {path for _, path in answered})}")
    assert len(due) > 0


def paths(influxd: Influxd) -> set[str]:
    return {str(row.attributes.get("url.path")) for row in rows(influxd).values()}


@pytest.mark.parametrize("broken", [{"INFLUXDB_V2_TOKEN": "wrong"}, {"INFLUXDB_V2_BUCKET": "missing"}])
def test_what_influxd_refuses_for_good_is_counted(influxd: Influxd, tmp_path: Path, broken: dict[str, str]) -> None:
    with changed(tmp_path, influxd, **broken) as collector:
        send(collector.endpoint, [span(n) for n in range(1, 101)])
        failed = "otelcol_exporter_send_failed_spans"
        until(lambda: collector.metric(failed), "nothing was counted as refused", collector.said)
        assert (collector.metric(failed), collector.metric("otelcol_exporter_sent_spans")) == (100, 0)
        assert collector.metric("otelcol_exporter_queue_size") == 0
    assert ids(influxd) == []


def test_a_span_older_than_the_retention_costs_no_other_but_its_batch_counts_as_refused(
    influxd: Influxd, tmp_path: Path
) -> None:
    [org] = influxd.ask("GET", "/api/v2/orgs").json()["orgs"]
    hours = {"name": "hours", "orgID": org["id"], "retentionRules": [{"type": "expire", "everySeconds": 7200}]}
    influxd.ask("POST", "/api/v2/buckets", json=hours).raise_for_status()
    with changed(tmp_path, influxd, INFLUXDB_V2_BUCKET="hours") as collector:
        old = span(50, start_ns=START_NS - 10**15)
        send(collector.endpoint, [span(n) if n != 50 else old for n in range(1, 101)])
        failed = "otelcol_exporter_send_failed_spans"
        until(lambda: collector.metric(failed), "nothing was counted as refused", collector.said)
        assert (collector.metric(failed), influxd.count(bucket="hours")) == (100, 99)


@contextmanager
def changed(tmp_path: Path, influxd: Influxd, more: str = "{}", **environment: str) -> Iterator[Collector]:
    """A collector with other settings, and a second file of configuration over the first."""
    (tmp_path / "more.yaml").write_text(more)
    collector = Collector(tmp_path / "collector", influxd, **environment)
    collector.command += ["--config", str(tmp_path / "more.yaml")]
    collector.start()
    try:
        yield collector
    finally:
        collector.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    with small_disk(tmp_path / "disk", "2m") as place:
        yield place
