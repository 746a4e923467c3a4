"""Who is on the tailnet, whether they use anything or not: the tailnet's endpoints as tools."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from tailspan.config import TailscaleAPI
from tests.mcp_server.conftest import Tailspan, ask, refused
from tests.server.spans import ANA, span
from tests.server.tailnet import API_KEY, Answer, tailscale, until

pytestmark = pytest.mark.anyio

ALICE: Final = {
    **ANA,
    "user.name": "alice@example.com",
    "tailscale.node": "alice-laptop",
    "tailscale.node.id": "TESTCTRL00000002",
    "tailscale.address": "100.64.0.2",
}
TOOLS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("tailscale_list_devices", {}),
    ("tailscale_get_device", {"device": "alice-laptop"}),
    ("tailscale_get_status", {}),
    ("tailscale_who_is", {"ip": "100.64.0.2"}),
)


@contextmanager
def listed(folder: Path, **answers: Answer) -> Iterator[Tailspan]:
    """A tailspan that has asked the tailnet's control server once."""
    with tailscale(**answers) as control:
        tailspan = Tailspan(folder / "t.duckdb", tailscale=TailscaleAPI(key=API_KEY, url=control.url))
        with TestClient(tailspan.app, "http://127.0.0.1:8100", client=("127.0.0.1", 5)) as client:
            until(lambda: asked_once(client))
            yield tailspan
        tailspan.store.close()


def asked_once(client: TestClient) -> bool:
    sources = client.get("/analytics/tailnet/status").json()["sources"]
    return any(source["name"].startswith("tailnet") and source["state"] != "no data yet" for source in sources)


async def test_devices_are_listed_with_what_they_did(tmp_path: Path) -> None:
    with listed(tmp_path) as tailspan:
        tailspan.send(span(1, ALICE, ago=60))
        async with tailspan.client() as client:
            told = await ask(client, "tailscale_list_devices")
            idle = await ask(client, "tailscale_list_devices", online=True, using=False)
    assert told.text == "4 devices, 3 online."
    assert told.data["devices"] == {
        "rows": 4,
        "name": ["alice-laptop", "ci-runner", "ext-box.other-net.ts.net", "zoe-phone"],
        "id": ["TESTCTRL00000002", "TESTCTRL00000004", "TESTCTRL00000005", "TESTCTRL00000003"],
        "user": ["alice@example.com", None, "eve@other.example", "zoe@example.com"],
        "tags": ["", "tag:ci", "", ""],
        "os": ["linux", "linux", "linux", "iOS"],
        "online": [True, True, True, False],
        "last_seen": told.data["devices"]["last_seen"],
        "key_expires": told.data["devices"]["key_expires"],
        "requests": [1, 0, 0, 0],
        "last_request": ["2026-03-01T11:59:00.000Z", None, None, None],
    }
    assert told.data["window"] == {"start": "2026-02-22T12:00:00.000Z", "end": "2026-03-01T12:00:00.000Z"}
    assert told.data["sources"]["tailnet api"] == "ok"
    assert [one["name"] for one in idle.data["devices"]] == ["ci-runner", "ext-box.other-net.ts.net"]


async def test_a_device_and_an_address_are_told_with_their_owner(tmp_path: Path) -> None:
    with listed(tmp_path) as tailspan:
        tailspan.send(span(1, ALICE, ago=60))
        async with tailspan.client(language="es") as client:
            device = await ask(client, "tailscale_get_device", device="alice-laptop")
            address = await ask(client, "tailscale_who_is", ip="100.64.0.2")
            nobody = await ask(client, "tailscale_who_is", ip="100.64.0.77")
            missing = await refused(client, "tailscale_get_device", device="alice-laptp")
            wrong = await refused(client, "tailscale_who_is", ip="alice")
    assert device.text == "alice-laptop, alice@example.com, en línea."
    assert [(one["service"], one["requests"]) for one in device.data["services"]] == [("dashboard", 1)]
    assert address.text == "100.64.0.2: alice-laptop, alice@example.com, en línea."
    assert {one["source"]: one["user"] for one in address.data["says"]} == {
        "api": "alice@example.com",
        "requests": "alice@example.com",
    }
    assert (nobody.text, nobody.data["device"]) == ("100.64.0.77: nadie conocido.", None)
    assert "alice-laptop" in missing and "404" in missing
    assert "It is an IP address, as 100.64.0.7" in wrong


async def test_the_status_says_whose_keys_expire(tmp_path: Path) -> None:
    with listed(tmp_path) as tailspan:
        tailspan.send(span(1, ALICE, ago=60))
        async with tailspan.client() as client:
            told = await ask(client, "tailscale_get_status")
    assert (told.text, told.data["people"], told.data["tagged"]) == ("4 devices, 3 online.", 2, 1)
    assert "alice-laptop" in [one["device"] for one in told.data["keys_expiring"]]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "TAILSCALE_API_KEY"), (403, "devices:core:read"), (429, "rate limited")]
)
async def test_a_source_that_refuses_is_an_error_with_the_fix_and_no_empty_tailnet(
    tmp_path: Path, status: int, said: str
) -> None:
    refusal = Answer({"message": "rate limited"}, status)
    with listed(tmp_path, **{"/api/v2/tailnet/-/devices": refusal}) as tailspan:
        async with tailspan.client() as client:
            for tool, arguments in TOOLS:
                answered = await refused(client, tool, **arguments)
                assert tool == "tailscale_get_device" or said in answered
                assert "secret" not in answered


async def test_without_a_source_the_tools_say_how_to_set_one(tailspan: Tailspan) -> None:
    async with tailspan.client() as client:
        for tool, arguments in TOOLS:
            if tool != "tailscale_get_device":
                assert "TAILSCALE_API_KEY" in await refused(client, tool, **arguments)
