"""What a proxy saw of a service against what it told of itself: in whose log a request was, and every silence."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from tests.server.logs import combined, identified, read, written
from tests.server.spans import ANA, NOW, export, span

ID: Final = 0xABCDEF0123456789ABCDEF0000000000  # of requests, whose first digits are not zeros
HOUR: Final = NOW - timedelta(hours=1)


def live(at_s: float) -> dict[str, Any]:
    """The service's own span of the request that ended so many seconds after HOUR."""
    number = ID + round(at_s * 1000)
    known = span(number, ANA | {"http.route": "/prices", "url.path": "/prices"}, ago=3600 - at_s)
    return known | {"parentSpanId": f"{number:032x}"[:16], "spanId": f"{number + 10**6:032x}"[16:]}


def line(at_s: float, **changed: Any) -> str:
    return identified(ID + round(at_s * 1000), at=HOUR + timedelta(seconds=at_s, milliseconds=42), **changed)


def tell(client: TestClient, times: Iterable[float], **of: Any) -> None:
    assert client.post("/v1/traces", json=export(*map(live, times), **of)).status_code == 200


def coverage(client: TestClient, **asked: Any) -> dict[str, Any]:
    answer = client.get("/analytics/coverage", params={"hours": 2, **asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def silences(client: TestClient) -> list[tuple[float, float, int]]:
    """From when to when, in seconds after HOUR, and how many requests."""
    [service] = coverage(client)["services"]
    return [(_after(gap["start"]), _after(gap["end"]), gap["requests"]) for gap in service["gaps"]]


def _after(time: str) -> float:
    return (datetime.fromisoformat(time) - HOUR).total_seconds()


def test_coverage_names_the_share_and_the_while_in_which_a_service_told_nothing(
    client: TestClient, tmp_path: Path
) -> None:
    minutes = range(0, 60, 5)
    tell(client, [60 * minute for minute in minutes if not 20 <= minute < 35])
    assert coverage(client)["services"] == []  # no log was read of it
    lines = [line(60 * minute) for minute in minutes]
    lines.append(line(60 * 58, request="GET / HTTP/2.0", status="302"))
    read(client, written(tmp_path / "a.log", *lines))
    answer = coverage(client)
    gap = {"start": "2026-03-01T11:15:00.000Z", "end": "2026-03-01T11:35:00.000Z", "requests": 3}
    known = {"service": "dashboard", "environment": None}
    seen = {**known, "requests": 13, "live": 9, "by_proxy": 0}
    assert answer["services"] == [{**seen, "share": 0.692, "doubled": 0, "doubled_by": [], "gaps": [gap]}]
    assert answer["hours"] == [{**seen, "hour": "2026-03-01T11:00:00.000Z"}]
    [source] = [source for source in answer["sources"] if source["name"] == "log dashboard"]
    assert source["state"] == "gaps"
    assert source["message"].startswith(
        "9 of the 13 requests that its proxy saw in the last 24 hours it told of itself (69.2%). "
        "Of these it told nothing, in UTC: 03-01 11:15 to 03-01 11:35 (3)."
    )


def test_coverage_of_a_log_without_ids_goes_by_its_pairs(client: TestClient, tmp_path: Path) -> None:
    client.post("/v1/traces", json=export(span(1, ANA | {"http.route": "/prices", "url.path": "/prices"}, ago=3600)))
    read(client, written(tmp_path / "a.log", combined(), combined(at="01/Mar/2026:11:00:01 +0000")))
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["gaps"]) == (2, 1, [])


@pytest.mark.parametrize(
    ("every_s", "untold", "named"),
    [
        (1, range(70, 170), (69, 170, 100)),  # less than two minutes of the clock
        (1, range(70, 80), (69, 80, 10)),
        (1, range(70, 79), None),
        (20, range(100, 180, 20), None),
        (20, range(100, 181, 20), (80, 200, 5)),
        (1, range(590, 600), (589, 600, 10)),  # the last: until now, as far as anybody knows
        (1, range(10), (0, 10, 10)),
    ],
)
def test_ten_requests_in_a_row_or_more_than_a_minute_of_them_are_a_gap(
    client: TestClient, tmp_path: Path, every_s: int, untold: range, named: tuple[float, float, int] | None
) -> None:
    times = range(0, 600, every_s)
    tell(client, [at_s for at_s in times if at_s not in untold])
    read(client, written(tmp_path / "a.log", *map(line, times)))
    found = [(round(start), round(end), requests) for start, end, requests in silences(client)]
    assert found == ([named] if named else [])


@pytest.mark.parametrize(
    ("status", "upstream", "named"),
    [
        ("200", "200", True),
        ("200", "", False),  # as escape=json writes it
        ("200", "-", False),
        ("502", "502", True),
        ("502", "", True),  # nginx asks nobody whom it does not find: the service is away
    ],
)
def test_what_the_proxy_answered_itself_is_no_silence_of_the_service(
    client: TestClient, tmp_path: Path, status: str, upstream: str, *, named: bool
) -> None:
    tell(client, range(10))
    own = [line(at_s, status=status, upstream_status=upstream) for at_s in range(10, 30)]
    read(client, written(tmp_path / "a.log", *map(line, range(10)), *own))
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["by_proxy"]) == (30, 10, 0 if named else 20)
    assert [gap["requests"] for gap in service["gaps"]] == [20] * named
    assert ("told of itself (33.3%); 20 its proxy answered itself." in message(client)) is not named


def test_requests_of_one_second_are_no_gap_as_nobody_knows_their_order(client: TestClient, tmp_path: Path) -> None:
    """Each second has forty lines; of half of them, in turn, the service told."""
    spans = [
        span(number, ANA | {"http.route": "/prices", "url.path": "/prices"}, ago=3600 - number / 20)
        for number in range(1, 201)
    ]
    client.post("/v1/traces", json=export(*spans))
    seconds = [f"{HOUR + timedelta(seconds=number // 40):%d/%b/%Y:%H:%M:%S} +0000" for number in range(400)]
    read(client, written(tmp_path / "a.log", *(combined(at=second) for second in seconds)))
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["gaps"]) == (400, 200, [])


@pytest.mark.parametrize("of_log", [None, "production"])
@pytest.mark.parametrize("of_service", [None, "production"])
def test_what_a_service_told_of_counts_for_its_log_where_only_one_of_them_names_an_environment(
    client: TestClient, tmp_path: Path, of_log: str | None, of_service: str | None
) -> None:
    tell(client, range(30), environment=of_service)
    read(client, written(tmp_path / "a.log", *map(line, range(50))), origin={"environment": of_log})
    [service] = coverage(client)["services"]
    assert (service["environment"], service["requests"], service["live"]) == (of_log, 50, 30)
    assert [gap["requests"] for gap in service["gaps"]] == [20]


def test_each_environments_requests_count_for_the_log_of_that(client: TestClient, tmp_path: Path) -> None:
    for name, first in (("production", 0), ("staging", 100)):
        tell(client, range(first, first + 4), environment=name)
        path = written(tmp_path / name, *map(line, range(first, first + 5)))
        read(client, path, origin={"environment": name})
    tell(client, range(200, 203), environment="test")  # its log was not read
    found = {one["environment"]: (one["requests"], one["live"]) for one in coverage(client)["services"]}
    assert found == {"production": (5, 4), "staging": (5, 4)}
    [alone] = coverage(client, environment="staging")["services"]
    assert alone["environment"] == "staging"


def test_a_log_that_is_called_after_the_proxy_covers_the_services_behind_it(client: TestClient, tmp_path: Path) -> None:
    tell(client, range(4))
    tell(client, range(10, 13), service="heating")
    path = written(tmp_path / "a.log", *map(line, (*range(4), *range(10, 13))))
    assert read(client, path, origin={"service": "nginx"})["twins"] == 7
    [nginx] = coverage(client)["services"]
    assert (nginx["service"], nginx["requests"], nginx["live"], nginx["share"]) == ("nginx", 7, 7, 1)


def test_a_share_of_all_means_all(client: TestClient, tmp_path: Path) -> None:
    times = [number / 100 for number in range(3000)]
    tell(client, times[1:])
    assert read(client, written(tmp_path / "a.log", *map(line, times)))["coverage"] == 0.999
    answer = coverage(client)
    assert answer["services"][0]["share"] == 0.999
    [message] = [source["message"] for source in answer["sources"] if source["name"] == "log dashboard"]
    assert "(99.9%)" in message


def message(client: TestClient) -> str:
    """What answers say of the dashboard's log."""
    [source] = [source for source in coverage(client)["sources"] if source["name"] == "log dashboard"]
    return str(source["message"])


def test_a_gap_within_a_minute_is_told_in_seconds(client: TestClient, tmp_path: Path) -> None:
    tell(client, [at_s for at_s in range(60) if at_s not in range(10, 25)])
    read(client, written(tmp_path / "a.log", *map(line, range(60))))
    assert "told nothing, in UTC: 03-01 11:00:09 to 03-01 11:00:25 (15)." in message(client)


def test_a_service_that_told_nothing_at_all_is_said_to_be_not_instrumented(client: TestClient, tmp_path: Path) -> None:
    read(client, written(tmp_path / "a.log", *map(line, range(60))))
    assert message(client).endswith("(0.0%). It is not instrumented, or sent nothing all the time.")


def test_what_a_service_told_of_under_another_address_is_told_to_be_there_twice(
    client: TestClient, tmp_path: Path
) -> None:
    """nginx does not say to the service who calls: it sees nginx."""
    local = {key: value for key, value in ANA.items() if not key.startswith(("tailscale", "user"))}
    seen = local | {"http.route": "/prices", "url.path": "/prices", "client.address": "127.0.0.1"}
    spans = [span(n, seen | {"tailspan.caller": "local"}, ago=3600 - n) for n in range(100, 112)]
    client.post("/v1/traces", json=export(*spans))
    tell(client, [0, 1, 300])
    lines = [combined(at=f"{HOUR + timedelta(seconds=at_s):%d/%b/%Y:%H:%M:%S} +0000") for at_s in range(100, 112)]
    read(client, written(tmp_path / "a.log", *lines, *map(line, [0, 1, 300])))
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["doubled"], service["gaps"]) == (15, 3, 12, [])
    [source] = [source for source in coverage(client)["sources"] if source["name"] == "log dashboard"]
    assert source["state"] == "doubled"
    assert "12 are there twice" in source["message"]


def test_services_that_told_of_a_log_without_ids_which_is_called_after_the_proxy_are_told_to_be_there_twice(
    client: TestClient, tmp_path: Path
) -> None:
    """Whether nginx gives its requests' ids to them, or not."""
    seen = ANA | {"http.route": "/prices", "url.path": "/prices"}
    tell(client, range(6))
    spans = [span(n, seen, ago=3600 - n) for n in range(20, 26)]
    client.post("/v1/traces", json=export(*spans, service="heating"))
    moments = [HOUR + timedelta(seconds=at_s) for at_s in (*range(6), *range(20, 26), *range(200, 220, 2))]
    lines = [combined(at=f"{moment:%d/%b/%Y:%H:%M:%S} +0000") for moment in moments]
    read(client, written(tmp_path / "a.log", *lines), origin={"service": "nginx"})
    [nginx] = coverage(client)["services"]
    assert (nginx["service"], nginx["requests"], nginx["live"], nginx["doubled"]) == ("nginx", 22, 6, 12)
    assert [gap["requests"] for gap in nginx["gaps"]] == [10]


def of_server(number: int, at_s: float, **changed: Any) -> dict[str, Any]:
    """The server's own span of a request that somebody made it through that proxy, so many seconds after HOUR."""
    asked = ANA | {"http.route": "/analytics/active", "url.path": "/analytics/active", "tailspan.traffic": "internal"}
    return span(number, asked, ago=3600 - at_s) | changed


def test_of_a_site_that_is_not_instrumented_the_servers_own_requests_behind_its_proxy_say_nothing(
    client: TestClient, tmp_path: Path
) -> None:
    """nginx gave them their ids, as docs/backfill.md sets it up."""
    own = range(100, 105)
    spans = [of_server(ID + 1000 * n, n, parentSpanId=f"{ID:032x}"[:16], spanId=f"{n:016x}") for n in own]
    client.post("/v1/traces", json=export(*spans, service="tailspan"))
    asked = [line(at_s, request="GET /analytics/active HTTP/2.0") for at_s in own]
    assert read(client, written(tmp_path / "a.log", *map(line, range(60)), *asked))["twins"] == len(own)
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["doubled"], service["gaps"]) == (60, 0, 0, [])
    assert message(client) == (
        "0 of the 60 requests that its proxy saw in the last 24 hours it told of itself (0.0%). "
        "It is not instrumented, or sent nothing all the time."
    )


@pytest.mark.parametrize("passed_on", [True, False])
def test_what_the_server_told_of_itself_and_a_log_without_ids_has_too_is_no_reason_to_take_the_log_out(
    client: TestClient, tmp_path: Path, *, passed_on: bool
) -> None:
    own, parent = range(100, 105), {"parentSpanId": f"{ID:032x}"[:16]} if passed_on else {}
    spans = [of_server(ID + n, n, spanId=f"{n:016x}", **parent) for n in own]
    client.post("/v1/traces", json=export(*spans, service="tailspan"))
    times = [(HOUR + timedelta(seconds=at_s), "GET /prices HTTP/1.1") for at_s in range(60)]
    times += [(HOUR + timedelta(seconds=at_s), "GET /analytics/active HTTP/1.1") for at_s in own]
    lines = [combined(asked, at=f"{at:%d/%b/%Y:%H:%M:%S} +0000") for at, asked in times]
    read(client, written(tmp_path / "a.log", *lines))
    [service] = coverage(client)["services"]
    assert (service["requests"], service["live"], service["doubled"], service["gaps"]) == (65, 0, 5, [])
    assert service["doubled_by"] == ["tailspan"]
    assert message(client) == (
        "0 of the 65 requests that its proxy saw in the last 24 hours it told of itself (0.0%). "
        "It is not instrumented, or sent nothing all the time. 5 may be there twice: tailspan told of the same paths "
        "at the same moments, as it does behind that proxy. The ids of requests, in the log and passed on, tell: "
        "docs/backfill.md, http.conf, proxy.conf."
    )
