"""The protocol's own conformance suite against our MCP server: what applies to any server."""

import platform
import subprocess
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.conftest import Launch
from tests.stack.foreign import node_modules

SUITE: Final = Path(__file__).parent / "conformance"
# The others call tools, prompts and resources of the suite's own example server.
GENERAL: Final = (
    "server-initialize",
    "ping",
    "tools-list",
    "tools-call-error",
    "resources-list",
    "prompts-list",
    "server-sse-multiple-streams",  # warns that there is no session: there is none on purpose
    "dns-rebinding-protection",
)


@pytest.fixture(scope="module")
def suite() -> tuple[Path, Path]:
    """Node 22 and the suite's program."""
    modules = node_modules(SUITE)
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    package = modules / "@modelcontextprotocol" / "conformance"
    return modules / f"node-linux-{machine}" / "bin" / "node", package / "dist" / "index.js"


def test_every_general_scenario_of_the_conformance_suite_passes(
    launch: Launch, tmp_path: Path, suite: tuple[Path, Path]
) -> None:
    settings = {"TAILSPAN_DB": str(tmp_path / "t.duckdb"), "TAILSPAN_LISTEN": "127.0.0.1:0", "TS_SOCKET": "/nowhere"}
    url = launch("tailspan", "serve", **settings).line().split()[3]
    for scenario in GENERAL:
        command = [*suite, "server", "--url", f"{url}/analytics/mcp", "--scenario", scenario]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0 and "FAILURE" not in done.stdout, f"{scenario}:\n{done.stdout}{done.stderr}"
        assert "SUCCESS" in done.stdout or "provides session ID" in done.stdout, done.stdout
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
