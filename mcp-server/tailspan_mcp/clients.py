"""What clients have to be told: Claude Code's and Claude Desktop's files, and a paragraph for CLAUDE.md."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from tailspan_mcp.declared import SettingError

BEGIN: Final = "<!-- tailspan -->"
END: Final = "<!-- /tailspan -->"
PARAGRAPH: Final = f"""{BEGIN}
## Who uses what

Questions about use, people, devices and speed of our services are answered by the MCP server `tailspan`: who is there
now (`get_active_users`), what is used and by whom (`get_usage_stats`), what is slow or fails
(`get_system_performance`), the tailnet's devices (`tailscale_*`), and anything else (`query_usage`). Tell what `gaps`
says, and the window of a number; a number that no tool gave is not known.
{END}
"""


def claude_code(url: str, token: bool) -> dict[str, Any]:
    """For .mcp.json of a project. Claude Code puts the variable in; no token is in the file."""
    headers = {"headers": {"Authorization": "Bearer ${TAILSPAN_TOKEN}"}} if token else {}
    return {"mcpServers": {"tailspan": {"type": "http", "url": f"{url}/analytics/mcp", **headers}}}


def claude_desktop(environ: dict[str, str]) -> dict[str, Any]:
    """For its claude_desktop_config.json: it starts the server itself, and gives it these settings."""
    program = shutil.which("tailspan-mcp")
    command = {"command": program} if program else {"command": sys.executable, "args": ["-m", "tailspan_mcp"]}
    return {"mcpServers": {"tailspan": {**command, "env": environ}}}


def desktop_file() -> Path:
    """Where Claude Desktop reads it."""
    if sys.platform == "darwin":
        folder = Path("~/Library/Application Support/Claude").expanduser()
    elif sys.platform == "win32":
        folder = Path(os.environ["APPDATA"]) / "Claude"
    else:
        folder = Path("~/.config/Claude").expanduser()
    return folder / "claude_desktop_config.json"


def merge(file: Path, entry: dict[str, Any]) -> None:
    """Puts the entry of `mcpServers` there and leaves all else as it is. Raises SettingError for what is no JSON."""
    try:
        content = json.loads(file.read_text("utf-8")) if file.exists() else {}
        servers = content.setdefault("mcpServers", {})
        servers.update(entry["mcpServers"])
    except (ValueError, AttributeError) as problem:
        raise SettingError(f"{file} is not as clients write it, and stays as it is: {problem}.") from None
    _write(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def remember(file: Path) -> None:
    """The paragraph, once: an earlier one is replaced."""
    text = file.read_text("utf-8") if file.exists() else ""
    before, begun, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].removeprefix("\n") if begun else ""
    gap = "\n" if before and not begun else ""
    _write(file, f"{before}{gap}{PARAGRAPH}{after}")


def _write(file: Path, text: str) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, "utf-8")
    new.replace(file)
