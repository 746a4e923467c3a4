"""Debian's Chromium, which finds every name of the tests on this machine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.conftest import Launch
from tests.stack.engines import program
from tests.stack.page.stage import HOST, Stage, Watched, staged, watched

Opens = Callable[..., AbstractContextManager[Watched]]


@pytest.fixture(scope="module")  # its event loop, which no other may run beside, ends with the module
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


@pytest.fixture(params=["embedded", "influxdb"])
def stage(request: pytest.FixtureRequest, launch: Launch, tmp_path: Any) -> Iterator[Stage]:
    """The demo on either store."""
    full = None
    if request.param == "influxdb":
        full = (request.getfixturevalue("influxd"), request.getfixturevalue("collector"))
    with staged(launch, tmp_path, full) as made:
        yield made


@pytest.fixture
def embedded(launch: Launch, tmp_path: Any) -> Iterator[Stage]:
    with staged(launch, tmp_path) as made:
        yield made
