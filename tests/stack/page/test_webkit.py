"""The card and card-views in WebKit, as phones have it: Debian's WebKitGTK, on a screen that nobody sees."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import WebKitGTK, WebKitGTKOptions
from selenium.webdriver.webkitgtk.service import Service

from tests.stack.engines import REQUIRED, free_port, program, until
from tests.stack.page.stage import READ, Stage
from tests.stack.page.test_views import views


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    xvfb = shutil.which("Xvfb")
    if xvfb is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)("Xvfb is missing: scripts/engines webkit")
    reading, writing = os.pipe()
    # -displayfd: it picks a free number, and says it once it is ready
    command = [xvfb, "-displayfd", str(writing), "-screen", "0", "800x1600x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=(writing,), stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        with os.fdopen(reading) as told:
            monkeypatch.setenv("DISPLAY", f":{told.readline().strip()}")
        yield
        process.terminate()


@pytest.fixture
def webkit(screen: None) -> Iterator[WebKitGTK]:
    driver = program("webkit", "WebKitWebDriver").resolve()
    service = Service(str(driver), free_port())
    made = WebKitGTK(options=WebKitGTKOptions(), service=service)
    yield made
    made.quit()


@pytest.mark.filterwarnings("ignore:setting remote_server_addr:DeprecationWarning")  # selenium's own
def test_webkit_draws_the_card_and_tells_which_cards_were_looked_at(webkit: WebKitGTK, embedded: Stage) -> None:
    embedded.forget("you")
    webkit.get(f"{embedded.front}/dashboard")  # as you@example.com, who is no reader
    webkit.execute_script("document.querySelector('main').prepend(document.querySelector('analytics-widget'))")

    def card() -> dict[str, Any]:
        read = f"return document.querySelector('analytics-widget')?.shadowRoot ? {READ} : '{{}}'"
        return dict(json.loads(webkit.execute_script(read)))

    def agrees() -> bool:
        webkit.execute_script("document.querySelector('analytics-widget').setAttribute('days', '7')")  # it asks anew
        until(lambda: card().get("state") not in (None, "loading"), "WebKit does not show the card")
        totals = embedded.ask.get("/analytics/totals?service=factory").json()["summary"]
        numbers = [str(totals[key]) for key in ("total_sessions", "unique_users", "total_accesses")]
        return (card()["state"], card()["numbers"]) == ("ok", numbers)

    until(agrees, "the card did not show what the endpoint says", lambda: str(card()))
    assert webkit.execute_script("return typeof Chart") == "undefined"
    until(lambda: webkit.execute_script("return document.querySelectorAll('article').length == 6"), "no cards")
    webkit.execute_script("document.querySelector('article').scrollIntoView()")
    webkit.execute_async_script("setTimeout(arguments[0], 2500)")
    webkit.get("about:blank")
    seen = until(lambda: views(embedded, "you"), "WebKit told of no view")
    assert {count for count, _ in seen.values()} == {1} and "Electricity price" in {name for name, _ in seen}
