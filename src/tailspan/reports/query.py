"""The grammar over HTTP: any question, as parameters or as JSON, and its answer as JSON or CSV."""

import csv
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tailspan.errors import QuestionError
from tailspan.labels import is_zone
from tailspan.query import (
    FILTERS,
    MAX_GROUPS,
    MAX_ROWS,
    Aggregate,
    Range,
    Rows,
    Session,
    SessionPosition,
    Sessions,
    ending,
    nanoseconds,
    nearest,
)
from tailspan.reports import Source, Sources, iso, read_cursor, rounded, write_cursor
from tailspan.reports.access_logs import Log, log, read_place, write_place

MAX_DAYS: Final = 3660
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
NOT: Final = "!"  # before a filter's name: none of these values
LISTS: Final = ("metrics", "dimensions", "order")
Texts = Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=100)]


class Asked(BaseModel):
    """A question as it is asked. `ask` is its kind; a range is hours, days, or start and end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ask: Annotated[Literal["aggregate", "rows", "sessions"], Field(description="Which kind of answer.")] = "aggregate"
    metrics: Annotated[Texts, Field(description="Of an aggregate, one or more.")] = []
    dimensions: Annotated[Texts, Field(description="Of an aggregate, at most three.")] = []
    order: Annotated[Texts, Field(description="Metrics or dimensions asked for; `-` before one: descending.")] = []
    filters: Annotated[dict[str, Texts], Field(description="Filter → any of these values.")] = {}
    without: Annotated[dict[str, Texts], Field(description="Filter → none of these values.")] = {}
    hours: Annotated[int | None, Field(ge=1, le=MAX_DAYS * 24, description="The hours up to now.")] = None
    days: Annotated[int | None, Field(ge=1, le=MAX_DAYS, description="Likewise, of 24 hours. 7 by default.")] = None
    start: Annotated[str | None, Field(description="ISO time with offset, or a local date; included.")] = None
    end: Annotated[str | None, Field(description="Likewise; not included. Now by default.")] = None
    zone: Annotated[str | None, Field(description="IANA name; by default the settings' zone.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_GROUPS, description="At most this many rows.")] = 100
    cursor: Annotated[str | None, Field(description="`next_cursor` of the answer before. Rows and sessions.")] = None


class Repeated(BaseModel):
    """The question as it was understood."""

    ask: str
    metrics: list[str]
    dimensions: list[str]
    order: list[str]
    filters: dict[str, list[str]]
    without: dict[str, list[str]]
    start: str
    end: str = Field(description="Not included.")
    zone: str
    limit: int


class Visit(BaseModel):
    """A session."""

    person: str
    service: str
    environment: str | None
    start: str
    end: str
    duration_s: float
    requests: int
    first_page: str | None
    last_page: str | None


class Answer(BaseModel):
    question: Repeated
    rows: list[Log] | list[Visit] | list[dict[str, Any]]
    more: int | None = Field(description="Groups that the limit left out; null for rows and sessions.")
    next_cursor: str | None = Field(description="For the rows after these; null at the end.")
    as_of: str = Field(description="When it was answered; the range may have ended before.")
    sources: list[Source]


def asked_by(parameters: Iterable[tuple[str, str]]) -> Asked:
    """The question of a query string. Lists are comma separated or repeated. Raises QuestionError."""
    content: dict[str, Any] = {"filters": {}, "without": {}}
    for name, value in parameters:
        table = content["without" if name.startswith(NOT) else "filters"]
        if name.removeprefix(NOT) in FILTERS:
            table.setdefault(name.removeprefix(NOT), []).extend(value.split(","))
        elif name in LISTS:
            content.setdefault(name, []).extend(value.split(","))
        elif name in Asked.model_fields and name not in ("filters", "without"):
            content[name] = value
        else:
            known = [*(field for field in Asked.model_fields if field not in ("filters", "without")), *FILTERS]
            rule = f"It is one of: {', '.join(known)}; or a filter with {NOT} before it."
            raise QuestionError(
                f"{name!r} is no parameter of a question.", value=name, rule=rule, fix=nearest(name, known)
            )
    try:
        return Asked.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise QuestionError(
            f"{key} is {first['input']!r}.", value=str(first["input"]), rule=f"{first['msg']}."
        ) from None


def answer(of: Sources, asked: Asked, now: datetime) -> Answer:
    """Raises QuestionError for what the grammar does not have, StoreError."""
    labels = of.meaning()
    for name in ("metrics", "dimensions", "order") if asked.ask != "aggregate" else ("cursor",):
        if getattr(asked, name):
            rule = "Metrics, dimensions and order are of an aggregate, a cursor of rows and sessions."
            raise QuestionError(f"{name} does not go with ask={asked.ask}.", value=name, rule=rule)
    common: dict[str, Any] = {
        "zone": asked.zone or labels.zone,
        "labels": labels,
        "filters": {name: tuple(values) for name, values in asked.filters.items()},
        "without": {name: tuple(values) for name, values in asked.without.items()},
    }
    if not is_zone(common["zone"]):
        raise QuestionError(f"zone is {asked.zone!r}.", value=asked.zone, rule="It is an IANA name: Europe/Madrid.")
    common["range"] = _range(asked, common["zone"], now)
    rows, more, cursor, common["range"] = ANSWERS[asked.ask](of, asked, common)
    return Answer(
        question=Repeated(
            **asked.model_dump(include={"ask", "metrics", "dimensions", "order", "filters", "without", "limit"}),
            start=iso(common["range"].start_ns),
            end=iso(common["range"].end_ns),
            zone=common["zone"],
        ),
        rows=rows,
        more=more,
        next_cursor=cursor,
        as_of=iso(nanoseconds(now)),
        sources=of.told(now),
    )


Found = tuple[list[Any], int | None, str | None, Range]  # rows, groups left out, next cursor, the range


def _aggregate(of: Sources, asked: Asked, common: dict[str, Any]) -> Found:
    metrics, dimensions, order = tuple(asked.metrics), tuple(asked.dimensions), tuple(asked.order)
    question = Aggregate(metrics=metrics, dimensions=dimensions, order=order, limit=asked.limit, **common)
    groups = of.store.run(question)
    if "device" in dimensions:
        names = {device.node_id: device.node for device in of.store.history()}  # oldest first: the newest stays
        for group in groups.rows:
            group["device_name"] = names.get(group["device"])
    for group in groups.rows:
        if "first_seen" in group:
            group["new"] = group["first_seen"] is not None and group["first_seen"] >= question.range.start_ns
    return (
        [{name: _shown(name, value) for name, value in group.items()} for group in groups.rows],
        groups.more,
        None,
        (question.range),
    )


def _shown(name: str, value: Any) -> Any:
    if name in ("first_seen", "last_seen") and value is not None:
        return iso(value)
    return rounded(value) if name.endswith("_ms") and isinstance(value, float) else value


def _rows(of: Sources, asked: Asked, common: dict[str, Any]) -> Found:
    limit, after = min(asked.limit, MAX_ROWS), None
    if asked.cursor is not None:
        common["range"], after = read_place(asked.cursor)
    spans = of.store.run(Rows(limit=limit + 1, after=after, **common))
    cursor = write_place(common["range"], spans[limit - 1]) if len(spans) > limit else None
    return [log(span) for span in spans[:limit]], None, cursor, common["range"]


def _sessions(of: Sources, asked: Asked, common: dict[str, Any]) -> Found:
    limit, after = min(asked.limit, MAX_ROWS), None
    if asked.cursor is not None:
        start_ns, end_ns, *place = read_cursor(asked.cursor, int, int, int, str, str, str | None)  # type: ignore[arg-type]
        common["range"], after = Range(start_ns, end_ns), SessionPosition(*place)
    found = of.store.run(Sessions(limit=limit + 1, after=after, **common))
    shown, cursor = found[:limit], None
    if len(found) > limit:
        last = shown[-1]
        cursor = write_cursor(*common["range"], last.start_ns, last.person, last.service, last.environment)
    return [_visit(session) for session in shown], None, cursor, common["range"]


def _visit(session: Session) -> Visit:
    times = {"start": iso(session.start_ns), "end": iso(session.end_ns), "duration_s": round(session.duration_s, 3)}
    return Visit.model_validate(session._asdict() | times)


ANSWERS: Final = {"aggregate": _aggregate, "rows": _rows, "sessions": _sessions}


def _range(asked: Asked, zone: str, now: datetime) -> Range:
    given = [name for name in ("hours", "days", "start") if getattr(asked, name) is not None]
    if len(given) > 1 or (asked.end and not asked.start):
        names = [*given, *(["end"] if asked.end else [])]
        rule = "A range is hours, or days, or start with or without end."
        raise QuestionError(f"{' and '.join(names)} do not make one range.", value=names[-1], rule=rule)
    if asked.start is None:
        return ending(now, timedelta(hours=asked.hours) if asked.hours else timedelta(days=asked.days or 7))
    start = moment_of("start", asked.start, zone)
    end = moment_of("end", asked.end, zone) if asked.end else now + timedelta(microseconds=1)
    if not (EARLIEST <= start < end <= start + timedelta(days=MAX_DAYS)):
        raise QuestionError(
            f"The range is {start.isoformat()} to {end.isoformat()}.",
            value=f"{asked.start} {asked.end or ''}".strip(),
            rule=f"It begins in 2000 or later, ends after it begins, and is at most {MAX_DAYS} days long.",
        )
    return Range(nanoseconds(start), nanoseconds(end))


def moment_of(name: str, value: str, zone: str) -> datetime:
    """A date is the local midnight at which it begins."""
    try:
        if len(value) == 10:
            day = date.fromisoformat(value)
            return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        rule = "It is a date (2026-03-01), or a time with its offset (2026-03-01T08:00:00Z)."
        raise QuestionError(f"{name} is {value!r}.", value=value, rule=rule) from None


def as_csv(answer: Answer) -> str:
    """The rows alone, under their names. Text that a spreadsheet would run as a formula gets a ' before it."""
    rows = [row if isinstance(row, dict) else row.model_dump() for row in answer.rows]
    columns = list(rows[0]) if rows else [*answer.question.dimensions, *answer.question.metrics]
    out = StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def documented() -> list[dict[str, Any]]:
    """The parameters of GET, for the OpenAPI document."""
    parameters = []
    for name, field in Asked.model_json_schema()["properties"].items():
        if name in ("filters", "without"):
            continue
        schema = {key: value for key, value in field.items() if key != "description"}
        parameters.append(_parameter(name, str(field.get("description")), schema))
    for name, filter in FILTERS.items():
        texts = {"type": "array", "items": {"type": "string"}}
        parameters.append(_parameter(name, f"Only where any of these: {filter.meaning}.", texts))
        parameters.append(_parameter(f"{NOT}{name}", f"Only where none of these: {filter.meaning}.", texts))
    return parameters


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    many = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema, **many}
