"""Real processes: workers, reload, fork, and every way to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient
from tailspan_otel import attributes as name
from tailspan_otel import heartbeat, instrument
from websockets.sync.client import connect

from tests.otel.receiver import PATIENCE_S, Receiver, Span, client, end, serving
from tests.stack.engines import free_port

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from tailspan_otel import instrument

async def pid(request):
    return JSONResponse(os.getpid())

app = Starlette(routes=[Route("/{number}", pid)])
instrument(app)
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


class Service(NamedTuple):
    process: "subprocess.Popen[bytes]"
    url: str

    def stop(self, number: int) -> None:
        """Sends the signal and waits for the end."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@contextmanager
def service(folder: Path, endpoint: str, *options: str) -> Iterator[Service]:
    """The app under `python -m uvicorn` with a session of its own."""
    port = free_port()
    (folder / "app.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "critical", *options],
        cwd=folder,
        env=environment_for(endpoint),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Service(process, f"http://127.0.0.1:{port}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)


def environment_for(endpoint: str) -> dict[str, str]:
    return {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "TAILSPAN_USERSPACE": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def alive(receiver: Receiver) -> list[str]:
    """The heartbeats there are, the oldest first."""
    return list(dict.fromkeys(beat["span_id"] for beat in receiver.beats))


def stopped(receiver: Receiver) -> list[bool]:
    """Of each heartbeat, whether its last word was a clean stop."""
    return [receiver.beat(each)["attributes"][name.STOPPED] for each in alive(receiver)]


def paths(receiver: Receiver) -> list[str]:
    return [span["attributes"][name.PATH] for span in receiver.requests]


def test_each_worker_beats_every_span_arrives_once_and_sigterm_is_a_clean_stop_of_each(
    receiver: Receiver, tmp_path: Path
) -> None:
    with service(tmp_path, receiver.url, "--workers", "2") as running:
        receiver.wait(lambda: len(alive(receiver)) == 2)
        pids = set()
        for number in range(40):
            with client(running.url) as visitor:  # a connection each, which either worker may take
                pids.add(visitor.get(f"/{number}").json())
        running.stop(signal.SIGTERM)
    assert sorted(paths(receiver)) == sorted(f"/{number}" for number in range(40))
    assert len(pids) >= 1 and running.process.pid not in pids
    assert stopped(receiver) == [True, True]


def test_a_reload_is_a_clean_stop_and_a_new_heartbeat(receiver: Receiver, tmp_path: Path) -> None:
    with service(tmp_path, receiver.url, "--reload", "--reload-dir", str(tmp_path)) as running:
        receiver.wait(lambda: receiver.beats)
        with client(running.url) as visitor:
            visitor.get("/1")
        later = time.time() + 10
        os.utime(tmp_path / "app.py", (later, later))
        receiver.wait(lambda: len(alive(receiver)) == 2)
        assert stopped(receiver) == [True, False]
        with client(running.url) as visitor:
            visitor.get("/2")
        running.stop(signal.SIGTERM)
    assert paths(receiver) == ["/1", "/2"]
    assert stopped(receiver) == [True, True]


PRELOADED = """
import os, sys
from app import app
from starlette.testclient import TestClient

def serve(who):
    with TestClient(app) as client:
        for number in range(20):
            client.get(f"/{who}{number}")

serve(1)  # so that there is a connection to the receiver, and a heartbeat, before the fork
children = []
for who in (2, 3):
    if not (child := os.fork()):
        serve(who)
        sys.exit()  # as gunicorn's workers end: atexit runs
    children.append(child)
serve(4)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_after_a_fork_each_process_sends_its_own_spans_and_none_twice(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELOADED],
        cwd=tmp_path,
        env=environment_for(receiver.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(paths(receiver)) == sorted(f"/{who}{number}" for who in (1, 2, 3, 4) for number in range(20))
    assert stopped(receiver) == [True] * 4


def test_a_stop_waits_for_a_receiver_that_is_away_or_hangs_two_seconds_and_no_more(
    receiver: Receiver, tmp_path: Path
) -> None:
    receiver.open.clear()
    nowhere = f"http://127.0.0.1:{free_port()}"
    with service(tmp_path, receiver.url) as hanging, service(tmp_path, nowhere) as away:
        for running in (hanging, away):
            with client(running.url) as visitor:
                visitor.get("/1")
        began = time.monotonic()
        away.process.send_signal(signal.SIGINT)  # which ends by way of atexit, too
        hanging.stop(signal.SIGTERM)
        away.process.wait(PATIENCE_S)
        assert time.monotonic() - began < 10  # and not the half minute for which a batch is tried


def test_a_killed_process_loses_at_most_its_last_second_and_never_said_that_it_stopped(
    receiver: Receiver, tmp_path: Path
) -> None:
    answered: dict[str, float] = {}
    with service(tmp_path, receiver.url) as running:
        with client(running.url) as visitor:
            visitor.get("/0")
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                path = f"/{len(answered) + 1}"
                visitor.get(path)
                answered[path] = time.monotonic()
        killed = time.monotonic()
        running.stop(signal.SIGKILL)
    due = {path for path, at in answered.items() if at < killed - 1.0}
    assert len(due) > 10 and due <= set(paths(receiver))
    assert len(paths(receiver)) == len(set(paths(receiver)))
    assert stopped(receiver) == [False]


def test_without_a_lifespan_the_first_request_starts_the_heartbeat_and_ctrl_c_is_a_clean_stop(
    receiver: Receiver, tmp_path: Path
) -> None:
    with service(tmp_path, receiver.url, "--lifespan", "off") as running:
        with client(running.url) as visitor:
            visitor.get("/1")
        (span,) = receiver.take(1)
        receiver.wait(lambda: receiver.beats)
        running.stop(signal.SIGINT)
    (beat,) = alive(receiver)
    assert receiver.beat(beat)["start_ns"] <= span["start_ns"]
    assert (paths(receiver), stopped(receiver)) == (["/1"], [True])


@pytest.fixture
def beating(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """A heart that beats fast."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv(
        "TAILSPAN_USERSPACE", "false"
    )  # else its status is asked for, and httpcore leaves the socket open
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    return receiver


def phone() -> FastAPI:
    app = FastAPI(title="phone")

    @app.websocket("/call")
    async def call(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close()

    instrument(app)
    return app


def test_a_heartbeat_is_one_span_whose_end_grows(beating: Receiver) -> None:
    with serving(phone()):
        beating.wait(lambda: len(beating.beats) >= 4)
    first, *more = beating.beats
    fixed = ("trace_id", "span_id", "parent_id", "start_ns", "name", "kind", "resource")
    assert {json.dumps([beat[key] for key in fixed]) for beat in more} == {json.dumps([first[key] for key in fixed])}
    assert (first["parent_id"], first["kind"], first["resource"]["service.name"]) == ("", 1, "phone")
    ends = [beat["end_ns"] for beat in beating.beats]
    assert ends == sorted(set(ends)) and first["start_ns"] <= ends[0]
    assert [beat["attributes"][name.STOPPED] for beat in beating.beats] == [False] * (len(ends) - 1) + [True]
    assert more[-1]["attributes"] == {
        name.KIND: "heartbeat",
        name.SOURCE: "live",
        name.STOPPED: True,
        name.FORGED: 0,
        name.UNPROVEN: 0,
        name.DROPPED: 0,
        name.OPEN_REQUESTS: 0,
        name.SCHEMA: name.SCHEMA_VERSION,
    }


def open_requests(beat: Span) -> int:
    count: int = beat["attributes"][name.OPEN_REQUESTS]
    return count


def open_now(receiver: Receiver) -> int | None:
    """What the last beat says, if there is one."""
    return open_requests(receiver.beats[-1]) if receiver.beats else None


def test_requests_open_for_long_are_counted_while_they_are(beating: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LONG_NS", 200 * 10**6)
    with serving(phone()) as url:
        with connect(url.replace("http", "ws") + "/call") as first:
            with connect(url.replace("http", "ws") + "/call") as second:
                beating.wait(lambda: open_now(beating) == 2)
                second.send("bye")
            beating.wait(lambda: open_now(beating) == 1)
            first.send("bye")
        beating.wait(lambda: open_now(beating) == 0)
    spans = beating.take(2)
    assert [span["attributes"][name.TIMED] for span in spans] == [False, False]
    assert open_requests(beating.beats[0]) == 0
    began = min(span["start_ns"] for span in spans)
    assert all(beat["end_ns"] - began >= 200 * 10**6 for beat in beating.beats if open_requests(beat))


def test_each_hour_has_a_heartbeat_of_its_own_that_goes_on_where_the_last_ended(
    beating: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HOUR_NS", 200 * 10**6)
    with serving(phone()) as url:
        with client(url, local_address="127.0.0.2") as forger:
            forger.get("/", headers={"Tailscale-User-Login": "ceo@example.com"})
        beating.wait(lambda: len(alive(beating)) >= 3)
    hours = [beating.beat(each) for each in alive(beating)]
    assert len({hour["trace_id"] for hour in hours}) == len(hours)
    assert [hour["end_ns"] for hour in hours[:-1]] == [hour["start_ns"] for hour in hours[1:]]
    assert sum(hour["attributes"][name.FORGED] for hour in hours) == 1
    assert stopped(beating) == [False] * (len(hours) - 1) + [True]


def test_a_service_that_fails_to_start_never_beats(beating: Receiver) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    instrument(app)
    with pytest.raises(RuntimeError, match="no database"), TestClient(app):
        pass
    end(app)
    assert beating.attempts == 0


def test_a_request_that_came_before_the_stop_is_there_after_it(beating: Receiver) -> None:
    app = phone()
    with serving(app) as url, httpx.Client(base_url=url) as visitor:
        for _ in range(10):
            assert visitor.get("/nowhere").status_code == 404
    assert len(beating.requests) == 10
