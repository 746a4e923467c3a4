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
from tests.stack.engines import ROOT, Collector, Engine, Influxd, free_port, program, until
from tests.stack.tailnet.lab import Node
from tests.stack.tailnet.network import HUB

TOKEN: Final = "a-token-of-the-tests"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
SNIPPET: Final = ROOT / "docs" / "identity.md"  # what nginx blanks is what is recommended there

Log = dict[str, Any]
HURRIED: Final = """
from tailspan import directory
from tailspan.__main__ import main
from tailspan.tailnet import api, headscale, local, status
for source in (api.API, headscale.Headscale, local.Local, status.Status):
    source.every_s = 1.0
directory.LEISURE = 1
main()
"""


class Server(Engine):
    """`tailspan serve` with a token, where every network of the hub reaches it, on another `host`, or a unix socket.

    `settings` adds to its own. `hurried`: it looks at its sources of devices each second, and not at their own leisure.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        socket: Path | None = None,
        host: str = HUB,
        hurried: bool = False,
    ) -> None:
        folder.mkdir()
        self.url = "http://localhost" if socket else f"http://{host}:{free_port()}"
        super().__init__(
            *(sys.executable, *(("-c", HURRIED) if hurried else ("-m", "tailspan")), "serve"),
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

    def walk(self) -> Iterator[Log]:
        """Every row of every service, the newest first."""
        page = self.ask("/analytics/access-logs", hours=1, limit=1000)
        yield from page["logs"]
        while cursor := page["next_cursor"]:
            page = self.ask("/analytics/access-logs", cursor=cursor, hours=1, limit=1000)
            yield from page["logs"]


def influx_settings(influxd: Influxd) -> dict[str, str]:
    """With which a server answers from it."""
    return {
        "INFLUXDB_V2_URL": influxd.url,
        "INFLUXDB_V2_ORG": influxd.org,
        "INFLUXDB_V2_BUCKET": influxd.bucket,
        "INFLUXDB_V2_TOKEN": influxd.token,
    }


class Stores:
    """A server on each store, the second behind a real collector; `endpoints` are where spans go to reach both.

    Started when it is entered, and waited for by `wait`.
    """

    def __init__(self, folder: Path) -> None:
        self._influxd = Influxd(folder / "influxd")
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> "Stores":
        with ExitStack() as stack:
            stack.callback(self._influxd.kill)
            self._influxd.set_up()
            otlp = f"{HUB}:{free_port()}"
            self._collector = Collector(self._folder / "collector", self._influxd, TAILSPAN_COLLECTOR_HTTP=otlp)
            self.servers = {
                "duckdb": Server(self._folder / "duckdb"),
                "influxdb": Server(self._folder / "influxdb", influx_settings(self._influxd)),
            }
            self.endpoints = (self.servers["duckdb"].url, f"http://{otlp}")
            for engine in (self._collector, *self.servers.values()):
                stack.callback(engine.kill)
                engine.start(wait=False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        for engine in (self._collector, *self.servers.values()):
            until(engine.answers, f"{engine.command[0]} does not answer", engine.said)


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
def service(
    name: str, node: Node, ways: Ways, socket: Path | None = None, status: Path | None = None, **settings: Any
) -> Iterator[int]:
    """An instrumented app under uvicorn, beside that node's tailscaled, sending by `ways`: its port, if it has one.

    `socket`: where it looks for tailscaled's, if not where it is. `status`: a file that it reads in its place.
    """
    app = FastAPI(title=name)

    @app.get("/{caller}/{sent}")
    def answer(caller: str, sent: str) -> str:
        return f"{caller} {sent}"

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TS_SOCKET", str(socket or ("/nonexistent.sock" if status else node.socket)))
        environment.setenv("TAILSPAN_STATUS", str(status or ""))
        instrument(app, exporter=ways)
    with ExitStack() as stack:
        with node.network or nullcontext():  # its thread stays there
            url = stack.enter_context(serving(app, **settings))
        if status:
            recorder: Any = app.user_middleware[0].kwargs["recorder"]
            until(lambda: recorder._listing.get(node.address), f"{status} is not read")
        yield urlsplit(url).port or 0


class NginxAuth(Engine):
    """Tailscale's, asking that node's tailscaled, whose socket it looks for in one place only."""

    def __init__(self, folder: Path, node: Node) -> None:
        folder.mkdir()
        self.socket = folder / "auth.sock"
        place = (
            f"mount -t tmpfs none /run && mkdir /run/tailscale && ln -s {node.socket} /run/tailscale/tailscaled.sock"
        )
        super().__init__(
            *("unshare", "--mount", "sh", "-c", f'{place} && exec "$@"', "sh"),
            *(program("nginx-auth", "nginx-auth"), "-sockpath", self.socket),
            log=folder / "nginx-auth.log",
            ready="http://nginx-auth/",
            uds=self.socket,
            headers={"Remote-Addr": node.address, "Remote-Port": "1"},
            status=204,
        )


class Nginx(Engine):
    """Debian's, before apps on 127.0.0.1 beside a node with a TUN device; listens on the tailnet and off it."""

    def __init__(self, folder: Path, node: Node, sites: dict[int, tuple[int, str]], auth: NginxAuth) -> None:
        """`sites`: port → the app's port, and which of `LOCATIONS` it is."""
        folder.mkdir()
        self.network = node.network
        config = folder / "nginx.conf"
        servers = "".join(_site(port, app, how, auth) for port, (app, how) in sites.items())
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
FORWARDED: Final = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
BLANKS: Final = re.findall(r'^ +(proxy_set_header \S+ "";)$', SNIPPET.read_text("utf-8"), re.M)
RECOMMENDED: Final = " ".join((FORWARDED, *BLANKS))
AUTH: Final = """auth_request /auth;
auth_request_set $auth_user $upstream_http_tailscale_user;
auth_request_set $auth_name $upstream_http_tailscale_name;
auth_request_set $auth_login $upstream_http_tailscale_login;
auth_request_set $auth_tailnet $upstream_http_tailscale_tailnet;
auth_request_set $auth_profile_picture $upstream_http_tailscale_profile_picture;
proxy_set_header X-Webauth-User "$auth_user";
proxy_set_header X-Webauth-Name "$auth_name";
proxy_set_header X-Webauth-Login "$auth_login";
proxy_set_header X-Webauth-Tailnet "$auth_tailnet";
proxy_set_header X-Webauth-Profile-Picture "$auth_profile_picture";
"""  # as nginx-auth's README has it
LOCATIONS: Final = {
    "nginx": RECOMMENDED,
    "nginx-status": RECOMMENDED,
    "nginx-real-ip": " ".join(BLANKS).replace('X-Real-IP ""', "X-Real-IP $remote_addr"),
    "nginx-passing": FORWARDED,
    "nginx-auth": AUTH + FORWARDED,
    "nginx-silent": "",
}


def _site(port: int, app: int, how: str, auth: NginxAuth) -> str:
    return f"""server {{
        listen {port};
        location / {{ proxy_pass http://127.0.0.1:{app}; {LOCATIONS[how]} }}
        location /auth {{
            internal;
            proxy_pass http://unix:{auth.socket};
            proxy_pass_request_body off;
            proxy_set_header Host $http_host;
            proxy_set_header Remote-Addr $remote_addr;
            proxy_set_header Remote-Port $remote_port;
            proxy_set_header Original-URI $request_uri;
        }}
    }}
"""
