"""Forty questions, answered by the embedded store as the definitions say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings as McpSettings

from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.store.duckdb import DuckDB
from tests.mcp_server.conftest import ask
from tests.mcp_server.questions import NOW, QUESTIONS, Asked
from tests.server.test_reference import DOCUMENT, SETTINGS
from tests.stack.test_stores import BEATS, WORLD

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("questions")
    store = DuckDB(folder / "t.duckdb")
    store.write(WORLD, BEATS)
    yield create_app(Settings(settings=settings_in(folder)), store, lambda: NOW)
    store.close()


def settings_in(folder: Path) -> Path:
    (folder / "dashboard.json").write_text(json.dumps(DOCUMENT))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder / "settings.toml"


async def answered(app: Any, asked: Asked) -> Any:
    """What the answer holds."""
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost")
    settings: Any = {"language": asked.language}
    async with Client(create_server(McpSettings(**settings), client)) as server:
        return asked.found((await ask(server, asked.tool, **asked.arguments)).data)


def test_there_are_forty_in_two_languages_about_every_tool_of_ours() -> None:
    assert (len(QUESTIONS), len({asked.text for asked in QUESTIONS})) == (40, 40)
    assert sum(asked.language == "es" for asked in QUESTIONS) == 20
    assert {asked.tool for asked in QUESTIONS} == {
        *("get_active_users", "get_usage_stats", "get_system_performance", "query_usage"),
    }


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked.text)
async def test_the_answer_holds_the_right_value(asked: Asked, app: Any) -> None:
    assert await answered(app, asked) == asked.expected()
    assert asked.expected() not in (None, [], {}, "")
