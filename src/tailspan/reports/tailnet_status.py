"""The tailnet as a whole: how many devices, whose keys expire, and how its sources fare."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, Field

from tailspan.directory import WARNED, Post
from tailspan.reports import Source, Sources
from tailspan.reports.devices import members_of, told, utc
from tailspan.tailnet import Listed


class KeyExpiry(BaseModel):
    id: str
    device: str
    user: str | None
    expires: str | None
    expired: bool


class TailnetSource(BaseModel):
    """What one source says of itself."""

    name: str = Field(description="local, status, headscale or api.")
    place: str
    devices: int | None = Field(description="How many it listed when it last answered.")
    as_of: str | None = Field(description="When it last answered.")
    version: str | None = Field(description="Of the Tailscale that answers there.")
    device: str | None = Field(description="The device that answers there.")
    userspace: bool | None = Field(description="Whether it runs without a TUN device.")
    health: list[str] = Field(description="What it says is wrong with itself.")
    key_expires: str | None = Field(description="When the key that it is asked with does.")


class TailnetStatus(BaseModel):
    tailnet: str | None
    magic_dns_suffix: str | None
    devices: int
    online: int
    people: int = Field(description="Different owners of devices of the own tailnet.")
    tagged: int
    shared: int
    keys_expiring: list[KeyExpiry] = Field(
        description="Devices whose key expires within 14 days, or has; soonest first."
    )
    listed_by: list[TailnetSource]
    sources: list[Source]


def tailnet_status(of: Sources, now: datetime) -> TailnetStatus:
    devices = [one.device for one in members_of(of, now)]
    posts = of.tailnet.posts if of.tailnet else []
    looks = [post.look for post in posts if post.look]
    return TailnetStatus(
        tailnet=next((look.tailnet for look in looks if look.tailnet), None),
        magic_dns_suffix=next((look.suffix for look in looks if look.suffix), None),
        devices=len(devices),
        online=sum(bool(one.online) for one in devices),
        people=len({one.login for one in devices if one.kind == "person" and one.login}),
        tagged=sum(one.kind == "tagged" for one in devices),
        shared=sum(one.kind == "shared" for one in devices),
        keys_expiring=_expiring(devices, now),
        listed_by=[_described(post) for post in posts if post.look],
        sources=told(of, now),
    )


def _expiring(devices: Iterable[Listed], now: datetime) -> list[KeyExpiry]:
    found = [one for one in devices if one.expired or (one.expires and one.expires - now <= WARNED)]
    return [
        KeyExpiry(
            id=one.node_id,
            device=one.node,
            user=one.login,
            expires=utc(one.expires),
            expired=one.expired or bool(one.expires and one.expires <= now),
        )
        for one in sorted(found, key=lambda one: (one.expires is not None, one.expires or now, one.node))
    ]


def _described(post: Post) -> TailnetSource:
    look = post.look
    assert look
    return TailnetSource(
        name=post.source.name,
        place=post.source.place,
        devices=len(look.devices),
        as_of=utc(post.looked),
        version=look.version,
        device=next((one.node for one in look.devices if one.node_id == look.own), None),
        userspace=look.userspace,
        health=list(look.health),
        key_expires=utc(look.key_expires),
    )
