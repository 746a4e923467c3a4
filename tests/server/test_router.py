"""The answers inside a host's own app, as docs/query.md shows it."""

import json
import re
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tailspan_otel import whois

import tailspan
from tailspan.config import Settings
from tailspan.demo.localapi import LocalAPI
from tests.conftest import Launch
from tests.server.conftest import Serving
from tests.server.spans import export, span
from tests.server.tailnet import STATUS, until

DOCS = Path(__file__).parents[2] / "docs" / "query.md"


HOSTING = """
import socket, uvicorn
from fastapi import FastAPI

app = FastAPI()

@app.get("/prices/{day}")
def prices(day: int) -> int:
    return day

%s
listening = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
"""


def snippet(start: str) -> str:
    """The one of the documentation that starts so."""
    [found] = re.findall(rf"```python\n({start}.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture
def host(database: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An app made by the two lines of the documentation."""
    monkeypatch.setenv("TAILSPAN_DB", str(database))
    app = FastAPI()
    exec(compile(snippet("import tailspan\n\n"), "docs/query.md", "exec"), {"app": app})
    return app


def local(app: FastAPI) -> TestClient:
    return TestClient(app, "http://127.0.0.1:8000", client=("127.0.0.1", 50000))


def test_where_tailscaled_runs_in_userspace_mode_loopback_is_nobodys_word(database: Path, tmp_path: Path) -> None:
    app = FastAPI()
    with LocalAPI(tmp_path / "tailscaled.sock") as tailscaled:
        tailscaled.status = json.dumps({**json.loads(tailscaled.status), "TUN": False}).encode()
        app.include_router(tailspan.router(Settings(db=database, ts_socket=tmp_path / "tailscaled.sock")))
    with local(app) as client:
        assert client.get("/analytics/active").status_code == 401
        assert client.delete("/analytics/people/ana@example.com").status_code == 401


def test_a_tailscaled_that_starts_after_the_server_is_asked_how_it_runs_all_the_same(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whois, "MODE_S", 0.02)
    app, socket = FastAPI(), tmp_path / "tailscaled.sock"
    app.include_router(tailspan.router(Settings(db=database, ts_socket=socket)))
    with local(app) as client:

        def answers(status: int) -> bool:
            return client.get("/analytics/active").status_code == status

        assert answers(200)
        for tun, status in ((False, 401), (True, 200)):
            with LocalAPI(socket) as tailscaled:
                tailscaled.status = json.dumps({**json.loads(tailscaled.status), "TUN": tun}).encode()
                until(partial(answers, status))


def test_two_lines_put_the_answers_into_a_hosts_app(host: FastAPI) -> None:
    with local(host) as client:
        assert client.post("/analytics/v1/traces", json=export(span(1))).status_code == 200
        question = {"metrics": "requests", "start": "2026-01-01", "end": "2026-12-31"}
        assert client.get("/analytics/query", params=question).json()["rows"] == [{"requests": 1}]
        assert {"/analytics/active", "/analytics/query"} <= client.get("/openapi.json").json()["paths"].keys()


def test_in_a_hosts_app_errors_have_the_same_shape_and_leave_its_own_alone(host: FastAPI) -> None:
    with local(host) as client:
        answer = client.get("/analytics/query", params={"metrics": "request"})
        assert (answer.status_code, answer.json()["error"]["fix"]) == (422, "Did you mean 'requests'?")
        answer = client.get("/analytics/access-logs", params={"hours": "0"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "hours is '0'.")
        assert (
            client.post("/analytics/v1/traces", content=b"no", headers={"Content-Type": "text/plain"}).status_code
            == 415
        )
        assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_in_a_hosts_app_a_caller_from_elsewhere_needs_the_token_too(host: FastAPI) -> None:
    with TestClient(host, "http://127.0.0.1:8000", client=("100.64.0.9", 50000)) as client:
        for answer in (client.get("/analytics/active"), client.post("/analytics/v1/traces", json=export(span(1)))):
            assert answer.status_code == 401


def test_in_a_hosts_app_people_of_the_tailnet_read_its_analytics_and_nobody_else(
    database: Path, tmp_path: Path
) -> None:
    """As a dashboard card does in a browser behind Serve; the app's own routes are nobody's business here."""
    app = FastAPI()
    settings = Settings(
        db=database.with_name("own.duckdb"),
        ts_socket=Path("/nowhere"),
        status=str(shutil.copyfile(STATUS, tmp_path / "status.json")),
        allowed_hosts=("box.ts.net",),
    )
    app.include_router(tailspan.router(settings))
    app.add_api_route("/prices", lambda: 1)
    alice = {"Tailscale-User-Login": "alice@example.com", "X-Forwarded-For": "100.64.0.2", "Host": "box.ts.net"}
    eve = alice | {"Tailscale-User-Login": "eve@other.example", "X-Forwarded-For": "100.64.0.5"}
    with local(app) as client:
        until(lambda: client.get("/analytics/tailnet/devices").json()["devices"])
        found = [client.get("/analytics/dashboard-usage", headers=who) for who in (alice, eve)]
        assert [answer.status_code for answer in found] == [200, 403]
        assert client.delete("/analytics/people/ana@example.com", headers=alice).status_code == 403
        assert client.post("/analytics/v1/traces", json=export(span(1)), headers=alice).status_code == 403
        assert client.get("/prices", headers=eve).json() == 1


def test_an_app_that_keeps_its_own_spans_stops_cleanly_and_its_last_word_is_kept(
    launch: Launch, tmp_path: Path, database: Path, serving: Serving
) -> None:
    (tmp_path / "hosting.py").write_text(HOSTING % snippet("import tailspan\nfrom tailspan_otel"))
    known = {"PYTHONPATH": str(tmp_path), "TAILSPAN_DB": str(database), "OTEL_SERVICE_NAME": "prices"}
    running = launch("hosting", TAILSPAN_USERSPACE="false", **known)
    url = running.line().strip()
    with httpx.Client(base_url=url) as visitor:
        for day in range(3):
            login = {"Tailscale-User-Login": "ana@example.com", "X-Forwarded-For": "100.64.0.7"}
            assert visitor.get(f"/prices/{day}", headers=login).json() == day
    assert running.end()[1:] == ("", "")
    with serving(now=datetime.now(UTC)) as client:
        answer = client.get("/analytics/access-logs").json()
    assert [(log["user"], log["path"]) for log in answer["logs"]] == [
        ("ana@example.com", f"/prices/{day}") for day in (2, 1, 0)
    ]
    [service] = answer["sources"][0]["services"]
    assert (service["service"], service["stopped"], service["dropped"]) == ("prices", True, 0)
