"""The command: an MCP server over stdio, for clients that start it themselves."""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tailspan_mcp.declared import SettingError
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings

err = Console(stderr=True)
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
