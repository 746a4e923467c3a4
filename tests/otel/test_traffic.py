from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailspan_otel import traffic
from tailspan_otel.traffic import MAX_CALLERS, MAX_ROUTES, SESSION_NS, Rhythm

SECOND = 10**9
START = 1_790_000_000 * SECOND


def never() -> bool:
    raise AssertionError("nobody should ask whether this is a poll")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/rooms/12/beds", "/rooms/{id}/beds"),
        ("/rooms/12a", "/rooms/12a"),
        ("/u/7f3c2a10-9d41-4e0b-8a55-0c1d2e3f4a5b", "/u/{id}"),
        ("/u/7F3C2A10-9D41-4E0B-8A55-0C1D2E3F4A5B/x", "/u/{id}/x"),
        ("/commit/0123456789abcdef", "/commit/{id}"),
        ("/commit/0123456789abcde", "/commit/0123456789abcde"),
        ("/7", "/{id}"),
        ("//3//", "//{id}//"),
    ],
)
def test_segments_that_name_one_thing_become_id(path: str, expected: str) -> None:
    assert traffic.templated(path) == expected


@pytest.mark.parametrize(
    ("path", "destination", "local", "page", "expected"),
    [
        ("/analytics/mcp", "", True, False, "agent"),
        ("/analytics/mcp/messages", "", False, False, "agent"),
        ("/analytics/active", "", False, False, "internal"),
        ("/analytics/", "document", False, True, "internal"),
        ("/analyticsx", "", False, False, "api"),
        ("/dashboard", "", True, True, "internal"),
        ("/health", "", True, False, "internal"),
        ("/health", "", False, False, "health"),
        ("/healthz", "", False, False, "health"),
        ("/ready/db", "", False, False, "health"),
        ("/livez", "", False, False, "health"),
        ("/livez/x", "", False, False, "api"),
        ("/metrics", "", False, False, "health"),
        ("/static/app.js", "", False, False, "asset"),
        ("/static/LOGO.PNG", "", False, False, "asset"),
        ("/static/index.html", "document", False, True, "page"),
        ("/v1.2/prices", "", False, False, "api"),
        ("/favicon", "image", False, False, "asset"),
        ("/embedded", "iframe", False, True, "page"),
        ("/prices", "empty", False, False, "api"),
        ("/dashboard", "", False, True, "page"),
    ],
)
def test_the_first_kind_of_traffic_that_fits(
    path: str, destination: str, local: bool, page: bool, expected: str
) -> None:
    poll: Callable[[], bool] = (lambda: False) if expected == "api" else never
    assert traffic.classify(path, destination, local=local, page=page, poll=poll) == expected


def test_what_our_mcp_server_asks_of_a_service_is_no_use_by_people() -> None:
    for local in (True, False):
        assert traffic.classify("/prices", "", local=local, page=False, poll=never, agent=True) == "agent"


@pytest.mark.parametrize(
    ("method", "status", "content_type", "accept", "expected"),
    [
        ("GET", 200, "text/html; charset=utf-8", "", True),
        ("GET", 404, "text/html", "", True),
        ("GET", 200, "application/json", "text/html", False),
        ("GET", 304, "", "text/html,*/*", True),
        ("GET", 304, "", "application/json", False),
        ("GET", 302, "text/html", "text/html", False),
        ("HEAD", 200, "text/html", "text/html", False),
        ("POST", 200, "text/html", "text/html", False),
    ],
)
def test_a_page_is_a_get_answered_with_html(
    method: str, status: int, content_type: str, accept: str, expected: bool
) -> None:
    assert traffic.is_page(method, status, content_type, accept) is expected


@pytest.mark.parametrize(
    ("referer", "hosts", "expected"),
    [
        ("http://demo/dashboard?token=secret#x", ("demo", ""), "/dashboard"),
        ("https://demo/rooms/7", ("demo", ""), "/rooms/{id}"),
        ("https://demo:443/", ("demo", ""), "/"),
        ("http://demo:8000/a", ("demo:8000", ""), "/a"),
        ("http://demo:8000/a", ("demo", ""), None),
        ("http://demo", ("demo", ""), "/"),
        ("https://dash.tail.ts.net/a", ("localhost", "dash.tail.ts.net"), "/a"),
        ("http://DEMO/a", ("Demo", ""), "/a"),
        ("http://[fd7a::1]:8000/a", ("[fd7a::1]:8000", ""), "/a"),
        ("https://elsewhere.example/demo", ("demo", ""), None),
        ("http://demo@evil/a", ("demo", ""), None),
        ("http://demo:99999/a", ("demo", ""), None),
        ("http://[demo/a", ("demo", ""), None),
        ("about:blank", ("demo", ""), None),
        ("/dashboard", ("", ""), None),
    ],
)
def test_the_page_around_a_call_is_its_referers_path_on_the_same_host(
    referer: str, hosts: tuple[str, str], expected: str | None
) -> None:
    assert traffic.page_of_referer(referer, hosts) == expected


def calls(rhythm: Rhythm, times: list[float], caller: str = "100.64.0.2", route: str = "GET /prices") -> list[bool]:
    return [rhythm.is_poll(caller, route, START + round(at * SECOND)) for at in times]


def test_the_fourth_even_call_is_the_first_poll() -> None:
    assert calls(Rhythm(), [0, 120, 240, 360, 480]) == [False, False, False, True, True]


def test_gaps_may_differ_by_a_tenth_of_their_median() -> None:
    assert calls(Rhythm(), [0, 100, 200, 310]) == [False, False, False, True]
    assert calls(Rhythm(), [0, 90, 190, 290]) == [False, False, False, True]
    assert calls(Rhythm(), [0, 100, 200, 310.1]) == [False] * 4


def test_a_page_in_between_starts_the_rhythm_anew() -> None:
    rhythm = Rhythm()
    assert calls(rhythm, [0, 60, 120]) == [False] * 3
    rhythm.page("100.64.0.2", START + 150 * SECOND)
    assert calls(rhythm, [180, 240, 300, 360]) == [False, False, False, True]


def test_another_callers_page_leaves_the_rhythm_alone() -> None:
    rhythm = Rhythm()
    calls(rhythm, [0, 60, 120])
    rhythm.page("100.64.0.9", START + 150 * SECOND)
    assert calls(rhythm, [180]) == [True]


def test_routes_and_callers_have_rhythms_of_their_own() -> None:
    rhythm = Rhythm()
    calls(rhythm, [0, 60, 120])
    assert calls(rhythm, [180], route="POST /optimize") == [False]
    assert calls(rhythm, [180], caller="100.64.0.3") == [False]
    assert calls(rhythm, [180]) == [True]


def test_the_first_call_after_thirty_minutes_is_never_a_poll() -> None:
    half_an_hour = SESSION_NS / SECOND
    assert calls(Rhythm(), [0, half_an_hour, 2 * half_an_hour, 3 * half_an_hour]) == [False] * 4
    assert calls(Rhythm(), [0, 1799, 3598, 5397]) == [False, False, False, True]


def test_calls_at_the_same_instant_have_no_rhythm() -> None:
    assert calls(Rhythm(), [0, 0, 0, 0, 0]) == [False] * 5


def test_only_so_many_callers_and_routes_are_remembered() -> None:
    rhythm = Rhythm()
    calls(rhythm, [0, 60, 120])
    for other in range(MAX_CALLERS):
        calls(rhythm, [121], caller=f"caller {other}")
    assert calls(rhythm, [180]) == [False]
    for other in range(MAX_ROUTES):
        calls(rhythm, [181], route=f"GET /{other}")
    assert calls(rhythm, [240]) == [False]
    assert len(rhythm._callers) == MAX_CALLERS
    assert max(len(caller.routes) for caller in rhythm._callers.values()) == MAX_ROUTES


@given(st.lists(st.integers(0, 10**13), min_size=4, max_size=30))
def test_polls_are_what_the_definition_says(gaps: list[int]) -> None:
    """The definition, written out plainly, over every call made so far."""
    rhythm, starts = Rhythm(), [START]
    rhythm.is_poll("a", "r", START)
    for gap in gaps:
        starts.append(starts[-1] + gap)
        last = [later - earlier for earlier, later in zip(starts[-4:], starts[-3:], strict=False)]
        median = sorted(last)[1] if len(last) == 3 else 0
        even = median > 0 and all(10 * abs(one - median) <= median for one in last)
        assert rhythm.is_poll("a", "r", starts[-1]) == (even and gap < SESSION_NS)


def test_a_bounded_vocabulary_answers_other_when_full() -> None:
    keep = traffic.bounded(2)
    assert [keep(word) for word in ("a", "b", "c", "a", "d", "b")] == ["a", "b", "other", "a", "other", "b"]
