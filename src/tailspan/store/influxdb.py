"""The store of the full pipeline: InfluxDB 2, which a collector writes to and this one only asks.

flux.py says what a question needs of it, points.py makes rows of that, and sql.py asks them as it asks the embedded
store's. What was fetched of a day that is over stays on disk for as long as this process runs, and is fetched again
when the number or the durations of that day's points change.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, overload

import duckdb

from tailspan import flux, points, sql
from tailspan.bucket import Bucket
from tailspan.config import InfluxDB as Settings
from tailspan.errors import StoreError
from tailspan.flux import ALL_TIME, Part
from tailspan.labels import Labels
from tailspan.meaning import DESCRIBED_TABLE, SIGHTINGS, Described
from tailspan.query import Aggregate, Groups, Range, Rows, Session, Sessions
from tailspan.span import OWN_SERVICE, Device, Heartbeat, Span
from tailspan.store import EMPTY, SILENT, State, services
from tailspan.store.duckdb import BEATEN, OPTIONS, DuckDB
from tailspan.zone import DAY_NS, day_range, days_of

MINUTE_NS: Final = 60 * 10**9
FIRST_LOOK_NS: Final = 15 * MINUTE_NS  # where the newest requests are looked for first, and then eight times as far
FRESH_S: Final = 5.0  # how old the history of devices and the counts of days may be
MOST_DAYS: Final = 400
MOST_KEPT: Final = 20_000_000  # rows of days that are over


class Kept(NamedTuple):
    """A day's rows of one part, and how the day's points were counted before."""

    table: str
    rows: int
    counted: object


class InfluxDB:
    """Asks one bucket. `local` keeps what InfluxDB does not: devices that were learned elsewhere."""

    name: Final = "influxdb"

    def __init__(self, settings: Settings, local: DuckDB) -> None:
        self.bucket = Bucket(settings)
        self._local = local
        self._folder = Path(tempfile.mkdtemp(prefix="tailspan-"))
        self._connection = duckdb.connect(str(self._folder / "kept.duckdb"), config=OPTIONS)
        self._connection.execute(points.SCHEMA)
        self._meaning = Described(self._connection)
        self._loading = threading.RLock()
        self._version = 0  # of `about` and `device`
        self._tables = 0
        self._kept: dict[tuple[Part, Range], Kept] = {}
        self._counted: dict[Range, tuple[float, object]] = {}  # day → when it was counted, and what came out
        self._history: tuple[float, list[Device]] | None = None
        self._asking = 0
        self._dropped: list[str] = []  # tables that somebody may still ask

    def close(self) -> None:
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
        with self._asked(of, parts, query.zone, query.labels, ever) as cursor:
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
            with self._asked(of, parts, query.zone, query.labels) as cursor:
                found = list(map(Span._make, cursor.execute(*sql.rows(query, DESCRIBED_TABLE)).fetchall()))
            if len(found) >= query.limit or of.start_ns == start_ns:
                return found
            length *= 8

    @contextmanager
    def _asked(
        self, of: Range, parts: list[Part], zone: str, labels: Labels, ever: Sequence[Part] = ()
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor that has these parts as `request` (and of all time, as `ever`), and their meaning."""
        with self._connection.cursor() as cursor:
            with self._loading:
                _view(cursor, "request", self._load(cursor, of, parts, zone))
                _view(cursor, "ever", self._load(cursor, ALL_TIME, ever, zone))
                self._asking += 1
            try:
                cursor.begin()
                self._meaning.show(cursor, self._version, labels)
                yield cursor
            finally:
                cursor.rollback()
                with self._loading:
                    self._asking -= 1
                    self._tidy()

    def _load(self, cursor: duckdb.DuckDBPyConnection, of: Range, parts: Sequence[Part], zone: str) -> list[str]:
        """The tables that hold the parts, fetched where they are not kept."""
        with self._loading:
            pieces = _pieces(of, zone)
            counted = self._count(pieces[1:-1])  # the days that are whole, and so over
            found = []
            for part in parts:
                wanted = [piece for piece in pieces if not self._holds(part, piece, counted)]
                fetched = self._fetch(cursor, part, wanted)
                for piece in pieces:
                    if piece not in fetched:
                        found.append(self._kept[part, piece].table)
                    elif piece in counted:
                        found.append(self._keep(part, piece, fetched[piece], counted[piece]))
                    else:
                        found.append(fetched[piece])
                        self._dropped.append(fetched[piece])
            return found

    def _holds(self, part: Part, piece: Range, counted: dict[Range, object]) -> bool:
        kept = self._kept.get((part, piece))
        return kept is not None and piece in counted and kept.counted == counted[piece]

    def _keep(self, part: Part, piece: Range, table: str, counted: object) -> str:
        if before := self._kept.pop((part, piece), None):
            self._dropped.append(before.table)
        with self._connection.cursor() as cursor:
            (rows,) = cursor.execute(f"SELECT count(*) FROM {table}").fetchall()[0]  # noqa: S608  # the name is ours
        self._kept[part, piece] = Kept(table, rows, counted)
        return table

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, part: Part, wanted: list[Range]) -> dict[Range, str]:
        """A table for each piece."""
        if not wanted:
            return {}
        self._arrive(cursor, part, wanted if part.summed else _runs(wanted))
        self._version += points.learn(cursor)
        made = {}
        for piece in wanted:
            self._tables += 1
            made[piece] = f"piece_{self._tables}"
            cursor.execute(
                f"CREATE TABLE {made[piece]} AS SELECT {', '.join(points.KEPT)} FROM arrived "  # noqa: S608  # names are ours
                "WHERE start_ns >= ? AND start_ns < ?",
                list(piece),
            )
        return made

    def _arrive(self, cursor: duckdb.DuckDBPyConnection, part: Part, ranges: list[Range]) -> None:
        """Makes the cursor's table `arrived`."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            answers = []
            for number, stream in enumerate(part.streams):
                place = Path(folder) / str(number)
                place.mkdir()
                with self.bucket.ask(stream, ranges) as lines:
                    answers.append(points.saved(lines, place))
            points.arrive(cursor, part, answers)

    def _count(self, days: list[Range]) -> dict[Range, object]:
        """The points of each day by source, and their durations."""
        now = time.monotonic()
        stale = [day for day in days if day not in self._counted or self._counted[day][0] < now - FRESH_S]
        if stale:
            found: dict[Range, dict[tuple[str, str], str]] = {day: {} for day in stale}
            for stream in flux.counted().streams:
                for row in self._records(stream, stale):
                    found[stale[int(row["result"])]][stream.column, row.get("tailspan.source", "")] = row["_value"]
            self._counted |= {day: (now, counts) for day, counts in found.items()}
        return {day: self._counted[day][1] for day in days}

    def _records(self, stream: flux.Stream, ranges: list[Range]) -> list[dict[str, str]]:
        with self.bucket.ask(stream, ranges) as lines:
            return list(points.records(lines))

    def _tidy(self) -> None:
        """Drops what nobody asks any more; of too much, the days that were fetched first."""
        while sum(kept.rows for kept in self._kept.values()) > MOST_KEPT:
            self._dropped.append(self._kept.pop(next(iter(self._kept))).table)
        if not self._asking:
            for table in self._dropped:
                self._connection.execute(f"DROP TABLE IF EXISTS {table}")
            self._dropped.clear()

    def history(self) -> list[Device]:
        """Whose each address was, as points tell and as was learned; oldest first."""
        with self._loading:
            if self._history is None or self._history[0] < time.monotonic() - FRESH_S:
                devices = sorted({*self._sighted(), *self._local.history()}, key=lambda one: (one.from_ns, one.address))
                if self._history is None or self._history[1] != devices:
                    with self._connection.cursor() as cursor:
                        cursor.execute("DELETE FROM device")
                        for device in devices:
                            cursor.execute("INSERT INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(device))
                    self._version += 1
                self._history = time.monotonic(), devices
            return self._history[1]

    def _sighted(self) -> list[Device]:
        """Of an address that only ever was one device's, the first point says all; else every point is looked at."""
        with self._connection.cursor() as cursor:
            self._arrive(cursor, flux.sighted(), [ALL_TIME])
            held = cursor.execute(points.HOLDERS).fetchall()
            several = [address for address, holders, tagged in held if holders > 1 or tagged]
            found = cursor.execute(
                SIGHTINGS.format("arrived", "NOT list_contains($several, address)"), {"several": several}
            )
            devices = list(map(Device._make, found.fetchall()))
            if several:
                self._arrive(cursor, flux.sighted_as(several), [ALL_TIME])
                devices += map(Device._make, cursor.execute(SIGHTINGS.format("arrived", "true")).fetchall())
            return devices

    def heartbeats(self, before_ns: int) -> list[Heartbeat]:
        """All that began before then, by their start."""
        with self._connection.cursor() as cursor:
            self._arrive(cursor, flux.heartbeats(), [Range(0, before_ns)])
            return list(map(Heartbeat._make, cursor.execute(points.BEATS).fetchall()))

    def export(self, login: str) -> Iterator[Span]:
        """Everything kept of that login, as answered without labels; oldest first. Raises StoreError."""
        self.history()
        with self._asked(ALL_TIME, [flux.of_login(login)], "UTC", Labels()) as cursor:
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
            self._counted.clear()
        left = sum(1 for _ in self.export(login))
        if left:
            raise StoreError(f"InfluxDB kept {left} of {theirs} points.", fix="Look into its log, and ask again.")
        return theirs

    def state(self, now_ns: int) -> State:
        try:
            newest = {
                (row["service.name"], row.get("deployment.environment.name")): points.nanoseconds(row["_time"])
                for row in self._records(flux.newest().streams[0], [ALL_TIME])
            }
            with self._connection.cursor() as cursor:
                self._arrive(cursor, flux.heartbeats(), [ALL_TIME])
                cursor.execute(f"CREATE TEMP VIEW heartbeat AS {points.BEATS}")
                beaten = cursor.execute(BEATEN, {"since": now_ns - DAY_NS}).fetchall()
        except StoreError as problem:
            return State("store", problem.state, str(problem))
        found = services(newest, {(row[0], row[1]): row[2:] for row in beaten})
        others = [service for service in found if service.service != OWN_SERVICE]
        last = max((service.last_request_ns for service in others if service.last_request_ns), default=None)
        if last is not None:
            return State("store", "ok", f"InfluxDB at {self.bucket.settings.url} answers.", last, found)
        return State("store", "no data yet", SILENT if others else EMPTY, None, found)


def _view(cursor: duckdb.DuckDBPyConnection, name: str, tables: list[str]) -> None:
    if tables:
        cursor.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(f'FROM {table}' for table in tables)}")


def _pieces(of: Range, zone: str) -> list[Range]:
    """The range in order, cut at the midnights of the zone; all of time is one piece."""
    if of.end_ns - of.start_ns > MOST_DAYS * DAY_NS:
        return [of]
    days = [Range(*day_range(zone, day)) for day in days_of(zone, *of)]
    return [Range(max(day.start_ns, of.start_ns), min(day.end_ns, of.end_ns)) for day in days]


def _runs(pieces: Iterable[Range]) -> list[Range]:
    """The same time in as few ranges as it takes."""
    found: list[Range] = []
    for piece in pieces:
        if found and found[-1].end_ns == piece.start_ns:
            found[-1] = Range(found[-1].start_ns, piece.end_ns)
        else:
            found.append(piece)
    return found
