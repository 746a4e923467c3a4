"""The answers whose shape is promised. What is beside these entries may change."""

from typing import Any

from pydantic import BaseModel


class ActiveUser(BaseModel):
    email: str
    device: str | None
    last_seen: str
    current_page: str | None


class ActiveUsers(BaseModel):
    active_users: list[ActiveUser]
    total_active: int


class UsageStats(BaseModel):
    period_days: int
    total_sessions: int
    unique_users: int
    most_active_user: str | None
    top_features: list[str]
    avg_session_duration_min: float | None


class SystemPerformance(BaseModel):
    uptime_last_7d: str | None
    avg_api_response_ms: float | None
    slowest_endpoints: list[dict[str, str]]
    error_rate: str | None
    influxdb_status: str
    data_freshness: str | None
    slow: list[dict[str, Any]]
