"""Log files as they lie about: plain or gzipped, rotated, of another's, still growing."""

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from io import BufferedReader, BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple, cast

from tailspan.errors import CutError, FormatError
from tailspan.ingest.line import CLOCKS
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import SAFE, UNSAFE, Format, detected
from tailspan.logtrouble import (
    GZIP,
    PACKED,
    STDIN,
    check_file,
    check_unpacked,
    cut,
    shown_path,
    unknown_format,
    unreadable,
)

MAGIC: Final = max(map(len, PACKED))
BROKEN: Final = (EOFError, zlib.error, gzip.BadGzipFile)  # what a packed file is that is not whole
LOOKED_AT: Final = 50  # lines, to know the format
PIECE: Final = 4 * 2**20
MAX_LINE: Final = 2**20  # nginx's own headers are shorter by far
WARM_UP: Final = 2**20  # bytes that tell rhythms and equal lines
BEFORE: Final = 256  # bytes that tell whether a file is still the one that was read to there


class LogState(NamedTuple):
    """What an answer says of a log that the server reads by itself."""

    state: Literal["ok", "no data yet", "behind", "dropping", "unreadable"]
    message: str


class LogFile(NamedTuple):
    """A file whose format is known, and where it belongs in time."""

    path: str  # "-" for standard input
    form: Format
    first_ns: int  # of its first line that has a time
    key: str  # of its first line: the same wherever it is moved or copied to
    is_packed: bool = False


class Piped:
    """Standard input, whose beginning may be looked at before it is read."""

    def __init__(self) -> None:
        self._head = b""

    def begin(self) -> bytes:
        """Waits for a whole line, or the end, or more than a line may have."""
        there, new = cast(BufferedReader, sys.stdin.buffer), self._head
        while b"\n" not in new and len(self._head) <= MAX_LINE and (new := there.read1(PIECE)):
            self._head += new
        return self._head

    def read(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + sys.stdin.buffer.read(size - len(head))


@cache
def piped() -> Piped:
    return Piped()


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Its content, unpacked. Raises LogError, also while it is read, with what mends it; CutError of packed ones."""
    try:
        if path == STDIN:
            yield cast(IO[bytes], piped())
            return
        with Path(path).open("rb") as file:
            begin = file.read(MAGIC)
            file.seek(0)
            if begin.startswith(GZIP):
                yield cast(IO[bytes], gzip.GzipFile(fileobj=file))
                return
            check_unpacked(path, begin)
            yield file
    except BROKEN as problem:
        raise cut(path, str(problem)) from None
    except OSError as problem:
        raise unreadable(path, problem) from None


def look(path: str, formats: Iterable[Format], zone: str) -> LogFile | None:
    """None for a file without a whole line. Raises LogError where it cannot be read, or is in none of the formats."""
    formats, first, is_packed = list(formats), list[bytes](), False
    check_file(path)
    try:
        with opened(path) as file:
            is_packed = isinstance(file, gzip.GzipFile)
            if path == STDIN:
                check_unpacked(path, begin := piped().begin())
                file = BytesIO(begin)
            first.extend(line.rstrip(b"\r\n") for line in islice(_whole_lines(file), LOOKED_AT))
    except CutError:
        if not first:
            raise
    if not first:
        return None
    form = detected(first, formats)
    if form is None:
        raise unknown_format(path, first[0], formats)
    if not form.is_safe:
        raise FormatError(f"{shown_path(path)} cannot be believed. {UNSAFE.format(form.name)}", value=path, fix=SAFE)
    return LogFile(path, form, _first_time(form, first, zone), key_of(first[0]), is_packed)


def torn(path: str) -> bytes:
    """What there is in a file that has no whole line. Raises likewise."""
    if path == STDIN:
        return piped().begin()
    with opened(path) as file:
        return file.read(BEFORE)


def is_still(file: LogFile, content: IO[bytes]) -> bool:
    """Whether that is its content, which then stands at its beginning: another may have got its name since."""
    content.seek(0)
    first = next(_whole_lines(content), b"")
    content.seek(0)
    return key_of(first.rstrip(b"\r\n")) == file.key


def key_of(line: bytes) -> str:
    return blake2b(line, digest_size=16).hexdigest()


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        if line.endswith(b"\n"):
            yield line


def _first_time(form: Format, lines: Iterable[bytes], zone: str) -> int:
    place = form.variables.index(form.time) + 2
    for line in lines:
        if found := form.pattern.fullmatch(line):
            try:
                return CLOCKS[form.time](found[place], zone)
            except (ValueError, OverflowError):
                continue
    return 0


def in_order(files: Iterable[LogFile]) -> list[LogFile]:
    """Oldest first: as they were written, whatever they are called."""
    return sorted(files, key=lambda file: (file.first_ns, file.path))


class Piece(NamedTuple):
    """Whole lines of a file; before them may have been one that is longer than any, as after a crash: `endless`."""

    content: bytes
    read_to: int  # position after them, in the unpacked file
    before: str  # of the bytes before that; empty where the last line has no end
    endless: bytes = b""  # how that one begins


def pieces(file: IO[bytes], position: int = 0, limit: int | None = None) -> Iterator[Piece]:
    """What there is from `position` on, where the file stands; at most up to `limit`.

    Raises what `opened` makes a CutError of, after what could be unpacked.
    """
    rest, endless, problems = b"", b"", list[BaseException]()
    while more := _read(file, PIECE if limit is None else max(0, min(PIECE, limit - position - len(rest))), problems):
        head, end, tail = more.rpartition(b"\n")
        if end:
            content = rest + head + end
            position += len(content)
            yield Piece(content.partition(b"\n")[2] if endless else content, position, digest(content), endless)
            rest, endless = tail, b""
        elif len(rest := rest + more) > MAX_LINE:  # of it only the end is wanted, to know the place by
            endless = endless or rest[:BEFORE]
            position, rest = position + len(rest) - BEFORE, rest[-BEFORE:]
    if rest:
        yield Piece(endless or rest, position, "")
    for problem in problems:
        raise problem


def _read(file: IO[bytes], size: int, problems: list[BaseException]) -> bytes:
    """As many bytes, or all that there are up to the end or to what is broken, which goes into `problems`."""
    if not isinstance(file, gzip.GzipFile):
        return file.read(size)
    content = bytearray()
    try:
        while not problems and len(content) < size and (more := file.read1(size - len(content))):
            content += more
    except BROKEN as problem:
        problems.append(problem)
    return bytes(content)


def digest(content: bytes) -> str:
    """How many bytes before a position, and their hash."""
    known = content[-BEFORE:]
    return f"{len(known)}-{blake2b(known, digest_size=16).hexdigest()}"


def is_as_read(file: IO[bytes], read_to: int, before: str) -> bool:
    """Whether the file up to `read_to` is what was read; if so it stands there then, else at its beginning."""
    length = int(before.partition("-")[0] or 0)
    if 0 < length <= read_to:
        file.seek(read_to - length)
        if digest(file.read(length)) == before and file.tell() == read_to:
            return True
    file.seek(0)
    return False


def hear(log: Log, file: IO[bytes], position: int, now_ns: int) -> None:
    """Lets the log know what stands just before there, which was told before. The file stands there afterwards."""
    begin = max(0, position - WARM_UP)
    file.seek(begin)
    heard = file.read(position - begin)
    log.hear(heard if begin == 0 else heard.partition(b"\n")[2], now_ns)
