"""What answers tell of the devices that sources list."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from tailspan.config import TailscaleAPI
from tailspan.directory import Directory
from tailspan.store.duckdb import DuckDB
from tailspan.tailnet import Look
from tests.server.conftest import Serving
from tests.server.spans import ANA, NOW, export, span
from tests.server.tailnet import (
    ALICE,
    API_KEY,
    SIX,
    STATUS,
    Clock,
    Given,
    tailscale,
    until,
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
