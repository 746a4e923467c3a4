"""One ledger of two witnesses: a request is there once, whether its service told of it, its proxy's log, or both.

A line with a request id is the parent of its service's own span, its live twin: where that is known, the line is not
kept, and where it comes later, the line goes. Not the same trace: a page that calls itself and its proxy's second try
share that. A line without an id takes the first live span that can be its own and that no other line took.

The pairs of the latter are kept in `settled`, by ids alone, with the lines of whatever was deleted on purpose: so a
line that is read again is never somebody else's twin, and nobody comes back who was forgotten.
"""

import tempfile
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import duckdb

from tailspan.errors import BusyError
from tailspan.ingest.lines import Lines
from tailspan.span import Span

SECOND: Final = 10**9
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
# of a line's second and the end of what it tells of, for clocks and a client's slowness; the nearest first, so that
# each finds its own, in whatever order services tell of theirs
APART_NS: Final = (0, SECOND // 10, SECOND, 2 * SECOND)
ZONES_NS: Final = 26 * HOUR  # no two zones are farther apart
SPREAD_NS: Final = 2**20  # the collector spreads the points of a millisecond over it
EARLIER_NS: Final = HOUR  # before what nginx wrote at its end: what took longer is looked for by how long it took,
LONGEST_NS: Final = 48 * HOUR  # and this is the longest
ROW: Final = {
    "about": "INTEGER",
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "start_ns": "BIGINT",
    "duration_ns": "BIGINT",
    "open_ns": "BIGINT",
    "path": "VARCHAR",
}

TABLES: Final = """
    CREATE TABLE settled (
        trace_id BLOB NOT NULL, span_id BLOB NOT NULL,
        live_trace_id BLOB, live_span_id BLOB, start_ns BIGINT NOT NULL
    );
    CREATE TABLE witness (
        service VARCHAR NOT NULL, environment VARCHAR, hour BIGINT NOT NULL
    );
    CREATE TABLE checkpoint (file VARCHAR PRIMARY KEY, read_to BIGINT NOT NULL, before VARCHAR NOT NULL);
    """

# the request of a line's own id: the first half of its trace's is its span's
IDENTIFIED: Final = "span_id = trace_id[1:8]"
ARRIVED: Final = """
    CREATE OR REPLACE TEMP TABLE line AS
    SELECT unhex(trace_id) AS trace_id, unhex(span_id) AS span_id, start_ns, duration_ns, open_ns, path, number
    FROM read_csv('{file}', header = false, auto_detect = false, delim = '\t', quote = '', escape = '', nullstr = '',
                  columns = {columns})
    JOIN (SELECT unnest($given) AS about, unnest($numbers) AS number) USING (about)
    QUALIFY row_number() OVER (PARTITION BY trace_id, span_id ORDER BY start_ns) = 1"""
# the hours of a service that a log was read of
SEEN: Final = f"""
    SELECT DISTINCT service, environment, start_ns // {HOUR} AS hour FROM line JOIN about USING (number)"""
WITNESSED: Final = """
    INSERT INTO witness SELECT DISTINCT unnest($services), unnest($environments), unnest($hours)
    EXCEPT SELECT * FROM witness"""
TOO_OLD: Final = "DELETE FROM line WHERE start_ns < $oldest"
# a line whose time tells no offset may have been read in another zone before (ingest/texts.py)
FLOATING: Final = "span_id[5:8] = unhex('00000000')"
BOUNDS: Final = f"""
    SELECT coalesce(min(start_ns), 0), coalesce(max(start_ns), 0), coalesce(bool_or({FLOATING}), false) FROM line"""
# what a live request may be: begun in that time, or earlier and not over by then
AROUND: Final = f"""(
    FROM request WHERE start_ns BETWEEN $early AND $late
    UNION ALL FROM request WHERE start_ns >= $early - {LONGEST_NS} AND start_ns < $early
                             AND start_ns + coalesce(duration_ns, open_ns) >= $early)"""
KNOWN: Final = """
    DELETE FROM line USING (SELECT trace_id, span_id FROM request WHERE start_ns BETWEEN $first AND $last) AS known
    WHERE line.trace_id = known.trace_id AND line.span_id = known.span_id"""
SETTLED: Final = """
    DELETE FROM line USING settled WHERE line.trace_id = settled.trace_id AND line.span_id = settled.span_id"""
FORGOTTEN: Final = f"{SETTLED} AND live_trace_id IS NULL"
TWINS: Final = f"""
    DELETE FROM line USING (SELECT trace_id, parent_id FROM {AROUND} WHERE parent_id IS NOT NULL) AS live
    WHERE line.trace_id = live.trace_id AND line.span_id = live.parent_id"""
KEEP: Final = """
    INSERT INTO request (trace_id, span_id, parent_id, start_ns, duration_ns, open_ns, path, number)
    SELECT trace_id, span_id, NULL, start_ns, duration_ns, open_ns, path, number FROM line"""
# what a line and its live span have in common where no id tells; from the own machine a service may see no address
ALIKE: Final = """(service, method, status, path, CASE WHEN coalesce(address, client_address) NOT LIKE '127.%'
        AND coalesce(address, client_address) <> '::1' THEN coalesce(address, client_address) END)"""
PATH: Final = 3  # of ALIKE
LONELY: Final = f"""
    SELECT trace_id, span_id, start_ns + coalesce(duration_ns, open_ns, 0), {ALIKE} AS alike
    FROM {{}} JOIN about USING (number) WHERE source = 'log' AND NOT {IDENTIFIED} AND start_ns BETWEEN $first AND $last
      AND path IN (SELECT unnest($paths)) ORDER BY 3, 1, 2"""
FREE: Final = f"""
    SELECT trace_id, span_id, start_ns + coalesce(duration_ns, open_ns, 0), {ALIKE} AS alike
    FROM {AROUND} JOIN about USING (number)
    ANTI JOIN (SELECT live_trace_id AS trace_id, live_span_id AS span_id FROM settled) USING (trace_id, span_id)
    WHERE source = 'live' AND kind = 'request' ORDER BY 3, 1, 2"""
GO: Final = """
    DELETE FROM {table} USING ({gone}) AS gone
    WHERE {table}.trace_id = gone.trace_id AND {table}.span_id = gone.span_id"""
# a service called by another has that one's span as its parent: only a line's own goes
RECONCILED: Final = f"""
    DELETE FROM request USING (SELECT unnest($traces) AS trace_id, unnest($parents) AS parent_id) AS live
    WHERE request.trace_id = live.trace_id AND request.span_id = live.parent_id
      AND request.{IDENTIFIED.replace("trace_id", "request.trace_id")} AND start_ns BETWEEN $early AND $late
      AND number IN (SELECT number FROM about WHERE source = 'log')"""
TAKEN: Final = """
    SELECT live_trace_id, live_span_id FROM settled
    WHERE (live_trace_id, live_span_id) IN (SELECT unnest($traces), unnest($spans))"""
SETTLE: Final = """
    INSERT INTO settled SELECT unnest($traces), unnest($spans), unnest($live_traces), unnest($live_spans),
                               unnest($starts)"""


class Fates(NamedTuple):
    """What became of lines that arrived."""

    lines: int = 0
    added: int = 0
    known: int = 0  # were in the ledger before
    twins: int = 0  # their services told of them
    too_old: int = 0  # older than what is kept


class Candidate(NamedTuple):
    """A line, or a live span, that may be half of a pair."""

    trace_id: bytes
    span_id: bytes
    end_ns: int
    alike: Any


Pairs = list[tuple[Candidate, Candidate]]


def pairs(lines: Iterable[Candidate], lives: Sequence[Candidate]) -> Pairs:
    """Both in order of their ends: each line with the first live span like it that no other line has.

    Those of its second come first, then those farther and farther apart. A time that is no whole second is exact.
    """
    known = {live.alike for live in lives}
    lines = [line for line in lines if line.alike in known]
    found: Pairs = []
    for apart_ns in APART_NS:
        found += (near := _pairs(lines, lives, apart_ns))
        paired = {one[:2] for pair in near for one in pair}
        lines = [line for line in lines if line[:2] not in paired]
        lives = [live for live in lives if live[:2] not in paired]
    return found


def _pairs(lines: Iterable[Candidate], lives: Iterable[Candidate], apart_ns: int) -> Pairs:
    waiting: defaultdict[Any, deque[Candidate]] = defaultdict(deque)
    for live in lives:
        waiting[live.alike].append(live)
    found = []
    for line in lines:
        queue = waiting.get(line.alike)
        while queue and queue[0].end_ns < line.end_ns - apart_ns:
            queue.popleft()
        resolution_ns = 0 if line.end_ns % SECOND else SECOND
        if queue and queue[0].end_ns <= line.end_ns + resolution_ns + apart_ns:
            found.append((line, queue.popleft()))
    return found


@contextmanager
def as_file(lines: Lines) -> Iterator[Path]:
    """Their rows, where DuckDB's own reader finds them. Raises BusyError."""
    with ExitStack() as stack:
        try:
            file = Path(stack.enter_context(TemporaryDirectory())) / "lines.tsv"
            file.write_bytes(lines.rows)
        except OSError as problem:
            folder = tempfile.tempdir or "/tmp"
            told = f"Log lines cannot be put into a temporary file in {folder}: {problem.strerror}."
            fix = f"Make room, or name another folder by TMPDIR: df -h {quote(folder)}"
            raise BusyError(told, fix=fix) from problem
        yield file


class Arrival(NamedTuple):
    """Lines as they came: the file of their rows, and the number of each of their `about` here."""

    file: Path
    total: int
    numbers: Mapping[int, int]


def enter(cursor: duckdb.DuckDBPyConnection, arrival: Arrival, oldest_ns: int) -> Fates:
    """Leaves the lines that are new in the table `line`; the others are counted. Raises duckdb.Error."""
    given = {"given": list(arrival.numbers), "numbers": list(arrival.numbers.values())}
    cursor.execute(ARRIVED.format(file=str(arrival.file).replace("'", "''"), columns=ROW), given)
    too_old = _count(cursor.execute(TOO_OLD, {"oldest": oldest_ns}))
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE seen AS {SEEN}")
    first, last, floats = cursor.execute(BOUNDS).fetchall()[0]
    apart_ns = ZONES_NS if floats else 0
    cursor.execute(KNOWN, {"first": first - apart_ns, "last": last + apart_ns + SPREAD_NS})
    cursor.execute(FORGOTTEN)
    around = {"early": first - EARLIER_NS, "late": last + EARLIER_NS}
    twins = _count(cursor.execute(SETTLED)) + _count(cursor.execute(TWINS, around))
    twins += settle(cursor, first, last, candidates(cursor.execute(FREE, around)), "line")
    added = _count(cursor.execute("SELECT count(*) FROM line"))
    return Fates(arrival.total, added, arrival.total - added - twins - too_old, twins, too_old)


def witnessed(rows: Iterable[tuple[object, ...]]) -> dict[str, list[Any]]:
    """The values of WITNESSED for what the table `seen` has."""
    return dict(zip(("services", "environments", "hours"), map(list, zip(*rows, strict=True)), strict=True))


def settle(
    cursor: duckdb.DuckDBPyConnection, first_ns: int, last_ns: int, lives: Iterable[Candidate], table: str
) -> int:
    """Pairs lines without an id, of `line` or of `request`, with these live spans; those lines go. Their number."""
    lives = list(lives)
    if not lives:
        return 0
    paths = list({live.alike[PATH] for live in lives})
    lonely = cursor.execute(LONELY.format(table), {"first": first_ns, "last": last_ns, "paths": paths})
    found = pairs(candidates(lonely), lives)
    if found:
        columns = {
            "traces": [line.trace_id for line, _ in found],
            "spans": [line.span_id for line, _ in found],
            "live_traces": [live.trace_id for _, live in found],
            "live_spans": [live.span_id for _, live in found],
            "starts": [line.end_ns for line, _ in found],
        }
        cursor.execute(SETTLE, columns)
        gone = "SELECT unnest($traces) AS trace_id, unnest($spans) AS span_id"
        cursor.execute(GO.format(table=table, gone=gone), {name: columns[name] for name in ("traces", "spans")})
    return len(found)


def reconcile(cursor: duckdb.DuckDBPyConnection, spans: Iterable[Span]) -> int:
    """Live spans came: the lines that they are the twins of go, and are counted."""
    lives = [span for span in spans if span.source == "live" and span.kind == "request"]
    told = [span for span in lives if span.parent_id]
    if not lives:
        return 0
    early, late = min(span.start_ns for span in lives) - EARLIER_NS, max(span.end_ns for span in lives) + EARLIER_NS
    pairs_of = {"traces": [span.trace_id for span in told], "parents": [span.parent_id for span in told]}
    gone = _count(cursor.execute(RECONCILED, {**pairs_of, "early": early, "late": late})) if told else 0
    taken = {"traces": [span.trace_id for span in lives], "spans": [span.span_id for span in lives]}
    known = set(cursor.execute(TAKEN, taken).fetchall())
    free = [
        Candidate(span.trace_id, span.span_id, span.end_ns, _alike(span))
        for span in lives
        if (span.trace_id, span.span_id) not in known
    ]
    free.sort(key=lambda one: (one.end_ns, one.trace_id, one.span_id))
    return gone + settle(cursor, early, late, free, "request")


def _alike(span: Span) -> tuple[object, ...]:
    address = span.address or span.client_address or "::1"
    own = address == "::1" or address.startswith("127.")
    return span.service, span.method, span.status, span.path, None if own else address


def candidates(found: duckdb.DuckDBPyConnection) -> Iterator[Candidate]:
    """Of what LONELY or FREE found."""
    while rows := found.fetchmany(10_000):
        yield from map(Candidate._make, rows)


def _count(found: duckdb.DuckDBPyConnection) -> int:
    return int(found.fetchall()[0][0])
