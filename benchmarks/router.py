"""What the router adds to the memory of the app it is in: `scripts/bench router`.

The demo's service, a process each time: once it sends its spans to a `tailspan serve`, once it has
`app.include_router(tailspan.router(config))` and keeps them itself, which alone imports the server. Both serve the same
requests; then the one with the router is asked every question. The floor: a process that opens a DuckDB file.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

import httpx

from benchmarks.ingest import resident, server
from benchmarks.questions import QUESTIONS
from tailspan.demo.service import CALLS
from tailspan.demo.visitors import ANA

ROUNDS: Final = 5
VISITS: Final = 100
REQUESTS: Final = VISITS * (1 + len(CALLS))


SERVED: Final = """
import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from tailspan.demo.service import TITLE, insights, routes
from tailspan_otel import instrument

app = FastAPI(title=TITLE)
app.include_router(routes)
app.include_router(insights)
if len(sys.argv) == 1:
    instrument(app)
elif sys.argv[2:] == ["floor"]:
    import duckdb

    connection = duckdb.connect(sys.argv[1])
    connection.execute("CREATE TABLE request AS SELECT 1 AS number")
    instrument(app)
else:
    import tailspan
    from tailspan.config import Settings

    analytics = tailspan.router(Settings(db=Path(sys.argv[1])))
    app.include_router(analytics)
    instrument(app, exporter=analytics.exporter)
listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's algorithm on: 40 ms an answer
listening.bind(("127.0.0.1", 0))
listening.listen()
print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])
"""


@contextmanager
def service(collector: str, *db: str) -> Iterator[tuple[httpx.Client, int]]:
    """A client of it after the visits, and its pid; `db`: the router's database, where it has one; "floor": alone."""
    environment = {**os.environ, "TS_SOCKET": "/nonexistent", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    command = [sys.executable, "-c", SERVED, *db]
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


def measure() -> tuple[float, ...]:
    """MB without the router, with an open database alone, with the router, and with it after every question."""
    with server() as (url, _), httpx.Client(base_url=url) as ask, service(url) as (_, pid):
        arrived(ask)
        without = resident(pid, "VmRSS")
    with tempfile.TemporaryDirectory() as folder, service("", f"{folder}/bench.duckdb", "floor") as (_, pid):
        floor = resident(pid, "VmRSS")
    with tempfile.TemporaryDirectory() as folder, service("", f"{folder}/bench.duckdb") as (client, pid):
        arrived(client)
        idle = resident(pid, "VmRSS")
        for question in QUESTIONS:
            client.get(question).raise_for_status()
        return without, floor, idle, resident(pid, "VmRSS")


def main() -> None:
    without, floor, idle, asked = (median(column) for column in zip(*(measure() for _ in range(ROUNDS)), strict=True))
    print(f"{without:.0f} MB without the router, after {REQUESTS} requests")
    print(f"+{floor - without:.0f} MB with an open DuckDB file and nothing else")
    print(f"+{idle - without:.0f} MB with it")
    print(f"+{asked - without:.0f} MB after every question (goal 50)")


if __name__ == "__main__":
    main()
