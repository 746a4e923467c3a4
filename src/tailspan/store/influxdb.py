"""The store of the full pipeline: InfluxDB 2, which a collector writes to and this one only asks.

flux.py says what a question needs of it, pieces.py fetches that, and sql.py asks it as it asks the embedded store's.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final, overload

import duckdb

from tailspan import flux, points, sql
from tailspan.bucket import Bucket
from tailspan.config import InfluxDB as Settings
from tailspan.errors import StoreError
from tailspan.flux import ALL_TIME, Part
from tailspan.labels import Labels
from tailspan.meaning import DESCRIBED_TABLE, SIGHTINGS, Described
from tailspan.pieces import OPEN_S, Pieces
from tailspan.query import Aggregate, Groups, Range, Rows, Session, Sessions
from tailspan.span import OWN_SERVICE, Device, Heartbeat, Span
from tailspan.store import EMPTY, SILENT, State, services
from tailspan.store.duckdb import OPTIONS, DuckDB
from tailspan.zone import DAY_NS

FIRST_LOOK_NS: Final = 15 * 60 * 10**9  # where the newest requests are looked for first, and then eight times as far
KNOWN_S: Final = 2.0  # how old the history of devices may be


class InfluxDB:
    """Asks one bucket. `local` keeps what InfluxDB does not: devices that were learned elsewhere."""

    name: Final = "influxdb"

    def __init__(self, settings: Settings, local: DuckDB) -> None:
        self.bucket = Bucket(settings)
        self._local = local
        self._folder = Path(tempfile.mkdtemp(prefix="tailspan-"))
        self._connection = duckdb.connect(str(self._folder / "pieces.duckdb"), config=OPTIONS)
        self._connection.execute(points.SCHEMA)
        self._meaning = Described(self._connection)
        self._pieces = Pieces(self.bucket, self._folder)
        self._loading = threading.RLock()
        self._asking = 0  # questions that are being answered
        self._moved = 0  # how often the history of devices changed
        self._history: tuple[float, list[Device]] | None = None
        self._learner = ThreadPoolExecutor(1, thread_name_prefix="tailspan-devices")
        self._learning: Future[None] | None = None
        self._beats: tuple[float, list[Heartbeat]] | None = None

    def close(self) -> None:
        self._learner.shutdown()
        self._pieces.close()
        self.bucket.close()
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

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
        ever = flux.earliest() if isinstance(query, Aggregate) and "first_seen" in query.metrics else []
        with self._asked(of, parts, query.labels, zone=query.zone, ever=ever) as cursor:
            if isinstance(query, Sessions):
                return [sql.session(row) for row in cursor.execute(*sql.sessions(query, DESCRIBED_TABLE)).fetchall()]
            compiled = sql.aggregate(query, DESCRIBED_TABLE, summed=flux.summable(query), ever="ever")
            return sql.answered(query, cursor.execute(*compiled).fetchall())

    def _rows(self, query: Rows) -> list[Span]:
        """Looks at ever more time, until there are enough: points are not in order of time, except within a series."""
        start_ns, end_ns = query.range
        if query.after:
            end_ns = min(end_ns, query.after.start_ns + 1)
        length = end_ns - start_ns if query.newest_per else FIRST_LOOK_NS
        while True:
            of = Range(max(start_ns, end_ns - length), end_ns)
            _, parts = flux.plan(query, self.history())
            with self._asked(of, parts, query.labels, exact=True) as cursor:
                found = list(map(Span._make, cursor.execute(*sql.rows(query, DESCRIBED_TABLE)).fetchall()))
            if len(found) >= query.limit or of.start_ns == start_ns:
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
        with self._connection.cursor() as cursor:
            with self._loading:
                _view(cursor, "request", self._pieces.tables(cursor, of, parts, zone, exact=exact))
                _view(cursor, "ever", self._pieces.tables(cursor, ALL_TIME, ever, zone))
                self._asking += 1
            try:
                cursor.begin()
                self._meaning.show(cursor, self._pieces.learned + self._moved, labels)
                yield cursor
            finally:
                cursor.rollback()
                self._tidy()

    def _tidy(self) -> None:
        with self._loading:
            self._asking -= 1
            self._pieces.tidy(self._connection, self._asking)

    def history(self) -> list[Device]:
        """Whose each address was, as points tell and as was learned; oldest first.

        What it was two seconds ago, or a little more: it is learned anew beside the question, except at first.
        """
        with self._loading:
            if self._history is None:
                self._learn()
            elif self._history[0] < time.monotonic() - KNOWN_S and (self._learning is None or self._learning.done()):
                self._learning = self._learner.submit(self._learn)
            assert self._history
            return self._history[1]

    def _learn(self) -> None:
        """Raises StoreError; beside a question nobody hears of it, and the question itself fares no better."""
        began = time.monotonic()
        devices = sorted({*self._sighted(), *self._local.history()}, key=lambda one: (one.from_ns, one.address))
        with self._loading:
            if self._history is None or self._history[1] != devices:
                with self._connection.cursor() as cursor:
                    cursor.begin()
                    cursor.execute("DELETE FROM device")
                    for device in devices:
                        cursor.execute("INSERT INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(device))
                    cursor.commit()
                self._moved += 1
            self._history = began, devices

    def _sighted(self) -> list[Device]:
        """Of an address that only ever was one device's, the first point says all; else every point is looked at."""
        with self._connection.cursor() as cursor:
            self._pieces.arrive(cursor, flux.sighted(), ALL_TIME)
            held = cursor.execute(points.HOLDERS).fetchall()
            several = [address for address, holders, tagged in held if holders > 1 or tagged]
            alone = SIGHTINGS.format("arrived", "NOT list_contains($several, address)")
            devices = list(map(Device._make, cursor.execute(alone, {"several": several}).fetchall()))
            if several:
                self._pieces.arrive(cursor, flux.sighted_as(several), ALL_TIME)
                devices += map(Device._make, cursor.execute(SIGHTINGS.format("arrived", "true")).fetchall())
            return devices

    def heartbeats(self, before_ns: int) -> list[Heartbeat]:
        """All that began before then, by their start."""
        with self._loading:
            if self._beats is None or self._beats[0] < time.monotonic() - OPEN_S:
                with self._connection.cursor() as cursor:
                    self._pieces.arrive(cursor, flux.heartbeats(), ALL_TIME)
                    beats = list(map(Heartbeat._make, cursor.execute(points.BEATS).fetchall()))
                self._beats = time.monotonic(), beats
            return [beat for beat in self._beats[1] if beat.start_ns < before_ns]

    def export(self, login: str) -> Iterator[Span]:
        """Everything kept of that login, as answered without labels; oldest first. Raises StoreError."""
        self.history()
        with self._asked(ALL_TIME, [flux.of_login(login)], Labels()) as cursor:
            found = cursor.execute(*sql.of_login(login, DESCRIBED_TABLE))
            while rows := found.fetchmany(1000):
                yield from map(Span._make, rows)

    def forget(self, login: str) -> int:
        """Deletes everything kept of that login, and counts the requests and views of that. Raises StoreError."""
        theirs = sum(1 for _ in self.export(login))
        for predicate, of in flux.forgetting(login, self.history()):
            self.bucket.delete(predicate, of)
        self._local.forget(login)
        with self._loading:
            self._history = None
            self._pieces.forget()
        left = sum(1 for _ in self.export(login))
        if left:
            raise StoreError(f"InfluxDB kept {left} of {theirs} points.", fix="Look into its log, and ask again.")
        return theirs

    def state(self, now_ns: int) -> State:
        try:
            newest = {
                (row["service.name"], row.get("deployment.environment.name")): points.nanoseconds(row["_time"])
                for row in self.bucket.records(flux.newest(), ALL_TIME)
            }
            found = services(newest, _beaten(self.heartbeats(ALL_TIME.end_ns), now_ns - DAY_NS))
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
        found[last.service, last.environment] = (last.end_ns, last.stopped, *counts, last.open_requests)
    return found


def _named(beat: Heartbeat) -> tuple[str, bool, str]:
    return beat.service, beat.environment is None, beat.environment or ""


def _view(cursor: duckdb.DuckDBPyConnection, name: str, tables: list[str]) -> None:
    if tables:
        cursor.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(f'FROM {table}' for table in tables)}")
