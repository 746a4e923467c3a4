"""The embedded store's file: opened, brought up to date, read and written in transactions, and closed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb

from tailspan import ledger
from tailspan.errors import BusyError, LockedError, StoreError
from tailspan.logtrouble import is_full
from tailspan.meaning import SIGHTINGS
from tailspan.store import closing

OPTIONS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "memory_limit": "128MB",  # the rest of the process needs as much again
    "threads": 2,
    "preserve_insertion_order": False,  # every list says its order
    "autoinstall_known_extensions": False,  # nothing is ever downloaded
    "autoload_known_extensions": False,
}

# A few combinations of caller, route and answer make up nearly all requests: each is one row of `about`, and a request
# has its number. That is a third of the time to write and half the disk. Two rows may be alike; nothing depends on it.
MIGRATIONS: Final = (
    """
    CREATE TABLE about (
        number INTEGER NOT NULL, service VARCHAR NOT NULL, environment VARCHAR,
        method VARCHAR NOT NULL, route VARCHAR, status SMALLINT,
        login VARCHAR, full_name VARCHAR, node VARCHAR, node_id VARCHAR, tags VARCHAR, address VARCHAR, guess VARCHAR,
        source VARCHAR NOT NULL, identity_source VARCHAR NOT NULL, proven BOOLEAN NOT NULL, caller VARCHAR NOT NULL,
        traffic VARCHAR NOT NULL, page VARCHAR, client_address VARCHAR, user_agent VARCHAR, schema SMALLINT NOT NULL
    );
    CREATE TABLE request (
        trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_id BLOB,
        start_ns BIGINT NOT NULL, duration_ns BIGINT, path VARCHAR, number INTEGER NOT NULL
    );
    CREATE VIEW span AS FROM request JOIN about USING (number);
    CREATE TABLE heartbeat (
        trace_id BLOB, span_id BLOB, start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL,
        service VARCHAR NOT NULL, environment VARCHAR, stopped BOOLEAN NOT NULL,
        forged BIGINT NOT NULL, unproven BIGINT NOT NULL, dropped BIGINT NOT NULL, open_requests BIGINT NOT NULL,
        PRIMARY KEY (trace_id, span_id)
    );
    """,
    """
    ALTER TABLE request ADD COLUMN visible_ms BIGINT;
    ALTER TABLE about ADD COLUMN kind VARCHAR DEFAULT 'request';
    ALTER TABLE about ADD COLUMN card VARCHAR;
    ALTER TABLE about ADD COLUMN variant VARCHAR;
    CREATE OR REPLACE VIEW span AS FROM request JOIN about USING (number);
    CREATE TABLE device (
        address VARCHAR NOT NULL, node_id VARCHAR NOT NULL, node VARCHAR NOT NULL, login VARCHAR, full_name VARCHAR,
        tags VARCHAR, kind VARCHAR NOT NULL, source VARCHAR NOT NULL, from_ns BIGINT NOT NULL, to_ns BIGINT,
        seen BOOLEAN NOT NULL
    );
    """,
    "ALTER TABLE heartbeat ADD COLUMN forged_kinds VARCHAR;",
    ledger.TABLES,
    """
    ALTER TABLE about ADD COLUMN claim VARCHAR;
    ALTER TABLE about ADD COLUMN polled BOOLEAN DEFAULT false;
    UPDATE about SET traffic = 'api', polled = true WHERE source = 'log' AND traffic = 'poll';
    UPDATE about SET claim = login, login = NULL, caller = 'unknown' WHERE source = 'log' AND login IS NOT NULL;
    CREATE OR REPLACE VIEW span AS FROM request JOIN about USING (number);
    """,
    """
    ALTER TABLE request ADD COLUMN open_ns BIGINT;
    CREATE OR REPLACE VIEW span AS FROM request JOIN about USING (number);
    """,
    "ALTER TABLE checkpoint ADD COLUMN service VARCHAR;",
    """
    ALTER TABLE about ADD COLUMN by_proxy BOOLEAN DEFAULT false;
    CREATE OR REPLACE VIEW span AS FROM request JOIN about USING (number);
    """,
)
WITH_HISTORY: Final = 2  # the migration that brought `device`
SEEN: Final = SIGHTINGS.format("span", "($every OR list_contains($addresses, address))")
HISTORY: Final = f"INSERT INTO device SELECT *, true FROM ({SEEN})"  # noqa: S608  # both are constants


class File:
    """Raises LockedError where another process holds it, else StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._changed = False  # by what is being written
        self._version = 0  # of `about` and `device`: counts what was committed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = duckdb.connect(str(path), config=OPTIONS)
        except (duckdb.Error, OSError) as problem:
            raise self._not_opened(problem) from problem
        try:
            self._migrate()
            self._begin()
        except BaseException:  # whatever it was, the file must not stay locked
            self.close()
            raise

    def _begin(self) -> None:
        """What is read first."""

    def _undone(self) -> None:
        """Forgets what was learned in a transaction that is undone."""

    def _not_opened(self, problem: Exception) -> StoreError:
        reason = " ".join(str(problem).split())
        if "lock" not in reason:
            return StoreError(
                f"The database {self.path} cannot be opened: {reason}",
                value=str(self.path),
                fix="Put a backup in its place, or set TAILSPAN_DB to a new file.",
            )
        holder = reason.partition("PID ")[2].partition(")")[0] or "unknown"
        return LockedError(
            f"The database {self.path} is held by another process (pid {holder}).",
            value=str(self.path),
            rule="DuckDB lets one process open a file, even for reading.",
            fix=f"Ask the tailspan server that runs there, stop it (kill {holder}), or set another TAILSPAN_DB.",
        )

    def _migrate(self) -> None:
        with self._write() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS migration (number INTEGER NOT NULL)")
            (done,) = one(cursor.execute("SELECT count(*) FROM migration"))
            if done > len(MIGRATIONS):
                raise StoreError(
                    f"The database {self.path} was written by a newer tailspan (step {done} of {len(MIGRATIONS)}).",
                    value=str(self.path),
                    fix="Install that version again, or set TAILSPAN_DB to another file.",
                )
            for number, migration in enumerate(MIGRATIONS[done:], start=done + 1):
                cursor.execute(migration)
                cursor.execute("INSERT INTO migration VALUES (?)", [number])
                if number == WITH_HISTORY:
                    cursor.execute(HISTORY, {"every": True, "addresses": []})

    def close(self) -> None:
        """When whoever asks it has an answer."""
        closing.close(self._connection)

    @contextmanager
    def _read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._connection.cursor() as cursor:
                yield cursor
        except duckdb.Error as problem:
            raise self._unreadable(problem) from problem

    @contextmanager
    def _write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._writing, self._connection.cursor() as cursor:
                self._changed = False
                cursor.begin()
                try:
                    yield cursor
                    cursor.commit()
                    self._version += self._changed
                except BaseException:  # Ctrl-C in the middle of a transaction undoes it too
                    self._undone()
                    with suppress(duckdb.Error):  # the first error is the one to tell
                        cursor.rollback()
                    raise
        except duckdb.Error as problem:
            fix = f"Look for a vanished disk, then restart tailspan serve: df -h {self.path.parent}"
            message, fix = self._told("written", problem, fix)
            raise BusyError(message, fix=fix) from problem

    def _told(self, done: str, problem: duckdb.Error, fix: str) -> tuple[str, str]:
        """What cannot be done and why, and what mends it."""
        message, folder = f"The database {self.path} cannot be {done}: {_reason(problem)}.", self.path.parent
        if not (is_full(folder) or "No space left" in message):
            return message, fix
        restart = ", then restart tailspan serve (all that it acknowledged is there)"
        gave_up = isinstance(problem, duckdb.FatalException)
        return f"The disk is full. {message}", f"Make room{restart if gave_up else ''}: df -h {folder}"

    def _unreadable(self, problem: duckdb.Error) -> StoreError:
        if isinstance(problem, duckdb.OutOfMemoryException):
            return StoreError(
                "The question needs more memory than the store may use.",
                rule=f"It may use {OPTIONS['memory_limit']}.",
                fix="Ask for a shorter range, or for fewer percentiles or dimensions at once.",
            )
        fix = "Look at the disk, restart tailspan serve, and put a backup in its place if it stays so."
        message, fix = self._told("read", problem, fix)
        return StoreError(message, value=str(self.path), fix=fix)


def one(result: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    row = result.fetchone()
    assert row is not None  # a count always has its row
    return row


def _reason(problem: duckdb.Error) -> str:
    """Once DuckDB gave up, its errors say so, and after that what the first one was."""
    text, _, first = str(problem).partition('Original error: "')
    return (first.rstrip().removesuffix('"') or text.partition("\n")[0]).rstrip(".")
