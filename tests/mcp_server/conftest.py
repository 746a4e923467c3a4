"""A tailspan with a clock that stands still, and the SDK's client of a server that asks it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest
from mcp import Client
from starlette.testclient import TestClient
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings as McpSettings

from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.store.duckdb import DuckDB
from tests.conftest import Launch, Program
from tests.server.spans import NOW, export

SETTINGS = """
zone = "Europe/Madrid"
[features.routes]
"/prices" = "Prophet forecast"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Told(NamedTuple):
    """What a tool answered: the sentence, and the data."""

    text: str
    data: Any


async def ask(client: Client, tool: str, **arguments: Any) -> Told:
    """The answer of a tool that does answer, whose two forms are the same."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    sentence, data = (part.text for part in result.content if part.type == "text")
    assert httpx.Response(200, text=data).json() == result.structured_content
    return Told(sentence, result.structured_content)


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """What a tool says that does not."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error and result.structured_content is None
    [said] = [part.text for part in result.content if part.type == "text"]
    return said


class Tailspan:
    """A server of this process. `send` delivers spans; `client(language=…, services=…)` is an MCP client in memory."""

    def __init__(self, database: Path, now: datetime = NOW, **settings: Any) -> None:
        (database.parent / "settings.toml").write_text(SETTINGS)
        self.store = DuckDB(database)
        given = Settings(db=database, settings=database.parent / "settings.toml", **settings)
        self.app = create_app(given, self.store, lambda: now)

    def send(self, *spans: dict[str, Any], **resource: str) -> None:
        answer = TestClient(self.app, "http://127.0.0.1:8100", client=("127.0.0.1", 5)).post(
            "/v1/traces", json=export(*spans, **resource)
        )
        assert answer.status_code == 200, answer.text

    @asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[Client]:
        transport = httpx2.ASGITransport(app=self.app)
        asking = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
        async with Client(create_server(McpSettings(**settings), asking)) as client:
            yield client


@pytest.fixture
def tailspan(tmp_path: Path) -> Iterator[Tailspan]:
    running = Tailspan(tmp_path / "t.duckdb")
    yield running
    running.store.close()


class Serve(NamedTuple):
    """`tailspan serve` as a program."""

    program: Program
    url: str


Serving = Callable[..., Serve]


@pytest.fixture
def serve(launch: Launch, tmp_path: Path) -> Serving:
    """Starts it on the database of the test; the same port again with `port=`."""

    def begin(port: int = 0, **settings: str) -> Serve:
        given = {"TAILSPAN_DB": str(tmp_path / "t.duckdb"), "TAILSPAN_LISTEN": f"127.0.0.1:{port}", **settings}
        program = launch("tailspan", "serve", TS_SOCKET="/nowhere", **given)
        return Serve(program, program.line().split()[3])

    return begin


def since_now(seconds: float) -> float:
    """The `ago` of a span that began so many seconds before now."""
    return (NOW - datetime.now(UTC)).total_seconds() + seconds
