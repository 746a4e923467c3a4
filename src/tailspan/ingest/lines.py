"""A log's lines on their way in: which request each is, and what is dropped, with its reason and an example.

A line with nginx's request id has the ids that nginx gave its service as `traceparent`: the service's own span names
them as its parent. A line without one is known by its text (texts.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from tailspan_otel.traffic import Rhythm

from tailspan.ingest import AHEAD_NS
from tailspan.ingest.fitting import Fitting, Groups
from tailspan.ingest.line import ASKED, CLOCKS, SECOND, TOLD, Asked, Origin, asked, plainly_asked, told
from tailspan.ingest.nginx import Format
from tailspan.ingest.tally import Tally
from tailspan.ingest.texts import Texts
from tailspan.span import ABOUT

NO_REQUEST: Final = "no HTTP request"
NO_TIME: Final = "no such time"
FUTURE: Final = "more than ten minutes in the future: set the clock"
COLUMNS: Final = ("about", "trace_id", "span_id", "start_ns", "duration_ns", "open_ns", "path")
MAX_HELD: Final = 40 * 2**20  # bytes that are remembered of what lines say
HELD: Final = 400  # bytes about each, beside what it says
MAX_CALLED: Final = 65_536  # some 20 MB, as no long ones are remembered
LONG: Final = 256  # bytes
POLLED: Final = ABOUT.index("polled")


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
    caller: str
    timed: bool
    is_page: bool


class _Called(NamedTuple):
    """What lines have in common that ask for the same."""

    what: Asked
    path: str
    known: dict[tuple[bytes, ...], _Known]  # by the rest of what they tell; of all paths of one template


class Log:
    """Reads a log, file after file as they were written, each from its beginning. Not for several threads at once.

    Requests that began before `since_ns`, or not before `until_ns`, are left out.
    """

    def __init__(self, origin: Origin, tally: Tally, *, since_ns: int = 0, until_ns: int = 2**62) -> None:
        self.tally = tally
        self._origin = origin
        self._since_ns, self._until_ns = since_ns, until_ns
        self._rhythm = Rhythm()
        self._texts = Texts(origin.service)

    def open_file(self, form: Format, formats: Sequence[Format] = (), *, copy: bool = False) -> None:
        """Another file. Its lines that are not in this format may be in one of `formats`.

        `copy`: it begins as the one before does, so what it has is the same.
        """
        self.ahead = False  # whether some are in the future: another run may take them
        self._fitting = Fitting(form, formats, self._origin.zone)
        self._texts.open_file(copy=copy)
        self._abouts: list[tuple[object, ...]] = []
        self._held = 0  # bytes of these and of what they are known by
        self._use(form)

    def _use(self, form: Format) -> None:
        place = {name: number + 1 for number, name in enumerate(form.variables)}  # the whole line is first
        self._form = form
        self._clock = CLOCKS[form.time]
        self._resolution_ns = 0 if form.time == "msec" else SECOND
        self._asked, self._told = ([name for name in of if name in place] for of in (ASKED, TOLD))
        self._what = itemgetter(*(place[name] for name in self._asked))
        self._one = self._asked == ["request"]
        self._rest = itemgetter(*(place[name] for name in self._told))
        self._refers = "http_referer" in place  # it is the first then
        self._place = place[form.time], place.get("request_time"), place.get("request_id")
        self._learn_anew()

    def _learn_anew(self) -> None:
        self._called: dict[bytes | tuple[bytes, ...], _Called | None] = {}
        self._known: dict[tuple[str, str], dict[tuple[bytes, ...], _Known]] = {}  # by method and template

    @property
    def unfit(self) -> int:
        """Of the newest lines, how many are in no format."""
        return self._fitting.unfit

    def go_on_from(self, before: "Log") -> None:
        """Whoever called by that one's rhythm still does: an open tab polls on while files are rotated."""
        self._rhythm = before._rhythm
        self._texts.go_on_from(before._texts)

    def doubt(self, other: "Log") -> None:
        """Lines that equal some at the end of that one's may be others."""
        self._texts.go_on_from(other._texts)

    def read(self, piece: bytes, now_ns: int) -> Lines:
        """What whole lines tell, as of now: nothing in the log is later."""
        if self._held > MAX_HELD:
            self._abouts, self._held = [], 0
            self._learn_anew()
        if len(self._called) > MAX_CALLED:
            self._called.clear()
        self._latest_ns = now_ns + AHEAD_NS
        self.tally.lines += piece.count(b"\n")
        used: set[int] = set()
        rows: list[str] = []
        for form, found in self._fitting.found(piece, self.tally):
            if form is not self._form:
                self._use(form)
            rows += self._rows(found, used)
        abouts = {number: self._abouts[number] for number in used}
        return Lines(abouts, "".join(rows).encode(), len(rows) - rows.count(""))

    def hear(self, piece: bytes, now_ns: int) -> None:
        """Lines that were told before: they count for nothing but rhythms and equal lines.

        Which of these are in doubt is told again: it may be since another file is read now that was not read then.
        """
        tally, self.tally = self.tally, Tally()
        self.read(piece, now_ns)
        tally.alike += self.tally.alike
        self.tally = tally

    def _rows(self, found: Iterable[Groups], used: set[int]) -> Iterator[str]:
        """A row for each; empty where a line is dropped or left out. Into `used` go the numbers in `_abouts`.

        All in one place: each call that is made for every line is a twentieth of the time.
        """
        time, took, request_id = self._place
        clock, zone, called, is_poll = self._clock, self._origin.zone, self._called, self._rhythm.is_poll
        ids_of = self._texts.ids
        for one in found:
            try:
                at_ns = clock(one[time], zone)
            except (ValueError, OverflowError):
                self.tally.drop(NO_TIME, one[0])
                yield ""
                continue
            if not 0 < at_ns <= self._latest_ns:
                self.ahead |= at_ns > 0
                self.tally.drop(FUTURE if at_ns > 0 else NO_TIME, one[0])
                yield ""
                continue
            key = self._what(one)
            if self._one and b"?" in key:  # the query would make every line another
                key = _without_query(key)
            asked_for = called.get(key) or self._ask(key)
            if not asked_for:
                self.tally.drop(NO_REQUEST, one[0])
                yield ""
                continue
            what, path, known = asked_for
            rest = self._rest(one)
            if self._refers and b"?" in rest[0]:  # likewise
                rest = (rest[0].partition(b"?")[0], *rest[1:])
            number, as_poll, call, caller, timed, is_page = known.get(rest) or self._learn(what, rest)
            start_ns, lasted = at_ns, "\t"
            if took is not None and (taken := one[took]) != b"-":
                duration_ns = int(taken.replace(b".", b"")) * 10**6
                start_ns = max(1, at_ns - duration_ns)
                lasted = f"{duration_ns}\t" if timed else f"\t{duration_ns}"
            ids = ids_of(one[time], one[0], self.tally) if request_id is None else one[request_id].decode()
            if call:
                if is_poll(caller, call, start_ns, self._resolution_ns):
                    number = as_poll
            elif is_page:
                self._rhythm.page(caller, start_ns)
            if not self._since_ns <= start_ns < self._until_ns:
                self.tally.left_out += 1
                yield ""
                continue
            used.add(number)
            yield f"{number}\t{ids[:32]}\t{ids[32:] or ids[:16]}\t{start_ns}\t{lasted}\t{path}\n"

    def _ask(self, key: bytes | tuple[bytes, ...]) -> _Called | None:
        values = (key,) if isinstance(key, bytes) else key
        what = plainly_asked(values[0]) if self._one else None
        what = what or asked(dict(zip(self._asked, values, strict=True)))
        known = self._known.setdefault((what.method, what.template), {}) if what else {}
        called = _Called(what, what.path, known) if what else None
        if sum(map(len, values)) < LONG:
            self._called[key] = called
        return called

    def _learn(self, what: Asked, rest: tuple[bytes, ...]) -> _Known:
        """What was called counts by its template: a number in it would make every line another."""
        found = told(what, dict(zip(self._told, rest, strict=True)), self._origin)
        number, is_call = len(self._abouts), found.traffic == "api"
        self._abouts += [found.about, _as_poll(found.about)] if is_call else [found.about]
        call = f"{what.method} {what.template}" if is_call else ""
        self._held += HELD + 2 * sum(map(len, rest))
        known = _Known(number, number + 1, call, found.caller, found.timed, found.traffic == "page")
        self._known[what.method, what.template][rest] = known
        return known


def _without_query(request: bytes) -> bytes:
    head, _, rest = request.partition(b"?")
    version = rest.rpartition(b" ")[2]
    return head + b" " + version if version.startswith(b"HTTP/") else head


def _as_poll(about: tuple[object, ...]) -> tuple[object, ...]:
    return (*about[:POLLED], True, *about[POLLED + 1 :])
