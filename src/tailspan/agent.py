"""The MCP server at /analytics/mcp, where it is installed (`tailspan[mcp]`). It calls the answers in this process."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from importlib.util import find_spec

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tailspan.config import Settings
from tailspan.endpoints import analytics
from tailspan.errors import NotInstalledError
from tailspan.reports import Sources
from tailspan.respond import HANDLERS, refusal

log = logging.getLogger("tailspan")


class Agent:
    """An ASGI app, for whom its caller lets in; it answers while `run` is open, as often as that may be."""

    def __init__(self, settings: Settings, of: Sources, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._answers = FastAPI(openapi_url=None, exception_handlers=HANDLERS)  # type: ignore[arg-type]  # as in create_app
        self._answers.include_router(analytics(of, clock))
        self._app: ASGIApp = missing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        if find_spec("tailspan_mcp") is None:
            yield
            return
        from tailspan_mcp.declared import SettingError
        from tailspan_mcp.server import mounted
        from tailspan_mcp.settings import Settings as Given
        from tailspan_mcp.settings import read_tables

        try:
            given = read_tables(self._settings.settings) if self._settings.settings else Given()
        except SettingError as problem:  # what is wrong with tools must not keep the server from answering
            log.warning("The MCP server has no tools of services: %s", problem)
            given = Given()
        async with mounted(given, self._answers) as self._app:
            yield


async def missing(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotInstalledError(
        "The MCP server is not installed.", fix="Run: pip install 'tailspan[mcp]', and start again."
    )
    await refusal(error, scope)(scope, receive, send)
