"""Which share of what its proxy saw each service told of itself, by hour, and when it told of nothing."""

from datetime import datetime, timedelta
from itertools import groupby
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tailspan.coverage import coverages
from tailspan.ledger import HOUR, Minute
from tailspan.query import nanoseconds
from tailspan.reports import Source, Sources, iso


class CoverageParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: Annotated[int, Field(ge=1, le=168, description="How far back.")] = 24
    service: Annotated[str | None, Field(description="Only this service (`service.name`).")] = None
    environment: Annotated[str | None, Field(description="Only this environment.")] = None


class Silence(BaseModel):
    start: str
    end: str
    requests: int = Field(description="Those that the service should have told of.")


class ServiceCoverage(BaseModel):
    service: str
    environment: str | None
    requests: int = Field(description="Requests that its proxy wrote down.")
    live: int = Field(description="Of these, those that it told of itself.")
    share: float = Field(description="0 to 1.")
    gaps: list[Silence]


class HourCoverage(BaseModel):
    hour: str
    service: str
    environment: str | None
    requests: int
    live: int


class CoverageAnswer(BaseModel):
    services: list[ServiceCoverage]
    hours: list[HourCoverage] = Field(description="Those of which a log was read, and with requests.")
    sources: list[Source]


def coverage(of: Sources, params: CoverageParams, now: datetime) -> CoverageAnswer:
    """Nothing is said of hours of which no log was read."""
    start_ns = nanoseconds(now - timedelta(hours=params.hours))
    minutes = [one for one in of.store.coverage(start_ns, nanoseconds(now)) if _is_asked(one, params)]
    services = [
        ServiceCoverage(
            service=one.service,
            environment=one.environment,
            requests=one.requests,
            live=one.live,
            share=round(one.share, 4),
            gaps=[Silence(start=iso(gap.start_ns), end=iso(gap.end_ns), requests=gap.requests) for gap in one.gaps],
        )
        for one in coverages(minutes)
    ]
    return CoverageAnswer(services=services, hours=_hours(minutes), sources=of.told(now))


def _is_asked(minute: Minute, params: CoverageParams) -> bool:
    return params.service in (None, minute.service) and params.environment in (None, minute.environment)


def _hours(minutes: list[Minute]) -> list[HourCoverage]:
    found = []
    for (service, environment, hour), own in groupby(minutes, lambda one: (*one[:2], one.start_ns // HOUR)):
        known = list(own)
        requests, live = sum(one.requests for one in known), sum(one.live for one in known)
        hours = {"hour": iso(hour * HOUR), "service": service, "environment": environment}
        found.append(HourCoverage(**hours, requests=requests, live=live))
    return found
