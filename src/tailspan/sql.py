"""Questions in DuckDB's SQL, on a table that meaning.describing made.

Identifiers come from the tables here alone; everything else is a value.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from tailspan.meaning import (
    DESCRIBED_REQUEST,
    ENDS,
    FIRSTS,
    IN_LOAD,
    JOINED,
    LOADS,
    LOOK_BACK,
    PAGES,
    PAUSE,
    SESSIONS,
)
from tailspan.percentiles import PERCENTS, counted, in_memory
from tailspan.query import METRICS, Aggregate, Groups, Question, Rows, Session, Sessions
from tailspan.span import Span
from tailspan.zone import day_text, hour_text, offsets

TEMPLATED: Final = """array_to_string(list_transform(string_split(path, '/'), lambda part: CASE WHEN regexp_full_match(
    part, '[0-9]+|[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', 'i') THEN '{id}' ELSE part END), '/')"""
DELIBERATE: Final = "(called AND loaded IS NULL)"
ASKED: Final = "FILTER (NOT viewed)"


class Metric(NamedTuple):
    """Its value of a group, and how many of its own records the group has: none, and there is no such group."""

    value: str
    own: str


def _of_requests(value: str) -> Metric:
    return Metric(f"{value} {ASKED}", f"count(*) {ASKED}")


def _of_sums(value: str) -> Metric:
    return Metric(value, f"count(*) {ASKED}")


VALUES: Final = {
    "requests": _of_requests("count(*)"),
    "accesses": Metric(f"count(*) FILTER (paged OR {DELIBERATE})", f"count(*) FILTER (paged OR {DELIBERATE})"),
    "deliberate_calls": Metric(f"count(*) FILTER {DELIBERATE}", f"count(*) FILTER {DELIBERATE}"),
    "people": Metric("count(DISTINCT person)", "count(person)"),
    "devices": Metric("count(DISTINCT node_id)", "count(node_id)"),
    "errors": Metric("count(*) FILTER (NOT viewed AND status >= 500)", f"count(*) {ASKED}"),
    "error_rate": Metric(
        f"count(*) FILTER (NOT viewed AND status >= 500) / nullif(count(*) {ASKED}, 0)", f"count(*) {ASKED}"
    ),
    "mean_ms": Metric(f"sum(duration_ns) {ASKED} / (count(duration_ns) {ASKED} * 1e6)", f"count(*) {ASKED}"),
    **{name: Metric(in_memory(name), f"count(*) {ASKED}") for name in PERCENTS},
    "max_ms": Metric(f"max(duration_ns) {ASKED} / 1e6", f"count(*) {ASKED}"),
    "views": Metric("count(*) FILTER (viewed)", "count(*) FILTER (viewed)"),
    "visible_ms": Metric("sum(visible_ms) FILTER (viewed)", "count(*) FILTER (viewed)"),
    "last_seen": Metric("max(start_ns)", "count(*)"),
    "first_seen": Metric("max(first_ns)", "count(person)"),
    "sessions": Metric("count(*)", "count(*)"),
    "session_time_s": Metric("coalesce(sum(end_ns - start_ns), 0) / 1e9", "count(*)"),
}
# the same of sums, where `n` requests are one row; of what can be summed up
SUMMED: Final = {
    "requests": _of_sums("coalesce(sum(n) FILTER (NOT viewed), 0)::BIGINT"),
    "people": Metric("count(DISTINCT person)", "count(person)"),
    "devices": Metric("count(DISTINCT node_id)", "count(node_id)"),
    "errors": _of_sums("coalesce(sum(n) FILTER (NOT viewed AND status >= 500), 0)::BIGINT"),
    "error_rate": _of_sums(
        "coalesce(sum(n) FILTER (NOT viewed AND status >= 500), 0) / nullif(sum(n) FILTER (NOT viewed), 0)"
    ),
    "mean_ms": _of_sums(f"sum(total_ns) {ASKED} / (sum(timed_n) {ASKED} * 1e6)"),
    "max_ms": _of_sums(f"max(longest_ns) {ASKED} / 1e6"),
    "views": Metric("coalesce(sum(n) FILTER (viewed), 0)::BIGINT", "count(*) FILTER (viewed)"),
    "visible_ms": Metric("sum(visible_ms) FILTER (viewed)", "count(*) FILTER (viewed)"),
    "last_seen": Metric("max(last_ns)", "count(*)"),
    "first_seen": Metric("max(first_ns)", "count(person)"),
}
STATUS_CLASS: Final = "CASE WHEN status IS NOT NULL THEN status // 100 || 'xx' END"
FEATURE: Final = f"CASE WHEN feature IS NULL AND NOT viewed THEN {TEMPLATED} ELSE feature END"
COLUMNS: Final = {
    "person": "person",
    "device": "node_id",
    "address": "address",
    "service": "service",
    "environment": "environment",
    "route": "route",
    "endpoint": "coalesce(route, path)",
    "feature": FEATURE,
    "page": "page",
    "card": "card",
    "variant": "variant",
    "method": "method",
    "status": "status",
    "status_class": STATUS_CLASS,
    "traffic": "traffic",
    "caller": "caller",
    "identity_source": "identity_source",
    "source": "source",
    "hour_of_day": "{local} // 3600000000000 % 24",
    "weekday": "({local} // 86400000000000 + 3) % 7 + 1",
    # start of the local hour in seconds of UTC, and the offset that holds: two numbers in one, in the order of time
    "hour": "(start_ns - {local} % 3600000000000) // 1000000000 * 200000 + {offset} // 1000000000 + 100000",
    "day": "{local} // 86400000000000",
}
SHOWN: Final[Mapping[str, Callable[[int], str]]] = {
    "hour": lambda number: hour_text(number // 200000 * 10**9, (number % 200000 - 100000) * 10**9),
    "day": day_text,
}
FILTERS: Final = {
    **{name: f"list_contains(${{0}}, {column})" for name, column in COLUMNS.items()},
    "user": "list_contains(${0}, login)",
    "device": "(list_contains(${0}, node_id) OR list_contains(${0}, node))",
    "kind": "list_contains(${0}, kind)",
    "status": "list_contains(${0}, status::VARCHAR)",
}
THEIRS: Final = "(login = $login OR claim = $login)"  # a line that names somebody is about them, believed or not
OF_TIME: Final = {"hour_of_day", "weekday", "hour", "day"}
ORDERED: Final = {"accesses", "deliberate_calls"}  # metrics that need to know what came before
OF_PATH: Final = {"endpoint", "feature"}
# JOINED, where paths are read only for requests without a route: they are most of what there is to read
BY_PATH: Final = f"""(
    SELECT request.* EXCLUDE (number, path), NULL::VARCHAR AS path, {{0}}.* FROM {JOINED} AND route IS NOT NULL
    UNION ALL BY NAME SELECT request.* EXCLUDE (number), {{0}}.* FROM {JOINED} AND route IS NULL)"""
OF_REQUEST: Final = OF_TIME | OF_PATH  # what a row of `about` alone does not tell
NEWEST_FIRST: Final = "ORDER BY start_ns DESC, trace_id DESC, span_id DESC"
SPAN: Final = ", ".join(Span._fields)


class Compiled(NamedTuple):
    """SQL and its values."""

    sql: str
    values: dict[str, Any]


def rows(question: Rows, described: str) -> Compiled:
    """The columns of Span, as answered."""
    source, where, values = _records(question, described)
    values["limit"] = question.limit
    if question.after:
        where += " AND start_ns <= $after AND (start_ns, trace_id, span_id) < ($after, $after_trace, $after_span)"
        values |= dict(zip(("after", "after_trace", "after_span"), question.after, strict=True))
    newest = ""
    if question.newest_per:
        column = _column(question.newest_per, question)
        newest = f"QUALIFY row_number() OVER (PARTITION BY {column} {NEWEST_FIRST}) = 1"
    return Compiled(
        f"{source[0]} SELECT {SPAN} FROM {source[1]} WHERE {where} {newest} {NEWEST_FIRST} LIMIT $limit", values
    )


def aggregate(
    question: Aggregate, described: str, *, many: bool = False, summed: bool = False, ever: str = "request"
) -> Compiled:
    """The dimensions, the metrics, and how many groups there are in all.

    `many`: more times than memory should hold. `summed`: a row of `request` is many requests. `ever`: a table with each
    person's first one.
    """
    metrics = SUMMED if summed else VALUES
    if question.asked == {"session"}:
        tables, values = _sessions(question, described)
        source, where = "session JOIN sitter USING (sitting)", "true"
    else:
        (tables, source), where, values = _records(question, described, ever)
    keys = {name: f"k{number}" for number, name in enumerate(question.dimensions)}
    keys |= {name: f"m{number}" for number, name in enumerate(question.metrics)}
    ranked = {keys[name]: name for name in question.metrics if many and name in PERCENTS}
    columns = [f"{_column(name, question)} AS {keys[name]}" for name in question.dimensions]
    columns += [f"{metrics[name].value} AS {keys[name]}" for name in question.metrics if keys[name] not in ranked]
    if ranked:
        columns.append("any_value(party) AS party")
    own = " OR ".join(f"{metrics[name].own} > 0" for name in question.metrics)
    by = ", ".join(keys[name] for name in question.dimensions)
    groups = f"SELECT {', '.join(columns)} FROM {source} WHERE {where} {f'GROUP BY {by} HAVING {own}' if by else ''}"
    if ranked:
        of_request = {keys[name]: _column(name, question) for name in question.dimensions if name in OF_REQUEST}
        tables += f", {counted(ranked, of_request, source, where)}"
        same = " AND ".join(f"grouped.{name} IS NOT DISTINCT FROM ranked.{name}" for name in ("party", *of_request))
        groups = f"SELECT grouped.*, {', '.join(ranked)} FROM ({groups}) AS grouped LEFT JOIN ranked ON {same}"
    order = _order(question, keys)
    values["limit"] = question.limit
    shown = ", ".join((*keys.values(), "count(*) OVER ()"))
    return Compiled(f"{tables} SELECT {shown} FROM ({groups}) ORDER BY {order} LIMIT $limit", values)


def sessions(question: Sessions, described: str) -> Compiled:
    """The columns of Session without the duration; a page comes with the ids it was chosen by."""
    tables, values = _sessions(question, described, pages=True)
    values["limit"] = question.limit
    after = ""
    if question.after:
        names = ("after", "after_person", "after_service", "after_environment")
        values |= dict(zip(names, question.after, strict=True))
        after = (
            "WHERE start_ns < $after OR start_ns = $after AND (person, service, environment IS NULL, "
            "coalesce(environment, '')) > ($after_person, $after_service, $after_environment IS NULL, "
            "coalesce($after_environment, ''))"
        )
    return Compiled(
        f"{tables} SELECT person, service, environment, start_ns, end_ns, activities, first_page[4], last_page[4] "
        f"FROM session JOIN sitter USING (sitting) {after} "
        "ORDER BY start_ns DESC, person, service, environment NULLS LAST LIMIT $limit",
        values,
    )


def answered(question: Aggregate, found: list[tuple[Any, ...]]) -> Groups:
    """What `aggregate` found, as the answer."""
    names = (*question.dimensions, *question.metrics)
    rows = [dict(zip(names, row[:-1], strict=True)) for row in found]
    for name in SHOWN.keys() & set(question.dimensions):
        for row in rows:
            row[name] = SHOWN[name](row[name])
    return Groups(rows, found[0][-1] - len(found) if found else 0)


def session(row: tuple[Any, ...]) -> Session:
    """A row of what `sessions` found."""
    person, service, environment, start_ns, end_ns, activities, first_page, last_page = row
    duration_s = (end_ns - start_ns) / 1e9
    return Session(person, service, environment, start_ns, end_ns, duration_s, activities, first_page, last_page)


def of_login(login: str, described: str) -> Compiled:
    """The columns of Span of everything with that login, oldest first."""
    source = f"WITH described AS (FROM {described}) SELECT {SPAN} FROM {DESCRIBED_REQUEST}"
    return Compiled(f"{source} WHERE {THEIRS} ORDER BY start_ns, trace_id, span_id", {"login": login})


def settling(login: str, described: str) -> Compiled:
    """Keeps, by ids alone, that the lines of the same are not to come back."""
    theirs = "start_ns, trace_id, unnest([span_id, coalesce(parent_id, span_id)]) AS span_id"
    source = f"WITH described AS (FROM {described}) SELECT {theirs} FROM {DESCRIBED_REQUEST} WHERE {THEIRS}"
    return Compiled(f"INSERT INTO settled BY NAME {source}", {"login": login})


def forgetting(login: str, described: str) -> Compiled:
    """Deletes the same."""
    theirs = f"WITH described AS (FROM {described}) SELECT request.rowid FROM {DESCRIBED_REQUEST} WHERE {THEIRS}"
    return Compiled(f"DELETE FROM request WHERE rowid IN ({theirs})", {"login": login})


def claimed(login: str, described: str) -> Compiled:
    """Of each line that names somebody: by which header, whether it is theirs, and when; in this order."""
    return Compiled(
        f"WITH described AS (FROM {described}) SELECT header, {THEIRS}, start_ns FROM {DESCRIBED_REQUEST} "
        "JOIN (SELECT number, identity_source AS header FROM about) AS stated ON stated.number = request.number "
        "WHERE source = 'log' AND claim IS NOT NULL ORDER BY header, start_ns",
        {"login": login},
    )


def _records(
    question: Rows | Aggregate, described: str, ever: str = "request"
) -> tuple[tuple[str, str], str, dict[str, Any]]:
    """Tables and FROM, WHERE, and the values, of the requests and people's views that the question is about."""
    metrics = set(question.metrics if isinstance(question, Aggregate) else ())
    named = {*metrics, *question.names, *question.filters, *question.without, *question.known}
    tables, values = _described(question, described)
    conditions, later = _conditions(question, values)
    chosen = "described"
    if "first_seen" in named:
        tables += f", {FIRSTS.format(ever=ever)}"
        chosen = "described LEFT JOIN debut USING (person)"
    kinds = frozenset[str]().union(*(METRICS[name].kinds for name in metrics)) or question.asked
    values["kinds"] = sorted(kinds & question.kinds)
    conditions += ["list_contains($kinds, kind)", "(NOT viewed OR person IS NOT NULL)"]
    if "feature" in named:
        conditions.append("(viewed OR called)")
    elif metrics and metrics <= ORDERED:
        conditions.append("(paged OR called)")  # all that can count, and little among the polls
    parties = ", ".join(COLUMNS[name] for name in question.names if name not in OF_REQUEST) or "true"
    party = f", dense_rank() OVER (ORDER BY {parties}) AS party" if metrics & PERCENTS.keys() else ""
    tables += f", chosen AS (SELECT *{party} FROM {chosen} WHERE {' AND '.join(conditions)})"
    by_path = isinstance(question, Aggregate) and named & OF_PATH  # rows show their path
    source = (BY_PATH if by_path else JOINED).format("chosen")
    if named & {*ORDERED, "feature"}:
        tables += f", {LOADS}"
        source += IN_LOAD
        values["early"] = question.range.start_ns - LOOK_BACK
    if "feature" in named:
        later.append(f"(viewed OR {DELIBERATE})")
    return (tables, source), " AND ".join(["start_ns >= $start", "start_ns < $end", *later]), values


def _sessions(question: Question, described: str, *, pages: bool = False) -> tuple[str, dict[str, Any]]:
    tables, values = _described(question, described)
    values["early"] = question.range.start_ns - PAUSE
    conditions, later = _conditions(question, values)
    assert not later  # a session has neither endpoint nor feature
    tables += f", chosen AS (SELECT * FROM described WHERE {' AND '.join([*conditions, 'active'])})"
    return f"{tables}, {SESSIONS.format(pages=PAGES if pages else '', ends=ENDS if pages else '')}", values


def _described(question: Question, described: str) -> tuple[str, dict[str, Any]]:
    values = {"start": question.range.start_ns, "end": question.range.end_ns}
    return f"WITH described AS (FROM {described})", values


def _conditions(question: Question, values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The filters that a row of `about` meets, and those that need the request."""
    conditions: tuple[list[str], list[str]] = ([], [])
    for given, form in ((question.filters, "coalesce({}, false)"), (question.without, "NOT coalesce({}, false)")):
        for name, wanted in given.items():
            key = f"{'with' if given is question.filters else 'without'}_{name}"
            values[key] = list(wanted)
            conditions[name in OF_PATH].append(form.format(FILTERS[name].replace("{0}", key)))
    for name in set(question.known) - OF_TIME:  # a time is always known
        conditions[name in OF_PATH].append(f"{COLUMNS[name]} IS NOT NULL")
    return conditions


def _column(name: str, question: Question) -> str:
    column = COLUMNS[name]
    if "{local}" not in column:
        return column
    *cases, last = offsets(question.zone, *question.range)
    offset = str(last.offset_ns)
    if cases:
        whens = " ".join(f"WHEN start_ns < {case.until_ns} THEN {case.offset_ns}" for case in cases)
        offset = f"CASE {whens} ELSE {last.offset_ns} END"
    return column.replace("{local}", f"(start_ns + ({offset}))").replace("{offset}", f"({offset})")


def _order(question: Aggregate, keys: Mapping[str, str]) -> str:
    chosen = question.order or (f"-{question.metrics[0]}",)
    named = [f"{keys[name.removeprefix('-')]} {'DESC' if name[0] == '-' else 'ASC'} NULLS LAST" for name in chosen]
    return ", ".join([*named, *(f"{keys[name]} NULLS LAST" for name in question.dimensions)])
