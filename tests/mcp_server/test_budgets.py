"""What Claude has to read stays small: the tools themselves, and any answer, whatever there is to tell."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from bpe_openai import get_encoding  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from tailspan_mcp.answers import BUDGET, fit, tokens
from tailspan_mcp.server import create_server
from tailspan_mcp.settings import Settings

from tailspan.span import Span
from tests.mcp_server.conftest import Tailspan, ask
from tests.mcp_server.factory import factory_of
from tests.mcp_server.test_service import TEN
from tests.server.spans import NOW, NOW_NS, SECOND

TOOLS: Final = 3000
ANSWER: Final = 1500
PEOPLE: Final = 500
DAY: Final = 86400 * SECOND
ENCODING: Final = get_encoding("o200k_base")
PRESET: Final = '[services.factory]\nurl = "{url}"\npreset = "chocolate-factory"'


def counted(*texts: str) -> int:
    return len(ENCODING.encode("".join(texts)))


def request(number: int, start_ns: int, chance: Random) -> Span:
    """One of a person's on one of 120 routes; each hundredth fails."""
    person, route = number % PEOPLE, f"/factory/{chance.randrange(120)}/production-line/details"
    return Span(
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_id=None,
        start_ns=start_ns,
        duration_ns=chance.randrange(10**6, 10**9),
        path=route,
        visible_ms=None,
        open_ns=None,
        service=f"service-{person % 20}",
        environment="production",
        method="GET",
        route=route,
        status=500 if chance.random() < 0.01 else 200,
        login=f"firstname.lastname-{person}@department.example.com",
        full_name=f"Firstname Lastname {person}",
        node=f"laptop-of-firstname-{person}",
        node_id=f"nodeid{person:06}CNTRL",
        tags=None,
        address=f"100.64.{person // 250}.{person % 250}",
        guess=None,
        source="live",
        identity_source="serve_header",
        proven=True,
        caller="person",
        traffic=chance.choice(("page", "api")),
        page="/dashboard/of/the/factory",
        client_address=None,
        user_agent=None,
        schema=1,
    )


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailspan]:
    """A year of 500 people who were all here in the last minutes."""
    chance, running = Random(1), Tailspan(tmp_path_factory.mktemp("year") / "t.duckdb")
    past = [request(n, NOW_NS - n * 365 * DAY // 40_000, chance) for n in range(500, 40_000)]
    running.store.write([*past, *(request(n, NOW_NS - n * SECOND // 4, chance) for n in range(PEOPLE))], [])
    yield running
    running.store.close()


@pytest.mark.anyio
async def test_all_tools_together_are_at_most_3000_tokens(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(PRESET.format(url="http://127.0.0.1:1"))
    async with Client(create_server(Settings.read({"TAILSPAN_SETTINGS": str(tmp_path / "settings.toml")}))) as client:
        tools = (await client.list_tools()).tools
    assert len(tools) == 18
    shown = [tool.model_dump_json(by_alias=True, exclude_none=True) for tool in tools]
    assert counted(*shown) <= TOOLS, [(tool.name, counted(one)) for tool, one in zip(tools, shown, strict=True)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("get_active_users", {}),
        ("get_usage_stats", {}),
        ("get_usage_stats", {"days": 30}),
        ("get_system_performance", {}),
        ("query_usage", {"metrics": ["requests"], "dimensions": ["person"]}),
        ("query_usage", {"metrics": ["requests", "p95_ms"], "dimensions": ["endpoint", "person"], "limit": 200}),
        ("query_usage", {"ask": "rows"}),
        ("query_usage", {"ask": "sessions"}),
    ],
)
async def test_an_answer_about_500_people_is_at_most_1500_tokens(
    year: Tailspan, tool: str, arguments: dict[str, Any]
) -> None:
    async with year.client() as client:
        told = await ask(client, tool, **arguments)
    data = json.dumps(told.data, ensure_ascii=False, separators=(",", ":"))
    assert counted(told.text, data) <= ANSWER, data
    assert "more" in data or "left_out" in data or tool == "get_system_performance"


@pytest.mark.anyio
async def test_an_answer_of_a_service_is_at_most_1500_tokens(tmp_path: Path) -> None:
    with factory_of() as (_, url):
        (tmp_path / "settings.toml").write_text(PRESET.format(url=url))
        settings = Settings.read({"TAILSPAN_SETTINGS": str(tmp_path / "settings.toml")})
        async with Client(create_server(settings, only="service")) as client:
            for tool, (arguments, *_) in TEN.items():
                told = await ask(client, tool, **arguments)
                assert counted(told.text, json.dumps(told.data, ensure_ascii=False)) <= ANSWER, tool


def test_a_long_list_loses_its_end_and_says_how_much() -> None:
    long = [{"at": NOW.isoformat(), "text": f"line number {n}, that says something"} for n in range(1000)]
    shown = fit({"found": True, "data": {"lines": long}})
    lines = shown["data"]["lines"]
    assert lines["rows"] == len(lines["text"]) > 20
    assert lines["at"] == {"all": NOW.isoformat()}
    assert shown["left_out"] == {"data.lines": f"{1000 - lines['rows']} more"}


def test_even_steps_are_told_by_the_first_and_the_step() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [{"at": (at + timedelta(minutes=15 * n)).isoformat(), "n": n * 2, "odd": n**2} for n in range(5)]
    assert fit({"rows of it": rows}) == {
        "rows of it": {
            "rows": 5,
            "at": {"from": "2026-03-01T00:00:00+00:00", "step": "15 min"},
            "n": {"from": 0, "step": 2},
            "odd": [0, 1, 4, 9, 16],
        }
    }


SIMPLE: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=600)
JSON: Final = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=20), inner, max_size=30),
    max_leaves=100,
)


@given(st.dictionaries(st.text(max_size=20), JSON, max_size=5))
def test_whatever_a_service_answers_fits_and_stays_json(content: dict[str, Any]) -> None:
    shown = fit(content)
    text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(text) == shown
    assert tokens(shown) <= BUDGET or "left_out" in shown


WORDS: Final = [
    *("dashboard", "optimal windows", "producción", "ana@example.com", "/insights/alerts", "laptop-of-ana", "€/kWh"),
]
USUAL: Final = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-(10**12), 10**12),
    st.floats(0, 1000).map(lambda value: round(value, 3)),
    st.datetimes().map(datetime.isoformat),
    st.binary(max_size=16).map(bytes.hex),
    st.none(),
    st.booleans(),
)


@given(st.lists(st.dictionaries(st.sampled_from(WORDS), USUAL), min_size=1))
def test_hardly_ever_fewer_tokens_are_reckoned_with_than_a_tokenizer_counts(content: Any) -> None:
    assert counted(json.dumps(content, ensure_ascii=False, separators=(",", ":"))) <= tokens(content) * 1.05 + 5
