"""The two tokens of the bucket: whose they are, where they are kept, and whether they do what they are for."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from tailspan.config import InfluxDB
from tailspan.errors import SetupError

PROBE: Final = "tailspan_setup"  # a measurement that no answer looks at
FIND_PROBE: Final = f'from(bucket: _bucket) |> range(start: 0) |> filter(fn: (r) => r._measurement == "{PROBE}")'
REPLACE: Final = "Replace both tokens: tailspan setup influxdb --new-tokens"


@dataclass(frozen=True, slots=True)
class Role:
    """Who uses the bucket, and what for."""

    name: str
    does: str
    actions: tuple[str, ...]

    def file(self, folder: Path) -> Path:
        return folder / self.name / "token"

    def described(self, bucket: str) -> str:
        """How InfluxDB lists its token, and how a later set-up finds it."""
        return f"tailspan {self.name}: {self.does} {bucket}"


COLLECTOR: Final = Role("collector", "only writes", ("write",))
SERVER: Final = Role("server", "reads and deletes", ("read", "write"))  # who may write may delete, and only they


def write_secret(file: Path, text: str) -> None:
    """For its owner alone, whole or not at all, and without a line end: some readers take it for a part of the token.

    Raises SetupError.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(text)
        new.replace(file)
    except OSError as problem:
        raise SetupError(f"{file} cannot be written: {problem.strerror}.", value=str(file)) from problem


def connect(at: InfluxDB, token: str) -> InfluxDBClient:
    return InfluxDBClient(at.url, token, org=at.org, timeout=at.timeout_ms)


def said(problem: ApiException) -> str:
    return str(problem.message or problem.reason).rstrip(".")


def try_out(client: InfluxDBClient, owner: InfluxDB, of_collector: str, of_server: str) -> None:
    """Writes a point, reads it and deletes it, each with the token that is for it; `client` is the owner's own.

    Raises SetupError.
    """
    with connect(owner, of_collector) as collector, connect(owner, of_server) as server:
        try:
            with _doing(COLLECTOR, "write to", owner):
                record = f"{PROBE} tried=true {time.time_ns()}"
                collector.write_api(write_options=SYNCHRONOUS).write(owner.bucket, record=record)
            with _doing(SERVER, "read", owner):
                arrived = _probes(server, owner)
            with _doing(SERVER, "delete from", owner):
                _clear(server, owner)
                left = _probes(server, owner)
        finally:
            _clear(client, owner)
        if (arrived, left) != (1, 0):
            found = f"Of a point that was written, {arrived} could be read, and {left} after it was deleted."
            raise SetupError(found, rule="It is 1, and then 0.")
        if _reads(collector, owner):
            raise SetupError("The collector's token may read.", rule="It may write, and nothing else.", fix=REPLACE)


@contextmanager
def _doing(role: Role, what: str, at: InfluxDB) -> Iterator[None]:
    try:
        yield
    except ApiException as problem:
        raise SetupError(
            f"The token of the {role.name} cannot {what} the bucket {at.bucket!r}: {said(problem)}.",
            fix=REPLACE,
        ) from problem


def _probes(client: InfluxDBClient, at: InfluxDB) -> int:
    return sum(len(table.records) for table in client.query_api().query(FIND_PROBE, params={"_bucket": at.bucket}))


def _reads(client: InfluxDBClient, at: InfluxDB) -> bool:
    try:
        _probes(client, at)
    except ApiException:
        return False
    return True


def _clear(client: InfluxDBClient, at: InfluxDB) -> None:
    long_ago, now = datetime(1970, 1, 1, tzinfo=UTC), datetime.now(UTC)
    client.delete_api().delete(long_ago, now, f'_measurement="{PROBE}"', bucket=at.bucket)
