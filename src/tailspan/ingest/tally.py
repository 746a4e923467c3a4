"""What became of a log's lines."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tailspan.ingest import shown

TORN: Final = "torn: it has no end"
ENDLESS: Final = "no end within a megabyte"


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
        self.examples.setdefault(reason, shown(line))

    def torn(self, line: bytes, reason: str = TORN) -> None:
        """A line that is none: as a rule the end of a file that does not end with a line."""
        self.lines += 1
        self.drop(reason, line)
