"""`tailspan setup influxdb`: a bucket, and a token for each of the two who use it, tried before it says so."""

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer
from influxdb_client import (
    Authorization,
    Bucket,
    BucketRetentionRules,
    InfluxDBClient,
    OnboardingRequest,
    Organization,
    Permission,
    PermissionResource,
)
from influxdb_client.rest import ApiException
from influxdb_client.service.setup_service import SetupService
from urllib3.exceptions import HTTPError

from tailspan.config import InfluxDB, Settings, content
from tailspan.errors import SettingError, SetupError
from tailspan.tokens import COLLECTOR, REPLACE, SERVER, Role, connect, said, try_out, write_secret

OWNER: Final = "tailspan"  # the user of an InfluxDB that was new
DAY_S: Final = 86400
ROLES: Final = (COLLECTOR, SERVER)
Say = Callable[[str], None]


def read_owner(first: bool, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings, with a token in `influxdb` that may make others: of the environment, or typed in.

    Where `first` and the file for it is missing, a token is made and kept there. Raises SettingError, SetupError.
    """
    if not environ.get("INFLUXDB_V2_URL"):
        raise SettingError("INFLUXDB_V2_URL is not set.", fix="Set it to where InfluxDB answers: http://127.0.0.1:8086")
    token, kept = environ.get("INFLUXDB_V2_ADMIN_TOKEN"), environ.get("INFLUXDB_V2_ADMIN_TOKEN_FILE")
    if kept:
        if first and not Path(kept).expanduser().exists():
            write_secret(Path(kept).expanduser(), secrets.token_urlsafe(48))
        token = content("INFLUXDB_V2_ADMIN_TOKEN_FILE", kept)
    return Settings.read({**environ, "INFLUXDB_V2_TOKEN": token or _typed(), "INFLUXDB_V2_TOKEN_FILE": ""})


def _typed() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("InfluxDB's operator or all-access token", hide_input=True))
    fix = "Set INFLUXDB_V2_ADMIN_TOKEN_FILE, or INFLUXDB_V2_ADMIN_TOKEN, to one that may make buckets and tokens."
    raise SettingError("No token to set InfluxDB up with.", fix=fix)


def set_up(
    owner: InfluxDB, days: int, folder: Path, say: Say, *, first: bool = False, new_tokens: bool = False
) -> None:
    """Makes what is missing: organization, a bucket that keeps `days`, and `folder/{collector,server}/token`.

    `owner` has a token that may do so. `first`: that token becomes the operator's of an InfluxDB that is new.
    `new_tokens` replaces those of an earlier set-up. Says a sentence of each thing that is there now. Raises
    SetupError; a token that was made and not written down is deleted then.
    """
    with _telling(owner), connect(owner, owner.token) as client:
        _take(client, owner, days, first, say)
        org = _organization(client, owner, say)
        bucket = _bucket(client, owner, org, days, say)
        known = _known(client, org, bucket)
        with _deleting_on_failure(client) as made:
            tokens = {role: None if new_tokens else _kept(role, folder, known[role]) for role in ROLES}
            for role in ROLES:
                if tokens[role] is None:
                    made.append(_make(client, role, org, bucket))
                    tokens[role] = made[-1].token
            try_out(client, owner, str(tokens[COLLECTOR]), str(tokens[SERVER]))
            for role, token in tokens.items():
                write_secret(role.file(folder), str(token))
                say(f"token of the {role.name}: {role.does}, tried; in {role.file(folder)}")
        for earlier in (*known[COLLECTOR], *known[SERVER]) if new_tokens else ():
            client.authorizations_api().delete_authorization(earlier)
            say(f"revoked an earlier token: {earlier.description}")
    say(f"for the collector: INFLUXDB_V2_TOKEN='${{file:{COLLECTOR.file(folder)}}}'")
    say(f"for the server: INFLUXDB_V2_TOKEN_FILE={SERVER.file(folder)}")


@contextmanager
def _telling(at: InfluxDB) -> Iterator[None]:
    """What goes wrong with the owner's own calls, as SetupError."""
    try:
        yield
    except HTTPError as problem:
        fix = "Start it, or correct INFLUXDB_V2_URL."
        raise SetupError(f"No InfluxDB answers at {at.url}: {problem}.", value=at.url, fix=fix) from problem
    except ApiException as problem:
        if problem.status in (401, 403):
            raise SetupError(
                f"InfluxDB refuses the token: {said(problem)}.",
                rule=f"It is an operator's token, or an all-access token of the organization {at.org}.",
                fix="Correct INFLUXDB_V2_ADMIN_TOKEN_FILE or INFLUXDB_V2_ADMIN_TOKEN.",
            ) from problem
        raise SetupError(
            f"{at.url} answered {problem.status}: {said(problem)}.",
            value=at.url,
            rule="INFLUXDB_V2_URL is where an InfluxDB 2 answers.",
        ) from problem


def _take(client: InfluxDBClient, owner: InfluxDB, days: int, first: bool, say: Say) -> None:
    """A new InfluxDB takes its first user, and that user's token, from whoever comes first."""
    service = SetupService(client.api_client)
    allowed = service.get_setup().allowed
    if allowed is None:
        raise SetupError(f"{owner.url} answers, and is no InfluxDB 2.", value=owner.url, fix="Correct INFLUXDB_V2_URL.")
    if not allowed:
        return
    if not first:
        fix = "Let its operator's token be that of INFLUXDB_V2_ADMIN_TOKEN_FILE: tailspan setup influxdb --first"
        raise SetupError(f"The InfluxDB at {owner.url} is new and has no user.", value=owner.url, fix=fix)
    keeps = days * DAY_S
    service.post_setup(
        OnboardingRequest(OWNER, org=owner.org, bucket=owner.bucket, retention_period_seconds=keeps, token=owner.token)
    )
    say(f"{owner.url}: was new; its user {OWNER} made, without a password, and its operator's token")


def _organization(client: InfluxDBClient, owner: InfluxDB, say: Say) -> Organization:
    api = client.organizations_api()
    seen: dict[str, Organization] = {found.name: found for found in api.find_organizations(limit=100)}
    if owner.org in seen:
        say(f"organization {owner.org}: is there")
        return seen[owner.org]
    try:
        made = api.create_organization(name=owner.org)
    except ApiException as problem:
        if problem.status not in (401, 403):
            raise
        raise SetupError(
            f"The token sees no organization {owner.org!r}: {', '.join(seen) or 'none at all'}.",
            value=owner.org,
            rule="Only an operator's token makes one.",
            fix="Correct INFLUXDB_V2_ORG, or use an operator's token.",
        ) from problem
    say(f"organization {owner.org}: made")
    return made


def _bucket(client: InfluxDBClient, owner: InfluxDB, org: Organization, days: int, say: Say) -> Bucket:
    api = client.buckets_api()
    wanted_s = days * DAY_S
    found: Bucket | None = next((one for one in api.find_buckets_iter(org_id=org.id) if one.name == owner.bucket), None)
    if found is None:
        keeps = BucketRetentionRules(type="expire", every_seconds=wanted_s)
        made = api.create_bucket(bucket_name=owner.bucket, org_id=org.id, retention_rules=keeps)
        say(f"bucket {owner.bucket}: made, keeps {days} days")
        return made
    rules = found.retention_rules
    kept_s = rules[0].every_seconds if rules else 0  # 0 is for ever
    kept = f"{kept_s / DAY_S:g} days" if kept_s else "for ever"
    if 0 < kept_s < wanted_s:
        raise SetupError(
            f"The bucket {owner.bucket!r} keeps {kept}.",
            value=kept,
            rule=f"TAILSPAN_RETENTION_DAYS is {days}, and nothing is changed that was there before.",
            fix="Change the bucket's retention in InfluxDB, or TAILSPAN_RETENTION_DAYS.",
        )
    longer = "" if kept_s == wanted_s else f"; that is longer than TAILSPAN_RETENTION_DAYS, {days}"
    say(f"bucket {owner.bucket}: is there, keeps {kept}{longer}")
    return found


def _known(client: InfluxDBClient, org: Organization, bucket: Bucket) -> dict[Role, list[Authorization]]:
    """The tokens of earlier set-ups: what InfluxDB lists of them."""
    found = client.authorizations_api().find_authorizations(org_id=org.id)
    return {role: [one for one in found if one.description == role.described(bucket.name)] for role in ROLES}


def _kept(role: Role, folder: Path, known: list[Authorization]) -> str | None:
    """The token of an earlier set-up: its file has it, or InfluxDB, where that does not keep hashes only."""
    file = role.file(folder)
    try:
        return file.read_text("ascii").strip()
    except FileNotFoundError:
        if not known or known[-1].token:
            return str(known[-1].token) if known else None
    except (OSError, UnicodeDecodeError) as problem:
        raise SetupError(f"{file} cannot be read: {problem}.", value=str(file)) from problem
    raise SetupError(
        f"{file} is missing, and InfluxDB has a token of the {role.name} already.",
        value=str(file),
        rule="InfluxDB keeps a hash of it: its text cannot be read again.",
        fix=f"Bring the file back. {REPLACE}",
    )


def _make(client: InfluxDBClient, role: Role, org: Organization, bucket: Bucket) -> Authorization:
    this = PermissionResource(type="buckets", id=bucket.id, org_id=org.id)
    allowed = [Permission(action=action, resource=this) for action in role.actions]
    wanted = Authorization(org_id=org.id, permissions=allowed, description=role.described(bucket.name))
    return client.authorizations_api().create_authorization(authorization=wanted)


@contextmanager
def _deleting_on_failure(client: InfluxDBClient) -> Iterator[list[Authorization]]:
    """Takes note of what was made. Whatever goes wrong, a token that nobody has does not stay valid."""
    made: list[Authorization] = []
    try:
        yield made
    except BaseException:  # Ctrl-C too leaves no token behind
        for authorization in made:
            client.authorizations_api().delete_authorization(authorization)
        raise
