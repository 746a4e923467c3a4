"""Lines as nginx writes them, and what becomes of them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from starlette.testclient import TestClient

from tailspan.backfill import backfill
from tailspan.ingest.line import Origin
from tailspan.ingest.nginx import chosen
from tailspan.query import nanoseconds
from tests.server.spans import ANA, NOW, span

SIDECAR: Final = Path(__file__).parents[1] / "fixtures" / "sidecar_access.log"  # of a real nginx
IPHONE: Final = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
THEN: Final = datetime(2026, 11, 22, tzinfo=UTC)  # after the sidecar's log
ID: Final = 0xABCDEF0123456789ABCDEF0000000000  # of requests, whose first digits are not zeros
ADDED: Final = ("lines", "added", "known", "twins")


def combined(
    asked: str = "GET /prices HTTP/1.1",
    status: int = 200,
    *,
    at: str = "01/Mar/2026:11:00:00 +0000",
    address: str = "100.64.0.7",
    user: str = "-",
    referer: str = "-",
    agent: str = IPHONE,
) -> str:
    return f'{address} - {user} [{at}] "{asked}" {status} 123 "{referer}" "{agent}"\n'


def identified(number: int, *, at: datetime = NOW, took: str = "0.042", **changed: Any) -> str:
    """In the format that we recommend; the request's id follows from `number`."""
    known = {
        "msec": f"{at.timestamp():.3f}",
        "request_id": f"{number:032x}",
        "remote_addr": "100.64.0.7",
        "remote_port": "40000",
        "remote_user": "",
        "host": "dash.tail.ts.net",
        "request": "GET /prices HTTP/2.0",
        "status": "200",
        "bytes": "123",
        "request_time": took,
        "upstream_status": "200",
        "upstream_response_time": took,
        "content_type": "application/json",
        "referer": "",
        "user_agent": IPHONE,
        "accept": "*/*",
        "sec_fetch_dest": "empty",
        "sec_fetch_mode": "cors",
    } | changed
    bare = {"msec", "status", "bytes", "request_time"}
    pairs = (f'"{key}":{value if key in bare else json.dumps(value)}' for key, value in known.items())
    return "{" + ",".join(pairs) + "}\n"


def written(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def read(
    client: TestClient | httpx.Client, *paths: str, now: datetime = NOW, form: str | None = None, **options: Any
) -> dict[str, Any]:
    """What `tailspan backfill` says of these files."""
    origin = Origin(**{"service": "dashboard", **options.pop("origin", {})})
    given: Any = client  # it has a client's methods
    found = backfill(
        paths, given, Console(quiet=True), lambda: nanoseconds(now), formats=chosen(form), origin=origin, **options
    )
    return found.as_json()


def counts(result: dict[str, Any]) -> dict[str, int]:
    """Of what was read, what was added, known, or told of by its service; what is zero is left out."""
    return {name: result[name] for name in ADDED if result[name]}


def logs(client: TestClient, **asked: Any) -> list[dict[str, Any]]:
    answer = client.get("/analytics/access-logs", params={"hours": 24, "limit": 1000, **asked})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["logs"])


def requests(client: TestClient, **filters: str) -> int:
    answer = client.get("/analytics/query", params={"metrics": "requests", "days": 2, **filters}).json()
    return int(answer["rows"][0]["requests"])


def parent_of(number: int) -> str:
    """Of the service's own span, where nginx gave it the id of request `number`."""
    return f"{number:032x}"[:16]


def live(number: int, *, ago: float = 0, **changed: Any) -> dict[str, Any]:
    """The service's own span of request `number`, whose id it was given by nginx."""
    return span(number, ANA | {"http.route": "/prices", "url.path": "/prices"}, ago=ago) | {
        "parentSpanId": parent_of(number),
        "spanId": f"{number + 1000:032x}"[16:],
        **changed,
    }
