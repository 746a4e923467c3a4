"""`tailspan demo` as a newcomer runs it, and the stand-ins that it is made of."""

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from tailspan.demo import run
from tailspan.demo.localapi import CAPTURES, LocalAPI
from tailspan.demo.visitors import ATTACK, EVA, HOST, RUNNER, Visitor
from tests.conftest import DEADLINE_S, Launch, Program
from tests.otel.receiver import Receiver

FIXTURES = Path(__file__).with_name("fixtures")
SEEN = {
    "ana@example.com (ana-laptop) on /dashboard · Ana Ruiz",
    "leo@example.com (iphone) on /dashboard · Leo Sanz",
    "zoe@example.com (zoe-phone) on /dashboard · Zoë Müller 漢字",
    "eva@example.com (eva-desktop) on /dashboard · Eva Prat",
    f"mallory@example.com ({ATTACK}) on /dashboard · {ATTACK}",
    "ci-runner (tag:ci) is no person: POST /optimize/production/daily",
    "127.0.0.2 (unknown) is no person: GET /insights/savings-tracking",
}


NAMES = {line.split()[0] for line in SEEN}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: sockets are made in it."""
    with TemporaryDirectory(prefix="tailspan-test-") as folder:
        yield Path(folder)


def introduction(demo: Program) -> str:
    """What it says before the first visitor comes."""
    text = ""
    while not text.endswith("\n\n") and (line := demo.line()):
        text += line
    return text


def sightings(demo: Program, done: Callable[[set[str]], bool]) -> set[str]:
    """What it prints below the introduction until that is `done`, or it ends."""
    told: set[str] = set()
    while not done(told) and (line := demo.line()):
        told.add(line.rstrip("\n"))
    return told


def names(told: set[str]) -> set[str]:
    """Whom the lines are about. How many forged is told by a heartbeat: every 15 s, so now and then in time."""
    return {line.split()[0] for line in told if not line.startswith("forged identity headers")}


def left(folder: Path) -> list[int]:
    """The processes with this TMPDIR: the demo's own and its children."""
    mark = f"TMPDIR={folder}\0".encode()
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if mark in environ(process)]


def environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:  # it is gone already
        return b""


def test_the_demo_shows_every_visitor_and_ctrl_c_leaves_nothing(
    launch: Launch, ports_taken: None, tmp_path: Path
) -> None:
    demo = launch("tailspan", "demo", TMPDIR=str(tmp_path))
    ports = re.findall(r"http://127\.0\.0\.1:(\d+)/", introduction(demo))
    assert (len(ports), {"8000", "8100"} & set(ports)) == (4, set())
    told = sightings(demo, lambda told: told >= SEEN)
    assert (SEEN - told, names(told)) == (set(), NAMES)
    assert len(left(tmp_path)) == 4
    assert demo.end(signal.SIGINT) == (0, "stopped\n", "")
    assert (left(tmp_path), list(tmp_path.iterdir())) == ([], [])


def test_beside_the_stock_instrumentation_every_visitor_is_seen_and_sigterm_leaves_nothing(
    launch: Launch, ports_taken: None, tmp_path: Path
) -> None:
    demo = launch("tailspan", "demo", "--beside-opentelemetry", TMPDIR=str(tmp_path))
    introduction(demo)
    assert names(sightings(demo, lambda told: names(told) >= NAMES)) == NAMES
    assert demo.end(signal.SIGTERM) == (0, "stopped\n", "")
    assert (left(tmp_path), list(tmp_path.iterdir())) == ([], [])


def test_the_demo_stops_by_itself_and_keeps_its_database_where_asked(launch: Launch, tmp_path: Path) -> None:
    demo = launch("tailspan", "demo", "--for", "1", "--keep", tmp_path, TMPDIR=str(tmp_path))
    code, said, complaints = demo.ended()
    assert (code, complaints, said.splitlines()[-1]) == (0, "", f"stopped; the database is {tmp_path}/tailspan.duckdb")
    assert (left(tmp_path), [file.name for file in tmp_path.iterdir()]) == ([], ["tailspan.duckdb"])


def test_where_no_socket_can_be_made_the_demo_says_so(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    code, said, complaints = launch("tailspan", "demo", TMPDIR=str(folder)).ended()
    assert (code, said, "Set TMPDIR=/tmp" in complaints, list(folder.iterdir())) == (2, "", True, [])


def test_without_a_pipeline_in_the_environment_the_demo_says_what_is_missing(launch: Launch) -> None:
    code, said, complaints = launch("tailspan", "demo", "--influxdb").ended()
    assert (code, said, "INFLUXDB_V2_URL is not set" in complaints) == (2, "", True)
    code, said, complaints = launch("tailspan", "demo", "--influxdb", INFLUXDB_V2_URL="http://127.0.0.1:1").ended()
    assert (code, said, "OTEL_EXPORTER_OTLP_ENDPOINT is not set" in complaints) == (2, "", True)


def test_a_server_that_takes_long_is_asked_again() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    async def told() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(slow), base_url="http://server") as client:
            return await run.sightings(client)

    assert asyncio.run(told()) == ["The server takes long to answer; it is asked again."]


def test_a_killed_demo_takes_its_processes_along(launch: Launch, ports_taken: None, tmp_path: Path) -> None:
    demo = launch("tailspan", "demo", TMPDIR=str(tmp_path))
    introduction(demo)
    assert len(left(tmp_path)) == 4
    assert demo.end(signal.SIGKILL)[0] == -signal.SIGKILL
    deadline = time.monotonic() + DEADLINE_S
    while left(tmp_path):
        assert time.monotonic() < deadline


@pytest.fixture
def ports_taken() -> Iterator[None]:
    with ExitStack() as taken:
        for port in (8000, 8100):
            with suppress(OSError):  # somebody else has it: just as well
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


@pytest.fixture
def tailscaled(tmp_path: Path) -> Iterator[LocalAPI]:
    with LocalAPI(tmp_path / "tailscaled.sock") as api:
        yield api


def ask(folder: Path, path: str, **headers: str) -> tuple[int, str, bytes]:
    transport = httpx.HTTPTransport(uds=str(folder / "tailscaled.sock"))
    with httpx.Client(transport=transport, base_url="http://local-tailscaled.sock") as client:
        answer = client.get(f"/localapi/v0/{path}", headers=headers)
    return answer.status_code, answer.headers["content-type"], answer.content


def test_the_stand_in_for_tailscaled_answers_as_a_real_one_did(tailscaled: LocalAPI, tmp_path: Path) -> None:
    json_type, text_type = "application/json", "text/plain; charset=utf-8"
    iphone = (200, json_type, (CAPTURES / "whois-iphone.json").read_bytes())
    questions: dict[str, tuple[int, str, bytes]] = {
        "status": (200, json_type, (CAPTURES / "status.json").read_bytes()),
        "whois?addr=100.64.0.8&proto=tcp": iphone,
        "whois?addr=100.64.0.8%3A443": iphone,
        "whois?addr=fd7a:115c:a1e0:ab12:4843:cd96:6240:8": iphone,
        "whois?addr=%5Bfd7a:115c:a1e0:ab12:4843:cd96:6240:8%5D:443": iphone,
        "whois?addr=100.64.0.99": (404, text_type, b"no match for IP:port\n"),
        "whois": (400, text_type, b"missing 'addr' parameter\n"),
        "prefs": (404, text_type, b"404 page not found\n"),
    }
    assert {question: ask(tmp_path, question) for question in questions} == questions
    assert tailscaled.asked == [f"/localapi/v0/{question}" for question in questions]
    alone = json.loads(ask(tmp_path, "status?peers=false")[2])
    assert alone == {**json.loads((CAPTURES / "status.json").read_text()), "Peer": None, "User": None}
    for header in ({"Origin": "http://x"}, {"Referer": "http://x/"}, {"Host": "localhost"}):
        assert ask(tmp_path, "status", **header) == (403, text_type, b"invalid localapi request\n")


def test_the_stand_in_for_tailscaled_says_nothing_of_who_does_not_wait_for_an_answer(
    tailscaled: LocalAPI, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tailscaled.miss_s = 0.2
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(tmp_path / "tailscaled.sock"))
        hasty.sendall(b"GET /localapi/v0/whois?addr=100.64.0.99:1 HTTP/1.1\r\nHost: local-tailscaled.sock\r\n\r\n")
    deadline = time.monotonic() + DEADLINE_S
    while not tailscaled.asked:
        assert time.monotonic() < deadline
    assert ask(tmp_path, "whois?addr=100.64.0.98:1")[0] == 404  # which waits for the same lock
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("capture", "visitor"),
    [
        ("serve-unix-alice", Visitor("100.64.0.2", "curl/7.88.1", "alice@example.com", "Alice Architect")),
        ("serve-http-ci-runner", Visitor("100.64.0.4", "curl/7.88.1")),
    ],
)
def test_visitors_send_what_serve_sent(capture: str, visitor: Visitor) -> None:
    # of the capture, without what its client made up to see whether Serve passes it on
    made_up = {"host", "tailscale-ingress-src", "tailscale_user_login", "x-forwarded-port", "x-real-ip"}
    captured = {key.lower(): value for key, value in json.loads((FIXTURES / f"{capture}.json").read_text())["headers"]}
    expected = {key: value for key, value in captured.items() if key not in made_up}
    if visitor.login:
        expected["tailscale-user-profile-pic"] = ""  # hers is a picture
    expected |= {"x-forwarded-host": HOST, "x-forwarded-proto": "https"}  # captured on another host, without TLS
    assert {key.lower(): value for key, value in visitor.headers().items()} == expected


def test_beside_the_stock_instrumentation_a_request_has_one_server_span_and_it_is_theirs(
    launch: Launch, tailscaled: LocalAPI, tmp_path: Path
) -> None:
    path = tmp_path / "factory.sock"
    with Receiver() as receiver:
        settings = {"TS_SOCKET": str(tmp_path / "tailscaled.sock"), "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        service = launch("tailspan.demo.service", path, "--beside-opentelemetry", **settings)
        assert service.line()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as serve:
            for visitor, page in ((EVA, "/dashboard"), (RUNNER, "/insights/optimal-windows?days=2")):
                assert serve.get(page, headers=visitor.headers()).status_code == 200
        assert service.end() == (0, "", "")
        spans = [_who(span) for span in receiver.requests]
    theirs = "opentelemetry.instrumentation.fastapi"
    assert spans == [
        (theirs, "/dashboard", "eva@example.com"),
        (theirs, "/insights/optimal-windows", None),
    ]


def _who(span: dict[str, Any]) -> tuple[Any, ...]:
    attributes = span["attributes"]
    return (span["scope"], *(attributes.get(key) for key in ("http.route", "user.name")))
