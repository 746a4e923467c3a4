"""Real engines for a test, ended with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.engines import Collector, Influxd


@pytest.fixture
def influxd(tmp_path: Path) -> Iterator[Influxd]:
    engine = Influxd(tmp_path / "influxd")
    try:
        yield engine.set_up()
    finally:
        engine.kill()


@pytest.fixture
def collector(tmp_path: Path, influxd: Influxd) -> Iterator[Collector]:
    engine = Collector(tmp_path / "collector", influxd)
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()
