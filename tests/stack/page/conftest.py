"""Debian's Chromium, which finds every name of the tests on this machine, and what it looks at.

The demo runs once for all tests, and none needs it untouched: each has visitors of its own, or forgets them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.conftest import launching
from tests.stack.engines import Collector, Influxd, program
from tests.stack.page.stage import HOST, Stage, Watched, staged, started, watched

Opens = Callable[..., AbstractContextManager[Watched]]
ALL_TESTS_S: Final = 3600.0
STORES: Final = ("embedded", "influxdb")


@pytest.fixture(scope="package")  # its event loop, which no other may run beside, ends with the package
def chromium() -> Iterator[Browser]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(path),
            args=["--no-sandbox", f"--host-resolver-rules=MAP *.{HOST} 127.0.0.1", "--js-flags=--expose-gc"],
        )
        yield browser
        browser.close()


@pytest.fixture
def opens(chromium: Browser) -> Iterator[Opens]:
    """A page of a new browser profile: `with opens(locale="es", ...) as page`, with complaints that are expected."""
    contexts: list[BrowserContext] = []

    def begin(*expected: str, **options: Any) -> AbstractContextManager[Watched]:
        contexts.append(chromium.new_context(**{"locale": "en-US", **options}))
        return watched(contexts[-1], *expected)

    yield begin
    for context in contexts:
        context.close()


@contextmanager
def pipeline(folder: Path) -> Iterator[tuple[Influxd, Collector]]:
    """InfluxDB with the collector before it."""
    influxd = Influxd(folder / "influxd")
    try:
        collector = Collector(folder / "collector", influxd.set_up())
        try:
            collector.start()
            yield influxd, collector
        finally:
            collector.kill()
    finally:
        influxd.kill()


@pytest.fixture(scope="package")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with launching(ALL_TESTS_S) as launch, staged(launch, tmp_path_factory.mktemp("embedded")) as made:
        yield made


@pytest.fixture(scope="package")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Through a collector into InfluxDB."""
    folder = tmp_path_factory.mktemp("full")
    with pipeline(folder) as engines, launching(ALL_TESTS_S) as launch, staged(launch, folder, engines) as made:
        yield made


@pytest.fixture(scope="package", params=STORES)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """`tailspan demo`, with its visitors, as it is started on either store."""
    folder = tmp_path_factory.mktemp("demo")
    with ExitStack() as stack:
        launch = stack.enter_context(launching(ALL_TESTS_S))
        if request.param == "embedded":
            yield stack.enter_context(started(launch("tailspan", "demo", TMPDIR=str(folder))))
        else:
            influxd, collector = stack.enter_context(pipeline(folder))
            settings = {"TMPDIR": str(folder), **influxd.settings, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
            command = launch("tailspan", "demo", "--influxdb", **settings)
            yield stack.enter_context(started(command, collector.endpoint))


@pytest.fixture(scope="package", params=STORES)
def stage(request: pytest.FixtureRequest) -> Stage:
    """The demo's parts on either store."""
    made: Stage = request.getfixturevalue("embedded" if request.param == "embedded" else "full")
    return made
