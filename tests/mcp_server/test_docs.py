"""docs/mcp.md says what there is."""

import re
from pathlib import Path

import pytest
from mcp import Client
from tailspan_mcp.declared import ANALYTICS, Parameter, Service, ToolSpec
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings

from tailspan.query import DIMENSIONS, FILTERS, METRICS
from tests.mcp_server.conftest import Tailspan, ask
from tests.server.spans import span

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "mcp.md").read_text("utf-8")


def names(head: str) -> list[str]:
    """The first cells of the table with this head."""
    rows = TEXT.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.anyio
async def test_every_tool_is_in_the_table() -> None:
    async with Client(create_server(Settings())) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert names("tool") == list(tools)
    said = tools["query_usage"].description or ""
    assert set(METRICS) | set(DIMENSIONS) <= set(re.findall(r"\w+", said))
    assert set(FILTERS) - set(DIMENSIONS) == {"user", "kind"} and "user (login), kind (request, view)" in said


def test_every_entry_of_a_declaration_is_in_a_table_and_the_example_is_one(tmp_path: Path) -> None:
    assert {*names("of a service")} == Service.model_fields.keys() - {"name"} | {"preset"}
    assert sorted(names("of a tool")) == sorted(ToolSpec.model_fields)
    assert sorted(names("of a parameter")) == sorted(Parameter.model_fields)
    (tmp_path / "settings.toml").write_text(TEXT.partition("```toml\n")[2].partition("```")[0])
    environ = {"TAILSPAN_SETTINGS": str(tmp_path / "settings.toml"), "FACTORY_KEY": "hush"}
    [service] = Settings.read(environ).services
    assert (len(service.tools), service.headers) == (11, {"Authorization": "Bearer hush"})


@pytest.mark.anyio
async def test_every_entry_that_an_answer_of_analytics_has_is_in_a_table(tailspan: Tailspan) -> None:
    tailspan.send(span(1, ago=60))
    async with tailspan.client() as client:
        answers = [
            (await ask(client, tool, **({"metrics": ["requests"]} if tool == "query_usage" else {}))).data
            for tool in ANALYTICS
        ]
    assert {*names("entry")} == set.intersection(*map(set, answers))
    assert all(f"`{name}`" in TEXT for name in answers[0]["coverage"])


def test_every_message_of_the_list_of_what_goes_wrong_is_expected_by_a_test() -> None:
    """What is in quotation marks is what somebody sees."""
    table = TEXT.partition("| what you see |")[2].splitlines()[2:]
    quoted = [text for row in table if "|" in row for text in re.findall(r'"([^"]+)"', row.split("|")[1])]
    tests = "".join(file.read_text("utf-8") for file in Path(__file__).parent.glob("test_[!d]*.py"))
    parts = [part.strip() for text in quoted for part in text.split("…") if part.strip()]
    assert [part for part in parts if part not in tests] == [] != parts


def test_every_setting_is_in_the_table() -> None:
    assert names("setting") == ["TAILSPAN_URL", "TAILSPAN_TOKEN", "TAILSPAN_TOKEN_FILE", "TAILSPAN_SETTINGS"]
