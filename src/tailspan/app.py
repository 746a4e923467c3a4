"""The server put together: settings and a store in, an ASGI app out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from tailspan_otel import instrument

from tailspan.access import Guard
from tailspan.config import Settings
from tailspan.endpoints import router
from tailspan.errors import StoreError
from tailspan.inbox import Inbox, OwnSpans
from tailspan.query import nanoseconds
from tailspan.respond import HANDLERS
from tailspan.store.duckdb import DuckDB

PURGE_EVERY_S: Final = 3600.0

log = logging.getLogger("tailspan")


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(settings: Settings, store: DuckDB, clock: Callable[[], datetime] = utc_now) -> FastAPI:
    """The server of one store, which the caller opens and closes. While it runs, it deletes what is too old."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        purging = asyncio.create_task(_purge_by_itself(store, settings.retention_days, clock))
        yield
        purging.cancel()
        with suppress(asyncio.CancelledError):
            await purging

    inbox = Inbox(store, clock)
    app = FastAPI(
        title="tailspan",
        summary="Who uses your tailnet services, from which device, doing what, and how fast.",
        version=version("tailspan"),
        lifespan=lifespan,
        exception_handlers=HANDLERS,  # type: ignore[arg-type]  # Starlette's type knows one kind of exception a handler
    )
    app.include_router(router(store, inbox, clock))
    app.add_middleware(Guard, settings=settings)
    app.state.inbox = inbox
    return app


def know_viewers(app: FastAPI, clock: Callable[[], datetime] = utc_now) -> None:
    """Records who asks the server itself, as any instrumented service would. Call it last."""
    instrument(app, exporter=OwnSpans(app.state.inbox, clock))


async def _purge_by_itself(store: DuckDB, days: int, clock: Callable[[], datetime]) -> None:
    while True:
        before_ns = nanoseconds(clock() - timedelta(days=days))
        try:
            purged = await asyncio.to_thread(store.purge, before_ns)
            log.info("deleted %d requests older than %d days", purged, days)
        except StoreError as problem:  # told in every answer too; the next hour tries again
            log.warning("%s", problem)
        await asyncio.sleep(PURGE_EVERY_S)
