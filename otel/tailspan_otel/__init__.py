"""Puts the caller's Tailscale identity on an OpenTelemetry span for every request of an ASGI service.

from tailspan_otel import instrument

instrument(app)  # last, after every add_middleware
"""

import atexit
import logging
import os
from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter

from tailspan_otel.export import exporter_from_environment
from tailspan_otel.middleware import Capture
from tailspan_otel.peers import Peers
from tailspan_otel.recorder import Recorder
from tailspan_otel.status import Listing
from tailspan_otel.whois import Whois

__all__ = ["instrument", "service_name"]

SOCKET = "/var/run/tailscale/tailscaled.sock"

log = logging.getLogger("tailspan")


def instrument(
    app: Any, *, trusted_peers: str | Iterable[str] | None = None, exporter: SpanExporter | None = None
) -> None:
    """Records every request of a FastAPI or Starlette `app`. Call it last: what it wraps is what it sees.

    `trusted_peers`: addresses, networks or host names of the proxies whose identity headers and X-Forwarded-For are
    believed, in place of `TAILSPAN_TRUSTED_PEERS` (comma-separated) and of the default, 127.0.0.1 and ::1. Names are
    looked up again and again, beside the requests. A unix socket is always believed.
    `exporter` takes the place of OTLP over HTTP.

    From the environment: `OTEL_SERVICE_NAME` (else the app's title), `OTEL_RESOURCE_ATTRIBUTES`
    (`deployment.environment.name`), `OTEL_EXPORTER_OTLP_*`, `OTEL_BSP_*`, `OTEL_PROPAGATORS`, `OTEL_TRACES_EXPORTER`,
    `OTEL_SDK_DISABLED`; `TS_SOCKET` (tailscaled's, default /var/run/tailscale/tailscaled.sock), `TAILSPAN_USERSPACE`
    (`true` or `false`, where tailscaled's own status cannot be read), `TAILSPAN_STATUS` (a file or an http(s) URL of
    what `tailscale status --json` prints, where tailscaled's socket is out of reach).

    Raises ValueError for a trusted peer that can be none, RuntimeError where the app has already started.
    """
    if any(middleware.cls is Capture for middleware in app.user_middleware):
        log.warning("instrument() was called before for this app; it is recorded once")
        return
    exporter = exporter or exporter_from_environment()
    if exporter is None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        log.info("tailspan records nothing: OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER=none is set")
        return
    whois = Whois(os.environ.get("TS_SOCKET", SOCKET), userspace=_userspace())
    status = os.environ.get("TAILSPAN_STATUS", "").strip()
    listing = Listing(status) if status else None
    recorder = Recorder(_resource(app), exporter, _peers(trusted_peers), whois, listing)
    app.add_middleware(Capture, recorder=recorder)
    atexit.register(recorder.shutdown)


def _peers(peers: str | Iterable[str] | None) -> Peers:
    if peers is None or isinstance(peers, str):
        given = peers or os.environ.get("TAILSPAN_TRUSTED_PEERS")
    else:
        given = ",".join(peers)
    if given is None:
        return Peers()
    try:
        return Peers(peer.strip() for peer in given.split(",") if peer.strip())
    except ValueError as error:
        fix = "write addresses, networks or host names, such as 172.18.0.5 or nginx"
        raise ValueError(f"trusted peers {given!r}: {error}; {fix}") from None


def _userspace() -> bool | None:
    value = os.environ.get("TAILSPAN_USERSPACE", "").strip().lower()
    if value not in ("", "true", "false"):
        raise ValueError(f"TAILSPAN_USERSPACE={value!r}: must be true or false")
    return None if value == "" else value == "true"


def service_name(app: Any) -> str:
    """What the spans of the app name it: `OTEL_SERVICE_NAME`, else its title."""
    return str(_resource(app).attributes["service.name"])


def _resource(app: Any) -> Resource:
    resource = Resource.create()
    title = getattr(app, "title", None)
    if title and str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": title}))
    return resource
