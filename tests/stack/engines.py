"""The real programs: built by scripts/engines, started on free ports with their data in a folder, ended by pid."""

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import randbelow
from typing import Any, Final

import httpx
import pytest

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
REQUIRED: Final = "TAILSPAN_ENGINES_REQUIRED"  # set where a missing engine is a failure and no reason to skip


def program(engine: str, name: str) -> Path:
    """Where scripts/engines put it. Skips the test where it was not built, unless engines are required."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tailspan" / "engines"
    cache = Path(os.environ.get("TAILSPAN_ENGINES") or cache)
    made_from = b"".join(file.read_bytes() for file in sorted((ROOT / "engines" / engine).iterdir()))
    path = cache / f"{engine}-{hashlib.sha256(made_from).hexdigest()[:16]}" / name
    if not path.exists():
        reason = f"{name} is not built: scripts/engines {engine}"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    return path


def free_port() -> int:
    """None that an outgoing connection may take before the program listens there: those are from 32768 on.

    Nor one that another of these processes gets, which Hypothesis may have given the same seed.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 15_000 + randbelow(17_000)))
            return int(probe.getsockname()[1])


class Engine:
    """One program, which may be started and ended many times; it keeps its ports and its folder."""

    def __init__(
        self,
        *command: object,
        log: Path,
        ready: str,
        environment: Mapping[str, str] | None = None,
        uds: Path | None = None,
        headers: Mapping[str, str] | None = None,
        status: int = 200,
    ) -> None:
        self.command = list(map(str, command))
        self.environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self.log = log
        self.ready = ready  # a URL that answers `status` once it is up, over the unix socket where one is given
        self._up = status
        self.uds = uds
        self.headers = headers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Waits until it answers. Fails with its log where it ends instead, as where its port is taken."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        if wait:
            until(self.answers, f"{self.command[0]} does not answer", self.said)

    def answers(self) -> bool:
        assert self._process
        if self._process.poll() is not None:
            pytest.fail(f"{self.command[0]} ended with {self._process.returncode}:\n{self.said()}")
        if self.uds and not _listens(self.uds):
            return False
        # verify=False: reading the system's certificates takes longer than the engine's answer
        transport = httpx.HTTPTransport(uds=str(self.uds) if self.uds else None, verify=False)
        try:
            with httpx.Client(transport=transport, timeout=5, trust_env=False) as client:
                return client.get(self.ready, headers=self.headers).status_code == self._up
        except httpx.TransportError:
            return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code. Nothing where it does not run."""
        if self._process is None:
            return 0
        self._process.send_signal(how)
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            pytest.fail(f"{self.command[0]} did not end within {PATIENCE_S:.0f} s:\n{self.said()}")
        finally:
            self._process = None
        return code

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


def _listens(uds: Path) -> bool:
    """Asked before httpx is, which leaves a socket that could not connect to the garbage collector."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(uds)) == 0


def until(holds: Callable[[], Any], otherwise: str, more: Callable[[], str] = str, patience: float = PATIENCE_S) -> Any:
    """What it returned once that was true: asked ten times a second."""
    deadline = time.monotonic() + patience
    while not (found := holds()):
        if time.monotonic() > deadline:
            pytest.fail(f"{otherwise} within {patience:.0f} s.\n{more()}")
        time.sleep(0.1)
    return found


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Skips the test where none can be mounted, unless engines are required."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(f"no small disk can be mounted: {mounted.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class Influxd(Engine):
    """InfluxDB 2 with an organization, an empty bucket and an all-access token, all made when it first starts."""

    org: Final = "tailspan"
    bucket: Final = "requests"
    token: Final = "an-all-access-token-of-the-tests"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        super().__init__(
            *(program("influxd", "influxd"), "--http-bind-address", self.url.removeprefix("http://")),
            *("--bolt-path", folder / "influxd.bolt", "--engine-path", folder / "engine"),
            *("--sqlite-path", folder / "influxd.sqlite", "--reporting-disabled"),
            log=folder / "influxd.log",
            ready=f"{self.url}/health",
        )

    def set_up(self) -> "Influxd":
        """Started, with all of the above."""
        self.start()
        first = {"username": "owner", "password": "password-of-the-tests", "org": self.org, "bucket": self.bucket}
        self.ask("POST", "/api/v2/setup", json={**first, "token": self.token}, headers={}).raise_for_status()
        return self

    @property
    def settings(self) -> dict[str, str]:
        """For a server that answers from it."""
        return {
            "INFLUXDB_V2_URL": self.url,
            "INFLUXDB_V2_TOKEN": self.token,
            "INFLUXDB_V2_ORG": self.org,
            "INFLUXDB_V2_BUCKET": self.bucket,
        }

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Its API, with the all-access token."""
        options = {"headers": {"Authorization": f"Token {self.token}"}, "timeout": 60, **options}
        return httpx.request(method, f"{self.url}{path}", trust_env=False, **options)

    def flux(self, query: str) -> str:
        """The answer as CSV."""
        headers = {"Authorization": f"Token {self.token}", "Accept": "application/csv"}
        body = {"query": query, "dialect": {"annotations": []}}
        answer = self.ask("POST", "/api/v2/query", params={"org": self.org}, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text

    def count(self, kind: str = "request", bucket: str = bucket) -> int:
        """How many points of that kind it has."""
        found = self.flux(
            f'from(bucket: "{bucket}") |> range(start: 0, stop: 2200-01-01T00:00:00Z) '
            f'|> filter(fn: (r) => r._field == "duration_nano" and r["tailspan.kind"] == "{kind}") '
            "|> group() |> count()"
        )
        rows = found.split()
        return int(rows[1].rpartition(",")[2]) if len(rows) > 1 else 0


class Collector(Engine):
    """The stock collector with collector-config.yaml and its queue in a folder. `environment` adds to its settings."""

    def __init__(self, folder: Path, influxd: Influxd | str, token: str | None = None, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.grpc, self.http, self.metrics_port, health = (free_port() for _ in range(4))
        self.endpoint = f"http://127.0.0.1:{self.http}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        url = influxd if isinstance(influxd, str) else influxd.url
        super().__init__(
            *(program("collector", "otelcol-contrib"), "--config", ROOT / "collector-config.yaml"),
            "--feature-gates=ottl.set.allowNil",
            log=folder / "collector.log",
            ready=f"http://127.0.0.1:{health}",
            environment={
                "INFLUXDB_V2_URL": url,
                "INFLUXDB_V2_ORG": Influxd.org,
                "INFLUXDB_V2_BUCKET": Influxd.bucket,
                "INFLUXDB_V2_TOKEN": token or Influxd.token,
                "TAILSPAN_COLLECTOR_QUEUE": str(folder / "queue"),
                "TAILSPAN_COLLECTOR_GRPC": f"127.0.0.1:{self.grpc}",
                "TAILSPAN_COLLECTOR_HTTP": f"127.0.0.1:{self.http}",
                "TAILSPAN_COLLECTOR_HEALTH": f"127.0.0.1:{health}",
                "TAILSPAN_COLLECTOR_METRICS_HOST": "127.0.0.1",
                "TAILSPAN_COLLECTOR_METRICS_PORT": str(self.metrics_port),
                **environment,
            },
        )

    def metric(self, name: str, **labels: str) -> float:
        """A value of its own metrics, summed over what the labels leave open; 0 where it has none."""
        total = 0.0
        for line in httpx.get(self.metrics_url, trust_env=False).text.splitlines():
            key, _, value = line.rpartition(" ")
            plain, _, given = key.partition("{")
            if plain in (name, f"{name}_total") and all(f'{label}="{text}"' in given for label, text in labels.items()):
                total += float(value)
        return total
