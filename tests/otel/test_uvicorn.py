"""Who is calling, as a real uvicorn tells it: with its proxy headers on and off, and over a unix socket."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from tailspan_otel import attributes as name
from tailspan_otel import instrument, whois

from tailspan.demo.localapi import LocalAPI
from tests.otel.receiver import FIXTURES, Receiver, captured, client, serving

Headers = list[tuple[str, str]]
Identity = dict[str, Any]

IDENTITY = (
    name.CALLER,
    name.IDENTITY_SOURCE,
    name.PROVEN,
    name.LOGIN,
    name.FULL_NAME,
    name.CLIENT_ADDRESS,
    name.PEER_ADDRESS,
    name.ADDRESS,
    name.NODE,
    name.NODE_ID,
    name.TAGS,
    name.GUESS,
)
# many-hops, two-headers, our-own-hop-last and a-word-last name a tailnet address that nobody vouches for
COUNTED = {
    name.FORGED: 9,
    name.FORGED_KINDS: "addressless=1,disputed=4,forwarded=4",
    name.UNPROVEN: 0,
}
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
ALICE_V6, ZOE_V6 = "fd7a:115c:a1e0:ab12:4843:cd96:6240:2", "fd7a:115c:a1e0:ab12:4843:cd96:6240:3"

ALICE: Identity = {
    name.CALLER: "person",
    name.IDENTITY_SOURCE: "serve_header",
    name.LOGIN: "alice@example.com",
    name.FULL_NAME: "Alice Architect",
    name.CLIENT_ADDRESS: "100.64.0.2",
    name.ADDRESS: "100.64.0.2",
    name.NODE: "alice-laptop",
    name.NODE_ID: "TESTCTRL00000002",
}
ZOE: Identity = {
    name.CALLER: "person",
    name.IDENTITY_SOURCE: "serve_header",
    name.LOGIN: "zoe@example.com",
    name.FULL_NAME: "Zoë Müller 漢字",
    name.CLIENT_ADDRESS: "100.64.0.3",
    name.ADDRESS: "100.64.0.3",
    name.NODE: "zoe-phone",
    name.NODE_ID: "TESTCTRL00000003",
}
CI: Identity = {
    name.CALLER: "tagged",
    name.IDENTITY_SOURCE: "whois",
    name.CLIENT_ADDRESS: "100.64.0.4",
    name.ADDRESS: "100.64.0.4",
    name.NODE: "ci-runner",
    name.NODE_ID: "TESTCTRL00000004",
    name.TAGS: ["tag:ci"],
}
EVE: Identity = {
    name.CALLER: "shared",
    name.IDENTITY_SOURCE: "serve_header",
    name.LOGIN: "eve@other.example",
    name.FULL_NAME: "Eve External",
    name.CLIENT_ADDRESS: "100.64.0.5",
    name.ADDRESS: "100.64.0.5",
    name.NODE: "ext-box.other-net.ts.net",
    name.NODE_ID: "TESTCTRL00000005",
}
LOCAL: Identity = {name.CALLER: "local", name.IDENTITY_SOURCE: "none"}
UNKNOWN: Identity = {name.CALLER: "unknown", name.IDENTITY_SOURCE: "none"}
FUNNEL: Identity = {name.CALLER: "funnel", name.IDENTITY_SOURCE: "none", name.CLIENT_ADDRESS: "203.0.113.9"}
NOBODY: Identity = {
    **UNKNOWN,
    name.CLIENT_ADDRESS: "100.64.0.77",
    name.ADDRESS: "100.64.0.77",
    name.GUESS: "iPhone",
}

FORGED: Headers = [
    ("Tailscale-User-Login", "ceo@example.com"),
    ("Tailscale-User-Name", "The Boss"),
    ("X-Forwarded-For", "100.64.0.2"),
]


def forwarded(value: str, *more: tuple[str, str]) -> Headers:
    return [("X-Forwarded-For", value), *more]


# what is sent, and who that is: the peer's address apart, which depends on how uvicorn was started
CASES: dict[str, tuple[Headers, Identity]] = {
    "alice": (captured("serve-http-alice-laptop"), ALICE),
    "zoe": (captured("serve-http-zoe-phone"), ZOE),
    "ci": (captured("serve-http-ci-runner"), CI),
    "eve": (captured("serve-http-ext-box"), EVE),
    "alice-by-unix": (captured("serve-unix-alice"), ALICE),
    "funnel": (forwarded("203.0.113.9", ("Tailscale-Funnel-Request", "?1")), FUNNEL),
    "funnel-with-a-name": (
        forwarded("203.0.113.9", ("Tailscale-Funnel-Request", "?1"), ("Tailscale-User-Login", "ceo@example.com")),
        FUNNEL,
    ),
    "no-such-node": (forwarded("100.64.0.77", ("User-Agent", IPHONE)), NOBODY),
    "many-hops": (forwarded("100.64.0.2, 203.0.113.9, 100.64.0.4"), CI),
    "our-own-hop-last": (forwarded("100.64.0.2, 100.64.0.4, 127.0.0.1"), CI),
    "two-headers": ([*forwarded("100.64.0.2"), *forwarded("100.64.0.4")], CI),
    "nothing-in-it": (forwarded(""), UNKNOWN),
    "a-comma": (forwarded(","), UNKNOWN),
    "a-word": (forwarded("unknown"), UNKNOWN),
    "a-word-last": (forwarded("100.64.0.2, <script>"), UNKNOWN),
    "too-many-numbers": (forwarded("100.64.0.2.9"), UNKNOWN),
    "a-zone": (forwarded("fe80::1%eth0"), UNKNOWN),
    "v6": (
        forwarded(ALICE_V6, ("Tailscale-User-Login", "alice@example.com"), ("Tailscale-User-Name", "Alice Architect")),
        {**ALICE, name.CLIENT_ADDRESS: ALICE_V6, name.ADDRESS: ALICE_V6},
    ),
    "v6-in-capitals": (
        forwarded(ZOE_V6.upper()),
        {**ZOE, name.IDENTITY_SOURCE: "whois", name.CLIENT_ADDRESS: ZOE_V6, name.ADDRESS: ZOE_V6},
    ),
    "v4-in-v6": (forwarded("::ffff:100.64.0.4"), CI),
    "nobody-before": ([], LOCAL),
    "serve-passes-a-real-ip-on": ([*captured("serve-http-alice-laptop"), ("X-Real-Ip", "7.7.7.7")], UNKNOWN),
    "behind-an-nginx-that-sets-x-real-ip-alone": (
        [*captured("serve-http-alice-laptop"), ("X-Real-IP", "100.64.0.4")],
        UNKNOWN,
    ),
    "and-says-that-it-is-the-proxy": (forwarded("127.0.0.1", ("X-Real-IP", "100.64.0.4")), UNKNOWN),
    "no-address": (forwarded("100.64.0.2", ("X-Real-IP", "nobody")), UNKNOWN),
    "both-agree": (forwarded("100.64.0.4", ("X-Real-IP", "100.64.0.4")), CI),
    "a-login-from-nowhere": ([("Tailscale-User-Login", "ceo@example.com")], UNKNOWN),
}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


@pytest.fixture
def tailscaled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalAPI]:
    with LocalAPI(tmp_path / "tailscaled.sock", FIXTURES) as tailscaled:
        monkeypatch.setenv("TS_SOCKET", str(tmp_path / "tailscaled.sock"))
        monkeypatch.setenv("TAILSPAN_USERSPACE", "false")
        yield tailscaled


@contextmanager
def dashboard(**settings: Any) -> Iterator[str]:
    app = FastAPI()

    @app.get("/{case}")
    def answer(case: str) -> str:
        return case

    instrument(app)
    with serving(app, **settings) as url:
        yield url


def identities(receiver: Receiver, count: int) -> dict[str, Identity]:
    """What arrived about each caller, by the case's name."""
    return {
        span["attributes"][name.PATH][1:]: {
            key: span["attributes"][key] for key in IDENTITY if key in span["attributes"]
        }
        for span in receiver.take(count)
    }


def counted(receiver: Receiver) -> dict[str, Any]:
    """The counts of the last beat, sent when the server stopped."""
    receiver.wait(lambda: any(beat["attributes"][name.STOPPED] for beat in receiver.beats))
    last = receiver.beat(receiver.beats[0]["span_id"])["attributes"]
    return {key: last[key] for key in (name.FORGED, name.FORGED_KINDS, name.UNPROVEN) if key in last}


def ask_all(visitor: httpx.Client, cases: dict[str, tuple[Headers, Identity]]) -> None:
    for case, (headers, _) in cases.items():
        assert visitor.get(f"/{case}", headers=[("User-Agent", "curl/7.88.1"), *headers]).status_code == 200


def expected(peer: Callable[[Headers], str | None]) -> dict[str, Identity]:
    """Every case with the peer that is seen, which is the client too where nobody speaks for one."""
    seen = {}
    for case, (headers, identity) in CASES.items():
        address = peer(headers)
        seen[case] = {name.CLIENT_ADDRESS: address, **identity, name.PEER_ADDRESS: address} if address else identity
    return seen


def test_behind_uvicorns_proxy_headers_the_caller_is_who_serve_says_and_the_peer_is_unseen(
    receiver: Receiver, tailscaled: LocalAPI
) -> None:
    with dashboard() as url, client(url) as visitor:
        ask_all(visitor, CASES)
    assert identities(receiver, len(CASES)) == expected(
        lambda headers: (
            None if any(key == "X-Forwarded-For" and value.strip(", ") for key, value in headers) else "127.0.0.1"
        )
    )
    assert counted(receiver) == COUNTED


def test_without_proxy_headers_the_caller_is_the_same_and_the_peer_is_seen(
    receiver: Receiver, tailscaled: LocalAPI
) -> None:
    with dashboard(proxy_headers=False) as url, client(url) as visitor:
        ask_all(visitor, CASES)
    assert identities(receiver, len(CASES)) == expected(lambda headers: "127.0.0.1")
    assert counted(receiver) == COUNTED


@pytest.mark.parametrize("proxy_headers", [True, False])
def test_over_a_unix_socket_the_caller_is_the_same_and_there_is_no_peer(
    receiver: Receiver, tailscaled: LocalAPI, tmp_path: Path, proxy_headers: bool
) -> None:
    path = str(tmp_path / "app.sock")
    with dashboard(uds=path, proxy_headers=proxy_headers) as url, client(url, uds=path) as visitor:
        ask_all(visitor, CASES)
    assert identities(receiver, len(CASES)) == expected(lambda headers: None)
    assert counted(receiver) == COUNTED


@pytest.mark.parametrize("proxy_headers", [True, False])
def test_headers_from_another_address_are_ignored_and_counted_as_forged(
    receiver: Receiver, tailscaled: LocalAPI, proxy_headers: bool
) -> None:
    cases: dict[str, Headers] = {
        "boss": FORGED,
        "funnel": [("Tailscale-Funnel-Request", "?1")],
        "only-an-address": forwarded("100.64.0.2"),  # or an honest proxy that nobody told us of
        "some-address": forwarded("192.0.2.7"),
        "nothing": [],
    }
    with (
        dashboard(proxy_headers=proxy_headers) as url,
        client(url, local_address="127.0.0.2") as forger,
    ):
        ask_all(forger, {case: (headers, {}) for case, headers in cases.items()})
    nobody = {**UNKNOWN, name.CLIENT_ADDRESS: "127.0.0.2", name.PEER_ADDRESS: "127.0.0.2"}
    assert identities(receiver, 5) == dict.fromkeys(cases, nobody)
    assert counted(receiver) == {name.FORGED: 3, name.FORGED_KINDS: "forwarded=1,untrusted=2", name.UNPROVEN: 0}


def test_a_trusted_peer_takes_the_place_of_loopback(
    receiver: Receiver, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_TRUSTED_PEERS", "127.0.0.2")
    with (
        dashboard(proxy_headers=False) as url,
        client(url, local_address="127.0.0.2") as proxy,
        client(url) as neighbour,
    ):
        ask_all(proxy, {"alice": CASES["alice"]})
        ask_all(neighbour, {"zoe": CASES["zoe"]})
    assert identities(receiver, 2) == {
        "alice": {**ALICE, name.PEER_ADDRESS: "127.0.0.2"},
        "zoe": {**UNKNOWN, name.CLIENT_ADDRESS: "127.0.0.1", name.PEER_ADDRESS: "127.0.0.1"},
    }
    assert counted(receiver) == {name.FORGED: 1, name.FORGED_KINDS: "untrusted=1", name.UNPROVEN: 0}


def test_a_userspace_tailscaled_leaves_headers_over_tcp_unproven_and_those_over_a_unix_socket_proven(
    receiver: Receiver, tailscaled: LocalAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILSPAN_USERSPACE")
    monkeypatch.setattr(whois, "MODE_S", 10_000.0)
    with dashboard() as url, client(url) as visitor:
        ask_all(visitor, {"ci": CASES["ci"]})
        receiver.take(1)  # tailscaled said who that is, and before that how it runs
        ask_all(visitor, {"alice": CASES["alice"]})
    assert identities(receiver, 2) == {"alice": {**ALICE, name.PROVEN: False}, "ci": {**CI, name.PROVEN: False}}
    assert counted(receiver) == {name.FORGED: 0, name.UNPROVEN: 2}
    receiver.spans.clear()
    path = str(tmp_path / "app.sock")
    with dashboard(uds=path) as url, client(url, uds=path) as visitor:
        ask_all(visitor, {"alice": CASES["alice"]})
    assert identities(receiver, 1) == {"alice": ALICE}
    assert counted(receiver) == {name.FORGED: 0, name.UNPROVEN: 0}


def test_who_comes_past_serve_in_userspace_mode_is_seen_by_the_port_of_its_connection(
    receiver: Receiver, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_USERSPACE", "true")
    with (
        dashboard(proxy_headers=False) as url,
        closing(HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]))) as forger,
    ):
        forger.connect()
        port = forger.sock.getsockname()[1]
        tailscaled.connections[f"127.0.0.1:{port}"] = tailscaled.whois["100.64.0.4"]
        for _ in range(2):
            forger.request("GET", "/boss", headers=dict(FORGED))
            assert forger.getresponse().read() == b'"boss"'
    assert identities(receiver, 2) == {"boss": {**CI, name.PEER_ADDRESS: "127.0.0.1"}}
    assert counted(receiver) == {name.FORGED: 2, name.FORGED_KINDS: "bypass=2", name.UNPROVEN: 0}


def test_a_connection_that_serve_keeps_open_is_looked_for_once_so_that_who_comes_past_it_is_seen(
    receiver: Receiver, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_USERSPACE", "true")
    monkeypatch.setattr(whois, "MISSED_S", 0.0)

    def looked_for() -> list[str]:
        return [asked for asked in tailscaled.asked if "127.0.0.1" in asked]

    with dashboard(proxy_headers=False) as url, client(url) as serve, client(url) as another:
        for number in range(1, 4):
            ask_all(serve, {"alice": CASES["alice"]})
            receiver.take(number)  # its connection was looked for until then
        assert len(looked_for()) == 1
        ask_all(another, {"zoe": CASES["zoe"]})
        receiver.take(4)
        assert len(looked_for()) == 2


def test_who_came_past_serve_is_no_local_caller_on_a_foreign_span_where_that_is_known_at_its_end_only(
    receiver: Receiver, tailscaled: LocalAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSPAN_USERSPACE", "true")
    app = FastAPI(telemetry={"tracer_provider": TracerProvider()})
    app.get("/{case}")(lambda case: case)
    instrument(app)
    with (
        serving(app, proxy_headers=False) as url,
        closing(HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]))) as visitor,
    ):
        visitor.connect()
        port = visitor.sock.getsockname()[1]
        tailscaled.connections[f"127.0.0.1:{port}"] = tailscaled.whois["100.64.0.2"]
        with tailscaled._lock:  # it answers once the response is there
            visitor.request("GET", "/prices")
            assert visitor.getresponse().read() == b'"prices"'
    [span] = receiver.take(1)
    told = (name.CALLER, name.LOGIN, name.TRAFFIC)
    assert tuple(span["attributes"].get(key) for key in told) == ("person", "alice@example.com", "api")


@pytest.mark.parametrize("native", [True, False])
def test_every_kind_of_forgery_is_counted_once_and_nothing_of_it_is_believed(
    receiver: Receiver, tailscaled: LocalAPI, native: bool
) -> None:
    app = FastAPI(telemetry={"tracer_provider": TracerProvider()} if native else {"tracing": False})
    app.get("/{case}")(lambda case: case)
    instrument(app)
    passed_on = [("X-Forwarded-For", "100.64.0.4"), ("Tailscale-User-Login", "ceo@example.com")]
    with (
        serving(app, forwarded_allow_ips="*") as url,
        client(url) as proxy,
        client(url, local_address="127.0.0.2") as neighbour,
    ):
        two = [*forwarded("100.64.0.2"), *forwarded("100.64.0.4")]
        ask_all(proxy, {"contradicted": (passed_on, {}), "rewritten": (forwarded("100.64.0.2, 100.64.0.4"), {})})
        ask_all(proxy, {"rewritten-too": (two, {}), "with-a-port": (forwarded("100.64.0.2:4000"), {})})
        ask_all(proxy, {"disputed": (forwarded("100.64.0.2", ("X-Real-IP", "100.64.0.4")), {})})
        ask_all(neighbour, {"untrusted": ([("Tailscale-User-Login", "ceo@example.com")], {})})
        ask_all(proxy, {"addressless": ([("Tailscale-User-Login", "ceo@example.com")], {})})
    found = identities(receiver, 7)
    assert {case: (found[case][name.CALLER], found[case].get(name.LOGIN)) for case in found} == {
        "contradicted": ("tagged", None),
        **dict.fromkeys(
            ("rewritten", "rewritten-too", "with-a-port", "disputed", "untrusted", "addressless"), ("unknown", None)
        ),
    }
    kinds = "addressless=1,contradicted=1,disputed=1,rewritten=3,untrusted=1"
    assert counted(receiver) == {name.FORGED: 7, name.FORGED_KINDS: kinds, name.UNPROVEN: 0}


def test_who_hangs_up_at_once_is_nobody_and_no_unix_socket(receiver: Receiver, tailscaled: LocalAPI) -> None:
    request = b"GET /forged HTTP/1.1\r\nHost: x\r\nTailscale-User-Login: ceo@example.com\r\nConnection: close\r\n\r\n"
    with dashboard(proxy_headers=False) as url:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as hasty:
                hasty.sendall(request)
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        receiver.take(10)
    found = [span["attributes"] for span in receiver.requests]
    told = {(each[name.CALLER], each.get(name.LOGIN)) for each in found if name.PEER_ADDRESS not in each}
    assert told == {("unknown", None)}


@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_peer_on_ipv6_loopback_or_mapped_into_ipv6_is_trusted_as_loopback(
    receiver: Receiver, tailscaled: LocalAPI, host: str
) -> None:
    peer, address = {"::1": ("::1", "::1"), "::": ("::ffff:127.0.0.1", "127.0.0.1")}[host]
    with dashboard(host=host, proxy_headers=False) as url, client(url) as visitor:
        ask_all(visitor, {"alice": CASES["alice"], "nobody-before": ([], {})})
    assert identities(receiver, 2) == {
        "alice": {**ALICE, name.PEER_ADDRESS: peer},
        "nobody-before": {
            **LOCAL,
            name.PEER_ADDRESS: peer,
            name.CLIENT_ADDRESS: address,
        },
    }


def test_while_tailscaled_hangs_the_login_and_the_address_stay_and_the_device_is_a_guess(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TAILSPAN_USERSPACE", "false")
    monkeypatch.setenv("TS_SOCKET", str(tmp_path / "hangs.sock"))
    phone = [(key, IPHONE if key == "User-Agent" else value) for key, value in CASES["zoe"][0]]
    with socket.socket(socket.AF_UNIX) as hangs, dashboard() as url, client(url) as visitor:
        hangs.bind(str(tmp_path / "hangs.sock"))
        hangs.listen()
        ask_all(visitor, {"zoe": (phone, {})})
        receiver.take(1)
    known = {key: value for key, value in ZOE.items() if key not in (name.NODE, name.NODE_ID)}
    assert identities(receiver, 1) == {"zoe": {**known, name.GUESS: "iPhone"}}
