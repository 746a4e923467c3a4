"""The ledger where the store is InfluxDB: the same SQL, on what InfluxDB has of the time that lines are of.

What is new goes to InfluxDB's collector as spans. A live span that comes late is looked for, since InfluxDB tells
nobody of it; its line's point is deleted then.
"""

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final, Protocol

import duckdb

from tailspan import flux, ledger
from tailspan.bucket import Bucket
from tailspan.covered import NOTHING, Covered, covered
from tailspan.encode import batches
from tailspan.errors import BusyError, UnsentError
from tailspan.flux import Part
from tailspan.ingest.lines import Lines
from tailspan.ledger import (
    EARLIER_NS,
    HOUR,
    LONGEST_NS,
    MINUTE,
    SPREAD_NS,
    ZONES_NS,
    Arrival,
    Fates,
    as_file,
    candidates,
)
from tailspan.points import nanoseconds
from tailspan.query import Range
from tailspan.receiver import Receiver
from tailspan.span import ABOUT, Span
from tailspan.store.duckdb import INSERT_ABOUT, DuckDB, by_column

DELETES: Final = 200  # at once: each takes InfluxDB a while
ARRIVING_S: Final = 60.0  # as long may a line be in the collector
ARRIVING: Final = 100_000  # at most so many are remembered
LOOK_BACK_NS: Final = 48 * HOUR  # how late a live span may come
FLOATING: Final = b"00000000"  # as ledger.FLOATING, in hex
OF_TIME: Final = f"""
    CREATE OR REPLACE TABLE about AS
        SELECT DISTINCT ON (number) number::HUGEINT AS number, {", ".join(ABOUT)} FROM arrived;
    CREATE OR REPLACE TABLE request AS
        SELECT trace_id, span_id, parent_id, start_ns, duration_ns, path, visible_ms, open_ns, number::HUGEINT AS number
        FROM arrived;
    CREATE OR REPLACE TABLE settled (
        trace_id BLOB, span_id BLOB, live_trace_id BLOB, live_span_id BLOB, start_ns BIGINT)"""
SETTLED: Final = ("trace", "span", "live_trace", "live_span", "start")
ADD_SETTLED: Final = f"INSERT INTO settled SELECT {', '.join(f'unnest(${name})' for name in SETTLED)}"
NEW: Final = f"""
    SELECT trace_id, span_id, NULL, start_ns, duration_ns, path, NULL, open_ns, {", ".join(ABOUT)}
    FROM line JOIN about USING (number) ORDER BY start_ns, trace_id, span_id"""
LOGGED: Final = """
    CREATE OR REPLACE TABLE logged AS
    SELECT trace_id, span_id, start_ns FROM request JOIN about USING (number)
    WHERE source = 'log' AND start_ns >= $start AND start_ns < $end"""
GONE: Final = """
    SELECT start_ns, twin.trace_id IS NOT NULL FROM logged LEFT JOIN (
        SELECT trace_id, span_id FROM settled
        UNION SELECT trace_id, parent_id FROM request WHERE parent_id IS NOT NULL) AS twin
    ON logged.trace_id = twin.trace_id AND logged.span_id = twin.span_id ORDER BY start_ns"""


class Fetch(Protocol):
    """Makes the cursor's table `arrived`."""

    def __call__(self, cursor: duckdb.DuckDBPyConnection, part: Part, *of: Range) -> None: ...


class LogLines:
    """`local` keeps which lines are settled. Raises what Bucket raises, and BusyError where lines cannot be sent."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        fetch: Fetch,
        bucket: Bucket,
        local: DuckDB,
        collector: Receiver | None,
    ) -> None:
        self.reconciled_ns = 0  # until when live spans that came late were looked for
        self._connection = connection
        self._fetch = fetch
        self._bucket = bucket
        self._local = local
        self._collector = collector
        self._working = threading.Lock()
        self._counted: dict[int, int] = {}  # hour → its points, when it was reconciled
        self._sent: deque[tuple[float, int]] = deque(maxlen=ARRIVING)  # when, and the start of each
        connection.execute("ATTACH ':memory:' AS lines")

    @contextmanager
    def _time(self, of: Range, *earlier: Range) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor with what InfluxDB has of that time, in the tables that ledger.py asks."""
        with self._working, self._connection.cursor() as cursor:
            self._fetch(cursor, flux.requests(), of, *earlier)
            cursor.execute("USE lines")
            cursor.execute(OF_TIME)
            settled = self._local.settled(of.start_ns - LONGEST_NS, of.end_ns)  # where it began that took hours
            if settled:
                cursor.execute(ADD_SETTLED, by_column(SETTLED, settled))
            yield cursor

    def add(self, lines: Lines, oldest_ns: int, *, dry_run: bool) -> Fates:
        if self._collector is None:
            fix = "Set OTEL_EXPORTER_OTLP_ENDPOINT for tailspan serve: the collector's address, port 4318 by default."
            raise BusyError("Log lines get into InfluxDB by its collector, and the server knows none.", fix=fix)
        if not lines.total:
            return Fates()
        rows = [row.split(b"\t", 4) for row in lines.rows.splitlines()]
        starts = [start for row in rows if (start := int(row[3])) >= oldest_ns]
        if not starts:
            return Fates(lines.total, too_old=lines.total)
        beside_ns = ZONES_NS if any(row[2].endswith(FLOATING) for row in rows) else EARLIER_NS
        around = Range(max(0, min(starts) - beside_ns), max(starts) + beside_ns)
        with self._time(around, *self._open_at(around.start_ns)) as cursor, as_file(lines) as file:
            numbers = {given: number for number, given in enumerate(lines.abouts)}
            abouts = [(numbers[given], *about) for given, about in lines.abouts.items()]
            if abouts:
                cursor.execute(INSERT_ABOUT, by_column(("number", *ABOUT), abouts))
            fates = ledger.enter(cursor, Arrival(file, lines.total, numbers), oldest_ns)
            if not dry_run:
                new = list(map(Span._make, cursor.execute(NEW).fetchall()))
                self._sent.extend((time.monotonic(), span.start_ns) for span in new)
                self._send(self._collector, new)
                self._keep_settled(cursor)
                self._local.witness(cursor.execute("FROM seen").fetchall())
        return fates

    def coverage(self, of: Range) -> Covered:
        """As the embedded store has it."""
        if not (hours := self._local.witnessed(*of)):
            return NOTHING
        with self._time(of) as cursor:
            return covered(cursor, *of, hours)

    def _send(self, collector: Receiver, spans: Iterable[Span]) -> None:
        try:
            for batch in batches(spans):
                if (answer := collector.send(batch.body)).refused:
                    raise BusyError(f"{collector.url} refused {answer.refused} lines: {answer.message}.")
        except UnsentError as problem:
            raise BusyError(problem.message, fix=problem.fix) from problem

    def _keep_settled(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._local.settle(cursor.execute("FROM settled").fetchall())

    def reconcile(self, now_ns: int) -> int:
        """Deletes the points of lines whose services told of them since; how many those were."""
        hours = self._changed(Range(now_ns - LOOK_BACK_NS, now_ns + HOUR))
        deleted = 0
        for first, last in _stretches(hours):
            if gone := self._reconcile(Range(first, last)):
                deleted += gone  # how many are left is counted the next time
            else:
                self._counted |= {hour: points for hour, points in hours.items() if first <= hour * HOUR < last}
        self.reconciled_ns = now_ns
        return deleted

    def _open_at(self, moment_ns: int) -> Iterator[Range]:
        """The minutes in which requests began that took long, and were not over then."""
        found = self._long(Range(max(0, moment_ns - LONGEST_NS), max(1, moment_ns)))
        for minute in {at // MINUTE for at, end in found if end >= moment_ns}:
            yield Range(minute * MINUTE, min((minute + 1) * MINUTE, moment_ns))

    def _long(self, of: Range) -> Iterator[tuple[int, int]]:
        """When each began that a service told of, and when it ended."""
        for row in self._bucket.records(flux.longer(EARLIER_NS), of):
            at_ns = nanoseconds(row["_time"])
            yield at_ns, at_ns + int(row["_value"])

    def _changed(self, of: Range) -> dict[int, int]:
        """Hours with lines, of which InfluxDB has more points now, or the hour before has.

        What took long counts when it ended, too.
        """
        points: dict[int, int] = {}
        logged = set()
        for row in self._bucket.records(flux.hourly(), of):
            hour = nanoseconds(row["_time"]) // HOUR
            points[hour] = points.get(hour, 0) + int(row["_value"])
            if row.get("tailspan.source") == "log":
                logged.add(hour)
        for _, end_ns in self._long(of):
            points[end_ns // HOUR] = points.get(end_ns // HOUR, 0) + 1
        near = {hour for hour in points if hour in logged or hour + 1 in logged}
        grown = {hour for hour in near if self._counted.get(hour) != points[hour]}
        return {hour: points[hour] for hour in near if hour in grown or hour - 1 in grown or hour + 1 in grown}

    def _reconcile(self, of: Range) -> int:
        with self._time(of, *self._open_at(of.start_ns)) as cursor:
            cursor.execute(LOGGED, {"start": of.start_ns, "end": of.end_ns})
            around = {"early": of.start_ns, "late": of.end_ns}
            ledger.settle(cursor, *of, candidates(cursor.execute(ledger.FREE, around)), "request")
            self._keep_settled(cursor)
            found, sent = cursor.execute(GONE).fetchall(), self._arriving()
            stretches = groupby(found, key=lambda row: (row[1], *_among(row[0], sent)))
            runs = [list(run) for (gone, *_), run in stretches if gone]
            for run in runs[:DELETES]:  # before another line is added, which would go with its neighbours
                self._bucket.delete('"tailspan.source"="log"', Range(run[0][0], run[-1][0] + 1))
        return sum(map(len, runs[:DELETES]))

    def _arriving(self) -> list[int]:
        """Where InfluxDB may get lines meanwhile."""
        while self._sent and self._sent[0][0] < time.monotonic() - ARRIVING_S:
            self._sent.popleft()
        return sorted(start_ns for _, start_ns in self._sent)


def _among(start_ns: int, sent: Sequence[int]) -> tuple[int, int]:
    """The same for neighbours between which none of these arrives: the collector spreads each over SPREAD_NS."""
    before = bisect_right(sent, start_ns)
    is_near = before > 0 and start_ns <= sent[before - 1] + SPREAD_NS
    return before, start_ns if is_near else 0


def _stretches(hours: Iterable[int]) -> Iterator[tuple[int, int]]:
    """As few ranges of nanoseconds as it takes."""
    for _, run in groupby(enumerate(sorted(hours)), key=lambda one: one[1] - one[0]):
        stretch = [hour for _, hour in run]
        yield stretch[0] * HOUR, (stretch[-1] + 1) * HOUR
