"""Which share of what its proxy saw a service told of itself, and when it told of nothing."""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final, Literal, NamedTuple

from tailspan.errors import StoreError
from tailspan.ledger import MINUTE, Minute
from tailspan.query import nanoseconds
from tailspan.store import Store

TOLD_OF: Final = timedelta(hours=24)  # in the sources of answers
FRESH_S: Final = 60.0
GAPS: Final = 3  # that a source names


class Gap(NamedTuple):
    """A while in which the proxy saw requests that the service should have told of, and it told of none."""

    start_ns: int
    end_ns: int
    requests: int


class Coverage(NamedTuple):
    """Of a service in an environment."""

    service: str
    environment: str | None
    requests: int  # that its proxy saw
    live: int  # of these, those it told of
    gaps: tuple[Gap, ...]  # none where it told of nothing at all: it is not instrumented

    @property
    def share(self) -> float:
        return self.live / self.requests


def coverages(minutes: Iterable[Minute]) -> list[Coverage]:
    """Of each service, of minutes in order of service and time."""
    found = []
    for (service, environment), own in groupby(minutes, key=lambda one: (one.service, one.environment)):
        known = list(own)
        live = sum(one.live for one in known)
        gaps = tuple(_gaps(known)) if live else ()
        found.append(Coverage(service, environment, sum(one.requests for one in known), live, gaps))
    return found


def _gaps(minutes: Iterable[Minute]) -> Iterator[Gap]:
    busy = (one for one in minutes if one.live or one.missed)
    for told, run in groupby(busy, key=lambda one: one.live > 0):
        if not told:
            silent = list(run)
            yield Gap(silent[0].start_ns, silent[-1].start_ns + MINUTE, sum(one.missed for one in silent))


Told = tuple[str, Literal["ok", "gaps"], str]  # name, state and message of a source


class Coverages:
    """What sources say of it, worked out once a minute."""

    def __init__(self) -> None:
        self._known: tuple[float, list[Told]] | None = None

    def told(self, store: Store, now: datetime) -> list[Told]:
        """Nothing where no log is read, or the store is in trouble, which it tells itself."""
        if self._known and self._known[0] > time.monotonic() - FRESH_S:
            return self._known[1]
        try:
            found = coverages(store.coverage(nanoseconds(now - TOLD_OF), nanoseconds(now)))
        except StoreError:
            return []
        if found:  # to find that there is no log costs nothing
            self._known = time.monotonic(), [_told(one) for one in found]
        return [_told(one) for one in found]


def _told(of: Coverage) -> Told:
    seen = f"{of.live:,} of the {of.requests:,} requests that its proxy saw in the last 24 hours it told of itself"
    message = f"{seen} ({of.share:.1%})."
    if of.gaps:
        named = ", ".join(f"{_clock(gap.start_ns)} to {_clock(gap.end_ns)} ({gap.requests})" for gap in of.gaps[:GAPS])
        more = f" and {len(of.gaps) - GAPS} more" if len(of.gaps) > GAPS else ""
        message += f" Of these it told nothing, in UTC: {named}{more}. Look whether it ran, and sent."
    return f"log {of.service}", "gaps" if of.gaps else "ok", message


def _clock(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%m-%d %H:%M}"
