"""The tailnet's devices: listed by any source, kept as a history, joined to requests, and told."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from tailspan.config import Headscale as HeadscaleSettings
from tailspan.config import TailscaleAPI
from tailspan.demo.localapi import LocalAPI
from tailspan.directory import Directory, changes, entry_of
from tailspan.errors import TailnetError
from tailspan.store.duckdb import DuckDB
from tailspan.tailnet import Listed, Look
from tailspan.tailnet.api import API
from tailspan.tailnet.headscale import Headscale
from tailspan.tailnet.local import Local
from tailspan.tailnet.status import Status
from tests.server.conftest import Serving
from tests.server.spans import ANA, NOW, NOW_NS, export, span
from tests.server.tailnet import API_KEY, CLIENT, FIXTURES, HEADSCALE_KEY, STATUS, headscale, tailscale

SIX: Final = "fd7a:115c:a1e0:ab12:4843:cd96:6240:"
ALICE: Final = Listed(
    node_id="TESTCTRL00000002",
    node="alice-laptop",
    addresses=("100.64.0.2", f"{SIX}2"),
    login="alice@example.com",
    full_name="Alice Architect",
    tags=None,
    kind="person",
    os="linux",
    online=True,
)
RUNNER: Final = Listed(
    node_id="TESTCTRL00000004",
    node="ci-runner",
    addresses=("100.64.0.4", f"{SIX}4"),
    login=None,
    full_name=None,
    tags="tag:ci",
    kind="tagged",
    os="linux",
    online=True,
)
EVE: Final = Listed(
    node_id="TESTCTRL00000005",
    node="ext-box.other-net.ts.net",
    addresses=("100.64.0.5", f"{SIX}5"),
    login="eve@other.example",
    full_name="Eve External",
    tags=None,
    kind="shared",
    os="linux",
    online=True,
)
UNKNOWN: Final = {  # of a log line, or of a service without tailscaled's socket
    **{key: value for key, value in ANA.items() if not key.startswith(("user.", "tailscale.node"))},
    "tailspan.caller": "unknown",
    "tailspan.identity.source": "none",
    "tailscale.address": "100.64.0.2",
}


def until(check: Callable[[], Any]) -> Any:
    """Its first true answer."""
    deadline = time.monotonic() + 20
    while not (found := check()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return found


def get(client: TestClient, path: str, **params: Any) -> Any:
    found = client.get(f"/analytics/{path}", params=params)
    assert found.status_code == 200, found.text
    return found.json()


def states(client: TestClient) -> dict[str, str]:
    return {source["name"]: source["state"] for source in get(client, "tailnet/status")["sources"]}


def by_id(look: Look) -> dict[str, Listed]:
    return {device.node_id: device for device in look.devices}


# What each source lists


def test_the_status_of_tailscaled_is_read_whole() -> None:
    look = Status(str(STATUS)).look()
    found = by_id(look)
    assert [found[device.node_id] for device in (ALICE, RUNNER, EVE)] == [ALICE, RUNNER, EVE]
    assert found["TESTCTRL00000003"].full_name == "Zoë Müller 漢字"
    assert (len(found), look.left_out, look.tailnet, look.suffix) == (
        5,
        0,
        "fake-control.example.net",
        "tail-scale.ts.net",
    )
    assert (look.own, look.version, look.userspace) == ("TESTCTRL00000001", "1.96.5-ERR-BuildInfo", True)
    assert (look.health, look.written is not None) == ((), True)


def test_tailscaleds_own_socket_says_the_same_as_its_status_in_a_file(tmp_path: Path) -> None:
    with LocalAPI(tmp_path / "t.sock", FIXTURES) as tailscaled:
        assert Local(tmp_path / "t.sock").look() == Status(str(STATUS)).look()._replace(written=None)
        assert tailscaled.asked == ["/localapi/v0/status"]


def test_the_api_names_no_owner_of_a_tagged_device_and_tells_who_is_online_by_its_connection() -> None:
    with tailscale() as control:
        look = API(TailscaleAPI(key=API_KEY, url=control.url)).look()
        assert control.asked == ["GET /api/v2/tailnet/-/devices", "GET /api/v2/tailnet/-/keys/kTESTCNTRL"]
    joined = datetime(2025, 12, 1, 5, 23, 30, tzinfo=UTC)
    version = "1.96.5-t1234567-g89abcdef0"
    assert look == Look(
        (
            ALICE._replace(
                full_name=None, version=version, created=joined, expires=datetime(2026, 3, 9, 4, 44, 5, tzinfo=UTC)
            ),
            Listed(
                node_id="TESTCTRL00000003",
                node="zoe-phone",
                addresses=("100.64.0.3", f"{SIX}3"),
                login="zoe@example.com",
                full_name=None,
                tags=None,
                kind="person",
                os="iOS",
                version="1.94.0-t1234567-g89abcdef0",
                online=False,
                last_seen=datetime(2026, 3, 1, 9, 15, tzinfo=UTC),
                created=datetime(2026, 2, 27, 8, tzinfo=UTC),
            ),
            RUNNER._replace(version=version, created=datetime(2025, 6, 1, 5, 23, 30, tzinfo=UTC)),
            EVE._replace(full_name=None, expires=datetime(2026, 8, 26, 8, tzinfo=UTC)),
        ),
        key_expires=datetime(2026, 5, 30, tzinfo=UTC),
    )


def test_an_oauth_client_gets_a_token_and_keeps_it_until_it_is_refused() -> None:
    with tailscale() as control:
        api = API(TailscaleAPI(client_id=CLIENT[0], client_secret=CLIENT[1], url=control.url))
        assert [len(api.look().devices) for _ in range(2)] == [4, 4]
        devices, token = "GET /api/v2/tailnet/-/devices", "POST /api/v2/oauth/token"
        assert control.asked == [token, devices, devices]
        control.keys = ()
        with pytest.raises(TailnetError, match="answered 401"):
            api.look()
        assert len(api.look().devices) == 4
        assert control.asked[3:] == [devices, token, devices]
        api = API(TailscaleAPI(client_id=CLIENT[0], client_secret="wrong", url=control.url))
        with pytest.raises(TailnetError, match="TAILSCALE_OAUTH_CLIENT_SECRET"):
            api.look()


def test_headscale_names_people_by_their_mail_and_tagged_devices_by_their_tags() -> None:
    with headscale() as control:
        look = Headscale(HeadscaleSettings(control.url, HEADSCALE_KEY)).look()
    found = by_id(look)
    told = [(one.node, one.login, one.full_name, one.tags, one.kind, one.online) for one in found.values()]
    assert told == [
        ("alice-laptop", "alice@example.com", "Alice Example", None, "person", True),
        ("zoe-phone", "zoe@example.com", "Zoë Müller 漢字", None, "person", True),
        ("appsrv", "ops@example.com", "Ops Person", None, "person", True),
        ("ci-runner", None, None, "tag:ci", "tagged", True),
    ]
    assert found["2"].addresses == ("100.64.0.2", "fd7a:115c:a1e0::2")
    assert found["2"].created == datetime(2026, 11, 21, 20, 50, 55, 454739, tzinfo=UTC)
    assert look.key_expires == datetime(2026, 5, 30, tzinfo=UTC)


# Joined to requests


class Clock:
    """Shows what it was last set to."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **time: float) -> None:
        self.now += timedelta(**time)


def unknown(number: int, address: str, *, ago: float) -> dict[str, Any]:
    return span(number, {**UNKNOWN, "tailscale.address": address}, ago=ago)


def named(client: TestClient) -> list[tuple[Any, ...]]:
    """Newest first, who and how each request is known."""
    logs = get(client, "access-logs")["logs"]
    return [(one["user"], one["device"], one["tags"], one["caller"], one["identity_source"]) for one in logs]


def test_requests_with_an_address_alone_are_named_by_the_list_as_of_their_time(serving: Serving) -> None:
    clock = Clock()
    with serving(now=clock, tailnet_status=str(STATUS)) as client:
        until(lambda: states(client)["tailnet status"] == "ok")
        addresses = ("100.64.0.2", "100.64.0.4", "100.64.0.5", f"{SIX}2", "100.64.0.99")
        later = [unknown(number, address, ago=-number) for number, address in enumerate(addresses, 1)]
        client.post("/v1/traces", json=export(unknown(9, "100.64.0.2", ago=5), *later))
        clock.forward(minutes=1)
        assert named(client)[::-1] == [
            (None, None, None, "unknown", "none"),  # before the list was first seen
            ("alice@example.com", "alice-laptop", None, "person", "device_list"),
            (None, "ci-runner", "tag:ci", "tagged", "device_list"),
            ("eve@other.example", "ext-box.other-net.ts.net", None, "shared", "device_list"),
            ("alice@example.com", "alice-laptop", None, "person", "device_list"),
            (None, None, None, "unknown", "none"),
        ]
        [active] = [one for one in get(client, "active")["active_users"] if one["email"] == "alice@example.com"]
        assert active["device"] == "alice-laptop"


def test_a_device_is_presumed_to_have_had_its_address_since_it_joined(serving: Serving) -> None:
    with tailscale() as control, serving(tailscale=TailscaleAPI(key=API_KEY, url=control.url)) as client:
        client.post("/v1/traces", json=export(unknown(1, "100.64.0.2", ago=86000), unknown(2, "100.64.0.5", ago=5)))
        until(lambda: states(client)["tailnet api"] == "ok")
        assert named(client) == [
            (None, None, None, "unknown", "none"),  # shared in: the API does not say since when
            ("alice@example.com", "alice-laptop", None, "person", "device_list"),
        ]
        found = get(client, "tailnet/devices/alice-laptop")
        assert [(one["start"], one["end"]) for one in found["history"]] == [("2025-12-01T05:23:30.000Z", None)] * 2


# The history


def listed(device: Listed = ALICE, **changed: Any) -> dict[str, Listed]:
    new = device._replace(addresses=("100.64.0.2",), **changed)
    return {address: new for address in new.addresses}


class Given:
    """A source that lists what it is given."""

    name = "status"
    place = "a test"
    every_s = 30.0

    def __init__(self) -> None:
        self.says: Look | TailnetError = Look((ALICE,))

    def look(self) -> Look:
        if isinstance(self.says, TailnetError):
            raise self.says
        return self.says


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    store = DuckDB(tmp_path / "kept.duckdb")
    yield store
    store.close()


def test_a_rename_a_tag_another_owner_and_another_device_are_new_entries_and_what_stays_is_none(kept: DuckDB) -> None:
    clock, source = Clock(), Given()
    directory = Directory([source], kept, clock)
    [post] = directory.posts
    alice = ALICE._replace(addresses=("100.64.0.2",))
    steps = (
        alice,
        alice,
        alice._replace(online=False, last_seen=NOW, version="1.98"),  # nobody else
        alice._replace(node="studio"),
        alice._replace(node="studio", login=None, full_name=None, tags="tag:ci", kind="tagged"),
        alice._replace(node="studio", login="zoe@example.com"),
        alice._replace(node_id="other", login="zoe@example.com"),
        alice._replace(node_id="other", login="zoe@example.com"),
    )
    for minute, device in enumerate(steps):
        clock.now = NOW + timedelta(minutes=minute)
        source.says = Look((device,))
        directory.ask(post)
    source.says = Look(())
    clock.forward(minutes=1)
    directory.ask(post)

    def ns(minute: int) -> int:
        return NOW_NS + minute * 60 * 10**9

    told = [(one.node_id, one.node, one.login, one.tags, one.from_ns, one.to_ns) for one in kept.history()]
    assert told == [
        (ALICE.node_id, "alice-laptop", "alice@example.com", None, ns(0), ns(3)),
        (ALICE.node_id, "studio", "alice@example.com", None, ns(3), ns(4)),
        (ALICE.node_id, "studio", None, "tag:ci", ns(4), ns(5)),
        (ALICE.node_id, "studio", "zoe@example.com", None, ns(5), ns(6)),
        ("other", "alice-laptop", "zoe@example.com", None, ns(6), ns(8)),
    ]


def test_a_source_in_trouble_or_one_that_has_not_answered_yet_ends_no_entry(kept: DuckDB) -> None:
    clock, first, second = Clock(), Given(), Given()
    second.says = TailnetError("unreachable", "It is away.")
    directory = Directory([first, second], kept, clock)
    for post in directory.posts:
        directory.ask(post)
    first.says = Look((RUNNER,))  # no longer Alice's, whom the other may list
    directory.ask(directory.posts[0])
    open_entries = {one.address for one in kept.history() if one.to_ns is None}
    assert open_entries == {*ALICE.addresses, *RUNNER.addresses}
    second.says = Look(())
    directory.ask(directory.posts[1])
    first.says = TailnetError("logged out", "It is logged out.")
    directory.ask(directory.posts[0])
    assert {one.address for one in kept.history() if one.to_ns is None} == set(RUNNER.addresses)


def test_a_server_that_starts_again_goes_on_with_the_history_it_finds(kept: DuckDB) -> None:
    for minute in (0, 5):
        clock = Clock(NOW + timedelta(minutes=minute))
        directory = Directory([Given()], kept, clock)
        directory.ask(directory.posts[0])
    assert {(one.from_ns, one.to_ns) for one in kept.history()} == {(NOW_NS, None)}


def test_a_clock_that_was_set_back_makes_no_entry_that_ends_before_it_begins() -> None:
    before = entry_of("100.64.0.2", ALICE, NOW_NS)
    ended, begun = changes([before], listed(node="studio"), NOW_NS - 10**9, complete=True)
    assert ended == before._replace(to_ns=NOW_NS + 1)
    assert (begun.node, begun.from_ns, begun.to_ns) == ("studio", NOW_NS + 1, None)
    assert list(changes([before], {}, NOW_NS - 10**9, complete=True)) == [ended]


def test_a_name_of_a_person_that_was_not_known_is_added_to_the_entry() -> None:
    before = entry_of("100.64.0.2", ALICE._replace(full_name=None), NOW_NS)
    assert list(changes([before], listed(), NOW_NS + 5, complete=True)) == [before._replace(full_name=ALICE.full_name)]
    known = before._replace(full_name=ALICE.full_name)
    assert list(changes([known], listed(full_name=None), NOW_NS + 5, complete=True)) == []


def test_of_several_sources_the_first_is_believed_and_the_others_complete_it(kept: DuckDB) -> None:
    clock = Clock()
    with tailscale() as control:
        settings = TailscaleAPI(key=API_KEY, url=control.url)
        directory = Directory([Status(str(STATUS)), API(settings)], kept, clock)
        for post in directory.posts:
            directory.ask(post)
    alice = next(one for one in directory.members(NOW) if one.device.node_id == ALICE.node_id)
    assert alice.sources == ("status", "api")
    assert (alice.device.full_name, alice.device.version) == ("Alice Architect", "1.96.5-t1234567-g89abcdef0")
    runner = next(one for one in directory.members(NOW) if one.device.node_id == RUNNER.node_id)
    assert (runner.device.login, runner.device.full_name) == (None, None)


def test_a_source_that_fell_silent_comes_last(kept: DuckDB) -> None:
    clock, old, new = Clock(), Given(), Given()
    directory = Directory([old, new], kept, clock)
    directory.ask(directory.posts[0])
    clock.forward(hours=1)
    new.says = Look((ALICE._replace(node="studio"),))
    directory.ask(directory.posts[1])
    assert [one.device.node for one in directory.members(clock.now)] == ["studio"]
    directory.ask(directory.posts[0])
    assert [one.device.node for one in directory.members(clock.now)] == ["alice-laptop"]
