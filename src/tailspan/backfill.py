"""`tailspan backfill`: reads logs here, and tells the server of their requests."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tailspan.delivery import Place
from tailspan.errors import CutError, FormatError, LogError, UnsentError
from tailspan.ingest import shown
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines, Log
from tailspan.ingest.nginx import Format
from tailspan.ingest.tally import ENDLESS, Tally
from tailspan.logfiles import MAX_LINE, LogFile, hear, in_order, is_as_read, is_still, look, opened, pieces, torn
from tailspan.logtrouble import STDIN, full_disk, shown_path
from tailspan.outcome import Result, compare, lost_on_the_way
from tailspan.sending import Sender

WRITTEN_S: Final = 3600.0  # ago at most, where nginx may write a log still: an archive may well fill its disk
STEERING: Final = re.compile(rb"[\x00-\x08\x0a-\x0c\x0e-\x1f]")  # all that is below a space but tab and carriage return


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

    A packed file that is cut off costs its end only; one that was read as another service's, or was rotated away
    meanwhile, itself; so does one of several that cannot be read. Raises LogError where that is the only one;
    FormatError before anything is sent; UnsentError where nothing was read: else it is among the result's problems.
    """
    result = Result(Tally(), dry_run)
    files = in_order(_found(paths, formats, origin.zone, result))
    sizes = [_size(file) for file in files]
    result.files = len(files)
    log = Log(origin, result.tally, since_ns=since_ns or 0, until_ns=until_ns or 2**62)
    resumes = not dry_run and since_ns is None and until_ns is None
    with _progress(console) as bar, Sender(client, result, console) as sender:
        task = bar.add_task("", total=sum(sizes) or None, rate="")
        began = time.monotonic()
        try:
            for number, file in enumerate(files):
                log.open_file(file.form, formats, copy=number > 0 and files[number - 1].key == file.key)
                with _going_on(result, LogError):
                    for lines, place, position in _read(file, log, sender, result, clock, origin.service, resumes):
                        sender.send(lines, place)
                        rate = result.tally.lines / max(time.monotonic() - began, 1e-3)
                        told = f"{result.tally.lines:,} lines, {rate:,.0f}/s"
                        bar.update(task, completed=position + sum(sizes[:number]), rate=told)
            sender.wait()
        except UnsentError as problem:
            if not result.tally.lines:
                raise
            result.problems.append(problem)
        except KeyboardInterrupt:
            result.stopped = True
            with suppress(KeyboardInterrupt):
                sender.stop()
    if result.fates.total() and not (result.stopped or result.unsent):
        compare(client, result, origin.service)
    if result.fates["added"] and not (dry_run or result.stopped) and (lost := lost_on_the_way(client)):
        result.problems.append(lost)
    if full := full_disk(path for path in paths if _is_written(path)):
        result.problems.append(full)
    return result


def _found(paths: Sequence[str], formats: Sequence[Format], zone: str, result: Result) -> Iterator[LogFile]:
    for path in paths:
        with _going_on(result, LogError if len(paths) > 1 else CutError):
            if file := look(path, formats, zone):
                yield file
                continue
            _check_text(path, rest := torn(path))
            if path == STDIN and len(rest) > MAX_LINE:
                result.tally.torn(rest, ENDLESS)
                fix = "A file that begins like that is read: write it into one."
                result.problems.append(LogError(f"Standard input was not read on: {ENDLESS}.", value=path, fix=fix))
            elif rest:
                result.tally.torn(rest)
            elif path == STDIN:
                fix = "Look whether the command before it worked."
                result.problems.append(LogError("Standard input is empty.", value=path, fix=fix))
            result.empty.append(shown_path(path))


def _check_text(path: str, begin: bytes) -> None:
    """Raises LogError where that is what nginx never writes."""
    if STEERING.search(begin):
        told = f"{'Standard input' if path == STDIN else shown_path(path)} is no text: it begins {shown(begin[:20])}."
        raise LogError(told, value=path, fix="Name the files of nginx's access_log.")


@contextmanager
def _going_on(result: Result, but: type[LogError]) -> Iterator[None]:
    try:
        yield
    except FormatError:  # once all of them can be read nothing is there that should not be
        raise
    except but as problem:
        result.problems.append(problem)


def _read(
    file: LogFile,
    log: Log,
    sender: Sender,
    result: Result,
    clock: Callable[[], int],
    service: str,
    resumes: bool,
) -> Iterator[tuple[Lines, Place | None, int]]:
    """What the file tells and was not read before, how far that is, and the position in the file as it lies there."""
    with opened(file.path) as content:
        position = 0
        if file.path != STDIN:
            _check(file, content)
            place = sender.place(file)
            if is_as_read(content, place.read_to, place.before):
                place.check(shown_path(file.path), service)
                position = place.read_to if resumes else 0
            hear(log, content, position, clock())
            result.skipped += position
        for piece in pieces(content, position):
            if not piece.before:
                log.tally.torn(piece.content)
                continue
            if piece.endless:
                log.tally.torn(piece.endless, ENDLESS)
            lines, at = log.read(piece.content, clock()), getattr(content, "fileobj", content)
            is_kept = resumes and not log.ahead
            there = Place(file=file.key, read_to=piece.read_to, before=piece.before, service=service)
            yield lines, there if is_kept else None, 0 if file.path == STDIN else at.tell()
        if isinstance(content, BufferedReader):  # a packed one would be unpacked again for it
            _check(file, content)


def _check(file: LogFile, content: IO[bytes]) -> None:
    """Raises LogError where it was emptied since, or another has its name. It stands at its beginning afterwards."""
    if not is_still(file, content):
        told = f"{shown_path(file.path)} was rotated while this ran, and not read to its end."
        raise LogError(told, value=file.path, fix="Run this again: nothing is added twice.")


def _size(file: LogFile) -> int:
    if file.path == STDIN:
        return 0
    with suppress(FileNotFoundError):  # rotated away just now
        return Path(file.path).stat().st_size
    return 0


def _is_written(path: str) -> bool:
    """Whether nginx may write it still, as far as its time tells."""
    with suppress(OSError):
        return time.time() - Path(path).stat().st_mtime < WRITTEN_S
    return False


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
