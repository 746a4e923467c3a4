"""The demo's way in for browsers: one address for the service and for tailspan below /analytics/, as Serve would be.

It stands in for `tailscale serve`: it says who calls, and lets nothing pass that callers say of themselves. Whoever
comes is `YOU`, or the visitor whose name the host's name begins with, as in http://leo.localhost:8080/dashboard.
"""

import argparse
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailspan.demo.visitors import ANA, EVA, LEO, MALLORY, ZOE, Visitor
from tailspan.serve import KEEP_ALIVE_S, bind

YOU: Final = Visitor("100.64.0.10", "", "you@example.com", "You")
VISITORS: Final = {"ana": ANA, "leo": LEO, "zoe": ZOE, "eva": EVA, "mallory": MALLORY}
PATIENCE_S: Final = 30.0  # longer than the card has
METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE"]
OWN: Final = ("connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive")
SAID: Final = ("tailscale-", "x-forwarded-", "x-real-ip", "forwarded", "via")


def create_app(service: Path, tailspan: str, visitors: dict[str, Visitor] = VISITORS) -> Starlette:
    """`service` is the socket that it listens on, `tailspan` the server's URL."""

    @asynccontextmanager
    async def clients(app: Starlette) -> AsyncIterator[None]:
        transport = httpx.AsyncHTTPTransport(uds=str(service))
        async with (
            httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=PATIENCE_S
            ) as app.state.service,
            httpx.AsyncClient(base_url=tailspan, trust_env=False, timeout=PATIENCE_S) as app.state.tailspan,
        ):
            yield

    async def forward(request: Request) -> Response:
        inside = request.url.path.startswith("/analytics")
        to: httpx.AsyncClient = request.app.state.tailspan if inside else request.app.state.service
        visitor = visitors.get(request.headers.get("host", "").partition(".")[0], YOU)
        sent = {key: value for key, value in request.headers.items() if not key.startswith((*SAID, *OWN))}
        agent = request.headers.get("user-agent", "")
        said = replace(visitor, user_agent=agent).headers() | {"X-Forwarded-Host": sent.get("host", "")}
        said = {key.lower(): value for key, value in said.items() if key not in ("Accept", "Accept-Encoding")}
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            answer = await to.request(request.method, target, headers=sent | said, content=await request.body())
        except httpx.TransportError as problem:
            return Response(f"{target}: {problem}", 502)
        kept = {key: value for key, value in answer.headers.items() if key not in OWN}
        return Response(answer.content, answer.status_code, kept)

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=clients)


def main() -> None:
    """Prints its URL, and serves until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("socket", type=Path, help="where the service listens")
    arguments.add_argument("tailspan", help="URL of the server")
    arguments.add_argument("--listen", default="127.0.0.1:0", help="host:port; by default any on loopback")
    given = arguments.parse_args()
    host, _, port = given.listen.rpartition(":")
    listening = bind(host, int(port))
    print(f"http://{host}:{listening.getsockname()[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped
    config = uvicorn.Config(
        create_app(given.socket, given.tailspan),
        proxy_headers=False,
        server_header=False,
        date_header=False,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
