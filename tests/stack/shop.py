"""A service behind nginx: one that calls itself, and one whose first answer nginx does not take."""

from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from opentelemetry.propagate import inject
from tailspan_otel import instrument

app = FastAPI(title="shop")
tried: set[str] = set()


@app.get("/items/{number}")
def item(number: int) -> int:
    return number


@app.get("/board", response_class=HTMLResponse)
def board() -> str:
    return "<!doctype html><title>board</title>"


@app.get("/both/{number}")
async def both(number: int, request: Request) -> Any:
    """Answers with what it says itself at /items."""
    headers: dict[str, str] = {}
    inject(headers)
    port = (request.scope["server"] or ("", 0))[1]
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/items/{number}", headers=headers)).json()


@app.get("/flaky/{name}")
def flaky(name: str) -> Response:
    """503 the first time."""
    if name in tried:
        return Response("at last")
    tried.add(name)
    return Response("not yet", 503)


@app.get("/headers")
def headers(request: Request) -> dict[str, str]:
    return dict(request.headers)


instrument(app)
