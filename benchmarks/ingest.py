"""How fast spans become queryable, and in how much memory: `tailspan serve` fed over HTTP on loopback.

    scripts/bench ingest

Bodies are made by the stock exporter's own encoder beforehand. A floor stands beside ours: parsing the same bodies with
OpenTelemetry's protobuf classes and doing nothing with them. Spans a second are of one core: all of the server's CPU.
"""

import os
import random
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
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from rich.console import Console
from rich.progress import track
from rich.table import Table

SPANS: Final = 100_000
ROUNDS: Final = 3
BATCHES: Final = (512, 1_000, 5_000)  # 512 is the SDK's default
RESOURCE: Final = Resource({"service.name": "dashboard"})


def span(number: int, start_ns: int) -> ReadableSpan:
    """One of 50 people on 100 devices at 60 routes, as the middleware writes it."""
    who, where = random.randrange(100), random.randrange(60)
    return ReadableSpan(
        f"GET /route-{where}/{{id}}",
        SpanContext(random.getrandbits(127) + 1, random.getrandbits(63) + 1, False, TraceFlags(1)),
        resource=RESOURCE,
        kind=SpanKind.SERVER,
        start_time=start_ns,
        end_time=start_ns + random.randrange(10**8),
        attributes={
            "tailspan.kind": "request",
            "tailspan.source": "live",
            "tailspan.schema": 1,
            "tailspan.caller": "person",
            "tailspan.identity.source": "serve_header",
            "user.name": f"person{who % 50}@example.com",
            "user.full_name": f"Person {who % 50}",
            "client.address": f"100.64.0.{who}",
            "network.peer.address": "127.0.0.1",
            "tailscale.address": f"100.64.0.{who}",
            "tailscale.node": f"node-{who}",
            "tailscale.node.id": f"n{who}CNTRL",
            "http.request.method": "GET",
            "http.route": f"/route-{where}/{{id}}",
            "http.response.status_code": 200,
            "server.address": "dash.tail.ts.net",
            "url.path": f"/route-{where}/{number % 1000}",
            "url.scheme": "http",
            "network.protocol.version": "1.1",
            "user_agent.original": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
            "tailspan.traffic": "api",
            "tailspan.page": f"/page-{where % 10}",
        },
    )


def bodies(batch: int) -> list[bytes]:
    first = time.time_ns() - 3600 * 10**9
    batches = (range(at, min(at + batch, SPANS)) for at in range(0, SPANS, batch))
    return [encode_spans([span(i, first + i * 10**7) for i in batch]).SerializeToString() for batch in batches]


@contextmanager
def server(**settings: str) -> Iterator[tuple[str, int]]:
    """A `tailspan serve` of its own: its URL and pid."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TAILSPAN_DB": str(Path(folder, "bench.duckdb")),
            "TAILSPAN_LISTEN": "127.0.0.1:0",
            "TS_SOCKET": "/nonexistent",
            **settings,
        }
        command = [sys.executable, "-m", "tailspan", "serve"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield process.stdout.readline().split()[3], process.pid
            process.terminate()


def cpu(pid: int) -> float:
    """Seconds of CPU, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int, which: str) -> float:
    """MB: VmRSS now, or VmHWM at most so far."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def measure(batch: int) -> tuple[float, float, float, float]:
    """Spans a second of one core, the floor's, MB idle, MB at most."""
    posts = bodies(batch)
    began = time.process_time()
    for body in posts:
        ExportTraceServiceRequest.FromString(body)
    floor = SPANS / (time.process_time() - began)
    with server() as (url, pid), httpx.Client(base_url=url) as client:
        client.get("/analytics/active").raise_for_status()
        idle, before = resident(pid, "VmRSS"), cpu(pid)
        for body in posts:
            client.post(
                "/v1/traces", content=body, headers={"Content-Type": "application/x-protobuf"}
            ).raise_for_status()
        rate = SPANS / (cpu(pid) - before)
        answer = client.get("/analytics/access-logs", params={"hours": 2}).raise_for_status().json()
        assert answer["summary"]["total_requests"] == SPANS, answer["summary"]
        return rate, floor, idle, resident(pid, "VmHWM")


def main() -> None:
    runs = {batch: [] for batch in BATCHES}  # type: dict[int, list[tuple[float, float, float, float]]]
    for batch in track(BATCHES * ROUNDS, "benchmarks/ingest", console=Console(stderr=True)):
        runs[batch].append(measure(batch))
    table = Table(
        "spans a request", "spans/s of one core", "parse only", "ratio", "MB idle", "MB at most", title="ingest"
    )
    for batch, found in runs.items():
        rate, floor, idle, most = (median(column) for column in zip(*found, strict=True))
        row = (f"{rate:,.0f}", f"{floor:,.0f}", f"{rate / floor:.2f}", f"{idle:.0f}", f"{most:.0f}")
        table.add_row(f"{batch:,}", *row)
    Console().print(table)


if __name__ == "__main__":
    main()
