"""The command: an MCP server over stdio, for clients that start it themselves."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import anyio
import typer
from mcp import Client
from rich.console import Console
from rich.markup import escape

from tailspan_mcp import clients
from tailspan_mcp.check import Checked
from tailspan_mcp.check import check as calls
from tailspan_mcp.declared import SettingError
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True)
STATES = {"ok": "[green]ok[/green]     ", "error": "[red]error[/red]  ", "skipped": "[yellow]skipped[/yellow]"}
PASSED_ON = ("TAILSPAN_TOKEN_FILE", "TAILSPAN_SETTINGS")
app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Answers of tailspan and of your services as tools for Claude and other MCP clients.\n\n"
    "Without a command it speaks MCP over stdin and stdout: a client starts it. A server started with "
    "[bold]tailspan serve[/bold] has the same at /analytics/mcp.\n\n"
    "Settings come from the environment: TAILSPAN_URL (http://127.0.0.1:8100), TAILSPAN_TOKEN or TAILSPAN_TOKEN_FILE, "
    "TAILSPAN_SETTINGS (the TOML file with language and services).\n\n"
    "Exit codes: 0 it worked · 1 a tool does not answer · 2 wrong usage or setting.",
)


class Only(StrEnum):
    analytics = "analytics"
    tailnet = "tailnet"
    service = "service"


@app.callback(invoke_without_command=True)
def stdio(
    context: typer.Context,
    only: Annotated[Only | None, typer.Option(help="Only these tools.")] = None,
) -> None:
    """Speaks MCP over stdin and stdout until the client closes them.

    \b
    tailspan-mcp
    TAILSPAN_URL=http://100.64.0.5:8100 TAILSPAN_TOKEN_FILE=token tailspan-mcp --only analytics
    """
    if context.invoked_subcommand is None:
        create_server(Settings.read(), only=only.value if only else None).run()


@app.command()
def check(
    only: Annotated[Only | None, typer.Option(help="Only these tools.")] = None,
    http: Annotated[
        str | None, typer.Option(metavar="URL", help="Over HTTP instead: http://host/analytics/mcp")
    ] = None,
) -> None:
    """Calls every tool once: what it answers, how fast, and what to do where it does not.

    \b
    tailspan-mcp check
    tailspan-mcp check --http http://127.0.0.1:8100/analytics/mcp
    """
    server = Client(http) if http else Client(create_server(Settings.read(), only=only.value if only else None))
    try:
        found = anyio.run(_checked, server)
    except* Exception as problem:  # whatever the client met: it wraps it in groups of its own
        raise SettingError(f"{http or 'The server'} cannot be asked: {_root(problem)}.") from None
    bad = sum(one.state == "error" for one in found)
    out.print(f"{len(found)} tools, {bad} without an answer")
    if bad:
        raise typer.Exit(1)


@app.command()
def config(
    url: Annotated[str | None, typer.Option(help="Of the server, as clients reach it; else TAILSPAN_URL.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write them: what else is in the files stays.")] = False,
) -> None:
    """What to tell Claude Code (.mcp.json), Claude Desktop and CLAUDE.md. Shows it, or writes it.

    \b
    tailspan-mcp config --url https://dashboard.tail1234.ts.net
    tailspan-mcp config --write
    """
    settings = Settings.read()
    server = (url or settings.url).rstrip("/")
    code = clients.claude_code(server, token=settings.token is not None)
    passed = {key: str(Path(os.environ[key]).expanduser().resolve()) for key in PASSED_ON if os.environ.get(key)}
    desktop = clients.claude_desktop({"TAILSPAN_URL": server, **passed})
    files = {clients.desktop_file(): desktop}
    if not server.startswith("unix:"):  # which Claude Code cannot ask
        files = {Path(".mcp.json"): code, **files}
    for file, entry in files.items():
        if write:
            clients.merge(file, entry)
        else:
            out.print(f"[bold]{file}[/bold]\n{escape(json.dumps(entry, indent=2))}\n")
    if write:
        clients.remember(Path("CLAUDE.md"))
        out.print(f"written: {', '.join(map(str, [*files, 'CLAUDE.md']))}")
    else:
        out.print(f"[bold]CLAUDE.md[/bold]\n{escape(clients.PARAGRAPH)}")


async def _checked(server: Client) -> list[Checked]:
    found = []
    async with server as client:
        async for one in calls(client):
            found.append(one)
            out.print(f"{STATES[one.state]} {one.milliseconds:6.0f} ms  [bold]{one.tool}[/bold]  {escape(one.said)}")
    return found


def _root(problem: BaseException) -> BaseException:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except SettingError as problem:
        err.print(escape(str(problem)), highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
