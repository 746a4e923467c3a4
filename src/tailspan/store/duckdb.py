"""The embedded store: one DuckDB file, one process, every thread its own cursor and one writer at a time.

A delivery is written in one transaction, so that what was acknowledged is on disk and nothing is there by half.
There is no primary key on requests: at two million rows it costs three times the insert and all the memory. What was
delivered before is found by an anti-join over the delivery's own stretch of time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, overload

import duckdb

from tailspan import ledger, sql
from tailspan.covered import NOTHING, Covered, covered
from tailspan.errors import StoreError
from tailspan.ingest.lines import Lines
from tailspan.labels import NO_LOGS, Labels
from tailspan.meaning import DESCRIBED_TABLE as DESCRIBED
from tailspan.meaning import Described
from tailspan.percentiles import PERCENTS
from tailspan.query import Aggregate, Groups, Rows, Session, Sessions
from tailspan.span import ABOUT, OWN, OWN_SERVICE, Device, Heartbeat, Span, by_kind
from tailspan.store import EMPTY, SILENT, State, services
from tailspan.store.file import HISTORY, File, one

Identity = tuple[str | None, ...]  # node_id, node, login, tags
HOLDING: Final = ("person", "tagged", "shared")  # callers who are a device of their own
ALWAYS: Final = 2**63 - 1
DAY_NS: Final = 24 * 3600 * 10**9
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
UNPAIR: Final = "DELETE FROM settled WHERE (live_trace_id, live_span_id) IN (SELECT unnest($traces), unnest($spans))"
UNPAIR_LIVE: Final = """
    DELETE FROM settled WHERE (live_trace_id, live_span_id) IN (
        SELECT trace_id, span_id FROM span WHERE source = 'live' AND service = ?)"""
REMOVE_LOG: Final = """
    DELETE FROM request WHERE number IN (SELECT number FROM about WHERE source = 'log' AND service = ?)"""
NEWEST_LINE: Final = "SELECT coalesce(max(start_ns), 0) FROM span WHERE source = 'log'"
BEATEN: Final = """
    SELECT service, environment, max(end_ns), arg_max(stopped, end_ns),
           coalesce(sum(forged) FILTER (end_ns > $since), 0)::BIGINT,
           coalesce(sum(unproven) FILTER (end_ns > $since), 0)::BIGINT,
           coalesce(sum(dropped) FILTER (end_ns > $since), 0)::BIGINT, arg_max(open_requests, end_ns),
           coalesce(list(forged_kinds) FILTER (end_ns > $since), [])
    FROM heartbeat GROUP BY ALL"""


class DuckDB(File):
    """Opens the file, or makes it. Raises LockedError where another process holds it, else StoreError."""

    name: Final = "duckdb"
    keeps_places: Final = True
    took_ms: Final[list[float]] = []

    def __init__(self, path: Path) -> None:
        self._known: dict[tuple[object, ...], int] = {}  # rows of `about` by content; guarded by _writing
        self._holders: dict[str, tuple[Identity, int]] | None = None  # address → whose, since when; guarded likewise
        self._lines_to: int | None = None  # when the newest request began that only a log tells of
        self._newest: dict[tuple[str, str | None], int] | None = None  # service, environment → newest request
        super().__init__(path)

    def _begin(self) -> None:
        self._meaning = Described(self._connection)
        with self._read() as cursor:
            (self._last,) = one(cursor.execute("SELECT coalesce(max(number), 0) FROM about"))

    def _undone(self) -> None:
        self._known.clear()
        self._holders = self._newest = self._lines_to = None

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
            written = int(one(cursor.execute(INSERT, columns | bounds))[0])
            if self._newest_line(cursor) >= bounds["first"] - ledger.EARLIER_NS:
                ledger.reconcile(cursor, fresh)
            self._note_newest(fresh)
            self._remember(cursor, _sightings(fresh))
            return written

    def _newest_line(self, cursor: duckdb.DuckDBPyConnection) -> int:
        """When the newest request began that only a log tells of. Most services have no log here, and pay nothing."""
        if self._lines_to is None:
            (self._lines_to,) = one(cursor.execute(NEWEST_LINE))
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

    def coverage(self, start_ns: int, end_ns: int) -> Covered:
        """Of the hours that a log was read of. Raises StoreError."""
        if not (hours := self.witnessed(start_ns, end_ns)):
            return NOTHING
        with self._read() as cursor:
            return covered(cursor, start_ns, end_ns, hours)

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

    def place(self, file: str) -> tuple[int, str, str | None]:
        """How far that file was read, what stood before, and as whose; 0 where it was not. Raises StoreError."""
        with self._read() as cursor:
            sql = "SELECT read_to, before, service FROM checkpoint WHERE file = ?"
            found = cursor.execute(sql, [file]).fetchone()
        return found or (0, "", None)

    def read(self, file: str, read_to: int, before: str, service: str | None) -> None:
        """Remembers it. Raises BusyError."""
        with self._write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?)", [file, read_to, before, service])

    def remove_log(self, service: str) -> int:
        """Deletes the requests of that service that only a log told of, and counts them. Raises BusyError."""
        with self._write() as cursor:
            self._changed = True
            cursor.execute(UNPAIR_LIVE, [service])  # or lines that are read as that service's later find none of these
            (deleted,) = one(cursor.execute(REMOVE_LOG, [service]))
            cursor.execute("DELETE FROM witness WHERE service = ?", [service])
            cursor.execute("DELETE FROM checkpoint WHERE service = ? OR service IS NULL", [service])
            self._tidy(cursor)
            return int(deleted)

    def unpair(self, lives: Sequence[tuple[bytes, bytes]]) -> None:
        """Lets other lines take these live spans. Raises BusyError."""
        with self._write() as cursor:
            cursor.execute(UNPAIR, by_column(("traces", "spans"), lives))

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

    def export(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> Iterator[Span]:
        """Everything kept of that login, as answered without other labels; oldest first. Raises StoreError."""
        with self._asked(Labels(trusted_logs=trusted_logs)) as cursor:
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
            return int(one(cursor.execute("SELECT count(*) FROM request"))[0])

    def forget(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> int:
        """Deletes everything kept of that login, and counts the requests and views of that. Raises BusyError."""
        with self._write() as cursor:
            self._meaning.show(cursor, self._version, Labels(trusted_logs=trusted_logs))
            self._changed = True
            cursor.execute(*sql.settling(login, DESCRIBED))
            (deleted,) = one(cursor.execute(*sql.forgetting(login, DESCRIBED)))
            cursor.execute("DELETE FROM device WHERE login = ?", [login])
            self._holders = None
            self._tidy(cursor)
            return int(deleted)

    def _tidy(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Lets go of what was said of deleted requests alone."""
        cursor.execute("DELETE FROM about WHERE number NOT IN (SELECT number FROM request)")
        self._known.clear()
        self._newest = self._lines_to = None

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
            (deleted,) = one(cursor.execute("DELETE FROM request WHERE start_ns < ?", [before_ns]))
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
