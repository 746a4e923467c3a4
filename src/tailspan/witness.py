"""The door that log lines come in by: from whoever reads a log to the ledger, and what became of each."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from tailspan.errors import DeliveryError
from tailspan.inbox import body_of
from tailspan.ingest.lines import Lines
from tailspan.query import nanoseconds
from tailspan.span import ABOUT
from tailspan.store import Store

ROWS: Final = re.compile(rb"(?:\d{1,9}\t[0-9a-f]{32}\t[0-9a-f]{16}\t\d{1,19}\t\d{0,18}\t[^\t\n\r\x00]*\n)*+")
Text = Annotated[str, Field(max_length=1024)]


class About(BaseModel):
    """What a line may say. It names nobody: who had an address is known when a question is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Text
    environment: Text | None = None
    method: Text
    route: Text | None = None
    status: int | None = Field(None, ge=100, le=599)
    address: Text | None = None
    guess: Text | None = None
    caller: Annotated[str, Field(pattern="^(unknown|local)$")]
    traffic: Annotated[str, Field(pattern="^(agent|internal|health|asset|page|poll|api)$")]
    page: Text | None = None
    client_address: Text | None = None
    user_agent: Text | None = None
    schema_: Annotated[int, Field(alias="schema", ge=0, le=2**15 - 1)]


FIXED: Final = {"source": "log", "identity_source": "none", "proven": True, "kind": "request"}
PLACES: Final = {name: place for place, name in enumerate(ABOUT) if name not in FIXED}


class Place(BaseModel):
    """How far a file was read, by its first line."""

    file: str = Field(pattern="^[0-9a-f]{32}$")
    read_to: int = Field(ge=0)
    before: str = Field(pattern="^([0-9]+-[0-9a-f]{32})?$")


class Head(BaseModel):
    """The first line of a delivery, in JSON; the rows are the others."""

    model_config = ConfigDict(extra="forbid")

    abouts: dict[int, About]
    place: Place | None = None
    dry_run: bool = False


class Answer(BaseModel):
    """What became of the lines, in numbers; `unresolved`: addresses that no device is known to have had."""

    lines: int
    added: int
    known: int
    twins: int
    too_old: int
    unresolved: list[str]


class Witness:
    """Takes lines for one store, which keeps them for `days`."""

    def __init__(self, store: Store, clock: Callable[[], datetime], days: int) -> None:
        self._store = store
        self._clock = clock
        self._days = days

    async def receive(self, request: Request) -> Answer:
        """Raises DeliveryError, BusyError."""
        body = await body_of(request)
        return await anyio.to_thread.run_sync(self.deliver, body)

    def deliver(self, body: bytes) -> Answer:
        """It is on disk when this returns. Raises likewise."""
        head, _, rows = body.partition(b"\n")
        try:
            known = Head.model_validate_json(head)
        except ValidationError as problem:
            raise _unreadable(str(problem.errors()[0]["msg"])) from None
        if not ROWS.fullmatch(rows):
            raise _unreadable("a row is none")
        abouts = {number: _about(about) for number, about in known.abouts.items()}
        if not {int(row.partition(b"\t")[0]) for row in rows.splitlines()} <= abouts.keys():
            raise _unreadable("a row is about nothing")
        return self.keep(Lines(abouts, rows, rows.count(b"\n")), known.place, dry_run=known.dry_run)

    def keep(self, lines: Lines, place: Place | None = None, *, dry_run: bool = False) -> Answer:
        """Likewise, of lines that were read here."""
        oldest_ns = nanoseconds(self._clock() - timedelta(days=self._days))
        fates = self._store.add_lines(lines, oldest_ns, dry_run=dry_run)
        if place and not dry_run:
            self._store.read(place.file, place.read_to, place.before)
        held = {device.address for device in self._store.history()}
        addresses = {about[ADDRESS] for about in lines.abouts.values()}
        return Answer(**fates._asdict(), unresolved=sorted(str(one) for one in addresses - held if one))

    def place(self, file: str) -> Place:
        """How far the file of that first line was read; 0 where it was not."""
        read_to, before = self._store.place(file)
        return Place(file=file, read_to=read_to, before=before)


ADDRESS: Final = ABOUT.index("address")


def _about(about: About) -> tuple[object, ...]:
    told: Mapping[str, Any] = FIXED | about.model_dump(by_alias=True)
    return tuple(told.get(name) for name in ABOUT)


def delivery(lines: Lines, place: Place | None, *, dry_run: bool = False) -> bytes:
    """The body of what `Witness.deliver` reads."""
    abouts = {
        number: {name: about[at] for name, at in PLACES.items() if about[at] is not None}
        for number, about in lines.abouts.items()
    }
    head = {"abouts": abouts, "place": place.model_dump() if place else None, "dry_run": dry_run}
    return json.dumps(head, ensure_ascii=False).encode() + b"\n" + lines.rows


def _unreadable(why: str) -> DeliveryError:
    return DeliveryError(f"The body is no delivery of log lines: {why}.", fix="Send them by `tailspan backfill`.")
