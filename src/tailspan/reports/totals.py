"""How much a service is used, without names: for those who may see the card, but not the people."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tailspan.reports import Sources, Window
from tailspan.reports.dashboard_usage import DashboardUsageParams, Day, Feature, dashboard_usage


class TotalsParams(BaseModel):
    """Nobody may be picked out, so there is no filter by user or device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Annotated[str | None, Field(description="Only this service (`service.name`).")] = None
    environment: Annotated[str | None, Field(description="Only this environment.")] = None
    days: Annotated[int, Field(ge=1, le=30, description="How far back, in days of 24 hours.")] = 7


class TotalsSummary(BaseModel):
    period_days: int
    total_sessions: int
    unique_users: int
    total_accesses: int


class SourceState(BaseModel):
    name: str
    state: str
    message: str


class Totals(Window):
    """The entries of DashboardUsage that name nobody."""

    top_features: list[Feature]
    accesses_by_day: list[Day]
    summary: TotalsSummary
    total_active: int
    sources: list[SourceState]


def totals(of: Sources, params: TotalsParams, now: datetime) -> Totals:
    """Raises StoreError."""
    asked: dict[str, Any] = params.model_dump()
    usage = dashboard_usage(of, DashboardUsageParams(**asked), now)
    return Totals.model_validate(usage.model_dump())
