"""The page's files, who gets them, and the totals for those who may not see names."""

from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from fastapi import FastAPI
from hatchling.builders.wheel import WheelBuilder
from starlette.testclient import TestClient

import tailspan
from tailspan.config import Settings
from tailspan.page import CHECKOUT
from tests.server.conftest import Serving
from tests.server.spans import NOW, beat, export, span
from tests.server.tailnet import STATUS, until
from tests.server.test_access import ALICE, EVE, FUNNEL, LOOPBACK, RUNNER, served
from tests.server.test_usage import deliver

WIDGET = "/analytics/static/js/components/analytics-widget.js"
FILES = sorted(path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.rglob("*") if path.is_file())
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


@pytest.fixture
def anybody(serving: Serving) -> Iterator[TestClient]:
    """Somebody from elsewhere, without a token."""
    with serving(peer=("192.0.2.9", 50000)) as client:
        yield client


@pytest.mark.parametrize("path", ["/analytics/", *(f"/analytics/static/{name}" for name in FILES)])
def test_every_file_of_the_page_is_served_to_anybody_with_a_policy_and_an_etag(anybody: TestClient, path: str) -> None:
    answer = anybody.get(path)
    content = CHECKOUT / (path.removeprefix("/analytics/").removeprefix("static/") or "index.html")
    assert (answer.status_code, answer.content) == (200, content.read_bytes())
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css", "txt": "text/plain"}
    assert answer.headers["content-type"] == f"{types[content.suffix[1:]]}; charset=utf-8"
    wanted = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    assert {name: answer.headers[name] for name in wanted} == wanted
    for known in (answer.headers["etag"], f'"other", W/{answer.headers["etag"]}'):
        again = anybody.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert anybody.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert (anybody.head(path).status_code, anybody.head(path).content) == (200, b"")


def test_only_files_are_anybodys(anybody: TestClient) -> None:
    for path in ("/analytics/active", "/analytics/refresh", "/analytics/totals", "/analytics/dashboard-usage", "/docs"):
        assert anybody.get(path).status_code == 401
    for path in ("../pyproject.toml", "..%2Fpyproject.toml", "", "js", "nothing.js"):
        assert anybody.get(f"/analytics/static/{path}").status_code in (401, 404)
    assert anybody.get(WIDGET, headers={"Host": "evil.example"}).status_code == 400
    assert anybody.delete(WIDGET).status_code == 401


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(CHECKOUT.parent)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as packed:
        there = {name.removeprefix("tailspan/static/") for name in packed.namelist() if "/static/" in name}
    assert there == set(FILES)


def test_a_hosts_own_app_serves_the_page_too(database: Path) -> None:
    app = FastAPI()
    app.include_router(tailspan.router(Settings(db=database, ts_socket=Path("/nowhere"))))
    with TestClient(app, "http://127.0.0.1:8000", client=("192.0.2.9", 50000)) as client:
        assert client.get(WIDGET).status_code == 200
        assert client.get("/analytics/").headers["content-security-policy"] == POLICY
        assert client.get("/analytics/static/nothing.js").status_code == 404
        assert client.get("/analytics/totals").status_code == 401


@pytest.mark.parametrize(
    ("headers", "readers", "status"),
    [
        (ALICE, (), 200),
        (ALICE, ("zoe@example.com",), 200),  # no reader
        (EVE, (), 200),  # of another tailnet, and known by name
        (RUNNER, (), 200),
        (FUNNEL, (), 403),
        (served(None, "100.64.0.77"), (), 401),  # nobody knows who that is
    ],
)
def test_totals_are_for_whoever_is_identified(
    serving: Serving, headers: dict[str, str], readers: tuple[str, ...], status: int
) -> None:
    with serving(peer=LOOPBACK, readers=readers, status=str(STATUS)) as client:
        until(lambda: client.app.state.tailnet.posts[-1].look)  # type: ignore[attr-defined]  # it is our app
        assert client.get("/analytics/totals", headers=headers).status_code == status


def test_totals_are_the_numbers_of_the_usage_and_name_nobody(serving: Serving) -> None:
    with serving() as client:
        deliver(client)
        client.post("/v1/traces", json=export(span(20), beat(21)))
        usage, totals = (client.get(f"/analytics/{path}").json() for path in ("dashboard-usage", "totals"))
        [store] = totals.pop("sources")
        assert store == {key: usage["sources"][0][key] for key in ("name", "state", "message")}
        summary = ("period_days", "total_sessions", "unique_users", "total_accesses")
        assert totals.pop("summary") == {key: usage["summary"][key] for key in summary}
        alike = ("top_features", "accesses_by_day", "total_active", "start", "end", "zone")
        assert totals == {key: usage[key] for key in alike}
        assert usage["total_active"] == 1
        answer = client.get("/analytics/totals?user=ana@example.com")
        assert (answer.status_code, answer.json()["error"]["value"]) == (422, "user")


def test_the_usage_has_those_who_are_active_as_active_has_them(serving: Serving) -> None:
    with serving(now=NOW) as client:
        client.post("/v1/traces", json=export(span(1, ago=30)))
        client.post("/v1/traces", json=export(span(2, ago=20), service="other"))
        for parameters in ({}, {"service": "dashboard"}, {"service": "nothing"}):
            usage = client.get("/analytics/dashboard-usage", params=parameters).json()
            active = client.get("/analytics/active", params=parameters).json()
            assert client.get("/analytics/refresh", params=parameters).json() == active
            for key in ("active_users", "total_active"):
                assert usage[key] == active[key]
