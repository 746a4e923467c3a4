"""Stands in for tailscaled: its LocalAPI on a unix socket, answering with what a real one answered, byte for byte.

The names of some captures are made up: no tailnet has a device that is called like mallory's, or yours.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qs, quote, urlsplit

CAPTURES: Final = Path(__file__).with_name("captures")
HOSTS: Final = ("local-tailscaled.sock", "")


class Question(NamedTuple):
    """A GET of LocalAPI."""

    target: str
    headers: dict[str, str]


def questions(known: str, unknown: str) -> list[Question]:
    """Every kind of question it answers, about an address that a capture has and one that none has.

    Status, content type and body of each answer are to be a real tailscaled's. Of `127.0.0.1:port` only what finds
    nothing is asked.
    """
    ported = "[{}]:443" if ":" in known else "{}:443"
    addresses = [known, ported.format(known), unknown, ported.format(unknown)]
    whois = [*addresses, "127.0.0.1:5", f"::ffff:{known}", "nonsense", ""]
    about = f"/localapi/v0/whois?addr={quote(known)}"
    return [
        Question("/localapi/v0/status?peers=false", {}),
        *(Question(f"/localapi/v0/whois?addr={quote(address)}&proto=tcp", {}) for address in whois),
        Question("/localapi/v0/whois", {}),
        Question("/localapi/v0/nothing", {}),
        *(
            Question(about, headers)
            for headers in ({}, {"Host": "localhost"}, {"Origin": "http://x"}, {"Referer": "http://x/"})
        ),
    ]


class LocalAPI:
    """Replays the captures of a directory (`whois-*.json`, `status.json`) on `socket` while its context is open.

    `with LocalAPI(socket) as tailscaled`; `tailscaled.asked` lists the path and query of each request so far. An
    address that no capture has gets tailscaled's own 404, a browser's header or another Host its 403.

    What it answers may be changed at any time: `status`, `whois` (a body by address), `connections` (a body by the
    `127.0.0.1:port` that tailscaled's own network stack connects from). `miss_s` is how long its lock is held, which
    every whois waits for, where an address with a port is looked for in vain: 0.18 in a real one.
    """

    def __init__(self, socket: Path, captures: Path = CAPTURES) -> None:
        self.asked: list[str] = []
        self.status = (captures / "status.json").read_bytes()
        self.whois = {
            network.partition("/")[0]: content
            for content in (file.read_bytes() for file in sorted(captures.glob("whois-*.json")))
            for network in json.loads(content)["Node"]["Addresses"]
        }
        self.connections: dict[str, bytes] = {}
        self.miss_s = 0.0
        self._lock = threading.Lock()
        self._socket = socket
        socket.unlink(missing_ok=True)  # of one that was killed
        self._server = _Server(str(socket), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="localapi", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._socket.unlink(missing_ok=True)

    def answer(self, target: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        self.asked.append(target)
        url = urlsplit(target)
        if url.path == "/localapi/v0/status":
            return 200, self.status if "peers=false" not in url.query else _without_peers(self.status)
        if url.path != "/localapi/v0/whois":
            return 404, b"404 page not found\n"
        asked = parse_qs(url.query).get("addr", [""])[0]
        if not asked:
            return 400, b"missing 'addr' parameter\n"
        address, has_port = _parted(asked)
        try:
            ip_address(address)
        except ValueError:
            return 400, b"invalid 'addr' parameter\n"
        with self._lock:
            found = self.whois.get(address) or self.connections.get(asked)
            time.sleep(self.miss_s if found is None and has_port else 0)
        return (404, b"no match for IP:port\n") if found is None else (200, found)


def _without_peers(status: bytes) -> bytes:
    return json.dumps({**json.loads(status), "Peer": None, "User": None}, indent="\t").encode()


def _parted(asked: str) -> tuple[str, bool]:
    """The address, and whether it has a port, which tailscaled ignores of a tailnet address."""
    if asked.startswith("["):
        return asked[1 : asked.find("]")], True
    return (asked.partition(":")[0], True) if asked.count(":") == 1 else (asked, False)


class _Server(ThreadingUnixStreamServer):
    api: LocalAPI
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # who asks waits for a quarter of a second only
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        refused = self.headers.get("Host", "") not in HOSTS or "Origin" in self.headers or "Referer" in self.headers
        status, body = (403, b"invalid localapi request\n") if refused else self.server.api.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: who wants to know looks at `asked`."""
