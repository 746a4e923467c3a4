"""What a service did not tell of itself, as its proxy's log has it, on tailspan's own page."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tailspan.query import nanoseconds
from tests.conftest import Launch
from tests.server.logs import combined
from tests.server.spans import ANA, PROTOBUF, export, protobuf, span
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import Stage, staged
from tests.stack.page.test_numbers import table
from tests.stack.page.test_page import DRAWN

LINES = 12


@pytest.fixture
def own(launch: Launch, tmp_path: Path) -> Iterator[Stage]:
    """Of this test alone: with gaps, every answer says that it is incomplete."""
    with staged(launch, tmp_path) as made:
        yield made


def test_requests_that_only_a_proxy_saw_are_shown_and_found(
    own: Stage, opens: Opens, launch: Launch, tmp_path: Path
) -> None:
    began = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
    times = [began + timedelta(seconds=20 * number) for number in range(LINES)]
    log = tmp_path / "access.log"
    log.write_text("".join(combined(at=f"{time:%d/%b/%Y:%H:%M:%S} +0000") for time in times))
    told = span(1, ANA | {"tailspan.traffic": "api", "url.path": "/prices", "http.route": "/prices"})
    told |= {"startTimeUnixNano": f"{nanoseconds(began)}", "endTimeUnixNano": f"{nanoseconds(began) + 10**6}"}
    body = protobuf(export(told, service="press"))
    assert own.ask.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    code, _, complaints = launch(*("tailspan", "backfill", log, "--service", "press"), TAILSPAN_URL=own.server).ended()
    assert code == 0, complaints
    [press] = own.ask.get("/analytics/coverage?hours=24").json()["services"]
    [gap] = press["gaps"]
    assert (press["requests"], press["live"]) == (LINES, 1)
    with opens(viewport={"width": 1100, "height": 2000}) as ana:
        ana.page.goto(own.url("ana", "/analytics/?range=24h&lang=en"))
        ana.page.wait_for_selector(DRAWN)
        [row] = table(ana.page, "coverage")
        assert row[:5] == ["press", f"{LINES}", "1", "8.3%", f"{LINES - 1}"]
        assert row[5].endswith(f": {gap['requests']}")
        for column, count, source in ((4, LINES - 1, "log"), (5, gap["requests"], "log"), (2, 1, "live")):
            ana.page.goto(own.url("ana", "/analytics/?range=24h&lang=en"))
            ana.page.wait_for_selector(DRAWN)
            ana.page.locator("#coverage tbody tr").locator("th, td").nth(column).locator("a").click()
            ana.page.wait_for_url(f"**source={source}*")
            ana.page.wait_for_selector(DRAWN)
            assert len(table(ana.page, "rows")) == count
