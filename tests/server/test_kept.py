"""What is kept, walked through, exported, forgotten and deleted, all held to the plain-Python reference."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tailspan import sql
from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.labels import NO_LOGS, Labels
from tailspan.query import Aggregate, Question, Range, Rows, Sessions
from tailspan.reports import iso
from tailspan.reports.access_logs import log
from tailspan.span import Heartbeat, Span
from tailspan.store.duckdb import DuckDB
from tests.server.reference import SECOND, active, answer, as_answered, history_of, place
from tests.server.strategies import LISTED, PEOPLE, SERVICES, TABLET, dense_world, heartbeats, questions, worlds
from tests.server.test_reference import PROFILE, WORLD, at, opened

YEAR: Final = {"start": "2026-01-01", "end": "2030-01-01"}
EVERYTHING: Final = Range(1_767_225_600 * SECOND, 1_893_456_000 * SECOND)


@contextmanager
def asking(store: DuckDB, nows: Sequence[datetime]) -> Iterator[TestClient]:
    """A server on the store whose clock shows the last of these, which may be added to."""
    app = create_app(Settings(db=store.path, retention_days=3650), store, lambda: nows[-1])
    with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
        yield client


def get(client: TestClient, path: str, **params: Any) -> Any:
    found = client.get(f"/analytics/{path}", params=params)
    assert found.status_code == 200, found.text
    return found.json()


# Cursors


def walked(client: TestClient, path: str, key: str, **params: Any) -> list[list[Any]]:
    """The pages of all that there is, to the last."""
    pages: list[list[Any]] = []
    cursor: dict[str, str] = {}
    while True:
        found = get(client, path, **params, **cursor)
        pages.append(found[key])
        if found["next_cursor"] is None:
            return pages
        cursor = {"cursor": found["next_cursor"]}


@pytest.mark.parametrize("seed", [1, 3])
def test_pages_of_any_length_hold_each_request_and_session_once(seed: int) -> None:
    world = dense_world(seed)
    history = history_of(world)
    requests = [log(span).model_dump() for span in answer(Rows(range=EVERYTHING), world, history)]
    sessions = [
        {
            **{name: value for name, value in session._asdict().items() if not name.endswith("_ns")},
            **{"start": iso(session.start_ns), "end": iso(session.end_ns)},
            "duration_s": round(session.duration_s, 3),
        }
        for session in answer(Sessions(range=EVERYTHING), world, history)
    ]
    assert len(requests) > 20 and len(sessions) > 1
    last = datetime.fromtimestamp(max(span.start_ns for span in world) // SECOND + 1, UTC)
    with opened() as store:
        store.write(world)
        with asking(store, [last]) as client:
            for asked, whole in (("rows", requests), ("sessions", sessions)):
                for limit in (*range(1, len(whole) + 2), 1000):
                    pages = walked(client, "query", "rows", ask=asked, limit=limit, **YEAR)
                    assert pages == [whole[n : n + limit] for n in range(0, len(whole), limit)]
            recent = [one for one in requests if one["timestamp"] > iso(int(last.timestamp() - 168 * 3600) * SECOND)]
            for limit in (1, 7, len(recent)):
                pages = walked(client, "access-logs", "logs", hours=168, limit=limit)
                assert pages == [recent[n : n + limit] for n in range(0, len(recent), limit)]


# Active


@pytest.mark.parametrize("seeds", [range(0, 4), range(4, 8), range(8, 12)])
def test_who_is_active_is_as_the_definition_says_at_any_moment(seeds: range) -> None:
    somebody = 0
    for world in map(dense_world, seeds):
        nows = [datetime(2026, 12, 31, tzinfo=UTC)]
        moments = {span.start_ns // 1000 * 1000 + after for span in world for after in (0, 1000, 300 * SECOND)}
        with opened() as store, asking(store, nows) as client:
            store.write(world)
            for now_ns in sorted(moments)[:: 1 + len(moments) // 30]:
                nows.append(datetime.fromtimestamp(now_ns // SECOND, UTC).replace(microsecond=now_ns % SECOND // 1000))
                users, promised = get(client, "active")["active_users"], active(world, history_of(world), now_ns)
                times = [user["last_seen_at"] for user in users]
                assert times == sorted(times, reverse=True)
                assert {user.pop("last_seen") for user in users} <= {"just now", *(f"{n} min ago" for n in range(1, 5))}
                assert sorted(users, key=lambda user: str(user["email"])) == promised
                somebody += len(promised)
    assert somebody > 10


# People's rights, and retention


def test_an_export_over_http_is_everything_of_a_person_a_line_each() -> None:
    for login in PEOPLE:
        with opened() as store:
            store.write(WORLD)
            with asking(store, [datetime(2026, 12, 31, tzinfo=UTC)]) as client:
                lines = client.get(f"/analytics/people/{login}").text.splitlines()
                theirs = of_login(login, WORLD)
                assert lines == [log(span).model_dump_json() for span in theirs]
                assert len(theirs) >= 5
                deleted = client.delete(f"/analytics/people/{login}").json()
                assert deleted == {"login": login, "requests": len(theirs)}
                assert client.get(f"/analytics/people/{login}").text == ""


def ids(spans: Sequence[Span]) -> set[tuple[bytes, bytes]]:
    return {(span.trace_id, span.span_id) for span in spans}


def of_login(
    login: str, spans: Sequence[Span], devices: Sequence[Any] = (), trusted_logs: Mapping[str, str] = NO_LOGS
) -> list[Span]:
    """What the answers show under that login, and the lines of logs that name it, believed or not; oldest first."""
    known = as_answered(spans, [*history_of(spans), *devices], Labels(trusted_logs=trusted_logs))
    return sorted((span for span in known if login in (span.login, span.claim)), key=place)


@PROFILE
@given(st.data())
def test_after_a_person_is_forgotten_answers_are_as_if_they_had_never_been_there(data: st.DataObject) -> None:
    world, listed = data.draw(worlds()), data.draw(LISTED)
    login = data.draw(st.sampled_from(PEOPLE))
    asked = data.draw(st.lists(questions(world), min_size=1, max_size=2))
    trusted = data.draw(st.sampled_from(({}, {SERVICES[0]: "serve_header"}, dict.fromkeys(SERVICES, "nginx_auth"))))
    theirs = of_login(login, world, listed, trusted)
    left = [span for span in world if (span.trace_id, span.span_id) not in ids(theirs)]
    history = [device for device in history_of(world) + listed if device.login != login]
    with opened() as store:
        store.write(world)
        store.learn(listed)
        assert list(store.export(login, trusted)) == theirs
        assert store.forget(login, trusted) == len(theirs)
        assert list(store.export(login, trusted)) == []
        assert sorted(store.history(), key=repr) == sorted(history, key=repr)
        for query in asked:
            assert (query, store.run(query)) == (query, answer(query, left, history))


@PROFILE
@given(st.data(), heartbeats())
def test_after_a_purge_answers_are_of_what_began_later(data: st.DataObject, beats: list[Heartbeat]) -> None:
    world = data.draw(worlds())
    asked = data.draw(st.lists(questions(world), min_size=1, max_size=2))
    times = [at for span in world for at in (span.start_ns, span.start_ns + 1)] + [beat.end_ns for beat in beats] + [0]
    before_ns = data.draw(st.sampled_from(times))
    left = [span for span in world if span.start_ns >= before_ns]
    with opened() as store:
        store.write(world, beats)
        assert store.purge(before_ns) == len(world) - len(left)
        kept = [beat for beat in beats if beat.end_ns >= before_ns]
        assert store.heartbeats(2**62) == sorted(kept, key=lambda beat: (beat.start_ns, *beat[:2]))
        for query in asked:
            assert (query, store.run(query)) == (query, answer(query, left, history_of(world)))


# Many at once


def test_each_question_is_answered_by_its_own_labels_while_others_ask_and_deliveries_arrive() -> None:
    named = [Labels(pages={"/dashboard": f"/{n}", "/insights/{id}": f"/{n}"}, zone="UTC") for n in range(4)]
    common: dict[str, Any] = {"range": Range(WORLD[0].start_ns, WORLD[-1].start_ns + 1)}
    walk: list[Question] = []
    for labels in named:
        walk += [
            Aggregate(metrics=("requests",), dimensions=("page",), labels=labels, **common),
            Rows(labels=labels, **common),
        ]
    later = [at(10**7 + n, route=f"/{n}", node_id=f"x{n}", node="new", address="100.64.1.1") for n in range(60)]
    expected = [answer(query, WORLD, history_of(WORLD)) for query in walk]  # type: ignore[arg-type]
    with opened() as store, ThreadPoolExecutor(5) as threads:
        store.write(WORLD)

        def ask(number: int) -> list[int]:
            """Which of a thread's questions were answered wrongly; none."""
            order = [(number + n * 3) % len(walk) for n in range(40)]
            return [n for n in order if store.run(walk[n]) != expected[n]]  # type: ignore[call-overload]

        asked = [threads.submit(ask, number) for number in range(4)]
        for span in later:
            store.write([span])
            store.learn([TABLET._replace(address="100.64.1.2", node_id="x", from_ns=span.start_ns)])
        assert [future.result() for future in asked] == [[]] * 4


def test_a_question_keeps_its_labels_where_others_ask_in_the_middle_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    range = Range(WORLD[0].start_ns, WORLD[-1].start_ns + 1)
    first, *others = (Rows(range=range, labels=Labels(pages={"/dashboard": name})) for name in ("/a", "/b", "/c"))
    compiled = sql.rows

    def slowly(query: Rows, described: str) -> sql.Compiled:
        if query is first:
            assert [store.run(other) for other in others] == [
                answer(other, WORLD, history_of(WORLD)) for other in others
            ]
        return compiled(query, described)

    monkeypatch.setattr(sql, "rows", slowly)
    with opened() as store:
        store.write(WORLD)
        assert store.run(first) == answer(first, WORLD, history_of(WORLD))
