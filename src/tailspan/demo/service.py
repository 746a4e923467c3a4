"""The service of the demo: the dashboard of a small chocolate factory that works when electricity is cheap.

Its numbers are invented, and its optimisation only sleeps. It is instrumented the way any service is: see `create_app`.
"""

import argparse
import asyncio
import json
import math
import signal
import socket
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import uvicorn
from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from tailspan_otel import instrument

TITLE: Final = "factory"
PORT: Final = 8000
OPTIMISING_S: Final = 0.9
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
TITLES: Final = {
    "/ree/prices/latest": "Electricity price",
    "/weather/current": "Weather",
    "/predict/prices/weekly": "Price forecast",
    "/insights/optimal-windows?days=7": "Optimal windows",
    "/insights/alerts": "Alerts",
    "/insights/savings-tracking": "Savings",
}
CALLS: Final = tuple(TITLES)  # what the page asks for when it is opened
POLLED: Final = CALLS[0]  # and what it asks for again every two minutes
PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Chocolate factory</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<style>body{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#2d3748}
article,analytics-widget{margin:1rem 0}
pre{background:#f5f7fa;border-radius:12px;padding:1rem;overflow:auto;height:6rem}</style>
<main><h1>Chocolate factory</h1><button>Optimise today</button><div id="cards"></div></main>
<script>
  const cards = new Map();
  const show = async ([path, title], method = "GET") => {
    const card = cards.get(title) ?? document.createElement("article");
    if (!cards.has(title)) {
      card.append(document.createElement("h2"), document.createElement("pre"));
      card.firstChild.textContent = title;
      card.lastChild.tabIndex = 0;
      document.getElementById("cards").append(card);
      cards.set(title, card);
    }
    const answer = await fetch(path, {method});
    card.lastChild.textContent = JSON.stringify(await answer.json(), null, 1);
  };
  const calls = CALLS;
  calls.forEach((call) => show(call));
  setInterval(() => show(calls[0]), 120_000);
  document.querySelector("button").onclick = () =>
    show(["/optimize/production/daily?target_kg=200", "Daily optimisation"], "POST");
</script>
<script type="module" src="/analytics/static/js/components/analytics-widget.js" data-target="main"
  data-service="factory" data-refused="totals"></script>
<script type="module" src="/analytics/static/js/components/card-views.js" data-cards="article"
  data-service="factory"></script>
</html>"""

routes = APIRouter()
insights = APIRouter(prefix="/insights")


def price(at: datetime) -> float:
    """EUR per kWh in the hour of `at`: dear in the evening, cheap at night and on Sundays."""
    evening = math.cos((at.hour - 20) / 24 * 2 * math.pi)
    return round(0.14 + 0.06 * evening - 0.03 * (at.weekday() == 6), 4)


def hours(start: datetime, count: int) -> list[datetime]:
    first = start.replace(minute=0, second=0, microsecond=0)
    return [first + timedelta(hours=hour) for hour in range(count)]


def cheapest(day: datetime, length: int = 4) -> datetime:
    """When the `length` hours of that day begin that cost least together."""
    starts = hours(day.replace(hour=0), 25 - length)
    return min(starts, key=lambda start: sum(price(hour) for hour in hours(start, length)))


@routes.get("/health", summary="Health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@routes.get("/dashboard", summary="Dashboard", response_class=HTMLResponse)
def dashboard() -> str:
    return PAGE.replace("CALLS", json.dumps(list(TITLES.items())))


@routes.get("/ree/prices/latest", summary="Electricity price")
def latest_price() -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"price": price(now), "unit": "EUR/kWh", "timestamp": now}


@routes.get("/weather/current", summary="Weather")
def weather() -> dict[str, float]:
    return {"temp": 22.5, "humidity": 55, "pressure": 1013}


@routes.get("/predict/prices/weekly", summary="Price forecast")
def weekly_forecast() -> dict[str, Any]:
    week = hours(datetime.now(UTC), 168)
    return {"predictions": [{"timestamp": hour, "price": price(hour)} for hour in week]}


class Conditions(BaseModel):
    price_eur_kwh: Annotated[float, Field(ge=0)]
    temperature: float
    humidity: Annotated[float, Field(ge=0, le=100)]


@routes.post("/predict/production-recommendation", summary="Production recommendation")
def recommendation(conditions: Conditions) -> dict[str, Any]:
    levels = {"Optimal": 0.12, "Moderate": 0.16, "Reduced": 0.2}
    level = next((name for name, most in levels.items() if conditions.price_eur_kwh <= most), "Halt")
    return {"recommendation": level, "conditions": conditions}


@routes.get("/analysis/siar-summary", summary="Weather and production since 2000")
def siar() -> dict[str, Any]:
    return {"correlations": {"temp": 0.049}, "thresholds": {"p90": 28.8}}


@routes.post("/optimize/production/daily", summary="Daily optimisation")
async def optimise(
    target_date: date | None = None, target_kg: Annotated[float, Query(gt=0, le=500)] = 200
) -> dict[str, Any]:
    await asyncio.sleep(OPTIMISING_S)  # stands in for a solver: what is shown is that it is slow
    day = datetime.combine(target_date or datetime.now(UTC).date(), datetime.min.time(), UTC)
    plan = hours(cheapest(day), 4)
    return {"date": day.date(), "plan": [{"hour": hour, "kg": target_kg / 4, "price": price(hour)} for hour in plan]}


@insights.get("/optimal-windows", summary="Optimal windows")
def optimal_windows(days: Annotated[int, Query(ge=1, le=14)] = 7) -> dict[str, Any]:
    today = datetime.now(UTC)
    starts = [cheapest(today + timedelta(days=day)) for day in range(days)]
    windows = [{"day": DAYS[at.weekday()], "hours": f"{at:%H}-{at.hour + 4:02}h", "price": price(at)} for at in starts]
    return {"windows": windows}


@insights.get("/alerts", summary="Alerts")
def alerts() -> dict[str, Any]:
    coming = hours(datetime.now(UTC), 24)
    dearest = max(coming, key=price)
    return {"alerts": [{"type": "price_spike", "message": f"{price(dearest)} EUR/kWh at {dearest:%H:%M} UTC"}]}


@insights.get("/savings-tracking", summary="Savings")
def savings() -> dict[str, float]:
    return {"daily_savings": 4.55, "weekly": 31.85}


def create_app(*, beside_opentelemetry: bool = False) -> FastAPI:
    """The service. `beside_opentelemetry`: one that has the stock instrumentation already, with its own provider."""
    app = FastAPI(title=TITLE)
    app.include_router(routes)
    app.include_router(insights)
    if beside_opentelemetry:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.trace import TracerProvider

        FastAPIInstrumentor.instrument_app(app, tracer_provider=TracerProvider())
    instrument(app)
    return app


def listen(path: Path, host: str = "127.0.0.1") -> list[socket.socket]:
    """A unix socket, as Serve forwards to, and a port of the host: the usual one, or a free one where it is taken."""
    path.unlink(missing_ok=True)  # of one that was killed
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()  # from here on a request waits, where it would have been refused
    try:
        return [unix, socket.create_server((host, PORT))]
    except OSError:
        return [unix, socket.create_server((host, 0))]


def main() -> None:
    """Prints the URL of the port, and serves there and on the unix socket until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("socket", type=Path)
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--beside-opentelemetry", action="store_true")
    given = arguments.parse_args()
    sockets = listen(given.socket, given.host)
    app = create_app(beside_opentelemetry=given.beside_opentelemetry)
    print(f"http://{given.host}:{sockets[1].getsockname()[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # a proxy must not use what is just being closed
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main()
