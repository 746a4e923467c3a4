"""The command: what it says, writes and exits with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from tests.mcp_server.conftest import Serving
from tests.mcp_server.factory import factory_of
from tests.mcp_server.test_service import TEN
from tests.mcp_server.test_transports import visit

PRESET = '[services.factory]\nurl = "{url}"\npreset = "chocolate-factory"'


def states(said: str) -> dict[str, str]:
    """By tool."""
    lines = [line.split() for line in said.splitlines() if " ms  " in line]
    return {words[3]: words[0] for words in lines}


def test_check_calls_every_tool_and_says_what_to_do_where_one_fails(
    launch: Launch, serve: Serving, tmp_path: Path
) -> None:
    tailspan = serve()
    visit(tailspan.url)
    with factory_of() as (factory, url):
        (tmp_path / "settings.toml").write_text(PRESET.format(url=url))
        settings = {"TAILSPAN_URL": tailspan.url, "TAILSPAN_SETTINGS": str(tmp_path / "settings.toml")}
        code, said, complaints = launch("tailspan_mcp", "check", **settings).ended()
        factory.fault = "404"
        broken = launch("tailspan_mcp", "check", "--only", "service", **settings).ended()
    analytics = ("get_active_users", "get_usage_stats", "get_system_performance", "query_usage")
    assert states(said) == {
        **dict.fromkeys(analytics, "ok"),
        "tailscale_list_devices": "error",  # no source of the tailnet is set here
        "tailscale_get_device": "skipped",
        "tailscale_get_status": "error",
        "tailscale_who_is": "skipped",
        **dict.fromkeys(TEN, "ok"),
    }
    assert (code, complaints, said.splitlines()[-1]) == (1, "", "18 tools, 2 without an answer")
    assert "1 active: ana@example.com (ana-laptop) on /dashboard." in said and "TAILSCALE_API_KEY" in said
    assert broken[0] == 1 and states(broken[1]) == dict.fromkeys(TEN, "error") and "404" in broken[1]


def test_check_over_http_asks_what_clients_ask(launch: Launch, serve: Serving) -> None:
    tailspan = serve()
    visit(tailspan.url)
    code, said, _ = launch("tailspan_mcp", "check", "--http", f"{tailspan.url}/analytics/mcp").ended()
    assert (code, states(said)["get_active_users"]) == (1, "ok")
    code, _, complaints = launch("tailspan_mcp", "check", "--http", "http://127.0.0.1:1/analytics/mcp").ended()
    assert code == 2 and "http://127.0.0.1:1/analytics/mcp cannot be asked" in complaints


def test_check_says_that_no_server_is_there(launch: Launch) -> None:
    code, said, _ = launch("tailspan_mcp", "check", "--only", "analytics", TAILSPAN_URL="http://127.0.0.1:1").ended()
    assert code == 1 and set(states(said).values()) == {"error"}
    assert said.count("Start it with `tailspan serve`, or set TAILSPAN_URL") == 4


def test_config_writes_what_clients_read_and_keeps_what_is_there(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"other": {"command": "x"}}, "more": 1}')
    (tmp_path / "CLAUDE.md").write_text("# Ours\n")
    (tmp_path / "token").write_text("a-token-of-the-tests\n")
    settings = {"HOME": str(tmp_path), "TAILSPAN_TOKEN_FILE": "token", "TAILSPAN_URL": "http://100.64.0.5:8100"}
    for _ in range(2):  # as often as one likes
        code, said, complaints = launch("tailspan_mcp", "config", "--write", **settings).ended()
        assert (code, complaints) == (0, "") and said.startswith("written: .mcp.json")
    desktop = json.loads((tmp_path / ".config/Claude/claude_desktop_config.json").read_text())["mcpServers"]["tailspan"]
    assert json.loads((tmp_path / ".mcp.json").read_text()) == {
        "mcpServers": {
            "other": {"command": "x"},
            "tailspan": {
                "type": "http",
                "url": "http://100.64.0.5:8100/analytics/mcp",
                "headers": {"Authorization": "Bearer ${TAILSPAN_TOKEN}"},
            },
        },
        "more": 1,
    }
    assert desktop["env"] == {
        "TAILSPAN_URL": "http://100.64.0.5:8100",
        "TAILSPAN_TOKEN_FILE": str(tmp_path / "token"),
    }
    remembered = (tmp_path / "CLAUDE.md").read_text()
    assert remembered.startswith("# Ours\n\n<!-- tailspan -->") and remembered.count("## Who uses what") == 1
    assert "a-token-of-the-tests" not in "".join(
        file.read_text() for file in tmp_path.iterdir() if file.is_file() and file.name != "token"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"TAILSPAN_URL": "localhost"}, "TAILSPAN_URL is 'localhost'. It is http://host:port or unix:/path."),
        ({"TAILSPAN_TOKEN_FILE": "/nowhere"}, "TAILSPAN_TOKEN_FILE is '/nowhere', which cannot be read"),
        ({"TAILSPAN_SETTINGS": "/nowhere"}, "TAILSPAN_SETTINGS is '/nowhere', which cannot be read"),
    ],
)
def test_a_wrong_setting_ends_it_with_its_name_and_rule(launch: Launch, settings: dict[str, Any], said: str) -> None:
    code, output, complaints = launch("tailspan_mcp", **settings).ended()
    assert (code, output) == (2, "") and said in " ".join(complaints.split())
