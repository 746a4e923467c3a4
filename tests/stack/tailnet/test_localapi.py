"""The stand-in for tailscaled that the other tests use, held against a real one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tailspan.demo.localapi import LocalAPI, Question, questions
from tests.stack.engines import ROOT
from tests.stack.tailnet.lab import Person, Tailnet

FIXTURES: Final = ROOT / "tests" / "fixtures"
DEVICES: Final[dict[str, Person | str]] = {
    "alice-laptop": Person("alice", "alice@example.com", "Alice Architect"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
    "ci-runner": "tag:ci",
}
# of a device that shares files, may be a funnel and has a picture, as in the captures; and of headscale's relay
OTHERS: Final = {
    *("Node.Created", "Node.Hostinfo.NetInfo", "UserProfile.ProfilePicURL"),
    *("CapMap", "Node.CapMap", "Node.Capabilities", "Self.CapMap", "CertDomains"),
    *("Peer[].CapMap", "Peer[].Capabilities", "Peer[].ShareeNode", "User[].ProfilePicURL"),
}
Clients = tuple[httpx.Client, httpx.Client]  # of the stand-in, and of the real one


@pytest.fixture(scope="module")
def real(tailnet: Tailnet) -> Tailnet:
    tailnet.join({"dashboard": Person("ops", "ops@example.com"), **DEVICES})
    tailnet.settle()
    return tailnet


@pytest.fixture(scope="module")
def clients(real: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Of the stand-in and of the real one."""
    socket = tmp_path_factory.mktemp("stand-in") / "tailscaled.sock"
    with LocalAPI(socket, FIXTURES), talking(socket) as stand_in, talking(real.nodes["dashboard"].socket) as true:
        yield stand_in, true


def talking(socket: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://local-tailscaled.sock")


def shape(value: Any, path: str = "") -> set[str]:
    """The path and the type of everything in it, but for what differs from tailnet to tailnet."""
    if path in OTHERS:
        return set()
    if path in ("Peer", "User"):
        value = list((value or {}).values())
    if isinstance(value, dict):
        return {leaf for key, one in value.items() for leaf in shape(one, f"{path}.{key}".lstrip("."))}
    if isinstance(value, list):
        return {leaf for one in value for leaf in shape(one, f"{path}[]")}
    return {f"{path}: {type(value).__name__}"}


def told(client: httpx.Client, question: Question) -> tuple[int, str, str | set[str]]:
    """Status, type, and what was refused or the shape of what was found."""
    answer = client.get(question.target, headers=question.headers)
    body = shape(answer.json()) if answer.status_code == 200 else answer.text
    return answer.status_code, answer.headers["Content-Type"], body


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
def test_every_question_is_answered_alike(clients: Clients, real: Tailnet, device: str, family: int) -> None:
    captured = json.loads((FIXTURES / f"whois-{device}.json").read_text())["Node"]["Addresses"][family].partition("/")[
        0
    ]
    unknown = ("100.64.0.99", "fd7a:115c:a1e0::99")[family]
    stand_in, tailscaled = (
        [told(client, question) for question in questions(known, unknown)]
        for client, known in zip(clients, (captured, real.nodes[device].addresses[family]), strict=True)
    )
    assert stand_in == tailscaled
    assert {status for status, _, _ in tailscaled} == {200, 400, 403, 404}


@pytest.mark.parametrize("device", DEVICES)
def test_names_are_told_as_they_are(clients: Clients, real: Tailnet, device: str) -> None:
    profile = clients[1].get("/localapi/v0/whois", params={"addr": real.nodes[device].address}).json()["UserProfile"]
    captured = json.loads((FIXTURES / f"whois-{device}.json").read_text())["UserProfile"]
    assert (profile["LoginName"], profile["DisplayName"]) == (captured["LoginName"], captured["DisplayName"])


def test_the_status_has_the_same_keys(clients: Clients) -> None:
    stand_in, tailscaled = (told(client, Question("/localapi/v0/status", {})) for client in clients)
    assert stand_in == tailscaled
