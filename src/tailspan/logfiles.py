"""Log files as they lie about: plain or gzipped, rotated, of another's, still growing."""

import errno
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
from shlex import quote
from shutil import which
from typing import IO, Final, Literal, NamedTuple, cast

from tailspan.errors import CutError, LogError
from tailspan.ingest import shown
from tailspan.ingest.line import CLOCKS
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import FORMATS, SAFE, UNSAFE, Format, detected

GZIP: Final = b"\x1f\x8b"
PACKED: Final = {  # how it begins, as its format's specification says → what packed it, and what unpacks it
    b"\xfd7zXZ\0": ("xz", "xzcat"),
    b"BZh": ("bzip2", "bzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    GZIP: ("gzip", "zcat"),
}
MAGIC: Final = max(map(len, PACKED))
BROKEN: Final = (EOFError, zlib.error, gzip.BadGzipFile)  # what a packed file is that is not whole
LOOKED_AT: Final = 50  # lines, to know the format
STDIN: Final = "-"
NAME_IT: Final = (
    "Give the file that has its log_format: --format /etc/nginx/nginx.conf, for the server TAILSPAN_NGINX_FORMAT. "
    "Where that includes others: sudo nginx -T > all.conf"
)
OTHER: Final = (
    f"Look which log_format the access_log of this file names, and give that; {', '.join(FORMATS)} are known without."
)
PIECE: Final = 4 * 2**20
MAX_LINE: Final = 2**20  # nginx's own headers are shorter by far
WARM_UP: Final = 2**20  # bytes that tell rhythms and equal lines
OF_LOGS: Final = ("logs", "nginx")  # in the name of a folder that has nothing but logs
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


def cut(path: str, reason: str) -> CutError:
    fix = "It is cut off, or being written; what could be unpacked is read."
    return CutError(f"{path} cannot be unpacked to its end: {reason.rstrip('.')}.", value=reason, fix=fix)


def check_file(path: str) -> None:
    """Raises LogError for what cannot be read again from its beginning, or is not there any more."""
    there = Path(path)
    try:
        if path == STDIN or there.is_file() or there.is_dir():
            return
    except OSError as problem:
        raise unreadable(path, problem) from None
    linked = f" links to {there.readlink()}, which" if there.is_symlink() else ""
    if there.exists():
        fix = "nginx's image has that: name another file in its access_log. A pipe: zcat FILE | tailspan backfill -"
        raise LogError(f"{path}{linked} is no file.", value=path, fix=fix)
    if linked:
        raise LogError(f"{path}{linked} is not there.", value=path, fix=f"Look for it, and mount it too: ls -l {path}")


def check_unpacked(path: str, begin: bytes) -> None:
    """Raises LogError, with the command that unpacks it."""
    for magic, (packer, unpacker) in PACKED.items():
        if begin.startswith(magic):
            name, given = ("Standard input", "") if path == STDIN else (path, f" {quote(path)}")
            fix = f"Unpack it, with the same options: {unpacker}{given} | tailspan backfill -"
            raise LogError(f"{name} is packed by {packer}, and not unpacked here.", value=path, fix=fix)


def unreadable(path: str, problem: OSError) -> LogError:
    """What is wrong, and the command that mends it."""
    there = Path(path)
    if isinstance(problem, FileNotFoundError):
        near = next((parent for parent in there.parents if parent.is_dir()), Path("/"))
        mounted = "In a container the log's directory is mounted read-only. " if near == Path("/") else ""
        fix = f"{mounted}Look for it: ls -l {near}"
    elif isinstance(problem, NotADirectoryError):
        fix = f"Name the file: {next(parent for parent in there.parents if parent.is_file())}"
    elif isinstance(problem, IsADirectoryError):
        fix = f"Name its files: {path.rstrip('/')}/access.log*"
    elif isinstance(problem, PermissionError):
        fix = _may_read(there)
    else:
        fix = "Look at the disk: sudo dmesg | tail"
    return LogError(f"{path} cannot be read: {problem.strerror}.", value=path, fix=fix)


def is_full(folder: Path) -> bool:
    """Whether nobody but root may write there."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_blocks > 0 and disk.f_bavail == 0


def full_disk(paths: Iterable[str]) -> LogError | None:
    """That logs which lie there are not written now, and what mends it."""
    for folder in {Path(path).parent for path in paths if path != STDIN}:
        if is_full(folder):
            told = f"The disk of {folder} is full: nginx does not write down what it sees now."
            return LogError(told, fix=f"Make room: df -h {folder}; sudo du -axh {folder} | sort -h | tail")
    return None


def unlisted(pattern: str) -> LogError | None:
    """Why none of that pattern's files may be seen; None where they may, or there is no such folder."""
    if not _closed(folder := Path(pattern).parent) and (not folder.exists() or _allows(folder, os.R_OK | os.X_OK)):
        return None
    return unreadable(pattern, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _allows(path: Path, rights: int) -> bool:
    return os.access(path, rights, effective_ids=True)


def _closed(path: Path) -> Path | None:
    """The first folder on the way there that may not be entered."""
    return next((folder for folder in reversed(path.parents) if folder.exists() and not _allows(folder, os.X_OK)), None)


def _may_read(path: Path) -> str:
    """For a folder of logs by a rule that holds for the files of the next rotation; in others there are secrets."""
    path = Path(os.path.realpath(path))
    folder, who = path.parent, f"u:{_name()}"
    closed = _closed(folder)
    blocked = closed or (path if _allows(folder, os.R_OK | os.X_OK) else folder)
    owner = ""
    try:
        stat = blocked.stat()
        owner = f"It belongs to uid {stat.st_uid}, group {stat.st_gid}; this is uid {os.geteuid()}. "
    except OSError:
        pass
    ways = [f"sudo setfacl -m {who}:x {closed}"] * (closed is not None)
    if any(name in part for part in folder.parts for name in OF_LOGS):
        ways.append(f"sudo setfacl -R -m {who}:rX -m d:{who}:rX {folder}")
    else:
        ways += [f"sudo setfacl -m {who}:rx {folder}"] * (blocked == folder) + [f"sudo setfacl -m {who}:r {path}"]
    return f"{owner}Allow it: {'; '.join(ways)}" + " (it is in the package acl)" * (which("setfacl") is None)


def _name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


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
        raise LogError(f"{path} cannot be believed. {UNSAFE.format(form.name)}", value=path, fix=SAFE)
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


def unknown_format(path: str, line: bytes, formats: Iterable[Format]) -> LogError:
    tried = {form.name: form.text for form in formats}
    told = "\n".join(f"  {name}: {text}" for name, text in tried.items())
    return LogError(
        f"{path} is in none of these formats:\n{told}\nIts first line: {shown(line)}\n",
        value=path,
        fix=NAME_IT if tried == FORMATS else OTHER,
    )


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
