"""Lines on their way from `tailspan backfill` to the server."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, TypeVar

import httpx
from rich.console import Console

from tailspan.delivery import LINES_PATH, Answer, Place, delivery
from tailspan.errors import AccessError, UnsentError
from tailspan.ingest import shown
from tailspan.ingest.lines import COLUMNS, Lines
from tailspan.logfiles import LogFile
from tailspan.outcome import Result

AGAIN: Final = (429, 502, 503, 504)
PATIENCE_S: Final = 60.0
START_S: Final = 10.0  # in which a server that was started just before listens
PAUSE_S: Final = 1.0
STOP_S: Final = 3.0  # in which Ctrl-C waits for the last answer
DELIVERY_S: Final = 600.0  # in which one is to be answered: InfluxDB takes seconds for it, on a busy machine many
START: Final = COLUMNS.index("start_ns")
URL_FIX: Final = "TAILSPAN_URL says where tailspan is."
TOKEN_FIX: Final = "This command sends what is in its own environment: TAILSPAN_TOKEN, or TAILSPAN_TOKEN_FILE."
AGAIN_FIX: Final = "Run this again then: nothing is added twice."
START_FIX: Final = "Start it, or say by TAILSPAN_URL where it is: tailspan serve"
Told = TypeVar("Told", Place, Answer)


class Sender:
    """Sends one delivery while the next is read. Raises UnsentError. The console hears what is waited for."""

    def __init__(self, client: httpx.Client, result: Result, console: Console) -> None:
        client.timeout = httpx.Timeout(DELIVERY_S, connect=PATIENCE_S)
        self._client = client
        self._result = result
        self._console = console
        self._ended = Event()
        self._sent: tuple[Future[Answer], Place | None] | None = None
        self._wanted: set[str] = set()  # files with lines that another run may take: it is to find them

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def place(self, file: LogFile) -> Place:
        """How far the file was read before."""
        return self._ask(Place, "GET", f"{LINES_PATH}/{file.key}")

    def send(self, lines: Lines, place: Place | None) -> None:
        self.wait()
        for row in (lines.rows[: lines.rows.find(b"\n")], lines.rows[lines.rows.rfind(b"\n", 0, -1) + 1 :]):
            if row:
                start_ns = int(row.split(b"\t")[START])
                self._result.first_ns = min(self._result.first_ns, start_ns)
                self._result.last_ns = max(self._result.last_ns, start_ns)
        kept = place if place and place.file not in self._wanted else None
        self._sent = _begun(lambda: self._deliver(lines, kept)), place

    def wait(self, patience_s: float | None = None) -> None:
        """Until what was sent last is on disk there. Raises TimeoutError where that is not so in time."""
        if self._sent is not None:
            sent, place = self._sent
            answer = sent.result(patience_s)
            self._sent = None
            if place and answer.too_old:
                self._wanted.add(place.file)
            told = answer.model_dump(exclude={"unresolved"})
            self._result.fates.update(told)
            self._result.unresolved.update(answer.unresolved)

    def stop(self) -> None:
        """Counts what is on its way, where the answer comes at once."""
        self._ended.set()
        with suppress(UnsentError, TimeoutError):
            self.wait(STOP_S)

    def _deliver(self, lines: Lines, place: Place | None) -> Answer:
        body = delivery(lines, place, dry_run=self._result.dry_run)
        return self._ask(Answer, "POST", LINES_PATH, content=body)

    def _ask(self, told: type[Told], method: str, path: str, **content: Any) -> Told:
        """Waits for a server that is busy, or being started."""
        began, said = time.monotonic(), ""
        while True:
            waited_s = time.monotonic() - began
            try:
                answer = self._client.request(method, path, **content)
            except httpx.TransportError as problem:
                if not _is_refused(problem) or waited_s > START_S:
                    raise self._nobody(problem) from problem
                waits = f"Nobody answers at {self._client.base_url} yet: waiting {START_S:.0f} seconds."
            else:
                if answer.status_code not in AGAIN or waited_s > PATIENCE_S:
                    return self._content(told, answer)
                waits = f"{self._refusal(answer).message} Waiting {PATIENCE_S:.0f} seconds for that."
            if waits != said:
                self._console.print(waits, markup=False, highlight=False)
                said = waits
            if self._ended.wait(PAUSE_S):
                raise UnsentError("Stopped before it was sent.")

    def _nobody(self, problem: httpx.TransportError) -> UnsentError:
        unreached = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout) and not _is_refused(problem)
        told = f"No tailspan answers at {self._client.base_url}: {problem}."
        return UnsentError(told, fix=URL_FIX if unreached else START_FIX)

    def _content(self, told: type[Told], answer: httpx.Response) -> Told:
        if answer.is_success:
            with suppress(ValueError):
                return told.model_validate_json(answer.content)
        raise self._refusal(answer)

    def _refusal(self, answer: httpx.Response) -> UnsentError:
        said, again = f"{self._client.base_url} answered {answer.status_code}", answer.status_code in AGAIN
        if (why := _why(answer)) is None:
            return UnsentError(f"{said}, and not as tailspan does: {shown(answer.content)}.", fix=URL_FIX)
        fix = TOKEN_FIX if answer.status_code == AccessError.status else AGAIN_FIX if again else None
        return UnsentError(f"{said}: {why}", fix=fix)


def _begun(work: Callable[[], Answer]) -> "Future[Answer]":
    """In a thread that nothing waits for: a server that hangs holds up no end."""
    done: Future[Answer] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:  # raised where it is waited for
            done.set_exception(problem)

    Thread(target=run, daemon=True, name="tailspan-backfill").start()
    return done


def _is_refused(problem: BaseException) -> bool:
    """As while a server starts that is to listen there: at a port, or at a socket that it has not made yet."""
    while cause := problem.__cause__ or problem.__context__:  # httpcore takes the first away
        problem = cause
    return isinstance(problem, ConnectionRefusedError | FileNotFoundError)


def _why(answer: httpx.Response) -> str | None:
    """None where it is in another shape than tailspan's errors."""
    try:
        error = answer.json()["error"]
        return " ".join(str(error[key]) for key in ("message", "rule", "fix") if key in error) or None
    except (ValueError, KeyError, TypeError):
        return None
