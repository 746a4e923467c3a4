"""The tailnet as its sources list it: looked at again and again, in the background, and kept as the device history.

Several sources make one list: of a device the first one tells that has it, and the others what that one does not know.
A source that has not answered for a while comes last; what it said holds until another says better.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from tailspan.config import Settings
from tailspan.errors import StoreError, TailnetError, TailnetState
from tailspan.query import nanoseconds
from tailspan.span import Device
from tailspan.tailnet import Listed, Look, Source
from tailspan.tailnet.api import API
from tailspan.tailnet.headscale import Headscale
from tailspan.tailnet.local import Local
from tailspan.tailnet.status import Status

if TYPE_CHECKING:
    from tailspan.store.duckdb import DuckDB  # the commands do without it

AGAIN_S: Final = 5.0  # after a first failure; then twice as long each time, up to MOST_S
MOST_S: Final = 300.0
LONGEST_S: Final = 3600.0  # however long a source wishes to be left alone
LEISURE: Final = 20  # a tailnet so large that a look takes seconds is looked at less often
REFUSED: Final = ("wrong token", "not allowed")  # which no second try makes better
STALE: Final = timedelta(minutes=15)  # from then on other sources are believed first, and nobody is let in by this one
WARNED: Final = timedelta(days=14)  # before a key expires

BESIDE: Final = ("os", "version", "online", "last_seen", "created", "expires")  # what a source may not know

DirectoryState = Literal["ok", "no data yet", "key expires", "not set"] | TailnetState

log = logging.getLogger("tailspan")


class Seen(NamedTuple):
    """What is known of a source at a moment."""

    name: str
    state: DirectoryState
    message: str


class Member(NamedTuple):
    """A device of the tailnet, and the sources that list it, the first of which told most."""

    device: Listed
    sources: tuple[str, ...]


@dataclass(slots=True)
class Post:
    """One source, and what it last said."""

    source: Source
    look: Look | None = None
    looked: datetime | None = None  # when it last answered; of a file, when that was written
    problem: TailnetError | None = None  # since then
    failures: int = 0
    took_s: float = 0.0

    def is_stale(self, now: datetime) -> bool:
        return self.looked is None or now - self.looked > max(STALE, timedelta(seconds=2 * self.source.every_s))

    @property
    def next_s(self) -> float:
        """How long to leave it alone."""
        if self.problem is None:
            return max(self.source.every_s, self.took_s * LEISURE)
        if self.problem.again_s is not None:
            return min(max(self.problem.again_s, AGAIN_S), LONGEST_S)
        return MOST_S if self.problem.state in REFUSED else min(AGAIN_S * 2 ** min(self.failures - 1, 10), MOST_S)


class Directory:
    """`sources` in the order in which they are believed. Its entries of the history go into `store`.

    `has_log`: nginx's log is where the server is, and so is nginx.
    """

    def __init__(
        self, sources: Sequence[Source], store: "DuckDB", clock: Callable[[], datetime], *, has_log: bool = False
    ) -> None:
        self._has_log = has_log
        self.posts = [Post(source) for source in sources]
        self._store = store
        self._clock = clock
        self._began = clock()
        self._keeping = threading.Lock()
        self._ended = threading.Event()
        self._holders: tuple[list[Look], dict[str, Listed]] = ([], {})  # by these, none of which is stale

    def start(self) -> None:
        """Threads of their own: a source that hangs must not hold up the end of the server."""
        for post in self.posts:
            name = f"tailspan-tailnet-{post.source.name}"
            threading.Thread(target=self._follow, args=(post,), name=name, daemon=True).start()

    def stop(self) -> None:
        """No entry is written after that."""
        self._ended.set()
        with self._keeping:
            pass

    def _follow(self, post: Post) -> None:
        while not self._ended.is_set():
            self.ask(post)
            self._ended.wait(post.next_s)

    def ask(self, post: Post) -> None:
        """One look. Never raises: what is wrong is the source's state."""
        began = time.monotonic()
        try:
            look = post.source.look()
            now = self._clock()
            _check_age(look, post.source, now)
        except TailnetError as problem:
            post.failures += 1
            post.problem = problem
            log.debug("tailnet %s: %s", post.source.name, problem)
            return
        post.look, post.looked, post.problem, post.failures = look, min(look.written or now, now), None, 0
        with self._keeping:
            if not self._ended.is_set():
                self._keep(now)
        post.took_s = time.monotonic() - began

    def _keep(self, now: datetime) -> None:
        """Where the store cannot be written, the next look tries again."""
        holders = _by_address(self.members(now))
        try:
            complete = all(post.look for post in self._expected())
            if news := list(changes(self._store.learned(), holders, nanoseconds(now), complete=complete)):
                self._store.learn(news)
        except StoreError as problem:
            log.warning("The device history was not kept: %s", problem)

    def holder(self, address: str) -> Listed | None:
        """The device that has the address now; None where no source says so that was heard of lately."""
        now = self._clock()
        posts = [post for post in self.posts if not post.is_stale(now)]
        looks = [post.look for post in posts if post.look]
        if looks != self._holders[0]:
            self._holders = looks, _by_address(_members(posts))
        return self._holders[1].get(address)

    @property
    def proxies(self) -> list[str]:
        """The addresses of the devices that nginx runs on: their own calls are checks.

        One is where a status URL is answered. That of a status file or of tailscaled's socket is one where the log is,
        too, or where it is nobody's: else it may be a laptop, whose owner is a visitor.
        """
        own = [(post.source, device) for post in self.posts if post.look for device in _own(post.look)]
        is_sure = (self._has_log or device.kind == "tagged" or _is_url(source) for source, device in own)
        return [address for (_, device), sure in zip(own, is_sure, strict=True) if sure for address in device.addresses]

    def members(self, now: datetime) -> list[Member]:
        """All devices, those of the first source first."""
        return _members(sorted(self.posts, key=lambda post: post.is_stale(now)))

    def told(self, now: datetime) -> list[Seen]:
        """The state of each source that should be there."""
        return [self._seen(post, now) for post in self._expected()]

    def _expected(self) -> list[Post]:
        """All but a tailscaled that nobody has installed: its socket is looked for without being asked to."""
        return [post for post in self.posts if post.look or not isinstance(post.source, Local) or post.source.is_there]

    def _seen(self, post: Post, now: datetime) -> Seen:
        name, look, problem = f"tailnet {post.source.name}", post.look, post.problem
        if problem:
            since, what = (post.looked, "what it said then") if post.looked else (self._began, "what was known before")
            return Seen(name, problem.state, f"{problem} Not heard of since {since:%Y-%m-%dT%H:%M:%SZ}: {what} holds.")
        if look is None:
            return Seen(name, "no data yet", f"{post.source.place} has not answered yet.")
        if look.key_expires and look.key_expires - now <= WARNED:
            when = f"{look.key_expires:%Y-%m-%d}"
            return Seen(name, "key expires", f"The key that {post.source.place} is asked with expires on {when}.")
        left_out = f", {look.left_out} left out for want of an address or an id" if look.left_out else ""
        return Seen(name, "ok", f"{post.source.place} lists {len(look.devices)} devices{left_out}.")


def _own(look: Look) -> list[Listed]:
    return [device for device in look.devices if device.node_id == look.own]


def _is_url(source: Source) -> bool:
    return isinstance(source, Status) and source.is_url


def sources_of(settings: Settings) -> list[Source]:
    """Those that are set, the first first believed."""
    found: list[Source] = [Local(settings.ts_socket)]
    if settings.status:
        found.append(Status(settings.status))
    if settings.headscale:
        found.append(Headscale(settings.headscale))
    if settings.tailscale:
        found.append(API(settings.tailscale))
    return found


def changes(
    learned: Iterable[Device], holders: Mapping[str, Listed], now_ns: int, *, complete: bool
) -> Iterator[Device]:
    """Entries to learn, so that the history of listed devices says that these have their addresses now.

    `learned`: the newest entry of each address. An address nobody was ever listed with is presumed to have been the
    device's since that joined. `complete`: an address that is not listed is nobody's any more.
    """
    newest = {device.address: device for device in learned}
    for address, listed in holders.items():
        before, device = newest.get(address), entry_of(address, listed, now_ns)
        if before and before.to_ns is None and before.who == device.who:
            if device.full_name and device.full_name != before.full_name:
                yield before._replace(full_name=device.full_name)
            continue
        device = device._replace(from_ns=max(now_ns, before.from_ns + 1) if before else now_ns)
        if before and before.to_ns is None:
            yield before._replace(to_ns=device.from_ns)
        elif before is None and listed.created and (joined_ns := nanoseconds(listed.created)) < now_ns:
            yield device._replace(from_ns=joined_ns, to_ns=now_ns)
        yield device
    for address, device in newest.items():
        if complete and address not in holders and device.to_ns is None:
            yield device._replace(to_ns=max(now_ns, device.from_ns + 1))


def entry_of(address: str, listed: Listed, from_ns: int) -> Device:
    return Device(
        address=address,
        node_id=listed.node_id,
        node=listed.node,
        login=listed.login,
        full_name=listed.full_name,
        tags=listed.tags,
        kind=listed.kind,
        source="device_list",
        from_ns=from_ns,
        to_ns=None,
    )


def _check_age(look: Look, source: Source, now: datetime) -> None:
    """A file that nobody writes any more is news of nobody. Raises TailnetError."""
    if look.written and now - look.written > STALE:
        written = f"{source.place} was written {look.written:%Y-%m-%dT%H:%M:%SZ}."
        raise TailnetError("old", written, fix="Write it anew every minute or so.", again_s=source.every_s)


def _by_address(members: Iterable[Member]) -> dict[str, Listed]:
    """By address; of two the first has it."""
    return {address: one.device for one in reversed([*members]) for address in one.device.addresses}


def _members(posts: Iterable[Post]) -> list[Member]:
    found: dict[str, Member] = {}
    for post in posts:
        for device in post.look.devices if post.look else ():
            known = found.get(device.node_id)
            found[device.node_id] = (
                _joined(known, device, post.source.name) if known else Member(device, (post.source.name,))
            )
    return list(found.values())


def _joined(known: Member, device: Listed, source: str) -> Member:
    """Whose it is says the first that knows: a device is either a person's or tagged."""
    first = known.device
    if first.login is None and first.tags is None:
        first = first._replace(login=device.login, full_name=device.full_name, tags=device.tags, kind=device.kind)
    elif first.full_name is None and first.login is not None and first.login == device.login:
        first = first._replace(full_name=device.full_name)
    told, other = first._asdict(), device._asdict()
    completed = {name: other[name] for name in BESIDE if told[name] is None}
    if first.online:
        completed.pop("last_seen", None)
    return Member(first._replace(**completed), (*known.sources, source))
