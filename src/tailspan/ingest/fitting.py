"""Which format each line of a file is in: nginx's settings change while it writes, or write each request twice."""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from tailspan.ingest.line import CLOCKS, SECOND
from tailspan.ingest.nginx import TIMES, Format, unescaped
from tailspan.ingest.tally import Tally

NO_FIT: Final = "not in the format"
TWICE: Final = "two formats in one file, and the line before tells of the same request: nginx writes each twice"
AT_ONCE: Final = 2**16  # bytes: what is found in many more takes an eighth of the time to keep
NEAR: Final = 64  # lines among which nginx writes a request again in another format, whatever its workers write between
WHAT: Final = ("request", "request_uri")

Groups = tuple[bytes, ...]  # the whole line, then what its format's variables say
Fit = tuple[Format, Groups]


class _Near(NamedTuple):
    """A line that was read just now."""

    form: Format
    at: int  # in seconds
    told: dict[str, bytes]  # by variable, as the client sent it

    def is_twin(self, other: "_Near") -> bool:
        """Whether that line in another format tells of the same request: they agree in all that both tell."""
        if self.form is other.form or self.at != other.at:
            return False
        both = self.told.keys() & other.told.keys()
        return not both.isdisjoint(WHAT) and all(self.told[name] == other.told[name] for name in both)


class Fitting:
    """A file's lines, each in the format that it is in: as a rule that of the line before, else one of `formats`."""

    def __init__(self, form: Format, formats: Sequence[Format], zone: str) -> None:
        self.unfit = 0  # of the newest lines, how many are in no format
        self._form = form
        self._formats = [one for one in formats if one.is_safe]
        self._zone = zone
        self._near: deque[_Near] = deque(maxlen=NEAR)
        self._newest: list[Groups] = []  # likewise, in the format that is read now: in most logs nobody ever asks

    def found(self, piece: bytes, tally: Tally) -> Iterator[tuple[Format, list[Groups]]]:
        """What whole lines tell, by format: where all are in one by a few hundred at once, else one by one."""
        begin = 0
        while some := _whole_lines(piece, begin):
            begin += len(some)
            found = list(map(re.Match.groups, self._form.pattern.finditer(some)))
            if len(found) == some.count(b"\n"):
                self.unfit = 0
                self._newest = found[-NEAR:]
                yield self._form, found
                continue
            self._near.extend(self._line(self._form, one) for one in self._newest)
            self._newest = []
            for form, fits in groupby(self._one_by_one(some, tally), itemgetter(0)):
                yield form, [groups for _, groups in fits]

    def _one_by_one(self, piece: bytes, tally: Tally) -> Iterator[Fit]:
        """Of two lines that tell of the same request the first, wherever a piece ends."""
        for line in piece.split(b"\n")[:-1]:
            fit = self._fit(line)
            if fit is None:
                self.unfit += 1
                tally.drop(NO_FIT, line)
                continue
            self.unfit = 0
            self._form = fit[0]
            told = self._line(*fit)
            if twin := next(filter(told.is_twin, self._near), None):
                self._near.remove(twin)
                tally.drop(TWICE, line)
                continue
            self._near.append(told)
            yield fit

    def _fit(self, line: bytes) -> Fit | None:
        for form in (self._form, *self._formats):
            if found := form.pattern.fullmatch(line):
                return form, found.groups()
        return None

    def _line(self, form: Format, groups: Groups) -> _Near:
        told = dict(zip(form.variables, groups[1:], strict=True))
        try:
            at = CLOCKS[form.time](told[form.time], self._zone) // SECOND
        except (ValueError, OverflowError):
            at = 0
        said = {name: b"" if value == b"-" else unescaped(value) for name, value in told.items() if name not in TIMES}
        return _Near(form, at, said)


def _whole_lines(piece: bytes, begin: int) -> bytes:
    """At least one where there is one, and AT_ONCE bytes where one fits in."""
    end = piece.rfind(b"\n", begin, begin + AT_ONCE) if begin + AT_ONCE < len(piece) else piece.rfind(b"\n", begin)
    return piece[begin : (end if end >= 0 else piece.find(b"\n", begin)) + 1]
