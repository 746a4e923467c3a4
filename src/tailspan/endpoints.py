"""The HTTP endpoints. Plain functions, run in threads: a store's answer takes a while."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib.metadata import version
from itertools import chain, islice
from typing import Annotated, Any, Literal, cast, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tailspan import reports
from tailspan.delivery import LINES_PATH, File, Place
from tailspan.delivery import Answer as LinesAnswer
from tailspan.errors import DeliveryError, QuestionError, Trouble
from tailspan.inbox import Counts, Inbox
from tailspan.ingest.views import ViewCounts, Views
from tailspan.page import Files
from tailspan.reports import Sources
from tailspan.reports.access_logs import AccessLogs, AccessLogsParams, access_logs, log
from tailspan.reports.active import Active, active
from tailspan.reports.coverage import CoverageAnswer, CoverageParams, coverage
from tailspan.reports.dashboard_usage import DashboardUsage, DashboardUsageParams, dashboard_usage
from tailspan.reports.device import DeviceParams, OneDevice, device
from tailspan.reports.devices import Devices, DevicesParams, devices
from tailspan.reports.query import Answer, Asked, answer, as_csv, asked_by, documented
from tailspan.reports.system_health import SystemHealth, SystemHealthParams, system_health
from tailspan.reports.tailnet_status import TailnetStatus, tailnet_status
from tailspan.reports.totals import Totals, TotalsParams, totals
from tailspan.reports.who_is import WhoIs, WhoIsParams, who_is
from tailspan.respond import ANALYTICS_OTLP_PATH, OTLP_PATH, Answering
from tailspan.witness import Witness

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
EXPORT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
    **REFUSAL,
}
MISSING: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such device"}, **REFUSAL}
CSV: dict[str, Any] = {"content": {"text/csv": {"schema": {"type": "string"}}}}
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
                "forged_kinds": {},
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
    "start": "2025-10-08T14:29:20.000Z",
    "end": "2025-10-08T14:34:20.000Z",
    "zone": "Europe/Madrid",
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
    views: ViewCounts = Field(description="What pages told of their cards.")
    sources: list[reports.Source]


class Forgotten(BaseModel):
    login: str
    requests: int = Field(description="How many requests and views were deleted.")


class Removed(BaseModel):
    service: str
    requests: int = Field(description="How many requests were deleted.")


def analytics(of: Sources, clock: Callable[[], datetime]) -> APIRouter:
    """Everything under /analytics/, for any app: it tells of errors itself. `clock` gives a question's now, in UTC."""
    routes = APIRouter(prefix="/analytics", route_class=Answering)
    files = Files()
    as_they_are: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False, "response_model": None}
    routes.add_api_route("/", files.index, **as_they_are)
    routes.add_api_route("/static/{path:path}", files.one, **as_they_are)

    @routes.get("/access-logs", responses={200: _example(LOGS_EXAMPLE), **REFUSAL})
    def get_access_logs(params: Annotated[AccessLogsParams, Query()]) -> AccessLogs:
        """All requests, newest first, and a summary of those that people made."""
        return access_logs(of, params, clock())

    @routes.get("/active", responses={200: _example(ACTIVE_EXAMPLE), **REFUSAL})
    def get_active(params: Annotated[reports.Filters, Query()]) -> Active:
        """Who used a service in the last five minutes: name, device and page. An open tab that only polls is nobody."""
        return active(of, params, clock())

    @routes.get("/refresh", responses=REFUSAL)
    def get_refresh(params: Annotated[reports.Filters, Query()]) -> Active:
        """What /active says, for a card that asks all the time. It alone is not recorded as a use of tailspan."""
        return active(of, params, clock())

    @routes.get("/totals", responses=REFUSAL)
    def get_totals(params: Annotated[TotalsParams, Query()]) -> Totals:
        """How much a service is used, without anybody's name. Whoever is identified may ask this."""
        return totals(of, params, clock())

    @routes.get("/dashboard-usage", responses=REFUSAL)
    def get_dashboard_usage(params: Annotated[DashboardUsageParams, Query()]) -> DashboardUsage:
        """What people used, when and how long: cards, features, sessions, accesses by day and hour."""
        return dashboard_usage(of, params, clock())

    @routes.get("/system-health-history", responses=REFUSAL)
    def get_system_health(params: Annotated[SystemHealthParams, Query()]) -> SystemHealth:
        """Uptime by heartbeats, response times and errors, over all and by day."""
        return system_health(of, params, clock())

    @routes.get("/coverage", responses=REFUSAL)
    def get_coverage(params: Annotated[CoverageParams, Query()]) -> CoverageAnswer:
        """Which share of what its proxy wrote down each service told of itself, by hour, and its gaps."""
        return coverage(of, params, clock())

    @routes.get("/query", responses={200: CSV, **REFUSAL}, openapi_extra={"parameters": documented()})
    def get_query(request: Request) -> Answer:
        """Any question: metrics by dimensions, rows, or sessions. Lists are comma separated; `format=csv` for CSV."""
        return _formatted(request, lambda parameters: answer(of, asked_by(parameters), clock()))

    @routes.post("/query", responses={200: CSV, **REFUSAL})
    def post_query(request: Request, asked: Asked) -> Answer:
        """The same question as JSON, where values may hold commas."""
        return _formatted(request, lambda _: answer(of, asked, clock()))

    @routes.get("/tailnet/devices", responses=REFUSAL)
    def get_devices(params: Annotated[DevicesParams, Query()]) -> Devices:
        """The tailnet's devices and their use of the services: online but not using, using but unknown, new."""
        return devices(of, params, clock())

    @routes.get("/tailnet/devices/{id}", responses=MISSING)
    def get_device(id: str, params: Annotated[DeviceParams, Query()]) -> OneDevice:
        """One device by stable id or name: what the sources say, its addresses and names over time, its services."""
        return device(of, id, params, clock())

    @routes.get("/tailnet/status", responses=REFUSAL)
    def get_tailnet_status() -> TailnetStatus:
        """The tailnet as a whole: how many devices, whose keys expire, and how the sources that list them fare."""
        return tailnet_status(of, clock())

    @routes.get("/tailnet/who-is", responses=REFUSAL)
    def get_who_is(params: Annotated[WhoIsParams, Query()]) -> WhoIs:
        """Whose a tailnet address is and was: what each source says, and what came from it."""
        return who_is(of, params, clock())

    @routes.get("/people/{login}", response_class=StreamingResponse, responses=EXPORT)
    def export(login: str) -> StreamingResponse:
        """Everything kept of a person, oldest first: a request or view a line, as JSON."""
        spans = of.store.export(login, of.meaning().trusted_logs)
        first = list(islice(spans, 1))  # before the answer begins: a store in trouble is no empty answer
        lines = (f"{log(span).model_dump_json()}\n" for span in chain(first, spans))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @routes.delete("/people/{login}", responses=REFUSAL)
    def forget(login: str) -> Forgotten:
        """Deletes everything kept of a person, for good."""
        return Forgotten(login=login, requests=of.store.forget(login, of.meaning().trusted_logs))

    @routes.delete(
        "/logs/{service:path}", responses={404: {"description": "No name of a service has line ends"}, **REFUSAL}
    )
    def remove_log(service: str) -> Removed:
        """Deletes the requests of a service that only a log told of: it may be read again, under another name, too."""
        removed = Removed(service=service, requests=of.store.remove_log(service))
        of.coverage.doubt()
        return removed

    return routes


def mounted(of: Sources, inbox: Inbox | None, clock: Callable[[], datetime]) -> APIRouter:
    """For a host's own app: the answers, and the way in under the same prefix."""
    routes = _with_views(analytics(of, clock), Views(own=True))
    routes.add_api_route(
        ANALYTICS_OTLP_PATH.removeprefix("/analytics"), _way_in(inbox), methods=["POST"], include_in_schema=False
    )
    return routes


def server(of: Sources, inbox: Inbox | None, clock: Callable[[], datetime]) -> APIRouter:
    """For `tailspan serve`: the answers, the way in where OTLP has it, and the server's own health."""
    routes = APIRouter()
    views = Views(own=False)
    routes.add_route(OTLP_PATH, _way_in(inbox), methods=["POST"])  # no FastAPI around it: it is called most, and fast
    routes.include_router(_with_views(analytics(of, clock), views))

    @routes.get("/healthz", responses={503: {"model": Health, "description": "The store cannot be read"}})
    def healthz(response: Response) -> Health:
        """Whether the server lives and its store can be read, and what came in since it started."""
        sources = of.told(clock())
        broken = sources[0].state in get_args(Trouble)
        response.status_code = 503 if broken else 200
        return Health(
            status="broken" if broken else "ok",
            version=version("tailspan"),
            received=inbox.counts if inbox else Counts(),
            views=views.counts,
            sources=sources,
        )

    return routes


def log_lines(witness: Witness) -> APIRouter:
    """The way in of what is read of logs, for any app."""
    routes = APIRouter(prefix=LINES_PATH, route_class=Answering, include_in_schema=False)

    @routes.post("")
    async def take(request: Request) -> LinesAnswer:
        return await witness.receive(request)

    @routes.get("/{file}")
    def get_place(file: File) -> Place:
        return witness.place(file)

    return routes


def _with_views(routes: APIRouter, views: Views) -> APIRouter:
    routes.add_api_route("/views", views.receive, methods=["POST"], include_in_schema=False, response_model=None)
    return routes


def _way_in(inbox: Inbox | None) -> Callable[[Request], Awaitable[Response]]:
    return inbox.receive if inbox else _elsewhere


async def _elsewhere(request: Request) -> Response:
    raise DeliveryError(
        "This server answers from InfluxDB, and takes no spans itself.",
        fix="Send them to the collector before it: OTEL_EXPORTER_OTLP_ENDPOINT, port 4318 by default.",
    )


def _formatted(request: Request, answering: Callable[[list[tuple[str, str]]], Answer]) -> Answer:
    """The answer, as CSV where `format=csv` asks for it. FastAPI takes a Response in place of what is declared."""
    parameters = request.query_params.multi_items()
    form = [value for name, value in parameters if name == "format"]
    if form and form[-1] not in ("json", "csv"):
        raise QuestionError(f"format is {form[-1]!r}.", value=form[-1], rule="It is json or csv.")
    found = answering([(name, value) for name, value in parameters if name != "format"])
    if "csv" not in form[-1:]:
        return found
    troubled = [f"{source.name}: {source.state}" for source in found.sources if source.state != "ok"]
    headers = {"Tailspan-Sources": "; ".join(troubled)} if troubled else {}
    return cast(Answer, Response(as_csv(found), media_type="text/csv; charset=utf-8", headers=headers))


def _example(example: object) -> dict[str, Any]:
    return {"content": {"application/json": {"example": example}}}
