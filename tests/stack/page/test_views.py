"""Which cards were really looked at, in Chromium: from the tab to the answers of either store."""

from pathlib import Path
from typing import Any

from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage
from tests.stack.page.tab import tab


def views(stage: Stage, who: str) -> dict[tuple[str, str | None], tuple[int, int]]:
    """Card and variant → views of that visitor, and ms it was seen."""
    asked = {"metrics": "views,visible_ms", "dimensions": "card,variant", "service": "factory"}
    asked["user"] = f"{who}@example.com"
    rows: list[dict[str, Any]] = stage.ask.get("/analytics/query", params=asked).json()["rows"]
    return {(row["card"], row["variant"]): (row["views"], row["visible_ms"]) for row in rows}


def test_cards_that_were_looked_at_are_counted_once_by_name_and_time_and_others_are_not(
    stage: Stage, opens: Opens
) -> None:
    stage.forget("ana")
    with opens(viewport={"width": 900, "height": 500}) as ana:
        ana.page.goto(stage.url("ana"))
        ana.page.wait_for_selector("article >> nth=5")
        ana.page.evaluate("document.querySelectorAll('article')[0].dataset.variant = 'b'")
        ana.page.wait_for_timeout(1500)
        ana.page.evaluate("scrollTo(0, document.body.scrollHeight)")  # past the others, to the end and back
        ana.page.wait_for_timeout(300)
        ana.page.evaluate("scrollTo(0, 0)")
        ana.page.wait_for_timeout(1500)
        assert views(stage, "ana") == {}
        ana.page.goto("about:blank")
        found = until(lambda: views(stage, "ana"), "no view arrived")
    names = {card for card, _ in found}
    assert ("Electricity price", "b") in found and "Savings" not in names
    assert {count for count, _ in found.values()} == {1}
    assert 2500 <= found["Electricity price", "b"][1] <= 30_000
    usage = stage.ask.get("/analytics/dashboard-usage?service=factory&user=ana@example.com").json()
    assert {(card["card"], card["views"]) for card in usage["most_viewed_cards"]} == {(name, 1) for name in names}
    [ana_of] = usage["user_sessions"]
    assert set(ana_of["favorite_features"]) <= names | {feature["feature"] for feature in usage["top_features"]}


def test_a_visit_ends_when_its_tab_is_hidden_and_nothing_is_seen_until_somebody_is_back(
    embedded: Stage, tmp_path: Path
) -> None:
    embedded.forget("eva")
    with tab(tmp_path, embedded.url("eva")) as eva:
        until(lambda: eva.run("document.querySelectorAll('article').length") == 6, "no cards")
        eva.rest(1500)
        eva.leave()
        looked_ms = eva.run("performance.now()")
        told = until(lambda: views(embedded, "eva"), "no view arrived")
        assert {count for count, _ in told.values()} == {1}
        assert all(1_000 <= seen_ms <= looked_ms for _, seen_ms in told.values())
        eva.run("scrollTo(0, 200)")
        eva.rest(2500)
        since_ms = eva.run("performance.now()")
        eva.turn_to()
        eva.run("scrollTo(0, 0)")
        eva.rest(1500)
        eva.minimise()
        again_ms = eva.run("performance.now()") - since_ms
        first = next(iter(told))
        more = until(lambda: found if (found := views(embedded, "eva"))[first][0] > 1 else None, "nobody came back")
        assert more[first][0] == 2 and more[first][1] - told[first][1] <= again_ms
