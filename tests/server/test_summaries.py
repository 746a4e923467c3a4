"""Features that are called as services' own OpenAPI documents call them."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import tailspan
from tailspan import openapi
from tailspan.config import Settings
from tests.server.conftest import Serving
from tests.server.spans import NOW, export, span
from tests.server.test_reports import CALL, get
from tests.server.test_router import local

LISTING = {**CALL, "http.route": "/prices/{market}", "tailspan.page": None}


def document(summary: object) -> dict[str, Any]:
    return {"paths": {"/prices/{market}": {"get": {"summary": summary}}}}


def features(client: TestClient) -> dict[str, int]:
    rows = get(client, "query", metrics="deliberate_calls", dimensions="feature", days=1)["rows"]
    return {row["feature"]: row["deliberate_calls"] for row in rows}


def told(client: TestClient, service: str = "dashboard") -> tuple[str, str]:
    """State and message of the document, as answers have them."""
    sources = get(client, "active")["sources"]
    [found] = [(source["state"], source["message"]) for source in sources if source["name"] == f"openapi {service}"]
    return found


def test_a_summary_names_the_feature_of_its_service_method_and_route_alone(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "dashboard.json").write_text(json.dumps(document("Get Prices")))
    (tmp_path / "settings.toml").write_text('[openapi]\ndashboard = "dashboard.json"\n')
    with serving(settings=tmp_path / "settings.toml") as client:
        post, other = {**LISTING, "http.request.method": "POST"}, {**LISTING, "http.route": "/other"}
        client.post("/v1/traces", json=export(span(1, LISTING), span(2, LISTING), span(3, post), span(4, other)))
        client.post("/v1/traces", json=export(span(5, LISTING), service="heating"))
        assert features(client) == {"Get Prices": 2, "/prices/{market}": 2, "/other": 1}
        assert told(client) == ("ok", f"{tmp_path / 'dashboard.json'} is read.")


def test_a_changed_file_relabels_history_and_of_a_bad_one_the_last_good_content_holds(
    serving: Serving, tmp_path: Path
) -> None:
    file = tmp_path / "dashboard.json"
    (tmp_path / "settings.toml").write_text(f'[openapi]\ndashboard = "{file}"\n')
    with serving(settings=tmp_path / "settings.toml") as client:
        client.post("/v1/traces", json=export(span(1, LISTING)))
        assert features(client) == {"/prices/{market}": 1}
        why = f"[Errno 2] No such file or directory: '{file}'"
        assert told(client) == ("ignored", f"{file} cannot be read: {why}. Its last good content holds.")
        for second, summary in enumerate(("Get Prices", "Prices")):
            file.write_text(json.dumps(document(summary)))
            os.utime(file, (second, second))  # another time, whatever the clock's steps
            assert (features(client), told(client)[0]) == ({summary: 1}, "ok")
        for second, (text, why) in enumerate(BAD.items(), start=7):
            file.write_text(text)
            os.utime(file, (second, second))
            assert features(client) == {"Prices": 1}
            assert told(client) == ("ignored", f"{file} cannot be read: {why}. Its last good content holds.")
        file.write_text(json.dumps(document("Prices")))
        (tmp_path / "settings.toml").write_text("")
        assert features(client) == {"/prices/{market}": 1}


BAD = {
    "{": "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    "[]": 'it is no OpenAPI document: "paths" is missing',
    '{"paths": {"/a": {"get": {"summary": "\\ud800"}}}}': (
        "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"
    ),
    '{"paths": []}': 'it is no OpenAPI document: "paths" is missing',
}


@pytest.mark.parametrize("operations", [7, {"get": 7}, {"get": {}}, {"get": {"summary": 7}}, {"get": {"summary": ""}}])
def test_an_operation_without_a_summary_has_no_name(serving: Serving, tmp_path: Path, operations: object) -> None:
    (tmp_path / "dashboard.json").write_text(json.dumps({"paths": {"/prices/{market}": operations}}))
    (tmp_path / "settings.toml").write_text('[openapi]\ndashboard = "dashboard.json"\n')
    with serving(settings=tmp_path / "settings.toml") as client:
        client.post("/v1/traces", json=export(span(1, LISTING)))
        assert (features(client), told(client)[0]) == ({"/prices/{market}": 1}, "ok")


class Service(BaseHTTPRequestHandler):
    """Answers with its document only when it is let."""

    url: str
    summary = "Get Prices"
    status = 200
    let: threading.Event

    def do_GET(self) -> None:
        assert self.let.wait(10)
        body = json.dumps(document(self.summary)).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Service]]:
    """A service on a port of its own, that is asked at each answer."""
    monkeypatch.setattr(openapi, "EVERY_S", 0)
    monkeypatch.setattr(openapi, "AGAIN_S", 0)

    class Fresh(Service):
        let = threading.Event()

    server = HTTPServer(("127.0.0.1", 0), Fresh)
    Fresh.url = f"http://127.0.0.1:{server.server_port}/openapi.json"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield Fresh
    Fresh.let.set()
    read()
    server.shutdown()
    server.server_close()
    serving.join()


def read() -> None:
    """Waits until what is being read in the background is."""
    for thread in threading.enumerate():
        if thread.name.startswith("openapi "):
            thread.join(10)


def test_a_url_is_read_in_the_background_and_again_and_never_holds_up_an_answer(
    serving: Serving, tmp_path: Path, service: type[Service]
) -> None:
    (tmp_path / "settings.toml").write_text(f'[openapi]\ndashboard = "{service.url}"\n')
    with serving(settings=tmp_path / "settings.toml") as client:
        client.post("/v1/traces", json=export(span(1, LISTING)))
        assert features(client) == {"/prices/{market}": 1}
        assert told(client) == ("no data yet", f"{service.url} is being read.")
        service.let.set()
        read()
        assert (features(client), told(client)) == ({"Get Prices": 1}, ("ok", f"{service.url} is read."))
        read()
        service.summary = "Prices"
        features(client)
        read()
        assert features(client) == {"Prices": 1}
        read()
        service.status = 404
        features(client)
        read()
        why = f"Client error '404 Not Found' for url '{service.url}'"
        assert told(client) == ("ignored", f"{service.url} cannot be read: {why}. Its last good content holds.")
        assert features(client) == {"Prices": 1}


Host = Callable[..., FastAPI]


@pytest.fixture
def host(database: Path) -> Host:
    """Makes an app with a route of its own and the answers."""

    def made(**settings: Any) -> FastAPI:
        app = FastAPI(title="dashboard")

        @app.get("/prices/{market}")
        def get_prices(market: str) -> None: ...

        @app.get("/files/{path:path}", summary="Files")
        def get_file(path: str) -> None: ...

        app.include_router(tailspan.router(Settings(db=database, **settings), lambda: NOW))
        return app

    return made


def deliver(client: TestClient, service: str = "dashboard") -> None:
    file = {**LISTING, "http.route": "/files/{path:path}"}
    client.post("/analytics/v1/traces", json=export(span(1, LISTING), span(2, file), service=service))


def test_in_a_hosts_app_its_own_document_names_features_without_a_setting(host: Host) -> None:
    with local(host()) as client:
        deliver(client)
        assert features(client) == {"Get Prices": 1, "Files": 1}
        assert told(client) == ("ok", "The OpenAPI document of this app is read.")


def test_the_hosts_service_is_the_one_its_spans_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "energy")
    with local(host()) as client:
        deliver(client, "energy")
        assert (features(client), told(client, "energy")[0]) == ({"Get Prices": 1, "Files": 1}, "ok")


def test_the_settings_may_name_another_document_for_the_host(host: Host, tmp_path: Path) -> None:
    (tmp_path / "dashboard.json").write_text(json.dumps(document("Prices")))
    (tmp_path / "settings.toml").write_text('[openapi]\ndashboard = "dashboard.json"\n')
    with local(host(settings=tmp_path / "settings.toml")) as client:
        deliver(client)
        assert features(client) == {"Prices": 1, "/files/{path:path}": 1}
        assert told(client) == ("ok", f"{tmp_path / 'dashboard.json'} is read.")


def test_a_host_that_cannot_make_its_document_gets_its_answers_all_the_same(host: Host) -> None:
    app = host()

    def broken() -> dict[str, Any]:
        raise TypeError("no schema for a lock")

    app.openapi = broken  # type: ignore[method-assign]
    with local(app) as client:
        deliver(client)
        assert features(client) == {"/prices/{market}": 1, "/files/{path:path}": 1}
        assert told(client) == (
            "ignored",
            "The OpenAPI document of this app cannot be read: no schema for a lock. Its last good content holds.",
        )
