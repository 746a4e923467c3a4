"""A tab of a Chromium that nobody but its user turns to: Playwright tells all of its tabs that they are looked at."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.stack.engines import PATIENCE_S, program, until
from tests.stack.page.stage import HOST


class Tab:
    """What it shows is run by the DevTools protocol, https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, devtools: ClientConnection, url: str) -> None:
        self._devtools = devtools
        self._numbers = count(1)
        self._id = self._ask("Target.createTarget", url=url)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=self._id, flatten=True)["sessionId"]

    def run(self, expression: str) -> Any:
        """The value of JavaScript, once a promise is kept."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        return self._ask("Runtime.evaluate", self._session, **asked)["result"].get("value")

    def rest(self, milliseconds: int) -> None:
        self.run(f"new Promise((done) => setTimeout(done, {milliseconds}))")

    def leave(self) -> None:
        """For another tab of the same window."""
        self._ask("Target.createTarget", url="about:blank")
        self._is("hidden")

    def minimise(self) -> None:
        self._bounds("minimized")
        self._is("hidden")

    def turn_to(self) -> None:
        self._bounds("normal")
        self._ask("Target.activateTarget", targetId=self._id)
        self._is("visible")

    def _bounds(self, state: str) -> None:
        window = self._ask("Browser.getWindowForTarget", targetId=self._id)["windowId"]
        self._ask("Browser.setWindowBounds", windowId=window, bounds={"windowState": state})

    def _is(self, state: str) -> None:
        until(lambda: self.run("document.visibilityState") == state, f"the tab is not {state}")

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._devtools.send(json.dumps(told))
        while (answer := json.loads(self._devtools.recv(PATIENCE_S))).get("id") != number:
            pass  # events
        assert "error" not in answer, answer
        return dict(answer["result"])


@contextmanager
def tab(folder: Path, url: str) -> Iterator[Tab]:
    port = folder / "DevToolsActivePort"
    command = [program("chromium", "chromium"), "--headless=new", "--no-sandbox", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", f"--host-resolver-rules=MAP *.{HOST} 127.0.0.1", "--window-size=900,700"]
    with subprocess.Popen([*map(str, command), "about:blank"], stderr=subprocess.DEVNULL) as browser:
        try:
            number, path = until(lambda: port.exists() and port.read_text().split(), "Chromium does not start")
            with connect(f"ws://127.0.0.1:{number}{path}", proxy=None, max_size=None) as devtools:
                yield Tab(devtools, url)
        finally:
            browser.terminate()
