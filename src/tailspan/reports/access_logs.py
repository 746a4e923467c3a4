"""All requests, newest first, and a summary of those that people made."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, Field

from tailspan.errors import QuestionError
from tailspan.query import Aggregate, Position, Range, Rows, ending
from tailspan.reports import PERSON, Filters, Source, Sources, Traffic, iso, read_cursor, rounded, write_cursor
from tailspan.span import Span


class AccessLogsParams(Filters):
    hours: Annotated[int, Field(ge=1, le=168, description="How far back, in hours.")] = 24
    traffic: Annotated[Traffic | None, Field(description="Only this kind of traffic.")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="At most this many rows in `logs`.")] = 100
    cursor: Annotated[str | None, Field(description="`next_cursor` of the answer before: goes on from there.")] = None


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
    claim: str | None = Field(description="Whom a log's line names: the user where the settings trust that log.")
    proven: bool = Field(description="False where a tailnet peer could have sent these identity headers itself.")
    source: str
    trace_id: str
    span_id: str


class Summary(BaseModel):
    """Of people's requests in the whole window, whatever the limit; what their agents asked is left out."""

    total_requests: int
    unique_users: int
    unique_devices: int
    avg_response_time_ms: float | None


class AccessLogs(BaseModel):
    logs: list[Log]
    summary: Summary
    next_cursor: str | None = Field(description="Pass it as `cursor` for the rows after these; null at the end.")
    sources: list[Source]


def access_logs(of: Sources, params: AccessLogsParams, now: datetime) -> AccessLogs:
    """All requests of the window, newest first, and a summary of people's. Raises QuestionError, StoreError.

    The window is fixed by the first page: a cursor carries it, so that a walk sees each row once while new ones arrive.
    """
    window, after = ending(now, timedelta(hours=params.hours)), None
    if params.cursor is not None:
        window, after = read_place(params.cursor)
    filters = params.as_filters()
    asked: dict[str, Any] = {"range": window, "labels": of.meaning()}
    rows = of.store.run(Rows(**asked, filters=filters, limit=params.limit + 1, after=after))
    of_people: dict[str, Any] = {"metrics": ("requests", "people", "devices", "mean_ms"), "known": PERSON}
    if not params.traffic:
        of_people["without"] = {"traffic": ("agent",)}  # what somebody's Claude asks is no use by that person
    [total] = of.store.run(Aggregate(**asked, **of_people, filters={**filters, "kind": ("request",)})).rows
    shown = rows[: params.limit]
    return AccessLogs(
        logs=[log(span) for span in shown],
        summary=Summary.model_validate(
            {
                "total_requests": total["requests"],
                "unique_users": total["people"],
                "unique_devices": total["devices"],
                "avg_response_time_ms": rounded(total["mean_ms"]),
            }
        ),
        next_cursor=write_place(window, shown[-1]) if len(rows) > params.limit else None,
        sources=of.told(now),
    )


def write_place(window: Range, last: Span) -> str:
    """Where to go on after this row: the window and the row's place."""
    return write_cursor(*window, last.start_ns, last.trace_id.hex(), last.span_id.hex())


def read_place(cursor: str) -> tuple[Range, Position]:
    """Raises QuestionError for what `write_place` did not write."""
    start_ns, end_ns, at_ns, trace_id, span_id = read_cursor(cursor, int, int, int, str, str)
    try:
        return Range(start_ns, end_ns), Position(at_ns, bytes.fromhex(trace_id), bytes.fromhex(span_id))
    except ValueError:
        raise QuestionError(
            f"cursor is {cursor!r}.", value=cursor, rule="It is next_cursor of an earlier answer, unchanged."
        ) from None


def log(span: Span) -> Log:
    return Log(
        timestamp=iso(span.start_ns),
        user=span.login,
        device=span.device,
        ip=span.address or span.client_address,
        endpoint=span.endpoint,
        method=span.method,
        status=span.status,
        response_time_ms=rounded(None if span.duration_ns is None else span.duration_ns / 1e6),
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
        claim=span.claim,
        proven=span.proven,
        source=span.source,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
    )
