"""A real tailnet asks a real service in every set-up, and both stores answer who it was."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.stack.engines import until
from tests.stack.tailnet import matrix
from tests.stack.tailnet.lab import PATIENCE_S, Node, Tailnet, get, need_tun
from tests.stack.tailnet.matrix import CALLERS, DOORS, FORGERIES, LAN, REWRITING, SET_UPS, TUN, Known
from tests.stack.tailnet.services import Log, Nginx, NginxAuth, Server, Stores, Ways, service, unhurried

STORES: Final = ("duckdb", "influxdb")


class Seen(NamedTuple):
    """What both stores have of it, once the services have stopped."""

    rows: dict[str, dict[str, dict[str, Log]]]  # store → service → path → row
    counts: dict[str, dict[str, dict[str, Any]]]  # store → service → what its heartbeats counted
    devices: dict[str, tuple[str, str]]  # name → address and id


@pytest.fixture(scope="module")
def seen(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Everybody asks everywhere, with every forgery and without."""
    need_tun()
    folder = tmp_path_factory.mktemp("identity")
    with ExitStack() as stack:
        stores = stack.enter_context(Stores(folder))
        tailnet.join(CALLERS, tun=[TUN])
        stores.wait()
        with ExitStack() as services, pytest.MonkeyPatch.context() as patch:
            unhurried(patch)
            tailnet.settle()
            doors = open_doors(services, tailnet, folder, *stores.endpoints)
            ask(tailnet, doors, stack)
        asked_of = {"-".join(door): len(asked(door[0])) for door in DOORS}
        nodes = tailnet.headscale.ask("GET", "node")["nodes"]
        yield Seen(
            {store: rows(server, asked_of) for store, server in stores.servers.items()},
            {store: counts(server) for store, server in stores.servers.items()},
            {node["givenName"]: (node["ipAddresses"][0], node["id"]) for node in nodes},
        )


Doors = dict[tuple[str, str], tuple[Node, int]]
Asked = tuple[str, str, tuple[tuple[str, str], ...]]  # by whom, what is made up, with which headers


def asked(set_up: str) -> list[Asked]:
    """Everybody honestly, and who forges with everything that can be made up."""
    honest: list[Asked] = [(caller, "honest", ()) for caller in matrix.callers(set_up)]
    forgers = matrix.forgers(set_up)
    return honest + [(caller, name, made_up.headers) for caller in forgers for name, made_up in FORGERIES.items()]


def open_doors(stack: ExitStack, tailnet: Tailnet, folder: Path, *endpoints: str) -> Doors:
    """A service for each set-up, with uvicorn's proxy headers on and off: the node and the port where it is asked."""
    doors: Doors = {}
    behind_nginx: dict[int, tuple[int, str]] = {}
    for number, (set_up, rewriting) in enumerate(DOORS):
        node, door, name = tailnet.nodes[SET_UPS[set_up].beside], 8000 + number, f"{set_up}-{rewriting}"
        settings: dict[str, Any] = {"proxy_headers": REWRITING[rewriting]}
        if set_up == "serve-unix":
            settings["uds"] = str(folder / f"{name}.sock")
        elif set_up in ("tun", "everybody"):
            settings["host"] = node.address
            if set_up == "everybody":
                settings["forwarded_allow_ips"] = "*"
        elif set_up == "nginx-status":
            settings["status"] = folder / "status.json"
            settings["status"].write_bytes(node.local("status").content)
        port = stack.enter_context(service(name, node, Ways(*endpoints), **settings))
        if set_up.startswith("serve"):
            target = f"unix:{settings['uds']}" if "uds" in settings else f"127.0.0.1:{port}"
            way, target = ("tcp", f"tcp://{target}") if set_up == "serve-tcp" else ("http", target)
            node.cli("serve", "--bg", f"--{way}={door}", target)
        elif set_up.startswith("nginx"):
            behind_nginx[door] = (port, set_up)
        else:
            door = port
        doors[set_up, rewriting] = (node, door)
    auth = NginxAuth(folder / "nginx-auth", tailnet.nodes[TUN])
    nginx = Nginx(folder / "nginx", tailnet.nodes[TUN], behind_nginx, auth)
    for engine in (auth, nginx):
        stack.callback(engine.end)
        engine.start()
    return doors


def ask(tailnet: Tailnet, doors: Doors, stack: ExitStack) -> None:
    """Each over a connection of its own, which stays: whose one was that is closed, tailscaled forgets at once."""
    alice = tailnet.nodes["alice-laptop"].address
    for (set_up, _), (node, port) in doors.items():
        address = node.address
        for caller, sent, headers in asked(set_up):
            made_up = [(key, value.format(alice=alice)) for key, value in headers]
            neighbour = HTTPConnection(node.lan_address, port, timeout=PATIENCE_S) if caller == LAN else None
            connection = neighbour or tailnet.nodes[caller].connect(address, port)
            stack.callback(connection.close)
            answer = get(connection, node.name, f"/{caller}/{sent}", made_up)
            assert answer.status == 200, (caller, sent, node.name, port, answer)
    node, port = doors["nginx-auth", "on"]  # which lets in neither tagged devices nor whom tailscaled does not know
    tagged = tailnet.nodes["ci-runner"].connect(node.address, port)
    neighbour = HTTPConnection(node.lan_address, port, timeout=PATIENCE_S)
    assert [get(caller, node.name, "/", ()).status for caller in (tagged, neighbour)] == [403, 401]
    tagged.close()
    neighbour.close()


def rows(server: Server, asked_of: dict[str, int]) -> dict[str, dict[str, Log]]:
    """Of each service by path, once there are as many as were asked of it: in one walk through all of them."""

    def all_there() -> dict[str, dict[str, Log]] | None:
        found: dict[str, dict[str, Log]] = {name: {} for name in asked_of}
        for log in server.walk():
            found.get(log["service"], {})[log["path"]] = log
        return found if all(len(found[name]) >= count for name, count in asked_of.items()) else None

    return dict(until(all_there, "not all rows are there", server.said))


def counts(server: Server) -> dict[str, dict[str, Any]]:
    """Of every service, once all have said that they stopped."""

    def all_stopped() -> list[dict[str, Any]]:
        [store] = [source for source in server.ask("/healthz")["sources"] if source["name"] == "store"]
        found = [state for state in store["services"] if state["service"] != "tailspan"]
        return found if len(found) == len(DOORS) and all(state["stopped"] for state in found) else []

    states = until(all_stopped, "not every service has stopped", server.said)
    return {
        state["service"]: {key: state[key] for key in ("forged", "forged_kinds", "unproven", "dropped")}
        for state in states
    }


def identities(seen: Seen, store: str, service: str, callers: Iterable[str], sent: str) -> dict[str, Any]:
    """Of each caller's row: all that it says of the caller."""
    rows = seen.rows[store][service]
    return {
        caller: {field: rows[f"/{caller}/{sent}"][field] for field in (*Known._fields, "ip", "device_id")}
        for caller in callers
    }


def expected(seen: Seen, known: Known, address: str | None) -> dict[str, Any]:
    """With the address and the id that the tailnet chose for the device; without a device, with that address."""
    address, node_id = seen.devices[known.device] if known.device else (address, None)
    return {**known._asdict(), "ip": address, "device_id": node_id}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_everybody_is_known_as_the_set_up_allows(seen: Seen, set_up: str, rewriting: str, store: str) -> None:
    callers = matrix.callers(set_up)
    assert identities(seen, store, f"{set_up}-{rewriting}", callers, "honest") == {
        caller: expected(seen, matrix.known(caller, set_up), matrix.address(caller, set_up, rewriting, None))
        for caller in callers
    }


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("made_up", FORGERIES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_what_a_caller_makes_up_is_seen_through_but_where_the_documentation_says_otherwise(
    seen: Seen, set_up: str, rewriting: str, made_up: str, store: str
) -> None:
    forgers = matrix.forgers(set_up)
    assert identities(seen, store, f"{set_up}-{rewriting}", forgers, made_up) == {
        caller: expected(seen, matrix.seen(caller, set_up, made_up), matrix.address(caller, set_up, rewriting, made_up))
        for caller in forgers
    }


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_what_was_forged_or_believed_without_proof_is_counted(
    seen: Seen, set_up: str, rewriting: str, store: str
) -> None:
    assert seen.counts[store][f"{set_up}-{rewriting}"] == matrix.counts(set_up)
