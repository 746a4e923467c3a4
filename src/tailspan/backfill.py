"""`tailspan backfill`: reads logs here, and tells the server of their requests."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tailspan.delivery import LINES_PATH, Answer, Place, delivery
from tailspan.errors import UnsentError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines, Log, Tally
from tailspan.ingest.nginx import Format
from tailspan.logfiles import STDIN, LogFile, hear, in_order, is_as_read, look, opened, pieces

AGAIN: Final = (429, 502, 503, 504)
PATIENCE_S: Final = 60.0
DELIVERY_S: Final = 600.0  # in which one is to be answered: InfluxDB takes seconds for it, on a busy machine many


@dataclass(slots=True)
class Result:
    """What became of all lines. The server's counts are of those that were passed on."""

    tally: Tally
    dry_run: bool
    files: int = 0
    skipped: int = 0  # bytes that were read by an earlier run
    fates: Counter[str] = field(default_factory=Counter)
    unresolved: set[str] = field(default_factory=set)
    stopped: bool = False

    @property
    def coverage(self) -> float | None:
        """Which share of these requests their services told of themselves, 0 to 1; None where there are none."""
        told = self.fates["twins"]
        requests = self.fates["added"] + self.fates["known"] + told
        return told / requests if requests else None

    def as_json(self) -> dict[str, Any]:
        tally = self.tally
        fates = {name: self.fates[name] for name in ("added", "known", "twins", "too_old")}
        return {
            "files": self.files,
            "lines": tally.lines,
            **fates,
            "left_out": tally.left_out,
            "dropped": {
                reason: {"lines": count, "example": tally.examples[reason]} for reason, count in tally.dropped.items()
            },
            "coverage": None if self.coverage is None else round(self.coverage, 4),
            "alike": tally.alike,
            "unresolved": sorted(self.unresolved),
            "bytes_read_before": self.skipped,
            "dry_run": self.dry_run,
            "stopped": self.stopped,
        }


class Sender:
    """Sends one delivery while the next is read. Raises UnsentError."""

    def __init__(self, client: httpx.Client, result: Result) -> None:
        client.timeout = httpx.Timeout(DELIVERY_S, connect=PATIENCE_S)
        self._client = client
        self._result = result
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tailspan-backfill")
        self._sent: Future[Answer] | None = None

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def place(self, file: LogFile) -> Place:
        """How far the file was read before."""
        return Place.model_validate(self._ask("GET", f"{LINES_PATH}/{file.key}").json())

    def send(self, lines: Lines, place: Place | None) -> None:
        self.wait()
        self._sent = self._pool.submit(self._deliver, lines, place)

    def wait(self) -> None:
        """Until what was sent last is on disk there."""
        if self._sent is not None:
            answer, self._sent = self._sent.result(), None
            told = answer.model_dump(exclude={"unresolved"})
            self._result.fates.update(told)
            self._result.unresolved.update(answer.unresolved)

    def _deliver(self, lines: Lines, place: Place | None) -> Answer:
        body = delivery(lines, place, dry_run=self._result.dry_run)
        return Answer.model_validate(self._ask("POST", LINES_PATH, content=body).json())

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._client.request(method, path, **content)
            except httpx.TransportError as problem:
                raise UnsentError(
                    f"No tailspan answers at {self._client.base_url}: {problem}.", fix="Start it: tailspan serve."
                ) from problem
            if answer.is_success:
                return answer
            if answer.status_code not in AGAIN or time.monotonic() > deadline:
                raise UnsentError(f"{self._client.base_url} answered {answer.status_code}: {_why(answer)}")
            time.sleep(2)


def _why(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return " ".join(str(error[key]) for key in ("message", "rule", "fix") if key in error)
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def backfill(
    paths: Sequence[str],
    client: httpx.Client,
    console: Console,
    clock: Callable[[], int] = time.time_ns,
    *,
    formats: Sequence[Format],
    origin: Origin,
    since_ns: int | None = None,
    until_ns: int | None = None,
    dry_run: bool = False,
) -> Result:
    """Reads the files in the order they were written in; what is known already is counted, and not kept twice.

    Raises LogError before anything is sent where a file cannot be read or is in no format; UnsentError.
    """
    found = [look(path, formats, origin.zone) for path in paths]
    files = in_order(file for file in found if file)
    result = Result(Tally(), dry_run, len(files))
    log = Log(origin, result.tally, since_ns=since_ns or 0, until_ns=until_ns or 2**62)
    resumes = not dry_run and since_ns is None and until_ns is None
    with _progress(console) as bar, Sender(client, result) as sender:
        task = bar.add_task("", total=sum(map(_size, files)) or None, rate="")
        began = time.monotonic()
        try:
            for number, file in enumerate(files):
                log.open_file(file.form, copy=number > 0 and files[number - 1].key == file.key)
                for lines, place, position in _read(file, log, sender, result, clock, resumes):
                    sender.send(lines, place)
                    rate = result.tally.lines / max(time.monotonic() - began, 1e-3)
                    told = f"{result.tally.lines:,} lines, {rate:,.0f}/s"
                    bar.update(task, completed=position + sum(map(_size, files[:number])), rate=told)
            sender.wait()
        except KeyboardInterrupt:
            result.stopped = True
    return result


def _read(
    file: LogFile, log: Log, sender: Sender, result: Result, clock: Callable[[], int], resumes: bool
) -> Iterator[tuple[Lines, Place | None, int]]:
    """What the file tells and was not read before, how far that is, and the position in the file as it lies there."""
    with opened(file.path) as content:
        position = 0
        if resumes and file.path != STDIN:
            place = sender.place(file)
            position = place.read_to if is_as_read(content, place.read_to, place.before) else 0
            hear(log, content, position, clock())
            result.skipped += position
        for piece in pieces(content, position):
            if not piece.before:
                log.torn(piece.content)
                continue
            there = Place(file=file.key, read_to=piece.read_to, before=piece.before) if resumes else None
            at = getattr(content, "fileobj", content)
            yield log.read(piece.content, clock()), there, 0 if file.path == STDIN else at.tell()


def _size(file: LogFile) -> int:
    return 0 if file.path == STDIN else Path(file.path).stat().st_size


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def show(result: Result, console: Console) -> None:
    """The closing table."""
    tally, fates = result.tally, result.fates
    table = Table(box=None, show_header=False)
    would = "would be added" if result.dry_run else "added"
    for name, count, note in (
        ("lines", tally.lines, f"in {result.files} files"),
        (would, fates["added"], "requests that nobody had told of"),
        ("already known", fates["known"], "read before"),
        ("live twins", fates["twins"], "their services told of them"),
        ("too old", fates["too_old"], "older than TAILSPAN_RETENTION_DAYS"),
        ("left out", tally.left_out, "by --since and --until"),
        (
            "unresolved",
            len(result.unresolved),
            f"addresses of no known device: {', '.join(sorted(result.unresolved)[:5])}",
        ),
        ("alike", tally.alike, "equal lines where files meet, counted as the same requests: at most so many more"),
    ):
        if count or name in ("lines", would, "already known", "live twins"):
            table.add_row(name, f"{count:,}", escape(note))
    if result.coverage is not None:
        table.add_row("coverage", f"{result.coverage:.1%}", "told by their services; gaps: tailspan coverage")
    for reason, count in tally.dropped.most_common():
        table.add_row("dropped", f"{count:,}", escape(f"{reason}, as in: {tally.examples[reason]}"))
    if result.skipped:
        table.add_row("read before", "", f"{result.skipped:,} bytes, not read again")
    console.print(table, highlight=False)
    if result.stopped:
        console.print("Stopped. Run it again: nothing is counted twice.")
