"""The command that takes back what was read of a log."""

import json
from typing import Annotated
from urllib.parse import quote

import typer

from tailspan.cli.server import ask, request
from tailspan.cli.shown import AsJson, err, out


def remove_log(
    service: Annotated[str, typer.Argument(help="The name that the log was read under.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deletes all requests of a service that only a log told of, as after it was read under a wrong name.

    What services told of themselves stays, and the log may be read again: what it has no more is lost.

    \b
    tailspan remove-log nginx
    tailspan backfill /var/log/nginx/access.log* --service dashboard
    """
    if not yes and (count := _told().get(service)):
        told = f"{count:,} requests of {service} that only a log told of will be deleted."
        typer.confirm(f"{told} Go on?", abort=True, err=True)
    removed = request(f"/analytics/logs/{quote(service, safe='')}", "DELETE").json()
    if as_json:
        return print(json.dumps(removed, indent=2, ensure_ascii=False))
    out.print(f"{removed['requests']:,} requests of {service} are deleted; its logs may be read again.", markup=False)
    if not removed["requests"]:
        names = ", ".join(sorted(_told())) or "nobody"
        err.print(f"No log alone told of {service}. Logs told of: {names}.", markup=False)


def _told() -> dict[str, int]:
    """Of how many requests of each service only a log told."""
    answer = ask("/analytics/query", metrics="requests", dimensions="service", source="log", days=3660)
    return {row["service"]: row["requests"] for row in answer["rows"]}
