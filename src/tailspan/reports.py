"""The answers people ask for, each built from Queries. Shapes here are what the HTTP endpoints return."""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tailspan.errors import QuestionError
from tailspan.query import Aggregate, Position, Range, Rows, ending, nanoseconds
from tailspan.span import Span
from tailspan.store import ServiceState, State, Store

ACTIVE_FOR: Final = timedelta(minutes=5)
Traffic = Literal["agent", "internal", "health", "asset", "page", "poll", "api"]


class Filters(BaseModel):
    """What every question takes. An unknown parameter is refused: ignored, it would look like an answer to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Annotated[str | None, Field(description="Only this service (`service.name`).")] = None
    environment: Annotated[str | None, Field(description="Only this environment.")] = None
    user: Annotated[str | None, Field(description="Only this login.")] = None
    device: Annotated[str | None, Field(description="Only this device, by name or stable id.")] = None

    def as_filters(self) -> dict[str, tuple[str, ...]]:
        given = self.model_dump(include={"service", "environment", "user", "device", "traffic"}, exclude_none=True)
        return {name: (value,) for name, value in given.items()}


class AccessLogsParams(Filters):
    hours: Annotated[int, Field(ge=1, le=168, description="How far back, in hours.")] = 24
    traffic: Annotated[Traffic | None, Field(description="Only this kind of traffic.")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="At most this many rows in `logs`.")] = 100
    cursor: Annotated[str | None, Field(description="`next_cursor` of the answer before: goes on from there.")] = None


class Service(BaseModel):
    """One service as this server hears it. Counts are of the last 24 hours."""

    service: str
    environment: str | None
    last_request: str | None
    last_heartbeat: str | None
    stopped: bool = Field(description="Its last heartbeat said that it stopped on purpose.")
    forged: int = Field(description="Requests whose identity headers came from an untrusted peer.")
    unproven: int = Field(description="Requests whose identity headers were believed without proof.")
    dropped: int = Field(description="Spans it lost before they got here.")
    open_requests: int = Field(description="Requests open for over a minute at its last heartbeat.")


class Source(BaseModel):
    """Where an answer comes from, and what is wrong with that."""

    name: str
    state: Literal["ok", "no data yet", "unreadable"]
    message: str
    newest: str | None = Field(description="When its newest request of a service began.")
    services: list[Service]


class Log(BaseModel):
    timestamp: str = Field(description="When the request began, UTC.")
    user: str | None = Field(description="The caller's login; null for callers who are not people.")
    device: str | None = Field(description='The device\'s name; a guess by the user agent is marked: "iPhone (?)".')
    ip: str | None = Field(description="The caller's tailnet address, else the address it came from.")
    endpoint: str | None = Field(description="The route, else the path.")
    method: str
    status: int | None
    response_time_ms: float | None = Field(description="null where the source does not know it.")
    service: str
    environment: str | None
    traffic: str
    page: str | None
    path: str | None
    caller: str
    full_name: str | None
    tags: str | None
    device_id: str | None = Field(description="The device's stable id.")
    device_guess: str | None
    identity_source: str
    proven: bool = Field(description="False where a tailnet peer could have sent these identity headers itself.")
    source: str
    trace_id: str
    span_id: str


class Summary(BaseModel):
    """Of people's requests in the whole window, whatever the limit."""

    total_requests: int
    unique_users: int
    unique_devices: int
    avg_response_time_ms: float | None


class AccessLogs(BaseModel):
    logs: list[Log]
    summary: Summary
    next_cursor: str | None = Field(description="Pass it as `cursor` for the rows after these; null at the end.")
    sources: list[Source]


class ActiveUser(BaseModel):
    email: str
    device: str | None
    last_seen: str
    last_seen_at: str
    current_page: str | None
    full_name: str | None
    service: str
    device_guess: str | None


class Active(BaseModel):
    active_users: list[ActiveUser]
    total_active: int
    sources: list[Source]


def access_logs(store: Store, params: AccessLogsParams, now: datetime) -> AccessLogs:
    """All requests of the window, newest first, and a summary of people's. Raises QuestionError, StoreError.

    The window is fixed by the first page: a cursor carries it, so that a walk sees each row once while new ones arrive.
    """
    window, after = ending(now, timedelta(hours=params.hours)), None
    if params.cursor is not None:
        window, after = read_cursor(params.cursor)
    filters = params.as_filters()
    rows = store.run(Rows(range=window, filters=filters, limit=params.limit + 1, after=after))
    metrics = ("requests", "people", "devices", "mean_ms")
    [total] = store.run(
        Aggregate(range=window, filters={**filters, "kind": ("request",)}, known=("person",), metrics=metrics)
    ).rows
    shown = rows[: params.limit]
    return AccessLogs(
        logs=[_log(span) for span in shown],
        summary=Summary.model_validate(
            {
                "total_requests": total["requests"],
                "unique_users": total["people"],
                "unique_devices": total["devices"],
                "avg_response_time_ms": _rounded(total["mean_ms"]),
            }
        ),
        next_cursor=write_cursor(window, shown[-1]) if len(rows) > params.limit else None,
        sources=sources(store, now),
    )


def active(store: Store, params: Filters, now: datetime) -> Active:
    """People with a page or `api` request in the last five minutes, latest first; exactly five minutes ago is over.

    Polls do not count: an open tab is nobody. `current_page` is the newest page known among those requests.
    """
    window = ending(now, ACTIVE_FOR)
    filters = {**params.as_filters(), "traffic": ("page", "api")}
    newest = store.run(Rows(range=window, filters=filters, known=("person",), newest_per="person"))
    on_page = store.run(Rows(range=window, filters=filters, known=("person", "page"), newest_per="person"))
    pages = {span.login: span.page for span in on_page}
    users = [_active_user(span, pages.get(span.login), now) for span in newest]
    return Active(active_users=users, total_active=len(users), sources=sources(store, now))


def sources(store: Store, now: datetime) -> list[Source]:
    return [_source(store.state(nanoseconds(now)))]


def write_cursor(window: Range, last: Span) -> str:
    """Where to go on after this row: opaque to the caller, the window and the row's place to us."""
    place = [*window, last.start_ns, last.trace_id.hex(), last.span_id.hex()]
    return urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[Range, Position]:
    """Raises QuestionError for what `write_cursor` did not write."""
    try:
        start_ns, end_ns, at_ns, trace_id, span_id = json.loads(urlsafe_b64decode(cursor + "=="))
        if not all(isinstance(number, int) and 0 <= number < 2**63 for number in (start_ns, end_ns, at_ns)):
            raise ValueError("no time")
        return Range(start_ns, end_ns), Position(at_ns, bytes.fromhex(trace_id), bytes.fromhex(span_id))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise QuestionError(
            f"cursor is {cursor!r}.", value=cursor, rule="It is next_cursor of an earlier answer, unchanged."
        ) from None


def iso(time_ns: int) -> str:
    """UTC with `Z`, to the millisecond, rounded down."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9 // 10**6:03}Z"


def ago(seconds: float) -> str:
    """In words: `just now`, `2 min ago`, `3 h ago`, `4 days ago`."""
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {word} ago"
    return "just now"


def _log(span: Span) -> Log:
    return Log(
        timestamp=iso(span.start_ns),
        user=span.login,
        device=span.device,
        ip=span.address or span.client_address,
        endpoint=span.endpoint,
        method=span.method,
        status=span.status,
        response_time_ms=_rounded(None if span.duration_ns is None else span.duration_ns / 1e6),
        service=span.service,
        environment=span.environment,
        traffic=span.traffic,
        page=span.page,
        path=span.path,
        caller=span.caller,
        full_name=span.full_name,
        tags=span.tags,
        device_id=span.node_id,
        device_guess=span.guess,
        identity_source=span.identity_source,
        proven=span.proven,
        source=span.source,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
    )


def _active_user(span: Span, page: str | None, now: datetime) -> ActiveUser:
    return ActiveUser(
        email=str(span.login),
        device=span.device,
        last_seen=ago((nanoseconds(now) - span.start_ns) / 1e9),
        last_seen_at=iso(span.start_ns),
        current_page=page,
        full_name=span.full_name,
        service=span.service,
        device_guess=span.guess,
    )


def _source(state: State) -> Source:
    services = [_service(service) for service in state.services]
    newest = None if state.newest_ns is None else iso(state.newest_ns)
    return Source(name=state.name, state=state.state, message=state.message, newest=newest, services=services)


def _service(state: ServiceState) -> Service:
    return Service(
        service=state.service,
        environment=state.environment,
        last_request=None if state.last_request_ns is None else iso(state.last_request_ns),
        last_heartbeat=None if state.last_heartbeat_ns is None else iso(state.last_heartbeat_ns),
        stopped=state.stopped,
        forged=state.forged,
        unproven=state.unproven,
        dropped=state.dropped,
        open_requests=state.open_requests,
    )


def _rounded(milliseconds: object) -> float | None:
    """To the microsecond."""
    return round(milliseconds, 3) if isinstance(milliseconds, float) else None
