"""The MCP server at /analytics/mcp, where it is installed (`tailspan[mcp]`). It calls the answers in this process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tailspan.config import Settings
from tailspan.endpoints import analytics
from tailspan.errors import NotInstalledError
from tailspan.reports import Sources
from tailspan.respond import HANDLERS, refusal

log = logging.getLogger("tailspan")


class Agent:
    """An ASGI app, for whom its caller lets in; it answers while `run` is open, as often as that may be.

    It begins with its first caller: the protocol's library takes 28 MB, which only those who use it should spend.
    """

    def __init__(self, settings: Settings, of: Sources, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._answers = FastAPI(openapi_url=None, exception_handlers=HANDLERS)  # type: ignore[arg-type]  # as in create_app
        self._answers.include_router(analytics(of, clock))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if find_spec("tailspan_mcp") is None:
            fix = "Install it, and start again: pip install 'tailspan[mcp]'"
            error = NotInstalledError("The MCP server is not installed.", fix=fix)
            return await refusal(error, scope)(scope, receive, send)
        self._wanted.set()
        await asyncio.wait((self._app, self._serving), return_when=asyncio.FIRST_COMPLETED)
        app = self._app.result() if self._app.done() else self._serving.result()  # which raises why it did not begin
        await app(scope, receive, send)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        self._wanted = asyncio.Event()
        self._app: asyncio.Future[ASGIApp] = asyncio.get_running_loop().create_future()
        serving = self._serving = asyncio.create_task(self._serve(self._wanted, self._app))
        yield
        serving.cancel()
        await asyncio.wait([serving])  # why it did not begin its callers were told

    async def _serve(self, wanted: asyncio.Event, ready: asyncio.Future[ASGIApp]) -> NoReturn:
        await wanted.wait()
        module: Any = await asyncio.to_thread(
            import_module, "tailspan_mcp.server"
        )  # a second, in which others are served
        async with module.mounted(self._answers, self._settings.settings) as app:
            ready.set_result(app)
            while True:  # until it is cancelled
                await asyncio.Event().wait()
