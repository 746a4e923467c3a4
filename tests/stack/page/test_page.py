"""tailspan's own page, and what all of it looks like to people: names that attack, access for everybody, pictures."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tailspan.demo.visitors import ATTACK, ATTACKS
from tests.server.spans import ANA, PROTOBUF, export, protobuf, span
from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage
from tests.stack.page.test_card import LOADED

BAD: Final = ATTACK
DRAWN: Final = "body[data-state=drawn]"
IMAGES: Final = Path(__file__).parents[3] / "docs" / "images"


def accessible(page: Page, *within: str) -> None:
    found = Axe().run(page, {"include": [list(within)]} if within else None)
    assert found.violations_count == 0, found.generate_report()


def deliver_hostile(stage: Stage) -> None:
    """A visitor and a card whose every name is an attack, and an ordinary one."""
    from time import time_ns

    now_ns = time_ns()
    bad = {
        key: BAD
        for key in (
            "tailspan.page",
            "user.name",
            "user.full_name",
            "tailscale.node",
            "tailscale.node.id",
            "http.route",
            "url.path",
        )
    }
    view = {
        **ANA,
        **bad,
        "tailspan.kind": "view",
        "tailspan.card": BAD,
        "tailspan.variant": BAD,
        "tailspan.visible_ms": 5000,
    }
    spans = [
        span(1, {**ANA, **bad, "tailspan.traffic": "api"}),
        span(2, view, kind=1),
        span(3),
    ]
    for one in spans:
        one |= {"startTimeUnixNano": str(now_ns), "endTimeUnixNano": str(now_ns + 10**6)}
    body = protobuf(export(*spans, service="factory"))
    answer = stage.ask.post(f"{stage.otlp}/v1/traces", content=body, headers=PROTOBUF)
    assert answer.status_code == 200


@pytest.mark.parametrize("locale", ["en-US", "es-ES"])
def test_names_that_attack_are_text_everywhere_and_everybody_can_use_card_and_page(
    stage: Stage, opens: Opens, locale: str
) -> None:
    deliver_hostile(stage)
    with stage.of("mallory") as mallory:
        assert [mallory.get(path).status_code for path in ("/dashboard", f"/{ATTACK}")] == [200, 404]
        assert mallory.post("/analytics/views", json=ATTACKS).status_code == 204
    scheme: Any = "dark" if locale == "es-ES" else "light"
    with opens(locale=locale, color_scheme=scheme, viewport={"width": 1100, "height": 2000}) as ana:
        ana.page.goto(stage.url("ana"))
        ana.page.wait_for_selector(LOADED)
        until(lambda: any(BAD in text for text in ana.card()["active"]), "the visitor is not on the card")
        accessible(ana.page, "analytics-widget")
        ana.page.goto(stage.url("ana", "/analytics/"))
        ana.page.wait_for_selector(DRAWN)
        for part in ("now", "people", "features", "routes", "cards", "rows"):
            assert BAD in ana.page.locator(f"#{part}").inner_text(), part
        last = ana.page.locator("#people tr", has_text="mallory@example.com")
        assert BAD in last.inner_text()  # her device
        accessible(ana.page)


def test_every_number_leads_to_its_requests(embedded: Stage, opens: Opens) -> None:
    deliver_hostile(embedded)
    with opens(viewport={"width": 390, "height": 844}) as ana:
        ana.page.goto(embedded.url("ana", "/analytics/?range=24h&lang=en"))
        ana.page.wait_for_selector(DRAWN)
        [row] = [row for row in ana.page.locator("#people tbody tr").all() if "ana@example.com" in row.inner_text()]
        row.locator("td a").first.click()
        ana.page.wait_for_url("**user=ana%40example.com*")
        ana.page.wait_for_selector(DRAWN)
        told = embedded.ask.get("/analytics/query?ask=rows&hours=24&user=ana@example.com").json()["rows"]
        assert {log["user"] for log in told} == {"ana@example.com"}
        shown = ana.page.locator("#rows tbody tr")
        assert shown.count() > 0 and all("Ana" in text for text in shown.all_inner_texts())
        assert ana.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_range_of_ones_own_is_asked_for_by_its_dates(embedded: Stage, opens: Opens) -> None:
    with embedded.of("ana") as ana:
        assert ana.get("/dashboard").status_code == 200
    today = datetime.now(UTC).date()
    with opens() as page:
        page.page.goto(embedded.url("ana", "/analytics/?lang=en"))
        page.page.wait_for_selector(DRAWN)
        for days, there in ((0, True), (-400, False)):
            start, end = (str(today + timedelta(days=days + more)) for more in (0, 1))
            page.page.get_by_role("link", name="Custom").click()
            page.page.locator("#custom [name=start]").fill(start)
            page.page.locator("#custom [name=end]").fill(end)
            page.page.locator("#custom button").click()
            page.page.wait_for_url(f"**start={start}&end={end}*")
            page.page.wait_for_selector(DRAWN)
            assert ("ana@example.com" in page.page.locator("#people").inner_text()) is there
            assert page.page.locator("#ranges [aria-current]").inner_text() == "Custom"


def test_who_may_not_read_is_told_so_on_the_page(embedded: Stage, opens: Opens) -> None:
    with opens("Failed to load resource") as leo:
        leo.page.goto(embedded.url("leo", "/analytics/?lang=en"))
        leo.page.wait_for_selector(DRAWN)
        assert "leo@example.com may not read here." in leo.page.locator("#trouble").inner_text()


def test_nothing_grows_over_fifty_mounts(embedded: Stage, opens: Opens) -> None:
    with opens(viewport={"width": 1100, "height": 2000}) as ana:
        ana.page.goto(embedded.url("ana"))
        ana.page.wait_for_selector(LOADED)
        usage = embedded.ask.get("/analytics/dashboard-usage?service=factory").text
        ana.page.route("**/dashboard-usage?*", lambda route: route.fulfill(body=usage, content_type="application/json"))
        session = ana.page.context.new_cdp_session(ana.page)

        def mounts(count: int) -> dict[str, float]:
            for _ in range(count):
                ana.page.evaluate(
                    "() => { const card = document.querySelector('analytics-widget'); card.remove();"
                    "document.querySelector('main').append(card.cloneNode()); }"
                )
                ana.page.locator(LOADED).wait_for()  # a handle would keep the element
            ana.page.wait_for_timeout(300)
            session.send("HeapProfiler.collectGarbage")
            return {key: value for key, value in session.send("Memory.getDOMCounters").items()}

        few, many = mounts(5), mounts(50)
        assert many["jsEventListeners"] <= few["jsEventListeners"] + 5
        assert many["nodes"] <= few["nodes"] * 1.5 + 100
        assert ana.page.evaluate("Object.keys(window).filter((key) => /chart|analytic|tailspan/i.test(key))") == []


if "TAILSPAN_IMAGES" in os.environ:  # which draws the documentation's images anew

    @pytest.mark.parametrize(
        ("name", "width", "locale", "scheme"), [("desktop", 1100, "en-US", "light"), ("phone", 390, "es-ES", "dark")]
    )
    def test_the_documentations_images(
        embedded: Stage, opens: Opens, name: str, width: int, locale: str, scheme: Any
    ) -> None:
        IMAGES.mkdir(exist_ok=True)
        for who in ("leo", "zoe", "eva"):
            with embedded.of(who) as visitor:
                visitor.get("/dashboard")
                visitor.get("/insights/optimal-windows")
        with opens(viewport={"width": width, "height": 900}, locale=locale, color_scheme=scheme) as ana:
            ana.page.goto(embedded.url("ana"))
            ana.page.locator("analytics-widget").scroll_into_view_if_needed()
            ana.page.wait_for_selector(LOADED)
            ana.page.wait_for_timeout(4000)
            ana.page.locator("analytics-widget").screenshot(path=IMAGES / f"card-{name}.png")
            ana.page.goto(embedded.url("ana", "/analytics/"))
            ana.page.wait_for_selector(DRAWN)
            ana.page.wait_for_timeout(1500)
            ana.page.screenshot(
                path=IMAGES / f"page-{name}.png", clip={"x": 0, "y": 0, "width": width, "height": 1400}, full_page=True
            )
