"""`tailspan export`: the whole history of a database, sent on."""

from collections import Counter
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from tailspan.encode import batches
from tailspan.errors import SettingError, UnsentError
from tailspan.receiver import Receiver
from tailspan.store.duckdb import DuckDB

ALWAYS: Final = 2**63 - 1
AGAIN: Final = "Export again: what was taken before is not counted twice."


def export(database: Path, receiver: Receiver, console: Console) -> None:
    """Sends everything, heartbeats first, and tells the console of it.

    Raises UnsentError where not all was taken, SettingError without a database, LockedError where it is not ours alone.
    """
    if not database.exists():
        raise SettingError(f"TAILSPAN_DB is {database}, and there is no such file.", value=str(database))
    with closing(DuckDB(database)) as store:
        send(store, receiver, console)


def send(store: DuckDB, receiver: Receiver, console: Console) -> None:
    """Raises UnsentError where not all was taken."""
    beats = store.heartbeats(ALWAYS)
    total = store.count() + len(beats)
    if not total:
        raise UnsentError(f"The database {store.path} is empty: nothing was sent.", value=str(store.path))
    taken, refused = 0, Counter[str]()
    try:
        with Progress(
            *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as bar:
            task = bar.add_task("sent", total=total)
            for batch in batches(chain(beats, store.spans())):
                answer = receiver.send(batch.body)
                if answer.refused:
                    refused[answer.message] += answer.refused
                taken += batch.spans - answer.refused
                bar.advance(task, batch.spans)
    except (KeyboardInterrupt, UnsentError):
        console.print(f"Stopped: {receiver.url} took {taken:,} of {total:,}. {AGAIN}", highlight=False)
        raise
    console.print(f"{receiver.url} took {taken:,} of {total:,} requests, views and heartbeats.", highlight=False)
    if refused:
        reasons = "; ".join(f"{count:,} for {reason or 'no reason'}" for reason, count in refused.items())
        raise UnsentError(f"{receiver.url} refused {refused.total():,} of them: {reasons}.")
