"""The ways in, a file a source: bytes in, spans out, and what is dropped is counted with its reason."""

from collections import Counter
from dataclasses import dataclass, field

from tailspan.span import Heartbeat, Span


@dataclass(slots=True)
class Delivery:
    """What one delivery held. `ignored` is not for us (and no mistake); `rejected` is, but is wrong. Reason → count."""

    spans: list[Span] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
