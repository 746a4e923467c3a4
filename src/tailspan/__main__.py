"""The commands. They ask the server over HTTP; only `serve`, and `export` in its place, open the database."""

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from tailspan.config import Settings
from tailspan.demo.run import demo
from tailspan.errors import TailspanError
from tailspan.ingest.nginx import FORMATS, chosen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Who uses your tailnet services, from which device, doing what, and how fast.\n\n"
    "[bold]tailspan serve[/bold] receives what services send and answers questions; the other commands ask it.\n\n"
    "Settings come from the environment: TAILSPAN_URL (which server to ask), TAILSPAN_TOKEN, TAILSPAN_LISTEN, "
    "TAILSPAN_DB, TAILSPAN_RETENTION_DAYS, TAILSPAN_ALLOWED_HOSTS.\n\n"
    "Exit codes: 0 it worked · 1 the server cannot be asked, or a link is broken · 2 wrong usage or setting.",
)
out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="The server's answer as JSON, for other programs.")]
Service = Annotated[str | None, typer.Option(help="Only this service.")]
User = Annotated[str | None, typer.Option(help="Only this login.")]
Device = Annotated[str | None, typer.Option(help="Only this device, by name or stable id.")]
TOKENS = Path("~/.config/tailspan")
STATES = {"ok": "[green]ok[/green]", "look": "[yellow]look[/yellow]", "broken": "[red]broken[/red]"}


class Unanswered(Exception):
    """The server cannot be asked, or refuses; the message says why and what to do."""


@app.command()
def serve() -> None:
    """Receives spans at /v1/traces, keeps them, and answers. Ctrl-C stops it.

    \b
    tailspan serve
    TAILSPAN_LISTEN=unix:/run/tailspan.sock TAILSPAN_DB=/var/lib/tailspan.duckdb tailspan serve
    """
    from tailspan.serve import serve as serve_until_stopped  # the other commands do without the server's libraries

    serve_until_stopped(Settings.read(), lambda line: print(line, flush=True))


@app.command()
def active(as_json: AsJson = False, service: Service = None, user: User = None, device: Device = None) -> None:
    """Who is using it now: people with a page or a call in the last five minutes.

    \b
    tailspan active
    tailspan active --service dashboard --json
    """
    answer = ask("/analytics/active", service=service, user=user, device=device)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    people = [(one["email"], one["device"], one["current_page"], one["last_seen"]) for one in answer["active_users"]]
    show(f"{answer['total_active']} active", ("who", "device", "page", "last seen"), people)
    complain(answer["sources"])


@app.command()
def logs(
    as_json: AsJson = False,
    service: Service = None,
    user: User = None,
    device: Device = None,
    traffic: Annotated[str | None, typer.Option(help="Only page, api, poll, asset, health, internal or agent.")] = None,
    hours: Annotated[int, typer.Option(help="How far back, 1 to 168.")] = 24,
    limit: Annotated[int, typer.Option(help="How many, 1 to 1000.")] = 20,
) -> None:
    """The newest requests, and a summary of those that people made.

    \b
    tailspan logs --traffic page
    tailspan logs --user ana@example.com --hours 168 --limit 100 --json
    """
    wanted = {"service": service, "user": user, "device": device, "traffic": traffic, "hours": hours, "limit": limit}
    answer = ask("/analytics/access-logs", **wanted)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    total = answer["summary"]
    mean = "unknown" if total["avg_response_time_ms"] is None else f"{total['avg_response_time_ms']:.0f} ms"
    show(
        f"{total['total_requests']} requests of {total['unique_users']} people on {total['unique_devices']} devices "
        f"in {hours} h, mean {mean}",
        ("time", "who", "device", "request", "status", "ms", "traffic"),
        [_row(log) for log in answer["logs"]],
    )
    complain(answer["sources"])


@app.command()
def query(
    metrics: Annotated[str | None, typer.Argument(help="Comma separated, as in requests,people.")] = None,
    by: Annotated[str | None, typer.Option(help="Dimensions, comma separated, as in day,service.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="FILTER=VALUE,… or !FILTER=VALUE,… to leave out.")] = None,
    rows: Annotated[str | None, typer.Option("--list", help="rows or sessions in place of metrics.")] = None,
    order: Annotated[str | None, typer.Option(help="Metrics or dimensions; -name for descending.")] = None,
    hours: Annotated[int | None, typer.Option(help="How far back.")] = None,
    days: Annotated[int | None, typer.Option(help="Likewise, in days of 24 hours.")] = None,
    start: Annotated[str | None, typer.Option(help="A local date, or a time with offset.")] = None,
    end: Annotated[str | None, typer.Option(help="Likewise; not included.")] = None,
    zone: Annotated[str | None, typer.Option(help="IANA name.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many rows.")] = 20,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The rows as CSV.")] = False,
) -> None:
    """Any question: metrics by dimensions, or a list of requests or sessions.

    \b
    tailspan query requests,people --by day --days 30
    tailspan query p95_ms --by endpoint --where traffic=api --where '!service=staging'
    tailspan query --list sessions --where user=ana@example.com --csv
    """
    filters: dict[str, str] = {}
    for entry in where or ():
        name, _, value = entry.partition("=")
        filters[name] = f"{filters[name]},{value}" if name in filters else value
    wanted = {"metrics": metrics, "dimensions": by, "order": order, "hours": hours, "days": days, "limit": limit}
    wanted |= {"start": start, "end": end, "zone": zone, "ask": rows}
    if as_csv:
        return print(request("/analytics/query", **wanted, **filters, format="csv").text, end="")
    answer = ask("/analytics/query", **wanted, **filters)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    asked, found = answer["question"], answer["rows"]
    columns = tuple(found[0]) if found else (*asked["dimensions"], *asked["metrics"])
    left = f", {answer['more']} more" if answer["more"] else ""
    title = f"{asked['start']} to {asked['end']}{left}"
    show(title, columns, [tuple(row[column] for column in columns) for row in found])
    complain(answer["sources"])


@app.command()
def devices(
    as_json: AsJson = False,
    service: Service = None,
    user: User = None,
    device: Device = None,
    days: Annotated[int, typer.Option(help="Use of the last so many days, 1 to 30.")] = 7,
    online: Annotated[
        bool | None, typer.Option("--online/--offline", help="Only devices that are, or are not.")
    ] = None,
    using: Annotated[
        bool | None, typer.Option("--using/--idle", help="Only devices that made requests, or none.")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many, 1 to 1000.")] = 100,
) -> None:
    """The tailnet's devices and what they did: online but not using, using but unknown to the tailnet, new.

    \b
    tailspan devices
    tailspan devices --online --idle --days 30
    """
    wanted = {"service": service, "user": user, "device": device, "days": days, "limit": limit}
    answer = ask("/analytics/tailnet/devices", **wanted, online=online, using=using)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    told = answer["summary"]
    title = f"{told['devices']} devices, {told['online']} online, {told['using']} used a service in {days} days, "
    show(
        f"{title}{told['online_not_using']} online did not",
        ("device", "who", "address", "online", "requests", "last request", "first seen"),
        [_device(one) for one in answer["devices"]],
    )
    if answer["unknown"]:
        rows = [(one["address"], one["device"], one["user"], one["requests"]) for one in answer["unknown"]]
        show("using, but not in the tailnet's list", ("address", "device", "who", "requests"), rows)
    for what, found in (("devices", answer["new_devices"]), ("people", answer["new_people"])):
        if found:
            names = ", ".join(one.get("name") or one["user"] for one in found)
            out.print(f"[italic]new {what}: {escape(names)}[/italic]", highlight=False)
    for name, more in answer["more"].items():
        err.print(f"{more} more of {name}: --limit shows more.", highlight=False)
    complain(answer["sources"])


@app.command("who-is")
def who_is(
    address: Annotated[str, typer.Argument(help="An IPv4 or IPv6 address of the tailnet.")], as_json: AsJson = False
) -> None:
    """Whose an address is: what each source says, whose it was, and what came from it in a week.

    \b
    tailspan who-is 100.64.0.7
    """
    answer = ask("/analytics/tailnet/who-is", address=address)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    says = [(one["source"], one["device"], _owner(one), one["kind"], one["as_of"]) for one in answer["says"]]
    show(f"{answer['address']} is {_whose(answer['device'])}", ("source", "device", "who", "kind", "as of"), says)
    if history := answer["history"]:
        rows = [(one["start"], one["end"], one["device"], _owner(one), one["source"]) for one in history]
        show("whose it was", ("from", "to", "device", "who", "known by"), rows)
    if answer["used_by"]:
        used = [(one["service"], one["user"], one["requests"], one["last_request"]) for one in answer["used_by"]]
        show("requests of 7 days", ("service", "who", "requests", "last"), used)
    complain(answer["sources"])


@app.command()
def coverage(
    as_json: AsJson = False,
    service: Service = None,
    hours: Annotated[int, typer.Option(help="How far back, 1 to 168.")] = 24,
) -> None:
    """What nginx saw, by its log, against what services told of themselves: by hour, with the gaps.

    \b
    tailspan coverage --hours 168
    tailspan coverage --service dashboard --json
    """
    answer = ask("/analytics/coverage", service=service, hours=hours)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    rows = [
        (one["hour"], one["service"], one["requests"], one["live"], f"{one['live'] / one['requests']:.1%}")
        for one in answer["hours"]
    ]
    if not rows:
        err.print("No log was read of these hours. Read one: tailspan backfill FILE, or TAILSPAN_NGINX_LOG.")
    show(f"requests in {hours} h", ("hour", "service", "proxy", "live", "share"), rows)
    for one in answer["services"]:
        for gap in one["gaps"]:
            told = f"{one['service']} told nothing from {gap['start']} to {gap['end']}: {gap['requests']} requests"
            out.print(escape(told), highlight=False)
    complain([source for source in answer["sources"] if source["state"] != "gaps"])


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Walks from a service's environment to an answer, and names the link that is broken and its fix.

    Run it where the service runs, with the service's environment: it sends a span of its own the same way.

    \b
    tailspan doctor
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:8100 tailspan doctor
    """
    from tailspan.doctor import examine  # as above

    settings = Settings.read()
    with connect(settings) as client:
        findings = list(examine(settings, client))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            out.print(f"{STATES[finding.state]} {escape(finding.link)}: {escape(finding.message)}", highlight=False)
            if finding.fix:
                out.print(f"   → {escape(finding.fix)}", highlight=False)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command()
def export(
    otlp: Annotated[str, typer.Option(metavar="URL", help="Of a collector or another tailspan: http://host:port.")],
) -> None:
    """Sends all requests, views and heartbeats of the database there: a history moves into the full pipeline.

    Stop tailspan serve before: one process may open the database. Sent again, nothing is there twice, so an export that
    was stopped is simply started again. OTEL_EXPORTER_OTLP_HEADERS may hold a token.

    \b
    tailspan export --otlp http://127.0.0.1:4318
    """
    from tailspan.export import export as send  # as above
    from tailspan.receiver import Receiver

    send(Settings.read().db, Receiver(otlp), err)


@app.command()
def backfill(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Logs of nginx, also gzipped; - is standard input.")
    ],
    service: Annotated[str, typer.Option(help="service.name of whose requests these are.")] = "nginx",
    environment: Annotated[str | None, typer.Option(help="Likewise deployment.environment.name.")] = None,
    log_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}, or a log_format string; else by the first lines."),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="What the service is called in URLs, if lines do not say.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="A local date, or a time with offset.")] = None,
    until: Annotated[str | None, typer.Option(help="Likewise; not included.")] = None,
    zone: Annotated[str, typer.Option(help="IANA name: of dates here, and of times without offset.")] = "UTC",
    users: Annotated[
        bool, typer.Option("--users", help="Believe TS-User and $remote_user: the proxy takes out what clients write.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would be added.")] = False,
    as_json: AsJson = False,
) -> None:
    """Requests that nginx wrote down: those that no service told of are added. As often as one likes: nothing twice.

    \b
    tailspan backfill /var/log/nginx/access.log*
    zcat old/*.gz | tailspan backfill - --service dashboard --since 2026-01-01 --dry-run

    Names and devices come from the history of devices when a question is answered. docs/backfill.md tells how to
    write a log that has the ids of requests, so that live and logged ones are told apart exactly.
    """
    from tailspan.backfill import backfill as read  # as above
    from tailspan.backfill import show as show_result
    from tailspan.ingest.line import Origin
    from tailspan.labels import is_zone

    settings = Settings.read()
    if not is_zone(zone):
        raise typer.BadParameter(f"--zone is {zone!r}. It is an IANA name such as Europe/Madrid.")
    with connect(settings) as client:
        result = read(
            files,
            client,
            err,
            formats=chosen(log_format),
            origin=Origin(service, environment, tuple(host or ()), zone, users),
            since_ns=_since(since, zone),
            until_ns=_since(until, zone),
            dry_run=dry_run,
        )
    if as_json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        show_result(result, out)
    if result.stopped:
        raise typer.Exit(130)


def _since(value: str | None, zone: str) -> int | None:
    if value is None:
        return None
    from tailspan.query import nanoseconds  # as above
    from tailspan.reports.query import moment_of

    return nanoseconds(moment_of("--since", value, zone))


app.command()(demo)
setup = typer.Typer(no_args_is_help=True, help="Prepares what tailspan needs elsewhere.")
app.add_typer(setup, name="setup")


@setup.command()
def influxdb(
    tokens_to: Annotated[Path, typer.Option(help="The tokens go here: collector/token and server/token.")] = TOKENS,
    first: Annotated[
        bool, typer.Option("--first", help="A new InfluxDB: make its first user, whose token is the admin token.")
    ] = False,
    new_tokens: Annotated[
        bool, typer.Option("--new-tokens", help="Replace the tokens of an earlier set-up, and revoke those.")
    ] = False,
) -> None:
    """Makes a bucket for tailspan, a token that only writes and one that reads and deletes, and tries both.

    \b
    INFLUXDB_V2_URL=http://127.0.0.1:8086 INFLUXDB_V2_ADMIN_TOKEN_FILE=operator-token tailspan setup influxdb

    As often as one likes: what is there stays. Bucket and organization: INFLUXDB_V2_BUCKET, INFLUXDB_V2_ORG,
    TAILSPAN_RETENTION_DAYS. Without INFLUXDB_V2_ADMIN_TOKEN_FILE or INFLUXDB_V2_ADMIN_TOKEN it asks for the token.
    """
    from tailspan.setup import read_owner, set_up  # as above

    settings = read_owner(first)
    assert settings.influxdb  # or it had raised
    folder = tokens_to.expanduser()
    set_up(settings.influxdb, settings.retention_days, folder, print, first=first, new_tokens=new_tokens)


def connect(settings: Settings) -> httpx.Client:
    """A client of the server: its URL or unix socket, and the token."""
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    unix, _, path = settings.server.partition("unix:")
    transport = httpx.HTTPTransport(uds=path) if path and not unix else None
    base = "http://localhost" if transport else settings.server
    return httpx.Client(base_url=base, transport=transport, headers=headers, timeout=30, trust_env=False)


def ask(path: str, **parameters: object) -> dict[str, Any]:
    """The server's answer. Raises Unanswered, and for a wrong parameter typer.BadParameter."""
    return dict(_content(request(path, **parameters)))


def request(path: str, **parameters: object) -> httpx.Response:
    """The server's response to a question it answers. Raises as `ask`."""
    settings = Settings.read()
    given = {key: str(value) for key, value in parameters.items() if value is not None}
    with connect(settings) as client:
        try:
            response = client.get(path, params=given)
        except httpx.TransportError as problem:
            raise _nobody(settings.server, problem) from None
    if response.is_success:
        return response
    error = _content(response).get("error", {})
    message = " ".join(str(error[key]) for key in ("message", "rule", "fix") if key in error)
    if response.status_code == 422:
        raise typer.BadParameter(message)
    raise Unanswered(message or f"{settings.server} answered {response.status_code}. Run: tailspan doctor")


def _content(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as problem:
        raise _nobody(str(response.url.copy_with(raw_path=b"/")).rstrip("/"), problem) from None


def _nobody(server: str, problem: Exception) -> Unanswered:
    return Unanswered(f"No tailspan answers at {server}: {problem}. Run: tailspan doctor")


def show(title: str, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    out.print(f"[italic]{escape(title)}[/italic]", highlight=False)  # a table's own title is as narrow as the table
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "time")
    for row in rows:
        table.add_row(*("-" if value is None else escape(str(value)) for value in row))
    out.print(table)


def complain(sources: list[dict[str, Any]]) -> None:
    """An answer that lacks its source says so."""
    for source in sources:
        if source["state"] != "ok":
            err.print(f"[yellow]{escape(source['name'])}: {source['state']}.[/yellow] {escape(source['message'])}")


def _row(log: dict[str, Any]) -> tuple[object, ...]:
    took = log["response_time_ms"]
    return (
        f"{datetime.fromisoformat(log['timestamp']).astimezone():%m-%d %H:%M:%S}",  # as the reader's clock has it
        log["user"] or log["tags"] or f"({log['caller']})",
        log["device"] or log["ip"],
        f"{log['method']} {log['endpoint']}",
        log["status"],
        None if took is None else round(took, 1),
        log["traffic"],
    )


def _device(one: dict[str, Any]) -> tuple[object, ...]:
    online = {True: "yes", False: f"no, since {one['last_seen'] or '?'}", None: None}[one["online"]]
    address = one["addresses"][0]
    return one["name"], _owner(one), address, online, one["requests"], one["last_request"], one["first_seen"]


def _owner(one: dict[str, Any]) -> str | None:
    return one["user"] or ", ".join(one["tags"]) or None


def _whose(device: dict[str, Any] | None) -> str:
    return f"{device['name']} of {_owner(device)}" if device else "in no source's list"


def main() -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Unanswered as problem:
        err.print(escape(str(problem)), highlight=False)
        sys.exit(1)
    except TailspanError as problem:
        err.print(escape(str(problem)), highlight=False)
        sys.exit(2 if problem.code == "bad_setting" else 1)


if __name__ == "__main__":
    main()
