"""What clients have to be told: Claude Code's and Claude Desktop's files, and a paragraph for CLAUDE.md."""

import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from tailspan_mcp.declared import SettingError

BEGIN: Final = "<!-- tailspan -->"
END: Final = "<!-- /tailspan -->"
OWNER: Final = 0o600
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


def claude_desktop(environ: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """For its claude_desktop_config.json: it starts the server itself, and gives it these settings alone."""
    program = shutil.which("tailspan-mcp")
    command, args = (program, arguments) if program else (sys.executable, ["-m", "tailspan_mcp", *arguments])
    return {"mcpServers": {"tailspan": {"command": command, **({"args": args} if args else {}), "env": environ}}}


def desktop_file() -> Path:
    """Where Claude Desktop reads it."""
    if sys.platform == "darwin":
        folder = Path("~/Library/Application Support/Claude").expanduser()
    elif sys.platform == "win32":
        folder = Path(os.environ["APPDATA"]) / "Claude"
    else:
        folder = Path("~/.config/Claude").expanduser()
    return folder / "claude_desktop_config.json"


def merged(file: Path, entry: dict[str, Any]) -> str:
    """What the file says with this entry of `mcpServers`, and all else as it is. Raises SettingError for no JSON."""
    try:
        content = json.loads(_text(file) or "{}")
        servers = content.setdefault("mcpServers", {})
        servers.update(entry["mcpServers"])
    except (ValueError, AttributeError) as problem:
        raise SettingError(f"{file} is not as clients write it, and stays as it is: {problem}.") from None
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def remembered(file: Path) -> str:
    """What the file says with the paragraph in place of an earlier one. Raises SettingError where that has no end."""
    text = _text(file)
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if begun and not ended:
        raise SettingError(
            f"{file} has {BEGIN!r} and no {END!r} after it, and stays as it is. Put that where our paragraph ends."
        )
    end = "\r\n" if "\r\n" in text else "\n"
    gap = "" if begun or not before else end if before.endswith(end) else end * 2
    paragraph = PARAGRAPH.replace("\n", end)
    return f"{before}{gap}{paragraph}{after.removeprefix(end)}"


def write(file: Path, text: str, secret: bool = False) -> None:
    """All of it or nothing. The file keeps its mode, and stays a link if it is one; a secret is its owner's alone."""
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = OWNER if secret else file.stat().st_mode & 0o777 if file.exists() else _usual()
    with NamedTemporaryFile("wb", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
        new.write(text.encode())
    try:
        os.chmod(new.name, mode)
        os.replace(new.name, file)
    except BaseException:  # Ctrl-C too leaves no half of a file behind, which may hold a token
        os.unlink(new.name)
        raise


def _usual() -> int:
    """The mode of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _text(file: Path) -> str:
    """With the line ends that it has; empty where there is none. Raises SettingError."""
    try:
        return file.read_bytes().decode("utf-8-sig") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingError(f"{file} cannot be read: {problem}.") from None
