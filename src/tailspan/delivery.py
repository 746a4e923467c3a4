"""Log lines on their way from whoever reads a log to the server: a line of JSON, and a row of text for each line.

Apart from the server's libraries, for the command does without them.
"""

import json
import re
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tailspan.errors import DeliveryError
from tailspan.ingest.lines import Lines
from tailspan.span import ABOUT

LINES_PATH: Final = "/analytics/log-lines"
ADDRESS: Final = ABOUT.index("address")
ROWS: Final = re.compile(rb"(?:\d{1,9}\t[0-9a-f]{32}\t[0-9a-f]{16}\t\d{1,19}\t\d{0,18}\t[^\t\n\r\x00]*\n)*+")
NUMBER: Final = re.compile(rb"^(\d+)", re.MULTILINE)
Text = Annotated[str, Field(max_length=1024)]


class About(BaseModel):
    """What a line may say. Whom it names, its proxy vouches for; else that is known when a question is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Text
    environment: Text | None = None
    method: Text
    route: Text | None = None
    status: int | None = Field(None, ge=100, le=599)
    login: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    address: Text | None = None
    guess: Text | None = None
    identity_source: Annotated[str, Field(pattern="^(serve_header|nginx_auth|none)$")] = "none"
    caller: Annotated[str, Field(pattern="^(person|unknown|local)$")]
    traffic: Annotated[str, Field(pattern="^(agent|internal|health|asset|page|poll|api)$")]
    page: Text | None = None
    client_address: Text | None = None
    user_agent: Text | None = None
    schema_: Annotated[int, Field(alias="schema", ge=0, le=2**15 - 1)]

    @model_validator(mode="after")
    def _is_vouched_for(self) -> Self:
        told = (self.login is not None, self.identity_source != "none", self.caller == "person")
        if any(told) and not all(told):
            raise ValueError("a person has a login, and a login is somebody's word")
        return self


FIXED: Final = {"source": "log", "proven": True, "kind": "request"}
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


def parse(body: bytes) -> tuple[Lines, Head]:
    """What `delivery` made. Raises DeliveryError."""
    first, _, rows = body.partition(b"\n")
    try:
        head = Head.model_validate_json(first)
    except ValidationError as problem:
        raise _unreadable(str(problem.errors()[0]["msg"])) from None
    if not ROWS.fullmatch(rows):
        raise _unreadable("a row is none")
    abouts = {number: _about(about) for number, about in head.abouts.items()}
    if not set(map(int, set(NUMBER.findall(rows)))) <= abouts.keys():
        raise _unreadable("a row is about nothing")
    return Lines(abouts, rows, rows.count(b"\n")), head


def _about(about: About) -> tuple[object, ...]:
    told = FIXED | vars(about) | {"schema": about.schema_}
    return tuple(map(told.get, ABOUT))


def delivery(lines: Lines, place: Place | None, *, dry_run: bool = False) -> bytes:
    """The body of what `parse` reads."""
    abouts = {
        number: {name: about[at] for name, at in PLACES.items() if about[at] not in (None, "none")}
        for number, about in lines.abouts.items()
    }
    head = {"abouts": abouts, "place": place.model_dump() if place else None, "dry_run": dry_run}
    return json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" + lines.rows


def _unreadable(why: str) -> DeliveryError:
    return DeliveryError(f"The body is no delivery of log lines: {why}.", fix="Send them by `tailspan backfill`.")
