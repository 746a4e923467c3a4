"""How files that are followed grow, and what of them is old enough to be read."""

import time
from collections import defaultdict, deque
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """How a file looked."""

    inode: int
    size: int
    changed_ns: int


class _Grown(NamedTuple):
    at: float
    seen: Seen


class Growth:
    """Of files, by their paths: what is younger than `hold_s` seconds is not read yet."""

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        self._grown: defaultdict[str, deque[_Grown]] = defaultdict(deque)  # lately

    def seen(self, path: str) -> Seen:
        """How the file is; how it was, where what was written since is held. Of size 0 where all of it is.

        Raises OSError.
        """
        stat = Path(path).stat()
        seen = Seen(stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if not self.hold_s:
            return seen
        now, grown = time.monotonic(), self._grown[path]
        if grown and (grown[-1].seen.inode != seen.inode or grown[-1].seen.size > seen.size):
            grown.clear()
        if not grown:
            grown.append(_Grown(now - max(0, time.time() - stat.st_mtime), seen))
        elif grown[-1].seen != seen:
            grown.append(_Grown(now, seen))
        while len(grown) > 1 and grown[1].at <= now - self.hold_s:
            grown.popleft()
        return seen._replace(size=0) if self.is_held(path) else grown[0].seen

    def is_held(self, path: str) -> bool:
        """Whether nothing of it may be read yet, since all of it is young."""
        first = next(iter(self._grown.get(path, ())), None)
        return first is not None and first.seen.size > 0 and first.at > time.monotonic() - self.hold_s
