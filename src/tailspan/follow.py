"""`TAILSPAN_NGINX_LOG`: the server reads its proxy's log by itself, from where it stopped, through every rotation.

A file is known by its first line, and by what stands before the place it was read to: renamed, copied or packed it is
the same, truncated it is another. So nothing here knows how logs are rotated.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from glob import glob, has_magic
from io import BufferedReader
from pathlib import Path
from typing import IO, Final, NamedTuple

from tailspan.delivery import Place
from tailspan.errors import CutError, LogError, StoreError
from tailspan.growth import Growth, Seen
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import Format
from tailspan.ingest.tally import ENDLESS, Tally
from tailspan.logfiles import LogFile, LogState, hear, is_as_read, is_still, look, opened, pieces, torn
from tailspan.logtrouble import check_file, cut, full_disk, lineless, quoted, shown_path, unlisted, unreadable
from tailspan.witness import Witness

PIECES_AT_ONCE: Final = 1  # then others may have their turn, or the server its end
REASONS: Final = 3  # that are told
LOGS: Final = 4  # that are remembered: one is written, one was until just now
PLACES: Final = 1000  # likewise: of each rotated file how far it was read
AGAIN_S: Final = 600.0  # then a file is read from its beginning, where the store may have lost some of it


class _Read(NamedTuple):
    """That a file was read to its end, when first and when last."""

    is_sure: bool  # reading it again would find nothing: the store keeps what was read, and it was all
    first_at: float
    last_at: float
    told: Callable[[str], LogError] | None  # of that path: its end is missing, or it has no line


class _Kept(NamedTuple):
    """How far a file was read, where the store keeps less."""

    place: Place
    first_at: float
    whole_at: float | None  # when all of it was read last; None while it still is

    def is_due(self) -> bool:
        """Whether to read it from where the store says: ever more seldom, as it is all of what was read since."""
        if self.whole_at is None:
            return False
        return time.monotonic() - self.first_at >= max(AGAIN_S, 2 * (self.whole_at - self.first_at))


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
        self.state = LogState("no data yet", f"{shown_path(' '.join(patterns))} was not looked at yet.")
        self._patterns = patterns
        self._witness = witness
        self._clock_ns = clock_ns
        self._formats = formats
        self._origin = origin
        self._growth = Growth(hold_s)
        self._shown_at = 0.0  # when the store shows all of a file that was read for the first time
        self._trouble: dict[str, LogError] = {}  # path → why it could not be read
        self._read: dict[Seen, _Read] = {}  # rotated it is at another path, and the same
        # of files by their first line, and how far each was read: the newest may have more
        self._logs: OrderedDict[str, tuple[Log, int]] = OrderedDict()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # likewise
        self._copies: dict[str, Seen] = {}  # path → how it was at the last look
        self._dropped = Tally()
        self._wanted: set[str] = set()  # files with lines that may be taken later: the store's place stays before these
        self._ahead: set[str] = set()  # those of them that take but time, or a clock; the others another setting
        self._newest_ns = 0  # when the newest file begins
        self._newest: Log | None = None  # what reads it
        self._unfit = 0  # lines at its end that are in no format

    def step(self) -> bool:
        """Reads some of what is new; whether there is more. Raises nothing for what `state` tells."""
        paths = sorted({path for pattern in self._patterns for path in glob(pattern)})
        self._trouble = {path: problem for path, problem in self._trouble.items() if path in paths}
        try:
            for file, seen in sorted(self._changed(paths), key=lambda one: (one[0].first_ns, one[0].path)):
                is_new = seen not in self._read
                if not is_new and (kept := self._kept.get(file.key)) and kept.whole_at is not None:
                    del self._kept[file.key]
                is_first = is_new and not self._place(file.key).read_to
                if not self._is_read(file, seen):
                    if is_new:
                        self.state = LogState("behind", f"{shown_path(file.path)} is being read: answers lack its end.")
                    return True
                if is_first:
                    self._shown_at = time.monotonic() + self._growth.hold_s
        except StoreError as problem:
            self.state = LogState("unreadable", str(problem))
            return False
        self.state = self._told(paths)
        return False

    def _changed(self, paths: list[str]) -> Iterator[tuple[LogFile, Seen]]:
        present: set[Seen] = set()
        for path in paths:
            with self._told_of(path):
                check_file(path)
                present.add(seen := self._growth.seen(path))
                self._trouble.pop(path, None)
                read = self._read.get(seen)
                if read and not self._is_due(read):
                    if read.told:
                        self._trouble[path] = read.told(path)
                elif seen.size:
                    try:
                        file = look(path, self._formats, self._origin.zone)
                    except CutError as problem:
                        self._pass(path, seen, partial(cut, reason=str(problem.value)))
                        continue
                    if not file:
                        begin = torn(path)
                        self._pass(path, seen, partial(lineless, begin=begin) if begin else None)
                    elif not self._is_in_the_making(file, seen):
                        yield file, seen
        self._read = {seen: read for seen, read in self._read.items() if seen in present}

    def _pass(self, path: str, seen: Seen, told: Callable[[str], LogError] | None) -> None:
        """Leaves a file without a line until it changes, unless another has its name by now."""
        if Path(path).stat().st_ino == seen.inode:
            self._read[seen] = _Read(is_sure=True, first_at=0, last_at=0, told=told)
            if told:
                self._trouble[path] = told(path)

    def _is_in_the_making(self, file: LogFile, seen: Seen) -> bool:
        """Whether it is being copied from one that was read farther: when all of it is there, nothing is new in it."""
        if file.is_packed or self._place(file.key).read_to <= seen.size or self._copies.get(file.path) == seen:
            self._copies.pop(file.path, None)
            return False
        self._copies[file.path] = seen
        return True

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
        except OSError as problem:
            self._trouble[path] = unreadable(path, problem)

    def _is_read(self, file: LogFile, seen: Seen) -> bool:
        """Whether it was read to its end; one in trouble was, until it changes. Raises StoreError."""
        inode = 0
        with self._told_of(file.path), opened(file.path) as content:
            inode = os.fstat(content.fileno()).st_ino
            if not is_still(file, content) or not self._advance(file, content, seen):
                return False
        problem = self._trouble.get(file.path)
        if inode != seen.inode or not isinstance(problem, CutError | None):
            return True  # and looked at again by the next step: it was another file, or what mends it is not seen in it
        now, before = time.monotonic(), self._read.get(seen)
        is_sure = self._witness.keeps_places and file.key not in self._ahead
        told = partial(cut, reason=str(problem.value)) if problem else None
        self._read[seen] = _Read(is_sure, before.first_at if before else now, now, told)
        return True

    def _advance(self, file: LogFile, content: IO[bytes], seen: Seen) -> bool:
        place, now_ns = self._place(file.key), self._clock_ns()
        position = 0
        if is_as_read(content, place.read_to, place.before):
            place.check(shown_path(file.path), self._origin.service)
            position = place.read_to
        log, read_to, is_all = self._log(file, content, position, now_ns), position, True
        if position <= self._witness.place(file.key).read_to:
            self._wanted.discard(file.key)
            self._ahead.discard(file.key)
        limit = seen.size if isinstance(content, BufferedReader) else None  # of a packed file all was seen
        for number, piece in enumerate(pieces(content, position, limit)):
            if number == PIECES_AT_ONCE:
                is_all = False
                break
            if piece.before:  # else its last line is still being written
                service = self._origin.service
                there = Place(file=file.key, read_to=piece.read_to, before=piece.before, service=service)
                if piece.endless:
                    log.tally.torn(piece.endless, ENDLESS)
                lines = log.read(piece.content, now_ns)
                is_kept = not log.ahead and file.key not in self._wanted
                if self._witness.keep(lines, there if is_kept else None).too_old or log.ahead:
                    self._wanted.add(file.key)
                if log.ahead:
                    self._ahead.add(file.key)
                self._keep(there, is_first=not read_to)
            read_to = piece.read_to
        self._remember(file, log, read_to)
        if is_all and (kept := self._kept.get(file.key)) and kept.whole_at is None:
            self._kept[file.key] = kept._replace(whole_at=time.monotonic())
        return is_all

    def _place(self, key: str) -> Place:
        """How far it was read: as the store says, or where that keeps less, as we know, for a while."""
        place, kept = self._witness.place(key), self._kept.get(key)
        if kept is None or place.read_to >= kept.place.read_to:
            return place
        if self._witness.keeps_places and key not in self._wanted:
            return place  # it was removed
        finds = not self._witness.keeps_places or key in self._ahead
        return place if finds and kept.is_due() else kept.place

    def _keep(self, place: Place, *, is_first: bool) -> None:
        before = self._kept.pop(place.file, None) or _Kept(place, time.monotonic(), None)
        self._kept[place.file] = before._replace(place=place, whole_at=None if is_first else before.whole_at)
        if len(self._kept) > PLACES:
            self._kept.popitem(last=False)

    def _remember(self, file: LogFile, log: Log, read_to: int) -> None:
        if file.first_ns >= self._newest_ns:
            self._newest_ns, self._newest, self._unfit = file.first_ns, log, log.unfit
        self._logs[file.key] = log, read_to
        if len(self._logs) > LOGS:
            self._logs.popitem(last=False)

    def _log(self, file: LogFile, content: IO[bytes], position: int, now_ns: int) -> Log:
        """What reads on there: it knows what was before, as far as that matters.

        It is forgotten until the store took what it reads next, or it would count that twice.
        """
        log, read_to = self._logs.pop(file.key, (None, 0))
        if log is None or not 0 < position == read_to:
            log = Log(self._origin, self._dropped)
            log.open_file(file.form, self._formats)
            hear(log, content, position, now_ns)
            if not position and self._newest and file.first_ns > self._newest_ns:
                log.go_on_from(self._newest)
        if self._newest and self._newest is not log and file.first_ns < self._newest_ns:
            log.doubt(self._newest)  # the end of the older file is read after the beginning of the newer
        return log

    def _told(self, paths: list[str]) -> LogState:
        if self._trouble:
            return LogState("unreadable", str(next(iter(self._trouble.values()))))
        where = shown_path(" ".join(self._patterns))
        if not paths:
            if problem := next(filter(None, map(unlisted, self._patterns)), None):
                return LogState("unreadable", str(problem))
            near = quoted(Path(self._patterns[0]).parent)
            return LogState("unreadable", f"No file is called {where}. Look for it: ls -l {near}")
        if full := full_disk(paths):
            return LogState("unreadable", str(full))
        if time.monotonic() < self._shown_at or any(map(self._growth.is_held, paths)):
            return LogState("behind", f"{where} is being read: answers lack its end.")
        alike = f" {self._dropped.alike:,} lines equal others where files meet, and are counted as the same requests."
        dropped = "; ".join(
            f"{count:,} lines dropped: {reason}, as in: {self._dropped.examples[reason]}"
            for reason, count in self._dropped.dropped.most_common(REASONS)
        )
        if self._unfit:
            fix = "Look how nginx writes now, and name that: TAILSPAN_NGINX_FORMAT."
            told = f"The newest {self._unfit:,} lines of {where} are in no format that is known here: {dropped}. {fix}"
            return LogState("dropping", told)
        told = f"{where} is read." + f" {dropped}." * bool(dropped) + alike * bool(self._dropped.alike)
        for pattern in self._patterns:
            if not has_magic(pattern):
                name = shown_path(pattern)
                told += f" What nginx writes just before a rotation is missed where only {name} is looked at. "
                told += f"Set TAILSPAN_NGINX_LOG={name}*"
        return LogState("ok", told)
