"""What became of the lines that `tailspan backfill` read."""

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tailspan.delivery import removal
from tailspan.errors import TailspanError, UnsentError
from tailspan.ingest.tally import Tally
from tailspan.span import OWN_SERVICE

FEW: Final = 10  # requests of which nothing can be said; and one in so many is hardly any
FATES: Final = ("added", "known", "twins", "too_old")  # what becomes of a line
LOOK_S: Final = 6.0  # in which the server looks anew how its collector does
NAMED: Final = 5  # of the addresses of no known device
MANY: Final = 50  # of so many requests one more or less is the same log


@dataclass(slots=True)
class Result:
    """What became of all lines. The server's counts are of those that were passed on."""

    tally: Tally
    dry_run: bool
    files: int = 0
    empty: list[str] = field(default_factory=list)  # files without a whole line
    skipped: int = 0  # bytes that were read by an earlier run
    fates: Counter[str] = field(default_factory=Counter)
    unresolved: set[str] = field(default_factory=set)
    problems: list[TailspanError] = field(default_factory=list)  # what was not read or not sent, and why
    first_ns: int = 2**62  # when what was passed on began first
    last_ns: int = 0
    compared: bool = False  # with what the server heard of that time
    silent: str | None = None  # the service, where it told of nothing in that time
    hint: str | None = None  # why services may have told of these requests already, and were not found
    stopped: bool = False

    @property
    def coverage(self) -> float | None:
        """Which share of these requests their services told of themselves, 0 to 1 and rounded down; None of none."""
        told = self.fates["twins"]
        requests = self.fates["added"] + self.fates["known"] + told
        return 1000 * told // requests / 1000 if requests else None

    @property
    def unsent(self) -> int:
        """Lines that were read, and of which no server said that it has them."""
        told = sum(self.fates[name] for name in FATES)
        return self.tally.lines - self.tally.left_out - self.tally.dropped.total() - told

    def as_json(self) -> dict[str, Any]:
        tally = self.tally
        fates = {name: self.fates[name] for name in FATES}
        return {
            "files": self.files,
            "empty": self.empty,
            "lines": tally.lines,
            **fates,
            "left_out": tally.left_out,
            "unsent": self.unsent,
            "dropped": {
                reason: {"lines": count, "example": tally.examples[reason]} for reason, count in tally.dropped.items()
            },
            "coverage": self.coverage,
            "alike": tally.alike,
            "unresolved": sorted(self.unresolved),
            "bytes_read_before": self.skipped,
            "dry_run": self.dry_run,
            "problems": [str(problem) for problem in self.problems],
            "hint": self.hint,
            "stopped": self.stopped,
        }


def lost_on_the_way(client: httpx.Client) -> UnsentError | None:
    """What the server says of the collector that these went through, where InfluxDB refuses what that sends."""
    until = time.monotonic() + LOOK_S
    while True:
        try:
            sources = client.get("/healthz").json()["sources"]
        except (httpx.TransportError, ValueError, KeyError, TypeError):
            return None
        collector = next((source for source in sources if source["name"] == "collector"), None)
        if collector and collector["state"] == "dropping":
            told = f"They were sent, and InfluxDB does not have them all: {collector['message']}"
            return UnsentError(told, fix="Run this again once that is mended: nothing is added twice.")
        if not collector or time.monotonic() > until:
            return None
        time.sleep(1)


def compare(client: httpx.Client, result: Result, service: str) -> None:
    """Notes what the server heard of that time from others than this log. Nothing where that may not be asked.

    It does not ask for these lines: what InfluxDB has not yet of them would be missing in answers for a minute.
    """
    live = _told(client, result, source="live")
    logged = _told(client, result, source="log", **{"!service": service})
    if live is None or logged is None:
        return
    result.compared = True
    result.silent = None if service in live else service
    if result.fates["added"]:
        result.hint = _hint(result, service, live, logged)
    elif logged and result.fates["known"] and not _told(client, result, source="log", service=service):
        result.hint = _elsewhere(result.fates["known"], service, logged)


def _told(client: httpx.Client, result: Result, **filters: str) -> dict[str, int] | None:
    """Requests by service, of the time of these lines."""
    start, end = (
        datetime.fromtimestamp(at // 10**9, UTC).isoformat() for at in (result.first_ns, result.last_ns + 10**9)
    )
    asked = {"metrics": "requests", "dimensions": "service", "start": start, "end": end, **filters}
    try:
        answer = client.get("/analytics/query", params=asked)
    except httpx.TransportError:
        return None
    if not answer.is_success:
        return None
    return {row["service"]: row["requests"] for row in answer.json()["rows"] if row["service"] != OWN_SERVICE}


def _hint(result: Result, service: str, live: dict[str, int], logged: dict[str, int]) -> str | None:
    """What speaks for it that these requests were told before. Both: requests by service."""
    twins, twice = result.fates["twins"], "would be there twice" if result.dry_run else "are there twice now"
    requests = result.fates["added"] + result.fates["known"] + twins
    for other in sorted(logged):
        if abs(logged[other] - requests) * MANY <= requests:
            return (
                f"In that time a log was read as {other}'s, too: {logged[other]:,} requests. If it is this one, these "
                f"{twice}, until the wrong ones are taken out: {removal(other)} or {removal(service)}"
            )
    if live and service not in live:
        others = ", ".join(sorted(live)[:FEW])
        return (
            f"In that time the server heard from {others}, and from nobody called {service}. If these are requests of "
            f"one of them, they {twice}. --service names it; what was read as {service} goes by: {removal(service)}"
        )
    if (told := min(live.get(service, 0), requests)) >= FEW and twins * FEW < told:
        return (
            f"{twins} of {requests:,} lines found their request, and {service} told of {live[service]:,} in that time. "
            f"If nginx sees another path or address, these {twice}. Ids mend that: docs/backfill.md"
        )
    return None


def _elsewhere(known: int, service: str, logged: dict[str, int]) -> str | None:
    """Of lines with ids, which are known under whatever name."""
    for other in sorted(other for other, requests in logged.items() if requests >= known):
        return (
            f"These were read as {other}'s, and are there under that name. "
            f"Where {service} is right, take those out, and read it again: {removal(other)}"
        )
    return None


def _few(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + f" and {more} more" * (more > 0)


def show(result: Result, console: Console) -> None:
    """The closing table."""
    tally, fates = result.tally, result.fates
    table = Table(box=None, show_header=False)
    would = "would be added" if result.dry_run else "added"
    nobody = "requests that nobody had told of"
    if result.dry_run and result.files > 1:
        nobody += "; of what two files have, twice as many are told as would be added"
    for name, count, note in (
        ("lines", tally.lines, f"in {result.files} file{'s' * (result.files != 1)}"),
        (would, fates["added"], nobody),
        ("already known", fates["known"], "told by a log before"),
        ("live twins", fates["twins"], "their services told of them"),
        ("too old", fates["too_old"], "older than TAILSPAN_RETENTION_DAYS"),
        ("left out", tally.left_out, "by --since and --until"),
        ("unresolved", len(result.unresolved), f"addresses of no known device: {_few(sorted(result.unresolved))}"),
        ("alike", tally.alike, "equal lines where files meet, counted as the same requests: at most so many more"),
    ):
        if count or name in ("lines", would, "already known", "live twins"):
            table.add_row(name, f"{count:,}", escape(note))
    if result.unsent:
        table.add_row("not sent", f"{result.unsent:,}", "were read, and are read again by another run")
    if result.silent and not fates["twins"]:
        table.add_row("coverage", "", escape(f"{result.silent} told nothing of itself in that time: not instrumented"))
    elif result.compared and result.coverage is not None:
        table.add_row("coverage", f"{result.coverage:.1%}", "told by their services; gaps: tailspan coverage")
    for reason, count in tally.dropped.most_common():
        table.add_row("dropped", f"{count:,}", escape(f"{reason}, as in: {tally.examples[reason]}"))
    if result.hint:
        table.add_row("look", "", escape(result.hint))
    for path in result.empty:
        table.add_row("empty", "", escape(f"{path} has no whole line"))
    for problem in result.problems:
        table.add_row("problem", "", escape(str(problem)))
    if result.skipped:
        table.add_row(
            "skipped", "", f"{result.skipped:,} bytes were read before; to read them again: --since 1970-01-01"
        )
    console.print(table, highlight=False)
    if result.stopped:
        console.print("Stopped. Run it again: nothing is counted twice.")
