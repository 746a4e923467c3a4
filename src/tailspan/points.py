"""Points of InfluxDB as rows of `about` and `request`: what Flux answered, in the tables that sql.py asks.

A series is a row of `about`, and its number a hash of all that the row says: of 64 bits, so that two of a million rows
agree by chance once in 40 million times.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Final, NamedTuple

import duckdb

from tailspan.errors import StoreError
from tailspan.flux import POINTS, TAGS, Part, Stream
from tailspan.span import ABOUT

SCHEMA: Final = """
    CREATE TABLE about (
        number UBIGINT NOT NULL, service VARCHAR, environment VARCHAR, method VARCHAR, route VARCHAR, status SMALLINT,
        login VARCHAR, full_name VARCHAR, node VARCHAR, node_id VARCHAR, tags VARCHAR, address VARCHAR, guess VARCHAR,
        source VARCHAR, identity_source VARCHAR, proven BOOLEAN, caller VARCHAR, traffic VARCHAR, page VARCHAR,
        client_address VARCHAR, user_agent VARCHAR, schema SMALLINT, kind VARCHAR, card VARCHAR, variant VARCHAR,
        claim VARCHAR, polled BOOLEAN, by_proxy BOOLEAN);
    CREATE TABLE kept (
        number_kept INTEGER NOT NULL, number UBIGINT NOT NULL, start_ns BIGINT NOT NULL, duration_ns BIGINT,
        path VARCHAR, visible_ms BIGINT, open_ns BIGINT, trace_id BLOB, span_id BLOB, parent_id BLOB,
        n BIGINT, timed_n BIGINT, total_ns HUGEINT, longest_ns BIGINT, last_ns BIGINT);
    CREATE TABLE device (
        address VARCHAR NOT NULL, node_id VARCHAR NOT NULL, node VARCHAR NOT NULL, login VARCHAR, full_name VARCHAR,
        tags VARCHAR, kind VARCHAR NOT NULL, source VARCHAR NOT NULL, from_ns BIGINT NOT NULL, to_ns BIGINT)"""
KEPT: Final = (
    *("number", "start_ns", "duration_ns", "path", "visible_ms", "open_ns", "trace_id", "span_id", "parent_id"),
    *("n", "timed_n", "total_ns", "longest_ns", "last_ns"),
)


def _json(name: str) -> str:
    return f"""attributes->>'$."{name}"'"""


# what points say of a request beside the tags, in the names of `about`
TOLD: Final = {
    "full_name": _json("user.full_name"),
    "tags": _json("tailscale.tags"),
    "guess": _json("tailspan.device.guess"),
    "claim": _json("tailspan.identity.claim"),
    "polled": f"coalesce({_json('tailspan.poll')} = 'true', false)",
    "by_proxy": f"coalesce({_json('tailspan.by_proxy')} = 'true', false)",
    "proven": f"coalesce({_json('tailspan.identity.proven')}, 'true') <> 'false'",
    "client_address": _json("client.address"),
    "user_agent": _json("user_agent.original"),
    "schema": f"coalesce(try_cast({_json('tailspan.schema')} AS SMALLINT), 0)",
}
STATED: Final = {
    **{name: name for name in ABOUT if name not in TOLD},
    **TOLD,
    "status": "try_cast(status AS SMALLINT)",
    "service": "coalesce(service, 'unknown_service')",
    "method": "coalesce(method, '_OTHER')",
    "source": "coalesce(source, 'live')",
    "identity_source": "coalesce(identity_source, 'none')",
    "caller": "coalesce(caller, 'unknown')",
    "traffic": "coalesce(traffic, 'api')",
}
OF_POINT: Final = {
    "start_ns": "at_ns",
    "duration_ns": "CASE WHEN timed IS DISTINCT FROM 'false' THEN duration_nano::BIGINT END",
    "path": _json("url.path"),
    "visible_ms": f"try_cast({_json('tailspan.visible_ms')} AS BIGINT)",
    "open_ns": "CASE WHEN timed = 'false' THEN nullif(duration_nano::BIGINT, 0) END",
    "trace_id": "unhex(split_part(trace_state, '-', 1))",
    "span_id": "unhex(split_part(trace_state, '-', 2))",
    "parent_id": "unhex(parent_span_id)",
    "n": "1",
    "timed_n": "(duration_ns IS NOT NULL)::INTEGER",
    "total_ns": "duration_ns",
    "longest_ns": "duration_ns",
    "last_ns": "at_ns",
}
OF_SUM: Final = {
    "start_ns": "at_ns",
    "duration_ns": "NULL::BIGINT",
    "path": "NULL::VARCHAR",
    "visible_ms": "NULL::BIGINT",
    "open_ns": "NULL::BIGINT",
    "trace_id": "NULL::BLOB",
    "span_id": "NULL::BLOB",
    "parent_id": "NULL::BLOB",
    "n": "count::BIGINT",
    "timed_n": "CASE WHEN timed IS DISTINCT FROM 'false' THEN n ELSE 0 END",
    "total_ns": "CASE WHEN timed IS DISTINCT FROM 'false' THEN sum::BIGINT END",
    "longest_ns": "CASE WHEN timed IS DISTINCT FROM 'false' THEN max::BIGINT END",
    "last_ns": "last",
}
# of `arrived`: how many devices an address was seen as, and whether its tags may have changed
HOLDERS: Final = """
    SELECT address, count(DISTINCT (node_id, node, login)), bool_or(caller = 'tagged') FROM arrived GROUP BY address"""
# the streams of heartbeats, in the columns of Heartbeat
BEATS: Final = f"""
    SELECT unhex(split_part(trace_state, '-', 1)) AS trace_id, unhex(split_part(trace_state, '-', 2)) AS span_id,
           at_ns AS start_ns, end_time_unix_nano::BIGINT AS end_ns,
           coalesce(service, 'unknown_service') AS service, environment,
           coalesce({_json("tailspan.stopped")} = 'true', false) AS stopped,
           {
    ", ".join(
        f"coalesce(try_cast({_json(f'tailspan.{name}')} AS BIGINT), 0) AS {name}"
        for name in ("forged", "unproven", "dropped", "open_requests")
    )
}, {_json("tailspan.forged.kinds")} AS forged_kinds
    FROM stream_attributes
    JOIN (SELECT series, at_ns, trace_state FROM stream_trace_state) USING (series, at_ns)
    JOIN (SELECT series, at_ns, end_time_unix_nano FROM stream_end_time_unix_nano) USING (series, at_ns)
    ORDER BY start_ns, trace_id, span_id"""
FIELDS: Final = (*POINTS, "count", "sum", "max", "last")


class Table(NamedTuple):
    """CSV of one header."""

    columns: tuple[str, ...]
    file: Path


def saved(lines: Iterable[bytes], folder: Path) -> list[Table]:
    """What Flux answered, as files. Raises StoreError where it broke off with an error.

    Tables with different columns are parted by an empty line. No value has a line's end: the collector sees to that.
    """
    found: dict[bytes, tuple[Path, IO[bytes]]] = {}
    with ExitStack() as opened:
        header = b""
        for line in lines:
            if line == b"\r\n":
                header = b""
            elif header:
                found[header][1].write(line)
            elif line.startswith(b",error,"):
                raise StoreError(f"InfluxDB broke off: {b''.join(lines).decode(errors='replace').strip()}")
            else:
                header = line
                if header not in found:
                    path = folder / f"{len(found)}.csv"
                    found[header] = path, opened.enter_context(path.open("wb"))
    return [Table(tuple(header.decode().strip().split(",")), path) for header, (path, _) in found.items()]


def records(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """What Flux answered in few rows, by column; what a row has not is not there. Raises StoreError likewise."""
    header: list[str] = []
    for row in csv.reader(line.decode() for line in lines):
        if not row:
            header = []
        elif not header and "error" in row:
            raise StoreError(f"InfluxDB broke off: {next(iter(lines), b'').decode(errors='replace').strip()}")
        elif not header:
            header = row
        else:
            yield {name: value for name, value in zip(header, row, strict=True) if value}


def nanoseconds(time: str) -> int:
    """Of InfluxDB's RFC 3339, which is in UTC."""
    second, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{second}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def arrive(cursor: duckdb.DuckDBPyConnection, part: Part, answers: Sequence[Sequence[Table]]) -> None:
    """Makes the temporary table `arrived` of a part's streams."""
    first, *others = part.streams
    for stream, tables in zip(part.streams, answers, strict=True):
        cursor.execute(f"CREATE OR REPLACE TEMP TABLE stream_{stream.column} AS {_read(stream, tables)}")
    known = {stream.column for stream in part.streams}
    source = f"stream_{first.column}"
    for stream in others:  # a point whose other fields are not there yet is not there yet; only a parent may be missing
        join = "LEFT JOIN" if stream.column == "parent_span_id" else "JOIN"
        source += f" {join} (SELECT series, at_ns, {stream.column} FROM stream_{stream.column}) USING (series, at_ns)"
    missing = "".join(f", NULL::VARCHAR AS {name}" for name in FIELDS if name not in known)
    stated = ", ".join(f"{form} AS {name}" for name, form in STATED.items())
    kept = ", ".join(f"{form} AS {name}" for name, form in (OF_SUM if part.summed else OF_POINT).items())
    cursor.execute(
        f"CREATE OR REPLACE TEMP TABLE arrived AS SELECT hash({', '.join(STATED)}) AS number, * "
        f"FROM (SELECT {stated}, {kept} FROM (SELECT *{missing} FROM {source}))"
    )


def learn(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Adds to `about` what arrived and is new; whether there was any."""
    (added,) = cursor.execute(
        f"INSERT INTO about BY NAME SELECT DISTINCT number, {', '.join(ABOUT)} FROM arrived "
        "ANTI JOIN about USING (number)"
    ).fetchall()[0]
    return bool(added)


def _read(stream: Stream, tables: Sequence[Table]) -> str:
    """The rows of all tables: their series, time and value, and the tags."""
    selects = [_select(stream, table) for table in tables]
    if not selects:
        nothing = ", ".join(f"NULL::VARCHAR AS {name}" for name in (*TAGS, stream.column))
        selects = [f"SELECT {nothing}, NULL::BIGINT AS at_ns, NULL::UBIGINT AS series WHERE false"]
    return " UNION ALL BY NAME ".join(selects)


def _select(stream: Stream, table: Table) -> str:
    """Columns are named by their place: no name of the answer gets into the SQL."""
    place = {name: f"c{number}" for number, name in enumerate(table.columns)}
    types = ", ".join(f"'{column}': 'VARCHAR'" for column in place.values())
    tags = {column: place.get(tag, "NULL::VARCHAR") for column, tag in TAGS.items()}
    value = stream.column
    at = _nanoseconds(place["_time"] if value in POINTS or stream.windowed else place["_start"])
    chosen = ", ".join(f"{form} AS {column}" for column, form in tags.items())
    given = _nanoseconds(place["_time"]) if value == "last" else place["_value"]
    return (
        f"SELECT {chosen}, {at} AS at_ns, {given} AS {value}, hash({', '.join(tags.values())}) AS series "
        f"FROM read_csv('{table.file}', columns = {{{types}}}, header = false, auto_detect = false, "
        "delim = ',', quote = '\"', escape = '\"', new_line = '\\r\\n', max_line_size = 4000000)"
    )


def _nanoseconds(column: str) -> str:
    return f"epoch_ns({column}::TIMESTAMP_NS)"
