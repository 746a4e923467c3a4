"""How long answers take, how much disk a span costs and how much memory an answer: `scripts/bench questions`.

The spans are of a team at work: 50 people with two devices each, 60 routes and 12 pages of two services, over 30 days.
Somebody opens a page around noon, the page calls three to six routes at once, two clicks follow, and the open tab
polls. Of 100 spans some 2 are pages, 9 parts of a page load, 4 clicks, 1 a view of a card, 71 polls, 10 assets, 3
health checks.

    python -m benchmarks.questions 2000000 [10000000]
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from starlette.testclient import TestClient

from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.query import nanoseconds
from tailspan.span import Span
from tailspan.store.duckdb import DuckDB

NOW: Final = datetime(2026, 3, 31, 15, tzinfo=UTC)
NOW_NS: Final = nanoseconds(NOW)
S: Final = 10**9
DAYS: Final = 30
PEOPLE: Final = 50
PAGES: Final = 12
ROUTES: Final = 60
BATCH: Final = 20_000
QUESTIONS: Final = (
    "/analytics/active",
    "/analytics/access-logs?hours=24",
    "/analytics/access-logs?hours=168",
    "/analytics/dashboard-usage?days=7",
    "/analytics/dashboard-usage?days=30",
    "/analytics/system-health-history?days=7",
    "/analytics/system-health-history?days=30",
    "/analytics/query?metrics=requests,people,p95_ms&dimensions=route&days=30",
    "/analytics/query?metrics=deliberate_calls,people&dimensions=feature&days=30",
    "/analytics/query?metrics=sessions,session_time_s&dimensions=person&days=30",
    "/analytics/query?metrics=first_seen,last_seen&dimensions=person&days=7",
    "/analytics/query?ask=sessions&days=30",
)


def spans(count: int, seed: int = 7) -> Iterator[Span]:
    """About `count` of them, day by day, nearly in order of time."""
    made = random.Random(seed)
    per_visit = 100 / 2  # spans for each page that is opened
    visits = count / DAYS / PEOPLE / per_visit
    for day in range(DAYS):
        start = NOW_NS - (DAYS - day) * 24 * 3600 * S
        todays = [
            span
            for person in range(PEOPLE)
            for _ in range(int(visits + made.random()))
            for span in _visit(made, person, start + int(made.gauss(12, 4) % 24 * 3600 * S))
        ]
        todays += [
            _check(start + n * 24 * 3600 * S // (count // DAYS * 3 // 100)) for n in range(count // DAYS * 3 // 100)
        ]
        todays.sort(key=lambda span: span.start_ns)
        yield from (span for span in todays if span.start_ns < NOW_NS)


def _visit(made: random.Random, person: int, at: int) -> Iterator[Span]:
    page, device = made.randrange(PAGES), made.randrange(2)
    routes = [page * 5 + n for n in range(5)]
    yield _span(made, person, device, at, "page", page, 100 + page)
    for _ in range(made.randint(3, 6)):
        yield _span(made, person, device, at + made.randrange(2 * S), "api", page, made.choice(routes))
    for _ in range(5):
        yield _span(made, person, device, at + made.randrange(S), "asset", page, 200)
    for _ in range(2):
        yield _span(made, person, device, at + 10 * S + made.randrange(300 * S), "api", page, made.choice(routes))
    if made.random() < 0.5:
        yield _span(made, person, device, at + 5 * S, "view", page, 300)
    for n in range(35):
        yield _span(made, person, device, at + n * 15 * S, "poll", page, routes[0])


def _span(made: random.Random, person: int, device: int, at: int, traffic: str, page: int, route: int) -> Span:
    template = f"/pages/{route - 100}" if traffic == "page" else f"/api/things/{route}/items/{{id}}"
    number = person * 2 + device
    asset = traffic == "asset"
    view = traffic == "view"
    return Span(
        trace_id=made.randbytes(16),
        span_id=made.randbytes(8),
        parent_id=None,
        start_ns=at,
        duration_ns=None if view else int(made.lognormvariate(3, 1) * 10**6),
        path="/static/app.js" if asset else f"/api/things/{route}/items/{made.randrange(1000)}",
        visible_ms=made.randrange(60_000) if view else None,
        open_ns=None,
        service="dashboard" if page < PAGES // 2 else "factory",
        environment="production",
        method="GET",
        route=None if asset or view else template,
        status=None if view else 500 if made.random() < 0.002 else 200,
        login=f"person{person}@example.com",
        full_name=f"Person {person}",
        node=f"device-{number}",
        node_id=f"n{number:04}CNTRL",
        tags=None,
        address=f"100.64.0.{number}",
        guess=None,
        source="live",
        identity_source="serve_header",
        proven=True,
        caller="person",
        traffic="api" if view else traffic,
        page=f"/pages/{page}",
        client_address=None,
        user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        schema=1,
        kind="view" if view else "request",
        card=f"card-{page}" if view else None,
    )


def _check(at: int) -> Span:
    """A health check: nobody's."""
    made = random.Random(at)
    return _span(made, 0, 0, at, "health", 0, 0)._replace(
        login=None,
        full_name=None,
        node=None,
        node_id=None,
        address=None,
        caller="local",
        route="/health",
        path="/health",
    )


def fill(store: DuckDB, count: int) -> int:
    """Writes them in deliveries; how many they were."""
    batch: list[Span] = []
    written = 0
    for span in spans(count):
        batch.append(span)
        if len(batch) == BATCH:
            written += store.write(batch)
            batch.clear()
    return written + (store.write(batch) if batch else 0)


def measure(path: Path) -> None:
    """Prints each question's best, median and worst of five, and the memory of the process that answers."""
    store = DuckDB(path)
    app = create_app(Settings(db=path), store, lambda: NOW)
    with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        print(f"{memory():.0f} MB before the first question")
        for question in QUESTIONS:
            answers = [timed(client, question) for _ in range(5)]
            times = sorted(took for took, _ in answers)
            status = max(status for _, status in answers)
            print(
                f"{times[0]:7.3f} {times[2]:7.3f} {times[-1]:7.3f} s  {memory():4.0f} MB  {status} {question}",
                flush=True,
            )
    store.close()


def timed(client: TestClient, question: str) -> tuple[float, int]:
    """Seconds, and the status of the answer: 503 where the store has not the memory for it."""
    start = time.perf_counter()
    status = client.get(question).status_code
    return time.perf_counter() - start, status


def memory() -> float:
    """Resident megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    for count in map(int, sys.argv[1:] or ["2000000"]):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(os.environ.get("TAILSPAN_BENCH_DB") or f"{folder}/{count}.duckdb")
            if not path.exists():
                child = os.fork()  # what writing leaves in memory is not of the answers
                if not child:
                    store = DuckDB(path)
                    written = fill(store, count)
                    store.close()
                    print(f"{written} spans, {path.stat().st_size / written:.1f} bytes a span", flush=True)
                    os._exit(0)
                os.waitpid(child, 0)
            measure(path)


if __name__ == "__main__":
    main()
