"""Who gets in: by address, token, Host and Origin."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tailspan import neighbours
from tailspan.access import check_listening
from tailspan.config import Settings
from tailspan.errors import SettingError
from tests.server.conftest import Serving
from tests.server.spans import NOW, export, span
from tests.server.tailnet import STATUS, until

TOKEN = "a-token-for-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOOPBACK = ("127.0.0.1", 50000)
TAILNET = ("100.64.0.9", 50000)


HUNG_UP = ("", 1)
ANA = {"Tailscale-User-Login": "ana@example.com", "X-Forwarded-For": "100.64.0.99"}


LOOPBACKS = ((), ("127.0.0.1",), ("::1", "127.0.0.1"), ("127.0.0.0/8",), ("localhost",))


@pytest.mark.parametrize(
    ("ours", "peers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("192.168.1.5", {}, 401),  # whoever reaches that address may have sent it
        *(("192.168.1.5", {"trusted_peers": peers}, 401) for peers in LOOPBACKS),
        ("127.0.0.1", {"trusted_peers": ("192.168.1.9",)}, 401),
        ("192.168.1.5", {"trusted_peers": ("192.168.1.9",)}, 200),
    ],
)
def test_whom_uvicorn_believed_is_believed_where_a_proxy_of_ours_may_have_sent_it(
    serving: Serving, ours: str, peers: dict[str, Any], status: int
) -> None:
    with serving(peer=("100.64.0.99", 0), readers=("ana@example.com",), allowed_hosts=(ours,), **peers) as client:
        assert client.get(f"http://{ours}:8100/analytics/active", headers=ANA).status_code == status


@pytest.mark.parametrize(
    ("peer", "headers", "settings", "status"),
    [
        (LOOPBACK, {}, {}, 200),
        (("::1", 50000), {}, {}, 200),
        (None, {}, {}, 200),
        (TAILNET, {}, {}, 401),
        (TAILNET, BEARER, {}, 401),  # no token is set: none is right
        (TAILNET, BEARER, {"token": TOKEN}, 200),
        (TAILNET, {"Authorization": "Bearer wrong-token-of-someone"}, {"token": TOKEN}, 401),
        (TAILNET, {"Authorization": f"Basic {TOKEN}"}, {"token": TOKEN}, 401),
        (TAILNET, {"Authorization": "Bearer \xff".encode("latin-1")}, {"token": TOKEN}, 401),
        (LOOPBACK, {}, {"token": TOKEN}, 200),
        (LOOPBACK, {"Authorization": "Bearer wrong-token-of-someone"}, {"token": TOKEN}, 401),
        (LOOPBACK, {}, {"userspace": True, "token": TOKEN}, 401),
        (LOOPBACK, BEARER, {"userspace": True, "token": TOKEN}, 200),
        (None, {}, {"userspace": True}, 200),
        (LOOPBACK, {"X-Forwarded-For": "100.64.0.9"}, {}, 401),
        (LOOPBACK, {"Forwarded": "for=100.64.0.9"}, {}, 401),
        (None, ANA, {}, 403),  # no list says whose tailnet she is of
        (None, ANA, {"readers": ("ana@example.com",)}, 200),
        # Serve always says from which tailnet address
        (None, {"Tailscale-User-Login": "ana@example.com"}, {"readers": ("ana@example.com",)}, 401),
        (LOOPBACK, ANA | {"X-Forwarded-For": "203.0.113.9"}, {"readers": ("ana@example.com",)}, 401),
        (HUNG_UP, {}, {}, 401),
        (HUNG_UP, ANA, {"readers": ("ana@example.com",)}, 401),
        (LOOPBACK, {"X-Forwarded-For": "100.64.0.9"} | BEARER, {"token": TOKEN}, 200),
        (LOOPBACK, {"Host": "evil.example"}, {}, 400),
        (LOOPBACK, {"Host": "evil.example"} | BEARER, {"token": TOKEN}, 400),
        (LOOPBACK, {"Host": ""}, {}, 400),
        (LOOPBACK, {"Host": "127.0.0.1.evil.example:8100"}, {}, 400),
        (LOOPBACK, {"Host": "localhost:8100"}, {}, 200),
        (LOOPBACK, {"Host": "LOCALHOST"}, {}, 200),
        (LOOPBACK, {"Host": "[::1]:8100"}, {}, 200),
        (LOOPBACK, {"Host": "box.tailnet.ts.net"}, {"allowed_hosts": ("box.tailnet.ts.net",)}, 200),
    ],
)
def test_reading_needs_a_local_process_or_the_token(
    serving: Serving, peer: Any, headers: dict[str, Any], settings: dict[str, Any], status: int
) -> None:
    with serving(peer=peer, **settings) as client:
        for path in ("/analytics/active", "/healthz", "/openapi.json", "/nope"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == (404 if path == "/nope" and status == 200 else status)
        if status != 200:
            assert {"code", "message", "fix"} <= answer.json()["error"].keys()
            assert TOKEN not in answer.text


def served(login: str | None, address: str) -> dict[str, str]:
    """What `tailscale serve` adds."""
    return {"X-Forwarded-For": address} | ({} if login is None else {"Tailscale-User-Login": login})


def nginx_auth(login: str, address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, "Tailscale-User": login}


ALICE = served("alice@example.com", "100.64.0.2")
RUNNER = served(None, "100.64.0.4")
EVE = served("eve@other.example", "100.64.0.5")
FUNNEL = {"X-Forwarded-For": "203.0.113.7", "Tailscale-Funnel-Request": "?1"}


@pytest.mark.parametrize(
    ("peer", "headers", "settings", "status"),
    [
        # everybody of the own tailnet, and nobody else
        (LOOPBACK, ALICE, {}, 200),
        (None, ALICE, {}, 200),
        (LOOPBACK, served("alice@example.com", "fd7a:115c:a1e0:ab12:4843:cd96:6240:2"), {}, 200),
        (LOOPBACK, EVE, {}, 403),
        (LOOPBACK, RUNNER, {}, 403),
        (LOOPBACK, FUNNEL, {}, 403),
        (LOOPBACK, served("alice@example.com", "100.64.0.77"), {}, 403),  # of a device that nobody lists
        (LOOPBACK, served("alice@example.com", "100.64.0.3"), {}, 401),  # of somebody else's
        (LOOPBACK, served(None, "100.64.0.77"), {}, 401),
        (("100.64.0.2", 0), ALICE, {}, 200),  # as uvicorn rewrites the peer in a host's own app
        (("100.64.0.2", 0), ALICE, {"userspace": True}, 401),
        (LOOPBACK, ALICE | {"X-Forwarded-For": "100.64.0.4, 100.64.0.2"}, {}, 401),  # the first one is the caller's own
        # an address without a name, as behind a proxy that adds none
        (LOOPBACK, served(None, "100.64.0.2"), {}, 200),
        # a list of readers: those, and nobody else
        (LOOPBACK, ALICE, {"readers": ("alice@example.com",)}, 200),
        (LOOPBACK, ALICE, {"readers": ("zoe@example.com", "tag:ci")}, 403),
        (LOOPBACK, RUNNER, {"readers": ("tag:ci",)}, 200),
        (LOOPBACK, EVE, {"readers": ("eve@other.example",)}, 200),
        (LOOPBACK, FUNNEL, {"readers": ("eve@other.example",)}, 403),
        (LOOPBACK, served("zoe@example.com", "100.64.0.77"), {"readers": ("zoe@example.com",)}, 200),
        # by nginx-auth's headers, which Serve passes on as the caller wrote them: where the list agrees
        (LOOPBACK, nginx_auth("alice@example.com", "100.64.0.2"), {}, 200),
        (LOOPBACK, nginx_auth("alice@example.com", "100.64.0.4"), {"readers": ("alice@example.com",)}, 401),
        (LOOPBACK, nginx_auth("alice@example.com", "100.64.0.77"), {"readers": ("alice@example.com",)}, 401),
        (LOOPBACK, nginx_auth("alice@example.com", "203.0.113.7"), {"readers": ("alice@example.com",)}, 401),
        (LOOPBACK, ALICE | {"Tailscale-User": "zoe@example.com"}, {"readers": ("zoe@example.com",)}, 401),
        # forged
        (LOOPBACK, served("zoe@example.com", "100.64.0.2"), {"readers": ("zoe@example.com",)}, 401),
        (("192.0.2.9", 50000), ALICE, {}, 401),
        (("192.0.2.9", 50000), ALICE, {"readers": ("alice@example.com",)}, 401),
        (TAILNET, ALICE, {"userspace": False}, 401),
        # where tailnet peers reach loopback, only the unix socket proves anything
        (LOOPBACK, ALICE, {"userspace": True}, 401),
        (LOOPBACK, ALICE, {"userspace": True, "readers": ("alice@example.com",)}, 401),
        (None, ALICE, {"userspace": True}, 200),
        # straight from the tailnet: the address is proof where tailscaled has a TUN device, and is known to
        (("100.64.0.2", 50000), {}, {"userspace": False}, 200),
        (("100.64.0.2", 50000), {}, {}, 401),
        (("100.64.0.2", 50000), {}, {"userspace": True}, 401),
        (("100.64.0.4", 50000), {}, {"userspace": False}, 403),
        # the server's own token and processes need no name
        (LOOPBACK, EVE | BEARER, {"token": TOKEN}, 200),
        (LOOPBACK, {}, {"readers": ("zoe@example.com",)}, 200),
        (LOOPBACK, ALICE | {"Authorization": "Bearer wrong-token-of-someone"}, {"token": TOKEN}, 401),
        (LOOPBACK, ALICE | {"Host": "evil.example"}, {}, 400),
    ],
)
def test_people_of_the_tailnet_may_read_as_far_as_they_are_proven(
    serving: Serving, peer: Any, headers: dict[str, str], settings: dict[str, Any], status: int
) -> None:
    with serving(peer=peer, status=str(STATUS), **settings) as client:
        until(lambda: client.app.state.tailnet.posts[-1].look)  # type: ignore[attr-defined]  # it is our app
        for method, path in (("GET", "/analytics/active"), ("GET", "/healthz"), ("POST", "/analytics/query")):
            answer = client.request(method, path, headers=headers, json={"metrics": ["requests"]})
            assert answer.status_code == status
        if status == 403:
            error = answer.json()["error"]
            assert (error["code"], {"message", "rule", "fix"} <= error.keys()) == ("not_a_reader", True)


@pytest.mark.parametrize("headers", [ALICE, RUNNER])
def test_who_may_read_may_not_delete_or_deliver(serving: Serving, headers: dict[str, str]) -> None:
    with serving(status=str(STATUS), readers=("alice@example.com", "tag:ci")) as client:
        until(lambda: client.app.state.tailnet.posts[-1].look)  # type: ignore[attr-defined]  # as above
        assert client.get("/analytics/active", headers=headers).status_code == 200
        assert client.delete("/analytics/people/ana@example.com", headers=headers).status_code == 403
        assert client.delete("/analytics/logs/dashboard", headers=headers).status_code == 403
        assert client.post("/v1/traces", json=export(span(1)), headers=headers).status_code == 403
        assert client.post("/analytics/query", json={"metrics": ["requests"]}, headers=headers).status_code == 200


def test_a_list_that_was_not_renewed_for_long_lets_nobody_in(serving: Serving) -> None:
    nows = [NOW]
    with serving(now=lambda: nows[-1], status=str(STATUS)) as client:
        until(lambda: client.app.state.tailnet.posts[-1].look)  # type: ignore[attr-defined]  # as above
        assert client.get("/analytics/active", headers=ALICE).status_code == 200
        nows.append(NOW + timedelta(hours=1))
        assert client.get("/analytics/active", headers=ALICE).status_code == 403


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        (LOOPBACK, {}, 200),
        (TAILNET, {}, 401),
        (TAILNET, BEARER, 200),
        (LOOPBACK, {"Origin": "https://evil.example"}, 403),
        (LOOPBACK, {"Origin": "null"}, 403),
        (LOOPBACK, {"Origin": "http://127.0.0.1:9999"}, 403),
        (LOOPBACK, {"Origin": "http://127.0.0.1:8100"}, 200),
        (LOOPBACK, {"Host": "evil.example"}, 400),
    ],
)
def test_delivering_needs_the_same_and_no_foreign_page(
    serving: Serving, peer: Any, headers: dict[str, str], status: int
) -> None:
    with serving(peer=peer, token=TOKEN) as client:
        answer = client.post("/v1/traces", json=export(span(1)), headers=headers)
    assert answer.status_code == status
    assert set(answer.json()) == (set() if status == 200 else {"code", "message"})


NODE = "node.tail.ts.net"


@pytest.mark.parametrize(
    ("peer", "origin", "forwarded", "status"),
    [
        (None, f"https://{NODE}", NODE, 200),
        (None, f"https://{NODE}:8443", f"{NODE}:8443", 200),
        (None, "http://localhost", "", 200),
        (None, "https://evil.example", NODE, 403),
        (None, "https://evil.example", "evil.example", 403),  # a name that is not ours
        (None, f"https://{NODE}", "", 403),
        (None, f"https://{NODE}:3000", NODE, 403),  # of another service of the machine
        (None, "null", NODE, 403),
        (LOOPBACK, f"https://{NODE}", NODE, 403),  # Serve sends its own Host to a port
    ],
)
def test_serve_tells_a_unix_socket_by_x_forwarded_host_which_pages_are_its_own(
    serving: Serving, peer: Any, origin: str, forwarded: str, status: int
) -> None:
    told = {"Host": "localhost", "Origin": origin, **({"X-Forwarded-Host": forwarded} if forwarded else {})}
    with serving(peer=peer, status=str(STATUS), allowed_hosts=(NODE,)) as client:
        until(lambda: client.app.state.tailnet.posts[-1].look)  # type: ignore[attr-defined]  # as above
        answer = client.post("/analytics/query", json={"metrics": ["requests"]}, headers=ALICE | told)
    assert answer.status_code == status, answer.text
    if forwarded == "evil.example":
        assert "TAILSPAN_ALLOWED_HOSTS" in answer.json()["error"]["fix"]


def test_a_foreign_page_may_read_nothing_but_is_not_refused_by_origin_alone(serving: Serving) -> None:
    with serving() as client:
        answer = client.get("/analytics/active", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers  # so the browser keeps the answer from the page


@pytest.mark.parametrize(
    ("listen", "token", "userspace", "refused"),
    [
        ("127.0.0.1:8100", None, False, False),
        ("localhost:8100", None, False, False),
        ("[::1]:8100", None, False, False),
        ("0.0.0.0:8100", None, False, True),
        ("100.64.0.1:8100", None, False, True),
        ("0.0.0.0:8100", TOKEN, False, False),
        ("127.0.0.1:8100", None, True, True),
        ("127.0.0.1:8100", TOKEN, True, False),
        ("unix:/run/tailspan.sock", None, True, False),
    ],
)
def test_listening_where_others_reach_it_needs_a_token(
    listen: str, token: str | None, userspace: bool, refused: bool
) -> None:
    settings = Settings(listen=listen, token=token)
    if not refused:
        return check_listening(settings, userspace)
    with pytest.raises(SettingError, match="TAILSPAN_TOKEN") as problem:
        check_listening(settings, userspace)
    assert listen in str(problem.value)


@pytest.fixture
def neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bound socket of tailscaled's name, as a sidecar's is: in this network, and not where the settings look."""
    monkeypatch.setattr(neighbours, "SOCKETS", Path("/proc/net/unix"))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "tailscaled.sock"))
        yield tmp_path / "tailscaled.sock"


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux has networks that containers share")
@pytest.mark.parametrize(
    ("peer", "headers", "settings", "status"),
    [
        (LOOPBACK, {}, {}, 401),
        (LOOPBACK, ANA, {"readers": ("ana@example.com",)}, 401),
        (LOOPBACK, BEARER, {"token": TOKEN}, 200),
        (None, {}, {}, 200),
        (None, ANA, {"readers": ("ana@example.com",)}, 200),
        (LOOPBACK, {}, {"userspace": False}, 200),
    ],
)
@pytest.mark.usefixtures("neighbour")
def test_beside_a_tailscaled_that_does_not_say_how_it_runs_loopback_is_nobodys_word(
    serving: Serving, peer: Any, headers: dict[str, str], settings: dict[str, Any], status: int
) -> None:
    with serving(peer=peer, **settings) as client:
        answer = client.get("/analytics/active", headers=headers)
    assert answer.status_code == status, answer.text


def test_what_to_do_about_such_a_tailscaled_is_said_at_the_start_and_to_whoever_is_refused(
    serving: Serving, neighbour: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = neighbour.parent / "unix"  # as Linux has it
    monkeypatch.setattr(neighbours, "SOCKETS", table)
    monkeypatch.setattr(neighbours, "CONTAINERS", ())
    line = "0000000000000000: 00000002 00000000 00010000 0001 01 23451"
    for name, told in (("", 0), (" /run/dbus.sock", 0), (" /tmp/tailscaled.sock", 1), (" /x/odd name.sock", 1)):
        table.write_text(f"Num       RefCount Protocol Flags    Type St Inode Path\n{line}{name}\n")
        caplog.clear()
        with serving(ts_socket=Path("/y/odd name.sock")) as client:
            answer = client.get("/analytics/active")
        assert [answer.status_code, len(caplog.messages)] == ([401, 1] if told else [200, 0])
    error = answer.json()["error"]
    assert error["message"] in caplog.messages[0]
    assert "TAILSPAN_USERSPACE=false" in error["fix"] and "TAILSPAN_USERSPACE=false" in caplog.messages[0]


@pytest.mark.parametrize("container", [False, True])
def test_where_the_networks_sockets_cannot_be_read_a_container_may_have_a_tailscaled(
    serving: Serving, container: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "SOCKETS", tmp_path / "unix")
    monkeypatch.setattr(neighbours, "CONTAINERS", (tmp_path,) if container else (tmp_path / "none",))
    with serving() as client:
        assert client.get("/analytics/active").status_code == (401 if container else 200)


def test_the_token_may_come_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = Settings.read({"TAILSPAN_TOKEN_FILE": str(tmp_path / "token")})
    assert settings.token == TOKEN
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TAILSPAN_LISTEN", "8100"),
        ("TAILSPAN_LISTEN", "127.0.0.1:99999"),
        ("TAILSPAN_LISTEN", "unix:relative"),
        ("TAILSPAN_TOKEN", "short"),
        ("TAILSPAN_TOKEN", "with a space in the middle"),
        ("TAILSPAN_TOKEN_FILE", "/nowhere"),
        ("TAILSPAN_RETENTION_DAYS", "0"),
        ("TAILSPAN_RETENTION_DAYS", "ten"),
        ("TAILSPAN_USERSPACE", "maybe"),
        ("TAILSPAN_TRUSTED_PEERS", "172.18.0.300"),
        ("TAILSPAN_URL", "localhost:8100"),
    ],
)
def test_a_bad_setting_is_named_with_its_rule(key: str, value: str) -> None:
    with pytest.raises(SettingError) as problem:
        Settings.read({key: value})
    assert key in str(problem.value)
    assert problem.value.rule
    assert key != "TAILSPAN_TOKEN" or value not in str(problem.value)


def test_an_unknown_setting_is_a_warning_with_the_nearest_one(caplog: pytest.LogCaptureFixture) -> None:
    assert Settings.read({"TAILSPAN_LISTENN": "x", "TAILSPAN_TRUSTED_PEERS": "127.0.0.1,::1"}) == Settings()
    assert caplog.messages == ["TAILSPAN_LISTENN is no setting; did you mean TAILSPAN_LISTEN?"]
