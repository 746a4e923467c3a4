"""Programs that tests start: on free ports, ready when they say so, ended by their process ids."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

DEADLINE_S: Final = 120.0
NOWHERE: Final = Path("/nowhere/tailscaled.sock")

# what a shell starts in the background ignores Ctrl-C, and so would the programs that are started from here
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _no_tailnet_of_this_machine() -> Iterator[None]:
    """Whom a developer's own tailscaled knows is none of the tests' business."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("tailspan.config.TAILSCALED", NOWHERE)
        changed.setattr("tailspan.neighbours.SOCKETS", Path(os.devnull))
        yield


class Program:
    """`python -m <command>`, with none of tailspan's settings but these. It gets `deadline_s` seconds to live."""

    def __init__(self, *command: object, deadline_s: float = DEADLINE_S, **settings: str) -> None:
        ours = ("TAILSPAN_", "OTEL_", "INFLUXDB_V2_", "TS_SOCKET", "TAILSCALE_", "TAILNET", "HEADSCALE_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        # a stand-in for tailscaled in the same network is no reason for a server of the tests to ask for a token
        mode = {"TAILSPAN_USERSPACE": "false"} if command[:2] == ("tailspan", "serve") else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            env=environment | {"TS_SOCKET": str(NOWHERE)} | mode | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(deadline_s, self.process.kill)
        self._watchdog.start()

    def line(self) -> str:
        """Its next line; empty where it ended."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit code, what else it said, and what it complained about."""
        self.process.send_signal(how)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """As `end`, for one that ends by itself."""
        rest, complaints = self.process.communicate()
        self._watchdog.cancel()
        return self.process.returncode, rest, complaints


Launch = Callable[..., Program]


@contextmanager
def launching(deadline_s: float = DEADLINE_S) -> Iterator[Launch]:
    """`launch("tailspan", "serve", TAILSPAN_LISTEN="127.0.0.1:0")`: a Program, which nobody need end."""
    programs: list[Program] = []

    def begin(*command: object, **settings: str) -> Program:
        programs.append(Program(*command, deadline_s=deadline_s, **settings))
        return programs[-1]

    try:
        yield begin
    finally:
        for program in reversed(programs):
            program.process.kill()
            program.ended()


@pytest.fixture
def launch() -> Iterator[Launch]:
    with launching() as begin:
        yield begin
