"""`tailspan doctor`: walks the chain from a service's environment to an answer, and names the link that is broken."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tailspan_otel import attributes as names
from tailspan_otel.peers import gateway_within

from tailspan.access import is_userspace
from tailspan.config import Settings
from tailspan.ingest.otlp import PROBE, PROTOBUF
from tailspan.receiver import otlp_headers
from tailspan.reports import ago
from tailspan.span import OWN_SERVICE

LOOK: Final = (
    "no data yet",
    "behind",
    "gaps",
    "doubled",
    "asked too often",
    "key expires",
    "old",
    "not set",
)  # it goes on all the same
SILENT_S: Final = 60.0  # four beats of a service


# kind of forgery (docs/attributes.md) → what was seen, what to do
FORGED: Final[dict[str, tuple[str, str | None]]] = {
    "untrusted": (
        "carried identity headers from an untrusted peer",
        "If it is your proxy: TAILSPAN_TRUSTED_PEERS.",
    ),
    "bypass": (
        "came past Serve with headers of their own",
        "Let Serve forward to a unix socket: tailscaled is in userspace mode.",
    ),
    "contradicted": (
        "carried identity headers that tailscaled contradicts",
        "A proxy passes them on. In nginx: proxy_set_header Tailscale-User-Login ''; and so for each.",
    ),
    "rewritten": (
        "wrote their address themselves, and uvicorn believed it",
        "Name the proxy, and nobody else, in FORWARDED_ALLOW_IPS and TAILSPAN_TRUSTED_PEERS: uvicorn trusts more.",
    ),
    "disputed": (
        "came with an X-Real-IP that is not the address in X-Forwarded-For, so that neither was believed",
        "Let the proxy set both or blank one. In nginx: proxy_set_header X-Real-IP ''; behind Serve a caller wrote it.",
    ),
    "addressless": (
        "carried a login without the tailnet address that it would come from",
        "A proxy passes the login on and not X-Forwarded-For. In nginx: proxy_set_header Tailscale-User-Login ''; "
        "behind Serve: proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    ),
    "forwarded": (
        "named a tailnet address in X-Forwarded-For that nobody vouches for",
        "If it is your proxy's: TAILSPAN_TRUSTED_PEERS.",
    ),
}
UNSAID: Final = (
    "If others use it, its proxy does not say who calls: nginx needs proxy_set_header X-Forwarded-For "
    "$proxy_add_x_forwarded_for; and tailscale serve --http or --https in place of --tcp."
)
UNSEEN: Final = (
    "If others use it, its nginx sees a proxy before it, and not who calls. Behind Tailscale Serve: include tailspan's "
    "nginx/serve.conf in its server { }; behind another proxy: set_real_ip_from and real_ip_header for that."
)
State = Literal["ok", "look", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One link of the chain. `state`: ok, look (nothing is broken, but somebody should know), broken."""

    link: str
    state: State
    message: str
    fix: str | None = None


def examine(settings: Settings, client: httpx.Client, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Every link in order. Without a server the links behind it are not asked."""
    yield Finding("settings", "ok", f"server {settings.server}, token {'set' if settings.token else 'not set'}")
    try:
        answer = client.get("/healthz")
        health = answer.json()
    except httpx.TransportError as problem:
        start = "If it listens elsewhere, set TAILSPAN_URL; else start it: tailspan serve"
        yield Finding("server", "broken", f"Nothing answers at {settings.server}: {problem}.", start)
        health = None
    except ValueError:
        yield Finding("server", "broken", f"What answers at {settings.server} is not tailspan.", "Set TAILSPAN_URL.")
        health = None
    else:
        if "version" not in health:
            error = health.get("error", {})
            yield Finding("access", "broken", str(error.get("message", answer.text[:200])), error.get("fix"))
            health = None
    if health:
        yield Finding("server", "ok", f"tailspan {health['version']} answers")
        for source in health["sources"]:
            yield from _source(source, _listing(health["sources"]))
        yield from _received(health["received"])
        yield from _all_local(client)
        yield from _tailnet(client)
    yield probe(environ)
    yield from _trust(settings, environ)
    yield _tailscaled(settings, health["sources"] if health else [])


def _listing(sources: list[dict[str, Any]]) -> str:
    """The sources that list the tailnet's devices."""
    return ", ".join(one["name"] for one in sources if one["name"].startswith("tailnet ") and one["state"] == "ok")


def _source(source: dict[str, Any], listing: str = "") -> Iterator[Finding]:
    state: State = "ok" if source["state"] == "ok" else "look" if source["state"] in LOOK else "broken"
    yield Finding(source["name"], state, f"{source['state']}: {source['message']}")
    for service in source["services"]:
        if service["service"] != OWN_SERVICE:
            yield from _service(service, listing)


def _service(service: dict[str, Any], listing: str) -> Iterator[Finding]:
    link = f"service {service['service']}" + (f" ({service['environment']})" if service["environment"] else "")
    request, beat = _age(service["last_request"]), _age(service["last_heartbeat"])
    seen = "no request yet" if request is None else f"newest request {ago(request)}"
    if beat is None:
        named = f"by address, as {listing} has it" if listing else "at most by address, which no source lists"
        message = f"{seen}, no heartbeats: it is not instrumented by tailspan_otel, and who came is named {named}"
        yield Finding(link, "ok" if listing else "look", message)
    elif service["stopped"]:
        yield Finding(link, "look", f"{seen}, stopped on purpose {ago(beat)}")
    elif beat > SILENT_S:
        fix = "Look whether it runs, and run tailspan doctor in its environment: it may not reach this server."
        yield Finding(link, "broken", f"{seen}, last heartbeat {ago(beat)}", fix)
    else:
        yield Finding(link, "ok", f"{seen}, heartbeat {ago(beat)}")
    for count, meaning, fix in (
        (
            "dropped",
            "spans were lost before they got here",
            "The server was away for long, or the service is too busy.",
        ),
        (
            "unproven",
            "requests were believed without proof",
            "Let Serve forward to a unix socket; or, where tailscaled has a TUN device, set TS_SOCKET for the service.",
        ),
    ):
        if service[count]:
            yield Finding(link, "look", f"{service[count]} {meaning} in the last 24 hours", fix)
    kinds = service["forged_kinds"]
    for kind, count in (kinds | {"other": service["forged"] - sum(kinds.values())}).items():
        if count > 0:
            meaning, what_to_do = FORGED.get(kind, ("claimed what only a trusted proxy may say", None))
            yield Finding(link, "look", f"{count} requests {meaning} in the last 24 hours", what_to_do)


def _received(received: dict[str, Any]) -> Iterator[Finding]:
    for reason, count in received["rejected"].items():
        yield Finding("spans", "look", f"{count} were rejected since the server started: {reason}")


def _all_local(client: httpx.Client) -> Iterator[Finding]:
    """Services that only processes of their own machine call: or so it seems, behind a proxy that says nothing."""
    asked = "metrics=requests&dimensions=service,caller,source&days=1&source=live,log&limit=10000"
    answer = client.get(f"/analytics/query?{asked}")
    if not answer.is_success:
        return  # a store in trouble, which was told
    rows = sorted(answer.json()["rows"], key=itemgetter("service"))
    for service, found in groupby(rows, itemgetter("service")):
        every = list(found)
        live = [row for row in every if row["source"] == "live"]
        own = live or every  # its log alone says little of a service that speaks for itself
        if service != OWN_SERVICE and {row["caller"] for row in own} == {"local"}:
            total = sum(row["requests"] for row in own)
            message = f"all {total} requests of the last 24 hours came from its own machine (`local`)"
            yield Finding(f"service {service}", "look", message, UNSAID if live else UNSEEN)


def _tailnet(client: httpx.Client) -> Iterator[Finding]:
    """Whether anything lists its devices, and whose keys expire."""
    answer = client.get("/analytics/tailnet/status")
    if not answer.is_success:
        return  # an older server, or one whose store is in trouble, which was told
    status = answer.json()
    yield from (found for one in status["sources"] if one["name"] == "tailnet" for found in _source(one))
    for key in status["keys_expiring"]:
        how = "has expired" if key["expired"] else f"expires on {key['expires'][:10]}"
        fix = f"Disable key expiry at the admin console; or on {key['device']}: tailscale up --force-reauth"
        yield Finding("tailnet", "look", f"The key of {key['device']} {how}: then it is cut off.", fix)


def probe(environ: Mapping[str, str]) -> Finding:
    """Sends a span that is no request, the way a service with this environment would."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return Finding(
            "probe", "broken", "OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER switches sending off.", "Unset it."
        )
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base and base.rstrip("/") + "/v1/traces")
    if not url:
        fix = "Run tailspan doctor where the service runs, with its environment."
        return Finding("probe", "look", "OTEL_EXPORTER_OTLP_ENDPOINT is not set here, so nothing was sent.", fix)
    headers = {**otlp_headers(environ), "Content-Type": PROTOBUF}
    try:
        answer = httpx.post(url, content=_probe_body(), headers=headers, timeout=5, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL) as problem:
        fix = "Start tailspan serve, or correct OTEL_EXPORTER_OTLP_ENDPOINT."
        return Finding("probe", "broken", f"A span cannot be sent to {url}: {problem}.", fix)
    if answer.status_code == 401:
        fix = 'Set OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20<token>".'
        return Finding("probe", "broken", f"{url} wants a token.", fix)
    if answer.status_code != 200:
        return Finding(
            "probe", "broken", f"{url} answered {answer.status_code}: {answer.text[:200]!r}.", "Is that tailspan?"
        )
    if not _acknowledged(answer.content):
        fix = "If it is the collector: with TAILSPAN_COLLECTOR_METRICS the server says what becomes of spans there."
        return Finding("probe", "look", f"{url} took the span, but is not tailspan itself.", fix)
    return Finding("probe", "ok", f"a span sent to {url} arrived")


def _probe_body() -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key=names.SERVICE).value.string_value = "tailspan-doctor"
    now = time.time_ns()
    span = resource.scope_spans.add().spans.add(
        trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="probe", kind="SPAN_KIND_INTERNAL"
    )
    span.start_time_unix_nano = span.end_time_unix_nano = now
    span.attributes.add(key=names.KIND).value.string_value = PROBE
    return request.SerializeToString()


def _acknowledged(body: bytes) -> bool:
    try:
        return ExportTraceServiceResponse.FromString(body).partial_success.error_message.startswith(PROBE)
    except ValueError:  # protobuf's DecodeError is one: some other server's page
        return False


def _trust(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    if gateway := gateway_within(peer for peer in settings.trusted_peers if not isinstance(peer, str)):
        yield Finding("trust", "look", f"TAILSPAN_TRUSTED_PEERS: {gateway}.", "Name the proxy itself.")
    if environ.get("FORWARDED_ALLOW_IPS", "").strip() == "*":
        fix = "Name the proxy in FORWARDED_ALLOW_IPS, or let Serve forward to a unix socket."
        yield Finding("trust", "look", "FORWARDED_ALLOW_IPS is '*': anybody's identity headers are believed.", fix)


def _tailscaled(settings: Settings, sources: list[dict[str, Any]]) -> Finding:
    userspace = settings.userspace if settings.userspace is not None else is_userspace(settings.ts_socket)
    if userspace is None and (listing := _listing(sources)):
        return Finding("tailscaled", "ok", f"{settings.ts_socket} does not answer; {listing} has the devices")
    if userspace is None:
        fix = (
            "Set TS_SOCKET; in a container, mount the socket, or let the server list the tailnet's devices by a "
            "status or a key (docs/tailnet.md). Without a TUN device: TAILSPAN_USERSPACE=true"
        )
        return Finding("tailscaled", "look", f"{settings.ts_socket} does not answer: nobody is named by it.", fix)
    if userspace:
        return Finding(
            "tailscaled", "look", "userspace mode: tailnet peers reach loopback ports.", "Prefer unix sockets."
        )
    if settings.userspace is False:
        return Finding("tailscaled", "ok", "is not in userspace mode: TAILSPAN_USERSPACE says so, and it was not asked")
    return Finding("tailscaled", "ok", "answers, with a TUN device")


def _age(time: str | None) -> float | None:
    return None if time is None else (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
