"""`tailspan demo`: a server, a service, a stand-in for tailscaled, and visitors; and who of them is seen."""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from tailspan.config import LISTEN
from tailspan.demo.localapi import LocalAPI
from tailspan.errors import SettingError, TailspanError

LOOK_EVERY_S: Final = 0.25
PATIENCE_S: Final = 60.0  # a busy machine is no reason to end
READERS: Final = "you@example.com,ana@example.com"  # Leo sees totals, and nobody's name
HOSTS: Final = (
    "ana.localhost,leo.localhost,zoe.localhost,eva.localhost,mallory.localhost"  # by these `front` tells who one is
)
STOP_S: Final = 10.0
MAX_FOLDER: Final = 90  # a unix socket's path has at most 104 bytes on macOS, 108 on Linux
PIPELINE: Final = ("INFLUXDB_V2_", "OTEL_EXPORTER_OTLP_")
DIE_WITH_PARENT: Final = 1  # prctl(2): PR_SET_PDEATHSIG

out = Console(soft_wrap=True, highlight=False)


def demo(
    seconds: Annotated[float | None, typer.Option("--for", help="Stop after this many seconds.", min=0)] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the database in this directory.")] = None,
    beside_opentelemetry: Annotated[
        bool,
        typer.Option("--beside-opentelemetry", help="The service has OpenTelemetry's own instrumentation as well."),
    ] = False,
    influxdb: Annotated[
        bool,
        typer.Option(
            "--influxdb",
            help="Through the collector at OTEL_EXPORTER_OTLP_ENDPOINT into the InfluxDB of INFLUXDB_V2_*.",
        ),
    ] = False,
) -> None:
    """Shows tailspan at work: a small service, its visitors, and who of them is seen. Ctrl-C ends it.

    \b
    tailspan demo
    tailspan demo --for 60 --keep ./kept

    Service and requests are real. tailscaled is not: a stand-in answers what a real one answered.
    """
    from tailspan.demo.visitors import visit  # the other commands do without the service's libraries

    if beside_opentelemetry and not find_spec("opentelemetry.instrumentation.fastapi"):
        raise SettingError(
            "opentelemetry-instrumentation-fastapi is not installed.", fix="Run: pip install 'tailspan-otel[fastapi]'"
        )
    pipeline = of_environment() if influxdb else {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both end it in the same way
    with suppress(KeyboardInterrupt), ExitStack() as stage:
        folder = Path(stage.enter_context(TemporaryDirectory(prefix="tailspan-demo-")))
        if len(os.fsencode(folder)) > MAX_FOLDER:
            raise SettingError(
                f"Unix sockets cannot be made in {folder}.",
                value=str(folder),
                rule=f"Their paths are short: that of their folder has at most {MAX_FOLDER} bytes.",
                fix="Set TMPDIR=/tmp",
            )
        server = stage.enter_context(running_server(keep or folder, pipeline))
        tailscaled, serve = folder / "whois.sock", folder / "factory.sock"  # another server must not take it for real
        stage.enter_context(LocalAPI(tailscaled))
        to = pipeline.get("OTEL_EXPORTER_OTLP_ENDPOINT", server)
        service = stage.enter_context(running_service(serve, tailscaled, to, beside_opentelemetry))
        front = stage.enter_context(running("-m", "tailspan.demo.front", serve, server))
        introduce(server, front)
        asyncio.run(show(visit(serve, service, front), server, seconds))
    out.print("stopped" if keep is None else f"stopped; the database is {keep / 'tailspan.duckdb'}")


@contextmanager
def running(*command: object, **settings: str) -> Iterator[str]:
    """A Python program that says a line as soon as it listens: that line. Ends it by SIGTERM.

    Settings of tailspan, OpenTelemetry and a real tailnet in our own environment are not for it. Raises TailspanError
    where it fails.
    """
    ours = ("TAILSPAN_", "OTEL_", "INFLUXDB_V2_", "TS_SOCKET", "TAILSCALE_", "TAILNET", "HEADSCALE_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment | settings,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for us: we stop them one after the other
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline().strip()
            if not line:
                raise TailspanError(f"python {' '.join(map(str, command))} did not start.", fix="It says why above.")
            yield line
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)  # even where we are killed without a word


def of_environment() -> dict[str, str]:
    """The settings of the full pipeline. Raises SettingError."""
    found = {key: value for key, value in os.environ.items() if key.startswith(PIPELINE)}
    for key in ("INFLUXDB_V2_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if not found.get(key):
            raise SettingError(
                f"{key} is not set, and --influxdb needs it.",
                fix="Make bucket and tokens by `tailspan setup influxdb`, start the collector, and set where both are.",
            )
    return found


@contextmanager
def running_server(folder: Path, pipeline: Mapping[str, str]) -> Iterator[str]:
    """`tailspan serve` with its database in the folder, and InfluxDB where `pipeline` names it: its URL."""
    listen = free_address()
    # what tailscaled's mode would forbid is no harm here: whoever reaches this port finds nobody real
    settings = {"LISTEN": listen, "DB": str(folder / "tailspan.duckdb"), "USERSPACE": "false"}
    settings |= {"READERS": READERS, "ALLOWED_HOSTS": HOSTS}
    known = {f"TAILSPAN_{key}": value for key, value in settings.items()}
    with running("-m", "tailspan", "serve", **known, **pipeline, TS_SOCKET=str(folder / "no-real-tailscaled.sock")):
        yield f"http://{listen}"


def running_service(serve: Path, tailscaled: Path, to: str, beside_opentelemetry: bool) -> AbstractContextManager[str]:
    """The service on the socket `serve`, sending to that URL: the one of its loopback port."""
    beside = ["--beside-opentelemetry"] if beside_opentelemetry else []
    settings = {"TS_SOCKET": str(tailscaled), "OTEL_EXPORTER_OTLP_ENDPOINT": to, "no_proxy": "127.0.0.1"}
    return running("-m", "tailspan.demo.service", serve, *beside, **settings)


def free_address() -> str:
    """Where a server listens by default, or a free port beside it where that one is taken."""
    host, _, port = LISTEN.partition(":")
    try:
        probe = socket.create_server((host, int(port)))
    except OSError:
        probe = socket.create_server((host, 0))
    with probe:
        return f"{host}:{probe.getsockname()[1]}"


def introduce(server: str, front: str) -> None:
    out.print(
        "tailscaled and Serve are stand-ins here, and the visitors are made up; all else is real.\n"
        f"the service    {front}/dashboard (you are a visitor there, and the card is on it)\n"
        f"its page       {front}/analytics/\n"
        f"who is active  {server}/analytics/active\n"
        f"all requests   {server}/analytics/access-logs\n"
        f"by command     TAILSPAN_URL={server} tailspan active\n"
        "Ctrl-C ends it.\n"
    )


async def show(visits: Coroutine[Any, Any, None], server: str, seconds: float | None) -> None:
    """Lets the visitors come, and prints whom the server sees. Raises TailspanError where one of the two is gone."""
    gone = False
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as both:
            both.create_task(visits)
            both.create_task(announce(server))
    except* httpx.TransportError:
        gone = True
    except* TimeoutError:
        pass  # the time was meant to be up
    if gone:
        raise TailspanError("The service or the server of the demo does not answer any more.", fix="It says why above.")


async def announce(server: str) -> None:
    told: set[str] = set()
    async with httpx.AsyncClient(base_url=server, trust_env=False, timeout=PATIENCE_S) as client:
        while True:
            began = time.monotonic()
            for line in await sightings(client):
                if line not in told:
                    told.add(line)
                    out.print(escape(line))
            # a server that is slow to answer has others to answer as well
            await asyncio.sleep(max(LOOK_EVERY_S, 2 * (time.monotonic() - began)))


async def sightings(client: httpx.AsyncClient) -> list[str]:
    """A line for each person who is active, for each caller who is no person, and for forged headers.

    Or what the server says instead: a store may be slow for a while.
    """
    try:
        answers = [await client.get(f"/analytics/{what}") for what in ("active", "access-logs?hours=1")]
    except httpx.ReadTimeout:
        return ["The server takes long to answer; it is asked again."]
    for answer in answers:
        if answer.is_error:
            return [answer.json()["error"]["message"]]
    active, logs = answers[0].json(), answers[1].json()["logs"]
    others = [log for log in logs if log["user"] is None and log["traffic"] != "internal"]
    forged = sum(service["forged"] for source in active["sources"] for service in source["services"])
    return [
        *map(person, reversed(active["active_users"])),
        *map(nobody, reversed(others)),
        *([f"forged identity headers, not believed: {forged}"] if forged else []),
    ]


def person(user: dict[str, Any]) -> str:
    return f"{user['email']} ({user['device']}) on {user['current_page']} · {user['full_name']}"


def nobody(log: dict[str, Any]) -> str:
    who = f"{log['device'] or log['ip']} ({log['tags'] or log['caller']})"
    return f"{who} is no person: {log['method']} {log['endpoint']}"
