"""The commands that ask a question and show the answer."""

import json
from datetime import UTC, datetime, timedelta
from math import ceil
from shlex import quote
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from tailspan.cli.server import ask, request
from tailspan.cli.shown import AsJson, complain, err, out, show
from tailspan.span import OWN_SERVICE

Service = Annotated[str | None, typer.Option(help="Only this service.")]
User = Annotated[str | None, typer.Option(help="Only this login.")]
Device = Annotated[str | None, typer.Option(help="Only this device, by name or stable id.")]

LONGEST_H: Final = 168  # of requests with a summary
ACTIVE: Final = timedelta(minutes=5)
ROW: Final = ("time", "who", "device", "request", "status", "ms", "traffic")
SESSION: Final = ("time", "who", "service", "min", "requests", "first page")
NAMES: Final = "To name them: docs/tailnet.md"


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
    if not (people or user or device):
        since = datetime.now(UTC) - ACTIVE
        if told := _unnamed(service=service, start=since.isoformat()):
            out.print(f"[italic]{told} in the last 5 minutes. {NAMES}[/italic]", highlight=False)
    complain(answer["sources"])


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
    if hours > LONGEST_H:
        older = f"For older ones: tailspan query --list rows --days {ceil(hours / 24)}"
        raise typer.BadParameter(f"hours is '{hours}'. It is 1 to {LONGEST_H}. {older}")
    wanted = {"service": service, "user": user, "device": device, "traffic": traffic, "hours": hours, "limit": limit}
    answer = ask("/analytics/access-logs", **wanted)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    total = answer["summary"]
    mean = "unknown" if total["avg_response_time_ms"] is None else f"{total['avg_response_time_ms']:.0f} ms"
    title = (
        f"{total['total_requests']} requests of {total['unique_users']} people on {total['unique_devices']} devices "
        f"in {hours} h, mean {mean}"
    )
    if not (total["unique_users"] or user or device):
        told = _unnamed(service=service, traffic=traffic, hours=hours)
        title = f"{told} in {hours} h. {NAMES}" if told else title
    show(title, ROW, map(_row, answer["logs"]))
    complain(answer["sources"])


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
    """Any question: metrics by dimensions, or a list of requests or sessions, whose columns --json and --csv have all.

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
    left = f", {answer['more']} more" if answer["more"] else ""
    title = f"{asked['start']} to {asked['end']}{left}"
    if asked["ask"] == "rows":
        show(title, ROW, map(_row, found))
    elif asked["ask"] == "sessions":
        show(title, SESSION, map(_session, found))
    else:
        columns = (*asked["dimensions"], *asked["metrics"])
        show(title, columns, [tuple(row[column] for column in columns) for row in found])
    complain(answer["sources"])


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


def coverage(
    as_json: AsJson = False,
    service: Service = None,
    environment: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    hours: Annotated[int, typer.Option(help="How far back, 1 to 168.")] = 24,
) -> None:
    """What nginx saw, by its log, against what services told of themselves: by hour, with the gaps.

    \b
    tailspan coverage --hours 168
    tailspan coverage --service dashboard --json
    """
    answer = ask("/analytics/coverage", service=service, environment=environment, hours=hours)
    if as_json:
        return print(json.dumps(answer, indent=2, ensure_ascii=False))
    rows = [
        (
            one["hour"],
            _named(one),
            one["requests"],
            one["by_proxy"],
            one["live"],
            f"{1000 * one['live'] // one['requests'] / 1000:.1%}",
        )
        for one in answer["hours"]
    ]
    if not rows:
        name, where = quote(service or "NAME"), f" --environment {quote(environment)}" if environment else ""
        settings = f"TAILSPAN_NGINX_LOG and TAILSPAN_NGINX_SERVICE{', TAILSPAN_NGINX_ENVIRONMENT' * bool(where)}"
        told = f"No log was read of these hours under the name of its service{' and environment' * bool(where)}."
        fix = f"Read one, or set {settings}: tailspan backfill FILE --service {name}{where}"
        err.print(f"{told} {fix}", markup=False, highlight=False)
    show(f"requests in {hours} h", ("hour", "service", "proxy", "by nginx", "live", "share"), rows)
    for one in answer["services"]:
        if not one["live"] and set(one["doubled_by"]) <= {OWN_SERVICE}:
            told = f"{_named(one)} told of none of them: it is not instrumented, or it sent nothing all the time."
            out.print(escape(told), highlight=False)
        if one["doubled"]:
            names = ", ".join(one["doubled_by"])
            told = f"{one['doubled']:,} of {_named(one)} seem to be there twice, as lines and as {names} told of them"
            out.print(escape(f"{told}: docs/backfill.md, Coverage, says what mends that"), highlight=False)
        for gap in one["gaps"]:
            told = f"{_named(one)} told nothing from {gap['start']} to {gap['end']}: {gap['requests']} requests"
            out.print(escape(told), highlight=False)
    complain([source for source in answer["sources"] if source["state"] != "gaps"])


def _unnamed(**asked: object) -> str | None:
    """How many requests there are of callers that nobody named; None of none."""
    wanted = {"metrics": "requests", "dimensions": "address", "caller": "unknown", "!service": OWN_SERVICE}
    rows = ask("/analytics/query", **wanted, **asked, limit=10_000)["rows"]
    addresses = sum(row["address"] is not None for row in rows)
    count = sum(row["requests"] for row in rows)
    return f"{count:,} requests of callers that nobody named, from {addresses} tailnet addresses," if count else None


def _named(one: dict[str, Any]) -> str:
    return f"{one['service']} ({one['environment']})" if one["environment"] else str(one["service"])


def _row(log: dict[str, Any]) -> tuple[object, ...]:
    took = log["response_time_ms"]
    named = log["user"] or log["tags"]
    return (
        _time(log["timestamp"]),
        named or log["ip"] or f"({log['caller']})",
        log["device"] or (log["ip"] if named else None),
        f"{log['method']} {log['endpoint']}",
        log["status"],
        None if took is None else round(took, 1),
        log["traffic"],
    )


def _session(one: dict[str, Any]) -> tuple[object, ...]:
    minutes = round(one["duration_s"] / 60, 1)
    return _time(one["start"]), one["person"], _named(one), minutes, one["requests"], one["first_page"]


def _time(text: str) -> str:
    """As the reader's clock has it."""
    at = datetime.fromisoformat(text).astimezone()
    return f"{at:%m-%d %H:%M:%S}" if at.year == datetime.now(UTC).year else f"{at:%Y-%m-%d %H:%M}"


def _device(one: dict[str, Any]) -> tuple[object, ...]:
    online = {True: "yes", False: f"no, since {one['last_seen'] or '?'}", None: None}[one["online"]]
    address = one["addresses"][0]
    return one["name"], _owner(one), address, online, one["requests"], one["last_request"], one["first_seen"]


def _owner(one: dict[str, Any]) -> str | None:
    return one["user"] or ", ".join(one["tags"]) or None


def _whose(device: dict[str, Any] | None) -> str:
    return f"{device['name']} of {_owner(device)}" if device else "in no source's list"
