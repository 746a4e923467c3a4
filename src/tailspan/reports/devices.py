"""The devices of the tailnet, and which of them use the services: those that don't, and those nobody knows."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from tailspan.directory import Member
from tailspan.query import MAX_GROUPS, Aggregate, Range, ending
from tailspan.reports import MORE, PERSON, Filters, Source, Sources, iso
from tailspan.span import Device

NOT_SET: Final = Source(
    name="tailnet",
    state="not set",
    newest=None,
    message="No source lists the tailnet's devices: set TS_SOCKET, TAILSPAN_STATUS, HEADSCALE_URL or "
    "TAILSCALE_API_KEY.",
)
NO_USE: Final = {"traffic": ("health", "internal")}


class DevicesParams(Filters):
    days: Annotated[int, Field(ge=1, le=30, description="Use of the last so many days of 24 hours.")] = 7
    online: Annotated[bool | None, Field(description="Only devices that are online, or that are not.")] = None
    using: Annotated[bool | None, Field(description="Only devices that made requests, or that made none.")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="At most this many entries in each list.")] = 100


class Use(BaseModel):
    """Requests of the window, without health checks and a service's own."""

    requests: int
    last_request: str | None


class TailnetDevice(Use):
    """A device as the sources list it, and what it did."""

    id: str = Field(description="Stable id: what devices are counted by.")
    name: str
    user: str | None = Field(description="Its owner's login; null for a tagged device.")
    full_name: str | None
    tags: list[str]
    kind: str = Field(description="person, tagged or shared (in from another tailnet).")
    addresses: list[str]
    os: str | None
    version: str | None = Field(description="Of its Tailscale.")
    online: bool | None = Field(description="null where no source knows.")
    last_seen: str | None = Field(description="By the tailnet; null while it is online.")
    joined: str | None = Field(description="When it joined the tailnet, where a source knows.")
    first_seen: str | None = Field(description="Since when the device history has it.")
    key_expires: str | None
    key_expired: bool
    listed_by: list[str] = Field(description="The sources that list it.")


class Stranger(Use):
    """Whoever made requests from a tailnet address and is in no source's list."""

    address: str
    device_id: str | None
    device: str | None
    user: str | None


class NewDevice(BaseModel):
    id: str
    name: str
    user: str | None
    first_seen: str


class NewPerson(BaseModel):
    user: str
    first_seen: str


class Summary(BaseModel):
    devices: int
    online: int
    using: int
    online_not_using: int
    unknown: int
    new_devices: int
    new_people: int


class Devices(BaseModel):
    devices: list[TailnetDevice]
    unknown: list[Stranger] = Field(description="Using, but not in the tailnet as its sources list it.")
    new_devices: list[NewDevice] = Field(description="First seen in the window.")
    new_people: list[NewPerson] = Field(description="People whose first activity ever is in the window.")
    summary: Summary = Field(description="Of all devices that fit, however many are shown.")
    start: str
    end: str
    more: dict[str, int] = MORE
    sources: list[Source]


def devices(of: Sources, params: DevicesParams, now: datetime) -> Devices:
    """Devices by name, with their use of the window. Raises StoreError."""
    window = ending(now, timedelta(days=params.days))
    members, history = members_of(of, now), of.store.history()
    uses = uses_of(of, params, window, "device")
    firsts = first_seen(history)
    listed = [described(one, firsts, uses.get((one.device.node_id,))) for one in members]
    fitting = sorted((one for one in listed if _fits(one, params)), key=lambda one: (one.name, one.id))
    strangers = _strangers(of, params, window, members, history) if of.tailnet else []
    new = [one for one in fitting if one.first_seen and one.first_seen >= iso(window.start_ns)]
    people = _new_people(of, params, window)
    lists: dict[str, list[Any]] = {
        "devices": fitting,
        "unknown": strangers,
        "new_devices": [
            NewDevice(id=one.id, name=one.name, user=one.user, first_seen=str(one.first_seen)) for one in new
        ],
        "new_people": people,
    }
    return Devices(
        **{name: found[: params.limit] for name, found in lists.items()},
        summary=Summary(
            devices=len(fitting),
            online=sum(bool(one.online) for one in fitting),
            using=sum(one.requests > 0 for one in fitting),
            online_not_using=sum(bool(one.online) and not one.requests for one in fitting),
            unknown=len(strangers),
            new_devices=len(new),
            new_people=len(people),
        ),
        start=iso(window.start_ns),
        end=iso(window.end_ns),
        more={name: len(found) - params.limit for name, found in lists.items() if len(found) > params.limit},
        sources=told(of, now),
    )


def members_of(of: Sources, now: datetime) -> list[Member]:
    return of.tailnet.members(now) if of.tailnet else []


def told(of: Sources, now: datetime) -> list[Source]:
    """As in every answer; and that the tailnet has no source, where it has none."""
    sources = of.told(now)
    return sources if any(source.name.startswith("tailnet") for source in sources) else [*sources, NOT_SET]


def uses_of(of: Sources, params: Filters, window: Range, *by: str) -> dict[tuple[str | None, ...], Use]:
    """The requests of each group of which the first of `by` is known."""
    given = params.model_dump(include={"service", "environment"}, exclude_none=True)
    found = of.store.run(
        Aggregate(
            range=window,
            metrics=("requests", "last_seen"),
            dimensions=by,
            filters={name: (value,) for name, value in given.items()},
            without=NO_USE,
            known=by[:1],
            labels=of.meaning(),
            limit=MAX_GROUPS,
        )
    )
    return {
        tuple(row[name] for name in by): Use(requests=row["requests"], last_request=iso(row["last_seen"]))
        for row in found.rows
    }


def first_seen(history: Iterable[Device]) -> dict[str, int]:
    """Of each device by its id, in nanoseconds."""
    return {one.node_id: one.from_ns for one in sorted(history, key=lambda one: one.from_ns, reverse=True)}


def described(member: Member, firsts: Mapping[str, int], use: Use | None) -> TailnetDevice:
    """`use`: None where it made no request."""
    device, first_ns = member.device, firsts.get(member.device.node_id)
    return TailnetDevice(
        id=device.node_id,
        name=device.node,
        user=device.login,
        full_name=device.full_name,
        tags=device.tags.split(",") if device.tags else [],
        kind=device.kind,
        addresses=list(device.addresses),
        os=device.os,
        version=device.version,
        online=device.online,
        last_seen=utc(device.last_seen),
        joined=utc(device.created),
        first_seen=None if first_ns is None else iso(first_ns),
        key_expires=utc(device.expires),
        key_expired=device.expired,
        listed_by=list(member.sources),
        requests=use.requests if use else 0,
        last_request=use.last_request if use else None,
    )


def utc(moment: datetime | None) -> str | None:
    """To the second, as sources have it."""
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _fits(one: TailnetDevice, params: DevicesParams) -> bool:
    return (
        params.user in (None, one.user)
        and params.device in (None, one.id, one.name)
        and params.online in (None, bool(one.online))
        and params.using in (None, one.requests > 0)
    )


def _strangers(
    of: Sources, params: DevicesParams, window: Range, members: list[Member], history: list[Device]
) -> list[Stranger]:
    """Newest first."""
    ids = {one.device.node_id for one in members}
    addresses = {address for one in members for address in one.device.addresses}
    names = {one.node_id: one.node for one in history}
    found = [
        Stranger(
            address=str(address),
            device_id=device,
            device=names.get(device or ""),
            user=user,
            requests=use.requests,
            last_request=use.last_request,
        )
        for (address, device, user), use in uses_of(of, params, window, "address", "device", "person").items()
        if device not in ids and (device is not None or address not in addresses)
    ]
    fitting = [
        one for one in found if params.user in (None, one.user) and params.device in (None, one.device_id, one.device)
    ]
    return sorted(fitting, key=lambda one: (one.last_request or "", one.address), reverse=True)


def _new_people(of: Sources, params: DevicesParams, window: Range) -> list[NewPerson]:
    """Newest first."""
    query = Aggregate(
        range=window,
        metrics=("first_seen",),
        dimensions=("person",),
        known=PERSON,
        filters=params.as_filters(),
        labels=of.meaning(),
        order=("-first_seen",),
        limit=MAX_GROUPS,
    )
    return [
        NewPerson(user=row["person"], first_seen=iso(row["first_seen"]))
        for row in of.store.run(query).rows
        if row["first_seen"] is not None and row["first_seen"] >= window.start_ns
    ]
