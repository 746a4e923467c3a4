"""Who may read tailspan's own answers, asked over a real tailnet."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Final, NamedTuple

import pytest

from tests.stack.engines import until
from tests.stack.tailnet.lab import Answer, Person, Tailnet
from tests.stack.tailnet.services import Server

OWNERS: Final[dict[str, Person | str]] = {
    "dashboard": Person("ops", "ops@example.com", "Olga Ops"),
    "alice-laptop": Person("alice", "alice@example.com", "Alice Example"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
    "ci-runner": "tag:ci",
}
ZOE: Final = (("Tailscale-User-Login", "zoe@example.com"), ("X-Forwarded-For", "{zoe}"))
# how a server is reached, who asks, and with which headers: the answer's status
MAY: Final = {
    ("anybody", "alice-laptop", ()): 200,
    ("anybody", "zoe-phone", ()): 200,
    ("anybody", "ci-runner", ()): 403,
    ("anybody", "ci-runner", ZOE): 403,
    ("named", "alice-laptop", ()): 403,
    ("named", "alice-laptop", ZOE): 403,
    ("named", "zoe-phone", ()): 200,
    ("named", "ci-runner", ()): 200,
    ("port", "alice-laptop", ()): 401,
    ("past-serve", "ci-runner", ZOE): 401,
    ("past-serve", "ci-runner", ()): 401,
    ("unseen", "ci-runner", ()): 401,  # as in the network of a sidecar whose socket is not shared
}
PORTS: Final = {"anybody": 80, "named": 81, "port": 82}
PAST_SERVE: Final = {"past-serve": "port", "unseen": "unseen"}


class Asked(NamedTuple):
    tailnet: Tailnet
    servers: dict[str, Server]

    def by(self, device: str, way: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        """GET /analytics/active through Serve, or past it at the server's own port."""
        port = PORTS.get(way) or int(self.servers[PAST_SERVE[way]].url.rpartition(":")[2])
        zoe = self.tailnet.nodes["zoe-phone"].address
        sent = [(key, value.format(zoe=zoe)) for key, value in headers]
        return self.tailnet.nodes[device].get("dashboard", port, "/analytics/active", sent)


@pytest.fixture(scope="module")
def asked(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("readers")
    tailnet.join(OWNERS)
    tailnet.settle()
    node = tailnet.nodes["dashboard"]
    where = {"TS_SOCKET": str(node.socket), "TAILSPAN_ALLOWED_HOSTS": "dashboard"}
    named = {**where, "TAILSPAN_READERS": "zoe@example.com,tag:ci"}
    servers = {
        "anybody": Server(folder / "anybody", where, socket=folder / "anybody.sock"),
        "named": Server(folder / "named", named, socket=folder / "named.sock"),
        "port": Server(folder / "port", where, host="127.0.0.1"),
        "unseen": Server(folder / "unseen", {**where, "TS_SOCKET": "/nowhere"}, host="127.0.0.1"),
    }
    with ExitStack() as stack:
        for server in servers.values():
            stack.callback(server.kill)
            server.start(wait=False)
        for server in servers.values():
            until(server.answers, "tailspan serve does not answer", server.said)
        for way, port in PORTS.items():
            server = servers[way]
            target = f"unix:{server.uds}" if server.uds else server.url.removeprefix("http://")
            node.cli("serve", "--bg", f"--http={port}", target)
        yield Asked(tailnet, servers)


@pytest.mark.parametrize(("way", "device", "headers"), MAY)
def test_people_of_the_tailnet_may_read_or_those_who_are_named(
    asked: Asked, way: str, device: str, headers: tuple[tuple[str, str], ...]
) -> None:
    answer = asked.by(device, way, headers)
    assert answer.status == MAY[way, device, headers], answer.body


@pytest.mark.parametrize(
    ("origin", "more", "status"),
    [
        ("http://dashboard", {}, 200),
        ("http://evil.example", {}, 403),
        ("http://evil.example", {"X-Forwarded-Host": "evil.example"}, 403),
        ("http://evil.example", {"X-Forwarded-Host": "dashboard"}, 403),
    ],
)
def test_a_page_that_serve_has_from_a_unix_socket_may_post_and_no_other(
    asked: Asked, origin: str, more: dict[str, str], status: int
) -> None:
    sent = {"Host": "dashboard", "Origin": origin, "Content-Type": "application/json", **more}
    with closing(asked.tailnet.nodes["alice-laptop"].connect("dashboard", PORTS["anybody"])) as connection:
        connection.request("POST", "/analytics/query", b'{"metrics": ["requests"]}', sent)
        answer = connection.getresponse()
        said = answer.read()
    assert answer.status == status, said


def test_who_read_and_who_was_refused_is_recorded(asked: Asked) -> None:
    server = asked.servers["anybody"]
    for device in ("alice-laptop", "ci-runner"):
        asked.by(device, "anybody")
    seen = {
        ("alice@example.com", "alice-laptop", "/analytics/active", 200, True),
        (None, "ci-runner", "/analytics/active", 403, True),
    }

    def recorded() -> bool:
        keys = ("user", "device", "path", "status", "proven")
        return seen <= {tuple(row[key] for key in keys) for row in server.logs("tailspan")}

    until(recorded, "not recorded", server.said)
