"""`tailspan setup influxdb` on a real InfluxDB, which hashes its tokens (as 2.9 does) or keeps their text (as 2.7)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from tests.stack.engines import Influxd

SetUp = Callable[..., tuple[int, str, str]]
of_either_kind = pytest.mark.parametrize("influxd", ["hashed", "plain"], indirect=True)
ALL_TIME = {"start": "1970-01-01T00:00:00Z", "stop": "2200-01-01T00:00:00Z", "predicate": '_measurement="spans"'}


@pytest.fixture
def influxd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Influxd]:
    """A new one, that nobody has set up."""
    engine = Influxd(tmp_path / "influxd")
    if getattr(request, "param", "hashed") == "plain":
        engine.command.append("--use-hashed-tokens=false")
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@pytest.fixture
def owned(influxd: Influxd) -> Influxd:
    """The same with an organization, an operator's token, and a bucket of somebody else's."""
    first = {"username": "owner", "org": Influxd.org, "bucket": "somebody-elses", "token": Influxd.token}
    influxd.ask("POST", "/api/v2/setup", json=first, headers={}).raise_for_status()
    return influxd


@pytest.fixture
def set_up(launch: Launch, influxd: Influxd, tmp_path: Path) -> SetUp:
    """Runs the command with the tokens in `tokens` below the test's folder: exit code, what it says, complaints."""

    def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
        given = {"INFLUXDB_V2_URL": influxd.url, "INFLUXDB_V2_ADMIN_TOKEN": Influxd.token, "COLUMNS": "400"}
        command = launch(
            "tailspan", "setup", "influxdb", "--tokens-to", tmp_path / "tokens", *arguments, **{**given, **settings}
        )
        return command.ended()

    return run


def organization(influxd: Influxd) -> str:
    return str(influxd.ask("GET", "/api/v2/orgs", params={"org": Influxd.org}).json()["orgs"][0]["id"])


def token(folder: Path, role: str) -> str:
    return (folder / "tokens" / role / "token").read_text()


def state(influxd: Influxd, org: str = Influxd.org) -> dict[str, list[dict[str, Any]]]:
    """All buckets and authorizations of the organization, as InfluxDB tells of them."""
    return {
        what: influxd.ask("GET", f"/api/v2/{what}", params={"org": org, "limit": "100"}).json()[what]
        for what in ("buckets", "authorizations")
    }


def may(influxd: Influxd, token: str, bucket: str = Influxd.bucket) -> dict[str, int]:
    """The status of an attempt at each, with this token."""
    headers = {"Authorization": f"Token {token}"}
    where = {"org": Influxd.org, "bucket": bucket}
    query = {"query": f'from(bucket: "{bucket}") |> range(start: 0)'}
    return {
        "write": influxd.ask("POST", "/api/v2/write", params=where, content="spans a=1", headers=headers).status_code,
        "read": influxd.ask(
            "POST", "/api/v2/query", params={"org": Influxd.org}, json=query, headers=headers
        ).status_code,
        "delete": influxd.ask("POST", "/api/v2/delete", params=where, json=ALL_TIME, headers=headers).status_code,
        "buckets": influxd.ask(
            "POST", "/api/v2/buckets", json={"orgID": organization(influxd), "name": "x"}, headers=headers
        ).status_code,
    }


@of_either_kind
def test_it_makes_what_is_missing_and_touches_nothing_else(owned: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    theirs = {"orgID": organization(owned), "permissions": [{"action": "read", "resource": {"type": "buckets"}}]}
    for number in range(21):  # more than a page of InfluxDB's lists
        owned.ask("POST", "/api/v2/authorizations", json={**theirs, "description": f"{number}"}).raise_for_status()
        owned.ask("POST", "/api/v2/buckets", json={"orgID": theirs["orgID"], "name": f"{number}"}).raise_for_status()
    before = state(owned)
    code, said, complaints = set_up(TAILSPAN_RETENTION_DAYS="30")
    tokens = tmp_path / "tokens"
    assert (code, complaints, said.splitlines()) == (
        0,
        "",
        [
            "organization tailspan: is there",
            "bucket requests: made, keeps 30 days",
            f"token of the collector: only writes, tried; in {tokens}/collector/token",
            f"token of the server: reads and deletes, tried; in {tokens}/server/token",
            f"for the collector: INFLUXDB_V2_TOKEN='${{file:{tokens}/collector/token}}'",
            f"for the server: INFLUXDB_V2_TOKEN_FILE={tokens}/server/token",
        ],
    )
    after = state(owned)
    assert {what: [one for one in after[what] if one in before[what]] for what in after} == before
    [bucket] = [one for one in after["buckets"] if one not in before["buckets"]]
    assert (bucket["name"], bucket["retentionRules"][0]["everySeconds"]) == ("requests", 30 * 86400)
    added = [one for one in after["authorizations"] if one not in before["authorizations"]]
    this = {"type": "buckets", "id": bucket["id"], "orgID": organization(owned)}
    allowed = {one["description"]: sorted(permission["action"] for permission in one["permissions"]) for one in added}
    assert allowed == {
        "tailspan collector: only writes requests": ["write"],
        "tailspan server: reads and deletes requests": ["read", "write"],
    }
    for permission in (permission for one in added for permission in one["permissions"]):
        assert {key: permission["resource"][key] for key in this} == this
    assert owned.flux('from(bucket: "requests") |> range(start: 0)').strip() == ""
    modes = {str(one.relative_to(tokens)): oct(one.stat().st_mode)[-3:] for one in tokens.rglob("*")}
    assert modes == {"collector": "700", "collector/token": "600", "server": "700", "server/token": "600"}
    assert Influxd.token not in said


@of_either_kind
def test_each_token_does_what_it_is_for(owned: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    assert set_up()[0] == 0
    assert may(owned, token(tmp_path, "collector")) == {"write": 204, "read": 404, "delete": 204, "buckets": 401}
    assert may(owned, token(tmp_path, "server")) == {"write": 204, "read": 200, "delete": 204, "buckets": 401}
    for role in ("collector", "server"):
        elsewhere = may(owned, token(tmp_path, role), "somebody-elses")
        assert elsewhere == {"write": 403, "read": 404, "delete": 403, "buckets": 401}


@of_either_kind
def test_a_second_run_finds_everything_and_changes_nothing(owned: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    assert set_up()[0] == 0
    before = state(owned), token(tmp_path, "collector"), token(tmp_path, "server")
    code, said, complaints = set_up()
    assert (code, complaints, "bucket requests: is there, keeps 400 days" in said) == (0, "", True)
    assert (state(owned), token(tmp_path, "collector"), token(tmp_path, "server")) == before


@of_either_kind
def test_a_lost_file_comes_back_only_where_influxdb_keeps_the_text(
    owned: Influxd, set_up: SetUp, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert set_up()[0] == 0
    before, lost = state(owned), token(tmp_path, "server")
    (tmp_path / "tokens/server/token").unlink()
    code, _, complaints = set_up()
    assert state(owned) == before
    if "plain" in request.node.name:
        assert (code, complaints, token(tmp_path, "server")) == (0, "", lost)
    else:
        assert (code, "its text cannot be read again" in complaints, "--new-tokens" in complaints) == (1, True, True)


@of_either_kind
def test_new_tokens_revoke_the_old_ones(owned: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    assert set_up()[0] == 0
    roles = ("collector", "server")
    old = [token(tmp_path, role) for role in roles]
    count = len(state(owned)["authorizations"])
    code, said, complaints = set_up("--new-tokens")
    assert (code, complaints, said.count("revoked an earlier token: tailspan ")) == (0, "", 2)
    new = [token(tmp_path, role) for role in roles]
    assert [may(owned, one)["write"] for one in (*old, *new)] == [401, 401, 204, 204]
    assert len(state(owned)["authorizations"]) == count


def test_a_new_influxdb_is_taken_only_where_asked_and_once(influxd: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    admin = tmp_path / "owner/token"
    where = {"INFLUXDB_V2_ADMIN_TOKEN": "", "INFLUXDB_V2_ADMIN_TOKEN_FILE": str(admin)}
    code, _, complaints = set_up()
    assert (code, "is new and has no user" in complaints, "--first" in complaints) == (1, True, True)
    code, said, complaints = set_up("--first", **where)
    assert (code, complaints, said.splitlines()[0]) == (
        0,
        "",
        f"{influxd.url}: was new; its user tailspan made, without a password, and its operator's token",
    )
    assert oct(admin.stat().st_mode)[-3:] == "600"
    headers = {"Authorization": f"Token {admin.read_text()}"}
    before = [influxd.ask("GET", f"/api/v2/{what}", headers=headers).json() for what in ("users", "authorizations")]
    assert set_up("--first", **where)[0] == 0
    after = [influxd.ask("GET", f"/api/v2/{what}", headers=headers).json() for what in ("users", "authorizations")]
    assert after == before


def test_an_operators_token_makes_the_organization(owned: Influxd, set_up: SetUp, tmp_path: Path) -> None:
    code, said, complaints = set_up(INFLUXDB_V2_ORG="other", INFLUXDB_V2_BUCKET="somebody-elses")
    assert (code, complaints) == (0, "")
    assert said.splitlines()[:2] == ["organization other: made", "bucket somebody-elses: made, keeps 400 days"]
    assert state(owned)["buckets"] == [one for one in state(owned)["buckets"] if one["name"] != "requests"]


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"INFLUXDB_V2_URL": ""}, 2, "INFLUXDB_V2_URL is not set"),
        ({"INFLUXDB_V2_URL": "http://127.0.0.1:1"}, 1, "No InfluxDB answers at http://127.0.0.1:1"),
        ({"INFLUXDB_V2_ADMIN_TOKEN": ""}, 2, "Set INFLUXDB_V2_ADMIN_TOKEN_FILE"),
        ({"INFLUXDB_V2_ADMIN_TOKEN_FILE": "/nowhere"}, 2, "INFLUXDB_V2_ADMIN_TOKEN_FILE is '/nowhere'"),
        ({"INFLUXDB_V2_ADMIN_TOKEN": "a-wrong-one"}, 1, "InfluxDB refuses the token: unauthorized access."),
        ({"INFLUXDB_V2_BUCKET": "short"}, 1, "The bucket 'short' keeps 7 days. TAILSPAN_RETENTION_DAYS is 400"),
        ({"INFLUXDB_V2_ADMIN_TOKEN": "{reader}"}, 1, "It is an operator's token, or an all-access token"),
        ({"INFLUXDB_V2_ADMIN_TOKEN": "{all access}", "INFLUXDB_V2_ORG": "x"}, 1, "sees no organization 'x': tailspan."),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(
    owned: Influxd, set_up: SetUp, tmp_path: Path, settings: dict[str, str], code: int, said: str
) -> None:
    org = organization(owned)
    rule = {"type": "expire", "everySeconds": 7 * 86400}
    owned.ask("POST", "/api/v2/buckets", json={"orgID": org, "name": "short", "retentionRules": [rule]})
    given = settings.get("INFLUXDB_V2_ADMIN_TOKEN", "")
    if given.startswith("{"):
        settings = {**settings, "INFLUXDB_V2_ADMIN_TOKEN": limited(owned, given)}
    before = state(owned)
    ended = set_up(**settings)
    assert (ended[0], said in ended[2]) == (code, True), ended
    assert (state(owned), (tmp_path / "tokens").exists()) == (before, False)


def limited(influxd: Influxd, kind: str) -> str:
    """A token that may less than the operator's: read one organization, or do anything in it."""
    org = organization(influxd)
    actions = ("read",) if kind == "{reader}" else ("read", "write")
    permissions = [
        {"action": action, "resource": {"type": what, "orgID": org} if what != "orgs" else {"type": what, "id": org}}
        for what in ("buckets", "authorizations", "orgs")
        for action in actions
    ]
    wanted = {"orgID": org, "permissions": permissions}
    return str(influxd.ask("POST", "/api/v2/authorizations", json=wanted).raise_for_status().json()["token"])


def test_tokens_that_cannot_be_written_down_do_not_stay(owned: Influxd, set_up: SetUp) -> None:
    code, _, complaints = set_up("--tokens-to", "/proc/tailspan")  # where nobody may make a directory
    assert (code, "/proc/tailspan/collector/token cannot be written" in complaints) == (1, True), complaints
    assert [one for one in state(owned)["authorizations"] if one["description"].startswith("tailspan ")] == []


def test_a_token_that_does_what_it_should_not_or_does_not_what_it_should_is_named(
    owned: Influxd, set_up: SetUp, tmp_path: Path
) -> None:
    assert set_up()[0] == 0
    collector, server = (tmp_path / "tokens" / role / "token" for role in ("collector", "server"))
    good = collector.read_text()
    collector.write_text(server.read_text())
    assert "The collector's token may read." in set_up()[2]
    collector.write_text("unknown")
    assert "The token of the collector cannot write to the bucket 'requests': unauthorized access." in set_up()[2]
    server.write_text(good)
    collector.write_text(good)
    assert "The token of the server cannot read the bucket 'requests'" in set_up()[2]
    assert owned.flux('from(bucket: "requests") |> range(start: 0)').strip() == ""


def test_what_answers_and_is_no_influxdb_is_named(set_up: SetUp, influxd: Influxd) -> None:
    code, _, complaints = set_up(INFLUXDB_V2_URL=f"{influxd.url}/health")
    assert (code, f"{influxd.url}/health answers, and is no InfluxDB 2." in complaints) == (1, True), complaints
