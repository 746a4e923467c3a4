"""Closing a database that may still be asked."""

import logging
import time
from typing import Final

import duckdb

PATIENCE_S: Final = 10.0  # longer than what a server does unasked takes
log: Final = logging.getLogger(__name__)


def close(connection: duckdb.DuckDBPyConnection) -> None:
    """As soon as no thread asks it: before that DuckDB 2 refuses, and the file would stay locked."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connection.close()
        except duckdb.Error as problem:
            if time.monotonic() > until:
                return log.warning("a database stays open until the process ends: %s", problem)
        time.sleep(0.01)
