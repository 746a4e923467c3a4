import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tailspan_otel.identity import NOBODY, Caller, Headers, Identify, decoded, guess, headers_of, is_tailnet, other_end
from tailspan_otel.peers import Peers

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROXY = ("127.0.0.1", 48268)
SERVE: Headers = {
    b"tailscale-user-login": b"alice@example.com",
    b"tailscale-user-name": b"Alice Architect",
    b"x-forwarded-for": b"100.64.0.2",
}
NGINX_AUTH: Headers = {
    b"tailscale-user": b"alice@example.com",
    b"tailscale-login": b"alice",
    b"tailscale-name": b"Alice Architect",
    b"tailscale-tailnet": b"example.com",
    b"tailscale-profile-picture": b"",
    b"x-forwarded-for": b"100.64.0.2",
}
WEBAUTH: Headers = {  # the same as nginx-auth's README passes it on
    b"x-webauth-user": b"alice@example.com",
    b"x-webauth-login": b"alice",
    b"x-webauth-name": b"Alice Architect",
    b"x-forwarded-for": b"100.64.0.2",
}


def captured(name: str, made_up: bool = False) -> Headers:
    """The headers a real `tailscale serve` sent, as an ASGI server passes them on.

    `made_up`: with the X-Real-IP that the caller had sent, and Serve had let pass.
    """
    headers = json.loads((FIXTURES / f"{name}.json").read_text())["headers"]
    return {key.lower().encode(): value.encode() for key, value in headers if made_up or key != "X-Real-Ip"}


def read(
    client: tuple[str, int] | None, headers: Headers, own: str = "127.0.0.1", peers: tuple[str, ...] = ("127.0.0.1",)
) -> dict[str, Any]:
    """What differs from a caller of whom nothing is known. `own`: the address that the connection goes to."""
    nothing = asdict(Caller("unknown"))
    found = asdict(Identify(Peers(peers))(client, headers, own))
    return {key: value for key, value in found.items() if value != nothing[key]}


PERSON = {"kind": "person", "source": "serve_header", "tailnet": True}
ALICE = {**PERSON, "login": "alice@example.com", "full_name": "Alice Architect", "client": "100.64.0.2"}
NAMELESS = {name: value for name, value in ALICE.items() if name != "full_name"}
FROM_PROXY = {"peer": "127.0.0.1", "client": "127.0.0.1"}
DISPUTED = {**FROM_PROXY, "forged": "disputed"}
ADDRESSLESS = {**FROM_PROXY, "forged": "addressless"}
REWRITTEN = {"vouched": False, "forged": "rewritten"}
ZOE = {**PERSON, "login": "zoe@example.com", "full_name": "Zoë Müller 漢字", "client": "100.64.0.3"}


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        (PROXY, captured("serve-http-alice-laptop"), {**ALICE, "peer": "127.0.0.1"}),
        (PROXY, captured("serve-http-zoe-phone"), {**ZOE, "peer": "127.0.0.1"}),
        (PROXY, captured("serve-http-ci-runner"), {"peer": "127.0.0.1", "client": "100.64.0.4", "tailnet": True}),
        (None, captured("serve-unix-alice"), {**ALICE, "unix": True}),
        (("100.64.0.2", 0), captured("serve-http-alice-laptop"), ALICE),  # uvicorn put the caller in the peer's place
        (
            ("9.9.9.9", 0),
            {**SERVE, b"x-forwarded-for": b"9.9.9.9, 100.64.0.2"},  # and believed the left-most
            REWRITTEN,
        ),
        (("9.9.9.9", 0), SERVE, REWRITTEN),  # nor is it any other than the one that we would take
        (("100.64.0.2", 0), {b"x-forwarded-for": b"8.8.8.8, 100.64.0.2, 9.9.9.9"}, REWRITTEN),
        (("100.64.0.2", 4000), {**SERVE, b"x-forwarded-for": b"100.64.0.2:4000"}, REWRITTEN),  # with a port of its own
        (("100.64.0.2", 4000), {**SERVE, b"x-forwarded-for": b"[100.64.0.2]:4000, 9.9.9.9"}, REWRITTEN),
        (("[100.64.0.2", 4000), {**SERVE, b"x-forwarded-for": b"[[100.64.0.2]:4000"}, REWRITTEN),
        (
            ("100.64.0.2", 4000),
            {**SERVE, b"x-forwarded-for": b"100.64.0.2:04_000, 100.64.0.1"},
            REWRITTEN,
        ),  # as int() does
        (
            ("127.0.0.1", 7777),
            {**SERVE, b"x-forwarded-for": b"127.0.0.1:7777," + b"9" * 600 + b", 100.64.0.2"},
            REWRITTEN,
        ),
        (("127.0.0.1", 0), {**SERVE, b"x-forwarded-for": b"127.0.0.1"}, {"forged": "addressless"}),
        # a proxy before the socket, which somebody came to over loopback
        (None, {**SERVE, b"x-forwarded-for": b"100.64.0.2, 127.0.0.1"}, ALICE),
        (None, {**SERVE, b"x-real-ip": b"127.0.0.1"}, ALICE),
        (None, {b"x-forwarded-for": b"127.0.0.1"}, {"kind": "local"}),
        (None, {**SERVE, b"x-forwarded-for": b"127.0.0.1, 100.64.0.2"}, {**ALICE, "unix": True}),
        # too long to be anybody's
        (
            PROXY,
            {**SERVE, b"tailscale-user-login": b"a" * 2049},
            {**FROM_PROXY, "client": "100.64.0.2", "tailnet": True},
        ),
        (PROXY, {**SERVE, b"tailscale-user-name": b"a" * 2049}, {**NAMELESS, "peer": "127.0.0.1"}),
        (("::1", 5), SERVE, {**ALICE, "peer": "::1"}),
        (("::ffff:127.0.0.1", 5), SERVE, {**ALICE, "peer": "::ffff:127.0.0.1"}),
        (PROXY, {**SERVE, b"x-forwarded-for": b"::ffff:100.64.0.2"}, {**ALICE, "peer": "127.0.0.1"}),
        (
            PROXY,
            {b"x-forwarded-for": b"fd7a:115c:a1e0:0::3"},
            {"peer": "127.0.0.1", "client": "fd7a:115c:a1e0::3", "tailnet": True},
        ),
        (PROXY, {**SERVE, b"x-forwarded-for": b"1.2.3.4, 100.64.0.2, 127.0.0.1"}, {**ALICE, "peer": "127.0.0.1"}),
        (
            PROXY,
            {**SERVE, b"x-forwarded-for": b"100.64.0.9, 100.64.0.2"},  # a tailnet address that nobody vouches for
            {**ALICE, "peer": "127.0.0.1", "forged": "forwarded"},
        ),
        (PROXY, {**SERVE, b"x-forwarded-for": b"100.64.0.2, 100.64.0.2"}, {**ALICE, "peer": "127.0.0.1"}),
        (PROXY, {b"x-real-ip": b"100.64.0.2"}, {"peer": "127.0.0.1", "client": "100.64.0.2", "tailnet": True}),
        (PROXY, {**SERVE, b"x-real-ip": b"100.64.0.9"}, DISPUTED),  # one of the two is the caller's own
        (PROXY, captured("serve-http-alice-laptop", made_up=True), DISPUTED),
        (None, captured("serve-unix-alice", made_up=True), {"unix": True, "forged": "disputed"}),
        (PROXY, {**SERVE, b"x-forwarded-for": b"127.0.0.1", b"x-real-ip": b"100.64.0.2"}, DISPUTED),
        (PROXY, {**SERVE, b"x-real-ip": b"nobody"}, DISPUTED),
        (PROXY, {**SERVE, b"x-real-ip": b"100.64.0.2"}, {**ALICE, "peer": "127.0.0.1"}),
        (PROXY, {**SERVE, b"x-real-ip": b"::ffff:100.64.0.2"}, {**ALICE, "peer": "127.0.0.1"}),
        (PROXY, {**SERVE, b"x-real-ip": b"127.0.0.1"}, {**ALICE, "peer": "127.0.0.1"}),  # nginx's, which Serve came to
        (
            PROXY,
            {b"tailscale-funnel-request": b"?1", b"x-forwarded-for": b"203.0.113.9", b"x-real-ip": b"100.64.0.2"},
            DISPUTED,
        ),
        (PROXY, {b"tailscale-user-login": b"alice@example.com"}, ADDRESSLESS),  # Serve always says from where
        (None, {b"tailscale-user-login": b"alice@example.com"}, {"unix": True, "forged": "addressless"}),
        (PROXY, {**SERVE, b"x-forwarded-for": b"203.0.113.9"}, {**ADDRESSLESS, "client": "203.0.113.9"}),
        (PROXY, {**SERVE, b"x-forwarded-for": b"unknown"}, ADDRESSLESS),
        (
            PROXY,
            {b"tailscale-user": b"alice@example.com"},  # as nginx-auth's README has it
            {"kind": "person", "source": "nginx_auth", "login": "alice@example.com", **FROM_PROXY},
        ),
        (PROXY, {**NGINX_AUTH, b"x-forwarded-for": b"203.0.113.9"}, {**ADDRESSLESS, "client": "203.0.113.9"}),
        (PROXY, NGINX_AUTH, {**ALICE, "source": "nginx_auth", "peer": "127.0.0.1"}),
        (PROXY, WEBAUTH, {**ALICE, "source": "nginx_auth", "peer": "127.0.0.1"}),
        (
            PROXY,
            {**WEBAUTH, b"x-webauth-name": "Zoë".encode()},  # nginx-auth encodes nothing
            {**ALICE, "source": "nginx_auth", "peer": "127.0.0.1", "full_name": "Zoë"},
        ),
        (
            PROXY,
            {name: value for name, value in WEBAUTH.items() if name != b"x-webauth-login"},  # some other login
            {"peer": "127.0.0.1", "client": "100.64.0.2", "tailnet": True},
        ),
        (PROXY, {**SERVE, **NGINX_AUTH}, {**ALICE, "peer": "127.0.0.1"}),
        (
            PROXY,
            {**SERVE, b"tailscale-user": b"ceo@example.com"},  # one of the two was written by the caller
            {"peer": "127.0.0.1", "client": "100.64.0.2", "tailnet": True, "forged": "contradicted"},
        ),
        (PROXY, {**SERVE, b"tailscale-user-login": b"nomail"}, {**ALICE, "login": "nomail", "peer": "127.0.0.1"}),
        (
            ("100.64.0.9", 4000),
            NGINX_AUTH,
            {
                "peer": "100.64.0.9",
                "client": "100.64.0.9",
                "tailnet": True,
                "vouched": False,
                "forged": "untrusted",
            },
        ),
        (
            PROXY,
            {b"tailscale-funnel-request": b"?1", b"x-forwarded-for": b"203.0.113.9"},
            {"kind": "funnel", "peer": "127.0.0.1", "client": "203.0.113.9"},
        ),
        (PROXY, {}, {"kind": "local", "peer": "127.0.0.1", "client": "127.0.0.1"}),
        (None, {}, {"kind": "local", "unix": True}),
        (PROXY, {b"x-forwarded-for": b"127.0.0.1"}, {"kind": "local", "peer": "127.0.0.1", "client": "127.0.0.1"}),
        (PROXY, {b"x-forwarded-for": b"unknown"}, {"peer": "127.0.0.1", "client": "127.0.0.1"}),
        (PROXY, {b"x-forwarded-for": b"\xff\xfe"}, {"peer": "127.0.0.1", "client": "127.0.0.1"}),
        (
            ("127.0.0.2", 4000),
            SERVE,
            {"peer": "127.0.0.2", "client": "127.0.0.2", "vouched": False, "forged": "untrusted"},
        ),
        (
            ("100.64.0.9", 4000),
            {b"tailscale-user-login": b"ceo@example.com"},
            {"peer": "100.64.0.9", "client": "100.64.0.9", "tailnet": True, "vouched": False, "forged": "untrusted"},
        ),
        (
            ("100.64.0.9", 4000),
            {b"x-forwarded-for": b"100.64.0.2"},
            {
                "peer": "100.64.0.9",
                "client": "100.64.0.9",
                "tailnet": True,
                "vouched": False,
                "forged": "forwarded",
            },
        ),
        (("testclient", 50000), {}, {"peer": "testclient", "client": "testclient", "vouched": False}),
        (
            PROXY,
            {**SERVE, b"tailscale-user-login": b"=?utf-8?q?ceo=40example.com=0Aevil?="},
            {"peer": "127.0.0.1", "client": "100.64.0.2", "tailnet": True},
        ),
    ],
)
def test_who_a_request_says_is_calling(
    client: tuple[str, int] | None, headers: Headers, expected: dict[str, Any]
) -> None:
    assert read(client, headers, peers=("127.0.0.1", "::1")) == expected


@pytest.mark.parametrize(
    ("own", "peers", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1",), ALICE),
        ("::ffff:127.0.0.1", ("127.0.0.1",), ALICE),
        ("127.0.0.1", ("127.0.0.2",), ALICE),
        ("127.0.0.1", ("126.0.0.0/7",), ALICE),
        ("::1", ("::/0",), ALICE),
        ("100.64.0.1", ("127.0.0.1", "::1"), REWRITTEN),
        ("fd7a:115c:a1e0::1", ("127.0.0.1", "::1"), REWRITTEN),
        ("100.64.0.1", ("127.0.0.0/8",), REWRITTEN),
        ("127.0.0.1", ("172.18.0.5",), REWRITTEN),
        ("172.18.0.2", ("172.18.0.5",), ALICE),  # it may be that one
        ("172.18.0.2", ("127.0.0.1", "172.18.0.0/24"), ALICE),
        ("172.18.0.2", ("nginx",), REWRITTEN),  # which nobody has looked up yet
        ("", ("127.0.0.1",), REWRITTEN),  # of a server that does not say
    ],
)
def test_whom_uvicorn_believed_is_no_proxy_of_ours_where_none_of_them_can_have_connected(
    own: str, peers: tuple[str, ...], expected: dict[str, Any]
) -> None:
    assert read(("100.64.0.2", 0), SERVE, own, peers) == expected


def test_whom_uvicorn_believed_may_be_a_proxy_once_its_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("172.18.0.5", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    peers = Peers(["nginx"])
    identify = Identify(peers)
    peers.changed = identify.forget
    asked = ("100.64.0.2", 0), SERVE, "172.18.0.2"
    assert identify(*asked).forged == "rewritten"
    peers.look_up()
    assert identify(*asked).login == "alice@example.com"


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (("127.0.0.1", 4000), ("127.0.0.1", 8000), ("127.0.0.1", 4000)),
        (None, ("127.0.0.1", 8000), NOBODY),  # hung up before anybody asked
        (None, ("/run/app.sock", None), None),
        (("100.64.0.2", 0), ("/run/app.sock", None), None),  # uvicorn believes '*'
        (None, None, None),  # a unix socket of uvicorn before 0.41
        (("127.0.0.1", 4000), None, ("127.0.0.1", 4000)),
    ],
)
def test_the_other_end_is_none_over_a_unix_socket_alone(
    client: tuple[str, int] | None, server: tuple[str, int | None] | None, expected: tuple[str, int] | None
) -> None:
    assert other_end({"client": client, "server": server}) == expected
    assert other_end({"server": server} if client is None else {"client": client, "server": server}) == expected


def test_lines_of_a_list_are_one_header() -> None:
    lines = [(b"x-forwarded-for", b"127.0.0.1:7777"), (b"host", b"a"), (b"x-forwarded-for", b"100.64.0.2")]
    found = headers_of({"headers": lines})
    assert found == {b"x-forwarded-for": b"127.0.0.1:7777, 100.64.0.2", b"host": b"a"}
    assert read(("127.0.0.1", 7777), found) == REWRITTEN


def test_what_was_worked_out_while_trust_changed_is_not_remembered() -> None:
    changes = ["the name has another address"]

    class Changing(Peers):
        def trusts(self, host: str) -> bool:
            if changes:
                changes.clear()
                identify.forget()  # as the other thread does while this one still answers by the old address
                return True
            return False

    identify = Identify(Changing())
    identify(("172.18.0.5", 4000), SERVE, "172.18.0.2")
    assert identify(("172.18.0.5", 4000), SERVE, "172.18.0.2").forged == "untrusted"


def test_a_trusted_network_replaces_the_default() -> None:
    identify = Identify(Peers(["172.18.0.5"]))
    assert identify(("172.18.0.5", 4000), SERVE, "172.18.0.2").login == "alice@example.com"
    assert identify(PROXY, SERVE, "127.0.0.1").forged == "untrusted"


def test_identity_is_of_the_request_not_of_the_connection() -> None:
    identify, callers = Identify(Peers()), ("alice-laptop", "zoe-phone", "ci-runner")
    logins = [identify(PROXY, captured(f"serve-http-{who}"), "127.0.0.1").login for who in callers]
    assert logins == ["alice@example.com", "zoe@example.com", None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Alice Architect", "Alice Architect"),
        (b"=?utf-8?q?Zo=C3=AB_M=C3=BCller_=E6=BC=A2=E5=AD=97?=", "Zoë Müller 漢字"),
        (b"=?utf-8?q?Zo=C3=AB?= =?utf-8?q?_M=C3=BCller?=", "Zoë Müller"),
        (b"=?utf-8?q?a=0Ab?=", None),
        (b"=?utf-8?q?a=E2=80=AEb?=", None),  # U+202E turns the rest around
        (b"=?utf-8?q?=ED=A0=80?=", None),
        (b"=?nonsense?q?a?=", None),
        (b"=?utf-8?b?!!!?=", None),
        (b"tab\there", None),
        (b"Zo\xc3\xab", None),
        (b"", None),
        (b"  ", None),
    ],
)
def test_names_are_decoded_once_and_control_characters_refused(value: bytes, expected: str | None) -> None:
    assert decoded(value) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("100.64.0.1", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("fd7a:115c:a1e0::1", True),
        ("fd7a:115c:a1e1::1", False),
        ("::ffff:100.64.0.1", True),
        ("fd7a:115c:a1e0::1%eth0", False),
        ("nonsense", False),
    ],
)
def test_tailnet_addresses(address: str, expected: bool) -> None:
    assert is_tailnet(address) is expected


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15", "iPhone"),
        ("Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X)", "iPad"),
        (
            "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/130 Mobile Safari/537.36",
            "Android phone",
        ),
        ("Mozilla/5.0 (Linux; Android 15; Tab) AppleWebKit/537.36 Chrome/130 Safari/537.36", "Android"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 14_0)", "Mac"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "Windows"),
        ("Mozilla/5.0 (X11; CrOS x86_64 14541.0.0)", "Chromebook"),
        ("Mozilla/5.0 (X11; Linux x86_64)", "Linux"),
        ("curl/7.88.1", None),
    ],
)
def test_a_device_is_guessed_from_the_user_agent(user_agent: str, expected: str | None) -> None:
    assert guess(user_agent) == expected
