"""A service for the drills: its spans go where OTEL_EXPORTER_OTLP_ENDPOINT says."""

from fastapi import FastAPI
from tailspan_otel import instrument

app = FastAPI(title="shop")


@app.get("/items/{number}")
def item(number: int) -> int:
    return number


instrument(app)
