"""A log as the second witness: each request is there once, whoever tells of it, and whatever is read how often."""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import httpx
import pytest
from starlette.testclient import TestClient

from tailspan.delivery import delivery
from tailspan.demo.localapi import LocalAPI
from tailspan.errors import AccessError, LogError, UnsentError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import FORMATS, chosen
from tailspan.ingest.tally import Tally
from tailspan.logfiles import LogFile, digest, in_order, key_of, look
from tailspan.query import nanoseconds
from tailspan.sending import Sender
from tailspan.store.file import MIGRATIONS
from tests.server.conftest import Serving
from tests.server.logs import SIDECAR, combined, counts, identified, read, written
from tests.server.spans import ANA, NOW, export, span
from tests.server.tailnet import STATUS, Answer, Control, running, until

THEN = datetime(2026, 11, 22, tzinfo=UTC)  # after the sidecar's log
SHOWN = ("endpoint", "method", "status", "traffic", "page", "source")


def logs(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    answer = client.get("/analytics/access-logs", params={"hours": 24, "limit": 1000, **asked})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["logs"])


def requests(client: TestClient, **filters: str) -> int:
    answer = client.get("/analytics/query", params={"metrics": "requests", "days": 2, **filters}).json()
    return int(answer["rows"][0]["requests"])


def parent_of(number: int) -> str:
    """Of the service's own span, where nginx gave it the id of request `number`."""
    return f"{number:032x}"[:16]


def live(number: int, *, ago: float = 0, **changed: Any) -> dict[str, Any]:
    """The service's own span of request `number`, whose id it was given by nginx."""
    return span(number, ANA | {"http.route": "/prices", "url.path": "/prices"}, ago=ago) | {
        "parentSpanId": parent_of(number),
        "spanId": f"{number + 1000:032x}"[16:],
        **changed,
    }


URL_FIX = "TAILSPAN_URL says where tailspan is."
ID = 0xABCDEF0123456789ABCDEF0000000000  # of requests, whose first digits are not zeros


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


def test_a_line_names_nobody_whatever_its_client_wrote(serving: Serving) -> None:
    with serving(now=THEN) as client:
        read(client, str(SIDECAR), now=THEN)
        assert {(log["user"], log["caller"], log["ip"]) for log in logs(client)} == {(None, "unknown", "100.64.1.2")}


def test_a_user_is_believed_when_answered_where_the_proxy_is_declared_to_let_no_client_write_one(
    serving: Serving, tmp_path: Path
) -> None:
    head, tail = SIDECAR.read_text().splitlines()[-1].rsplit("TS-User: ", 1)
    assert tail == "-"
    named = ("zoe@example.com", "=?utf-8?q?Zo=C3=AB@example.com?=", "-", r"\x22", "")
    sidecar = written(tmp_path / "sidecar.log", *(f"{head}TS-User: {name}\n" for name in named))
    settings = written(tmp_path / "settings.toml")
    with serving(now=THEN, settings=Path(settings)) as client:

        def people() -> list[tuple[str | None, ...]]:
            return sorted(((log["user"], log["caller"], log["identity_source"]) for log in logs(client)), key=str)

        assert counts(read(client, sidecar, now=THEN)) == {"lines": 5, "added": 5}
        assert people() == [(None, "unknown", "none")] * 5
        written(Path(settings), '[trusted_logs]\ndashboard = "$remote_user"')
        assert people() == [(None, "unknown", "none")] * 5
        written(Path(settings), '[trusted_logs]\ndashboard = "TS-User"')
        assert people() == [
            ('"', "person", "serve_header"),
            ("Zoë@example.com", "person", "serve_header"),
            ("zoe@example.com", "person", "serve_header"),
            (None, "unknown", "none"),
            (None, "unknown", "none"),
        ]
        assert counts(read(client, sidecar, now=THEN, since_ns=0)) == {"lines": 5, "known": 5}
        written(Path(settings), '[trusted_logs]\nanother = "TS-User"')
        assert people() == [(None, "unknown", "none")] * 5
        zoe = client.get("/analytics/people/zoe@example.com").text
        assert json.loads(zoe)["endpoint"] == "/tailscale/status"  # hers to see and to delete, believed or not
        assert client.delete("/analytics/people/zoe@example.com").json()["requests"] == 1
        assert counts(read(client, sidecar, now=THEN, since_ns=0)) == {"lines": 5, "known": 5}
        assert len(people()) == 4


def test_who_comes_through_a_proxy_on_the_same_machine_is_a_person_where_the_log_is_trusted_and_local_elsewhere(
    serving: Serving, tmp_path: Path
) -> None:
    path = written(
        tmp_path / "basic.log",
        combined("GET / HTTP/1.1", user="leo", address="127.0.0.1"),
        combined("GET /x HTTP/1.1", user="-", address="127.0.0.1"),
    )
    settings = written(tmp_path / "settings.toml", '[trusted_logs]\ndashboard = "$remote_user"')
    with serving(settings=Path(settings)) as client:
        read(client, path)

        def found() -> list[tuple[str | None, ...]]:
            return [
                tuple(log[name] for name in ("endpoint", "user", "caller", "identity_source", "traffic"))
                for log in logs(client)
                if log["source"] == "log"
            ]

        nobody = ("/x", None, "local", "none", "internal")
        assert sorted(found()) == [("/", "leo", "person", "nginx_auth", "page"), nobody]
        for declared in ("", '[trusted_logs]\ndashboard = "TS-User"'):
            written(Path(settings), declared)
            assert sorted(found()) == [("/", None, "local", "none", "internal"), nobody]


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


def test_who_was_forgotten_does_not_come_back_by_a_log(client: TestClient, tmp_path: Path) -> None:
    client.post("/v1/traces", json=export(live(ID, ago=1)))
    path = written(tmp_path / "a.log", identified(ID), identified(ID + 1))
    assert counts(read(client, path)) == {"lines": 2, "added": 1, "twins": 1}
    assert client.delete("/analytics/people/ana@example.com").json()["requests"] == 2  # one by her address
    assert counts(read(client, path, since_ns=0)) == {"lines": 2, "known": 2}
    assert requests(client) == 0


def test_a_device_learned_later_names_the_lines_of_its_address(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", combined(at="01/Mar/2026:11:30:00 +0000"))
    assert read(client, path)["unresolved"] == ["100.64.0.7"]
    client.post("/v1/traces", json=export(span(1, ago=3600)))  # Ana, from that address, before
    assert read(client, path, since_ns=0)["unresolved"] == []
    found = logs(client, traffic="page", user="ana@example.com", device="ana-laptop")
    assert [(log["source"], log["page"]) for log in found] == [("log", "/prices"), ("live", "/dashboard")]


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


def test_what_is_no_request_is_dropped_with_its_reason_and_an_example(client: TestClient, tmp_path: Path) -> None:
    lines: list[str | bytes] = [
        combined(),
        combined(r"\x16\x03\x01\x02\x00", 400),
        combined("", 408),
        combined(at="31/Feb/2026:11:00:00 +0000"),
        combined(at="01/Mar/2126:11:00:00 +0000"),
        b"\xff\xfe\x00 any bytes\n",
        combined()[:60],
    ]
    found = read(client, written(tmp_path / "a.log", *lines))
    assert counts(found) == {"lines": 7, "added": 1}
    assert {reason: dropped["lines"] for reason, dropped in found["dropped"].items()} == {
        "no HTTP request": 2,
        "no such time": 1,
        "more than ten minutes in the future: set the clock": 1,
        "not in the format": 1,
        "torn: it has no end": 1,
    }
    assert found["dropped"]["no such time"]["example"] == str(lines[3]).strip()


def test_lines_are_read_in_the_format_that_each_is_in(client: TestClient, tmp_path: Path) -> None:
    """As where nginx's settings change while it writes, and an old worker ends a request after that."""
    old = [combined(f"GET /{number} HTTP/1.1") for number in range(60)]
    new = [identified(number) for number in range(30)]
    path = written(tmp_path / "a.log", *old[:50], *new[:10], old[50], *new[10:], *old[51:], "neither\n")
    assert counts(read(client, path)) == {"lines": 91, "added": 90}
    assert counts(read(client, path, since_ns=0)) == {"lines": 91, "known": 90}


@pytest.mark.parametrize("first", ["combined", "tailspan"])
def test_of_a_request_that_is_written_in_two_formats_the_first_line_is_kept_wherever_a_reading_ends(
    client: TestClient, tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers; equal requests in a second; and before that nginx wrote each once."""
    monkeypatch.setattr("tailspan.logfiles.PIECE", 7000)
    monkeypatch.setattr("tailspan.ingest.fitting.AT_ONCE", 1000)
    lines = [combined(f"GET /old/{number} HTTP/1.1") for number in range(9)]
    for number in range(100):
        request = f"GET /{number // 3} HTTP/1.1"
        at = NOW - timedelta(hours=1)
        both = [combined(request), identified(ID + number, at=at, request=request)]
        both = both if first == "combined" else both[::-1]
        if number % 5 == 4:  # another worker wrote between
            lines[-1:] = [both[0], lines[-1], both[1]]
        else:
            lines += both
    told = span(ID, ANA | {"http.route": "/{id}", "url.path": "/0"}, ago=3600) | {"parentSpanId": parent_of(ID)}
    client.post("/v1/traces", json=export(told))
    for ends in (30, 31, len(lines)):
        read(client, written(tmp_path / "a.log", *lines[:ends]))
    assert requests(client) == 109
    found = read(client, str(tmp_path / "a.log"), since_ns=0)
    assert (found["lines"], found["known"] + found["twins"]) == (209, 109)
    [(reason, dropped)] = found["dropped"].items()
    assert (reason.startswith("two formats in one file"), dropped["lines"]) == (True, 100)


def test_the_first_request_that_is_written_twice_is_there_once_though_its_first_line_ends_what_is_read_at_once(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [combined(f"GET /{number} HTTP/1.1") for number in range(10)]
    monkeypatch.setattr("tailspan.ingest.fitting.AT_ONCE", sum(map(len, lines)))
    both = identified(1, at=NOW - timedelta(hours=1), request="GET /9 HTTP/1.1")
    assert counts(read(client, written(tmp_path / "a.log", *lines, both))) == {"lines": 11, "added": 10}


@pytest.mark.parametrize("packed", [False, True])
def test_megabytes_without_an_end_of_line_are_one_that_is_dropped(
    client: TestClient, tmp_path: Path, *, packed: bool
) -> None:
    """As a crash leaves them, where nginx writes on."""
    after = [combined(f"GET /{number} HTTP/1.1") for number in range(4)]
    content = "".join([combined(), "\0" * 9_000_000, *after]).encode()
    path = written(tmp_path / "a.log", gzip.compress(content) if packed else content)
    found = read(client, path)
    assert counts(found) == {"lines": 5, "added": 4}  # what nginx wrote on stands in the line that has no end
    [(reason, dropped)] = found["dropped"].items()
    assert (reason, dropped["lines"]) == ("no end within a megabyte", 1)
    assert read(client, path)["bytes_read_before"] == len(content)
    assert counts(read(client, path, since_ns=0)) == {"lines": 5, "known": 4}
    ending = written(tmp_path / "b.log", combined("GET /b HTTP/1.1"), "\0" * 9_000_000)
    found = read(client, ending)
    assert (counts(found), list(found["dropped"])) == ({"lines": 2, "added": 1}, ["torn: it has no end"])


def test_each_version_of_http_is_read_over_either_ip_and_nobody_knows_how_long_it_took(
    client: TestClient, tmp_path: Path
) -> None:
    addresses, versions = ("100.64.0.7", "fd7a:115c:a1e0::7"), ("1.0", "1.1", "2.0", "3.0")
    lines = [combined(f"GET /a/7?q=1 HTTP/{one}", address=address) for one in versions for address in addresses]
    assert counts(read(client, written(tmp_path / "a.log", *lines))) == {"lines": 8, "added": 8}
    found = [(log["ip"], log["endpoint"], log["response_time_ms"]) for log in logs(client)]
    assert sorted(found) == sorted((address, "/a/{id}", None) for address in addresses * 4)


def test_a_file_in_no_format_stops_before_anything_is_sent(client: TestClient, tmp_path: Path) -> None:
    good = written(tmp_path / "good.log", combined())
    bad = written(tmp_path / "bad.log", "what is this?\n")
    with pytest.raises(
        LogError, match=r"(?s)bad.log is in none of these formats.*combined: .*what is this\?.*--format"
    ):
        read(client, good, bad)
    assert requests(client) == 0


def test_a_file_that_is_not_in_the_format_that_was_given_is_not_told_to_give_one(
    client: TestClient, tmp_path: Path
) -> None:
    log = written(tmp_path / "a.log", "what is this?\n")
    told = r"(?s)none of these formats:\n  {}: .*Look which log_format the access_log of this file names.*{} are known"
    for form, name in (("main", "main"), ("$remote_addr $msec $status $request", "own")):
        with pytest.raises(LogError, match=told.format(name, ", ".join(FORMATS))) as raised:
            read(client, log, form=form)
        assert "--format" not in str(raised.value)


def test_a_format_that_lets_clients_write_lines_is_refused_where_the_log_is_in_it_and_else_left_out(
    client: TestClient, tmp_path: Path
) -> None:
    own = '$remote_addr [$time_local] "$request" $status'
    both = f"log_format debug escape=none 'debug {own}'; log_format own '{own}';"
    line = '100.64.0.7 [01/Mar/2026:11:00:00 +0000] "GET /prices HTTP/1.1" 200\n'
    found = read(client, written(tmp_path / "a.log", line, line, f"debug {line}"), form=both)
    assert counts(found) == {"lines": 3, "added": 2}
    assert found["dropped"] == {"not in the format": {"lines": 1, "example": f"debug {line.rstrip()}"}}
    unsafe = written(tmp_path / "b.log", line, f"debug {line}", f"debug {line}")
    with pytest.raises(LogError, match=r"cannot be believed\. The log_format debug .*Take escape=json"):
        read(client, unsafe, form=both)


def test_a_missing_file_and_a_directory_say_what_to_do(client: TestClient, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"No such file or directory\. Look for it: ls -l"):
        read(client, str(tmp_path / "no.log"))
    with pytest.raises(LogError, match=r"Is a directory\. Name its files: .*/access\.log\*"):
        read(client, str(tmp_path))


def test_a_delivery_that_is_none_is_refused(client: TestClient) -> None:
    for body in (
        b"",
        b"{}\n",
        b'{"abouts":{}}\n0\tzz\n',
        b'{"abouts":{}}\n0\t' + b"a" * 32 + b"\t" + b"b" * 16 + b"\t1\t\t\n",
    ):
        answer = client.post("/analytics/log-lines", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unreadable_body")
    log = Log(Origin("s"), Tally())
    log.open_file(chosen("combined")[0])
    head = json.loads(delivery(log.read(combined().encode(), nanoseconds(NOW)), None).partition(b"\n")[0])
    for caller, claim, source, expected in (
        ("unknown", None, "none", 200),
        ("unknown", "boss@example.com", "serve_header", 200),  # believed nowhere unless it is declared
        ("local", "boss@example.com", "nginx_auth", 200),
        ("unknown", "boss@example.com", "none", 400),  # nobody's word
        ("unknown", None, "serve_header", 400),
        ("unknown", "boss@example.com", "whois", 400),  # which no log has
        ("person", "boss@example.com", "serve_header", 400),
    ):
        named = {"caller": [caller], "claim": [claim], "identity_source": [source]}
        content = json.dumps(head | {"abouts": head["abouts"] | named}) + "\n"
        assert client.post("/analytics/log-lines", content=content).status_code == expected, named
    for column, expected in (("page", 400), ("by_proxy", 200)):  # the latter is not known to older commands
        lacking = json.dumps(head | {"abouts": head["abouts"] | {column: []}}) + "\n"
        assert client.post("/analytics/log-lines", content=lacking).status_code == expected


def test_what_a_line_is_for_goes_by_what_nginx_answers_and_by_who_asks(client: TestClient, tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.log",
        combined("GET /health/../board/ HTTP/1.1"),
        combined("GET /analytics/mcp/..//../board/ HTTP/1.1"),
        combined("GET /prices HTTP/1.1", agent="tailspan-mcp/0.1.0"),
        combined(f"GET {'/1' * 511} HTTP/1.1", agent="curl/8"),
    )
    read(client, path)
    found = {(log["path"][:25], log["traffic"], log["page"]) for log in logs(client) if log["source"] == "log"}
    assert found == {
        ("/health/../board/", "page", "/board/"),
        ("/analytics/mcp/..//../boa", "page", "/board/"),
        ("/prices", "agent", None),
        ("/1/1/1/1/1/1/1/1/1/1/1/1/", "api", None),
    }


def test_a_log_of_which_no_line_is_like_another_is_read(client: TestClient, tmp_path: Path) -> None:
    """What travels of each is much longer than the line."""
    lines = [combined(f"GET /{n} HTTP/1.1".replace("0", "o"), address="fd7a::1", agent=f"{n}") for n in range(25_000)]
    path = written(tmp_path / "a.log", *lines)
    assert counts(read(client, path, origin={"service": "s" * 99})) == {"lines": 25_000, "added": 25_000}


def test_a_delivery_may_take_minutes(tmp_path: Path) -> None:
    """As where InfluxDB has much of that time, on a busy machine."""

    def minutes_later(request: httpx.Request) -> httpx.Response:
        if request.extensions["timeout"]["read"] < 300:
            raise httpx.ReadTimeout("timed out")
        if request.url.path == "/analytics/query":
            return httpx.Response(403)
        if request.method == "GET":
            return httpx.Response(200, json={"file": "0" * 32, "read_to": 0, "before": ""})
        told = {"lines": 1, "added": 1, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}
        return httpx.Response(200, json=told)

    path = written(tmp_path / "a.log", combined())
    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(minutes_later), timeout=30) as patient:
        assert counts(read(patient, path)) == {"lines": 1, "added": 1}


def test_what_was_sent_before_something_came_in_the_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.logfiles.PIECE", 1000)
    told = {"lines": 7, "added": 7, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}
    answers = iter([httpx.Response(200, json=told), httpx.Response(403, text="not any more")])

    def answer(request: httpx.Request) -> httpx.Response:
        place = {"file": "0" * 32, "read_to": 0, "before": ""}
        return httpx.Response(200, json=place) if request.method == "GET" else next(answers)

    path = written(tmp_path / "a.log", *[combined()] * 50)
    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as server:
        found = read(server, path)
        problem = f"http://x answered 403, and not as tailspan does: not any more. {URL_FIX}"
        assert (found["added"], found["problems"]) == (7, [problem])
    refusing = httpx.MockTransport(lambda _: httpx.Response(403))
    with httpx.Client(base_url="http://x", transport=refusing) as server, pytest.raises(UnsentError):
        read(server, path)


def _nobody_there(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused") from ConnectionRefusedError(111)


def _nameless(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno -2] Name or service not known") from socket.gaierror(-2)


TOKEN = AccessError("The token is missing.", fix="Send it.").body()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            _nobody_there,
            "No tailspan answers at http://x: [Errno 111] Connection refused. "
            "Start it, or say by TAILSPAN_URL where it is: tailspan serve",
        ),
        (_nameless, f"No tailspan answers at http://x: [Errno -2] Name or service not known. {URL_FIX}"),
        (
            lambda _: httpx.Response(404, json={"detail": "Not Found"}),
            f"""http://x answered 404, and not as tailspan does: {{"detail":"Not Found"}}. {URL_FIX}""",
        ),
        (
            lambda _: httpx.Response(200, html="<p>\x1b[1mHi"),
            f"http://x answered 200, and not as tailspan does: <p>\\x1b[1mHi. {URL_FIX}",
        ),
        (
            lambda _: httpx.Response(401, json=TOKEN),
            "http://x answered 401: The token is missing. Send it. "
            "This command sends what is in its own environment: TAILSPAN_TOKEN, or TAILSPAN_TOKEN_FILE.",
        ),
    ],
    ids=["refused", "name", "another service", "a page", "token"],
)
def test_who_does_not_answer_as_tailspan_is_told_with_the_setting_that_mends_it(
    answer: Callable[[httpx.Request], httpx.Response], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.sending.START_S", 0)
    monkeypatch.setattr("tailspan.sending.PAUSE_S", 0.01)
    path = written(tmp_path / "a.log", combined())
    with (
        httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as server,
        pytest.raises(UnsentError) as raised,
    ):
        read(server, path)
    assert str(raised.value) == told


def test_retention_forgets_lines_and_their_twins(serving: Serving, tmp_path: Path, database: Path) -> None:
    path = written(tmp_path / "a.log", combined())
    with serving() as client:
        read(client, path)
    with serving(now=NOW + timedelta(days=10), retention_days=1) as client:
        assert requests(client) == 0


def test_the_sidecars_own_address_is_health_once_it_is_declared(serving: Serving, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    with serving(now=THEN, settings=settings) as client:
        settings.write_text("")
        read(client, str(SIDECAR), now=THEN)
        assert len(logs(client, traffic="page")) == 1
        settings.write_text('[[checkers]]\naddress = "100.64.1.2"\n')
        assert {log["traffic"] for log in logs(client)} == {"health", "internal"}


def test_lines_from_the_device_that_nginx_runs_on_are_health_checks(serving: Serving, tmp_path: Path) -> None:
    own = json.loads(STATUS.read_bytes())["Self"]["TailscaleIPs"][0]
    path = written(tmp_path / "a.log", combined(address=own), combined(address="100.64.0.99"))
    nobody = dict.fromkeys(("user.name", "user.full_name", "tailscale.node", "tailscale.node.id", "tailspan.page"))
    known = {"tailscale.address": own, "tailspan.caller": "unknown", "tailspan.traffic": "api"}
    live_one = export(span(1, ANA | nobody | known | {"tailspan.identity.source": "none"}, ago=60))

    def told(client: TestClient) -> set[tuple[str, str, str]]:
        return {(log["ip"], log["source"], log["traffic"]) for log in logs(client)}

    def sources(client: TestClient) -> set[tuple[str, str]]:
        return {(one["name"], one["state"]) for one in client.get("/analytics/active").json()["sources"]}

    def is_known(client: TestClient) -> bool:
        return bool(sources(client) & {("tailnet local", "ok"), ("tailnet status", "ok")})

    others = {("100.64.0.99", "log", "page"), (own, "live", "api")}
    with (
        running(Control({"/status": Answer(STATUS.read_bytes())}, ("",), Answer({}, 401))) as there,
        serving(status=f"{there.url}/status") as client,
    ):
        read(client, path)
        client.post("/v1/traces", json=live_one)
        until(lambda: told(client) == {(own, "log", "health"), *others})
    tagged = tmp_path / "tagged.json"
    status = json.loads(STATUS.read_bytes())
    tagged.write_text(json.dumps(status | {"Self": status["Self"] | {"Tags": ["tag:proxy"]}}))
    with LocalAPI(tmp_path / "t.sock", STATUS.parent):
        file: dict[str, Any] = {"status": str(STATUS)}
        socket: dict[str, Any] = {"ts_socket": tmp_path / "t.sock", "peer": None}
        for known, traffic in (  # a file, and a socket, may be those of anybody's laptop, unless nginx is there
            (file, "page"),
            (file | {"nginx_log": (path,)}, "health"),
            ({"status": str(tagged)}, "health"),
            (socket, "page"),
            (socket | {"nginx_log": (path,)}, "health"),
        ):
            with serving(**known) as client:
                until(partial(is_known, client))
                assert told(client) == {(own, "log", traffic), *others}, known


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_a_log_of_another_user_says_who_may_be_let_in_and_how(tmp_path: Path) -> None:
    """Where logs lie alone, by a rule that holds after the next rotation; never for all of anybody's home."""
    path = written(tmp_path / "a.log", combined())
    Path(path).chmod(0o600)
    closed = next(parent for parent in reversed(Path(path).parents) if not parent.stat().st_mode & 0o001)
    assert _refused(path).endswith(f"Allow it: sudo setfacl -m u:nobody:x {closed}; sudo setfacl -m u:nobody:r {path}")
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (logs := Path(folder) / "logs").mkdir(0o755)
        path = written(logs / "a.log", combined())
        mend = f"Allow it: sudo setfacl -R -m u:nobody:rX -m d:u:nobody:rX {logs}"
        Path(path).chmod(0o600)
        assert _refused(path).endswith(f"It belongs to uid 0, group 0; this is uid 65534. {mend}")
        logs.chmod(0o700)
        assert _refused(path).endswith(mend)


def _refused(path: str) -> str:
    """What somebody is told who may not read it; a remark on where setfacl comes from is left out."""
    os.seteuid(65534)
    try:
        with pytest.raises(LogError) as refused:
            look(path, chosen(None), "UTC")
    finally:
        os.seteuid(0)
    assert f"{path} cannot be read: Permission denied. " in str(refused.value)
    return str(refused.value).removesuffix(" (it is in the package acl)")


def of_nginx(client: TestClient, *paths: str, **options: Any) -> dict[str, Any]:
    """Under the name that `tailspan backfill` takes where none is given."""
    return read(client, *paths, origin={"service": "nginx"}, **options)


@pytest.mark.parametrize("options", [{}, {"since_ns": 0}, {"until_ns": 2**61}, {"dry_run": True}])
def test_a_log_that_was_read_as_another_services_is_refused_until_that_is_taken_out(
    client: TestClient, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = written(tmp_path / "a.log", *(combined(f"GET /{n} HTTP/1.1") for n in range(3)))
    new = written(tmp_path / "b.log", combined("GET /b HTTP/1.1"))
    assert counts(of_nginx(client, path)) == {"lines": 3, "added": 3}
    found = read(client, path, new, **options)
    assert counts(found) == {"lines": 1, "added": 1}
    assert found["problems"] == [
        f"{path} was read as requests of nginx: as dashboard's they would be there a second time. "
        "Where dashboard is right, take those out, and read it then: tailspan remove-log nginx"
    ]
    assert counts(of_nginx(client, path, since_ns=0)) == {"lines": 3, "known": 3}
    assert client.delete("/analytics/logs/nginx").json() == {"service": "nginx", "requests": 3}
    assert counts(read(client, path)) == {"lines": 3, "added": 3}
    rest = 0 if options.get("dry_run") else 1
    assert (requests(client, service="nginx"), requests(client, service="dashboard")) == (0, 3 + rest)


def test_a_file_that_is_rotated_while_it_reads_is_told_and_the_others_are_read(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "access.log.1", tmp_path / "access.log"
    gone, rest = tmp_path / "access.log.0", combined() * 4
    for number, file in enumerate((gone, path, new)):
        written(file, combined(f"GET /{number} HTTP/1.1"), rest)

    def rotated_just_now(files: Iterable[LogFile]) -> list[LogFile]:
        found = in_order(files)
        gone.unlink()
        path.rename(tmp_path / "access.log.2")
        new.rename(path)
        return found

    monkeypatch.setattr("tailspan.backfill.in_order", rotated_just_now)
    found = read(client, str(gone), str(path), str(new))
    assert (counts(found), len(found["problems"])) == ({}, 3)
    told = f"{path} was rotated while this ran, and not read to its end. Run this again: nothing is added twice."
    assert told in found["problems"]
    monkeypatch.undo()
    assert counts(read(client, str(path), str(tmp_path / "access.log.2"))) == {"lines": 10, "added": 6, "known": 4}


def test_a_file_that_is_emptied_while_it_reads_is_told(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by copytruncate: the copy has the rest."""
    monkeypatch.setattr("tailspan.logfiles.PIECE", 1000)
    path = written(tmp_path / "access.log", *(combined(f"GET /{number} HTTP/1.1") for number in range(40)))
    real = Sender.send

    def emptied_just_now(sender: Sender, *of: Any) -> None:
        monkeypatch.undo()
        shutil.copy(path, tmp_path / "access.log.1")
        os.truncate(path, 0)
        real(sender, *of)

    monkeypatch.setattr(Sender, "send", emptied_just_now)
    found = read(client, path)
    assert 0 < found["added"] < 40
    assert (len(found["problems"]), "was rotated while this ran" in found["problems"][0]) == (1, True)
    assert read(client, str(tmp_path / "access.log.1"))["added"] == 40 - found["added"]


def test_what_is_no_file_is_told(client: TestClient, tmp_path: Path) -> None:
    """As nginx's image links its logs, and where what is linked to is not mounted."""
    output, nowhere, pipe = (tmp_path / name for name in ("output", "nowhere", "pipe"))
    output.symlink_to("/dev/null")
    nowhere.symlink_to(tmp_path / "gone")
    os.mkfifo(pipe)
    for path, told in (
        (output, f"{output} links to /dev/null, which is no file. nginx's image has that"),
        (nowhere, f"{nowhere} links to {tmp_path / 'gone'}, which is not there. Look for it, and mount it too: ls -l"),
        (pipe, f"{pipe} is no file. nginx's image has that: name another file in its access_log. A pipe: zcat FILE |"),
    ):
        with pytest.raises(LogError) as problem:
            read(client, str(path))
        assert told in str(problem.value)


def test_what_was_read_before_a_copy_is_in_doubt_after_it(client: TestClient, tmp_path: Path) -> None:
    first, then = (combined(at=f"01/Mar/2026:11:00:0{second} +0000") for second in (1, 2))
    long = written(tmp_path / "a.log.3", first, then)
    copy = written(tmp_path / "a.log.4", first)
    new = written(tmp_path / "a.log", then, combined("GET /b HTTP/1.1", at="01/Mar/2026:11:00:02 +0000"))
    found = read(client, long, copy, new)
    assert (counts(found), found["alike"]) == ({"lines": 5, "added": 3, "known": 2}, 1)


def test_to_remove_a_log_leaves_what_services_told_and_other_logs(client: TestClient, tmp_path: Path) -> None:
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    client.post("/v1/traces", json=export(live(ID, ago=1), span(1, attributes, ago=3600, took_ms=0)))
    mine = written(tmp_path / "a.log", identified(ID), combined(), *(identified(ID + n) for n in (1, 2)))
    other = written(tmp_path / "b.log", combined("GET /b HTTP/1.1"))
    assert counts(read(client, mine)) == {"lines": 4, "added": 2, "twins": 2}
    assert counts(of_nginx(client, other)) == {"lines": 1, "added": 1}
    assert client.delete("/analytics/logs/dashboard").json() == {"service": "dashboard", "requests": 2}
    assert {one["service"] for one in client.get("/analytics/coverage").json()["services"]} == {"nginx"}
    rows = client.get("/analytics/query?metrics=requests&dimensions=service,source&days=2").json()["rows"]
    told = {(row["service"], row["source"]): row["requests"] for row in rows if row["service"] != "tailspan"}
    assert told == {("dashboard", "live"): 2, ("nginx", "log"): 1}
    assert counts(of_nginx(client, other)) == {}
    assert counts(of_nginx(client, mine)) == {"lines": 4, "added": 3, "twins": 1}  # by its id alone
    assert client.delete("/analytics/logs/nginx").json()["requests"] == 4
    assert counts(read(client, mine)) == {"lines": 4, "added": 2, "twins": 2}
    assert client.delete("/analytics/logs/a%2Fb%20c").json() == {"service": "a/b c", "requests": 0}


def test_a_live_span_that_the_line_of_a_wrong_log_took_is_free_again(client: TestClient, tmp_path: Path) -> None:
    """The shop's log is read as the dashboard's, whose own has a line like it."""
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    client.post("/v1/traces", json=export(span(1, attributes, ago=3600, took_ms=0)))
    wrong = written(tmp_path / "shop.log", combined(agent="curl/8"))
    assert counts(read(client, wrong)) == {"lines": 1, "twins": 1}
    assert client.delete("/analytics/logs/dashboard").json()["requests"] == 0
    assert counts(read(client, written(tmp_path / "a.log", combined()))) == {"lines": 1, "twins": 1}


def test_who_was_forgotten_stays_so_when_a_log_is_removed(client: TestClient, tmp_path: Path) -> None:
    client.post("/v1/traces", json=export(live(ID, ago=1)))
    path = written(tmp_path / "a.log", identified(ID), identified(ID + 1))
    read(client, path)
    client.delete("/analytics/people/ana@example.com")
    client.delete("/analytics/logs/dashboard")
    assert counts(read(client, path)) == {"lines": 2, "known": 2}


def test_a_place_of_before_services_were_noted_is_read_on_from_and_removed_with_any_log(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = next(number for number, step in enumerate(MIGRATIONS) if "checkpoint ADD COLUMN service" in step)
    path = written(tmp_path / "a.log", combined())
    with duckdb.connect(str(tmp_path / "tailspan.duckdb")) as old:
        old.execute("CREATE TABLE migration (number INTEGER NOT NULL)")
        for number, step in enumerate(MIGRATIONS[:at], start=1):
            old.execute(step)
            old.execute("INSERT INTO migration VALUES (?)", [number])
        end = digest(Path(path).read_bytes())
        key = key_of(Path(path).read_bytes().rstrip(b"\n"))
        old.execute("INSERT INTO checkpoint VALUES (?, ?, ?)", [key, Path(path).stat().st_size, end])
    with serving() as client:
        assert counts(read(client, path)) == {}
        client.delete("/analytics/logs/nginx")
        assert counts(read(client, path)) == {"lines": 1, "added": 1}
        assert of_nginx(client, path)["problems"]
