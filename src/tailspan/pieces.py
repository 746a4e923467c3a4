"""What was fetched from InfluxDB, by part of a question and piece of time, and kept while it is right.

The newest minutes of any question are fetched as points, all of them, and kept for a second: the parts of all questions
of an answer share them. What is older stays, on disk, also from one start of the server to the next: until the number
of its points or the sum of their durations changes.
"""

import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from tailspan import flux, points, shelf
from tailspan.bucket import Bucket
from tailspan.flux import Part, Stream
from tailspan.points import Table
from tailspan.query import Range
from tailspan.shelf import MOST_DAYS, Counts, Kept, Run
from tailspan.zone import DAY_NS, day_range, days_of

AT_ONCE: Final = 4  # questions to InfluxDB
OPEN_S: Final = 1.0  # how old the newest minutes may be
LEISURE: Final = 4  # or so many times as old as it takes to fetch them: an answer's parts are to share them then too
STEP_NS: Final = 15 * 60 * 10**9  # they begin with a quarter of an hour: there are zones a quarter of an hour apart
LATE_NS: Final = 5 * 60 * 10**9  # and are at least this long: few points come later
FRESH_S = 60.0  # how old the counts of what is older may be
NEW_FRESH_S = 5.0  # likewise where it ended within these last hours, and some may still be on their way
NEW_NS: Final = 2 * 3600 * 10**9
MOST_ROWS: Final = 20_000_000
MOST_KEPT: Final = 4_000
MOST_NEW: Final = 1_000


class Plan(NamedTuple):
    """How a part is had: the pieces that are kept, and what is to be fetched.

    `ends` is where time is divided for counting; None where what is fetched is kept for a second.
    """

    part: Part
    used: list[Range]
    gaps: list[Range]
    ends: tuple[int, ...] | None


class Loaded(NamedTuple):
    """Numbers in `kept`: of what is older, of which the rows of this time count, and of the newest minutes."""

    older: list[int]
    within: Range
    newest: list[int]


class Pieces:
    """Not for several threads at once. Raises what Bucket raises. `connection`: of shelf.opened."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, bucket: Bucket, folder: Path) -> None:
        self.folder = folder
        self.learned = 0  # how often something new came into `about`
        self._tidied = 0  # how often that was, when what is no longer kept was let go of there too
        self._bucket = bucket
        self._asking = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tailspan-influxdb")
        self._kept = shelf.noted(connection)
        self._last = max((one.number for kept in self._kept.values() for one in kept.values()), default=0)
        self._counted: dict[Range, tuple[float, Counts]] = {}

    def close(self) -> None:
        self._asking.shutdown()

    def load(
        self, cursor: duckdb.DuckDBPyConnection, of: Range, parts: Sequence[Part], zone: str, *, exact: bool = False
    ) -> Loaded:
        """These parts of that time, or more; `exact`: not the rest of the day that it begins in, and not for long."""
        if not parts:
            return Loaded([], of, [])
        days = [] if exact else _days(of, zone)
        first, older, newest = _divided(of, days, any(part.summed for part in parts))
        plans = [self._plan(cursor, part, older, days) for part in parts]
        whole = [self._plan(cursor, flux.EDGE, newest, [])]
        whole += [self._plan(cursor, flux.EDGE, first, days)] if first else []
        self._fetch(cursor, [*plans, *whole])
        return Loaded(self._numbers(plans), older, self._numbers(whole))

    def _numbers(self, plans: Iterable[Plan]) -> list[int]:
        return [self._kept[plan.part][piece].number for plan in plans for piece in (*plan.used, *plan.gaps)]

    def _plan(self, cursor: duckdb.DuckDBPyConnection, part: Part, of: Range, days: list[Range]) -> Plan:
        kept = self._kept.setdefault(part, {})
        if not days:
            wanted = [of] if of.start_ns < of.end_ns else []
            return Plan(part, [one for one in wanted if one in kept], [one for one in wanted if one not in kept], None)
        ends = (days[0].end_ns, days[-1].start_ns)
        self._let_go_of_wrong(cursor, part, of, ends)
        usable = sorted(piece for piece, one in kept.items() if one.run)
        found = [_cover(cell, usable, whole=part.summed) for cell in _cells(part, of, days)]
        return Plan(part, [one for used, _ in found for one in used], [gap for _, gaps in found for gap in gaps], ends)

    def _let_go_of_wrong(self, cursor: duckdb.DuckDBPyConnection, part: Part, of: Range, ends: tuple[int, ...]) -> None:
        """What was fetched of this time, where InfluxDB counts other points now."""
        kept = self._kept[part]
        runs = {one.run.of: one.run for piece, one in kept.items() if one.run and _overlap(piece, of)}
        wrong: set[Run] = set()
        for stretch in _stretches(runs, ends):
            of_it = [runs[one] for one in stretch]
            if self._count(_whole(stretch)) != sum((run.counted for run in of_it), Counts()):
                wrong.update(run for run in of_it if self._count(run.of) != run.counted)
        for piece in [piece for piece, one in kept.items() if one.run in wrong]:
            self._let_go(cursor, part, piece)

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, plans: Sequence[Plan]) -> None:
        began = time.monotonic()
        runs = [self._counted_runs(plan) for plan in plans]  # before what is counted is fetched
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            asked = [self._ask(plan.part, plan.gaps, Path(folder)) for plan in plans]
            try:
                for plan, counted, answers in zip(plans, runs, asked, strict=True):
                    if plan.gaps:
                        points.arrive(cursor, plan.part, [answer.result() for answer in answers])
                        self.learned += points.learn(cursor)
                    now = time.monotonic()
                    until = now + max(OPEN_S, LEISURE * (now - began))
                    for gap in plan.gaps:
                        run = next((run for run in counted if _overlap(run.of, gap)), None)
                        self._keep(cursor, plan.part, gap, run, until)
            finally:
                wait([answer for answers in asked for answer in answers])

    def _counted_runs(self, plan: Plan) -> list[Run]:
        stretches = [] if plan.ends is None else _stretches(plan.gaps, plan.ends)
        return [Run(of, self._count(of)) for of in map(_whole, stretches)]

    def arrive(self, cursor: duckdb.DuckDBPyConnection, part: Part, *of: Range) -> None:
        """Makes the cursor's table `arrived` of these ranges, and keeps nothing."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            answers = self._ask(part, [*of], Path(folder))
            wait(answers)
            points.arrive(cursor, part, [answer.result() for answer in answers])

    def _ask(self, part: Part, wanted: list[Range], folder: Path) -> "list[Future[list[Table]]]":
        ranges = wanted if part.summed else [_whole(one) for one in _stretches(wanted)]
        return [self._asking.submit(self._saved, stream, ranges, folder) for stream in part.streams if wanted]

    def _saved(self, stream: Stream, ranges: Sequence[Range], folder: Path) -> list[Table]:
        with self._bucket.ask(stream, ranges) as lines:
            return points.saved(lines, Path(tempfile.mkdtemp(dir=folder)))

    def _keep(self, cursor: duckdb.DuckDBPyConnection, part: Part, piece: Range, run: Run | None, until: float) -> None:
        """What arrived, as far as it is of the piece."""
        self._last += 1
        columns = ", ".join(points.KEPT)
        (rows,) = cursor.execute(
            f"INSERT INTO kept SELECT {self._last}, {columns} FROM arrived WHERE start_ns >= ? AND start_ns < ?",
            [*piece],
        ).fetchall()[0]
        kept = self._kept[part][piece] = Kept(self._last, rows, until, run)
        shelf.note(cursor, part, piece, kept)

    def _let_go(self, cursor: duckdb.DuckDBPyConnection, part: Part, piece: Range) -> None:
        shelf.strike(cursor, self._kept[part].pop(piece).number)

    def _count(self, of: Range) -> Counts:
        now = time.monotonic()
        fresh_s = NEW_FRESH_S if of.end_ns > time.time_ns() - NEW_NS else FRESH_S
        if of not in self._counted or self._counted[of][0] < now - fresh_s:
            streams = flux.counted().streams
            answers = [self._asking.submit(self._bucket.records, stream, of) for stream in streams]
            counts = Counts(
                {
                    (stream.column, row.get("tailspan.source")): int(row["_value"])
                    for stream, answer in zip(streams, answers, strict=True)
                    for row in answer.result()
                }
            )
            self._counted[of] = now, counts
        return self._counted[of][1]

    def doubt(self) -> None:
        """Days that are over are counted anew when they are asked for."""
        self._counted.clear()

    def forget(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Everything is fetched anew."""
        for part, piece in self._pieces():
            self._let_go(cursor, part, piece)
        self._counted.clear()
        cursor.execute("DELETE FROM about")  # nothing refers to it any more, and it names people
        self.learned += 1

    def tidy(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Lets go of what is no longer right to keep, and of too much what was fetched first."""
        now = time.monotonic()
        for part, piece in self._pieces():
            kept = self._kept[part][piece]
            if kept.run is None and kept.until < now:
                self._let_go(cursor, part, piece)
        left = sorted(self._pieces(), key=lambda one: self._kept[one[0]][one[1]].number, reverse=True)
        rows = accumulate(self._kept[part][piece].rows for part, piece in left)
        for number, ((part, piece), so_far) in enumerate(zip(left, rows, strict=True)):
            if number >= MOST_KEPT or so_far > MOST_ROWS:
                self._let_go(cursor, part, piece)
        if self.learned > self._tidied + MOST_NEW:
            cursor.execute("DELETE FROM about WHERE number NOT IN (SELECT number FROM kept)")
            self._tidied = self.learned = self.learned + 1
        self._counted = {of: one for of, one in self._counted.items() if one[0] > now - FRESH_S}

    def _pieces(self) -> list[tuple[Part, Range]]:
        return [(part, piece) for part, kept in self._kept.items() for piece in kept]


def _days(of: Range, zone: str) -> list[Range]:
    """The whole local days that the range touches; none of a longer range, which is one piece."""
    if of.end_ns - of.start_ns > MOST_DAYS * DAY_NS:
        return []
    return [Range(*day_range(zone, day)) for day in days_of(zone, *of)]


def _divided(of: Range, days: list[Range], summed: bool) -> tuple[Range | None, Range, Range]:
    """What is kept, and the newest minutes. Sums are of whole quarters: before them comes the one it begins in."""
    settled_ns = _quarter(min(of.end_ns, time.time_ns()) - LATE_NS)
    newest = Range(settled_ns, of.end_ns)
    first_ns = _quarter(of.start_ns)
    if not (days and summed):
        return None, Range(days[0].start_ns if days else of.start_ns, settled_ns), newest
    if first_ns == of.start_ns or first_ns >= settled_ns:
        return None, Range(first_ns, settled_ns), newest
    return Range(first_ns, first_ns + STEP_NS), Range(first_ns + STEP_NS, settled_ns), newest


def _quarter(ns: int) -> int:
    return ns // STEP_NS * STEP_NS


def _cells(part: Part, of: Range, days: list[Range]) -> list[Range]:
    """The days of it; for sums, unless they are daily, all days but the first and the last in one."""
    cells = [Range(max(day.start_ns, of.start_ns), min(day.end_ns, of.end_ns)) for day in days]
    cells = [cell for cell in cells if cell.start_ns < cell.end_ns]
    if len(cells) > 3 and part.summed and not part.daily:
        return [cells[0], _whole(cells[1:-1]), cells[-1]]
    return cells


def _cover(cell: Range, usable: list[Range], *, whole: bool) -> tuple[list[Range], list[Range]]:
    """The usable pieces that make up the cell, and what of it is in none; `whole`: none that reaches beyond it."""
    used, gaps, at_ns = [], [], cell.start_ns
    for piece in usable:
        if not _overlap(piece, cell) or (whole and (piece.start_ns < at_ns or piece.end_ns > cell.end_ns)):
            continue
        if piece.start_ns > at_ns:
            gaps.append(Range(at_ns, piece.start_ns))
        used.append(piece)
        at_ns = piece.end_ns
    return used, [*gaps, Range(at_ns, cell.end_ns)] if at_ns < cell.end_ns else gaps


def _overlap(one: Range, other: Range) -> bool:
    return one.start_ns < other.end_ns and other.start_ns < one.end_ns


def _stretches(pieces: Iterable[Range], ends: Sequence[int] = ()) -> list[list[Range]]:
    """Those that follow each other, in order, divided where one of `ends` is between their own."""
    found: list[list[Range]] = []
    for piece in sorted(pieces):
        last = found[-1][-1] if found else None
        if last and last.end_ns == piece.start_ns and bisect_left(ends, last.end_ns) == bisect_left(ends, piece.end_ns):
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def _whole(stretch: Sequence[Range]) -> Range:
    return Range(stretch[0].start_ns, stretch[-1].end_ns)
