"""Forty questions that people ask: which tool answers each, and what the definitions in plain Python say."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tailspan.query import Aggregate, Question, Rows, Sessions, ending, nanoseconds
from tailspan.reports import iso, rounded
from tests.server import reference
from tests.server.reference import SECOND
from tests.server.test_reference import LABELS
from tests.stack.test_stores import BEATS, HISTORY, WORLD

NOW: Final = datetime.fromtimestamp(WORLD[-1].start_ns // SECOND + 60, UTC)
ASKED: Final = tomllib.loads(Path(__file__).with_name("questions.toml").read_text("utf-8"))["questions"]


@dataclass(frozen=True)
class Asked:
    language: str
    text: str
    tool: str
    arguments: Mapping[str, Any]
    holds: str
    reference: str

    def expected(self) -> Any:
        return REFERENCES[self.reference](self)

    def found(self, data: Any) -> Any:
        """What the answer holds, in the shape that the reference has."""
        for key in self.holds.split("."):
            data = data[int(key)] if isinstance(data, list) else data[key]
        return narrowed(expanded(data), self.expected())

    def question(self, kind: type[Question] = Question, **more: Any) -> Any:
        """The question of the tool's window, as tailspan asks it."""
        given = dict(self.arguments)
        days = given.pop("days", 7)
        filters = {name: tuple(values) for name, values in given.pop("filters", {}).items()}
        if service := given.pop("service", None):
            filters["service"] = (service,)
        more["without"] = {name: tuple(values) for name, values in given.pop("without", {}).items()}
        more |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        more.pop("ask", None)
        window = ending(NOW, timedelta(days=days))
        return kind(range=window, zone="Europe/Madrid", labels=LABELS, filters=filters, **more)


QUESTIONS: Final = [
    Asked(
        language="es" if "es" in one else "en",
        text=one.get("es") or one["en"],
        tool=one["tool"],
        arguments=one.get("arguments", {}),
        holds=one["holds"],
        reference=one["reference"],
    )
    for one in ASKED
]


def usage(asked: Asked) -> dict[str, Any]:
    return reference.dashboard_usage(asked.question(), WORLD, HISTORY)


def health(asked: Asked) -> dict[str, Any]:
    return reference.system_health(asked.question(), WORLD, HISTORY)


def active(asked: Asked) -> list[dict[str, Any]]:
    service = asked.arguments.get("service")
    named = reference.as_answered(WORLD, HISTORY, LABELS)
    spans = [span for span in named if service in (None, span.service)]
    found = [_seen(one) for one in reference.active(spans, HISTORY, nanoseconds(NOW))]
    return sorted(found, key=lambda one: str(one.pop("last_seen_at")), reverse=True)


def _seen(one: dict[str, Any]) -> dict[str, Any]:
    return {key: one[key] for key in ("email", "device", "current_page", "last_seen_at")}


def features(asked: Asked) -> list[str]:
    """As often as people used them, the five that most did."""
    query = asked.question(Aggregate, metrics=("deliberate_calls", "views"), dimensions=("feature",), known=("person",))
    rows = reference.answer_aggregate(query, WORLD, HISTORY).rows
    counts = {row["feature"]: int(row["deliberate_calls"] or 0) + int(row["views"] or 0) for row in rows}
    words = {"es": ("acceso", "accesos"), "en": ("access", "accesses")}[asked.language]
    named = {name: count for name, count in counts.items() if name is not None}
    return [f"{name} ({count} {words[count != 1]})" for name, count in reference.most(named, 5)]


def hurt(asked: Asked) -> dict[str, Any]:
    """Whose calls of the slowest endpoint were as slow as its p95, the slowest first."""
    [(endpoint, _)] = health(asked)["slowest_endpoints"][0].items()
    calls = [
        record
        for record in reference.of_range(asked.question(), WORLD, HISTORY)
        if record.is_request and record.person and record.span.traffic == "api" and record.span.endpoint == endpoint
    ]
    times = [record.duration_ns for record in calls if record.duration_ns is not None]
    p95_ns = reference.nearest_rank(95, times)
    longest: dict[str, int] = {}
    for record in calls:
        longest[str(record.person)] = max(longest.get(str(record.person), 0), record.duration_ns or 0)
    people = [person for person, ns in reference.most(longest) if ns >= p95_ns]
    return {"endpoint": endpoint, "p95_ms": p95_ns / 1e6, "calls": len(calls), "people": people}


def uptime(asked: Asked) -> str:
    window = asked.question().range
    names = {(beat.service, beat.environment) for beat in BEATS if beat.service != "tailspan"}
    lives = [reference.uptime(BEATS, *name, window) for name in names]
    up, down = (sum(life[kind] for life in lives) for kind in ("up", "down"))
    return f"{int(up / (up + down) * 1000) / 10:.1f}%"


def query(asked: Asked) -> list[dict[str, Any]]:
    rows = reference.answer_aggregate(asked.question(Aggregate), WORLD, HISTORY).rows
    return [{name: _shown(name, value) for name, value in row.items()} for row in rows]


def _shown(name: str, value: Any) -> Any:
    if name in ("first_seen", "last_seen"):
        return None if value is None else iso(value)
    return rounded(value) if name.endswith("_ms") and isinstance(value, float) else value


def newest(asked: Asked) -> list[dict[str, Any]]:
    spans = reference.answer_rows(asked.question(Rows), WORLD, HISTORY)
    return [{"timestamp": iso(s.start_ns), "user": s.login, "device": s.device, "endpoint": s.endpoint} for s in spans]


def visits(asked: Asked) -> list[dict[str, Any]]:
    found = reference.answer_sessions(asked.question(Sessions), WORLD, HISTORY)
    return [{"person": s.person, "start": iso(s.start_ns), "requests": s.requests} for s in found]


def percent(share: float) -> str:
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"


def session_minutes(asked: Asked) -> float:
    found = [session for _, session in reference.begun(asked.question(), WORLD, HISTORY)]
    return round(sum(session.duration_ns for session in found) / SECOND / len(found) / 60, 1)


REFERENCES: Final[Mapping[str, Callable[[Asked], Any]]] = {
    "active": active,
    "total_active": lambda asked: len(active(asked)),
    "features": features,
    "sessions": lambda asked: len(reference.begun(asked.question(), WORLD, HISTORY)),
    "people": lambda asked: len(usage(asked)["user_sessions"]),
    "most_active": lambda asked: usage(asked)["user_sessions"][0]["user"],
    "session_minutes": session_minutes,
    "accesses_by_day": lambda asked: {one["day"]: one["accesses"] for one in usage(asked)["accesses_by_day"]},
    "peak_hours": lambda asked: usage(asked)["peak_hours"][:3],
    "cards": lambda asked: usage(asked)["most_viewed_cards"][:5],
    "users": lambda asked: [{key: one[key] for key in ("user", "sessions")} for one in usage(asked)["user_sessions"]],
    "slowest": lambda asked: health(asked)["slowest_endpoints"],
    "mean_ms": lambda asked: health(asked)["avg_api_response_ms"],
    "error_rate": lambda asked: percent(health(asked)["error_rate"]["overall"]),
    "hurt": hurt,
    "uptime": uptime,
    "query": query,
    "newest": newest,
    "visits": visits,
}


def expanded(value: Any) -> Any:
    """A list of objects that was told by columns."""
    if not isinstance(value, dict) or "rows" not in value:
        return value
    count = value["rows"]
    columns = {name: _values(column, count) for name, column in value.items() if name != "rows"}
    return [{name: column[n] for name, column in columns.items()} for n in range(count)]


def _values(column: Any, count: int) -> list[Any]:
    if isinstance(column, list):
        return column
    if "all" in column:
        return [column["all"]] * count
    return [column["from"] + n * column["step"] for n in range(count)]


def narrowed(found: Any, like: Any) -> Any:
    """Without what is beside the entries that are compared."""
    if isinstance(found, list) and isinstance(like, list) and len(found) == len(like):
        return [narrowed(one, other) for one, other in zip(found, like, strict=True)]
    if isinstance(found, dict) and isinstance(like, dict):
        return {key: found[key] for key in like if key in found}
    return found
