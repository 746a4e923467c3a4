"""The collector before the store, by its own metrics: what waits in it, and what it lost."""

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families

ASKED_EVERY: Final = timedelta(seconds=5)
TIMEOUT_S: Final = 1.0  # an answer waits for it
STUCK_AFTER: Final = timedelta(seconds=15)  # it tries again every 10 s at the latest
DROPPING_FOR: Final = timedelta(minutes=5)  # from then on what was lost is told, and is no trouble any more
# of its exporter to InfluxDB, as they are read: counters end in _total there, whether the collector writes that or not
WRITTEN: Final = "otelcol_exporter_sent_spans_total"
DROPPED: Final = "otelcol_exporter_send_failed_spans_total"  # refused for good; what is tried again is not in it
TURNED_AWAY: Final = "otelcol_exporter_enqueue_failed_spans_total"
WAITING: Final = "otelcol_exporter_queue_size"
ROOM: Final = "otelcol_exporter_queue_capacity"
FIX: Final = (
    "As a rule the collector's token is wrong or the bucket is missing: tailspan setup influxdb tries both. "
    "The collector's log has InfluxDB's answer, behind 'Dropping data'."
)

CollectorState = Literal["ok", "unreachable", "dropping", "behind"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of it at a moment."""

    state: CollectorState
    message: str


class Collector:
    """The collector whose metrics are at the URL. Its counters have no times, so this remembers when they grew."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._looking = threading.Lock()
        self._seen: tuple[datetime, Seen] | None = None
        self._looked: datetime | None = None  # when its metrics were last read
        self._counts: Counter[str] = Counter()  # and what they were
        self._moved = datetime.min.replace(tzinfo=UTC)  # when it was last seen to write, or to have nothing to write
        self._lost: tuple[datetime | None, datetime] | None = None  # the looks between which it last dropped spans

    def seen(self, now: datetime) -> Seen:
        """Asks it every five seconds at most, and for a second at most. Never raises: that is its state."""
        with self._looking:
            if self._seen is None or now - self._seen[0] >= ASKED_EVERY:
                self._seen = now, self._look(now)
            return self._seen[1]

    def _look(self, now: datetime) -> Seen:
        try:
            answer = httpx.get(self._url, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
            counts = _counts(answer.text)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError) as problem:
            fix = "Start the collector, or correct TAILSPAN_COLLECTOR_METRICS."
            return Seen("unreachable", f"Its metrics cannot be read at {self._url}: {problem}. {fix}")
        if any(counts[name] < self._counts[name] for name in (WRITTEN, DROPPED)):  # it was started anew
            self._counts, self._lost = Counter(), None
        if counts[WRITTEN] > self._counts[WRITTEN] or not counts[WAITING] or self._looked is None:
            self._moved = now
        if counts[DROPPED] > self._counts[DROPPED]:
            self._lost = self._looked, now
        self._counts, self._looked = counts, now
        return self._judged(counts, now)

    def _judged(self, counts: "Counter[str]", now: datetime) -> Seen:
        if self._lost and now - self._lost[1] < DROPPING_FOR:
            return Seen("dropping", f"{self._dropped(counts)} {FIX}")
        waiting = f"spans waiting: {counts[WAITING]}, room for {counts[ROOM]}"
        if counts[TURNED_AWAY]:
            waiting += f", turned away to come again: {counts[TURNED_AWAY]}"
        if now - self._moved >= STUCK_AFTER:
            return Seen("behind", f"InfluxDB has taken nothing since {_time(self._moved)}; {waiting}.")
        if counts[WAITING] > counts[ROOM] / 2:
            return Seen("behind", f"Spans come faster than InfluxDB takes them; {waiting}.")
        written = f"Spans written since the collector started: {counts[WRITTEN]}."
        return Seen("ok", f"{written} {self._dropped(counts)}" if counts[DROPPED] else written)

    def _dropped(self, counts: "Counter[str]") -> str:
        assert self._lost  # with the count that grew
        since, until = self._lost
        last = f"between {_time(since)} and {_time(until)}" if since else f"before {_time(until)}"
        return f"Spans refused by InfluxDB for good: {counts[DROPPED]}, the last {last}."


def _counts(text: str) -> "Counter[str]":
    """The numbers above, of all exporters to InfluxDB. Raises ValueError where it is no collector that has one."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("exporter", "").partition("/")[0] == "influxdb":
                counts[sample.name] += int(sample.value)
    if ROOM not in counts:
        raise ValueError("no collector with an exporter to InfluxDB answers there")
    return counts


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
