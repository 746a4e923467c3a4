"""The second witness on the real parts: Debian's nginx and logrotate, a service, and a server that follows the log."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tailspan.ingest.nginx import FORMATS, own_format
from tests.conftest import Launch, Program
from tests.stack.engines import free_port, until
from tests.stack.nginx import ADDRESS, FILES, INSTALLED, Nginx, logrotate

CLIENT: Final = httpx.Client(trust_env=False, timeout=30)
CALLS: Final = {"/items/{}": "/items/{number}", "/both/{}": "/both/{number}", "/flaky/x{}": "/flaky/{name}"}
PHONE: Final = {ADDRESS: "100.64.0.8", "User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)"}


class Shop:
    """The service, which may be started again at its port, with or without telemetry."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self.port = free_port()
        self._program: Program | None = None

    def start(self, endpoint: str | None) -> None:
        switched_off = {} if endpoint else {"OTEL_TRACES_EXPORTER": "none"}
        self._program = self._launch(
            *("uvicorn", "tests.stack.shop:app", "--port", self.port, "--log-level", "warning"),
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint or "",
            OTEL_SERVICE_NAME="shop",
            TS_SOCKET="/nowhere",
            **switched_off,
        )
        until(self._answers, "the service does not answer")

    def _answers(self) -> bool:
        try:
            return CLIENT.get(f"http://127.0.0.1:{self.port}/docs").status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """What it has to tell it tells before."""
        assert self._program
        self._program.end()


@pytest.fixture
def nginx(tmp_path: Path, shop: Shop) -> Iterator[Nginx]:
    engine = Nginx(tmp_path / "nginx", [shop.port, shop.port])
    engine.start()
    yield engine
    engine.end()


@pytest.fixture
def shop(launch: Launch) -> Shop:
    return Shop(launch)


def server(launch: Launch, tmp_path: Path, log: Path) -> str:
    """The URL of one that follows the log."""
    program = launch(
        *("tailspan", "serve"),
        TAILSPAN_DB=str(tmp_path / "t.duckdb"),
        TAILSPAN_LISTEN="127.0.0.1:0",
        TS_SOCKET="/nowhere",
        TAILSPAN_NGINX_LOG=f"{log}*",
        TAILSPAN_NGINX_SERVICE="shop",
    )
    return program.line().split()[3]


def counted(url: str) -> Counter[tuple[str, str]]:
    """Requests of the shop by endpoint and source; those by which the tests know it lives left out."""
    asked: dict[str, str | int] = {
        "metrics": "requests",
        "dimensions": "endpoint,source",
        "service": "shop",
        "days": 2,
        "limit": 1000,
    }
    rows = CLIENT.get(f"{url}/analytics/query", params=asked).raise_for_status().json()["rows"]
    return Counter({(row["endpoint"], row["source"]): row["requests"] for row in rows if row["endpoint"] != "/docs"})


def visit(url: str, turn: int, made: Counter[tuple[str, str]], *, live: bool) -> None:
    """Seven requests, and what they should be counted as."""
    for path, route in (
        ("/items/{}", "/items/{number}"),
        ("/both/{}", "/both/{number}"),
        ("/flaky/x{}", "/flaky/{name}"),
    ):
        answer = CLIENT.get(f"{url}{path.format(turn)}?secret={turn}", headers=PHONE)
        assert answer.status_code == 200, answer.text
        logged = route.replace("{number}", "{id}").replace("{name}", f"x{turn}")
        made[route if live else logged, "live" if live else "log"] += 1
    if live:
        made["/items/{number}", "live"] += 1  # of its own
        made["/flaky/{name}", "live"] += 1  # whose answer nginx did not take
    assert CLIENT.get(f"{url}/board", headers=PHONE).status_code == 200
    made["/board", "live" if live else "log"] += 1
    for path in ("/", "/refused/please"):
        CLIENT.get(url + path, headers=PHONE)
    made["/", "log"] += 1
    made["/refused/please", "log"] += 1
    assert CLIENT.get(f"{url}/missing", headers=PHONE).status_code == 404
    made["/missing", "live" if live else "log"] += 1


def rotation(nginx: Nginx, how: str) -> None:
    text = (FILES / "logrotate").read_text()
    user = "root root" if os.getuid() == 0 else f"{os.getuid()} {os.getgid()}"
    for here, there in (
        ("/var/log/nginx/*.log", str(nginx.access_log)),
        ("/run/nginx.pid", str(nginx.pid_file)),
        ("create 0640 www-data adm", f"create 0640 {user}"),
    ):
        assert here in text
        text = text.replace(here, there)
    if how == "copytruncate":
        text = re.sub("create .*", "copytruncate", text)
    logrotate(nginx.folder, text)


def test_each_request_is_there_once_through_rotations_and_without_telemetry(
    launch: Launch, tmp_path: Path, shop: Shop, nginx: Nginx
) -> None:
    url = server(launch, tmp_path, nginx.access_log)
    made: Counter[tuple[str, str]] = Counter()
    shop.start(url)
    turns = iter(range(1000))
    for part, live in (("rename", True), ("copytruncate", False), ("rename", False), ("copytruncate", True)):
        shop.end()
        shop.start(url if live else None)
        for _ in range(3):
            for _ in range(3):
                visit(nginx.url, next(turns), made, live=live)
            rotation(nginx, part)
    shop.end()
    until(
        lambda: counted(url) == made,
        "not each request is there once",
        lambda: f"too many: {counted(url) - made}, too few: {made - counted(url)}",
        patience=90,
    )
    assert len(list(nginx.access_log.parent.glob("*.gz"))) > 3
    again = launch(
        *("tailspan", "backfill", "--service", "shop", "--json", "--since", "2020-01-01"),
        *sorted(nginx.access_log.parent.glob("access.log*")),
        TAILSPAN_URL=url,
    )
    code, said, complaints = again.ended()
    assert code == 0, complaints
    told = json.loads(said)
    assert (told["added"], told["dropped"], counted(url)) == (0, {}, made)
    assert told["lines"] == told["known"] + told["twins"] == 7 * next(turns)


def test_nginx_says_whose_child_a_request_is_and_nobody_else_does(shop: Shop, nginx: Nginx) -> None:
    shop.start(None)
    forged = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y", "X-Forwarded-For": "100.64.0.1"}
    names = ("User-Login", "User-Name", "User-Profile-Pic", "Funnel-Request", "App-Capabilities", "Headers-Info")
    forged |= {f"Tailscale-{name}": "boss@example.com" for name in names}
    heard = CLIENT.get(f"{nginx.url}/headers", headers=forged | PHONE).json()
    assert not [name for name in heard if name.startswith("tailscale-")]
    assert (heard["x-forwarded-for"], "tracestate" in heard) == ("100.64.0.8", False)
    line = json.loads(until(lambda: nginx.access_log.read_text().splitlines(), "no line")[-1])
    request_id = line["request_id"]
    assert heard["traceparent"] == f"00-{request_id}-{request_id[:16]}-01"


def test_nginx_starts_and_serves_while_tailspan_is_away(shop: Shop, nginx: Nginx) -> None:
    """Its fixture was ready although nobody knows the name `tailspan`, nor is there a resolver."""
    shop.start(None)
    assert f"include {INSTALLED}/proxy.conf;" in (FILES / "analytics.conf").read_text()
    assert CLIENT.get(f"{nginx.url}/items/1").json() == 1


def test_a_phone_shows_up_without_any_code(launch: Launch, tmp_path: Path, shop: Shop) -> None:
    """nginx's default log and a service that is not instrumented."""
    nginx = Nginx(tmp_path / "nginx", [shop.port], form="combined")
    nginx.start()
    url = server(launch, tmp_path, nginx.access_log)
    shop.start(None)
    CLIENT.get(f"{nginx.url}/board", headers=PHONE)
    until(lambda: counted(url), "the phone is not there")
    [log] = CLIENT.get(f"{url}/analytics/access-logs", params={"service": "shop"}).json()["logs"]
    shown = ("ip", "device", "page", "traffic", "status", "response_time_ms")
    assert [log[name] for name in shown] == ["100.64.0.8", "iPhone (?)", "/board", "page", 200, None]
    nginx.end()


def test_the_recommended_format_is_the_one_that_is_known() -> None:
    text = (FILES / "http.conf").read_text()
    written = re.search(r"log_format tailspan escape=json (.*?);", text, re.DOTALL)
    assert written and own_format(written[1]).text == FORMATS["tailspan"]


def test_the_sidecars_script_rotates(launch: Launch, tmp_path: Path, nginx: Nginx) -> None:
    url = server(launch, tmp_path, nginx.access_log)
    environment = {**os.environ, "EVERY": "0.3", "BYTES": "5000", "KEEP": "50"}
    rotating = subprocess.Popen([FILES / "rotate.sh", nginx.access_log], env=environment)
    try:
        for turn in range(3):
            for number in range(20):
                CLIENT.get(f"{nginx.url}/refused/{turn}/{number}", headers=PHONE)
            until(lambda: nginx.access_log.stat().st_size < 5000, "it does not rotate", patience=20)
    finally:
        rotating.kill()
        rotating.wait()
    assert len(list(nginx.access_log.parent.glob("*.gz"))) >= 3
    until(lambda: sum(counted(url).values()) > 40, "lines are missing", patience=20)
