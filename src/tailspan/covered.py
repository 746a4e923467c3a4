"""What proxies saw, and what of that their services told of themselves: in SQL, of the ledger's tables.

A request that a service told of has no line any more (ledger.py), so in whose log it was is worked out: of its own
service and environment; where one of the two says no environment, of its service; else of the only log of that hour
whose service tells of nothing itself, as one that is called after the proxy. What the server tells of itself is nobody
else's: it may be behind any proxy.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

import duckdb

from tailspan.ledger import HOUR, IDENTIFIED, SECOND
from tailspan.span import OWN_SERVICE

MISSES: Final = 10  # in a row are a gap, unless they are of one moment: in whole seconds nobody knows their order
MOMENT_NS: Final = 2 * SECOND
LONG_NS: Final = 60 * SECOND  # misses in a row over more than this are one, however few

BY_ID: Final = "(parent_id IS NOT DISTINCT FROM trace_id[1:8])"  # a span whose proxy gave it the id of a line
ENDED: Final = "start_ns + coalesce(duration_ns, open_ns, 0)"

READ: Final = """
    CREATE OR REPLACE TEMP TABLE read AS
    SELECT unnest($services) AS service, unnest($environments) AS environment, unnest($hours) AS hour"""
# by hour and row of `about`: in whose log its requests are, whether the proxy answered them itself, and whether the
# service should have told of them
WHOSE: Final = f"""
    CREATE OR REPLACE TEMP TABLE whose AS
    WITH told AS (
        SELECT about.*, hour FROM about JOIN (
            SELECT DISTINCT number, start_ns // {HOUR} AS hour FROM request WHERE start_ns >= $start AND start_ns < $end
        ) USING (number) WHERE kind = 'request'),
    silent AS (
        SELECT * FROM read WHERE service NOT IN (SELECT service FROM told WHERE source = 'live')
        QUALIFY count(*) OVER (PARTITION BY hour) = 1)
    SELECT number, hour, read.service, read.environment, source,
           source = 'log' AND by_proxy AND status < 500 AS own,
           source = 'log' AND NOT own AND traffic IN ('page', 'api', 'poll')
           AND (status < 300 OR status >= 500) AS missed
    FROM told JOIN read USING (hour) LEFT JOIN silent USING (hour)
    WHERE read.service = told.service AND read.environment IS NOT DISTINCT FROM told.environment
       OR source = 'live' AND read.service = told.service AND (read.environment IS NULL OR told.environment IS NULL)
       OR source = 'live' AND read.service = silent.service AND told.service <> '{OWN_SERVICE}'
    QUALIFY row_number() OVER (PARTITION BY number, hour ORDER BY
        read.service = told.service DESC, read.environment IS NOT DISTINCT FROM told.environment DESC,
        read.environment) = 1"""
# lines of requests that were told of under another address or name, or by the server itself, and not by the line's id:
# nearest in time; `told_by_id`: what was told is heard of by itself
DOUBLED: Final = f"""
    CREATE OR REPLACE TEMP TABLE doubled AS
    WITH line AS (
        SELECT trace_id, span_id, whose.service, environment, method, status, path, {ENDED} AS end_ns,
               {IDENTIFIED} AS has_id
        FROM request JOIN whose ON request.number = whose.number AND start_ns // {HOUR} = hour
        JOIN (SELECT number, method, status FROM about) AS about ON about.number = whose.number
        WHERE start_ns >= $start AND start_ns < $end AND source = 'log' AND NOT own),
    behind AS (
        SELECT number, hour, service, true AS is_heard FROM whose WHERE source = 'live'
        UNION SELECT number, hour, read.service, false FROM about, read
        WHERE about.service = '{OWN_SERVICE}' AND read.service <> about.service AND source = 'live'),
    told AS (
        SELECT behind.service, told_by, method, status, path, {ENDED} AS end_ns, is_heard AND {BY_ID} AS by_id, has_id
        FROM request JOIN behind ON request.number = behind.number AND start_ns // {HOUR} = hour
        JOIN (SELECT number, service AS told_by, method, status, kind FROM about) AS about
            ON about.number = behind.number AND kind = 'request'
        ANTI JOIN (SELECT live_trace_id AS trace_id, live_span_id AS span_id FROM settled) USING (trace_id, span_id)
        JOIN (VALUES (true), (false)) AS line (has_id) ON NOT (has_id AND {BY_ID})
        WHERE start_ns >= $start AND start_ns < $end)
    SELECT trace_id, span_id, line.service, environment, told_by, by_id AS told_by_id
    FROM line ASOF JOIN told ON line.service = told.service AND line.method = told.method AND line.status = told.status
         AND line.path = told.path AND line.has_id = told.has_id AND line.end_ns + {MOMENT_NS} + {SECOND} >= told.end_ns
    WHERE told.end_ns >= line.end_ns - {MOMENT_NS}"""
HEARD: Final = f"""
    CREATE OR REPLACE TEMP TABLE heard AS
    SELECT service, environment, min(start_ns) AS start_ns, bool_or(source = 'live') AS live,
           bool_or(missed AND (trace_id, span_id) NOT IN (SELECT trace_id, span_id FROM doubled))
           AND NOT bool_or(source = 'live') AS missed,
           bool_or(own) AND NOT bool_or(source = 'live') AS own
    FROM request JOIN whose ON request.number = whose.number AND start_ns // {HOUR} = hour
    WHERE start_ns >= $start AND start_ns < $end
      AND (trace_id, span_id) NOT IN (SELECT trace_id, span_id FROM doubled WHERE told_by_id)
      AND (source = 'log' OR {BY_ID} OR (trace_id, span_id) IN (
          SELECT (live_trace_id, live_span_id) FROM settled WHERE live_trace_id IS NOT NULL))
    GROUP BY service, environment, trace_id"""
HOURS: Final = f"""
    SELECT service, environment, start_ns // {HOUR} * {HOUR} AS hour_ns, count(*), count(*) FILTER (live),
           count(*) FILTER (own)
    FROM heard GROUP BY ALL ORDER BY service, environment NULLS LAST, hour_ns"""
TWICE: Final = """
    SELECT service, environment, told_by, count(*) FROM doubled GROUP BY ALL ORDER BY 1, 2 NULLS LAST, 3"""
GAPS: Final = f"""
    SELECT service, environment, coalesce(before_ns, min(start_ns)) AS from_ns,
           coalesce(after_ns, max(start_ns) + {SECOND}) AS to_ns, count(*)
    FROM (SELECT *, max(start_ns) FILTER (live) OVER before AS before_ns,
                 min(start_ns) FILTER (live) OVER after AS after_ns
          FROM heard WHERE live OR missed
          WINDOW before AS (PARTITION BY service, environment ORDER BY start_ns),
                 after AS (PARTITION BY service, environment ORDER BY start_ns
                           RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING))
    WHERE missed GROUP BY service, environment, before_ns, after_ns
    HAVING max(start_ns) - min(start_ns) > {LONG_NS} OR count(*) >= {MISSES}
       AND coalesce(after_ns, max(start_ns)) - coalesce(before_ns, min(start_ns)) > {MOMENT_NS}
    ORDER BY service, environment NULLS LAST, from_ns"""


class Hour(NamedTuple):
    """What a proxy saw of a service in an hour."""

    service: str
    environment: str | None
    start_ns: int
    requests: int
    live: int  # of these, those that the service told of
    own: int  # of these, those that the proxy answered itself, as far as its log says so


class Gap(NamedTuple):
    """From the last request before, that the service told of, to the first after: it told of none of these."""

    service: str
    environment: str | None
    start_ns: int
    end_ns: int
    requests: int  # that it should have told of


class Doubled(NamedTuple):
    """Requests that are there as a line, and as what the service told: nothing says that these are the same."""

    service: str
    environment: str | None
    told_by: str  # the service
    requests: int


class Covered(NamedTuple):
    """Each by service and environment; hours and gaps by time, too."""

    hours: list[Hour]
    gaps: list[Gap]
    doubled: list[Doubled]


NOTHING: Final = Covered([], [], [])


def covered(
    cursor: duckdb.DuckDBPyConnection, start_ns: int, end_ns: int, read: Collection[tuple[str, str | None, int]]
) -> Covered:
    """`read`: services, environments and hours since 1970 that a log was read of. Raises duckdb.Error."""
    columns = dict(zip(("services", "environments", "hours"), map(list, zip(*read, strict=True)), strict=True))
    cursor.execute(READ, columns)
    for sql in (WHOSE, DOUBLED, HEARD):
        cursor.execute(sql, {"start": start_ns, "end": end_ns})
    hours = list(map(Hour._make, cursor.execute(HOURS).fetchall()))
    gaps = list(map(Gap._make, cursor.execute(GAPS).fetchall()))
    return Covered(hours, gaps, list(map(Doubled._make, cursor.execute(TWICE).fetchall())))
