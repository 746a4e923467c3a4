"""Percentiles by nearest rank, exact, in DuckDB's SQL: with all times in memory, or counted where they are too many.

Counted, the first pass over the requests tells how many times each band of durations holds: 2 % wide around 10 ms, and
a few hundred in all. The second one looks only into the bands that hold a percentile, and counts each time in them.
"""

from collections.abc import Mapping, Sequence
from typing import Final

PERCENTS: Final = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
BANDS: Final = 2**20  # more than there are: the group and its band make one number, which is counted by twice as fast

# `party` of a described row numbers the combinations of its dimensions; `by` are those that only the request tells
COUNTED: Final = """
    timed AS NOT MATERIALIZED (
        SELECT {columns}party * {bands} + (sqrt(sqrt(duration_ns)) * 4)::BIGINT AS band, duration_ns
        FROM {source} WHERE {where} AND NOT viewed AND duration_ns IS NOT NULL),
    held AS (
        SELECT {by}band // {bands} AS party, band, count(*)::BIGINT AS times FROM timed GROUP BY {by}band),
    hit AS (
        SELECT * FROM (
            SELECT *, sum(times) OVER (PARTITION BY {by}party) AS total,
                   sum(times) OVER (PARTITION BY {by}party ORDER BY band) AS upto, upto - times AS below FROM held)
        WHERE {hits}),
    counted AS (
        SELECT {of_hit}party, total, duration_ns,
               below + sum(count(*)) OVER (PARTITION BY {of_hit}band ORDER BY duration_ns) AS upto
        FROM timed JOIN hit USING (band) WHERE {same} GROUP BY {of_hit}party, band, total, below, duration_ns),
    ranked AS (SELECT {by}party, {values} FROM counted GROUP BY {by}party)"""


def in_memory(name: str) -> str:
    """The value of that metric. All are asked at once each time: DuckDB then keeps the times once."""
    shares = [percent / 100 for percent in PERCENTS.values()]
    place = list(PERCENTS).index(name) + 1
    return f"(quantile_disc(duration_ns, {shares}) FILTER (NOT viewed))[{place}] / 1e6"


def counted(wanted: Mapping[str, str], by: Mapping[str, str], source: str, where: str) -> str:
    """Tables up to `ranked`: `party`, the columns of `by` (name → expression) and of `wanted` (name → metric)."""
    ranks = {name: f"(total * {PERCENTS[metric]} + 99) // 100" for name, metric in wanted.items()}
    return COUNTED.format(
        bands=BANDS,
        columns=_listed([f"{expression} AS {name}" for name, expression in by.items()]),
        source=source,
        where=where,
        by=_listed(by),
        of_hit=_listed([f"hit.{name}" for name in by]),
        same=" AND ".join(["true", *(f"timed.{name} IS NOT DISTINCT FROM hit.{name}" for name in by)]),
        hits=" OR ".join(f"below < {rank} AND {rank} <= upto" for rank in ranks.values()),
        values=", ".join(f"min(duration_ns) FILTER (upto >= {rank}) / 1e6 AS {name}" for name, rank in ranks.items()),
    )


def _listed(columns: Sequence[str] | Mapping[str, str]) -> str:
    return "".join(f"{column}, " for column in columns)
