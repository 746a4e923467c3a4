"""Who has an address by `tailscale status --json`, from a file and from a URL."""

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tailspan_otel import background, instrument, status
from tailspan_otel.node import Node, from_status
from tailspan_otel.status import Listing, shown

from tests.otel.receiver import FIXTURES
from tests.otel.test_capture import Kept

CONTENT = (FIXTURES / "status.json").read_bytes()
V6 = "fd7a:115c:a1e0:ab12:4843:cd96:6240:"


class Status(ThreadingHTTPServer):
    """Answers every GET with `answer`, and counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = (200, CONTENT)
        self.modified: str | None = None
        self.asked = 0
        self.url = f"http://127.0.0.1:{self.server_port}/status"


class _Handler(BaseHTTPRequestHandler):
    server: Status

    def do_GET(self) -> None:
        self.server.asked += 1
        code, content = self.server.answer
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        if self.server.modified:
            self.send_header("Last-Modified", self.server.modified)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Written now, which a checkout's are not."""
    file = tmp_path / "status.json"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def served() -> Iterator[Status]:
    with Status() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_status_tells_of_every_node_as_whois_does() -> None:
    nodes = from_status(json.loads(CONTENT))
    assert {address: node.name for address, node in nodes.items() if ":" not in address} == {
        "100.64.0.1": "appsrv",
        "100.64.0.2": "alice-laptop",
        "100.64.0.3": "zoe-phone",
        "100.64.0.4": "ci-runner",
        "100.64.0.5": "ext-box.other-net.ts.net",
    }
    both = ("100.64.0.3", f"{V6}3")
    zoe = Node("TESTCTRL00000003", "zoe-phone", "zoe@example.com", "Zoë Müller 漢字", (), False, both, "status")
    assert [nodes[address] for address in both] == [zoe, zoe]
    assert (nodes["100.64.0.4"].tags, nodes["100.64.0.4"].login) == (("tag:ci",), None)
    assert (nodes["100.64.0.5"].shared, nodes["100.64.0.5"].login) == (True, "eve@other.example")


def test_of_headscales_status_logins_may_have_no_at_sign_and_addresses_are_the_same() -> None:
    listed = json.loads(CONTENT)
    listed["User"] = {number: user | {"LoginName": "nomail"} for number, user in listed["User"].items()}
    assert from_status(listed)["100.64.0.3"].login == "nomail"


@pytest.mark.parametrize("content", [{"Self": None, "Peer": None, "User": None}, {"Self": {}, "Peer": {}}])
def test_a_tailscaled_that_is_logged_out_lists_nobody(content: dict[str, Any]) -> None:
    assert from_status(content) == {}


def test_a_url_is_read_like_a_file(served: Status, file: Path) -> None:
    by_url, by_file = Listing(served.url), Listing(str(file))
    for listing in (by_url, by_file):
        listing.read()
    assert by_url.get("100.64.0.3") == by_file.get("100.64.0.3") != None  # noqa: E711  # both are the same node


@pytest.mark.parametrize(
    ("addresses", "own"),
    [(["100.64.0.1", f"{V6}1"], []), (["127.0.0.1", "100.64.0.1"], ["127.0.0.1"]), (["localhost", "x", ""], [])],
)
def test_a_status_of_another_machine_makes_nobody_local(file: Path, addresses: list[str], own: list[str]) -> None:
    told = json.loads(CONTENT)
    told["Self"]["TailscaleIPs"] = addresses
    file.write_text(json.dumps(told))
    listing = Listing(str(file))
    listing.read()
    assert (list(listing.own), listing.get("100.64.0.3") is not None) == (own, True)


def test_a_file_that_nobody_writes_any_more_tells_of_nobody_until_it_is_written_again(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = Listing(str(file))
    written = time.time() - status.OLD_S - 1
    os.utime(file, (written, written))
    listing.read()
    assert listing.get("100.64.0.3") is None
    when = f"{datetime.fromtimestamp(written, UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert [record.getMessage() for record in caplog.records] == [
        f"TAILSPAN_STATUS: {file} answers no `tailscale status --json`: ValueError: it was written {when}, "
        "and is to be written anew every minute or so"
    ]
    os.utime(file)
    listing.read()
    assert listing.get("100.64.0.3")
    os.utime(file, (written, written))
    listing.read()
    assert listing.get("100.64.0.3")  # as long as any that cannot be read again


def test_a_file_that_is_served_is_as_old_as_its_server_says(served: Status, caplog: pytest.LogCaptureFixture) -> None:
    listing, written = Listing(served.url), time.time() - status.OLD_S - 1
    served.modified = formatdate(written, usegmt=True)
    listing.read()
    assert listing.get("100.64.0.3") is None
    assert f"it was written {datetime.fromtimestamp(written, UTC):%Y-%m-%dT%H:%M:%SZ}" in caplog.text
    served.modified = formatdate(usegmt=True)
    listing.read()
    assert listing.get("100.64.0.3")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, b""), "HTTPError: HTTP Error 500: Internal Server Error"),
        ((200, b"<html>"), "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ((200, b"[]"), "AttributeError: 'list' object has no attribute 'get'"),
        ((200, b"{}"), "KeyError: 'Self'"),
    ],
)
def test_what_is_wrong_is_logged_once_and_what_was_known_lasts_under_a_minute(
    served: Status,
    answer: tuple[int, bytes],
    said: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: now[0]))
    listing = Listing(served.url)
    listing.read()
    served.answer = answer
    for _ in range(2):
        listing.read()
    assert [record.getMessage() for record in caplog.records] == [
        f"TAILSPAN_STATUS: {served.url} answers no `tailscale status --json`: {said}"
    ]
    assert listing.get("100.64.0.3")
    now[0] += 60
    assert listing.get("100.64.0.3") is None


def test_a_file_that_is_not_there_is_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listing = Listing(str(tmp_path / "nothing.json"))
    listing.read()
    assert listing.get("100.64.0.3") is None
    assert "No such file" in caplog.text


def test_a_secret_in_the_url_is_not_logged() -> None:
    assert shown("https://user:secret@host:8443/status?token=secret") == "https://host:8443/status"
    assert shown("/run/status.json") == "/run/status.json"


def test_a_service_without_tailscaled_names_its_callers_by_a_status_that_it_reads_beside_the_requests(
    served: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_SOCKET", "/nonexistent/tailscaled.sock")
    monkeypatch.setenv("TAILSPAN_STATUS", served.url)
    monkeypatch.setattr(background, "LEAST_S", 0.01)
    monkeypatch.setattr(status, "READ_EVERY_S", 0.02)
    app, kept = FastAPI(), Kept()
    instrument(app, exporter=kept)
    with TestClient(app, client=("127.0.0.1", 4000)) as client:
        while served.asked < 2:  # the first was read
            client.get("/early", headers={"X-Forwarded-For": "192.0.2.7"})
        client.get("/late", headers={"X-Forwarded-For": "100.64.0.4"})
    [late] = [attributes for attributes in kept.requests() if attributes["url.path"] == "/late"]
    names = ("tailspan.caller", "tailspan.identity.source", "tailscale.node", "tailscale.tags")
    assert tuple(map(late.get, names)) == ("tagged", "status", "ci-runner", ("tag:ci",))
