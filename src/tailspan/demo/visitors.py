"""The visitors of the demo: real HTTP requests, with the headers that Tailscale Serve sends.

Serve's header sets are those of a captured `tailscale serve` in front of a unix socket; whose names and addresses they
carry is made up, and agrees with the captures of `localapi`.
"""

import argparse
import asyncio
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import httpx

from tailspan.demo.localapi import LocalAPI
from tailspan.demo.service import CALLS, POLLED, TITLE

HOST: Final = "appsrv.tail-scale.ts.net"
POLL_S: Final = 3.0  # the page's own two minutes would be long to watch
GAP_S: Final = (3.0, 20.0)  # people are uneven: even gaps would be polls
ARRIVAL_S: Final = 0.5
PATIENCE_S: Final = 60.0  # a busy machine sends nobody away
LAST_S: Final = 20.0  # until the last one comes, whose names are no good first impression
ATTACK: Final = "<img src=x onerror=alert(1)>"  # what would run where a name is not escaped
SEEN: Final = {"card": ATTACK, "variant": ATTACK, "age_ms": 0, "visible_ms": 5_000}
ATTACKS: Final = {"service": TITLE, "page": f"/{ATTACK}", "views": [SEEN]}
LINUX: Final = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
IPHONE: Final = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
ANDROID: Final = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36"
)


@dataclass(frozen=True)
class Visitor:
    """Somebody on the tailnet, as Serve tells of them."""

    address: str
    user_agent: str
    login: str | None = None  # None for a tagged node: Serve names people only
    name: str = ""  # as it is in the header: by RFC 2047 where it is not ASCII

    def headers(self) -> dict[str, str]:
        """What reaches a service behind `tailscale serve --https=443 unix:/…`, Host (which is `localhost`) apart."""
        identity = {
            "Tailscale-Headers-Info": "https://tailscale.com/s/serve-headers",
            "Tailscale-User-Login": self.login or "",
            "Tailscale-User-Name": self.name,
            "Tailscale-User-Profile-Pic": "",
        }
        return {
            "User-Agent": self.user_agent,
            "Accept": "*/*",
            **(identity if self.login else {}),
            "X-Forwarded-For": self.address,
            "X-Forwarded-Host": HOST,
            "X-Forwarded-Proto": "https",
            "Accept-Encoding": "gzip",
        }


ANA: Final = Visitor("100.64.0.7", LINUX, "ana@example.com", "Ana Ruiz")
LEO: Final = Visitor("100.64.0.8", IPHONE, "leo@example.com", "Leo Sanz")
ZOE: Final = Visitor("100.64.0.3", ANDROID, "zoe@example.com", "=?utf-8?q?Zo=C3=AB_M=C3=BCller_=E6=BC=A2=E5=AD=97?=")
EVA: Final = Visitor("100.64.0.9", LINUX, "eva@example.com", "Eva Prat")
MALLORY: Final = Visitor("100.64.0.66", LINUX, "mallory@example.com", ATTACK)
RUNNER: Final = Visitor("100.64.0.4", "factory-ci/1.0")
FORGED: Final = Visitor("100.64.0.7", "curl/8.5.0", "boss@example.com", "The Boss")  # what its sender would like to be


@dataclass
class Browser:
    """A visitor's browser or program; `serve` is the client that carries everybody's requests, as Serve's does."""

    serve: httpx.AsyncClient
    visitor: Visitor
    page: str | None = None  # which is open: calls come with it as their Referer
    chance: Random = field(default_factory=Random)

    async def open(self, path: str) -> None:
        """Asks for a page, and for all that it asks for."""
        self.page = path
        document = {"Accept": "text/html,*/*;q=0.8", "Sec-Fetch-Dest": "document"}
        await self.serve.get(path, headers=self.visitor.headers() | document)
        await self.load()

    async def load(self) -> None:
        await asyncio.gather(*(self.call("GET", path) for path in CALLS))

    async def call(self, method: str, path: str) -> None:
        around = {"Referer": f"https://{HOST}{self.page}", "Sec-Fetch-Dest": "empty"} if self.page else {}
        await self.serve.request(method, path, headers=self.visitor.headers() | around)

    async def rest(self) -> None:
        await asyncio.sleep(self.chance.uniform(*GAP_S))


async def laptop(serve: httpx.AsyncClient) -> None:
    """Opens the page, then looks at one thing after the other and optimises now and then."""
    browser = Browser(serve, ANA)
    await browser.open("/dashboard")
    while True:
        await browser.rest()
        await browser.call("POST", "/optimize/production/daily?target_kg=200")
        await browser.rest()
        await browser.call("GET", browser.chance.choice(CALLS))


async def phone(serve: httpx.AsyncClient) -> None:
    """Has the page in its cache: the service sees only its calls."""
    browser = Browser(serve, LEO, page="/dashboard")
    await browser.load()
    while True:
        await browser.rest()
        await browser.call("GET", browser.chance.choice(CALLS))


async def traveller(serve: httpx.AsyncClient) -> None:
    """Has a name that is not ASCII."""
    browser = Browser(serve, ZOE)
    await browser.open("/dashboard")
    while True:
        await browser.rest()
        await browser.call("GET", "/insights/optimal-windows?days=3")


async def runner(serve: httpx.AsyncClient) -> None:
    """A tagged node: nobody's, and so nobody."""
    program = Browser(serve, RUNNER)
    while True:
        await program.call("POST", "/optimize/production/daily?target_kg=100")
        await program.rest()


async def open_tab(serve: httpx.AsyncClient) -> None:
    """Opens the page and goes away. The tab polls on, by the clock."""
    browser = Browser(serve, EVA)
    await browser.open("/dashboard")
    clock = asyncio.get_running_loop()
    due = clock.time()
    while True:
        due += POLL_S
        await asyncio.sleep(due - clock.time())
        await browser.call("GET", POLLED)


async def attacker(serve: httpx.AsyncClient, front: str | None) -> None:
    """Has a name and a device, and makes up paths and cards, that attack whoever shows them."""
    await asyncio.sleep(LAST_S)
    browser = Browser(serve, MALLORY)
    await browser.open("/dashboard")
    await asyncio.sleep(GAP_S[0])  # so that she is seen there first
    await browser.call("GET", f"/{ATTACK}")
    if front:
        hers = {"Host": "mallory.localhost"}
        async with httpx.AsyncClient(base_url=front, headers=hers, trust_env=False, timeout=PATIENCE_S) as page:
            while (await page.post("/analytics/views", json=ATTACKS)).is_error:  # a server may not know its front yet
                await asyncio.sleep(GAP_S[0])


async def forger(service: str) -> None:
    """Another process, past Serve: it sends itself what only Serve may say."""
    here = httpx.URL(service).host == "127.0.0.1"
    if here and sys.platform != "linux":
        return  # elsewhere loopback is 127.0.0.1 alone, which the service takes for Serve
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2" if here else None)
    async with httpx.AsyncClient(transport=transport, base_url=service, timeout=PATIENCE_S) as client:
        browser = Browser(client, FORGED)
        while True:
            await browser.call("GET", "/insights/savings-tracking")
            await browser.rest()


async def visit(socket: Path, service: str, front: str | None = None) -> None:
    """Everybody comes, one after the other, and stays until cancelled. Raises an ExceptionGroup of httpx.HTTPError.

    `socket` is where Serve forwards to, `service` the URL of the loopback port, `front` that of the way in for
    browsers: without it no cards are seen.
    """
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)
    async with client as serve, asyncio.TaskGroup() as all:
        for visitor in (laptop, phone, traveller, runner, open_tab):
            all.create_task(visitor(serve))
            await asyncio.sleep(ARRIVAL_S)
        all.create_task(forger(service))
        all.create_task(attacker(serve, front))


def main() -> None:
    """Lets them come to a service elsewhere, and stands in for its tailscaled, until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("socket", type=Path, help="where Serve forwards to")
    arguments.add_argument("tailscaled", type=Path, help="where the service looks for tailscaled")
    arguments.add_argument("service", help="URL of its port")
    arguments.add_argument("--front", help="URL of the way in for browsers; without it no cards are seen")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with LocalAPI(given.tailscaled):
        asyncio.run(visit(given.socket, given.service, given.front))


if __name__ == "__main__":
    main()
