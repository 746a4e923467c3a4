"""The same tools in memory, over stdio and over HTTP, by the SDK's own client."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from mcp import Client, StdioServerParameters
from starlette.testclient import TestClient
from tailspan_otel import instrument

import tailspan
from tailspan.config import Settings
from tests.mcp_server.conftest import Serving, Tailspan, ask, refused, since_now
from tests.mcp_server.factory import factory_of, running
from tests.server.spans import export, span
from tests.stack.engines import until

pytestmark = pytest.mark.anyio

ANALYTICS = ["get_active_users", "get_usage_stats", "get_system_performance", "query_usage"]


def stdio(*arguments: str, **settings: str) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=["-m", "tailspan_mcp", *arguments], env=settings)


def visit(url: str) -> None:
    answer = httpx.post(f"{url}/v1/traces", json=export(span(1, ago=since_now(10))))
    assert answer.status_code == 200


def logs(url: str, **parameters: str) -> Any:
    return httpx.get(f"{url}/analytics/access-logs", params=parameters).json()


async def test_in_memory_every_tool_only_reads_and_has_a_schema(tailspan: Tailspan) -> None:
    async with tailspan.client() as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools][:4] == ANALYTICS
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
    assert all(tool.input_schema["type"] == "object" and tool.description for tool in tools)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_stdio_a_client_that_starts_it_is_answered(serve: Serving, mode: Any) -> None:
    served = serve()
    visit(served.url)
    async with Client(stdio("--only", "analytics", TAILSPAN_URL=served.url), mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ANALYTICS
        assert (await ask(client, "get_active_users")).text == "1 active: ana@example.com (ana-laptop) on /dashboard."


async def test_over_stdio_no_answer_of_a_service_ends_the_server(tmp_path: Path) -> None:
    with factory_of() as (factory, url):
        (tmp_path / "settings.toml").write_text(f'[services.factory]\nurl = "{url}"\npreset = "chocolate-factory"')
        async with Client(stdio(TAILSPAN_SETTINGS=str(tmp_path / "settings.toml")), read_timeout_seconds=60) as client:
            factory.fault = "surrogate"
            assert (await ask(client, "get_current_price")).data == {"price": "x\ufffd", "at": None}
            factory.fault = "surrogate 500"
            assert (await refused(client, "get_current_price")).endswith("with 500: x\ufffd.")
            factory.fault = None
            assert (await ask(client, "get_current_price")).data["period"] == "P2"


@pytest.mark.parametrize(
    "message",
    [
        rb'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x\ud800", "arguments": {}}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "x\xed\xa0\x80"}',
        b"nonsense",
    ],
)
def test_over_stdio_no_message_ends_the_server(message: bytes) -> None:
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    opening = {"jsonrpc": "2.0", "id": "opening", "method": "initialize", "params": about}
    opened = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    asked = {"jsonrpc": "2.0", "id": "asked", "method": "tools/list"}
    lines = [json.dumps(opening).encode(), json.dumps(opened).encode(), message, json.dumps(asked).encode()]
    command = [sys.executable, "-m", "tailspan_mcp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin and program.stdout
        program.stdin.write(b"\n".join([*lines, b""]))
        program.stdin.flush()
        ids = (json.loads(line)["id"] for line in program.stdout)
        assert "asked" in ids
        program.stdin.close()
        assert program.wait(30) == 0


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http_it_is_beside_the_endpoints(serve: Serving, mode: Any) -> None:
    served = serve()
    visit(served.url)
    async with Client(f"{served.url}/analytics/mcp", mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools][:4] == ANALYTICS
        assert (await ask(client, "get_active_users")).text == "1 active: ana@example.com (ana-laptop) on /dashboard."


async def test_over_stdio_a_server_that_goes_away_is_told_and_found_again(serve: Serving) -> None:
    served = serve()
    visit(served.url)
    async with Client(stdio(TAILSPAN_URL=served.url)) as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 1
        served.program.end()
        said = await refused(client, "get_active_users")
        assert f"tailspan cannot be asked at {served.url}" in said and "tailspan serve" in said
        serve(port=int(served.url.rpartition(":")[2]))
        assert (await ask(client, "get_active_users")).data["total_active"] == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http_a_client_goes_on_with_a_server_that_was_started_again(serve: Serving, mode: Any) -> None:
    served = serve()
    visit(served.url)
    async with Client(f"{served.url}/analytics/mcp", mode=mode) as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 1
        served.program.end()
        serve(port=int(served.url.rpartition(":")[2]))
        assert (await ask(client, "get_active_users")).data["total_active"] == 1


async def test_a_call_is_a_span_of_its_caller_apart_from_what_people_do(serve: Serving) -> None:
    served = serve()
    visit(served.url)
    async with Client(f"{served.url}/analytics/mcp") as client:
        await ask(client, "get_active_users")
    rows = until(lambda: logs(served.url, traffic="agent")["logs"], "the call is not recorded")
    assert {(row["service"], row["endpoint"], row["method"], row["caller"]) for row in rows} == {
        ("tailspan", "/analytics/mcp", "POST", "local")
    }


async def test_in_a_fastapi_app_of_ones_own_it_is_beside_the_routers_endpoints(tmp_path: Path) -> None:
    app = FastAPI(title="dashboard")
    analytics = tailspan.router(Settings(db=tmp_path / "t.duckdb"))
    app.include_router(analytics)
    app.get("/dashboard", response_class=HTMLResponse)(lambda: "hello")
    instrument(app, exporter=analytics.exporter)
    with running(app) as url:
        page = {"Tailscale-User-Login": "ana@example.com", "X-Forwarded-For": "100.64.0.7"}
        assert httpx.get(f"{url}/dashboard", headers=page).status_code == 200
        until(lambda: logs(url)["logs"], "the page is not recorded")
        async with Client(f"{url}/analytics/mcp") as client:
            assert (await ask(client, "get_active_users")).text == "1 active: ana@example.com on /dashboard."
        refusal = httpx.post(f"{url}/analytics/mcp", json={}, headers={"X-Forwarded-For": "100.64.0.9"})
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "token_needed")


async def test_tools_that_are_declared_wrongly_keep_nothing_else_from_answering(serve: Serving, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[services.factory]\nurl = 'nowhere'")
    served = serve(TAILSPAN_SETTINGS=str(tmp_path / "settings.toml"))
    visit(served.url)
    async with Client(f"{served.url}/analytics/mcp") as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 1
    code, _, complaints = served.program.end()
    assert code == 0 and "services.factory.url is 'nowhere'" in " ".join(complaints.split())


def test_where_it_is_not_installed_that_is_what_it_says(tailspan: Tailspan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailspan.agent.find_spec", lambda name: None)
    with TestClient(tailspan.app, "http://127.0.0.1:8100", client=("127.0.0.1", 5)) as client:
        answer = client.post("/analytics/mcp", json={})
    assert (answer.status_code, answer.json()) == (
        501,
        {
            "error": {
                "code": "not_installed",
                "message": "The MCP server is not installed.",
                "fix": "Install it, and start again: pip install 'tailspan[mcp]'",
            }
        },
    )
