"""The way in without any code: nginx's default log, mounted read-only, and a URL of tailscaled's status."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

from tests.stack.engines import Engine, free_port, program, until
from tests.stack.tailnet.lab import Node, Person, Tailnet, need_tun
from tests.stack.tailnet.network import HUB
from tests.stack.tailnet.services import Server

OWNERS: Final[dict[str, Person | str]] = {
    "gateway": Person("ops", "ops@example.com", "Olga Ops"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
}
IPHONE: Final = [("User-Agent", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X)")]
MOUNTED: Final = ("sh", "-c", 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"', "sh")
CONFIG: Final = """daemon off; master_process off; pid nginx.pid;
events {{}}
http {{
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    access_log {folder}/logs/access.log;
    default_type text/html;
    server {{ listen unix:{folder}/ready.sock; access_log off; location / {{ return 200; }} }}
    server {{ listen {address}:80; location = / {{ return 302 /board; }} location / {{ return 200 "a page"; }} }}
}}"""


class Nginx(Engine):
    """On a node's tailnet address, with pages of its own and Debian's format of the log."""

    def __init__(self, folder: Path, node: Node) -> None:
        (folder / "logs").mkdir(parents=True)
        self.logs = folder / "logs"
        config = folder / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, address=node.address))
        super().__init__(
            *(program("nginx", "nginx"), "-p", folder, "-c", config, "-e", folder / "error.log"),
            log=folder / "error.log",
            ready="http://nginx/",
            uds=folder / "ready.sock",
        )


@contextmanager
def status_url(node: Node) -> Iterator[str]:
    """What a sidecar has socat for: `tailscale status --json`, each time it is asked."""

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(node.cli("status", "--json").encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nobody wants to know."""

    server = ThreadingHTTPServer((HUB, free_port()), Status)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://{HUB}:{server.server_port}/status"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


SHOWN: Final = ("user", "device", "page", "traffic", "identity_source", "source")


def rows(server: Server, count: int) -> list[tuple[Any, ...]]:
    """What the log tells, once there are so many and the device that has the status is known.

    Sorted: within a second a log of nginx's default format has no order.
    """

    def found() -> list[tuple[Any, ...]]:
        told = sorted((tuple(log[name] for name in SHOWN) for log in server.logs("nginx")), key=str)
        return told if len(told) == count and all(one[0] for one in told) else []

    known: list[tuple[Any, ...]] = until(found, "not all rows", server.said)
    return known


def test_a_phone_shows_up_with_its_owner_and_its_page_and_the_gateways_own_checks_are_no_visits(
    tailnet: Tailnet, tmp_path: Path
) -> None:
    need_tun()
    tailnet.join(OWNERS, tun=["gateway"])
    tailnet.settle()
    gateway, phone = tailnet.nodes["gateway"], tailnet.nodes["zoe-phone"]
    nginx, mounted = Nginx(tmp_path / "nginx", gateway), tmp_path / "mounted"
    mounted.mkdir()
    assert gateway.network
    with status_url(gateway) as status, ExitStack() as engines:
        settings = {
            "TS_SOCKET": "/nowhere/tailscaled.sock",
            "TAILSPAN_STATUS": status,
            "TAILSPAN_NGINX_LOG": f"{mounted}/access.log*",
        }
        server = Server(tmp_path / "server", settings)
        server.command = ["unshare", "--mount", *MOUNTED, str(nginx.logs), str(mounted), *server.command]
        for engine in (nginx, server):
            engines.callback(engine.kill)
        with gateway.network:
            nginx.start()
        server.start()
        assert gateway.get(gateway.address, 80, "/board").status == 200  # as a container's health check does
        check = ("ops@example.com", "gateway", None, "health", "device_list", "log")
        assert rows(server, 1) == [check]
        began = time.monotonic()
        assert phone.get(gateway.address, 80, "/", IPHONE).status == 302
        assert phone.get(gateway.address, 80, "/board", IPHONE).status == 200
        zoe = ("zoe@example.com", "zoe-phone")
        assert rows(server, 3) == [
            check,
            (*zoe, "/board", "page", "device_list", "log"),
            (*zoe, None, "api", "device_list", "log"),
        ]
        print(f"within {time.monotonic() - began:.1f} s")
        [person] = server.ask("/analytics/active")["active_users"]
        assert (person["email"], person["device"], person["current_page"]) == (*zoe, "/board")
        [listed] = [one for one in server.ask("/healthz")["sources"] if one["name"] == "log"]
        assert listed["state"] == "ok"
