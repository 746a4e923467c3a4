"""What changes in a real tailnet is followed: with short cache times, and once with those that a service has."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from tailspan_otel import attributes as name
from tailspan_otel import whois
from tailspan_otel.whois import Whois

from tests.stack.engines import until
from tests.stack.tailnet.lab import ANYBODY, Node, Person, Tailnet
from tests.stack.tailnet.services import Server, Stores, Ways, service, unhurried

OWNER: Final = Person("ops", "ops@example.com")
ALICE: Final = Person("alice", "alice@example.com", "Alice Example")
DEVICES: Final = ("renamed", "retagged", "expired", "deleted", "denied", "steady", "late-renamed", "late-tagged")
BOUND_S: Final = 60.0  # within which the documentation promises that a rename or a new tag is followed

NUMBERS: Final = count(1)

Identity = tuple[str, str | None, str | None, str | None, str]  # caller, login, device, tags, how it is known


def alices(device: str, source: str = "whois") -> Identity:
    return ("person", "alice@example.com", device, None, source)


NOBODY: Final[Identity] = ("unknown", None, None, None, "none")
A_RUNNER: Final[Identity] = ("tagged", None, "retagged", "tag:ci", "whois")


class Watched:
    """A service behind a proxy that asks it for devices, as Serve would: over a unix socket."""

    def __init__(self, servers: Mapping[str, Server], name: str, ways: Ways, client: httpx.Client) -> None:
        self._servers = servers
        self._name = name
        self._ways = ways
        self._client = client

    def ask(self, address: str, login: str | None = None) -> str:
        """Its path, which no other request has."""
        path = f"/proxy/{next(NUMBERS)}"
        said = {"X-Forwarded-For": address, **({"Tailscale-User-Login": login} if login else {})}
        assert self._client.get(path, headers=said).status_code == 200
        return path

    def captured(self, path: str) -> Identity:
        """What the service itself knew."""
        span = until(lambda: next(iter(spans(self._ways, path)), None), "no span")
        tags = span.get(name.TAGS)
        found = (span.get(key) for key in (name.LOGIN, name.NODE))
        return (span[name.CALLER], *found, ",".join(tags) if tags else None, span[name.IDENTITY_SOURCE])

    def answer(self, path: str, expected: Identity) -> None:
        """Waits until both stores tell that of it: what the device is called since, they know seconds after."""

        def told() -> dict[str, Identity | None]:
            return {store: self._told(server, path) for store, server in self._servers.items()}

        until(lambda: set(told().values()) == {expected}, f"{expected} is not told", lambda: str(told()))

    def _told(self, server: Server, path: str) -> Identity | None:
        for log in server.logs(self._name):
            if log["path"] == path:
                return (log["caller"], log["user"], log["device"], log["tags"], log["identity_source"])
        return None

    def until(self, address: str, expected: Identity, patience: float = 10) -> str:
        """Asks until the service knows that; the path of that request."""
        seen: list[Identity] = []

        def is_known() -> str | None:
            seen.append(self.captured(path := self.ask(address)))
            return path if seen[-1] == expected else None

        return str(until(is_known, "not known", lambda: str(seen[-3:]), patience))


def spans(ways: Ways, path: str) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in list(ways.sent) if (span.attributes or {}).get(name.PATH) == path]


@pytest.fixture(scope="module")
def settled(tailnet: Tailnet) -> Tailnet:
    tailnet.join({"dashboard": OWNER, **dict.fromkeys(DEVICES, ALICE)})
    tailnet.settle()
    return tailnet


@pytest.fixture(scope="module")
def stores(settled: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with Stores(tmp_path_factory.mktemp("stores")) as stores:
        stores.wait()
        yield stores


@contextmanager
def watching(name: str, node: Node, stores: Stores, socket: Path) -> Iterator[Watched]:
    ways = Ways(*stores.endpoints)
    with (
        service(name, node, ways, uds=str(socket)),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://service") as client,
    ):
        yield Watched(stores.servers, name, ways, client)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    unhurried(monkeypatch)


@pytest.fixture
def watched(
    settled: Tailnet, stores: Stores, tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    """It asks again after half a second."""
    for key, seconds in {"FRESH_S": 0.2, "STALE_S": 0.5, "NOBODY_S": 0.2, "AWAY_S": 0.2}.items():
        monkeypatch.setattr(whois, key, seconds)
    with watching("watched", settled.nodes["dashboard"], stores, tmp_path / "app.sock") as watched:
        yield watched


def rename(tailnet: Tailnet, node_id: str, to: str = "new-laptop") -> None:
    tailnet.headscale.ask("POST", f"node/{node_id}/rename/{to}")


def tag(tailnet: Tailnet, node_id: str) -> None:
    tailnet.headscale.ask("POST", f"node/{node_id}/tags", json={"tags": ["tag:ci"]})


def delete(tailnet: Tailnet, node_id: str) -> None:
    tailnet.headscale.ask("DELETE", f"node/{node_id}")


def deny(tailnet: Tailnet, node_id: str) -> None:
    tailnet.headscale.allow({"action": "accept", "src": [tailnet.nodes["steady"].address], "dst": ["*:*"]})


# what is done to a device, what the service knows of it then, and what is told: of an address that nobody knows any
# more, whose it was when it last was known
CHANGES: Final[dict[str, tuple[Callable[[Tailnet, str], None], Identity, Identity]]] = {
    "renamed": (rename, alices("new-laptop"), alices("new-laptop")),
    "retagged": (tag, A_RUNNER, A_RUNNER),
    "deleted": (delete, NOBODY, alices("deleted")),
    "denied": (deny, NOBODY, alices("denied")),
}


@pytest.mark.parametrize("device", CHANGES)
def test_a_change_is_followed(settled: Tailnet, watched: Watched, device: str) -> None:
    change, known, told = CHANGES[device]
    address = settled.nodes[device].address
    before = watched.ask(address)
    assert watched.captured(before) == alices(device)
    change(settled, settled.headscale.node_id(device))
    try:
        after = watched.until(address, known)
    finally:
        settled.headscale.allow(ANYBODY)
    watched.answer(after, told)


def test_a_device_whose_key_has_expired_is_still_whose_it_was(settled: Tailnet, watched: Watched) -> None:
    address, node = settled.nodes["expired"].address, settled.nodes["dashboard"]
    settled.headscale.ask("POST", f"node/{settled.headscale.node_id('expired')}/expire")
    until(lambda: node.local("whois", addr=address).json()["Node"].get("Expired"), "not expired", node.said)
    assert watched.captured(watched.ask(address)) == alices("expired")


def test_a_service_whose_tailscaled_is_down_still_knows_everybody(settled: Tailnet, watched: Watched) -> None:
    node, address = settled.nodes["dashboard"], settled.nodes["steady"].address
    node.cli("down")
    try:
        assert node.status()["BackendState"] == "Stopped"
        assert watched.captured(watched.ask(address)) == alices("steady")
    finally:
        node.cli("up")


def test_while_tailscaled_is_stopped_headers_name_people_and_nobody_is_confused_and_afterwards_all_is_known_again(
    settled: Tailnet, watched: Watched
) -> None:
    node, address = settled.nodes["dashboard"], settled.nodes["steady"].address
    assert watched.captured(watched.ask(address)) == alices("steady")
    node.end()
    try:
        unnamed = watched.until(address, NOBODY)
        login = watched.ask(address, "alice@example.com")
        assert watched.captured(login) == ("person", "alice@example.com", None, None, "serve_header")
    finally:
        node.start()
    watched.until(address, alices("steady"))
    watched.answer(unnamed, alices("steady"))
    watched.answer(login, alices("steady", "serve_header"))


def test_whoever_starts_before_tailscaled_learns_how_that_runs_once_it_does(settled: Tailnet) -> None:
    node = settled.nodes["dashboard"]
    address = node.address
    node.end()
    try:
        early = Whois(str(node.socket))
        early.start()
        early.wait(address, 1.0)
        assert (early.userspace, early.answered, early.own) == (False, False, frozenset())
    finally:
        node.start()
    until(lambda: address in early.own, "not asked again", node.said)
    assert (early.userspace, early.answered) == (True, True)


def test_with_the_times_that_a_service_has_a_rename_and_a_new_tag_are_followed_within_a_minute(
    settled: Tailnet, stores: Stores, tmp_path: Path, patient: None
) -> None:
    node, devices, socket = settled.nodes["dashboard"], ("late-renamed", "late-tagged"), tmp_path / "slow.sock"
    with watching("unhurried", node, stores, socket) as watched:
        node.cli("serve", "--bg", "--http=80", f"unix:{socket}")

        def asks(device: str, number: int) -> Identity:
            path = f"/{device}/{number}"
            assert settled.nodes[device].get("dashboard", 80, path).status == 200
            return watched.captured(path)

        assert [asks(device, 0) for device in devices] == [alices(device, "serve_header") for device in devices]
        rename(settled, settled.headscale.node_id("late-renamed"), "newer-laptop")
        tag(settled, settled.headscale.node_id("late-tagged"))
        numbers = iter(range(1, 1000))
        followed = [alices("newer-laptop", "serve_header"), ("tagged", None, "late-tagged", "tag:ci", "whois")]
        until(lambda: [asks(device, next(numbers)) for device in devices] == followed, "not followed", patience=BOUND_S)
