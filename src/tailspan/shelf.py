"""Which pieces are kept, noted on disk beside them: a server that starts anew need not fetch again what is over.

All of it is made anew where it was made for another bucket, by another version, or cannot be read.
"""

import json
import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from tailspan import flux, points
from tailspan.flux import Part, Stream
from tailspan.query import Range
from tailspan.zone import DAY_NS

Counts = Counter[tuple[str, str | None]]  # how many points and how long, by source
FILE: Final = "pieces.duckdb"
MOST_DAYS: Final = 400  # what is over for longer is nobody's question any more
# what the rows of `kept` and `about` are made by
MADE_BY: Final = (duckdb.__version__, points.SCHEMA, points.STATED, points.OF_POINT, points.OF_SUM, flux.TAGS)
TABLES: Final = f"""
    {points.SCHEMA};
    CREATE TABLE piece (
        number INTEGER NOT NULL, part VARCHAR NOT NULL, start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL,
        rows BIGINT NOT NULL, run VARCHAR NOT NULL);
    CREATE TABLE made (for_it VARCHAR NOT NULL)"""
# what was not noted to its end, and what is too old
LOOSE: Final = (
    "DELETE FROM piece WHERE end_ns < ?",
    "DELETE FROM kept WHERE number_kept NOT IN (SELECT number FROM piece)",
    "DELETE FROM about WHERE number NOT IN (SELECT number FROM kept)",
)


@dataclass(frozen=True, eq=False)
class Run:
    """Time that was fetched at once, and how it was counted just before."""

    of: Range
    counted: Counts


class Kept(NamedTuple):
    """Rows of one part and piece, in the table `kept`."""

    number: int
    rows: int
    until: float  # time.monotonic(), where there is no run: that is kept for a second or so, and not noted
    run: Run | None


def opened(
    folder: Path, bucket: tuple[str, ...], options: dict[str, str | bool | int | float | list[str]]
) -> duckdb.DuckDBPyConnection:
    """The database in that folder, as it was left or new. Raises duckdb.Error, OSError."""
    made_for = blake2b(repr((bucket, MADE_BY)).encode(), digest_size=16).hexdigest()
    if (folder / FILE).exists():
        with suppress(duckdb.Error):
            connection = duckdb.connect(str(folder / FILE), config=options)
            with suppress(duckdb.Error):
                if connection.execute("FROM made").fetchall() == [(made_for,)]:
                    _tidy(connection, folder)
                    return connection
            connection.close()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    connection = duckdb.connect(str(folder / FILE), config=options)
    connection.execute(TABLES)
    connection.execute("INSERT INTO made VALUES (?)", [made_for])
    return connection


def _tidy(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for left in folder.iterdir():  # by a server that was killed while it fetched
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    first, *others = LOOSE
    connection.execute(first, [time.time_ns() - MOST_DAYS * DAY_NS])
    for other in others:
        connection.execute(other)


def note(cursor: duckdb.DuckDBPyConnection, part: Part, piece: Range, kept: Kept) -> None:
    """Nothing of what is kept for a moment."""
    if kept.run:
        counted = [[*name, count] for name, count in kept.run.counted.items()]
        row = [kept.number, json.dumps(part), *piece, kept.rows, json.dumps([kept.run.of, counted])]
        cursor.execute("INSERT INTO piece VALUES (?, ?, ?, ?, ?, ?)", row)


def strike(cursor: duckdb.DuckDBPyConnection, number: int) -> None:
    """The rows too. Whoever asks these at this moment has them still: by a transaction."""
    cursor.execute("DELETE FROM piece WHERE number = ?", [number])
    cursor.execute("DELETE FROM kept WHERE number_kept = ?", [number])


def noted(connection: duckdb.DuckDBPyConnection) -> dict[Part, dict[Range, Kept]]:
    """As they were when the server ended."""
    found: dict[Part, dict[Range, Kept]] = {}
    runs: dict[str, Run] = {}
    for number, part, start_ns, end_ns, rows, run in connection.execute("FROM piece").fetchall():
        runs[run] = runs.get(run) or _run(run)
        found.setdefault(_part(part), {})[Range(start_ns, end_ns)] = Kept(number, rows, 0.0, runs[run])
    return found


def _run(text: str) -> Run:
    of, counted = json.loads(text)
    return Run(Range(*of), Counter({(column, source): count for column, source, count in counted}))


def _part(text: str) -> Part:
    streams, daily = json.loads(text)
    return Part(
        tuple(Stream(column, flux, tuple(map(tuple, values)), windowed) for column, flux, values, windowed in streams),
        daily,
    )
