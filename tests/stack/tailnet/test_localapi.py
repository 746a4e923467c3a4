"""The stand-in for tailscaled that the other tests use, held against a real one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tailspan.demo.localapi import LocalAPI
from tests.stack.engines import ROOT
from tests.stack.tailnet.lab import Person, Tailnet

FIXTURES: Final = ROOT / "tests" / "fixtures"
DEVICES: Final[dict[str, Person | str]] = {
    "alice-laptop": Person("alice", "alice@example.com", "Alice Architect"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
    "ci-runner": "tag:ci",
}
NOT_THERE: Final = [
    *("whois?addr=100.64.0.99", "whois?addr=100.64.0.99:80&proto=tcp", "whois?addr=127.0.0.1:5&proto=tcp"),
    *("whois?addr=fd7a:115c:a1e0::99", "whois?addr=[fd7a:115c:a1e0::99]:80", "whois?addr=::ffff:100.64.0.1"),
    *("whois", "whois?addr=", "nothing"),
]
REFUSED: Final = [{"Host": "localhost"}, {"Origin": "http://localhost"}, {"Referer": "http://localhost/"}]
# of a device that shares files, may be a funnel and has a picture, as in the captures; and of headscale's relay
OTHERS: Final = {
    *("Node.Created", "Node.Hostinfo.NetInfo", "UserProfile.ProfilePicURL"),
    *("CapMap", "Node.CapMap", "Node.Capabilities", "Self.CapMap", "CertDomains"),
    *("Peer[].CapMap", "Peer[].Capabilities", "Peer[].ShareeNode", "User[].ProfilePicURL"),
}


@pytest.fixture(scope="module")
def real(tailnet: Tailnet) -> Tailnet:
    tailnet.join({"dashboard": Person("ops", "ops@example.com"), **DEVICES})
    tailnet.settle()
    return tailnet


@pytest.fixture(scope="module")
def clients(real: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Of the stand-in and of the real one."""
    socket = tmp_path_factory.mktemp("stand-in") / "tailscaled.sock"
    with LocalAPI(socket, FIXTURES), talking(socket) as stand_in, talking(real.nodes["dashboard"].socket) as true:
        yield stand_in, true


def talking(socket: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://local-tailscaled.sock")


def both(clients: tuple[httpx.Client, httpx.Client], question: str, **options: Any) -> list[tuple[int, str, str]]:
    """Status, type and text of both answers."""
    answers = [client.get(f"/localapi/v0/{question}", **options) for client in clients]
    return [(answer.status_code, answer.headers["Content-Type"], answer.text) for answer in answers]


def shape(value: Any, path: str = "") -> set[str]:
    """The path and the type of everything in it, but for what differs from tailnet to tailnet."""
    if path in OTHERS:
        return set()
    if path in ("Peer", "User"):
        value = list(value.values())
    if isinstance(value, dict):
        return {leaf for key, one in value.items() for leaf in shape(one, f"{path}.{key}".lstrip("."))}
    if isinstance(value, list):
        return {leaf for one in value for leaf in shape(one, f"{path}[]")}
    return {f"{path}: {type(value).__name__}"}


@pytest.mark.parametrize("question", NOT_THERE)
def test_what_is_not_there_is_told_in_the_same_words(clients: tuple[httpx.Client, httpx.Client], question: str) -> None:
    stand_in, real = both(clients, question)
    assert stand_in == real
    assert real[0] in (400, 404)


@pytest.mark.parametrize("headers", REFUSED)
def test_a_browser_is_refused_in_the_same_words(
    clients: tuple[httpx.Client, httpx.Client], headers: dict[str, str]
) -> None:
    stand_in, real = both(clients, "status", headers=headers)
    assert stand_in == real == (403, "text/plain; charset=utf-8", "invalid localapi request\n")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["{}", "{}:443", "[{}]:443"])
def test_a_device_is_described_by_the_same_keys(
    clients: tuple[httpx.Client, httpx.Client], real: Tailnet, device: str, form: str
) -> None:
    captured = json.loads((FIXTURES / f"whois-{device}.json").read_text())
    family = 1 if form.startswith("[") else 0
    addresses = (captured["Node"]["Addresses"][family].partition("/")[0], real.nodes[device].addresses[family])
    answers = [
        client.get("/localapi/v0/whois", params={"addr": form.format(address), "proto": "tcp"})
        for client, address in zip(clients, addresses, strict=True)
    ]
    assert [(answer.status_code, answer.headers["Content-Type"]) for answer in answers] == [
        (200, "application/json")
    ] * 2
    assert shape(answers[0].json()) == shape(answers[1].json())
    if isinstance(owner := DEVICES[device], Person):
        assert [answer.json()["UserProfile"]["DisplayName"] for answer in answers] == [owner.full_name] * 2


def test_the_status_has_the_same_keys(clients: tuple[httpx.Client, httpx.Client]) -> None:
    stand_in, real = both(clients, "status")
    assert stand_in[:2] == real[:2] == (200, "application/json")
    assert shape(json.loads(stand_in[2])) == shape(json.loads(real[2]))
