"""Whom a request is recorded as, case by case, with a LocalAPI that replays a real one's answers."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tailspan_otel import attributes as name
from tailspan_otel import whois as directory
from tailspan_otel.describe import identity_of
from tailspan_otel.identity import Headers, Identify
from tailspan_otel.peers import Peers
from tailspan_otel.resolve import Resolve, Who
from tailspan_otel.status import Listing
from tailspan_otel.whois import Whois

from tailspan.demo.localapi import LocalAPI
from tests.otel.receiver import FIXTURES

PATIENT = 10.0
PROXY = ("127.0.0.1", 48268)
ALICE, CEO = b"alice@example.com", b"ceo@example.com"
Ask = Callable[..., Who]


@pytest.fixture
def tailscaled(tmp_path: Path) -> Iterator[LocalAPI]:
    with LocalAPI(tmp_path / "tailscaled.sock", FIXTURES) as api:
        yield api


@pytest.fixture
def tun(tailscaled: LocalAPI) -> None:
    tailscaled.status = tailscaled.status.replace(b'"TUN": false', b'"TUN": true')


@pytest.fixture
def asking(tailscaled: LocalAPI, tmp_path: Path) -> Whois:
    asking = Whois(str(tmp_path / "tailscaled.sock"))
    asking.wait("100.64.0.99", PATIENT)  # before that, it reads how tailscaled runs
    return asking


def resolver(asking: Whois, listing: Listing | None = None, patient: float = PATIENT) -> Ask:
    identify, resolve = Identify(Peers()), Resolve(asking, listing)

    def ask(client: tuple[str, int] | None, forwarded: bytes = b"", **headers: bytes) -> Who:
        sent: Headers = {key.replace("_", "-").encode(): value for key, value in headers.items()}
        caller = identify(client, sent | ({b"x-forwarded-for": forwarded} if forwarded else {}), "127.0.0.1")
        return resolve(caller, asking.connection(client), patient)

    return ask


@pytest.fixture
def ask(tun: None, asking: Whois) -> Ask:
    return resolver(asking)


def told(who: Who) -> tuple[Any, ...]:
    """Kind of caller, source, login, device, tailnet address, proven, forged."""
    known = identity_of(who)
    names = (name.CALLER, name.IDENTITY_SOURCE, name.LOGIN, name.NODE, name.ADDRESS)
    return (*(known.get(key) for key in names), known.get(name.PROVEN, True), who.forged)


def changed(answer: bytes, **node: Any) -> bytes:
    """A whois answer of a node that is no longer what it was."""
    read = json.loads(answer)
    read["Node"] |= node
    return json.dumps(read).encode()


SERVED = ("person", "serve_header", "alice@example.com", "alice-laptop", "100.64.0.2", True, None)
CI = ("tagged", "whois", None, "ci-runner", "100.64.0.4")
ZOE = ("person", "whois", "zoe@example.com", "zoe-phone", "100.64.0.3")


def test_serves_header_names_the_person_and_whois_the_device(ask: Ask) -> None:
    assert told(ask(PROXY, b"100.64.0.2", tailscale_user_login=ALICE)) == SERVED


def test_nginx_auths_headers_name_the_person_as_serves_do(ask: Ask) -> None:
    expected = ("person", "nginx_auth", *SERVED[2:])
    assert told(ask(PROXY, b"100.64.0.2", tailscale_user=ALICE, tailscale_login=b"alice")) == expected
    assert told(ask(PROXY, b"100.64.0.2", x_webauth_user=ALICE, x_webauth_login=b"alice")) == expected


def test_nginx_auths_headers_pass_through_serve_and_are_unproven_until_tailscaled_says_the_same(
    ask: Ask,
) -> None:
    unknown = told(ask(PROXY, b"100.64.0.77", tailscale_user=CEO))
    assert unknown == ("person", "nginx_auth", "ceo@example.com", None, "100.64.0.77", False, None)


def test_one_connection_of_serve_carries_several_people(ask: Ask) -> None:
    logins = [
        ask(PROXY, b"100.64.0.2", tailscale_user_login=ALICE),
        ask(PROXY, b"100.64.0.3", tailscale_user_login=b"zoe@example.com"),
        ask(PROXY, b"100.64.0.4"),
    ]
    assert [told(each)[:3] for each in logins] == [
        ("person", "serve_header", "alice@example.com"),
        ("person", "serve_header", "zoe@example.com"),
        ("tagged", "whois", None),
    ]


@pytest.mark.parametrize(
    "address", ["100.64.0.3", "::ffff:100.64.0.3", "FD7A:115C:A1E0:AB12:4843:CD96:6240:3", "100.64.0.3, 127.0.0.1"]
)
def test_an_address_is_the_same_in_every_notation(ask: Ask, tailscaled: LocalAPI, address: str) -> None:
    assert told(ask(PROXY, address.encode()))[:4] == ZOE[:4]
    assert not any("ffff" in asked or "FD7A" in asked for asked in tailscaled.asked)


@pytest.mark.parametrize("host", ["100.64.0.3", "::ffff:100.64.0.3", "fd7a:115c:a1e0:ab12:4843:cd96:6240:3"])
def test_a_tailnet_peer_itself_is_asked_about_without_its_port(ask: Ask, tailscaled: LocalAPI, host: str) -> None:
    assert told(ask((host, 36855)))[:4] == ZOE[:4]
    whois = [asked for asked in tailscaled.asked if "/whois" in asked]
    assert all(asked.endswith("&proto=tcp") and "36855" not in asked for asked in whois)


def test_of_addresses_that_are_not_tailscales_tailscaled_is_not_asked(ask: Ask, tailscaled: LocalAPI) -> None:
    before = list(tailscaled.asked)
    for client in (("192.0.2.7", 4000), ("::1", 4000), ("100.63.0.1", 4000), None):
        ask(client)
    ask(PROXY, b"203.0.113.9", tailscale_funnel_request=b"?1")
    assert tailscaled.asked == before


def test_tags_are_the_identity_of_a_tagged_node(ask: Ask) -> None:
    who = ask(PROXY, b"100.64.0.4")
    assert told(who) == (*CI, True, None)
    assert identity_of(who)[name.TAGS] == ("tag:ci",)


def test_a_device_shared_in_from_another_tailnet_is_told_apart(ask: Ask) -> None:
    who = ask(PROXY, b"100.64.0.5", tailscale_user_login=b"eve@other.example")
    assert told(who)[:4] == ("shared", "serve_header", "eve@other.example", "ext-box.other-net.ts.net")


def test_a_caller_through_funnel_is_nobody_whatever_else_is_said(ask: Ask) -> None:
    who = ask(PROXY, b"203.0.113.9", tailscale_funnel_request=b"?1", tailscale_user_login=CEO)
    assert told(who) == ("funnel", "none", None, None, None, True, None)


def test_who_claims_to_come_through_funnel_with_a_tailnet_address_does_not(ask: Ask) -> None:
    assert told(ask(PROXY, b"100.64.0.4", tailscale_funnel_request=b"?1")) == (*CI, True, "contradicted")


@pytest.mark.parametrize(("client", "forwarded"), [(PROXY, b"100.64.0.1"), (("100.64.0.1", 4000), b""), (PROXY, b"")])
def test_the_serving_machine_itself_is_local(
    ask: Ask, client: tuple[str, int], forwarded: bytes, tailscaled: LocalAPI
) -> None:
    assert told(ask(client, forwarded))[:3] == ("local", "none", None)


def test_a_user_of_the_serving_machine_is_local_through_serve_too(ask: Ask) -> None:
    who = ask(PROXY, b"100.64.0.1", tailscale_user_login=b"ops@example.com")
    assert told(who)[:3] == ("local", "serve_header", "ops@example.com")


def test_a_login_without_an_at_sign_is_a_login(ask: Ask, tailscaled: LocalAPI) -> None:
    answer = json.loads(tailscaled.whois["100.64.0.3"])
    answer["UserProfile"] |= {"LoginName": "nomail", "DisplayName": "nomail"}
    tailscaled.whois["100.64.0.3"] = json.dumps(answer).encode()
    assert told(ask(PROXY, b"100.64.0.3", tailscale_user_login=b"nomail"))[:4] == (
        "person",
        "serve_header",
        "nomail",
        "zoe-phone",
    )
    assert told(ask(PROXY, b"100.64.0.3"))[:4] == ("person", "whois", "nomail", "zoe-phone")


def test_the_last_requests_of_a_node_whose_key_expired_are_its_own(ask: Ask, tailscaled: LocalAPI) -> None:
    tailscaled.whois["100.64.0.3"] = changed(tailscaled.whois["100.64.0.3"], Expired=True)
    assert told(ask(PROXY, b"100.64.0.3")) == (*ZOE, True, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ComputedName": "zoe-new"}, ("person", "whois", "zoe@example.com", "zoe-new")),
        ({"Tags": ["tag:ci"]}, ("tagged", "whois", None, "zoe-phone")),
        (None, ("unknown", "none", None, None)),  # deleted, or no longer allowed to come here
    ],
)
def test_a_node_that_is_renamed_tagged_deleted_or_forbidden_is_followed_within_a_minute(
    ask: Ask,
    asking: Whois,
    tailscaled: LocalAPI,
    change: dict[str, Any] | None,
    expected: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert directory.STALE_S < 60
    assert told(ask(PROXY, b"100.64.0.3"))[:4] == ZOE[:4]
    answer = tailscaled.whois.pop("100.64.0.3")
    if change:
        tailscaled.whois["100.64.0.3"] = changed(answer, **change)
    assert told(ask(PROXY, b"100.64.0.3"))[:4] == ZOE[:4]  # an answer is kept for a while
    later(monkeypatch, directory.STALE_S + 1)
    assert told(ask(PROXY, b"100.64.0.3"))[:4] == expected


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(directory, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + seconds))


def test_a_tailscaled_that_is_stopped_and_started_again_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "restarted.sock"
    asking = Whois(str(path), userspace=False)
    ask = resolver(asking)
    with LocalAPI(path, FIXTURES):
        assert told(ask(PROXY, b"100.64.0.4")) == (*CI, True, None)
    assert told(ask(PROXY, b"100.64.0.4")) == (*CI, True, None)
    later(monkeypatch, directory.STALE_S + 1)
    assert told(ask(PROXY, b"100.64.0.4"))[:2] == ("unknown", "none")  # and its address stays
    with LocalAPI(path, FIXTURES):
        later(monkeypatch, directory.AWAY_S + 1)
        assert told(ask(PROXY, b"100.64.0.4")) == (*CI, True, None)


def test_a_tailscaled_that_is_logged_out_knows_nobody_and_is_asked_again_after_five_seconds(
    ask: Ask, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, tailscaled.whois = tailscaled.whois, {}
    assert told(ask(PROXY, b"100.64.0.4")) == ("unknown", "none", None, None, "100.64.0.4", True, None)
    tailscaled.whois = nodes
    assert told(ask(PROXY, b"100.64.0.4"))[0] == "unknown"
    later(monkeypatch, directory.NOBODY_S + 1)
    assert told(ask(PROXY, b"100.64.0.4")) == (*CI, True, None)


@pytest.mark.parametrize("header", ["tailscale_user_login", "tailscale_user", "x_webauth_user"])
def test_a_header_that_nginx_passed_on_is_contradicted_by_tailscaled(ask: Ask, header: str) -> None:
    sent = {header: CEO, "x_webauth_login": b"ceo"}
    assert told(ask(PROXY, b"100.64.0.4", **sent)) == (*CI, True, "contradicted")
    assert told(ask(PROXY, b"100.64.0.3", **sent)) == (*ZOE, True, "contradicted")


def test_before_a_header_is_called_forged_an_older_answer_is_asked_for_again(
    ask: Ask, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(ask(PROXY, b"100.64.0.3")) == (*ZOE, True, None)
    tailscaled.whois["100.64.0.3"] = tailscaled.whois["100.64.0.2"]  # the address has a new owner
    later(monkeypatch, directory.DOUBTED_S + 1)
    who = ask(PROXY, b"100.64.0.3", tailscale_user_login=ALICE)
    assert told(who) == ("person", "serve_header", "alice@example.com", "alice-laptop", "100.64.0.3", True, None)


@pytest.mark.parametrize("away", [True, False])
@pytest.mark.parametrize("wait_s", [0.0, 0.01])  # on the request's path, and in the sending thread
def test_where_an_older_answer_contradicts_a_header_and_cannot_be_renewed_neither_is_believed(
    tun: None, asking: Whois, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch, away: bool, wait_s: float
) -> None:
    ask = resolver(asking)
    assert told(ask(PROXY, b"100.64.0.3")) == (*ZOE, True, None)
    later(monkeypatch, directory.DOUBTED_S + 1)
    with tailscaled._lock:  # somebody else has it
        if away:
            monkeypatch.setattr(asking, "_away_until", float("inf"))
        who = resolver(asking, patient=wait_s)(PROXY, b"100.64.0.3", tailscale_user_login=ALICE)
    assert told(who) == ("unknown", "none", None, None, "100.64.0.3", True, "contradicted")


def test_a_header_over_tcp_that_tailscaled_does_not_confirm_in_time_is_unproven(
    tun: None, asking: Whois, tailscaled: LocalAPI
) -> None:
    hurried = resolver(asking, patient=0.01)
    with tailscaled._lock:  # somebody else has it
        assert told(hurried(PROXY, b"100.64.0.4", tailscale_user_login=CEO)) == (
            *("person", "serve_header", "ceo@example.com", None, "100.64.0.4"),
            *(False, None),
        )
        assert told(hurried(None, b"100.64.0.2", tailscale_user_login=ALICE))[5]
    assert told(resolver(asking)(PROXY, b"100.64.0.4", tailscale_user_login=CEO)) == (*CI, True, "contradicted")


def test_a_header_over_tcp_of_a_device_that_tailscaled_does_not_know_is_unproven(ask: Ask) -> None:
    assert told(ask(PROXY, b"100.64.0.77", tailscale_user_login=CEO))[5:] == (False, None)


@pytest.mark.parametrize("userspace", [None, False])
def test_where_nobody_is_there_who_could_confirm_it_serves_header_is_taken_as_with_a_tun_device(
    tmp_path: Path, userspace: bool | None
) -> None:
    ask = resolver(Whois(str(tmp_path / "nowhere.sock"), userspace=userspace))
    known = ("person", "serve_header", "alice@example.com", None, "100.64.0.2")
    assert told(ask(PROXY, b"100.64.0.2", tailscale_user_login=ALICE)) == (*known, True, None)
    assert told(ask(None, b"100.64.0.2", tailscale_user_login=ALICE)) == (*known, True, None)
    assert told(ask(None, b"100.64.0.2", tailscale_user=ALICE))[5] is False  # Serve lets it pass


class TestUserspace:
    """`TUN: false`: tailscaled's own network stack takes a tailnet peer to any port of 127.0.0.1, past Serve."""

    @pytest.fixture
    def ask(self, asking: Whois) -> Ask:
        return resolver(asking)

    @pytest.fixture(autouse=True)
    def past_serve(self, tailscaled: LocalAPI) -> None:
        tailscaled.connections["127.0.0.1:55264"] = tailscaled.whois["100.64.0.4"]

    @pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
    def test_who_comes_past_serve_is_who_tailscaled_says_and_is_counted(self, ask: Ask, host: str) -> None:
        who = ask((host, 55264), b"100.64.0.2", tailscale_user_login=CEO)
        assert told(who) == (*CI, True, "bypass")
        assert told(ask((host, 55264), b"100.64.0.2")) == (*CI, True, "bypass")
        assert told(ask((host, 55264), tailscale_user_login=CEO)) == (*CI, True, "bypass")
        assert told(ask((host, 55264), b"203.0.113.9", x_real_ip=b"100.64.0.2")) == (*CI, True, "bypass")

    def test_who_comes_past_serve_and_claims_nothing_has_forged_nothing(self, ask: Ask) -> None:
        assert told(ask(("127.0.0.1", 55264))) == (*CI, True, None)

    def test_the_serving_machine_itself_is_local_past_serve_too(self, ask: Ask, tailscaled: LocalAPI) -> None:
        itself = changed(tailscaled.whois["100.64.0.2"], Addresses=["100.64.0.1/32"])
        tailscaled.connections["127.0.0.1:55264"] = itself
        assert told(ask(("127.0.0.1", 55264)))[:3] == ("local", "whois", "alice@example.com")

    def test_who_comes_by_another_network_that_uses_the_same_addresses_is_nobody_of_the_tailnet(self, ask: Ask) -> None:
        for headers in ({}, {"tailscale_user_login": CEO}):
            who = ask(("100.64.0.2", 4000), **headers)
            assert told(who) == ("unknown", "none", None, None, None, True, "untrusted" if headers else None)
            assert identity_of(who)[name.CLIENT_ADDRESS] == "100.64.0.2"

    def test_serves_own_connection_is_believed_without_proof(self, ask: Ask) -> None:
        assert told(ask(PROXY, b"100.64.0.2", tailscale_user_login=ALICE)) == (*SERVED[:5], False, None)

    def test_over_a_unix_socket_nobody_comes_past_serve(self, ask: Ask, tailscaled: LocalAPI) -> None:
        assert told(ask(None, b"100.64.0.2", tailscale_user_login=ALICE)) == SERVED
        assert not any("127.0.0.1" in asked for asked in tailscaled.asked)

    def test_an_answer_about_a_connection_is_never_kept(self, ask: Ask, tailscaled: LocalAPI) -> None:
        assert told(ask(("127.0.0.1", 55264), b"100.64.0.2"))[3] == "ci-runner"
        tailscaled.connections["127.0.0.1:55264"] = tailscaled.whois["100.64.0.3"]  # the port was used again
        assert told(ask(("127.0.0.1", 55264), b"100.64.0.2"))[3] == "zoe-phone"

    def test_a_connection_is_looked_for_in_vain_once_a_second_since_tailscaleds_lock_is_held_for_it(
        self, ask: Ask, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def looked_for() -> int:
            return sum("127.0.0.1" in asked for asked in tailscaled.asked)

        connections = [("127.0.0.1", port) for port in range(4000, 4006)]  # that Serve opened
        for connection in connections:
            ask(connection, b"100.64.0.2")
        assert looked_for() == 1
        later(monkeypatch, directory.MISSED_S + 0.1)
        for connection in connections:
            ask(connection, b"100.64.0.2")
        assert looked_for() == 2  # the first one is known, the second was looked for, and the others not

    def test_behind_uvicorns_proxy_headers_the_port_is_not_known(self, ask: Ask, tailscaled: LocalAPI) -> None:
        assert told(ask(("100.64.0.2", 0), b"100.64.0.2", tailscale_user_login=ALICE)) == (*SERVED[:5], False, None)
        assert not any("127.0.0.1" in asked for asked in tailscaled.asked)


def listed(tmp_path: Path) -> Listing:
    listing = Listing(str(shutil.copy(FIXTURES / "status.json", tmp_path / "status.json")))
    listing.read()
    return listing


def test_without_tailscaled_a_status_names_person_device_tags_and_shared(tmp_path: Path) -> None:
    ask = resolver(Whois(str(tmp_path / "nowhere.sock")), listed(tmp_path))
    assert [told(ask(PROXY, b"100.64.0.%d" % last)) for last in (3, 4, 5, 1, 77)] == [
        ("person", "status", *ZOE[2:], True, None),
        ("tagged", "status", *CI[2:], True, None),
        ("shared", "status", "eve@other.example", "ext-box.other-net.ts.net", "100.64.0.5", True, None),
        ("person", "status", "user-1@fake-control.example.net", "appsrv", "100.64.0.1", True, None),  # some machine
        ("unknown", "none", None, None, "100.64.0.77", True, None),
    ]
    assert told(ask(PROXY, b"100.64.0.2", tailscale_user_login=ALICE)) == SERVED


@pytest.mark.parametrize("address", ["100.64.0.3", "100.64.0.4"])  # another person's, a tagged device
def test_of_a_header_and_a_status_that_contradict_each_other_neither_is_believed(tmp_path: Path, address: str) -> None:
    ask = resolver(Whois(str(tmp_path / "nowhere.sock")), listed(tmp_path))
    who = ask(PROXY, address.encode(), tailscale_user_login=ALICE)
    assert told(who) == ("unknown", "none", None, None, address, True, "contradicted")


def test_the_machine_of_a_status_is_local_where_it_is_this_one(tmp_path: Path) -> None:
    listing = listed(tmp_path)
    listing.own = frozenset({"100.64.0.1"})
    ask = resolver(Whois(str(tmp_path / "nowhere.sock")), listing)
    assert told(ask(PROXY, b"100.64.0.1"))[:4] == ("local", "status", "user-1@fake-control.example.net", "appsrv")


def test_tailscaled_is_asked_before_the_status(ask: Ask, asking: Whois, tmp_path: Path) -> None:
    ask = resolver(asking, listed(tmp_path))
    assert told(ask(PROXY, b"100.64.0.3")) == (*ZOE, True, None)
