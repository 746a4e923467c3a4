"""The Flux of docs/collector.md, on the real InfluxDB."""

import csv
import re
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tailspan.encode import batches
from tailspan.span import Heartbeat
from tests.server.spans import SECOND
from tests.server.views import view
from tests.stack.engines import ROOT, Collector, Influxd, until
from tests.stack.pipeline import post

CALL = view(1, "")._replace(kind="request", card=None, source="live", method="GET", status=200, route="/prices/{id}")
NOBODY = {"login": None, "node": None, "node_id": None, "address": None, "caller": "unknown"}


def flux() -> list[str]:
    """The blocks of that section: the query, and a task's beginning and end."""
    section = (ROOT / "docs/collector.md").read_text().partition("\n## As a measurement api_access\n")[2]
    return re.findall(r"```flux\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def delivered(collector: Collector, influxd: Influxd) -> list[dict[str, Any]]:
    """What is sent, as the rows of a measurement api_access."""
    start = time.time_ns() // 10**6 * 10**6 - 3600 * SECOND + 1  # no whole millisecond: that would be spread
    calls: tuple[dict[str, Any], ...] = (
        {"duration_ns": 42_500_000},
        {"duration_ns": 892_000_000, "method": "POST", "route": "/optimize", "status": 500, "node": None},
        {"duration_ns": None, "route": "/stream"},
        {"duration_ns": 1_000_000, "status": None},
        {"duration_ns": 2_000_000, "route": None, "path": "/wp-admin", "status": 404, **NOBODY},
    )
    spans = [
        CALL._replace(span_id=bytes(7) + bytes([n]), start_ns=start + n * SECOND, **call)
        for n, call in enumerate(calls, 1)
    ]
    beat = Heartbeat(b"h" * 16, b"h" * 8, start, start, "dashboard", None, False, 0, 0, 0, 0)
    [batch] = batches([*spans, view(9, "Sistema")._replace(start_ns=start), beat])
    post(collector.endpoint, batch.body).raise_for_status()
    until(
        lambda: influxd.count() == len(spans) and influxd.count("view") and influxd.count("heartbeat"), "not all there"
    )
    return [
        {
            "_measurement": "api_access",
            "_time": span.start_ns,
            "user": span.login or "",
            "device": span.node or span.address or "",
            "endpoint": span.route or "",
            "method": span.method,
            "response_time_ms": None if span.duration_ns is None else span.duration_ns / 1e6,
            "status_code": span.status,
        }
        for span in spans
    ]


def rows(answer: str) -> list[dict[str, Any]]:
    """By time."""
    tables = answer.replace("\r\n", "\n").strip().split("\n\n")
    found = [row for table in tables for row in csv.DictReader(table.splitlines())]
    return sorted((_typed(row) for row in found), key=lambda row: row["_time"])


def _typed(row: dict[str, str]) -> dict[str, Any]:
    moment, _, fraction = row["_time"].rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp())
    texts = {key: row.get(key, "") for key in ("_measurement", "user", "device", "endpoint", "method")}
    took, status = row.get("response_time_ms"), row.get("status_code")
    numbers = {"response_time_ms": float(took) if took else None, "status_code": int(status) if status else None}
    return {**texts, **numbers, "_time": seconds * SECOND + int(fraction.ljust(9, "0"))}


def succeeded(influxd: Influxd, run: str) -> bool:
    return bool(influxd.ask("GET", run).json().get("status") == "success")  # none while InfluxDB files it away


def test_the_query_gives_a_row_a_request(collector: Collector, influxd: Influxd) -> None:
    wanted = delivered(collector, influxd)
    assert rows(influxd.flux(flux()[0])) == wanted


def test_the_task_stores_the_same_and_again_over_the_same_points(collector: Collector, influxd: Influxd) -> None:
    wanted = delivered(collector, influxd)
    query, begin, end = flux()
    [org] = influxd.ask("GET", "/api/v2/orgs").json()["orgs"]
    bucket = {"orgID": org["id"], "name": "api_access", "retentionRules": []}
    influxd.ask("POST", "/api/v2/buckets", json=bucket).raise_for_status()
    task = {"orgID": org["id"], "flux": begin + query.partition("\n")[2] + end}
    made = influxd.ask("POST", "/api/v2/tasks", json=task)
    assert made.status_code == 201, made.text
    runs = f"/api/v2/tasks/{made.json()['id']}/runs"
    for _ in range(2):
        run = influxd.ask("POST", runs, json={}).json()["id"]
        until(partial(succeeded, influxd, f"{runs}/{run}"), "the task did not run")
        stored = 'from(bucket: "api_access") |> range(start: 0)'
        pivoted = f'{stored} |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")'
        assert rows(influxd.flux(pivoted)) == wanted
