"""A real tailnet's own list of devices names requests of a service that has no tailscaled to ask, in both stores."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest

from tailspan.tailnet.headscale import Headscale
from tailspan.tailnet.local import Local
from tests.server.tailnet import HEADSCALE_KEY, headscale
from tests.stack.engines import Collector, Influxd, free_port, until
from tests.stack.tailnet.lab import Person, Tailnet
from tests.stack.tailnet.network import HUB
from tests.stack.tailnet.services import TOKEN, Log, Server, Ways, influx_settings, service

NOWHERE: Final = "/nowhere/tailscaled.sock"
OWNERS: Final[dict[str, Person | str]] = {
    "dashboard": Person("ops", "ops@example.com", "Olga Ops"),
    "alice-laptop": Person("alice", "alice@example.com", "Alice Example"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
    "nomail-box": Person("nomail"),
    "ci-runner": "tag:ci",
}
SERVERS: Final = ("duckdb-local", "duckdb-status", "influxdb-headscale")
IDENTITY: Final = ("caller", "user", "full_name", "device", "device_id", "tags", "ip", "identity_source")
REFUSED: Final = (401, "text/plain; charset=utf-8", "Unauthorized")
NODE: Final = set(
    [
        "id",
        "machineKey",
        "nodeKey",
        "discoKey",
        "ipAddresses",
        "name",
        "user",
        "lastSeen",
        "expiry",
        "preAuthKey",
        "createdAt",
        "registerMethod",
        "givenName",
        "online",
        "approvedRoutes",
        "availableRoutes",
        "subnetRoutes",
        "tags",
    ]
)
USER: Final = set(["id", "name", "createdAt", "displayName", "email", "providerId", "provider", "profilePicUrl"])


class Lists(NamedTuple):
    """Servers that each have one source of the tailnet's devices, and a service behind Serve that has none."""

    tailnet: Tailnet
    servers: dict[str, Server]

    def asked_by(self, *devices: str) -> str:
        """A path that each of them asked for."""
        path = f"/asked/{next(NUMBERS)}"
        for device in devices:
            assert self.tailnet.nodes[device].get("dashboard", 80, path).status == 200
        return path

    def rows(self, server: str, path: str, number: int) -> list[Log]:
        """Of the service, for that path, once there are so many."""

        def found() -> list[Log] | None:
            rows = [log for log in self.servers[server].logs("shop") if log["path"] == path]
            return rows if len(rows) == number else None

        rows: list[Log] = until(found, "not all rows", self.servers[server].said)
        return rows


NUMBERS: Final = count()


@pytest.fixture(scope="module")
def lists(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lists]:
    folder = tmp_path_factory.mktemp("lists")
    tailnet.join(OWNERS)
    node = tailnet.nodes["dashboard"]
    tailnet.settle()
    status = folder / "status.json"
    status.write_text(node.cli("status", "--json"))
    control = {"HEADSCALE_URL": tailnet.headscale.url, "HEADSCALE_API_KEY": tailnet.headscale.key}
    sources = {
        "local": {"TS_SOCKET": str(node.socket)},
        "status": {"TAILSPAN_STATUS": str(status), "TS_SOCKET": NOWHERE},
        "headscale": {**control, "TS_SOCKET": NOWHERE},
    }
    with ExitStack() as stack:
        influxd = Influxd(folder / "influxd")
        stack.callback(influxd.kill)
        influxd.set_up()
        otlp = f"{HUB}:{free_port()}"
        collector = Collector(folder / "collector", influxd, TAILSPAN_COLLECTOR_HTTP=otlp)
        stores: dict[str, dict[str, str]] = {"duckdb": {}, "influxdb": influx_settings(influxd)}
        servers = {}
        for name in SERVERS:
            store, _, source = name.partition("-")
            servers[name] = Server(folder / name, stores[store] | sources[source], hurried=True)
        engines = (collector, *servers.values())
        for engine in engines:
            stack.callback(engine.kill)
            engine.start(wait=False)
        for engine in engines:
            until(engine.answers, f"{engine.command[0]} does not answer", engine.said)
        ways = [server.url for name, server in servers.items() if name.startswith("duckdb")]
        socket = folder / "app.sock"
        stack.enter_context(service("shop", node, Ways(*ways, f"http://{otlp}"), Path(NOWHERE), uds=str(socket)))
        node.cli("serve", "--bg", "--http=80", f"unix:{socket}")
        yield Lists(tailnet, servers)


def listed(name: str, tailnet: Tailnet, source: str) -> dict[str, Any]:
    """As the list of devices has to tell it. headscale does not know names that nobody gave, and no systems."""
    owner, node_id = OWNERS[name], tailnet.headscale.node_id(name)
    person = owner if isinstance(owner, Person) else None
    unnamed = None if source == "headscale" or person is None else person.login
    return {
        "id": node_id,
        "name": name,
        "user": person.login if person else None,
        "full_name": (person.full_name or unnamed) if person else None,
        "tags": [] if person else [owner],
        "kind": "person" if person else "tagged",
        "addresses": list(tailnet.nodes[name].addresses),
        "os": None if source == "headscale" else "linux",
        "online": True,
        "key_expired": False,
        "listed_by": [source],
    }


@pytest.mark.parametrize("name", SERVERS)
def test_the_devices_are_listed_as_they_are(lists: Lists, name: str) -> None:
    told = lists.servers[name].ask("/analytics/tailnet/devices")
    expected = [listed(device, lists.tailnet, name.partition("-")[2]) for device in sorted(OWNERS)]
    assert [{key: one[key] for key in expected[0]} for one in told["devices"]] == expected
    assert all(one["joined"] and one["first_seen"] for one in told["devices"])


def test_both_stores_and_every_source_name_requests_alike(lists: Lists) -> None:
    asking = ("alice-laptop", "zoe-phone", "nomail-box", "ci-runner")
    path = lists.asked_by(*asking)
    expected = {}
    for device in asking:
        one = listed(device, lists.tailnet, "local")
        expected[device] = {
            "caller": one["kind"],
            "user": one["user"],
            "full_name": one["full_name"],
            "device": device,
            "device_id": one["id"],
            "tags": ",".join(one["tags"]) or None,
            "ip": one["addresses"][0],
            "identity_source": "serve_header" if one["user"] else "device_list",
        }
    for name in SERVERS:
        rows = {row["device"]: {key: row[key] for key in IDENTITY} for row in lists.rows(name, path, len(asking))}
        assert rows == expected, name


@pytest.mark.parametrize("name", SERVERS)
def test_who_has_an_address_is_told_with_what_came_from_it(lists: Lists, name: str) -> None:
    path = lists.asked_by("ci-runner")
    lists.rows(name, path, 1)
    runner = listed("ci-runner", lists.tailnet, name.partition("-")[2])
    told = lists.servers[name].ask("/analytics/tailnet/who-is", address=runner["addresses"][0])
    word = {"device_id": runner["id"], "device": "ci-runner", "user": None, "tags": ["tag:ci"], "kind": "tagged"}
    assert [{key: said[key] for key in ("source", *word)} for said in told["says"]] == [
        {"source": runner["listed_by"][0], **word}
    ]
    assert {key: told["device"][key] for key in runner} == runner
    assert [(entry["device"], entry["end"]) for entry in told["history"]] == [("ci-runner", None)]
    assert {(use["service"], use["device_id"]) for use in told["used_by"]} == {("shop", runner["id"])}


@pytest.mark.parametrize("command", [["devices"], ["who-is", "ci-runner"]])
def test_the_commands_show_them(lists: Lists, command: list[str]) -> None:
    server = lists.servers["influxdb-headscale"]
    address = lists.tailnet.nodes["ci-runner"].address
    arguments = [address if argument == "ci-runner" else argument for argument in command]
    done = subprocess.run(
        [sys.executable, "-m", "tailspan", *arguments],
        env={"TAILSPAN_URL": server.url, "TAILSPAN_TOKEN": TOKEN, "COLUMNS": "200", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "ci-runner" in done.stdout, "tag:ci" in done.stdout) == (0, True, True), done


def test_what_changes_is_named_anew_and_what_was_stays_in_the_history(lists: Lists) -> None:
    headscale, nodes = lists.tailnet.headscale, lists.tailnet.nodes
    names = ("duckdb-local", "influxdb-headscale")
    assert max(Local.every_s, Headscale.every_s) <= 30  # within a minute, then, where they do not hurry as here
    lists.asked_by("ci-runner", "zoe-phone")
    zoe, runner = headscale.node_id("zoe-phone"), headscale.node_id("ci-runner")
    headscale.ask("POST", f"node/{runner}/rename/new-runner")
    headscale.ask("POST", f"node/{zoe}/tags", json={"tags": ["tag:ci"]})
    for name in names:
        server = lists.servers[name]

        def followed(server: Server = server) -> bool:
            told = {one["id"]: one for one in server.ask("/analytics/tailnet/devices")["devices"]}
            return (told[runner]["name"], told[zoe]["kind"]) == ("new-runner", "tagged")

        until(followed, "not followed", server.said)
    path = lists.asked_by("ci-runner", "zoe-phone")
    for name in names:
        anew = {"new-runner": ("tagged", None, "tag:ci"), "zoe-phone": ("tagged", None, "tag:ci")}

        def named(name: str = name) -> dict[str, tuple[str | None, ...]]:
            return {row["device"]: (row["caller"], row["user"], row["tags"]) for row in lists.rows(name, path, 2)}

        until(lambda: named() == anew, "not named anew", lambda: str(named()))  # noqa: B023  # asked at once
        history = lists.servers[name].ask("/analytics/tailnet/who-is", address=nodes["zoe-phone"].address)["history"]
        assert [(entry["kind"], entry["user"], entry["end"] is None) for entry in history] == [
            ("tagged", None, True),
            ("person", "zoe@example.com", False),
        ]
        assert history[0]["start"] == history[1]["end"]


def test_the_stand_in_for_headscale_answers_like_the_real_one(lists: Lists) -> None:
    real = lists.tailnet.headscale
    with headscale() as stand_in:
        for url, key in ((stand_in.url, HEADSCALE_KEY), (real.url, real.key)):
            with httpx.Client(verify=False, trust_env=False, base_url=url, timeout=30) as client:
                refused = client.get("/api/v1/node", headers={"Authorization": "Bearer wrong"})
                assert (refused.status_code, refused.headers["Content-Type"], refused.text.strip()) == REFUSED
                found = client.get("/api/v1/node", headers={"Authorization": f"Bearer {key}"})
                assert (found.status_code, found.headers["Content-Type"]) == (200, "application/json")
                assert all(set(node) == NODE and set(node["user"]) == USER for node in found.json()["nodes"])
