"""The forty questions, answered from InfluxDB as from the embedded store: as the definitions say."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import httpx2
import pytest
from mcp import Client
from starlette.testclient import TestClient
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings as McpSettings

from tailspan.app import create_app
from tailspan.config import InfluxDB, Settings
from tailspan.store.duckdb import DuckDB
from tests.mcp_server.conftest import ask, refused
from tests.mcp_server.questions import NOW, QUESTIONS, Asked
from tests.mcp_server.test_questions import answered, settings_in
from tests.stack.engines import Influxd
from tests.stack.test_stores import BEATS, WORLD, stored

pytestmark = pytest.mark.anyio

HOUR_NS: Final = 3600 * 10**9


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    influxd = Influxd(tmp_path_factory.mktemp("influxd"))
    try:
        folder = tmp_path_factory.mktemp("asked")
        with stored(influxd.set_up(), folder, WORLD, BEATS) as made:
            place = InfluxDB(url=influxd.url, token=influxd.token, org=influxd.org, bucket=made.bucket)
            beside = DuckDB(folder / "beside.duckdb")
            app = create_app(Settings(influxdb=place, settings=settings_in(folder)), beside, lambda: NOW)
            with TestClient(app):
                yield app
            beside.close()
    finally:
        influxd.kill()


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked.text)
async def test_the_answer_from_influxdb_holds_the_right_value(asked: Asked, app: Any) -> None:
    assert await answered(app, asked) == asked.expected()


async def test_what_influxdb_has_nothing_of_is_an_error_or_a_gap_and_no_zero(app: Any) -> None:
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost")
    async with Client(create_server(McpSettings(), client)) as server:
        unknown = await refused(server, "get_usage_stats", service="dashbord")
        before = await ask(server, "query_usage", metrics=["requests"], start="2020-01-01", end="2020-02-01")
        week = await ask(server, "get_usage_stats")
    assert "no service 'dashbord' was ever heard of. There is: " in unknown
    assert (before.data["rows"], before.data["coverage"]["first_hour"]) == ([{"requests": 0}], None)
    assert before.data["gaps"][0].startswith("no request at all came in this window: the newest is of ")
    first_hour = week.data["coverage"]["first_hour"]
    first_ns = min(span.start_ns for span in WORLD if span.kind == "request")
    assert datetime.fromisoformat(first_hour).timestamp() == first_ns // HOUR_NS * 3600
    assert any(gap.startswith(f"no request is known from before {first_hour}") for gap in week.data["gaps"])
