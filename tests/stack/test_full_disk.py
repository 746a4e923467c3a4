"""The database's own disk is full."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tailspan.errors import BusyError, StoreError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines, Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.store.duckdb import DuckDB
from tests.server.logs import combined
from tests.server.spans import NOW_NS
from tests.stack.engines import small_disk

LINES = 40_000  # more than DuckDB leaves beside its file


def delivery(number: int) -> Lines:
    log = Log(Origin(), Tally())
    log.open_file(chosen("combined")[0])
    lines = (
        combined(f"GET /p/{number * LINES + line}x HTTP/1.1", address=f"100.64.0.{line % 250}") for line in range(LINES)
    )
    return log.read("".join(lines).encode(), NOW_NS)


def test_a_full_disk_under_the_database_is_told_with_its_first_reason_and_costs_nothing_that_was_taken(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk, closing(DuckDB(disk / "t.duckdb")) as store:
        taken = 0
        reason = f'Could not write file "{disk / "t.duckdb"}": No space left on device.'
        with pytest.raises(BusyError) as first:
            for number in range(10):
                taken += store.add_lines(delivery(number), 0).added
        with pytest.raises(BusyError) as again:
            store.add_lines(delivery(11), 0)
        with pytest.raises(StoreError) as asked:
            store.count()
        for raised, done in ((first, "written"), (again, "written"), (asked, "read")):
            message, fix = raised.value.message, raised.value.fix
            assert message.startswith(f"The disk is full. The database {disk / 't.duckdb'} cannot be {done}: ")
            assert message.endswith(reason)
            assert fix == f"Make room, then restart tailspan serve (all that it acknowledged is there): df -h {disk}"
        for file in disk.iterdir():  # where there is room
            shutil.copy(file, tmp_path / file.name)
    with closing(DuckDB(tmp_path / "t.duckdb")) as store:
        assert store.count() >= taken > 0
