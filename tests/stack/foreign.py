"""Services that have nothing of tailspan: what OpenTelemetry itself makes of their requests."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import httpx
import pytest

from tests.stack.engines import REQUIRED, Engine, free_port

EXPRESS: Final = Path(__file__).parent / "express"
GO: Final = Path(__file__).parent / "go"
PROXY: Final = "127.0.0.1"  # whose headers count
NO_PROXY: Final = "127.0.0.2"  # as loopback as the other, but not the proxy's address


class Service(Engine):
    """A service called heating that sends to `endpoint`. It listens on all addresses, on IPv6 as Node and Go do it."""

    def __init__(self, *command: object, folder: Path, endpoint: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            *command,
            log=folder / "service.log",
            ready=f"{self.url}/health",
            environment={
                "PORT": str(port),
                "OTEL_SERVICE_NAME": "heating",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod",
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_BSP_SCHEDULE_DELAY": "250",
                **environment,
            },
        )

    def call(self, method: str, path: str, headers: dict[str, str], peer: str = PROXY) -> int:
        transport = httpx.HTTPTransport(local_address=peer)
        with httpx.Client(transport=transport, base_url=self.url, trust_env=False) as client:
            return client.request(method, path, headers=headers).status_code


def express(folder: Path, endpoint: str, **environment: str) -> Service:
    command = ("node", "--require", EXPRESS / "tracing.js", EXPRESS / "app.js")
    return Service(*command, folder=folder, endpoint=endpoint, NODE_PATH=str(node_modules(EXPRESS)), **environment)


def go(folder: Path, endpoint: str) -> Service:
    return Service(go_program(), folder=folder, endpoint=endpoint)


def node_modules(of: Path) -> Path:
    """Where npm put what the lock of a folder names."""
    need("node", "npm")
    files = [of / "package.json", of / "package-lock.json"]

    def install(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)

    return cached(of.name, files, install) / "node_modules"


def go_program() -> Path:
    need("go")
    files = sorted(GO.iterdir())
    return (
        cached("go", files, lambda folder: run("go", "build", "-o", str(folder / "service"), ".", cwd=GO)) / "service"
    )


def need(*programs: str) -> None:
    """Skips the test where one is missing, unless engines are required."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(f"{' and '.join(missing)} not found")


def cached(name: str, made_from: list[Path], make: Callable[[Path], None]) -> Path:
    """A folder outside the checkout that `make` filled once for just these files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tailspan" / "engines"
    cache = Path(os.environ.get("TAILSPAN_ENGINES") or cache)
    content = b"".join(file.read_bytes() for file in made_from)
    folder = cache / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        new = Path(mkdtemp(prefix=f".{name}.", dir=cache))
        make(new)
        new.rename(folder)
    return folder


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
