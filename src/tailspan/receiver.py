"""Who takes what is exported: a collector, or another tailspan, over OTLP/HTTP (opentelemetry.io, "OTLP/HTTP")."""

import logging
import os
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers
from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from tailspan.errors import SettingError, UnsentError
from tailspan.ingest.otlp import PROTOBUF

RETRYABLE: Final = (429, 502, 503, 504)  # the specification's own list; nothing else becomes better by itself
TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 10  # after the first: two and a half minutes with their pauses, unless Retry-After says otherwise

log = logging.getLogger("tailspan")


class Answer(NamedTuple):
    """What the receiver says of a request that it took: how many spans it refused, and why."""

    refused: int
    message: str


class Receiver:
    """`url` is its base, or the whole of `…/v1/traces`; raises SettingError where it is none."""

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ, attempts: int = ATTEMPTS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(f"--otlp is {url!r}.", value=url, rule="It is http://host:port or https://host:port.")
        base = url.rstrip("/")
        self.url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
        self._headers = {**otlp_headers(environ), "Content-Type": PROTOBUF}
        self._attempts = attempts
        self._pool = PoolManager()

    def send(self, body: bytes) -> Answer:
        """Tries again while that may help, and pauses as the receiver wishes. Raises UnsentError."""
        retries = Patience(
            self._attempts, status_forcelist=RETRYABLE, allowed_methods=None, backoff_factor=0.5, backoff_max=30
        )
        try:
            answer = self._pool.request(
                "POST", self.url, body=body, headers=self._headers, retries=retries, timeout=TIMEOUT_S, redirect=False
            )
        except HTTPError as problem:
            fix = "Start what should receive there, or correct the address."
            reason = str(getattr(problem, "reason", problem)).rpartition("): ")[2]  # after who says so
            raise UnsentError(f"{self.url} took nothing: {reason}.", value=self.url, fix=fix) from problem
        if answer.status != 200:
            raise self._refused(answer)
        try:
            told = ExportTraceServiceResponse.FromString(answer.data).partial_success
        except DecodeError:
            raise UnsentError(f"{self.url} answered, but not as OTLP has it.", value=self.url) from None
        return Answer(told.rejected_spans, told.error_message)

    def _refused(self, answer: BaseHTTPResponse) -> UnsentError:
        fix = {
            401: 'It wants a token: OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20<token>".',
            404: "Is that the port for OTLP over HTTP? Collectors mostly have it at 4318.",
        }.get(answer.status)
        said = answer.data[:200].decode(errors="replace")
        return UnsentError(f"{self.url} answered {answer.status}: {said!r}.", value=self.url, fix=fix)


def otlp_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """What OpenTelemetry's own variables say is to be sent along, such as a token."""
    given = environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environ.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
    return dict(parse_env_headers(given, liberal=True))


class Patience(Retry):
    """Pauses as the receiver says, else for longer each time; and says so."""

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        last = self.history[-1]
        log.warning("Not taken (%s), trying again", last.status or last.error)
        super().sleep(response)
