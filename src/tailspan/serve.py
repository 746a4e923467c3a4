"""`tailspan serve`: one process, one address, one database."""

import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import uvicorn

from tailspan.access import check_listening, is_userspace
from tailspan.app import create_app, know_viewers
from tailspan.config import Settings
from tailspan.errors import SettingError
from tailspan.store.duckdb import DuckDB

KEEP_ALIVE_S: Final = 75  # longer than clients and proxies keep one: what they are just using must not be closed


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. Says one paragraph once it listens. Raises SettingError, StoreError."""
    said = settings.userspace
    check_listening(settings, bool(is_userspace(settings.ts_socket) if said is None else said))
    with closing(DuckDB(settings.db)) as store:
        app = create_app(settings, store)
        know_viewers(app)
        listening = None if settings.unix_path else bind(*settings.address)
        if settings.unix_path:
            check_free(settings.unix_path)
        say(greeting(settings, listening))
        config = uvicorn.Config(
            app,
            uds=settings.unix_path,
            proxy_headers=False,  # who the caller is must be seen, not told by a header
            access_log=False,  # it would repeat what is recorded anyway
            server_header=False,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped
        gc.freeze()  # the program itself is never garbage: looking for some in it took a third of the time to ingest
        try:
            uvicorn.Server(config).run(sockets=[listening] if listening else None)
        except KeyboardInterrupt:
            pass  # Ctrl-C is how one stops it
        finally:
            gc.unfreeze()


def bind(host: str, port: int) -> socket.socket:
    """Listens at once, so that a taken port is known before anything is said."""
    # asyncio switches Nagle's delay off (40 ms an answer) only where the socket says that it is TCP
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
        return listening
    except OSError as problem:
        listening.close()
        raise SettingError(
            f"TAILSPAN_LISTEN is {host}:{port}, where this server cannot listen: {problem.strerror}.",
            value=f"{host}:{port}",
            fix="Stop what listens there, or set TAILSPAN_LISTEN to another port.",
        ) from problem


def check_free(path: str) -> None:
    """A socket somebody answers on is not taken over; one left behind is."""
    if not Path(path).parent.is_dir():
        raise SettingError(
            f"TAILSPAN_LISTEN is unix:{path}, and there is no such directory.", fix="Make the directory."
        )
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(path)
        raise SettingError(f"TAILSPAN_LISTEN is unix:{path}, where another server answers.", fix="Stop it first.")


def greeting(settings: Settings, listening: socket.socket | None) -> str:
    if listening is None:
        url = settings.listen
    else:
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if settings.influxdb:
        there = settings.influxdb.url
        return f"tailspan listens on {url} · answers from InfluxDB at {there} · services send to its collector"
    said = f"tailspan listens on {url} · database {settings.db}"
    return f"{said} · services send with OTEL_EXPORTER_OTLP_ENDPOINT={url}" if listening else said
