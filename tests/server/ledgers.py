"""The ledger's rule in plain Python, and small worlds in which two witnesses tell of the same requests.

A world is what happened behind one proxy, and in which order who told of it: a service in batches of any order, three
logs of the proxy (one with its requests' ids, one without, one without and to the millisecond) from their beginning, as
far as they were written then.
Reference.tell and Reference.read say what should be there after each; they look at every pair, with no index.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import product
from random import Random
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from tests.server.logs import combined, identified
from tests.server.spans import NOW_NS, SECOND

# docs/backfill.md: "of its second, else the first within a tenth of a second of that, else within one, else within two"
# (of a millisecond there is hardly one)
APART_NS: Final = (0, SECOND // 10, SECOND, 2 * SECOND)
TOOK_NS: Final = (42_000_000, 42_000_000, 5 * SECOND, 3 * 3600 * SECOND)
ADDRESSES: Final = ("100.64.0.7", "100.64.0.8")
PATHS: Final = ("/prices", "/board")
# between two requests, in milliseconds: many within a second, and around the two seconds that a pair may be apart
GAPS: Final = (0, 1, 10, 300, 900, 1000, 1900, 2100, 3100, 5000)

Pick = Callable[[Sequence[Any]], Any]  # one of these


class Happened(NamedTuple):
    """A request as it was. What it ended at is the time of its lines."""

    number: int
    end_ns: int
    address: str
    path: str
    took_ns: int
    is_stream: bool  # how long it took is no response time
    late_ns: int  # by how much its service saw it end later, or earlier: a slow client, or a clock
    at_proxy: bool  # else it came past it
    at_service: bool  # else the proxy answered by itself, or telemetry was down
    log: str  # with ids: and the proxy gave that to the service | without ids | exact

    @property
    def has_id(self) -> bool:
        return self.log == "with ids"

    @property
    def like(self) -> tuple[str, str]:
        return self.address, self.path

    @property
    def trace_id(self) -> bytes:
        return sha256(b"%d %d" % (self.number, self.end_ns)).digest()[:16]

    @property
    def line(self) -> str:
        at = datetime.fromtimestamp(self.end_ns / SECOND, UTC)
        if self.has_id:
            asked = {"remote_addr": self.address, "request": f"GET {self.path} HTTP/2.0"}
            took = "-" if self.is_stream else f"{self.took_ns / SECOND:.3f}"
            return identified(0, at=at, took=took, request_id=self.trace_id.hex(), **asked)
        if self.log == "exact":
            return f"{at.timestamp():.3f} {self.took_ns / SECOND:.3f} {self.address} GET {self.path} HTTP/1.1 200\n"
        return combined(f"GET {self.path} HTTP/1.1", at=f"{at:%d/%b/%Y:%H:%M:%S} +0000", address=self.address)

    @property
    def resolution_ns(self) -> int:
        return 0 if self.log == "exact" else SECOND

    @property
    def at_ns(self) -> int:
        """As its line has it."""
        return self.end_ns if self.log == "exact" else self.end_ns // SECOND * SECOND


class Told(NamedTuple):
    """Somebody tells of some of what happened, in this order: the service, or a log from its beginning."""

    by: str  # service, or a log
    of: tuple[Happened, ...]


class Reference:
    """What is there, and why."""

    def __init__(self) -> None:
        self.lives: dict[int, Happened] = {}
        self.lines: dict[tuple[Any, ...], Happened] = {}  # what it is known by → a line that is there
        self.pairs: dict[tuple[Any, ...], int] = {}  # a line without an id → the live request that it is

    def tell(self, told: Told) -> None:
        if told.by == "service":
            self._hear(told.of)
        else:
            self._read(told)

    def _hear(self, lives: Iterable[Happened]) -> None:
        for one in lives:
            self.lives[one.number] = one
            if one.has_id:
                self.lines.pop(("id", one.number), None)
        for name in self._pair({name: one for name, one in self.lines.items() if not one.has_id}, lives):
            del self.lines[name]

    def _read(self, told: Told) -> None:
        seen: Counter[str] = Counter()
        new = {}
        for one in told.of:
            seen[one.line] += 1  # which of its equals in the file it is
            name = ("id", one.number) if one.has_id else ("text", one.line, seen[one.line])
            is_twin = one.has_id and one.at_service and one.number in self.lives
            if name not in self.lines and name not in self.pairs and not is_twin:
                new[name] = one
        paired = self._pair({name: one for name, one in new.items() if not one.has_id}, self.lives.values())
        self.lines |= {name: one for name, one in new.items() if name not in paired}

    def _pair(self, lines: dict[tuple[Any, ...], Happened], lives: Iterable[Happened]) -> list[tuple[Any, ...]]:
        """Each line, in order of time, takes the first live request that can be its own and is nobody's."""
        paired: list[tuple[Any, ...]] = []
        in_order = sorted(lines.items(), key=lambda known: known[1].at_ns)
        for apart_ns, (name, line) in product(APART_NS, in_order):
            free = [
                one
                for one in lives
                if one.like == line.like
                and one.number not in self.pairs.values()
                and -apart_ns <= one.end_ns + one.late_ns - line.at_ns <= line.resolution_ns + apart_ns
            ]
            if free and name not in paired:
                self.pairs[name] = min(free, key=lambda one: one.end_ns + one.late_ns).number
                paired.append(name)
        return paired

    @property
    def counts(self) -> "Counter[tuple[str, str | None, str | None, int]]":
        """Requests by who told of them, address, path, and the second in which they ended."""
        live = Counter(("live", *one.like, (one.end_ns + one.late_ns) // SECOND) for one in self.lives.values())
        return live + Counter(("log", *one.like, one.at_ns // SECOND) for one in self.lines.values())


class World(NamedTuple):
    told: tuple[Told, ...]


def any_world(pick: Pick, most: int, *, at_ns: int = NOW_NS - 3600 * SECOND) -> World:
    """Times never lie where a pair may just be or not be one: stores keep them to the millisecond or so."""
    happened = []
    for number in range(pick(range(1, most + 1))):
        at_ns += pick(GAPS) * 10**6
        log = pick(("with ids", "with ids", "without ids", "exact"))
        happened.append(
            Happened(
                number=number,
                end_ns=at_ns // 10**7 * 10**7 + 5 * 10**6,
                address=pick(ADDRESSES[:1] * 3 + ADDRESSES),
                path=pick(PATHS[:1] * 3 + PATHS),
                # what took hours is looked for where it began: a line that says so is nobody's that began later
                took_ns=pick(TOOK_NS[:-1] if log == "exact" else TOOK_NS),
                is_stream=pick((True, False, False)),
                late_ns=pick((0, 0, 0, -1 * 10**6, 97 * 10**6, 1497 * 10**6, 2497 * 10**6)),
                at_proxy=pick((True, True, True, False)),
                at_service=pick((True, True, False)),
                log=log,
            )
        )
    return World(tuple(_any_telling(pick, happened) for _ in range(pick(range(1, 7)))))


def _any_telling(pick: Pick, happened: list[Happened]) -> Told:
    by = pick(("service", "service", "with ids", "without ids", "exact"))
    if by == "service":
        told = [one for one in happened if one.at_service and pick((True, False))]
        return Told(by, tuple(reversed(told) if pick((True, False)) else told))
    written = [one for one in happened if one.at_proxy and one.log == by]
    return Told(by, tuple(written[: pick(range(len(written) + 1))]))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    return any_world(lambda values: draw(st.sampled_from(values)), 8)


def dense_world(seed: int) -> World:
    """A larger one, of which nothing can be made smaller."""
    return any_world(Random(seed).choice, 40, at_ns=NOW_NS - (seed + 1) * 3600 * SECOND)
