"""The tailnet's devices: listed by any source, kept as a history, joined to requests, and told."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tailspan.config import Headscale as HeadscaleSettings
from tailspan.config import Settings, TailscaleAPI
from tailspan.demo.localapi import LocalAPI
from tailspan.directory import Directory, changes, entry_of, sources_of
from tailspan.errors import SettingError, TailnetError
from tailspan.labels import LabelsFile
from tailspan.reports import Sources
from tailspan.reports.devices import DevicesParams, devices
from tailspan.store.duckdb import DuckDB
from tailspan.tailnet import Listed, Look, checked, expected, parsed
from tailspan.tailnet import listed as listed_of
from tailspan.tailnet.api import API
from tailspan.tailnet.api import _device as api_device
from tailspan.tailnet.headscale import Headscale
from tailspan.tailnet.headscale import _device as headscale_device
from tailspan.tailnet.local import Local
from tailspan.tailnet.status import Status, read
from tests.server.conftest import Serving
from tests.server.spans import ANA, NOW, NOW_NS, export, span
from tests.server.tailnet import (
    API_KEY,
    CLIENT,
    FIXTURES,
    HEADSCALE_KEY,
    STATUS,
    Answer,
    Control,
    headscale,
    running,
    tailscale,
    until,
)

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


def get(client: TestClient, path: str, **params: Any) -> Any:
    found = client.get(f"/analytics/{path}", params=params or None)
    assert found.status_code == 200, found.text
    return found.json()


def loaded(client: TestClient) -> None:
    """Waits until each source was looked at and its devices are in the history."""

    def is_so() -> bool:
        found = get(client, "tailnet/devices")
        told = {one["state"] for one in found["sources"] if one["name"].startswith("tailnet")}
        return told == {"ok"} and all(one["first_seen"] for one in found["devices"])

    until(is_so)


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
    with serving(now=clock, status=str(STATUS)) as client:
        loaded(client)
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
        loaded(client)
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


def test_who_has_an_address_now_is_told_by_sources_alone_that_were_heard_of_lately(kept: DuckDB) -> None:
    clock, old, new = Clock(), Given(), Given()
    directory = Directory([old, new], kept, clock)
    old.says, new.says = Look((ALICE, EVE)), Look((RUNNER, EVE._replace(node="studio")))
    for post in directory.posts:
        directory.ask(post)

    def holders() -> list[str | None]:
        found = [directory.holder(f"100.64.0.{last}") for last in (2, 4, 5)]
        return [device and device.node for device in found]

    assert holders() == ["alice-laptop", "ci-runner", "ext-box.other-net.ts.net"]
    clock.forward(minutes=10)
    directory.ask(directory.posts[1])
    clock.forward(minutes=6)  # a source that goes on telling does not keep what the other said
    assert holders() == [None, "ci-runner", "studio"]
    assert {one.device.node for one in directory.members(clock.now)} >= {"alice-laptop"}  # the list shows it still
    clock.forward(minutes=10)
    assert holders() == [None, None, None]
    directory.ask(directory.posts[0])
    assert holders() == ["alice-laptop", None, "ext-box.other-net.ts.net"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (ALICE, RUNNER, ALICE),
        (RUNNER, ALICE, RUNNER),
        (ALICE, EVE, ALICE),
        (ALICE._replace(full_name=None), ALICE, ALICE),
        (ALICE._replace(full_name=None), ALICE._replace(login="zoe@example.com"), ALICE._replace(full_name=None)),
        (ALICE._replace(login=None, full_name=None), ALICE, ALICE),  # it knows the device, and not whose it is
        (ALICE._replace(login=None, full_name=None), RUNNER, RUNNER),
    ],
)
def test_a_device_is_a_persons_or_tagged_as_the_first_source_says_that_knows(
    first: Listed, second: Listed, expected: Listed, kept: DuckDB
) -> None:
    sources = [Given(), Given()]
    for source, device in zip(sources, (first, second), strict=True):
        source.says = Look((device._replace(node_id="n", node="box", addresses=("100.64.0.2",)),))
    directory = Directory(sources, kept, Clock())
    for post in directory.posts:
        directory.ask(post)
    expected = expected._replace(node_id="n", node="box", addresses=("100.64.0.2",))
    assert directory.holder("100.64.0.2") == expected
    assert [one.device for one in directory.members(NOW)] == [expected]


# What goes wrong


def test_a_file_that_nobody_writes_any_more_is_trouble_and_tells_of_nobody(kept: DuckDB, tmp_path: Path) -> None:
    file, clock = tmp_path / "status.json", Clock()
    shutil.copyfile(STATUS, file)

    def written(minutes_ago: float) -> str:
        when = clock.now - timedelta(minutes=minutes_ago)
        os.utime(file, (when.timestamp(), when.timestamp()))
        directory.ask(directory.posts[0])
        return f"{when:%Y-%m-%dT%H:%M:%SZ}"

    directory = Directory([Status(str(file))], kept, clock)
    when, fix = written(minutes_ago=16), "Write it anew every minute or so."
    [old] = directory.told(clock.now)
    began = f"Not heard of since {NOW:%Y-%m-%dT%H:%M:%SZ}: what was known before holds."
    assert (old.state, old.message) == ("old", f"{file} was written {when}. {fix} {began}")
    assert (directory.members(NOW), directory.holder("100.64.0.2"), kept.history()) == ([], None, [])
    written(minutes_ago=14)
    assert ([one.state for one in directory.told(clock.now)], directory.holder("100.64.0.2")) == (["ok"], ALICE)
    clock.forward(minutes=1, seconds=1)
    assert directory.holder("100.64.0.2") is None
    when = written(minutes_ago=15.1)
    [old] = directory.told(clock.now)
    held = f"Not heard of since {NOW - timedelta(minutes=14):%Y-%m-%dT%H:%M:%SZ}: what it said then holds."
    assert (old.state, old.message) == ("old", f"{file} was written {when}. {fix} {held}")
    assert directory.holder("100.64.0.2") is None


@pytest.mark.parametrize(
    ("minutes_ago", "state", "message"),
    [
        (None, "ok", "{url} lists 5 devices."),
        (14, "ok", "{url} lists 5 devices."),
        (16, "old", "{url} was written {when}. Write it anew every minute or so. {began}"),
    ],
)
def test_what_a_server_says_of_a_file_of_its_is_as_old_as_the_file(
    minutes_ago: int | None, state: str, message: str, kept: DuckDB
) -> None:
    when = NOW - timedelta(minutes=minutes_ago or 0)
    answer = Answer(STATUS.read_bytes())
    if minutes_ago is not None:
        answer.headers["Last-Modified"] = format_datetime(when, usegmt=True)
    with running(Control({"/status.json": answer}, ("",), Answer({}, 401))) as control:
        url = f"{control.url}/status.json"
        directory = Directory([Status(url)], kept, Clock())
        directory.ask(directory.posts[0])
    [told] = directory.told(NOW)
    began = f"Not heard of since {NOW:%Y-%m-%dT%H:%M:%SZ}: what was known before holds."
    known = {"url": url, "when": f"{when:%Y-%m-%dT%H:%M:%SZ}", "began": began}
    assert (told.state, told.message) == (state, message.format(**known))


def refused(source: Any) -> TailnetError:
    with pytest.raises(TailnetError) as problem:
        source.look()
    assert "secret" not in f"{problem.value}{problem.value!r}{source!r}"
    return problem.value


DEVICES: Final = "/api/v2/tailnet/-/devices"
NODES: Final = "/api/v1/node"


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        (Answer({"message": "API token invalid"}, 401), "wrong token", "TAILSCALE_API_KEY"),
        (Answer({"message": "not allowed"}, 403), "not allowed", "devices:core:read"),
        (Answer({"message": "tailnet not found"}, 404), "unreadable", "TAILNET"),
        (Answer({"message": "rate limited"}, 429), "asked too often", "rate limited"),
        (Answer(b"<html>bad gateway</html>", 502, "text/html"), "unreachable", "bad gateway"),
        (Answer(b"<html>log in</html>", 200, "text/html"), "unreadable", "answers no JSON"),
        (Answer([]), "unreadable", "no JSON object"),
        (Answer({"devices": [{"name": "half"}]}), "unreadable", "another shape"),
        (Answer({"devices": [{"nodeId": "n", "name": "n", "addresses": ["nonsense"]}]}), "unreadable", "nonsense"),
        (Answer({"devices": "none"}), "unreadable", "another shape"),
        (Answer({"devices": [None]}), "unreadable", "another shape"),
        (Answer(b"[" * 100_000), "unreadable", "answers no JSON"),
    ],
)
def test_each_refusal_of_the_api_is_a_state_of_its_own_and_shows_no_key(answer: Answer, state: str, said: str) -> None:
    with tailscale(**{DEVICES: answer}) as control:
        problem = refused(API(TailscaleAPI(key=API_KEY, url=control.url)))
    assert (problem.state, said in str(problem)) == (state, True)


def test_a_wrong_key_of_headscale_gets_its_plain_refusal_and_the_fix() -> None:
    with headscale() as control:
        problem = refused(Headscale(HeadscaleSettings(control.url, "hskey-api-wrong")))
        assert (problem.state, "'Unauthorized'" in str(problem), "apikeys create" in str(problem)) == (
            "wrong token",
            True,
            True,
        )
        problem = refused(Headscale(HeadscaleSettings(f"{control.url}/web", HEADSCALE_KEY)))
        assert (problem.state, "HEADSCALE_URL" in str(problem)) == ("unreadable", True)
    problem = refused(Headscale(HeadscaleSettings(control.url, HEADSCALE_KEY)))
    assert problem.state == "unreachable"


def test_keys_that_cannot_be_asked_for_cost_no_device() -> None:
    with headscale(**{"/api/v1/apikey": Answer({}, 500)}) as control:
        look = Headscale(HeadscaleSettings(control.url, HEADSCALE_KEY)).look()
        assert (len(look.devices), look.key_expires) == (4, None)
    with tailscale(**{"/api/v2/tailnet/-/keys/kTESTCNTRL": Answer({}, 403)}) as control:
        look = API(TailscaleAPI(key=API_KEY, url=control.url)).look()
        assert (len(look.devices), look.key_expires) == (4, None)


@pytest.mark.parametrize(
    ("changed", "state", "said"),
    [
        ({"BackendState": "NeedsLogin", "Peer": None}, "logged out", "tailscale up"),
        ({"BackendState": "Stopped"}, "logged out", "tailscale up"),
        ({"BackendState": "NeedsMachineAuth"}, "logged out", "Machines"),
        ({"Self": ["x"]}, "unreadable", "another shape"),
        ({"Peer": {"nodekey:1": {"ID": "n1"}}}, "unreadable", "another shape"),
    ],
)
def test_a_tailscaled_that_is_not_in_the_tailnet_says_so_and_what_helps(
    changed: dict[str, Any], state: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(json.loads(STATUS.read_text()) | changed))
    problem = refused(Status(str(tmp_path / "status.json")))
    assert (problem.state, said in str(problem)) == (state, True)


def test_exit_nodes_for_rent_and_devices_without_an_address_are_no_visitors(tmp_path: Path) -> None:
    status = json.loads(STATUS.read_text())
    peer = next(iter(status["Peer"].values()))
    status["Peer"] |= {
        "nodekey:1": peer | {"ID": "m1", "DNSName": "se-got-wg-001.mullvad.ts.net.", "Tags": ["tag:mullvad-exit-node"]},
        "nodekey:2": peer | {"ID": "n9", "TailscaleIPs": None},
    }
    (tmp_path / "status.json").write_text(json.dumps(status))
    look = Status(str(tmp_path / "status.json")).look()
    assert (len(look.devices), look.left_out) == (5, 1)


def test_files_and_sockets_that_are_not_there_or_are_something_else_are_told(tmp_path: Path) -> None:
    assert refused(Status(str(tmp_path / "none.json"))).state == "unreachable"
    (tmp_path / "torn.json").write_text(STATUS.read_text()[:1000])
    assert refused(Status(str(tmp_path / "torn.json"))).state == "unreadable"
    assert refused(Local(tmp_path / "none.sock")).state == "unreachable"
    (tmp_path / "file.sock").write_text("")
    assert refused(Local(tmp_path / "file.sock")).state == "unreachable"


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with tailscale(**{DEVICES: Answer(b" " * 3_000_000)}) as control:
        api = API(TailscaleAPI(key=API_KEY, url=control.url))
        monkeypatch.setattr("tailspan.tailnet.MAX_BYTES", 2_000_000)
        assert (refused(api).state, "more than 2 MB" in str(refused(api))) == ("unreadable", True)
        monkeypatch.undo()
        monkeypatch.setattr("tailspan.tailnet.TIMEOUT_S", -1)
        assert refused(api).state == "slow"


def test_a_source_in_trouble_is_left_alone_for_longer_each_time_and_as_long_as_it_wishes(kept: DuckDB) -> None:
    source = Given()
    directory = Directory([source], kept, Clock())
    [post] = directory.posts

    def next_s(state: Any, again_s: float | None = None) -> float:
        source.says = TailnetError(state, "No.", again_s=again_s)
        directory.ask(post)
        return post.next_s

    assert [next_s("unreachable") for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert [next_s("asked too often", wish) for wish in (0, 42.0, 10**9)] == [5, 42, 3600]
    assert next_s("wrong token") == 300
    source.says = Look((ALICE,))
    directory.ask(post)
    assert post.next_s == 30
    post.took_s = 5  # so large a tailnet
    assert post.next_s == 100


@pytest.mark.parametrize(("sent", "wished"), [("120", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 5), ("soon", 5)])
def test_retry_after_is_read_as_seconds_or_as_a_date(sent: str, wished: float, kept: DuckDB) -> None:
    with tailscale(**{DEVICES: Answer({"message": "rate limited"}, 429, Retry_After=sent)}) as control:
        directory = Directory([API(TailscaleAPI(key=API_KEY, url=control.url))], kept, Clock())
        directory.ask(directory.posts[0])
    assert (directory.posts[0].next_s, directory.told(NOW)[0].state) == (wished, "asked too often")


def test_what_a_source_said_holds_while_it_is_in_trouble_and_answers_say_so(serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    shutil.copyfile(STATUS, file)
    with serving(status=str(file)) as client:
        directory: Directory = client.app.state.tailnet  # type: ignore[attr-defined]  # it is our app
        until(lambda: directory.posts[-1].look)
        file.unlink()
        directory.ask(directory.posts[-1])
        for path in ("active", "access-logs", "tailnet/devices"):
            told = {source["name"]: source for source in get(client, path)["sources"]}["tailnet status"]
            assert told["state"] == "unreachable"
            assert told["message"].endswith(" Not heard of since 2026-03-01T12:00:00Z: what it said then holds.")
        assert get(client, "tailnet/devices")["summary"]["devices"] == 5


@pytest.mark.parametrize(
    ("look", "state"),
    [
        (Look((ALICE,)), "ok"),
        (Look((ALICE,), key_expires=NOW + timedelta(days=14)), "key expires"),
        (Look((ALICE,), key_expires=NOW + timedelta(days=15)), "ok"),
        (Look((ALICE,), written=NOW - timedelta(minutes=15)), "ok"),
        (Look((ALICE,), written=NOW - timedelta(minutes=16)), "old"),
    ],
)
def test_a_key_that_expires_soon_and_a_file_that_nobody_writes_are_told_before_they_matter(
    look: Look, state: str, kept: DuckDB
) -> None:
    source = Given()
    source.says = look
    directory = Directory([source], kept, Clock())
    directory.ask(directory.posts[0])
    assert directory.told(NOW)[0].state == state


def test_a_store_that_cannot_be_written_is_tried_again_with_the_next_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DuckDB(tmp_path / "closed.duckdb")
    store.close()
    directory = Directory([Given()], store, Clock())
    directory.ask(directory.posts[0])
    assert "The device history was not kept" in caplog.text


def any_json(draw: st.DrawFn, value: Any) -> Any:
    """The same, or with something else in one place."""
    other: st.SearchStrategy[Any] = st.sampled_from(
        (None, "", "x", 0, -1, [], {}, [None], True, "0001-01-01T00:00:00Z", "\ud800", 10**30)
    )
    if not (isinstance(value, dict | list) and value) or not draw(st.integers(0, 5)):
        return draw(other)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    changed = value.copy()
    changed[key] = any_json(draw, value[key])
    return changed


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_answer_of_any_shape_is_read_or_told_and_never_ends_the_looking(data: st.DataObject) -> None:
    whole = {
        "status": json.loads(STATUS.read_text()),
        "nodes": json.loads((FIXTURES / "headscale-nodes.json").read_text()),
        "devices": json.loads((FIXTURES / "api-devices.json").read_text()),
    }
    name = data.draw(st.sampled_from(sorted(whole)))
    changed = data.draw(st.composite(any_json)(whole[name]))
    source = Given()
    reading: dict[str, Callable[[Any], Any]] = {
        "status": lambda found: read(found, "a test"),
        "nodes": lambda found: checked(Look(*listed_of(found["nodes"] or (), headscale_device))),
        "devices": lambda found: checked(Look(*listed_of(found["devices"] or (), api_device))),
    }
    try:
        with expected("a test"):
            source.says = reading[name](parsed(json.dumps(changed).encode(), "a test"))
    except TailnetError as problem:
        assert problem.state in ("unreadable", "logged out")
        return
    with TemporaryDirectory() as folder:
        store = DuckDB(Path(folder) / "t.duckdb")
        directory = Directory([source], store, Clock())
        directory.ask(directory.posts[0])
        answer = devices(Sources(store, LabelsFile(), None, directory), DevicesParams(), NOW)
        assert answer.summary.devices == len(directory.members(NOW))
        assert answer.model_dump_json()
        assert len(store.learned()) == len({one for m in directory.members(NOW) for one in m.device.addresses})
        store.close()


# Settings


def test_sources_are_chosen_by_what_is_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{API_KEY}\n")
    environ = {
        "TS_SOCKET": "/nowhere",
        "TAILSPAN_STATUS": "/shared/status.json",
        "HEADSCALE_URL": "https://headscale.example/",
        "HEADSCALE_API_KEY": HEADSCALE_KEY,
        "TAILSCALE_API_KEY_FILE": str(tmp_path / "key"),
        "TAILNET": "example.com",
        "TAILSPAN_READERS": "ana@example.com, tag:ops",
    }
    settings = Settings.read(environ)
    found = [(source.name, source.place) for source in sources_of(settings)]
    assert found == [
        ("local", "tailscaled at /nowhere"),
        ("status", "/shared/status.json"),
        ("headscale", "https://headscale.example"),
        ("api", "https://api.tailscale.com"),
    ]
    assert settings.tailscale == TailscaleAPI(key=API_KEY, tailnet="example.com")
    assert settings.readers == ("ana@example.com", "tag:ops")
    assert [source.name for source in sources_of(Settings.read({}))] == ["local"]
    client = {"TAILSCALE_OAUTH_CLIENT_ID": CLIENT[0], "TAILSCALE_OAUTH_CLIENT_SECRET": CLIENT[1]}
    assert Settings.read(environ | client).tailscale == TailscaleAPI(
        client_id=CLIENT[0], client_secret=CLIENT[1], tailnet="example.com"
    )
    assert not any(secret in repr(Settings.read(environ | client)) for secret in (API_KEY, HEADSCALE_KEY, CLIENT[1]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HEADSCALE_URL": "https://headscale.example"}, "HEADSCALE_API_KEY"),
        ({"HEADSCALE_URL": "headscale", "HEADSCALE_API_KEY": HEADSCALE_KEY}, "HEADSCALE_URL"),
        ({"TAILSCALE_OAUTH_CLIENT_ID": "k"}, "TAILSCALE_OAUTH_CLIENT_SECRET"),
        ({"TAILSCALE_OAUTH_CLIENT_SECRET": "secretsecret"}, "TAILSCALE_OAUTH_CLIENT_ID"),
        ({"TAILSCALE_API_KEY": "two secrets"}, "TAILSCALE_API_KEY"),
        ({"TAILSCALE_API_KEY_FILE": "/nowhere"}, "TAILSCALE_API_KEY_FILE"),
        ({"TAILSCALE_API_KEY": API_KEY, "TAILNET": "../other"}, "TAILNET"),
        ({"TAILSPAN_STATUS": "https://me:secret@box/status"}, "TAILSPAN_STATUS"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_no_secret_shown(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError, match=said) as problem:
        Settings.read(given)
    assert not any(value in str(problem.value) for value in ("me:secret", "two secrets", "secretsecret"))


# Questions


def test_the_devices_are_listed_with_their_use_those_who_use_nothing_and_those_whom_nobody_knows(
    serving: Serving,
) -> None:
    known = {**ANA, "user.name": "alice@example.com", "user.full_name": "Alice", "tailscale.node": "alice-laptop"}
    known |= {"tailscale.node.id": ALICE.node_id, "tailscale.address": "100.64.0.2"}
    gone = {**ANA, "tailscale.node": "old-laptop", "tailscale.node.id": "gone", "tailscale.address": "100.64.0.88"}
    checks = {**known, "tailspan.traffic": "health"}
    with tailscale() as control, serving(tailscale=TailscaleAPI(key=API_KEY, url=control.url)) as client:
        client.post(
            "/v1/traces",
            json=export(
                span(1, known, ago=60),
                span(2, known, ago=30),
                span(3, checks, ago=10),
                span(4, gone, ago=86400 * 3),
                unknown(5, "100.64.0.99", ago=20),
                unknown(6, "100.64.0.2", ago=25),
                span(7, known, ago=86400 * 8),
            ),
        )
        loaded(client)
        found = get(client, "tailnet/devices")
        assert found["summary"] == {
            "devices": 4,
            "online": 3,
            "using": 1,
            "online_not_using": 2,
            "unknown": 2,
            "new_devices": 2,
            "new_people": 1,
        }
        assert found["devices"][0] == {
            "id": ALICE.node_id,
            "name": "alice-laptop",
            "user": "alice@example.com",
            "full_name": None,
            "tags": [],
            "kind": "person",
            "addresses": list(ALICE.addresses),
            "os": "linux",
            "version": "1.96.5-t1234567-g89abcdef0",
            "online": True,
            "last_seen": None,
            "joined": "2025-12-01T05:23:30Z",
            "first_seen": "2025-12-01T05:23:30.000Z",
            "key_expires": "2026-03-09T04:44:05Z",
            "key_expired": False,
            "listed_by": ["api"],
            "requests": 3,
            "last_request": "2026-03-01T11:59:35.000Z",
        }
        idle = get(client, "tailnet/devices", online=True, using=False)["devices"]
        assert [(one["name"], one["tags"], one["requests"], one["last_request"]) for one in idle] == [
            ("ci-runner", ["tag:ci"], 0, None),
            ("ext-box.other-net.ts.net", [], 0, None),
        ]
        assert found["unknown"] == [
            {
                "address": "100.64.0.99",
                "device_id": None,
                "device": None,
                "user": None,
                "requests": 1,
                "last_request": "2026-03-01T11:59:40.000Z",
            },
            {
                "address": "100.64.0.88",
                "device_id": "gone",
                "device": "old-laptop",
                "user": "ana@example.com",
                "requests": 1,
                "last_request": "2026-02-26T12:00:00.000Z",
            },
        ]
        assert [one["name"] for one in found["new_devices"]] == ["ext-box.other-net.ts.net", "zoe-phone"]
        assert found["new_people"] == [{"user": "ana@example.com", "first_seen": "2026-02-26T12:00:00.000Z"}]
        assert (found["start"], found["end"]) == ("2026-02-22T12:00:00.000Z", "2026-03-01T12:00:00.000Z")
        cut = get(client, "tailnet/devices", limit=1)
        assert (len(cut["devices"]), cut["more"]) == (1, {"devices": 3, "unknown": 1, "new_devices": 1})
        assert get(client, "tailnet/devices", device="zoe-phone")["summary"]["devices"] == 1
        assert get(client, "tailnet/devices", user="alice@example.com", service="nope")["devices"][0]["requests"] == 0


def test_a_device_is_told_by_id_or_name_with_its_past_also_where_nobody_lists_it_any_more(serving: Serving) -> None:
    whois = {**ANA, "tailspan.identity.source": "whois"}
    renamed = {**whois, "tailscale.node": "studio"}
    with serving(status=str(STATUS)) as client:
        client.post(
            "/v1/traces",
            json=export(span(1, whois, ago=90), span(2, renamed, ago=60), span(3, renamed, ago=30, took_ms=1)),
        )
        loaded(client)
        by_name, by_id = (get(client, f"tailnet/devices/{one}") for one in ("studio", "n1CNTRL"))
        assert by_name == by_id
        assert (by_id["listed"], by_id["device"]["name"], by_id["device"]["requests"]) == (False, "studio", 3)
        assert by_id["services"] == [
            {"service": "dashboard", "environment": None, "requests": 3, "last_request": "2026-03-01T11:59:30.000Z"}
        ]
        assert [(one["device"], one["start"], one["end"]) for one in by_id["history"]] == [
            ("studio", "2026-03-01T11:59:00.000Z", None),
            ("ana-laptop", "2026-03-01T11:58:30.000Z", "2026-03-01T11:59:00.000Z"),
        ]
        listed = get(client, "tailnet/devices/ci-runner")
        assert (listed["listed"], listed["device"]["tags"], listed["services"]) == (True, ["tag:ci"], [])
        missing = client.get("/analytics/tailnet/devices/ci-runer")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_device")
        assert missing.json()["error"]["fix"] == "Did you mean 'ci-runner'?"


def test_whose_an_address_is_every_source_says_for_itself(serving: Serving) -> None:
    with tailscale() as control:
        api = TailscaleAPI(key=API_KEY, url=control.url)
        with serving(status=str(STATUS), tailscale=api) as client:
            whois = {**ANA, "tailspan.identity.source": "whois", "tailscale.address": "100.64.0.2"}
            client.post("/v1/traces", json=export(span(1, whois, ago=90), span(2, whois, ago=60)))
            loaded(client)
            found = get(client, "tailnet/who-is", address="100.64.0.2")
            assert get(client, "tailnet/who-is", address="::ffff:100.64.0.2")["address"] == "100.64.0.2"
            nobody = get(client, "tailnet/who-is", address="FD7A:115C:A1E0::99")
            wrong = client.get("/analytics/tailnet/who-is", params={"address": "laptop"})
    assert (found["device"]["name"], found["device"]["listed_by"]) == ("alice-laptop", ["status", "api"])
    assert [(one["source"], one["device"], one["user"], one["as_of"]) for one in found["says"]] == [
        ("status", "alice-laptop", "alice@example.com", "2026-03-01T12:00:00Z"),
        ("api", "alice-laptop", "alice@example.com", "2026-03-01T12:00:00Z"),
        ("requests", "ana-laptop", "ana@example.com", "2026-03-01T11:58:30.000Z"),
    ]
    assert ("ana-laptop", "whois") in [(one["device"], one["source"]) for one in found["history"]]
    assert found["used_by"] == [
        {
            "user": "ana@example.com",
            "device_id": "n1CNTRL",
            "service": "dashboard",
            "requests": 2,
            "last_request": "2026-03-01T11:59:00.000Z",
        }
    ]
    assert (nobody["address"], nobody["device"], nobody["used_by"]) == ("fd7a:115c:a1e0::99", None, [])
    assert [one["device"] for one in nobody["says"]] == [None, None]
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (422, "address is 'laptop'.")


def test_the_status_says_who_is_there_and_whose_keys_expire(serving: Serving) -> None:
    with tailscale() as control:
        api = TailscaleAPI(key=API_KEY, url=control.url)
        with serving(status=str(STATUS), tailscale=api) as client:
            loaded(client)
            found = get(client, "tailnet/status")
    assert {name: found[name] for name in ("devices", "online", "people", "tagged", "shared")} == {
        "devices": 5,
        "online": 5,
        "people": 3,
        "tagged": 1,
        "shared": 1,
    }
    assert (found["tailnet"], found["magic_dns_suffix"]) == ("fake-control.example.net", "tail-scale.ts.net")
    assert found["keys_expiring"] == [
        {
            "id": ALICE.node_id,
            "device": "alice-laptop",
            "user": "alice@example.com",
            "expires": "2026-03-09T04:44:05Z",
            "expired": False,
        }
    ]
    assert [(one["name"], one["device"], one["userspace"], one["key_expires"]) for one in found["listed_by"]] == [
        ("status", "appsrv", True, None),
        ("api", None, None, "2026-05-30T00:00:00Z"),
    ]


def test_without_any_source_the_answers_say_how_to_set_one(client: TestClient) -> None:
    for path in ("tailnet/devices", "tailnet/status", "tailnet/who-is?address=100.64.0.2"):
        told = get(client, path)["sources"][-1]
        assert (told["name"], told["state"], "TAILSCALE_API_KEY" in told["message"]) == ("tailnet", "not set", True)
    assert [source["name"] for source in get(client, "active")["sources"]] == ["store"]
