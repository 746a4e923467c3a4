"""One device: what the sources say of it, which addresses and names it had, and which services it uses."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tailspan.directory import Member
from tailspan.errors import MissingError
from tailspan.query import ending
from tailspan.reports import Source, Sources, iso
from tailspan.reports.devices import (
    DevicesParams,
    TailnetDevice,
    Use,
    described,
    first_seen,
    members_of,
    told,
    uses_of,
)
from tailspan.span import Device
from tailspan.tailnet import Listed


class DeviceParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    days: Annotated[int, Field(ge=1, le=30, description="Use of the last so many days of 24 hours.")] = 7


class Entry(BaseModel):
    """Whose an address was for a while."""

    address: str
    device_id: str
    device: str
    user: str | None
    tags: list[str]
    kind: str
    source: str = Field(description="device_list: a source of the tailnet; else how a request's own device was known.")
    start: str
    end: str | None = Field(description="Not included; null while it holds.")


class ServiceUse(Use):
    service: str
    environment: str | None


class OneDevice(BaseModel):
    device: TailnetDevice
    listed: bool = Field(description="Whether a source lists it now; else this is what the history last knew.")
    services: list[ServiceUse]
    history: list[Entry] = Field(description="Newest first.")
    sources: list[Source]


def device(of: Sources, id: str, params: DeviceParams, now: datetime) -> OneDevice:
    """By stable id, else by name. Raises MissingError, StoreError."""
    members, history = members_of(of, now), of.store.history()
    member = _found(id, members) or _remembered(id, history)
    if member is None:
        raise _missing(id, members, history)
    window = ending(now, timedelta(days=params.days))
    only = DevicesParams(days=params.days)
    uses = uses_of(of, only, window, "device", "service", "environment")
    own = member.device.node_id
    services = [
        ServiceUse(service=str(service), environment=environment, **use.model_dump())
        for (node_id, service, environment), use in uses.items()
        if node_id == own
    ]
    total = Use(
        requests=sum(one.requests for one in services),
        last_request=max((one.last_request for one in services if one.last_request), default=None),
    )
    return OneDevice(
        device=described(member, first_seen(history), total),
        listed=bool(member.sources),
        services=sorted(services, key=lambda one: (-one.requests, one.service, one.environment or "")),
        history=entries(one for one in history if one.node_id == own),
        sources=told(of, now),
    )


def entries(history: Iterable[Device]) -> list[Entry]:
    """Newest first; an entry that goes on as it was before is one."""
    merged: list[Device] = []
    for one in sorted(history, key=lambda one: (one.address, one.turn)):
        last = merged[-1] if merged else None
        if last and (last.address, last.who, last.source, last.to_ns) == (
            one.address,
            one.who,
            one.source,
            one.from_ns,
        ):
            merged[-1] = one._replace(from_ns=last.from_ns)
        else:
            merged.append(one)
    return [_entry(one) for one in sorted(merged, key=lambda one: one.turn, reverse=True)]


def _entry(one: Device) -> Entry:
    return Entry(
        address=one.address,
        device_id=one.node_id,
        device=one.node,
        user=one.login,
        tags=one.tags.split(",") if one.tags else [],
        kind=one.kind,
        source=one.source,
        start=iso(one.from_ns),
        end=None if one.to_ns is None else iso(one.to_ns),
    )


def _found(id: str, members: list[Member]) -> Member | None:
    by_id = [one for one in members if one.device.node_id == id]
    by_name = [one for one in members if one.device.node == id]
    return next(iter(by_id + by_name), None)


def _remembered(id: str, history: list[Device]) -> Member | None:
    """As its newest entry has it."""
    found = [one for one in history if one.node_id == id] or [one for one in history if one.node == id]
    if not found:
        return None
    own = [one for one in history if one.node_id == found[-1].node_id]
    last = own[-1]
    addresses = tuple(sorted({one.address for one in own}))
    return Member(Listed(last.node_id, last.node, addresses, last.login, last.full_name, last.tags, last.kind), ())


def _missing(id: str, members: list[Member], history: list[Device]) -> MissingError:
    names = {one.device.node for one in members} | {one.node for one in history}
    nearest = get_close_matches(id, names, n=1)
    return MissingError(
        f"There is no device {id!r}.",
        value=id,
        rule="It is the stable id or the name of a device that a source lists, or that was seen.",
        fix=f"Did you mean {nearest[0]!r}?" if nearest else "GET /analytics/tailnet/devices lists them.",
    )
