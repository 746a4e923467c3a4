"""A log as the second witness: each request is there once, whoever tells of it, and whatever is read how often."""

import gzip
import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tailspan.delivery import delivery
from tailspan.demo.localapi import LocalAPI
from tailspan.errors import LogError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log, Tally
from tailspan.ingest.nginx import chosen
from tailspan.logfiles import look
from tailspan.query import nanoseconds
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


def test_a_user_is_believed_where_the_proxy_is_declared_to_let_no_client_write_one(
    serving: Serving, tmp_path: Path
) -> None:
    basic = written(tmp_path / "basic.log", combined(user="leo"), combined("GET /x HTTP/1.1", user="-"))
    head, tail = SIDECAR.read_text().splitlines()[-1].rsplit("TS-User: ", 1)
    assert tail == "-"
    named = ("zoe@example.com", "=?utf-8?q?Zo=C3=AB@example.com?=", "-", r"\x22", "")
    sidecar = written(tmp_path / "sidecar.log", *(f"{head}TS-User: {name}\n" for name in named))
    with serving(now=THEN) as client:
        assert counts(read(client, sidecar, now=THEN, origin={"users": True})) == {"lines": 5, "added": 5}
        found = [(log["user"], log["caller"], log["identity_source"]) for log in logs(client)]
        assert sorted(found, key=str) == [
            ('"', "person", "serve_header"),
            ("Zoë@example.com", "person", "serve_header"),
            ("zoe@example.com", "person", "serve_header"),
            (None, "unknown", "none"),
            (None, "unknown", "none"),
        ]
        assert counts(read(client, sidecar, now=THEN, since_ns=0)) == {"lines": 5, "known": 5}  # whatever is declared
        assert client.delete("/analytics/people/zoe@example.com").json()["requests"] == 1
    with serving() as client:
        read(client, basic, origin={"users": True})
        believed = {(log["user"], log["identity_source"]) for log in logs(client, service="dashboard")}
        assert believed == {(None, "none"), ("leo", "nginx_auth")}


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
    assert counts(read(client, path, since_ns=0)) == {"lines": 2, "twins": 2}
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
    for caller, login, source, expected in (
        ("unknown", None, "none", 200),
        ("person", "boss@example.com", "serve_header", 200),
        ("person", "boss@example.com", "none", 400),  # nobody's word
        ("unknown", "boss@example.com", "serve_header", 400),
        ("person", None, "serve_header", 400),
        ("unknown", None, "serve_header", 400),
        ("person", None, "none", 400),
        ("person", "boss@example.com", "whois", 400),  # which no log has
    ):
        named = {"caller": [caller], "login": [login], "identity_source": [source]}
        content = json.dumps(head | {"abouts": head["abouts"] | named}) + "\n"
        assert client.post("/analytics/log-lines", content=content).status_code == expected, named
    lacking = json.dumps(head | {"abouts": head["abouts"] | {"page": []}}) + "\n"
    assert client.post("/analytics/log-lines", content=lacking).status_code == 400


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
        if request.method == "GET":
            return httpx.Response(200, json={"file": "0" * 32, "read_to": 0, "before": ""})
        told = {"lines": 1, "added": 1, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}
        return httpx.Response(200, json=told)

    path = written(tmp_path / "a.log", combined())
    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(minutes_later), timeout=30) as patient:
        assert counts(read(patient, path)) == {"lines": 1, "added": 1}


def test_retention_forgets_lines_and_their_twins(serving: Serving, tmp_path: Path, database: Path) -> None:
    path = written(tmp_path / "a.log", combined())
    with serving() as client:
        read(client, path)
    with serving(now=NOW + timedelta(days=10), retention_days=1) as client:
        assert requests(client) == 0


def test_coverage_names_the_share_and_the_while_in_which_a_service_told_nothing(
    client: TestClient, tmp_path: Path
) -> None:
    minutes = range(0, 60, 5)  # of the hour before NOW
    told = [minute for minute in minutes if not 20 <= minute < 35]
    ids = {minute: ID + minute for minute in minutes}
    client.post("/v1/traces", json=export(*(live(ids[minute], ago=3600 - 60 * minute) for minute in told)))
    assert client.get("/analytics/coverage").json()["services"] == []  # no log was read of it
    hour = NOW - timedelta(hours=1)
    lines = [identified(ids[minute], at=hour + timedelta(minutes=minute, milliseconds=42)) for minute in minutes]
    lines.append(identified(ID + 99, at=hour + timedelta(minutes=58), request="GET / HTTP/2.0", status="302"))
    read(client, written(tmp_path / "a.log", *lines))
    answer = client.get("/analytics/coverage", params={"hours": 2}).json()
    gap = {"start": "2026-03-01T11:20:00.000Z", "end": "2026-03-01T11:31:00.000Z", "requests": 3}
    known = {"service": "dashboard", "environment": None}
    assert answer["services"] == [{**known, "requests": 13, "live": 9, "share": 0.6923, "gaps": [gap]}]
    assert answer["hours"] == [{**known, "hour": "2026-03-01T11:00:00.000Z", "requests": 13, "live": 9}]
    [source] = [source for source in answer["sources"] if source["name"] == "log dashboard"]
    assert source["state"] == "gaps"
    assert source["message"].startswith(
        "9 of the 13 requests that its proxy saw in the last 24 hours it told of itself (69.2%). "
        "Of these it told nothing, in UTC: 03-01 11:20 to 03-01 11:31 (3)."
    )


def test_coverage_of_a_log_without_ids_goes_by_its_pairs(client: TestClient, tmp_path: Path) -> None:
    attributes = ANA | {"http.route": "/prices", "url.path": "/prices"}
    client.post("/v1/traces", json=export(span(1, attributes, ago=3600)))
    path = written(tmp_path / "a.log", combined(), combined(at="01/Mar/2026:11:00:01 +0000"))
    read(client, path)
    [service] = client.get("/analytics/coverage").json()["services"]
    assert (service["requests"], service["live"], service["gaps"]) == (2, 1, [])


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
    path = written(tmp_path / "a.log", combined())
    Path(path).chmod(0o600)
    closed = next(parent for parent in reversed(Path(path).parents) if not parent.stat().st_mode & 0o001)
    os.seteuid(65534)
    try:
        with pytest.raises(LogError) as refused:
            look(path, chosen(None), "UTC")
    finally:
        os.seteuid(0)
    told = r"a\.log cannot be read: Permission denied\. .*Allow it: sudo setfacl -m u:\w+:rx "
    assert re.search(told + re.escape(str(closed)), str(refused.value)), refused.value
