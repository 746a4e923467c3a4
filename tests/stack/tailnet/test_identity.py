"""A real tailnet asks a real service in every set-up, and both stores answer who it was."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.stack.engines import Collector, Influxd, free_port, until
from tests.stack.tailnet import matrix
from tests.stack.tailnet.lab import Node, Tailnet, get, need_tun
from tests.stack.tailnet.matrix import CALLERS, DOORS, FORGERIES, FORGERS, REWRITING, SET_UPS, TUN, Known
from tests.stack.tailnet.network import HUB
from tests.stack.tailnet.services import Log, Nginx, Server, Ways, influx_settings, service, unhurried

ASKED: Final = [  # by whom, what is made up, with which headers
    *((caller, "honest", ()) for caller in CALLERS),
    *((caller, name, forgery.headers) for caller in FORGERS for name, forgery in FORGERIES.items()),
]
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
        influxd = Influxd(folder / "influxd")
        stack.callback(influxd.kill)
        influxd.set_up()
        otlp = f"{HUB}:{free_port()}"
        collector = Collector(folder / "collector", influxd, TAILSPAN_COLLECTOR_HTTP=otlp)
        servers = {
            "duckdb": Server(folder / "duckdb"),
            "influxdb": Server(folder / "influxdb", influx_settings(influxd)),
        }
        engines = (collector, *servers.values())
        for engine in engines:
            stack.callback(engine.kill)
            engine.start(wait=False)
        tailnet.join(CALLERS, tun=[TUN])
        for engine in engines:
            until(engine.answers, f"{engine.command[0]} does not answer", engine.said)
        with ExitStack() as services, pytest.MonkeyPatch.context() as patch:
            unhurried(patch)
            doors = open_doors(services, tailnet, folder, servers["duckdb"].url, f"http://{otlp}")
            tailnet.settle()
            ask(tailnet, doors, stack)
        names = ["-".join(door) for door in DOORS]
        nodes = tailnet.headscale.ask("GET", "node")["nodes"]
        yield Seen(
            {store: {name: server.rows(name, len(ASKED)) for name in names} for store, server in servers.items()},
            {store: counts(server) for store, server in servers.items()},
            {node["givenName"]: (node["ipAddresses"][0], node["id"]) for node in nodes},
        )


Doors = dict[tuple[str, str], tuple[Node, int]]


def open_doors(stack: ExitStack, tailnet: Tailnet, folder: Path, *endpoints: str) -> Doors:
    """A service for each set-up, with uvicorn's proxy headers on and off: the node and the port where it is asked."""
    doors: Doors = {}
    behind_nginx: dict[int, tuple[int, bool]] = {}
    for number, (set_up, rewriting) in enumerate(DOORS):
        node, door, name = tailnet.nodes[SET_UPS[set_up].beside], 8000 + number, f"{set_up}-{rewriting}"
        settings: dict[str, Any] = {"proxy_headers": REWRITING[rewriting]}
        if set_up == "serve-unix":
            settings["uds"] = str(folder / f"{name}.sock")
        elif set_up == "tun":
            settings["host"] = node.address
        port = stack.enter_context(service(name, node, Ways(*endpoints), **settings))
        if set_up.startswith("serve"):
            target = f"unix:{settings['uds']}" if "uds" in settings else f"127.0.0.1:{port}"
            node.cli("serve", "--bg", f"--http={door}", target)
        elif set_up.startswith("nginx"):
            behind_nginx[door] = (port, set_up == "nginx")
        else:
            door = port
        doors[set_up, rewriting] = (node, door)
    nginx = Nginx(folder / "nginx", tailnet.nodes[TUN], behind_nginx)
    stack.callback(nginx.end)
    nginx.start()
    return doors


def ask(tailnet: Tailnet, doors: Doors, stack: ExitStack) -> None:
    """Each over a connection of its own, which stays: whose one was that is closed, tailscaled forgets at once."""
    alice = tailnet.nodes["alice-laptop"].address
    for node, port in doors.values():
        address = node.address
        for caller, sent, headers in ASKED:
            made_up = [(key, value.format(alice=alice)) for key, value in headers]
            connection = tailnet.nodes[caller].connect(address, port)
            stack.callback(connection.close)
            answer = get(connection, node.name, f"/{caller}/{sent}", made_up)
            assert answer.status == 200, (caller, sent, node.name, port, answer)


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


def expected(seen: Seen, known: Known) -> dict[str, Any]:
    """With the address and the id that the tailnet chose for the device."""
    address, node_id = seen.devices[known.device or ""]
    return {**known._asdict(), "ip": address, "device_id": node_id}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_everybody_is_known_as_the_set_up_allows(seen: Seen, set_up: str, rewriting: str, store: str) -> None:
    assert identities(seen, store, f"{set_up}-{rewriting}", CALLERS, "honest") == {
        caller: expected(seen, matrix.known(caller, set_up)) for caller in CALLERS
    }


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("made_up", FORGERIES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_what_a_caller_makes_up_is_seen_through_but_where_the_documentation_says_otherwise(
    seen: Seen, set_up: str, rewriting: str, made_up: str, store: str
) -> None:
    assert identities(seen, store, f"{set_up}-{rewriting}", FORGERS, made_up) == {
        caller: expected(seen, matrix.seen(caller, set_up, made_up)) for caller in FORGERS
    }


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("set_up", "rewriting"), DOORS)
def test_what_was_forged_or_believed_without_proof_is_counted(
    seen: Seen, set_up: str, rewriting: str, store: str
) -> None:
    assert seen.counts[store][f"{set_up}-{rewriting}"] == matrix.counts(set_up)
