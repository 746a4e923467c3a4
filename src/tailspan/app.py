"""The server put together: settings and a store in, an ASGI app out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, Request
from opentelemetry.sdk.trace.export import SpanExporter
from tailspan_otel import instrument, service_name
from tailspan_otel.traffic import AGENT_PATH

from tailspan.access import Guard
from tailspan.agent import Agent
from tailspan.collector import Collector
from tailspan.config import Settings
from tailspan.directory import Directory, sources_of
from tailspan.endpoints import log_lines, mounted, server
from tailspan.errors import StoreError
from tailspan.follow import Follower
from tailspan.inbox import Inbox, InProcess, OwnSpans
from tailspan.ingest.line import Origin
from tailspan.ingest.nginx import chosen
from tailspan.labels import LabelsFile
from tailspan.logfiles import LogState
from tailspan.openapi import Document
from tailspan.query import nanoseconds
from tailspan.receiver import Receiver
from tailspan.reports import Sources
from tailspan.respond import HANDLERS
from tailspan.store import Store
from tailspan.store.duckdb import DuckDB
from tailspan.tailnet import Listed
from tailspan.witness import Witness

PURGE_EVERY_S: Final = 3600.0
WATCH_EVERY_S: Final = 10.0
RECONCILE_EVERY_S: Final = 30.0
HOLD_S: Final = 2.0  # how long a line waits for its live twin, where it would have to be deleted again
FOLLOW_EVERY_S: Final = 0.5

log = logging.getLogger("tailspan")


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(settings: Settings, store: DuckDB, clock: Callable[[], datetime] = utc_now) -> FastAPI:
    """The server of a database, which the caller opens and closes. While it runs, it deletes what is too old.

    Where the settings name an InfluxDB, answers come from there, and spans do not come here but to its collector.
    """
    inbox = None if settings.influxdb else Inbox(store, clock, settings.trusted_peers)
    of, witness, follower = _parts(settings, store, LabelsFile(settings.settings), clock)
    mcp = Agent(settings, of, clock)
    app = FastAPI(
        title="tailspan",
        summary="Who uses your tailnet services, from which device, doing what, and how fast.",
        version=version("tailspan"),
        lifespan=lambda app: _working(of, store, follower, settings.retention_days, clock, mcp),
        exception_handlers=HANDLERS,  # type: ignore[arg-type]  # Starlette's type knows one kind of exception a handler
    )
    app.include_router(server(of, inbox, clock))
    app.include_router(log_lines(witness))
    app.add_route(AGENT_PATH, mcp, include_in_schema=False)  # type: ignore[arg-type]  # Starlette takes ASGI apps too
    app.add_middleware(Guard, settings=settings, holder=_holder(of))
    app.state.inbox, app.state.tailnet = inbox, of.tailnet
    app.state.store = of.store
    return app


class Router(APIRouter):
    """`exporter` takes the spans of the app itself: `instrument(app, exporter=analytics.exporter)`."""

    exporter: SpanExporter | None  # None where they go to a collector: what instrument() does by itself


def router(config: Settings | None = None, clock: Callable[[], datetime] = utc_now) -> Router:
    """The same answers in a FastAPI app of your own, under /analytics/.

    Spans of the app itself come in by the router's `exporter`, other services' at /analytics/v1/traces.

    Opens the database now and closes it when the app ends. `config` is read from the environment by default. Who may
    ask is as with `tailspan serve`: a process of this machine, or the token. Features of the app's own service are
    called as its OpenAPI document does, unless the settings name them. Raises SettingError, StoreError.
    """
    settings = config or Settings.read()
    store = DuckDB(settings.db)
    inbox = None if settings.influxdb else Inbox(store, clock, settings.trusted_peers)
    labels = LabelsFile(settings.settings)
    of, witness, follower = _parts(settings, store, labels, clock)
    mcp = Agent(settings, of, clock)
    guard = Guard(mcp, settings, _holder(of))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        labels.documents.own = Document(service_name(app), "The OpenAPI document of this app", app.openapi)
        async with _working(of, store, follower, settings.retention_days, clock, mcp):
            yield
        await asyncio.to_thread(store.close)

    def check(request: Request) -> None:
        guard.check(request.scope, request.headers)

    routes = Router(lifespan=lifespan, dependencies=[Depends(check)])
    routes.exporter = InProcess(inbox, clock) if inbox else None
    routes.include_router(mounted(of, inbox, clock))
    routes.include_router(log_lines(witness))
    routes.add_route(AGENT_PATH, guard, include_in_schema=False)  # type: ignore[arg-type]  # as above
    return routes


def _parts(
    settings: Settings, local: DuckDB, labels: LabelsFile, clock: Callable[[], datetime]
) -> tuple[Sources, Witness, Follower | None]:
    """What answers are made of, the door that lines come in by, and who reads the log that the settings name."""
    store = _answering(settings, local)
    witness = Witness(store, clock, settings.retention_days)
    collector = Collector(settings.collector_metrics) if settings.collector_metrics else None
    tailnet = Directory(sources_of(settings), local, clock, has_log=bool(settings.nginx_log))
    of = Sources(store, labels, collector, tailnet)
    if not settings.nginx_log:
        return of, witness, None
    follower = Follower(
        settings.nginx_log,
        witness,
        lambda: nanoseconds(clock()),
        chosen(settings.nginx_format, "TAILSPAN_NGINX_FORMAT"),
        Origin(settings.nginx_service, settings.nginx_environment, settings.nginx_host, settings.nginx_zone),
        hold_s=HOLD_S if settings.influxdb else 0,
    )
    return replace(of, log=lambda: follower.state), witness, follower


def _answering(settings: Settings, local: DuckDB) -> Store:
    if settings.influxdb is None:
        return local
    from tailspan.store.influxdb import InfluxDB  # its client takes memory that only those who use it should spend

    return InfluxDB(settings.influxdb, local, _collector(settings))


def _collector(settings: Settings) -> Receiver | None:
    """Tried a second or two: who reads a log tries again by itself."""
    return Receiver(settings.collector, attempts=2) if settings.collector else None


def _holder(of: Sources) -> Callable[[str], Listed | None]:
    assert of.tailnet
    return of.tailnet.holder


def know_viewers(app: FastAPI, clock: Callable[[], datetime] = utc_now) -> None:
    """Records who asks the server itself, as any instrumented service would. Call it last."""
    if app.state.inbox:
        instrument(app, exporter=OwnSpans(app.state.inbox, clock))
    else:
        instrument(app)  # by OTEL_EXPORTER_OTLP_ENDPOINT, to the collector


@asynccontextmanager
async def _working(
    of: Sources, store: DuckDB, follower: Follower | None, days: int, clock: Callable[[], datetime], mcp: Agent
) -> AsyncIterator[None]:
    """What a server does unasked, while it runs."""
    tasks = [asyncio.create_task(_purge_by_itself(store, days, clock))]
    if of.collector:
        tasks.append(asyncio.create_task(_watch_by_itself(of.collector, clock)))
    tasks.append(asyncio.create_task(_reconcile_by_itself(of.store, clock)))
    ending = asyncio.Event()
    following = asyncio.create_task(_follow_by_itself(follower, ending)) if follower else None
    if of.tailnet:
        of.tailnet.start()
    async with mcp.run():
        yield
    if of.tailnet:
        of.tailnet.stop()
    if following:
        ending.set()
        await following  # it writes: the database is closed after that
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    if not isinstance(of.store, DuckDB):  # that one is its opener's to close
        await asyncio.to_thread(of.store.close)


async def _follow_by_itself(follower: Follower, ending: asyncio.Event) -> None:
    while not ending.is_set():
        try:
            more = await asyncio.to_thread(follower.step)
        except Exception as problem:  # a defect: told in every answer, and later files may be read all the same
            log.exception("the log cannot be followed")
            follower.state = LogState("unreadable", f"{type(problem).__name__}: {problem}")
            more = False
        if not more:
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), FOLLOW_EVERY_S)


async def _watch_by_itself(collector: Collector, clock: Callable[[], datetime]) -> None:
    """So that whoever asks once learns since when something is wrong."""
    while True:
        await asyncio.to_thread(collector.seen, clock())
        await asyncio.sleep(WATCH_EVERY_S)


async def _reconcile_by_itself(store: Store, clock: Callable[[], datetime]) -> None:
    """What came late, and from lines that another server read."""
    while True:
        try:
            await asyncio.to_thread(store.reconcile, nanoseconds(clock()))
        except StoreError as problem:  # told in every answer too
            log.warning("%s", problem)
        await asyncio.sleep(RECONCILE_EVERY_S)


async def _purge_by_itself(store: DuckDB, days: int, clock: Callable[[], datetime]) -> None:
    while True:
        before_ns = nanoseconds(clock() - timedelta(days=days))
        try:
            purged = await asyncio.to_thread(store.purge, before_ns)
            log.info("deleted %d requests older than %d days", purged, days)
        except StoreError as problem:  # told in every answer too; the next hour tries again
            log.warning("%s", problem)
        await asyncio.sleep(PURGE_EVERY_S)
