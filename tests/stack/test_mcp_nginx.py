"""The MCP server behind Debian's nginx, asked by the SDK's client."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings

from tests.conftest import Launch, Program, launching
from tests.mcp_server.conftest import ask, refused
from tests.mcp_server.factory import Factory, factory_of
from tests.mcp_server.test_transports import stdio
from tests.server.spans import export, span
from tests.stack.engines import Engine, free_port, program

pytestmark = pytest.mark.anyio

TOKEN: Final = "a-token-of-the-tests"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
CONFIG: Final = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
        location = /lives {{ return 200; }}
        location /analytics/ {{
            proxy_pass {server};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
        location = /analytics/system-health-history {{ return 403; }}
        location /ree/ {{ proxy_pass {service}; }}
        location = /weather/current {{ proxy_pass http://127.0.0.1:1; }}
        location = /health {{ return 403; }}
    }}
}}
"""
SETTINGS: Final = """
[services.factory]
url = "{url}"
preset = "chocolate-factory"
[[services.factory.tools]]
name = "wait"
description = "Takes its time."
path = "/wait"
timeout_s = 60
[[services.factory.tools]]
name = "wait_briefly"
description = "Takes its time, and is given less."
path = "/wait"
timeout_s = 3
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Behind:
    """`tailspan serve` behind nginx at `url`, with a service that it asks."""

    def __init__(self, launch: Launch, folder: Path, factory: Factory, service: str) -> None:
        self.launch, self.folder, self.factory = launch, folder, factory
        (folder / "settings.toml").write_text(SETTINGS.format(url=service))
        self.port = free_port()
        self.server = self.serve()
        self.url = f"http://127.0.0.1:{free_port()}"
        place = {
            "address": self.url.removeprefix("http://"),
            "server": f"http://127.0.0.1:{self.port}",
            "service": service,
        }
        (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, **place))
        self.nginx = Engine(
            *(program("nginx", "nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"),
            log=folder / "nginx.log",
            ready=f"{self.url}/lives",
        )

    def serve(self) -> Program:
        settings = {"DB": "t.duckdb", "SETTINGS": "settings.toml"}
        given = {f"TAILSPAN_{key}": str(self.folder / file) for key, file in settings.items()}
        given |= {"TAILSPAN_LISTEN": f"127.0.0.1:{self.port}", "TAILSPAN_TOKEN": TOKEN, "TS_SOCKET": "/nowhere"}
        running = self.launch("tailspan", "serve", **given)
        assert running.line()
        return running

    @asynccontextmanager
    async def client(self, mode: Any = "auto", headers: dict[str, str] = BEARER) -> AsyncIterator[Client]:
        async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
            there = streamable_http_client(f"{self.url}/analytics/mcp", http_client=http)
            async with Client(there, mode=mode) as client:
                yield client


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with factory_of() as (factory, url), launching() as launch:
        found = Behind(launch, tmp_path_factory.mktemp("behind"), factory, url)
        try:
            found.nginx.start()
            sent = httpx2.post(
                f"http://127.0.0.1:{found.port}/v1/traces", json=export(span(1, ago=0)), headers=BEARER, trust_env=False
            )
            assert sent.status_code == 200
            yield found
        finally:
            found.nginx.end()  # which takes its workers along


@pytest.fixture
def behind(running: Behind) -> Iterator[Behind]:
    yield running
    running.factory.fault = None
    running.factory.asked.clear()
    running.factory.gone.clear()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_listed_and_called_and_errors_come_through(behind: Behind, mode: Any) -> None:
    async with behind.client(mode) as client:
        assert len((await client.list_tools()).tools) == 20
        assert (await ask(client, "get_active_users")).data["total_active"] == 0
        assert (await ask(client, "get_current_price")).data["price"] == 0.1234
        assert "'request' is no metric" in await refused(client, "query_usage", metrics=["request"])


# without sessions nobody can tell whose call an older client takes back: the tool's own limit ends it
@pytest.mark.parametrize(("mode", "tool"), [("auto", "wait"), ("legacy", "wait_briefly")])
async def test_a_call_that_is_cancelled_hangs_up_on_the_service_and_the_next_is_answered(
    behind: Behind, mode: Any, tool: str
) -> None:
    async with behind.client(mode) as client:
        behind.factory.fault = "slow"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, tool, {})
            assert await anyio.to_thread.run_sync(behind.factory.asked.wait, 10)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(behind.factory.gone.wait, 10)
        behind.factory.fault = None
        assert (await ask(client, "get_current_price")).data["price"] == 0.1234


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_server_that_goes_away_behind_nginx_is_found_again_by_the_same_client(
    behind: Behind, mode: Any
) -> None:
    async with behind.client(mode) as client:
        await ask(client, "get_active_users")
        behind.server.end()
        with pytest.raises(MCPError):
            await client.call_tool("get_active_users", {})
        behind.server = behind.serve()
        assert (await ask(client, "get_active_users")).data["total_active"] == 0


async def test_over_stdio_a_refusal_of_nginx_is_told_from_tailspans_own(behind: Behind) -> None:
    async with Client(stdio(TAILSPAN_URL=behind.url, TAILSPAN_TOKEN=TOKEN)) as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 0
        assert (await refused(client, "get_system_performance")).endswith(
            "The proxy in front of tailspan (nginx/1.22.1) refused GET /analytics/system-health-history with 403; "
            "tailspan itself never saw it. Let this path through in the proxy's configuration (nginx: a location for "
            "it); its error log says more."
        )
    async with Client(stdio(TAILSPAN_URL=behind.url)) as client:
        said = await refused(client, "get_active_users")
    assert "tailspan itself answered GET /analytics/active with 401" in said and "TAILSPAN_TOKEN" in said


PRICE: Final = "GET /ree/prices/latest"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", f"factory itself answered {PRICE} with 500: OPENWEATHERMAP_API_KEY is required."),
        ("403", f"factory itself answered {PRICE} with 403: Admins only."),
        ("uvicorn 500", f"factory or a proxy in front of factory (nginx/1.22.1) answered {PRICE} with 500: Internal"),
        ("text 502", f"factory or a proxy in front of factory (nginx/1.22.1) answered {PRICE} with 502: Bad Gateway"),
    ],
)
async def test_what_a_service_behind_nginx_answers_is_not_blamed_on_nginx(
    behind: Behind, tmp_path: Path, fault: str, said: str
) -> None:
    behind.factory.fault = fault
    async with of_service(behind.url, tmp_path) as client:
        assert said in await refused(client, "get_current_price")


async def test_what_nginx_answers_itself_is_not_blamed_on_the_service(behind: Behind, tmp_path: Path) -> None:
    async with of_service(behind.url, tmp_path) as client:
        assert (await ask(client, "get_current_price")).data["price"] == 0.1234
        gone = await refused(client, "get_current_weather")
        unknown = await refused(client, "get_system_health")
    assert "The proxy in front of factory (nginx/1.22.1) does not reach it: 502 to GET /weather/current." in gone
    assert "The proxy in front of factory (nginx/1.22.1) refused GET /health with 403; factory itself never" in unknown


@asynccontextmanager
async def of_service(url: str, folder: Path) -> AsyncIterator[Client]:
    (folder / "settings.toml").write_text(SETTINGS.format(url=url))
    settings = Settings.read({"TAILSPAN_SETTINGS": str(folder / "settings.toml")})
    async with Client(create_server(settings, only="service")) as client:
        yield client


async def test_behind_nginx_nobody_asks_without_a_token_and_no_foreign_page_does(behind: Behind) -> None:
    async with httpx2.AsyncClient(base_url=behind.url, trust_env=False) as http:
        for headers, status in (
            ({}, 401),
            ({**BEARER, "Origin": "http://evil.example"}, 403),
            ({**BEARER, "Host": "evil.example"}, 400),
        ):
            assert (await http.post("/analytics/mcp", json={}, headers=headers)).status_code == status
