"""The second witness on the real parts: Debian's nginx and logrotate, a service, and a server that follows the log."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tailspan.errors import SettingError
from tailspan.ingest.line import asked
from tailspan.ingest.nginx import FORMATS, chosen
from tests.stack.engines import Collector, Engine, Influxd, free_port, program, small_disk, until
from tests.stack.nginx import ADDRESS, FILES, INSTALLED, Nginx, logrotate

# TAILSPAN_TEST_MINUTES=10 pytest tests/stack/test_nginx.py: thirty rotations over ten minutes
MINUTES: Final = float(os.environ.get("TAILSPAN_TEST_MINUTES", "0"))
ROTATIONS: Final = 30 if MINUTES else 8
LINES: Final = 7  # of a visit, in nginx's log
CLIENT: Final = httpx.Client(trust_env=False, timeout=30)
PHONE: Final = {ADDRESS: "100.64.0.8", "User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)"}
# whatever tailscaled runs on this machine meanwhile, it is none of theirs
NOWHERE: Final = {"TS_SOCKET": "/nowhere", "TAILSPAN_USERSPACE": "false"}
RELAY: Final = """
extensions:
  file_storage: {{directory: {folder}/queue, create_directory: true}}
  health_check: {{endpoint: "127.0.0.1:{health}"}}
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{http}"}}}}}}
exporters:
  otlp_http:
    traces_endpoint: ${{env:TO}}/v1/traces
    sending_queue: {{storage: file_storage}}
    retry_on_failure: {{initial_interval: 1s, max_interval: 2s, max_elapsed_time: 0}}
service:
  telemetry: {{metrics: {{level: none}}}}
  extensions: [file_storage, health_check]
  pipelines:
    traces: {{receivers: [otlp], exporters: [otlp_http]}}
"""


class Shop(Engine):
    """The service, which may be started again at its port, with or without telemetry."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(
            *(sys.executable, "-m", "uvicorn", "tests.stack.shop:app", "--port", self.port, "--log-level", "warning"),
            log=folder / "shop.log",
            ready=f"http://127.0.0.1:{self.port}/docs",
        )

    def serve(self, endpoint: str | None, **more: str) -> None:
        """What it has to tell it tells before it ends."""
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {"OTEL_TRACES_EXPORTER": "none"}
        self.environment = {"PATH": os.environ["PATH"], "OTEL_SERVICE_NAME": "shop", **NOWHERE, **there, **more}
        self.start()


class Server(Engine):
    """`tailspan serve`, which follows the shop's log. What it complains about is in its own."""

    def __init__(self, folder: Path, log: Path, **settings: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        super().__init__(
            *(sys.executable, "-m", "tailspan", "serve"),
            log=folder / "serve.log",
            ready=f"{self.url}/analytics/active",
            environment={
                "TAILSPAN_DB": str(folder / "t.duckdb"),
                "TAILSPAN_LISTEN": self.url.removeprefix("http://"),
                "TAILSPAN_NGINX_LOG": f"{log}*",
                "TAILSPAN_NGINX_SERVICE": "shop",
                **NOWHERE,
                **settings,
            },
        )


class Relay(Engine):
    """A stock collector between the shop and whoever it tells of itself, with its queue on disk."""

    to = ""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        http, health = free_port(), free_port()
        config = folder / "relay.yaml"
        config.write_text(RELAY.format(folder=folder, http=http, health=health))
        self.endpoint = f"http://127.0.0.1:{http}"
        super().__init__(
            *(program("collector", "otelcol-contrib"), "--config", config),
            log=folder / "relay.log",
            ready=f"http://127.0.0.1:{health}",
        )

    def pass_on(self, *, late: bool = False) -> None:
        """`late`: only once this is called again."""
        self.end()
        self.environment = {"PATH": os.environ["PATH"], "TO": f"http://127.0.0.1:{free_port()}" if late else self.to}
        self.start()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    engine = Shop(tmp_path)
    yield engine
    engine.kill()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    engine = Relay(tmp_path / "relay")
    yield engine
    engine.kill()


@pytest.fixture
def form() -> str:
    """Of nginx's log: with its requests' ids."""
    return "tailspan"


@pytest.fixture
def nginx(tmp_path: Path, shop: Shop, form: str) -> Iterator[Nginx]:
    engine = Nginx(tmp_path / "nginx", [shop.port, shop.port], form)
    engine.start()
    yield engine
    engine.end()


Follow = Callable[..., Server]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    """A server that follows this log, into a database or with these settings."""
    with ExitStack() as engines:

        def begin(log: Path, **settings: str) -> Server:
            server = Server(tmp_path, log, **settings)
            engines.callback(server.kill)
            server.start()
            return server

        yield begin


@pytest.fixture(params=["duckdb", "influxdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """A server's settings, and where services send: empty where that is the server itself."""
    with ExitStack() as engines:
        if request.param == "duckdb":
            yield {}, ""
            return
        influxd = Influxd(tmp_path / "influxd")
        engines.callback(influxd.kill)
        influxd.set_up()
        collector = Collector(tmp_path / "collector", influxd)
        engines.callback(collector.kill)
        collector.start()
        settings = {"URL": influxd.url, "TOKEN": influxd.token, "ORG": influxd.org, "BUCKET": influxd.bucket}
        there = {f"INFLUXDB_V2_{name}": value for name, value in settings.items()}
        yield {**there, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}, collector.endpoint


Counts = Counter[tuple[str, str]]


def counted(url: str) -> Counts:
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


def visit(url: str, turn: int) -> None:
    """As many requests as it has LINES."""
    for path in ("items/{}", "both/{}", "flaky/x{}"):
        answer = CLIENT.get(f"{url}/{path.format(turn)}?secret={turn}", headers=PHONE)
        assert answer.status_code == 200, answer.text
    for path, status in (("board", 200), ("", 302), ("refused/please", 403), ("missing", 404)):
        assert CLIENT.get(f"{url}/{path}", headers=PHONE).status_code == status


def expected(turn: int, *, live: bool) -> Counts:
    """What a visit should be counted as."""
    own = ["/", "/refused/please"]  # what nginx answered itself
    if not live:
        return Counter(
            (path, "log") for path in (*own, f"/flaky/x{turn}", "/items/{id}", "/both/{id}", "/board", "/missing")
        )
    told = ["/items/{number}", "/both/{number}", "/flaky/{name}", "/board", "/missing"]
    told += ["/items/{number}", "/flaky/{name}"]  # of its own, and one whose answer nginx did not take
    return Counter([*((path, "log") for path in own), *((path, "live") for path in told)])


def rotation(nginx: Nginx, how: str) -> None:
    text = (FILES / "logrotate").read_text()
    user = "root root" if os.getuid() == 0 else f"{os.getuid()} {os.getgid()}"
    for here, there in (
        ("/var/log/nginx/*.log", str(nginx.access_log)),
        ("/run/nginx.pid", str(nginx.pid_file)),
        ("create 0640 www-data adm", f"create 0640 {user}"),
        ("rotate 14", "rotate 100"),
    ):
        assert here in text
        text = text.replace(here, there)
    if how == "copytruncate":
        text = re.sub("create .*", "copytruncate", text)
    logrotate(nginx.folder, text)


def files(nginx: Nginx) -> list[Counter[bytes]]:
    """The lines of each file, and how often it has them."""
    contents = {path.name: path.read_bytes() for path in nginx.access_log.parent.glob("access.log*")}
    plain = (gzip.decompress(one) if name.endswith(".gz") else one for name, one in contents.items())
    return [Counter(one.splitlines()) for one in plain]


def written(nginx: Nginx, lines: int) -> None:
    """Until so many are: nginx answers first, and copytruncate may lose what it writes then."""

    def found() -> list[int]:
        return [one.total() for one in files(nginx)]

    until(lambda: sum(found()) == lines, f"not {lines} lines are there", lambda: str(found()))


def alike(nginx: Nginx) -> int:
    """How many lines another file has too, as far as one can tell: none, where lines have ids."""
    most: Counter[bytes] = Counter()
    for file in (found := files(nginx)):
        most |= file
    return sum(one.total() for one in found) - most.total()


@pytest.mark.parametrize("form", ["tailspan", "combined"])
def test_each_request_is_there_once_through_rotations_without_telemetry_and_with_telemetry_that_comes_late(
    tmp_path: Path, shop: Shop, nginx: Nginx, follow: Follow, store: tuple[dict[str, str], str], relay: Relay, form: str
) -> None:
    """Without ids: each at most once, and as many as are missing have their equals in the file before."""
    server = follow(nginx.access_log, **store[0])
    relay.to = store[1] or server.url
    made, meanwhile = Counts(), Counts()
    turn, how = 0, ""
    for number in range(ROTATIONS):
        part = ("live", "without", "live again", "late")[number * 4 // ROTATIONS]
        if part != how:
            how = part
            shop.end()
            if how == "late":
                there(server, meanwhile, alike(nginx))  # what waits in the relay then would come late, too
            relay.pass_on(late=how == "late")
            shop.serve(None if how == "without" else relay.endpoint)
        until_s, first = time.monotonic() + MINUTES * 60 / ROTATIONS, turn
        while turn < first + 3 or time.monotonic() < until_s:
            visit(nginx.url, turn)
            made += expected(turn, live=how != "without")
            meanwhile += expected(turn, live=how.startswith("live"))
            turn += 1
            time.sleep(MINUTES / 10)
        written(nginx, turn * LINES)
        rotation(nginx, ("rename", "copytruncate")[number % 2])
    shop.end()
    most = alike(nginx)
    assert most == 0 or form == "combined"
    there(server, meanwhile, most)
    relay.pass_on()
    there(server, made, most)
    assert len(list(nginx.access_log.parent.glob("*.gz"))) >= ROTATIONS - 1
    told = read_again(server, nginx)
    there(server, made, most)
    assert (told["added"], told["dropped"], told["lines"], told["alike"]) == (0, {}, turn * LINES, most)
    assert told["lines"] == told["known"] + told["twins"]
    assert "Traceback" not in server.log.read_text()
    if MINUTES:
        [coverage] = CLIENT.get(f"{server.url}/analytics/coverage").json()["services"]
        assert coverage["gaps"], coverage


def there(server: Server, wanted: Counts, missing: int = 0) -> None:
    """Until nothing is there too often, and at most so many are missing."""

    def is_there() -> bool:
        found = counted(server.url)
        return found <= wanted and found.total() + missing >= wanted.total()

    def told() -> str:
        found = counted(server.url)
        return f"too many: {found - wanted}, too few: {wanted - found}\n{log_source(server)}\n{server.said()}"

    until(is_there, "not each request is there once", told, patience=300)


def log_source(server: Server) -> dict[str, Any]:
    """What answers say of the log."""
    sources = CLIENT.get(f"{server.url}/healthz").json()["sources"]
    return dict(next(source for source in sources if source["name"] == "log"))


def read_again(server: Server, nginx: Nginx) -> dict[str, Any]:
    """What `tailspan backfill` says of all files, from their beginnings."""
    files = sorted(nginx.access_log.parent.glob("access.log*"))
    command = ["tailspan", "backfill", "--service", "shop", "--json", "--since", "2020-01-01", *map(str, files)]
    environment = {"PATH": os.environ["PATH"], "TAILSPAN_URL": server.url}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_over_the_night_in_which_clocks_are_set_back_nothing_is_there_twice_or_lost(
    tmp_path: Path, shop: Shop, nginx: Nginx, follow: Follow, store: tuple[dict[str, str], str]
) -> None:
    """From 02:59:40 to 02:00:05 in Madrid, for all of them; the last five seconds without telemetry.

    InfluxDB and its collector, which libfaketime cannot reach, take the times that they are told.
    """
    change_s = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
    offset_s = round(change_s - 20 - time.time())
    nginx.end()
    nginx.environment |= at(offset_s)
    nginx.start()
    server = follow(nginx.access_log, **store[0], **at(offset_s))
    made, turn = Counts(), 0
    for live, until_s in ((True, change_s), (False, change_s + 5)):
        shop.end()
        shop.serve((store[1] or server.url) if live else None, **at(offset_s))
        while time.time() + offset_s < until_s:
            visit(nginx.url, turn)
            made += expected(turn, live=live)
            turn += 1
    shop.end()
    there(server, made)
    assert nginx.access_log.read_bytes().count(b"\n") == turn * LINES
    asked = "metrics=requests&dimensions=day,hour_of_day&zone=Europe/Madrid&service=shop&days=2"
    hours = CLIENT.get(f"{server.url}/analytics/query?{asked}").raise_for_status().json()["rows"]
    assert {(row["day"], row["hour_of_day"]) for row in hours} == {("2026-10-25", 2)}
    told = read_again(server, nginx)
    assert (told["added"], told["dropped"], told["lines"]) == (0, {}, turn * LINES)
    there(server, made)


def at(offset_s: int) -> dict[str, str]:
    """The environment of a program in Madrid at another time, by libfaketime."""
    return {
        "LD_PRELOAD": str(program("faketime", "libfaketime.so.1")),
        "FAKETIME": f"{offset_s:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "TZ": "Europe/Madrid",
    }


def test_a_full_disk_is_told_with_what_mends_it(tmp_path: Path, shop: Shop, follow: Follow) -> None:
    with small_disk(tmp_path / "nginx", "1m") as place, ExitStack() as engines:
        nginx = Nginx(place, [shop.port])
        engines.callback(nginx.end)
        nginx.start()
        server = follow(nginx.access_log)
        engines.callback(server.end)
        CLIENT.get(f"{nginx.url}/refused/before", headers=PHONE)
        until(lambda: log_source(server)["state"] == "ok", "it is not read")
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        until(lambda: log_source(server)["state"] == "unreadable", "it is not told")
        assert f"Make room: df -h {nginx.access_log.parent};" in log_source(server)["message"]
        (place / "filler").unlink()
        until(lambda: log_source(server)["state"] == "ok", "it is still told")
        CLIENT.get(f"{nginx.url}/refused/after", headers=PHONE)
        until(lambda: ("/refused/after", "log") in counted(server.url), "the next one is not there")


def test_nginx_says_whose_child_a_request_is_and_nobody_else_does(shop: Shop, nginx: Nginx) -> None:
    shop.serve(None)
    forged = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y", "X-Forwarded-For": "100.64.0.1"}
    names = ("User-Login", "User-Name", "User-Profile-Pic", "Funnel-Request", "App-Capabilities", "Headers-Info")
    forged |= {f"Tailscale-{name}": "boss@example.com" for name in names}
    heard = CLIENT.get(f"{nginx.url}/headers", headers=forged | PHONE).json()
    assert not [name for name in heard if name.startswith("tailscale-")]
    assert (heard["x-forwarded-for"], "tracestate" in heard) == ("100.64.0.8", False)
    line = json.loads(until(lambda: nginx.access_log.read_text().splitlines(), "no line")[-1])
    request_id = line["request_id"]
    assert heard["traceparent"] == f"00-{request_id}-{request_id[:16]}-01"


def test_proxy_conf_in_place_of_debians_proxy_params_serves_and_beside_it_is_a_400(shop: Shop, nginx: Nginx) -> None:
    shop.serve(None)
    assert CLIENT.get(f"{nginx.url}/headers").status_code == 200
    conf = nginx.folder / "nginx.conf"
    ours, debians = f"include {nginx.folder}/tailspan/proxy.conf;", program("nginx", "etc") / "nginx" / "proxy_params"
    conf.write_text(conf.read_text().replace(ours, f"include {debians}; {ours}"))
    nginx.end()
    nginx.start()
    assert CLIENT.get(f"{nginx.url}/headers").status_code == 400


def test_a_service_knows_the_port_it_is_called_at_and_the_name_that_nginx_goes_by(shop: Shop, nginx: Nginx) -> None:
    shop.serve(None)
    address = nginx.url.removeprefix("http://")
    for target, said, told in (
        ("/headers", address, address),
        ("/headers", "dash.example", "dash.example"),
        ("/headers", "[fd7a::1]:8443", "[fd7a::1]:8443"),
        ("http://dash.example/headers", "admin.example", "dash.example"),
    ):
        connection = HTTPConnection(address, timeout=10)
        connection.putrequest("GET", target, skip_host=True)
        connection.putheader("Host", said)
        connection.endheaders()
        assert json.loads(connection.getresponse().read())["host"] == told
        connection.close()


def test_behind_serve_log_and_service_know_the_caller_that_serve_says(shop: Shop, nginx: Nginx) -> None:
    shop.serve(None)
    said = {"X-Forwarded-For": "100.64.0.3", "Tailscale-User-Login": "zoe@example.com"}
    heard = CLIENT.get(f"{nginx.behind_serve}/headers", headers=said).json()
    assert {name.lower(): heard[name.lower()] for name in said} == {name.lower(): value for name, value in said.items()}
    line = json.loads(until(lambda: nginx.access_log.read_text().splitlines(), "no line")[-1])
    assert line["remote_addr"] == "100.64.0.3"


@pytest.mark.parametrize(
    "target",
    [
        *("/refused", "/refused/", "//refused//a", "/health/../refused/b", "/refused/./c/.", "/refused/c/d/.."),
        *(
            "/refused/%2e%2e/refused/%2E/e",
            "/analytics/mcp/../../refused",
            "/refused/.well-known/..x/...",
            "/x/../refused/",
        ),
    ],
)
def test_a_path_means_what_nginx_answers_whatever_it_looks_like(target: str, nginx: Nginx) -> None:
    connection = HTTPConnection(nginx.url.removeprefix("http://"), timeout=10)
    connection.request("GET", target)
    answer = connection.getresponse()
    connection.close()
    what = asked({"request": f"GET {target} HTTP/1.1".encode()})
    assert what
    assert (answer.status, what.template) == (403, answer.headers["X-Uri"])


def test_what_answers_a_subrequest_is_not_taken_for_the_request(shop: Shop, nginx: Nginx, follow: Follow) -> None:
    url = follow(nginx.access_log).url
    shop.serve(url)
    assert CLIENT.get(f"{nginx.url}/guarded", headers=PHONE).status_code == 200
    shop.end()  # it tells what it has to tell
    until(lambda: len(counted(url)) == 2, "it is not there", lambda: str(counted(url)))
    assert counted(url) == {("/guarded", "log"): 1, ("/items/{number}", "live"): 1}


def test_a_subrequest_has_the_headers_of_a_request_but_its_id() -> None:
    proxy, sub = (
        [line for line in (FILES / name).read_text().splitlines() if line.startswith("proxy_set_header")]
        for name in ("proxy.conf", "subrequest.conf")
    )
    assert sub == [re.sub('(traceparent) ".+"', r'\1 ""', line) for line in proxy]


@pytest.mark.parametrize("form", ["combined"])
def test_set_up_while_it_runs_and_logged_twice_each_request_is_there_once(nginx: Nginx, follow: Follow) -> None:
    """As where http.conf is put beside the access_log that Debian's nginx.conf has."""
    url = follow(nginx.access_log).url
    asked = [f"/refused/{number}%22%5C%C3%A9?q={number}" for number in range(30)]

    def ask(times: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda path: CLIENT.get(nginx.url + path, headers=PHONE), asked * times))

    ask(1)
    conf = nginx.folder / "nginx.conf"
    once = f"access_log {nginx.access_log} combined;"
    conf.write_text(conf.read_text().replace(once, f"{once} access_log {nginx.access_log} tailspan;"))
    os.kill(int(nginx.pid_file.read_text()), signal.SIGHUP)

    def both() -> bool:
        CLIENT.get(f"{nginx.url}/refused/again", headers=PHONE)
        return '{"msec"' in nginx.access_log.read_text()

    until(both, "it does not reload")
    ask(5)
    lines = nginx.access_log.read_text().splitlines()
    requests = sum(not line.startswith("{") for line in lines)
    until(lambda: counted(url).total() == requests, "lost, or there twice", lambda: str(counted(url)))
    [log] = [one for one in CLIENT.get(f"{url}/analytics/active").json()["sources"] if one["name"] == "log"]
    assert log["state"] == "ok"
    assert f"{sum(line.startswith('{') for line in lines)} lines dropped: two formats in one file" in log["message"]


@pytest.mark.parametrize("form", ["combined"])
def test_what_comes_from_the_proxys_own_machine_is_there_once(
    shop: Shop, nginx: Nginx, follow: Follow, store: tuple[dict[str, str], str]
) -> None:
    server = follow(nginx.access_log, **store[0])
    shop.serve(store[1] or server.url)
    for address in ("127.0.0.1", "::1", "100.64.0.8"):
        assert CLIENT.get(f"{nginx.url}/items/1", headers=PHONE | {ADDRESS: address}).status_code == 200
    shop.end()
    told = read_again(server, nginx)
    assert (told["lines"], told["dropped"]) == (3, {})
    there(server, Counter({("/items/{number}", "live"): 3}))


def test_nginx_starts_and_serves_while_tailspan_is_away(shop: Shop, nginx: Nginx) -> None:
    """Its fixture was ready although nobody knows the name `tailspan`, nor is there a resolver."""
    shop.serve(None)
    assert f"include {INSTALLED}/proxy.conf;" in (FILES / "analytics.conf").read_text()
    assert CLIENT.get(f"{nginx.url}/items/1").json() == 1
    assert CLIENT.get(f"{nginx.url}/analytics/", timeout=20).status_code == 502  # nginx itself would wait for 30


def test_what_nginx_answers_itself_is_no_silence_and_what_it_finds_nobody_for_is(
    shop: Shop, nginx: Nginx, follow: Follow, store: tuple[dict[str, str], str]
) -> None:
    server = follow(nginx.access_log, **store[0])
    shop.serve(store[1] or server.url)

    def visit(path: str) -> None:
        for _ in range(12):
            CLIENT.get(f"{nginx.url}/{path}", headers=PHONE)
            time.sleep(0.2)

    def told() -> tuple[int, int, list[int]] | None:
        found = CLIENT.get(f"{server.url}/analytics/coverage").json()["services"]
        of = next(filter(lambda one: one["service"] == "shop", found), None)
        return (of["requests"], of["live"], [gap["requests"] for gap in of["gaps"]]) if of else None

    for path in ("board", "kept", "board"):
        visit(path)
    until(lambda: told() == (36, 24, []), "not told", lambda: str(told()), patience=120)
    shop.end()
    visit("board")
    until(lambda: told() == (48, 24, [12]), "no gap", lambda: str(told()), patience=120)


def test_a_user_counts_whose_password_is_right(tmp_path: Path, nginx: Nginx, follow: Follow) -> None:
    (settings := tmp_path / "settings.toml").write_text('[trusted_logs]\nshop = "$remote_user"')
    url = follow(nginx.access_log, TAILSPAN_SETTINGS=str(settings)).url
    for password, path, status in (
        ("right", "http.conf", 200),
        ("right", "nowhere", 404),
        ("wrong", "http.conf", 401),
        ("wrong", "old", 302),
    ):
        asked = CLIENT.get(f"{nginx.url}/private/{path}", auth=("ana@example.com", password))
        assert asked.status_code == status
    refused = CLIENT.request("TRACE", f"{nginx.url}/private/trace", auth=("ana@example.com", "wrong"))
    assert refused.status_code == 405
    named = {("/private/http.conf", 200, "ana@example.com")}
    nobody = {
        ("/private/nowhere", 404, None),
        ("/private/http.conf", 401, None),
        ("/private/old", 302, None),
        ("/private/trace", 405, None),
    }

    def told() -> set[tuple[Any, ...]]:
        logs = CLIENT.get(f"{url}/analytics/access-logs", params={"service": "shop"}).json()["logs"]
        return {(log["endpoint"], log["status"], log["user"]) for log in logs}

    until(lambda: told() == named | nobody, "not told", lambda: str(told()))


def test_a_phone_shows_up_without_any_code(tmp_path: Path, shop: Shop, follow: Follow) -> None:
    """nginx's default log and a service that is not instrumented."""
    nginx = Nginx(tmp_path / "nginx", [shop.port], form="combined")
    nginx.start()
    url = follow(nginx.access_log).url
    shop.serve(None)
    CLIENT.get(f"{nginx.url}/board", headers=PHONE)
    until(lambda: counted(url), "the phone is not there")
    [log] = CLIENT.get(f"{url}/analytics/access-logs", params={"service": "shop"}).json()["logs"]
    shown = ("ip", "device", "page", "traffic", "status", "response_time_ms")
    assert [log[name] for name in shown] == ["100.64.0.8", "iPhone (?)", "/board", "page", 200, None]
    nginx.end()


def test_the_recommended_format_is_the_one_that_is_known() -> None:
    text = (FILES / "http.conf").read_text()
    written = re.search(r"log_format tailspan escape=json (.*?);", text, re.DOTALL)
    assert written and [form.text for form in chosen(written[1])] == [FORMATS["tailspan"]]


@pytest.mark.parametrize(
    "text",
    [
        r"""'time:$time_local\thost:$remote_addr\tua:$http_user_agent\t' req:$request\tstatus:$status""",
        """'$remote_addr:$remote_port [$msec] "$request_method $scheme://$host:$server_port$request_uri" $status'""",
        """escape=json '$remote_addr [$time_iso8601] $request_method $scheme://$host$request_uri $status'""",
    ],
)
def test_a_log_format_of_ones_own_is_read_as_nginx_writes_it(text: str, nginx: Nginx, follow: Follow) -> None:
    nginx.end()
    conf = nginx.folder / "nginx.conf"
    log = f"access_log {nginx.access_log}"
    conf.write_text(conf.read_text().replace(f"{log} tailspan;", f"log_format own {text}; {log} own;"))
    nginx.start()
    url = follow(nginx.access_log, TAILSPAN_NGINX_FORMAT=str(conf)).url
    for path in ("refused?to=http://other:80/x", "refused/%22%09?a=b/c"):
        CLIENT.get(f"{nginx.url}/{path}", headers=PHONE | {"User-Agent": '"a"\tb'})
    until(lambda: counted(url).total() == 2, "not read", lambda: nginx.access_log.read_text())
    found = CLIENT.get(f"{url}/analytics/access-logs", params={"service": "shop"}).json()["logs"]
    told = {(log["ip"], log["method"], log["path"], log["status"]) for log in found}
    assert told == {("100.64.0.8", "GET", "/refused", 403), ("100.64.0.8", "GET", '/refused/" ', 403)}


def test_the_formats_of_included_files_are_in_what_nginx_says_of_itself(nginx: Nginx) -> None:
    conf, every = nginx.folder / "nginx.conf", nginx.folder / "all.conf"
    with pytest.raises(SettingError, match=r"has no log_format: .* sudo nginx -T > all.conf"):
        chosen(str(conf))
    with every.open("wb") as file:
        subprocess.run([*nginx.command, "-T"], stdout=file, stderr=subprocess.DEVNULL, check=True)
    assert [form.text for form in chosen(str(every))] == [FORMATS["tailspan"]]


def test_the_sidecars_script_rotates(nginx: Nginx, follow: Follow) -> None:
    server = follow(nginx.access_log)
    environment = {**os.environ, "EVERY": "0.3", "BYTES": "5000", "KEEP": "50"}
    rotating = subprocess.Popen([FILES / "rotate.sh", nginx.access_log], env=environment)

    def packed(files: int) -> bool:
        return len(list(nginx.access_log.parent.glob("*.gz"))) >= files

    try:
        for turn in range(3):
            for number in range(20):
                CLIENT.get(f"{nginx.url}/refused/{turn}/{number}", headers=PHONE)
            until(partial(packed, turn + 1), "it does not rotate")
    finally:
        rotating.kill()
        rotating.wait()
    until(lambda: sum(counted(server.url).values()) > 40, "lines are missing", lambda: str(log_source(server)))


@pytest.mark.parametrize(("failing", "torn"), [("cp", "$3"), ("gzip", "$2.gz")])
def test_the_sidecars_script_loses_nothing_where_there_is_no_room(tmp_path: Path, failing: str, torn: str) -> None:
    """And packs on once there is. Its turns are counted in place of waited for."""
    log, programs = tmp_path / "access.log", tmp_path / "bin"
    programs.mkdir()
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "BYTES": "10", "KEEP": "9"}
    _program(programs / "sleep", "read -r turn")
    packed = {f"{log}.{number}.gz": f"day {9 - number}\n" for number in (1, 2, 3)}
    for path, day in packed.items():
        Path(path).write_bytes(gzip.compress(day.encode()))

    def turns(*written: str) -> None:
        for line in written:
            with log.open("a") as file:
                file.write(line)
            subprocess.run([FILES / "rotate.sh", log], env=environment, input="\n" * 4, text=True, check=False)

    broken = _program(programs / failing, f'echo torn >"{torn}"; exit 1')
    turns("many at the day 9\n", "many at the day 10\n")
    for path, day in packed.items():
        assert gzip.decompress(Path(path).read_bytes()).decode() == day
    broken.unlink()
    turns("many at the day 11\n")
    days = [gzip.decompress(path.read_bytes()).decode() for path in sorted(tmp_path.glob("*.gz"), reverse=True)]
    assert "".join(days) == "".join(f"{'many at the ' * (day > 8)}day {day}\n" for day in range(6, 12))
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".gz"} == {"access.log", "bin"}


def _program(path: Path, does: str) -> Path:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path
