"""`TAILSPAN_NGINX_LOG`: the server reads its proxy's log by itself, from where it stopped, through every rotation.

A file is known by its first line, and by what stands before the place it was read to: renamed, copied or packed it is
the same, truncated it is another. So nothing here knows how logs are rotated.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from io import BufferedReader
from pathlib import Path
from typing import IO, Final, NamedTuple

from tailspan.delivery import Place
from tailspan.errors import LogError, StoreError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log, Tally
from tailspan.ingest.nginx import Format
from tailspan.logfiles import LogFile, LogState, hear, is_as_read, is_full, look, opened, pieces
from tailspan.witness import Witness

PIECES_AT_ONCE: Final = 1  # then others may have their turn, or the server its end
REASONS: Final = 3  # that are told
LOGS: Final = 4  # that are remembered: one is written, one was until just now
AGAIN_S: Final = 600.0  # then a file is read from its beginning, where the store may have lost some of it


class _Seen(NamedTuple):
    """How a file looked when there was nothing more to read in it."""

    inode: int
    size: int
    changed_ns: int


class _Read(NamedTuple):
    """That a file was read to its end: how it looked, when first and when last."""

    seen: _Seen
    is_sure: bool  # the store keeps how far it was read, so it keeps what was read
    first_at: float
    last_at: float


class _Grown(NamedTuple):
    at: float
    seen: _Seen


class _Kept(NamedTuple):
    """How far a file was read of which the store keeps nothing."""

    place: Place
    whole_at: float | None  # when all of it was read last; None while it still is


class Follower:
    """Reads the files of some patterns into the ledger. Not for several threads at once.

    `state` is what an answer says of it: that it is read, that there is nothing to read, or what is in the way.
    """

    def __init__(
        self,
        patterns: tuple[str, ...],
        witness: Witness,
        clock_ns: Callable[[], int],
        formats: list[Format],
        origin: Origin,
        *,
        hold_s: float = 0,
    ) -> None:
        self.state = LogState("no data yet", f"{' '.join(patterns)} was not looked at yet.")
        self._patterns = patterns
        self._witness = witness
        self._clock_ns = clock_ns
        self._formats = formats
        self._origin = origin
        self._hold_s = hold_s  # what is younger is not read yet
        self._grown: dict[str, deque[_Grown]] = {}  # path → how it grew lately
        self._trouble: dict[str, LogError] = {}  # path → why it could not be read
        self._read: dict[str, _Read] = {}  # by path
        # of files by their first line, and how far each was read: the newest may have more
        self._logs: OrderedDict[str, tuple[Log, int]] = OrderedDict()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # likewise
        self._dropped = Tally()

    def step(self) -> bool:
        """Reads some of what is new; whether there is more. Raises nothing for what `state` tells."""
        paths = sorted({path for pattern in self._patterns for path in glob(pattern)})
        self._trouble = {path: problem for path, problem in self._trouble.items() if path in paths}
        try:
            for file, seen in sorted(self._changed(paths), key=lambda one: (one[0].first_ns, one[0].path)):
                is_new = self._is_new(file.path, seen)
                if not self._is_read(file, seen):
                    if is_new:
                        self.state = LogState("behind", f"{file.path} is being read: answers lack its end.")
                    return True
        except StoreError as problem:
            self.state = LogState("unreadable", str(problem))
            return False
        self.state = self._told(paths)
        return False

    def _changed(self, paths: list[str]) -> Iterator[tuple[LogFile, _Seen]]:
        for path in paths:
            with self._told_of(path):
                seen = self._look(path)
                if seen.size and (self._is_new(path, seen) or self._is_due(self._read[path])):
                    self._trouble.pop(path, None)
                    if file := look(path, self._formats, self._origin.zone):
                        yield file, seen

    def _is_new(self, path: str, seen: _Seen) -> bool:
        return path not in self._read or self._read[path].seen != seen

    def _is_due(self, read: _Read) -> bool:
        """Whether the store may have lost some of it by now: ever more seldom, as most losses are noticed soon."""
        ago_s = time.monotonic() - read.first_at
        return not read.is_sure and ago_s >= max(AGAIN_S, 2 * (read.last_at - read.first_at))

    @contextmanager
    def _told_of(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass  # rotated away just now
        except LogError as problem:
            self._trouble[path] = problem

    def _is_read(self, file: LogFile, seen: _Seen) -> bool:
        """Whether it was read to its end; one in trouble was, until it changes. Raises StoreError."""
        with self._told_of(file.path), opened(file.path) as content:
            if not self._advance(file, content, seen):
                return False
        now, before = time.monotonic(), self._read.get(file.path)
        first_at = before.first_at if before and before.seen == seen else now
        self._read[file.path] = _Read(seen, self._witness.place(file.key).read_to > 0, first_at, now)
        return True

    def _advance(self, file: LogFile, content: IO[bytes], seen: _Seen) -> bool:
        place, now_ns = self._place(file.key), self._clock_ns()
        position = place.read_to if is_as_read(content, place.read_to, place.before) else 0
        log, read_to, is_all = self._log(file, content, position, now_ns), position, True
        limit = seen.size if isinstance(content, BufferedReader) else None  # of a packed file all was seen
        for number, piece in enumerate(pieces(content, position, limit)):
            if number == PIECES_AT_ONCE:
                is_all = False
                break
            if piece.before:  # else its last line is still being written
                there = Place(file=file.key, read_to=piece.read_to, before=piece.before)
                self._witness.keep(log.read(piece.content, now_ns), there)
                self._keep(there, is_first=not read_to)
            read_to = piece.read_to
        self._remember(file, log, read_to)
        if is_all and (kept := self._kept.get(file.key)) and kept.whole_at is None:
            self._kept[file.key] = kept._replace(whole_at=time.monotonic())
        return is_all

    def _place(self, key: str) -> Place:
        """How far it was read: as the store says, or where that keeps nothing, as we know, for a while."""
        place, kept = self._witness.place(key), self._kept.get(key)
        if place.read_to or kept is None:
            return place
        is_fresh = kept.whole_at is None or kept.whole_at > time.monotonic() - AGAIN_S
        return kept.place if is_fresh else place

    def _keep(self, place: Place, *, is_first: bool) -> None:
        before = None if is_first else self._kept.pop(place.file, None)
        self._kept[place.file] = _Kept(place, before.whole_at if before else None)
        if len(self._kept) > LOGS:
            self._kept.popitem(last=False)

    def _remember(self, file: LogFile, log: Log, read_to: int) -> None:
        self._logs[file.key] = log, read_to
        if len(self._logs) > LOGS:
            self._logs.popitem(last=False)

    def _look(self, path: str) -> _Seen:
        """How the file is; how it was, where what was written since is held. Of size 0 where all of it is."""
        stat = Path(path).stat()
        seen = _Seen(stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if not self._hold_s:
            return seen
        now, grown = time.monotonic(), self._grown.setdefault(path, deque())
        if grown and (grown[-1].seen.inode != seen.inode or grown[-1].seen.size > seen.size):
            grown.clear()
        if not grown or grown[-1].seen != seen:
            grown.append(_Grown(now, seen))
        while len(grown) > 1 and grown[1].at <= now - self._hold_s:
            grown.popleft()
        return grown[0].seen if grown[0].at <= now - self._hold_s else seen._replace(size=0)

    def _log(self, file: LogFile, content: IO[bytes], position: int, now_ns: int) -> Log:
        """What reads on there: it knows what was before, as far as that matters.

        It is forgotten until the store took what it reads next, or it would count that twice.
        """
        log, read_to = self._logs.pop(file.key, (None, 0))
        if log is None or not 0 < position == read_to:
            log = Log(self._origin, self._dropped)
            log.open_file(file.form)
            hear(log, content, position, now_ns)
        return log

    def _told(self, paths: list[str]) -> LogState:
        if self._trouble:
            return LogState("unreadable", str(next(iter(self._trouble.values()))))
        where = " ".join(self._patterns)
        if not paths:
            near = Path(self._patterns[0]).parent
            return LogState("unreadable", f"No file is called {where}. Look for it: ls -l {near}")
        if full := next((folder for folder in {Path(path).parent for path in paths} if is_full(folder)), None):
            told = f"The disk of {full} is full: nginx does not write down what it sees now."
            return LogState("unreadable", f"{told} Make room: df -h {full}; sudo du -xh {full} | sort -h | tail")
        dropped = "; ".join(
            f"{count:,} lines dropped: {reason}, as in: {self._dropped.examples[reason]}"
            for reason, count in self._dropped.dropped.most_common(REASONS)
        )
        return LogState("ok", f"{where} is read." + f" {dropped}." * bool(dropped))
