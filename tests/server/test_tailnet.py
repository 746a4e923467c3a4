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

from tailspan.config import Headscale as HeadscaleSettings
from tailspan.config import Settings, TailscaleAPI
from tailspan.demo.localapi import LocalAPI
from tailspan.directory import Directory, sources_of
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
from tests.server.spans import NOW
from tests.server.tailnet import (
    ALICE,
    API_KEY,
    CLIENT,
    DEVICES,
    EVE,
    FIXTURES,
    HEADSCALE_KEY,
    RUNNER,
    SIX,
    STATUS,
    Answer,
    Clock,
    Control,
    Given,
    headscale,
    running,
    tailscale,
)


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


# The history


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
