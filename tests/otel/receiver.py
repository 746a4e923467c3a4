"""What the app under test really talks to: an OTLP receiver, and a uvicorn in front of it."""

import atexit
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from tailspan_otel import attributes as name

FIXTURES = Path(__file__).parent.parent / "fixtures"
PATIENCE_S = 20.0
INTERNAL, SERVER = 1, 2  # OTLP's numbers of span kinds

Span = dict[str, Any]


def spans_of(body: bytes) -> list[Span]:
    """An OTLP request as one dict a span; ids in hex, times in ns, `parent_id` empty where there is none."""
    return [
        {
            "name": span.name,
            "kind": span.kind,
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_id": span.parent_span_id.hex(),
            "start_ns": span.start_time_unix_nano,
            "end_ns": span.end_time_unix_nano,
            "status": span.status.code,
            "attributes": _values(span.attributes),
            "resource": _values(resource.resource.attributes),
            "scope": scope.scope.name,
        }
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


class Receiver(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps what it answered 200 to.

    `status` and `body` are its answer, `garbage` one that is not even HTTP; while `open` is cleared it holds every
    request and answers nobody.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Export)
        self.status = 200
        self.body = b""
        self.garbage = b""
        self.open = threading.Event()
        self.open.set()
        self.attempts = 0
        self.bodies: list[bytes] = []
        self.spans: list[Span] = []
        self.news = threading.Condition()
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.open.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):  # one kept alive would go on being served
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the other side
                continue

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that went away is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def requests(self) -> list[Span]:
        """The request spans that came, in the order in which the requests began."""
        with self.news:
            return sorted((span for span in self.spans if span["kind"] == SERVER), key=lambda span: span["start_ns"])

    @property
    def beats(self) -> list[Span]:
        with self.news:
            return [span for span in self.spans if span["attributes"].get(name.KIND) == "heartbeat"]

    def beat(self, span_id: str) -> Span:
        """The beat of a heartbeat that stays: the one with the latest end."""
        return max((span for span in self.beats if span["span_id"] == span_id), key=lambda span: span["end_ns"])

    def wait(self, fits: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Returns as soon as `fits` is true; asked after each request that comes."""
        assert self.waited(fits, seconds), (
            f"not within {seconds} s; came: {[span['name'] for span in self.spans]}, {self.attempts} attempts"
        )

    def waited(self, fits: Callable[[], Any], seconds: float) -> bool:
        """Whether it was true within that time."""
        with self.news:
            return bool(self.news.wait_for(fits, seconds))

    def take(self, count: int, seconds: float = PATIENCE_S) -> list[Span]:
        """The request spans, once there are `count` of them."""
        self.wait(lambda: len(self.requests) >= count, seconds)
        return self.requests


class _Export(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server.news:
            self.server.attempts += 1
            self.server.news.notify_all()
        self.server.open.wait()
        if self.server.garbage:
            self.wfile.write(self.server.garbage)
            self.close_connection = True
            return
        with self.server.news:
            if self.server.status == 200:
                self.server.bodies.append(body)
                self.server.spans += spans_of(body)
            self.server.news.notify_all()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(app: Any, *, host: str = "127.0.0.1", uds: str | None = None, **settings: Any) -> Iterator[str]:
    """Runs an app under a real uvicorn on a free port or a unix socket; yields its base URL. Ends its telemetry too."""
    listening = None
    if uds is None:
        # made with its protocol named: asyncio turns Nagle's waiting off only where it is, 40 ms a request
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if host == "::":
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((host, 0))
    server = _Server(uvicorn.Config(app, uds=uds, log_level="critical", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening] if listening else None}, daemon=True)
    thread.start()
    try:
        assert server.up.wait(PATIENCE_S)
        port = listening.getsockname()[1] if listening else 80
        yield f"http://{'[::1]' if host == '::1' else '127.0.0.1'}:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        end(app)
        assert not thread.is_alive()


def end(app: Any) -> None:
    """Does now what would be done when the process ends."""
    for middleware in app.user_middleware:
        if recorder := middleware.kwargs.get("recorder"):
            recorder.shutdown()
            atexit.unregister(recorder.shutdown)


def captured(file: str) -> list[tuple[str, str]]:
    """The headers of a request as Tailscale Serve passed it on, but for the X-Real-IP that its caller had made up."""
    pairs = json.loads((FIXTURES / f"{file}.json").read_text())["headers"]
    return [(key, value) for key, value in pairs if key not in ("Host", "X-Real-Ip")]


def client(base_url: str, **transport: Any) -> httpx.Client:
    """A client of its own connection: `local_address`, `uds`; waits for a server that is about to listen."""
    return httpx.Client(base_url=base_url, transport=httpx.HTTPTransport(retries=8, **transport), timeout=PATIENCE_S)
