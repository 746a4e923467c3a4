"""A real tailnet: headscale, and tailscaled for each node; up in a second, never in touch with anything outside."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest

from tests.stack.engines import REQUIRED, Engine, free_port, program, until
from tests.stack.tailnet.network import HUB, Hub, Network

DOMAIN: Final = "lab.example.net"
ANYBODY: Final = {"action": "accept", "src": ["*"], "dst": ["*:*"]}
PATIENCE_S: Final = 30


class Person(NamedTuple):
    """A user of headscale."""

    name: str
    email: str = ""
    full_name: str = ""

    @property
    def login(self) -> str:
        return self.email or self.name


class Answer(NamedTuple):
    status: int
    body: str


class Headscale(Engine):
    """The control server, with a relay (DERP) of its own. Listens where every network of the hub reaches it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        port = free_port()
        self.url = f"http://{HUB}:{port}"
        self.policy = folder / "policy.json"
        self._config = folder / "config.yaml"
        self._config.write_text(json.dumps(_config(folder, self.url)))  # JSON is YAML
        self._program = program("headscale", "headscale")
        self._users: dict[Person, str] = {}
        super().__init__(
            *(self._program, "-c", self._config, "serve"), log=folder / "headscale.log", ready=f"{self.url}/health"
        )
        self.allow(ANYBODY)

    def allow(self, *rules: dict[str, Any]) -> None:
        """The policy from now on."""
        self.policy.write_text(json.dumps({"tagOwners": {"tag:ci": ["ops@"]}, "acls": rules}))
        if self.runs:
            os.kill(self.pid, signal.SIGHUP)

    def set_up(self) -> None:
        """Started, with a key to its API."""
        self.start()
        self.key = str(self.cli("apikeys", "create"))

    def cli(self, *arguments: str) -> Any:
        """Its own command, over its socket: the API checks its key for a tenth of a second each time."""
        command = [str(self._program), "-c", str(self._config), *arguments, "--output", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.said()}"
        return json.loads(done.stdout)

    def key_for(self, owner: Person | str) -> str:
        """A key with which a person's device joins, or one with that tag. The person is a new user the first time."""
        whose = ["--tags", owner] if isinstance(owner, str) else ["--user", self._users.get(owner) or self._user(owner)]
        return str(self.cli("preauthkeys", "create", *whose, "--reusable")["key"])

    def _user(self, person: Person) -> str:
        made = ["users", "create", person.name, "--email", person.email, "--display-name", person.full_name]
        self._users[person] = str(self.cli(*made)["id"])
        return self._users[person]

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Its API v1."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(verify=False, trust_env=False, timeout=PATIENCE_S) as client:
            answer = client.request(method, f"{self.url}/api/v1/{path}", headers=headers, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def node_id(self, name: str) -> str:
        [found] = [node["id"] for node in self.ask("GET", "node")["nodes"] if node["givenName"] == name]
        return str(found)


class Node(Engine):
    """tailscaled and what it is asked: in userspace mode, or where it has a network of its own, with a TUN device."""

    def __init__(self, folder: Path, name: str, network: Network | None = None) -> None:
        folder.mkdir()
        self.name = name
        self.network = network
        self.socket = folder / "tailscaled.sock"
        self._proxy = free_port()
        self._cli = program("tailscale", "tailscale")
        super().__init__(
            *_apart(folder, network is not None),
            *(program("tailscale", "tailscaled"), f"--statedir={folder}", f"--socket={self.socket}"),
            *(
                ("--tun=tailscale0", "--port=41641")
                if network
                else (
                    "--tun=userspace-networking",
                    "--port=0",
                    f"--outbound-http-proxy-listen=127.0.0.1:{self._proxy}",
                )
            ),
            log=folder / "tailscaled.log",
            ready="http://local-tailscaled.sock/localapi/v0/status",
            uds=self.socket,
            environment={
                "TS_DEBUG_USE_DERP_HTTP": "1",  # headscale's relay has no TLS here
                "TS_LOGS_DIR": str(folder),  # otherwise in /var/lib/tailscale
                "TS_NO_LOGS_NO_SUPPORT": "true",
                "TS_DISABLE_PORTMAPPER": "1",
                "TS_PANIC_IF_HIT_MAIN_CONTROL": "1",
            },
        )

    def start(self, wait: bool = True) -> None:
        if self.network is None:
            return super().start(wait)
        with self.network:
            super().start(wait)

    def cli(self, *arguments: object) -> str:
        """`tailscale`, asked about this node."""
        command = [str(self._cli), f"--socket={self.socket}", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.said()}"
        return done.stdout

    def join(self, headscale: Headscale, key: str) -> None:
        more = ["--netfilter-mode=off"] if self.network else []
        self.cli(
            *("up", f"--login-server={headscale.url}", f"--authkey={key}", f"--hostname={self.name}"),
            *("--accept-dns=false", f"--timeout={PATIENCE_S}s", *more),
        )

    def local(self, question: str, **parameters: str) -> httpx.Response:
        """LocalAPI, as anybody on this machine asks it."""
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)
        with httpx.Client(transport=transport, timeout=PATIENCE_S) as client:
            return client.get(f"http://local-tailscaled.sock/localapi/v0/{question}", params=parameters)

    def status(self) -> dict[str, Any]:
        return dict(self.local("status").json())

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6."""
        four, six = self.status()["TailscaleIPs"]
        return four, six

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def lan_address(self) -> str:
        """In the hub's own network, of a node that has one to itself."""
        with self.network or nullcontext(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((HUB, 9))  # nothing is sent
            return str(probe.getsockname()[0])

    def sees(self, others: int) -> bool:
        """Whether that many peers are online, and it knows by which relay they are reached.

        Before that the first packet to one may be lost, and is sent again only after five seconds.
        """
        status = self.status()
        peers = [peer for peer in (status["Peer"] or {}).values() if peer["Online"] and peer["Relay"]]
        return bool(status["Self"]["Relay"]) and len(peers) >= others

    def get(self, host: str, port: int, path: str, headers: Iterable[tuple[str, str]] = (), to: str = "") -> Answer:
        """A GET from this device, over a connection of its own; `to`: an address, where `host` cannot be resolved."""
        with closing(self.connect(to or host, port)) as connection:
            return get(connection, host, path, headers)

    def connect(self, to: str, port: int) -> HTTPConnection:
        """From this device; tried again where the way to the other one is lost, as happens to a busy machine."""
        found: HTTPConnection = until(partial(self._connection, to, port), f"{to}:{port} is not reached", self.said)
        return found

    def _connection(self, to: str, port: int) -> HTTPConnection | None:
        if self.network:
            connection = HTTPConnection(to, port, timeout=PATIENCE_S)
        else:
            connection = HTTPConnection("127.0.0.1", self._proxy, timeout=PATIENCE_S)
            connection.set_tunnel(to, port)
        try:
            with self.network or nullcontext():
                connection.connect()
        except OSError:
            connection.close()
            return None
        return connection


class Tailnet:
    """headscale with its people and nodes, in the networks of a hub. Whoever asks it has entered the hub."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub
        self.nodes: dict[str, Node] = {}
        self.headscale = Headscale(folder / "headscale")

    def join(self, owners: Mapping[str, Person | str], tun: Container[str] = ()) -> None:
        """New nodes by their names, all at once: each a person's, or one with that tag; those of `tun` with a TUN."""
        nodes = [Node(self.folder / name, name, self.hub.plug(Network()) if name in tun else None) for name in owners]
        self.nodes |= {node.name: node for node in nodes}
        with ThreadPoolExecutor() as pool:
            started = pool.map(Node.start, nodes)
            keys = {owner: self.headscale.key_for(owner) for owner in dict.fromkeys(owners.values())}
            list(started)
            list(pool.map(lambda node: node.join(self.headscale, keys[owners[node.name]]), nodes))

    def settle(self) -> None:
        """Waits until every node sees every other."""
        for node in self.nodes.values():
            until(partial(node.sees, len(self.nodes) - 1), f"{node.name} does not see the others", node.said)

    def close(self) -> None:
        """Nodes first: headscale does not end while somebody is connected."""
        for node in self.nodes.values():
            node.end()
        self.headscale.kill()


def need_tun() -> None:
    """Skips the test where no TUN device can be had, unless engines are required."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        reason = "/dev/net/tun is not ours to open: be root"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)


def get(connection: HTTPConnection, host: str, path: str, headers: Iterable[tuple[str, str]]) -> Answer:
    """With these headers and no others."""
    connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
    for key, value in (("Host", host), *headers):
        connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    return Answer(answer.status, answer.read().decode())


def _apart(folder: Path, tun: bool) -> list[str]:
    """With a TUN device tailscaled looks after DNS, too: here it finds a file that nobody else reads."""
    if not tun:
        return []
    own = folder / "resolv.conf"
    own.write_text("")
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {own} /etc/resolv.conf && exec "$@"', "sh"]


def _config(folder: Path, url: str) -> dict[str, Any]:
    return {
        "server_url": url,
        "listen_addr": url.removeprefix("http://"),
        "noise": {"private_key_path": str(folder / "noise.key")},
        "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
        "database": {"type": "sqlite", "sqlite": {"path": str(folder / "db.sqlite")}},
        "derp": {
            "server": {
                "enabled": True,
                "region_id": 999,
                "region_code": "lab",
                "region_name": "lab",
                "stun_listen_addr": f"{HUB}:{free_port()}",
                "private_key_path": str(folder / "derp.key"),
            },
            "urls": [],  # by default Tailscale's own relays, which it would want to fetch
            "auto_update_enabled": False,
        },
        "disable_check_updates": True,
        "dns": {"magic_dns": True, "base_domain": DOMAIN, "override_local_dns": False},
        "unix_socket": str(folder / "headscale.sock"),
        "policy": {"mode": "file", "path": str(folder / "policy.json")},
        "tuning": {"batch_change_delay": "50ms", "node_store_batch_timeout": "20ms"},  # news to nodes at once
    }
