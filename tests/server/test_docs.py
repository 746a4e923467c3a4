"""What has a name is in the documentation, in the words of the code."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from tailspan.config import KEYS, Headscale, Settings, TailscaleAPI
from tailspan.directory import sources_of
from tailspan.labels import CHECKERS, FEATURES, TABLES, parse
from tailspan.query import DIMENSIONS, FILTERS, METRICS, Name
from tailspan.reports import Source
from tailspan.reports.query import Asked

DOCS = Path(__file__).parents[2] / "docs"


def rows(text: str) -> list[list[str]]:
    """The cells of each row of a table, its head left out."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [
        cells
        for cells in found
        if not cells[0].startswith(("name", "entry", "key", "parameter", "state", "source", "---"))
    ]


def section(file: str, start: str, end: str = "\n## ") -> str:
    text = (DOCS / file).read_text("utf-8")
    return text.partition(start)[2].partition(end)[0]


@pytest.mark.parametrize(("title", "table"), [("Metrics", METRICS), ("Dimensions", DIMENSIONS), ("Filters", FILTERS)])
def test_each_name_of_the_grammar_is_documented_with_what_it_is_of(title: str, table: Mapping[str, Name]) -> None:
    assert rows(section("query.md", f"\n## {title}\n")) == [
        [f"`{name}`", ", ".join(sorted(f"{kind}s" for kind in entry.kinds)), entry.meaning]
        for name, entry in table.items()
    ]


def test_each_parameter_of_a_question_is_documented() -> None:
    told = {name for cells in rows(section("query.md", "\n## Asking\n")) for name in re.findall(r"`(\w+)`", cells[0])}
    assert told == Asked.model_fields.keys() - {"filters", "without"} | {"format"}


def test_each_entry_of_the_settings_file_is_documented_and_the_example_is_one() -> None:
    meaning = section("settings.md", "\n## Of meaning", "\n## no such")
    entries = {**TABLES, **FEATURES, **CHECKERS}
    assert [cells[0].strip("`") for cells in rows(meaning)] == [*TABLES, *FEATURES, *CHECKERS]
    assert {cells[0].strip("`"): cells[1] for cells in rows(meaning)} == entries
    labels = parse(meaning.partition("```toml\n")[2].partition("```")[0])
    assert (labels.zone, labels.polls, len(labels.checkers)) == ("Europe/Madrid", ("/status",), 1)
    assert all((labels.pages, labels.cards, labels.card_features, labels.route_features, labels.page_features))
    assert labels.openapi == {"dashboard": "http://127.0.0.1:8000/openapi.json", "heating": "heating.json"}


def test_each_key_of_the_environment_is_documented() -> None:
    told = {
        name for cells in rows(section("settings.md", "\n## Of the server")) for name in re.findall(r"\w+", cells[0])
    }
    assert told == KEYS


def test_each_source_of_the_tailnet_is_documented_in_the_order_in_which_it_is_believed() -> None:
    settings = Settings(
        status="/status.json",
        headscale=Headscale("https://headscale.example", "key"),
        tailscale=TailscaleAPI(key="key"),
    )
    told = [(cells[0].strip("`"), cells[2]) for cells in rows(section("tailnet.md", "\n## Sources\n"))]
    every = {10: "10 s", 30: "30 s", 300: "5 min"}
    assert told == [(source.name, every[int(source.every_s)]) for source in sources_of(settings)]


def test_each_state_of_a_source_is_documented() -> None:
    def words(kind: Any) -> set[str]:
        return {kind} if isinstance(kind, str) else {word for part in get_args(kind) for word in words(part)}

    told = [cells[0].strip("`") for cells in rows(section("influxdb.md", "\n## What sources say\n"))]
    assert (set(told), len(told)) == (words(Source.model_fields["state"].annotation), len(set(told)))
