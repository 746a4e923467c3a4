"""The embedded store: one DuckDB file, one process, every thread its own cursor and one writer at a time.

A delivery is written in one transaction, so that what was acknowledged is on disk and nothing is there by half.
There is no primary key on requests: at two million rows it costs three times the insert and all the memory. What was
delivered before is found by an anti-join over the delivery's own stretch of time.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, overload

import duckdb

from tailspan.errors import BusyError, LockedError, StoreError
from tailspan.query import Aggregate, Question, Rows
from tailspan.span import ABOUT, OWN, OWN_SERVICE, Heartbeat, Span
from tailspan.store import ServiceState, State, Value

DAY_NS: Final = 24 * 3600 * 10**9
OPTIONS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "memory_limit": "128MB",  # the rest of the process needs as much again
    "threads": 2,
    "preserve_insertion_order": False,  # every list says its order
    "autoinstall_known_extensions": False,  # nothing is ever downloaded
    "autoload_known_extensions": False,
}

# A few combinations of caller, route and answer make up nearly all requests: each is one row of `about`, and a request
# has its number. That is a third of the time to write and half the disk. Two rows may be alike; nothing depends on it.
MIGRATIONS: Final = (
    """
    CREATE TABLE about (
        number INTEGER NOT NULL, service VARCHAR NOT NULL, environment VARCHAR,
        method VARCHAR NOT NULL, route VARCHAR, status SMALLINT,
        login VARCHAR, full_name VARCHAR, node VARCHAR, node_id VARCHAR, tags VARCHAR, address VARCHAR, guess VARCHAR,
        source VARCHAR NOT NULL, identity_source VARCHAR NOT NULL, proven BOOLEAN NOT NULL, caller VARCHAR NOT NULL,
        traffic VARCHAR NOT NULL, page VARCHAR, client_address VARCHAR, user_agent VARCHAR, schema SMALLINT NOT NULL
    );
    CREATE TABLE request (
        trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB,
        start_ns BIGINT NOT NULL, duration_ns BIGINT, path VARCHAR, number INTEGER NOT NULL
    );
    CREATE VIEW span AS FROM request JOIN about USING (number);
    CREATE TABLE heartbeat (
        trace_id BLOB, span_id BLOB, start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL,
        service VARCHAR NOT NULL, environment VARCHAR, stopped BOOLEAN NOT NULL,
        forged BIGINT NOT NULL, unproven BIGINT NOT NULL, dropped BIGINT NOT NULL, open_requests BIGINT NOT NULL,
        PRIMARY KEY (trace_id, span_id)
    );
    """,
)
MAX_KNOWN: Final = 20_000  # rows of `about` remembered, some 10 MB at most; after that it starts anew

PERSON: Final = "CASE WHEN caller IN ('person', 'shared') THEN login END"
METRICS: Final = {
    "requests": "count(*)",
    "people": f"count(DISTINCT {PERSON})",
    "devices": "count(DISTINCT node_id)",
    "mean": "avg(duration_ns) / 1e6",
}
DIMENSIONS: Final = {
    "person": PERSON,
    "device": "node_id",
    "service": "service",
    "environment": "environment",
    "traffic": "traffic",
    "page": "page",
}
FILTERS: Final = {
    "user": "login = ANY(?)",
    "device": "list_has_any([node_id, node], ?)",
    "service": "service = ANY(?)",
    "environment": "environment = ANY(?)",
    "traffic": "traffic = ANY(?)",
}
NEWEST_FIRST: Final = "ORDER BY start_ns DESC, trace_id DESC, span_id DESC"
COLUMNS: Final = ", ".join(Span._fields)

INSERT: Final = (
    f"INSERT INTO request SELECT {', '.join((*OWN, 'number'))} "  # noqa: S608  # the names are Span's own fields
    f"FROM (SELECT {', '.join(f'unnest(${name}) AS {name}' for name in (*OWN, 'number'))}) "
    "ANTI JOIN (SELECT trace_id, span_id FROM request WHERE start_ns BETWEEN $first AND $last) "
    "USING (trace_id, span_id)"
)
INSERT_ABOUT: Final = (
    f"INSERT INTO about SELECT {', '.join(f'unnest(${name})' for name in ('number', *ABOUT))}"  # names, as above
)
BEAT: Final = (
    f"INSERT INTO heartbeat VALUES ({', '.join('?' * len(Heartbeat._fields))}) "  # noqa: S608  # question marks only
    "ON CONFLICT DO UPDATE SET end_ns = excluded.end_ns, stopped = excluded.stopped, forged = excluded.forged, "
    "unproven = excluded.unproven, dropped = excluded.dropped, open_requests = excluded.open_requests "
    "WHERE excluded.end_ns > heartbeat.end_ns"
)
SERVICES: Final = """
    WITH requested AS (SELECT service, environment, max(start_ns) AS newest FROM span GROUP BY ALL),
    beaten AS (
        SELECT service, environment, max(end_ns) AS newest, arg_max(stopped, end_ns) AS stopped,
               sum(forged) FILTER (end_ns > $since) AS forged, sum(unproven) FILTER (end_ns > $since) AS unproven,
               sum(dropped) FILTER (end_ns > $since) AS dropped, arg_max(open_requests, end_ns) AS open_requests
        FROM heartbeat GROUP BY ALL)
    SELECT coalesce(requested.service, beaten.service) AS name, coalesce(requested.environment, beaten.environment),
           requested.newest, beaten.newest, coalesce(stopped, false), coalesce(forged, 0)::BIGINT,
           coalesce(unproven, 0)::BIGINT, coalesce(dropped, 0)::BIGINT, coalesce(open_requests, 0)
    FROM requested FULL JOIN beaten
      ON requested.service = beaten.service AND requested.environment IS NOT DISTINCT FROM beaten.environment
    ORDER BY ALL"""

SILENT: Final = "Heartbeats arrive, but no request yet: open a page of the service."
EMPTY: Final = (
    "No request has ever arrived. In the service: from tailspan_otel import instrument; instrument(app), and "
    "OTEL_EXPORTER_OTLP_ENDPOINT=<the address of this server>. There, `tailspan doctor` finds what is missing."
)


class DuckDB:
    """Opens the file, or makes it. Raises LockedError where another process holds it, else StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._known: dict[tuple[object, ...], int] = {}  # rows of `about` by content; guarded by _writing
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = duckdb.connect(str(path), config=OPTIONS)
        except (duckdb.Error, OSError) as problem:
            raise self._not_opened(problem) from problem
        try:
            self._migrate()
            with self._read() as cursor:
                (self._last,) = _one(cursor.execute("SELECT coalesce(max(number), 0) FROM about"))
        except BaseException:
            self.close()
            raise

    def _not_opened(self, problem: Exception) -> StoreError:
        reason = " ".join(str(problem).split())
        if "lock" not in reason:
            return StoreError(
                f"The database {self.path} cannot be opened: {reason}",
                value=str(self.path),
                fix="Put a backup in its place, or set TAILSPAN_DB to a new file.",
            )
        holder = reason.partition("PID ")[2].partition(")")[0] or "unknown"
        return LockedError(
            f"The database {self.path} is held by another process (pid {holder}).",
            value=str(self.path),
            rule="DuckDB lets one process open a file, even for reading.",
            fix=f"Ask the tailspan server that runs there, stop it (kill {holder}), or set another TAILSPAN_DB.",
        )

    def _migrate(self) -> None:
        with self._write() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS migration (number INTEGER NOT NULL)")
            (done,) = _one(cursor.execute("SELECT count(*) FROM migration"))
            if done > len(MIGRATIONS):
                raise StoreError(
                    f"The database {self.path} was written by a newer tailspan (step {done} of {len(MIGRATIONS)}).",
                    value=str(self.path),
                    fix="Install that version again, or set TAILSPAN_DB to another file.",
                )
            for number, migration in enumerate(MIGRATIONS[done:], start=done + 1):
                cursor.execute(migration)
                cursor.execute("INSERT INTO migration VALUES (?)", [number])

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._connection.cursor() as cursor:
                yield cursor
        except duckdb.Error as problem:
            raise self._unreadable(problem) from problem

    @contextmanager
    def _write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._writing, self._connection.cursor() as cursor:
                cursor.begin()
                try:
                    yield cursor
                    cursor.commit()
                except BaseException:
                    self._known.clear()  # what it learned is undone
                    with suppress(duckdb.Error):  # the first error is the one to tell
                        cursor.rollback()
                    raise
        except duckdb.Error as problem:
            raise BusyError(
                f"The database {self.path} cannot be written: {_first_line(problem)}",
                fix="Look for a full disk or a vanished one, then restart tailspan serve.",
            ) from problem

    def _unreadable(self, problem: duckdb.Error) -> StoreError:
        return StoreError(
            f"The database {self.path} cannot be read: {_first_line(problem)}",
            value=str(self.path),
            fix="Look at the disk, restart tailspan serve, and put a backup in its place if it stays so.",
        )

    def write(self, spans: Sequence[Span], heartbeats: Sequence[Heartbeat] = ()) -> int:
        """Keeps what was not delivered before, and returns how many requests that were. Raises BusyError."""
        fresh = list({(span.trace_id, span.span_id): span for span in spans}.values())
        with self._write() as cursor:
            for beat in heartbeats:
                cursor.execute(BEAT, list(beat))
            if not fresh:
                return 0
            columns = _columns(OWN, [span[: len(OWN)] for span in fresh])
            columns["number"] = self._numbers(cursor, [span.about for span in fresh])
            bounds = {"first": min(columns["start_ns"]), "last": max(columns["start_ns"])}
            return int(_one(cursor.execute(INSERT, columns | bounds))[0])

    def _numbers(self, cursor: duckdb.DuckDBPyConnection, abouts: list[tuple[object, ...]]) -> list[int]:
        """The number of each in `about`, where what is new is written."""
        new: dict[tuple[object, ...], int] = {}
        numbers = []
        for about in abouts:
            number = self._known.get(about) or new.get(about)
            if number is None:
                self._last += 1
                number = new[about] = self._last
            numbers.append(number)
        if new:
            rows = [(number, *about) for about, number in new.items()]
            cursor.execute(INSERT_ABOUT, _columns(("number", *ABOUT), rows))
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            self._known |= new
        return numbers

    def purge(self, before_ns: int) -> int:
        """Deletes what began (a heartbeat: ended) before then, and counts the requests of that. Raises BusyError."""
        with self._write() as cursor:
            self._known.clear()  # its rows may be deleted now
            cursor.execute("DELETE FROM heartbeat WHERE end_ns < ?", [before_ns])
            (deleted,) = _one(cursor.execute("DELETE FROM request WHERE start_ns < ?", [before_ns]))
            if deleted:
                cursor.execute("DELETE FROM about WHERE number NOT IN (SELECT number FROM request)")
            return int(deleted)

    @overload
    def run(self, query: Rows) -> list[Span]: ...
    @overload
    def run(self, query: Aggregate) -> list[dict[str, Value]]: ...
    def run(self, query: Rows | Aggregate) -> list[Span] | list[dict[str, Value]]:
        sql, values = rows_sql(query) if isinstance(query, Rows) else aggregate_sql(query)
        with self._read() as cursor:
            found = cursor.execute(sql, values).fetchall()
        if isinstance(query, Rows):
            return list(map(Span._make, found))
        return [dict(zip((*query.dimensions, *query.metrics), row, strict=True)) for row in found]

    def state(self, now_ns: int) -> State:
        try:
            with self._read() as cursor:
                found = cursor.execute(SERVICES, {"since": now_ns - DAY_NS}).fetchall()
        except StoreError as problem:
            return State("store", "unreadable", str(problem))
        services = tuple(ServiceState(*row) for row in found)
        others = [service for service in services if service.service != OWN_SERVICE]
        newest = max((service.last_request_ns for service in others if service.last_request_ns), default=None)
        if newest is not None:
            return State("store", "ok", f"The database {self.path} answers.", newest, services)
        return State("store", "no data yet", SILENT if others else EMPTY, None, services)


def rows_sql(query: Rows) -> tuple[str, list[Any]]:
    where, values = _where(query)
    if query.after:
        where += " AND start_ns <= ? AND (start_ns, trace_id, span_id) < (?, ?, ?)"
        values += [query.after.start_ns, *query.after]
    newest = ""
    if query.newest_per:
        newest = f"QUALIFY row_number() OVER (PARTITION BY {DIMENSIONS[query.newest_per]} {NEWEST_FIRST}) = 1"
    # names come from Span's fields and the tables above
    return f"SELECT {COLUMNS} FROM span WHERE {where} {newest} {NEWEST_FIRST} LIMIT ?", [*values, query.limit]  # noqa: S608


def aggregate_sql(query: Aggregate) -> tuple[str, list[Any]]:
    where, values = _where(query)
    dimensions = [DIMENSIONS[name] for name in query.dimensions]
    wanted = ", ".join([*dimensions, *(METRICS[name] for name in query.metrics)])
    grouped = f"GROUP BY {', '.join(dimensions)} ORDER BY ALL" if dimensions else ""
    return f"SELECT {wanted} FROM span WHERE {where} {grouped}", values  # noqa: S608  # names of the tables above


def _where(query: Question) -> tuple[str, list[Any]]:
    filters = [FILTERS[name] for name in query.filters]
    known = [f"({DIMENSIONS[name]}) IS NOT NULL" for name in query.known]
    values = [*query.range, *(list(values) for values in query.filters.values())]
    return " AND ".join(["start_ns >= ?", "start_ns < ?", *filters, *known]), values


def _columns(names: Sequence[str], rows: Iterable[Sequence[object]]) -> dict[str, Any]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _one(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    row = result.fetchone()
    assert row is not None  # a count always has its row
    return row


def _first_line(problem: duckdb.Error) -> str:
    return str(problem).partition("\n")[0]
