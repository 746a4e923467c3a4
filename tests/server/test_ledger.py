"""The ledger of the embedded store, held to its rule in plain Python, whoever tells of what first."""

import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import given, settings
from starlette.testclient import TestClient

from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines, Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.span import Span
from tailspan.store.duckdb import DuckDB
from tests.server.ledgers import Happened, Reference, Told, World, dense_world, worlds
from tests.server.logs import combined, counts, identified, logs, read, written
from tests.server.spans import ANA, NOW, NOW_NS, SECOND, export, span

# HYPOTHESIS_PROFILE=thorough pytest tests/server/test_ledger.py
EXAMPLES: Final = {"thorough": 5000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 50)
FORMATS: Final = {
    "with ids": "tailspan",
    "without ids": "combined",
    "exact": "$msec $request_time $remote_addr $request $status",
}


def span_of(one: Happened) -> Span:
    """As its service tells of it."""
    nothing: dict[str, Any] = dict.fromkeys(Span._fields)
    return Span(**nothing)._replace(
        trace_id=one.trace_id if one.has_id and one.at_proxy else one.trace_id[::-1],
        span_id=one.trace_id[8:],
        parent_id=one.trace_id[:8] if one.has_id and one.at_proxy else None,
        start_ns=one.end_ns + one.late_ns - one.took_ns,
        duration_ns=None if one.is_stream else one.took_ns,
        open_ns=one.took_ns if one.is_stream else None,
        path=one.path,
        service="dashboard",
        method="GET",
        route=one.path,
        status=200,
        address=one.address,
        client_address=one.address,
        source="live",
        identity_source="none",
        proven=True,
        caller="unknown",
        traffic="api",
        schema=1,
        kind="request",
    )


def lines_of(told: Told) -> Lines:
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen(FORMATS[told.by])[0])
    return log.read("".join(one.line for one in told.of).encode(), NOW_NS)


def counted(spans: list[Span]) -> "Counter[tuple[str, str | None, str | None, int]]":
    """As Reference has them."""
    return Counter((one.source, one.address, one.path, one.end_ns // SECOND) for one in spans)


def check(world: World) -> None:
    reference = Reference()
    with TemporaryDirectory() as folder:
        store = DuckDB(Path(folder, "t.duckdb"))
        for told in world.told:
            reference.tell(told)
            if told.by == "service":
                store.write([span_of(one) for one in told.of])
            else:
                store.add_lines(lines_of(told), 0)
            assert counted(list(store.spans())) == reference.counts, told
        store.close()


@settings(max_examples=EXAMPLES)
@given(world=worlds())
def test_each_request_is_there_once_whoever_tells_of_it_and_in_whatever_order(world: World) -> None:
    check(world)


@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_in_larger_worlds(seed: int) -> None:
    check(dense_world(seed))


ID: Final = 0xABCDEF0123456789ABCDEF0000000000
EVENTS: Final = ANA | {"http.route": "/events", "url.path": "/events"}


def requests(client: TestClient) -> dict[str, int]:
    """By who told of them."""
    rows = client.get("/analytics/query?metrics=requests&dimensions=source&days=2").json()["rows"]
    return {row["source"]: row["requests"] for row in rows}


@pytest.mark.parametrize("live_first", [True, False], ids=["live first", "line first"])
@pytest.mark.parametrize("timed", [None, False], ids=["download", "stream"])
@pytest.mark.parametrize("has_id", [True, False], ids=["with id", "without"])
def test_what_took_hours_is_there_once_though_its_line_is_of_its_end(
    client: TestClient, tmp_path: Path, has_id: bool, timed: bool | None, live_first: bool
) -> None:
    hours = span(1, EVENTS | {"tailspan.timed": timed}, ago=3 * 3600, took_ms=3 * 3600 * 1000)
    hours |= {"traceId": f"{ID:032x}", "parentSpanId": f"{ID:032x}"[:16]} if has_id else {}
    asked = "GET /events HTTP/1.1"
    line = identified(ID, took="-", request=asked) if has_id else combined(asked, at=f"{NOW:%d/%b/%Y:%H:%M:%S} +0000")
    if live_first:
        client.post("/v1/traces", json=export(hours))
    found = counts(read(client, written(tmp_path / "a.log", line)))
    assert found == {"lines": 1, "twins" if live_first else "added": 1}
    client.post("/v1/traces", json=export(hours))
    assert requests(client) == {"live": 1}


@pytest.mark.parametrize("timed", [None, False], ids=["download", "websocket"])
@pytest.mark.parametrize("live_first", [True, False], ids=["live first", "line first"])
def test_what_took_hours_and_whose_line_says_how_long_is_there_once(
    client: TestClient, tmp_path: Path, live_first: bool, timed: bool | None
) -> None:
    status = 101 if timed is False else 200
    told = EVENTS | {"tailspan.timed": timed, "http.response.status_code": status}
    hours = export(span(1, told, ago=3 * 3600, took_ms=3 * 3600 * 1000))
    line = f"100.64.0.7 - - [{NOW:%d/%b/%Y:%H:%M:%S} +0000] GET /events HTTP/1.1 {status} 10800.000\n"
    form = "$remote_addr - - [$time_local] $request $status $request_time"
    if live_first:
        client.post("/v1/traces", json=hours)
    found = counts(read(client, written(tmp_path / "a.log", line), form=form))
    assert found == {"lines": 1, "twins" if live_first else "added": 1}
    client.post("/v1/traces", json=hours)
    assert requests(client) == {"live": 1}


def test_streams_of_one_page_one_after_another_have_a_line_each(client: TestClient, tmp_path: Path) -> None:
    stream = EVENTS | {"tailspan.timed": False}
    client.post("/v1/traces", json=export(*(span(n, stream, ago=66 - 6 * n, took_ms=5990) for n in (1, 2, 3))))
    lines = [combined("GET /events HTTP/1.1", at=f"01/Mar/2026:11:59:{second:02} +0000") for second in (5, 11, 17)]
    assert counts(read(client, written(tmp_path / "a.log", *lines))) == {"lines": 3, "twins": 3}
    [told] = client.get("/analytics/query?metrics=requests,max_ms&days=1").json()["rows"]
    assert told == {"requests": 3, "max_ms": None}


def test_a_path_ends_at_a_question_mark_or_hash_however_it_is_written(client: TestClient, tmp_path: Path) -> None:
    paths = [f"/login{mark}token=secret{number}" for number, mark in enumerate("?#")]
    told = (span(number, ANA | {"url.path": path}, ago=3600) for number, path in enumerate(paths, 1))
    client.post("/v1/traces", json=export(*told))
    asked = [f"GET {path.replace('?', '%3F').replace('#', '%23')} HTTP/1.1" for path in paths]
    found = counts(read(client, written(tmp_path / "a.log", *map(combined, asked), combined(asked[0]))))
    assert found == {"lines": 3, "added": 1, "twins": 2}
    assert {log["path"] for log in logs(client)} == {"/login"}


def test_a_line_without_an_offset_is_known_in_whatever_zone_it_was_read_before(
    client: TestClient, tmp_path: Path
) -> None:
    lines = [combined(at=f"01/Mar/2026:00:0{minute}:00") for minute in range(5)]
    path = written(tmp_path / "a.log", *lines)
    assert counts(read(client, path, origin={"zone": "Pacific/Kiritimati"})) == {"lines": 5, "added": 5}
    assert counts(read(client, path, origin={"zone": "Etc/GMT+12"}, since_ns=0)) == {"lines": 5, "known": 5}


def test_a_line_meets_its_live_request_whatever_the_name_of_its_service_is_made_of(
    client: TestClient, tmp_path: Path
) -> None:
    named = {"service": "team\\dash\u202e", "environment": "a\\b"}
    told = span(1, ANA | {"url.path": "/prices"}, ago=3600)
    client.post("/v1/traces", json=export(told, **named))
    assert counts(read(client, written(tmp_path / "a.log", combined()), origin=named)) == {"lines": 1, "twins": 1}
    [log] = logs(client)
    assert (log["service"], log["environment"]) == ("team/dash ", "a/b")


def test_equal_lines_of_two_services_are_two_requests(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", combined(), combined())
    for service in ("dashboard", "blog"):
        for found in ("added", "known"):
            assert counts(read(client, path, origin={"service": service}, since_ns=0)) == {"lines": 2, found: 2}
    assert requests(client) == {"log": 4}
