"""Claude on a real tailnet: its devices by the tools, and a person who asks without a key."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import httpx2
import pytest
from mcp import Client
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings
from tailspan_mcp.upstream import author_of

from tests.conftest import launching
from tests.mcp_server.conftest import Told, ask
from tests.stack.engines import until
from tests.stack.tailnet.lab import Answer, Person, Tailnet

OWNERS: Final[dict[str, Person | str]] = {
    "dashboard": Person("ops", "ops@example.com", "Olga Ops"),
    "alice-laptop": Person("alice", "alice@example.com", "Alice Example"),
    "ci-runner": "tag:ci",
}
TOKEN: Final = "a-token-of-the-tests"
HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


class Asked(NamedTuple):
    """A tailspan on a unix socket, behind Serve of the dashboard's node."""

    tailnet: Tailnet
    socket: Path

    def get(self, path: str, **parameters: str) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=30) as client:
            return client.get(path, params=parameters, headers={"Authorization": f"Bearer {TOKEN}"}).json()

    def tool(self, name: str, **arguments: str) -> Told:
        """Over stdio's way: HTTP to the server's socket, with its token."""

        async def call() -> Told:
            settings = Settings(url=f"unix:{self.socket}", token=TOKEN)
            async with Client(create_server(settings)) as client:
                return await ask(client, name, **arguments)

        return asyncio.run(call())

    def over_serve(self, device: str) -> Answer:
        """A call from a device, as any client of streamable HTTP makes it, and with no key."""
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "tailscale_get_status"}}
        with closing(self.tailnet.nodes[device].connect("dashboard", 80)) as connection:
            connection.request("POST", "/analytics/mcp", json.dumps(call), {**HEADERS, "Host": "dashboard"})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())


@pytest.fixture(scope="module")
def asked(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("mcp")
    tailnet.join(OWNERS)
    tailnet.settle()
    node, socket = tailnet.nodes["dashboard"], folder / "server.sock"
    asked = Asked(tailnet, socket)
    settings = {
        "DB": str(folder / "t.duckdb"),
        "LISTEN": f"unix:{socket}",
        "ALLOWED_HOSTS": "dashboard",
        "TOKEN": TOKEN,
    }
    with launching() as launch:
        given = {f"TAILSPAN_{key}": value for key, value in settings.items()}
        server = launch("tailspan", "serve", TS_SOCKET=str(node.socket), **given)
        assert server.line().startswith("tailspan listens")
        node.cli("serve", "--bg", "--http=80", f"unix:{socket}")
        until(socket.exists, "it does not listen")
        until(lambda: len(asked.get("/analytics/tailnet/devices")["devices"]) == 3, "not all devices")
        yield asked


def test_the_tools_tell_the_devices_of_the_tailnet_as_they_are(asked: Asked) -> None:
    address = asked.tailnet.nodes["ci-runner"].address
    listed = asked.tool("tailscale_list_devices")
    assert listed.text == "3 devices, 3 online."
    found = {one["name"]: (one["user"], one["tags"], one["online"]) for one in listed.data["devices"]}
    assert found == {
        "dashboard": ("ops@example.com", "", True),
        "alice-laptop": ("alice@example.com", "", True),
        "ci-runner": (None, "tag:ci", True),
    }
    status = asked.tool("tailscale_get_status")
    assert (status.data["devices"], status.data["people"], status.data["tagged"]) == (3, 2, 1)
    assert asked.tool("tailscale_get_device", device="ci-runner").text == "ci-runner, tag:ci, online."
    assert asked.tool("tailscale_who_is", ip=address).text == f"{address}: ci-runner, tag:ci, online."


def test_a_person_of_the_tailnet_asks_without_a_key_and_a_tagged_device_does_not(asked: Asked) -> None:
    answer = asked.over_serve("alice-laptop")
    assert answer.status == 200, answer.body
    message: Any = json.loads(answer.body.partition("data: ")[2])
    assert message["result"]["content"][0]["text"] == "3 devices, 3 online."
    refusal = asked.over_serve("ci-runner")
    assert (refusal.status, "TAILSPAN_READERS" in refusal.body) == (403, True)

    def recorded() -> bool:
        rows = asked.get("/analytics/access-logs", service="tailspan")["logs"]
        return {("alice@example.com", 200), (None, 403)} <= {
            (row["user"], row["status"]) for row in rows if row["traffic"] == "agent"
        }

    until(recorded, "who asked is not recorded")


def test_what_serve_answers_for_a_service_that_is_gone_is_not_blamed_on_the_service(asked: Asked) -> None:
    asked.tailnet.nodes["dashboard"].cli("serve", "--bg", "--http=81", "http://127.0.0.1:1")
    with closing(asked.tailnet.nodes["alice-laptop"].connect("dashboard", 81)) as connection:
        connection.request("GET", "/prices", headers={"Host": "dashboard"})
        answer = connection.getresponse()
        headers, content = answer.getheaders(), answer.read()
    assert (answer.status, answer.getheader("Server"), content) == (502, None, b"")
    assert author_of(httpx2.Response(answer.status, headers=headers), content) == "proxy"
