"""What the router adds to the memory of the app it is in: `scripts/bench router`.

The demo's service, a process each time: once it sends its spans to a `tailspan serve`, once it has
`app.include_router(tailspan.router(config))` and keeps them itself. Both serve the same requests; then the one with the
router is asked every question.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import uvicorn

import tailspan
from benchmarks.ingest import resident, server
from benchmarks.questions import QUESTIONS
from tailspan.config import Settings
from tailspan.demo.service import CALLS, create_app
from tailspan.demo.visitors import ANA

ROUNDS: Final = 5
VISITS: Final = 100
REQUESTS: Final = VISITS * (1 + len(CALLS))


def serve(db: str) -> None:
    """The service on a free port, whose URL it prints; `db` is the router's database, or empty."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    if db:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"{url}/analytics"
    app = create_app()
    if db:
        app.include_router(tailspan.router(Settings(db=Path(db))))
    print(url, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


@contextmanager
def service(collector: str, db: str = "") -> Iterator[tuple[httpx.Client, int]]:
    """A client of it after the visits, and its pid."""
    environment = {**os.environ, "TS_SOCKET": "/nonexistent", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    command = [sys.executable, "-m", "benchmarks.router", "serve", db]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip()) as client:
            for path in ("/dashboard", *CALLS) * VISITS:
                client.get(path, headers=ANA.headers()).raise_for_status()
            yield client, process.pid
        process.terminate()


def arrived(ask: httpx.Client) -> None:
    """Returns once all of the visits' requests are answered about."""
    deadline = time.monotonic() + 30
    while ask.get("/analytics/access-logs").json()["summary"]["total_requests"] < REQUESTS:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def measure() -> tuple[float, float, float]:
    """MB without the router, with it once all has arrived, and with it after every question."""
    with server() as (url, _), httpx.Client(base_url=url) as ask, service(url) as (_, pid):
        arrived(ask)
        without = resident(pid, "VmRSS")
    with tempfile.TemporaryDirectory() as folder, service("", f"{folder}/bench.duckdb") as (client, pid):
        arrived(client)
        idle = resident(pid, "VmRSS")
        for question in QUESTIONS:
            client.get(question).raise_for_status()
        return without, idle, resident(pid, "VmRSS")


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
        return
    without, idle, asked = (median(column) for column in zip(*(measure() for _ in range(ROUNDS)), strict=True))
    print(f"{without:.0f} MB without the router, after {REQUESTS} requests")
    print(f"+{idle - without:.0f} MB with it")
    print(f"+{asked - without:.0f} MB after every question (goal 50)")


if __name__ == "__main__":
    main()
