"""Tools of a service, declared in the settings file: what it answers, and what they say where it does not."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest
from fastapi import FastAPI
from mcp import Client
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from tailspan_mcp.declared import ANALYTICS, TAILNET, SettingError
from tailspan_mcp.server import create_server, wrong_entries
from tailspan_mcp.settings import Settings
from tailspan_mcp.tools.service import upstream
from tailspan_otel import instrument

from tests.mcp_server.conftest import Serving, Told, ask, refused
from tests.mcp_server.factory import Factory, factory_of, price, running
from tests.stack.engines import until

pytestmark = pytest.mark.anyio

OWN: Final = """
language = "es"
[services.heating]
url = "URL"
headers = { Authorization = "Bearer ${BOILER_KEY}" }
[[services.heating.tools]]
name = "get_boiler"
description = "What a boiler logged."
path = "/boiler/{id}/log"
parameters.id = { place = "path" }
parameters.sort = { upstream = "kind", choices = ["hot", "cold"], default = "hot" }
keep = ["data.id", "data.kind", "data.key"]
"""
PATIENT: Final = """
[services.factory]
url = "{url}"
tools = [{{ name = "get_price", description = "…", path = "/ree/prices/latest", timeout_s = 60 }}]
"""
CONDITIONS: Final = {"price": 0.12, "temp": 22, "humidity": 55}
TEN: Final[dict[str, tuple[dict[str, Any], str, Any]]] = {
    "get_current_price": (
        {},
        "price: 0.1234 · period: P2 · timestamp: 2026-03-01T00:00:00Z",
        {"price": 0.1234, "period": "P2", "timestamp": "2026-03-01T00:00:00Z"},
    ),
    "get_current_weather": (
        {},
        "temp: 22.5 · humidity: 55 · pressure: 1013",
        {"temp": 22.5, "humidity": 55, "pressure": 1013},
    ),
    "get_system_health": (
        {},
        "status: healthy · influxdb: ok · ree: ok",
        {"status": "healthy", "influxdb": "ok", "ree": "ok"},
    ),
    "get_weekly_forecast": (
        {},
        "predictions: 168",
        {
            "predictions": {
                "rows": 168,
                "timestamp": {"from": "2026-03-01T00:00:00Z", "step": "60 min"},
                "price": [price(n) for n in range(168)],
            }
        },
    ),
    "get_optimal_windows": (
        {"days": 2},
        "windows: 2",
        {"windows": [{"day": day, "hours": "02-05h", "price": 0.06} for day in ("Sun", "Mon")]},
    ),
    "get_production_recommendation": (
        CONDITIONS,
        "recommendation: Optimal",
        {"recommendation": "Optimal", "for": {"price_eur_kwh": 0.12, "temperature": 22.0, "humidity": 55.0}},
    ),
    "get_siar_analysis": (
        {},
        "correlations, thresholds",
        {"correlations": {"temp": 0.049}, "thresholds": {"p90": 28.8}},
    ),
    "get_daily_optimization": (
        {"target_date": "2026-03-02", "target_kg": 240},
        "date: 2026-03-02 · plan: 24",
        {"date": "2026-03-02", "plan": {"rows": 24, "hour": {"from": 0, "step": 1}, "kg": {"all": 10.0}}},
    ),
    "get_predictive_alerts": (
        {},
        "alerts: 1",
        {"alerts": [{"type": "price_spike", "message": "0.21 EUR/kWh at 20:00"}]},
    ),
    "get_savings_tracking": ({}, "daily_savings: 4.55 · weekly: 31.85", {"daily_savings": 4.55, "weekly": 31.85}),
}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Factory, str]]:
    with factory_of() as found:
        yield found


@pytest.fixture
def factory(both: tuple[Factory, str]) -> Iterator[Factory]:
    yield both[0]
    both[0].fault = None


@pytest.fixture
def url(both: tuple[Factory, str]) -> str:
    return both[1]


def read(folder: Path, text: str, **environ: str) -> Settings:
    (folder / "settings.toml").write_text(text)
    return Settings.read({"TAILSPAN_SETTINGS": str(folder / "settings.toml"), **environ})


@asynccontextmanager
async def of(settings: Settings) -> AsyncIterator[Client]:
    async with Client(create_server(settings, only="service")) as client:
        yield client


@asynccontextmanager
async def the_ten(folder: Path, url: str) -> AsyncIterator[Client]:
    text = f'[services.factory]\nurl = "{url}"\npreset = "chocolate-factory"'
    async with of(read(folder, text)) as client:
        yield client


async def test_the_ten_tools_answer_what_the_service_does(factory: Factory, url: str, tmp_path: Path) -> None:
    async with the_ten(tmp_path, url) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == list(TEN)
        for name, (arguments, text, data) in TEN.items():
            assert await ask(client, name, **arguments) == Told(text, data)  # within 2 s, or it is an error
    [agent] = factory.user_agents
    assert agent.startswith("tailspan-mcp/")


async def test_any_service_declares_its_own(factory: Factory, url: str, tmp_path: Path) -> None:
    async with of(read(tmp_path, OWN.replace("URL", url), BOILER_KEY="hush")) as client:
        [tool] = (await client.list_tools()).tools
        told = await ask(client, "get_boiler", id="a b?c", sort="cold")
        assert "'..' is no part of a path." in await refused(client, "get_boiler", id="..")
        assert "'hot' or 'cold'" in await refused(client, "get_boiler", id="1", sort="warm")
    assert tool.model_dump(exclude_none=True, by_alias=True) == {
        "name": "get_boiler",
        "description": "What a boiler logged.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "sort": {"default": "hot", "enum": ["hot", "cold"], "type": "string"},
            },
            "required": ["id"],
        },
        "annotations": {"readOnlyHint": True},
    }
    assert told.data == {"data.id": "a b?c", "data.kind": "cold", "data.key": "Bearer hush"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "factory itself answered GET /ree/prices/latest with 500: OPENWEATHERMAP_API_KEY is required."),
        ("404", "factory itself answered GET /ree/prices/latest with 404: Not Found. There is no such path or thing."),
        ("403", "factory itself answered GET /ree/prices/latest with 403: Admins only. Who asks is not allowed there."),
        (
            "proxy 403",
            "The proxy in front of factory (nginx/1.22.1) refused GET /ree/prices/latest with 403; factory itself "
            "never saw it. Let this path through in the proxy's configuration (nginx: a location for it); its error "
            "log says more.",
        ),
        ("uvicorn 500", "factory itself answered GET /ree/prices/latest with 500: Internal Server Error."),
        (
            "nginx 500",
            "factory or a proxy in front of factory (nginx/1.22.1) answered GET /ree/prices/latest with 500: Internal "
            "Server Error. Which of them cannot be known from that: their logs tell.",
        ),
        (
            "nginx nothing",
            "factory or a proxy in front of factory (nginx/1.22.1) answered GET /ree/prices/latest with 500: nothing "
            "more. Which of them cannot be known from that: their logs tell.",
        ),
        (
            "empty 502",
            "The proxy in front of factory does not reach it: 502 to GET /ree/prices/latest. Is it up? Its address is "
            "services.factory.url in the settings.",
        ),
        (
            "text 502",
            "factory or a proxy in front of factory answered GET /ree/prices/latest with 502: Bad Gateway. Which of "
            "them cannot be known from that: their logs tell.",
        ),
        ("own 502", "factory itself answered GET /ree/prices/latest with 502: AEMET is away."),
        (
            "haproxy 503",
            "The proxy in front of factory does not reach it: 503 to GET /ree/prices/latest. Is it up? Its address is "
            "services.factory.url in the settings.",
        ),
        (
            "proxy 502",
            "The proxy in front of factory (nginx/1.22.1) does not reach it: 502 to GET /ree/prices/latest. Is it up? "
            "Its address is services.factory.url in the settings.",
        ),
        (
            "html",
            "factory answered GET /ree/prices/latest with text/html; charset=utf-8 where JSON was expected: is the "
            "path right? Is it up? Its address is services.factory.url in the settings.",
        ),
        ("error inside", "factory answered GET /ree/prices/latest with 200 and an error inside: no model trained"),
        ("status error", "factory answered GET /ree/prices/latest with 200 and an error inside: InfluxDB is away"),
        (
            "error in data",
            "factory answered GET /ree/prices/latest with 200 and an error inside: {'code': 7, 'message': 'no model "
            "trained'}",
        ),
        ("failed data", "factory answered GET /ree/prices/latest with 200 and an error inside: InfluxDB is away"),
        ("all errors", "factory answered GET /ree/prices/latest with 200 and an error inside: no model trained"),
        (
            "graphql",
            "factory answered GET /ree/prices/latest with 200 and an error inside: [{'message': 'no model trained'}]",
        ),
        ("huge", "factory answers with more than 5 MB. Ask for less."),
        (
            "elsewhere",
            "factory redirects GET /ree/prices/latest to localhost, which is not followed. Give the address it "
            "redirects to as the url.",
        ),
        ("circles", "factory redirects /ree/prices/latest in circles."),
        (
            "slow",
            "factory did not answer GET /ree/prices/latest within 2 s. Is it up? Its address is services.factory.url "
            "in the settings.",
        ),
    ],
)
async def test_what_goes_wrong_is_told_with_what_to_do(
    factory: Factory, url: str, tmp_path: Path, fault: str, said: str
) -> None:
    factory.fault = fault
    async with the_ten(tmp_path, url) as client:
        assert await refused(client, "get_current_price") == f"Error executing tool get_current_price: {said}"


POSTED: Final = "POST /predict/production-recommendation"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", f"factory itself answered {POSTED} with 500: OPENWEATHERMAP_API_KEY is required."),
        ("404", f"factory itself answered {POSTED} with 404: Not Found. There is no such path or thing."),
        (
            "html",
            f"factory answered {POSTED} with text/html; charset=utf-8 where JSON was expected: is the path right?",
        ),
        ("error inside", f"factory answered {POSTED} with 200 and an error inside: no model trained"),
        ("elsewhere", f"factory redirects {POSTED} to localhost, which is not followed."),
        ("slow", f"factory did not answer {POSTED} within 2 s."),
    ],
)
async def test_what_goes_wrong_with_a_post_is_told_likewise(
    factory: Factory, url: str, tmp_path: Path, fault: str, said: str
) -> None:
    factory.fault = fault
    async with the_ten(tmp_path, url) as client:
        assert said in await refused(client, "get_production_recommendation", **CONDITIONS)


@pytest.mark.parametrize("fault", ["report", "measure"])
async def test_what_only_looks_like_an_error_is_an_answer(
    factory: Factory, url: str, tmp_path: Path, fault: str
) -> None:
    factory.fault = fault
    async with the_ten(tmp_path, url) as client:
        await ask(client, "get_current_price")


async def test_an_error_on_the_way_to_what_is_kept_is_told(factory: Factory, url: str, tmp_path: Path) -> None:
    factory.fault = "kept"
    for keep in ("plan.day", "plan.day.hours"):
        text = PATIENT.format(url=url).replace("timeout_s = 60", f'keep = ["{keep}"]')
        async with of(read(tmp_path, text)) as client:
            said = await refused(client, "get_price")
        assert said.endswith("factory answered GET /ree/prices/latest with 200 and an error inside: no model trained")


async def test_a_service_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with the_ten(tmp_path, "http://127.0.0.1:1") as client:
        said = await refused(client, "get_current_price")
    assert "factory cannot be asked at http://127.0.0.1:1" in said and "services.factory.url" in said


async def test_a_call_that_is_cancelled_hangs_up_on_the_service(factory: Factory, url: str, tmp_path: Path) -> None:
    factory.fault = "slow"
    factory.asked.clear()
    factory.gone.clear()
    async with of(read(tmp_path, PATIENT.format(url=url))) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "get_price", {})
            assert await anyio.to_thread.run_sync(factory.asked.wait, 10)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(factory.gone.wait, 10)
        factory.fault = None
        assert (await ask(client, "get_price")).data["period"] == "P2"


async def test_what_a_tool_asks_of_a_service_is_recorded_apart_from_people(serve: Serving, tmp_path: Path) -> None:
    tailspan = serve()
    exporter = OTLPSpanExporter(f"{tailspan.url}/v1/traces")
    app = FastAPI(title="factory")
    app.get("/ree/prices/latest")(lambda: {"price": 0.1})
    instrument(app, exporter=exporter)
    with running(app) as url:
        async with the_ten(tmp_path, url) as client:
            await ask(client, "get_current_price")
        httpx.get(f"{url}/ree/prices/latest", headers={"User-Agent": "curl/8"})
        rows = until(lambda: rows_of(tailspan.url, 2), "the calls are not recorded")
    assert [(row["endpoint"], row["traffic"]) for row in rows] == [
        ("/ree/prices/latest", "internal"),
        ("/ree/prices/latest", "agent"),
    ]


def rows_of(url: str, count: int) -> Any:
    found = httpx.get(f"{url}/analytics/access-logs", params={"service": "factory"}).json()["logs"]
    return len(found) >= count and found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("language = 'fr'", "language is 'fr'. It is one of: en, es."),
        ("[services.a]\nurl = 'ftp://x'", "services.a.url is 'ftp://x'. String should match pattern"),
        ("[services.a]\nurl = 'http://u:p@x'", "services.a.url is"),
        ("[services.a]\nurl = 'http://x'\npreset = 'bakery'", "preset is 'bakery'. There is: chocolate-factory."),
        ("[services.a]\nurl = 'http://x'\nheaders = { K = '${NOT_SET}' }", "names ${NOT_SET}, which is not set"),
        ("[services.a]\nurl = 'http://x'\n[[services.a.tools]]\nname = 'b'\ndescription = 'c'", "tools.0.path"),
        (
            "[services.a]\nurl = 'http://x'\ntools = [{ name = 'b', description = 'c', path = '/{d}' }]",
            "services.a.b: 'd' is in the path '/{d}' or among its parameters, but not in both.",
        ),
        (
            "[services.a]\nurl = 'http://x'\n"
            "tools = [{ name = 'b', description = 'c', path = '/', parameters.d = { place = 'body' } }]",
            "a GET has no body",
        ),
        (
            "[services.a]\nurl = 'http://x'\ntools = [{ name = 'b', description = 'c', path = '/', method = 'PUT' }]",
            "services.a.tools.0.method is 'PUT'. Input should be 'GET' or 'POST'.",
        ),
        (
            "[services.a]\nurl = 'http://x'\npreset = 'chocolate-factory'\n"
            "tools = [{ name = 'get_current_price', description = 'c', path = '/' }]",
            "the tool 'get_current_price' is declared twice",
        ),
        (
            "[services.a]\nurl = 'http://x'\ntools = [{ name = 'query_usage', description = 'c', path = '/' }]",
            "'query_usage' is a tool of tailspan's own. Call yours something else.",
        ),
        (
            "[services.a]\nurl = 'http://x'\n"
            "tools = [{ name = 'b', description = 'c', path = '/', parameters.d = { min = 1 } }]",
            "services.a.b.d: min and max are of numbers and integers, and it is a string.",
        ),
        (
            "[services.a]\nurl = 'http://x'\n"
            "tools = [{ name = 'b', description = 'c', path = '/', "
            "parameters.d = { type = 'date', choices = ['e'] } }]",
            "services.a.b.d: choices are of strings, and it is a date.",
        ),
        (
            "[services.a]\nurl = 'http://x'\n"
            "tools = [{ name = 'b', description = 'c', path = '/', "
            "parameters.d = { type = 'integer', default = 'e' } }]",
            "services.a.b.d.default is 'e'. Input should be a valid integer",
        ),
        ("[services.a]\nurl = 'http://x'\ntools = 1", "services.a.tools is 1. It is a list of tables"),
        ("[services]\na = 1", "services.a is 1. A service is a table"),
        ("services = 1", "services is no table"),
    ],
)
def test_a_wrong_entry_is_named_with_its_rule(tmp_path: Path, text: str, said: str) -> None:
    [problem] = read(tmp_path, text).problems
    assert said in problem and str(tmp_path) in problem


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is no TOML"):
        read(tmp_path, "[")


WRONG: Final = """
language = "fr"
[services.broken]
url = "nowhere"
[services.heating]
url = "URL"
preset = "bakery"
[[services.heating.tools]]
name = "query_usage"
description = "Not ours."
path = "/"
[[services.heating.tools]]
name = "get_price"
description = "What it costs."
path = "/ree/prices/latest"
[[services.heating.tools]]
name = "get_price"
description = "Again."
path = "/"
"""


async def test_only_what_is_wrong_is_left_out_and_clients_are_told(url: str, tmp_path: Path) -> None:
    async with Client(create_server(read(tmp_path, WRONG.replace("URL", url)))) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert (await ask(client, "get_price")).data["period"] == "P2"
        told = wrong_entries(client.instructions)
    assert names == [*ANALYTICS, *TAILNET, "get_price"]
    file = tmp_path / "settings.toml"
    assert [one.removeprefix(f"{file}: ") for one in told] == [
        "language is 'fr'. It is one of: en, es.",
        "services.broken.url is 'nowhere'. String should match pattern '^(https?://[^/?#@]+(/[^?#]*)?|unix:/[^?#]*)$'.",
        "services.heating: preset is 'bakery'. There is: chocolate-factory.",
        "services.heating: 'query_usage' is a tool of tailspan's own. Call yours something else.",
        "services.heating: the tool 'get_price' is declared twice. Each needs a name of its own.",
    ]


async def test_tailspans_own_names_are_those_that_nobody_else_may_have() -> None:
    async with Client(create_server(Settings())) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == [*ANALYTICS, *TAILNET]


def test_a_tool_is_waited_for_as_long_as_its_declaration_says(tmp_path: Path) -> None:
    settings = read(tmp_path, PATIENT.format(url="http://127.0.0.1:1"))
    assert upstream(settings.services[0])._client.timeout == httpx2.Timeout(None)
    assert settings.client().timeout == httpx2.Timeout(None)


@pytest.mark.parametrize("name", ["from", "model_config"])
def test_a_parameter_that_python_has_no_name_for_is_refused(tmp_path: Path, name: str) -> None:
    text = PATIENT.replace("timeout_s = 60", f"parameters = {{{{ {name} = {{{{}}}} }}}}").format(
        url="http://127.0.0.1:1"
    )
    [problem] = read(tmp_path, text).problems
    assert f"can be called '{name}'" in problem


def test_secrets_are_one_line_and_are_not_told(tmp_path: Path) -> None:
    text = OWN.replace("URL", "http://127.0.0.1:1")
    services = read(tmp_path, text, BOILER_KEY="hush\n").services
    assert services[0].headers == {"Authorization": "Bearer hush"}
    [problem] = read(tmp_path, text, BOILER_KEY="hush\nhush").problems
    with pytest.raises(SettingError) as told:
        Settings.read({"TAILSPAN_URL": "http://ana:hush@127.0.0.1"})
    assert "hush" not in f"{problem}{told.value}"
