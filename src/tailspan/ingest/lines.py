"""A log's lines on their way in: which request each is, and what is dropped, with its reason and an example.

A line with nginx's request id has the ids that nginx gave its service as `traceparent`: the service's own span names
them as its parent. A line without one is known by its text, and by how many like it this file had before.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Final, NamedTuple

from tailspan_otel.traffic import Rhythm

from tailspan.ingest import AHEAD_NS
from tailspan.ingest.line import ASKED, CLOCKS, SECOND, TOLD, USERS, Asked, Origin, asked, plainly_asked, told
from tailspan.ingest.nginx import Format
from tailspan.span import ABOUT

NO_FIT: Final = "not in the format"
NO_REQUEST: Final = "no HTTP request"
NO_TIME: Final = "no such time"
FUTURE: Final = "more than ten minutes in the future: set the clock"
TORN: Final = "torn: it has no end"
COLUMNS: Final = ("about", "trace_id", "span_id", "start_ns", "duration_ns", "path")
STAMPS: Final = 64  # times of which equal lines are told apart: workers write a few seconds out of order at most
NOTHING: Final = dict[bytes, int]()
MAX_KNOWN: Final = 20_000
TRAFFIC: Final = ABOUT.index("traffic")


Alike = OrderedDict[bytes, dict[bytes, int]]  # time → line → how many so far


class Lines(NamedTuple):
    """Some lines of a log as they travel: each a row of COLUMNS, tab separated, with its number in `abouts`."""

    abouts: dict[int, tuple[object, ...]]  # what repeats among them, each in the order of span.ABOUT
    rows: bytes  # ids in hex, times in nanoseconds
    total: int


class _Known(NamedTuple):
    """What lines alike in all but time and id have in common."""

    number: int  # in Lines.abouts
    as_poll: int
    call: str  # what a rhythm is asked about; empty where it can be no poll
    client: str
    timed: bool
    is_page: bool


@dataclass(slots=True)
class Tally:
    """What was read. Every line is in `lines`, and in one of the others or among what was passed on."""

    lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    examples: dict[str, str] = field(default_factory=dict)  # reason → the first such line
    left_out: int = 0  # not between since and until
    alike: int = 0  # equal to the end of the file before: counted as the same requests, and may be others

    def drop(self, reason: str, line: bytes) -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, line[:200].decode("utf-8", "backslashreplace"))


class Log:
    """Reads a log, file after file as they were written, each from its beginning. Not for several threads at once.

    Requests that began before `since_ns`, or not before `until_ns`, are left out.
    """

    def __init__(self, origin: Origin, tally: Tally, *, since_ns: int = 0, until_ns: int = 2**62) -> None:
        self.tally = tally
        self._origin = origin
        self._since_ns, self._until_ns = since_ns, until_ns
        self._rhythm = Rhythm()
        self._alike: Alike = OrderedDict()  # of this file
        self._before: Alike = OrderedDict()  # at the end of the file before

    def open_file(self, form: Format, *, copy: bool = False) -> None:
        """Another file: equal lines are counted from one again, as when only it is read.

        `copy`: it begins as the one before does, so what it has is the same.
        """
        place = {name: number + 1 for number, name in enumerate(form.variables)}  # the whole line is first
        self._form = form
        self._clock = CLOCKS[form.time]
        self._resolution_ns = 0 if form.time == "msec" else SECOND
        said = (*TOLD, *USERS) if self._origin.users else TOLD
        self._asked, self._told = ([name for name in of if name in place] for of in (ASKED, said))
        self._what = itemgetter(*(place[name] for name in self._asked))
        self._one = self._asked == ["request"]
        self._rest = itemgetter(*(place[name] for name in self._told))
        self._refers = "http_referer" in place  # it is the first then
        self._place = place[form.time], place.get("request_time"), place.get("request_id")
        self._before, self._alike = OrderedDict() if copy else self._alike, OrderedDict()
        self._paths: dict[bytes | tuple[bytes, ...], Asked | None] = {}
        self._start_anew()

    def _start_anew(self) -> None:
        self._known: dict[tuple[object, ...], _Known] = {}
        self._abouts: list[tuple[object, ...]] = []

    def read(self, piece: bytes, now_ns: int) -> Lines:
        """What whole lines tell, as of now: nothing in the log is later."""
        if len(self._known) > MAX_KNOWN:
            self._start_anew()
        if len(self._paths) > MAX_KNOWN:
            self._paths.clear()
        self._latest_ns = now_ns + AHEAD_NS
        found = self._form.pattern.findall(piece)
        lines = piece.count(b"\n")
        self.tally.lines += lines
        if len(found) != lines:
            self._look_for_others(piece)
        self._used: set[int] = set()
        rows = list(filter(None, map(self._row, found)))
        return Lines({number: self._abouts[number] for number in self._used}, "".join(rows).encode(), len(rows))

    def hear(self, piece: bytes, now_ns: int) -> None:
        """Lines that were told before: they count for nothing but rhythms and equal lines."""
        tally, self.tally = self.tally, Tally()
        self.read(piece, now_ns)
        self.tally = tally

    def torn(self, line: bytes) -> None:
        """The end of a file that does not end with a line."""
        self.tally.lines += 1
        self.tally.drop(TORN, line)

    def _look_for_others(self, piece: bytes) -> None:
        for line in piece.split(b"\n")[:-1]:
            if not self._form.pattern.fullmatch(line):
                self.tally.drop(NO_FIT, line)

    def _row(self, found: tuple[bytes, ...]) -> str | None:
        time, took, request_id = self._place
        try:
            at_ns = self._clock(found[time], self._origin.zone)
        except (ValueError, OverflowError):
            self.tally.drop(NO_TIME, found[0])
            return None
        if not 0 < at_ns <= self._latest_ns:
            self.tally.drop(FUTURE if at_ns > 0 else NO_TIME, found[0])
            return None
        key = self._what(found)
        if self._one and b"?" in key:  # the query would make every line another
            head, _, rest = key.partition(b"?")
            version = rest.rpartition(b" ")[2]
            key = head + b" " + version if version.startswith(b"HTTP/") else head
        what = self._paths.get(key) or self._ask(key)
        if what is None:
            self.tally.drop(NO_REQUEST, found[0])
            return None
        known = self._know(what, self._rest(found))
        start_ns, duration = at_ns, ""
        if took is not None and (taken := found[took]) != b"-":
            duration_ns = int(taken.replace(b".", b"")) * 10**6
            start_ns = max(1, at_ns - duration_ns)
            duration = str(duration_ns) if known.timed else ""
        ids = found[request_id].decode() if request_id is not None else self._id(found[time], found[0])
        number = self._number(known, start_ns)
        if not self._since_ns <= start_ns < self._until_ns:
            self.tally.left_out += 1
            return None
        self._used.add(number)
        return f"{number}\t{ids[:32]}\t{ids[32:] or ids[:16]}\t{start_ns}\t{duration}\t{what.path}\n"

    def _number(self, known: _Known, start_ns: int) -> int:
        if known.call:
            if self._rhythm.is_poll(known.client, known.call, start_ns, self._resolution_ns):
                return known.as_poll
        elif known.is_page:
            self._rhythm.page(known.client, start_ns)
        return known.number

    def _id(self, time: bytes, line: bytes) -> str:
        alike = self._alike.get(time)
        if alike is None:
            alike = self._alike[time] = {}
            if len(self._alike) > STAMPS:
                self._alike.popitem(last=False)
        number = alike[line] = alike.get(line, 0) + 1
        if self._before and self._before.get(time, NOTHING).get(line, 0) >= number:
            self.tally.alike += 1
        return blake2b(b"%d %b" % (number, line), digest_size=24).hexdigest()

    def _ask(self, key: bytes | tuple[bytes, ...]) -> Asked | None:
        values = (key,) if isinstance(key, bytes) else key
        what = plainly_asked(values[0]) if self._one else None
        what = self._paths[key] = what or asked(dict(zip(self._asked, values, strict=True)))
        return what

    def _know(self, what: Asked, rest: tuple[bytes, ...]) -> _Known:
        """What was called from counts without its query, which would make every line another."""
        if self._refers:
            rest = (rest[0].partition(b"?")[0], *rest[1:])
        key = what.method, what.template, rest
        return self._known.get(key) or self._learn(key, what, rest)

    def _learn(self, key: tuple[object, ...], what: Asked, rest: tuple[bytes, ...]) -> _Known:
        found = told(what, dict(zip(self._told, rest, strict=True)), self._origin)
        number, is_call = len(self._abouts), found.traffic == "api"
        self._abouts += [found.about, _as_poll(found.about)] if is_call else [found.about]
        call = f"{what.method} {what.template}" if is_call else ""
        known = _Known(number, number + 1, call, found.client, found.timed, found.traffic == "page")
        self._known[key] = known
        return known


def _as_poll(about: tuple[object, ...]) -> tuple[object, ...]:
    return (*about[:TRAFFIC], "poll", *about[TRAFFIC + 1 :])
