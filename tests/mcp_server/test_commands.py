"""The command: what it says, writes and exits with."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from tailspan_mcp.declared import ANALYTICS, TAILNET

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
    assert "1 active: ana@example.com (ana-laptop) on /dashboard." in said
    assert said.count("TAILSCALE_API_KEY") == 1 and "tailscale_get_status  as tailscale_list_devices" in said
    assert broken[0] == 1 and states(broken[1]) == dict.fromkeys(TEN, "error") and "404" in broken[1]


def test_check_over_http_asks_what_clients_ask(launch: Launch, serve: Serving) -> None:
    tailspan = serve()
    visit(tailspan.url)
    code, said, _ = launch("tailspan_mcp", "check", "--http", f"{tailspan.url}/analytics/mcp").ended()
    assert (code, states(said)["get_active_users"]) == (1, "ok")
    code, _, complaints = launch("tailspan_mcp", "check", "--http", "http://127.0.0.1:1/analytics/mcp").ended()
    assert code == 2 and "http://127.0.0.1:1/analytics/mcp cannot be asked" in complaints


def test_check_over_http_gives_the_token_and_asks_for_the_part_that_is_wanted(
    launch: Launch, serve: Serving, tmp_path: Path
) -> None:
    token = {"TAILSPAN_TOKEN": "a-token-of-the-tests"}
    with factory_of() as (_, url):
        (tmp_path / "settings.toml").write_text(PRESET.format(url=url))
        tailspan = serve(TAILSPAN_SETTINGS=str(tmp_path / "settings.toml"), TAILSPAN_TRUSTED_PEERS="", **token)
        over = ("check", "--http", tailspan.url, "--only")
        code, said, complaints = launch("tailspan_mcp", *over, "service", **token).ended()
        parts = {part: launch("tailspan_mcp", *over, part, **token).ended()[1] for part in ("analytics", "tailnet")}
        refused = launch("tailspan_mcp", *over, "service", **{**token, "TAILSPAN_TOKEN": "another"}).ended()
    assert (code, states(said), complaints) == (0, dict.fromkeys(TEN, "ok"), "")
    assert {part: list(states(one)) for part, one in parts.items()} == {
        "analytics": list(ANALYTICS),
        "tailnet": list(TAILNET),
    }
    assert refused[0] == 2 and f"{tailspan.url} cannot be asked: 401, " in refused[2]


@pytest.mark.parametrize("arguments", [("check", "--only", "tailnet"), ("--only", "tailnet", "check")])
def test_check_asks_for_the_part_that_is_wanted(launch: Launch, arguments: tuple[str, ...]) -> None:
    _, said, _ = launch("tailspan_mcp", *arguments, TAILSPAN_URL="http://127.0.0.1:1").ended()
    assert list(states(said)) == list(TAILNET)


@pytest.mark.parametrize("over_http", [False, True])
def test_check_names_the_entries_of_the_settings_that_are_wrong(
    launch: Launch, serve: Serving, tmp_path: Path, over_http: bool
) -> None:
    settings = {"TAILSPAN_SETTINGS": str(tmp_path / "settings.toml")}
    with factory_of() as (_, url):
        (tmp_path / "settings.toml").write_text(f'language = "fr"\n{PRESET.format(url=url)}')
        over = ("--http", serve(**settings).url) if over_http else ()
        code, said, _ = launch("tailspan_mcp", "check", "--only", "service", *over, **settings).ended()
    assert states(said) == {"settings": "error", **dict.fromkeys(TEN, "ok")}
    assert "language is 'fr'. It is one of: en, es." in said
    assert (code, said.splitlines()[-1]) == (1, "10 tools, 0 without an answer; 1 wrong in the settings")


def test_check_says_that_no_server_is_there(launch: Launch) -> None:
    code, said, _ = launch("tailspan_mcp", "check", "--only", "analytics", TAILSPAN_URL="http://127.0.0.1:1").ended()
    assert code == 1 and set(states(said).values()) == {"error"}
    assert said.count("Start it with `tailspan serve`, or set TAILSPAN_URL") == 1
    assert said.count("as get_active_users") == 3


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


def test_config_gives_claude_desktop_what_a_shell_would_and_nobody_else_reads_it(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    headers = 'headers = { Authorization = "Bearer ${FACTORY_KEY}" }'
    (tmp_path / "settings.toml").write_text(f"{PRESET.format(url='http://127.0.0.1:1')}\n{headers}")
    secrets = {"TAILSPAN_TOKEN": "a-token-of-the-tests", "FACTORY_KEY": "hush"}
    settings = {"HOME": str(tmp_path), "TAILSPAN_SETTINGS": "settings.toml", **secrets}
    desktop = tmp_path / ".config/Claude/claude_desktop_config.json"
    desktop.parent.mkdir(parents=True)
    desktop.write_text('{"theme": "dark"}')
    desktop.chmod(0o644)
    shown = launch("tailspan_mcp", "config", **settings).ended()
    assert shown[0] == 0 and not any(secret in shown[1] for secret in secrets.values())
    code, said, complaints = launch("tailspan_mcp", "--only", "service", "config", "--write", **settings).ended()
    assert (code, complaints) == (0, "") and "TAILSPAN_TOKEN, FACTORY_KEY" in said and "hush" not in said
    content = json.loads(desktop.read_text())
    entry = content["mcpServers"]["tailspan"]
    assert content["theme"] == "dark" and entry["args"][-2:] == ["--only", "service"]
    assert entry["env"] == {
        "TAILSPAN_URL": "http://127.0.0.1:8100",
        "TAILSPAN_SETTINGS": str(tmp_path / "settings.toml"),
        **secrets,
    }
    assert stat.S_IMODE(desktop.stat().st_mode) == 0o600
    assert "hush" not in (tmp_path / ".mcp.json").read_text() and "a-token" not in (tmp_path / ".mcp.json").read_text()


def test_config_keeps_modes_links_line_ends_and_what_others_wrote(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere, code, memory = tmp_path / "dotfiles.json", tmp_path / ".mcp.json", tmp_path / "CLAUDE.md"
    elsewhere.write_bytes(b"\xef\xbb\xbf{}")
    elsewhere.chmod(0o600)
    code.symlink_to(elsewhere)
    memory.write_bytes(b"# Ours\r\n\r\n<!-- tailspan -->\r\nold\r\n<!-- /tailspan -->\r\n\r\n# More\r\n")
    memory.chmod(0o640)
    assert launch("tailspan_mcp", "config", "--write", HOME=str(tmp_path)).ended()[0] == 0
    assert code.is_symlink() and stat.S_IMODE(elsewhere.stat().st_mode) == 0o600
    assert list(json.loads(elsewhere.read_text())["mcpServers"]) == ["tailspan"]
    text = memory.read_bytes().decode()
    assert stat.S_IMODE(memory.stat().st_mode) == 0o640
    assert text.startswith("# Ours\r\n\r\n<!-- tailspan -->\r\n## Who uses what\r\n")
    assert text.endswith("<!-- /tailspan -->\r\n\r\n# More\r\n") and "old" not in text
    assert text.count("\n") == text.count("\r\n")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("CLAUDE.md", "# Ours\n<!-- tailspan -->\nold\n# More\n", "CLAUDE.md has '<!-- tailspan -->' and no"),
        (".mcp.json", "{", ".mcp.json is not as clients write it, and stays as it is"),
        (".mcp.json", '{"mcpServers": []}', ".mcp.json is not as clients write it, and stays as it is"),
    ],
)
def test_config_writes_nothing_where_one_file_is_not_as_it_should_be(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text(content)
    code, _, complaints = launch("tailspan_mcp", "config", "--write", HOME=str(tmp_path)).ended()
    assert code == 2 and said in " ".join(complaints.split())
    assert (tmp_path / file).read_text() == content
    assert [path.name for path in tmp_path.rglob("*")] == [file]


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
