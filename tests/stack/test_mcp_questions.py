"""The forty questions, answered from InfluxDB as from the embedded store: as the definitions say."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tailspan.app import create_app
from tailspan.config import InfluxDB, Settings
from tailspan.store.duckdb import DuckDB
from tests.mcp_server.questions import NOW, QUESTIONS, Asked
from tests.mcp_server.test_questions import answered, settings_in
from tests.stack.engines import Influxd
from tests.stack.test_stores import BEATS, WORLD, stored

pytestmark = pytest.mark.anyio


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
