"""What is kept of the lists of devices: when each began to be true, and whom to believe."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tailspan.config import TailscaleAPI
from tailspan.directory import Directory, changes, entry_of
from tailspan.errors import TailnetError
from tailspan.store.duckdb import DuckDB
from tailspan.tailnet import Listed, Look
from tailspan.tailnet.api import API
from tailspan.tailnet.status import Status
from tests.server.spans import NOW, NOW_NS
from tests.server.tailnet import (
    ALICE,
    API_KEY,
    DEVICES,
    EVE,
    RUNNER,
    STATUS,
    Answer,
    Clock,
    Given,
    tailscale,
)


def listed(device: Listed = ALICE, **changed: Any) -> dict[str, Listed]:
    new = device._replace(addresses=("100.64.0.2",), **changed)
    return {address: new for address in new.addresses}


def test_a_rename_a_tag_another_owner_and_another_device_are_new_entries_and_what_stays_is_none(kept: DuckDB) -> None:
    clock, source = Clock(), Given()
    directory = Directory([source], kept, clock)
    [post] = directory.posts
    alice = ALICE._replace(addresses=("100.64.0.2",))
    steps = (
        alice,
        alice,
        alice._replace(online=False, last_seen=NOW, version="1.98"),  # nobody else
        alice._replace(node="studio"),
        alice._replace(node="studio", login=None, full_name=None, tags="tag:ci", kind="tagged"),
        alice._replace(node="studio", login="zoe@example.com"),
        alice._replace(node_id="other", login="zoe@example.com"),
        alice._replace(node_id="other", login="zoe@example.com"),
    )
    for minute, device in enumerate(steps):
        clock.now = NOW + timedelta(minutes=minute)
        source.says = Look((device,))
        directory.ask(post)
    source.says = Look(())
    clock.forward(minutes=1)
    directory.ask(post)

    def ns(minute: int) -> int:
        return NOW_NS + minute * 60 * 10**9

    told = [(one.node_id, one.node, one.login, one.tags, one.from_ns, one.to_ns) for one in kept.history()]
    assert told == [
        (ALICE.node_id, "alice-laptop", "alice@example.com", None, ns(0), ns(3)),
        (ALICE.node_id, "studio", "alice@example.com", None, ns(3), ns(4)),
        (ALICE.node_id, "studio", None, "tag:ci", ns(4), ns(5)),
        (ALICE.node_id, "studio", "zoe@example.com", None, ns(5), ns(6)),
        ("other", "alice-laptop", "zoe@example.com", None, ns(6), ns(8)),
    ]


def test_a_source_in_trouble_or_one_that_has_not_answered_yet_ends_no_entry(kept: DuckDB) -> None:
    clock, first, second = Clock(), Given(), Given()
    second.says = TailnetError("unreachable", "It is away.")
    directory = Directory([first, second], kept, clock)
    for post in directory.posts:
        directory.ask(post)
    first.says = Look((RUNNER,))  # no longer Alice's, whom the other may list
    directory.ask(directory.posts[0])
    open_entries = {one.address for one in kept.history() if one.to_ns is None}
    assert open_entries == {*ALICE.addresses, *RUNNER.addresses}
    second.says = Look(())
    directory.ask(directory.posts[1])
    first.says = TailnetError("logged out", "It is logged out.")
    directory.ask(directory.posts[0])
    assert {one.address for one in kept.history() if one.to_ns is None} == set(RUNNER.addresses)


def test_a_server_that_starts_again_goes_on_with_the_history_it_finds(kept: DuckDB) -> None:
    for minute in (0, 5):
        clock = Clock(NOW + timedelta(minutes=minute))
        directory = Directory([Given()], kept, clock)
        directory.ask(directory.posts[0])
    assert {(one.from_ns, one.to_ns) for one in kept.history()} == {(NOW_NS, None)}


def test_a_clock_that_was_set_back_makes_no_entry_that_ends_before_it_begins() -> None:
    before = entry_of("100.64.0.2", ALICE, NOW_NS)
    ended, begun = changes([before], listed(node="studio"), NOW_NS - 10**9, complete=True)
    assert ended == before._replace(to_ns=NOW_NS + 1)
    assert (begun.node, begun.from_ns, begun.to_ns) == ("studio", NOW_NS + 1, None)
    assert list(changes([before], {}, NOW_NS - 10**9, complete=True)) == [ended]


def test_a_name_of_a_person_that_was_not_known_is_added_to_the_entry() -> None:
    before = entry_of("100.64.0.2", ALICE._replace(full_name=None), NOW_NS)
    assert list(changes([before], listed(), NOW_NS + 5, complete=True)) == [before._replace(full_name=ALICE.full_name)]
    known = before._replace(full_name=ALICE.full_name)
    assert list(changes([known], listed(full_name=None), NOW_NS + 5, complete=True)) == []


def test_of_several_sources_the_first_is_believed_and_the_others_complete_it(kept: DuckDB) -> None:
    clock = Clock()
    with tailscale() as control:
        settings = TailscaleAPI(key=API_KEY, url=control.url)
        directory = Directory([Status(str(STATUS)), API(settings)], kept, clock)
        for post in directory.posts:
            directory.ask(post)
    alice = next(one for one in directory.members(NOW) if one.device.node_id == ALICE.node_id)
    assert alice.sources == ("status", "api")
    assert (alice.device.full_name, alice.device.version) == ("Alice Architect", "1.96.5-t1234567-g89abcdef0")
    runner = next(one for one in directory.members(NOW) if one.device.node_id == RUNNER.node_id)
    assert (runner.device.login, runner.device.full_name) == (None, None)


def test_a_source_that_fell_silent_comes_last(kept: DuckDB) -> None:
    clock, old, new = Clock(), Given(), Given()
    directory = Directory([old, new], kept, clock)
    directory.ask(directory.posts[0])
    clock.forward(hours=1)
    new.says = Look((ALICE._replace(node="studio"),))
    directory.ask(directory.posts[1])
    assert [one.device.node for one in directory.members(clock.now)] == ["studio"]
    directory.ask(directory.posts[0])
    assert [one.device.node for one in directory.members(clock.now)] == ["alice-laptop"]


def test_who_has_an_address_now_is_told_by_sources_alone_that_were_heard_of_lately(kept: DuckDB) -> None:
    clock, old, new = Clock(), Given(), Given()
    directory = Directory([old, new], kept, clock)
    old.says, new.says = Look((ALICE, EVE)), Look((RUNNER, EVE._replace(node="studio")))
    for post in directory.posts:
        directory.ask(post)

    def holders() -> list[str | None]:
        found = [directory.holder(f"100.64.0.{last}") for last in (2, 4, 5)]
        return [device and device.node for device in found]

    assert holders() == ["alice-laptop", "ci-runner", "ext-box.other-net.ts.net"]
    clock.forward(minutes=10)
    directory.ask(directory.posts[1])
    clock.forward(minutes=6)  # a source that goes on telling does not keep what the other said
    assert holders() == [None, "ci-runner", "studio"]
    assert {one.device.node for one in directory.members(clock.now)} >= {"alice-laptop"}  # the list shows it still
    clock.forward(minutes=10)
    assert holders() == [None, None, None]
    directory.ask(directory.posts[0])
    assert holders() == ["alice-laptop", None, "ext-box.other-net.ts.net"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (ALICE, RUNNER, ALICE),
        (RUNNER, ALICE, RUNNER),
        (ALICE, EVE, ALICE),
        (ALICE._replace(full_name=None), ALICE, ALICE),
        (ALICE._replace(full_name=None), ALICE._replace(login="zoe@example.com"), ALICE._replace(full_name=None)),
        (ALICE._replace(login=None, full_name=None), ALICE, ALICE),  # it knows the device, and not whose it is
        (ALICE._replace(login=None, full_name=None), RUNNER, RUNNER),
    ],
)
def test_a_device_is_a_persons_or_tagged_as_the_first_source_says_that_knows(
    first: Listed, second: Listed, expected: Listed, kept: DuckDB
) -> None:
    sources = [Given(), Given()]
    for source, device in zip(sources, (first, second), strict=True):
        source.says = Look((device._replace(node_id="n", node="box", addresses=("100.64.0.2",)),))
    directory = Directory(sources, kept, Clock())
    for post in directory.posts:
        directory.ask(post)
    expected = expected._replace(node_id="n", node="box", addresses=("100.64.0.2",))
    assert directory.holder("100.64.0.2") == expected
    assert [one.device for one in directory.members(NOW)] == [expected]


def test_a_source_in_trouble_is_left_alone_for_longer_each_time_and_as_long_as_it_wishes(kept: DuckDB) -> None:
    source = Given()
    directory = Directory([source], kept, Clock())
    [post] = directory.posts

    def next_s(state: Any, again_s: float | None = None) -> float:
        source.says = TailnetError(state, "No.", again_s=again_s)
        directory.ask(post)
        return post.next_s

    assert [next_s("unreachable") for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert [next_s("asked too often", wish) for wish in (0, 42.0, 10**9)] == [5, 42, 3600]
    assert next_s("wrong token") == 300
    source.says = Look((ALICE,))
    directory.ask(post)
    assert post.next_s == 30
    post.took_s = 5  # so large a tailnet
    assert post.next_s == 100


@pytest.mark.parametrize(("sent", "wished"), [("120", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 5), ("soon", 5)])
def test_retry_after_is_read_as_seconds_or_as_a_date(sent: str, wished: float, kept: DuckDB) -> None:
    with tailscale(**{DEVICES: Answer({"message": "rate limited"}, 429, Retry_After=sent)}) as control:
        directory = Directory([API(TailscaleAPI(key=API_KEY, url=control.url))], kept, Clock())
        directory.ask(directory.posts[0])
    assert (directory.posts[0].next_s, directory.told(NOW)[0].state) == (wished, "asked too often")


def test_a_store_that_cannot_be_written_is_tried_again_with_the_next_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DuckDB(tmp_path / "closed.duckdb")
    store.close()
    directory = Directory([Given()], store, Clock())
    directory.ask(directory.posts[0])
    assert "The device history was not kept" in caplog.text
