"""Answers in a terminal."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="The server's answer as JSON, for other programs.")]
out = Console(emoji=False)  # what others wrote is shown as it is
err = Console(stderr=True, emoji=False)


def show(title: str, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    out.print(f"[italic]{escape(title)}[/italic]", highlight=False)  # a table's own title is as narrow as the table
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "time")
    for row in rows:
        table.add_row(*("-" if value is None else escape(str(value)) for value in row))
    out.print(table)


def complain(sources: list[dict[str, Any]]) -> None:
    """An answer that lacks its source says so."""
    for source in sources:
        if source["state"] != "ok":
            err.print(f"[yellow]{escape(source['name'])}: {source['state']}.[/yellow] {escape(source['message'])}")
