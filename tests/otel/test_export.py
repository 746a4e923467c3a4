"""The way out under a real uvicorn: whatever the receiver does, requests are served, and what is lost is counted."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from tailspan_otel import attributes as name
from tailspan_otel import export, heartbeat, instrument

from tests.otel.receiver import Receiver, client, serving, spans_of
from tests.stack.engines import free_port

AWAY_S = 8.0
PER_S = 50


@pytest.fixture(autouse=True)
def no_tailscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TAILSPAN_USERSPACE", "false"
    )  # else its status is asked for, and httpcore leaves the socket open


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def greeter(exporter: SpanExporter | None = None) -> FastAPI:
    app = FastAPI(title="greeter")

    @app.get("/")
    def greet() -> str:
        return "hello"

    instrument(app, exporter=exporter)
    return app


@contextmanager
def greeting() -> Iterator[httpx.Client]:
    with serving(greeter()) as url, client(url) as visitor:
        yield visitor


def ask(visitor: httpx.Client, count: int) -> None:
    """Raises where a request is not served."""
    for _ in range(count):
        assert visitor.get("/").text == '"hello"'


def lost(receiver: Receiver) -> int:
    """The loss that the last beat told of, once the server has stopped."""
    receiver.wait(lambda: any(beat["attributes"][name.STOPPED] for beat in receiver.beats))
    (stop,) = (beat for beat in receiver.beats if beat["attributes"][name.STOPPED])
    count: int = stop["attributes"][name.DROPPED]
    return count


class Absence(threading.Thread):
    """A service whose receiver is away for eight seconds under load: long, and so beside the other tests."""

    def __init__(self) -> None:
        super().__init__(name="absence", daemon=True)
        self.port = free_port()
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TAILSPAN_USERSPACE", "false")
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{self.port}")
            self.app = greeter()
        self.sent = 0
        self.receiver: Receiver | None = None
        self.start()

    def run(self) -> None:
        pace = threading.Event()
        with serving(self.app) as url, client(url) as visitor:
            until = time.monotonic() + AWAY_S
            while time.monotonic() < until:
                ask(visitor, 1)
                self.sent += 1
                pace.wait(1 / PER_S)
            with Receiver(self.port) as self.receiver:
                self.receiver.take(self.sent, 25.0)
                self.receiver.wait(lambda: self.receiver and self.receiver.beats)


@pytest.fixture(scope="module", autouse=True)
def absence() -> Absence:
    return Absence()


def test_no_request_waits_for_a_receiver_that_hangs_and_nothing_is_lost_when_it_wakes(receiver: Receiver) -> None:
    receiver.open.clear()
    with greeting() as visitor:
        ask(visitor, 1)
        receiver.wait(lambda: receiver.attempts)  # the exporter is waiting now
        ask(visitor, 200)
        assert (receiver.attempts, receiver.spans) == (1, [])
        receiver.open.set()
        assert len(receiver.take(201)) == 201
    assert lost(receiver) == 0


def test_what_the_receiver_refuses_is_counted_exactly(receiver: Receiver) -> None:
    receiver.status = 400
    with greeting() as visitor:
        for attempts in (1, 2):
            ask(visitor, 30)
            receiver.wait(lambda least=attempts: receiver.attempts >= least)  # type: ignore[misc]  # a lambda in a loop
        receiver.status = 200
        ask(visitor, 30)
    gone = 90 - len(receiver.requests) + 2 - len(receiver.beats)  # beats: one at the start, one at the stop
    assert gone > 0 and lost(receiver) == gone


@pytest.mark.parametrize(("status", "garbage"), [(503, b""), (200, b"\x00\xff what?\r\n\r\n")])
def test_a_receiver_that_is_busy_or_answers_garbage_is_asked_again_and_nothing_is_lost(
    receiver: Receiver, status: int, garbage: bytes
) -> None:
    receiver.status, receiver.garbage = status, garbage
    with greeting() as visitor:
        ask(visitor, 20)
        receiver.wait(lambda: receiver.attempts)
        ask(visitor, 20)
        receiver.status, receiver.garbage = 200, b""
        receiver.take(40)
    assert len(receiver.requests) == 40 and lost(receiver) == 0


@pytest.mark.parametrize("body", [b"\xff\xffnonsense", b"<html>welcome</html>"])
def test_a_200_with_garbage_below_it_counts_as_taken(receiver: Receiver, body: bytes) -> None:
    receiver.body = body
    with greeting() as visitor:
        ask(visitor, 5)
    assert len(receiver.requests) == 5 and lost(receiver) == 0


def test_what_a_receiver_took_and_then_rejected_is_its_own_to_count(receiver: Receiver) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    answer.partial_success.error_message = "three of them were too old"
    receiver.body = answer.SerializeToString()
    with greeting() as visitor:
        ask(visitor, 5)
    assert len(receiver.requests) == 5 and lost(receiver) == 0


def test_a_full_queue_loses_what_comes_and_says_so_on_the_heartbeat_and_once_a_minute_in_the_log(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    receiver.open.clear()
    with caplog.at_level(logging.WARNING, "tailspan"), greeting() as visitor:
        ask(visitor, 100)
        said = [record.getMessage() for record in caplog.records if record.name == "tailspan"]
        assert len(said) == 1 and said[0].startswith("tailspan lost 1 spans (1 in all)")
        receiver.open.set()
        receiver.wait(
            lambda: any(beat["attributes"][name.DROPPED] + len(receiver.requests) >= 100 for beat in receiver.beats)
        )
        kept = len(receiver.requests)
        monkeypatch.setattr(export, "LOG_EVERY_S", 0.0)
        receiver.open.clear()
        ask(visitor, 100)
        receiver.open.set()
        said = [record.getMessage() for record in caplog.records if record.name == "tailspan"]
        receiver.take(kept + 1)
    assert 0 < 200 - len(receiver.requests) <= lost(receiver)  # beats are lost as well
    assert sum(int(line.split()[2]) for line in said) == int(said[-1].split("(")[1].split()[0])


class Broken(SpanExporter):
    def __init__(self) -> None:
        self.batches = 0

    def export(self, spans: Any) -> SpanExportResult:
        self.batches += 1
        raise RuntimeError("no way out")


def test_an_exporter_that_raises_costs_no_request_and_its_batches_count_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    app = greeter(broken)
    with serving(app) as url, client(url) as visitor:
        ask(visitor, 20)
    said = [record.getMessage() for record in caplog.records if record.name == "tailspan"]
    assert broken.batches >= 1 and len(said) == 1
    recorder: Any = app.user_middleware[0].kwargs["recorder"]
    assert recorder.outlet.dropped == 22  # with the first and the last beat


@pytest.mark.parametrize("variable", ["OTEL_TRACES_EXPORTER=none", "OTEL_SDK_DISABLED=true", "OTEL_SDK_DISABLED=TRUE"])
def test_a_service_that_wants_no_telemetry_is_left_as_it_was(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(*variable.split("="))
    app = greeter()
    assert app.user_middleware == []
    with serving(app) as url, client(url) as visitor:
        ask(visitor, 1)
    assert receiver.attempts == 0


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "many"])
def test_a_bad_setting_of_the_batch_processor_breaks_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    variables = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    for variable in variables:
        monkeypatch.setenv(variable, value)
    with greeting() as visitor:
        ask(visitor, 1)
        assert len(receiver.take(1, 1.0)) == 1
    told = {variable for record in caplog.records for variable in variables if f"{variable}={value}" in record.message}
    assert told == (set(variables) if value else set())


def test_a_request_is_at_the_receiver_within_a_second(receiver: Receiver) -> None:
    with greeting() as visitor:
        for count in range(1, 4):
            ask(visitor, 1)
            receiver.take(count, 1.0)


def test_the_owners_delay_and_batch_size_are_kept(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with greeting() as visitor:
        ask(visitor, 8)  # and the first beat: nine, one short of a batch
        assert not receiver.waited(lambda: receiver.attempts, 1.0)
        ask(visitor, 1)
        receiver.wait(lambda: receiver.attempts, 1.0)
        ask(visitor, 25)
    assert len(receiver.requests) == 34
    assert {len(spans_of(body)) for body in receiver.bodies} <= set(range(1, 11))


def test_a_receiver_that_is_away_for_eight_seconds_costs_nothing(absence: Absence) -> None:
    absence.join(40.0)
    assert absence.receiver is not None and absence.sent > 100
    assert (
        len(absence.receiver.requests) == len({span["span_id"] for span in absence.receiver.requests}) == absence.sent
    )
    assert max(beat["attributes"][name.DROPPED] for beat in absence.receiver.beats) == 0
