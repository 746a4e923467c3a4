"""One InfluxDB bucket: Flux goes out with its values as parameters, lines of CSV come in, and what fails has a name."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from typing import Any, Final, cast

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.domain.dialect import Dialect
from influxdb_client.rest import ApiException
from urllib3 import Retry
from urllib3.exceptions import HTTPError, ReadTimeoutError

from tailspan import points
from tailspan.config import InfluxDB
from tailspan.errors import BucketError, ServerError, SlowError, StoreError, TokenError
from tailspan.flux import Stream
from tailspan.query import Range

PLAIN: Final = Dialect(header=True, delimiter=",", annotations=[], date_time_format="RFC3339Nano")
# of what comes and goes by itself; a question changes nothing, and so may be asked again
AGAIN: Final = Retry(total=2, read=0, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), allowed_methods=None)
CONNECT_MS: Final = 3000  # to reach it takes no time, or never comes true
MEASURED: Final = 100


class Bucket:
    """Raises TokenError, BucketError, ServerError, SlowError, or StoreError for what else InfluxDB says."""

    def __init__(self, settings: InfluxDB) -> None:
        self.settings = settings
        self.took_ms: deque[float] = deque(maxlen=MEASURED)  # of the newest questions, until the answer was read
        self._client = InfluxDBClient(
            settings.url,
            settings.token,
            org=settings.org,
            timeout=(CONNECT_MS, settings.timeout_ms),
            retries=AGAIN,
            enable_gzip=False,
        )

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def ask(self, stream: Stream, ranges: Sequence[Range]) -> Iterator[Iterator[bytes]]:
        """The lines that answer it for each of the ranges."""
        values: dict[str, Any] = {"_bucket": self.settings.bucket, **dict(stream.values)}
        asked = [f"of = (start, stop) => {stream.flux}"]
        for number, (start_ns, end_ns) in enumerate(ranges):
            values |= {f"_start{number}": start_ns, f"_stop{number}": end_ns}
            asked.append(f'of(start: _start{number}, stop: _stop{number}) |> yield(name: "{number}")')
        begun = time.perf_counter()
        with (
            self._told(),
            cast(Any, self._client.query_api()).query_raw("\n".join(asked), dialect=PLAIN, params=values) as answer,
        ):
            yield _lines(answer.stream(2**18))
        self.took_ms.append((time.perf_counter() - begun) * 1e3)

    def records(self, stream: Stream, of: Range) -> list[dict[str, str]]:
        """The rows of an answer that has few, by column."""
        with self.ask(stream, [of]) as lines:
            return list(points.records(lines))

    def delete(self, predicate: str, of: Range) -> None:
        """All points of the range that it holds for. The API's stop is included, a range's end is not."""
        with self._told():
            self._client.delete_api().delete(_time(of.start_ns), _time(of.end_ns - 1), predicate, self.settings.bucket)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ApiException as problem:
            raise self._refusal(problem) from problem
        except (HTTPError, OSError) as problem:
            if getattr(problem, "errno", None) in (ENOSPC, EDQUOT):  # of the answer, while it is saved
                raise
            if isinstance(getattr(problem, "reason", problem), ReadTimeoutError):
                raise SlowError(
                    f"InfluxDB did not answer within {self.settings.timeout_ms} ms.",
                    fix="Ask for a shorter range, or set INFLUXDB_V2_TIMEOUT.",
                ) from problem
            raise ServerError(
                f"InfluxDB at {self.settings.url} cannot be reached: {problem}.",
                value=self.settings.url,
                fix="Start it, or set INFLUXDB_V2_URL.",
            ) from problem

    def _refusal(self, problem: ApiException) -> StoreError:
        org, bucket = self.settings.org, self.settings.bucket
        said = str(getattr(problem, "message", None) or problem.reason)
        fix = "Make both: tailspan setup influxdb"
        if problem.status in (401, 403):
            return TokenError(f"InfluxDB refuses INFLUXDB_V2_TOKEN: {said}.", fix="Make one: tailspan setup influxdb")
        if problem.status == 404:
            return BucketError(
                f"InfluxDB has no bucket {bucket!r} in {org!r} that the token may read: {said}.", value=bucket, fix=fix
            )
        return StoreError(f"InfluxDB answered {problem.status}: {said}.", fix="Look into its log.")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each with its end. A reader on the response itself would find it closed at its end."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _time(ns: int) -> str:
    """RFC 3339, to the nanosecond: the predicate's own precision."""
    moment = datetime.fromtimestamp(ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09}Z"
