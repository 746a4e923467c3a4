"""A log as the second witness: each request is there once, whoever tells of it, and whatever is read how often."""

import gzip
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import Serving
from tests.server.logs import (
    ID,
    SIDECAR,
    THEN,
    combined,
    counts,
    identified,
    live,
    logs,
    read,
    requests,
    written,
)
from tests.server.spans import ANA, NOW, export, span

SHOWN = ("endpoint", "method", "status", "traffic", "page", "source")


def test_the_sidecars_real_log_is_read_completely(serving: Serving) -> None:
    with serving(now=THEN) as client:
        assert counts(read(client, str(SIDECAR), now=THEN)) == {"lines": 15, "added": 15}
        found = [tuple(log[name] for name in SHOWN) for log in logs(client)]
    assert sorted(found, key=str) == sorted(
        [
            ("/", "GET", 301, "api", None, "log"),
            ("/", "GET", 302, "api", None, "log"),
            ("/dashboard", "GET", 302, "api", None, "log"),
            ("/static/index.html", "GET", 200, "page", "/static/index.html", "log"),
            ("/static/js/dashboard.js", "GET", 200, "asset", None, "log"),
            ("/dashboard/complete", "GET", 200, "api", None, "log"),
            ("/optimize/production/daily", "POST", 200, "api", None, "log"),
            ("/vpn", "GET", 403, "api", None, "log"),
            ("/vpn", "GET", 307, "api", None, "log"),
            ("/insights/alerts", "GET", 200, "api", None, "log"),
            ("/insights/alerts", "GET", 401, "api", None, "log"),
            ("/analytics/access-logs", "GET", 403, "internal", None, "log"),
            ("/health", "GET", 403, "health", None, "log"),
            ("/health-monitoring/summary", "GET", 200, "health", None, "log"),
            ("/tailscale/status", "GET", 502, "api", None, "log"),
        ],
        key=str,
    )


def test_a_log_read_again_adds_nothing_with_a_checkpoint_or_without(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", combined(), combined(), combined("GET /x HTTP/1.1"))
    assert counts(read(client, path)) == {"lines": 3, "added": 3}
    again = read(client, path)
    assert (counts(again), again["bytes_read_before"]) == ({}, Path(path).stat().st_size)
    assert counts(read(client, path, since_ns=0)) == {"lines": 3, "known": 3}
    assert requests(client) == 3


def test_a_rotated_file_and_its_copies_are_the_same_requests(client: TestClient, tmp_path: Path) -> None:
    """GoAccess counts a copied file twice."""
    path = written(tmp_path / "access.log", *(combined(f"GET /{n} HTTP/1.1") for n in range(50)))
    read(client, path)
    shutil.copy(path, tmp_path / "access.log.1")
    (tmp_path / "access.log.2.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    found = read(client, *(str(tmp_path / name) for name in ("access.log.2.gz", "access.log", "access.log.1")))
    assert (counts(found), found["alike"]) == ({}, 0)
    assert counts(read(client, path, str(tmp_path / "access.log.1"), since_ns=0)) == {"lines": 100, "known": 100}
    assert requests(client) == 50


def test_a_log_that_grew_is_read_on(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", combined("GET /1 HTTP/1.1"))
    read(client, path)
    with Path(path).open("a") as log:
        log.write(combined("GET /2 HTTP/1.1") + combined("GET /1 HTTP/1.1"))
    assert counts(read(client, path)) == {"lines": 2, "added": 2}
    assert requests(client) == 3


def test_another_file_of_the_same_name_is_read_from_its_beginning(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", *(combined(f"GET /{n} HTTP/1.1") for n in range(9)))
    read(client, path)
    written(tmp_path / "a.log", combined("GET /0 HTTP/1.1"), *(combined(f"GET /new{n} HTTP/1.1") for n in range(9)))
    assert counts(read(client, path)) == {"lines": 10, "added": 9, "known": 1}


def test_lines_of_the_same_second_are_different_requests(client: TestClient, tmp_path: Path) -> None:
    """GoAccess loses those that come by a pipe in the second in which it last read."""
    path = written(tmp_path / "a.log", *[combined()] * 7)
    assert counts(read(client, path)) == {"lines": 7, "added": 7}


def test_equal_lines_where_files_meet_are_counted_once_and_the_doubt_is_told(
    client: TestClient, tmp_path: Path
) -> None:
    older = written(tmp_path / "a.log.1", combined("GET /first HTTP/1.1"), combined(), combined())
    newer = written(tmp_path / "a.log", combined())
    found = read(client, newer, older)
    assert (counts(found), found["alike"]) == ({"lines": 4, "added": 3, "known": 1}, 1)


def test_what_was_read_before_is_in_doubt_once_the_file_before_it_is_read(client: TestClient, tmp_path: Path) -> None:
    """As where a pattern names no rotated files, and a later run does."""
    first, equal = combined("GET /first HTTP/1.1", at="01/Mar/2026:10:59:59 +0000"), combined()
    old = written(tmp_path / "a.log.1", first, *[equal] * 5)
    new = written(tmp_path / "a.log", combined("GET /second HTTP/1.1"), *[equal] * 5)
    assert (read(client, new)["alike"], requests(client)) == (0, 6)
    assert (read(client, old, new)["alike"], requests(client)) == (5, 7)  # and may be 12


def test_what_its_service_told_of_is_its_twin_by_the_requests_id(client: TestClient, tmp_path: Path) -> None:
    client.post("/v1/traces", json=export(live(ID), live(ID + 1)))
    path = written(tmp_path / "a.log", *(identified(ID + number) for number in range(4)))
    found = read(client, path)
    assert (counts(found), found["coverage"]) == ({"lines": 4, "added": 2, "twins": 2}, 0.5)
    found = read(client, path, since_ns=0)
    assert (counts(found), found["coverage"]) == ({"lines": 4, "known": 2, "twins": 2}, 0.5)
    assert requests(client) == 4


def test_what_its_service_tells_later_replaces_the_line(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", *(identified(ID + number) for number in range(4)))
    assert counts(read(client, path)) == {"lines": 4, "added": 4}
    client.post("/v1/traces", json=export(live(ID), live(ID + 1)))
    assert (requests(client), requests(client, source="live"), requests(client, source="log")) == (4, 2, 2)
    assert counts(read(client, path, since_ns=0)) == {"lines": 4, "known": 2, "twins": 2}
    client.post("/v1/traces", json=export(live(ID), live(ID + 1)))
    assert requests(client) == 4


def test_a_service_behind_the_service_and_nginxs_second_try_are_no_twins_of_others(
    client: TestClient, tmp_path: Path
) -> None:
    tries = [live(ID), live(ID, spanId="00000000000000aa", startTimeUnixNano=live(ID, ago=1)["startTimeUnixNano"])]
    behind = live(ID, spanId="00000000000000bb", parentSpanId=tries[0]["spanId"])
    client.post("/v1/traces", json=export(*tries, behind))
    path = written(tmp_path / "a.log", identified(ID))
    assert counts(read(client, path)) == {"lines": 1, "twins": 1}
    assert requests(client) == 3


def test_without_ids_each_line_takes_one_live_request_like_it(client: TestClient, tmp_path: Path) -> None:
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    client.post("/v1/traces", json=export(*(span(n, attributes, ago=3600 - n) for n in range(1, 4))))
    path = written(
        tmp_path / "a.log",
        *(combined(at=f"01/Mar/2026:11:00:0{n} +0000") for n in (1, 2, 3, 3)),  # one more than the service saw
        combined(at="01/Mar/2026:11:00:02 +0000", address="100.64.0.99"),
        combined("GET /prices HTTP/1.1", 502, at="01/Mar/2026:11:00:02 +0000"),
    )
    assert counts(read(client, path)) == {"lines": 6, "added": 3, "twins": 3}
    assert counts(read(client, path, since_ns=0)) == {"lines": 6, "known": 3, "twins": 3}
    assert requests(client) == 6


def test_that_services_may_have_told_of_these_requests_under_another_name_or_path_is_told(
    client: TestClient, tmp_path: Path
) -> None:
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    client.post("/v1/traces", json=export(*(span(n, attributes, ago=3600 - n) for n in range(1, 41))))
    at = [f"01/Mar/2026:11:00:{n:02} +0000" for n in range(1, 41)]
    same = written(tmp_path / "same.log", *(combined(at=one) for one in at))
    other = written(tmp_path / "other.log", *(combined("GET /app/prices HTTP/1.1", at=one) for one in at))
    named = read(client, same, dry_run=True, origin={"service": "nginx"})["hint"]
    assert named.startswith("In that time the server heard from dashboard, and from nobody called nginx.")
    found = read(client, other, dry_run=True)["hint"]
    assert found.startswith("0 of 40 lines found their request, and dashboard told of 40 in that time.")
    assert read(client, same)["hint"] is None
    early = written(tmp_path / "early.log", combined(at="28/Feb/2026:11:00:00 +0000"))
    assert read(client, early, origin={"service": "nginx"})["hint"] is None


@pytest.mark.parametrize("live_first", [True, False], ids=["live first", "line first"])
@pytest.mark.parametrize("seen", [{}, {"client.address": "127.0.0.1"}, {"client.address": "::1"}], ids=str)
def test_without_ids_what_comes_from_the_own_machine_meets_its_line_however_the_service_sees_it(
    client: TestClient, tmp_path: Path, seen: dict[str, str], live_first: bool
) -> None:
    asked = {"http.request.method": "GET", "url.path": "/prices", "http.response.status_code": 200}
    path = written(tmp_path / "a.log", combined(at=f"{NOW:%d/%b/%Y:%H:%M:%S +0000}", address="127.0.0.1"))

    def tell() -> None:
        assert client.post("/v1/traces", json=export(span(1, asked | seen, took_ms=42))).status_code == 200

    if live_first:
        tell()
    read(client, path)
    if not live_first:
        tell()
    assert (requests(client), requests(client, source="live")) == (1, 1)


def test_without_ids_what_comes_later_takes_its_line_too(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", *(combined(at=f"01/Mar/2026:11:00:0{n} +0000") for n in (1, 2, 3)))
    read(client, path)
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    sent = export(*(span(n, attributes, ago=3600 - n) for n in (1, 2)), span(9, attributes, ago=1800))
    for _ in range(2):  # the second time is a delivery made again
        client.post("/v1/traces", json=sent)
        assert (requests(client, source="live"), requests(client, source="log")) == (3, 1)
    assert counts(read(client, path, since_ns=0)) == {"lines": 3, "known": 1, "twins": 2}


def test_without_ids_what_comes_later_in_another_order_takes_its_own_line(client: TestClient, tmp_path: Path) -> None:
    """The second request ended just before the second that its line is of."""
    path = written(tmp_path / "a.log", *(combined(at=f"01/Mar/2026:11:00:0{n} +0000") for n in (1, 4)))
    read(client, path)
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    for number, end in ((2, 3.99), (1, 1.5)):
        client.post("/v1/traces", json=export(span(number, attributes, ago=3600 - end, took_ms=0)))
    assert (requests(client, source="live"), requests(client, source="log")) == (2, 0)


def test_a_dry_run_says_the_same_and_keeps_nothing(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", combined(), "nonsense\n")
    found = read(client, path, dry_run=True)
    assert (counts(found), found["dry_run"], requests(client)) == ({"lines": 2, "added": 1}, True, 0)
    assert counts(read(client, path)) == {"lines": 2, "added": 1}


def test_since_and_until_leave_out_and_what_is_too_old_is_not_kept(serving: Serving, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", *(combined(at=f"01/Mar/2026:{hour}:00:00 +0000") for hour in ("08", "09", "10")))
    with serving(retention_days=1) as client:
        nine = int(datetime(2026, 3, 1, 9, tzinfo=UTC).timestamp()) * 10**9
        found = read(client, path, since_ns=nine, until_ns=nine + 1)
        assert (counts(found), found["left_out"]) == ({"lines": 3, "added": 1}, 2)
        old = written(tmp_path / "old.log", combined(at="01/Feb/2026:11:00:00 +0000"))
        assert read(client, old)["too_old"] == 1


def test_what_was_too_old_or_in_the_future_is_read_by_the_same_command_after_the_mend(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.logfiles.PIECE", 500)
    now = [combined(f"GET /{number} HTTP/1.1") for number in range(20)]
    old = written(tmp_path / "old.log", combined(at="01/Feb/2026:11:00:00 +0000"), *now)
    early = written(tmp_path / "early.log", *now, combined(at="01/Mar/2026:12:30:00 +0000"), combined(), *now)
    with serving(retention_days=1) as client:
        first = read(client, old, early)
        assert (first["added"], first["too_old"], first["dropped"].popitem()[1]["lines"]) == (41, 1, 1)
    with serving(now=NOW + timedelta(hours=1)) as client:
        found = read(client, old, early, now=NOW + timedelta(hours=1))
        assert (found["added"], found["dropped"], found["bytes_read_before"] > 0) == (2, {}, True)
        assert (requests(client), counts(read(client, old, early, now=NOW + timedelta(hours=1)))) == (42, {})


def test_retention_forgets_lines_and_their_twins(serving: Serving, tmp_path: Path, database: Path) -> None:
    path = written(tmp_path / "a.log", combined())
    with serving() as client:
        read(client, path)
    with serving(now=NOW + timedelta(days=10), retention_days=1) as client:
        assert requests(client) == 0


def test_what_was_read_before_a_copy_is_in_doubt_after_it(client: TestClient, tmp_path: Path) -> None:
    first, then = (combined(at=f"01/Mar/2026:11:00:0{second} +0000") for second in (1, 2))
    long = written(tmp_path / "a.log.3", first, then)
    copy = written(tmp_path / "a.log.4", first)
    new = written(tmp_path / "a.log", then, combined("GET /b HTTP/1.1", at="01/Mar/2026:11:00:02 +0000"))
    found = read(client, long, copy, new)
    assert (counts(found), found["alike"]) == ({"lines": 5, "added": 3, "known": 2}, 1)
