"""Both stores over the same spans, and what the way into InfluxDB takes: `scripts/bench stores`.

The spans are those of benchmarks/questions. They go through the collector into InfluxDB, and into a DuckDB file. Then
every question is asked of both: of InfluxDB for the first time ever (influxd started anew, the system's file cache
dropped where that is allowed, nothing kept here), then cold (likewise, but with what the server kept when it ended),
then warm.

    python -m benchmarks.stores 2000000 [FOLDER]

A FOLDER keeps what was written, for the next time.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

import httpx
from starlette.testclient import TestClient

from benchmarks.questions import NOW, fill, spans
from tailspan import pieces, shelf
from tailspan.app import create_app
from tailspan.config import InfluxDB, Settings
from tailspan.encode import batches
from tailspan.pieces import NEW_FRESH_S, OPEN_S
from tailspan.query import nanoseconds
from tailspan.store import influxdb
from tailspan.store.duckdb import DuckDB
from tests.stack.engines import Collector, Influxd, until

WARM: Final = 5
HEADERS: Final = {"Content-Type": "application/x-protobuf"}
QUESTIONS: Final = (
    "/analytics/active",
    "/analytics/access-logs?hours=24",
    "/analytics/access-logs?hours=168",
    "/analytics/dashboard-usage?days=7",
    "/analytics/dashboard-usage?days=30",
    "/analytics/system-health-history?days=7",
    "/analytics/system-health-history?days=30",
    "/analytics/query?metrics=requests,people&dimensions=route&days=30",
    "/analytics/query?metrics=deliberate_calls,people&dimensions=feature&days=30",
    "/analytics/query?metrics=sessions,session_time_s&dimensions=person&days=30",
)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else scratch)
        influxd = Influxd(folder / "influxd")
        if (folder / "influxd" / "influxd.bolt").exists():
            influxd.start()
        else:
            influxd.set_up()
            _load(influxd, folder, count)
        print(f"influxd: {_memory(influxd.pid):.0f} MB, {_disk(folder / 'influxd'):.0f} MB on disk", flush=True)
        _ask(influxd, folder, count)
        influxd.end()


def _load(influxd: Influxd, folder: Path, count: int) -> None:
    """Through the collector, as fast as it takes them."""
    collector = Collector(folder / "collector", influxd)
    collector.start()
    url = f"{collector.endpoint}/v1/traces"
    began, sent, most, longest = time.perf_counter(), 0, 0.0, 0.0
    with httpx.Client(timeout=60, trust_env=False) as client:
        made = spans(count)
        while chunk := list(islice(made, 100_000)):
            for batch in batches(chunk):
                while client.post(url, content=batch.body, headers=HEADERS).status_code != 200:
                    time.sleep(0.1)  # as OTLP has it: come again
                sent += batch.spans
            most = max(most, _memory(collector.pid))
            longest = max(longest, collector.metric("otelcol_exporter_queue_size"))
            print(f"  {sent} sent in {time.perf_counter() - began:.0f} s", flush=True)
    sending = time.perf_counter() - began
    until(lambda: not collector.metric("otelcol_exporter_queue_size"), "the queue is not empty", patience=1200)
    took = time.perf_counter() - began
    print(
        f"collector: {sent / sending:.0f} spans/s taken, {sent / took:.0f} spans/s until all were written; "
        f"{most:.0f} MB at most, {longest:.0f} spans waiting at most, queue file {_disk(folder / 'collector'):.0f} MB",
        flush=True,
    )
    collector.end()


class _Then:
    """The time as it was at the end of the spans: what is over and what is not is told by it."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def time_ns() -> int:
        return nanoseconds(NOW)


def _ask(influxd: Influxd, folder: Path, count: int) -> None:
    embedded = DuckDB(folder / "embedded.duckdb")
    if not embedded.count():
        fill(embedded, count)
    print(f"DuckDB: {embedded.path.stat().st_size / 2**20:.0f} MB on disk", flush=True)
    there = InfluxDB(influxd.url, influxd.token, influxd.org, influxd.bucket, timeout_ms=600_000)
    with _client(Settings(db=embedded.path), embedded) as client:
        floor = {question: _warm(client, question) for question in QUESTIONS}
    print(" first   cold   warm  DuckDB  (seconds)")
    local = DuckDB(folder / "local.duckdb")
    for module in (pieces, influxdb, shelf):
        module.time = _Then  # type: ignore[attr-defined]
    for question in QUESTIONS:
        shutil.rmtree(folder / "local.duckdb.pieces", ignore_errors=True)
        with _all_cold(influxd), _client(Settings(influxdb=there), local) as client:
            first = _timed(client, question)
        with _all_cold(influxd), _client(Settings(influxdb=there), local) as client:
            cold = _timed(client, question)
            warm = _warm(client, question)
        print(f"{first:6.2f} {cold:6.2f} {warm:6.2f}  {floor[question]:6.2f}  {question}", flush=True)
    print(f"influxd after the questions: {_memory(influxd.pid):.0f} MB; this process: {_memory(os.getpid()):.0f} MB")
    local.close()
    embedded.close()


@contextmanager
def _all_cold(influxd: Influxd) -> Iterator[None]:
    influxd.end()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    influxd.start()
    yield


@contextmanager
def _client(settings: Settings, store: DuckDB) -> Iterator[TestClient]:
    app = create_app(settings, store, lambda: NOW)
    with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        yield client


def _warm(client: TestClient, question: str) -> float:
    """Each time after what is kept for a moment is no longer."""
    took: list[float] = []
    for _ in range(WARM):
        time.sleep(NEW_FRESH_S if len(took) % 2 else OPEN_S)
        took.append(_timed(client, question))
    return statistics.median(took)


def _timed(client: TestClient, question: str) -> float:
    begun = time.perf_counter()
    client.get(question).raise_for_status()
    return time.perf_counter() - begun


def _memory(pid: int) -> float:
    """Resident megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def _disk(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


if __name__ == "__main__":
    main()
