"""Which cards were really looked at, in Chromium: from the tab to the answers of either store."""

from typing import Any

from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage


def views(stage: Stage) -> dict[tuple[str, str | None], tuple[int, int]]:
    """Card and variant → views, and ms it was seen."""
    asked = {"metrics": "views,visible_ms", "dimensions": "card,variant", "service": "factory"}
    rows: list[dict[str, Any]] = stage.ask.get("/analytics/query", params=asked).json()["rows"]
    return {(row["card"], row["variant"]): (row["views"], row["visible_ms"]) for row in rows}


def test_cards_that_were_looked_at_are_counted_once_by_name_and_time_and_others_are_not(
    stage: Stage, opens: Opens
) -> None:
    with opens(viewport={"width": 900, "height": 500}) as ana:
        ana.page.goto(stage.url("ana"))
        ana.page.wait_for_selector("article >> nth=5")
        ana.page.evaluate("document.querySelectorAll('article')[0].dataset.variant = 'b'")
        ana.page.wait_for_timeout(1500)
        ana.page.evaluate("scrollTo(0, document.body.scrollHeight)")  # past the others, to the end and back
        ana.page.wait_for_timeout(300)
        ana.page.evaluate("scrollTo(0, 0)")
        ana.page.wait_for_timeout(1500)
        assert views(stage) == {}
        ana.page.goto("about:blank")
        found = until(lambda: views(stage), "no view arrived")
    names = {card for card, _ in found}
    assert ("Electricity price", "b") in found and "Savings" not in names
    assert {count for count, _ in found.values()} == {1}
    assert 2500 <= found["Electricity price", "b"][1] <= 30_000
    usage = stage.ask.get("/analytics/dashboard-usage?service=factory").json()
    assert {(card["card"], card["views"]) for card in usage["most_viewed_cards"]} == {(name, 1) for name in names}
    [ana_of] = usage["user_sessions"]
    assert set(ana_of["favorite_features"]) <= names | {feature["feature"] for feature in usage["top_features"]}
