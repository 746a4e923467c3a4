"""The server that commands ask, over HTTP."""

import os
from typing import Any, Final

import httpx
import typer

from tailspan.config import Settings

PATIENCE_S: Final = 600.0  # to delete takes InfluxDB long


class Unanswered(Exception):
    """The server cannot be asked, or refuses; the message says why and what to do."""


def known() -> Settings:
    """The settings of a command that asks the server: where that one keeps its data is not the command's concern."""
    return Settings.read({key: value for key, value in os.environ.items() if not key.startswith("INFLUXDB_V2_")})


def connect(settings: Settings) -> httpx.Client:
    """A client of the server: its URL or unix socket, and the token."""
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    unix, _, path = settings.server.partition("unix:")
    transport = httpx.HTTPTransport(uds=path) if path and not unix else None
    base = "http://localhost" if transport else settings.server
    return httpx.Client(base_url=base, transport=transport, headers=headers, timeout=30, trust_env=False)


def ask(path: str, **parameters: object) -> dict[str, Any]:
    """The server's answer. Raises Unanswered, and for a wrong parameter typer.BadParameter."""
    return dict(_content(request(path, **parameters)))


def request(path: str, how: str = "GET", /, **parameters: object) -> httpx.Response:
    """The server's response to a question it answers. Raises as `ask`."""
    settings = known()
    given = {key: str(value) for key, value in parameters.items() if value is not None}
    with connect(settings) as client:
        try:
            response = client.request(how, path, params=given, timeout=PATIENCE_S if how == "DELETE" else 30)
        except httpx.TransportError as problem:
            raise _nobody(settings.server, problem) from None
    if response.is_success:
        return response
    error = _content(response).get("error", {})
    message = " ".join(str(error[key]) for key in ("message", "rule", "fix") if key in error)
    if response.status_code == 422:
        raise typer.BadParameter(message)
    raise Unanswered(message or f"{settings.server} answered {response.status_code}. Run: tailspan doctor")


def _content(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as problem:
        raise _nobody(str(response.url.copy_with(raw_path=b"/")).rstrip("/"), problem) from None


def _nobody(server: str, problem: Exception) -> Unanswered:
    return Unanswered(f"No tailspan answers at {server}: {problem}. Run: tailspan doctor")
