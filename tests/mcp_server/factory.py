"""A service with the routes of a real one, its parameters where that one has them; and its faults, when told to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel

START: Final = datetime(2026, 3, 1, tzinfo=UTC)
FORBIDDEN: Final = "<html><head><title>403 Forbidden</title></head><center>nginx/1.22.1</center></html>"


class Conditions(BaseModel):
    price_eur_kwh: float
    temperature: float
    humidity: float


def price(hour: int) -> float:
    return round(0.08 + (hour % 24) * 0.0041, 4)


ROUTES = FastAPI()


@ROUTES.get("/ree/prices/latest")
def latest() -> dict[str, Any]:
    return {"price": 0.1234, "period": "P2", "timestamp": START}


@ROUTES.get("/weather/current")
def weather() -> dict[str, Any]:
    return {"temp": 22.5, "humidity": 55, "pressure": 1013}


@ROUTES.get("/health")
def health() -> dict[str, Any]:
    return {"status": "healthy", "influxdb": "ok", "ree": "ok"}


@ROUTES.get("/predict/prices/weekly")
def weekly() -> dict[str, Any]:
    return {"predictions": [{"timestamp": START + timedelta(hours=n), "price": price(n)} for n in range(168)]}


@ROUTES.get("/insights/optimal-windows")
def windows(days: Annotated[int, Query(ge=1, le=14)] = 7) -> dict[str, Any]:
    return {
        "windows": [{"day": f"{START + timedelta(days=n):%a}", "hours": "02-05h", "price": 0.06} for n in range(days)]
    }


@ROUTES.post("/predict/production-recommendation")
def recommendation(conditions: Conditions) -> dict[str, Any]:
    return {"recommendation": "Optimal" if conditions.price_eur_kwh < 0.15 else "Halt", "for": conditions}


@ROUTES.get("/analysis/siar-summary")
def siar() -> dict[str, Any]:
    return {"correlations": {"temp": 0.049}, "thresholds": {"p90": 28.8}}


@ROUTES.post("/optimize/production/daily")
def optimize(target_date: date, target_kg: float) -> dict[str, Any]:
    return {"date": target_date, "plan": [{"hour": hour, "kg": target_kg / 24} for hour in range(24)]}


@ROUTES.get("/insights/alerts")
def alerts() -> dict[str, Any]:
    return {"alerts": [{"type": "price_spike", "message": "0.21 EUR/kWh at 20:00"}]}


@ROUTES.get("/insights/savings-tracking")
def savings() -> dict[str, Any]:
    return {"daily_savings": 4.55, "weekly": 31.85}


@ROUTES.get("/boiler/{id}/log")
def boiler(id: str, kind: str, request: Request) -> dict[str, Any]:
    key = request.headers.get("authorization")
    return {"data": {"id": id, "kind": kind, "key": key}, "noise": "…"}


class Factory:
    """`fault` is what it does to every request from now on; `gone` is set once a caller hung up on it."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.asked = threading.Event()
        self.gone = threading.Event()
        self.user_agents: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await ROUTES(scope, receive, send)
        request = Request(scope, receive)
        self.user_agents.add(request.headers["user-agent"])
        if self.fault is None:
            return await ROUTES(scope, receive, send)
        await (await self._failing(request))(scope, receive, send)

    async def _failing(self, request: Request) -> Response:
        match self.fault:
            case "slow":
                self.asked.set()
                with anyio.move_on_after(30):
                    while not await request.is_disconnected():
                        await anyio.sleep(0.02)
                    self.gone.set()
                return Response()
            case "500":
                return JSONResponse({"detail": "OPENWEATHERMAP_API_KEY is required"}, 500)
            case "uvicorn 500":
                return PlainTextResponse("Internal Server Error", 500, {"Server": "uvicorn"})
            case "nginx 500":
                return PlainTextResponse("Internal Server Error", 500, {"Server": "nginx/1.22.1"})
            case "nginx nothing":
                return Response(None, 500, {"Server": "nginx/1.22.1"})
            case "empty 502":  # as Tailscale Serve has it
                return Response(None, 502)
            case "text 502":  # as Traefik has it, and Starlette
                return PlainTextResponse("Bad Gateway", 502)
            case "own 502":
                return JSONResponse({"detail": "AEMET is away"}, 502, {"Server": "nginx/1.22.1"})
            case "haproxy 503":
                return HTMLResponse("<html><body><h1>503 Service Unavailable</h1>\nNo server is available", 503)
            case "404":
                return JSONResponse({"detail": "Not Found"}, 404)
            case "403":
                return JSONResponse({"detail": "Admins only"}, 403, {"Server": "nginx/1.22.1"})
            case "proxy 403":
                return HTMLResponse(FORBIDDEN, 403, {"Server": "nginx/1.22.1"})
            case "proxy 502":
                return HTMLResponse("<html>502 Bad Gateway</html>", 502, {"Server": "nginx/1.22.1"})
            case "html":
                return HTMLResponse("<!doctype html><title>Dashboard</title>")
            case "error inside":
                return JSONResponse({"error": "no model trained", "predictions": []})
            case "status error":
                return JSONResponse({"status": "error", "message": "InfluxDB is away"})
            case "error in data":
                return JSONResponse({"data": {"error": {"code": 7, "message": "no model trained"}}})
            case "failed data":
                return JSONResponse({"data": {"status": "fail", "message": "InfluxDB is away"}})
            case "all errors":
                return JSONResponse([{"error": "no model trained"}, {"error": "no data"}])
            case "graphql":
                return JSONResponse({"data": None, "errors": [{"message": "no model trained"}]})
            case "report":
                return JSONResponse({"status": "degraded", "checks": {"influxdb": {"status": "error", "message": "-"}}})
            case "measure":
                return JSONResponse({"error": 0.03, "errors": ["none that matter"], "data": {"n": 1}})
            case "kept":
                return JSONResponse({"plan": {"day": {"error": "no model trained"}}})
            case "surrogate":
                return Response(rb'{"price": "x\ud800", "at": NaN}', media_type="application/json")
            case "surrogate 500":
                return Response(rb'{"detail": "x\ud800"}', 500, media_type="application/json")
            case "huge":
                return Response(b'["' + b"x" * 6_000_000 + b'"]', media_type="application/json")
            case "elsewhere":
                return RedirectResponse("http://localhost:1/ree/prices/latest")
            case "circles":
                return RedirectResponse(request.url)
        raise HTTPException(500, f"no fault {self.fault!r}")


@contextmanager
def factory_of() -> Iterator[tuple[Factory, str]]:
    """It runs, and where."""
    app = Factory()
    with running(app) as url:
        yield app, url


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An ASGI app on a free port: its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
