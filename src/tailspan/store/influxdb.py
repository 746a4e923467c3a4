"""The store of the full pipeline: InfluxDB 2, which a collector writes to and this one only asks.

flux.py says what a question needs of it, pieces.py fetches that, and sql.py asks it as it asks the embedded store's.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar, overload

import duckdb

from tailspan import flux, points, shelf, sql
from tailspan.bucket import Bucket
from tailspan.config import InfluxDB as Settings
from tailspan.covered import Covered
from tailspan.errors import SlowError, StoreError
from tailspan.flux import ALL_TIME, Part
from tailspan.ingest.lines import Lines
from tailspan.labels import NO_LOGS, Labels
from tailspan.ledger import Fates
from tailspan.loglines import LogLines
from tailspan.meaning import DESCRIBED_TABLE, SIGHTINGS, Described
from tailspan.percentiles import PERCENTS
from tailspan.pieces import LATE_NS, OPEN_S, Loaded, Pieces
from tailspan.query import Aggregate, Groups, Range, Rows, Session, Sessions
from tailspan.receiver import Receiver
from tailspan.span import OWN_SERVICE, Device, Heartbeat, Span, by_kind
from tailspan.store import EMPTY, SILENT, State, closing, services
from tailspan.store.duckdb import MAX_TIMES, DuckDB
from tailspan.store.file import OPTIONS
from tailspan.zone import DAY_NS

FIRST_LOOK_NS: Final = LATE_NS  # where the newest requests are looked for first, and then eight times as far
KNOWN_S: Final = 2.0  # how old the history of devices may be before it is learned anew beside a question,
OLD_S: Final = 10.0  # and before it is learned before the question is answered
SEVERAL_S: Final = 60.0  # likewise of addresses that changed hands, where every point is looked at
ADDRESSES_AT_ONCE: Final = 50  # some 150 terms are too deep for Flux
UNPAIRED_AT_ONCE: Final = 10_000
ALL_DEVICES: Final = f"INSERT INTO device SELECT {', '.join(f'unnest(${name})' for name in Device._fields)}"
BEATS_S: Final = 600.0  # how old heartbeats of more than three hours ago may be,
ALL_S = 60.0  # and what else is learned from points of all time: it may come late
LATELY_NS: Final = 3 * 3600 * 10**9

K = TypeVar("K")
V = TypeVar("V")


class Known(Generic[K, V]):
    """What is fetched of all time now and then, and in between of the last hours, of which the values count."""

    def __init__(self, fetch: Callable[[Range], dict[K, V]], all_s: float) -> None:
        self._fetch = fetch
        self._all_s = all_s
        self._turn = threading.Lock()
        self._all: tuple[float, dict[K, V]] = (-all_s, {})
        self._new = self._all

    def __call__(self) -> dict[K, V]:
        """Raises what fetching raises."""
        with self._turn:
            now = time.monotonic()
            if self._all[0] <= now - self._all_s:
                self._all = self._new = now, self._fetch(ALL_TIME)
            elif self._new[0] <= now - OPEN_S:
                self._new = now, self._fetch(_lately())
            return {**self._all[1], **self._new[1]}


def _lately() -> Range:
    return Range(time.time_ns() - LATELY_NS, ALL_TIME.end_ns)


class InfluxDB:
    """Asks one bucket. `local` keeps what InfluxDB does not: devices that were learned elsewhere, settled lines.

    `collector` takes log lines on their way there.
    """

    name: Final = "influxdb"
    keeps_places: Final = False

    def __init__(self, settings: Settings, local: DuckDB, collector: Receiver | None = None) -> None:
        self.bucket = Bucket(settings)
        self._local = local
        folder = local.path.with_name(f"{local.path.name}.pieces")  # nobody else's: we hold the database
        of = (settings.url, settings.org, settings.bucket)
        self._connection = shelf.opened(folder, of, {**OPTIONS, "memory_limit": "256MB"})
        self._pieces = Pieces(self._connection, self.bucket, folder)
        self._meaning = Described(self._connection)
        self.lines = LogLines(self._connection, self._pieces.arrive, self.bucket, local, collector)
        self._loading = threading.RLock()
        self._moved = 0  # how often the history of devices changed
        self._erased = 0  # how often somebody was forgotten
        self._history: tuple[float, list[Device]] | None = None
        self._learner = ThreadPoolExecutor(1, thread_name_prefix="tailspan-devices")
        self._learning: Future[None] | None = None
        self._several: tuple[float, list[str], list[Device]] | None = None  # addresses that changed hands, and whose
        self._sighted_s = -ALL_S  # when every point was looked at for whom an address was seen as
        self._beats = Known(self._fetch_beats, BEATS_S)
        self._newest = Known(self._fetch_newest, ALL_S)

    def close(self) -> None:
        self._learner.shutdown()
        self._pieces.close()
        self.bucket.close()
        closing.close(self._connection)

    @property
    def took_ms(self) -> list[float]:
        return list(self.bucket.took_ms)

    @overload
    def run(self, query: Rows) -> list[Span]: ...
    @overload
    def run(self, query: Sessions) -> list[Session]: ...
    @overload
    def run(self, query: Aggregate) -> Groups: ...
    def run(self, query: Rows | Sessions | Aggregate) -> list[Span] | list[Session] | Groups:
        if isinstance(query, Rows):
            return self._rows(query)
        of, parts = flux.plan(query, self.history())
        ever = flux.earliest(query) if isinstance(query, Aggregate) and "first_seen" in query.metrics else []
        with self._asked(of, parts, query.labels, zone=query.zone, ever=ever) as cursor:
            if isinstance(query, Sessions):
                return [sql.session(row) for row in cursor.execute(*sql.sessions(query, DESCRIBED_TABLE)).fetchall()]
            many = not PERCENTS.keys().isdisjoint(query.metrics) and _rows_of(cursor) > MAX_TIMES
            compiled = sql.aggregate(query, DESCRIBED_TABLE, many=many, summed=flux.summable(query), ever="ever")
            return sql.answered(query, cursor.execute(*compiled).fetchall())

    def _rows(self, query: Rows) -> list[Span]:
        """Looks at ever more time, until there are enough: points are not in order of time, except within a series."""
        start_ns, end_ns = query.range
        if query.after:
            end_ns = min(end_ns, query.after.start_ns + 1)
        everything = query.newest_per or "feature" in (*query.names, *query.known, *query.filters, *query.without)
        length = end_ns - start_ns if everything else FIRST_LOOK_NS
        while True:
            looked_at = Range(max(start_ns, end_ns - length), end_ns)
            of, parts = flux.plan(replace(query, range=looked_at), self.history())
            with self._asked(of, parts, query.labels, exact=True) as cursor:
                found = list(map(Span._make, cursor.execute(*sql.rows(query, DESCRIBED_TABLE)).fetchall()))
            if len(found) >= query.limit or looked_at.start_ns == start_ns:
                return found
            length *= 8

    @contextmanager
    def _asked(
        self,
        of: Range,
        parts: Sequence[Part],
        labels: Labels,
        *,
        zone: str = "UTC",
        ever: Sequence[Part] = (),
        exact: bool = False,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor that has these parts as `request` (and of all time, as `ever`), and their meaning."""
        with self._connection.cursor() as cursor, self._told():
            with self._turn():
                self._pieces.tidy(cursor)
                _view(cursor, "request", self._pieces.load(cursor, of, parts, zone, exact=exact))
                _view(cursor, "ever", self._pieces.load(cursor, ALL_TIME, ever, zone))
                cursor.begin()  # what is let go from now on is here still
                self._meaning.show(cursor, self._pieces.learned + self._moved, labels)
            yield cursor

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, OSError) as problem:
            reason = " ".join(str(problem).split())[:200]
            fix = "Ask for a shorter range, and look for a full disk."
            raise StoreError(f"What InfluxDB answered cannot be worked on: {reason}", fix=fix) from problem

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One question fetches at a time; who waits for longer than a question may take is told so."""
        if not self._loading.acquire(timeout=self.bucket.settings.timeout_ms / 1000):
            raise SlowError("Other questions still wait for InfluxDB.", fix="Look whether it answers, and ask again.")
        try:
            yield
        finally:
            self._loading.release()

    def history(self) -> list[Device]:
        """Whose each address was, as points tell and as was learned; oldest first.

        As of a few seconds ago: it is learned anew beside the question, or before it where nobody has asked for long.
        """
        with self._turn():
            age = time.monotonic() - self._history[0] if self._history else None
            if age is None or age > OLD_S:
                self._learn()
            elif age > KNOWN_S and (self._learning is None or self._learning.done()):
                self._learning = self._learner.submit(self._learn)
            assert self._history
            return self._history[1]

    def _learn(self) -> None:
        """Raises StoreError; beside a question nobody hears of it, until the history is old."""
        began, erased = time.monotonic(), self._erased
        with self._told():
            devices = sorted({*self._sighted(), *self._local.history()}, key=lambda one: one.turn)
        with self._turn():
            if erased != self._erased:  # somebody was forgotten meanwhile, who is in this
                self._several = None
                return
            if self._history is None or self._history[1] != devices:
                with self._connection.cursor() as cursor:
                    cursor.begin()
                    cursor.execute("DELETE FROM device")
                    if devices:
                        columns = map(list, zip(*devices, strict=True))
                        cursor.execute(ALL_DEVICES, dict(zip(Device._fields, columns, strict=True)))
                    cursor.commit()
                self._moved += 1
            self._history = began, devices

    def _sighted(self) -> list[Device]:
        """Of an address that only ever was one device's, the first point says all; else every point is looked at."""
        with self._connection.cursor() as cursor:
            self._arrive_sighted(cursor)
            held = cursor.execute(points.HOLDERS).fetchall()
            several = sorted(address for address, holders, tagged in held if holders > 1 or tagged)
            alone = SIGHTINGS.format("arrived", "NOT list_contains($several, address)")
            devices = list(map(Device._make, cursor.execute(alone, {"several": several}).fetchall()))
            if self._several is None or self._several[1] != several or self._several[0] < time.monotonic() - SEVERAL_S:
                self._several = time.monotonic(), several, self._sighted_as(cursor, several)
            return devices + self._several[2]

    def _arrive_sighted(self, cursor: duckdb.DuckDBPyConnection) -> None:
        now = time.monotonic()
        if self._sighted_s < now - ALL_S:
            self._pieces.arrive(cursor, flux.sighted(), ALL_TIME)
            cursor.execute("CREATE OR REPLACE TABLE sighted AS FROM arrived")
            self._sighted_s = now
        else:
            self._pieces.arrive(cursor, flux.sighted(), _lately())
            cursor.execute("INSERT INTO arrived FROM sighted")

    def _sighted_as(self, cursor: duckdb.DuckDBPyConnection, addresses: list[str]) -> list[Device]:
        devices: list[Device] = []
        for start in range(0, len(addresses), ADDRESSES_AT_ONCE):
            self._pieces.arrive(cursor, flux.sighted_as(addresses[start : start + ADDRESSES_AT_ONCE]), ALL_TIME)
            devices += map(Device._make, cursor.execute(SIGHTINGS.format("arrived", "true")).fetchall())
        return devices

    def heartbeats(self, before_ns: int) -> list[Heartbeat]:
        """All that began before then, by their start. One changes for an hour at most: older ones are kept a while."""
        with self._told():
            beats = (beat for beat in self._beats().values() if beat.start_ns < before_ns)
            return sorted(beats, key=lambda beat: (beat.start_ns, beat.trace_id, beat.span_id))

    def _fetch_beats(self, of: Range) -> dict[tuple[bytes, bytes], Heartbeat]:
        with self._connection.cursor() as cursor:
            self._pieces.arrive(cursor, flux.heartbeats(), of)
            beats = map(Heartbeat._make, cursor.execute(points.BEATS).fetchall())
            return {(beat.trace_id, beat.span_id): beat for beat in beats}

    def export(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> Iterator[Span]:
        """Everything kept of that login, as answered without other labels; oldest first. Raises StoreError."""
        self.history()
        with self._asked(ALL_TIME, [flux.of_login(login)], Labels(trusted_logs=trusted_logs)) as cursor:
            found = cursor.execute(*sql.of_login(login, DESCRIBED_TABLE))
            while rows := found.fetchmany(1000):
                yield from map(Span._make, rows)

    def _fetch_newest(self, of: Range) -> dict[tuple[str, str | None], int]:
        return {
            (row["service.name"], row.get("deployment.environment.name")): points.nanoseconds(row["_time"])
            for row in self.bucket.records(flux.newest(), of)
        }

    def forget(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> int:
        """Deletes everything kept of that login, and counts the requests and views of that. Raises StoreError."""
        with self._turn():
            self._several, self._sighted_s = None, -ALL_S
            forgotten: list[tuple[Any, ...]] = []
            self._learn()  # what was theirs by address must be known to the last
            theirs = 0
            for span in self.export(login, trusted_logs):
                theirs += 1
                forgotten.append((span.trace_id, span.parent_id or span.span_id, None, None, span.start_ns))
            self._local.settle(forgotten)  # or a log would bring them back
            claimed = self._claimed(login, trusted_logs)
            for predicate, of in [*flux.forgetting(login, self.history()), *claimed]:
                self.bucket.delete(predicate, of)
            with self._told():
                self._pieces.forget(self._connection)  # what was fetched, or the next look would find it here
                left = sum(1 for _ in self.export(login, trusted_logs))
                self._pieces.forget(self._connection)
            self._local.forget(login)
            self._history = self._several = None
            self._sighted_s = -ALL_S
            self._connection.execute("DROP TABLE IF EXISTS sighted")
            self._erased += 1
        if left:
            raise StoreError(f"InfluxDB kept {left} of {theirs} points.", fix="Look into its log, and ask again.")
        return theirs

    def remove_log(self, service: str) -> int:
        """Deletes the points of that service that only a log told of, and counts them. Raises StoreError."""
        with self._turn():
            theirs = self._logged(service)
            self.bucket.delete(flux.of_log(service), ALL_TIME)
            with self._told(), self._connection.cursor() as cursor:
                self._pieces.forget(cursor)
                self._pieces.arrive(cursor, flux.live_of(service), ALL_TIME)
                found = cursor.execute("SELECT trace_id, span_id FROM arrived")
                while lives := found.fetchmany(UNPAIRED_AT_ONCE):
                    self._local.unpair(lives)
            self._local.remove_log(service)
            left = self._logged(service)
        if left:
            raise StoreError(f"InfluxDB kept {left} of {theirs} points.", fix="Look into its log, and ask again.")
        return theirs

    def _logged(self, service: str) -> int:
        return sum(int(row["_value"]) for row in self.bucket.records(flux.logged(service), ALL_TIME))

    def _claimed(self, login: str, trusted_logs: Mapping[str, str]) -> list[tuple[str, Range]]:
        """Where the lines are that name somebody and are theirs: no tag says whom, so each run of them has its time."""
        with self._asked(ALL_TIME, [flux.claimed()], Labels(trusted_logs=trusted_logs)) as cursor:
            found = cursor.execute(*sql.claimed(login, DESCRIBED_TABLE)).fetchall()
        runs = [(header, list(run)) for (header, theirs), run in groupby(found, itemgetter(0, 1)) if theirs]
        return [(flux.claiming(header), Range(run[0][2], run[-1][2] + 1)) for header, run in runs]

    def add_lines(self, lines: Lines, oldest_ns: int, *, dry_run: bool = False) -> Fates:
        with self._told():
            return self.lines.add(lines, oldest_ns, dry_run=dry_run)

    def coverage(self, start_ns: int, end_ns: int) -> Covered:
        """Of the hours that a log was read of. Raises StoreError."""
        with self._told():
            return self.lines.coverage(Range(start_ns, end_ns))

    def reconcile(self, now_ns: int) -> int:
        """Deletes the lines whose services told of them since, and counts them. Raises StoreError."""
        with self._told():
            deleted = self.lines.reconcile(now_ns)
        if deleted:
            self._pieces.doubt()
        return deleted

    def place(self, file: str) -> tuple[int, str, str | None]:
        """Nowhere: what InfluxDB lost in between is only found by reading all of it."""
        return 0, "", None

    def read(self, file: str, read_to: int, before: str, service: str | None) -> None:
        """Nothing, likewise."""

    def state(self, now_ns: int) -> State:
        try:
            found = services(self._newest(), _beaten(self.heartbeats(ALL_TIME.end_ns), now_ns - DAY_NS))
        except StoreError as problem:
            return State("store", problem.state, str(problem))
        others = [service for service in found if service.service != OWN_SERVICE]
        last = max((service.last_request_ns for service in others if service.last_request_ns), default=None)
        if last is not None:
            return State("store", "ok", f"InfluxDB at {self.bucket.settings.url} answers.", last, found)
        return State("store", "no data yet", SILENT if others else EMPTY, None, found)


def _beaten(beats: Iterable[Heartbeat], since_ns: int) -> dict[tuple[str, str | None], tuple[Any, ...]]:
    """What ServiceState has of heartbeats, by service and environment; counts of those that ended after `since_ns`."""
    found = {}
    for _, own in groupby(sorted(beats, key=_named), _named):
        all_of_it = sorted(own, key=lambda beat: beat.end_ns)
        last, new = all_of_it[-1], [beat for beat in all_of_it if beat.end_ns > since_ns]
        counts = (
            sum(beat.forged for beat in new),
            sum(beat.unproven for beat in new),
            sum(beat.dropped for beat in new),
        )
        kinds = by_kind(beat.forged_kinds for beat in new)
        found[last.service, last.environment] = (last.end_ns, last.stopped, *counts, last.open_requests, kinds)
    return found


def _named(beat: Heartbeat) -> tuple[str, bool, str]:
    return beat.service, beat.environment is None, beat.environment or ""


def _rows_of(cursor: duckdb.DuckDBPyConnection) -> int:
    return int(cursor.execute("SELECT count(*) FROM request").fetchall()[0][0])


def _view(cursor: duckdb.DuckDBPyConnection, name: str, loaded: Loaded) -> None:
    """A view of these of `kept`. Of none it is empty."""
    older, newest = (", ".join(map(str, numbers)) or "-1" for numbers in (loaded.older, loaded.newest))
    start_ns, end_ns = loaded.within
    wanted = (
        f"number_kept IN ({newest}) OR (number_kept IN ({older}) AND start_ns >= {start_ns} AND start_ns < {end_ns})"
    )
    cursor.execute(f"CREATE TEMP VIEW {name} AS FROM kept WHERE {wanted}")
