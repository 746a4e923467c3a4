"""The ledger of the embedded store, held to its rule in plain Python, whoever tells of what first."""

import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import given, settings

from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines, Log, Tally
from tailspan.ingest.nginx import chosen
from tailspan.span import Span
from tailspan.store.duckdb import DuckDB
from tests.server.ledgers import TOOK_NS, Happened, Reference, Told, World, dense_world, worlds
from tests.server.spans import NOW_NS, SECOND

# HYPOTHESIS_PROFILE=thorough pytest tests/server/test_ledger.py
EXAMPLES: Final = {"thorough": 5000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 50)
FORMATS: Final = {"with ids": "tailspan", "without ids": "combined"}


def span_of(one: Happened) -> Span:
    """As its service tells of it."""
    nothing: dict[str, Any] = dict.fromkeys(Span._fields)
    return Span(**nothing)._replace(
        trace_id=one.trace_id if one.has_id and one.at_proxy else one.trace_id[::-1],
        span_id=one.trace_id[8:],
        parent_id=one.trace_id[:8] if one.has_id and one.at_proxy else None,
        start_ns=one.end_ns + one.late_ns - TOOK_NS,
        duration_ns=TOOK_NS,
        path=one.path,
        service="dashboard",
        method="GET",
        route=one.path,
        status=200,
        address=one.address,
        client_address=one.address,
        source="live",
        identity_source="none",
        proven=True,
        caller="unknown",
        traffic="api",
        schema=1,
        kind="request",
    )


def lines_of(told: Told) -> Lines:
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen(FORMATS[told.by])[0])
    return log.read("".join(one.line for one in told.of).encode(), NOW_NS)


def counts(spans: list[Span]) -> "Counter[tuple[str, str | None, str | None, int]]":
    """As Reference has them."""
    return Counter(
        (one.source, one.address, one.path, (one.start_ns + (one.duration_ns or 0)) // SECOND) for one in spans
    )


def check(world: World) -> None:
    reference = Reference()
    with TemporaryDirectory() as folder:
        store = DuckDB(Path(folder, "t.duckdb"))
        for told in world.told:
            reference.tell(told)
            if told.by == "service":
                store.write([span_of(one) for one in told.of])
            else:
                store.add_lines(lines_of(told), 0)
            assert counts(list(store.spans())) == reference.counts, told
        store.close()


@settings(max_examples=EXAMPLES)
@given(world=worlds())
def test_each_request_is_there_once_whoever_tells_of_it_and_in_whatever_order(world: World) -> None:
    check(world)


@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_in_larger_worlds(seed: int) -> None:
    check(dense_world(seed))
