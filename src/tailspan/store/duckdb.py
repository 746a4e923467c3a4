"""The embedded store: one DuckDB file, one process, every thread its own cursor and one writer at a time.

A delivery is written in one transaction, so that what was acknowledged is on disk and nothing is there by half.
There is no primary key on requests: at two million rows it costs three times the insert and all the memory. What was
delivered before is found by an anti-join over the delivery's own stretch of time.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, overload

import duckdb

from tailspan import ledger, sql
from tailspan.errors import BusyError, LockedError, StoreError
from tailspan.ingest.lines import Lines
from tailspan.labels import Labels
from tailspan.meaning import DESCRIBED_TABLE as DESCRIBED
from tailspan.meaning import SIGHTINGS, Described
from tailspan.percentiles import PERCENTS
from tailspan.query import Aggregate, Groups, Rows, Session, Sessions
from tailspan.span import ABOUT, OWN, OWN_SERVICE, Device, Heartbeat, Span, by_kind
from tailspan.store import EMPTY, SILENT, State, closing, services

Identity = tuple[str | None, ...]  # node_id, node, login, tags
HOLDING: Final = ("person", "tagged", "shared")  # callers who are a device of their own
ALWAYS: Final = 2**63 - 1
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
    """
    ALTER TABLE request ADD COLUMN visible_ms BIGINT;
    ALTER TABLE about ADD COLUMN kind VARCHAR DEFAULT 'request';
    ALTER TABLE about ADD COLUMN card VARCHAR;
    ALTER TABLE about ADD COLUMN variant VARCHAR;
    CREATE OR REPLACE VIEW span AS FROM request JOIN about USING (number);
    CREATE TABLE device (
        address VARCHAR NOT NULL, node_id VARCHAR NOT NULL, node VARCHAR NOT NULL, login VARCHAR, full_name VARCHAR,
        tags VARCHAR, kind VARCHAR NOT NULL, source VARCHAR NOT NULL, from_ns BIGINT NOT NULL, to_ns BIGINT,
        seen BOOLEAN NOT NULL
    );
    """,
    "ALTER TABLE heartbeat ADD COLUMN forged_kinds VARCHAR;",
    ledger.TABLES,
)
WITH_HISTORY: Final = 2  # the migration that brought `device`
MAX_TIMES: Final = 2_000_000  # response times in memory for percentiles: some 60 MB
EXPORTED_AT_ONCE: Final = 1000
MAX_KNOWN: Final = 20_000  # rows of `about` remembered, some 10 MB at most; after that it starts anew

INSERT: Final = (
    f"INSERT INTO request ({', '.join((*OWN, 'number'))}) SELECT {', '.join((*OWN, 'number'))} "  # noqa: S608  # the names are Span's own fields
    f"FROM (SELECT {', '.join(f'unnest(${name}) AS {name}' for name in (*OWN, 'number'))}) "
    "ANTI JOIN (SELECT trace_id, span_id FROM request WHERE start_ns BETWEEN $first AND $last) "
    "USING (trace_id, span_id)"
)
INSERT_ABOUT: Final = (
    f"INSERT INTO about ({', '.join(('number', *ABOUT))}) "  # names, as above
    f"SELECT {', '.join(f'unnest(${name})' for name in ('number', *ABOUT))}"
)
SEEN: Final = SIGHTINGS.format("span", "($every OR list_contains($addresses, address))")
HISTORY: Final = f"INSERT INTO device SELECT *, true FROM ({SEEN})"  # noqa: S608  # both are constants
DEVICES: Final = f"SELECT {', '.join(Device._fields)} FROM device"  # noqa: S608  # the names are Device's own fields
UNLEARN: Final = (
    "DELETE FROM device USING (SELECT unnest($address) AS address, unnest($from_ns) AS from_ns) AS new "
    "WHERE NOT seen AND device.address = new.address AND device.from_ns = new.from_ns"
)
LEARN: Final = f"INSERT INTO device SELECT {', '.join(f'unnest(${name})' for name in Device._fields)}, false"
HOLDERS: Final = "SELECT address, node_id, node, login, tags, from_ns FROM device WHERE seen AND to_ns IS NULL"
BEAT: Final = (
    f"INSERT INTO heartbeat VALUES ({', '.join('?' * len(Heartbeat._fields))}) "  # noqa: S608  # question marks only
    "ON CONFLICT DO UPDATE SET end_ns = excluded.end_ns, stopped = excluded.stopped, forged = excluded.forged, "
    "unproven = excluded.unproven, dropped = excluded.dropped, open_requests = excluded.open_requests, "
    "forged_kinds = excluded.forged_kinds "
    "WHERE excluded.end_ns > heartbeat.end_ns"
)
NEWEST: Final = "SELECT service, environment, max(start_ns) FROM span WHERE kind = 'request' GROUP BY ALL"
SETTLE: Final = """
    INSERT INTO settled SELECT * FROM (
        SELECT unnest($trace) AS trace_id, unnest($span) AS span_id, unnest($live_trace) AS live_trace_id,
               unnest($live_span) AS live_span_id, unnest($start) AS start_ns)
    ANTI JOIN settled USING (trace_id, span_id)"""
NEWEST_LINE: Final = "SELECT coalesce(max(start_ns), 0) FROM span WHERE source = 'log'"
BEATEN: Final = """
    SELECT service, environment, max(end_ns), arg_max(stopped, end_ns),
           coalesce(sum(forged) FILTER (end_ns > $since), 0)::BIGINT,
           coalesce(sum(unproven) FILTER (end_ns > $since), 0)::BIGINT,
           coalesce(sum(dropped) FILTER (end_ns > $since), 0)::BIGINT, arg_max(open_requests, end_ns),
           coalesce(list(forged_kinds) FILTER (end_ns > $since), [])
    FROM heartbeat GROUP BY ALL"""


class DuckDB:
    """Opens the file, or makes it. Raises LockedError where another process holds it, else StoreError."""

    name: Final = "duckdb"
    took_ms: Final[list[float]] = []

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._known: dict[tuple[object, ...], int] = {}  # rows of `about` by content; guarded by _writing
        self._holders: dict[str, tuple[Identity, int]] | None = None  # address → whose, since when; guarded likewise
        self._changed = False  # by what is being written
        self._version = 0  # of `about` and `device`: counts what was committed
        self._lines_to: int | None = None  # when the newest request began that only a log tells of
        self._newest: dict[tuple[str, str | None], int] | None = None  # service, environment → newest request
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = duckdb.connect(str(path), config=OPTIONS)
        except (duckdb.Error, OSError) as problem:
            raise self._not_opened(problem) from problem
        try:
            self._migrate()
            self._meaning = Described(self._connection)
            with self._read() as cursor:
                (self._last,) = _one(cursor.execute("SELECT coalesce(max(number), 0) FROM about"))
        except BaseException:  # whatever it was, the file must not stay locked
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
                if number == WITH_HISTORY:
                    cursor.execute(HISTORY, {"every": True, "addresses": []})

    def close(self) -> None:
        """When whoever asks it has an answer."""
        closing.close(self._connection)

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
                self._changed = False
                cursor.begin()
                try:
                    yield cursor
                    cursor.commit()
                    self._version += self._changed
                except BaseException:  # Ctrl-C in the middle of a transaction undoes it too
                    self._known.clear()  # what it learned is undone
                    self._holders = self._newest = self._lines_to = None
                    with suppress(duckdb.Error):  # the first error is the one to tell
                        cursor.rollback()
                    raise
        except duckdb.Error as problem:
            raise BusyError(
                f"The database {self.path} cannot be written: {_first_line(problem)}",
                fix=f"Look for a full disk or a vanished one: df -h {self.path.parent}. Then restart tailspan serve.",
            ) from problem

    def _unreadable(self, problem: duckdb.Error) -> StoreError:
        if isinstance(problem, duckdb.OutOfMemoryException):
            return StoreError(
                "The question needs more memory than the store may use.",
                rule=f"It may use {OPTIONS['memory_limit']}.",
                fix="Ask for a shorter range, or for fewer percentiles or dimensions at once.",
            )
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
            columns = by_column(OWN, [span[: len(OWN)] for span in fresh])
            columns["number"] = self._numbers(cursor, [span.about for span in fresh])
            bounds = {"first": min(columns["start_ns"]), "last": max(columns["start_ns"])}
            written = int(_one(cursor.execute(INSERT, columns | bounds))[0])
            if self._newest_line(cursor) >= bounds["first"] - ledger.EARLIER_NS:
                ledger.reconcile(cursor, fresh)
            self._note_newest(fresh)
            self._remember(cursor, _sightings(fresh))
            return written

    def _newest_line(self, cursor: duckdb.DuckDBPyConnection) -> int:
        """When the newest request began that only a log tells of. Most services have no log here, and pay nothing."""
        if self._lines_to is None:
            (self._lines_to,) = _one(cursor.execute(NEWEST_LINE))
        return self._lines_to

    def add_lines(self, lines: Lines, oldest_ns: int, *, dry_run: bool = False) -> ledger.Fates:
        """Keeps what nobody told of yet; of a dry run only says what it would. Raises BusyError.

        `oldest_ns`: when the oldest requests began that are kept.
        """
        with suppress(_Undone), self._write() as cursor, ledger.as_file(lines) as file:
            numbers = self._numbers(cursor, list(lines.abouts.values()))
            arrival = ledger.Arrival(file, lines.total, dict(zip(lines.abouts, numbers, strict=True)))
            fates = ledger.enter(cursor, arrival, oldest_ns)
            cursor.execute(ledger.KEEP)
            self._witness(cursor, cursor.execute("FROM seen").fetchall())
            self._lines_to = self._newest = None
            if dry_run:
                raise _Undone
        return fates

    def _witness(self, cursor: duckdb.DuckDBPyConnection, hours: list[tuple[Any, ...]]) -> None:
        if hours:
            cursor.execute(ledger.WITNESSED, ledger.witnessed(hours))

    def witness(self, hours: list[tuple[Any, ...]]) -> None:
        """Remembers of which services' hours a log was read. Raises BusyError."""
        with self._write() as cursor:
            self._witness(cursor, hours)

    def witnessed(self, start_ns: int, end_ns: int) -> set[tuple[str, str | None, int]]:
        """Service, environment, and the hour since 1970. Raises StoreError."""
        with self._read() as cursor:
            hours = [start_ns // ledger.HOUR, end_ns // ledger.HOUR]
            return set(cursor.execute("FROM witness WHERE hour BETWEEN ? AND ?", hours).fetchall())

    def coverage(self, start_ns: int, end_ns: int) -> list[ledger.Minute]:
        """By service and minute, of the hours that a log was read of. Raises StoreError."""
        if not (hours := self.witnessed(start_ns, end_ns)):
            return []
        with self._read() as cursor:
            found = cursor.execute(ledger.COVERED, {"start": start_ns, "end": end_ns}).fetchall()
        return ledger.of_hours(found, hours)

    def settled(self, first_ns: int, last_ns: int) -> list[tuple[Any, ...]]:
        """Which lines of that time are accounted for: their ids, their live spans', when. Raises StoreError."""
        with self._read() as cursor:
            return cursor.execute("FROM settled WHERE start_ns BETWEEN ? AND ?", [first_ns, last_ns]).fetchall()

    def settle(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds to these what is not there. Raises BusyError."""
        if rows:
            with self._write() as cursor:
                cursor.execute(SETTLE, by_column(("trace", "span", "live_trace", "live_span", "start"), rows))

    def reconcile(self, now_ns: int) -> int:
        """Nothing: `write` does."""
        return 0

    def place(self, file: str) -> tuple[int, str]:
        """How far that file was read, and what stood before; 0 where it was not. Raises StoreError."""
        with self._read() as cursor:
            found = cursor.execute("SELECT read_to, before FROM checkpoint WHERE file = ?", [file]).fetchone()
        return found or (0, "")

    def read(self, file: str, read_to: int, before: str) -> None:
        """Remembers it. Raises BusyError."""
        with self._write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?)", [file, read_to, before])

    def _note_newest(self, spans: Iterable[Span]) -> None:
        newest = self._newest
        if newest is not None:
            for span in spans:
                name = span.service, span.environment
                if span.kind == "request" and span.start_ns > newest.get(name, 0):
                    newest[name] = span.start_ns

    def _remember(self, cursor: duckdb.DuckDBPyConnection, sightings: "dict[tuple[str, Identity], int]") -> None:
        """Brings the history up to date where these spans, by their first time, are not as the newest entry says."""
        if self._holders is None:
            self._holders = _holders(cursor)
        nobody = ((), ALWAYS)
        moved = {
            address
            for (address, identity), first_ns in sightings.items()
            if (holder := self._holders.get(address, nobody))[0] != identity or first_ns <= holder[1]
        }
        if moved:
            self._changed = True
            cursor.execute("DELETE FROM device WHERE seen AND list_contains($1, address)", [list(moved)])
            cursor.execute(HISTORY, {"every": False, "addresses": list(moved)})
            self._holders = _holders(cursor)

    def learn(self, devices: Iterable[Device]) -> None:
        """Adds to the history of whose an address was; replaces an entry of the same address and begin."""
        if not (rows := list(devices)):
            return
        columns = by_column(Device._fields, rows)
        with self._write() as cursor:
            self._changed = True
            cursor.execute(UNLEARN, {name: columns[name] for name in ("address", "from_ns")})
            cursor.execute(LEARN, columns)

    def learned(self) -> list[Device]:
        """Of each address the newest entry that was added to the history."""
        with self._read() as cursor:
            newest = "QUALIFY row_number() OVER (PARTITION BY address ORDER BY from_ns DESC) = 1"
            return list(map(Device._make, cursor.execute(f"{DEVICES} WHERE NOT seen {newest}").fetchall()))

    def history(self) -> list[Device]:
        """Whose each address was, from spans and from what was learned; oldest first."""
        with self._read() as cursor:
            found = cursor.execute(DEVICES).fetchall()
        return sorted(map(Device._make, found), key=lambda device: device.turn)

    def export(self, login: str) -> Iterator[Span]:
        """Everything kept of that login, as answered without labels; oldest first. Raises StoreError."""
        with self._asked(Labels()) as cursor:
            found = cursor.execute(*sql.of_login(login, DESCRIBED))
            while rows := found.fetchmany(EXPORTED_AT_ONCE):
                yield from map(Span._make, rows)

    def spans(self) -> Iterator[Span]:
        """Every request and view as it was delivered, in no order, which takes no memory. Raises StoreError."""
        with self._read() as cursor:
            found = cursor.execute(f"SELECT {', '.join(Span._fields)} FROM span")  # noqa: S608  # the names are Span's own fields
            while rows := found.fetchmany(EXPORTED_AT_ONCE):
                yield from map(Span._make, rows)

    def count(self) -> int:
        """Of requests and views. Raises StoreError."""
        with self._read() as cursor:
            return int(_one(cursor.execute("SELECT count(*) FROM request"))[0])

    def forget(self, login: str) -> int:
        """Deletes everything kept of that login, and counts the requests and views of that. Raises BusyError."""
        with self._write() as cursor:
            self._meaning.show(cursor, self._version, Labels())
            self._changed = True
            cursor.execute(*sql.settling(login, DESCRIBED))
            (deleted,) = _one(cursor.execute(*sql.forgetting(login, DESCRIBED)))
            cursor.execute("DELETE FROM device WHERE login = ?", [login])
            cursor.execute("DELETE FROM about WHERE number NOT IN (SELECT number FROM request)")
            self._known.clear()
            self._holders = self._newest = None
            return int(deleted)

    def heartbeats(self, before_ns: int) -> list[Heartbeat]:
        """All that began before then, by their start."""
        with self._read() as cursor:
            sql = "FROM heartbeat WHERE start_ns < ? ORDER BY start_ns, trace_id, span_id"
            return list(map(Heartbeat._make, cursor.execute(sql, [before_ns]).fetchall()))

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
            self._changed = True
            rows = [(number, *about) for about, number in new.items()]
            cursor.execute(INSERT_ABOUT, by_column(("number", *ABOUT), rows))
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            self._known |= new
        return numbers

    def purge(self, before_ns: int) -> int:
        """Deletes what began (a heartbeat: ended) before then, and counts the requests of that. Raises BusyError."""
        with self._write() as cursor:
            self._known.clear()  # its rows may be deleted now
            self._newest = None
            cursor.execute("DELETE FROM heartbeat WHERE end_ns < ?", [before_ns])
            cursor.execute("DELETE FROM device WHERE NOT seen AND to_ns <= ?", [before_ns])  # no request is that old
            cursor.execute("DELETE FROM settled WHERE start_ns < ?", [before_ns])
            cursor.execute("DELETE FROM witness WHERE hour < ?", [before_ns // ledger.HOUR])
            (deleted,) = _one(cursor.execute("DELETE FROM request WHERE start_ns < ?", [before_ns]))
            if deleted:
                cursor.execute("DELETE FROM about WHERE number NOT IN (SELECT number FROM request)")
            return int(deleted)

    @overload
    def run(self, query: Rows) -> list[Span]: ...
    @overload
    def run(self, query: Sessions) -> list[Session]: ...
    @overload
    def run(self, query: Aggregate) -> Groups: ...
    def run(self, query: Rows | Sessions | Aggregate) -> list[Span] | list[Session] | Groups:
        many = isinstance(query, Aggregate) and self._has_many_times(query)
        with self._asked(query.labels) as cursor:
            if isinstance(query, Rows):
                return list(map(Span._make, cursor.execute(*sql.rows(query, DESCRIBED)).fetchall()))
            if isinstance(query, Sessions):
                return [sql.session(row) for row in cursor.execute(*sql.sessions(query, DESCRIBED)).fetchall()]
            return sql.answered(query, cursor.execute(*sql.aggregate(query, DESCRIBED, many=many)).fetchall())

    def _has_many_times(self, query: Aggregate) -> bool:
        """Whether percentiles are asked for of more response times than memory should hold; they may be fewer."""
        if PERCENTS.keys().isdisjoint(query.metrics):
            return False
        [total] = self.run(replace(query, metrics=("requests",), dimensions=(), order=(), known=())).rows
        return bool(total["requests"] > MAX_TIMES)

    @contextmanager
    def _asked(self, labels: Labels) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor that has what `about` means by these labels in DESCRIBED."""
        with self._read() as cursor:
            cursor.begin()
            self._meaning.show(cursor, self._version, labels)
            yield cursor

    def _newest_requests(self, cursor: duckdb.DuckDBPyConnection) -> dict[tuple[str, str | None], int]:
        """By service and environment. Remembered where nobody writes just now, who would make it untrue."""
        if (newest := self._newest) is not None:
            return dict(newest)
        alone = self._writing.acquire(blocking=False)
        try:
            newest = {(service, environment): at for service, environment, at in cursor.execute(NEWEST).fetchall()}
            if alone:
                self._newest = dict(newest)
            return newest
        finally:
            if alone:
                self._writing.release()

    def state(self, now_ns: int) -> State:
        try:
            with self._read() as cursor:
                requests = self._newest_requests(cursor)
                beaten = cursor.execute(BEATEN, {"since": now_ns - DAY_NS}).fetchall()
        except StoreError as problem:
            return State("store", "unreadable", str(problem))
        found = services(requests, {(row[0], row[1]): (*row[2:-1], by_kind(row[-1])) for row in beaten})
        others = [service for service in found if service.service != OWN_SERVICE]
        newest = max((service.last_request_ns for service in others if service.last_request_ns), default=None)
        if newest is not None:
            return State("store", "ok", f"The database {self.path} answers.", newest, found)
        return State("store", "no data yet", SILENT if others else EMPTY, None, found)


class _Undone(Exception):
    """What a dry run ends its transaction with."""


def _sightings(spans: Iterable[Span]) -> "dict[tuple[str, Identity], int]":
    """The address and who had it, by what the spans say themselves → when first."""
    found: dict[tuple[str, Identity], int] = {}
    for span in spans:
        if span.node_id and span.node and span.address and span.source == "live" and span.caller in HOLDING:
            key = span.address, (span.node_id, span.node, span.login, span.tags)
            found[key] = min(found.get(key, ALWAYS), span.start_ns)
    return found


def _holders(cursor: duckdb.DuckDBPyConnection) -> "dict[str, tuple[Identity, int]]":
    return {address: (tuple(identity), from_ns) for address, *identity, from_ns in cursor.execute(HOLDERS).fetchall()}


def by_column(names: Sequence[str], rows: Iterable[Sequence[object]]) -> dict[str, Any]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _one(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    row = result.fetchone()
    assert row is not None  # a count always has its row
    return row


def _first_line(problem: duckdb.Error) -> str:
    return str(problem).partition("\n")[0]
