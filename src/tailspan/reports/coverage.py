"""Which share of what its proxy saw each service told of itself, by hour, and when it told of nothing."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tailspan.coverage import coverages
from tailspan.covered import Covered, Doubled, Gap, Hour
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
    by_proxy: int = Field(description="Of these, those that the proxy answered itself, where its log says so.")
    share: float = Field(description="0 to 1, rounded down: 1 means all.")
    doubled: int = Field(
        description="Of these, those that are there twice: a service told of them under another address or name."
    )
    doubled_by: list[str] = Field(description="The services that told of these.")
    gaps: list[Silence]


class HourCoverage(BaseModel):
    hour: str
    service: str
    environment: str | None
    requests: int
    live: int
    by_proxy: int


class CoverageAnswer(BaseModel):
    services: list[ServiceCoverage]
    hours: list[HourCoverage] = Field(description="Those of which a log was read, and with requests.")
    sources: list[Source]


def coverage(of: Sources, params: CoverageParams, now: datetime) -> CoverageAnswer:
    """Nothing is said of hours of which no log was read."""
    start_ns = nanoseconds(now - timedelta(hours=params.hours))
    found = of.store.coverage(start_ns, nanoseconds(now))
    asked = Covered(
        [hour for hour in found.hours if _is_asked(hour, params)],
        [gap for gap in found.gaps if _is_asked(gap, params)],
        [one for one in found.doubled if _is_asked(one, params)],
    )
    services = [
        ServiceCoverage(
            service=one.service,
            environment=one.environment,
            requests=one.requests,
            live=one.live,
            by_proxy=one.own,
            share=one.share,
            doubled=sum(one.doubled.values()),
            doubled_by=list(one.doubled),
            gaps=[Silence(start=iso(gap.start_ns), end=iso(gap.end_ns), requests=gap.requests) for gap in one.gaps],
        )
        for one in coverages(asked)
    ]
    return CoverageAnswer(services=services, hours=list(map(_hour, asked.hours)), sources=of.told(now))


def _is_asked(one: Hour | Gap | Doubled, params: CoverageParams) -> bool:
    return params.service in (None, one.service) and params.environment in (None, one.environment)


def _hour(of: Hour) -> HourCoverage:
    return HourCoverage(
        hour=iso(of.start_ns),
        service=of.service,
        environment=of.environment,
        requests=of.requests,
        live=of.live,
        by_proxy=of.own,
    )
