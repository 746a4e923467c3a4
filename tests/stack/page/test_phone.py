"""The promise that all of it is for: somebody opens the page on a phone, and within three seconds a card that is open
elsewhere shows who that is, on which device and page. Also where the page is in the phone's cache, without our scripts.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.stack.engines import until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage, Watched
from tests.stack.page.test_card import FORBIDDEN, LOADED
from tests.stack.page.test_host import OLD, PAGE, behind_nginx

PROMISED_S: Final = 3.0
VISITS: Final = 10  # the machine may stall in some of them; what is slow by itself is slow in all
RHYTHM_S: Final = 2.0  # of its polls, in place of two minutes; what is asked in between takes less
LATE_MS: Final = 15_000
ACTIVE: Final = "analytics-widget #active"
APPEARS: Final = """(text) => { window.appeared = new Promise((done) => {
  const root = document.querySelector("analytics-widget").shadowRoot;
  const shown = () => root.getElementById("active").textContent.includes(text) && done(Date.now());
  new MutationObserver(shown).observe(root, { childList: true, subtree: true });
}); }"""


def is_in_time(stage: Stage, card: Page, login: str, shown: str, visit: Callable[[], object]) -> bool:
    """Whether somebody new is on the card in time, by their device's name; the browser itself says when."""
    stage.forget(login)
    expect(card.locator(ACTIVE)).not_to_contain_text(shown, timeout=60_000)
    card.evaluate(APPEARS, shown)
    began = time.time()
    visit()
    try:
        card.locator(ACTIVE).filter(has_text=shown).wait_for(timeout=LATE_MS)
    except PlaywrightTimeout:
        print(f"{shown}: not on the card, but {card.locator(ACTIVE).inner_text()}")
        return False
    took = float(card.evaluate("appeared")) / 1000 - began
    print(f"{shown}: on the card after {took:.2f} s")
    return took < PROMISED_S


def at_once(phone: Watched, url: str) -> Callable[[], object]:
    return lambda: phone.page.goto(url, wait_until="commit")


def test_a_phone_is_on_the_card_within_three_seconds(stage: Stage, opens: Opens) -> None:
    with opens(viewport={"width": 1100, "height": 2400}) as ana:
        ana.page.goto(stage.url("ana"))
        ana.page.wait_for_selector(LOADED)

        def visited() -> bool:
            with opens(FORBIDDEN, locale="es-ES") as leo:  # a new browser; and he is no reader
                return is_in_time(
                    stage, ana.page, "leo", "Leo Sanz iphone · /dashboard", at_once(leo, stage.url("leo"))
                )

        assert any(visited() for _ in range(VISITS))


def test_a_phone_whose_cached_page_lacks_the_scripts_is_on_the_card_within_three_seconds_and_its_polls_are_polls(
    stage: Stage, opens: Opens, tmp_path: Path
) -> None:
    mobile = {"width": 390, "height": 844}
    with (
        behind_nginx(stage, tmp_path) as host,
        opens("Failed to load resource", "Failed to fetch", viewport=mobile) as zoe,
        opens() as ana,
    ):
        host.page.write_text(OLD)
        zoe.page.route("**/insights/*", lambda route: route.abort())  # nobody hears of this visit
        with zoe.page.expect_event("requestfailed"):
            zoe.page.goto(host.url("zoe"))
        zoe.page.unroute("**/insights/*")
        host.page.write_text(PAGE)
        ana.page.goto(host.url("ana"))
        expect(ana.page.locator(ACTIVE)).to_contain_text("Ana Ruiz", timeout=60_000)
        zoe.page.clock.install()
        shown = "zoe-phone · /static/index.html"
        assert any(is_in_time(stage, ana.page, "zoe", shown, at_once(zoe, host.url("zoe"))) for _ in range(VISITS))
        zoe.page.wait_for_load_state()
        assert zoe.page.evaluate("document.scripts.length") == 1
        asked = {"ask": "rows", "traffic": "poll", "user": "zoe@example.com", "page": "/static/index.html"}

        due = time.monotonic()

        def polled() -> bool:
            nonlocal due
            due = max(due + RHYTHM_S, time.monotonic())
            zoe.page.wait_for_timeout(max(0, due - time.monotonic()) * 1000)
            zoe.page.clock.run_for(120_000)
            return bool(stage.ask.get("/analytics/query", params=asked).json()["rows"])

        until(polled, "no poll was told from a call", patience=120)
