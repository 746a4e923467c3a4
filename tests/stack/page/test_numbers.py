"""The numbers that people read are the endpoints', and both are what the definitions in plain Python say."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from random import Random
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import Page, Response

from tailspan.encode import batches
from tailspan.ingest import otlp
from tailspan.labels import Labels
from tailspan.query import Aggregate, Range, Rows, ending, nanoseconds
from tailspan.reports import iso, rounded
from tailspan.span import Span
from tests.server import reference
from tests.server.reference import SECOND
from tests.server.spans import PROTOBUF
from tests.server.test_reference import START, at
from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import WIDGET, Stage
from tests.stack.page.test_card import LOADED
from tests.stack.page.test_page import DRAWN
from tests.stack.page.test_phone import VISITS, at_once, is_in_time

SERVICE: Final = "mill"
ROUTES: Final = ("/grind", "/sacks/{id}", "/prices", "/plan")
CARDS: Final = (("Flour", None), ("Flour", "b"), ("Wheat", "a"))
CARD: Final = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A host</title>
<link rel="icon" href="data:,"><main><script type="module" src="{WIDGET}" data-service="{SERVICE}"></script></main>"""


def world(end: datetime) -> list[Span]:
    """Five days of six people with seven devices, a runner and a scanner, as a store reads them."""
    chance, made = Random(9), []
    since = nanoseconds(end - timedelta(days=5)) // SECOND - START // SECOND
    for number in range(6):
        who: dict[str, Any] = {"service": SERVICE, "login": f"p{number}@example.com", "full_name": f"P {number}"}
        for day in range(5):
            device = number + (number == 5 and day % 2)  # the last has two
            has: dict[str, Any] = {
                "node": f"box-{device}",
                "node_id": f"n{device}MILL",
                "address": f"100.90.0.{device + 1}",
            }
            moment = since + day * 86_400 + number * 3_600 + chance.randrange(600) * 6
            made.append(at(moment, **who, **has, traffic="page", page="/mill", route="/mill", path="/mill"))
            for _ in range(chance.randrange(1, 9)):
                moment += chance.choice((2, 6, 600, 2_400))
                did: dict[str, Any] = {"page": "/mill", "traffic": chance.choice(("api", "api", "api", "poll"))}
                did |= {"route": chance.choice(ROUTES), "duration_ns": chance.randrange(1, 900) * reference.MS}
                made.append(at(moment, **who, **has, **did, status=chance.choice((200, 200, 200, 404, 503))))
            card, variant = chance.choice(CARDS)
            seen: dict[str, Any] = {
                "kind": "view",
                "source": "page",
                "card": card,
                "variant": variant,
                "duration_ns": None,
            }
            seen |= {"route": None, "path": None, "status": None, "method": "_OTHER", "page": "/mill"}
            made.append(at(moment + 1, **who, **has, **seen, visible_ms=6_000 * chance.randrange(1, 40)))
    nobody: dict[str, Any] = {"service": SERVICE, "login": None, "full_name": None, "page": None, "address": None}
    made.append(at(since + 50, **nobody, caller="tagged", tags="tag:ci", node="runner", node_id="n9MILL"))
    made.append(at(since + 70, **nobody, caller="unknown", route=None, path="/wp-admin", status=404))
    return [span for batch in batches(made) for span in otlp.read(batch.body, otlp.PROTOBUF, "", 2**62).spans]


def deliver(stage: Stage, spans: Sequence[Span]) -> None:
    for batch in batches(spans):
        httpx.post(f"{stage.otlp}/v1/traces", content=batch.body, headers=PROTOBUF, trust_env=False).raise_for_status()
    asked: dict[str, str | int] = {"ask": "rows", "kind": "request,view", "service": SERVICE, "limit": 1000}
    views = sum(span.kind == "view" and span.login is not None for span in spans)
    there = views + sum(span.kind == "request" for span in spans)
    until(lambda: len(stage.ask.get("/analytics/query", params=asked).json()["rows"]) == there, "not all arrived")


def asked_for(question: dict[str, Any]) -> Aggregate:
    """The question that an answer repeats."""
    names: Any = {name: tuple(question[name]) for name in ("metrics", "dimensions", "order")}
    filters = {name: tuple(values) for name, values in question["filters"].items()}
    start, end = (nanoseconds(datetime.fromisoformat(question[name])) for name in ("start", "end"))
    common: Any = {"range": Range(start, end), "zone": question["zone"], "labels": Labels(), "limit": question["limit"]}
    return Aggregate(**names, filters=filters, **common)


def said(rows: Sequence[reference.Row]) -> list[dict[str, Any]]:
    """As the endpoint says it."""

    def value(name: str, one: Any) -> Any:
        if name == "last_seen":
            return iso(one)
        return rounded(one) if name.endswith("_ms") and isinstance(one, float) else one

    return [{name: value(name, one) for name, one in row.items()} for row in rows]


def exact(value: Any) -> Any:
    """To the microsecond: InfluxDB keeps two points of one time apart by a nanosecond."""
    return round(value, 6) if isinstance(value, float) else value


def number(value: Any) -> str:
    """As the page shows it in English."""
    text = f"{Decimal(repr(value)).quantize(Decimal('0.1'), ROUND_HALF_UP):,}"
    return text.removesuffix(".0")


def milliseconds(value: Any) -> str:
    return f"{number(value)} ms"


def duration(seconds: Any) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} s"


def table(page: Page, id: str) -> list[list[str]]:
    texts: list[list[str]] = page.evaluate(
        "(id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) =>"
        "[...row.cells].map((cell) => cell.textContent.trim()))",
        id,
    )
    return texts


@pytest.fixture(scope="module")
def mill(demo: Stage) -> list[Span]:
    """What the demo, as it is started, was told of a mill, beside its own visitors of today."""
    spans = world(datetime.now(UTC).replace(microsecond=0) - timedelta(hours=8))
    deliver(demo, spans)
    return spans


def test_every_number_on_the_page_is_the_endpoints_and_the_definitions(
    demo: Stage, mill: list[Span], opens: Opens
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    start, spans = end - timedelta(days=6), mill
    history = reference.history_of(spans)
    common: Any = {"range": Range(nanoseconds(start), nanoseconds(end)), "zone": "UTC", "labels": Labels()}
    answers: list[Response] = []
    with opens(viewport={"width": 1100, "height": 2000}) as ana:
        ana.page.on("response", lambda one: answers.append(one) if "/analytics/query?" in one.url else None)
        ana.page.goto(
            demo.url("ana", f"/analytics/?lang=en&start={iso(common['range'][0])}&end={iso(common['range'][1])}")
        )
        ana.page.wait_for_selector(DRAWN)
        bodies = [answer.json() for answer in answers]
        shown = {id: table(ana.page, id) for id in ("people", "features", "routes", "cards", "accesses", "rows")}
        seen = ana.page.evaluate("[...document.querySelectorAll('#people time')].map((time) => time.dateTime)")
        newest = ana.page.evaluate("[...document.querySelectorAll('#rows time')].map((time) => time.dateTime)")

    def rows(*metrics: str, by: str, **more: Any) -> list[Any]:
        query = Aggregate(metrics=metrics, dimensions=tuple(by.split(",")), **common, **more)
        return reference.answer_aggregate(query, spans, history).rows

    aggregates = [body for body in bodies if body["question"]["ask"] == "aggregate"]
    for body in aggregates:
        query = asked_for(body["question"])
        told = [{name: exact(row[name]) for name in (*query.dimensions, *query.metrics)} for row in body["rows"]]
        assert told == said(reference.answer_aggregate(query, spans, history).rows)
    assert len(aggregates) == 7

    people = rows("sessions", "session_time_s", by="person")
    devices = rows("requests", by="person,device")
    last = {row["person"]: row["last_seen"] for row in rows("last_seen", by="person")}
    of = {row["person"]: [str(one["device"]) for one in devices if one["person"] == row["person"]] for row in people}
    names = {span.node_id: str(span.node) for span in spans}
    for row in shown["people"]:  # until the server has learnt a name, it shows the id
        row[3] = ", ".join(names.get(one, one) for one in row[3].split(", "))
    assert shown["people"] and [row[:4] for row in shown["people"]] == [
        [
            row["person"],
            number(row["sessions"]),
            duration(row["session_time_s"]),
            ", ".join(names[one] for one in of[row["person"]]),
        ]
        for row in people
    ]
    assert seen == [iso(last[row["person"]]) for row in people]
    features = [row for row in rows("deliberate_calls", "views", "people", by="feature") if row["feature"] is not None]
    features.sort(key=lambda row: -row["deliberate_calls"] - row["views"])
    assert shown["features"] and shown["features"] == [
        [row["feature"], number(row["deliberate_calls"] + row["views"]), number(row["views"]), number(row["people"])]
        for row in features
    ]
    used = {"caller": ("person", "shared"), "traffic": ("page", "api")}
    metrics = ("requests", "p50_ms", "p95_ms", "max_ms", "errors")
    assert shown["routes"] and shown["routes"] == [
        [
            row["endpoint"],
            number(row["requests"]),
            *(milliseconds(row[name]) for name in metrics[1:4]),
            number(row["errors"]),
        ]
        for row in rows(*metrics, by="endpoint", order=("-p95_ms",), filters=used)
    ]
    assert shown["cards"] and shown["cards"] == [
        [
            row["card"],
            row["variant"] or "",
            number(row["views"]),
            duration(row["visible_ms"] / 1000),
            number(row["people"]),
        ]
        for row in rows("views", "visible_ms", "people", by="card,variant")
    ]
    assert [row[1] for row in shown["accesses"]] == [
        number(row["accesses"]) for row in rows("accesses", by="day", order=("day",))
    ]
    requests = reference.answer_rows(Rows(**common, limit=50), spans, history)
    assert newest == [iso(span.start_ns) for span in requests]


def test_every_number_on_the_card_is_the_definitions(demo: Stage, mill: list[Span], opens: Opens) -> None:
    now, spans = datetime.now(UTC), mill
    history = reference.history_of(spans)
    common: Any = {"range": ending(now, timedelta(days=7)), "zone": "UTC", "labels": Labels()}
    total: dict[str, Any] = {}
    for metrics in (("sessions",), ("people", "accesses")):
        query = Aggregate(metrics=metrics, **common)
        [row] = reference.answer_aggregate(query, spans, history).rows
        total |= row
    usage = reference.dashboard_usage(query, spans, history)
    used = reference.of_range(query, spans, history)
    features = reference.most(Counter(one.feature for one in used if one.feature and one.person), 5)
    no_icon = "Failed to load resource: the server responded with a status of 404"  # of what is no page
    with opens(no_icon, viewport={"width": 1100, "height": 2000}) as ana:
        ana.page.goto(demo.url("ana", "/health"))
        ana.page.set_content(CARD)
        ana.page.wait_for_selector(LOADED)
        card = ana.card()
    assert card["numbers"] == [number(total[name]) for name in ("sessions", "people", "accesses")]
    assert card["days"] == [number(day["accesses"]) for day in usage["accesses_by_day"]]
    assert card["features"] == [f"{name} {number(count)}" for name, count in features]
    assert card["active"] == []


# last: what was asked of InfluxDB before a history arrives is asked again a minute later only
def test_of_the_demo_as_it_is_started_you_too_are_on_the_card_within_three_seconds(demo: Stage, opens: Opens) -> None:
    with opens(viewport={"width": 1100, "height": 2400}) as ana:
        ana.page.goto(demo.url("ana"))
        ana.page.wait_for_selector(LOADED)

        def visited() -> bool:
            with opens() as you:
                opened = at_once(you, f"{demo.front}/dashboard")
                return is_in_time(demo, ana.page, "you", "You your-laptop · /dashboard", opened)

        assert any(visited() for _ in range(VISITS))
