"""What was fetched from InfluxDB, by part of a question and piece of time, and kept while it is right.

Days that are over stay, on disk, for as long as the process runs: until the number of their points or the sum of their
durations changes. What is not over is kept for a second, so that the questions of one answer share it.
"""

import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from tailspan import flux, points
from tailspan.bucket import Bucket
from tailspan.flux import Part, Stream
from tailspan.points import Table
from tailspan.query import Range
from tailspan.zone import DAY_NS, day_range, days_of

AT_ONCE: Final = 4  # questions to InfluxDB
FRESH_S = 60.0  # how old the counts of days that are over may be
OPEN_S: Final = 1.0  # likewise what is not over
MOST_DAYS: Final = 400  # more are one piece
MOST_COUNTS: Final = 3  # stretches of days that are counted to check one part
MOST_ROWS: Final = 20_000_000
MOST_KEPT: Final = 2_000


class Kept(NamedTuple):
    """Rows of one part and piece, in the table `kept`."""

    number: int
    rows: int
    fetched: float
    among: Range | None  # the days that are over, among which it was fetched; None where it is not over
    counted: object  # how those were counted just before


class Pieces:
    """Not for several threads at once. Raises what Bucket raises."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, bucket: Bucket, folder: Path) -> None:
        connection.execute(points.SCHEMA)
        self.folder = folder
        self.learned = 0  # how often something new came into `about`
        self._bucket = bucket
        self._asking = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tailspan-influxdb")
        self._last = 0
        self._kept: dict[tuple[Part, Range], Kept] = {}
        self._counted: dict[Range, tuple[float, object]] = {}

    def close(self) -> None:
        self._asking.shutdown()

    def load(
        self, cursor: duckdb.DuckDBPyConnection, of: Range, parts: Sequence[Part], zone: str, *, exact: bool = False
    ) -> list[int]:
        """The numbers in `kept` of these parts of that time; `exact`: without the rest of the day that it begins in."""
        days = [] if exact else _days(of, zone)
        over = Range(days[0].start_ns, days[-2].end_ns) if len(days) > 1 else None  # as far as any piece of it is
        plans = [(part, pieces, self._wanted(part, pieces)) for part in parts for pieces in [_pieces(part, of, days)]]
        ended = {piece for _, _, wanted in plans for piece in wanted if over and _is_over(piece, of, days)}
        counted = self._count(over) if over and ended else None  # before what is counted is fetched
        found = []
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            asked = [self._ask(part, wanted, Path(folder)) for part, _, wanted in plans]
            try:
                for (part, pieces, wanted), answers in zip(plans, asked, strict=True):
                    if wanted:
                        points.arrive(cursor, part, [answer.result() for answer in answers])
                        self.learned += points.learn(cursor)
                    for piece in wanted:
                        self._keep(cursor, (part, piece), over if piece in ended else None, counted)
                    found += [self._kept[part, piece].number for piece in pieces]
            finally:
                wait([answer for answers in asked for answer in answers])
        return found

    def arrive(self, cursor: duckdb.DuckDBPyConnection, part: Part, of: Range) -> None:
        """Makes the cursor's table `arrived`, and keeps nothing."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            answers = self._ask(part, [of], Path(folder))
            wait(answers)
            points.arrive(cursor, part, [answer.result() for answer in answers])

    def _ask(self, part: Part, wanted: list[Range], folder: Path) -> "list[Future[list[Table]]]":
        ranges = wanted if part.summed else _runs(wanted)
        return [self._asking.submit(self._saved, stream, ranges, folder) for stream in part.streams if wanted]

    def _saved(self, stream: Stream, ranges: Sequence[Range], folder: Path) -> list[Table]:
        with self._bucket.ask(stream, ranges) as lines:
            return points.saved(lines, Path(tempfile.mkdtemp(dir=folder)))

    def _wanted(self, part: Part, pieces: list[Range]) -> list[Range]:
        """The pieces that are not kept, or no longer right; all where they were fetched at too many times to check."""
        kept = [self._kept.get((part, piece)) for piece in pieces]
        if len({one.among for one in kept if one and one.among}) > MOST_COUNTS:
            return pieces
        return [piece for piece, one in zip(pieces, kept, strict=True) if one is None or not self._holds(one)]

    def _holds(self, kept: Kept) -> bool:
        if kept.among is None:
            return kept.fetched > time.monotonic() - OPEN_S
        return kept.counted == self._count(kept.among)

    def _keep(
        self, cursor: duckdb.DuckDBPyConnection, key: tuple[Part, Range], among: Range | None, counted: object
    ) -> None:
        """What arrived, as far as it is of the piece."""
        self._let_go(cursor, key)
        self._last += 1
        columns = ", ".join(points.KEPT)
        (rows,) = cursor.execute(
            f"INSERT INTO kept SELECT {self._last}, {columns} FROM arrived WHERE start_ns >= ? AND start_ns < ?",
            [*key[1]],
        ).fetchall()[0]
        self._kept[key] = Kept(self._last, rows, time.monotonic(), among, counted)

    def _let_go(self, cursor: duckdb.DuckDBPyConnection, key: tuple[Part, Range]) -> None:
        """Whoever asks these rows at this moment has them still: by a transaction."""
        if before := self._kept.pop(key, None):
            cursor.execute("DELETE FROM kept WHERE number_kept = ?", [before.number])

    def _count(self, of: Range) -> object:
        """The points of days that are over, by source, and their durations."""
        if of not in self._counted or self._counted[of][0] < time.monotonic() - FRESH_S:
            now = time.monotonic()
            streams = flux.counted().streams
            answers = [self._asking.submit(self._bucket.records, stream, of) for stream in streams]
            counts = {
                (stream.column, row.get("tailspan.source")): row["_value"]
                for stream, answer in zip(streams, answers, strict=True)
                for row in answer.result()
            }
            self._counted[of] = now, counts
        return self._counted[of][1]

    def forget(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Everything is fetched anew."""
        for key in list(self._kept):
            self._let_go(cursor, key)
        self._counted.clear()
        cursor.execute("DELETE FROM about")  # nothing refers to it any more, and it names people
        self.learned += 1

    def tidy(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Lets go of what is no longer right to keep, and of too much what was fetched first."""
        for key in [key for key, kept in self._kept.items() if kept.among is None and not self._holds(kept)]:
            self._let_go(cursor, key)
        while len(self._kept) > MOST_KEPT or sum(kept.rows for kept in self._kept.values()) > MOST_ROWS:
            self._let_go(cursor, next(iter(self._kept)))
        if len(self._counted) > MOST_COUNTS:
            self._counted = {
                kept.among: self._counted[kept.among] for kept in self._kept.values() if kept.among in self._counted
            }


def _days(of: Range, zone: str) -> list[Range]:
    """The whole local days that the range touches; none of a range that is longer than any question's."""
    if of.end_ns - of.start_ns > MOST_DAYS * DAY_NS:
        return []
    return [Range(*day_range(zone, day)) for day in days_of(zone, *of)]


def _pieces(part: Part, of: Range, days: list[Range]) -> list[Range]:
    """Whole days, and the last one up to the range's end. Sums begin where the range does."""
    if not days:
        return [of]
    last = Range(max(days[-1].start_ns, of.start_ns) if part.summed else days[-1].start_ns, of.end_ns)
    if not part.summed:
        return [*days[:-1], last]
    first = [Range(of.start_ns, days[0].end_ns)] if len(days) > 1 else []
    between = days[1:-1] if part.daily else _runs(days[1:-1])
    return [*first, *between, last]


def _is_over(piece: Range, of: Range, days: list[Range]) -> bool:
    """Whether it is of whole days before the last one, none of which is still to end."""
    return (
        piece.end_ns <= time.time_ns()
        and piece.end_ns <= days[-1].start_ns
        and (piece.start_ns != of.start_ns or piece == days[0])
    )


def _runs(pieces: Iterable[Range]) -> list[Range]:
    """The same time in as few ranges as it takes."""
    found: list[Range] = []
    for piece in pieces:
        if found and found[-1].end_ns == piece.start_ns:
            found[-1] = Range(found[-1].start_ns, piece.end_ns)
        else:
            found.append(piece)
    return found
