"""The promise: a request becomes an answer. A service behind Tailscale Serve, OTLP, a server: each a process."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailspan.demo.localapi import LocalAPI
from tailspan.demo.visitors import EVA, FORGED, HOST, LEO, LINUX, Visitor
from tailspan.labels import LabelsFile
from tailspan.reports import Filters, Sources
from tailspan.reports.active import active as active_at
from tailspan.store.duckdb import DuckDB
from tests.conftest import Launch, Program
from tests.stack.engines import until

PAGES = ("/dashboard", "/costs", "/machines", "/weather")  # the machine may stall while one is visited
GAP_S = 5.0  # of the polling tab: even gaps are what makes it one
ATTEMPTS = 5  # in which the machine may start one of its calls late


@dataclass
class Flow:
    database: Path
    server: Program
    service: Program
    port: str  # URL of the service's loopback port
    serve: httpx.Client  # over the service's unix socket, as Tailscale Serve
    ask: httpx.Client

    def call(self, path: str, visitor: Visitor, page: str = "/dashboard") -> None:
        from_page = {"Referer": f"https://{HOST}{page}", "Sec-Fetch-Dest": "empty"}
        assert self.serve.get(path, headers=visitor.headers() | from_page).status_code == 200

    def active(self) -> list[dict[str, Any]]:
        return list(self.ask.get("/analytics/active").json()["active_users"])

    def logs(self, count: int) -> list[dict[str, Any]]:
        """The service's first `count` requests, oldest first, as soon as they are there."""
        deadline = time.monotonic() + 60
        while len(logs := self.ask.get("/analytics/access-logs?service=factory").json()["logs"]) < count:
            assert time.monotonic() < deadline, logs
        return list(reversed(logs))


@pytest.fixture
def flow(launch: Launch, tmp_path: Path) -> Iterator[Flow]:
    database, socket, tailscaled = tmp_path / "t.duckdb", tmp_path / "factory.sock", tmp_path / "tailscaled.sock"
    server = launch("tailspan", "serve", TAILSPAN_DB=str(database), TAILSPAN_LISTEN="127.0.0.1:0", TS_SOCKET="/nowhere")
    url = server.line().split()[3]
    with LocalAPI(tailscaled):
        service = launch("tailspan.demo.service", socket, TS_SOCKET=str(tailscaled), OTEL_EXPORTER_OTLP_ENDPOINT=url)
        port = service.line().strip()
        over_socket = httpx.HTTPTransport(uds=str(socket))
        with (
            httpx.Client(transport=over_socket, base_url="http://localhost") as serve,
            httpx.Client(base_url=url) as ask,
        ):
            yield Flow(database, server, service, port, serve, ask)


def test_a_phone_is_active_within_three_seconds_by_name_device_and_page(flow: Flow) -> None:
    def is_in_time(page: str) -> bool:
        flow.call("/insights/optimal-windows?days=7", LEO, page)
        answered = time.monotonic()
        until(lambda: [user["current_page"] for user in flow.active()] == [page], f"{page} is not shown")
        return time.monotonic() - answered < 3

    page = next(filter(is_in_time, PAGES), "none in time")
    log = flow.ask.get("/analytics/access-logs?service=factory").json()["logs"][0]
    assert flow.active() == [
        {
            "email": "leo@example.com",
            "device": "iphone",
            "device_guess": None,
            "last_seen": "just now",
            "last_seen_at": log["timestamp"],
            "current_page": page,
            "full_name": "Leo Sanz",
            "service": "factory",
        }
    ]


def test_an_open_tab_that_polls_was_last_seen_at_its_last_call_that_was_no_poll(flow: Flow) -> None:
    def polls(attempt: int) -> tuple[list[float], list[dict[str, Any]]]:
        """When a tab called, and what is known of it, if that was even to a twentieth; its page begins it anew."""
        flow.serve.get("/dashboard", headers=EVA.headers())
        called: list[float] = []
        due = time.monotonic()
        for _ in range(7):
            time.sleep(max(0, due - time.monotonic()))  # a poller does nothing else
            called.append(time.time())
            flow.call("/ree/prices/latest", EVA)
            due += GAP_S
        logs = flow.logs(8 * attempt)[-8:]
        starts = [datetime.fromisoformat(log["timestamp"]).timestamp() for log in logs[1:]]
        is_even = all(abs(then - one - GAP_S) < GAP_S / 20 for one, then in pairwise(starts))
        return (called, logs) if is_even else ([], [])

    called, logs = next(filter(any, map(polls, range(1, ATTEMPTS + 1))), ([], []))
    assert [log["traffic"] for log in logs] == ["page", "api", "api", "api", "poll", "poll", "poll", "poll"]
    [eva] = flow.active()
    assert (eva["email"], eva["last_seen_at"]) == ("eva@example.com", logs[3]["timestamp"])
    last_seen = datetime.fromisoformat(eva["last_seen_at"])
    assert 0 <= last_seen.timestamp() - called[2] + 0.001 < GAP_S  # the answer has whole milliseconds

    assert (flow.service.end()[0], flow.server.end()[0]) == (0, 0)
    with closing(DuckDB(flow.database)) as store:
        shortly_before, then = (
            active_at(Sources(store, LabelsFile()), Filters(), last_seen + timedelta(minutes=5) + moment).active_users
            for moment in (timedelta(seconds=-1), timedelta(milliseconds=1))
        )
    assert ([user.email for user in shortly_before], then) == (["eva@example.com"], [])


def test_a_forger_is_nobody_and_is_counted(flow: Flow) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), base_url=flow.port) as past_serve:
        past_serve.get("/insights/alerts", headers=FORGED.headers() | {"User-Agent": LINUX})
    [log] = flow.logs(1)
    varying = ("timestamp", "response_time_ms", "trace_id", "span_id")
    assert {key: value for key, value in log.items() if key not in varying} == {
        "user": None,
        "full_name": None,
        "device": "Linux (?)",
        "device_id": None,
        "device_guess": "Linux",
        "claim": None,
        "tags": None,
        "ip": "127.0.0.2",
        "caller": "unknown",
        "identity_source": "none",
        "proven": True,
        "service": "factory",
        "environment": None,
        "method": "GET",
        "endpoint": "/insights/alerts",
        "path": "/insights/alerts",
        "page": None,
        "status": 200,
        "traffic": "api",
        "source": "live",
    }
    assert flow.active() == []
    assert flow.service.end()[0] == 0  # its last heartbeat has the count
    [source] = flow.ask.get("/analytics/active").json()["sources"]
    [factory] = [service for service in source["services"] if service["service"] == "factory"]
    assert (factory["forged"], factory["stopped"]) == (1, True)
