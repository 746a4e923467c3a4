"""Which share of what its proxy saw a service told of itself, and when it told of nothing."""

import time
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final, Literal, NamedTuple

from tailspan.covered import Covered, Gap
from tailspan.delivery import removal
from tailspan.errors import StoreError
from tailspan.query import nanoseconds
from tailspan.span import OWN_SERVICE
from tailspan.store import Store

TOLD_OF: Final = timedelta(hours=24)  # in the sources of answers
FRESH_S: Final = 60.0
GAPS: Final = 3  # that a source names
FEW: Final = 3  # that may have met by chance


class Coverage(NamedTuple):
    """Of a service in an environment."""

    service: str
    environment: str | None
    requests: int  # that its proxy saw
    live: int  # of these, those it told of
    own: int  # of these, those its proxy answered itself, as far as the log says so
    doubled: dict[str, int]  # that are there twice: as lines, and as these services told of them
    gaps: tuple[Gap, ...]  # none where it told of nothing at all: it is not instrumented

    @property
    def share(self) -> float:
        """Rounded down to thousandths: 1 means all."""
        return 1000 * self.live // self.requests / 1000


def coverages(of: Covered) -> list[Coverage]:
    """Of each service."""
    found = []
    for (service, environment), seen in groupby(of.hours, key=itemgetter(0, 1)):
        hours = list(seen)
        live = sum(hour.live for hour in hours)
        gaps = tuple(gap for gap in of.gaps if live and gap[:2] == (service, environment))
        requests, own = sum(hour.requests for hour in hours), sum(hour.own for hour in hours)
        twice = {one.told_by: one.requests for one in of.doubled if one[:2] == (service, environment)}
        doubled = twice if sum(twice.values()) >= FEW else {}
        found.append(Coverage(service, environment, requests, live, own, doubled, gaps))
    return found


Told = tuple[str, Literal["ok", "gaps", "doubled"], str]  # name, state and message of a source


class Coverages:
    """What sources say of it, worked out once a minute."""

    def __init__(self) -> None:
        self._known: tuple[float, list[Told]] | None = None

    def doubt(self) -> None:
        """It is worked out anew when it is asked for."""
        self._known = None

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
    message = f"{seen} ({of.share:.1%})" + f"; {of.own:,} its proxy answered itself" * bool(of.own) + "."
    if others := {name: requests for name, requests in of.doubled.items() if name != OWN_SERVICE}:
        message += (
            f" {sum(others.values()):,} are there twice: {', '.join(others)} told of the same paths at the same "
            "moments, but under another address or name, and not by the line's id. Set that up: docs/backfill.md, "
            "proxy.conf, --service."
        )
    elif not of.live:
        message += " It is not instrumented, or sent nothing all the time."
    if of.gaps:
        named = ", ".join(f"{_from_to(gap)} ({gap.requests})" for gap in of.gaps[:GAPS])
        more = f" and {len(of.gaps) - GAPS} more" if len(of.gaps) > GAPS else ""
        message += f" Of these it told nothing, in UTC: {named}{more}. Look whether it ran, and sent."
    if own := of.doubled.get(OWN_SERVICE):
        message += (
            f" {own:,} may be there twice: {OWN_SERVICE} told of the same paths at the same moments, as it does behind "
            "that proxy. The ids of requests, in the log and passed on, tell: docs/backfill.md, http.conf, proxy.conf."
        )
    if of.service in of.doubled:  # of one that told of nothing itself all would be lost
        message += f" Once that is set up, take the lines out: {removal(of.service)}"
    return f"log {of.service}", "doubled" if of.doubled else "gaps" if of.gaps else "ok", message


def _from_to(gap: Gap) -> str:
    """To the minute, or the second where it is within one."""
    start, end = (datetime.fromtimestamp(ns // 10**9, UTC) for ns in (gap.start_ns, gap.end_ns))
    minutes = "%m-%d %H:%M"
    form = "%m-%d %H:%M:%S" if f"{start:{minutes}}" == f"{end:{minutes}}" else minutes
    return f"{start:{form}} to {end:{form}}"
