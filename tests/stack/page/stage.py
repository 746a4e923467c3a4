"""The demo's parts around either store, each a process, and a browser that fails on what it complains about."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

from tailspan.demo.localapi import LocalAPI
from tests.conftest import Launch, Program
from tests.stack.engines import Collector, Influxd, free_port

Json = dict[str, Any]
HOST: Final = "factory.example"  # no name of this machine's: browsers leave out what they only send to those
PEOPLE: Final = ("ana", "leo", "zoe", "eva", "mallory")
READERS: Final = "ana@example.com,eva@example.com"
WIDGET: Final = "/analytics/static/js/components/analytics-widget.js"


@dataclass
class Stage:
    server: str  # URLs
    front: str
    otlp: str  # where services send what they tell
    ask: httpx.Client  # of the server, as a process of its machine
    host: str = HOST  # whose part before it says who comes

    def url(self, who: str, path: str = "/dashboard") -> str:
        """Where `who` opens that in a browser."""
        return f"http://{who}.{self.host}:{httpx.URL(self.front).port}{path}"

    def of(self, who: str) -> httpx.Client:
        """`who` without a browser."""
        headers = {"Host": f"{who}.{self.host}:{httpx.URL(self.front).port}", "Sec-Fetch-Dest": "document"}
        return httpx.Client(base_url=self.front, headers=headers, trust_env=False, timeout=30)

    def forget(self, *who: str) -> None:
        """Whatever was kept of them: as new visitors they come."""
        for one in who:
            self.ask.delete(f"/analytics/people/{one}@example.com").raise_for_status()


@contextmanager
def staged(launch: Launch, folder: Path, full: "tuple[Influxd, Collector] | None" = None) -> Iterator[Stage]:
    """On the embedded store, or where `full` is given through a collector into InfluxDB."""
    serve, tailscaled = folder / "factory.sock", folder / "tailscaled.sock"
    listen = f"127.0.0.1:{free_port()}"  # known beforehand, so that all three start at the same time
    own = {"TAILSPAN_DB": str(folder / "t.duckdb"), "TAILSPAN_LISTEN": listen, "TS_SOCKET": str(tailscaled)}
    hosts = ",".join(f"{who}.{HOST}" for who in ("you", *PEOPLE))
    own |= {"TAILSPAN_READERS": READERS, "TAILSPAN_ALLOWED_HOSTS": hosts, "TAILSPAN_USERSPACE": "false"}
    if full:
        own |= full[0].settings | {"OTEL_EXPORTER_OTLP_ENDPOINT": full[1].endpoint}
    with LocalAPI(tailscaled):
        url = f"http://{listen}"
        to = full[1].endpoint if full else url
        server = launch("tailspan", "serve", **own)
        service = launch("tailspan.demo.service", serve, TS_SOCKET=str(tailscaled), OTEL_EXPORTER_OTLP_ENDPOINT=to)
        front = launch("tailspan.demo.front", serve, url)
        assert server.line() and service.line()
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as ask:
            yield Stage(url, front.line().strip(), to, ask)


@contextmanager
def started(demo: Program, otlp: str | None = None) -> Iterator[Stage]:
    """`tailspan demo`, once it says where everything is."""
    told: dict[str, str] = {}
    while "by command" not in told:
        line = demo.line()
        assert line, demo.ended()
        what, _, where = line.rstrip().partition("  ")
        told[what] = where.split()[0] if where else ""
    front, _, _ = told["its page"].partition("/analytics/")
    server, _, _ = told["all requests"].partition("/analytics/")
    with httpx.Client(base_url=server, trust_env=False, timeout=30) as ask:
        yield Stage(server, front, otlp or server, ask, "localhost")
    assert demo.process.poll() is None, demo.ended()


@dataclass
class Watched:
    """A page, and everything it complained about: errors, refused resources, and its content security policy."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()  # what complaints may begin with
    homes: set[str] = field(default_factory=set)  # the origins it was opened at

    def hear(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def follow(self, request: Request) -> None:
        """Whatever a page loads from elsewhere is a complaint."""
        self.asked.append(request.url)
        url = httpx.URL(request.url)
        origin = f"{url.scheme}://{url.netloc.decode()}"
        if request.is_navigation_request():
            self.homes.add(origin)
        elif url.scheme != "data" and origin not in self.homes:
            self.complaints.append(f"loaded from elsewhere: {request.url}")

    def check(self) -> None:
        unexpected = [complaint for complaint in self.complaints if not complaint.startswith(self.expected or "\0")]
        assert unexpected == [], unexpected

    def card(self) -> Json:
        """What the card shows."""
        return dict(json.loads(self.page.evaluate(READ)))


READ: Final = """JSON.stringify((() => {
  const card = document.querySelector("analytics-widget"), root = card.shadowRoot;
  const texts = (selector) => [...root.querySelectorAll(selector)].map((one) => one.textContent.trim());
  return {state: card.dataset.state, title: root.getElementById("title").textContent, numbers: texts("dd"),
    days: texts("tbody td"), features: texts("#features li").map((text) => text.replace(/\\s+/g, " ")),
    active: texts("#active li").map((text) => text.replace(/\\s+/g, " ")), status: texts("#status")[0]};
})())"""


@contextmanager
def watched(context: BrowserContext, *expected: str) -> Iterator[Watched]:
    """A page of the context. At the end it has complained of nothing but what is `expected`."""
    context.add_init_script("addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective))")
    seen = Watched(context.new_page(), expected=expected)
    seen.page.on("console", seen.hear)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", seen.follow)
    yield seen
    seen.check()
