"""When a service was up, by its heartbeats and the server's own."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from tailspan.query import Range
from tailspan.span import OWN_SERVICE, Heartbeat

How = Literal["up", "down", "off", "host_off", "before", "pending"]
PENDING_NS: Final = 45 * 10**9  # three beats: silence of less may be a beat on its way


class Stretch(NamedTuple):
    """A while in which a service was the same."""

    start_ns: int
    end_ns: int
    how: How


class Uptime(NamedTuple):
    """Nanoseconds of a range. Only `up` and `down` count: a clean stop is off, silence with the server host off."""

    up: int = 0
    down: int = 0
    off: int = 0
    host_off: int = 0
    before: int = 0
    pending: int = 0

    @property
    def share(self) -> float | None:
        """up / (up + down); None where neither was seen."""
        return self.up / (self.up + self.down) if self.up + self.down else None


def by_service(beats: Iterable[Heartbeat], end_ns: int) -> dict[tuple[str, str | None], list[Stretch]]:
    """(service, environment) → its stretches up to `end_ns`, the server's own left out."""
    seen = [beat for beat in beats if beat.start_ns < end_ns]
    server = _union(beat for beat in seen if beat.service == OWN_SERVICE)
    names = dict.fromkeys((beat.service, beat.environment) for beat in seen if beat.service != OWN_SERVICE)
    return {
        name: _stretches([beat for beat in seen if (beat.service, beat.environment) == name], server, end_ns)
        for name in names
    }


def total(stretches: Iterable[Stretch], range: Range) -> Uptime:
    """How long each was, within the range."""
    found = dict.fromkeys(Uptime._fields, 0)
    for stretch in stretches:
        found[stretch.how] += max(0, min(stretch.end_ns, range.end_ns) - max(stretch.start_ns, range.start_ns))
    return Uptime(**found)


def _stretches(beats: Sequence[Heartbeat], server: Sequence[Range], end_ns: int) -> list[Stretch]:
    alive = _union(beats)
    stops = {beat.end_ns for beat in beats if beat.stopped}
    found = [Stretch(0, alive[0].start_ns, "before")]
    for life, following in zip(alive, [*alive[1:], None], strict=True):
        found.append(Stretch(life.start_ns, min(life.end_ns, end_ns), "up"))
        silence = Range(life.end_ns, following.start_ns if following else end_ns)
        if silence.start_ns in stops:
            found.append(Stretch(*silence, "off"))
        elif following is None and silence.end_ns - silence.start_ns < PENDING_NS:
            found.append(Stretch(*silence, "pending"))
        else:
            found += _outages(silence, server)
    return [stretch for stretch in found if stretch.start_ns < stretch.end_ns]


def _outages(silence: Range, server: Sequence[Range]) -> list[Stretch]:
    """Down while the server lived, host off while it was silent too."""
    found, at = [], silence.start_ns
    for life in server:
        start, end = max(life.start_ns, at), min(life.end_ns, silence.end_ns)
        if start < end:
            found += [Stretch(at, start, "host_off"), Stretch(start, end, "down")]
            at = end
    return [*found, Stretch(at, silence.end_ns, "host_off")]


def _union(beats: Iterable[Heartbeat]) -> list[Range]:
    """Their stretches in order, those that meet made one."""
    found: list[Range] = []
    for beat in sorted(beats, key=lambda beat: beat.start_ns):
        if found and beat.start_ns <= found[-1].end_ns:
            found[-1] = Range(found[-1].start_ns, max(found[-1].end_ns, beat.end_ns))
        else:
            found.append(Range(beat.start_ns, beat.end_ns))
    return found
