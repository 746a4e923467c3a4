"""Who is known, and how, in every set-up: what the tests hold the answered rows to, and docs/identity.md is made from.

`python -m tests.stack.tailnet.matrix` writes the tables into that file again.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

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
    source: str  # how people are known there; tagged devices are by whois
    proven: bool = True
    rewriting: tuple[str, ...] = tuple(REWRITING)


BYPASS: Final = "no proxy: a port of 127.0.0.1, tailscaled in userspace mode"
SET_UPS: Final = {
    "serve-unix": SetUp(
        USERSPACE, "`tailscale serve unix:/run/app.sock`, tailscaled in userspace mode", "serve_header"
    ),
    "serve-tun": SetUp(TUN, "`tailscale serve 127.0.0.1:8000`, tailscaled with a TUN device", "serve_header"),
    "serve-port": SetUp(USERSPACE, "the same, tailscaled in userspace mode", "serve_header", False),
    "nginx": SetUp(TUN, "nginx on a TUN node that blanks `Tailscale-*`", "whois"),
    "nginx-passing": SetUp(TUN, "nginx that passes `Tailscale-*` on", "whois"),
    "tun": SetUp(TUN, "no proxy: the tailnet address of a TUN node", "whois"),
    "userspace": SetUp(USERSPACE, f"{BYPASS}, `--no-proxy-headers`", "whois", rewriting=("off",)),
    "rewritten": SetUp(USERSPACE, f"{BYPASS}, uvicorn's proxy headers on", "whois", rewriting=("on",)),
}
DOORS: Final = [(set_up, rewriting) for set_up, how in SET_UPS.items() for rewriting in how.rewriting]


class Forgery(NamedTuple):
    """Headers that a caller makes up. `{alice}` is the address of her device."""

    means: str
    headers: tuple[tuple[str, str], ...]


LOGIN: Final = ("Tailscale-User-Login", "ceo@example.com")
FORGERIES: Final = {
    "login": Forgery("`Tailscale-User-Login`", (LOGIN, ("Tailscale-Headers-Info", "https://example.com"))),
    "underscores": Forgery("`Tailscale_User_Login`", (("Tailscale_User_Login", "ceo@example.com"),)),
    "nginx-auth": Forgery(
        "what nginx-auth says",
        (
            ("Tailscale-User", "ceo@example.com"),
            ("X-Webauth-User", "ceo@example.com"),
            ("X-Webauth-Login", "ceo"),
        ),
    ),
    "funnel": Forgery("`Tailscale-Funnel-Request`", (("Tailscale-Funnel-Request", "?1"),)),
    "address": Forgery("another's `X-Forwarded-For`", (("X-Forwarded-For", "{alice}"),)),
    "real-ip": Forgery("another's `X-Real-IP`", (("X-Real-IP", "{alice}"),)),
    "both": Forgery(
        "another's login and `X-Forwarded-For`",
        (("Tailscale-User-Login", "alice@example.com"), ("X-Forwarded-For", "{alice}")),
    ),
}
FORGERS: Final = tuple(name for name in CALLERS if name != "alice-laptop")  # it is her device that they claim to be


class Outcome(NamedTuple):
    """What comes of something made up. Without anything: nothing is changed, and nothing is counted."""

    counted: str | None = None  # as which kind of forgery
    source: str | None = None  # how the caller, who is the same, is known instead
    alices: str | None = None  # how it is known that it was her, which it was not


PAST_SERVE: Final = dict.fromkeys(("login", "nginx-auth", "funnel", "address", "real-ip", "both"), Outcome("bypass"))
WITH_SERVE: Final = {"nginx-auth": Outcome("contradicted", source="whois")}  # all that Serve lets pass
OUTCOMES: Final[dict[str, dict[str, Outcome]]] = {
    "serve-unix": WITH_SERVE,
    "serve-tun": WITH_SERVE,
    "serve-port": WITH_SERVE,
    "nginx": dict.fromkeys(("address", "both"), Outcome("forwarded")),
    "nginx-passing": {
        **dict.fromkeys(("login", "nginx-auth", "funnel", "both"), Outcome("contradicted")),
        "address": Outcome("forwarded"),
    },
    "tun": {
        **dict.fromkeys(("login", "nginx-auth", "funnel", "both"), Outcome("untrusted")),
        **dict.fromkeys(("address", "real-ip"), Outcome("forwarded")),
    },
    "userspace": PAST_SERVE,
    "rewritten": PAST_SERVE | {"address": Outcome(alices="whois"), "both": Outcome(alices="serve_header")},
}


def known(caller: str, set_up: str) -> Known:
    """Of somebody who made nothing up."""
    how, owner = SET_UPS[set_up], CALLERS[caller]
    if isinstance(owner, str):
        return Known("tagged", None, None, caller, owner, "whois", how.proven)
    kind = "local" if caller == how.beside else "person"
    return Known(kind, owner.login, owner.full_name or owner.login, caller, None, how.source, how.proven)


def seen(caller: str, set_up: str, forgery: str) -> Known:
    """Of somebody who made that up."""
    outcome = OUTCOMES[set_up].get(forgery, Outcome())
    if outcome.alices:
        full_name = None if outcome.alices == "serve_header" else "Alice Example"
        hers = known("alice-laptop", set_up)
        return hers._replace(full_name=full_name, identity_source=outcome.alices, proven=False)
    honest = known(caller, set_up)
    return honest._replace(identity_source=outcome.source or honest.identity_source)


def counts(set_up: str) -> dict[str, Any]:
    """What heartbeats count where everybody calls honestly, and all but one with each forgery."""
    outcomes = [OUTCOMES[set_up].get(forgery, Outcome()) for forgery in FORGERIES]
    kinds = Counter(outcome.counted for outcome in outcomes for _ in FORGERS if outcome.counted)
    unproven = 0 if SET_UPS[set_up].proven else len(CALLERS) + len(FORGERS) * len(FORGERIES)
    believed = sum(len(FORGERS) for outcome in outcomes if outcome.alices)
    return {"forged": kinds.total(), "forged_kinds": dict(kinds), "unproven": unproven + believed, "dropped": 0}


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
    outcome = OUTCOMES[set_up].get(made_up, Outcome())
    if outcome.alices:
        return "**believed**, unproven"
    return f"seen through: `{outcome.counted}`" if outcome.counted else "changes nothing"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
