"""Where answers come from: the seam that every store fills."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, overload

from tailspan.covered import Covered
from tailspan.errors import Trouble
from tailspan.ingest.lines import Lines
from tailspan.labels import NO_LOGS
from tailspan.ledger import Fates
from tailspan.query import Aggregate, Groups, Rows, Session, Sessions
from tailspan.span import Device, Heartbeat, Span

SILENT: Final = "Heartbeats arrive, but no request yet: open a page of the service."
EMPTY: Final = (
    "No request has ever arrived. In the service: from tailspan_otel import instrument; instrument(app), and "
    "OTEL_EXPORTER_OTLP_ENDPOINT=<the address of this server>. There, `tailspan doctor` finds what is missing."
)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What is known of one service in one environment. Counts are of the last 24 hours."""

    service: str
    environment: str | None
    last_request_ns: int | None  # start of its newest request
    last_heartbeat_ns: int | None
    stopped: bool  # its last heartbeat was a clean stop
    forged: int  # requests in which somebody claimed what only a trusted proxy may say
    unproven: int  # requests whose identity headers were believed without proof
    dropped: int  # spans the service lost before they got here
    open_requests: int  # at its last heartbeat
    forged_kinds: dict[str, int]  # how many of `forged` were of which kind: docs/attributes.md


@dataclass(frozen=True, slots=True)
class State:
    """What is wrong with a store, if anything."""

    name: str
    state: Literal["ok", "no data yet"] | Trouble
    message: str  # a sentence, with the fix where there is something to fix
    newest_ns: int | None = None  # start of the newest request
    services: tuple[ServiceState, ...] = ()


class Store(Protocol):
    @property
    def name(self) -> Literal["duckdb", "influxdb"]: ...
    @property
    def keeps_places(self) -> bool:
        """Whether it knows how far a log was read: what cannot tell whether it lost something does not."""

    @property
    def took_ms(self) -> list[float]:
        """How long InfluxDB took, for the newest 100 of what it was asked; empty where there is none."""

    @overload
    def run(self, query: Rows, /) -> list[Span]: ...
    @overload
    def run(self, query: Sessions, /) -> list[Session]: ...
    @overload
    def run(self, query: Aggregate, /) -> Groups: ...
    def run(self, query: Rows | Sessions | Aggregate, /) -> list[Span] | list[Session] | Groups:
        """The answer, newest first for Rows and Sessions. Raises StoreError where there can be none.

        Of an Aggregate's values `last_seen` and `first_seen` are nanoseconds since 1970, hours and days ISO text.
        """

    def state(self, now_ns: int) -> State:
        """Never raises for a store in trouble: that is the answer."""

    def history(self) -> list[Device]:
        """Whose each address was and since when, oldest first. Raises StoreError."""

    def heartbeats(self, before_ns: int) -> list[Heartbeat]:
        """All that began before then. Raises StoreError."""

    def export(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> Iterator[Span]:
        """Everything kept of that login, and what claims it; oldest first. Raises StoreError."""

    def forget(self, login: str, trusted_logs: Mapping[str, str] = NO_LOGS) -> int:
        """Deletes everything kept of that login, and counts the requests and views of that. Raises StoreError."""

    def remove_log(self, service: str) -> int:
        """Deletes the requests of that service that only a log told of, and counts them; how far logs were read, too.

        Raises StoreError.
        """

    def add_lines(self, lines: Lines, oldest_ns: int, *, dry_run: bool = False) -> Fates:
        """Keeps the requests of a log that nobody told of yet; of a dry run only says what it would.

        `oldest_ns`: when the oldest requests began that are kept. Raises StoreError.
        """

    def coverage(self, start_ns: int, end_ns: int) -> Covered:
        """What proxies saw, and services told of it, of the hours that a log was read of. Raises StoreError."""

    def reconcile(self, now_ns: int) -> int:
        """Removes lines whose services told of them since, and counts those; none where it is done as spans come.

        Raises StoreError.
        """

    def place(self, file: str) -> tuple[int, str, str | None]:
        """How far the file of that first line was read, what stands before, and as whose; 0 where it was not."""

    def read(self, file: str, read_to: int, before: str, service: str | None) -> None:
        """Remembers it. Raises StoreError."""

    def close(self) -> None:
        """Nothing is asked after that."""


def services(
    newest: dict[tuple[str, str | None], int], beaten: dict[tuple[str, str | None], tuple[Any, ...]]
) -> tuple[ServiceState, ...]:
    """Of (service, environment): its newest request, and the other fields of ServiceState from its heartbeats."""
    silent: tuple[Any, ...] = (None, False, 0, 0, 0, 0, {})
    names = sorted(newest.keys() | beaten.keys(), key=lambda name: (name[0], name[1] is None, name[1] or ""))
    return tuple(ServiceState(*name, newest.get(name), *beaten.get(name, silent)) for name in names)
