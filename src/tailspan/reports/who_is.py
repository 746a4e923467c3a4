"""Whose a tailnet address is: what each source says, what requests said themselves, and whose it was before."""

from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from tailspan_otel.identity import parse

from tailspan.directory import Post
from tailspan.errors import QuestionError
from tailspan.query import MAX_GROUPS, Aggregate, ending
from tailspan.reports import Source, Sources, iso
from tailspan.reports.device import Entry, entries
from tailspan.reports.devices import NO_USE, TailnetDevice, Use, described, first_seen, members_of, told, utc
from tailspan.span import Device
from tailspan.tailnet import Listed

LIST: Final = "device_list"


class WhoIsParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, Field(max_length=64, description="An IPv4 or IPv6 address of the tailnet.")]
    days: Annotated[int, Field(ge=1, le=30, description="Use of the last so many days of 24 hours.")] = 7


class Word(BaseModel):
    """What one source says of the address."""

    source: str = Field(description="A source of the tailnet; or `requests`: the newest one that knew its own device.")
    device_id: str | None = Field(description="null: it knows nobody with that address.")
    device: str | None
    user: str | None
    tags: list[str]
    kind: str | None
    as_of: str | None = Field(description="When it said so.")


class AddressUse(Use):
    user: str | None
    device_id: str | None
    service: str


class WhoIs(BaseModel):
    address: str
    device: TailnetDevice | None = Field(description="Whose it is now, as the first source that knows tells it.")
    says: list[Word]
    history: list[Entry] = Field(description="Newest first.")
    used_by: list[AddressUse] = Field(description="Requests from it, as answers name them; most first.")
    sources: list[Source]


def who_is(of: Sources, params: WhoIsParams, now: datetime) -> WhoIs:
    """Raises QuestionError for what is no address, and StoreError."""
    address = _address(params.address)
    history = of.store.history()
    own = [one for one in history if one.address == address]
    uses = _uses(of, address, params.days, now)
    member = next((one for one in members_of(of, now) if address in one.device.addresses), None)
    used = [use for use in uses if member and use.device_id == member.device.node_id]
    total = Use(
        requests=sum(use.requests for use in used),
        last_request=max((str(use.last_request) for use in used), default=None),
    )
    posts = of.tailnet.posts if of.tailnet else []
    seen = [one for one in own if one.source != LIST]
    return WhoIs(
        address=address,
        device=described(member, first_seen(history), total) if member else None,
        says=[*(_word(post, address) for post in posts if post.look), *map(_sighting, seen[-1:])],
        history=entries(own),
        used_by=uses,
        sources=told(of, now),
    )


def _address(text: str) -> str:
    if (address := parse(text.strip())) is None:
        raise QuestionError(
            f"address is {text!r}.", value=text, rule="It is an IP address, as 100.64.0.7 or fd7a:115c:a1e0::7."
        )
    return str(address)


def _uses(of: Sources, address: str, days: int, now: datetime) -> list[AddressUse]:
    query = Aggregate(
        range=ending(now, timedelta(days=days)),
        metrics=("requests", "last_seen"),
        dimensions=("person", "device", "service"),
        filters={"address": (address,)},
        without=NO_USE,
        labels=of.meaning(),
        limit=MAX_GROUPS,
    )
    return [
        AddressUse(
            user=row["person"],
            device_id=row["device"],
            service=row["service"],
            requests=row["requests"],
            last_request=iso(row["last_seen"]),
        )
        for row in of.store.run(query).rows
    ]


def _word(post: Post, address: str) -> Word:
    assert post.look
    found: Listed | None = next((one for one in post.look.devices if address in one.addresses), None)
    return Word(
        source=post.source.name,
        device_id=found.node_id if found else None,
        device=found.node if found else None,
        user=found.login if found else None,
        tags=found.tags.split(",") if found and found.tags else [],
        kind=found.kind if found else None,
        as_of=utc(post.looked),
    )


def _sighting(one: Device) -> Word:
    return Word(
        source="requests",
        device_id=one.node_id,
        device=one.node,
        user=one.login,
        tags=one.tags.split(",") if one.tags else [],
        kind=one.kind,
        as_of=iso(one.from_ns),
    )
