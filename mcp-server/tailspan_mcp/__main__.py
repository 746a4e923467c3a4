"""The command: an MCP server over stdio, for clients that start it themselves."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import anyio
import httpx2
import typer
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from rich.console import Console
from rich.markup import escape

from tailspan_mcp import clients
from tailspan_mcp.check import Checked
from tailspan_mcp.check import check as calls
from tailspan_mcp.declared import SettingError
from tailspan_mcp.server import Part, create_server
from tailspan_mcp.settings import Settings
from tailspan_mcp.upstream import detail

out = Console(soft_wrap=True, highlight=False, emoji=False)  # what others wrote is shown as it is
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
STATES = {"ok": "[green]ok[/green]     ", "error": "[red]error[/red]  ", "skipped": "[yellow]skipped[/yellow]"}
PATHS: Final = ("TAILSPAN_TOKEN_FILE", "TAILSPAN_SETTINGS")
MCP_PATH: Final = "/analytics/mcp"
HIDDEN: Final = "(from your environment: --write puts it in)"
TRY: Final = "Is that its address, as http://host:port, and does `tailspan serve` run there?"
app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Who uses your services, and what they answer themselves, as tools for Claude and other MCP clients.\n\n"
    "Without a command it speaks MCP over stdin and stdout: it is for clients to start, and waits for one. To set a "
    "client up: [bold]tailspan-mcp config[/bold]. To see whether it works: [bold]tailspan-mcp check[/bold]. A "
    "[bold]tailspan serve[/bold] with the extra tailspan\\[mcp] has the same over HTTP, at /analytics/mcp.\n\n"
    "Settings come from the environment:\n\n"
    "TAILSPAN_URL: where tailspan serve listens; http://127.0.0.1:8100 by default, or unix:/path\n\n"
    "TAILSPAN_TOKEN, or the path of its file in TAILSPAN_TOKEN_FILE: where the server wants one\n\n"
    "TAILSPAN_SETTINGS: the TOML file with language and the services' tools\n\n"
    "Exit codes: 0 it worked · 1 a tool does not answer · 2 wrong usage or setting · 130 Ctrl-C.",
)


class Only(StrEnum):
    analytics = "analytics"
    tailnet = "tailnet"
    service = "service"


OnlyOption = Annotated[
    Only | None,
    typer.Option(help="A part of the tools: tailspan's answers, the tailnet's devices, or the services' own."),
]


@app.callback(invoke_without_command=True)
def stdio(context: typer.Context, only: OnlyOption = None) -> None:
    """Speaks MCP over stdin and stdout until the client closes them."""
    context.obj = only.value if only else None
    if context.invoked_subcommand is None:
        settings = _settings()
        if sys.stdin.isatty():
            err.print("Waiting for an MCP client on stdin. Ctrl-C ends it; `tailspan-mcp --help` says how to have one.")
        create_server(settings, only=context.obj).run()


@app.command()
def check(
    context: typer.Context,
    only: OnlyOption = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Ask a server over HTTP, as Claude Code does, with the token of the settings."
        ),
    ] = None,
) -> None:
    """Calls every tool once: what it answers, how fast, and what to do where it does not.

    \b
    tailspan-mcp check
    tailspan-mcp check --only service
    tailspan-mcp check --http https://dashboard.tail1234.ts.net
    """
    refusals: list[str] = []
    try:
        found = anyio.run(_checked, Settings.read(), only.value if only else context.obj, http, refusals)
    except* Exception as problem:  # whatever the client met: it wraps it in groups of its own
        why = refusals[-1] if refusals else f"{str(_root(problem)).rstrip('.')}. {TRY}"
        raise SettingError(f"{http or 'The server'} cannot be asked: {why}") from None
    tools = [one for one in found if one.tool != "settings"]
    bad = sum(one.state == "error" for one in tools)
    wrong = len(found) - len(tools)
    out.print(f"{len(tools)} tools, {bad} without an answer{f'; {wrong} wrong in the settings' if wrong else ''}")
    if bad or wrong:
        raise typer.Exit(1)


@app.command()
def config(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where clients reach the server; TAILSPAN_URL by default.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the files; what else is in them stays.")] = False,
) -> None:
    """Sets clients up: Claude Code (.mcp.json here), Claude Desktop (its own file), and CLAUDE.md here.

    Without --write it only shows what it would write.

    Claude Desktop gets the settings of now. The token and the services' keys go into its file, for your eyes alone.

    Of TAILSPAN_TOKEN_FILE only the path does.

    \b
    tailspan-mcp config --url https://dashboard.tail1234.ts.net
    TAILSPAN_TOKEN_FILE=~/token tailspan-mcp config --write
    tailspan-mcp --only analytics config --write
    """
    settings = _settings()
    server = (url or settings.url).rstrip("/")
    paths = {key: str(Path(os.environ[key]).expanduser().resolve()) for key in PATHS if os.environ.get(key)}
    secrets = {key: os.environ[key].strip() if write else HIDDEN for key in _secrets(settings, paths)}
    arguments = ["--only", context.obj] if context.obj else []
    code, desktop, memory = Path(".mcp.json"), clients.desktop_file(), Path("CLAUDE.md")
    entries = {desktop: clients.claude_desktop({"TAILSPAN_URL": server, **paths, **secrets}, arguments)}
    if not server.startswith("unix:"):  # which Claude Code cannot ask
        entries = {code: clients.claude_code(server, token=settings.token is not None), **entries}
    if not write:
        for file, entry in entries.items():
            out.print(f"[bold]{escape(str(file))}[/bold]\n{escape(json.dumps(entry, indent=2))}\n")
        out.print(f"[bold]{memory}[/bold]\n{escape(clients.PARAGRAPH)}")
        return
    texts = {file: clients.merged(file, entry) for file, entry in entries.items()}
    texts[memory] = clients.remembered(memory)
    for file, text in texts.items():  # none is written where one of them is not as it should be
        clients.write(file, text, secret=file == desktop and bool(secrets))
    out.print(f"written: {', '.join(escape(str(file)) for file in texts)}")
    if secrets:
        out.print(f"{escape(str(desktop))} has the value of {', '.join(secrets)} in it: only you can read it.")


def _secrets(settings: Settings, paths: dict[str, str]) -> list[str]:
    """The variables whose values a client that has no shell needs."""
    token = [] if "TAILSPAN_TOKEN_FILE" in paths else ["TAILSPAN_TOKEN"]
    return [key for key in (*token, *settings.variables) if os.environ.get(key)]


def _settings() -> Settings:
    """Those of the environment; what is wrong in the file is told, and left out."""
    settings = Settings.read()
    for problem in settings.problems:
        err.print(f"Left out: {escape(problem)}")
    return settings


@asynccontextmanager
async def _client(
    settings: Settings, only: Part | None, http: str | None, refusals: list[str]
) -> AsyncIterator[Client]:
    if http is None:
        async with Client(create_server(settings, only=only)) as client:
            yield client
        return

    async def note(response: httpx2.Response) -> None:
        """What the protocol's client does not tell."""
        if response.is_error:
            refusals.append(f"{response.status_code}, {detail(await response.aread())}")

    url = http if urlsplit(http).path.strip("/") else http.rstrip("/") + MCP_PATH
    async with replace(settings, url=url).client() as asking:
        asking.event_hooks = {"response": [note]}
        async with Client(streamable_http_client(url, http_client=asking)) as client:
            yield client


async def _checked(settings: Settings, only: Part | None, http: str | None, refusals: list[str]) -> list[Checked]:
    found = []
    first: dict[str, str] = {}  # which tool said it: a server that is away would be told of a dozen times
    async with _client(settings, only, http, refusals) as client:
        async for one in calls(client, only):
            found.append(one)
            said = one.said if first.setdefault(one.said, one.tool) == one.tool else f"as {first[one.said]}"
            out.print(f"{STATES[one.state]} {one.milliseconds:6.0f} ms  [bold]{one.tool}[/bold]  {escape(said)}")
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
        err.print(escape(str(problem)))
        sys.exit(2)


if __name__ == "__main__":
    main()
