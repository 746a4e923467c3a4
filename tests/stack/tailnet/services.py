"""The service whose callers are told apart, in every set-up that the documentation names, and the servers that tell."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from tailspan_otel import describe, instrument, whois
from tailspan_otel.export import TIMEOUT_S

from tests.otel.receiver import serving
from tests.stack.engines import ROOT, Engine, Influxd, free_port, program, until
from tests.stack.tailnet.lab import Node
from tests.stack.tailnet.network import HUB

TOKEN: Final = "a-token-of-the-tests"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
SNIPPET: Final = ROOT / "docs" / "identity.md"  # what nginx blanks is what is recommended there

Log = dict[str, Any]


class Server(Engine):
    """`tailspan serve` with a token, where every network of the hub reaches it, on another `host`, or a unix socket.

    `settings` adds to its own.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, *, socket: Path | None = None, host: str = HUB
    ) -> None:
        folder.mkdir()
        self.url = "http://localhost" if socket else f"http://{host}:{free_port()}"
        super().__init__(
            *(sys.executable, "-m", "tailspan", "serve"),
            log=folder / "serve.log",
            ready=f"{self.url}/healthz",
            headers=BEARER,
            uds=socket,
            environment={
                "TAILSPAN_DB": str(folder / "tailspan.duckdb"),
                "TAILSPAN_LISTEN": f"unix:{socket}" if socket else self.url.removeprefix("http://"),
                "TAILSPAN_ALLOWED_HOSTS": HUB,
                "TAILSPAN_TOKEN": TOKEN,
                **(settings or {}),
            },
        )

    def ask(self, path: str, **parameters: str | int) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.uds) if self.uds else None, verify=False)
        with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
            answer = client.get(f"{self.url}{path}", params=parameters, headers=BEARER)
        assert answer.status_code == 200, answer.text + self.said()
        return answer.json()

    def logs(self, service: str) -> list[Log]:
        """A service's rows, the newest 1,000."""
        return list(self.ask("/analytics/access-logs", hours=1, limit=1000, service=service)["logs"])

    def rows(self, service: str, count: int) -> dict[str, Log]:
        """The service's rows by path, once that many are there."""
        said = f"fewer than {count} rows of {service}"
        found = until(lambda: logs if len(logs := self.logs(service)) >= count else None, said, self.said)
        return {log["path"]: log for log in found}


def influx_settings(influxd: Influxd) -> dict[str, str]:
    """With which a server answers from it."""
    return {
        "INFLUXDB_V2_URL": influxd.url,
        "INFLUXDB_V2_ORG": influxd.org,
        "INFLUXDB_V2_BUCKET": influxd.bucket,
        "INFLUXDB_V2_TOKEN": influxd.token,
    }


def unhurried(patch: pytest.MonkeyPatch) -> None:
    """A service waits for tailscaled's word however long that takes: a busy machine is no fault."""
    patch.setattr(describe, "WAIT_S", 10.0)
    patch.setattr(whois, "PATIENCE_S", 10.0)


class Ways(SpanExporter):
    """OTLP over HTTP to each of these, with the token that one of them wants; and what was sent."""

    def __init__(self, *endpoints: str) -> None:
        self.sent: list[ReadableSpan] = []
        self._ways = [
            OTLPSpanExporter(f"{endpoint}/v1/traces", headers=BEARER, timeout=TIMEOUT_S) for endpoint in endpoints
        ]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.sent += spans
        results = [way.export(spans) for way in self._ways]
        return next((result for result in results if result is not SpanExportResult.SUCCESS), SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        for way in self._ways:
            way.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def service(name: str, node: Node, ways: Ways, socket: Path | None = None, **settings: Any) -> Iterator[int]:
    """An instrumented app under uvicorn, beside that node's tailscaled, sending by `ways`: its port, if it has one.

    `socket`: where it looks for tailscaled's, if not where it is.
    """
    app = FastAPI(title=name)

    @app.get("/{caller}/{sent}")
    def answer(caller: str, sent: str) -> str:
        return f"{caller} {sent}"

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TS_SOCKET", str(socket or node.socket))
        instrument(app, exporter=ways)
    with ExitStack() as stack:
        with node.network or nullcontext():  # its thread stays there
            url = stack.enter_context(serving(app, **settings))
        yield urlsplit(url).port or 0


class Nginx(Engine):
    """Debian's, before an app on 127.0.0.1 beside a node with a TUN device; listens on the tailnet only."""

    def __init__(self, folder: Path, node: Node, sites: dict[int, tuple[int, bool]]) -> None:
        """`sites`: port → the app's port, and whether clients' identity headers are blanked."""
        folder.mkdir()
        self.network = node.network
        config = folder / "nginx.conf"
        servers = "".join(_site(node.address, port, app, blank) for port, (app, blank) in sites.items())
        config.write_text(_NGINX.format(folder=folder, servers=servers))
        super().__init__(
            *(program("nginx", "nginx"), "-p", folder, "-c", config, "-e", folder / "error.log"),
            log=folder / "error.log",
            ready="http://nginx/",
            uds=folder / "ready.sock",
        )

    def start(self, wait: bool = True) -> None:
        assert self.network
        with self.network:
            super().start(wait)


_NGINX: Final = """daemon off; master_process off; pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{ listen unix:{folder}/ready.sock; location / {{ return 200; }} }}
    {servers}
}}"""


def _site(address: str, port: int, app: int, blank: bool) -> str:
    recommended = re.findall(r'^ +(proxy_set_header \S+ "";)$', SNIPPET.read_text("utf-8"), re.M)
    headers = " ".join(recommended) if blank else ""
    forwarded = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    location = f"location / {{ proxy_pass http://127.0.0.1:{app}; {forwarded} {headers} }}"
    return f"server {{ listen {address}:{port}; {location} }}\n"
