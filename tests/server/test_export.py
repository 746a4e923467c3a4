"""`tailspan export`: a history arrives as it was, whatever the receiver does on the way."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.testclient import TestClient

from tailspan import receiver as otlp
from tailspan.app import create_app
from tailspan.config import Settings
from tailspan.encode import BYTES, SPANS, batches
from tailspan.errors import UnsentError
from tailspan.span import Heartbeat, Span
from tailspan.store.duckdb import DuckDB
from tests.conftest import Launch
from tests.server.spans import NOW_NS, PROTOBUF, SECOND
from tests.server.strategies import heartbeats, rich_world, worlds
from tests.server.views import view
from tests.stack.engines import free_port

AnyRecord = TypeVar("AnyRecord", Span, Heartbeat)
LATER = datetime(2030, 1, 1, tzinfo=UTC)
BEAT = Heartbeat(
    b"h" * 16, b"h" * 8, NOW_NS, NOW_NS + 60 * SECOND, "dashboard", "prod", True, 1, 2, 3, 4, "untrusted=1"
)


def kept(database: Path) -> tuple[list[Span], list[Heartbeat], list[Any]]:
    """Everything that the database has."""
    store = DuckDB(database)
    try:
        return sorted(store.spans()), store.heartbeats(2**63 - 1), store.history()
    finally:
        store.close()


def keep(database: Path, spans: Sequence[Span], beats: Sequence[Heartbeat] = ()) -> Path:
    store = DuckDB(database)
    store.write(spans, beats)
    store.close()
    return database


def valid(record: AnyRecord) -> AnyRecord:
    """Its ids are not zero, which OpenTelemetry has for "none"."""
    return record._replace(trace_id=b"t" + record.trace_id[1:], span_id=b"s" + record.span_id[1:])


@settings(max_examples=25)  # each is two databases
@given(worlds(), heartbeats())
def test_every_span_view_and_heartbeat_arrives_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, spans: list[Span], beats: list[Heartbeat]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    source = keep(folder / "source.duckdb", list(map(valid, spans)), list(map(valid, beats)))
    store = DuckDB(folder / "target.duckdb")
    app = create_app(Settings(), store, lambda: LATER)
    try:
        with TestClient(app, "http://127.0.0.1:8100", client=("127.0.0.1", 50000)) as client:
            for batch in batches([*map(valid, beats), *map(valid, spans)]):
                answer = client.post("/v1/traces", content=batch.body, headers=PROTOBUF)
                assert (answer.status_code, answer.content) == (200, b"")
    finally:
        store.close()
    assert kept(folder / "target.duckdb") == kept(source)


def test_the_command_moves_a_database_into_a_server_and_sent_again_nothing_is_there_twice(
    launch: Launch, tmp_path: Path
) -> None:
    source = keep(tmp_path / "source.duckdb", list(map(valid, rich_world())), [BEAT])
    before = kept(source)
    server = launch("tailspan", "serve", TAILSPAN_DB=str(tmp_path / "target.duckdb"), TAILSPAN_LISTEN="127.0.0.1:0")
    url = server.line().split()[3]
    for _ in range(2):
        code, said, told = launch("tailspan", "export", "--otlp", url, TAILSPAN_DB=str(source), COLUMNS="200").ended()
        assert (code, said) == (0, "")
        assert f"{url}/v1/traces took 161 of 161 requests, views and heartbeats." in told
    assert server.end()[0] == 0
    found, beats, history = kept(tmp_path / "target.duckdb")
    assert (found, [beat for beat in beats if beat.service != "tailspan"], history) == before  # beside its own


def test_that_nobody_is_there_is_told_without_the_librarys_names() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnsentError) as raised:
        otlp.Receiver(url, {}, attempts=0).send(b"")
    told = "took nothing: Failed to establish a new connection: [Errno 111] Connection refused."
    assert str(raised.value) == f"{url}/v1/traces {told} Start what should receive there, or correct the address."


def test_what_is_sent_fits_every_receiver_and_is_complete() -> None:
    long = [view(n, "c", page="/" + "é" * 1023, user_agent=str(n) + "€" * 1000) for n in range(1, SPANS + 1)]
    short = [view(n, "c") for n in range(SPANS + 1, 3 * SPANS)]
    made = list(batches([*long, *short]))
    assert max(len(batch.body) for batch in made) < BYTES * 1.1
    assert max(batch.spans for batch in made) == SPANS
    requests = [ExportTraceServiceRequest.FromString(batch.body) for batch in made]
    sent = [span for request in requests for span in request.resource_spans[0].scope_spans[0].spans]
    assert [int.from_bytes(span.span_id, "big") for span in sent] == list(range(1, 3 * SPANS))


class Receiver:
    """Answers each delivery with the next of `answers`: status, headers, body; the last one again and again."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes], got: Callable[[], None] = lambda: None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        left = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.headers.append({key.lower(): value for key, value in self.headers.items()})
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                got()
                with suppress(ConnectionError):  # who was interrupted hears no answer
                    self.send_response(status)
                    for key, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def listening(self) -> Iterator["Receiver"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


TAKEN: tuple[int, dict[str, str], bytes] = (200, {}, b"")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return keep(tmp_path / "source.duckdb", [view(1, "Sistema"), view(2, "Precios")])


@pytest.mark.parametrize(
    ("status", "headers", "pause"), [(429, {}, 0), (502, {}, 0), (503, {"Retry-After": "2"}, 2), (504, {}, 0)]
)
def test_a_receiver_that_is_busy_is_asked_again_not_before_it_says(
    launch: Launch, database: Path, status: int, headers: dict[str, str], pause: int
) -> None:
    at: list[float] = []
    with Receiver((status, headers, b""), TAKEN, got=lambda: at.append(time.monotonic())).listening() as receiver:
        program = launch("tailspan", "export", "--otlp", receiver.url, TAILSPAN_DB=str(database), COLUMNS="200")
        code, _, told = program.ended()
    assert (code, len(receiver.bodies), len(set(receiver.bodies))) == (0, 2, 1)
    assert at[1] - at[0] >= pause
    assert told.count(f"Not taken ({status}), trying again") == 1
    assert "took 2 of 2" in told


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((400, {}, b"bad"), "answered 400: 'bad'."),
        ((500, {}, b""), "answered 500: ''."),
        ((401, {}, b""), "It wants a token: OTEL_EXPORTER_OTLP_HEADERS"),
        ((404, {}, b"<html>"), "Is that the port for OTLP over HTTP?"),
        ((302, {"Location": "/elsewhere"}, b""), "answered 302"),
        ((200, {}, b"<html>"), "answered, but not as OTLP has it."),
    ],
)
def test_a_receiver_that_refuses_is_asked_once_and_named(
    launch: Launch, database: Path, answer: tuple[int, dict[str, str], bytes], complaint: str
) -> None:
    with Receiver(answer).listening() as receiver:
        program = launch("tailspan", "export", "--otlp", receiver.url, TAILSPAN_DB=str(database), COLUMNS="200")
        code, _, told = program.ended()
    assert (code, len(receiver.bodies)) == (1, 1)
    assert complaint in told
    assert f"Stopped: {receiver.url}/v1/traces took 0 of 2. Export again:" in told


def test_spans_that_a_receiver_refuses_are_told_with_its_reason(launch: Launch, database: Path) -> None:
    partly = ExportTraceServiceResponse()
    partly.partial_success.rejected_spans = 1
    partly.partial_success.error_message = "too old"
    with Receiver((200, {}, partly.SerializeToString())).listening() as receiver:
        program = launch("tailspan", "export", "--otlp", receiver.url, TAILSPAN_DB=str(database), COLUMNS="200")
        code, _, told = program.ended()
    assert code == 1
    assert "took 1 of 2" in told
    assert "refused 1 of them: 1 for too old." in told


def test_headers_are_those_of_opentelemetrys_variable(launch: Launch, database: Path) -> None:
    headers = "Authorization=Bearer%20abc,X-Tenant=home"
    with Receiver(TAKEN).listening() as receiver:
        settings = {"TAILSPAN_DB": str(database), "OTEL_EXPORTER_OTLP_HEADERS": headers}
        assert launch("tailspan", "export", "--otlp", f"{receiver.url}/v1/traces", **settings).ended()[0] == 0
    [got] = receiver.headers
    assert (got["authorization"], got["x-tenant"]) == ("Bearer abc", "home")
    assert got["content-type"] == "application/x-protobuf"


def test_ctrl_c_says_how_far_it_came(launch: Launch, tmp_path: Path) -> None:
    choose = Random(1).choice
    many = [view(n, choose("ab"), service=choose(("one", "two"))) for n in range(3 * SPANS)]
    database = keep(tmp_path / "source.duckdb", many)
    waiting, interrupted = threading.Semaphore(0), threading.Event()

    def got() -> None:
        waiting.release()
        if len(receiver.bodies) == 2:
            interrupted.wait(60)

    with Receiver(TAKEN, got=got).listening() as receiver:
        program = launch("tailspan", "export", "--otlp", receiver.url, TAILSPAN_DB=str(database), COLUMNS="200")
        assert waiting.acquire(timeout=60) and waiting.acquire(timeout=60)
        program.process.send_signal(signal.SIGINT)
        code, _, told = program.ended()
        interrupted.set()
    assert code == 130
    assert f"took {SPANS:,} of {3 * SPANS:,}. Export again: what was taken before is not counted twice." in told
    assert "Traceback" not in told


def test_what_cannot_be_exported_is_named(launch: Launch, tmp_path: Path) -> None:
    missing = tmp_path / "missing.duckdb"
    empty = keep(tmp_path / "empty.duckdb", [])
    server = launch("tailspan", "serve", TAILSPAN_DB=str(tmp_path / "held.duckdb"), TAILSPAN_LISTEN="127.0.0.1:0")
    url = server.line().split()[3]
    for database, to, code, complaint in (
        (missing, url, 2, f"TAILSPAN_DB is {missing}, and there is no such file."),
        (empty, url, 1, f"The database {empty} is empty: nothing was sent."),
        (tmp_path / "held.duckdb", url, 1, f"held by another process (pid {server.process.pid})"),
        (empty, "localhost:4318", 2, "--otlp is 'localhost:4318'. It is http://host:port or https://host:port."),
    ):
        program = launch("tailspan", "export", "--otlp", to, TAILSPAN_DB=str(database), COLUMNS="300")
        ended = program.ended()
        assert ended[:2] == (code, "")
        assert complaint in ended[2]
    assert not missing.exists()
