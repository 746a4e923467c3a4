"""The card as people see it, in Chromium: on the demo's dashboard, behind its front, on either store."""

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.conftest import launching
from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage, staged

LOADED = "analytics-widget:not([data-state=loading])"
TALL: Any = {"viewport": {"width": 1100, "height": 2400}}  # what cannot be seen does not ask
FORBIDDEN = "Failed to load resource: the server responded with a status of 403"


def shown(usage: dict[str, Any]) -> dict[str, Any]:
    """What the card is to show of an answer, times apart."""
    summary = usage["summary"]
    return {
        "numbers": [str(summary[key]) for key in ("total_sessions", "unique_users", "total_accesses")],
        "days": [str(day["accesses"]) for day in usage["accesses_by_day"]],
        "features": [f"{feature['feature']} {feature['uses']}" for feature in usage["top_features"][:5]],
        "active": [f"{user['full_name']} {user['device']} · {user['current_page']}" for user in usage["active_users"]],
    }


def test_the_numbers_on_the_card_are_the_endpoints(stage: Stage, opens: Opens) -> None:
    with opens(**TALL) as ana, stage.of("zoe") as zoe:
        ana.page.goto(stage.url("ana"))
        ana.page.wait_for_selector(LOADED)
        zoe.get("/dashboard")
        active = ana.page.locator("analytics-widget #active")
        expect(active).to_contain_text("Zoë Müller 漢字 zoe-phone · /dashboard", timeout=60_000)

        def agrees() -> bool:
            ana.page.evaluate("document.querySelector('analytics-widget').setAttribute('days', '7')")  # it asks anew
            ana.page.wait_for_selector(LOADED)
            usage = stage.ask.get("/analytics/dashboard-usage?service=factory").json()
            card = ana.card()
            card["active"] = [re.sub(" (just now|[0-9]+ min ago)$", "", text) for text in card["active"]]
            return {key: card[key] for key in shown(usage)} == shown(usage)

        until(agrees, "the card did not show what the endpoint says", lambda: str(ana.card()))
        assert ana.card()["title"] == "Analytics, last week"
        assert ana.page.evaluate("typeof Chart") == "undefined"


def test_who_may_not_see_names_sees_totals_where_the_page_says_so(embedded: Stage, opens: Opens) -> None:
    with opens(FORBIDDEN, locale="es-ES", viewport={"width": 320, "height": 2400}) as leo:
        leo.page.goto(embedded.url("leo"))  # who is no reader
        leo.page.wait_for_selector("analytics-widget[data-state=ok]", timeout=60_000)
        asked = [url.rpartition("/")[2].partition("?")[0] for url in leo.asked if "/analytics/" in url]
        questions = [what for what in asked if not what.endswith(".js")]
        assert questions[0] == "dashboard-usage" and set(questions[1:]) == {"totals"}
        assert leo.card()["active"] == []
        assert leo.page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_card_of_the_first_visit_ever_does_not_stay_empty(tmp_path: Path, opens: Opens) -> None:
    """Whose question was faster than what is told of its page, by somebody who is shown totals only."""
    with launching() as launch, staged(launch, tmp_path) as first, opens(FORBIDDEN, **TALL) as leo:
        empty = first.ask.get("/analytics/totals").json()
        assert empty["sources"][0]["state"] == "no data yet"
        leo.page.route("**/analytics/totals?*", lambda route: route.fulfill(json=empty), times=1)
        leo.page.goto(first.url("leo"))
        leo.page.wait_for_selector("analytics-widget[data-state=ok]", timeout=40_000)
        assert leo.card()["numbers"][:2] == ["1", "1"]
