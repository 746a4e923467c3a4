"""A log under a wrong name is taken out again, and nothing else with it."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from starlette.testclient import TestClient

from tailspan.logfiles import digest, key_of
from tailspan.store.file import MIGRATIONS
from tests.server.conftest import Serving
from tests.server.logs import ID, combined, counts, identified, live, read, requests, written
from tests.server.spans import ANA, export, span


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
