"""The database file over the years: made, grown, held, damaged."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import duckdb
import pytest

from tailspan import sql
from tailspan.errors import LockedError, StoreError
from tailspan.query import DIMENSIONS, FILTERS, METRICS, Aggregate, Range
from tailspan.store import closing
from tailspan.store import duckdb as store_module
from tailspan.store import file as file_module
from tailspan.store.duckdb import DuckDB
from tailspan.store.file import MIGRATIONS
from tests.server.conftest import Serving
from tests.server.spans import export, span


def test_a_file_of_an_older_version_keeps_its_requests_and_takes_new_ones(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as client:
        client.post("/v1/traces", json=export(span(1)))
    monkeypatch.setattr(file_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (node_id VARCHAR)"))
    for number in (2, 3):  # migrated, and opened again after that
        with serving() as client:
            client.post("/v1/traces", json=export(span(number)))
            assert client.get("/analytics/access-logs").json()["summary"]["total_requests"] == number


def test_a_file_of_a_newer_version_is_refused(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (node_id VARCHAR)"))
    DuckDB(database).close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="written by a newer tailspan") as problem:
        DuckDB(database)
    assert str(database) in str(problem.value)


def test_a_migration_that_fails_leaves_the_file_as_it_was(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        file_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE a (b INTEGER); CREATE TABLE a (b INTEGER)")
    )
    with pytest.raises(StoreError):
        DuckDB(database)
    monkeypatch.undo()
    store = DuckDB(database)
    assert store.run(Aggregate(range=Range(0, 1), metrics=("requests",))).rows == [{"requests": 0}]
    store.close()


def test_a_file_that_is_asked_is_closed_after_the_answer(database: Path) -> None:
    connection, asked = duckdb.connect(str(database)), Event()

    def ask_on() -> None:
        with suppress(duckdb.Error):  # the first question after the end
            while connection.cursor().execute("SELECT sum(hash(i)) FROM range(3_000_000) t(i)").fetchall():
                asked.set()

    asking = Thread(target=ask_on)
    asking.start()
    asked.wait()
    closing.close(connection)
    asking.join()
    with pytest.raises(duckdb.ConnectionException, match="already closed"):
        connection.cursor()


def test_a_file_held_by_another_process_is_named_with_that_process(database: Path) -> None:
    hold = f"import duckdb; c = duckdb.connect({str(database)!r}); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError) as problem:
            DuckDB(database)
        holder.communicate(b"\n")
    assert str(database) in str(problem.value)
    assert f"pid {holder.pid}" in str(problem.value)


def test_a_file_that_is_no_database_is_refused_with_its_name(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened") as problem:
        DuckDB(database)
    assert str(database) in str(problem.value)
    assert database.read_bytes().startswith(b"no database")


def test_the_store_knows_each_metric_dimension_and_filter_of_the_grammar() -> None:
    assert (set(sql.VALUES), set(sql.COLUMNS)) == (set(METRICS), set(DIMENSIONS))
    assert sql.FILTERS.keys() >= FILTERS.keys()


def test_more_combinations_than_are_remembered_are_all_kept(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_KNOWN", 5)
    spans = [span(n, {"http.request.method": "GET", "http.route": f"/{n % 20}"}, ago=n) for n in range(1, 41)]
    with serving() as client:
        for start in range(0, 40, 4):
            client.post("/v1/traces", json=export(*spans[start : start + 4]))
        found = client.get("/analytics/access-logs").json()["logs"]
    assert [log["endpoint"] for log in found] == [f"/{n % 20}" for n in range(1, 41)]


def test_nothing_of_a_delivery_is_kept_where_one_part_of_it_fails(serving: Serving, database: Path) -> None:
    with serving() as client:
        app = client.app
        store = app.state.inbox._store  # type: ignore[attr-defined]
        store._connection.execute("ALTER TABLE request RENAME TO gone")
        assert client.post("/v1/traces", json=export(span(1))).status_code == 503
        store._connection.execute("ALTER TABLE gone RENAME TO request")
        assert client.post("/v1/traces", json=export(span(1))).status_code == 200
        assert client.get("/analytics/access-logs").json()["summary"]["total_requests"] == 1
    with duckdb.connect(str(database)) as connection:
        assert connection.execute("SELECT count(*) FROM about").fetchall() == [(1,)]


def test_the_state_is_told_while_others_write(database: Path) -> None:
    store, ended = DuckDB(database), Event()

    def purge() -> None:
        while not ended.is_set():
            store.purge(1)

    writing = Thread(target=purge)
    writing.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert {store.state(0).state for _ in range(500)} == {"no data yet"}
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        writing.join()
        store.close()
