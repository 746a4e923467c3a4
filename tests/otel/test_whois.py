"""The directory of who has an address, against a LocalAPI that replays a real one's answers."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tailspan_otel import localapi, whois
from tailspan_otel.node import Node, from_whois
from tailspan_otel.whois import Whois

from tailspan.demo.localapi import LocalAPI

FIXTURES = Path(__file__).parent.parent / "fixtures"


def addresses(last: int) -> tuple[str, str]:
    return f"100.64.0.{last}", f"fd7a:115c:a1e0:ab12:4843:cd96:6240:{last}"


SHARED = "ext-box.other-net.ts.net"
ALICE = Node("TESTCTRL00000002", "alice-laptop", "alice@example.com", "Alice Architect", (), False, addresses(2))
PATIENT = 10.0  # seconds: longer than anything here takes


def captured(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return answer


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time in seconds that only the test moves on."""
    now = [1000.0]
    monkeypatch.setattr("tailspan_otel.whois.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def settle(asking: Whois) -> None:
    with asking._news:
        assert asking._news.wait_for(lambda: not asking._asked, PATIENT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tailscaled.sock"


@pytest.fixture
def tailscaled(path: Path) -> Iterator[LocalAPI]:
    with LocalAPI(path, FIXTURES) as api:
        yield api


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ("whois-alice-laptop", ALICE),
        (
            "whois-zoe-phone",
            Node("TESTCTRL00000003", "zoe-phone", "zoe@example.com", "Zoë Müller 漢字", (), False, addresses(3)),
        ),
        ("whois-ci-runner", Node("TESTCTRL00000004", "ci-runner", None, None, ("tag:ci",), False, addresses(4))),
        (
            "whois-ext-box",
            Node(
                "TESTCTRL00000005",
                "ext-box.other-net.ts.net",
                "eve@other.example",
                "Eve External",
                (),
                True,
                addresses(5),
            ),
        ),
    ],
)
def test_a_whois_answer_becomes_a_node(capture: str, expected: Node) -> None:
    assert from_whois(captured(capture)) == expected


def test_kinds_of_callers_are_told_apart_by_their_node() -> None:
    captures = ("whois-alice-laptop", "whois-ci-runner", "whois-ext-box")
    assert [from_whois(captured(capture)).kind for capture in captures] == ["person", "tagged", "shared"]


def test_an_address_is_asked_about_once_by_tcp_and_without_a_port(tailscaled: LocalAPI, path: Path) -> None:
    asking = Whois(str(path))
    assert asking.peek("100.64.0.2") == (False, None)
    assert asking.wait("100.64.0.2", PATIENT) == ALICE
    assert asking.peek("100.64.0.2") == (True, ALICE)
    assert asking.wait("100.64.0.2", PATIENT) == ALICE
    assert tailscaled.asked == [
        "/localapi/v0/status?peers=false",
        "/localapi/v0/whois?addr=100.64.0.2&proto=tcp",
    ]


def test_an_ipv6_address_finds_the_same_node(tailscaled: LocalAPI, path: Path) -> None:
    assert Whois(str(path)).wait("fd7a:115c:a1e0:ab12:4843:cd96:6240:2", PATIENT) == ALICE


def test_nobody_is_believed_for_five_seconds(tailscaled: LocalAPI, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    asking = Whois(str(path))
    assert asking.wait("100.64.0.99", PATIENT) is None
    assert asking.peek("100.64.0.99") == (True, None)
    now[0] += whois.NOBODY_S + 0.1
    assert asking.peek("100.64.0.99") == (False, None)


def test_a_renamed_node_is_followed_within_a_minute(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    captures = tmp_path / "captures"
    captures.mkdir()
    for file in FIXTURES.glob("*.json"):
        shutil.copy(file, captures)
    asking = Whois(str(path))
    with LocalAPI(path, captures):
        assert asking.wait("100.64.0.2", PATIENT) == ALICE
    renamed = captured("whois-alice-laptop")
    renamed["Node"]["ComputedName"] = "alice-new"
    (captures / "whois-alice-laptop.json").write_text(json.dumps(renamed))
    with LocalAPI(path, captures):
        assert asking.peek("100.64.0.2") == (True, ALICE)
        now[0] += whois.FRESH_S + 0.1
        assert asking.peek("100.64.0.2") == (True, ALICE)  # still used, and asked again
        settle(asking)
        known, node = asking.peek("100.64.0.2")
    assert known and node and node.name == "alice-new"


def test_an_answer_that_cannot_be_had_again_is_forgotten(
    tailscaled: LocalAPI, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    asking = Whois(str(path))
    asking.wait("100.64.0.2", PATIENT)
    asking._away_until = now[0] + 1000
    now[0] += whois.STALE_S + 0.1
    assert asking.peek("100.64.0.2") == (False, None)


def test_without_tailscaled_nobody_waits(tmp_path: Path) -> None:
    asking = Whois(str(tmp_path / "nowhere.sock"))
    assert asking.wait("100.64.0.2", PATIENT) is None
    assert asking._away_until > 0
    assert asking.wait("100.64.0.3", PATIENT) is None
    assert asking.peek("100.64.0.3") == (False, None)


def test_a_tailscaled_that_hangs_is_waited_for_no_longer_than_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localapi, "TIMEOUT_S", 0.5)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(path))
        hanging.listen()
        asking = Whois(str(path), userspace=False)
        assert asking.wait("100.64.0.2", 0.02) is None
        assert asking.peek("100.64.0.2") == (False, None)
        settle(asking)


def test_one_slow_answer_does_not_unname_the_next(tailscaled: LocalAPI, path: Path) -> None:
    tailscaled.miss_s = 0.18  # as long as a real one holds its lock
    asking = Whois(str(path), userspace=True)
    asking.start()
    lost = asking.connection(("127.0.0.1", 5))
    assert asking.wait("100.64.0.2", PATIENT) == ALICE
    assert lost and lost.answered and lost.node is None


def test_a_crowd_of_new_addresses_waits_half_a_second_of_each_and_no_longer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whois, "PATIENCE_S", 0.5)
    now, waited = clock(monkeypatch), []
    asking = Whois(str(path), userspace=False)
    monkeypatch.setattr(asking, "start", lambda: None)  # nobody answers

    def in_vain(done: Callable[[], bool], seconds: float) -> bool:
        waited.append(seconds)
        now[0] += seconds
        return done()

    monkeypatch.setattr(asking._news, "wait_for", in_vain)
    assert [asking.wait(f"100.64.1.{last}", whois.WAIT_S) for last in range(200)] == [None] * 200
    assert waited[:2] == [whois.WAIT_S, whois.WAIT_S]
    assert waited == sorted(waited, reverse=True) and sum(waited) == pytest.approx(
        1.0
    )  # half of the second that passed


def test_what_answers_nonsense_is_left_alone_for_a_while(tmp_path: Path, path: Path) -> None:
    (tmp_path / "whois-broken.json").write_text('{"Node": {"Addresses": ["100.64.0.2/32"]}}')
    shutil.copy(FIXTURES / "status.json", tmp_path)
    with LocalAPI(path, tmp_path):
        asking = Whois(str(path))
        assert asking.wait("100.64.0.2", PATIENT) is None
        assert asking._away_until > 0


@pytest.mark.parametrize(("tun", "said", "expected"), [(False, None, True), (True, None, False), (False, False, False)])
def test_userspace_mode_is_read_from_the_status_unless_the_owner_says(
    tun: bool, said: bool | None, expected: bool, tmp_path: Path, path: Path
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({**captured("status"), "TUN": tun}))
    with LocalAPI(path, tmp_path):
        asking = Whois(str(path), userspace=said)
        asking.wait("100.64.0.2", PATIENT)
        assert asking.userspace is expected


class Asked(LocalAPI):
    """One that tells of each question about its mode."""

    def __init__(self, path: Path, tun: bool) -> None:
        super().__init__(path, FIXTURES)
        self.status = json.dumps({**captured("status"), "TUN": tun}).encode()
        self.news = threading.Condition()

    def answer(self, target: str) -> tuple[int, bytes]:
        with self.news:
            self.news.notify_all()
            return super().answer(target)

    def wait_for_two(self) -> None:
        """Until it was asked twice: then the first answer was learned."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.asked) >= 2, PATIENT)


def test_a_tailscaled_that_starts_later_and_one_that_starts_otherwise_are_asked_how_they_run_unasked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whois, "MODE_S", 0.02)
    asking, seen = Whois(str(path)), []
    asking.start()
    for tun in (False, True, False):
        with Asked(path, tun) as tailscaled:
            tailscaled.wait_for_two()
            seen.append((asking.userspace, asking.own != frozenset()))
    assert seen == [(True, True), (False, True), (True, True)]


def test_after_tailscaled_was_away_its_mode_is_asked_before_anything_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    asking = Whois(str(path))
    asking.wait("100.64.0.2", PATIENT)
    now[0] += whois.AWAY_S
    with LocalAPI(path, FIXTURES) as tailscaled:
        assert asking.wait("100.64.0.2", PATIENT) == ALICE
    assert tailscaled.asked[0] == "/localapi/v0/status?peers=false"


def test_only_so_many_addresses_are_remembered(
    tailscaled: LocalAPI, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whois, "MAX_ADDRESSES", 2)
    asking = Whois(str(path))
    for last in (2, 3, 4):
        asking.wait(f"100.64.0.{last}", PATIENT)
    assert list(asking._known) == ["100.64.0.3", "100.64.0.4"]


def test_a_crowd_of_new_addresses_waits_in_a_bounded_queue(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Whois(str(path))
    monkeypatch.setattr(asking, "start", lambda: None)  # nobody takes them out
    for number in range(whois.MAX_WAITING + 50):
        asking.peek(f"address {number}")
    assert len(asking._asked) == whois.MAX_WAITING
