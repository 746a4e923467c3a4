"""Whose the lines of a log are, and which of them are checks."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tailspan.demo.localapi import LocalAPI
from tests.server.conftest import Serving
from tests.server.logs import ID, SIDECAR, THEN, combined, counts, identified, live, logs, read, requests, written
from tests.server.spans import ANA, export, span
from tests.server.tailnet import STATUS, Answer, Control, running, until


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


def test_a_user_whose_password_nginx_did_not_look_at_names_nobody(serving: Serving, tmp_path: Path) -> None:
    """What it may answer before that: redirects, refusals, limits. Only of the others it knows who asked."""
    statuses = (101, 200, 206, 301, 302, 304, 308, 400, 401, 403, 404, 405, 413, 429, 499, 500, 501, 502, 503)
    path = written(
        tmp_path / "basic.log",
        *(combined(f"GET /{status} HTTP/1.1", status, user="ana@example.com") for status in statuses),
    )
    settings = written(tmp_path / "settings.toml", '[trusted_logs]\ndashboard = "$remote_user"')
    with serving(settings=Path(settings)) as client:
        read(client, path)
        named = {log["status"] for log in logs(client) if log["user"] == "ana@example.com"}
        assert (named, len(logs(client))) == ({101, 200, 206, 304}, len(statuses))
        [ana] = client.get("/analytics/access-logs?user=ana@example.com&limit=1").json()["logs"]
        assert ana["caller"] == "person"


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
