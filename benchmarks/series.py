"""How many series InfluxDB has of a month's requests, with everything in them that strangers can make up.

    scripts/bench series

50 people on 100 devices call 60 routes, each from its page; one request in 40 is hostile: a path that nobody has, a
method that nobody knows, a Referer of a page that is none. They go through the real collector into the real InfluxDB
(scripts/engines collector influxd).
"""

import random
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.console import Console
from rich.progress import track
from tailspan_otel.traffic import bounded, page_of_referer

from tests.stack.engines import Collector, Influxd, until
from tests.stack.pipeline import send, span

SPANS: Final = 200_000
BATCH: Final = 2_000
DEVICES: Final = 100
ROUTES: Final = 60
STATUSES: Final = (200, 200, 200, 200, 200, 200, 200, 200, 304, 500)
HOSTILE: Final = 40  # one request in so many
PAGES: Final = 200  # that a process keeps; the rest is `other`


def bound(count: int) -> int:
    """The most series that `count` spans can make: docs/collector.md, "What a series is"."""
    usual = DEVICES * ROUTES * len(set(STATUSES))
    hostile = DEVICES * (PAGES + 1) + 1
    return min(usual, count) + min(hostile, count // HOSTILE)


def spans(count: int) -> Iterator[Span]:
    """As services with and without tailspan's middleware send them."""
    dice, keep, start_ns = random.Random(1), bounded(PAGES), time.time_ns() - 30 * 86400 * 10**9
    for number in range(1, count + 1):
        make = _hostile if number % HOSTILE == 0 else _usual
        one = span(number, make(dice, keep), start_ns=start_ns + number * (30 * 86400 * 10**9 // count))
        one.parent_span_id = one.span_id[::-1]
        yield one


def _usual(dice: random.Random, keep: Any) -> dict[str, Any]:
    route = dice.randrange(ROUTES)
    return _request(
        dice.randrange(DEVICES),
        keep(f"/page-{route % 10}"),
        {"http.route": f"/route-{route}/{{id}}", "http.request.method": "GET", "url.path": f"/route-{route}/1"},
        dice.choice(STATUSES),
    )


def _hostile(dice: random.Random, keep: Any) -> dict[str, Any]:
    made_up = f"/{dice.getrandbits(64):x}"
    page = page_of_referer(f"http://dash{made_up}.php", ("dash",))
    request = {"http.request.method": f"X{made_up}", "url.path": made_up}
    if dice.random() < 0.5:  # a service of another language
        return {**request, "http.response.status_code": 404, "tailspan.page": page, "user.name": made_up}
    return _request(dice.randrange(DEVICES), keep(page or ""), request, 404)


def _request(device: int, page: str, request: dict[str, Any], status: int) -> dict[str, Any]:
    return {
        "tailspan.kind": "request",
        "tailspan.source": "live",
        "tailspan.schema": 1,
        "tailspan.caller": "person",
        "tailspan.traffic": "api",
        "tailspan.identity.source": "serve_header",
        "tailspan.page": page,
        "user.name": f"person{device % 50}@example.com",
        "tailscale.node": f"node-{device}",
        "tailscale.node.id": f"n{device}CNTRL",
        "tailscale.address": f"100.64.0.{device}",
        "http.response.status_code": status,
        "user_agent.original": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15",
        **request,
    }


def deliver(collector: Collector, influxd: Influxd, count: int) -> int:
    """Brings so many into InfluxDB; the series it then has."""
    made = spans(count)
    for _ in track(range(0, count, BATCH), "benchmarks/series", console=Console(stderr=True)):
        send(collector.endpoint, islice(made, BATCH))
    until(lambda: influxd.count() >= count, "not all arrived", collector.said, patience=600)
    found = influxd.flux(
        f'import "influxdata/influxdb" influxdb.cardinality(bucket: "{influxd.bucket}", start: 1970-01-01T00:00:00Z)'
    )
    return int(found.split()[1].rpartition(",")[2])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        influxd = Influxd(Path(folder, "influxd"))
        collector = Collector(Path(folder, "collector"), influxd)
        try:
            influxd.set_up()
            collector.start()
            began = time.monotonic()
            series = deliver(collector, influxd, SPANS)
            Console().print(
                f"{SPANS:,} requests: {series:,} series, {bound(SPANS):,} at most; {time.monotonic() - began:.0f} s"
            )
        finally:
            collector.kill()
            influxd.kill()


if __name__ == "__main__":
    main()
