"""A server in this process, with a database of its own and a clock that stands still."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.store.duckdb import DuckDB
from tests.server.spans import NOW

Serving = Callable[..., AbstractContextManager[TestClient]]


class OverSocket:
    """As a server says that listens on a unix socket: without another end, at a path of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "server": ("/run/tailspan.sock", None)}, receive, send)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tailspan.duckdb"


@pytest.fixture
def serving(database: Path) -> Serving:
    """Runs a server on the database: `with serving(now=…, peer=…, token=…) as client`; `now` may be a clock."""

    @contextmanager
    def run(
        now: datetime | Callable[[], datetime] = NOW,
        peer: tuple[str, int] | None = ("127.0.0.1", 50000),
        **settings: Any,
    ) -> Iterator[TestClient]:
        store = DuckDB(database)
        app = create_app(Settings(db=database, **settings), store, now if callable(now) else lambda: now)
        if peer is None:
            app.add_middleware(OverSocket)
        try:
            caller: Any = peer  # over a unix socket there is none, which TestClient's type leaves out
            with TestClient(app, "http://127.0.0.1:8100", raise_server_exceptions=False, client=caller) as client:
                yield client
        finally:
            store.close()

    return run


@pytest.fixture
def client(serving: Serving) -> Iterator[TestClient]:
    with serving() as client:
        yield client


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[DuckDB]:
    store = DuckDB(tmp_path / "kept.duckdb")
    yield store
    store.close()
