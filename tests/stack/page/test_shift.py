"""What is seen stays where it is: the card and the page reserve the room of what they ask for."""

from typing import Any, Final

from playwright.sync_api import Page, expect

from tests.stack.page.conftest import Opens
from tests.stack.page.stage import WIDGET, Stage
from tests.stack.page.test_card import LOADED
from tests.stack.page.test_page import DRAWN

WATCH: Final = """window.shifts = [];
const name = ({ node }) => node?.id || node?.parentElement?.id || node?.nodeName;
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries()) shifts.push([value, ...sources.map(name)]);
}).observe({ type: "layout-shift", buffered: true });"""
PLAIN: Final = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A host</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width">
<main><h1>Before</h1><script type="module" src="{WIDGET}"></script></main></html>"""


def shifts(page: Page) -> list[Any]:
    """What moved though nobody did anything: how much, and what."""
    found: list[Any] = page.evaluate("new Promise((done) => setTimeout(() => done(shifts), 500))")  # they come late
    return found


def test_nothing_moves_on_the_page_while_its_parts_and_a_visitor_come(stage: Stage, opens: Opens) -> None:
    for width in (1100, 390):
        with opens(viewport={"width": width, "height": 2000}) as ana, stage.of("zoe") as zoe:
            ana.page.add_init_script(WATCH)
            ana.page.goto(stage.url("ana", "/analytics/?range=24h"))
            ana.page.wait_for_selector(DRAWN)
            stage.forget("zoe")
            expect(ana.page.locator("#now")).not_to_contain_text("zoe-phone", timeout=60_000)
            zoe.get("/dashboard")
            expect(ana.page.locator("#now")).to_contain_text("zoe-phone", timeout=60_000)
            assert shifts(ana.page) == []


def test_nothing_moves_on_the_card_or_below_it_whatever_it_has_to_say(stage: Stage, opens: Opens) -> None:
    for width in (1100, 320):
        with opens("Failed to load resource", viewport={"width": width, "height": 2000}) as ana, stage.of("zoe") as zoe:
            ana.page.add_init_script(WATCH)
            ana.page.goto(stage.url("ana", "/health"))
            ana.page.set_content(PLAIN)
            ana.page.wait_for_selector(LOADED)
            ana.page.evaluate("document.body.append('what comes after the card')")
            stage.forget("zoe")
            expect(ana.page.locator("analytics-widget #active")).not_to_contain_text("zoe-phone", timeout=60_000)
            zoe.get("/dashboard")
            expect(ana.page.locator("analytics-widget #active")).to_contain_text("zoe-phone", timeout=60_000)
            ana.page.route("**/analytics/*", lambda route: route.abort())
            ana.page.wait_for_selector("analytics-widget[data-state=away]")
            assert shifts(ana.page) == []
