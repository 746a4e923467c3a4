"""How the lines of a log come to the server, and who is there instead of it."""

import json
import re
import socket
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import cast

import httpx
import pytest
from rich.console import Console
from starlette.testclient import TestClient

from tailspan.backfill import backfill
from tailspan.delivery import LINES_PATH, delivery
from tailspan.errors import AccessError, BusyError, UnsentError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.outcome import Result, show
from tailspan.query import nanoseconds
from tests.server.logs import (
    combined,
    counts,
    read,
    written,
)
from tests.server.spans import NOW

URL_FIX = "TAILSPAN_URL says where tailspan is."


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
    for start, took, path, expected in (
        (b"9223372036854775807", b"", b"/a", 400),
        (b"7999999999999999999", b"9" * 18, b"/a", 200),
        (b"9" * 19, b"", b"/a", 400),
        (b"1772359200000000000", b"", b"/caf\xc3\xa9", 200),
        (b"1772359200000000000", b"", b"/caf\xe9", 400),
    ):
        row = b"\t".join((b"0", b"a" * 32, b"b" * 16, start, took, b"", path))
        answer = client.post("/analytics/log-lines", content=json.dumps(head).encode() + b"\n" + row + b"\n")
        assert answer.status_code == expected, answer.text
    for read_to, expected in ((2**63 - 1, 200), (2**63, 400)):
        place = {"file": "0" * 32, "read_to": read_to, "before": ""}
        content = json.dumps(head | {"place": place}) + "\n"
        assert client.post("/analytics/log-lines", content=content).status_code == expected
    for file, expected in (("0" * 32, 200), ("xyz", 422), ("0" * 33, 422)):
        assert client.get(f"/analytics/log-lines/{file}").status_code == expected
    for column, expected in (("page", 400), ("by_proxy", 200)):  # the latter is not known to older commands
        lacking = json.dumps(head | {"abouts": head["abouts"] | {column: []}}) + "\n"
        assert client.post("/analytics/log-lines", content=lacking).status_code == expected


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


AWAY = BusyError("http://c/v1/traces took nothing: Connection refused.", fix="Start what should receive there.")
LACKS = "http://x answered 503: http://c/v1/traces took nothing: Connection refused. Start what should receive there."


def lines_to(post: Callable[[httpx.Request], httpx.Response], path: str, console: Console) -> Result:
    """What becomes of that log's lines; the server knows its place."""

    def answer(request: httpx.Request) -> httpx.Response:
        place = {"file": "0" * 32, "read_to": 0, "before": ""}
        return httpx.Response(200, json=place) if request.url.path.startswith(f"{LINES_PATH}/") else post(request)

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as server:
        return backfill([path], server, console, formats=chosen(None), origin=Origin("dashboard"))


def test_that_a_server_takes_no_lines_yet_is_said_at_once_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailspan.sending.PAUSE_S", 0)
    said, heard = StringIO(), list[str]()

    def third_time(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(403)
        heard.append(said.getvalue())
        told = {"lines": 1, "added": 1, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}
        return httpx.Response(200, json=told) if len(heard) > 3 else httpx.Response(503, json=AWAY.body())

    result = lines_to(third_time, written(tmp_path / "a.log", combined()), Console(file=said, width=200))
    waits = f"{LACKS} Waiting 60 seconds for that.\n"
    assert (result.fates["added"], heard) == (1, ["", waits, waits, waits])


def test_lines_that_nobody_takes_are_told_in_the_closing_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailspan.sending.PATIENCE_S", -1)
    path, shown = written(tmp_path / "a.log", *[combined()] * 3), StringIO()
    result = lines_to(lambda _: httpx.Response(503, json=AWAY.body()), path, Console(quiet=True))
    problem = f"{LACKS} Run this again then: nothing is added twice."
    found = result.as_json()
    assert (found["lines"], found["added"], found["unsent"], found["problems"]) == (3, 0, 3, [problem])
    show(result, Console(file=shown, width=300))
    rows = [" ".join(row.split()) for row in shown.getvalue().splitlines()]
    assert rows[-2:] == ["not sent 3 were read, and are read again by another run", f"problem {problem}"]


def test_of_what_the_server_was_not_asked_about_no_coverage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in the middle of a run."""
    monkeypatch.setattr("tailspan.logfiles.PIECE", 1000)
    monkeypatch.setattr("tailspan.sending.START_S", -1)
    told = {"lines": 7, "added": 7, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}
    answers = iter([httpx.Response(200, json=told)])

    def once(request: httpx.Request) -> httpx.Response:
        return next(answers, None) or _nobody_there(request)

    path, shown = written(tmp_path / "a.log", *[combined()] * 50), StringIO()
    show(lines_to(once, path, Console(quiet=True)), Console(file=shown, width=300))
    names = [row.split("  ")[0].strip() for row in shown.getvalue().splitlines()]
    assert names == ["lines", "added", "already known", "live twins", "not sent", "problem"]


def test_addresses_of_no_known_device_that_are_too_many_to_name_are_counted(client: TestClient, tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", *(combined(address=f"100.64.0.{n}") for n in range(1, 8)))
    console = Console(quiet=True)
    result = backfill(
        [path], cast(httpx.Client, client), console, formats=chosen(None), origin=Origin("dashboard"), dry_run=True
    )
    show(result, Console(file=(shown := StringIO()), width=300))
    named = ", ".join(f"100.64.0.{n}" for n in range(1, 6))
    assert f"addresses of no known device: {named} and 2 more\n" in re.sub(" +\n", "\n", shown.getvalue())


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
