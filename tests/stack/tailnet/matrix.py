"""Who is known, and how, in every set-up: what the tests hold the answered rows to, and docs/identity.md is made from.

`python -m tests.stack.tailnet.matrix` writes the tables into that file again.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.stack.tailnet.lab import Person
from tests.stack.tailnet.network import HUB

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
LAN: Final = "neighbour"  # no device of the tailnet: it reaches nginx by the local network
DESCRIBED: Final = {
    "alice-laptop": "a person",
    "zoe-phone": "a person whose name is not ASCII",
    "nomail-box": "a person without an e-mail address",
    "ci-runner": "a tagged device",
    LAN: "no device of the tailnet",
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
    source: str  # how people are known there; "none": everybody seems to be a process of the machine
    proven: bool = True
    rewriting: tuple[str, ...] = tuple(REWRITING)
    tagged: str = "whois"  # how tagged devices are known; "none": they are not let in
    open: bool = False  # to who is not in the tailnet, too


BYPASS: Final = "no proxy: a port of 127.0.0.1, tailscaled in userspace mode"
SET_UPS: Final = {
    "serve-unix": SetUp(
        USERSPACE, "`tailscale serve unix:/run/app.sock`, tailscaled in userspace mode", "serve_header"
    ),
    "serve-tun": SetUp(TUN, "`tailscale serve 127.0.0.1:8000`, tailscaled with a TUN device", "serve_header"),
    "serve-port": SetUp(USERSPACE, "the same, tailscaled in userspace mode", "serve_header", False),
    "nginx": SetUp(TUN, "nginx on a TUN node, set up as above", "whois", open=True),
    "nginx-status": SetUp(
        TUN, "the same, with a file of `tailscale status --json`, no socket", "status", tagged="status", open=True
    ),
    "nginx-real-ip": SetUp(TUN, "nginx that sets `X-Real-IP` alone, and blanks `Tailscale-*`", "whois", open=True),
    "nginx-passing": SetUp(TUN, "nginx that sets `X-Forwarded-For`, and passes the rest on", "whois", open=True),
    "nginx-auth": SetUp(
        TUN, "nginx with nginx-auth as its README has it, and `X-Forwarded-For`", "nginx_auth", tagged="none"
    ),
    "nginx-silent": SetUp(TUN, "nginx with `proxy_pass` alone", "none", tagged="local", open=True),
    "serve-tcp": SetUp(TUN, "`tailscale serve --tcp`, tailscaled with a TUN device", "none", tagged="local"),
    "tun": SetUp(TUN, "no proxy: the tailnet address of a TUN node", "whois"),
    "everybody": SetUp(TUN, "the same, with uvicorn's `--forwarded-allow-ips '*'`", "whois", rewriting=("on",)),
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
NOBODY: Final = Known("unknown", None, None, None, None, "none")
SOMEBODY: Final = Known("local", None, None, None, None, "none")
CEO: Final = Known("person", "ceo@example.com", None, None, None, "nginx_auth", False)


class Outcome(NamedTuple):
    """What comes of something made up. Without anything: nothing is changed, and nothing is counted."""

    counted: str | None = None  # as which kind of forgery
    source: str | None = None  # how the caller, who is the same, is known instead
    alices: str | None = None  # how it is known that it was her, which it was not
    becomes: Known | None = None  # who it is then, without an address


HIDDEN: Final = Outcome("disputed", becomes=NOBODY)
STRANGER: Final = {
    **dict.fromkeys(("login", "nginx-auth", "funnel", "both"), Outcome("untrusted")),
    **dict.fromkeys(("address", "real-ip"), Outcome("forwarded")),
}
PAST_SERVE: Final = dict.fromkeys(("login", "nginx-auth", "funnel", "address", "real-ip", "both"), Outcome("bypass"))
WITH_SERVE: Final = {  # all that Serve lets pass
    "nginx-auth": Outcome("contradicted", source="whois"),
    "real-ip": HIDDEN,
}
BLANKED: Final = dict.fromkeys(("address", "both"), Outcome("forwarded"))
BELIEVED: Final = {  # where a proxy adds nothing of its own
    "login": Outcome("addressless", becomes=NOBODY),
    "nginx-auth": Outcome(becomes=CEO),
    "funnel": Outcome(becomes=SOMEBODY._replace(caller="funnel")),
    **dict.fromkeys(("address", "real-ip"), Outcome(alices="whois")),
    "both": Outcome(alices="serve_header"),
}
OUTCOMES: Final[dict[str, dict[str, Outcome]]] = {
    "serve-unix": WITH_SERVE,
    "serve-tun": WITH_SERVE,
    "serve-port": WITH_SERVE,
    "nginx": BLANKED,
    "nginx-status": BLANKED,
    "nginx-real-ip": dict.fromkeys(("address", "both"), HIDDEN),
    "nginx-passing": {
        **dict.fromkeys(("login", "nginx-auth", "funnel", "both"), Outcome("contradicted")),
        "address": Outcome("forwarded"),
        "real-ip": HIDDEN,
    },
    "nginx-auth": {
        **dict.fromkeys(("login", "nginx-auth", "both"), Outcome("contradicted", source="whois")),
        "funnel": Outcome("contradicted"),
        "address": Outcome("forwarded"),
        "real-ip": HIDDEN,
    },
    "nginx-silent": BELIEVED,
    "serve-tcp": BELIEVED,
    "tun": STRANGER,
    "everybody": STRANGER | dict.fromkeys(("address", "both"), Outcome("rewritten", becomes=NOBODY)),
    "userspace": PAST_SERVE,
    "rewritten": PAST_SERVE | {"address": Outcome(alices="whois"), "both": Outcome(alices="serve_header")},
}
OUTSIDE: Final[dict[str, dict[str, Outcome]]] = {  # of who is not in the tailnet, where that differs
    "nginx-passing": {
        **dict.fromkeys(("login", "nginx-auth", "both"), Outcome("addressless")),
        "funnel": Outcome(becomes=NOBODY._replace(caller="funnel")),
    },
}


def callers(set_up: str) -> list[str]:
    """Who is let in there."""
    how = SET_UPS[set_up]
    own = [name for name, owner in CALLERS.items() if how.tagged != "none" or isinstance(owner, Person)]
    return [*own, LAN] if how.open else own


def forgers(set_up: str) -> list[str]:
    return [caller for caller in callers(set_up) if caller != "alice-laptop"]  # it is her device that they claim to be


def known(caller: str, set_up: str) -> Known:
    """Of somebody who made nothing up."""
    how, owner = SET_UPS[set_up], CALLERS.get(caller)
    if how.source == "none":
        return SOMEBODY
    if owner is None:
        return NOBODY
    if isinstance(owner, str):
        return Known("tagged", None, None, caller, owner, how.tagged, how.proven)
    kind = "local" if caller == how.beside else "person"
    return Known(kind, owner.login, owner.full_name or owner.login, caller, None, how.source, how.proven)


def outcome(caller: str, set_up: str, forgery: str) -> Outcome:
    own = OUTSIDE.get(set_up, {}) if caller == LAN else {}
    return own.get(forgery) or OUTCOMES[set_up].get(forgery, Outcome())


def seen(caller: str, set_up: str, forgery: str) -> Known:
    """Of somebody who made that up."""
    what, honest = outcome(caller, set_up, forgery), known(caller, set_up)
    if what.becomes:
        return what.becomes._replace(proven=what.becomes.proven and SET_UPS[set_up].proven)
    if what.alices:
        alice = CALLERS["alice-laptop"]
        assert isinstance(alice, Person)
        full_name = None if what.alices == "serve_header" else alice.full_name
        proven = (
            SET_UPS[set_up].source == "none"
        )  # no peer of the tailnet could have: only everybody who reaches the proxy
        return Known("person", alice.login, full_name, "alice-laptop", None, what.alices, proven)
    return honest if honest == NOBODY else honest._replace(identity_source=what.source or honest.identity_source)


def address(caller: str, set_up: str, rewriting: str, forgery: str | None) -> str | None:
    """Of who has no device in the row: its own in the local network, or the proxy's, as far as that is seen."""
    hidden = SET_UPS[set_up].source == "none" or (forgery and outcome(caller, set_up, forgery) is HIDDEN)
    if caller == LAN and not hidden:
        return HUB
    made_up = dict(FORGERIES[forgery].headers) if forgery else {}
    forwarded = set_up not in ("nginx-silent", "serve-tcp", "nginx-real-ip") or "X-Forwarded-For" in made_up
    return None if set_up == "serve-unix" or (REWRITING[rewriting] and forwarded) else "127.0.0.1"


def counts(set_up: str) -> dict[str, Any]:
    """What heartbeats count where everybody calls honestly, and all but one with each forgery."""
    made_up = [(caller, forgery) for caller in forgers(set_up) for forgery in FORGERIES]
    kinds = Counter(kind for one in made_up if (kind := outcome(one[0], set_up, one[1]).counted))
    rows = [known(caller, set_up) for caller in callers(set_up)] + [seen(who, set_up, what) for who, what in made_up]
    unproven = sum(not row.proven and (row.user or row.device) is not None for row in rows)
    return {"forged": kinds.total(), "forged_kinds": dict(kinds), "unproven": unproven, "dropped": 0}


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
    rows = [[how.means, *(_told(caller, set_up) for caller in DESCRIBED)] for set_up, how in SET_UPS.items()]
    return _table(head, rows)


def _forged() -> str:
    head = ["how requests come", *(forgery.means for forgery in FORGERIES.values())]
    rows = [[how.means, *(_outcome(set_up, made_up) for made_up in FORGERIES)] for set_up, how in SET_UPS.items()]
    return _table(head, rows)


def _told(caller: str, set_up: str) -> str:
    if caller not in callers(set_up):
        return "is not let in" if SET_UPS[set_up].tagged == "none" else "does not get there"
    row = known(caller, set_up)
    who = ", ".join(part for part in (row.user or row.tags, row.full_name, row.device) if part) or f"`{row.caller}`"
    return f"{who} · `{row.identity_source}`" + ("" if row.proven else " · unproven")


def _outcome(set_up: str, made_up: str) -> str:
    what = OUTCOMES[set_up].get(made_up, Outcome())
    if what.counted:
        return f"nobody is named: `{what.counted}`" if what.becomes else f"seen through: `{what.counted}`"
    if what.alices or what.becomes:
        return "**believed**" + ("" if seen(USERSPACE, set_up, made_up).proven else ", unproven")
    return "changes nothing"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
