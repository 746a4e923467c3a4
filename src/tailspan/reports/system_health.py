"""Whether services were up, how fast they answered and what failed."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from tailspan.query import MAX_GROUPS, Aggregate, Groups, Range, ending, nanoseconds
from tailspan.reports import MORE, PERSON, Filters, Source, Sources, Window, ago, rounded, window_of
from tailspan.span import OWN_SERVICE
from tailspan.uptime import Stretch, Uptime, by_service, total
from tailspan.zone import day_range, days_of

MOST: Final = 100  # endpoints at most
SLOWEST: Final = 5
HOUR_NS: Final = 3600 * 10**9
TIMES: Final = ("requests", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")


class SystemHealthParams(Filters):
    days: Annotated[int, Field(ge=1, le=30, description="How far back, in days of 24 hours.")] = 7


class ResponseTimes(BaseModel):
    """Of people's `api` calls, in ms; null where no time is known."""

    calls: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class ErrorRate(BaseModel):
    """Answers of 500 and more, as a share of all requests: 0 to 1."""

    overall: float | None
    by_endpoint: dict[str, float] = Field(description=f"Of the {MOST} endpoints with the most requests.")


class ServiceUptime(BaseModel):
    """Hours of the window. The percentage is of up and down alone."""

    service: str
    environment: str | None
    uptime_percentage: float | None
    up_hours: float
    down_hours: float
    off_hours: float = Field(description="After a clean stop.")
    host_off_hours: float = Field(description="The server was silent too.")
    before_hours: float = Field(description="Before its first heartbeat ever.")
    pending_hours: float = Field(description="Since its newest beat, where the next may be on its way.")


class HealthOfDay(BaseModel):
    day: str
    uptime_percentage: float | None
    requests: int
    errors: int
    error_rate: float | None
    avg_api_response_ms: float | None


class QueryTimes(BaseModel):
    """How long questions took, in ms."""

    mean_ms: float
    max_ms: float


class SystemHealth(Window):
    uptime_percentage: float | None = Field(description="Of the window; null without heartbeats.")
    uptime_last_7d: str | None
    uptime_by_service: list[ServiceUptime]
    avg_api_response_ms: float | None = Field(description="Of people's `api` calls.")
    api_response_times: dict[str, ResponseTimes] = Field(description=f"Of the {MOST} endpoints with the most calls.")
    slowest_endpoints: list[dict[str, str]] = Field(description=f"The {SLOWEST} slowest by p95: [{{endpoint: p95}}].")
    error_rate: ErrorRate
    data_freshness: str | None = Field(description="Age of the service's newest request; null where there is none.")
    influxdb_status: str = Field(description='"healthy", what is wrong with it, or "not used".')
    influxdb_query_times: QueryTimes | None = Field(description="Of the newest 100 of what InfluxDB was asked.")
    store_status: str
    store_query_times: QueryTimes | None
    history: list[HealthOfDay]
    more: dict[str, int] = MORE
    sources: list[Source]


class _Timed:
    """Asks the store, and keeps how long it took."""

    def __init__(self, of: Sources, asked: dict[str, Any]) -> None:
        self.of, self.asked, self.took_ms = of, asked, list[float]()

    def groups(self, metrics: tuple[str, ...], *dimensions: str, **changed: Any) -> Groups:
        start = time.perf_counter()
        found = self.of.store.run(Aggregate(metrics=metrics, dimensions=dimensions, **{**self.asked, **changed}))
        self.took_ms.append((time.perf_counter() - start) * 1e3)
        return found


def system_health(of: Sources, params: SystemHealthParams, now: datetime) -> SystemHealth:
    """Uptime by heartbeats, people's response times, errors of all requests, and each day of the window."""
    labels, filters = of.meaning(), params.as_filters()
    window = ending(now, timedelta(days=params.days))
    ask = _Timed(of, {"range": window, "labels": labels, "zone": labels.zone, "filters": filters, "limit": MAX_GROUPS})
    calls = {"filters": {**filters, "traffic": ("api",)}, "known": PERSON}
    [overall] = ask.groups(("error_rate", "requests")).rows
    [mean] = ask.groups(("mean_ms",), **calls).rows
    times = ask.groups(TIMES, "endpoint", **{**calls, "known": (*PERSON, "endpoint")})
    slowest = sorted((-group["p95_ms"], group["endpoint"]) for group in times.rows if group["p95_ms"] is not None)
    errors = ask.groups(("requests", "error_rate"), "endpoint", known=("endpoint",), limit=MOST)
    days = {group["day"]: group for group in ask.groups(("requests", "errors", "error_rate"), "day").rows}
    means = {group["day"]: group["mean_ms"] for group in ask.groups(("mean_ms",), "day", **calls).rows}
    lives = _lives(of, filters, window)
    sources = of.told(now)
    newest = _newest(of, filters, now)
    return SystemHealth(
        uptime_percentage=_percent(_sum(lives, window).share),
        uptime_last_7d=_words(_sum(lives, ending(now, timedelta(days=7))).share),
        uptime_by_service=[_service(*name, total(stretches, window)) for name, stretches in lives.items()],
        avg_api_response_ms=rounded(mean["mean_ms"]),
        api_response_times={group["endpoint"]: _times(group) for group in times.rows[:MOST]},
        slowest_endpoints=[{endpoint: f"{-p95_ms:.0f}ms"} for p95_ms, endpoint in slowest[:SLOWEST]],
        error_rate=ErrorRate(
            overall=overall["error_rate"], by_endpoint={group["endpoint"]: group["error_rate"] for group in errors.rows}
        ),
        data_freshness=None if newest is None else ago((nanoseconds(now) - newest) / 1e9),
        influxdb_status=_influxdb(of.store.name, sources[0].state),
        influxdb_query_times=_query_times(of.store.took_ms),
        store_status=sources[0].state,
        store_query_times=_query_times(ask.took_ms),
        history=[
            HealthOfDay(
                day=day,
                uptime_percentage=_percent(_sum(lives, _within(window, Range(*day_range(labels.zone, day)))).share),
                requests=days.get(day, {}).get("requests", 0),
                errors=days.get(day, {}).get("errors", 0),
                error_rate=days.get(day, {}).get("error_rate"),
                avg_api_response_ms=rounded(means.get(day)),
            )
            for day in days_of(labels.zone, *window)
        ],
        more=+Counter(
            {
                "api_response_times": max(0, len(times.rows) - MOST) + times.more,
                "slowest_endpoints": times.more,  # which may be among them
                "error_rate.by_endpoint": errors.more,
            }
        ),
        sources=sources,
        **window_of(window, labels.zone),
    )


def _influxdb(store: str, state: str) -> str:
    if store != "influxdb":
        return "not used"
    return "healthy" if state == "ok" else state


def _query_times(took_ms: Sequence[float]) -> QueryTimes | None:
    if not took_ms:
        return None
    return QueryTimes(mean_ms=round(sum(took_ms) / len(took_ms), 1), max_ms=round(max(took_ms), 1))


def _lives(
    of: Sources, filters: dict[str, tuple[str, ...]], window: Range
) -> dict[tuple[str, str | None], list[Stretch]]:
    """The stretches of each service that is asked for; who used it and from where does not matter to these."""
    lives = by_service(of.store.heartbeats(window.end_ns), window.end_ns)
    return {name: stretches for name, stretches in lives.items() if _asked_for(filters, *name)}


def _newest(of: Sources, filters: dict[str, tuple[str, ...]], now: datetime) -> int | None:
    """When the newest request of the services that are asked for began, in ns; those of the server itself aside."""
    return max(
        (
            state.last_request_ns
            for state in of.store.state(nanoseconds(now)).services
            if state.last_request_ns is not None
            and state.service != OWN_SERVICE
            and _asked_for(filters, state.service, state.environment)
        ),
        default=None,
    )


def _asked_for(filters: dict[str, tuple[str, ...]], service: str, environment: str | None) -> bool:
    services, environments = filters.get("service"), filters.get("environment")
    return (not services or service in services) and (not environments or environment in environments)


def _sum(lives: dict[tuple[str, str | None], list[Stretch]], window: Range) -> Uptime:
    """All services together."""
    return total([stretch for stretches in lives.values() for stretch in stretches], window)


def _within(window: Range, day: Range) -> Range:
    return Range(max(window.start_ns, day.start_ns), min(window.end_ns, day.end_ns))


def _service(service: str, environment: str | None, time: Uptime) -> ServiceUptime:
    return ServiceUptime(
        service=service,
        environment=environment,
        uptime_percentage=_percent(time.share),
        up_hours=round(time.up / HOUR_NS, 3),
        down_hours=round(time.down / HOUR_NS, 3),
        off_hours=round(time.off / HOUR_NS, 3),
        host_off_hours=round(time.host_off / HOUR_NS, 3),
        before_hours=round(time.before / HOUR_NS, 3),
        pending_hours=round(time.pending / HOUR_NS, 3),
    )


def _times(group: dict[str, Any]) -> ResponseTimes:
    return ResponseTimes(calls=group["requests"], **{name: rounded(group[name]) for name in TIMES[1:]})


def _percent(share: float | None) -> float | None:
    return None if share is None else round(share * 100, 3)


def _words(share: float | None) -> str | None:
    """As in "99.8%", rounded down: an outage never reads as 100%."""
    return None if share is None else f"{int(share * 1000) / 10:.1f}%"
