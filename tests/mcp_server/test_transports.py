"""The same tools in memory, over stdio and over HTTP, by the SDK's own client."""

import sys
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters

from tests.mcp_server.conftest import Serving, Tailspan, ask, refused, since_now
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
    tailspan = serve()
    visit(tailspan.url)
    async with Client(stdio("--only", "analytics", TAILSPAN_URL=tailspan.url), mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ANALYTICS
        assert (await ask(client, "get_active_users")).text == "1 active: ana@example.com (ana-laptop) on /dashboard."


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http_it_is_beside_the_endpoints(serve: Serving, mode: Any) -> None:
    tailspan = serve()
    visit(tailspan.url)
    async with Client(f"{tailspan.url}/analytics/mcp", mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools][:4] == ANALYTICS
        assert (await ask(client, "get_active_users")).text == "1 active: ana@example.com (ana-laptop) on /dashboard."


async def test_over_stdio_a_server_that_goes_away_is_told_and_found_again(serve: Serving) -> None:
    tailspan = serve()
    visit(tailspan.url)
    async with Client(stdio(TAILSPAN_URL=tailspan.url)) as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 1
        tailspan.program.end()
        said = await refused(client, "get_active_users")
        assert f"tailspan cannot be asked at {tailspan.url}" in said and "tailspan serve" in said
        serve(port=int(tailspan.url.rpartition(":")[2]))
        assert (await ask(client, "get_active_users")).data["total_active"] == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http_a_client_goes_on_with_a_server_that_was_started_again(serve: Serving, mode: Any) -> None:
    tailspan = serve()
    visit(tailspan.url)
    async with Client(f"{tailspan.url}/analytics/mcp", mode=mode) as client:
        assert (await ask(client, "get_active_users")).data["total_active"] == 1
        tailspan.program.end()
        serve(port=int(tailspan.url.rpartition(":")[2]))
        assert (await ask(client, "get_active_users")).data["total_active"] == 1


async def test_a_call_is_a_span_of_its_caller_apart_from_what_people_do(serve: Serving) -> None:
    tailspan = serve()
    visit(tailspan.url)
    async with Client(f"{tailspan.url}/analytics/mcp") as client:
        await ask(client, "get_active_users")
    rows = until(lambda: logs(tailspan.url, traffic="agent")["logs"], "the call is not recorded")
    assert {(row["service"], row["endpoint"], row["method"], row["caller"]) for row in rows} == {
        ("tailspan", "/analytics/mcp", "POST", "local")
    }
