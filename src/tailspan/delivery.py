"""Log lines on their way from whoever reads a log to the server: a line of JSON, and a row of text for each line.

Apart from the server's libraries, for the command does without them.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from tailspan.errors import DeliveryError, OtherServiceError
from tailspan.ingest.lines import Lines
from tailspan.span import ABOUT

LINES_PATH: Final = "/analytics/log-lines"
MAX_BYTES: Final = 32 * 2**20  # of a body: lines of which none is like another become four times as long
ADDRESS: Final = ABOUT.index("address")
# start and what it took are below 2^63 together
ROWS: Final = re.compile(
    rb"(?:\d{1,9}\t[0-9a-f]{32}\t[0-9a-f]{16}\t[1-7]?\d{1,18}\t\d{0,18}\t\d{0,18}\t[^\t\n\r\x00]*\n)*+"
)
NUMBER: Final = re.compile(rb"^(\d+)", re.MULTILINE)
Text = Annotated[str, Field(max_length=1024)]
File = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # of its first line


class Abouts(BaseModel):
    """What lines may say, by columns. Nobody's login: a claim is one where its service's log is trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: list[Annotated[int, Field(ge=0, lt=10**9)]] = []
    service: list[Text] = []
    environment: list[Text | None] = []
    method: list[Text] = []
    route: list[Text | None] = []
    status: list[Annotated[int, Field(ge=100, le=599)] | None] = []
    address: list[Text | None] = []
    guess: list[Text | None] = []
    identity_source: list[Literal["serve_header", "nginx_auth", "none"]] = []
    caller: list[Literal["unknown", "local"]] = []
    traffic: list[Literal["agent", "internal", "health", "asset", "page", "api"]] = []
    page: list[Text | None] = []
    client_address: list[Text | None] = []
    user_agent: list[Text | None] = []
    claim: list[Annotated[str, Field(min_length=1, max_length=1024)] | None] = []
    polled: list[bool] = []
    by_proxy: list[bool] = []
    schema_: list[Annotated[int, Field(ge=0, le=2**15 - 1)]] = Field([], alias="schema")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        columns = {name: column for name, column in vars(self).items() if column or name not in NEWER}
        if len(set(map(len, columns.values()))) > 1:
            raise ValueError("the columns are of different lengths")
        if any((claim is None) != (by == "none") for claim, by in zip(self.claim, self.identity_source, strict=True)):
            raise ValueError("a claim is made by a header, and a header claims somebody")
        return self

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Each in the order of span.ABOUT."""
        told = {**vars(self), "schema": self.schema_}
        return zip(*(told.get(name) or [FIXED.get(name)] * len(self.number) for name in ABOUT), strict=True)


FIXED: Final = {"source": "log", "proven": True, "kind": "request", "by_proxy": False}
NEWER: Final = ("by_proxy",)  # what a command of an older version does not tell
COLUMNS: Final = tuple((name, ABOUT.index(name)) for name in ABOUT if name in {*Abouts.model_fields, "schema"})


class Place(BaseModel):
    """How far a file was read, by its first line."""

    file: File
    read_to: int = Field(ge=0, lt=2**63)
    before: str = Field(pattern="^([0-9]+-[0-9a-f]{32})?$")
    service: Text | None = None  # as whose it was read; None where nobody knows that any more

    def check(self, path: str, service: str) -> None:
        """Raises OtherServiceError where that file was read as another's: a line is known by its service, too."""
        if self.service in (None, service):
            return
        raise OtherServiceError(
            f"{path} was read as requests of {self.service}: as {service}'s they would be there a second time.",
            value=self.service,
            fix=f"Where {service} is right, take those out, and read it then: {removal(str(self.service))}",
        )


def removal(service: str) -> str:
    """The command that takes out what only logs told of that service."""
    return f"tailspan remove-log {shlex.quote(service)}"


class Head(BaseModel):
    """The first line of a delivery, in JSON; the rows are the others."""

    model_config = ConfigDict(extra="forbid")

    abouts: Abouts
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


def parse(body: bytes) -> tuple[Lines, Head]:
    """What `delivery` made. Raises DeliveryError."""
    first, _, rows = body.partition(b"\n")
    try:
        head = Head.model_validate_json(first)
    except ValidationError as problem:
        raise _unreadable(str(problem.errors()[0]["msg"])) from None
    if not ROWS.fullmatch(rows):
        raise _unreadable("a row is none")
    try:
        rows.decode()
    except UnicodeDecodeError:
        raise _unreadable("a path is no UTF-8") from None
    abouts = dict(zip(head.abouts.number, head.abouts.rows(), strict=True))
    if not set(map(int, set(NUMBER.findall(rows)))) <= abouts.keys():
        raise _unreadable("a row is about nothing")
    return Lines(abouts, rows, rows.count(b"\n")), head


def delivery(lines: Lines, place: Place | None, *, dry_run: bool = False) -> bytes:
    """The body of what `parse` reads."""
    told = list(lines.abouts.values())
    abouts = {"number": list(lines.abouts), **{name: [about[at] for about in told] for name, at in COLUMNS}}
    head = {"abouts": abouts, "place": place.model_dump() if place else None, "dry_run": dry_run}
    return to_json(head) + b"\n" + lines.rows


def _unreadable(why: str) -> DeliveryError:
    return DeliveryError(
        f"The body is no delivery of log lines: {why}.", fix="Send them by `tailspan backfill`, of the same version."
    )
