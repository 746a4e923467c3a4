"""What people use, when and how long: the numbers of a week on one card."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field

from tailspan.query import MAX_GROUPS, Aggregate, ending
from tailspan.reports import MORE, PERSON, Filters, Source, Sources, Window, window_of
from tailspan.reports.active import ActiveUser, active
from tailspan.zone import days_of

T = TypeVar("T", int, str)
E = TypeVar("E")
MOST: Final = 100  # entries of a list at most
FAVORITES: Final = 3


class DashboardUsageParams(Filters):
    days: Annotated[int, Field(ge=1, le=30, description="How far back, in days of 24 hours.")] = 7


class Card(BaseModel):
    card: str
    views: int
    visible_ms: int | None = Field(description="How long it was seen, all views together; null where not known.")


class Hour(BaseModel):
    hour: int = Field(description="Hour of the day, 0 to 23, in the configured zone.")
    requests: int = Field(description="Accesses: people's pages and deliberate calls.")


class User(BaseModel):
    user: str
    sessions: int
    total_time_hours: float
    favorite_features: list[str]


class Feature(BaseModel):
    feature: str
    uses: int = Field(description="Deliberate calls and views of cards.")


class Day(BaseModel):
    day: str
    accesses: int


class UsageSummary(BaseModel):
    period_days: int
    total_sessions: int
    unique_users: int = Field(description="People with a session.")
    total_accesses: int
    total_time_hours: float
    avg_session_duration_min: float | None
    most_active_user: str | None


class DashboardUsage(Window):
    most_viewed_cards: list[Card]
    peak_hours: list[Hour] = Field(description="The busiest first.")
    user_sessions: list[User]
    api_calls_by_endpoint: list[dict[str, int]] = Field(description="People's `api` calls: [{endpoint: calls}].")
    polls_by_endpoint: list[dict[str, int]] = Field(description="Likewise, people's polls.")
    top_features: list[Feature]
    accesses_by_day: list[Day] = Field(description="Each day of the window in the configured zone, the first is cut.")
    summary: UsageSummary
    active_users: list[ActiveUser] = Field(description="Those of the last five minutes, as /active has them.")
    total_active: int
    more: dict[str, int] = MORE
    sources: list[Source]


def dashboard_usage(of: Sources, params: DashboardUsageParams, now: datetime) -> DashboardUsage:
    """Sessions, accesses, features, cards and calls of people. Raises StoreError."""
    labels = of.meaning()
    window = ending(now, timedelta(days=params.days))
    asked: dict[str, Any] = {"range": window, "labels": labels, "zone": labels.zone, "limit": MAX_GROUPS}
    asked["filters"] = filters = params.as_filters()
    more = Counter[str]()

    def groups(lists: str, metrics: tuple[str, ...], *dimensions: str, **changed: Any) -> list[dict[str, Any]]:
        """Those that `lists` are made of."""
        found = of.store.run(Aggregate(metrics=metrics, dimensions=dimensions, **{**asked, **changed}))
        more.update(dict.fromkeys(lists.split(), found.more))
        return found.rows

    def first(name: str, entries: list[E]) -> list[E]:
        more[name] += max(0, len(entries) - MOST)
        return entries[:MOST]

    accesses = groups("accesses_by_day peak_hours", ("accesses",), "day", "hour_of_day")
    used = {"known": ("person", "feature")}
    uses = groups("top_features", ("deliberate_calls", "views"), "person", "feature", **used)
    sessions = groups("user_sessions", ("sessions", "session_time_s"), "person")
    cards = groups("most_viewed_cards", ("views", "visible_ms"), "card", known=("card",), limit=MOST)
    calls = {"filters": {**filters, "traffic": ("api", "poll")}, "known": (*PERSON, "endpoint")}
    endpoints = groups("api_calls_by_endpoint polls_by_endpoint", ("requests",), "endpoint", "traffic", **calls)

    by_day, by_hour = Counter(dict.fromkeys(days_of(labels.zone, *window), 0)), Counter[int]()
    for group in accesses:
        by_day[group["day"]] += group["accesses"]
        by_hour[group["hour_of_day"]] += group["accesses"]
    features, favorites = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for group in uses:
        count = group["deliberate_calls"] + group["views"]
        features[group["feature"]] += count
        favorites[group["person"]][group["feature"]] += count
    now_active = active(of, Filters(**params.model_dump(include=set(Filters.model_fields))), now)
    return DashboardUsage(
        most_viewed_cards=[Card(**card) for card in cards],
        peak_hours=[Hour(hour=hour, requests=count) for hour, count in _most(by_hour)],
        user_sessions=[
            User(
                user=group["person"],
                sessions=group["sessions"],
                total_time_hours=_hours(group["session_time_s"]),
                favorite_features=[name for name, _ in _most(favorites[group["person"]])[:FAVORITES]],
            )
            for group in sessions
        ],
        api_calls_by_endpoint=first("api_calls_by_endpoint", _by_endpoint(endpoints, "api")),
        polls_by_endpoint=first("polls_by_endpoint", _by_endpoint(endpoints, "poll")),
        top_features=first("top_features", [Feature(feature=name, uses=count) for name, count in _most(features)]),
        accesses_by_day=[Day(day=day, accesses=count) for day, count in sorted(by_day.items())],
        summary=_summary(params.days, sessions, by_day.total()),
        active_users=now_active.active_users,
        total_active=now_active.total_active,
        more=+more,
        sources=of.told(now),
        **window_of(window, labels.zone),
    )


def _summary(days: int, sessions: list[dict[str, Any]], accesses: int) -> UsageSummary:
    count = sum(group["sessions"] for group in sessions)
    seconds = sum(group["session_time_s"] for group in sessions)
    return UsageSummary(
        period_days=days,
        total_sessions=count,
        unique_users=len(sessions),
        total_accesses=accesses,
        total_time_hours=_hours(seconds),
        avg_session_duration_min=round(seconds / count / 60, 1) if count else None,
        most_active_user=sessions[0]["person"] if sessions else None,
    )


def _most(counted: Counter[T]) -> list[tuple[T, int]]:
    """The largest first, equal ones in their own order."""
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def _by_endpoint(groups: list[dict[str, Any]], traffic: str) -> list[dict[str, int]]:
    return [{group["endpoint"]: group["requests"]} for group in groups if group["traffic"] == traffic]


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 2)
