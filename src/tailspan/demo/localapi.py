"""Stands in for tailscaled: its LocalAPI on a unix socket, answering with what a real one answered, byte for byte."""

import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from types import TracebackType
from typing import Final
from urllib.parse import parse_qs, urlsplit

CAPTURES: Final = Path(__file__).with_name("captures")
HOSTS: Final = ("local-tailscaled.sock", "")


class LocalAPI:
    """Replays the captures of a directory (`whois-*.json`, `status.json`) on `socket` while its context is open.

    `with LocalAPI(socket) as tailscaled`; `tailscaled.asked` lists the path and query of each request so far. An
    address that no capture has gets tailscaled's own 404, a browser's header or another Host its 403.
    """

    def __init__(self, socket: Path, captures: Path = CAPTURES) -> None:
        self.asked: list[str] = []
        self._status = (captures / "status.json").read_bytes()
        self._whois = {
            network.partition("/")[0]: content
            for content in (file.read_bytes() for file in sorted(captures.glob("whois-*.json")))
            for network in json.loads(content)["Node"]["Addresses"]
        }
        self._socket = socket
        socket.unlink(missing_ok=True)  # of one that was killed
        self._server = _Server(str(socket), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="localapi", daemon=True)

    def __enter__(self) -> "LocalAPI":
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
            return 200, self._status
        if url.path != "/localapi/v0/whois":
            return 404, b"404 page not found\n"
        address = parse_qs(url.query).get("addr", [""])[0]
        if not address:
            return 400, b"missing 'addr' parameter\n"
        found = self._whois.get(_without_port(address))
        return (404, b"no match for IP:port\n") if found is None else (200, found)


def _without_port(address: str) -> str:
    """tailscaled, too, ignores the port of a tailnet address."""
    if address.startswith("["):
        return address[1 : address.find("]")]
    return address.partition(":")[0] if address.count(":") == 1 else address


class _Server(ThreadingUnixStreamServer):
    api: LocalAPI
    daemon_threads = True


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
