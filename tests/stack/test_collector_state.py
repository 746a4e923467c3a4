"""What answers and `tailspan doctor` say of a real collector, by its own metrics."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.store.duckdb import DuckDB
from tests.conftest import Launch
from tests.server.spans import NOW_NS, export, span
from tests.stack.engines import Collector, Influxd, until

Later = Callable[..., dict[str, Any]]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def send(collector: Collector, count: int = 1) -> None:
    """That many spans of this minute, in one delivery."""
    now = time.time_ns()
    spans = [span(number + 1) for number in range(count)]
    for one in spans:
        one |= {key: str(int(one[key]) + now - NOW_NS) for key in ("startTimeUnixNano", "endTimeUnixNano")}
    answer = httpx.post(f"{collector.endpoint}/v1/traces", json=export(*spans), trust_env=False)
    assert (answer.status_code, answer.json()) == (200, {"partialSuccess": {}})


def metric(collector: Collector, name: str, value: float) -> None:
    """Waits until the collector counts that many."""
    until(lambda: collector.metric(f"otelcol_exporter_{name}") == value, f"{name} is not {value}", collector.said)


@pytest.fixture
def later(tmp_path: Path, collector: Collector) -> Iterator[Later]:
    """`later(seconds=…)`: what an answer says of the collector, that long after the one before."""
    yield from asking(tmp_path, collector.metrics_url)


def asking(folder: Path, url: str) -> Iterator[Later]:
    store = DuckDB(folder / "t.duckdb")
    now = START

    def ask(**after: float) -> dict[str, Any]:
        nonlocal now
        now += timedelta(**after)
        [_, source] = client.get("/analytics/active").json()["sources"]
        assert (source.pop("name"), source.pop("newest"), source.pop("services")) == ("collector", None, [])
        return dict(source)

    try:
        settings = Settings(db=folder / "t.duckdb", collector_metrics=url)
        with TestClient(
            create_app(settings, store, lambda: now), "http://127.0.0.1", client=("127.0.0.1", 1)
        ) as client:
            yield ask
    finally:
        store.close()


def test_all_is_well(collector: Collector, later: Later) -> None:
    assert later() == {"state": "ok", "message": "Spans written since the collector started: 0."}
    send(collector, 3)
    metric(collector, "sent_spans", 3)
    assert later(seconds=4)["message"] == "Spans written since the collector started: 0."
    assert later(seconds=1) == {"state": "ok", "message": "Spans written since the collector started: 3."}


def test_a_missing_bucket_is_told_with_its_loss_and_forgiven_five_minutes_after_the_last(
    influxd: Influxd, collector: Collector, later: Later
) -> None:
    assert later()["state"] == "ok"
    [bucket] = influxd.ask("GET", "/api/v2/buckets", params={"name": Influxd.bucket}).json()["buckets"]
    assert influxd.ask("DELETE", f"/api/v2/buckets/{bucket['id']}").status_code == 204
    send(collector, 2)
    metric(collector, "send_failed_spans", 2)
    lost = "Spans refused by InfluxDB for good: 2, the last between 2026-03-01T12:00:00Z and 2026-03-01T12:00:05Z."
    broken = later(seconds=5)
    assert (broken["state"], broken["message"].startswith(lost)) == ("dropping", True), broken
    assert "the bucket is missing: tailspan setup influxdb tries both" in broken["message"]
    again = {"orgID": bucket["orgID"], "name": Influxd.bucket}
    assert influxd.ask("POST", "/api/v2/buckets", json=again).status_code == 201
    send(collector)
    metric(collector, "sent_spans", 1)
    assert later(minutes=4)["state"] == "dropping"
    assert later(minutes=1) == {"state": "ok", "message": f"Spans written since the collector started: 1. {lost}"}


def test_an_influxdb_that_is_away_is_told_with_what_waits(influxd: Influxd, collector: Collector, later: Later) -> None:
    assert later()["state"] == "ok"
    influxd.kill()
    send(collector, 5)
    metric(collector, "queue_size", 5)
    assert later(seconds=10)["state"] == "ok"  # it may be about to be written
    assert later(seconds=10) == {
        "state": "behind",
        "message": "InfluxDB has taken nothing since 2026-03-01T12:00:00Z; spans waiting: 5, room for 1100000.",
    }
    influxd.start()
    metric(collector, "sent_spans", 5)
    assert later(seconds=10) == {"state": "ok", "message": "Spans written since the collector started: 5."}


def test_a_collector_that_is_away_is_told_and_one_that_began_anew_is_not_judged_by_the_one_before(
    influxd: Influxd, collector: Collector, later: Later
) -> None:
    assert later()["state"] == "ok"
    collector.end()
    away = later(seconds=5)
    assert away["state"] == "unreachable"
    assert away["message"].startswith(f"Its metrics cannot be read at {collector.metrics_url}: ")
    assert away["message"].endswith("Start the collector, or correct TAILSPAN_COLLECTOR_METRICS.")
    collector.environment["INFLUXDB_V2_TOKEN"] = "a-wrong-one"
    for loss in (2, 1):  # whatever the one before had lost
        collector.start()
        assert later(seconds=5)["state"] == "ok"
        send(collector, loss)
        metric(collector, "send_failed_spans", loss)
        wrong = later(seconds=5)
        assert (wrong["state"], wrong["message"].startswith(f"Spans refused by InfluxDB for good: {loss}, ")) == (
            "dropping",
            True,
        )
        collector.end()
    collector.environment["INFLUXDB_V2_TOKEN"] = Influxd.token
    collector.start()
    assert later(seconds=5) == {"state": "ok", "message": "Spans written since the collector started: 0."}


@pytest.mark.parametrize("path", ["/health", "/nothing", "/metrics"])
def test_what_is_no_collector_is_told(influxd: Influxd, tmp_path: Path, path: str) -> None:
    [told] = [later() for later in asking(tmp_path, f"{influxd.url}{path}")]
    assert told["state"] == "unreachable"


def test_a_wrong_token_is_shown_by_answers_and_doctor_within_a_minute(
    influxd: Influxd, tmp_path: Path, launch: Launch
) -> None:
    collector = Collector(tmp_path / "collector", influxd, token="a-wrong-one")
    try:
        collector.start()
        where = {"TAILSPAN_DB": str(tmp_path / "t.duckdb"), "TAILSPAN_LISTEN": "127.0.0.1:0", "TS_SOCKET": "/nowhere"}
        server = launch("tailspan", "serve", **where, TAILSPAN_COLLECTOR_METRICS=collector.metrics_url)
        url = server.line().split()[3]
        send(collector)
        began = time.monotonic()
        until(lambda: told(url)["state"] == "dropping", "the loss is not told")
        code, said, _ = launch("tailspan", "doctor", "--json", TAILSPAN_URL=url, TS_SOCKET="/nowhere").ended()
        assert time.monotonic() - began < 60
        [link] = [link for link in json.loads(said) if link["link"] == "collector"]
        assert (code, link["state"], link["message"]) == (1, "broken", f"dropping: {told(url)['message']}")
        assert "the collector's token is wrong or the bucket is missing" in link["message"]
    finally:
        collector.kill()


def told(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/analytics/active", trust_env=False).json()["sources"][1])
