"""Local time: which offset from UTC holds when, and how hours and days are written."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

DAY_NS: Final = 24 * 3600 * 10**9
HOUR_NS: Final = 3600 * 10**9


class Offset(NamedTuple):
    """Before `until_ns` the local clock is `offset_ns` ahead of UTC."""

    until_ns: int
    offset_ns: int


def offsets(zone: str, start_ns: int, end_ns: int) -> list[Offset]:
    """The offsets of [start_ns, end_ns) in order; the last one's end is the range's or later."""
    where = ZoneInfo(zone)
    found: list[Offset] = []
    low = start_ns // 10**9
    while low * 10**9 < end_ns:
        high = min(low + 24 * 3600, end_ns // 10**9 + 1)
        offset = _offset_s(where, low)
        if _offset_s(where, high) != offset:
            high = _change_s(where, low, high)
        if found and found[-1].offset_ns == offset * 10**9:
            found.pop()
        found.append(Offset(high * 10**9, offset * 10**9))
        low = high
    return found or [Offset(end_ns, _offset_s(where, start_ns // 10**9) * 10**9)]


def _change_s(where: ZoneInfo, low: int, high: int) -> int:
    """The second between them at which the offset of `low` is over."""
    offset = _offset_s(where, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset_s(where, middle) == offset else (low, middle)
    return high


def _offset_s(where: ZoneInfo, second: int) -> int:
    offset = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).astimezone(where).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())


def hour_text(start_ns: int, offset_ns: int) -> str:
    """The hour that begins at `start_ns`, as 2026-10-25T02:00:00+01:00."""
    local = timezone(timedelta(seconds=offset_ns // 10**9))
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=start_ns // 10**9)).astimezone(local).isoformat()


def day_text(day: int) -> str:
    """The day with that number since 1970-01-01, as 2026-10-25."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def days_of(zone: str, start_ns: int, end_ns: int) -> list[str]:
    """Each local date that has a moment of [start_ns, end_ns)."""
    spans = offsets(zone, start_ns, end_ns)
    first = (start_ns + spans[0].offset_ns) // DAY_NS
    last = (end_ns - 1 + spans[-1].offset_ns) // DAY_NS
    return [day_text(day) for day in range(first, last + 1)]


def day_range(zone: str, day: str) -> tuple[int, int]:
    """The nanoseconds at which that local date begins and ends."""
    where, first = ZoneInfo(zone), date.fromisoformat(day)
    start, end = (datetime(one.year, one.month, one.day, tzinfo=where) for one in (first, first + timedelta(days=1)))
    return int(start.timestamp()) * 10**9, int(end.timestamp()) * 10**9
