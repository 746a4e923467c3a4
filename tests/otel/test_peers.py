"""Which peers are proxies: by address, by network, and by names that change their addresses."""

import logging
import socket
import threading
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tailspan_otel import background, instrument, peers
from tailspan_otel.peers import Peers

from tests.otel.test_capture import SERVE, Kept

PATIENCE_S = 10.0
# as Linux tells it: eth0 of a container, its gateway 172.18.0.1
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


class Names:
    """A resolver: what each name's addresses are just now. `asked` counts, `news` tells of each question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        self.news = threading.Condition()
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, name: str, *_: Any, **__: Any) -> list[Any]:
        with self.news:
            self.asked += 1
            self.news.notify_all()
        if name not in self.addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.addresses[name], 0))]

    def wait(self, times: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: self.asked >= times, PATIENCE_S)


@pytest.fixture(autouse=True)
def routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Linux's table of routes, without a gateway unless a test writes one."""
    monkeypatch.setattr(peers, "ROUTES", tmp_path / "route")
    peers._warn.cache_clear()
    return tmp_path / "route"


def test_addresses_and_networks_are_trusted_in_every_notation() -> None:
    trusted = Peers(["172.18.0.5", "fd00::/64"])
    asked = ["172.18.0.5", "::ffff:172.18.0.5", "172.18.0.6", "fd00::7", "fd01::7", "127.0.0.1", "nginx", ""]
    assert [address for address in asked if trusted.trusts(address)] == ["172.18.0.5", "::ffff:172.18.0.5", "fd00::7"]


@pytest.mark.parametrize("peer", ["172.18.0.300", "172.18.0.0/33", "10.1", "my nginx", "nginx/8", "http://nginx", ""])
def test_what_can_be_neither_an_address_nor_a_name_is_refused(peer: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        Peers([peer])


def test_a_name_is_trusted_by_the_address_it_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    names, changes = Names(monkeypatch, nginx="172.18.0.5"), []
    trusted = Peers(["nginx"])
    trusted.changed = lambda: changes.append(names.asked)
    assert not trusted.trusts("172.18.0.5")  # nothing was looked up yet
    trusted.look_up()
    assert trusted.trusts("172.18.0.5")
    names.addresses["nginx"] = "172.18.0.9"
    trusted.look_up()
    assert (trusted.trusts("172.18.0.5"), trusted.trusts("172.18.0.9")) == (False, True)
    trusted.look_up()
    assert changes == [1, 2]


def test_a_name_that_is_found_while_somebody_is_asked_about_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, nginx="172.18.0.5", caddy="172.18.0.6")
    trusted = Peers(["nginx", "caddy"])

    class Asked(frozenset[Any]):
        """The addresses of the first name: while one is looked for among them the second name is found."""

        def __contains__(self, address: object) -> bool:
            trusted._is_at("caddy", frozenset([IPv4Address("172.18.0.6")]))
            return False

    trusted._is_at("nginx", Asked())
    assert not trusted.trusts("172.18.0.6")  # as it was when the question began
    assert trusted.trusts("172.18.0.6")


def test_a_name_that_cannot_be_looked_up_any_more_keeps_its_address_for_five_minutes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, names = [1000.0], Names(monkeypatch, nginx="172.18.0.5")
    monkeypatch.setattr(peers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    trusted, changes = Peers(["nginx", "away"]), []
    trusted.changed = lambda: changes.append(now[0])
    trusted.look_up()
    names.addresses.clear()

    def trusts_at(time: float) -> bool:
        now[0] = time
        trusted.look_up()
        return trusted.trusts("172.18.0.5")

    assert [trusts_at(time) for time in (1030, 1300, 1301, 1330)] == [True, True, False, False]
    names.addresses["nginx"] = "172.18.0.5"
    assert [trusts_at(time) for time in (1360, 1390)] == [True, True]
    names.addresses.clear()
    assert [trusts_at(time) for time in (1690, 1691)] == [True, False]
    away = "[Errno -2] Name or service not known"
    anymore = f"nginx has no address, so it is not trusted any more, after 5 minutes without one: {away}"
    assert [record.getMessage() for record in caplog.records] == [
        f"trusted peers: away has no address, so it is not trusted: {away}",
        *(f"trusted peers: {anymore}", f"trusted peers: {anymore}"),
    ]
    assert changes == [1000, 1000, 1301, 1360, 1691]


def test_a_proxy_that_was_started_again_is_known_by_its_new_address_as_soon_as_it_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TS_SOCKET", "/nonexistent/tailscaled.sock")
    monkeypatch.setattr(background, "LEAST_S", 0.0)
    names = Names(monkeypatch, nginx="172.18.0.5")
    app, kept = FastAPI(), Kept()
    instrument(app, exporter=kept, trusted_peers=["nginx"])
    with TestClient(app, client=("172.18.0.5", 4000)) as client:
        names.wait(1)
        client.get("/", headers=SERVE)
        names.addresses["nginx"] = "172.18.0.9"
        again = TestClient(app, client=("172.18.0.9", 4000))
        again.get("/", headers=SERVE)  # on its way nothing is looked up
        names.wait(2)
        again.get("/", headers=SERVE)
    logins = [attributes.get("user.name") for attributes in kept.requests()]
    assert (logins[0], logins[-1]) == ("ana@example.com", "ana@example.com")
    assert (kept.spans[-1].attributes or {})["tailspan.forged"] == logins.count(None) <= 1


@pytest.mark.parametrize(
    ("trusted", "warned"),
    [
        (["172.18.0.0/16"], True),
        (["172.18.0.5", "172.18.0.0/24"], True),
        (["172.18.0.5"], False),
        (["172.18.0.1"], False),  # it was named on purpose: a proxy of the host comes from there
        (["10.0.0.0/8"], False),
    ],
)
def test_a_bridges_whole_network_is_warned_about_since_its_gateway_is_in_it(
    trusted: list[str], warned: bool, routes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    routes.write_text(ROUTES)
    with caplog.at_level(logging.WARNING, "tailspan"):
        Peers(trusted)
    assert [record.getMessage() for record in caplog.records] == warned * [
        f"trusted peers: {trusted[-1]} contains the gateway 172.18.0.1, from which everybody comes who uses a "
        "published port; name the proxy alone, by its address or its name"
    ]


@pytest.mark.parametrize("table", ["", "nonsense", "Iface\neth0 x", ROUTES.replace("010012AC", "ZZ")])
def test_where_there_is_no_gateway_to_read_nobody_is_warned(
    table: str, routes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    routes.write_text(table)
    Peers(["172.18.0.0/16"])
    assert not caplog.records
