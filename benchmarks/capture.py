"""What capturing a request costs: bare, ours, and the peers, side by side in one run.

    scripts/bench capture

Each variant runs in a process of its own, the variants in turn, several rounds; figures are medians over the rounds.
*time*: wall time of one request in process (an ASGI call of the last route of its app), with a null exporter.
*CPU*: of the whole process, all threads, with the stock OTLP/HTTP exporter and a receiver on loopback.
*memory*: peak resident set of that second run. All over the bare app's.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any, Final

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROUNDS: Final = 3
REQUESTS: Final = 2000  # a batch
BATCHES: Final = 5
PEERS_ID: Final = "00000000-0000-0000-0000-000000000000"
HEADERS: Final = [
    (b"host", b"dash.tail.ts.net"),
    (b"user-agent", b"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"),
    (b"accept", b"*/*"),
    (b"referer", b"https://dash.tail.ts.net/dashboard"),
    (b"tailscale-user-login", b"ana@example.com"),
    (b"tailscale-user-name", b"Ana"),
    (b"x-forwarded-for", b"100.64.0.7"),
]


class Nothing(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def provider(exporter: SpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(exporter))
    return made


def bare(app: FastAPI, exporter: SpanExporter) -> None:
    pass


def ours(app: FastAPI, exporter: SpanExporter) -> None:
    from tailspan_otel import instrument

    instrument(app, exporter=exporter)


def native(app: FastAPI, exporter: SpanExporter) -> None:
    app._telemetry["tracer_provider"] = provider(exporter)


def contrib(app: FastAPI, exporter: SpanExporter) -> None:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(exporter))


def apitally(app: FastAPI, exporter: SpanExporter) -> None:
    from apitally.fastapi import ApitallyMiddleware

    app.add_middleware(ApitallyMiddleware, client_id=PEERS_ID, env="dev")


def prometheus(app: FastAPI, exporter: SpanExporter) -> None:
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app)


VARIANTS: Final[dict[str, tuple[str, Callable[[FastAPI, SpanExporter], None]]]] = {
    "bare": ("bare FastAPI", bare),
    "ours": ("tailspan", ours),
    "native": ("FastAPI native spans", native),
    "contrib": ("opentelemetry-instrumentation-fastapi", contrib),
    "apitally": ("Apitally 0.25.1", apitally),
    "prometheus": ("prometheus-fastapi-instrumentator", prometheus),
}


def app_with(routes: int) -> FastAPI:
    app = FastAPI()

    async def answer() -> dict[str, int]:
        return {"price": 1}

    for number in range(routes):
        app.get(f"/route-{number}")(answer)
    return app


async def one_after_another(app: FastAPI, path: str, count: int) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    for _ in range(count):
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": HEADERS,
            "client": ("127.0.0.1", 4000), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await app(scope, receive, send)


async def _run(app: FastAPI, path: str) -> tuple[float, float]:
    """Microseconds a request: wall time of the best batch, CPU of the whole process over all of them."""
    await one_after_another(app, path, 300)
    best, cpu = float("inf"), time.process_time()
    for _ in range(BATCHES):
        began = time.perf_counter()
        await one_after_another(app, path, REQUESTS)
        best = min(best, time.perf_counter() - began)
        await asyncio.sleep(0.6 if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ else 0)  # the exporter's turn
    return best / REQUESTS * 1e6, (time.process_time() - cpu) / (BATCHES * REQUESTS) * 1e6


def child(variant: str, routes: int) -> None:
    exported = "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ
    app = app_with(routes)
    VARIANTS[variant][1](app, OTLPSpanExporter() if exported else Nothing())
    wall, cpu = asyncio.run(_run(app, f"/route-{routes - 1}"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak}), flush=True)
    os._exit(0)  # nobody waits for a peer's own upload


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def measure(variant: str, routes: int, endpoint: str | None) -> dict[str, float]:
    environment = {
        **os.environ,
        "TS_SOCKET": "/nonexistent",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100000",  # flat out, nothing is dropped: what is dropped costs nothing
        **({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {}),
    }
    command = [sys.executable, "-m", "benchmarks.capture", variant, str(routes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1], int(sys.argv[2]))
    sink = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{sink.server_address[1]}"
    runs = [(v, routes, end) for routes, end in ((1, None), (101, None), (1, endpoint)) for v in VARIANTS]
    found: dict[tuple[str, int, str | None], list[dict[str, float]]] = {run: [] for run in runs}
    for variant, routes, end in track(runs * ROUNDS, "benchmarks/capture", console=Console(stderr=True)):
        found[variant, routes, end].append(measure(variant, routes, end))
    report(found, endpoint)


def report(found: dict[tuple[str, int, str | None], list[dict[str, float]]], endpoint: str) -> None:
    def figure(variant: str, routes: int, end: str | None, name: str) -> float:
        return median(run[name] for run in found[variant, routes, end])

    def added(variant: str, routes: int, end: str | None, name: str) -> float:
        return figure(variant, routes, end, name) - figure("bare", routes, end, name)

    columns = ((1, None, "wall"), (101, None, "wall"), (1, endpoint, "cpu"), (1, endpoint, "peak"))
    table = Table("added to the bare app", "µs, 1 route", "µs, 101 routes", "CPU µs, exported", "MB", title="capture")
    table.add_row(VARIANTS["bare"][0], *(f"({figure('bare', *column):.1f})" for column in columns))
    for variant, (title, _) in list(VARIANTS.items())[1:]:
        table.add_row(title, *(f"+{added(variant, *column):.1f}" for column in columns))
    Console().print(table)

    def ratio(peer: str, column: tuple[int, str | None, str]) -> list[float]:
        """Round by round: what drifts on a shared machine drifts for all of a round."""
        rounds = zip(*(found[variant, *column[:2]] for variant in ("bare", "ours", peer)), strict=True)
        return [
            (mine[column[2]] - bare[column[2]]) / (other[column[2]] - bare[column[2]]) for bare, mine, other in rounds
        ]

    for text, peer, column in (
        ("of Apitally's time, 1 route (goal 0.5)", "apitally", columns[0]),
        ("of Apitally's time, 101 routes (goal 0.2)", "apitally", columns[1]),
        ("of contrib's CPU, exported (goal 0.25)", "contrib", columns[2]),
    ):
        ratios = ratio(peer, column)
        print(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) {text}")


if __name__ == "__main__":
    main()
