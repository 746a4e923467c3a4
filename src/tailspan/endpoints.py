"""The HTTP endpoints. Plain functions, run in threads: a store's answer takes a while."""

from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from tailspan import reports
from tailspan.inbox import Counts, Inbox
from tailspan.respond import OTLP_PATH
from tailspan.store import Store

REFUSAL: dict[int | str, dict[str, Any]] = {
    422: {
        "description": "A parameter is wrong",
        "content": {
            "application/json": {
                "example": {
                    "error": {
                        "code": "bad_parameter",
                        "message": "hours is '500'.",
                        "value": "500",
                        "rule": "Input should be less than or equal to 168.",
                    }
                }
            }
        },
    },
    503: {"description": "The store cannot answer; the error says why and what to do"},
}
SOURCES_EXAMPLE = [
    {
        "name": "store",
        "state": "ok",
        "message": "The database /var/lib/tailspan/tailspan.duckdb answers.",
        "newest": "2025-10-08T14:32:15.120Z",
        "services": [
            {
                "service": "dashboard",
                "environment": "production",
                "last_request": "2025-10-08T14:32:15.120Z",
                "last_heartbeat": "2025-10-08T14:32:16.004Z",
                "stopped": False,
                "forged": 0,
                "unproven": 0,
                "dropped": 0,
                "open_requests": 0,
            }
        ],
    }
]
ACTIVE_EXAMPLE = {
    "active_users": [
        {
            "email": "ana@example.com",
            "device": "ana-laptop",
            "last_seen": "2 min ago",
            "last_seen_at": "2025-10-08T14:32:15.120Z",
            "current_page": "/dashboard",
            "full_name": "Ana",
            "service": "dashboard",
        }
    ],
    "total_active": 1,
    "sources": SOURCES_EXAMPLE,
}
LOGS_EXAMPLE = {
    "logs": [
        {
            "timestamp": "2025-10-08T14:32:15.120Z",
            "user": "ana@example.com",
            "device": "ana-laptop",
            "ip": "100.64.0.7",
            "endpoint": "/dashboard",
            "method": "GET",
            "status": 200,
            "response_time_ms": 42.1,
            "service": "dashboard",
            "environment": "production",
            "traffic": "page",
            "page": "/dashboard",
            "path": "/dashboard",
            "caller": "person",
            "full_name": "Ana",
            "device_id": "nJDwxUcn5i11CNTRL",
            "identity_source": "serve_header",
            "proven": True,
            "source": "live",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": "00f067aa0ba902b7",
        }
    ],
    "summary": {"total_requests": 1247, "unique_users": 3, "unique_devices": 5, "avg_response_time_ms": 38.2},
    "next_cursor": "WzE3NTk4NDc1MzUwMDAwMDAwMDBd",
    "sources": SOURCES_EXAMPLE,
}


class Health(BaseModel):
    status: Literal["ok", "broken"]
    version: str
    received: Counts
    sources: list[reports.Source]


def router(store: Store, inbox: Inbox, clock: Callable[[], datetime]) -> APIRouter:
    """Everything the server answers. `clock` gives the now of a question, in UTC."""
    routes = APIRouter()
    routes.add_route(OTLP_PATH, inbox.receive, methods=["POST"])  # no FastAPI around it: it is called most, and fast

    @routes.get("/analytics/access-logs", responses={200: _example(LOGS_EXAMPLE), **REFUSAL})
    def access_logs(params: Annotated[reports.AccessLogsParams, Query()]) -> reports.AccessLogs:
        """All requests, newest first, and a summary of those that people made."""
        return reports.access_logs(store, params, clock())

    @routes.get("/analytics/active", responses={200: _example(ACTIVE_EXAMPLE), **REFUSAL})
    def active(params: Annotated[reports.Filters, Query()]) -> reports.Active:
        """Who used a service in the last five minutes: name, device and page. An open tab that only polls is nobody."""
        return reports.active(store, params, clock())

    @routes.get("/healthz", responses={503: {"model": Health, "description": "The store cannot be read"}})
    def healthz(response: Response) -> Health:
        """Whether the server lives and its store can be read, and what came in since it started."""
        sources = reports.sources(store, clock())
        broken = any(source.state == "unreadable" for source in sources)
        response.status_code = 503 if broken else 200
        return Health(
            status="broken" if broken else "ok", version=version("tailspan"), received=inbox.counts, sources=sources
        )

    return routes


def _example(example: object) -> dict[str, Any]:
    return {"content": {"application/json": {"example": example}}}
