"""Log files as they lie about: plain or gzipped, rotated, of another's, still growing."""

import gzip
import os
import pwd
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

from tailspan.errors import LogError
from tailspan.ingest.line import CLOCKS
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import Format, detected

GZIP: Final = b"\x1f\x8b"
LOOKED_AT: Final = 50  # lines, to know the format
STDIN: Final = "-"
PIECE: Final = 4 * 2**20
MAX_LINE: Final = 2**20  # nginx's own headers are shorter by far
WARM_UP: Final = 2**20  # bytes that tell rhythms and equal lines
BEFORE: Final = 256  # bytes that tell whether a file is still the one that was read to there


class LogState(NamedTuple):
    """What an answer says of a log that the server reads by itself."""

    state: Literal["ok", "no data yet", "behind", "unreadable"]
    message: str


class LogFile(NamedTuple):
    """A file whose format is known, and where it belongs in time."""

    path: str  # "-" for standard input
    form: Format
    first_ns: int  # of its first line that has a time
    key: str  # of its first line: the same wherever it is moved or copied to


class Piped:
    """Standard input, whose beginning may be looked at before it is read."""

    def __init__(self) -> None:
        self._head = b""

    def begin(self) -> bytes:
        """Waits for a whole line, or the end."""
        there = cast(BufferedReader, sys.stdin.buffer)
        while b"\n" not in self._head and (more := there.read1(PIECE)):
            self._head += more
        return self._head

    def read(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + sys.stdin.buffer.read(size - len(head))


@cache
def piped() -> Piped:
    return Piped()


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Its content, unpacked. Raises LogError, also while it is read, with what mends it."""
    try:
        if path == STDIN:
            yield cast(IO[bytes], piped())
            return
        with Path(path).open("rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        fix = "It is cut off: what could be unpacked was read."
        raise LogError(f"{path} cannot be unpacked: {problem}.", value=path, fix=fix) from None
    except OSError as problem:
        raise unreadable(path, problem) from None


def unreadable(path: str, problem: OSError) -> LogError:
    """What is wrong, and the command that mends it."""
    there = Path(path)
    if isinstance(problem, FileNotFoundError):
        near = next((parent for parent in there.parents if parent.is_dir()), Path("/"))
        fix = f"Look for it: ls -l {near}. In a container the log's directory is mounted read-only."
    elif isinstance(problem, IsADirectoryError):
        fix = f"Name its files: {path.rstrip('/')}/access.log*"
    elif isinstance(problem, PermissionError):
        fix = _may_read(there)
    else:
        fix = "Look at the disk."
    return LogError(f"{path} cannot be read: {problem.strerror}.", value=path, fix=fix)


def is_full(folder: Path) -> bool:
    """Whether nobody but root may write there."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_blocks > 0 and disk.f_bavail == 0


def _may_read(path: Path) -> str:
    blocked = next(
        (parent for parent in reversed(path.parents) if not os.access(parent, os.X_OK, effective_ids=True)), path
    )
    owner = ""
    try:
        stat = blocked.stat()
        owner = f"It belongs to uid {stat.st_uid}, group {stat.st_gid}; this is uid {os.geteuid()}. "
    except OSError:
        pass
    right = "rx" if blocked != path else "r"
    return f"{owner}Allow it: sudo setfacl -m u:{_name()}:{right} {blocked}"


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def look(path: str, formats: Iterable[Format], zone: str) -> LogFile | None:
    """None for an empty file. Raises LogError where it cannot be read, or is in none of the formats."""
    formats = list(formats)
    with opened(path) as file:
        begin = BytesIO(piped().begin()) if path == STDIN else file
        first = [line.rstrip(b"\r\n") for line in islice(_whole_lines(begin), LOOKED_AT)]
    if not first:
        return None
    form = detected(first, formats)
    if form is None:
        raise unknown_format(path, first[0], formats)
    return LogFile(path, form, _first_time(form, first, zone), key_of(first[0]))


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


def unknown_format(path: str, line: bytes, formats: Iterable[Format]) -> LogError:
    shown = line[:300].decode("utf-8", "backslashreplace")
    tried = "\n".join(f"  {form.name}: {form.text}" for form in formats)
    return LogError(
        f"{path} is in none of these formats:\n{tried}\nIts first line: {shown}\n",
        value=path,
        fix="Give the log_format of your nginx.conf: tailspan backfill --format '<its string>' …",
    )


def in_order(files: Iterable[LogFile]) -> list[LogFile]:
    """Oldest first: as they were written, whatever they are called."""
    return sorted(files, key=lambda file: (file.first_ns, file.path))


class Piece(NamedTuple):
    """Whole lines of a file."""

    content: bytes
    read_to: int  # position after them, in the unpacked file
    before: str  # of the bytes before that; empty where the last line has no end


def pieces(file: IO[bytes], position: int = 0, limit: int | None = None) -> Iterator[Piece]:
    """What there is from `position` on, where the file stands; at most up to `limit`."""
    rest = b""
    while more := file.read(PIECE if limit is None else max(0, min(PIECE, limit - position - len(rest)))):
        head, end, tail = more.rpartition(b"\n")
        if end:
            content = rest + head + end
            position += len(content)
            yield Piece(content, position, digest(content))
            rest = tail
        elif len(rest := rest + more) > MAX_LINE:
            raise LogError("No line ends within a megabyte: that is no log.")
    if rest:
        yield Piece(rest, position, "")


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
