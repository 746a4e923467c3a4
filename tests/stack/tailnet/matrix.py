"""Who is known, and how, in every set-up: what the tests hold the answered rows to, and docs/identity.md is made from.

`python -m tests.stack.tailnet.matrix` writes the tables into that file again.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.stack.tailnet.lab import Person

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "identity.md"
REWRITING: Final = {"on": True, "off": False}  # uvicorn's proxy headers, which are on by default
OWNER: Final = Person("ops", "ops@example.com", "Olga Ops")
USERSPACE, TUN = "dashboard", "factory"  # the nodes that services run beside
CALLERS: Final[dict[str, Person | str]] = {
    "alice-laptop": Person("alice", "alice@example.com", "Alice Example"),
    "zoe-phone": Person("zoe", "zoe@example.com", "Zoë Müller 漢字"),
    "nomail-box": Person("nomail"),
    "ci-runner": "tag:ci",
    TUN: OWNER,
    USERSPACE: OWNER,
}
DESCRIBED: Final = {
    "alice-laptop": "a person",
    "zoe-phone": "a person whose name is not ASCII",
    "nomail-box": "a person without an e-mail address",
    "ci-runner": "a tagged device",
}


class Known(NamedTuple):
    """What a row says of its caller. `ip` and `device_id` are the tailnet's to choose."""

    caller: str
    user: str | None
    full_name: str | None
    device: str | None
    tags: str | None
    identity_source: str
    proven: bool = True


class SetUp(NamedTuple):
    """How requests reach a service."""

    beside: str  # the node whose tailscaled the service asks
    means: str
    source: str  # how people are known there; tagged devices are by whois, wherever people are known
    proven: bool = True


SET_UPS: Final = {
    "serve-unix": SetUp(USERSPACE, "`tailscale serve unix:/run/app.sock`, tailscaled in either mode", "serve_header"),
    "serve-tun": SetUp(TUN, "`tailscale serve 127.0.0.1:8000`, tailscaled with a TUN device", "serve_header"),
    "serve-port": SetUp(
        USERSPACE, "`tailscale serve 127.0.0.1:8000`, tailscaled in userspace mode", "serve_header", False
    ),
    "nginx": SetUp(TUN, "nginx on a TUN node, `X-Forwarded-For` set and `Tailscale-*` blanked", "whois"),
    "nginx-passing": SetUp(TUN, "the same nginx, `Tailscale-*` not blanked", "whois"),
    "tun": SetUp(TUN, "no proxy: the service listens on the tailnet address of a TUN node", "whois"),
    "userspace": SetUp(USERSPACE, "no proxy: a port of 127.0.0.1 where tailscaled is in userspace mode", "none", False),
}


class Forgery(NamedTuple):
    """Headers that a caller makes up. `{alice}` is her address."""

    means: str
    headers: tuple[tuple[str, str], ...]


FORGERIES: Final = {
    "login": Forgery("`Tailscale-User-Login` of somebody else", (("Tailscale-User-Login", "ceo@example.com"),)),
    "underscores": Forgery("`Tailscale_User_Login`", (("Tailscale_User_Login", "ceo@example.com"),)),
    "address": Forgery("`X-Forwarded-For` of somebody else's device", (("X-Forwarded-For", "{alice}"),)),
}


def known(caller: str, set_up: str) -> Known:
    """Of somebody who made nothing up."""
    how, owner = SET_UPS[set_up], CALLERS[caller]
    if how.source == "none":
        return Known("local", None, None, None, None, "none", how.proven)
    if isinstance(owner, str):
        return Known("tagged", None, None, caller, owner, "whois", how.proven)
    return Known("person", owner.login, owner.full_name or owner.login, caller, None, how.source, how.proven)


def seen(caller: str, set_up: str, forgery: str) -> Known:
    """Of somebody who made that up: the same, but for what is not seen through."""
    honest = known(caller, set_up)
    if set_up == "nginx-passing" and forgery == "login":
        return honest._replace(caller="person", user="ceo@example.com", full_name=None, identity_source="serve_header")
    if set_up == "userspace" and forgery == "login":
        return honest._replace(caller="person", user="ceo@example.com", identity_source="serve_header")
    if set_up == "userspace" and forgery == "address":
        return known("alice-laptop", "nginx")._replace(proven=False)
    return honest


def counts(set_up: str) -> dict[str, int]:
    """What the heartbeats of a service count that everybody called once honestly and once with each forgery."""
    people = sum(isinstance(owner, Person) for owner in CALLERS.values())
    return {
        "forged": len(CALLERS) if set_up == "tun" else 0,
        "unproven": {"serve-port": people * (1 + len(FORGERIES)), "userspace": len(CALLERS)}.get(set_up, 0),
        "dropped": 0,
    }


def tables() -> dict[str, str]:
    """The document's tables by their names."""
    return {"known": _known(), "forged": _forged()}


def written(document: str) -> str:
    """The document with its tables as they are now."""
    for name, table in tables().items():
        document = re.sub(f"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\g<2>", document, flags=re.DOTALL)
    return document


def _known() -> str:
    head = ["how requests come", *DESCRIBED.values()]
    rows = [[how.means, *(_told(known(caller, set_up)) for caller in DESCRIBED)] for set_up, how in SET_UPS.items()]
    return _table(head, rows)


def _forged() -> str:
    head = ["how requests come", *(forgery.means for forgery in FORGERIES.values())]
    rows = [[how.means, *(_outcome(set_up, made_up) for made_up in FORGERIES)] for set_up, how in SET_UPS.items()]
    return _table(head, rows)


def _told(row: Known) -> str:
    who = ", ".join(part for part in (row.user or row.tags, row.full_name, row.device) if part) or f"`{row.caller}`"
    return f"{who} · `{row.identity_source}`" + ("" if row.proven else " · unproven")


def _outcome(set_up: str, made_up: str) -> str:
    """As a tagged device sees it."""
    row = seen("ci-runner", set_up, made_up)
    return "changes nothing" if row == known("ci-runner", set_up) else f"**believed**: {_told(row)}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
