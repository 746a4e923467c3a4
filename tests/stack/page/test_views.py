"""Which cards were really looked at, in Chromium: from the tab to the answers of either store."""

from typing import Any, Final

from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage

TURN: Final = """(state) => {
  Object.defineProperty(document, "visibilityState", { configurable: true, get: () => state });
  document.dispatchEvent(new Event("visibilitychange"));
  return performance.now();
}"""  # a browser without a screen hides no tab


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


def test_a_visit_ends_when_its_tab_is_hidden_and_nothing_is_seen_until_somebody_is_back(
    embedded: Stage, opens: Opens
) -> None:
    with opens(viewport={"width": 900, "height": 500}) as ana:
        ana.page.goto(embedded.url("ana"))
        ana.page.wait_for_selector("article >> nth=5")
        ana.page.wait_for_timeout(1500)
        looked_ms = ana.page.evaluate(TURN, "hidden")
        told = until(lambda: views(embedded), "no view arrived")
        assert {count for count, _ in told.values()} == {1}
        assert all(1_000 <= seen_ms <= looked_ms for _, seen_ms in told.values())
        ana.page.evaluate("scrollTo(0, 200)")
        ana.page.wait_for_timeout(2500)
        ana.page.evaluate(TURN, "hidden")  # again, and nobody was there in between
        since_ms = ana.page.evaluate(TURN, "visible")
        ana.page.evaluate("scrollTo(0, 0)")
        ana.page.wait_for_timeout(1500)
        again_ms = ana.page.evaluate(TURN, "hidden") - since_ms
        first = next(iter(told))
        more = until(lambda: found if (found := views(embedded))[first][0] > 1 else None, "nobody came back")
        assert more[first][0] == 2 and more[first][1] - told[first][1] <= again_ms
