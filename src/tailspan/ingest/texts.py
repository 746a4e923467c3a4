"""Lines without nginx's request id: each is known by its text, and by how many like it its file had before."""

from hashlib import blake2b
from typing import Final

from tailspan.ingest.tally import Tally

NO_OFFSET: Final = len("01/Mar/2026:11:00:00")  # of a time that is of no zone: its line's own id ends with zeros
STAMPS: Final = 64  # times of which equal lines are told apart: workers write a few seconds out of order at most
NOTHING: Final = dict[str, int]()

Alike = dict[bytes, dict[str, int]]  # time → id of the first such line → how many so far; the oldest time first


class Texts:
    """The ids of one service's lines, file after file."""

    def __init__(self, service: str) -> None:
        self._service = service.encode()  # equal lines of two services are two requests
        self._first = self._begun(1)
        self._alike: Alike = {}  # of this file
        self._read: Alike = {}  # at the end of the files before: several may have been rotated in one second
        self._before: Alike = {}  # those of them that are in doubt

    def open_file(self, *, copy: bool) -> None:
        """Equal lines are counted from one again; of a copy of the file before they are the same as there."""
        self._read, self._alike = _both(self._read, self._alike), {}
        self._before = {} if copy else self._read

    def go_on_from(self, before: "Texts") -> None:
        """Lines that equal some at its end are in doubt."""
        self._before = self._read = _both(before._read, before._alike)

    def ids(self, time: bytes, line: bytes, tally: Tally) -> str:
        """Of trace and span, in hex. In the tally a line is alike that may be another request than it is taken for."""
        alike = self._alike.get(time)
        if alike is None:
            alike = self._alike[time] = {}
            if len(self._alike) > STAMPS:
                del self._alike[next(iter(self._alike))]
        content = self._first.copy()
        content.update(line)
        ids = content.hexdigest()
        number = alike[ids] = alike.get(ids, 0) + 1
        if self._before and self._before.get(time, NOTHING).get(ids, 0) >= number:
            tally.alike += 1
        if number > 1:
            content = self._begun(number)
            content.update(line)
            ids = content.hexdigest()
        return ids if len(time) != NO_OFFSET else f"{ids[:40]}00000000"

    def _begun(self, number: int) -> "blake2b":
        return blake2b(b"%d %s " % (number, self._service), digest_size=24)


def _both(before: Alike, alike: Alike) -> Alike:
    """Of the newest times, how many equal lines one file had at most."""
    both = {time: dict(lines) for time, lines in before.items()}
    for time, lines in alike.items():
        known = both.pop(time, {})
        both[time] = known | {line: max(count, known.get(line, 0)) for line, count in lines.items()}
    return dict(list(both.items())[-STAMPS:])
