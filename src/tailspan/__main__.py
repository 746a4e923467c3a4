"""The commands. They ask the server over HTTP; only `serve`, and `export` in its place, open the database."""

import json
import logging
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from tailspan.cli.questions import active, coverage, devices, logs, query, who_is
from tailspan.cli.removal import remove_log
from tailspan.cli.server import Unanswered, connect, known
from tailspan.cli.shown import AsJson, err, out
from tailspan.config import Settings
from tailspan.demo.run import demo
from tailspan.errors import QuestionError, TailspanError
from tailspan.ingest.nginx import FORMATS, chosen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Who uses your tailnet services, from which device, doing what, and how fast.\n\n"
    "[bold]tailspan serve[/bold] receives what services send and answers questions; the other commands ask it.\n\n"
    "Settings come from the environment: TAILSPAN_URL (which server to ask), TAILSPAN_TOKEN, TAILSPAN_LISTEN, "
    "TAILSPAN_DB, TAILSPAN_RETENTION_DAYS, TAILSPAN_ALLOWED_HOSTS; the README has all of them.\n\n"
    "Exit codes: 0 it worked · 1 the server cannot be asked, or a link is broken · 2 wrong usage or setting.",
)
TOKENS = Path("~/.config/tailspan")
STATES = {"ok": "[green]ok[/green]", "look": "[yellow]look[/yellow]", "broken": "[red]broken[/red]"}


@app.command()
def serve() -> None:
    """Receives spans at /v1/traces, keeps them, and answers. Ctrl-C stops it.

    \b
    tailspan serve
    TAILSPAN_LISTEN=unix:/run/tailspan.sock TAILSPAN_DB=/var/lib/tailspan.duckdb tailspan serve
    """
    from tailspan.serve import serve as serve_until_stopped  # the other commands do without the server's libraries

    serve_until_stopped(Settings.read(), lambda line: print(line, flush=True))


for question in (active, logs, query, devices, who_is, coverage):
    app.command()(question)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Walks from a service's environment to an answer, and names the link that is broken and its fix.

    Run it where the service runs, with the service's environment: it sends a span of its own the same way.

    \b
    tailspan doctor
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:8100 tailspan doctor
    """
    from tailspan.doctor import examine  # as above

    settings = known()
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
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}, or the file with its log_format; else as lines look.",
        ),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="What the service is called in URLs, if lines do not say.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="A date, or a time: in --zone, if it has no offset.")] = None,
    until: Annotated[str | None, typer.Option(help="Likewise; not included.")] = None,
    zone: Annotated[str, typer.Option(help="IANA name: of dates and times without offset, here and in lines.")] = "UTC",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would be added.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The closing table as JSON, for other programs.")] = False,
) -> None:
    """Requests that nginx wrote down: those that no service told of are added. As often as one likes: nothing twice.

    \b
    tailspan backfill /var/log/nginx/access.log* --service dashboard
    zcat old/*.gz | tailspan backfill - --service kitchen --since 2026-01-01 --dry-run

    Names and devices come from the history of devices when a question is answered. docs/backfill.md tells how to
    write a log that has the ids of requests, so that live and logged ones are told apart exactly.
    """
    from tailspan.backfill import backfill as read  # as above
    from tailspan.ingest.line import Origin
    from tailspan.labels import is_zone
    from tailspan.outcome import show

    settings = known()
    if not service.strip():
        raise typer.BadParameter("--service is empty. It is what the service calls itself: OTEL_SERVICE_NAME.")
    if not is_zone(zone):
        raise typer.BadParameter(f"--zone is {zone!r}. It is an IANA name such as Europe/Madrid.")
    since_ns, until_ns = _moment("--since", since, zone), _moment("--until", until, zone)
    if since_ns is not None and until_ns is not None and until_ns <= since_ns:
        raise typer.BadParameter(
            f"--until is {until!r}, which is not after --since ({since!r}): no line is between them."
        )
    with connect(settings) as client:
        result = read(
            files,
            client,
            err,
            formats=chosen(log_format),
            origin=Origin(service, environment, tuple(host or ()), zone),
            since_ns=since_ns,
            until_ns=until_ns,
            dry_run=dry_run,
        )
    if as_json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        show(result, out)
    if result.stopped:
        raise typer.Exit(130)
    if result.problems:
        if not out.is_terminal:  # as in a crontab, which keeps this alone
            err.print("\n".join(map(str, result.problems)), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _moment(option: str, value: str | None, zone: str) -> int | None:
    if value is None:
        return None
    from zoneinfo import ZoneInfo  # as above

    from tailspan.query import nanoseconds
    from tailspan.reports.query import moment_of

    with suppress(ValueError):
        moment = datetime.fromisoformat(value)
        if len(value) > len("2026-03-01") and moment.tzinfo is None:
            value = moment.replace(tzinfo=ZoneInfo(zone)).isoformat()
    try:
        return nanoseconds(moment_of(option, value, zone))
    except QuestionError as problem:
        raise typer.BadParameter(str(problem)) from None


for command in (remove_log, demo):
    app.command()(command)
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
        sys.exit(2 if problem.code in ("bad_setting", "bad_parameter") else 1)


if __name__ == "__main__":
    main()
